//! Which sensor says how much a machine makes.

use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    ApiState,
    access::Caller,
    etag::{IfMatch, Tagged},
    extract::{Body, Path, written},
    problem::ApiError,
};
use crate::{
    energy::production::ProductionKind,
    store::{
        machines_label,
        objects::{self, Object},
        production::{self, Named, ProductionSensor},
        scoped,
    },
};

const SENSOR_CHARS_MAX: usize = 128;

/// What says how much a machine makes, if anything does.
#[derive(Debug, Serialize, ToSchema)]
pub struct Production {
    sensor: Option<ProductionSensor>,
}

/// Which sensor says how much a machine makes.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ProductionBody {
    /// The sensor's id on its gateway; `null` for none.
    #[serde(deserialize_with = "Option::deserialize")]
    #[schema(required, min_length = 1, max_length = 128)]
    sensor: Option<String>,
    /// What it shows; a counter, if not given.
    #[serde(default)]
    kind: Option<ProductionKind>,
}

/// What says how much a machine makes.
#[utoipa::path(get, path = "/machines/{id}/production", tag = "energy", params(("id" = Uuid, Path)),
    responses((status = 200, body = Production), (status = 404)))]
pub async fn get(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<Uuid>,
) -> Result<Tagged<Production>, ApiError> {
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    if objects::sites(&transaction, Object::Machine, &[id]).await?.is_empty() {
        return Err(ApiError::not_found("machine"));
    }
    let sensor = production::sensors(&transaction, None, Some(id)).await?.pop();
    Ok(Tagged::new(Production { sensor }))
}

/// Say which sensor tells how much a machine makes. Baselines that are there keep theirs.
#[utoipa::path(put, path = "/machines/{id}/production", tag = "energy",
    params(("id" = Uuid, Path), ("If-Match" = Option<String>, Header)), request_body = ProductionBody,
    responses((status = 200, body = Production), (status = 404), (status = 412, description = "`changed_meanwhile`")))]
pub async fn put(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<Uuid>,
    if_match: IfMatch,
    Body(body): Body<ProductionBody>,
) -> Result<Tagged<Production>, ApiError> {
    let sensor = body.sensor.map(|text| written("sensor", &text, SENSOR_CHARS_MAX, false)).transpose()?;
    let kind = body.kind.unwrap_or(ProductionKind::Counter);
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    machines_label::lock(&transaction, id).await?;
    let before = production::sensors(&transaction, None, Some(id)).await?.pop();
    if_match.check(&Production { sensor: before })?;
    let chosen = sensor.as_deref().map(|sensor| (sensor, kind));
    match production::set(&transaction, id, chosen, &caller.by(), state.now()).await? {
        Named::Done => {}
        Named::NoSuchMachine => return Err(ApiError::not_found("machine that is shown by itself")),
        Named::NoSuchSensor => return Err(ApiError::field("sensor", "is no sensor of this machine")),
        Named::BadUnit(bad) => return Err(ApiError::field("sensor", bad)),
    }
    let sensor = production::sensors(&transaction, None, Some(id)).await?.pop();
    transaction.commit().await?;
    tracing::info!(machine = %id, ?sensor, user = caller.user.name, "production sensor chosen");
    Ok(Tagged::new(Production { sensor }))
}
