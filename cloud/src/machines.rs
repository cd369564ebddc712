//! What the cloud takes from a gateway about a machine, and what it refuses for good.
//!
//! A catalog is only ever appended to: a position never changes its meaning, so rows of any age can be read.

use gemba_shared::telemetry::{
    Anomaly, Catalog, DetectorState, Event, EventKind, Mode, Quality, Remaining, SENSORS_MAX, SensorSummary, Summary,
    Verdict,
};
use jiff::{SignedDuration, Timestamp};

use crate::{alarms::Criticality, clock};

/// How far a record's time may lie behind and before the present.
pub const PAST_MAX: SignedDuration = SignedDuration::from_hours(24 * 3_653);
pub const FUTURE_MAX: SignedDuration = SignedDuration::from_hours(48);
/// The longest model name or unit, in bytes.
const TEXT_BYTES_MAX: usize = 128;
/// The longest step or interval, milliseconds.
const PERIOD_MS_MAX: u32 = 24 * 3_600 * 1_000;

/// Why a record that can be read is refused for good: a fixed word.
pub type Reason = &'static str;

/// A machine as the database knows it, and how one outbox of its gateway numbers its sensors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    pub id: uuid::Uuid,
    pub key: i32,
    /// Nobody is to be told of it.
    pub ignored: bool,
    /// The machine that it is shown as.
    pub shown: uuid::Uuid,
    pub criticality: Criticality,
    /// Names by our position.
    pub sensors: Vec<String>,
    /// By the gateway's position: ours.
    pub positions: Vec<i16>,
    /// Of the catalog that `positions` come from; 0 when that outbox has sent none.
    pub revision: i32,
}

impl Known {
    /// The name of the sensor at a gateway's position.
    #[must_use]
    pub fn sensor(&self, position: usize) -> Option<&str> {
        let ours = usize::try_from(*self.positions.get(position)?).ok()?;
        self.sensors.get(ours).map(String::as_str)
    }

    /// What goes by the gateway's positions, by ours.
    #[must_use]
    pub fn ordered<T: Copy>(&self, theirs: &[T], none: T) -> Vec<T> {
        if self.positions.iter().enumerate().all(|(i, ours)| i16::try_from(i) == Ok(*ours)) {
            return theirs.to_vec();
        }
        let mut ordered = vec![none; self.sensors.len()];
        for (value, ours) in theirs.iter().zip(&self.positions) {
            if let Some(place) = usize::try_from(*ours).ok().and_then(|ours| ordered.get_mut(ours)) {
                *place = *value;
            }
        }
        ordered
    }
}

/// A record's time, if it can be believed.
pub fn time(at: gemba_shared::telemetry::Timestamp, now: Timestamp) -> Result<Timestamp, Reason> {
    let at = clock::from_wire(at).ok_or("time_out_of_bounds")?;
    let age = now.duration_since(at);
    if age > PAST_MAX || age < -FUTURE_MAX { Err("time_out_of_bounds") } else { Ok(at) }
}

/// Our positions of a catalog's sensors; those from `known.sensors.len()` on are new.
///
/// A new outbox (of a gateway that lost its data, or of one that took another's place) may number the sensors
/// otherwise; the same outbox may only add at the end.
pub fn place_catalog(catalog: &Catalog, known: Option<&Known>) -> Result<Vec<i16>, Reason> {
    let bad = |text: &str| text.len() > TEXT_BYTES_MAX || text.chars().any(char::is_control);
    if bad(&catalog.model) || catalog.sensors.iter().any(|sensor| sensor.unit.as_deref().is_some_and(bad)) {
        return Err("bad_text");
    }
    let period = 1..=PERIOD_MS_MAX;
    if !period.contains(&catalog.step_ms) || !period.contains(&catalog.interval_ms) {
        return Err("bad_period");
    }
    if catalog.revision == 0 || catalog.revision > i32::MAX as u32 {
        return Err("bad_revision");
    }
    if catalog.sensors.len() > SENSORS_MAX {
        return Err("too_many_sensors");
    }
    let ours = known.map_or(&[][..], |known| &known.sensors);
    let mut positions: Vec<i16> = Vec::with_capacity(catalog.sensors.len());
    let mut next = ours.len();
    for sensor in &catalog.sensors {
        let place = ours.iter().position(|name| name == sensor.id.as_str()).unwrap_or_else(|| {
            next += 1;
            next - 1
        });
        let place = i16::try_from(place).map_err(|_| "too_many_sensors")?;
        if positions.contains(&place) {
            return Err("sensor_twice");
        }
        positions.push(place);
    }
    let names = catalog.sensors.iter().map(|sensor| &sensor.id);
    if names.clone().enumerate().any(|(i, id)| names.clone().take(i).any(|other| other == id)) {
        return Err("sensor_twice");
    }
    if next > SENSORS_MAX {
        return Err("too_many_sensors");
    }
    let same_outbox = known.filter(|known| known.revision > 0);
    if same_outbox.is_some_and(|known| known.positions.iter().zip(&positions).any(|(old, new)| old != new)) {
        return Err("catalog_changed");
    }
    Ok(positions)
}

