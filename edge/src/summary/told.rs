//! Which intervals were told of, so that none is told of twice when a clock is set back.

use gemba_shared::telemetry::{Clock, Timestamp};
use serde::{Deserialize, Serialize};

/// The starts of the intervals that were told of, by clock, so that none is told of twice when a clock is set back.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Told(Vec<ToldBy>);

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct ToldBy {
    clock: Clock,
    latest: Timestamp,
    /// How often time began anew before `latest` was reached again.
    again: i64,
}

impl Told {
    /// Time begins anew by this clock. Of clocks that were never right, one is remembered.
    pub(super) fn begin(&mut self, clock: Clock) {
        self.0.retain(|told| told.clock == clock || told.clock == Clock::Trusted);
        match self.0.iter_mut().find(|told| told.clock == clock) {
            Some(told) => told.again += 1,
            None => self.0.push(ToldBy { clock, latest: Timestamp(i64::MIN), again: 0 }),
        }
    }

    /// The start to tell of: moved by a microsecond for each time that it may have been told of before.
    pub(super) fn start(&mut self, clock: Clock, start: Timestamp) -> Timestamp {
        if !self.0.iter().any(|told| told.clock == clock) {
            self.begin(clock);
        }
        let Some(told) = self.0.iter_mut().find(|told| told.clock == clock) else { return start };
        if start > told.latest {
            (told.latest, told.again) = (start, 0);
        }
        start.plus_us(told.again)
    }
}
