//! A gateway that delivers made-up summaries the way real ones do: enrolled, signed, over MQTT with TLS, by receipts.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use ed25519_dalek::SigningKey;
use gemba_cloud::clock;
use gemba_mqtt::{
    client::Endpoint,
    tls::{Pem, Trust},
};
use gemba_shared::{
    enrolment::{Enrolled, PATH, Request, Response, Token},
    frame::{self, FRAME_BYTES_MAX},
    ids::{MachineId, SensorId},
    message::{Batch, Downlink, Epoch, Lane, Seq, Uplink},
    telemetry::{
        Anomaly, Catalog, Clock, DetectorState, Event, EventKind, Mode, Quality, Record, Sensor, SensorSummary,
        Summary, Timestamp, Verdict,
    },
    topic::{self, Channel},
};
use rumqttc::{AsyncClient, Event as MqttEvent, Packet, QoS};
use tokio::{sync::mpsc, task::JoinHandle, time::timeout};

use super::daemon::Daemon;

pub(crate) const SENSORS: usize = 8;
const INTERVAL_US: i64 = 10_000_000;
const PER_HOUR: u64 = 360;
/// Alarms of each machine that are over.
const PAST_ALARMS: i64 = 20;
/// Records of a frame, and frames without a receipt.
const BATCH: u64 = 200;
const WINDOW: usize = 8;
/// What was not answered by then is sent again.
const AGAIN_AFTER: Duration = Duration::from_secs(5);
const ANSWERED_WITHIN: Duration = Duration::from_mins(2);

/// What all gateways have seen: the past of their machines, up to this hour.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plant {
    begins: Timestamp,
    intervals: u64,
    machines: usize,
}

impl Plant {
    pub(crate) fn new(hours: u64, machines: usize) -> Self {
        let intervals = hours * PER_HOUR;
        let now = clock::to_wire(clock::now()).floor(INTERVAL_US);
        Self { begins: now.plus_us(-INTERVAL_US * intervals as i64), intervals, machines }
    }

    /// Of one gateway.
    pub(crate) fn past_records(&self) -> u64 {
        self.intervals * self.machines as u64
    }

    /// The record under a number, from 1: first the catalogs, then interval by interval.
    fn record(&self, number: u64) -> anyhow::Result<Record> {
        let machines = self.machines as u64;
        if number <= machines {
            return catalog(number - 1);
        }
        let place = number - machines - 1;
        summary(place % machines, self.begins.plus_us(INTERVAL_US * (place / machines) as i64), place as f64)
    }
}

pub(crate) struct Gateway {
    enrolled: Enrolled,
    key: SigningKey,
    plant: Plant,
    client: AsyncClient,
    /// How far the lanes are stored, as receipts say.
    receipts: mpsc::Receiver<(Lane, u64)>,
    /// The next number of a summary and of an event.
    next: u64,
    next_event: u64,
    epoch: Epoch,
    _events: JoinHandle<()>,
}

impl Gateway {
    pub(crate) async fn enrol(daemon: &Daemon, index: usize, token: &str, plant: Plant) -> anyhow::Result<Self> {
        let token: Token = token.parse()?;
        let key = SigningKey::from_bytes(&[u8::try_from(index)? + 1; 32]);
        let mut answer =
            ureq::post(format!("http://{}{PATH}", daemon.http)).send_json(Request::new(&token.secret, &key))?;
        let enrolled = answer.body_mut().read_json::<Response>()?.check(&token, &key.verifying_key())?;
        let pem = enrolled.mqtt.ca_pem.as_deref().context("the broker's certificate")?;
        let trust = Trust::Only(Pem::text(pem, "the enrolment"));
        let endpoint = Endpoint { url: enrolled.mqtt.url.clone(), trust, clean_session: true, ..Endpoint::default() };
        let mut options = endpoint.options(&format!("{}-bench", enrolled.gateway), FRAME_BYTES_MAX + 1_024)?;
        options.set_credentials(&enrolled.mqtt.username, &enrolled.mqtt.password);
        let (client, mut events) = AsyncClient::new(options, 64);
        client.subscribe(topic::down(enrolled.gateway), QoS::AtLeastOnce).await?;
        let (told, receipts) = mpsc::channel(1_024);
        let (gateway, cloud) = (enrolled.gateway, enrolled.cloud_key);
        // Ends with the client, or with an error, which then shows as receipts that do not come.
        let events = tokio::spawn(async move {
            while let Ok(event) = events.poll().await {
                let MqttEvent::Incoming(Packet::Publish(publish)) = event else { continue };
                let Ok(Downlink::Receipt(receipt)) = frame::open(&publish.payload, gateway, &cloud) else { continue };
                if told.send((receipt.lane, receipt.through)).await.is_err() {
                    return;
                }
            }
        });
        let epoch = Epoch(index as u64 + 1);
        Ok(Self { enrolled, key, plant, client, receipts, next: 1, next_event: 1, epoch, _events: events })
    }

