//! What a machine's calibration learns of it.
//!
//! The threshold comes from data that was not learnt from: the first two thirds of the steps say what is usual, the last
//! third is judged by that, and the threshold is 1.5 × the 99th percentile of its scores (for the baseline at least 2: two
//! usual spreads). Then all steps are learnt from. Thus a machine that is restless in calibration gets a high
//! threshold, and a fault that is there in calibration is taken for normal.

use serde::{Deserialize, Serialize};

use super::{
    baseline::{Baseline, Smooth},
    model::{Calibrated, Model, ModelError},
};

const QUANTILE: f64 = 0.99;
const MARGIN: f32 = 1.5;
const BASELINE_THRESHOLD_MIN: f32 = 2.0;

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

    fn columns(&self, rows: usize) -> Vec<Vec<f32>> {
        (0..self.width).map(|column| self.iter().take(rows).map(|row| row[column]).collect()).collect()
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
    pub baseline: Baseline,
    /// Where a model judges.
    pub model: Option<LearntModel>,
}

/// What a model is given of a machine.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LearntModel {
    /// The model's name and version.
    pub name: String,
    /// The catalog positions of its channels.
    channels: Vec<u16>,
    mean: Vec<f32>,
    scale: Vec<f32>,
    /// Empty while `ready` has it: it is the bulk of a machine's memory.
    memory: Vec<f32>,
    pub threshold: f32,
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
    /// Learns from all rows; see the head of this file.
    #[must_use]
    pub fn from_rows(rows: &Rows, model: Option<&Model>) -> Self {
        let held_back = rows.len() - rows.len() / 3;
        let first = Baseline::from_columns(&rows.columns(held_back));
        let mut smooth = Smooth::default();
        let scores = rows.iter().map(|row| smooth.push(row)).skip(held_back);
        let scores = scores.filter_map(|row| Some(first.judge(&first.median, &row)?.0)).collect();
        let mut baseline = Baseline::from_columns(&rows.columns(rows.len()));
        baseline.threshold = threshold(scores).max(BASELINE_THRESHOLD_MIN);
        let left_out: Vec<usize> = (0..baseline.scale.len()).filter(|ix| !baseline.is_usable(*ix)).collect();
        if !left_out.is_empty() {
            tracing::info!(?left_out, "sensors that never moved, or were mostly away, are not judged");
        }
        let model = model.and_then(|model| match LearntModel::from_rows(rows, held_back, &first, &baseline, model) {
            Ok(learnt) => learnt,
            Err(error) => {
                tracing::warn!(%model, %error, "the model cannot be calibrated for a machine: the baseline judges");
                None
            }
        });
        Self { baseline, model }
    }
}

impl Learnt {
    /// What is written out.
    pub(super) fn encode(&self) -> Vec<u8> {
        let whole = Self { baseline: self.baseline.clone(), model: self.model.as_ref().map(LearntModel::whole) };
        postcard::to_stdvec(&whole).unwrap_or_default()
    }
}

impl LearntModel {
    /// `None` if there is nothing to judge, or the model gives no score that a threshold could be made of.
    fn from_rows(
        rows: &Rows,
        held_back: usize,
        first: &Baseline,
        all: &Baseline,
        model: &Model,
    ) -> Result<Option<Self>, ModelError> {
        let channels: Vec<u16> = (0..).zip(&all.scale).filter(|(_, scale)| **scale > 0.0).map(|(ix, _)| ix).collect();
        let both = |ix: &u16| first.is_usable(usize::from(*ix));
        let channels: Vec<u16> = channels.into_iter().filter(both).collect();
        if channels.is_empty() {
            return Ok(None);
        }
        let width = channels.len();
        let mut learnt = Self::of(model, channels, rows.iter().take(held_back), held_back, first);
        learnt.prepare(model)?;
        let all_rows: Vec<&[f32]> = rows.iter().collect();
        let mut scores = Vec::new();
        for end in held_back..=all_rows.len() {
            let begin = end.saturating_sub(model.steps());
            if begin >= held_back
                && let Some(window) = learnt.window(model.steps(), all_rows[begin..end].iter().copied())
            {
                scores.push(learnt.judge(&window, rows.width())?.0);
            }
        }
        let threshold = threshold(scores);
        if threshold <= 0.0 {
            return Ok(None);
        }
        let mut learnt = Self::of(model, learnt.channels, rows.iter(), rows.len(), all);
        debug_assert_eq!(learnt.mean.len(), width);
        learnt.threshold = threshold;
        learnt.prepare(model)?;
        Ok(Some(learnt))
    }

