//! The rules of tickets (work orders of a maintenance system): their states, who may change them, and what closing one says.
//!
//! ```text
//! open ──→ assigned ──→ in progress ──→ done ──→ closed
//!   ↑         │   ↑        │    ↑         │         │
//!   │         ↓   │        ↓    │         │         │
//!   │        on hold ←─────┘    └─────────┘         │
//!   └── from anything that is under way, closed or cancelled: to nobody
//! ```
//!
//! Nothing else than [`step`] says which state may follow which, and who may do that.

pub mod costs;
pub mod failure;
pub mod files;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::alarms::Severity;

/// In characters.
pub const TITLE_CHARS_MAX: usize = 200;
pub const DESCRIPTION_CHARS_MAX: usize = 10_000;
pub const COMMENT_CHARS_MAX: usize = 5_000;
/// Why a ticket was held, cancelled, reopened.
pub const REASON_CHARS_MAX: usize = 500;
/// Of an item of a checklist, and of a line of cost.
pub const LINE_CHARS_MAX: usize = 500;
/// Cause and remedy.
pub const FINDING_CHARS_MAX: usize = 2_000;
/// Items of one checklist.
pub const ITEMS_MAX: usize = 100;
/// Comments, and lines of cost, of one ticket.
pub const COMMENTS_MAX: usize = 1_000;
pub const COSTS_MAX: usize = 500;
/// States that one ticket went through.
pub const STEPS_MAX: i64 = 1_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = TicketState)]
pub enum State {
    /// Nobody has it.
    Open,
    Assigned,
    InProgress,
    /// It waits: for a part, for the machine.
    OnHold,
    /// The work is done, and nobody has looked at it yet.
    Done,
    Closed,
    /// Nothing is to be done.
    Cancelled,
}

impl State {
    pub const ALL: [Self; 7] =
        [Self::Open, Self::Assigned, Self::InProgress, Self::OnHold, Self::Done, Self::Closed, Self::Cancelled];

    /// As the database spells it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Assigned => "assigned",
            Self::InProgress => "in_progress",
            Self::OnHold => "on_hold",
            Self::Done => "done",
            Self::Closed => "closed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether something is still to be done about it.
    #[must_use]
    pub const fn is_live(self) -> bool {
        matches!(self, Self::Open | Self::Assigned | Self::InProgress | Self::OnHold)
    }

    /// Nothing of it is changed before it is reopened.
    #[must_use]
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Closed | Self::Cancelled)
    }
}

/// Who may take a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mover {
    /// Whoever it is assigned to, if they are an operator; and every supervisor.
    Assignee,
    Supervisor,
}

/// Who may take a ticket from one state to another; `None`: nobody, there is no such step.
#[must_use]
pub const fn step(from: State, to: State) -> Option<Mover> {
    use State::{Assigned, Cancelled, Closed, Done, InProgress, OnHold, Open};
    match (from, to) {
        (Assigned | OnHold | Done, InProgress) | (Assigned | InProgress, OnHold) | (InProgress, Done) => {
            Some(Mover::Assignee)
        }
        // Given to somebody, and taken back.
        (Open, Assigned)
        | (Assigned | InProgress | OnHold, Open)
        | (Done, Closed)
        | (Open | Assigned | InProgress | OnHold, Cancelled)
        // Reopened: for whoever had it.
        | (Closed | Cancelled, Open | Assigned) => Some(Mover::Supervisor),
        _ => None,
    }
}

/// Who may take away what was added to a ticket, a line of cost or a file: whoever added it, until the ticket is at its end, and
/// every supervisor.
#[must_use]
pub const fn may_take_away(state: State, own: bool, supervisor: bool) -> bool {
    supervisor || (own && !state.is_final())
}

/// The states that may follow.
pub fn next(from: State) -> impl Iterator<Item = State> {
    State::ALL.into_iter().filter(move |to| step(from, *to).is_some())
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = TicketKind)]
pub enum Kind {
    /// Something is broken, or about to be.
    #[default]
    Corrective,
    /// Before anything is.
    Preventive,
    Inspection,
}

