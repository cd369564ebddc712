//! What the gate counts. Each drop and each refusal has its reason here.

use std::sync::atomic::{AtomicU64, Ordering};

use gemba_shared::gate::connection::Tally;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// Counters since the start; `connections` is how many there are now.
        #[derive(Debug, Default)]
        pub struct Counters { $($(#[$doc])* pub $name: AtomicU64,)* }

        impl Counters {
            /// All of them, by name.
            #[must_use]
            pub fn read(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name.load(Ordering::Relaxed)),)*]
            }
        }
    };
}

counters! {
    connections,
    connections_accepted,
    /// Over the limit of the gate, or of one address.
    connections_over_limit,
    connect_timeout,
    tls_failed,
    bad_credentials,
    not_authorised,
    /// The credentials could not be checked.
    unavailable,
    /// MQTT 5, or older than 3.1.1.
    unsupported_version,
    client_id_rejected,
    /// Another connection of the same client came.
    taken_over,
    /// The owner of the gate ended it.
    disconnected,
    keep_alive_expired,
    protocol_error,
    packet_too_large,
    broker_lost,
    /// The ingest dropped a delivery: the client must send again.
    delivery_lost,
    packets,
    messages,
    duplicates,
    not_granted,
    reserved_topic,
    topic_too_long,
    subscribe_refused,
    will_not_granted,
    forwarded,
    /// For subscribers, while the broker was behind or dead.
    forward_dropped,
    /// Sessions of absent clients that were forgotten for want of room.
    sessions_evicted,
}

impl Counters {
    pub(super) fn add(counter: &AtomicU64, count: u64) {
        if count > 0 {
            counter.fetch_add(count, Ordering::Relaxed);
        }
    }

    pub(super) fn take(&self, tally: Tally) {
        Self::add(&self.packets, tally.packets);
        Self::add(&self.messages, tally.messages);
        Self::add(&self.duplicates, tally.duplicates);
        Self::add(&self.not_granted, tally.not_granted);
        Self::add(&self.reserved_topic, tally.reserved_topic);
        Self::add(&self.topic_too_long, tally.topic_too_long);
        Self::add(&self.subscribe_refused, tally.subscribe_refused);
    }
}
