//! A machine's readings, cut into steps (for the detector) and intervals (for summaries) by event time.
//!
//! - The *watermark* is the machine's largest event time, plus the time since it arrived, minus the lateness: it moves with the
//!   readings at any replay speed, and on when the machine falls silent. What lies below it is closed, in order. Whether a reading is
//!   in time does not depend on when that is done, as long as the readings flow: a replay gives the same.
//! - A machine that falls silent may only be cut off for a while, with its readings kept by its devices. For as long as a value may be
//!   held, and no longer than [`SILENCE_US_MAX`], the watermark goes no further than the last step that was measured, and ends no
//!   interval: what comes then is in time.
//! - A step's value of a sensor is the mean of its readings in the step; without any, its last value, for as long as a
//!   value may be held; then NaN.
//! - A reading of a step that is closed still counts in its interval; a reading of an interval that is closed is *late*: counted and
//!   dropped. A device whose clock runs ahead makes its machine's other devices late.
//! - A reading that came before with the same sensor, source time and value is a *duplicate* and dropped: an open interval remembers
//!   what it has counted (of each sensor the latest [`REMEMBERED_MAX`](seen::REMEMBERED_MAX)), and what comes again after it was closed
//!   is late. So a broker that goes back in time repeats nothing. Readings that carry no time of their own are never duplicates.
//! - While a machine has no value at all, no steps and intervals are made.
//! - Energy is the trapezoid over consecutive readings of the power sensor; no energy is invented over a gap that is
//!   longer than a value may be held. What falls in an interval that is closed goes to the first open one.
//!
//! No I/O and no clock. The state can be written out and taken up again at any point ([`serde`]). What open intervals remember
//! is not written: it is told again ([`Window::remember`]) from the journal, which is kept from the [`place`](Window::open_from) on
//! where the oldest open interval began.

use std::collections::VecDeque;

use gemba_shared::telemetry::{Quality, SENSORS_MAX, SensorSummary, Timestamp};
use serde::{Deserialize, Serialize};

use crate::reading::SensorIx;

mod accumulator;
mod open;
mod seen;

use accumulator::{Accumulator, Energy, single};
use open::OpenInterval;

/// Steps that may be open at once. Beyond it the oldest are closed early, and their readings still count in their intervals.
const OPEN_STEPS_MAX: usize = 600;

/// How long a machine that is silent is taken for one that is cut off.
pub const SILENCE_US_MAX: i64 = 30_000_000;

/// How a machine's readings are cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Periods {
    /// The detector's sampling period, microseconds.
    pub step_us: i64,
    /// The summary's period, microseconds; a multiple of the step.
    pub interval_us: i64,
    /// How long a step waits for readings that are on their way, microseconds.
    pub lateness_us: i64,
    /// How long a last value stands for the present one, microseconds.
    pub hold_us: i64,
}

impl Default for Periods {
    fn default() -> Self {
        Self { step_us: 1_000_000, interval_us: 10_000_000, lateness_us: 2_000_000, hold_us: 30_000_000 }
    }
}

