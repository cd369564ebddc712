//! How much machines make: which sensor says so, and what it said hour by hour.

use std::collections::BTreeMap;

use deadpool_postgres::Transaction;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    StoreError,
    audit::{self, By, Change},
    words::Word,
};
use crate::energy::production::{BadUnit, Counted, GAP_HOURS, Part, ProductionKind, SensorHour, unit};

/// What says how much a machine makes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProductionSensor {
    pub machine: Uuid,
    /// The sensor's id on its gateway.
    pub sensor: String,
    pub kind: ProductionKind,
    /// Of what is made: UCUM, `1` for a number.
    pub unit: String,
}

/// What came of naming a sensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Named {
    Done,
    NoSuchMachine,
    /// Neither the machine nor one of its parts has it.
    NoSuchSensor,
    BadUnit(BadUnit),
}

/// The production sensors of this machine (or of all of the site that are not ignored); those whose sensor says nothing of it any more are left
/// out.
///
/// # Errors
/// If the database is away.
pub async fn sensors(
    transaction: &Transaction<'_>,
    site: Option<Uuid>,
    machine: Option<Uuid>,
) -> Result<Vec<ProductionSensor>, StoreError> {
    let select = transaction
        .prepare_cached(
            "SELECT m.id, p.sensor, p.kind, (
                 SELECT s.unit FROM machines q JOIN sensors s ON s.machine_id = q.id
                 WHERE (q.id = m.id OR q.merged_into = m.id) AND s.name = p.sensor ORDER BY q.id <> m.id, q.id LIMIT 1)
             FROM machine_production p JOIN machines m ON m.id = p.machine_id
             WHERE ($1::uuid IS NULL OR m.site_id = $1) AND CASE WHEN $2::uuid IS NULL THEN NOT m.ignored ELSE m.id = $2 END
               AND m.merged_into IS NULL
             ORDER BY m.id",
        )
        .await?;
    let mut found = Vec::new();
    for row in transaction.query(&select, &[&site, &machine]).await? {
        let (Word(kind), measured): (Word<ProductionKind>, Option<String>) = (row.try_get(2)?, row.try_get(3)?);
        if let Ok((unit, _)) = unit(kind, measured.as_deref()) {
            found.push(ProductionSensor { machine: row.try_get(0)?, sensor: row.try_get(1)?, kind, unit });
        }
    }
    Ok(found)
}

/// Says which sensor tells what a machine makes; `None` for none.
///
/// # Errors
/// If the database is away.
pub async fn set(
    transaction: &Transaction<'_>,
    machine: Uuid,
    sensor: Option<(&str, ProductionKind)>,
    by: &By,
    now: Timestamp,
) -> Result<Named, StoreError> {
    let found = transaction
        .query_opt("SELECT site_id FROM machines WHERE id = $1 AND merged_into IS NULL FOR NO KEY UPDATE", &[&machine])
        .await?;
    let Some(site) = found.map(|row| row.get::<_, Uuid>(0)) else { return Ok(Named::NoSuchMachine) };
    let before = sensors(transaction, None, Some(machine)).await?.pop();
    match sensor {
        None => {
            transaction.execute("DELETE FROM machine_production WHERE machine_id = $1", &[&machine]).await?;
        }
        Some((sensor, kind)) => {
            let units = "SELECT s.unit FROM machines q JOIN sensors s ON s.machine_id = q.id
                         WHERE (q.id = $1 OR q.merged_into = $1) AND s.name = $2 ORDER BY q.id <> $1, q.id LIMIT 1";
            let Some(row) = transaction.query_opt(units, &[&machine, &sensor]).await? else {
                return Ok(Named::NoSuchSensor);
            };
            if let Err(bad) = unit(kind, row.try_get(0)?) {
                return Ok(Named::BadUnit(bad));
            }
            transaction
                .execute(
                    "INSERT INTO machine_production (machine_id, sensor, kind) VALUES ($1, $2, $3)
                     ON CONFLICT (machine_id) DO UPDATE SET sensor = excluded.sensor, kind = excluded.kind",
                    &[&machine, &sensor, &kind.as_str()],
                )
                .await?;
        }
    }
    let after = sensors(transaction, None, Some(machine)).await?.pop();
    if before != after {
        let json = |sensor: Option<&ProductionSensor>| sensor.map_or(Value::Null, |sensor| json!(sensor));
        let change = Change {
            action: "machine.production",
            object: "machine",
            id: &machine.to_string(),
            site: Some(site),
            before: json(before.as_ref()),
            after: json(after.as_ref()),
        };
        audit::write(transaction, by, &change, now).await?;
    }
    Ok(Named::Done)
}

/// What these sensors said in a range: one for each, also where it said nothing.
///
/// # Errors
/// If the database is away.
pub async fn counted(
    transaction: &Transaction<'_>,
    sensors: &[ProductionSensor],
    from: Timestamp,
    to: Timestamp,
) -> Result<Vec<Counted>, StoreError> {
    let select = transaction
        .prepare_cached(
            "SELECT m.key, s.unit, r.start, r.mins[s.position + 1], r.maxs[s.position + 1], r.means[s.position + 1],
                    r.lasts[s.position + 1], r.mode_ms[1] + r.mode_ms[2] + r.mode_ms[3] + r.mode_ms[4]
             FROM machines m JOIN sensors s ON s.machine_id = m.id AND s.name = $2
             CROSS JOIN LATERAL (
                 SELECT * FROM rollup_hours r WHERE r.machine_key = m.key AND r.start >= $3 AND r.start < $4 OFFSET 0) AS r
             WHERE (m.id = $1 OR m.merged_into = $1) AND r.weights[s.position + 1] > 0
             ORDER BY m.key, r.start",
        )
        .await?;
    let begin = from.saturating_sub(SignedDuration::from_hours(GAP_HOURS + 1)).unwrap_or(from);
    let mut counted = Vec::new();
    for sensor in sensors {
        let mut parts: BTreeMap<i32, Part> = BTreeMap::new();
        for row in transaction.query(&select, &[&sensor.machine, &sensor.sensor, &begin, &to]).await? {
            // A part that measures something else under the same name is none.
            let Ok((unit, in_hour)) = unit(sensor.kind, row.try_get(1)?) else { continue };
            if unit != sensor.unit {
                continue;
            }
            let (mean, last) = (row.try_get(5)?, row.try_get::<_, f64>(6)?);
            let hour = SensorHour {
                start: row.try_get(2)?,
                min: row.try_get(3)?,
                max: row.try_get(4)?,
                mean,
                last: if last.is_nan() { mean } else { last },
                known_ms: row.try_get(7)?,
            };
            let part = parts.entry(row.try_get(0)?);
            part.or_insert(Part { in_hour, hours: Vec::new() }).hours.push(hour);
        }
        counted.push(Counted { kind: sensor.kind, parts: parts.into_values().collect() });
    }
    Ok(counted)
}
