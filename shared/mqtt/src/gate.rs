//! The run loop of the gate: accepts clients, authenticates them, and stands between them and the broker.
//!
//! Bounds: connections in all and for each address, time until a client is accepted, bytes of a packet, messages
//! and bytes that were read and are not yet safe. Where the receiver of the deliveries is slow, sockets are not
//! read. A connection that idles takes 16.7 KiB in all (without TLS).

use std::{
    collections::HashMap,
    fmt,
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError, RwLock, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
pub use gemba_shared::gate::{Filter, FilterError, Grant};
use rustls::pki_types::CertificateDer;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::{broker::Broker, delivery::Delivery};

pub(crate) mod backend;
mod chunk;
mod client;
mod counters;
mod greeting;
mod refusals;
mod registry;

pub use counters::Counters;
use refusals::Refusals;
use registry::Registry;

/// After a failed `accept` (no descriptors left, as a rule) before the next.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long clients get to leave when the gate closes.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(3);

pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What a client says of itself.
#[derive(Clone)]
pub struct Credentials {
    pub client_id: String,
    pub username: Option<String>,
    pub password: Option<Bytes>,
    /// Verified against the listener's authority, where it asks for one.
    pub certificate: Option<CertificateDer<'static>>,
    pub peer: SocketAddr,
}

/// Without the password.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = f.debug_struct("Credentials");
        text.field("client_id", &self.client_id).field("username", &self.username).field("peer", &self.peer);
        text.finish_non_exhaustive()
    }
}

/// Why a client is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denied {
    BadCredentials,
    NotAuthorised,
    /// It could not be checked; the client may try again.
    Unavailable,
}

/// Decides who a client is and what it may do. Run off the runtime what takes long (a password's hash).
pub type Authenticate = Arc<dyn Fn(Credentials) -> BoxFuture<'static, Result<Arc<Grant>, Denied>> + Send + Sync>;

#[derive(Debug, Clone)]
pub struct Listener {
    pub address: SocketAddr,
    pub tls: Option<Arc<rustls::ServerConfig>>,
}

/// Bounds of the gate. Bytes and counts are for one connection where nothing else is said.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// In all.
    pub connections_max: usize,
    pub connections_per_address_max: usize,
    pub packet_bytes_max: usize,
    pub topic_bytes_max: usize,
    /// Messages that were read and are not yet safe; more are left in the socket.
    pub unacknowledged_max: usize,
    pub unacknowledged_bytes_max: usize,
    pub subscriptions_max: usize,
    /// Sessions of absent clients, in all.
    pub sessions_max: usize,
    /// For TLS and the CONNECT, and again for the check of the credentials.
    pub connect_timeout: Duration,
    /// After this long without a packet, a client that asked for no keep-alive is taken for gone.
    pub silence_max: Duration,
    /// For a packet to arrive whole, once it has begun.
    pub packet_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 1_024,
            connections_per_address_max: 1_024,
            packet_bytes_max: 640 * 1_024,
            topic_bytes_max: 512,
            unacknowledged_max: 1_024,
            unacknowledged_bytes_max: 2 * 1_024 * 1_024,
            subscriptions_max: 64,
            sessions_max: 1_024,
            connect_timeout: Duration::from_secs(10),
            silence_max: Duration::from_hours(1),
            packet_timeout: Duration::from_mins(2),
        }
    }
}

/// Open listeners, and all that their connections share.
pub struct Gate {
    listeners: Vec<(TcpListener, Option<RwLock<TlsAcceptor>>)>,
    addresses: Vec<SocketAddr>,
    shared: Arc<Shared>,
}

pub(crate) struct Shared {
    limits: Limits,
    broker: Broker,
    registry: Arc<Registry>,
    counters: Arc<Counters>,
    refusals: Refusals,
    per_address: Mutex<HashMap<IpAddr, usize>>,
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").field("addresses", &self.addresses).finish_non_exhaustive()
    }
}

impl Gate {
    /// Opens the listeners; nobody is served before [`Gate::run`].
    ///
    /// # Errors
    /// If one of the addresses cannot be used.
    pub async fn bind(listeners: Vec<Listener>, limits: Limits, broker: Broker) -> io::Result<Self> {
        let mut bound = Vec::new();
        let mut addresses = Vec::new();
        for Listener { address, tls } in listeners {
            let listener = TcpListener::bind(address)
                .await
                .map_err(|error| io::Error::new(error.kind(), format!("cannot listen on {address}: {error}")))?;
            addresses.push(listener.local_addr()?);
            bound.push((listener, tls.map(|tls| RwLock::new(TlsAcceptor::from(tls)))));
        }
        let shared = Shared {
            limits,
            broker,
            registry: Arc::default(),
            counters: Arc::default(),
            refusals: Refusals::default(),
            per_address: Mutex::default(),
        };
        Ok(Self { listeners: bound, addresses, shared: Arc::new(shared) })
    }

