//! Webhooks: where an organisation wants to be called.

use deadpool_postgres::Transaction;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Value, json};
use tokio_postgres::Row;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    StoreError,
    audit::{self, By, Change},
    words::Word,
};
use crate::{
    alarms::Severity,
    notifications::{Hook, Recent},
};

/// Webhooks of an organisation.
pub const COUNT_MAX: i64 = 50;

const COLUMNS: &str = "id, name, url, site_ids, severity_min, enabled, gone_at, secret_generation, secret_rotated_at,
                       created_at, updated_at";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Webhook {
    pub id: Uuid,
    pub name: String,
    pub url: String,
    /// `null`: all.
    pub sites: Option<Vec<Uuid>>,
    /// Incidents below are not told.
    pub severity_min: Severity,
    pub enabled: bool,
    /// When the receiver answered 410 and the webhook was switched off for that.
    pub gone_at: Option<Timestamp>,
    /// How many secrets there were.
    #[serde(skip)]
    pub secret_generation: i32,
    /// For 24 hours from then on, calls are signed with the secret before as well.
    pub secret_rotated_at: Option<Timestamp>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

/// What an admin says of a webhook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    pub name: String,
    pub url: String,
    pub sites: Option<Vec<Uuid>>,
    pub severity_min: Severity,
    pub enabled: bool,
}

/// Why a webhook is not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// Another one has the name.
    Taken,
    /// There are [`COUNT_MAX`] already.
    TooMany,
}

/// Webhooks of the organisation, by id, from behind `after`.
///
/// # Errors
/// If the database is away.
pub async fn list(transaction: &Transaction<'_>, after: Option<Uuid>, limit: i64) -> Result<Vec<Webhook>, StoreError> {
    let select = transaction
        .prepare_cached(&format!(
            "SELECT {COLUMNS} FROM webhooks WHERE deleted_at IS NULL AND ($1::uuid IS NULL OR id > $1) ORDER BY id LIMIT $2"
        ))
        .await?;
    transaction.query(&select, &[&after, &limit]).await?.iter().map(webhook).collect()
}

/// One webhook, locked where it is to be changed.
///
/// # Errors
/// If the database is away.
pub async fn one(transaction: &Transaction<'_>, id: Uuid, lock: bool) -> Result<Option<Webhook>, StoreError> {
    let lock = if lock { "FOR UPDATE" } else { "" };
    let select = transaction
        .prepare_cached(&format!("SELECT {COLUMNS} FROM webhooks WHERE id = $1 AND deleted_at IS NULL {lock}"))
        .await?;
    transaction.query_opt(&select, &[&id]).await?.as_ref().map(webhook).transpose()
}

/// Adds one.
///
/// # Errors
/// If the database is away.
pub async fn add(
    transaction: &Transaction<'_>,
    id: Uuid,
    settings: &Settings,
    by: &By,
    now: Timestamp,
) -> Result<Result<(), Refused>, StoreError> {
    let count: i64 =
        transaction.query_one("SELECT count(*) FROM webhooks WHERE deleted_at IS NULL", &[]).await?.try_get(0)?;
    if count >= COUNT_MAX {
        return Ok(Err(Refused::TooMany));
    }
    let added = transaction
        .execute(
            "INSERT INTO webhooks (id, organisation_id, name, url, site_ids, severity_min, enabled, created_at, updated_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $8)
             ON CONFLICT (organisation_id, lower(name)) WHERE deleted_at IS NULL DO NOTHING",
            &[
                &id,
                &by.organisation,
                &settings.name,
                &settings.url,
                &settings.sites,
                &settings.severity_min.as_str(),
                &settings.enabled,
                &now,
            ],
        )
        .await?;
    if added == 0 {
        return Ok(Err(Refused::Taken));
    }
    write(transaction, "webhook.add", id, (Value::Null, shown(settings)), by, now).await?;
    Ok(Ok(()))
}

/// Changes one; switched on again, it is not gone any more.
///
/// # Errors
/// If the database is away; a duplicate where another one has the name.
pub async fn change(
    transaction: &Transaction<'_>,
    known: &Webhook,
    settings: &Settings,
    by: &By,
    now: Timestamp,
) -> Result<(), StoreError> {
    let before = known.settings();
    if before == *settings {
        return Ok(());
    }
    transaction
        .execute(
            "UPDATE webhooks SET name = $2, url = $3, site_ids = $4, severity_min = $5, enabled = $6,
                    gone_at = CASE WHEN $6 THEN NULL ELSE gone_at END, updated_at = $7 WHERE id = $1",
            &[
                &known.id,
                &settings.name,
                &settings.url,
                &settings.sites,
                &settings.severity_min.as_str(),
                &settings.enabled,
                &now,
            ],
        )
        .await?;
    write(transaction, "webhook.change", known.id, (shown(&before), shown(settings)), by, now).await
}

