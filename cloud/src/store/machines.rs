//! Machines as they are shown.

use std::collections::HashMap;

use deadpool_postgres::Transaction;
use futures_util::future::try_join3;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio_postgres::Row;
use uuid::Uuid;

use super::{
    StoreError,
    gateways_read::enrolment,
    holds::in_effect_on,
    scoped::keep_plans,
    words::{Word, rank},
};
use crate::views::{
    self, Connection, Criticality, Machine, MachineAlarm, MachineDetail, MachineLive, MachineState, Patience,
    machine::{GroupSensor, MergedMachine, Remaining, connection, state, union_of_sensors},
};

/// One row for each machine of the statement `page` (of whole rows), in the order of the names they are shown with; `live` is the one
/// of its group that was heard last.
fn shown(page: &str) -> String {
    format!(
        "WITH page AS MATERIALIZED ({page}), parts AS MATERIALIZED (
             SELECT id AS shown, page.* FROM page
             UNION ALL SELECT p.merged_into, p.* FROM machines p WHERE p.merged_into = ANY (ARRAY(SELECT id FROM page))
         ), live AS (
             SELECT DISTINCT ON (shown) * FROM parts ORDER BY shown, last_reading_at DESC NULLS LAST, id
         ), grouped AS (
             -- What parts measure by the same name is one sensor.
             SELECT parts.shown, count(DISTINCT s.name) AS sensors FROM parts JOIN sensors s ON s.machine_id = parts.id
             WHERE parts.shown IN (SELECT shown FROM parts WHERE id <> shown) GROUP BY parts.shown
         ), alarm AS (
             SELECT DISTINCT ON (parts.shown) parts.shown, a.id, a.severity, a.state
             FROM parts JOIN alarms a ON coalesce(a.machine_id, a.gateway_id) = parts.id
             WHERE a.state <> 'normal'
               -- What is shelved, suppressed or out of service is not shown.
               AND NOT EXISTS (SELECT FROM alarm_holds h WHERE {})
             ORDER BY parts.shown, {} DESC, a.raised_at DESC
         )
         SELECT m.id, m.gateway_id, g.name AS gateway_name, m.site_id, m.area_id, m.name, m.display_name, m.ignored, m.merged_into,
                m.criticality,
                m.step_ms, m.interval_ms, live.detector, live.calibration_percent, live.detector_note,
                live.remaining_likely_s, live.remaining_low_s, live.remaining_high_s, live.score, live.health_percent,
                live.mode, live.last_reading_at, live.model, live.interval_ms AS live_interval_ms,
                lg.state AS gateway_state, lg.last_seen_at, coalesce(grouped.sensors, m.sensors_count) AS sensors_count,
                alarm.id AS alarm_id, alarm.severity AS alarm_severity, alarm.state AS alarm_state
         FROM live JOIN page m ON m.id = live.shown
         JOIN gateways g ON g.id = m.gateway_id
         JOIN gateways lg ON lg.id = live.gateway_id
         LEFT JOIN grouped ON grouped.shown = m.id
         LEFT JOIN alarm ON alarm.shown = m.id
         ORDER BY coalesce(m.display_name, m.name), m.id",
        in_effect_on("a.machine_id, parts.shown", "now()"),
        rank("a.severity")
    )
}

/// The order of a list; of a kind by their ids. What is not known comes last.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Order {
    /// By the name they are shown with.
    #[default]
    Name,
    /// The worst first.
    Health,
    /// What was heard last, first.
    LastReadingAt,
    /// What the plant depends on most, first.
    Criticality,
}

/// What the next page begins behind, in its order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum After {
    Name(String, Uuid),
    Health(Option<f64>, Uuid),
    LastReadingAt(Option<Timestamp>, Uuid),
    Criticality(Criticality, Uuid),
}

impl After {
    #[must_use]
    pub fn of(order: Order, machine: &Machine) -> Self {
        let id = machine.id;
        match order {
            Order::Name => Self::Name(machine.display_name.clone().unwrap_or_else(|| machine.name.clone()), id),
            Order::Health => Self::Health(machine.health_percent.map(f64::from), id),
            Order::LastReadingAt => Self::LastReadingAt(machine.last_reading_at, id),
            Order::Criticality => Self::Criticality(machine.criticality, id),
        }
    }

    /// The order of the list that it is of.
    #[must_use]
    pub const fn order(&self) -> Order {
        match self {
            Self::Name(..) => Order::Name,
            Self::Health(..) => Order::Health,
            Self::LastReadingAt(..) => Order::LastReadingAt,
            Self::Criticality(..) => Order::Criticality,
        }
    }

