//! What the gateway must deliver: records in two lanes, until the cloud has receipted them, and the states of the
//! machines that made them.
//!
//! - [`Outbox::append`] writes records and states in one batch, which is on the disk when it returns.
//! - Records are numbered from 1 without holes within (epoch, lane). The epoch is drawn at random with a new outbox. A number
//!   whose record was lost to damage, or was refused by the cloud, is delivered as a [`Gap`].
//! - Only [`Outbox::release`], called for a receipt, lets records go. Space comes back by whole generations.
//! - Over its byte budget it gives the oldest *summaries* up, a generation at a time, and appends a [`Gap`] that says
//!   so; events of that generation are carried on.
//! - States, and records while they are a small part, are carried into every new generation; the latest of each (machine, part) is what [`Opened`] holds.
//!
//! Rows, in the generations of `generations.rs`: `r` lane number → record; `s` machine 0 part → state; `k` lane number → a record
//! carried on from a generation that was given up, or the gap in place of a refused one. The tail is [`Tail`].

mod delivery;
mod recovery;

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::{ControlFlow, Range},
    path::PathBuf,
};

use gemba_shared::{
    ids::MachineId,
    message::{Epoch, Lane},
    telemetry::{Gap, GapReason, Record, Timestamp},
};
use serde::{Deserialize, Serialize};

use crate::generations::{Found, GenerationSettings, Generations, StoreError, VALUE_BYTES_MAX};

/// The smallest budget, in generations: the newest, one that is being delivered, and one to give up.
pub const BUDGET_GENERATIONS_MIN: u64 = 3;
/// Events carried on from generations that were given up; beyond it the oldest of them go too.
const CARRIED_MAX: usize = 2_000;
/// Dead letters kept; beyond it the oldest go.
const DEAD_LETTERS_MAX: usize = 256;

#[derive(Debug, Clone, Copy)]
pub struct OutboxSettings {
    pub generations: GenerationSettings,
    /// Room on the disk; at least [`BUDGET_GENERATIONS_MIN`] generations.
    pub budget_bytes: u64,
}

impl Default for OutboxSettings {
    fn default() -> Self {
        Self { generations: GenerationSettings::default(), budget_bytes: 1_024 * 1_024 * 1_024 }
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
    /// Whether the disk is full: nothing was taken, the same may be tried again.
    #[must_use]
    pub fn is_disk_full(&self) -> bool {
        matches!(self, Self::Store(StoreError::DiskFull(_)))
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
    /// Records of the newest generation that are lost (they will be delivered as gaps).
    pub lost_records: u64,
    /// The outbox is new, and so is its epoch.
    pub is_new: bool,
}

/// What waits for a receipt.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Backlog {
    pub records: u64,
    /// Encoded; the disk holds about 1.7 times as much.
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
    /// Summaries given up for the budget.
    pub over_budget: u64,
    /// Records found damaged or missing on the disk.
    pub damaged: u64,
    /// Records too large to be stored.
    pub too_large: u64,
}

#[derive(Debug)]
pub struct Outbox {
    settings: OutboxSettings,
    generations: Generations,
    dead_letters: PathBuf,
    epoch: Epoch,
    lanes: [LaneState; 2],
    /// The records of each generation, by lane.
    spans: BTreeMap<u64, [Span; 2]>,
    /// Records that lie under `k` in the newest generation.
    carried: BTreeSet<(Lane, u64)>,
    oldest_at: Option<(Lane, u64, Option<Timestamp>)>,
    counters: OutboxCounters,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct LaneState {
    /// The oldest that is still held.
    oldest: u64,
    /// The number of the next record.
    next: u64,
}

/// A generation's records of one lane: `first..next`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Span {
    first: u64,
    next: u64,
    bytes: u64,
}

impl Span {
    fn numbers(&self) -> Range<u64> {
        self.first..self.next
    }
}

/// Where things stood with the last append to a generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Tail {
    epoch: Epoch,
    lanes: [LaneState; 2],
    spans: [Span; 2],
}

impl Outbox {
    /// Takes another budget; it counts from the next append on.
    pub fn set_budget(&mut self, bytes: u64) {
        self.settings.budget_bytes = bytes;
    }

