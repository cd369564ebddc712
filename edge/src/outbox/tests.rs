//! Numbers, receipts, states, epochs and kills of the outbox.

use std::{collections::HashMap, fs, path::Path};

use gemba_shared::{
    message::Seq,
    telemetry::{Catalog, Clock, DetectorState, Mode, Sensor, Summary, Verdict},
};
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::generations::tests::SmallDisk;

pub(super) fn settings() -> OutboxSettings {
    let generations = GenerationSettings { generation_bytes: 1 << 20, cache_bytes: 1 << 20 };
    OutboxSettings { generations, budget_bytes: 64 << 20, disk_free_min: 0 }
}

/// A summary that says its number, of a size like a real one, that does not compress.
pub(super) fn record(number: u64) -> Record {
    let value = |n: u64| (number * 1_000 + n).wrapping_mul(0x9e37_79b9_7f4a_7c15) as f64;
    let sensor = |n: u64| gemba_shared::telemetry::SensorSummary {
        count: 10,
        min: value(n),
        max: value(n + 1),
        mean: value(n + 2),
        sd: value(n + 3),
        last: value(n + 4),
        quality: gemba_shared::telemetry::Quality::Good,
    };
    Record::Summary(Summary {
        machine: MachineId::new("pump-1").unwrap(),
        start: Timestamp(i64::try_from(number).unwrap() * 10_000_000),
        interval_ms: 10_000,
        catalog_revision: 1,
        sensors: (0..number % 7 * 3).map(|n| Some(sensor(n * 10))).collect(),
        verdict: Verdict {
            detector: DetectorState::Watching,
            score: None,
            health_percent: None,
            mode: Mode::Unknown,
            remaining: None,
        },
        energy_wh: Some(number as f64),
        clock: Clock::Trusted,
    })
}

pub(super) fn catalog(revision: u32) -> Record {
    let sensor = Sensor { id: gemba_shared::ids::SensorId::new("t").unwrap(), unit: None };
    Record::Catalog(Catalog {
        machine: MachineId::new("pump-1").unwrap(),
        revision,
        step_ms: 1_000,
        interval_ms: 10_000,
        sensors: vec![sensor],
        model: "baseline 1".into(),
    })
}

pub(super) fn write(lane: Lane, numbers: Range<u64>) -> Write {
    let states =
        vec![State { machine: MachineId::new("pump-1").unwrap(), part: 3, bytes: numbers.end.to_le_bytes().into() }];
    Write { records: numbers.map(|n| (lane, record(n))).collect(), states }
}

pub(super) fn read_all(outbox: &mut Outbox, lane: Lane) -> Vec<Record> {
    let mut all = Vec::new();
    let mut from = outbox.oldest(lane);
    loop {
        let records = outbox.read(lane, from, 100, 10_000).unwrap();
        if records.is_empty() {
            assert_eq!(from, outbox.next(lane), "the outbox stopped before its end");
            return all;
        }
        from += records.len() as u64;
        all.extend(records);
    }
}

pub(super) fn copy(from: &Path) -> TempDir {
    let to = in_memory();
    copy_into(from, to.path());
    to
}

/// Where syncs cost nothing, if there is such a place.
pub(crate) fn in_memory() -> TempDir {
    TempDir::new_in("/dev/shm").or_else(|_| TempDir::new()).unwrap()
}

fn copy_into(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (from, to) = entry.map(|entry| (entry.path(), to.join(entry.file_name()))).unwrap();
        if from.is_dir() {
            copy_into(&from, &to);
        } else {
            fs::copy(from, to).unwrap();
        }
    }
}

#[test]
fn a_new_outbox_draws_an_epoch_and_keeps_it() {
    let dir = TempDir::new().unwrap();
    let (outbox, opened) = Outbox::open(dir.path(), settings()).unwrap();
    assert!(opened.is_new && !opened.states_lost);
    let epoch = outbox.epoch();
    drop(outbox);
    let (outbox, opened) = Outbox::open(dir.path(), settings()).unwrap();
    assert!(!opened.is_new && !opened.states_lost);
    assert_eq!(outbox.epoch(), epoch);
    let other = TempDir::new().unwrap();
    assert_ne!(Outbox::open(other.path(), settings()).unwrap().0.epoch(), epoch);
}

