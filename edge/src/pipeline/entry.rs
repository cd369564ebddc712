//! A machine as the pipeline keeps it: what of the journal its saved state has, and how readings are taken into it.

use std::{collections::BTreeMap, sync::Arc};

use gemba_shared::{
    ids::MachineId,
    message::Lane,
    telemetry::{Clock, Record, Timestamp},
};

use super::{PipelineCounters, PipelineSettings};
use crate::{
    outbox::State,
    reading::{Now, Reading, Registry},
    summary::{Machine, MachineSettings, Mark},
    window::Taken,
};

/// A clock that is right is set by no more than this.
const CLOCK_SLACK_US: i64 = 5_000_000;

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) machine: Machine,
    /// What the state on the disk has of the journal.
    pub(super) saved: Mark,
    /// The first block with a reading that the state on the disk does not have.
    pub(super) needs_from: Option<u64>,
    /// The same, before the state that is being written.
    pub(super) needed_until_written: Option<u64>,
    /// Records that came of a change of time, not written yet.
    pub(super) made: Vec<(Lane, Record)>,
}

impl Entry {
    pub(super) fn new(machine: Machine) -> Self {
        Self { machine, saved: Mark::default(), needs_from: None, needed_until_written: None, made: Vec::new() }
    }

    /// A reading that the state has already.
    pub(super) fn remember(&mut self, reading: &Reading, arrived: Now, block: u64) {
        let timed = reading.at != arrived.arrival();
        let (timeline, at) = self.machine.place_in_time(reading.at, timed, arrived);
        if timeline == self.machine.timeline() {
            self.machine.remember(reading.sensor, at, reading.value, timed, block);
        }
    }

    pub(super) fn take(
        &mut self,
        reading: &Reading,
        arrived: Now,
        block: u64,
        now: Now,
        skew_future_us: i64,
        counters: &mut PipelineCounters,
    ) {
        counters.readings += 1;
        let timed = reading.at != arrived.arrival();
        let (timeline, at) = self.machine.place_in_time(reading.at, timed, arrived);
        // The clock was ahead and is right now: until it had caught up, every reading would be late.
        let is_ahead = |at: Timestamp| at.us_since(now.wall) > skew_future_us.saturating_add(CLOCK_SLACK_US);
        let was_ahead =
            now.clock == Clock::Trusted && timeline == Clock::Trusted && self.machine.latest().is_some_and(is_ahead);
        if timeline != self.machine.timeline() || was_ahead && !is_ahead(at) {
            if self.machine.latest().is_some() {
                let machine = self.machine.id();
                tracing::info!(%machine, was_ahead, "a machine's time is counted anew: the gateway's clock was set, or is not yet");
            }
            self.needs_from.get_or_insert(block);
            self.machine.change_time(timeline, &mut self.made);
        }
        match self.machine.push(reading.sensor, at, reading.value, timed, now.mono_us, block) {
            Taken::Counted => {
                self.needs_from.get_or_insert(block);
            }
            Taken::Late => counters.late += 1,
            Taken::Duplicate => counters.duplicates += 1,
        }
    }
}

/// The reading's machine, with its sensors; made if it is new.
pub(super) fn entry<'a>(
    machines: &'a mut Vec<Entry>,
    settings: &PipelineSettings,
    registry: &Registry,
    reading: &Reading,
) -> &'a mut Entry {
    let ix = reading.machine.0 as usize;
    while machines.len() <= ix {
        let place = u32::try_from(machines.len()).map_or(reading.machine, crate::reading::MachineIx);
        let id = registry.machine_id(place);
        machines.push(Entry::new(Machine::new(id.clone(), of(settings, id))));
    }
    let entry = &mut machines[ix];
    if usize::from(reading.sensor.0) >= entry.machine.sensors().len() {
        entry.machine.set_sensors(registry.sensors(reading.machine));
    }
    entry
}

pub(super) fn of(settings: &PipelineSettings, id: &MachineId) -> Arc<MachineSettings> {
    settings.machines.get(id).unwrap_or(&settings.defaults).clone()
}

/// The machines of these states, in the registry with their sensors at the places they had.
pub(super) fn restore(
    settings: &PipelineSettings,
    states: Vec<State>,
    registry: &mut Registry,
    now: Now,
) -> Vec<Entry> {
    let mut by_machine: BTreeMap<MachineId, BTreeMap<u16, Vec<u8>>> = BTreeMap::new();
    for state in states {
        by_machine.entry(state.machine).or_default().insert(state.part, state.bytes);
    }
    let mut machines = Vec::new();
    for (id, parts) in by_machine {
        let Some((machine, saved)) = Machine::restore(id.clone(), of(settings, &id), &parts, now.mono_us) else {
            tracing::error!(machine = %id, "the state of a machine cannot be read: it begins anew");
            continue;
        };
        let taken = registry
            .machine(&id)
            .and_then(|ix| machine.sensors().iter().try_for_each(|sensor| registry.sensor(ix, &sensor.id).map(drop)));
        if let Err(error) = taken {
            tracing::warn!(machine = %id, %error, "a machine of before is beyond the limits now and is left out");
            if registry.len() == machines.len() {
                continue;
            }
        }
        machines.push(Entry { saved, ..Entry::new(machine) });
    }
    machines
}
