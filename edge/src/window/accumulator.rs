//! Figures of one sensor over one interval, and energy.

use std::collections::VecDeque;

use gemba_shared::telemetry::{Quality, SensorSummary, Timestamp};
use serde::{Deserialize, Serialize};

use super::Periods;

/// Count, extremes, mean and spread by Welford's method, which does not lose digits over large means.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub(super) struct Accumulator {
    count: u32,
    min: f64,
    max: f64,
    mean: f64,
    squares: f64,
    last: f64,
    last_at: Timestamp0,
}

/// A time that begins before all others.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Timestamp0(Timestamp);

impl Default for Timestamp0 {
    fn default() -> Self {
        Self(Timestamp(i64::MIN))
    }
}

impl Accumulator {
    pub(super) fn push(&mut self, at: Timestamp, value: f64) {
        if self.count == 0 {
            self.min = value;
            self.max = value;
        }
        self.count = self.count.saturating_add(1);
        self.min = self.min.min(value);
        self.max = self.max.max(value);
        let off = value - self.mean;
        self.mean += off / f64::from(self.count);
        self.squares += off * (value - self.mean);
        if at >= self.last_at.0 {
            self.last = value;
            self.last_at = Timestamp0(at);
        }
    }

    /// Takes the readings of another in (Chan's rule for two sums of squares).
    pub(super) fn merge(&mut self, other: &Self) {
        if self.count == 0 || other.count == 0 {
            if other.count > 0 {
                *self = *other;
            }
            return;
        }
        let (own, others) = (f64::from(self.count), f64::from(other.count));
        let off = other.mean - self.mean;
        self.count = self.count.saturating_add(other.count);
        self.mean += off * others / (own + others);
        self.squares += other.squares + off * off * own * others / (own + others);
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
        if other.last_at.0 >= self.last_at.0 {
            self.last = other.last;
            self.last_at = other.last_at;
        }
    }

    /// `None` without readings.
    pub(super) fn summary(&self) -> Option<SensorSummary> {
        (self.count > 0).then(|| SensorSummary {
            count: self.count,
            min: self.min,
            max: self.max,
            mean: self.mean.clamp(self.min, self.max),
            sd: (self.squares / f64::from(self.count)).max(0.0).sqrt(),
            last: self.last,
            quality: Quality::Good,
        })
    }
}

/// Energy by interval, from readings of power.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(super) struct Energy {
    /// The latest reading, in watts.
    last: Option<(Timestamp, f64)>,
    /// Watt-hours of open intervals, by their start.
    open: VecDeque<(Timestamp, f64)>,
}

impl Energy {
    /// Adds the trapezoid from the reading before to this one, cut at the ends of intervals. A reading out of order is passed over.
    pub(super) fn push(&mut self, at: Timestamp, watts: f64, open_from: Timestamp, periods: &Periods) {
        let Some((from, watts_from)) = self.last else {
            self.last = Some((at, watts));
            return;
        };
        if at <= from {
            return;
        }
        self.last = Some((at, watts));
        let span_us = at.us_since(from);
        if span_us > periods.hold_us {
            return;
        }
        let watts_at =
            |moment: Timestamp| watts_from + (watts - watts_from) * (moment.us_since(from) as f64 / span_us as f64);
        let mut begin = from;
        while begin < at {
            let interval = begin.floor(periods.interval_us);
            let end = at.min(interval.plus_us(periods.interval_us));
            let hours = end.us_since(begin) as f64 / 3_600e6;
            self.add(interval.max(open_from), f64::midpoint(watts_at(begin), watts_at(end)) * hours);
            begin = end;
        }
    }

    fn add(&mut self, interval: Timestamp, watt_hours: f64) {
        match self.open.iter_mut().find(|(start, _)| *start == interval) {
            Some((_, sum)) => *sum += watt_hours,
            None => self.open.push_back((interval, watt_hours)),
        }
    }

    /// The energy of the interval at `start`; `None` if nothing is known of it.
    pub(super) fn close(&mut self, start: Timestamp, end: Timestamp) -> Option<f64> {
        let found = self.open.iter().find(|(open, _)| *open == start).map(|(_, sum)| *sum);
        self.open.retain(|(open, _)| *open >= end);
        found
    }
}

/// As the detector takes it: finite.
pub(super) fn single(value: f64) -> f32 {
    value.clamp(f64::from(f32::MIN), f64::from(f32::MAX)) as f32
}
