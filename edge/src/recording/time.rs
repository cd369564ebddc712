//! Times as recordings write them.

use gemba_shared::telemetry::Timestamp;
use jiff::{civil, fmt::strtime, tz::TimeZone};

/// How times are read. What is found out from the first one that can be read serves all others.
#[derive(Debug, Clone)]
pub(super) struct TimeFormat {
    given: Option<String>,
    found: Option<Known>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Known {
    /// With an offset: `2026-01-31T12:00:00Z`.
    Instant,
    /// Without: `2026-01-31 12:00:00.25`.
    Civil,
    /// `31.01.2026 12:00:00`
    Dotted,
    /// A number since 1970, and how many microseconds one is.
    Number { unit_us: f64 },
}

const DOTTED: &str = "%d.%m.%Y %H:%M:%S%.f";

impl TimeFormat {
    pub(super) fn new(given: Option<&str>) -> Self {
        Self { given: given.map(Into::into), found: None }
    }

    pub(super) fn read(&mut self, text: &str) -> Result<Timestamp, String> {
        let text = text.trim();
        let refused = || {
            let shown: String = text.chars().take(40).collect();
            match &self.given {
                Some(format) => format!("the time {shown:?} is not of the format {format:?}"),
                None => format!("{shown:?} is no time that is known here: say its format with --time-format"),
            }
        };
        if let Some(format) = &self.given {
            return given(text, format).ok_or_else(refused);
        }
        let (at, known) = match self.found {
            Some(known) => (known.read(text), known),
            None => find(text).map_or((None, Known::Civil), |(at, known)| (Some(at), known)),
        };
        let at = at.ok_or_else(refused)?;
        self.found = Some(known);
        Ok(at)
    }
}

fn find(text: &str) -> Option<(Timestamp, Known)> {
    let unit_us = match text.parse::<f64>() {
        // By size: from 1973 on, seconds, milliseconds, micro- and nanoseconds do not overlap.
        Ok(number) if number.abs() < 1e11 => 1e6,
        Ok(number) if number.abs() < 1e14 => 1e3,
        Ok(number) if number.abs() < 1e17 => 1.0,
        _ => 1e-3,
    };
    let known = [Known::Instant, Known::Civil, Known::Dotted, Known::Number { unit_us }];
    known.into_iter().find_map(|known| Some((known.read(text)?, known)))
}

impl Known {
    fn read(self, text: &str) -> Option<Timestamp> {
        match self {
            Self::Instant => text.parse::<jiff::Timestamp>().ok().map(from_jiff),
            Self::Civil => text.parse::<civil::DateTime>().ok().and_then(utc),
            Self::Dotted => strtime::parse(DOTTED, text).ok()?.to_datetime().ok().and_then(utc),
            Self::Number { unit_us } => {
                let us = text.parse::<f64>().ok()? * unit_us;
                // i64 holds 292,000 years; f64 is exact to the microsecond until 2255.
                (us.abs() < 9e18).then(|| Timestamp(us.round() as i64))
            }
        }
    }
}

fn given(text: &str, format: &str) -> Option<Timestamp> {
    let parsed = strtime::parse(format, text).ok()?;
    parsed.to_timestamp().map(from_jiff).ok().or_else(|| parsed.to_datetime().ok().and_then(utc))
}

fn utc(time: civil::DateTime) -> Option<Timestamp> {
    time.to_zoned(TimeZone::UTC).ok().map(|time| from_jiff(time.timestamp()))
}

fn from_jiff(time: jiff::Timestamp) -> Timestamp {
    Timestamp(time.as_microsecond())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(given: Option<&str>, text: &str, expected: Option<&str>) {
        let expected = expected.map(|expected| from_jiff(expected.parse().unwrap()));
        assert_eq!(TimeFormat::new(given).read(text).ok(), expected, "{text}");
    }

    #[test]
    fn times_are_read_as_people_write_them() {
        check(None, "2020-03-09 10:14:33", Some("2020-03-09T10:14:33Z"));
        check(None, "2017-09-19 21:00:16.000000", Some("2017-09-19T21:00:16Z"));
        check(None, "2026-01-31T12:00:00.25+02:00", Some("2026-01-31T10:00:00.25Z"));
        check(None, "2026-01-31T12:00:00Z", Some("2026-01-31T12:00:00Z"));
        check(None, "31.01.2026 12:00:00", Some("2026-01-31T12:00:00Z"));
        check(None, "1767268800", Some("2026-01-01T12:00:00Z"));
        check(None, "1767268800.5", Some("2026-01-01T12:00:00.5Z"));
        check(None, "1767268800000", Some("2026-01-01T12:00:00Z"));
        check(None, "1767268800000000", Some("2026-01-01T12:00:00Z"));
        check(None, "1767268800000000000", Some("2026-01-01T12:00:00Z"));
        check(None, "0", Some("1970-01-01T00:00:00Z"));
        check(Some("%m/%d/%Y %H:%M"), "01/31/2026 12:00", Some("2026-01-31T12:00:00Z"));
        check(Some("%Y-%m-%d %H:%M:%S %z"), "2026-01-31 12:00:00 +0100", Some("2026-01-31T11:00:00Z"));
        for bad in ["", "yesterday", "01/02/2026 12:00", "NaN", "inf", "1e300", "2026-13-01 00:00:00"] {
            check(None, bad, None);
        }
        check(Some("%Y"), "2026", None);
    }

    #[test]
    fn the_first_time_decides_for_all() {
        let mut seconds = TimeFormat::new(None);
        assert_eq!(seconds.read("99999999999").unwrap(), Timestamp(99_999_999_999_000_000));
        assert_eq!(seconds.read("100000000001").unwrap(), Timestamp(100_000_000_001_000_000));
        assert!(seconds.read("2020-03-09 10:14:33").is_err());
    }
}