    /// Where it listens, in the order of the listeners, with the ports that were chosen for port 0.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    #[must_use]
    pub fn counters(&self) -> Arc<Counters> {
        self.shared.counters.clone()
    }

    /// New connections of all TLS listeners are made with these settings: a certificate was renewed, say.
    pub fn renew_tls(&self, config: &Arc<rustls::ServerConfig>) {
        for acceptor in self.listeners.iter().filter_map(|(_, tls)| tls.as_ref()) {
            *acceptor.write().unwrap_or_else(PoisonError::into_inner) = TlsAcceptor::from(Arc::clone(config));
        }
    }

    /// Ends the connections of this name, since its grant has changed, say.
    pub fn disconnect(&self, name: &str) {
        let count = self.shared.registry.disconnect(name);
        Counters::add(&self.shared.counters.disconnected, count as u64);
    }

    /// Serves clients until `cancel`, then ends their connections. Deliveries that were sent by then may still
    /// be acknowledged, but nobody is told.
    pub async fn run(&self, authenticate: Authenticate, deliveries: mpsc::Sender<Delivery>, cancel: CancellationToken) {
        let mut accepting = Vec::new();
        let (sockets, mut accepted) = mpsc::channel(1);
        for (listener, tls) in &self.listeners {
            accepting.push(accept(listener, tls.as_ref(), &self.shared, sockets.clone()));
        }
        let mut clients = JoinSet::new();
        let accepting = all(accepting);
        tokio::pin!(accepting);
        loop {
            tokio::select! {
                () = cancel.cancelled() => break,
                () = &mut accepting => break,
                Some(socket) = accepted.recv() => {
                    let (shared, authenticate) = (self.shared.clone(), authenticate.clone());
                    let (deliveries, cancel) = (deliveries.clone(), cancel.clone());
                    clients.spawn(greeting::greet(shared, socket, authenticate, deliveries, cancel));
                }
                Some(ended) = clients.join_next(), if !clients.is_empty() => {
                    if let Err(error) = ended {
                        tracing::error!(%error, "gate connection panicked");
                    }
                }
            }
        }
        drop(deliveries);
        let drained = async { while clients.join_next().await.is_some() {} };
        if timeout(DRAIN_TIMEOUT, drained).await.is_err() {
            tracing::warn!(connections = clients.len(), "gate closed on clients that did not leave");
        }
    }
}

/// Runs all of them; ends when they have (which is never, where one accepts).
async fn all<F: Future<Output = ()>>(futures: Vec<F>) {
    let mut futures: Vec<_> = futures.into_iter().map(Box::pin).collect();
    std::future::poll_fn(|context| {
        futures.retain_mut(|future| future.as_mut().poll(context).is_pending());
        if futures.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
}

/// A connection that is within the bounds; it counts until it is dropped.
struct Socket {
    stream: TcpStream,
    peer: SocketAddr,
    tls: Option<TlsAcceptor>,
    place: Place,
}

struct Place {
    shared: Arc<Shared>,
    address: IpAddr,
}

async fn accept(
    listener: &TcpListener,
    tls: Option<&RwLock<TlsAcceptor>>,
    shared: &Arc<Shared>,
    sockets: mpsc::Sender<Socket>,
) {
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "gate cannot accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Some(place) = Place::take(shared, peer.ip()) else {
            Counters::add(&shared.counters.connections_over_limit, 1);
            continue;
        };
        Counters::add(&shared.counters.connections_accepted, 1);
        let tls = tls.map(|tls| tls.read().unwrap_or_else(PoisonError::into_inner).clone());
        if sockets.send(Socket { stream, peer, tls, place }).await.is_err() {
            return;
        }
    }
}

impl Place {
    fn take(shared: &Arc<Shared>, address: IpAddr) -> Option<Self> {
        let mut per_address = shared.per_address.lock().unwrap_or_else(PoisonError::into_inner);
        let all = shared.counters.connections.load(Ordering::Relaxed);
        if all >= shared.limits.connections_max as u64 {
            return None;
        }
        let count = per_address.entry(address).or_insert(0);
        if *count >= shared.limits.connections_per_address_max {
            return None;
        }
        *count += 1;
        shared.counters.connections.fetch_add(1, Ordering::Relaxed);
        Some(Self { shared: shared.clone(), address })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut per_address = self.shared.per_address.lock().unwrap_or_else(PoisonError::into_inner);
        self.shared.counters.connections.fetch_sub(1, Ordering::Relaxed);
        if let Some(count) = per_address.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                per_address.remove(&self.address);
            }
        }
    }
}
