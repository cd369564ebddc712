//! What people do on a ticket: comments, its checklist, what it cost.

use deadpool_postgres::Transaction;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio_postgres::Row;
use uuid::Uuid;

use super::{
    super::{StoreError, audit::By, words::Word},
    audited,
};
use crate::{
    tickets::{COMMENTS_MAX, COSTS_MAX, ITEMS_MAX, costs::CostKind},
    views::{CostLine, Ticket, TicketComment, TicketItem},
};

pub(super) async fn comments(transaction: &Transaction<'_>, ticket: Uuid) -> Result<Vec<TicketComment>, StoreError> {
    let select = transaction
        .prepare_cached(
            "SELECT c.id, u.name, c.written_at, c.text FROM ticket_comments c JOIN users u ON u.id = c.author_id
             WHERE c.ticket_id = $1 ORDER BY c.id LIMIT $2",
        )
        .await?;
    let comment = |row: &Row| {
        let (id, author) = (row.try_get(0)?, row.try_get(1)?);
        Ok(TicketComment { id, author, written_at: row.try_get(2)?, text: row.try_get(3)? })
    };
    transaction.query(&select, &[&ticket, &(COMMENTS_MAX as i64)]).await?.iter().map(comment).collect()
}

/// Adds a comment to a ticket that is locked; false if it has [`COMMENTS_MAX`].
///
/// # Errors
/// If the database is away.
pub async fn comment(
    transaction: &Transaction<'_>,
    ticket: &Ticket,
    author: Uuid,
    text: &str,
    by: &By,
    now: Timestamp,
) -> Result<bool, StoreError> {
    if ticket.comments >= COMMENTS_MAX as i64 {
        return Ok(false);
    }
    let insert = transaction
        .prepare_cached(
            "INSERT INTO ticket_comments (id, ticket_id, author_id, written_at, text) VALUES ($1, $2, $3, $4, $5)",
        )
        .await?;
    transaction.execute(&insert, &[&Uuid::now_v7(), &ticket.id, &author, &now, &text]).await?;
    let said = (Value::Null, json!({"comment": text}));
    audited(transaction, "ticket.comment", (ticket.id, ticket.site_id), said, by, now).await?;
    Ok(true)
}

pub(super) async fn items(transaction: &Transaction<'_>, ticket: Uuid) -> Result<Vec<TicketItem>, StoreError> {
    let select = transaction
        .prepare_cached(
            "SELECT i.id, i.text, i.done_at, u.name FROM ticket_items i LEFT JOIN users u ON u.id = i.done_by
             WHERE i.ticket_id = $1 ORDER BY i.id LIMIT $2",
        )
        .await?;
    let item = |row: &Row| {
        let (id, text) = (row.try_get(0)?, row.try_get(1)?);
        Ok(TicketItem { id, text, done_at: row.try_get(2)?, done_by: row.try_get(3)? })
    };
    transaction.query(&select, &[&ticket, &(ITEMS_MAX as i64)]).await?.iter().map(item).collect()
}

pub(super) async fn insert_item(transaction: &Transaction<'_>, ticket: Uuid, text: &str) -> Result<Uuid, StoreError> {
    let id = Uuid::now_v7();
    let insert =
        transaction.prepare_cached("INSERT INTO ticket_items (id, ticket_id, text) VALUES ($1, $2, $3)").await?;
    transaction.execute(&insert, &[&id, &ticket, &text]).await?;
    Ok(id)
}

/// Adds an item to the checklist of a ticket that is locked; false if it has [`ITEMS_MAX`].
///
/// # Errors
/// If the database is away.
pub async fn add_item(
    transaction: &Transaction<'_>,
    ticket: &Ticket,
    text: &str,
    by: &By,
    now: Timestamp,
) -> Result<bool, StoreError> {
    if ticket.items >= ITEMS_MAX as i64 {
        return Ok(false);
    }
    let id = insert_item(transaction, ticket.id, text).await?;
    let added = (Value::Null, json!({"item": id, "text": text}));
    audited(transaction, "ticket.item.add", (ticket.id, ticket.site_id), added, by, now).await?;
    Ok(true)
}

/// Ticks an item off, or takes that back; false if the ticket has no such item. Twice the same changes nothing.
///
/// # Errors
/// If the database is away.
pub async fn tick(
    transaction: &Transaction<'_>,
    ticket: &Ticket,
    item: Uuid,
    done: bool,
    user: Uuid,
    by: &By,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let known = transaction
        .query_opt(
            "SELECT done_at IS NOT NULL FROM ticket_items WHERE id = $1 AND ticket_id = $2",
            &[&item, &ticket.id],
        )
        .await?;
    let Some(known) = known else { return Ok(false) };
    let was: bool = known.try_get(0)?;
    if was != done {
        let (at, who) = if done { (Some(now), Some(user)) } else { (None, None) };
        let update = "UPDATE ticket_items SET done_at = $2, done_by = $3 WHERE id = $1";
        transaction.execute(update, &[&item, &at, &who]).await?;
        let ticked = (json!({"item": item, "done": was}), json!({"item": item, "done": done}));
        audited(transaction, "ticket.item.tick", (ticket.id, ticket.site_id), ticked, by, now).await?;
    }
    Ok(true)
}

