//! The latest steps' raw values, for the window that an event carries.

use std::collections::VecDeque;

use gemba_shared::telemetry::{RawWindow, Timestamp, WINDOW_SENSORS_MAX, WINDOW_STEPS_MAX};

use crate::window::Step;

#[derive(Debug, Default)]
pub struct History(VecDeque<(Timestamp, Box<[f32]>)>);

impl History {
    pub fn push(&mut self, step: &Step) {
        if self.0.len() == WINDOW_STEPS_MAX {
            self.0.pop_front();
        }
        self.0.push_back((step.start, step.values.clone().into_boxed_slice()));
    }

    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// What the sensors show now.
    #[must_use]
    pub fn last(&self) -> Option<&[f32]> {
        self.0.back().map(|(_, values)| &values[..])
    }

    /// The sensors with the largest shares, as long as they have come without a pause.
    #[must_use]
    pub fn window(&self, shares: &[f32], step_us: i64) -> Option<RawWindow> {
        let mut sensors: Vec<u16> = (0..).zip(shares).filter(|(_, share)| **share > 0.0).map(|(ix, _)| ix).collect();
        sensors.sort_by(|a, b| shares[usize::from(*b)].total_cmp(&shares[usize::from(*a)]));
        sensors.truncate(WINDOW_SENSORS_MAX);
        if sensors.is_empty() {
            return None;
        }
        // After a pause the rows before it are not of this window.
        let (last, _) = self.0.back()?;
        let mut rows = 0_i64;
        for (start, _) in self.0.iter().rev() {
            if *start != last.plus_us(-rows * step_us) {
                break;
            }
            rows += 1;
        }
        let rows = usize::try_from(rows).unwrap_or(0);
        let skipped = self.0.len() - rows;
        let values = self.0.iter().skip(skipped).flat_map(|(_, row)| {
            sensors.iter().map(|ix| row.get(usize::from(*ix)).copied().unwrap_or(f32::NAN)).collect::<Vec<_>>()
        });
        Some(RawWindow {
            step_ms: u32::try_from(step_us / 1_000).unwrap_or(u32::MAX),
            first: self.0.get(skipped)?.0,
            values: values.collect(),
            sensors,
        })
    }
}
