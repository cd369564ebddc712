//! What a kilowatt-hour emits at a site.

use std::collections::HashMap;

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
    problem::{ApiError, FieldError},
};
use crate::store::{
    carbon_factors::{self, CarbonFactor, FACTORS_MAX, WrittenFactors},
    scoped,
    tariffs::Written,
};

/// Above what any grid emits: lignite alone makes about 1,200.
const G_PER_KWH_MAX: f64 = 10_000.0;
const SOURCE_CHARS_MAX: usize = 200;
/// Factors begin at quarters of an hour, as prices do.
const QUARTER_S: i64 = 900;

/// The route that takes many at once, and how large its body is.
pub const MANY: &str = "/api/v1/sites/{id}/carbon-factors";
pub const MANY_BYTES_MAX: usize = 1_024 * 1_024;
/// More than a year of hours.
const MANY_MAX: usize = 10_000;
/// Of one list that are told.
const ERRORS_MAX: usize = 100;

/// Many carbon factors of a site.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CarbonFactorList {
    /// Who says so.
    #[serde(default)]
    #[schema(max_length = 200)]
    source: String,
    /// In any order, each moment once.
    #[schema(min_items = 1, max_items = 10_000)]
    factors: Vec<CarbonFactorItem>,
}

/// One of many carbon factors.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CarbonFactorItem {
    /// A whole quarter of an hour.
    valid_from: Timestamp,
    /// Grams of CO2 equivalent for a kilowatt-hour.
    #[schema(minimum = 0, maximum = 10_000)]
    g_per_kwh: f64,
}

impl CarbonFactorItem {
    /// What is wrong with it: a field, and what it should be.
    fn wrong(self) -> Option<(&'static str, &'static str)> {
        let at = self.valid_from;
        let whole = at.as_microsecond() % (QUARTER_S * 1_000_000) == 0 && at.subsec_nanosecond() == 0;
        if !whole || !YEARS.contains(&at.to_zoned(jiff::tz::TimeZone::UTC).year()) {
            return Some(("valid_from", "is a whole quarter of an hour, from 1970 to 2199"));
        }
        (!(0.0..=G_PER_KWH_MAX).contains(&self.g_per_kwh)).then_some(("g_per_kwh", "is from 0 to 10000"))
    }
}

impl CarbonFactorList {
    /// The factors with their source.
    fn check(self) -> Result<(Vec<(Timestamp, f64)>, String), ApiError> {
        let source = written("source", &self.source, SOURCE_CHARS_MAX, false)?;
        if !(1..=MANY_MAX).contains(&self.factors.len()) {
            return Err(ApiError::field("factors", format_args!("are 1 to {MANY_MAX}")));
        }
        let mut begins = HashMap::new();
        let mut errors = Vec::new();
        for (i, item) in self.factors.iter().enumerate() {
            let first = *begins.entry(item.valid_from).or_insert(i);
            let again = (first < i).then(|| ("valid_from", format!("is that of factors.{first} as well")));
            let wrong = item.wrong().map(|(field, message)| (field, message.to_owned())).or(again);
            if let Some((field, message)) = wrong {
                errors.push(FieldError { field: format!("factors.{i}.{field}"), message });
            }
            if errors.len() == ERRORS_MAX {
                break;
            }
        }
        if !errors.is_empty() {
            return Err(ApiError::fields("invalid_fields", "a factor is not as it should be; none was taken", errors));
        }
        Ok((self.factors.iter().map(|item| (item.valid_from, item.g_per_kwh)).collect(), source))
    }
}

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
        let item = CarbonFactorItem { valid_from: self.valid_from, g_per_kwh: self.g_per_kwh };
        if let Some((field, message)) = item.wrong() {
            return Err(ApiError::field(field, message));
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
    caller.may_add_at(body.site)?;
    let new = body.check(Uuid::now_v7())?;
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    done(carbon_factors::write(&transaction, None, &new, &caller.by(), state.now()).await?)?;
    transaction.commit().await?;
    Ok((StatusCode::CREATED, Tagged::new(new)).into_response())
}

/// Write many carbon factors of a site at once, all of them or none.
///
/// One that begins when another of the site does takes its place; the others of the site stay. The body has at most 1 MiB. It may be sent
/// again as it is, and needs no `Idempotency-Key`.
#[utoipa::path(post, path = "/sites/{id}/carbon-factors", tag = "energy", params(("id" = Uuid, Path)),
    request_body = CarbonFactorList,
    responses((status = 200, body = WrittenFactors), (status = 404), (status = 409, description = "`too_many_factors`"),
        (status = 413)))]
pub async fn write_many(
    State(state): State<ApiState>,
    caller: Caller,
    Path(site): Path<Uuid>,
    Body(body): Body<CarbonFactorList>,
) -> Result<Json<WrittenFactors>, ApiError> {
    let (factors, source) = body.check()?;
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    let written = carbon_factors::write_many(&transaction, site, &factors, &source, &caller.by(), state.now()).await?;
    let written = written.ok_or_else(too_many)?;
    transaction.commit().await?;
    tracing::info!(%site, ?written, user = caller.user.name, "carbon factors written");
    Ok(Json(written))
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
        Written::TooMany => Err(too_many()),
    }
}

fn too_many() -> ApiError {
    ApiError::conflict("too_many_factors", format_args!("a site has at most {FACTORS_MAX} factors"))
}
