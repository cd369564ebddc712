//! What energy was to be expected, and what was saved against it.

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use deadpool_postgres::Transaction;
use jiff::civil::Date;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    ApiState,
    access::Caller,
    etag::{IfMatch, Tagged},
    extract::{Body, Items, Params, Path, day, named},
    problem::ApiError,
};
use crate::{
    energy::baseline::{self, Day, Driver, Observation, RANGE_DAYS_MAX, Savings},
    store::{
        baselines::{self, BASELINES_MAX, Baseline, SENSORS_MAX, Subject},
        energy,
        objects::{self, Object},
        production::{self, ProductionSensor},
        scoped,
    },
    views::word,
};

/// Days of the savings that are told where no range is given.
const RANGE_DAYS_DEFAULT: i64 = 30;

/// What to fit a baseline to.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BaselineBody {
    /// Of a whole site; either this or `machine`.
    #[serde(default)]
    site: Option<Uuid>,
    #[serde(default)]
    machine: Option<Uuid>,
    #[schema(min_length = 1, max_length = 100)]
    name: String,
    /// The first day, by the site's clocks.
    #[serde(deserialize_with = "day")]
    #[schema(value_type = String, format = Date)]
    from: Date,
    /// Exclusive; at most 366 days behind `from`.
    #[serde(deserialize_with = "day")]
    #[schema(value_type = String, format = Date)]
    to: Date,
    /// What explains the energy; without, what is made, where a sensor says so, else the hours in which machines ran.
    #[serde(default)]
    driver: Option<Driver>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BaselineName {
    #[schema(min_length = 1, max_length = 100)]
    name: String,
}

/// How finely savings are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SavingsPer {
    Day,
    Month,
}

/// A day, or a month as far as it lies in the range.
#[derive(Debug, Serialize, ToSchema)]
pub struct PeriodSavings {
    /// Its first day.
    #[schema(value_type = String, format = Date)]
    date: Date,
    #[serde(flatten)]
    savings: Savings,
}

/// What was saved against a baseline.
#[derive(Debug, Serialize, ToSchema)]
pub struct SavingsAnswer {
    baseline: Uuid,
    #[schema(value_type = String, format = Date)]
    from: Date,
    /// Exclusive.
    #[schema(value_type = String, format = Date)]
    to: Date,
    /// All days of the range; `days` are those that are known well enough.
    range_days: i32,
    #[serde(flatten)]
    savings: Savings,
    /// None unless `per` is given.
    periods: Vec<PeriodSavings>,
}

/// Baselines, the newest first.
#[utoipa::path(get, path = "/energy/baselines", tag = "energy",
    params(("site" = Option<Uuid>, Query), ("machine" = Option<Uuid>, Query),
        ("limit" = Option<u16>, Query, minimum = 1, maximum = 200), ("cursor" = Option<String>, Query)),
    responses((status = 200, body = Items<Baseline>)))]
pub async fn list(
    State(state): State<ApiState>,
    caller: Caller,
    mut params: Params,
) -> Result<Json<Items<Baseline>>, ApiError> {
    let (site, machine) = (params.id("site"), params.id("machine"));
    let page = params.page::<Uuid>();
    params.finish()?;
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    let rows = baselines::list(&transaction, site, machine, page.after, page.rows()).await?;
    Ok(Json(Items::new(rows, &page, |last| last.id)))
}

/// A baseline, and how good it is.
#[utoipa::path(get, path = "/energy/baselines/{id}", tag = "energy", params(("id" = Uuid, Path)),
    responses((status = 200, body = Baseline), (status = 404)))]
pub async fn one(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<Uuid>,
) -> Result<Tagged<Baseline>, ApiError> {
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    baselines::one(&transaction, id, false).await?.map(Tagged::new).ok_or_else(missing)
}

/// Fit a baseline to days of before.
///
/// The energy of a day is told as intercept + slope × driver, by least squares over the days of which at least 95 % was measured.
/// With fewer than ten such days, or where the driver hardly changes, there is none. Look at `r2` and `cv_rmse` before going by it.
#[utoipa::path(post, path = "/energy/baselines", tag = "energy", request_body = BaselineBody,
    responses((status = 201, body = Baseline),
        (status = 409, description = "`no_baseline`: why there is none; or `too_many_baselines`")))]
