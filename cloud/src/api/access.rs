//! Who may use which route: one table, and the gate that goes by it. What is not in the table is closed.

use axum::{
    extract::{FromRequestParts, MatchedPath, Request, State},
    http::{Method, StatusCode, header, request::Parts},
    middleware::Next,
    response::{IntoResponse, Response},
};
use jiff::Timestamp;

use super::{ApiState, problem::ApiError};
use crate::{
    store::{self, users::User},
    users::{Role, tokens::Session},
};

/// Who may use a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Anyone; the route looks at its caller itself, if at all.
    Open,
    /// Any user, also before the one-time password is changed.
    SignedIn,
    /// A user with this role or one above it.
    Role(Role),
}

/// Every route.
pub const ROUTES: &[(Method, &str, Access)] = &[
    (Method::POST, "/api/v1/login", Access::Open),
    (Method::POST, "/api/v1/token", Access::SignedIn),
    (Method::POST, "/api/v1/password", Access::SignedIn),
    (Method::GET, "/api/v1/me", Access::Role(Role::Viewer)),
    (Method::GET, "/api/v1/gateways", Access::Role(Role::Viewer)),
    (Method::GET, "/api/v1/gateways/{id}/commands", Access::Role(Role::Supervisor)),
    (Method::POST, "/api/v1/gateways/{id}/commands", Access::Role(Role::Supervisor)),
    (Method::GET, "/api/v1/machines", Access::Role(Role::Viewer)),
    (Method::GET, "/api/v1/machines/{id}", Access::Role(Role::Viewer)),
    (Method::PATCH, "/api/v1/machines/{id}", Access::Role(Role::Supervisor)),
    (Method::PATCH, "/api/v1/machines/{id}/sensors/{name}", Access::Role(Role::Supervisor)),
    (Method::POST, "/api/v1/machines/{id}/merge", Access::Role(Role::Supervisor)),
    (Method::GET, "/api/v1/machines/{id}/series", Access::Role(Role::Viewer)),
    (Method::GET, "/api/v1/anomalies", Access::Role(Role::Viewer)),
    (Method::GET, "/api/v1/anomalies/{id}", Access::Role(Role::Viewer)),
    (Method::GET, "/api/v1/alarms", Access::Role(Role::Viewer)),
    (Method::POST, "/api/v1/alarms/{id}/acknowledge", Access::Role(Role::Operator)),
    // Its first message carries the token.
    (Method::GET, "/api/v1/live", Access::Open),
    (Method::GET, "/api/v1/openapi.json", Access::Open),
    // A gateway, with its one-time token.
    (Method::POST, "/api/v1/enroll", Access::Open),
    (Method::GET, "/healthz", Access::Open),
    (Method::GET, "/readyz", Access::Open),
    (Method::GET, "/metrics", Access::Open),
];

/// Who may use this route; `None` for one that is not in the table.
#[must_use]
pub fn access(method: &Method, path: &str) -> Option<Access> {
    let method = if *method == Method::HEAD { &Method::GET } else { method };
    ROUTES.iter().find(|(known, at, _)| known == method && *at == path).map(|(_, _, access)| *access)
}

/// Who makes the request.
#[derive(Debug, Clone)]
pub struct Caller {
    pub user: User,
    pub session: Session,
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        parts.extensions.get::<Self>().cloned().ok_or_else(|| ApiError::unauthenticated("log in first"))
    }
}

/// Lets a request through to its route, or not.
pub async fn gate(State(state): State<ApiState>, path: MatchedPath, mut request: Request, next: Next) -> Response {
    let allowed = match access(request.method(), path.as_str()) {
        Some(Access::Open) => Ok(()),
        Some(access) => admit(&state, access, &mut request).await,
        None => Err(forbidden()),
    };
    match allowed {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

async fn admit(state: &ApiState, access: Access, request: &mut Request) -> Result<(), ApiError> {
    let token = bearer(request).ok_or_else(|| ApiError::unauthenticated("send Authorization: Bearer <token>"))?;
    let caller = caller(state, token, state.now()).await?;
    if let Access::Role(least) = access {
        if caller.user.must_change_password {
            return Err(password_change_required());
        }
        if caller.user.role < least {
            return Err(forbidden());
        }
    }
    request.extensions_mut().insert(caller);
    Ok(())
}

fn bearer(request: &Request) -> Option<&str> {
    let (scheme, token) = request.headers().get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
}

/// Whose token this is, as the database has the user now.
///
/// # Errors
/// If the token is not good (any more), or the database is away.
pub async fn caller(state: &ApiState, token: &str, now: Timestamp) -> Result<Caller, ApiError> {
    let session = state.tokens().read(token, now)?;
    let user = store::users::by_id(state.store(), session.user).await?;
    // A token tells milliseconds, the database microseconds.
    let good =
        |user: &User| !user.disabled && session.login_at.as_millisecond() >= user.tokens_valid_from.as_millisecond();
    let user = user.filter(good).ok_or_else(|| ApiError::unauthenticated("this session was ended; log in again"))?;
    Ok(Caller { user, session })
}

fn forbidden() -> ApiError {
    ApiError::new(StatusCode::FORBIDDEN, "forbidden", "your role may not do this")
}

/// The answer to a user who must choose a password first.
#[must_use]
pub fn password_change_required() -> ApiError {
    let detail = "choose a password of your own first: POST /api/v1/password";
    ApiError::new(StatusCode::FORBIDDEN, "password_change_required", detail)
}
