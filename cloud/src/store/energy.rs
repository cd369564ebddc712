//! What machines did and used over a range, from hours and days, and what holds at their sites.

use std::collections::HashMap;

use deadpool_postgres::Transaction;
use futures_util::{TryStreamExt as _, pin_mut};
use jiff::{SignedDuration, Timestamp, civil::Date, tz::TimeZone};
use tokio_postgres::{
    Row,
    types::{Json, ToSql},
};
use uuid::Uuid;

use super::{StoreError, rollups::table, rules_edit};
use crate::{
    energy::{
        Energy, Hours, Ledger, MachineHours, Question, SiteTerms, TooLarge,
        calendar::{Factor, Terms},
        profile::{HOURS, Profile, Profiles},
        tariff::{Band, Tariff},
    },
    history::{DAY_MS, Level, floor, segments},
};

/// Days of one statement.
const ROWS_MAX: usize = 1_000;

/// Adds the days of intervals that were stored in this transaction, and were not before; their machines are locked
/// ([`super::rollups::add`]).
///
/// # Errors
/// If the database cannot be reached or refuses.
pub async fn add(transaction: &Transaction<'_>, profiles: &Profiles) -> Result<(), StoreError> {
    if profiles.is_empty() {
        return Ok(());
    }
    // All hours of all days are one list, and a day knows its part of it.
    let insert = transaction
        .prepare_cached(
            "INSERT INTO energy_days AS d (machine_key, start, wh, measured_ms, running_ms)
             SELECT key, start, ($3::float8[])[24 * n - 23:24 * n], ($4::int4[])[24 * n - 23:24 * n],
                    ($5::int4[])[24 * n - 23:24 * n]
             FROM unnest($1::int4[], $2::timestamptz[]) WITH ORDINALITY AS new (key, start, n)
             ON CONFLICT (machine_key, start) DO UPDATE SET (wh, measured_ms, running_ms) = (
                 SELECT array_agg(CASE WHEN a IS NULL THEN b WHEN b IS NULL THEN a ELSE a + b END ORDER BY i),
                        array_agg(ma + mb ORDER BY i), array_agg(ra + rb ORDER BY i)
                 FROM unnest(d.wh, excluded.wh, d.measured_ms, excluded.measured_ms, d.running_ms, excluded.running_ms)
                      WITH ORDINALITY AS hour (a, b, ma, mb, ra, rb, i))",
        )
        .await?;
    let days: Vec<_> = profiles.iter().collect();
    for part in days.chunks(ROWS_MAX) {
        let (keys, starts): (Vec<i32>, Vec<Timestamp>) = part.iter().map(|(day, _)| **day).unzip();
        let wh: Vec<Option<f64>> = part.iter().flat_map(|(_, day)| day.wh.iter().copied()).collect();
        let list = |of: fn(&Profile) -> &Vec<i32>| part.iter().flat_map(|(_, day)| of(day).iter().copied()).collect();
        let (measured, running): (Vec<i32>, Vec<i32>) = (list(|day| &day.measured_ms), list(|day| &day.running_ms));
        transaction.execute(&insert, &[&keys, &starts, &wh, &measured, &running]).await?;
    }
    Ok(())
}

/// Which days are read.
#[derive(Debug, Clone, Copy)]
pub struct Days<'a> {
    pub from: Timestamp,
    pub to: Timestamp,
    pub site: Option<Uuid>,
    /// Shown machines; none for all that are not ignored.
    pub machines: Option<&'a [Uuid]>,
    /// The times in which machines ran are wanted too.
    pub running: bool,
}

