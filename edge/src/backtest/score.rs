//! How often an alarm was right, row by row, as SKAB's protocol counts: F1, the false-alarm rate (of normal rows) and the
//! missing-alarm rate (of anomalous rows).

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Confusion {
    /// Anomalous rows in an alarm; normal rows in an alarm; and so on.
    true_alarms: u64,
    false_alarms: u64,
    missed: u64,
    quiet: u64,
}

impl Confusion {
    /// Rows of one step: anomalous ones and normal ones.
    pub(super) fn count(&mut self, alarm: bool, anomalous: u64, normal: u64) {
        let (bad, good) =
            if alarm { (&mut self.true_alarms, &mut self.false_alarms) } else { (&mut self.missed, &mut self.quiet) };
        *bad += anomalous;
        *good += normal;
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.true_alarms += other.true_alarms;
        self.false_alarms += other.false_alarms;
        self.missed += other.missed;
        self.quiet += other.quiet;
    }

    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// `None` without an alarm or an anomaly.
    pub(super) fn f1(&self) -> Option<f64> {
        share(2 * self.true_alarms, 2 * self.true_alarms + self.false_alarms + self.missed)
    }

    pub(super) fn far_percent(&self) -> Option<f64> {
        share(self.false_alarms, self.false_alarms + self.quiet).map(|share| 100.0 * share)
    }

    pub(super) fn mar_percent(&self) -> Option<f64> {
        share(self.missed, self.missed + self.true_alarms).map(|share| 100.0 * share)
    }

    pub(super) fn text(&self) -> String {
        let figure = |value: Option<f64>, digits: usize| value.map_or("-".into(), |value| format!("{value:.digits$}"));
        format!(
            "F1 {}, FAR {} %, MAR {} %",
            figure(self.f1(), 3),
            figure(self.far_percent(), 2),
            figure(self.mar_percent(), 2)
        )
    }

    pub(super) fn json(&self) -> serde_json::Value {
        serde_json::json!({
            "f1": self.f1(),
            "far_percent": self.far_percent(),
            "mar_percent": self.mar_percent(),
            "true_alarms": self.true_alarms,
            "false_alarms": self.false_alarms,
            "missed": self.missed,
            "quiet": self.quiet,
        })
    }
}

fn share(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_what_their_names_say() {
        let mut confusion = Confusion::default();
        assert_eq!(confusion.text(), "F1 -, FAR - %, MAR - %");
        confusion.count(true, 6, 2);
        confusion.count(false, 4, 18);
        assert_eq!(confusion.text(), "F1 0.667, FAR 10.00 %, MAR 40.00 %");
        let mut twice = confusion;
        twice.add(&confusion);
        assert_eq!(twice.text(), confusion.text());
    }
}
