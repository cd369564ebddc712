//! How long one verdict takes, from a machine's readings of a step to what is told of it: window, levels, pattern or graph, alarm.
//! `cargo run --release -p gemba-edge --example judge_bench`.
//!
//! Prints a table: the judge, the number of channels, and the quantiles of a step in microseconds.

use std::{io::Write, path::PathBuf, sync::Arc, time::Instant};

use anyhow::Context as _;
use gemba_edge::{
    detect::{BASELINE, DetectSettings, Detector, model::Model},
    reading::SensorIx,
    window::{Periods, Window},
};
use gemba_shared::telemetry::{Mode, Timestamp};

const STEPS: i64 = 20_000;
const CALIBRATION_STEPS: u32 = 300;
const STEP_US: i64 = 1_000_000;
const MODELS: [&str; 3] = ["kernel-regression", "pca", "conv-autoencoder"];

fn main() -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    let models = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../models"));
    writeln!(out, "| one verdict, window to alarm | channels | p50 µs | p99 µs | p99.9 µs |\n|---|---|---|---|---|")?;
    for name in [None].into_iter().chain(MODELS.map(Some)) {
        let model = match name {
            Some(name) => Some(Arc::new(Model::load(&models.join(name)).with_context(|| name.to_owned())?)),
            None => None,
        };
        for channels in [1, 8, 52] {
            let mut times = measure(model.clone(), channels);
            times.sort_by(f64::total_cmp);
            let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
            let (name, p50, p99, p999) = (name.unwrap_or(BASELINE), at(0.5), at(0.99), at(0.999));
            writeln!(out, "| {name} | {channels} | {p50:.1} | {p99:.1} | {p999:.1} |")?;
        }
    }
    Ok(())
}

/// Microseconds of each step after calibration.
fn measure(model: Option<Arc<Model>>, channels: u16) -> Vec<f64> {
    let settings = DetectSettings { calibration_steps: CALIBRATION_STEPS, model };
    let mut detector = Detector::new(settings, STEP_US);
    let mut window = Window::new(Periods { lateness_us: 0, ..Periods::default() });
    let mut times = Vec::new();
    let mut events = Vec::new();
    let mut noise = 1_u32;
    for step in 0..STEPS {
        let at = Timestamp(step * STEP_US);
        let load = (step as f64 / 17.0).sin();
        let began = Instant::now();
        for channel in 0..channels {
            noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let value = f64::from(channel) + load + f64::from(noise >> 16) / 65_536.0;
            window.push(SensorIx(channel), at, value, false, at.0, 0);
        }
        while let Some((closed, _)) = window.close_next(at.0) {
            if let Some(closed) = closed {
                detector.step(&closed, Mode::Running, &mut events);
            }
        }
        if step > i64::from(2 * CALIBRATION_STEPS) {
            times.push(began.elapsed().as_secs_f64() * 1e6);
        }
        events.clear();
    }
    times
}
