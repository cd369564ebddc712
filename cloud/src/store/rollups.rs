//! Hours and days of each machine, kept in the transaction that stores the intervals.

use deadpool_postgres::Transaction;
use jiff::Timestamp;
use tokio_postgres::Row;

use super::{StoreError, energy};
use crate::{
    energy::profile,
    history::{
        Level, SummaryRow,
        rollup::{Rollup, Rollups, SensorRollup, gather},
    },
};

/// Rollups of one statement.
const ROWS_MAX: usize = 1_000;

const COLUMNS: &str = "machine_key, start, last_start, intervals, counts, weights, mins, maxs, means, squares, lasts, \
                       last_ms, score_max, health_min, energy_wh, mode_ms, anomalous_ms";

/// The table of a level that has one of its own.
#[must_use]
pub(super) const fn table(level: Level) -> &'static str {
    match level {
        Level::Hour => "rollup_hours",
        Level::Day => "rollup_days",
        Level::Interval => "summaries",
    }
}

/// Adds intervals that were stored in this transaction, and were not before.
///
/// # Errors
/// If the database cannot be reached or refuses.
pub async fn add(transaction: &Transaction<'_>, rows: &[SummaryRow]) -> Result<(), StoreError> {
    if rows.is_empty() {
        return Ok(());
    }
    let hours = gather(rows, Level::Hour);
    let mut keys: Vec<i32> = hours.keys().map(|(key, _)| *key).collect();
    keys.dedup();
    // A machine's rollups are one transaction's at a time: what is read below is what is written over. In the order in which
    // the machines' states are written, so that nobody waits for whom it holds up.
    let lock =
        transaction.prepare_cached("SELECT FROM machines WHERE key = ANY($1) ORDER BY id FOR NO KEY UPDATE").await?;
    transaction.query(&lock, &[&keys]).await?;
    merge(transaction, Level::Hour, hours).await?;
    merge(transaction, Level::Day, gather(rows, Level::Day)).await?;
    energy::add(transaction, &profile::gather(rows)).await
}

/// Merges these rollups into those that are there; the machines are locked.
async fn merge(transaction: &Transaction<'_>, level: Level, mut rollups: Rollups) -> Result<(), StoreError> {
    let select = format!(
        "SELECT {COLUMNS} FROM {} JOIN unnest($1::int4[], $2::timestamptz[]) AS wanted (machine_key, start)
         USING (machine_key, start)",
        table(level)
    );
    let select = transaction.prepare_cached(&select).await?;
    let (keys, starts): (Vec<i32>, Vec<Timestamp>) = rollups.keys().copied().unzip();
    for (keys, starts) in keys.chunks(ROWS_MAX).zip(starts.chunks(ROWS_MAX)) {
        for row in transaction.query(&select, &[&keys, &starts]).await? {
            let (key, mut known) = read(&row)?;
            if let Some(new) = rollups.get_mut(&key) {
                known.merge(new);
                *new = known;
            }
        }
    }
    write(transaction, level, &rollups).await
}

fn read(row: &Row) -> Result<((i32, Timestamp), Rollup), StoreError> {
    let (counts, weights): (Vec<i64>, Vec<i64>) = (row.try_get(4)?, row.try_get(5)?);
    let mut figures: [Vec<f64>; 5] = Default::default();
    for (i, list) in figures.iter_mut().enumerate() {
        *list = row.try_get(6 + i)?;
    }
    let last_ms: Vec<i32> = row.try_get(11)?;
    let modes: Vec<i64> = row.try_get(15)?;
    let at = |list: usize, i: usize| figures[list].get(i).copied().unwrap_or(f64::NAN);
    let sensor = |(i, count): (usize, &i64)| SensorRollup {
        count: *count,
        weight: weights.get(i).copied().unwrap_or_default(),
        min: at(0, i),
        max: at(1, i),
        mean: at(2, i),
        squares: at(3, i),
        last: at(4, i),
        last_ms: last_ms.get(i).copied().unwrap_or(-1),
    };
    let rollup = Rollup {
        last_start: row.try_get(2)?,
        intervals: row.try_get(3)?,
        sensors: counts.iter().enumerate().map(sensor).collect(),
        score_max: row.try_get(12)?,
        health_min: row.try_get(13)?,
        energy_wh: row.try_get(14)?,
        mode_ms: modes.try_into().unwrap_or_default(),
        anomalous_ms: row.try_get(16)?,
    };
    Ok(((row.try_get(0)?, row.try_get(1)?), rollup))
}

