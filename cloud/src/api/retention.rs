//! How long an organisation keeps its past.

use axum::extract::State;

use super::{
    ApiState,
    access::Caller,
    etag::{IfMatch, Tagged},
    extract::Body,
    problem::{ApiError, FieldError},
};
use crate::{
    history::KEPT_DAYS,
    store::{
        retention::{self, Retention},
        scoped, sites,
    },
};

/// How long the organisation keeps its past.
#[utoipa::path(get, path = "/retention", tag = "sites", responses((status = 200, body = Retention)))]
pub async fn get(State(state): State<ApiState>, caller: Caller) -> Result<Tagged<Retention>, ApiError> {
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    Ok(Tagged::new(retention::of(&transaction, caller.user.organisation).await?))
}

/// Say how long the organisation keeps its past.
///
/// What is older is dropped at the next pass, every ten minutes or so, and does not come back when more is to be kept again.
#[utoipa::path(put, path = "/retention", tag = "sites", params(("If-Match" = Option<String>, Header)),
    request_body = Retention,
    responses((status = 200, body = Retention), (status = 412, description = "`changed_meanwhile`")))]
pub async fn put(
    State(state): State<ApiState>,
    caller: Caller,
    if_match: IfMatch,
    Body(body): Body<Retention>,
) -> Result<Tagged<Retention>, ApiError> {
    check(body)?;
    let organisation = caller.user.organisation;
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    // The lock keeps two from changing it at once.
    sites::organisation(&transaction, organisation, true).await?;
    let before = retention::of(&transaction, organisation).await?;
    if_match.check(&before)?;
    retention::set(&transaction, organisation, (before, body), &caller.by(), state.now()).await?;
    transaction.commit().await?;
    tracing::info!(?body, user = caller.user.name, "retention set");
    Ok(Tagged::new(body))
}

fn check(retention: Retention) -> Result<(), ApiError> {
    let mut errors = Vec::new();
    let mut wrong = |wrong: bool, field: &str, message: String| {
        if wrong {
            errors.push(FieldError { field: field.to_owned(), message });
        }
    };
    let days = format!("is from {} to {} days", KEPT_DAYS.start(), KEPT_DAYS.end());
    let Retention { intervals_days, hours_days } = retention;
    wrong(!KEPT_DAYS.contains(&intervals_days), "intervals_days", days.clone());
    wrong(!KEPT_DAYS.contains(&hours_days), "hours_days", days);
    let shorter = "is no shorter than that of intervals: trends go over from one to the other";
    wrong(hours_days < intervals_days, "hours_days", shorter.to_owned());
    if errors.is_empty() {
        return Ok(());
    }
    Err(ApiError::fields("invalid_fields", "a field is not as it should be", errors))
}
