//! Two daemons over one database.

use std::{collections::BTreeMap, fs};

use futures_util::future::join_all;
use gemba_cloud::store::Store;
use gemba_shared::telemetry::EventKind;
use serde_json::json;

use super::{Api, Edge, configure, until};
use crate::{
    daemon::Daemon,
    database, history,
    plant::{ago, anomaly, catalog, count, event, events, rows, summaries, summary},
    receivers::{Manner, Receiver},
};

const DAY_S: i64 = 86_400;

/// Both at once, as an orchestrator starts them.
async fn start(configs: &[std::path::PathBuf; 2]) -> [Daemon; 2] {
    let [a, b] = configs.clone().map(|config| tokio::task::spawn_blocking(move || Daemon::start(&config)));
    [a.await.unwrap(), b.await.unwrap()]
}

fn stop(daemons: [Daemon; 2]) {
    daemons.iter().for_each(Daemon::terminate);
    daemons.into_iter().for_each(Daemon::stop);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_daemons_over_one_database_are_one_cloud() {
    let directory = tempfile::tempdir().unwrap();
    let database = database::empty().await;
    let store = Store::new(database.clone(), 4).unwrap();
    let configs = ["a", "b"].map(|name| configure(directory.path(), name, &database, "requests_per_s = 20\n"));
    // They share the keys, as the documentation says. Nobody made them yet: the second one is given those of the first.
    gemba_cloud::keys::Keys::open(&directory.path().join("a/data")).unwrap();
    fs::create_dir_all(directory.path().join("b/data/keys")).unwrap();
    for file in fs::read_dir(directory.path().join("a/data/keys")).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), directory.path().join("b/data/keys").join(file.file_name())).unwrap();
    }

    // Both find an empty database.
    let daemons = start(&configs).await;
    let [a, b] = &daemons;
    let steps = "SELECT count(*) = max(number) AND count(*) > 10, count(*) = count(DISTINCT sha256) FROM migrations";
    assert_eq!(rows(&store, steps).await, "t t");
    let at_a = Api::user(&configs[0], a.http, "ada", "admin").await;
    let at_b = at_a.at(b.http);
    assert_eq!(count(&store, "SELECT count(*) FROM token_keys").await, 1);

    people_are_known_at_both(&store, &at_a, &at_b).await;
    limits_hold_at_each(&configs[0], &at_a, &at_b).await;

    let hook = Receiver::start(Manner::Answer(200)).await;
    at_a.send("POST", "/api/v1/webhooks", json!({"name": "x", "url": hook.url()})).await;
    let (mut edge, machine) = alarms_are_told_at_both(&configs[0], &daemons, &at_a, &at_b).await;
    people_are_told_once(&store, &at_a, &mut edge, &hook).await;

    // A dozen plans that are due, and a day that is over, wait for both at the same moment.
    let plan = json!({"machine": machine, "title": "Oil", "lead_h": 8_000,
                      "calendar": {"every": 1, "unit": "month", "starts_on": "2026-01-01"}});
    join_all((0..12).map(|_| at_a.send("POST", "/api/v1/plans", plan.clone()))).await;
    let old = (0..400).map(|i| summary("m", ago(3 * DAY_S - 10 * i), &[i as f64])).collect();
    edge.deliver(vec![summaries(1, old)]).await;
    let before = history::everything(&store).await;
    let energy = count(&store, "SELECT sum(intervals) FROM rollup_days").await;
    stop(daemons);
    let sql = "UPDATE history_days SET touched_at = now() - interval '2 days'";
    store.client().await.unwrap().batch_execute(sql).await.unwrap();
    let day = "SELECT count(*) FROM history_days WHERE day > CURRENT_DATE";
    store.client().await.unwrap().batch_execute(&drop_days_ahead(&store).await).await.unwrap();
    let daemons = start(&configs).await;
    let made = "SELECT count(*) FROM tickets WHERE plan_id IS NOT NULL";
    until("plans make their tickets", async || count(&store, made).await >= 12).await;
    until("the old day is packed", async || {
        let old = format!("SELECT count(*) FROM summaries WHERE start < now() - interval '{} s'", 2 * DAY_S);
        count(&store, &old).await == 0
    })
    .await;
    let tickets = "SELECT count(plan_id), count(DISTINCT plan_id), count(DISTINCT number), max(number) FROM tickets";
    assert_eq!(rows(&store, tickets).await, "12 12 13 13", "each plan made one, and there is one by hand");
    assert_eq!(history::everything(&store).await, before, "nothing was lost or doubled");
    assert_eq!(count(&store, "SELECT sum(intervals) FROM rollup_days").await, energy);
    assert!(count(&store, "SELECT count(*) FROM summary_blocks").await > 0);
    assert_eq!(count(&store, day).await, 3, "the next days have their partitions again");
    for daemon in &daemons {
        let bad: Vec<_> = daemon.log().into_iter().filter(|line| !line.contains("\"level\":\"INFO\"")).collect();
        assert!(bad.is_empty(), "{bad:?}");
    }
    stop(daemons);
}