pub async fn create(
    State(state): State<ApiState>,
    caller: Caller,
    Body(body): Body<BaselineBody>,
) -> Result<Response, ApiError> {
    let name = named("name", &body.name)?;
    let range = checked((body.from, body.to))?;
    let now = state.now();
    let _turn = state.0.trends.acquire().await.map_err(|_| ApiError::internal())?;
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    let site = match (body.site, body.machine) {
        (Some(site), None) if caller.scope.at(site).is_some() => site,
        (Some(_), None) => return Err(ApiError::field("site", "is none where you may do this")),
        (None, Some(machine)) => {
            let site = objects::sites(&transaction, Object::Machine, &[machine]).await?.remove(&machine);
            site.ok_or_else(|| ApiError::field("machine", "is none where you may do this"))?
        }
        _ => return Err(ApiError::field("site", "either a site or a machine is needed")),
    };
    let (driver, sensors) = driver(&transaction, site, body.machine, body.driver).await?;
    let machine = body.machine.map(|machine| [machine]);
    let counting = driver == Driver::Production;
    let subject = Subject {
        site,
        machines: machine.as_ref().map(|machine| &machine[..]),
        sensors: counting.then_some(&sensors[..]),
    };
    let found = baselines::days(&transaction, &subject, range.0, range.1).await?;
    let (machines, days) = found.ok_or_else(|| ApiError::not_found("site"))?;
    let model = baseline::fit(&known(&days)).map_err(|none| ApiError::conflict("no_baseline", none))?;
    let unit = sensors.first().filter(|_| counting).map_or_else(|| "h".to_owned(), |sensor| sensor.unit.clone());
    let new = Baseline {
        id: Uuid::now_v7(),
        site,
        machine: body.machine,
        name,
        from: range.0,
        to: range.1,
        driver,
        unit,
        sensors: if counting { sensors } else { Vec::new() },
        machines,
        model,
        // As the database keeps it.
        created_at: crate::history::floor_us(now),
    };
    if !baselines::insert(&transaction, &new, caller.user.id, &caller.by(), new.created_at).await? {
        let detail = format!("a site has at most {BASELINES_MAX} baselines");
        return Err(ApiError::conflict("too_many_baselines", detail));
    }
    transaction.commit().await?;
    tracing::info!(baseline = %new.id, %site, user = caller.user.name, "baseline fitted");
    Ok((StatusCode::CREATED, Tagged::new(new)).into_response())
}

/// Rename a baseline. What was fitted stays: fit another one.
#[utoipa::path(patch, path = "/energy/baselines/{id}", tag = "energy",
    params(("id" = Uuid, Path), ("If-Match" = Option<String>, Header)), request_body = BaselineName,
    responses((status = 200, body = Baseline), (status = 404), (status = 412, description = "`changed_meanwhile`")))]
pub async fn rename(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<Uuid>,
    if_match: IfMatch,
    Body(body): Body<BaselineName>,
) -> Result<Tagged<Baseline>, ApiError> {
    let name = named("name", &body.name)?;
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    let before = baselines::one(&transaction, id, true).await?.ok_or_else(missing)?;
    if_match.check(&before)?;
    let after = baselines::rename(&transaction, &before, &name, &caller.by(), state.now()).await?;
    transaction.commit().await?;
    Ok(Tagged::new(after))
}

/// Take a baseline away.
#[utoipa::path(delete, path = "/energy/baselines/{id}", tag = "energy",
    params(("id" = Uuid, Path), ("If-Match" = Option<String>, Header)),
    responses((status = 204), (status = 404), (status = 412, description = "`changed_meanwhile`")))]
pub async fn delete(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<Uuid>,
    if_match: IfMatch,
) -> Result<StatusCode, ApiError> {
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    let before = baselines::one(&transaction, id, true).await?.ok_or_else(missing)?;
    if_match.check(&before)?;
    baselines::delete(&transaction, &before, &caller.by(), state.now()).await?;
    transaction.commit().await?;
    tracing::info!(baseline = %id, user = caller.user.name, "baseline taken away");
    Ok(StatusCode::NO_CONTENT)
}

