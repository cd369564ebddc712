//! What a supervisor is shown of gateways, machines, anomalies and alarms, and the rules behind the words.
//!
//! The store fills these, the API and the live stream send them as they are: both show the same.

pub mod alarm;
pub mod incident;
pub mod machine;
pub mod plan;
pub mod rule;
pub mod ticket;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

pub use crate::alarms::{AlarmState, ConditionState, Criticality, Hold, Severity};
pub use alarm::{Alarm, AlarmHold, AlarmQuality, ConditionCount, Held};
pub use incident::{Incident, IncidentComment, IncidentDetail, Notice};
pub use machine::{Connection, Detector, Machine, MachineAlarm, MachineDetail, MachineLive, MachineState, Sensor};
pub use plan::{Plan, PlanText, PlanTicket};
pub use rule::AlarmRule;
pub use ticket::{
    AnomalyLabel, Attachment, CostLine, Ticket, TicketComment, TicketDetail, TicketItem, TicketLink, TicketStep,
};

/// How many sensors of an anomaly its alarm names.
pub const LEAD_SENSORS_MAX: usize = 3;

/// When something counts as not heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// A gateway that was not heard for longer is offline.
    pub gateway: SignedDuration,
    /// A machine whose latest reading is older is silent; at least three of its intervals.
    pub machine: SignedDuration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { gateway: SignedDuration::from_secs(45), machine: SignedDuration::from_secs(60) }
    }
}

/// A gateway as the database has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Enrolment {
    Pending,
    Enrolled,
    Revoked,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum GatewayState {
    Pending,
    Online,
    Offline,
    Revoked,
}

/// The word for a gateway.
#[must_use]
pub fn gateway_state(
    enrolment: Enrolment,
    last_seen_at: Option<Timestamp>,
    now: Timestamp,
    patience: Patience,
) -> GatewayState {
    match enrolment {
        Enrolment::Pending => GatewayState::Pending,
        Enrolment::Revoked => GatewayState::Revoked,
        Enrolment::Enrolled => match last_seen_at {
            Some(seen) if now.duration_since(seen) <= patience.gateway => GatewayState::Online,
            _ => GatewayState::Offline,
        },
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DropCount {
    pub reason: String,
    pub count: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Gateway {
    pub id: Uuid,
    pub name: String,
    pub state: GatewayState,
    pub last_seen_at: Option<Timestamp>,
    pub version: Option<String>,
    /// Records that wait on the gateway.
    pub backlog_records: Option<i64>,
    pub backlog_bytes: Option<i64>,
    pub clock_trusted: Option<bool>,
    /// What the gateway rejected or dropped since it started.
    pub drops: Vec<DropCount>,
    pub machines: i64,
}

/// What a gateway can be told to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CommandWord {
    /// Learn anew what is normal.
    Recalibrate,
    /// What the detector sees now is normal from now on.
    AcceptNewNormal,
    /// Whether an anomaly was one.
    LabelAnomaly,
    /// Do not judge this machine until it is put back.
    OutOfService,
    /// Read the configuration anew.
    Reload,
    SendDiagnostics,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CommandState {
    /// The gateway did not answer yet; it may be away.
    Waiting,
    Done,
    Failed,
    Expired,
    /// This version of the gateway does not know the command.
    Unknown,
}

/// What somebody told a gateway to do, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct GatewayCommand {
    /// Counts up for each gateway.
    pub number: i64,
    pub kind: CommandWord,
    /// The gateway's name for the machine that it is about.
    pub machine: Option<String>,
    pub created_at: Timestamp,
    pub created_by: String,
    pub expires_at: Timestamp,
    pub state: CommandState,
    pub answered_at: Option<Timestamp>,
    /// What went wrong, or what was asked for.
    pub result: Option<String>,
}

/// How much of an anomaly a sensor explains; the shares of an anomaly sum to one.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Share {
    pub sensor: String,
    pub share: f32,
}

/// Names shares that go by catalog position; the largest first, those of nothing left out.
#[must_use]
pub fn named_shares(shares: &[f32], names: &[(i16, String)]) -> Vec<Share> {
    let mut named: Vec<Share> = shares
        .iter()
        .enumerate()
        .filter(|(_, share)| share.is_finite() && **share > 0.0)
        .map(|(position, &share)| {
            let known = names.iter().find(|(at, _)| usize::try_from(*at) == Ok(position));
            Share { sensor: known.map_or_else(|| format!("#{position}"), |(_, name)| name.clone()), share }
        })
        .collect();
    named.sort_by(|a, b| b.share.total_cmp(&a.share));
    named
}

#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Anomaly {
    pub id: Uuid,
    pub machine_id: Uuid,
    /// The display name where the machine has one.
    pub machine_name: String,
    pub opened_at: Timestamp,
    pub closed_at: Option<Timestamp>,
    /// 1.0 is the threshold.
    pub score: f32,
    pub score_max: f32,
    /// In the model's own terms.
    pub threshold: f32,
    pub model: String,
    /// Falling.
    pub shares: Vec<Share>,
    /// What people said: it was one, or a false alarm; `null`: nothing yet.
    pub real: Option<bool>,
    pub labelled_at: Option<Timestamp>,
    /// The user's name.
    pub labelled_by: Option<String>,
}

