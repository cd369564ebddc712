//! The HTTP port, plain or with TLS. A handshake never holds up other clients.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use axum::{
    Router,
    extract::{ConnectInfo, Request, connect_info::Connected},
    middleware::{self, Next},
    response::Response,
    serve::IncomingStream,
};
use rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::{either::Either, sync::CancellationToken};

const HANDSHAKES_MAX: usize = 256;
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long open requests may take when the daemon stops.
const DRAIN_MAX: Duration = Duration::from_secs(5);

type Stream = Either<TcpStream, TlsStream<TcpStream>>;

/// TLS settings of a server, from PEM.
///
/// # Errors
/// If there is no certificate or key in the text, or they do not belong together.
pub fn tls(chain_pem: &[u8], key_pem: &[u8]) -> anyhow::Result<Arc<ServerConfig>> {
    let chain: Vec<CertificateDer<'static>> =
        CertificateDer::pem_slice_iter(chain_pem).collect::<Result<_, _>>().context("the certificate is no PEM")?;
    anyhow::ensure!(!chain.is_empty(), "there is no certificate in the file (-----BEGIN CERTIFICATE-----)");
    let key = PrivateKeyDer::from_pem_slice(key_pem).context("there is no private key in the file")?;
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .context("certificate and key cannot be used")?;
    Ok(Arc::new(config))
}

/// Connections that are ready for HTTP.
#[derive(Debug)]
pub struct Listener {
    accepted: mpsc::Receiver<(Stream, SocketAddr)>,
    address: SocketAddr,
}

impl Listener {
    /// Listens, and speaks TLS where it is given.
    ///
    /// # Errors
    /// If the address cannot be used.
    pub async fn bind(address: SocketAddr, tls: Option<Arc<ServerConfig>>) -> anyhow::Result<Self> {
        let listener =
            TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address} (http.listen)"))?;
        let address = listener.local_addr()?;
        let (ready, accepted) = mpsc::channel(64);
        tokio::spawn(accept(listener, tls.map(TlsAcceptor::from), ready));
        Ok(Self { accepted, address })
    }

    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Ends when nobody takes connections any more.
async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, ready: mpsc::Sender<(Stream, SocketAddr)>) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    loop {
        let accepted = tokio::select! {
            () = ready.closed() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept HTTP connections for a moment");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        stream.set_nodelay(true).ok();
        let Some(tls) = tls.clone() else {
            if ready.send((Either::Left(stream), peer)).await.is_err() {
                return;
            }
            continue;
        };
        let Ok(permit) = Arc::clone(&handshakes).acquire_owned().await else { return };
        let ready = ready.clone();
        tokio::spawn(async move {
            if let Ok(Ok(stream)) = timeout(HANDSHAKE_MAX, tls.accept(stream)).await {
                ready.send((Either::Right(stream), peer)).await.ok();
            }
            drop(permit);
        });
    }
}

impl axum::serve::Listener for Listener {
    type Io = Stream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Stream, SocketAddr) {
        match self.accepted.recv().await {
            Some(accepted) => accepted,
            // Its task ends after this.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

/// The client's address; for handlers it becomes a `ConnectInfo<SocketAddr>`.
#[derive(Debug, Clone, Copy)]
struct Peer(SocketAddr);

impl Connected<IncomingStream<'_, Listener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Listener>) -> Self {
        Self(*stream.remote_addr())
    }
}

async fn name_peer(ConnectInfo(Peer(peer)): ConnectInfo<Peer>, mut request: Request, next: Next) -> Response {
    request.extensions_mut().insert(ConnectInfo(peer));
    next.run(request).await
}

/// Serves until `cancel`, and then what was asked before.
///
/// # Errors
/// If the listener fails.
pub async fn serve(listener: Listener, app: Router, cancel: CancellationToken) -> anyhow::Result<()> {
    let app = app.layer(middleware::from_fn(name_peer)).into_make_service_with_connect_info::<Peer>();
    let stop = cancel.clone();
    let serving = axum::serve(listener, app).with_graceful_shutdown(async move { stop.cancelled().await });
    let drained = async {
        cancel.cancelled().await;
        tokio::time::sleep(DRAIN_MAX).await;
    };
    tokio::select! {
        ended = serving => ended.context("the HTTP server failed"),
        // A client that reads slowly holds nobody up.
        () = drained => Ok(()),
    }
}
