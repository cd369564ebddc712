//! What goes when there is too little room, and what is told of it.

use gemba_shared::telemetry::Summary;
use tempfile::TempDir;

use super::{
    super::{
        OutboxSettings, Write,
        tests::{catalog, copy, in_memory, read_all, record, settings, write},
    },
    *,
};

fn tight() -> OutboxSettings {
    OutboxSettings { budget_bytes: 0, ..settings() }
}

/// Readings in what is delivered, and records that gaps count.
fn account(records: &[Record]) -> (u64, u64) {
    let mut next = 1;
    let (mut intervals, mut gone) = (0, 0);
    for record in records {
        match record {
            Record::Summary(summary) => {
                intervals += u64::from(summary.interval_ms / 10_000);
                assert!(summary.start.0 >= next * 10_000_000, "{} comes after {next}", summary.start.0);
                next = summary.start.0 / 10_000_000 + i64::from(summary.interval_ms / 10_000);
            }
            Record::Gap(gap) => gone += gap.count,
            _ => {}
        }
    }
    (intervals, gone)
}

#[test]
fn the_oldest_summaries_are_thinned_before_any_is_given_up() {
    let dir = TempDir::new().unwrap();
    let (mut outbox, _) = Outbox::open(dir.path(), tight()).unwrap();
    outbox.append(&Write { records: vec![(Lane::Summaries, catalog(1))], states: vec![] }).unwrap();
    let mut appended = 1;
    while outbox.counters().thinned < 4_000 {
        outbox.append(&write(Lane::Events, appended..appended + 1)).unwrap();
        outbox.append(&write(Lane::Summaries, appended..appended + 100)).unwrap();
        appended += 100;
    }
    assert_eq!(outbox.counters().over_budget, 0);
    for _ in 0..2 {
        assert!(outbox.disk_bytes() <= 6 << 20, "{}", outbox.disk_bytes());
        let events = read_all(&mut outbox, Lane::Events);
        assert_eq!(events, (1..appended).step_by(100).map(record).collect::<Vec<_>>());
        let all = read_all(&mut outbox, Lane::Summaries);
        assert_eq!(all[0], catalog(1));
        let (intervals, gone) = account(&all);
        assert_eq!(intervals, appended - 1, "each interval is in exactly one summary");
        assert_eq!(gone + all.iter().filter(|r| matches!(r, Record::Summary(_))).count() as u64, appended - 1);
        let coarse = |record: &&Record| matches!(record, Record::Summary(Summary { interval_ms: 60_000.., .. }));
        assert!(all.iter().filter(coarse).count() > 100);
        drop(outbox);
        outbox = Outbox::open(dir.path(), tight()).unwrap().0;
    }
}

#[test]
fn what_may_have_been_sent_is_not_thinned_and_events_go_last() {
    let dir = TempDir::new().unwrap();
    let (mut outbox, _) = Outbox::open(dir.path(), tight()).unwrap();
    outbox.append(&Write { records: vec![(Lane::Summaries, catalog(1))], states: vec![] }).unwrap();
    let mut appended = 1;
    while outbox.counters().over_budget < 4_000 {
        outbox.append(&write(Lane::Events, appended..appended + 1)).unwrap();
        outbox.append(&write(Lane::Summaries, appended..appended + 100)).unwrap();
        appended += 100;
        let next = outbox.next(Lane::Summaries);
        outbox.read(Lane::Summaries, next - 1, 1, 1).unwrap();
    }
    assert_eq!((outbox.counters().thinned, outbox.counters().events_over_budget), (0, 0));
    let events = read_all(&mut outbox, Lane::Events);
    assert_eq!(events, (1..appended).step_by(100).map(record).collect::<Vec<_>>());
    let all = read_all(&mut outbox, Lane::Summaries);
    assert_eq!((all.len() as u64, &all[0]), (appended, &catalog(1)));
    let (intervals, gone) = account(&all);
    assert_eq!((intervals + gone, gone), (appended - 1, outbox.counters().over_budget));
    // Nothing but events.
    let mut events = appended;
    while outbox.counters().events_over_budget == 0 {
        outbox.append(&write(Lane::Events, events..events + 100)).unwrap();
        events += 100;
    }
    assert!(outbox.disk_bytes() <= 6 << 20, "{}", outbox.disk_bytes());
    let gaps = read_all(&mut outbox, Lane::Events).into_iter().filter_map(|record| match record {
        Record::Gap(gap) => Some((gap.reason, gap.count)),
        _ => None,
    });
    let gone =
        gaps.inspect(|(reason, _)| assert_eq!(*reason, GapReason::OverBudget)).map(|(_, count)| count).sum::<u64>();
    assert_eq!(gone, outbox.counters().events_over_budget);
}

