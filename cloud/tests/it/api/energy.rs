//! Energy, its costs and emissions, and what was saved, over HTTP.

use std::fmt::Write as _;

use gemba_cloud::{history::day, users::Role};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Server, ids};
use crate::{history::make_rollups, plant::rows};

const SITE: Uuid = Uuid::from_u128(0x0000_0000_0000_7000_8000_0000_0000_0002);

fn start() -> Timestamp {
    "2026-01-01T00:00:00Z".parse().unwrap()
}

/// One interval of an hour: what the counter showed at its beginning and its end, and watt-hours.
struct Hour {
    from: f64,
    to: f64,
    wh: Option<f64>,
}

impl Server {
    /// Hours of a machine with one sensor, from the year's beginning on; `None` is a hole.
    async fn hours(&self, key: i32, first: usize, hours: &[Option<Hour>]) {
        let at = |n: usize| start() + SignedDuration::from_hours(n as i64);
        let days = (0..=hours.len()).map(|n| day(at(first + n))).collect();
        self.store.make_days(&days).await.unwrap();
        let mut sql = String::from(
            "INSERT INTO summaries (machine_key, start, interval_ms, counts, mins, maxs, means, sds, lasts, qualities, detector, mode,
                                    energy_wh, clock_trusted) VALUES ",
        );
        let rows = hours.iter().enumerate().filter_map(|(n, hour)| Some((n, hour.as_ref()?)));
        for (i, (n, Hour { from, to, wh })) in rows.enumerate() {
            let comma = if i == 0 { "" } else { "," };
            let wh = wh.map_or("NULL".to_owned(), |wh| wh.to_string());
            write!(
                sql,
                "{comma}({key}, '{}', 3600000, '{{60}}', '{{{from}}}', '{{{to}}}', '{{{from}}}', '{{0}}', '{{{to}}}', '\\x00', 1, 3,
                  {wh}, true)",
                at(first + n)
            )
            .unwrap();
        }
        self.sql(&sql).await;
    }

    async fn in_berlin(&self, token: &str) {
        let path = format!("/api/v1/sites/{SITE}/time-zone");
        let set = self.call("PUT", &path, Some(token), Some(json!({"time_zone": "Europe/Berlin"}))).await;
        assert_eq!(set.status, 200, "{}", set.body);
    }
}

fn tariff(with: &Value) -> Value {
    let mut tariff = json!({
        "site": SITE, "name": "Day and night", "currency": "EUR", "valid_from": "2026-01-01", "price_micro": 300_000,
        "bands": [{"name": "night", "days": 127, "from_min": 1_320, "to_min": 360, "price_micro": 100_000}],
    });
    for (key, value) in with.as_object().unwrap() {
        tariff[key] = value.clone();
    }
    tariff
}

fn near(value: &Value, expected: f64) -> bool {
    value.as_f64().is_some_and(|value| (value - expected).abs() <= 1e-6 * (1.0 + expected.abs()))
}

