//! What the uplink tells of itself.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use gemba_mqtt::client::Refusal;
use gemba_shared::frame::FrameError;

use super::Ended;
use crate::session::Answering;

/// How things stand between this gateway and the cloud.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// There is no connection to the cloud's broker.
    Away,
    /// The cloud's broker is there and does not let this gateway in.
    Denied,
    /// What is there in the place of the cloud's broker shows a certificate that is not to be trusted.
    ForeignCertificate,
    /// Connected; receipts come, or none is due.
    Connected,
    /// Connected, but no receipt comes.
    Unanswered,
    /// Connected, but what comes is not signed by the cloud that was enrolled.
    ForeignKey,
}

impl Link {
    pub const ALL: [Self; 6] =
        [Self::Away, Self::Denied, Self::ForeignCertificate, Self::Connected, Self::Unanswered, Self::ForeignKey];

    /// A fixed word, for metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Away => "away",
            Self::Denied => "denied",
            Self::ForeignCertificate => "foreign_certificate",
            Self::Connected => "connected",
            Self::Unanswered => "unanswered",
            Self::ForeignKey => "foreign_key",
        }
    }

    /// For people, with what to do.
    #[must_use]
    pub const fn describe(self) -> &'static str {
        match self {
            Self::Away => "away, trying again",
            Self::Denied => {
                "the broker does not let this gateway in: it was revoked, or enrolled anew elsewhere; enrol it again \
                 (gemba-edge enroll --force)"
            }
            Self::ForeignCertificate => {
                "the broker's certificate is not to be trusted: it is another broker, or it got a certificate of another \
                 authority (cloud.ca_file)"
            }
            Self::Connected => "connected",
            Self::Unanswered => {
                "connected, but no receipt comes: is the cloud running, and this gateway still enrolled there?"
            }
            Self::ForeignKey => {
                "connected, but what comes is not signed by the cloud that was enrolled; if the cloud was set up anew, \
                 enrol this gateway again (gemba-edge enroll --force)"
            }
        }
    }
}

/// Counters since the start, and the present state.
#[derive(Debug, Default)]
pub struct UplinkState {
    connected: AtomicBool,
    unanswered: AtomicBool,
    foreign: AtomicBool,
    refusal: Mutex<Option<Refusal>>,
    /// Attempts without a connection since the last one.
    failures: AtomicU64,
    connections: AtomicU64,
    batches: AtomicU64,
    /// Of all frames.
    bytes: AtomicU64,
    resends: AtomicU64,
    receipts: AtomicU64,
    last_receipt_us: AtomicI64,
    dropped: AtomicU64,
    records_refused: AtomicU64,
    epochs_renewed: AtomicU64,
    outbox_failures: AtomicU64,
    frames_refused: Mutex<BTreeMap<&'static str, u64>>,
}

impl UplinkState {
    #[must_use]
    pub fn link(&self) -> Link {
        if self.connected.load(Relaxed) {
            return match (self.foreign.load(Relaxed), self.unanswered.load(Relaxed)) {
                (true, _) => Link::ForeignKey,
                (false, true) => Link::Unanswered,
                (false, false) => Link::Connected,
            };
        }
        match *lock(&self.refusal) {
            None => Link::Away,
            Some(Refusal::Credentials) => Link::Denied,
            Some(Refusal::Certificate) => Link::ForeignCertificate,
        }
    }

    pub(super) fn is_connected(&self) -> bool {
        self.connected.load(Relaxed)
    }

    /// When the last receipt came, in microseconds of the monotonic clock.
    #[must_use]
    pub fn last_receipt_us(&self) -> Option<i64> {
        Some(self.last_receipt_us.load(Relaxed)).filter(|_| self.receipts.load(Relaxed) > 0)
    }

