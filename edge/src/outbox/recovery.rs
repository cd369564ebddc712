//! Opening an outbox: what is whole is taken as it is; what is damaged is left where it is, and its numbers are known to be
//! missing. Nothing but the newest generations is read: the others show their damage when they are delivered.
//!
//! No number is given out twice. What was given out is noted in both places, `standing` first; where neither can be read, or where
//! the latest states are lost and machines may name their sensors in another order, the next records go under a new epoch.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::ControlFlow,
    path::Path,
};

use gemba_shared::message::Epoch;

use super::{
    Contents, FIRST, LIVES_MAX, LaneState, Life, Opened, Outbox, OutboxCounters, OutboxError, OutboxSettings, Tail,
    blocks, index,
    standing::{self, Standing},
};
use crate::generations::{Damage, Found, Generation, Generations};

/// What the records' generations tell.
struct Known {
    /// Of the latest append.
    tail: Option<Tail>,
    contents: BTreeMap<u64, Contents>,
    /// The highest numbers that any of them knows.
    next: [u64; 2],
    /// How far any of them says that records may have been sent.
    sent: [u64; 2],
}

/// What must be written before anything is appended.
struct Mends {
    /// A new generation of what stands, with these rows.
    standing: Option<standing::Rows>,
    /// A new generation of records.
    records: bool,
}

impl Outbox {
    /// Opens the outbox in `dir`, or makes a new one there. A disk that is full or read-only is no error where nothing has to be
    /// mended: what is there can be read and released, and appends fail until it takes data again.
    ///
    /// # Errors
    /// If another process has it open, or the disk fails. Damage is no error: it is mended and told in [`Opened`].
    pub fn open(dir: &Path, settings: OutboxSettings) -> Result<(Self, Opened), OutboxError> {
        let (mut this, opened, mends) = Self::take_stock(dir, settings, false)?;
        if opened.states_lost {
            this.begin_life()?;
        }
        if let Some(rows) = mends.standing {
            let tail = standing::Tail { append: this.append, lives: this.lives.clone(), lanes: this.lanes };
            this.standing.begin(&rows, tail)?;
        }
        if this.generations.newest().is_none() || opened.states_lost || mends.records {
            this.roll()?;
        }
        this.delete_released();
        Ok((this, opened))
    }

    /// Opens an outbox for people to look at: nothing on the disk is changed, and nothing may be appended or released.
    ///
    /// # Errors
    /// As [`Outbox::open`].
    pub fn open_to_look(dir: &Path, settings: OutboxSettings) -> Result<(Self, Opened), OutboxError> {
        let (this, opened, _) = Self::take_stock(dir, settings, true)?;
        Ok((this, opened))
    }

