//! Rules over HTTP: what is taken, and what is not.

use gemba_cloud::users::Role;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Server, ids};

/// `with` over a rule that is right.
fn body(machine: Uuid, with: &Value) -> Value {
    let mut rule = json!({
        "machine": machine, "name": "Too hot", "sensor": "flow", "kind": "high", "threshold": 80.0, "severity": "high",
    });
    for (key, value) in with.as_object().unwrap() {
        rule[key] = value.clone();
    }
    rule
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_are_written_changed_and_taken_away() {
    let server = Server::start().await;
    let (token, viewer) = (server.user(Role::Supervisor).await, server.user(Role::Viewer).await);
    let gateway = server.gateway("north").await;
    let (machine, _) = server.machine(gateway, "pump-1", &["flow", "pressure"]).await;
    let (other, _) = server.machine(gateway, "pump-2", &["flow"]).await;
    let full = json!({
        "kind": "low", "figure": "min", "dead_band": 2.5, "on_delay_s": 60, "off_delay_s": 30, "only_running": true,
        "schedule": {"days": 31, "from_min": 360, "to_min": 1_320}, "enabled": false,
    });
    let (status, rule) = server.post("/api/v1/alarm-rules", &token, body(machine, &full)).await;
    assert_eq!(status, 201, "{rule}");
    for (key, value) in full.as_object().unwrap() {
        assert_eq!(rule[key], *value, "{key}");
    }
    assert_eq!((&rule["machine_name"], &rule["phase"]), (&json!("pump-1"), &json!("normal")));
    let (status, second) = server.post("/api/v1/alarm-rules", &token, body(other, &json!({}))).await;
    assert_eq!((status, &second["figure"], &second["schedule"]), (201, &json!("mean"), &Value::Null));

    let list = server.get("/api/v1/alarm-rules", &viewer).await;
    assert_eq!(ids(&list), [second["id"].as_str().unwrap(), rule["id"].as_str().unwrap()]);
    assert_eq!(ids(&server.get(&format!("/api/v1/alarm-rules?machine={machine}"), &viewer).await).len(), 1);
    assert_eq!(ids(&server.get("/api/v1/alarm-rules?enabled=true", &viewer).await).len(), 1);

    let path = format!("/api/v1/alarm-rules/{}", rule["id"].as_str().unwrap());
    let put = async |body: Value| server.call("PUT", &path, Some(&token), Some(body)).await;
    let changed = put(body(machine, &json!({"kind": "no_data", "threshold": null, "on_delay_s": 5}))).await;
    assert_eq!((changed.status, &changed.body["threshold"]), (200, &Value::Null), "{}", changed.body);
    assert_eq!(put(body(other, &json!({}))).await.status, 422, "a rule stays with its machine");
    assert_eq!(server.call("DELETE", &path, Some(&viewer), None).await.status, 403);
    assert_eq!(server.call("DELETE", &path, Some(&token), None).await.status, 204);
    for method in ["GET", "DELETE", "PUT"] {
        let body = (method == "PUT").then(|| body(machine, &json!({})));
        assert_eq!(server.call(method, &path, Some(&token), body).await.status, 404, "{method}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_site_says_by_whose_clocks_its_schedules_go() {
    let server = Server::start().await;
    let (supervisor, viewer) = (server.user(Role::Supervisor).await, server.user(Role::Viewer).await);
    let path = "/api/v1/sites/00000000-0000-7000-8000-000000000002/time-zone";
    assert_eq!(server.get(path, &viewer).await, json!({"time_zone": "UTC"}));
    let put = async |zone: &str, token: &str| {
        server.call("PUT", path, Some(token), Some(json!({"time_zone": zone}))).await.status
    };
    assert_eq!(put("Europe/Berlin", &viewer).await, 403);
    for zone in ["", "Mars/Base", "../../etc/passwd", "a\0b", &"x".repeat(65)] {
        assert_eq!(put(zone, &supervisor).await, 422, "{zone:?}");
    }
    assert_eq!(put("Europe/Berlin", &supervisor).await, 200);
    assert_eq!(server.get(path, &viewer).await, json!({"time_zone": "Europe/Berlin"}));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rule_that_is_wrong_says_where() {
    let server = Server::start().await;
    let token = server.user(Role::Supervisor).await;
    let gateway = server.gateway("north").await;
    let (machine, _) = server.machine(gateway, "pump-1", &["flow"]).await;
    for (with, field) in [
        (json!({"machine": Uuid::now_v7()}), "machine"),
        (json!({"name": " "}), "name"),
        (json!({"sensor": "none"}), "sensor"),
        (json!({"sensor": null}), "sensor"),
        (json!({"threshold": null}), "threshold"),
        (json!({"kind": "no_data"}), "threshold"),
        (json!({"kind": "rate", "threshold": 0.0}), "threshold"),
        (json!({"kind": "rate", "dead_band": 80.0}), "dead_band"),
        (json!({"dead_band": -1.0}), "dead_band"),
        (json!({"on_delay_s": -1}), "on_delay_s"),
        (json!({"off_delay_s": 604_801}), "off_delay_s"),
        (json!({"kind": "no_data", "threshold": null, "sensor": null, "on_delay_s": 59}), "on_delay_s"),
        (json!({"schedule": {"days": 0, "from_min": 0, "to_min": 1}}), "schedule.days"),
        (json!({"schedule": {"days": 1, "from_min": 1_440, "to_min": 1}}), "schedule.from_min"),
        (json!({"schedule": {"days": 1, "from_min": 0, "to_min": 0}}), "schedule.to_min"),
    ] {
        let (status, problem) = server.post("/api/v1/alarm-rules", &token, body(machine, &with)).await;
        assert_eq!((status, &problem["errors"][0]["field"]), (422, &json!(field)), "{with}: {problem}");
    }
    for with in
        [json!({"other": 1}), json!({"kind": "x"}), json!({"threshold": "80"}), json!({"schedule": {"days": 1}})]
    {
        assert_eq!(server.post("/api/v1/alarm-rules", &token, body(machine, &with)).await.0, 422, "{with}");
    }
    server
        .sql(
            "INSERT INTO alarm_rules SELECT gen_random_uuid(), sites.organisation_id, sites.id, m.id, 'r', 'flow', 'high', 'mean', 1, 0,
                 0, 0, 'low', NULL, NULL, NULL, false, true, now(), u.id, now()
             FROM machines m, sites, users u, generate_series(1, 100)",
        )
        .await;
    let (status, problem) = server.post("/api/v1/alarm-rules", &token, body(machine, &json!({}))).await;
    assert_eq!((status, &problem["code"]), (409, &json!("too_many_rules")));
}
