//! Packed intervals: a row for each machine and up to six hours, and one for each of its sensors.

use std::collections::{BTreeMap, HashSet};

use deadpool_postgres::Transaction;
use futures_util::future::try_join;
use jiff::Timestamp;

use super::StoreError;
use crate::history::{
    SummaryRow,
    block::{self, Figures, Machine, Packed},
};

/// For who reads packed and unpacked intervals together: all that this transaction reads from now on is of one moment, so that an
/// interval that is packed meanwhile is seen once. Nothing must have been read in it yet.
///
/// # Errors
/// If the database is away.
pub async fn one_moment(transaction: &Transaction<'_>) -> Result<(), StoreError> {
    // The locks come before the moment: a partition that is emptied before it is not dropped until this ends, and one that is
    // dropped has its rows in blocks.
    let sql = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY;
               LOCK TABLE ONLY summaries, ONLY summary_blocks, ONLY sensor_blocks IN ACCESS SHARE MODE";
    Ok(transaction.batch_execute(sql).await?)
}

/// Which of these rows' machines and starts lie in blocks.
pub(super) async fn starts(
    transaction: &Transaction<'_>,
    rows: &[SummaryRow],
) -> Result<HashSet<(i32, Timestamp)>, StoreError> {
    let mut ranges: BTreeMap<i32, (Timestamp, Timestamp)> = BTreeMap::new();
    for row in rows {
        let range = ranges.entry(row.machine_key).or_insert((row.start, row.start));
        *range = (range.0.min(row.start), range.1.max(row.start));
    }
    let wanted: HashSet<(i32, Timestamp)> = rows.iter().map(|row| (row.machine_key, row.start)).collect();
    let select = transaction
        .prepare_cached(
            "SELECT machine_key, intervals, machine FROM summary_blocks
             WHERE machine_key = $1 AND start <= $3 AND start > $2::timestamptz - interval '6 hours' AND last_start >= $2",
        )
        .await?;
    let mut known = HashSet::new();
    for (key, (first, last)) in ranges {
        for row in transaction.query(&select, &[&key, &first, &last]).await? {
            let machine = machine(row.try_get(1)?, row.try_get(2)?)?;
            known.extend(machine.starts.into_iter().map(|start| (key, start)).filter(|row| wanted.contains(row)));
        }
    }
    Ok(known)
}

fn machine(intervals: i32, bytes: &[u8]) -> Result<Machine, StoreError> {
    Ok(block::unpack_machine(bytes, count(intervals))?)
}

fn count(intervals: i32) -> usize {
    usize::try_from(intervals).unwrap_or_default()
}

/// A block to be written.
pub(super) struct Block {
    pub(super) start: Timestamp,
    pub(super) last_start: Timestamp,
    pub(super) intervals: i32,
    pub(super) packed: Packed,
}

/// Writes a block; the partitions are there.
pub(super) async fn write(transaction: &Transaction<'_>, machine_key: i32, block: &Block) -> Result<(), StoreError> {
    let Block { start, last_start, intervals, packed } = block;
    let insert = transaction
        .prepare_cached(
            "INSERT INTO summary_blocks (machine_key, start, last_start, intervals, machine) VALUES ($1, $2, $3, $4, $5)",
        )
        .await?;
    transaction.execute(&insert, &[&machine_key, start, last_start, intervals, &packed.machine]).await?;
    let sensors = transaction
        .prepare_cached(
            "INSERT INTO sensor_blocks (machine_key, start, position, figures, rest)
             SELECT $1, $2, * FROM unnest($3::int2[], $4::bytea[], $5::bytea[])",
        )
        .await?;
    let positions: Vec<i16> = (0..).take(packed.sensors.len()).collect();
    let (figures, rest): (Vec<&[u8]>, Vec<&[u8]>) =
        packed.sensors.iter().map(|(figures, rest)| (figures.as_slice(), rest.as_slice())).unzip();
    transaction.execute(&sensors, &[&machine_key, start, &positions, &figures, &rest]).await?;
    Ok(())
}

