//! Trends at the resolution of a screen: buckets that keep each minimum, maximum and weighted mean.
//!
//! A bucket is a whole number of the machine's intervals and starts at a multiple of its own length since 1970, so
//! that zooming and scrolling give the same buckets. All series of a response share one time axis; `null` stands
//! where there was nothing, so that a chart shows the hole. The database groups rows into [`Cell`]s; here the cells
//! of the machines that are shown as one are put together.

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use utoipa::ToSchema;

pub const POINTS_MIN: u32 = 10;
pub const POINTS_MAX: u32 = 5_000;
pub const POINTS_DEFAULT: u32 = 500;
/// Cells of a response; with more sensors there are fewer points.
pub const CELLS_MAX: usize = 400_000;
/// The range where none is asked for.
pub const RANGE_DEFAULT: SignedDuration = SignedDuration::from_mins(15);
/// The longest range.
pub const RANGE_MAX: SignedDuration = SignedDuration::from_hours(24 * 400);

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadRange {
    #[error("`to` must be after `from`")]
    Empty,
    #[error("the range is longer than 400 days")]
    TooLong,
}

/// Where the buckets of a request lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    pub from: Timestamp,
    pub to: Timestamp,
    pub bucket_ms: i64,
    /// The start of the first bucket, milliseconds since 1970: at or before `from`.
    pub first_ms: i64,
    pub buckets: usize,
}

impl Plan {
    /// At most `points` buckets from `from` to `to`, exclusive; none shorter than `interval_ms`.
    ///
    /// # Errors
    /// If the range is empty or too long.
    pub fn new(from: Timestamp, to: Timestamp, points: u32, interval_ms: i32) -> Result<Self, BadRange> {
        if to <= from {
            return Err(BadRange::Empty);
        }
        if to.duration_since(from) > RANGE_MAX {
            return Err(BadRange::TooLong);
        }
        let points = i64::from(points.clamp(POINTS_MIN, POINTS_MAX));
        let interval_ms = i64::from(interval_ms.max(1));
        let (from_ms, to_ms) = (from.as_millisecond(), ceil_div(to.as_microsecond(), 1_000));
        let intervals = ceil_div(ceil_div(to_ms - from_ms, points), interval_ms).max(1);
        let mut bucket_ms = intervals * interval_ms;
        // Whole buckets may be one more than the range's share.
        while buckets(from_ms, to_ms, bucket_ms) > points {
            bucket_ms += interval_ms;
        }
        let count = usize::try_from(buckets(from_ms, to_ms, bucket_ms)).map_err(|_| BadRange::Empty)?;
        Ok(Self { from, to, bucket_ms, first_ms: floor(from_ms, bucket_ms), buckets: count })
    }

    /// How many points `sensors` sensors may have.
    #[must_use]
    pub fn points_for(points: u32, sensors: usize) -> u32 {
        let most = u32::try_from(CELLS_MAX / sensors.max(1)).unwrap_or(POINTS_MAX);
        points.min(most.max(POINTS_MIN))
    }

    fn index(&self, start: Timestamp) -> Option<usize> {
        let offset = start.as_millisecond() - self.first_ms;
        usize::try_from(offset.div_euclid(self.bucket_ms)).ok().filter(|index| *index < self.buckets)
    }

    fn times(&self) -> Vec<i64> {
        (0_i64..).take(self.buckets).map(|n| self.first_ms + n * self.bucket_ms).collect()
    }
}

fn floor(ms: i64, bucket_ms: i64) -> i64 {
    ms.div_euclid(bucket_ms) * bucket_ms
}

fn ceil_div(a: i64, b: i64) -> i64 {
    (a + b - 1).div_euclid(b)
}

fn buckets(from_ms: i64, to_ms: i64, bucket_ms: i64) -> i64 {
    ceil_div(to_ms - floor(from_ms, bucket_ms), bucket_ms)
}

/// One sensor in one bucket.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cell {
    pub min: f64,
    pub max: f64,
    /// Of the means, each times its weight.
    pub sum: f64,
    /// Readings; an interval in which a value was only held weighs as one.
    pub weight: f64,
}