    /// The life of this outbox.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The oldest number that is held, or that would be next.
    #[must_use]
    pub fn oldest(&self, lane: Lane) -> u64 {
        self.lanes[index(lane)].oldest
    }

    /// The number of the next record.
    #[must_use]
    pub fn next(&self, lane: Lane) -> u64 {
        self.lanes[index(lane)].next
    }

    /// Bytes of the databases, what is released and what is empty in them included.
    #[must_use]
    pub fn disk_bytes(&self) -> u64 {
        self.generations.bytes()
    }

    #[must_use]
    pub fn counters(&self) -> OutboxCounters {
        self.counters
    }

    /// Writes records (at the end of their lanes) and states, all or nothing; they are on the disk when this returns.
    ///
    /// # Errors
    /// If the disk fails or is full: then nothing was taken, and the same may be appended again.
    pub fn append(&mut self, write: &Write) -> Result<(), OutboxError> {
        let mut rows = Vec::with_capacity(write.records.len() + write.states.len());
        for state in &write.states {
            rows.push((state_key(&state.machine, state.part), state.bytes.clone()));
        }
        self.make_room()?;
        self.append_rows(rows, &write.records)
    }

    fn append_rows(&mut self, mut rows: Vec<Row>, records: &[(Lane, Record)]) -> Result<(), OutboxError> {
        if self.generations.is_full() {
            self.roll()?;
        }
        let Some((newest, _)) = self.generations.newest() else { return Err(StoreError::NoGeneration.into()) };
        let mut lanes = self.lanes;
        let mut spans = self.spans.get(&newest).copied().unwrap_or_else(|| begin_spans(&lanes));
        for (lane, record) in records {
            let (state, span) = (&mut lanes[index(*lane)], &mut spans[index(*lane)]);
            let mut value = encode(record)?;
            if value.len() > VALUE_BYTES_MAX {
                tracing::error!(lane = lane.as_str(), bytes = value.len(), "a record is too large and is given up");
                self.counters.too_large += 1;
                value = encode(&gap(state.next..state.next + 1, GapReason::Refused))?;
            }
            span.bytes += value.len() as u64;
            rows.push((record_key(b'r', *lane, state.next), value));
            state.next += 1;
            span.next = state.next;
        }
        let tail = encode(&Tail { epoch: self.epoch, lanes, spans })?;
        self.generations.append(&rows, &tail)?;
        self.lanes = lanes;
        self.spans.insert(newest, spans);
        self.counters.appends += 1;
        self.counters.records += records.len() as u64;
        Ok(())
    }

    /// Begins a new generation with all that must outlive the old one.
    fn roll(&mut self) -> Result<(), OutboxError> {
        let Some((newest, _)) = self.generations.newest() else { return Err(StoreError::NoGeneration.into()) };
        // Most of a full generation is old states: its records go on too while they are few.
        let spans = self.held(self.spans.get(&newest).copied().unwrap_or_default());
        let bytes: u64 = spans.iter().map(|span| span.bytes).sum();
        let goes_on = bytes < self.settings.generations.generation_bytes / 3;
        let mut rows = Vec::new();
        let carried = &self.carried;
        self.generations.scan(newest, b"k", |key, value| {
            let goes = match parse_record_key(key) {
                Some((lane, number)) if key.starts_with(b"r") => {
                    goes_on && spans[index(lane)].numbers().contains(&number)
                }
                Some(at) => carried.contains(&at),
                None => key.starts_with(b"s"),
            };
            if let (true, Found::Intact(value)) = (goes, value) {
                rows.push((key.to_vec(), value));
            }
            ControlFlow::Continue(())
        })?;
        self.begin_generation(&rows, if goes_on { spans } else { begin_spans(&self.lanes) })?;
        if goes_on {
            self.spans.remove(&newest);
            self.generations.delete(newest)?;
        }
        self.delete_released()
    }

    /// What of these records is not released yet.
    fn held(&self, mut spans: [Span; 2]) -> [Span; 2] {
        for (span, lane) in spans.iter_mut().zip(&self.lanes) {
            let all = (span.next - span.first).max(1);
            span.first = span.first.max(lane.oldest).min(span.next);
            span.bytes = span.bytes.saturating_mul(span.next - span.first) / all;
        }
        spans
    }