impl Kind {
    /// As the database spells it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Corrective => "corrective",
            Self::Preventive => "preventive",
            Self::Inspection => "inspection",
        }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    Low,
    #[default]
    Medium,
    High,
    Urgent,
}

impl Priority {
    pub const ALL: [Self; 4] = [Self::Low, Self::Medium, Self::High, Self::Urgent];

    /// As the database spells it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
            Self::Urgent => "urgent",
        }
    }

    /// Of a ticket that is made from an incident, where nobody says otherwise.
    #[must_use]
    pub const fn of(severity: Severity) -> Self {
        match severity {
            Severity::Low => Self::Low,
            Severity::Medium => Self::Medium,
            Severity::High => Self::High,
            Severity::Critical => Self::Urgent,
        }
    }

    /// How grave it is to who is told of it.
    #[must_use]
    pub const fn severity(self) -> Severity {
        match self {
            Self::Low => Severity::Low,
            Self::Medium => Severity::Medium,
            Self::High => Severity::High,
            Self::Urgent => Severity::Critical,
        }
    }
}

/// Was the alarm right? It labels the anomalies behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AlarmCorrect {
    Yes,
    /// It was a false alarm.
    No,
    /// Nobody could tell. What was said of the anomalies before stays.
    Unknown,
}

impl AlarmCorrect {
    /// As the database spells it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Yes => "yes",
            Self::No => "no",
            Self::Unknown => "unknown",
        }
    }

    /// Whether the anomalies were real; `None`: it says nothing of them.
    #[must_use]
    pub const fn real(self) -> Option<bool> {
        match self {
            Self::Yes => Some(true),
            Self::No => Some(false),
            Self::Unknown => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pair_of_states() {
        // A row for each state, a column for each that might follow: a the assignee, s supervisors only, . nobody.
        let expected = "
            open         . s . . . . s
            assigned     s . a a . . s
            in_progress  s . . a a . s
            on_hold      s . a . . . s
            done         . . a . . s .
            closed       s s . . . . .
            cancelled    s s . . . . .";
        let found: Vec<String> = State::ALL
            .into_iter()
            .map(|from| {
                let steps: Vec<&str> = State::ALL
                    .into_iter()
                    .map(|to| match step(from, to) {
                        None => ".",
                        Some(Mover::Assignee) => "a",
                        Some(Mover::Supervisor) => "s",
                    })
                    .collect();
                format!("{:<12} {}", from.as_str(), steps.join(" "))
            })
            .collect();
        let expected: Vec<&str> = expected.trim().lines().map(str::trim).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn every_ticket_can_come_to_an_end_and_nothing_is_without_a_way_out() {
        for state in State::ALL {
            assert!(next(state).count() > 0, "{state:?}");
            let mut reached = std::collections::HashSet::from([state]);
            for _ in State::ALL {
                let more: Vec<State> = reached.iter().copied().flat_map(next).collect();
                reached.extend(more);
            }
            for end in [State::Closed, State::Cancelled] {
                assert!(reached.contains(&end), "{state:?} never becomes {end:?}");
            }
        }
    }

    #[test]
    fn words_are_those_of_the_database() {
        for state in State::ALL {
            assert_eq!(serde_json::to_value(state).unwrap(), state.as_str());
            assert!(!(state.is_live() && state.is_final()));
        }
        for kind in [Kind::Corrective, Kind::Preventive, Kind::Inspection] {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
        }
        for priority in Priority::ALL {
            assert_eq!(serde_json::to_value(priority).unwrap(), priority.as_str());
            assert_eq!(Priority::of(priority.severity()), priority);
        }
        for answer in [AlarmCorrect::Yes, AlarmCorrect::No, AlarmCorrect::Unknown] {
            assert_eq!(serde_json::to_value(answer).unwrap(), answer.as_str());
        }
    }

    #[test]
    fn who_added_something_may_take_it_away_until_the_end() {
        for state in State::ALL {
            assert!(may_take_away(state, false, true) && may_take_away(state, true, true), "{state:?}");
            assert_eq!(may_take_away(state, true, false), !state.is_final(), "{state:?}");
            assert!(!may_take_away(state, false, false), "{state:?}");
        }
    }
}
