//! What a backtest writes: a line for each row, and a summary for each file.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs::File,
    io::{BufWriter, Write},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use gemba_shared::{
    ids::SensorId,
    telemetry::{SensorFaultKind, Timestamp},
};

use super::score::Score;

/// Sensors whose share is below this are left out of a line.
const SHARE_MIN: f32 = 0.01;

/// How things stood after a row.
pub(super) struct Line<'a> {
    pub at: Timestamp,
    pub score: Option<f32>,
    pub alarm: bool,
    pub calibrating: bool,
    /// By sensor, of the anomaly's latest event; empty without one.
    pub shares: &'a [f32],
    pub faults: &'a BTreeMap<usize, SensorFaultKind>,
}

/// A CSV file of rows: `time,score,alarm,calibrating,sensors,sensor_fault`.
pub(super) struct Lines {
    path: PathBuf,
    out: BufWriter<File>,
}

impl Lines {
    pub(super) fn create(path: &Path) -> anyhow::Result<Self> {
        let name = || format!("{}: the output cannot be made", path.display());
        let mut out = BufWriter::new(File::create(path).with_context(name)?);
        writeln!(out, "time,score,alarm,calibrating,sensors,sensor_fault").with_context(name)?;
        Ok(Self { path: path.to_owned(), out })
    }

    pub(super) fn write(&mut self, line: &Line, sensors: &[SensorId]) -> anyhow::Result<()> {
        let name = |ix: usize| sensors.get(ix).map_or("?", SensorId::as_str);
        let mut shares: Vec<(usize, f32)> =
            line.shares.iter().copied().enumerate().filter(|(_, share)| *share >= SHARE_MIN).collect();
        shares.sort_by(|a, b| b.1.total_cmp(&a.1));
        let shares: Vec<_> = shares.into_iter().map(|(ix, share)| format!("{}:{share:.2}", name(ix))).collect();
        let faults: Vec<_> = line.faults.iter().map(|(&ix, kind)| format!("{}:{}", name(ix), kind_of(*kind))).collect();
        let score = line.score.map(|score| format!("{score:.4}")).unwrap_or_default();
        writeln!(
            self.out,
            "{},{score},{},{},{},{}",
            time(line.at),
            u8::from(line.alarm),
            u8::from(line.calibrating),
            shares.join(";"),
            faults.join(";")
        )
        .with_context(|| format!("{}: the output cannot be written", self.path.display()))
    }

    pub(super) fn finish(mut self) -> anyhow::Result<()> {
        self.out.flush().with_context(|| format!("{}: the output cannot be written", self.path.display()))
    }
}

/// An anomaly, from its first step to its last.
pub(super) struct Alarm {
    pub start: Timestamp,
    /// `None`: it was open when the recording ended.
    pub end: Option<Timestamp>,
    /// The sensor with the largest share when it opened.
    pub lead: Option<SensorId>,
    pub score_max: f32,
}

/// A sensor that was itself at fault.
pub(super) struct Fault {
    pub sensor: usize,
    pub kind: SensorFaultKind,
    pub start: Timestamp,
    /// `None`: it was when the recording ended.
    pub end: Option<Timestamp>,
}

/// Rows of a recording.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counted {
    pub all: u64,
    pub calibrating: u64,
    /// After which there was a score.
    pub judged: u64,
    pub in_alarm: u64,
    /// In which the machine was found to be off.
    pub off: u64,
    /// In which there was no calibration, as what it saw was refused.
    pub uncalibrated: u64,
    /// In which too few sensors had values.
    pub blind: u64,
    /// With a time that is not after all before it.
    pub not_in_order: u64,
    /// Of which no value was taken.
    pub empty: u64,
}

/// One file.
pub(super) struct Summary {
    pub file: String,
    pub judge: String,
    pub step_us: i64,
    /// The usual distance of two rows.
    pub sampled_us: i64,
    pub rows: Counted,
    /// Why calibration was refused, if it was, the last time.
    pub refused: Option<String>,
    pub sensors: Vec<SensorId>,
    /// Sensors that were not judged.
    pub left_out: Vec<usize>,
    pub faults: Vec<Fault>,
    pub alarms: Vec<Alarm>,
    /// How often a person would have been asked whether this is the new normal.
    pub shifts: u64,
    pub score: Score,
    /// What could not be read; empty for nothing.
    pub skipped: String,
}

