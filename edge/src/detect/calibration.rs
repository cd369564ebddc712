//! What a machine's calibration learns of it, and when it refuses to.
//!
//! Each sensor's noise and wandering (`levels.rs`), and how they move together: for the built-in pattern, and for a model
//! where there is one. Limits come from data that were held back. A model is given the machine as the levels see it: each value as its
//! deviation from the centre of that moment, put back on the centre at which calibration ended, so that a machine that drifts
//! slowly does not leave what the model remembers. The first two thirds of the steps are the model's memory, the last third
//! gives its threshold: 1.5 × the 99th percentile of the raw scores.
//!
//! Refused are data in which too few sensors moved at all, or most changed from one level to another: the machine was off, or
//! changing. Calibration then goes on with newer steps.

use gemba_shared::telemetry::Uncalibrated;
use nalgebra::SymmetricEigen;
use serde::{Deserialize, Serialize};

use super::{
    CALIBRATION_STEPS_MIN,
    drift::Belonging,
    levels::{self, Levels, Usual},
    model::{Calibrated, Model, ModelError},
    pattern::{self, Limit, Pattern},
};

const QUANTILE: f64 = 0.99;
const MARGIN: f32 = 1.5;
/// So many usable sensors are enough, however many others are of no use.
const SENSORS_ENOUGH: usize = 3;
/// A model is told of no smaller variance.
const VARIANCE_MIN: f64 = 1e-3;

/// Steps of a calibration that is under way.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rows {
    width: usize,
    /// Row after row.
    values: Vec<f32>,
    /// The first row that was not written out yet.
    unsaved: usize,
}

impl Rows {
    #[must_use]
    pub fn len(&self) -> usize {
        self.values.len() / self.width.max(1)
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Takes a row in which at least half of the sensors have values.
    pub fn push(&mut self, row: &[f32]) {
        if row.iter().filter(|value| !value.is_nan()).count() * 2 < row.len().max(1) {
            return;
        }
        if row.len() > self.width {
            self.widen(row.len());
        }
        self.values.extend_from_slice(row);
        self.values.resize(self.values.len() + self.width - row.len(), f32::NAN);
    }

    fn widen(&mut self, width: usize) {
        let rows: Vec<Vec<f32>> = self.iter().map(<[f32]>::to_vec).collect();
        *self = Self { width, ..Self::default() };
        for mut row in rows {
            row.resize(width, f32::NAN);
            self.values.extend(row);
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = &[f32]> {
        self.values.chunks_exact(self.width.max(1))
    }

    /// Forgets the oldest rows, up to half of them: calibration goes on with newer ones.
    pub fn forget_half(&mut self) {
        let kept = self.len() - self.len() / 2;
        let values = self.values.split_off(self.values.len() - kept * self.width);
        (self.values, self.unsaved) = (values, 0);
    }

    /// The rows from the first unsaved on, in blocks: (number of the block, its rows). They count as saved from now on.
    pub(super) fn take_unsaved(&mut self, rows_a_block: usize) -> Vec<(usize, Vec<f32>)> {
        let first = self.unsaved / rows_a_block;
        self.unsaved = self.len();
        self.values
            .chunks(rows_a_block * self.width.max(1))
            .enumerate()
            .skip(first)
            .map(|(n, b)| (n, b.to_vec()))
            .collect()
    }

    /// `None` if the values are not whole rows.
    pub(super) fn from_saved(width: usize, values: Vec<f32>) -> Option<Self> {
        let whole = if width == 0 { values.is_empty() } else { values.len().is_multiple_of(width) };
        let mut rows = Self { width, values, unsaved: 0 };
        rows.unsaved = rows.len();
        whole.then_some(rows)
    }

    pub(super) fn width(&self) -> usize {
        self.width
    }
}

/// What is normal for a machine.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Learnt {
    pub usual: Usual,
    /// The catalog positions of the sensors that are judged: those that moved. What is learnt of them together has a figure for each, in
    /// this order.
    pub channels: Vec<u16>,
    /// Where enough sensors move.
    pub pattern: Option<Pattern>,
    /// Where a model judges in the pattern's place, for as long as it is there.
    pub model: Option<LearntModel>,
    /// The model that calibration was made with, taken or found wanting.
    pub tried: Option<String>,
    /// Where some sensors predict others.
    pub belonging: Option<Belonging>,
}

/// What a model is given of a machine.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LearntModel {
    /// The model's name and version.
    pub name: String,
    mean: Vec<f32>,
    scale: Vec<f32>,
    /// Empty while `ready` has it: it is the bulk of a machine's memory.
    memory: Vec<f32>,
    loadings: Vec<f32>,
    eigenvalues: Vec<f32>,
    pub threshold: f32,
    /// Of the raw score's square.
    pub limit: Limit,
    /// Made again after a restart.
    #[serde(skip)]
    ready: Option<Ready>,
}

#[derive(Debug, Clone)]
struct Ready {
    plan: std::sync::Arc<super::model::Plan>,
    calibrated: std::sync::Arc<Calibrated>,
}

impl Learnt {
    /// Learns from all rows, and says where the machine stands at their end.
    ///
    /// # Errors
    /// If there is nothing to judge by.
    pub fn from_rows(rows: &Rows, model: Option<&Model>) -> Result<(Self, Levels), Uncalibrated> {
        let width = rows.width();
        if rows.len() < CALIBRATION_STEPS_MIN as usize {
            let of = count(width);
            return Err(Uncalibrated::TooFew { constant: 0, missing: of, of });
        }
        let all: Vec<&[f32]> = rows.iter().collect();
        let levels::Calibrated { usual, levels, deviations, changed, constant } = levels::calibrate(&all, width);
        let (of, usable) = (count(width), usual.usable());
        if usable == 0 || (usable * 2 < width && usable < SENSORS_ENOUGH) {
            let constant = count(constant);
            return Err(Uncalibrated::TooFew { constant, missing: of - constant - count(usable), of });
        }
        if changed * 2 > usable {
            return Err(Uncalibrated::Unsteady { sensors: count(changed), of });
        }
        let left_out: Vec<usize> = (0..width).filter(|ix| !usual.is_usable(*ix)).collect();
        if !left_out.is_empty() {
            tracing::info!(?left_out, "sensors that never moved, or were mostly away, are not judged");
        }
        let channels: Vec<u16> = (0..of).filter(|ix| usual.is_usable(usize::from(*ix))).collect();
        let bounded: Vec<f32> =
            deviations.chunks_exact(width).flat_map(|row| usual.bounded(&channels, |sensor| row[sensor])).collect();
        let bounded = pattern::Rows { values: &bounded, width: channels.len() };
        let learnt = model.filter(|_| !channels.is_empty()).and_then(|model| {
            match LearntModel::from_rows(bounded, &channels, &usual, model) {
                Ok(learnt) => learnt,
                Err(error) => {
                    tracing::warn!(%model, %error, "the model cannot be calibrated for a machine: the built-in pattern judges");
                    None
                }
            }
        });
        let tried = model.map(ToString::to_string);
        let (pattern, belonging) = (Pattern::calibrate(bounded), Belonging::calibrate(bounded));
        Ok((Self { usual, channels, pattern, model: learnt, tried, belonging }, levels))
    }

