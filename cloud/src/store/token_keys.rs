//! The keys of access tokens: their ids and ages; see [`crate::users::tokens`] for what is made of them.

use jiff::Timestamp;
use uuid::Uuid;

use super::{Store, StoreError};
use crate::users::tokens::{Key, in_use, wants_new};

/// Of the advisory lock that keeps two replicas from each making a key.
const LOCK: i64 = 0x67_65_6d_74_6b;

const SELECT: &str = "SELECT id, created_at FROM token_keys";

/// The keys that are taken, with a new one when it is time for one; those that are over are deleted.
///
/// # Errors
/// If the database is away.
pub async fn current(store: &Store, now: Timestamp) -> Result<Vec<Key>, StoreError> {
    let mut client = store.client().await?;
    let read = |rows: Vec<tokio_postgres::Row>| -> Vec<Key> {
        rows.iter().map(|row| Key { id: row.get(0), created_at: row.get(1) }).collect()
    };
    let known = read(client.query(SELECT, &[]).await?);
    if !wants_new(&known, now) {
        return Ok(in_use(known, now));
    }
    let transaction = client.transaction().await?;
    transaction.execute("SELECT pg_advisory_xact_lock($1)", &[&LOCK]).await?;
    let mut known = read(transaction.query(SELECT, &[]).await?);
    if wants_new(&known, now) {
        let key = Key { id: Uuid::now_v7(), created_at: now };
        transaction.execute("INSERT INTO token_keys VALUES ($1, $2)", &[&key.id, &key.created_at]).await?;
        known.push(key);
    }
    let kept = in_use(known, now);
    let ids: Vec<Uuid> = kept.iter().map(|key| key.id).collect();
    transaction.execute("DELETE FROM token_keys WHERE id <> ALL($1)", &[&ids]).await?;
    transaction.commit().await?;
    Ok(kept)
}

/// Makes a new key. With `at_once` all others are over now, and with them the access tokens that they signed.
///
/// # Errors
/// If the database is away.
pub async fn rotate(store: &Store, now: Timestamp, at_once: bool) -> Result<(), StoreError> {
    let mut client = store.client().await?;
    let transaction = client.transaction().await?;
    transaction.execute("SELECT pg_advisory_xact_lock($1)", &[&LOCK]).await?;
    if at_once {
        transaction.execute("DELETE FROM token_keys", &[]).await?;
    }
    transaction.execute("INSERT INTO token_keys VALUES ($1, $2)", &[&Uuid::now_v7(), &now]).await?;
    Ok(transaction.commit().await?)
}
