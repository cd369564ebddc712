//! Organisations and their sites.

use deadpool_postgres::Transaction;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio_postgres::Row;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    Store, StoreError,
    audit::{self, By, Change},
};

/// Sites of an organisation.
pub const SITES_MAX: i64 = 1_000;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Organisation {
    pub id: Uuid,
    pub name: String,
    pub created_at: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Site {
    pub id: Uuid,
    pub name: String,
    pub created_at: Timestamp,
    pub gateways: i64,
    /// Those that are shown by themselves.
    pub machines: i64,
}

/// What an organisation's work is counted in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CostBasis {
    /// ISO 4217, like `EUR`. Tickets keep the one that they were made with.
    #[schema(min_length = 3, max_length = 3, pattern = "^[A-Z]{3}$")]
    pub currency: String,
    /// What an hour of work costs where nobody says otherwise, in the currency's minor unit (cents).
    #[schema(minimum = 0, maximum = 1_000_000_000_000_i64)]
    pub labour_rate_minor: i64,
}

/// What came of giving a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Named {
    Done(Uuid),
    Taken,
    TooMany,
}

/// The organisation of the scope. With `lock` nobody else changes it until the transaction's end.
///
/// # Errors
/// If the database is away.
pub async fn organisation(
    transaction: &Transaction<'_>,
    id: Uuid,
    lock: bool,
) -> Result<Option<Organisation>, StoreError> {
    let lock = if lock { "FOR NO KEY UPDATE" } else { "" };
    let row = transaction
        .query_opt(&format!("SELECT id, name, created_at FROM organisations WHERE id = $1 {lock}"), &[&id])
        .await?;
    row.map(|row| Ok(Organisation { id: row.try_get(0)?, name: row.try_get(1)?, created_at: row.try_get(2)? }))
        .transpose()
}

/// Renames an organisation; names are unique on a server.
///
/// # Errors
/// If the database is away.
pub async fn rename_organisation(
    transaction: &Transaction<'_>,
    before: &Organisation,
    name: &str,
    by: &By,
    now: Timestamp,
) -> Result<Named, StoreError> {
    let renamed = transaction.execute("UPDATE organisations SET name = $2 WHERE id = $1", &[&before.id, &name]).await;
    if let Err(taken) = done(renamed)? {
        return Ok(taken);
    }
    written(transaction, ("organisation.rename", "organisation", before.id, None), (Some(&before.name), name), by, now)
        .await?;
    Ok(Named::Done(before.id))
}

/// What the work of an organisation is counted in.
///
/// # Errors
/// If the database is away.
pub async fn cost_basis(transaction: &Transaction<'_>, organisation: Uuid) -> Result<CostBasis, StoreError> {
    let select = "SELECT currency, labour_rate_minor FROM organisations WHERE id = $1";
    let row = transaction.query_opt(select, &[&organisation]).await?.ok_or(StoreError::Missing("an organisation"))?;
    Ok(CostBasis { currency: row.try_get(0)?, labour_rate_minor: row.try_get(1)? })
}

/// Sets it.
///
/// # Errors
/// If the database is away.
pub async fn set_cost_basis(
    transaction: &Transaction<'_>,
    organisation: Uuid,
    (before, after): (&CostBasis, &CostBasis),
    by: &By,
    now: Timestamp,
) -> Result<(), StoreError> {
    if before == after {
        return Ok(());
    }
    let update = "UPDATE organisations SET currency = $2, labour_rate_minor = $3 WHERE id = $1";
    transaction.execute(update, &[&organisation, &after.currency, &after.labour_rate_minor]).await?;
    let change = Change {
        action: "organisation.costs",
        object: "organisation",
        id: &organisation.to_string(),
        site: None,
        before: json!(before),
        after: json!(after),
    };
    audit::write(transaction, by, &change, now).await
}

const SITE: &str = "SELECT s.id, s.name, s.created_at, (SELECT count(*) FROM gateways g WHERE g.site_id = s.id),
           (SELECT count(*) FROM machines m WHERE m.site_id = s.id AND m.merged_into IS NULL AND NOT m.ignored)
    FROM sites s";

/// Sites by name, from behind `after`.
///
/// # Errors
/// If the database is away.
pub async fn list(
    transaction: &Transaction<'_>,
    after: Option<&(String, Uuid)>,
    limit: i64,
) -> Result<Vec<Site>, StoreError> {
    let sql =
        format!("{SITE} WHERE $1::text IS NULL OR (s.name, s.id) > ($1, $2::uuid) ORDER BY s.name, s.id LIMIT $3");
    let rows = transaction.query(&sql, &[&after.map(|a| &a.0), &after.map(|a| a.1), &limit]).await?;
    rows.iter().map(site).collect()
}

/// A site. With `lock` nobody else changes it until the transaction's end.
///
/// # Errors
/// If the database is away.
pub async fn one(transaction: &Transaction<'_>, id: Uuid, lock: bool) -> Result<Option<Site>, StoreError> {
    let lock = if lock { "FOR NO KEY UPDATE OF s" } else { "" };
    let row = transaction.query_opt(&format!("{SITE} WHERE s.id = $1 {lock}"), &[&id]).await?;
    row.map(|row| site(&row)).transpose()
}