/// Hands each day that has a part in the range to `take`, with the machine that it is shown as. They are not gathered: a fleet's
/// years are larger than what is told of them.
///
/// # Errors
/// If the database is away.
pub async fn each_day(
    transaction: &Transaction<'_>,
    days: &Days<'_>,
    mut take: impl FnMut(Uuid, Timestamp, &Profile) + Send,
) -> Result<(), StoreError> {
    let running = if days.running { "running_ms" } else { "'{}'::int4[]" };
    // Machine by machine along the key, as in `machines`.
    let select = format!(
        "SELECT shown.id, d.* FROM machines m JOIN machines shown ON shown.id = coalesce(m.merged_into, m.id)
         CROSS JOIN LATERAL (
             SELECT start, wh, measured_ms, {running} FROM energy_days
             WHERE machine_key = m.key AND start >= $1 AND start < $2 OFFSET 0) AS d
         WHERE ($3::uuid IS NULL OR m.site_id = $3)
           AND CASE WHEN $4::uuid[] IS NULL THEN NOT shown.ignored ELSE shown.id = ANY($4) END"
    );
    let select = transaction.prepare_cached(&select).await?;
    let from = floor(days.from, DAY_MS);
    let bounds: [&(dyn ToSql + Sync); 4] = [&from, &days.to, &days.site, &days.machines];
    let rows = transaction.query_raw(&select, bounds).await?;
    pin_mut!(rows);
    while let Some(row) = rows.try_next().await? {
        let day = Profile { wh: row.try_get(2)?, measured_ms: row.try_get(3)?, running_ms: row.try_get(4)? };
        debug_assert!(day.wh.len() == HOURS);
        take(row.try_get(0)?, row.try_get(1)?, &day);
    }
    Ok(())
}

/// What machines and sites used, and what that cost and emitted.
///
/// # Errors
/// If the database is away; inside, if the answer would be too large.
pub async fn read(
    transaction: &Transaction<'_>,
    question: &Question,
    g_per_kwh_default: f64,
) -> Result<Result<Energy, TooLarge>, StoreError> {
    let machines = machines(transaction, question).await?;
    let mut sites: Vec<Uuid> = machines.iter().map(|machine| machine.site).collect();
    sites.sort_unstable();
    sites.dedup();
    let sites = terms(transaction, &sites, question.from, question.to, g_per_kwh_default).await?;
    let mut ledger = match Ledger::new(*question, machines, &sites) {
        Ok(ledger) => ledger,
        Err(too_many) => return Ok(Err(too_many)),
    };
    let machine = question.machine.map(|machine| [machine]);
    let days = Days {
        from: question.from,
        to: question.to,
        site: question.site,
        machines: machine.as_ref().map(|machine| &machine[..]),
        running: false,
    };
    each_day(transaction, &days, |machine, start, day| ledger.add(machine, start, day)).await?;
    Ok(Ok(ledger.close()))
}

/// Each shown machine with its parts, by name.
async fn machines(transaction: &Transaction<'_>, question: &Question) -> Result<Vec<MachineHours>, StoreError> {
    // Machine by machine along the key: the planner cannot know how short the range is beside the table.
    let part = |level: Level, from: usize, to: usize| {
        format!(
            "SELECT coalesce(m.merged_into, m.id) AS id, r.energy_wh, r.mode_ms, r.anomalous_ms, r.health_min, r.score_max
             FROM machines m CROSS JOIN LATERAL (
                 SELECT * FROM {} r WHERE r.machine_key = m.key AND r.start >= ${from} AND r.start < ${to} OFFSET 0) AS r
             WHERE ($1::uuid IS NULL OR m.site_id = $1) AND ($2::uuid IS NULL OR coalesce(m.merged_into, m.id) = $2)",
            table(level)
        )
    };
    let segments = segments(question.from, question.to, Level::Day, Level::Hour);
    let parts = segments.iter().enumerate().map(|(i, segment)| part(segment.level, 2 * i + 3, 2 * i + 4));
    let select = format!(
        "SELECT m.id, m.site_id, m.name, m.display_name, sum(r.energy_wh), coalesce(sum(r.mode_ms[1]), 0)::int8,
                coalesce(sum(r.mode_ms[2]), 0)::int8, coalesce(sum(r.mode_ms[3]), 0)::int8,
                coalesce(sum(r.mode_ms[4]), 0)::int8, coalesce(sum(r.anomalous_ms), 0)::int8, min(r.health_min),
                max(r.score_max)
         FROM machines m LEFT JOIN ({}) AS r ON r.id = m.id
         WHERE m.merged_into IS NULL AND NOT m.ignored
           AND ($1::uuid IS NULL OR m.site_id = $1) AND ($2::uuid IS NULL OR m.id = $2)
         GROUP BY m.id ORDER BY coalesce(m.display_name, m.name), m.id",
        parts.collect::<Vec<_>>().join(" UNION ALL ")
    );
    let bounds: Vec<Timestamp> = segments.iter().flat_map(|segment| [segment.from, segment.to]).collect();
    let mut asked: Vec<&(dyn ToSql + Sync)> = vec![&question.site, &question.machine];
    asked.extend(bounds.iter().map(|at| at as &(dyn ToSql + Sync)));
    let rows = transaction.query(&transaction.prepare_cached(&select).await?, &asked).await?;
    rows.iter().map(machine).collect()
}

