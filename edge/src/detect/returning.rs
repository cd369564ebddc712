//! Sensors that a stop moved slowly: a bearing is cold when the machine starts, and warm again some time later.
//!
//! - Slow is a sensor that, when the machine starts, is [`MOVED_ON`] times as far from its centre as it was when the machine had just come to
//!   rest, [`RESTED_STEPS`] after it was off: it went on moving when all else stood. What fell with the machine comes back with it, or is an anomaly.
//! - A slow one is not judged until it is back: calm and near its centre, or on the other side of it. It has [`TIMES`] as long for that as
//!   the machine stood (what cooled for a moment needs several times as long for its last degree), no less than [`STEPS_MIN`] and no more
//!   than [`STEPS_MAX`]. Then it is judged where it is. For that time no sensor is asked whether it belongs to the others (`drift.rs`).

use serde::{Deserialize, Serialize};

use super::{
    finding::CALM,
    levels::{Level, Usual},
};

const MOVED_ON: f32 = 2.0;
const RESTED_STEPS: u32 = 3;
const TIMES: u32 = 5;
const STEPS_MIN: u32 = 120;
const STEPS_MAX: u32 = 7_200;
/// In usual sizes of its deviations.
const NEAR: f32 = 1.5;
/// Steps after a start before smoothed deviations mean anything.
const WARM_UP: u32 = 20;

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Returning {
    /// Steps that the machine has stood; 0 while it runs.
    stood: u32,
    /// Deviations, when it had come to rest and now.
    rested: Vec<f32>,
    last: Vec<f32>,
    /// On which side of its centre a sensor is that returns; 0 for all others.
    side: Vec<i8>,
    ran: u32,
    left: u32,
}

impl Returning {
    /// Whether anything may be on its way back.
    #[must_use]
    pub const fn is_on(&self) -> bool {
        self.left > 0
    }

    /// A step in which the machine stands, with the sensors' deviations.
    pub fn stand(&mut self, deviations: Vec<f32>) {
        self.stood = self.stood.saturating_add(1);
        if self.stood <= RESTED_STEPS {
            self.rested.clone_from(&deviations);
        }
        self.last = deviations;
    }

    /// A step in which it is judged: takes those out that are on their way back.
    pub fn excuse(&mut self, usual: &Usual, seen: &mut [Level]) {
        if self.stood > 0 {
            self.start(seen.len());
        }
        if self.left == 0 {
            return;
        }
        (self.ran, self.left) = (self.ran.saturating_add(1), self.left - 1);
        for (sensor, (side, level)) in self.side.iter_mut().zip(seen).enumerate() {
            if *side == 0 || level.is_none() {
                continue;
            }
            // What wanders far is calm wherever it is: it must be about where it usually is as well.
            let is_near = level.deviation.abs() < NEAR * usual.size.get(sensor).copied().unwrap_or(1.0);
            let is_back = (is_near && level.ratio < CALM) || level.middle * f32::from(*side) <= 0.0;
            if self.ran > WARM_UP && is_back {
                *side = 0;
            } else {
                *level = Level::NONE;
            }
        }
        if self.left == 0 {
            *self = Self::default();
        }
    }

    fn start(&mut self, sensors: usize) {
        self.side.resize(sensors, 0);
        for (side, (rested, last)) in self.side.iter_mut().zip(self.rested.iter().zip(&self.last)) {
            if last.abs() > MOVED_ON * rested.abs() {
                *side = if *last > 0.0 { 1 } else { -1 };
            }
        }
        let time = self.stood.saturating_mul(TIMES).max(STEPS_MIN);
        let (side, left) = (std::mem::take(&mut self.side), self.left.saturating_add(time).min(STEPS_MAX));
        *self = Self { side, left, ..Self::default() };
    }
}