/// Adds a site. It is in the scope of nobody's transaction yet, this one's included.
///
/// # Errors
/// If the database is away.
pub async fn insert(
    transaction: &Transaction<'_>,
    organisation: Uuid,
    name: &str,
    by: &By,
    now: Timestamp,
) -> Result<Named, StoreError> {
    let known: i64 =
        transaction.query_one("SELECT count(*) FROM sites WHERE organisation_id = $1", &[&organisation]).await?.get(0);
    if known >= SITES_MAX {
        return Ok(Named::TooMany);
    }
    let id = Uuid::now_v7();
    let added = transaction
        .execute(
            "INSERT INTO sites (id, organisation_id, name, created_at) VALUES ($1, $2, $3, $4)",
            &[&id, &organisation, &name, &now],
        )
        .await;
    if let Err(taken) = done(added)? {
        return Ok(taken);
    }
    written(transaction, ("site.create", "site", id, Some(id)), (None, name), by, now).await?;
    Ok(Named::Done(id))
}

/// Renames a site.
///
/// # Errors
/// If the database is away.
pub async fn rename(
    transaction: &Transaction<'_>,
    before: &Site,
    name: &str,
    by: &By,
    now: Timestamp,
) -> Result<Named, StoreError> {
    let renamed = transaction.execute("UPDATE sites SET name = $2 WHERE id = $1", &[&before.id, &name]).await;
    if let Err(taken) = done(renamed)? {
        return Ok(taken);
    }
    let object = ("site.rename", "site", before.id, Some(before.id));
    written(transaction, object, (Some(&before.name), name), by, now).await?;
    Ok(Named::Done(before.id))
}

/// All organisations with their sites, by name: for the command line.
///
/// # Errors
/// If the database is away.
pub async fn all(store: &Store) -> Result<Vec<(Organisation, Vec<String>)>, StoreError> {
    let client = store.client().await?;
    let rows = client
        .query(
            "SELECT id, name, created_at, ARRAY(SELECT s.name FROM sites s WHERE s.organisation_id = o.id ORDER BY 1)
             FROM organisations o ORDER BY name",
            &[],
        )
        .await?;
    let read = |row: &Row| {
        let organisation = Organisation { id: row.try_get(0)?, name: row.try_get(1)?, created_at: row.try_get(2)? };
        Ok((organisation, row.try_get(3)?))
    };
    rows.iter().map(read).collect()
}

/// Adds an organisation: for the command line, which is whose the server is.
///
/// # Errors
/// If the database is away.
pub async fn insert_organisation(store: &Store, name: &str, now: Timestamp) -> Result<Named, StoreError> {
    let mut client = store.client().await?;
    let transaction = client.transaction().await?;
    let id = Uuid::now_v7();
    let added = transaction
        .execute("INSERT INTO organisations (id, name, created_at) VALUES ($1, $2, $3)", &[&id, &name, &now])
        .await;
    if let Err(taken) = done(added)? {
        return Ok(taken);
    }
    let by = By::command_line(id);
    written(&transaction, ("organisation.create", "organisation", id, None), (None, name), &by, now).await?;
    transaction.commit().await?;
    Ok(Named::Done(id))
}

/// An organisation by its name or id: for the command line.
///
/// # Errors
/// If the database is away.
pub async fn find_organisation(store: &Store, name: &str) -> Result<Option<Uuid>, StoreError> {
    let client = store.client().await?;
    let row = client.query_opt("SELECT id FROM organisations WHERE name = $1 OR id::text = $1", &[&name]).await?;
    Ok(row.map(|row| row.get(0)))
}

/// A site of an organisation by its name or id: for the command line.
///
/// # Errors
/// If the database is away.
pub async fn find(store: &Store, organisation: Uuid, name: &str) -> Result<Option<Uuid>, StoreError> {
    let client = store.client().await?;
    let row = client
        .query_opt(
            "SELECT id FROM sites WHERE organisation_id = $1 AND (name = $2 OR id::text = $2)",
            &[&organisation, &name],
        )
        .await?;
    Ok(row.map(|row| row.get(0)))
}

/// `Err` inside says that the name is taken; the transaction is at its end then.
fn done(result: Result<u64, tokio_postgres::Error>) -> Result<Result<(), Named>, StoreError> {
    match result.map_err(StoreError::from) {
        Ok(_) => Ok(Ok(())),
        Err(error) if error.is_duplicate() => Ok(Err(Named::Taken)),
        Err(error) => Err(error),
    }
}

async fn written(
    transaction: &Transaction<'_>,
    (action, object, id, site): (&'static str, &'static str, Uuid, Option<Uuid>),
    (before, after): (Option<&str>, &str),
    by: &By,
    now: Timestamp,
) -> Result<(), StoreError> {
    if before == Some(after) {
        return Ok(());
    }
    let before = before.map_or(Value::Null, |name| json!({"name": name}));
    let change = Change { action, object, id: &id.to_string(), site, before, after: json!({"name": after}) };
    audit::write(transaction, by, &change, now).await
}

fn site(row: &Row) -> Result<Site, StoreError> {
    Ok(Site {
        id: row.try_get(0)?,
        name: row.try_get(1)?,
        created_at: row.try_get(2)?,
        gateways: row.try_get(3)?,
        machines: row.try_get(4)?,
    })
}
