//! TLS to a PostgreSQL of one's own, with our rustls: `sslmode=require` in `database_url`.
//!
//! Unlike libpq's, it checks the server's certificate and name: against the system's authorities, or those of
//! `database_ca_file`. Without `sslmode=require` nothing is encrypted, which is what a socket on this machine wants.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use gemba_mqtt::tls::{Trust, client_config};
use rustls::{
    ClientConfig,
    pki_types::{InvalidDnsNameError, ServerName},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::{
    Config, Socket,
    config::SslMode,
    tls::{ChannelBinding, MakeTlsConnect, TlsConnect},
};

/// How connections are made.
#[derive(Clone)]
pub(super) struct Tls(Option<Arc<ClientConfig>>);

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Tls").field(&self.0.is_some()).finish()
    }
}

impl Tls {
    /// What `config` asks for; whom it believes is `trust`. Where it asks for nothing, nothing is tried.
    ///
    /// # Errors
    /// If there are no authorities that could be believed.
    pub(super) fn of(config: &mut Config, trust: &Trust) -> anyhow::Result<Self> {
        if config.get_ssl_mode() == SslMode::Require {
            return Ok(Self(Some(client_config(trust, None)?)));
        }
        config.ssl_mode(SslMode::Disable);
        Ok(Self(None))
    }
}

impl MakeTlsConnect<Socket> for Tls {
    type Stream = Stream;
    type TlsConnect = Connect;
    type Error = InvalidDnsNameError;

    fn make_tls_connect(&mut self, host: &str) -> Result<Connect, Self::Error> {
        let to = match &self.0 {
            Some(config) => Some((Arc::clone(config), ServerName::try_from(host)?.to_owned())),
            None => None,
        };
        Ok(Connect(to))
    }
}

/// One handshake to be made.
pub(super) struct Connect(Option<(Arc<ClientConfig>, ServerName<'static>)>);

impl TlsConnect<Socket> for Connect {
    type Stream = Stream;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Stream>> + Send>>;

    fn connect(self, socket: Socket) -> Self::Future {
        Box::pin(async move {
            let (config, name) = self.0.ok_or_else(|| io::Error::other("no TLS is configured"))?;
            tokio_rustls::TlsConnector::from(config).connect(name, socket).await.map(Stream)
        })
    }
}

/// An encrypted connection.
pub(super) struct Stream(tokio_rustls::client::TlsStream<Socket>);

impl tokio_postgres::tls::TlsStream for Stream {
    fn channel_binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
