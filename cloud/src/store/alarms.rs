//! Alarms: raising them and letting them return.

use deadpool_postgres::Transaction;
use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::{
    Store, StoreError,
    audit::{self, By, Change},
    holds,
    words::Word,
};
use crate::alarms::{Action, CHATTER_WITHIN, ConditionState, Criticality, GATEWAY_OFFLINE, Holds, Severity, Standing};

/// How often raising is tried while others raise and end the same alarm.
const ATTEMPTS_MAX: usize = 10;

/// What an alarm is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subject {
    pub gateway: Uuid,
    /// `None`: the gateway itself.
    pub machine: Option<Uuid>,
}

impl Subject {
    /// The machine, or the gateway.
    #[must_use]
    pub fn id(self) -> Uuid {
        self.machine.unwrap_or(self.gateway)
    }
}

/// An alarm to be raised.
#[derive(Debug, Clone, PartialEq)]
pub struct Raise<'a> {
    pub subject: Subject,
    pub criticality: Criticality,
    pub condition: &'a str,
    /// By score or rule alone.
    pub severity: Severity,
    pub message: &'a str,
    pub anomaly: Option<Uuid>,
    pub raised_at: Timestamp,
    pub arrived_at: Timestamp,
    /// It is history: it is stored as over and seen.
    pub late: bool,
}

/// The open alarm of a condition, locked.
struct Open {
    id: Uuid,
    condition: ConditionState,
    severity: Severity,
    raised_at: Timestamp,
    anomaly: Option<Uuid>,
}

/// Raises an alarm, or makes the one that is active graver; the alarm, unless nothing was to be done.
pub async fn raise(transaction: &Transaction<'_>, raise: &Raise<'_>) -> Result<Option<Uuid>, StoreError> {
    if raise.late {
        return insert(transaction, raise, Holds::NONE).await;
    }
    let holds = holds::of(transaction, raise.subject, raise.condition, raise.arrived_at).await?;
    for _ in 0..ATTEMPTS_MAX {
        if let Some(open) = open(transaction, raise.subject, raise.condition).await? {
            if open.condition.is_active() {
                update(transaction, &open, raise).await?;
                return Ok(Some(open.id));
            }
            // The new one asks for the acknowledgement.
            let over = ConditionState::Normal.as_str();
            transaction.execute("UPDATE alarms SET state = $2 WHERE id = $1", &[&open.id, &over]).await?;
        }
        if let Some(id) = insert(transaction, raise, holds).await? {
            return Ok(Some(id));
        }
        // Another transaction raised it in between; it is there now.
    }
    Err(StoreError::Missing("an alarm that others raise and end at this moment"))
}

async fn open(transaction: &Transaction<'_>, subject: Subject, condition: &str) -> Result<Option<Open>, StoreError> {
    let select = transaction
        .prepare_cached(
            "SELECT id, state, coalesce(base_severity, severity), raised_at, anomaly_id FROM alarms
             WHERE coalesce(machine_id, gateway_id) = $1 AND condition = $2 AND state <> 'normal' FOR UPDATE",
        )
        .await?;
    let Some(row) = transaction.query_opt(&select, &[&subject.id(), &condition]).await? else { return Ok(None) };
    let (Word(condition), Word(severity)) = (row.try_get(1)?, row.try_get(2)?);
    Ok(Some(Open { id: row.try_get(0)?, condition, severity, raised_at: row.try_get(3)?, anomaly: row.try_get(4)? }))
}

async fn update(transaction: &Transaction<'_>, open: &Open, raise: &Raise<'_>) -> Result<(), StoreError> {
    let base = open.severity.max(raise.severity);
    let severity = base.weighed(raise.criticality, raise.arrived_at.duration_since(open.raised_at));
    let update = transaction
        .prepare_cached(
            "UPDATE alarms SET base_severity = $2, severity = $3, message = $4, anomaly_id = coalesce($5, anomaly_id)
             WHERE id = $1",
        )
        .await?;
    let values: [&(dyn ToSql + Sync); 5] =
        [&open.id, &base.as_str(), &severity.as_str(), &raise.message, &raise.anomaly];
    transaction.execute(&update, &values).await?;
    Ok(())
}

