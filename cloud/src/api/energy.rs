//! Energy, and what machines did meanwhile.

use axum::{Json, extract::State};

use super::{ApiState, access::Caller, extract::Params, problem::ApiError};
use crate::{
    energy::{self, Energy, RANGE_DEFAULT},
    store::{self, scoped},
};

/// The machines' energy over a range, and how long they ran, idled, were off or anomalous.
///
/// The energy is what the gateways measured; where they had no readings, nothing is added. The range is widened to whole
/// hours, and the answer says to which; the default is the last 30 days. Hours that are no longer kept finely count by days.
#[utoipa::path(get, path = "/energy", tag = "machines",
    params(("from" = Option<Timestamp>, Query), ("to" = Option<Timestamp>, Query, description = "Exclusive."),
        ("by" = Option<String>, Query, description = "What is added up: `machine`, which is the default.", pattern = "^machine$")),
    responses((status = 200, body = Energy)))]
pub async fn read(State(state): State<ApiState>, caller: Caller, mut params: Params) -> Result<Json<Energy>, ApiError> {
    let (from, to) = (params.time("from"), params.time("to"));
    params.one("by", "machine", |text| (text == "machine").then_some(()));
    params.finish()?;
    let to = to.unwrap_or_else(|| state.now());
    let (from, to) = energy::hours(from.unwrap_or_else(|| to.saturating_sub(RANGE_DEFAULT).unwrap_or(to)), to)?;
    let _turn = state.0.trends.acquire().await.map_err(|_| ApiError::internal())?;
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    Ok(Json(store::energy::by_machine(&transaction, from, to).await?))
}
