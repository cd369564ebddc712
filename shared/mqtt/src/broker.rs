//! The embedded rumqttd: on loopback only, with a secret of its own, probed for life.
//!
//! Only the gate connects to it. It does subscriptions and retained messages; both are in memory and are gone
//! when the process ends. It has no console and no metrics listener. It cannot be stopped: its threads end with
//! the process.

use std::{
    collections::HashMap,
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    task::{Context, Poll, Waker},
    thread,
    time::{Duration, Instant},
};

use std::future::Future as _;

use bytes::{Bytes, BytesMut};
use gemba_shared::gate::packet::{self, Connect, Packet, Publish};
use rumqttd::{
    Config, ConnectionSettings, RouterConfig, ServerSettings,
    local::{LinkRx, LinkTx},
};
use tokio::sync::mpsc;

use crate::gate::backend::Backend;

/// A directive for `tracing_subscriber::EnvFilter`: rumqttd logs each connection that comes or goes as an
/// error. What matters is seen by [`Broker::probe`].
pub const LOG_FILTER: &str = "rumqttd=off,rustls=error";

/// Messages that wait for the broker's router; more are refused.
const FORWARDS_WAITING_MAX: usize = 4_096;
const FORWARDS_AT_ONCE_MAX: usize = 256;
const PORTS_TRIED_MAX: usize = 8;
const START_TIMEOUT: Duration = Duration::from_secs(5);
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
const SEGMENTS: usize = 2;
const SEGMENT_BYTES_MIN: usize = 1_024;

#[derive(Debug, Clone, Copy)]
pub struct BrokerSettings {
    /// Clients that subscribe.
    pub connections_max: usize,
    pub packet_bytes_max: usize,
    /// What is kept in memory for each filter that was ever subscribed to, for slow and absent subscribers;
    /// older messages are lost.
    pub log_bytes_per_filter: usize,
}

impl Default for BrokerSettings {
    fn default() -> Self {
        Self { connections_max: 1_024, packet_bytes_max: 640 * 1_024, log_bytes_per_filter: 64 * 1_024 }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    #[error("the embedded broker could not be started: {0}")]
    Start(String),
    #[error("the embedded broker does not answer: {0}")]
    Dead(#[from] io::Error),
    #[error("the embedded broker did not answer within {PROBE_TIMEOUT:?}")]
    Silent,
}

/// A handle to the running broker.
#[derive(Clone)]
pub struct Broker {
    address: SocketAddr,
    login: Arc<Login>,
    publisher: Publisher,
}

struct Login {
    username: String,
    password: String,
}

/// The in-process way to the subscribers.
#[derive(Debug, Clone)]
pub struct Publisher(mpsc::Sender<Publish>);

/// Why a message did not reach the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    #[error("the embedded broker is behind")]
    Full,
    #[error("the embedded broker is dead")]
    Dead,
}

impl std::fmt::Debug for Broker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Broker").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Broker {
    /// Starts the broker on a free port. Blocks for some milliseconds.
    ///
    /// # Errors
    /// If none of several ports could be used.
    pub fn start(settings: BrokerSettings) -> Result<Self, BrokerError> {
        let login = Arc::new(Login { username: secret()?, password: secret()? });
        let mut last = String::new();
        for _ in 0..PORTS_TRIED_MAX {
            // rumqttd cannot say which port it got, so one is chosen for it; another program may be faster.
            let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
            match start_on(address, settings, &login) {
                Ok(publisher) => return Ok(Self { address, login, publisher }),
                Err(error) => last = format!("{address}: {error}"),
            }
        }
        Err(BrokerError::Start(last))
    }

    #[must_use]
    pub fn publisher(&self) -> Publisher {
        self.publisher.clone()
    }

    /// Connects and has a ping answered, which takes the listener and the router; how long that took.
    ///
    /// # Errors
    /// If either of them is dead or stuck.
    pub async fn probe(&self) -> Result<Duration, BrokerError> {
        let begin = Instant::now();
        let ping = async {
            let mut backend = Backend::open(self, "probe", true).await?;
            backend.ping().await?;
            backend.close().await;
            io::Result::Ok(())
        };
        tokio::time::timeout(PROBE_TIMEOUT, ping).await.map_err(|_| BrokerError::Silent)??;
        Ok(begin.elapsed())
    }

    pub(crate) fn publisher_ref(&self) -> &Publisher {
        &self.publisher
    }

    /// Where it listens, on loopback; nobody but the gate has the secret.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The CONNECT of a client of the broker.
    pub(crate) fn connect_packet(&self, client_id: &str, clean_session: bool) -> Packet {
        connect_packet(&self.login, client_id, clean_session)
    }
}

impl Publisher {
    /// Hands a message to the broker, waiting while it is behind.
    ///
    /// # Errors
    /// If the broker is dead.
    pub async fn publish(&self, topic: impl Into<Bytes>, payload: impl Into<Bytes>) -> Result<(), PublishError> {
        self.0.send(message(topic.into(), payload.into())).await.map_err(|_| PublishError::Dead)
    }

    /// # Errors
    /// If the broker is behind or dead.
    pub fn try_publish(&self, topic: impl Into<Bytes>, payload: impl Into<Bytes>) -> Result<(), PublishError> {
        self.try_forward(message(topic.into(), payload.into()))
    }

