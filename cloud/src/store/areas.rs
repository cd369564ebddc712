//! What lies between a site and its machines: areas, lines, cells (ISA-95).

use deadpool_postgres::Transaction;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio_postgres::{Row, error::SqlState};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    StoreError,
    audit::{self, Audited, By},
    words::Word,
};

/// Areas of a site.
pub const AREAS_MAX: usize = 5_000;

/// ISA-95 (IEC 62264-1), below the site.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AreaKind {
    Area,
    ProductionLine,
    ProcessCell,
    ProductionUnit,
    StorageZone,
    WorkCell,
}

impl AreaKind {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Area => "area",
            Self::ProductionLine => "production_line",
            Self::ProcessCell => "process_cell",
            Self::ProductionUnit => "production_unit",
            Self::StorageZone => "storage_zone",
            Self::WorkCell => "work_cell",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Area {
    pub id: Uuid,
    pub site: Uuid,
    /// What it is a part of; `null`: of the site itself.
    pub parent: Option<Uuid>,
    pub kind: AreaKind,
    pub name: String,
}

/// What came of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Changed {
    Done(Uuid),
    /// Its parent has a part of this name.
    Taken,
    /// No area of the site, or a part of the area itself.
    BadParent,
    TooMany,
    /// It has parts or machines.
    InUse,
}

const SELECT: &str = "SELECT id, site_id, parent_id, kind, name FROM areas";

/// Areas (of a site, where one is named) by name, from behind `after`.
///
/// # Errors
/// If the database is away.
pub async fn list(
    transaction: &Transaction<'_>,
    site: Option<Uuid>,
    after: Option<&(String, Uuid)>,
    limit: i64,
) -> Result<Vec<Area>, StoreError> {
    let sql = format!(
        "{SELECT} WHERE ($1::uuid IS NULL OR site_id = $1) AND ($2::text IS NULL OR (name, id) > ($2, $3::uuid))
         ORDER BY name, id LIMIT $4"
    );
    let rows = transaction.query(&sql, &[&site, &after.map(|a| &a.0), &after.map(|a| a.1), &limit]).await?;
    rows.iter().map(area).collect()
}

/// An area. With `lock` nobody else changes it until the transaction's end.
///
/// # Errors
/// If the database is away.
pub async fn one(transaction: &Transaction<'_>, id: Uuid, lock: bool) -> Result<Option<Area>, StoreError> {
    if lock {
        // All of the site's, in one order: see `write`.
        let all =
            "SELECT 1 FROM areas WHERE site_id = (SELECT site_id FROM areas WHERE id = $1) ORDER BY id FOR UPDATE";
        transaction.query(all, &[&id]).await?;
    }
    let row = transaction.query_opt(&format!("{SELECT} WHERE id = $1"), &[&id]).await?;
    row.map(|row| area(&row)).transpose()
}

/// Adds an area, or (one of this id is there) changes it.
///
/// # Errors
/// If the database is away.
pub async fn write(
    transaction: &Transaction<'_>,
    organisation: Uuid,
    before: Option<&Area>,
    after: &Area,
    by: &By,
    now: Timestamp,
) -> Result<Changed, StoreError> {
    // All of the site's, locked: two changes cannot make a ring.
    let rows = transaction
        .query("SELECT id, parent_id FROM areas WHERE site_id = $1 ORDER BY id FOR UPDATE", &[&after.site])
        .await?;
    let parents: std::collections::HashMap<Uuid, Option<Uuid>> =
        rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect::<Result<_, StoreError>>()?;
    let mut above = after.parent;
    while let Some(id) = above {
        let Some(next) = parents.get(&id).filter(|_| id != after.id) else { return Ok(Changed::BadParent) };
        above = *next;
    }
    if before.is_none() && parents.len() >= AREAS_MAX {
        return Ok(Changed::TooMany);
    }
    let written = if before.is_some() {
        transaction
            .execute(
                "UPDATE areas SET parent_id = $2, kind = $3, name = $4 WHERE id = $1",
                &[&after.id, &after.parent, &after.kind.as_str(), &after.name],
            )
            .await
    } else {
        transaction
            .execute(
                "INSERT INTO areas (id, organisation_id, site_id, parent_id, kind, name, created_at)
                 VALUES ($1, $2, $3, $4, $5, $6, $7)",
                &[&after.id, &organisation, &after.site, &after.parent, &after.kind.as_str(), &after.name, &now],
            )
            .await
    };
    match written.map_err(StoreError::from) {
        Ok(_) => {}
        Err(error) if error.is_duplicate() => return Ok(Changed::Taken),
        Err(error) => return Err(error),
    }
    if before != Some(after) {
        let action = if before.is_some() { "area.change" } else { "area.create" };
        audit::edited(transaction, action, before, Some(after), by, now).await?;
    }
    Ok(Changed::Done(after.id))
}

/// Takes an area away that has no parts and no machines.
///
/// # Errors
/// If the database is away.
pub async fn delete(
    transaction: &Transaction<'_>,
    before: &Area,
    by: &By,
    now: Timestamp,
) -> Result<Changed, StoreError> {
    match transaction.execute("DELETE FROM areas WHERE id = $1", &[&before.id]).await {
        Ok(_) => {}
        Err(error) if error.code() == Some(&SqlState::FOREIGN_KEY_VIOLATION) => return Ok(Changed::InUse),
        Err(error) => return Err(error.into()),
    }
    audit::edited(transaction, "area.delete", Some(before), None, by, now).await?;
    Ok(Changed::Done(before.id))
}

impl Audited for Area {
    const OBJECT: &'static str = "area";

    fn id(&self) -> Uuid {
        self.id
    }

    fn site(&self) -> Uuid {
        self.site
    }
}

fn area(row: &Row) -> Result<Area, StoreError> {
    let Word(kind) = row.try_get(3)?;
    Ok(Area { id: row.try_get(0)?, site: row.try_get(1)?, parent: row.try_get(2)?, kind, name: row.try_get(4)? })
}