    fn take_stock(
        dir: &Path,
        settings: OutboxSettings,
        looks_only: bool,
    ) -> Result<(Self, Opened, Mends), OutboxError> {
        let open = if looks_only { Generations::open_to_look } else { Generations::open };
        let (mut generations, mut damage) = open(&dir.join("generations"), settings.generations)?;
        set_aside_unreadable(&mut generations, &mut damage)?;
        let (mut standing, start) = Standing::open(&dir.join("standing"), settings.generations, looks_only)?;
        let known = know(&mut generations, &damage);
        let newest = generations.newest().map(|(ordinal, _)| ordinal);

        let is_new = known.tail.is_none() && start.tail.is_none();
        let behind = |known: &Tail, standing: &standing::Tail| standing.append > known.append + 1;
        let records_lost = damage.newest_lost
            || newest.is_none()
            || match (&known.tail, &start.tail) {
                (Some(known), Some(standing)) => behind(known, standing),
                (None, _) => true,
                (Some(_), None) => false,
            };
        let append = known.tail.as_ref().map_or(0, |tail| tail.append);
        let states_lost =
            !is_new && (start.lost || start.tail.as_ref().is_none_or(|standing| standing.append < append));
        let rows = standing.load(if records_lost { u64::MAX } else { append })?;
        let states_lost = states_lost || !is_new && rows.damaged > 0;

        let mut this = Self {
            settings,
            generations,
            standing,
            dead_letters: dir.join("dead-letters"),
            append,
            lives: Vec::new(),
            lanes: [LaneState { oldest: FIRST, next: FIRST }; 2],
            contents: known.contents,
            sent: known.sent,
            failed: false,
            replaced: BTreeSet::new(),
            damaged_to: [0; 2],
            oldest_at: None,
            counters: OutboxCounters::default(),
        };
        this.take_up(known.tail, known.next, start.tail, records_lost)?;
        this.replaced = rows.rows.keys().filter_map(|key| standing::parse_replaced_key(key)).collect();
        this.replaced.retain(|(lane, number)| *number >= this.lanes[index(*lane)].oldest);

        let mut opened = Opened { is_new, states_lost, states: rows.states(), ..Opened::default() };
        opened.quarantined = damage.quarantined.into_iter().map(|(path, _)| path).chain(start.quarantined).collect();
        opened.lost_records = this.missing_in(newest)? + this.missing_between();
        let standing = (is_new || states_lost || this.standing.is_closed()).then_some(rows);
        Ok((this, opened, Mends { standing, records: records_lost }))
    }

    /// Where things stand, by what both places know.
    fn take_up(
        &mut self,
        known: Option<Tail>,
        next: [u64; 2],
        standing: Option<standing::Tail>,
        records_lost: bool,
    ) -> Result<(), OutboxError> {
        if let Some(tail) = known {
            (self.lives, self.lanes) = (tail.lives, tail.lanes);
        }
        if let (Some(tail), true) = (standing, records_lost) {
            if tail.append >= self.append {
                self.lives.clone_from(&tail.lives);
            }
            if self.append == 0 {
                self.lanes = tail.lanes;
            }
            self.append = self.append.max(tail.append);
            for (lane, told) in self.lanes.iter_mut().zip(tail.lanes) {
                lane.next = lane.next.max(told.next);
            }
        }
        for (lane, next) in self.lanes.iter_mut().zip(next) {
            lane.next = lane.next.max(next);
        }
        if self.lives.is_empty() {
            self.lives.push(Life { epoch: random_epoch()?, base: self.lanes.map(|lane| lane.oldest - 1) });
        }
        Ok(())
    }

    /// The next records go under a new epoch, when those of the present one are delivered.
    fn begin_life(&mut self) -> Result<(), OutboxError> {
        let life = Life { epoch: random_epoch()?, base: self.lanes.map(|lane| lane.next - 1) };
        if self.lanes.iter().all(|lane| lane.oldest == lane.next) {
            self.lives.clear();
        }
        if self.lives.len() >= LIVES_MAX {
            tracing::error!("too many epochs wait for delivery: the new records go under the last of them");
            return Ok(());
        }
        self.lives.push(life);
        Ok(())
    }

    /// How many records of the generation that was the newest are not there.
    fn missing_in(&mut self, ordinal: Option<u64>) -> Result<u64, OutboxError> {
        let Some(ordinal) = ordinal else { return Ok(0) };
        let contents = self.contents.get(&ordinal).copied().unwrap_or_default();
        let mut there = 0;
        self.generations.scan(ordinal, b"r", |key, found| {
            if let (Some((lane, first)), Found::Intact(block)) = (blocks::parse_key(key), found) {
                let span = contents.spans[index(lane)];
                there += (first + blocks::count(&block)).min(span.filled).saturating_sub(first.max(span.first));
            }
            ControlFlow::Continue(())
        })?;
        let promised: u64 = contents.spans.iter().map(|span| span.filled - span.first).sum();
        Ok(promised.saturating_sub(there))
    }