    /// What all sensors together are compared with.
    pub(super) fn limit(&self, by_model: bool) -> Option<Limit> {
        let of_model = self.model.as_ref().filter(|_| by_model).map(|model| model.limit);
        of_model.or(self.pattern.as_ref().map(|pattern| pattern.limit))
    }

    /// What is written out.
    ///
    /// # Errors
    /// If it cannot be encoded.
    pub(super) fn encode(&self) -> Result<Vec<u8>, postcard::Error> {
        let model = self.model.as_ref().map(LearntModel::whole);
        postcard::to_stdvec(&Self { model, ..self.clone() })
    }
}

fn count(sensors: usize) -> u16 {
    u16::try_from(sensors).unwrap_or(u16::MAX)
}

impl LearntModel {
    /// `None` if the model gives no score that a threshold could be made of.
    fn from_rows(
        rows: pattern::Rows<'_>,
        channels: &[u16],
        usual: &Usual,
        model: &Model,
    ) -> Result<Option<Self>, ModelError> {
        let held_back = rows.len() - rows.len() / 3;
        let mut learnt = Self::of(rows, held_back, channels, usual, model);
        learnt.prepare(model)?;
        let mut scores = Vec::new();
        for end in held_back + model.steps()..=rows.len() {
            let recent = rows.iter().take(end).skip(end - model.steps());
            scores.push(learnt.judge(recent)?.0);
        }
        let level = scores.iter().map(|score| score * score).sum::<f32>() / scores.len().max(1) as f32;
        let threshold = threshold(scores);
        if threshold <= 0.0 {
            return Ok(None);
        }
        let mut learnt = Self::of(rows, rows.len(), channels, usual, model);
        (learnt.threshold, learnt.limit) = (threshold, Limit { limit: threshold * threshold, level });
        learnt.prepare(model)?;
        Ok(Some(learnt))
    }

