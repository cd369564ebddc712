//! All sensors together: do they move as they did?
//!
//! Deviations (`levels.rs`), each divided by its usual size and bounded, are turned into the directions along which they varied in
//! calibration (principal components, all of them: Hotelling's T²). The statistic is the sum of their squares, each in units of its
//! own variance but not of less than a share of the mean variance, so that a direction in which nothing ever moved does not
//! decide alone, and less where the direction wanders; without the largest square, because what a single direction shows for a step or
//! two is no pattern. It is smoothed over about two steps.
//!
//! Its limit comes from calibration data that were held back, fold by fold: what a weighted sum of squares with the folds' mean and variance
//! exceeds once in 1,000 steps (G. E. P. Box, *Some theorems on quadratic forms*, 1954: a scaled χ²; its quantile after Wilson
//! and Hilferty, 1931), and no less than the largest seen, and [`MARGIN`] more. While nothing is wrong the statistic's usual level is followed slowly, and the limit with it.
//!
//! A sensor's share is its part of the sum (partial decomposition: C. F. Alcala and S. J. Qin, 2011), where that is positive.

use nalgebra::{DMatrix, SymmetricEigen};
use serde::{Deserialize, Serialize};

use super::levels::WARM_UP;

/// The fewest sensors that make a pattern.
pub const SENSORS_MIN: usize = 3;
/// A deviation says no more than this many of its usual sizes.
pub const DEVIATION_MAX: f32 = 6.0;
/// A direction says no more than this many of its standard deviations.
const DIRECTION_MAX: f32 = 6.0;
/// Of the mean variance of all directions.
const VARIANCE_MIN: f64 = 0.2;
const SMOOTH_WEIGHT: f32 = 0.5;
const FOLDS: usize = 5;
/// One step in 1,000, as standard deviations of a normal distribution.
const FALSE_RATE_Z: f64 = 3.090_2;
/// Above the limit of the held-back data, in squares.
const MARGIN: f32 = 8.0;
/// How the limit grows with the statistic's usual level.
const LEVEL_POWER: f32 = 3.0;
const LEVEL_STEPS: f32 = 700.0;
const SLOW_WEIGHT: f64 = 0.1;
/// Steps of a held-back fold that the smoothing needs.
const FOLD_WARM_UP: usize = 3;
const DIRECTION_WARM_UP: usize = 20;
const LOST: f64 = 1e-9;

/// What is usual for all sensors together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pattern {
    /// Direction after direction, a figure for each channel.
    directions: Vec<f32>,
    /// What a direction's square counts.
    weights: Vec<f32>,
    pub limit: Limit,
}

/// What a statistic is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Limit {
    /// What it reached in held-back data, with a margin.
    pub limit: f32,
    /// Its mean there.
    pub level: f32,
}

/// Where the statistic is now.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Course {
    smooth: Option<f32>,
    level: Option<f32>,
}

/// Directions and what their squares count.
struct Directions {
    directions: Vec<f32>,
    weights: Vec<f32>,
}

/// Rows of `width` bounded deviations.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a> {
    pub values: &'a [f32],
    pub width: usize,
}

impl<'a> Rows<'a> {
    #[must_use]
    pub fn len(&self) -> usize {
        self.values.len() / self.width.max(1)
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = &'a [f32]> + Clone + use<'a> {
        self.values.chunks_exact(self.width.max(1))
    }
}

impl Directions {
    fn of<'a>(rows: &(impl Iterator<Item = &'a [f32]> + Clone), width: usize) -> Self {
        let eigen = SymmetricEigen::new(covariance(rows.clone(), width));
        let found: Vec<(Vec<f32>, Variation)> = (0..width)
            .filter(|i| eigen.eigenvalues[*i] > LOST)
            .map(|i| {
                let direction: Vec<f32> = eigen.eigenvectors.column(i).iter().map(|figure| *figure as f32).collect();
                let course = Variation::of(rows.clone().map(|row| dot(&direction, row)));
                (direction, course)
            })
            .collect();
        let mean = found.iter().map(|(_, course)| course.variance).sum::<f64>() / found.len().max(1) as f64;
        let mut this = Self { directions: Vec::with_capacity(width * found.len()), weights: Vec::new() };
        for (direction, course) in found {
            let scale = course.variance.max(VARIANCE_MIN * mean).sqrt() as f32;
            this.directions.extend(direction.iter().map(|figure| figure / scale));
            this.weights.push((1.0 / course.wandering.powi(2)) as f32);
        }
        this
    }
}

