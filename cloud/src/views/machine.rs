//! A machine as it is shown: with the machines that were merged into it, under one word.
//!
//! A merged machine is not shown by itself. Its target has the sensors of all, matched by name, and the live state
//! of whichever was heard last (a machine that changed its name goes on under the new one).

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{AlarmState, Criticality, GatewayState, Patience, Severity};

/// A machine is silent after no fewer than so many of its intervals.
const SILENT_INTERVALS: i64 = 3;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Detector {
    Calibrating,
    Watching,
    Anomalous,
    Blind,
    /// Calibration refused what it saw; `detector_note` says why.
    Uncalibrated,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    Unknown,
    Off,
    Idle,
    Running,
}

/// Whether the machine is heard. A silent gateway says nothing about its machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Connection {
    Live,
    Silent,
    GatewayOffline,
}

/// The one word to show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum MachineState {
    Ok,
    Anomalous,
    Calibrating,
    Uncalibrated,
    Blind,
    Silent,
    GatewayOffline,
}

/// How long a machine has until its health is 0 %, if its wear goes on as it did.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, ToSchema)]
pub struct Remaining {
    pub likely_s: f32,
    /// Four times out of five it is between these two.
    pub low_s: f32,
    pub high_s: f32,
}

/// The most severe open alarm of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct MachineAlarm {
    pub id: Uuid,
    pub severity: Severity,
    pub state: AlarmState,
}

#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Machine {
    pub id: Uuid,
    pub gateway_id: Uuid,
    pub gateway_name: String,
    pub site_id: Uuid,
    /// Where it stands in the site.
    pub area_id: Option<Uuid>,
    /// The machine's id on its gateway.
    pub name: String,
    /// What people called it; `null` unless it was renamed.
    pub display_name: Option<String>,
    pub state: MachineState,
    /// 0 (worst) to 100.
    pub health_percent: Option<f32>,
    /// 1.0 is the threshold.
    pub score: Option<f32>,
    pub detector: Detector,
    pub calibration_percent: Option<i16>,
    /// Why the machine is not calibrated.
    pub detector_note: Option<String>,
    /// `null` without a trend.
    pub remaining: Option<Remaining>,
    pub mode: Mode,
    pub last_reading_at: Option<Timestamp>,
    pub connection: Connection,
    pub sensors_count: i64,
    pub ignored: bool,
    pub merged_into: Option<Uuid>,
    /// How much the plant depends on it; its alarms are as much graver.
    pub criticality: Criticality,
    pub alarm: Option<MachineAlarm>,
    pub model: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Sensor {
    pub name: String,
    pub display_name: Option<String>,
    /// A UCUM unit code.
    pub unit: Option<String>,
    /// The place of its value in the live stream's `values`.
    pub position: usize,
    pub ignored: bool,
    pub last_value: Option<f64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct MergedMachine {
    pub id: Uuid,
    pub name: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct MachineDetail {
    #[serde(flatten)]
    pub machine: Machine,
    /// The detector's sampling period.
    pub step_ms: i32,
    /// The summary's period.
    pub interval_ms: i32,
    pub sensors: Vec<Sensor>,
    /// The machines that are shown as a part of this one.
    pub merged: Vec<MergedMachine>,
}

/// What changes from moment to moment.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct MachineLive {
    pub id: Uuid,
    pub health_percent: Option<f32>,
    pub score: Option<f32>,
    pub detector: Detector,
    pub calibration_percent: Option<i16>,
    /// Why the machine is not calibrated.
    pub detector_note: Option<String>,
    /// `null` without a trend.
    pub remaining: Option<Remaining>,
    pub mode: Mode,
    pub last_reading_at: Option<Timestamp>,
    pub connection: Connection,
    pub state: MachineState,
    /// By the sensors' `position`.
    pub values: Vec<Option<f64>>,
}

impl MachineLive {
    #[must_use]
    pub fn new(machine: &Machine, sensors: &[Sensor]) -> Self {
        Self {
            id: machine.id,
            health_percent: machine.health_percent,
            score: machine.score,
            detector: machine.detector,
            calibration_percent: machine.calibration_percent,
            detector_note: machine.detector_note.clone(),
            remaining: machine.remaining,
            mode: machine.mode,
            last_reading_at: machine.last_reading_at,
            connection: machine.connection,
            state: machine.state,
            values: sensors.iter().map(|sensor| sensor.last_value).collect(),
        }
    }
}

/// Whether a machine is heard.
#[must_use]
pub fn connection(
    gateway: GatewayState,
    last_reading_at: Option<Timestamp>,
    interval_ms: i32,
    now: Timestamp,
    patience: Patience,
) -> Connection {
    if gateway != GatewayState::Online {
        return Connection::GatewayOffline;
    }
    let limit = patience.machine.max(SignedDuration::from_millis(SILENT_INTERVALS * i64::from(interval_ms)));
    match last_reading_at {
        Some(last) if now.duration_since(last) <= limit => Connection::Live,
        _ => Connection::Silent,
    }
}

/// The one word to show: what is not heard cannot be judged, so the connection comes first.
#[must_use]
pub const fn state(connection: Connection, detector: Detector) -> MachineState {
    match (connection, detector) {
        (Connection::GatewayOffline, _) => MachineState::GatewayOffline,
        (Connection::Silent, _) => MachineState::Silent,
        (Connection::Live, Detector::Calibrating) => MachineState::Calibrating,
        (Connection::Live, Detector::Watching) => MachineState::Ok,
        (Connection::Live, Detector::Anomalous) => MachineState::Anomalous,
        (Connection::Live, Detector::Blind) => MachineState::Blind,
        (Connection::Live, Detector::Uncalibrated) => MachineState::Uncalibrated,
    }
}

/// Why a machine cannot be shown as a part of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MergeRefused {
    #[error("a machine cannot be merged into itself")]
    Itself,
    #[error("there is no machine with the id given as `into` at the same site")]
    NoTarget,
    #[error("the machine given as `into` is itself merged into another; merge into that one")]
    TargetIsMerged,
    #[error("other machines are merged into this one; undo that first")]
    HasParts,
}

