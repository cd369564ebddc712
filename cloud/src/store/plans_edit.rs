//! Plans of preventive maintenance, as people write and read them.

use deadpool_postgres::Transaction;
use jiff::Timestamp;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    StoreError,
    audit::{self, By, Change},
    plans::read,
    tickets,
};
use crate::{
    plans::PLANS_MAX,
    views::{Plan, PlanText},
};

/// What came of writing one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    Done(Uuid),
    NoSuchMachine,
    /// Nobody of this id may look at the machine's site.
    NoSuchAssignee,
    /// The machine has [`PLANS_MAX`].
    TooMany,
}

/// What plans to list.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    pub site: Option<Uuid>,
    pub machine: Option<Uuid>,
    pub enabled: Option<bool>,
}

/// Plans, the newest first, from behind `after`.
///
/// # Errors
/// If the database is away.
pub async fn list(
    transaction: &Transaction<'_>,
    filter: &Filter,
    after: Option<Uuid>,
    limit: i64,
    now: Timestamp,
) -> Result<Vec<Plan>, StoreError> {
    let rest = "WHERE ($3::uuid IS NULL OR p.site_id = $3) AND ($4::uuid IS NULL OR m.id = $4)
                  AND ($5::boolean IS NULL OR p.enabled = $5) AND ($6::uuid IS NULL OR p.id < $6)
                ORDER BY p.id DESC LIMIT $7";
    let params: [&(dyn tokio_postgres::types::ToSql + Sync); 5] =
        [&filter.site, &filter.machine, &filter.enabled, &after, &limit];
    Ok(read(transaction, rest, &params, now).await?.into_iter().map(|known| known.plan).collect())
}

/// One of them. With `lock` nobody else changes it until the transaction's end.
///
/// # Errors
/// If the database is away.
pub async fn one(
    transaction: &Transaction<'_>,
    id: Uuid,
    lock: bool,
    now: Timestamp,
) -> Result<Option<Plan>, StoreError> {
    // What is read after the lock was given is as it is then.
    if lock && transaction.query_opt("SELECT 1 FROM plans WHERE id = $1 FOR UPDATE", &[&id]).await?.is_none() {
        return Ok(None);
    }
    Ok(read(transaction, "WHERE p.id = $3", &[&id], now).await?.pop().map(|known| known.plan))
}

/// Adds a plan to a machine.
///
/// # Errors
/// If the database is away.
pub async fn add(
    transaction: &Transaction<'_>,
    text: &PlanText,
    user: Uuid,
    by: &By,
    now: Timestamp,
) -> Result<Written, StoreError> {
    // The lock lets the count be right.
    let found = transaction
        .query_opt(
            "SELECT site_id, (SELECT count(*) FROM plans WHERE machine_id = $1) FROM machines
             WHERE id = $1 AND merged_into IS NULL FOR NO KEY UPDATE",
            &[&text.machine],
        )
        .await?;
    let Some(found) = found else { return Ok(Written::NoSuchMachine) };
    let (site, count): (Uuid, i64) = (found.try_get(0)?, found.try_get(1)?);
    if count >= PLANS_MAX {
        return Ok(Written::TooMany);
    }
    if !is_assignable(transaction, text.assignee, site).await? {
        return Ok(Written::NoSuchAssignee);
    }
    let id = Uuid::now_v7();
    transaction
        .execute(
            "INSERT INTO plans (id, organisation_id, site_id, machine_id, title, description, priority, checklist,
                                estimate_minutes, assignee_id, lead_h, enabled, created_at, created_by, updated_at, every, unit,
                                starts_on, at_min, from_completion, every_h, counted_from, health_below, health_for_s)
             SELECT $1, s.organisation_id, s.id, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $12, $14, $15, $16, $17, $18, $19,
                    $20, $21, $22
             FROM sites s WHERE s.id = $2",
            &[
                &id,
                &site,
                &text.machine,
                &text.title,
                &text.description,
                &text.priority.as_str(),
                &text.checklist,
                &text.estimate_minutes,
                &text.assignee,
                &text.lead_h,
                &text.enabled,
                &now,
                &user,
                &text.calendar.map(|calendar| calendar.every),
                &text.calendar.map(|calendar| calendar.unit.as_str()),
                &text.calendar.map(|calendar| calendar.starts_on),
                &text.calendar.map(|calendar| calendar.at_min),
                &text.calendar.map(|calendar| calendar.from_completion),
                &text.running.map(|running| running.every_h),
                &text.running.map(|running| running.counted_from.unwrap_or(now)),
                &text.health.map(|health| health.below),
                &text.health.map(|health| health.for_s),
            ],
        )
        .await?;
    let change = Change {
        action: "plan.add",
        object: "plan",
        id: &id.to_string(),
        site: Some(site),
        before: Value::Null,
        after: json!(text),
    };
    audit::write(transaction, by, &change, now).await?;
    Ok(Written::Done(id))
}