/// Whether a summary fits its machine.
pub fn check_summary(summary: &Summary, known: &Known, now: Timestamp) -> Result<Timestamp, Reason> {
    if summary.sensors.len() > known.positions.len() {
        return Err("more_sensors_than_catalog");
    }
    if !(1..=PERIOD_MS_MAX).contains(&summary.interval_ms) {
        return Err("bad_period");
    }
    if summary.sensors.iter().flatten().any(|sensor| sensor.count > i32::MAX as u32) {
        return Err("bad_count");
    }
    time(summary.start, now)
}

/// Whether an event fits what the database can hold.
pub fn check_event(event: &Event, now: Timestamp) -> Result<Timestamp, Reason> {
    match &event.kind {
        EventKind::AnomalyOpened(anomaly) | EventKind::AnomalyUpdated(anomaly) | EventKind::AnomalyClosed(anomaly) => {
            check_anomaly(anomaly, now)?;
        }
        EventKind::NormalShifted(shift) => {
            if shift.shares.len() > SENSORS_MAX {
                return Err("too_many_sensors");
            }
            time(shift.since, now)?;
        }
        EventKind::SensorFault(fault) => {
            if usize::from(fault.sensor) >= SENSORS_MAX {
                return Err("too_many_sensors");
            }
            time(fault.since, now)?;
        }
    }
    time(event.at, now)
}

fn check_anomaly(anomaly: &Anomaly, now: Timestamp) -> Result<(), Reason> {
    if anomaly.shares.len() > SENSORS_MAX {
        return Err("too_many_sensors");
    }
    if !anomaly.score.is_finite() || !anomaly.score_max.is_finite() {
        return Err("bad_score");
    }
    if anomaly.model.len() > TEXT_BYTES_MAX || anomaly.model.chars().any(char::is_control) {
        return Err("bad_text");
    }
    if let Some(window) = &anomaly.window {
        let fits = !window.sensors.is_empty() && window.values.len().is_multiple_of(window.sensors.len());
        if !fits || clock::from_wire(window.first).is_none() {
            return Err("bad_window");
        }
    }
    time(anomaly.opened, now).map(drop)
}

/// A verdict in the database's words.
#[derive(Debug, Clone, PartialEq)]
pub struct Judged {
    pub detector: &'static str,
    /// The word as a number, for the large table.
    pub detector_code: i16,
    pub calibration_percent: Option<i16>,
    /// Why a calibration was refused.
    pub note: Option<String>,
    pub score: Option<f32>,
    pub health_percent: Option<f32>,
    pub mode: &'static str,
    pub mode_code: i16,
    pub remaining: Option<Remaining>,
}

impl From<&Verdict> for Judged {
    fn from(verdict: &Verdict) -> Self {
        let (detector, detector_code, calibration_percent) = match verdict.detector {
            DetectorState::Calibrating { percent } => ("calibrating", 0, Some(i16::from(percent.min(100)))),
            DetectorState::Watching => ("watching", 1, None),
            DetectorState::Anomalous => ("anomalous", 2, None),
            DetectorState::Blind => ("blind", 3, None),
            DetectorState::Uncalibrated { .. } => ("uncalibrated", 4, None),
        };
        let note = match verdict.detector {
            DetectorState::Uncalibrated { reason } => Some(format!("Not calibrated: {reason}")),
            _ => None,
        };
        let (mode, mode_code) = match verdict.mode {
            Mode::Unknown => ("unknown", 0),
            Mode::Off => ("off", 1),
            Mode::Idle => ("idle", 2),
            Mode::Running => ("running", 3),
        };
        let finite = |figure: Option<f32>| figure.filter(|figure| figure.is_finite());
        Self {
            detector,
            detector_code,
            calibration_percent,
            note,
            score: finite(verdict.score),
            health_percent: finite(verdict.health_percent).map(|health| health.clamp(0.0, 100.0)),
            mode,
            mode_code,
            remaining: verdict.remaining.filter(|life| {
                [life.low_s, life.likely_s, life.high_s].iter().all(|seconds| seconds.is_finite() && *seconds >= 0.0)
            }),
        }
    }
}

