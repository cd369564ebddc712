//! How often an alarm was right.
//!
//! - Row by row, as SKAB's protocol counts: F1, the false-alarm rate FAR (of normal rows) and the missing-alarm rate MAR (of
//!   anomalous rows). Rows of a calibration do not count.
//! - Event by event, where an event is a run of rows that are labelled anomalous: it is hit when an alarm stands in one of its rows, and
//!   the delay is from its first row to the first such row. An alarm that stands already in the row before is early. An
//!   alarm that begins in a normal row is a false one; they are told for each hour of normal rows.

use gemba_shared::telemetry::Timestamp;

/// A pause of the recording longer than this times its usual distance of rows is no time in which anything was judged.
const PAUSE_FACTOR: i64 = 10;

/// The rows of one recording, or of several together.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Score {
    rows: Rows,
    events: u64,
    early: u64,
    /// From an event's first row to its alarm, seconds; of those that were hit.
    delays_s: Vec<f64>,
    false_alarms: u64,
    normal_us: i64,
    last: Option<Last>,
    /// When the event began that is under way, if it was not hit yet.
    waits_since: Option<Timestamp>,
}

/// Rows: anomalous in an alarm; normal in an alarm; and so on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Rows {
    true_alarms: u64,
    false_alarms: u64,
    missed: u64,
    quiet: u64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Last {
    at: Timestamp,
    alarm: bool,
    anomalous: bool,
}

impl Score {
    /// Takes a row that was judged, and its label; `usual_us` is the recording's usual distance of rows.
    pub(super) fn count(&mut self, at: Timestamp, alarm: bool, anomalous: bool, usual_us: i64) {
        let rows = &mut self.rows;
        let count = match (alarm, anomalous) {
            (true, true) => &mut rows.true_alarms,
            (true, false) => &mut rows.false_alarms,
            (false, true) => &mut rows.missed,
            (false, false) => &mut rows.quiet,
        };
        *count += 1;
        let last = self.last.replace(Last { at, alarm, anomalous });
        let alarmed = last.is_some_and(|last| last.alarm);
        if anomalous {
            if !last.is_some_and(|last| last.anomalous) {
                self.events += 1;
                self.early += u64::from(alarmed);
                self.waits_since = Some(at);
            }
            if alarm && let Some(since) = self.waits_since.take() {
                self.delays_s.push(at.us_since(since) as f64 / 1e6);
            }
            return;
        }
        self.false_alarms += u64::from(alarm && !alarmed);
        if let Some(last) = last {
            self.normal_us += at.us_since(last.at).clamp(0, PAUSE_FACTOR * usual_us);
        }
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.rows.true_alarms += other.rows.true_alarms;
        self.rows.false_alarms += other.rows.false_alarms;
        self.rows.missed += other.rows.missed;
        self.rows.quiet += other.rows.quiet;
        self.events += other.events;
        self.early += other.early;
        self.delays_s.extend(&other.delays_s);
        self.false_alarms += other.false_alarms;
        self.normal_us += other.normal_us;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows == Rows::default()
    }

    /// `None` without an alarm or an anomaly.
    fn f1(&self) -> Option<f64> {
        let Rows { true_alarms, false_alarms, missed, .. } = self.rows;
        share(2 * true_alarms, 2 * true_alarms + false_alarms + missed)
    }

    fn far_percent(&self) -> Option<f64> {
        share(self.rows.false_alarms, self.rows.false_alarms + self.rows.quiet).map(|share| 100.0 * share)
    }

    fn mar_percent(&self) -> Option<f64> {
        share(self.rows.missed, self.rows.missed + self.rows.true_alarms).map(|share| 100.0 * share)
    }

    fn false_alarms_an_hour(&self) -> Option<f64> {
        (self.normal_us > 0).then(|| self.false_alarms as f64 / (self.normal_us as f64 / 3.6e9))
    }

    /// The delay that so many percent of the hit events do not exceed.
    fn delay_s(&self, percent: usize) -> Option<f64> {
        let mut delays = self.delays_s.clone();
        delays.sort_by(f64::total_cmp);
        let place = (delays.len() * percent).div_ceil(100).max(1) - 1;
        delays.get(place).copied()
    }

    pub(super) fn text(&self) -> String {
        let figure = |value: Option<f64>, digits: usize| value.map_or("-".into(), |value| format!("{value:.digits$}"));
        format!(
            "F1 {}, FAR {} %, MAR {} %; {} of {} events hit, {} early, delay median {} s, p90 {} s; {} false alarms an hour",
            figure(self.f1(), 3),
            figure(self.far_percent(), 2),
            figure(self.mar_percent(), 2),
            self.delays_s.len(),
            self.events,
            self.early,
            figure(self.delay_s(50), 1),
            figure(self.delay_s(90), 1),
            figure(self.false_alarms_an_hour(), 2),
        )
    }

    pub(super) fn json(&self) -> serde_json::Value {
        serde_json::json!({
            "f1": self.f1(),
            "far_percent": self.far_percent(),
            "mar_percent": self.mar_percent(),
            "rows": {
                "true_alarms": self.rows.true_alarms,
                "false_alarms": self.rows.false_alarms,
                "missed": self.rows.missed,
                "quiet": self.rows.quiet,
            },
            "events": self.events,
            "events_hit": self.delays_s.len(),
            "events_early": self.early,
            "delay_s_p50": self.delay_s(50),
            "delay_s_p90": self.delay_s(90),
            "false_alarms": self.false_alarms,
            "false_alarms_an_hour": self.false_alarms_an_hour(),
        })
    }
}

fn share(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A row a second: the alarm's and the label's marks, `#` for true.
    fn check(alarms: &str, labels: &str, expected: &str) {
        let mut score = Score::default();
        for (second, (alarm, label)) in (0..).zip(alarms.chars().zip(labels.chars())) {
            score.count(Timestamp::from_millis(second * 1_000), alarm == '#', label == '#', 1_000_000);
        }
        assert_eq!(score.text(), expected);
        let mut twice = score.clone();
        twice.add(&score);
        assert_eq!((twice.f1(), twice.far_percent()), (score.f1(), score.far_percent()));
        assert_eq!(twice.false_alarms_an_hour(), score.false_alarms_an_hour());
    }

    #[test]
    fn figures_are_what_their_names_say() {
        check(
            "",
            "",
            "F1 -, FAR - %, MAR - %; 0 of 0 events hit, 0 early, delay median - s, p90 - s; - false alarms an hour",
        );
        check(
            ".##.........####",
            "......####..####",
            "F1 0.571, FAR 25.00 %, MAR 50.00 %; 1 of 2 events hit, 0 early, delay median 0.0 s, p90 0.0 s; 514.29 false alarms an hour",
        );
        check(
            "...#####",
            "....####",
            "F1 0.889, FAR 25.00 %, MAR 0.00 %; 1 of 1 events hit, 1 early, delay median 0.0 s, p90 0.0 s; 1200.00 false alarms an hour",
        );
    }

    #[test]
    fn a_pause_is_no_time_that_was_judged() {
        let mut score = Score::default();
        for second in [0, 1, 2, 86_400] {
            score.count(Timestamp::from_millis(second * 1_000), second == 2, false, 1_000_000);
        }
        assert_eq!(score.false_alarms_an_hour(), Some(300.0));
    }
}
