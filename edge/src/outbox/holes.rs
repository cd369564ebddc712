//! Numbers without a record: what is delivered in their place.
//!
//! A run of them is told in pieces that end at multiples of [`PIECE`]: the first number of a piece is delivered as a [`Gap`] of the
//! whole piece, the others as gaps that count 0, which the cloud passes over. So a run may be sent again from anywhere and
//! is counted once.

use std::ops::Range;

use gemba_shared::{
    message::Lane,
    telemetry::{Gap, GapReason, Record},
};

use super::{Outbox, OutboxError, index, standing};

/// A run of missing numbers is told in pieces of at most this many.
const PIECE: u64 = 256;
/// What a gap takes in a batch.
const GAP_BYTES: usize = 16;

impl Outbox {
    /// What is delivered for these numbers, which no generation has; `begins`: the number before the first has a record, or
    /// it is unknown (`None`).
    pub(super) fn tell_missing(
        &mut self,
        lane: Lane,
        missing: Range<u64>,
        begins: Option<bool>,
        most: usize,
    ) -> Result<Vec<(Record, usize)>, OutboxError> {
        let mut told: Vec<(Record, usize)> = Vec::new();
        let mut begins = begins.unwrap_or_else(|| !self.is_within_told(lane, missing.start));
        for number in missing.clone().take(most) {
            if let Some(instead) = self.instead(lane, number)? {
                told.push(instead);
                begins = true;
                continue;
            }
            let reason = self.reason(lane, number);
            let piece_end = (number / PIECE + 1) * PIECE;
            let is_first = begins || number.is_multiple_of(PIECE);
            let end = if is_first { self.run_end(lane, number, missing.end.min(piece_end), reason) } else { number };
            if is_first {
                self.told[index(lane)] = Some(number..end);
                if reason == GapReason::Damaged {
                    self.counters.damaged += end - number;
                    tracing::error!(
                        lane = lane.as_str(),
                        first = number,
                        count = end - number,
                        "records of the outbox are lost"
                    );
                }
            }
            let base = self.life().base[index(lane)];
            let last = if is_first { end - 1 } else { number };
            let gap = Gap { first: number - base, last: last - base, count: end - number, reason };
            told.push((Record::Gap(gap), GAP_BYTES));
            // The reason changes in the middle of a run where generations meet.
            begins = number + 1 < missing.end && self.reason(lane, number + 1) != reason;
        }
        Ok(told)
    }

    /// What is delivered in the place of this number, if anything is.
    fn instead(&mut self, lane: Lane, number: u64) -> Result<Option<(Record, usize)>, OutboxError> {
        let record = if self.replaced.contains(&(lane, number)) {
            let value = self.standing.get(&standing::replaced_key(lane, number))?;
            value.and_then(|value| postcard::from_bytes(&value).ok())
        } else if lane == Lane::Summaries {
            self.standing.catalog_at(number)?
        } else {
            None
        };
        Ok(record.map(|record| {
            let bytes = postcard::experimental::serialized_size(&record).unwrap_or(0);
            (record, bytes)
        }))
    }

    /// Whether this number was told within a piece that began before it.
    fn is_within_told(&self, lane: Lane, number: u64) -> bool {
        self.told[index(lane)].as_ref().is_some_and(|piece| piece.contains(&number) && piece.start != number)
    }

    /// Where the numbers from this one on end that are missing for the same reason.
    fn run_end(&self, lane: Lane, number: u64, end: u64, reason: GapReason) -> u64 {
        let other = self.replaced.range((lane, number)..(lane, end)).next().map_or(end, |(_, number)| *number);
        let known = self.standing.next_catalog(lane, number, other);
        (number + 1..known).find(|number| self.reason(lane, *number) != reason).unwrap_or(known)
    }

    fn reason(&self, lane: Lane, number: u64) -> GapReason {
        self.contents
            .values()
            .find(|contents| contents.spans[index(lane)].numbers().contains(&number))
            .map_or(GapReason::Damaged, |contents| contents.level.reason(lane, &contents.spans[index(lane)], number))
    }
}
