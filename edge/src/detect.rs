//! One machine's detector: it learns what is normal, judges every step, and says when an anomaly or a sensor's fault begins
//! and ends.
//!
//! 1. **Calibration** begins by itself and takes a number of steps in which the machine runs and most sensors have
//!    values (`calibration.rs`). It refuses data in which the machine was plainly off or changing, and goes on with newer ones.
//! 2. Each step is then judged twice: each sensor's level by itself (`levels.rs`), and all together, by an ONNX model where there is one
//!    and it works (`model.rs`), else by the built-in pattern (`pattern.rs`). The *score* is the larger of both; 1.0 is the threshold.
//! 3. What is over its limit is a **finding** (`finding.rs`); while there is any, the anomaly is open (`alarm.rs`), and nothing is learnt of it.
//!    What lasts is a question to a person: new normal?
//! 4. Sensors that freeze, saturate or fall silent are told apart (`faults.rs`), and so are those that drift away from what the
//!    others say (`drift.rs`): they do not count for the machine.
//! 5. What people say of anomalies is remembered, and may make all limits of the machine a little wider (`labels.rs`).
//!
//! A machine that is off (`standstill.rs` finds that where nobody says it), idle or out of service is neither learnt from nor judged (idle is
//! another machine than running); an anomaly that was open stays open until it is judged again, and what cooled meanwhile has time to come
//! back (`returning.rs`). With less than half of its usable sensors the detector is blind.
//!
//! Health is 100 % up to half the threshold, falls to 60 % at the threshold and to 0 % at three times it, linearly
//! in between, of the score smoothed over about ten steps. Its trend says how long the machine has (`life.rs`).
//!
//! No I/O and no clock. State in parts: what changes with every step, what calibration learnt, while it runs its rows, and labels.

use std::sync::Arc;

use gemba_shared::telemetry::{
    Anomaly, Clock, DetectorState, EventKind, Mode, NormalShift, Timestamp, Uncalibrated, Verdict,
};
use serde::{Deserialize, Serialize};

use crate::window::Step;

pub mod alarm;
pub mod calibration;
pub mod commands;
pub mod drift;
pub mod faults;
pub mod finding;
pub mod history;
pub mod judge;
pub mod labels;
pub mod levels;
pub mod life;
pub mod model;
pub mod pattern;
pub mod returning;
pub mod standstill;
pub mod state;

use alarm::{Alarm, Change};
use calibration::{Learnt, Rows};
use faults::Faults;
use history::History;
use judge::{Judge, Judged};
use labels::Labels;
use life::Life;
use model::Model;
use standstill::{Look, Standstill};

/// The name of the built-in detector.
pub const BASELINE: &str = "baseline 3";
/// Steps that are not judged after the machine was off, or silent.
const SETTLE_STEPS: u16 = 10;
/// A pause of more steps than this begins anew with smoothing.
const PAUSE_STEPS: i64 = 5;
/// The weight of a step in the smoothed score that health is made of.
const HEALTH_WEIGHT: f32 = 0.1;
/// The fewest steps that a calibration takes.
pub const CALIBRATION_STEPS_MIN: u32 = 60;

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
    standstill: Standstill,
    /// Steps that may be of a stop, and are judged if they are not.
    waiting: Vec<Step>,
    /// The latest steps' raw values, for events.
    history: History,
    learnt_changed: bool,
    /// Of what was learnt, as it was last written out.
    learnt_bytes: u32,
    /// Calibration ends when it is told to, and not by itself.
    until_told: bool,
    /// What people said of anomalies.
    labels: Labels,
    labels_changed: bool,
    /// What was written out of stops.
    stops_saved: Vec<u8>,
    /// By which clock steps count.
    timeline: Clock,
}

