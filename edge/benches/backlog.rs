//! What a long backlog takes of the disk and of memory: `cargo bench -p gemba-edge --bench backlog`.
//!
//! Fills an outbox with the summaries of 250 machines × 8 sensors, some events, and the machines' states, as the pipeline does, until
//! its records have 1 GB; starts the daemon on it, without a cloud, with as many machines that publish each second; then drains it in a
//! process of its own while new records come. Arguments: `--mb N` for another size, `--fill DIR` to fill a data directory and
//! leave it there.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

#[path = "process/edge.rs"]
mod edge;

use std::{
    env, fs,
    os::unix::fs::MetadataExt as _,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use edge::Edge;
use gemba_edge::outbox::{Outbox, OutboxSettings, State, Write};
use gemba_shared::{
    ids::{MachineId, SensorId},
    message::Lane,
    telemetry::{
        Catalog, Clock, DetectorState, Event, EventKind, Mode, Quality, Record, Sensor, SensorFault, SensorFaultKind,
        SensorSummary, Summary, Timestamp, Verdict,
    },
};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const MACHINES: u64 = 250;
const SENSORS: u64 = 8;
const INTERVAL_MS: u32 = 10_000;
const MACHINES_A_WRITE: u64 = 64;
const MB: u64 = 1_000_000;
/// What changes of a machine's state with each interval, and what stays.
const CORE_BYTES: usize = 1_536;
const LEARNT_BYTES: usize = 13_000;
/// What the daemon takes in with the backlog waiting: more than a calibration, at once, and then as machines send.
const HISTORY: &str = "6m";
const LIVE: &str = "60s";
/// As the uplink asks for them.
const BATCH_RECORDS: usize = 512;
const BATCH_BYTES: usize = 64 * 1_024;
const BATCHES_IN_FLIGHT: u64 = 8;

struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    /// A reading as devices send them, with two decimals.
    fn reading(&mut self) -> f64 {
        (2_000.0 + (self.next() % 1_000) as f64).round() / 100.0
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next() as u8).collect()
    }
}

fn machine(n: u64) -> MachineId {
    // As the simulator names them.
    MachineId::new(&format!("pump-{}", n + 1)).unwrap()
}

fn catalog(n: u64) -> Record {
    let sensor = |s: u64| Sensor { id: SensorId::new(&format!("sensor_{s}")).unwrap(), unit: Some("bar".into()) };
    Record::Catalog(Catalog {
        machine: machine(n),
        revision: 1,
        step_ms: 1_000,
        interval_ms: INTERVAL_MS,
        sensors: (0..SENSORS).map(sensor).collect(),
        model: "baseline 1".into(),
    })
}

fn summary(n: u64, interval: u64, noise: &mut Noise) -> Record {
    let sensor = |noise: &mut Noise| {
        let readings: Vec<f64> = (0..10).map(|_| noise.reading()).collect();
        let mean = readings.iter().sum::<f64>() / 10.0;
        SensorSummary {
            count: 10,
            min: readings.iter().copied().fold(f64::INFINITY, f64::min),
            max: readings.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            mean,
            sd: (readings.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / 10.0).sqrt(),
            last: readings[9],
            quality: Quality::Good,
        }
    };
    Record::Summary(Summary {
        machine: machine(n),
        start: Timestamp::from_millis(1_800_000_000_000 + i64::try_from(interval).unwrap() * i64::from(INTERVAL_MS)),
        interval_ms: INTERVAL_MS,
        catalog_revision: 1,
        sensors: (0..SENSORS).map(|_| Some(sensor(noise))).collect(),
        verdict: Verdict {
            detector: DetectorState::Watching,
            score: Some(noise.reading() as f32 / 50.0),
            health_percent: Some(97.5),
            mode: Mode::Running,
            remaining: None,
        },
        energy_wh: Some(noise.reading()),
        clock: Clock::Trusted,
    })
}

fn event(n: u64, interval: u64) -> Record {
    let at = Timestamp::from_millis(1_800_000_000_000 + i64::try_from(interval).unwrap() * i64::from(INTERVAL_MS));
    let fault = SensorFault { sensor: 1, kind: SensorFaultKind::Frozen, since: at, active: true };
    let kind = EventKind::SensorFault(fault);
    Record::Event(Event { machine: machine(n), at, catalog_revision: 1, clock: Clock::Trusted, kind })
}

/// One interval of all machines, as the pipeline writes it; gives the records' encoded bytes.
fn interval(outbox: &mut Outbox, number: u64, noise: &mut Noise) -> (u64, u64) {
    let (mut count, mut bytes) = (0, 0);
    for first in (0..MACHINES).step_by(MACHINES_A_WRITE as usize) {
        let mut write = Write::default();
        for n in first..(first + MACHINES_A_WRITE).min(MACHINES) {
            if number == 0 {
                write.records.push((Lane::Summaries, catalog(n)));
                write.states.push(State { machine: machine(n), part: 0x100, bytes: noise.bytes(LEARNT_BYTES) });
            }
            write.records.push((Lane::Summaries, summary(n, number, noise)));
            if noise.next().is_multiple_of(2_000) {
                write.records.push((Lane::Events, event(n, number)));
            }
            write.states.push(State { machine: machine(n), part: 0, bytes: noise.bytes(CORE_BYTES) });
        }
        count += write.records.len() as u64;
        bytes += write.records.iter().map(|(_, record)| postcard::to_stdvec(record).unwrap().len() as u64).sum::<u64>();
        outbox.append(&write).unwrap();
    }
    (count, bytes)
}

fn settings() -> OutboxSettings {
    OutboxSettings { budget_bytes: 1 << 40, ..OutboxSettings::default() }
}