/// What was saved against a baseline: expected less used, with its uncertainty.
///
/// Days of which less than 95 % was measured are left out, on both sides. The default range is the last 30 days up to today.
#[utoipa::path(get, path = "/energy/baselines/{id}/savings", tag = "energy",
    params(("id" = Uuid, Path),
        ("from" = Option<String>, Query, format = Date, description = "The first day, by the site's clocks."),
        ("to" = Option<String>, Query, format = Date, description = "Exclusive; at most 366 days behind `from`."),
        ("per" = Option<String>, Query, pattern = "^(day|month)$", description = "Whether to tell days or months too: `day` or `month`.")),
    responses((status = 200, body = SavingsAnswer), (status = 404)))]
pub async fn savings(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<Uuid>,
    mut params: Params,
) -> Result<Json<SavingsAnswer>, ApiError> {
    let (from, to) = (params.day("from"), params.day("to"));
    let per: Option<SavingsPer> = params.one("per", "day or month", |text| word("per", text).ok());
    params.finish()?;
    let _turn = state.0.trends.acquire().await.map_err(|_| ApiError::internal())?;
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    let baseline = baselines::one(&transaction, id, false).await?.ok_or_else(missing)?;
    let zone = energy::zone_of(&transaction, baseline.site).await?.ok_or_else(missing)?;
    let to = to.unwrap_or_else(|| state.now().to_zoned(zone).date());
    let from = from.unwrap_or_else(|| to.saturating_sub(jiff::Span::new().days(RANGE_DAYS_DEFAULT)));
    let (from, to) = checked((from, to))?;
    let subject = Subject {
        site: baseline.site,
        machines: Some(&baseline.machines),
        sensors: (baseline.driver == Driver::Production).then_some(&baseline.sensors[..]),
    };
    let (_, days) = baselines::days(&transaction, &subject, from, to).await?.ok_or_else(missing)?;
    let of = |days: &[Observation]| baseline::savings(&baseline.model, &known(days));
    let same = |a: &Observation, b: &Observation| match per {
        Some(SavingsPer::Month) => (a.date.year(), a.date.month()) == (b.date.year(), b.date.month()),
        _ => false,
    };
    let periods = days.chunk_by(same).map(|days| PeriodSavings { date: days[0].date, savings: of(days) });
    Ok(Json(SavingsAnswer {
        baseline: id,
        from,
        to,
        range_days: i32::try_from(days.len()).unwrap_or(i32::MAX),
        savings: of(&days),
        periods: if per.is_some() { periods.collect() } else { Vec::new() },
    }))
}

fn known(days: &[Observation]) -> Vec<Day> {
    days.iter().filter_map(|day| day.known).collect()
}

/// What explains the energy, and the sensors that count it.
async fn driver(
    transaction: &Transaction<'_>,
    site: Uuid,
    machine: Option<Uuid>,
    wanted: Option<Driver>,
) -> Result<(Driver, Vec<ProductionSensor>), ApiError> {
    let sensors = production::sensors(transaction, Some(site), machine).await?;
    let driver = wanted.unwrap_or(if sensors.is_empty() { Driver::RunningHours } else { Driver::Production });
    if driver == Driver::RunningHours {
        return Ok((driver, Vec::new()));
    }
    if sensors.is_empty() {
        let detail = "production is known of no machine here: choose its sensor (PUT /machines/{id}/production)";
        return Err(ApiError::field("driver", detail));
    }
    if sensors.len() > SENSORS_MAX {
        return Err(ApiError::field("driver", format_args!("more than {SENSORS_MAX} sensors count production here")));
    }
    if sensors.iter().any(|sensor| sensor.unit != sensors[0].unit) {
        return Err(ApiError::field("driver", "what is made here is counted in several units, which do not add up"));
    }
    Ok((driver, sensors))
}

fn checked((from, to): (Date, Date)) -> Result<(Date, Date), ApiError> {
    if to <= from {
        return Err(ApiError::field("to", "is behind `from`"));
    }
    let days = from.duration_until(to).as_hours() / 24;
    if days > RANGE_DAYS_MAX {
        return Err(ApiError::field("to", format_args!("is at most {RANGE_DAYS_MAX} days behind `from`")));
    }
    Ok((from, to))
}

fn missing() -> ApiError {
    ApiError::not_found("baseline")
}
