//! Where sensors predict each other: what does not belong together any more, and whether one sensor alone is to blame. A sensor that
//! drifts away from what the others say is at fault itself, not the machine.
//!
//! Deviations of all sensors are smoothed over about 50 steps; where they leave what belongs together (their squared length in the
//! metric of calibration's precision matrix), the sensor is sought whose value, put where the others predict it, explains the
//! most (identification by reconstruction: R. Dunia, S. J. Qin and others, *Identification of faulty sensors using principal component
//! analysis*, 1996). Only if that is nearly all, and the others did predict this sensor in held-back data, it is this sensor. A
//! machine that goes wrong shows it in more than one, or in one that nothing predicts; where it is more than one, that is a
//! finding of the pattern.

use gemba_shared::telemetry::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    levels::WARM_UP,
    pattern::{Rows, SENSORS_MIN, covariance},
};

/// The most sensors for which it is done: the precision matrix is square.
const SENSORS_MAX: usize = 64;
const WEIGHT: f32 = 0.02;
/// Added to each variance: sensors that are nearly the same must not explain each other to the last digit.
const RIDGE: f64 = 0.05;
/// The part of a sensor's variance that the others must have predicted.
const PREDICTED_MIN: f64 = 0.6;
/// The part of what is wrong that one sensor must explain.
const EXPLAINED_MIN: f32 = 0.85;
/// Times the largest that was held back; and for what is put down to the machine.
const MARGIN: f32 = 2.5;
const MACHINE_MARGIN: f32 = 1.5;
const STEPS: u16 = 20;
/// It is over when it has been below this part of the limit for as many steps.
const OVER: f32 = 0.5;

/// How the sensors belong together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Belonging {
    /// Row after row.
    precision: Vec<f32>,
    /// Whether the others predict the sensor.
    predicted: Vec<bool>,
    limit: f32,
}

/// How they stand to each other now.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Drift {
    smooth: Vec<f32>,
    suspect: Option<u16>,
    /// Steps in a row that say the same.
    steps: u16,
    /// The catalog position of the sensor that drifts, and since when.
    drifting: Option<(u16, Timestamp)>,
}

/// What a step says.
#[derive(Debug, Default)]
pub struct Said {
    /// A sensor's drift that begins or ends: the sensor, since when, whether it begins.
    pub change: Option<(u16, Timestamp, bool)>,
    /// How far the machine is from what belongs together, as a share of the limit; 0 while a sensor is to blame.
    pub ratio: f32,
    /// Each channel's part; they sum to one.
    pub shares: Vec<f32>,
}

/// What is wrong, and whom it is put down to: (a channel's place, the part that it explains).
struct Wrong {
    size: f32,
    explained: Vec<f32>,
    most: (usize, f32),
}

impl Belonging {
    /// Of a calibration's bounded deviations; `None` where no sensor is predicted by others.
    #[must_use]
    pub fn calibrate(rows: Rows<'_>) -> Option<Self> {
        let width = rows.width;
        let warm: Vec<&[f32]> = rows.iter().skip(WARM_UP).collect();
        if !(SENSORS_MIN..=SENSORS_MAX).contains(&width) || warm.len() < 3 * width.max(20) {
            return None;
        }
        let (first, held_back) = warm.split_at(warm.len() - warm.len() / 3);
        let of_first = precision(first, width)?;
        let mut squares = vec![(0.0_f64, 0.0_f64); width];
        for row in held_back {
            let product = times(&of_first, row);
            for (i, (residual, whole)) in squares.iter_mut().enumerate() {
                *residual += f64::from(product[i] / of_first[i * width + i]).powi(2);
                *whole += f64::from(row[i]).powi(2);
            }
        }
        let predicted: Vec<bool> =
            squares.iter().map(|(residual, whole)| *residual < (1.0 - PREDICTED_MIN) * whole).collect();
        if !predicted.contains(&true) {
            return None;
        }
        let (mut smooth, mut largest) = (vec![0.0; width], 0.0_f32);
        for row in &warm {
            go_on(&mut smooth, row);
            largest = largest.max(wrong(&of_first, &smooth).size);
        }
        let precision = precision(&warm, width)?;
        Some(Self { precision, predicted, limit: MARGIN * largest })
    }
}

