//! Runs recordings through the very same window and detector as the daemon, as fast as they can be read.
//!
//! Each file is a machine of its own: it calibrates on its first rows and is judged on the rest. A line of output
//! for each row, a summary for each file; with a label column, how often the alarm was right.
//!
//! A row arrives when it was measured, and its line tells how things stood then: nothing of a later row is in it. A step
//! ends with the first row behind it; where rows come at even distances, with the last one that is due in it, so that a row
//! that is a step of its own is judged at once. The daemon does not know what is due: it tells the same one step and the lateness later.

mod output;
mod score;

use std::{
    collections::BTreeMap,
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, bail};
use clap::Args;
use gemba_shared::{
    ids::SensorId,
    telemetry::{DetectorState, EventKind, Mode, SensorFaultKind, Timestamp, Uncalibrated},
};

use crate::{
    detect::{DetectSettings, Detector, model::Model},
    publisher::duration,
    reading::SensorIx,
    recording::{Recording, RecordingArgs, Row},
    window::{Periods, Step, Taken, Window},
};
use output::{Alarm, Counted, Fault, Line, Lines, Summary};
use score::Score;

/// Rows whose distances say how often a recording was sampled.
const SAMPLED_ROWS: usize = 1_000;
/// In steps: an interval, and how long a value is held.
const INTERVAL_STEPS: i64 = 10;
const HOLD_STEPS: i64 = 30;

/// `gemba-edge backtest`
#[derive(Debug, Args)]
pub struct BacktestArgs {
    /// CSV files: the first line names the columns, one of them is the time
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    recording: RecordingArgs,
    /// Calibration sees the first N rows and no others, and nothing of them is scored. By default it takes as long as it
    /// does in the daemon, and passes over rows in which the machine plainly changes
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(60..))]
    calibrate_rows: Option<u64>,
    /// The detector's sampling period; by default as often as the recording was sampled
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    step: Option<Duration>,
    /// The model that judges; the built-in baseline by default
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// Where models lie, a folder each
    #[arg(long, value_name = "DIRECTORY", default_value = "models")]
    models_dir: PathBuf,
    /// Write a line for each row of the one file here, as CSV
    #[arg(long, value_name = "FILE", conflicts_with = "output_dir")]
    output: Option<PathBuf>,
    /// Write a line for each row of each file into a file of the same name here
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
    let mut pooled = Score::default();
    for path in &args.files {
        let lines = match output_of(path, args)? {
            Some(path) => Some(Lines::create(&path)?),
            None => None,
        };
        let summary = judge(path, args, model.clone(), lines)?;
        pooled.add(&summary.score);
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

/// How a recording was sampled.
#[derive(Debug, Clone, Copy)]
struct Sampling {
    /// The median distance of its first rows, microseconds.
    period_us: i64,
    /// Whether all these distances are whole periods.
    is_even: bool,
}

impl Sampling {
    fn of(path: &Path, args: &RecordingArgs) -> anyhow::Result<Self> {
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
            let why = match (times.first(), times.last(), recording.skipped().first.is_some()) {
                (None, None, false) => "it has a header and no more",
                (Some(first), Some(last), _) if last < first => "its times go backward: sort its rows by time",
                _ => "it has no two good rows of different times",
            };
            let skipped = recording.skipped().summary();
            bail!("{}: {why}{}{skipped}", path.display(), if skipped.is_empty() { "" } else { "; " });
        };
        // A whole number of milliseconds, as the daemon has it.
        let period_us = (median / 1_000).max(1) * 1_000;
        Ok(Self { period_us, is_even: distances.iter().all(|distance| distance % period_us == 0) })
    }

    /// Whether no further row is due in this row's step.
    fn ends_step(self, at: Timestamp, step_us: i64) -> bool {
        self.is_even && at.plus_us(self.period_us) >= at.floor(step_us).plus_us(step_us)
    }
}

fn judge(path: &Path, args: &BacktestArgs, model: Option<Arc<Model>>, lines: Option<Lines>) -> anyhow::Result<Summary> {
    let sampling = Sampling::of(path, &args.recording)?;
    let step_us = match args.step {
        Some(step) => i64::try_from(step.as_micros())?,
        None => sampling.period_us,
    };
    if step_us < 1_000 {
        bail!("--step: at least 1 ms is needed");
    }
    let mut recording = Recording::open(path, &args.recording)?;
    let settings = DetectSettings { model, ..DetectSettings::default() };
    let mut machine = Machine::new(recording.sensors().to_vec(), settings, step_us, sampling, args.calibrate_rows);
    machine.lines = lines;
    while let Some(row) = recording.next_row()? {
        machine.take(&row)?;
    }
    machine.finish(path, recording.skipped().summary())
}

/// One recording's machine.
struct Machine {
    sensors: Vec<SensorId>,
    step_us: i64,
    sampling: Sampling,
    calibrate_rows: Option<u64>,
    window: Window,
    detector: Detector,
    lines: Option<Lines>,
    faults: BTreeMap<usize, SensorFaultKind>,
    all_faults: Vec<Fault>,
    /// Why calibration was refused, the last time.
    refused: Option<Uncalibrated>,
    shares: Vec<f32>,
    mono_us: i64,
    rows: Counted,
    alarms: Vec<Alarm>,
    /// How often a person would have been asked whether this is the new normal.
    shifts: u64,
    score: Score,
}

