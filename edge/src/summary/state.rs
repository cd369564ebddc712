//! A machine's state, in parts that are written only when they change.

use std::{collections::BTreeMap, sync::Arc};

use gemba_shared::{
    ids::MachineId,
    telemetry::{Catalog, Clock, Mode},
};
use serde::{Deserialize, Serialize};

use super::{Machine, MachineSettings, detect_settings, told::Told};
use crate::{
    detect::{Detector, state::CoreState},
    window::Window,
};

/// The part of a machine's state that holds its catalog.
const CATALOG_PART: u16 = 1;
/// The part that changes with every step. Behind its first block, those that follow stand from [`CORE_MORE`] on.
const CORE_PART: u16 = 0;
const CORE_MORE: u16 = 2;
/// Where the detector's own parts begin.
const CORE_END: u16 = 0x100;
const BLOCK_BYTES: usize = 48 * 1_024;

/// A machine's state but for its catalog and what calibration learnt.
#[derive(Serialize, Deserialize)]
struct Saved {
    window: Window,
    detector: CoreState,
    mode: Mode,
    timeline: Clock,
    told: Told,
    mark: Mark,
}

/// Up to where the journal's readings are in a saved state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// The journal's own identity.
    pub journal: u64,
    /// The number of its last block that is in the state.
    pub block: u64,
}

impl Machine {
    /// The state as it is, in the parts that have changed since the last call: (part, bytes).
    ///
    /// # Errors
    /// If it cannot be encoded.
    pub fn save(&mut self, mark: Mark) -> Result<Vec<(u16, Vec<u8>)>, postcard::Error> {
        let mut parts = Vec::new();
        let detector = self.detector.save(&mut parts)?;
        let (timeline, told) = (self.timeline, self.told.clone());
        let saved = Saved { window: self.window.clone(), detector, mode: self.mode, timeline, told, mark };
        let core = postcard::to_stdvec(&saved)?;
        let numbers = std::iter::once(CORE_PART).chain(CORE_MORE..CORE_END);
        parts.extend(numbers.zip(core.chunks(BLOCK_BYTES)).map(|(number, block)| (number, block.to_vec())));
        if self.saved_revision != Some(self.catalog.revision) || self.catalog_changed {
            parts.push((CATALOG_PART, postcard::to_stdvec(&(&self.catalog, self.catalog_changed))?));
            self.saved_revision = Some(self.catalog.revision);
        }
        Ok(parts)
    }

    /// The machine as it was saved, and its mark; `None` if the parts cannot be read. Its time goes on from where it was.
    #[must_use]
    pub fn restore(
        id: MachineId,
        settings: Arc<MachineSettings>,
        parts: &BTreeMap<u16, Vec<u8>>,
        mono_us: i64,
    ) -> Option<(Self, Mark)> {
        // Blocks behind its end are of a time when it was larger, and are not read.
        let more = parts.range(CORE_MORE..CORE_END).map(|(_, block)| block);
        let core: Vec<u8> = std::iter::once(parts.get(&CORE_PART)?).chain(more).flatten().copied().collect();
        let (saved, _): (Saved, _) = postcard::take_from_bytes(&core).ok()?;
        let (catalog, untold): (Catalog, bool) = postcard::from_bytes(parts.get(&CATALOG_PART)?).ok()?;
        let mut this = Self::new(id, settings);
        let periods = this.settings.periods;
        let same_steps = saved.window.periods().step_us == periods.step_us;
        this.window = saved.window.with_periods(periods);
        this.window.resume(mono_us);
        if same_steps {
            let settings = detect_settings(&this.settings);
            this.detector = Detector::restore(settings, periods.step_us, saved.timeline, saved.detector, parts);
        } else {
            this.detector.remember_labels(saved.timeline, parts);
        }
        (this.mode, this.timeline, this.told) = (saved.mode, saved.timeline, saved.told);
        let (step_ms, interval_ms) = (this.catalog.step_ms, this.catalog.interval_ms);
        this.catalog_changed = untold || (catalog.step_ms, catalog.interval_ms) != (step_ms, interval_ms);
        this.catalog = Catalog { step_ms, interval_ms, ..catalog };
        for sensor in &mut this.catalog.sensors {
            let unit = this.settings.units.get(&sensor.id).cloned();
            this.catalog_changed |= sensor.unit != unit;
            sensor.unit = unit;
        }
        this.find_special_sensors();
        Some((this, saved.mark))
    }
}
