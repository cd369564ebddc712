//! Rollups, packed days, retention: nothing is counted twice, nothing is lost, and every level tells the same.

use std::collections::{BTreeMap, BTreeSet};

use gemba_cloud::{
    clock,
    energy::profile,
    history::{Level, SummaryRow, day, midnight, pack_before, rollup::gather},
    intake::write::{Days, Outcome},
    serve::history,
    store::{
        Store, blocks,
        compaction::Packed,
        energy, rollups,
        summaries::{self, COLUMNS},
    },
};
use gemba_shared::{
    message::{Batch, Epoch, Lane},
    telemetry::{Mode, Quality, Record, SensorSummary},
};
use jiff::{SignedDuration, Timestamp, civil::Date};
use tokio_util::sync::CancellationToken;

use crate::{
    database,
    plant::{self, Bench, Gateway, batch, bench, catalog, count, rows, summary},
};

const HOUR_US: i64 = 3_600_000_000;

async fn take(bench: &Bench, gateway: &Gateway, batches: &[Batch]) -> Outcome {
    take_at(bench, gateway, batches, clock::now()).await
}

async fn take_at(bench: &Bench, gateway: &Gateway, batches: &[Batch], now: Timestamp) -> Outcome {
    let batches: Vec<_> = batches.iter().map(|batch| gateway.incoming(batch.clone())).collect();
    bench.intake.write(&batches, &Days::default(), now).await.expect("it is stored")
}

/// The start of the hour that began so many hours ago.
fn hour_ago(hours: i64) -> gemba_shared::telemetry::Timestamp {
    clock::to_wire(clock::now()).floor(HOUR_US).plus_us(-hours * HOUR_US)
}

/// A day that was over `days` days ago, at noon.
fn noon(days: i64) -> gemba_shared::telemetry::Timestamp {
    clock::to_wire(clock::now()).floor(24 * HOUR_US).plus_us(-(24 * days - 12) * HOUR_US)
}

/// Compares every rollup with what the database itself makes of the intervals; they are all in `summaries`.
pub(crate) async fn check_rollups(store: &Store) {
    for (table, unit) in [("rollup_hours", "hour"), ("rollup_days", "day")] {
        let sql = format!(
            "WITH cells AS (
                 SELECT machine_key, date_trunc('{unit}', start) AS start, start AS at, i, counts[i] AS n,
                        greatest(counts[i], 1) AS w, mins[i] AS min, maxs[i] AS max, means[i] AS mean, sds[i] AS sd,
                        lasts[i] AS last, mins[i] <> 'NaN' AND maxs[i] <> 'NaN' AND means[i] <> 'NaN' AS good
                 FROM summaries, generate_subscripts(counts, 1) AS i
             ), means AS (
                 SELECT machine_key, start, i, sum(mean * w) / sum(w) AS mean FROM cells WHERE good GROUP BY 1, 2, 3
             ), sensors AS (
                 SELECT machine_key, start, i, sum(n) AS n, coalesce(sum(w) FILTER (WHERE good), 0) AS w,
                        min(min) FILTER (WHERE good) AS min, max(max) FILTER (WHERE good) AS max, min(means.mean) AS mean,
                        sum(w * (sd * sd + (cells.mean - means.mean) ^ 2)) FILTER (WHERE good) AS squares,
                        (array_agg(last ORDER BY at DESC) FILTER (WHERE last <> 'NaN'))[1] AS last
                 FROM cells LEFT JOIN means USING (machine_key, start, i) GROUP BY 1, 2, 3
             ), machines AS (
                 SELECT machine_key, date_trunc('{unit}', start) AS start, count(*) AS intervals, max(start) AS last_start,
                        sum(energy_wh) AS energy, max(score) AS score, min(health_percent) AS health,
                        coalesce(sum(interval_ms) FILTER (WHERE mode = 3), 0) AS running,
                        coalesce(sum(interval_ms) FILTER (WHERE mode = 2), 0) AS idle
                 FROM summaries GROUP BY 1, 2
             )
             SELECT 'machine', m.*, r.* FROM machines m FULL JOIN {table} r USING (machine_key, start)
             WHERE m.intervals IS DISTINCT FROM r.intervals OR m.last_start <> r.last_start
                OR abs(m.energy - r.energy_wh) > 1e-9 * abs(m.energy) OR (m.energy IS NULL) <> (r.energy_wh IS NULL)
                OR m.score IS DISTINCT FROM r.score_max OR m.health IS DISTINCT FROM r.health_min
                OR m.running <> r.mode_ms[4] OR m.idle <> r.mode_ms[3]
             UNION ALL
             SELECT 'sensor', NULL, NULL, s.i, NULL, s.mean, NULL, NULL, NULL, NULL, r.*
             FROM sensors s JOIN {table} r USING (machine_key, start)
             WHERE s.n <> r.counts[i] OR s.w IS DISTINCT FROM r.weights[i]
                OR s.w > 0 AND (s.min <> r.mins[i] OR s.max <> r.maxs[i]
                    OR abs(s.mean - r.means[i]) > 1e-9 * (1 + abs(s.mean))
                    OR abs(s.squares - r.squares[i]) > 1e-9 * (1 + s.squares))
                OR coalesce(s.last, 'NaN') <> r.lasts[i] OR (s.last IS NULL) <> (r.last_ms[i] < 0)"
        );
        assert_eq!(rows(store, &sql).await, "", "{table}");
    }
}

