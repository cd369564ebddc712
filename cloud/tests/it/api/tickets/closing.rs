//! What closing a ticket says: labels of anomalies, all the way to their gateways.

use gemba_cloud::users::Role;
use gemba_shared::message::{CommandKind, Outcome};
use serde_json::{Value, json};

use super::{Server, incident};
use crate::{
    commands::{answer, command, sign_of_life, until},
    plant::{self, count, machine, rows},
    promise::Cloud,
};

const LABELS: &str = "SELECT labelled_real FROM anomalies ORDER BY opened_at, id";

#[tokio::test(flavor = "multi_thread")]
async fn whether_the_alarm_was_right_reaches_the_gateway() {
    let server = Server::start().await;
    let (supervisor, me) = server.somebody(&[(None, Role::Supervisor)]).await;
    let gateway = plant::enrolled(&server.store, "hall").await;
    let (pump, _) = server.machine(gateway.id, "pump-3", &["flow", "pressure"]).await;
    let of = incident(&server, gateway.id, pump, 1).await;
    let id = server.ticket(&supervisor, json!({"incident": of})).await;
    server.finish(&supervisor, &id, &me).await;
    for body in [json!({}), json!({"alarm_correct": "perhaps"}), json!({"alarm_correct": "no", "failure_mode": "XXX"})]
    {
        assert_eq!(server.step(&supervisor, &id, "close", body.clone()).await.0, 422, "{body}");
    }
    assert_eq!(count(&server.store, "SELECT count(*) FROM commands").await, 0, "what is refused labels nothing");
    let (status, ticket) = server.step(&supervisor, &id, "close", json!({"alarm_correct": "no"})).await;
    let label = &ticket["labels"][0];
    assert_eq!((status, &label["real"], &label["command_state"]), (200, &json!(false), &json!("waiting")), "{ticket}");
    assert_eq!(label["gateway_id"], json!(gateway.id));

    // The gateway hears of it.
    let mut cloud = Cloud::start(&server.store);
    cloud.hand(sign_of_life(&gateway)).await;
    let told = command(&mut cloud, &gateway).await;
    let CommandKind::LabelAnomaly { machine: of_machine, opened, real } = told.kind else { panic!("{told:?}") };
    assert_eq!((of_machine, real), (machine("pump-3"), false));
    let opened_at =
        count(&server.store, "SELECT (extract(epoch FROM opened_at) * 1000000)::bigint FROM anomalies").await;
    assert_eq!(opened.0, opened_at);
    let week = "SELECT expires_at - created_at = interval '7 days' FROM commands";
    assert_eq!(rows(&server.store, week).await, "t");
    cloud.hand(answer(&gateway, told.id, Outcome::Done)).await;
    until(&server, "SELECT state FROM commands", "done").await;
    cloud.end().await;
    let shown = server.get(&format!("/api/v1/tickets/{id}"), &supervisor).await;
    assert_eq!(shown["labels"][0]["command_state"], "done");
    let anomaly = shown["labels"][0]["anomaly_id"].as_str().unwrap();
    let anomaly = server.get(&format!("/api/v1/anomalies/{anomaly}"), &supervisor).await;
    assert_eq!(anomaly["real"], false);
    assert!(anomaly["labelled_by"].is_string() && anomaly["labelled_at"].is_string(), "{anomaly}");

    // The same answer is no news, another one is, and `unknown` says nothing.
    let again = async |correct: &str| {
        let steps = [
            ("reopen", json!({"reason": "x"})),
            ("move", json!({"to": "in_progress"})),
            ("move", json!({"to": "done"})),
            ("close", json!({"alarm_correct": correct})),
        ];
        for (verb, body) in steps {
            let (status, answer) = server.step(&supervisor, &id, verb, body).await;
            assert_eq!(status, 200, "{verb}: {answer}");
        }
    };
    for (correct, commands, real) in [("no", 1, "f"), ("yes", 2, "t"), ("unknown", 2, "t"), ("no", 3, "f")] {
        again(correct).await;
        assert_eq!(count(&server.store, "SELECT count(*) FROM commands").await, commands, "{correct}");
        assert_eq!(rows(&server.store, LABELS).await, real, "{correct}");
    }
    // One that the gateway never heard of is sent again.
    server.sql("UPDATE commands SET state = 'expired' WHERE state = 'waiting'").await;
    again("no").await;
    assert_eq!(count(&server.store, "SELECT count(*) FROM commands").await, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn all_anomalies_of_an_incident_are_labelled_whatever_their_gateways_do() {
    let server = Server::start().await;
    let (supervisor, me) = server.somebody(&[(None, Role::Supervisor)]).await;
    let gateway = server.gateway("g").await;
    let (pump, _) = server.machine(gateway, "pump", &["flow", "pressure"]).await;
    let of = incident(&server, gateway, pump, 120).await;
    let id = server.ticket(&supervisor, json!({"incident": of})).await;
    server.finish(&supervisor, &id, &me).await;
    let (status, ticket) = server.step(&supervisor, &id, "close", json!({"alarm_correct": "yes"})).await;
    assert_eq!((status, ticket["labels"].as_array().unwrap().len()), (200, 120), "{ticket}");
    let told = "SELECT count(*), count(DISTINCT (kind ->> 'LabelAnomaly')) FROM commands WHERE state = 'waiting'";
    assert_eq!(rows(&server.store, told).await, "120 120");
    assert_eq!(count(&server.store, "SELECT count(*) FROM anomalies WHERE labelled_real").await, 120);
    assert_eq!(count(&server.store, "SELECT count(*) FROM audit WHERE action = 'anomaly.label'").await, 120);

    // A gateway that is gone.
    let (fan, _) = server.machine(gateway, "fan", &["flow", "pressure"]).await;
    server.sql("UPDATE incidents SET closed_at = now()").await;
    let of = incident(&server, gateway, fan, 1).await;
    let id = server.ticket(&supervisor, json!({"incident": of})).await;
    server.finish(&supervisor, &id, &me).await;
    server.sql("UPDATE gateways SET state = 'revoked'").await;
    let (status, ticket) = server.step(&supervisor, &id, "close", json!({"alarm_correct": "no"})).await;
    let label = &ticket["labels"][0];
    assert_eq!((status, &label["real"], &label["command"]), (200, &json!(false), &Value::Null), "{ticket}");

    // The precision is in the figures of the alarms' quality.
    let figures = server.get("/api/v1/alarms/quality", &supervisor).await;
    assert_eq!(figures["labelled"], 121, "{figures}");
    let precision = figures["precision_percent"].as_f64().unwrap();
    assert!((precision - 100.0 * 120.0 / 121.0).abs() < 1e-9, "{precision}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_labels_is_the_same_label() {
    let server = Server::start().await;
    let (supervisor, _) = server.somebody(&[(None, Role::Supervisor)]).await;
    let gateway = server.gateway("g").await;
    let (pump, _) = server.machine(gateway, "pump", &["flow", "pressure"]).await;
    incident(&server, gateway, pump, 1).await;
    let anomaly = rows(&server.store, "SELECT id FROM anomalies").await;
    let path = format!("/api/v1/gateways/{gateway}/commands");
    let (status, given) =
        server.post(&path, &supervisor, json!({"kind": "label_anomaly", "anomaly": anomaly, "real": true})).await;
    assert_eq!((status, &given["kind"], &given["machine"]), (201, &json!("label_anomaly"), &json!("pump")), "{given}");
    assert_eq!(rows(&server.store, LABELS).await, "t");
    server.sql("UPDATE gateways SET state = 'revoked'").await;
    let (status, _) =
        server.post(&path, &supervisor, json!({"kind": "label_anomaly", "anomaly": anomaly, "real": false})).await;
    assert_eq!((status, rows(&server.store, LABELS).await.as_str()), (409, "t"), "what is refused changes nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_alarm_nobody_is_asked_whether_it_was_right() {
    let server = Server::start().await;
    let (supervisor, me) = server.somebody(&[(None, Role::Supervisor)]).await;
    let gateway = server.gateway("g").await;
    let (pump, _) = server.machine(gateway, "pump", &[]).await;
    let id = server.ticket(&supervisor, json!({"machine": pump, "title": "t"})).await;
    server.finish(&supervisor, &id, &me).await;
    let (status, answer) = server.step(&supervisor, &id, "close", json!({"alarm_correct": "yes"})).await;
    assert_eq!((status, &answer["errors"][0]["field"]), (422, &json!("alarm_correct")));
    let (status, ticket) = server.step(&supervisor, &id, "close", json!({"failure_mode": "ELP"})).await;
    assert_eq!((status, &ticket["alarm_correct"], &ticket["labels"]), (200, &Value::Null, &json!([])));
    let modes = server.get("/api/v1/failure-modes", &supervisor).await;
    let known = modes["modes"].as_array().unwrap();
    assert!(known.iter().any(|mode| mode["code"] == "ELP" && mode["meaning"].is_string()), "{modes}");
}
