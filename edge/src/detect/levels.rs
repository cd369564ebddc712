//! Each sensor by itself: is its level where it was, at several time scales?
//!
//! A sensor's deviation is counted in units of its *noise*, which is what it moves from one step to the next, and from a *centre* that
//! follows it slowly. Smoothed deviations at three time scales (EWMA charts: S. W. Roberts, *Control chart tests based on geometric
//! moving averages*, 1959) are compared with limits: what such a mean of pure noise would reach, times what this sensor's own wandering
//! makes of it. So a channel that wanders (a temperature) has wide limits, and is no level detector; one that is only noisy has narrow
//! ones. Whatever a channel does usually, though, it is not where it was when it is [`FAR`] times farther from its centre than it ever was, or
//! went [`LEAP`] times farther within a few steps than it ever did. That is what a smooth channel is judged by.
//!
//! - Noise: root mean square of the differences of neighbours, over √2; where these are mostly zero or small and sometimes large, a robust
//!   figure instead, which a few jumps do not spoil. A quantised sensor that seldom moves has a noise all the same, because it is no median.
//! - The centre follows with a time constant of [`CENTRE_STEPS`], less the nearer the limit the sensor is, and not at all beyond it: a fault is not
//!   learnt.
//! - The wandering is learnt in calibration, and may grow slowly afterwards while nothing is wrong.

use serde::{Deserialize, Serialize};

use super::pattern::DEVIATION_MAX;

/// How much a step counts in the smoothed deviations: about 3, 7 and 14 steps.
pub const WEIGHTS: [f32; 3] = [0.3, 0.15, 0.07];
/// The scale by which it is judged whether a sensor is on its way back.
pub const MIDDLE: usize = 1;
/// A limit, in standard deviations of a mean of pure noise.
const LIMIT: f32 = 4.4;
const CENTRE_STEPS: f64 = 100.0;
/// Times the usual reach. Not where a sensor wanders too much to have one: as a variance, in those of a mean of pure noise.
const FAR: f32 = 9.0;
const WANDER_MAX: f32 = 100.0;
/// Times the usual leap, which is how far the fastest scale is ahead of the middle one.
const LEAP: f32 = 6.0;
/// Reach and leap are what is seldom exceeded.
const SELDOM: f64 = 0.99;
/// A single step says no more than this many noises.
const STEP_MAX: f64 = 5.0;
/// From this share of the limit on, the centre follows less.
const SUSPECT: f32 = 0.35;
/// While anything of the machine is wrong, the others' centres follow so much.
const WARY: f64 = 0.1;
/// After a finding is over, the centre goes to where the sensor is.
const SETTLE_CENTRE_STEPS: f64 = 20.0;
/// How long the wandering remembers.
const SPREAD_STEPS: f32 = 700.0;
/// The held-back part of calibration must stay below the limit by this factor.
const LIFT: f32 = 1.6;
/// Steps before the smoothed deviations mean anything.
pub const WARM_UP: usize = 40;
/// Steps whose mean the centre begins at.
const BEGIN: usize = 20;
/// Values in fewer of the steps than this leave a sensor out.
const PRESENT_MIN: f64 = 0.8;
/// What is farther is told as if it were there: figures stay finite, and one wild reading is soon forgotten.
const DEVIATION_MOST: f64 = 1e4;
const TINY: f32 = 1e-12;
/// What is so many times the robust figure is made by wild readings, as 1e38 for none, and no noise.
const SPOILT: f64 = 1e4;
/// In noises: what a deviation counts at most in its usual size.
const SIZE_MAX: f32 = 18.0;
/// A held-back part that is so far over the limit is of another state of the machine.
const CHANGED: f32 = 6.0;

type Means = [f32; WEIGHTS.len()];

/// What is usual for each sensor.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Usual {
    /// 0 for a sensor that is left out.
    pub noise: Vec<f32>,
    /// Mean squares of the smoothed deviations.
    spread: Vec<Means>,
    /// What the held-back part of calibration made of the limits.
    lift: Vec<f32>,
    /// How far a sensor was from its centre, in noises.
    reach: Vec<f32>,
    /// How far it went within a few steps, in noises.
    leap: Vec<f32>,
    /// Of the deviations, for the pattern.
    pub size: Vec<f32>,
    /// The centre at which calibration ended.
    pub centre: Vec<f64>,
}

/// Where the sensors are now.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Levels {
    pub centre: Vec<f64>,
    means: Vec<Means>,
    /// The deviation at the fastest and the middle scale, however large.
    far: Vec<[f32; 2]>,
    spread: Vec<Means>,
}

/// What a step says of one sensor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Level {
    /// What it shows.
    pub value: f32,
    /// Its deviation in noises; NaN without a value.
    pub deviation: f32,
    /// The largest smoothed deviation as a share of its limit: above 1 it is not where it was.
    pub ratio: f32,
    /// The smoothed deviation of the middle scale.
    pub middle: f32,
}

