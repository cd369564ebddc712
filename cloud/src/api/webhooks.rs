//! Webhooks: where an organisation wants to be called when something happens.
//!
//! Calls are those of Standard Webhooks; [`crate::notifications::message`] says what is in them, and
//! [`crate::notifications::signature`] how they are signed.

use std::net::SocketAddr;

use axum::{Extension, Json, extract::State, http::StatusCode};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    ApiState,
    access::Caller,
    etag::{IfMatch, Tagged},
    extract::{Body, Items, Params, Path, present, written},
    idempotency::Secret,
    notifications::some_sites,
    problem::ApiError,
};
use crate::{
    alarms::Severity,
    notifications::address,
    store::{
        deliveries_read::{self, Delivery},
        scoped,
        webhooks::{self, COUNT_MAX, Refused, Settings, Webhook},
    },
};

const NAME_CHARS_MAX: usize = 100;

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewWebhook {
    #[schema(min_length = 1, max_length = 100)]
    name: String,
    /// `https://` or `http://`, without user and password.
    #[schema(max_length = 2000)]
    url: String,
    /// `null`: all.
    #[serde(default)]
    #[schema(max_items = 500)]
    sites: Option<Vec<Uuid>>,
    /// Incidents below are not told.
    #[serde(default = "low")]
    severity_min: Severity,
    #[serde(default = "yes")]
    enabled: bool,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[allow(clippy::option_option, reason = "`null` and absence are two things")]
pub struct WebhookChange {
    #[schema(min_length = 1, max_length = 100)]
    name: Option<String>,
    #[schema(max_length = 2000)]
    url: Option<String>,
    /// `null`: all.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<Vec<Uuid>>, max_items = 500)]
    sites: Option<Option<Vec<Uuid>>>,
    severity_min: Option<Severity>,
    enabled: Option<bool>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct WebhookWithSecret {
    #[serde(flatten)]
    webhook: Webhook,
    /// Checks the signatures; it is shown only here.
    #[schema(example = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")]
    secret: String,
}

fn low() -> Severity {
    Severity::Low
}

fn yes() -> bool {
    true
}

/// Webhooks, the oldest first.
#[utoipa::path(get, path = "/webhooks", tag = "notifications",
    params(("limit" = Option<u16>, Query, minimum = 1, maximum = 200), ("cursor" = Option<String>, Query)),
    responses((status = 200, body = Items<Webhook>)))]
pub async fn list(
    State(state): State<ApiState>,
    caller: Caller,
    mut params: Params,
) -> Result<Json<Items<Webhook>>, ApiError> {
    let page = params.page::<Uuid>();
    params.finish()?;
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    let rows = webhooks::list(&transaction, page.after, page.rows()).await?;
    Ok(Json(Items::new(rows, &page, |last| last.id)))
}

/// Add a webhook. Its secret is in this answer and never again.
#[utoipa::path(post, path = "/webhooks", tag = "notifications", request_body = NewWebhook,
    responses((status = 201, body = WebhookWithSecret), (status = 409, description = "`name_taken`, `too_many`")))]
pub async fn add(
    State(state): State<ApiState>,
    caller: Caller,
    Body(body): Body<NewWebhook>,
) -> Result<(StatusCode, Extension<Secret>, Json<WebhookWithSecret>), ApiError> {
    let settings = checked(
        &state,
        Settings {
            name: body.name,
            url: body.url,
            sites: body.sites,
            severity_min: body.severity_min,
            enabled: body.enabled,
        },
    )?;
    let id = Uuid::now_v7();
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    known_sites(&transaction, &settings).await?;
    match webhooks::add(&transaction, id, &settings, &caller.by(), state.now()).await? {
        Ok(()) => {}
        Err(Refused::Taken) => return Err(taken()),
        Err(Refused::TooMany) => {
            return Err(ApiError::conflict(
                "too_many",
                format_args!("there are {COUNT_MAX} webhooks, the most there can be"),
            ));
        }
    }
    let webhook = webhooks::one(&transaction, id, false).await?.ok_or_else(missing)?;
    transaction.commit().await?;
    let secret = state.notifications().secrets.shown(id, webhook.secret_generation);
    Ok((StatusCode::CREATED, Extension(Secret), Json(WebhookWithSecret { webhook, secret })))
}

/// One webhook.
#[utoipa::path(get, path = "/webhooks/{id}", tag = "notifications", params(("id" = Uuid, Path)),
    responses((status = 200, body = Webhook), (status = 404)))]
pub async fn one(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<Uuid>,
) -> Result<Tagged<Webhook>, ApiError> {
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    webhooks::one(&transaction, id, false).await?.map(Tagged::new).ok_or_else(missing)
}

/// Change a webhook, or switch it off or on.
#[utoipa::path(patch, path = "/webhooks/{id}", tag = "notifications",
    params(("id" = Uuid, Path), ("If-Match" = Option<String>, Header)),
    request_body = WebhookChange,
    responses((status = 200, body = Webhook), (status = 404), (status = 409, description = "`name_taken`"),
        (status = 412, description = "`changed_meanwhile`")))]
