//! Packs intervals of windows and days that are over, a machine and a window at a time, each in a transaction of its own: an
//! interval is in the large table or in a block, never in both. What comes late goes into the table again, and is merged into its
//! block the next time. A day's partition without rows is dropped when the day is over.

use deadpool_postgres::Transaction;
use jiff::{Timestamp, civil::Date};
use tokio_postgres::error::SqlState;

use super::{
    Store, StoreError,
    blocks::{self, Block},
    partitions::{self, Daily},
    summaries::{self, COLUMNS},
};
use crate::history::{
    SummaryRow, WINDOW_MS,
    block::{self, BlockError},
    floor, window_end,
};

/// What one step did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packed {
    /// So many intervals were packed.
    Intervals(u64),
    /// Nothing is left.
    Done,
    /// Somebody writes old intervals of this machine: later.
    Busy,
}

impl Store {
    /// Days with a partition of intervals, that were over before `until` and that nothing came for since.
    ///
    /// # Errors
    /// If the database cannot be reached.
    pub async fn days_to_pack(&self, until: Timestamp) -> Result<Vec<Date>, StoreError> {
        let client = self.client().await?;
        let rows = client
            .query(
                "SELECT day FROM history_days
                 WHERE (day + 1)::timestamp AT TIME ZONE 'UTC' <= $1 AND touched_at <= $1
                   AND EXISTS (SELECT FROM pg_class WHERE relname = 'summaries_' || to_char(day, 'YYYYMMDD')
                               AND relnamespace = 'public'::regnamespace)
                 ORDER BY day",
                &[&until],
            )
            .await?;
        rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
    }

    /// The machines with unpacked intervals that began from `from` to `to`, exclusive.
    ///
    /// # Errors
    /// If the database cannot be reached.
    pub async fn machines_to_pack(&self, from: Timestamp, to: Timestamp) -> Result<Vec<i32>, StoreError> {
        // From one key to the next along the index.
        let rows = self
            .client()
            .await?
            .query(
                "WITH RECURSIVE keys (key) AS (
                     (SELECT machine_key FROM summaries WHERE start >= $1 AND start < $2 ORDER BY machine_key LIMIT 1)
                     UNION ALL
                     SELECT (SELECT machine_key FROM summaries
                             WHERE start >= $1 AND start < $2 AND machine_key > keys.key ORDER BY machine_key LIMIT 1)
                     FROM keys WHERE keys.key IS NOT NULL
                 )
                 SELECT key FROM keys WHERE key IS NOT NULL",
                &[&from, &to],
            )
            .await?;
        rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
    }

    /// The windows from `from` to `to`, exclusive, of which so many intervals of a machine are not packed: few late ones wait until
    /// their day is over.
    ///
    /// # Errors
    /// If the database cannot be reached.
    pub async fn windows_to_pack(
        &self,
        machine_key: i32,
        (from, to): (Timestamp, Timestamp),
        least: i64,
    ) -> Result<Vec<Timestamp>, StoreError> {
        let select = "SELECT date_bin(make_interval(secs => $4), start, 'epoch'::timestamptz) AS begin FROM summaries
                      WHERE machine_key = $1 AND start >= $2 AND start < $3 GROUP BY 1 HAVING count(*) >= $5 ORDER BY 1";
        let window_s = WINDOW_MS as f64 / 1e3;
        let client = self.client().await?;
        let rows = client.query(select, &[&machine_key, &from, &to, &window_s, &least]).await?;
        rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
    }

    /// Makes the partitions into which a day is packed, where they are missing.
    ///
    /// # Errors
    /// If the database cannot be reached or refuses.
    pub async fn make_blocks(&self, day: Date) -> Result<(), StoreError> {
        let mut client = self.client().await?;
        let transaction = client.transaction().await?;
        partitions::lock(&transaction).await?;
        for of in [Daily::Blocks, Daily::SensorBlocks] {
            partitions::make_day(&transaction, of, day).await?;
        }
        Ok(transaction.commit().await?)
    }

    /// Packs some intervals of a machine that began from `from` to `to`, exclusive, for whose days there is [`Self::make_blocks`].
    ///
    /// # Errors
    /// If the database cannot be reached, or a block there is damaged; nothing was changed then.
    pub async fn pack_some(&self, machine_key: i32, from: Timestamp, to: Timestamp) -> Result<Packed, StoreError> {
        let mut client = self.client().await?;
        let transaction = client.transaction().await?;
        if !summaries::keep_away(&transaction, machine_key).await? {
            return Ok(Packed::Busy);
        }
        let rows = some(&transaction, machine_key, from, to).await?;
        let (rows, known) = beside(&transaction, machine_key, rows).await?;
        let (Some(first), Some(last)) = (rows.first(), rows.last()) else { return Ok(Packed::Done) };
        let count = rows.len() as u64;
        let delete = "DELETE FROM summaries WHERE machine_key = $1 AND start >= $2 AND start <= $3";
        transaction.execute(delete, &[&machine_key, &first.start, &last.start]).await?;
        let mut merged = match known {
            Some(start) => blocks::remove(&transaction, machine_key, start).await?,
            None => Vec::new(),
        };
        merged.extend(rows);
        merged.sort_by_key(|row| row.start);
        let packed = tokio::task::spawn_blocking(move || pack(&merged)).await.map_err(StoreError::Interrupted)??;
        for block in &packed {
            blocks::write(&transaction, machine_key, block).await?;
        }
        transaction.commit().await?;
        Ok(Packed::Intervals(count))
    }

    /// Drops the partition of a day that has no unpacked interval any more; false where it has.
    ///
    /// # Errors
    /// If the database cannot be reached, or somebody uses the tables for so long that others would have to wait.
    pub async fn drop_packed(&self, day: Date) -> Result<bool, StoreError> {
        let name = Daily::Summaries.partition(day);
        let mut client = self.client().await?;
        let transaction = client.transaction().await?;
        if !partitions::exists(&transaction, &name).await? {
            return Ok(true);
        }
        transaction.commit().await?;
        // What was packed lies there as dead rows. Without them it is seen at once whether any are left, below, while others wait.
        client.batch_execute("SET statement_timeout = 0").await?;
        let cleaned = client.batch_execute(&format!("VACUUM {name}")).await;
        client.batch_execute("RESET statement_timeout").await?;
        match cleaned {
            // Somebody was faster.
            Err(error) if error.code() == Some(&SqlState::UNDEFINED_TABLE) => return Ok(true),
            cleaned => cleaned?,
        }
        let transaction = client.transaction().await?;
        partitions::lock(&transaction).await?;
        if !partitions::exists(&transaction, &name).await? {
            return Ok(true);
        }
        // In the order in which who writes locks them.
        let lock = "LOCK TABLE ONLY summaries IN ACCESS EXCLUSIVE MODE";
        let patience = partitions::PATIENCE;
        transaction
            .batch_execute(&format!("{patience}; SET LOCAL statement_timeout = '2s'; {lock}; LOCK TABLE {name}"))
            .await?;
        let empty = format!("SELECT NOT EXISTS (SELECT FROM {name})");
        let empty: bool = transaction.query_one(&empty, &[]).await?.try_get(0)?;
        if empty {
            transaction.batch_execute(&format!("DROP TABLE {name}")).await?;
        }
        transaction.commit().await?;
        Ok(empty)
    }
}