impl Level {
    /// Of a sensor that has no value, or none that says anything of the machine.
    pub const NONE: Self = Self { value: f32::NAN, deviation: f32::NAN, ratio: 0.0, middle: 0.0 };

    #[must_use]
    pub const fn is_none(&self) -> bool {
        self.deviation.is_nan()
    }
}

/// How a sensor's centre goes on after a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Follow {
    /// It stays: the sensor is not where it was.
    Stay,
    /// Slowly; something else of the machine is wrong.
    Warily {
        ratio: f32,
    },
    Slowly {
        ratio: f32,
    },
    /// A finding was over a moment ago.
    Settle,
}

/// Deviations of calibration, a row a step, and what comes of them.
#[derive(Debug)]
pub struct Calibrated {
    pub usual: Usual,
    pub levels: Levels,
    /// Row after row, in noises; 0 without a value.
    pub deviations: Vec<f32>,
    /// Sensors that were elsewhere in the held-back part than before.
    pub changed: usize,
    /// Sensors that had values and never moved.
    pub constant: usize,
}

/// A sensor's noise; 0 if it never moved, or was mostly away.
fn noise(column: &[f32]) -> f32 {
    let present: Vec<f64> = column.iter().filter(|value| !value.is_nan()).map(|value| f64::from(*value)).collect();
    if !is_present(column) {
        return 0.0;
    }
    let mut steps: Vec<f64> = present.windows(2).map(|pair| (pair[1] - pair[0]).abs()).collect();
    let noise = noise_of(&mut steps);
    let largest = present.iter().fold(0.0_f64, |largest, value| largest.max(value.abs()));
    if noise <= f64::from(TINY) * largest { 0.0 } else { noise as f32 }
}

/// The noise that differences of neighbours tell of, by their sizes.
pub(super) fn noise_of(steps: &mut [f64]) -> f64 {
    let square = steps.iter().map(|step| step * step).sum::<f64>() / steps.len().max(1) as f64;
    let plain = (square / 2.0).sqrt();
    steps.sort_by(f64::total_cmp);
    let robust = steps.get(steps.len() / 2).map_or(0.0, |median| 1.4826 * median / std::f64::consts::SQRT_2);
    let is_spoilt = robust > 0.0 && plain > SPOILT * robust;
    if robust > 0.3 * plain || is_spoilt { plain.min(1.3 * robust) } else { plain }
}

/// What is usual, of the rows of a calibration: (row, sensor) → value, NaN without one.
#[must_use]
pub fn calibrate(rows: &[&[f32]], width: usize) -> Calibrated {
    let column =
        |sensor: usize| -> Vec<f32> { rows.iter().map(|row| row.get(sensor).copied().unwrap_or(f32::NAN)).collect() };
    let noise: Vec<f32> = (0..width).map(|sensor| noise(&column(sensor))).collect();
    let mut levels = Levels {
        means: vec![[0.0; 3]; width],
        far: vec![[0.0; 2]; width],
        spread: vec![[0.0; 3]; width],
        centre: vec![0.0; width],
    };
    let mut usual = Usual {
        lift: vec![1.0; width],
        reach: vec![f32::INFINITY; width],
        leap: vec![f32::INFINITY; width],
        size: vec![1.0; width],
        noise,
        ..Usual::default()
    };
    let mut deviations = vec![0.0; rows.len() * width];
    let mut squares: Vec<[f64; 3]> = vec![[0.0; 3]; width];
    let held_back = rows.len() - rows.len() / 3;
    let mut at_held_back = vec![[0.0_f32; 3]; width];
    let mut largest = vec![0.0_f32; width];
    let (mut fars, mut leaps) = (vec![Vec::new(); width], vec![Vec::new(); width]);
    for sensor in 0..width {
        let begin: Vec<f64> =
            column(sensor).into_iter().take(BEGIN).filter(|value| !value.is_nan()).map(f64::from).collect();
        levels.centre[sensor] = begin.iter().sum::<f64>() / begin.len().max(1) as f64;
    }
    for (step, row) in rows.iter().enumerate() {
        if step == held_back {
            for (mean, square) in at_held_back.iter_mut().zip(&squares) {
                *mean = square.map(|square| (square / held_back.saturating_sub(WARM_UP).max(1) as f64) as f32);
            }
        }
        for sensor in 0..width {
            let value = row.get(sensor).copied().unwrap_or(f32::NAN);
            let level = levels.take(&usual, sensor, value, &at_held_back[sensor]);
            if level.is_none() {
                continue;
            }
            deviations[step * width + sensor] = level.deviation;
            if step >= WARM_UP {
                fars[sensor].push(levels.far[sensor][0].abs());
                leaps[sensor].push(levels.leap(sensor));
                for (square, mean) in squares[sensor].iter_mut().zip(levels.means[sensor]) {
                    *square += f64::from(mean * mean);
                }
            }
            if step >= held_back {
                largest[sensor] = largest[sensor].max(level.ratio);
            }
            levels.move_centre(&usual, sensor, value, (1.0 / CENTRE_STEPS).max(1.0 / (step + BEGIN) as f64));
        }
    }
    usual.size = (0..width).map(|sensor| size(deviations.chunks_exact(width).map(|row| row[sensor]))).collect();
    let count = (rows.len() - WARM_UP.min(rows.len())).max(1) as f64;
    usual.spread = squares.iter().map(|square| square.map(|square| (square / count) as f32)).collect();
    usual.lift = largest.iter().map(|ratio| (ratio * LIFT).max(1.0)).collect();
    usual.reach = fars.into_iter().map(|fars| seldom_exceeded(fars, white(0))).collect();
    usual.leap = leaps.into_iter().map(|leaps| seldom_exceeded(leaps, white_leap())).collect();
    levels.spread.clone_from(&usual.spread);
    usual.centre.clone_from(&levels.centre);
    let changed = usual.lift.iter().filter(|lift| **lift > CHANGED).count();
    let is_constant = |sensor: &usize| !usual.is_usable(*sensor) && is_present(&column(*sensor));
    let constant = (0..width).filter(is_constant).count();
    Calibrated { usual, levels, deviations, changed, constant }
}

