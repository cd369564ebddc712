//! Machines and sensors as gateways name them.

use std::collections::HashMap;

use deadpool_postgres::Transaction;
use gemba_shared::telemetry::Catalog;
use uuid::Uuid;

use super::{StoreError, words::Word};
use crate::machines::Known;

/// A machine as an outbox names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MachineKey {
    pub gateway: Uuid,
    pub epoch: i64,
    pub name: String,
}

const SELECT: &str = "
    SELECT machines.gateway_id, wanted.epoch, machines.name, machines.id, machines.key, machines.ignored,
           coalesce(shown.id, machines.id), coalesce(shown.criticality, machines.criticality),
           coalesce((SELECT array_agg(sensors.name ORDER BY sensors.position) FROM sensors
                     WHERE sensors.machine_id = machines.id), '{}'),
           coalesce(numbered.positions, '{}'),
           CASE WHEN numbered.epoch = wanted.epoch THEN numbered.revision ELSE 0 END
    FROM unnest($1::uuid[], $2::bigint[], $3::text[]) AS wanted (gateway_id, epoch, name)
    JOIN machines ON machines.gateway_id = wanted.gateway_id AND machines.name = wanted.name
    LEFT JOIN machines AS shown ON shown.id = machines.merged_into
    -- Of this outbox; else of the latest one, for a gateway whose catalog is still to come.
    LEFT JOIN LATERAL (
        SELECT catalogs.epoch, revision, positions FROM catalogs WHERE catalogs.machine_id = machines.id
        ORDER BY (catalogs.epoch = wanted.epoch) DESC, updated_at DESC
        LIMIT 1
    ) AS numbered ON true";

/// The machines that are known under these names.
pub async fn machines(
    transaction: &Transaction<'_>,
    wanted: impl Iterator<Item = &MachineKey>,
) -> Result<HashMap<MachineKey, Known>, StoreError> {
    let (mut gateways, mut epochs, mut names) = (Vec::new(), Vec::new(), Vec::new());
    for key in wanted {
        gateways.push(key.gateway);
        epochs.push(key.epoch);
        names.push(key.name.as_str());
    }
    let select = transaction.prepare_cached(SELECT).await?;
    let rows = transaction.query(&select, &[&gateways, &epochs, &names]).await?;
    let read = |row: &tokio_postgres::Row| {
        let key = MachineKey { gateway: row.get(0), epoch: row.get(1), name: row.get(2) };
        let Word(criticality) = row.try_get(7)?;
        let known = Known {
            id: row.get(3),
            key: row.get(4),
            ignored: row.get(5),
            shown: row.get(6),
            criticality,
            sensors: row.get(8),
            positions: row.get(9),
            revision: row.get(10),
        };
        Ok((key, known))
    };
    rows.iter().map(read).collect()
}

/// The machine, made if it is not there, locked against other catalogs until the transaction's end.
pub async fn lock_machine(transaction: &Transaction<'_>, key: &MachineKey) -> Result<Known, StoreError> {
    let insert = transaction
        .prepare_cached("INSERT INTO machines (id, gateway_id, name) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING")
        .await?;
    transaction.execute(&insert, &[&Uuid::now_v7(), &key.gateway, &key.name]).await?;
    let lock = transaction
        .prepare_cached("SELECT 1 FROM machines WHERE gateway_id = $1 AND name = $2 FOR NO KEY UPDATE")
        .await?;
    transaction.execute(&lock, &[&key.gateway, &key.name]).await?;
    // Read anew, now that nobody else can add to it.
    let mut known = machines(transaction, std::iter::once(key)).await?;
    known.remove(key).ok_or_else(|| StoreError::Missing("the machine that was just locked"))
}

/// Writes a catalog of a locked machine; `positions` are ours, by the catalog's order.
pub async fn write(
    transaction: &Transaction<'_>,
    epoch: i64,
    catalog: &Catalog,
    positions: Vec<i16>,
    known: Known,
) -> Result<Known, StoreError> {
    let machine = known.id;
    let names: Vec<&str> = catalog.sensors.iter().map(|sensor| sensor.id.as_str()).collect();
    let units: Vec<Option<&str>> = catalog.sensors.iter().map(|sensor| sensor.unit.as_deref()).collect();
    let sensors = transaction
        .prepare_cached(
            "INSERT INTO sensors (machine_id, position, name, unit)
             SELECT $1, * FROM unnest($2::smallint[], $3::text[], $4::text[])
             ON CONFLICT (machine_id, position) DO UPDATE SET unit = coalesce(excluded.unit, sensors.unit)",
        )
        .await?;
    transaction.execute(&sensors, &[&machine, &positions, &names, &units]).await?;
    let revision = catalog.revision.cast_signed();
    let numbered = transaction
        .prepare_cached(
            "INSERT INTO catalogs (machine_id, epoch, revision, positions) VALUES ($1, $2, $3, $4)
             ON CONFLICT (machine_id, epoch) DO UPDATE
             SET revision = excluded.revision, positions = excluded.positions, updated_at = now()",
        )
        .await?;
    transaction.execute(&numbered, &[&machine, &epoch, &revision, &positions]).await?;
    let update = transaction
        .prepare_cached(
            "UPDATE machines SET catalog_revision = $2, step_ms = $3, interval_ms = $4, model = $5 WHERE id = $1",
        )
        .await?;
    let (step, interval) = (catalog.step_ms.cast_signed(), catalog.interval_ms.cast_signed());
    transaction.execute(&update, &[&machine, &revision, &step, &interval, &catalog.model]).await?;

    let mut known = Known { positions, revision, ..known };
    let old = known.sensors.len();
    let mut new: Vec<(i16, &str)> = known.positions.iter().copied().zip(names).collect();
    new.sort_unstable();
    known.sensors.extend(new.into_iter().filter(|(at, _)| *at >= old as i16).map(|(_, name)| name.to_owned()));
    Ok(known)
}
