//! What a handler takes out of a request; every refusal is a problem.

use std::{fmt, marker::PhantomData};

use axum::{
    Json,
    body::HttpBody,
    extract::{FromRequest, FromRequestParts, OptionalFromRequest, Query, Request, rejection::JsonRejection},
    http::{StatusCode, request::Parts},
};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use jiff::{Timestamp, civil::Date};
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{DeserializeOwned, Error as _, MapAccess, Visitor, value::MapAccessDeserializer},
};
use utoipa::ToSchema;
use uuid::Uuid;

use super::problem::{ApiError, FieldError};

pub const LIMIT_DEFAULT: u16 = 50;
pub const LIMIT_MAX: u16 = 200;
/// Of a cursor that another `sort` gave.
pub(super) const OTHER_ORDER: &str = "is of a list in another order: sort as its page was";
/// Times outside are no plant's.
pub(super) const YEARS: std::ops::RangeInclusive<i16> = 1970..=2199;

/// A JSON body.
#[derive(Debug)]
pub struct Body<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let rejection = match <Json<Object<T>> as FromRequest<S>>::from_request(request, state).await {
            Ok(Json(Object(body))) => return Ok(Self(body)),
            Err(rejection) => rejection,
        };
        Err(match rejection {
            JsonRejection::MissingJsonContentType(_) => ApiError::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unsupported_media_type",
                "send JSON with Content-Type: application/json",
            ),
            JsonRejection::JsonSyntaxError(error) => {
                ApiError::new(StatusCode::BAD_REQUEST, "invalid_json", error.body_text())
            }
            JsonRejection::JsonDataError(error) => {
                ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_fields", error.body_text())
            }
            other if other.status() == StatusCode::PAYLOAD_TOO_LARGE => ApiError::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "payload_too_large",
                format_args!(
                    "a body has at most {} bytes, where the document says nothing else",
                    super::BODY_BYTES_MAX
                ),
            ),
            other => ApiError::new(StatusCode::BAD_REQUEST, "unreadable_body", other.body_text()),
        })
    }
}

/// A JSON object: serde would take a list of a struct's fields in their order as well.
struct Object<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Fields<T> {
            type Value = T;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map))
            }
        }

        deserializer.deserialize_map(Fields(PhantomData)).map(Self)
    }
}

/// No body at all is `None`; one that is there must be right.
impl<T: DeserializeOwned, S: Send + Sync> OptionalFromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Option<Self>, ApiError> {
        if request.body().size_hint().exact() == Some(0) {
            return Ok(None);
        }
        <Self as FromRequest<S>>::from_request(request, state).await.map(Some)
    }
}

/// The ids and names in the path.
#[derive(Debug)]
pub struct Path<T>(pub T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        // What is no id names nothing.
        let found = axum::extract::Path::<T>::from_request_parts(parts, state).await;
        found.map(|axum::extract::Path(path)| Self(path)).map_err(|_| ApiError::not_found("thing"))
    }
}

/// The parameters behind `?`. Each is taken out once; what is left over is an error.
#[derive(Debug, Default)]
pub struct Params {
    pairs: Vec<(String, String)>,
    errors: Vec<FieldError>,
}

impl<S: Send + Sync> FromRequestParts<S> for Params {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let found = Query::<Vec<(String, String)>>::from_request_parts(parts, state).await;
        let Query(pairs) =
            found.map_err(|error| ApiError::new(StatusCode::BAD_REQUEST, "invalid_query", error.body_text()))?;
        Ok(Self { pairs, errors: Vec::new() })
    }
}

/// What to list: so many, from behind a key.
#[derive(Debug)]
pub struct Page<K> {
    limit: usize,
    pub after: Option<K>,
}

impl<K> Page<K> {
    /// One more than is shown: it tells whether there is a next page.
    #[must_use]
    pub fn rows(&self) -> i64 {
        self.limit as i64 + 1
    }
}

impl Params {
    /// All values of a parameter that may be repeated.
    pub fn many(&mut self, name: &str) -> Vec<String> {
        let (found, rest) = std::mem::take(&mut self.pairs).into_iter().partition(|(key, _)| key == name);
        self.pairs = rest;
        let found: Vec<(String, String)> = found;
        found.into_iter().map(|(_, value)| value).collect()
    }