/// Takes a block out; its rows in order.
pub(super) async fn remove(
    transaction: &Transaction<'_>,
    machine_key: i32,
    start: Timestamp,
) -> Result<Vec<SummaryRow>, StoreError> {
    let block = "DELETE FROM summary_blocks WHERE machine_key = $1 AND start = $2 RETURNING intervals, machine";
    let Some(block) = transaction.query_opt(block, &[&machine_key, &start]).await? else { return Ok(Vec::new()) };
    let sensors = "DELETE FROM sensor_blocks WHERE machine_key = $1 AND start = $2 RETURNING position, figures, rest";
    let sensors = transaction.query(sensors, &[&machine_key, &start]).await?;
    let sensors = sensors.iter().map(|row| Ok((row.try_get(0)?, (row.try_get(1)?, row.try_get(2)?))));
    let sensors = sensors.collect::<Result<BTreeMap<i16, (Vec<u8>, Vec<u8>)>, StoreError>>()?;
    let sensors: Vec<_> = sensors.into_values().collect();
    Ok(block::unpack(machine_key, count(block.try_get(0)?), block.try_get(1)?, &sensors)?)
}

/// The rows of a block.
///
/// # Errors
/// If the database cannot be reached, or the block is damaged.
pub async fn rows(
    transaction: &Transaction<'_>,
    machine_key: i32,
    start: Timestamp,
) -> Result<Vec<SummaryRow>, StoreError> {
    let block = "SELECT intervals, machine FROM summary_blocks WHERE machine_key = $1 AND start = $2";
    let Some(block) = transaction.query_opt(block, &[&machine_key, &start]).await? else { return Ok(Vec::new()) };
    let sensors = "SELECT figures, rest FROM sensor_blocks WHERE machine_key = $1 AND start = $2 ORDER BY position";
    let sensors = transaction.query(sensors, &[&machine_key, &start]).await?;
    let sensors = sensors.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?)));
    let sensors = sensors.collect::<Result<Vec<(Vec<u8>, Vec<u8>)>, StoreError>>()?;
    Ok(block::unpack(machine_key, count(block.try_get(0)?), block.try_get(1)?, &sensors)?)
}

/// The starts of a machine's blocks that have intervals from `from` to `to`, exclusive.
///
/// # Errors
/// If the database cannot be reached.
pub async fn between(
    transaction: &Transaction<'_>,
    machine_key: i32,
    from: Timestamp,
    to: Timestamp,
) -> Result<Vec<Timestamp>, StoreError> {
    let select = "SELECT start FROM summary_blocks
                  WHERE machine_key = $1 AND start < $3 AND start > $2::timestamptz - interval '6 hours' AND last_start >= $2
                  ORDER BY start";
    let rows = transaction.query(select, &[&machine_key, &from, &to]).await?;
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

/// What a trend needs of a machine's blocks: what belongs to the machine, and the figures of some sensors by position.
pub(super) struct Trend {
    pub(super) machine: Machine,
    pub(super) sensors: Vec<(i16, Figures)>,
}

/// The blocks that have intervals from `from` to `to`, exclusive (and others beside).
pub(super) async fn trend(
    transaction: &Transaction<'_>,
    machine_key: i32,
    from: Timestamp,
    to: Timestamp,
    positions: &[i16],
) -> Result<Vec<Trend>, StoreError> {
    let blocks = transaction
        .prepare_cached(
            "SELECT start, intervals, machine FROM summary_blocks
             WHERE machine_key = $1 AND start < $3 AND start > $2::timestamptz - interval '6 hours' AND last_start >= $2",
        )
        .await?;
    let sensors = transaction
        .prepare_cached(
            "SELECT start, position, figures FROM sensor_blocks
             WHERE machine_key = $1 AND start < $3 AND start > $2::timestamptz - interval '6 hours' AND position = ANY($4)",
        )
        .await?;
    // They travel together.
    let (blocks, sensors) = try_join(
        transaction.query(&blocks, &[&machine_key, &from, &to]),
        transaction.query(&sensors, &[&machine_key, &from, &to, &positions]),
    )
    .await?;
    let mut found: BTreeMap<Timestamp, Trend> = BTreeMap::new();
    for row in &blocks {
        let machine = machine(row.try_get(1)?, row.try_get(2)?)?;
        found.insert(row.try_get(0)?, Trend { machine, sensors: Vec::new() });
    }
    for row in &sensors {
        let Some(trend) = found.get_mut(&row.try_get(0)?) else { continue };
        let figures = block::unpack_figures(row.try_get(2)?, trend.machine.starts.len())?;
        trend.sensors.push((row.try_get(1)?, figures));
    }
    Ok(found.into_values().collect())
}
