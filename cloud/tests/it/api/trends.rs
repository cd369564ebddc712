//! Trends from real rows.

use gemba_cloud::{clock, history::day, serve, users::Role};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::Server;
use crate::history::make_rollups;

/// 2026-01-01T00:00:00Z
const START_MS: i64 = 1_767_225_600_000;

impl Server {
    /// Rows every 10 s for one machine: sensor 0 rises by one a row; sensor 1 has nothing in every other row.
    pub(super) async fn rows(&self, key: i32, first: i64, count: i64) {
        let start = Timestamp::from_millisecond(START_MS).unwrap();
        let days = (first..=first + count).map(|n| day(start + SignedDuration::from_secs(10 * n)));
        self.store.make_days(&days.collect()).await.unwrap();
        self.sql(&format!(
            "INSERT INTO summaries (machine_key, start, interval_ms, counts, mins, maxs, means, sds, lasts, qualities,
                                    detector, score, health_percent, mode, clock_trusted)
             SELECT {key}, timestamptz '2026-01-01T00:00:00Z' + n * interval '10 s', 10000,
                    ARRAY[10, CASE n % 2 WHEN 0 THEN 5 ELSE 0 END],
                    ARRAY[n - 0.5, CASE n % 2 WHEN 0 THEN 1 ELSE 'NaN'::float8 END],
                    ARRAY[n + 0.5, CASE n % 2 WHEN 0 THEN 3 ELSE 'NaN'::float8 END],
                    ARRAY[n, CASE n % 2 WHEN 0 THEN 2 ELSE 'NaN'::float8 END],
                    ARRAY[0, 0], ARRAY[n, 2], '\\x0000'::bytea, 1,
                    CASE WHEN n = 500 THEN 7.5 ELSE 0.5 END, CASE WHEN n = 500 THEN 12 END, 3, true
             FROM generate_series({first}::int, {first}::int + {count}::int - 1) AS n"
        ))
        .await;
    }

    /// Packs all rows.
    async fn pack(&self) {
        let until = clock::now() + SignedDuration::from_hours(1);
        serve::history::pack(&self.store, until, 0, &CancellationToken::new()).await.unwrap();
        let client = self.store.client().await.unwrap();
        assert!(client.query_opt("SELECT FROM summaries LIMIT 1", &[]).await.unwrap().is_none());
    }
}

