//! Messages on their way from a client, and the promise that goes back.
//!
//! A source of messages (the gate, or a client of an external broker) numbers what each connection sent, and
//! hands it on in [`Delivery`]s. Whoever has made a delivery safe calls [`Delivery::acknowledge`]; the source
//! then answers the sender. A delivery that is dropped without that is never answered: the source gives the
//! connection up, and the sender sends again.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use bytes::Bytes;
use tokio::sync::Notify;

/// One message as its publisher sent it.
///
/// Topic and payload are slices of the buffer that they were read into: keep copies, not these, for longer
/// than the message is worked on.
#[derive(Debug, Clone)]
pub struct Publish {
    /// The topic; valid UTF-8 without wildcards is not promised: the receiver checks.
    pub topic: Bytes,
    pub payload: Bytes,
    pub retain: bool,
    /// The publisher says that it may have sent this before.
    pub dup: bool,
}

/// Consecutive messages of one connection, in the order they were sent.
#[derive(Debug)]
pub struct Delivery {
    /// The authenticated name of the publisher; empty where an external broker hides it.
    pub publisher: Arc<str>,
    pub messages: Vec<Publish>,
    promise: Promise,
}

/// Tells the source when a delivery is dropped without being acknowledged.
#[derive(Debug)]
struct Promise {
    progress: Arc<Progress>,
    through: u64,
    kept: bool,
}

impl Drop for Promise {
    fn drop(&mut self) {
        if !self.kept {
            self.progress.lost.store(true, Ordering::Release);
            self.progress.changed.notify_one();
        }
    }
}

impl Delivery {
    /// `through` counts the messages of this connection up to and including these.
    #[must_use]
    pub fn new(publisher: Arc<str>, messages: Vec<Publish>, progress: Arc<Progress>, through: u64) -> Self {
        Self { publisher, messages, promise: Promise { progress, through, kept: false } }
    }

    /// These messages are safe. Deliveries of a connection are acknowledged in their order.
    pub fn acknowledge(mut self) {
        self.promise.kept = true;
        self.promise.progress.reach(self.promise.through);
    }
}

/// How far the messages of one connection are safe.
#[derive(Debug, Default)]
pub struct Progress {
    safe_through: AtomicU64,
    lost: AtomicBool,
    changed: Notify,
}

impl Progress {
    fn reach(&self, through: u64) {
        // What follows a lost delivery is not safe "through" anything.
        if !self.is_lost() {
            self.safe_through.fetch_max(through, Ordering::Release);
        }
        self.changed.notify_one();
    }

    /// How many messages of the connection, counted from its start, are safe.
    #[must_use]
    pub fn safe_through(&self) -> u64 {
        self.safe_through.load(Ordering::Acquire)
    }

    /// Whether a delivery was dropped without being acknowledged. What comes after it must not be answered.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    /// Waits until `safe_through` is more than `seen`, or a delivery is lost. One task may wait at a time.
    pub async fn beyond(&self, seen: u64) -> u64 {
        loop {
            let through = self.safe_through();
            if through > seen || self.is_lost() {
                return through;
            }
            self.changed.notified().await;
        }
    }
}