/// Takes an item off the checklist; false if the ticket has no such item.
///
/// # Errors
/// If the database is away.
pub async fn remove_item(
    transaction: &Transaction<'_>,
    ticket: &Ticket,
    item: Uuid,
    by: &By,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let removed = transaction
        .query_opt("DELETE FROM ticket_items WHERE id = $1 AND ticket_id = $2 RETURNING text", &[&item, &ticket.id])
        .await?;
    let Some(removed) = removed else { return Ok(false) };
    let gone = (json!({"item": item, "text": removed.try_get::<_, &str>(0)?}), Value::Null);
    audited(transaction, "ticket.item.remove", (ticket.id, ticket.site_id), gone, by, now).await?;
    Ok(true)
}

/// A line of cost as it is written; checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewCost {
    pub kind: CostKind,
    /// Of labour only, as `minutes` and `rate_minor` are.
    pub user: Option<Uuid>,
    pub minutes: Option<i32>,
    pub rate_minor: Option<i64>,
    pub text: String,
    pub amount_minor: i64,
}

pub(super) async fn costs(transaction: &Transaction<'_>, ticket: Uuid) -> Result<Vec<CostLine>, StoreError> {
    let select = transaction
        .prepare_cached(
            "SELECT c.id, c.kind, c.user_id, u.name, c.minutes, c.rate_minor, c.text, c.amount_minor, c.created_at, c.created_by,
                    creator.name
             FROM ticket_costs c JOIN users creator ON creator.id = c.created_by LEFT JOIN users u ON u.id = c.user_id
             WHERE c.ticket_id = $1 ORDER BY c.id LIMIT $2",
        )
        .await?;
    let line = |row: &Row| {
        let Word(kind) = row.try_get(1)?;
        Ok(CostLine {
            id: row.try_get(0)?,
            kind,
            user_id: row.try_get(2)?,
            user: row.try_get(3)?,
            minutes: row.try_get(4)?,
            rate_minor: row.try_get(5)?,
            text: row.try_get(6)?,
            amount_minor: row.try_get(7)?,
            created_at: row.try_get(8)?,
            created_by_id: row.try_get(9)?,
            created_by: row.try_get(10)?,
        })
    };
    transaction.query(&select, &[&ticket, &(COSTS_MAX as i64)]).await?.iter().map(line).collect()
}

/// Adds a line of cost to a ticket that is locked; false if it has [`COSTS_MAX`].
///
/// # Errors
/// If the database is away.
pub async fn add_cost(
    transaction: &Transaction<'_>,
    ticket: &Ticket,
    new: &NewCost,
    user: Uuid,
    by: &By,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let known: i64 = transaction
        .query_one("SELECT count(*) FROM ticket_costs WHERE ticket_id = $1", &[&ticket.id])
        .await?
        .try_get(0)?;
    if known >= COSTS_MAX as i64 {
        return Ok(false);
    }
    let id = Uuid::now_v7();
    let insert = transaction
        .prepare_cached(
            "INSERT INTO ticket_costs (id, ticket_id, kind, user_id, minutes, rate_minor, text, amount_minor, created_at, created_by)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
        )
        .await?;
    let kind = new.kind.as_str();
    transaction
        .execute(
            &insert,
            &[
                &id,
                &ticket.id,
                &kind,
                &new.user,
                &new.minutes,
                &new.rate_minor,
                &new.text,
                &new.amount_minor,
                &now,
                &user,
            ],
        )
        .await?;
    let added =
        json!({"cost": id, "kind": kind, "minutes": new.minutes, "amount_minor": new.amount_minor, "text": new.text});
    audited(transaction, "ticket.cost.add", (ticket.id, ticket.site_id), (Value::Null, added), by, now).await?;
    Ok(true)
}

/// Who wrote a line of cost; `None` if the ticket has no such line.
///
/// # Errors
/// If the database is away.
pub async fn cost_author(
    transaction: &Transaction<'_>,
    ticket: &Ticket,
    cost: Uuid,
) -> Result<Option<Uuid>, StoreError> {
    let select = "SELECT created_by FROM ticket_costs WHERE id = $1 AND ticket_id = $2";
    let row = transaction.query_opt(select, &[&cost, &ticket.id]).await?;
    row.map(|row| Ok(row.try_get(0)?)).transpose()
}

/// Takes a line of cost away; false if the ticket has no such line.
///
/// # Errors
/// If the database is away.
pub async fn remove_cost(
    transaction: &Transaction<'_>,
    ticket: &Ticket,
    cost: Uuid,
    by: &By,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let removed = transaction
        .query_opt(
            "DELETE FROM ticket_costs WHERE id = $1 AND ticket_id = $2 RETURNING kind, minutes, amount_minor, text",
            &[&cost, &ticket.id],
        )
        .await?;
    let Some(row) = removed else { return Ok(false) };
    let gone = json!({
        "cost": cost, "kind": row.try_get::<_, &str>(0)?, "minutes": row.try_get::<_, Option<i32>>(1)?,
        "amount_minor": row.try_get::<_, i64>(2)?, "text": row.try_get::<_, &str>(3)?,
    });
    audited(transaction, "ticket.cost.remove", (ticket.id, ticket.site_id), (gone, Value::Null), by, now).await?;
    Ok(true)
}
