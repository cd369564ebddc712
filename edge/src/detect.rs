//! One machine's detector: it learns what is normal, judges every step, and says when an anomaly or a sensor's fault begins
//! and ends.
//!
//! 1. **Calibration** begins by itself and takes a number of steps in which the machine runs and most sensors have
//!    values (`calibration.rs`).
//! 2. Each step then gets a *score*, 1.0 being the threshold: by an ONNX model where there is one and it works
//!    (`model.rs`), else by the built-in robust baseline (`baseline.rs`).
//! 3. Scores open and close the **alarm** with hysteresis (`alarm.rs`). While it is open nothing is learnt.
//! 4. Sensors that freeze or fall silent are told apart (`faults.rs`).
//!
//! A machine that is off or out of service is not judged; an anomaly that was open stays open until it is judged again. With
//! less than half of its usable sensors the detector is blind.
//!
//! Health is 100 % up to half the threshold, falls to 60 % at the threshold and to 0 % at three times it, linearly
//! in between, of the score smoothed over about ten steps.
//!
//! No I/O and no clock. State in parts: what changes with every step, what calibration learnt, and while it runs its rows.

use std::{collections::VecDeque, sync::Arc};

use gemba_shared::telemetry::{
    Anomaly, DetectorState, EventKind, Mode, RawWindow, Timestamp, Verdict, WINDOW_SENSORS_MAX, WINDOW_STEPS_MAX,
};
use serde::{Deserialize, Serialize};

use crate::window::Step;

pub mod alarm;
pub mod baseline;
pub mod calibration;
pub mod faults;
pub mod model;
pub mod state;

use alarm::{Alarm, Change};
use baseline::Smooth;
use calibration::{Learnt, Rows};
use faults::Faults;
use model::Model;

/// The name of the built-in detector.
pub const BASELINE: &str = "baseline 1";
/// Steps that are not judged after the machine was off, or silent.
const SETTLE_STEPS: u16 = 10;
/// A pause of more steps than this begins anew with smoothing.
const PAUSE_STEPS: i64 = 5;
/// The weight of a step in the smoothed score that health is made of.
const HEALTH_WEIGHT: f32 = 0.1;

/// How one machine is judged.
#[derive(Debug, Clone)]
pub struct DetectSettings {
    /// Steps that calibration takes; at least 60.
    pub calibration_steps: u32,
    /// The model; without one the baseline judges.
    pub model: Option<Arc<Model>>,
}

impl Default for DetectSettings {
    fn default() -> Self {
        Self { calibration_steps: 300, model: None }
    }
}

#[derive(Debug)]
pub struct Detector {
    settings: DetectSettings,
    step_us: i64,
    core: Core,
    /// While calibrating.
    rows: Rows,
    learnt: Option<Learnt>,
    /// The latest steps' raw values, for events and for the model's window.
    history: VecDeque<(Timestamp, Box<[f32]>)>,
    /// Steps that the model could not judge.
    model_failures: u64,
    learnt_changed: bool,
    /// Of what was learnt, as it was last written out.
    learnt_bytes: u32,
}

/// What changes with every step.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Core {
    smooth: Smooth,
    alarm: Alarm,
    faults: Faults,
    settle: u16,
    last_step: Option<Timestamp>,
    /// Of the last step; `None` if it was not judged.
    score: Option<f32>,
    /// The largest since the last verdict.
    score_max: Option<f32>,
    health_score: Option<f32>,
    out_of_service: bool,
    /// Counts calibrations, so that parts of different ones are not mixed up.
    serial: u32,
    blind: bool,
}

/// A step's judgement.
struct Judged {
    score: f32,
    threshold: f32,
    /// By sensor; they sum to one.
    shares: Vec<f32>,
    model: String,
}

impl Detector {
    /// `step_us`: the sampling period.
    #[must_use]
    pub fn new(settings: DetectSettings, step_us: i64) -> Self {
        Self {
            settings,
            step_us,
            core: Core::default(),
            rows: Rows::default(),
            learnt: None,
            history: VecDeque::with_capacity(WINDOW_STEPS_MAX),
            model_failures: 0,
            learnt_changed: false,
            learnt_bytes: 0,
        }
    }

    /// The model that judges: its name and version.
    #[must_use]
    pub fn judge_name(&self) -> String {
        match &self.settings.model {
            Some(model) if self.learnt.as_ref().is_none_or(|learnt| learnt.model.is_some()) => model.to_string(),
            _ => BASELINE.to_owned(),
        }
    }

    /// Steps that the model could not judge, so that the baseline did.
    #[must_use]
    pub fn model_failures(&self) -> u64 {
        self.model_failures
    }

