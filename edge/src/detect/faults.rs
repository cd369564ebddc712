//! Sensors that are themselves at fault.
//!
//! - **Frozen**: it goes on being measured, and has given exactly the same value for more than five times its longest such
//!   run in calibration and 60 steps more. Not judged where a run took a quarter of the calibration or more: such a
//!   sensor is still by nature.
//! - **Saturated**: the same, where that value is beyond all that it ever gave before: it is at the end of its range.
//! - **Missing**: no value for longer than one may be held, while others of the machine have values.

use gemba_shared::telemetry::{EventKind, SensorFault, SensorFaultKind, Timestamp};
use serde::{Deserialize, Serialize};

use super::levels::Usual;
use crate::window::Step;

const FROZEN_FACTOR: u32 = 5;
const FROZEN_STEPS: u32 = 60;

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Faults(Vec<Watch>);

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Watch {
    value: f32,
    /// Steps measured in a row with this value.
    run: u32,
    /// The longest run in calibration.
    longest: u32,
    /// The start of the run.
    since: Timestamp,
    /// The least and the largest value before the run.
    range: Option<(f32, f32)>,
    frozen: Option<Timestamp>,
    saturated: Option<Timestamp>,
    missing: Option<Timestamp>,
}

impl Faults {
    #[must_use]
    pub fn is_frozen(&self, sensor: usize) -> bool {
        self.0.get(sensor).is_some_and(|watch| watch.frozen.is_some() || watch.saturated.is_some())
    }

    /// Whether it is frozen, saturated or silent.
    #[must_use]
    pub fn is_faulty(&self, sensor: usize) -> bool {
        self.is_frozen(sensor) || self.0.get(sensor).is_some_and(|watch| watch.missing.is_some())
    }

    /// Ends what is active, and looks for it anew.
    pub fn close(&mut self, events: &mut Vec<EventKind>) {
        for (ix, watch) in self.0.iter_mut().enumerate() {
            tell(&mut watch.frozen, false, watch.since, ix, SensorFaultKind::Frozen, events);
            tell(&mut watch.saturated, false, watch.since, ix, SensorFaultKind::Saturated, events);
            tell(&mut watch.missing, false, watch.since, ix, SensorFaultKind::Missing, events);
            (watch.value, watch.run) = (f32::NAN, 0);
        }
    }

    /// A step of the calibration.
    pub fn learn(&mut self, step: &Step) {
        self.count(step);
        for watch in &mut self.0 {
            watch.longest = watch.longest.max(watch.run);
        }
    }

    /// A step after it; faults that begin or end are appended to `events`.
    pub fn step(
        &mut self,
        step: &Step,
        step_us: i64,
        usual: &Usual,
        calibration_steps: u32,
        events: &mut Vec<EventKind>,
    ) {
        self.count(step);
        let end = step.start.plus_us(step_us);
        for (ix, watch) in self.0.iter_mut().enumerate() {
            if !usual.is_usable(ix) {
                continue;
            }
            let can_freeze = watch.longest.saturating_mul(4) < calibration_steps;
            let frozen = can_freeze && watch.run > watch.longest.saturating_mul(FROZEN_FACTOR) + FROZEN_STEPS;
            let missing = step.values.get(ix).is_none_or(|value| value.is_nan());
            // What was told first stands for as long as it lasts.
            let is_at_end =
                watch.frozen.is_none() && watch.range.is_some_and(|(min, max)| watch.value < min || watch.value > max);
            let saturated = frozen && (watch.saturated.is_some() || is_at_end);
            tell(&mut watch.saturated, saturated, watch.since, ix, SensorFaultKind::Saturated, events);
            tell(&mut watch.frozen, frozen && !saturated, watch.since, ix, SensorFaultKind::Frozen, events);
            tell(&mut watch.missing, missing, end, ix, SensorFaultKind::Missing, events);
        }
    }

    fn count(&mut self, step: &Step) {
        if self.0.len() < step.values.len() {
            let new = Watch {
                value: f32::NAN,
                run: 0,
                longest: 0,
                since: step.start,
                range: None,
                frozen: None,
                saturated: None,
                missing: None,
            };
            self.0.resize(step.values.len(), new);
        }
        for ((watch, value), measured) in self.0.iter_mut().zip(&step.values).zip(&step.measured) {
            if !measured {
                continue;
            }
            if watch.value.to_bits() == value.to_bits() {
                watch.run = watch.run.saturating_add(1);
            } else {
                if !watch.value.is_nan() {
                    let (min, max) = watch.range.unwrap_or((watch.value, watch.value));
                    watch.range = Some((min.min(watch.value), max.max(watch.value)));
                }
                watch.value = *value;
                watch.run = 1;
                watch.since = step.start;
            }
        }
    }
}

fn tell(
    known: &mut Option<Timestamp>,
    now: bool,
    since: Timestamp,
    sensor: usize,
    kind: SensorFaultKind,
    events: &mut Vec<EventKind>,
) {
    let Ok(sensor) = u16::try_from(sensor) else { return };
    let fault = match (*known, now) {
        (None, true) => {
            *known = Some(since);
            SensorFault { sensor, kind, since, active: true }
        }
        (Some(since), false) => {
            *known = None;
            SensorFault { sensor, kind, since, active: false }
        }
        _ => return,
    };
    events.push(EventKind::SensorFault(fault));
}
