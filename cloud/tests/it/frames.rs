//! Frames as they come from a broker: who is believed, and who is answered.

use std::{sync::Arc, time::Duration};

use ed25519_dalek::SigningKey;
use gemba_cloud::clock;
use gemba_mqtt::delivery::{Delivery, Progress, Publish};
use gemba_shared::{
    frame,
    message::{Batch, Count, Downlink, Epoch, Lane, Live, LiveMachine, Receipt, Seq, Status, Uplink},
    telemetry::Clock,
    topic::{self, Channel},
};
use tokio::{sync::mpsc, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    database,
    plant::{self, Gateway, ago, batch, bench, catalog, cloud_key, machine, rows, summaries, summary, verdict},
};

const DEADLINE: Duration = Duration::from_secs(20);

struct Line {
    store: gemba_cloud::store::Store,
    bench: plant::Bench,
    gateway: Gateway,
    deliveries: mpsc::Sender<Delivery>,
    progress: Arc<Progress>,
    sent: u64,
    cancel: CancellationToken,
}

impl Line {
    async fn new() -> Self {
        let store = database::store().await;
        let bench = bench(&store);
        let gateway = plant::enrolled(&store, "g").await;
        let (deliveries, delivered) = mpsc::channel(16);
        let cancel = CancellationToken::new();
        tokio::spawn(Arc::clone(&bench.intake).run(delivered, cancel.clone()));
        Self { store, bench, gateway, deliveries, progress: Arc::default(), sent: 0, cancel }
    }

