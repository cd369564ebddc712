//! Trends of a machine.

use axum::{Json, extract::State};
use jiff::Timestamp;
use uuid::Uuid;

use super::{
    ApiState,
    access::Caller,
    extract::{Params, Path},
    problem::{ApiError, FieldError},
};
use crate::{
    series::{POINTS_DEFAULT, POINTS_MAX, POINTS_MIN, Plan, RANGE_DEFAULT, Series},
    store::{self, scoped},
    views::Sensor,
};

/// A machine's trends, downsampled to no more than so many points.
///
/// Each bucket keeps the least, the greatest and the mean of what was measured in it; all series share one time
/// axis. The default range is the last 15 minutes up to the latest reading. With very many sensors there are fewer
/// points than asked for.
#[utoipa::path(get, path = "/machines/{id}/series", tag = "machines",
    params(("id" = Uuid, Path),
        ("sensor" = Vec<String>, Query, description = "Repeated; none for all sensors."),
        ("from" = Option<Timestamp>, Query), ("to" = Option<Timestamp>, Query, description = "Exclusive."),
        ("points" = Option<u32>, Query, minimum = 10, maximum = 5000, description = "Default 500.")),
    responses((status = 200, body = Series), (status = 404)))]
pub async fn read(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<Uuid>,
    mut params: Params,
) -> Result<Json<Series>, ApiError> {
    let names = params.many("sensor");
    let (from, to) = (params.time("from"), params.time("to"));
    let points = params.one("points", "a number from 10 to 5000", |text| {
        text.parse().ok().filter(|points| (POINTS_MIN..=POINTS_MAX).contains(points))
    });
    params.finish()?;
    let now = state.now();
    let _turn = state.0.trends.acquire().await.map_err(|_| ApiError::internal())?;
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    store::blocks::one_moment(&transaction).await?;
    let machine = store::machines::detail(&transaction, id, now, state.patience()).await?;
    let machine = machine.ok_or_else(|| ApiError::not_found("machine"))?;
    let sensors = chosen(&machine.sensors, &names)?;
    let (from, to) = range(from, to, machine.machine.last_reading_at.unwrap_or(now));
    let points = Plan::points_for(points.unwrap_or(POINTS_DEFAULT), sensors.len());
    let plan = Plan::new(from, to, points, machine.interval_ms)?;
    Ok(Json(store::series::read(&transaction, id, sensors, plan).await?))
}

fn range(from: Option<Timestamp>, to: Option<Timestamp>, latest: Timestamp) -> (Timestamp, Timestamp) {
    // `to` is exclusive, and the latest reading belongs to the picture.
    let to = to.unwrap_or_else(|| {
        latest.max(from.unwrap_or(latest)).saturating_add(jiff::SignedDuration::from_millis(1)).unwrap_or(latest)
    });
    (from.unwrap_or_else(|| to.saturating_sub(RANGE_DEFAULT).unwrap_or(to)), to)
}

fn chosen(sensors: &[Sensor], names: &[String]) -> Result<Vec<(String, Option<String>)>, ApiError> {
    let named = |sensor: &Sensor| (sensor.name.clone(), sensor.unit.clone());
    if names.is_empty() {
        return Ok(sensors.iter().map(named).collect());
    }
    let unknown: Vec<FieldError> = names
        .iter()
        .filter(|name| !sensors.iter().any(|sensor| sensor.name == **name))
        .map(|name| FieldError {
            field: "sensor".into(),
            message: format!("the machine has no sensor {:?}", name.chars().take(64).collect::<String>()),
        })
        .collect();
    if !unknown.is_empty() {
        return Err(ApiError::fields("invalid_parameters", "a parameter is not as it should be", unknown));
    }
    Ok(sensors.iter().filter(|sensor| names.contains(&sensor.name)).map(named).collect())
}