impl Summary {
    pub(super) fn text(&self) -> String {
        let rows = &self.rows;
        let seconds = |rows: u64| rows as f64 * self.sampled_us as f64 / 1e6;
        let mut text = format!(
            "{}: {} rows, {} s in calibration, {} s in alarm ({} alarms); a step is {} s, judged by {}",
            self.file,
            rows.all,
            seconds(rows.calibrating),
            seconds(rows.in_alarm),
            self.alarms.len(),
            self.step_us as f64 / 1e6,
            self.judge
        );
        if rows.off > 0 {
            write!(text, "\n  {} s off, not judged", seconds(rows.off)).expect("a String takes everything");
        }
        match (self.why_not(), &self.refused) {
            (Some(reason), _) => text = text + "\n  nothing was judged: " + &reason,
            (None, Some(reason)) => {
                write!(text, "\n  {} s not judged: {reason}", seconds(rows.uncalibrated))
                    .expect("a String takes everything");
            }
            (None, None) => {}
        }
        if rows.blind > 0 {
            write!(text, "\n  {} s blind: less than half of the sensors had values", seconds(rows.blind))
                .expect("a String takes everything");
        }
        if !self.left_out.is_empty() {
            let names: Vec<_> = self.left_out.iter().map(|sensor| self.name(*sensor)).collect();
            text = text + "\n  left out, as in calibration they never moved or had few values: " + &names.join(", ");
        }
        for alarm in &self.alarms {
            let end = alarm.end.map_or_else(|| "the end".into(), time);
            let lead = alarm.lead.as_ref().map_or("?", SensorId::as_str);
            write!(text, "\n  alarm {} to {end}, led by {lead}, score up to {:.2}", time(alarm.start), alarm.score_max)
                .expect("a String takes everything");
        }
        for fault in &self.faults {
            let (name, kind, start) = (self.name(fault.sensor), kind_of(fault.kind), time(fault.start));
            let end = fault.end.map_or_else(|| "the end".into(), time);
            write!(text, "\n  sensor fault {start} to {end}: {name} {kind}").expect("a String takes everything");
        }
        if !self.score.is_empty() {
            text = text + "\n  " + &self.score.text();
        }
        for (count, what) in [
            (rows.not_in_order, "rows with a time that is not after all before"),
            (rows.empty, "rows without a value that could be taken"),
        ] {
            if count > 0 {
                write!(text, "\n  {count} {what}").expect("a String takes everything");
            }
        }
        if !self.skipped.is_empty() {
            text = text + "\n  " + &self.skipped;
        }
        text
    }

    fn name(&self, sensor: usize) -> &str {
        self.sensors.get(sensor).map_or("?", SensorId::as_str)
    }

    /// Why there is no score at all, if there is none.
    fn why_not(&self) -> Option<String> {
        if self.rows.judged > 0 {
            return None;
        }
        Some(self.refused.clone().unwrap_or_else(|| "the recording ends before calibration does".into()))
    }

    pub(super) fn json(&self) -> String {
        let alarm = |alarm: &Alarm| {
            serde_json::json!({
                "start": time(alarm.start),
                "end": alarm.end.map(time),
                "lead": alarm.lead,
                "score_max": alarm.score_max,
            })
        };
        let fault = |fault: &Fault| {
            serde_json::json!({
                "sensor": self.name(fault.sensor),
                "kind": kind_of(fault.kind),
                "start": time(fault.start),
                "end": fault.end.map(time),
            })
        };
        let seconds = |rows: u64| rows as f64 * self.sampled_us as f64 / 1e6;
        serde_json::json!({
            "file": self.file,
            "judge": self.judge,
            "step_s": self.step_us as f64 / 1e6,
            "rows": self.rows.all,
            "rows_judged": self.rows.judged,
            "rows_not_in_order": self.rows.not_in_order,
            "rows_empty": self.rows.empty,
            "calibrating_s": seconds(self.rows.calibrating),
            "in_alarm_s": seconds(self.rows.in_alarm),
            "off_s": seconds(self.rows.off),
            "uncalibrated_s": seconds(self.rows.uncalibrated),
            "blind_s": seconds(self.rows.blind),
            "left_out": self.left_out.iter().map(|sensor| self.name(*sensor)).collect::<Vec<_>>(),
            "sensor_faults": self.faults.iter().map(fault).collect::<Vec<_>>(),
            "not_judged": self.why_not(),
            "new_normal_asked": self.shifts,
            "alarms": self.alarms.iter().map(alarm).collect::<Vec<_>>(),
            "labels": if self.score.is_empty() { None } else { Some(self.score.json()) },
            "skipped": self.skipped,
        })
        .to_string()
    }
}

const fn kind_of(kind: SensorFaultKind) -> &'static str {
    match kind {
        SensorFaultKind::Frozen => "frozen",
        SensorFaultKind::Missing => "missing",
        SensorFaultKind::Saturated => "saturated",
        SensorFaultKind::Drifting => "drifting",
    }
}

fn time(at: Timestamp) -> String {
    jiff::Timestamp::from_microsecond(at.0).map_or_else(|_| format!("{} us", at.0), |time| time.to_string())
}
