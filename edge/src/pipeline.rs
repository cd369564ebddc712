//! The line from readings to records: journal → window → detect → summary → outbox. One thread owns it.
//!
//! - [`Pipeline::ingest`] writes readings to the journal, acknowledges their deliveries, and takes them into the machines' windows.
//! - [`Pipeline::tick`] closes what is due, and appends the records together with the states of the machines that made them. A state
//!   holds everything up to its *mark*, a place in the journal: after a crash exactly the readings behind the mark are
//!   replayed. The journal is trimmed behind the oldest mark that is needed.
//! - If the disk fails, nothing is acknowledged and nothing is lost here: the same call is made again later.
//!
//! What is promised: each acknowledged reading is in exactly one summary, or counted late; no summary or event comes twice, unless the
//! outbox itself lost its latest appends. A reading that comes again is known again if it carries its own time, also
//! after a crash: the journal is kept as far back as open intervals began, and what the states have of it is remembered.

use std::{
    collections::HashMap,
    mem,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use gemba_mqtt::delivery::Delivery;
use gemba_shared::{
    ids::MachineId,
    message::{CommandKind, LiveMachine, Outcome},
    telemetry::{Catalog, Clock, EventKind, Record, Timestamp},
};

use crate::{
    detect::labels::Standing,
    journal::{Journal, JournalError, JournalSettings, Replayed},
    outbox::{Outbox, OutboxError, State, Write},
    reading::{Now, Reading, Registry},
    summary::{MachineSettings, Mark},
};

mod entry;

use entry::{Entry, entry, of, restore};

/// Records and states are appended for this many machines at once.
const MACHINES_A_WRITE: usize = 64;

#[derive(Debug, Clone)]
pub struct PipelineSettings {
    pub journal: JournalSettings,
    /// How far a reading's time may be ahead of a clock that is right, microseconds. A machine that is further ahead was
    /// measured by a wrong clock.
    pub skew_future_us: i64,
    /// For machines that are not declared.
    pub defaults: Arc<MachineSettings>,
    pub machines: HashMap<MachineId, Arc<MachineSettings>>,
}

impl Default for PipelineSettings {
    fn default() -> Self {
        Self {
            journal: JournalSettings::default(),
            skew_future_us: 60_000_000,
            defaults: Arc::default(),
            machines: HashMap::new(),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(transparent)]
    Outbox(#[from] OutboxError),
    #[error("the state of a machine cannot be encoded: {0}")]
    Encode(#[from] postcard::Error),
}

/// Counters since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PipelineCounters {
    /// Readings taken in.
    pub readings: u64,
    /// Readings whose interval was closed already: dropped.
    pub late: u64,
    /// Readings that had come before: dropped.
    pub duplicates: u64,
    pub replayed: u64,
    /// Blocks of the journal that were lost to damage.
    pub journal_blocks_lost: u64,
    /// Readings of the journal for which the limits have no room any more.
    pub replay_refused: u64,
    pub summaries: u64,
    pub anomalies_opened: u64,
    pub events: u64,
    pub journal_syncs: u64,
    pub journal_bytes: u64,
    /// Steps that a model could not judge, so that the baseline did.
    pub model_failures: u64,
}

#[derive(Debug)]
pub struct Pipeline {
    settings: PipelineSettings,
    registry: Registry,
    /// By their place in the registry.
    machines: Vec<Entry>,
    journal: Journal,
    outbox: Arc<Mutex<Outbox>>,
    /// Made, and not yet on the disk: no machine goes on before it is.
    pending: Option<Pending>,
    counters: PipelineCounters,
}

/// What people told a machine's detector, and what it made of that.
#[derive(Debug, Clone, PartialEq)]
pub struct Told {
    pub machine: MachineId,
    pub standing: Standing,
    pub out_of_service: bool,
}

#[derive(Debug)]
struct Pending {
    write: Write,
    /// The machines whose states are in it, with their marks.
    marks: Vec<(usize, Mark)>,
}

impl Pipeline {
    /// Opens the journal in `journal_dir`, takes up the states that the outbox held, and replays what they do not have.
    ///
    /// # Errors
    /// If the journal is in use by another process, or the disk fails.
    pub fn open(
        settings: PipelineSettings,
        journal_dir: &Path,
        outbox: Arc<Mutex<Outbox>>,
        states: Vec<State>,
        mut registry: Registry,
        now: Now,
    ) -> Result<Self, PipelineError> {
        let (mut journal, _) = Journal::open(journal_dir, settings.journal)?;
        let mut machines = restore(&settings, states, &mut registry, now);
        let mut counters = PipelineCounters::default();
        let id = journal.id();
        // A journal that lost its end must not number new blocks as those that are in a state already.
        let marks = machines.iter().filter(|entry| entry.saved.journal == id).map(|entry| entry.saved.block);
        journal.number_after(marks.max().unwrap_or(0));
        let replayed = journal.replay(&mut registry, |block, arrived, readings, registry| {
            for reading in readings {
                let entry = entry(&mut machines, &settings, registry, reading);
                if entry.saved.journal == id && block <= entry.saved.block {
                    entry.remember(reading, arrived, block);
                    continue;
                }
                entry.take(reading, arrived, block, now, settings.skew_future_us, &mut counters);
                counters.replayed += 1;
            }
        })?;
        note_replay(replayed, &mut counters);
        let mut this = Self { settings, registry, machines, journal, outbox, pending: None, counters };
        this.trim()?;
        Ok(this)
    }

    /// Where names get their places; for the decoder.
    pub fn registry(&mut self) -> &mut Registry {
        &mut self.registry
    }

    /// Has each machine tell its catalog again: the records go under a new epoch, of which nobody knows them.
    pub fn tell_catalogs(&mut self) {
        self.machines.iter_mut().for_each(|entry| entry.machine.tell_catalog());
    }

    /// Intervals that hold readings and are not in a summary yet.
    #[must_use]
    pub fn open_intervals(&self) -> usize {
        self.machines.iter().map(|entry| entry.machine.open_intervals()).sum()
    }

    #[must_use]
    pub fn counters(&self) -> PipelineCounters {
        PipelineCounters {
            journal_syncs: self.journal.syncs(),
            journal_bytes: self.journal.bytes(),
            model_failures: self.machines.iter().map(|entry| entry.machine.model_failures()).sum(),
            ..self.counters
        }
    }

    /// Makes readings safe that came at `arrived`, acknowledges the deliveries they came in (`deliveries` is empty then), and takes them into the windows.
    /// Deliveries without a good reading belong here too: they are acknowledged in their order.
    ///
    /// # Errors
    /// If the disk fails: then nothing was taken and nothing acknowledged, and the same call may be made again.
    pub fn ingest(
        &mut self,
        readings: &[Reading],
        deliveries: &mut Vec<Delivery>,
        arrived: Now,
        now: Now,
    ) -> Result<(), PipelineError> {
        let first_block = match self.journal.append(readings, &self.registry, arrived) {
            Err(JournalError::OverBudget(_)) => {
                self.relieve_journal()?;
                self.journal.append(readings, &self.registry, arrived)?
            }
            appended => appended?,
        };
        deliveries.drain(..).for_each(Delivery::acknowledge);
        for reading in readings {
            let entry = entry(&mut self.machines, &self.settings, &self.registry, reading);
            entry.take(reading, arrived, first_block, now, self.settings.skew_future_us, &mut self.counters);
        }
        Ok(())
    }

    /// Closes the steps and intervals that are due, and writes what comes of it.
    ///
    /// # Errors
    /// If the disk fails: what was made is kept and written at the next call, before anything else is made.
    pub fn tick(&mut self, now: Now) -> Result<(), PipelineError> {
        self.write_pending()?;
        let mut pending = Pending { write: Write::default(), marks: Vec::new() };
        for ix in 0..self.machines.len() {
            let entry = &self.machines[ix];
            if entry.machine.is_due(now.mono_us) || !entry.made.is_empty() {
                self.advance(ix, now, &mut pending)?;
            }
            if pending.marks.len() >= MACHINES_A_WRITE {
                self.pending = Some(mem::replace(&mut pending, Pending { write: Write::default(), marks: Vec::new() }));
                self.write_pending()?;
            }
        }
        self.pending = Some(pending).filter(|pending| !pending.marks.is_empty());
        self.write_pending()?;
        self.trim()
    }

    /// Writes the states of all machines that the journal is kept for, so that it may go: with long intervals it is full before
    /// they close.
    fn relieve_journal(&mut self) -> Result<(), PipelineError> {
        self.write_pending()?;
        let waiting: Vec<usize> =
            (0..self.machines.len()).filter(|ix| self.machines[*ix].needs_from.is_some()).collect();
        for machines in waiting.chunks(MACHINES_A_WRITE) {
            let mut pending = Pending { write: Write::default(), marks: Vec::new() };
            for &ix in machines {
                self.save(ix, &mut pending)?;
            }
            self.pending = Some(pending);
            self.write_pending()?;
        }
        // What open intervals have counted is not known after a restart then, for want of room.
        self.trim_to(|entry| entry.needed_until_written.or(entry.needs_from))
    }

    fn advance(&mut self, ix: usize, now: Now, pending: &mut Pending) -> Result<(), PipelineError> {
        let entry = &mut self.machines[ix];
        let before = pending.write.records.len();
        pending.write.records.append(&mut entry.made);
        entry.machine.advance(now, &mut pending.write.records);
        // Without a record the steps since the saved state can be made again from the journal.
        if pending.write.records.len() > before {
            self.save(ix, pending)?;
        }
        Ok(())
    }

    fn save(&mut self, ix: usize, pending: &mut Pending) -> Result<(), PipelineError> {
        let entry = &mut self.machines[ix];
        pending.write.records.append(&mut entry.made);
        entry.needed_until_written = entry.needed_until_written.or(entry.needs_from.take());
        let machine = &mut entry.machine;
        let mark = Mark { journal: self.journal.id(), block: self.journal.last() };
        for (part, bytes) in machine.save(mark)? {
            pending.write.states.push(State { machine: machine.id().clone(), part, bytes });
        }
        pending.marks.push((ix, mark));
        Ok(())
    }

    fn write_pending(&mut self) -> Result<(), PipelineError> {
        let Some(pending) = &self.pending else { return Ok(()) };
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner).append(&pending.write)?;
        for (_, record) in &pending.write.records {
            match record {
                Record::Summary(_) => self.counters.summaries += 1,
                Record::Event(event) => {
                    self.counters.events += 1;
                    self.counters.anomalies_opened += u64::from(matches!(event.kind, EventKind::AnomalyOpened(_)));
                }
                Record::Catalog(_) | Record::Gap(_) => {}
            }
        }
        for &(ix, mark) in &pending.marks {
            let entry = &mut self.machines[ix];
            entry.saved = mark;
            entry.needed_until_written = None;
        }
        self.pending = None;
        Ok(())
    }

    fn trim(&mut self) -> Result<(), PipelineError> {
        self.trim_to(|entry| {
            let needed = [entry.needed_until_written, entry.needs_from, entry.machine.open_from()];
            needed.into_iter().flatten().min()
        })
    }

    fn trim_to(&mut self, needed_from: impl Fn(&Entry) -> Option<u64>) -> Result<(), PipelineError> {
        let needed = self.machines.iter().filter_map(needed_from).min();
        Ok(self.journal.trim(needed.unwrap_or(self.journal.last() + 1))?)
    }

    /// The present state of each machine that has had a reading.
    #[must_use]
    pub fn live(&self, now: Now) -> Vec<LiveMachine> {
        let machines = self.machines.iter().filter_map(|entry| {
            let (at, values, verdict) = entry.machine.present(now)?;
            // Nobody knows the machine's sensors before its first catalog.
            let catalog_revision = Some(entry.machine.catalog_revision()).filter(|revision| *revision > 0)?;
            Some(LiveMachine { machine: entry.machine.id().clone(), at, catalog_revision, values, verdict })
        });
        machines.collect()
    }

    /// Goes on under other settings: machines whose settings have changed take them, and what comes of it is written at the next
    /// tick, with their states.
    ///
    /// # Errors
    /// If the disk fails; nothing has changed then.
    pub fn reconfigure(&mut self, settings: PipelineSettings, now: Now) -> Result<(), PipelineError> {
        self.write_pending()?;
        self.journal.reconfigure(settings.journal);
        let before = mem::replace(&mut self.settings, settings);
        let mut pending = Pending { write: Write::default(), marks: Vec::new() };
        for ix in 0..self.machines.len() {
            let machine = &mut self.machines[ix].machine;
            let wanted = of(&self.settings, machine.id());
            if *of(&before, machine.id()) != *wanted {
                machine.reconfigure(wanted, now, &mut pending.write.records);
                self.save(ix, &mut pending)?;
            }
        }
        self.pending = Some(pending).filter(|pending| !pending.marks.is_empty());
        Ok(())
    }

    /// What the positions of this machine's sensors mean, if there is such a machine and it has made anything yet.
    #[must_use]
    pub fn catalog(&self, machine: &MachineId) -> Option<&Catalog> {
        let entry = self.machines.iter().find(|entry| entry.machine.id() == machine)?;
        Some(entry.machine.catalog()).filter(|catalog| catalog.revision > 0)
    }

    /// The machines of which people said something that still has an effect, or an anomaly of which they labelled.
    #[must_use]
    pub fn told(&self) -> Vec<Told> {
        let machines = self.machines.iter().map(|entry| Told {
            machine: entry.machine.id().clone(),
            standing: entry.machine.standing(),
            out_of_service: entry.machine.is_out_of_service(),
        });
        machines.filter(|told| told.standing.labelled > 0 || told.out_of_service).collect()
    }

    /// Carries a command out that is for a machine. `put_right` makes a time by a clock the one under which the cloud was told of it.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn command(
        &mut self,
        command: &CommandKind,
        now: Now,
        put_right: impl Fn(Clock, Timestamp) -> Timestamp,
    ) -> Result<Outcome, PipelineError> {
        let id = match command {
            CommandKind::Recalibrate { machine }
            | CommandKind::AcceptNewNormal { machine }
            | CommandKind::LabelAnomaly { machine, .. }
            | CommandKind::OutOfService { machine, .. } => machine,
            CommandKind::Reload | CommandKind::SendDiagnostics => return Ok(Outcome::Unknown),
        };
        self.write_pending()?;
        let Some(ix) = self.machines.iter().position(|entry| entry.machine.id() == id) else {
            return Ok(Outcome::Failed(format!("there is no machine {id} on this gateway")));
        };
        let mut pending = Pending { write: Write::default(), marks: Vec::new() };
        let machine = &mut self.machines[ix].machine;
        let outcome = match command {
            CommandKind::OutOfService { out, .. } => {
                machine.set_out_of_service(*out);
                Outcome::Done
            }
            CommandKind::AcceptNewNormal { .. } => match machine.accept_new_normal(now, &mut pending.write.records) {
                Ok(()) => Outcome::Done,
                Err(why) => Outcome::Failed(why.to_string()),
            },
            CommandKind::LabelAnomaly { opened, real, .. } => match machine.label(*opened, *real, put_right) {
                Some(labelled) => Outcome::Told(labelled.to_string()),
                None => Outcome::Failed(format!("this gateway remembers no anomaly of {id} that opened then")),
            },
            _ => {
                machine.recalibrate(now, &mut pending.write.records);
                Outcome::Done
            }
        };
        if matches!(outcome, Outcome::Failed(_)) {
            return Ok(outcome);
        }
        self.save(ix, &mut pending)?;
        self.pending = Some(pending);
        self.write_pending()?;
        Ok(outcome)
    }
}

fn note_replay(replayed: Replayed, counters: &mut PipelineCounters) {
    counters.journal_blocks_lost = replayed.blocks_lost;
    counters.replay_refused = replayed.refused;
    if replayed.refused > 0 {
        tracing::error!(
            readings = replayed.refused,
            "readings of the journal are beyond the limits of machines and sensors"
        );
    }
    tracing::info!(readings = counters.replayed, "the journal was replayed");
}

#[cfg(test)]
mod tests;
