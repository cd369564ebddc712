//! The package in a Debian that systemd booted: installed, killed, hung, reloaded, rebooted, upgraded, removed, purged.
//!
//! `./run test` builds the packages and the file system and names them: `GEMBA_SERVICE_DEBS` is a directory with two versions,
//! `GEMBA_SERVICE_ROOT` a tarball of a minimal Debian. Without them, or without root, there is nothing to boot: the tests say so.
//! The container shares nothing with the machine but its kernel: its network is its own loopback.

use std::{
    collections::BTreeMap,
    env,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use gemba_edge::outbox::{Outbox, OutboxSettings};
use gemba_shared::{message::Lane, telemetry::Record};

use crate::{
    gateway::wait,
    ledger::{Cell, Figures, differences, expected},
};

const INTERVAL_US: i64 = 10_000_000;
/// The most exposed that a unit may be, as `systemd-analyze security` counts.
const EXPOSURE_MAX: f64 = 2.0;
/// Readings of a phase, and how long their publishing takes.
const ROWS: usize = 1_500;
const PHASE: Duration = Duration::from_secs(4);
/// Shortens the watchdog and the pause before a restart.
const DROP_IN: &str = "[Service]\nWatchdogSec=4\nRestartSec=1\n";

#[test]
fn the_units_are_confined() {
    let Ok(analyze) = Command::new("systemd-analyze").arg("--version").output() else {
        return eprintln!("skipped: there is no systemd-analyze");
    };
    assert!(analyze.status.success());
    for unit in ["gemba-edge.service", "gemba-cloud.service"] {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../systemd").join(unit);
        let output = Command::new("systemd-analyze")
            .args(["security", "--offline=true", "--no-pager"])
            .arg(&file)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let line =
            text.lines().find(|line| line.contains("Overall exposure level")).unwrap_or_else(|| panic!("{output:?}"));
        let figure: f64 = line
            .split(": ")
            .nth(1)
            .and_then(|rest| rest.split(' ').next())
            .and_then(|word| word.parse().ok())
            .expect(line);
        eprintln!("{unit}: exposure {figure}");
        assert!(figure <= EXPOSURE_MAX, "{text}");
    }
}

/// A booted container, and where its files are.
struct Machine {
    directory: tempfile::TempDir,
    nspawn: Child,
}

impl Machine {
    fn boot(tarball: &Path, debs: &[PathBuf]) -> Self {
        let directory = tempfile::Builder::new().prefix("gemba-service-").tempdir_in("/var/tmp").unwrap();
        let root = directory.path().join("root");
        fs::create_dir(&root).unwrap();
        run(Command::new("tar").arg("-xf").arg(tarball).arg("-C").arg(&root));
        for deb in debs {
            fs::copy(deb, root.join("root").join(deb.file_name().unwrap())).unwrap();
        }
        let nspawn = nspawn(directory.path());
        Self { directory, nspawn }
    }

    /// Shuts it down and boots it again.
    async fn reboot(&mut self) {
        self.run(&["systemctl", "reboot"]);
        wait("the container to shut down", || self.nspawn.try_wait().unwrap()).await;
        self.nspawn = nspawn(self.directory.path());
        self.booted().await;
    }

    fn root(&self) -> PathBuf {
        self.directory.path().join("root")
    }

    /// The container's process 1, as this machine numbers it.
    fn leader(&self) -> Option<u32> {
        let pid = self.nspawn.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
        let is_leader = |child: &u32| {
            let status = fs::read_to_string(format!("/proc/{child}/status")).unwrap_or_default();
            let inside = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
            inside.split_whitespace().last() == Some("1")
        };
        children.split_whitespace().filter_map(|child| child.parse().ok()).find(is_leader)
    }

    fn command(&self, command: &[&str]) -> Option<Command> {
        let mut entered = Command::new("nsenter");
        let leader = self.leader()?.to_string();
        entered.args(["--target", &leader, "--mount", "--uts", "--ipc", "--net", "--pid", "--", "/usr/bin/env", "-i"]);
        entered.args(["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND=noninteractive", "HOME=/root"]);
        entered.args(command).stdin(Stdio::null());
        Some(entered)
    }

    fn try_run(&self, command: &[&str]) -> Option<Output> {
        self.command(command)?.output().ok()
    }

    /// What a command says; it must succeed.
    fn run(&self, command: &[&str]) -> String {
        run(&mut self.command(command).expect("the container runs"))
    }

    /// A property of the unit.
    fn unit(&self, property: &str) -> Option<String> {
        let output = self.try_run(&["systemctl", "show", "--value", "--property", property, "gemba-edge"])?;
        let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
        Some(text).filter(|text| !text.is_empty())
    }

    async fn booted(&self) {
        let up = || {
            let state = self.try_run(&["systemctl", "is-system-running"])?;
            matches!(String::from_utf8_lossy(&state.stdout).trim(), "running" | "degraded").then_some(())
        };
        wait("the container to boot", up).await;
    }

    /// Waits until the service runs, as another process than `before`; its process.
    async fn active(&self, before: &str) -> String {
        let running = || {
            let pid = self.unit("MainPID").filter(|pid| pid != before && pid != "0")?;
            (self.unit("ActiveState")? == "active").then_some(pid)
        };
        wait("the service to run", running).await
    }

    fn status(&self) -> serde_json::Value {
        serde_json::from_str(&self.run(&["gemba-edge", "status", "--json"])).unwrap()
    }

    fn figure(&self, name: &str) -> f64 {
        let status = self.status();
        let figures = status["figures"].as_array().unwrap();
        figures.iter().find(|figure| figure["name"] == name).expect(name)["values"][0][1].as_f64().unwrap()
    }

    /// Begins to publish the readings of a phase.
    fn publish(&self, phase: &str) -> Child {
        let mut csv = "time,value\n".to_owned();
        let step_us = PHASE.as_micros() as usize / ROWS;
        for row in 0..ROWS {
            let us = row * step_us;
            writeln!(csv, "2026-01-01T00:00:{:02}.{:06}Z,{row}", us / 1_000_000, us % 1_000_000).unwrap();
        }
        fs::write(self.root().join(format!("root/{phase}.csv")), csv).unwrap();
        let (recording, ledger) = (format!("/root/{phase}.csv"), format!("/root/{phase}.ledger"));
        let url = "mqtt://127.0.0.1:1883";
        self.command(&["gemba-edge", "replay", &recording, "--url", url, "--machine", phase, "--ledger", &ledger])
            .expect("the container runs")
            .stdout(Stdio::null())
            .stderr(fs::File::create(self.directory.path().join(format!("{phase}.log"))).unwrap())
            .spawn()
            .unwrap()
    }

    /// Every reading of the phase was acknowledged.
    fn published(&self, phase: &str, mut publisher: Child) {
        let ended = publisher.wait().unwrap();
        let log = fs::read_to_string(self.directory.path().join(format!("{phase}.log"))).unwrap_or_default();
        assert!(ended.success(), "{phase}: {log}");
        assert_eq!(fs::read_to_string(self.ledger(phase)).unwrap().lines().count(), ROWS + 1, "{phase}: {log}");
    }

    fn ledger(&self, phase: &str) -> PathBuf {
        self.root().join(format!("root/{phase}.ledger"))
    }

    /// All summaries that lie in the gateway's outbox.
    fn stored(&self) -> BTreeMap<Cell, Figures> {
        let place = self.root().join("var/lib/gemba/edge/outbox");
        let (mut outbox, opened) = Outbox::open(&place, OutboxSettings::default()).unwrap();
        assert_eq!(opened.lost_records, 0);
        let mut sensors: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut stored = BTreeMap::new();
        let mut number = outbox.oldest(Lane::Summaries);
        while number < outbox.next(Lane::Summaries) {
            let records = outbox.read(Lane::Summaries, number, 1_000, 4 << 20).unwrap();
            assert!(!records.is_empty());
            number += records.len() as u64;
            for record in records {
                match record {
                    Record::Catalog(catalog) => {
                        let names = catalog.sensors.iter().map(|sensor| sensor.id.to_string()).collect();
                        sensors.insert(catalog.machine.to_string(), names);
                    }
                    Record::Summary(summary) => {
                        let machine = summary.machine.to_string();
                        for (sensor, figures) in sensors[&machine].iter().zip(&summary.sensors) {
                            // A machine that fell silent still has its last value.
                            let Some(figures) = figures.filter(|figures| figures.count > 0) else { continue };
                            let cell =
                                Cell { machine: machine.clone(), sensor: sensor.clone(), start_us: summary.start.0 };
                            let (count, sd) = (i32::try_from(figures.count).unwrap(), figures.sd);
                            let figures = Figures { count, min: figures.min, max: figures.max, mean: figures.mean, sd };
                            assert!(stored.insert(cell, figures).is_none(), "a summary came twice");
                        }
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
        stored
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let journal = self.try_run(&["journalctl", "--no-pager", "--lines", "80", "--unit", "gemba-edge"]);
            if let Some(output) = journal {
                eprintln!("{}", String::from_utf8_lossy(&output.stdout));
            }
            let console = fs::read_to_string(self.directory.path().join("console")).unwrap_or_default();
            eprintln!("{}", console.lines().rev().take(20).collect::<Vec<_>>().join("\n"));
        }
        // The end of its process 1 ends all that is in it.
        if let Some(leader) = self.leader().and_then(|leader| i32::try_from(leader).ok()) {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(leader), nix::sys::signal::Signal::SIGKILL).ok();
        }
        self.nspawn.wait().ok();
    }
}

/// Boots what lies in `root`. That it was told to reboot it says by its end.
fn nspawn(directory: &Path) -> Child {
    let log = fs::File::options().create(true).append(true).open(directory.join("console")).unwrap();
    Command::new("systemd-nspawn")
        .args(["--boot", "--register=no", "--keep-unit", "--private-network", "--console=pipe"])
        .arg(format!("--machine=gemba-{}", std::process::id()))
        .arg("--directory")
        .arg(directory.join("root"))
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap()
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{out}{err}", output.status);
    out.into_owned()
}

/// The tarball and the packages, older version first; `None`, and why, where there is nothing to boot.
fn provided() -> Result<(PathBuf, Vec<PathBuf>), &'static str> {
    let place = |name| env::var_os(name).map(PathBuf::from);
    let (Some(tarball), Some(debs)) = (place("GEMBA_SERVICE_ROOT"), place("GEMBA_SERVICE_DEBS")) else {
        return Err("GEMBA_SERVICE_ROOT and GEMBA_SERVICE_DEBS are not set; `./run test` sets them, as root");
    };
    if !nix::unistd::geteuid().is_root() {
        return Err("only root can boot a container");
    }
    let mut debs: Vec<PathBuf> = fs::read_dir(debs).unwrap().map(|entry| entry.unwrap().path()).collect();
    debs.sort();
    assert_eq!(debs.len(), 2, "{debs:?}");
    Ok((tarball, debs))
}

#[tokio::test]
async fn a_package_keeps_every_reading_through_all_that_happens_to_a_service() {
    let (tarball, debs) = match provided() {
        Ok(provided) => provided,
        Err(why) => return eprintln!("skipped: {why}"),
    };
    let begun = Instant::now();
    let mut machine = Machine::boot(&tarball, &debs);
    let inside = |deb: &Path| format!("/root/{}", deb.file_name().unwrap().to_string_lossy());
    let (older, newer) = (inside(&debs[0]), inside(&debs[1]));
    machine.booted().await;
    let mut phases = Vec::new();

    machine.run(&["dpkg", "--install", &older]);
    let mut pid = machine.active("").await;
    assert_eq!(machine.run(&["stat", "--format", "%U:%G %a", "/var/lib/gemba/edge"]).trim(), "gemba:gemba 700");
    assert_eq!(machine.run(&["stat", "--format", "%U:%G %a", "/etc/gemba/edge.toml"]).trim(), "root:gemba 640");
    machine.run(&["gemba-edge", "check"]);
    let drop_in = machine.root().join("etc/systemd/system/gemba-edge.service.d");
    fs::create_dir(&drop_in).unwrap();
    fs::write(drop_in.join("test.conf"), DROP_IN).unwrap();
    machine.run(&["systemctl", "daemon-reload"]);
    machine.run(&["systemctl", "restart", "gemba-edge"]);
    pid = machine.active(&pid).await;

    for (phase, signal) in [("killed", "KILL"), ("hung", "STOP")] {
        let publisher = machine.publishing(phase).await;
        machine.run(&["systemctl", "kill", "--kill-whom=main", "--signal", signal, "gemba-edge"]);
        pid = machine.active(&pid).await;
        machine.published(phase, publisher);
        phases.push(phase);
    }
    assert!(machine.run(&["journalctl", "--no-pager", "--unit", "gemba-edge"]).contains("Watchdog timeout"));

    let publisher = machine.publishing("reloaded").await;
    machine.reloads(&pid);
    machine.published("reloaded", publisher);

    let publisher = machine.publish("rebooted");
    machine.published("rebooted", publisher);
    machine.reboot().await;
    pid = machine.active("").await;
    let publisher = machine.publishing("upgraded").await;
    machine.run(&["dpkg", "--install", &newer]);
    machine.active(&pid).await;
    machine.published("upgraded", publisher);
    phases.extend(["reloaded", "rebooted", "upgraded"]);

    wait("all summaries", || (machine.figure("open_intervals") == 0.0).then_some(())).await;
    machine.run(&["dpkg", "--remove", "gemba-edge"]);
    assert!(machine.root().join("etc/gemba/edge.toml").exists(), "removing keeps the configuration");
    let ledgers: Vec<PathBuf> = phases.iter().map(|phase| machine.ledger(phase)).collect();
    let sent = expected(&ledgers.iter().map(PathBuf::as_path).collect::<Vec<_>>(), INTERVAL_US);
    assert_eq!(differences(&sent, &machine.stored()), "");

    machine.run(&["dpkg", "--install", &newer]);
    machine.active("").await;
    let purged = machine.run(&["dpkg", "--purge", "gemba-edge"]);
    assert!(purged.contains("deleting its data in /var/lib/gemba/edge"), "{purged}");
    for left in ["var/lib/gemba", "etc/gemba", "usr/bin/gemba-edge", "usr/share/gemba"] {
        assert!(!machine.root().join(left).exists(), "purging left /{left}");
    }
    assert!(!fs::read_to_string(machine.root().join("etc/passwd")).unwrap().contains("gemba"), "purging left the user");
    eprintln!(
        "service: {} readings acknowledged through SIGKILL, SIGSTOP, reload, reboot, upgrade: each in the outbox once; {} s",
        phases.len() * ROWS,
        begun.elapsed().as_secs()
    );
}

impl Machine {
    /// Begins to publish the readings of a phase, and waits until some are taken in.
    async fn publishing(&self, phase: &str) -> Child {
        let before = self.figure("readings");
        let publisher = self.publish(phase);
        wait(phase, || (self.figure("readings") > before).then_some(())).await;
        publisher
    }

    /// A right configuration is taken, a wrong one refused, and the process stays the same.
    fn reloads(&self, pid: &str) {
        let file = self.root().join("etc/gemba/edge.toml");
        let before = fs::read_to_string(&file).unwrap();
        fs::write(&file, format!("{before}\n[[machines]]\nid = \"reloaded\"\nunits = {{ value = \"bar\" }}\n"))
            .unwrap();
        self.run(&["systemctl", "reload", "gemba-edge"]);
        assert_eq!(self.status()["reload"]["count"], 1);
        fs::write(&file, format!("{before}\n[[machines]]\nid = \"reloaded\"\nunits = {{ value = \"furlong\" }}\n"))
            .unwrap();
        let refused = self.try_run(&["systemctl", "reload", "gemba-edge"]).unwrap();
        assert!(!refused.status.success(), "a wrong configuration is refused");
        let log = self.run(&["journalctl", "--no-pager", "--unit", "gemba-edge"]);
        assert!(log.contains("units.value: \"furlong\": it is no unit of UCUM"), "{log}");
        fs::write(&file, before).unwrap();
        self.run(&["systemctl", "reload", "gemba-edge"]);
        assert_eq!(self.unit("MainPID").as_deref(), Some(pid));
    }
}
