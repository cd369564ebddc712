//! A model: an ONNX graph with a manifest, judged by tract.
//!
//! A model is a folder with `model.toml`, the graph and its golden vectors. The graph is a pure function of the
//! window and of what calibration learnt of a machine, so one model serves machines it has never seen. It is refused
//! at load unless its SHA-256, the names and shapes of its inputs and outputs, and its answers to the golden vectors
//! are what the folder promises.
//!
//! Limits: the constants below; a batch of one; f32; inputs `window [1,T,C]`, `mean [C]`, `scale [C]`, `memory [M,C]`,
//! `loadings [C,K]`, `eigenvalues [K]`; outputs `score [1]`, `contribution [1,C]`. The number of channels C is made concrete in a [`Plan`].

mod golden;
mod manifest;

use std::{
    collections::HashMap,
    fmt, fs,
    io::Read,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use gemba_shared::telemetry::SENSORS_MAX;
use sha2::{Digest, Sha256};
use tract_onnx::prelude::{
    Datum, Framework, InferenceFact, InferenceModel, InferenceModelExt, IntoRunnable, TValue, TVec, Tensor,
    TractResult, TypedRunnableModel, tvec,
};
use tract_onnx::tract_hir::infer::Factoid;

use manifest::{Input, Manifest, Side};

/// The largest graph.
pub const GRAPH_BYTES_MAX: u64 = 64 * 1_024 * 1_024;
/// The most steps in a window.
pub const STEPS_MAX: usize = 512;
/// The most principal components.
pub const COMPONENTS_MAX: usize = 256;
/// The most rows that a machine remembers.
pub const MEMORY_ROWS_MAX: usize = 2_048;

const MANIFEST_FILE: &str = "model.toml";
const OUTPUTS: [&str; 2] = ["score", "contribution"];

/// Why a model was refused, or could not judge.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    #[error("{}: {error}", path.display())]
    Read { path: PathBuf, error: std::io::Error },
    #[error("{}: has more than {limit} bytes", path.display())]
    TooLarge { path: PathBuf, limit: u64 },
    #[error("{}: {message}", path.display())]
    Manifest { path: PathBuf, message: String },
    #[error("{}: its SHA-256 is {found}, {MANIFEST_FILE} promises {expected}", path.display())]
    Hash { path: PathBuf, expected: String, found: String },
    #[error("{}: tract cannot load it: {message}", path.display())]
    Graph { path: PathBuf, message: String },
    #[error("{}: {message}", path.display())]
    Shape { path: PathBuf, message: String },
    #[error("{}: {message}", path.display())]
    Golden { path: PathBuf, message: String },
    #[error("{found} channels: a model judges 1 to {SENSORS_MAX}")]
    Channels { found: usize },
    #[error("{what} has {found} values, {expected} are needed")]
    Length { what: &'static str, expected: usize, found: usize },
    #[error("{what} holds a value that is not finite, or a scale that is not above zero")]
    Value { what: &'static str },
    #[error("tract cannot run it: {message}")]
    Run { message: String },
    #[error("its {what} is not finite")]
    NotFinite { what: &'static str },
}

/// What calibration learnt of one machine. `C` is the number of channels.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Calibrated {
    /// `C` values.
    pub mean: Vec<f32>,
    /// `C` values above zero.
    pub scale: Vec<f32>,
    /// [`Model::memory_rows`] rows of `C` raw values, row after row; may be empty where the model takes none.
    pub memory: Vec<f32>,
    /// `C` rows of [`Model::components`] values: unit vectors in columns, along which `(x − mean) / scale` varied most in calibration, by
    /// falling variance; columns beyond the C-th are zero. May be empty where the model takes none.
    pub loadings: Vec<f32>,
    /// The variances along them; 1 for a column of zeros.
    pub eigenvalues: Vec<f32>,
}

/// A model that has passed its checks.
pub struct Model {
    manifest: Manifest,
    graph_path: PathBuf,
    graph: InferenceModel,
    plans: Mutex<HashMap<usize, Arc<Plan>>>,
}

/// A model made concrete for a number of channels; shared by all machines that have as many.
pub struct Plan {
    runnable: Arc<TypedRunnableModel>,
    /// The inputs in the graph's order, and their shapes.
    inputs: Vec<(Input, Vec<usize>)>,
    channels: usize,
}

impl Model {
    /// Loads the model in the folder `dir` and checks it.
    ///
    /// # Errors
    /// If anything in the folder is missing, damaged, or not what the manifest promises.
    pub fn load(dir: &Path) -> Result<Self, ModelError> {
        let manifest = Manifest::read(&dir.join(MANIFEST_FILE))?;
        let graph_path = dir.join(&manifest.file);
        let bytes = read_bounded(&graph_path, GRAPH_BYTES_MAX)?;
        let found = hex(&Sha256::digest(&bytes));
        if found != manifest.sha256 {
            return Err(ModelError::Hash { path: graph_path, expected: manifest.sha256, found });
        }
        let graph = guarded(|| tract_onnx::onnx().model_for_read(&mut bytes.as_slice()))
            .map_err(|message| ModelError::Graph { path: graph_path.clone(), message })?;
        check_graph(&graph, &manifest).map_err(|message| ModelError::Shape { path: graph_path.clone(), message })?;
        let golden_path = dir.join(&manifest.golden);
        let model = Self { manifest, graph_path, graph, plans: Mutex::default() };
        golden::check(&model, &golden_path)?;
        Ok(model)
    }

    #[must_use]
    pub fn name(&self) -> &str {
        &self.manifest.name
    }

    #[must_use]
    pub fn version(&self) -> &str {
        &self.manifest.version
    }

    /// The steps in a window (T).
    #[must_use]
    pub const fn steps(&self) -> usize {
        self.manifest.steps
    }

    /// The rows that calibration must remember (M); 0 if none.
    #[must_use]
    pub const fn memory_rows(&self) -> usize {
        self.manifest.memory
    }

    /// The principal components that calibration must find (K); 0 if none.
    #[must_use]
    pub const fn components(&self) -> usize {
        self.manifest.components
    }

    /// The plan for machines of `channels` channels. Made at the first call, which takes milliseconds.
    ///
    /// # Errors
    /// If tract cannot make the graph concrete for so many channels.
    pub fn plan(&self, channels: usize) -> Result<Arc<Plan>, ModelError> {
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(plan) = plans.get(&channels) {
            return Ok(Arc::clone(plan));
        }
        let plan = Arc::new(self.concretise(channels)?);
        plans.insert(channels, Arc::clone(&plan));
        Ok(plan)
    }

    fn concretise(&self, channels: usize) -> Result<Plan, ModelError> {
        if !(1..=SENSORS_MAX).contains(&channels) {
            return Err(ModelError::Channels { found: channels });
        }
        let refused = |message| ModelError::Graph { path: self.graph_path.clone(), message };
        let mut inputs = Vec::new();
        let runnable = guarded(|| {
            let mut graph = self.graph.clone();
            for ix in 0..graph.input_outlets()?.len() {
                let name = graph.node(graph.input_outlets()?[ix].node).name.clone();
                let input = Input::named(&name).ok_or_else(|| anyhow::anyhow!("it has an unknown input {name:?}"))?;
                let shape = input.shape(&self.manifest, channels);
                graph.set_input_fact(ix, InferenceFact::dt_shape(f32::datum_type(), shape.as_slice()))?;
                inputs.push((input, shape));
            }
            graph.into_optimized()?.into_runnable()
        })
        .map_err(refused)?;
        let outputs: Vec<_> = guarded(|| {
            let model = runnable.model();
            let sizes =
                |ix| TractResult::Ok(model.output_fact(ix)?.shape.iter().map(ToString::to_string).collect::<Vec<_>>());
            (0..OUTPUTS.len()).map(|ix| Ok(sizes(ix)?.join(","))).collect()
        })
        .map_err(refused)?;
        for ((name, found), expected) in OUTPUTS.iter().zip(&outputs).zip(["1".to_owned(), format!("1,{channels}")]) {
            if *found != expected {
                let message =
                    format!("with {channels} channels its output {name:?} has the shape [{found}], not [{expected}]");
                return Err(ModelError::Shape { path: self.graph_path.clone(), message });
            }
        }
        Ok(Plan { runnable, inputs, channels })
    }
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Model").field("manifest", &self.manifest).finish_non_exhaustive()
    }
}

/// The model's name and version, as events and catalogs carry it.
impl fmt::Display for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.manifest.name, self.manifest.version)
    }
}

