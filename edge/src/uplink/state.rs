//! What the uplink tells of itself.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed},
    },
};

use gemba_shared::frame::FrameError;

use crate::session::{Answering, Judged};

/// How things stand between this gateway and the cloud.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// There is no connection to the cloud's broker.
    Away,
    /// Connected; receipts come, or none is due.
    Connected,
    /// Connected, but no receipt comes.
    Unanswered,
    /// Connected, but what comes is not signed by the cloud that was enrolled.
    ForeignKey,
}

/// Counters since the start, and the present state.
#[derive(Debug, Default)]
pub struct UplinkState {
    connected: AtomicBool,
    unanswered: AtomicBool,
    foreign: AtomicBool,
    connections: AtomicU64,
    batches: AtomicU64,
    resends: AtomicU64,
    receipts: AtomicU64,
    last_receipt_us: AtomicI64,
    dropped: AtomicU64,
    records_refused: AtomicU64,
    outbox_failures: AtomicU64,
    frames_refused: Mutex<BTreeMap<&'static str, u64>>,
    impossible_told: AtomicBool,
}

impl UplinkState {
    #[must_use]
    pub fn link(&self) -> Link {
        match (self.connected.load(Relaxed), self.foreign.load(Relaxed), self.unanswered.load(Relaxed)) {
            (false, ..) => Link::Away,
            (true, true, _) => Link::ForeignKey,
            (true, false, true) => Link::Unanswered,
            (true, false, false) => Link::Connected,
        }
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
            ("uplink_resends", self.resends.load(Relaxed)),
            ("uplink_receipts", self.receipts.load(Relaxed)),
            ("uplink_dropped", self.dropped.load(Relaxed)),
            ("uplink_records_refused", self.records_refused.load(Relaxed)),
            ("uplink_outbox_failures", self.outbox_failures.load(Relaxed)),
        ]
    }

    /// Frames from the cloud that were not taken, by reason.
    #[must_use]
    pub fn frames_refused(&self) -> Vec<(&'static str, u64)> {
        self.refusals().iter().map(|(reason, count)| (*reason, *count)).collect()
    }

    fn refusals(&self) -> std::sync::MutexGuard<'_, BTreeMap<&'static str, u64>> {
        self.frames_refused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn connected(&self) {
        self.connected.store(true, Relaxed);
        self.connections.fetch_add(1, Relaxed);
    }

    pub(super) fn disconnected(&self) {
        self.connected.store(false, Relaxed);
    }

    pub(super) fn session(&self, answering: Answering, resends: u64) {
        self.unanswered.store(!super::is_answered(answering), Relaxed);
        self.resends.store(resends, Relaxed);
    }

    pub(super) fn sent(&self) {
        self.batches.fetch_add(1, Relaxed);
    }

    pub(super) fn dropped(&self) {
        self.dropped.fetch_add(1, Relaxed);
    }

    pub(super) fn record_refused(&self) {
        self.records_refused.fetch_add(1, Relaxed);
    }

    pub(super) fn receipt(&self, judged: Judged, mono_us: i64) {
        self.receipts.fetch_add(1, Relaxed);
        self.last_receipt_us.store(mono_us, Relaxed);
        self.foreign.store(false, Relaxed);
        if judged == Judged::Impossible && !self.impossible_told.swap(true, Relaxed) {
            tracing::error!(
                "the cloud has records of this outbox that it never gave out: was an old copy of the data directory put back?"
            );
        }
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
        let mut refusals = self.refusals();
        let count = refusals.entry(error.reason()).or_default();
        *count += 1;
        if *count == 1 && error != FrameError::Signature {
            tracing::warn!(reason = error.reason(), "frame from the cloud refused: {error}");
        }
    }
}
