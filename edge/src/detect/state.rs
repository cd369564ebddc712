//! A detector's state, in parts that are written only when they change.
//!
//! | part | what |
//! |---|---|
//! | the core | returned to the caller, who keeps it with its own: changes with every step |
//! | `0x100…` | what calibration learnt, cut into blocks; it begins with [`LEARNT_LAYOUT`], and is made anew where it does not |
//! | `0x200…` | rows of a calibration that is under way, 25 to a block |
//! | `0xfffe` | stops: whether it is off, and what comes back from one |
//! | `0xffff` | labels |
//!
//! A state without stops or labels is of a version that had none. Each block of the others begins with the serial number of its calibration. The raw steps that events carry are not kept: after
//! a restart an event's window begins with it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use gemba_shared::telemetry::Clock;

use super::{Core, DetectSettings, Detector, Labels, Learnt, Rows};

const LEARNT_PART: u16 = 0x100;
const ROWS_PART: u16 = 0x200;
const STOPS_PART: u16 = u16::MAX - 1;
const LABELS_PART: u16 = u16::MAX;
const BLOCK_BYTES: usize = 32 * 1_024;
/// Before there was a mark it began with the number of sensors, which is never 0.
const LEARNT_LAYOUT: [u8; 2] = [0, 2];
const ROWS_A_BLOCK: usize = 25;

/// The part of the state that changes with every step.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CoreState {
    core: Core,
    /// Bytes of what was learnt; 0 while calibrating.
    learnt_bytes: u32,
    rows_width: u16,
    rows: u32,
}

impl Detector {
    /// The state as it is: the core, and the parts that changed since the last call.
    ///
    /// # Errors
    /// If it cannot be encoded.
    pub fn save(&mut self, parts: &mut Vec<(u16, Vec<u8>)>) -> Result<CoreState, postcard::Error> {
        if self.labels_changed {
            parts.push((LABELS_PART, postcard::to_stdvec(&self.labels)?));
            self.labels_changed = false;
        }
        let stops = postcard::to_stdvec(&(&self.standstill, &self.core.judge.returning))?;
        if stops != self.stops_saved {
            parts.push((STOPS_PART, stops.clone()));
            self.stops_saved = stops;
        }
        let serial = self.core.serial.to_le_bytes();
        if let Some(learnt) = self.learnt.as_ref().filter(|_| self.learnt_changed) {
            let bytes = [&LEARNT_LAYOUT[..], &learnt.encode()?].concat();
            self.learnt_bytes = u32::try_from(bytes.len()).unwrap_or(0);
            self.learnt_changed = false;
            for (number, block) in (LEARNT_PART..ROWS_PART).zip(bytes.chunks(BLOCK_BYTES)) {
                parts.push((number, [&serial, block].concat()));
            }
        }
        let width = self.rows.width();
        for (number, block) in self.rows.take_unsaved(ROWS_A_BLOCK) {
            let bytes = block.iter().flat_map(|value| value.to_le_bytes());
            if let Ok(number) = u16::try_from(number) {
                parts.push((ROWS_PART + number, serial.into_iter().chain(bytes).collect()));
            }
        }
        Ok(CoreState {
            core: self.core.clone(),
            learnt_bytes: if self.learnt.is_some() { self.learnt_bytes } else { 0 },
            rows_width: u16::try_from(width).unwrap_or(u16::MAX),
            rows: u32::try_from(self.rows.len()).unwrap_or(u32::MAX),
        })
    }

