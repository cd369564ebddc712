//! The edge daemon as a process that a benchmark starts, loads and looks at.
#![allow(clippy::print_stdout, clippy::unwrap_used)]
#![allow(dead_code, reason = "each benchmark uses a part of it")]

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

const EDGE: &str = env!("CARGO_BIN_EXE_gemba-edge");
pub(crate) const MACHINES: &str = "250";
pub(crate) const CONNECTIONS: &str = "10";
const READY_MAX: Duration = Duration::from_secs(10);
/// The kernel's clock ticks a second in /proc (`getconf CLK_TCK`): 100 on every Linux that Rust runs on.
const TICKS_PER_S: f64 = 100.0;

pub(crate) struct Edge {
    child: Child,
    mqtt: SocketAddr,
    pub(crate) ready: Duration,
}

impl Drop for Edge {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

impl Edge {
    /// `model`: what judges, where it is not the built-in baseline.
    pub(crate) fn start(directory: &Path, model: Option<&str>) -> Self {
        let (mqtt, http) = (free_address(), free_address());
        let config = directory.join("edge.toml");
        let models = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("models");
        let default = model.map_or_else(String::new, |model| format!("default = \"{model}\"\n"));
        let text = format!(
            "[gateway]\ndata_dir = \"{}/edge\"\n[mqtt]\nlisten = \"{mqtt}\"\nanonymous = true\n[http]\nlisten = \"{http}\"\n\
             [models]\ndir = \"{}\"\n{default}",
            directory.display(),
            models.display()
        );
        fs::write(&config, text).unwrap();
        let log = fs::File::create(directory.join("edge.log")).unwrap();
        let start = Instant::now();
        let child = Command::new(EDGE)
            .arg("run")
            .arg("--config")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut edge = Self { child, mqtt, ready: Duration::ZERO };
        while ureq::get(format!("http://{http}/readyz")).call().is_err() {
            assert!(start.elapsed() < READY_MAX, "{}", fs::read_to_string(directory.join("edge.log")).unwrap());
            std::hint::spin_loop();
        }
        edge.ready = start.elapsed();
        edge
    }

    fn cpu_s(&self) -> f64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / TICKS_PER_S
    }

    pub(crate) fn resident_mib(&self, field: &str) -> f64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with(field)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
    }

    pub(crate) fn simulate(&self, more: &[&str]) -> serde_json::Value {
        let url = format!("mqtt://{}", self.mqtt);
        let output = Command::new(EDGE)
            .args(["simulate", "--json", "--url", &url, "--machines", MACHINES, "--connections", CONNECTIONS])
            .args(more)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

impl Edge {
    /// Publishes under load, and prints what it took.
    pub(crate) fn load(&self, what: &str, messages: u64, more: &[&str]) {
        let count = messages.to_string();
        let cpu = self.cpu_s();
        let report = self.simulate(&[&["--load", "--messages", &count], more].concat());
        let cpu = self.cpu_s() - cpu;
        assert_eq!(report["acknowledged"].as_u64().unwrap(), messages, "every message was acknowledged");
        println!(
            "{what}: {:.0} messages/s, {:.1} CPU-s a million, PUBACK p50 {:.1} ms p99 {:.1} ms, resident {:.1} MiB (peak {:.1})",
            report["messages_per_s"].as_f64().unwrap(),
            cpu / messages as f64 * 1e6,
            report["latency_ms"]["p50"].as_f64().unwrap(),
            report["latency_ms"]["p99"].as_f64().unwrap(),
            self.resident_mib("VmRSS:"),
            self.resident_mib("VmHWM:"),
        );
    }
}
