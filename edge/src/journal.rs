//! What was acknowledged to devices and is not yet in a saved state: readings, in the order in which they came.
//!
//! - [`Journal::append`] is durable when it returns: only then may the devices be told. With
//!   [`JournalSettings::sync_every`] it is safe from a kill at once, but from a power cut only that much later.
//! - Readings lie in *blocks*, numbered from 1, of about [`BLOCK_BYTES`] each. A generation names its machines and sensors itself, in
//!   rows written in the same batch as the first block that needs them, so that generations are deleted freely.
//! - Each start begins a new generation: the places of machines in a process mean nothing to the next one.
//! - [`Journal::trim`] deletes the generations whose blocks are all behind a number.
//! - At its budget it takes no more: nothing is acknowledged until the outbox has taken what is due.
//!
//! Rows, in the generations of `generations.rs`: `d` machine → its name and its sensors' names; `f` block → its readings (`journal/blocks.rs`).

mod blocks;

use std::{
    collections::{BTreeMap, HashMap},
    ops::ControlFlow,
    path::{Path, PathBuf},
    time::Duration,
};

use gemba_shared::{
    ids::{MachineId, SensorId},
    telemetry::{Clock, Timestamp},
};
use serde::{Deserialize, Serialize};

use crate::{
    generations::{Found, Generation, GenerationSettings, Generations, StoreError, room_left},
    reading::{MachineIx, Now, Reading, Registry, SensorIx},
};
use blocks::{READING_BYTES_MAX, begin_block, put_reading, take_integer};

pub use blocks::BLOCK_BYTES;

#[derive(Debug, Clone, Copy)]
pub struct JournalSettings {
    pub generations: GenerationSettings,
    /// Room on the disk.
    pub budget_bytes: u64,
    /// What stays free on the disk; 0 for no limit.
    pub disk_free_min: u64,
    /// Syncs are this far apart, and a power cut may take what came since the last one, although it was acknowledged; `None`
    /// for a sync with each append. Needs [`Journal::trim`] to be called more often.
    pub sync_every: Option<Duration>,
}

impl Default for JournalSettings {
    fn default() -> Self {
        // Written at a high rate, read only at the start, and trimmed after seconds.
        let generations = GenerationSettings { generation_bytes: 8 * 1_024 * 1_024, cache_bytes: 1_024 * 1_024 };
        Self { generations, budget_bytes: 256 * 1_024 * 1_024, disk_free_min: 0, sync_every: None }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(
        "the journal has reached its budget of {0} bytes; nothing is taken in until the outbox can be written again"
    )]
    OverBudget(u64),
    #[error("a row of the journal cannot be encoded: {0}")]
    Encode(postcard::Error),
    #[error("no random numbers for a new journal: {0}")]
    Random(getrandom::Error),
}

/// What was found at the start.
#[derive(Debug, Default)]
pub struct Opened {
    /// Generations set aside because they could not be read.
    pub quarantined: Vec<PathBuf>,
    pub is_new: bool,
}

/// What came of a replay.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Replayed {
    pub readings: u64,
    /// Blocks that were lost to damage.
    pub blocks_lost: u64,
    /// Readings of machines or sensors for which the registry has no room.
    pub refused: u64,
}

