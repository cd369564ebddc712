//! Anomalies.

use axum::{Json, extract::State};
use jiff::Timestamp;
use uuid::Uuid;

use super::{
    ApiState,
    access::Caller,
    extract::{Items, Params, Path},
    problem::ApiError,
};
use crate::{
    store::{
        anomalies_read::{self, Filter},
        scoped,
    },
    views::{Anomaly, AnomalyDetail},
};

/// Anomalies, the newest first.
#[utoipa::path(get, path = "/anomalies", tag = "anomalies",
    params(("machine" = Option<Uuid>, Query), ("open" = Option<bool>, Query),
        ("from" = Option<Timestamp>, Query, description = "Of the opening."),
        ("to" = Option<Timestamp>, Query, description = "Exclusive."),
        ("limit" = Option<u16>, Query, minimum = 1, maximum = 200), ("cursor" = Option<String>, Query)),
    responses((status = 200, body = Items<Anomaly>)))]
pub async fn list(
    State(state): State<ApiState>,
    caller: Caller,
    mut params: Params,
) -> Result<Json<Items<Anomaly>>, ApiError> {
    let filter = Filter {
        machine: params.id("machine"),
        open: params.flag("open"),
        from: params.time("from"),
        to: params.time("to"),
    };
    let page = params.page::<(Timestamp, Uuid)>();
    params.finish()?;
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    let rows = anomalies_read::list(&transaction, &filter, page.after.as_ref(), page.rows()).await?;
    Ok(Json(Items::new(rows, &page, |last| (last.opened_at, last.id))))
}

/// An anomaly with the raw values around it.
#[utoipa::path(get, path = "/anomalies/{id}", tag = "anomalies", params(("id" = Uuid, Path)),
    responses((status = 200, body = AnomalyDetail), (status = 404)))]
pub async fn one(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<Uuid>,
) -> Result<Json<AnomalyDetail>, ApiError> {
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    anomalies_read::detail(&transaction, id).await?.map(Json).ok_or_else(|| ApiError::not_found("anomaly"))
}
