//! What reliability is made of: the hours of machines, their failures and repairs, what tickets cost.

use std::collections::HashMap;

use deadpool_postgres::Transaction;
use jiff::Timestamp;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::{StoreError, rollups::table, words::Word};
use crate::{
    history::{Level, segments},
    reliability::{Facts, Hours, Reliability, Reliable, Total},
};

/// What items are of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum By {
    #[default]
    Machine,
    Site,
}

/// A machine, or `None`: what is of the site alone.
type Place = (Uuid, Option<Uuid>);

/// Shown machines, or sites, from `from` to `to`, which are whole hours; of one site where that is named.
///
/// # Errors
/// If the database is away.
pub async fn read(
    transaction: &Transaction<'_>,
    by: By,
    site: Option<Uuid>,
    from: Timestamp,
    to: Timestamp,
) -> Result<Reliability, StoreError> {
    let mut places: HashMap<Place, Facts> = HashMap::new();
    hours(transaction, from, to, &mut places).await?;
    failures(transaction, from, to, &mut places).await?;
    costs(transaction, from, to, &mut places).await?;
    let names = match by {
        By::Machine => {
            "SELECT site_id, id, coalesce(display_name, name) FROM machines
             WHERE merged_into IS NULL AND NOT ignored AND ($1::uuid IS NULL OR site_id = $1) ORDER BY 3, 2"
        }
        By::Site => "SELECT id, NULL::uuid, name FROM sites WHERE $1::uuid IS NULL OR id = $1 ORDER BY 3, 1",
    };
    if by == By::Site {
        let mut sites: HashMap<Place, Facts> = HashMap::new();
        for ((site, _), facts) in &places {
            sites.entry((*site, None)).or_default().add(facts);
        }
        places = sites;
    }
    let rows = transaction.query(&transaction.prepare_cached(names).await?, &[&site]).await?;
    let item = |row: &tokio_postgres::Row| {
        let (site, machine) = (row.try_get(0)?, row.try_get(1)?);
        let figures = places.remove(&(site, machine)).unwrap_or_default().figures();
        Ok(Reliable { site, machine, name: row.try_get(2)?, figures })
    };
    let items = rows.iter().map(item).collect::<Result<_, StoreError>>()?;
    Ok(Reliability { from, to, items })
}

/// Of parts that are shown as one machine, that counts which ran the longest: they are the same hours.
async fn hours(
    transaction: &Transaction<'_>,
    from: Timestamp,
    to: Timestamp,
    places: &mut HashMap<Place, Facts>,
) -> Result<(), StoreError> {
    // Machine by machine along the key: the planner cannot know how short the range is beside the table.
    let part = |level: Level, from: usize, to: usize| {
        format!(
            "SELECT m.key, r.mode_ms FROM machines m CROSS JOIN LATERAL (
                 SELECT mode_ms FROM {} r WHERE r.machine_key = m.key AND r.start >= ${from} AND r.start < ${to} OFFSET 0) AS r",
            table(level)
        )
    };
    let segments = segments(from, to, Level::Day, Level::Hour);
    let parts = segments.iter().enumerate().map(|(i, segment)| part(segment.level, 2 * i + 1, 2 * i + 2));
    let select = format!(
        "SELECT t.site_id, t.id, s.modes FROM (
             SELECT DISTINCT ON (coalesce(m.merged_into, m.id)) coalesce(m.merged_into, m.id) AS id, s.modes
             FROM machines m JOIN (
                 SELECT key, ARRAY[sum(mode_ms[1]), sum(mode_ms[2]), sum(mode_ms[3]), sum(mode_ms[4])]::int8[] AS modes
                 FROM ({}) AS r GROUP BY key
             ) AS s USING (key)
             ORDER BY coalesce(m.merged_into, m.id), s.modes[4] DESC, s.modes[3] DESC, s.modes[2] DESC, s.modes[1] DESC
         ) AS s JOIN machines t ON t.id = s.id WHERE NOT t.ignored",
        parts.collect::<Vec<_>>().join(" UNION ALL ")
    );
    let bounds: Vec<Timestamp> = segments.iter().flat_map(|segment| [segment.from, segment.to]).collect();
    let bounds: Vec<&(dyn ToSql + Sync)> = bounds.iter().map(|at| at as _).collect();
    for row in transaction.query(&transaction.prepare_cached(&select).await?, &bounds).await? {
        let modes: Vec<i64> = row.try_get(2)?;
        let hours = |mode: usize| modes.get(mode).map_or(0.0, |ms| *ms as f64 / 3_600_000.0);
        let place = (row.try_get(0)?, Some(row.try_get(1)?));
        places.entry(place).or_default().hours = Hours::of_machine(hours(3), hours(2), hours(1), hours(0));
    }
    Ok(())
}

