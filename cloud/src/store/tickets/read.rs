//! Tickets as they are shown.

use std::collections::HashMap;

use deadpool_postgres::Transaction;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio_postgres::Row;
use uuid::Uuid;

use super::{
    super::{StoreError, labels, words::Word},
    files, work,
};
use crate::{
    tickets::{self, AlarmCorrect, Kind, Priority, STEPS_MAX, State, failure::FailureMode},
    views::{Ticket, TicketDetail, TicketLink, TicketStep},
};

const SELECT: &str = "
    SELECT t.id, t.number, t.site_id, s.name AS site_name, shown.id AS machine_id,
           coalesce(shown.display_name, shown.name) AS machine_name, t.area_id, area.name AS area_name, t.incident_id, t.plan_id, t.kind,
           t.priority, t.title, t.description, t.state, t.state_since, t.due_at, t.assignee_id, assignee.name AS assignee,
           t.created_at, creator.name AS created_by, t.updated_at, t.started_at, t.done_at, t.closed_at,
           closer.name AS closed_by, t.reopened, t.currency, t.estimate_minutes, t.estimate_minor, cost.minutes, cost.labour,
           cost.part, cost.other, t.failure_mode, t.cause, t.remedy, t.alarm_correct, items.count AS items, items.done AS items_done,
           (SELECT count(*) FROM ticket_comments c WHERE c.ticket_id = t.id) AS comments,
           (SELECT count(*) FROM ticket_attachments a WHERE a.ticket_id = t.id) AS attachments
    FROM tickets t
    JOIN sites s ON s.id = t.site_id
    LEFT JOIN machines own ON own.id = t.machine_id
    LEFT JOIN machines shown ON shown.id = coalesce(own.merged_into, own.id)
    LEFT JOIN areas area ON area.id = t.area_id
    LEFT JOIN users assignee ON assignee.id = t.assignee_id
    LEFT JOIN users creator ON creator.id = t.created_by
    LEFT JOIN users closer ON closer.id = t.closed_by
    CROSS JOIN LATERAL (
        SELECT coalesce(sum(minutes), 0)::bigint AS minutes,
               coalesce(sum(amount_minor) FILTER (WHERE kind = 'labour'), 0)::bigint AS labour,
               coalesce(sum(amount_minor) FILTER (WHERE kind = 'part'), 0)::bigint AS part,
               coalesce(sum(amount_minor) FILTER (WHERE kind = 'other'), 0)::bigint AS other
        FROM ticket_costs WHERE ticket_id = t.id
    ) cost
    CROSS JOIN LATERAL (
        SELECT count(*) AS count, count(done_at) AS done FROM ticket_items WHERE ticket_id = t.id
    ) items";

/// What is still to be done.
const LIVE: &str = "('open', 'assigned', 'in_progress', 'on_hold')";

/// The order of a list.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Order {
    /// The newest first.
    #[default]
    CreatedAt,
    /// What is due first, first; what is never due, last.
    DueAt,
    /// The most urgent first, and of these the newest.
    Priority,
}

/// What the next page begins behind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct After {
    id: Uuid,
    due_at: Option<Timestamp>,
    priority: Priority,
}

impl After {
    #[must_use]
    pub fn of(ticket: &Ticket) -> Self {
        Self { id: ticket.id, due_at: ticket.due_at, priority: ticket.priority }
    }
}

/// Whose tickets to list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Assigned {
    Nobody,
    To(Uuid),
}

/// What tickets to list; times are of their making, `to` exclusive.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// One of these; none is all.
    pub states: Vec<State>,
    /// `Some(true)`: something is still to be done.
    pub open: Option<bool>,
    pub overdue: Option<bool>,
    pub priority: Option<Priority>,
    pub kind: Option<Kind>,
    pub site: Option<Uuid>,
    pub area: Option<Uuid>,
    pub machine: Option<Uuid>,
    pub incident: Option<Uuid>,
    pub plan: Option<Uuid>,
    pub assigned: Option<Assigned>,
    /// Words in title or description, or a number (`#12`).
    pub text: Option<String>,
    pub from: Option<Timestamp>,
    pub to: Option<Timestamp>,
    pub order: Order,
}

