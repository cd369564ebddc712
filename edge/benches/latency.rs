//! From a sensor's message to the alarm in the cloud's API: `cargo bench -p gemba-edge --bench latency`.
//!
//! Both daemons and their PostgreSQL run on this machine. Machines learn from a history that carries its own times, then all
//! of them publish healthy values, and one after another breaks. Each time counts from the first faulty
//! message to the first answer of `GET /api/v1/alarms` that has the alarm. What the configuration asks for is taken off: the five steps
//! that must be over the threshold before an anomaly opens (the first of them is the message's own, from its beginning),
//! and the lateness. At the end both daemons are started anew on what they have on the disk.
#![allow(clippy::print_stdout, clippy::unwrap_used)]
#![allow(clippy::disallowed_methods, reason = "it is a device with a clock of its own, which publishes at set times")]

use std::{
    fmt::Write as _,
    fs,
    net::{SocketAddr, TcpListener},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::mpsc,
    thread,
    time::{Duration, Instant, SystemTime},
};

use rumqttc::{Client, MqttOptions, QoS};
use serde_json::{Value, json};

const EDGE: &str = env!("CARGO_BIN_EXE_gemba-edge");
const MACHINES: usize = 100;
const SENSORS: usize = 4;
const STEP_US: u64 = 100_000;
const LATENESS_US: u64 = 100_000;
/// Steps over the threshold that open an anomaly.
const ON_STEPS: u64 = 5;
/// More than a calibration takes.
const HISTORY_STEPS: u64 = 330;
/// Into a step, so that a message's own time does not fall into the step before.
const PHASE_US: u64 = 10_000;
const POLL_EVERY: Duration = Duration::from_millis(2);
const DEADLINE: Duration = Duration::from_mins(1);
const PASSWORD: &str = "a password for benches";

struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts it and waits until it says that it is ready: how long that took.
    fn start(binary: &Path, command: &str, directory: &Path, name: &str, http: SocketAddr) -> (Self, Duration) {
        let log = directory.join(format!("{name}.log"));
        let file = fs::File::options().create(true).append(true).open(&log).unwrap();
        let start = Instant::now();
        let child = Command::new(binary)
            .args([command, "--config"])
            .arg(directory.join(format!("{name}.toml")))
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", binary.display()));
        let mut process = Self { child, log };
        while ureq::get(format!("http://{http}/readyz")).call().is_err() {
            assert!(start.elapsed() < DEADLINE && process.child.try_wait().unwrap().is_none(), "{}", process.text());
            thread::sleep(Duration::from_millis(1));
        }
        (process, start.elapsed())
    }

    fn text(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn terminate(mut self) {
        let pid = nix::unistd::Pid::from_raw(self.child.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        assert!(self.child.wait().unwrap().success(), "{}", self.text());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// `gemba-cloud` of the same build: cargo builds only this package's binaries for its benchmarks.
fn cloud_binary() -> PathBuf {
    let binary = Path::new(EDGE).with_file_name("gemba-cloud");
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--quiet", "--locked", "--package", "gemba-cloud", "--bin", "gemba-cloud"]);
    if binary.parent().is_some_and(|directory| directory.ends_with("release")) {
        build.arg("--release");
    }
    assert!(build.status().unwrap().success(), "gemba-cloud builds");
    binary
}

/// Runs a command to its end: the last line that it prints.
fn command(binary: &Path, args: &[&str], config: &Path) -> String {
    let output = Command::new(binary).args(args).arg("--config").arg(config).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{args:?}: {}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout).lines().last().unwrap_or_default().to_owned()
}

fn now_us() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_micros() as u64
}

/// The cloud's API, as a signed-in user.
struct Api {
    url: String,
    agent: ureq::Agent,
    token: String,
}

impl Api {
    fn sign_in(http: SocketAddr, one_time: &str) -> Self {
        let mut api = Self {
            url: format!("http://{http}/api/v1"),
            agent: ureq::Agent::new_with_defaults(),
            token: String::new(),
        };
        api.token = api.login(one_time);
        api.post("password", &json!({"old": one_time, "new": PASSWORD}));
        api.token.clear();
        api.token = api.login(PASSWORD);
        api
    }

    fn login(&self, password: &str) -> String {
        let answer: Value =
            serde_json::from_str(&self.post("login", &json!({"name": "admin", "password": password}))).unwrap();
        answer["token"].as_str().unwrap().to_owned()
    }

    fn post(&self, path: &str, body: &Value) -> String {
        let mut request = self.agent.post(format!("{}/{path}", self.url));
        if !self.token.is_empty() {
            request = request.header("authorization", format!("Bearer {}", self.token));
        }
        request.send_json(body).unwrap().body_mut().read_to_string().unwrap()
    }

    fn get(&self, path: &str) -> Value {
        let request = self.agent.get(format!("{}/{path}", self.url));
        let mut answer = request.header("authorization", format!("Bearer {}", self.token)).call().unwrap();
        answer.body_mut().read_json().unwrap()
    }

    /// Whether the machine's alarm is among the newest.
    fn has_alarm(&self, machine: &str) -> bool {
        let alarms = self.get("alarms?limit=5");
        let mut alarms = alarms["items"].as_array().unwrap().iter();
        alarms.any(|alarm| alarm["condition"] == "anomaly" && alarm["machine_name"] == machine)
    }
}

/// Values of a sensor that is well, and what it gives when its machine is broken.
fn value(machine: usize, sensor: usize, step: u64, broken: bool) -> f64 {
    let phase = (machine * SENSORS + sensor) as u64;
    let noise = (step * 7_919 + phase * 104_729) % 1_009;
    let value = 20.0 + noise as f64 / 100.0;
    if broken { value * 10.0 } else { value }
}

/// Publishes one step's values of all machines; the time when the first of `broken` was handed over.
fn publish(client: &Client, at_us: u64, broken: Option<usize>) -> Option<u64> {
    let first = broken.map(|_| now_us());
    // The machine that breaks goes first: behind the others its messages would wait in this program's own queue.
    for machine in broken.into_iter().chain((0..MACHINES).filter(|&machine| Some(machine) != broken)) {
        for sensor in 0..SENSORS {
            let value = value(machine, sensor, at_us / STEP_US, Some(machine) == broken);
            let topic = format!("plant/pump-{machine}/sensor_{sensor}");
            let payload = format!("{{\"value\":{value},\"time\":{:.3}}}", at_us as f64 / 1e3);
            client.publish(topic, QoS::AtLeastOnce, false, payload).unwrap();
        }
    }
    first
}

/// A device's connection, which is driven until the program ends.
fn connect(mqtt: SocketAddr) -> Client {
    let mut options = MqttOptions::new("bench", mqtt.ip().to_string(), mqtt.port());
    options.set_inflight(1_000).set_keep_alive(Duration::from_secs(30));
    let (client, mut connection) = Client::new(options, 2_000);
    thread::spawn(move || {
        // It ends with an error when the gateway is stopped at the end.
        connection.iter().take_while(Result::is_ok).for_each(drop);
    });
    client
}

/// Until the next step has begun by [`PHASE_US`]; that time.
fn next_step() -> u64 {
    let now = now_us();
    let at = (now / STEP_US + 1) * STEP_US + PHASE_US;
    thread::sleep(Duration::from_micros(at - now));
    at
}

/// Breaks a machine: how long its alarm took beyond what is configured, in milliseconds.
fn break_machine(api: &Api, client: &Client, machine: usize) -> f64 {
    let name = format!("pump-{machine}");
    assert!(!api.has_alarm(&name), "{name} is well");
    let begun = Instant::now();
    let (found, seen) = mpsc::sync_channel(1);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !api.has_alarm(&name) {
                assert!(begun.elapsed() < DEADLINE, "{name} broke, and no alarm came");
                thread::sleep(POLL_EVERY);
            }
            found.send(now_us()).unwrap();
        });
        let mut due_us = None;
        loop {
            let at = next_step();
            if let (Ok(readable_us), Some(due_us)) = (seen.try_recv(), due_us) {
                return (readable_us as f64 - due_us as f64) / 1e3;
            }
            assert!(begun.elapsed() < DEADLINE, "{name} broke, and no alarm came");
            let first = publish(client, at, Some(machine));
            due_us = due_us.or(first.map(|first| first / STEP_US * STEP_US + ON_STEPS * STEP_US + LATENESS_US));
        }
    })
}

