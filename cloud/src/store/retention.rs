//! How long organisations keep their past. What is older is dropped: intervals by days, hours by months. Days are kept for ever.
//!
//! Intervals that came late are kept for as long from their arrival. Where all organisations are done with a day, its
//! partitions are dropped; where only some are, their rows are deleted.

use deadpool_postgres::Transaction;
use jiff::{Timestamp, civil::Date};
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    Store, StoreError,
    audit::{self, By, Change},
    partitions::{self, Daily, month_partition},
};
use crate::history::midnight;

/// How long an organisation keeps its past. Days, and energy by the hour, are kept for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Retention {
    /// Of intervals, in days from the end of their day, or from when they came where that was later. 30, if nobody said otherwise.
    #[schema(minimum = 1, maximum = 3_660)]
    pub intervals_days: i32,
    /// Of hours, in days; no shorter than intervals. 730, if nobody said otherwise.
    #[schema(minimum = 1, maximum = 3_660)]
    pub hours_days: i32,
}

/// What was dropped: days of intervals and months of hours, of everybody or of some organisations.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Dropped {
    pub days: usize,
    pub months: usize,
}

/// How long an organisation keeps its past.
///
/// # Errors
/// If the database is away.
pub async fn of(transaction: &Transaction<'_>, organisation: Uuid) -> Result<Retention, StoreError> {
    let select = "SELECT intervals_kept_days, hours_kept_days FROM organisations WHERE id = $1";
    let row = transaction.query_opt(select, &[&organisation]).await?.ok_or(StoreError::Missing("an organisation"))?;
    Ok(Retention { intervals_days: row.try_get(0)?, hours_days: row.try_get(1)? })
}

/// Sets it.
///
/// # Errors
/// If the database is away.
pub async fn set(
    transaction: &Transaction<'_>,
    organisation: Uuid,
    (before, after): (Retention, Retention),
    by: &By,
    now: Timestamp,
) -> Result<(), StoreError> {
    if before == after {
        return Ok(());
    }
    let update = "UPDATE organisations SET intervals_kept_days = $2, hours_kept_days = $3 WHERE id = $1";
    transaction.execute(update, &[&organisation, &after.intervals_days, &after.hours_days]).await?;
    let change = Change {
        action: "organisation.retention",
        object: "organisation",
        id: &organisation.to_string(),
        site: None,
        before: json!(before),
        after: json!(after),
    };
    audit::write(transaction, by, &change, now).await
}

impl Store {
    /// Drops what is no longer kept, a day or a month in each transaction.
    ///
    /// # Errors
    /// If the database cannot be reached, or somebody uses a table for so long that others would have to wait; what was
    /// dropped until then stays dropped.
    pub async fn drop_old(&self, now: Timestamp) -> Result<Dropped, StoreError> {
        let mut dropped = Dropped::default();
        let days = self
            .client()
            .await?
            .query(
                "SELECT d.day, bool_and(done.is), coalesce(array_agg(o.id) FILTER (WHERE done.is AND NOT known.is), '{}')
                 FROM history_days d CROSS JOIN organisations o
                 CROSS JOIN LATERAL (SELECT greatest((d.day + 1)::timestamp AT TIME ZONE 'UTC', d.touched_at)
                                            < $1::timestamptz - make_interval(days => o.intervals_kept_days) AS is) AS done
                 CROSS JOIN LATERAL (SELECT EXISTS (SELECT FROM history_drops h
                                                    WHERE h.organisation_id = o.id AND h.day = d.day) AS is) AS known
                 WHERE d.dropped_at IS NULL GROUP BY d.day HAVING bool_or(done.is AND NOT known.is) OR bool_and(done.is)
                 ORDER BY d.day",
                &[&now],
            )
            .await?;
        for row in days {
            let (day, all, some): (Date, bool, Vec<Uuid>) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
            let mut client = self.client().await?;
            let transaction = client.transaction().await?;
            if all {
                drop_day(&transaction, day).await?;
            } else {
                delete_day(&transaction, day, &some).await?;
            }
            transaction.commit().await?;
            dropped.days += 1;
        }
        dropped.months = self.drop_months(now).await?;
        Ok(dropped)
    }

    async fn drop_months(&self, now: Timestamp) -> Result<usize, StoreError> {
        let mut client = self.client().await?;
        let months = client
            .query(
                "SELECT month FROM (
                     SELECT to_date(substr(c.relname, 14), 'YYYYMM') AS month FROM pg_inherits i
                     JOIN pg_class c ON c.oid = i.inhrelid
                     WHERE i.inhparent = 'rollup_hours'::regclass AND c.relname ~ '^rollup_hours_\\d{6}$'
                 ) AS months
                 WHERE (month + interval '1 month') AT TIME ZONE 'UTC'
                     < $1::timestamptz - (SELECT make_interval(days => max(hours_kept_days)) FROM organisations)",
                &[&now],
            )
            .await?;
        for row in &months {
            let transaction = client.transaction().await?;
            partitions::lock(&transaction).await?;
            let name = month_partition(row.try_get(0)?);
            drop_partition(&transaction, "rollup_hours", &name).await?;
            transaction.commit().await?;
        }
        // Who keeps hours for a shorter time than others.
        client
            .execute(
                "DELETE FROM rollup_hours r USING machines m, sites s, organisations o
                 WHERE m.key = r.machine_key AND s.id = m.site_id AND o.id = s.organisation_id
                   AND o.hours_kept_days < (SELECT max(hours_kept_days) FROM organisations)
                   AND r.start < $1::timestamptz - make_interval(days => o.hours_kept_days)",
                &[&now],
            )
            .await?;
        Ok(months.len())
    }
}

async fn drop_day(transaction: &Transaction<'_>, day: Date) -> Result<(), StoreError> {
    partitions::lock(transaction).await?;
    for of in Daily::ALL {
        drop_partition(transaction, of.table(), &of.partition(day)).await?;
    }
    transaction.execute("UPDATE history_days SET dropped_at = now() WHERE day = $1", &[&day]).await?;
    transaction.execute("DELETE FROM history_drops WHERE day = $1", &[&day]).await?;
    Ok(())
}

async fn drop_partition(transaction: &Transaction<'_>, table: &str, name: &str) -> Result<(), StoreError> {
    if partitions::exists(transaction, name).await? {
        // The parent first, as who reads and writes locks them.
        let patience = partitions::PATIENCE;
        let sql = format!("{patience}; LOCK TABLE ONLY {table} IN ACCESS EXCLUSIVE MODE; DROP TABLE {name}");
        transaction.batch_execute(&sql).await?;
    }
    Ok(())
}

async fn delete_day(transaction: &Transaction<'_>, day: Date, organisations: &[Uuid]) -> Result<(), StoreError> {
    for of in Daily::ALL {
        let delete = format!(
            "DELETE FROM {} WHERE start >= $1 AND start < $2 AND machine_key IN (
                 SELECT m.key FROM machines m JOIN sites s ON s.id = m.site_id WHERE s.organisation_id = ANY($3))",
            of.table()
        );
        let to = day.tomorrow().map_or(Timestamp::MAX, midnight);
        transaction.execute(&delete, &[&midnight(day), &to, &organisations]).await?;
    }
    let noted = "INSERT INTO history_drops (organisation_id, day) SELECT unnest($1::uuid[]), $2 ON CONFLICT DO NOTHING";
    transaction.execute(noted, &[&organisations, &day]).await?;
    Ok(())
}
