//! Who is connected, and the sessions of those who will come back.
//!
//! A client identifier belongs to a publisher's name: two names may use the same one and never meet, so nobody
//! can throw another out or lock him out. Of two connections with one name and one identifier the newer wins.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::Duration,
};

use gemba_shared::gate::{Interest, Session};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::delivery::Progress;

/// How long a client's new connection waits for its old one to leave.
const TAKE_OVER_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
pub(super) struct Registry {
    clients: Mutex<Clients>,
    interest: RwLock<Interest>,
}

#[derive(Debug, Default)]
struct Clients {
    by_key: HashMap<Key, Entry>,
    serial: u64,
    /// Client identifiers towards the broker are numbers that are used again: it remembers each for ever.
    slots_free: Vec<u32>,
    slots: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    name: Arc<str>,
    client_id: Arc<str>,
}

#[derive(Debug)]
struct Entry {
    live: Option<Live>,
    kept: Option<Kept>,
    since: Instant,
}

#[derive(Debug)]
struct Live {
    serial: u64,
    kick: CancellationToken,
    gone: CancellationToken,
}

/// What stays of a client between its connections.
#[derive(Debug, Default)]
pub(super) struct Kept {
    pub(super) session: Session,
    pub(super) progress: Arc<Progress>,
    /// Where its subscriptions are in the broker.
    pub(super) slot: Option<u32>,
}

/// A connection's place among the clients.
#[derive(Debug)]
pub(super) struct Claim {
    registry: Arc<Registry>,
    key: Key,
    serial: u64,
    gone: CancellationToken,
    /// Cancelled when this connection has to go.
    pub(super) kick: CancellationToken,
    /// There was a session.
    pub(super) present: bool,
}

impl Registry {
    /// Takes the place of this client, and what was kept of it; `None` if its old connection does not leave.
    pub(super) async fn claim(
        self: &Arc<Self>,
        name: &Arc<str>,
        client_id: &str,
        clean_session: bool,
    ) -> Option<(Claim, Kept)> {
        let mut key = Key { name: name.clone(), client_id: client_id.into() };
        let give_up = Instant::now() + TAKE_OVER_TIMEOUT;
        loop {
            let gone = match self.try_claim(&mut key, clean_session) {
                Ok(claimed) => return Some(claimed),
                Err(gone) => gone,
            };
            timeout(give_up.saturating_duration_since(Instant::now()), gone.cancelled()).await.ok()?;
        }
    }

    fn try_claim(self: &Arc<Self>, key: &mut Key, clean_session: bool) -> Result<(Claim, Kept), CancellationToken> {
        let mut clients = self.clients();
        clients.serial += 1;
        let serial = clients.serial;
        if key.client_id.is_empty() {
            // No client can send U+0000.
            key.client_id = format!("\0{serial}").into();
        }
        let now = Instant::now();
        let entry = clients.by_key.entry(key.clone()).or_insert_with(|| Entry { live: None, kept: None, since: now });
        if let Some(live) = &entry.live {
            live.kick.cancel();
            return Err(live.gone.clone());
        }
        let (kick, gone) = (CancellationToken::new(), CancellationToken::new());
        entry.live = Some(Live { serial, kick: kick.clone(), gone: gone.clone() });
        entry.since = now;
        let mut kept = entry.kept.take();
        if clean_session && let Some(old) = kept.take() {
            self.discard(&mut clients, &old);
        }
        let present = kept.is_some();
        let claim = Claim { registry: self.clone(), key: key.clone(), serial, gone, kick, present };
        Ok((claim, kept.unwrap_or_default()))
    }

    /// Ends all connections of this name.
    pub(super) fn disconnect(&self, name: &str) -> usize {
        let clients = self.clients();
        let of_name = clients.by_key.iter().filter(|(key, _)| &*key.name == name);
        of_name.filter_map(|(_, entry)| entry.live.as_ref()).map(|live| live.kick.cancel()).count()
    }

    pub(super) fn interest(&self) -> RwLockReadGuard<'_, Interest> {
        self.interest.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn interest_mut(&self) -> RwLockWriteGuard<'_, Interest> {
        self.interest.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn take_slot(&self) -> u32 {
        let mut clients = self.clients();
        clients.slots_free.pop().unwrap_or_else(|| {
            clients.slots += 1;
            clients.slots
        })
    }

    /// Forgets the sessions of the clients that are away the longest; how many.
    pub(super) fn evict(&self, sessions_max: usize) -> usize {
        let mut clients = self.clients();
        let mut absent: Vec<_> = clients.by_key.iter().filter(|(_, entry)| entry.live.is_none()).collect();
        let excess = absent.len().saturating_sub(sessions_max);
        if excess == 0 {
            return 0;
        }
        absent.sort_by_key(|(_, entry)| entry.since);
        let oldest: Vec<Key> = absent.iter().take(excess).map(|(key, _)| (*key).clone()).collect();
        for key in &oldest {
            if let Some(kept) = clients.by_key.remove(key).and_then(|entry| entry.kept) {
                self.discard(&mut clients, &kept);
            }
        }
        excess
    }

    fn discard(&self, clients: &mut Clients, old: &Kept) {
        let mut interest = self.interest_mut();
        old.session.subscriptions().for_each(|filter| interest.remove(filter));
        clients.slots_free.extend(old.slot);
    }

    fn clients(&self) -> MutexGuard<'_, Clients> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Claim {
    /// Leaves, and keeps what is given for the client's next connection.
    pub(super) fn leave(self, kept: Option<Kept>) {
        let mut clients = self.registry.clients();
        match (clients.by_key.get_mut(&self.key), kept) {
            (Some(entry), Some(kept)) => {
                entry.kept = Some(kept);
                entry.since = Instant::now();
            }
            (_, Some(kept)) => self.registry.discard(&mut clients, &kept),
            (_, None) => {}
        }
    }

    /// Gives up what a client without a kept session had.
    pub(super) fn discard(&self, old: &Kept) {
        self.registry.discard(&mut self.registry.clients(), old);
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut clients = self.registry.clients();
        if let Some(entry) = clients.by_key.get_mut(&self.key)
            && entry.live.as_ref().is_some_and(|live| live.serial == self.serial)
        {
            entry.live = None;
            if entry.kept.is_none() {
                clients.by_key.remove(&self.key);
            }
        }
        drop(clients);
        self.gone.cancel();
    }
}
