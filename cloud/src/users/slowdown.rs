//! How login attempts are slowed, per name and per address.
//!
//! An attempt counts as failed when it starts, and success takes it back: many at the same moment gain nothing.
//! A name is never locked for longer than [`NAME_WAIT_MAX`], so that a stranger cannot keep its owner out.
//! Kept in memory, at most [`ENTRIES_MAX`] names and as many addresses; the stalest gives way.

use std::{
    collections::HashMap,
    hash::Hash,
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Names, and addresses, that are remembered.
pub const ENTRIES_MAX: usize = 10_000;
/// Failures of a name that cost nothing.
pub const NAME_FREE: u32 = 5;
/// Failures from an address that cost nothing (a factory may share one).
pub const ADDRESS_FREE: u32 = 20;
pub const NAME_WAIT_MAX: Duration = Duration::from_secs(30);
pub const ADDRESS_WAIT_MAX: Duration = Duration::from_mins(2);
/// Failures are forgotten after so long without another.
pub const FORGET_AFTER: Duration = Duration::from_mins(15);

#[derive(Debug, Clone, Copy)]
struct Entry {
    failures: u32,
    not_before: Instant,
    last: Instant,
}

#[derive(Debug)]
struct Table<K> {
    entries: HashMap<K, Entry>,
    free: u32,
    wait_max: Duration,
}

/// The failures of late.
#[derive(Debug)]
pub struct Slowdown {
    // Held for a look-up, never across an await.
    tables: Mutex<(Table<String>, Table<IpAddr>)>,
}

impl Default for Slowdown {
    fn default() -> Self {
        let names = Table { entries: HashMap::new(), free: NAME_FREE, wait_max: NAME_WAIT_MAX };
        let addresses = Table { entries: HashMap::new(), free: ADDRESS_FREE, wait_max: ADDRESS_WAIT_MAX };
        Self { tables: Mutex::new((names, addresses)) }
    }
}

impl Slowdown {
    /// Whether an attempt may be made now; counts it as failed until [`Self::succeeded`].
    ///
    /// # Errors
    /// With how long to wait.
    pub fn attempt(&self, name: &str, address: IpAddr, now: Instant) -> Result<(), Duration> {
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        let (names, addresses) = &mut *tables;
        let name = name.to_lowercase();
        let address = network(address);
        let wait = names.wait(&name, now).max(addresses.wait(&address, now));
        if !wait.is_zero() {
            return Err(wait);
        }
        names.failed(name, now);
        addresses.failed(address, now);
        Ok(())
    }

    /// The attempt was good: its name starts anew, and its address is given the attempt back.
    pub fn succeeded(&self, name: &str, address: IpAddr) {
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        tables.0.entries.remove(&name.to_lowercase());
        if let Some(entry) = tables.1.entries.get_mut(&network(address)) {
            entry.failures = entry.failures.saturating_sub(1);
            entry.not_before = entry.last;
        }
    }
}

/// An IPv6 host owns its whole /64.
pub(super) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() & !u128::from(u64::MAX)).into()),
        v4 @ IpAddr::V4(_) => v4,
    }
}

impl<K: Eq + Hash + Clone> Table<K> {
    fn wait(&self, key: &K, now: Instant) -> Duration {
        self.entries.get(key).map_or(Duration::ZERO, |entry| entry.not_before.saturating_duration_since(now))
    }

    fn failed(&mut self, key: K, now: Instant) {
        if self.entries.len() >= ENTRIES_MAX && !self.entries.contains_key(&key) {
            self.make_room(now);
        }
        let (free, wait_max) = (self.free, self.wait_max);
        let entry = self.entries.entry(key).or_insert(Entry { failures: 0, not_before: now, last: now });
        if now.saturating_duration_since(entry.last) > FORGET_AFTER {
            entry.failures = 0;
        }
        entry.failures = entry.failures.saturating_add(1);
        entry.last = now;
        if let Some(doublings) = entry.failures.checked_sub(free) {
            entry.not_before = now + Duration::from_secs(1 << doublings.min(10)).min(wait_max);
        }
    }

    fn make_room(&mut self, now: Instant) {
        self.entries.retain(|_, entry| now.saturating_duration_since(entry.last) <= FORGET_AFTER);
        if self.entries.len() < ENTRIES_MAX {
            return;
        }
        // A tenth at a time, so that a flood of names does not pay for a search each.
        let mut lasts: Vec<Instant> = self.entries.values().map(|entry| entry.last).collect();
        let (_, &mut limit, _) = lasts.select_nth_unstable(ENTRIES_MAX / 10);
        self.entries.retain(|_, entry| entry.last > limit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn address(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    #[test]
    fn a_name_waits_twice_as_long_each_time_and_never_longer_than_its_most() {
        let slowdown = Slowdown::default();
        let mut now = Instant::now();
        for free in 1..NAME_FREE {
            assert_eq!(slowdown.attempt("ada", address(1), now), Ok(()), "{free}");
        }
        for seconds in [1, 2, 4, 8, 16, 30, 30] {
            assert_eq!(slowdown.attempt("ADA", address(2), now), Ok(()));
            let wait = Duration::from_secs(seconds);
            assert_eq!(slowdown.attempt("ada", address(3), now), Err(wait));
            assert_eq!(slowdown.attempt("bob", address(3), now), Ok(()), "others are not slowed");
            slowdown.succeeded("bob", address(3));
            now += wait;
        }
        now += FORGET_AFTER + Duration::from_secs(1);
        assert_eq!(slowdown.attempt("ada", address(1), now), Ok(()));
        assert_eq!(slowdown.attempt("ada", address(1), now), Ok(()));
    }

    #[test]
    fn success_starts_anew() {
        let slowdown = Slowdown::default();
        let now = Instant::now();
        for _ in 0..100 {
            assert_eq!(slowdown.attempt("ada", HERE, now), Ok(()));
            slowdown.succeeded("ada", HERE);
        }
    }

    #[test]
    fn an_address_is_slowed_over_all_names() {
        let slowdown = Slowdown::default();
        let now = Instant::now();
        let failed = (0..100).take_while(|n| slowdown.attempt(&format!("user{n}"), HERE, now).is_ok()).count();
        assert_eq!(failed, ADDRESS_FREE as usize);
        let (a, b) = ("2001:db8::1".parse().unwrap(), "2001:db8::2".parse().unwrap());
        for n in 0..ADDRESS_FREE {
            assert_eq!(slowdown.attempt(&format!("v6-{n}"), a, now), Ok(()));
        }
        assert!(slowdown.attempt("another", b, now).is_err(), "one network");
    }

    #[test]
    fn memory_is_bounded() {
        let mut table = Table { entries: HashMap::new(), free: 5, wait_max: NAME_WAIT_MAX };
        let now = Instant::now();
        for n in 0..3 * ENTRIES_MAX {
            table.failed(n, now + Duration::from_micros(n as u64));
        }
        assert!(table.entries.len() <= ENTRIES_MAX);
        assert!(table.entries.contains_key(&(3 * ENTRIES_MAX - 1)));
    }
}
