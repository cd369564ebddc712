//! The whole path with the real parts: two daemons, PostgreSQL, recordings over MQTT, a link that is cut and
//! processes that are killed; then every value sent is compared with every row stored.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    net::{SocketAddr, TcpListener},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use crate::{
    ledger::{Cell, Figures, differences, expected},
    proxy::Proxy,
};

const INTERVAL_US: i64 = 10_000_000;
/// How long anything may take that must happen.
const DEADLINE: Duration = Duration::from_mins(2);

fn edge_binary() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_gemba-edge"))
}

/// `gemba-cloud` of the same build: cargo builds only this package's binaries for its tests.
fn cloud_binary() -> PathBuf {
    let binary = edge_binary().with_file_name("gemba-cloud");
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--quiet", "--locked", "--package", "gemba-cloud", "--bin", "gemba-cloud"]);
    if binary.parent().is_some_and(|directory| directory.ends_with("release")) {
        build.arg("--release");
    }
    assert!(build.status().unwrap().success(), "gemba-cloud builds");
    binary
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// A process that dies with the test.
struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    fn start(binary: &Path, args: &[&str], log: PathBuf) -> Self {
        let file = fs::File::options().create(true).append(true).open(&log).unwrap();
        let child = Command::new(binary)
            .args(args)
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", binary.display()));
        Self { child, log }
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn terminate(mut self) {
        let pid = nix::unistd::Pid::from_raw(self.child.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status} on SIGTERM\n{}", self.tail());
    }

    async fn succeeded(mut self) {
        wait("a process to end", || self.child.try_wait().unwrap().is_some()).await;
        assert!(self.child.wait().unwrap().success(), "{}", self.tail());
    }

    fn tail(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        format!("{}:\n{}", self.log.display(), lines[lines.len().saturating_sub(40)..].join("\n"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
        if std::thread::panicking() {
            eprintln!("{}", self.tail());
        }
    }
}

/// Waits until something is so.
async fn wait(what: &str, mut so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !so() {
        assert!(start.elapsed() < DEADLINE, "waited {DEADLINE:?} for {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn get(url: &str) -> Option<String> {
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
fn metric(text: &str, name: &str) -> f64 {
    text.lines()
        .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{'])))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}

/// A cloud, a link that can be cut, and an enrolled gateway, in a directory of their own.
struct Plant {
    mqtt: SocketAddr,
    edge_http: SocketAddr,
    link: Proxy,
    cloud: Process,
    edge: Process,
    /// Last, so that a process that ends can still show its log.
    directory: tempfile::TempDir,
}

impl Plant {
    async fn start() -> Self {
        let directory = tempfile::Builder::new().prefix("gemba-").tempdir_in("/var/tmp").unwrap();
        // PostgreSQL refuses to run as root, and then runs as a user who must be able to come here.
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o711)).unwrap();
        let [http, uplink, mqtt, edge_http] = [(); 4].map(|()| free_address());
        let link = Proxy::start(uplink).await;
        let path = directory.path().display();
        fs::write(
            directory.path().join("cloud.toml"),
            format!("data_dir = \"{path}/cloud\"\n[http]\nlisten = \"{http}\"\n[mqtt]\nlisten = \"{uplink}\"\n"),
        )
        .unwrap();
        let models = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("models");
        fs::write(
            directory.path().join("edge.toml"),
            format!(
                "[gateway]\ndata_dir = \"{path}/edge\"\n[mqtt]\nlisten = \"{mqtt}\"\nanonymous = true\n\
                 [http]\nlisten = \"{edge_http}\"\n[models]\ndir = \"{}\"\n",
                models.display()
            ),
        )
        .unwrap();
        let cloud = Self::start_cloud(directory.path());
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
        let edge = Self::start_edge(directory.path());
        let plant = Self { mqtt, edge_http, link, cloud, edge, directory };
        plant.edge_ready().await;
        plant
    }

    fn command(directory: &Path, binary: &Path, config: &str, args: &[&str]) -> String {
        let output = Command::new(binary).args(args).arg("--config").arg(directory.join(config)).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "{args:?}: {}{}", text(&output.stdout), text(&output.stderr));
        text(&output.stdout)
    }

    fn start_cloud(directory: &Path) -> Process {
        let config = directory.join("cloud.toml");
        Process::start(&cloud_binary(), &["serve", "--config", config.to_str().unwrap()], directory.join("cloud.log"))
    }

    fn start_edge(directory: &Path) -> Process {
        let config = directory.join("edge.toml");
        Process::start(&edge_binary(), &["run", "--config", config.to_str().unwrap()], directory.join("edge.log"))
    }

    async fn edge_ready(&self) {
        let url = format!("http://{}/readyz", self.edge_http);
        wait("the edge to be ready", || get(&url).is_some()).await;
    }

    async fn restart_edge(&mut self) {
        self.edge.kill();
        self.edge = Self::start_edge(self.directory.path());
        self.edge_ready().await;
    }

    fn restart_cloud(&mut self) {
        self.cloud.kill();
        self.cloud = Self::start_cloud(self.directory.path());
    }

    /// Replays a recording as a machine, 60 times as fast as it was recorded; its ledger.
    fn replay(&self, recording: &Path, machine: &str, more: &[&str]) -> (Process, PathBuf) {
        let ledger = self.directory.path().join(format!("{machine}.ledger"));
        let url = format!("mqtt://{}", self.mqtt);
        let args =
            ["replay", recording.to_str().unwrap(), "--url", &url, "--machine", machine, "--speed", "60", "--ledger"];
        let log = self.directory.path().join(format!("{machine}.log"));
        (Process::start(&edge_binary(), &[&args[..], &[ledger.to_str().unwrap()], more].concat(), log), ledger)
    }

    /// A connection to the cloud's private PostgreSQL. It outlives the cloud's process, as PostgreSQL does.
    async fn database(&self) -> tokio_postgres::Client {
        let cluster = self.directory.path().join("cloud/postgres");
        let password = fs::read_to_string(cluster.join("password")).unwrap();
        let postmaster = fs::read_to_string(cluster.join("data/postmaster.pid")).unwrap();
        let sockets = postmaster.lines().nth(4).expect("postmaster.pid names the socket directory in line 5");
        let mut config = tokio_postgres::Config::new();
        config.host_path(sockets).user("gemba").password(password.trim()).dbname("gemba");
        let (client, connection) = config.connect(tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }
}

async fn count(database: &tokio_postgres::Client, sql: &str) -> i64 {
    database.query_one(sql, &[]).await.unwrap().get(0)
}

async fn wait_for_rows(database: &tokio_postgres::Client, rows: i64) {
    let start = Instant::now();
    while count(database, "SELECT count(*) FROM summaries").await < rows {
        assert!(start.elapsed() < DEADLINE, "waited {DEADLINE:?} for {rows} summaries");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn stored(database: &tokio_postgres::Client) -> BTreeMap<Cell, Figures> {
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

/// Two hours' worth of a made-up machine in ten minutes: four sensors, ten rows a second, one of them often missing.
fn made_up_recording(path: &Path) {
    let mut text = String::from("time,flow,pressure,current,temperature\n");
    for row in 0..6_000 {
        let t = f64::from(row) * 0.1;
        let (flow, pressure) = (60.0 + (t / 7.0).sin(), 4.0 + (t / 3.0).cos() / 8.0);
        let current = if row % 3 == 0 { String::new() } else { format!("{:.3}", 11.0 + (t / 5.0).sin() / 4.0) };
        let seconds = 1_700_000_000.0 + t;
        writeln!(text, "{seconds:.1},{flow:.6},{pressure:.6},{current},{:.2}", 40.0 + t / 600.0).unwrap();
    }
    fs::write(path, text).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_value_sent_is_stored_once_through_cuts_and_kills() {
    let mut plant = Plant::start().await;
    let database = plant.database().await;
    let made_up = plant.directory.path().join("made-up.csv");
    made_up_recording(&made_up);
    let labels: &[&str] = &["--ignore-columns", "anomaly,changepoint"];
    let mut recordings = vec![(made_up, "made-up", &[][..])];
    let skab = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/skab/valve1");
    if skab.exists() {
        recordings.extend([(skab.join("0.csv"), "valve-0", labels), (skab.join("5.csv"), "valve-5", labels)]);
    } else {
        println!("skipped: the recordings in {} (absent)", skab.display());
    }
    let replays: Vec<_> = recordings.iter().map(|(path, machine, more)| plant.replay(path, machine, more)).collect();

    wait_for_rows(&database, 10).await;
    plant.link.cut();
    let before = count(&database, "SELECT count(*) FROM summaries").await;
    let metrics = format!("http://{}/metrics", plant.edge_http);
    wait("a backlog on the gateway", || {
        metric(&get(&metrics).unwrap_or_default(), "gemba_edge_backlog_records") > 20.0
    })
    .await;
    assert!(count(&database, "SELECT count(*) FROM summaries").await <= before + 10, "the link was cut");
    plant.link.mend();
    wait_for_rows(&database, before + 20).await;
    plant.restart_edge().await;
    let before = count(&database, "SELECT count(*) FROM summaries").await;
    wait_for_rows(&database, before + 10).await;
    plant.restart_cloud();

    let mut ledgers = Vec::new();
    for (process, ledger) in replays {
        process.succeeded().await;
        ledgers.push(ledger);
    }
    let ledgers: Vec<&Path> = ledgers.iter().map(PathBuf::as_path).collect();
    let sent = expected(&ledgers, INTERVAL_US);
    let start = Instant::now();
    loop {
        let different = differences(&sent, &stored(&database).await);
        if different.is_empty() {
            break;
        }
        assert!(start.elapsed() < DEADLINE, "after {DEADLINE:?} still:\n{different}\n{}", plant.edge.tail());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    wait("an empty outbox", || metric(&get(&metrics).unwrap_or_default(), "gemba_edge_backlog_records") == 0.0).await;
    assert_eq!(differences(&sent, &stored(&database).await), "", "nothing comes after");
    assert_eq!(count(&database, "SELECT count(*) FROM gaps").await, 0);
    assert_eq!(count(&database, "SELECT count(*) FROM refusals").await, 0);
    let values: i32 = sent.values().map(|figures| figures.count).sum();
    println!("{values} values sent, {} sensor summaries stored, none missing, none double", sent.len());
    if skab.exists() {
        assert!(
            count(&database, "SELECT count(*) FROM alarms WHERE condition = 'anomaly'").await >= 2,
            "each valve raised an alarm"
        );
    }
    let Plant { edge, cloud, .. } = plant;
    edge.terminate();
    cloud.terminate();
}