    /// How many numbers no generation has.
    fn missing_between(&self) -> u64 {
        let mut missing = 0;
        for (lane, state) in self.lanes.iter().enumerate() {
            let mut spans: Vec<_> = self.contents.values().map(|contents| contents.spans[lane].numbers()).collect();
            spans.sort_by_key(|span| span.start);
            let mut at = state.oldest;
            for span in spans {
                missing += span.start.saturating_sub(at.max(state.oldest));
                at = at.max(span.end);
            }
            missing += state.next.saturating_sub(at);
        }
        missing.saturating_sub(self.replaced.len() as u64)
    }
}

fn random_epoch() -> Result<Epoch, OutboxError> {
    Ok(Epoch(getrandom::u64().map_err(OutboxError::Random)?))
}

fn set_aside_unreadable(generations: &mut Generations, damage: &mut Damage) -> Result<(), OutboxError> {
    let is_readable = |generation: &Generation| generation.tail.as_deref().is_some_and(|tail| parse(tail).is_some());
    let unreadable: Vec<u64> =
        generations.closed().iter().filter(|(_, generation)| !is_readable(generation)).map(|(o, _)| *o).collect();
    for ordinal in unreadable {
        tracing::error!(ordinal, "nothing says what a generation of the outbox holds: it is set aside");
        damage.quarantined.push((generations.quarantine(ordinal)?, Generation { tail: None, bytes: 0 }));
    }
    Ok(())
}

fn know(generations: &mut Generations, damage: &Damage) -> Known {
    let mut tails: Vec<(Option<u64>, Tail)> = Vec::new();
    for (&ordinal, generation) in generations.closed() {
        tails.extend(generation.tail.as_deref().and_then(parse).map(|tail| (Some(ordinal), tail)));
    }
    tails.extend(generations.newest().and_then(|(ordinal, tail)| Some((Some(ordinal), parse(tail)?))));
    let aside = damage.quarantined.iter().filter_map(|(_, generation)| generation.tail.as_deref().and_then(parse));
    tails.extend(aside.map(|tail| (None, tail)));

    // What a generation was made of may still be there, after a crash.
    let replaced: Vec<(u64, u64, u64)> = tails
        .iter()
        .filter_map(|(ordinal, tail)| tail.replaces.and_then(|(first, last)| Some(((*ordinal)?, first, last))))
        .collect();
    for (by, first, last) in replaced {
        let gone: Vec<u64> =
            generations.closed().range(first..=last).map(|(o, _)| *o).filter(|ordinal| *ordinal != by).collect();
        for ordinal in gone {
            let covered = |span: &[super::Span; 2], of: &[super::Span; 2]| {
                span.iter().zip(of).all(|(span, of)| of.first <= span.first && span.next <= of.next)
            };
            let spans =
                |wanted: u64| tails.iter().find(|(o, _)| *o == Some(wanted)).map(|(_, tail)| tail.contents.spans);
            if let (Some(old), Some(new)) = (spans(ordinal), spans(by))
                && covered(&old, &new)
            {
                generations.delete(ordinal);
                tails.retain(|(o, _)| *o != Some(ordinal));
            }
        }
    }
    let (mut next, mut sent) = ([0; 2], [FIRST; 2]);
    for (_, tail) in &tails {
        for (sent, told) in sent.iter_mut().zip(tail.sent) {
            *sent = told.max(*sent);
        }
        for ((next, lane), span) in next.iter_mut().zip(tail.lanes).zip(tail.contents.spans) {
            *next = (*next).max(lane.next).max(span.next);
        }
    }
    let contents = tails.iter().filter_map(|(ordinal, tail)| Some(((*ordinal)?, tail.contents))).collect();
    let tail = tails.into_iter().map(|(_, tail)| tail).max_by_key(|tail| tail.append);
    Known { tail, contents, next, sent }
}

fn parse(tail: &[u8]) -> Option<Tail> {
    postcard::from_bytes(tail).ok()
}

#[cfg(test)]
mod tests;
