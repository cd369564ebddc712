//! What a kilowatt-hour costs: a price, and others in bands of the week, by the clocks of the site.
//!
//! Prices are millionths of the currency's unit. A band begins and ends at a quarter of an hour; an hour's energy is shared evenly
//! among its quarters. Summer time needs no rule of its own: each quarter has the price of what the clock shows then.

use jiff::civil::{Date, DateTime};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Bands of a tariff.
pub const BANDS_MAX: usize = 48;
/// The highest price, and with a minus the lowest: a thousand of the currency's unit.
pub const PRICE_MICRO_MAX: i64 = 1_000_000_000;
/// What bands are made of.
pub const QUARTER_MIN: i16 = 15;
const QUARTERS_OF_DAY: usize = 96;
const QUARTERS_OF_WEEK: usize = 7 * QUARTERS_OF_DAY;

/// Some hours of some days of the week.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Band {
    #[schema(min_length = 1, max_length = 100)]
    pub name: String,
    /// The sum of 1 (Monday), 2, 4, 8, 16, 32 and 64 (Sunday).
    #[schema(minimum = 1, maximum = 127)]
    pub days: i16,
    /// Minutes since midnight by the site's clocks, a multiple of 15.
    #[schema(minimum = 0, maximum = 1_425, multiple_of = 15)]
    pub from_min: i16,
    /// The same, exclusive; not behind `from_min`: of the next day.
    #[schema(minimum = 15, maximum = 1_440, multiple_of = 15)]
    pub to_min: i16,
    /// Millionths of the currency's unit for a kilowatt-hour.
    #[schema(minimum = -1_000_000_000, maximum = 1_000_000_000)]
    pub price_micro: i64,
}

/// What is wrong with bands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadBands {
    #[error("are at most {BANDS_MAX}")]
    TooMany,
    #[error("have days from 1 to 127")]
    Days,
    #[error("begin at 0 to 1425 and end at 15 to 1440 minutes, in multiples of 15")]
    Times,
    #[error("have prices from -1000000000 to 1000000000")]
    Price,
    #[error("may not overlap: a moment has one price")]
    Overlap,
}

/// The quarters of the week (from Monday 00:00) in which a band holds.
fn quarters(band: &Band) -> impl Iterator<Item = usize> + use<> {
    let (from, to) = ((band.from_min / QUARTER_MIN) as usize, (band.to_min / QUARTER_MIN) as usize);
    let length = if to > from { to - from } else { to + QUARTERS_OF_DAY - from };
    let days = band.days;
    (0..7_usize)
        .filter(move |day| days & (1 << day) != 0)
        .flat_map(move |day| (0..length).map(move |n| (day * QUARTERS_OF_DAY + from + n) % QUARTERS_OF_WEEK))
}

/// Checks bands.
///
/// # Errors
/// With what is wrong.
pub fn check(bands: &[Band]) -> Result<(), BadBands> {
    if bands.len() > BANDS_MAX {
        return Err(BadBands::TooMany);
    }
    let mut taken = [false; QUARTERS_OF_WEEK];
    for band in bands {
        let whole = band.from_min % QUARTER_MIN == 0 && band.to_min % QUARTER_MIN == 0;
        if !whole || !(0..1_440).contains(&band.from_min) || !(1..=1_440).contains(&band.to_min) {
            return Err(BadBands::Times);
        }
        if !(1..=127).contains(&band.days) {
            return Err(BadBands::Days);
        }
        if !(-PRICE_MICRO_MAX..=PRICE_MICRO_MAX).contains(&band.price_micro) {
            return Err(BadBands::Price);
        }
        for quarter in quarters(band) {
            if std::mem::replace(&mut taken[quarter], true) {
                return Err(BadBands::Overlap);
            }
        }
    }
    Ok(())
}

/// The prices of a week, from a day on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tariff {
    pub valid_from: Date,
    pub currency: String,
    week: Vec<i64>,
}

