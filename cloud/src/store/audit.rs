//! The audit: every change that somebody made, in the transaction that made it. It is only appended to.

use std::net::IpAddr;

use deadpool_postgres::Transaction;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;
use tokio_postgres::{
    Row,
    types::{Json, ToSql},
};
use utoipa::ToSchema;
use uuid::Uuid;

use super::StoreError;

/// Who makes a change, and from where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct By {
    pub organisation: Uuid,
    /// `None`: the command line.
    pub user: Option<Uuid>,
    pub name: String,
    /// The API key with which it was asked for.
    pub api_key: Option<Uuid>,
    pub address: Option<IpAddr>,
    pub request: Option<Uuid>,
}

impl By {
    /// Whoever runs the command line: they have the database itself.
    #[must_use]
    pub fn command_line(organisation: Uuid) -> Self {
        Self { organisation, user: None, name: "gemba-cloud".into(), api_key: None, address: None, request: None }
    }
}

/// A change. No secret stands in it.
#[derive(Debug, Clone, PartialEq)]
pub struct Change<'a> {
    /// A word like `machine.label`; it never changes its meaning.
    pub action: &'static str,
    /// A word like `machine`, and its id.
    pub object: &'static str,
    pub id: &'a str,
    pub site: Option<Uuid>,
    /// What was changed, as it was; `Null` for what was not there.
    pub before: Value,
    /// As it is; `Null` for what is no more.
    pub after: Value,
}

/// What stands at a site and is audited whole: as it was, as it is.
pub trait Audited: Serialize {
    const OBJECT: &'static str;
    fn id(&self) -> Uuid;
    fn site(&self) -> Uuid;
}

/// Writes that one was made, changed or taken away.
///
/// # Errors
/// If the database is away.
pub async fn edited<T: Audited>(
    transaction: &Transaction<'_>,
    action: &'static str,
    before: Option<&T>,
    after: Option<&T>,
    by: &By,
    now: Timestamp,
) -> Result<(), StoreError> {
    let Some(one) = after.or(before) else { return Ok(()) };
    let json = |one: Option<&T>| one.and_then(|one| serde_json::to_value(one).ok()).unwrap_or(Value::Null);
    let (id, site) = (one.id().to_string(), Some(one.site()));
    let change = Change { action, object: T::OBJECT, id: &id, site, before: json(before), after: json(after) };
    write(transaction, by, &change, now).await
}

/// Writes down that many things were edited, each from one to the other.
///
/// # Errors
/// If the database is away.
pub async fn edited_all<T: Audited>(
    transaction: &Transaction<'_>,
    action: &'static str,
    edits: &[(T, T)],
    by: &By,
    now: Timestamp,
) -> Result<(), StoreError> {
    let json = |one: &T| Json(serde_json::to_value(one).unwrap_or(Value::Null));
    let ids: Vec<Uuid> = edits.iter().map(|_| Uuid::now_v7()).collect();
    let sites: Vec<Uuid> = edits.iter().map(|(_, after)| after.site()).collect();
    let objects: Vec<String> = edits.iter().map(|(_, after)| after.id().to_string()).collect();
    let (before, after): (Vec<_>, Vec<_>) = edits.iter().map(|(before, after)| (json(before), json(after))).unzip();
    let insert = "INSERT INTO audit (id, organisation_id, site_id, at, user_id, actor, api_key_id, action, object, object_id,
                                     before, after, address, request_id)
                  SELECT id, $6, site, $7, $8, $9, $10, $11, $12, object, before, after, $13, $14
                  FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::jsonb[], $5::jsonb[]) AS e (id, site, object, before, after)";
    let fixed: [&(dyn ToSql + Sync); 9] =
        [&by.organisation, &now, &by.user, &by.name, &by.api_key, &action, &T::OBJECT, &by.address, &by.request];
    let columns: [&(dyn ToSql + Sync); 5] = [&ids, &sites, &objects, &before, &after];
    transaction.execute(insert, &[&columns[..], &fixed[..]].concat()).await?;
    Ok(())
}