    fn begin_generation(&mut self, rows: &[Row], spans: [Span; 2]) -> Result<(), OutboxError> {
        let tail = encode(&Tail { epoch: self.epoch, lanes: self.lanes, spans })?;
        let ordinal = self.generations.roll(rows, &tail)?;
        self.spans.insert(ordinal, spans);
        Ok(())
    }

    /// Gives the oldest summaries up while the outbox is over its budget.
    fn make_room(&mut self) -> Result<(), OutboxError> {
        let budget =
            self.settings.budget_bytes.max(BUDGET_GENERATIONS_MIN * self.settings.generations.generation_bytes);
        while self.generations.bytes() > budget {
            let Some(&oldest) = self.generations.closed().keys().next() else { return Ok(()) };
            self.give_up(oldest)?;
        }
        Ok(())
    }

    fn give_up(&mut self, ordinal: u64) -> Result<(), OutboxError> {
        let [events, summaries] = self.spans.get(&ordinal).copied().unwrap_or_default();
        let mut rows = Vec::new();
        let mut carried = Vec::new();
        for number in events.first.max(self.oldest(Lane::Events))..events.next {
            if self.carried.contains(&(Lane::Events, number)) {
                continue;
            }
            for record in self.read(Lane::Events, number, 1, usize::MAX)? {
                rows.push((record_key(b'k', Lane::Events, number), encode(&record)?));
                carried.push((Lane::Events, number));
            }
        }
        let lost = summaries.first.max(self.oldest(Lane::Summaries))..summaries.next;
        let count = lost.end.saturating_sub(lost.start);
        let records =
            if count == 0 { Vec::new() } else { vec![(Lane::Summaries, gap(lost.clone(), GapReason::OverBudget))] };
        let before = self.lanes;
        if count > 0 {
            let lane = &mut self.lanes[index(Lane::Summaries)];
            lane.oldest = lane.oldest.max(lost.end);
        }
        if let Err(error) = self.append_rows(rows, &records) {
            self.lanes = before;
            return Err(error);
        }
        self.carried.extend(carried);
        self.shed_carried();
        self.counters.over_budget += count;
        tracing::warn!(summaries = count, "the outbox is over its budget: the oldest summaries are given up");
        self.spans.remove(&ordinal);
        self.generations.delete(ordinal)?;
        Ok(())
    }

    /// Beyond the bound the oldest carried events become holes, which are delivered as gaps.
    fn shed_carried(&mut self) {
        let events = self.carried.range((Lane::Events, 0)..(Lane::Summaries, 0));
        let numbers: Vec<(Lane, u64)> = events.copied().collect();
        for oldest in &numbers[..numbers.len().saturating_sub(CARRIED_MAX)] {
            self.carried.remove(oldest);
            tracing::warn!(number = oldest.1, "too many undelivered events: the oldest is given up");
        }
    }
}

type Row = (Vec<u8>, Vec<u8>);

fn index(lane: Lane) -> usize {
    match lane {
        Lane::Events => 0,
        Lane::Summaries => 1,
    }
}

fn begin_spans(lanes: &[LaneState; 2]) -> [Span; 2] {
    lanes.map(|lane| Span { first: lane.next, next: lane.next, bytes: 0 })
}

fn record_key(kind: u8, lane: Lane, number: u64) -> Vec<u8> {
    [&[kind, index(lane) as u8][..], &number.to_be_bytes()].concat()
}

fn parse_record_key(key: &[u8]) -> Option<(Lane, u64)> {
    let (&[kind, lane], number) = key.split_first_chunk::<2>()?;
    let number = u64::from_be_bytes(number.try_into().ok()?);
    let lane = *Lane::ALL.get(usize::from(lane))?;
    matches!(kind, b'r' | b'k').then_some((lane, number))
}

fn state_key(machine: &MachineId, part: u16) -> Vec<u8> {
    [b"s", machine.as_str().as_bytes(), &[0], &part.to_be_bytes()].concat()
}

fn parse_state_key(key: &[u8]) -> Option<(MachineId, u16)> {
    let (name, part) = key.strip_prefix(b"s")?.split_last_chunk::<2>()?;
    let name = std::str::from_utf8(name.strip_suffix(&[0])?).ok()?;
    Some((MachineId::new(name).ok()?, u16::from_be_bytes(*part)))
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
