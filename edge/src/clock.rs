//! The one place where the daemon reads its clocks.
//!
//! The wall clock of a gateway without a battery starts anywhere, and is set some time later. Until somebody vouches for it, what arrives
//! is dated by the time since the machine's start, which is right but for one constant; when the constant is known, records are
//! put right as they are sent ([`Clock::correct`]). `clock = "auto"` believes
//!
//! - the time service: systemd-timesyncd once it has synchronised since the start, chrony when it says that it has; where neither is
//!   there, a wall clock that shows a time after this program's first release;
//! - the cloud, by the time in a signed receipt for something that was just sent.
//!
//! `clock = "cloud"` believes the cloud alone. Until then the best guess is the wall clock, or the latest time that was ever known to be right, if that is later.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed},
    },
    time::SystemTime,
};

use gemba_shared::telemetry::{Clock as Trust, EventKind, Record, Timestamp};
use nix::time::{ClockId, clock_gettime};

use crate::{config::ClockTrust, files, reading::Now};

mod boots;

use boots::Boots;

/// No clock that is right shows less: 2026-01-01.
const RIGHT_SINCE: Timestamp = Timestamp(1_767_225_600_000_000);
/// A clock that is right is set by no more than this at once, microseconds.
const STEP_US: i64 = 5_000_000;
/// How often the latest time that was right is written down, microseconds.
const WRITE_EVERY_US: i64 = 600_000_000;
const UNKNOWN: i64 = i64::MIN;

/// Reads the clocks.
#[derive(Debug)]
pub struct Clock {
    setting: ClockTrust,
    boot: u64,
    started_us: i64,
    file: PathBuf,
    boots: Mutex<Boots>,
    /// What the wall clock must show at the start of the machine; [`UNKNOWN`] before somebody vouched for it.
    known_us: AtomicI64,
    /// The same as a guess.
    guess_us: AtomicI64,
    /// The time service vouches for the wall clock.
    synchronised: AtomicBool,
    steps: AtomicU64,
    written_us: AtomicI64,
}

impl Clock {
    /// `file`: where is kept what was known of the clock at other starts of the machine. It asks the time service.
    #[must_use]
    pub fn new(setting: ClockTrust, file: PathBuf) -> Self {
        let boots = Boots::read(&file);
        let boot = boot_id();
        let started_us = since_boot_us();
        let known_us = boots.known(boot).unwrap_or(UNKNOWN);
        let this = Self {
            setting,
            boot,
            started_us,
            file,
            boots: Mutex::new(boots),
            known_us: AtomicI64::new(known_us),
            guess_us: AtomicI64::new(0),
            synchronised: false.into(),
            steps: AtomicU64::new(0),
            written_us: AtomicI64::new(0),
        };
        this.ask();
        this
    }

    /// What the clocks say.
    #[must_use]
    pub fn now(&self) -> Now {
        let (wall, mono_us) = (wall(), since_boot_us());
        // Whoever vouched for it did not mean a clock that was set to 1970 since: readings would be refused as of the future.
        let vouched = self.synchronised.load(Relaxed) && wall >= RIGHT_SINCE;
        if self.setting == ClockTrust::Trusted || vouched {
            return Now { wall, mono_us, clock: Trust::Trusted };
        }
        match self.known_us.load(Relaxed) {
            UNKNOWN => Now {
                wall: Timestamp(mono_us.saturating_add(self.guess_us.load(Relaxed))),
                mono_us,
                clock: Trust::SinceBoot { boot: self.boot },
            },
            known_us => Now { wall: Timestamp(mono_us.saturating_add(known_us)), mono_us, clock: Trust::Trusted },
        }
    }

    #[must_use]
    pub fn is_right(&self) -> bool {
        self.now().clock == Trust::Trusted
    }

    /// How long the program runs.
    #[must_use]
    pub fn uptime_s(&self) -> u64 {
        u64::try_from((since_boot_us() - self.started_us) / 1_000_000).unwrap_or(0)
    }

