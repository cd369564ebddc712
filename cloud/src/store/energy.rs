//! What machines did over a range, from hours and days.

use deadpool_postgres::Transaction;
use jiff::Timestamp;

use super::{StoreError, rollups::table};
use crate::{
    energy::{Energy, MachineEnergy},
    history::{Level, segments},
};

/// Each shown machine with its parts from `from` to `to`, which are whole hours.
///
/// # Errors
/// If the database is away.
pub async fn by_machine(transaction: &Transaction<'_>, from: Timestamp, to: Timestamp) -> Result<Energy, StoreError> {
    // Machine by machine along the key: the planner cannot know how short the range is beside the table.
    let part = |level: Level, from: usize, to: usize| {
        format!(
            "SELECT coalesce(m.merged_into, m.id) AS id, r.energy_wh, r.mode_ms, r.anomalous_ms, r.health_min, r.score_max
             FROM machines m CROSS JOIN LATERAL (
                 SELECT * FROM {} r WHERE r.machine_key = m.key AND r.start >= ${from} AND r.start < ${to} OFFSET 0) AS r",
            table(level)
        )
    };
    let segments = segments(from, to, Level::Day, Level::Hour);
    let parts = segments.iter().enumerate().map(|(i, segment)| part(segment.level, 2 * i + 1, 2 * i + 2));
    let select = format!(
        "SELECT m.id, m.name, m.display_name, sum(r.energy_wh), coalesce(sum(r.mode_ms[1]), 0)::int8,
                coalesce(sum(r.mode_ms[2]), 0)::int8, coalesce(sum(r.mode_ms[3]), 0)::int8,
                coalesce(sum(r.mode_ms[4]), 0)::int8, coalesce(sum(r.anomalous_ms), 0)::int8, min(r.health_min),
                max(r.score_max)
         FROM machines m LEFT JOIN ({}) AS r ON r.id = m.id
         WHERE m.merged_into IS NULL AND NOT m.ignored
         GROUP BY m.id ORDER BY coalesce(m.display_name, m.name), m.id",
        parts.collect::<Vec<_>>().join(" UNION ALL ")
    );
    let bounds: Vec<Timestamp> = segments.iter().flat_map(|segment| [segment.from, segment.to]).collect();
    let bounds: Vec<&(dyn tokio_postgres::types::ToSql + Sync)> = bounds.iter().map(|at| at as _).collect();
    let rows = transaction.query(&transaction.prepare_cached(&select).await?, &bounds).await?;
    let hours = |ms: i64| ms as f64 / 3_600_000.0;
    let item = |row: &tokio_postgres::Row| {
        let [unknown, off, idle, running, anomalous] =
            [row.try_get(4)?, row.try_get(5)?, row.try_get(6)?, row.try_get(7)?, row.try_get(8)?].map(hours);
        Ok(MachineEnergy {
            machine: row.try_get(0)?,
            name: row.try_get(1)?,
            display_name: row.try_get(2)?,
            energy_wh: row.try_get(3)?,
            known_h: unknown + off + idle + running,
            running_h: running,
            idle_h: idle,
            off_h: off,
            anomalous_h: anomalous,
            health_percent_min: row.try_get(9)?,
            score_max: row.try_get(10)?,
        })
    };
    let items = rows.iter().map(item).collect::<Result<Vec<MachineEnergy>, StoreError>>()?;
    Ok(Energy { from, to, energy_wh: items.iter().filter_map(|item| item.energy_wh).sum(), items })
}
