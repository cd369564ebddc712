//! Quiet hours: from–to by the clock of a place, on days of the week.

use jiff::{
    SignedDuration, Timestamp,
    civil::{Date, Time, Weekday},
    tz::TimeZone,
};

/// Minutes of a day.
pub const DAY_MIN: u16 = 24 * 60;
/// Quiet hours that follow one another without a gap are one, for at most so many.
const JOINED_MAX: usize = 8;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quiet {
    /// Bits from Monday (1) to Sunday (64): the days on which a quiet time begins.
    days: u8,
    /// Minutes of the day. An end that is not after the start is on the day after.
    from_min: u16,
    to_min: u16,
    zone: TimeZone,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadQuiet {
    #[error("has at least one day of the week")]
    Days,
    #[error("is a time of the day from 00:00 to 23:59")]
    Minutes,
    #[error("is no time zone: give an IANA name like Europe/Berlin")]
    Zone,
}

impl Quiet {
    /// # Errors
    /// If there is no such time or place.
    pub fn new(days: u8, from_min: u16, to_min: u16, zone: &str) -> Result<Self, BadQuiet> {
        if !(1..=127).contains(&days) {
            return Err(BadQuiet::Days);
        }
        if from_min >= DAY_MIN || to_min >= DAY_MIN {
            return Err(BadQuiet::Minutes);
        }
        // Only names of the database: what POSIX would take as rules is nobody's place.
        let zone = jiff::tz::db().get(zone).map_err(|_| BadQuiet::Zone)?;
        Ok(Self { days, from_min, to_min, zone })
    }

    /// Bits from Monday (1) to Sunday (64).
    #[must_use]
    pub const fn days(&self) -> u8 {
        self.days
    }

    #[must_use]
    pub const fn from_min(&self) -> u16 {
        self.from_min
    }

    #[must_use]
    pub const fn to_min(&self) -> u16 {
        self.to_min
    }

    /// Its IANA name.
    #[must_use]
    pub fn zone(&self) -> &str {
        self.zone.iana_name().unwrap_or("UTC")
    }

    /// When the quiet time ends in which `now` is; `None` outside.
    #[must_use]
    pub fn until(&self, now: Timestamp) -> Option<Timestamp> {
        let mut end = self.end_of(now)?;
        for _ in 1..JOINED_MAX {
            match self.end_of(end) {
                Some(later) if later > end => end = later,
                _ => break,
            }
        }
        Some(end)
    }

    fn end_of(&self, now: Timestamp) -> Option<Timestamp> {
        let today = now.to_zoned(self.zone.clone()).date();
        [today.yesterday().ok()?, today].into_iter().filter(|date| self.begins_on(*date)).find_map(|date| {
            let last = if self.to_min > self.from_min { date } else { date.tomorrow().ok()? };
            let (start, end) = (self.at(date, self.from_min)?, self.at(last, self.to_min)?);
            (start <= now && now < end).then_some(end)
        })
    }

    fn begins_on(&self, date: Date) -> bool {
        self.days & bit(date.weekday()) != 0
    }

    /// A time that the clock skips is that much later, one that it shows twice is the first.
    fn at(&self, date: Date, minutes: u16) -> Option<Timestamp> {
        let time = Time::midnight().checked_add(SignedDuration::from_mins(minutes.into())).ok()?;
        Some(date.to_datetime(time).to_zoned(self.zone.clone()).ok()?.timestamp())
    }
}

/// Monday is 1, Sunday 64.
#[must_use]
pub fn bit(day: Weekday) -> u8 {
    1 << day.to_monday_zero_offset()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: u8 = 127;
    const H: u16 = 60;

    #[track_caller]
    fn check(quiet: (u8, u16, u16, &str), now: &str, expected: Option<&str>) {
        let (days, from, to, zone) = quiet;
        let quiet = Quiet::new(days, from, to, zone).unwrap();
        let until = quiet.until(now.parse().unwrap());
        assert_eq!(until, expected.map(|text| text.parse().unwrap()), "{now}");
    }

    #[test]
    fn over_midnight_and_within_a_day() {
        let night = (ALL, 22 * H, 6 * H, "UTC");
        for (now, expected) in [
            ("2026-11-26T21:59:59Z", None),
            ("2026-11-26T22:00:00Z", Some("2026-11-27T06:00:00Z")),
            ("2026-11-27T05:59:59Z", Some("2026-11-27T06:00:00Z")),
            ("2026-11-27T06:00:00Z", None),
        ] {
            check(night, now, expected);
        }
        let lunch = (ALL, 12 * H, 13 * H, "UTC");
        check(lunch, "2026-11-26T12:30:00Z", Some("2026-11-26T13:00:00Z"));
        check(lunch, "2026-11-26T13:00:00Z", None);
    }

    #[test]
    fn a_day_is_the_one_on_which_it_begins() {
        // 2026-11-27 is a Friday.
        let fridays = (bit(Weekday::Friday), 22 * H, 6 * H, "UTC");
        check(fridays, "2026-11-27T23:00:00Z", Some("2026-11-28T06:00:00Z"));
        check(fridays, "2026-11-28T05:00:00Z", Some("2026-11-28T06:00:00Z"));
        check(fridays, "2026-11-28T23:00:00Z", None);
        check(fridays, "2026-11-27T05:00:00Z", None);
    }

    #[test]
    fn whole_days_are_joined() {
        let weekend = (bit(Weekday::Saturday) | bit(Weekday::Sunday), 0, 0, "UTC");
        check(weekend, "2026-11-28T10:00:00Z", Some("2026-11-30T00:00:00Z"));
        check(weekend, "2026-11-30T00:00:00Z", None);
        // Always quiet: what waits is told after eight days all the same.
        check((ALL, 0, 0, "UTC"), "2026-11-28T10:00:00Z", Some("2026-12-06T00:00:00Z"));
    }

    #[test]
    fn by_the_clock_of_the_place_when_it_changes() {
        let berlin = (ALL, 22 * H, 6 * H, "Europe/Berlin");
        // Winter is UTC+1, summer UTC+2; the clock goes forward on 2026-03-29 at 01:00 UTC, back on 2026-10-25 at 01:00 UTC.
        check(berlin, "2026-03-28T21:00:00Z", Some("2026-03-29T04:00:00Z"));
        check(berlin, "2026-03-29T20:00:00Z", Some("2026-03-30T04:00:00Z"));
        check(berlin, "2026-10-24T20:00:00Z", Some("2026-10-25T05:00:00Z"));
        check(berlin, "2026-10-24T19:59:59Z", None);
        // 02:30 does not exist on the first of these days, and exists twice on the second.
        check((ALL, 22 * H, 2 * H + 30, "Europe/Berlin"), "2026-03-29T01:00:00Z", Some("2026-03-29T01:30:00Z"));
        check((ALL, 22 * H, 2 * H + 30, "Europe/Berlin"), "2026-10-25T00:00:00Z", Some("2026-10-25T00:30:00Z"));
        check((ALL, 22 * H, 2 * H + 30, "Europe/Berlin"), "2026-10-25T01:00:00Z", None);
        // Half hours, and a date that is already tomorrow's.
        check((ALL, 22 * H, 6 * H, "Asia/Kolkata"), "2026-11-26T16:30:00Z", Some("2026-11-27T00:30:00Z"));
    }

    #[test]
    fn what_is_no_quiet_time() {
        assert_eq!(Quiet::new(0, 0, 1, "UTC"), Err(BadQuiet::Days));
        assert_eq!(Quiet::new(128, 0, 1, "UTC"), Err(BadQuiet::Days));
        assert_eq!(Quiet::new(1, 1_440, 1, "UTC"), Err(BadQuiet::Minutes));
        for zone in ["Nowhere/Land", "", "../../etc/passwd", "CET-1CEST"] {
            assert_eq!(Quiet::new(1, 0, 1, zone), Err(BadQuiet::Zone), "{zone}");
        }
    }
}
