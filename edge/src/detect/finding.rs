//! When something is found wrong, and when it is over: of one sensor's level, or of the pattern of all.
//!
//! - It begins with a step over the limit: what is compared with the limit is smoothed already.
//! - It ends when the ratio has stayed well below the limit, or the sensor has come most of the way back, for some steps: for
//!   more of them the longer it lasted, up to [`CALM_STEPS_MAX`], so that a short disturbance is soon forgotten.
//! - Then it settles: for some steps it does not begin again.
//! - What goes on for very long is a question to a person: is this the new normal? See [`Finding::is_lasting`].

use serde::{Deserialize, Serialize};

const CALM_STEPS_MIN: f32 = 3.0;
/// Of the steps that it lasted.
const CALM_SHARE: f32 = 0.3;
const CALM_STEPS_MAX: f32 = 40.0;
/// Calm is below this share of the limit.
pub const CALM: f32 = 0.6;
/// A sensor is on its way back when it is this near its centre again, as a share of the farthest it was.
const BACK: f32 = 0.4;
pub const SETTLE_STEPS: u16 = 60;
/// Steps after which what goes on may be a new normal.
pub const LASTING_STEPS: u32 = 900;

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// Steps in a row that look like its end.
    calm: u16,
    back: u16,
    settle: u16,
    /// The steps that it has lasted; `None` while nothing is wrong.
    lasted: Option<u32>,
    /// The farthest from the centre, with its sign.
    farthest: f32,
}

/// What a step means for a finding.
#[derive(Debug, Clone, Copy)]
pub struct Evidence {
    /// As a share of the limit.
    pub ratio: f32,
    /// Below this ratio it is calm.
    pub calm_below: f32,
    /// The deviation, with its sign; `None` where there is no direction.
    pub deviation: Option<f32>,
}

/// What changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    Begun,
    Ended,
}

impl Finding {
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.lasted.is_some()
    }

    #[must_use]
    pub fn is_settling(&self) -> bool {
        self.settle > 0
    }

    #[must_use]
    pub fn is_lasting(&self) -> bool {
        self.lasted.is_some_and(|lasted| lasted >= LASTING_STEPS)
    }

    pub fn step(&mut self, evidence: &Evidence) -> Option<Change> {
        let Some(lasted) = &mut self.lasted else {
            let may_begin = self.settle == 0;
            self.settle = self.settle.saturating_sub(1);
            if !may_begin || evidence.ratio <= 1.0 {
                return None;
            }
            let farthest = evidence.deviation.unwrap_or_default();
            *self = Self { lasted: Some(0), farthest, ..Self::default() };
            return Some(Change::Begun);
        };
        *lasted = lasted.saturating_add(1);
        self.calm = if evidence.ratio < evidence.calm_below { self.calm + 1 } else { 0 };
        if let Some(deviation) = evidence.deviation {
            if deviation.abs() > self.farthest.abs() {
                self.farthest = deviation;
            }
            let is_back = deviation * self.farthest.signum() < BACK * self.farthest.abs();
            self.back = if is_back { self.back + 1 } else { 0 };
        }
        let wanted = (CALM_STEPS_MIN + CALM_SHARE * *lasted as f32).min(CALM_STEPS_MAX);
        if f32::from(self.calm.max(self.back)) < wanted {
            return None;
        }
        self.end();
        Some(Change::Ended)
    }

    /// It is over, now.
    pub fn end(&mut self) {
        *self = Self { settle: SETTLE_STEPS, ..Self::default() };
    }

    /// It may not begin for a while.
    pub fn settle(&mut self) {
        if self.lasted.is_none() {
            self.settle = SETTLE_STEPS;
        }
    }
}