#[derive(Debug)]
pub struct Journal {
    settings: JournalSettings,
    generations: Generations,
    id: u64,
    /// The number of the next block.
    next: u64,
    /// Blocks of each generation: first and next.
    spans: BTreeMap<u64, (u64, u64)>,
    /// How many sensors of each machine are named in the newest generation.
    named: Vec<usize>,
    /// The newest generation was begun by this process.
    is_begun: bool,
    dir: PathBuf,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Tail {
    id: u64,
    first: u64,
    next: u64,
}

impl Journal {
    /// Opens the journal in `dir`, or makes one there. Call [`Journal::replay`] before the first append.
    ///
    /// # Errors
    /// If another process has it open, or the disk fails.
    pub fn open(dir: &Path, settings: JournalSettings) -> Result<(Self, Opened), JournalError> {
        let (mut generations, mut damage) = Generations::open(dir, settings.generations)?;
        generations.sync_every(settings.sync_every);
        let unreadable: Vec<u64> =
            generations.closed().iter().filter(|(_, g)| g.tail.is_none()).map(|(o, _)| *o).collect();
        for ordinal in unreadable {
            tracing::error!(ordinal, "nothing says what a generation of the journal holds: it is set aside");
            damage.quarantined.push((generations.quarantine(ordinal)?, Generation { tail: None, bytes: 0 }));
        }
        let mut spans = BTreeMap::new();
        let mut known: Option<Tail> = None;
        let mut saw = |ordinal: Option<u64>, tail: Option<&[u8]>| {
            if let Some(tail) = tail.and_then(|tail| postcard::from_bytes::<Tail>(tail).ok()) {
                if let Some(ordinal) = ordinal {
                    spans.insert(ordinal, (tail.first, tail.next));
                }
                let last = known.get_or_insert(tail);
                last.next = last.next.max(tail.next);
            }
        };
        for (&ordinal, generation) in generations.closed() {
            saw(Some(ordinal), generation.tail.as_deref());
        }
        for (_, generation) in &damage.quarantined {
            saw(None, generation.tail.as_deref());
        }
        if let Some((ordinal, tail)) = generations.newest() {
            saw(Some(ordinal), Some(tail));
        }
        let mut opened = Opened { is_new: known.is_none(), ..Opened::default() };
        opened.quarantined.extend(damage.quarantined.into_iter().map(|(path, _)| path));
        let (id, next) = match known {
            Some(tail) => (tail.id, tail.next),
            None => (getrandom::u64().map_err(JournalError::Random)?, 1),
        };
        let (named, dir) = (Vec::new(), dir.to_owned());
        let mut this = Self { settings, generations, id, next, spans, named, is_begun: false, dir };
        match this.roll() {
            // Begun with the first append that the disk takes.
            Err(JournalError::Store(error)) if error.is_disk() => {
                tracing::error!(%error, "the journal takes nothing at present");
            }
            rolled => rolled?,
        }
        Ok((this, opened))
    }

    /// Tells this journal from one that was here before it.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The number of the last block; 0 before the first.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.next - 1
    }

    /// Numbers new blocks above this one.
    pub fn number_after(&mut self, block: u64) {
        self.next = self.next.max(block + 1);
        if let Some(span) = self.generations.newest().and_then(|(newest, _)| self.spans.get_mut(&newest))
            && span.0 == span.1
        {
            *span = (self.next, self.next);
        }
    }

    /// How often it was synced.
    #[must_use]
    pub fn syncs(&self) -> u64 {
        self.generations.syncs()
    }

