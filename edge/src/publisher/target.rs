//! Where a publisher connects: a broker's address, and what it shows there.

use std::{fmt, io, path::Path, sync::Arc};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

const PORT: u16 = 1_883;
const TLS_PORT: u16 = 8_883;

/// A connection's two directions.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Sync + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Duplex for T {}
pub type Stream = Box<dyn Duplex>;

/// A broker, as the command line names it.
#[derive(Debug, Clone, clap::Args)]
pub struct TargetArgs {
    /// The broker: `mqtt://HOST[:PORT]`, or `mqtts://…` for TLS
    // An option for clap, which negates what is required where a subcommand takes the place of a broker.
    #[arg(long, value_name = "URL", required = true)]
    pub url: Option<String>,
    /// The device's user name
    #[arg(long)]
    pub username: Option<String>,
    /// A file with the device's password
    #[arg(long, value_name = "FILE", requires = "username")]
    pub password_file: Option<std::path::PathBuf>,
    /// The certificate (PEM) that the broker's certificate was issued by
    #[arg(long, value_name = "FILE")]
    pub ca_file: Option<std::path::PathBuf>,
}

/// A broker, and the identity shown to it.
#[derive(Clone)]
pub struct Target {
    host: String,
    port: u16,
    tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    pub username: Option<String>,
    pub password: Option<Bytes>,
}

impl Target {
    /// # Errors
    /// If the URL is none, or a file cannot be read.
    pub fn new(args: &TargetArgs) -> anyhow::Result<Self> {
        let url = args.url.as_deref().context("--url is needed")?;
        let (host, port, with_tls) = parse(url).with_context(|| format!("--url {}", without_secrets(url)))?;
        if args.ca_file.is_some() && !with_tls {
            bail!("--ca-file: it goes with mqtts:// only");
        }
        let tls = if with_tls {
            let Some(ca_file) = &args.ca_file else { bail!("--url mqtts://…: --ca-file is needed with it") };
            let name =
                ServerName::try_from(host.clone()).with_context(|| format!("--url: {host:?} is no host name"))?;
            Some((client_config(ca_file)?, name))
        } else {
            None
        };
        let password = args.password_file.as_deref().map(read_password).transpose()?;
        Ok(Self { host, port, tls, username: args.username.clone(), password })
    }

    /// Opens the connection, with TLS if so told.
    pub(super) async fn open(&self) -> io::Result<Stream> {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
        stream.set_nodelay(true)?;
        match &self.tls {
            None => Ok(Box::new(stream)),
            Some((config, name)) => {
                Ok(Box::new(TlsConnector::from(Arc::clone(config)).connect(name.clone(), stream).await?))
            }
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls.is_some() { "mqtts" } else { "mqtt" };
        write!(f, "{scheme}://{}:{}", self.host, self.port)
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Target({self})")
    }
}

fn parse(url: &str) -> anyhow::Result<(String, u16, bool)> {
    let (scheme, rest) = url.split_once("://").context("mqtt://HOST[:PORT] or mqtts://HOST[:PORT] is needed")?;
    let tls = match scheme {
        "mqtt" => false,
        "mqtts" => true,
        other => bail!("{other}://: mqtt:// or mqtts:// is needed"),
    };
    if rest.contains('@') {
        bail!("no user name or password in it: use --username and --password-file");
    }
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    // An IPv6 address stands in brackets.
    let (host, port) = match rest.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => {
            (host, port.parse().with_context(|| format!("the port {port:?} is no number up to 65535"))?)
        }
        _ => (rest, if tls { TLS_PORT } else { PORT }),
    };
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    if host.is_empty() || host.contains(['/', '?', '#']) {
        bail!("mqtt://HOST[:PORT] or mqtts://HOST[:PORT] is needed");
    }
    Ok((host.to_owned(), port, tls))
}

/// The URL without what somebody may have put before the '@'.
fn without_secrets(url: &str) -> String {
    match url.split_once('@') {
        Some((_, host)) => format!("…@{host}"),
        None => url.to_owned(),
    }
}

fn read_password(path: &Path) -> anyhow::Result<Bytes> {
    let text = std::fs::read_to_string(path).with_context(|| format!("--password-file {}", path.display()))?;
    Ok(Bytes::copy_from_slice(text.trim_end_matches(['\r', '\n']).as_bytes()))
}

fn client_config(ca_file: &Path) -> anyhow::Result<Arc<ClientConfig>> {
    let name = || format!("--ca-file {}", ca_file.display());
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca_file).with_context(name)? {
        roots.add(certificate.with_context(name)?).with_context(name)?;
    }
    if roots.is_empty() {
        bail!("{}: no certificate is in it", name());
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(url: &str, expected: Result<(&str, u16, bool), &str>) {
        match (parse(url), expected) {
            (Ok(found), Ok((host, port, tls))) => assert_eq!(found, (host.to_owned(), port, tls)),
            (Err(found), Err(expected)) => assert!(found.to_string().contains(expected), "{url}: {found}"),
            (found, expected) => panic!("{url}: {found:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn urls_name_a_broker_and_nothing_secret() {
        check("mqtt://localhost", Ok(("localhost", 1_883, false)));
        check("mqtt://10.0.0.1:2000/", Ok(("10.0.0.1", 2_000, false)));
        check("mqtts://[::1]:2000", Ok(("::1", 2_000, true)));
        check("mqtts://[::1]", Ok(("::1", 8_883, true)));
        check("localhost:1883", Err("mqtt://HOST[:PORT]"));
        check("http://x", Err("http://: mqtt:// or mqtts:// is needed"));
        check("mqtt://x:port", Err("the port \"port\""));
        check("mqtt://", Err("mqtt://HOST[:PORT]"));
        check("mqtt://me:secret@x", Err("--password-file"));
        assert_eq!(without_secrets("mqtt://me:secret@x"), "…@x");
    }
}
