//! What the edge daemon takes, as a whole process: `cargo bench -p gemba-edge --bench whole`.
//!
//! The daemon and the load generator share this machine's cores, so the rate is of both together; the CPU seconds
//! are the daemon's alone, from /proc.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

#[path = "process/edge.rs"]
mod edge;

use edge::{CONNECTIONS, Edge, MACHINES};

const MESSAGES: u64 = 2_000_000;
const STEADY_RATE: &str = "30000";
const STEADY_MESSAGES: u64 = 900_000;
/// More than a calibration takes.
const HISTORY: &str = "6m";

/// As fast as it goes, from nothing.
fn fastest() {
    let directory = tempfile::tempdir().unwrap();
    let first = Edge::start(directory.path(), None);
    println!("start to ready, empty: {:.0} ms", first.ready.as_secs_f64() * 1e3);
    println!("resident after the start: {:.1} MiB", first.resident_mib("VmRSS:"));
    for (what, format) in [("plain numbers", "number"), ("JSON with a source time", "json")] {
        first.load(&format!("as fast as acknowledged, {what}"), MESSAGES, &["--format", format]);
    }
    drop(first);
    let second = Edge::start(directory.path(), None);
    println!("start to ready after a kill, journal replayed: {:.0} ms", second.ready.as_secs_f64() * 1e3);
}

/// With machines that are calibrated and judged, at the rate that is promised.
fn steady(model: Option<&str>) {
    let directory = tempfile::tempdir().unwrap();
    let edge = Edge::start(directory.path(), model);
    let judge = model.unwrap_or("the baseline");
    let history = edge.simulate(&["--format", "json", "--history", HISTORY, "--duration", "5s"]);
    println!(
        "judged by {judge}: after {HISTORY} of history ({} messages) resident {:.1} MiB (peak {:.1})",
        history["acknowledged"],
        edge.resident_mib("VmRSS:"),
        edge.resident_mib("VmHWM:"),
    );
    let what = format!("judged by {judge}, steady");
    edge.load(&what, STEADY_MESSAGES, &["--format", "json", "--rate", STEADY_RATE]);
}

fn main() {
    println!("QoS 1, {MACHINES} machines x 8 sensors, {CONNECTIONS} connections");
    fastest();
    steady(None);
    steady(Some("kernel-regression"));
}
