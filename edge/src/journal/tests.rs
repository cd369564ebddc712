//! What the journal gives back after kills and damage.

use std::fs;

use gemba_shared::telemetry::Clock;
use tempfile::TempDir;

use super::*;
use crate::generations::tests::SmallDisk;

fn now(second: i64) -> Now {
    Now { wall: Timestamp::from_millis(second * 1_000), mono_us: second * 1_000_000, clock: Clock::Trusted }
}

fn small() -> JournalSettings {
    let generations = GenerationSettings { generation_bytes: 1 << 20, cache_bytes: 1 << 20 };
    JournalSettings { generations, budget_bytes: 4 << 20, ..JournalSettings::default() }
}

fn registry() -> Registry {
    let mut registry = Registry::new(10, 10);
    for machine in ["a", "b", "c"] {
        let machine = registry.machine(&MachineId::new(machine).unwrap()).unwrap();
        for sensor in ["x", "y"] {
            registry.sensor(machine, &SensorId::new(sensor).unwrap()).unwrap();
        }
    }
    registry
}

fn readings(second: i64, count: i64) -> Vec<Reading> {
    let reading = |n: i64| Reading {
        machine: MachineIx((n % 3) as u32),
        sensor: SensorIx((n % 2) as u16),
        at: Timestamp::from_millis(second * 1_000 - n * n % 50_000 + if n % 5 == 0 { 90_000 } else { 0 }),
        value: n as f64 * 0.1 - 7.0,
    };
    (0..count).map(reading).collect()
}

type Named = (String, String, Timestamp, f64);

fn named(readings: &[Reading], registry: &Registry) -> Vec<Named> {
    let name = |r: &Reading| {
        let sensor = registry.sensors(r.machine)[usize::from(r.sensor.0)].to_string();
        (registry.machine_id(r.machine).to_string(), sensor, r.at, r.value)
    };
    readings.iter().map(name).collect()
}

/// What a new process finds, that knows the machines in another order.
fn replay(journal: &mut Journal) -> (Vec<u64>, Vec<Named>) {
    let mut other = Registry::new(10, 10);
    other.machine(&MachineId::new("c").unwrap()).unwrap();
    let (mut blocks, mut all) = (Vec::new(), Vec::new());
    let replayed = journal
        .replay(&mut other, |block, _, readings, registry| {
            blocks.push(block);
            all.extend(named(readings, registry));
        })
        .unwrap();
    assert_eq!((replayed.blocks_lost, replayed.refused), (0, 0));
    (blocks, all)
}

#[test]
fn what_was_appended_is_replayed_in_order_under_its_names() {
    let dir = TempDir::new().unwrap();
    let registry = registry();
    let mut expected = Vec::new();
    for life in 0..3 {
        let (mut journal, opened) = Journal::open(dir.path(), small()).unwrap();
        assert_eq!(opened.is_new, life == 0);
        assert_eq!(replay(&mut journal).1, expected);
        for second in 0..5 {
            let readings = readings(life * 100 + second, 500 * second);
            let last = journal.last();
            assert_eq!(journal.append(&readings, &registry, now(life * 100 + second)).unwrap(), last + 1);
            expected.extend(named(&readings, &registry));
        }
        let (blocks, all) = replay(&mut journal);
        assert_eq!(all, expected);
        assert_eq!(blocks, (1..=journal.last()).collect::<Vec<_>>());
    }
}

#[test]
fn it_is_trimmed_by_generations_and_bounded() {
    let dir = TempDir::new().unwrap();
    let registry = registry();
    let (mut journal, _) = Journal::open(dir.path(), small()).unwrap();
    let many = readings(0, 5_000);
    let refused = (0..1_000).find_map(|n| journal.append(&many, &registry, now(n)).err());
    assert!(matches!(refused, Some(JournalError::OverBudget(_))), "{refused:?}");
    let (blocks, _) = replay(&mut journal);
    let needed = blocks[blocks.len() / 2];
    journal.trim(needed).unwrap();
    let (left, _) = replay(&mut journal);
    assert!(left[0] <= needed && left[0] > 1 && left.last() == blocks.last());
    journal.append(&many, &registry, now(1_000)).unwrap();
    journal.trim(journal.last() + 1).unwrap();
    assert!(journal.bytes() < 3 << 20, "{}", journal.bytes());
}

#[test]
fn numbers_go_on_behind_what_a_state_has() {
    let dir = TempDir::new().unwrap();
    let (mut journal, _) = Journal::open(dir.path(), small()).unwrap();
    journal.number_after(1_000);
    assert_eq!(journal.append(&readings(0, 3), &registry(), now(0)).unwrap(), 1_001);
    assert_eq!(replay(&mut journal).0, [1_001]);
}

/// Blocks and readings that are replayed, without a claim that all are.
fn replay_damaged(journal: &mut Journal) -> (Vec<u64>, Vec<Named>, u64) {
    let (mut blocks, mut all) = (Vec::new(), Vec::new());
    let replayed = journal
        .replay(&mut Registry::new(10, 10), |block, _, readings, registry| {
            blocks.push(block);
            all.extend(named(readings, registry));
        })
        .unwrap();
    (blocks, all, replayed.blocks_lost)
}