async fn insert(transaction: &Transaction<'_>, raise: &Raise<'_>, holds: Holds) -> Result<Option<Uuid>, StoreError> {
    let state = if raise.late { ConditionState::Normal } else { ConditionState::Unacknowledged };
    let returned_at = raise.late.then_some(raise.arrived_at);
    let annunciated_at = (!raise.late && !holds.any()).then_some(raise.arrived_at);
    let stood = raise.arrived_at.duration_since(raise.raised_at);
    let severity = raise.severity.weighed(raise.criticality, if raise.late { SignedDuration::ZERO } else { stood });
    let since = raise.raised_at.saturating_sub(CHATTER_WITHIN).unwrap_or(raise.raised_at);
    let insert = transaction
        .prepare_cached(
            "INSERT INTO alarms (id, site_id, gateway_id, machine_id, condition, state, severity, message, anomaly_id,
                                 raised_at, arrived_at, late, returned_at, base_severity, annunciated_at, repeats)
             SELECT $1, site_id, id, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14,
                    1 + (SELECT count(*) FROM alarms WHERE coalesce(machine_id, gateway_id) = coalesce($3::uuid, $2::uuid)
                            AND condition = $4 AND raised_at > $15 AND raised_at <= $9 AND NOT late)
             FROM gateways WHERE id = $2
                 -- History is written once.
                 AND NOT ($11 AND EXISTS (SELECT 1 FROM alarms WHERE condition = $4 AND raised_at = $9
                                              AND coalesce(machine_id, gateway_id) = coalesce($3::uuid, $2::uuid)))
             ON CONFLICT (coalesce(machine_id, gateway_id), condition) WHERE state <> 'normal' DO NOTHING
             RETURNING id",
        )
        .await?;
    let row = transaction
        .query_opt(
            &insert,
            &[
                &Uuid::now_v7(),
                &raise.subject.gateway,
                &raise.subject.machine,
                &raise.condition,
                &state.as_str(),
                &severity.as_str(),
                &raise.message,
                &raise.anomaly,
                &raise.raised_at,
                &raise.arrived_at,
                &raise.late,
                &returned_at,
                &raise.severity.as_str(),
                &annunciated_at,
                &since,
            ],
        )
        .await?;
    Ok(row.map(|row| row.get(0)))
}

/// Lets the active alarm of a condition return, if there is one (of this anomaly, where one is named). It was over `at`, which
/// is known `now`.
pub async fn end(
    transaction: &Transaction<'_>,
    subject: Subject,
    condition: &str,
    anomaly: Option<Uuid>,
    at: Timestamp,
    now: Timestamp,
) -> Result<Option<Uuid>, StoreError> {
    let Some(open) = open(transaction, subject, condition).await? else { return Ok(None) };
    if !open.condition.is_active() || anomaly.is_some_and(|anomaly| open.anomaly != Some(anomaly)) {
        return Ok(None);
    }
    let holds = holds::of(transaction, subject, condition, now).await?;
    let Ok(after) = (Standing { condition: open.condition, holds }).after(Action::Return) else { return Ok(None) };
    let update = transaction
        .prepare_cached("UPDATE alarms SET state = $2, returned_at = greatest($3, raised_at) WHERE id = $1")
        .await?;
    transaction.execute(&update, &[&open.id, &after.condition.as_str(), &at]).await?;
    Ok(Some(open.id))
}

/// Makes alarms graver that have stood for long, and weighs them anew where a machine's criticality changed; those that
/// changed.
pub async fn weigh(transaction: &Transaction<'_>, now: Timestamp) -> Result<Vec<Uuid>, StoreError> {
    let select = transaction
        .prepare_cached(
            "SELECT a.id, coalesce(a.base_severity, a.severity), a.severity, a.raised_at, m.criticality
             FROM alarms a LEFT JOIN machines own ON own.id = a.machine_id
             LEFT JOIN machines m ON m.id = coalesce(own.merged_into, own.id)
             WHERE a.state IN ('unacknowledged', 'acknowledged')",
        )
        .await?;
    let (mut ids, mut words) = (Vec::new(), Vec::new());
    for row in transaction.query(&select, &[]).await? {
        let (Word(base), Word(known)): (Word<Severity>, Word<Severity>) = (row.try_get(1)?, row.try_get(2)?);
        let criticality: Option<Word<Criticality>> = row.try_get(4)?;
        let stood = now.duration_since(row.try_get::<_, Timestamp>(3)?);
        let severity = base.weighed(criticality.map(|Word(criticality)| criticality).unwrap_or_default(), stood);
        if severity != known {
            ids.push(row.try_get::<_, Uuid>(0)?);
            words.push(severity.as_str());
        }
    }
    if !ids.is_empty() {
        transaction
            .execute(
                "UPDATE alarms SET severity = weighed.severity FROM unnest($1::uuid[], $2::text[]) AS weighed (id, severity)
                 WHERE alarms.id = weighed.id AND alarms.state IN ('unacknowledged', 'acknowledged')",
                &[&ids, &words],
            )
            .await?;
    }
    Ok(ids)
}

/// Says how critical a machine is; its alarms are weighed anew by [`weigh`].
pub async fn set_criticality(
    transaction: &Transaction<'_>,
    id: Uuid,
    criticality: Criticality,
    by: &By,
    now: Timestamp,
) -> Result<(), StoreError> {
    let changed = transaction
        .query_opt(
            "UPDATE machines SET criticality = $2 FROM (SELECT id, criticality FROM machines WHERE id = $1) old
             WHERE machines.id = old.id AND old.criticality <> $2 RETURNING old.criticality, machines.site_id",
            &[&id, &criticality.as_str()],
        )
        .await?;
    let Some(row) = changed else { return Ok(()) };
    let change = Change {
        action: "machine.criticality",
        object: "machine",
        id: &id.to_string(),
        site: row.try_get(1)?,
        before: json!({"criticality": row.try_get::<_, String>(0)?}),
        after: json!({"criticality": criticality}),
    };
    audit::write(transaction, by, &change, now).await
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
                end(&transaction, subject, GATEWAY_OFFLINE, None, now, now).await?
            } else {
                let offline = Raise {
                    subject,
                    criticality: Criticality::default(),
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
