//! What electricity costs at a site.

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use jiff::civil::Date;
use serde::Deserialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    ApiState,
    access::Caller,
    etag::{IfMatch, Tagged},
    extract::{Body, Items, Params, Path, day, named},
    problem::ApiError,
};
use crate::{
    energy::tariff::{self, Band, PRICE_MICRO_MAX},
    store::{
        scoped,
        tariffs::{self, TARIFFS_MAX, Tariff, Written},
    },
};

/// A tariff as it is written.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TariffBody {
    /// A tariff stays at its site.
    site: Uuid,
    #[schema(min_length = 1, max_length = 100)]
    name: String,
    /// ISO 4217.
    #[schema(pattern = "^[A-Z]{3}$")]
    currency: String,
    /// The first day, by the site's clocks; it holds until the next tariff of the site begins.
    #[serde(deserialize_with = "day")]
    #[schema(value_type = String, format = Date)]
    valid_from: Date,
    /// Millionths of the currency's unit for a kilowatt-hour, outside of all bands: 0.30 EUR is 300000.
    #[schema(minimum = -1_000_000_000, maximum = 1_000_000_000)]
    price_micro: i64,
    /// Hours of the week at other prices; they may not overlap.
    #[serde(default)]
    #[schema(max_items = 48)]
    bands: Vec<Band>,
}

impl TariffBody {
    fn check(self, id: Uuid) -> Result<Tariff, ApiError> {
        let name = named("name", &self.name)?;
        if self.currency.len() != 3 || !self.currency.bytes().all(|byte| byte.is_ascii_uppercase()) {
            return Err(ApiError::field("currency", "is a code of ISO 4217, like EUR"));
        }
        if !(-PRICE_MICRO_MAX..=PRICE_MICRO_MAX).contains(&self.price_micro) {
            return Err(ApiError::field("price_micro", "is from -1000000000 to 1000000000"));
        }
        tariff::check(&self.bands).map_err(|bad| ApiError::field("bands", bad))?;
        let band = |band: Band| Ok(Band { name: named("bands.name", &band.name)?, ..band });
        let bands = self.bands.into_iter().map(band).collect::<Result<Vec<Band>, ApiError>>()?;
        Ok(Tariff {
            id,
            site: self.site,
            name,
            currency: self.currency,
            valid_from: self.valid_from,
            price_micro: self.price_micro,
            bands,
        })
    }
}

/// Tariffs, the latest first.
#[utoipa::path(get, path = "/tariffs", tag = "energy",
    params(("site" = Option<Uuid>, Query), ("limit" = Option<u16>, Query, minimum = 1, maximum = 200),
        ("cursor" = Option<String>, Query)),
    responses((status = 200, body = Items<Tariff>)))]
pub async fn list(
    State(state): State<ApiState>,
    caller: Caller,
    mut params: Params,
) -> Result<Json<Items<Tariff>>, ApiError> {
    let site = params.id("site");
    let page = params.page::<(Date, Uuid)>();
    params.finish()?;
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    let rows = tariffs::list(&transaction, site, page.after.as_ref(), page.rows()).await?;
    Ok(Json(Items::new(rows, &page, |last| (last.valid_from, last.id))))
}

/// A tariff.
#[utoipa::path(get, path = "/tariffs/{id}", tag = "energy", params(("id" = Uuid, Path)),
    responses((status = 200, body = Tariff), (status = 404)))]
pub async fn one(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<Uuid>,
) -> Result<Tagged<Tariff>, ApiError> {
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    tariffs::one(&transaction, id, false).await?.map(Tagged::new).ok_or_else(missing)
}

/// Add a tariff. Costs of the past change with it, as far as it holds there.
#[utoipa::path(post, path = "/tariffs", tag = "energy", request_body = TariffBody,
    responses((status = 201, body = Tariff), (status = 409, description = "`begins_already` or `too_many_tariffs`")))]
pub async fn create(
    State(state): State<ApiState>,
    caller: Caller,
    Body(body): Body<TariffBody>,
) -> Result<Response, ApiError> {
    caller.may_add_at(body.site)?;
    let new = body.check(Uuid::now_v7())?;
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    done(tariffs::write(&transaction, None, &new, &caller.by(), state.now()).await?)?;
    transaction.commit().await?;
    tracing::info!(tariff = %new.id, site = %new.site, user = caller.user.name, "tariff added");
    Ok((StatusCode::CREATED, Tagged::new(new)).into_response())
}

/// Write a tariff anew. Costs of the past change with it.
#[utoipa::path(put, path = "/tariffs/{id}", tag = "energy", params(("id" = Uuid, Path), ("If-Match" = Option<String>, Header)),
    request_body = TariffBody, responses((status = 200, body = Tariff), (status = 404),
        (status = 409, description = "`begins_already`"), (status = 412, description = "`changed_meanwhile`")))]
pub async fn replace(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<Uuid>,
    if_match: IfMatch,
    Body(body): Body<TariffBody>,
) -> Result<Tagged<Tariff>, ApiError> {
    let after = body.check(id)?;
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    let before = tariffs::one(&transaction, id, true).await?.ok_or_else(missing)?;
    if_match.check(&before)?;
    if after.site != before.site {
        return Err(ApiError::field("site", "stays what it was"));
    }
    done(tariffs::write(&transaction, Some(&before), &after, &caller.by(), state.now()).await?)?;
    transaction.commit().await?;
    tracing::info!(tariff = %id, user = caller.user.name, "tariff changed");
    Ok(Tagged::new(after))
}

/// Take a tariff away: the one before it holds on.
#[utoipa::path(delete, path = "/tariffs/{id}", tag = "energy", params(("id" = Uuid, Path), ("If-Match" = Option<String>, Header)),
    responses((status = 204), (status = 404), (status = 412, description = "`changed_meanwhile`")))]
pub async fn delete(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<Uuid>,
    if_match: IfMatch,
) -> Result<StatusCode, ApiError> {
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    let before = tariffs::one(&transaction, id, true).await?.ok_or_else(missing)?;
    if_match.check(&before)?;
    tariffs::delete(&transaction, &before, &caller.by(), state.now()).await?;
    transaction.commit().await?;
    tracing::info!(tariff = %id, user = caller.user.name, "tariff taken away");
    Ok(StatusCode::NO_CONTENT)
}

fn missing() -> ApiError {
    ApiError::not_found("tariff")
}

fn done(written: Written) -> Result<(), ApiError> {
    match written {
        Written::Done => Ok(()),
        Written::Taken => Err(ApiError::conflict("begins_already", "another tariff of the site begins on that day")),
        Written::TooMany => {
            Err(ApiError::conflict("too_many_tariffs", format_args!("a site has at most {TARIFFS_MAX} tariffs")))
        }
    }
}
