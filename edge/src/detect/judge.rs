//! Judges a step: each sensor's level by itself, all sensors together, and whether one of them is itself at fault; and keeps what is
//! found wrong until it is over.
//!
//! While nothing is wrong the levels follow the machine; of what is wrong nothing is learnt.

use std::collections::VecDeque;

use gemba_shared::telemetry::{EventKind, SensorFault, SensorFaultKind, Timestamp};
use serde::{Deserialize, Serialize};

use super::{
    calibration::{Learnt, LearntModel},
    drift::{self, Drift},
    faults::Faults,
    finding::{CALM, Change, Evidence, Finding},
    levels::{Follow, Level, Levels, Usual},
    model::Model,
    pattern::{Course, Limit},
    returning::Returning,
};
use crate::window::Step;

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Judge {
    levels: Levels,
    course: Course,
    /// By sensor.
    findings: Vec<Finding>,
    /// Of all sensors together.
    together: Finding,
    drift: Drift,
    /// The latest steps' bounded deviations of a model's channels.
    recent: VecDeque<Box<[f32]>>,
    /// Steps that the model could not judge.
    #[serde(skip)]
    model_failures: u64,
    /// Of all limits; kept with the labels that it comes of.
    #[serde(skip)]
    width: Width,
    /// Kept by itself.
    #[serde(skip)]
    pub returning: Returning,
}

/// How many times as wide as they were learnt the limits are.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Width(f32);

impl Default for Width {
    fn default() -> Self {
        Self(1.0)
    }
}

/// A step's judgement.
#[derive(Debug)]
pub struct Judged {
    /// 1.0 is the threshold.
    pub score: f32,
    /// By sensor; they sum to one.
    pub shares: Vec<f32>,
}

/// How sensors together stand to their limit, and the part of each channel in that; none of any where nothing was said.
#[derive(Debug, Default)]
struct Together {
    ratio: f32,
    shares: Vec<f32>,
}

impl Judge {
    /// Goes on where calibration ended.
    #[must_use]
    pub fn new(levels: Levels) -> Self {
        Self { findings: vec![Finding::default(); levels.centre.len()], levels, ..Self::default() }
    }

    /// After a pause: what was before it is not smoothed with what comes.
    pub fn reset(&mut self) {
        self.levels.reset();
        self.course.reset();
        self.recent.clear();
    }

    /// What the sensors show now is where they belong, but for those that are at fault themselves.
    pub fn accept(&mut self, values: &[f32], learnt: &Learnt, by_model: bool, faults: &Faults) {
        let (drifting, mut accepted) = (self.drifting(), values.to_vec());
        for (sensor, value) in accepted.iter_mut().enumerate() {
            if faults.is_faulty(sensor) || drifting == Some(sensor) {
                *value = f32::NAN;
            }
        }
        self.returning = Returning::default();
        self.levels.accept(&accepted);
        if let Some(limit) = learnt.limit(by_model) {
            self.course.accept(limit);
        }
        self.reset();
    }

    #[must_use]
    pub const fn levels(&self) -> &Levels {
        &self.levels
    }

    /// The machine stands, and shows this.
    pub fn stand(&mut self, usual: &Usual, values: &[f32]) {
        self.returning.stand(self.levels.deviations(usual, values));
        self.drift.forget();
    }

    /// Another judge than before judges all sensors together.
    pub fn forget_course(&mut self) {
        self.course = Course::default();
        self.recent.clear();
    }

    /// All that was found is over; the sensor's fault that ends with it.
    pub fn end(&mut self) -> Option<EventKind> {
        self.findings.iter_mut().chain([&mut self.together]).for_each(Finding::end);
        self.drift.reset().map(|(sensor, since)| drifting(sensor, since, false))
    }

    #[must_use]
    pub fn is_wrong(&self) -> bool {
        self.together.is_on() || self.findings.iter().any(Finding::is_on)
    }