    /// Bytes on the disk.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.generations.bytes()
    }

    /// Takes other settings, but for those of the generations.
    pub fn reconfigure(&mut self, settings: JournalSettings) {
        self.settings = JournalSettings { generations: self.settings.generations, ..settings };
        self.generations.sync_every(settings.sync_every);
    }

    /// Writes the readings; they are on the disk when this returns. Gives the number of the first block that holds them.
    ///
    /// # Errors
    /// If the disk fails or is full, or the budget is reached: then the same readings may be appended again.
    pub fn append(&mut self, readings: &[Reading], registry: &Registry, now: Now) -> Result<u64, JournalError> {
        let first = self.next;
        if readings.is_empty() {
            return Ok(first);
        }
        room_left(&self.dir, self.settings.disk_free_min)?;
        if !self.is_begun {
            self.roll()?;
        }
        if self.generations.is_full() {
            if self.generations.bytes() >= self.settings.budget_bytes {
                return Err(JournalError::OverBudget(self.settings.budget_bytes));
            }
            self.roll()?;
        }
        let mut rows = self.names(readings, registry)?;
        let mut next = self.next;
        let mut block = begin_block(now);
        for reading in readings {
            if block.len() + READING_BYTES_MAX > BLOCK_BYTES {
                rows.push((block_key(next), std::mem::replace(&mut block, begin_block(now))));
                next += 1;
            }
            put_reading(&mut block, reading, now.arrival());
        }
        rows.push((block_key(next), block));
        next += 1;

        let Some((newest, _)) = self.generations.newest() else { return Err(StoreError::NoGeneration.into()) };
        let span = (self.spans.get(&newest).map_or(first, |span| span.0), next);
        let tail = encode(&Tail { id: self.id, first: span.0, next })?;
        self.generations.append(&rows, &[], &tail)?;
        self.next = next;
        self.spans.insert(newest, span);
        for reading in readings {
            let ix = reading.machine.0 as usize;
            if ix >= self.named.len() {
                self.named.resize(ix + 1, 0);
            }
            self.named[ix] = registry.sensors(reading.machine).len();
        }
        Ok(first)
    }

    /// Rows for the machines and sensors that the newest generation does not name yet.
    fn names(&self, readings: &[Reading], registry: &Registry) -> Result<Vec<Row>, JournalError> {
        let mut rows = Vec::new();
        let mut last = None;
        for reading in readings {
            if last == Some(reading.machine) {
                continue;
            }
            last = Some(reading.machine);
            let sensors = registry.sensors(reading.machine);
            if self.named.get(reading.machine.0 as usize).is_none_or(|named| *named < sensors.len()) {
                let names = encode(&(registry.machine_id(reading.machine), sensors))?;
                rows.push(([b"d", &reading.machine.0.to_be_bytes()[..]].concat(), names));
            }
        }
        Ok(rows)
    }

    fn roll(&mut self) -> Result<(), JournalError> {
        let tail = encode(&Tail { id: self.id, first: self.next, next: self.next })?;
        let ordinal = self.generations.roll(&tail, |_, _| Ok::<_, StoreError>(()))?;
        self.spans.insert(ordinal, (self.next, self.next));
        self.named.clear();
        self.is_begun = true;
        Ok(())
    }

    /// Hands every block that is held to `each`, in order: its number, when it arrived, its readings. Names are taken into the
    /// registry, as far as it has room.
    ///
    /// # Errors
    /// If the disk fails. Damage is counted, and the damaged generation set aside if it cannot be read at all.
    pub fn replay(
        &mut self,
        registry: &mut Registry,
        mut each: impl FnMut(u64, Now, &[Reading], &Registry),
    ) -> Result<Replayed, JournalError> {
        let mut replayed = Replayed::default();
        let spans: Vec<(u64, (u64, u64))> = self.spans.iter().map(|(ordinal, span)| (*ordinal, *span)).collect();
        for (ordinal, (first, next)) in spans {
            let mut names = Names::default();
            let mut expected = first;
            let mut readings = Vec::new();
            let scanned = self.generations.scan(ordinal, b"d", |key, found| {
                if let Some(number) =
                    key.strip_prefix(b"f").and_then(|number| Some(u64::from_be_bytes(*number.first_chunk()?)))
                    && (expected..next).contains(&number)
                {
                    replayed.blocks_lost += number.saturating_sub(expected);
                    expected = number + 1;
                    readings.clear();
                    let block = match &found {
                        Found::Intact(block) => names.read(block, &mut readings, &mut replayed.refused),
                        Found::Damaged => None,
                    };
                    match block {
                        Some(arrived) => each(number, arrived, &readings, registry),
                        None => replayed.blocks_lost += 1,
                    }
                    replayed.readings += readings.len() as u64;
                } else if let (Some(machine), Found::Intact(row)) = (key.strip_prefix(b"d"), &found) {
                    names.learn(machine, row, registry);
                }
                ControlFlow::Continue(())
            });
            match scanned {
                Ok(()) => replayed.blocks_lost += next.saturating_sub(expected),
                Err(StoreError::Database { path, reason }) => {
                    tracing::error!(path = %path.display(), reason, "a generation of the journal cannot be read");
                    replayed.blocks_lost += next.saturating_sub(expected);
                    if self.generations.probe().is_ok() {
                        self.generations.quarantine(ordinal)?;
                    }
                    self.spans.remove(&ordinal);
                }
                Err(error) => return Err(error.into()),
            }
        }
        if replayed.blocks_lost > 0 {
            tracing::error!(blocks = replayed.blocks_lost, "the journal is damaged: readings are lost");
        }
        Ok(replayed)
    }

    /// Blocks before this number are needed no more. Also syncs what is due.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn trim(&mut self, needed_from: u64) -> Result<(), JournalError> {
        self.generations.sync_if_due()?;
        let newest = self.generations.newest().map(|(ordinal, _)| ordinal);
        while let Some((&ordinal, &(_, next))) = self.spans.first_key_value()
            && next <= needed_from
            && Some(ordinal) != newest
        {
            self.spans.remove(&ordinal);
            self.generations.delete(ordinal);
        }
        Ok(())
    }
}

