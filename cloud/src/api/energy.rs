//! Energy, what it cost and emitted, and what machines did meanwhile.

use axum::{Json, extract::State};

use super::{ApiState, access::Caller, extract::Params, problem::ApiError};
use crate::{
    energy::{self, By, Energy, Question, RANGE_DEFAULT, TooLarge, calendar::Per},
    store::{self, scoped},
    views::word,
};

/// The energy of machines or sites over a range: what it cost and emitted, and how long they ran, idled, were off or anomalous.
///
/// The energy is what the gateways measured; where they had no readings, nothing is added: `measured_h` of `range_h` hours are known.
/// The range is widened to whole hours, and the answer says to which; the default is the last 30 days. Hours that are no longer kept
/// finely count by days.
///
/// `per` gives hours, days or months by the clocks of each site. Costs are by the site's tariffs and emissions by its carbon factors,
/// hour by hour; an hour's energy is shared evenly among its quarters where a band, a day or a factor begins within it.
#[utoipa::path(get, path = "/energy", tag = "energy",
    params(("from" = Option<Timestamp>, Query), ("to" = Option<Timestamp>, Query, description = "Exclusive."),
        ("by" = Option<By>, Query, description = "What is added up: `machine`, which is the default, or `site`."),
        ("per" = Option<Per>, Query, description = "Whether to tell hours, days or months too."),
        ("site" = Option<Uuid>, Query), ("machine" = Option<Uuid>, Query)),
    responses((status = 200, body = Energy)))]
pub async fn read(State(state): State<ApiState>, caller: Caller, mut params: Params) -> Result<Json<Energy>, ApiError> {
    let (from, to) = (params.time("from"), params.time("to"));
    let by: Option<By> = params.one("by", "machine or site", |text| word("by", text).ok());
    let per: Option<Per> = params.one("per", "hour, day or month", |text| word("per", text).ok());
    let (site, machine) = (params.id("site"), params.id("machine"));
    params.finish()?;
    let to = to.unwrap_or_else(|| state.now());
    let (from, to) = energy::hours(from.unwrap_or_else(|| to.saturating_sub(RANGE_DEFAULT).unwrap_or(to)), to)?;
    let question = Question { from, to, by: by.unwrap_or_default(), per, site, machine };
    let _turn = state.0.trends.acquire().await.map_err(|_| ApiError::internal())?;
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    let read = store::energy::read(&transaction, &question, state.0.parts.carbon_g_per_kwh).await?;
    read.map(Json).map_err(|too_large| {
        ApiError::field(if matches!(too_large, TooLarge::Periods) { "per" } else { "from" }, too_large)
    })
}
