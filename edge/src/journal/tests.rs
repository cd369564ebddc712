//! What the journal gives back after kills and damage.

use gemba_shared::telemetry::Clock;
use tempfile::TempDir;

use super::*;

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