/// The usual size of a sensor's deviations.
fn size(deviations: impl Iterator<Item = f32>) -> f32 {
    let squares = deviations.skip(WARM_UP).map(|deviation| deviation.clamp(-SIZE_MAX, SIZE_MAX).powi(2));
    let (sum, count) = squares.fold((0.0_f64, 0_usize), |(sum, count), square| (sum + f64::from(square), count + 1));
    let size = (sum / count.max(1) as f64).sqrt() as f32;
    if size > 0.0 { size } else { 1.0 }
}

/// Of figures that have this variance where they are pure noise.
fn seldom_exceeded(mut figures: Vec<f32>, white: f32) -> f32 {
    figures.sort_by(f32::total_cmp);
    let place = (SELDOM * figures.len() as f64) as usize;
    let figure = figures.get(place).or(figures.last()).copied().unwrap_or(f32::INFINITY);
    figure.max(LIMIT * white.sqrt())
}

fn is_present(column: &[f32]) -> bool {
    column.iter().filter(|value| !value.is_nan()).count() as f64 >= PRESENT_MIN * column.len().max(1) as f64
}

/// The variance of a smoothed deviation that is pure noise.
fn white(scale: usize) -> f32 {
    WEIGHTS[scale] / (2.0 - WEIGHTS[scale])
}

/// The same of the difference of the fastest and the middle scale.
fn white_leap() -> f32 {
    let (fast, middle) = (WEIGHTS[0], WEIGHTS[MIDDLE]);
    white(0) + white(MIDDLE) - 2.0 * fast * middle / (fast + middle - fast * middle)
}

impl Usual {
    #[must_use]
    pub fn is_usable(&self, sensor: usize) -> bool {
        self.noise.get(sensor).is_some_and(|noise| *noise > 0.0)
    }

    #[must_use]
    pub fn usable(&self) -> usize {
        self.noise.iter().filter(|noise| **noise > 0.0).count()
    }

    /// How far a sensor usually is from its centre.
    #[must_use]
    pub fn deviation(&self, sensor: usize) -> f64 {
        let of = |figures: &[f32]| figures.get(sensor).copied().map_or(0.0, f64::from);
        of(&self.noise) * of(&self.size)
    }

    /// These channels' deviations in their usual sizes, as the pattern sees them; 0 without one.
    pub fn bounded(&self, channels: &[u16], deviation: impl Fn(usize) -> f32) -> impl Iterator<Item = f32> {
        channels.iter().map(move |channel| {
            let sensor = usize::from(*channel);
            let (deviation, size) = (deviation(sensor), self.size.get(sensor).copied().unwrap_or(1.0));
            if deviation.is_nan() { 0.0 } else { (deviation / size).clamp(-DEVIATION_MAX, DEVIATION_MAX) }
        })
    }

    fn limit(&self, sensor: usize, scale: usize, spread: f32) -> f32 {
        let wander = (spread / white(scale)).max(1.0);
        LIMIT * white(scale).sqrt() * wander * self.lift.get(sensor).copied().unwrap_or(1.0)
    }
}

impl Levels {
    /// What a step's value says; the smoothed deviations go on.
    pub fn step(&mut self, usual: &Usual, sensor: usize, value: f32) -> Level {
        let learnt = usual.spread.get(sensor).copied().unwrap_or_default();
        self.take(usual, sensor, value, &learnt)
    }

