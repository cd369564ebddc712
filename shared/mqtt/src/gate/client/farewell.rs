//! The end of a client's connection: what is counted, said for it, and kept for its next one.

use std::sync::Arc;

use gemba_shared::gate::{connection::End, packet::ParseError};
use tokio::time::{Instant, timeout};

use super::{Client, Over};
use crate::gate::{Counters, client::FAREWELL_TIMEOUT, registry::Kept};

impl Client {
    pub(super) fn count(&self, over: &Over) {
        let counters = &self.shared.counters;
        match over {
            Over::Rules(End::Disconnect) | Over::Closed | Over::Cancelled | Over::IngestClosed => {}
            Over::Rules(End::Parse(ParseError::TooLarge(_))) => Counters::add(&counters.packet_too_large, 1),
            Over::Rules(_) => Counters::add(&counters.protocol_error, 1),
            Over::KeepAlive => Counters::add(&counters.keep_alive_expired, 1),
            Over::Replaced => Counters::add(&counters.taken_over, 1),
            Over::DeliveryLost => Counters::add(&counters.delivery_lost, 1),
            Over::Broker(_) => Counters::add(&counters.broker_lost, 1),
        }
        match over {
            Over::Broker(error) => tracing::warn!(name = %self.name, %error, "embedded broker lost a client"),
            over => tracing::debug!(name = %self.name, ?over, "client left"),
        }
    }

    /// The will, the last delivery, the broker's connection, and what is kept for the next time.
    pub(super) async fn farewell(mut self, over: Over) {
        self.out.broker.clear();
        let orderly = matches!(over, Over::Rules(End::Disconnect) | Over::Cancelled);
        if let Some(will) = self.will.take().filter(|_| !orderly) {
            self.connection.will(will, &self.shared.registry.interest(), &mut self.out);
        }
        self.hand_over(Instant::now() + FAREWELL_TIMEOUT).await;
        let closed = match self.backend.take() {
            Some(backend) => backend.close().await,
            None => true,
        };
        let Self { shared, claim, connection, clean_session, mut progress, slot, .. } = self;
        let mut session = connection.into_session();
        if progress.is_lost() {
            session.forget_unsafe(progress.safe_through());
            progress = Arc::default();
        }
        // A slot that the broker still holds is not used again, nor a session in a broker that lost it.
        let slot = slot.filter(|_| closed && !matches!(over, Over::Broker(_)));
        let has_queue = session.subscriptions().next().is_some();
        let keep = !clean_session && (slot.is_some() || !has_queue);
        let kept = Kept { session, progress, slot };
        if keep {
            claim.leave(Some(kept));
            let evicted = shared.registry.evict(shared.limits.sessions_max);
            Counters::add(&shared.counters.sessions_evicted, evicted as u64);
        } else {
            claim.discard(&kept);
        }
    }

    /// Gives the ingest what it had no room for, and what the farewell added.
    async fn hand_over(&mut self, deadline: Instant) {
        if self.act().await.is_err() && self.waiting.is_none() {
            return;
        }
        if let Some(delivery) = self.waiting.take() {
            let left = deadline.saturating_duration_since(Instant::now());
            timeout(left, self.deliveries.send(delivery)).await.ok();
        }
    }
}
