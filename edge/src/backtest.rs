//! Runs recordings through the very same window and detector as the daemon, as fast as they can be read.
//!
//! Each file is a machine of its own: it calibrates on its first steps and is judged on the rest. A line of output
//! for each step, a summary for each file; with a label column, how often the alarm was right.

mod output;
mod score;

use std::{
    collections::{BTreeMap, HashMap},
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, bail};
use clap::Args;
use gemba_shared::{
    ids::SensorId,
    telemetry::{DetectorState, EventKind, Mode, SensorFaultKind, Timestamp},
};

use crate::{
    detect::{DetectSettings, Detector, model::Model},
    publisher::duration,
    reading::SensorIx,
    recording::{Recording, RecordingArgs, Row},
    window::{Periods, Step, Window},
};
use output::{Alarm, Line, Lines, Summary};
use score::Confusion;

/// Rows whose distances say how often a recording was sampled.
const SAMPLED_ROWS: usize = 1_000;
/// In steps: an interval, how long a value is held, how long a step waits.
const INTERVAL_STEPS: i64 = 10;
const HOLD_STEPS: i64 = 30;
const LATENESS_STEPS: i64 = 2;

/// `gemba-edge backtest`
#[derive(Debug, Args)]
pub struct BacktestArgs {
    /// CSV files: the first line names the columns, one of them is the time
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    recording: RecordingArgs,
    /// Steps that calibration takes
    #[arg(long, value_name = "N", default_value_t = 300, value_parser = clap::value_parser!(u32).range(60..))]
    calibrate_rows: u32,
    /// The detector's sampling period; by default as often as the recording was sampled
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    step: Option<Duration>,
    /// The model that judges; the built-in baseline by default
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// Where models lie, a folder each
    #[arg(long, value_name = "DIRECTORY", default_value = "models")]
    models_dir: PathBuf,
    /// Write a line for each step of the one file here, as CSV
    #[arg(long, value_name = "FILE", conflicts_with = "output_dir")]
    output: Option<PathBuf>,
    /// Write a line for each step of each file into a file of the same name here
    #[arg(long, value_name = "DIRECTORY")]
    output_dir: Option<PathBuf>,
    /// Print the summaries as JSON, one a line
    #[arg(long)]
    json: bool,
}

/// Judges each file and prints summaries to `out`.
///
/// # Errors
/// If a file is no recording, the model is refused, or the output cannot be written.
pub fn run(args: &BacktestArgs, out: &mut impl Write) -> anyhow::Result<()> {
    if args.output.is_some() && args.files.len() > 1 {
        bail!("--output is for one file, and there are {}: use --output-dir", args.files.len());
    }
    let model = match &args.model {
        Some(name) => {
            let model = Model::load(&args.models_dir.join(name)).with_context(|| format!("--model {name}"))?;
            Some(Arc::new(model))
        }
        None => None,
    };
    let mut pooled = Confusion::default();
    for path in &args.files {
        let lines = match output_of(path, args)? {
            Some(path) => Some(Lines::create(&path)?),
            None => None,
        };
        let summary = judge(path, args, model.clone(), lines)?;
        pooled.add(&summary.confusion);
        writeln!(out, "{}", if args.json { summary.json() } else { summary.text() })?;
    }
    if args.files.len() > 1 && args.recording.label_column.is_some() {
        writeln!(
            out,
            "{}",
            if args.json { pooled.json().to_string() } else { format!("all files: {}", pooled.text()) }
        )?;
    }
    Ok(())
}

/// Where the lines of a file go.
fn output_of(path: &Path, args: &BacktestArgs) -> anyhow::Result<Option<PathBuf>> {
    let output = match (&args.output, &args.output_dir) {
        (Some(file), _) => file.clone(),
        (None, Some(directory)) => directory.join(path.file_name().context("a file has a name")?),
        (None, None) => return Ok(None),
    };
    let same = |a: &Path, b: &Path| a.canonicalize().is_ok_and(|a| b.canonicalize().is_ok_and(|b| a == b));
    if same(path, &output) {
        bail!("{}: the output would overwrite the recording", output.display());
    }
    Ok(Some(output))
}

/// How often the recording was sampled: the median distance of its first rows.
fn sampled_us(path: &Path, args: &RecordingArgs) -> anyhow::Result<i64> {
    let mut recording = Recording::open(path, args)?;
    let mut times = Vec::with_capacity(SAMPLED_ROWS);
    while times.len() < SAMPLED_ROWS
        && let Some(row) = recording.next_row()?
    {
        times.push(row.at);
    }
    let mut distances: Vec<i64> =
        times.windows(2).map(|pair| pair[1].us_since(pair[0])).filter(|&distance| distance > 0).collect();
    distances.sort_unstable();
    let Some(&median) = distances.get(distances.len() / 2) else {
        let first = recording.skipped().summary();
        bail!("{}: it has no two good rows of different times. {first}", path.display());
    };
    // A whole number of milliseconds, as the daemon has it.
    Ok((median / 1_000).max(1) * 1_000)
}

fn judge(path: &Path, args: &BacktestArgs, model: Option<Arc<Model>>, lines: Option<Lines>) -> anyhow::Result<Summary> {
    let step_us = match args.step {
        Some(step) => i64::try_from(step.as_micros())?,
        None => sampled_us(path, &args.recording)?,
    };
    if step_us < 1_000 {
        bail!("--step: at least 1 ms is needed");
    }
    let mut recording = Recording::open(path, &args.recording)?;
    let settings = DetectSettings { calibration_steps: args.calibrate_rows, model };
    let mut machine = Machine::new(recording.sensors().to_vec(), settings, step_us, lines);
    while let Some(row) = recording.next_row()? {
        machine.take(&row)?;
    }
    machine.finish(path, recording.skipped().summary())
}

