//! Answers to requests with an `Idempotency-Key`: who is first with a key, and what the answer was.

use jiff::{SignedDuration, Timestamp};
use uuid::Uuid;

use super::{Store, StoreError};

/// How long an answer is kept.
pub const KEPT: SignedDuration = SignedDuration::from_hours(24);

/// A request with a key.
#[derive(Debug, Clone)]
pub struct Keyed {
    pub user: Uuid,
    pub key: String,
    /// Method and path, with its query.
    pub route: String,
    /// SHA-256.
    pub body_hash: [u8; 32],
}

/// An answer to be given again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    /// `None`: it held a secret and was not kept.
    pub body: Option<Vec<u8>>,
    pub etag: Option<String>,
}

/// Whether a request is to be carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Begun {
    /// It is the first with this key.
    First,
    Answered(Answer),
    /// The key was used for another request.
    Other,
    /// The first one began then, and has no answer (yet).
    UnderWay(Timestamp),
}

/// Claims a key.
///
/// # Errors
/// If the database is away.
pub async fn begin(store: &Store, keyed: &Keyed, now: Timestamp) -> Result<Begun, StoreError> {
    let client = store.client().await?;
    let old = now.saturating_sub(KEPT).unwrap_or(now);
    client.execute("DELETE FROM idempotency_keys WHERE created_at < $1", &[&old]).await?;
    let claimed = client
        .execute(
            "INSERT INTO idempotency_keys (user_id, key, route, body_hash, created_at) VALUES ($1, $2, $3, $4, $5)
             ON CONFLICT DO NOTHING",
            &[&keyed.user, &keyed.key, &keyed.route, &keyed.body_hash.as_slice(), &now],
        )
        .await?;
    if claimed > 0 {
        return Ok(Begun::First);
    }
    let row = client
        .query_opt(
            "SELECT route = $3 AND body_hash = $4, created_at, status, answer, etag FROM idempotency_keys
             WHERE user_id = $1 AND key = $2",
            &[&keyed.user, &keyed.key, &keyed.route, &keyed.body_hash.as_slice()],
        )
        .await?;
    // Given up between the two statements: the caller asks again.
    let Some(row) = row else { return Ok(Begun::UnderWay(now)) };
    if !row.get::<_, bool>(0) {
        return Ok(Begun::Other);
    }
    let Some(status) = row.get::<_, Option<i16>>(2) else { return Ok(Begun::UnderWay(row.get(1))) };
    Ok(Begun::Answered(Answer { status: status.cast_unsigned(), body: row.get(3), etag: row.get(4) }))
}

/// Keeps the answer.
///
/// # Errors
/// If the database is away.
pub async fn answered(store: &Store, keyed: &Keyed, answer: &Answer) -> Result<(), StoreError> {
    let client = store.client().await?;
    client
        .execute(
            "UPDATE idempotency_keys SET status = $3, answer = $4, etag = $5 WHERE user_id = $1 AND key = $2",
            &[&keyed.user, &keyed.key, &answer.status.cast_signed(), &answer.body, &answer.etag],
        )
        .await?;
    Ok(())
}

/// Nothing was done: the key may be used again.
///
/// # Errors
/// If the database is away.
pub async fn give_up(store: &Store, keyed: &Keyed) -> Result<(), StoreError> {
    let client = store.client().await?;
    client.execute("DELETE FROM idempotency_keys WHERE user_id = $1 AND key = $2", &[&keyed.user, &keyed.key]).await?;
    Ok(())
}
