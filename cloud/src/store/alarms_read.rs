//! Alarms as they are shown, and their acknowledgement.

use std::collections::HashMap;

use deadpool_postgres::Transaction;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio_postgres::{Row, types::ToSql};
use uuid::Uuid;

use super::{
    StoreError,
    alarms::Subject,
    anomalies_read::{SensorNames, sensor_names},
    audit::{self, By, Change},
    holds::{self, SHOWN_FIRST, in_effect},
    scoped::keep_plans,
    words::{Word, at_least, rank},
};
use crate::{
    alarms::{Action, CHATTER_RAISES, ConditionState, Refused, Standing},
    views::{Alarm, AlarmState, Held, LEAD_SENSORS_MAX, Severity, named_shares},
};

/// A machine that is a part of another is shown as that `whole`; `held` is of several holds the one that lasts longest.
/// `$1` is now.
fn select() -> String {
    format!(
        "SELECT a.id, coalesce(whole.id, m.id) AS machine_id,
           coalesce(whole.display_name, whole.name, m.display_name, m.name) AS machine_name,
           a.gateway_id, g.name AS gateway_name, a.condition, a.state AS condition_state, shown_as.state, a.severity, a.message,
           a.raised_at, a.arrived_at, a.late, a.returned_at, a.acknowledged_at, u.name AS acknowledged_by, a.comment,
           a.anomaly_id, a.incident_id, a.annunciated_at, a.repeats, anomaly.shares,
           held.id AS hold_id, held.kind AS hold_kind, held.reason AS hold_reason, holder.name AS hold_by,
           held.since AS hold_since, held.until AS hold_until, a.machine_id AS own_machine_id
    FROM alarms a
    JOIN gateways g ON g.id = a.gateway_id
    LEFT JOIN machines m ON m.id = a.machine_id
    LEFT JOIN machines whole ON whole.id = m.merged_into
    LEFT JOIN users u ON u.id = a.acknowledged_by AND a.state <> 'unacknowledged'
    LEFT JOIN anomalies anomaly ON anomaly.id = a.anomaly_id
    LEFT JOIN LATERAL (
        SELECT h.* FROM alarm_holds h WHERE {}
        ORDER BY {SHOWN_FIRST}, h.until DESC NULLS FIRST LIMIT 1
    ) held ON a.state <> 'normal'
    LEFT JOIN users holder ON holder.id = held.created_by
    CROSS JOIN LATERAL (SELECT coalesce(held.kind, a.state) AS state) shown_as",
        in_effect("$1")
    )
}

/// The order of a list.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Order {
    /// The newest first.
    #[default]
    RaisedAt,
    /// The gravest first, and of these the newest.
    Severity,
}

/// What the next page begins behind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct After {
    severity: Severity,
    raised_at: Timestamp,
    id: Uuid,
}

impl After {
    #[must_use]
    pub fn of(alarm: &Alarm) -> Self {
        Self { severity: alarm.severity, raised_at: alarm.raised_at, id: alarm.id }
    }
}

/// What alarms to list; times are of their raise, `to` exclusive.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Empty: in any state.
    pub states: Vec<AlarmState>,
    pub site: Option<Uuid>,
    pub machine: Option<Uuid>,
    pub gateway: Option<Uuid>,
    pub incident: Option<Uuid>,
    pub condition: Option<String>,
    /// This grave or graver.
    pub severity_min: Option<Severity>,
    pub from: Option<Timestamp>,
    pub to: Option<Timestamp>,
    pub order: Order,
}

/// A statement of as many conditions is kept.
const KEPT_CONDITIONS_MAX: usize = 3;

/// The conditions of a statement, and the values in them.
#[derive(Default)]
struct Asked<'a> {
    conditions: Vec<String>,
    values: Vec<&'a (dyn ToSql + Sync)>,
}

impl<'a> Asked<'a> {
    /// The place of a value in the statement.
    fn value(&mut self, value: &'a (dyn ToSql + Sync)) -> String {
        self.values.push(value);
        format!("${}", self.values.len())
    }

    /// Asks for `condition`, in which `$` stands for the value, where there is one.
    fn only<T: ToSql + Sync>(&mut self, condition: &str, value: Option<&'a T>) {
        if let Some(value) = value {
            let place = self.value(value);
            self.conditions.push(condition.replace('$', &place));
        }
    }
}