impl Cell {
    fn join(self, other: Self) -> Self {
        Self {
            min: self.min.min(other.min),
            max: self.max.max(other.max),
            sum: self.sum + other.sum,
            weight: self.weight + other.weight,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct SensorSeries {
    pub sensor: String,
    pub unit: Option<String>,
    pub time_ms: Vec<i64>,
    pub min: Vec<Option<f64>>,
    pub max: Vec<Option<f64>>,
    pub mean: Vec<Option<f64>>,
}

#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct ScoreSeries {
    pub time_ms: Vec<i64>,
    pub max: Vec<Option<f32>>,
}

#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct HealthSeries {
    pub time_ms: Vec<i64>,
    pub min: Vec<Option<f32>>,
}

#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Series {
    pub from: Timestamp,
    pub to: Timestamp,
    pub bucket_ms: i64,
    pub series: Vec<SensorSeries>,
    pub score: ScoreSeries,
    pub health: HealthSeries,
}

/// Collects the cells of one response.
#[derive(Debug)]
pub struct Collector {
    plan: Plan,
    sensors: Vec<(String, Option<String>, Vec<Option<Cell>>)>,
    score: Vec<Option<f32>>,
    health: Vec<Option<f32>>,
}

impl Collector {
    /// For these sensors, with their units.
    #[must_use]
    pub fn new(plan: Plan, sensors: Vec<(String, Option<String>)>) -> Self {
        let sensors = sensors.into_iter().map(|(name, unit)| (name, unit, vec![None; plan.buckets])).collect();
        Self { plan, sensors, score: vec![None; plan.buckets], health: vec![None; plan.buckets] }
    }

    /// Adds what a sensor had in the bucket (or interval) that starts at `start`.
    pub fn add(&mut self, sensor: usize, start: Timestamp, cell: Cell) {
        let (Some(index), Some((_, _, cells))) = (self.plan.index(start), self.sensors.get_mut(sensor)) else { return };
        cells[index] = Some(cells[index].map_or(cell, |known| known.join(cell)));
    }

    /// Adds what the detector said in the bucket (or interval) that starts at `start`.
    pub fn add_verdict(&mut self, start: Timestamp, score: Option<f32>, health_percent: Option<f32>) {
        let Some(index) = self.plan.index(start) else { return };
        if let Some(score) = score.filter(|score| score.is_finite()) {
            self.score[index] = Some(self.score[index].map_or(score, |known| known.max(score)));
        }
        if let Some(health) = health_percent.filter(|health| health.is_finite()) {
            self.health[index] = Some(self.health[index].map_or(health, |known| known.min(health)));
        }
    }

    #[must_use]
    pub fn finish(self) -> Series {
        let time_ms = self.plan.times();
        let series = self
            .sensors
            .into_iter()
            .map(|(sensor, unit, cells)| SensorSeries {
                sensor,
                unit,
                time_ms: time_ms.clone(),
                min: cells.iter().map(|cell| cell.map(|cell| cell.min)).collect(),
                max: cells.iter().map(|cell| cell.map(|cell| cell.max)).collect(),
                mean: cells.iter().map(|cell| cell.map(|cell| cell.sum / cell.weight)).collect(),
            })
            .collect();
        Series {
            from: self.plan.from,
            to: self.plan.to,
            bucket_ms: self.plan.bucket_ms,
            series,
            score: ScoreSeries { time_ms: time_ms.clone(), max: self.score },
            health: HealthSeries { time_ms, min: self.health },
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::float_cmp, reason = "what is kept is kept bit by bit")]

    use proptest::prelude::*;

    use super::*;

    fn ms(ms: i64) -> Timestamp {
        Timestamp::from_millisecond(ms).unwrap()
    }

    #[test]
    fn buckets_are_whole_intervals_and_no_more_than_asked_for() {
        let minute = 60_000;
        for (range_ms, points, interval_ms, bucket_ms) in [
            (15 * minute, 500, 10_000, 10_000),
            (15 * minute, 50, 10_000, 20_000),
            (24 * 60 * minute, 500, 10_000, 180_000),
            (15 * minute, 500, 0, 1_801),
        ] {
            let from = 1_790_000_000_000;
            let plan = Plan::new(ms(from), ms(from + range_ms), points, interval_ms).unwrap();
            assert_eq!(plan.bucket_ms, bucket_ms, "{range_ms} {points} {interval_ms}");
        }
    }

