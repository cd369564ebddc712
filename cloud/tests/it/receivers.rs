//! Who is called and written to in tests: a web server that can misbehave, and a mail server that takes nothing but what RFC 5321 has.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, AsyncWrite, AsyncWriteExt as _, BufStream},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;

/// How a web server answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manner {
    Answer(u16),
    /// With a body of megabytes.
    Flood,
    RetryAfter(u32),
    /// To `/elsewhere`.
    Redirect,
    Stall,
}

#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

impl Call {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers[name].to_str().unwrap()
    }
}

/// A web server that notes its calls.
#[derive(Debug, Clone)]
pub(crate) struct Receiver {
    pub(crate) address: SocketAddr,
    manner: Arc<Mutex<Manner>>,
    calls: Arc<Mutex<Vec<Call>>>,
}

impl Receiver {
    pub(crate) async fn start(manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let receiver = Self {
            address: listener.local_addr().unwrap(),
            manner: Arc::new(Mutex::new(manner)),
            calls: Arc::default(),
        };
        let app = Router::new().fallback(called).with_state(receiver.clone());
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        receiver
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/hook?key=1", self.address)
    }

    pub(crate) fn behave(&self, manner: Manner) {
        *self.manner.lock().unwrap() = manner;
    }

    pub(crate) fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap().clone()
    }
}

async fn called(State(receiver): State<Receiver>, request: axum::extract::Request) -> Response {
    let path = request.uri().to_string();
    let headers = request.headers().clone();
    let bytes = axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap();
    let body = String::from_utf8(bytes.to_vec()).unwrap();
    receiver.calls.lock().unwrap().push(Call { path, headers, body });
    let manner = *receiver.manner.lock().unwrap();
    match manner {
        Manner::Answer(status) => (StatusCode::from_u16(status).unwrap(), "said\r\nso").into_response(),
        Manner::Flood => (StatusCode::INTERNAL_SERVER_ERROR, "x".repeat(8 << 20)).into_response(),
        Manner::RetryAfter(seconds) => {
            (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, seconds.to_string())]).into_response()
        }
        Manner::Redirect => (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, "/elsewhere")]).into_response(),
        Manner::Stall => {
            tokio::time::sleep(Duration::from_hours(1)).await;
            StatusCode::OK.into_response()
        }
    }
}

/// A port that takes connections and closes them.
pub(crate) async fn closing() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { while listener.accept().await.is_ok() {} });
    address
}

/// A message that a mail server took.
#[derive(Debug, Clone)]
pub(crate) struct Mail {
    pub(crate) from: String,
    pub(crate) to: Vec<String>,
    /// The user's name and password.
    pub(crate) login: Option<(String, String)>,
    pub(crate) secure: bool,
    /// As it came, without the stuffed dots.
    pub(crate) text: String,
}

impl Mail {
    /// A header's value, unfolded.
    pub(crate) fn header(&self, name: &str) -> Option<String> {
        let head = self.text.split("\r\n\r\n").next().unwrap().replace("\r\n ", " ").replace("\r\n\t", " ");
        head.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(": ")?.to_owned()))
    }
}

/// A mail server; `rcpt` is its answer to every recipient.
#[derive(Clone)]
pub(crate) struct MailServer {
    pub(crate) address: SocketAddr,
    rcpt: Arc<Mutex<String>>,
    mails: Arc<Mutex<Vec<Mail>>>,
    /// What clients did that RFC 5321 does not have.
    faults: Arc<Mutex<Vec<String>>>,
    tls: Option<TlsAcceptor>,
}

#[derive(Default)]
struct Session {
    hello: bool,
    secure: bool,
    login: Option<(String, String)>,
    from: Option<String>,
    to: Vec<String>,
}

