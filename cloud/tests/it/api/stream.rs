//! The live stream over a real WebSocket.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use gemba_cloud::{clock, live::Change, users::Role};
use serde_json::{Value, json};
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{self, Message, client::IntoClientRequest},
};
use uuid::Uuid;

use super::Server;

pub(super) type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

const DEADLINE: Duration = Duration::from_secs(20);

impl Server {
    pub(super) async fn open(&self) -> Socket {
        connect_async(format!("ws://{}/api/v1/live", self.address)).await.unwrap().0
    }

    pub(super) async fn listen(&self, token: &str) -> Socket {
        let mut socket = self.open().await;
        socket.send(Message::text(json!({"token": token}).to_string())).await.unwrap();
        assert_eq!(next(&mut socket).await, Ok(json!({"type": "hello"})));
        socket
    }
}

/// The next message, or the code with which the server ends.
pub(super) async fn next(socket: &mut Socket) -> Result<Value, u16> {
    loop {
        match timeout(DEADLINE, socket.next()).await.expect("a message in time") {
            Some(Ok(Message::Text(text))) => return Ok(serde_json::from_str(&text).unwrap()),
            Some(Ok(Message::Close(frame))) => return Err(frame.map_or(0, |frame| frame.code.into())),
            Some(Ok(_)) => {}
            Some(Err(_)) | None => return Err(0),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changes_is_told() {
    let server = Server::start().await;
    let token = server.user(Role::Viewer).await;
    let gateway = server.gateway("north").await;
    let (machine, _) = server.machine(gateway, "pump-1", &["flow", "pressure"]).await;
    let (part, _) = server.machine(gateway, "pump-01", &["flow"]).await;
    let mut socket = server.listen(&token).await;

    server.tell(Change::Machine(machine));
    let told = next(&mut socket).await.unwrap();
    assert_eq!((&told["type"], &told["machine"]["id"]), (&json!("machine"), &json!(machine)));
    assert_eq!(told["machine"]["values"], json!([0.5, 1.5]));
    assert_eq!((&told["machine"]["state"], &told["machine"]["mode"]), (&json!("ok"), &json!("running")));

    server.sql(&format!("UPDATE machines SET merged_into = '{machine}' WHERE id = '{part}'")).await;
    server.tell(Change::Machine(part));
    assert_eq!(next(&mut socket).await.unwrap()["machine"]["id"], json!(machine), "a part is shown as its target");

    let alarm = server.alarm(gateway, machine, "unacknowledged", "high", clock::now()).await;
    server.tell(Change::Alarm(alarm));
    let told = next(&mut socket).await.unwrap();
    assert_eq!((&told["type"], &told["alarm"]["message"]), (&json!("alarm"), &json!("It is loud")));

    let anomaly: Uuid = serde_json::from_value(told["alarm"]["anomaly_id"].clone()).unwrap();
    server.tell(Change::Anomaly(anomaly));
    assert_eq!(next(&mut socket).await.unwrap()["anomaly"]["id"], json!(anomaly));

    server.tell(Change::Gateway(gateway));
    assert_eq!(next(&mut socket).await.unwrap()["gateway"]["state"], "online");

    let operator = server.user(Role::Operator).await;
    server.post(&format!("/api/v1/alarms/{alarm}/acknowledge"), &operator, json!({})).await;
    assert_eq!(next(&mut socket).await.unwrap()["alarm"]["state"], "acknowledged", "also what people do");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_is_told_twice_a_second_at_most_and_its_last_state_in_the_end() {
    let server = Server::start().await;
    let token = server.user(Role::Viewer).await;
    let gateway = server.gateway("north").await;
    let (machine, _) = server.machine(gateway, "pump-1", &["flow"]).await;
    let mut socket = server.listen(&token).await;
    let started = std::time::Instant::now();
    for n in 1..=40 {
        server.sql(&format!("UPDATE machines SET last_values = '{{{n}}}'")).await;
        server.tell(Change::Machine(machine));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut told = 0;
    loop {
        told += 1;
        if next(&mut socket).await.unwrap()["machine"]["values"] == json!([40.0]) {
            break;
        }
    }
    let most = 2 + 2 * started.elapsed().as_secs_f64().ceil() as u32;
    assert!(told <= most, "{told} messages, {most} at most");
}

#[tokio::test(flavor = "multi_thread")]
async fn silence_is_told_though_no_row_changes() {
    let server = Server::start().await;
    let token = server.user(Role::Viewer).await;
    let gateway = server.gateway("north").await;
    server.machine(gateway, "pump-1", &["flow"]).await;
    let mut socket = server.listen(&token).await;
    // The hub looks once, and then finds the difference.
    server.tell(Change::Gateway(gateway));
    assert_eq!(next(&mut socket).await.unwrap()["type"], "gateway");
    tokio::time::sleep(Duration::from_millis(500)).await;
    server.sql("UPDATE gateways SET last_seen_at = now() - interval '1 minute'").await;
    let told = next(&mut socket).await.unwrap();
    assert_eq!(told["machine"]["state"], "gateway_offline", "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_good_token_nothing_is_told() {
    let server = Server::start().await;
    for first in ["", "{}", "{\"token\": 7}", "{\"token\": \"x.y.z\"}", "not json"] {
        let mut socket = server.open().await;
        socket.send(Message::text(first)).await.unwrap();
        assert_eq!(next(&mut socket).await, Err(4_401), "{first}");
    }
    let must_change = server.user(Role::Viewer).await;
    server.sql("UPDATE users SET must_change_password = true").await;
    let mut socket = server.open().await;
    socket.send(Message::text(json!({"token": must_change}).to_string())).await.unwrap();
    assert_eq!(next(&mut socket).await, Err(4_403));
    // A client that says nothing is left.
    assert_eq!(next(&mut server.open().await).await, Err(4_408));
    // A message that is too large ends it.
    let mut socket = server.open().await;
    let large = json!({"token": "x".repeat(100_000)}).to_string();
    drop(socket.send(Message::text(large)).await);
    assert!(next(&mut socket).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_later_bad_token_ends_the_stream_and_a_good_one_prolongs_it() {
    let server = Server::start().await;
    let token = server.user(Role::Viewer).await;
    let gateway = server.gateway("north").await;
    let mut socket = server.listen(&token).await;
    socket.send(Message::text(json!({"token": token}).to_string())).await.unwrap();
    server.tell(Change::Gateway(gateway));
    assert_eq!(next(&mut socket).await.unwrap()["type"], "gateway");
    socket.send(Message::text("{\"token\": \"x\"}")).await.unwrap();
    assert_eq!(next(&mut socket).await, Err(4_401));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_another_server_is_refused() {
    let server = Server::start().await;
    for (origin, allowed) in [("https://evil.example".to_owned(), false), (format!("http://{}", server.address), true)]
    {
        let mut request = format!("ws://{}/api/v1/live", server.address).into_client_request().unwrap();
        request.headers_mut().insert("origin", origin.parse().unwrap());
        match connect_async(request).await {
            Ok(_) => assert!(allowed, "{origin}"),
            Err(tungstenite::Error::Http(answer)) => {
                assert!(!allowed, "{origin}");
                assert_eq!(answer.status().as_u16(), 403);
            }
            Err(error) => panic!("{error}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_that_the_hub_could_not_follow_are_a_resync() {
    let server = Server::start().await;
    let token = server.user(Role::Viewer).await;
    let gateway = server.gateway("north").await;
    let mut socket = server.listen(&token).await;
    // Far more than the queue of changes holds.
    server.sql(&format!("UPDATE gateways SET version = '{}'", "x".repeat(100_000))).await;
    let mut resync = false;
    for _ in 0..50 {
        for _ in 0..2 * gemba_cloud::live::CHANGES_MAX {
            server.tell(Change::Gateway(gateway));
        }
        if timeout(Duration::from_millis(100), next(&mut socket)).await == Ok(Ok(json!({"type": "resync"}))) {
            resync = true;
            break;
        }
    }
    assert!(resync, "changes that the hub itself lost are told as well");
}
