//! From gateways' frames to rows, once each, and an answer for what is stored.
//!
//! ```text
//!  Delivery ─► open (whose is it? what is in it?) ─► write (one transaction for many batches) ─► Receipt, Refused
//!                └─► presence (live states, status, last seen: once a second)
//! ```
//!
//! A delivery is acknowledged when its batches are committed or settled otherwise; a receipt is sent after COMMIT only.
//! While the database is away nothing is taken from the queue, the queue is full, and the gate stops reading: what gateways
//! hold, they keep. A frame that cannot be authenticated gets no answer.

use std::sync::Arc;

use ed25519_dalek::SigningKey;
use gemba_mqtt::delivery::Delivery;
use gemba_shared::{
    frame,
    ids::GatewayId,
    message::{Batch, Catalogs, Downlink},
    topic,
};
use jiff::SignedDuration;
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Duration, Instant, timeout},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{live::Changes, metrics::Metrics, store::Store};

pub mod commands;
pub mod open;
pub mod presence;
pub mod write;

/// Frames and bytes that one transaction takes at most.
pub const GROUP_FRAMES_MAX: usize = 256;
pub const GROUP_BYTES_MAX: usize = 8 * 1_024 * 1_024;
/// Answers that wait for the broker.
pub const ANSWERS_MAX: usize = 4_096;
/// Groups between the two stages.
const GROUPS_MAX: usize = 2;
/// How long a stop waits for what is under way.
const DRAIN_MAX: Duration = Duration::from_secs(10);

/// The rules' figures.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// A gateway that was not heard for this long is offline.
    pub offline_after: SignedDuration,
    /// News older than this pages nobody.
    pub late_after: SignedDuration,
}

impl Default for Settings {
    fn default() -> Self {
        Self { offline_after: SignedDuration::from_secs(45), late_after: SignedDuration::from_mins(15) }
    }
}

/// A frame for a gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub gateway: GatewayId,
    pub topic: String,
    pub frame: Vec<u8>,
}

/// What a gateway signed with `key`.
#[derive(Debug, Clone)]
pub struct Incoming<T> {
    pub gateway: Uuid,
    pub key: [u8; 32],
    pub content: T,
}

/// What one transaction is to take.
#[derive(Debug, Default)]
pub struct Group {
    pub batches: Vec<Incoming<Batch>>,
    /// Catalogs that were asked for.
    pub catalogs: Vec<Incoming<Catalogs>>,
    /// Acknowledged when the batches are settled.
    pub deliveries: Vec<Delivery>,
}

/// What intake stands on.
pub struct Parts {
    pub store: Store,
    pub signing: SigningKey,
    pub changes: Changes,
    pub metrics: Arc<Metrics>,
    pub settings: Settings,
    /// Frames for gateways; the receiver hands them to the broker.
    pub answers: mpsc::Sender<Answer>,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Parts")
    }
}

/// The two stages and the presence of gateways.
pub struct Intake {
    pub(crate) parts: Parts,
}

impl std::fmt::Debug for Intake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Intake")
    }
}

impl Intake {
    #[must_use]
    pub fn new(parts: Parts) -> Arc<Self> {
        Arc::new(Self { parts })
    }

    /// Works until `cancel`, or until all senders of deliveries are gone; then finishes what is under way.
    pub async fn run(self: Arc<Self>, deliveries: mpsc::Receiver<Delivery>, cancel: CancellationToken) {
        let (groups, taken) = mpsc::channel(GROUPS_MAX);
        let presence = Arc::new(presence::Presence::default());
        let mut stages = JoinSet::new();
        stages.spawn(open::run(self.clone(), presence.clone(), deliveries, groups, cancel.clone()));
        stages.spawn(write::run(self.clone(), taken, cancel.clone()));
        let commands = tokio::spawn(commands::run(self.clone(), cancel.clone()));
        let watch = tokio::spawn(presence::run(self, presence, cancel.clone()));
        while let Some(ended) = stages.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "a stage of intake ended badly: the daemon must be restarted");
                cancel.cancel();
            }
            if cancel.is_cancelled()
                && timeout(DRAIN_MAX, async { while stages.join_next().await.is_some() {} }).await.is_err()
            {
                tracing::warn!("intake did not finish in time; gateways will send again what was under way");
                stages.shutdown().await;
            }
        }
        cancel.cancel();
        for task in [watch, commands] {
            if let Err(error) = task.await {
                tracing::error!(%error, "the watch over gateways ended badly");
            }
        }
    }

    /// Signs a message for a gateway and sends it on. It is dropped (and counted) when the broker is behind: the
    /// gateway asks again.
    pub(crate) fn answer(&self, gateway: Uuid, message: &Downlink) {
        let gateway = GatewayId::from_bytes(*gateway.as_bytes());
        let Ok(frame) = frame::seal(message, gateway, &self.parts.signing) else {
            self.parts.metrics.answers_dropped.inc();
            return;
        };
        let answer = Answer { gateway, topic: topic::down(gateway), frame };
        if self.parts.answers.try_send(answer).is_err() {
            self.parts.metrics.answers_dropped.inc();
        }
    }
}

/// Of one outage that goes on, the log tells this often.
const TELL_EVERY: Duration = Duration::from_mins(1);

/// Pauses between attempts at a database that is away: doubled up to a bound.
#[derive(Debug)]
pub(crate) struct Pause {
    next: Duration,
    told_at: Option<Instant>,
}

impl Default for Pause {
    fn default() -> Self {
        Self { next: Duration::from_millis(100), told_at: None }
    }
}

impl Pause {
    /// Whether the log is to be told of this attempt's failure.
    pub(crate) fn is_news(&mut self, now: Instant) -> bool {
        let news = self.told_at.is_none_or(|at| now.saturating_duration_since(at) >= TELL_EVERY);
        if news {
            self.told_at = Some(now);
        }
        news
    }

    /// Whether to try again; false when it is time to stop.
    pub(crate) async fn pass(&mut self, cancel: &CancellationToken) -> bool {
        let now = self.next;
        self.next = (now * 2).min(Duration::from_secs(5));
        tokio::select! {
            () = cancel.cancelled() => false,
            () = tokio::time::sleep(now) => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_is_told_at_once_and_then_once_a_minute() {
        let (mut pause, start) = (Pause::default(), Instant::now());
        let told = (0..150).filter(|second| pause.is_news(start + Duration::from_secs(*second))).collect::<Vec<_>>();
        assert_eq!(told, [0, 60, 120]);
    }
}