impl fmt::Debug for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plan").field("channels", &self.channels).finish_non_exhaustive()
    }
}

impl Plan {
    #[must_use]
    pub const fn channels(&self) -> usize {
        self.channels
    }

    /// Judges one window of T rows of C raw values, row after row. Writes each channel's share of the score, which
    /// sum to one, and returns the score in the model's own terms.
    ///
    /// # Errors
    /// If a length is wrong, a value is not finite, or the graph gives no finite answer.
    pub fn judge(&self, window: &[f32], calibration: &Calibrated, contribution: &mut [f32]) -> Result<f32, ModelError> {
        length("contribution", self.channels, contribution.len())?;
        let mut tensors: TVec<TValue> = tvec!();
        for (input, shape) in &self.inputs {
            let input = *input;
            let values = match input {
                Input::Window => window,
                Input::Mean => &calibration.mean,
                Input::Scale => &calibration.scale,
                Input::Memory => &calibration.memory,
                Input::Loadings => &calibration.loadings,
                Input::Eigenvalues => &calibration.eigenvalues,
            };
            length(input.name(), shape.iter().product(), values.len())?;
            let usable = |value: &f32| value.is_finite() && (input != Input::Scale || *value > 0.0);
            if !values.iter().all(usable) {
                return Err(ModelError::Value { what: input.name() });
            }
            let tensor = Tensor::from_shape(shape, values).map_err(run_error)?;
            tensors.push(tensor.into());
        }
        let outputs = self.runnable.run(tensors).map_err(run_error)?;
        let score = first(&outputs[0])?;
        let shares = outputs[1].try_as_plain_ram().map_err(run_error)?.as_slice::<f32>().map_err(run_error)?;
        length("contribution", self.channels, shares.len())?;
        if !score.is_finite() {
            return Err(ModelError::NotFinite { what: "score" });
        }
        if !shares.iter().all(|share| share.is_finite()) {
            return Err(ModelError::NotFinite { what: "contribution" });
        }
        contribution.copy_from_slice(shares);
        Ok(score)
    }
}

