//! `model.toml`: what a model's folder promises.

use std::path::Path;

use serde::Deserialize;

use super::{COMPONENTS_MAX, MEMORY_ROWS_MAX, ModelError, STEPS_MAX, read_bounded};

const MANIFEST_BYTES_MAX: u64 = 64 * 1_024;
/// The manifest's own version.
const FORMAT: u32 = 1;
/// What a manifest without a `kind` is.
const KIND: &str = "detector";

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    format: u32,
    #[serde(default, rename = "kind")]
    _kind: Option<String>,
    pub name: String,
    pub version: String,
    /// The graph's file, in the same folder.
    pub file: String,
    /// Of the graph's file, in lower-case hexadecimal digits.
    pub sha256: String,
    /// The golden vectors' file, in the same folder.
    pub golden: String,
    /// Steps in a window (T).
    pub steps: usize,
    /// Rows that calibration remembers (M).
    #[serde(default)]
    pub memory: usize,
    /// Principal components that calibration finds (K).
    #[serde(default)]
    pub components: usize,
    pub inputs: Vec<Input>,
}

/// What a graph may be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Input {
    Window,
    Mean,
    Scale,
    Memory,
    Loadings,
    Eigenvalues,
}

/// One side of an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Fixed(usize),
    /// C: a symbol in the graph, made concrete in a plan.
    Channels,
}

impl Input {
    const ALL: [Self; 6] = [Self::Window, Self::Mean, Self::Scale, Self::Memory, Self::Loadings, Self::Eigenvalues];

    pub(super) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|input| input.name() == name)
    }

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Window => "window",
            Self::Mean => "mean",
            Self::Scale => "scale",
            Self::Memory => "memory",
            Self::Loadings => "loadings",
            Self::Eigenvalues => "eigenvalues",
        }
    }

    pub(super) fn sides(self, manifest: &Manifest) -> Vec<Side> {
        match self {
            Self::Window => vec![Side::Fixed(1), Side::Fixed(manifest.steps), Side::Channels],
            Self::Mean | Self::Scale => vec![Side::Channels],
            Self::Memory => vec![Side::Fixed(manifest.memory), Side::Channels],
            Self::Loadings => vec![Side::Channels, Side::Fixed(manifest.components)],
            Self::Eigenvalues => vec![Side::Fixed(manifest.components)],
        }
    }

    pub(super) fn shape(self, manifest: &Manifest, channels: usize) -> Vec<usize> {
        let size = |side| match side {
            Side::Fixed(size) => size,
            Side::Channels => channels,
        };
        self.sides(manifest).into_iter().map(size).collect()
    }
}

impl Manifest {
    pub(super) fn read(path: &Path) -> Result<Self, ModelError> {
        let refused = |message: String| ModelError::Manifest { path: path.into(), message };
        let bytes = read_bounded(path, MANIFEST_BYTES_MAX)?;
        let text = str::from_utf8(&bytes).map_err(|error| refused(format!("it is not UTF-8: {error}")))?;
        // A model of another kind has other keys: say so before they are called unknown.
        let kind = text.parse::<toml::Table>().ok().and_then(|table| Some(table.get("kind")?.as_str()?.to_owned()));
        if let Some(kind) = kind.filter(|kind| kind != KIND) {
            return Err(refused(format!("kind = {kind:?}: only models of the kind {KIND:?} judge machines")));
        }
        let manifest: Self = toml::from_str(text).map_err(|error| refused(error.to_string().trim_end().into()))?;
        manifest.check().map_err(refused)?;
        Ok(manifest)
    }

    fn check(&self) -> Result<(), String> {
        if self.format != FORMAT {
            return Err(format!("format = {}: this program reads format {FORMAT}", self.format));
        }
        for (key, value) in [("name", &self.name), ("version", &self.version)] {
            let allowed = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'_' | b'-');
            if value.is_empty() || value.len() > 64 || !value.bytes().all(allowed) {
                return Err(format!("{key} = {value:?}: 1 to 64 letters, digits, '.', '_' or '-' of ASCII are needed"));
            }
        }
        for (key, value) in [("file", &self.file), ("golden", &self.golden)] {
            if value.is_empty() || value.starts_with('.') || value.contains(['/', '\\']) {
                return Err(format!("{key} = {value:?}: the name of a file in the same folder is needed"));
            }
        }
        if self.sha256.len() != 64 || !self.sha256.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(format!("sha256 = {:?}: 64 lower-case hexadecimal digits are needed", self.sha256));
        }
        if !(1..=STEPS_MAX).contains(&self.steps) {
            return Err(format!("steps = {}: 1 to {STEPS_MAX} are possible", self.steps));
        }
        if self.memory > MEMORY_ROWS_MAX {
            return Err(format!("memory = {}: at most {MEMORY_ROWS_MAX} are possible", self.memory));
        }
        if self.components > COMPONENTS_MAX {
            return Err(format!("components = {}: at most {COMPONENTS_MAX} are possible", self.components));
        }
        if !self.inputs.contains(&Input::Window) {
            return Err("inputs: \"window\" is missing".into());
        }
        if self.inputs.contains(&Input::Memory) != (self.memory > 0) {
            return Err(format!("memory = {}: it is above zero if, and only if, inputs hold \"memory\"", self.memory));
        }
        let takes = |input| self.inputs.contains(&input);
        if (takes(Input::Loadings) || takes(Input::Eigenvalues)) != (self.components > 0) {
            let text = "it is above zero if, and only if, inputs hold \"loadings\" or \"eigenvalues\"";
            return Err(format!("components = {}: {text}", self.components));
        }
        Ok(())
    }
}
