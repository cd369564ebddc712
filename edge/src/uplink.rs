//! Moves frames between the outbox and the cloud's broker; the rules are in [`session`](crate::session).
//!
//! Batches are signed at the moment of sending and published at `QoS` 0: only the cloud's receipt counts. Beside
//! them `Live` goes out each second and `Status` every 15 seconds, and both are dropped while the connection is
//! busy. Two kinds of silence are told apart: a cloud that is away, and one whose frames are not signed by the key
//! that was enrolled.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use gemba_mqtt::client::Backoff;
use gemba_shared::{
    frame::{self, FrameError},
    message::{Batch, Downlink, Lane, Live, LiveMachine, Receipt, Refused, Seq, Status, Uplink as Up},
    topic::{self, Channel},
};
use rumqttc::{AsyncClient, Event, EventLoop, MqttOptions, Packet, QoS, SubscribeReasonCode};
use tokio::{
    sync::{Notify, mpsc, watch},
    task::spawn_blocking,
    time::{Instant, MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

use crate::{
    clock::Clock,
    identity::Identity,
    outbox::{Outbox, OutboxError},
    session::{Answering, Held, Judged, Session, Settings, Wanted},
};

mod commands;
mod options;
mod state;

pub use commands::Order;
pub use options::options;
pub use state::{Link, UplinkState};

use commands::Commands;

/// Frames that wait for the connection.
const REQUESTS_MAX: usize = 64;
/// Frames from the cloud that wait for us.
const INCOMING_MAX: usize = 64;
const TICK_EVERY: Duration = Duration::from_millis(250);
const LIVE_EVERY: Duration = Duration::from_secs(1);
const STATUS_EVERY: Duration = Duration::from_secs(15);
/// The most machines in one `Live`; more go in several.
const LIVE_MACHINES_MAX: usize = 64;

/// What the uplink works with.
pub struct Uplink {
    pub identity: Arc<Identity>,
    pub options: MqttOptions,
    pub outbox: Arc<Mutex<Outbox>>,
    /// Something was appended to the outbox.
    pub appended: Arc<Notify>,
    pub clock: Arc<Clock>,
    pub live: watch::Receiver<Arc<Vec<LiveMachine>>>,
    pub orders: mpsc::Sender<Order>,
    /// Gathers a status.
    pub status: Arc<dyn Fn() -> Status + Send + Sync>,
    /// Where the highest command that was begun is kept.
    pub commands_file: PathBuf,
    pub state: Arc<UplinkState>,
}

impl std::fmt::Debug for Uplink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Uplink").field("identity", &self.identity).finish_non_exhaustive()
    }
}

enum Incoming {
    Connected,
    /// From now on the cloud's answers come.
    Subscribed,
    Frame(bytes::Bytes),
}

impl Uplink {
    /// Delivers until `cancel`.
    pub async fn run(self, cancel: CancellationToken) {
        let epoch = self.outbox.lock().unwrap_or_else(PoisonError::into_inner).epoch();
        let mut session = Session::new(Settings::default(), epoch);
        let mut commands = Commands::load(self.commands_file.clone(), self.orders.clone());
        let mut backoff = Backoff::default();
        while !cancel.is_cancelled() {
            let (client, events) = AsyncClient::new(self.options.clone(), REQUESTS_MAX);
            let (arrived, incoming) = mpsc::channel(INCOMING_MAX);
            let mut connection = Connection {
                uplink: &self,
                client,
                session: &mut session,
                commands: &mut commands,
                backoff: &mut backoff,
            };
            let ended = tokio::select! {
                () = cancel.cancelled() => break,
                ended = poll(events, arrived) => ended,
                ended = connection.drive(incoming) => ended,
            };
            session.disconnected();
            self.state.disconnected();
            let pause = backoff.pause_now();
            let pause_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
            tracing::warn!(error = ended, pause_ms, "connection to the cloud lost");
            tokio::select! {
                () = cancel.cancelled() => break,
                () = tokio::time::sleep(pause) => {}
            }
        }
        self.state.disconnected();
    }

    /// Does something with the outbox off the runtime.
    async fn outbox<T: Send + 'static>(&self, work: impl FnOnce(&mut Outbox) -> T + Send + 'static) -> Option<T> {
        let outbox = Arc::clone(&self.outbox);
        spawn_blocking(move || work(&mut outbox.lock().unwrap_or_else(PoisonError::into_inner))).await.ok()
    }
}

