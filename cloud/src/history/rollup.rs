//! Many intervals of a machine as one row: an hour, or a day.
//!
//! Counts, weights, extremes, last values, times by mode and energy's presence combine exactly, in any order. Means and squared
//! deviations are put together by Chan's rule (Chan, Golub and `LeVeque`, 1979), which keeps the digits of a spread that is
//! small beside its mean; another order of the same intervals may differ in the last digits.

use std::collections::{BTreeMap, HashSet};

use jiff::Timestamp;

use super::{Level, SummaryRow};

/// The detector's code for "anomalous" in a row of summaries.
const ANOMALOUS: i16 = 2;

/// One sensor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SensorRollup {
    /// Readings.
    pub count: i64,
    /// Readings; an interval in which a value was only held weighs as one.
    pub weight: i64,
    pub min: f64,
    pub max: f64,
    pub mean: f64,
    /// Squared deviations from the mean, times their weight.
    pub squares: f64,
    pub last: f64,
    /// When the interval of `last` began, after the row's start; -1 for none.
    pub last_ms: i32,
}

impl SensorRollup {
    /// A sensor without values.
    pub const NONE: Self = Self {
        count: 0,
        weight: 0,
        min: f64::NAN,
        max: f64::NAN,
        mean: f64::NAN,
        squares: 0.0,
        last: f64::NAN,
        last_ms: -1,
    };

    fn merge(&mut self, other: &Self) {
        self.count = self.count.saturating_add(other.count);
        if other.last_ms >= self.last_ms && other.last_ms >= 0 {
            (self.last, self.last_ms) = (other.last, other.last_ms);
        }
        if other.weight == 0 {
            return;
        }
        if self.weight == 0 {
            (self.weight, self.min, self.max) = (other.weight, other.min, other.max);
            (self.mean, self.squares) = (other.mean, other.squares);
            return;
        }
        let (own, others) = (self.weight as f64, other.weight as f64);
        let off = other.mean - self.mean;
        self.weight = self.weight.saturating_add(other.weight);
        self.squares += other.squares + off * off * own * others / (own + others);
        self.mean += off * others / (own + others);
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
    }
}

/// One machine.
#[derive(Debug, Clone, PartialEq)]
pub struct Rollup {
    /// The start of the latest interval in it.
    pub last_start: Timestamp,
    pub intervals: i32,
    pub sensors: Vec<SensorRollup>,
    pub score_max: Option<f32>,
    pub health_min: Option<f32>,
    /// `None` where no interval had energy.
    pub energy_wh: Option<f64>,
    /// Of intervals in which the machine was: unknown, off, idle, running.
    pub mode_ms: [i64; 4],
    /// Of intervals in which the detector said: anomalous.
    pub anomalous_ms: i64,
}

impl Rollup {
    /// Of one interval; `start` is the start of the hour or the day.
    #[must_use]
    pub fn of(row: &SummaryRow, start: Timestamp) -> Self {
        let after = i32::try_from(row.start.duration_since(start).as_millis()).unwrap_or(i32::MAX);
        let mut mode_ms = [0; 4];
        if let Some(ms) = usize::try_from(row.mode).ok().and_then(|mode| mode_ms.get_mut(mode)) {
            *ms = i64::from(row.interval_ms);
        }
        let finite = |figure: Option<f32>| figure.filter(|figure| figure.is_finite());
        Self {
            last_start: row.start,
            intervals: 1,
            sensors: (0..row.counts.len()).map(|i| sensor(row, i, after)).collect(),
            score_max: finite(row.score),
            health_min: finite(row.health_percent),
            energy_wh: row.energy_wh.filter(|energy| energy.is_finite()),
            mode_ms,
            anomalous_ms: if row.detector == ANOMALOUS { i64::from(row.interval_ms) } else { 0 },
        }
    }