impl MailServer {
    /// With TLS it wants STARTTLS and a login before it takes mail.
    pub(crate) async fn start(tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Self {
            address: listener.local_addr().unwrap(),
            rcpt: Arc::new(Mutex::new("250 2.1.5 good".into())),
            mails: Arc::default(),
            faults: Arc::default(),
            tls,
        };
        let accepting = server.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let server = accepting.clone();
                tokio::spawn(async move {
                    let mut stream = BufStream::new(stream);
                    server.say(&mut stream, "220 mail.test ESMTP").await;
                    let mut session = Session::default();
                    if server.talk(&mut stream, &mut session).await {
                        let tls = server.tls.clone().unwrap();
                        let secure = tls.accept(stream.into_inner()).await.unwrap();
                        let mut session = Session { secure: true, ..Session::default() };
                        server.talk(&mut BufStream::new(secure), &mut session).await;
                    }
                });
            }
        });
        server
    }

    pub(crate) fn answer_recipients(&self, reply: &str) {
        reply.clone_into(&mut self.rcpt.lock().unwrap());
    }

    pub(crate) fn mails(&self) -> Vec<Mail> {
        assert!(self.faults.lock().unwrap().is_empty(), "{:?}", self.faults.lock().unwrap());
        self.mails.lock().unwrap().clone()
    }

    /// Until the client has gone, or (true) wants TLS.
    async fn talk<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: &mut BufStream<S>, session: &mut Session) -> bool {
        loop {
            let Some(line) = self.line(stream).await else { return false };
            let upper = line.to_uppercase();
            let reply = if upper.starts_with("EHLO ") {
                session.hello = true;
                match (&self.tls, session.secure) {
                    (Some(_), false) => "250-mail.test\r\n250 STARTTLS".to_owned(),
                    (Some(_), true) => "250-mail.test\r\n250-8BITMIME\r\n250 AUTH PLAIN".to_owned(),
                    (None, _) => "250-mail.test\r\n250 8BITMIME".to_owned(),
                }
            } else if upper == "STARTTLS" && self.tls.is_some() && !session.secure {
                self.say(stream, "220 go").await;
                return true;
            } else if let Some(plain) = line.strip_prefix("AUTH PLAIN ").filter(|_| session.secure) {
                session.login = login(plain);
                if session.login.is_some() { "235 welcome" } else { "535 no" }.to_owned()
            } else if upper.starts_with("MAIL FROM:<") && session.hello && session.from.is_none() {
                if self.tls.is_some() && session.login.is_none() {
                    "530 log in first".to_owned()
                } else {
                    session.from = Some(path(&line));
                    "250 2.1.0 good".to_owned()
                }
            } else if upper.starts_with("RCPT TO:<") && session.from.is_some() {
                let reply = self.rcpt.lock().unwrap().clone();
                if reply.starts_with('2') {
                    session.to.push(path(&line));
                }
                reply
            } else if upper == "DATA" && !session.to.is_empty() {
                self.say(stream, "354 go on").await;
                let Some(text) = self.data(stream).await else { return false };
                self.mails.lock().unwrap().push(Mail {
                    from: session.from.take().unwrap(),
                    to: std::mem::take(&mut session.to),
                    login: session.login.clone(),
                    secure: session.secure,
                    text,
                });
                "250 2.0.0 taken".to_owned()
            } else if upper == "RSET" {
                (session.from, session.to) = (None, Vec::new());
                "250 ok".to_owned()
            } else if upper == "NOOP" {
                "250 ok".to_owned()
            } else if upper == "QUIT" {
                self.say(stream, "221 bye").await;
                return false;
            } else {
                self.faults.lock().unwrap().push(format!("{line:?} out of turn"));
                "503 not now".to_owned()
            };
            self.say(stream, &reply).await;
        }
    }

    async fn say<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: &mut BufStream<S>, reply: &str) {
        stream.write_all(format!("{reply}\r\n").as_bytes()).await.ok();
        stream.flush().await.ok();
    }

    async fn line<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: &mut BufStream<S>) -> Option<String> {
        let mut bytes = Vec::new();
        if stream.read_until(b'\n', &mut bytes).await.ok()? == 0 {
            return None;
        }
        let fault =
            |text: &str| self.faults.lock().unwrap().push(format!("{text}: {:?}", String::from_utf8_lossy(&bytes)));
        if !bytes.ends_with(b"\r\n") {
            fault("a line without CRLF");
        }
        if bytes.len() > 1_000 || bytes[..bytes.len() - 2].iter().any(|byte| matches!(byte, b'\r' | 0)) {
            fault("a line that is too long, or with CR or NUL in it");
        }
        Some(String::from_utf8(bytes).unwrap().trim_end_matches(['\r', '\n']).to_owned())
    }

    async fn data<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: &mut BufStream<S>) -> Option<String> {
        let mut text = String::new();
        loop {
            let line = self.line(stream).await?;
            if line == "." {
                return Some(text);
            }
            text.push_str(line.strip_prefix('.').unwrap_or(&line));
            text.push_str("\r\n");
        }
    }
}

fn path(line: &str) -> String {
    line.split(['<', '>']).nth(1).unwrap().to_owned()
}

fn login(plain: &str) -> Option<(String, String)> {
    let text = String::from_utf8(BASE64_STANDARD.decode(plain).ok()?).ok()?;
    let mut parts = text.split('\0').skip(1);
    Some((parts.next()?.to_owned(), parts.next()?.to_owned()))
}
