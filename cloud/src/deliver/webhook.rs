//! Calls a webhook: one connection, to an address that was checked, no redirects, and an end to everything.
//!
//! | limit | |
//! |---|---|
//! | from the look-up of the name to the end of the answer | [`ATTEMPT_MAX`] |
//! | to connect to one address, TLS included; of at most [`ADDRESSES_MAX`] | [`CONNECT_MAX`] |
//! | of the answer that is read | [`ANSWER_BYTES_MAX`] |

use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use gemba_mqtt::tls::{TlsError, Trust, client_config};
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, StatusCode, body::Bytes, body::Incoming, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use jiff::SignedDuration;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{net::TcpStream, task::JoinSet};
use tokio_rustls::TlsConnector;
use tokio_util::either::Either;
use url::{Host, Url};

use crate::notifications::{
    address::{self, Policy},
    retry::{Outcome, told},
};

/// How long one call may take.
pub const ATTEMPT_MAX: Duration = Duration::from_secs(15);
pub const CONNECT_MAX: Duration = Duration::from_secs(5);
pub const ADDRESSES_MAX: usize = 3;
/// Of a body; what is more is not read.
pub const ANSWER_BYTES_MAX: usize = 4 * 1_024;
/// For a line and the headers of an answer.
const HEAD_BYTES_MAX: usize = 16 * 1_024;

const AGENT: &str = concat!("gemba-cloud/", env!("CARGO_PKG_VERSION"));

/// Calls webhooks. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Caller {
    policy: Policy,
    /// `None`: nobody is there whose certificates could be believed.
    tls: Option<Arc<ClientConfig>>,
}

/// A call.
#[derive(Debug)]
pub struct Call<'a> {
    pub url: &'a str,
    /// `webhook-id`
    pub id: &'a str,
    /// `webhook-timestamp`, in seconds.
    pub at_s: i64,
    /// `webhook-signature`
    pub signature: &'a str,
    pub body: String,
}

type Stream = Either<TcpStream, tokio_rustls::client::TlsStream<TcpStream>>;

impl Caller {
    /// A system without authorities is none to fail for: only `https://` cannot be called then.
    ///
    /// # Errors
    /// If the file that `trust` names holds no certificate.
    pub fn new(policy: Policy, trust: &Trust) -> Result<Self, TlsError> {
        let tls = match (client_config(trust, None), trust) {
            (Ok(tls), _) => Some(tls),
            (Err(error), Trust::Only(_)) => return Err(error),
            (Err(error), Trust::System) => {
                tracing::warn!(%error, "no webhook with https:// can be called");
                None
            }
        };
        Ok(Self { policy, tls })
    }

    /// Makes a call.
    pub async fn call(&self, call: &Call<'_>) -> Outcome {
        let called = tokio::time::timeout(ATTEMPT_MAX, self.try_call(call)).await;
        called.unwrap_or_else(|_| failed(&format!("no answer within {} s", ATTEMPT_MAX.as_secs())))
    }

    async fn try_call(&self, call: &Call<'_>) -> Outcome {
        // It may have been set up under another rule than today's.
        let url = match address::parse(call.url, |_, _| true) {
            Ok(url) => url,
            Err(error) => return Outcome::Refused { status: None, error: format!("the URL {error}") },
        };
        let stream = match self.connect(&url).await {
            Ok(stream) => stream,
            Err(outcome) => return outcome,
        };
        let request = match request(&url, call) {
            Ok(request) => request,
            Err(error) => return Outcome::Refused { status: None, error: told(&error.to_string()) },
        };
        let mut builder = http1::Builder::new();
        builder.max_buf_size(HEAD_BYTES_MAX);
        let (mut sender, connection) = match builder.handshake(TokioIo::new(stream)).await {
            Ok(pair) => pair,
            Err(error) => return failed(&format!("no HTTP: {error}")),
        };
        // It ends with this call, whatever the other side does.
        let mut driver = JoinSet::new();
        driver.spawn(async move { drop(connection.await) });
        match sender.send_request(request).await {
            Ok(response) => judge(response).await,
            Err(error) => failed(&format!("no answer: {}", cause(&error))),
        }
    }