#[tokio::test]
async fn rollups_are_right_however_intervals_come() {
    let store = database::store().await;
    let (bench, gateway) = (bench(&store), plant::enrolled(&store, "g").await);
    // Three hours around a midnight, some time ago.
    let start = noon(3).plus_us(10 * HOUR_US);
    let at = |i: i64| summary("m", start.plus_us(i * 30_000_000), &[(i as f64).sin() * 9.0, -1.5]);
    let odd = |i: i64| {
        let Record::Summary(mut summary) = at(i) else { unreachable!() };
        summary.sensors[0] = None;
        let held =
            SensorSummary { count: 0, min: 4.0, max: 4.0, mean: 4.0, sd: 0.0, last: 4.0, quality: Quality::Held };
        summary.sensors[1] = Some(held);
        summary.verdict.mode = Mode::Idle;
        summary.verdict.health_percent = None;
        summary.energy_wh = None;
        Record::Summary(summary)
    };
    let mut records = vec![catalog("m", 1, &["a", "b"])];
    records.extend((0..300).filter(|i| i % 7 != 3).map(|i| if i % 5 == 0 { odd(i) } else { at(i) }));
    for (i, chunk) in records.chunks(31).enumerate() {
        take(&bench, &gateway, &[batch(Lane::Summaries, 1 + 31 * i as u64, chunk.to_vec())]).await;
        check_rollups(&store).await;
    }
    let intervals = count(&store, "SELECT sum(intervals) FROM rollup_hours").await;
    assert_eq!(intervals, records.len() as i64 - 1);
    assert_eq!(count(&store, "SELECT count(*) FROM rollup_days").await, 2);

    // A database that was filled by the release before gets the same.
    let migration = include_str!("../../migrations/0007_history.sql");
    let (_, from) = migration.split_once("-- What is there already").unwrap();
    let made = from.split_once('\n').unwrap().1.split_once("-- (Up to here.)").unwrap().0;
    let client = store.client().await.unwrap();
    client.batch_execute(&format!("TRUNCATE rollup_hours, rollup_days; {made}")).await.unwrap();
    drop(client);
    check_rollups(&store).await;
    assert_eq!(count(&store, "SELECT sum(intervals) FROM rollup_hours").await, intervals);

    // The gateway lost its numbers and its order of sensors: it tells some again, some twice, some that were missing, and one more
    // sensor.
    let mut again = vec![catalog("m", 1, &["b", "c", "a"])];
    let turned = |i: i64| summary("m", start.plus_us(i * 30_000_000), &[-1.5, 100.0, (i as f64).sin() * 9.0]);
    again.extend([3, 10, 10, 4, 5, 291, 17, 3].map(turned));
    let mut batch = batch(Lane::Summaries, 1, again);
    batch.seq.epoch = Epoch(7);
    let outcome = take(&bench, &gateway, &[batch]).await;
    assert_eq!((outcome.counts.summaries, outcome.counts.summaries_known), (3, 5), "3, 10 and 17 were missing");
    check_rollups(&store).await;
    assert_eq!(count(&store, "SELECT cardinality(counts)::bigint FROM rollup_hours ORDER BY start LIMIT 1").await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_clouds_add_to_the_same_hours() {
    let config = database::config().await;
    let stores = [(); 2].map(|()| Store::new(config.clone(), 4).unwrap());
    let gateway = plant::enrolled(&stores[0], "g").await;
    let benches = stores.each_ref().map(bench);
    let start = hour_ago(5);
    let mut machines = vec![catalog("m", 1, &["a"]), catalog("n", 1, &["a"])];
    take(&benches[0], &gateway, &[batch(Lane::Events, 1, std::mem::take(&mut machines))]).await;
    let lane = |lane: Lane, odd: i64, first: u64| {
        (0..40).map(move |part| {
            let record = |i: i64| {
                let at = start.plus_us((2 * (part * 5 + i / 2) + odd) * 20_000_000);
                summary(if i % 2 == 0 { "m" } else { "n" }, at, &[i as f64 + odd as f64])
            };
            batch(lane, first + 10 * part as u64, (0..10).map(record).collect())
        })
    };
    let write = |bench: usize, batches: Vec<Batch>| {
        let (bench, gateway) = (&benches[bench], &gateway);
        async move {
            for batch in batches {
                // A deadlock would be an error, and nobody tries again here.
                take(bench, gateway, &[batch]).await;
            }
        }
    };
    let events = write(0, lane(Lane::Events, 0, 3).collect());
    let summaries = write(1, lane(Lane::Summaries, 1, 1).collect());
    tokio::join!(events, summaries);
    assert_eq!(count(&stores[0], "SELECT sum(intervals) FROM rollup_days").await, 800);
    check_rollups(&stores[0]).await;
}

/// All that is stored of all machines, in whatever form.
pub(crate) async fn everything(store: &Store) -> BTreeMap<(i32, Timestamp), String> {
    let mut client = store.client().await.unwrap();
    let transaction = client.transaction().await.unwrap();
    let mut found: Vec<SummaryRow> = Vec::new();
    for row in transaction.query(&format!("SELECT {COLUMNS} FROM summaries"), &[]).await.unwrap() {
        found.push(summaries::read(&row).unwrap());
    }
    for row in transaction.query("SELECT machine_key, start FROM summary_blocks", &[]).await.unwrap() {
        found.extend(blocks::rows(&transaction, row.get(0), row.get(1)).await.unwrap());
    }
    let count = found.len();
    let found: BTreeMap<_, _> =
        found.into_iter().map(|row| ((row.machine_key, row.start), format!("{row:?}"))).collect();
    assert_eq!(found.len(), count, "each is in one place");
    found
}

async fn pack(store: &Store) {
    history::pack(store, clock::now() + SignedDuration::from_hours(1), 0, &CancellationToken::new()).await.unwrap();
}

fn range(day: Date) -> (Timestamp, Timestamp) {
    (midnight(day), midnight(day.tomorrow().unwrap()))
}

/// A day and a bit of two machines, that was over long ago; then packed.
pub(crate) async fn packed_plant(store: &Store) -> (Bench, Gateway, Vec<Record>) {
    let (bench, gateway) = (bench(store), plant::enrolled(store, "g").await);
    let start = noon(3).plus_us(-12 * HOUR_US);
    let mut records = vec![catalog("m", 1, &["a", "b"]), catalog("n", 1, &["a"])];
    for i in 0..1_000 {
        let at = start.plus_us(i * 100_000_000);
        records.push(summary("m", at, &[((i as f64 / 50.0).sin() * 1_000.0).round() / 100.0, i as f64 / 3.0]));
        if i % 3 == 0 {
            records.push(summary("n", at, &[i as f64]));
        }
    }
    for (i, chunk) in records.chunks(300).enumerate() {
        take(&bench, &gateway, &[batch(Lane::Summaries, 1 + 300 * i as u64, chunk.to_vec())]).await;
    }
    (bench, gateway, records)
}

#[tokio::test(flavor = "multi_thread")]
async fn packed_intervals_are_the_same_and_late_ones_join_them() {
    let config = database::config().await;
    let stores = [(); 2].map(|()| Store::new(config.clone(), 4).unwrap());
    let store = &stores[0];
    let (bench, gateway, records) = packed_plant(store).await;
    let before = everything(store).await;
    assert_eq!(before.len(), records.len() - 2);

    // Two clouds at once, and a third that gives up in the middle.
    let dropped = {
        let day = day(clock::from_wire(noon(3)).unwrap());
        let (from, to) = range(day);
        let key = store.machines_to_pack(from, to).await.unwrap()[0];
        store.make_blocks(day).await.unwrap();
        tokio::time::timeout(std::time::Duration::from_millis(3), store.pack_some(key, from, to)).await.is_err()
    };
    println!("the third one was cut off: {dropped}");
    tokio::join!(pack(store), pack(&stores[1]));
    pack(store).await;
    assert_eq!(count(store, "SELECT count(*) FROM summaries").await, 0);
    assert!(count(store, "SELECT count(*) FROM summary_blocks").await >= 9);
    assert_eq!(everything(store).await, before);
    let old = "SELECT count(*) FROM pg_inherits i JOIN history_days d
               ON i.inhrelid::regclass::text = 'summaries_' || to_char(d.day, 'YYYYMMDD')
               WHERE i.inhparent = 'summaries'::regclass AND d.day < (now() AT TIME ZONE 'UTC')::date";
    assert_eq!(count(store, old).await, 0, "empty partitions are dropped");

    // Told again under other numbers, with some that were missing; by a process that has seen the partitions.
    let start = noon(3).plus_us(-12 * HOUR_US);
    let late = |i: i64| summary("m", start.plus_us(i * 100_000_000 + 50_000_000), &[7.25, i as f64]);
    let mut again = vec![catalog("m", 1, &["a", "b"])];
    again.extend(
        records[2..]
            .iter()
            .filter(|record| matches!(record, Record::Summary(s) if s.machine.as_str() == "m"))
            .take(400)
            .cloned(),
    );
    again.extend([-3, 5, 400, 401, 990].map(late));
    let mut batch = batch(Lane::Summaries, 1, again);
    batch.seq.epoch = Epoch(8);
    let outcome = take(&bench, &gateway, &[batch]).await;
    assert_eq!((outcome.counts.summaries, outcome.counts.summaries_known), (5, 400));
    assert_eq!(count(store, "SELECT count(*) FROM summaries").await, 5);
    let more = everything(store).await;
    assert_eq!(more.len(), before.len() + 5);
    assert!(before.iter().all(|(key, row)| more.get(key) == Some(row)));
    assert_eq!(count(store, "SELECT sum(intervals) FROM rollup_hours").await, more.len() as i64);

    pack(store).await;
    assert_eq!(count(store, "SELECT count(*) FROM summaries").await, 0);
    assert_eq!(everything(store).await, more);
    assert_eq!(count(store, "SELECT sum(intervals) FROM summary_blocks").await, more.len() as i64);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_writes_and_who_packs_do_not_lose_anything_to_each_other() {
    let store = database::store().await;
    let (bench, gateway, _) = packed_plant(&store).await;
    let start = noon(3).plus_us(-12 * HOUR_US + 7_000_000);
    let days = Days::default();
    let packing = CancellationToken::new();
    let packer = {
        let (store, packing) = (store.clone(), packing.clone());
        tokio::spawn(async move {
            while !packing.is_cancelled() {
                pack(&store).await;
            }
        })
    };
    for part in 0..30_u64 {
        let record = |i: u64| summary("m", start.plus_us(((part * 5 + i) * 300_000_000) as i64), &[1.0, 2.0]);
        let batch = gateway.incoming(batch(Lane::Events, 1 + 10 * part, (0..5).chain(0..5).map(record).collect()));
        // As the daemon does: again after what will pass.
        while let Err(error) = bench.intake.write(std::slice::from_ref(&batch), &days, clock::now()).await {
            // Here a partition is dropped the moment it is made.
            assert!(error.is_transient() || error.lacks_partition(), "{error:?}");
        }
    }
    packing.cancel();
    packer.await.unwrap();
    pack(&store).await;
    let all = everything(&store).await;
    assert_eq!(all.len(), 1_000 + 334 + 150);
    assert_eq!(count(&store, "SELECT sum(intervals) FROM rollup_days").await, all.len() as i64);
}

#[tokio::test]
async fn what_is_too_old_is_dropped_and_never_counted_again() {
    let store = database::store().await;
    let (bench, gateway, records) = packed_plant(&store).await;
    pack(&store).await;
    let now = clock::now();
    let later = |days: i64| now + SignedDuration::from_hours(24 * days);
    assert_eq!(store.drop_old(later(26)).await.unwrap().days, 0, "it came just now, and is kept for 30 days from then");
    let dropped = store.drop_old(later(31)).await.unwrap();
    assert!(dropped.days >= 2 && dropped.months == 0, "{dropped:?}");
    assert_eq!(everything(&store).await.len(), 0);
    let intervals = count(&store, "SELECT sum(intervals) FROM rollup_hours").await;
    assert_eq!(intervals, records.len() as i64 - 2);

    // All of it again, and what comes after the last of its day.
    let start = noon(3).plus_us(-12 * HOUR_US);
    let mut again = records.clone();
    again.extend([700, 1_001, 1_002].map(|i| summary("m", start.plus_us(i * 100_000_000), &[1.0, 1.0])));
    for (i, chunk) in again.chunks(300).enumerate() {
        let mut batch = batch(Lane::Summaries, 1 + 300 * i as u64, chunk.to_vec());
        batch.seq.epoch = Epoch(9);
        take(&bench, &gateway, &[batch]).await;
    }
    assert_eq!(everything(&store).await.len(), 0);
    assert_eq!(count(&store, "SELECT sum(intervals) FROM rollup_hours").await, intervals + 2);

    assert!(store.drop_old(later(800)).await.unwrap().months >= 1);
    assert_eq!(count(&store, "SELECT count(*) FROM rollup_hours").await, 0);
    assert_eq!(count(&store, "SELECT sum(intervals) FROM rollup_days").await, intervals + 2, "days are for ever");
}

#[tokio::test]
async fn an_organisation_may_keep_less_than_another() {
    let store = database::store().await;
    let (bench, gateway, records) = packed_plant(&store).await;
    let other = "INSERT INTO organisations (id, name, intervals_kept_days) VALUES (gen_random_uuid(), 'other', 300)";
    store.client().await.unwrap().batch_execute(other).await.unwrap();
    let later = clock::now() + SignedDuration::from_hours(24 * 31);
    assert!(store.drop_old(later).await.unwrap().days >= 2);
    assert_eq!(store.drop_old(later).await.unwrap().days, 0, "once");
    assert_eq!(everything(&store).await.len(), 0);
    assert!(count(&store, "SELECT count(*) FROM history_drops").await >= 2);
    let mut again = batch(Lane::Summaries, 1, records[..300].to_vec());
    again.seq.epoch = Epoch(9);
    assert_eq!(take(&bench, &gateway, &[again]).await.counts.summaries, 0);
    store.client().await.unwrap().batch_execute("DELETE FROM organisations WHERE name = 'other'").await.unwrap();
    store.drop_old(later).await.unwrap();
    assert_eq!(
        count(&store, "SELECT count(*) FROM history_days WHERE dropped_at IS NULL AND day < current_date").await,
        0
    );
}

#[tokio::test]
async fn hours_that_are_over_are_packed_and_what_comes_again_is_known() {
    let store = database::store().await;
    let (bench, gateway) = (bench(&store), plant::enrolled(&store, "g").await);
    let now = clock::from_wire(hour_ago(0)).unwrap();
    // Four hours up to now; each fiftieth interval comes late.
    let at = |i: i64| summary("m", hour_ago(4).plus_us(i * 30_000_000), &[i as f64]);
    let (late, in_time): (Vec<i64>, Vec<i64>) = (0..480).partition(|i| i % 50 == 0);
    let catalog = || catalog("m", 1, &["a"]);
    let records: Vec<_> = [catalog()].into_iter().chain(in_time.iter().map(|i| at(*i))).collect();
    for (i, chunk) in records.chunks(200).enumerate() {
        take_at(&bench, &gateway, &[batch(Lane::Summaries, 1 + 200 * i as u64, chunk.to_vec())], now).await;
    }
    let (before, cancel) = (pack_before(now, SignedDuration::ZERO), CancellationToken::new());
    assert_eq!(before, now - SignedDuration::from_hours(1), "the hour that has just ended may still come");
    let written = everything(&store).await;
    history::pack_windows(&store, before, 0, &cancel).await.unwrap();
    assert_eq!(everything(&store).await, written);
    let unpacked = "SELECT count(*) FROM summaries";
    assert_eq!(count(&store, unpacked).await, in_time.iter().filter(|i| **i >= 360).count() as i64);

    // All of it again, from an outbox that was lost, with what was late.
    let records: Vec<_> = [catalog()].into_iter().chain((0..480).map(at)).collect();
    let mut taken = 0;
    for (i, chunk) in records.chunks(200).enumerate() {
        let mut again = batch(Lane::Summaries, 1 + 200 * i as u64, chunk.to_vec());
        again.seq.epoch = Epoch(9);
        taken += take_at(&bench, &gateway, &[again], now).await.counts.summaries;
    }
    assert_eq!(taken, late.len() as u64);
    assert_eq!(everything(&store).await.len(), 480);
    // A few late ones are not worth it.
    history::pack_windows(&store, before, 0, &cancel).await.unwrap();
    assert!(count(&store, unpacked).await > 120);
    assert_eq!(everything(&store).await.len(), 480);
}

#[tokio::test]
async fn a_step_of_packing_waits_for_nobody() {
    let store = database::store().await;
    let (_, _, _) = packed_plant(&store).await;
    let day = day(clock::from_wire(noon(3)).unwrap());
    let (from, to) = range(day);
    let keys = store.machines_to_pack(from, to).await.unwrap();
    assert_eq!(keys.len(), 2);
    store.make_blocks(day).await.unwrap();
    let mut client = store.client().await.unwrap();
    let transaction = client.transaction().await.unwrap();
    let lock = format!("SELECT pg_advisory_xact_lock_shared({}, {})", 0x67_65_6d, keys[0] % 64);
    transaction.batch_execute(&lock).await.unwrap();
    assert_eq!(store.pack_some(keys[0], from, to).await.unwrap(), Packed::Busy);
    transaction.rollback().await.unwrap();
    assert!(matches!(store.pack_some(keys[0], from, to).await.unwrap(), Packed::Intervals(_)));
    assert!(!store.drop_packed(day).await.unwrap(), "it has rows");
    let until = midnight(day);
    assert!(!store.days_to_pack(until).await.unwrap().contains(&day), "it was not over then");
}

/// Rollups of all rows in `summaries`, for tests that write rows by hand.
pub(crate) async fn make_rollups(store: &Store) {
    let found = make_hours_and_days(store).await;
    let mut client = store.client().await.unwrap();
    let transaction = client.transaction().await.unwrap();
    energy::add(&transaction, &profile::gather(&found)).await.unwrap();
    transaction.commit().await.unwrap();
}

/// As [`make_rollups`], in a database that knows nothing else yet; the rows.
pub(crate) async fn make_hours_and_days(store: &Store) -> Vec<SummaryRow> {
    let mut client = store.client().await.unwrap();
    let found = client.query(&format!("SELECT {COLUMNS} FROM summaries"), &[]).await.unwrap();
    let found: Vec<SummaryRow> = found.iter().map(|row| summaries::read(row).unwrap()).collect();
    store.make_days(&found.iter().map(|row| day(row.start)).collect::<BTreeSet<_>>()).await.unwrap();
    let transaction = client.transaction().await.unwrap();
    for level in [Level::Hour, Level::Day] {
        rollups::write(&transaction, level, &gather(&found, level)).await.unwrap();
    }
    transaction.commit().await.unwrap();
    found
}