impl Tariff {
    /// Of bands that [`check`] finds right.
    #[must_use]
    pub fn new(valid_from: Date, currency: String, price_micro: i64, bands: &[Band]) -> Self {
        let mut week = vec![price_micro; QUARTERS_OF_WEEK];
        for band in bands {
            for quarter in quarters(band) {
                week[quarter] = band.price_micro;
            }
        }
        Self { valid_from, currency, week }
    }

    /// Of the quarter of an hour that begins when the clocks show this.
    #[must_use]
    pub fn price_micro(&self, local: DateTime) -> i64 {
        let day = local.weekday().to_monday_zero_offset() as usize;
        self.week[day * QUARTERS_OF_DAY + local.hour() as usize * 4 + (local.minute() / 15) as usize]
    }
}

/// Which tariff holds on a day; `tariffs` are in the order of their beginnings.
#[must_use]
pub fn in_force(tariffs: &[Tariff], day: Date) -> Option<usize> {
    tariffs.partition_point(|tariff| tariff.valid_from <= day).checked_sub(1)
}

#[cfg(test)]
mod tests {
    use jiff::civil::date;

    use super::*;

    fn band(days: i16, from_min: i16, to_min: i16, price_micro: i64) -> Band {
        Band { name: "b".into(), days, from_min, to_min, price_micro }
    }

    #[test]
    fn a_moment_has_one_price() {
        let bands = [band(31, 360, 1_320, 300_000), band(64, 1_320, 360, 50_000)];
        assert_eq!(check(&bands), Ok(()));
        let tariff = Tariff::new(date(2026, 1, 1), "EUR".into(), 200_000, &bands);
        for (day, hour, minute, price) in [
            (5, 6, 0, 300_000), // a Monday
            (5, 5, 45, 50_000), // of Sunday's night
            (5, 21, 59, 300_000),
            (5, 22, 0, 200_000),
            (10, 12, 0, 200_000), // Saturday
            (11, 22, 0, 50_000),  // Sunday
            (11, 21, 45, 200_000),
            (6, 5, 45, 200_000),
        ] {
            assert_eq!(tariff.price_micro(date(2026, 1, day).at(hour, minute, 0, 0)), price, "{day} {hour}:{minute}");
        }
        for (bad, why) in [
            (vec![band(0, 0, 15, 0)], BadBands::Days),
            (vec![band(128, 0, 15, 0)], BadBands::Days),
            (vec![band(1, 10, 30, 0)], BadBands::Times),
            (vec![band(1, -15, 30, 0)], BadBands::Times),
            (vec![band(1, 1_440, 30, 0)], BadBands::Times),
            (vec![band(1, 0, 0, 0)], BadBands::Times),
            (vec![band(1, 0, 1_455, 0)], BadBands::Times),
            (vec![band(1, 0, 15, PRICE_MICRO_MAX + 1)], BadBands::Price),
            (vec![band(1, 0, 1_440, 0), band(127, 600, 615, 0)], BadBands::Overlap),
            (vec![band(64, 1_320, 360, 0), band(1, 345, 360, 0)], BadBands::Overlap),
            (vec![band(1, 0, 15, 0); BANDS_MAX + 1], BadBands::TooMany),
        ] {
            assert_eq!(check(&bad), Err(why), "{bad:?}");
        }
        assert_eq!(check(&[band(127, 600, 600, 1)]), Ok(()), "whole days, from ten to ten");
    }

    #[test]
    fn the_latest_that_has_begun_holds() {
        let from = |day| Tariff::new(day, "EUR".into(), 0, &[]);
        let tariffs = [from(date(2026, 1, 1)), from(date(2026, 4, 1))];
        for (day, expected) in [
            (date(2025, 12, 31), None),
            (date(2026, 1, 1), Some(0)),
            (date(2026, 3, 31), Some(0)),
            (date(2026, 4, 1), Some(1)),
            (date(2030, 1, 1), Some(1)),
        ] {
            assert_eq!(in_force(&tariffs, day), expected, "{day}");
        }
    }
}
