//! Lost updates: what can be edited has an `ETag`, and a change that names another with `If-Match` is refused.
//!
//! A request without `If-Match` is taken as it is: tools that set one field need not read first.

use axum::{
    Json,
    extract::FromRequestParts,
    http::{HeaderValue, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::problem::ApiError;

/// A tag of what can be edited of a thing.
#[must_use]
pub fn of(editable: &impl Serialize) -> String {
    use std::fmt::Write as _;
    // Strings, numbers and lists: nothing in it can fail to be written.
    let digest = Sha256::digest(serde_json::to_vec(editable).unwrap_or_default());
    let mut tag = String::from("\"");
    for byte in &digest[..12] {
        write!(tag, "{byte:02x}").ok();
    }
    tag.push('"');
    tag
}

/// An answer with its tag.
#[derive(Debug)]
pub struct Tagged<T> {
    value: T,
    tag: String,
}

impl<T: Serialize> Tagged<T> {
    /// All of it can be edited.
    #[must_use]
    pub fn new(value: T) -> Self {
        let tag = of(&value);
        Self { value, tag }
    }

    #[must_use]
    pub const fn with(value: T, tag: String) -> Self {
        Self { value, tag }
    }

    /// Only this part of it can be edited.
    #[must_use]
    pub fn by(value: T, editable: &impl Serialize) -> Self {
        Self { value, tag: of(editable) }
    }
}

impl<T: Serialize> IntoResponse for Tagged<T> {
    fn into_response(self) -> Response {
        let mut response = Json(self.value).into_response();
        if let Ok(tag) = HeaderValue::from_str(&self.tag) {
            response.headers_mut().insert(header::ETAG, tag);
        }
        response
    }
}

/// What the caller believes to change; nothing, if they do not say.
#[derive(Debug, Clone)]
pub struct IfMatch(Option<String>);

impl<S: Send + Sync> FromRequestParts<S> for IfMatch {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let Some(value) = parts.headers.get(header::IF_MATCH) else { return Ok(Self(None)) };
        let bad = || ApiError::new(StatusCode::BAD_REQUEST, "invalid_header", "If-Match is \"*\" or what ETag said");
        value.to_str().map(|text| Self(Some(text.to_owned()))).map_err(|_| bad())
    }
}

impl IfMatch {
    #[must_use]
    pub const fn is_given(&self) -> bool {
        self.0.is_some()
    }

    /// # Errors
    /// 412 if the thing is another by now.
    pub fn check(&self, editable: &impl Serialize) -> Result<(), ApiError> {
        let Some(given) = &self.0 else { return Ok(()) };
        let tag = of(editable);
        if given.split(',').map(str::trim).any(|one| one == "*" || one == tag) {
            return Ok(());
        }
        let detail = "somebody has changed this meanwhile; read it again";
        Err(ApiError::new(StatusCode::PRECONDITION_FAILED, "changed_meanwhile", detail))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_tag_is_refused() {
        let now = of(&1);
        for (given, good) in [
            (None, true),
            (Some("*".to_owned()), true),
            (Some(now.clone()), true),
            (Some(format!("\"x\", {now}")), true),
            (Some(of(&2)), false),
            (Some(String::new()), false),
            (Some(format!("W/{now}")), false),
        ] {
            assert_eq!(IfMatch(given.clone()).check(&1).is_ok(), good, "{given:?}");
        }
    }
}