    /// Learns anew what is normal. An open anomaly is closed.
    pub fn recalibrate(&mut self, at: Timestamp, events: &mut Vec<EventKind>) {
        if let Some(score) = self.core.alarm.close() {
            events.push(EventKind::AnomalyClosed(self.anomaly_without_judgement(score)));
        }
        tracing::info!(at = at.as_millis(), "a machine is calibrated anew");
        self.start_calibration();
    }

    /// Time is counted anew from here on: what counts by the old is closed, and what was learnt stays.
    pub fn change_time(&mut self, events: &mut Vec<EventKind>) {
        if let Some(score) = self.core.alarm.close() {
            events.push(EventKind::AnomalyClosed(self.anomaly_without_judgement(score)));
        }
        self.core.faults.close(events);
        self.core.last_step = None;
        self.history.clear();
    }

    /// Judges by other settings from now on. Where another model is to judge, or the steps are others, what was learnt is of no use:
    /// calibration begins anew, and an open anomaly is closed.
    pub fn reconfigure(&mut self, settings: DetectSettings, step_us: i64, at: Timestamp, events: &mut Vec<EventKind>) {
        let name = |settings: &DetectSettings| settings.model.as_ref().map(ToString::to_string);
        if step_us != self.step_us || name(&settings) != name(&self.settings) {
            self.recalibrate(at, events);
            self.history.clear();
        }
        (self.settings, self.step_us) = (settings, step_us);
    }

    fn start_calibration(&mut self) {
        self.learnt = None;
        self.rows = Rows::default();
        let serial = self.core.serial.wrapping_add(1);
        self.core = Core { serial, out_of_service: self.core.out_of_service, ..Core::default() };
    }

    /// Takes the machine out of judgement, or back in.
    pub fn set_out_of_service(&mut self, out: bool) {
        self.core.out_of_service = out;
    }

    /// Judges a step; what begins or ends with it is appended to `events`.
    pub fn step(&mut self, step: &Step, mode: Mode, events: &mut Vec<EventKind>) {
        let paused = self.core.last_step.is_none_or(|last| step.start.us_since(last) > PAUSE_STEPS * self.step_us);
        self.core.last_step = Some(step.start);
        if paused {
            self.core.smooth.reset();
        }
        self.remember(step);
        self.core.score = None;
        if mode == Mode::Off || self.core.out_of_service {
            self.core.settle = SETTLE_STEPS;
            self.core.smooth.reset();
            return;
        }
        let smooth = self.core.smooth.push(&step.values);
        let end = step.start.plus_us(self.step_us);
        if self.learnt.is_none() {
            self.core.faults.learn(step);
            self.rows.push(&step.values);
            if self.rows.len() >= self.settings.calibration_steps.max(60) as usize {
                self.finish_calibration();
            }
            return;
        }
        if let Some(learnt) = &self.learnt {
            self.core.faults.step(step, self.step_us, learnt, self.settings.calibration_steps, events);
        }
        if self.core.settle > 0 {
            self.core.settle -= 1;
            return;
        }
        let judged = self.judge(&smooth);
        self.core.blind = judged.is_none();
        let Some(judged) = judged else { return };
        self.take(&judged, end, events);
        if let Some(learnt) = &mut self.learnt
            && !self.core.alarm.is_open()
            && judged.score < alarm::CLOSE_BELOW
        {
            learnt.baseline.drift(&mut self.core.smooth.center, &step.values);
        }
    }

    fn remember(&mut self, step: &Step) {
        if self.history.len() == WINDOW_STEPS_MAX {
            self.history.pop_front();
        }
        self.history.push_back((step.start, step.values.clone().into_boxed_slice()));
    }

    fn finish_calibration(&mut self) {
        let learnt = Learnt::from_rows(&self.rows, self.settings.model.as_deref());
        self.core.smooth.center.clone_from(&learnt.baseline.median);
        self.learnt = Some(learnt);
        self.learnt_changed = true;
        self.rows = Rows::default();
        self.core.serial = self.core.serial.wrapping_add(1);
    }

    fn judge(&mut self, smooth: &[f32]) -> Option<Judged> {
        let learnt = self.learnt.as_ref()?;
        let (raw, shares) = learnt.baseline.judge(&self.core.smooth.center, smooth)?;
        if let (Some(model), Some(loaded)) = (&learnt.model, &self.settings.model)
            && let Some(window) = model.window(loaded.steps(), self.history.iter().map(|(_, row)| &row[..]))
        {
            match model.judge(&window, smooth.len()) {
                Ok((raw, shares)) => {
                    let score = raw / model.threshold;
                    return Some(Judged { score, threshold: model.threshold, shares, model: loaded.to_string() });
                }
                Err(error) => {
                    if self.model_failures == 0 {
                        tracing::warn!(model = %loaded, %error, "the model cannot judge a machine: the baseline does");
                    }
                    self.model_failures += 1;
                }
            }
        }
        let threshold = learnt.baseline.threshold;
        Some(Judged { score: raw / threshold, threshold, shares, model: BASELINE.to_owned() })
    }

