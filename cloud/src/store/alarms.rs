//! Alarms: raising them and letting them return.

use deadpool_postgres::Transaction;
use jiff::{SignedDuration, Timestamp};
use uuid::Uuid;

use super::{Store, StoreError};
use crate::alarms::{AlarmState, GATEWAY_OFFLINE, Severity};

/// What an alarm is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subject {
    pub gateway: Uuid,
    /// `None`: the gateway itself.
    pub machine: Option<Uuid>,
}

/// An alarm to be raised.
#[derive(Debug, Clone, PartialEq)]
pub struct Raise<'a> {
    pub subject: Subject,
    pub condition: &'a str,
    pub severity: Severity,
    pub message: &'a str,
    pub anomaly: Option<Uuid>,
    pub raised_at: Timestamp,
    pub arrived_at: Timestamp,
    /// It is history: it is stored as over and seen.
    pub late: bool,
}

/// Raises an alarm, or makes the one that is active graver; the alarm, unless nothing was to be done.
pub async fn raise(transaction: &Transaction<'_>, raise: &Raise<'_>) -> Result<Option<Uuid>, StoreError> {
    let state = if raise.late { AlarmState::Normal } else { AlarmState::Unacknowledged };
    let returned_at = raise.late.then_some(raise.arrived_at);
    let insert = transaction
        .prepare_cached(
            "INSERT INTO alarms AS known (id, site_id, gateway_id, machine_id, condition, state, severity, message,
                                          anomaly_id, raised_at, arrived_at, late, returned_at)
             SELECT $1, site_id, id, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12 FROM gateways WHERE id = $2
                 -- History is written once.
                 AND NOT ($11 AND EXISTS (SELECT 1 FROM alarms WHERE condition = $4 AND raised_at = $9
                                              AND coalesce(machine_id, gateway_id) = coalesce($3, $2)))
             ON CONFLICT (coalesce(machine_id, gateway_id), condition) WHERE state IN ('unacknowledged', 'acknowledged')
             DO UPDATE SET
                 severity = CASE WHEN array_position($13, excluded.severity) > array_position($13, known.severity)
                                 THEN excluded.severity ELSE known.severity END,
                 message = excluded.message,
                 anomaly_id = coalesce(excluded.anomaly_id, known.anomaly_id)
             RETURNING id",
        )
        .await?;
    let order = [Severity::Low, Severity::Medium, Severity::High, Severity::Critical].map(Severity::as_str);
    let row = transaction
        .query_opt(
            &insert,
            &[
                &Uuid::now_v7(),
                &raise.subject.gateway,
                &raise.subject.machine,
                &raise.condition,
                &state.as_str(),
                &raise.severity.as_str(),
                &raise.message,
                &raise.anomaly,
                &raise.raised_at,
                &raise.arrived_at,
                &raise.late,
                &returned_at,
                &order.as_slice(),
            ],
        )
        .await?;
    Ok(row.map(|row| row.get(0)))
}

/// Lets the active alarm of a condition return, if there is one (of this anomaly, where one is named).
pub async fn end(
    transaction: &Transaction<'_>,
    subject: Subject,
    condition: &str,
    anomaly: Option<Uuid>,
    at: Timestamp,
) -> Result<Option<Uuid>, StoreError> {
    let update = transaction
        .prepare_cached(
            "UPDATE alarms SET state = CASE state WHEN 'unacknowledged' THEN $5 ELSE $6 END,
                               returned_at = greatest($4, raised_at)
             WHERE coalesce(machine_id, gateway_id) = $1 AND condition = $2
               AND ($3::uuid IS NULL OR anomaly_id = $3) AND state IN ('unacknowledged', 'acknowledged')
             RETURNING id",
        )
        .await?;
    let unseen = AlarmState::Unacknowledged.returned().as_str();
    let seen = AlarmState::Acknowledged.returned().as_str();
    let of = subject.machine.unwrap_or(subject.gateway);
    let row = transaction.query_opt(&update, &[&of, &condition, &anomaly, &at, &unseen, &seen]).await?;
    Ok(row.map(|row| row.get(0)))
}

/// A gateway that went or came, and its alarm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turned {
    pub gateway: Uuid,
    pub alarm: Option<Uuid>,
    pub offline: bool,
}

impl Store {
    /// Raises the alarm of every gateway that was not heard for `offline_after`, and ends that of those that were.
    ///
    /// # Errors
    /// If the database cannot be reached or refuses.
    pub async fn watch_gateways(
        &self,
        now: Timestamp,
        offline_after: SignedDuration,
    ) -> Result<Vec<Turned>, StoreError> {
        let mut client = self.client().await?;
        let transaction = client.transaction().await?;
        let heard_since = now.saturating_sub(offline_after).unwrap_or(now);
        let rows = transaction
            .query(
                "SELECT gateways.id, last_seen_at >= $2 OR gateways.state <> 'enrolled', last_seen_at
                 FROM gateways
                 LEFT JOIN alarms ON alarms.gateway_id = gateways.id AND alarms.machine_id IS NULL
                      AND alarms.condition = $1 AND alarms.state IN ('unacknowledged', 'acknowledged')
                 WHERE last_seen_at IS NOT NULL
                   AND CASE WHEN last_seen_at >= $2 OR gateways.state <> 'enrolled'
                            THEN alarms.id IS NOT NULL ELSE alarms.id IS NULL END
                 ORDER BY gateways.id",
                &[&GATEWAY_OFFLINE, &heard_since],
            )
            .await?;
        let mut turned = Vec::new();
        for row in rows {
            let gateway: Uuid = row.get(0);
            // One that was revoked ends its alarm too: nobody waits for it any more.
            let (ends, seen_at): (bool, Timestamp) = (row.get(1), row.get(2));
            let subject = Subject { gateway, machine: None };
            let alarm = if ends {
                end(&transaction, subject, GATEWAY_OFFLINE, None, now).await?
            } else {
                let offline = Raise {
                    subject,
                    condition: GATEWAY_OFFLINE,
                    severity: Severity::High,
                    message: "Nothing is heard of this gateway; it keeps what it measures and delivers it later",
                    anomaly: None,
                    raised_at: seen_at,
                    arrived_at: now,
                    late: false,
                };
                raise(&transaction, &offline).await?
            };
            turned.push(Turned { gateway, alarm, offline: !ends });
        }
        transaction.commit().await?;
        Ok(turned)
    }
}
