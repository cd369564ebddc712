//! The two real daemons and PostgreSQL in a directory of their own, and what the database says.

use std::{
    collections::BTreeMap,
    env,
    fmt::Write as _,
    fs,
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    time::{Duration, Instant},
};

use gemba_edge::identity;

use crate::{
    gateway::free_address,
    ledger::{Cell, Figures, differences, expected},
    mosquitto::Broker,
    powercut::mount::Mounted,
    process::Process,
    proxy::Proxy,
};

pub const INTERVAL_US: i64 = 10_000_000;
/// A file in a plant's directory for libfaketime, and that library (Debian's package faketime).
pub const FAKETIME: &str = "faketime";
pub const FAKETIME_LIBRARY: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";
/// How long anything may take that must happen.
pub const DEADLINE: Duration = Duration::from_mins(2);

pub fn edge_binary() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_gemba-edge"))
}

/// `gemba-cloud` of the same build: cargo builds only this package's binaries for its tests.
pub fn cloud_binary() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(build_cloud).clone()
}

fn build_cloud() -> PathBuf {
    let binary = edge_binary().with_file_name("gemba-cloud");
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--quiet", "--locked", "--package", "gemba-cloud", "--bin", "gemba-cloud"]);
    // What cargo tells a test of its package would make build scripts (ring's) run anew, here and at the next test.
    let of_package = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_CRATE_", "CARGO_BIN_", "CARGO_PRIMARY_"];
    for (name, _) in env::vars().filter(|(name, _)| of_package.iter().any(|prefix| name.starts_with(prefix))) {
        build.env_remove(name);
    }
    if binary.parent().is_some_and(|directory| directory.ends_with("release")) {
        build.arg("--release");
    }
    assert!(build.status().unwrap().success(), "gemba-cloud builds");
    binary
}

