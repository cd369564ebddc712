//! Enrolled gateways, and what they would send.

use std::sync::Arc;

use ed25519_dalek::SigningKey;
use gemba_cloud::{
    clock,
    enrolment::{self, Enrolments, Offer},
    intake::{ANSWERS_MAX, Answer, Incoming, Intake, Parts, Settings},
    live::CHANGES_MAX,
    metrics::Metrics,
    store::{Store, enrolment::NewGateway},
};
use gemba_mqtt::delivery::Publish;
use gemba_shared::{
    enrolment::{Request, Token},
    frame,
    ids::{GatewayId, MachineId, SensorId},
    message::{Batch, Epoch, Lane, Seq, Uplink},
    telemetry::{
        Anomaly, Catalog, Clock, DetectorState, Event, EventKind, Mode, Quality, Record, Sensor, SensorSummary,
        Summary, Timestamp, Verdict,
    },
    topic::{self, Channel},
};
use tokio::sync::{broadcast, mpsc};
use tokio_postgres::{SimpleQueryMessage, SimpleQueryRow};
use uuid::Uuid;

/// An intake without its queue: `write` is called, or `run` with deliveries of the test's own.
pub(crate) struct Bench {
    pub intake: Arc<Intake>,
    pub answers: mpsc::Receiver<Answer>,
    pub metrics: Arc<Metrics>,
}

pub(crate) fn cloud_key() -> SigningKey {
    SigningKey::from_bytes(&[42; 32])
}

pub(crate) fn bench(store: &Store) -> Bench {
    let metrics = Arc::new(Metrics::default());
    let (answers, answered) = mpsc::channel(ANSWERS_MAX);
    let intake = Intake::new(Parts {
        store: store.clone(),
        signing: cloud_key(),
        changes: broadcast::channel(CHANGES_MAX).0,
        metrics: Arc::clone(&metrics),
        settings: Settings::default(),
        answers,
    });
    Bench { intake, answers: answered, metrics }
}

pub(crate) fn enrolments(store: &Store) -> Enrolments {
    Enrolments {
        store: store.clone(),
        signing: cloud_key(),
        offer: Offer { url: "mqtts://127.0.0.1:8883".into(), ca_pem: Some("CA".into()) },
        changes: broadcast::channel(CHANGES_MAX).0,
        metrics: Arc::default(),
    }
}

pub(crate) async fn token(store: &Store, name: &str, replaces: Option<Uuid>) -> Token {
    let new = NewGateway { name, site: "default", mqtt_url: None, replaces };
    enrolment::add(store, new, "http://127.0.0.1:8080/", &cloud_key(), clock::now()).await.expect("it is added").1
}

/// A gateway with a key of its own.
#[derive(Clone)]
pub(crate) struct Gateway {
    pub id: Uuid,
    pub key: SigningKey,
}

pub(crate) async fn enrolled(store: &Store, name: &str) -> Gateway {
    let token = token(store, name, None).await;
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).expect("random bytes");
    let key = SigningKey::from_bytes(&seed);
    let response = enrolments(store).enrol(&Request::new(&token.secret, &key), clock::now()).await.expect("enrolled");
    let enrolled = response.check(&token, &key.verifying_key()).expect("the cloud's answer");
    Gateway { id: Uuid::from_bytes(*enrolled.gateway.as_bytes()), key }
}

impl Gateway {
    pub(crate) fn wire_id(&self) -> GatewayId {
        GatewayId::from_bytes(*self.id.as_bytes())
    }

    pub(crate) fn incoming(&self, batch: Batch) -> Incoming<Batch> {
        Incoming { gateway: self.id, key: self.key.verifying_key().to_bytes(), content: batch }
    }

    pub(crate) fn publish(&self, message: &Uplink, channel: Channel) -> Publish {
        let frame = frame::seal(message, self.wire_id(), &self.key).expect("it fits");
        Publish {
            topic: topic::up(self.wire_id(), channel).into_bytes().into(),
            payload: frame.into(),
            retain: false,
            dup: false,
        }
    }

    pub(crate) fn publish_batch(&self, batch: Batch) -> Publish {
        let channel = Channel::Lane(batch.seq.lane);
        self.publish(&Uplink::Batch(batch), channel)
    }
}

pub(crate) fn batch(lane: Lane, number: u64, records: Vec<Record>) -> Batch {
    Batch { seq: Seq { epoch: Epoch(u64::MAX - 5), lane, number }, oldest: 1, before: None, records }
}

pub(crate) fn summaries(number: u64, records: Vec<Record>) -> Batch {
    batch(Lane::Summaries, number, records)
}

pub(crate) fn events(number: u64, records: Vec<Record>) -> Batch {
    batch(Lane::Events, number, records)
}

pub(crate) fn machine(name: &str) -> MachineId {
    MachineId::new(name).expect("a name")
}

pub(crate) fn catalog(name: &str, revision: u32, sensors: &[&str]) -> Record {
    let sensor = |id: &&str| Sensor { id: SensorId::new(id).expect("a name"), unit: Some("bar".into()) };
    Record::Catalog(Catalog {
        machine: machine(name),
        revision,
        step_ms: 1_000,
        interval_ms: 10_000,
        sensors: sensors.iter().map(sensor).collect(),
        model: "baseline 1".into(),
    })
}

/// A moment `ago_s` seconds before now, on a full second.
pub(crate) fn ago(ago_s: i64) -> Timestamp {
    Timestamp((clock::now().as_second() - ago_s) * 1_000_000)
}

pub(crate) fn summary(name: &str, start: Timestamp, values: &[f64]) -> Record {
    let sensor = |value: &f64| SensorSummary {
        count: 10,
        min: value - 1.0,
        max: value + 1.0,
        mean: *value,
        sd: 0.5,
        last: *value,
        quality: Quality::Good,
    };
    Record::Summary(Summary {
        machine: machine(name),
        start,
        interval_ms: 10_000,
        catalog_revision: 1,
        sensors: values.iter().map(sensor).map(Some).collect(),
        verdict: verdict(),
        energy_wh: Some(1.5),
        clock: Clock::Trusted,
    })
}

pub(crate) fn verdict() -> Verdict {
    Verdict {
        detector: DetectorState::Watching,
        score: Some(0.5),
        health_percent: Some(97.0),
        mode: Mode::Running,
        remaining: None,
    }
}

pub(crate) fn event(name: &str, at: Timestamp, kind: EventKind) -> Record {
    Record::Event(Event { machine: machine(name), at, catalog_revision: 1, clock: Clock::Trusted, kind })
}

pub(crate) fn anomaly(opened: Timestamp, score: f32, shares: &[f32]) -> Anomaly {
    Anomaly {
        opened,
        score,
        score_max: score,
        threshold: 1.0,
        shares: shares.to_vec(),
        model: "baseline 1".into(),
        window: None,
    }
}

/// The first column of the only row.
pub(crate) async fn count(store: &Store, sql: &str) -> i64 {
    store.client().await.expect("a connection").query_one(sql, &[]).await.expect("a row").get(0)
}

/// The rows, one a line, columns separated by a space, `-` for none.
pub(crate) async fn rows(store: &Store, sql: &str) -> String {
    let client = store.client().await.expect("a connection");
    let line = |row: &SimpleQueryRow| (0..row.len()).map(|i| row.get(i).unwrap_or("-")).collect::<Vec<_>>().join(" ");
    let messages = client.simple_query(sql).await.expect("an answer");
    let lines = messages.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(line(row)),
        _ => None,
    });
    lines.collect::<Vec<_>>().join("\n")
}
