//! What the gateway does with the answers of a cloud, good and bad: the test is the cloud behind a real gate.
//! That the real cloud stores everything once is in `whole_path`.

use std::{
    collections::VecDeque,
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use ed25519_dalek::SigningKey;
use gemba_edge::identity;
use gemba_mqtt::{
    broker::{Broker, BrokerSettings, Publisher},
    delivery::Delivery,
    gate::{Denied, Filter, Gate, Grant, Limits, Listener},
};
use gemba_shared::{
    enrolment::{Enrolled, Mqtt},
    frame,
    ids::{GatewayId, MachineId},
    message::{Batch, CatalogWanted, Command, CommandKind, Downlink, Lane, Outcome, Receipt, Refused, Seq, Uplink},
    telemetry::{Event, EventKind, Gap, GapReason, Record, Timestamp},
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
    /// Nobody is let in.
    closed: Arc<AtomicBool>,
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
        let closed = Arc::new(AtomicBool::new(false));
        let is_closed = Arc::clone(&closed);
        let grant = Arc::new(Grant {
            name: "gateway".into(),
            publish: vec![Filter::new(&topic::up_filter(GATEWAY)).unwrap()],
            subscribe: vec![Filter::new(&topic::down(GATEWAY)).unwrap()],
        });
        tokio::spawn(async move {
            gate.run(
                Arc::new(move |_| {
                    let granted = if is_closed.load(Relaxed) { Err(Denied::BadCredentials) } else { Ok(grant.clone()) };
                    Box::pin(async move { granted })
                }),
                sender,
                cancel,
            )
            .await;
        });
        let [key, gateway_key] = [1, 2].map(|seed| SigningKey::from_bytes(&[seed; 32]));
        Self { key, gateway_key, broker: publisher, deliveries, received: VecDeque::new(), url, closed, _end: end }
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
    Downlink::Receipt(Receipt {
        epoch: batch.seq.epoch,
        lane: batch.seq.lane,
        through,
        now: Timestamp(0),
        tail: tail(batch, through),
    })
}

/// The digest of the record `number`, if it is in the batch.
fn tail(batch: &Batch, number: u64) -> Option<u32> {
    let place = usize::try_from(number.checked_sub(batch.seq.number)?).ok()?;
    batch.records.get(place).map(Record::digest)
}

fn backlog(gateway: &Gateway) -> u64 {
    gateway.metric("gemba_edge_backlog_records")
}

#[tokio::test]
async fn only_the_enrolled_clouds_receipt_lets_records_go() {
    let mut cloud = Cloud::start().await;
    let mut gateway = Gateway::new("[defaults]\ninterval = \"1s\"\nlateness = \"0s\"\nhold = \"2s\"\n");
    cloud.enrol(&gateway.data());
    gateway.start().await;
    gateway.publish(&[("plant/p1/t", b"1")]).await;
    let batch = cloud.batch(Lane::Summaries).await;
    assert!(matches!(batch.records[0], Record::Catalog(_) | Record::Summary(_)), "{batch:?}");
    assert_eq!((batch.seq.number, batch.oldest), (1, 1));
    let held = backlog(&gateway);
    assert!(held > 0);

    // A stranger's receipt, and one of another outbox, change nothing.
    let refused = || gateway.metric("gemba_edge_uplink_receipts_total");
    cloud.say(&receipt(&batch, 1), &SigningKey::from_bytes(&[9; 32])).await;
    wait("the stranger to be told of", || gateway.log_text().contains("does not have the key").then_some(())).await;
    let mut other = batch.clone();
    other.seq.epoch.0 ^= 1;
    cloud.say(&receipt(&other, 1), &cloud.key).await;
    wait("it to be judged", || (refused() >= 1).then_some(())).await;
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
    // The same once more lets nothing go.
    let before = gateway.metric("gemba_edge_outbox_released_total");
    let receipts = gateway.metric("gemba_edge_uplink_receipts_total");
    cloud.say(&receipt(&again, last), &cloud.key).await;
    let heard = || (gateway.metric("gemba_edge_uplink_receipts_total") > receipts).then_some(());
    wait("the repeated receipt to be judged", heard).await;
    assert_eq!(gateway.metric("gemba_edge_outbox_released_total"), before);
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

/// When the first anomaly opened that the gateway tells of.
async fn anomaly(cloud: &mut Cloud) -> Timestamp {
    loop {
        let batch = cloud.batch(Lane::Events).await;
        for record in &batch.records {
            if let Record::Event(Event { kind: EventKind::AnomalyOpened(anomaly), .. }) = record {
                return anomaly.opened;
            }
        }
        let last = batch.seq.number + batch.records.len() as u64 - 1;
        cloud.say(&receipt(&batch, last), &cloud.key).await;
    }
}

#[tokio::test]
async fn what_people_say_of_an_anomaly_reaches_its_detector_and_stays_there() {
    let mut cloud = Cloud::start().await;
    let mut gateway = enrolled(&cloud);
    gateway.start().await;
    while !matches!(cloud.next().await, Uplink::Status(_)) {}
    let reading = |second: i64| {
        let value = 10.0 + (second as f64 * 0.7).sin() + if second < 420 { 0.0 } else { 30.0 };
        format!("{{\"value\": {value}, \"time\": {}}}", 1_700_000_000_000 + second * 1_000).into_bytes()
    };
    let readings: Vec<Vec<u8>> = (0..500).map(reading).collect();
    let messages: Vec<(&str, &[u8])> = readings.iter().map(|payload| ("plant/p1/t", &payload[..])).collect();
    gateway.publish(&messages).await;
    let opened = anomaly(&mut cloud).await;

    let machine = MachineId::new("p1").unwrap();
    let at = [(opened, false), (opened.plus_us(1), true), (opened, true)];
    let mut told = Vec::new();
    for (id, (opened, real)) in (1..).zip(at) {
        let kind = CommandKind::LabelAnomaly { machine: machine.clone(), opened, real };
        cloud.say(&Downlink::Command(Command { id, expires: Timestamp(i64::MAX), kind }), &cloud.key).await;
        told.push(loop {
            match cloud.next().await {
                Uplink::CommandResult(result) if result.id == id => break result.outcome,
                _ => {}
            }
        });
    }
    assert!(matches!(&told[0], Outcome::Told(text) if text.contains("0 of 1 labelled")), "{told:?}");
    assert!(matches!(&told[1], Outcome::Failed(text) if text.contains("no anomaly of p1")), "{told:?}");
    assert!(matches!(&told[2], Outcome::Told(text) if text.contains("1 of 1 labelled")), "{told:?}");
    let stands = |text: String| text.contains("\"labelled\":1,\"real\":1,\"limits_width\":1.0").then_some(());
    wait("the status to show it", || gateway.get("status").and_then(stands)).await;
    gateway.kill();
    gateway.start().await;
    wait("the status to show it still", || gateway.get("status").and_then(stands)).await;
    gateway.terminate();
}

/// A gateway whose intervals are short, enrolled at this cloud.
fn enrolled(cloud: &Cloud) -> Gateway {
    let gateway = Gateway::new("[defaults]\ninterval = \"1s\"\nlateness = \"0s\"\nhold = \"2s\"\n");
    cloud.enrol(&gateway.data());
    gateway
}

/// How things stand between the gateway and the cloud.
fn link(gateway: &Gateway) -> String {
    let text = gateway.get("metrics").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("gemba_edge_link{") && line.ends_with(" 1.0"));
    line.and_then(|line| line.split('"').nth(1)).unwrap_or_default().to_owned()
}

/// Receipts everything of the summaries' lane until the gateway holds nothing.
async fn deliver(cloud: &mut Cloud, gateway: &Gateway) -> Vec<Batch> {
    let mut batches = Vec::new();
    while backlog(gateway) > 0 {
        if let Uplink::Batch(batch) = cloud.next().await {
            let last = batch.seq.number + batch.records.len() as u64 - 1;
            cloud.say(&receipt(&batch, last), &cloud.key).await;
            batches.push(batch);
        }
    }
    batches
}

#[tokio::test]
async fn a_record_that_the_cloud_refuses_is_a_dead_letter_and_holds_nothing_up() {
    let mut cloud = Cloud::start().await;
    let mut gateway = enrolled(&cloud);
    gateway.start().await;
    gateway.publish(&[("plant/p1/t", b"1")]).await;
    let mut batch = cloud.batch(Lane::Summaries).await;
    while !batch.records.iter().any(|record| matches!(record, Record::Summary(_))) {
        batch = cloud.batch(Lane::Summaries).await;
    }
    let place = batch.records.iter().position(|record| matches!(record, Record::Summary(_))).unwrap();
    let number = batch.seq.number + place as u64;
    let refused = Refused { seq: Seq { number, ..batch.seq }, reason: "time_out_of_bounds".into() };
    for _ in 0..2 {
        cloud.say(&Downlink::Refused(refused.clone()), &cloud.key).await;
    }
    let buried = || (gateway.metric("gemba_edge_outbox_refused_total") == 1).then_some(());
    wait("the record to be set aside", buried).await;
    let letters = gateway.data().join("outbox/dead-letters");
    let letters: Vec<_> = fs::read_dir(&letters).unwrap().map(|entry| entry.unwrap().path()).collect();
    let [letter] = letters.as_slice() else { panic!("{letters:?}") };
    let letter = fs::read_to_string(letter).unwrap();
    assert!(letter.contains("time_out_of_bounds") && letter.contains("p1"), "{letter}");

    // What comes again has a gap in its place, and everything is delivered.
    let is_told = |record: &Record| matches!(record, Record::Gap(Gap { reason: GapReason::Refused, count: 1, .. }));
    while !cloud.batch(Lane::Summaries).await.records.iter().any(is_told) {}
    gateway.publish(&[("plant/p1/t", b"2")]).await;
    deliver(&mut cloud, &gateway).await;
    gateway.terminate();
}

#[tokio::test]
async fn an_old_copy_of_the_data_is_noticed_and_what_is_held_goes_under_a_new_epoch() {
    let mut cloud = Cloud::start().await;
    let mut gateway = enrolled(&cloud);
    gateway.start().await;
    gateway.publish(&[("plant/p1/t", b"1")]).await;
    wait("a record", || (backlog(&gateway) > 0).then_some(())).await;
    deliver(&mut cloud, &gateway).await;
    gateway.terminate();
    let copy = gateway.path().join("copy");
    copy_tree(&gateway.data(), &copy);

    gateway.start().await;
    let mut stored: Option<Batch> = None;
    for value in [b"2", b"3", b"4"] {
        gateway.publish(&[("plant/p1/t", value)]).await;
        wait("a record", || (backlog(&gateway) > 0).then_some(())).await;
        stored = deliver(&mut cloud, &gateway).await.pop().or(stored);
    }
    gateway.terminate();
    let stored = stored.unwrap();
    let through = stored.seq.number + stored.records.len() as u64 - 1;
    let truth = receipt(&stored, through);

    fs::remove_dir_all(gateway.data()).unwrap();
    copy_tree(&copy, &gateway.data());
    while cloud.deliveries.try_recv().is_ok() {}
    cloud.received.clear();
    gateway.start().await;
    let mut batch = None;
    // It makes more than the cloud has under its numbers, and hears of it only then.
    for value in 10..20_u32 {
        gateway.publish(&[("plant/p1/t", value.to_string().as_bytes())]).await;
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    }
    while batch.as_ref().is_none_or(|batch: &Batch| batch.seq.lane != stored.seq.lane) {
        batch = Some(cloud.batch(stored.seq.lane).await);
    }
    assert_eq!(batch.unwrap().seq.epoch, stored.seq.epoch, "the copy does not know better");
    cloud.say(&truth, &cloud.key).await;
    let renewed = || (gateway.metric("gemba_edge_uplink_epochs_renewed_total") == 1).then_some(());
    wait("the gateway to notice", renewed).await;
    let mut anew = cloud.batch(stored.seq.lane).await;
    while anew.seq.epoch == stored.seq.epoch {
        anew = cloud.batch(stored.seq.lane).await;
    }
    assert!(matches!(anew.records[0], Record::Catalog(_)), "{anew:?}");
    assert!(gateway.log_text().contains("an old copy of its data directory was put back"));
    deliver(&mut cloud, &gateway).await;
    gateway.terminate();
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), &target).unwrap();
        }
    }
}

