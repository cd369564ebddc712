//! What the gateway does with the answers of a cloud, good and bad: the test is the cloud behind a real gate.
//! That the real cloud stores everything once is in `whole_path`.

use std::{collections::VecDeque, path::Path, sync::Arc};

use ed25519_dalek::SigningKey;
use gemba_edge::identity;
use gemba_mqtt::{
    broker::{Broker, BrokerSettings, Publisher},
    delivery::Delivery,
    gate::{Filter, Gate, Grant, Limits, Listener},
};
use gemba_shared::{
    enrolment::{Enrolled, Mqtt},
    frame,
    ids::{GatewayId, MachineId},
    message::{Batch, Command, CommandKind, Downlink, Lane, Outcome, Receipt, Uplink},
    telemetry::{Record, Timestamp},
    topic,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::gateway::{Gateway, wait};

const GATEWAY: GatewayId = GatewayId::from_bytes([5; 16]);

struct Cloud {
    key: SigningKey,
    gateway_key: SigningKey,
    broker: Publisher,
    deliveries: mpsc::Receiver<Delivery>,
    received: VecDeque<Uplink>,
    url: String,
    _end: tokio_util::sync::DropGuard,
}

impl Cloud {
    async fn start() -> Self {
        let broker = Broker::start(BrokerSettings::default()).unwrap();
        let publisher = broker.publisher();
        let listener = Listener { address: "127.0.0.1:0".parse().unwrap(), tls: None };
        let gate = Gate::bind(vec![listener], Limits::default(), broker).await.unwrap();
        let url = format!("mqtt://{}", gate.addresses()[0]);
        let (sender, deliveries) = mpsc::channel(64);
        let cancel = CancellationToken::new();
        let end = cancel.clone().drop_guard();
        let grant = Arc::new(Grant {
            name: "gateway".into(),
            publish: vec![Filter::new(&topic::up_filter(GATEWAY)).unwrap()],
            subscribe: vec![Filter::new(&topic::down(GATEWAY)).unwrap()],
        });
        tokio::spawn(async move {
            gate.run(
                Arc::new(move |_| {
                    let grant = grant.clone();
                    Box::pin(async move { Ok(grant) })
                }),
                sender,
                cancel,
            )
            .await;
        });
        let [key, gateway_key] = [1, 2].map(|seed| SigningKey::from_bytes(&[seed; 32]));
        Self { key, gateway_key, broker: publisher, deliveries, received: VecDeque::new(), url, _end: end }
    }

    fn enrol(&self, data: &Path) {
        let mqtt = Mqtt { url: self.url.clone(), username: "g".into(), password: "p".into(), ca_pem: None };
        let enrolled = Enrolled { gateway: GATEWAY, cloud_key: self.key.verifying_key(), mqtt };
        identity::store(data, &self.gateway_key, enrolled).unwrap();
    }

    async fn next(&mut self) -> Uplink {
        if let Some(message) = self.received.pop_front() {
            return message;
        }
        let received = tokio::time::timeout(std::time::Duration::from_mins(1), self.deliveries.recv());
        let delivery = received.await.expect("the gateway sends").expect("the gate runs");
        for publish in &delivery.messages {
            let message = frame::open(&publish.payload, GATEWAY, &self.gateway_key.verifying_key()).unwrap();
            self.received.push_back(message);
        }
        delivery.acknowledge();
        self.received.pop_front().expect("a delivery holds a message")
    }

    async fn batch(&mut self, lane: Lane) -> Batch {
        loop {
            if let Uplink::Batch(batch) = self.next().await
                && batch.seq.lane == lane
            {
                return batch;
            }
        }
    }

    async fn say(&self, message: &Downlink, key: &SigningKey) {
        let frame = frame::seal(message, GATEWAY, key).unwrap();
        self.broker.publish(topic::down(GATEWAY), frame).await.unwrap();
    }
}

fn receipt(batch: &Batch, through: u64) -> Downlink {
    Downlink::Receipt(Receipt { epoch: batch.seq.epoch, lane: batch.seq.lane, through, now: Timestamp(0), tail: None })
}

fn backlog(gateway: &Gateway) -> u64 {
    gateway.metric("gemba_edge_backlog_records")
}

#[tokio::test]
async fn only_the_enrolled_clouds_receipt_lets_records_go() {
    let mut cloud = Cloud::start().await;
    let mut gateway = Gateway::new("[defaults]\ninterval = \"1s\"\nlateness = \"0s\"\n");
    cloud.enrol(&gateway.data());
    gateway.start().await;
    gateway.publish(&[("plant/p1/t", b"1")]).await;
    let batch = cloud.batch(Lane::Summaries).await;
    assert!(matches!(batch.records[0], Record::Catalog(_) | Record::Summary(_)), "{batch:?}");
    assert_eq!((batch.seq.number, batch.oldest), (1, 1));
    let held = backlog(&gateway);
    assert!(held > 0);

    // A stranger's receipt, one of another outbox, and one of numbers that do not exist change nothing.
    let refused = || gateway.metric("gemba_edge_uplink_receipts_total");
    cloud.say(&receipt(&batch, 1), &SigningKey::from_bytes(&[9; 32])).await;
    wait("the stranger to be told of", || gateway.log_text().contains("does not have the key").then_some(())).await;
    let mut other = batch.clone();
    other.seq.epoch.0 ^= 1;
    cloud.say(&receipt(&other, 1), &cloud.key).await;
    cloud.say(&receipt(&batch, 1_000_000), &cloud.key).await;
    wait("both to be judged", || (refused() >= 2).then_some(())).await;
    assert!(backlog(&gateway) >= held);

    // Without a receipt the batch comes again, also to a gateway that was killed.
    while cloud.batch(Lane::Summaries).await.seq != batch.seq {}
    gateway.kill();
    while cloud.deliveries.try_recv().is_ok() {}
    cloud.received.clear();
    gateway.start().await;
    let mut again = cloud.batch(Lane::Summaries).await;
    while again.seq != batch.seq {
        again = cloud.batch(Lane::Summaries).await;
    }
    assert_eq!(again.records[0], batch.records[0]);
    let last = again.seq.number + again.records.len() as u64 - 1;
    cloud.say(&receipt(&again, last), &cloud.key).await;
    let released = || (gateway.metric("gemba_edge_outbox_released_total") >= again.records.len() as u64).then_some(());
    wait("the records to be let go", released).await;
    gateway.terminate();
}

#[tokio::test]
async fn a_command_is_carried_out_once_and_answered() {
    let mut cloud = Cloud::start().await;
    let mut gateway = Gateway::new("");
    cloud.enrol(&gateway.data());
    gateway.start().await;
    gateway.publish(&[("plant/p1/t", b"1")]).await;
    // The status that follows the connection says that the subscription stands.
    while !matches!(cloud.next().await, Uplink::Status(_)) {}
    let command = |id, machine: &str| {
        let kind = CommandKind::Recalibrate { machine: MachineId::new(machine).unwrap() };
        Downlink::Command(Command { id, expires: Timestamp(i64::MAX), kind })
    };
    for (id, machine, done) in [(1, "p1", true), (2, "nobody", false), (2, "nobody", false)] {
        cloud.say(&command(id, machine), &cloud.key).await;
        let result = loop {
            if let Uplink::CommandResult(result) = cloud.next().await {
                break result;
            }
        };
        assert_eq!((result.id, result.outcome == Outcome::Done), (id, done), "{result:?}");
    }
    gateway.terminate();
}
