//! Messages from an external broker, answered when they are safe.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use rumqttc::{AsyncClient, Event, EventLoop, MqttOptions, Packet, QoS, SubscribeFilter, SubscribeReasonCode};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::Backoff;
use crate::delivery::{Delivery, Progress, Publish};

/// Requests (answers, as a rule) that wait for the event loop: more than MQTT has packet identifiers, so that
/// giving an answer never has to wait for the loop, which may be waiting for the deliveries.
const REQUESTS_MAX: usize = 66_000;
/// Messages that were delivered and not yet answered; the broker's own window is smaller, as a rule.
const UNANSWERED_MAX: usize = 4_096;
/// What is held while nobody takes deliveries: messages, and their bytes. Within these the connection is served,
/// and the broker gets its pings; beyond them it is not read any more.
const HELD_MAX: usize = 4_096;
const HELD_BYTES_MAX: u32 = 4 << 20;

/// What a subscriber counts.
#[derive(Debug, Default)]
pub struct ClientCounters {
    /// There is a connection, and the broker has taken the subscriptions.
    pub connected: AtomicBool,
    pub connections: AtomicU64,
    pub messages: AtomicU64,
    /// Subscriptions that the broker refused.
    pub refused: AtomicU64,
}

/// Subscribes to the filters at `QoS` 1 and hands on what comes, until `cancel` or until nobody takes deliveries.
///
/// A message is answered when its delivery was acknowledged, in the order of arrival, and on the connection that
/// brought it. After any error a new event loop is built, after a pause; the broker then sends again what was
/// not answered. Subscribes at the first connection and whenever the broker has no session. While nobody takes
/// deliveries, what comes is held within bounds, so that the broker still hears from us; beyond them the connection
/// is not served, and a broker that loses patience is connected to again.
pub async fn subscribe(
    mut options: MqttOptions,
    filters: Vec<String>,
    deliveries: mpsc::Sender<Delivery>,
    counters: Arc<ClientCounters>,
    cancel: CancellationToken,
) {
    options.set_manual_acks(true);
    let mut backoff = Backoff::default();
    let mut first = true;
    while !cancel.is_cancelled() && !deliveries.is_closed() {
        let (client, events) = AsyncClient::new(options.clone(), REQUESTS_MAX);
        let mut link = Link { client, events, counters: &counters, progress: Arc::default(), count: 0 };
        let ended = tokio::select! {
            () = cancel.cancelled() => break,
            ended = link.run(&filters, &deliveries, &mut first, &mut backoff) => ended,
        };
        counters.connected.store(false, Ordering::Relaxed);
        let pause = backoff.pause_now();
        let (broker, port) = options.broker_address();
        let pause_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
        tracing::warn!(broker, port, error = ended, pause_ms, "connection to the broker lost");
        tokio::select! {
            () = cancel.cancelled() => break,
            () = deliveries.closed() => break,
            () = tokio::time::sleep(pause) => {}
        }
    }
    counters.connected.store(false, Ordering::Relaxed);
}

/// One connection.
struct Link<'a> {
    client: AsyncClient,
    events: EventLoop,
    counters: &'a ClientCounters,
    progress: Arc<Progress>,
    count: u64,
}