/// Of rows of deviations, which are about zero.
pub(super) fn covariance<'a>(rows: impl Iterator<Item = &'a [f32]>, width: usize) -> DMatrix<f64> {
    let mut covariance = DMatrix::<f64>::zeros(width, width);
    let mut count = 0_usize;
    for row in rows {
        count += 1;
        for (i, a) in row.iter().enumerate() {
            for (j, b) in row.iter().enumerate().take(i + 1) {
                covariance[(i, j)] += f64::from(a * b);
            }
        }
    }
    for i in 0..width {
        for j in 0..i {
            covariance[(j, i)] = covariance[(i, j)];
        }
    }
    covariance / count.max(1) as f64
}

fn statistic(directions: &[f32], weights: &[f32], row: &[f32]) -> f32 {
    let (mut sum, mut largest) = (0.0, 0.0_f32);
    for (direction, weight) in directions.chunks_exact(row.len().max(1)).zip(weights) {
        let along = dot(direction, row).clamp(-DIRECTION_MAX, DIRECTION_MAX);
        let square = weight * along * along;
        sum += square;
        largest = largest.max(square);
    }
    sum - largest
}

/// How a direction varied over calibration.
struct Variation {
    variance: f64,
    /// How much more it wanders than its noise would make it; at least 1.
    wandering: f64,
}

impl Variation {
    fn of(along: impl Iterator<Item = f32>) -> Self {
        let (mut square, mut count, mut slow, mut slow_square) = (0.0, 0_usize, 0.0, 0.0);
        let mut steps = Vec::new();
        let mut last: Option<f64> = None;
        for (step, value) in along.enumerate() {
            let value = f64::from(value);
            slow += SLOW_WEIGHT * (value - slow);
            if let Some(last) = last {
                steps.push((value - last).abs());
            }
            last = Some(value);
            if step >= DIRECTION_WARM_UP {
                square += value * value;
                slow_square += slow * slow;
                count += 1;
            }
        }
        let count = count.max(1) as f64;
        let noise = super::levels::noise_of(&mut steps);
        let white = noise * (SLOW_WEIGHT / (2.0 - SLOW_WEIGHT)).sqrt();
        Self { variance: square / count, wandering: ((slow_square / count).sqrt() / (white + 1e-12)).max(1.0) }
    }
}

impl Pattern {
    /// Of a calibration's bounded deviations, a column for each usable channel; `None` if they are too few.
    #[must_use]
    pub fn calibrate(rows: Rows<'_>) -> Option<Self> {
        let rows = Rows { values: rows.values.get(WARM_UP * rows.width..)?, width: rows.width };
        // With hardly more rows than sensors the folds know fewer directions than there are.
        let is_too_wide = rows.len() * (FOLDS - 1) / FOLDS < rows.width * 5 / 4;
        if rows.width < SENSORS_MIN || is_too_wide || rows.len() < FOLDS * 2 * FOLD_WARM_UP {
            return None;
        }
        let mut held_back = Vec::with_capacity(rows.len());
        for fold in 0..FOLDS {
            let (from, to) = (fold * rows.len() / FOLDS, (fold + 1) * rows.len() / FOLDS);
            let others = rows.iter().take(from).chain(rows.iter().skip(to));
            let directions = Directions::of(&others, rows.width);
            let mut course = Course::default();
            let statistics = rows
                .iter()
                .take(to)
                .skip(from)
                .map(|row| course.smooth(statistic(&directions.directions, &directions.weights, row)));
            held_back.extend(statistics.skip(FOLD_WARM_UP));
        }
        let Directions { directions, weights } = Directions::of(&rows.iter(), rows.width);
        let count = held_back.len() as f64;
        let mean = held_back.iter().map(|value| f64::from(*value)).sum::<f64>() / count;
        let variance = held_back.iter().map(|value| (f64::from(*value) - mean).powi(2)).sum::<f64>() / count;
        let largest = held_back.iter().copied().fold(0.0, f32::max);
        let limit = (box_quantile(mean, variance) as f32).max(largest) + MARGIN;
        let limit = Limit { limit, level: mean as f32 };
        (limit.limit > 0.0 && limit.limit.is_finite()).then_some(Self { directions, weights, limit })
    }

