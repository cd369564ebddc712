//! The real binary: enrolment over HTTP, delivery over TLS through the gate, revocation, stop and start.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use ed25519_dalek::SigningKey;
use gemba_mqtt::tls::{Pem, Trust, client_config};
use gemba_shared::{
    enrolment::{Enrolled, PATH, Request, Response, Token},
    frame,
    message::{Downlink, Receipt, Uplink},
    topic::{self, Channel},
};
use rumqttc::{AsyncClient, ConnectionError, Event, EventLoop, MqttOptions, Packet, QoS, TlsConfiguration, Transport};
use tokio::time::timeout;

use crate::plant::{Gateway, ago, catalog, summaries, summary};

const DEADLINE: Duration = Duration::from_secs(30);

pub(crate) struct Daemon {
    child: Child,
    pub(crate) http: SocketAddr,
    pub(crate) mqtt: SocketAddr,
    /// Its lines.
    log: Arc<Mutex<Vec<String>>>,
}

impl Drop for Daemon {
    /// A test that failed leaves nothing behind.
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Daemon {
    pub(crate) fn start(config: &Path) -> Self {
        Self::start_with(config, &[])
    }

    /// With these in its environment.
    pub(crate) fn start_with(config: &Path, environment: &[(&str, &str)]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_gemba-cloud"))
            .args(["serve", "--log", "json", "--config"])
            .arg(config)
            .envs(environment.iter().copied())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts");
        let mut lines = BufReader::new(child.stderr.take().expect("its log")).lines();
        let mut seen = String::new();
        let ready = loop {
            let line = lines.next().unwrap_or_else(|| panic!("it ended:\n{seen}")).expect("text");
            seen += &line;
            seen += "\n";
            let entry: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
            if entry["fields"]["message"] == "ready" {
                break entry["fields"].clone();
            }
        };
        // Somebody must read on, or the daemon would wait for its log.
        let log = Arc::new(Mutex::new(seen.lines().map(str::to_owned).collect::<Vec<_>>()));
        let kept = Arc::clone(&log);
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| kept.lock().unwrap().push(line)));
        let address = |text: &serde_json::Value| {
            text.as_str().expect("an address").trim_matches(['[', ']']).parse().expect("an address")
        };
        Self { http: address(&ready["http"]), mqtt: address(&ready["mqtt"]), child, log }
    }

    /// What it said so far, a line each.
    pub(crate) fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    pub(crate) fn kill(mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it ends");
    }

    pub(crate) fn terminate(&self) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).expect("a pid"));
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("it runs");
    }

    /// Whether it ended, and well.
    pub(crate) fn ended(&mut self) -> Option<bool> {
        self.child.try_wait().expect("it is ours").map(|status| status.success())
    }

    pub(crate) fn stop(mut self) {
        self.terminate();
        assert!(self.child.wait().expect("it ends").success());
    }

    pub(crate) fn enrol(&self, token: &Token, key: &SigningKey) -> Result<Enrolled, u16> {
        let request = Request::new(&token.secret, key);
        match ureq::post(format!("http://{}{PATH}", self.http)).send_json(&request) {
            Ok(mut response) => {
                let response: Response = response.body_mut().read_json().expect("an answer");
                Ok(response.check(token, &key.verifying_key()).expect("the cloud's answer"))
            }
            Err(ureq::Error::StatusCode(status)) => Err(status),
            Err(error) => panic!("{error}"),
        }
    }
}

pub(crate) fn cli(config: &Path, arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_gemba-cloud"))
        .args(arguments)
        .arg("--config")
        .arg(config)
        .output()
        .expect("it runs");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("text");
    text.trim_end().lines().last().unwrap_or_default().to_owned()
}

pub(crate) fn connect(enrolled: &Enrolled, password: &str) -> (AsyncClient, EventLoop) {
    let (host, port) = enrolled.mqtt.url.strip_prefix("mqtts://").and_then(|url| url.split_once(':')).expect("a URL");
    let mut options = MqttOptions::new("edge", host, port.parse().expect("a port"));
    let authority = Pem::text(enrolled.mqtt.ca_pem.as_deref().expect("an authority"), "enrolment");
    let tls = client_config(&Trust::Only(authority), None).expect("TLS");
    options
        .set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(tls)))
        .set_credentials(&enrolled.mqtt.username, password)
        .set_max_packet_size(1 << 20, 1 << 20);
    AsyncClient::new(options, 16)
}

