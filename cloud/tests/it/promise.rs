//! What intake promises when two clouds share a database, when connections to it die, and when a gateway or the cloud works on
//! an old copy of its data.

use std::{sync::Arc, time::Duration};

use gemba_cloud::{
    clock,
    intake::write::{Days, Outcome},
    store::Store,
};
use gemba_mqtt::delivery::{Delivery, Progress, Publish};
use gemba_shared::{
    frame,
    message::{Batch, CatalogWanted, Catalogs, Downlink, Lane, Receipt, Uplink},
    telemetry::{Record, Timestamp},
    topic::Channel,
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};
use tokio::{sync::mpsc, task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    database,
    plant::{self, Bench, Gateway, ago, batch, bench, catalog, cloud_key, count, rows, summaries, summary},
};

const DEADLINE: Duration = Duration::from_mins(1);

/// A cloud's intake that runs.
pub(crate) struct Cloud {
    bench: Bench,
    deliveries: mpsc::Sender<Delivery>,
    progress: Arc<Progress>,
    handed: u64,
    running: JoinHandle<()>,
}

impl Cloud {
    pub(crate) fn start(store: &Store) -> Self {
        let bench = bench(store);
        let (deliveries, delivered) = mpsc::channel(4);
        let running = tokio::spawn(Arc::clone(&bench.intake).run(delivered, CancellationToken::new()));
        Self { bench, deliveries, progress: Arc::default(), handed: 0, running }
    }

    pub(crate) async fn hand(&mut self, message: Publish) {
        self.handed += 1;
        let delivery = Delivery::new("g".into(), vec![message], Arc::clone(&self.progress), self.handed);
        timeout(DEADLINE, self.deliveries.send(delivery)).await.expect("back-pressure ends").expect("intake runs");
    }

