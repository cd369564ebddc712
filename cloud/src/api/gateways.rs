//! Gateways.

use axum::{Json, extract::State};
use uuid::Uuid;

use super::{
    ApiState,
    access::Caller,
    extract::{Items, Params},
    problem::ApiError,
};
use crate::{
    store::{gateways_read, scoped},
    views::Gateway,
};

/// All gateways, by name.
#[utoipa::path(get, path = "/gateways", tag = "gateways",
    params(("limit" = Option<u16>, Query, minimum = 1, maximum = 200), ("cursor" = Option<String>, Query)),
    responses((status = 200, body = Items<Gateway>)))]
pub async fn list(
    State(state): State<ApiState>,
    caller: Caller,
    mut params: Params,
) -> Result<Json<Items<Gateway>>, ApiError> {
    let page = params.page::<(String, Uuid)>();
    params.finish()?;
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    let rows =
        gateways_read::list(&transaction, page.after.as_ref(), page.rows(), state.now(), state.patience()).await?;
    Ok(Json(Items::new(rows, &page, |last| (last.name.clone(), last.id))))
}
