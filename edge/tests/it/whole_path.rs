//! The whole path with the real parts: two daemons, PostgreSQL, recordings over MQTT, a link that is cut and
//! processes that are killed; then every value sent is compared with every row stored.

use std::path::{Path, PathBuf};

use crate::plant::{Plant, count, made_up_recording, wait, wait_for_rows};

#[tokio::test(flavor = "multi_thread")]
async fn every_value_sent_is_stored_once_through_cuts_and_kills() {
    let mut plant = Plant::start().await;
    let database = plant.database().await;
    let made_up = plant.directory.path().join("made-up.csv");
    made_up_recording(&made_up, 6_000);
    let labels: &[&str] = &["--ignore-columns", "anomaly,changepoint"];
    let mut recordings = vec![(made_up, "made-up", &[][..])];
    let skab = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/skab/valve1");
    if skab.exists() {
        recordings.extend([(skab.join("0.csv"), "valve-0", labels), (skab.join("5.csv"), "valve-5", labels)]);
    } else {
        println!("skipped: the recordings in {} (absent)", skab.display());
    }
    let replays: Vec<_> = recordings.iter().map(|(path, machine, more)| plant.replay(path, machine, more)).collect();

    wait_for_rows(&database, 10).await;
    plant.link.cut();
    let before = count(&database, "SELECT count(*) FROM summaries").await;
    wait("a backlog on the gateway", || plant.edge_metric("gemba_edge_backlog_records") > 20.0).await;
    assert!(count(&database, "SELECT count(*) FROM summaries").await <= before + 10, "the link was cut");
    plant.link.mend();
    wait_for_rows(&database, before + 20).await;
    plant.restart_edge().await;
    let before = count(&database, "SELECT count(*) FROM summaries").await;
    wait_for_rows(&database, before + 10).await;
    plant.restart_cloud();

    let mut ledgers = Vec::new();
    for (process, ledger) in replays {
        process.succeeded().await;
        ledgers.push(ledger);
    }
    let ledgers: Vec<&Path> = ledgers.iter().map(PathBuf::as_path).collect();
    plant.all_stored_once(&database, &ledgers).await;
    if skab.exists() {
        assert!(
            count(&database, "SELECT count(*) FROM alarms WHERE condition = 'anomaly'").await >= 2,
            "each valve raised an alarm"
        );
    }
    let Plant { edge, cloud, .. } = plant;
    edge.terminate();
    cloud.terminate();
}
