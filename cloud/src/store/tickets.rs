//! Tickets as people and plans write them: made, changed, and taken from state to state.

pub mod files;
pub mod read;
pub mod work;

use deadpool_postgres::Transaction;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    StoreError,
    audit::{self, By, Change},
};
use crate::{
    alarms::Severity,
    incidents::NoticeReason,
    tickets::{AlarmCorrect, Kind, Priority, STEPS_MAX, State, failure::FailureMode},
    views::Ticket,
};

/// Where a ticket belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub site: Uuid,
    pub machine: Option<Uuid>,
    pub area: Option<Uuid>,
}

/// What of a ticket is written by people; checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fields {
    pub machine: Option<Uuid>,
    pub area: Option<Uuid>,
    pub kind: Kind,
    pub priority: Priority,
    pub title: String,
    pub description: String,
    pub due_at: Option<Timestamp>,
    pub estimate_minutes: Option<i32>,
    /// In the ticket's currency's minor unit.
    pub estimate_minor: Option<i64>,
}

impl Fields {
    /// Those of a ticket that is there.
    #[must_use]
    pub fn of(ticket: &Ticket) -> Self {
        Self {
            machine: ticket.machine_id,
            area: ticket.area_id,
            kind: ticket.kind,
            priority: ticket.priority,
            title: ticket.title.clone(),
            description: ticket.description.clone(),
            due_at: ticket.due_at,
            estimate_minutes: ticket.estimate_minutes,
            estimate_minor: ticket.estimate_minor,
        }
    }
}

/// A ticket that is to be made.
#[derive(Debug, Clone)]
pub struct NewTicket {
    pub site: Uuid,
    pub fields: Fields,
    pub incident: Option<Uuid>,
    /// Somebody who [`reaches`] the site.
    pub assignee: Option<Uuid>,
    pub checklist: Vec<String>,
}

/// An incident that a ticket may be made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    pub site: Uuid,
    /// As it is shown.
    pub machine: Option<Uuid>,
    pub severity: Severity,
    /// What its first alarm says.
    pub message: String,
    /// Its ticket that was not cancelled, if it has one.
    pub ticket: Option<Uuid>,
}

/// An incident, locked until the transaction's end, so that it gets no second ticket meanwhile.
///
/// # Errors
/// If the database is away.
pub async fn cause(transaction: &Transaction<'_>, incident: Uuid) -> Result<Option<Cause>, StoreError> {
    let locked = transaction
        .query_opt(
            "SELECT i.site_id, i.machine_id, i.severity,
                    (SELECT a.message FROM alarms a WHERE a.incident_id = i.id ORDER BY a.annunciated_at, a.id LIMIT 1)
             FROM incidents i WHERE i.id = $1 FOR UPDATE",
            &[&incident],
        )
        .await?;
    let Some(row) = locked else { return Ok(None) };
    // After the lock: what was made before it was given is seen.
    let ticket = transaction
        .query_opt("SELECT id FROM tickets WHERE incident_id = $1 AND state <> 'cancelled'", &[&incident])
        .await?;
    let machine: Option<Uuid> = row.try_get(1)?;
    let shown =
        transaction.query_opt("SELECT coalesce(merged_into, id) FROM machines WHERE id = $1", &[&machine]).await?;
    let super::words::Word(severity) = row.try_get(2)?;
    Ok(Some(Cause {
        site: row.try_get(0)?,
        machine: shown.map(|row| row.get(0)),
        severity,
        message: row.try_get::<_, Option<String>>(3)?.unwrap_or_default(),
        ticket: ticket.map(|row| row.get(0)),
    }))
}

/// The site of a machine that is shown by itself.
///
/// # Errors
/// If the database is away.
pub async fn site_of_machine(transaction: &Transaction<'_>, machine: Uuid) -> Result<Option<Uuid>, StoreError> {
    let row = transaction
        .query_opt("SELECT site_id FROM machines WHERE id = $1 AND merged_into IS NULL", &[&machine])
        .await?;
    Ok(row.map(|row| row.get(0)))
}

/// Whether a user who is not disabled has a role at a site.
///
/// # Errors
/// If the database is away.
pub async fn reaches(transaction: &Transaction<'_>, user: Uuid, site: Uuid) -> Result<bool, StoreError> {
    let found = transaction
        .query_opt(
            "SELECT 1 FROM users u JOIN grants g ON g.user_id = u.id JOIN sites s ON s.id = $2
             WHERE u.id = $1 AND u.organisation_id = s.organisation_id AND u.disabled_at IS NULL
               AND (g.site_id IS NULL OR g.site_id = s.id) LIMIT 1",
            &[&user, &site],
        )
        .await?;
    Ok(found.is_some())
}

