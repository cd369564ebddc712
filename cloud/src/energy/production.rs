//! How much a machine made, from a sensor that counts it or tells its rate.
//!
//! Hours are what is read: their least, greatest and last value are enough to see a counter begin anew once in an hour. Over
//! more than [`GAP_HOURS`] without readings a counter's rise is not taken: nobody knows when it was made.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::calendar::Calendar;
use crate::history::HOUR_MS;

/// After so many hours a counter's last value says nothing of when its next rise was.
pub const GAP_HOURS: i64 = 2;
/// A counter below this share of what it was has begun anew; what falls less was corrected.
const ANEW: f64 = 0.5;

/// What a production sensor shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ProductionKind {
    /// A count that goes up, and may begin anew.
    Counter,
    /// So much a time: its unit ends in `/s`, `/min`, `/h` or `/d`.
    Rate,
}

impl ProductionKind {
    /// As the database spells it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Rate => "rate",
        }
    }
}

/// Why a sensor says nothing of production.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadUnit {
    #[error("measures energy or power, which is what production is to explain")]
    Energy,
    #[error("has no unit that ends in /s, /min, /h or /d: it is no rate")]
    NoRate,
    #[error("has a unit that is so much a time: it is a rate, not a counter")]
    IsRate,
}

/// The unit of what is made (UCUM, `1` for a number), and how often an hour has the rate's time in it.
///
/// # Errors
/// If the sensor cannot be one of production.
pub fn unit(kind: ProductionKind, unit: Option<&str>) -> Result<(String, f64), BadUnit> {
    let unit = unit.unwrap_or("1");
    let energy = |unit: &str| matches!(unit.trim_start_matches(['k', 'M', 'G']), "W" | "W.h" | "Wh" | "J");
    let times = [("/s", 3_600.0), ("/min", 60.0), ("/h", 1.0), ("/d", 1.0 / 24.0)];
    let rate = times.iter().find_map(|(time, in_hour)| Some((unit.strip_suffix(time)?, *in_hour)));
    if energy(unit) || rate.is_some_and(|(made, _)| energy(made)) {
        return Err(BadUnit::Energy);
    }
    match (kind, rate) {
        (ProductionKind::Counter, None) => Ok((unit.to_owned(), 1.0)),
        (ProductionKind::Counter, Some(_)) => Err(BadUnit::IsRate),
        (ProductionKind::Rate, None) => Err(BadUnit::NoRate),
        (ProductionKind::Rate, Some(("", in_hour))) => Ok(("1".to_owned(), in_hour)),
        (ProductionKind::Rate, Some((made, in_hour))) => Ok((made.to_owned(), in_hour)),
    }
}

/// One sensor over one hour in which it had values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SensorHour {
    pub start: Timestamp,
    pub min: f64,
    pub max: f64,
    pub mean: f64,
    pub last: f64,
    /// Of which the machine was heard.
    pub known_ms: i64,
}

/// One sensor of a machine, as each of its parts has it: one that was replaced goes on where the other ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Counted {
    pub kind: ProductionKind,
    /// None where nothing is known of it.
    pub parts: Vec<Part>,
}

/// How often an hour has the rate's time in it, and the sensor's hours in their order, from a little before the range on.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    pub in_hour: f64,
    pub hours: Vec<SensorHour>,
}

/// What all sensors together counted in each period of a calendar, and how many hours of each sensor are known there.
#[must_use]
pub fn by_period(calendar: &Calendar, sensors: &[Counted]) -> Vec<(f64, f64)> {
    let mut periods = vec![(0.0, 0.0); calendar.periods.len()];
    for sensor in sensors {
        let mut known = BTreeSet::new();
        for (hour, amount) in sensor.parts.iter().flat_map(|part| made(sensor.kind, part.in_hour, &part.hours)) {
            let is_new = known.insert(hour);
            for slice in calendar.slices(hour) {
                let period = &mut periods[slice.period];
                period.0 += amount * slice.share;
                period.1 += if is_new { slice.share } else { 0.0 };
            }
        }
    }
    periods
}

/// What was made in each hour; the hours are in their order.
#[must_use]
pub fn made(kind: ProductionKind, in_hour: f64, hours: &[SensorHour]) -> Vec<(Timestamp, f64)> {
    let mut before: Option<&SensorHour> = None;
    let mut made = Vec::with_capacity(hours.len());
    for hour in hours {
        let amount = match kind {
            ProductionKind::Rate => hour.mean * in_hour * hour.known_ms as f64 / HOUR_MS as f64,
            ProductionKind::Counter => {
                let gap =
                    |known: &&SensorHour| hour.start.duration_since(known.start).as_secs() > (GAP_HOURS + 1) * 3_600;
                rise(before.filter(|known| !gap(known)).map_or(hour.min, |known| known.last), hour)
            }
        };
        made.push((hour.start, amount));
        before = Some(hour);
    }
    made
}