/// What takes the partitions of the days to come away, so that both have to make them.
async fn drop_days_ahead(store: &Store) -> String {
    let tables = "SELECT c.oid::regclass::text FROM pg_class c JOIN pg_inherits i ON i.inhrelid = c.oid
                  WHERE substring(c.relname FROM '_(\\d{8})$') > to_char(now(), 'YYYYMMDD')";
    let tables = rows(store, tables).await;
    assert!(tables.lines().count() >= 3, "{tables}");
    let tables = tables.lines().collect::<Vec<_>>().join(", ");
    format!("DROP TABLE {tables}; DELETE FROM history_days WHERE day > CURRENT_DATE")
}

async fn people_are_known_at_both(store: &Store, at_a: &Api, at_b: &Api) {
    assert_eq!(at_b.get("/api/v1/me").await["name"], "ada", "a token of one is good at the other");
    // A session goes on at either.
    let mut other = at_a.at(at_a.address);
    let login = other.login("ada", super::PASSWORD).await;
    let next = at_b.send("POST", "/api/v1/refresh", json!({"refresh_token": login["refresh_token"]})).await;
    let later = at_a.send("POST", "/api/v1/refresh", json!({"refresh_token": next["refresh_token"]})).await;
    let session = later["session"].as_str().unwrap();
    let ended = at_b.call("DELETE", &format!("/api/v1/sessions/{session}"), None, &[]).await.unwrap();
    assert_eq!(ended.status, 204);
    other.token = later["token"].as_str().unwrap().to_owned();
    assert_eq!(
        other.call("GET", "/api/v1/me", None, &[]).await.unwrap().status,
        401,
        "ended at one, over at the other"
    );
    // What one writes the other reads, and does not overwrite unseen.
    let site = at_a.send("POST", "/api/v1/sites", json!({"name": "Leipzig"})).await;
    let path = format!("/api/v1/sites/{}", site["id"].as_str().unwrap());
    let read = at_b.call("GET", &path, None, &[]).await.unwrap();
    assert_eq!(read.body["name"], "Leipzig");
    let etag = read.headers["etag"].to_str().unwrap().to_owned();
    at_a.send("PATCH", &path, json!({"name": "Leipzig 1"})).await;
    let stale = at_b.call("PATCH", &path, Some(json!({"name": "Halle"})), &[("if-match", &etag)]).await.unwrap();
    assert_eq!((stale.status, &stale.body["code"]), (412, &json!("changed_meanwhile")));
    // One request that comes to both is done once.
    let twice = join_all([at_a, at_b, at_a, at_b].map(|api| {
        let key = [("idempotency-key", "dresden")];
        async move { api.call("POST", "/api/v1/sites", Some(json!({"name": "Dresden"})), &key).await.unwrap() }
    }))
    .await;
    let made: Vec<_> = twice.iter().map(|answer| (answer.status, &answer.body["code"])).collect();
    assert!(made.iter().all(|(status, code)| *status == 201 || **code == "request_under_way"), "{made:?}");
    assert_eq!(count(store, "SELECT count(*) FROM sites WHERE name = 'Dresden'").await, 1);
}