#[test]
fn lanes_are_numbered_apart_and_read_within_limits() {
    let dir = TempDir::new().unwrap();
    let (mut outbox, _) = Outbox::open(dir.path(), settings()).unwrap();
    outbox.append(&write(Lane::Summaries, 1..21)).unwrap();
    outbox.append(&write(Lane::Events, 1..3)).unwrap();
    assert_eq!((outbox.oldest(Lane::Summaries), outbox.next(Lane::Summaries), outbox.next(Lane::Events)), (1, 21, 3));
    assert_eq!(outbox.read(Lane::Summaries, 5, 3, usize::MAX).unwrap(), [record(5), record(6), record(7)]);
    assert_eq!(outbox.read(Lane::Summaries, 5, 100, 1).unwrap(), [record(5)]);
    assert_eq!(outbox.read(Lane::Summaries, 21, 3, usize::MAX).unwrap(), []);
    assert_eq!(outbox.backlog().records, 22);
    assert_eq!(outbox.backlog().oldest_at, Some(Timestamp(10_000_000)));
}

#[test]
fn only_a_receipt_of_this_epoch_lets_records_go() {
    let dir = TempDir::new().unwrap();
    let (mut outbox, _) = Outbox::open(dir.path(), settings()).unwrap();
    outbox.append(&write(Lane::Summaries, 1..11)).unwrap();
    let epoch = outbox.epoch();
    assert_eq!(outbox.release(Epoch(epoch.0 ^ 1), Lane::Summaries, 5).unwrap(), 0);
    assert_eq!(outbox.release(epoch, Lane::Summaries, 5).unwrap(), 5);
    assert_eq!(outbox.release(epoch, Lane::Summaries, 3).unwrap(), 0);
    assert_eq!(outbox.oldest(Lane::Summaries), 6);
    assert_eq!(outbox.read(Lane::Summaries, 5, 1, usize::MAX).unwrap(), []);
    assert_eq!(outbox.release(epoch, Lane::Summaries, u64::MAX).unwrap(), 5);
    assert_eq!((outbox.oldest(Lane::Summaries), outbox.backlog().records, outbox.backlog().bytes), (11, 0, 0));
    outbox.append(&write(Lane::Summaries, 11..12)).unwrap();
    drop(outbox);
    let (mut outbox, _) = Outbox::open(dir.path(), settings()).unwrap();
    assert_eq!(read_all(&mut outbox, Lane::Summaries), [record(11)]);
}

#[test]
fn records_and_states_outlive_generations_and_kills() {
    let dir = TempDir::new().unwrap();
    let (mut outbox, _) = Outbox::open(dir.path(), settings()).unwrap();
    outbox.append(&write(Lane::Events, 1..4)).unwrap();
    for n in 0..40 {
        outbox.append(&write(Lane::Summaries, n * 100 + 1..n * 100 + 101)).unwrap();
    }
    assert!(outbox.contents.len() >= 2, "{:?}", outbox.contents);
    let killed = copy(dir.path());
    let (mut again, opened) = Outbox::open(killed.path(), settings()).unwrap();
    assert_eq!((opened.quarantined, opened.lost_records, opened.states_lost), (Vec::<PathBuf>::new(), 0, false));
    assert_eq!(opened.states, write(Lane::Events, 0..4_001).states);
    for outbox in [&mut outbox, &mut again] {
        assert_eq!(read_all(outbox, Lane::Events), (1..4).map(record).collect::<Vec<_>>());
        assert_eq!(read_all(outbox, Lane::Summaries), (1..4_001).map(record).collect::<Vec<_>>());
        let epoch = outbox.epoch();
        outbox.release(epoch, Lane::Summaries, 4_000).unwrap();
        let held = outbox.contents.len();
        outbox.release(epoch, Lane::Events, 3).unwrap();
        assert!(held > 1 && outbox.contents.len() == 1, "the events held {held} generations");
    }
}

