//! What is remembered of a client while it is away: which of its messages were taken, and its subscriptions.
//!
//! A packet identifier alone does not say that a message is the same: a client that was answered uses it for
//! the next message, and that one may be the one that arrives as a resend. So a resend is known by its
//! identifier *and* a checksum of topic and payload. Where both agree by chance, an equal value of the same
//! sensor is taken once instead of twice.

use std::collections::{BTreeMap, VecDeque};

use super::{
    filter::Filter,
    packet::{Publish, QoS},
};

/// Numbers count the messages of a session that went to the ingest, from 1.
#[derive(Debug, Default)]
pub struct Session {
    messages: u64,
    recent: VecDeque<Recent>,
    /// `QoS` 2: identifiers between PUBLISH and PUBREL, with the number of their message.
    unreleased: BTreeMap<u16, u64>,
    subscriptions: BTreeMap<Filter, QoS>,
}

#[derive(Debug, Clone, Copy)]
struct Recent {
    id: u16,
    checksum: u32,
    number: u64,
}

impl Session {
    /// How many messages went to the ingest.
    #[must_use]
    pub fn messages(&self) -> u64 {
        self.messages
    }

    pub fn subscriptions(&self) -> impl Iterator<Item = &Filter> {
        self.subscriptions.keys()
    }

    /// Whether a client that comes back has anything to find here.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.recent.is_empty() && self.unreleased.is_empty() && self.subscriptions.is_empty()
    }

    /// A delivery was lost: what was not safe by then is forgotten, so that its resend is taken, and the count
    /// begins anew.
    pub fn forget_unsafe(&mut self, safe_through: u64) {
        self.recent.retain(|recent| recent.number <= safe_through);
        self.unreleased.retain(|_, number| *number <= safe_through);
        self.recent.iter_mut().for_each(|recent| recent.number = 0);
        self.unreleased.values_mut().for_each(|number| *number = 0);
        self.messages = 0;
    }

    pub(super) fn count(&mut self) -> u64 {
        self.messages += 1;
        self.messages
    }

    /// The number of an earlier message that this one repeats.
    pub(super) fn repeated(&self, publish: &Publish) -> Option<u64> {
        let recent = self.recent.iter().rev().find(|recent| recent.id == publish.id)?;
        (recent.checksum == checksum(publish)).then_some(recent.number)
    }

    pub(super) fn remember(&mut self, publish: &Publish, number: u64, count_max: usize) {
        while self.recent.len() >= count_max.max(1) {
            self.recent.pop_front();
        }
        self.recent.push_back(Recent { id: publish.id, checksum: checksum(publish), number });
    }

    pub(super) fn unreleased(&self, id: u16) -> Option<u64> {
        self.unreleased.get(&id).copied()
    }

    pub(super) fn unreleased_count(&self) -> usize {
        self.unreleased.len()
    }

    pub(super) fn hold(&mut self, id: u16, number: u64) {
        self.unreleased.insert(id, number);
    }

    pub(super) fn release(&mut self, id: u16) {
        self.unreleased.remove(&id);
    }

    pub(super) fn subscription_count(&self) -> usize {
        self.subscriptions.len()
    }

    /// False where it was subscribed to before.
    pub(super) fn subscribe(&mut self, filter: Filter, qos: QoS) -> bool {
        self.subscriptions.insert(filter, qos).is_none()
    }

    pub(super) fn unsubscribe(&mut self, filter: &Filter) -> bool {
        self.subscriptions.remove(filter).is_some()
    }
}

fn checksum(publish: &Publish) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&publish.topic), &publish.payload)
}