/// Whether `id` may be merged into `into`. `target` says, if there is such a machine, what it is merged into itself.
/// Groups are one level deep, so that each machine is shown in one place.
///
/// # Errors
/// With the reason why not.
pub fn may_merge(id: Uuid, into: Uuid, target: Option<Option<Uuid>>, has_parts: bool) -> Result<(), MergeRefused> {
    match target {
        _ if id == into => Err(MergeRefused::Itself),
        None => Err(MergeRefused::NoTarget),
        Some(Some(_)) => Err(MergeRefused::TargetIsMerged),
        Some(None) if has_parts => Err(MergeRefused::HasParts),
        Some(None) => Ok(()),
    }
}

/// A sensor of one machine of a merged group.
#[derive(Debug, Clone, PartialEq)]
pub struct GroupSensor {
    pub name: String,
    pub display_name: Option<String>,
    pub unit: Option<String>,
    pub ignored: bool,
    pub last_value: Option<f64>,
    /// When its machine was last heard.
    pub heard_at: Option<Timestamp>,
}

/// The sensors of a group, one for each name, in the order of their first appearance (the target's own stand
/// first, so that its positions hold); the value of the machine that was heard last.
#[must_use]
pub fn union_of_sensors(group: impl IntoIterator<Item = GroupSensor>) -> Vec<Sensor> {
    let mut heard: Vec<Option<Timestamp>> = Vec::new();
    let mut union: Vec<Sensor> = Vec::new();
    let mut places = std::collections::HashMap::new();
    for sensor in group {
        let value = sensor.last_value.filter(|value| value.is_finite());
        if let Some(&place) = places.get(&sensor.name) {
            let known: &mut Sensor = &mut union[place];
            if sensor.heard_at > heard[place] {
                heard[place] = sensor.heard_at;
                known.last_value = value;
            }
            known.display_name = known.display_name.take().or(sensor.display_name);
            known.unit = known.unit.take().or(sensor.unit);
            known.ignored |= sensor.ignored;
            continue;
        }
        let position = union.len();
        places.insert(sensor.name.clone(), position);
        heard.push(sensor.heard_at);
        union.push(Sensor {
            name: sensor.name,
            display_name: sensor.display_name,
            unit: sensor.unit,
            position,
            ignored: sensor.ignored,
            last_value: value,
        });
    }
    union
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_790_000_000 + seconds).unwrap()
    }

    #[test]
    fn gateway_offline_is_never_shown_as_machine_silent() {
        use Connection as C;
        use GatewayState as G;
        for (gateway, last, interval_ms, expected) in [
            (G::Online, Some(-60), 10_000, C::Live),
            (G::Online, Some(-61), 10_000, C::Silent),
            (G::Online, Some(-180), 60_000, C::Live),
            (G::Online, Some(-181), 60_000, C::Silent),
            (G::Online, None, 10_000, C::Silent),
            (G::Offline, Some(0), 10_000, C::GatewayOffline),
            (G::Offline, Some(-1_000), 10_000, C::GatewayOffline),
            (G::Offline, None, 10_000, C::GatewayOffline),
            (G::Revoked, Some(0), 10_000, C::GatewayOffline),
            (G::Pending, None, 10_000, C::GatewayOffline),
        ] {
            let found = connection(gateway, last.map(at), interval_ms, at(0), Patience::default());
            assert_eq!(found, expected, "{gateway:?} {last:?} {interval_ms}");
        }
        assert_eq!(state(C::GatewayOffline, Detector::Anomalous), MachineState::GatewayOffline);
        assert_eq!(state(C::Silent, Detector::Anomalous), MachineState::Silent);
        assert_eq!(state(C::Live, Detector::Watching), MachineState::Ok);
    }

    #[test]
    fn a_group_has_each_sensor_once() {
        let sensor = |name: &str, value, heard| GroupSensor {
            name: name.into(),
            display_name: None,
            unit: None,
            ignored: false,
            last_value: Some(value),
            heard_at: Some(at(heard)),
        };
        let union = union_of_sensors([
            sensor("flow", 1.0, 0),
            sensor("current", f64::NAN, 0),
            sensor("pressure", 3.0, 5),
            sensor("flow", 4.0, 5),
        ]);
        let found: Vec<_> = union.iter().map(|s| (s.name.as_str(), s.position, s.last_value)).collect();
        assert_eq!(found, [("flow", 0, Some(4.0)), ("current", 1, None), ("pressure", 2, Some(3.0))]);
    }
}
