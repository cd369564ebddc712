//! Coarser summaries out of finer ones, exactly: what the coarse one says is what one would say that had seen all readings.
//!
//! Counts and energies are added, means and deviations are merged by Chan's rule (Chan, Golub, `LeVeque`: Updating formulae
//! and a pairwise algorithm for computing sample variances, 1979), and of verdicts the worst is kept.

use std::collections::BTreeMap;

use gemba_shared::{
    ids::MachineId,
    telemetry::{DetectorState, Quality, SensorSummary, Summary, Verdict},
};

/// Merges the summaries of each machine that fall into the same stretch of time.
#[derive(Debug)]
pub(super) struct Thinner {
    interval_us: i64,
    open: BTreeMap<MachineId, Summary>,
}

impl Thinner {
    pub(super) fn new(interval_ms: u32) -> Self {
        Self { interval_us: i64::from(interval_ms) * 1_000, open: BTreeMap::new() }
    }

    /// Takes a machine's next summary; gives the one before it if that is complete.
    pub(super) fn push(&mut self, summary: Summary) -> Option<Summary> {
        if let Some(open) = self.open.get_mut(&summary.machine)
            && self.interval_us > 0
            && open.start.floor(self.interval_us) == summary.start.floor(self.interval_us)
            && end_us(open) <= summary.start.0
            && open.clock == summary.clock
        {
            merge(open, &summary);
            return None;
        }
        self.open.insert(summary.machine.clone(), summary)
    }

    /// What is left, by machine.
    pub(super) fn finish(self) -> impl Iterator<Item = Summary> {
        self.open.into_values()
    }
}

fn end_us(summary: &Summary) -> i64 {
    summary.start.0.saturating_add(i64::from(summary.interval_ms) * 1_000)
}

/// Adds a later summary of the same machine.
fn merge(into: &mut Summary, later: &Summary) {
    let length_ms = (end_us(later) - into.start.0) / 1_000;
    into.interval_ms = u32::try_from(length_ms).unwrap_or(u32::MAX);
    into.catalog_revision = into.catalog_revision.max(later.catalog_revision);
    if into.sensors.len() < later.sensors.len() {
        into.sensors.resize(later.sensors.len(), None);
    }
    for (sensor, later) in into.sensors.iter_mut().zip(&later.sensors) {
        *sensor = match (*sensor, *later) {
            (Some(sensor), Some(later)) => Some(merge_sensor(sensor, later)),
            (one, other) => one.or(other),
        };
    }
    into.verdict = worst(into.verdict, later.verdict);
    into.energy_wh = match (into.energy_wh, later.energy_wh) {
        (Some(energy), Some(later)) => Some(energy + later),
        (one, other) => one.or(other),
    };
}

fn merge_sensor(a: SensorSummary, b: SensorSummary) -> SensorSummary {
    let quality = match (a.quality, b.quality) {
        (Quality::Faulty, _) | (_, Quality::Faulty) => Quality::Faulty,
        (Quality::Good, _) | (_, Quality::Good) => Quality::Good,
        (Quality::Held, _) | (_, Quality::Held) => Quality::Held,
        (Quality::Missing, Quality::Missing) => Quality::Missing,
    };
    // Without readings there is nothing to merge: the figures are held values.
    if b.count == 0 {
        return SensorSummary { last: if a.count == 0 { b.last } else { a.last }, quality, ..a };
    }
    if a.count == 0 {
        return SensorSummary { quality, ..b };
    }
    let (na, nb) = (f64::from(a.count), f64::from(b.count));
    let n = na + nb;
    let distance = b.mean - a.mean;
    let squares = a.sd * a.sd * na + b.sd * b.sd * nb + distance * distance * na * nb / n;
    SensorSummary {
        count: a.count.saturating_add(b.count),
        min: a.min.min(b.min),
        max: a.max.max(b.max),
        mean: a.mean + distance * nb / n,
        sd: (squares / n).sqrt(),
        last: b.last,
        quality,
    }
}