/// Writes rollups over those that are there.
///
/// # Errors
/// If the database cannot be reached or refuses.
pub async fn write(transaction: &Transaction<'_>, level: Level, rollups: &Rollups) -> Result<(), StoreError> {
    // Lists of lists do not travel: all sensors of all rows are one list, and a row knows its part of it.
    let insert = format!(
        "INSERT INTO {table} ({COLUMNS})
         SELECT r.machine_key, r.start, r.last_start, r.intervals, ($5::int8[])[a:b], ($6::int8[])[a:b], ($7::float8[])[a:b],
                ($8::float8[])[a:b], ($9::float8[])[a:b], ($10::float8[])[a:b], ($11::float8[])[a:b], ($12::int4[])[a:b],
                r.score_max, r.health_min, r.energy_wh, ($16::int8[])[4 * n - 3:4 * n], r.anomalous_ms
         FROM unnest($1::int4[], $2::timestamptz[], $3::timestamptz[], $4::int4[], $13::float4[], $14::float4[],
                     $15::float8[], $17::int8[], $18::int4[], $19::int4[]) WITH ORDINALITY
              AS r (machine_key, start, last_start, intervals, score_max, health_min, energy_wh, anomalous_ms, a, b, n)
         ON CONFLICT (machine_key, start) DO UPDATE SET
             last_start = excluded.last_start, intervals = excluded.intervals, counts = excluded.counts,
             weights = excluded.weights, mins = excluded.mins, maxs = excluded.maxs, means = excluded.means,
             squares = excluded.squares, lasts = excluded.lasts, last_ms = excluded.last_ms,
             score_max = excluded.score_max, health_min = excluded.health_min, energy_wh = excluded.energy_wh,
             mode_ms = excluded.mode_ms, anomalous_ms = excluded.anomalous_ms",
        table = table(level)
    );
    let insert = transaction.prepare_cached(&insert).await?;
    let all: Vec<_> = rollups.iter().collect();
    for part in all.chunks(ROWS_MAX) {
        let of = |figure: fn(&SensorRollup) -> f64| sensors(part, figure);
        let mut end = 0;
        let ends: Vec<i32> = part
            .iter()
            .map(|(_, rollup)| {
                end += rollup.sensors.len() as i32;
                end
            })
            .collect();
        let begins: Vec<i32> = part.iter().zip(&ends).map(|((_, r), end)| end - r.sensors.len() as i32 + 1).collect();
        transaction
            .execute(
                &insert,
                &[
                    &rows(part, |(key, _), _| *key),
                    &rows(part, |(_, start), _| *start),
                    &rows(part, |_, rollup| rollup.last_start),
                    &rows(part, |_, rollup| rollup.intervals),
                    &sensors(part, |sensor| sensor.count),
                    &sensors(part, |sensor| sensor.weight),
                    &of(|sensor| sensor.min),
                    &of(|sensor| sensor.max),
                    &of(|sensor| sensor.mean),
                    &of(|sensor| sensor.squares),
                    &of(|sensor| sensor.last),
                    &sensors(part, |sensor| sensor.last_ms),
                    &rows(part, |_, rollup| rollup.score_max),
                    &rows(part, |_, rollup| rollup.health_min),
                    &rows(part, |_, rollup| rollup.energy_wh),
                    &part.iter().flat_map(|(_, rollup)| rollup.mode_ms).collect::<Vec<i64>>(),
                    &rows(part, |_, rollup| rollup.anomalous_ms),
                    &begins,
                    &ends,
                ],
            )
            .await?;
    }
    Ok(())
}

type Part<'a> = (&'a (i32, Timestamp), &'a Rollup);

fn rows<T>(part: &[Part<'_>], column: impl Fn(&(i32, Timestamp), &Rollup) -> T) -> Vec<T> {
    part.iter().map(|(key, rollup)| column(key, rollup)).collect()
}

fn sensors<T>(part: &[Part<'_>], column: impl Fn(&SensorRollup) -> T) -> Vec<T> {
    part.iter().flat_map(|(_, rollup)| &rollup.sensors).map(column).collect()
}
