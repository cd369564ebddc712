//! Networks: between devices and gateway, gateway and cloud, cloud and database.

use std::{path::PathBuf, time::Duration};

use rand::RngExt as _;

use super::{Fleet, PATIENT, Pace, Told, is_long, rounds};
use crate::{
    plant::{Plant, Setting, wait},
    proxy::{Mode, Proxy},
};

const SLOW: Mode = Mode::Slow { delay: Duration::from_millis(200), bytes_per_s: 20_000 };
const MODES: [Mode; 4] = [Mode::Cut, Mode::Stall, Mode::AnswersStall, SLOW];

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_or_double_on_networks_that_break_in_every_way() {
    let mut told = Told::new("link");
    let mut plant = Plant::start_as(Setting { edge: PATIENT, ..Setting::default() }).await;
    let database = between_cloud_and_database(&mut plant);
    let door = Proxy::start(plant.mqtt).await;
    let fleet = Fleet::start(door.address, Pace::default());
    let rounds = rounds(12, 120);
    for round in 0..rounds {
        fleet.goes_on(50).await;
        told.a_moment(100).await;
        let links = [&door, &plant.link, &database];
        let link = links[round as usize % links.len()];
        link.set(MODES[told.random.random_range(0..MODES.len())]);
        told.a_moment(if is_long() { 5_000 } else { 800 }).await;
        link.mend();
        // What nobody tells either end of is noticed by keep-alives only, which takes a minute.
        if is_long() && round % 10 == 9 {
            link.forget_connections();
        }
    }
    let sent = fleet.finish().await;
    told.all_stored_once(&plant, &sent, &format!("{rounds} times: devices, uplink, database in turn")).await;
    plant.stop();
}

/// Has the cloud reach its PostgreSQL through a proxy, as it would one on another machine.
fn between_cloud_and_database(plant: &mut Plant) -> Proxy {
    let (sockets, password) = plant.postgres();
    let socket = |directory: &std::path::Path| directory.join(".s.PGSQL.5432");
    let listen = plant.directory.path().join("sockets");
    std::fs::create_dir(&listen).unwrap();
    let proxy = Proxy::start_unix(&socket(&listen), socket(&PathBuf::from(sockets)));
    let url = format!("database_url = \"postgresql://gemba:{password}@/gemba?host={}\"\n", listen.display());
    let config = plant.directory.path().join("cloud.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, url + &text).unwrap();
    plant.restart_cloud();
    proxy
}

#[tokio::test(flavor = "multi_thread")]
async fn an_hour_without_a_link_arrives_whole() {
    let told = Told::new("outage");
    let plant = Plant::start_as(Setting { edge: PATIENT, ..Setting::default() }).await;
    let hours = if is_long() { 5 } else { 1 };
    // A second of the devices' in a millisecond: the longer the outage, the longer the uplink pauses before it tries again.
    let pace = Pace { machines: 1, step: Duration::from_secs(1), every: Duration::from_millis(1), ..Pace::default() };
    let fleet = Fleet::start(plant.mqtt, pace);
    fleet.goes_on(400).await;
    plant.link.cut();
    fleet.goes_on(u64::from(pace.machines * pace.sensors) * 3_600 * hours).await;
    // What is closed waits on the disk; the last intervals are still open.
    let backlog = plant.edge_metric("gemba_edge_backlog_records");
    assert!(backlog > f64::from(pace.machines) * 300.0 * hours as f64, "{backlog} records wait");
    plant.link.mend();
    let mended = std::time::Instant::now();
    wait("the backlog to be delivered", || plant.edge_metric("gemba_edge_backlog_records") < backlog / 20.0).await;
    let drained = mended.elapsed().as_secs_f64();
    let sent = fleet.finish().await;
    let more =
        format!("{hours} h of event time without a link, {backlog} records delivered {drained:.1} s after it returned");
    told.all_stored_once(&plant, &sent, &more).await;
    plant.stop();
}
