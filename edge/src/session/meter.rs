//! How much may be sent, where every byte costs money: two token buckets.
//!
//! A quarter of the rate belongs to the live picture and the status; what they do not use is the records' too. Records are
//! charged after they are sent, and may run into debt by what one bucket holds: events go on until then, summaries
//! wait for a level above zero. Over any time much longer than [`BURST_S`] the bytes sent are at most the rate's.

/// What a packet costs beside its frame: the headers of MQTT, TLS, TCP and IP.
pub const PACKET_BYTES: usize = 160;
/// What a connection costs before anything is sent: TCP and TLS handshakes, CONNECT, SUBSCRIBE.
pub const CONNECTION_BYTES: usize = 3_000;
/// A bucket holds what comes in this time.
const BURST_S: i64 = 4;
/// The least that one batch may have.
const BATCH_BYTES_MIN: usize = 1_024;
const LIVE_SHARE: i64 = 4;
const MICROS: i64 = 1_000_000;

/// What is to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Traffic {
    Events,
    Summaries,
    /// The live picture and the status.
    Live,
}

/// A link's allowance. Levels are in millionths of a byte.
#[derive(Debug, Clone)]
pub struct Meter {
    /// Bytes a second; `None` where they cost nothing.
    rate: Option<i64>,
    records: i64,
    live: i64,
    at_us: i64,
}

impl Meter {
    /// With full buckets.
    #[must_use]
    pub fn new(bytes_per_second_max: Option<u32>, mono_us: i64) -> Self {
        let rate = bytes_per_second_max.map(i64::from);
        let full = rate.unwrap_or(0) * BURST_S * MICROS;
        Self { rate, records: full - full / LIVE_SHARE, live: full / LIVE_SHARE, at_us: mono_us }
    }

    /// Whether it may be sent now.
    pub fn allows(&mut self, traffic: Traffic, mono_us: i64) -> bool {
        let Some(rate) = self.rate else { return true };
        self.fill(rate, mono_us);
        match traffic {
            Traffic::Events => self.records > -records_full(rate),
            Traffic::Summaries => self.records > 0,
            Traffic::Live => self.live > 0,
        }
    }

    /// It was sent: `bytes` without [`PACKET_BYTES`].
    pub fn charge(&mut self, traffic: Traffic, bytes: usize) {
        if self.rate.is_none() {
            return;
        }
        let cost = i64::try_from(bytes.saturating_add(PACKET_BYTES)).unwrap_or(i64::MAX).saturating_mul(MICROS);
        let level = if traffic == Traffic::Live { &mut self.live } else { &mut self.records };
        *level = level.saturating_sub(cost);
    }

    /// The bytes that one batch may have at most, so that what comes behind it need not wait for long.
    #[must_use]
    pub fn batch_bytes_max(&self) -> usize {
        self.rate.map_or(usize::MAX, |rate| usize::try_from(rate).unwrap_or(usize::MAX).max(BATCH_BYTES_MIN))
    }

    fn fill(&mut self, rate: i64, mono_us: i64) {
        // Longer than both buckets need from the deepest debt that one batch can make counts no more.
        let elapsed_us = (mono_us - self.at_us).clamp(0, 3_600 * MICROS);
        self.at_us = mono_us;
        let gained = rate * elapsed_us;
        let live_full = rate * BURST_S * MICROS / LIVE_SHARE;
        let live = self.live + gained / LIVE_SHARE;
        self.live = live.min(live_full);
        let unused = live - self.live;
        self.records = (self.records + gained - gained / LIVE_SHARE + unused).min(records_full(rate));
    }
}

const fn records_full(rate: i64) -> i64 {
    rate * BURST_S * MICROS / LIVE_SHARE * (LIVE_SHARE - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends whatever is allowed for a minute; the bytes of each kind.
    fn minute(kinds: &[(Traffic, usize)]) -> Vec<usize> {
        let mut meter = Meter::new(Some(1_000), 0);
        let mut sent = vec![0; kinds.len()];
        for tick in 0..240 {
            for (kind, sent) in kinds.iter().zip(&mut sent) {
                while meter.allows(kind.0, tick * 250_000) {
                    meter.charge(kind.0, kind.1);
                    *sent += kind.1 + PACKET_BYTES;
                }
            }
        }
        sent
    }

    #[test]
    fn summaries_alone_use_the_whole_rate_and_no_more() {
        let sent = minute(&[(Traffic::Summaries, 900)])[0];
        assert!((60_000..=65_000).contains(&sent), "{sent}");
    }

    #[test]
    fn live_keeps_its_quarter_and_events_go_before_summaries() {
        let sent = minute(&[(Traffic::Events, 500), (Traffic::Summaries, 900), (Traffic::Live, 300)]);
        assert!((43_000..=52_000).contains(&sent[0]), "{sent:?}");
        assert_eq!(sent[1], 0, "{sent:?}");
        assert!((14_500..=17_000).contains(&sent[2]), "{sent:?}");
    }

    #[test]
    fn an_event_is_not_held_up_by_the_summaries_before_it() {
        let mut meter = Meter::new(Some(1_000), 0);
        while meter.allows(Traffic::Summaries, 0) {
            meter.charge(Traffic::Summaries, 900);
        }
        assert!(meter.allows(Traffic::Events, 0));
    }

    #[test]
    fn where_nothing_is_metered_all_is_allowed() {
        let mut meter = Meter::new(None, 0);
        meter.charge(Traffic::Summaries, usize::MAX);
        assert!(meter.allows(Traffic::Summaries, 0) && meter.allows(Traffic::Live, 0));
        assert_eq!(meter.batch_bytes_max(), usize::MAX);
    }
}