    /// Whether something has been wrong for so long that it may be the new normal.
    #[must_use]
    pub fn is_lasting(&self) -> bool {
        self.together.is_lasting() || self.findings.iter().any(Finding::is_lasting)
    }

    /// The sensor that drifts away from what the others say.
    #[must_use]
    pub fn drifting(&self) -> Option<usize> {
        self.drift.sensor().map(usize::from)
    }

    #[must_use]
    pub fn model_failures(&self) -> u64 {
        self.model_failures
    }

    /// How many times as wide as they were learnt the limits are.
    #[must_use]
    pub const fn width(&self) -> f32 {
        self.width.0
    }

    pub const fn set_width(&mut self, width: f32) {
        self.width = Width(width);
    }

    /// The score of a step that ends at `at`; `None` with values of less than half of the usable sensors.
    pub fn step(
        &mut self,
        learnt: &Learnt,
        model: Option<&Model>,
        step: &Step,
        faults: &Faults,
        at: Timestamp,
        events: &mut Vec<EventKind>,
    ) -> Option<Judged> {
        let value = |sensor: usize| match step.values.get(sensor) {
            Some(value) if !faults.is_frozen(sensor) => *value,
            _ => f32::NAN,
        };
        let sensors = 0..self.findings.len();
        let mut seen: Vec<Level> =
            sensors.map(|sensor| self.levels.step(&learnt.usual, sensor, value(sensor))).collect();
        let present = seen.iter().filter(|level| !level.is_none()).count();
        if present == 0 || present * 2 < learnt.channels.len() {
            return None;
        }
        self.returning.excuse(&learnt.usual, &mut seen);
        let was_wrong = self.is_wrong();
        let mut row: Vec<f32> = learnt.usual.bounded(&learnt.channels, |sensor| seen[sensor].deviation).collect();
        let apart = self.watch_drift(learnt, &seen, &row, at, events);
        if let Some(sensor) = self.drifting() {
            seen[sensor] = Level::NONE;
            if let Some(place) = learnt.channels.iter().position(|channel| usize::from(*channel) == sensor) {
                row[place] = 0.0;
            }
        }
        let together = match (&learnt.model, model) {
            (Some(of_machine), Some(model)) => self.ask(model, of_machine, row),
            _ => self.compare(learnt, &row),
        };
        let mut together = if apart.ratio > together.ratio { apart } else { together };
        // By 1.0 nothing changes, to the last bit.
        together.ratio /= self.width.0;
        for level in &mut seen {
            level.ratio /= self.width.0;
        }
        self.find_together(together.ratio, learnt.limit(model.is_some()).filter(|_| !was_wrong));
        self.excuse(&seen, faults);
        self.find_alone(&learnt.usual, &seen, together.ratio, was_wrong);
        Some(judged(&learnt.channels, &seen, &together))
    }

    /// What does not belong together any more: one sensor's fault, or else the machine's.
    fn watch_drift(
        &mut self,
        learnt: &Learnt,
        seen: &[Level],
        row: &[f32],
        at: Timestamp,
        events: &mut Vec<EventKind>,
    ) -> Together {
        let Some(belonging) = &learnt.belonging else { return Together::default() };
        // What returns from a stop is not with the others yet.
        if self.returning.is_on() {
            self.drift.forget();
            return Together::default();
        }
        // What is silent does not come back to the others by that.
        if self.drifting().is_some_and(|sensor| seen[sensor].is_none()) {
            return Together::default();
        }
        let is_alone = |sensor: u16| {
            seen.iter().enumerate().all(|(other, level)| other == usize::from(sensor) || level.ratio < 1.0)
        };
        let drift::Said { change, ratio, shares } = self.drift.step(belonging, &learnt.channels, row, at, is_alone);
        events.extend(change.map(|(sensor, since, active)| drifting(sensor, since, active)));
        Together { ratio, shares }
    }

    /// The built-in pattern.
    fn compare(&mut self, learnt: &Learnt, row: &[f32]) -> Together {
        let Some(pattern) = &learnt.pattern else { return Together::default() };
        Together { ratio: pattern.step(row, &mut self.course), shares: pattern.shares(row) }
    }