    #[test]
    fn ranges() {
        assert_eq!(Plan::new(ms(5), ms(5), 10, 1), Err(BadRange::Empty));
        assert_eq!(Plan::new(ms(5), ms(4), 10, 1), Err(BadRange::Empty));
        assert_eq!(Plan::new(ms(0), ms(401 * 86_400_000), 10, 1), Err(BadRange::TooLong));
        assert_eq!(Plan::points_for(500, 8), 500);
        assert_eq!(Plan::points_for(5_000, 256), 1_562);
    }

    #[test]
    fn an_empty_bucket_is_null_and_a_mean_is_weighted() {
        let plan = Plan::new(ms(0), ms(39_999), 10, 10_000).unwrap();
        let mut collector = Collector::new(plan, vec![("flow".into(), Some("L/min".into()))]);
        collector.add(0, ms(0), Cell { min: 1.0, max: 2.0, sum: 10.0, weight: 9.0 });
        collector.add(0, ms(0), Cell { min: 0.0, max: 1.0, sum: 0.0, weight: 1.0 });
        collector.add(0, ms(20_000), Cell { min: 5.0, max: 5.0, sum: 5.0, weight: 1.0 });
        collector.add(0, ms(40_000), Cell { min: 9.0, max: 9.0, sum: 9.0, weight: 1.0 });
        collector.add(7, ms(0), Cell { min: 9.0, max: 9.0, sum: 9.0, weight: 1.0 });
        collector.add_verdict(ms(10_000), Some(0.5), Some(80.0));
        collector.add_verdict(ms(10_000), Some(1.5), Some(90.0));
        collector.add_verdict(ms(10_000), Some(f32::NAN), None);
        let series = collector.finish();
        assert_eq!(series.series[0].time_ms, [0, 10_000, 20_000, 30_000]);
        assert_eq!(series.series[0].min, [Some(0.0), None, Some(5.0), None]);
        assert_eq!(series.series[0].max, [Some(2.0), None, Some(5.0), None]);
        assert_eq!(series.series[0].mean, [Some(1.0), None, Some(5.0), None]);
        assert_eq!(series.score.max, [None, Some(1.5), None, None]);
        assert_eq!(series.health.min, [None, Some(80.0), None, None]);
    }

    proptest! {
        #[test]
        fn the_extremes_and_the_mean_survive(
            values in prop::collection::vec(-1e6..1e6_f64, 1..2_000),
            points in 10..100_u32,
            from in 0..1_000_000_i64,
        ) {
            let last = from + values.len() as i64 * 1_000;
            let plan = Plan::new(ms(from), ms(last), points, 1_000).unwrap();
            prop_assert!(plan.buckets <= points as usize);
            prop_assert!(plan.first_ms <= from);
            let mut collector = Collector::new(plan, vec![("x".into(), None)]);
            for (n, &value) in values.iter().enumerate() {
                let cell = Cell { min: value, max: value, sum: value, weight: 1.0 };
                collector.add(0, ms(from + n as i64 * 1_000), cell);
            }
            let series = collector.finish().series.remove(0);
            let min = series.min.iter().flatten().copied().fold(f64::INFINITY, f64::min);
            let max = series.max.iter().flatten().copied().fold(f64::NEG_INFINITY, f64::max);
            prop_assert_eq!(min, values.iter().copied().fold(f64::INFINITY, f64::min));
            prop_assert_eq!(max, values.iter().copied().fold(f64::NEG_INFINITY, f64::max));
            for ((min, max), mean) in series.min.iter().zip(&series.max).zip(&series.mean) {
                if let (Some(min), Some(max), Some(mean)) = (min, max, mean) {
                    prop_assert!(*min - 1e-6 <= *mean && *mean <= *max + 1e-6);
                }
            }
        }
    }
}
