//! What the gateway must deliver: records in two lanes, until the cloud has receipted them, and the states of the
//! machines that made them.
//!
//! - [`Outbox::append`] writes records and states as one: both are on the disk when it returns, or neither counts.
//! - Records are numbered from 1 without holes within (epoch, lane). The epoch is drawn at random with a new outbox, and again when
//!   numbers or states are in doubt. A number whose record is lost is delivered as a [`Gap`].
//! - Only [`Outbox::release`], called for a receipt, lets records go. Space comes back by whole generations.
//! - Over its budget, or where the disk has little room left, it makes *room* (`room.rs`): the oldest summaries that were
//!   never sent are thinned to coarser intervals; then the oldest are given up; events go last of all.
//!
//! | directory | what |
//! |---|---|
//! | `generations/` | the records: `r` lane number → a block of records (`blocks.rs`); the tail is [`Tail`] |
//! | `standing/` | what stands until it is replaced: states, catalogs, what is delivered in a record's place (`standing.rs`) |
//! | `dead-letters/` | what the cloud refused for good |
//!
//! An append goes to `standing` first, as a second version beside the valid one, and then to `generations`; its count there makes
//! the new versions valid. Inside, numbers go on for ever in each lane; what an epoch calls 1 is its [`Life::base`] and one.

mod blocks;
mod delivery;
mod holes;
pub mod inspection;
mod recovery;
mod room;
mod standing;
mod thinning;

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    path::PathBuf,
};

use gemba_shared::{
    ids::MachineId,
    message::{Epoch, Lane},
    telemetry::{Gap, GapReason, Record, Timestamp},
};
use serde::{Deserialize, Serialize};

use crate::generations::{GenerationSettings, Generations, StoreError};
use blocks::{Packer, RECORD_BYTES_MAX};
use standing::Standing;

/// The smallest budget, in generations: the newest, one that is being delivered, and one to give up.
pub const BUDGET_GENERATIONS_MIN: u64 = 3;
/// Dead letters kept; beyond it the oldest go.
const DEAD_LETTERS_MAX: usize = 256;
/// The number of the first record of a lane, inside. There is room below it for catalogs that an epoch begins with.
const FIRST: u64 = 1 << 32;
/// Epochs that wait to be delivered one after the other; more make no new ones.
const LIVES_MAX: usize = 6;
/// When all is delivered, a newest generation larger than this is begun anew.
const IDLE_BYTES: u64 = 2 * 1_024 * 1_024;

#[derive(Debug, Clone, Copy)]
pub struct OutboxSettings {
    pub generations: GenerationSettings,
    /// Room on the disk; at least [`BUDGET_GENERATIONS_MIN`] generations.
    pub budget_bytes: u64,
    /// What stays free on the disk; 0 for no limit.
    pub disk_free_min: u64,
}

impl Default for OutboxSettings {
    fn default() -> Self {
        Self { generations: GenerationSettings::default(), budget_bytes: 1_024 * 1_024 * 1_024, disk_free_min: 0 }
    }
}

/// Why the outbox could not do it.
#[derive(Debug, thiserror::Error)]
pub enum OutboxError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("a record cannot be encoded: {0}")]
    Encode(postcard::Error),
    #[error("no random numbers for a new epoch: {0}")]
    Random(getrandom::Error),
    #[error("cannot write the dead letter {path}: {source}")]
    DeadLetter { path: PathBuf, source: std::io::Error },
}

impl OutboxError {
    /// Whether the disk takes nothing at present: nothing was taken, the same may be tried again.
    #[must_use]
    pub fn is_disk_full(&self) -> bool {
        matches!(self, Self::Store(error) if error.is_disk())
    }

    /// Whether another process has it.
    #[must_use]
    pub fn is_locked(&self) -> bool {
        matches!(self, Self::Store(StoreError::Locked { .. }))
    }
}

/// A part of a machine's state, in the words of whoever keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    pub machine: MachineId,
    pub part: u16,
    pub bytes: Vec<u8>,
}

/// What is appended at once.
#[derive(Debug, Default)]
pub struct Write {
    pub records: Vec<(Lane, Record)>,
    pub states: Vec<State>,
}

/// What was found at the start.
#[derive(Debug, Default)]
pub struct Opened {
    /// The latest of each (machine, part).
    pub states: Vec<State>,
    /// Generations set aside because they were damaged.
    pub quarantined: Vec<PathBuf>,
    /// Records that are known to be lost (they will be delivered as gaps).
    pub lost_records: u64,
    /// The outbox is new, and so is its epoch.
    pub is_new: bool,
    /// The latest states are lost, so that new records go under a new epoch: machines must tell their catalogs again.
    pub states_lost: bool,
}

/// What waits for a receipt.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Backlog {
    pub records: u64,
    /// Encoded, before they are packed for the disk.
    pub bytes: u64,
    /// The time of the oldest record.
    pub oldest_at: Option<Timestamp>,
}

