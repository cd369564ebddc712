//! What energy was to be expected: lines through days of before, and the days themselves.

use std::collections::BTreeSet;

use deadpool_postgres::Transaction;
use jiff::{Timestamp, civil::Date};
use serde::Serialize;
use tokio_postgres::{Row, types::Json};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    StoreError,
    audit::{self, Audited, By},
    energy::{self, Days},
    production::{self, ProductionSensor},
    sites,
    words::Word,
};
use crate::{
    energy::{
        accounts::{self, Account},
        baseline::{Driver, Model, Observation, observe},
        calendar::{Calendar, Per, Terms},
    },
    history::{HOUR_MS, ceil, floor},
};

/// Baselines of a site.
pub const BASELINES_MAX: i64 = 500;
/// Production sensors of one.
pub const SENSORS_MAX: usize = 20;

/// A baseline: the energy of a day that is to be expected.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Baseline {
    pub id: Uuid,
    pub site: Uuid,
    /// `null`: of the whole site.
    pub machine: Option<Uuid>,
    pub name: String,
    /// The days that it was fitted to, by the site's clocks.
    #[schema(value_type = String, format = Date)]
    pub from: Date,
    /// Exclusive.
    #[schema(value_type = String, format = Date)]
    pub to: Date,
    pub driver: Driver,
    /// Of the driver: UCUM, `1` for a number, `h` for running hours.
    pub unit: String,
    /// What counts production; a later choice of another sensor does not change it.
    pub sensors: Vec<ProductionSensor>,
    /// Whose energy it is of: what measured its power in those days.
    pub machines: Vec<Uuid>,
    pub model: Model,
    pub created_at: Timestamp,
}

/// What days are looked at.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    pub site: Uuid,
    /// None: all that measured.
    pub machines: Option<&'a [Uuid]>,
    /// None: running hours are the driver.
    pub sensors: Option<&'a [ProductionSensor]>,
}

const SELECT: &str =
    "SELECT id, site_id, machine_id, name, from_day, to_day, driver, unit, sensors, machines, days, intercept_kwh,
           slope_kwh, r2, rmse_kwh, cv_rmse, driver_mean, driver_squares, driver_min, driver_max, created_at
    FROM baselines";

/// Baselines, the newest first, from behind `after`.
///
/// # Errors
/// If the database is away.
pub async fn list(
    transaction: &Transaction<'_>,
    site: Option<Uuid>,
    machine: Option<Uuid>,
    after: Option<Uuid>,
    limit: i64,
) -> Result<Vec<Baseline>, StoreError> {
    let sql = format!(
        "{SELECT} WHERE ($1::uuid IS NULL OR site_id = $1) AND ($2::uuid IS NULL OR machine_id = $2)
           AND ($3::uuid IS NULL OR id < $3) ORDER BY id DESC LIMIT $4"
    );
    transaction.query(&sql, &[&site, &machine, &after, &limit]).await?.iter().map(baseline).collect()
}

/// A baseline. With `lock` nobody else changes it until the transaction's end.
///
/// # Errors
/// If the database is away.
pub async fn one(transaction: &Transaction<'_>, id: Uuid, lock: bool) -> Result<Option<Baseline>, StoreError> {
    let lock = if lock { "FOR NO KEY UPDATE" } else { "" };
    let row = transaction.query_opt(&format!("{SELECT} WHERE id = $1 {lock}"), &[&id]).await?;
    row.as_ref().map(baseline).transpose()
}

/// The days from `from` to before `to` by the site's clocks, and whose energy they are of. `None` if there is no such site.
///
/// # Errors
/// If the database is away.
pub async fn days(
    transaction: &Transaction<'_>,
    subject: &Subject<'_>,
    from: Date,
    to: Date,
) -> Result<Option<(Vec<Uuid>, Vec<Observation>)>, StoreError> {
    let Some(zone) = energy::zone_of(transaction, subject.site).await? else { return Ok(None) };
    let midnight = |day: Date| day.to_zoned(zone.clone()).map_or(Timestamp::MIN, |zoned| zoned.timestamp());
    let (begin, end) = (floor(midnight(from), HOUR_MS), ceil(midnight(to), HOUR_MS));
    // Money and emissions are of no interest here.
    let terms = Terms { zone, tariffs: Vec::new(), factors: Vec::new(), g_per_kwh_default: 0.0 };
    let calendar = Calendar::new(begin, end, Some(Per::Day), &terms);
    let mut sums = vec![Account::default(); calendar.periods.len()];
    let mut machines: BTreeSet<Uuid> = subject.machines.unwrap_or_default().iter().copied().collect();
    let days = Days { from: begin, to: end, site: Some(subject.site), machines: subject.machines, running: true };
    energy::each_day(transaction, &days, |machine, start, day| {
        if subject.machines.is_none() {
            machines.insert(machine);
        }
        accounts::add(&mut sums, &calendar, start, day);
    })
    .await?;
    let counted = match subject.sensors {
        Some(sensors) => Some(production::counted(transaction, sensors, begin, end).await?),
        None => None,
    };
    let days = observe((from, to), &calendar, &sums, machines.len(), counted.as_deref());
    Ok(Some((machines.into_iter().collect(), days)))
}

