//! The uplink's side of the outbox: reading records, and letting them go.

use std::{fs, ops::ControlFlow, path::Path};

use gemba_shared::{
    message::{Epoch, Lane, Seq},
    telemetry::{GapReason, Record, Timestamp},
};

use super::{
    Backlog, DEAD_LETTERS_MAX, IDLE_BYTES, Life, Outbox, OutboxError, Row, blocks, encode, gap, index, standing,
};
use crate::generations::{Found, StoreError};

/// How many numbers beyond those that were read are taken for sent, so that this is noted seldom.
const SENT_AHEAD: u64 = 16_384;

impl Outbox {
    /// The records of a lane from number `from` on, to be sent: at most `records_max`, and of at most `bytes_max` encoded bytes,
    /// but at least one if there is one. Empty if `from` is older than [`Outbox::oldest`] or there is none yet.
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
        let from = from.saturating_add(self.life().base[index(lane)]);
        let records = self.peek(lane, from, records_max, bytes_max)?;
        let end = from + records.len() as u64;
        if end > self.sent[index(lane)] && !records.is_empty() {
            self.sent[index(lane)] = end + SENT_AHEAD;
            self.note();
        }
        Ok(records)
    }

    /// The same by the number inside, and not to be sent.
    pub(super) fn peek(
        &mut self,
        lane: Lane,
        from: u64,
        records_max: usize,
        bytes_max: usize,
    ) -> Result<Vec<Record>, OutboxError> {
        let mut taken = Taken { records: Vec::new(), records_max, bytes: 0, bytes_max };
        let end = self.life_end(lane);
        if from < self.lanes[index(lane)].oldest {
            return Ok(taken.records);
        }
        let mut number = from;
        while number < end && taken.has_room() {
            let (mut found, until) = self.find(lane, number, end, &taken)?;
            if found.is_empty() {
                let room = taken.records_max - taken.records.len();
                found = self.tell_missing(lane, number..until, room)?;
            }
            for (record, bytes) in found {
                if !taken.push(record, bytes) {
                    return Ok(taken.records);
                }
                number += 1;
            }
        }
        Ok(taken.records)
    }

    /// Consecutive records from this number on, or how far none is there.
    fn find(&mut self, lane: Lane, number: u64, end: u64, taken: &Taken) -> Result<(Run, u64), OutboxError> {
        let next_replaced = self.replaced.range((lane, number)..(lane, end)).next().map_or(end, |(_, n)| *n);
        if next_replaced == number {
            return Ok((Vec::new(), number + 1));
        }
        let spans = self.contents.iter().map(|(ordinal, contents)| (*ordinal, contents.spans[index(lane)]));
        let (mut holder, mut nearest) = (None, next_replaced);
        for (ordinal, span) in spans {
            if span.numbers().contains(&number) {
                holder = Some((ordinal, span));
            } else if span.first > number && !span.numbers().is_empty() {
                nearest = nearest.min(span.first);
            }
        }
        let Some((ordinal, span)) = holder else { return Ok((Vec::new(), nearest)) };
        let until = span.next.min(next_replaced);
        if number >= span.filled {
            return Ok((Vec::new(), until));
        }
        self.find_in(ordinal, lane, number, span.filled.min(until), until, taken)
    }

    fn find_in(
        &mut self,
        ordinal: u64,
        lane: Lane,
        number: u64,
        end: u64,
        until: u64,
        taken: &Taken,
    ) -> Result<(Run, u64), OutboxError> {
        let mut found = Vec::new();
        let mut bytes = taken.bytes;
        // Where the first block behind begins, if none has the number.
        let mut nearest = until;
        let scanned = self.floor(ordinal, lane, number).and_then(|from| {
            self.generations.scan(ordinal, &from, |key, value| {
                let at = blocks::parse_key(key).filter(|(l, first)| *l == lane && *first < end);
                let Some((_, first)) = at else { return ControlFlow::Break(()) };
                let next = number + found.len() as u64;
                let records = match value {
                    Found::Intact(block) => blocks::unpack(&block).unwrap_or_default(),
                    Found::Damaged => Vec::new(),
                };
                if first + records.len() as u64 <= next {
                    return ControlFlow::Continue(());
                }
                if first > next {
                    nearest = first;
                    return ControlFlow::Break(());
                }
                for (record, at) in records.into_iter().zip(first..) {
                    if (next..end).contains(&at) {
                        bytes = bytes.saturating_add(record.1);
                        found.push(record);
                    }
                }
                let is_enough = found.len() + taken.records.len() >= taken.records_max || bytes >= taken.bytes_max;
                if is_enough { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })
        });
        match scanned {
            Ok(()) => Ok((found, nearest)),
            Err(StoreError::Database { path, reason }) => {
                tracing::error!(path = %path.display(), reason, "a generation of the outbox cannot be read");
                self.generations.probe()?;
                if self.generations.newest().is_some_and(|(newest, _)| newest == ordinal) {
                    self.roll()?;
                }
                self.generations.quarantine(ordinal)?;
                self.contents.remove(&ordinal);
                // Found again as missing.
                Ok((Vec::new(), until))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The key of the block that has this number, if one has it.
    fn floor(&mut self, ordinal: u64, lane: Lane, number: u64) -> Result<Vec<u8>, StoreError> {
        let key = blocks::key(lane, number);
        let floor = self.generations.floor(ordinal, &key)?;
        Ok(floor.filter(|floor| blocks::parse_key(floor).is_some_and(|(l, _)| l == lane)).unwrap_or(key))
    }

    /// The cloud has everything of this lane through this number; gives how many records that lets go. Nothing happens for
    /// another epoch, or for what was released before.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn release(&mut self, epoch: Epoch, lane: Lane, through: u64) -> Result<u64, OutboxError> {
        if epoch != self.epoch() {
            return Ok(0);
        }
        let end = self.life_end(lane);
        let oldest = through.saturating_add(self.life().base[index(lane)]).saturating_add(1).min(end);
        let state = &mut self.lanes[index(lane)];
        let released = oldest.saturating_sub(state.oldest);
        if released == 0 {
            return Ok(0);
        }
        state.oldest = oldest;
        self.replaced.retain(|(l, number)| *l != lane || *number >= oldest);
        self.counters.released += released;
        self.end_life();
        self.delete_released();
        let is_idle = self.lanes.iter().all(|lane| lane.oldest == lane.next);
        if is_idle && self.generations.newest_bytes() > IDLE_BYTES && self.generations.probe().is_ok() {
            self.roll()?;
        }
        Ok(released)
    }

    /// Goes on to the next epoch when everything of the present one is delivered.
    fn end_life(&mut self) {
        let is_over = |next: &Life| self.lanes.iter().zip(next.base).all(|(lane, base)| lane.oldest > base);
        if self.lives.get(1).is_some_and(is_over) {
            self.lives.remove(0);
            self.note();
        }
    }

    pub(super) fn delete_released(&mut self) {
        let lanes = &self.lanes;
        let is_released = |ordinal: &u64| {
            let contents = self.contents.get(ordinal).copied().unwrap_or_default();
            contents.spans.iter().zip(lanes).all(|(span, lane)| span.first == span.next || span.next <= lane.oldest)
        };
        let released: Vec<u64> = self.generations.closed().keys().copied().filter(is_released).collect();
        if released.is_empty() {
            return;
        }
        // Otherwise a crash now would make it look as if what is deleted were lost.
        self.note();
        for ordinal in released {
            self.contents.remove(&ordinal);
            self.generations.delete(ordinal);
        }
    }

    /// The cloud will never take this record: it is written to the dead letters, and a gap stands in its place from now on.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn refuse(&mut self, seq: Seq, reason: &str) -> Result<(), OutboxError> {
        let (lane, base) = (seq.lane, self.life().base[index(seq.lane)]);
        let number = seq.number.saturating_add(base);
        let known =
            seq.epoch == self.epoch() && (self.lanes[index(lane)].oldest..self.life_end(lane)).contains(&number);
        if !known || self.replaced.contains(&(lane, number)) {
            return Ok(());
        }
        for record in self.peek(lane, number, 1, usize::MAX)? {
            self.bury(seq, &record, reason)?;
        }
        let gap = gap(seq.number..seq.number + 1, GapReason::Refused);
        self.replace(vec![(standing::replaced_key(lane, number), encode(&gap)?)])?;
        self.counters.refused += 1;
        Ok(())
    }

    /// Writes what is delivered in records' places.
    pub(super) fn replace(&mut self, rows: Vec<Row>) -> Result<(), OutboxError> {
        let Some((newest, _)) = self.generations.newest() else { return Err(StoreError::NoGeneration.into()) };
        let contents = self.contents.get(&newest).copied().unwrap_or_else(|| super::begin(&self.lanes));
        let places: Vec<_> = rows.iter().filter_map(|(key, _)| standing::parse_replaced_key(key)).collect();
        self.write(rows, &[], self.lanes, newest, contents)?;
        self.replaced.extend(places);
        Ok(())
    }

    /// Everything that is not receipted goes under a new epoch, behind the machines' latest catalogs: for a cloud that has
    /// numbers of this epoch which this outbox never gave out, because an old copy of the disk was put back.
    ///
    /// What was on its way is delivered again; the cloud knows summaries and anomalies by their machine and time.
    ///
    /// # Errors
    /// If the disk fails: then nothing has changed.
    pub fn renew_epoch(&mut self) -> Result<Epoch, OutboxError> {
        let epoch = Epoch(getrandom::u64().map_err(OutboxError::Random)?);
        let catalogs = self.standing.catalogs()?;
        let before = (self.lives.clone(), self.lanes);
        let mut rows = Vec::new();
        for lane in Lane::ALL {
            let oldest = &mut self.lanes[index(lane)].oldest;
            *oldest = oldest.saturating_sub(catalogs.len() as u64).max(1);
            for (catalog, number) in catalogs.iter().zip(*oldest..) {
                rows.push((standing::replaced_key(lane, number), encode(catalog)?));
            }
        }
        let base = self.lanes.map(|lane| lane.oldest - 1);
        match self.lives.first_mut() {
            Some(life) => *life = Life { epoch, base },
            None => self.lives.push(Life { epoch, base }),
        }
        if let Err(error) = self.replace(rows) {
            (self.lives, self.lanes) = before;
            return Err(error);
        }
        tracing::warn!(epoch = epoch.0, catalogs = catalogs.len(), "what waits for delivery goes under a new epoch");
        Ok(epoch)
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
        let records = self.lanes.iter().map(|lane| lane.next.saturating_sub(lane.oldest)).sum();
        let bytes = self
            .contents
            .values()
            .flat_map(|contents| contents.spans.iter().zip(&self.lanes))
            .map(|(span, lane)| {
                let held = span.next.saturating_sub(span.first.max(lane.oldest));
                span.bytes.saturating_mul(held) / (span.next - span.first).max(1)
            })
            .sum();
        Backlog { records, bytes, oldest_at: self.oldest_at() }
    }

    fn oldest_at(&mut self) -> Option<Timestamp> {
        let oldest = |lane: Lane| self.lanes[index(lane)].oldest;
        let lane = Lane::ALL.into_iter().rev().find(|lane| oldest(*lane) < self.life_end(*lane))?;
        let oldest = oldest(lane);
        if let Some((l, number, at)) = self.oldest_at
            && (l, number) == (lane, oldest)
        {
            return at;
        }
        let records = self.peek(lane, oldest, 16, 64 * 1_024).unwrap_or_default();
        let at = records.iter().find_map(time_of);
        self.oldest_at = Some((lane, oldest, at));
        at
    }
}

/// Consecutive records with their sizes.
type Run = Vec<(Record, usize)>;

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

    /// False, and not taken, if it is over a limit and not the first.
    fn push(&mut self, record: Record, bytes: usize) -> bool {
        let is_over = self.bytes.saturating_add(bytes) > self.bytes_max || self.records.len() >= self.records_max;
        if !self.records.is_empty() && is_over {
            return false;
        }
        self.bytes = self.bytes.saturating_add(bytes);
        self.records.push(record);
        true
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
