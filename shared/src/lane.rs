//! The rule of a lane at its receiving end: which records of a batch are new, which will never come, and whether they
//! continue what is stored.

use crate::{message::Batch, telemetry::Record};

/// The largest record number; far beyond what an outbox can count to, and it fits the database.
pub const NUMBER_MAX: u64 = i64::MAX as u64 / 2;

/// How far a lane is stored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stored {
    /// Everything through this number is settled: stored, refused, or told as a gap.
    pub through: u64,
    /// The digest of the record `through`; `None` where there is none that could be compared.
    pub tail: Option<u32>,
}

/// What is to be done with a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// Numbers that will never come: the gateway no longer holds them.
    pub gap: Option<(u64, u64)>,
    pub take: Take,
    /// How far the lane is stored afterwards.
    pub stored: Stored,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Take {
    /// All but the batch's first records, which are known already.
    Behind(usize),
    /// Nothing: something before it is missing.
    Early,
    /// Nothing: the gateway has another record under a number that is stored. Its data is an old copy, or there are two
    /// of it. The receipt tells it, and it begins a new epoch.
    Diverged,
}

/// Where a batch leads a lane.
#[must_use]
pub fn step(stored: Stored, batch: &Batch) -> Step {
    let (first, count) = (batch.seq.number, batch.records.len());
    // What is in the batch has come, whatever the gateway dropped since.
    let reached = batch.oldest.min(first);
    let gap = (reached > stored.through.saturating_add(1)).then(|| (stored.through + 1, reached - 1));
    let stored = gap.map_or(stored, |(_, last)| Stored { through: last, tail: None });
    if first > stored.through.saturating_add(1) {
        return Step { gap, take: Take::Early, stored };
    }
    let skip = usize::try_from(stored.through + 1 - first).unwrap_or(usize::MAX).min(count);
    let before = match skip.checked_sub(1) {
        None => batch.before,
        Some(last) if first + last as u64 == stored.through => batch.records.get(last).and_then(comparable),
        Some(_) => None,
    };
    if let (Some(ours), Some(theirs)) = (stored.tail, before)
        && ours != theirs
    {
        return Step { gap, take: Take::Diverged, stored };
    }
    let after = match batch.records.last() {
        Some(last) if skip < count => Stored { through: first + count as u64 - 1, tail: Some(last.digest()) },
        _ => stored,
    };
    Step { gap, take: Take::Behind(skip), stored: after }
}

/// The digest of a record that a gateway holds, if it can be compared with what is stored: a gap may stand in the place
/// of what was damaged or refused since.
#[must_use]
pub fn comparable(record: &Record) -> Option<u32> {
    (!matches!(record, Record::Gap(_))).then(|| record.digest())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ids::MachineId,
        message::{Epoch, Lane, Seq},
        telemetry::{Catalog, Gap, GapReason},
    };

    /// The record `number` of a life of the outbox.
    fn record(life: u32, number: u64) -> Record {
        Record::Catalog(Catalog {
            machine: MachineId::new(&format!("m-{life}-{number}")).unwrap(),
            revision: 1,
            step_ms: 1,
            interval_ms: 1,
            sensors: Vec::new(),
            model: String::new(),
        })
    }

    fn batch(life: u32, first: u64, count: u64, oldest: u64) -> Batch {
        Batch {
            seq: Seq { epoch: Epoch(1), lane: Lane::Summaries, number: first },
            oldest,
            before: (first > oldest).then(|| record(life, first - 1).digest()),
            records: (first..first + count).map(|number| record(life, number)).collect(),
        }
    }

    fn stored(life: u32, through: u64) -> Stored {
        Stored { through, tail: (through > 0).then(|| record(life, through).digest()) }
    }

    #[track_caller]
    fn check(through: u64, (first, count, oldest): (u64, u64, u64), expected: (Option<(u64, u64)>, Take, u64)) {
        let step = step(stored(1, through), &batch(1, first, count, oldest));
        assert_eq!((step.gap, step.take, step.stored.through), expected);
        if let Take::Behind(skip) = step.take
            && skip < count as usize
        {
            assert_eq!(step.stored, stored(1, first + count - 1));
        }
    }

    #[test]
    fn takes_what_follows_skips_what_is_known_and_waits_for_what_is_missing() {
        // the next, a resend, an overlap, a hole
        check(0, (1, 3, 1), (None, Take::Behind(0), 3));
        check(3, (4, 2, 1), (None, Take::Behind(0), 5));
        check(5, (4, 2, 1), (None, Take::Behind(2), 5));
        check(4, (4, 2, 1), (None, Take::Behind(1), 5));
        check(9, (4, 2, 1), (None, Take::Behind(2), 9));
        check(3, (5, 2, 1), (None, Take::Early, 3));
        check(3, (5, 2, 4), (None, Take::Early, 3));
    }

    #[test]
    fn what_the_gateway_no_longer_holds_is_a_gap() {
        check(3, (10, 2, 10), (Some((4, 9)), Take::Behind(0), 11));
        check(0, (10, 2, 10), (Some((1, 9)), Take::Behind(0), 11));
        // What is here is not missing, though the gateway holds it no more.
        check(3, (8, 4, 10), (Some((4, 7)), Take::Behind(0), 11));
        check(3, (20, 1, 10), (Some((4, 9)), Take::Early, 9));
        check(11, (10, 2, 20), (None, Take::Behind(2), 11));
    }

    #[test]
    fn another_life_of_the_outbox_is_not_taken_for_the_one_that_is_stored() {
        let take = |batch| step(stored(1, 5), &batch).take;
        assert_eq!(take(batch(2, 6, 2, 1)), Take::Diverged, "it follows another record");
        assert_eq!(take(batch(2, 4, 4, 1)), Take::Diverged, "it holds another record");
        assert_eq!(take(batch(2, 6, 2, 6)), Take::Behind(0), "nothing can be compared");
        assert_eq!(take(batch(2, 1, 3, 1)), Take::Behind(3), "the receipt tells");
        let mut damaged = batch(1, 4, 4, 1);
        damaged.records[1] = Record::Gap(Gap { first: 5, last: 5, count: 1, reason: GapReason::Damaged });
        assert_eq!(take(damaged), Take::Behind(2), "a gap is no other record");
    }
}