async fn failures(
    transaction: &Transaction<'_>,
    from: Timestamp,
    to: Timestamp,
    places: &mut HashMap<Place, Facts>,
) -> Result<(), StoreError> {
    // An incident opens before its ticket is made.
    let select = transaction
        .prepare_cached(
            "SELECT f.site_id, f.machine, count(*) FILTER (WHERE failed), count(*) FILTER (WHERE NOT failed AND state <> 'closed'),
                    count(*) FILTER (WHERE failed AND worked > 0),
                    coalesce(sum(worked) FILTER (WHERE failed), 0)::float8,
                    count(*) FILTER (WHERE failed AND done_at IS NOT NULL),
                    coalesce(sum(extract(epoch FROM done_at - at)) FILTER (WHERE failed), 0)::float8
             FROM (
                 SELECT t.id, t.site_id, coalesce(m.merged_into, m.id) AS machine, t.state, t.done_at,
                        coalesce(i.opened_at, t.created_at) AS at,
                        t.failure_mode IS NOT NULL OR coalesce(t.alarm_correct, '') = 'yes' AS failed
                 FROM tickets t LEFT JOIN machines m ON m.id = t.machine_id LEFT JOIN incidents i ON i.id = t.incident_id
                 LEFT JOIN machines shown ON shown.id = coalesce(m.merged_into, m.id)
                 -- Whose hours do not count, its failures do not either.
                 WHERE t.kind = 'corrective' AND t.state <> 'cancelled' AND t.created_at >= $1 AND shown.ignored IS NOT TRUE
             ) AS f
             CROSS JOIN LATERAL (
                 SELECT sum(extract(epoch FROM ended - at)) FILTER (WHERE to_state = 'in_progress') AS worked
                 FROM (SELECT to_state, at, lead(at) OVER (ORDER BY at, id) AS ended
                       FROM ticket_steps WHERE ticket_id = f.id AND f.done_at IS NOT NULL) AS steps
             ) AS w
             WHERE f.at >= $1 AND f.at < $2
             GROUP BY 1, 2",
        )
        .await?;
    let count = |count: i64| u32::try_from(count).unwrap_or(u32::MAX);
    for row in transaction.query(&select, &[&from, &to]).await? {
        let facts = places.entry((row.try_get(0)?, row.try_get(1)?)).or_default();
        let total = |count_at: usize| -> Result<Total, StoreError> {
            let seconds: f64 = row.try_get(count_at + 1)?;
            Ok(Total { count: count(row.try_get(count_at)?), hours: seconds / 3_600.0 })
        };
        (facts.failures, facts.undecided) = (count(row.try_get(2)?), count(row.try_get(3)?));
        (facts.repairs, facts.downs) = (total(4)?, total(6)?);
    }
    Ok(())
}

async fn costs(
    transaction: &Transaction<'_>,
    from: Timestamp,
    to: Timestamp,
    places: &mut HashMap<Place, Facts>,
) -> Result<(), StoreError> {
    let select = transaction
        .prepare_cached(
            "SELECT t.site_id, coalesce(m.merged_into, m.id), t.currency, t.kind,
                    least(sum(c.amount_minor), 9223372036854775807)::bigint
             FROM ticket_costs c JOIN tickets t ON t.id = c.ticket_id LEFT JOIN machines m ON m.id = t.machine_id
             WHERE c.created_at >= $1 AND c.created_at < $2 GROUP BY 1, 2, 3, 4",
        )
        .await?;
    for row in transaction.query(&select, &[&from, &to]).await? {
        let facts = places.entry((row.try_get(0)?, row.try_get(1)?)).or_default();
        let Word(kind) = row.try_get(3)?;
        facts.costs.entry(row.try_get(2)?).or_default().book(kind, row.try_get(4)?);
    }
    Ok(())
}
