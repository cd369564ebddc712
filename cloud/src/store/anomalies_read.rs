//! Anomalies as they are shown.

use std::collections::HashMap;

use deadpool_postgres::Transaction;
use jiff::Timestamp;
use serde::Deserialize;
use tokio_postgres::{Row, types::Json};
use uuid::Uuid;

use super::StoreError;
use crate::views::{Anomaly, AnomalyDetail, Window, named_shares};

/// `shown` is the machine that the anomaly's machine is shown as.
const SELECT: &str = "
    SELECT a.id, a.machine_id AS own_machine_id, shown.id AS machine_id,
           coalesce(shown.display_name, shown.name) AS machine_name,
           a.opened_at, a.closed_at, a.score, a.score_max, a.threshold, a.shares, a.model, a.raw_window,
           a.labelled_real, a.labelled_at, labeller.name AS labelled_by
    FROM anomalies a
    JOIN machines m ON m.id = a.machine_id
    JOIN machines shown ON shown.id = coalesce(m.merged_into, m.id)
    LEFT JOIN users labeller ON labeller.id = a.labelled_by";

/// What anomalies to list; times are of their opening, `to` exclusive.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    pub machine: Option<Uuid>,
    /// `Some(true)`: not closed yet.
    pub open: Option<bool>,
    pub from: Option<Timestamp>,
    pub to: Option<Timestamp>,
}

/// Anomalies, the newest first, from behind `after`.
///
/// # Errors
/// If the database is away.
pub async fn list(
    transaction: &Transaction<'_>,
    filter: &Filter,
    after: Option<&(Timestamp, Uuid)>,
    limit: i64,
) -> Result<Vec<Anomaly>, StoreError> {
    let sql = format!(
        "{SELECT}
         WHERE ($1::uuid IS NULL OR m.id = $1 OR m.merged_into = $1)
           AND ($2::boolean IS NULL OR (a.closed_at IS NULL) = $2)
           AND ($3::timestamptz IS NULL OR a.opened_at >= $3)
           AND ($4::timestamptz IS NULL OR a.opened_at < $4)
           AND ($5::timestamptz IS NULL OR (a.opened_at, a.id) < ($5, $6::uuid))
         ORDER BY a.opened_at DESC, a.id DESC LIMIT $7"
    );
    let statement = transaction.prepare_cached(&sql).await?;
    let rows = transaction
        .query(
            &statement,
            &[
                &filter.machine,
                &filter.open,
                &filter.from,
                &filter.to,
                &after.map(|a| a.0),
                &after.map(|a| a.1),
                &limit,
            ],
        )
        .await?;
    let names = sensor_names(transaction, &rows).await?;
    rows.iter().map(|row| anomaly(row, &names)).collect()
}

/// These anomalies, in no order.
///
/// # Errors
/// If the database is away.
pub async fn by_ids(transaction: &Transaction<'_>, ids: &[Uuid]) -> Result<Vec<Anomaly>, StoreError> {
    let rows = rows_by_ids(transaction, ids).await?;
    let names = sensor_names(transaction, &rows).await?;
    rows.iter().map(|row| anomaly(row, &names)).collect()
}

/// An anomaly with the raw values around it.
///
/// # Errors
/// If the database is away.
pub async fn detail(transaction: &Transaction<'_>, id: Uuid) -> Result<Option<AnomalyDetail>, StoreError> {
    let rows = rows_by_ids(transaction, &[id]).await?;
    let names = sensor_names(transaction, &rows).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    let window: Option<Json<StoredWindow>> = row.try_get("raw_window")?;
    let empty = Vec::new();
    let names_here = names.get(&row.try_get::<_, Uuid>("own_machine_id")?).unwrap_or(&empty);
    let window = window.map(|Json(window)| window.named(names_here));
    Ok(Some(AnomalyDetail { anomaly: anomaly(row, &names)?, window }))
}

async fn rows_by_ids(transaction: &Transaction<'_>, ids: &[Uuid]) -> Result<Vec<Row>, StoreError> {
    let statement = transaction.prepare_cached(&format!("{SELECT} WHERE a.id = ANY($1)")).await?;
    Ok(transaction.query(&statement, &[&ids]).await?)
}

/// A machine's sensors' names by catalog position, for each machine of these rows (`own_machine_id`).
pub(super) type SensorNames = HashMap<Uuid, Vec<(i16, String)>>;

pub(super) async fn sensor_names(transaction: &Transaction<'_>, rows: &[Row]) -> Result<SensorNames, StoreError> {
    let mut machines: Vec<Uuid> = rows
        .iter()
        .filter_map(|row| row.try_get::<_, Option<Uuid>>("own_machine_id").transpose())
        .collect::<Result<_, _>>()?;
    machines.sort_unstable();
    machines.dedup();
    let mut names = SensorNames::new();
    if machines.is_empty() {
        return Ok(names);
    }
    let statement = transaction
        .prepare_cached(
            "SELECT machine_id, position, name FROM sensors WHERE machine_id = ANY($1) ORDER BY machine_id, position",
        )
        .await?;
    for row in transaction.query(&statement, &[&machines]).await? {
        names.entry(row.try_get(0)?).or_default().push((row.try_get(1)?, row.try_get(2)?));
    }
    Ok(names)
}

fn anomaly(row: &Row, names: &SensorNames) -> Result<Anomaly, StoreError> {
    let shares: Vec<f32> = row.try_get("shares")?;
    let names = names.get(&row.try_get::<_, Uuid>("own_machine_id")?).map_or(&[][..], Vec::as_slice);
    Ok(Anomaly {
        id: row.try_get("id")?,
        machine_id: row.try_get("machine_id")?,
        machine_name: row.try_get("machine_name")?,
        opened_at: row.try_get("opened_at")?,
        closed_at: row.try_get("closed_at")?,
        score: row.try_get("score")?,
        score_max: row.try_get("score_max")?,
        threshold: row.try_get("threshold")?,
        model: row.try_get("model")?,
        shares: named_shares(&shares, names),
        real: row.try_get("labelled_real")?,
        labelled_at: row.try_get("labelled_at")?,
        labelled_by: row.try_get("labelled_by")?,
    })
}

/// A raw window as intake stores it.
#[derive(Debug, Deserialize)]
struct StoredWindow {
    step_ms: u32,
    first: Timestamp,
    /// Catalog positions.
    sensors: Vec<i16>,
    /// A row a step.
    values: Vec<Vec<Option<f32>>>,
}

impl StoredWindow {
    fn named(self, names: &[(i16, String)]) -> Window {
        let name = |position: &i16| {
            let known = names.iter().find(|(at, _)| at == position);
            known.map_or_else(|| format!("#{position}"), |(_, name)| name.clone())
        };
        Window {
            step_ms: self.step_ms,
            first: self.first,
            sensors: self.sensors.iter().map(name).collect(),
            values: self.values,
        }
    }
}