type Row = (Vec<u8>, Vec<u8>);

/// The names of one generation: its machines' places, and theirs and their sensors' in this process.
#[derive(Default)]
struct Names(HashMap<u32, Option<Places>>);

/// A machine's place in this process, and its sensors'; `None` for what the registry has no room for.
type Places = (MachineIx, Vec<Option<SensorIx>>);

impl Names {
    fn learn(&mut self, key: &[u8], row: &[u8], registry: &mut Registry) {
        let Some(place) = key.first_chunk().map(|key| u32::from_be_bytes(*key)) else { return };
        let Ok((machine, sensors)) = postcard::from_bytes::<(MachineId, Vec<SensorId>)>(row) else { return };
        let known = registry.machine(&machine).ok().map(|ix| {
            let sensors = sensors.iter().map(|sensor| registry.sensor(ix, sensor).ok()).collect();
            (ix, sensors)
        });
        self.0.insert(place, known);
    }

    /// When the block arrived; `None` if it is no block.
    fn read(&self, block: &[u8], readings: &mut Vec<Reading>, refused: &mut u64) -> Option<Now> {
        let (head, mut rest) = block.split_first_chunk::<24>()?;
        let ([at, boot, mono_us], _) = head.as_chunks::<8>() else { return None };
        let boot = u64::from_le_bytes(*boot);
        let arrived = Now {
            wall: Timestamp(i64::from_le_bytes(*at)),
            mono_us: i64::from_le_bytes(*mono_us),
            clock: if boot == 0 { Clock::Trusted } else { Clock::SinceBoot { boot } },
        };
        while !rest.is_empty() {
            let machine = u32::try_from(take_integer(&mut rest)?).ok()?;
            let sensor = usize::try_from(take_integer(&mut rest)?).ok()?;
            let distance = take_integer(&mut rest)?;
            let distance = (distance >> 1) as i64 ^ -((distance & 1) as i64);
            let (value, left) = rest.split_first_chunk::<8>()?;
            rest = left;
            let known = self.0.get(&machine).and_then(Option::as_ref);
            match known.and_then(|(machine, sensors)| Some((*machine, (*sensors.get(sensor)?)?))) {
                Some((machine, sensor)) => {
                    let value = f64::from_le_bytes(*value);
                    readings.push(Reading { machine, sensor, at: arrived.arrival().plus_us(distance), value });
                }
                None => *refused += 1,
            }
        }
        Some(arrived)
    }
}

fn block_key(number: u64) -> Vec<u8> {
    [b"f", &number.to_be_bytes()[..]].concat()
}

fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, JournalError> {
    postcard::to_stdvec(value).map_err(JournalError::Encode)
}

#[cfg(test)]
mod tests;