    /// Takes in another one of the same machine and hour (or day).
    pub fn merge(&mut self, other: &Self) {
        self.last_start = self.last_start.max(other.last_start);
        self.intervals = self.intervals.saturating_add(other.intervals);
        if self.sensors.len() < other.sensors.len() {
            self.sensors.resize(other.sensors.len(), SensorRollup::NONE);
        }
        for (own, others) in self.sensors.iter_mut().zip(&other.sensors) {
            own.merge(others);
        }
        self.score_max = either(self.score_max, other.score_max, f32::max);
        self.health_min = either(self.health_min, other.health_min, f32::min);
        self.energy_wh = either(self.energy_wh, other.energy_wh, |a, b| a + b);
        for (own, others) in self.mode_ms.iter_mut().zip(other.mode_ms) {
            *own = own.saturating_add(others);
        }
        self.anomalous_ms = self.anomalous_ms.saturating_add(other.anomalous_ms);
    }
}

fn either<T>(a: Option<T>, b: Option<T>, both: impl FnOnce(T, T) -> T) -> Option<T> {
    match (a, b) {
        (Some(a), Some(b)) => Some(both(a, b)),
        (a, b) => a.or(b),
    }
}

fn sensor(row: &SummaryRow, i: usize, after_ms: i32) -> SensorRollup {
    let at = |figures: &[f64]| figures.get(i).copied().unwrap_or(f64::NAN);
    let count = i64::from(row.counts[i]);
    let (min, max, mean, last) = (at(&row.mins), at(&row.maxs), at(&row.means), at(&row.lasts));
    let mut sensor = SensorRollup { count, ..SensorRollup::NONE };
    if last.is_finite() {
        (sensor.last, sensor.last_ms) = (last, after_ms);
    }
    if min.is_finite() && max.is_finite() && mean.is_finite() {
        let (weight, sd) = (count.max(1), at(&row.sds));
        let squares = if sd.is_finite() { sd * sd * weight as f64 } else { 0.0 };
        sensor = SensorRollup { weight, min, max, mean, squares, ..sensor };
    }
    sensor
}

/// Rollups by machine and start.
pub type Rollups = BTreeMap<(i32, Timestamp), Rollup>;

/// The rollups of these rows alone.
#[must_use]
pub fn gather<'a>(rows: impl IntoIterator<Item = &'a SummaryRow>, level: Level) -> Rollups {
    let mut rollups = Rollups::new();
    for row in rows {
        add(&mut rollups, row, level);
    }
    rollups
}

/// Adds an interval.
pub fn add(rollups: &mut Rollups, row: &SummaryRow, level: Level) {
    let start = level.start_of(row.start);
    let one = Rollup::of(row, start);
    rollups.entry((row.machine_key, start)).and_modify(|known| known.merge(&one)).or_insert(one);
}