    /// A parameter that may be given once; `expected` says what it should be.
    pub fn one<T>(&mut self, name: &str, expected: &str, parse: impl FnOnce(&str) -> Option<T>) -> Option<T> {
        let mut values = self.many(name);
        let value = values.pop()?;
        let parsed = if values.is_empty() { parse(&value) } else { None };
        if parsed.is_none() {
            self.errors.push(FieldError { field: name.to_owned(), message: format!("should be {expected}, once") });
        }
        parsed
    }

    /// A parameter that may be repeated; `expected` says what each should be.
    pub fn each<T>(&mut self, name: &str, expected: &str, parse: impl Fn(&str) -> Option<T>) -> Vec<T> {
        let given = self.many(name);
        let parsed: Vec<T> = given.iter().filter_map(|value| parse(value)).collect();
        if parsed.len() < given.len() {
            self.errors.push(FieldError { field: name.to_owned(), message: format!("should be {expected}") });
        }
        parsed
    }

    pub fn id(&mut self, name: &str) -> Option<Uuid> {
        self.one(name, "an id (UUID)", |text| text.parse().ok())
    }

    pub fn flag(&mut self, name: &str) -> Option<bool> {
        self.one(name, "true or false", |text| text.parse().ok())
    }

    pub fn time(&mut self, name: &str) -> Option<Timestamp> {
        self.one(name, "a time like 2026-01-01T00:00:00Z, from 1970 to 2199", |text| {
            let time: Timestamp = text.parse().ok()?;
            YEARS.contains(&time.to_zoned(jiff::tz::TimeZone::UTC).year()).then_some(time)
        })
    }

    pub fn day(&mut self, name: &str) -> Option<Date> {
        self.one(name, "a day like 2026-01-31, from 1970 to 2199", parse_day)
    }

    /// Says that a parameter is not as it should be.
    pub fn refuse(&mut self, name: &str, message: &str) {
        self.errors.push(FieldError { field: name.to_owned(), message: message.to_owned() });
    }

    /// `limit` and `cursor`.
    pub fn page<K: DeserializeOwned>(&mut self) -> Page<K> {
        let limit = self.one("limit", "a number from 1 to 200", |text| {
            text.parse().ok().filter(|limit| (1..=LIMIT_MAX).contains(limit))
        });
        let after = self.one("cursor", "what `next_cursor` of the page before said", |text| {
            // An empty one begins at the beginning.
            if text.is_empty() {
                return Some(None);
            }
            serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(text).ok()?).ok().map(Some)
        });
        Page { limit: usize::from(limit.unwrap_or(LIMIT_DEFAULT)), after: after.flatten() }
    }

    /// To be called when all have been taken out.
    ///
    /// # Errors
    /// If one was wrong or is not known.
    pub fn finish(mut self) -> Result<(), ApiError> {
        for (name, _) in self.pairs {
            let field: String = name.chars().take(64).collect();
            self.errors.push(FieldError { field, message: "is no parameter of this route".to_owned() });
        }
        if self.errors.is_empty() {
            return Ok(());
        }
        Err(ApiError::fields("invalid_parameters", "a parameter is not as it should be", self.errors))
    }
}

/// A page of a list.
#[derive(Debug, Serialize, ToSchema)]
pub struct Items<T> {
    pub items: Vec<T>,
    /// For `?cursor=`; `null` on the last page.
    pub next_cursor: Option<String>,
}

impl<T> Items<T> {
    /// Of the rows that were read with [`Page::rows`]; `key` is what the next page begins behind.
    #[must_use]
    pub fn new<K: Serialize>(mut rows: Vec<T>, page: &Page<K>, key: impl FnOnce(&T) -> K) -> Self {
        let more = rows.len() > page.limit;
        rows.truncate(page.limit);
        let last = rows.last().filter(|_| more);
        let next_cursor =
            last.and_then(|last| serde_json::to_vec(&key(last)).ok()).map(|bytes| BASE64_URL_SAFE_NO_PAD.encode(bytes));
        Self { items: rows, next_cursor }
    }
}

/// For a field where `null` and absence are two things.
///
/// # Errors
/// If the value is of another type.
pub fn present<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

/// A day like `2026-01-31`.
fn parse_day(text: &str) -> Option<Date> {
    // The parser would take other forms of ISO 8601 too.
    let day: Date = (text.len() == 10).then(|| text.parse().ok())??;
    (day.to_string() == text && YEARS.contains(&day.year())).then_some(day)
}

