//! What people say of machines: names, what to ignore, where they stand, what belongs together.

use std::collections::HashMap;

use deadpool_postgres::Transaction;
use jiff::Timestamp;
use serde_json::json;
use tokio_postgres::Row;
use uuid::Uuid;

use super::{
    StoreError, alarms,
    audit::{self, By, Change},
};
use crate::{
    alarms::Criticality,
    views::machine::{MergeRefused, may_merge},
};

/// What a person says of a machine or a sensor; `None` leaves as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Labels {
    /// `Some(None)` takes the name away.
    pub display_name: Option<Option<String>>,
    pub ignored: Option<bool>,
    /// Of a machine: where it stands; `Some(None)` takes it out of its area.
    pub area: Option<Option<Uuid>>,
    /// Of a machine only.
    pub criticality: Option<Criticality>,
}

/// Locks a machine against other changes of people, up to the transaction's end.
///
/// # Errors
/// If the database is away.
pub async fn lock(transaction: &Transaction<'_>, id: Uuid) -> Result<(), StoreError> {
    transaction.query_opt("SELECT 1 FROM machines WHERE id = $1 FOR NO KEY UPDATE", &[&id]).await?;
    Ok(())
}

/// Whether this area is one of the machine's site.
///
/// # Errors
/// If the database is away.
pub async fn may_stand_in(transaction: &Transaction<'_>, id: Uuid, area: Uuid) -> Result<bool, StoreError> {
    let found = transaction
        .query_opt(
            "SELECT 1 FROM machines m JOIN areas a ON a.site_id = m.site_id WHERE m.id = $1 AND a.id = $2 FOR KEY SHARE OF a",
            &[&id, &area],
        )
        .await?;
    Ok(found.is_some())
}

/// Changes a machine's labels; false if there is no such machine.
///
/// # Errors
/// If the database is away.
pub async fn label(
    transaction: &Transaction<'_>,
    id: Uuid,
    labels: &Labels,
    by: &By,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let changed = transaction
        .query_opt(
            "UPDATE machines SET display_name = CASE WHEN $2 THEN $3 ELSE machines.display_name END,
                                 ignored = coalesce($4, machines.ignored),
                                 area_id = CASE WHEN $5 THEN $6 ELSE machines.area_id END
             FROM (SELECT id, display_name, ignored, area_id FROM machines WHERE id = $1 FOR UPDATE) old
             WHERE machines.id = old.id
             RETURNING old.display_name, old.ignored, old.area_id, machines.display_name, machines.ignored,
                       machines.area_id, machines.site_id",
            &[
                &id,
                &labels.display_name.is_some(),
                &labels.display_name.clone().flatten(),
                &labels.ignored,
                &labels.area.is_some(),
                &labels.area.flatten(),
            ],
        )
        .await?;
    let Some(row) = changed else { return Ok(false) };
    labelled(transaction, &row, ("machine.label", "machine", &id.to_string()), by, now).await?;
    if let Some(criticality) = labels.criticality {
        alarms::set_criticality(transaction, id, criticality, by, now).await?;
    }
    Ok(true)
}

/// Changes the labels of a sensor, in all machines that are shown as this one; false if it has no such sensor.
///
/// # Errors
/// If the database is away.
pub async fn label_sensor(
    transaction: &Transaction<'_>,
    machine: Uuid,
    sensor: &str,
    labels: &Labels,
    by: &By,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let changed = transaction
        .query(
            "UPDATE sensors SET display_name = CASE WHEN $3 THEN $4 ELSE sensors.display_name END,
                                ignored = coalesce($5, sensors.ignored)
             FROM (SELECT s.machine_id, s.name, s.display_name, s.ignored, m.site_id
                   FROM sensors s JOIN machines m ON m.id = s.machine_id
                   WHERE s.name = $2 AND (m.id = $1 OR m.merged_into = $1)
                   ORDER BY m.id FOR UPDATE OF s) old
             WHERE sensors.machine_id = old.machine_id AND sensors.name = old.name
             RETURNING old.display_name, old.ignored, NULL::uuid, sensors.display_name, sensors.ignored, NULL::uuid,
                       old.site_id, old.machine_id",
            &[
                &machine,
                &sensor,
                &labels.display_name.is_some(),
                &labels.display_name.clone().flatten(),
                &labels.ignored,
            ],
        )
        .await?;
    for row in &changed {
        let id = format!("{}/{sensor}", row.try_get::<_, Uuid>(7)?);
        labelled(transaction, row, ("sensor.label", "sensor", &id), by, now).await?;
    }
    Ok(!changed.is_empty())
}

/// Writes a change of labels to the audit, unless nothing is new.
async fn labelled(
    transaction: &Transaction<'_>,
    row: &Row,
    (action, object, id): (&'static str, &'static str, &str),
    by: &By,
    now: Timestamp,
) -> Result<(), StoreError> {
    let labels = |at: usize| -> Result<_, StoreError> {
        let (name, ignored): (Option<String>, bool) = (row.try_get(at)?, row.try_get(at + 1)?);
        let area: Option<Uuid> = row.try_get(at + 2)?;
        Ok(json!({"display_name": name, "ignored": ignored, "area": area}))
    };
    let (before, after) = (labels(0)?, labels(3)?);
    if before == after {
        return Ok(());
    }
    let change = Change { action, object, id, site: row.try_get(6)?, before, after };
    audit::write(transaction, by, &change, now).await
}

/// Shows a machine as a part of another, or (`None`) by itself again; `None` if there is no such machine.
///
/// # Errors
/// If the database is away.
pub async fn merge(
    transaction: &Transaction<'_>,
    id: Uuid,
    into: Option<Uuid>,
    by: &By,
    now: Timestamp,
) -> Result<Option<Result<(), MergeRefused>>, StoreError> {
    // Both rows, and the parts of the one that is to be merged, in one order: two merges cannot make a chain.
    let rows = transaction
        .query(
            "SELECT id, merged_into, site_id FROM machines WHERE id = $1 OR id = $2 OR merged_into = $1
             ORDER BY id FOR UPDATE",
            &[&id, &into],
        )
        .await?;
    let mut known: HashMap<Uuid, (Option<Uuid>, Uuid)> = HashMap::new();
    for row in &rows {
        known.insert(row.try_get("id")?, (row.try_get("merged_into")?, row.try_get("site_id")?));
    }
    let Some(&(before, site)) = known.get(&id) else { return Ok(None) };
    if let Some(into) = into {
        let has_parts = known.values().any(|(target, _)| *target == Some(id));
        let target = known.get(&into).filter(|(_, at)| *at == site).map(|(merged, _)| *merged);
        if let Err(refused) = may_merge(id, into, target, has_parts) {
            return Ok(Some(Err(refused)));
        }
    }
    transaction.execute("UPDATE machines SET merged_into = $2 WHERE id = $1", &[&id, &into]).await?;
    if before != into {
        let change = Change {
            action: "machine.merge",
            object: "machine",
            id: &id.to_string(),
            site: Some(site),
            before: json!({"merged_into": before}),
            after: json!({"merged_into": into}),
        };
        audit::write(transaction, by, &change, now).await?;
    }
    Ok(Some(Ok(())))
}
