//! The rows behind a trend, grouped into its buckets: by the database, where they are rows; here, where they are packed. Only
//! the sensors asked for leave their arrays, and only one row for each bucket and sensor leaves the database.

use std::collections::HashMap;

use deadpool_postgres::Transaction;
use futures_util::future::try_join3;
use jiff::Timestamp;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::{
    StoreError, blocks,
    rollups::table,
    scoped::{keep_plans, send},
};
use crate::{
    history::{Level, Segment},
    series::{Cell, Collector, Kept, Plan, Series},
};

/// What is no number is left out; an interval without any still has its verdict.
const INTERVALS: &str = "
    SELECT bucket, place, min(least) FILTER (WHERE weight > 0) AS min, max(most) FILTER (WHERE weight > 0) AS max,
           sum(mean * weight) FILTER (WHERE weight > 0) AS sum, sum(weight) AS weight,
           max(score) FILTER (WHERE score <> 'NaN') AS score,
           min(health_percent) FILTER (WHERE health_percent <> 'NaN') AS health
    FROM (
        SELECT date_bin(make_interval(secs => $4), start, 'epoch'::timestamptz) AS bucket, p.place,
               mins[p.position + 1] AS least, maxs[p.position + 1] AS most, means[p.position + 1] AS mean,
               CASE WHEN mins[p.position + 1] <> 'NaN' AND maxs[p.position + 1] <> 'NaN' AND means[p.position + 1] <> 'NaN'
                    THEN greatest(counts[p.position + 1], 1) ELSE 0 END::float8 AS weight,
               score, health_percent
        FROM summaries LEFT JOIN unnest($5::int2[], $6::int4[]) AS p (position, place) ON true
        WHERE machine_key = $1 AND start >= $2 AND start < $3
        OFFSET 0
    ) AS cells
    GROUP BY 1, 2";

/// Of hours or days.
fn rollups(level: Level) -> String {
    format!(
        "SELECT date_bin(make_interval(secs => $4), start, 'epoch'::timestamptz) AS bucket, p.place,
                min(mins[p.position + 1]) FILTER (WHERE weights[p.position + 1] > 0) AS min,
                max(maxs[p.position + 1]) FILTER (WHERE weights[p.position + 1] > 0) AS max,
                sum(means[p.position + 1] * weights[p.position + 1]) FILTER (WHERE weights[p.position + 1] > 0) AS sum,
                sum(weights[p.position + 1])::float8 AS weight, max(score_max) AS score, min(health_min) AS health
         FROM {} LEFT JOIN unnest($5::int2[], $6::int4[]) AS p (position, place) ON true
         WHERE machine_key = $1 AND start >= $2 AND start < $3
         GROUP BY 1, 2",
        table(level)
    )
}

/// For [`stored`]: the planner cannot know how few buckets there are, and would sort millions of rows to group them (measured:
/// 30 days of 8 sensors in 0.8 s instead of 2.3 s).
const PLANNER: &str = "SET LOCAL enable_sort = off";

/// One of the machines that are shown as one, and where its sensors stand in the answer.
struct Part {
    key: i32,
    positions: Vec<i16>,
    places: Vec<i32>,
}

/// The trends of these sensors (name and unit) of a machine and of those that are shown as a part of it. The transaction is for
/// nothing else after this (its planner is set for such queries), and began with [`blocks::one_moment`].
///
/// # Errors
/// If the database is away, or a block is damaged.
pub async fn read(
    transaction: &Transaction<'_>,
    machine: Uuid,
    sensors: Vec<(String, Option<String>)>,
    plan: Plan,
) -> Result<Series, StoreError> {
    let parts = parts(transaction, machine, &sensors).await?;
    let kept = kept(transaction, &parts, &plan).await?;
    let plan = plan.within(&kept);
    let segments = plan.segments(&kept);
    let mut collector = Collector::new(plan, sensors);
    for part in &parts {
        for segment in segments.iter().filter(|segment| segment.level == Level::Interval) {
            packed(transaction, part, segment, &mut collector).await?;
        }
    }
    // Whatever the range, it is the index of a machine's rows: to plan over the partitions took as long as to read what is not packed yet.
    keep_plans(transaction)?;
    send(transaction, PLANNER)?;
    for part in &parts {
        for segment in &segments {
            stored(transaction, part, segment, plan.bucket_ms, &mut collector).await?;
        }
    }
    Ok(collector.finish())
}