    pub(crate) fn try_forward(&self, publish: Publish) -> Result<(), PublishError> {
        self.0.try_send(publish).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => PublishError::Full,
            mpsc::error::TrySendError::Closed(_) => PublishError::Dead,
        })
    }
}

fn message(topic: Bytes, payload: Bytes) -> Publish {
    Publish { dup: false, qos: packet::QoS::AtMostOnce, retain: false, topic, id: 0, payload }
}

fn secret() -> io::Result<String> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(format!("{:032x}", u128::from_be_bytes(bytes)))
}

fn connect_packet(login: &Login, client_id: &str, clean_session: bool) -> Packet {
    Packet::Connect(Box::new(Connect {
        clean_session,
        keep_alive_s: crate::gate::backend::KEEP_ALIVE_S,
        client_id: client_id.to_owned(),
        will: None,
        username: Some(login.username.clone()),
        password: Some(Bytes::from(login.password.clone())),
    }))
}

#[expect(clippy::disallowed_methods, reason = "it waits for another thread, at most until a deadline")]
fn start_on(address: SocketAddr, settings: BrokerSettings, login: &Login) -> Result<Publisher, BrokerError> {
    let failed = |error: &dyn std::fmt::Display| BrokerError::Start(error.to_string());
    let mut broker = rumqttd::Broker::new(config(address, settings, login));
    let (link, link_rx) = broker.link("gemba").map_err(|error| failed(&error))?;
    // It ends at once when the port was taken, and never otherwise.
    let server = thread::Builder::new().name("broker".into()).spawn(move || broker.start().is_ok())?;
    let deadline = Instant::now() + START_TIMEOUT;
    while let Err(error) = greet(address, login) {
        if server.is_finished() || Instant::now() > deadline {
            return Err(failed(&error));
        }
        thread::sleep(Duration::from_millis(2));
    }
    let (sender, receiver) = mpsc::channel(FORWARDS_WAITING_MAX);
    thread::Builder::new().name("broker-publish".into()).spawn(move || forward(receiver, link, link_rx))?;
    Ok(Publisher(sender))
}

/// Whether it is ours that answers on this port: it knows the secret.
fn greet(address: SocketAddr, login: &Login) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&address, START_TIMEOUT)?;
    stream.set_read_timeout(Some(START_TIMEOUT))?;
    let mut bytes = BytesMut::new();
    connect_packet(login, "probe", true).write(&mut bytes);
    stream.write_all(&bytes)?;
    let mut answer = [0; 4];
    stream.read_exact(&mut answer)?;
    if answer == [0x20, 2, 0, 0] { stream.write_all(&[0xe0, 0]) } else { Err(io::ErrorKind::InvalidData.into()) }
}

fn config(address: SocketAddr, settings: BrokerSettings, login: &Login) -> Config {
    let connections = ConnectionSettings {
        connection_timeout_ms: 5_000,
        max_payload_size: settings.packet_bytes_max,
        max_inflight_count: 100,
        auth: Some(HashMap::from([(login.username.clone(), login.password.clone())])),
        external_auth: None,
        // Without it a publish that nobody subscribes to ends the connection that carried it.
        dynamic_filters: true,
    };
    let server = ServerSettings {
        name: "broker-tcp".into(),
        listen: address,
        tls: None,
        next_connection_delay_ms: 0,
        connections,
    };
    Config {
        router: RouterConfig {
            // One more for the in-process link, one for the probe, and room while old ones are leaving.
            max_connections: settings.connections_max + 16,
            max_outgoing_packet_count: 200,
            max_segment_size: (settings.log_bytes_per_filter / SEGMENTS).max(SEGMENT_BYTES_MIN),
            max_segment_count: SEGMENTS,
            ..RouterConfig::default()
        },
        v4: Some(HashMap::from([("gate".into(), server)])),
        ..Config::default()
    }
}

/// Moves messages to the router until the broker or every publisher is gone. The receiving half of the link is
/// only kept alive: nothing is ever sent to it.
#[expect(clippy::disallowed_methods, reason = "a thread of its own; the broker does not say when it has room")]
fn forward(mut messages: mpsc::Receiver<Publish>, mut link: LinkTx, _link_rx: LinkRx) {
    while let Some(first) = messages.blocking_recv() {
        // The router takes the buffer whole; while it is stuck the buffer must not grow.
        while link.buffer().len() > FORWARDS_WAITING_MAX {
            thread::sleep(Duration::from_millis(1));
        }
        let mut packet = to_broker(first);
        {
            let mut buffer = link.buffer();
            for _ in 1..FORWARDS_AT_ONCE_MAX {
                let Ok(next) = messages.try_recv() else { break };
                buffer.push_back(std::mem::replace(&mut packet, to_broker(next)));
            }
        }
        let sending = std::pin::pin!(link.send(packet));
        // It awaits nothing: it blocks this thread until the router has room.
        if !matches!(sending.poll(&mut Context::from_waker(Waker::noop())), Poll::Ready(Ok(_))) {
            tracing::error!("embedded broker is dead: restart the service");
            return;
        }
    }
}

/// The broker delivers at each subscriber's `QoS`, whatever the publisher's was; at 0 it need not answer us.
fn to_broker(publish: Publish) -> rumqttd::protocol::Packet {
    let Publish { retain, topic, payload, .. } = publish;
    let publish = rumqttd::protocol::Publish::new(topic, payload, retain);
    rumqttd::protocol::Packet::Publish(publish, None)
}