    /// The statistic of a step as a share of its limit, by its square root, as a deviation is.
    pub fn step(&self, row: &[f32], course: &mut Course) -> f32 {
        course.ratio(statistic(&self.directions, &self.weights, row), self.limit)
    }

    /// Each channel's part of a step's statistic; they sum to one.
    #[must_use]
    pub fn shares(&self, row: &[f32]) -> Vec<f32> {
        let mut gradient = vec![0.0; row.len()];
        for (direction, weight) in self.directions.chunks_exact(row.len().max(1)).zip(&self.weights) {
            let along = weight * dot(direction, row).clamp(-DIRECTION_MAX, DIRECTION_MAX);
            for (gradient, figure) in gradient.iter_mut().zip(direction) {
                *gradient += along * figure;
            }
        }
        let mut shares: Vec<f32> = row.iter().zip(gradient).map(|(value, part)| (value * part).max(0.0)).collect();
        let sum: f32 = shares.iter().sum();
        let even = 1.0 / row.len().max(1) as f32;
        for share in &mut shares {
            *share = if sum > 0.0 { *share / sum } else { even };
        }
        shares
    }
}

impl Course {
    /// A step's statistic as a share of its limit, by its square root, as a deviation is.
    pub fn ratio(&mut self, statistic: f32, limit: Limit) -> f32 {
        (self.smooth(statistic) / self.limit(limit)).sqrt()
    }

    fn limit(&self, limit: Limit) -> f32 {
        let level = self.level.unwrap_or(limit.level);
        limit.limit * (level / limit.level).max(1.0).powf(LEVEL_POWER)
    }

    /// Nothing is wrong: the statistic's level is followed.
    pub fn follow(&mut self, limit: Limit) {
        let most = self.limit(limit);
        if let Some(smooth) = self.smooth {
            let level = self.level.get_or_insert(limit.level);
            *level += (smooth.min(most) - *level) / LEVEL_STEPS;
        }
    }

    fn smooth(&mut self, statistic: f32) -> f32 {
        let smooth = self.smooth.get_or_insert(statistic);
        *smooth += SMOOTH_WEIGHT * (statistic - *smooth);
        *smooth
    }

    /// The statistic of now is usual.
    pub fn accept(&mut self, limit: Limit) {
        if let Some(smooth) = self.smooth {
            self.level = Some(self.level.unwrap_or(limit.level).max(smooth));
        }
    }

    /// After a pause.
    pub fn reset(&mut self) {
        self.smooth = None;
    }
}

/// What a sum of squares with this mean and variance exceeds once in so many steps.
fn box_quantile(mean: f64, variance: f64) -> f64 {
    if mean <= 0.0 || variance <= 0.0 {
        return mean;
    }
    let (scale, freedom) = (variance / (2.0 * mean), 2.0 * mean * mean / variance);
    let part = 2.0 / (9.0 * freedom);
    scale * freedom * (1.0 - part + FALSE_RATE_Z * part.sqrt()).powi(3)
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
