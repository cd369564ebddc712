//! Sessions, and the refresh tokens with which they go on.

use std::net::IpAddr;

use deadpool_postgres::Transaction;
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use serde_json::json;
use tokio_postgres::Row;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    Store, StoreError,
    audit::{self, By, Change},
};

/// How long a session lasts at most: a shift, with what it takes before and after.
pub const LIFETIME: SignedDuration = SignedDuration::from_hours(12);
/// For so long the answer to a refresh is given again, if its token was not used yet: the first may have been lost.
pub const GRACE: SignedDuration = SignedDuration::from_secs(30);
/// Sessions of a user that go on; the oldest ends when there is one more.
pub const SESSIONS_MAX: i64 = 100;
/// How long a session that is over stays in the list.
const KEPT: SignedDuration = SignedDuration::from_hours(7 * 24);

/// A session that begins.
#[derive(Debug, Clone, Copy)]
pub struct NewSession<'a> {
    pub user: Uuid,
    pub organisation: Uuid,
    pub refresh_hash: [u8; 32],
    pub address: IpAddr,
    pub user_agent: Option<&'a str>,
    pub now: Timestamp,
}

/// Begins a session.
///
/// # Errors
/// If the database is away.
pub async fn open(store: &Store, new: &NewSession<'_>) -> Result<Uuid, StoreError> {
    let mut client = store.client().await?;
    let transaction = client.transaction().await?;
    let id = Uuid::now_v7();
    let expires_at = new.now.saturating_add(LIFETIME).unwrap_or(new.now);
    let gone = new.now.saturating_sub(KEPT).unwrap_or(new.now);
    transaction.execute("DELETE FROM sessions WHERE user_id = $1 AND expires_at < $2", &[&new.user, &gone]).await?;
    transaction
        .execute(
            "UPDATE sessions SET ended_at = $2, ended_by = 'logout'
             WHERE ended_at IS NULL AND id IN (SELECT id FROM sessions WHERE user_id = $1 AND ended_at IS NULL
                                               ORDER BY id DESC OFFSET $3)",
            &[&new.user, &new.now, &(SESSIONS_MAX - 1)],
        )
        .await?;
    transaction
        .execute(
            "INSERT INTO sessions (id, user_id, organisation_id, created_at, used_at, expires_at, address, user_agent)
             VALUES ($1, $2, $3, $4, $4, $5, $6, $7)",
            &[&id, &new.user, &new.organisation, &new.now, &expires_at, &new.address, &new.user_agent],
        )
        .await?;
    insert_token(&transaction, &new.refresh_hash, id).await?;
    transaction.commit().await?;
    Ok(id)
}

/// What came of a refresh token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refreshed {
    Good {
        session: Uuid,
        user: Uuid,
    },
    /// No such token, or its session is over.
    Unknown,
    /// It was used before: somebody has a copy. The session has ended.
    Reused,
}

/// Uses a refresh token up for its successor.
///
/// # Errors
/// If the database is away.
pub async fn refresh(
    store: &Store,
    hash: &[u8; 32],
    next_hash: &[u8; 32],
    (address, request): (IpAddr, Uuid),
    now: Timestamp,
) -> Result<Refreshed, StoreError> {
    let mut client = store.client().await?;
    let transaction = client.transaction().await?;
    // The lock lets two with one token go one after the other; what they then read is what the first left.
    let row = transaction
        .query_opt(
            "SELECT id, user_id, organisation_id, ended_at IS NOT NULL OR expires_at <= $2 FROM sessions
             WHERE id = (SELECT session_id FROM refresh_tokens WHERE hash = $1) FOR UPDATE",
            &[&hash.as_slice(), &now],
        )
        .await?;
    let Some(row) = row else { return Ok(Refreshed::Unknown) };
    let (session, user, organisation, over): (Uuid, Uuid, Uuid, bool) =
        (row.get(0), row.get(1), row.get(2), row.get(3));
    if over {
        return Ok(Refreshed::Unknown);
    }
    let used_at = transaction
        .query_one(
            "SELECT used_at, (SELECT used_at IS NOT NULL FROM refresh_tokens WHERE hash = $2)
             FROM refresh_tokens WHERE hash = $1",
            &[&hash.as_slice(), &next_hash.as_slice()],
        )
        .await?;
    let (used_at, next_used): (Option<Timestamp>, Option<bool>) = (used_at.get(0), used_at.get(1));
    match used_at {
        None => {
            transaction
                .execute("UPDATE refresh_tokens SET used_at = $2 WHERE hash = $1", &[&hash.as_slice(), &now])
                .await?;
            insert_token(&transaction, next_hash, session).await?;
            transaction.execute("UPDATE sessions SET used_at = $2 WHERE id = $1", &[&session, &now]).await?;
        }
        Some(at) if next_used == Some(false) && now.duration_since(at) <= GRACE => {}
        Some(_) => {
            end(&transaction, session, None, Ended::Reuse, now).await?;
            let name = transaction.query_one("SELECT name FROM users WHERE id = $1", &[&user]).await?.get(0);
            let (user, address, request) = (Some(user), Some(address), Some(request));
            let by = By { organisation, user, name, api_key: None, address, request };
            let change = Change {
                action: "session.reuse",
                object: "session",
                id: &session.to_string(),
                site: None,
                before: json!({"ended_at": null}),
                after: json!({"ended_at": now}),
            };
            audit::write(&transaction, &by, &change, now).await?;
            transaction.commit().await?;
            return Ok(Refreshed::Reused);
        }
    }
    transaction.commit().await?;
    Ok(Refreshed::Good { session, user })
}