    fn of<'a>(
        model: &Model,
        channels: Vec<u16>,
        rows: impl Iterator<Item = &'a [f32]>,
        count: usize,
        usual: &Baseline,
    ) -> Self {
        let pick = |of: &[f32]| -> Vec<f32> { channels.iter().map(|ix| of[usize::from(*ix)]).collect() };
        let (mean, scale) = (pick(&usual.median), pick(&usual.scale));
        let rows: Vec<&[f32]> = rows.collect();
        let wanted = model.memory_rows();
        // Evenly over the calibration; a row comes twice where there are too few.
        let chosen = (0..wanted).map(|n| rows[n * count / wanted.max(1)]);
        let memory = chosen.flat_map(|row| fill(&channels, &mean, row)).collect();
        Self { name: model.to_string(), channels, mean, scale, memory, threshold: 1.0, ready: None }
    }

    /// Makes it ready to judge, with the model it was learnt for.
    ///
    /// # Errors
    /// If tract refuses the graph for so many channels.
    pub(super) fn prepare(&mut self, model: &Model) -> Result<(), ModelError> {
        let plan = model.plan(self.channels.len())?;
        let memory = std::mem::take(&mut self.memory);
        let calibrated = Calibrated { mean: self.mean.clone(), scale: self.scale.clone(), memory };
        self.ready = Some(Ready { plan, calibrated: calibrated.into() });
        Ok(())
    }

    /// A copy with all that must be kept.
    fn whole(&self) -> Self {
        let mut whole = self.clone();
        if let Some(ready) = whole.ready.take() {
            whole.memory.clone_from(&ready.calibrated.memory);
        }
        whole
    }

    /// The model's window of the last `steps` of these rows; `None` if there are not enough.
    pub(super) fn window<'a>(
        &self,
        steps: usize,
        rows: impl DoubleEndedIterator<Item = &'a [f32]> + ExactSizeIterator,
    ) -> Option<Vec<f32>> {
        let skipped = rows.len().checked_sub(steps)?;
        Some(rows.skip(skipped).flat_map(|row| fill(&self.channels, &self.mean, row)).collect())
    }

    /// The raw score, and each sensor's share (of `width` sensors).
    pub(super) fn judge(&self, window: &[f32], width: usize) -> Result<(f32, Vec<f32>), ModelError> {
        let Some(ready) = &self.ready else {
            return Err(ModelError::Run { message: "it is not the model that was calibrated".into() });
        };
        let mut contribution = vec![0.0; self.channels.len()];
        let score = ready.plan.judge(window, &ready.calibrated, &mut contribution)?;
        let mut shares = vec![0.0; width.max(self.channels.last().map_or(0, |last| usize::from(*last) + 1))];
        for (ix, share) in self.channels.iter().zip(contribution) {
            shares[usize::from(*ix)] = share;
        }
        Ok((score, shares))
    }
}

/// A row's values of these channels; the usual one where it has none.
fn fill(channels: &[u16], mean: &[f32], row: &[f32]) -> Vec<f32> {
    let value =
        |(ix, mean): (&u16, &f32)| row.get(usize::from(*ix)).copied().filter(|v| v.is_finite()).unwrap_or(*mean);
    channels.iter().zip(mean).map(value).collect()
}

fn threshold(mut scores: Vec<f32>) -> f32 {
    if scores.is_empty() {
        return 0.0;
    }
    scores.sort_by(f32::total_cmp);
    let place = (QUANTILE * (scores.len() - 1) as f64).ceil() as usize;
    scores[place] * MARGIN
}
