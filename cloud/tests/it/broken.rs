//! A database that dies while batches are being stored.

use std::{os::unix::fs::PermissionsExt as _, sync::Arc, time::Duration};

use gemba_cloud::{
    cluster::{Cluster, Durability},
    store::Store,
};
use gemba_mqtt::delivery::{Delivery, Progress};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{sync::mpsc, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::plant::{self, ago, bench, catalog, count, summaries, summary};

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_database_loses_nothing_and_doubles_nothing() {
    const BATCHES: u64 = 200;
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
    let cluster = Arc::new(Cluster::start(&directory.path().join("pg"), Durability::Synced).await.unwrap());
    let cancel = CancellationToken::new();
    let kept = tokio::spawn({
        let (cluster, cancel) = (Arc::clone(&cluster), cancel.clone());
        async move { cluster.keep_running(&cancel).await }
    });
    let store = Store::new(cluster.config(), 8).unwrap();
    store.migrate().await.unwrap();
    let gateway = plant::enrolled(&store, "g").await;
    let bench = bench(&store);
    let (deliveries, delivered) = mpsc::channel(4);
    let running = tokio::spawn(Arc::clone(&bench.intake).run(delivered, CancellationToken::new()));

    let progress = Arc::new(Progress::default());
    let feed = tokio::spawn({
        let (gateway, progress) = (gateway.clone(), Arc::clone(&progress));
        async move {
            let first = gateway.publish_batch(summaries(1, vec![catalog("m", 1, &["a"])]));
            deliveries.send(Delivery::new("g".into(), vec![first], Arc::clone(&progress), 1)).await.unwrap();
            for i in 1..=BATCHES {
                let records = (0..5).map(|k| summary("m", ago(200_000 - 10 * (5 * i as i64 + k)), &[1.0])).collect();
                let message = gateway.publish_batch(summaries(2 + 5 * (i - 1), records));
                let delivery = Delivery::new("g".into(), vec![message], Arc::clone(&progress), 1 + i);
                deliveries.send(delivery).await.unwrap();
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            deliveries
        }
    });
    let some = async {
        while progress.safe_through() < 20 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(30), some).await.expect("it begins");
    kill(Pid::from_raw(cluster.server_pid().expect("it runs")), Signal::SIGKILL).unwrap();

    let deliveries = timeout(Duration::from_mins(1), feed).await.expect("back-pressure ends").unwrap();
    let all = async {
        while progress.safe_through() < 1 + BATCHES {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_mins(1), all).await.expect("all is stored");
    assert!(bench.metrics.transactions_failed.get() > 0, "it was seen");
    assert_eq!(count(&store, "SELECT count(*) FROM summaries").await, 5 * BATCHES as i64);
    assert_eq!(count(&store, "SELECT through FROM lanes").await, 1 + 5 * BATCHES as i64);
    drop(deliveries);
    timeout(Duration::from_secs(20), running).await.expect("it ends when nobody delivers").unwrap();
    store.close();
    cancel.cancel();
    kept.await.unwrap();
    Arc::into_inner(cluster).expect("nobody else has it").stop().await.unwrap();
}
