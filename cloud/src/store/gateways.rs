//! Gateways as intake knows them: their keys, and when they were heard.

use std::collections::HashMap;

use deadpool_postgres::Transaction;
use gemba_shared::message::Status;
use jiff::Timestamp;
use serde_json::json;
use tokio_postgres::types::Json;
use uuid::Uuid;

use super::{Store, StoreError};

/// Reasons of drops that are kept of a gateway's status.
const DROPS_MAX: usize = 64;
const TEXT_CHARS_MAX: usize = 128;

const KEYS: &str = "SELECT id, public_key FROM gateways WHERE id = ANY($1) AND state = 'enrolled'";

fn key(row: &tokio_postgres::Row) -> Option<(Uuid, [u8; 32])> {
    Some((row.get(0), row.get::<_, Option<Vec<u8>>>(1)?.try_into().ok()?))
}

/// The keys of those of these gateways that are enrolled at this moment of the transaction.
pub async fn enrolled(transaction: &Transaction<'_>, gateways: &[Uuid]) -> Result<HashMap<Uuid, [u8; 32]>, StoreError> {
    let select = transaction.prepare_cached(KEYS).await?;
    Ok(transaction.query(&select, &[&gateways]).await?.iter().filter_map(key).collect())
}

/// What a gateway's MQTT connection is checked against.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    pub password_sha256: Vec<u8>,
}

impl Store {
    /// The keys of those of these gateways that are enrolled.
    ///
    /// # Errors
    /// If the database cannot be reached or refuses.
    pub async fn gateway_keys(&self, gateways: &[Uuid]) -> Result<HashMap<Uuid, [u8; 32]>, StoreError> {
        let client = self.client().await?;
        let select = client.prepare_cached(KEYS).await?;
        Ok(client.query(&select, &[&gateways]).await?.iter().filter_map(key).collect())
    }

    /// How an enrolled gateway proves itself to the gate; `None` for any other.
    ///
    /// # Errors
    /// If the database cannot be reached or refuses.
    pub async fn gateway_login(&self, gateway: Uuid) -> Result<Option<Login>, StoreError> {
        let client = self.client().await?;
        let select = client
            .prepare_cached(
                "SELECT mqtt_password_hash FROM gateways
                 WHERE id = $1 AND state = 'enrolled' AND mqtt_password_hash IS NOT NULL",
            )
            .await?;
        let row = client.query_opt(&select, &[&gateway]).await?;
        Ok(row.map(|row| Login { password_sha256: row.get(0) }))
    }

    /// The gateways that were revoked or got a new password in the place of an old one since `since`, and when that was.
    ///
    /// # Errors
    /// If the database cannot be reached or refuses.
    pub async fn gateways_cut_off(&self, since: Timestamp) -> Result<Vec<(Uuid, Timestamp)>, StoreError> {
        let client = self.client().await?;
        let select = client
            .prepare_cached(
                "SELECT id, greatest(revoked_at, enrolled_at) FROM gateways
                 WHERE revoked_at >= $1
                    OR enrolled_at >= $1
                       AND 1 < (SELECT count(*) FROM enrolment_tokens
                                WHERE gateway_id = gateways.id AND used_at IS NOT NULL)",
            )
            .await?;
        Ok(client.query(&select, &[&since]).await?.iter().map(|row| (row.get(0), row.get(1))).collect())
    }

    /// These gateways were heard at `at`.
    ///
    /// # Errors
    /// If the database cannot be reached or refuses.
    pub async fn gateways_seen(&self, gateways: &[Uuid], at: Timestamp) -> Result<(), StoreError> {
        let client = self.client().await?;
        let update = client
            .prepare_cached(
                "UPDATE gateways SET last_seen_at = greatest(last_seen_at, $2)
                 WHERE id IN (SELECT id FROM gateways WHERE id = ANY($1) ORDER BY id FOR NO KEY UPDATE)",
            )
            .await?;
        client.execute(&update, &[&gateways, &at]).await?;
        Ok(())
    }

    /// What a gateway says of itself.
    ///
    /// # Errors
    /// If the database cannot be reached or refuses.
    pub async fn gateway_status(&self, gateway: Uuid, status: &Status) -> Result<(), StoreError> {
        let clean = |text: &str| text.chars().filter(|c| !c.is_control()).take(TEXT_CHARS_MAX).collect::<String>();
        let drops: Vec<_> = status
            .drops
            .iter()
            .take(DROPS_MAX)
            .map(|drop| json!({ "reason": clean(&drop.reason), "count": drop.count }))
            .collect();
        let client = self.client().await?;
        let update = client
            .prepare_cached(
                "UPDATE gateways SET version = $2, backlog_records = $3, backlog_bytes = $4, clock_trusted = $5, drops = $6
                 WHERE id = $1",
            )
            .await?;
        let whole = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        let trusted = status.clock == gemba_shared::telemetry::Clock::Trusted;
        client
            .execute(
                &update,
                &[
                    &gateway,
                    &clean(&status.version),
                    &whole(status.backlog_records),
                    &whole(status.backlog_bytes),
                    &trusted,
                    &Json(drops),
                ],
            )
            .await?;
        Ok(())
    }
}
