//! The partitions of the large tables: a day of intervals, a month of hours. Made ahead and on demand.

use std::collections::BTreeSet;

use deadpool_postgres::Transaction;
use jiff::{Timestamp, ToSpan as _, civil::Date};

use super::{Store, StoreError};
use crate::history::midnight;

/// Of the advisory lock that keeps two programs from making the same partition.
const LOCK: i64 = 0x67_65_6d_62_62;
/// How long making and dropping partitions waits for others: who writes meanwhile waits behind it.
pub(super) const PATIENCE: &str = "SET LOCAL lock_timeout = '1s'";

/// The tables that have a partition for each day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Daily {
    Summaries,
    Blocks,
    SensorBlocks,
}

impl Daily {
    pub(super) const ALL: [Self; 3] = [Self::Summaries, Self::Blocks, Self::SensorBlocks];

    pub(super) const fn table(self) -> &'static str {
        match self {
            Self::Summaries => "summaries",
            Self::Blocks => "summary_blocks",
            Self::SensorBlocks => "sensor_blocks",
        }
    }

    pub(super) fn partition(self, day: Date) -> String {
        format!("{}_{:04}{:02}{:02}", self.table(), day.year(), day.month(), day.day())
    }
}

/// The partition of the hours of a month; `month` is its first day.
pub(super) fn month_partition(month: Date) -> String {
    format!("rollup_hours_{:04}{:02}", month.year(), month.month())
}

/// Takes the lock under which partitions are made and dropped, until the transaction's end.
pub(super) async fn lock(transaction: &Transaction<'_>) -> Result<(), StoreError> {
    transaction.execute("SELECT pg_advisory_xact_lock($1)", &[&LOCK]).await?;
    Ok(())
}

pub(super) async fn exists(transaction: &Transaction<'_>, name: &str) -> Result<bool, StoreError> {
    // Not `to_regclass`: it may remember what somebody dropped a moment ago.
    let select = "SELECT EXISTS (SELECT FROM pg_class WHERE relname = $1 AND relnamespace = 'public'::regnamespace)";
    Ok(transaction.query_one(select, &[&name]).await?.try_get(0)?)
}

/// Makes the partition of a day where it is missing, and whether it was; under [`lock`].
pub(super) async fn make_day(transaction: &Transaction<'_>, of: Daily, day: Date) -> Result<bool, StoreError> {
    let Ok(next) = day.tomorrow() else { return Ok(false) };
    make(transaction, of.table(), &of.partition(day), (midnight(day), midnight(next)), "").await
}

/// Makes a partition where it is missing, and whether it was.
async fn make(
    transaction: &Transaction<'_>,
    table: &str,
    name: &str,
    (from, to): (Timestamp, Timestamp),
    with: &str,
) -> Result<bool, StoreError> {
    if exists(transaction, name).await? {
        return Ok(false);
    }
    // Attaching takes a weaker lock than creating it in place: who reads the table need not wait.
    let make = format!(
        "CREATE TABLE {name} (LIKE {table} INCLUDING ALL) {with};
         ALTER TABLE {table} ATTACH PARTITION {name} FOR VALUES FROM ('{from}') TO ('{to}')"
    );
    transaction.batch_execute(&make).await?;
    Ok(true)
}

impl Store {
    /// Makes the partitions that rows of these days need, where they are missing.
    ///
    /// # Errors
    /// If the database cannot be reached or refuses.
    pub async fn make_days(&self, days: &BTreeSet<Date>) -> Result<(), StoreError> {
        if days.is_empty() {
            return Ok(());
        }
        let mut client = self.client().await?;
        let transaction = client.transaction().await?;
        lock(&transaction).await?;
        let mut made = Vec::new();
        for day in days {
            if make_day(&transaction, Daily::Summaries, *day).await? {
                made.push(*day);
            }
        }
        let months: BTreeSet<Date> = days.iter().map(|day| day.first_of_month()).collect();
        for month in months {
            let Ok(next) = month.checked_add(1.month()) else { continue };
            let bounds = (midnight(month), midnight(next));
            // Rows of the present hour are updated again and again, in place where there is room beside them.
            make(&transaction, "rollup_hours", &month_partition(month), bounds, "WITH (fillfactor = 70)").await?;
        }
        // Rows are about to come: who packs leaves an empty partition alone for a while.
        let noted = "INSERT INTO history_days (day) SELECT unnest($1::date[]) ON CONFLICT (day) DO UPDATE SET touched_at = now()";
        transaction.execute(noted, &[&made]).await?;
        Ok(transaction.commit().await?)
    }
}
