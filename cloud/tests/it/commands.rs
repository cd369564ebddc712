//! Commands from a supervisor's request to the gateway's answer.

use std::time::Duration;

use gemba_cloud::users::Role;
use gemba_mqtt::delivery::Publish;
use gemba_shared::{
    message::{Command, CommandKind, CommandResult, Downlink, Live, Outcome, Uplink},
    telemetry::{Clock, Timestamp},
    topic::Channel,
};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::{
    api::Server,
    plant::{self, Gateway, ago, machine, rows},
    promise::Cloud,
};

const DEADLINE: Duration = Duration::from_secs(30);

pub(crate) fn sign_of_life(gateway: &Gateway) -> Publish {
    let live = Live { at: ago(0), clock: Clock::Trusted, machines: Vec::new() };
    gateway.publish(&Uplink::Live(live), Channel::Live)
}

pub(crate) fn answer(gateway: &Gateway, id: u64, outcome: Outcome) -> Publish {
    gateway.publish(&Uplink::CommandResult(CommandResult { id, at: ago(0), outcome }), Channel::Status)
}

pub(crate) async fn command(cloud: &mut Cloud, gateway: &Gateway) -> Command {
    let waiting = async {
        loop {
            for said in cloud.said(gateway) {
                if let Downlink::Command(command) = said {
                    return command;
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(DEADLINE, waiting).await.expect("a command")
}

pub(crate) async fn until(server: &Server, sql: &str, expected: &str) {
    let so = async {
        while rows(&server.store, sql).await != expected {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(DEADLINE, so).await.unwrap_or_else(|_| panic!("{sql} never gave {expected}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_is_sent_until_it_is_answered_and_the_next_one_waits_for_that() {
    let server = Server::start().await;
    let supervisor = server.user(Role::Supervisor).await;
    let gateway = plant::enrolled(&server.store, "hall-1").await;
    let (pump, _) = server.machine(gateway.id, "pump-3", &["flow"]).await;
    let path = format!("/api/v1/gateways/{}/commands", gateway.id);

    let (status, given) = server.post(&path, &supervisor, json!({"kind": "recalibrate", "machine": pump})).await;
    assert_eq!((status, &given["state"], &given["machine"]), (201, &json!("waiting"), &json!("pump-3")), "{given}");
    let out = json!({"kind": "out_of_service", "machine": pump, "out": true, "valid_for_s": 60});
    let (_, second) = server.post(&path, &supervisor, out).await;
    assert!(second["number"].as_i64() > given["number"].as_i64());
    server.post(&path, &supervisor, json!({"kind": "send_diagnostics"})).await;

    let mut cloud = Cloud::start(&server.store);
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert!(cloud.said(&gateway).is_empty(), "it was not heard yet");
    cloud.hand(sign_of_life(&gateway)).await;
    let first = command(&mut cloud, &gateway).await;
    assert_eq!(first.id, given["number"].as_u64().unwrap());
    assert_eq!(first.kind, CommandKind::Recalibrate { machine: machine("pump-3") });
    assert!(first.expires > Timestamp(ago(0).0 + 3_000_000_000));
    // It is sent again, also by a cloud that starts anew.
    assert_eq!(command(&mut cloud, &gateway).await.id, first.id);
    cloud.end().await;
    let mut cloud = Cloud::start(&server.store);
    assert_eq!(command(&mut cloud, &gateway).await.id, first.id);

    for outcome in [Outcome::Done, Outcome::Failed("this one comes too late".into())] {
        cloud.hand(answer(&gateway, first.id, outcome)).await;
    }
    let mut next = command(&mut cloud, &gateway).await;
    while next.id == first.id {
        next = command(&mut cloud, &gateway).await;
    }
    assert_eq!(next.kind, CommandKind::OutOfService { machine: machine("pump-3"), out: true });
    cloud.hand(answer(&gateway, next.id, Outcome::Failed("there is no machine\0".into()))).await;
    let mut last = command(&mut cloud, &gateway).await;
    while last.id == next.id {
        last = command(&mut cloud, &gateway).await;
    }
    cloud.hand(answer(&gateway, last.id, Outcome::Told("all\nis well".into()))).await;
    let states = "SELECT state, answered_at IS NOT NULL, result FROM commands ORDER BY number";
    until(&server, states, "done t -\nfailed t there is no machine\ndone t all\nis well").await;

    let list = server.get(&format!("{path}?limit=2"), &supervisor).await;
    let kinds: Vec<&Value> = list["items"].as_array().unwrap().iter().map(|item| &item["kind"]).collect();
    assert_eq!(kinds, ["send_diagnostics", "out_of_service"]);
    assert!(list["items"][0]["created_by"].as_str().unwrap().starts_with("supervisor"));
    let cursor = list["next_cursor"].as_str().unwrap();
    let rest = server.get(&format!("{path}?cursor={cursor}"), &supervisor).await;
    assert_eq!(rest["items"][0]["state"], "done");

    // One that nobody answers ends.
    server.post(&path, &supervisor, json!({"kind": "reload"})).await;
    server.sql("UPDATE commands SET expires_at = now() - interval '2 min' WHERE state = 'waiting'").await;
    until(&server, "SELECT state FROM commands ORDER BY number DESC LIMIT 1", "expired").await;
    cloud.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_makes_no_sense_is_not_given() {
    let server = Server::start().await;
    let token = server.user(Role::Supervisor).await;
    let gateway = plant::enrolled(&server.store, "g").await;
    let other = plant::enrolled(&server.store, "other").await;
    let (elsewhere, _) = server.machine(other.id, "m", &[]).await;
    let path = |id: uuid::Uuid| format!("/api/v1/gateways/{id}/commands");
    for (body, field) in [
        (json!({"kind": "recalibrate"}), "machine"),
        (json!({"kind": "recalibrate", "machine": elsewhere}), "machine"),
        (json!({"kind": "out_of_service", "machine": elsewhere}), "out"),
        (json!({"kind": "label_anomaly", "real": true, "anomaly": elsewhere}), "anomaly"),
        (json!({"kind": "reload", "valid_for_s": 0}), "valid_for_s"),
    ] {
        let (status, answer) = server.post(&path(gateway.id), &token, body).await;
        assert_eq!((status, &answer["errors"][0]["field"]), (422, &json!(field)), "{answer}");
    }
    assert_eq!(server.post(&path(gateway.id), &token, json!({"kind": "explode"})).await.0, 422);
    assert_eq!(server.post(&path(uuid::Uuid::now_v7()), &token, json!({"kind": "reload"})).await.0, 404);
    server.sql(&format!("UPDATE gateways SET state = 'revoked' WHERE id = '{}'", other.id)).await;
    let (status, answer) = server.post(&path(other.id), &token, json!({"kind": "reload"})).await;
    assert_eq!((status, &answer["code"]), (409, &json!("not_enrolled")));
    for _ in 0..100 {
        assert_eq!(server.post(&path(gateway.id), &token, json!({"kind": "reload"})).await.0, 201);
    }
    assert_eq!(server.post(&path(gateway.id), &token, json!({"kind": "reload"})).await.1["code"], "too_many_commands");
    assert_eq!(rows(&server.store, "SELECT count(DISTINCT number), count(*) FROM commands").await, "100 100");
}
