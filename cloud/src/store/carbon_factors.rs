//! What a kilowatt-hour emits at a site: a series.

use std::collections::HashMap;

use deadpool_postgres::Transaction;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Value, json};
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

/// What became of many that were written at once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct WrittenFactors {
    pub added: i64,
    /// They took the place of others.
    pub changed: i64,
    /// They were there already.
    pub unchanged: i64,
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

/// Writes many factors of a site: one that begins when another does takes its place. `None` if there would be more than
/// [`FACTORS_MAX`]. The audit has each that was changed, and one row of all.
///
/// # Errors
/// If the database is away.
pub async fn write_many(
    transaction: &Transaction<'_>,
    site: Uuid,
    factors: &[(Timestamp, f64)],
    source: &str,
    by: &By,
    now: Timestamp,
) -> Result<Option<WrittenFactors>, StoreError> {
    // The lock lets the count be right.
    sites::one(transaction, site, true).await?;
    let moments: Vec<Timestamp> = factors.iter().map(|(at, _)| *at).collect();
    let known = format!("{SELECT} WHERE site_id = $1 AND valid_from = ANY($2) FOR NO KEY UPDATE");
    let known = transaction.query(&known, &[&site, &moments]).await?;
    let mut known: HashMap<Timestamp, CarbonFactor> =
        known.iter().map(|row| factor(row).map(|one| (one.valid_from, one))).collect::<Result<_, StoreError>>()?;

    let (mut added, mut changed) = (Vec::new(), Vec::new());
    for &(valid_from, g_per_kwh) in factors {
        let before = known.remove(&valid_from);
        let id = before.as_ref().map_or_else(Uuid::now_v7, |before| before.id);
        let after = CarbonFactor { id, site, valid_from, g_per_kwh, source: source.to_owned() };
        match before {
            None => added.push(after),
            Some(before) if before != after => changed.push((before, after)),
            Some(_) => {}
        }
    }
    let count = "SELECT count(*) FROM carbon_factors WHERE site_id = $1";
    let count: i64 = transaction.query_one(count, &[&site]).await?.try_get(0)?;
    if count + added.len() as i64 > FACTORS_MAX {
        return Ok(None);
    }
    let columns = |rows: &mut dyn Iterator<Item = &CarbonFactor>| -> (Vec<Uuid>, Vec<Timestamp>, Vec<f64>) {
        let (mut ids, mut moments, mut grams) = (Vec::new(), Vec::new(), Vec::new());
        for row in rows {
            ids.push(row.id);
            moments.push(row.valid_from);
            grams.push(row.g_per_kwh);
        }
        (ids, moments, grams)
    };
    let (ids, moments, grams) = columns(&mut added.iter());
    let insert = "INSERT INTO carbon_factors (id, organisation_id, site_id, valid_from, g_per_kwh, source, created_at)
                  SELECT id, $4, $5, valid_from, g, $6, $7
                  FROM unnest($1::uuid[], $2::timestamptz[], $3::float8[]) AS new (id, valid_from, g)";
    transaction.execute(insert, &[&ids, &moments, &grams, &by.organisation, &site, &source, &now]).await?;
    let (ids, _, grams) = columns(&mut changed.iter().map(|(_, after)| after));
    let update = "UPDATE carbon_factors SET g_per_kwh = new.g, source = $3
                  FROM unnest($1::uuid[], $2::float8[]) AS new (id, g) WHERE carbon_factors.id = new.id";
    transaction.execute(update, &[&ids, &grams, &source]).await?;
    audit::edited_all(transaction, "carbon_factor.change", &changed, by, now).await?;
    let written = WrittenFactors {
        added: added.len() as i64,
        changed: changed.len() as i64,
        unchanged: (factors.len() - added.len() - changed.len()) as i64,
    };
    if written.added + written.changed > 0 {
        let (first, last) = (factors.iter().map(|f| f.0).min(), factors.iter().map(|f| f.0).max());
        let after = json!({
            "added": written.added, "changed": written.changed, "unchanged": written.unchanged, "first": first, "last": last,
            "source": source,
        });
        let id = site.to_string();
        let change = audit::Change {
            action: "carbon_factor.write_many",
            object: "site",
            id: &id,
            site: Some(site),
            before: Value::Null,
            after,
        };
        audit::write(transaction, by, &change, now).await?;
    }
    Ok(Some(written))
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