/// What changes with every step.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Core {
    judge: Judge,
    alarm: Alarm,
    /// Whether it was asked if this is the new normal.
    shifted: bool,
    faults: Faults,
    settle: u16,
    last_step: Option<Timestamp>,
    /// Of the last step; `None` if it was not judged.
    score: Option<f32>,
    /// The largest since the last verdict.
    score_max: Option<f32>,
    health_score: Option<f32>,
    life: Life,
    out_of_service: bool,
    /// Counts calibrations, so that parts of different ones are not mixed up.
    serial: u32,
    blind: bool,
    /// Why the last calibration was refused.
    refused: Option<Uncalibrated>,
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
            standstill: Standstill::default(),
            waiting: Vec::new(),
            stops_saved: Vec::new(),
            history: History::default(),
            learnt_changed: false,
            learnt_bytes: 0,
            until_told: false,
            labels: Labels::default(),
            labels_changed: false,
            timeline: Clock::Trusted,
        }
    }

    /// Calibration goes on until [`Detector::end_calibration`].
    pub fn calibrate_until_told(&mut self) {
        self.until_told = true;
    }

    /// Learns from what calibration has seen so far. [`Detector::refusal`] tells why that was of no use, if it was.
    pub fn end_calibration(&mut self) {
        if self.learnt.is_none() {
            self.finish_calibration();
        }
    }

    /// Why the last calibration was refused.
    #[must_use]
    pub fn refusal(&self) -> Option<Uncalibrated> {
        self.core.refused.filter(|_| self.learnt.is_none())
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
        self.core.judge.model_failures()
    }

    /// Time is counted anew from here on, by this clock: what counts by the old is closed, and what was learnt stays.
    pub fn change_time(&mut self, to: Clock, events: &mut Vec<EventKind>) {
        self.timeline = to;
        self.close(events);
        self.core.faults.close(events);
        self.core.last_step = None;
        self.history.clear();
        self.core.judge.reset();
    }

    /// Closes what is open, as if it were over.
    fn close(&mut self, events: &mut Vec<EventKind>) {
        let opened = self.core.alarm.opened();
        if let Some(score) = self.core.alarm.close() {
            events.push(EventKind::AnomalyClosed(self.anomaly_without_judgement(score)));
        }
        if std::mem::take(&mut self.core.shifted)
            && let Some(since) = opened
        {
            events.push(EventKind::NormalShifted(NormalShift { since, shares: Vec::new(), active: false }));
        }
        events.extend(self.core.judge.end());
    }

    fn start_calibration(&mut self) {
        self.learnt = None;
        self.rows = Rows::default();
        let serial = self.core.serial.wrapping_add(1);
        self.core = Core { serial, out_of_service: self.core.out_of_service, ..Core::default() };
        (self.standstill, self.waiting) = Default::default();
        self.labels.begin_anew();
        self.labels_changed = true;
    }

    /// Judges a step; what begins or ends with it is appended to `events`.
    pub fn step(&mut self, step: &Step, mode: Mode, events: &mut Vec<EventKind>) {
        let paused = self.core.last_step.is_none_or(|last| step.start.us_since(last) > PAUSE_STEPS * self.step_us);
        self.core.last_step = Some(step.start);
        if paused {
            self.core.judge.reset();
            self.waiting.clear();
        }
        self.history.push(step);
        self.core.score = None;
        if matches!(mode, Mode::Off | Mode::Idle) || self.core.out_of_service {
            self.rest(step);
            return;
        }
        let Some(look) = self.look(step, mode) else {
            // What comes after a pause is not usual yet.
            if self.core.settle > 0 {
                self.core.settle -= 1;
                return;
            }
            self.core.faults.learn(step);
            self.rows.push(&step.values);
            if !self.until_told && self.rows.len() >= self.calibration_steps() {
                self.finish_calibration();
            }
            return;
        };
        match look {
            Look::Off => self.rest(step),
            Look::Waits => self.waiting.push(step.clone()),
            Look::Runs => {
                for waited in std::mem::take(&mut self.waiting) {
                    self.judge(&waited, events);
                }
                self.judge(step, events);
            }
        }
    }

    /// What the step is, where nobody says what the machine does; `None` while it is calibrated.
    fn look(&mut self, step: &Step, mode: Mode) -> Option<Look> {
        let Learnt { usual, channels, .. } = self.learnt.as_ref()?;
        if mode != Mode::Unknown {
            self.standstill = Standstill::default();
            return Some(Look::Runs);
        }
        let (levels, may_wait) = (self.core.judge.levels(), !self.core.alarm.is_open());
        Some(self.standstill.step(usual, levels, channels, &step.values, may_wait))
    }

    /// A step in which the machine is neither judged nor learnt from.
    fn rest(&mut self, step: &Step) {
        self.waiting.clear();
        self.core.settle = SETTLE_STEPS;
        self.core.judge.reset();
        if let Some(learnt) = &self.learnt {
            self.core.judge.stand(&learnt.usual, &step.values);
        }
    }

    fn judge(&mut self, step: &Step, events: &mut Vec<EventKind>) {
        let Some(learnt) = self.learnt.take() else { return };
        let end = step.start.plus_us(self.step_us);
        self.core.faults.step(step, self.step_us, &learnt.usual, self.settings.calibration_steps, events);
        let judged = if self.core.settle > 0 {
            self.core.settle -= 1;
            None
        } else {
            let model = self.settings.model.as_deref();
            let judged = self.core.judge.step(&learnt, model, step, &self.core.faults, end, events);
            self.core.blind = judged.is_none();
            judged
        };
        self.learnt = Some(learnt);
        if let Some(judged) = judged {
            self.take(&judged, end, events);
        }
    }

    fn calibration_steps(&self) -> usize {
        self.settings.calibration_steps.max(CALIBRATION_STEPS_MIN) as usize
    }

    fn finish_calibration(&mut self) {
        match Learnt::from_rows(&self.rows, self.settings.model.as_deref()) {
            Ok((learnt, levels)) => {
                (self.core.judge, self.core.refused) = (Judge::new(levels), None);
                self.learnt = Some(learnt);
                self.learnt_changed = true;
                self.rows = Rows::default();
            }
            Err(reason) => {
                if self.core.refused != Some(reason) {
                    tracing::warn!(?reason, "a machine's calibration is refused; it goes on with newer values");
                }
                self.core.refused = Some(reason);
                self.rows.forget_half();
            }
        }
        self.core.serial = self.core.serial.wrapping_add(1);
    }

    fn take(&mut self, judged: &Judged, at: Timestamp, events: &mut Vec<EventKind>) {
        let score = judged.score;
        self.core.score = Some(score);
        self.core.score_max = Some(self.core.score_max.map_or(score, |max| max.max(score)));
        let health = self.core.health_score.get_or_insert(score);
        *health += HEALTH_WEIGHT * (score.min(10.0) - *health);
        self.core.life.push(*health, self.step_us);
        let (is_wrong, is_lasting) = (self.core.judge.is_wrong(), self.core.judge.is_lasting());
        let shifted = |since, active| NormalShift { since, shares: judged.shares.clone(), active };
        let change = self.core.alarm.step(at, score, is_wrong);
        if let Some(opened) = self.core.alarm.opened() {
            self.labels_changed |= self.labels.saw(self.timeline, opened, score * self.core.judge.width());
        }
        let Some(change) = change else {
            if is_lasting
                && !self.core.shifted
                && let Some(since) = self.core.alarm.opened()
            {
                self.core.shifted = true;
                events.push(EventKind::NormalShifted(shifted(since, true)));
            }
            return;
        };
        let (opened, score_max) = change.anomaly();
        let anomaly = Anomaly {
            opened,
            score,
            score_max,
            threshold: self.threshold(),
            shares: judged.shares.clone(),
            model: self.judge_name(),
            window: self.history.window(&judged.shares, self.step_us),
        };
        events.push(match change {
            Change::Opened(..) => EventKind::AnomalyOpened(anomaly),
            Change::Updated(..) => EventKind::AnomalyUpdated(anomaly),
            Change::Closed(..) => EventKind::AnomalyClosed(anomaly),
        });
        if matches!(change, Change::Closed(..)) && std::mem::take(&mut self.core.shifted) {
            events.push(EventKind::NormalShifted(shifted(opened, false)));
        }
    }

    /// What counts as 1.0, in the model's own terms; the built-in detector's are shares of its limits as they were learnt.
    fn threshold(&self) -> f32 {
        let learnt = self.learnt.as_ref().and_then(|learnt| learnt.model.as_ref()).map_or(1.0, |model| model.threshold);
        learnt * self.core.judge.width()
    }

    fn anomaly_without_judgement(&self, (opened, score_max): (Timestamp, f32)) -> Anomaly {
        Anomaly {
            opened,
            score: self.core.score.unwrap_or_default(),
            score_max,
            threshold: self.threshold(),
            shares: Vec::new(),
            model: self.judge_name(),
            window: None,
        }
    }

    /// Whether the sensors show that the machine is switched off, though nobody says so.
    #[must_use]
    pub const fn is_off(&self) -> bool {
        self.standstill.is_off()
    }

    /// Whether the sensor is judged: one that never moved in calibration, or was mostly away, is not.
    #[must_use]
    pub fn judges(&self, sensor: usize) -> bool {
        let known = |learnt: &Learnt| learnt.channels.iter().any(|channel| usize::from(*channel) == sensor);
        self.learnt.as_ref().is_none_or(known)
    }

    /// How things stand; the largest score since this was last called is in it.
    pub fn verdict(&mut self, mode: Mode) -> Verdict {
        let score = self.core.score_max.take();
        Verdict { score, ..self.present(mode) }
    }

    /// How things stand, with the latest score.
    #[must_use]
    pub fn present(&self, mode: Mode) -> Verdict {
        let detector = match (&self.learnt, self.core.refused) {
            (None, Some(reason)) => DetectorState::Uncalibrated { reason },
            (None, None) => DetectorState::Calibrating { percent: self.calibration_percent() },
            _ if self.core.alarm.is_open() => DetectorState::Anomalous,
            _ if self.core.blind => DetectorState::Blind,
            _ => DetectorState::Watching,
        };
        let judged = self.core.score.is_some();
        let health_percent = self.core.health_score.filter(|_| judged).map(health_percent);
        let remaining = self.core.life.remaining().filter(|_| judged);
        Verdict { detector, score: self.core.score, health_percent, mode, remaining }
    }

    fn calibration_percent(&self) -> u8 {
        u8::try_from(self.rows.len() * 100 / self.calibration_steps()).unwrap_or(100).min(99)
    }

    /// Whether the sensor's values are known to be wrong at present.
    #[must_use]
    pub fn is_faulty(&self, sensor: usize) -> bool {
        self.core.faults.is_frozen(sensor) || self.core.judge.drifting() == Some(sensor)
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