    fn take(&mut self, usual: &Usual, sensor: usize, value: f32, learnt: &Means) -> Level {
        let noise = f64::from(usual.noise.get(sensor).copied().unwrap_or_default());
        if noise <= 0.0 || value.is_nan() {
            return Level::NONE;
        }
        let deviation = self.deviation(sensor, value, noise);
        let bounded = deviation.clamp(-STEP_MAX, STEP_MAX) as f32;
        let mut ratio = 0.0_f32;
        for scale in 0..WEIGHTS.len() {
            let mean = &mut self.means[sensor][scale];
            *mean += WEIGHTS[scale] * (bounded - *mean);
            let spread = learnt[scale].max(self.spread[sensor][scale]);
            ratio = ratio.max(mean.abs() / usual.limit(sensor, scale, spread));
        }
        let [fast, middle] = &mut self.far[sensor];
        *fast += WEIGHTS[0] * (deviation as f32 - *fast);
        *middle += WEIGHTS[MIDDLE] * (deviation as f32 - *middle);
        let far = fast.abs();
        let (now, learnt) = (self.spread[sensor][0], learnt[0].max(white(0)));
        if learnt < WANDER_MAX * white(0) {
            ratio = ratio.max(far / (FAR * usual.reach[sensor] * (now / learnt).max(1.0).sqrt()));
        }
        ratio = ratio.max(self.leap(sensor) / (LEAP * usual.leap[sensor]));
        Level { value, deviation: deviation as f32, ratio, middle: self.means[sensor][MIDDLE] }
    }

    fn deviation(&self, sensor: usize, value: f32, noise: f64) -> f64 {
        ((f64::from(value) - self.centre[sensor]) / noise).clamp(-DEVIATION_MOST, DEVIATION_MOST)
    }

    /// The sensors' deviations in noises; NaN without one.
    #[must_use]
    pub fn deviations(&self, usual: &Usual, values: &[f32]) -> Vec<f32> {
        let deviation = |(sensor, noise): (usize, &f32)| match values.get(sensor) {
            Some(value) if *noise > 0.0 => self.deviation(sensor, *value, f64::from(*noise)) as f32,
            _ => f32::NAN,
        };
        usual.noise.iter().enumerate().map(deviation).collect()
    }

    /// How far it went within a few steps.
    fn leap(&self, sensor: usize) -> f32 {
        let [fast, middle] = self.far[sensor];
        (fast - middle).abs()
    }

    /// The centre goes on; deviations are then counted from there.
    pub fn follow(&mut self, usual: &Usual, sensor: usize, follow: Follow, value: f32) {
        let calm = |ratio: f32| {
            let beyond = ((1.0 - ratio) / (1.0 - SUSPECT)).clamp(0.0, 1.0);
            f64::from(beyond * beyond) / CENTRE_STEPS
        };
        let weight = match follow {
            Follow::Stay => return,
            Follow::Warily { ratio } => WARY * calm(ratio),
            Follow::Slowly { ratio } => {
                self.remember(usual, sensor);
                calm(ratio)
            }
            Follow::Settle => 1.0 / SETTLE_CENTRE_STEPS,
        };
        self.move_centre(usual, sensor, value, weight);
    }

    fn move_centre(&mut self, usual: &Usual, sensor: usize, value: f32, weight: f64) {
        let noise = f64::from(usual.noise[sensor]);
        let way = weight * ((f64::from(value) - self.centre[sensor]) / noise).clamp(-STEP_MAX, STEP_MAX);
        self.centre[sensor] += way * noise;
        for mean in &mut self.means[sensor] {
            *mean -= way as f32;
        }
        for far in &mut self.far[sensor] {
            *far -= way as f32;
        }
    }

    /// The wandering of now.
    fn remember(&mut self, usual: &Usual, sensor: usize) {
        for scale in 0..WEIGHTS.len() {
            let mean = self.means[sensor][scale];
            let spread = self.spread[sensor][scale];
            let limit = usual.limit(sensor, scale, spread.max(usual.spread[sensor][scale]));
            self.spread[sensor][scale] += (mean.abs().min(limit).powi(2) - spread) / SPREAD_STEPS;
        }
    }

    /// After a pause nothing is smoothed with what was before it.
    pub fn reset(&mut self) {
        self.means.fill([0.0; WEIGHTS.len()]);
        self.far.fill([0.0; 2]);
    }

    /// What the sensors show now is where they belong. Call [`Levels::reset`] then.
    pub fn accept(&mut self, step: &[f32]) {
        for (centre, value) in self.centre.iter_mut().zip(step) {
            if !value.is_nan() {
                *centre = f64::from(*value);
            }
        }
    }
}
