//! Golden vectors: inputs with the answers that another runtime (onnxruntime, in `models/make.py`) gave.

use std::path::Path;

use serde::Deserialize;

use super::{Calibrated, Model, ModelError, read_bounded};

const GOLDEN_BYTES_MAX: u64 = 4 * 1_024 * 1_024;
/// How far an answer may be off, as a share of the larger of the answer and one.
const TOLERANCE: f32 = 1e-4;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Golden {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    channels: usize,
    window: Vec<f32>,
    #[serde(default)]
    mean: Vec<f32>,
    #[serde(default)]
    scale: Vec<f32>,
    #[serde(default)]
    memory: Vec<f32>,
    #[serde(default)]
    loadings: Vec<f32>,
    #[serde(default)]
    eigenvalues: Vec<f32>,
    score: f32,
    contribution: Vec<f32>,
}

/// Asks the model what it was asked when it was made, and compares the answers.
pub(super) fn check(model: &Model, path: &Path) -> Result<(), ModelError> {
    let refused = |message: String| ModelError::Golden { path: path.into(), message };
    let bytes = read_bounded(path, GOLDEN_BYTES_MAX)?;
    let golden: Golden = serde_json::from_slice(&bytes).map_err(|error| refused(error.to_string()))?;
    if golden.cases.is_empty() {
        return Err(refused("it has no cases".into()));
    }
    for case in golden.cases {
        let name = case.name;
        let calibration = Calibrated {
            mean: case.mean,
            scale: case.scale,
            memory: case.memory,
            loadings: case.loadings,
            eigenvalues: case.eigenvalues,
        };
        let plan = model.concretise(case.channels)?;
        let mut contribution = vec![0.0; case.channels];
        let score = plan
            .judge(&case.window, &calibration, &mut contribution)
            .map_err(|error| refused(format!("case {name:?}: {error}")))?;
        if differs(score, case.score) {
            return Err(refused(format!("case {name:?}: the score is {score}, {} is expected", case.score)));
        }
        if case.contribution.len() != contribution.len() {
            let (found, expected) = (case.contribution.len(), contribution.len());
            return Err(refused(format!("case {name:?}: contribution has {found} values, {expected} are needed")));
        }
        for (channel, (found, expected)) in contribution.into_iter().zip(case.contribution).enumerate() {
            if differs(found, expected) {
                let message = format!("case {name:?}: contribution {channel} is {found}, {expected} is expected");
                return Err(refused(message));
            }
        }
    }
    Ok(())
}

fn differs(found: f32, expected: f32) -> bool {
    // Written so that NaN differs from everything.
    let agrees = (found - expected).abs() <= TOLERANCE * expected.abs().max(1.0);
    !agrees
}
