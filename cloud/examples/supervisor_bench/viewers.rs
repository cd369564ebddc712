//! Many live streams at once, and how long a new alarm takes to reach each of them.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async, tungstenite::Message};

use super::{daemon::Daemon, gateway::Gateway, quantile};

pub(crate) const CLIENTS: usize = 1_000;
const ALARMS: usize = 20;
const BETWEEN: Duration = Duration::from_secs(1);
const COMES_WITHIN: Duration = Duration::from_secs(20);

type Stream = WebSocketStream<MaybeTlsStream<tokio::net::TcpStream>>;

/// From the moment the gateway signs the event to the moment a client has the message.
pub(crate) async fn run(daemon: &Daemon, token: &str, mut gateway: Gateway) -> anyhow::Result<String> {
    let (told, mut arrived) = mpsc::channel(CLIENTS);
    let (stop, stopped) = watch::channel(false);
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..CLIENTS {
        let stream = open(daemon, token).await?;
        clients.spawn(watch_alarms(stream, told.clone(), stopped.clone()));
    }
    let mut delays = Vec::new();
    for place in 0..ALARMS {
        let began = Instant::now();
        gateway.open_anomaly(place).await?;
        for seen in 0..CLIENTS {
            let at: Instant = timeout(COMES_WITHIN, arrived.recv())
                .await
                .with_context(|| format!("alarm {place} reached {seen} of {CLIENTS} clients"))?
                .context("clients")?;
            delays.push(at.duration_since(began).as_secs_f64() * 1e3);
        }
        tokio::time::sleep(BETWEEN).await;
    }
    stop.send(true)?;
    while let Some(client) = clients.join_next().await {
        client??;
    }
    delays.sort_by(f64::total_cmp);
    ensure!(delays.len() == CLIENTS * ALARMS, "each client saw each alarm");
    let [p50, p99, most] = [0.5, 0.99, 1.0].map(|share| quantile(&delays, share));
    Ok(format!(
        "{CLIENTS} live streams: a new alarm from the gateway to a client p50 {p50:.0} ms, p99 {p99:.0} ms, at most {most:.0} ms"
    ))
}

async fn open(daemon: &Daemon, token: &str) -> anyhow::Result<Stream> {
    let (mut stream, _) = connect_async(format!("ws://{}/api/v1/live", daemon.http)).await?;
    stream.send(Message::text(json!({"token": token}).to_string())).await?;
    let hello = timeout(COMES_WITHIN, stream.next()).await?.context("a hello")??;
    ensure!(hello.to_text()?.contains("hello"), "{hello}");
    Ok(stream)
}

/// Tells the moment of each new alarm of an anomaly.
async fn watch_alarms(
    mut stream: Stream,
    told: mpsc::Sender<Instant>,
    mut stopped: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let mut seen = std::collections::HashSet::new();
    loop {
        let message = tokio::select! {
            _ = stopped.changed() => return Ok(()),
            message = stream.next() => message.context("the stream ended")??,
        };
        let at = Instant::now();
        let Ok(text) = message.to_text() else { continue };
        if !text.starts_with(r#"{"type":"alarm""#) {
            continue;
        }
        let message: Value = serde_json::from_str(text)?;
        let id = message["alarm"]["id"].as_str().context("an id")?.to_owned();
        if message["alarm"]["condition"] == "anomaly" && seen.insert(id) {
            told.send(at).await?;
        }
    }
}
