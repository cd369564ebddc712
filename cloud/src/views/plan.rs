//! Plans of preventive maintenance, as they are shown.

use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    plans::{Calendar, Health, Running},
    tickets::{Priority, State},
};

/// What people write of a plan.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct PlanText {
    /// That which its machine is shown as.
    pub machine: Uuid,
    /// Of its tickets.
    pub title: String,
    pub description: String,
    pub priority: Priority,
    /// Items that its tickets have.
    pub checklist: Vec<String>,
    pub estimate_minutes: Option<i32>,
    /// Whose its tickets are; `null`: nobody's.
    pub assignee: Option<Uuid>,
    /// One of these three makes it due.
    pub calendar: Option<Calendar>,
    pub running: Option<Running>,
    pub health: Option<Health>,
    /// How long before it is due its ticket is made: hours, of the calendar or of running.
    pub lead_h: i32,
    pub enabled: bool,
}

/// A plan of preventive maintenance, and where it stands.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Plan {
    pub id: Uuid,
    #[serde(flatten)]
    pub text: PlanText,
    pub site_id: Uuid,
    /// The display name where the machine has one.
    pub machine_name: String,
    /// The user's name.
    pub assignee_name: Option<String>,
    pub created_at: Timestamp,
    /// The user's name.
    pub created_by: String,
    pub updated_at: Timestamp,
    /// When it is due next; of running hours an estimate from how the machine ran lately. `null`: not known, or not before its
    /// ticket is done.
    pub next_due_at: Option<Timestamp>,
    /// Hours of running that are left until then; less than 0 where it is overdue.
    pub left_h: Option<f64>,
    /// Since when the machine's health has been too low.
    pub below_since: Option<Timestamp>,
    pub last_ticket: Option<PlanTicket>,
}

/// The latest ticket that a plan made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct PlanTicket {
    pub id: Uuid,
    pub number: i64,
    pub state: State,
    /// When it was done, or cancelled; `null` while it is under way.
    pub ended_at: Option<Timestamp>,
}
