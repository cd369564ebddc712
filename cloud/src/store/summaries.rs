//! The large table: a row for each machine and interval, in a partition for each day; and the rollups made of what is new in it.
//!
//! Late rows may have been packed, or dropped, meanwhile. Who writes such rows holds a lock, shared, on the
//! machine's slot; who packs it exclusively.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    pin::pin,
};

use deadpool_postgres::Transaction;
use jiff::{Timestamp, civil::Date};
use tokio_postgres::{Row, binary_copy::BinaryCopyInWriter, error::SqlState, types::Type};

use super::{StoreError, blocks, rollups};
pub use crate::history::{SummaryRow, day};
use crate::history::{late_before, rollup::once};

/// Slots of the locks between who writes old rows and who packs them: an advisory lock is (`SLOTS_LOCK`, slot).
const SLOTS_LOCK: i32 = 0x67_65_6d;
const SLOTS: i32 = 64;

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

/// The columns that [`read`] reads.
pub const COLUMNS: &str = "machine_key, start, interval_ms, counts, mins, maxs, means, sds, lasts, qualities, detector, \
                           score, health_percent, mode, energy_wh, clock_trusted";

/// A row of [`COLUMNS`].
///
/// # Errors
/// If a column has another type.
pub fn read(row: &Row) -> Result<SummaryRow, StoreError> {
    Ok(SummaryRow {
        machine_key: row.try_get(0)?,
        start: row.try_get(1)?,
        interval_ms: row.try_get(2)?,
        counts: row.try_get(3)?,
        mins: row.try_get(4)?,
        maxs: row.try_get(5)?,
        means: row.try_get(6)?,
        sds: row.try_get(7)?,
        lasts: row.try_get(8)?,
        qualities: row.try_get(9)?,
        detector: row.try_get(10)?,
        score: row.try_get(11)?,
        health_percent: row.try_get(12)?,
        mode: row.try_get(13)?,
        energy_wh: row.try_get(14)?,
        clock_trusted: row.try_get(15)?,
    })
}

/// Writes rows and their share of hours and days, leaving out those whose machine and start are there already, in whatever
/// form; those that were new.
///
/// # Errors
/// If the database cannot be reached or refuses.
pub async fn insert(
    transaction: &Transaction<'_>,
    rows: Vec<SummaryRow>,
    now: Timestamp,
) -> Result<Vec<SummaryRow>, StoreError> {
    let rows = once(rows);
    let late_before = late_before(now);
    let (mut rows, late): (Vec<_>, Vec<_>) = rows.into_iter().partition(|row| row.start >= late_before);
    let (late, beyond) = if late.is_empty() { (late, Vec::new()) } else { sift(transaction, late).await? };
    rows.extend(late);
    let mut new = store(transaction, rows).await?;
    new.extend(beyond);
    rollups::add(transaction, &new).await?;
    Ok(new)
}

/// Of late rows: those that are not packed already, and those whose day's intervals were dropped and that go
/// on where the day ends: they are for the rollups only. (What was dropped is not known any more: an interval from before
/// the last one known of its day may have been counted.)
async fn sift(
    transaction: &Transaction<'_>,
    mut rows: Vec<SummaryRow>,
) -> Result<(Vec<SummaryRow>, Vec<SummaryRow>), StoreError> {
    let keys: BTreeSet<i32> = rows.iter().map(|row| row.machine_key).collect();
    let keys: Vec<i32> = keys.into_iter().collect();
    let lock = "SELECT pg_advisory_xact_lock_shared($1, slot)
                FROM (SELECT DISTINCT unnest($2::int4[]) % $3 AS slot ORDER BY slot) AS slots";
    transaction.query(lock, &[&SLOTS_LOCK, &keys, &SLOTS]).await?;
    let days: BTreeSet<Date> = rows.iter().map(|row| day(row.start)).collect();
    let days: Vec<Date> = days.into_iter().collect();
    // Seldom enough that nobody waits for it.
    let touch = "INSERT INTO history_days (day) SELECT * FROM unnest($1::date[]) AS day ORDER BY day
                 ON CONFLICT (day) DO UPDATE SET touched_at = now()
                 WHERE history_days.touched_at < now() - interval '5 minutes'";
    transaction.execute(touch, &[&days]).await?;

    let dropped = dropped(transaction, &keys, &days).await?;
    let mut beyond: Vec<SummaryRow> =
        rows.extract_if(.., |row| dropped.contains_key(&(row.machine_key, day(row.start)))).collect();
    beyond.retain(|row| {
        dropped.get(&(row.machine_key, day(row.start))).is_some_and(|last| last.is_none_or(|last| row.start > last))
    });
    let packed: HashSet<(i32, Timestamp)> = blocks::starts(transaction, &rows).await?;
    rows.retain(|row| !packed.contains(&(row.machine_key, row.start)));
    Ok((rows, beyond))
}

