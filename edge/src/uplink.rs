//! Moves frames between the outbox and the cloud's broker; the rules are in [`session`](crate::session).
//!
//! Batches are signed at the moment of sending and published at `QoS` 0: only the cloud's receipt counts. Beside
//! them `Live` goes out each second and `Status` every 15 seconds, and both are dropped while the connection is
//! busy or the link's allowance is used up. Silences are told apart ([`Link`]): a cloud that is away, one that does not let this
//! gateway in, one whose certificate or signature is not the enrolled cloud's, and one that does not answer.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use gemba_mqtt::client::{Backoff, Refusal};
use gemba_shared::{
    frame, lane,
    message::{Batch, Lane, Live, LiveMachine, Seq, Status, Uplink as Up},
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
    outbox::Outbox,
    session::{Answering, Held, Session, Settings, Wanted},
};

mod answers;
mod commands;
mod options;
mod state;

pub use commands::Order;
pub use options::options;
pub use state::{Link, UplinkState};

use commands::Commands;

/// Frames that wait for the connection.
const REQUESTS_MAX: usize = 256;
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
    /// To the line: commands for machines.
    pub orders: mpsc::Sender<Order>,
    /// To the daemon: commands for the gateway itself.
    pub daemon_orders: mpsc::Sender<Order>,
    /// What may be sent in the long run; `None` where bytes cost nothing.
    pub bytes_per_second_max: Option<u32>,
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
        let settings = Settings { bytes_per_second_max: self.bytes_per_second_max, ..Settings::default() };
        let mut session = Session::new(settings, epoch, self.clock.now().mono_us);
        let mut commands = Commands::load(self.commands_file.clone(), self.orders.clone(), self.daemon_orders.clone());
        let mut asked = answers::Asked::default();
        let mut backoff = Backoff::default();
        while !cancel.is_cancelled() {
            let (client, events) = AsyncClient::new(self.options.clone(), REQUESTS_MAX);
            let (arrived, incoming) = mpsc::channel(INCOMING_MAX);
            let mut connection = Connection {
                uplink: &self,
                client,
                session: &mut session,
                commands: &mut commands,
                asked: &mut asked,
                backoff: &mut backoff,
                tails: [None; 2],
            };
            let ended = tokio::select! {
                () = cancel.cancelled() => break,
                ended = poll(events, arrived) => ended,
                error = connection.drive(incoming) => Ended { refusal: None, error },
            };
            session.disconnected();
            let pause = backoff.pause_now();
            self.state.disconnected(&ended, pause);
            tokio::select! {
                () = cancel.cancelled() => break,
                () = tokio::time::sleep(pause) => {}
            }
        }
        self.state.stopped();
    }

    /// Does something with the outbox off the runtime.
    async fn outbox<T: Send + 'static>(&self, work: impl FnOnce(&mut Outbox) -> T + Send + 'static) -> Option<T> {
        let outbox = Arc::clone(&self.outbox);
        spawn_blocking(move || work(&mut outbox.lock().unwrap_or_else(PoisonError::into_inner))).await.ok()
    }
}

/// Why a connection is no more, or never was.
#[derive(Debug)]
struct Ended {
    /// The cloud's broker is there, and it or we do not want to talk.
    refusal: Option<Refusal>,
    error: String,
}

impl From<&str> for Ended {
    fn from(error: &str) -> Self {
        Self { refusal: None, error: error.to_owned() }
    }
}

/// Moves what comes; answers why it ended.
async fn poll(mut events: EventLoop, arrived: mpsc::Sender<Incoming>) -> Ended {
    loop {
        let incoming = match events.poll().await {
            Ok(Event::Incoming(Packet::ConnAck(_))) => Incoming::Connected,
            Ok(Event::Incoming(Packet::SubAck(answer))) => {
                if answer.return_codes.contains(&SubscribeReasonCode::Failure) {
                    return Ended {
                        refusal: Some(Refusal::Credentials),
                        error: "the cloud's broker does not let this gateway listen".to_owned(),
                    };
                }
                Incoming::Subscribed
            }
            Ok(Event::Incoming(Packet::Publish(publish))) => Incoming::Frame(publish.payload),
            Ok(_) => continue,
            Err(error) => return Ended { refusal: Refusal::of(&error), error: error.to_string() },
        };
        if arrived.send(incoming).await.is_err() {
            return "stopped".into();
        }
    }
}