    /// Hands messages over, and waits until they are acknowledged.
    async fn send(&mut self, messages: Vec<Publish>) {
        self.sent += messages.len() as u64;
        let delivery = Delivery::new("g".into(), messages, Arc::clone(&self.progress), self.sent);
        self.deliveries.send(delivery).await.expect("intake runs");
        let safe = async {
            while self.progress.safe_through() < self.sent {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(DEADLINE, safe).await.expect("it is acknowledged in time");
    }

    fn answers(&mut self) -> Vec<Downlink> {
        let mut answers = Vec::new();
        while let Ok(answer) = self.bench.answers.try_recv() {
            assert_eq!(answer.topic, topic::down(self.gateway.wire_id()));
            let key = cloud_key().verifying_key();
            answers.push(frame::open(&answer.frame, self.gateway.wire_id(), &key).expect("signed by the cloud"));
        }
        answers
    }

    fn refused(&self, reason: &str) -> bool {
        self.bench.metrics.page().contains(&format!("frames_refused_total{{reason=\"{reason}\"}}"))
    }
}

#[tokio::test]
async fn a_stored_batch_is_answered_with_a_signed_receipt() {
    let mut line = Line::new().await;
    let message =
        line.gateway.publish_batch(summaries(1, vec![catalog("m", 1, &["a"]), summary("m", ago(10), &[1.0])]));
    for _ in 0..2 {
        line.send(vec![message.clone()]).await;
        let answers = line.answers();
        let [Downlink::Receipt(Receipt { epoch, lane: Lane::Summaries, through: 2, .. }), ..] = answers[..] else {
            panic!("{answers:?}")
        };
        assert_eq!(epoch, Epoch(u64::MAX - 5));
    }
    let refused = line.gateway.publish_batch(batch(Lane::Events, 1, vec![summary("m", ago(-500_000), &[1.0])]));
    line.send(vec![refused]).await;
    let answers = line.answers();
    let is_refusal = |answers: &[Downlink]| matches!(answers, [Downlink::Refused(refused), Downlink::Receipt(_)] if refused.reason == "time_out_of_bounds");
    assert!(answers.windows(2).any(is_refusal), "{answers:?}");
    line.cancel.cancel();
}

#[tokio::test]
async fn frames_that_cannot_be_believed_are_counted_and_never_answered() {
    let mut line = Line::new().await;
    let gateway = line.gateway.clone();
    let other = plant::enrolled(&line.store, "other").await;
    let stranger = Gateway { id: uuid::Uuid::now_v7(), key: gateway.key.clone() };
    let forger = Gateway { id: gateway.id, key: SigningKey::from_bytes(&[1; 32]) };
    let good = || summaries(1, vec![catalog("m", 1, &["a"])]);
    let uplink = |batch: Batch| Uplink::Batch(batch);
    let mut cut = gateway.publish_batch(good());
    cut.payload = cut.payload.slice(..40);
    let mut newer = gateway.publish_batch(good()).payload.to_vec();
    newer[3] = 9;
    let mut damaged = gateway.publish_batch(good()).payload.to_vec();
    damaged[30] ^= 1;
    let with = |payload: Vec<u8>| Publish { payload: payload.into(), ..gateway.publish_batch(good()) };
    let elsewhere = Publish { topic: "gemba/v2/x".into(), ..gateway.publish_batch(good()) };
    let as_other = Publish { payload: other.publish_batch(good()).payload, ..gateway.publish_batch(good()) };
    let events = Channel::Lane(Lane::Events);
    let numbered = |number, oldest| Batch { seq: Seq { number, ..good().seq }, oldest, ..good() };
    for (reason, message) in [
        ("topic", elsewhere),
        ("unknown_gateway", stranger.publish_batch(good())),
        ("signature", forger.publish_batch(good())),
        ("gateway", as_other),
        ("truncated", cut),
        ("magic", with(b"no frame at all, though long enough to hold a header and a signature".to_vec())),
        ("version", with(newer)),
        ("checksum", with(damaged)),
        ("too_large", with(vec![0; frame::FRAME_BYTES_MAX + 1])),
        ("channel", gateway.publish(&uplink(good()), events)),
        ("channel", gateway.publish(&uplink(good()), Channel::Live)),
        ("batch_size", gateway.publish_batch(summaries(1, Vec::new()))),
        ("number", gateway.publish_batch(numbered(0, 1))),
        ("number", gateway.publish_batch(numbered(u64::MAX, 1))),
        ("number", gateway.publish_batch(numbered(1, u64::MAX))),
    ] {
        line.send(vec![message]).await;
        assert!(line.refused(reason), "{reason}: {}", line.bench.metrics.page());
        assert_eq!(line.answers(), [], "{reason}");
    }
    // A revoked gateway whose key is still remembered.
    line.send(vec![gateway.publish_batch(good())]).await;
    assert_eq!(line.answers().len(), 1);
    line.store.revoke_gateway(gateway.id, clock::now()).await.unwrap();
    line.send(vec![gateway.publish_batch(summaries(2, vec![catalog("n", 1, &["a"])]))]).await;
    assert!(line.refused("not_enrolled"));
    assert_eq!(line.answers(), []);
    assert_eq!(rows(&line.store, "SELECT name FROM machines").await, "m");
    line.cancel.cancel();
}

#[tokio::test]
async fn live_states_and_status_are_written_soon() {
    let mut line = Line::new().await;
    let gateway = line.gateway.clone();
    line.send(vec![gateway.publish_batch(summaries(1, vec![catalog("m", 1, &["a", "b"])]))]).await;
    let live = |name: &str, values: Vec<Option<f64>>| LiveMachine {
        machine: machine(name),
        at: ago(1),
        catalog_revision: 1,
        values,
        verdict: verdict(),
    };
    let machines = vec![live("m", vec![Some(1.5), None]), live("unknown", vec![Some(1.0)])];
    let live = Uplink::Live(Live { at: ago(0), clock: Clock::Trusted, machines });
    let status = Uplink::Status(Status {
        at: ago(0),
        clock: Clock::Untrusted,
        version: "0.1.0\0".into(),
        uptime_s: 5,
        machines: 1,
        backlog_records: 7,
        backlog_bytes: u64::MAX,
        drops: vec![Count { reason: "not_json".into(), count: 3 }],
    });
    line.send(vec![gateway.publish(&live, Channel::Live), gateway.publish(&status, Channel::Status)]).await;
    let seen = "SELECT m.last_values, m.detector, g.version, g.backlog_records, g.clock_trusted, g.drops, \
                       g.last_seen_at IS NOT NULL FROM gateways g JOIN machines m ON m.gateway_id = g.id \
                WHERE m.last_reading_at IS NOT NULL AND g.version IS NOT NULL";
    let expected = r#"{1.5,NULL} watching 0.1.0 7 f [{"count": 3, "reason": "not_json"}] t"#;
    let written = async {
        while rows(&line.store, seen).await != expected {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(DEADLINE, written).await.expect("it is written");
    line.cancel.cancel();
}

#[tokio::test]
async fn live_messages_of_one_gateway_that_come_together_are_all_taken() {
    let mut line = Line::new().await;
    let gateway = line.gateway.clone();
    let names: Vec<String> = (0..200).map(|n| format!("m{n:03}")).collect();
    let catalogs = names.iter().map(|name| catalog(name, 1, &["a"])).collect();
    line.send(vec![gateway.publish_batch(summaries(1, catalogs))]).await;
    // As an edge with many machines sends them: some in each message, all of one moment.
    let sent_at = ago(0);
    let messages = names.chunks(64).map(|names| {
        let machines = names.iter().map(|name| LiveMachine {
            machine: machine(name),
            at: ago(1),
            catalog_revision: 1,
            values: vec![Some(1.5)],
            verdict: verdict(),
        });
        let live = Live { at: sent_at, clock: Clock::Trusted, machines: machines.collect() };
        gateway.publish(&Uplink::Live(live), Channel::Live)
    });
    line.send(messages.collect()).await;
    let written = async {
        while rows(&line.store, "SELECT count(*) FROM machines WHERE last_reading_at IS NOT NULL").await != "200" {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(DEADLINE, written).await.expect("every machine has its state");
    line.cancel.cancel();
}