    /// The detector as it was saved, with steps that count by `timeline`. Where that cannot be, or another model is to judge, calibration
    /// begins anew.
    #[must_use]
    pub fn restore(
        settings: DetectSettings,
        step_us: i64,
        timeline: Clock,
        state: CoreState,
        parts: &BTreeMap<u16, Vec<u8>>,
    ) -> Self {
        let mut this = Self::new(settings, step_us);
        (this.timeline, this.labels) = (timeline, labels_of(parts));
        let serial = state.core.serial;
        let learnt_bytes = state.learnt_bytes as usize;
        let (width, rows) = (usize::from(state.rows_width), state.rows as usize);
        this.core = state.core;
        if let Some(stops) = parts.get(&STOPS_PART) {
            (this.standstill, this.core.judge.returning) = postcard::from_bytes(stops).unwrap_or_default();
            this.stops_saved.clone_from(stops);
        }
        let whole = if learnt_bytes > 0 {
            let learnt = learnt_of(parts, serial, learnt_bytes);
            this.learnt = learnt.and_then(|learnt| this.prepare(learnt));
            if this.learnt.as_ref().is_some_and(|learnt| learnt.model.is_some()) && this.settings.model.is_none() {
                // What the model made of the machine says nothing to the built-in pattern.
                this.core.judge.forget_course();
            }
            this.learnt_bytes = state.learnt_bytes;
            this.learnt.is_some()
        } else {
            let rows = rows_of(parts, serial, width, rows);
            let whole = rows.is_some();
            this.rows = rows.unwrap_or_default();
            whole
        };
        if !whole {
            tracing::warn!("what was learnt of a machine is lost, or for another model: it is calibrated anew");
            let alarm = this.core.alarm.clone();
            this.start_calibration();
            // It must still be closed, once, for whoever saw it open.
            this.core.alarm = alarm;
        }
        this.core.judge.set_width(this.labels.width());
        this
    }

    /// Takes labels up from a state of which nothing else is of use.
    pub fn remember_labels(&mut self, timeline: Clock, parts: &BTreeMap<u16, Vec<u8>>) {
        (self.timeline, self.labels) = (timeline, labels_of(parts));
        self.labels.begin_anew();
        self.labels_changed = true;
    }

    /// `None` if the model that is to judge has not been calibrated.
    fn prepare(&self, mut learnt: Learnt) -> Option<Learnt> {
        let Some(model) = &self.settings.model else { return Some(learnt) };
        if learnt.tried.as_deref() != Some(model.to_string().as_str()) {
            return None;
        }
        // Where the built-in pattern was taken although there was a model, the model was tried and found wanting.
        let Some(of_model) = &mut learnt.model else { return Some(learnt) };
        if let Err(error) = of_model.prepare(model) {
            tracing::warn!(%model, %error, "the model cannot judge a machine: levels alone do");
            learnt.model = None;
        }
        Some(learnt)
    }
}

fn labels_of(parts: &BTreeMap<u16, Vec<u8>>) -> Labels {
    let Some(bytes) = parts.get(&LABELS_PART) else { return Labels::default() };
    postcard::from_bytes(bytes).unwrap_or_else(|error| {
        tracing::warn!(%error, "what people said of a machine's anomalies cannot be read: it is forgotten, and limits are as learnt");
        Labels::default()
    })
}

fn blocks(parts: &BTreeMap<u16, Vec<u8>>, from: u16, to: u16, serial: u32) -> Vec<u8> {
    let blocks = parts.range(from..to).filter_map(|(_, block)| block.strip_prefix(&serial.to_le_bytes()[..]));
    blocks.flatten().copied().collect()
}

fn learnt_of(parts: &BTreeMap<u16, Vec<u8>>, serial: u32, length: usize) -> Option<Learnt> {
    let bytes = blocks(parts, LEARNT_PART, ROWS_PART, serial);
    postcard::from_bytes(bytes.get(..length)?.strip_prefix(&LEARNT_LAYOUT)?).ok()
}

fn rows_of(parts: &BTreeMap<u16, Vec<u8>>, serial: u32, width: usize, rows: usize) -> Option<Rows> {
    let bytes = blocks(parts, ROWS_PART, STOPS_PART, serial);
    let bytes = bytes.get(..width * rows * 4)?;
    let (values, _) = bytes.as_chunks::<4>();
    Rows::from_saved(width, values.iter().map(|value| f32::from_le_bytes(*value)).collect())
}