#[test]
fn a_kill_after_a_release_makes_nothing_look_lost() {
    let dir = TempDir::new().unwrap();
    let (mut outbox, _) = Outbox::open(dir.path(), settings()).unwrap();
    for n in 0..30 {
        outbox.append(&write(Lane::Summaries, n * 100 + 1..n * 100 + 101)).unwrap();
    }
    let epoch = outbox.epoch();
    outbox.release(epoch, Lane::Summaries, 2_500).unwrap();
    let killed = copy(dir.path());
    let (mut again, opened) = Outbox::open(killed.path(), settings()).unwrap();
    assert_eq!(opened.lost_records, 0);
    let first = again.oldest(Lane::Summaries);
    assert!(first > 1 && first <= 2_501);
    assert_eq!(read_all(&mut again, Lane::Summaries), (first..3_001).map(record).collect::<Vec<_>>());
    assert_eq!(again.counters().damaged, 0);
}

#[test]
fn large_states_neither_bury_records_nor_stall_appends() {
    let dir = TempDir::new().unwrap();
    let (mut outbox, _) = Outbox::open(dir.path(), settings()).unwrap();
    let state = |part: u16, n: u64| State {
        machine: MachineId::new("pump-1").unwrap(),
        part,
        bytes: (0..40_000_u64).map(|at| (at * n).wrapping_mul(0x9e37_79b9) as u8).collect(),
    };
    // Far more than a generation holds.
    let all = |n: u64| (0..100).map(|part| state(part, n)).collect::<Vec<_>>();
    for n in 1..4 {
        outbox.append(&Write { records: vec![(Lane::Summaries, record(n))], states: all(n) }).unwrap();
    }
    for n in 4..100 {
        outbox.append(&Write { records: vec![(Lane::Summaries, record(n))], states: vec![state(0, n)] }).unwrap();
    }
    assert!(outbox.disk_bytes() < 60 << 20, "{} bytes", outbox.disk_bytes());
    let killed = copy(dir.path());
    let (mut again, opened) = Outbox::open(killed.path(), settings()).unwrap();
    assert_eq!(opened.states.len(), 100);
    assert!(opened.states == [vec![state(0, 99)], all(3)[1..].to_vec()].concat());
    assert_eq!(read_all(&mut again, Lane::Summaries), (1..100).map(record).collect::<Vec<_>>());
    let too_large = State { bytes: vec![0; VALUE_MAX + 1], ..state(0, 1) };
    again.append(&Write { records: vec![], states: vec![too_large] }).unwrap();
    assert_eq!(again.counters().states_too_large, 1);
}

const VALUE_MAX: usize = crate::generations::VALUE_BYTES_MAX;

#[test]
fn states_of_an_append_that_does_not_count_do_not_count() {
    let dir = TempDir::new().unwrap();
    let (mut outbox, _) = Outbox::open(dir.path(), settings()).unwrap();
    outbox.append(&write(Lane::Summaries, 1..3)).unwrap();
    // As far as `standing`, then a kill.
    let row = standing::state_row(&write(Lane::Summaries, 3..5).states[0]).unwrap();
    let (append, lives, lanes) = (outbox.append + 1, outbox.lives.clone(), outbox.lanes);
    outbox.standing.write(&[row], standing::Tail { append, lives, lanes }).unwrap();
    let killed = copy(dir.path());
    let (mut again, opened) = Outbox::open(killed.path(), settings()).unwrap();
    assert_eq!((opened.states, opened.states_lost), (write(Lane::Summaries, 1..3).states, false));
    again.append(&write(Lane::Summaries, 3..5)).unwrap();
    drop(again);
    let (mut again, opened) = Outbox::open(killed.path(), settings()).unwrap();
    assert_eq!(opened.states, write(Lane::Summaries, 3..5).states);
    assert_eq!(read_all(&mut again, Lane::Summaries), (1..5).map(record).collect::<Vec<_>>());
}

#[test]
fn a_refused_record_goes_to_the_dead_letters_and_a_gap_stands_in_its_place() {
    let dir = TempDir::new().unwrap();
    let (mut outbox, _) = Outbox::open(dir.path(), settings()).unwrap();
    outbox.append(&write(Lane::Summaries, 1..4)).unwrap();
    let seq = Seq { epoch: outbox.epoch(), lane: Lane::Summaries, number: 2 };
    for _ in 0..2 {
        outbox.refuse(seq, "too many sensors").unwrap();
        outbox.refuse(Seq { number: 99, ..seq }, "there is none").unwrap();
    }
    drop(outbox);
    let (mut outbox, _) = Outbox::open(dir.path(), settings()).unwrap();
    assert_eq!(read_all(&mut outbox, Lane::Summaries), [record(1), gap(2..3, GapReason::Refused), record(3)]);
    let letters: Vec<_> = fs::read_dir(dir.path().join("dead-letters")).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(letters.len(), 1);
    assert!(fs::read_to_string(&letters[0]).unwrap().contains("too many sensors"));
}

