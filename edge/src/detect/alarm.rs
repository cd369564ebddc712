//! When an anomaly opens, is told of again, and closes.
//!
//! - It opens when 5 of the last 8 steps were over the threshold (score 1.0).
//! - It closes when the score has stayed below 0.8 for 30 steps.
//! - It is told of again when its peak has grown by a quarter since it was last told of, at most every 10 s; and every
//!   60 s while the score is over the threshold.

use gemba_shared::telemetry::Timestamp;
use serde::{Deserialize, Serialize};

/// Below it a step counts towards the end of an anomaly, and may be learnt from.
pub const CLOSE_BELOW: f32 = 0.8;
const OPEN_STEPS: u32 = 5;
const CLOSE_STEPS: u16 = 30;
const GROWTH: f32 = 1.25;
const UPDATE_US_MIN: i64 = 10_000_000;
const UPDATE_US_MAX: i64 = 60_000_000;

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Alarm {
    /// The last eight steps, the latest lowest: 1 is over the threshold.
    over: u8,
    calm: u16,
    open: Option<Open>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Open {
    opened: Timestamp,
    score_max: f32,
    told_max: f32,
    told_at: Timestamp,
}

/// What a step changed: when the anomaly opened, and its largest score.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Change {
    Opened(Timestamp, f32),
    Updated(Timestamp, f32),
    Closed(Timestamp, f32),
}

impl Change {
    /// When the anomaly opened, and its largest score.
    #[must_use]
    pub const fn anomaly(self) -> (Timestamp, f32) {
        match self {
            Self::Opened(at, max) | Self::Updated(at, max) | Self::Closed(at, max) => (at, max),
        }
    }
}

impl Alarm {
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Takes the score of the step that ended at `at`.
    pub fn step(&mut self, at: Timestamp, score: f32) -> Option<Change> {
        self.over = self.over << 1 | u8::from(score > 1.0);
        let Some(open) = &mut self.open else {
            if self.over.count_ones() < OPEN_STEPS {
                return None;
            }
            self.calm = 0;
            self.open = Some(Open { opened: at, score_max: score, told_max: score, told_at: at });
            return Some(Change::Opened(at, score));
        };
        open.score_max = open.score_max.max(score);
        self.calm = if score < CLOSE_BELOW { self.calm + 1 } else { 0 };
        if self.calm >= CLOSE_STEPS {
            return self.close().map(|(opened, max)| Change::Closed(opened, max));
        }
        let since_us = at.us_since(open.told_at);
        let grown = open.score_max >= open.told_max * GROWTH && since_us >= UPDATE_US_MIN;
        if !grown && (score <= 1.0 || since_us < UPDATE_US_MAX) {
            return None;
        }
        open.told_max = open.score_max;
        open.told_at = at;
        Some(Change::Updated(open.opened, open.score_max))
    }

    /// Closes it now; gives when it opened and its largest score if it was open.
    pub fn close(&mut self) -> Option<(Timestamp, f32)> {
        self.over = 0;
        self.calm = 0;
        self.open.take().map(|open| (open.opened, open.score_max))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_opens_updates_and_closes_with_hysteresis() {
        let mut alarm = Alarm::default();
        let mut changes = Vec::new();
        let scores =
            [&[1.1; 4][..], &[0.5; 8], &[1.2; 5], &[1.6; 20], &[0.9; 50], &[0.7; 29], &[0.9; 1], &[0.7; 40]].concat();
        for (second, score) in (0..).zip(scores) {
            if let Some(change) = alarm.step(Timestamp::from_millis(second * 1_000), score) {
                changes.push((second, change));
            }
        }
        let opened = Timestamp::from_millis(16_000);
        assert_eq!(
            changes,
            [(16, Change::Opened(opened, 1.2)), (26, Change::Updated(opened, 1.6)), (146, Change::Closed(opened, 1.6)),]
        );
    }
}