/// The first unpacked intervals of a machine in a range: of one window, and no more than a block takes.
async fn some(
    transaction: &Transaction<'_>,
    machine_key: i32,
    from: Timestamp,
    to: Timestamp,
) -> Result<Vec<SummaryRow>, StoreError> {
    let first = "SELECT start, cardinality(counts) FROM summaries
                 WHERE machine_key = $1 AND start >= $2 AND start < $3 ORDER BY start LIMIT 1";
    let first = transaction.query_opt(first, &[&machine_key, &from, &to]).await?;
    let Some(first) = first else { return Ok(Vec::new()) };
    let (start, sensors): (Timestamp, i32) = (first.try_get(0)?, first.try_get(1)?);
    let end = window_end(start).min(to);
    let select = format!(
        "SELECT {COLUMNS} FROM summaries WHERE machine_key = $1 AND start >= $2 AND start < $3 ORDER BY start LIMIT $4"
    );
    let limit = rows_max(usize::try_from(sensors).unwrap_or_default()) as i64;
    let rows = transaction.query(&select, &[&machine_key, &start, &end, &limit]).await?;
    rows.iter().map(summaries::read).collect()
}

/// Of these rows those before the next block, and the block before them where they belong into it: where they overlap, or
/// it has room.
async fn beside(
    transaction: &Transaction<'_>,
    machine_key: i32,
    mut rows: Vec<SummaryRow>,
) -> Result<(Vec<SummaryRow>, Option<Timestamp>), StoreError> {
    let Some(first) = rows.first() else { return Ok((rows, None)) };
    let (first, width) = (first.start, first.counts.len());
    let window = floor(first, WINDOW_MS);
    let end = window_end(first);
    // Blocks of earlier versions go over up to six hours.
    let known = "SELECT start, last_start, intervals FROM summary_blocks
                 WHERE machine_key = $1 AND start < $3 AND start > $2::timestamptz - interval '6 hours'
                   AND (start >= $2 OR last_start >= $4)
                 ORDER BY start";
    let mut before = None;
    for row in transaction.query(known, &[&machine_key, &window, &end, &first]).await? {
        let start: Timestamp = row.try_get(0)?;
        if start > first {
            rows.retain(|row| row.start < start);
            break;
        }
        let (last, intervals): (Timestamp, i32) = (row.try_get(1)?, row.try_get(2)?);
        let has_room = usize::try_from(intervals).unwrap_or(usize::MAX) < rows_max(width) / 2;
        before = (last >= first || has_room).then_some(start);
    }
    Ok((rows, before))
}

/// How many rows a block takes.
fn rows_max(width: usize) -> usize {
    (block::CELLS_MAX / width.max(1)).max(1)
}

fn pack(rows: &[SummaryRow]) -> Result<Vec<Block>, BlockError> {
    let width = rows.iter().map(|row| row.counts.len()).max().unwrap_or_default();
    let pieces =
        rows.chunks(rows_max(width)).filter_map(|piece| Some((piece.first()?.start, piece.last()?.start, piece)));
    pieces
        .map(|(start, last_start, piece)| {
            Ok(Block { start, last_start, intervals: piece.len() as i32, packed: block::pack(piece)? })
        })
        .collect()
}
