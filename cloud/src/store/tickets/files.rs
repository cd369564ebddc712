//! Photos and files of tickets. Their bytes lie in parts of [`PART_BYTES`], so that nobody has to hold a whole file to send it.

use std::fmt::Write as _;

use deadpool_postgres::Transaction;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio_postgres::Row;
use uuid::Uuid;

use super::{
    super::{StoreError, audit::By},
    audited,
};
use crate::{
    tickets::files::MediaType,
    views::{Attachment, Ticket},
};

/// Of one part but the last.
pub const PART_BYTES: usize = 256 * 1_024;

const SELECT: &str = "
    SELECT a.id, a.name, a.media_type, a.size, a.sha256, a.created_at, a.created_by, u.name
    FROM ticket_attachments a JOIN users u ON u.id = a.created_by";

fn attachment(row: &Row) -> Result<Attachment, StoreError> {
    let digest: &[u8] = row.try_get(4)?;
    let mut sha256 = String::with_capacity(64);
    for byte in digest {
        // A string takes what is written to it.
        write!(sha256, "{byte:02x}").ok();
    }
    Ok(Attachment {
        id: row.try_get(0)?,
        name: row.try_get(1)?,
        media_type: row.try_get(2)?,
        size: row.try_get(3)?,
        sha256,
        created_at: row.try_get(5)?,
        created_by_id: row.try_get(6)?,
        created_by: row.try_get(7)?,
    })
}

pub(super) async fn list(transaction: &Transaction<'_>, ticket: Uuid) -> Result<Vec<Attachment>, StoreError> {
    let select =
        transaction.prepare_cached(&format!("{SELECT} WHERE a.ticket_id = $1 ORDER BY a.id LIMIT 1000")).await?;
    transaction.query(&select, &[&ticket]).await?.iter().map(attachment).collect()
}

/// One of a ticket's files.
///
/// # Errors
/// If the database is away.
pub async fn one(transaction: &Transaction<'_>, ticket: Uuid, id: Uuid) -> Result<Option<Attachment>, StoreError> {
    let select = transaction.prepare_cached(&format!("{SELECT} WHERE a.ticket_id = $1 AND a.id = $2")).await?;
    transaction.query_opt(&select, &[&ticket, &id]).await?.as_ref().map(attachment).transpose()
}

/// A part of a file's bytes; `None` behind its end.
///
/// # Errors
/// If the database is away.
pub async fn part(transaction: &Transaction<'_>, id: Uuid, part: i32) -> Result<Option<Vec<u8>>, StoreError> {
    let select = transaction
        .prepare_cached("SELECT bytes FROM ticket_attachment_parts WHERE attachment_id = $1 AND part = $2")
        .await?;
    let row = transaction.query_opt(&select, &[&id, &part]).await?;
    row.map(|row| Ok(row.try_get(0)?)).transpose()
}

/// A file that is to be kept; checked.
#[derive(Debug, Clone, Copy)]
pub struct NewFile<'a> {
    pub name: &'a str,
    pub media_type: MediaType,
    pub sha256: &'a [u8; 32],
    pub content: &'a [u8],
}

/// What came of keeping one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    New(Uuid),
    /// The ticket has the same content already.
    Known(Uuid),
    TooMany,
}

/// Keeps a file of a ticket that is locked.
///
/// # Errors
/// If the database is away.
pub async fn keep(
    transaction: &Transaction<'_>,
    ticket: &Ticket,
    new: NewFile<'_>,
    most: usize,
    user: Uuid,
    by: &By,
    now: Timestamp,
) -> Result<Kept, StoreError> {
    let digest = new.sha256.as_slice();
    let known = transaction
        .query_opt("SELECT id FROM ticket_attachments WHERE ticket_id = $1 AND sha256 = $2", &[&ticket.id, &digest])
        .await?;
    if let Some(known) = known {
        return Ok(Kept::Known(known.try_get(0)?));
    }
    if ticket.attachments >= most as i64 {
        return Ok(Kept::TooMany);
    }
    let id = Uuid::now_v7();
    let insert = transaction
        .prepare_cached(
            "INSERT INTO ticket_attachments (id, ticket_id, name, media_type, size, sha256, created_at, created_by)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        )
        .await?;
    let (kind, size) = (new.media_type.as_str(), i32::try_from(new.content.len()).unwrap_or(i32::MAX));
    transaction.execute(&insert, &[&id, &ticket.id, &new.name, &kind, &size, &digest, &now, &user]).await?;
    let insert = transaction
        .prepare_cached("INSERT INTO ticket_attachment_parts (attachment_id, part, bytes) VALUES ($1, $2, $3)")
        .await?;
    for (part, bytes) in (0_i32..).zip(new.content.chunks(PART_BYTES)) {
        transaction.execute(&insert, &[&id, &part, &bytes]).await?;
    }
    let added = json!({"attachment": id, "name": new.name, "media_type": kind, "size": size});
    audited(transaction, "ticket.attachment.add", (ticket.id, ticket.site_id), (Value::Null, added), by, now).await?;
    Ok(Kept::New(id))
}

/// Throws a file away; false if the ticket has none of this id.
///
/// # Errors
/// If the database is away.
pub async fn remove(
    transaction: &Transaction<'_>,
    ticket: &Ticket,
    id: Uuid,
    by: &By,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let removed = transaction
        .query_opt(
            "DELETE FROM ticket_attachments WHERE id = $1 AND ticket_id = $2 RETURNING name, media_type, size",
            &[&id, &ticket.id],
        )
        .await?;
    let Some(row) = removed else { return Ok(false) };
    let gone = json!({
        "attachment": id, "name": row.try_get::<_, &str>(0)?, "media_type": row.try_get::<_, &str>(1)?,
        "size": row.try_get::<_, i32>(2)?,
    });
    audited(transaction, "ticket.attachment.remove", (ticket.id, ticket.site_id), (gone, Value::Null), by, now).await?;
    Ok(true)
}