    /// Counters by name.
    #[must_use]
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("uplink_connections", self.connections.load(Relaxed)),
            ("uplink_batches", self.batches.load(Relaxed)),
            ("uplink_bytes", self.bytes.load(Relaxed)),
            ("uplink_resends", self.resends.load(Relaxed)),
            ("uplink_receipts", self.receipts.load(Relaxed)),
            ("uplink_dropped", self.dropped.load(Relaxed)),
            ("uplink_records_refused", self.records_refused.load(Relaxed)),
            ("uplink_epochs_renewed", self.epochs_renewed.load(Relaxed)),
            ("uplink_outbox_failures", self.outbox_failures.load(Relaxed)),
        ]
    }

    /// Frames from the cloud that were not taken, by reason.
    #[must_use]
    pub fn frames_refused(&self) -> Vec<(&'static str, u64)> {
        lock(&self.frames_refused).iter().map(|(reason, count)| (*reason, *count)).collect()
    }

    pub(super) fn connected(&self) {
        self.connected.store(true, Relaxed);
        self.connections.fetch_add(1, Relaxed);
        self.failures.store(0, Relaxed);
        *lock(&self.refusal) = None;
    }

    /// The log is told of the first failure after a connection, and of each new reason; the metrics of all.
    pub(super) fn disconnected(&self, ended: &Ended, pause: Duration) {
        self.connected.store(false, Relaxed);
        let first = self.failures.fetch_add(1, Relaxed) == 0;
        let news = std::mem::replace(&mut *lock(&self.refusal), ended.refusal) != ended.refusal;
        let (error, pause_ms) = (&ended.error, u64::try_from(pause.as_millis()).unwrap_or(u64::MAX));
        match ended.refusal {
            Some(Refusal::Credentials) if news => {
                tracing::error!(error, "the cloud's broker does not let this gateway in: {}", Link::Denied.describe());
            }
            Some(Refusal::Certificate) if news => {
                tracing::error!(error, "not the cloud's broker: {}", Link::ForeignCertificate.describe());
            }
            _ if first || news => {
                tracing::warn!(error, pause_ms, "no connection to the cloud; it is tried again, and records are kept");
            }
            _ => tracing::debug!(error, pause_ms, "still no connection to the cloud"),
        }
    }

    pub(super) fn stopped(&self) {
        self.connected.store(false, Relaxed);
    }

    pub(super) fn session(&self, answering: Answering, resends: u64) {
        let unanswered = !super::is_answered(answering);
        if unanswered && !self.unanswered.swap(unanswered, Relaxed) {
            tracing::warn!("no receipt comes from the cloud; records are kept and sent again");
        }
        self.unanswered.store(unanswered, Relaxed);
        self.resends.store(resends, Relaxed);
    }

    pub(super) fn sent(&self, bytes: usize) {
        self.batches.fetch_add(1, Relaxed);
        self.sent_beside(bytes);
    }

    pub(super) fn sent_beside(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Relaxed);
    }

    pub(super) fn dropped(&self) {
        self.dropped.fetch_add(1, Relaxed);
    }

    pub(super) fn record_refused(&self) {
        self.records_refused.fetch_add(1, Relaxed);
    }

    /// What came is signed by the cloud that was enrolled.
    pub(super) fn genuine(&self) {
        if self.foreign.swap(false, Relaxed) {
            tracing::info!("the cloud that was enrolled answers again");
        }
    }

    pub(super) fn receipt(&self, mono_us: i64) {
        self.receipts.fetch_add(1, Relaxed);
        self.last_receipt_us.store(mono_us, Relaxed);
    }

    pub(super) fn renewed(&self) {
        self.epochs_renewed.fetch_add(1, Relaxed);
        tracing::error!(
            "the cloud has other records of this outbox than this gateway: an old copy of its data directory was put back, or \
             two gateways use one identity; what is held here is sent anew, and nothing is lost"
        );
    }

    pub(super) fn outbox_failed(&self, error: &anyhow::Error) {
        if self.outbox_failures.fetch_add(1, Relaxed) == 0 {
            tracing::error!(error = format!("{error:#}"), "the outbox cannot be read");
        }
    }

    pub(super) fn foreign(&self) {
        if !self.foreign.swap(true, Relaxed) {
            tracing::error!(
                "the cloud that answers does not have the key that was enrolled: records are kept until it does; if the cloud \
                 was set up anew, enrol this gateway again (gemba-edge enroll --force)"
            );
        }
        self.refused_frame(FrameError::Signature);
    }

    pub(super) fn refused_frame(&self, error: FrameError) {
        let mut refusals = lock(&self.frames_refused);
        let count = refusals.entry(error.reason()).or_default();
        *count += 1;
        if *count == 1 && error != FrameError::Signature {
            tracing::warn!(reason = error.reason(), "frame from the cloud refused: {error}");
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
