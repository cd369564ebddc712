//! Real daemons over a database that others use as well, that goes away and comes back; and what they leave when they stop.

mod filled;
mod outage;
mod replicas;
mod serving;

use std::{
    collections::VecDeque,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use ed25519_dalek::SigningKey;
use futures_util::{SinkExt as _, StreamExt as _};
use gemba_mqtt::delivery::Publish;
use gemba_shared::{
    enrolment::{Enrolled, Token},
    frame,
    message::{Batch, Downlink},
    topic,
};
use rumqttc::{AsyncClient, Event, EventLoop, Packet, QoS};
use serde_json::{Value, json};
use tokio::{
    net::TcpStream,
    time::{Instant, timeout},
};
use tokio_postgres::{Config, config::Host};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async, tungstenite::Message};

use crate::{
    api::Answer,
    daemon::{self, Daemon},
    plant::Gateway,
};

const DEADLINE: Duration = Duration::from_mins(1);
const PASSWORD: &str = "nine dull red kettles";

/// A configuration over this database, whose file lies in a directory of its own below `directory`.
fn configure(directory: &Path, name: &str, database: &Config, more: &str) -> PathBuf {
    let own = directory.join(name);
    fs::create_dir_all(&own).unwrap();
    let Some(Host::Unix(sockets)) = database.get_hosts().first() else { panic!("the private cluster has a socket") };
    let url = format!(
        "postgresql://{}:{}@/{}?host={}&port={}",
        database.get_user().unwrap(),
        String::from_utf8_lossy(database.get_password().unwrap()),
        database.get_dbname().unwrap(),
        sockets.display(),
        database.get_ports().first().unwrap(),
    );
    let file = own.join("cloud.toml");
    let text = format!(
        "data_dir = \"data\"\ndatabase_url = \"{url}\"\n[mqtt]\nlisten = \"127.0.0.1:0\"\n[http]\nlisten = \"127.0.0.1:0\"\n{more}"
    );
    fs::write(&file, text).unwrap();
    file
}

/// Waits until something is so.
async fn until(what: &str, mut so: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !so().await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(DEADLINE, wait).await.unwrap_or_else(|_| panic!("not in time: {what}"));
}

/// Somebody who asks a daemon.
#[derive(Clone)]
struct Api {
    address: SocketAddr,
    token: String,
    agent: ureq::Agent,
}

impl Api {
    fn new(address: SocketAddr) -> Self {
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(Duration::from_secs(30)))
            .build();
        Self { address, token: String::new(), agent: agent.into() }
    }

    /// The same person at another daemon.
    fn at(&self, address: SocketAddr) -> Self {
        Self { address, ..self.clone() }
    }

    /// A new user of this role who has chosen a password and logged in.
    async fn user(config: &Path, address: SocketAddr, name: &str, role: &str) -> Self {
        let once = daemon::cli(config, &["user", "add", name, "--role", role]);
        let mut api = Self::new(address);
        api.login(name, &once).await;
        let body = json!({"old": once, "new": PASSWORD});
        assert_eq!(api.call("POST", "/api/v1/password", Some(body), &[]).await.unwrap().status, 204);
        api.login(name, PASSWORD).await;
        api
    }

    async fn login(&mut self, name: &str, password: &str) -> Value {
        let body = json!({"name": name, "password": password});
        let answer = self.call("POST", "/api/v1/login", Some(body), &[]).await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.body["token"].as_str().unwrap().clone_into(&mut self.token);
        answer.body
    }

    /// An answer, or why there is none.
    async fn call(
        &self,
        method: &str,
        path: &str,
        body: Option<Value>,
        headers: &[(&str, &str)],
    ) -> Result<Answer, ureq::Error> {
        let mut request = axum::http::Request::builder().method(method).uri(format!("http://{}{path}", self.address));
        if !self.token.is_empty() {
            request = request.header("authorization", format!("Bearer {}", self.token));
        }
        if body.is_some() {
            request = request.header("content-type", "application/json");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(body.map(|body| body.to_string()).unwrap_or_default()).unwrap();
        let agent = self.agent.clone();
        let asked = tokio::task::spawn_blocking(move || {
            let mut response = agent.run(request)?;
            let text = response.body_mut().read_to_string()?;
            let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
            Ok(Answer { status: response.status().as_u16(), headers: response.headers().clone(), body })
        });
        asked.await.unwrap()
    }

    async fn get(&self, path: &str) -> Value {
        let answer = self.call("GET", path, None, &[]).await.unwrap();
        assert_eq!(answer.status, 200, "GET {path}: {}", answer.body);
        answer.body
    }

    async fn send(&self, method: &str, path: &str, body: Value) -> Value {
        let answer = self.call(method, path, Some(body), &[]).await.unwrap();
        assert!((200..300).contains(&answer.status), "{method} {path}: {} {}", answer.status, answer.body);
        answer.body
    }

    async fn listen(&self) -> Live {
        let mut live = Live(connect_async(format!("ws://{}/api/v1/live", self.address)).await.unwrap().0);
        live.0.send(Message::text(json!({"token": self.token}).to_string())).await.unwrap();
        assert_eq!(live.next().await, Ok(json!({"type": "hello"})));
        live
    }
}

