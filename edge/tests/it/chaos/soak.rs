//! A day of event time at speed, through both daemons: do memory, descriptors and disk stay level?
//!
//! What is measured goes up and down: a database's file is filled and deleted, memory is taken and given back. So the samples
//! are averaged in blocks, a line is fitted to the blocks' means, and the line's slope is told with its standard error. A
//! slope is zero within noise when it is below three of these, or makes less of the whole run than the resolution that is said.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use super::{Fleet, PATIENT, Pace, Told, is_long};
use crate::{
    plant::{Plant, Setting},
    process::Process,
};

const BLOCKS: usize = 12;
/// While caches fill and the detector learns.
const WARM_UP: f64 = 0.2;

/// A curve, and how much of it in a run means nothing.
struct Curve {
    name: &'static str,
    unit: &'static str,
    resolution: f64,
    samples: Vec<(f64, f64)>,
}

impl Curve {
    fn new(name: &'static str, unit: &'static str, resolution: f64) -> Self {
        Self { name, unit, resolution, samples: Vec::new() }
    }

    /// The line and whether it is level. Abscissae are hours of event time.
    fn judge(&self) -> (String, bool) {
        let warm = self.samples.last().map_or(0.0, |(last, _)| last * WARM_UP);
        let samples: Vec<_> = self.samples.iter().copied().filter(|(hour, _)| *hour >= warm).collect();
        let blocks: Vec<(f64, f64)> = samples.chunks(samples.len().div_ceil(BLOCKS)).map(mean).collect();
        let (slope, error) = fit(&blocks);
        let (first, last) = (blocks[0], blocks[blocks.len() - 1]);
        let is_level = slope <= 3.0 * error || slope * (last.0 - first.0) <= self.resolution;
        let text = format!(
            "{:<18} {:>8.1} → {:>8.1} {:<4} slope {:>8.3} ± {:.3} a day{}",
            self.name,
            first.1,
            last.1,
            self.unit,
            slope * 24.0,
            error * 24.0,
            if is_level { "" } else { "   GROWS" }
        );
        (text, is_level)
    }
}

fn mean(samples: &[(f64, f64)]) -> (f64, f64) {
    let n = samples.len() as f64;
    let sum = samples.iter().fold((0.0, 0.0), |sum, sample| (sum.0 + sample.0, sum.1 + sample.1));
    (sum.0 / n, sum.1 / n)
}

/// The slope of the best line, and its standard error.
fn fit(points: &[(f64, f64)]) -> (f64, f64) {
    let n = points.len() as f64;
    let (x, y) = mean(points);
    let spread: f64 = points.iter().map(|point| (point.0 - x).powi(2)).sum();
    let slope = points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum::<f64>() / spread;
    let rest: f64 = points.iter().map(|point| (point.1 - y - slope * (point.0 - x)).powi(2)).sum();
    (slope, (rest / (n - 2.0) / spread).sqrt())
}

fn descriptors(process: &Process) -> f64 {
    fs::read_dir(format!("/proc/{}/fd", process.id())).map_or(0.0, |entries| entries.count() as f64)
}

/// What the files below take, in MiB.
fn disk_mib(path: &Path) -> f64 {
    let Ok(metadata) = fs::symlink_metadata(path) else { return 0.0 };
    if metadata.is_dir() {
        return fs::read_dir(path).map_or(0.0, |entries| entries.flatten().map(|entry| disk_mib(&entry.path())).sum());
    }
    std::os::unix::fs::MetadataExt::blocks(&metadata) as f64 / 2_048.0
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "it takes long: ./run soak"]
async fn memory_descriptors_and_disk_stay_level() {
    let told = Told::new("soak");
    let plant = Plant::start_as(Setting { edge: PATIENT, ..Setting::default() }).await;
    let hours = if is_long() { 24.0 } else { 3.0 };
    // 200 times as fast as the clock.
    let pace =
        Pace { machines: 10, sensors: 8, step: Duration::from_secs(1), every: Duration::from_millis(5), is_kept: true };
    let fleet = Fleet::start(plant.mqtt, pace);
    let readings_an_hour = f64::from(pace.machines * pace.sensors) * 3_600.0;
    let mut curves = [
        Curve::new("edge memory", "MiB", 4.0),
        Curve::new("cloud memory", "MiB", 4.0),
        Curve::new("edge descriptors", "", 1.0),
        Curve::new("cloud descriptors", "", 1.0),
        Curve::new("edge disk", "MiB", 8.0),
    ];
    let data = plant.directory.path().join("edge");
    let begun = Instant::now();
    loop {
        let hour = fleet.acknowledged() as f64 / readings_an_hour;
        let now = [
            plant.edge.resident_mib(),
            plant.cloud.resident_mib(),
            descriptors(&plant.edge),
            descriptors(&plant.cloud),
            disk_mib(&data),
        ];
        for (curve, value) in curves.iter_mut().zip(now) {
            curve.samples.push((hour, value));
        }
        if hour >= hours {
            break;
        }
        assert!(begun.elapsed() < Duration::from_hours(1), "{hour} hours of event time in an hour");
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    let speed = hours * 3_600.0 / begun.elapsed().as_secs_f64();
    let sent = fleet.finish().await;
    told.all_stored_once(&plant, &sent, &format!("{hours} h of event time, {speed:.0} times as fast as the clock"))
        .await;
    let mut level = true;
    for curve in &curves {
        let (text, is_level) = curve.judge();
        eprintln!("{text}");
        level &= is_level;
    }
    plant.stop();
    assert!(level, "something grows");
}

#[test]
fn a_slope_is_told_from_noise() {
    let curve = |grows: f64| {
        let mut curve = Curve::new("test", "MiB", 0.1);
        // A saw, as a database that is filled and deleted makes it.
        curve.samples =
            (0..1_000).map(|i| (f64::from(i) / 40.0, 50.0 + f64::from(i % 77) / 10.0 + grows * f64::from(i))).collect();
        curve.judge().1
    };
    assert!(curve(0.0));
    assert!(curve(-0.01));
    assert!(!curve(0.01));
}