async fn insert_token(transaction: &Transaction<'_>, hash: &[u8; 32], session: Uuid) -> Result<(), StoreError> {
    transaction
        .execute("INSERT INTO refresh_tokens (hash, session_id) VALUES ($1, $2)", &[&hash.as_slice(), &session])
        .await?;
    Ok(())
}

/// Why a session is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    Logout,
    Admin,
    Password,
    Reuse,
    Disabled,
}

impl Ended {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Logout => "logout",
            Self::Admin => "admin",
            Self::Password => "password",
            Self::Reuse => "reuse",
            Self::Disabled => "disabled",
        }
    }
}

/// Ends a session (of this user, where one is named); whether it went on.
///
/// # Errors
/// If the database is away.
pub async fn end(
    transaction: &Transaction<'_>,
    session: Uuid,
    user: Option<Uuid>,
    why: Ended,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let ended = transaction
        .execute(
            "UPDATE sessions SET ended_at = $3, ended_by = $4
             WHERE id = $1 AND ($2::uuid IS NULL OR user_id = $2) AND ended_at IS NULL AND expires_at > $3",
            &[&session, &user, &now, &why.as_str()],
        )
        .await?;
    Ok(ended > 0)
}

/// Ends all sessions of a user; how many went on.
///
/// # Errors
/// If the database is away.
pub async fn end_all(transaction: &Transaction<'_>, user: Uuid, why: Ended, now: Timestamp) -> Result<u64, StoreError> {
    Ok(transaction
        .execute(
            "UPDATE sessions SET ended_at = $2, ended_by = $3
             WHERE user_id = $1 AND ended_at IS NULL AND expires_at > $2",
            &[&user, &now, &why.as_str()],
        )
        .await?)
}

/// A session as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Session {
    pub id: Uuid,
    /// The login.
    pub created_at: Timestamp,
    /// When it was last refreshed.
    pub used_at: Timestamp,
    pub expires_at: Timestamp,
    pub ended_at: Option<Timestamp>,
    /// `logout`, `admin`, `password` (it was changed), `reuse` (an old refresh token came), or `disabled`.
    pub ended_by: Option<String>,
    #[schema(value_type = Option<String>)]
    pub address: Option<IpAddr>,
    pub user_agent: Option<String>,
}

/// Sessions of a user, the newest first, from behind `after`.
///
/// # Errors
/// If the database is away.
pub async fn list(
    transaction: &Transaction<'_>,
    user: Uuid,
    after: Option<Uuid>,
    limit: i64,
) -> Result<Vec<Session>, StoreError> {
    let rows = transaction
        .query(
            "SELECT id, created_at, used_at, expires_at, ended_at, ended_by, address, user_agent FROM sessions
             WHERE user_id = $1 AND ($2::uuid IS NULL OR id < $2) ORDER BY id DESC LIMIT $3",
            &[&user, &after, &limit],
        )
        .await?;
    rows.iter().map(session).collect()
}

fn session(row: &Row) -> Result<Session, StoreError> {
    Ok(Session {
        id: row.try_get(0)?,
        created_at: row.try_get(1)?,
        used_at: row.try_get(2)?,
        expires_at: row.try_get(3)?,
        ended_at: row.try_get(4)?,
        ended_by: row.try_get(5)?,
        address: row.try_get(6)?,
        user_agent: row.try_get(7)?,
    })
}