/// Which machines' days have no intervals any more, with the last interval that is known of them.
async fn dropped(
    transaction: &Transaction<'_>,
    keys: &[i32],
    days: &[Date],
) -> Result<HashMap<(i32, Date), Option<Timestamp>>, StoreError> {
    let select = transaction
        .prepare_cached(
            "SELECT m.key, d.day, r.last_start
             FROM history_days d CROSS JOIN machines m
             JOIN sites s ON s.id = m.site_id
             LEFT JOIN rollup_days r ON r.machine_key = m.key AND r.start = d.day::timestamp AT TIME ZONE 'UTC'
             WHERE d.day = ANY($2) AND m.key = ANY($1)
               AND (d.dropped_at IS NOT NULL OR EXISTS (
                   SELECT FROM history_drops h WHERE h.organisation_id = s.organisation_id AND h.day = d.day))",
        )
        .await?;
    let rows = transaction.query(&select, &[&keys, &days]).await?;
    rows.iter().map(|row| Ok(((row.try_get(0)?, row.try_get(1)?), row.try_get(2)?))).collect()
}

/// Writes rows that lie in no block; those that were new.
async fn store(transaction: &Transaction<'_>, mut rows: Vec<SummaryRow>) -> Result<Vec<SummaryRow>, StoreError> {
    if rows.is_empty() {
        return Ok(rows);
    }
    // Beside each other what is read together, as far as it comes together.
    rows.sort_by_key(|row| (row.machine_key, row.start));
    // Nearly always all of them are new: then nothing is faster than COPY into the table itself.
    transaction.batch_execute("SAVEPOINT summaries").await?;
    match copy(transaction, "summaries", &rows).await {
        Ok(_) => {
            transaction.batch_execute("RELEASE SAVEPOINT summaries").await?;
            return Ok(rows);
        }
        Err(StoreError::Database(error)) if error.code() == Some(&SqlState::UNIQUE_VIOLATION) => {
            transaction.batch_execute("ROLLBACK TO SAVEPOINT summaries").await?;
        }
        Err(error) => return Err(error),
    }
    transaction
        .batch_execute("CREATE TEMP TABLE IF NOT EXISTS summaries_staged (LIKE summaries) ON COMMIT DELETE ROWS")
        .await?;
    copy(transaction, "summaries_staged", &rows).await?;
    let insert = "INSERT INTO summaries SELECT * FROM summaries_staged ON CONFLICT DO NOTHING
                  RETURNING machine_key, start";
    let new = transaction.query(insert, &[]).await?;
    let new = new.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?)));
    let new = new.collect::<Result<HashSet<(i32, Timestamp)>, StoreError>>()?;
    rows.retain(|row| new.contains(&(row.machine_key, row.start)));
    Ok(rows)
}

/// Copies rows into a table of the form of `summaries`.
///
/// # Errors
/// If the database cannot be reached or refuses.
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

/// Keeps who writes old rows of a machine away until the transaction's end; false while somebody does.
pub(super) async fn keep_away(transaction: &Transaction<'_>, machine_key: i32) -> Result<bool, StoreError> {
    let lock = "SELECT pg_try_advisory_xact_lock($1, $2)";
    Ok(transaction.query_one(lock, &[&SLOTS_LOCK, &(machine_key % SLOTS)]).await?.try_get(0)?)
}
