//! The power goes: what the gateway had not synced is gone, and the process with it. What it had acknowledged is not.

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