/// Adds a baseline; false if the site has [`BASELINES_MAX`].
///
/// # Errors
/// If the database is away.
pub async fn insert(
    transaction: &Transaction<'_>,
    new: &Baseline,
    user: Uuid,
    by: &By,
    now: Timestamp,
) -> Result<bool, StoreError> {
    // The lock lets the count be right.
    sites::one(transaction, new.site, true).await?;
    let count = "SELECT count(*) FROM baselines WHERE site_id = $1";
    if transaction.query_one(count, &[&new.site]).await?.try_get::<_, i64>(0)? >= BASELINES_MAX {
        return Ok(false);
    }
    let Model { days, intercept_kwh, slope_kwh, r2, rmse_kwh, cv_rmse, .. } = new.model;
    let Model { driver_mean, driver_squares, driver_min, driver_max, .. } = new.model;
    transaction
        .execute(
            "INSERT INTO baselines (id, organisation_id, site_id, machine_id, name, from_day, to_day, driver, unit, sensors,
                 machines, days, intercept_kwh, slope_kwh, r2, rmse_kwh, cv_rmse, driver_mean, driver_squares, driver_min,
                 driver_max, created_at, created_by)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23)",
            &[
                &new.id,
                &by.organisation,
                &new.site,
                &new.machine,
                &new.name,
                &new.from,
                &new.to,
                &new.driver.as_str(),
                &new.unit,
                &Json(&new.sensors),
                &new.machines,
                &days,
                &intercept_kwh,
                &slope_kwh,
                &r2,
                &rmse_kwh,
                &cv_rmse,
                &driver_mean,
                &driver_squares,
                &driver_min,
                &driver_max,
                &now,
                &user,
            ],
        )
        .await?;
    audit::edited(transaction, "baseline.create", None, Some(new), by, now).await?;
    Ok(true)
}

/// Renames a baseline.
///
/// # Errors
/// If the database is away.
pub async fn rename(
    transaction: &Transaction<'_>,
    before: &Baseline,
    name: &str,
    by: &By,
    now: Timestamp,
) -> Result<Baseline, StoreError> {
    let after = Baseline { name: name.to_owned(), ..before.clone() };
    if after != *before {
        transaction.execute("UPDATE baselines SET name = $2 WHERE id = $1", &[&before.id, &name]).await?;
        audit::edited(transaction, "baseline.rename", Some(before), Some(&after), by, now).await?;
    }
    Ok(after)
}

/// Takes a baseline away.
///
/// # Errors
/// If the database is away.
pub async fn delete(
    transaction: &Transaction<'_>,
    before: &Baseline,
    by: &By,
    now: Timestamp,
) -> Result<(), StoreError> {
    transaction.execute("DELETE FROM baselines WHERE id = $1", &[&before.id]).await?;
    audit::edited(transaction, "baseline.delete", Some(before), None, by, now).await
}

impl Audited for Baseline {
    const OBJECT: &'static str = "baseline";

    fn id(&self) -> Uuid {
        self.id
    }

    fn site(&self) -> Uuid {
        self.site
    }
}

fn baseline(row: &Row) -> Result<Baseline, StoreError> {
    let (Word(driver), Json(sensors)) = (row.try_get(6)?, row.try_get(8)?);
    Ok(Baseline {
        id: row.try_get(0)?,
        site: row.try_get(1)?,
        machine: row.try_get(2)?,
        name: row.try_get(3)?,
        from: row.try_get(4)?,
        to: row.try_get(5)?,
        driver,
        unit: row.try_get(7)?,
        sensors,
        machines: row.try_get(9)?,
        model: Model {
            days: row.try_get(10)?,
            intercept_kwh: row.try_get(11)?,
            slope_kwh: row.try_get(12)?,
            r2: row.try_get(13)?,
            rmse_kwh: row.try_get(14)?,
            cv_rmse: row.try_get(15)?,
            driver_mean: row.try_get(16)?,
            driver_squares: row.try_get(17)?,
            driver_min: row.try_get(18)?,
            driver_max: row.try_get(19)?,
        },
        created_at: row.try_get(20)?,
    })
}