#[tokio::test]
async fn a_cloud_that_does_not_know_a_machine_is_told_its_catalog() {
    let mut cloud = Cloud::start().await;
    let mut gateway = enrolled(&cloud);
    gateway.start().await;
    gateway.publish(&[("plant/p1/t", b"1")]).await;
    let batch = cloud.batch(Lane::Summaries).await;
    let machine = MachineId::new("p1").unwrap();
    let wanted = |name: &str| CatalogWanted { seq: batch.seq, machine: MachineId::new(name).unwrap() };
    cloud.say(&Downlink::CatalogWanted(wanted("p1")), &cloud.key).await;
    let catalogs = loop {
        if let Uplink::Catalogs(catalogs) = cloud.next().await {
            break catalogs;
        }
    };
    assert_eq!((catalogs.epoch, &catalogs.catalogs[0].machine), (batch.seq.epoch, &machine));
    assert_eq!(catalogs.catalogs[0].sensors.len(), 1);
    // A machine that the gateway does not know either holds its lane up no longer.
    cloud.say(&Downlink::CatalogWanted(wanted("nobody")), &cloud.key).await;
    wait("a dead letter", || (gateway.metric("gemba_edge_outbox_refused_total") == 1).then_some(())).await;
    gateway.terminate();
}

#[tokio::test]
async fn it_is_told_apart_whether_the_cloud_is_away_or_does_not_want_or_is_another() {
    let mut cloud = Cloud::start().await;
    let mut gateway = enrolled(&cloud);
    cloud.closed.store(true, Relaxed);
    gateway.start().await;
    wait("denial", || (link(&gateway) == "denied").then_some(())).await;
    assert!(gateway.log_text().contains("does not let this gateway in"));
    assert!(gateway.get("status").unwrap_or_default().contains("revoked"));
    cloud.closed.store(false, Relaxed);
    wait("a connection", || (link(&gateway) == "connected").then_some(())).await;
    gateway.publish(&[("plant/p1/t", b"1")]).await;
    let batch = cloud.batch(Lane::Summaries).await;
    cloud.say(&receipt(&batch, 1), &SigningKey::from_bytes(&[9; 32])).await;
    wait("a foreign key", || (link(&gateway) == "foreign_key").then_some(())).await;
    cloud.say(&receipt(&batch, 1), &cloud.key).await;
    wait("the right key", || (link(&gateway) == "connected").then_some(())).await;
    drop(cloud);
    gateway.terminate();
}