    fn of(rows: pattern::Rows<'_>, until: usize, channels: &[u16], usual: &Usual, model: &Model) -> Self {
        let mean: Vec<f32> = channels.iter().map(|ix| usual.centre[usize::from(*ix)] as f32).collect();
        let scale: Vec<f32> =
            channels.iter().map(|ix| usual.noise[usize::from(*ix)] * usual.size[usize::from(*ix)]).collect();
        let begin = levels::WARM_UP.min(until / 2);
        let known: Vec<&[f32]> = rows.iter().take(until).skip(begin).collect();
        let wanted = model.memory_rows();
        // Evenly over the calibration; a row comes twice where there are too few.
        let chosen = (0..wanted).map(|n| known[n * known.len() / wanted.max(1)]);
        let value =
            |row: &[f32]| row.iter().zip(&mean).zip(&scale).map(|((z, mean), scale)| mean + z * scale).collect();
        let memory = chosen.flat_map(|row| -> Vec<f32> { value(row) }).collect();
        let (loadings, eigenvalues) = components(&known, channels.len(), model.components());
        Self {
            name: model.to_string(),
            mean,
            scale,
            memory,
            loadings,
            eigenvalues,
            threshold: 1.0,
            limit: Limit { limit: 1.0, level: 1.0 },
            ready: None,
        }
    }

    /// Makes it ready to judge, with the model it was learnt for.
    ///
    /// # Errors
    /// If tract refuses the graph for so many channels.
    pub(super) fn prepare(&mut self, model: &Model) -> Result<(), ModelError> {
        let plan = model.plan(self.mean.len())?;
        let calibrated = Calibrated {
            mean: self.mean.clone(),
            scale: self.scale.clone(),
            memory: std::mem::take(&mut self.memory),
            loadings: std::mem::take(&mut self.loadings),
            eigenvalues: std::mem::take(&mut self.eigenvalues),
        };
        self.ready = Some(Ready { plan, calibrated: calibrated.into() });
        Ok(())
    }

    /// A copy with all that must be kept.
    fn whole(&self) -> Self {
        let mut whole = self.clone();
        if let Some(ready) = whole.ready.take() {
            whole.memory.clone_from(&ready.calibrated.memory);
            whole.loadings.clone_from(&ready.calibrated.loadings);
            whole.eigenvalues.clone_from(&ready.calibrated.eigenvalues);
        }
        whole
    }

    /// The raw score of a window of bounded deviations, the newest last, and each channel's share.
    pub(super) fn judge<'a>(&self, recent: impl Iterator<Item = &'a [f32]>) -> Result<(f32, Vec<f32>), ModelError> {
        let Some(ready) = &self.ready else {
            return Err(ModelError::Run { message: "it is not the model that was calibrated".into() });
        };
        let value =
            |row: &'a [f32]| row.iter().zip(&self.mean).zip(&self.scale).map(|((z, mean), scale)| mean + z * scale);
        let window: Vec<f32> = recent.flat_map(value).collect();
        let mut shares = vec![0.0; self.mean.len()];
        let score = ready.plan.judge(&window, &ready.calibrated, &mut shares)?;
        Ok((score, shares))
    }
}

/// The directions along which rows vary most, a row of `wanted` figures for each channel, and the variances along them.
fn components(rows: &[&[f32]], width: usize, wanted: usize) -> (Vec<f32>, Vec<f32>) {
    let mut loadings = vec![0.0; width * wanted];
    let mut eigenvalues = vec![1.0; wanted];
    if wanted == 0 || rows.is_empty() {
        return (loadings, eigenvalues);
    }
    let eigen = SymmetricEigen::new(pattern::covariance(rows.iter().copied(), width));
    let mut order: Vec<usize> = (0..width).collect();
    order.sort_by(|a, b| eigen.eigenvalues[*b].total_cmp(&eigen.eigenvalues[*a]));
    for (k, from) in order.into_iter().take(wanted).enumerate() {
        // A direction in which nothing moved cannot be divided by.
        eigenvalues[k] = eigen.eigenvalues[from].max(VARIANCE_MIN) as f32;
        for channel in 0..width {
            loadings[channel * wanted + k] = eigen.eigenvectors[(channel, from)] as f32;
        }
    }
    (loadings, eigenvalues)
}

fn threshold(mut scores: Vec<f32>) -> f32 {
    if scores.is_empty() {
        return 0.0;
    }
    scores.sort_by(f32::total_cmp);
    let place = (QUANTILE * (scores.len() - 1) as f64).ceil() as usize;
    scores[place] * MARGIN
}