/// Gives one its next secret.
///
/// # Errors
/// If the database is away.
pub async fn rotate(
    transaction: &Transaction<'_>,
    known: &Webhook,
    by: &By,
    now: Timestamp,
) -> Result<i32, StoreError> {
    let next = known.secret_generation + 1;
    let update = "UPDATE webhooks SET secret_generation = $2, secret_rotated_at = $3 WHERE id = $1";
    transaction.execute(update, &[&known.id, &next, &now]).await?;
    write(transaction, "webhook.rotate", known.id, (Value::Null, Value::Null), by, now).await?;
    Ok(next)
}

/// Takes one away; its deliveries can still be looked at.
///
/// # Errors
/// If the database is away.
pub async fn delete(transaction: &Transaction<'_>, known: &Webhook, by: &By, now: Timestamp) -> Result<(), StoreError> {
    let update = "UPDATE webhooks SET deleted_at = $2, enabled = false WHERE id = $1";
    transaction.execute(update, &[&known.id, &now]).await?;
    write(transaction, "webhook.delete", known.id, (shown(&known.settings()), Value::Null), by, now).await
}

/// Switches one off whose receiver is gone for good.
///
/// # Errors
/// If the database is away.
pub async fn gone(
    transaction: &Transaction<'_>,
    id: Uuid,
    organisation: Uuid,
    now: Timestamp,
) -> Result<(), StoreError> {
    let update = "UPDATE webhooks SET enabled = false, gone_at = $2, updated_at = $2 WHERE id = $1 AND enabled";
    if transaction.execute(update, &[&id, &now]).await? == 0 {
        return Ok(());
    }
    let values = (json!({"enabled": true}), json!({"enabled": false, "gone_at": now}));
    write(transaction, "webhook.gone", id, values, &By::command_line(organisation), now).await
}

/// How many of these sites there are to be seen.
///
/// # Errors
/// If the database is away.
pub async fn sites_known(transaction: &Transaction<'_>, sites: &[Uuid]) -> Result<bool, StoreError> {
    let select = "SELECT count(*) FROM sites WHERE id = ANY($1)";
    Ok(transaction.query_one(select, &[&sites]).await?.try_get::<_, i64>(0)? == sites.len() as i64)
}

/// Those of an organisation that are switched on, with nothing in `recent`.
///
/// # Errors
/// If the database is away.
pub async fn hooks(transaction: &Transaction<'_>, organisation: Uuid) -> Result<Vec<Hook>, StoreError> {
    let select = transaction
        .prepare_cached(
            "SELECT id, name, severity_min, site_ids FROM webhooks
             WHERE organisation_id = $1 AND enabled AND deleted_at IS NULL ORDER BY id",
        )
        .await?;
    let hook = |row: &Row| {
        let Word(severity_min) = row.try_get(2)?;
        Ok(Hook {
            id: row.try_get(0)?,
            name: row.try_get(1)?,
            severity_min,
            sites: row.try_get(3)?,
            recent: Recent::default(),
        })
    };
    transaction.query(&select, &[&organisation]).await?.iter().map(hook).collect()
}

impl Webhook {
    #[must_use]
    pub fn settings(&self) -> Settings {
        Settings {
            name: self.name.clone(),
            url: self.url.clone(),
            sites: self.sites.clone(),
            severity_min: self.severity_min,
            enabled: self.enabled,
        }
    }
}

fn webhook(row: &Row) -> Result<Webhook, StoreError> {
    let Word(severity_min) = row.try_get("severity_min")?;
    Ok(Webhook {
        id: row.try_get("id")?,
        name: row.try_get("name")?,
        url: row.try_get("url")?,
        sites: row.try_get("site_ids")?,
        severity_min,
        enabled: row.try_get("enabled")?,
        gone_at: row.try_get("gone_at")?,
        secret_generation: row.try_get("secret_generation")?,
        secret_rotated_at: row.try_get("secret_rotated_at")?,
        created_at: row.try_get("created_at")?,
        updated_at: row.try_get("updated_at")?,
    })
}

/// For the audit. What stands in a path or a query may be a key of the receiver's: only the host is told.
fn shown(settings: &Settings) -> Value {
    let host = url::Url::parse(&settings.url).ok().map(|url| url.origin().ascii_serialization());
    json!({
        "name": settings.name,
        "url": host,
        "sites": settings.sites,
        "severity_min": settings.severity_min,
        "enabled": settings.enabled,
    })
}

async fn write(
    transaction: &Transaction<'_>,
    action: &'static str,
    id: Uuid,
    (before, after): (Value, Value),
    by: &By,
    now: Timestamp,
) -> Result<(), StoreError> {
    let change = Change { action, object: "webhook", id: &id.to_string(), site: None, before, after };
    audit::write(transaction, by, &change, now).await
}
