//! What a kilowatt-hour emits at a site.

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use jiff::Timestamp;
use serde::Deserialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    ApiState,
    access::Caller,
    etag::{IfMatch, Tagged},
    extract::{Body, Items, Params, Path, YEARS, written},
    problem::ApiError,
};
use crate::store::{
    carbon_factors::{self, CarbonFactor, FACTORS_MAX},
    scoped,
    tariffs::Written,
};

/// Above what any grid emits: lignite alone makes about 1,200.
const G_PER_KWH_MAX: f64 = 10_000.0;
const SOURCE_CHARS_MAX: usize = 200;
/// Factors begin at quarters of an hour, as prices do.
const QUARTER_S: i64 = 900;

/// A carbon factor as it is written.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CarbonFactorBody {
    /// A factor stays at its site.
    site: Uuid,
    /// A whole quarter of an hour; it holds until the next factor of the site begins.
    valid_from: Timestamp,
    /// Grams of CO2 equivalent for a kilowatt-hour.
    #[schema(minimum = 0, maximum = 10_000)]
    g_per_kwh: f64,
    /// Who says so.
    #[serde(default)]
    #[schema(max_length = 200)]
    source: String,
}

impl CarbonFactorBody {
    fn check(self, id: Uuid) -> Result<CarbonFactor, ApiError> {
        let whole =
            self.valid_from.as_microsecond() % (QUARTER_S * 1_000_000) == 0 && self.valid_from.subsec_nanosecond() == 0;
        let year = self.valid_from.to_zoned(jiff::tz::TimeZone::UTC).year();
        if !whole || !YEARS.contains(&year) {
            return Err(ApiError::field("valid_from", "is a whole quarter of an hour, from 1970 to 2199"));
        }
        if !(0.0..=G_PER_KWH_MAX).contains(&self.g_per_kwh) {
            return Err(ApiError::field("g_per_kwh", "is from 0 to 10000"));
        }
        let source = written("source", &self.source, SOURCE_CHARS_MAX, false)?;
        Ok(CarbonFactor { id, site: self.site, valid_from: self.valid_from, g_per_kwh: self.g_per_kwh, source })
    }
}

/// Carbon factors, the latest first.
#[utoipa::path(get, path = "/carbon-factors", tag = "energy",
    params(("site" = Option<Uuid>, Query), ("limit" = Option<u16>, Query, minimum = 1, maximum = 200),
        ("cursor" = Option<String>, Query)),
    responses((status = 200, body = Items<CarbonFactor>)))]
pub async fn list(
    State(state): State<ApiState>,
    caller: Caller,
    mut params: Params,
) -> Result<Json<Items<CarbonFactor>>, ApiError> {
    let site = params.id("site");
    let page = params.page::<(Timestamp, Uuid)>();
    params.finish()?;
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    let rows = carbon_factors::list(&transaction, site, page.after.as_ref(), page.rows()).await?;
    Ok(Json(Items::new(rows, &page, |last| (last.valid_from, last.id))))
}

/// A carbon factor.
#[utoipa::path(get, path = "/carbon-factors/{id}", tag = "energy", params(("id" = Uuid, Path)),
    responses((status = 200, body = CarbonFactor), (status = 404)))]
pub async fn one(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<Uuid>,
) -> Result<Tagged<CarbonFactor>, ApiError> {
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    carbon_factors::one(&transaction, id, false).await?.map(Tagged::new).ok_or_else(missing)
}

/// Add a carbon factor. Before the first one of a site, the server's default holds.
#[utoipa::path(post, path = "/carbon-factors", tag = "energy", request_body = CarbonFactorBody,
    responses((status = 201, body = CarbonFactor), (status = 409, description = "`begins_already` or `too_many_factors`")))]
pub async fn create(
    State(state): State<ApiState>,
    caller: Caller,
    Body(body): Body<CarbonFactorBody>,
) -> Result<Response, ApiError> {
    if caller.scope.at(body.site).is_none() {
        return Err(ApiError::field("site", "is none where you may do this"));
    }
    let new = body.check(Uuid::now_v7())?;
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    done(carbon_factors::write(&transaction, None, &new, &caller.by(), state.now()).await?)?;
    transaction.commit().await?;
    Ok((StatusCode::CREATED, Tagged::new(new)).into_response())
}

/// Write a carbon factor anew.
#[utoipa::path(put, path = "/carbon-factors/{id}", tag = "energy",
    params(("id" = Uuid, Path), ("If-Match" = Option<String>, Header)), request_body = CarbonFactorBody,
    responses((status = 200, body = CarbonFactor), (status = 404), (status = 409, description = "`begins_already`"),
        (status = 412, description = "`changed_meanwhile`")))]
pub async fn replace(
    State(state): State<ApiState>,
    caller: Caller,
    Path(id): Path<Uuid>,
    if_match: IfMatch,
    Body(body): Body<CarbonFactorBody>,
) -> Result<Tagged<CarbonFactor>, ApiError> {
    let after = body.check(id)?;
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    let before = carbon_factors::one(&transaction, id, true).await?.ok_or_else(missing)?;
    if_match.check(&before)?;
    if after.site != before.site {
        return Err(ApiError::field("site", "stays what it was"));
    }
    done(carbon_factors::write(&transaction, Some(&before), &after, &caller.by(), state.now()).await?)?;
    transaction.commit().await?;
    Ok(Tagged::new(after))
}

/// Take a carbon factor away: the one before it holds on.
#[utoipa::path(delete, path = "/carbon-factors/{id}", tag = "energy",
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
    let before = carbon_factors::one(&transaction, id, true).await?.ok_or_else(missing)?;
    if_match.check(&before)?;
    carbon_factors::delete(&transaction, &before, &caller.by(), state.now()).await?;
    transaction.commit().await?;
    Ok(StatusCode::NO_CONTENT)
}

fn missing() -> ApiError {
    ApiError::not_found("carbon factor")
}

fn done(written: Written) -> Result<(), ApiError> {
    match written {
        Written::Done => Ok(()),
        Written::Taken => Err(ApiError::conflict("begins_already", "another factor of the site begins at that moment")),
        Written::TooMany => {
            Err(ApiError::conflict("too_many_factors", format_args!("a site has at most {FACTORS_MAX} factors")))
        }
    }
}
