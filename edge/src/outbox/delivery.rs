//! The uplink's side of the outbox: reading records, and letting them go.

use std::{
    fs,
    ops::{ControlFlow, Range},
    path::Path,
};

use gemba_shared::{
    message::{Epoch, Lane, Seq},
    telemetry::{Gap, GapReason, Record, Timestamp},
};

use super::{Backlog, DEAD_LETTERS_MAX, Outbox, OutboxError, encode, gap, index, parse_record_key, record_key};
use crate::generations::{Found, StoreError};

impl Outbox {
    /// The records of a lane from number `from` on: at most `records_max`, and of at most `bytes_max` encoded bytes, but at least
    /// one if there is one. Empty if `from` is older than [`Outbox::oldest`] or there is none yet.
    ///
    /// A number whose record is lost gives a gap in its place.
    ///
    /// # Errors
    /// If the disk fails. A generation that cannot be read is set aside and is no error.
    pub fn read(
        &mut self,
        lane: Lane,
        from: u64,
        records_max: usize,
        bytes_max: usize,
    ) -> Result<Vec<Record>, OutboxError> {
        let mut taken = Taken { records: Vec::new(), records_max, bytes: 0, bytes_max };
        let end = self.next(lane);
        let mut number = from;
        if from < self.oldest(lane) {
            return Ok(taken.records);
        }
        while number < end && taken.has_room() {
            let until = match self.holder(lane, number) {
                Place::Carried(ordinal) => {
                    let key = record_key(b'k', lane, number);
                    self.read_rows(ordinal, &key, lane, number..number + 1, &mut taken)?
                }
                Place::Generation(ordinal, until) => {
                    let key = record_key(b'r', lane, number);
                    self.read_rows(ordinal, &key, lane, number..until, &mut taken)?
                }
                Place::Nowhere => {
                    taken.push(gap(number..number + 1, GapReason::Damaged), 8);
                    number + 1
                }
            };
            number = until;
        }
        Ok(taken.records)
    }

    fn holder(&self, lane: Lane, number: u64) -> Place {
        if self.carried.contains(&(lane, number)) {
            return self.generations.newest().map_or(Place::Nowhere, |(newest, _)| Place::Carried(newest));
        }
        let next_carried = self.carried.range((lane, number)..).next().filter(|(l, _)| *l == lane).map(|(_, n)| *n);
        self.spans.iter().find(|(_, spans)| spans[index(lane)].numbers().contains(&number)).map_or(
            Place::Nowhere,
            |(&ordinal, spans)| {
                let until = spans[index(lane)].next;
                Place::Generation(ordinal, next_carried.map_or(until, |carried| until.min(carried)))
            },
        )
    }

    /// Reads the rows of `numbers` that lie together from `key` on; gives the number that is next.
    fn read_rows(
        &mut self,
        ordinal: u64,
        key: &[u8],
        lane: Lane,
        numbers: Range<u64>,
        taken: &mut Taken,
    ) -> Result<u64, OutboxError> {
        let mut number = numbers.start;
        let mut damaged = 0;
        let kind = key[0];
        let scanned = self.generations.scan(ordinal, key, |key, found| {
            let at = parse_record_key(key).filter(|(l, n)| *l == lane && key[0] == kind && numbers.contains(n));
            let Some((_, at)) = at else { return ControlFlow::Break(()) };
            while number < at && taken.has_room() {
                taken.push(gap(number..number + 1, GapReason::Damaged), 8);
                damaged += 1;
                number += 1;
            }
            if !taken.has_room() {
                return ControlFlow::Break(());
            }
            let record = match found {
                Found::Intact(value) => postcard::from_bytes(&value).ok().map(|record| (record, value.len())),
                Found::Damaged => None,
            };
            let (record, bytes) = record.unwrap_or_else(|| {
                damaged += 1;
                (gap(at..at + 1, GapReason::Damaged), 8)
            });
            if taken.push(record, bytes) {
                number = at + 1;
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        });
        match scanned {
            Ok(()) => {}
            Err(StoreError::Database { path, reason }) => {
                tracing::error!(path = %path.display(), reason, "a generation of the outbox cannot be read");
                if self.generations.newest().is_some_and(|(newest, _)| newest == ordinal) {
                    return Err(StoreError::Database { path, reason }.into());
                }
                self.generations.probe()?;
                self.generations.quarantine(ordinal)?;
                self.spans.remove(&ordinal);
                return Ok(number);
            }
            Err(error) => return Err(error.into()),
        }
        // The rows at the end of the range are gone.
        while number < numbers.end && taken.has_room() && !taken.is_cut() {
            taken.push(gap(number..number + 1, GapReason::Damaged), 8);
            damaged += 1;
            number += 1;
        }
        self.counters.damaged += damaged;
        Ok(number)
    }

    /// The cloud has everything of this lane through this number; gives how many records that lets go. Nothing happens for
    /// another epoch, or for what was released before.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn release(&mut self, epoch: Epoch, lane: Lane, through: u64) -> Result<u64, OutboxError> {
        if epoch != self.epoch {
            return Ok(0);
        }
        let state = &mut self.lanes[index(lane)];
        if through >= state.next {
            tracing::error!(
                lane = lane.as_str(),
                through,
                next = state.next,
                "the cloud has records of this epoch that this outbox never made: was its disk restored from a copy?"
            );
        }
        let oldest = through.saturating_add(1).min(state.next);
        let released = oldest.saturating_sub(state.oldest);
        if released == 0 {
            return Ok(0);
        }
        state.oldest = oldest;
        self.carried.retain(|(l, number)| *l != lane || *number >= oldest);
        self.counters.released += released;
        self.delete_released()?;
        Ok(released)
    }