#[test]
fn a_new_epoch_begins_with_the_catalogs_and_has_all_that_waits() {
    let dir = TempDir::new().unwrap();
    let (mut outbox, _) = Outbox::open(dir.path(), settings()).unwrap();
    outbox.append(&Write { records: vec![(Lane::Summaries, catalog(1))], states: vec![] }).unwrap();
    outbox.append(&write(Lane::Summaries, 2..8)).unwrap();
    outbox.append(&Write { records: vec![(Lane::Summaries, catalog(2))], states: vec![] }).unwrap();
    outbox.append(&write(Lane::Events, 1..3)).unwrap();
    let old = outbox.epoch();
    outbox.release(old, Lane::Summaries, 4).unwrap();
    let new = outbox.renew_epoch().unwrap();
    assert_ne!(old, new);
    for _ in 0..2 {
        assert_eq!(outbox.epoch(), new);
        assert_eq!((outbox.oldest(Lane::Summaries), outbox.next(Lane::Summaries)), (1, 6));
        let expected = [catalog(2), record(5), record(6), record(7), catalog(2)];
        assert_eq!(read_all(&mut outbox, Lane::Summaries), expected);
        assert_eq!(read_all(&mut outbox, Lane::Events), [catalog(2), record(1), record(2)]);
        drop(outbox);
        outbox = Outbox::open(dir.path(), settings()).unwrap().0;
    }
    assert_eq!(outbox.release(old, Lane::Summaries, 3).unwrap(), 0);
    assert_eq!(outbox.release(new, Lane::Summaries, 2).unwrap(), 2);
    assert_eq!(read_all(&mut outbox, Lane::Summaries), [record(6), record(7), catalog(2)]);
}

#[test]
fn when_the_states_are_lost_new_records_go_under_a_new_epoch_behind_the_old() {
    let dir = TempDir::new().unwrap();
    let (mut outbox, _) = Outbox::open(dir.path(), settings()).unwrap();
    outbox.append(&write(Lane::Summaries, 1..5)).unwrap();
    outbox.append(&write(Lane::Events, 1..2)).unwrap();
    let old = outbox.epoch();
    drop(outbox);
    fs::remove_dir_all(dir.path().join("standing")).unwrap();
    let (mut outbox, opened) = Outbox::open(dir.path(), settings()).unwrap();
    assert!(opened.states_lost && opened.states.is_empty() && opened.lost_records == 0);
    outbox.append(&write(Lane::Summaries, 5..7)).unwrap();
    assert_eq!((outbox.epoch(), outbox.next(Lane::Summaries), outbox.next(Lane::Events)), (old, 5, 2));
    assert_eq!(read_all(&mut outbox, Lane::Summaries), (1..5).map(record).collect::<Vec<_>>());
    outbox.release(old, Lane::Summaries, 4).unwrap();
    assert_eq!(outbox.epoch(), old);
    outbox.release(old, Lane::Events, 1).unwrap();
    assert_ne!(outbox.epoch(), old);
    assert_eq!((outbox.oldest(Lane::Summaries), outbox.oldest(Lane::Events)), (1, 1));
    assert_eq!(read_all(&mut outbox, Lane::Summaries), [record(5), record(6)]);
    let new = outbox.epoch();
    drop(outbox);
    assert_eq!(Outbox::open(dir.path(), settings()).unwrap().0.epoch(), new);
}