    /// How often the wall clock was set by more than five seconds while it was taken for right.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.steps.load(Relaxed)
    }

    /// Asks the time service. It may block for a second: call it every few seconds, off the runtime.
    pub fn ask(&self) {
        let (wall, mono_us) = (wall(), since_boot_us());
        let asked = self.setting == ClockTrust::Auto && wall >= RIGHT_SINCE;
        let vouched = asked && (self.synchronised.load(Relaxed) || is_synchronised());
        if self.setting == ClockTrust::Trusted || vouched {
            self.follow(wall.0 - mono_us);
            self.synchronised.store(vouched, Relaxed);
        } else if self.known_us.load(Relaxed) == UNKNOWN {
            let mut boots = self.boots();
            let guess_us = wall.max(boots.latest()).max(RIGHT_SINCE).0 - mono_us;
            self.guess_us.store(guess_us, Relaxed);
            if boots.guess(self.boot, guess_us) {
                tracing::warn!("nobody vouches for the clock yet: what arrives is dated when the time is known");
                self.write(&boots);
            }
        }
        let now = self.now();
        if now.clock == Trust::Trusted && mono_us - self.written_us.load(Relaxed) >= WRITE_EVERY_US {
            self.written_us.store(mono_us, Relaxed);
            let mut boots = self.boots();
            boots.saw(now.wall);
            self.write(&boots);
        }
    }

    /// The wall clock is right.
    fn follow(&self, offset_us: i64) {
        let before = self.known_us.load(Relaxed);
        let by_us = offset_us.saturating_sub(before);
        if before == UNKNOWN {
            self.learn(offset_us);
        } else if by_us.abs() > STEP_US {
            self.known_us.store(offset_us, Relaxed);
            self.steps.fetch_add(1, Relaxed);
            tracing::warn!(by_ms = by_us / 1_000, "the clock was set while it was taken for right");
        }
    }

    /// The cloud said what time it is, in an answer to what was just sent.
    pub fn hear(&self, cloud: Timestamp) {
        if !self.is_right() && cloud >= RIGHT_SINCE {
            tracing::info!("the clock of this gateway is not set: the cloud's time is taken");
            self.learn(cloud.0 - since_boot_us());
        }
    }

    fn learn(&self, offset_us: i64) {
        let mut boots = self.boots();
        let by_us = boots.learn(self.boot, offset_us);
        self.known_us.store(offset_us, Relaxed);
        if let Some(by_us) = by_us {
            tracing::info!(by_ms = by_us / 1_000, "the time is known: what was dated since the start is put right");
        }
        self.write(&boots);
    }

    /// Puts the times of a record right that count from a start of the machine, as well as is known.
    pub fn correct(&self, record: &mut Record) {
        let clock = match record {
            Record::Summary(summary) => &mut summary.clock,
            Record::Event(event) => &mut event.clock,
            Record::Catalog(_) | Record::Gap(_) => return,
        };
        let Trust::SinceBoot { boot } = *clock else { return };
        let (offset_us, known) = self.offset(boot);
        *clock = if known { Trust::Corrected } else { Trust::Untrusted };
        let put_right = |at: &mut Timestamp| *at = at.plus_us(offset_us);
        match record {
            Record::Summary(summary) => put_right(&mut summary.start),
            Record::Event(event) => {
                put_right(&mut event.at);
                match &mut event.kind {
                    EventKind::AnomalyOpened(a) | EventKind::AnomalyUpdated(a) | EventKind::AnomalyClosed(a) => {
                        put_right(&mut a.opened);
                        a.window.iter_mut().for_each(|window| put_right(&mut window.first));
                    }
                    EventKind::SensorFault(fault) => put_right(&mut fault.since),
                    EventKind::NormalShifted(shift) => put_right(&mut shift.since),
                }
            }
            Record::Catalog(_) | Record::Gap(_) => {}
        }
    }

    /// A time by this clock, put right as [`Clock::correct`] does it.
    #[must_use]
    pub fn put_right(&self, clock: Trust, at: Timestamp) -> Timestamp {
        match clock {
            Trust::SinceBoot { boot } => at.plus_us(self.offset(boot).0),
            _ => at,
        }
    }

    /// What to add to times since this start of the machine, and whether that is known.
    fn offset(&self, boot: u64) -> (i64, bool) {
        self.boots().offset(boot).unwrap_or_else(|| (self.guess_us.load(Relaxed).max(RIGHT_SINCE.0), false))
    }

    fn boots(&self) -> MutexGuard<'_, Boots> {
        self.boots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Without it a restart within this boot asks anew, and records of this boot stay a guess after the next one.
    fn write(&self, boots: &Boots) {
        if let Err(error) = files::write(&self.file, boots.text().as_bytes()) {
            tracing::warn!(path = %self.file.display(), %error, "what is known of the clock cannot be written down");
        }
    }
}

/// Whether somebody but the cloud says that the wall clock is right.
#[must_use]
pub fn is_vouched_for(setting: ClockTrust) -> bool {
    match setting {
        ClockTrust::Trusted => true,
        ClockTrust::Auto => wall() >= RIGHT_SINCE && is_synchronised(),
        ClockTrust::Cloud => false,
    }
}

/// Whether the operating system's time service says that the wall clock is right.
fn is_synchronised() -> bool {
    let timesyncd = Path::new("/run/systemd/timesync");
    if timesyncd.exists() {
        return timesyncd.join("synchronized").exists();
    }
    if ["/run/chrony", "/run/chrony-dhcp"].into_iter().any(|place| Path::new(place).exists()) {
        let asked = Command::new("chronyc").args(["-n", "-c", "tracking"]).stdin(Stdio::null()).output();
        // The last field is the leap status: "Normal", or "Not synchronised".
        return asked.is_ok_and(|said| {
            let said = String::from_utf8_lossy(&said.stdout);
            said.trim_end().rsplit(',').next().is_some_and(|leap| !leap.is_empty() && leap != "Not synchronised")
        });
    }
    true
}