/// The live stream.
struct Live(WebSocketStream<MaybeTlsStream<TcpStream>>);

impl Live {
    /// The next message, or the code with which the server ends; 0 if it says none.
    async fn next(&mut self) -> Result<Value, u16> {
        loop {
            match timeout(DEADLINE, self.0.next()).await.expect("a message in time") {
                Some(Ok(Message::Text(text))) => return Ok(serde_json::from_str(&text).unwrap()),
                Some(Ok(Message::Close(frame))) => return Err(frame.map_or(0, |frame| frame.code.into())),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Err(0),
            }
        }
    }

    /// The first message that is so.
    async fn find(&mut self, so: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let next = tokio::time::timeout_at(deadline, self.next()).await.expect("it is told in time");
            let next = next.expect("the stream goes on");
            if so(&next) {
                return next;
            }
        }
    }
}

/// A gateway that sends again what it has no receipt for.
struct Edge {
    gateway: Gateway,
    enrolled: Enrolled,
    client: AsyncClient,
    events: EventLoop,
}

impl Edge {
    /// A gateway that is added by the command line and enrolled at this daemon.
    async fn enrol(config: &Path, daemon: &Daemon, name: &str) -> Self {
        let url = format!("mqtts://{}", daemon.mqtt);
        let token: Token = daemon::cli(config, &["gateway", "add", name, "--mqtt-url", &url]).parse().unwrap();
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).unwrap();
        let key = SigningKey::from_bytes(&seed);
        let enrolled = daemon.enrol(&token, &key).unwrap();
        let gateway = Gateway { id: uuid::Uuid::from_bytes(*enrolled.gateway.as_bytes()), key };
        let (client, events) = daemon::connect(&enrolled, &enrolled.mqtt.password);
        let mut edge = Self { gateway, enrolled, client, events };
        edge.subscribe().await;
        edge
    }

    async fn subscribe(&mut self) {
        let wait = async {
            loop {
                match self.events.poll().await {
                    Ok(Event::Incoming(Packet::ConnAck(_))) => {
                        let down = topic::down(self.gateway.wire_id());
                        self.client.subscribe(down, QoS::AtLeastOnce).await.unwrap();
                    }
                    Ok(Event::Incoming(Packet::SubAck(_))) => return,
                    Ok(_) => {}
                    // The database may be away: nobody is let in then.
                    Err(_) => {
                        let (client, events) = daemon::connect(&self.enrolled, &self.enrolled.mqtt.password);
                        (self.client, self.events) = (client, events);
                        tokio::time::sleep(Duration::from_millis(200)).await;
                    }
                }
            }
        };
        timeout(DEADLINE, wait).await.expect("it is let in");
    }

    /// Delivers batches of one lane, a few at a time, until there is a receipt for all.
    async fn deliver(&mut self, batches: Vec<Batch>) {
        let mut open: VecDeque<Batch> = batches.into();
        let deadline = Instant::now() + 2 * DEADLINE;
        while let Some(first) = open.front() {
            assert!(Instant::now() < deadline, "no receipt for {} in time", first.seq.number);
            for batch in open.iter().take(8) {
                let Publish { topic, payload, .. } = self.gateway.publish_batch(batch.clone());
                let topic = String::from_utf8(topic.to_vec()).unwrap();
                self.client.publish(topic, QoS::AtLeastOnce, false, payload.to_vec()).await.unwrap();
            }
            let end = |batch: &Batch| batch.seq.number + batch.records.len() as u64 - 1;
            let last = open.iter().take(8).next_back().map(end).unwrap();
            // Without all of them in this time, the rest is sent again.
            let again = Instant::now() + Duration::from_secs(3);
            while open.front().is_some_and(|first| end(first) <= last) {
                match tokio::time::timeout_at(again, self.events.poll()).await {
                    Err(_) => break,
                    Ok(Ok(Event::Incoming(Packet::Publish(publish)))) => {
                        let (id, key) = (self.gateway.wire_id(), &self.enrolled.cloud_key);
                        if let Ok(Downlink::Receipt(receipt)) = frame::open(&publish.payload, id, key) {
                            open.retain(|batch| batch.seq.lane != receipt.lane || end(batch) > receipt.through);
                        }
                    }
                    Ok(Ok(_)) => {}
                    Ok(Err(_)) => {
                        self.subscribe().await;
                        break;
                    }
                }
            }
        }
    }
}