fn first(output: &TValue) -> Result<f32, ModelError> {
    let values = output.try_as_plain_ram().map_err(run_error)?.as_slice::<f32>().map_err(run_error)?;
    values.first().copied().ok_or(ModelError::Length { what: "score", expected: 1, found: 0 })
}

#[expect(clippy::needless_pass_by_value, reason = "given to map_err")]
fn run_error(error: tract_onnx::prelude::TractError) -> ModelError {
    ModelError::Run { message: format!("{error:#}") }
}

const fn length(what: &'static str, expected: usize, found: usize) -> Result<(), ModelError> {
    if expected == found { Ok(()) } else { Err(ModelError::Length { what, expected, found }) }
}

/// Runs what tract does with a graph that it has not seen before, where it may panic.
fn guarded<T>(work: impl FnOnce() -> TractResult<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => Err(format!("{error:#}")),
        Err(_) => Err("it panics".into()),
    }
}

/// Compares the graph's inputs and outputs with what the manifest promises.
fn check_graph(graph: &InferenceModel, manifest: &Manifest) -> Result<(), String> {
    let outlets = graph.input_outlets().map_err(|error| error.to_string())?;
    let mut found: Vec<&str> = outlets.iter().map(|outlet| graph.node(outlet.node).name.as_str()).collect();
    found.sort_unstable();
    let mut promised: Vec<&str> = manifest.inputs.iter().map(|input| input.name()).collect();
    promised.sort_unstable();
    if found != promised {
        return Err(format!("its inputs are {found:?}, {MANIFEST_FILE} promises {promised:?}"));
    }
    for (ix, outlet) in outlets.iter().enumerate() {
        let Some(input) = Input::named(&graph.node(outlet.node).name) else { continue };
        let fact = graph.input_fact(ix).map_err(|error| error.to_string())?;
        check_input(input, fact, manifest)?;
    }
    let outlets = graph.output_outlets().map_err(|error| error.to_string())?;
    let label = |outlet| graph.outlet_label(outlet).unwrap_or_default();
    let found: Vec<&str> = outlets.iter().map(|&outlet| label(outlet)).collect();
    if found != OUTPUTS {
        return Err(format!("its outputs are {found:?}, they must be {OUTPUTS:?} in this order"));
    }
    Ok(())
}

fn check_input(input: Input, fact: &InferenceFact, manifest: &Manifest) -> Result<(), String> {
    let name = input.name();
    if let Some(found) = fact.datum_type.concretize()
        && found != f32::datum_type()
    {
        return Err(format!("its input {name:?} is of {found:?}, not F32"));
    }
    let expected = input.sides(manifest);
    let found: Vec<String> = fact.shape.dims().map(ToString::to_string).collect();
    let side_agrees = |(expected, found): (&Side, &String)| match expected {
        Side::Fixed(size) => *found == size.to_string(),
        Side::Channels => found.parse::<usize>().is_err(),
    };
    if found.len() == expected.len() && expected.iter().zip(&found).all(side_agrees) {
        return Ok(());
    }
    let text = |side: &Side| match side {
        Side::Fixed(size) => size.to_string(),
        Side::Channels => "C".to_owned(),
    };
    let promised: Vec<String> = expected.iter().map(text).collect();
    let (found, promised) = (found.join(","), promised.join(","));
    Err(format!("its input {name:?} has the shape [{found}], {MANIFEST_FILE} promises [{promised}]"))
}

/// The file's content, read no further than `limit`.
fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>, ModelError> {
    let read = || {
        let mut bytes = Vec::new();
        fs::File::open(path)?.take(limit + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().map_err(|error| ModelError::Read { path: path.into(), error })?;
    if bytes.len() as u64 > limit {
        return Err(ModelError::TooLarge { path: path.into(), limit });
    }
    Ok(bytes)
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a String takes everything");
        text
    })
}

#[cfg(test)]
mod tests;
