//! What electricity costs at a site.

use deadpool_postgres::Transaction;
use jiff::{Timestamp, civil::Date};
use serde::Serialize;
use tokio_postgres::{Row, types::Json};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    StoreError,
    audit::{self, Audited, By},
    sites,
};
use crate::energy::tariff::Band;

/// Tariffs of a site.
pub const TARIFFS_MAX: i64 = 200;

/// A tariff of a site: it holds until the next one of the site begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Tariff {
    pub id: Uuid,
    pub site: Uuid,
    pub name: String,
    /// ISO 4217.
    pub currency: String,
    /// The first day, by the site's clocks.
    #[schema(value_type = String, format = Date)]
    pub valid_from: Date,
    /// Millionths of the currency's unit for a kilowatt-hour, outside of all bands.
    pub price_micro: i64,
    pub bands: Vec<Band>,
}

/// What came of writing one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    Done,
    /// Another of the site begins at the same time.
    Taken,
    TooMany,
}

const SELECT: &str = "SELECT id, site_id, name, currency, valid_from, price_micro, bands FROM tariffs";

/// Tariffs (of a site, where one is named), the latest first, from behind `after`.
///
/// # Errors
/// If the database is away.
pub async fn list(
    transaction: &Transaction<'_>,
    site: Option<Uuid>,
    after: Option<&(Date, Uuid)>,
    limit: i64,
) -> Result<Vec<Tariff>, StoreError> {
    let sql = format!(
        "{SELECT} WHERE ($1::uuid IS NULL OR site_id = $1) AND ($2::date IS NULL OR (valid_from, id) < ($2, $3::uuid))
         ORDER BY valid_from DESC, id DESC LIMIT $4"
    );
    let rows = transaction.query(&sql, &[&site, &after.map(|a| a.0), &after.map(|a| a.1), &limit]).await?;
    rows.iter().map(tariff).collect()
}

/// A tariff. With `lock` nobody else changes it until the transaction's end.
///
/// # Errors
/// If the database is away.
pub async fn one(transaction: &Transaction<'_>, id: Uuid, lock: bool) -> Result<Option<Tariff>, StoreError> {
    let lock = if lock { "FOR NO KEY UPDATE" } else { "" };
    let row = transaction.query_opt(&format!("{SELECT} WHERE id = $1 {lock}"), &[&id]).await?;
    row.as_ref().map(tariff).transpose()
}

/// Adds a tariff, or (`before`) writes one anew. After a refusal the transaction is at its end.
///
/// # Errors
/// If the database is away.
pub async fn write(
    transaction: &Transaction<'_>,
    before: Option<&Tariff>,
    after: &Tariff,
    by: &By,
    now: Timestamp,
) -> Result<Written, StoreError> {
    let written = if before.is_some() {
        transaction
            .execute(
                "UPDATE tariffs SET name = $2, currency = $3, valid_from = $4, price_micro = $5, bands = $6 WHERE id = $1",
                &[&after.id, &after.name, &after.currency, &after.valid_from, &after.price_micro, &Json(&after.bands)],
            )
            .await
    } else {
        // The lock lets the count be right.
        sites::one(transaction, after.site, true).await?;
        let count = "SELECT count(*) FROM tariffs WHERE site_id = $1";
        if transaction.query_one(count, &[&after.site]).await?.try_get::<_, i64>(0)? >= TARIFFS_MAX {
            return Ok(Written::TooMany);
        }
        transaction
            .execute(
                "INSERT INTO tariffs (id, organisation_id, site_id, name, currency, valid_from, price_micro, bands, created_at)
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
                &[
                    &after.id,
                    &by.organisation,
                    &after.site,
                    &after.name,
                    &after.currency,
                    &after.valid_from,
                    &after.price_micro,
                    &Json(&after.bands),
                    &now,
                ],
            )
            .await
    };
    match written.map_err(StoreError::from) {
        Ok(_) => {}
        Err(error) if error.is_duplicate() => return Ok(Written::Taken),
        Err(error) => return Err(error),
    }
    if before != Some(after) {
        let action = if before.is_some() { "tariff.change" } else { "tariff.create" };
        audit::edited(transaction, action, before, Some(after), by, now).await?;
    }
    Ok(Written::Done)
}

/// Takes a tariff away: the one before it holds on.
///
/// # Errors
/// If the database is away.
pub async fn delete(transaction: &Transaction<'_>, before: &Tariff, by: &By, now: Timestamp) -> Result<(), StoreError> {
    transaction.execute("DELETE FROM tariffs WHERE id = $1", &[&before.id]).await?;
    audit::edited(transaction, "tariff.delete", Some(before), None, by, now).await
}

impl Audited for Tariff {
    const OBJECT: &'static str = "tariff";

    fn id(&self) -> Uuid {
        self.id
    }

    fn site(&self) -> Uuid {
        self.site
    }
}

fn tariff(row: &Row) -> Result<Tariff, StoreError> {
    let Json(bands) = row.try_get(6)?;
    Ok(Tariff {
        id: row.try_get(0)?,
        site: row.try_get(1)?,
        name: row.try_get(2)?,
        currency: row.try_get(3)?,
        valid_from: row.try_get(4)?,
        price_micro: row.try_get(5)?,
        bands,
    })
}
