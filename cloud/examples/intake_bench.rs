//! How many sensor summaries a second intake stores, beside a raw COPY BINARY of the same rows in the same run.
//!
//! `cargo run --release --package gemba-cloud --example intake_bench -- [machines] [intervals] [rules]`
//!
//! With `rules`, each machine has so many alarm rules (limits that hold), judged on every interval.
//!
//! Signed, compressed frames go through the very code that serves gateways: authentication, decoding, the lane rule, staging,
//! ON CONFLICT, receipts. PostgreSQL is a private cluster with its default durability. Making the frames is not counted.

use std::{
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use ed25519_dalek::SigningKey;
use gemba_cloud::{
    clock,
    cluster::{Cluster, Durability},
    enrolment::{self, Enrolments, Offer},
    intake::{ANSWERS_MAX, Intake, Parts, Settings},
    live::CHANGES_MAX,
    metrics::Metrics,
    store::{Store, enrolment::NewGateway, summaries},
};
use gemba_mqtt::delivery::{Delivery, Progress, Publish};
use gemba_shared::{
    enrolment::Request,
    frame,
    ids::{GatewayId, MachineId, SensorId},
    message::{Batch, Epoch, Lane, Seq, Uplink},
    telemetry::{
        Catalog, Clock, DetectorState, Mode, Quality, Record, Sensor, SensorSummary, Summary, Timestamp, Verdict,
    },
    topic::{self, Channel},
};
use tokio::sync::{broadcast, mpsc};
use tokio_util::sync::CancellationToken;

const SENSORS: usize = 8;
/// Records of a frame; what a gateway that catches up sends.
const BATCH: usize = 250;
const GATEWAYS: usize = 10;

struct Gateway {
    id: GatewayId,
    key: SigningKey,
    frames: Vec<Publish>,
    rows: u64,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1).filter_map(|argument| argument.parse::<usize>().ok());
    let machines = arguments.next().unwrap_or(250);
    let intervals = arguments.next().unwrap_or(800);
    let rules = arguments.next().unwrap_or(0);

    let directory = tempfile::tempdir()?;
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o711))?;
    let cluster = Cluster::start(&directory.path().join("pg"), Durability::Synced).await?;
    let store = Store::new(cluster.config(), 8)?;
    store.migrate().await?;
    let measured = measure(&store, machines, intervals, rules).await;
    store.close();
    cluster.stop().await?;
    writeln!(std::io::stdout().lock(), "{}", measured?)?;
    Ok(())
}

async fn measure(store: &Store, machines: usize, intervals: usize, rules: usize) -> anyhow::Result<String> {
    let mut gateways = Vec::new();
    for i in 0..GATEWAYS {
        gateways.push(gateway(store, i, machines / GATEWAYS, intervals).await?);
    }
    let rows: u64 = gateways.iter().map(|gateway| gateway.rows).sum();
    let bytes: usize = gateways.iter().flat_map(|gateway| &gateway.frames).map(|frame| frame.payload.len()).sum();
    // The days exist beforehand, as they do in a daemon that has run for a day.
    let start = first(intervals);
    let days =
        (0..=2).map(|day| summaries::day(clock::from_wire(start.plus_us(day * 86_400_000_000)).unwrap_or_default()));
    store.make_days(&days.collect()).await?;

    add_rules(store, machines / GATEWAYS, rules).await?;

    let before = cpu_seconds();
    let began = Instant::now();
    let stored = intake(store, gateways).await?;
    let took = began.elapsed();
    let cpu = cpu_seconds() - before;
    anyhow::ensure!(stored == rows, "{stored} rows of {rows} were stored");

    let copied = copy(store).await?;
    let per_second = |took: Duration| rows as f64 * SENSORS as f64 / took.as_secs_f64();
    let (ours, raw) = (per_second(took), per_second(copied));
    Ok(format!(
        "intake: {rows} rows of {SENSORS} sensors, {:.1} MB of frames, in {:.2} s: {ours:.0} sensor summaries/s \
         ({:.0} rows/s, {cpu:.2} CPU-s of this process)\n\
         raw COPY BINARY of the same rows: {:.2} s: {raw:.0} sensor summaries/s\n\
         ratio: {:.2}",
        bytes as f64 / 1e6,
        took.as_secs_f64(),
        ours / SENSORS as f64,
        copied.as_secs_f64(),
        ours / raw,
    ))
}

