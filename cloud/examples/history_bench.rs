//! A history of 250 machines with 8 sensors: how much disk it takes, written and packed, and how fast it is read.
//!
//! `cargo run --release --package gemba-cloud --example history_bench -- [machines] [days of intervals] [days of rollups]`
//!
//! Fills a private cluster of its own with intervals of 10 s, as a gateway makes them of ten readings with two decimals (one
//! sensor of eight has readings with all digits of f32, another rests and is told as held most of the time), and with the hours
//! and days of them and of the days before. Then what is asked for is asked of the API's own functions, before and after
//! packing, and the intervals that were packed are compared with what was written. The filling goes on without syncs; all
//! figures of reading are warm.

use std::{
    fmt::Write as _,
    future::Future,
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use gemba_cloud::{
    clock,
    cluster::{Cluster, Durability},
    energy::{By, Question, calendar::Per, profile},
    history::{DAY_MS, HOUR_MS, Level, SummaryRow, block, ceil, day, rollup},
    series::Plan,
    serve,
    store::{self, Store, blocks, rollups, scoped, summaries, users::DEFAULT_ORGANISATION},
    users::{
        Role,
        scope::{Grant, Scope},
    },
};
use jiff::{SignedDuration, Timestamp};
use sha2::Digest as _;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

const SENSORS: usize = 8;
const INTERVAL_MS: i64 = 10_000;
const SITE: Uuid = Uuid::from_u128(0x0000_0000_0000_7000_8000_0000_0000_0002);
/// Times that each question is asked; the first ones are not counted.
const ASKED: usize = 30;
const WARM: usize = 5;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1).filter_map(|argument| argument.parse::<i64>().ok());
    let machines = i32::try_from(arguments.next().unwrap_or(250))?;
    let days = arguments.next().unwrap_or(3);
    let rollup_days = arguments.next().unwrap_or(30).max(days);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let directory = tempfile::tempdir()?;
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o711))?;
        let cluster = Cluster::start(&directory.path().join("pg"), Durability::Careless).await?;
        let store = Store::new(cluster.config(), 8)?;
        store.migrate().await?;
        let measured = measure(&store, machines, days, rollup_days).await;
        store.close();
        cluster.stop().await?;
        measured
    })
}

fn say(text: &str) -> anyhow::Result<()> {
    Ok(writeln!(std::io::stdout().lock(), "{text}")?)
}

async fn measure(store: &Store, machines: i32, days: i64, rollup_days: i64) -> anyhow::Result<()> {
    let keys = plant(store, machines).await?;
    // Whole days, the last of which is over.
    let end = day(clock::now());
    let end = gemba_cloud::history::midnight(end);
    let start = end - SignedDuration::from_millis(days * DAY_MS);
    let first = end - SignedDuration::from_millis(rollup_days * DAY_MS);

    let begun = Instant::now();
    let rows = fill(store, &keys, start, end).await?;
    fill_rollups(store, &keys, first, start).await?;
    store.client().await?.batch_execute("VACUUM ANALYZE").await?;
    let sensors = rows * SENSORS as u64;
    say(&format!(
        "filled: {machines} machines × {SENSORS} sensors, {days} days: {rows} intervals, {sensors} sensor summaries; {rollup_days} \
         days of rollups; in {:.0} s",
        begun.elapsed().as_secs_f64()
    ))?;
    let written = size(store, "summaries").await?;
    say(&format!("disk for one sensor summary, as written: {:.1} bytes", written as f64 / sensors as f64))?;
    let hours = size(store, "rollup_hours").await?;
    say(&format!(
        "disk for one machine and hour: {:.0} bytes",
        hours as f64 / (f64::from(machines) * rollup_days as f64 * 24.0)
    ))?;
    ask(store, "as written", first, end).await?;

    let before = digest(store, &keys[..keys.len().min(3)], start, end).await?;
    let begun = Instant::now();
    let cpu = cpu_seconds();
    serve::history::pack(store, end + SignedDuration::from_hours(100), 0, &CancellationToken::new()).await?;
    let took = begun.elapsed().as_secs_f64();
    anyhow::ensure!(size(store, "summaries").await? < 1_000_000, "intervals were left unpacked");
    let packed = size(store, "summary_blocks").await? + size(store, "sensor_blocks").await?;
    say(&format!(
        "packed in {took:.0} s without a rest ({:.1} CPU-s of this process for a million sensor summaries); disk \
         for one sensor summary: {:.1} bytes",
        (cpu_seconds() - cpu) / sensors as f64 * 1e6,
        packed as f64 / sensors as f64
    ))?;
    let after = digest(store, &keys[..keys.len().min(3)], start, end).await?;
    anyhow::ensure!(before == after, "what was packed is not what was written");
    say("what was packed of three machines is bit by bit what was written")?;
    ask(store, "packed", first, end).await?;
    say(&by_kind(start)?)
}