fn disk_bytes(path: &Path) -> u64 {
    let metadata = fs::metadata(path).unwrap();
    let below: u64 = if metadata.is_dir() {
        fs::read_dir(path).unwrap().map(|entry| disk_bytes(&entry.unwrap().path())).sum()
    } else {
        0
    };
    metadata.blocks() * 512 + below
}

fn resident_mib(field: &str) -> f64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1_024.0
}

fn fill(dir: &Path, logical_max: u64) {
    let (mut outbox, _) = Outbox::open(dir, settings()).unwrap();
    let mut noise = Noise(1);
    let (mut records, mut logical, mut intervals) = (0, 0, 0);
    let mut worst = (0.0_f64, 0);
    let began = Instant::now();
    while logical < logical_max {
        let (count, bytes) = interval(&mut outbox, intervals, &mut noise);
        records += count;
        logical += bytes;
        intervals += 1;
        if intervals % 500 == 0 {
            let ratio = disk_bytes(dir) as f64 / logical as f64;
            worst = if ratio > worst.0 { (ratio, logical) } else { worst };
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    let disk = disk_bytes(dir);
    println!(
        "filled: {records} records of {:.0} MB, {intervals} intervals of {MACHINES} x {SENSORS}",
        logical as f64 / 1e6
    );
    println!("  records/s                    {:.0}", records as f64 / seconds);
    println!("  disk / logical, full         {:.2}", disk as f64 / logical as f64);
    let states = disk_bytes(&dir.join("standing"));
    println!("  of it the states             {:.1} MB", states as f64 / 1e6);
    let (ratio, at) = worst;
    println!("  disk / logical, at worst     {ratio:.2} (at {:.0} MB; sampled each 500 intervals)", at as f64 / 1e6);
    println!("  resident                     {:.1} MiB (peak {:.1})", resident_mib("VmRSS:"), resident_mib("VmHWM:"));
}

/// The daemon with the backlog before it.
fn wait(dir: &Path) {
    let edge = Edge::start(dir, None);
    println!("the daemon with this backlog, no cloud");
    println!("  start to ready               {:.0} ms", edge.ready.as_secs_f64() * 1e3);
    let report = edge.simulate(&["--format", "json", "--history", HISTORY, "--duration", LIVE]);
    println!(
        "  {MACHINES} x {SENSORS} at 1 Hz, after {HISTORY} of history ({} messages): resident {:.1} MiB (peak {:.1})",
        report["acknowledged"],
        edge.resident_mib("VmRSS:"),
        edge.resident_mib("VmHWM:"),
    );
}

/// In a process of its own.
fn drain(dir: &Path) {
    let before = resident_mib("VmRSS:");
    let began = Instant::now();
    let (mut outbox, opened) = Outbox::open(dir, settings()).unwrap();
    let ready = began.elapsed();
    assert!(opened.states.len() as u64 >= 2 * MACHINES);
    drop(opened);
    println!("opened again");
    println!("  ready after                  {:.0} ms", ready.as_secs_f64() * 1e3);
    println!("  resident                     {:.1} MiB (before {before:.1})", resident_mib("VmRSS:"));
    let mut noise = Noise(2);
    let (mut records, mut bytes, mut live) = (0_u64, 0_u64, 0);
    let (mut slowest, mut gaps) = (Duration::ZERO, 0);
    let began = Instant::now();
    loop {
        let before = records;
        for lane in Lane::ALL {
            let mut from = outbox.oldest(lane);
            for _ in 0..BATCHES_IN_FLIGHT {
                let batch = outbox.read(lane, from, BATCH_RECORDS, BATCH_BYTES).unwrap();
                from += batch.len() as u64;
                records += batch.len() as u64;
                gaps += batch.iter().filter(|record| matches!(record, Record::Gap(_))).count();
                bytes += batch.iter().map(|record| postcard::to_stdvec(record).unwrap().len() as u64).sum::<u64>();
            }
            let epoch = outbox.epoch();
            outbox.release(epoch, lane, from - 1).unwrap();
        }
        if records == before {
            break;
        }
        // Live data, at about a tenth of what is drained.
        if records / 10 > live {
            let appended = Instant::now();
            live += interval(&mut outbox, 1_000_000 + live, &mut noise).0;
            slowest = slowest.max(appended.elapsed());
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    println!("drained: {records} records of {:.0} MB, {live} of them new ones, {gaps} gaps", bytes as f64 / 1e6);
    println!("  records/s                    {:.0}", records as f64 / seconds);
    println!("  of the live rate             {:.0} x", records as f64 / seconds / (MACHINES as f64 / 10.0));
    println!("  slowest append of 250        {:.0} ms", slowest.as_secs_f64() * 1e3);
    println!("  resident                     {:.1} MiB (peak {:.1})", resident_mib("VmRSS:"), resident_mib("VmHWM:"));
    println!("  disk, drained                {:.1} MiB", disk_bytes(dir) as f64 / f64::from(1 << 20));
}

fn main() {
    let arguments: Vec<String> = env::args().collect();
    let after = |name: &str| arguments.iter().skip_while(|argument| *argument != name).nth(1);
    if let Some(dir) = after("--drain") {
        return drain(Path::new(dir));
    }
    let megabytes: u64 = after("--mb").map_or(1_000, |text| text.parse().unwrap());
    if let Some(dir) = after("--fill") {
        return fill(&Path::new(dir).join("outbox"), megabytes * MB);
    }
    let dir = tempfile::TempDir::new().unwrap();
    // Where the daemon looks for it.
    let outbox = dir.path().join("edge/outbox");
    fill(&outbox, megabytes * MB);
    wait(dir.path());
    let drained = Command::new(env::current_exe().unwrap()).arg("--drain").arg(&outbox).status().unwrap();
    assert!(drained.success());
}
