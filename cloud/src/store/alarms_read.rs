//! Alarms as they are shown, and their acknowledgement.

use deadpool_postgres::Transaction;
use jiff::Timestamp;
use serde_json::json;
use tokio_postgres::Row;
use uuid::Uuid;

use super::{
    StoreError,
    anomalies_read::{SensorNames, sensor_names},
    audit::{self, By, Change},
    words::Word,
};
use crate::views::{Alarm, AlarmState, LEAD_SENSORS_MAX, named_shares};

/// `shown` is the machine that the alarm's machine is shown as.
const SELECT: &str = "
    SELECT a.id, a.machine_id AS own_machine_id, shown.id AS machine_id,
           coalesce(shown.display_name, shown.name) AS machine_name,
           a.gateway_id, g.name AS gateway_name, a.condition, a.state, a.severity, a.message, a.raised_at, a.arrived_at,
           a.late, a.returned_at, a.acknowledged_at, u.name AS acknowledged_by, a.comment, a.anomaly_id,
           anomaly.shares
    FROM alarms a
    JOIN gateways g ON g.id = a.gateway_id
    LEFT JOIN machines m ON m.id = a.machine_id
    LEFT JOIN machines shown ON shown.id = coalesce(m.merged_into, m.id)
    LEFT JOIN users u ON u.id = a.acknowledged_by
    LEFT JOIN anomalies anomaly ON anomaly.id = a.anomaly_id";

/// What alarms to list.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Empty: in any state.
    pub states: Vec<AlarmState>,
    pub machine: Option<Uuid>,
}

/// Alarms, the newest first, from behind `after`.
///
/// # Errors
/// If the database is away.
pub async fn list(
    transaction: &Transaction<'_>,
    filter: &Filter,
    after: Option<&(Timestamp, Uuid)>,
    limit: i64,
) -> Result<Vec<Alarm>, StoreError> {
    let sql = format!(
        "{SELECT}
         WHERE (cardinality($1::text[]) = 0 OR a.state = ANY($1))
           AND ($2::uuid IS NULL OR m.id = $2 OR m.merged_into = $2)
           AND ($3::timestamptz IS NULL OR (a.raised_at, a.id) < ($3, $4::uuid))
         ORDER BY a.raised_at DESC, a.id DESC LIMIT $5"
    );
    let states: Vec<&str> = filter.states.iter().map(|state| state.as_str()).collect();
    let statement = transaction.prepare_cached(&sql).await?;
    let rows = transaction
        .query(&statement, &[&states, &filter.machine, &after.map(|a| a.0), &after.map(|a| a.1), &limit])
        .await?;
    let names = sensor_names(transaction, &rows).await?;
    rows.iter().map(|row| alarm(row, &names)).collect()
}

/// These alarms, in no order.
///
/// # Errors
/// If the database is away.
pub async fn by_ids(transaction: &Transaction<'_>, ids: &[Uuid]) -> Result<Vec<Alarm>, StoreError> {
    let statement = transaction.prepare_cached(&format!("{SELECT} WHERE a.id = ANY($1)")).await?;
    let rows = transaction.query(&statement, &[&ids]).await?;
    let names = sensor_names(transaction, &rows).await?;
    rows.iter().map(|row| alarm(row, &names)).collect()
}

/// What came of an acknowledgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acknowledged {
    Done,
    /// Somebody had done it before; nothing was changed.
    Already,
    /// The alarm is over.
    NotPossible,
    NoSuchAlarm,
}

/// Acknowledges an alarm in a user's name.
///
/// # Errors
/// If the database is away.
pub async fn acknowledge(
    transaction: &Transaction<'_>,
    id: Uuid,
    user: Uuid,
    comment: Option<&str>,
    by: &By,
    now: Timestamp,
) -> Result<Acknowledged, StoreError> {
    let select =
        transaction.prepare_cached("SELECT state, site_id, comment FROM alarms WHERE id = $1 FOR UPDATE").await?;
    let Some(row) = transaction.query_opt(&select, &[&id]).await? else {
        return Ok(Acknowledged::NoSuchAlarm);
    };
    let Word(state): Word<AlarmState> = row.try_get(0)?;
    let next = match state.acknowledged() {
        None => return Ok(Acknowledged::NotPossible),
        Some(next) if next == state => return Ok(Acknowledged::Already),
        Some(next) => next,
    };
    let update = transaction
        .prepare_cached(
            "UPDATE alarms SET state = $2, acknowledged_at = $3, acknowledged_by = $4, comment = coalesce($5, comment)
             WHERE id = $1",
        )
        .await?;
    transaction.execute(&update, &[&id, &next.as_str(), &now, &user, &comment]).await?;
    let known: Option<String> = row.try_get(2)?;
    let change = Change {
        action: "alarm.acknowledge",
        object: "alarm",
        id: &id.to_string(),
        site: row.try_get(1)?,
        before: json!({"state": state.as_str(), "comment": known}),
        after: json!({"state": next.as_str(), "comment": comment.or(known.as_deref())}),
    };
    audit::write(transaction, by, &change, now).await?;
    Ok(Acknowledged::Done)
}

fn alarm(row: &Row, names: &SensorNames) -> Result<Alarm, StoreError> {
    let (Word(state), Word(severity)) = (row.try_get("state")?, row.try_get("severity")?);
    let shares: Option<Vec<f32>> = row.try_get("shares")?;
    let names = row.try_get::<_, Option<Uuid>>("own_machine_id")?.and_then(|machine| names.get(&machine));
    let mut lead_sensors = named_shares(&shares.unwrap_or_default(), names.map_or(&[][..], Vec::as_slice));
    lead_sensors.truncate(LEAD_SENSORS_MAX);
    Ok(Alarm {
        id: row.try_get("id")?,
        machine_id: row.try_get("machine_id")?,
        machine_name: row.try_get("machine_name")?,
        gateway_id: row.try_get("gateway_id")?,
        gateway_name: row.try_get("gateway_name")?,
        condition: row.try_get("condition")?,
        state,
        severity,
        message: row.try_get("message")?,
        raised_at: row.try_get("raised_at")?,
        arrived_at: row.try_get("arrived_at")?,
        late: row.try_get("late")?,
        returned_at: row.try_get("returned_at")?,
        acknowledged_at: row.try_get("acknowledged_at")?,
        acknowledged_by: row.try_get("acknowledged_by")?,
        comment: row.try_get("comment")?,
        anomaly_id: row.try_get("anomaly_id")?,
        lead_sensors,
    })
}