/// Machines of one gateway; their keys.
async fn plant(store: &Store, machines: i32) -> anyhow::Result<Vec<i32>> {
    let client = store.client().await?;
    client
        .batch_execute(&format!(
            r#"INSERT INTO gateways (id, site_id, name, state) VALUES (gen_random_uuid(), '{SITE}',
                                                                     'bench', 'enrolled');
             INSERT INTO machines (id, gateway_id, name)
             SELECT gen_random_uuid(), id, 'pump-' || n FROM gateways, generate_series(1, {machines}) AS n;
             INSERT INTO sensors (machine_id, position, name, unit)
             SELECT id, n, 'sensor-' || n, 'bar' FROM machines, generate_series(0, {SENSORS} - 1) AS n;
             UPDATE sites SET time_zone = 'Europe/Berlin' WHERE id = '{SITE}';
             INSERT INTO tariffs
             SELECT gen_random_uuid(), organisation_id, id, 'day and night', 'EUR', '2020-01-01', 300000,
                    '[{{"name": "night", "days": 127, "from_min": 1320, "to_min": 360, "price_micro": 200000}}]', now()
             FROM sites WHERE id = '{SITE}'"#
        ))
        .await?;
    let rows = client.query("SELECT key FROM machines ORDER BY key", &[]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Intervals and their rollups; how many intervals.
async fn fill(store: &Store, keys: &[i32], start: Timestamp, end: Timestamp) -> anyhow::Result<u64> {
    let days = (0..).map(|n| start + SignedDuration::from_millis(n * DAY_MS)).take_while(|at| *at <= end);
    store.make_days(&days.map(day).collect()).await?;
    let begin = start.as_millisecond();
    let intervals = (end.as_millisecond() - begin) / INTERVAL_MS;
    let halves = keys.chunks(keys.len().div_ceil(2));
    let tasks: Vec<_> = halves
        .map(|keys| {
            let (store, keys) = (store.clone(), keys.to_vec());
            tokio::spawn(async move {
                let mut client = store.client().await?;
                let mut machines: Vec<Machine> = keys.iter().map(|key| Machine::new(*key)).collect();
                let mut rows = Vec::new();
                // In the order in which intervals come: machine after machine, interval after interval.
                for interval in 0..intervals {
                    rows.extend(machines.iter_mut().map(|machine| machine.interval(begin + interval * INTERVAL_MS)));
                    if rows.len() < 20_000 && interval + 1 < intervals {
                        continue;
                    }
                    let transaction = client.transaction().await?;
                    summaries::copy(&transaction, "summaries", &rows).await?;
                    rollups::add(&transaction, &rows).await?;
                    transaction.commit().await?;
                    rows.clear();
                }
                anyhow::Ok(keys.len() as u64 * intervals as u64)
            })
        })
        .collect();
    let mut rows = 0;
    for task in tasks {
        rows += task.await??;
    }
    Ok(rows)
}

/// Hours and days of the time before: each hour of one interval in ten minutes.
async fn fill_rollups(store: &Store, keys: &[i32], first: Timestamp, start: Timestamp) -> anyhow::Result<()> {
    let hours = (start.as_millisecond() - first.as_millisecond()) / HOUR_MS;
    let days = (0..=hours / 24).map(|n| day(first + SignedDuration::from_millis(n * DAY_MS)));
    store.make_days(&days.collect()).await?;
    let mut client = store.client().await?;
    for keys in keys.chunks(10) {
        let mut rows = Vec::new();
        for key in keys {
            let mut machine = Machine::new(*key);
            rows.extend((0..hours * 6).map(|n| machine.interval(first.as_millisecond() + n * 600_000)));
        }
        let transaction = client.transaction().await?;
        for level in [Level::Hour, Level::Day] {
            rollups::write(&transaction, level, &rollup::gather(&rows, level)).await?;
        }
        store::energy::add(&transaction, &profile::gather(&rows)).await?;
        transaction.commit().await?;
    }
    Ok(())
}

/// A machine whose sensors wander slowly and are noisy from reading to reading.
struct Machine {
    key: i32,
    random: Random,
    levels: [f64; SENSORS],
}

impl Machine {
    fn new(key: i32) -> Self {
        let mut random = Random(key as u64 * 0x9e37_79b9_7f4a_7c15 + 1);
        Self { key, levels: [(); SENSORS].map(|()| 20.0 + 60.0 * random.unit()), random }
    }

    fn interval(&mut self, start_ms: i64) -> SummaryRow {
        let mut sensors = [Figures::default(); SENSORS];
        for (i, figures) in sensors.iter_mut().enumerate() {
            let daily = (start_ms as f64 / DAY_MS as f64 * std::f64::consts::TAU + i as f64).sin();
            self.levels[i] += (self.random.unit() - 0.5) * 0.02;
            let noise = 0.02 * (i + 1) as f64;
            for _ in 0..10 {
                let value = self.levels[i] + daily + (self.random.unit() + self.random.unit() - 1.0) * noise;
                figures.push(if i == 7 { f64::from(value as f32) } else { (value * 100.0).round() / 100.0 });
            }
            if i == 6 && start_ms / INTERVAL_MS % 6 != 0 {
                *figures = Figures::held((self.levels[i] * 100.0).round() / 100.0);
            }
        }
        let of = |figure: fn(&Figures) -> f64| sensors.iter().map(figure).collect::<Vec<f64>>();
        SummaryRow {
            machine_key: self.key,
            start: Timestamp::from_millisecond(start_ms).unwrap_or_default(),
            interval_ms: INTERVAL_MS as i32,
            counts: sensors.iter().map(|figures| figures.count as i32).collect(),
            mins: of(|figures| figures.min),
            maxs: of(|figures| figures.max),
            means: of(|figures| figures.mean),
            sds: of(|figures| (figures.squares / figures.count.max(1.0)).max(0.0).sqrt()),
            lasts: of(|figures| figures.last),
            qualities: sensors.iter().map(|figures| u8::from(figures.count == 0.0)).collect(),
            detector: 1,
            score: Some((0.3 + 0.2 * self.random.unit()) as f32),
            health_percent: Some(97.0 + (self.random.unit() * 4.0).floor() as f32 / 4.0),
            mode: 3,
            energy_wh: Some(12.5 + self.random.unit()),
            clock_trusted: true,
        }
    }
}

/// As the gateway's window adds them up.
#[derive(Debug, Clone, Copy, Default)]
struct Figures {
    count: f64,
    min: f64,
    max: f64,
    mean: f64,
    squares: f64,
    last: f64,
}

impl Figures {
    fn held(value: f64) -> Self {
        Self { count: 0.0, min: value, max: value, mean: value, squares: 0.0, last: value }
    }

    fn push(&mut self, value: f64) {
        (self.min, self.max) =
            if self.count == 0.0 { (value, value) } else { (self.min.min(value), self.max.max(value)) };
        self.count += 1.0;
        let off = value - self.mean;
        self.mean += off / self.count;
        self.squares += off * (value - self.mean);
        self.last = value;
    }
}

/// xorshift64*.
struct Random(u64);

impl Random {
    fn unit(&mut self) -> f64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

async fn size(store: &Store, table: &str) -> anyhow::Result<i64> {
    let sql = "SELECT coalesce(sum(pg_total_relation_size(inhrelid)), 0)::int8 FROM pg_inherits
               WHERE inhparent = $1::text::regclass";
    Ok(store.client().await?.query_one(sql, &[&table]).await?.get(0))
}

/// What is stored of some machines, in whatever form.
async fn digest(store: &Store, keys: &[i32], from: Timestamp, to: Timestamp) -> anyhow::Result<Vec<String>> {
    let mut client = store.client().await?;
    let transaction = client.transaction().await?;
    let mut digests = Vec::new();
    for key in keys {
        let sql = format!("SELECT {} FROM summaries WHERE machine_key = $1 ORDER BY start", summaries::COLUMNS);
        let mut rows = Vec::new();
        for row in transaction.query(&sql, &[key]).await? {
            rows.push(summaries::read(&row)?);
        }
        for start in blocks::between(&transaction, *key, from, to).await? {
            rows.extend(blocks::rows(&transaction, *key, start).await?);
        }
        let mut text = String::new();
        for row in &rows {
            // `{:?}` of a float is the shortest text that is read back as the same.
            write!(text, "{row:?}")?;
        }
        digests.push(format!("{} {:?}", rows.len(), sha2::Sha256::digest(text.as_bytes())));
    }
    Ok(digests)
}

async fn ask(store: &Store, form: &str, first: Timestamp, end: Timestamp) -> anyhow::Result<()> {
    let client = store.client().await?;
    let machines = client.query("SELECT id FROM machines ORDER BY key", &[]).await?;
    drop(client);
    let machine = |n: usize| -> Uuid { machines[n * 7 % machines.len()].get(0) };
    let machine = &machine;
    let sensor = &|| vec![("sensor-3".to_owned(), Some("bar".to_owned()))];
    let plan = |hours: i64, points| {
        // As asked for at some moment of the day.
        let to = end - SignedDuration::from_secs(1_234);
        Plan::new((to - SignedDuration::from_hours(hours)).max(first), to, points, INTERVAL_MS as i32)
    };
    let (day, month) = (plan(24, 500)?, plan(30 * 24, 1_000)?);
    let read = |n: usize, plan| async move {
        // As somebody who may see the first site.
        let scope = Scope::new(DEFAULT_ORGANISATION, &[SITE], &[Grant { site: None, role: Role::Viewer }]);
        let mut client = store.client().await?;
        let transaction = scoped(&mut client, &scope).await?;
        blocks::one_moment(&transaction).await?;
        store::series::read(&transaction, machine(n), sensor(), plan).await
    };
    let figures = asked(|n| read(n, day)).await?;
    say(&format!("{form}: 24 h of one sensor at 500 points: {figures}"))?;
    let figures = asked(|n| read(n, month)).await?;
    say(&format!("{form}: 30 days of one sensor at 1,000 points ({} hours): {figures}", month.buckets))?;
    let fleet = |n: usize, per: Option<Per>| async move {
        let scope = Scope::new(DEFAULT_ORGANISATION, &[SITE], &[Grant { site: None, role: Role::Viewer }]);
        let mut client = store.client().await?;
        let transaction = scoped(&mut client, &scope).await?;
        let to = ceil(end - SignedDuration::from_secs(1_234 + n as i64), HOUR_MS);
        let from = to - SignedDuration::from_hours(24 * 30);
        let question = Question { from, to, by: By::Machine, per, site: None, machine: None };
        store::energy::read(&transaction, &question, 473.0).await
    };
    let figures = asked(|n| fleet(n, None)).await?;
    say(&format!("{form}: 30-day fleet view, energy, cost and emissions by machine: {figures}"))?;
    let figures = asked(|n| fleet(n, Some(Per::Day))).await?;
    say(&format!("{form}: the same by day: {figures}"))
}

/// Median and p95, milliseconds.
async fn asked<T, F: Future<Output = Result<T, store::StoreError>>>(
    ask: impl Fn(usize) -> F,
) -> anyhow::Result<String> {
    let mut took = Vec::new();
    for n in 0..WARM + ASKED {
        let begun = Instant::now();
        ask(n).await.context("a question")?;
        took.push(begun.elapsed());
    }
    let mut took = took.split_off(WARM);
    took.sort_unstable();
    let ms = |at: Duration| at.as_secs_f64() * 1e3;
    Ok(format!("p50 {:.1} ms, p95 {:.1} ms", ms(took[took.len() / 2]), ms(took[took.len() * 95 / 100])))
}

/// Packed size by kind of sensor: of one machine's six hours.
fn by_kind(start: Timestamp) -> anyhow::Result<String> {
    let mut machine = Machine::new(1);
    let rows: Vec<SummaryRow> =
        (0..2_160).map(|n| machine.interval(start.as_millisecond() + n * INTERVAL_MS)).collect();
    let packed = block::pack(&rows)?;
    let bytes = |sensor: &(Vec<u8>, Vec<u8>)| (sensor.0.len() + sensor.1.len()) as f64 / rows.len() as f64;
    let two: Vec<f64> = packed.sensors[..6].iter().map(bytes).collect();
    Ok(format!(
        "packed, without the database's own share: two decimals {:.1} to {:.1} bytes, mostly held {:.1}, all digits of f32 {:.1}, \
         what belongs to the machine {:.1} an interval",
        two[0],
        two[5],
        bytes(&packed.sensors[6]),
        bytes(&packed.sensors[7]),
        packed.machine.len() as f64 / rows.len() as f64
    ))
}

/// Of this process, in user and system mode.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit(") ").next().unwrap_or_default();
    let ticks: u64 = after_name.split(' ').skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    ticks as f64 / 100.0
}