/// Tickets in their order, from behind `after`.
///
/// # Errors
/// If the database is away.
pub async fn list(
    transaction: &Transaction<'_>,
    filter: &Filter,
    after: Option<&After>,
    limit: i64,
    now: Timestamp,
) -> Result<Vec<Ticket>, StoreError> {
    let rank = |priority: &str| format!("array_position(ARRAY['low', 'medium', 'high', 'urgent'], {priority})");
    let due = |due: &str| format!("coalesce({due}, timestamptz 'infinity')");
    let (key, order) = match filter.order {
        Order::CreatedAt => ("t.id < $16".to_owned(), "t.id DESC".to_owned()),
        Order::DueAt => {
            (format!("({}, t.id) > ({}, $16)", due("t.due_at"), due("$17")), format!("{}, t.id", due("t.due_at")))
        }
        Order::Priority => (
            format!("({}, t.id) < ({}, $16)", rank("t.priority"), rank("$18")),
            format!("{} DESC, t.id DESC", rank("t.priority")),
        ),
    };
    let sql = format!(
        "SELECT t.id FROM tickets t LEFT JOIN machines own ON own.id = t.machine_id
         WHERE ($1::text[] IS NULL OR t.state = ANY($1)) AND ($2::boolean IS NULL OR (t.state IN {LIVE}) = $2)
           AND ($3::boolean IS NULL OR (coalesce(t.due_at < $4, false) AND t.state IN {LIVE}) = $3)
           AND ($5::text IS NULL OR t.priority = $5) AND ($6::text IS NULL OR t.kind = $6)
           AND ($7::uuid IS NULL OR t.site_id = $7) AND ($8::uuid IS NULL OR t.area_id = $8)
           AND ($9::uuid IS NULL OR $9 IN (own.id, own.merged_into)) AND ($10::uuid IS NULL OR t.incident_id = $10)
           AND (NOT $11 OR t.assignee_id IS NULL) AND ($12::uuid IS NULL OR t.assignee_id = $12)
           AND ($13::text IS NULL OR t.title ILIKE $13 OR t.description ILIKE $13 OR t.number = $14)
           AND ($15::timestamptz IS NULL OR t.created_at >= $15) AND ($20::timestamptz IS NULL OR t.created_at < $20)
           AND ($21::uuid IS NULL OR t.plan_id = $21)
           AND ($16::uuid IS NULL OR {key}) AND num_nulls($17::timestamptz, $18::text) >= 0
         ORDER BY {order} LIMIT $19"
    );
    let statement = transaction.prepare_cached(&sql).await?;
    let states = Some(&filter.states).filter(|states| !states.is_empty());
    let states = states.map(|states| states.iter().map(|state| state.as_str()).collect::<Vec<_>>());
    let (nobody, user) = match filter.assigned {
        None => (false, None),
        Some(Assigned::Nobody) => (true, None),
        Some(Assigned::To(user)) => (false, Some(user)),
    };
    let (pattern, number) = filter.text.as_deref().map(searched).unzip();
    let rows = transaction
        .query(
            &statement,
            &[
                &states,
                &filter.open,
                &filter.overdue,
                &now,
                &filter.priority.map(Priority::as_str),
                &filter.kind.map(Kind::as_str),
                &filter.site,
                &filter.area,
                &filter.machine,
                &filter.incident,
                &nobody,
                &user,
                &pattern,
                &number.flatten(),
                &filter.from,
                &after.map(|after| after.id),
                &after.and_then(|after| after.due_at),
                &after.map(|after| after.priority.as_str()),
                &limit,
                &filter.to,
                &filter.plan,
            ],
        )
        .await?;
    // Which tickets is decided before anything is joined to them.
    let ids: Vec<Uuid> = rows.iter().map(|row| row.get(0)).collect();
    let found = by_ids(transaction, &ids, now).await?;
    let mut found: HashMap<Uuid, Ticket> = found.into_iter().map(|ticket| (ticket.id, ticket)).collect();
    Ok(ids.iter().filter_map(|id| found.remove(id)).collect())
}