#[test]
fn a_full_or_read_only_disk_is_delivered_from_also_after_a_restart() {
    let Some(disk) = SmallDisk::mount("24m") else {
        println!("skipped: no file system may be mounted here");
        return;
    };
    let dir = disk.0.path().join("outbox");
    let (mut outbox, _) = Outbox::open(&dir, settings()).unwrap();
    let mut next = 1;
    while outbox.contents.len() < 4 {
        outbox.append(&write(Lane::Summaries, next..next + 50)).unwrap();
        next += 50;
    }
    let states = write(Lane::Summaries, 0..next).states;
    for read_only in [false, true] {
        let oldest = outbox.oldest(Lane::Summaries);
        let held: Vec<Record> = (oldest..next).map(record).collect();
        let ballast = disk.fill();
        if read_only {
            // It cannot be made so while it is written to.
            drop(outbox);
            disk.make_read_only(true);
        } else {
            let error = outbox.append(&write(Lane::Summaries, next..next + 500)).unwrap_err();
            assert!(error.is_disk_full(), "{error}");
            assert_eq!(read_all(&mut outbox, Lane::Summaries), held);
            drop(outbox);
        }
        // A restart starts, knows everything, and lets go what is receipted.
        let (mut again, opened) = Outbox::open(&dir, settings()).unwrap();
        assert_eq!((opened.lost_records, opened.states_lost, &opened.states), (0, false, &states));
        // What was released on the full disk could not be noted.
        let oldest = again.oldest(Lane::Summaries);
        let held: Vec<Record> = (oldest..next).map(record).collect();
        assert_eq!(read_all(&mut again, Lane::Summaries), held);
        let error = again.append(&write(Lane::Summaries, next..next + 500)).unwrap_err();
        assert!(error.is_disk_full(), "{error}");
        let epoch = again.epoch();
        again.release(epoch, Lane::Summaries, oldest + 9).unwrap();
        assert_eq!(read_all(&mut again, Lane::Summaries), held[10..]);
        assert_eq!(again.counters().damaged, 0);
        if read_only {
            drop(again);
            disk.make_read_only(false);
            again = Outbox::open(&dir, settings()).unwrap().0;
        }
        fs::remove_file(ballast).unwrap();
        outbox = again;
    }
    outbox.append(&write(Lane::Summaries, next..next + 10)).unwrap();
    let held = (outbox.oldest(Lane::Summaries)..next + 10).map(record).collect::<Vec<_>>();
    assert_eq!(read_all(&mut outbox, Lane::Summaries), held);
    drop(outbox);
    let (mut outbox, opened) = Outbox::open(&dir, settings()).unwrap();
    assert_eq!((opened.lost_records, opened.quarantined.len()), (0, 0));
    let first = outbox.oldest(Lane::Summaries);
    assert_eq!(read_all(&mut outbox, Lane::Summaries), (first..next + 10).map(record).collect::<Vec<_>>());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    /// Appends, receipts, new epochs and kills in any order: what was appended and not receipted is there, in order, once.
    #[test]
    fn it_is_a_queue_whatever_happens(steps in prop::collection::vec((0..6_u8, 1..60_u64, any::<bool>()), 1..60)) {
        let mut dir = TempDir::new().unwrap();
        let (mut outbox, _) = Outbox::open(dir.path(), settings()).unwrap();
        let mut held: HashMap<Lane, Range<u64>> = Lane::ALL.into_iter().map(|lane| (lane, 1..1)).collect();
        for (kind, n, events) in steps {
            let lane = if events { Lane::Events } else { Lane::Summaries };
            match kind {
                0..=2 => {
                    let next = &mut held.get_mut(&lane).unwrap().end;
                    outbox.append(&write(lane, *next..*next + n)).unwrap();
                    *next += n;
                }
                3 => {
                    let (epoch, through) = (outbox.epoch(), (outbox.oldest(lane) + n).min(outbox.next(lane) - 1));
                    held.get_mut(&lane).unwrap().start += outbox.release(epoch, lane, through).unwrap();
                }
                4 => {
                    let killed = copy(dir.path());
                    outbox = Outbox::open(killed.path(), settings()).unwrap().0;
                    dir = killed;
                    // What was released since the last append may come again.
                    for lane in Lane::ALL {
                        let range = held.get_mut(&lane).unwrap();
                        range.start = range.end - (outbox.next(lane) - outbox.oldest(lane));
                    }
                }
                _ => drop(outbox.renew_epoch().unwrap()),
            }
            for lane in Lane::ALL {
                let expected: Vec<_> = held[&lane].clone().map(record).collect();
                prop_assert_eq!(read_all(&mut outbox, lane), expected);
            }
        }
    }
}
