//! What a publisher did, in figures.

use std::time::Duration;

/// Buckets of a latency histogram: each is 1/8 of a power of two, from a microsecond up.
const BUCKETS: usize = 8 * 30;

/// How long acknowledgements took, within an eighth.
#[derive(Debug, Clone)]
pub struct Latency {
    buckets: Box<[u64; BUCKETS]>,
    count: u64,
    max: Duration,
}

impl Default for Latency {
    fn default() -> Self {
        Self { buckets: Box::new([0; BUCKETS]), count: 0, max: Duration::ZERO }
    }
}

impl Latency {
    pub fn record(&mut self, latency: Duration) {
        let us = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX).max(1);
        self.buckets[bucket(us)] += 1;
        self.count += 1;
        self.max = self.max.max(latency);
    }

    /// The latency that a share (0 to 1) of all stayed below; `None` where nothing was recorded.
    #[must_use]
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let rank = (share * self.count as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (bucket, count) in self.buckets.iter().enumerate() {
            seen += count;
            if self.count > 0 && seen >= rank {
                return Some(Duration::from_micros(upper_us(bucket)).min(self.max));
            }
        }
        None
    }

    fn add(&mut self, other: &Self) {
        for (mine, others) in self.buckets.iter_mut().zip(other.buckets.iter()) {
            *mine += others;
        }
        self.count += other.count;
        self.max = self.max.max(other.max);
    }
}

fn bucket(us: u64) -> usize {
    let power = us.ilog2() as usize;
    // The three bits below the highest one.
    let eighth = (us << 3 >> power) as usize & 7;
    (power * 8 + eighth).min(BUCKETS - 1)
}

fn upper_us(bucket: usize) -> u64 {
    let (power, eighth) = (bucket / 8, bucket % 8);
    ((9 + eighth as u64) << power).div_ceil(8)
}

/// Sums over one or many connections.
#[derive(Debug, Clone, Default)]
pub struct Report {
    pub sent: u64,
    pub acknowledged: u64,
    /// Sent at `QoS` 1 and not acknowledged when the connection was closed.
    pub unacknowledged: u64,
    pub resent: u64,
    pub reconnects: u64,
    pub latency: Latency,
}

impl Report {
    pub fn add(&mut self, other: &Self) {
        self.sent += other.sent;
        self.acknowledged += other.acknowledged;
        self.unacknowledged += other.unacknowledged;
        self.resent += other.resent;
        self.reconnects += other.reconnects;
        self.latency.add(&other.latency);
    }

    /// What was sent in `elapsed`, and how long the answers took: a line for people, or JSON.
    #[must_use]
    pub fn print(&self, elapsed: Duration, json: bool) -> String {
        if json { self.json(elapsed) } else { self.line(elapsed) }
    }

    fn json(&self, elapsed: Duration) -> String {
        let seconds = elapsed.as_secs_f64();
        let ms = |share| self.latency.quantile(share).map(|latency| latency.as_secs_f64() * 1e3);
        serde_json::json!({
            "sent": self.sent,
            "acknowledged": self.acknowledged,
            "unacknowledged": self.unacknowledged,
            "resent": self.resent,
            "reconnects": self.reconnects,
            "seconds": seconds,
            "messages_per_s": self.sent as f64 / seconds.max(1e-9),
            "latency_ms": { "p50": ms(0.5), "p99": ms(0.99), "p999": ms(0.999), "max": ms(1.0) },
        })
        .to_string()
    }

    fn line(&self, elapsed: Duration) -> String {
        let rate = self.sent as f64 / elapsed.as_secs_f64().max(1e-9);
        let mut parts = vec![
            format!("sent {}", self.sent),
            format!("acknowledged {}", self.acknowledged),
            format!("{rate:.0} messages/s"),
        ];
        let latencies = [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)];
        for (name, latency) in latencies.map(|(name, share)| (name, self.latency.quantile(share))) {
            if let Some(latency) = latency {
                parts.push(format!("{name} {:.2} ms", latency.as_secs_f64() * 1e3));
            }
        }
        for (name, count) in
            [("unacknowledged", self.unacknowledged), ("resent", self.resent), ("reconnects", self.reconnects)]
        {
            if count > 0 {
                parts.push(format!("{name} {count}"));
            }
        }
        parts.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_right_within_an_eighth() {
        let mut latency = Latency::default();
        assert_eq!(latency.quantile(0.5), None);
        for us in 1..=10_000 {
            latency.record(Duration::from_micros(us));
        }
        for (share, exact) in [(0.5, 5_000.0), (0.99, 9_900.0), (0.999, 9_990.0), (1.0, 10_000.0)] {
            let found = latency.quantile(share).unwrap().as_secs_f64() * 1e6;
            assert!(found >= exact * 0.999 && found <= exact * 1.13, "{share}: {found}");
        }
        latency.record(Duration::from_secs(100_000));
        assert_eq!(latency.quantile(1.0).map(|latency| latency.as_secs() > 1_000), Some(true));
    }
}