/// Writes a change to the audit.
///
/// # Errors
/// If the database is away.
pub async fn write(
    transaction: &Transaction<'_>,
    by: &By,
    change: &Change<'_>,
    now: Timestamp,
) -> Result<(), StoreError> {
    let insert = transaction
        .prepare_cached(
            "INSERT INTO audit (id, organisation_id, site_id, at, user_id, actor, api_key_id, action, object, object_id,
                                before, after, address, request_id)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)",
        )
        .await?;
    let json = |value: &Value| (!value.is_null()).then(|| Json(value.clone()));
    transaction
        .execute(
            &insert,
            &[
                &Uuid::now_v7(),
                &by.organisation,
                &change.site,
                &now,
                &by.user,
                &by.name,
                &by.api_key,
                &change.action,
                &change.object,
                &change.id,
                &json(&change.before),
                &json(&change.after),
                &by.address,
                &by.request,
            ],
        )
        .await?;
    Ok(())
}

/// A row of the audit.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Entry {
    pub id: Uuid,
    pub at: Timestamp,
    pub site: Option<Uuid>,
    /// `null` for the command line.
    pub user: Option<Uuid>,
    /// The user's name at that time; `gemba-cloud` for the command line.
    pub actor: String,
    /// The API key with which it was done, if not in a session.
    pub api_key: Option<Uuid>,
    /// A word like `machine.label`.
    pub action: String,
    /// A word like `machine`.
    pub object: String,
    pub object_id: String,
    /// What was changed, as it was.
    #[schema(value_type = Option<serde_json::Value>)]
    pub before: Option<Value>,
    /// As it was after that.
    #[schema(value_type = Option<serde_json::Value>)]
    pub after: Option<Value>,
    #[schema(value_type = Option<String>)]
    pub address: Option<IpAddr>,
    /// The `x-request-id` of the answer.
    pub request: Option<Uuid>,
}

/// What to list; times are of the change, `to` exclusive.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    pub user: Option<Uuid>,
    pub action: Option<String>,
    pub object: Option<String>,
    pub object_id: Option<String>,
    pub site: Option<Uuid>,
    pub from: Option<Timestamp>,
    pub to: Option<Timestamp>,
}

/// Changes, the newest first, from behind `after`.
///
/// # Errors
/// If the database is away.
pub async fn list(
    transaction: &Transaction<'_>,
    filter: &Filter,
    after: Option<Uuid>,
    limit: i64,
) -> Result<Vec<Entry>, StoreError> {
    let select = transaction
        .prepare_cached(
            "SELECT id, at, site_id, user_id, actor, api_key_id, action, object, object_id, before, after, address,
                    request_id
             FROM audit
             WHERE ($1::uuid IS NULL OR user_id = $1) AND ($2::text IS NULL OR action = $2)
               AND ($3::text IS NULL OR object = $3) AND ($4::text IS NULL OR object_id = $4)
               AND ($5::uuid IS NULL OR site_id = $5)
               AND ($6::timestamptz IS NULL OR at >= $6) AND ($7::timestamptz IS NULL OR at < $7)
               AND ($8::uuid IS NULL OR id < $8)
             ORDER BY id DESC LIMIT $9",
        )
        .await?;
    let rows = transaction
        .query(
            &select,
            &[
                &filter.user,
                &filter.action,
                &filter.object,
                &filter.object_id,
                &filter.site,
                &filter.from,
                &filter.to,
                &after,
                &limit,
            ],
        )
        .await?;
    rows.iter().map(entry).collect()
}

fn entry(row: &Row) -> Result<Entry, StoreError> {
    let json = |value: Option<Json<Value>>| value.map(|Json(value)| value);
    Ok(Entry {
        id: row.try_get(0)?,
        at: row.try_get(1)?,
        site: row.try_get(2)?,
        user: row.try_get(3)?,
        actor: row.try_get(4)?,
        api_key: row.try_get(5)?,
        action: row.try_get(6)?,
        object: row.try_get(7)?,
        object_id: row.try_get(8)?,
        before: json(row.try_get(9)?),
        after: json(row.try_get(10)?),
        address: row.try_get(11)?,
        request: row.try_get(12)?,
    })
}