impl Drift {
    /// The sensor that drifts, by its catalog position.
    #[must_use]
    pub fn sensor(&self) -> Option<u16> {
        self.drifting.map(|(sensor, _)| sensor)
    }

    /// Takes a step's bounded deviations, and the catalog positions of their channels.
    pub fn step(&mut self, belonging: &Belonging, channels: &[u16], row: &[f32], at: Timestamp) -> Said {
        self.smooth.resize(row.len(), 0.0);
        go_on(&mut self.smooth, row);
        let wrong = wrong(&belonging.precision, &self.smooth);
        let change = self.change(belonging, channels, &wrong, at);
        if self.drifting.is_some() || self.suspect.is_some() {
            return Said { change, ..Said::default() };
        }
        let sum: f32 = wrong.explained.iter().sum();
        let shares = wrong.explained.iter().map(|part| if sum > 0.0 { part / sum } else { 0.0 }).collect();
        Said { change, ratio: (wrong.size / (MACHINE_MARGIN * belonging.limit)).sqrt(), shares }
    }

    fn change(
        &mut self,
        belonging: &Belonging,
        channels: &[u16],
        wrong: &Wrong,
        at: Timestamp,
    ) -> Option<(u16, Timestamp, bool)> {
        if let Some((sensor, since)) = self.drifting {
            self.steps = if wrong.size < OVER * belonging.limit { self.steps + 1 } else { 0 };
            if self.steps < STEPS {
                return None;
            }
            (self.drifting, self.steps) = (None, 0);
            return Some((sensor, since, false));
        }
        let (place, part) = wrong.most;
        let is_one = wrong.size > belonging.limit && part >= EXPLAINED_MIN && belonging.predicted[place];
        let suspect = is_one.then(|| channels[place]);
        self.steps = if suspect.is_some() && suspect == self.suspect { self.steps + 1 } else { 0 };
        self.suspect = suspect;
        let sensor = suspect.filter(|_| self.steps >= STEPS)?;
        self.steps = 0;
        self.drifting = Some((sensor, at));
        Some((sensor, at, true))
    }

    /// After a pause, or when what is seen is accepted; gives the sensor that drifted.
    pub fn reset(&mut self) -> Option<(u16, Timestamp)> {
        std::mem::take(self).drifting
    }
}

fn go_on(smooth: &mut [f32], row: &[f32]) {
    for (smooth, value) in smooth.iter_mut().zip(row) {
        *smooth += WEIGHT * (value - *smooth);
    }
}

/// The inverse of the rows' covariance, row after row.
fn precision(rows: &[&[f32]], width: usize) -> Option<Vec<f32>> {
    let mut covariance = covariance(rows.iter().copied(), width);
    for i in 0..width {
        covariance[(i, i)] += RIDGE;
    }
    let inverse = covariance.cholesky()?.inverse();
    // It is symmetric, so that columns are rows.
    Some(inverse.iter().map(|figure| *figure as f32).collect())
}

fn times(precision: &[f32], row: &[f32]) -> Vec<f32> {
    precision.chunks_exact(row.len()).map(|line| line.iter().zip(row).map(|(a, b)| a * b).sum()).collect()
}

fn wrong(precision: &[f32], smooth: &[f32]) -> Wrong {
    let width = smooth.len();
    let product = times(precision, smooth);
    let size: f32 = product.iter().zip(smooth).map(|(a, b)| a * b).sum();
    let explained: Vec<f32> =
        product.iter().enumerate().map(|(i, value)| value * value / precision[i * width + i]).collect();
    let most = explained.iter().copied().enumerate().max_by(|a, b| a.1.total_cmp(&b.1));
    let (place, most) = most.unwrap_or((0, 0.0));
    Wrong { size, explained, most: (place, if size > 0.0 { most / size } else { 0.0 }) }
}
