//! Every error that a client sees: `application/problem+json` (RFC 9457) with a stable `code`.
//!
//! What a client is told and what is logged are two things: causes stay in the log.

use std::{fmt::Display, time::Duration};

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    series::BadRange,
    store::StoreError,
    users::{passwords::PasswordError, tokens::TokenError},
};

/// What is wrong with one field or parameter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct FieldError {
    pub field: String,
    pub message: String,
}

/// The body of every error.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Problem {
    #[serde(rename = "type")]
    kind: &'static str,
    title: &'static str,
    status: u16,
    detail: String,
    /// Stable: programs may go by it.
    code: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<FieldError>,
    /// What is there already, where that is what is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    existing_id: Option<Uuid>,
}

/// An error on its way to a client.
#[derive(Debug, Clone)]
pub struct ApiError {
    status: StatusCode,
    code: &'static str,
    detail: String,
    errors: Vec<FieldError>,
    existing: Option<Uuid>,
    retry_after: Option<Duration>,
}

impl ApiError {
    #[must_use]
    pub fn new(status: StatusCode, code: &'static str, detail: impl Display) -> Self {
        Self { status, code, detail: detail.to_string(), errors: Vec::new(), existing: None, retry_after: None }
    }

    #[must_use]
    pub fn not_found(what: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", format_args!("there is no such {what}"))
    }

    #[must_use]
    pub fn conflict(code: &'static str, detail: impl Display) -> Self {
        Self::new(StatusCode::CONFLICT, code, detail)
    }

    #[must_use]
    pub fn fields(code: &'static str, detail: &str, errors: Vec<FieldError>) -> Self {
        Self { errors, ..Self::new(StatusCode::UNPROCESSABLE_ENTITY, code, detail) }
    }

    #[must_use]
    pub fn field(name: &str, message: impl Display) -> Self {
        let error = FieldError { field: name.to_owned(), message: message.to_string() };
        Self::fields("invalid_fields", "a field is not as it should be", vec![error])
    }

    #[must_use]
    pub fn unauthenticated(detail: impl Display) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "unauthenticated", detail)
    }

    #[must_use]
    pub fn unavailable(code: &'static str, detail: &str, retry_after: Duration) -> Self {
        Self { retry_after: Some(retry_after), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, code, detail) }
    }

    #[must_use]
    pub fn too_many_attempts(wait: Duration) -> Self {
        let detail = format!("too many failed logins; wait {} s", wait.as_secs().max(1));
        let error = Self::new(StatusCode::TOO_MANY_REQUESTS, "too_many_attempts", detail);
        Self { retry_after: Some(wait), ..error }
    }

    #[must_use]
    pub fn too_many_requests(wait: Duration) -> Self {
        let detail = "you ask more often than you may: see RateLimit-Policy";
        let error = Self::new(StatusCode::TOO_MANY_REQUESTS, "too_many_requests", detail);
        error.retry_after(wait)
    }

    /// What is there already.
    #[must_use]
    pub fn existing(self, id: Uuid) -> Self {
        Self { existing: Some(id), ..self }
    }

    /// When to try again.
    #[must_use]
    pub fn retry_after(self, wait: Duration) -> Self {
        Self { retry_after: Some(wait), ..self }
    }

    #[must_use]
    pub fn internal() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "the server made a mistake; its log says which")
    }

    #[must_use]
    pub const fn status(&self) -> StatusCode {
        self.status
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let problem = Problem {
            kind: "about:blank",
            title: self.status.canonical_reason().unwrap_or("Error"),
            status: self.status.as_u16(),
            detail: self.detail,
            code: self.code,
            errors: self.errors,
            existing_id: self.existing,
        };
        let body = serde_json::to_vec(&problem).unwrap_or_default();
        let mut response = (self.status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(wait) = self.retry_after {
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)));
        }
        response
    }
}

impl From<PasswordError> for ApiError {
    fn from(error: PasswordError) -> Self {
        match error {
            PasswordError::Busy => Self::unavailable("busy", &error.to_string(), Duration::from_secs(2)),
            PasswordError::Hash(_) => {
                tracing::error!(%error, "password not hashed");
                Self::internal()
            }
        }
    }
}

impl From<TokenError> for ApiError {
    fn from(error: TokenError) -> Self {
        match error {
            TokenError::Invalid => Self::unauthenticated(error),
            TokenError::UnknownKey => Self::unauthenticated(TokenError::Invalid),
            TokenError::Expired => Self::new(StatusCode::UNAUTHORIZED, "token_expired", error),
            TokenError::Signing => {
                tracing::error!(%error, "token not made");
                Self::internal()
            }
        }
    }
}

impl From<BadRange> for ApiError {
    fn from(error: BadRange) -> Self {
        Self::field("to", error)
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        if is_bad_value(&error) {
            tracing::warn!(%error, cause, "the database refused a value from a client");
            return Self::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "invalid_value",
                "a value has characters or a size that cannot be stored",
            );
        }
        if error.is_transient() {
            tracing::warn!(%error, cause, "request not served: the database is away");
            return Self::unavailable(
                "database_unavailable",
                "the database is away; try again",
                Duration::from_secs(2),
            );
        }
        tracing::error!(%error, cause, "request not served");
        Self::internal()
    }
}

impl From<tokio_postgres::Error> for ApiError {
    fn from(error: tokio_postgres::Error) -> Self {
        StoreError::from(error).into()
    }
}

/// The database's error class 22: a value that a client sent and no check before the database caught.
fn is_bad_value(error: &StoreError) -> bool {
    matches!(error, StoreError::Database(error) if error.code().is_some_and(|code| code.code().starts_with("22")))
}
