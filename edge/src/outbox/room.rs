//! Room on the disk: what goes, in which order, when there is too little.
//!
//! In steps, each of which writes one generation in place of some old ones: summaries that were never sent go into minutes, then
//! into ten minutes; then the oldest summaries are given up; at last the oldest events. Catalogs stay with the summaries
//! that are left. Thinned summaries get the first numbers of those they come from; the numbers behind are told as a
//! [`Gap`](gemba_shared::telemetry::Gap).

use std::ops::ControlFlow;

use gemba_shared::{
    message::Lane,
    telemetry::{GapReason, Record},
};
use serde::{Deserialize, Serialize};

use super::{
    BUDGET_GENERATIONS_MIN, Contents, Outbox, OutboxError, Span, Tail,
    blocks::{self, Packer},
    encode, index,
    thinning::Thinner,
};
use crate::generations::{Filler, Found, Generations, StoreError, room_left};

/// Generations that are thinned into one, with one append: what is written to make room must not hold the devices up for long.
const GROUP_MAX: usize = 3;

/// How far a generation was thinned or given up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) enum Level {
    #[default]
    Whole,
    Minutes,
    TenMinutes,
    /// Only events and catalogs are left.
    Events,
    Nothing,
}

impl Level {
    fn interval_ms(self) -> u32 {
        match self {
            Self::Whole | Self::Events | Self::Nothing => 0,
            Self::Minutes => 60_000,
            Self::TenMinutes => 600_000,
        }
    }

    /// Why there is no record of this number in a span.
    pub(super) fn reason(self, lane: Lane, span: &Span, number: u64) -> GapReason {
        match (self, lane) {
            (Self::Minutes | Self::TenMinutes, Lane::Summaries) if number >= span.filled => GapReason::Thinned,
            (Self::Events, Lane::Summaries) | (Self::Nothing, _) => GapReason::OverBudget,
            _ => GapReason::Damaged,
        }
    }
}

impl Outbox {
    /// Gives up what must go, a step with each append.
    ///
    /// # Errors
    /// If the disk fails, or has less room left than it should and nothing can go.
    pub(super) fn make_room(&mut self) -> Result<(), OutboxError> {
        let generation_bytes = self.settings.generations.generation_bytes;
        let budget = self.settings.budget_bytes.max(BUDGET_GENERATIONS_MIN * generation_bytes);
        let dir = self.dead_letters.parent().unwrap_or(&self.dead_letters);
        let low = match room_left(dir, self.settings.disk_free_min) {
            Ok(()) => None,
            Err(low @ StoreError::DiskLow { .. }) => Some(low),
            Err(error) => return Err(error.into()),
        };
        if self.disk_bytes() <= budget && low.is_none() {
            return Ok(());
        }
        match low {
            Some(low) if !self.give_way()? => Err(low.into()),
            Some(_) => Ok(()),
            None => {
                self.give_way()?;
                Ok(())
            }
        }
    }

    /// The next step; false if there is none.
    fn give_way(&mut self) -> Result<bool, OutboxError> {
        let mut closed: Vec<(u64, Contents)> =
            self.generations.closed().keys().filter_map(|o| Some((*o, *self.contents.get(o)?))).collect();
        closed.sort_by_key(|(_, contents)| contents.spans.map(|span| span.first));
        let summaries = index(Lane::Summaries);
        let never_sent = |contents: &Contents| contents.spans[summaries].first >= self.sent[summaries];
        for (from, to) in [(Level::Whole, Level::Minutes), (Level::Minutes, Level::TenMinutes)] {
            let fits = |contents: &Contents| contents.level == from && never_sent(contents);
            let group = neighbours(&closed, fits, GROUP_MAX);
            if !group.is_empty() {
                self.rewrite(&group, to)?;
                return Ok(true);
            }
        }
        for level in [Level::Events, Level::Nothing] {
            // The oldest that still has something, and what was given up before it.
            let Some(oldest) = closed.iter().position(|(_, contents)| contents.level < level) else { continue };
            let group = neighbours(&closed[..=oldest], |_| true, usize::MAX);
            let group = if group.last() == Some(&closed[oldest].0) { group } else { vec![closed[oldest].0] };
            self.rewrite(&group, level)?;
            return Ok(true);
        }
        Ok(false)
    }

    /// Writes one generation in place of these, which follow each other.
    fn rewrite(&mut self, group: &[u64], level: Level) -> Result<(), OutboxError> {
        let (Some(first), Some(last)) = (group.first(), group.last()) else { return Ok(()) };
        let contents = |ordinal: &u64| self.contents.get(ordinal).copied().unwrap_or_default();
        let (begin, end) = (contents(first), contents(last));
        let mut spans = begin.spans;
        for (span, last) in spans.iter_mut().zip(end.spans) {
            (span.next, span.bytes, span.filled) = (last.next, 0, span.first);
        }
        let replaced: Vec<(u64, Contents)> = group.iter().map(|ordinal| (*ordinal, contents(ordinal))).collect();
        let mut given_up = [0; 2];
        let mut tail = Tail {
            append: self.append,
            lives: self.lives.clone(),
            lanes: self.lanes,
            sent: self.sent,
            contents: Contents { spans, level },
            replaces: group.iter().min().copied().zip(group.iter().max().copied()),
        };
        let ordinal = self.generations.add_closed(|generations, filler| {
            let mut rewriter = Rewriter::new(spans, level);
            for (ordinal, contents) in &replaced {
                rewriter.take(generations, *ordinal, contents, filler)?;
            }
            tail.contents.spans = rewriter.finish(filler)?;
            given_up = rewriter.given_up;
            encode(&tail)
        })?;
        self.contents.insert(ordinal, tail.contents);
        for (ordinal, _) in replaced {
            self.contents.remove(&ordinal);
            self.generations.delete(ordinal);
        }
        let [events, summaries] = given_up;
        self.counters.events_over_budget += events;
        if level < Level::Events {
            self.counters.thinned += summaries;
            tracing::warn!(summaries, interval_ms = level.interval_ms(), "too little room: old summaries are thinned");
        } else {
            self.counters.over_budget += summaries;
            tracing::error!(summaries, events, "too little room: the oldest records are given up");
        }
        Ok(())
    }
}