/// Makes a ticket, and gives it its number. Of an incident it is the caller who has locked it ([`cause`]).
///
/// # Errors
/// If the database is away.
pub async fn make(transaction: &Transaction<'_>, new: &NewTicket, by: &By, now: Timestamp) -> Result<Uuid, StoreError> {
    let number: i64 = transaction
        .query_one(
            "INSERT INTO ticket_numbers AS known (organisation_id, last) VALUES ($1, 1)
             ON CONFLICT (organisation_id) DO UPDATE SET last = known.last + 1 RETURNING last",
            &[&by.organisation],
        )
        .await?
        .try_get(0)?;
    let id = Uuid::now_v7();
    let state = if new.assignee.is_some() { State::Assigned } else { State::Open };
    let fields = &new.fields;
    let insert = transaction
        .prepare_cached(
            "INSERT INTO tickets (id, organisation_id, site_id, number, machine_id, area_id, incident_id, kind, priority, title,
                                  description, due_at, assignee_id, state, state_since, created_at, created_by, updated_at,
                                  currency, estimate_minutes, estimate_minor)
             SELECT $1, s.organisation_id, s.id, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $14, $15, $14, o.currency,
                    $16, $17
             FROM sites s JOIN organisations o ON o.id = s.organisation_id WHERE s.id = $2",
        )
        .await?;
    let made = transaction
        .execute(
            &insert,
            &[
                &id,
                &new.site,
                &number,
                &fields.machine,
                &fields.area,
                &new.incident,
                &fields.kind.as_str(),
                &fields.priority.as_str(),
                &fields.title,
                &fields.description,
                &fields.due_at,
                &new.assignee,
                &state.as_str(),
                &now,
                &by.user,
                &fields.estimate_minutes,
                &fields.estimate_minor,
            ],
        )
        .await?;
    if made == 0 {
        return Err(StoreError::Missing("a ticket's site"));
    }
    for text in &new.checklist {
        work::insert_item(transaction, id, text).await?;
    }
    append(transaction, id, None, state, new.assignee, "", by.user, now).await?;
    let after = json!({
        "number": number, "fields": fields, "incident": new.incident, "assignee": new.assignee, "checklist": new.checklist,
    });
    audited(transaction, "ticket.create", (id, new.site), (Value::Null, after), by, now).await?;
    Ok(id)
}

/// Writes that somebody is to be told that a ticket is theirs.
///
/// # Errors
/// If the database is away.
pub async fn notice(
    transaction: &Transaction<'_>,
    ticket: Uuid,
    priority: Priority,
    user: Uuid,
    now: Timestamp,
) -> Result<(), StoreError> {
    let insert = transaction
        .prepare_cached(
            "INSERT INTO notices (id, ticket_id, organisation_id, site_id, reason, severity, user_id, created_at)
             SELECT $1, id, organisation_id, site_id, $3, $4, $5, $6 FROM tickets WHERE id = $2",
        )
        .await?;
    let (reason, severity) = (NoticeReason::Assigned.as_str(), priority.severity().as_str());
    transaction.execute(&insert, &[&Uuid::now_v7(), &ticket, &reason, &severity, &user, &now]).await?;
    Ok(())
}

/// Writes a ticket's fields anew.
///
/// # Errors
/// If the database is away.
pub async fn change(
    transaction: &Transaction<'_>,
    before: &Ticket,
    after: &Fields,
    by: &By,
    now: Timestamp,
) -> Result<(), StoreError> {
    let known = Fields::of(before);
    if known == *after {
        return Ok(());
    }
    let update = transaction
        .prepare_cached(
            "UPDATE tickets SET machine_id = $2, area_id = $3, kind = $4, priority = $5, title = $6, description = $7, due_at = $8,
                    estimate_minutes = $9, estimate_minor = $10, updated_at = $11
             WHERE id = $1",
        )
        .await?;
    transaction
        .execute(
            &update,
            &[
                &before.id,
                &after.machine,
                &after.area,
                &after.kind.as_str(),
                &after.priority.as_str(),
                &after.title,
                &after.description,
                &after.due_at,
                &after.estimate_minutes,
                &after.estimate_minor,
                &now,
            ],
        )
        .await?;
    let of = (before.id, before.site_id);
    audited(transaction, "ticket.change", of, (json!(known), json!(after)), by, now).await
}