impl Link<'_> {
    /// Why it ended.
    async fn run(
        &mut self,
        filters: &[String],
        deliveries: &mpsc::Sender<Delivery>,
        first: &mut bool,
        backoff: &mut Backoff,
    ) -> String {
        let (unanswered, answering) = mpsc::channel(UNANSWERED_MAX);
        let answers = answer(self.client.clone(), self.progress.clone(), answering);
        let (hold, held) = mpsc::channel(HELD_MAX);
        let receiving = self.receive(filters, first, backoff, unanswered, &hold);
        tokio::select! {
            () = answers => "a message was not taken: it will come again".into(),
            () = hand_on(held, deliveries) => "nobody takes deliveries any more".into(),
            error = receiving => error,
        }
    }

    async fn receive(
        &mut self,
        filters: &[String],
        first: &mut bool,
        backoff: &mut Backoff,
        unanswered: mpsc::Sender<(u64, rumqttc::Publish)>,
        hold: &mpsc::Sender<Held>,
    ) -> String {
        let room = Arc::new(Semaphore::new(HELD_BYTES_MAX as usize));
        loop {
            let publish = match self.events.poll().await {
                Err(error) => return error.to_string(),
                Ok(Event::Incoming(Packet::Publish(publish))) => publish,
                Ok(Event::Incoming(Packet::ConnAck(ack))) => {
                    backoff.connected(Instant::now());
                    if let Err(error) = self.connected(ack.session_present, filters, first) {
                        return error;
                    }
                    continue;
                }
                Ok(Event::Incoming(Packet::SubAck(ack))) => {
                    let refused = ack.return_codes.iter().filter(|code| **code == SubscribeReasonCode::Failure);
                    let refused = refused.count() as u64;
                    if refused > 0 {
                        self.counters.refused.fetch_add(refused, Ordering::Relaxed);
                        tracing::error!(refused, ?filters, "broker refuses subscriptions: check its access rules");
                    } else {
                        self.counters.connected.store(true, Ordering::Relaxed);
                    }
                    continue;
                }
                Ok(_) => continue,
            };
            // The messages that came with it make one delivery.
            let mut batch = vec![publish];
            let events = &mut self.events.state.events;
            while let Some(Event::Incoming(Packet::Publish(_))) = events.front() {
                if let Some(Event::Incoming(Packet::Publish(publish))) = events.pop_front() {
                    batch.push(publish);
                }
            }
            let bytes: usize = batch.iter().map(|publish| publish.topic.len() + publish.payload.len()).sum();
            let bytes = u32::try_from(bytes).unwrap_or(u32::MAX).min(HELD_BYTES_MAX);
            let Ok(place) = Arc::clone(&room).acquire_many_owned(bytes).await else { return "it ends".into() };
            let Some(delivery) = self.delivery(batch, &unanswered).await else {
                return "nobody answers any more".into();
            };
            if hold.send(Held { delivery, _place: place }).await.is_err() {
                return "nobody takes deliveries any more".into();
            }
        }
    }

    fn connected(&self, session_present: bool, filters: &[String], first: &mut bool) -> Result<(), String> {
        self.counters.connections.fetch_add(1, Ordering::Relaxed);
        // A session has its subscriptions, but at our start the filters may be others than they were.
        if !session_present || *first {
            let filters = filters.iter().map(|filter| SubscribeFilter::new(filter.clone(), QoS::AtLeastOnce));
            self.client.try_subscribe_many(filters).map_err(|error| error.to_string())?;
        } else {
            self.counters.connected.store(true, Ordering::Relaxed);
        }
        *first = false;
        tracing::info!(session_present, "connected to the broker");
        Ok(())
    }

    /// `None` where nobody would answer.
    async fn delivery(
        &mut self,
        batch: Vec<rumqttc::Publish>,
        unanswered: &mpsc::Sender<(u64, rumqttc::Publish)>,
    ) -> Option<Delivery> {
        let mut messages = Vec::with_capacity(batch.len());
        for mut publish in batch {
            self.count += 1;
            messages.push(Publish {
                topic: Bytes::from(std::mem::take(&mut publish.topic)),
                payload: std::mem::take(&mut publish.payload),
                retain: publish.retain,
                dup: publish.dup,
            });
            if publish.qos != QoS::AtMostOnce {
                unanswered.send((self.count, publish)).await.ok()?;
            }
        }
        self.counters.messages.fetch_add(messages.len() as u64, Ordering::Relaxed);
        Some(Delivery::new(Arc::from(""), messages, self.progress.clone(), self.count))
    }
}

/// A delivery that waits to be taken, and its share of the bytes that may.
struct Held {
    delivery: Delivery,
    _place: OwnedSemaphorePermit,
}

/// Ends when nobody takes deliveries any more.
async fn hand_on(mut held: mpsc::Receiver<Held>, deliveries: &mpsc::Sender<Delivery>) {
    while let Some(Held { delivery, _place }) = held.recv().await {
        if deliveries.send(delivery).await.is_err() {
            return;
        }
    }
}

/// Answers in the order of arrival; ends when a delivery was lost or the event loop is gone.
async fn answer(client: AsyncClient, progress: Arc<Progress>, mut unanswered: mpsc::Receiver<(u64, rumqttc::Publish)>) {
    let mut waiting = VecDeque::new();
    let mut safe_through = 0;
    loop {
        tokio::select! {
            Some(publish) = unanswered.recv(), if waiting.len() < UNANSWERED_MAX => waiting.push_back(publish),
            through = progress.beyond(safe_through) => {
                if progress.is_lost() {
                    return;
                }
                safe_through = through;
            }
            else => return,
        }
        while let Some((number, publish)) = waiting.front()
            && *number <= safe_through
        {
            if client.ack(publish).await.is_err() {
                return;
            }
            waiting.pop_front();
        }
    }
}
