//! When a simulated plant's moments are due. Pure.

use std::time::Duration;

use anyhow::bail;
use gemba_shared::telemetry::Timestamp;

/// The plant's time against the wall clock.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Schedule {
    /// The first moment.
    pub start: Timestamp,
    /// Where history ends, and the first moment that is waited for. Faults are counted from here.
    pub live: Timestamp,
    /// Exclusive.
    pub end: Option<Timestamp>,
    pub step_us: i64,
    live_due: Timestamp,
    speed: f64,
}

impl Schedule {
    /// # Errors
    /// If an argument cannot be.
    pub(super) fn new(
        now: Timestamp,
        step: Duration,
        history: Duration,
        lasts: Option<Duration>,
        speed: f64,
    ) -> anyhow::Result<Self> {
        let step_us = us(step);
        if step_us < 1_000 {
            bail!("--step {step:?}: at least 1 ms is needed");
        }
        if !(0.001..=100_000.0).contains(&speed) {
            bail!("--speed {speed}: 0.001 to 100000 is possible");
        }
        let lasts_us = lasts.map(us);
        // What runs faster than the clock begins in the past, and what runs slower ends there.
        let ahead_us = lasts_us.map_or(0, |lasts_us| (lasts_us as f64 * (1.0 - 1.0 / speed)).max(0.0) as i64);
        let live = now.plus_us(-ahead_us).floor(step_us);
        Ok(Self {
            start: live.plus_us(-us(history)).floor(step_us),
            live,
            end: lasts_us.map(|lasts_us| live.plus_us(lasts_us)),
            step_us,
            live_due: now.floor(step_us),
            speed,
        })
    }

    /// When the wall clock must show for this moment to be published.
    pub(super) fn due(&self, at: Timestamp) -> Timestamp {
        self.live_due.plus_us((at.us_since(self.live) as f64 / self.speed) as i64)
    }
}

pub(super) fn us(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_800_000_000_000_000);
    const SECOND: i64 = 1_000_000;

    fn schedule(history_s: u64, lasts_s: Option<u64>, speed: f64) -> Schedule {
        let (history, lasts) = (Duration::from_secs(history_s), lasts_s.map(Duration::from_secs));
        Schedule::new(NOW, Duration::from_secs(1), history, lasts, speed).unwrap()
    }

    #[test]
    fn a_plant_keeps_to_the_clock() {
        let live = schedule(0, None, 1.0);
        assert_eq!((live.start, live.live, live.end), (NOW, NOW, None));
        assert_eq!(live.due(NOW.plus_us(5 * SECOND)), NOW.plus_us(5 * SECOND));
    }

    #[test]
    fn history_is_overdue_and_ends_now() {
        let history = schedule(600, Some(60), 1.0);
        assert_eq!(history.start, NOW.plus_us(-600 * SECOND));
        assert!(history.due(NOW.plus_us(-SECOND)) < NOW);
        assert_eq!(history.due(NOW), NOW);
        assert_eq!(history.end, Some(NOW.plus_us(60 * SECOND)));
    }

    #[test]
    fn a_fast_plant_begins_in_the_past_and_ends_at_the_clock() {
        let fast = schedule(0, Some(600), 60.0);
        let end = fast.end.unwrap();
        assert_eq!(end, NOW.plus_us(10 * SECOND));
        assert_eq!(fast.due(fast.start), NOW);
        assert_eq!(fast.due(end), end);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for (step_us, speed) in [(0, 1.0), (999, 1.0), (1_000, 0.0), (1_000, f64::NAN), (1_000, 1e9)] {
            assert!(Schedule::new(NOW, Duration::from_micros(step_us), Duration::ZERO, None, speed).is_err());
        }
    }
}
