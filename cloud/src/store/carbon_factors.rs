//! What a kilowatt-hour emits at a site: a series.

use deadpool_postgres::Transaction;
use jiff::Timestamp;
use serde::Serialize;
use tokio_postgres::Row;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    StoreError,
    audit::{self, Audited, By},
    sites,
    tariffs::Written,
};

/// Factors of a site: ten years of hours.
pub const FACTORS_MAX: i64 = 90_000;

/// From when on a kilowatt-hour emits so much: it holds until the next one of the site begins.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct CarbonFactor {
    pub id: Uuid,
    pub site: Uuid,
    pub valid_from: Timestamp,
    /// Grams of CO2 equivalent for a kilowatt-hour.
    pub g_per_kwh: f64,
    /// Who says so.
    pub source: String,
}

const SELECT: &str = "SELECT id, site_id, valid_from, g_per_kwh, source FROM carbon_factors";

/// Factors (of a site, where one is named), the latest first, from behind `after`.
///
/// # Errors
/// If the database is away.
pub async fn list(
    transaction: &Transaction<'_>,
    site: Option<Uuid>,
    after: Option<&(Timestamp, Uuid)>,
    limit: i64,
) -> Result<Vec<CarbonFactor>, StoreError> {
    let sql = format!(
        "{SELECT} WHERE ($1::uuid IS NULL OR site_id = $1)
           AND ($2::timestamptz IS NULL OR (valid_from, id) < ($2, $3::uuid))
         ORDER BY valid_from DESC, id DESC LIMIT $4"
    );
    let rows = transaction.query(&sql, &[&site, &after.map(|a| a.0), &after.map(|a| a.1), &limit]).await?;
    rows.iter().map(factor).collect()
}

/// A factor. With `lock` nobody else changes it until the transaction's end.
///
/// # Errors
/// If the database is away.
pub async fn one(transaction: &Transaction<'_>, id: Uuid, lock: bool) -> Result<Option<CarbonFactor>, StoreError> {
    let lock = if lock { "FOR NO KEY UPDATE" } else { "" };
    let row = transaction.query_opt(&format!("{SELECT} WHERE id = $1 {lock}"), &[&id]).await?;
    row.as_ref().map(factor).transpose()
}

/// Adds a factor, or (`before`) writes one anew. After a refusal the transaction is at its end.
///
/// # Errors
/// If the database is away.
pub async fn write(
    transaction: &Transaction<'_>,
    before: Option<&CarbonFactor>,
    after: &CarbonFactor,
    by: &By,
    now: Timestamp,
) -> Result<Written, StoreError> {
    let written = if before.is_some() {
        transaction
            .execute(
                "UPDATE carbon_factors SET valid_from = $2, g_per_kwh = $3, source = $4 WHERE id = $1",
                &[&after.id, &after.valid_from, &after.g_per_kwh, &after.source],
            )
            .await
    } else {
        // The lock lets the count be right.
        sites::one(transaction, after.site, true).await?;
        let count = "SELECT count(*) FROM carbon_factors WHERE site_id = $1";
        if transaction.query_one(count, &[&after.site]).await?.try_get::<_, i64>(0)? >= FACTORS_MAX {
            return Ok(Written::TooMany);
        }
        transaction
            .execute(
                "INSERT INTO carbon_factors (id, organisation_id, site_id, valid_from, g_per_kwh, source, created_at)
                 VALUES ($1, $2, $3, $4, $5, $6, $7)",
                &[&after.id, &by.organisation, &after.site, &after.valid_from, &after.g_per_kwh, &after.source, &now],
            )
            .await
    };
    match written.map_err(StoreError::from) {
        Ok(_) => {}
        Err(error) if error.is_duplicate() => return Ok(Written::Taken),
        Err(error) => return Err(error),
    }
    if before != Some(after) {
        let action = if before.is_some() { "carbon_factor.change" } else { "carbon_factor.create" };
        audit::edited(transaction, action, before, Some(after), by, now).await?;
    }
    Ok(Written::Done)
}

/// Takes a factor away: the one before it holds on.
///
/// # Errors
/// If the database is away.
pub async fn delete(
    transaction: &Transaction<'_>,
    before: &CarbonFactor,
    by: &By,
    now: Timestamp,
) -> Result<(), StoreError> {
    transaction.execute("DELETE FROM carbon_factors WHERE id = $1", &[&before.id]).await?;
    audit::edited(transaction, "carbon_factor.delete", Some(before), None, by, now).await
}

impl Audited for CarbonFactor {
    const OBJECT: &'static str = "carbon_factor";

    fn id(&self) -> Uuid {
        self.id
    }

    fn site(&self) -> Uuid {
        self.site
    }
}

fn factor(row: &Row) -> Result<CarbonFactor, StoreError> {
    Ok(CarbonFactor {
        id: row.try_get(0)?,
        site: row.try_get(1)?,
        valid_from: row.try_get(2)?,
        g_per_kwh: row.try_get(3)?,
        source: row.try_get(4)?,
    })
}