/// Makes the machines, each with so many rules.
async fn add_rules(store: &Store, machines: usize, rules: usize) -> anyhow::Result<()> {
    let client = store.client().await?;
    client
        .batch_execute(&format!(
            "INSERT INTO machines (id, gateway_id, name)
                 SELECT gen_random_uuid(), g.id, 'pump-' || n FROM gateways g, generate_series(0, {machines} - 1) n;
             INSERT INTO users (id, organisation_id, name, password_hash, must_change_password)
                 SELECT gen_random_uuid(), id, 'bench', '-', false FROM organisations;
             INSERT INTO alarm_rules
                 SELECT gen_random_uuid(), s.organisation_id, s.id, m.id, 'r', 'sensor-' || (n % {SENSORS}), 'high', 'mean', 1e9, 0, 60, 60,
                        'low', NULL, NULL, NULL, false, true, now(), u.id, now()
                 FROM machines m JOIN sites s ON s.id = m.site_id, users u, generate_series(1, {rules}) n;
             INSERT INTO alarm_rule_states (rule_id) SELECT id FROM alarm_rules"
        ))
        .await?;
    Ok(())
}

/// Rows stored.
async fn intake(store: &Store, gateways: Vec<Gateway>) -> anyhow::Result<u64> {
    let metrics = Arc::new(Metrics::default());
    let (answers, mut answered) = mpsc::channel(ANSWERS_MAX);
    let intake = Intake::new(Parts {
        store: store.clone(),
        signing: SigningKey::from_bytes(&[1; 32]),
        changes: broadcast::channel(CHANGES_MAX).0,
        metrics: Arc::clone(&metrics),
        settings: Settings::default(),
        answers,
    });
    let (deliveries, delivered) = mpsc::channel(256);
    let running = tokio::spawn(intake.run(delivered, CancellationToken::new()));
    let drain = tokio::spawn(async move { while answered.recv().await.is_some() {} });
    let mut feeds = Vec::new();
    for gateway in gateways {
        let deliveries = deliveries.clone();
        feeds.push(tokio::spawn(async move {
            let progress = Arc::new(Progress::default());
            for (i, frame) in gateway.frames.into_iter().enumerate() {
                let delivery = Delivery::new("bench".into(), vec![frame], Arc::clone(&progress), i as u64 + 1);
                if deliveries.send(delivery).await.is_err() {
                    return;
                }
            }
        }));
    }
    drop(deliveries);
    for feed in feeds {
        feed.await?;
    }
    running.await?;
    drain.await?;
    Ok(metrics.summaries.get())
}

/// The same rows into a table of the same form (partition and primary key), without anything else.
async fn copy(store: &Store) -> anyhow::Result<Duration> {
    let mut client = store.client().await?;
    client.batch_execute("CREATE TABLE copied (LIKE summaries INCLUDING ALL)").await?;
    let rows = client.query("SELECT * FROM summaries", &[]).await?;
    let rows: Vec<summaries::SummaryRow> = rows
        .iter()
        .map(|row| summaries::SummaryRow {
            machine_key: row.get(0),
            start: row.get(1),
            interval_ms: row.get(2),
            counts: row.get(3),
            mins: row.get(4),
            maxs: row.get(5),
            means: row.get(6),
            sds: row.get(7),
            lasts: row.get(8),
            qualities: row.get(9),
            detector: row.get(10),
            score: row.get(11),
            health_percent: row.get(12),
            mode: row.get(13),
            energy_wh: row.get(14),
            clock_trusted: row.get(15),
        })
        .collect();
    let began = Instant::now();
    for chunk in rows.chunks(10_000) {
        let transaction = client.transaction().await?;
        summaries::copy(&transaction, "copied", chunk).await?;
        transaction.commit().await?;
    }
    Ok(began.elapsed())
}

