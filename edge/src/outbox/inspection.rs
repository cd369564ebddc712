//! What people are told of an outbox: what lies in it, what of it is damaged, and the records themselves.

use std::{
    ops::{ControlFlow, Range},
    path::PathBuf,
};

use gemba_shared::{
    message::Lane,
    telemetry::{GapReason, Record},
};
use serde::Serialize;

use super::{Backlog, Outbox, OutboxError, blocks, index};
use crate::generations::{Found, StoreError};

/// Records that are read at once.
const RECORDS_A_READ: usize = 256;

/// What lies in an outbox.
#[derive(Debug, Serialize)]
pub struct Inspection {
    /// The epochs that wait, in the order of their delivery.
    pub epochs: Vec<String>,
    pub lanes: Vec<LaneReport>,
    pub generations: Vec<GenerationReport>,
    pub backlog_records: u64,
    pub backlog_bytes: u64,
    /// Of the databases.
    pub disk_bytes: u64,
    /// The time of the oldest record, in seconds since 1970.
    pub oldest_at_s: Option<i64>,
}

/// The numbers of a lane in the present epoch.
#[derive(Debug, Serialize)]
pub struct LaneReport {
    pub lane: &'static str,
    pub oldest: u64,
    pub next: u64,
}

/// A generation of records.
#[derive(Debug, Serialize)]
pub struct GenerationReport {
    pub ordinal: u64,
    pub disk_bytes: u64,
    pub events: u64,
    pub summaries: u64,
    /// How far it was thinned or given up.
    pub level: String,
}

/// Numbers that no longer have a record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Missing {
    pub lane: &'static str,
    /// In the numbers of the present epoch.
    pub first: u64,
    pub last: u64,
}

impl Outbox {
    /// What lies in it. Reads nothing but the oldest record.
    pub fn inspect(&mut self) -> Inspection {
        let Backlog { records, bytes, oldest_at } = self.backlog();
        let lane = |lane: Lane| LaneReport { lane: lane.as_str(), oldest: self.oldest(lane), next: self.next(lane) };
        let newest = self.generations.newest().map(|(ordinal, _)| ordinal);
        let generation = |(ordinal, contents): (&u64, &super::Contents)| {
            let closed = self.generations.closed().get(ordinal).map(|closed| closed.bytes);
            let [events, summaries] = contents.spans.map(|span| span.filled - span.first);
            GenerationReport {
                ordinal: *ordinal,
                disk_bytes: closed
                    .unwrap_or_else(|| if newest == Some(*ordinal) { self.generations.newest_bytes() } else { 0 }),
                events,
                summaries,
                level: format!("{:?}", contents.level).to_lowercase(),
            }
        };
        Inspection {
            epochs: self.lives.iter().map(|life| format!("{:016x}", life.epoch.0)).collect(),
            lanes: Lane::ALL.into_iter().map(lane).collect(),
            generations: self.contents.iter().map(generation).collect(),
            backlog_records: records,
            backlog_bytes: bytes,
            disk_bytes: self.disk_bytes(),
            oldest_at_s: oldest_at.map(|at| at.as_millis().div_euclid(1_000)),
        }
    }

    /// Reads everything that is held; gives the numbers whose records are lost to damage, and the generations that cannot
    /// be read at all.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn verify(&mut self) -> Result<(Vec<Missing>, Vec<u64>), OutboxError> {
        let mut unreadable = Vec::new();
        // The numbers of each lane that are accounted for.
        let mut there: [Vec<Range<u64>>; 2] = [Vec::new(), Vec::new()];
        let contents: Vec<_> = self.contents.iter().map(|(ordinal, contents)| (*ordinal, *contents)).collect();
        for (ordinal, contents) in contents {
            let scanned = self.generations.scan(ordinal, b"r", |key, found| {
                if let (Some((lane, first)), Found::Intact(block)) = (blocks::parse_key(key), found) {
                    let span = contents.spans[index(lane)];
                    there[index(lane)].push(first.max(span.first)..(first + blocks::count(&block)).min(span.filled));
                }
                ControlFlow::Continue(())
            });
            match scanned {
                Ok(()) => {}
                Err(StoreError::Database { .. }) => unreadable.push(ordinal),
                Err(error) => return Err(error.into()),
            }
            for lane in Lane::ALL {
                let span = contents.spans[index(lane)];
                // What was given up on purpose is not damaged.
                let is_given_up = contents.level.reason(lane, &span, span.first) == GapReason::OverBudget;
                there[index(lane)].push(if is_given_up { span.numbers() } else { span.filled..span.next });
            }
        }
        for (lane, number) in &self.replaced {
            there[index(*lane)].push(*number..number + 1);
        }
        let mut missing = Vec::new();
        for (lane, there) in Lane::ALL.into_iter().zip(there) {
            let (state, base) = (self.lanes[index(lane)], self.life().base[index(lane)]);
            for range in holes(there, state.oldest..state.next) {
                missing.push(Missing { lane: lane.as_str(), first: range.start - base, last: range.end - 1 - base });
            }
        }
        Ok((missing, unreadable))
    }

    /// Sets aside the generations that cannot be read; gives the numbers that are missing, and where the generations are now.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn repair(&mut self) -> Result<(Vec<Missing>, Vec<PathBuf>), OutboxError> {
        let (_, unreadable) = self.verify()?;
        let mut aside = Vec::new();
        for ordinal in unreadable {
            if self.generations.newest().is_some_and(|(newest, _)| newest == ordinal) {
                self.roll()?;
            }
            aside.push(self.generations.quarantine(ordinal)?);
            self.contents.remove(&ordinal);
        }
        Ok((self.verify()?.0, aside))
    }

    /// Hands everything that is held to `each`, lane by lane: its lane, its number in the present epoch, the record (or the gap in its
    /// place).
    ///
    /// # Errors
    /// If the disk fails, or `each` does.
    pub fn export(&mut self, mut each: impl FnMut(Lane, u64, &Record) -> anyhow::Result<()>) -> anyhow::Result<u64> {
        let mut count = 0;
        for lane in Lane::ALL {
            let mut number = self.oldest(lane);
            while number < self.next(lane) {
                let base = self.life().base[index(lane)];
                let records = self.peek(lane, number + base, RECORDS_A_READ, usize::MAX)?;
                if records.is_empty() {
                    break;
                }
                for record in &records {
                    each(lane, number, record)?;
                    number += 1;
                    count += 1;
                }
            }
        }
        Ok(count)
    }
}

/// What of these numbers is in none of the ranges.
fn holes(mut there: Vec<Range<u64>>, numbers: Range<u64>) -> Vec<Range<u64>> {
    there.retain(|range| range.start < range.end);
    there.sort_by_key(|range| range.start);
    let mut at = numbers.start;
    let mut holes = Vec::new();
    for range in there {
        if range.start > at {
            holes.push(at..range.start);
        }
        at = at.max(range.end);
    }
    if numbers.end > at {
        holes.push(at..numbers.end);
    }
    holes
}
