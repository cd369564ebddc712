//! One accepted client: moves bytes between it, the rules, the ingest and the broker.

use std::{collections::VecDeque, io, pin::Pin, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use gemba_shared::gate::{
    Connection, Grant, Limits as ConnectionLimits, Output,
    connection::{End, Received},
    packet::{self, Connect, Packet, Will},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf},
    sync::mpsc,
    time::{Instant, Sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    Counters, Shared,
    backend::{Backend, next_ping},
    chunk::Chunk,
    registry::{Claim, Kept},
};
use crate::delivery::{Delivery, Progress, Publish};

mod farewell;

/// Replies that wait to be written: above this neither the client nor the broker is read.
const REPLY_BYTES_MAX: usize = 64 * 1_024;
/// For the last delivery of a client that is gone.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(5);
/// How often the timer looks whether anything is due.
const TICK: Duration = Duration::from_secs(1);

/// Why a client's connection is over, beside what the rules say.
#[derive(Debug)]
enum Over {
    Rules(End),
    /// The client closed it, or the network did.
    Closed,
    KeepAlive,
    Replaced,
    Cancelled,
    /// The ingest is gone.
    IngestClosed,
    DeliveryLost,
    Broker(io::Error),
}

enum Happened {
    Wrote,
    Read(usize),
    Safe(u64),
    /// The delivery that waited is on its way.
    Room,
    /// The broker sent something.
    Broker,
    Tick,
    Over(Over),
}

impl From<End> for Over {
    fn from(end: End) -> Self {
        Self::Rules(end)
    }
}

pub(super) struct Client {
    shared: Arc<Shared>,
    claim: Claim,
    connection: Connection,
    deliveries: mpsc::Sender<Delivery>,
    name: Arc<str>,
    clean_session: bool,
    keep_alive: Duration,
    will: Option<Will>,
    progress: Arc<Progress>,
    safe_through: u64,
    out: Output,
    /// A delivery that the ingest had no room for yet.
    waiting: Option<Delivery>,
    /// Through which message, and how many bytes: what is delivered and not safe.
    unsafe_bytes: VecDeque<(u64, usize)>,
    unsafe_bytes_sum: usize,
    backend: Option<Backend>,
    slot: Option<u32>,
}

impl Client {
    pub(super) fn new(
        shared: Arc<Shared>,
        claim: Claim,
        kept: Kept,
        connect: Connect,
        grant: Arc<Grant>,
        deliveries: mpsc::Sender<Delivery>,
    ) -> Self {
        let Kept { session, progress, slot } = kept;
        let limits = ConnectionLimits {
            packet_bytes_max: shared.limits.packet_bytes_max,
            topic_bytes_max: shared.limits.topic_bytes_max,
            unacknowledged_max: shared.limits.unacknowledged_max,
            subscriptions_max: shared.limits.subscriptions_max,
        };
        let keep_alive = match connect.keep_alive_s {
            0 => shared.limits.silence_max,
            seconds => Duration::from_millis(u64::from(seconds) * 1_500),
        };
        let safe_through = progress.safe_through();
        Self {
            name: grant.name.clone(),
            connection: Connection::new(grant, limits, session, safe_through),
            claim,
            deliveries,
            clean_session: connect.clean_session,
            keep_alive,
            will: connect.will,
            progress,
            safe_through,
            out: Output::default(),
            waiting: None,
            unsafe_bytes: VecDeque::new(),
            unsafe_bytes_sum: 0,
            backend: None,
            slot,
            shared,
        }
    }

    /// Serves the client until it or the gate ends the connection. `buffer` is what came behind its CONNECT.
    pub(super) async fn run<S>(mut self, stream: S, buffer: BytesMut, cancel: CancellationToken)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        let over = match self.welcome().await {
            Ok(()) => self.serve(stream, buffer, cancel).await,
            Err(over) => over,
        };
        self.count(&over);
        self.farewell(over).await;
    }

    /// The CONNACK, after the broker has the client's session back, and what the broker sent with it.
    async fn welcome(&mut self) -> Result<(), Over> {
        if self.connection.session().subscriptions().next().is_some() {
            self.open_backend(false).await.map_err(Over::Broker)?;
        }
        Packet::ConnAck { session_present: self.claim.present, code: 0 }.write(&mut self.out.reply);
        self.serve_broker().await
    }

    async fn open_backend(&mut self, fresh: bool) -> io::Result<()> {
        let registry = &self.shared.registry;
        let slot = *self.slot.get_or_insert_with(|| registry.take_slot());
        let id = format!("client{slot}");
        if fresh && !self.clean_session {
            // Whoever had this slot before may have left a session in it.
            let wiped = Backend::open(&self.shared.broker, &id, true).await?.close().await;
            if !wiped {
                return Err(io::Error::other("the broker did not let go of a session"));
            }
        }
        let backend = Backend::open(&self.shared.broker, &id, self.clean_session).await?;
        if !fresh && !backend.session_present {
            return Err(io::Error::other("the broker lost a session"));
        }
        self.backend = Some(backend);
        Ok(())
    }

    async fn serve<S>(&mut self, stream: S, mut buffer: BytesMut, cancel: CancellationToken) -> Over
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        let (mut read, mut write) = tokio::io::split(stream);
        let over = match self.work_off(&mut buffer).await {
            Ok(()) => self.exchange(&mut read, &mut write, &mut buffer, &cancel).await,
            Err(over) => over,
        };
        // What was said so far (a SUBACK, answers) still goes out, if the client takes it at once.
        if !self.out.reply.is_empty() {
            let last_words = write.write_all(&self.out.reply);
            timeout(Duration::from_millis(200), last_words).await.ok();
        }
        timeout(Duration::from_millis(200), write.shutdown()).await.ok();
        over
    }

    async fn exchange<S>(
        &mut self,
        read: &mut ReadHalf<S>,
        write: &mut WriteHalf<S>,
        buffer: &mut BytesMut,
        cancel: &CancellationToken,
    ) -> Over
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        let mut chunk = Chunk::default();
        let mut heard_at = Instant::now();
        let mut packet_at = heard_at;
        let mut tick = Box::pin(sleep_until(heard_at + TICK));
        loop {
            let may_read = self.may_read();
            if may_read {
                chunk.make_room(buffer, self.shared.limits.packet_bytes_max);
            }
            let result = match self.next(read, write, buffer, cancel, tick.as_mut()).await {
                Happened::Over(over) => return over,
                Happened::Wrote => Ok(()),
                Happened::Read(count) => {
                    chunk.learn(count);
                    heard_at = Instant::now();
                    let length = buffer.len();
                    let result = self.work_off(buffer).await;
                    if buffer.len() < length {
                        packet_at = heard_at;
                    }
                    result
                }
                Happened::Safe(through) => self.now_safe(through, buffer).await,
                Happened::Room => self.work_off(buffer).await,
                Happened::Broker => self.serve_broker().await,
                Happened::Tick => {
                    let now = Instant::now();
                    tick.as_mut().reset(now + TICK);
                    if !may_read {
                        // It is we who do not listen.
                        (heard_at, packet_at) = (now, now);
                    }
                    let stuck = !buffer.is_empty() && now > packet_at + self.shared.limits.packet_timeout;
                    if stuck || now > heard_at + self.keep_alive {
                        return Over::KeepAlive;
                    }
                    self.ping_backend(now).await
                }
            };
            if let Err(over) = result {
                return over;
            }
        }
    }

    /// Waits for the next thing to happen; nothing but buffers changes here.
    async fn next<S>(
        &mut self,
        read: &mut ReadHalf<S>,
        write: &mut WriteHalf<S>,
        buffer: &mut BytesMut,
        cancel: &CancellationToken,
        tick: Pin<&mut Sleep>,
    ) -> Happened
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        let may_read = self.may_read();
        let backend_on = self.backend.is_some() && self.out.reply.len() < REPLY_BYTES_MAX;
        let something_unsafe = self.connection.unacknowledged() > 0;
        tokio::select! {
            () = cancel.cancelled() => Happened::Over(Over::Cancelled),
            () = self.claim.kick.cancelled() => Happened::Over(Over::Replaced),
            written = write.write_buf(&mut self.out.reply), if !self.out.reply.is_empty() => match written {
                Ok(0) | Err(_) => Happened::Over(Over::Closed),
                Ok(_) => Happened::Wrote,
            },
            count = read.read_buf(buffer), if may_read => match count {
                Ok(0) | Err(_) => Happened::Over(Over::Closed),
                Ok(count) => Happened::Read(count),
            },
            through = self.progress.beyond(self.safe_through), if something_unsafe => Happened::Safe(through),
            permit = self.deliveries.reserve(), if self.waiting.is_some() => match (permit, self.waiting.take()) {
                (Ok(permit), Some(delivery)) => {
                    permit.send(delivery);
                    Happened::Room
                }
                _ => Happened::Over(Over::IngestClosed),
            },
            result = from_backend(self.backend.as_mut()), if backend_on => match result {
                Ok(()) => Happened::Broker,
                Err(error) => Happened::Over(Over::Broker(error)),
            },
            () = tick => Happened::Tick,
        }
    }

    fn may_read(&self) -> bool {
        self.waiting.is_none()
            && self.out.reply.len() < REPLY_BYTES_MAX
            && self.unsafe_bytes_sum < self.shared.limits.unacknowledged_bytes_max
            && !self.connection.is_full()
    }

    /// Has the rules look at the client's bytes and does what they decide, as far as there is room.
    async fn work_off(&mut self, buffer: &mut BytesMut) -> Result<(), Over> {
        while self.waiting.is_none() {
            let received = self.connection.receive(buffer, &self.shared.registry.interest(), &mut self.out);
            self.act().await?;
            if received? == Received::All || self.connection.is_full() {
                break;
            }
        }
        Ok(())
    }

    async fn now_safe(&mut self, through: u64, buffer: &mut BytesMut) -> Result<(), Over> {
        if self.progress.is_lost() {
            return Err(Over::DeliveryLost);
        }
        self.safe_through = through;
        while let Some(&(last, bytes)) = self.unsafe_bytes.front()
            && last <= through
        {
            self.unsafe_bytes.pop_front();
            self.unsafe_bytes_sum -= bytes;
        }
        let was_full = self.connection.is_full();
        self.connection.safe(through, &mut self.out);
        if was_full && !buffer.is_empty() { self.work_off(buffer).await } else { Ok(()) }
    }

    async fn serve_broker(&mut self) -> Result<(), Over> {
        let Some(backend) = &mut self.backend else { return Ok(()) };
        self.connection.receive_from_broker(&mut backend.buffer, &mut self.out)?;
        self.act().await
    }

    /// Carries out what the rules decided; replies are left to be written.
    async fn act(&mut self) -> Result<(), Over> {
        let tally = std::mem::take(&mut self.out.tally);
        self.shared.counters.take(tally);
        if let Some(topic) = self.out.not_granted.take() {
            self.shared.refusals.tell(&self.name, &topic, tally.not_granted, Instant::now());
        }
        if !self.out.subscribed.is_empty() || !self.out.unsubscribed.is_empty() {
            let mut interest = self.shared.registry.interest_mut();
            self.out.subscribed.drain(..).for_each(|filter| interest.add(&filter));
            self.out.unsubscribed.drain(..).for_each(|filter| interest.remove(&filter));
        }
        for publish in self.out.forward.drain(..) {
            // Copies: the broker keeps messages for long, and a slice would keep all that was read with it.
            let publish = packet::Publish {
                topic: Bytes::copy_from_slice(&publish.topic),
                payload: Bytes::copy_from_slice(&publish.payload),
                ..publish
            };
            let counters = &self.shared.counters;
            match self.shared.broker.publisher_ref().try_forward(publish) {
                Ok(()) => Counters::add(&counters.forwarded, 1),
                Err(_) => Counters::add(&counters.forward_dropped, 1),
            }
        }
        if !self.out.deliver.is_empty() {
            self.deliver()?;
        }
        if !self.out.broker.is_empty() {
            self.tell_broker().await.map_err(Over::Broker)?;
        }
        Ok(())
    }

    fn deliver(&mut self) -> Result<(), Over> {
        let messages = std::mem::take(&mut self.out.deliver);
        let bytes = messages.iter().map(|publish| publish.topic.len() + publish.payload.len()).sum();
        let messages = messages
            .into_iter()
            .map(|packet::Publish { dup, retain, topic, payload, .. }| Publish { topic, payload, retain, dup })
            .collect();
        let through = self.connection.session().messages();
        self.unsafe_bytes.push_back((through, bytes));
        self.unsafe_bytes_sum += bytes;
        let delivery = Delivery::new(self.name.clone(), messages, self.progress.clone(), through);
        match self.deliveries.try_send(delivery) {
            Ok(()) => Ok(()),
            Err(mpsc::error::TrySendError::Full(delivery)) => {
                self.waiting = Some(delivery);
                Ok(())
            }
            Err(mpsc::error::TrySendError::Closed(_)) => Err(Over::IngestClosed),
        }
    }

    async fn tell_broker(&mut self) -> io::Result<()> {
        if self.backend.is_none() {
            self.open_backend(true).await?;
        }
        let Some(backend) = &mut self.backend else { return Ok(()) };
        let write = backend.stream.write_all(&self.out.broker);
        timeout(FAREWELL_TIMEOUT, write).await??;
        self.out.broker.clear();
        Ok(())
    }

    async fn ping_backend(&mut self, now: Instant) -> Result<(), Over> {
        let Some(backend) = self.backend.as_mut().filter(|backend| now >= backend.ping_at) else { return Ok(()) };
        backend.ping_at = next_ping();
        Packet::PingReq.write(&mut self.out.broker);
        self.tell_broker().await.map_err(Over::Broker)
    }
}

async fn from_backend(backend: Option<&mut Backend>) -> io::Result<()> {
    match backend {
        Some(backend) => backend.read().await,
        None => std::future::pending().await,
    }
}
