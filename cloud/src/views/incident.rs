//! Incidents as they are shown.

use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{Alarm, Severity, TicketLink};
use crate::{incidents::NoticeReason, users::Role};

/// Alarms that belong together: people are told of them as one.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Incident {
    pub id: Uuid,
    pub site_id: Uuid,
    pub gateway_id: Uuid,
    pub gateway_name: String,
    /// Of its first alarm; `null` where that is the gateway's own.
    pub machine_id: Option<Uuid>,
    pub machine_name: Option<String>,
    /// Of its gravest alarm.
    pub severity: Severity,
    /// What its first alarm says.
    pub message: String,
    pub opened_at: Timestamp,
    pub last_alarm_at: Timestamp,
    pub closed_at: Option<Timestamp>,
    /// The user's name; `null` where it closed by itself.
    pub closed_by: Option<String>,
    pub assigned_to_id: Option<Uuid>,
    /// The user's name.
    pub assigned_to: Option<String>,
    pub assigned_at: Option<Timestamp>,
    /// Operators were told of it. An incident waits for its turn when they were told of too many.
    pub paged: bool,
    /// Steps of the escalation that were taken.
    pub escalated: i16,
    pub alarms: i64,
    /// Not over.
    pub alarms_open: i64,
    pub alarms_unacknowledged: i64,
    pub machines: i64,
    pub comments: i64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct IncidentComment {
    pub id: Uuid,
    /// The user's name.
    pub author: String,
    pub written_at: Timestamp,
    pub text: String,
}

/// Who was to be told of an incident, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Notice {
    pub id: Uuid,
    pub reason: NoticeReason,
    /// Of the incident at that time.
    pub severity: Severity,
    /// Everybody with this role at the site, or
    pub role: Option<Role>,
    /// one user.
    pub user: Option<String>,
    pub created_at: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct IncidentDetail {
    #[serde(flatten)]
    pub incident: Incident,
    /// The newest first, at most 200.
    pub items: Vec<Alarm>,
    /// In the order of time.
    pub thread: Vec<IncidentComment>,
    /// In the order of time.
    pub notices: Vec<Notice>,
    /// Its ticket, and those that were cancelled before; the newest first.
    pub tickets: Vec<TicketLink>,
}
