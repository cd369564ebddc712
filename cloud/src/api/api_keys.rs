//! API keys: tools act with them for the user who made them.
//!
//! A key is shown once. It may no more than its user may at that moment, and less where it says so; it ends with its date, its
//! revocation, or its user.

use axum::{Extension, Json, extract::State, http::StatusCode};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    ApiState,
    access::Caller,
    extract::{Body, Items, Params, Path, named},
    idempotency::Secret,
    problem::ApiError,
};
use crate::{
    store::{
        api_keys::{self, ApiKey, KEYS_MAX},
        scoped,
    },
    users::{
        Role,
        secrets::{self, API_KEY},
    },
};

/// The longest that a key is good, and how long one is that does not say.
const LIFETIME_MAX: SignedDuration = SignedDuration::from_hours(366 * 24);
const LIFETIME: SignedDuration = SignedDuration::from_hours(90 * 24);
/// How much of a key is shown later: its kind and six characters, of 43.
const BEGINS_CHARS: usize = API_KEY.len() + 6;

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewApiKey {
    #[schema(min_length = 1, max_length = 100)]
    name: String,
    /// What it may at most.
    role: Role,
    /// Where only; without, wherever its user may.
    #[serde(default)]
    site: Option<Uuid>,
    /// Within a year; 90 days from now, if not given.
    #[serde(default)]
    expires_at: Option<Timestamp>,
}

#[allow(missing_debug_implementations, reason = "it holds a secret")]
#[derive(Serialize, ToSchema)]
pub struct CreatedApiKey {
    #[serde(flatten)]
    shown: ApiKey,
    /// For `Authorization: Bearer`. It is not shown again.
    key: String,
}

/// One's own API keys, the newest first; for admins of the organisation those of all users.
#[utoipa::path(get, path = "/api-keys", tag = "api keys",
    params(("user" = Option<Uuid>, Query), ("limit" = Option<u16>, Query, minimum = 1, maximum = 200),
        ("cursor" = Option<String>, Query)),
    responses((status = 200, body = Items<ApiKey>)))]
pub async fn list(
    State(state): State<ApiState>,
    caller: Caller,
    mut params: Params,
) -> Result<Json<Items<ApiKey>>, ApiError> {
    let user = params.id("user");
    let page = params.page::<Uuid>();
    params.finish()?;
    if !is_admin(&caller) && user.is_some_and(|user| user != caller.user.id) {
        return Err(ApiError::not_found("user"));
    }
    let user = if is_admin(&caller) { user } else { Some(caller.user.id) };
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    let rows = api_keys::list(&transaction, user, page.after, page.rows()).await?;
    Ok(Json(Items::new(rows, &page, |last| last.id)))
}

/// Make an API key. It is shown once.
#[utoipa::path(post, path = "/api-keys", tag = "api keys", request_body = NewApiKey,
    responses((status = 201, body = CreatedApiKey), (status = 403, description = "`session_required`"),
        (status = 409, description = "`too_many_keys`")))]
pub async fn create(
    State(state): State<ApiState>,
    caller: Caller,
    Body(body): Body<NewApiKey>,
) -> Result<(StatusCode, Extension<Secret>, Json<CreatedApiKey>), ApiError> {
    caller.session()?;
    let now = state.now();
    let name = named("name", &body.name)?;
    if body.site.is_some_and(|site| caller.scope.at(site).is_none()) {
        return Err(ApiError::field("site", "is none that you may see"));
    }
    let most = body.site.map_or(caller.scope.greatest(), |site| caller.scope.at(site));
    if Some(body.role) > most {
        return Err(ApiError::field("role", "is more than you may yourself"));
    }
    let latest = now.saturating_add(LIFETIME_MAX).unwrap_or(now);
    let expires_at = body.expires_at.unwrap_or_else(|| now.saturating_add(LIFETIME).unwrap_or(now));
    if expires_at <= now || expires_at > latest {
        return Err(ApiError::field("expires_at", "is in the future, and within a year"));
    }
    let key = secrets::new(API_KEY)?;
    let new = api_keys::NewKey {
        user: caller.user.id,
        organisation: caller.user.organisation,
        name: &name,
        hash: secrets::hash(API_KEY, &key).ok_or_else(ApiError::internal)?,
        begins: &key[..BEGINS_CHARS],
        role: body.role,
        site: body.site,
        expires_at,
    };
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    let Some(id) = api_keys::insert(&transaction, &new, &caller.by(), now).await? else {
        let detail = format!("you have {KEYS_MAX} keys: revoke one first");
        return Err(ApiError::conflict("too_many_keys", detail));
    };
    let shown = api_keys::one(&transaction, id).await?.ok_or_else(ApiError::internal)?;
    transaction.commit().await?;
    tracing::info!(key = %id, user = caller.user.name, "API key made");
    Ok((StatusCode::CREATED, Extension(Secret), Json(CreatedApiKey { shown, key })))
}

/// Revoke an API key: one's own, or as an admin of the organisation anybody's.
#[utoipa::path(delete, path = "/api-keys/{id}", tag = "api keys", params(("id" = Uuid, Path)),
    responses((status = 204), (status = 404)))]
pub async fn revoke(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<Uuid>,
) -> Result<StatusCode, ApiError> {
    let user = (!is_admin(&caller)).then_some(caller.user.id);
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    if !api_keys::revoke(&transaction, id, user, &caller.by(), state.now()).await? {
        return Err(ApiError::not_found("API key"));
    }
    transaction.commit().await?;
    tracing::info!(key = %id, user = caller.user.name, "API key revoked");
    Ok(StatusCode::NO_CONTENT)
}

fn is_admin(caller: &Caller) -> bool {
    caller.scope.everywhere() == Some(Role::Admin)
}