/// What closing a ticket says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Closing {
    pub failure_mode: Option<FailureMode>,
    pub cause: String,
    pub remedy: String,
    /// Of one that stems from an incident.
    pub alarm_correct: Option<AlarmCorrect>,
}

/// A step that [`crate::tickets::step`] allows, or (with the same state) another assignee.
#[derive(Debug, Clone)]
pub struct Step {
    /// For the audit.
    pub action: &'static str,
    pub to: State,
    pub assignee: Option<Uuid>,
    pub reason: String,
    /// When it becomes closed.
    pub closing: Option<Closing>,
}

/// Takes a ticket, which is locked, to another state; false if it went through [`STEPS_MAX`] already.
///
/// # Errors
/// If the database is away.
pub async fn take(
    transaction: &Transaction<'_>,
    before: &Ticket,
    step: &Step,
    by: &By,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let steps: i64 = transaction
        .query_one("SELECT count(*) FROM ticket_steps WHERE ticket_id = $1", &[&before.id])
        .await?
        .try_get(0)?;
    if steps >= STEPS_MAX {
        return Ok(false);
    }
    let reopened = i32::from(before.state.is_final() && !step.to.is_final());
    let update = transaction
        .prepare_cached(
            "UPDATE tickets SET state = $2, state_since = CASE WHEN state = $2 THEN state_since ELSE $3 END, updated_at = $3,
                    assignee_id = $4, reopened = reopened + $5,
                    started_at = CASE WHEN $2 = 'in_progress' THEN coalesce(started_at, $3) ELSE started_at END,
                    done_at = CASE WHEN $2 = 'done' THEN $3 WHEN $2 = 'closed' THEN done_at END,
                    closed_at = CASE WHEN $2 = 'closed' THEN $3 END, closed_by = CASE WHEN $2 = 'closed' THEN $6::uuid END
             WHERE id = $1",
        )
        .await?;
    let to = step.to.as_str();
    transaction.execute(&update, &[&before.id, &to, &now, &step.assignee, &reopened, &by.user]).await?;
    if let Some(closing) = &step.closing {
        let update = transaction
            .prepare_cached(
                "UPDATE tickets SET failure_mode = $2, cause = $3, remedy = $4, alarm_correct = $5 WHERE id = $1",
            )
            .await?;
        let mode = closing.failure_mode.map(FailureMode::as_str);
        let correct = closing.alarm_correct.map(AlarmCorrect::as_str);
        transaction.execute(&update, &[&before.id, &mode, &closing.cause, &closing.remedy, &correct]).await?;
    }
    append(transaction, before.id, Some(before.state), step.to, step.assignee, &step.reason, by.user, now).await?;
    let was = json!({"state": before.state, "assignee": before.assignee_id});
    let is = json!({"state": step.to, "assignee": step.assignee, "reason": step.reason, "closing": step.closing});
    audited(transaction, step.action, (before.id, before.site_id), (was, is), by, now).await?;
    Ok(true)
}

#[allow(clippy::too_many_arguments, reason = "a row, in its columns' order")]
async fn append(
    transaction: &Transaction<'_>,
    ticket: Uuid,
    from: Option<State>,
    to: State,
    assignee: Option<Uuid>,
    reason: &str,
    by: Option<Uuid>,
    now: Timestamp,
) -> Result<(), StoreError> {
    let insert = transaction
        .prepare_cached(
            "INSERT INTO ticket_steps (id, ticket_id, from_state, to_state, assignee_id, reason, by_id, at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        )
        .await?;
    let from = from.map(State::as_str);
    transaction
        .execute(&insert, &[&Uuid::now_v7(), &ticket, &from, &to.as_str(), &assignee, &reason, &by, &now])
        .await?;
    Ok(())
}

async fn audited(
    transaction: &Transaction<'_>,
    action: &'static str,
    (ticket, site): (Uuid, Uuid),
    (before, after): (Value, Value),
    by: &By,
    now: Timestamp,
) -> Result<(), StoreError> {
    let change = Change { action, object: "ticket", id: &ticket.to_string(), site: Some(site), before, after };
    audit::write(transaction, by, &change, now).await
}