/// Moves what comes; answers why it ended.
async fn poll(mut events: EventLoop, arrived: mpsc::Sender<Incoming>) -> String {
    loop {
        let incoming = match events.poll().await {
            Ok(Event::Incoming(Packet::ConnAck(_))) => Incoming::Connected,
            Ok(Event::Incoming(Packet::SubAck(answer))) => {
                if answer.return_codes.contains(&SubscribeReasonCode::Failure) {
                    return "the cloud's broker does not let this gateway listen".to_owned();
                }
                Incoming::Subscribed
            }
            Ok(Event::Incoming(Packet::Publish(publish))) => Incoming::Frame(publish.payload),
            Ok(_) => continue,
            Err(error) => return error.to_string(),
        };
        if arrived.send(incoming).await.is_err() {
            return "stopped".to_owned();
        }
    }
}

struct Connection<'a> {
    uplink: &'a Uplink,
    client: AsyncClient,
    session: &'a mut Session,
    commands: &'a mut Commands,
    backoff: &'a mut Backoff,
}

impl Connection<'_> {
    /// Answers why it ended.
    async fn drive(&mut self, mut incoming: mpsc::Receiver<Incoming>) -> String {
        let (mut tick, mut live, mut status) = (interval(TICK_EVERY), interval(LIVE_EVERY), interval(STATUS_EVERY));
        for timer in [&mut tick, &mut live, &mut status] {
            timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        }
        loop {
            tokio::select! {
                frame = incoming.recv() => match frame {
                    None => return "stopped".to_owned(),
                    Some(Incoming::Connected) => {
                        let down = topic::down(self.uplink.identity.gateway);
                        if let Err(error) = self.client.try_subscribe(down, QoS::AtLeastOnce) {
                            return error.to_string();
                        }
                    }
                    Some(Incoming::Subscribed) => {
                        self.connected();
                        status.reset_immediately();
                    }
                    Some(Incoming::Frame(frame)) => self.receive(&frame).await,
                },
                () = self.uplink.appended.notified() => {}
                _ = tick.tick() => self.session.tick(self.mono_us()),
                _ = live.tick() => self.send_live(),
                _ = status.tick() => self.send_status().await,
                result = self.commands.finished() => {
                    let result = self.commands.result(result, self.uplink.clock.now());
                    self.send(Channel::Status, &Up::CommandResult(result));
                    while let Some(result) = self.commands.next(self.uplink.clock.now()).await {
                        self.send(Channel::Status, &Up::CommandResult(result));
                    }
                }
            }
            self.pump().await;
            self.uplink.state.session(self.session.answering(), self.session.resends());
        }
    }

    fn mono_us(&self) -> i64 {
        self.uplink.clock.now().mono_us
    }

    fn connected(&mut self) {
        self.backoff.connected(Instant::now());
        self.session.connected(self.mono_us());
        self.uplink.state.connected();
        tracing::info!(gateway = %self.uplink.identity.gateway, "connected to the cloud");
    }

    /// Sends what the session wants, as long as the connection takes it.
    async fn pump(&mut self) {
        loop {
            let held = self.uplink.outbox(|outbox| {
                let held = |lane| Held { oldest: outbox.oldest(lane), next: outbox.next(lane) };
                [held(Lane::Events), held(Lane::Summaries)]
            });
            let Some([events, summaries]) = held.await else { return };
            let held = |lane| if lane == Lane::Events { events } else { summaries };
            // Until the time is known, one record goes ahead: the receipt for it tells the time, and the others are put right.
            if !self.uplink.clock.is_right() && self.session.answering() != Answering::Idle {
                return;
            }
            let Some(wanted) = self.session.next(held) else { return };
            let oldest = held(wanted.lane).oldest;
            match self.read(wanted, oldest).await {
                Ok(Some((last, frame))) => {
                    let bytes = frame.len();
                    let up = topic::up(self.uplink.identity.gateway, Channel::Lane(wanted.lane));
                    if self.client.try_publish(up, QoS::AtMostOnce, false, frame).is_err() {
                        return;
                    }
                    self.session.sent(wanted.lane, last, bytes, self.mono_us());
                    self.uplink.state.sent();
                }
                // It was dropped in between for want of room: the outbox stands elsewhere now.
                Ok(None) => {}
                Err(error) => {
                    self.uplink.state.outbox_failed(&error);
                    return;
                }
            }
        }
    }

    /// A signed batch, and the number of its last record.
    async fn read(&self, wanted: Wanted, oldest: u64) -> anyhow::Result<Option<(u64, Vec<u8>)>> {
        let identity = Arc::clone(&self.uplink.identity);
        let clock = Arc::clone(&self.uplink.clock);
        let Wanted { lane, from, records_max, bytes_max } = wanted;
        let records_max = if clock.is_right() { records_max } else { 1 };
        let work = move |outbox: &mut Outbox| -> anyhow::Result<_> {
            let mut records = outbox.read(lane, from, records_max, bytes_max)?;
            for record in &mut records {
                clock.correct(record);
            }
            if records.is_empty() {
                return Ok(None);
            }
            let last = from + records.len() as u64 - 1;
            let seq = Seq { epoch: outbox.epoch(), lane, number: from };
            let batch = Up::Batch(Batch { seq, oldest, records });
            Ok(Some((last, frame::seal(&batch, identity.gateway, &identity.key)?)))
        };
        self.uplink.outbox(work).await.unwrap_or(Ok(None))
    }

    async fn receive(&mut self, payload: &[u8]) {
        let identity = &self.uplink.identity;
        match frame::open::<Downlink>(payload, identity.gateway, &identity.cloud_key) {
            Ok(Downlink::Receipt(receipt)) => self.receipt(receipt).await,
            Ok(Downlink::Refused(refused)) => self.refused(refused).await,
            Ok(Downlink::Command(command)) => {
                if let Some(result) = self.commands.take(command, self.uplink.clock.now()).await {
                    self.send(Channel::Status, &Up::CommandResult(result));
                }
            }
            Ok(Downlink::Desired(_)) => {
                tracing::info!("the cloud wants another configuration: not known to this version");
            }
            Err(FrameError::Signature) => self.uplink.state.foreign(),
            Err(error) => self.uplink.state.refused_frame(error),
        }
    }

    async fn receipt(&mut self, receipt: Receipt) {
        let Some(next) = self.uplink.outbox(move |outbox| outbox.next(receipt.lane)).await else { return };
        let mono_us = self.mono_us();
        let judged = self.session.receipt(&receipt, next, mono_us);
        self.uplink.state.receipt(judged, mono_us);
        let Judged::Release(through) = judged else { return };
        // An old receipt that somebody sends again releases nothing.
        self.uplink.clock.hear(receipt.now);
        let released = move |outbox: &mut Outbox| outbox.release(receipt.epoch, receipt.lane, through);
        if let Some(Err(error)) = self.uplink.outbox(released).await {
            self.uplink.state.outbox_failed(&error.into());
        }
    }

    async fn refused(&mut self, refused: Refused) {
        let Refused { seq, reason } = refused;
        tracing::warn!(lane = seq.lane.as_str(), number = seq.number, reason, "the cloud refused a record for good");
        let work = move |outbox: &mut Outbox| -> Result<(), OutboxError> {
            let known =
                seq.epoch == outbox.epoch() && (outbox.oldest(seq.lane)..outbox.next(seq.lane)).contains(&seq.number);
            if known { outbox.refuse(seq, &reason) } else { Ok(()) }
        };
        if let Some(Err(error)) = self.uplink.outbox(work).await {
            self.uplink.state.outbox_failed(&error.into());
        }
        self.uplink.state.record_refused();
    }

    /// Publishes what may be lost.
    fn send(&self, channel: Channel, message: &Up) {
        let identity = &self.uplink.identity;
        let Ok(frame) = frame::seal(message, identity.gateway, &identity.key) else { return };
        let up = topic::up(identity.gateway, channel);
        if self.client.try_publish(up, QoS::AtMostOnce, false, frame).is_err() {
            self.uplink.state.dropped();
        }
    }

    fn send_live(&mut self) {
        if self.uplink.state.link() == Link::Away {
            return;
        }
        let machines = Arc::clone(&self.uplink.live.borrow());
        let now = self.uplink.clock.now();
        for machines in machines.chunks(LIVE_MACHINES_MAX) {
            self.send(Channel::Live, &Up::Live(Live { at: now.wall, clock: now.told(), machines: machines.to_vec() }));
        }
    }

    async fn send_status(&self) {
        if self.uplink.state.link() == Link::Away {
            return;
        }
        let status = Arc::clone(&self.uplink.status);
        if let Ok(status) = spawn_blocking(move || status()).await {
            self.send(Channel::Status, &Up::Status(status));
        }
    }
}

/// Whether receipts come, for [`UplinkState`].
const fn is_answered(answering: Answering) -> bool {
    !matches!(answering, Answering::No)
}