/// What the wall clock shows, for commands that have no [`Clock`].
#[expect(clippy::disallowed_methods, reason = "this is the one place")]
#[must_use]
pub fn wall() -> Timestamp {
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since_1970.as_micros()).unwrap_or(i64::MAX))
}

/// Microseconds since the machine started, the same for all processes.
fn since_boot_us() -> i64 {
    clock_gettime(ClockId::CLOCK_BOOTTIME)
        .map_or(0, |time| time.tv_sec().saturating_mul(1_000_000).saturating_add(time.tv_nsec() / 1_000))
}

/// Tells this start of the machine from others; never 0.
fn boot_id() -> u64 {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).take(16).collect();
    u64::from_str_radix(&digits, 16).unwrap_or(1).max(1)
}

#[cfg(test)]
mod tests {
    use gemba_shared::{
        ids::MachineId,
        telemetry::{DetectorState, Mode, Summary, Verdict},
    };

    use super::*;

    fn summary(start: Timestamp, clock: Trust) -> Record {
        let detector = DetectorState::Watching;
        Record::Summary(Summary {
            machine: MachineId::new("m").unwrap(),
            start,
            interval_ms: 10_000,
            catalog_revision: 1,
            sensors: Vec::new(),
            verdict: Verdict { detector, score: None, health_percent: None, mode: Mode::Unknown, remaining: None },
            energy_wh: None,
            clock,
        })
    }

    fn corrected(clock: &Clock, mut record: Record) -> (Timestamp, Trust) {
        clock.correct(&mut record);
        let Record::Summary(summary) = record else { panic!() };
        (summary.start, summary.clock)
    }

    #[test]
    fn the_user_may_vouch_for_the_clock() {
        let dir = tempfile::tempdir().unwrap();
        let clock = Clock::new(ClockTrust::Trusted, dir.path().join("clock"));
        let first = clock.now();
        assert_eq!((first.clock, first.arrival()), (Trust::Trusted, first.wall));
        assert!(clock.now().mono_us >= first.mono_us);
    }

    /// A clock that nobody vouches for.
    fn unset(file: PathBuf) -> Clock {
        Clock::new(ClockTrust::Cloud, file)
    }

    #[test]
    fn what_was_dated_since_the_start_is_put_right_when_the_cloud_says_the_time() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("clock");
        let clock = unset(file.clone());
        let before = clock.now();
        let Trust::SinceBoot { boot } = before.clock else { panic!("{before:?}") };
        assert_eq!(before.arrival(), Timestamp(before.mono_us));
        let record = summary(before.arrival(), before.clock);
        let (guess, trust) = corrected(&clock, record.clone());
        assert_eq!(trust, Trust::Untrusted);
        assert!(guess.us_since(RIGHT_SINCE) > -1_000, "{guess:?}");

        let truth = Timestamp(1_900_000_000_000_000);
        clock.hear(truth);
        let after = clock.now();
        assert_eq!(after.clock, Trust::Trusted);
        assert!((0..5_000_000).contains(&after.wall.us_since(truth)));
        let (start, trust) = corrected(&clock, record.clone());
        assert_eq!(trust, Trust::Corrected);
        assert_eq!(clock.put_right(before.clock, before.arrival()), start);
        assert_eq!(clock.put_right(Trust::Trusted, truth), truth);
        assert!(start.us_since(truth).abs() < 5_000_000, "{start:?}");
        assert_ne!(start.0 % 1_000, record_time(&record) % 1_000, "no start of a right clock can be the same");

        // Another process in the same boot knows it too, and after the next boot its records are put right the same.
        let again = unset(file);
        assert_eq!(again.now().clock, Trust::Trusted);
        assert_eq!(corrected(&again, record), (start, Trust::Corrected));
        // Of a boot that nobody knows the time is a guess, and said to be one.
        let other = summary(Timestamp(5), Trust::SinceBoot { boot: boot ^ 1 });
        assert_eq!(corrected(&again, other).1, Trust::Untrusted);
    }

    fn record_time(record: &Record) -> i64 {
        let Record::Summary(summary) = record else { panic!() };
        summary.start.0
    }

    #[test]
    fn a_step_of_a_right_clock_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let clock = unset(dir.path().join("clock"));
        for (offset_us, steps) in [(2_000_000_000_000_000, 0), (2_000_000_003_000_000, 0), (2_000_000_600_000_000, 1)] {
            clock.follow(offset_us);
            assert_eq!(clock.steps(), steps);
        }
    }
}
