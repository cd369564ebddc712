//! Areas, lines and cells of a site.

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
    extract::{Body, Items, Params, Path, named, present},
    problem::ApiError,
};
use crate::store::{
    areas::{self, Area, AreaKind, Changed},
    scoped,
};

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewArea {
    site: Uuid,
    /// What it is a part of; without, of the site itself.
    #[serde(default)]
    parent: Option<Uuid>,
    kind: AreaKind,
    #[schema(min_length = 1, max_length = 100)]
    name: String,
}

/// What is left out stays as it is.
#[allow(clippy::option_option, reason = "`null` and absence are two things")]
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AreaChange {
    /// `null`: the site itself.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<Uuid>)]
    parent: Option<Option<Uuid>>,
    #[serde(default)]
    kind: Option<AreaKind>,
    #[serde(default)]
    #[schema(min_length = 1, max_length = 100)]
    name: Option<String>,
}

/// Areas, by name.
#[utoipa::path(get, path = "/areas", tag = "sites",
    params(("site" = Option<Uuid>, Query), ("limit" = Option<u16>, Query, minimum = 1, maximum = 200),
        ("cursor" = Option<String>, Query)),
    responses((status = 200, body = Items<Area>)))]
pub async fn list(
    State(state): State<ApiState>,
    caller: Caller,
    mut params: Params,
) -> Result<Json<Items<Area>>, ApiError> {
    let site = params.id("site");
    let page = params.page::<(String, Uuid)>();
    params.finish()?;
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    let rows = areas::list(&transaction, site, page.after.as_ref(), page.rows()).await?;
    Ok(Json(Items::new(rows, &page, |last| (last.name.clone(), last.id))))
}

/// An area.
#[utoipa::path(get, path = "/areas/{id}", tag = "sites", params(("id" = Uuid, Path)),
    responses((status = 200, body = Area), (status = 404)))]
pub async fn one(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<Uuid>,
) -> Result<Tagged<Area>, ApiError> {
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    areas::one(&transaction, id, false).await?.map(Tagged::new).ok_or_else(missing)
}

/// Add an area.
#[utoipa::path(post, path = "/areas", tag = "sites", request_body = NewArea,
    responses((status = 201, body = Area), (status = 409, description = "`name_taken` or `too_many_areas`")))]
pub async fn create(
    State(state): State<ApiState>,
    caller: Caller,
    Body(body): Body<NewArea>,
) -> Result<Response, ApiError> {
    caller.may_add_at(body.site)?;
    let name = named("name", &body.name)?;
    let area = Area { id: Uuid::now_v7(), site: body.site, parent: body.parent, kind: body.kind, name };
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    let organisation = caller.user.organisation;
    done(areas::write(&transaction, organisation, None, &area, &caller.by(), state.now()).await?)?;
    transaction.commit().await?;
    Ok((StatusCode::CREATED, Tagged::new(area)).into_response())
}

/// Change an area.
#[utoipa::path(patch, path = "/areas/{id}", tag = "sites", params(("id" = Uuid, Path), ("If-Match" = Option<String>, Header)),
    request_body = AreaChange, responses((status = 200, body = Area), (status = 404),
        (status = 409, description = "`name_taken`"), (status = 412, description = "`changed_meanwhile`")))]
pub async fn change(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<Uuid>,
    if_match: IfMatch,
    Body(body): Body<AreaChange>,
) -> Result<Tagged<Area>, ApiError> {
    let name = body.name.map(|name| named("name", &name)).transpose()?;
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    let before = areas::one(&transaction, id, true).await?.ok_or_else(missing)?;
    if_match.check(&before)?;
    let after = Area {
        parent: body.parent.unwrap_or(before.parent),
        kind: body.kind.unwrap_or(before.kind),
        name: name.unwrap_or_else(|| before.name.clone()),
        ..before
    };
    let organisation = caller.user.organisation;
    done(areas::write(&transaction, organisation, Some(&before), &after, &caller.by(), state.now()).await?)?;
    transaction.commit().await?;
    Ok(Tagged::new(after))
}

/// Take an area away that has no parts and no machines.
#[utoipa::path(delete, path = "/areas/{id}", tag = "sites", params(("id" = Uuid, Path), ("If-Match" = Option<String>, Header)),
    responses((status = 204), (status = 404), (status = 409, description = "`in_use`"),
        (status = 412, description = "`changed_meanwhile`")))]
pub async fn delete(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<Uuid>,
    if_match: IfMatch,
) -> Result<StatusCode, ApiError> {
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    let before = areas::one(&transaction, id, true).await?.ok_or_else(missing)?;
    if_match.check(&before)?;
    done(areas::delete(&transaction, &before, &caller.by(), state.now()).await?)?;
    transaction.commit().await?;
    Ok(StatusCode::NO_CONTENT)
}

fn missing() -> ApiError {
    ApiError::not_found("area")
}

fn done(changed: Changed) -> Result<Uuid, ApiError> {
    match changed {
        Changed::Done(id) => Ok(id),
        Changed::Taken => Err(ApiError::conflict("name_taken", "there is a part of this name already")),
        Changed::BadParent => Err(ApiError::field("parent", "is no area of the same site, or a part of this one")),
        Changed::InUse => Err(ApiError::conflict("in_use", "it has parts or machines: move them first")),
        Changed::TooMany => {
            let detail = format!("a site has at most {} areas", areas::AREAS_MAX);
            Err(ApiError::conflict("too_many_areas", detail))
        }
    }
}