/// Writes a plan anew, which is locked. What its latest ticket was for stays.
///
/// # Errors
/// If the database is away.
pub async fn replace(
    transaction: &Transaction<'_>,
    before: &Plan,
    text: &PlanText,
    by: &By,
    now: Timestamp,
) -> Result<Written, StoreError> {
    let is_new = text.assignee != before.text.assignee;
    if is_new && !is_assignable(transaction, text.assignee, before.site_id).await? {
        return Ok(Written::NoSuchAssignee);
    }
    if before.text == *text {
        return Ok(Written::Done(before.id));
    }
    transaction
        .execute(
            "UPDATE plans SET title = $2, description = $3, priority = $4, checklist = $5, estimate_minutes = $6, assignee_id = $7,
                    lead_h = $8, enabled = $9, updated_at = $10, every = $11, unit = $12, starts_on = $13, at_min = $14,
                    from_completion = $15, every_h = $16, counted_from = $17, health_below = $18, health_for_s = $19,
                    below_since = NULL
             WHERE id = $1",
            &[
                &before.id,
                &text.title,
                &text.description,
                &text.priority.as_str(),
                &text.checklist,
                &text.estimate_minutes,
                &text.assignee,
                &text.lead_h,
                &text.enabled,
                &now,
                &text.calendar.map(|calendar| calendar.every),
                &text.calendar.map(|calendar| calendar.unit.as_str()),
                &text.calendar.map(|calendar| calendar.starts_on),
                &text.calendar.map(|calendar| calendar.at_min),
                &text.calendar.map(|calendar| calendar.from_completion),
                &text.running.map(|running| running.every_h),
                &text.running.map(|running| running.counted_from.unwrap_or(now)),
                &text.health.map(|health| health.below),
                &text.health.map(|health| health.for_s),
            ],
        )
        .await?;
    let change = Change {
        action: "plan.change",
        object: "plan",
        id: &before.id.to_string(),
        site: Some(before.site_id),
        before: json!(before.text),
        after: json!(text),
    };
    audit::write(transaction, by, &change, now).await?;
    Ok(Written::Done(before.id))
}

/// Takes a plan away, which is locked. The tickets that it made stay.
///
/// # Errors
/// If the database is away.
pub async fn remove(transaction: &Transaction<'_>, before: &Plan, by: &By, now: Timestamp) -> Result<(), StoreError> {
    transaction.execute("DELETE FROM plans WHERE id = $1", &[&before.id]).await?;
    let change = Change {
        action: "plan.remove",
        object: "plan",
        id: &before.id.to_string(),
        site: Some(before.site_id),
        before: json!(before.text),
        after: Value::Null,
    };
    audit::write(transaction, by, &change, now).await
}

async fn is_assignable(transaction: &Transaction<'_>, user: Option<Uuid>, site: Uuid) -> Result<bool, StoreError> {
    match user {
        Some(user) => tickets::reaches(transaction, user, site).await,
        None => Ok(true),
    }
}