async fn receipt(events: &mut EventLoop, gateway: &Gateway, enrolled: &Enrolled) -> Receipt {
    let wait = async {
        loop {
            if let Event::Incoming(Packet::Publish(publish)) = events.poll().await.expect("a connection") {
                let answer = frame::open(&publish.payload, gateway.wire_id(), &enrolled.cloud_key).expect("a frame");
                if let Downlink::Receipt(receipt) = answer {
                    return receipt;
                }
            }
        }
    };
    timeout(DEADLINE, wait).await.expect("a receipt in time")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_is_enrolled_delivers_and_is_cut_off() {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o711)).unwrap();
    let config = directory.path().join("cloud.toml");
    fs::write(&config, "data_dir = \"data\"\n[http]\nlisten = \"127.0.0.1:0\"\n[mqtt]\nlisten = \"127.0.0.1:0\"\n")
        .unwrap();
    let daemon = Daemon::start(&config);
    let url = format!("mqtts://{}", daemon.mqtt);
    let token: Token = cli(&config, &["gateway", "add", "hall", "--mqtt-url", &url]).parse().unwrap();
    let key = SigningKey::from_bytes(&[3; 32]);
    let enrolled = daemon.enrol(&token, &key).unwrap();
    assert_eq!(daemon.enrol(&token, &key).unwrap_err(), 403);
    let gateway = Gateway { id: uuid::Uuid::from_bytes(*enrolled.gateway.as_bytes()), key };

    let (_, mut refused) = connect(&enrolled, "wrong");
    let error = timeout(DEADLINE, refused.poll()).await.expect("an answer").expect_err("a wrong password");
    assert!(matches!(error, ConnectionError::ConnectionRefused(_)), "{error}");

    let (client, mut events) = connect(&enrolled, &enrolled.mqtt.password);
    client.subscribe(topic::down(gateway.wire_id()), QoS::AtLeastOnce).await.unwrap();
    let batch = summaries(1, vec![catalog("m", 1, &["a"]), summary("m", ago(10), &[1.0])]);
    let message = gateway.publish(&Uplink::Batch(batch.clone()), Channel::Lane(batch.seq.lane));
    let up = topic::up(gateway.wire_id(), Channel::Lane(batch.seq.lane));
    // The subscription stands before the receipt is sent.
    let subscribed =
        async { while !matches!(events.poll().await.expect("a connection"), Event::Incoming(Packet::SubAck(_))) {} };
    timeout(DEADLINE, subscribed).await.expect("a subscription");
    client.publish(up, QoS::AtLeastOnce, false, message.payload.to_vec()).await.unwrap();
    assert_eq!(receipt(&mut events, &gateway, &enrolled).await.through, 2);

    assert_eq!(cli(&config, &["gateway", "revoke", "hall"]), "hall is revoked.");
    let cut = async { while events.poll().await.is_ok() {} };
    timeout(DEADLINE, cut).await.expect("the connection is cut");
    assert!(cli(&config, &["gateway", "list"]).contains("revoked"));
    daemon.stop();
    // Nobody uses the cluster any more: it was stopped.
    assert!(!directory.path().join("data/postgres/data/postmaster.pid").exists());
}

#[test]
fn a_configuration_that_cannot_be_used_ends_with_78() {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("cloud.toml");
    fs::write(&config, "[http]\nlisten = \"127.0.0.1:0\"\nport = 1\n").unwrap();
    for command in ["serve", "check", "migrate"] {
        let output =
            Command::new(env!("CARGO_BIN_EXE_gemba-cloud")).args([command, "--config"]).arg(&config).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(78), "{text}");
        assert!(text.contains("cloud.toml:3") && text.contains("port"), "{text}");
    }
}