pub async fn change(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<Uuid>,
    if_match: IfMatch,
    Body(body): Body<WebhookChange>,
) -> Result<Tagged<Webhook>, ApiError> {
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    let known = webhooks::one(&transaction, id, true).await?.ok_or_else(missing)?;
    if_match.check(&known)?;
    let settings = Settings {
        name: body.name.unwrap_or_else(|| known.name.clone()),
        url: body.url.unwrap_or_else(|| known.url.clone()),
        sites: body.sites.unwrap_or_else(|| known.sites.clone()),
        severity_min: body.severity_min.unwrap_or(known.severity_min),
        enabled: body.enabled.unwrap_or(known.enabled),
    };
    let settings = checked(&state, settings)?;
    known_sites(&transaction, &settings).await?;
    let changed = webhooks::change(&transaction, &known, &settings, &caller.by(), state.now()).await;
    changed.map_err(|error| if error.is_duplicate() { taken() } else { error.into() })?;
    let webhook = webhooks::one(&transaction, id, false).await?.ok_or_else(missing)?;
    transaction.commit().await?;
    Ok(Tagged::new(webhook))
}

/// Delete a webhook. What was delivered to it can still be looked at.
#[utoipa::path(delete, path = "/webhooks/{id}", tag = "notifications",
    params(("id" = Uuid, Path), ("If-Match" = Option<String>, Header)),
    responses((status = 204), (status = 404), (status = 412, description = "`changed_meanwhile`")))]
pub async fn delete(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<Uuid>,
    if_match: IfMatch,
) -> Result<StatusCode, ApiError> {
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    let known = webhooks::one(&transaction, id, true).await?.ok_or_else(missing)?;
    if_match.check(&known)?;
    webhooks::delete(&transaction, &known, &caller.by(), state.now()).await?;
    transaction.commit().await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Give a webhook a new secret. For 24 hours calls are signed with the one before as well.
#[utoipa::path(post, path = "/webhooks/{id}/secret", tag = "notifications", params(("id" = Uuid, Path)),
    responses((status = 200, body = WebhookWithSecret), (status = 404)))]
pub async fn rotate(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<Uuid>,
) -> Result<(Extension<Secret>, Json<WebhookWithSecret>), ApiError> {
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    let known = webhooks::one(&transaction, id, true).await?.ok_or_else(missing)?;
    let generation = webhooks::rotate(&transaction, &known, &caller.by(), state.now()).await?;
    let webhook = webhooks::one(&transaction, id, false).await?.ok_or_else(missing)?;
    transaction.commit().await?;
    let secret = state.notifications().secrets.shown(id, generation);
    Ok((Extension(Secret), Json(WebhookWithSecret { webhook, secret })))
}

/// Call a webhook to see whether it works. The answer is the delivery, whose state tells it a moment later.
#[utoipa::path(post, path = "/webhooks/{id}/test", tag = "notifications", params(("id" = Uuid, Path)),
    responses((status = 202, body = Delivery), (status = 404), (status = 409, description = "`switched_off`")))]
pub async fn test(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<Uuid>,
) -> Result<(StatusCode, Json<Delivery>), ApiError> {
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    let known = webhooks::one(&transaction, id, true).await?.ok_or_else(missing)?;
    if !known.enabled {
        return Err(ApiError::conflict("switched_off", "the webhook is switched off: switch it on first"));
    }
    let now: Timestamp = state.now();
    if deliveries_read::tests_waiting(&transaction, id).await? >= deliveries_read::TESTS_MAX {
        return Err(ApiError::conflict("too_many", "tests of this webhook wait already: look at them first"));
    }
    let delivery = deliveries_read::test(&transaction, &known, &caller.by(), now).await?;
    transaction.commit().await?;
    Ok((StatusCode::ACCEPTED, Json(delivery)))
}

fn missing() -> ApiError {
    ApiError::not_found("webhook")
}

fn taken() -> ApiError {
    ApiError::conflict("name_taken", "another webhook has this name")
}

fn checked(state: &ApiState, settings: Settings) -> Result<Settings, ApiError> {
    let name = written("name", &settings.name, NAME_CHARS_MAX, false)?;
    if name.is_empty() {
        return Err(ApiError::field("name", "is not empty"));
    }
    let policy = &state.notifications().policy;
    let allowed = |ip, port| policy.check(SocketAddr::new(ip, port), false).is_ok();
    let url = address::parse(&settings.url, allowed).map_err(|error| ApiError::field("url", error))?;
    Ok(Settings { name, url: url.into(), sites: settings.sites.map(some_sites).transpose()?, ..settings })
}

async fn known_sites(transaction: &deadpool_postgres::Transaction<'_>, settings: &Settings) -> Result<(), ApiError> {
    match &settings.sites {
        Some(sites) if !webhooks::sites_known(transaction, sites).await? => {
            Err(ApiError::field("sites", "has a site that there is not"))
        }
        _ => Ok(()),
    }
}