struct Connection<'a> {
    uplink: &'a Uplink,
    client: AsyncClient,
    session: &'a mut Session,
    commands: &'a mut Commands,
    asked: &'a mut answers::Asked,
    backoff: &'a mut Backoff,
    /// The last record sent of each lane: its number and digest.
    tails: [Option<(u64, Option<u32>)>; 2],
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
                    let result = self.commands.result(result, self.uplink.clock.now()).await;
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
                (outbox.epoch(), [held(Lane::Events), held(Lane::Summaries)])
            });
            let Some((epoch, [events, summaries])) = held.await else { return };
            // What waited under the epoch before is delivered.
            if epoch != self.session.epoch() {
                self.session.renewed(epoch, self.mono_us());
                self.tails = [None; 2];
            }
            let held = |lane| if lane == Lane::Events { events } else { summaries };
            // Until the time is known, one record goes ahead: the receipt for it tells the time, and the others are put right.
            if !self.uplink.clock.is_right() && self.session.is_waiting() {
                return;
            }
            let Some(wanted) = self.session.next(held, self.mono_us()) else { return };
            let oldest = held(wanted.lane).oldest;
            match self.read(wanted, oldest).await {
                Ok(Some(Sealed { last, tail, frame })) => {
                    let bytes = frame.len();
                    let up = topic::up(self.uplink.identity.gateway, Channel::Lane(wanted.lane));
                    if self.client.try_publish(up, QoS::AtMostOnce, false, frame).is_err() {
                        return;
                    }
                    self.session.sent(wanted.lane, last, bytes, self.mono_us());
                    self.tails[index(wanted.lane)] = Some((last, tail));
                    self.uplink.state.sent(bytes);
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

    /// A signed batch.
    async fn read(&self, wanted: Wanted, oldest: u64) -> anyhow::Result<Option<Sealed>> {
        let identity = Arc::clone(&self.uplink.identity);
        let clock = Arc::clone(&self.uplink.clock);
        let Wanted { lane, from, records_max, bytes_max } = wanted;
        let records_max = if clock.is_right() { records_max } else { 1 };
        let sent = self.tails[index(lane)].filter(|(number, _)| number + 1 == from);
        let work = move |outbox: &mut Outbox| -> anyhow::Result<_> {
            let records = outbox.read(lane, from, records_max, bytes_max)?;
            let before = match sent {
                Some((_, digest)) => digest,
                None if from > oldest => outbox.read(lane, from - 1, 1, usize::MAX)?.first().and_then(lane::comparable),
                None => None,
            };
            Ok((outbox.epoch(), before, records))
        };
        let Some(read) = self.uplink.outbox(work).await else { return Ok(None) };
        let (epoch, before, mut records) = read?;
        // Not while the outbox is held: the line waits for it.
        let seal = move || -> anyhow::Result<_> {
            for record in &mut records {
                clock.correct(record);
            }
            let Some(tail) = records.last().map(lane::comparable) else { return Ok(None) };
            let last = from + records.len() as u64 - 1;
            let seq = Seq { epoch, lane, number: from };
            let batch = Up::Batch(Batch { seq, oldest, before, records });
            Ok(Some(Sealed { last, tail, frame: frame::seal(&batch, identity.gateway, &identity.key)? }))
        };
        spawn_blocking(seal).await.unwrap_or(Ok(None))
    }

    /// Publishes what may be lost.
    fn send(&mut self, channel: Channel, message: &Up) {
        let identity = &self.uplink.identity;
        let Ok(frame) = frame::seal(message, identity.gateway, &identity.key) else { return };
        let up = topic::up(identity.gateway, channel);
        let bytes = frame.len();
        if self.client.try_publish(up, QoS::AtMostOnce, false, frame).is_err() {
            self.uplink.state.dropped();
            return;
        }
        self.session.live_sent(bytes);
        self.uplink.state.sent_beside(bytes);
    }

    fn send_live(&mut self) {
        if !self.session.may_send_live(self.mono_us()) {
            return;
        }
        let machines = Arc::clone(&self.uplink.live.borrow());
        let now = self.uplink.clock.now();
        for machines in machines.chunks(LIVE_MACHINES_MAX) {
            self.send(Channel::Live, &Up::Live(Live { at: now.wall, clock: now.told(), machines: machines.to_vec() }));
        }
    }

    async fn send_status(&mut self) {
        if !self.uplink.state.is_connected() {
            return;
        }
        let status = Arc::clone(&self.uplink.status);
        if let Ok(status) = spawn_blocking(move || status()).await {
            self.send(Channel::Status, &Up::Status(status));
        }
    }
}

/// A batch that is ready to be published.
struct Sealed {
    last: u64,
    /// The digest of its last record.
    tail: Option<u32>,
    frame: Vec<u8>,
}

const fn index(lane: Lane) -> usize {
    match lane {
        Lane::Events => 0,
        Lane::Summaries => 1,
    }
}

/// Whether receipts come, for [`UplinkState`].
const fn is_answered(answering: Answering) -> bool {
    !matches!(answering, Answering::No)
}
