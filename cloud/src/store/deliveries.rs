//! Deliveries as they are made, gathered, sent and settled. Whoever sends one holds it by a lease: two programs do not send it at
//! once, and one that was killed loses it to another.

use std::collections::HashMap;

use deadpool_postgres::Transaction;
use jiff::{SignedDuration, Timestamp};
use tokio_postgres::{Row, types::Json};
use uuid::Uuid;

use super::{Store, StoreError, notices::first_id, words::Word};
use crate::{
    alarms::Severity,
    notifications::{
        Channel, Hold, Planned, Recent, Skip, WINDOW, When,
        message::{Content, Facts},
        retry::{ATTEMPTS_MAX, Next, Outcome},
    },
};

/// How long whoever took a delivery may be at it; longer than any attempt takes.
pub const LEASE: SignedDuration = SignedDuration::from_secs(60);
/// Deliveries are kept for so long.
pub const KEPT: SignedDuration = SignedDuration::from_hours(90 * 24);
/// Rows that are deleted at a time.
const FORGOTTEN_AT_ONCE: i64 = 5_000;
/// Deliveries that are gathered at a time.
const GATHERED_AT_ONCE: i64 = 2_000;

/// Writes a delivery that was planned.
///
/// # Errors
/// If the database is away.
pub async fn insert(
    transaction: &Transaction<'_>,
    organisation: Uuid,
    facts: &Facts,
    planned: &Planned,
    now: Timestamp,
) -> Result<(), StoreError> {
    let (state, reason, hold, not_before) = match planned.when {
        When::Now => ("waiting", None, None, now),
        When::Held { until, hold } => ("waiting", None, Some(hold.as_str()), until),
        When::Never(skip) => ("skipped", Some(skip.as_str()), None, now),
    };
    let insert = transaction
        .prepare_cached(
            "INSERT INTO deliveries (id, organisation_id, site_id, kind, notice_id, incident_id, severity, channel, webhook_id,
                                     user_id, recipient, state, reason, hold, content, not_before, created_at)
             VALUES ($1, $2, $3, 'notice', $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)
             ON CONFLICT DO NOTHING",
        )
        .await?;
    let (webhook, user) = split(planned.channel, planned.to);
    transaction
        .execute(
            &insert,
            &[
                &Uuid::now_v7(),
                &organisation,
                &facts.site.id,
                &facts.notice,
                &facts.incident,
                &facts.severity.as_str(),
                &planned.channel.as_str(),
                &webhook,
                &user,
                &planned.recipient,
                &state,
                &reason,
                &hold,
                &Json(Content::Notice(facts.clone())),
                &not_before,
                &now,
            ],
        )
        .await?;
    Ok(())
}

fn split(channel: Channel, to: Uuid) -> (Option<Uuid>, Option<Uuid>) {
    if channel == Channel::Webhook { (Some(to), None) } else { (None, Some(to)) }
}

/// What each recipient of an organisation was sent of late: what waits to be gathered, or is not sent, does not count.
///
/// # Errors
/// If the database is away.
pub async fn recent(
    transaction: &Transaction<'_>,
    organisation: Uuid,
    now: Timestamp,
) -> Result<HashMap<Uuid, Recent>, StoreError> {
    let select = transaction
        .prepare_cached(
            "SELECT recipient_id, count(*), min(created_at) FROM deliveries
             WHERE organisation_id = $1 AND id >= $2 AND created_at > $3 AND hold IS NULL AND state <> 'skipped' AND kind <> 'test'
             GROUP BY recipient_id",
        )
        .await?;
    let since = now.saturating_sub(WINDOW).unwrap_or(now);
    let recent = |row: &Row| {
        let count = u32::try_from(row.try_get::<_, i64>(1)?).unwrap_or(u32::MAX);
        Ok((row.try_get(0)?, Recent { count, first: row.try_get(2)? }))
    };
    transaction.query(&select, &[&organisation, &first_id(since), &since]).await?.iter().map(recent).collect()
}

/// A delivery whose time to be gathered has come.
#[derive(Debug, Clone, PartialEq)]
pub struct Held {
    pub id: Uuid,
    pub organisation: Uuid,
    pub site: Uuid,
    pub severity: Severity,
    pub channel: Channel,
    /// The user or the webhook.
    pub to: Uuid,
    pub recipient: String,
    pub hold: Hold,
    pub facts: Facts,
}

