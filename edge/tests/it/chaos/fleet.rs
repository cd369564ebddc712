//! Devices that publish numbered readings at `QoS` 1 and know which were acknowledged.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use gemba_edge::publisher::{
    Publisher, Settings,
    feed::{Feed, Format, Message},
    target::{Target, TargetArgs},
};
use gemba_shared::{
    ids::{MachineId, SensorId},
    telemetry::Timestamp,
};
use tokio::{sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;

use super::note;
use crate::{
    ledger::Values,
    plant::{DEADLINE, INTERVAL_US, wait},
};

/// How long ago their event time begins: it goes faster than the clock.
const HISTORY_US: i64 = 96 * 3_600 * 1_000_000;

/// How fast they go.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    pub machines: u32,
    pub sensors: u32,
    /// Between two readings of a sensor: in their times, and on the clock.
    pub step: Duration,
    pub every: Duration,
    /// Whether what was acknowledged is remembered; for very many readings it is not.
    pub is_kept: bool,
}

impl Default for Pace {
    /// 800 readings a second, twenty times as fast as the clock.
    fn default() -> Self {
        Self {
            machines: 2,
            sensors: 2,
            step: Duration::from_millis(100),
            every: Duration::from_millis(5),
            is_kept: true,
        }
    }
}

/// What was sent, and by cell what was acknowledged.
#[derive(Debug, Default)]
pub struct Sent {
    pub count: u64,
    /// Without those that close the last intervals: these are asked for.
    pub whole: u64,
    pub values: Values,
    /// Intervals from here on are not whole.
    pub end_us: i64,
}

#[derive(Debug, Default)]
struct Progress {
    sent: AtomicU64,
    acknowledged: AtomicU64,
    enough: AtomicBool,
}

/// Machines, each with a connection of its own.
pub struct Fleet {
    progress: Arc<Progress>,
    /// The time of reading 0.
    pub begin: Timestamp,
    machines: JoinSet<(String, Vec<Message>)>,
    /// How many readings close the last intervals.
    closing: u64,
}

impl Fleet {
    pub fn start(address: SocketAddr, pace: Pace) -> Self {
        #[expect(clippy::disallowed_methods, reason = "devices have a clock")]
        let now = Timestamp(jiff::Timestamp::now().as_microsecond());
        let begin = now.plus_us(-HISTORY_US).floor(INTERVAL_US);
        let progress = Arc::new(Progress::default());
        let mut machines = JoinSet::new();
        for machine in 0..pace.machines {
            machines.spawn(run(format!("press-{machine}"), address, pace, begin, Arc::clone(&progress)));
        }
        Self { progress, begin, machines, closing: u64::from(pace.machines * pace.sensors) }
    }

    pub fn acknowledged(&self) -> u64 {
        self.progress.acknowledged.load(Relaxed)
    }

    /// Waits until so many more are acknowledged.
    pub async fn goes_on(&self, count: u64) {
        let goal = self.acknowledged() + count;
        wait("acknowledgements", || self.acknowledged() >= goal).await;
    }

    /// Has every device end with a reading far ahead, which closes the intervals before it; waits until all is acknowledged.
    pub async fn finish(mut self) -> Sent {
        self.progress.enough.store(true, Relaxed);
        let mut sent = Sent::default();
        let finish = async {
            while let Some(machine) = self.machines.join_next().await {
                let (name, messages) = machine.unwrap();
                for message in &messages {
                    let sensor = format!("s{}", message.sensor);
                    note(&mut sent.values, &name, &sensor, message.at.0, message.value);
                }
            }
        };
        tokio::time::timeout(DEADLINE, finish).await.expect("everything is acknowledged in the end");
        sent.count = self.progress.sent.load(Relaxed);
        sent.whole = sent.count - self.closing;
        // The intervals of the closing readings stay open for a while.
        sent.end_us = self.begin.0 + HISTORY_US * 3 / 4;
        sent.values.retain(|cell, _| cell.start_us < sent.end_us);
        sent
    }
}

/// One machine until it is enough: what was acknowledged.
async fn run(
    name: String,
    address: SocketAddr,
    pace: Pace,
    begin: Timestamp,
    progress: Arc<Progress>,
) -> (String, Vec<Message>) {
    let (batches, mut acknowledged) = mpsc::channel::<Vec<Message>>(64);
    let counted = Arc::clone(&progress);
    let ledger = tokio::spawn(async move {
        let mut all = Vec::new();
        while let Some(batch) = acknowledged.recv().await {
            counted.acknowledged.fetch_add(batch.len() as u64, Relaxed);
            if pace.is_kept {
                all.extend(batch);
            }
        }
        all
    });
    let names = std::slice::from_ref(&name);
    let mut feeder = Feeder::connect(&name, address, names, pace.sensors, Some(batches)).await;
    let started = Instant::now();
    let step_us = pace.step.as_micros() as i64;
    let mut number = 0_u32;
    let mut is_last = false;
    while !is_last {
        is_last = progress.enough.load(Relaxed);
        let at = begin.plus_us(if is_last { HISTORY_US * 3 / 4 } else { i64::from(number) * step_us });
        assert!(is_last || at.0 < begin.0 + HISTORY_US / 2, "a fleet has half its history's time at most");
        for sensor in 0..pace.sensors {
            feeder.publish(sensor, at, f64::from(number)).await;
            progress.sent.fetch_add(1, Relaxed);
        }
        number += 1;
        let due = started + pace.every * number;
        feeder.idle(due.saturating_duration_since(Instant::now())).await;
    }
    feeder.close().await;
    (name, ledger.await.unwrap())
}

/// A connection that publishes for some machines, and goes on until everything is acknowledged.
pub struct Feeder(Publisher);

impl Feeder {
    pub async fn connect(
        client: &str,
        address: SocketAddr,
        machines: &[String],
        sensors: u32,
        ledger: Option<mpsc::Sender<Vec<Message>>>,
    ) -> Self {
        let mut names = Vec::new();
        for machine in machines.iter().map(|name| MachineId::new(name).unwrap()) {
            names.extend((0..sensors).map(|sensor| (machine.clone(), SensorId::new(&format!("s{sensor}")).unwrap())));
        }
        let feed = Feed::new("plant/{machine}/{sensor}", Format::Json, names).unwrap();
        let url = Some(format!("mqtt://{address}"));
        let target = Target::new(&TargetArgs { url, username: None, password_file: None, ca_file: None }).unwrap();
        let settings =
            Settings { client_id: client.to_owned(), at_least_once: true, window: 1_000, first_connect: DEADLINE };
        Self(Publisher::connect(target, settings, feed, ledger, CancellationToken::new()).await.unwrap())
    }

    pub async fn publish(&mut self, sensor: u32, at: Timestamp, value: f64) {
        self.0.publish(Message { sensor, at, value }).await.unwrap();
    }

    /// Sends what waits, and listens for so long.
    pub async fn idle(&mut self, pause: Duration) {
        self.0.idle_until(Instant::now() + pause).await.unwrap();
    }

    pub async fn close(self) {
        let report = self.0.close(DEADLINE).await;
        assert_eq!(report.unacknowledged, 0, "everything is acknowledged in the end");
    }
}
