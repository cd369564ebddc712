//! `model.toml`: what a model's folder promises.

use std::path::Path;

use serde::Deserialize;

use super::{MEMORY_ROWS_MAX, ModelError, STEPS_MAX, read_bounded};

const MANIFEST_BYTES_MAX: u64 = 64 * 1_024;
/// The manifest's own version.
const FORMAT: u32 = 1;

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    format: u32,
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
}

impl Input {
    const ALL: [Self; 4] = [Self::Window, Self::Mean, Self::Scale, Self::Memory];

    pub(super) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|input| input.name() == name)
    }

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Window => "window",
            Self::Mean => "mean",
            Self::Scale => "scale",
            Self::Memory => "memory",
        }
    }

    pub(super) fn shape(self, steps: usize, memory_rows: usize, channels: usize) -> Vec<usize> {
        match self {
            Self::Window => vec![1, steps, channels],
            Self::Mean | Self::Scale => vec![channels],
            Self::Memory => vec![memory_rows, channels],
        }
    }
}

impl Manifest {
    pub(super) fn read(path: &Path) -> Result<Self, ModelError> {
        let refused = |message: String| ModelError::Manifest { path: path.into(), message };
        let bytes = read_bounded(path, MANIFEST_BYTES_MAX)?;
        let text = str::from_utf8(&bytes).map_err(|error| refused(format!("it is not UTF-8: {error}")))?;
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
        if !self.inputs.contains(&Input::Window) {
            return Err("inputs: \"window\" is missing".into());
        }
        if self.inputs.contains(&Input::Memory) != (self.memory > 0) {
            return Err(format!("memory = {}: it is above zero if, and only if, inputs hold \"memory\"", self.memory));
        }
        Ok(())
    }
}