/// Deliveries whose time to be gathered has come, those of a recipient and site together, the oldest of them first.
///
/// # Errors
/// If the database is away.
pub async fn held(transaction: &Transaction<'_>, now: Timestamp) -> Result<Vec<Held>, StoreError> {
    let select = transaction
        .prepare_cached(
            "SELECT id, organisation_id, site_id, severity, channel, recipient_id, recipient, hold, content
             FROM deliveries WHERE state = 'waiting' AND hold IS NOT NULL AND not_before <= $1 AND kind = 'notice'
             ORDER BY recipient_id, site_id, id LIMIT $2 FOR UPDATE",
        )
        .await?;
    let rows = transaction.query(&select, &[&now, &GATHERED_AT_ONCE]).await?;
    let held = |row: &Row| {
        let (Word(severity), Word(channel), Word(hold)) = (row.try_get(3)?, row.try_get(4)?, row.try_get(7)?);
        let Json(content): Json<Content> = row.try_get(8)?;
        let Content::Notice(facts) = content else { return Err(StoreError::Missing("facts of a notice")) };
        Ok(Held {
            id: row.try_get(0)?,
            organisation: row.try_get(1)?,
            site: row.try_get(2)?,
            severity,
            channel,
            to: row.try_get(5)?,
            recipient: row.try_get(6)?,
            hold,
            facts,
        })
    };
    rows.iter().map(held).collect()
}

/// Sends a held delivery as it is.
///
/// # Errors
/// If the database is away.
pub async fn release(transaction: &Transaction<'_>, id: Uuid) -> Result<(), StoreError> {
    transaction.execute("UPDATE deliveries SET hold = NULL WHERE id = $1", &[&id]).await?;
    Ok(())
}

/// Sends held deliveries no more.
///
/// # Errors
/// If the database is away.
pub async fn skip(
    transaction: &Transaction<'_>,
    ids: &[Uuid],
    skip: Skip,
    digest: Option<Uuid>,
) -> Result<(), StoreError> {
    let update = "UPDATE deliveries SET state = 'skipped', reason = $2, hold = NULL, digest_id = $3 WHERE id = ANY($1)";
    transaction.execute(update, &[&ids, &skip.as_str(), &digest]).await?;
    Ok(())
}

/// Makes one of several; `like` says to whom it goes.
///
/// # Errors
/// If the database is away.
pub async fn digest(
    transaction: &Transaction<'_>,
    like: &Held,
    severity: Severity,
    content: &Content,
    now: Timestamp,
) -> Result<Uuid, StoreError> {
    let id = Uuid::now_v7();
    let (webhook, user) = split(like.channel, like.to);
    transaction
        .execute(
            "INSERT INTO deliveries (id, organisation_id, site_id, kind, severity, channel, webhook_id, user_id, recipient,
                                     state, content, not_before, created_at)
             VALUES ($1, $2, $3, 'digest', $4, $5, $6, $7, $8, 'waiting', $9, $10, $10)",
            &[
                &id,
                &like.organisation,
                &like.site,
                &severity.as_str(),
                &like.channel.as_str(),
                &webhook,
                &user,
                &like.recipient,
                &Json(content),
                &now,
            ],
        )
        .await?;
    Ok(id)
}

/// A webhook as it is to be called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub id: Uuid,
    pub url: String,
    pub enabled: bool,
    pub secret_generation: i32,
    pub secret_rotated_at: Option<Timestamp>,
}

/// A delivery that was taken to be sent.
#[derive(Debug, Clone, PartialEq)]
pub struct Claimed {
    pub id: Uuid,
    pub organisation: Uuid,
    /// This one counts.
    pub attempts: i32,
    pub content: Content,
    pub created_at: Timestamp,
    pub channel: Channel,
    pub webhook: Option<Target>,
    /// As the user has it now.
    pub email: Option<String>,
    /// The user still has a role at the site.
    pub role: bool,
}

/// Takes at most `limit` deliveries of a channel that are due, the longest due first, and of each recipient one that nobody else is at.
///
/// # Errors
/// If the database is away.
pub async fn claim(store: &Store, channel: Channel, now: Timestamp, limit: i64) -> Result<Vec<Claimed>, StoreError> {
    // The lock of a row that changed meanwhile looks at the conditions beside it again, so they stand there once more.
    let due = "((d.state IN ('waiting', 'failed') AND d.hold IS NULL AND d.not_before <= $1)
                OR (d.state = 'sending' AND d.lease_until <= $1))";
    let sql = format!(
        "WITH first AS (
             SELECT DISTINCT ON (d.recipient_id) d.id, d.not_before FROM deliveries d
             WHERE d.state IN ('waiting', 'failed', 'sending') AND d.channel = $4 AND {due}
               AND NOT EXISTS (SELECT FROM deliveries other WHERE other.recipient_id = d.recipient_id
                               AND other.state = 'sending' AND other.lease_until > $1)
             ORDER BY d.recipient_id, d.not_before, d.id),
         taken AS (
             SELECT d.id FROM deliveries d
             WHERE d.id IN (SELECT id FROM first ORDER BY not_before LIMIT $2) AND {due}
             FOR UPDATE SKIP LOCKED),
         claimed AS (
             UPDATE deliveries SET state = 'sending', attempts = attempts + 1, lease_until = $3, last_attempt_at = $1
             WHERE id IN (SELECT id FROM taken) RETURNING *)
         SELECT c.id, c.organisation_id, c.attempts, c.content, c.created_at, c.channel, u.email,
                w.id AS webhook_id, w.url, w.enabled AND w.deleted_at IS NULL AS enabled, w.secret_generation,
                w.secret_rotated_at,
                u.disabled_at IS NULL AND EXISTS (SELECT FROM grants g WHERE g.user_id = c.user_id
                    AND (g.site_id IS NULL OR g.site_id = c.site_id)) AS role
         FROM claimed c LEFT JOIN webhooks w ON w.id = c.webhook_id LEFT JOIN users u ON u.id = c.user_id"
    );
    let client = store.client().await?;
    let statement = client.prepare_cached(&sql).await?;
    let lease = now.saturating_add(LEASE).unwrap_or(now);
    client.query(&statement, &[&now, &limit, &lease, &channel.as_str()]).await?.iter().map(claimed).collect()
}

