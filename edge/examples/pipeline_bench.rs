//! How fast readings go through journal, windows, detectors and outbox: `cargo run --release -p gemba-edge --example pipeline_bench`.
//!
//! 250 machines × 8 sensors, in event time at ten readings a second and sensor, in batches of 2,000 readings with one sync
//! each. Prints readings/s, CPU-seconds per million readings, and resident memory. Arguments: seconds of event time (60), a model's folder or `-`,
//! and `offline` for a cloud that never answers (prints what the backlog takes on the disk).

use std::{
    io::Write as _,
    path::Path,
    sync::{Arc, Mutex},
    time::Instant,
};

use anyhow::Context;
use gemba_edge::{
    detect::model::Model,
    outbox::{Outbox, OutboxSettings},
    pipeline::{Pipeline, PipelineSettings},
    reading::{Now, Reading, Registry},
    summary::MachineSettings,
};
use gemba_shared::{
    ids::{MachineId, SensorId},
    message::Lane,
    telemetry::{Clock, Timestamp},
};

const MACHINES: u64 = 250;
const SENSORS: u64 = 8;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let seconds: i64 = arguments.next().map_or(Ok(60), |text| text.parse()).context("seconds")?;
    let model =
        arguments.next().filter(|dir| dir != "-").map(|dir| Model::load(Path::new(&dir))).transpose()?.map(Arc::new);
    let offline = arguments.next().is_some_and(|word| word == "offline");
    let dir = tempfile::TempDir::new()?;
    let (outbox, opened) = Outbox::open(&dir.path().join("outbox"), OutboxSettings::default())?;
    let outbox = Arc::new(Mutex::new(outbox));
    let defaults = MachineSettings { model, calibration_steps: Some(60), ..MachineSettings::default() };
    let settings = PipelineSettings { defaults: Arc::new(defaults), ..PipelineSettings::default() };
    let registry = Registry::new(1_000, 256);
    let journal = dir.path().join("journal");
    let mut pipeline = Pipeline::open(settings, &journal, outbox.clone(), opened.states, registry, now(0))?;

    let mut places = Vec::new();
    for machine in 0..MACHINES {
        let machine = pipeline.registry().machine(&MachineId::new(&format!("pump-{machine}"))?)?;
        for sensor in 0..SENSORS {
            places.push((machine, pipeline.registry().sensor(machine, &SensorId::new(&format!("sensor_{sensor}"))?)?));
        }
    }
    let before = cpu_seconds()?;
    let began = Instant::now();
    let mut readings = Vec::new();
    let mut count = 0;
    for tenth in 0..seconds * 10 {
        readings.clear();
        let at = now(tenth);
        for (n, (machine, sensor)) in (0_i64..).zip(&places) {
            let noise = (tenth * 7_919 + n * 104_729) % 1_009;
            let value = 20.0 + noise as f64 / 100.0;
            readings.push(Reading { machine: *machine, sensor: *sensor, at: at.wall.plus_us(-n), value });
        }
        pipeline.ingest(&readings, &mut Vec::new(), at, at)?;
        pipeline.tick(at)?;
        count += readings.len();
        if offline {
            continue;
        }
        let mut outbox = outbox.lock().map_err(|_| anyhow::anyhow!("the outbox's lock"))?;
        for lane in Lane::ALL {
            // As if each summary had its receipt a while later.
            let (epoch, through) = (outbox.epoch(), outbox.next(lane).saturating_sub(MACHINES));
            outbox.release(epoch, lane, through)?;
        }
    }
    let (wall, cpu) = (began.elapsed().as_secs_f64(), cpu_seconds()? - before);
    let mut out = std::io::stdout().lock();
    writeln!(out, "readings            {count}")?;
    writeln!(out, "readings/s          {:.0}", count as f64 / wall)?;
    writeln!(out, "CPU-s per million   {:.2}", cpu * 1e6 / count as f64)?;
    writeln!(out, "resident            {} kB", status("VmRSS")?)?;
    writeln!(out, "resident, peak      {} kB", status("VmHWM")?)?;
    let mut outbox = outbox.lock().map_err(|_| anyhow::anyhow!("the outbox's lock"))?;
    writeln!(out, "backlog             {:?}, {} bytes on the disk", outbox.backlog(), outbox.disk_bytes())?;
    writeln!(out, "{:#?}", pipeline.counters())?;
    Ok(())
}

fn now(tenth: i64) -> Now {
    let wall = Timestamp::from_millis(1_800_000_000_000 + tenth * 100);
    Now { wall, mono_us: tenth * 100_000, clock: Clock::Trusted }
}

/// User and system time of this process, by `/proc/self/stat` (in ticks of 10 ms).
fn cpu_seconds() -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    Ok(ticks as f64 / 100.0)
}

fn status(key: &str) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(key)).context("no such line")?;
    Ok(line.trim_start_matches(':').trim().trim_end_matches("kB").trim().parse()?)
}
