//! Tells, seldom enough for a log, of clients that publish where they may not.
//!
//! Names are those of grants, so whoever grants bounds how many there are.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

const TELL_EVERY: Duration = Duration::from_mins(1);
/// Of a topic that was made to be long.
const TOPIC_CHARS_MAX: usize = 128;

#[derive(Debug, Default)]
pub(super) struct Refusals(Mutex<HashMap<Arc<str>, Told>>);

#[derive(Debug)]
struct Told {
    again_at: Instant,
    /// Since then, and not told of.
    count: u64,
}

impl Refusals {
    /// The first of a name at once, then at most one line a minute for it, however often it reconnects.
    pub(super) fn tell(&self, name: &Arc<str>, topic: &[u8], count: u64, now: Instant) {
        if let Some(count) = self.due(name, count, now) {
            let text = String::from_utf8_lossy(topic);
            let topic: String = text.chars().take(TOPIC_CHARS_MAX).collect();
            tracing::warn!(client = &**name, topic, count, "publish outside the client's grant dropped");
        }
    }

    /// How many there were since the last line, when it is time for one.
    fn due(&self, name: &Arc<str>, count: u64, now: Instant) -> Option<u64> {
        let mut names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let told = names.entry(name.clone()).or_insert(Told { again_at: now, count: 0 });
        told.count += count;
        if now < told.again_at {
            return None;
        }
        told.again_at = now + TELL_EVERY;
        Some(std::mem::take(&mut told.count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_each_is_told_and_then_one_a_minute() {
        let refusals = Refusals::default();
        let [a, b]: [Arc<str>; 2] = ["a".into(), "b".into()];
        let now = Instant::now();
        let at = |seconds| now + Duration::from_secs(seconds);
        assert_eq!(refusals.due(&a, 1, at(0)), Some(1));
        assert_eq!(refusals.due(&a, 2, at(1)), None);
        assert_eq!(refusals.due(&b, 1, at(1)), Some(1));
        assert_eq!(refusals.due(&a, 3, at(59)), None);
        assert_eq!(refusals.due(&a, 1, at(60)), Some(6));
        assert_eq!(refusals.due(&a, 1, at(61)), None);
    }
}
