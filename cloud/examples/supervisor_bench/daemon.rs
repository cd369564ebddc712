//! The daemon as a process, and the people who use it.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use gemba_cloud::{clock, history::pack_before, serve::history, store::Store};
use jiff::SignedDuration;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

const READY_MAX: Duration = Duration::from_mins(1);
const PASSWORD: &str = "a password for benches";
/// The kernel's clock ticks a second in /proc: 100 on every Linux that Rust runs on.
const TICKS_PER_S: f64 = 100.0;

pub(crate) struct Daemon {
    child: Child,
    binary: PathBuf,
    directory: tempfile::TempDir,
    pub(crate) http: SocketAddr,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have been stopped in order.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

impl Daemon {
    /// The binary beside this example, on an empty data directory.
    pub(crate) async fn start() -> anyhow::Result<Self> {
        let example = std::env::current_exe()?;
        let binary = example.parent().and_then(|examples| examples.parent()).context("a target directory")?;
        let binary = binary.join("gemba-cloud");
        let directory = tempfile::Builder::new().prefix("gemba-bench-").tempdir_in("/var/tmp")?;
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o711))?;
        let (http, mqtt) = (free_address()?, free_address()?);
        let text = format!(
            "data_dir = \"{}/cloud\"\n[http]\nlisten = \"{http}\"\nrequests_per_s = 100000\n[mqtt]\nlisten = \"{mqtt}\"\n",
            directory.path().display()
        );
        fs::write(directory.path().join("cloud.toml"), text)?;
        let log = fs::File::create(directory.path().join("cloud.log"))?;
        let child = Command::new(&binary)
            .args(["serve", "--config"])
            .arg(directory.path().join("cloud.toml"))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .with_context(|| format!("{}: build it first (cargo build --release --bins)", binary.display()))?;
        let daemon = Self { child, binary, directory, http };
        let began = std::time::Instant::now();
        while ureq::get(format!("http://{http}/readyz")).call().is_err() {
            ensure!(began.elapsed() < READY_MAX, "the daemon does not become ready:\n{}", daemon.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(daemon)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("cloud.log")).unwrap_or_default()
    }

    /// What a subcommand prints last.
    fn command(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let config = self.directory.path().join("cloud.toml");
        let output = Command::new(&self.binary).args(arguments).arg("--config").arg(config).output()?;
        ensure!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout)?;
        Ok(text.lines().last().unwrap_or_default().to_owned())
    }

    pub(crate) fn enrolment_token(&self, index: usize) -> anyhow::Result<String> {
        self.command(&["gateway", "add", &format!("hall-{index}")])
    }

    /// A token of a supervisor.
    pub(crate) fn sign_in(&self) -> anyhow::Result<String> {
        let once = self.command(&["user", "add", "supervisor", "--role", "supervisor"])?;
        let first = self.log_in(&once)?;
        let change = json!({"old": once, "new": PASSWORD});
        ureq::post(format!("http://{}/api/v1/password", self.http))
            .header("authorization", format!("Bearer {first}"))
            .send_json(change)?;
        self.log_in(PASSWORD)
    }

    fn log_in(&self, password: &str) -> anyhow::Result<String> {
        let login = json!({"name": "supervisor", "password": password});
        let mut answer = ureq::post(format!("http://{}/api/v1/login", self.http)).send_json(login)?;
        let answer: Value = answer.body_mut().read_json()?;
        Ok(answer["token"].as_str().context("a token")?.to_owned())
    }

    /// The answer to a GET.
    pub(crate) fn get(&self, path: &str, token: &str) -> anyhow::Result<Value> {
        let mut answer = ureq::get(format!("http://{}{path}", self.http))
            .header("authorization", format!("Bearer {token}"))
            .call()
            .with_context(|| path.to_owned())?;
        Ok(answer.body_mut().with_config().limit(64 << 20).read_json()?)
    }

    /// What was written is packed, on the disk, and has statistics, as it has in a plant that fills in days.
    pub(crate) async fn settle(&self) -> anyhow::Result<()> {
        let cluster = self.directory.path().join("cloud/postgres");
        let pid = fs::read_to_string(cluster.join("data/postmaster.pid"))?;
        let socket = pid.lines().nth(4).context("the cluster's socket")?;
        let mut config = tokio_postgres::Config::new();
        config.host_path(socket).user("gemba").dbname("gemba").password(fs::read_to_string(cluster.join("password"))?);
        let (store, cancel) = (Store::new(config.clone(), 2)?, CancellationToken::new());
        let now = clock::now();
        // Nothing comes for what is over.
        history::pack(&store, now, 0, &cancel).await?;
        history::pack_windows(&store, pack_before(now, SignedDuration::from_mins(20)), 0, &cancel).await?;
        store.close();
        let (client, connection) = config.connect(tokio_postgres::NoTls).await?;
        let connection = tokio::spawn(connection);
        client.batch_execute("VACUUM ANALYZE").await?;
        client.batch_execute("CHECKPOINT").await?;
        drop(client);
        Ok(connection.await??)
    }

    pub(crate) fn cpu_s(&self) -> anyhow::Result<f64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |place: usize| fields.get(place).and_then(|text| text.parse::<f64>().ok()).context("ticks");
        Ok((ticks(11)? + ticks(12)?) / TICKS_PER_S)
    }

    pub(crate) fn resident_mib(&self, field: &str) -> anyhow::Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find(|line| line.starts_with(field)).context("a field")?;
        Ok(line.split_whitespace().nth(1).context("kilobytes")?.parse::<f64>()? / 1_024.0)
    }

    pub(crate) fn stop(mut self) -> anyhow::Result<()> {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id())?);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM)?;
        let status = self.child.wait()?;
        ensure!(status.success(), "the daemon ended with {status}:\n{}", self.log());
        Ok(())
    }
}
