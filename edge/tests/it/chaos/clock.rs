//! A gateway whose clock begins in 1970, is set late, and jumps by hours: readings with times of their own do not care.
//!
//! libfaketime stands between the daemon and its wall clock. What arrives without a time of its own is in `crate::clock`.

use std::fs;

use super::{Fleet, PATIENT, Pace, Told, rounds};
use crate::plant::{FAKETIME, FAKETIME_LIBRARY, Plant, Setting};

#[tokio::test(flavor = "multi_thread")]
async fn times_of_readings_stand_while_the_gateways_clock_jumps() {
    if fs::metadata(FAKETIME_LIBRARY).is_err() {
        eprintln!("skipped: {FAKETIME_LIBRARY} is not there (apt install faketime)");
        return;
    }
    let mut told = Told::new("clock");
    let mut plant = Plant::start_as(Setting { edge: PATIENT, ..Setting::default() }).await;
    let clock = plant.directory.path().join(FAKETIME);
    let set = |to: &str| fs::write(&clock, format!("{to}\n")).unwrap();
    let fleet = Fleet::start(plant.mqtt, Pace::default());
    set("@1970-01-01 00:10:00");
    plant.restart_edge().await;
    let rounds = rounds(1, 20);
    for round in 0..rounds {
        for to in ["+0", "-2h", "+1h", "@1970-01-01 00:10:00"] {
            fleet.goes_on(200).await;
            told.a_moment(300).await;
            set(to);
            if round % 2 == 1 {
                fleet.goes_on(50).await;
                plant.restart_edge().await;
            }
        }
    }
    fleet.goes_on(200).await;
    set("+0");
    // Its connections to the cloud are refused in 1970, where the cloud's certificate is not good yet.
    plant.restart_edge().await;
    fleet.goes_on(200).await;
    let sent = fleet.finish().await;
    let more = format!("{rounds} times 1970, right, two hours behind, one ahead");
    told.all_stored_once(&plant, &sent, &more).await;
    plant.stop();
}
