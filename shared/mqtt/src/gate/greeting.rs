//! From an accepted socket to an accepted client: TLS, CONNECT, credentials, CONNACK.

use std::{net::SocketAddr, sync::Arc};

use bytes::BytesMut;
use gemba_shared::gate::{
    Connection, Grant,
    packet::{self, Connect, ConnectCode, Packet, ParseError},
};
use rustls::pki_types::CertificateDer;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    sync::mpsc,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{Authenticate, Counters, Credentials, Denied, Place, Shared, Socket, client::Client};
use crate::delivery::Delivery;

/// A CONNECT is short; before it a client is owed little memory.
const CONNECT_BYTES_MAX: usize = 16 * 1_024;
const CONNECT_FIRST_BYTE: u8 = 0x10;
const READ_BYTES: usize = 1_024;
/// CONNACK of MQTT 5: unsupported protocol version, no properties.
const UNSUPPORTED_VERSION_5: [u8; 5] = [0x20, 3, 0, 0x84, 0];

/// Serves one client from its first byte to its last.
pub(super) async fn greet(
    shared: Arc<Shared>,
    socket: Socket,
    authenticate: Authenticate,
    deliveries: mpsc::Sender<Delivery>,
    cancel: CancellationToken,
) {
    let Socket { stream, peer, tls, place } = socket;
    // A socket that cannot be set up is found out by its first read.
    stream.set_nodelay(true).ok();
    let guest = Guest { shared, place, authenticate, deliveries, peer };
    let Some(tls) = tls else {
        return guest.serve(stream, None, cancel).await;
    };
    let accepted = tokio::select! {
        () = cancel.cancelled() => return,
        accepted = timeout(guest.shared.limits.connect_timeout, tls.accept(stream)) => accepted,
    };
    match accepted {
        Ok(Ok(stream)) => {
            let certificates = stream.get_ref().1.peer_certificates();
            let certificate = certificates.and_then(|chain| chain.first()).map(|first| first.clone().into_owned());
            guest.serve(stream, certificate, cancel).await;
        }
        Ok(Err(error)) => {
            Counters::add(&guest.shared.counters.tls_failed, 1);
            tracing::debug!(%peer, %error, "TLS failed");
        }
        Err(_) => Counters::add(&guest.shared.counters.connect_timeout, 1),
    }
}

/// A peer that is not yet a client.
struct Guest {
    shared: Arc<Shared>,
    place: Place,
    authenticate: Authenticate,
    deliveries: mpsc::Sender<Delivery>,
    peer: SocketAddr,
}

impl Guest {
    async fn serve<S>(self, mut stream: S, certificate: Option<CertificateDer<'static>>, cancel: CancellationToken)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        let mut buffer = BytesMut::new();
        let admitted = tokio::select! {
            () = cancel.cancelled() => return,
            admitted = self.admit(&mut stream, &mut buffer, certificate) => admitted,
        };
        let Some((connect, grant)) = admitted else { return };
        let Self { shared, place, deliveries, .. } = self;
        let claimed = shared.registry.claim(&grant.name, &connect.client_id, connect.clean_session).await;
        let Some((claim, kept)) = claimed else {
            Counters::add(&shared.counters.unavailable, 1);
            return refuse(&mut stream, ConnectCode::ServerUnavailable).await;
        };
        let client = Client::new(shared, claim, kept, *connect, grant, deliveries);
        client.run(stream, buffer, cancel).await;
        drop(place);
    }

    /// The client's CONNECT and what it may do; `None` where it was turned away.
    async fn admit<S>(
        &self,
        stream: &mut S,
        buffer: &mut BytesMut,
        certificate: Option<CertificateDer<'static>>,
    ) -> Option<(Box<Connect>, Arc<Grant>)>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let (counters, limits) = (&self.shared.counters, &self.shared.limits);
        let Ok(first) = timeout(limits.connect_timeout, first_packet(stream, buffer)).await else {
            Counters::add(&counters.connect_timeout, 1);
            return None;
        };
        let mut connect = match first {
            Ok(Some(Packet::Connect(connect))) => connect,
            Ok(None) => return None,
            Err(ParseError::Version(level)) => {
                Counters::add(&counters.unsupported_version, 1);
                tracing::debug!(peer = %self.peer, level, "client of another MQTT version");
                refuse_version(stream, level).await;
                return None;
            }
            Ok(Some(_)) | Err(_) => {
                Counters::add(&counters.protocol_error, 1);
                return None;
            }
        };
        if connect.client_id.is_empty() && !connect.clean_session {
            Counters::add(&counters.client_id_rejected, 1);
            refuse(stream, ConnectCode::IdentifierRejected).await;
            return None;
        }
        let credentials = Credentials {
            client_id: connect.client_id.clone(),
            username: connect.username.take(),
            password: connect.password.take(),
            certificate,
            peer: self.peer,
        };
        let checked = timeout(limits.connect_timeout, (self.authenticate)(credentials)).await;
        let grant = match checked.unwrap_or(Err(Denied::Unavailable)) {
            Ok(grant) => grant,
            Err(denied) => {
                self.deny(stream, &connect.client_id, denied).await;
                return None;
            }
        };
        if let Some(will) = &connect.will
            && !Connection::grants_will(&grant, &will.topic)
        {
            Counters::add(&counters.will_not_granted, 1);
            connect.will = None;
        }
        Some((connect, grant))
    }

    async fn deny<S: AsyncWrite + Unpin>(&self, stream: &mut S, client_id: &str, denied: Denied) {
        let counters = &self.shared.counters;
        let (counter, code) = match denied {
            Denied::BadCredentials => (&counters.bad_credentials, ConnectCode::BadCredentials),
            Denied::NotAuthorised => (&counters.not_authorised, ConnectCode::NotAuthorised),
            Denied::Unavailable => (&counters.unavailable, ConnectCode::ServerUnavailable),
        };
        Counters::add(counter, 1);
        tracing::debug!(peer = %self.peer, client_id, ?denied, "client denied");
        refuse(stream, code).await;
    }
}

async fn first_packet<S: AsyncRead + Unpin>(
    stream: &mut S,
    buffer: &mut BytesMut,
) -> Result<Option<Packet>, ParseError> {
    loop {
        // Another protocol is known by its first byte; it need not go on.
        if buffer.first().is_some_and(|first| *first != CONNECT_FIRST_BYTE) {
            return Err(ParseError::Malformed("another protocol"));
        }
        if let Some(packet) = packet::parse(buffer, CONNECT_BYTES_MAX)? {
            return Ok(Some(packet));
        }
        buffer.reserve(READ_BYTES);
        if !matches!(stream.read_buf(buffer).await, Ok(1..)) {
            return Ok(None);
        }
    }
}

async fn refuse<S: AsyncWrite + Unpin>(stream: &mut S, code: ConnectCode) {
    say(stream, &[0x20, 2, 0, code as u8]).await;
}

async fn refuse_version<S: AsyncWrite + Unpin>(stream: &mut S, level: u8) {
    if level == 5 {
        say(stream, &UNSUPPORTED_VERSION_5).await;
    } else {
        refuse(stream, ConnectCode::UnacceptableVersion).await;
    }
}

/// A last word; whether it arrives makes no difference.
async fn say<S: AsyncWrite + Unpin>(stream: &mut S, bytes: &[u8]) {
    let last_word = async {
        stream.write_all(bytes).await?;
        stream.shutdown().await
    };
    timeout(std::time::Duration::from_secs(5), last_word).await.ok();
}