/// Waits until something is so.
pub async fn wait(what: &str, mut so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !so() {
        assert!(start.elapsed() < DEADLINE, "waited {DEADLINE:?} for {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

pub fn get(url: &str) -> Option<String> {
    ureq::get(url)
        .config()
        .timeout_global(Some(Duration::from_secs(5)))
        .build()
        .call()
        .ok()?
        .body_mut()
        .read_to_string()
        .ok()
}

/// The sum of a metric over its labels.
pub fn metric(text: &str, name: &str) -> f64 {
    text.lines()
        .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{'])))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}

/// Brokers in place of the embedded ones.
#[derive(Default, Clone, Copy)]
pub struct Brokers<'a> {
    pub devices: Option<&'a Broker>,
    pub gateways: Option<&'a Broker>,
}

/// What is special about a plant.
#[derive(Default)]
pub struct Setting<'a> {
    pub brokers: Brokers<'a>,
    /// Sections added to the edge's configuration.
    pub edge: &'a str,
    /// The plant's directory, and the disk that is mounted in it for the edge's data.
    pub disk: Option<(tempfile::TempDir, Mounted)>,
}

/// A private PostgreSQL outlives the cloud that is killed, and so a test that fails: this ends it.
pub struct Reaper(PathBuf);

impl Drop for Reaper {
    fn drop(&mut self) {
        kill_postmaster(&self.0);
    }
}

/// SIGKILL to the private PostgreSQL of this cluster, where it runs.
fn kill_postmaster(cluster: &Path) {
    let text = fs::read_to_string(cluster.join("data/postmaster.pid")).unwrap_or_default();
    let Some(pid) = text.lines().next().and_then(|line| line.trim().parse().ok()) else { return };
    let command = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    if command.contains("postgres") {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).ok();
    }
}

/// A cloud, a link that can be cut, and an enrolled gateway, in a directory of their own.
pub struct Plant {
    /// Where devices publish: as arguments of `gemba-edge replay`, and the embedded broker's address.
    pub devices: Vec<String>,
    pub mqtt: SocketAddr,
    pub edge_http: SocketAddr,
    pub link: Proxy,
    pub cloud: Process,
    pub edge: Process,
    /// Under the edge's data; it can only be unmounted when the edge has ended.
    pub disk: Option<Mounted>,
    pub reaper: Reaper,
    /// Last, so that a process that ends can still show its log.
    pub directory: tempfile::TempDir,
}

impl Plant {
    /// With the embedded brokers.
    pub async fn start() -> Self {
        Self::start_with(Brokers::default()).await
    }

    pub async fn start_with(brokers: Brokers<'_>) -> Self {
        Self::start_as(Setting { brokers, ..Setting::default() }).await
    }

    /// A directory that PostgreSQL can use: it refuses to run as root, and then runs as a user who must be able to come here.
    pub fn new_directory() -> tempfile::TempDir {
        let directory = tempfile::Builder::new().prefix("gemba-").tempdir_in("/var/tmp").unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o711)).unwrap();
        directory
    }

    pub async fn start_as(setting: Setting<'_>) -> Self {
        let brokers = setting.brokers;
        let (directory, disk) = match setting.disk {
            Some((directory, disk)) => (directory, Some(disk)),
            None => (Self::new_directory(), None),
        };
        let [http, uplink, mqtt, edge_http] = [(); 4].map(|()| free_address());
        let path = directory.path().display();
        let Brokers { devices, gateways } = brokers;
        let (edge_mqtt, devices) = devices.map_or_else(
            || (format!("listen = \"{mqtt}\"\nanonymous = true\n"), vec!["--url".into(), format!("mqtt://{mqtt}")]),
            |broker| (broker.client("gemba-edge"), broker.publisher()),
        );
        let (cloud_mqtt, uplink) = gateways.map_or_else(
            || (format!("listen = \"{uplink}\"\n"), uplink),
            |broker| (broker.client("gemba-cloud"), broker.address),
        );
        let link = Proxy::start(uplink).await;
        fs::write(
            directory.path().join("cloud.toml"),
            format!("data_dir = \"{path}/cloud\"\n[http]\nlisten = \"{http}\"\n[mqtt]\n{cloud_mqtt}"),
        )
        .unwrap();
        let models = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("models");
        let config = format!(
            "[gateway]\ndata_dir = \"{path}/edge\"\n[mqtt]\n{edge_mqtt}[http]\nlisten = \"{edge_http}\"\n\
             [models]\ndir = \"{}\"\n{}",
            models.display(),
            setting.edge
        );
        let edge_toml = directory.path().join("edge.toml");
        fs::write(&edge_toml, &config).unwrap();
        let cloud = Self::start_cloud(directory.path(), "cloud");
        let ready = format!("http://{http}/readyz");
        wait("the cloud to be ready", || get(&ready).is_some()).await;
        let url = format!("mqtts://{}", link.address);
        let token = Self::command(
            directory.path(),
            &cloud_binary(),
            "cloud.toml",
            &["gateway", "add", "hall-1", "--mqtt-url", &url],
        );
        let token = token.lines().last().unwrap().to_owned();
        Self::command(directory.path(), &edge_binary(), "edge.toml", &["enroll", "--token", &token]);
        if let Some(broker) = gateways {
            // Only now there is an id, which is the user name that the broker's access rules go by.
            let enrolled = identity::load(&directory.path().join("edge")).unwrap().unwrap();
            let id = enrolled.gateway.to_string();
            broker.add_user(&id);
            fs::write(&edge_toml, format!("{config}[cloud]\n{}", broker.login(&id))).unwrap();
        }
        let edge = Self::start_edge(directory.path());
        let reaper = Reaper(directory.path().join("cloud/postgres"));
        let plant = Self { devices, mqtt, edge_http, link, cloud, edge, disk, reaper, directory };
        plant.edge_ready().await;
        plant
    }

    fn command(directory: &Path, binary: &Path, config: &str, args: &[&str]) -> String {
        let output = Command::new(binary).args(args).arg("--config").arg(directory.join(config)).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "{args:?}: {}{}", text(&output.stdout), text(&output.stderr));
        text(&output.stdout)
    }

    fn start_cloud(directory: &Path, name: &str) -> Process {
        let config = directory.join(format!("{name}.toml"));
        let log = directory.join(format!("{name}.log"));
        Process::start(&cloud_binary(), &["serve", "--config", config.to_str().unwrap()], log)
    }

    /// With a wall clock that says what the file [`FAKETIME`] in the directory says, where there is one.
    fn start_edge(directory: &Path) -> Process {
        let config = directory.join("edge.toml");
        let clock = directory.join(FAKETIME);
        let faked = [
            ("LD_PRELOAD", FAKETIME_LIBRARY),
            ("FAKETIME_TIMESTAMP_FILE", clock.to_str().unwrap()),
            ("FAKETIME_NO_CACHE", "1"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ];
        let env: &[_] = if clock.exists() { &faked } else { &[] };
        let args = ["run", "--config", config.to_str().unwrap()];
        Process::start_in(&edge_binary(), &args, env, directory.join("edge.log"))
    }

    pub async fn edge_ready(&self) {
        let url = format!("http://{}/readyz", self.edge_http);
        wait("the edge to be ready", || get(&url).is_some()).await;
    }

    pub async fn restart_edge(&mut self) {
        self.edge.kill();
        self.revive_edge();
        self.edge_ready().await;
    }

    /// Starts the edge where it does not run.
    pub fn revive_edge(&mut self) {
        self.edge = Self::start_edge(self.directory.path());
    }

    /// SIGKILL; the cloud starts it again.
    pub fn kill_postgres(&self) {
        kill_postmaster(&self.reaper.0);
    }

    /// Ends both daemons as a service manager does.
    pub fn stop(self) {
        let Self { edge, cloud, .. } = self;
        edge.terminate();
        cloud.terminate();
    }

    pub fn restart_cloud(&mut self) {
        self.cloud.kill();
        self.cloud = Self::start_cloud(self.directory.path(), "cloud");
    }

    /// A second cloud with the same key, at the same database and the same broker; its metrics.
    pub async fn replica(&self, broker: &Broker) -> (Process, String) {
        let data = self.directory.path().join("replica");
        fs::create_dir_all(data.join("keys")).unwrap();
        let key = Path::new("keys/cloud.pem");
        fs::copy(self.directory.path().join("cloud").join(key), data.join(key)).unwrap();
        let (sockets, password) = self.postgres();
        let http = free_address();
        let config = format!(
            "data_dir = \"{}\"\ndatabase_url = \"postgresql://gemba:{password}@/gemba?host={sockets}\"\n\
             [http]\nlisten = \"{http}\"\n[mqtt]\n{}",
            data.display(),
            broker.client("gemba-cloud")
        );
        fs::write(self.directory.path().join("replica.toml"), config).unwrap();
        let replica = Self::start_cloud(self.directory.path(), "replica");
        let ready = format!("http://{http}/readyz");
        wait("the second cloud to be ready", || get(&ready).is_some()).await;
        (replica, format!("http://{http}/metrics"))
    }

    /// Replays a recording as a machine, 60 times as fast as it was recorded; its ledger.
    pub fn replay(&self, recording: &Path, machine: &str, more: &[&str]) -> (Process, PathBuf) {
        let ledger = self.directory.path().join(format!("{machine}.ledger"));
        let mut args = vec!["replay", recording.to_str().unwrap(), "--machine", machine, "--speed", "60"];
        args.extend(self.devices.iter().map(String::as_str));
        args.extend(["--ledger", ledger.to_str().unwrap()]);
        args.extend(more);
        let log = self.directory.path().join(format!("{machine}.log"));
        (Process::start(&edge_binary(), &args, log), ledger)
    }

    /// A connection to the cloud's private PostgreSQL. It outlives the cloud's process, as PostgreSQL does.
    pub async fn database(&self) -> tokio_postgres::Client {
        self.try_database().await.expect("PostgreSQL runs")
    }

    /// `None` while it is away.
    pub async fn try_database(&self) -> Option<tokio_postgres::Client> {
        let (sockets, password) = self.postgres();
        let mut config = tokio_postgres::Config::new();
        config.host_path(sockets).user("gemba").password(password).dbname("gemba");
        let (client, connection) = config.connect(tokio_postgres::NoTls).await.ok()?;
        tokio::spawn(connection);
        Some(client)
    }

    /// Where the private PostgreSQL's sockets are, and its password.
    pub fn postgres(&self) -> (String, String) {
        let cluster = self.directory.path().join("cloud/postgres");
        let password = fs::read_to_string(cluster.join("password")).unwrap();
        let postmaster = fs::read_to_string(cluster.join("data/postmaster.pid")).unwrap_or_default();
        // Line 5 names it; there is none while the server starts.
        let sockets = postmaster.lines().nth(4).unwrap_or_default();
        (sockets.to_owned(), password.trim().to_owned())
    }

    pub fn edge_metric(&self, name: &str) -> f64 {
        metric(&get(&format!("http://{}/metrics", self.edge_http)).unwrap_or_default(), name)
    }

    /// Waits until the database has every value of these ledgers once, and the gateway holds nothing more.
    pub async fn all_stored_once(&self, database: &tokio_postgres::Client, ledgers: &[&Path]) {
        let sent = expected(ledgers, INTERVAL_US);
        let start = Instant::now();
        loop {
            let different = differences(&sent, &stored(database).await);
            if different.is_empty() {
                break;
            }
            assert!(start.elapsed() < DEADLINE, "after {DEADLINE:?} still:\n{different}\n{}", self.edge.tail());
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let metrics = format!("http://{}/metrics", self.edge_http);
        let empty = || get(&metrics).is_some_and(|text| metric(&text, "gemba_edge_backlog_records") == 0.0);
        wait("an empty outbox", empty).await;
        assert_eq!(differences(&sent, &stored(database).await), "", "nothing comes after");
        assert_eq!(count(database, "SELECT count(*) FROM gaps").await, 0);
        assert_eq!(count(database, "SELECT count(*) FROM refusals").await, 0);
        let values: i32 = sent.values().map(|figures| figures.count).sum();
        eprintln!("{values} values sent, {} sensor summaries stored, none missing, none double", sent.len());
    }
}

pub async fn count(database: &tokio_postgres::Client, sql: &str) -> i64 {
    database.query_one(sql, &[]).await.unwrap().get(0)
}

pub async fn wait_for_rows(database: &tokio_postgres::Client, rows: i64) {
    let start = Instant::now();
    while count(database, "SELECT count(*) FROM summaries").await < rows {
        assert!(start.elapsed() < DEADLINE, "waited {DEADLINE:?} for {rows} summaries");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

pub async fn stored(database: &tokio_postgres::Client) -> BTreeMap<Cell, Figures> {
    let sql =
        "SELECT m.name, s.name, (extract(epoch FROM r.start) * 1000000)::bigint, f.count, f.min, f.max, f.mean, f.sd
        FROM summaries r
        JOIN machines m ON m.key = r.machine_key
        CROSS JOIN LATERAL unnest(r.counts, r.mins, r.maxs, r.means, r.sds) WITH ORDINALITY
            AS f (count, min, max, mean, sd, place)
        JOIN sensors s ON s.machine_id = m.id AND s.position = f.place - 1
        WHERE f.count > 0";
    let rows = database.query(sql, &[]).await.unwrap();
    let cells = rows.iter().map(|row| {
        let cell = Cell { machine: row.get(0), sensor: row.get(1), start_us: row.get(2) };
        (cell, Figures { count: row.get(3), min: row.get(4), max: row.get(5), mean: row.get(6), sd: row.get(7) })
    });
    let cells: Vec<_> = cells.collect();
    let unique: BTreeMap<_, _> = cells.iter().cloned().collect();
    assert_eq!(unique.len(), cells.len(), "no cell is stored twice");
    unique
}

/// A made-up machine: four sensors, ten rows a second, one of them often missing.
pub fn made_up_recording(path: &Path, rows: u32) {
    let mut text = String::from("time,flow,pressure,current,temperature\n");
    for row in 0..rows {
        let t = f64::from(row) * 0.1;
        let (flow, pressure) = (60.0 + (t / 7.0).sin(), 4.0 + (t / 3.0).cos() / 8.0);
        let current = if row % 3 == 0 { String::new() } else { format!("{:.3}", 11.0 + (t / 5.0).sin() / 4.0) };
        let seconds = 1_700_000_000.0 + t;
        writeln!(text, "{seconds:.1},{flow:.6},{pressure:.6},{current},{:.2}", 40.0 + t / 600.0).unwrap();
    }
    fs::write(path, text).unwrap();
}