/// A year of hours at once, all or none.
#[tokio::test(flavor = "multi_thread")]
async fn many_carbon_factors_are_written_at_once_or_none() {
    let server = Server::start().await;
    let token = server.user(Role::Supervisor).await;
    let path = format!("/api/v1/sites/{SITE}/carbon-factors");
    let item = |hour: i64, g: f64| json!({"valid_from": start() + SignedDuration::from_hours(hour), "g_per_kwh": g});
    let list = |items: Vec<Value>| json!({"source": "a forecast", "factors": items});
    let year: Vec<Value> = (0..8_760).map(|hour| item(hour, 300.0 + (hour % 24) as f64)).collect();
    let (status, written) = server.post(&path, &token, list(year.clone())).await;
    assert_eq!((status, written), (200, json!({"added": 8_760, "changed": 0, "unchanged": 0})));
    let again = server.call_with("POST", &path, Some(&token), Some(list(year)), &[("idempotency-key", "k")]).await;
    assert_eq!((again.status, again.body), (200, json!({"added": 0, "changed": 0, "unchanged": 8_760})));
    let some = list(vec![item(8_760, 1.0), item(3, 7.0), item(0, 300.0)]);
    assert_eq!(server.post(&path, &token, some).await.1, json!({"added": 1, "changed": 1, "unchanged": 1}));
    let all = "SELECT count(*), min(g_per_kwh), count(DISTINCT source) FROM carbon_factors";
    assert_eq!(rows(&server.store, all).await, "8761 1 1");
    let audit = "SELECT action, before->>'g_per_kwh', after->>'g_per_kwh', after->>'added' FROM audit ORDER BY id";
    let told = "carbon_factor.write_many - - 8760\ncarbon_factor.change 303.0 7.0 -\ncarbon_factor.write_many - - 1";
    assert_eq!(rows(&server.store, audit).await, told);

    // What is wrong is told all at once, and none is taken.
    let wrong = list(vec![
        item(9_000, 1.0),
        item(9_001, -1.0),
        item(9_000, 2.0),
        json!({"valid_from": "2026-01-01T00:00:01Z", "g_per_kwh": 1}),
    ]);
    let (status, problem) = server.post(&path, &token, wrong).await;
    let fields: Vec<&str> =
        problem["errors"].as_array().unwrap().iter().map(|one| one["field"].as_str().unwrap()).collect();
    let expected = ["factors.1.g_per_kwh", "factors.2.valid_from", "factors.3.valid_from"];
    assert_eq!((status, &fields[..]), (422, &expected[..]), "{problem}");
    let noise: Vec<Value> = (0..200).map(|hour| item(hour, -1.0)).collect();
    assert_eq!(server.post(&path, &token, list(noise)).await.1["errors"].as_array().unwrap().len(), 100);
    for (items, status) in [(vec![], 422), ((0..10_001).map(|hour| item(hour, 1.0)).collect(), 422)] {
        assert_eq!(server.post(&path, &token, list(items)).await.0, status);
    }
    let large = json!({"source": "x".repeat(1_048_576), "factors": [item(0, 1.0)]});
    assert_eq!(server.post(&path, &token, large).await.0, 413);
    assert_eq!(rows(&server.store, all).await, "8761 1 1");
    // As many as there can be, and not one more.
    server.sql(&format!(
        "INSERT INTO carbon_factors SELECT gen_random_uuid(), s.organisation_id, s.id, timestamptz '2030-01-01Z' + n * interval '15 min', 1, '', now()
         FROM sites s, generate_series(1, 90000 - 8761 - 1) AS n WHERE s.id = '{SITE}'"
    )).await;
    let (status, problem) = server.post(&path, &token, list(vec![item(9_000, 1.0), item(9_001, 1.0)])).await;
    assert_eq!((status, &problem["code"]), (409, &json!("too_many_factors")));
    assert_eq!(server.post(&path, &token, list(vec![item(9_000, 1.0)])).await.0, 200);
    let (operator, path) = (server.user(Role::Operator).await, &path);
    assert_eq!(server.post(path, &operator, list(vec![item(0, 1.0)])).await.0, 403);
}