    async fn settled(&self) {
        let settled = async {
            while self.progress.safe_through() < self.handed {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(DEADLINE, settled).await.expect("all is settled");
    }

    /// What was said to this gateway.
    pub(crate) fn said(&mut self, gateway: &Gateway) -> Vec<Downlink> {
        let mut said = Vec::new();
        while let Ok(answer) = self.bench.answers.try_recv() {
            if answer.gateway == gateway.wire_id() {
                let key = cloud_key().verifying_key();
                said.push(frame::open(&answer.frame, gateway.wire_id(), &key).expect("signed by the cloud"));
            }
        }
        said
    }

    pub(crate) async fn end(self) {
        drop(self.deliveries);
        timeout(DEADLINE, self.running).await.expect("it ends when nobody delivers").unwrap();
    }
}

/// A catalog and `n` summaries of a machine, from number 1 of a lane.
fn stream(name: &str, n: usize) -> Vec<Record> {
    let summaries = (0..n).map(|i| summary(name, ago(1_000_000 - 10 * i as i64), &[i as f64]));
    std::iter::once(catalog(name, 1, &["a"])).chain(summaries).collect()
}

fn receipts(said: &[Downlink]) -> Vec<Receipt> {
    let receipts = said.iter().filter_map(|said| match said {
        Downlink::Receipt(receipt) => Some(*receipt),
        _ => None,
    });
    receipts.collect()
}

/// Two clouds with pools of their own get everything of two gateways, in any order, again and again, while connections to the
/// database are killed in the middle.
#[tokio::test(flavor = "multi_thread")]
async fn two_clouds_whose_connections_die_store_everything_once() {
    const RECORDS: usize = 201;
    let config = database::config().await;
    let stores = [(); 2].map(|()| Store::new(config.clone(), 6).unwrap());
    let gateways = [plant::enrolled(&stores[0], "g").await, plant::enrolled(&stores[0], "h").await];
    let mut messages = Vec::new();
    for (gateway, name) in gateways.iter().zip(["m", "n"]) {
        let records = stream(name, RECORDS - 1);
        for lane in Lane::ALL {
            // The events' lane carries summaries too: only their numbers count here, their rows are the same.
            for (i, chunk) in records.chunks(9).enumerate() {
                messages.push(gateway.publish_batch(batch(lane, 1 + 9 * i as u64, chunk.to_vec())));
            }
        }
    }
    let seed = rand::random::<u64>();
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let killing = CancellationToken::new();
    let killer = tokio::spawn(kill_connections(config, killing.clone()));
    let mut feeds = Vec::new();
    for store in &stores {
        let mut cloud = Cloud::start(store);
        let mut mine = messages.clone();
        let mut rng = StdRng::seed_from_u64(rng.random());
        let store = store.clone();
        feeds.push(tokio::spawn(async move {
            // As gateways do that get no receipt: all of it again, until it is there.
            while count(&store, "SELECT coalesce(sum(through), 0)::bigint FROM lanes").await < 4 * RECORDS as i64 {
                for neighbours in mine.chunks_mut(6) {
                    neighbours.shuffle(&mut rng);
                }
                for message in &mine {
                    cloud.hand(message.clone()).await;
                }
                cloud.settled().await;
            }
            cloud
        }));
    }
    let mut failed = 0;
    for feed in feeds {
        let mut cloud = timeout(DEADLINE, feed).await.expect("it is stored in time").unwrap();
        failed += cloud.bench.metrics.transactions_failed.get();
        for receipt in gateways.iter().flat_map(|gateway| receipts(&cloud.said(gateway))) {
            assert!(receipt.through <= RECORDS as u64);
        }
        cloud.end().await;
    }
    killing.cancel();
    println!("{} connections killed, {failed} transactions failed", killer.await.unwrap());
    assert_eq!(
        rows(&stores[0], "SELECT count(*), count(DISTINCT (machine_key, start)) FROM summaries").await,
        "400 400"
    );
    crate::history::check_rollups(&stores[0]).await;
    assert_eq!(rows(&stores[0], "SELECT DISTINCT through FROM lanes").await, "201");
    assert_eq!(count(&stores[0], "SELECT count(*) FROM gaps").await, 0);
    assert_eq!(count(&stores[0], "SELECT count(*) FROM refusals").await, 0);
}

/// Ends the connections that are in a transaction, every third of a second; how many.
async fn kill_connections(config: tokio_postgres::Config, cancel: CancellationToken) -> i64 {
    let (client, connection) = config.connect(tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    let mut killed = 0;
    while !cancel.is_cancelled() {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let sql = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                   WHERE datname = current_database() AND pid <> pg_backend_pid() AND xact_start IS NOT NULL";
        killed += client.query_one(sql, &[]).await.unwrap().get::<_, i64>(0);
    }
    killed
}

async fn take(bench: &Bench, gateway: &Gateway, batch: Batch) -> Outcome {
    bench.intake.write(&[gateway.incoming(batch)], &Days::default(), clock::now()).await.expect("it is stored")
}

#[tokio::test]
async fn an_old_copy_of_a_gateway_is_not_taken_for_the_gateway() {
    let store = database::store().await;
    let bench = bench(&store);
    let gateway = plant::enrolled(&store, "g").await;
    let records = stream("m", 9);
    let tail = records[9].digest();
    take(&bench, &gateway, summaries(1, records.clone())).await;

    // It works on, from a copy of its data in which only five were made, with other records under the numbers.
    let other = |number: i64| summary("m", ago(500_000 - 10 * number), &[0.5]);
    let batch = summaries(6, (6..16).map(other).collect());
    let outcome = take(&bench, &gateway, batch).await;
    assert_eq!((outcome.counts.diverged, outcome.counts.records), (1, 0));
    let stored = outcome.stored.values().next().unwrap();
    assert_eq!((stored.through, stored.tail), (10, Some(tail)), "the receipt tells the gateway");
    let batch = Batch { before: Some(other(10).digest()), ..summaries(11, vec![other(11)]) };
    assert_eq!(take(&bench, &gateway, batch).await.counts.diverged, 1);
    assert_eq!(count(&store, "SELECT count(*) FROM summaries").await, 9);
    // The gateway itself goes on.
    let batch = Batch { before: Some(tail), ..summaries(11, vec![summary("m", ago(10), &[1.0])]) };
    assert_eq!(take(&bench, &gateway, batch).await.counts.records, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_the_cloud_does_not_know_is_asked_for_and_nothing_is_refused() {
    let store = database::store().await;
    let gateway = plant::enrolled(&store, "g").await;
    let mut cloud = Cloud::start(&store);
    // The catalog was let go long ago; this database never had it.
    let at = |i: i64| summary("m", ago(1_000 - 10 * i), &[1.0, 2.0]);
    let backlog = Batch { oldest: 41, ..summaries(41, vec![at(1), at(2)]) };
    cloud.hand(gateway.publish_batch(backlog.clone())).await;
    cloud.settled().await;
    let said = cloud.said(&gateway);
    let wanted = said.iter().find_map(|said| match said {
        Downlink::CatalogWanted(CatalogWanted { seq, machine }) => Some((seq.number, machine.as_str().to_owned())),
        _ => None,
    });
    assert_eq!(wanted, Some((41, "m".to_owned())), "{said:?}");
    assert!(receipts(&said).iter().all(|receipt| receipt.through == 40), "{said:?}");

    let Record::Catalog(known) = catalog("m", 7, &["a", "b"]) else { panic!("a catalog") };
    let catalogs = Catalogs { epoch: backlog.seq.epoch, catalogs: vec![known] };
    cloud.hand(gateway.publish(&Uplink::Catalogs(catalogs), Channel::Status)).await;
    cloud.hand(gateway.publish_batch(backlog)).await;
    cloud.settled().await;
    assert!(receipts(&cloud.said(&gateway)).iter().any(|receipt| receipt.through == 42));
    assert_eq!(rows(&store, "SELECT lasts FROM summaries").await, "{1,2}\n{1,2}");
    assert_eq!(rows(&store, "SELECT first, last, reason FROM gaps").await, "1 40 skipped");
    assert_eq!(count(&store, "SELECT count(*) FROM refusals").await, 0);
    cloud.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cloud_that_starts_tells_a_gateway_that_it_hears_where_its_lanes_stand() {
    let store = database::store().await;
    let gateway = plant::enrolled(&store, "g").await;
    take(&bench(&store), &gateway, summaries(1, stream("m", 4))).await;
    let mut cloud = Cloud::start(&store);
    let nothing = gemba_shared::message::Live {
        at: Timestamp(0),
        clock: gemba_shared::telemetry::Clock::Trusted,
        machines: Vec::new(),
    };
    let begun = tokio::time::Instant::now();
    cloud.hand(gateway.publish(&Uplink::Live(nothing), Channel::Live)).await;
    let greeted = async {
        loop {
            if let Some(receipt) = receipts(&cloud.said(&gateway)).pop() {
                return receipt;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let receipt = timeout(DEADLINE, greeted).await.expect("a receipt");
    println!("greeted after {:?}", begun.elapsed());
    assert_eq!((receipt.lane, receipt.through), (Lane::Summaries, 5));
    assert!(receipt.tail.is_some());
    cloud.end().await;
}
