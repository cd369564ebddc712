//! The built-in robust baseline: how far each sensor is from its usual value, in units of its usual spread.
//!
//! - A sensor's centre is its median; its scale is 1.4826 × the median absolute deviation, but at least half the smallest difference between
//!   two of its values (a quantised sensor then does not alarm at its next digit); where the deviation is zero though the sensor moves, its
//!   standard deviation, but at least one such difference.
//! - A sensor that never moved, or had values in less than 80 % of the steps, is left out.
//! - Steps are smoothed by an exponentially weighted mean (weight 0.3, about three steps).
//! - The raw score is the fourth-power mean of the sensors' deviations: between their root mean square, which misses one bad
//!   sensor among many, and their maximum. A sensor's share is its part of that sum.
//! - The centre follows slow drift (time constant 10,000 steps), by at most one scale in all.

use serde::{Deserialize, Serialize};

const SMOOTH_WEIGHT: f32 = 0.3;
const PRESENT_MIN: f64 = 0.8;
const DRIFT_WEIGHT: f32 = 1e-4;
/// Of a normal distribution: standard deviation / median absolute deviation.
const MAD_TO_SD: f64 = 1.4826;
/// Beyond it a deviation says nothing more; keeps the fourth power finite.
const DEVIATION_MAX: f32 = 1e6;

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Baseline {
    pub median: Vec<f32>,
    /// 0 for a sensor that is left out.
    pub scale: Vec<f32>,
    /// The raw score that counts as 1.0.
    pub threshold: f32,
}

/// The smoothed values, and the centres as they have drifted.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Smooth {
    values: Vec<f32>,
    pub center: Vec<f32>,
}

impl Smooth {
    pub fn reset(&mut self) {
        self.values.clear();
    }

    /// Takes a step and gives the smoothed values: NaN where the step has none.
    pub fn push(&mut self, step: &[f32]) -> Vec<f32> {
        if self.values.len() < step.len() {
            self.values.resize(step.len(), f32::NAN);
        }
        let mut smoothed = vec![f32::NAN; step.len()];
        for ((state, value), smoothed) in self.values.iter_mut().zip(step).zip(&mut smoothed) {
            if !value.is_nan() {
                *state = if state.is_nan() { *value } else { *state + SMOOTH_WEIGHT * (value - *state) };
                *smoothed = *state;
            }
        }
        smoothed
    }
}

impl Baseline {
    /// What is usual in these columns (a sensor's values each, NaN where it had none). The threshold is left at 1.
    #[must_use]
    pub fn from_columns(columns: &[Vec<f32>]) -> Self {
        let (median, scale) = columns.iter().map(|column| center_and_scale(column)).unzip();
        Self { median, scale, threshold: 1.0 }
    }

    /// How many sensors it judges by.
    #[must_use]
    pub fn usable(&self) -> usize {
        self.scale.iter().filter(|scale| **scale > 0.0).count()
    }

    #[must_use]
    pub fn is_usable(&self, sensor: usize) -> bool {
        self.scale.get(sensor).is_some_and(|scale| *scale > 0.0)
    }

    /// The raw score of smoothed values and each sensor's share; `None` with values of less than half of the usable sensors.
    #[must_use]
    pub fn judge(&self, center: &[f32], smooth: &[f32]) -> Option<(f32, Vec<f32>)> {
        let mut shares = vec![0.0_f32; smooth.len()];
        let mut present = 0_usize;
        for (((share, value), center), scale) in shares.iter_mut().zip(smooth).zip(center).zip(&self.scale) {
            if *scale > 0.0 && !value.is_nan() {
                let deviation = ((value - center) / scale).abs().min(DEVIATION_MAX);
                *share = deviation.powi(4);
                present += 1;
            }
        }
        if present == 0 || present * 2 < self.usable() {
            return None;
        }
        let sum: f32 = shares.iter().sum();
        if sum > 0.0 {
            for share in &mut shares {
                *share /= sum;
            }
        } else {
            let even = 1.0 / present as f32;
            let used = shares.iter_mut().enumerate().filter(|(ix, _)| self.is_usable(*ix) && !smooth[*ix].is_nan());
            for (_, share) in used {
                *share = even;
            }
        }
        Some(((sum / present as f32).powf(0.25), shares))
    }

