//! Numbers without a record: what is delivered in their place.

use std::ops::Range;

use gemba_shared::{
    message::Lane,
    telemetry::{GapReason, Record},
};

use super::{Outbox, OutboxError, gap, index, standing};

/// What a gap takes in a batch.
const GAP_BYTES: usize = 16;

impl Outbox {
    /// What is delivered for these numbers, which no generation has: for each of them a gap, or what stands in its place.
    pub(super) fn tell_missing(
        &mut self,
        lane: Lane,
        missing: Range<u64>,
        most: usize,
    ) -> Result<Vec<(Record, usize)>, OutboxError> {
        let base = self.life().base[index(lane)];
        let mut damaged = 0;
        let mut told: Vec<(Record, usize)> = Vec::new();
        for number in missing.clone().take(most) {
            if let Some(instead) = self.instead(lane, number)? {
                told.push(instead);
                continue;
            }
            let reason = self.reason(lane, number);
            if reason == GapReason::Damaged && number >= self.damaged_to[index(lane)] {
                self.damaged_to[index(lane)] = number + 1;
                damaged += 1;
            }
            told.push((gap(number - base..number - base + 1, reason), GAP_BYTES));
        }
        if damaged > 0 {
            self.counters.damaged += damaged;
            let first = missing.start - base;
            tracing::error!(lane = lane.as_str(), first, count = damaged, "records of the outbox are lost");
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

    fn reason(&self, lane: Lane, number: u64) -> GapReason {
        self.contents
            .values()
            .find(|contents| contents.spans[index(lane)].numbers().contains(&number))
            .map_or(GapReason::Damaged, |contents| contents.level.reason(lane, &contents.spans[index(lane)], number))
    }
}
