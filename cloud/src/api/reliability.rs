//! How reliable machines are, and what that costs.

use axum::{Json, extract::State};

use super::{ApiState, access::Caller, extract::Params, problem::ApiError};
use crate::{
    energy::{self, RANGE_DEFAULT},
    reliability::Reliability,
    store::{
        reliability::{self, By},
        scoped,
    },
};

/// MTBF, MTTR, availability and cost of machines or sites over a range.
///
/// - A **failure** is a corrective ticket, not cancelled, that names a failure mode or whose alarm was right. It was when its
///   incident opened, or else when the ticket was made.
/// - **MTBF** = operating time / failures (EN 15341:2019). Operating time is the hours in which the machine ran; of one without
///   modes, those in which anything is known of it.
/// - **MTTR** = mean time in progress of the repairs that are done; what waited or was on hold is not in it (active repair time,
///   ISO 14224:2016, annex C). The **mean down time** has all of it, from the failure to when the work was done.
/// - **Inherent availability** = MTBF / (MTBF + MTTR) (ISO 14224:2016, annex C). **Observed availability** = (running + idle) /
///   (running + idle + off) (ISO 22400-2:2014, with every hour of which the mode is known for planned).
/// - **Costs** are what was booked to tickets in the range, also to those without a failure.
///
/// What cannot be known is `null`. The range is widened to whole hours, and the answer says to which; the default is the last 30 days.
#[utoipa::path(get, path = "/reliability", tag = "tickets",
    params(("from" = Option<Timestamp>, Query), ("to" = Option<Timestamp>, Query, description = "Exclusive."),
        ("by" = Option<String>, Query, description = "What is added up: `machine`, which is the default, or `site`.",
            pattern = "^(machine|site)$"),
        ("site" = Option<Uuid>, Query)),
    responses((status = 200, body = Reliability)))]
pub async fn read(
    State(state): State<ApiState>,
    caller: Caller,
    mut params: Params,
) -> Result<Json<Reliability>, ApiError> {
    let (from, to, site) = (params.time("from"), params.time("to"), params.id("site"));
    let by = params.one("by", "machine or site", |text| match text {
        "machine" => Some(By::Machine),
        "site" => Some(By::Site),
        _ => None,
    });
    params.finish()?;
    let to = to.unwrap_or_else(|| state.now());
    let (from, to) = energy::hours(from.unwrap_or_else(|| to.saturating_sub(RANGE_DEFAULT).unwrap_or(to)), to)?;
    let _turn = state.0.trends.acquire().await.map_err(|_| ApiError::internal())?;
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    Ok(Json(reliability::read(&transaction, by.unwrap_or_default(), site, from, to).await?))
}