    /// A model.
    fn ask(&mut self, model: &Model, of_machine: &LearntModel, row: Vec<f32>) -> Together {
        if self.recent.len() >= model.steps() {
            self.recent.pop_front();
        }
        self.recent.push_back(row.into_boxed_slice());
        if self.recent.len() < model.steps() {
            return Together::default();
        }
        match of_machine.judge(self.recent.iter().map(|row| &row[..])) {
            Ok((raw, shares)) => Together { ratio: self.course.ratio(raw * raw, of_machine.limit), shares },
            Err(error) => {
                if self.model_failures == 0 {
                    tracing::warn!(%model, %error, "the model cannot judge a machine: levels alone do");
                }
                self.model_failures += 1;
                Together::default()
            }
        }
    }

    /// Begins or ends what is found of all sensors together; `follows`: the limit that follows the machine while nothing is wrong.
    fn find_together(&mut self, ratio: f32, follows: Option<Limit>) {
        let evidence = Evidence { ratio, calm_below: CALM.sqrt(), deviation: None };
        let change = self.together.step(&evidence);
        if change == Some(Change::Ended) {
            self.findings.iter_mut().for_each(Finding::settle);
        } else if !self.together.is_on()
            && let Some(limit) = follows
        {
            self.course.follow(limit);
        }
    }

    /// What was found of a sensor that is itself at fault by now says nothing of the machine, and its centre stays where it was.
    fn excuse(&mut self, seen: &[Level], faults: &Faults) {
        let drifting = self.drifting();
        for (sensor, finding) in self.findings.iter_mut().enumerate() {
            if seen[sensor].is_none() && finding.is_on() && (faults.is_faulty(sensor) || drifting == Some(sensor)) {
                *finding = Finding::default();
            }
        }
    }

    /// Begins and ends what is found of single sensors, and lets the levels follow where nothing is wrong.
    fn find_alone(&mut self, usual: &Usual, seen: &[Level], ratio_together: f32, was_wrong: bool) {
        for (sensor, (finding, level)) in self.findings.iter_mut().zip(seen).enumerate() {
            if level.is_none() {
                continue;
            }
            let is_settling = finding.is_settling();
            let evidence = Evidence { ratio: level.ratio, calm_below: CALM, deviation: Some(level.middle) };
            if finding.step(&evidence).is_some() || finding.is_on() {
                continue;
            }
            let ratio = level.ratio.max(ratio_together);
            let follow = match (is_settling, self.together.is_on(), was_wrong) {
                (true, ..) => Follow::Settle,
                (false, true, _) => Follow::Stay,
                (false, false, true) => Follow::Warily { ratio },
                (false, false, false) => Follow::Slowly { ratio },
            };
            self.levels.follow(usual, sensor, follow, level.value);
        }
    }
}

fn drifting(sensor: u16, since: Timestamp, active: bool) -> EventKind {
    EventKind::SensorFault(SensorFault { sensor, kind: SensorFaultKind::Drifting, since, active })
}

/// The largest ratio is the score; a sensor's share is its part of the fourth powers, so that the largest decides.
fn judged(channels: &[u16], seen: &[Level], together: &Together) -> Judged {
    let mut shares: Vec<f32> = seen.iter().map(|level| level.ratio.powi(4)).collect();
    for (channel, share) in channels.iter().zip(&together.shares) {
        shares[usize::from(*channel)] += share * together.ratio.powi(4);
    }
    let sum: f32 = shares.iter().sum();
    let present = seen.iter().filter(|level| !level.is_none()).count();
    let even = 1.0 / present.max(1) as f32;
    for (share, level) in shares.iter_mut().zip(seen) {
        *share = match level.is_none() {
            _ if sum > 0.0 => *share / sum,
            true => 0.0,
            false => even,
        };
    }
    let score = seen.iter().fold(together.ratio, |score, level| score.max(level.ratio));
    Judged { score, shares }
}