/// How far a counter went up in an hour, from what it was before.
fn rise(before: f64, hour: &SensorHour) -> f64 {
    let anew = |now: f64, then: f64| now < then * ANEW;
    if anew(hour.min, before) && !anew(hour.last, hour.max) {
        // It began anew before it went on: from nothing to where it is.
        return hour.last;
    }
    if anew(hour.last, hour.max) {
        // It went on, unless what it showed before was gone already, and began anew.
        return (hour.max - before).max(0.0) + hour.last;
    }
    hour.last - before
}

#[cfg(test)]
mod tests {
    #![allow(clippy::float_cmp, reason = "whole numbers are exact")]

    use super::*;

    fn hour(n: i64, min: f64, max: f64, last: f64) -> SensorHour {
        let start = Timestamp::from_second(n * 3_600).unwrap();
        SensorHour { start, min, max, mean: f64::midpoint(min, max), last, known_ms: HOUR_MS }
    }

    fn amounts(hours: &[SensorHour]) -> Vec<f64> {
        made(ProductionKind::Counter, 1.0, hours).into_iter().map(|(_, amount)| amount).collect()
    }

    #[test]
    fn a_counter_goes_up_and_begins_anew() {
        let check = |hours: &[SensorHour], expected: &[f64]| assert_eq!(amounts(hours), expected, "{hours:?}");
        check(&[hour(0, 100.0, 150.0, 150.0), hour(1, 150.0, 170.0, 170.0)], &[50.0, 20.0]);
        // Readings begin a little into the hour: what was made meanwhile counts.
        check(&[hour(0, 100.0, 150.0, 150.0), hour(1, 155.0, 170.0, 170.0)], &[50.0, 20.0]);
        // Begins anew in the middle of an hour, between two, and at the first reading.
        check(&[hour(0, 100.0, 150.0, 150.0), hour(1, 0.0, 180.0, 12.0)], &[50.0, 42.0]);
        check(&[hour(0, 100.0, 150.0, 150.0), hour(1, 0.0, 30.0, 30.0)], &[50.0, 30.0]);
        check(&[hour(0, 100.0, 150.0, 150.0), hour(1, 0.0, 160.0, 160.0)], &[50.0, 160.0]);
        // A correction is none.
        check(&[hour(0, 100.0, 150.0, 150.0), hour(1, 148.0, 150.0, 149.0)], &[50.0, -1.0]);
        // Nobody knows when it was made.
        check(&[hour(0, 100.0, 150.0, 150.0), hour(3, 500.0, 510.0, 510.0)], &[50.0, 360.0]);
        check(&[hour(0, 100.0, 150.0, 150.0), hour(4, 500.0, 510.0, 510.0)], &[50.0, 10.0]);
        check(&[hour(0, 0.0, 0.0, 0.0), hour(1, 0.0, 0.0, 0.0)], &[0.0, 0.0]);
    }

    #[test]
    fn a_rate_is_of_the_time_in_which_it_was_known() {
        let half = SensorHour { known_ms: HOUR_MS / 2, ..hour(0, 1.0, 3.0, 2.0) };
        assert_eq!(made(ProductionKind::Rate, 60.0, &[half])[0].1, 60.0);
    }

    #[test]
    fn units_say_what_is_made() {
        use ProductionKind::{Counter, Rate};
        for (kind, text, expected) in [
            (Counter, None, Ok(("1".to_owned(), 1.0))),
            (Counter, Some("kg"), Ok(("kg".to_owned(), 1.0))),
            (Counter, Some("m3/h"), Err(BadUnit::IsRate)),
            (Counter, Some("kWh"), Err(BadUnit::Energy)),
            (Counter, Some("kW.h"), Err(BadUnit::Energy)),
            (Counter, Some("MW"), Err(BadUnit::Energy)),
            (Rate, Some("m3/h"), Ok(("m3".to_owned(), 1.0))),
            (Rate, Some("/min"), Ok(("1".to_owned(), 60.0))),
            (Rate, Some("kg/s"), Ok(("kg".to_owned(), 3_600.0))),
            (Rate, Some("kJ/h"), Err(BadUnit::Energy)),
            (Rate, Some("bar"), Err(BadUnit::NoRate)),
            (Rate, None, Err(BadUnit::NoRate)),
        ] {
            assert_eq!(unit(kind, text), expected, "{text:?}");
        }
    }
}