/// One recording's machine.
struct Machine {
    sensors: Vec<SensorId>,
    step_us: i64,
    window: Window,
    detector: Detector,
    lines: Option<Lines>,
    /// Rows that are labelled anomalous and normal, by the step that they are in, until it is judged.
    labels: HashMap<Timestamp, (u64, u64)>,
    faults: BTreeMap<usize, SensorFaultKind>,
    shares: Vec<f32>,
    mono_us: i64,
    rows: u64,
    steps: u64,
    calibration_steps: u64,
    alarms: Vec<Alarm>,
    confusion: Confusion,
}

impl Machine {
    fn new(sensors: Vec<SensorId>, settings: DetectSettings, step_us: i64, lines: Option<Lines>) -> Self {
        let periods = Periods {
            step_us,
            interval_us: INTERVAL_STEPS * step_us,
            lateness_us: LATENESS_STEPS * step_us,
            hold_us: HOLD_STEPS * step_us,
        };
        Self {
            sensors,
            step_us,
            window: Window::new(periods),
            detector: Detector::new(settings, step_us),
            lines,
            labels: HashMap::new(),
            faults: BTreeMap::new(),
            shares: Vec::new(),
            mono_us: i64::MIN,
            rows: 0,
            steps: 0,
            calibration_steps: 0,
            alarms: Vec::new(),
            confusion: Confusion::default(),
        }
    }

    fn take(&mut self, row: &Row) -> anyhow::Result<()> {
        self.rows += 1;
        if let Some(anomalous) = row.anomalous {
            let (bad, good) = self.labels.entry(row.at.floor(self.step_us)).or_default();
            *if anomalous { bad } else { good } += 1;
        }
        // A row arrives when it was measured.
        self.mono_us = self.mono_us.max(row.at.0);
        for (sensor, value) in (0..).zip(&row.values) {
            if let Some(value) = value {
                self.window.push(SensorIx(sensor), row.at, *value, false, self.mono_us, 0);
            }
        }
        self.advance()
    }

    fn advance(&mut self) -> anyhow::Result<()> {
        while let Some((step, _)) = self.window.close_next(self.mono_us) {
            if let Some(step) = step {
                self.judge(&step)?;
            }
        }
        Ok(())
    }

    fn judge(&mut self, step: &Step) -> anyhow::Result<()> {
        let mut events = Vec::new();
        // Before the step: the one that completes calibration is not judged.
        let before = self.detector.present(Mode::Unknown).detector;
        let calibrating = matches!(before, DetectorState::Calibrating { .. });
        self.detector.step(step, Mode::Unknown, &mut events);
        for event in events {
            self.note(event, step.start.plus_us(self.step_us));
        }
        let verdict = self.detector.present(Mode::Unknown);
        let alarm = verdict.detector == DetectorState::Anomalous;
        self.steps += 1;
        self.calibration_steps += u64::from(calibrating);
        if let Some((bad, good)) = self.labels.remove(&step.start)
            && !calibrating
        {
            self.confusion.count(alarm, bad, good);
        }
        if let Some(lines) = &mut self.lines {
            let shares: &[f32] = if alarm { &self.shares } else { &[] };
            let line = Line { at: step.start, score: verdict.score, alarm, calibrating, shares, faults: &self.faults };
            lines.write(&line, &self.sensors)?;
        }
        Ok(())
    }

    fn note(&mut self, event: EventKind, at: Timestamp) {
        match event {
            EventKind::AnomalyOpened(anomaly) => {
                let lead = (0..).zip(&anomaly.shares).max_by(|a, b| a.1.total_cmp(b.1)).map(|(ix, _)| ix);
                let lead = lead.and_then(|ix: usize| self.sensors.get(ix)).cloned();
                self.alarms.push(Alarm { start: anomaly.opened, end: None, lead, score_max: anomaly.score_max });
                self.shares = anomaly.shares;
            }
            EventKind::AnomalyUpdated(anomaly) => {
                if let Some(alarm) = self.alarms.last_mut() {
                    alarm.score_max = anomaly.score_max;
                }
                self.shares = anomaly.shares;
            }
            EventKind::AnomalyClosed(anomaly) => {
                if let Some(alarm) = self.alarms.last_mut() {
                    alarm.end = Some(at);
                    alarm.score_max = anomaly.score_max;
                }
            }
            EventKind::SensorFault(fault) if fault.active => {
                self.faults.insert(usize::from(fault.sensor), fault.kind);
            }
            EventKind::SensorFault(fault) => {
                self.faults.remove(&usize::from(fault.sensor));
            }
        }
    }

    fn finish(mut self, path: &Path, skipped: String) -> anyhow::Result<Summary> {
        // Nothing comes any more: what was measured is judged.
        let latest = self.window.latest();
        while let Some((step, _)) = self.window.close_next_of_all() {
            match step {
                Some(step) if Some(step.start) <= latest => self.judge(&step)?,
                _ => {}
            }
        }
        if let Some(lines) = self.lines {
            lines.finish()?;
        }
        Ok(Summary {
            file: path.display().to_string(),
            judge: self.detector.judge_name(),
            step_us: self.step_us,
            rows: self.rows,
            steps: self.steps,
            calibration_steps: self.calibration_steps,
            alarms: self.alarms,
            confusion: self.confusion,
            skipped,
        })
    }
}

#[cfg(test)]
mod tests;
