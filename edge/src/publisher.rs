//! The device's side of MQTT, for simulated plants and recordings: publishes readings, and knows which were
//! acknowledged.
//!
//! One [`Publisher`] is one connection of MQTT 3.1.1. At `QoS` 1 it keeps a window of messages in flight, and resends
//! what was not acknowledged, with DUP and in order, when it had to connect again. (A general client cannot tell
//! which message an answer belongs to; a reconciler must know.)
//!
//! Limits: [`WINDOW_MAX`] messages in flight; no subscriptions, no wills, `QoS` 0 and 1 only.

pub mod feed;
pub mod inflight;
pub mod report;
pub mod target;

use std::{
    io,
    time::{Duration, Instant},
};

use bytes::BytesMut;
use gemba_shared::{
    gate::packet::{self, Connect, Packet},
    telemetry::Timestamp,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf},
    sync::mpsc,
    time::{sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use feed::{Feed, Message};
use inflight::InFlight;
use report::Report;
use target::{Stream, Target};

/// The most messages in flight on one connection.
pub const WINDOW_MAX: usize = 10_000;

/// What a receiver of ours sends back: PUBACKs and PINGRESPs, no more.
const INCOMING_BYTES_MAX: usize = 1_024;
/// How much is written at once.
const WRITE_BYTES: usize = 32 * 1_024;
const KEEP_ALIVE: Duration = Duration::from_mins(1);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// With messages in flight, a receiver that says nothing for so long is gone.
const SILENCE_MAX: Duration = Duration::from_secs(30);
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// Reads the wall clock; the one place of the daemon that may.
pub type WallClock = fn() -> Timestamp;

/// Reads a duration as people write it: `90s`, `10m`, `1h30m`, `500ms`.
///
/// # Errors
/// If it is none, or negative.
pub fn duration(text: &str) -> Result<Duration, String> {
    let needed = || format!("{text:?} is no duration: 90s, 10m or 1h30m are");
    let duration: jiff::SignedDuration = text.parse().map_err(|_| needed())?;
    Duration::try_from(duration).map_err(|_| needed())
}

/// Why publishing ended.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    #[error("{address}: {error}")]
    Connect { address: String, error: io::Error },
    #[error("{address}: the broker refuses the connection: {reason}")]
    Refused { address: String, reason: &'static str },
    #[error("stopped")]
    Cancelled,
}

/// One connection's settings.
#[derive(Debug, Clone)]
pub struct Settings {
    pub client_id: String,
    /// 0 or 1.
    pub at_least_once: bool,
    /// Messages in flight, 1 to [`WINDOW_MAX`].
    pub window: usize,
    /// How long the first connection may take to succeed. Later ones are tried for ever.
    pub first_connect: Duration,
}

struct Link {
    reader: ReadHalf<Stream>,
    writer: WriteHalf<Stream>,
}

/// A connection that publishes a [`Feed`].
pub struct Publisher {
    target: Target,
    settings: Settings,
    feed: Feed,
    cancel: CancellationToken,
    link: Option<Link>,
    outgoing: BytesMut,
    incoming: BytesMut,
    in_flight: InFlight,
    ledger: Option<mpsc::Sender<Vec<Message>>>,
    acknowledged: Vec<Message>,
    last_written: Instant,
    last_heard: Instant,
    report: Report,
}

impl std::fmt::Debug for Publisher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Publisher").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Publisher {
    /// Connects. What is acknowledged goes to `ledger` in the order of acknowledgement.
    ///
    /// # Errors
    /// If the broker cannot be reached in time, or refuses.
    pub async fn connect(
        target: Target,
        settings: Settings,
        feed: Feed,
        ledger: Option<mpsc::Sender<Vec<Message>>>,
        cancel: CancellationToken,
    ) -> Result<Self, PublishError> {
        let now = Instant::now();
        let window = settings.window.clamp(1, WINDOW_MAX);
        let in_flight = InFlight::new(window);
        let mut publisher = Self {
            target,
            settings,
            feed,
            cancel,
            link: None,
            outgoing: BytesMut::with_capacity(2 * WRITE_BYTES),
            incoming: BytesMut::with_capacity(4 * INCOMING_BYTES_MAX),
            in_flight,
            ledger,
            acknowledged: Vec::new(),
            last_written: now,
            last_heard: now,
            report: Report::default(),
        };
        publisher.reconnect(Some(now + publisher.settings.first_connect)).await?;
        Ok(publisher)
    }

    /// Publishes one message; waits while the window is full. It may stay in a buffer until [`Self::flush`].
    ///
    /// # Errors
    /// If it is cancelled, or the broker refuses this client when it connects again.
    pub async fn publish(&mut self, message: Message) -> Result<(), PublishError> {
        if self.settings.at_least_once {
            while self.in_flight.is_full() {
                self.exchange().await?;
            }
            let id = self.in_flight.push(message, Instant::now());
            self.feed.write(&message, Some(id), false, &mut self.outgoing);
        } else {
            self.feed.write(&message, None, false, &mut self.outgoing);
        }
        self.report.sent += 1;
        while self.outgoing.len() >= WRITE_BYTES {
            self.exchange().await?;
        }
        Ok(())
    }

    /// Writes what is in the buffer.
    ///
    /// # Errors
    /// As [`Self::publish`].
    pub async fn flush(&mut self) -> Result<(), PublishError> {
        while !self.outgoing.is_empty() {
            self.exchange().await?;
        }
        Ok(())
    }

    /// Flushes, and reads acknowledgements until `deadline`.
    ///
    /// # Errors
    /// As [`Self::publish`].
    pub async fn idle_until(&mut self, deadline: Instant) -> Result<(), PublishError> {
        self.flush().await?;
        while Instant::now() < deadline {
            if self.in_flight.is_empty() && self.last_written.elapsed() > KEEP_ALIVE / 3 {
                Packet::PingReq.write(&mut self.outgoing);
                self.flush().await?;
            }
            let wake = deadline.min(Instant::now() + KEEP_ALIVE / 3);
            tokio::select! {
                progress = self.exchange() => progress?,
                () = sleep_until(wake.into()) => {}
            }
        }
        Ok(())
    }

    /// Flushes and waits until everything is acknowledged.
    ///
    /// # Errors
    /// As [`Self::publish`].
    pub async fn settle(&mut self) -> Result<(), PublishError> {
        self.flush().await?;
        while !self.in_flight.is_empty() {
            self.exchange().await?;
        }
        Ok(())
    }

    /// Says goodbye, waits up to `patience` for what is in flight even if cancelled, and gives the figures.
    pub async fn close(mut self, patience: Duration) -> Report {
        // The last words are not subject to the cancellation that led to them.
        self.cancel = CancellationToken::new();
        if timeout(patience, self.settle()).await.is_err() {
            warn!(unacknowledged = self.in_flight.len(), "closed before everything was acknowledged");
        }
        self.report.unacknowledged += self.in_flight.len() as u64;
        Packet::Disconnect.write(&mut self.outgoing);
        if let Some(mut link) = self.link.take() {
            let goodbye = async {
                link.writer.write_all(&self.outgoing).await?;
                link.writer.shutdown().await
            };
            if !matches!(timeout(CONNECT_TIMEOUT, goodbye).await, Ok(Ok(()))) {
                warn!("the connection was cut before the goodbye");
            }
        }
        self.hand_to_ledger().await;
        self.report
    }

    /// Writes or reads once, whichever is possible first; connects again if that fails.
    async fn exchange(&mut self) -> Result<(), PublishError> {
        let Some(link) = &mut self.link else {
            return self.reconnect(None).await;
        };
        let silence = (self.last_heard.max(self.last_written) + SILENCE_MAX).into();
        let done = tokio::select! {
            biased;
            () = self.cancel.cancelled() => return Err(PublishError::Cancelled),
            read = link.reader.read_buf(&mut self.incoming) => match read {
                Ok(0) => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
                Ok(_) => {
                    self.last_heard = Instant::now();
                    self.take_answers()
                }
                Err(error) => Err(error),
            },
            written = link.writer.write_buf(&mut self.outgoing), if !self.outgoing.is_empty() => {
                self.last_written = Instant::now();
                written.map(|_| ())
            }
            () = sleep_until(silence), if !self.in_flight.is_empty() => Err(io::Error::from(io::ErrorKind::TimedOut)),
        };
        if let Err(error) = done {
            warn!(%error, client = %self.settings.client_id, "connection lost");
            self.link = None;
            self.report.reconnects += 1;
            return self.reconnect(None).await;
        }
        if self.acknowledged.len() >= self.settings.window.min(1_000) || self.in_flight.is_empty() {
            self.hand_to_ledger().await;
        }
        Ok(())
    }

    fn take_answers(&mut self) -> io::Result<()> {
        let invalid = |message: String| io::Error::new(io::ErrorKind::InvalidData, message);
        let now = Instant::now();
        while let Some(answer) =
            packet::parse(&mut self.incoming, INCOMING_BYTES_MAX).map_err(|error| invalid(error.to_string()))?
        {
            match answer {
                Packet::PubAck(id) => {
                    let settled = self.in_flight.acknowledge(id, |message, sent| {
                        self.report.acknowledged += 1;
                        self.report.latency.record(now.duration_since(sent));
                        if self.ledger.is_some() {
                            self.acknowledged.push(message);
                        }
                    });
                    if !settled {
                        return Err(invalid(format!("PUBACK {id} answers nothing")));
                    }
                }
                Packet::PingResp => {}
                other => return Err(invalid(format!("{other:?} was not asked for"))),
            }
        }
        Ok(())
    }

    async fn hand_to_ledger(&mut self) {
        let Some(ledger) = self.ledger.as_ref().filter(|_| !self.acknowledged.is_empty()) else { return };
        // Reserved first: this may be dropped while it waits.
        if let Ok(place) = ledger.reserve().await {
            place.send(std::mem::take(&mut self.acknowledged));
        } else {
            warn!("the ledger is not written any more");
            self.ledger = None;
            self.acknowledged.clear();
        }
    }

    /// Connects, with backoff, and queues what is in flight again. `until` bounds the first connection.
    async fn reconnect(&mut self, until: Option<Instant>) -> Result<(), PublishError> {
        let mut backoff = BACKOFF_MIN;
        loop {
            let attempt = timeout(CONNECT_TIMEOUT, self.connect_once());
            let attempt = tokio::select! {
                () = self.cancel.cancelled() => return Err(PublishError::Cancelled),
                attempt = attempt => attempt.unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into())),
            };
            match attempt {
                Ok(link) => {
                    self.link = Some(link);
                    self.last_heard = Instant::now();
                    self.last_written = self.last_heard;
                    self.requeue();
                    return Ok(());
                }
                Err(ConnectFailed::Refused(reason)) => {
                    return Err(PublishError::Refused { address: self.target.to_string(), reason });
                }
                Err(ConnectFailed::Io(error)) => {
                    if until.is_some_and(|until| Instant::now() >= until) {
                        return Err(PublishError::Connect { address: self.target.to_string(), error });
                    }
                }
            }
            // Full jitter, so that many connections do not come back at once.
            let pause = backoff.mul_f64(rand::random::<f64>());
            tokio::select! {
                () = self.cancel.cancelled() => return Err(PublishError::Cancelled),
                () = sleep(pause) => {}
            }
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }

    /// What was in flight is sent again before anything new. Without acknowledgements, what was in the buffer is lost.
    fn requeue(&mut self) {
        if self.report.reconnects > 0 {
            info!(client = %self.settings.client_id, resent = self.in_flight.len(), "connected again");
        }
        self.incoming.clear();
        self.outgoing.clear();
        for (id, message) in self.in_flight.unanswered() {
            self.feed.write(&message, Some(id), true, &mut self.outgoing);
            self.report.resent += 1;
        }
    }

    async fn connect_once(&self) -> Result<Link, ConnectFailed> {
        let (mut reader, mut writer) = tokio::io::split(self.target.open().await?);
        let mut buffer = BytesMut::new();
        Packet::Connect(Box::new(Connect {
            // The session holds what was received at QoS 1 and not yet passed on.
            clean_session: !self.settings.at_least_once,
            keep_alive_s: u16::try_from(KEEP_ALIVE.as_secs()).unwrap_or(u16::MAX),
            client_id: self.settings.client_id.clone(),
            will: None,
            username: self.target.username.clone(),
            password: self.target.password.clone(),
        }))
        .write(&mut buffer);
        writer.write_all(&buffer).await?;
        buffer.clear();
        loop {
            let answer = packet::parse(&mut buffer, INCOMING_BYTES_MAX)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            match answer {
                Some(Packet::ConnAck { code: 0, .. }) => return Ok(Link { reader, writer }),
                Some(Packet::ConnAck { code: 2, .. }) => {
                    return Err(ConnectFailed::Refused("client identifier rejected"));
                }
                Some(Packet::ConnAck { code: 4, .. }) => {
                    return Err(ConnectFailed::Refused("wrong user name or password"));
                }
                Some(Packet::ConnAck { code: 5, .. }) => return Err(ConnectFailed::Refused("not authorised")),
                Some(_) => return Err(io::Error::from(io::ErrorKind::ConnectionRefused).into()),
                None => {
                    if reader.read_buf(&mut buffer).await? == 0 {
                        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
                    }
                }
            }
        }
    }
}

enum ConnectFailed {
    Io(io::Error),
    Refused(&'static str),
}

impl From<io::Error> for ConnectFailed {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

#[cfg(test)]
pub(crate) mod tests;
