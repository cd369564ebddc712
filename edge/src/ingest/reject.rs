//! Why messages were not taken, how often, and a sample of them in the log.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// At most one log line of a reason in this time.
const LOG_EVERY_US: i64 = 60_000_000;
/// The part of a topic that is logged.
const TOPIC_BYTES_LOGGED: usize = 128;

/// Why a message, or a value in it, was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reject {
    TopicUnmatched,
    MachineId,
    SensorId,
    NotJson,
    NotUtf8,
    NoValue,
    NotANumber,
    NotFinite,
    TimeUnreadable,
    TooOld,
    InFuture,
    TooLarge,
    MachinesFull,
    SensorsFull,
    Retained,
}

impl Reject {
    pub const ALL: [Self; 15] = [
        Self::TopicUnmatched,
        Self::MachineId,
        Self::SensorId,
        Self::NotJson,
        Self::NotUtf8,
        Self::NoValue,
        Self::NotANumber,
        Self::NotFinite,
        Self::TimeUnreadable,
        Self::TooOld,
        Self::InFuture,
        Self::TooLarge,
        Self::MachinesFull,
        Self::SensorsFull,
        Self::Retained,
    ];

    /// A short, fixed word for counters.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::TopicUnmatched => "topic_unmatched",
            Self::MachineId => "machine_id",
            Self::SensorId => "sensor_id",
            Self::NotJson => "not_json",
            Self::NotUtf8 => "not_utf8",
            Self::NoValue => "no_value",
            Self::NotANumber => "not_a_number",
            Self::NotFinite => "not_finite",
            Self::TimeUnreadable => "time_unreadable",
            Self::TooOld => "too_old",
            Self::InFuture => "in_future",
            Self::TooLarge => "too_large",
            Self::MachinesFull => "machines_full",
            Self::SensorsFull => "sensors_full",
            Self::Retained => "retained",
        }
    }
}

/// How many were rejected since the start, by reason.
#[derive(Debug, Default)]
pub struct Rejects([AtomicU64; Reject::ALL.len()]);

impl Rejects {
    #[must_use]
    pub fn count(&self, reason: Reject) -> u64 {
        self.0[reason as usize].load(Ordering::Relaxed)
    }
}

/// Counts rejects and logs the first of each reason, then at most one a minute.
#[derive(Debug, Default)]
pub(super) struct Log {
    pub(super) rejects: Arc<Rejects>,
    last: [Option<Sample>; Reject::ALL.len()],
}

#[derive(Debug, Clone, Copy)]
struct Sample {
    mono_us: i64,
    count: u64,
}

impl Log {
    pub(super) fn note(&mut self, reason: Reject, topic: &[u8], publisher: &str, mono_us: i64) {
        let count = self.rejects.0[reason as usize].fetch_add(1, Ordering::Relaxed) + 1;
        let last = &mut self.last[reason as usize];
        if last.is_some_and(|last| mono_us - last.mono_us < LOG_EVERY_US) {
            return;
        }
        let since = count - last.map_or(0, |last| last.count);
        *last = Some(Sample { mono_us, count });
        let topic = String::from_utf8_lossy(&topic[..topic.len().min(TOPIC_BYTES_LOGGED)]);
        tracing::warn!(reason = reason.reason(), ?topic, publisher, since, "message rejected");
    }
}