/// The first of the generations that fit, and those that follow it without a hole.
fn neighbours(sorted: &[(u64, Contents)], fits: impl Fn(&Contents) -> bool, most: usize) -> Vec<u64> {
    let mut group: Vec<u64> = Vec::new();
    let mut next = None;
    for (ordinal, contents) in sorted {
        let follows = next.is_none_or(|next| next == contents.spans.map(|span| span.first));
        if fits(contents) && follows && group.len() < most {
            group.push(*ordinal);
            next = Some(contents.spans.map(|span| span.next));
        } else if !group.is_empty() {
            break;
        }
    }
    group
}

/// Writes what is left of some generations.
struct Rewriter {
    level: Level,
    spans: [Span; 2],
    packers: [Packer; 2],
    /// The number that each lane's next record has if it follows.
    next: [u64; 2],
    thinner: Thinner,
    given_up: [u64; 2],
}

impl Rewriter {
    fn new(spans: [Span; 2], level: Level) -> Self {
        let next = spans.map(|span| span.first);
        let packers = Lane::ALL.map(|lane| Packer::new(lane, next[index(lane)]));
        Self { level, spans, packers, next, thinner: Thinner::new(level.interval_ms()), given_up: [0; 2] }
    }

    fn take(
        &mut self,
        generations: &mut Generations,
        ordinal: u64,
        contents: &Contents,
        filler: &mut Filler<'_>,
    ) -> Result<(), OutboxError> {
        for lane in Lane::ALL {
            let span = contents.spans[index(lane)];
            let mut failed = Ok(());
            generations.scan(ordinal, &blocks::key(lane, span.first), |key, found| {
                let Some((_, first)) = blocks::parse_key(key).filter(|(l, _)| *l == lane) else {
                    return ControlFlow::Break(());
                };
                let records = match found {
                    Found::Intact(block) => blocks::unpack(&block).unwrap_or_default(),
                    Found::Damaged => Vec::new(),
                };
                for ((record, _), number) in records.into_iter().zip(first..) {
                    if (span.first..span.filled).contains(&number) && failed.is_ok() {
                        failed = self.record(lane, number, record, filler);
                    }
                }
                if failed.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })?;
            failed?;
        }
        Ok(())
    }

    fn record(&mut self, lane: Lane, number: u64, record: Record, filler: &mut Filler<'_>) -> Result<(), OutboxError> {
        match (record, self.level, lane) {
            (record, Level::Whole | Level::Minutes | Level::TenMinutes | Level::Events, Lane::Events) => {
                self.put(lane, number, &record, filler)
            }
            (Record::Summary(summary), Level::Minutes | Level::TenMinutes, Lane::Summaries) => {
                self.given_up[index(lane)] += 1;
                let complete = self.thinner.push(summary);
                complete.map_or(Ok(()), |summary| self.put_thinned(&Record::Summary(summary), filler))
            }
            (record @ Record::Catalog(_), Level::Minutes | Level::TenMinutes, Lane::Summaries) => {
                self.put_thinned(&record, filler)
            }
            // What may have been sent keeps its number.
            (record @ Record::Catalog(_), Level::Events, Lane::Summaries) => self.put(lane, number, &record, filler),
            _ => {
                self.given_up[index(lane)] += 1;
                Ok(())
            }
        }
    }

    fn put_thinned(&mut self, record: &Record, filler: &mut Filler<'_>) -> Result<(), OutboxError> {
        if matches!(record, Record::Summary(_)) {
            self.given_up[index(Lane::Summaries)] -= 1;
        }
        self.put(Lane::Summaries, self.next[index(Lane::Summaries)], record, filler)
    }

    fn put(&mut self, lane: Lane, number: u64, record: &Record, filler: &mut Filler<'_>) -> Result<(), OutboxError> {
        let value = encode(record)?;
        let packer = &mut self.packers[index(lane)];
        if number != self.next[index(lane)] {
            for (key, value) in std::mem::replace(packer, Packer::new(lane, number)).finish() {
                filler.put(&key, &value)?;
            }
        }
        self.next[index(lane)] = number + 1;
        self.spans[index(lane)].bytes += value.len() as u64;
        packer.push(&value);
        for (key, value) in packer.take() {
            filler.put(&key, &value)?;
        }
        Ok(())
    }

    fn finish(&mut self, filler: &mut Filler<'_>) -> Result<[Span; 2], OutboxError> {
        for summary in std::mem::replace(&mut self.thinner, Thinner::new(0)).finish() {
            self.put_thinned(&Record::Summary(summary), filler)?;
        }
        for lane in Lane::ALL {
            let span = &mut self.spans[index(lane)];
            let is_thinned = lane == Lane::Summaries && self.level.interval_ms() > 0;
            span.filled = if is_thinned { self.next[index(lane)] } else { span.next };
            for (key, value) in std::mem::replace(&mut self.packers[index(lane)], Packer::new(lane, 0)).finish() {
                filler.put(&key, &value)?;
            }
        }
        Ok(self.spans)
    }
}

#[cfg(test)]
mod tests;