    /// As the statements read it.
    fn key(&self) -> (String, Uuid) {
        match self {
            Self::Name(name, id) => (name.clone(), *id),
            Self::Health(figure, id) => {
                (figure.map_or_else(|| "infinity".to_owned(), |figure| figure.to_string()), *id)
            }
            Self::LastReadingAt(at, id) => (at.map_or_else(|| "-infinity".to_owned(), |at| at.to_string()), *id),
            Self::Criticality(word, id) => (word.as_str().to_owned(), *id),
        }
    }
}

/// The page of machines whose ids are known.
const THESE: &str = "SELECT * FROM machines WHERE id = ANY ($1::uuid[])";

/// What machines to list.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    pub gateway: Option<Uuid>,
    pub site: Option<Uuid>,
    /// With all that is a part of it.
    pub area: Option<Uuid>,
    pub include_ignored: bool,
    pub order: Order,
}

/// Which machines a filter lets through.
const FILTERED: &str = "m.merged_into IS NULL AND ($1::uuid IS NULL OR m.gateway_id = $1) AND (NOT m.ignored OR $2)";
const FILTERED_PLACE: &str = "($6::uuid IS NULL OR m.site_id = $6)
           AND ($7::uuid IS NULL OR m.area_id IN (
               WITH RECURSIVE within AS (
                   SELECT id FROM areas WHERE id = $7 UNION SELECT a.id FROM areas a JOIN within ON a.parent_id = within.id)
               SELECT id FROM within))";

/// Machines in their order, from behind `after`, which is of that order. Those that are shown as a part of another are not listed.
///
/// # Errors
/// If the database is away.
pub async fn list(
    transaction: &Transaction<'_>,
    filter: &Filter,
    after: Option<&After>,
    limit: i64,
    now: Timestamp,
    patience: Patience,
) -> Result<Vec<Machine>, StoreError> {
    keep_plans(transaction)?;
    // The page first: what is shown of a machine is worth many look-ups.
    let sql = match ordered(filter.order) {
        Some(sql) => sql,
        None => shown(&format!(
            "SELECT m.* FROM machines m
         WHERE {FILTERED}
           AND ($3::text IS NULL OR (coalesce(m.display_name, m.name), m.id) > ($3, $4::uuid))
           AND {FILTERED_PLACE}
         ORDER BY coalesce(m.display_name, m.name), m.id LIMIT $5"
        )),
    };
    let (key, id) = after.map(After::key).unzip();
    let statement = transaction.prepare_cached(&sql).await?;
    let rows = transaction
        .query(&statement, &[&filter.gateway, &filter.include_ignored, &key, &id, &limit, &filter.site, &filter.area])
        .await?;
    if filter.order == Order::Name {
        return rows.iter().map(|row| machine(row, now, patience)).collect();
    }
    let ids: Vec<Uuid> = rows.iter().map(|row| row.get(0)).collect();
    let statement = transaction.prepare_cached(&shown(THESE)).await?;
    let mut found: HashMap<Uuid, Machine> = HashMap::new();
    for row in transaction.query(&statement, &[&ids]).await? {
        let machine = machine(&row, now, patience)?;
        found.insert(machine.id, machine);
    }
    Ok(ids.iter().filter_map(|id| found.remove(id)).collect())
}

/// The ids of a page in another order than by names, which [`shown`] has.
fn ordered(order: Order) -> Option<String> {
    let criticality = |word: &str| format!("array_position(ARRAY['low', 'medium', 'high'], {word})");
    let (key, after, towards, behind) = match order {
        Order::Name => return None,
        Order::Health => {
            ("coalesce(live.health_percent::float8, 'infinity')".to_owned(), "$3::text::float8".to_owned(), "ASC", ">")
        }
        Order::LastReadingAt => {
            ("coalesce(live.last_reading_at, '-infinity')".to_owned(), "$3::text::timestamptz".to_owned(), "DESC", "<")
        }
        Order::Criticality => (criticality("m.criticality"), criticality("$3::text"), "DESC", "<"),
    };
    Some(format!(
        "SELECT m.id FROM machines m CROSS JOIN LATERAL (
             SELECT p.* FROM machines p WHERE p.id = m.id OR p.merged_into = m.id
             ORDER BY p.last_reading_at DESC NULLS LAST, p.id LIMIT 1
         ) live
         WHERE {FILTERED} AND ($3::text IS NULL OR ({key}, m.id) {behind} ({after}, $4::uuid)) AND {FILTERED_PLACE}
         ORDER BY {key} {towards}, m.id {towards} LIMIT $5"
    ))
}