async fn parts(
    transaction: &Transaction<'_>,
    machine: Uuid,
    sensors: &[(String, Option<String>)],
) -> Result<Vec<Part>, StoreError> {
    let names: Vec<&str> = sensors.iter().map(|(name, _)| name.as_str()).collect();
    let places: HashMap<&str, i32> = names.iter().copied().zip(0..).collect();
    let group = transaction
        .prepare_cached(
            "SELECT m.key, coalesce(array_agg(s.position) FILTER (WHERE s.name = ANY($2)), '{}') AS positions,
                    coalesce(array_agg(s.name) FILTER (WHERE s.name = ANY($2)), '{}') AS names
             FROM machines m LEFT JOIN sensors s ON s.machine_id = m.id
             WHERE m.id = $1 OR m.merged_into = $1 GROUP BY m.key",
        )
        .await?;
    let group = transaction.query(&group, &[&machine, &names]).await?;
    let part = |row: &tokio_postgres::Row| {
        let named: Vec<&str> = row.try_get("names")?;
        let places = named.iter().filter_map(|name| places.get(name).copied()).collect();
        Ok(Part { key: row.try_get("key")?, positions: row.try_get("positions")?, places })
    };
    group.iter().map(part).collect()
}

/// From when on there are intervals and hours, where the range's beginning has coarser rows only.
async fn kept(transaction: &Transaction<'_>, parts: &[Part], plan: &Plan) -> Result<Kept, StoreError> {
    let first = |of: &'static str| async move {
        let select = format!(
            "SELECT min(first.start) FROM unnest($1::int4[]) AS keys (key)
             CROSS JOIN LATERAL (SELECT start FROM {of} WHERE machine_key = key ORDER BY start LIMIT 1) AS first"
        );
        let keys: Vec<i32> = parts.iter().map(|part| part.key).collect();
        let select = transaction.prepare_cached(&select).await?;
        Ok::<Option<Timestamp>, StoreError>(transaction.query_one(&select, &[&keys]).await?.try_get(0)?)
    };
    if plan.level == Level::Day {
        return Ok(Kept::default());
    }
    let packed = first("summary_blocks").await?;
    if plan.level == Level::Interval && packed.is_some_and(|first| first <= plan.from) {
        // There are intervals in all of the range.
        return Ok(Kept::default());
    }
    // They travel together.
    let (day, hours, stored) = try_join3(first("rollup_days"), first("rollup_hours"), first("summaries")).await?;
    let intervals = match (packed, stored) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    };
    Ok(Kept::new(intervals, hours, day))
}

/// Adds what the database groups.
async fn stored(
    transaction: &Transaction<'_>,
    part: &Part,
    segment: &Segment,
    bucket_ms: i64,
    collector: &mut Collector,
) -> Result<(), StoreError> {
    let select = match segment.level {
        Level::Interval => INTERVALS.to_owned(),
        level => rollups(level),
    };
    let select = transaction.prepare_cached(&select).await?;
    let bucket_s = bucket_ms as f64 / 1_000.0;
    let asked: [&(dyn ToSql + Sync); 6] =
        [&part.key, &segment.from, &segment.to, &bucket_s, &part.positions, &part.places];
    for row in transaction.query(&select, &asked).await? {
        let bucket = row.try_get("bucket")?;
        collector.add_verdict(bucket, row.try_get("score")?, row.try_get("health")?);
        let (place, weight): (Option<i32>, Option<f64>) = (row.try_get("place")?, row.try_get("weight")?);
        let Some((place, weight)) = place.zip(weight.filter(|weight| *weight > 0.0)) else { continue };
        let cell = Cell { min: row.try_get("min")?, max: row.try_get("max")?, sum: row.try_get("sum")?, weight };
        collector.add(usize::try_from(place).unwrap_or(usize::MAX), bucket, cell);
    }
    Ok(())
}

/// Adds what lies in blocks.
async fn packed(
    transaction: &Transaction<'_>,
    part: &Part,
    segment: &Segment,
    collector: &mut Collector,
) -> Result<(), StoreError> {
    let places: HashMap<i16, i32> = part.positions.iter().copied().zip(part.places.iter().copied()).collect();
    for block in blocks::trend(transaction, part.key, segment.from, segment.to, &part.positions).await? {
        let starts = &block.machine.starts;
        let inside = |i: &usize| starts[*i] >= segment.from && starts[*i] < segment.to;
        for i in (0..starts.len()).filter(inside) {
            collector.add_verdict(starts[i], block.machine.score[i], block.machine.health_percent[i]);
        }
        for (position, figures) in &block.sensors {
            let place = places.get(position).and_then(|place| usize::try_from(*place).ok()).unwrap_or(usize::MAX);
            for i in (0..starts.len()).filter(inside) {
                let (min, max, mean) = (figures.mins[i], figures.maxs[i], figures.means[i]);
                if min.is_nan() || max.is_nan() || mean.is_nan() {
                    continue;
                }
                let weight = f64::from(figures.counts[i].max(1));
                collector.add(place, starts[i], Cell { min, max, sum: mean * weight, weight });
            }
        }
    }
    Ok(())
}