    /// Connects to the first address of the host's that may be connected to and answers.
    async fn connect(&self, url: &Url) -> Result<Stream, Outcome> {
        let refused = |error: String| Outcome::Refused { status: None, error };
        let port = url.port_or_known_default().unwrap_or(443);
        let host = url.host().ok_or_else(|| refused("the URL names no host".into()))?;
        let name = server_name(&host).ok_or_else(|| refused("the URL's host can be in no certificate".into()))?;
        let found =
            addresses(&host, port).await.map_err(|error| failed(&format!("the host was not found: {error}")))?;
        let mut why = "the host has no address".to_owned();
        let mut forbidden = None;
        let mut tried = false;
        for address in found.into_iter().take(ADDRESSES_MAX) {
            if let Err(error) = self.policy.check(address, is_local(address.ip())) {
                forbidden = Some(error.to_string());
                continue;
            }
            tried = true;
            let secure = (url.scheme() == "https").then(|| name.clone());
            match tokio::time::timeout(CONNECT_MAX, self.open(address, secure)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => why = format!("no connection: {error}"),
                Err(_) => why = format!("no connection within {} s", CONNECT_MAX.as_secs()),
            }
        }
        match forbidden {
            Some(error) if !tried => Err(refused(error)),
            _ => Err(failed(&why)),
        }
    }

    async fn open(&self, address: SocketAddr, secure: Option<ServerName<'static>>) -> io::Result<Stream> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        match secure {
            None => Ok(Either::Left(stream)),
            Some(name) => {
                let none = || io::Error::other("this system has no certificate authorities");
                let tls = TlsConnector::from(Arc::clone(self.tls.as_ref().ok_or_else(none)?));
                Ok(Either::Right(tls.connect(name, stream).await?))
            }
        }
    }
}

async fn addresses(host: &Host<&str>, port: u16) -> io::Result<Vec<SocketAddr>> {
    Ok(match host {
        Host::Ipv4(v4) => vec![SocketAddr::from((*v4, port))],
        Host::Ipv6(v6) => vec![SocketAddr::from((*v6, port))],
        Host::Domain(name) => tokio::net::lookup_host((*name, port)).await?.collect(),
    })
}

fn server_name(host: &Host<&str>) -> Option<ServerName<'static>> {
    match host {
        Host::Ipv4(v4) => Some(ServerName::IpAddress(IpAddr::V4(*v4).into())),
        Host::Ipv6(v6) => Some(ServerName::IpAddress(IpAddr::V6(*v6).into())),
        Host::Domain(name) => ServerName::try_from((*name).to_owned()).ok(),
    }
}

/// Whether it is an address of this machine: only then a socket can be bound to it.
fn is_local(ip: IpAddr) -> bool {
    UdpSocket::bind((ip, 0)).is_ok()
}

fn request(url: &Url, call: &Call<'_>) -> Result<Request<Full<Bytes>>, hyper::http::Error> {
    let target = match url.query() {
        Some(query) => format!("{}?{query}", url.path()),
        None => url.path().to_owned(),
    };
    let host = url.host_str().unwrap_or_default();
    let host = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
    Request::post(target)
        .header(header::HOST, host)
        .header(header::USER_AGENT, AGENT)
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::CONNECTION, "close")
        .header("webhook-id", call.id)
        .header("webhook-timestamp", call.at_s)
        .header("webhook-signature", call.signature)
        .body(Full::new(Bytes::from(call.body.clone())))
}

async fn judge(response: Response<Incoming>) -> Outcome {
    let code = response.status();
    let seconds =
        response.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse::<u32>().ok());
    let retry_after = seconds.map(|seconds| SignedDuration::from_secs(seconds.into()));
    if code == StatusCode::GONE {
        return Outcome::Gone;
    }
    let said = read(response.into_body()).await;
    let status = code.as_u16();
    match code {
        _ if code.is_success() => Outcome::Sent { status, reply: said },
        _ if code.is_redirection() => {
            Outcome::Failed { status: Some(status), error: format!("{code}: redirects are not followed"), retry_after }
        }
        _ => Outcome::Failed { status: Some(status), error: told(&format!("{code}: {said}")), retry_after },
    }
}

/// The beginning of a body.
async fn read(mut body: Incoming) -> String {
    let mut bytes = Vec::new();
    while let Some(Ok(frame)) = body.frame().await {
        if let Ok(data) = frame.into_data() {
            bytes.extend_from_slice(&data[..data.len().min(ANSWER_BYTES_MAX - bytes.len())]);
        }
        if bytes.len() >= ANSWER_BYTES_MAX {
            break;
        }
    }
    told(&String::from_utf8_lossy(&bytes))
}

fn failed(error: &str) -> Outcome {
    Outcome::Failed { status: None, error: told(error), retry_after: None }
}

fn cause(error: &hyper::Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}
