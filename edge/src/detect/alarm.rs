//! An anomaly of a machine: it is open while anything is found wrong (`finding.rs`).
//!
//! It is told of again when its peak has grown by a quarter since it was last told of, at most every 10 s; and every 60 s while the
//! score is over the threshold.

use gemba_shared::telemetry::Timestamp;
use serde::{Deserialize, Serialize};

const GROWTH: f32 = 1.25;
const UPDATE_US_MIN: i64 = 10_000_000;
const UPDATE_US_MAX: i64 = 60_000_000;

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Alarm {
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

    /// Takes the score of the step that ended at `at`, and whether anything is wrong.
    pub fn step(&mut self, at: Timestamp, score: f32, is_wrong: bool) -> Option<Change> {
        if !is_wrong {
            return self.close().map(|(opened, max)| Change::Closed(opened, max));
        }
        let Some(open) = &mut self.open else {
            self.open = Some(Open { opened: at, score_max: score, told_max: score, told_at: at });
            return Some(Change::Opened(at, score));
        };
        open.score_max = open.score_max.max(score);
        let since_us = at.us_since(open.told_at);
        let grown = open.score_max >= open.told_max * GROWTH && since_us >= UPDATE_US_MIN;
        if !grown && (score <= 1.0 || since_us < UPDATE_US_MAX) {
            return None;
        }
        open.told_max = open.score_max;
        open.told_at = at;
        Some(Change::Updated(open.opened, open.score_max))
    }

    /// When it opened.
    #[must_use]
    pub fn opened(&self) -> Option<Timestamp> {
        self.open.as_ref().map(|open| open.opened)
    }

    /// What was compared with a limit is compared with another one: scores are `by` times what they were.
    pub fn rescale(&mut self, by: f32) {
        if let Some(open) = &mut self.open {
            open.score_max *= by;
            open.told_max *= by;
        }
    }

    /// Closes it now; gives when it opened and its largest score if it was open.
    pub fn close(&mut self) -> Option<(Timestamp, f32)> {
        self.open.take().map(|open| (open.opened, open.score_max))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_told_of_when_it_grows_and_once_a_minute() {
        let mut alarm = Alarm::default();
        let mut changes = Vec::new();
        let course =
            [(0.9, false, 5), (1.1, true, 1), (1.6, true, 20), (1.2, true, 70), (0.4, true, 100), (0.4, false, 3)];
        let steps = course.iter().flat_map(|(score, is_wrong, steps)| std::iter::repeat_n((*score, *is_wrong), *steps));
        for (second, (score, is_wrong)) in (0..).zip(steps) {
            if let Some(change) = alarm.step(Timestamp::from_millis(second * 1_000), score, is_wrong) {
                changes.push((second, change));
            }
        }
        let opened = Timestamp::from_millis(5_000);
        assert_eq!(
            changes,
            [
                (5, Change::Opened(opened, 1.1)),
                (15, Change::Updated(opened, 1.6)),
                (75, Change::Updated(opened, 1.6)),
                (196, Change::Closed(opened, 1.6)),
            ]
        );
    }
}