/// The pattern that finds these words, and the number that they may be.
fn searched(text: &str) -> (String, Option<i64>) {
    let mut pattern = String::from("%");
    for c in text.chars() {
        if matches!(c, '%' | '_' | '\\') {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern.push('%');
    (pattern, text.strip_prefix('#').unwrap_or(text).parse().ok())
}

/// These tickets, in no order.
///
/// # Errors
/// If the database is away.
pub async fn by_ids(transaction: &Transaction<'_>, ids: &[Uuid], now: Timestamp) -> Result<Vec<Ticket>, StoreError> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let statement = transaction.prepare_cached(&format!("{SELECT} WHERE t.id = ANY($1)")).await?;
    transaction.query(&statement, &[&ids]).await?.iter().map(|row| ticket(row, now)).collect()
}

/// A ticket, locked until the transaction's end.
///
/// # Errors
/// If the database is away.
pub async fn lock(transaction: &Transaction<'_>, id: Uuid, now: Timestamp) -> Result<Option<Ticket>, StoreError> {
    let locked = transaction.query_opt("SELECT 1 FROM tickets WHERE id = $1 FOR UPDATE", &[&id]).await?;
    if locked.is_none() {
        return Ok(None);
    }
    Ok(by_ids(transaction, &[id], now).await?.pop())
}

/// A ticket with all that is kept of it.
///
/// # Errors
/// If the database is away.
pub async fn detail(
    transaction: &Transaction<'_>,
    id: Uuid,
    now: Timestamp,
) -> Result<Option<TicketDetail>, StoreError> {
    let Some(ticket) = by_ids(transaction, &[id], now).await?.pop() else { return Ok(None) };
    let labels = match ticket.incident_id {
        Some(incident) => labels::list(transaction, incident).await?,
        None => Vec::new(),
    };
    Ok(Some(TicketDetail {
        next: tickets::next(ticket.state).collect(),
        checklist: work::items(transaction, id).await?,
        thread: work::comments(transaction, id).await?,
        files: files::list(transaction, id).await?,
        costs: work::costs(transaction, id).await?,
        history: history(transaction, id).await?,
        labels,
        ticket,
    }))
}

async fn history(transaction: &Transaction<'_>, id: Uuid) -> Result<Vec<TicketStep>, StoreError> {
    let select = transaction
        .prepare_cached(
            "SELECT p.at, u.name, p.from_state, p.to_state, a.name, p.reason
             FROM ticket_steps p LEFT JOIN users u ON u.id = p.by_id LEFT JOIN users a ON a.id = p.assignee_id
             WHERE p.ticket_id = $1 ORDER BY p.at, p.id LIMIT $2",
        )
        .await?;
    let step = |row: &Row| {
        let (from, Word(to)): (Option<Word<State>>, _) = (row.try_get(2)?, row.try_get(3)?);
        Ok(TicketStep {
            at: row.try_get(0)?,
            by: row.try_get(1)?,
            from: from.map(|Word(from)| from),
            to,
            assignee: row.try_get(4)?,
            reason: row.try_get(5)?,
        })
    };
    transaction.query(&select, &[&id, &STEPS_MAX]).await?.iter().map(step).collect()
}

/// The tickets of an incident, the newest first: one, and those that were cancelled before it.
///
/// # Errors
/// If the database is away.
pub async fn of_incident(transaction: &Transaction<'_>, incident: Uuid) -> Result<Vec<TicketLink>, StoreError> {
    let select = transaction
        .prepare_cached(
            "SELECT t.id, t.number, t.title, t.state, t.priority, u.name
             FROM tickets t LEFT JOIN users u ON u.id = t.assignee_id WHERE t.incident_id = $1 ORDER BY t.id DESC LIMIT 50",
        )
        .await?;
    let link = |row: &Row| {
        let (Word(state), Word(priority)) = (row.try_get(3)?, row.try_get(4)?);
        let (id, number, title, assignee) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(5)?);
        Ok(TicketLink { id, number, title, state, priority, assignee })
    };
    transaction.query(&select, &[&incident]).await?.iter().map(link).collect()
}

fn ticket(row: &Row, now: Timestamp) -> Result<Ticket, StoreError> {
    let (Word(kind), Word(priority), Word(state)): (_, _, Word<State>) =
        (row.try_get("kind")?, row.try_get("priority")?, row.try_get("state")?);
    let failure_mode: Option<Word<FailureMode>> = row.try_get("failure_mode")?;
    let alarm_correct: Option<Word<AlarmCorrect>> = row.try_get("alarm_correct")?;
    let due_at: Option<Timestamp> = row.try_get("due_at")?;
    let (labour_minor, part_minor, other_minor): (i64, i64, i64) =
        (row.try_get("labour")?, row.try_get("part")?, row.try_get("other")?);
    Ok(Ticket {
        id: row.try_get("id")?,
        number: row.try_get("number")?,
        site_id: row.try_get("site_id")?,
        site_name: row.try_get("site_name")?,
        machine_id: row.try_get("machine_id")?,
        machine_name: row.try_get("machine_name")?,
        area_id: row.try_get("area_id")?,
        area_name: row.try_get("area_name")?,
        incident_id: row.try_get("incident_id")?,
        plan_id: row.try_get("plan_id")?,
        kind,
        priority,
        title: row.try_get("title")?,
        description: row.try_get("description")?,
        state,
        state_since: row.try_get("state_since")?,
        due_at,
        overdue: state.is_live() && due_at.is_some_and(|due| due < now),
        assignee_id: row.try_get("assignee_id")?,
        assignee: row.try_get("assignee")?,
        created_at: row.try_get("created_at")?,
        created_by: row.try_get("created_by")?,
        updated_at: row.try_get("updated_at")?,
        started_at: row.try_get("started_at")?,
        done_at: row.try_get("done_at")?,
        closed_at: row.try_get("closed_at")?,
        closed_by: row.try_get("closed_by")?,
        reopened: row.try_get("reopened")?,
        currency: row.try_get("currency")?,
        estimate_minutes: row.try_get("estimate_minutes")?,
        estimate_minor: row.try_get("estimate_minor")?,
        labour_minutes: row.try_get("minutes")?,
        labour_minor,
        part_minor,
        other_minor,
        cost_minor: labour_minor + part_minor + other_minor,
        failure_mode: failure_mode.map(|Word(mode)| mode),
        cause: row.try_get("cause")?,
        remedy: row.try_get("remedy")?,
        alarm_correct: alarm_correct.map(|Word(answer)| answer),
        items: row.try_get("items")?,
        items_done: row.try_get("items_done")?,
        comments: row.try_get("comments")?,
        attachments: row.try_get("attachments")?,
    })
}