/// Alarms in their order, from behind `after`.
pub async fn list(
    transaction: &Transaction<'_>,
    filter: &Filter,
    after: Option<&After>,
    limit: i64,
    now: Timestamp,
) -> Result<Vec<Alarm>, StoreError> {
    let states: Vec<&str> = filter.states.iter().map(|state| state.as_str()).collect();
    let severities = filter.severity_min.map(at_least);
    let severity_after = after.map(|after| after.severity.as_str());
    // Only what is asked for is in the statement: it is asked for often, and each condition is planned.
    let mut asked = Asked::default();
    if !states.is_empty() {
        let (now, states) = (asked.value(&now), asked.value(&states));
        // Which alarms is decided before anything is joined to them.
        asked.conditions.push(format!(
            "CASE WHEN a.state = 'normal' THEN a.state ELSE coalesce((SELECT h.kind FROM alarm_holds h WHERE {}
               ORDER BY {SHOWN_FIRST} LIMIT 1), a.state)
             END = ANY({states})",
            in_effect(&now)
        ));
        if !filter.states.contains(&AlarmState::Normal) {
            // Said in the statement, so that the index of what is open is used.
            asked.conditions.push("a.state <> 'normal'".to_owned());
        }
    }
    asked.only("a.site_id = $", filter.site.as_ref());
    let parts = "coalesce(a.machine_id, a.gateway_id) IN (SELECT id FROM machines WHERE id = $ OR merged_into = $)";
    asked.only(parts, filter.machine.as_ref());
    asked.only("a.gateway_id = $", filter.gateway.as_ref());
    asked.only("a.incident_id = $", filter.incident.as_ref());
    asked.only("a.condition = $", filter.condition.as_ref());
    asked.only("a.severity = ANY($)", severities.as_ref());
    asked.only("a.raised_at >= $", filter.from.as_ref());
    asked.only("a.raised_at < $", filter.to.as_ref());
    let (severity, order) = match filter.order {
        Order::RaisedAt => (None, "a.raised_at DESC, a.id DESC".to_owned()),
        Order::Severity => {
            let severity = rank("a.severity");
            (Some(severity.clone()), format!("{severity} DESC, a.raised_at DESC, a.id DESC"))
        }
    };
    if let Some((after, severity_after)) = after.zip(severity_after.as_ref()) {
        let (raised_at, id) = (asked.value(&after.raised_at), asked.value(&after.id));
        let behind = match severity {
            None => format!("(a.raised_at, a.id) < ({raised_at}, {id})"),
            Some(severity) => {
                let than = rank(&format!("{}::text", asked.value(severity_after)));
                format!("({severity}, a.raised_at, a.id) < ({than}, {raised_at}, {id})")
            }
        };
        asked.conditions.push(behind);
    }
    let limit = asked.value(&limit);
    let sql = format!(
        "SELECT a.id FROM alarms a LEFT JOIN machines m ON m.id = a.machine_id
         WHERE {} ORDER BY {order} LIMIT {limit}",
        if asked.conditions.is_empty() { "true".to_owned() } else { asked.conditions.join(" AND ") }
    );
    // A connection keeps its statements for ever: those of many conditions, which are many, are made anew.
    let rows = if asked.conditions.len() <= KEPT_CONDITIONS_MAX {
        keep_plans(transaction)?;
        transaction.query(&transaction.prepare_cached(&sql).await?, &asked.values).await?
    } else {
        transaction.query(&sql, &asked.values).await?
    };
    let ids: Vec<Uuid> = rows.iter().map(|row| row.get(0)).collect();
    let mut found: HashMap<Uuid, Alarm> =
        by_ids(transaction, &ids, now).await?.into_iter().map(|alarm| (alarm.id, alarm)).collect();
    Ok(ids.iter().filter_map(|id| found.remove(id)).collect())
}

/// These alarms, in no order.
pub async fn by_ids(transaction: &Transaction<'_>, ids: &[Uuid], now: Timestamp) -> Result<Vec<Alarm>, StoreError> {
    let statement = transaction.prepare_cached(&format!("{} WHERE a.id = ANY($2)", select())).await?;
    let rows = transaction.query(&statement, &[&now, &ids]).await?;
    let names = sensor_names(transaction, &rows).await?;
    rows.iter().map(|row| alarm(row, &names)).collect()
}

/// What an alarm is of, and where it stands; locked.
#[derive(Debug, Clone)]
pub struct Locked {
    pub site: Uuid,
    pub comment: Option<String>,
    pub subject: Subject,
    pub condition: String,
    pub standing: Standing,
}

