//! How long one window takes: `cargo run --release -p gemba-edge --example model_bench [MODEL_FOLDER]`.

use std::{
    io::Write,
    path::PathBuf,
    time::{Duration, Instant},
};

use gemba_edge::detect::model::{Calibrated, Model};

const ROUNDS: usize = 20_000;

fn main() -> anyhow::Result<()> {
    let folder = std::env::args_os().nth(1).map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../models/kernel-regression")),
        PathBuf::from,
    );
    let mut out = std::io::stdout().lock();
    let started = Instant::now();
    let model = Model::load(&folder)?;
    writeln!(out, "{model}: loaded and checked in {:?}", started.elapsed())?;
    for channels in [1, 8, 52, 256] {
        let started = Instant::now();
        let plan = model.plan(channels)?;
        let planned = started.elapsed();
        // A fixed sequence is enough: the time does not depend on the values.
        let mut next = 1_u32;
        let mut values = |count: usize| -> Vec<f32> {
            let mut value = || {
                next = next.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                f32::from(u16::try_from(next >> 16).unwrap_or_default()) / 65_536.0
            };
            (0..count).map(|_| value()).collect()
        };
        let calibration = Calibrated {
            mean: vec![0.5; channels],
            scale: vec![0.3; channels],
            memory: values(model.memory_rows() * channels),
            loadings: values(channels * model.components()),
            eigenvalues: vec![1.0; model.components()],
        };
        let window = values(model.steps() * channels);
        let mut contribution = vec![0.0; channels];
        let mut times: Vec<Duration> = Vec::with_capacity(ROUNDS);
        for _ in 0..ROUNDS {
            let started = Instant::now();
            plan.judge(&window, &calibration, &mut contribution)?;
            times.push(started.elapsed());
        }
        times.sort_unstable();
        let at = |share: usize| times[ROUNDS * share / 1_000];
        writeln!(
            out,
            "C = {channels:3}: plan {planned:?}, judge median {:?}, p99 {:?}, p99.9 {:?}, max {:?}",
            at(500),
            at(990),
            at(999),
            times[ROUNDS - 1]
        )?;
    }
    Ok(())
}
