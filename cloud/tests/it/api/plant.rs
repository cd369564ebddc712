//! Gateways, machines, anomalies, alarms: what is shown and what a person may say of it.

use gemba_cloud::{clock, users::Role};
use jiff::SignedDuration;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Server, ids};

#[tokio::test(flavor = "multi_thread")]
async fn gateways_and_what_they_last_said() {
    let server = Server::start().await;
    let token = server.user(Role::Viewer).await;
    let north = server.gateway("north").await;
    server.gateway("south").await;
    server.machine(north, "pump-1", &[]).await;
    server
        .sql(
            "UPDATE gateways SET version = '1.2', backlog_records = 7, backlog_bytes = 700, clock_trusted = true,
                drops = '[{\"reason\": \"not_json\", \"count\": 3}]' WHERE name = 'north';
             UPDATE gateways SET last_seen_at = now() - interval '46 s' WHERE name = 'south';",
        )
        .await;
    let list = server.get("/api/v1/gateways", &token).await;
    let north = &list["items"][0];
    assert_eq!(north["state"], "online");
    assert_eq!(north["drops"], json!([{"reason": "not_json", "count": 3}]));
    assert_eq!((&north["machines"], &north["backlog_records"]), (&json!(1), &json!(7)));
    assert_eq!(list["items"][1]["state"], "offline");
    assert_eq!(list["next_cursor"], Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn machines_are_listed_by_name_page_by_page() {
    let server = Server::start().await;
    let token = server.user(Role::Viewer).await;
    let (a, b) = (server.gateway("a").await, server.gateway("b").await);
    for n in 0..7 {
        server.machine(if n % 2 == 0 { a } else { b }, &format!("pump-{n}"), &["flow", "pressure"]).await;
    }
    server.sql("UPDATE machines SET ignored = true WHERE name = 'pump-6'").await;
    server.sql("UPDATE machines SET display_name = 'aaa' WHERE name = 'pump-5'").await;
    let mut names = Vec::new();
    let mut cursor = String::new();
    for _ in 0..4 {
        let page = server.get(&format!("/api/v1/machines?limit=2&cursor={cursor}"), &token).await;
        names.extend(page["items"].as_array().unwrap().iter().map(|m| m["name"].as_str().unwrap().to_owned()));
        match page["next_cursor"].as_str() {
            Some(next) => cursor = next.to_owned(),
            None => break,
        }
    }
    assert_eq!(names, ["pump-5", "pump-0", "pump-1", "pump-2", "pump-3", "pump-4"]);
    let of = |query: String| {
        let (server, token) = (&server, &token);
        async move { ids(&server.get(&format!("/api/v1/machines?{query}"), token).await).len() }
    };
    assert_eq!(of("include_ignored=true".into()).await, 7);
    assert_eq!(of(format!("gateway={b}")).await, 3);
    assert_eq!(of(format!("gateway={}", Uuid::now_v7())).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_is_one_word_and_its_worst_alarm() {
    let server = Server::start().await;
    let token = server.user(Role::Viewer).await;
    let gateway = server.gateway("north").await;
    let (id, _) = server.machine(gateway, "pump-1", &["flow", "pressure"]).await;
    let now = clock::now();
    server.alarm(gateway, id, "acknowledged", "low", now).await;
    let worst = server.alarm(gateway, id, "unacknowledged", "high", now - SignedDuration::from_secs(9)).await;
    server.alarm(gateway, id, "normal", "critical", now - SignedDuration::from_secs(10)).await;
    let path = format!("/api/v1/machines/{id}");
    let machine = server.get(&path, &token).await;
    assert_eq!(machine["alarm"], json!({"id": worst, "severity": "high", "state": "unacknowledged"}));
    assert_eq!((&machine["state"], &machine["connection"]), (&json!("ok"), &json!("live")));
    assert_eq!(machine["sensors"][1]["name"], "pressure");
    assert_eq!((&machine["sensors"][1]["position"], &machine["sensors"][1]["last_value"]), (&json!(1), &json!(1.5)));
    server
        .sql("UPDATE machines SET detector = 'uncalibrated', detector_note = 'why', remaining_likely_s = 9, remaining_low_s = 5, remaining_high_s = 20")
        .await;
    let machine = server.get(&path, &token).await;
    assert_eq!((&machine["state"], &machine["detector_note"]), (&json!("uncalibrated"), &json!("why")));
    assert_eq!(machine["remaining"], json!({"likely_s": 9.0, "low_s": 5.0, "high_s": 20.0}));
    for (sql, state) in [
        ("UPDATE machines SET detector = 'anomalous'", "anomalous"),
        ("UPDATE machines SET last_reading_at = now() - interval '61 s'", "silent"),
        ("UPDATE gateways SET last_seen_at = now() - interval '46 s'", "gateway_offline"),
        ("UPDATE gateways SET state = 'revoked', last_seen_at = now()", "gateway_offline"),
    ] {
        server.sql(sql).await;
        assert_eq!(server.get(&path, &token).await["state"], state, "{sql}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn machines_and_sensors_are_renamed_ignored_and_merged() {
    let server = Server::start().await;
    let token = server.user(Role::Supervisor).await;
    let gateway = server.gateway("north").await;
    let (old, _) = server.machine(gateway, "pump-1", &["flow", "pressure"]).await;
    let (new, _) = server.machine(gateway, "pump-01", &["pressure", "power"]).await;
    let (other, _) = server.machine(gateway, "fan", &["speed"]).await;
    server.sql(&format!("UPDATE machines SET last_reading_at = now() - interval '1 hour' WHERE id = '{old}'")).await;
    let patch = |path: String, body: Value| {
        let (server, token) = (&server, &token);
        async move { server.call("PATCH", &format!("/api/v1/machines/{path}"), Some(token), Some(body)).await }
    };
    let answer = patch(format!("{old}"), json!({"display_name": "  Düse 3 "})).await;
    assert_eq!((answer.status, &answer.body["display_name"]), (200, &json!("Düse 3")), "{}", answer.body);
    let answer = patch(format!("{old}"), json!({"ignored": true})).await;
    assert_eq!((&answer.body["display_name"], &answer.body["ignored"]), (&json!("Düse 3"), &json!(true)));
    let answer = patch(format!("{old}"), json!({"display_name": null, "ignored": false})).await;
    assert_eq!((&answer.body["display_name"], &answer.body["ignored"]), (&Value::Null, &json!(false)));
    let answer = patch(format!("{old}/sensors/flow"), json!({"display_name": "Flow"})).await;
    assert_eq!(answer.body["sensors"][0]["display_name"], "Flow");
    for (path, body, status) in [
        (format!("{old}/sensors/none"), json!({}), 404),
        (format!("{}", Uuid::now_v7()), json!({}), 404),
        (format!("{old}"), json!({"display_name": "x".repeat(101)}), 422),
        (format!("{old}"), json!({"display_name": "a\u{0}b"}), 422),
        (format!("{old}"), json!({"display_name": 7}), 422),
        (format!("{old}"), json!({"name": "x"}), 422),
    ] {
        assert_eq!(patch(path.clone(), body.clone()).await.status, status, "{path} {body}");
    }

    let merge = |id: Uuid, into: Value| {
        let (server, token) = (&server, &token);
        async move { server.post(&format!("/api/v1/machines/{id}/merge"), token, json!({"into": into})).await }
    };
    assert_eq!(merge(new, json!(old)).await.0, 200);
    let machine = server.get(&format!("/api/v1/machines/{old}"), &token).await;
    let sensors: Vec<_> = machine["sensors"].as_array().unwrap().iter().map(|s| s["name"].as_str().unwrap()).collect();
    assert_eq!(sensors, ["flow", "pressure", "power"]);
    assert_eq!(machine["sensors"][1]["last_value"], 0.5, "of the one that was heard last");
    assert_eq!((&machine["state"], &machine["sensors_count"]), (&json!("ok"), &json!(3)));
    assert_eq!(machine["merged"], json!([{"id": new, "name": "pump-01"}]));
    let list = server.get("/api/v1/machines", &token).await;
    assert!(!ids(&list).contains(&new.to_string().as_str()));
    for (id, into, status) in [
        (old, json!(other), 409),
        (other, json!(new), 409),
        (other, json!(other), 409),
        (other, json!(Uuid::now_v7()), 422),
        (Uuid::now_v7(), json!(old), 404),
        (Uuid::now_v7(), Value::Null, 404),
    ] {
        assert_eq!(merge(id, into.clone()).await.0, status, "{id} {into}");
    }
    assert_eq!(merge(new, Value::Null).await.0, 200);
    assert_eq!(ids(&server.get("/api/v1/machines", &token).await).len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn alarms_are_acknowledged_once_and_in_a_name() {
    let server = Server::start().await;
    let token = server.user(Role::Operator).await;
    let gateway = server.gateway("north").await;
    let (machine, _) = server.machine(gateway, "pump-1", &["flow", "pressure"]).await;
    let now = clock::now();
    let mut alarms = Vec::new();
    for (n, state) in ["unacknowledged", "acknowledged", "returned_unacknowledged", "normal"].into_iter().enumerate() {
        let raised = now - SignedDuration::from_secs(n as i64);
        alarms.push(server.alarm(gateway, machine, state, "medium", raised).await.to_string());
    }
    let list = server.get("/api/v1/alarms", &token).await;
    assert_eq!(ids(&list), alarms[..3], "open, the newest first");
    assert_eq!(list["items"][0]["machine_name"], "pump-1");
    assert_eq!(
        list["items"][0]["lead_sensors"],
        json!([{"sensor": "pressure", "share": 0.75}, {"sensor": "flow", "share": 0.25}])
    );
    for (query, count) in [
        ("state=all".to_owned(), 4),
        ("state=normal".to_owned(), 1),
        (format!("state=all&machine={machine}"), 4),
        (format!("machine={}", Uuid::now_v7()), 0),
    ] {
        assert_eq!(ids(&server.get(&format!("/api/v1/alarms?{query}"), &token).await).len(), count, "{query}");
    }
    let acknowledge = |n: usize, body: Value| {
        let (server, token, path) = (&server, &token, format!("/api/v1/alarms/{}/acknowledge", alarms[n]));
        async move { server.post(&path, token, body).await }
    };
    let (status, first) = acknowledge(0, json!({"comment": " bearing\nordered "})).await;
    assert_eq!((status, &first["state"], &first["comment"]), (200, &json!("acknowledged"), &json!("bearing\nordered")));
    assert!(first["acknowledged_by"].as_str().unwrap().starts_with("operator-"));
    let (status, again) = acknowledge(0, json!({"comment": "other"})).await;
    assert_eq!((status, again), (200, first), "once more changes nothing");
    assert_eq!(acknowledge(2, json!({})).await.1["state"], "normal");
    let (status, body) = acknowledge(3, json!({})).await;
    assert_eq!((status, &body["code"]), (409, &json!("not_acknowledgeable")));
    assert_eq!(acknowledge(1, json!({"comment": "x".repeat(2_001)})).await.0, 422);
    let bare = server.call("POST", &format!("/api/v1/alarms/{}/acknowledge", alarms[1]), Some(&token), None).await;
    assert_eq!(bare.status, 200, "a body is not needed: {}", bare.body);
    let (status, _) = server.post(&format!("/api/v1/alarms/{}/acknowledge", Uuid::now_v7()), &token, json!({})).await;
    assert_eq!(status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn anomalies_with_what_drove_them() {
    let server = Server::start().await;
    let token = server.user(Role::Viewer).await;
    let gateway = server.gateway("north").await;
    let (machine, _) = server.machine(gateway, "pump-1", &["flow", "pressure"]).await;
    let now = clock::now();
    for n in 0..5 {
        server.alarm(gateway, machine, "normal", "low", now - SignedDuration::from_secs(n)).await;
    }
    server.sql("UPDATE anomalies SET closed_at = now() WHERE opened_at < now() - interval '2500 ms'").await;
    let list = server.get("/api/v1/anomalies?limit=3", &token).await;
    let rest = server
        .get(&format!("/api/v1/anomalies?limit=3&cursor={}", list["next_cursor"].as_str().unwrap()), &token)
        .await;
    assert_eq!((ids(&list).len(), ids(&rest).len()), (3, 2));
    assert!(list["items"][0]["opened_at"].as_str() > list["items"][1]["opened_at"].as_str());
    let id = list["items"][0]["id"].as_str().unwrap();
    let one = server.get(&format!("/api/v1/anomalies/{id}"), &token).await;
    assert_eq!(one["shares"][0], json!({"sensor": "pressure", "share": 0.75}));
    assert_eq!(one["window"]["sensors"], json!(["pressure", "flow"]));
    assert_eq!(one["window"]["values"], json!([[1.0, null]]));
    let count = |query: String| {
        let (server, token) = (&server, &token);
        async move { ids(&server.get(&format!("/api/v1/anomalies?{query}"), token).await).len() }
    };
    assert_eq!(count("open=true".into()).await + count("open=false".into()).await, 5);
    assert!(count("open=false".into()).await >= 2);
    assert_eq!(count(format!("from={}", now - SignedDuration::from_millis(1_500))).await, 2);
    assert_eq!(count(format!("to={}", now - SignedDuration::from_millis(1_500))).await, 3);
    assert_eq!(count(format!("machine={machine}")).await, 5);
}
