//! Deliveries: what was sent to whom, what waits, and what was given up.

use axum::{Json, extract::State};
use uuid::Uuid;

use super::{
    ApiState,
    access::Caller,
    extract::{Items, Params, Path},
    problem::ApiError,
};
use crate::{
    notifications::Channel,
    store::{
        deliveries_read::{self, Delivery, DeliveryState, Filter},
        scoped,
    },
    users::Role,
    views::word,
};

/// Deliveries, the newest first. They are kept for 90 days. Tests of webhooks, which belong to no site, are shown to those who are
/// supervisors of the whole organisation.
#[utoipa::path(get, path = "/deliveries", tag = "notifications",
    params(("state" = Option<String>, Query, description = "`waiting`, `sending`, `sent`, `failed`, `dead` or `skipped`."),
        ("channel" = Option<String>, Query, description = "`webhook` or `email`."),
        ("incident" = Option<Uuid>, Query), ("webhook" = Option<Uuid>, Query), ("user" = Option<Uuid>, Query),
        ("limit" = Option<u16>, Query, minimum = 1, maximum = 200), ("cursor" = Option<String>, Query)),
    responses((status = 200, body = Items<Delivery>)))]
pub async fn list(
    State(state): State<ApiState>,
    caller: Caller,
    mut params: Params,
) -> Result<Json<Items<Delivery>>, ApiError> {
    let filter = Filter {
        state: params.one("state", "waiting, sending, sent, failed, dead or skipped", |text| {
            word::<DeliveryState>("state", text).ok()
        }),
        channel: params.one("channel", "webhook or email", |text| word::<Channel>("channel", text).ok()),
        incident: params.id("incident"),
        webhook: params.id("webhook"),
        user: params.id("user"),
        tests: caller.scope.everywhere() >= Some(Role::Supervisor),
    };
    let page = params.page::<Uuid>();
    params.finish()?;
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    let rows = deliveries_read::list(&transaction, &filter, page.after, page.rows()).await?;
    Ok(Json(Items::new(rows, &page, |last| last.id)))
}

/// Try a delivery again at once: one that was given up, failed, or is held. It has all its attempts before it again.
#[utoipa::path(post, path = "/deliveries/{id}/retry", tag = "notifications", params(("id" = Uuid, Path)),
    responses((status = 200, body = Delivery), (status = 404), (status = 409, description = "`not_retryable`")))]
pub async fn retry(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<Uuid>,
) -> Result<Json<Delivery>, ApiError> {
    let missing = || ApiError::not_found("delivery");
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    let known = deliveries_read::one(&transaction, id).await?.ok_or_else(missing)?;
    match known.state {
        DeliveryState::Dead | DeliveryState::Failed | DeliveryState::Waiting => {}
        DeliveryState::Sent | DeliveryState::Sending | DeliveryState::Skipped => {
            let detail = format!("the delivery is {}: there is nothing to try again", known.state.as_str());
            return Err(ApiError::conflict("not_retryable", detail));
        }
    }
    deliveries_read::retry(&transaction, &known, &caller.by(), state.now()).await?;
    let delivery = deliveries_read::one(&transaction, id).await?.ok_or_else(missing)?;
    transaction.commit().await?;
    Ok(Json(delivery))
}
