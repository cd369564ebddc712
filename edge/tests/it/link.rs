//! A cloud behind a broker of one's own that is away for a while: nobody's connection breaks, and still nothing waits for long.

use std::time::{Duration, Instant};

use crate::{
    mosquitto::Broker,
    plant::{Brokers, Plant, count, get, made_up_recording, wait, wait_for_rows},
};

/// From the first second in which the cloud can store to the first row. A gateway by itself would wait for its timeouts, which
/// double up to a minute.
const SOON: Duration = Duration::from_secs(4);

#[tokio::test(flavor = "multi_thread")]
async fn a_cloud_that_comes_back_behind_a_broker_is_sent_what_waits_at_once() {
    let Some(broker) = Broker::start().await else { return };
    let mut plant = Plant::start_with(Brokers { devices: None, gateways: Some(&broker) }).await;
    let database = plant.database().await;
    let recording = plant.directory.path().join("made-up.csv");
    made_up_recording(&recording, 6_600);
    let (process, ledger) = plant.replay(&recording, "pump-1", &[]);
    wait_for_rows(&database, 5).await;
    plant.cloud.kill();
    let rows = count(&database, "SELECT count(*) FROM summaries").await;
    // One timeout has passed, and the next one would take ten seconds.
    wait("the gateway to miss the cloud", || plant.edge_metric("gemba_edge_uplink_resends_total") > 0.0).await;
    plant.restart_cloud();
    let config = std::fs::read_to_string(plant.directory.path().join("cloud.toml")).unwrap();
    let http = config.split("[http]\nlisten = \"").nth(1).and_then(|rest| rest.split('"').next()).unwrap();
    let ready = format!("http://{http}/readyz");
    wait("the cloud to be ready", || get(&ready).is_some()).await;
    let begun = Instant::now();
    wait_for_rows(&database, rows + 1).await;
    let waited = begun.elapsed();
    eprintln!("first row {:.2} s after the cloud was ready", waited.as_secs_f64());
    assert!(waited < SOON, "{waited:?}");
    process.succeeded().await;
    plant.all_stored_once(&database, &[&ledger]).await;
    plant.stop();
}
