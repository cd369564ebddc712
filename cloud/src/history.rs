//! What is kept of the past, and how finely: intervals as they came, hours, days.
//!
//! An interval belongs to the hour and the day (UTC) in which it begins. Intervals of closed [windows](WINDOW_MS) are packed into
//! [`block`]s; hours and days are [`rollup`]s. What is asked of a range is put together of [`Segment`]s, so that whole
//! hours and days are read as such and the rest exactly.

use jiff::{SignedDuration, Timestamp, civil::Date, tz::TimeZone};

pub mod block;
pub mod rollup;

/// How long an organisation may keep intervals and hours, days.
pub const KEPT_DAYS: std::ops::RangeInclusive<i32> = 1..=3_660;
pub const HOUR_MS: i64 = 3_600_000;
pub const DAY_MS: i64 = 24 * HOUR_MS;
/// Intervals are packed by such stretches of a day: a block has intervals of one of them only.
pub const WINDOW_MS: i64 = HOUR_MS;
/// Intervals come at any time until their window has been over for so long; what comes later is late, for it may have been packed.
const LATE_AFTER: SignedDuration = SignedDuration::from_mins(10);
/// Clocks of replicas differ by less than this: one may pack while another still takes what comes for not late.
const CLOCKS: SignedDuration = SignedDuration::from_mins(5);

/// One machine over one interval, as it is stored; the arrays go by our positions and have one length.
#[derive(Debug, Clone, PartialEq)]
pub struct SummaryRow {
    pub machine_key: i32,
    pub start: Timestamp,
    pub interval_ms: i32,
    pub counts: Vec<i32>,
    pub mins: Vec<f64>,
    pub maxs: Vec<f64>,
    pub means: Vec<f64>,
    pub sds: Vec<f64>,
    pub lasts: Vec<f64>,
    /// 0 good, 1 held, 2 missing, 3 faulty, 255 none.
    pub qualities: Vec<u8>,
    pub detector: i16,
    pub score: Option<f32>,
    pub health_percent: Option<f32>,
    /// 0 unknown, 1 off, 2 idle, 3 running.
    pub mode: i16,
    pub energy_wh: Option<f64>,
    pub clock_trusted: bool,
}

/// How finely the past is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    Interval,
    Hour,
    Day,
}

impl Level {
    /// The length of a row; `None` for intervals, which have their own.
    #[must_use]
    pub const fn ms(self) -> Option<i64> {
        match self {
            Self::Interval => None,
            Self::Hour => Some(HOUR_MS),
            Self::Day => Some(DAY_MS),
        }
    }

    /// The start of the row in which a moment lies.
    #[must_use]
    pub fn start_of(self, at: Timestamp) -> Timestamp {
        self.ms().map_or(at, |ms| floor(at, ms))
    }

    const fn finer(self) -> Self {
        match self {
            Self::Day => Self::Hour,
            Self::Hour | Self::Interval => Self::Interval,
        }
    }
}

/// The latest multiple of `ms` since 1970 that is not after `at`.
#[must_use]
pub fn floor(at: Timestamp, ms: i64) -> Timestamp {
    let us = ms * 1_000;
    Timestamp::from_microsecond(at.as_microsecond().div_euclid(us) * us).unwrap_or(at)
}

/// The end, exclusive, of the window in which a moment lies.
#[must_use]
pub fn window_end(at: Timestamp) -> Timestamp {
    floor(at, WINDOW_MS).saturating_add(SignedDuration::from_millis(WINDOW_MS)).unwrap_or(Timestamp::MAX)
}

/// Where the windows begin whose intervals are not late, and never packed.
#[must_use]
pub fn late_before(now: Timestamp) -> Timestamp {
    floor(now.saturating_sub(LATE_AFTER).unwrap_or(now), WINDOW_MS)
}

/// The end of the windows that may be packed when they have been over for so long.
#[must_use]
pub fn pack_before(now: Timestamp, pack_after: SignedDuration) -> Timestamp {
    floor(now.saturating_sub(pack_after.max(LATE_AFTER + CLOCKS)).unwrap_or(now), WINDOW_MS)
}

/// A moment as the database keeps it: in whole microseconds.
#[must_use]
pub fn floor_us(at: Timestamp) -> Timestamp {
    Timestamp::from_microsecond(at.as_microsecond()).unwrap_or(at)
}

/// The earliest multiple of `ms` since 1970 that is not before `at`.
#[must_use]
pub fn ceil(at: Timestamp, ms: i64) -> Timestamp {
    let before = floor(at, ms);
    if before == at { at } else { before.saturating_add(SignedDuration::from_millis(ms)).unwrap_or(at) }
}

/// The day (UTC) that a moment's row lies in.
#[must_use]
pub fn day(at: Timestamp) -> Date {
    at.to_zoned(TimeZone::UTC).date()
}

/// The first moment of a day (UTC).
#[must_use]
pub fn midnight(day: Date) -> Timestamp {
    day.to_zoned(TimeZone::UTC).map_or(Timestamp::MIN, |zoned| zoned.timestamp())
}

/// A part of a range, `to` exclusive, and the level at which it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    pub level: Level,
    pub from: Timestamp,
    pub to: Timestamp,
}

/// A range in parts: whole rows of `level`, and what is left at its ends more finely, down to `finest`. At `finest` a
/// row that lies partly in the range counts whole.
#[must_use]
pub fn segments(from: Timestamp, to: Timestamp, level: Level, finest: Level) -> Vec<Segment> {
    let Some(ms) = level.ms() else { return vec![Segment { level, from, to }] };
    if level <= finest {
        return vec![Segment { level, from: floor(from, ms), to }];
    }
    let (first, last) = (ceil(from, ms), floor(to, ms));
    if first >= last {
        return if from < to { segments(from, to, level.finer(), finest) } else { Vec::new() };
    }
    let mut parts = Vec::new();
    if from < first {
        parts.extend(segments(from, first, level.finer(), finest));
    }
    parts.push(Segment { level, from: first, to: last });
    if last < to {
        parts.extend(segments(last, to, level.finer(), finest));
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::{
        Level::{Day, Hour, Interval},
        *,
    };

    fn at(text: &str) -> Timestamp {
        format!("2026-01-{text}Z").parse().unwrap()
    }

    #[test]
    fn a_range_is_read_as_coarsely_as_it_can_be() {
        let check = |from, to, level, finest, expected: &[(Level, &str, &str)]| {
            let expected: Vec<_> = expected
                .iter()
                .map(|(level, from, to)| Segment { level: *level, from: at(from), to: at(to) })
                .collect();
            assert_eq!(segments(at(from), at(to), level, finest), expected, "{from} {to} {level:?} {finest:?}");
        };
        check("01T00:00", "03T00:00", Day, Interval, &[(Day, "01T00:00", "03T00:00")]);
        check(
            "01T22:30",
            "04T01:10",
            Day,
            Interval,
            &[
                (Interval, "01T22:30", "01T23:00"),
                (Hour, "01T23:00", "02T00:00"),
                (Day, "02T00:00", "04T00:00"),
                (Hour, "04T00:00", "04T01:00"),
                (Interval, "04T01:00", "04T01:10"),
            ],
        );
        check("01T22:30", "02T01:10", Day, Hour, &[(Hour, "01T22:00", "02T01:10")]);
        check("01T22:30", "01T22:40", Day, Interval, &[(Interval, "01T22:30", "01T22:40")]);
        check("01T22:30", "03T01:10", Day, Day, &[(Day, "01T00:00", "03T01:10")]);
        check("01T22:30", "01T22:30", Day, Interval, &[]);
    }
}