/// Leaves of rows with the same machine and start only the first.
#[must_use]
pub fn once(rows: Vec<SummaryRow>) -> Vec<SummaryRow> {
    let mut seen = HashSet::with_capacity(rows.len());
    rows.into_iter().filter(|row| seen.insert((row.machine_key, row.start))).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::float_cmp, reason = "what is kept is kept bit by bit")]

    use proptest::prelude::*;

    use super::*;

    /// Count, min, max (and last), mean, sd.
    pub(crate) type Told = (i32, f64, f64, f64, f64);

    pub(crate) fn row(start_ms: i64, sensors: &[Option<Told>]) -> SummaryRow {
        let figure = |figure: fn(&Told) -> f64| {
            sensors.iter().map(|sensor| sensor.as_ref().map_or(f64::NAN, figure)).collect::<Vec<f64>>()
        };
        SummaryRow {
            machine_key: 1,
            start: Timestamp::from_millisecond(start_ms).unwrap(),
            interval_ms: 10_000,
            counts: sensors.iter().map(|sensor| sensor.map_or(0, |sensor| sensor.0)).collect(),
            mins: figure(|sensor| sensor.1),
            maxs: figure(|sensor| sensor.2),
            means: figure(|sensor| sensor.3),
            sds: figure(|sensor| sensor.4),
            lasts: figure(|sensor| sensor.2),
            qualities: sensors.iter().map(|sensor| if sensor.is_some() { 0 } else { 255 }).collect(),
            detector: 1,
            score: Some(0.5),
            health_percent: Some(90.0),
            mode: 3,
            energy_wh: Some(2.0),
            clock_trusted: true,
        }
    }

    #[test]
    fn hours_of_different_lengths_combine() {
        let rows = [
            row(0, &[Some((10, 1.0, 3.0, 2.0, 0.5))]),
            SummaryRow {
                mode: 1,
                detector: 2,
                energy_wh: None,
                score: None,
                ..row(10_000, &[None, Some((0, 7.0, 7.0, 7.0, 0.0))])
            },
            SummaryRow {
                score: Some(2.5),
                health_percent: Some(40.0),
                ..row(20_000, &[Some((30, 0.0, 4.0, 2.4, 1.0))])
            },
        ];
        let hour = gather(&rows, Level::Hour).into_values().next().unwrap();
        assert_eq!((hour.intervals, hour.last_start.as_millisecond(), hour.sensors.len()), (3, 20_000, 2));
        assert_eq!((hour.score_max, hour.health_min, hour.energy_wh), (Some(2.5), Some(40.0), Some(4.0)));
        assert_eq!((hour.mode_ms, hour.anomalous_ms), ([0, 10_000, 0, 20_000], 10_000));
        let [first, second] = hour.sensors[..] else { panic!("two") };
        assert_eq!((first.count, first.weight, first.min, first.max, first.last_ms), (40, 40, 0.0, 4.0, 20_000));
        assert!((first.mean - 2.3).abs() < 1e-12);
        // 10 × (0.25 + 0.09) + 30 × (1 + 0.01)
        assert!((first.squares - 33.7).abs() < 1e-12, "{}", first.squares);
        assert_eq!((second.count, second.weight, second.mean, second.last_ms), (0, 1, 7.0, 10_000));
        assert_eq!(gather(&[row(3_600_000 - 1, &[]), row(3_600_000, &[])], Level::Hour).len(), 2);
    }

    #[test]
    fn the_first_of_equal_rows_counts() {
        let rows = once(vec![row(0, &[Some((1, 1.0, 1.0, 1.0, 0.0))]), row(0, &[None]), row(1, &[None])]);
        assert_eq!(rows.iter().map(|row| row.counts[0]).collect::<Vec<_>>(), [1, 0]);
    }

    proptest! {
        #[test]
        fn any_order_and_any_parts_give_the_same(
            cells in prop::collection::vec((1..100_i32, -1e3..1e3_f64, 0.0..10.0_f64), 1..60),
            cut in 0..60_usize,
        ) {
            let rows: Vec<SummaryRow> = cells
                .iter()
                .enumerate()
                .map(|(i, (count, mean, sd))| row(i as i64 * 1_000, &[Some((*count, mean - sd, mean + sd, *mean, *sd))]))
                .collect();
            let whole = gather(&rows, Level::Day).into_values().next().unwrap();
            let (a, b) = rows.split_at(cut.min(rows.len()));
            let mut parts = gather(b.iter().rev(), Level::Day);
            for row in a { add(&mut parts, row, Level::Day); }
            let parts = parts.into_values().next().unwrap();
            let (whole, parts) = (whole.sensors[0], parts.sensors[0]);
            prop_assert_eq!((whole.count, whole.weight, whole.min, whole.max), (parts.count, parts.weight, parts.min, parts.max));
            prop_assert_eq!((whole.last, whole.last_ms), (parts.last, parts.last_ms));
            // The definition, in one go.
            let n: f64 = cells.iter().map(|cell| f64::from(cell.0)).sum();
            let mean = cells.iter().map(|cell| f64::from(cell.0) * cell.1).sum::<f64>() / n;
            let squares: f64 = cells.iter().map(|cell| f64::from(cell.0) * (cell.2.powi(2) + (cell.1 - mean).powi(2))).sum();
            for rollup in [whole, parts] {
                prop_assert!((rollup.mean - mean).abs() < 1e-9, "{} {mean}", rollup.mean);
                prop_assert!((rollup.squares - squares).abs() < 1e-9 * (1.0 + squares), "{} {squares}", rollup.squares);
            }
        }
    }
}
