//! How many bytes of a lane may be on their way at once: as many as do not queue.
//!
//! The least delay from sending a batch to its receipt is what the link and the cloud need at their best. While
//! batches take hardly longer, the window grows; when they take half as long again, they queue somewhere, in
//! our socket, in the broker or before the database, and everything else of this gateway queues behind them: the window
//! shrinks. "Half as long" has bounds: near by, less is noise, and far away, more would be felt. What is slow with the
//! smallest window is slow for another reason, and its delay is the new best. The idea is LEDBAT's (RFC 6817): a backlog
//! yields to what is live. Events yield to nothing: their window shrinks by loss alone.

/// So little does not queue on a link that is of any use.
const WINDOW_BYTES_MIN: usize = 8 * 1_024;
/// Of a lane that does not yield: what its alarms wait behind are alarms.
const WINDOW_BYTES_FIRST: usize = 128 * 1_024;
const WINDOW_BYTES_MAX: usize = 512 * 1_024;
/// What batches may take longer than at their best: half of it, within these bounds.
const EXTRA_US_MIN: i64 = 25_000;
const EXTRA_US_MAX: i64 = 100_000;

/// The window of one lane.
#[derive(Debug, Clone)]
pub struct Window {
    bytes: usize,
    best_us: Option<i64>,
    yields: bool,
}

impl Window {
    /// Of a lane that yields to everything else, or of one that does not.
    #[must_use]
    pub const fn new(yields: bool) -> Self {
        Self { bytes: if yields { WINDOW_BYTES_MIN } else { WINDOW_BYTES_FIRST }, best_us: None, yields }
    }

    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Batches of so many bytes were receipted, the last of them after `delay_us`.
    pub fn receipted(&mut self, bytes: usize, delay_us: i64) {
        let best_us = match self.best_us {
            Some(best_us) if self.bytes > WINDOW_BYTES_MIN => best_us.min(delay_us),
            _ => delay_us,
        };
        self.best_us = Some(best_us);
        let extra_us = (best_us / 2).clamp(EXTRA_US_MIN, EXTRA_US_MAX);
        self.bytes = if !self.yields || delay_us - best_us < extra_us {
            self.bytes.saturating_add(bytes).min(WINDOW_BYTES_MAX)
        } else {
            (self.bytes - self.bytes / 8).max(WINDOW_BYTES_MIN)
        };
    }

    /// Batches were not receipted in time.
    pub fn lost(&mut self) {
        self.bytes = WINDOW_BYTES_MIN;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A link that passes so many bytes a second after a fixed delay, full of one window at a time; the window after a minute, and
    /// what the batches took at the end.
    fn settle(bytes_per_second: i64, delay_us: i64) -> (usize, i64) {
        let mut window = Window::new(true);
        let (mut now_us, mut taken_us) = (0, 0);
        while now_us < 60_000_000 {
            taken_us = delay_us + window.bytes() as i64 * 1_000_000 / bytes_per_second;
            now_us += taken_us;
            window.receipted(window.bytes() / 4, taken_us);
        }
        (window.bytes(), taken_us)
    }

    #[test]
    fn a_fast_link_is_filled_and_a_slow_one_does_not_queue() {
        assert_eq!(settle(100_000_000, 20_000).0, WINDOW_BYTES_MAX);
        assert_eq!(settle(100_000_000, 600_000).0, WINDOW_BYTES_MAX, "a satellite is far, but not slow");
        let (bytes, taken_us) = settle(1_000_000, 50_000);
        assert!((20_000..100_000).contains(&bytes) && taken_us < 150_000, "{bytes} {taken_us}");
        let (bytes, _) = settle(8_000, 50_000);
        assert!(bytes < 2 * WINDOW_BYTES_MIN, "{bytes}");
    }

    #[test]
    fn a_way_that_became_longer_is_the_new_best() {
        let mut window = Window::new(true);
        window.receipted(1_000, 10_000);
        for _ in 0..100 {
            window.receipted(8_000, 500_000);
        }
        assert!(window.bytes() > 4 * WINDOW_BYTES_MIN, "{}", window.bytes());
    }

    #[test]
    fn events_do_not_yield() {
        let mut window = Window::new(false);
        window.receipted(1_000, 10_000);
        window.receipted(1_000, 900_000);
        assert!(window.bytes() > WINDOW_BYTES_FIRST);
    }

    #[test]
    fn what_is_lost_makes_it_small() {
        let mut window = Window::new(true);
        window.lost();
        assert_eq!(window.bytes(), WINDOW_BYTES_MIN);
        window.receipted(WINDOW_BYTES_MIN, 1_000);
        assert_eq!(window.bytes(), 2 * WINDOW_BYTES_MIN);
    }
}