/// An alarm that somebody is about to change.
pub async fn lock(transaction: &Transaction<'_>, id: Uuid, now: Timestamp) -> Result<Option<Locked>, StoreError> {
    let statement = transaction
        .prepare_cached(
            "SELECT gateway_id, machine_id, condition, state, site_id, comment FROM alarms WHERE id = $1 FOR UPDATE",
        )
        .await?;
    let Some(row) = transaction.query_opt(&statement, &[&id]).await? else { return Ok(None) };
    let subject = Subject { gateway: row.try_get(0)?, machine: row.try_get(1)? };
    let condition: String = row.try_get(2)?;
    let Word(state): Word<ConditionState> = row.try_get(3)?;
    let holds = holds::of(transaction, subject, &condition, now).await?;
    let standing = Standing { condition: state, holds };
    Ok(Some(Locked { site: row.try_get(4)?, comment: row.try_get(5)?, subject, condition, standing }))
}

/// Acknowledges an alarm in a user's name; whether that changed anything, or why it is not possible. `None` if there is
/// no such alarm.
pub async fn acknowledge(
    transaction: &Transaction<'_>,
    id: Uuid,
    comment: Option<&str>,
    by: &By,
    now: Timestamp,
) -> Result<Option<Result<bool, Refused>>, StoreError> {
    let Some(Locked { standing, site, comment: known, .. }) = lock(transaction, id, now).await? else {
        return Ok(None);
    };
    let after = match standing.after(Action::Acknowledge) {
        Err(refused) => return Ok(Some(Err(refused))),
        Ok(after) if after == standing => return Ok(Some(Ok(false))),
        Ok(after) => after,
    };
    transaction
        .execute(
            "UPDATE alarms SET state = $2, acknowledged_at = $3, acknowledged_by = $4, comment = coalesce($5, comment)
             WHERE id = $1",
            &[&id, &after.condition.as_str(), &now, &by.user, &comment],
        )
        .await?;
    let change = Change {
        action: "alarm.acknowledge",
        object: "alarm",
        id: &id.to_string(),
        site: Some(site),
        before: json!({"state": standing.condition.as_str(), "comment": known}),
        after: json!({"state": after.condition.as_str(), "comment": comment.or(known.as_deref())}),
    };
    audit::write(transaction, by, &change, now).await?;
    Ok(Some(Ok(true)))
}

fn alarm(row: &Row, names: &SensorNames) -> Result<Alarm, StoreError> {
    let (Word(state), Word(severity)) = (row.try_get("state")?, row.try_get("severity")?);
    let Word(condition_state) = row.try_get("condition_state")?;
    let shares: Option<Vec<f32>> = row.try_get("shares")?;
    let machine: Option<Uuid> = row.try_get("own_machine_id")?;
    let names = machine.and_then(|machine| names.get(&machine)).map_or(&[][..], Vec::as_slice);
    let mut lead_sensors = named_shares(&shares.unwrap_or_default(), names);
    lead_sensors.truncate(LEAD_SENSORS_MAX);
    let repeats = row.try_get("repeats")?;
    let acknowledged_by: Option<String> = row.try_get("acknowledged_by")?;
    let acknowledged_at: Option<Timestamp> = row.try_get("acknowledged_at")?;
    Ok(Alarm {
        id: row.try_get("id")?,
        machine_id: row.try_get("machine_id")?,
        machine_name: row.try_get("machine_name")?,
        gateway_id: row.try_get("gateway_id")?,
        gateway_name: row.try_get("gateway_name")?,
        condition: row.try_get("condition")?,
        state,
        condition_state,
        held: held(row)?,
        severity,
        message: row.try_get("message")?,
        raised_at: row.try_get("raised_at")?,
        arrived_at: row.try_get("arrived_at")?,
        late: row.try_get("late")?,
        returned_at: row.try_get("returned_at")?,
        // An acknowledgement from before a hold counts no more.
        acknowledged_at: acknowledged_at.filter(|_| condition_state != ConditionState::Unacknowledged),
        acknowledged_by,
        comment: row.try_get("comment")?,
        anomaly_id: row.try_get("anomaly_id")?,
        incident_id: row.try_get("incident_id")?,
        annunciated_at: row.try_get("annunciated_at")?,
        repeats,
        chattering: repeats >= CHATTER_RAISES,
        lead_sensors,
    })
}

fn held(row: &Row) -> Result<Option<Held>, StoreError> {
    let Some(id) = row.try_get("hold_id")? else { return Ok(None) };
    let Word(kind) = row.try_get("hold_kind")?;
    Ok(Some(Held {
        id,
        kind,
        reason: row.try_get("hold_reason")?,
        by: row.try_get("hold_by")?,
        since: row.try_get("hold_since")?,
        until: row.try_get("hold_until")?,
    }))
}
