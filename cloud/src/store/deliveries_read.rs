//! Deliveries as they are shown, tried again, and made for a test.

use deadpool_postgres::Transaction;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::json;
use tokio_postgres::{Row, types::Json};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    StoreError,
    audit::{self, By, Change},
    webhooks::Webhook,
    words::Word,
};
use crate::{
    alarms::Severity,
    notifications::{Channel, Hold, Skip, message::Content},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, serde::Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeliveryKind {
    Notice,
    /// Several notices in one.
    Digest,
    Test,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, serde::Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeliveryState {
    Waiting,
    Sending,
    Sent,
    /// An attempt failed; there will be another one.
    Failed,
    /// Given up.
    Dead,
    Skipped,
}

impl DeliveryState {
    /// As the database spells it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Sending => "sending",
            Self::Sent => "sent",
            Self::Failed => "failed",
            Self::Dead => "dead",
            Self::Skipped => "skipped",
        }
    }
}

/// One message to one recipient.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Delivery {
    /// The `webhook-id` of the call, and the left part of the e-mail's Message-ID.
    pub id: Uuid,
    pub kind: DeliveryKind,
    /// `null` for a test.
    pub site_id: Option<Uuid>,
    pub notice_id: Option<Uuid>,
    pub incident_id: Option<Uuid>,
    pub severity: Option<Severity>,
    pub channel: Channel,
    pub webhook_id: Option<Uuid>,
    pub user_id: Option<Uuid>,
    /// The webhook's name, or the e-mail address.
    pub recipient: String,
    pub state: DeliveryState,
    /// Why it is skipped.
    pub reason: Option<Skip>,
    /// Why it waits to be gathered with others.
    pub hold: Option<Hold>,
    /// The delivery that tells of it.
    pub digest_id: Option<Uuid>,
    pub attempts: i32,
    /// When it is tried next, if it is.
    pub next_attempt_at: Option<Timestamp>,
    pub last_attempt_at: Option<Timestamp>,
    pub last_error: Option<String>,
    /// HTTP's status or SMTP's reply code.
    pub status: Option<i16>,
    pub created_at: Timestamp,
    pub sent_at: Option<Timestamp>,
}

/// What deliveries to list.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    pub state: Option<DeliveryState>,
    pub channel: Option<Channel>,
    pub incident: Option<Uuid>,
    pub webhook: Option<Uuid>,
    pub user: Option<Uuid>,
    /// Tests as well, which belong to no site.
    pub tests: bool,
}

/// Tests of one webhook that wait.
pub const TESTS_MAX: i64 = 10;

const COLUMNS: &str =
    "id, kind, site_id, notice_id, incident_id, severity, channel, webhook_id, user_id, recipient, state,
     reason, hold, digest_id, attempts, not_before, last_attempt_at, last_error, status, created_at, sent_at";

/// Deliveries, the newest first, from behind `after`.
///
/// # Errors
/// If the database is away.
pub async fn list(
    transaction: &Transaction<'_>,
    filter: &Filter,
    after: Option<Uuid>,
    limit: i64,
) -> Result<Vec<Delivery>, StoreError> {
    let select = transaction
        .prepare_cached(&format!(
            "SELECT {COLUMNS} FROM deliveries
             WHERE ($1::text IS NULL OR state = $1) AND ($2::text IS NULL OR channel = $2)
               AND ($3::uuid IS NULL OR incident_id = $3) AND ($4::uuid IS NULL OR webhook_id = $4)
               AND ($5::uuid IS NULL OR user_id = $5) AND ($6 OR site_id IS NOT NULL)
               AND ($7::uuid IS NULL OR id < $7)
             ORDER BY id DESC LIMIT $8"
        ))
        .await?;
    let (state, channel) = (filter.state.map(DeliveryState::as_str), filter.channel.map(Channel::as_str));
    let rows = transaction
        .query(
            &select,
            &[&state, &channel, &filter.incident, &filter.webhook, &filter.user, &filter.tests, &after, &limit],
        )
        .await?;
    rows.iter().map(delivery).collect()
}

