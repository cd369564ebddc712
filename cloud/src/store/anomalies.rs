//! Anomalies as gateways report them.

use deadpool_postgres::Transaction;
use gemba_shared::telemetry::{Anomaly, RawWindow};
use jiff::Timestamp;
use serde::Serialize;
use tokio_postgres::types::Json;
use uuid::Uuid;

use super::StoreError;
use crate::{clock, machines::Known};

#[derive(Debug, Serialize)]
struct StoredWindow {
    step_ms: u32,
    first: Timestamp,
    /// Our positions.
    sensors: Vec<i16>,
    /// A row a step; no value is null.
    values: Vec<Vec<Option<f32>>>,
}

/// An anomaly after an event of it was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    pub id: Uuid,
    pub closed: bool,
}

/// Writes what an event at `at` says of an anomaly.
pub async fn write(
    transaction: &Transaction<'_>,
    machine: &Known,
    anomaly: &Anomaly,
    opened: Timestamp,
    at: Timestamp,
    closed: Option<Timestamp>,
) -> Result<Written, StoreError> {
    let window = anomaly.window.as_ref().and_then(|window| stored(window, machine)).map(Json);
    let shares = machine.ordered(&anomaly.shares, 0.0);
    let write = transaction
        .prepare_cached(
            "INSERT INTO anomalies AS known (id, machine_id, opened_at, updated_at, closed_at, score, score_max,
                                             threshold, shares, model, raw_window)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
             ON CONFLICT (machine_id, opened_at) DO UPDATE SET
                 updated_at = greatest(known.updated_at, excluded.updated_at),
                 closed_at = coalesce(known.closed_at, excluded.closed_at),
                 score = excluded.score,
                 score_max = greatest(known.score_max, excluded.score_max),
                 threshold = excluded.threshold,
                 shares = excluded.shares,
                 model = excluded.model,
                 raw_window = coalesce(excluded.raw_window, known.raw_window)
             RETURNING id, closed_at IS NOT NULL",
        )
        .await?;
    let row = transaction
        .query_one(
            &write,
            &[
                &Uuid::now_v7(),
                &machine.id,
                &opened,
                &at,
                &closed,
                &anomaly.score,
                &anomaly.score_max,
                &anomaly.threshold,
                &shares,
                &anomaly.model,
                &window,
            ],
        )
        .await?;
    Ok(Written { id: row.get(0), closed: row.get(1) })
}

fn stored(window: &RawWindow, machine: &Known) -> Option<StoredWindow> {
    let ours = |position: &u16| machine.positions.get(usize::from(*position)).copied();
    // A gateway may report before its catalog has come.
    let sensors: Vec<i16> = window.sensors.iter().map(|at| ours(at).unwrap_or_else(|| at.cast_signed())).collect();
    let row = |row: &[f32]| row.iter().map(|value| Some(*value).filter(|value| value.is_finite())).collect();
    Some(StoredWindow {
        step_ms: window.step_ms,
        first: clock::from_wire(window.first)?,
        values: window.values.chunks(sensors.len().max(1)).map(row).collect(),
        sensors,
    })
}