impl Machine {
    fn new(
        sensors: Vec<SensorId>,
        settings: DetectSettings,
        step_us: i64,
        sampling: Sampling,
        calibrate_rows: Option<u64>,
    ) -> Self {
        let periods =
            Periods { step_us, interval_us: INTERVAL_STEPS * step_us, lateness_us: 0, hold_us: HOLD_STEPS * step_us };
        let mut detector = Detector::new(settings, step_us);
        if calibrate_rows.is_some() {
            detector.calibrate_until_told();
        }
        Self {
            sensors,
            step_us,
            sampling,
            calibrate_rows,
            window: Window::new(periods),
            detector,
            lines: None,
            faults: BTreeMap::new(),
            all_faults: Vec::new(),
            refused: None,
            shares: Vec::new(),
            mono_us: i64::MIN,
            rows: Counted::default(),
            alarms: Vec::new(),
            shifts: 0,
            score: Score::default(),
        }
    }

    fn take(&mut self, row: &Row) -> anyhow::Result<()> {
        if self.calibrate_rows == Some(self.rows.all) {
            self.end_calibration();
        }
        self.rows.all += 1;
        // A row arrives when it was measured.
        let is_back = row.at.0 <= self.mono_us;
        self.mono_us = self.mono_us.max(row.at.0);
        let mut taken = 0;
        for (sensor, value) in (0..).zip(&row.values) {
            if let Some(value) = value
                && self.window.push(SensorIx(sensor), row.at, *value, false, self.mono_us, 0) == Taken::Counted
            {
                taken += 1;
            }
        }
        self.rows.not_in_order += u64::from(is_back);
        self.rows.empty += u64::from(taken == 0);
        while let Some((step, _)) = self.window.close_next(self.mono_us) {
            self.judge(step.as_ref());
        }
        // The row with which calibration ends is one of its rows.
        let calibrating = self.is_calibrating();
        if !is_back && self.sampling.ends_step(row.at, self.step_us) {
            self.end_steps();
        }
        self.tell(row, calibrating)
    }

    fn is_calibrating(&self) -> bool {
        match self.calibrate_rows {
            Some(rows) => self.rows.all <= rows,
            None => matches!(self.detector.present(Mode::Unknown).detector, DetectorState::Calibrating { .. }),
        }
    }

    /// Lets calibration see what is there, and nothing more.
    fn end_calibration(&mut self) {
        self.end_steps();
        self.detector.end_calibration();
    }

    fn end_steps(&mut self) {
        while let Some((step, _)) = self.window.close_next_of_all_steps() {
            self.judge(step.as_ref());
        }
    }

    fn judge(&mut self, step: Option<&Step>) {
        let Some(step) = step else { return };
        let mut events = Vec::new();
        self.detector.step(step, Mode::Unknown, &mut events);
        for event in events {
            self.note(event, step.start.plus_us(self.step_us));
        }
    }

    /// How things stand after a row.
    fn tell(&mut self, row: &Row, calibrating: bool) -> anyhow::Result<()> {
        let verdict = self.detector.present(Mode::Unknown);
        let alarm = verdict.detector == DetectorState::Anomalous;
        self.rows.calibrating += u64::from(calibrating);
        self.rows.in_alarm += u64::from(alarm);
        self.rows.judged += u64::from(verdict.score.is_some());
        self.rows.blind += u64::from(verdict.detector == DetectorState::Blind);
        if let DetectorState::Uncalibrated { reason } = verdict.detector {
            self.refused = Some(reason);
            self.rows.uncalibrated += u64::from(!calibrating);
        }
        self.rows.off += u64::from(self.detector.is_off());
        if let (Some(anomalous), false) = (row.anomalous, calibrating) {
            self.score.count(row.at, alarm, anomalous, self.sampling.period_us);
        }
        if let Some(lines) = &mut self.lines {
            let shares: &[f32] = if alarm { &self.shares } else { &[] };
            let score = verdict.score.filter(|_| !calibrating);
            let line = Line { at: row.at, score, alarm, calibrating, shares, faults: &self.faults };
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
                let sensor = usize::from(fault.sensor);
                self.faults.insert(sensor, fault.kind);
                self.all_faults.push(Fault { sensor, kind: fault.kind, start: at, end: None });
            }
            EventKind::SensorFault(fault) => {
                let sensor = usize::from(fault.sensor);
                self.faults.remove(&sensor);
                let is_it = |known: &&mut Fault| (known.sensor, known.kind) == (sensor, fault.kind);
                if let Some(known) = self.all_faults.iter_mut().rev().find(is_it) {
                    known.end = Some(at);
                }
            }
            EventKind::NormalShifted(shift) => self.shifts += u64::from(shift.active),
        }
    }

    fn finish(self, path: &Path, skipped: String) -> anyhow::Result<Summary> {
        if let Some(lines) = self.lines {
            lines.finish()?;
        }
        let left_out = (0..self.sensors.len()).filter(|sensor| !self.detector.judges(*sensor)).collect();
        Ok(Summary {
            file: path.display().to_string(),
            judge: self.detector.judge_name(),
            step_us: self.step_us,
            sampled_us: self.sampling.period_us,
            rows: self.rows,
            refused: self.refused.or(self.detector.refusal()).map(|reason| format!("not calibrated: {reason}")),
            left_out,
            faults: self.all_faults,
            sensors: self.sensors,
            alarms: self.alarms,
            shifts: self.shifts,
            score: self.score,
            skipped,
        })
    }
}

#[cfg(test)]
mod tests;