fn worst(a: Verdict, b: Verdict) -> Verdict {
    let rank = |verdict: &Verdict| match verdict.detector {
        DetectorState::Watching => 0,
        DetectorState::Calibrating { .. } => 1,
        DetectorState::Uncalibrated { .. } => 2,
        DetectorState::Blind => 3,
        DetectorState::Anomalous => 4,
    };
    let larger = |a: Option<f32>, b: Option<f32>| a.into_iter().chain(b).reduce(f32::max);
    let smaller = |a: Option<f32>, b: Option<f32>| a.into_iter().chain(b).reduce(f32::min);
    Verdict {
        detector: if rank(&a) > rank(&b) { a.detector } else { b.detector },
        score: larger(a.score, b.score),
        health_percent: smaller(a.health_percent, b.health_percent),
        mode: b.mode,
        remaining: b.remaining,
    }
}

#[cfg(test)]
mod tests {
    use gemba_shared::telemetry::{Clock, Mode, Timestamp};

    use super::*;

    fn summary(machine: &str, start_s: i64, values: &[f64]) -> Summary {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let sensor = SensorSummary {
            count: u32::try_from(values.len()).unwrap(),
            min: values.iter().copied().fold(f64::INFINITY, f64::min),
            max: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            mean,
            sd: (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n).sqrt(),
            last: *values.last().unwrap(),
            quality: Quality::Good,
        };
        Summary {
            machine: MachineId::new(machine).unwrap(),
            start: Timestamp::from_millis(start_s * 1_000),
            interval_ms: 10_000,
            catalog_revision: 1,
            sensors: vec![Some(sensor), None],
            verdict: Verdict {
                detector: DetectorState::Watching,
                score: Some(start_s as f32),
                health_percent: Some(90.0 - start_s as f32),
                mode: Mode::Running,
                remaining: None,
            },
            energy_wh: Some(2.0),
            clock: Clock::Trusted,
        }
    }

    #[test]
    fn six_make_one_that_knows_what_they_knew() {
        let values: Vec<f64> = (0..60).map(|n| f64::from(n * n % 37) * 0.3 + 1e6).collect();
        let mut thinner = Thinner::new(60_000);
        for (ten, start_s) in values.chunks(10).zip((0..).step_by(10)) {
            assert_eq!(thinner.push(summary("a", start_s, ten)), None);
            assert_eq!(thinner.push(summary("b", start_s + 55, ten)).is_some(), start_s == 10);
        }
        let merged: Vec<Summary> = thinner.finish().collect();
        let whole = summary("a", 0, &values);
        let (found, expected) = (merged[0].sensors[0].unwrap(), whole.sensors[0].unwrap());
        assert_eq!((merged[0].start, merged[0].interval_ms, merged[0].energy_wh), (whole.start, 60_000, Some(12.0)));
        assert_eq!((found.count, found.min, found.max, found.last), (60, expected.min, expected.max, expected.last));
        assert!((found.mean - expected.mean).abs() < 1e-9 && (found.sd - expected.sd).abs() < 1e-6, "{found:?}");
        assert_eq!((merged[0].verdict.score, merged[0].verdict.health_percent), (Some(50.0), Some(40.0)));
        assert_eq!((merged[1].start, merged[1].interval_ms), (Timestamp::from_millis(65_000), 50_000));
    }

    #[test]
    fn what_overlaps_or_is_marked_is_not_merged() {
        let mut thinner = Thinner::new(60_000);
        assert_eq!(thinner.push(summary("a", 10, &[1.0])), None);
        assert_eq!(thinner.push(summary("a", 15, &[2.0])), Some(summary("a", 10, &[1.0])));
        let untrusted = Summary { clock: Clock::Untrusted, ..summary("a", 30, &[3.0]) };
        assert_eq!(thinner.push(untrusted), Some(summary("a", 15, &[2.0])));
    }

    #[test]
    fn a_sensor_that_was_silent_adds_nothing() {
        let measured = summary("a", 0, &[1.0, 3.0]).sensors[0].unwrap();
        let held =
            SensorSummary { count: 0, min: 9.0, max: 9.0, mean: 9.0, sd: 0.0, last: 9.0, quality: Quality::Held };
        assert_eq!(merge_sensor(measured, held), measured);
        assert_eq!(merge_sensor(held, measured), measured);
        let later = SensorSummary { last: 8.0, quality: Quality::Missing, ..held };
        assert_eq!(merge_sensor(held, later), SensorSummary { last: 8.0, ..held });
    }
}