fn main() {
    let cloud_binary = cloud_binary();
    let directory = tempfile::Builder::new().prefix("gemba-").tempdir_in("/var/tmp").unwrap();
    // PostgreSQL refuses to run as root, and then runs as a user who must be able to come here.
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o711)).unwrap();
    let path = directory.path();
    let [http, uplink, mqtt, edge_http] = [(); 4].map(|()| free_address());
    let mut text = String::new();
    writeln!(
        text,
        "data_dir = \"{}/cloud\"\n[http]\nlisten = \"{http}\"\n[mqtt]\nlisten = \"{uplink}\"",
        path.display()
    )
    .unwrap();
    fs::write(path.join("cloud.toml"), &text).unwrap();
    text.clear();
    writeln!(text, "[gateway]\ndata_dir = \"{}/edge\"\nclock = \"trusted\"", path.display()).unwrap();
    writeln!(text, "[mqtt]\nlisten = \"{mqtt}\"\nanonymous = true\n[http]\nlisten = \"{edge_http}\"").unwrap();
    writeln!(text, "[defaults]\nstep = \"{}ms\"\nlateness = \"{}ms\"", STEP_US / 1_000, LATENESS_US / 1_000).unwrap();
    fs::write(path.join("edge.toml"), &text).unwrap();

    let (cloud, ready) = Process::start(&cloud_binary, "serve", path, "cloud", http);
    println!("cloud, start to ready, with a new database: {:.0} ms", ready.as_secs_f64() * 1e3);
    let one_time = command(&cloud_binary, &["user", "add", "admin", "--role", "admin"], &path.join("cloud.toml"));
    let token = command(&cloud_binary, &["gateway", "add", "bench"], &path.join("cloud.toml"));
    command(Path::new(EDGE), &["enroll", "--token", &token], &path.join("edge.toml"));
    let (edge, _) = Process::start(Path::new(EDGE), "run", path, "edge", edge_http);
    let api = Api::sign_in(http, &one_time);

    let client = connect(mqtt);
    let mut at = now_us() / STEP_US * STEP_US - HISTORY_STEPS * STEP_US;
    while at < now_us() {
        publish(&client, at + PHASE_US, None);
        at += STEP_US;
    }
    // Some steps at the machines' own pace, so that what the history left to send is sent.
    for _ in 0..50 {
        publish(&client, next_step(), None);
    }
    let mut rests: Vec<f64> = (0..MACHINES).map(|machine| break_machine(&api, &client, machine)).collect();
    drop(client);
    rests.sort_by(f64::total_cmp);
    let at = |percent: usize| rests[(rests.len() * percent).div_ceil(100) - 1];
    println!(
        "first faulty message to alarm in the API, {} machines broken one by one: beyond {ON_STEPS} steps of {} ms and {} ms \
         lateness: p50 {:.0} ms, p99 {:.0} ms, max {:.0} ms",
        rests.len(),
        STEP_US / 1_000,
        LATENESS_US / 1_000,
        at(50),
        at(99),
        at(100),
    );

    edge.terminate();
    cloud.terminate();
    let (cloud, ready) = Process::start(&cloud_binary, "serve", path, "cloud", http);
    println!("cloud, start to ready, on its database: {:.0} ms", ready.as_secs_f64() * 1e3);
    let (edge, ready) = Process::start(Path::new(EDGE), "run", path, "edge", edge_http);
    println!("edge, start to ready, with {MACHINES} machines: {:.0} ms", ready.as_secs_f64() * 1e3);
    edge.terminate();
    cloud.terminate();
}