    async fn publish(&self, lane: Lane, first: u64, records: Vec<Record>) -> anyhow::Result<()> {
        let seq = Seq { epoch: self.epoch, lane, number: first };
        let batch = Batch { seq, oldest: 1, before: None, records };
        let frame = frame::seal(&Uplink::Batch(batch), self.enrolled.gateway, &self.key)?;
        let topic = topic::up(self.enrolled.gateway, Channel::Lane(lane));
        Ok(self.client.publish(topic, QoS::AtMostOnce, false, frame).await?)
    }

    async fn publish_summaries(&self, first: u64, last: u64) -> anyhow::Result<()> {
        let records = (first..=last).map(|number| self.plant.record(number)).collect::<anyhow::Result<_>>()?;
        self.publish(Lane::Summaries, first, records).await
    }

    /// As fast as receipts come.
    pub(crate) async fn deliver_past(mut self) -> anyhow::Result<Self> {
        let last = self.plant.machines as u64 + self.plant.past_records();
        self.deliver(last, None).await?;
        Ok(self)
    }

    /// So many records a second, for so long; how many are stored.
    pub(crate) async fn deliver_live(mut self, rate: f64, lasts: Duration) -> anyhow::Result<(Self, u64)> {
        let records = (rate * lasts.as_secs_f64()) as u64;
        let last = self.next + records - 1;
        self.deliver(last, Some(rate)).await?;
        Ok((self, records))
    }

    async fn deliver(&mut self, last: u64, rate: Option<f64>) -> anyhow::Result<()> {
        let begin = self.next;
        let began = Instant::now();
        let mut heard = Instant::now();
        let mut waiting: VecDeque<(u64, u64)> = VecDeque::new();
        // A tenth of a second of them where there is a rate.
        let batch = rate.map_or(BATCH, |rate| ((rate / 10.0) as u64).clamp(1, BATCH));
        let mut stored = begin - 1;
        while stored < last {
            let due = rate.map_or(last, |rate| begin + (began.elapsed().as_secs_f64() * rate) as u64).min(last);
            while waiting.len() < WINDOW && self.next + batch.min(last + 1 - self.next) <= due + 1 && self.next <= last
            {
                let through = (self.next + batch - 1).min(last);
                self.publish_summaries(self.next, through).await?;
                waiting.push_back((self.next, through));
                self.next = through + 1;
            }
            match timeout(Duration::from_millis(20), self.receipts.recv()).await {
                Ok(Some((Lane::Summaries, through))) => {
                    stored = stored.max(through);
                    heard = Instant::now();
                    waiting.retain(|(_, last)| *last > stored);
                }
                Ok(None) => bail!("the connection to the cloud ended"),
                Err(_) if heard.elapsed() > AGAIN_AFTER && !waiting.is_empty() => {
                    ensure!(began.elapsed() < ANSWERED_WITHIN || stored >= begin, "the cloud does not answer");
                    for (first, through) in &waiting {
                        self.publish_summaries(*first, *through).await?;
                    }
                    heard = Instant::now();
                }
                Ok(Some(_)) | Err(_) => {}
            }
        }
        Ok(())
    }