fn numbers(list: &Value) -> Vec<Option<f64>> {
    list.as_array().unwrap().iter().map(Value::as_f64).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_measured_comes_back_as_it_is_when_there_is_room() {
    let server = Server::start().await;
    let token = server.user(Role::Viewer).await;
    let gateway = server.gateway("north").await;
    let (machine, key) = server.machine(gateway, "pump-1", &["flow", "pressure"]).await;
    server.rows(key, 0, 6).await;
    let path = format!("/api/v1/machines/{machine}/series?from=2026-01-01T00:00:00Z&to=2026-01-01T00:01:20Z");
    let series = server.get(&path, &token).await;
    assert_eq!((&series["bucket_ms"], &series["from"]), (&json!(10_000), &json!("2026-01-01T00:00:00Z")));
    let (flow, pressure) = (&series["series"][0], &series["series"][1]);
    assert_eq!((&flow["sensor"], &flow["unit"]), (&json!("flow"), &json!("bar")));
    let times: Vec<i64> = (0..8).map(|n| START_MS + n * 10_000).collect();
    assert_eq!(flow["time_ms"], json!(times));
    assert_eq!(flow["mean"], json!([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, null, null]));
    assert_eq!(flow["min"][3], 2.5);
    assert_eq!(pressure["max"], json!([3.0, null, 3.0, null, 3.0, null, null, null]), "a hole is shown");
    assert_eq!(series["score"]["max"][0], 0.5);
    let one = server.get(&format!("{path}&sensor=pressure"), &token).await;
    assert_eq!(one["series"].as_array().unwrap().len(), 1);
    assert_eq!(&one["series"][0], pressure);
}

#[tokio::test(flavor = "multi_thread")]
async fn extremes_survive_and_means_are_weighted() {
    let server = Server::start().await;
    let token = server.user(Role::Viewer).await;
    let gateway = server.gateway("north").await;
    let (machine, key) = server.machine(gateway, "pump-1", &["flow", "pressure"]).await;
    server.rows(key, 0, 1_000).await;
    let spike = "UPDATE summaries SET maxs[1] = 9999, mins[1] = -9999, counts[1] = 30
                 WHERE start = timestamptz '2026-01-01T00:00:00Z' + 777 * interval '10 s'";
    server.sql(spike).await;
    for points in [10, 37, 500, 5_000] {
        let range = "from=2026-01-01T00:00:03Z&to=2026-01-01T02:46:40Z";
        let path = format!("/api/v1/machines/{machine}/series?{range}&points={points}");
        let series = server.get(&path, &token).await;
        let flow = &series["series"][0];
        let (min, max) = (numbers(&flow["min"]), numbers(&flow["max"]));
        assert!(min.len() <= points && (points < 1_000) == (min.len() < 1_000), "{points}: {}", min.len());
        assert!(min.contains(&Some(-9_999.0)) && max.contains(&Some(9_999.0)), "{points}");
        let score = numbers(&series["score"]["max"]).into_iter().flatten().fold(0.0, f64::max);
        let health = numbers(&series["health"]["min"]).into_iter().flatten().fold(100.0, f64::min);
        assert_eq!((score, health), (7.5, 12.0), "{points}");
    }
    // Two rows a bucket: 776 counts 10 readings, 777 counts 30.
    let path = format!("/api/v1/machines/{machine}/series?from=2026-01-01T02:00:00Z&to=2026-01-01T02:20:00Z&points=60");
    let series = server.get(&path, &token).await;
    assert_eq!(series["bucket_ms"], 20_000);
    let place = (776 * 10_000 - 2 * 3_600_000) / 20_000;
    assert_eq!(series["series"][0]["mean"][place], json!((776.0 * 10.0 + 777.0 * 30.0) / 40.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_level_tells_the_same_extremes() {
    let server = Server::start().await;
    let token = server.user(Role::Viewer).await;
    let gateway = server.gateway("north").await;
    let (machine, key) = server.machine(gateway, "pump-1", &["flow", "pressure"]).await;
    // Four and a half days, one row a minute.
    server.rows(key, 0, 38_880).await;
    server.sql("DELETE FROM summaries WHERE extract(second FROM start) <> 0 AND maxs[1] <> 20000.5").await;
    make_rollups(&server.store).await;
    let path = format!("/api/v1/machines/{machine}/series");
    let read = async |query: &str| server.get(&format!("{path}?from=2026-01-01T00:00:00Z&{query}"), &token).await;
    let fold = |series: &Value, what: &str, fold: fn(f64, f64) -> f64| {
        numbers(&series["series"][0][what]).into_iter().flatten().reduce(fold).unwrap()
    };
    let mut packed = Vec::new();
    for round in 0..2 {
        // Up to a moment within an hour: what comes after it is not told.
        let hour = 3_600_000;
        for (to, points, bucket_ms, max) in [
            ("05T10:20:30Z", 5_000, 80_000, 38_280.5),
            ("05T10:20:30Z", 200, hour, 38_280.5),
            ("05T10:20:30Z", 30, 4 * hour, 38_280.5),
            ("05T10:20:30Z", 10, 12 * hour, 38_280.5),
            ("08T00:00:00Z", 10, 24 * hour, 38_874.5),
            ("07T01:02:03Z", 10, 24 * hour, 38_874.5),
        ] {
            let series = read(&format!("to=2026-01-{to}&points={points}")).await;
            assert_eq!(series["bucket_ms"], bucket_ms, "{points}");
            assert_eq!((fold(&series, "min", f64::min), fold(&series, "max", f64::max)), (-0.5, max), "{points}");
            let mean = numbers(&series["series"][0]["mean"]);
            assert!((mean[0].unwrap() - fold(&series, "mean", f64::min)).abs() < 1e-9, "it rises");
            if round == 0 {
                packed.push(series);
            } else {
                let before = packed.remove(0);
                for what in ["min", "max", "time_ms"] {
                    assert_eq!(series["series"][0][what], before["series"][0][what], "{points}");
                    assert_eq!(series["series"][1][what], before["series"][1][what], "{points}");
                }
                for what in ["score", "health"] {
                    assert_eq!(series[what], before[what], "{points}");
                }
                for (a, b) in mean.iter().flatten().zip(numbers(&before["series"][0]["mean"]).into_iter().flatten()) {
                    assert!((a - b).abs() < 1e-9 * (1.0 + b.abs()));
                }
            }
        }
        if round == 0 {
            server.pack().await;
        }
    }
    // The intervals go, then the hours: what is left is told.
    server.store.drop_old(clock::now() + SignedDuration::from_hours(24 * 40)).await.unwrap();
    let series = read("to=2026-01-05T10:20:30Z&points=5000").await;
    assert_eq!(series["bucket_ms"], 3_600_000);
    assert!(numbers(&series["series"][0]["max"]).contains(&Some(38_514.5)), "to the end of the hour");
    server.store.drop_old(clock::now() + SignedDuration::from_hours(24 * 900)).await.unwrap();
    let series = read("to=2026-01-05T10:20:30Z&points=5000").await;
    assert_eq!(series["bucket_ms"], 86_400_000);
    assert_eq!((fold(&series, "min", f64::min), fold(&series, "max", f64::max)), (-0.5, 38_874.5));
}

#[tokio::test(flavor = "multi_thread")]
async fn intervals_that_are_packed_meanwhile_are_seen_once() {
    let server = Server::start().await;
    let token = server.user(Role::Viewer).await;
    let gateway = server.gateway("north").await;
    let (machine, key) = server.machine(gateway, "pump-1", &["flow", "pressure"]).await;
    let path = format!(
        "/api/v1/machines/{machine}/series?from=2026-01-01T00:00:00Z&to=2026-01-04T00:00:00Z&sensor=flow&points=5000"
    );
    for round in 0..3 {
        server.rows(key, round * 8_640, 8_640).await;
        let before = server.get(&path, &token).await;
        let until = clock::now() + SignedDuration::from_hours(1);
        let store = server.store.clone();
        let packing = tokio::spawn(async move {
            serve::history::pack(&store, until, 0, &CancellationToken::new()).await.unwrap();
        });
        // A row seen twice would not show in a mean; a row not seen is a hole.
        while !packing.is_finished() {
            let meanwhile = server.get(&path, &token).await;
            assert!(meanwhile["series"][0]["max"] == before["series"][0]["max"], "{round}");
        }
        packing.await.unwrap();
        assert!(server.get(&path, &token).await["series"][0]["max"] == before["series"][0]["max"], "{round}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn energy_by_machine_is_read_from_whole_days_and_hours() {
    let server = Server::start().await;
    let token = server.user(Role::Viewer).await;
    let gateway = server.gateway("north").await;
    let (machine, key) = server.machine(gateway, "pump-1", &["flow"]).await;
    let (_, part) = server.machine(gateway, "pump-2", &["flow"]).await;
    server.machine(gateway, "pump-3", &["flow"]).await;
    server.rows(key, 0, 20_000).await;
    server.rows(part, 30_000, 360).await;
    server.sql("UPDATE summaries SET energy_wh = 2").await;
    server.sql(&format!("UPDATE machines SET merged_into = '{machine}' WHERE name = 'pump-2'")).await;
    make_rollups(&server.store).await;
    let read = async |query: &str| server.get(&format!("/api/v1/energy?{query}"), &token).await;
    let all = read("from=2026-01-01T00:00:00Z&to=2026-01-05T00:00:00Z&by=machine").await;
    assert_eq!(all["energy_wh"], 40_720.0);
    assert_eq!(all["items"][0]["machine"], json!(machine));
    assert_eq!((&all["items"][0]["energy_wh"], &all["items"][1]["energy_wh"]), (&json!(40_720.0), &Value::Null));
    assert_eq!(all["items"][0]["score_max"], 7.5);
    let hours = all["items"][0]["running_h"].as_f64().unwrap();
    assert!((hours - 20_360.0 / 360.0).abs() < 1e-9, "{hours}");
    assert_eq!(all["items"].as_array().unwrap().len(), 2);
    let some = read("from=2026-01-01T22:30:00Z&to=2026-01-03T01:10:00Z").await;
    assert_eq!((&some["from"], &some["to"]), (&json!("2026-01-01T22:00:00Z"), &json!("2026-01-03T02:00:00Z")));
    assert_eq!(some["energy_wh"], 2.0 * 28.0 * 360.0);
    let bad = server.call("GET", "/api/v1/energy?by=plant", Some(&token), None).await;
    assert_eq!(bad.status, 422, "{}", bad.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_merged_machine_goes_on_in_its_target() {
    let server = Server::start().await;
    let token = server.user(Role::Supervisor).await;
    let gateway = server.gateway("north").await;
    let (old, old_key) = server.machine(gateway, "pump-1", &["flow", "pressure"]).await;
    let (new, new_key) = server.machine(gateway, "pump-01", &["pressure", "power"]).await;
    server.rows(old_key, 0, 2).await;
    server.rows(new_key, 2, 2).await;
    let (status, _) = server.post(&format!("/api/v1/machines/{new}/merge"), &token, json!({"into": old})).await;
    assert_eq!(status, 200);
    let path = format!("/api/v1/machines/{old}/series?from=2026-01-01T00:00:00Z&to=2026-01-01T00:00:40Z");
    let series = server.get(&path, &token).await;
    let of = |n: usize| (series["series"][n]["sensor"].clone(), series["series"][n]["mean"].clone());
    assert_eq!(of(0), (json!("flow"), json!([0.0, 1.0, null, null])));
    assert_eq!(of(1), (json!("pressure"), json!([2.0, null, 2.0, 3.0])), "by name, not by position");
    assert_eq!(of(2), (json!("power"), json!([null, null, 2.0, null])));
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_and_what_is_wrong_with_them() {
    let server = Server::start().await;
    let token = server.user(Role::Viewer).await;
    let gateway = server.gateway("north").await;
    let (machine, key) = server.machine(gateway, "pump-1", &["flow", "pressure"]).await;
    server.rows(key, 0, 200).await;
    server.sql("UPDATE machines SET last_reading_at = '2026-01-01T00:30:00Z'").await;
    let path = format!("/api/v1/machines/{machine}/series");
    let series = server.get(&path, &token).await;
    assert_eq!(series["to"], "2026-01-01T00:30:00.001Z");
    let flow = numbers(&series["series"][0]["mean"]);
    assert_eq!((flow.first(), flow.last()), (Some(&Some(90.0)), Some(&Some(180.0))));
    for query in [
        "points=9",
        "points=5001",
        "points=x",
        "sensor=none",
        "sensor=flow&sensor=none",
        "from=2026-01-01T00:00:00Z&to=2026-01-01T00:00:00Z",
        "from=2024-01-01T00:00:00Z&to=2026-01-01T00:00:00Z",
        "from=-009999-01-01T00:00:00Z",
        "unknown=1",
    ] {
        let answer = server.call("GET", &format!("{path}?{query}"), Some(&token), None).await;
        assert_eq!(answer.status, 422, "{query}: {}", answer.body);
        assert!(answer.body["errors"][0]["field"].is_string(), "{query}");
    }
    let unknown = server.call("GET", &format!("/api/v1/machines/{}/series", Uuid::now_v7()), Some(&token), None).await;
    assert_eq!(unknown.status, 404);
}
