//! Rules that need no model, as people write and read them.

use deadpool_postgres::Transaction;
use jiff::Timestamp;
use tokio_postgres::Row;
use uuid::Uuid;

use super::{
    StoreError,
    alarms::{self, Subject},
    rules::{COLUMNS, schedule},
    words::Word,
};
use crate::{
    alarms::{
        Severity,
        rules::{self, Figure, RuleKind, Schedule},
    },
    views::AlarmRule,
};

/// Rules of one machine.
pub const RULES_MAX: i64 = 100;

/// A rule as somebody writes it; checked.
#[derive(Debug, Clone)]
pub struct NewRule {
    pub name: String,
    pub sensor: Option<String>,
    pub kind: RuleKind,
    pub figure: Figure,
    pub threshold: Option<f64>,
    pub dead_band: f64,
    pub on_delay_s: i32,
    pub off_delay_s: i32,
    pub severity: Severity,
    pub schedule: Option<Schedule>,
    pub only_running: bool,
    pub enabled: bool,
}

/// What came of writing one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    Done(Uuid),
    NoSuchMachine,
    /// Neither the machine nor one of its parts has it.
    NoSuchSensor,
    /// The machine has [`RULES_MAX`].
    TooMany,
}

/// Adds a rule to a machine.
pub async fn add(
    transaction: &Transaction<'_>,
    machine: Uuid,
    new: &NewRule,
    by: Uuid,
    now: Timestamp,
) -> Result<Written, StoreError> {
    // The lock lets the count be right.
    let found = transaction
        .query_opt(
            "SELECT (SELECT count(*) FROM alarm_rules WHERE machine_id = $1) FROM machines
             WHERE id = $1 AND merged_into IS NULL FOR NO KEY UPDATE",
            &[&machine],
        )
        .await?;
    let Some(found) = found else { return Ok(Written::NoSuchMachine) };
    if found.get::<_, i64>(0) >= RULES_MAX {
        return Ok(Written::TooMany);
    }
    if !has_sensor(transaction, machine, new).await? {
        return Ok(Written::NoSuchSensor);
    }
    let id = Uuid::now_v7();
    let (days, from_min, to_min) = columns(new.schedule);
    transaction
        .execute(
            "INSERT INTO alarm_rules (id, organisation_id, site_id, machine_id, name, sensor, kind, figure, threshold, dead_band,
                                      on_delay_s, off_delay_s, severity, days, from_min, to_min, only_running, enabled,
                                      created_at, created_by, updated_at)
             SELECT $1, sites.organisation_id, sites.id, m.id, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16,
                    $17, $18, $17
             FROM machines m JOIN sites ON sites.id = m.site_id WHERE m.id = $2",
            &[
                &id,
                &machine,
                &new.name,
                &new.sensor,
                &new.kind.as_str(),
                &new.figure.as_str(),
                &new.threshold,
                &new.dead_band,
                &new.on_delay_s,
                &new.off_delay_s,
                &new.severity.as_str(),
                &days,
                &from_min,
                &to_min,
                &new.only_running,
                &new.enabled,
                &now,
                &by,
            ],
        )
        .await?;
    transaction.execute("INSERT INTO alarm_rule_states (rule_id) VALUES ($1)", &[&id]).await?;
    Ok(Written::Done(id))
}

/// Writes a rule anew; what it has raised returns, and it begins at the beginning. `None` if there is no such rule; else with the
/// alarm that changed.
pub async fn replace(
    transaction: &Transaction<'_>,
    id: Uuid,
    new: &NewRule,
    now: Timestamp,
) -> Result<Option<(Written, Option<Uuid>)>, StoreError> {
    let Some(subject) = lock(transaction, id).await? else { return Ok(None) };
    if !has_sensor(transaction, subject.id(), new).await? {
        return Ok(Some((Written::NoSuchSensor, None)));
    }
    let (days, from_min, to_min) = columns(new.schedule);
    transaction
        .execute(
            "UPDATE alarm_rules SET name = $2, sensor = $3, kind = $4, figure = $5, threshold = $6, dead_band = $7,
                    on_delay_s = $8, off_delay_s = $9, severity = $10, days = $11, from_min = $12, to_min = $13,
                    only_running = $14, enabled = $15, updated_at = $16
             WHERE id = $1",
            &[
                &id,
                &new.name,
                &new.sensor,
                &new.kind.as_str(),
                &new.figure.as_str(),
                &new.threshold,
                &new.dead_band,
                &new.on_delay_s,
                &new.off_delay_s,
                &new.severity.as_str(),
                &days,
                &from_min,
                &to_min,
                &new.only_running,
                &new.enabled,
                &now,
            ],
        )
        .await?;
    let reset = "UPDATE alarm_rule_states SET phase = 'normal', since = NULL, told = false WHERE rule_id = $1";
    transaction.execute(reset, &[&id]).await?;
    let ended = alarms::end(transaction, subject, &rules::condition(id), None, now, now).await?;
    Ok(Some((Written::Done(id), ended)))
}

/// Takes a rule away; what it has raised returns. `None` if there is no such rule; else the alarm that changed.
pub async fn remove(
    transaction: &Transaction<'_>,
    id: Uuid,
    now: Timestamp,
) -> Result<Option<Option<Uuid>>, StoreError> {
    let Some(subject) = lock(transaction, id).await? else { return Ok(None) };
    transaction.execute("DELETE FROM alarm_rules WHERE id = $1", &[&id]).await?;
    Ok(Some(alarms::end(transaction, subject, &rules::condition(id), None, now, now).await?))
}