    fn take(&mut self, judged: &Judged, at: Timestamp, events: &mut Vec<EventKind>) {
        let score = judged.score;
        self.core.score = Some(score);
        self.core.score_max = Some(self.core.score_max.map_or(score, |max| max.max(score)));
        let health = self.core.health_score.get_or_insert(score);
        *health += HEALTH_WEIGHT * (score.min(10.0) - *health);
        let Some(change) = self.core.alarm.step(at, score) else { return };
        let (opened, score_max) = change.anomaly();
        let anomaly = Anomaly {
            opened,
            score,
            score_max,
            threshold: judged.threshold,
            shares: judged.shares.clone(),
            model: judged.model.clone(),
            window: self.raw_window(&judged.shares),
        };
        events.push(match change {
            Change::Opened(..) => EventKind::AnomalyOpened(anomaly),
            Change::Updated(..) => EventKind::AnomalyUpdated(anomaly),
            Change::Closed(..) => EventKind::AnomalyClosed(anomaly),
        });
    }

    fn anomaly_without_judgement(&self, (opened, score_max): (Timestamp, f32)) -> Anomaly {
        let learnt = self.learnt.as_ref();
        Anomaly {
            opened,
            score: self.core.score.unwrap_or_default(),
            score_max,
            threshold: learnt.map_or(0.0, |learnt| learnt.baseline.threshold),
            shares: Vec::new(),
            model: self.judge_name(),
            window: None,
        }
    }

    fn raw_window(&self, shares: &[f32]) -> Option<RawWindow> {
        let mut sensors: Vec<u16> = (0..).zip(shares).filter(|(_, share)| **share > 0.0).map(|(ix, _)| ix).collect();
        sensors.sort_by(|a, b| shares[usize::from(*b)].total_cmp(&shares[usize::from(*a)]));
        sensors.truncate(WINDOW_SENSORS_MAX);
        // After a pause the rows before it are not of this window.
        let (last, _) = self.history.back()?;
        let mut rows = 0_i64;
        for (start, _) in self.history.iter().rev() {
            if *start != last.plus_us(-rows * self.step_us) {
                break;
            }
            rows += 1;
        }
        let rows = usize::try_from(rows).unwrap_or(0);
        let skipped = self.history.len() - rows;
        let values = self.history.iter().skip(skipped).flat_map(|(_, row)| {
            sensors.iter().map(|ix| row.get(usize::from(*ix)).copied().unwrap_or(f32::NAN)).collect::<Vec<_>>()
        });
        Some(RawWindow {
            step_ms: u32::try_from(self.step_us / 1_000).unwrap_or(u32::MAX),
            first: self.history.get(skipped)?.0,
            values: values.collect(),
            sensors,
        })
    }

    /// How things stand; the largest score since this was last called is in it.
    pub fn verdict(&mut self, mode: Mode) -> Verdict {
        let score = self.core.score_max.take();
        Verdict { score, ..self.present(mode) }
    }

    /// How things stand, with the latest score.
    #[must_use]
    pub fn present(&self, mode: Mode) -> Verdict {
        let detector = if self.learnt.is_none() {
            DetectorState::Calibrating { percent: self.calibration_percent() }
        } else if self.core.alarm.is_open() {
            DetectorState::Anomalous
        } else if self.core.blind || self.learnt.as_ref().is_some_and(|learnt| learnt.baseline.usable() == 0) {
            DetectorState::Blind
        } else {
            DetectorState::Watching
        };
        let health_percent = self.core.health_score.filter(|_| self.core.score.is_some()).map(health_percent);
        Verdict { detector, score: self.core.score, health_percent, mode }
    }

    fn calibration_percent(&self) -> u8 {
        let steps = self.settings.calibration_steps.max(60) as usize;
        u8::try_from(self.rows.len() * 100 / steps).unwrap_or(100).min(99)
    }

    /// Whether the sensor's values are known to be wrong at present.
    #[must_use]
    pub fn is_faulty(&self, sensor: usize) -> bool {
        self.core.faults.is_frozen(sensor)
    }
}

/// See the head of this file.
fn health_percent(score: f32) -> f32 {
    match score {
        s if s <= 0.5 => 100.0,
        s if s <= 1.0 => 100.0 - 80.0 * (s - 0.5),
        s => (60.0 - 30.0 * (s - 1.0)).max(0.0),
    }
}

#[cfg(test)]
mod tests;
