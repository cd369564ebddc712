//! How many requests somebody may make: a bucket for each, which fills again as time passes.
//!
//! Kept in memory by each replica, at most [`ENTRIES_MAX`]; whoever has not asked for a window has a full one and needs no entry.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use uuid::Uuid;

use super::slowdown::network;

/// Over which requests are counted.
pub const WINDOW: Duration = Duration::from_secs(10);
pub const ENTRIES_MAX: usize = 50_000;
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// Whose requests are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Subject {
    User(Uuid),
    /// By the first half of what is stored of the key.
    Key([u8; 16]),
    /// Who is not known yet.
    Address(IpAddr),
}

/// What is left to somebody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Left {
    pub requests: u32,
    /// Until the bucket is full again.
    pub full_in: Duration,
    /// `Some`: not this one, and how long to wait.
    pub wait: Option<Duration>,
}

/// The requests of late.
#[derive(Debug)]
pub struct Rates {
    quota: u32,
    // Held for a look-up, never across an await.
    buckets: Mutex<Buckets>,
}

#[derive(Debug, Default)]
struct Buckets {
    /// When each will be full: the generic cell rate algorithm (ITU-T I.371).
    full_at: HashMap<Subject, Instant>,
    /// When those that are full were last forgotten.
    swept_at: Option<Instant>,
}

impl Rates {
    /// So many requests a second, on the average of a [`WINDOW`].
    #[must_use]
    pub fn new(per_s: u32) -> Self {
        Self { quota: per_s.max(1).saturating_mul(WINDOW.as_secs() as u32), buckets: Mutex::default() }
    }

    /// Requests in a [`WINDOW`].
    #[must_use]
    pub const fn quota(&self) -> u32 {
        self.quota
    }

    /// Takes one request out of somebody's bucket.
    pub fn take(&self, subject: Subject, now: Instant) -> Left {
        let subject = match subject {
            Subject::Address(address) => Subject::Address(network(address)),
            other => other,
        };
        let each = WINDOW / self.quota;
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let Buckets { full_at, swept_at } = &mut *buckets;
        if full_at.len() >= ENTRIES_MAX && !full_at.contains_key(&subject) {
            // Not for every one of a flood.
            if swept_at.is_none_or(|at| now.saturating_duration_since(at) >= SWEEP_EVERY) {
                full_at.retain(|_, at| *at > now);
                *swept_at = Some(now);
            }
            if full_at.len() >= ENTRIES_MAX {
                // More askers at once than are counted: who comes new is let through.
                return Left { requests: self.quota, full_in: Duration::ZERO, wait: None };
            }
        }
        let at = full_at.entry(subject).or_insert(now);
        let missing = at.saturating_duration_since(now) + each;
        let wait = missing.checked_sub(WINDOW).filter(|wait| !wait.is_zero());
        if wait.is_none() {
            *at = now + missing;
        }
        let missing = at.saturating_duration_since(now);
        let left = WINDOW.saturating_sub(missing).as_nanos() / each.as_nanos().max(1);
        Left { requests: left as u32, full_in: missing, wait }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_empties_and_fills_again() {
        let rates = Rates::new(2);
        let (me, other) = (Subject::User(Uuid::nil()), Subject::Key([1; 16]));
        let now = Instant::now();
        for left in (0..20).rev() {
            let taken = rates.take(me, now);
            assert_eq!((taken.requests, taken.wait), (left, None));
        }
        let refused = rates.take(me, now);
        assert_eq!(refused, Left { requests: 0, full_in: WINDOW, wait: Some(Duration::from_millis(500)) });
        assert_eq!(rates.take(other, now).requests, 19, "others have their own");
        let later = now + Duration::from_millis(500);
        assert_eq!(rates.take(me, later).wait, None);
        assert!(rates.take(me, later).wait.is_some());
        assert_eq!(rates.take(me, later + WINDOW).requests, 19);
    }

    #[test]
    fn memory_is_bounded_and_an_address_is_its_network() {
        let rates = Rates::new(1);
        let now = Instant::now();
        for n in 0..2 * ENTRIES_MAX as u128 {
            rates.take(Subject::User(Uuid::from_u128(n)), now);
        }
        assert!(rates.buckets.lock().unwrap().full_at.len() <= ENTRIES_MAX);
        let known = Subject::User(Uuid::from_u128(0));
        while rates.take(known, now).wait.is_none() {}
        rates.take(Subject::User(Uuid::from_u128(u128::MAX)), now + WINDOW);
        assert_eq!(rates.buckets.lock().unwrap().full_at.len(), 1, "those that are full are forgotten");
        let rates = Rates::new(1);
        let [a, b] = ["2001:db8::1", "2001:db8::2"].map(|text| Subject::Address(text.parse().unwrap()));
        rates.take(a, now);
        assert_eq!(rates.take(b, now).requests, 8);
    }
}
