//! How good the alarm system is to the people in front of it.

use axum::{Json, extract::State};
use jiff::SignedDuration;

use super::{ApiState, access::Caller, extract::Params, problem::ApiError};
use crate::{
    store::{
        quality::{self, SPAN_MAX, Span},
        scoped,
    },
    views::AlarmQuality,
};

const SPAN: SignedDuration = SignedDuration::from_hours(24 * 7);
const OPERATORS_MAX: i32 = 1_000;

/// The figures of an alarm system's quality, after ISA-18.2 and EEMUA 191.
///
/// Rates are for ten minutes and an operator: about one alarm is what a person can take over a shift, two are the most. Counted are
/// alarms that were announced; what was shelved, suppressed, out of service or late disturbed nobody.
#[utoipa::path(get, path = "/alarms/quality", tag = "alarms",
    params(("from" = Option<String>, Query, format = DateTime, description = "A week before `to`, if not given."),
        ("to" = Option<String>, Query, format = DateTime, description = "Exclusive; now, if not given."),
        ("site" = Option<Uuid>, Query),
        ("operators" = Option<i32>, Query, minimum = 1, maximum = 1000, description = "At a time; 1, if not given.")),
    responses((status = 200, body = AlarmQuality)))]
pub async fn read(
    State(state): State<ApiState>,
    caller: Caller,
    mut params: Params,
) -> Result<Json<AlarmQuality>, ApiError> {
    let to = params.time("to").unwrap_or_else(|| state.now());
    let from = params.time("from").unwrap_or_else(|| to.saturating_sub(SPAN).unwrap_or(to));
    let site = params.id("site");
    let operators = params.one("operators", "a number from 1 to 1000", |text| {
        text.parse().ok().filter(|operators| (1..=OPERATORS_MAX).contains(operators))
    });
    params.finish()?;
    if to <= from || to.duration_since(from) > SPAN_MAX {
        return Err(ApiError::field("to", "lies behind `from`, at most a year"));
    }
    let span = Span { from, to, site, operators: operators.unwrap_or(1) };
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    Ok(Json(quality::read(&transaction, span).await?))
}