/// For a field that is a day like `2026-01-31`.
///
/// # Errors
/// If it is none, or of a year outside of 1970 to 2199.
pub fn day<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Date, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse_day(&text).ok_or_else(|| D::Error::custom("a day is like 2026-01-31, from 1970 to 2199"))
}

/// A text that a person wrote: of bounded length as it was given, without control characters except, in a text of several
/// lines, the line's end. The spaces at its ends are left out.
///
/// # Errors
/// With the field and what is wrong.
pub fn written(field: &str, text: &str, chars_max: usize, lines: bool) -> Result<String, ApiError> {
    if text.chars().count() > chars_max {
        return Err(ApiError::field(field, format_args!("has at most {chars_max} characters")));
    }
    let text = text.trim();
    if text.chars().any(|c| c.is_control() && !(lines && matches!(c, '\n' | '\t'))) {
        return Err(ApiError::field(field, "has no control characters"));
    }
    Ok(text.to_owned())
}

/// The longest name of a thing that people name, in characters.
pub const NAME_CHARS_MAX: usize = 100;

/// A name of one line that is not empty.
///
/// # Errors
/// With the field and what is wrong.
pub fn named(field: &str, text: &str) -> Result<String, ApiError> {
    let name = written(field, text, NAME_CHARS_MAX, false)?;
    if name.is_empty() { Err(ApiError::field(field, "is needed")) } else { Ok(name) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(pairs: &[(&str, &str)]) -> Params {
        let pairs = pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        Params { pairs, errors: Vec::new() }
    }

    #[test]
    fn pages_follow_one_another() {
        let first = params(&[("limit", "2")]).page::<(String, u8)>();
        assert_eq!(first.rows(), 3);
        let items = Items::new(vec![1_u8, 2, 3], &first, |n| ("x".to_owned(), *n));
        assert_eq!(items.items, [1, 2]);
        let cursor = items.next_cursor.unwrap();
        let mut next = params(&[("cursor", &cursor)]);
        assert_eq!(next.page::<(String, u8)>().after, Some(("x".into(), 2)));
        assert!(next.finish().is_ok());
        assert_eq!(Items::new(vec![1_u8, 2], &first, |n| ("x".to_owned(), *n)).next_cursor, None);
    }

    #[test]
    fn bad_parameters_are_named() {
        let mut bad = params(&[
            ("limit", "0"),
            ("cursor", "%%"),
            ("machine", "' OR 1=1"),
            ("from", "9999-01-01T00:00:00Z"),
            ("to", "yesterday"),
            ("open", "yes"),
            ("gateway", ""),
            ("other", "1"),
        ]);
        let page = bad.page::<(String, u8)>();
        assert_eq!((page.limit, page.after), (50, None));
        assert_eq!((bad.id("machine"), bad.id("gateway"), bad.flag("open")), (None, None, None));
        assert_eq!((bad.time("from"), bad.time("to")), (None, None));
        let fields: Vec<String> = bad.errors.iter().map(|error| error.field.clone()).collect();
        assert_eq!(fields, ["limit", "cursor", "machine", "gateway", "open", "from", "to"]);
        assert_eq!(bad.finish().unwrap_err().status(), StatusCode::UNPROCESSABLE_ENTITY);
        let mut twice = params(&[("limit", "1"), ("limit", "2")]);
        twice.page::<u8>();
        assert!(twice.finish().is_err());
    }

    #[test]
    fn days_have_one_form() {
        assert_eq!(parse_day("2026-01-31"), Some(jiff::civil::date(2026, 1, 31)));
        for bad in
            ["2026-02-30", "20260131", "2026-1-31", "2026-01-31T00:00", "1969-12-31", "2200-01-01", "", "+002026-01"]
        {
            assert_eq!(parse_day(bad), None, "{bad}");
        }
    }

    #[test]
    fn written_texts() {
        assert_eq!(written("c", " Düse 3 ", 8, false).unwrap(), "Düse 3");
        assert!(written("c", " Düse 3 ", 7, false).is_err());
        assert!(written("c", "Düse 33", 6, false).is_err());
        assert!(written("c", "a\0b", 6, true).is_err());
        assert!(written("c", "a\nb", 6, false).is_err());
        assert!(written("c", "a\nb", 6, true).is_ok());
    }
}
