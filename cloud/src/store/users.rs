//! Users, their passwords' hashes, and what they are granted.

use deadpool_postgres::Transaction;
use jiff::Timestamp;
use serde_json::Value;
use tokio_postgres::Row;
use uuid::Uuid;

use super::{
    Store, StoreError,
    audit::{self, By, Change},
    sessions::{self, Ended},
    users_admin::{self, Changed, NewMember},
    words::Word,
};
use crate::{
    clock,
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

/// Adds a user with a role in the whole of the first organisation: see [`add_to`].
///
/// # Errors
/// If the name is bad or taken, or the database is away.
pub async fn add(store: &Store, name: &str, role: Role) -> Result<String, AddUserError> {
    add_to(store, DEFAULT_ORGANISATION, name, Grant { site: None, role }).await
}

/// Adds a user and gives the one-time password, which must be changed at the first login.
///
/// # Errors
/// If the name is bad or taken, or the database is away.
pub async fn add_to(store: &Store, organisation: Uuid, name: &str, grant: Grant) -> Result<String, AddUserError> {
    users::check_name(name)?;
    let password = passwords::one_time()?;
    let hash = Passwords::default().hash(password.clone()).await?;
    let mut client = store.client().await?;
    let transaction = client.transaction().await?;
    let new =
        NewMember { organisation, name, display_name: None, email: None, one_time_hash: Some(&hash), grants: &[grant] };
    match users_admin::insert(&transaction, &new, &By::command_line(organisation), clock::now()).await? {
        Changed::Done(_) => transaction.commit().await?,
        _ => return Err(AddUserError::Taken(name.to_owned())),
    }
    Ok(password)
}

/// The user of this name with what they may do, and the password's hash, unless they have none yet.
///
/// # Errors
/// If the database is away.
pub async fn by_name(store: &Store, name: &str) -> Result<Option<(User, Scope, Option<String>)>, StoreError> {
    let client = store.client().await?;
    let statement = client.prepare_cached(&format!("SELECT {COLUMNS} FROM users u WHERE u.name = $1")).await?;
    let row = client.query_opt(&statement, &[&name]).await?;
    row.map(|row| Ok((user(&row)?, scope(&row)?, row.try_get("password_hash")?))).transpose()
}

/// Whose session or key it is, and what they may do.
#[derive(Debug, Clone)]
pub struct Known {
    pub user: User,
    pub scope: Scope,
    pub credential: Credential,
}

/// What somebody showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Credential {
    Session { id: Uuid, expires_at: Timestamp },
    Key { id: Uuid, expires_at: Timestamp },
}

impl Credential {
    #[must_use]
    pub const fn expires_at(self) -> Timestamp {
        match self {
            Self::Session { expires_at, .. } | Self::Key { expires_at, .. } => expires_at,
        }
    }
}

/// The user of a session that goes on, unless they are disabled.
///
/// # Errors
/// If the database is away.
pub async fn by_session(
    store: &Store,
    user_id: Uuid,
    session: Uuid,
    now: Timestamp,
) -> Result<Option<Known>, StoreError> {
    let client = store.client().await?;
    let statement = client
        .prepare_cached(&format!(
            "SELECT {COLUMNS}, t.expires_at FROM sessions t JOIN users u ON u.id = t.user_id
             WHERE t.id = $1 AND t.user_id = $2 AND t.ended_at IS NULL AND t.expires_at > $3 AND u.disabled_at IS NULL"
        ))
        .await?;
    let Some(row) = client.query_opt(&statement, &[&session, &user_id, &now]).await? else { return Ok(None) };
    let credential = Credential::Session { id: session, expires_at: row.try_get("expires_at")? };
    Ok(Some(Known { user: user(&row)?, scope: scope(&row)?, credential }))
}

/// The user of an API key that is good, with no more than the key may; notes that it was used, once a minute.
///
/// # Errors
/// If the database is away.
pub async fn by_key(store: &Store, hash: &[u8; 32], now: Timestamp) -> Result<Option<Known>, StoreError> {
    let client = store.client().await?;
    let statement = client
        .prepare_cached(&format!(
            "SELECT {COLUMNS}, k.id AS key_id, k.role AS key_role, k.site_id AS key_site, k.expires_at,
                    k.used_at IS NULL OR k.used_at < $2::timestamptz - interval '1 minute' AS stale
             FROM api_keys k JOIN users u ON u.id = k.user_id
             WHERE k.hash = $1 AND k.revoked_at IS NULL AND k.expires_at > $2 AND u.disabled_at IS NULL"
        ))
        .await?;
    let Some(row) = client.query_opt(&statement, &[&hash.as_slice(), &now]).await? else { return Ok(None) };
    let id: Uuid = row.try_get("key_id")?;
    if row.try_get("stale")? {
        client.execute("UPDATE api_keys SET used_at = $2 WHERE id = $1", &[&id, &now]).await?;
    }
    let Word(role): Word<Role> = row.try_get("key_role")?;
    let scope = scope(&row)?.at_most(role, row.try_get("key_site")?);
    let credential = Credential::Key { id, expires_at: row.try_get("expires_at")? };
    Ok(Some(Known { user: user(&row)?, scope, credential }))
}

/// Stores a password that the user chose; all sessions of the user end.
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
        .execute("UPDATE users SET password_hash = $2, must_change_password = false WHERE id = $1", &[&id, &hash])
        .await?;
    sessions::end_all(transaction, id, Ended::Password, now).await?;
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

/// Of `users u`, with the sites of the organisation and the grants in two arrays of one order: what a [`Scope`] is made of.
const COLUMNS: &str = "u.id, u.organisation_id, u.name, u.password_hash, u.must_change_password,
    u.disabled_at IS NOT NULL AS disabled,
    ARRAY(SELECT s.id FROM sites s WHERE s.organisation_id = u.organisation_id) AS sites,
    ARRAY(SELECT g.site_id FROM grants g WHERE g.user_id = u.id ORDER BY g.site_id) AS grant_sites,
    ARRAY(SELECT g.role FROM grants g WHERE g.user_id = u.id ORDER BY g.site_id) AS grant_roles";

fn user(row: &Row) -> Result<User, StoreError> {
    Ok(User {
        id: row.try_get("id")?,
        organisation: row.try_get("organisation_id")?,
        name: row.try_get("name")?,
        must_change_password: row.try_get("must_change_password")?,
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