fn claimed(row: &Row) -> Result<Claimed, StoreError> {
    let Word(channel) = row.try_get("channel")?;
    let Json(content) = row.try_get("content")?;
    let webhook = match row.try_get("webhook_id")? {
        None => None,
        Some(id) => Some(Target {
            id,
            url: row.try_get("url")?,
            enabled: row.try_get("enabled")?,
            secret_generation: row.try_get("secret_generation")?,
            secret_rotated_at: row.try_get("secret_rotated_at")?,
        }),
    };
    Ok(Claimed {
        id: row.try_get("id")?,
        organisation: row.try_get("organisation_id")?,
        attempts: row.try_get("attempts")?,
        content,
        created_at: row.try_get("created_at")?,
        channel,
        webhook,
        email: row.try_get("email")?,
        role: row.try_get::<_, Option<bool>>("role")?.unwrap_or(false),
    })
}

/// Writes how an attempt went, unless the lease has run out and another is at it.
///
/// # Errors
/// If the database is away.
pub async fn settle(
    transaction: &Transaction<'_>,
    claimed: &Claimed,
    outcome: &Outcome,
    next: Next,
    now: Timestamp,
) -> Result<(), StoreError> {
    let (state, sent_at, not_before) = match next {
        Next::Sent => ("sent", Some(now), None),
        Next::Again(at) => ("failed", None, Some(at)),
        Next::Dead => ("dead", None, None),
    };
    let (status, error) = match outcome {
        Outcome::Sent { status, .. } => (Some(*status), None),
        Outcome::Failed { status, error, .. } | Outcome::Refused { status, error } => (*status, Some(error.as_str())),
        Outcome::Gone => (Some(410), Some("the receiver wants no more (410 Gone); the webhook was switched off")),
    };
    let update = transaction
        .prepare_cached(
            "UPDATE deliveries SET state = $3, sent_at = $4, not_before = coalesce($5, not_before), status = $6, last_error = $7,
                    lease_until = NULL, recipient = coalesce($8, recipient)
             WHERE id = $1 AND state = 'sending' AND attempts = $2",
        )
        .await?;
    let status = status.and_then(|status| i16::try_from(status).ok());
    transaction
        .execute(
            &update,
            &[&claimed.id, &claimed.attempts, &state, &sent_at, &not_before, &status, &error, &claimed.email],
        )
        .await?;
    Ok(())
}

/// Does not send what was taken.
///
/// # Errors
/// If the database is away.
pub async fn settle_skipped(transaction: &Transaction<'_>, claimed: &Claimed, skip: Skip) -> Result<(), StoreError> {
    transaction
        .execute(
            "UPDATE deliveries SET state = 'skipped', reason = $3, lease_until = NULL
             WHERE id = $1 AND state = 'sending' AND attempts = $2",
            &[&claimed.id, &claimed.attempts, &skip.as_str()],
        )
        .await?;
    Ok(())
}

/// Whether it was taken more often than it may be tried: each time somebody died over it.
#[must_use]
pub fn is_spent(claimed: &Claimed) -> bool {
    claimed.attempts > ATTEMPTS_MAX
}

/// How many wait (to be sent or to be tried again), and how many were given up and can be looked at.
///
/// # Errors
/// If the database is away.
pub async fn counts(store: &Store) -> Result<(i64, i64), StoreError> {
    let client = store.client().await?;
    let select = client
        .prepare_cached(
            "SELECT (SELECT count(*) FROM deliveries WHERE state IN ('waiting', 'failed', 'sending')),
                    (SELECT count(*) FROM deliveries WHERE state = 'dead')",
        )
        .await?;
    let row = client.query_one(&select, &[]).await?;
    Ok((row.try_get(0)?, row.try_get(1)?))
}

/// Deletes what is older than [`KEPT`].
///
/// # Errors
/// If the database is away.
pub async fn forget(transaction: &Transaction<'_>, now: Timestamp) -> Result<u64, StoreError> {
    let before = now.saturating_sub(KEPT).unwrap_or(now);
    let delete = "DELETE FROM deliveries WHERE id IN (SELECT id FROM deliveries WHERE id < $1 LIMIT $2)";
    Ok(transaction.execute(delete, &[&first_id(before), &FORGOTTEN_AT_ONCE]).await?)
}
