//! Incidents over HTTP: lists, comments, assignment, escalation.

use gemba_cloud::{clock, serve::alarms::turn, users::Role};
use jiff::SignedDuration;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Server, ids};

/// Two incidents: of pump-1 with two alarms, of pump-2 with one.
async fn incidents(server: &Server) -> [Uuid; 2] {
    let now = clock::now();
    let mut machines = [Uuid::nil(); 2];
    for (n, machine) in machines.iter_mut().enumerate() {
        let gateway = server.gateway(&format!("g{n}")).await;
        *machine = server.machine(gateway, &format!("pump-{}", n + 1), &["flow", "pressure"]).await.0;
        server.alarm(gateway, *machine, "unacknowledged", "high", now - SignedDuration::from_secs(60)).await;
        if n == 0 {
            server.alarm(gateway, *machine, "unacknowledged", "low", now).await;
        }
    }
    server.sql("UPDATE alarms SET annunciated_at = arrived_at").await;
    turn(&server.store, now, SignedDuration::from_secs(45)).await.unwrap();
    machines
}

#[tokio::test(flavor = "multi_thread")]
async fn an_incident_from_its_opening_to_its_end() {
    let server = Server::start().await;
    let token = server.user(Role::Operator).await;
    let [machine, _] = incidents(&server).await;
    let list = server.get(&format!("/api/v1/incidents?machine={machine}"), &token).await;
    assert_eq!(ids(&list).len(), 1);
    let id = ids(&list)[0].to_owned();
    let path = format!("/api/v1/incidents/{id}");
    let incident = server.get(&path, &token).await;
    for (key, value) in [
        ("severity", json!("high")),
        ("machine_name", json!("pump-1")),
        ("message", json!("It is loud")),
        ("alarms", json!(2)),
        ("alarms_open", json!(2)),
        ("alarms_unacknowledged", json!(2)),
        ("paged", json!(true)),
        ("closed_at", Value::Null),
    ] {
        assert_eq!(incident[key], value, "{key}: {incident}");
    }
    assert_eq!(incident["items"].as_array().unwrap().len(), 2);
    assert_eq!(
        (&incident["notices"][0]["reason"], &incident["notices"][0]["role"]),
        (&json!("opened"), &json!("operator"))
    );

    let post = async |what: &str, body: Value| server.post(&format!("{path}/{what}"), &token, body).await;
    assert_eq!(post("comments", json!({"text": " \n "})).await.0, 422);
    assert_eq!(post("comments", json!({"text": "x".repeat(2_001)})).await.0, 422);
    assert_eq!(post("comments", json!({"text": "bearing is hot"})).await.0, 201);
    let (status, incident) = post("comments", json!({"text": "grease is on its way"})).await;
    let thread: Vec<&str> =
        incident["thread"].as_array().unwrap().iter().map(|comment| comment["text"].as_str().unwrap()).collect();
    assert_eq!((status, thread), (201, vec!["bearing is hot", "grease is on its way"]));
    assert!(incident["thread"][0]["author"].as_str().unwrap().starts_with("operator-"));

    let (status, problem) = post("close", json!({})).await;
    assert_eq!((status, &problem["code"]), (409, &json!("alarms_open")));
    let (status, incident) = post("acknowledge", json!({})).await;
    assert_eq!((status, &incident["alarms_unacknowledged"]), (200, &json!(0)));
    assert_eq!(incident["items"][0]["state"], "acknowledged");
    server.sql(&format!("UPDATE alarms SET state = 'normal' WHERE incident_id = '{id}'")).await;
    let (status, incident) = post("close", json!({})).await;
    assert_eq!(status, 200, "{incident}");
    assert!(incident["closed_by"].as_str().unwrap().starts_with("operator-"));
    for what in ["close", "assign"] {
        let (status, problem) = post(what, if what == "assign" { json!({"user": null}) } else { json!({}) }).await;
        assert_eq!((status, &problem["code"]), (409, &json!("closed")), "{what}");
    }
    assert_eq!(ids(&server.get("/api/v1/incidents?open=true", &token).await).len(), 1);
    assert_eq!(ids(&server.get("/api/v1/incidents?open=false", &token).await), [id]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_incident_is_given_to_somebody_who_is_told() {
    let server = Server::start().await;
    let (token, other) = (server.user(Role::Operator).await, server.user(Role::Supervisor).await);
    incidents(&server).await;
    let id = ids(&server.get("/api/v1/incidents", &token).await)[0].to_owned();
    let me = server.get("/api/v1/me", &token).await["id"].clone();
    let you = server.get("/api/v1/me", &other).await["id"].clone();
    let assign =
        async |user: Value| server.post(&format!("/api/v1/incidents/{id}/assign"), &token, json!({"user": user})).await;
    assert_eq!(assign(json!(Uuid::now_v7())).await.0, 422);
    let (status, incident) = assign(me).await;
    assert_eq!((status, incident["notices"].as_array().unwrap().len()), (200, 1), "who takes it knows");
    assert_eq!(ids(&server.get("/api/v1/incidents?assigned=me", &token).await), [id.as_str()]);
    assert_eq!(ids(&server.get("/api/v1/incidents?assigned=nobody", &token).await).len(), 1);
    let (_, incident) = assign(you.clone()).await;
    assert_eq!((&incident["assigned_to_id"], &incident["notices"][1]["reason"]), (&you, &json!("assigned")));
    assert_eq!(ids(&server.get("/api/v1/incidents?assigned=me", &token).await), [""; 0]);
    let (_, incident) = assign(Value::Null).await;
    assert_eq!((&incident["assigned_to"], &incident["assigned_at"]), (&Value::Null, &Value::Null));
    // A page after the other, in both orders.
    for sort in ["opened_at", "severity"] {
        let first = server.get(&format!("/api/v1/incidents?limit=1&sort={sort}"), &token).await;
        let cursor = first["next_cursor"].as_str().unwrap();
        let second = server.get(&format!("/api/v1/incidents?limit=1&sort={sort}&cursor={cursor}"), &token).await;
        assert_ne!(ids(&first), ids(&second), "{sort}");
        assert_eq!(second["next_cursor"], Value::Null, "{sort}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_escalation_is_read_and_written() {
    let server = Server::start().await;
    let (viewer, admin) = (server.user(Role::Viewer).await, server.user(Role::Admin).await);
    let default = server.get("/api/v1/escalation", &viewer).await;
    assert_eq!(default["steps"][0], json!({"after_s": 900, "role": "supervisor", "severity_min": "medium"}));
    let put = async |steps: Value| {
        server.call("PUT", "/api/v1/escalation", Some(&admin), Some(json!({"steps": steps}))).await
    };
    let step = |after_s: i32, role: &str| json!({"after_s": after_s, "role": role, "severity_min": "low"});
    for steps in [
        json!([step(59, "admin")]),
        json!([step(604_801, "admin")]),
        json!([step(60, "viewer")]),
        json!([step(60, "admin"), step(60, "admin")]),
        json!([step(1, "root")]),
        json!((1..=6).map(|n| step(60 * n, "admin")).collect::<Vec<_>>()),
    ] {
        assert_eq!(put(steps.clone()).await.status, 422, "{steps}");
    }
    let own = json!([step(60, "operator"), step(120, "admin")]);
    let answer = put(own.clone()).await;
    assert_eq!((answer.status, &answer.body["steps"]), (200, &own), "{}", answer.body);
    assert_eq!(server.get("/api/v1/escalation", &viewer).await["steps"], own);
    assert_eq!(put(json!([])).await.body, default);
}
