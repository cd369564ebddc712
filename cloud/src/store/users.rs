//! Users and their passwords' hashes.

use jiff::Timestamp;
use tokio_postgres::Row;
use uuid::Uuid;

use super::{Store, StoreError, words::Word};
use crate::users::{
    self, Role,
    passwords::{self, PasswordError, Passwords},
};

/// The organisation of the first migration; users belong to it until there are more.
const DEFAULT_ORGANISATION: Uuid = Uuid::from_u128(0x0000_0000_0000_7000_8000_0000_0000_0001);

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub id: Uuid,
    pub name: String,
    pub role: Role,
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

/// Adds a user and gives the one-time password, which must be changed at the first login.
///
/// # Errors
/// If the name is bad or taken, or the database is away.
pub async fn add(store: &Store, name: &str, role: Role) -> Result<String, AddUserError> {
    users::check_name(name)?;
    let password = passwords::one_time()?;
    let hash = Passwords::default().hash(password.clone()).await?;
    let client = store.client().await?;
    let added = client
        .execute(
            "INSERT INTO users (id, organisation_id, name, password_hash, role, must_change_password)
             VALUES ($1, $2, $3, $4, $5, true) ON CONFLICT (name) DO NOTHING",
            &[&Uuid::now_v7(), &DEFAULT_ORGANISATION, &name, &hash, &role.as_str()],
        )
        .await
        .map_err(StoreError::from)?;
    if added == 0 {
        return Err(AddUserError::Taken(name.to_owned()));
    }
    Ok(password)
}

/// The user of this name, with the password's hash.
///
/// # Errors
/// If the database is away.
pub async fn by_name(store: &Store, name: &str) -> Result<Option<(User, String)>, StoreError> {
    let client = store.client().await?;
    let statement = client.prepare_cached(&select("u.name = $1")).await?;
    let row = client.query_opt(&statement, &[&name]).await?;
    row.map(|row| Ok((user(&row)?, row.try_get("password_hash")?))).transpose()
}

/// # Errors
/// If the database is away.
pub async fn by_id(store: &Store, id: Uuid) -> Result<Option<User>, StoreError> {
    let client = store.client().await?;
    let statement = client.prepare_cached(&select("u.id = $1")).await?;
    let row = client.query_opt(&statement, &[&id]).await?;
    row.map(|row| user(&row)).transpose()
}

/// Stores a password that the user chose; tokens made before `tokens_valid_from` end.
///
/// # Errors
/// If the database is away.
pub async fn set_password(store: &Store, id: Uuid, hash: &str, tokens_valid_from: Timestamp) -> Result<(), StoreError> {
    let client = store.client().await?;
    client
        .execute(
            "UPDATE users SET password_hash = $2, must_change_password = false, tokens_valid_from = $3 WHERE id = $1",
            &[&id, &hash, &tokens_valid_from],
        )
        .await?;
    Ok(())
}

fn select(condition: &str) -> String {
    format!(
        "SELECT u.id, u.name, u.password_hash, u.role, u.must_change_password, u.tokens_valid_from,
                u.disabled_at IS NOT NULL AS disabled
         FROM users u WHERE {condition}"
    )
}

fn user(row: &Row) -> Result<User, StoreError> {
    let Word(role) = row.try_get("role")?;
    Ok(User {
        id: row.try_get("id")?,
        name: row.try_get("name")?,
        role,
        must_change_password: row.try_get("must_change_password")?,
        tokens_valid_from: row.try_get("tokens_valid_from")?,
        disabled: row.try_get("disabled")?,
    })
}