/// Whom a rule's alarms are of. The rule is locked, and its state against intake.
async fn lock(transaction: &Transaction<'_>, id: Uuid) -> Result<Option<Subject>, StoreError> {
    let row = transaction
        .query_opt(
            "SELECT m.gateway_id, m.id FROM alarm_rule_states s JOIN alarm_rules r ON r.id = s.rule_id
             JOIN machines m ON m.id = r.machine_id WHERE r.id = $1 FOR UPDATE OF s, r",
            &[&id],
        )
        .await?;
    Ok(row.map(|row| Subject { gateway: row.get(0), machine: Some(row.get(1)) }))
}

async fn has_sensor(transaction: &Transaction<'_>, machine: Uuid, new: &NewRule) -> Result<bool, StoreError> {
    let Some(sensor) = &new.sensor else { return Ok(true) };
    let found = transaction
        .query_opt(
            "SELECT 1 FROM sensors s JOIN machines m ON m.id = s.machine_id
             WHERE s.name = $2 AND (m.id = $1 OR m.merged_into = $1) LIMIT 1",
            &[&machine, sensor],
        )
        .await?;
    Ok(found.is_some())
}

fn columns(schedule: Option<Schedule>) -> (Option<i16>, Option<i16>, Option<i16>) {
    schedule
        .map_or((None, None, None), |schedule| (Some(schedule.days), Some(schedule.from_min), Some(schedule.to_min)))
}

/// The time zone of a site, by whose clocks schedules go; `None` if there is no such site. With `lock` nobody else changes it until
/// the transaction's end.
pub async fn time_zone(transaction: &Transaction<'_>, site: Uuid, lock: bool) -> Result<Option<String>, StoreError> {
    let lock = if lock { "FOR NO KEY UPDATE" } else { "" };
    let row = transaction.query_opt(&format!("SELECT time_zone FROM sites WHERE id = $1 {lock}"), &[&site]).await?;
    Ok(row.map(|row| row.get(0)))
}

/// Sets it.
pub async fn set_time_zone(transaction: &Transaction<'_>, site: Uuid, name: &str) -> Result<(), StoreError> {
    transaction.execute("UPDATE sites SET time_zone = $2 WHERE id = $1", &[&site, &name]).await?;
    Ok(())
}

/// What rules to list.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    pub machine: Option<Uuid>,
    pub enabled: Option<bool>,
}

const SELECT_SHOWN: &str = "
    r.enabled, r.created_at, r.updated_at, u.name AS created_by, coalesce(m.display_name, m.name) AS machine_name,
    s.phase, s.since, s.told, s.last_at, s.last_value
    FROM alarm_rules r JOIN alarm_rule_states s ON s.rule_id = r.id JOIN machines m ON m.id = r.machine_id
    JOIN users u ON u.id = r.created_by";

/// Rules, the newest first, from behind `after`.
pub async fn list(
    transaction: &Transaction<'_>,
    filter: &Filter,
    after: Option<Uuid>,
    limit: i64,
) -> Result<Vec<AlarmRule>, StoreError> {
    let select = transaction
        .prepare_cached(&format!(
            "SELECT {COLUMNS}, {SELECT_SHOWN}
             WHERE ($1::uuid IS NULL OR r.machine_id = $1) AND ($2::boolean IS NULL OR r.enabled = $2)
               AND ($3::uuid IS NULL OR r.id < $3)
             ORDER BY r.id DESC LIMIT $4"
        ))
        .await?;
    let rows = transaction.query(&select, &[&filter.machine, &filter.enabled, &after, &limit]).await?;
    rows.iter().map(shown).collect()
}

/// One of them. With `locked` nobody else changes it until the transaction's end.
pub async fn one(transaction: &Transaction<'_>, id: Uuid, locked: bool) -> Result<Option<AlarmRule>, StoreError> {
    if locked && lock(transaction, id).await?.is_none() {
        return Ok(None);
    }
    let select = transaction.prepare_cached(&format!("SELECT {COLUMNS}, {SELECT_SHOWN} WHERE r.id = $1")).await?;
    transaction.query_opt(&select, &[&id]).await?.as_ref().map(shown).transpose()
}

fn shown(row: &Row) -> Result<AlarmRule, StoreError> {
    let (Word(kind), Word(figure)) = (row.try_get("kind")?, row.try_get("figure")?);
    let (Word(severity), Word(phase)) = (row.try_get("severity")?, row.try_get("phase")?);
    Ok(AlarmRule {
        id: row.try_get("id")?,
        machine_id: row.try_get("machine_id")?,
        machine_name: row.try_get("machine_name")?,
        name: row.try_get("name")?,
        sensor: row.try_get("sensor")?,
        kind,
        figure,
        threshold: row.try_get("threshold")?,
        dead_band: row.try_get("dead_band")?,
        on_delay_s: row.try_get("on_delay_s")?,
        off_delay_s: row.try_get("off_delay_s")?,
        severity,
        schedule: schedule(row)?,
        only_running: row.try_get("only_running")?,
        enabled: row.try_get("enabled")?,
        created_at: row.try_get("created_at")?,
        created_by: row.try_get("created_by")?,
        updated_at: row.try_get("updated_at")?,
        phase,
        since: row.try_get("since")?,
        last_at: row.try_get("last_at")?,
        last_value: row.try_get("last_value")?,
    })
}