/// Counters since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OutboxCounters {
    pub appends: u64,
    pub records: u64,
    pub released: u64,
    pub refused: u64,
    /// Summaries that went into coarser ones for want of room.
    pub thinned: u64,
    /// Summaries given up for want of room.
    pub over_budget: u64,
    /// Events given up for want of room.
    pub events_over_budget: u64,
    /// Records found damaged or missing on the disk.
    pub damaged: u64,
    /// Records too large to be stored.
    pub too_large: u64,
    /// States too large to be stored: what they hold is lost at the next start.
    pub states_too_large: u64,
}

#[derive(Debug)]
pub struct Outbox {
    settings: OutboxSettings,
    generations: Generations,
    standing: Standing,
    dead_letters: PathBuf,
    /// How often anything was appended, ever.
    append: u64,
    /// The epochs that are delivered one after the other; the first is the present one.
    lives: Vec<Life>,
    lanes: [LaneState; 2],
    /// What each generation holds.
    contents: BTreeMap<u64, Contents>,
    /// The numbers up to here may have been sent.
    sent: [u64; 2],
    /// The last append failed: what it left is removed with the next.
    failed: bool,
    /// Numbers in whose place something else is delivered, which lies in `standing`.
    replaced: BTreeSet<(Lane, u64)>,
    /// Damaged numbers up to here are counted.
    damaged_to: [u64; 2],
    oldest_at: Option<(Lane, u64, Option<Timestamp>)>,
    counters: OutboxCounters,
}

/// An epoch, and what it counts from in each lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Life {
    epoch: Epoch,
    /// The number before the first.
    base: [u64; 2],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct LaneState {
    /// The oldest that is still held.
    oldest: u64,
    /// The number of the next record.
    next: u64,
}

/// A generation's records of one lane: `first..next`; those from `filled` on were given up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Span {
    first: u64,
    filled: u64,
    next: u64,
    bytes: u64,
}

impl Span {
    fn numbers(&self) -> Range<u64> {
        self.first..self.next
    }
}

/// What a generation holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Contents {
    spans: [Span; 2],
    /// How far it was thinned or given up.
    level: room::Level,
}

/// Where things stood with the last append to a generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Tail {
    append: u64,
    lives: Vec<Life>,
    lanes: [LaneState; 2],
    sent: [u64; 2],
    contents: Contents,
    /// The generations that this one was made of.
    replaces: Option<(u64, u64)>,
}

impl Outbox {
    /// Takes another budget, and leaves something else free on the disk, from the next append on.
    pub fn set_room(&mut self, budget_bytes: u64, disk_free_min: u64) {
        self.settings = OutboxSettings { budget_bytes, disk_free_min, ..self.settings };
    }

