//! The organisation, and its sites.

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use serde::Deserialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    ApiState,
    access::Caller,
    etag::{IfMatch, Tagged},
    extract::{Body, Items, Params, Path, named},
    problem::ApiError,
};
use crate::{
    store::{
        scoped,
        sites::{self, CostBasis, Named, Organisation, Site},
    },
    tickets::costs::{AMOUNT_MAX, is_currency},
};

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Name {
    #[schema(min_length = 1, max_length = 100)]
    name: String,
}

/// The caller's organisation.
#[utoipa::path(get, path = "/organisation", tag = "sites", responses((status = 200, body = Organisation)))]
pub async fn organisation(State(state): State<ApiState>, caller: Caller) -> Result<Tagged<Organisation>, ApiError> {
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    let found = sites::organisation(&transaction, caller.user.organisation, false).await?;
    let found = found.ok_or_else(|| ApiError::not_found("organisation"))?;
    let name = found.name.clone();
    Ok(Tagged::by(found, &name))
}

/// Rename the organisation.
#[utoipa::path(patch, path = "/organisation", tag = "sites", params(("If-Match" = Option<String>, Header)), request_body = Name,
    responses((status = 200, body = Organisation), (status = 409, description = "`name_taken`"),
        (status = 412, description = "`changed_meanwhile`")))]
pub async fn rename_organisation(
    State(state): State<ApiState>,
    caller: Caller,
    if_match: IfMatch,
    Body(body): Body<Name>,
) -> Result<Tagged<Organisation>, ApiError> {
    let name = named("name", &body.name)?;
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    let before = sites::organisation(&transaction, caller.user.organisation, true).await?;
    let before = before.ok_or_else(|| ApiError::not_found("organisation"))?;
    if_match.check(&before.name)?;
    done(sites::rename_organisation(&transaction, &before, &name, &caller.by(), state.now()).await?)?;
    transaction.commit().await?;
    let after = Organisation { name: name.clone(), ..before };
    Ok(Tagged::by(after, &name))
}

/// What the organisation's work is counted in.
#[utoipa::path(get, path = "/organisation/costs", tag = "tickets", responses((status = 200, body = CostBasis)))]
pub async fn cost_basis(State(state): State<ApiState>, caller: Caller) -> Result<Tagged<CostBasis>, ApiError> {
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    Ok(Tagged::new(sites::cost_basis(&transaction, caller.user.organisation).await?))
}

/// Say what the organisation's work is counted in. What was written down before stays as it was.
#[utoipa::path(put, path = "/organisation/costs", tag = "tickets", params(("If-Match" = Option<String>, Header)),
    request_body = CostBasis,
    responses((status = 200, body = CostBasis), (status = 412, description = "`changed_meanwhile`")))]
pub async fn set_cost_basis(
    State(state): State<ApiState>,
    caller: Caller,
    if_match: IfMatch,
    Body(body): Body<CostBasis>,
) -> Result<Tagged<CostBasis>, ApiError> {
    if !is_currency(&body.currency) {
        return Err(ApiError::field("currency", "is a code of ISO 4217, like EUR"));
    }
    if !(0..=AMOUNT_MAX).contains(&body.labour_rate_minor) {
        return Err(ApiError::field("labour_rate_minor", format_args!("is from 0 to {AMOUNT_MAX}")));
    }
    let organisation = caller.user.organisation;
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    // The lock keeps two from changing it at once.
    sites::organisation(&transaction, organisation, true).await?;
    let before = sites::cost_basis(&transaction, organisation).await?;
    if_match.check(&before)?;
    sites::set_cost_basis(&transaction, organisation, (&before, &body), &caller.by(), state.now()).await?;
    transaction.commit().await?;
    tracing::info!(currency = body.currency, user = caller.user.name, "cost basis set");
    Ok(Tagged::new(body))
}

/// Sites, by name.
#[utoipa::path(get, path = "/sites", tag = "sites",
    params(("limit" = Option<u16>, Query, minimum = 1, maximum = 200), ("cursor" = Option<String>, Query)),
    responses((status = 200, body = Items<Site>)))]
pub async fn list(
    State(state): State<ApiState>,
    caller: Caller,
    mut params: Params,
) -> Result<Json<Items<Site>>, ApiError> {
    let page = params.page::<(String, Uuid)>();
    params.finish()?;
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    let rows = sites::list(&transaction, page.after.as_ref(), page.rows()).await?;
    Ok(Json(Items::new(rows, &page, |last| (last.name.clone(), last.id))))
}

/// A site.
#[utoipa::path(get, path = "/sites/{id}", tag = "sites", params(("id" = Uuid, Path)),
    responses((status = 200, body = Site), (status = 404)))]
pub async fn one(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<Uuid>,
) -> Result<Tagged<Site>, ApiError> {
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    let found = sites::one(&transaction, id, false).await?.ok_or_else(|| ApiError::not_found("site"))?;
    let name = found.name.clone();
    Ok(Tagged::by(found, &name))
}

/// Add a site.
#[utoipa::path(post, path = "/sites", tag = "sites", request_body = Name,
    responses((status = 201, body = Site), (status = 409, description = "`name_taken` or `too_many_sites`")))]
pub async fn create(
    State(state): State<ApiState>,
    caller: Caller,
    Body(body): Body<Name>,
) -> Result<Response, ApiError> {
    let name = named("name", &body.name)?;
    let now = state.now();
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    let id = done(sites::insert(&transaction, caller.user.organisation, &name, &caller.by(), now).await?)?;
    transaction.commit().await?;
    tracing::info!(site = %id, user = caller.user.name, "site added");
    let site = Site { id, name: name.clone(), created_at: now, gateways: 0, machines: 0 };
    Ok((StatusCode::CREATED, Tagged::by(site, &name)).into_response())
}

/// Rename a site.
#[utoipa::path(patch, path = "/sites/{id}", tag = "sites", params(("id" = Uuid, Path), ("If-Match" = Option<String>, Header)),
    request_body = Name, responses((status = 200, body = Site), (status = 404), (status = 409, description = "`name_taken`"),
        (status = 412, description = "`changed_meanwhile`")))]
pub async fn rename(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<Uuid>,
    if_match: IfMatch,
    Body(body): Body<Name>,
) -> Result<Tagged<Site>, ApiError> {
    let name = named("name", &body.name)?;
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    let before = sites::one(&transaction, id, true).await?.ok_or_else(|| ApiError::not_found("site"))?;
    if_match.check(&before.name)?;
    done(sites::rename(&transaction, &before, &name, &caller.by(), state.now()).await?)?;
    transaction.commit().await?;
    let after = Site { name: name.clone(), ..before };
    Ok(Tagged::by(after, &name))
}

fn done(named: Named) -> Result<Uuid, ApiError> {
    match named {
        Named::Done(id) => Ok(id),
        Named::Taken => Err(ApiError::conflict("name_taken", "the name is taken")),
        Named::TooMany => {
            let detail = format!("an organisation has at most {} sites", sites::SITES_MAX);
            Err(ApiError::conflict("too_many_sites", detail))
        }
    }
}