/// The raw values around an event; a row a step.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Window {
    pub step_ms: u32,
    pub first: Timestamp,
    pub sensors: Vec<String>,
    pub values: Vec<Vec<Option<f32>>>,
}

#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct AnomalyDetail {
    #[serde(flatten)]
    pub anomaly: Anomaly,
    pub window: Option<Window>,
}

/// A word of the database that this version does not know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the database says {what} {word:?}, which this version does not know")]
pub struct UnknownWord {
    what: &'static str,
    word: String,
}

/// Reads one of the words above as the database spells it.
///
/// # Errors
/// If there is no such word.
pub fn word<T: serde::de::DeserializeOwned>(what: &'static str, word: &str) -> Result<T, UnknownWord> {
    use serde::de::{IntoDeserializer, value::Error};
    let deserializer: serde::de::value::StrDeserializer<'_, Error> = word.into_deserializer();
    T::deserialize(deserializer).map_err(|_| UnknownWord { what, word: word.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_790_000_000 + seconds).unwrap()
    }

    #[test]
    fn a_gateway_is_offline_when_it_was_not_heard_for_too_long() {
        let state = |enrolment, seen: Option<i64>| gateway_state(enrolment, seen.map(at), at(0), Patience::default());
        assert_eq!(state(Enrolment::Enrolled, Some(-45)), GatewayState::Online);
        assert_eq!(state(Enrolment::Enrolled, Some(-46)), GatewayState::Offline);
        assert_eq!(state(Enrolment::Enrolled, Some(10)), GatewayState::Online);
        assert_eq!(state(Enrolment::Enrolled, None), GatewayState::Offline);
        assert_eq!(state(Enrolment::Pending, None), GatewayState::Pending);
        assert_eq!(state(Enrolment::Revoked, Some(0)), GatewayState::Revoked);
    }

    #[test]
    fn shares_are_named_and_fall() {
        let names = [(0, "a".to_owned()), (1, "b".to_owned())];
        let named = named_shares(&[0.2, 0.7, 0.1, 0.0, f32::NAN], &names);
        let names: Vec<_> = named.iter().map(|share| share.sensor.as_str()).collect();
        assert_eq!(names, ["b", "a", "#2"]);
    }

    #[test]
    fn words_of_the_database() {
        assert_eq!(word("state", "returned_unacknowledged"), Ok(AlarmState::ReturnedUnacknowledged));
        assert_eq!(word("severity", "critical"), Ok(Severity::Critical));
        assert!(word::<Severity>("severity", "fatal").unwrap_err().to_string().contains("fatal"));
    }
}
