//! A backlog is drained while live data flows: how fast, and what that does to the alarms.
//!
//! Pumps are live: they go at the pace of the clock, and one after another breaks. Presses fill the outbox while the
//! link is down: their readings are numbered. Delays are from the step in which a pump's anomaly opened to its alarm's arrival in
//! the cloud, as the cloud's database has them.

use std::{
    collections::BTreeSet,
    env,
    fmt::Write as _,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use gemba_shared::telemetry::Timestamp;
use tokio::task::JoinHandle;

use super::{Fleet, Pace, Sent, Told, fleet::Feeder, is_long};
use crate::{
    ledger::Reckoning,
    plant::{DEADLINE, Plant, Setting, count, wait},
};

const SENSORS: u32 = 8;
const BACKLOG_BYTES: &str = "gemba_edge_backlog_bytes";
const EVENTS: &str = "gemba_edge_events_total";
/// More than a calibration takes.
const HISTORY_STEPS: i64 = 340;
const STEP_US: i64 = 100_000;
/// What the pumps alone have on its way.
const LIVE_BYTES_MAX: f64 = 300_000.0;
const LIVE: &str =
    "[outbox]\nbytes_max = \"8GiB\"\n[defaults]\nstep = \"100ms\"\ninterval = \"1s\"\nlateness = \"200ms\"\n";

/// Pumps that are well, until they are told not to be.
struct Pumps {
    count: u32,
    broken: Arc<AtomicU32>,
    enough: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Pumps {
    fn start(address: SocketAddr, count: u32) -> Self {
        let (broken, enough) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicBool::new(false)));
        let (breaks, ends) = (Arc::clone(&broken), Arc::clone(&enough));
        let task = tokio::spawn(async move {
            let names: Vec<String> = (0..count).map(|pump| format!("pump-{pump}")).collect();
            let mut feeder = Feeder::connect("pumps", address, &names, SENSORS, None).await;
            let mut step = now().0 / STEP_US - HISTORY_STEPS;
            while !ends.load(Relaxed) {
                for pump in 0..count {
                    for sensor in 0..SENSORS {
                        let value = value(pump, sensor, step, pump < breaks.load(Relaxed));
                        feeder.publish(pump * SENSORS + sensor, Timestamp(step * STEP_US + 10_000), value).await;
                    }
                }
                step += 1;
                let due = Timestamp(step * STEP_US + 10_000).us_since(now());
                feeder.idle(Duration::from_micros(due.max(0) as u64)).await;
            }
            feeder.close().await;
        });
        Self { count, broken, enough, task }
    }

    /// Breaks the next pumps, one after another.
    async fn break_down(&self, count: u32, apart: Duration) {
        for _ in 0..count {
            assert!(self.broken.fetch_add(1, Relaxed) < self.count);
            tokio::time::sleep(apart).await;
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "devices have a clock")]
fn now() -> Timestamp {
    Timestamp(jiff::Timestamp::now().as_microsecond())
}

/// Noise about 25; ten times as much when the pump is broken.
fn value(pump: u32, sensor: u32, step: i64, broken: bool) -> f64 {
    let noise = (step * 7_919 + i64::from(pump * SENSORS + sensor) * 104_729).rem_euclid(1_009);
    (20.0 + noise as f64 / 100.0) * if broken { 10.0 } else { 1.0 }
}

/// Delays of the alarms that pumps `from` to `to` raised since then, in milliseconds, sorted; waits until each pump has one.
/// An alarm that was raised while the link was down waited for the link.
async fn delays(plant: &Plant, from: u32, to: u32, since: Timestamp) -> Vec<f64> {
    let database = plant.database().await;
    let sql = "SELECT m.name, a.raised_at >= to_timestamp($2::float8 / 1e6), (1000 * extract(epoch FROM a.arrived_at - a.raised_at))::float8
        FROM alarms a JOIN machines m ON m.id = a.machine_id WHERE a.condition = 'anomaly' AND m.name = ANY($1) ORDER BY 3";
    let names: Vec<String> = (from..to).map(|pump| format!("pump-{pump}")).collect();
    let begun = Instant::now();
    loop {
        let rows = database.query(sql, &[&names, &(since.0 as f64)]).await.unwrap();
        let pumps: BTreeSet<String> = rows.iter().map(|row| row.get(0)).collect();
        if pumps.len() as u32 == to - from {
            return rows.iter().filter(|row| row.get(1)).map(|row| row.get(2)).collect();
        }
        assert!(begun.elapsed() < DEADLINE, "{} of {} alarms\n{}", pumps.len(), names.len(), plant.edge.tail());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn quantile(sorted: &[f64], percent: usize) -> f64 {
    sorted[(sorted.len() * percent).div_ceil(100).max(1) - 1]
}

#[tokio::test(flavor = "multi_thread")]
async fn alarms_overtake_a_backlog_that_is_drained_beside_live_data() {
    let told = Told::new("drain");
    let (pumps, presses) = if is_long() { (100, 64) } else { (8, 8) };
    let mib = env::var("GEMBA_CHAOS_BACKLOG_MIB").ok().and_then(|mib| mib.parse().ok());
    let backlog_bytes = mib.unwrap_or(if is_long() { 1_024 } else { 1 }) << 20;
    let apart = Duration::from_millis(if is_long() { 300 } else { 100 });
    let plant = Plant::start_as(Setting { edge: &config(presses), ..Setting::default() }).await;
    let live = Pumps::start(plant.mqtt, pumps);
    let database = plant.database().await;
    arrive_at_the_present(&database, pumps).await;
    let half = pumps / 2;
    live.break_down(half, apart).await;
    let before = delays(&plant, 0, half, Timestamp(0)).await;

    plant.link.cut();
    let second = Duration::from_secs(1);
    let pace = Pace { machines: presses, sensors: SENSORS, step: second, every: Duration::ZERO, is_kept: false };
    let fleet = Fleet::start(plant.mqtt, pace);
    let begin = fleet.begin;
    fill(&plant, backlog_bytes).await;
    let sent = fleet.finish().await;
    let events = plant.edge_metric(EVENTS);
    live.break_down(1, Duration::ZERO).await;
    wait("an event that waits for the link", || plant.edge_metric(EVENTS) > events).await;
    let full = Backlog::of(&plant, &database).await;

    plant.link.mend();
    let mended = Instant::now();
    wait("the link", || plant.edge_metric("gemba_edge_cloud_connected") > 0.0).await;
    let (connected, since) = (Instant::now(), now());
    delays(&plant, half, half + 1, Timestamp(0)).await;
    let first_event = connected.elapsed();
    live.break_down(pumps - half - 1, apart).await;
    let during = delays(&plant, half + 1, pumps, since).await;
    assert!(!during.is_empty(), "no alarm beside the backlog");
    let still = Backlog::of(&plant, &database).await;
    empty(&plant).await;
    let drained = connected.elapsed().as_secs_f64();
    let rate = (Backlog::of(&plant, &database).await.stored - full.stored) as f64 / drained;
    live.enough.store(true, Relaxed);
    live.task.await.unwrap();
    wait("the rest of it", || plant.edge_metric(BACKLOG_BYTES) < 1.0).await;

    // Each pump's interval is a second.
    let times = rate / f64::from(pumps);
    let [p99_before, p99_during] = [&before, &during].map(|delays| quantile(delays, 99));
    let more = format!(
        "backlog {} records, {:.1} MB, edge resident {:.0} MiB, {:.0} MiB while it is drained; drained in {drained:.1} s, {rate:.0} summaries/s = {times:.0} x the \
         live rate; p99 of an alarm {p99_before:.0} ms before, {p99_during:.0} ms meanwhile ({} and {} alarms, {:.1} MB left \
         after them); first event {:.2} s after the connection, which came {:.1} s after the link",
        full.records,
        full.bytes / 1e6,
        full.resident_mib,
        still.resident_mib,
        before.len(),
        during.len(),
        still.bytes / 1e6,
        first_event.as_secs_f64(),
        (connected - mended).as_secs_f64(),
    );
    let found = reckon(&plant, begin, &sent).await;
    told.line(&sent, &found, &more);
    assert!(found.is_right(), "{found:?}");
    if is_long() {
        assert!(times >= 5.0 && p99_during <= 1.2 * p99_before && first_event <= Duration::from_secs(2), "{more}");
    }
    plant.stop();
}

/// The presses go on faster than the clock, so that a pause of theirs makes nothing late. They count as switched off: their
/// numbers rise for ever, and the pumps' alarms would wait behind theirs.
fn config(presses: u32) -> String {
    let mut config = LIVE.to_owned();
    for press in 0..presses {
        write!(
            config,
            "[[machines]]\nid = \"press-{press}\"\nlateness = \"30s\"\n\
             [machines.mode]\nsensor = \"s0\"\noff_below = 1e18\n"
        )
        .unwrap();
    }
    config
}

/// Waits until the pumps' history is behind them.
async fn arrive_at_the_present(database: &tokio_postgres::Client, pumps: u32) {
    let sql = "SELECT count(DISTINCT machine_key) FROM summaries WHERE start > now() - interval '3 s'";
    let begun = Instant::now();
    while count(database, sql).await < i64::from(pumps) {
        assert!(begun.elapsed() < DEADLINE, "the pumps never reach the present");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// What waits for the cloud, and what is there.
struct Backlog {
    records: f64,
    bytes: f64,
    resident_mib: f64,
    stored: i64,
}

impl Backlog {
    async fn of(plant: &Plant, database: &tokio_postgres::Client) -> Self {
        Self {
            records: plant.edge_metric("gemba_edge_backlog_records"),
            bytes: plant.edge_metric(BACKLOG_BYTES),
            resident_mib: plant.edge.resident_mib(),
            stored: count(database, "SELECT count(*) FROM summaries").await,
        }
    }
}

/// The presses' readings are a second apart, as long as an interval: each has a row of its own, whose start says its number.
async fn reckon(plant: &Plant, begin: Timestamp, sent: &Sent) -> Reckoning {
    let sql = "SELECT count(*), coalesce(sum(greatest(f.count - 1, 0)), 0)::bigint,
            count(*) FILTER (WHERE f.min <> (extract(epoch FROM r.start) - $1::float8 / 1e6) OR f.max <> f.min)
        FROM summaries r JOIN machines m ON m.key = r.machine_key,
            unnest(r.counts, r.mins, r.maxs) AS f (count, min, max)
        WHERE f.count > 0 AND m.name LIKE 'press-%' AND r.start < to_timestamp($2::float8 / 1e6)";
    let database = plant.database().await;
    let values: [f64; 2] = [begin.0 as f64, sent.end_us as f64];
    let row = database.query_one(sql, &[&values[0], &values[1]]).await.unwrap();
    let [rows, double, misplaced] = [0, 1, 2].map(|column| row.get::<_, i64>(column) as u64);
    let missing = sent.whole.saturating_sub(rows + double);
    let right = missing + double + misplaced == 0 && rows == sent.whole;
    let examples = if right { String::new() } else { format!("{rows} rows for {} values", sent.whole) };
    Reckoning { values: sent.whole, stored: rows + double, missing, double, misplaced, examples }
}

/// Waits until so much waits for the cloud, for as long as it grows.
async fn fill(plant: &Plant, bytes: u64) {
    let (mut most, mut grew) = (0.0, Instant::now());
    loop {
        let now = plant.edge_metric(BACKLOG_BYTES);
        if now >= bytes as f64 {
            return;
        }
        if now > most {
            (most, grew) = (now, Instant::now());
        }
        assert!(grew.elapsed() < DEADLINE, "the backlog stays at {now} bytes");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Waits until what the pumps have on its way is all that waits for the cloud, for as long as it gets less.
async fn empty(plant: &Plant) {
    let (mut least, mut shrank) = (f64::INFINITY, Instant::now());
    loop {
        let now = plant.edge_metric(BACKLOG_BYTES);
        if now < LIVE_BYTES_MAX {
            return;
        }
        if now < least {
            (least, shrank) = (now, Instant::now());
        }
        assert!(shrank.elapsed() < DEADLINE, "the backlog stays at {now} bytes\n{}", plant.edge.tail());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
