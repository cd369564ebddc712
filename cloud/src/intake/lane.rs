//! The rule of a lane: which records of a batch are new. No I/O.

/// The largest record number; far beyond what an outbox can count to, and it fits the database.
pub const NUMBER_MAX: u64 = i64::MAX as u64 / 2;

/// What is to be done with a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// Numbers that will never come: the gateway no longer holds them.
    pub gap: Option<(u64, u64)>,
    /// How many of the batch's first records are known already; `None`: it is not taken, something before it is missing.
    pub skip: Option<usize>,
    /// Everything through this number is settled afterwards.
    pub through: u64,
}

/// Where a batch of `count` records from `first` leads a lane that is stored through `through`, when the gateway
/// holds nothing older than `oldest`.
#[must_use]
pub fn step(through: u64, first: u64, count: usize, oldest: u64) -> Step {
    // What is in the batch has come, whatever the gateway dropped since.
    let reached = oldest.min(first);
    let gap = (reached > through.saturating_add(1)).then(|| (through + 1, reached - 1));
    let settled = gap.map_or(through, |(_, last)| last);
    if first > settled.saturating_add(1) {
        return Step { gap, skip: None, through: settled };
    }
    let last = first + count as u64 - 1;
    let skip = usize::try_from(settled + 1 - first).unwrap_or(usize::MAX).min(count);
    Step { gap, skip: Some(skip), through: settled.max(last) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(
        through: u64,
        (first, count, oldest): (u64, usize, u64),
        expected: (Option<(u64, u64)>, Option<usize>, u64),
    ) {
        let step = step(through, first, count, oldest);
        assert_eq!((step.gap, step.skip, step.through), expected);
    }

    #[test]
    fn takes_what_follows_skips_what_is_known_and_waits_for_what_is_missing() {
        // the next, a resend, an overlap, a hole
        check(0, (1, 3, 1), (None, Some(0), 3));
        check(3, (4, 2, 1), (None, Some(0), 5));
        check(5, (4, 2, 1), (None, Some(2), 5));
        check(4, (4, 2, 1), (None, Some(1), 5));
        check(9, (4, 2, 1), (None, Some(2), 9));
        check(3, (5, 2, 1), (None, None, 3));
        check(3, (5, 2, 4), (None, None, 3));
    }

    #[test]
    fn what_the_gateway_no_longer_holds_is_a_gap() {
        check(3, (10, 2, 10), (Some((4, 9)), Some(0), 11));
        check(0, (10, 2, 10), (Some((1, 9)), Some(0), 11));
        // What is here is not missing, though the gateway holds it no more.
        check(3, (8, 4, 10), (Some((4, 7)), Some(0), 11));
        check(3, (20, 1, 10), (Some((4, 9)), None, 9));
        check(11, (10, 2, 20), (None, Some(2), 11));
    }
}
