//! An interval that is not over: figures of its sensors so far, and which readings they are of.

use gemba_shared::telemetry::Timestamp;
use serde::{Deserialize, Serialize};

use super::{accumulator::Accumulator, seen::Seen};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct OpenInterval {
    pub(super) start: Timestamp,
    pub(super) sensors: Vec<Accumulator>,
    /// By sensor, as far as there is something to remember.
    #[serde(skip)]
    pub(super) seen: Vec<Seen>,
    /// Where the journal has its first reading.
    #[serde(skip)]
    pub(super) from: Option<u64>,
}

impl OpenInterval {
    pub(super) fn count(&mut self, ix: usize, at: Timestamp, value: f64) {
        if ix >= self.sensors.len() {
            self.sensors.resize_with(ix + 1, Accumulator::default);
        }
        self.sensors[ix].push(at, value);
    }

    /// Whether this reading came before; remembers it.
    pub(super) fn is_again(&mut self, ix: usize, at: Timestamp, value: f64) -> bool {
        if ix >= self.seen.len() {
            self.seen.resize_with(ix + 1, Seen::default);
        }
        self.seen[ix].is_again(at.us_since(self.start), value)
    }

    pub(super) fn merge(&mut self, other: &Self) {
        if self.sensors.len() < other.sensors.len() {
            self.sensors.resize_with(other.sensors.len(), Accumulator::default);
        }
        self.sensors.iter_mut().zip(&other.sensors).for_each(|(sum, part)| sum.merge(part));
    }
}
