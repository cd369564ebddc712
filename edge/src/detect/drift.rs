//! Where sensors predict each other: what does not belong together any more, and whether one sensor alone is to blame. A sensor that
//! drifts away from what the others say is at fault itself, not the machine.
//!
//! It is asked of those sensors alone whose values, in held-back data, the others of them predicted: what nothing predicts, as a
//! temperature that follows slowly, has no place among the others that it could leave, and its level is judged by itself (`levels.rs`).
//!
//! Deviations are smoothed over about 50 steps; where they leave what belongs together (their squared length in the metric of calibration's
//! precision matrix, without the directions of the machine's load: Q rather than T²), the sensor is sought whose value, put where the
//! others predict it, explains the most (identification by reconstruction: R. Dunia, S. J. Qin and others, *Identification of faulty
//! sensors using principal component analysis*, 1996). Only if that is nearly all, and no other explains as much, it is this sensor (two alone cannot
//! tell which of them it is). A machine that goes wrong shows it in more than one: while another sensor's own value is out of its place, none
//! is found to drift.

use gemba_shared::telemetry::Timestamp;
use nalgebra::{DMatrix, SymmetricEigen};
use serde::{Deserialize, Serialize};

use super::{
    levels::WARM_UP,
    pattern::{Rows, SENSORS_MIN, covariance},
};

/// The most sensors of a machine for which it is done: the precision matrix is square.
const SENSORS_MAX: usize = 64;
const WEIGHT: f32 = 0.02;
const FOLDS: usize = 3;
/// Added to each variance: sensors that are nearly the same must not explain each other to the last digit.
const RIDGE: f64 = 0.05;
/// The part of a sensor's variance that the others must have predicted in held-back data.
const PREDICTED_MIN: f64 = 0.6;
/// The part of what is wrong that one sensor must explain.
const EXPLAINED_MIN: f32 = 0.85;
/// Times the largest that was held back; and for what is put down to the machine.
const MARGIN: f32 = 2.5;
const MACHINE_MARGIN: f32 = 2.0;
/// Sensors that are the same to the last digit may leave each other by some more.
const SIZE_MIN: f32 = 0.05;
const STEPS: u16 = 20;
/// It is over when it has been below this part of the limit for as many steps.
const OVER: f32 = 0.5;

/// How the sensors belong together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Belonging {
    /// The places, among the channels, of those that predict each other.
    places: Vec<u16>,
    /// Of these, row after row: see [`stiffness`].
    stiffness: Vec<f32>,
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

/// What is wrong, and whom it is put down to: (a channel's place, the part that it explains), and what the next best explains.
struct Wrong {
    size: f32,
    explained: Vec<f32>,
    most: (usize, f32),
    next: f32,
}

impl Belonging {
    /// Of a calibration's bounded deviations; `None` where no sensors predict each other.
    #[must_use]
    pub fn calibrate(rows: Rows<'_>) -> Option<Self> {
        let warm: Vec<&[f32]> = rows.iter().skip(WARM_UP).collect();
        if !(SENSORS_MIN..=SENSORS_MAX).contains(&rows.width) || warm.len() < 3 * rows.width.max(20) {
            return None;
        }
        let mut places: Vec<u16> = (0..).take(rows.width).collect();
        loop {
            let predicted = predicted(&warm, &places)?;
            if predicted.len() == places.len() {
                break;
            }
            places = predicted;
            if places.len() < 2 {
                return None;
            }
        }
        let (first, _) = warm.split_at(warm.len() - warm.len() / 3);
        let of_first = stiffness(first, &places);
        let (mut smooth, mut largest) = (vec![0.0; places.len()], SIZE_MIN);
        for row in &warm {
            go_on(&mut smooth, row, &places);
            largest = largest.max(wrong(&of_first, &smooth).size);
        }
        let stiffness = stiffness(&warm, &places);
        Some(Self { places, stiffness, limit: MARGIN * largest })
    }
}

/// The places whose values the others predict, in data that were held back, fold by fold.
fn predicted(rows: &[&[f32]], places: &[u16]) -> Option<Vec<u16>> {
    let mut squares = vec![(0.0_f64, 0.0_f64); places.len()];
    for fold in 0..FOLDS {
        let (from, to) = (fold * rows.len() / FOLDS, (fold + 1) * rows.len() / FOLDS);
        let precision = precision(&[&rows[..from], &rows[to..]].concat(), places)?;
        for row in &rows[from..to] {
            let row: Vec<f32> = of_places(row, places).collect();
            let product = times(&precision, &row);
            for (i, (residual, whole)) in squares.iter_mut().enumerate() {
                *residual += f64::from(product[i] / precision[i * places.len() + i]).powi(2);
                *whole += f64::from(row[i]).powi(2);
            }
        }
    }
    let is_predicted = |(residual, whole): &(f64, f64)| *residual < (1.0 - PREDICTED_MIN) * whole;
    let predicted =
        places.iter().zip(&squares).filter(|(_, squares)| is_predicted(squares)).map(|(place, _)| *place).collect();
    Some(predicted)
}

fn of_places<'a>(row: &'a [f32], places: &'a [u16]) -> impl Iterator<Item = f32> + 'a {
    places.iter().map(|place| row[usize::from(*place)])
}