async fn gateway(store: &Store, index: usize, machines: usize, intervals: usize) -> anyhow::Result<Gateway> {
    let name = format!("bench-{index}");
    let cloud = SigningKey::from_bytes(&[1; 32]);
    let new = NewGateway { name: &name, site: "default", mqtt_url: None, replaces: None };
    let (id, token) = enrolment::add(store, new, "http://127.0.0.1", &cloud, clock::now()).await?;
    let key = SigningKey::from_bytes(&[u8::try_from(index)? + 2; 32]);
    let enrolments = Enrolments {
        store: store.clone(),
        signing: cloud,
        offer: Offer { url: "mqtts://127.0.0.1".into(), ca_pem: None },
        changes: broadcast::channel(CHANGES_MAX).0,
        metrics: Arc::default(),
    };
    enrolments.enrol(&Request::new(&token.secret, &key), clock::now()).await.context("enrolment")?;
    let id = GatewayId::from_bytes(*id.as_bytes());
    let mut gateway = Gateway { id, key, frames: Vec::new(), rows: 0 };

    let names: Vec<MachineId> =
        (0..machines).map(|m| MachineId::new(&format!("pump-{m}"))).collect::<Result<_, _>>()?;
    let mut records = Vec::with_capacity(BATCH);
    let mut number = 1;
    for name in &names {
        records.push(catalog(name)?);
    }
    flush(&mut gateway, &mut records, &mut number)?;
    for interval in 0..intervals {
        for (m, name) in names.iter().enumerate() {
            records.push(summary(name, interval, intervals, (m * 31 + interval) as f64));
            gateway.rows += 1;
            if records.len() == BATCH {
                flush(&mut gateway, &mut records, &mut number)?;
            }
        }
    }
    flush(&mut gateway, &mut records, &mut number)?;
    Ok(gateway)
}

fn flush(gateway: &mut Gateway, records: &mut Vec<Record>, number: &mut u64) -> anyhow::Result<()> {
    if records.is_empty() {
        return Ok(());
    }
    let seq = Seq { epoch: Epoch(9), lane: Lane::Summaries, number: *number };
    *number += records.len() as u64;
    let batch = Batch { seq, oldest: 1, before: None, records: std::mem::take(records) };
    let frame = frame::seal(&Uplink::Batch(batch), gateway.id, &gateway.key)?;
    let topic = topic::up(gateway.id, Channel::Lane(Lane::Summaries)).into_bytes().into();
    gateway.frames.push(Publish { topic, payload: frame.into(), retain: false, dup: false });
    Ok(())
}

fn catalog(machine: &MachineId) -> anyhow::Result<Record> {
    let sensor = |i| anyhow::Ok(Sensor { id: SensorId::new(&format!("sensor-{i}"))?, unit: Some("bar".into()) });
    let sensors = (0..SENSORS).map(sensor).collect::<Result<_, _>>()?;
    let (step_ms, interval_ms) = (1_000, 10_000);
    let catalog =
        Catalog { machine: machine.clone(), revision: 1, step_ms, interval_ms, sensors, model: "baseline 1".into() };
    Ok(Record::Catalog(catalog))
}

/// When the first interval begins.
fn first(intervals: usize) -> Timestamp {
    clock::to_wire(clock::now()).floor(3_600_000_000).plus_us(-10_000_000 * intervals as i64)
}

fn summary(machine: &MachineId, interval: usize, intervals: usize, seed: f64) -> Record {
    let sensor = |i: usize| {
        let mean = (seed * 0.37 + i as f64).sin() * 10.0;
        let spread = 0.1 + 0.01 * (seed + i as f64).cos().abs();
        Some(SensorSummary {
            count: 10,
            min: mean - spread,
            max: mean + spread,
            mean,
            sd: spread / 2.0,
            last: mean + spread / 3.0,
            quality: Quality::Good,
        })
    };
    Record::Summary(Summary {
        machine: machine.clone(),
        start: first(intervals).plus_us(10_000_000 * interval as i64),
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
    })
}

/// Of this process, in user and system mode.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit(") ").next().unwrap_or_default();
    let ticks: u64 = after_name.split(' ').skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    ticks as f64 / 100.0
}