fn machine(row: &Row) -> Result<MachineHours, StoreError> {
    let hours = |ms: i64| ms as f64 / 3_600_000.0;
    let [unknown, off, idle, running, anomalous] =
        [row.try_get(5)?, row.try_get(6)?, row.try_get(7)?, row.try_get(8)?, row.try_get(9)?].map(hours);
    Ok(MachineHours {
        id: row.try_get(0)?,
        site: row.try_get(1)?,
        name: row.try_get(2)?,
        display_name: row.try_get(3)?,
        energy_wh: row.try_get(4)?,
        hours: Hours {
            known_h: unknown + off + idle + running,
            running_h: running,
            idle_h: idle,
            off_h: off,
            anomalous_h: anomalous,
            health_percent_min: row.try_get(10)?,
            score_max: row.try_get(11)?,
        },
    })
}

/// What holds at these sites in a range.
///
/// # Errors
/// If the database is away.
pub async fn terms(
    transaction: &Transaction<'_>,
    sites: &[Uuid],
    from: Timestamp,
    to: Timestamp,
    g_per_kwh_default: f64,
) -> Result<Vec<SiteTerms>, StoreError> {
    let named = transaction.prepare_cached("SELECT id, name, time_zone FROM sites WHERE id = ANY($1)").await?;
    let tariffs = transaction
        .prepare_cached(
            "SELECT site_id, valid_from, currency, price_micro, bands FROM tariffs
             WHERE site_id = ANY($1) AND valid_from <= $2 ORDER BY valid_from",
        )
        .await?;
    let factors = transaction
        .prepare_cached(
            "SELECT site_id, valid_from, g_per_kwh FROM carbon_factors c
             WHERE site_id = ANY($1) AND valid_from < $3 AND valid_from >= coalesce(
                 (SELECT max(valid_from) FROM carbon_factors f WHERE f.site_id = c.site_id AND f.valid_from <= $2), '-infinity')
             ORDER BY valid_from",
        )
        .await?;
    let mut tariffs_of: HashMap<Uuid, Vec<Tariff>> = HashMap::new();
    // The last local day of the range is at most one behind that of UTC.
    let last: Date = to.saturating_add(SignedDuration::from_hours(24)).unwrap_or(to).to_zoned(TimeZone::UTC).date();
    for row in transaction.query(&tariffs, &[&sites, &last]).await? {
        let Json(bands): Json<Vec<Band>> = row.try_get(4)?;
        let tariff = Tariff::new(row.try_get(1)?, row.try_get(2)?, row.try_get(3)?, &bands);
        tariffs_of.entry(row.try_get(0)?).or_default().push(tariff);
    }
    let mut factors_of: HashMap<Uuid, Vec<Factor>> = HashMap::new();
    for row in transaction.query(&factors, &[&sites, &from, &to]).await? {
        let factor = Factor { valid_from: row.try_get(1)?, g_per_kwh: row.try_get(2)? };
        factors_of.entry(row.try_get(0)?).or_default().push(factor);
    }
    let rows = transaction.query(&named, &[&sites]).await?;
    let mut site = |row: &Row| {
        let id = row.try_get(0)?;
        let terms = Terms {
            zone: zone(row.try_get(2)?),
            tariffs: tariffs_of.remove(&id).unwrap_or_default(),
            factors: factors_of.remove(&id).unwrap_or_default(),
            g_per_kwh_default,
        };
        Ok(SiteTerms { id, name: row.try_get(1)?, terms })
    };
    rows.iter().map(&mut site).collect()
}

/// By whose clocks a site goes; `None` if there is no such site.
///
/// # Errors
/// If the database is away.
pub async fn zone_of(transaction: &Transaction<'_>, site: Uuid) -> Result<Option<TimeZone>, StoreError> {
    Ok(rules_edit::time_zone(transaction, site, false).await?.as_deref().map(zone))
}

/// A zone that this program's tables do not know is read as UTC.
fn zone(name: &str) -> TimeZone {
    TimeZone::get(name).unwrap_or(TimeZone::UTC)
}
