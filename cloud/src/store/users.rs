//! Users, their passwords' hashes, and what they are granted.

use deadpool_postgres::Transaction;
use jiff::Timestamp;
use serde_json::Value;
use tokio_postgres::Row;
use uuid::Uuid;

use super::{
    Store, StoreError,
    audit::{self, By, Change},
};
use crate::{
    users::{
        self, Role,
        passwords::{self, PasswordError, Passwords},
        scope::{Grant, Scope},
    },
    views,
};

/// The organisation of the first migration.
pub const DEFAULT_ORGANISATION: Uuid = Uuid::from_u128(0x0000_0000_0000_7000_8000_0000_0000_0001);

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub id: Uuid,
    pub organisation: Uuid,
    pub name: String,
    pub must_change_password: bool,
    /// Tokens made before are no longer taken.
    pub tokens_valid_from: Timestamp,
    pub disabled: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum AddUserError {
    #[error(transparent)]
    Name(#[from] users::BadName),
    #[error("there is a user {0:?} already; names are unique")]
    Taken(String),
    #[error(transparent)]
    Password(#[from] PasswordError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<tokio_postgres::Error> for AddUserError {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Store(error.into())
    }
}

/// Adds a user with a role in the whole of the first organisation, and gives the one-time password, which must be changed
/// at the first login.
///
/// # Errors
/// If the name is bad or taken, or the database is away.
pub async fn add(store: &Store, name: &str, role: Role) -> Result<String, AddUserError> {
    users::check_name(name)?;
    let password = passwords::one_time()?;
    let hash = Passwords::default().hash(password.clone()).await?;
    let mut client = store.client().await?;
    let transaction = client.transaction().await?;
    let id = Uuid::now_v7();
    let added = transaction
        .execute(
            "INSERT INTO users (id, organisation_id, name, password_hash, must_change_password)
             VALUES ($1, $2, $3, $4, true) ON CONFLICT (name) DO NOTHING",
            &[&id, &DEFAULT_ORGANISATION, &name, &hash],
        )
        .await?;
    if added == 0 {
        return Err(AddUserError::Taken(name.to_owned()));
    }
    transaction
        .execute(
            "INSERT INTO grants (user_id, organisation_id, role) VALUES ($1, $2, $3)",
            &[&id, &DEFAULT_ORGANISATION, &role.as_str()],
        )
        .await?;
    transaction.commit().await?;
    Ok(password)
}

/// The user of this name with what they may do, and the password's hash, unless they have none yet.
///
/// # Errors
/// If the database is away.
pub async fn by_name(store: &Store, name: &str) -> Result<Option<(User, Scope, Option<String>)>, StoreError> {
    let client = store.client().await?;
    let statement = client.prepare_cached(&select("u.name = $1")).await?;
    let row = client.query_opt(&statement, &[&name]).await?;
    row.map(|row| Ok((user(&row)?, scope(&row)?, row.try_get("password_hash")?))).transpose()
}

/// The user, and what they may do.
///
/// # Errors
/// If the database is away.
pub async fn by_id(store: &Store, id: Uuid) -> Result<Option<(User, Scope)>, StoreError> {
    let client = store.client().await?;
    let statement = client.prepare_cached(&select("u.id = $1")).await?;
    let row = client.query_opt(&statement, &[&id]).await?;
    row.map(|row| Ok((user(&row)?, scope(&row)?))).transpose()
}

/// Stores a password that the user chose; tokens made before `now` end.
///
/// # Errors
/// If the database is away.
pub async fn set_password(
    transaction: &Transaction<'_>,
    id: Uuid,
    hash: &str,
    by: &By,
    now: Timestamp,
) -> Result<(), StoreError> {
    transaction
        .execute(
            "UPDATE users SET password_hash = $2, must_change_password = false, tokens_valid_from = $3 WHERE id = $1",
            &[&id, &hash, &now],
        )
        .await?;
    let change = Change {
        action: "user.password",
        object: "user",
        id: &id.to_string(),
        site: None,
        before: Value::Null,
        after: Value::Null,
    };
    audit::write(transaction, by, &change, now).await
}

/// With the sites of the organisation and the grants, in two arrays of one order: what a [`Scope`] is made of.
fn select(condition: &str) -> String {
    format!(
        "SELECT u.id, u.organisation_id, u.name, u.password_hash, u.must_change_password, u.tokens_valid_from,
                u.disabled_at IS NOT NULL AS disabled,
                ARRAY(SELECT s.id FROM sites s WHERE s.organisation_id = u.organisation_id) AS sites,
                ARRAY(SELECT g.site_id FROM grants g WHERE g.user_id = u.id ORDER BY g.site_id) AS grant_sites,
                ARRAY(SELECT g.role FROM grants g WHERE g.user_id = u.id ORDER BY g.site_id) AS grant_roles
         FROM users u WHERE {condition}"
    )
}

fn user(row: &Row) -> Result<User, StoreError> {
    Ok(User {
        id: row.try_get("id")?,
        organisation: row.try_get("organisation_id")?,
        name: row.try_get("name")?,
        must_change_password: row.try_get("must_change_password")?,
        tokens_valid_from: row.try_get("tokens_valid_from")?,
        disabled: row.try_get("disabled")?,
    })
}

fn scope(row: &Row) -> Result<Scope, StoreError> {
    let sites: Vec<Uuid> = row.try_get("sites")?;
    let at: Vec<Option<Uuid>> = row.try_get("grant_sites")?;
    let roles: Vec<&str> = row.try_get("grant_roles")?;
    // A role that this version does not know is none.
    let grant = |(site, role): (Option<Uuid>, &str)| Some(Grant { site, role: views::word("role", role).ok()? });
    let grants: Vec<Grant> = at.into_iter().zip(roles).filter_map(grant).collect();
    Ok(Scope::new(row.try_get("organisation_id")?, &sites, &grants))
}