/// A machine with its sensors.
///
/// # Errors
/// If the database is away.
pub async fn detail(
    transaction: &Transaction<'_>,
    id: Uuid,
    now: Timestamp,
    patience: Patience,
) -> Result<Option<MachineDetail>, StoreError> {
    Ok(details(transaction, &[id], now, patience).await?.pop())
}

/// The live state of the machines that these are shown as.
///
/// It is asked for often: a machine without parts (nearly all) costs one row.
///
/// # Errors
/// If the database is away.
pub async fn live(
    transaction: &Transaction<'_>,
    changed: &[Uuid],
    now: Timestamp,
    patience: Patience,
) -> Result<Vec<MachineLive>, StoreError> {
    let statement = transaction
        .prepare_cached(
            "SELECT m.id, m.interval_ms, m.detector, m.calibration_percent, m.detector_note,
                    m.remaining_likely_s, m.remaining_low_s, m.remaining_high_s, m.score, m.health_percent, m.mode,
                    m.last_reading_at, m.last_values, g.state AS gateway_state, g.last_seen_at,
                    EXISTS (SELECT FROM machines p WHERE p.merged_into = m.id) AS has_parts
             FROM machines m JOIN gateways g ON g.id = m.gateway_id
             WHERE m.id IN (SELECT coalesce(merged_into, id) FROM machines WHERE id = ANY($1))",
        )
        .await?;
    let rows = transaction.query(&statement, &[&changed]).await?;
    let mut found = Vec::with_capacity(rows.len());
    let mut groups: Vec<Uuid> = Vec::new();
    for row in &rows {
        if row.try_get("has_parts")? {
            groups.push(row.try_get("id")?);
        } else {
            found.push(live_alone(row, now, patience)?);
        }
    }
    if !groups.is_empty() {
        let details = details(transaction, &groups, now, patience).await?;
        found.extend(details.iter().map(|detail| MachineLive::new(&detail.machine, &detail.sensors)));
    }
    Ok(found)
}

fn live_alone(row: &Row, now: Timestamp, patience: Patience) -> Result<MachineLive, StoreError> {
    let (Word(detector), Word(mode)) = (row.try_get("detector")?, row.try_get("mode")?);
    let connection = connection_of(row, row.try_get("interval_ms")?, now, patience)?;
    let values: Vec<Option<f64>> = row.try_get("last_values")?;
    Ok(MachineLive {
        id: row.try_get("id")?,
        health_percent: row.try_get("health_percent")?,
        score: row.try_get("score")?,
        detector,
        calibration_percent: row.try_get("calibration_percent")?,
        detector_note: row.try_get("detector_note")?,
        remaining: remaining(row)?,
        mode,
        last_reading_at: row.try_get("last_reading_at")?,
        connection,
        state: state(connection, detector),
        values: values.into_iter().map(|value| value.filter(|value| value.is_finite())).collect(),
    })
}

/// The word for each machine that is shown by itself.
///
/// # Errors
/// If the database is away.
pub async fn states(
    transaction: &Transaction<'_>,
    now: Timestamp,
    patience: Patience,
) -> Result<Vec<(Uuid, MachineState)>, StoreError> {
    let statement = transaction
        .prepare_cached(
            "SELECT m.id, live.last_reading_at, live.interval_ms, live.detector, lg.state AS gateway_state,
                    lg.last_seen_at
             FROM machines m
             CROSS JOIN LATERAL (
                 SELECT p.* FROM machines p WHERE p.id = m.id OR p.merged_into = m.id
                 ORDER BY p.last_reading_at DESC NULLS LAST, p.id LIMIT 1
             ) live
             JOIN gateways lg ON lg.id = live.gateway_id
             WHERE m.merged_into IS NULL",
        )
        .await?;
    let rows = transaction.query(&statement, &[]).await?;
    rows.iter()
        .map(|row| {
            let Word(detector) = row.try_get("detector")?;
            let connection = connection_of(row, row.try_get("interval_ms")?, now, patience)?;
            Ok((row.try_get("id")?, state(connection, detector)))
        })
        .collect()
}