/// What became of a reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    Counted,
    Late,
    Duplicate,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    pub start: Timestamp,
    /// By sensor; NaN without a value. Shorter than the catalog if the last sensors never had one.
    pub values: Vec<f32>,
    /// By sensor: whether it was measured in this step.
    pub measured: Vec<bool>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Interval {
    pub start: Timestamp,
    /// By sensor; `None` without a value.
    pub sensors: Vec<Option<SensorSummary>>,
    pub energy_wh: Option<f64>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Window {
    periods: Periods,
    /// The sensor whose readings are power, and how many watts its unit is.
    #[serde(skip)]
    power: Option<(SensorIx, f64)>,
    sensors: Vec<Sensor>,
    /// The start of the next step to close; `None` before the first reading.
    next_step: Option<Timestamp>,
    /// The start of the next interval to close.
    next_interval: Timestamp,
    /// Open steps with readings, by start.
    steps: VecDeque<OpenStep>,
    /// Open intervals with readings, by start.
    intervals: VecDeque<OpenInterval>,
    energy: Energy,
    latest: Timestamp,
    /// When `latest` arrived, on the monotonic clock of this boot; not known after a restart.
    #[serde(skip)]
    latest_mono_us: Option<i64>,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
struct Sensor {
    last: Option<(Timestamp, f64)>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct OpenStep {
    start: Timestamp,
    sensors: Vec<StepSum>,
}

/// Sum, count and the last reading of a sensor.
type StepSum = (f64, u32, Option<(Timestamp, f64)>);

impl Window {
    #[must_use]
    pub fn new(periods: Periods) -> Self {
        Self {
            periods,
            power: None,
            sensors: Vec::new(),
            next_step: None,
            next_interval: Timestamp(i64::MIN),
            steps: VecDeque::new(),
            intervals: VecDeque::new(),
            energy: Energy::default(),
            latest: Timestamp(i64::MIN),
            latest_mono_us: None,
        }
    }

    #[must_use]
    pub fn periods(&self) -> Periods {
        self.periods
    }

    /// The same window under other periods. Where the interval changes, what is open is counted in the new intervals that its start
    /// falls in, and intervals that were closed are not opened again.
    #[must_use]
    pub fn with_periods(mut self, periods: Periods) -> Self {
        let before = std::mem::replace(&mut self.periods, periods);
        if (before.step_us, before.interval_us) == (periods.step_us, periods.interval_us) {
            return self;
        }
        let floor = self.next_interval.floor(periods.interval_us);
        let first = if floor < self.next_interval { floor.plus_us(periods.interval_us) } else { floor };
        self.next_interval = first;
        self.next_step = self.next_step.map(|next| next.floor(periods.step_us).max(first));
        self.steps.clear();
        for open in std::mem::take(&mut self.intervals) {
            let start = open.start.max(first).floor(periods.interval_us);
            match self.intervals.back_mut().filter(|last| last.start == start) {
                Some(last) => last.merge(&open),
                None => self.intervals.push_back(OpenInterval { start, ..open }),
            }
        }
        self
    }

    /// Goes on after a restart: the time that passed meanwhile closes nothing.
    pub fn resume(&mut self, mono_us: i64) {
        self.latest_mono_us = Some(mono_us);
    }

    /// Begins anew at any time. Call [`Window::close_next_of_all`] first, until it gives nothing.
    pub fn restart(&mut self) {
        *self = Self { power: self.power, ..Self::new(self.periods) };
    }

    /// Says which sensor measures electrical power, and how many watts its unit is.
    pub fn set_power(&mut self, power: Option<(SensorIx, f64)>) {
        self.power = power;
    }

    /// Intervals that hold readings and are not closed.
    #[must_use]
    pub fn open_intervals(&self) -> usize {
        self.intervals.len()
    }

    /// The time of the latest reading.
    #[must_use]
    pub fn latest(&self) -> Option<Timestamp> {
        self.next_step.map(|_| self.latest)
    }

    /// The last value of each sensor, where it may still be held at the time of the latest reading.
    #[must_use]
    pub fn values(&self) -> Vec<Option<f64>> {
        let held = |sensor: &Sensor| {
            let (at, value) = sensor.last?;
            (self.latest.us_since(at) <= self.periods.hold_us).then_some(value)
        };
        self.sensors.iter().map(held).collect()
    }

    /// The place in the journal of the first reading that an open interval has.
    #[must_use]
    pub fn open_from(&self) -> Option<u64> {
        self.intervals.iter().filter_map(|open| open.from).min()
    }

    /// This reading at `place` in the journal is in the state already; it is known again from now on if its interval is open.
    pub fn remember(&mut self, sensor: SensorIx, at: Timestamp, value: f64, timed: bool, place: u64) {
        let start = at.floor(self.periods.interval_us);
        let Some(open) = self.intervals.iter_mut().find(|open| open.start == start) else { return };
        open.from = Some(open.from.map_or(place, |from| from.min(place)));
        if timed {
            open.is_again(usize::from(sensor.0), at, value);
        }
    }

    /// Takes a reading that stands at `place` in the journal. `timed` says that the time is the source's own, so that the same
    /// reading can be known again.
    pub fn push(
        &mut self,
        sensor: SensorIx,
        at: Timestamp,
        value: f64,
        timed: bool,
        mono_us: i64,
        place: u64,
    ) -> Taken {
        let ix = usize::from(sensor.0);
        debug_assert!(ix < SENSORS_MAX);
        if self.next_step.is_none() {
            self.next_step = Some(at.floor(self.periods.step_us));
            self.next_interval = at.floor(self.periods.interval_us);
        }
        let horizon = self.latest.plus_us(-self.periods.lateness_us);
        let is_over = |period_us: i64| at.floor(period_us).plus_us(period_us) <= horizon;
        if at < self.next_interval || is_over(self.periods.interval_us) {
            return Taken::Late;
        }
        let in_open_step = self.next_step.is_some_and(|next| at >= next) && !is_over(self.periods.step_us);
        if ix >= self.sensors.len() {
            self.sensors.resize_with(ix + 1, Sensor::default);
        }
        let open = self.open_interval(at, place);
        if timed && open.is_again(ix, at, value) {
            return Taken::Duplicate;
        }
        open.count(ix, at, value);
        if at > self.latest {
            self.latest = at;
            self.latest_mono_us = Some(mono_us);
        }
        if in_open_step {
            self.count_in_step(ix, at, value);
        }
        if let Some((power, watts)) = self.power
            && power == sensor
        {
            self.energy.push(at, value * watts, self.next_interval, &self.periods);
        }
        Taken::Counted
    }

    /// The interval that a moment falls in, opened if it is not.
    fn open_interval(&mut self, at: Timestamp, place: u64) -> &mut OpenInterval {
        let start = at.floor(self.periods.interval_us);
        let ix = match self.intervals.iter().rposition(|open| open.start <= start) {
            Some(ix) if self.intervals[ix].start == start => ix,
            before => {
                let ix = before.map_or(0, |ix| ix + 1);
                self.intervals
                    .insert(ix, OpenInterval { start, sensors: Vec::new(), seen: Vec::new(), from: Some(place) });
                ix
            }
        };
        &mut self.intervals[ix]
    }

    fn count_in_step(&mut self, ix: usize, at: Timestamp, value: f64) {
        let start = at.floor(self.periods.step_us);
        let place = match self.steps.iter().rposition(|open| open.start <= start) {
            Some(place) if self.steps[place].start == start => place,
            before => {
                let place = before.map_or(0, |place| place + 1);
                self.steps.insert(place, OpenStep { start, sensors: Vec::new() });
                place
            }
        };
        let sensors = &mut self.steps[place].sensors;
        if ix >= sensors.len() {
            sensors.resize(ix + 1, (0.0, 0, None));
        }
        let (sum, count, last) = &mut sensors[ix];
        *sum += value;
        *count += 1;
        if last.is_none_or(|(before, _)| at >= before) {
            *last = Some((at, value));
        }
    }

    /// Where everything before is closed, at this moment of the monotonic clock.
    fn watermark(&self, mono_us: i64) -> Timestamp {
        let waited = self.latest_mono_us.map_or(0, |arrived| (mono_us - arrived).max(0));
        let watermark = self.latest.plus_us(waited).plus_us(-self.periods.lateness_us);
        if waited > self.periods.hold_us.min(SILENCE_US_MAX) {
            return watermark;
        }
        let last = self.latest.floor(self.periods.step_us);
        let end = last.plus_us(self.periods.step_us);
        watermark.min(if end.floor(self.periods.interval_us) == end { last } else { end })
    }

    /// Whether [`Window::close_next`] would give something.
    #[must_use]
    pub fn is_due(&self, mono_us: i64) -> bool {
        self.is_due_before(self.watermark(mono_us))
    }

    fn is_due_before(&self, watermark: Timestamp) -> bool {
        let Some(next) = self.next_step else { return false };
        let crowded = self.steps.len() > OPEN_STEPS_MAX;
        (crowded || next.plus_us(self.periods.step_us) <= watermark) && self.has_any(next)
    }

    /// Whether there is, or will be, a value for the step at `next`, or an interval to end.
    fn has_any(&self, next: Timestamp) -> bool {
        !self.steps.is_empty() || !self.intervals.is_empty() || self.is_held_at(next)
    }

    fn is_held_at(&self, start: Timestamp) -> bool {
        self.sensors.iter().any(|sensor| sensor.holds(start, self.periods.hold_us))
    }

    /// Closes the next step that is due, and the interval that ends with it: first the step is given, then the interval.
    /// Call it until it gives nothing.
    pub fn close_next(&mut self, mono_us: i64) -> Option<(Option<Step>, Option<Interval>)> {
        self.close_next_before(self.watermark(mono_us))
    }

    /// The same, without waiting for what may be on its way: up to the end of the latest interval.
    pub fn close_next_of_all(&mut self) -> Option<(Option<Step>, Option<Interval>)> {
        let last = self.latest.floor(self.periods.interval_us);
        self.close_next_before(last.plus_us(self.periods.interval_us))
    }

    /// The same, up to the end of the latest step.
    pub fn close_next_of_all_steps(&mut self) -> Option<(Option<Step>, Option<Interval>)> {
        let last = self.latest.floor(self.periods.step_us);
        self.close_next_before(last.plus_us(self.periods.step_us))
    }

    fn close_next_before(&mut self, watermark: Timestamp) -> Option<(Option<Step>, Option<Interval>)> {
        if !self.is_due_before(watermark) {
            return None;
        }
        let start = self.skip_silence()?;
        let end = start.plus_us(self.periods.step_us);
        if end > watermark && self.steps.len() <= OPEN_STEPS_MAX {
            return None;
        }
        self.next_step = Some(end);
        let step = self.close_step(start);
        let interval = (end >= self.next_interval.plus_us(self.periods.interval_us)).then(|| self.close_interval());
        Some((step, interval.flatten()))
    }

    /// Moves over steps in which there is no value at all, and gives the next that may have one.
    fn skip_silence(&mut self) -> Option<Timestamp> {
        let next = self.next_step?;
        let interval_end = self.next_interval.plus_us(self.periods.interval_us);
        let interval_open = self.intervals.front().is_some_and(|open| open.start < interval_end);
        if self.is_held_at(next) || interval_open {
            return Some(next);
        }
        let first = self.steps.front().map(|open| open.start);
        let first = match (first, self.intervals.front().map(|open| open.start)) {
            (Some(step), Some(interval)) => step.min(interval.max(next)),
            (step, interval) => step.or(interval)?,
        };
        if first > next {
            self.next_step = Some(first);
            self.next_interval = self.next_interval.max(first.floor(self.periods.interval_us));
        }
        self.next_step
    }

    fn close_step(&mut self, start: Timestamp) -> Option<Step> {
        let readings = self.steps.pop_front_if(|open| open.start <= start).map(|open| open.sensors).unwrap_or_default();
        let mut values = Vec::with_capacity(self.sensors.len());
        let mut measured = Vec::with_capacity(self.sensors.len());
        for (ix, sensor) in self.sensors.iter_mut().enumerate() {
            let (sum, count, last) = readings.get(ix).copied().unwrap_or_default();
            if let Some((at, _)) = last
                && sensor.last.is_none_or(|(before, _)| at >= before)
            {
                sensor.last = last;
            }
            measured.push(count > 0);
            values.push(match sensor.last {
                _ if count > 0 => single(sum / f64::from(count)),
                Some((_, value)) if sensor.holds(start, self.periods.hold_us) => single(value),
                _ => f32::NAN,
            });
        }
        values.iter().any(|value| !value.is_nan()).then_some(Step { start, values, measured })
    }

    fn close_interval(&mut self) -> Option<Interval> {
        let start = self.next_interval;
        let end = start.plus_us(self.periods.interval_us);
        self.next_interval = end;
        let open = self.intervals.pop_front_if(|open| open.start <= start).map(|open| open.sensors).unwrap_or_default();
        let energy_wh = self.energy.close(start, end);
        let last_moment = end.plus_us(-1);
        let summary = |(ix, sensor): (usize, &Sensor)| {
            open.get(ix).and_then(Accumulator::summary).or_else(|| {
                let (_, value) = sensor.last.filter(|_| sensor.holds(last_moment, self.periods.hold_us))?;
                let figures = SensorSummary {
                    count: 0,
                    min: value,
                    max: value,
                    mean: value,
                    sd: 0.0,
                    last: value,
                    quality: Quality::Held,
                };
                Some(figures)
            })
        };
        let sensors: Vec<_> = self.sensors.iter().enumerate().map(summary).collect();
        sensors.iter().any(Option::is_some).then_some(Interval { start, sensors, energy_wh })
    }
}

impl Sensor {
    fn holds(&self, at: Timestamp, hold_us: i64) -> bool {
        self.last.is_some_and(|(last, _)| at.us_since(last) <= hold_us)
    }
}

#[cfg(test)]
mod tests;
