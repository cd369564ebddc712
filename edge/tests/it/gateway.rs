//! A running `gemba-edge` in a directory of its own, and devices that publish to it.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU16, Ordering::Relaxed},
    time::{Duration, Instant},
};

use rumqttc::{AsyncClient, Event, MqttOptions, Packet, QoS};

const DEADLINE: Duration = Duration::from_mins(1);

pub struct Gateway {
    directory: tempfile::TempDir,
    pub mqtt: SocketAddr,
    pub http: SocketAddr,
    child: Option<Child>,
}

/// Below the ports that the system gives to outgoing connections, of which one might take it before it is listened on.
pub fn free_address() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        let (first, count) = (10_000, 20_000);
        let start = (std::process::id() * 97) as u16;
        let port = first + start.wrapping_add(NEXT.fetch_add(1, Relaxed)) % count;
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}

/// Waits until something is there.
pub async fn wait<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < DEADLINE, "waited {DEADLINE:?} for {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

impl Gateway {
    /// `more` is appended to the configuration. Nothing runs yet. Unless it says otherwise, a machine that falls silent is not waited
    /// for as long as usual.
    pub fn new(more: &str) -> Self {
        let defaults = if more.contains("[defaults]") { "" } else { "[defaults]\nhold = \"3s\"\n" };
        let directory = tempfile::tempdir().unwrap();
        let (mqtt, http) = (free_address(), free_address());
        let config = format!(
            "[gateway]\ndata_dir = \"data\"\nclock = \"trusted\"\n[mqtt]\nlisten = \"{mqtt}\"\n[http]\nlisten = \"{http}\"\n{defaults}{more}"
        );
        fs::write(directory.path().join("edge.toml"), config).unwrap();
        Self { directory, mqtt, http, child: None }
    }

    pub async fn started(more: &str) -> Self {
        let mut gateway = Self::new(more);
        gateway.start().await;
        gateway
    }

    pub async fn start(&mut self) {
        let log = fs::File::options().create(true).append(true).open(self.log()).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_gemba-edge"))
            .args(["run", "--config"])
            .arg(self.directory.path().join("edge.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
        wait("the gateway to be ready", || self.get("readyz")).await;
    }

    pub fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    fn log(&self) -> PathBuf {
        self.directory.path().join("log")
    }

    pub fn log_text(&self) -> String {
        fs::read_to_string(self.log()).unwrap_or_default()
    }

    /// The answer, where it is a good one.
    pub fn get(&self, path: &str) -> Option<String> {
        let url = format!("http://{}/{path}", self.http);
        let config = ureq::Agent::config_builder().timeout_global(Some(Duration::from_secs(5))).build();
        ureq::Agent::from(config).get(&url).call().ok()?.body_mut().read_to_string().ok()
    }

    /// A line of the metrics.
    pub fn metric(&self, name: &str) -> u64 {
        let text = self.get("metrics").expect("the metrics are there");
        let line = text.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')));
        let value = line.and_then(|line| line.rsplit(' ').next()).unwrap_or_else(|| panic!("{name} is not in\n{text}"));
        value.parse::<f64>().unwrap() as u64
    }

    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("it runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// SIGTERM; it must end well.
    pub fn terminate(&mut self) {
        let mut child = self.child.take().expect("it runs");
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        let status = child.wait().unwrap();
        assert!(status.success(), "{status} on SIGTERM:\n{}", self.log_text());
    }

    /// Publishes at `QoS` 1; answers when all are acknowledged.
    pub async fn publish(&self, messages: &[(&str, &[u8])]) {
        publish(self.mqtt, messages).await;
    }
}

/// Publishes at `QoS` 1 to a broker that asks for nothing; answers when all are acknowledged.
pub async fn publish(broker: SocketAddr, messages: &[(&str, &[u8])]) {
    let mut options = MqttOptions::new("device", broker.ip().to_string(), broker.port());
    options.set_max_packet_size(4 << 20, 4 << 20);
    let (client, mut events) = AsyncClient::new(options, messages.len() + 8);
    for (topic, payload) in messages {
        client.try_publish(*topic, QoS::AtLeastOnce, false, payload.to_vec()).unwrap();
    }
    let mut missing = messages.len();
    let acknowledged = async {
        while missing > 0 {
            if let Event::Incoming(Packet::PubAck(_)) = events.poll().await.unwrap() {
                missing -= 1;
            }
        }
    };
    tokio::time::timeout(DEADLINE, acknowledged).await.expect("every message is acknowledged");
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            child.kill().ok();
            child.wait().ok();
        }
        if std::thread::panicking() {
            eprintln!("{}", self.log_text());
        }
    }
}