#[test]
fn a_disk_with_too_little_room_left_is_told_as_full() {
    let dir = TempDir::new().unwrap();
    let settings = OutboxSettings { disk_free_min: u64::MAX, ..settings() };
    let (mut outbox, _) = Outbox::open(dir.path(), settings).unwrap();
    assert!(outbox.append(&write(Lane::Events, 1..2)).unwrap_err().is_disk_full());
    assert_eq!(outbox.backlog().records, 0);
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { cases: 6, ..Default::default() })]

    /// Appends beyond the budget, sending, receipts and kills in any order: each interval is delivered at most once, and if one is
    /// not, a gap tells of it.
    #[test]
    fn nothing_goes_twice_or_untold(steps in proptest::collection::vec((0..8_u8, 1..1_500_u64), 20..60)) {
        let mut dir = in_memory();
        let (mut outbox, _) = Outbox::open(dir.path(), tight()).unwrap();
        let mut appended = 0_u64;
        let mut cloud = Cloud::default();
        for (kind, n) in steps {
            match kind {
                0..=5 => {
                    outbox.append(&write(Lane::Summaries, appended + 1..appended + n + 1)).unwrap();
                    appended += n;
                }
                6 => {
                    let oldest = outbox.oldest(Lane::Summaries);
                    cloud.take(oldest, outbox.read(Lane::Summaries, oldest, n as usize, usize::MAX).unwrap());
                    let epoch = outbox.epoch();
                    outbox.release(epoch, Lane::Summaries, cloud.through).unwrap();
                }
                _ => {
                    let killed = copy(dir.path());
                    outbox = Outbox::open(killed.path(), tight()).unwrap().0;
                    dir = killed;
                }
            }
        }
        let oldest = outbox.oldest(Lane::Summaries);
        cloud.take(oldest, read_all(&mut outbox, Lane::Summaries));
        proptest::prop_assert_eq!((outbox.next(Lane::Summaries), cloud.through), (appended + 1, appended));
        cloud.intervals.sort_unstable();
        proptest::prop_assert!(cloud.intervals.is_sorted_by(|a, b| a < b), "no interval comes twice");
        let missing = appended - cloud.intervals.len() as u64;
        proptest::prop_assert!(missing <= cloud.gone, "{} missing, {} told", missing, cloud.gone);
    }
}

/// What has arrived.
#[derive(Default)]
struct Cloud {
    /// Records through here have.
    through: u64,
    /// The starts of the intervals that summaries cover.
    intervals: Vec<i64>,
    /// Counted by gaps of summaries that were given up.
    gone: u64,
}

impl Cloud {
    fn take(&mut self, first: u64, records: Vec<Record>) {
        for (record, number) in records.into_iter().zip(first..) {
            if number <= self.through {
                continue;
            }
            self.through = number;
            match record {
                Record::Summary(summary) => {
                    let starts = (0..i64::from(summary.interval_ms / 10_000)).map(|n| summary.start.0 / 10_000_000 + n);
                    self.intervals.extend(starts);
                }
                Record::Gap(gap) if gap.reason == GapReason::OverBudget => self.gone += gap.count,
                Record::Gap(gap) => assert_eq!(gap.reason, GapReason::Thinned),
                Record::Catalog(_) | Record::Event(_) => {}
            }
        }
    }
}