/// As ACCESS.md says: at each replica.
async fn limits_hold_at_each(config: &std::path::Path, at_a: &Api, at_b: &Api) {
    let guest_a = Api::user(config, at_a.address, "guest", "viewer").await;
    let guest_b = guest_a.at(at_b.address);
    let mut refused = None;
    for _ in 0..2_000 {
        let answer = guest_a.call("GET", "/api/v1/me", None, &[]).await.unwrap();
        if answer.status == 429 {
            refused = Some(answer);
            break;
        }
    }
    let refused = refused.expect("20 a second are allowed");
    assert_eq!(refused.body["code"], "too_many_requests");
    assert!(refused.headers.contains_key("retry-after") && refused.headers.contains_key("ratelimit"));
    assert_eq!(guest_b.get("/api/v1/me").await["name"], "guest");
    assert_eq!(at_a.get("/api/v1/me").await["name"], "ada", "each user has their own");
}

/// An alarm comes in at one daemon; a gateway, and a machine, are left.
async fn alarms_are_told_at_both(
    config: &std::path::Path,
    [a, _]: &[Daemon; 2],
    at_a: &Api,
    at_b: &Api,
) -> (Edge, String) {
    let mut edge = Edge::enrol(config, a, "hall").await;
    let (mut told_a, mut told_b) = (at_a.listen().await, at_b.listen().await);
    let opened = ago(5);
    let open = EventKind::AnomalyOpened(anomaly(opened, 2.5, &[1.0]));
    edge.deliver(vec![events(1, vec![catalog("m", 1, &["a"]), event("m", opened, open)])]).await;
    for told in [&mut told_a, &mut told_b] {
        let alarm = told.find(|told| told["type"] == "alarm").await;
        assert_eq!(alarm["alarm"]["state"], "unacknowledged", "{alarm}");
        told.find(|told| told["type"] == "incident").await;
    }
    let alarms = at_b.get("/api/v1/alarms").await;
    let alarm = alarms["items"][0].clone();
    let path = format!("/api/v1/alarms/{}/acknowledge", alarm["id"].as_str().unwrap());
    at_b.send("POST", &path, json!({})).await;
    for told in [&mut told_a, &mut told_b] {
        told.find(|told| told["type"] == "alarm" && told["alarm"]["state"] == "acknowledged").await;
    }
    // Present states as well, and what people do.
    let machine = alarm["machine_id"].as_str().unwrap().to_owned();
    at_a.send(
        "POST",
        "/api/v1/tickets",
        json!({"machine": machine, "kind": "corrective", "title": "Look", "priority": "low"}),
    )
    .await;
    told_b.find(|told| told["type"] == "ticket").await;
    (edge, machine)
}

/// Notices and calls: whoever was to be told of something was told once, though both daemons look for what is due.
async fn people_are_told_once(store: &Store, at_a: &Api, edge: &mut Edge, hook: &Receiver) {
    let escalation = json!({"steps": [{"after_s": 60, "role": "supervisor", "severity_min": "low"},
                                      {"after_s": 120, "role": "admin", "severity_min": "low"}]});
    at_a.send("PUT", "/api/v1/escalation", escalation).await;
    let opened = ago(2);
    let open = EventKind::AnomalyOpened(anomaly(opened, 9.5, &[1.0]));
    edge.deliver(vec![events(3, vec![catalog("n", 1, &["a"]), event("n", opened, open)])]).await;
    until("somebody is told", async || count(store, "SELECT count(*) FROM notices").await >= 2).await;
    // Nobody took it for an hour.
    let sql = "UPDATE notices SET created_at = created_at - interval '1 hour'";
    store.client().await.unwrap().batch_execute(sql).await.unwrap();
    until("it is escalated", async || {
        count(store, "SELECT count(*) FROM notices WHERE reason = 'escalated'").await >= 2
    })
    .await;
    until("all is delivered", async || {
        let of = "SELECT count(*) FROM deliveries WHERE channel = 'webhook'";
        let waiting = count(store, &format!("{of} AND state <> 'sent'")).await;
        waiting == 0 && count(store, of).await == count(store, "SELECT count(*) FROM notices").await
    })
    .await;
    let twice =
        "SELECT count(*) FROM (SELECT FROM notices GROUP BY incident_id, reason, role, user_id HAVING count(*) > 1) n";
    assert_eq!(count(store, twice).await, 0, "{}", rows(store, "SELECT reason, role FROM notices").await);
    let mut calls: BTreeMap<String, u32> = BTreeMap::new();
    for call in hook.calls() {
        *calls.entry(call.header("webhook-id").to_owned()).or_default() += 1;
    }
    assert!(calls.len() >= 3 && calls.values().all(|times| *times == 1), "{calls:?}");
}