/// One delivery, locked until the transaction's end.
///
/// # Errors
/// If the database is away.
pub async fn one(transaction: &Transaction<'_>, id: Uuid) -> Result<Option<Delivery>, StoreError> {
    let select =
        transaction.prepare_cached(&format!("SELECT {COLUMNS} FROM deliveries WHERE id = $1 FOR UPDATE")).await?;
    transaction.query_opt(&select, &[&id]).await?.as_ref().map(delivery).transpose()
}

/// Lets a delivery that was given up, or waits for its next attempt, be tried at once, with all its attempts before it again.
///
/// # Errors
/// If the database is away.
pub async fn retry(transaction: &Transaction<'_>, known: &Delivery, by: &By, now: Timestamp) -> Result<(), StoreError> {
    let update = "UPDATE deliveries SET state = 'waiting', hold = NULL, attempts = 0, not_before = $2, lease_until = NULL WHERE id = $1";
    transaction.execute(update, &[&known.id, &now]).await?;
    let change = Change {
        action: "delivery.retry",
        object: "delivery",
        id: &known.id.to_string(),
        site: known.site_id,
        before: json!({"state": known.state}),
        after: json!({"state": DeliveryState::Waiting}),
    };
    audit::write(transaction, by, &change, now).await
}

/// How many tests of a webhook wait.
///
/// # Errors
/// If the database is away.
pub async fn tests_waiting(transaction: &Transaction<'_>, webhook: Uuid) -> Result<i64, StoreError> {
    let select = "SELECT count(*) FROM deliveries
                  WHERE webhook_id = $1 AND kind = 'test' AND state IN ('waiting', 'failed', 'sending')";
    Ok(transaction.query_one(select, &[&webhook]).await?.try_get(0)?)
}

/// Makes a delivery that tests a webhook.
///
/// # Errors
/// If the database is away.
pub async fn test(
    transaction: &Transaction<'_>,
    webhook: &Webhook,
    by: &By,
    now: Timestamp,
) -> Result<Delivery, StoreError> {
    let id = Uuid::now_v7();
    let insert = format!(
        "INSERT INTO deliveries (id, organisation_id, kind, channel, webhook_id, recipient, state, content, not_before, created_at)
         VALUES ($1, $2, 'test', 'webhook', $3, $4, 'waiting', $5, $6, $6) RETURNING {COLUMNS}"
    );
    let content = Json(Content::Test { webhook: webhook.name.clone() });
    let made =
        transaction.query_one(&insert, &[&id, &by.organisation, &webhook.id, &webhook.name, &content, &now]).await?;
    let change = Change {
        action: "webhook.test",
        object: "webhook",
        id: &webhook.id.to_string(),
        site: None,
        before: serde_json::Value::Null,
        after: json!({"delivery": id}),
    };
    audit::write(transaction, by, &change, now).await?;
    delivery(&made)
}

fn delivery(row: &Row) -> Result<Delivery, StoreError> {
    let (Word(kind), Word(channel), Word(state)) =
        (row.try_get("kind")?, row.try_get("channel")?, row.try_get("state")?);
    let severity: Option<Word<Severity>> = row.try_get("severity")?;
    let (reason, hold): (Option<Word<Skip>>, Option<Word<Hold>>) = (row.try_get("reason")?, row.try_get("hold")?);
    let waits = matches!(state, DeliveryState::Waiting | DeliveryState::Failed);
    let not_before: Timestamp = row.try_get("not_before")?;
    Ok(Delivery {
        id: row.try_get("id")?,
        kind,
        site_id: row.try_get("site_id")?,
        notice_id: row.try_get("notice_id")?,
        incident_id: row.try_get("incident_id")?,
        severity: severity.map(|Word(severity)| severity),
        channel,
        webhook_id: row.try_get("webhook_id")?,
        user_id: row.try_get("user_id")?,
        recipient: row.try_get("recipient")?,
        state,
        reason: reason.map(|Word(reason)| reason),
        hold: hold.map(|Word(hold)| hold),
        digest_id: row.try_get("digest_id")?,
        attempts: row.try_get("attempts")?,
        next_attempt_at: waits.then_some(not_before),
        last_attempt_at: row.try_get("last_attempt_at")?,
        last_error: row.try_get("last_error")?,
        status: row.try_get("status")?,
        created_at: row.try_get("created_at")?,
        sent_at: row.try_get("sent_at")?,
    })
}
