//! Trends at the resolution of a screen: buckets that keep each minimum, maximum and weighted mean.
//!
//! A bucket is a whole number of the machine's intervals and starts at a multiple of its own length since 1970, so
//! that zooming and scrolling give the same buckets. All series of a response share one time axis; `null` stands
//! where there was nothing, so that a chart shows the hole. The database groups rows into [`Cell`]s; here the cells
//! of the machines that are shown as one are put together.
//!
//! Wide buckets are read from hours and days, and are whole hours or days then; so are narrow ones where the intervals
//! are no longer kept. Extremes are exact at every level, up to the range's end.

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use utoipa::ToSchema;

use crate::history::{DAY_MS, HOUR_MS, Level, Segment, floor as floor_at, segments};

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

/// From when on intervals and hours are kept, where coarser rows are older.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Kept {
    intervals_from: Option<Timestamp>,
    hours_from: Option<Timestamp>,
}

impl Kept {
    /// Of the first interval, hour and day that there are.
    #[must_use]
    pub fn new(interval: Option<Timestamp>, hour: Option<Timestamp>, day: Option<Timestamp>) -> Self {
        // Whether coarser rows begin before the one that has the first finer one.
        let older = |coarse: Option<Timestamp>, fine: Option<Timestamp>, ms| {
            coarse.is_some_and(|coarse| fine.is_none_or(|fine| coarse < floor_at(fine, ms)))
        };
        let from = |older: bool, fine: Option<Timestamp>| older.then(|| fine.unwrap_or(Timestamp::MAX));
        Self {
            intervals_from: from(older(hour, interval, HOUR_MS) || older(day, interval, DAY_MS), interval),
            hours_from: from(older(day, hour, DAY_MS), hour),
        }
    }
}

/// Where the buckets of a request lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    pub from: Timestamp,
    pub to: Timestamp,
    pub level: Level,
    pub bucket_ms: i64,
    /// The start of the first bucket, milliseconds since 1970: at or before `from`.
    pub first_ms: i64,
    pub buckets: usize,
    points: i64,
}

impl Plan {
    /// At most `points` buckets from `from` to `to`, exclusive; none shorter than `interval_ms`. Buckets that would be longer than
    /// half an hour are whole hours, and those longer than half a day whole days.
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
        let plan = Self { from, to, level: Level::Interval, bucket_ms: 0, first_ms: 0, buckets: 0, points };
        let mut plan = plan.of(Level::Interval, i64::from(interval_ms.max(1)));
        for (level, ms) in [(Level::Hour, HOUR_MS), (Level::Day, DAY_MS)] {
            if plan.bucket_ms * 2 > ms {
                plan = plan.of(level, ms);
            }
        }
        Ok(plan)
    }

    /// The plan with buckets that are multiples of `unit_ms`.
    fn of(self, level: Level, unit_ms: i64) -> Self {
        let (from_ms, to_ms) = (self.from.as_millisecond(), ceil_div(self.to.as_microsecond(), 1_000));
        let units = ceil_div(ceil_div(to_ms - from_ms, self.points), unit_ms).max(1);
        let mut bucket_ms = units * unit_ms;
        // Whole buckets may be one more than the range's share.
        while buckets(from_ms, to_ms, bucket_ms) > self.points {
            bucket_ms += unit_ms;
        }
        let count = usize::try_from(buckets(from_ms, to_ms, bucket_ms)).unwrap_or_default();
        Self { level, bucket_ms, first_ms: floor(from_ms, bucket_ms), buckets: count, ..self }
    }

    /// The plan at a level that reaches back to its beginning.
    #[must_use]
    pub fn within(self, kept: &Kept) -> Self {
        let lacks = |from: Option<Timestamp>| from.is_some_and(|from| self.from < from);
        match self.level {
            _ if self.level < Level::Day && lacks(kept.hours_from) => self.of(Level::Day, DAY_MS),
            Level::Interval if lacks(kept.intervals_from) => self.of(Level::Hour, HOUR_MS),
            _ => self,
        }
    }

    /// What is to be read: whole rows of the level, and the range's end more finely where that is kept.
    #[must_use]
    pub fn segments(&self, kept: &Kept) -> Vec<Segment> {
        let lacks = |from: Option<Timestamp>, ms| from.is_some_and(|from| floor_at(self.to, ms) < from);
        let finest = if lacks(kept.hours_from, DAY_MS) {
            Level::Day
        } else if lacks(kept.intervals_from, HOUR_MS) {
            Level::Hour
        } else {
            Level::Interval
        };
        let first = Timestamp::from_millisecond(self.first_ms).unwrap_or(self.from);
        segments(first, self.to, self.level, finest.min(self.level))
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
    fn wide_buckets_are_hours_and_days() {
        let (hour, day) = (HOUR_MS, DAY_MS);
        for (range_ms, points, level, bucket_ms) in [
            (30 * day, 5_000, Level::Interval, 520_000),
            (30 * day, 1_000, Level::Hour, hour),
            (30 * day, 100, Level::Hour, 8 * hour),
            (30 * day, 10, Level::Day, 4 * day),
            (365 * day, 500, Level::Day, day),
        ] {
            let from = 1_790_000_000_000;
            let plan = Plan::new(ms(from), ms(from + range_ms), points, 10_000).unwrap();
            assert_eq!((plan.level, plan.bucket_ms), (level, bucket_ms), "{range_ms} {points}");
            assert!(plan.buckets <= points as usize && plan.first_ms % bucket_ms == 0);
        }
    }

    #[test]
    fn what_is_not_kept_finely_is_read_coarsely() {
        let at = |day: i64, hour: i64| ms(1_790_035_200_000 + day * DAY_MS + hour * HOUR_MS);
        let all = Kept::new(Some(at(0, 3)), Some(at(0, 3)), Some(at(0, 0)));
        assert_eq!(all, Kept::default(), "they begin together");
        let kept = Kept::new(Some(at(20, 1)), Some(at(10, 0)), Some(at(0, 0)));
        let level = |from: Timestamp, to: Timestamp| {
            let plan = Plan::new(from, to, 500, 10_000).unwrap().within(&kept);
            let last = plan.segments(&kept).last().unwrap().level;
            (plan.level, last)
        };
        assert_eq!(level(at(20, 1), at(20, 9)), (Level::Interval, Level::Interval));
        assert_eq!(level(at(19, 0), at(19, 9)), (Level::Hour, Level::Hour));
        assert_eq!(level(at(19, 0), ms(at(21, 9).as_millisecond() + 1)), (Level::Hour, Level::Interval));
        assert_eq!(level(at(19, 0), ms(at(19, 9).as_millisecond() + 1)), (Level::Hour, Level::Hour));
        assert_eq!(level(at(5, 0), at(5, 9)), (Level::Day, Level::Day));
        let only = Kept::new(None, None, Some(at(0, 0)));
        assert_eq!(Plan::new(at(0, 0), at(1, 0), 500, 10_000).unwrap().within(&only).level, Level::Day);
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
