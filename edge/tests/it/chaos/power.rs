//! The power goes: what the gateway had not synced is gone, and the process with it. What it had acknowledged is not.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::ControlFlow,
};

use gemba_edge::generations::{Found, GenerationSettings, Generations, StoreError};
use rand::RngExt as _;

use super::{Fleet, PATIENT, Pace, Told, rounds};
use crate::{
    plant::{Plant, Setting},
    powercut::mount::Mounted,
};

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_is_there_after_a_power_cut() {
    let mut told = Told::new("power");
    let directory = Plant::new_directory();
    let Some(disk) = Mounted::new(&directory.path().join("edge")) else { return };
    let disk = Some((directory, disk));
    let mut plant = Plant::start_as(Setting { edge: PATIENT, disk, ..Setting::default() }).await;
    let fleet = Fleet::start(plant.mqtt, Pace::default());
    let rounds = rounds(10, 200);
    for _ in 0..rounds {
        fleet.goes_on(100).await;
        told.a_moment(400).await;
        cut(&mut plant, told.random.random());
        // The next cut may come while it starts.
        if told.random.random_bool(0.7) {
            plant.edge_ready().await;
        } else {
            told.a_moment(100).await;
            cut(&mut plant, told.random.random());
            plant.edge_ready().await;
        }
    }
    let sent = fleet.finish().await;
    let counts = plant.disk.as_ref().unwrap().disk().counts;
    assert!(counts.pages_lost > 0, "the cuts took something: {counts:?}");
    let more = format!(
        "{rounds} rounds; {} files and {} directories synced, {} unsynced pages and {} names lost",
        counts.file_syncs, counts.directory_syncs, counts.pages_lost, counts.names_lost
    );
    told.all_stored_once(&plant, &sent, &more).await;
    plant.stop();
}

/// First the disk stops, then the process: nothing that comes in between is on the disk.
fn cut(plant: &mut Plant, seed: u64) {
    let disk = plant.disk.as_mut().unwrap();
    disk.disk().cut(seed);
    plant.edge.kill();
    disk.power_on();
    plant.revive_edge();
}

/// Rows in generations, without the daemon around them: hundreds of cuts.
#[test]
fn rows_that_were_appended_are_there_after_a_power_cut() {
    let mut told = Told::new("power-rows");
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().join("disk");
    let Some(mut disk) = Mounted::new(&place) else { return };
    let settings = GenerationSettings { generation_bytes: 1 << 20, cache_bytes: 1 << 20 };
    let mut appended: BTreeSet<u64> = BTreeSet::new();
    // By generation, how far its tail has to be.
    let mut tails: BTreeMap<u64, u64> = BTreeMap::new();
    let mut next = 0_u64;
    let rounds = rounds(40, 2_000);
    for round in 0..rounds {
        let (mut generations, damage) = Generations::open(&place.join("rows"), settings).unwrap();
        let closed = generations.closed().iter().map(|(ordinal, closed)| (*ordinal, closed.tail.clone().unwrap()));
        let newest = generations.newest().map(|(ordinal, tail)| (ordinal, tail.to_vec()));
        let mut found = BTreeSet::new();
        for (ordinal, tail) in closed.chain(newest).collect::<Vec<_>>() {
            let promised = tails.get(&ordinal).copied().unwrap_or_default();
            let tail = u64::from_be_bytes(tail.try_into().unwrap());
            assert!(tail >= promised, "round {round}: the tail of {ordinal} is {tail}, it was {promised}");
            let each = |key: &[u8], value: Found| {
                assert!(matches!(value, Found::Intact(_)));
                found.insert(u64::from_be_bytes(*key[1..].first_chunk().unwrap()));
                ControlFlow::Continue(())
            };
            generations.scan(ordinal, b"a", each).unwrap();
        }
        let lost: Vec<_> = appended.difference(&found).collect();
        assert!(lost.is_empty() && damage.is_none(), "round {round}: lost {lost:?}, {damage:?}");
        if told.random.random_bool(0.5) {
            generations.roll::<StoreError>(&next.to_be_bytes(), |_, _| Ok(())).unwrap();
        }
        // All but the newest three: a deletion that was not synced is undone by a cut, and is made again.
        while generations.closed().len() > 3 {
            let oldest = *generations.closed().keys().next().unwrap();
            let mut gone = BTreeSet::new();
            let each = |key: &[u8], _: Found| {
                gone.insert(u64::from_be_bytes(*key[1..].first_chunk().unwrap()));
                ControlFlow::Continue(())
            };
            generations.scan(oldest, b"a", each).unwrap();
            appended.retain(|number| !gone.contains(number));
            generations.delete(oldest);
        }
        if generations.newest().is_none() {
            generations.roll::<StoreError>(&next.to_be_bytes(), |_, _| Ok(())).unwrap();
        }
        for _ in 0..told.random.random_range(0..20) {
            let count = told.random.random_range(1..40_u64);
            let rows: Vec<_> = (next..next + count)
                .map(|number| ([b"a", &number.to_be_bytes()[..]].concat(), vec![number as u8; 500]))
                .collect();
            generations.append(&rows, &[], &(next + count).to_be_bytes()).unwrap();
            appended.extend(next..next + count);
            next += count;
            tails.insert(generations.newest().unwrap().0, next);
        }
        // What is left is what was there now; that sled ends in order does not change it.
        let mut left = disk.disk().clone();
        left.cut(told.random.random());
        drop(generations);
        *disk.disk() = left;
        disk.power_on();
    }
    let counts = disk.disk().counts;
    let used = disk.disk().used();
    assert!(used < 32 << 20, "{used} bytes for a handful of generations: what was deleted stayed");
    told.tell(&format!("{rounds} cuts, {next} rows; {used} bytes used; {counts:?}"));
}