/// The byte of a sensor's quality in a row of summaries.
#[must_use]
pub const fn quality_code(sensor: Option<&SensorSummary>) -> u8 {
    match sensor {
        None => 255,
        Some(sensor) => match sensor.quality {
            Quality::Good => 0,
            Quality::Held => 1,
            Quality::Missing => 2,
            Quality::Faulty => 3,
        },
    }
}

#[cfg(test)]
mod tests {
    use gemba_shared::{
        ids::{MachineId, SensorId},
        telemetry::{Clock, Sensor, Timestamp as Wire},
    };

    use super::*;

    const NOW: Timestamp = Timestamp::constant(1_800_000_000, 0);

    fn catalog(revision: u32, sensors: &[&str]) -> Catalog {
        let sensor = |name: &&str| Sensor { id: SensorId::new(name).unwrap(), unit: None };
        Catalog {
            machine: MachineId::new("m").unwrap(),
            revision,
            step_ms: 1_000,
            interval_ms: 10_000,
            sensors: sensors.iter().map(sensor).collect(),
            model: "baseline 1".into(),
        }
    }

    fn known(sensors: &[&str], positions: &[i16], revision: i32) -> Known {
        let sensors = sensors.iter().map(ToString::to_string).collect();
        Known {
            id: uuid::Uuid::nil(),
            key: 1,
            ignored: false,
            shown: uuid::Uuid::nil(),
            criticality: Criticality::Medium,
            sensors,
            positions: positions.to_vec(),
            revision,
        }
    }

    #[test]
    fn a_catalog_may_only_grow_at_its_end() {
        let ab = known(&["a", "b"], &[0, 1], 1);
        let check = |names: &[&str], known, expected: Result<&[i16], Reason>| {
            assert_eq!(place_catalog(&catalog(2, names), known), expected.map(<[i16]>::to_vec), "{names:?}");
        };
        check(&["a", "b"], None, Ok(&[0, 1]));
        check(&["a", "b", "c"], Some(&ab), Ok(&[0, 1, 2]));
        check(&["b", "a"], Some(&ab), Err("catalog_changed"));
        check(&["a", "b", "a"], Some(&ab), Err("sensor_twice"));
        check(&["c", "c"], None, Err("sensor_twice"));
        // Another outbox of the gateway, or another gateway in its place.
        let other = known(&["a", "b"], &[0, 1], 0);
        check(&["c", "b", "d"], Some(&other), Ok(&[2, 1, 3]));

        assert_eq!(place_catalog(&catalog(0, &["a"]), None), Err("bad_revision"));
        let mut text = catalog(1, &["a"]);
        text.model = "a\0".into();
        assert_eq!(place_catalog(&text, None), Err("bad_text"));
        let mut period = catalog(1, &["a"]);
        period.interval_ms = 0;
        assert_eq!(place_catalog(&period, None), Err("bad_period"));
    }

    #[test]
    fn positions_are_translated() {
        let same = known(&["a", "b", "c"], &[0, 1], 1);
        assert_eq!(same.ordered(&[1, 2], 0), [1, 2]);
        let other = known(&["a", "b", "c"], &[2, 0], 1);
        assert_eq!(other.ordered(&[1, 2], 0), [2, 0, 1]);
        assert_eq!((other.sensor(0), other.sensor(1), other.sensor(2)), (Some("c"), Some("a"), None));
    }

    #[test]
    fn a_summary_must_fit_its_catalog_and_our_time() {
        let summary = |sensors, at_s: i64| Summary {
            machine: MachineId::new("m").unwrap(),
            start: Wire(at_s * 1_000_000),
            interval_ms: 10_000,
            catalog_revision: 1,
            sensors: vec![None; sensors],
            verdict: Verdict {
                detector: DetectorState::Watching,
                score: None,
                health_percent: None,
                mode: Mode::Unknown,
                remaining: None,
            },
            energy_wh: None,
            clock: Clock::Trusted,
        };
        let now = NOW.as_second();
        let check = |sensors, at_s, expected: Result<(), Reason>| {
            assert_eq!(
                check_summary(&summary(sensors, at_s), &known(&["a"], &[0], 1), NOW).map(drop),
                expected,
                "{at_s}"
            );
        };
        check(1, now, Ok(()));
        check(0, now - 9 * 365 * 86_400, Ok(()));
        check(2, now, Err("more_sensors_than_catalog"));
        check(1, 0, Err("time_out_of_bounds"));
        check(1, now + 3 * 86_400, Err("time_out_of_bounds"));
        check(1, i64::MAX / 1_000_000, Err("time_out_of_bounds"));
    }
}
