//! Alarms as they are shown, and what holds them back.

use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{AlarmState, ConditionState, Hold, Severity, Share};

#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Alarm {
    pub id: Uuid,
    /// `null` for an alarm of the gateway itself.
    pub machine_id: Option<Uuid>,
    pub machine_name: Option<String>,
    pub gateway_id: Uuid,
    pub gateway_name: String,
    pub condition: String,
    pub state: AlarmState,
    /// Whether the condition is there, whatever holds the alarm back.
    pub condition_state: ConditionState,
    /// What holds it back.
    pub held: Option<Held>,
    pub severity: Severity,
    pub message: String,
    pub raised_at: Timestamp,
    pub arrived_at: Timestamp,
    /// It arrived so long after it was raised that it is history.
    pub late: bool,
    pub returned_at: Option<Timestamp>,
    pub acknowledged_at: Option<Timestamp>,
    /// The user's name.
    pub acknowledged_by: Option<String>,
    pub comment: Option<String>,
    pub anomaly_id: Option<Uuid>,
    pub incident_id: Option<Uuid>,
    /// When people were told, the last time; `null` while it is held back, and for history.
    pub annunciated_at: Option<Timestamp>,
    /// How often the condition was raised in the ten minutes before, this time included.
    pub repeats: i32,
    /// Raised three times or more in ten minutes.
    pub chattering: bool,
    /// The sensors that drove it most.
    pub lead_sensors: Vec<Share>,
}

/// What holds an alarm back now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Held {
    /// For `/alarm-holds/{id}/end`.
    pub id: Uuid,
    pub kind: Hold,
    pub reason: String,
    /// The user's name.
    pub by: String,
    pub since: Timestamp,
    /// `null`: until somebody ends it.
    pub until: Option<Timestamp>,
}

/// Shelving, planned maintenance or out of service, of one condition or of all of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct AlarmHold {
    pub id: Uuid,
    /// The machine, or for a gateway's own alarms the gateway.
    pub subject_id: Uuid,
    pub machine_name: Option<String>,
    /// `null`: all conditions.
    pub condition: Option<String>,
    pub kind: Hold,
    pub reason: String,
    pub created_at: Timestamp,
    /// The user's name.
    pub created_by: String,
    /// A planned window may begin later.
    pub since: Timestamp,
    /// `null`: until somebody ends it.
    pub until: Option<Timestamp>,
    pub ended_at: Option<Timestamp>,
    /// `null` where it ended by itself.
    pub ended_by: Option<String>,
}

/// How good the alarm system is to the people in front of it, after ISA-18.2 and EEMUA 191.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct AlarmQuality {
    pub from: Timestamp,
    /// Exclusive.
    pub to: Timestamp,
    /// That rates are divided by.
    pub operators: i32,
    /// Announced; what was held back or late is not counted.
    pub alarms: i64,
    /// Alarms for each operator in ten minutes: about 1 is what people can take, 2 the most.
    pub rate: f64,
    /// The most in ten minutes, for each operator: at most 10.
    pub rate_max: f64,
    /// Periods of ten minutes with more than ten alarms for each operator, in per cent: less than 1.
    pub flood_percent: f64,
    /// Incidents that operators were told of.
    pub pages: i64,
    /// In ten minutes.
    pub page_rate: f64,
    /// Alarms that had stood for more than 24 hours at the end: fewer than 5.
    pub stale: i64,
    /// Conditions that were raised three times or more in ten minutes: none.
    pub chattering: i64,
    pub acknowledged: i64,
    /// From the announcement to the acknowledgement, seconds.
    pub acknowledge_s_median: Option<f64>,
    /// Nine of ten were acknowledged within.
    pub acknowledge_s_p90: Option<f64>,
    /// Anomalies behind them that people have labelled.
    pub labelled: i64,
    /// How many of these were real, in per cent: the detector's precision. `null` where nothing is labelled.
    pub precision_percent: Option<f64>,
    /// The ten conditions with most alarms; together they should have few.
    pub top: Vec<ConditionCount>,
}

/// A condition, and how many alarms it raised.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct ConditionCount {
    /// `null` for a condition of the gateway itself.
    pub machine_id: Option<Uuid>,
    pub machine_name: Option<String>,
    pub gateway_id: Uuid,
    pub gateway_name: String,
    pub condition: String,
    /// What its last alarm said.
    pub message: String,
    pub count: i64,
    /// Of all alarms.
    pub share_percent: f64,
}
