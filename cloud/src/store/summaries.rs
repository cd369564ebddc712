//! The large table: a row for each machine and interval, in a partition for each day.

use std::{collections::BTreeSet, pin::pin};

use deadpool_postgres::Transaction;
use jiff::{Timestamp, civil::Date, tz::TimeZone};
use tokio_postgres::{binary_copy::BinaryCopyInWriter, types::Type};

use super::{Store, StoreError};

/// Of the advisory lock that keeps two programs from making the same partition.
const LOCK: i64 = 0x67_65_6d_62_62;

/// One machine over one interval, as it is stored; the arrays go by our positions.
#[derive(Debug, Clone, PartialEq)]
pub struct SummaryRow {
    pub machine_key: i32,
    pub start: Timestamp,
    pub interval_ms: i32,
    pub counts: Vec<i32>,
    pub mins: Vec<f64>,
    pub maxs: Vec<f64>,
    pub means: Vec<f64>,
    pub sds: Vec<f64>,
    pub lasts: Vec<f64>,
    pub qualities: Vec<u8>,
    pub detector: i16,
    pub score: Option<f32>,
    pub health_percent: Option<f32>,
    pub mode: i16,
    pub energy_wh: Option<f64>,
    pub clock_trusted: bool,
}

const TYPES: [Type; 16] = [
    Type::INT4,
    Type::TIMESTAMPTZ,
    Type::INT4,
    Type::INT4_ARRAY,
    Type::FLOAT8_ARRAY,
    Type::FLOAT8_ARRAY,
    Type::FLOAT8_ARRAY,
    Type::FLOAT8_ARRAY,
    Type::FLOAT8_ARRAY,
    Type::BYTEA,
    Type::INT2,
    Type::FLOAT4,
    Type::FLOAT4,
    Type::INT2,
    Type::FLOAT8,
    Type::BOOL,
];

/// The day (UTC) that a moment's row lies in.
#[must_use]
pub fn day(at: Timestamp) -> Date {
    at.to_zoned(TimeZone::UTC).date()
}

/// Writes rows, leaving out those whose machine and start are there; how many were new.
pub async fn insert(transaction: &Transaction<'_>, rows: &[SummaryRow]) -> Result<u64, StoreError> {
    if rows.is_empty() {
        return Ok(0);
    }
    transaction
        .batch_execute("CREATE TEMP TABLE IF NOT EXISTS summaries_staged (LIKE summaries) ON COMMIT DELETE ROWS")
        .await?;
    copy(transaction, "summaries_staged", rows).await?;
    let insert = "INSERT INTO summaries SELECT * FROM summaries_staged ON CONFLICT DO NOTHING";
    Ok(transaction.execute(insert, &[]).await?)
}

/// Copies rows into a table of the form of `summaries`.
pub async fn copy(transaction: &Transaction<'_>, table: &str, rows: &[SummaryRow]) -> Result<u64, StoreError> {
    let sink = transaction.copy_in(&format!("COPY {table} FROM STDIN BINARY")).await?;
    let mut writer = pin!(BinaryCopyInWriter::new(sink, &TYPES));
    for row in rows {
        writer
            .as_mut()
            .write(&[
                &row.machine_key,
                &row.start,
                &row.interval_ms,
                &row.counts,
                &row.mins,
                &row.maxs,
                &row.means,
                &row.sds,
                &row.lasts,
                &row.qualities,
                &row.detector,
                &row.score,
                &row.health_percent,
                &row.mode,
                &row.energy_wh,
                &row.clock_trusted,
            ])
            .await?;
    }
    Ok(writer.finish().await?)
}

impl Store {
    /// Makes the partitions of these days, where they are missing.
    ///
    /// # Errors
    /// If the database cannot be reached or refuses.
    pub async fn make_days(&self, days: &BTreeSet<Date>) -> Result<(), StoreError> {
        if days.is_empty() {
            return Ok(());
        }
        let mut client = self.client().await?;
        let transaction = client.transaction().await?;
        transaction.execute("SELECT pg_advisory_xact_lock($1)", &[&LOCK]).await?;
        for date in days {
            let name = format!("summaries_{:04}{:02}{:02}", date.year(), date.month(), date.day());
            let known =
                transaction.query_one("SELECT to_regclass($1) IS NOT NULL", &[&format!("public.{name}")]).await?;
            let Ok(next) = date.tomorrow() else { continue };
            if known.get(0) {
                continue;
            }
            // Attaching takes a weaker lock than creating it in place: who reads the table need not wait.
            let make = format!(
                "CREATE TABLE {name} (LIKE summaries INCLUDING ALL);
                 ALTER TABLE summaries ATTACH PARTITION {name}
                     FOR VALUES FROM ('{date} 00:00:00+00') TO ('{next} 00:00:00+00')"
            );
            transaction.batch_execute(&make).await?;
        }
        Ok(transaction.commit().await?)
    }
}