    /// Lets the centres follow a step that was normal.
    pub fn drift(&self, center: &mut [f32], step: &[f32]) {
        for (((center, value), median), scale) in center.iter_mut().zip(step).zip(&self.median).zip(&self.scale) {
            if !value.is_nan() {
                let moved = *center + DRIFT_WEIGHT * (value - *center);
                *center = moved.clamp(median - scale, median + scale);
            }
        }
    }
}

fn center_and_scale(column: &[f32]) -> (f32, f32) {
    let mut values: Vec<f64> = column.iter().filter(|value| !value.is_nan()).map(|value| f64::from(*value)).collect();
    if values.is_empty() {
        return (0.0, 0.0);
    }
    values.sort_by(f64::total_cmp);
    let center = median(&values);
    if (values.len() as f64) < PRESENT_MIN * column.len() as f64 {
        return (center as f32, 0.0);
    }
    let quantum =
        values.windows(2).map(|pair| pair[1] - pair[0]).filter(|step| *step > 0.0).fold(f64::INFINITY, f64::min);
    if quantum.is_infinite() {
        return (center as f32, 0.0);
    }
    let mut deviations: Vec<f64> = values.iter().map(|value| (value - center).abs()).collect();
    deviations.sort_by(f64::total_cmp);
    let deviation = MAD_TO_SD * median(&deviations);
    let scale = if deviation > 0.0 {
        deviation.max(quantum / 2.0)
    } else {
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / values.len() as f64;
        variance.sqrt().max(quantum)
    };
    (center as f32, scale as f32)
}

/// Of sorted values, at least one.
fn median(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { f64::midpoint(sorted[middle - 1], sorted[middle]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_have_a_floor_that_is_not_epsilon() {
        let mostly_still = [[20.0; 95].as_slice(), &[20.5; 5]].concat();
        let check = |column: Vec<f32>, expected: (f32, f32)| {
            let (center, scale) = center_and_scale(&column);
            assert!((center - expected.0).abs() < 1e-5 && (scale - expected.1).abs() < 1e-4, "{center} {scale}");
        };
        check(mostly_still, (20.0, 0.5));
        check(vec![7.0; 100], (7.0, 0.0));
        check((0..100).map(|n| n as f32).collect(), (49.5, 37.065));
        check([vec![f32::NAN; 30], [1.0, 2.0].repeat(35)].concat(), (1.5, 0.0));
        check(vec![], (0.0, 0.0));
    }

    #[test]
    fn one_sensor_that_is_far_off_has_the_share() {
        let baseline = Baseline { median: vec![0.0; 4], scale: vec![1.0, 1.0, 1.0, 0.0], threshold: 1.0 };
        let (score, shares) = baseline.judge(&[0.0; 4], &[0.5, 8.0, -0.5, 99.0]).unwrap();
        assert!((score - 8.0 / 3.0_f32.powf(0.25)).abs() < 0.01, "{score}");
        assert!(shares[1] > 0.99 && shares[3] == 0.0);
        assert!((shares.iter().sum::<f32>() - 1.0).abs() < 1e-6);
        assert_eq!(baseline.judge(&[0.0; 4], &[f32::NAN, 1.0, f32::NAN, 1.0]), None);
        let (score, shares) = baseline.judge(&[0.0; 4], &[0.0; 4]).unwrap();
        assert_eq!((score, shares), (0.0, vec![1.0 / 3.0, 1.0 / 3.0, 1.0 / 3.0, 0.0]));
    }
}
