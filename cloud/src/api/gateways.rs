//! Gateways.

use axum::{Json, extract::State};
use uuid::Uuid;

use super::{
    ApiState,
    extract::{Items, Params},
    problem::ApiError,
};
use crate::{store::gateways_read, views::Gateway};

/// All gateways, by name.
#[utoipa::path(get, path = "/gateways", tag = "gateways",
    params(("limit" = Option<u16>, Query, minimum = 1, maximum = 200), ("cursor" = Option<String>, Query)),
    responses((status = 200, body = Items<Gateway>)))]
pub async fn list(State(state): State<ApiState>, mut params: Params) -> Result<Json<Items<Gateway>>, ApiError> {
    let page = params.page::<(String, Uuid)>();
    params.finish()?;
    let rows =
        gateways_read::list(state.store(), page.after.as_ref(), page.rows(), state.now(), state.patience()).await?;
    Ok(Json(Items::new(rows, &page, |last| (last.name.clone(), last.id))))
}