async fn details(
    transaction: &Transaction<'_>,
    ids: &[Uuid],
    now: Timestamp,
    patience: Patience,
) -> Result<Vec<MachineDetail>, StoreError> {
    keep_plans(transaction)?;
    let machines = transaction.prepare_cached(&shown(THESE)).await?;
    let sensors = transaction
        .prepare_cached(
            "SELECT t.id AS shown, s.name, s.display_name, s.unit, s.ignored, p.last_reading_at,
                    p.last_values[s.position + 1] AS last_value
             FROM machines t JOIN machines p ON p.id = t.id OR p.merged_into = t.id
             JOIN sensors s ON s.machine_id = p.id
             WHERE t.id = ANY($1)
             ORDER BY t.id, p.id <> t.id, p.created_at, p.id, s.position",
        )
        .await?;
    let merged = transaction
        .prepare_cached("SELECT merged_into, id, name FROM machines WHERE merged_into = ANY($1) ORDER BY name, id")
        .await?;
    // They travel together.
    let (rows, sensors, merged) = try_join3(
        transaction.query(&machines, &[&ids]),
        transaction.query(&sensors, &[&ids]),
        transaction.query(&merged, &[&ids]),
    )
    .await?;
    let mut sensors_of: HashMap<Uuid, Vec<GroupSensor>> = HashMap::new();
    for row in &sensors {
        sensors_of.entry(row.try_get("shown")?).or_default().push(group_sensor(row)?);
    }
    let mut merged_of: HashMap<Uuid, Vec<MergedMachine>> = HashMap::new();
    for row in &merged {
        let part = MergedMachine { id: row.try_get("id")?, name: row.try_get("name")? };
        merged_of.entry(row.try_get("merged_into")?).or_default().push(part);
    }
    rows.iter()
        .map(|row| {
            let machine = machine(row, now, patience)?;
            let id = machine.id;
            Ok(MachineDetail {
                machine,
                step_ms: row.try_get("step_ms")?,
                interval_ms: row.try_get("interval_ms")?,
                sensors: union_of_sensors(sensors_of.remove(&id).unwrap_or_default()),
                merged: merged_of.remove(&id).unwrap_or_default(),
            })
        })
        .collect()
}

fn machine(row: &Row, now: Timestamp, patience: Patience) -> Result<Machine, StoreError> {
    let Word(detector) = row.try_get("detector")?;
    let (Word(mode), Word(criticality)) = (row.try_get("mode")?, row.try_get("criticality")?);
    let connection = connection_of(row, row.try_get("live_interval_ms")?, now, patience)?;
    let alarm = match row.try_get("alarm_id")? {
        Some(id) => {
            let (Word(severity), Word(state)) = (row.try_get("alarm_severity")?, row.try_get("alarm_state")?);
            Some(MachineAlarm { id, severity, state })
        }
        None => None,
    };
    Ok(Machine {
        id: row.try_get("id")?,
        gateway_id: row.try_get("gateway_id")?,
        gateway_name: row.try_get("gateway_name")?,
        site_id: row.try_get("site_id")?,
        area_id: row.try_get("area_id")?,
        name: row.try_get("name")?,
        display_name: row.try_get("display_name")?,
        state: state(connection, detector),
        health_percent: row.try_get("health_percent")?,
        score: row.try_get("score")?,
        detector,
        calibration_percent: row.try_get("calibration_percent")?,
        detector_note: row.try_get("detector_note")?,
        remaining: remaining(row)?,
        mode,
        last_reading_at: row.try_get("last_reading_at")?,
        connection,
        sensors_count: row.try_get("sensors_count")?,
        ignored: row.try_get("ignored")?,
        merged_into: row.try_get("merged_into")?,
        criticality,
        alarm,
        model: row.try_get("model")?,
    })
}

fn remaining(row: &Row) -> Result<Option<Remaining>, StoreError> {
    let figures: [Option<f32>; 3] =
        [row.try_get("remaining_likely_s")?, row.try_get("remaining_low_s")?, row.try_get("remaining_high_s")?];
    let [Some(likely_s), Some(low_s), Some(high_s)] = figures else { return Ok(None) };
    Ok(Some(Remaining { likely_s, low_s, high_s }))
}

fn connection_of(row: &Row, interval_ms: i32, now: Timestamp, patience: Patience) -> Result<Connection, StoreError> {
    let enrolment = enrolment(row.try_get("gateway_state")?);
    let gateway = views::gateway_state(enrolment, row.try_get("last_seen_at")?, now, patience);
    Ok(connection(gateway, row.try_get("last_reading_at")?, interval_ms, now, patience))
}

fn group_sensor(row: &Row) -> Result<GroupSensor, StoreError> {
    Ok(GroupSensor {
        name: row.try_get("name")?,
        display_name: row.try_get("display_name")?,
        unit: row.try_get("unit")?,
        ignored: row.try_get("ignored")?,
        last_value: row.try_get("last_value")?,
        heard_at: row.try_get("last_reading_at")?,
    })
}