    /// The epoch that is delivered at present. It changes with [`Outbox::renew_epoch`], and, where more than one waits, with
    /// the [`Outbox::release`] of the last record of the one before.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.life().epoch
    }

    /// The oldest number that is held, or that would be next.
    #[must_use]
    pub fn oldest(&self, lane: Lane) -> u64 {
        self.lanes[index(lane)].oldest - self.life().base[index(lane)]
    }

    /// The number of the next record.
    #[must_use]
    pub fn next(&self, lane: Lane) -> u64 {
        self.life_end(lane) - self.life().base[index(lane)]
    }

    /// Bytes of the databases, what is released and what is empty in them included.
    #[must_use]
    pub fn disk_bytes(&self) -> u64 {
        self.generations.bytes() + self.standing.bytes()
    }

    #[must_use]
    pub fn counters(&self) -> OutboxCounters {
        self.counters
    }

    fn life(&self) -> Life {
        self.lives.first().copied().unwrap_or(Life { epoch: Epoch(0), base: [FIRST - 1; 2] })
    }

    /// One past the last number of the present epoch, as it is inside.
    fn life_end(&self, lane: Lane) -> u64 {
        let next = self.lanes[index(lane)].next;
        self.lives.get(1).map_or(next, |life| next.min(life.base[index(lane)] + 1))
    }

    /// Writes records (at the end of their lanes) and states, all or nothing; they are on the disk when this returns.
    ///
    /// # Errors
    /// If the disk fails or is full: then nothing was taken, and the same may be appended again.
    pub fn append(&mut self, write: &Write) -> Result<(), OutboxError> {
        self.make_room()?;
        if self.generations.is_full() || self.generations.newest().is_none() {
            self.roll()?;
        }
        let Some((newest, _)) = self.generations.newest() else { return Err(StoreError::NoGeneration.into()) };
        let mut lanes = self.lanes;
        let mut contents = self.contents.get(&newest).copied().unwrap_or_else(|| begin(&lanes));
        let mut standing = Vec::with_capacity(write.states.len());
        for state in &write.states {
            if let Some(row) = standing::state_row(state) {
                standing.push(row);
            } else {
                let (machine, part, bytes) = (&state.machine, state.part, state.bytes.len());
                tracing::error!(%machine, part, bytes, "a state is too large and is not kept");
                self.counters.states_too_large += 1;
            }
        }
        let mut packers = Lane::ALL.map(|lane| Packer::new(lane, lanes[index(lane)].next));
        for (lane, record) in &write.records {
            let (state, span) = (&mut lanes[index(*lane)], &mut contents.spans[index(*lane)]);
            if let (Lane::Summaries, Record::Catalog(catalog)) = (lane, record) {
                standing.push((standing::catalog_key(&catalog.machine, state.next), encode(record)?));
            }
            let mut value = encode(record)?;
            if value.len() > RECORD_BYTES_MAX {
                tracing::error!(lane = lane.as_str(), bytes = value.len(), "a record is too large and is given up");
                self.counters.too_large += 1;
                let number = state.next - self.lives.last().map_or(0, |life| life.base[index(*lane)]);
                value = encode(&gap(number..number + 1, GapReason::Refused))?;
            }
            span.bytes += value.len() as u64;
            packers[index(*lane)].push(&value);
            state.next += 1;
            span.next = state.next;
            span.filled = state.next;
        }
        let rows: Vec<Row> = packers.into_iter().flat_map(Packer::finish).collect();
        self.write(standing, &rows, lanes, newest, contents)?;
        self.counters.appends += 1;
        self.counters.records += write.records.len() as u64;
        Ok(())
    }

    /// Writes to both places, so that it counts in both or in none.
    fn write(
        &mut self,
        standing: Vec<Row>,
        rows: &[Row],
        lanes: [LaneState; 2],
        newest: u64,
        contents: Contents,
    ) -> Result<(), OutboxError> {
        let append = self.append + 1;
        let stale = if self.failed { self.stale_rows(newest)? } else { Vec::new() };
        if self.standing.is_full() {
            let needed = Needed { oldest: self.lanes.map(|lane| lane.oldest), replaced: &self.replaced };
            self.standing.roll(&needed)?;
        }
        self.standing.write(&standing, standing::Tail { append, lives: self.lives.clone(), lanes })?;
        self.failed = true;
        let tail = Tail { append, lives: self.lives.clone(), lanes, sent: self.sent, contents, replaces: None };
        self.generations.append(rows, &stale, &encode(&tail)?)?;
        self.failed = false;
        self.standing.commit(standing.into_iter().map(|(key, _)| key));
        self.append = append;
        self.lanes = lanes;
        self.contents.insert(newest, contents);
        Ok(())
    }

    /// Writes where things stand to the newest generation; a failure is made good by the next append.
    fn note(&mut self) {
        let Some((newest, _)) = self.generations.newest() else { return };
        let contents = self.contents.get(&newest).copied().unwrap_or_else(|| begin(&self.lanes));
        let noted = self.tail(contents).and_then(|tail| Ok(self.generations.append(&[], &[], &tail)?));
        if let Err(error) = noted {
            tracing::debug!(%error, "where the outbox stands is not noted");
        }
    }

    fn tail(&self, contents: Contents) -> Result<Vec<u8>, OutboxError> {
        let (lives, lanes, sent) = (self.lives.clone(), self.lanes, self.sent);
        encode(&Tail { append: self.append, lives, lanes, sent, contents, replaces: None })
    }

    /// The blocks that a failed append may have left behind the last number.
    fn stale_rows(&mut self, newest: u64) -> Result<Vec<Vec<u8>>, OutboxError> {
        let mut stale = Vec::new();
        for lane in Lane::ALL {
            let from = blocks::key(lane, self.lanes[index(lane)].next);
            self.generations.scan(newest, &from, |key, _| {
                if blocks::parse_key(key).is_none_or(|(l, _)| l != lane) {
                    return std::ops::ControlFlow::Break(());
                }
                stale.push(key.to_vec());
                std::ops::ControlFlow::Continue(())
            })?;
        }
        Ok(stale)
    }

    fn roll(&mut self) -> Result<(), OutboxError> {
        let contents = begin(&self.lanes);
        let tail = self.tail(contents)?;
        let ordinal = self.generations.roll(&tail, |_, _| Ok::<_, StoreError>(()))?;
        self.contents.insert(ordinal, contents);
        self.delete_released();
        Ok(())
    }
}

type Row = (Vec<u8>, Vec<u8>);

/// What of the standing rows is needed on.
struct Needed<'a> {
    oldest: [u64; 2],
    replaced: &'a BTreeSet<(Lane, u64)>,
}

fn index(lane: Lane) -> usize {
    match lane {
        Lane::Events => 0,
        Lane::Summaries => 1,
    }
}

fn begin(lanes: &[LaneState; 2]) -> Contents {
    let spans = lanes.map(|lane| Span { first: lane.next, filled: lane.next, next: lane.next, bytes: 0 });
    Contents { spans, level: room::Level::Whole }
}

fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, OutboxError> {
    postcard::to_stdvec(value).map_err(OutboxError::Encode)
}

fn gap(numbers: Range<u64>, reason: GapReason) -> Record {
    let count = numbers.end.saturating_sub(numbers.start);
    Record::Gap(Gap { first: numbers.start, last: numbers.end.saturating_sub(1), count, reason })
}

#[cfg(test)]
mod tests;