    /// Alarms that are over, and one that is not for each machine of the upper half.
    pub(crate) async fn raise_alarms(mut self) -> anyhow::Result<Self> {
        for place in 0..self.plant.machines {
            let mut records = Vec::new();
            for day in 1..=PAST_ALARMS {
                let opened = clock::to_wire(clock::now()).plus_us(-day * 7_200_000_000 - place as i64);
                records.push(Self::event(place, opened, opened, EventKind::AnomalyOpened)?);
                records.push(Self::event(place, opened, opened.plus_us(600_000_000), EventKind::AnomalyClosed)?);
            }
            if place >= self.plant.machines / 2 {
                let now = clock::to_wire(clock::now());
                records.push(Self::event(place, now, now, EventKind::AnomalyOpened)?);
            }
            self.tell(records).await?;
        }
        let last = self.next_event - 1;
        loop {
            let receipt = timeout(ANSWERED_WITHIN, self.receipts.recv()).await.context("alarms are not stored")?;
            if receipt.context("the connection to the cloud ended")? == (Lane::Events, last) {
                return Ok(self);
            }
        }
    }

    /// An anomaly of the machine at this place opens; of the lower half, where none is open.
    pub(crate) async fn open_anomaly(&mut self, place: usize) -> anyhow::Result<()> {
        let now = clock::to_wire(clock::now());
        let record = Self::event(place % (self.plant.machines / 2), now, now, EventKind::AnomalyOpened)?;
        self.tell(vec![record]).await
    }

    async fn tell(&mut self, events: Vec<Record>) -> anyhow::Result<()> {
        let first = self.next_event;
        self.next_event += events.len() as u64;
        self.publish(Lane::Events, first, events).await
    }

    fn event(place: usize, opened: Timestamp, at: Timestamp, kind: fn(Anomaly) -> EventKind) -> anyhow::Result<Record> {
        let anomaly = Anomaly {
            opened,
            score: 3.0,
            score_max: 3.0,
            threshold: 1.0,
            shares: vec![1.0 / SENSORS as f32; SENSORS],
            model: "baseline 2".into(),
            window: None,
        };
        let machine = MachineId::new(&format!("pump-{place}"))?;
        Ok(Record::Event(Event { machine, at, catalog_revision: 1, clock: Clock::Trusted, kind: kind(anomaly) }))
    }
}

fn catalog(machine: u64) -> anyhow::Result<Record> {
    let sensor = |i| anyhow::Ok(Sensor { id: SensorId::new(&format!("sensor-{i}"))?, unit: Some("bar".into()) });
    Ok(Record::Catalog(Catalog {
        machine: MachineId::new(&format!("pump-{machine}"))?,
        revision: 1,
        step_ms: 1_000,
        interval_ms: 10_000,
        sensors: (0..SENSORS).map(sensor).collect::<Result<_, _>>()?,
        model: "baseline 2".into(),
    }))
}

/// As devices read: two decimals of a slow wave with noise.
fn summary(machine: u64, start: Timestamp, seed: f64) -> anyhow::Result<Record> {
    let round = |value: f64| (value * 100.0).round() / 100.0;
    let sensor = |i: usize| {
        let mean = 20.0 + (seed * 0.0003 + i as f64).sin() * 10.0 + (seed * 12.9898).sin() * 0.2;
        let spread = 0.1 + 0.05 * (seed + i as f64).cos().abs();
        Some(SensorSummary {
            count: 10,
            min: round(mean - spread),
            max: round(mean + spread),
            mean,
            sd: spread / 2.0,
            last: round(mean + spread / 3.0),
            quality: Quality::Good,
        })
    };
    Ok(Record::Summary(Summary {
        machine: MachineId::new(&format!("pump-{machine}"))?,
        start,
        interval_ms: 10_000,
        catalog_revision: 1,
        sensors: (0..SENSORS).map(sensor).collect(),
        verdict: Verdict {
            detector: DetectorState::Watching,
            score: Some(0.4),
            health_percent: Some(98.0),
            mode: Mode::Running,
            remaining: None,
        },
        energy_wh: Some(12.5),
        clock: Clock::Trusted,
    }))
}
