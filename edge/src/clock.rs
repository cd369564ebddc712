//! The one place where the daemon reads its clocks.
//!
//! The wall clock of a gateway without a battery starts anywhere. `clock = "auto"` takes it for right when the
//! operating system's time service says so: where systemd-timesyncd runs, it must have synchronised since boot
//! (`/run/systemd/timesync/synchronized`); where it does not, the clock is right when it shows a time after
//! this program's first release.

use std::{
    path::Path,
    sync::atomic::{AtomicBool, AtomicI64, Ordering},
    time::{Duration, Instant, SystemTime},
};

use gemba_shared::telemetry::{Clock as Trust, Timestamp};

use crate::{config::ClockTrust, reading::Now};

/// No clock that is right shows less: 2026-01-01.
const RIGHT_SINCE: Timestamp = Timestamp(1_767_225_600_000_000);
/// How often the time service is asked.
const ASK_EVERY: Duration = Duration::from_secs(5);
const TIMESYNC: &str = "/run/systemd/timesync";

/// Reads the clocks.
#[derive(Debug)]
pub struct Clock {
    setting: ClockTrust,
    start: Instant,
    synchronised: AtomicBool,
    ask_again_us: AtomicI64,
}

impl Clock {
    #[must_use]
    pub fn new(setting: ClockTrust) -> Self {
        Self { setting, start: Instant::now(), synchronised: AtomicBool::new(false), ask_again_us: AtomicI64::new(0) }
    }

    /// What the clocks say.
    #[must_use]
    pub fn now(&self) -> Now {
        let wall = wall();
        let mono_us = i64::try_from(self.start.elapsed().as_micros()).unwrap_or(i64::MAX);
        let clock = match self.setting {
            ClockTrust::Trusted => Trust::Trusted,
            ClockTrust::Auto if wall >= RIGHT_SINCE && self.synchronised(mono_us) => Trust::Trusted,
            ClockTrust::Auto => Trust::Untrusted,
        };
        Now { wall, mono_us, clock }
    }

    fn synchronised(&self, mono_us: i64) -> bool {
        if mono_us >= self.ask_again_us.load(Ordering::Relaxed) {
            let service = Path::new(TIMESYNC);
            self.synchronised.store(!service.exists() || service.join("synchronized").exists(), Ordering::Relaxed);
            let every_us = i64::try_from(ASK_EVERY.as_micros()).unwrap_or(i64::MAX);
            self.ask_again_us.store(mono_us.saturating_add(every_us), Ordering::Relaxed);
        }
        self.synchronised.load(Ordering::Relaxed)
    }
}

#[expect(clippy::disallowed_methods, reason = "this is the one place")]
fn wall() -> Timestamp {
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since_1970.as_micros()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_may_vouch_for_the_clock() {
        let clock = Clock::new(ClockTrust::Trusted);
        let first = clock.now();
        assert_eq!(first.clock, Trust::Trusted);
        assert!(clock.now().mono_us >= first.mono_us);
    }
}
