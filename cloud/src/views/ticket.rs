//! Tickets as they are shown.

use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::CommandState;
use crate::tickets::{AlarmCorrect, Kind, Priority, State, costs::CostKind, failure::FailureMode};

/// A ticket: a work order of a maintenance system.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Ticket {
    pub id: Uuid,
    /// Counts up in the organisation: `#12`.
    pub number: i64,
    pub site_id: Uuid,
    pub site_name: String,
    /// `null`: of an area, or of the site as a whole.
    pub machine_id: Option<Uuid>,
    pub machine_name: Option<String>,
    pub area_id: Option<Uuid>,
    pub area_name: Option<String>,
    /// What it was made from.
    pub incident_id: Option<Uuid>,
    /// Which plan made it; `null` also where that plan was taken away.
    pub plan_id: Option<Uuid>,
    pub kind: Kind,
    pub priority: Priority,
    pub title: String,
    pub description: String,
    pub state: State,
    pub state_since: Timestamp,
    pub due_at: Option<Timestamp>,
    /// It was due, and is not done.
    pub overdue: bool,
    pub assignee_id: Option<Uuid>,
    /// The user's name.
    pub assignee: Option<String>,
    pub created_at: Timestamp,
    /// The user's name; `null` for one that a plan made.
    pub created_by: Option<String>,
    pub updated_at: Timestamp,
    /// When work first began.
    pub started_at: Option<Timestamp>,
    pub done_at: Option<Timestamp>,
    pub closed_at: Option<Timestamp>,
    /// The user's name.
    pub closed_by: Option<String>,
    /// How often.
    pub reopened: i32,
    /// ISO 4217; amounts are in its minor unit (cents).
    pub currency: String,
    pub estimate_minutes: Option<i32>,
    pub estimate_minor: Option<i64>,
    /// What it took in fact.
    pub labour_minutes: i64,
    pub labour_minor: i64,
    pub part_minor: i64,
    pub other_minor: i64,
    /// All of these.
    pub cost_minor: i64,
    /// Said at closing; `null`: nothing failed.
    pub failure_mode: Option<FailureMode>,
    pub cause: String,
    pub remedy: String,
    /// `null`: it stems from no alarm, or nobody has closed it yet.
    pub alarm_correct: Option<AlarmCorrect>,
    pub items: i64,
    pub items_done: i64,
    pub comments: i64,
    pub attachments: i64,
}

/// As much of a ticket as what it is linked to shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct TicketLink {
    pub id: Uuid,
    pub number: i64,
    pub title: String,
    pub state: State,
    pub priority: Priority,
    /// The user's name.
    pub assignee: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct TicketDetail {
    #[serde(flatten)]
    pub ticket: Ticket,
    /// The states that may follow.
    pub next: Vec<State>,
    /// In the order in which they were written.
    pub checklist: Vec<TicketItem>,
    pub thread: Vec<TicketComment>,
    pub files: Vec<Attachment>,
    pub costs: Vec<CostLine>,
    /// In the order of time.
    pub history: Vec<TicketStep>,
    /// What was said of the anomalies behind it, and whether their gateways know.
    pub labels: Vec<AnomalyLabel>,
}

/// An item of a checklist.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct TicketItem {
    pub id: Uuid,
    pub text: String,
    pub done_at: Option<Timestamp>,
    /// The user's name.
    pub done_by: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct TicketComment {
    pub id: Uuid,
    /// The user's name.
    pub author: String,
    pub written_at: Timestamp,
    pub text: String,
}

/// A step in a ticket's history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct TicketStep {
    pub at: Timestamp,
    /// The user's name; `null` for a plan.
    pub by: Option<String>,
    /// `null`: it was made.
    pub from: Option<State>,
    /// The same as `from` where it was only given to somebody else.
    pub to: State,
    /// Whose it was from then on: the user's name.
    pub assignee: Option<String>,
    pub reason: String,
}

/// What a ticket cost in fact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct CostLine {
    pub id: Uuid,
    pub kind: CostKind,
    /// Who worked; of labour only, as minutes and rate are.
    pub user_id: Option<Uuid>,
    /// The user's name.
    pub user: Option<String>,
    pub minutes: Option<i32>,
    /// For an hour.
    pub rate_minor: Option<i64>,
    pub text: String,
    /// In the ticket's currency.
    pub amount_minor: i64,
    pub created_at: Timestamp,
    pub created_by_id: Uuid,
    /// The user's name.
    pub created_by: String,
}

/// A photo or a file of a ticket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Attachment {
    pub id: Uuid,
    pub name: String,
    /// Of the content.
    pub media_type: String,
    /// Bytes.
    pub size: i32,
    /// Of the content, in hexadecimal.
    pub sha256: String,
    pub created_at: Timestamp,
    pub created_by_id: Uuid,
    /// The user's name.
    pub created_by: String,
}

/// What people said of an anomaly, and what became of the command that tells its gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct AnomalyLabel {
    pub anomaly_id: Uuid,
    pub machine_id: Uuid,
    pub machine_name: String,
    pub opened_at: Timestamp,
    /// `null`: nobody has said anything.
    pub real: Option<bool>,
    pub labelled_at: Option<Timestamp>,
    /// The user's name.
    pub labelled_by: Option<String>,
    /// The gateway that is told, and the number of the command; `null`: none is, since none could be.
    pub gateway_id: Option<Uuid>,
    pub command: Option<i64>,
    pub command_state: Option<CommandState>,
    /// What the gateway answered, where it went wrong.
    pub command_result: Option<String>,
}
