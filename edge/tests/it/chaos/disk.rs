//! Disks that are full, read-only, broken for a while, or slow.

use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::{Fleet, PATIENT, Pace, Told, is_long};
use crate::{
    plant::{Plant, Setting, wait},
    powercut::{Faults, mount::Mounted},
};

const DISK_FAILURES: &str = "gemba_edge_disk_failures_total";

/// The gateway's data on a disk that does what it is told, and devices that publish; nothing where that cannot be mounted.
async fn on_a_bad_disk() -> Option<(Plant, Fleet)> {
    let directory = Plant::new_directory();
    let disk = Mounted::new(&directory.path().join("edge"))?;
    let disk = Some((directory, disk));
    let plant = Plant::start_as(Setting { edge: PATIENT, disk, ..Setting::default() }).await;
    let fleet = Fleet::start(plant.mqtt, Pace::default());
    fleet.goes_on(400).await;
    Some((plant, fleet))
}

fn disk(plant: &Plant) -> &Mounted {
    plant.disk.as_ref().unwrap()
}

/// While the disk takes nothing, nothing is acknowledged; when it does again, everything arrives.
async fn refuses(name: &'static str, faults: impl Fn(&Plant) -> Faults) {
    let told = Told::new(name);
    let Some((mut plant, fleet)) = on_a_bad_disk().await else { return };
    for restarts in [false, true] {
        disk(&plant).set_faults(faults(&plant));
        let failures = plant.edge_metric(DISK_FAILURES);
        wait("the disk to refuse", || plant.edge_metric(DISK_FAILURES) > failures).await;
        let (before, began) = (fleet.acknowledged(), Instant::now());
        tokio::time::sleep(Duration::from_millis(if is_long() { 20_000 } else { 1_000 })).await;
        let acknowledged = fleet.acknowledged() - before;
        // What was synced before may still be answered; at full speed this would be hundreds.
        assert!(acknowledged < 200, "{acknowledged} acknowledged in {:?} without a disk", began.elapsed());
        if restarts {
            // It cannot work, and may say so and end; the service manager starts it again.
            plant.edge.kill();
            plant.revive_edge();
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        disk(&plant).set_faults(Faults::default());
        if restarts && plant.edge.has_ended() {
            plant.revive_edge();
        }
        fleet.goes_on(400).await;
    }
    let sent = fleet.finish().await;
    told.all_stored_once(&plant, &sent, "twice, once with a SIGKILL meanwhile").await;
    plant.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_waited_for() {
    // A little room is left, so that it is met in the middle of things.
    refuses("disk-full", |plant| Faults { capacity: Some(disk(plant).disk().used() + 100_000), ..Faults::default() })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_became_read_only_is_waited_for() {
    refuses("disk-read-only", |_| Faults { writes_fail: Some(Errno::EROFS), ..Faults::default() }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fails_for_a_while_is_waited_for() {
    refuses("disk-fails", |_| Faults { writes_fail: Some(Errno::EIO), ..Faults::default() }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_disk_slows_and_loses_nothing() {
    let told = Told::new("disk-slow");
    let Some((plant, fleet)) = on_a_bad_disk().await else { return };
    let takes = Duration::from_secs(1);
    disk(&plant).set_faults(Faults { sync_takes: takes, ..Faults::default() });
    let begun = Instant::now();
    let goal = if is_long() { 20_000 } else { 200 };
    let before = fleet.acknowledged();
    fleet.goes_on(goal).await;
    let rate = (fleet.acknowledged() - before) as f64 / begun.elapsed().as_secs_f64();
    disk(&plant).set_faults(Faults::default());
    let sent = fleet.finish().await;
    let more = format!("{rate:.0} acknowledged a second while each sync took {takes:?}");
    told.all_stored_once(&plant, &sent, &more).await;
    plant.stop();
}
