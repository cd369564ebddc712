//! The latest state of each machine.

use futures_util::future::try_join_all;
use jiff::Timestamp;
use tokio_postgres::Client;
use uuid::Uuid;

use super::{Store, StoreError, catalog};
use crate::machines::{Judged, Known};

/// How a machine is, as of its latest reading.
#[derive(Debug, Clone, PartialEq)]
pub struct StateRow {
    pub machine: Uuid,
    pub at: Timestamp,
    pub judged: Judged,
    /// By our position.
    pub values: Vec<Option<f64>>,
}

/// Writes states that are not older than what is there. The statements travel together.
pub async fn update(
    client: &Client,
    statement: &tokio_postgres::Statement,
    rows: &[StateRow],
) -> Result<(), StoreError> {
    try_join_all(rows.iter().map(async |row| {
        let Judged { detector, calibration_percent, note, score, health_percent, mode, remaining, .. } = &row.judged;
        let [likely_s, low_s, high_s] =
            remaining.map_or([None; 3], |life| [life.likely_s, life.low_s, life.high_s].map(Some));
        client
            .execute(
                statement,
                &[
                    &row.machine,
                    &row.at,
                    detector,
                    calibration_percent,
                    score,
                    health_percent,
                    mode,
                    &row.values,
                    note,
                    &likely_s,
                    &low_s,
                    &high_s,
                ],
            )
            .await
    }))
    .await?;
    Ok(())
}

/// The statement of [`update`]. A state from the future (a gateway's clock was ahead) gives way to any.
pub const UPDATE: &str = "
    UPDATE machines SET last_reading_at = $2, detector = $3, calibration_percent = $4, score = $5,
                        health_percent = $6, mode = $7, last_values = $8, detector_note = $9,
                        remaining_likely_s = $10, remaining_low_s = $11, remaining_high_s = $12
    WHERE id = $1 AND (last_reading_at IS NULL OR last_reading_at <= $2 OR last_reading_at > now() + interval '2 minutes')";

impl Store {
    /// Writes the states that live messages carried; `state` makes a machine's, from what is known of it. Those that
    /// were written.
    ///
    /// # Errors
    /// If the database cannot be reached or refuses.
    pub async fn write_states(
        &self,
        wanted: &[catalog::MachineKey],
        state: impl Fn(usize, &Known) -> Option<StateRow>,
    ) -> Result<Vec<Uuid>, StoreError> {
        let mut client = self.client().await?;
        let transaction = client.transaction().await?;
        let known = catalog::machines(&transaction, wanted.iter()).await?;
        transaction.commit().await?;
        let rows: Vec<StateRow> = wanted.iter().enumerate().filter_map(|(i, key)| state(i, known.get(key)?)).collect();
        let statement = client.prepare_cached(UPDATE).await?;
        update(&client, &statement, &rows).await?;
        Ok(rows.into_iter().map(|row| row.machine).collect())
    }
}