#[tokio::test(flavor = "multi_thread")]
async fn energy_costs_what_its_hours_cost() {
    let server = Server::start().await;
    let token = server.user(Role::Supervisor).await;
    let gateway = server.gateway("north").await;
    let (machine, key) = server.machine(gateway, "pump-1", &["flow"]).await;
    let (idle, idle_key) = server.machine(gateway, "pump-2", &["flow"]).await;
    server.in_berlin(&token).await;
    let hour = |wh| move |n: usize| (n != 10).then_some(Hour { from: 0.0, to: 0.0, wh });
    server.hours(key, 0, &(0..48).map(hour(Some(3_600.0))).collect::<Vec<_>>()).await;
    server.hours(idle_key, 0, &(0..48).map(hour(None)).collect::<Vec<_>>()).await;
    make_rollups(&server.store).await;
    let read = async |query: &str| {
        server.get(&format!("/api/v1/energy?from=2026-01-01T00:00:00Z&to=2026-01-03T00:00:00Z{query}"), &token).await
    };
    // Nothing says what it costs yet, and the server says what it emits.
    let before = read("").await;
    assert!(near(&before["energy_wh"], 47.0 * 3_600.0), "{before}");
    assert_eq!((&before["cost"], &before["priced_wh"]), (&json!([]), &json!(0.0)));
    assert!(near(&before["co2_g"], 47.0 * 3.6 * 500.0) && near(&before["items"][0]["co2_default_wh"], 47.0 * 3_600.0));

    let (status, made) = server.post("/api/v1/tariffs", &token, tariff(&json!({}))).await;
    assert_eq!(status, 201, "{made}");
    let factor = json!({"site": SITE, "valid_from": "2026-01-02T00:00:00Z", "g_per_kwh": 100, "source": "the utility"});
    assert_eq!(server.post("/api/v1/carbon-factors", &token, factor).await.0, 201);

    // By days of Berlin: 23 hours of the first (of which one is a hole by day), 24, and one.
    let days = read("&per=day").await;
    let item = &days["items"][0];
    assert_eq!((&item["machine"], &item["machines_measured"]), (&json!(machine), &json!(1)));
    assert!(
        near(&item["measured_h"], 47.0) && near(&item["range_h"], 48.0) && near(&item["running_h"], 47.0),
        "{item}"
    );
    let periods = item["periods"].as_array().unwrap();
    let told: Vec<(&str, i64)> =
        periods.iter().map(|p| (p["start"].as_str().unwrap(), p["cost"][0]["micro"].as_i64().unwrap())).collect();
    assert_eq!(
        told,
        [
            ("2026-01-01T00:00:00Z", 3_600 * (7 * 100 + 15 * 300)),
            ("2026-01-01T23:00:00Z", 3_600 * (8 * 100 + 16 * 300)),
            ("2026-01-02T23:00:00Z", 3_600 * 100),
        ]
    );
    assert!(near(&periods[0]["measured_h"], 22.0) && near(&periods[0]["range_h"], 23.0), "{}", periods[0]);
    assert_eq!(periods[2]["end"], "2026-01-03T00:00:00Z");
    let total: i64 = told.iter().map(|(_, micro)| micro).sum();
    assert_eq!(days["cost"], json!([{"currency": "EUR", "micro": total}]));
    assert!(near(&days["co2_g"], 3.6 * (23.0 * 500.0 + 24.0 * 100.0)), "{}", days["co2_g"]);
    // A machine without a power sensor has hours, and nothing that it cost.
    assert_eq!((&days["items"][1]["machine"], &days["items"][1]["energy_wh"]), (&json!(idle), &Value::Null));
    assert_eq!((&days["items"][1]["periods"], &days["items"][1]["co2_g"]), (&json!([]), &Value::Null));

    let site = read("&by=site&per=month").await;
    assert_eq!(site["items"].as_array().unwrap().len(), 1);
    let item = &site["items"][0];
    assert_eq!((&item["site"], &item["machine"], &item["machines"]), (&json!(SITE), &Value::Null, &json!(2)));
    assert_eq!((&item["name"], item["periods"].as_array().unwrap().len()), (&json!("default"), 1));
    assert!(near(&item["known_h"], 94.0) && item["cost"] == site["cost"], "{item}");
    let hours = read(&format!("&per=hour&machine={machine}")).await;
    assert_eq!(hours["items"].as_array().unwrap().len(), 1);
    assert_eq!(hours["items"][0]["periods"].as_array().unwrap().len(), 47, "a hole is no hour without energy");
    assert_eq!(read(&format!("&site={}", Uuid::now_v7())).await["items"], json!([]));

    // A part counts as the machine that it is shown as.
    server.sql(&format!("UPDATE machines SET merged_into = '{idle}' WHERE id = '{machine}'")).await;
    let merged = read("").await;
    assert_eq!((merged["items"].as_array().unwrap().len(), &merged["cost"]), (1, &days["cost"]));
    let long = "/api/v1/energy?from=2016-01-01T00:00:00Z&to=2026-01-01T00:00:00Z&per=hour";
    let long = server.call("GET", long, Some(&token), None).await;
    assert_eq!(long.status, 200, "no machine measured its power in all that time");
    let long = "/api/v1/energy?from=2018-01-01T00:00:00Z&to=2026-02-01T00:00:00Z&per=hour";
    let long = server.call("GET", long, Some(&token), None).await;
    assert_eq!((long.status, &long.body["errors"][0]["field"]), (422, &json!("per")), "{}", long.body);
    for bad in ["by=plant", "per=minute", "site=x"] {
        assert_eq!(server.call("GET", &format!("/api/v1/energy?{bad}"), Some(&token), None).await.status, 422, "{bad}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tariffs_and_factors_are_kept_by_people() {
    let server = Server::start().await;
    let (token, viewer) = (server.user(Role::Supervisor).await, server.user(Role::Viewer).await);
    let (status, first) = server.post("/api/v1/tariffs", &token, tariff(&json!({}))).await;
    assert_eq!((status, &first["bands"][0]["to_min"]), (201, &json!(360)), "{first}");
    let (status, taken) = server.post("/api/v1/tariffs", &token, tariff(&json!({"currency": "CHF"}))).await;
    assert_eq!((status, &taken["code"]), (409, &json!("begins_already")));
    assert_eq!(server.post("/api/v1/tariffs", &viewer, tariff(&json!({}))).await.0, 403);
    for (with, field) in [
        (json!({"currency": "Euro"}), "currency"),
        (json!({"currency": "eur"}), "currency"),
        (json!({"name": " "}), "name"),
        (json!({"price_micro": 1_000_000_001}), "price_micro"),
        (json!({"site": Uuid::now_v7()}), "site"),
        (json!({"bands": [{"name": "n", "days": 1, "from_min": 10, "to_min": 30, "price_micro": 1}]}), "bands"),
        (json!({"bands": [{"name": "", "days": 1, "from_min": 15, "to_min": 30, "price_micro": 1}]}), "bands.name"),
    ] {
        let (status, body) = server.post("/api/v1/tariffs", &token, tariff(&with)).await;
        assert_eq!((status, &body["errors"][0]["field"]), (422, &json!(field)), "{with}: {body}");
    }
    for with in
        [json!({"valid_from": "2026-02-30"}), json!({"valid_from": "20260201"}), json!({"valid_from": "1960-01-01"})]
    {
        assert_eq!(server.post("/api/v1/tariffs", &token, tariff(&with)).await.0, 422, "{with}");
    }
    let (_, second) = server.post("/api/v1/tariffs", &token, tariff(&json!({"valid_from": "2026-04-01"}))).await;
    let list = server.get("/api/v1/tariffs?limit=1", &viewer).await;
    assert_eq!(ids(&list), [second["id"].as_str().unwrap()], "the latest first");
    let next = server.get(&format!("/api/v1/tariffs?cursor={}", list["next_cursor"].as_str().unwrap()), &viewer).await;
    assert_eq!((ids(&next), &next["next_cursor"]), (vec![first["id"].as_str().unwrap()], &Value::Null));

    let path = format!("/api/v1/tariffs/{}", first["id"].as_str().unwrap());
    let read = server.call("GET", &path, Some(&viewer), None).await;
    let etag = read.headers["etag"].to_str().unwrap().to_owned();
    let put = async |with: Value, etag: &str| {
        server.call_with("PUT", &path, Some(&token), Some(tariff(&with)), &[("if-match", etag)]).await
    };
    let changed = put(json!({"price_micro": 250_000, "bands": []}), &etag).await;
    assert_eq!((changed.status, &changed.body["price_micro"]), (200, &json!(250_000)), "{}", changed.body);
    assert_eq!(put(json!({}), &etag).await.status, 412, "somebody changed it meanwhile");
    let etag = changed.headers["etag"].to_str().unwrap().to_owned();
    assert_eq!(put(json!({"valid_from": "2026-04-01"}), &etag).await.body["code"], "begins_already");
    assert_eq!(put(json!({"site": Uuid::now_v7()}), &etag).await.status, 422);
    assert_eq!(server.call("DELETE", &path, Some(&token), None).await.status, 204);
    assert_eq!(server.call("GET", &path, Some(&token), None).await.status, 404);

    let factor = |at: &str, g: f64| json!({"site": SITE, "valid_from": at, "g_per_kwh": g});
    let (status, made) = server.post("/api/v1/carbon-factors", &token, factor("2026-01-01T00:15:00Z", 0.0)).await;
    assert_eq!((status, &made["source"]), (201, &json!("")), "{made}");
    let again = server.post("/api/v1/carbon-factors", &token, factor("2026-01-01T00:15:00Z", 1.0)).await;
    assert_eq!((again.0, &again.1["code"]), (409, &json!("begins_already")));
    for (at, g) in [("2026-01-01T00:20:00Z", 1.0), ("2026-01-01T00:00:00Z", -1.0), ("2026-01-01T00:00:00Z", 10_001.0)] {
        assert_eq!(server.post("/api/v1/carbon-factors", &token, factor(at, g)).await.0, 422, "{at} {g}");
    }
    let path = format!("/api/v1/carbon-factors/{}", made["id"].as_str().unwrap());
    let etag = server.call("GET", &path, Some(&viewer), None).await.headers["etag"].to_str().unwrap().to_owned();
    let body = || Some(factor("2026-01-01T00:30:00Z", 380.5));
    let put = server.call_with("PUT", &path, Some(&token), body(), &[("if-match", &etag)]).await;
    assert_eq!((put.status, &put.body["g_per_kwh"]), (200, &json!(380.5)), "{}", put.body);
    assert_eq!(server.call_with("PUT", &path, Some(&token), body(), &[("if-match", &etag)]).await.status, 412);
    assert_eq!(ids(&server.get(&format!("/api/v1/carbon-factors?site={SITE}"), &viewer).await).len(), 1);
    assert_eq!(server.call("DELETE", &path, Some(&token), None).await.status, 204);
    let admin = server.user(Role::Admin).await;
    let audit = server.get("/api/v1/audit?limit=200", &admin).await;
    let actions: Vec<&str> = audit["items"].as_array().unwrap().iter().map(|i| i["action"].as_str().unwrap()).collect();
    assert_eq!(
        actions,
        [
            "carbon_factor.delete",
            "carbon_factor.change",
            "carbon_factor.create",
            "tariff.delete",
            "tariff.change",
            "tariff.create",
            "tariff.create"
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
#[allow(clippy::too_many_lines, reason = "one baseline, from its days to its savings")]
async fn savings_are_told_against_a_baseline() {
    let server = Server::start().await;
    let token = server.user(Role::Supervisor).await;
    let gateway = server.gateway("north").await;
    let (machine, key) = server.machine(gateway, "press", &["count"]).await;
    server.sql("UPDATE sensors SET unit = '1'").await;
    server.in_berlin(&token).await;
    // A piece takes 100 Wh, an hour without any 1 kWh; from the 31st day on, a tenth less of both. The counter begins anew once.
    let mut count = 5_000.0;
    let hours: Vec<Option<Hour>> = (0..50 * 24)
        .map(|n: usize| {
            let made = 10.0 + ((n / 24) % 7) as f64;
            let from = if n == 200 { 0.0 } else { count };
            count = from + made;
            let wh = (1_000.0 + 100.0 * made) * if n >= 30 * 24 - 1 { 0.9 } else { 1.0 };
            // A day with a hole is left out.
            (!(300..304).contains(&n)).then_some(Hour { from, to: count, wh: Some(wh) })
        })
        .collect();
    server.hours(key, 0, &hours).await;
    make_rollups(&server.store).await;

    let fit = async |with: Value| {
        let mut body = json!({"machine": machine, "name": "January", "from": "2026-01-02", "to": "2026-01-31"});
        for (key, value) in with.as_object().unwrap() {
            body[key] = value.clone();
        }
        server.post("/api/v1/energy/baselines", &token, body).await
    };
    let (status, none) = fit(json!({})).await;
    assert_eq!((status, &none["code"]), (409, &json!("no_baseline")), "it runs all day, every day: {none}");
    let (status, none) = fit(json!({"driver": "production"})).await;
    assert_eq!((status, &none["errors"][0]["field"]), (422, &json!("driver")), "nothing counts yet: {none}");

    let production = format!("/api/v1/machines/{machine}/production");
    assert_eq!(server.get(&production, &token).await["sensor"], Value::Null);
    let put = async |body: Value| server.call("PUT", &production, Some(&token), Some(body)).await;
    assert_eq!(put(json!({"sensor": "count", "kind": "rate"})).await.body["errors"][0]["field"], "sensor");
    assert_eq!(put(json!({"sensor": "none"})).await.status, 422);
    let put = put(json!({"sensor": "count"})).await;
    assert_eq!((put.status, &put.body["sensor"]["kind"]), (200, &json!("counter")), "{}", put.body);

    let (status, few) = fit(json!({"to": "2026-01-11"})).await;
    assert_eq!((status, &few["code"]), (409, &json!("no_baseline")), "{few}");
    for (with, field) in [
        (json!({"to": "2026-01-02"}), "to"),
        (json!({"to": "2027-01-04"}), "to"),
        (json!({"site": SITE}), "site"),
        (json!({"machine": null}), "site"),
        (json!({"name": ""}), "name"),
    ] {
        let (status, body) = fit(with.clone()).await;
        assert_eq!((status, &body["errors"][0]["field"]), (422, &json!(field)), "{with}: {body}");
    }
    let (status, baseline) = fit(json!({})).await;
    assert_eq!(status, 201, "{baseline}");
    let model = &baseline["model"];
    assert!(
        near(&model["intercept_kwh"], 24.0) && near(&model["slope_kwh"], 0.1) && near(&model["r2"], 1.0),
        "{model}"
    );
    assert_eq!(
        (&model["days"], &baseline["driver"], &baseline["unit"]),
        (&json!(28), &json!("production"), &json!("1"))
    );
    assert_eq!(baseline["machines"], json!([machine]));

    let path = format!("/api/v1/energy/baselines/{}", baseline["id"].as_str().unwrap());
    let saved = server.get(&format!("{path}/savings?from=2026-01-31&to=2026-02-19&per=month"), &token).await;
    let expected = saved["expected_kwh"].as_f64().unwrap();
    assert!(near(&saved["saved_kwh"], expected * 0.1) && near(&saved["saved_share"], 0.1), "{saved}");
    assert_eq!(
        (&saved["days"], &saved["range_days"], &saved["extrapolated_days"]),
        (&json!(19), &json!(19), &json!(0))
    );
    assert!(saved["uncertainty_kwh"].as_f64().unwrap() < 1e-3, "a line without noise");
    let months = saved["periods"].as_array().unwrap();
    assert_eq!((&months[0]["date"], &months[0]["days"]), (&json!("2026-01-31"), &json!(1)));
    assert_eq!((&months[1]["date"], &months[1]["days"]), (&json!("2026-02-01"), &json!(18)));
    let days = server.get(&format!("{path}/savings?from=2026-01-10&to=2026-01-16&per=day"), &token).await;
    let known: Vec<i64> = days["periods"].as_array().unwrap().iter().map(|day| day["days"].as_i64().unwrap()).collect();
    assert_eq!(known, [1, 1, 1, 0, 1, 1], "the thirteenth has a hole");
    assert!(days["saved_kwh"].as_f64().unwrap().abs() < 1e-6, "{days}");
    for bad in ["from=2026-01-10&to=2026-01-10", "from=2024-01-01&to=2026-01-01", "per=year", "from=yesterday"] {
        assert_eq!(server.call("GET", &format!("{path}/savings?{bad}"), Some(&token), None).await.status, 422, "{bad}");
    }

    // Of the whole site, which counts the same.
    let (status, whole) = fit(json!({"machine": null, "site": SITE})).await;
    assert_eq!((status, &whole["model"], &whole["machine"]), (201, &baseline["model"], &Value::Null), "{whole}");
    assert_eq!(ids(&server.get(&format!("/api/v1/energy/baselines?machine={machine}"), &token).await).len(), 1);
    let read = server.call("GET", &path, Some(&token), None).await;
    assert_eq!(read.body, baseline, "as it was answered");
    let etag = read.headers["etag"].to_str().unwrap().to_owned();
    let rename = async |etag: &str| {
        server.call_with("PATCH", &path, Some(&token), Some(json!({"name": "Before"})), &[("if-match", etag)]).await
    };
    assert_eq!(rename(&etag).await.body["name"], "Before");
    assert_eq!(rename(&etag).await.status, 412);
    assert_eq!(server.call("DELETE", &path, Some(&token), None).await.status, 204);
    assert_eq!(server.call("GET", &format!("{path}/savings"), Some(&token), None).await.status, 404);
}

/// What is made is what all counters count: with one of them silent it is not known, and one that took another's place goes on.
#[tokio::test(flavor = "multi_thread")]
async fn production_is_of_all_counters_and_of_the_parts_of_a_machine() {
    let server = Server::start().await;
    let token = server.user(Role::Supervisor).await;
    let gateway = server.gateway("north").await;
    let (press, press_key) = server.machine(gateway, "press", &["count"]).await;
    let (saw, saw_key) = server.machine(gateway, "saw", &["count"]).await;
    server.sql("UPDATE sensors SET unit = '1'").await;
    // Both count; the press alone measures its power, for both. The saw says nothing from the 25th day on.
    let made = |n: usize| 10.0 + ((n / 24) % 7) as f64;
    let counter = |from: usize, to: usize, wh: bool| {
        let mut count = 0.0;
        let hour = |n: usize| {
            let from = count;
            count += made(n);
            Some(Hour { from, to: count, wh: wh.then(|| 1_000.0 + 200.0 * made(n)) })
        };
        (from..to).map(hour).collect::<Vec<_>>()
    };
    server.hours(press_key, 0, &counter(0, 40 * 24, true)).await;
    server.hours(saw_key, 0, &counter(0, 24 * 24, false)).await;
    // What is ignored is no part of the site.
    let (ignored, ignored_key) = server.machine(gateway, "old", &["count"]).await;
    server
        .sql(&format!("UPDATE sensors SET unit = '1'; UPDATE machines SET ignored = true WHERE id = '{ignored}'"))
        .await;
    server.hours(ignored_key, 0, &counter(0, 40 * 24, true)).await;
    make_rollups(&server.store).await;
    for machine in [press, saw, ignored] {
        let path = format!("/api/v1/machines/{machine}/production");
        assert_eq!(server.call("PUT", &path, Some(&token), Some(json!({"sensor": "count"}))).await.status, 200);
    }
    let fit = async |with: Value| {
        let mut body = json!({"name": "b", "from": "2026-01-02", "to": "2026-01-24"});
        for (key, value) in with.as_object().unwrap() {
            body[key] = value.clone();
        }
        let (status, baseline) = server.post("/api/v1/energy/baselines", &token, body).await;
        assert_eq!(status, 201, "{baseline}");
        baseline
    };
    let baseline = fit(json!({"site": SITE})).await;
    let model = &baseline["model"];
    assert!(near(&model["intercept_kwh"], 24.0) && near(&model["slope_kwh"], 0.1), "{model}");
    assert_eq!(baseline["machines"], json!([press]));
    let savings = format!("/api/v1/energy/baselines/{}/savings", baseline["id"].as_str().unwrap());
    let before = server.get(&format!("{savings}?from=2026-01-10&to=2026-01-20"), &token).await;
    assert_eq!(before["days"], 10);
    let silent = server.get(&format!("{savings}?from=2026-01-26&to=2026-02-05"), &token).await;
    assert_eq!((&silent["days"], &silent["range_days"]), (&json!(0), &json!(10)), "half of it is not all: {silent}");

    // The press is replaced on the 16th day by one that is shown in its place.
    let (new, new_key) = server.machine(gateway, "press-2", &["count"]).await;
    server
        .sql(&format!(
            "UPDATE sensors SET unit = '1'; UPDATE machines SET merged_into = '{new}' WHERE id = '{press}';
             DELETE FROM machine_production WHERE machine_id = '{press}';
             TRUNCATE summaries, rollup_hours, rollup_days, energy_days"
        ))
        .await;
    server.hours(press_key, 0, &counter(0, 15 * 24, true)).await;
    server.hours(new_key, 15 * 24, &counter(15 * 24, 40 * 24, true)).await;
    make_rollups(&server.store).await;
    let path = format!("/api/v1/machines/{new}/production");
    assert_eq!(server.call("PUT", &path, Some(&token), Some(json!({"sensor": "count"}))).await.status, 200);
    let baseline = fit(json!({"machine": new, "to": "2026-02-05"})).await;
    assert_eq!(baseline["model"]["days"], 34, "all days: {baseline}");
    assert!(near(&baseline["model"]["slope_kwh"], 0.2), "{baseline}");
}

/// Days are those of the site, also where none are named.
#[tokio::test(flavor = "multi_thread")]
async fn the_last_days_are_those_of_the_site() {
    let server = Server::start().await;
    let token = server.user(Role::Supervisor).await;
    let plant = server.plant_at(SITE).await;
    let path = format!("/api/v1/energy/baselines/{}/savings", plant.baseline);
    for zone in ["Etc/GMT-14", "Etc/GMT+12"] {
        server.sql(&format!("UPDATE sites SET time_zone = '{zone}'")).await;
        let today = || gemba_cloud::clock::now().to_zoned(jiff::tz::TimeZone::get(zone).unwrap()).date().to_string();
        let (before, answer) = (today(), server.get(&path, &token).await);
        let told = answer["to"].as_str().unwrap();
        assert!([before.as_str(), &today()].contains(&told), "{zone}: {answer}");
    }
}