impl Drift {
    /// The sensor that drifts, by its catalog position.
    #[must_use]
    pub fn sensor(&self) -> Option<u16> {
        self.drifting.map(|(sensor, _)| sensor)
    }

    /// Takes a step's bounded deviations, and the catalog positions of their channels; `is_alone` says of a sensor whether no other one's
    /// value is out of its place.
    pub fn step(
        &mut self,
        belonging: &Belonging,
        channels: &[u16],
        row: &[f32],
        at: Timestamp,
        is_alone: impl Fn(u16) -> bool,
    ) -> Said {
        self.smooth.resize(belonging.places.len(), 0.0);
        go_on(&mut self.smooth, row, &belonging.places);
        let wrong = wrong(&belonging.stiffness, &self.smooth);
        let change = self.change(belonging, channels, &wrong, at, is_alone);
        if self.drifting.is_some() || self.suspect.is_some() {
            return Said { change, ..Said::default() };
        }
        let sum: f32 = wrong.explained.iter().sum();
        let mut shares = vec![0.0; row.len()];
        for (place, part) in belonging.places.iter().zip(&wrong.explained).filter(|_| sum > 0.0) {
            shares[usize::from(*place)] = part / sum;
        }
        Said { change, ratio: (wrong.size / (MACHINE_MARGIN * belonging.limit)).sqrt(), shares }
    }

    fn change(
        &mut self,
        belonging: &Belonging,
        channels: &[u16],
        wrong: &Wrong,
        at: Timestamp,
        is_alone: impl Fn(u16) -> bool,
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
        let is_one = wrong.size > belonging.limit && part >= EXPLAINED_MIN && wrong.next < EXPLAINED_MIN;
        let suspect = is_one.then(|| channels[usize::from(belonging.places[place])]).filter(|sensor| is_alone(*sensor));
        self.steps = if suspect.is_some() && suspect == self.suspect { self.steps + 1 } else { 0 };
        self.suspect = suspect;
        let sensor = suspect.filter(|_| self.steps >= STEPS)?;
        self.steps = 0;
        self.drifting = Some((sensor, at));
        Some((sensor, at, true))
    }

    /// What was smoothed is of no use; a sensor that drifts does so until it is seen to be back.
    pub fn forget(&mut self) {
        *self = Self { drifting: self.drifting, ..Self::default() };
    }

    /// After a pause, or when what is seen is accepted; gives the sensor that drifted.
    pub fn reset(&mut self) -> Option<(u16, Timestamp)> {
        std::mem::take(self).drifting
    }
}

fn go_on(smooth: &mut [f32], row: &[f32], places: &[u16]) {
    for (smooth, value) in smooth.iter_mut().zip(of_places(row, places)) {
        *smooth += WEIGHT * (value - *smooth);
    }
}

/// The rows' covariance at these places.
fn covariance_at(rows: &[&[f32]], places: &[u16]) -> DMatrix<f64> {
    let rows: Vec<f32> = rows.iter().flat_map(|row| of_places(row, places)).collect();
    covariance(rows.chunks_exact(places.len()), places.len()) + DMatrix::identity(places.len(), places.len()) * RIDGE
}

/// The inverse of the rows' covariance, row after row.
fn precision(rows: &[&[f32]], places: &[u16]) -> Option<Vec<f32>> {
    let inverse = covariance_at(rows, places).cholesky()?.inverse();
    // It is symmetric, so that columns are rows.
    Some(inverse.iter().map(|figure| *figure as f32).collect())
}

/// The same without the directions in which the sensors move more than in the mean of all (Kaiser's rule): there they go with the machine's
/// load, which may be larger than it was and takes none of them from its place among the others.
fn stiffness(rows: &[&[f32]], places: &[u16]) -> Vec<f32> {
    let eigen = SymmetricEigen::new(covariance_at(rows, places));
    let mean = eigen.eigenvalues.mean();
    let mut inverse = DMatrix::<f64>::zeros(places.len(), places.len());
    for (variance, direction) in eigen.eigenvalues.iter().zip(eigen.eigenvectors.column_iter()) {
        if *variance <= mean {
            inverse += direction * direction.transpose() / *variance;
        }
    }
    inverse.iter().map(|figure| *figure as f32).collect()
}

fn times(precision: &[f32], row: &[f32]) -> Vec<f32> {
    precision.chunks_exact(row.len()).map(|line| line.iter().zip(row).map(|(a, b)| a * b).sum()).collect()
}

fn wrong(stiffness: &[f32], smooth: &[f32]) -> Wrong {
    let width = smooth.len();
    let product = times(stiffness, smooth);
    let size: f32 = product.iter().zip(smooth).map(|(a, b)| a * b).sum();
    let explained: Vec<f32> =
        product.iter().enumerate().map(|(i, value)| value * value / stiffness[i * width + i]).collect();
    let part = |explained: f32| if size > 0.0 { explained / size } else { 0.0 };
    let (mut most, mut next) = ((0, 0.0), 0.0);
    for (place, explained) in explained.iter().copied().enumerate() {
        if explained >= most.1 {
            (most, next) = ((place, explained), most.1);
        } else if explained > next {
            next = explained;
        }
    }
    Wrong { size, most: (most.0, part(most.1)), next: part(next), explained }
}