    pub(super) fn delete_released(&mut self) -> Result<(), OutboxError> {
        let released: Vec<u64> = self
            .generations
            .closed()
            .keys()
            .copied()
            .filter(|ordinal| {
                let spans = self.spans.get(ordinal).copied().unwrap_or_default();
                spans.iter().zip(&self.lanes).all(|(span, lane)| span.first == span.next || span.next <= lane.oldest)
            })
            .collect();
        for ordinal in released {
            self.spans.remove(&ordinal);
            self.generations.delete(ordinal)?;
        }
        Ok(())
    }

    /// Begins a new epoch with what is held, for a cloud that has other records under its numbers.
    ///
    /// # Errors
    /// If the disk fails; the old epoch goes on then.
    pub fn renew_epoch(&mut self) -> Result<Epoch, OutboxError> {
        let epoch = Epoch(getrandom::u64().map_err(OutboxError::Random)?);
        let old = std::mem::replace(&mut self.epoch, epoch);
        // The tail goes with the append, and the epoch stands in it.
        if let Err(error) = self.append_rows(Vec::new(), &[]) {
            self.epoch = old;
            return Err(error);
        }
        Ok(epoch)
    }

    /// The cloud will never take this record: it is written to the dead letters, and a gap stands in its place from now on.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn refuse(&mut self, seq: Seq, reason: &str) -> Result<(), OutboxError> {
        let known = seq.epoch == self.epoch && (self.oldest(seq.lane)..self.next(seq.lane)).contains(&seq.number);
        if !known {
            return Ok(());
        }
        for record in self.read(seq.lane, seq.number, 1, usize::MAX)? {
            if let Record::Gap(Gap { reason: GapReason::Refused, .. }) = record {
                return Ok(());
            }
            self.bury(seq, &record, reason)?;
        }
        let gap = gap(seq.number..seq.number + 1, GapReason::Refused);
        self.append_rows(vec![(record_key(b'k', seq.lane, seq.number), encode(&gap)?)], &[])?;
        self.carried.insert((seq.lane, seq.number));
        self.counters.refused += 1;
        Ok(())
    }

    fn bury(&self, seq: Seq, record: &Record, reason: &str) -> Result<(), OutboxError> {
        let name = format!("{:016x}-{}-{:020}.json", seq.epoch.0, seq.lane.as_str(), seq.number);
        let path = self.dead_letters.join(name);
        let letter = serde_json::json!({ "reason": reason, "record": record });
        let written = fs::create_dir_all(&self.dead_letters)
            .and_then(|()| fs::write(&path, letter.to_string()))
            .and_then(|()| fs::File::open(&path)?.sync_all())
            .and_then(|()| remove_oldest(&self.dead_letters));
        written.map_err(|source| OutboxError::DeadLetter { path, source })
    }

    /// What waits for a receipt.
    pub fn backlog(&mut self) -> Backlog {
        let records = self.lanes.iter().map(|lane| lane.next - lane.oldest).sum();
        let bytes = self
            .spans
            .values()
            .flat_map(|spans| spans.iter().zip(&self.lanes))
            .map(|(span, lane)| {
                let held = span.next.saturating_sub(span.first.max(lane.oldest));
                span.bytes.saturating_mul(held) / (span.next - span.first).max(1)
            })
            .sum();
        Backlog { records, bytes, oldest_at: self.oldest_at() }
    }

    fn oldest_at(&mut self) -> Option<Timestamp> {
        let lane = Lane::ALL.into_iter().rev().find(|lane| self.oldest(*lane) < self.next(*lane))?;
        let oldest = self.oldest(lane);
        if let Some((l, number, at)) = self.oldest_at
            && (l, number) == (lane, oldest)
        {
            return at;
        }
        let records = self.read(lane, oldest, 16, 64 * 1_024).unwrap_or_default();
        let at = records.iter().find_map(time_of);
        self.oldest_at = Some((lane, oldest, at));
        at
    }
}

enum Place {
    /// Under `k` in this generation.
    Carried(u64),
    /// Under `r` in this generation, with the others up to this number.
    Generation(u64, u64),
    Nowhere,
}

struct Taken {
    records: Vec<Record>,
    records_max: usize,
    bytes: usize,
    bytes_max: usize,
}

impl Taken {
    fn has_room(&self) -> bool {
        self.records.len() < self.records_max && self.bytes < self.bytes_max
    }

    /// False, and not taken, if it is over the limit and not the first.
    fn push(&mut self, record: Record, bytes: usize) -> bool {
        if !self.records.is_empty() && self.bytes.saturating_add(bytes) > self.bytes_max {
            self.bytes = self.bytes_max;
            return false;
        }
        self.bytes = self.bytes.saturating_add(bytes);
        self.records.push(record);
        true
    }

    fn is_cut(&self) -> bool {
        self.bytes >= self.bytes_max
    }
}

fn time_of(record: &Record) -> Option<Timestamp> {
    match record {
        Record::Summary(summary) => Some(summary.start),
        Record::Event(event) => Some(event.at),
        Record::Catalog(_) | Record::Gap(_) => None,
    }
}

fn remove_oldest(dir: &Path) -> std::io::Result<()> {
    let mut letters = fs::read_dir(dir)?
        .map(|entry| entry.and_then(|entry| Ok((entry.metadata()?.modified()?, entry.path()))))
        .collect::<std::io::Result<Vec<_>>>()?;
    letters.sort();
    let excess = letters.len().saturating_sub(DEAD_LETTERS_MAX);
    letters[..excess].iter().try_for_each(|(_, path)| fs::remove_file(path))
}