#[test]
fn damage_of_every_kind_to_every_file_loses_only_what_it_hit() {
    let dir = TempDir::new().unwrap();
    let registry = registry();
    for life in 0..3 {
        let (mut journal, _) = Journal::open(dir.path(), small()).unwrap();
        for second in 0..4 {
            journal.append(&readings(life * 100 + second, 2_000), &registry, now(life * 100 + second)).unwrap();
        }
    }
    let (mut journal, _) = Journal::open(dir.path(), small()).unwrap();
    let spans = journal.spans.clone();
    let (blocks, whole, _) = replay_damaged(&mut journal);
    drop(journal);
    let generations: Vec<u64> = spans.iter().filter(|(_, span)| span.0 < span.1).map(|(ordinal, _)| *ordinal).collect();
    assert_eq!((generations.len(), blocks.len() as u64), (3, blocks[blocks.len() - 1]));
    for ordinal in generations {
        for file in ["db", "conf", "tail"] {
            for (kind, tenth) in
                (0..4).flat_map(|kind| (0..if kind == 3 { 1 } else { 10 }).map(move |tenth| (kind, tenth)))
            {
                let what = format!("{file} of {ordinal}, kind {kind} at {tenth}/10");
                let damaged = copy(dir.path());
                hurt(&damaged.path().join(format!("{ordinal:020}")).join(file), kind, tenth);
                let (mut journal, _) = Journal::open(damaged.path(), small()).unwrap();
                let (found, readings, lost) = replay_damaged(&mut journal);
                assert!(found.is_sorted_by(|a, b| a < b), "{what}: no block twice");
                let (first, next) = spans[&ordinal];
                for block in blocks.iter().filter(|block| !found.contains(block)) {
                    assert!((first..next).contains(block), "{what}: block {block} is gone");
                }
                assert!((found.len() as u64 + lost) >= blocks.len() as u64, "{what}: {lost} told");
                let mut rest = whole.iter();
                assert!(
                    readings.iter().all(|reading| rest.any(|other| other == reading)),
                    "{what}: all true, in order"
                );
                let last = journal.append(&self::readings(1_000, 3), &registry, now(1_000)).unwrap();
                assert!(last > blocks[blocks.len() - 1], "{what}: no number is used twice");
            }
        }
    }
}

fn copy(from: &Path) -> TempDir {
    let to = TempDir::new_in("/dev/shm").or_else(|_| TempDir::new()).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap).filter(|entry| entry.path().is_dir()) {
        let below = to.path().join(entry.file_name());
        fs::create_dir(&below).unwrap();
        for file in fs::read_dir(entry.path()).unwrap().map(Result::unwrap).filter(|file| file.path().is_file()) {
            fs::copy(file.path(), below.join(file.file_name())).unwrap();
        }
    }
    to
}

fn hurt(path: &Path, kind: u8, tenth: u64) {
    let mut bytes = fs::read(path).unwrap();
    let at = bytes.len() * tenth as usize / 10;
    match kind {
        0 => bytes.iter_mut().skip(at).take(16).for_each(|byte| *byte ^= 0xff),
        1 => bytes.iter_mut().skip(at).take(4_096).for_each(|byte| *byte = 0),
        2 => bytes.truncate(at),
        _ => return fs::remove_file(path).unwrap(),
    }
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_journal_whose_disk_is_full_is_replayed_and_goes_on_when_there_is_room() {
    let Some(disk) = SmallDisk::mount("16m") else {
        println!("skipped: no file system may be mounted here");
        return;
    };
    let (dir, registry) = (disk.0.path().join("journal"), registry());
    let (mut journal, _) = Journal::open(&dir, small()).unwrap();
    journal.append(&readings(0, 3_000), &registry, now(0)).unwrap();
    let ballast = disk.fill();
    let full = (1..1_000).find_map(|n| journal.append(&readings(n, 3_000), &registry, now(n)).err()).unwrap();
    assert!(matches!(full, JournalError::Store(StoreError::DiskFull(_))), "{full}");
    let (blocks, all, _) = replay_damaged(&mut journal);
    drop(journal);
    let (mut journal, _) = Journal::open(&dir, small()).unwrap();
    assert_eq!(replay_damaged(&mut journal), (blocks, all.clone(), 0));
    assert!(journal.append(&readings(0, 3), &registry, now(0)).is_err());
    fs::remove_file(ballast).unwrap();
    journal.append(&readings(0, 3), &registry, now(0)).unwrap();
    assert_eq!(replay_damaged(&mut journal).1.len(), all.len() + 3);
}

#[test]
fn syncs_may_be_apart() {
    let dir = TempDir::new().unwrap();
    let settings = JournalSettings { sync_every: Some(Duration::from_hours(1)), ..small() };
    let (mut journal, _) = Journal::open(dir.path(), settings).unwrap();
    let registry = registry();
    for n in 0..5 {
        journal.append(&readings(n, 10), &registry, now(n)).unwrap();
        journal.trim(0).unwrap();
    }
    assert_eq!(journal.syncs(), 0);
    let (mut journal, _) = {
        drop(journal);
        Journal::open(dir.path(), JournalSettings { sync_every: Some(Duration::ZERO), ..small() }).unwrap()
    };
    assert_eq!(replay(&mut journal).1.len(), 50);
    journal.append(&readings(9, 10), &registry, now(9)).unwrap();
    journal.trim(0).unwrap();
    assert_eq!(journal.syncs(), 1);
}
