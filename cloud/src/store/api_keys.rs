//! API keys as their users manage them.

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
use crate::users::Role;

/// Keys of a user that are good.
pub const KEYS_MAX: i64 = 100;

/// A key as it is shown: never the key itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct ApiKey {
    pub id: Uuid,
    pub name: String,
    /// Whom it acts for.
    pub user: Uuid,
    pub user_name: String,
    /// How the key begins.
    pub begins: String,
    /// What it may at most; never more than its user.
    pub role: Role,
    /// Where only; `null`: wherever its user may.
    pub site: Option<Uuid>,
    pub created_at: Timestamp,
    pub expires_at: Timestamp,
    /// To the minute.
    pub used_at: Option<Timestamp>,
    pub revoked_at: Option<Timestamp>,
}

/// A key to be made.
#[derive(Debug, Clone, Copy)]
pub struct NewKey<'a> {
    pub user: Uuid,
    pub organisation: Uuid,
    pub name: &'a str,
    pub hash: [u8; 32],
    pub begins: &'a str,
    pub role: Role,
    pub site: Option<Uuid>,
    pub expires_at: Timestamp,
}

/// Makes a key; `None` if the user has [`KEYS_MAX`] already.
///
/// # Errors
/// If the database is away.
pub async fn insert(
    transaction: &Transaction<'_>,
    new: &NewKey<'_>,
    by: &By,
    now: Timestamp,
) -> Result<Option<Uuid>, StoreError> {
    let known: i64 = transaction
        .query_one(
            "SELECT count(*) FROM api_keys WHERE user_id = $1 AND revoked_at IS NULL AND expires_at > $2",
            &[&new.user, &now],
        )
        .await?
        .get(0);
    if known >= KEYS_MAX {
        return Ok(None);
    }
    let id = Uuid::now_v7();
    transaction
        .execute(
            "INSERT INTO api_keys (id, organisation_id, user_id, name, hash, begins, role, site_id, created_at, expires_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
            &[
                &id,
                &new.organisation,
                &new.user,
                &new.name,
                &new.hash.as_slice(),
                &new.begins,
                &new.role.as_str(),
                &new.site,
                &now,
                &new.expires_at,
            ],
        )
        .await?;
    let after = json!({"name": new.name, "user": new.user, "begins": new.begins, "role": new.role, "site": new.site,
                       "expires_at": new.expires_at});
    let change = Change {
        action: "api_key.create",
        object: "api_key",
        id: &id.to_string(),
        site: new.site,
        before: Value::Null,
        after,
    };
    audit::write(transaction, by, &change, now).await?;
    Ok(Some(id))
}

const SELECT: &str =
    "SELECT k.id, k.name, k.user_id, u.name, k.begins, k.role, k.site_id, k.created_at, k.expires_at, k.used_at,
                             k.revoked_at
                      FROM api_keys k JOIN users u ON u.id = k.user_id";

/// Keys (of this user, where one is named), the newest first, from behind `after`.
///
/// # Errors
/// If the database is away.
pub async fn list(
    transaction: &Transaction<'_>,
    user: Option<Uuid>,
    after: Option<Uuid>,
    limit: i64,
) -> Result<Vec<ApiKey>, StoreError> {
    let sql = format!(
        "{SELECT} WHERE ($1::uuid IS NULL OR k.user_id = $1) AND ($2::uuid IS NULL OR k.id < $2) ORDER BY k.id DESC LIMIT $3"
    );
    transaction.query(&sql, &[&user, &after, &limit]).await?.iter().map(key).collect()
}

/// # Errors
/// If the database is away.
pub async fn one(transaction: &Transaction<'_>, id: Uuid) -> Result<Option<ApiKey>, StoreError> {
    let row = transaction.query_opt(&format!("{SELECT} WHERE k.id = $1"), &[&id]).await?;
    row.map(|row| key(&row)).transpose()
}

/// Revokes a key (of this user, where one is named); false if there is none such, or no longer.
///
/// # Errors
/// If the database is away.
pub async fn revoke(
    transaction: &Transaction<'_>,
    id: Uuid,
    user: Option<Uuid>,
    by: &By,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let row = transaction
        .query_opt(
            "UPDATE api_keys SET revoked_at = $3
             WHERE id = $1 AND ($2::uuid IS NULL OR user_id = $2) AND revoked_at IS NULL RETURNING name, site_id",
            &[&id, &user, &now],
        )
        .await?;
    let Some(row) = row else { return Ok(false) };
    let change = Change {
        action: "api_key.revoke",
        object: "api_key",
        id: &id.to_string(),
        site: row.try_get(1)?,
        before: json!({"name": row.try_get::<_, &str>(0)?, "revoked_at": null}),
        after: json!({"revoked_at": now}),
    };
    audit::write(transaction, by, &change, now).await?;
    Ok(true)
}

fn key(row: &Row) -> Result<ApiKey, StoreError> {
    let Word(role) = row.try_get(5)?;
    Ok(ApiKey {
        id: row.try_get(0)?,
        name: row.try_get(1)?,
        user: row.try_get(2)?,
        user_name: row.try_get(3)?,
        begins: row.try_get(4)?,
        role,
        site: row.try_get(6)?,
        created_at: row.try_get(7)?,
        expires_at: row.try_get(8)?,
        used_at: row.try_get(9)?,
        revoked_at: row.try_get(10)?,
    })
}
