//! Gateways as they are shown.

use deadpool_postgres::Transaction;
use jiff::Timestamp;
use tokio_postgres::{Row, types::Json};
use uuid::Uuid;

use super::StoreError;
use crate::views::{self, DropCount, Enrolment, Gateway, Patience};

const COLUMNS: &str = "g.id, g.name, g.state, g.last_seen_at, g.version, g.backlog_records, g.backlog_bytes,
    g.clock_trusted, g.drops,
    (SELECT count(*) FROM machines m WHERE m.gateway_id = g.id AND m.merged_into IS NULL AND NOT m.ignored) AS machines";

/// Gateways by name, from behind `after`.
///
/// # Errors
/// If the database is away.
pub async fn list(
    transaction: &Transaction<'_>,
    after: Option<&(String, Uuid)>,
    limit: i64,
    now: Timestamp,
    patience: Patience,
) -> Result<Vec<Gateway>, StoreError> {
    let sql = format!(
        "SELECT {COLUMNS} FROM gateways g
         WHERE $1::text IS NULL OR (g.name, g.id) > ($1, $2::uuid)
         ORDER BY g.name, g.id LIMIT $3"
    );
    let statement = transaction.prepare_cached(&sql).await?;
    let rows = transaction.query(&statement, &[&after.map(|a| &a.0), &after.map(|a| a.1), &limit]).await?;
    rows.iter().map(|row| gateway(row, now, patience)).collect()
}

/// These gateways, in no order.
///
/// # Errors
/// If the database is away.
pub async fn by_ids(
    transaction: &Transaction<'_>,
    ids: &[Uuid],
    now: Timestamp,
    patience: Patience,
) -> Result<Vec<Gateway>, StoreError> {
    let statement =
        transaction.prepare_cached(&format!("SELECT {COLUMNS} FROM gateways g WHERE g.id = ANY($1)")).await?;
    let rows = transaction.query(&statement, &[&ids]).await?;
    rows.iter().map(|row| gateway(row, now, patience)).collect()
}

/// The database's word for how far a gateway's enrolment is.
pub(super) fn enrolment(word: &str) -> Enrolment {
    match word {
        "pending" => Enrolment::Pending,
        "enrolled" => Enrolment::Enrolled,
        _ => Enrolment::Revoked,
    }
}

fn gateway(row: &Row, now: Timestamp, patience: Patience) -> Result<Gateway, StoreError> {
    let last_seen_at = row.try_get("last_seen_at")?;
    let Json(drops): Json<Vec<DropCount>> = row.try_get("drops")?;
    Ok(Gateway {
        id: row.try_get("id")?,
        name: row.try_get("name")?,
        state: views::gateway_state(enrolment(row.try_get("state")?), last_seen_at, now, patience),
        last_seen_at,
        version: row.try_get("version")?,
        backlog_records: row.try_get("backlog_records")?,
        backlog_bytes: row.try_get("backlog_bytes")?,
        clock_trusted: row.try_get("clock_trusted")?,
        drops,
        machines: row.try_get("machines")?,
    })
}
