//! How good the alarm system is to the people in front of it: the figures of ISA-18.2 and EEMUA 191, from the alarms themselves.

use deadpool_postgres::Transaction;
use jiff::{SignedDuration, Timestamp};
use uuid::Uuid;

use super::StoreError;
use crate::{
    alarms::{
        CHATTER_RAISES, CHATTER_WITHIN,
        quality::{FLOOD, PERIOD, STALE_AFTER, TOP},
    },
    views::{AlarmQuality, ConditionCount},
};

/// The alarms that people were told of from `$1` (inclusive) to `$2`, of the site `$3` if it is given.
const TOLD: &str = "
    FROM alarms a WHERE a.annunciated_at >= $1 AND a.annunciated_at < $2 AND ($3::uuid IS NULL OR a.site_id = $3)";

/// Of which time and site.
#[derive(Debug, Clone, Copy)]
pub struct Span {
    pub from: Timestamp,
    /// Exclusive.
    pub to: Timestamp,
    pub site: Option<Uuid>,
    /// Operators at a time.
    pub operators: i32,
}

/// The figures of a span.
pub async fn read(transaction: &Transaction<'_>, span: Span) -> Result<AlarmQuality, StoreError> {
    let Span { from, to, site, operators } = span;
    let period_s = PERIOD.as_secs() as f64;
    let periods = (to.duration_since(from).as_secs_f64() / period_s).max(1.0);
    let rates = transaction
        .prepare_cached(&format!(
            "SELECT coalesce(sum(n), 0)::bigint, coalesce(max(n), 0)::bigint, count(*) FILTER (WHERE n > $5)
             FROM (SELECT count(*) AS n {TOLD}
                   GROUP BY floor(extract(epoch FROM a.annunciated_at - $1) / $4::float8)) counted"
        ))
        .await?;
    let flood = f64::from(FLOOD) * f64::from(operators);
    let row = transaction.query_one(&rates, &[&from, &to, &site, &period_s, &(flood as i64)]).await?;
    let (alarms, most, floods): (i64, i64, i64) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
    let operators_f = f64::from(operators);

    let pages = transaction
        .prepare_cached(
            "SELECT count(*) FROM notices
             WHERE created_at >= $1 AND created_at < $2 AND ($3::uuid IS NULL OR site_id = $3)
               AND role = 'operator' AND reason IN ('opened', 'severity_rose')",
        )
        .await?;
    let pages: i64 = transaction.query_one(&pages, &[&from, &to, &site]).await?.try_get(0)?;

    let standing = transaction
        .prepare_cached(
            "SELECT count(*) FROM alarms a
             WHERE a.raised_at <= $1 AND NOT a.late AND a.annunciated_at IS NOT NULL
               AND (a.state IN ('unacknowledged', 'acknowledged') OR a.returned_at > $2) AND a.raised_at < $2
               AND ($3::uuid IS NULL OR a.site_id = $3)",
        )
        .await?;
    let stale = to.saturating_sub(STALE_AFTER).unwrap_or(to);
    let stale: i64 = transaction.query_one(&standing, &[&stale, &to, &site]).await?.try_get(0)?;

    let acknowledged = transaction
        .prepare_cached(&format!(
            "SELECT count(*), percentile_cont(ARRAY[0.5::float8, 0.9::float8]) WITHIN GROUP (ORDER BY extract(epoch FROM a.acknowledged_at - a.annunciated_at))
             {TOLD} AND a.acknowledged_at >= a.annunciated_at"
        ))
        .await?;
    let row = transaction.query_one(&acknowledged, &[&from, &to, &site]).await?;
    let acknowledged: i64 = row.try_get(0)?;
    let seconds: Option<Vec<f64>> = row.try_get(1)?;
    let second = |i: usize| seconds.as_ref().and_then(|seconds| seconds.get(i).copied());

    let labels = transaction
        .prepare_cached(&format!(
            "SELECT count(*), count(*) FILTER (WHERE n.labelled_real) FROM anomalies n
             WHERE n.labelled_real IS NOT NULL AND n.id IN (SELECT a.anomaly_id {TOLD})"
        ))
        .await?;
    let row = transaction.query_one(&labels, &[&from, &to, &site]).await?;
    let (labelled, real): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);

    Ok(AlarmQuality {
        from,
        to,
        operators,
        alarms,
        rate: alarms as f64 / periods / operators_f,
        rate_max: most as f64 / operators_f,
        flood_percent: 100.0 * floods as f64 / periods.ceil(),
        pages,
        page_rate: pages as f64 / periods,
        stale,
        chattering: chattering(transaction, span).await?,
        acknowledged,
        acknowledge_s_median: second(0),
        acknowledge_s_p90: second(1),
        labelled,
        precision_percent: (labelled > 0).then(|| 100.0 * real as f64 / labelled as f64),
        top: top(transaction, span, alarms).await?,
    })
}

/// Conditions that were raised so often in so short a time.
async fn chattering(transaction: &Transaction<'_>, span: Span) -> Result<i64, StoreError> {
    let select = transaction
        .prepare_cached(&format!(
            "SELECT count(DISTINCT (subject, condition)) FROM (
                 SELECT coalesce(a.machine_id, a.gateway_id) AS subject, a.condition,
                        a.raised_at - lag(a.raised_at, $4) OVER (
                            PARTITION BY coalesce(a.machine_id, a.gateway_id), a.condition ORDER BY a.raised_at) AS took
                 {TOLD}) spaced
             WHERE extract(epoch FROM took) < $5::float8"
        ))
        .await?;
    let within = CHATTER_WITHIN.as_secs() as f64;
    let values: [&(dyn tokio_postgres::types::ToSql + Sync); 5] =
        [&span.from, &span.to, &span.site, &(CHATTER_RAISES - 1), &within];
    Ok(transaction.query_one(&select, &values).await?.try_get(0)?)
}

async fn top(transaction: &Transaction<'_>, span: Span, all: i64) -> Result<Vec<ConditionCount>, StoreError> {
    let select = transaction
        .prepare_cached(&format!(
            "SELECT shown.id, coalesce(shown.display_name, shown.name), told.gateway_id, g.name, told.condition, told.n, told.message
             FROM (SELECT coalesce(m.merged_into, m.id) AS shown_id, a.gateway_id, a.condition, count(*) AS n,
                          (array_agg(a.message ORDER BY a.raised_at DESC))[1] AS message
                   FROM alarms a LEFT JOIN machines m ON m.id = a.machine_id
                   WHERE a.id IN (SELECT a.id {TOLD})
                   GROUP BY 1, 2, 3 ORDER BY n DESC, a.condition, 1 LIMIT $4) told
             JOIN gateways g ON g.id = told.gateway_id LEFT JOIN machines shown ON shown.id = told.shown_id
             ORDER BY told.n DESC, told.condition, 1"
        ))
        .await?;
    let rows = transaction.query(&select, &[&span.from, &span.to, &span.site, &TOP]).await?;
    rows.iter()
        .map(|row| {
            let count: i64 = row.try_get(5)?;
            Ok(ConditionCount {
                machine_id: row.try_get(0)?,
                machine_name: row.try_get(1)?,
                gateway_id: row.try_get(2)?,
                gateway_name: row.try_get(3)?,
                condition: row.try_get(4)?,
                message: row.try_get(6)?,
                count,
                share_percent: 100.0 * count as f64 / all.max(1) as f64,
            })
        })
        .collect()
}

/// The longest span that is read.
pub const SPAN_MAX: SignedDuration = SignedDuration::from_hours(24 * 366);
