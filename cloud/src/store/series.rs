//! The rows of summaries, grouped into the buckets of a trend by the database: only the sensors asked for leave
//! their arrays, and only one row for each bucket and sensor leaves the database.

use std::collections::HashMap;

use deadpool_postgres::Transaction;
use jiff::Timestamp;
use uuid::Uuid;

use super::StoreError;
use crate::series::{Cell, Collector, Plan, Series};

const CELLS: &str = "
    SELECT date_bin(make_interval(secs => $4), start, 'epoch'::timestamptz) AS bucket, p.place,
           min(mins[p.position + 1]) AS min, max(maxs[p.position + 1]) AS max,
           sum(means[p.position + 1] * greatest(counts[p.position + 1], 1)) AS sum,
           sum(greatest(counts[p.position + 1], 1))::float8 AS weight
    FROM summaries CROSS JOIN unnest($5::int2[], $6::int4[]) AS p (position, place)
    WHERE machine_key = $1 AND start >= $2 AND start < $3
      AND mins[p.position + 1] <> 'NaN' AND maxs[p.position + 1] <> 'NaN' AND means[p.position + 1] <> 'NaN'
    GROUP BY 1, 2";

const VERDICTS: &str = "
    SELECT date_bin(make_interval(secs => $4), start, 'epoch'::timestamptz) AS bucket,
           max(score) FILTER (WHERE score <> 'NaN') AS score,
           min(health_percent) FILTER (WHERE health_percent <> 'NaN') AS health
    FROM summaries WHERE machine_key = $1 AND start >= $2 AND start < $3
    GROUP BY 1";

/// The planner cannot know how few buckets there are, and would sort millions of rows to group them (measured:
/// 30 days of 8 sensors in 0.8 s instead of 2.3 s); and the range decides the plan.
const PLANNER: &str = "SET LOCAL enable_sort = off; SET LOCAL plan_cache_mode = force_custom_plan";

/// The trends of these sensors (name and unit) of a machine and of those that are shown as a part of it. The transaction is for
/// nothing else after this: its planner is set for such queries.
///
/// # Errors
/// If the database is away.
pub async fn read(
    transaction: &Transaction<'_>,
    machine: Uuid,
    sensors: Vec<(String, Option<String>)>,
    plan: Plan,
) -> Result<Series, StoreError> {
    let names: Vec<String> = sensors.iter().map(|(name, _)| name.clone()).collect();
    let places: HashMap<&str, i32> = names.iter().map(String::as_str).zip(0..).collect();
    transaction.batch_execute(PLANNER).await?;
    let group = transaction
        .prepare_cached(
            "SELECT m.key, coalesce(array_agg(s.position) FILTER (WHERE s.name = ANY($2)), '{}') AS positions,
                    coalesce(array_agg(s.name) FILTER (WHERE s.name = ANY($2)), '{}') AS names
             FROM machines m LEFT JOIN sensors s ON s.machine_id = m.id
             WHERE m.id = $1 OR m.merged_into = $1 GROUP BY m.key",
        )
        .await?;
    let cells = transaction.prepare_cached(CELLS).await?;
    let verdicts = transaction.prepare_cached(VERDICTS).await?;
    let first = Timestamp::from_millisecond(plan.first_ms).unwrap_or(plan.from);
    let bucket_s = plan.bucket_ms as f64 / 1_000.0;
    let group = transaction.query(&group, &[&machine, &names]).await?;
    let mut collector = Collector::new(plan, sensors);
    for part in group {
        let key: i32 = part.try_get("key")?;
        let positions: Vec<i16> = part.try_get("positions")?;
        let named: Vec<&str> = part.try_get("names")?;
        let here: Vec<i32> = named.iter().filter_map(|name| places.get(name).copied()).collect();
        for row in transaction.query(&cells, &[&key, &first, &plan.to, &bucket_s, &positions, &here]).await? {
            let cell = Cell {
                min: row.try_get("min")?,
                max: row.try_get("max")?,
                sum: row.try_get("sum")?,
                weight: row.try_get("weight")?,
            };
            let place = usize::try_from(row.try_get::<_, i32>("place")?).unwrap_or(usize::MAX);
            collector.add(place, row.try_get("bucket")?, cell);
        }
        for row in transaction.query(&verdicts, &[&key, &first, &plan.to, &bucket_s]).await? {
            collector.add_verdict(row.try_get("bucket")?, row.try_get("score")?, row.try_get("health")?);
        }
    }
    Ok(collector.finish())
}
