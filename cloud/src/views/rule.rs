//! Rules that need no model, as they are shown.

use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::Severity;
use crate::alarms::rules::{Figure, Phase, RuleKind, Schedule};

/// A rule, and where it stands.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct AlarmRule {
    pub id: Uuid,
    pub machine_id: Uuid,
    pub machine_name: String,
    pub name: String,
    /// `null`: the whole machine (`no_data` only).
    pub sensor: Option<String>,
    pub kind: RuleKind,
    /// Which figure of an interval is looked at.
    pub figure: Figure,
    /// In the sensor's unit; for a rate, in it a minute; `null` for `no_data`.
    pub threshold: Option<f64>,
    /// How far behind the threshold a value must be to count as clear.
    pub dead_band: f64,
    /// How long it must be so before an alarm is raised, seconds.
    pub on_delay_s: i32,
    /// How long it must be clear before the alarm returns, seconds.
    pub off_delay_s: i32,
    pub severity: Severity,
    /// `null`: always.
    pub schedule: Option<Schedule>,
    /// Judged only while the machine runs.
    pub only_running: bool,
    pub enabled: bool,
    pub created_at: Timestamp,
    /// The user's name.
    pub created_by: String,
    pub updated_at: Timestamp,
    pub phase: Phase,
    /// When the delay that is under way began.
    pub since: Option<Timestamp>,
    /// The end of the last interval that was judged.
    pub last_at: Option<Timestamp>,
    pub last_value: Option<f64>,
}
