//! Who may use which route: one table, and the gate that goes by it. What is not in the table is closed.

use std::{
    convert::Infallible,
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

use axum::{
    RequestExt as _,
    extract::{ConnectInfo, FromRequestParts, MatchedPath, RawPathParams, Request, State},
    http::{Extensions, Method, StatusCode, header, request::Parts},
    middleware::Next,
    response::{IntoResponse, Response},
};
use jiff::Timestamp;
use uuid::Uuid;

use super::{ApiState, RequestId, problem::ApiError};
use crate::{
    store::{
        self,
        audit::By,
        objects::{self, Object},
        scoped,
        users::User,
    },
    users::{Role, scope::Scope, tokens::Session},
};

/// Who may use a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Anyone; the route looks at its caller itself, if at all.
    Open,
    /// Any user, also before the one-time password is changed.
    SignedIn,
    /// A user with this role or one above it at some site; the route is shown the sites where that is so.
    Role(Role),
    /// The same, at the site of the object whose id stands in the path as `{id}`. An object that the caller may not see
    /// is 404, one that they may only look at is 403.
    At(Role, Object),
    /// A user with this role or one above it for the whole organisation.
    Organisation(Role),
}

/// Every route.
pub const ROUTES: &[(Method, &str, Access)] = &[
    (Method::POST, "/api/v1/login", Access::Open),
    (Method::POST, "/api/v1/token", Access::SignedIn),
    (Method::POST, "/api/v1/password", Access::SignedIn),
    (Method::GET, "/api/v1/me", Access::Role(Role::Viewer)),
    (Method::GET, "/api/v1/gateways", Access::Role(Role::Viewer)),
    (Method::GET, "/api/v1/gateways/{id}/commands", Access::At(Role::Supervisor, Object::Gateway)),
    (Method::POST, "/api/v1/gateways/{id}/commands", Access::At(Role::Supervisor, Object::Gateway)),
    (Method::GET, "/api/v1/machines", Access::Role(Role::Viewer)),
    (Method::GET, "/api/v1/machines/{id}", Access::At(Role::Viewer, Object::Machine)),
    (Method::PATCH, "/api/v1/machines/{id}", Access::At(Role::Supervisor, Object::Machine)),
    (Method::PATCH, "/api/v1/machines/{id}/sensors/{name}", Access::At(Role::Supervisor, Object::Machine)),
    (Method::POST, "/api/v1/machines/{id}/merge", Access::At(Role::Supervisor, Object::Machine)),
    (Method::GET, "/api/v1/machines/{id}/series", Access::At(Role::Viewer, Object::Machine)),
    (Method::GET, "/api/v1/anomalies", Access::Role(Role::Viewer)),
    (Method::GET, "/api/v1/anomalies/{id}", Access::At(Role::Viewer, Object::Anomaly)),
    (Method::GET, "/api/v1/alarms", Access::Role(Role::Viewer)),
    (Method::POST, "/api/v1/alarms/{id}/acknowledge", Access::At(Role::Operator, Object::Alarm)),
    // Its first message carries the token.
    (Method::GET, "/api/v1/live", Access::Open),
    (Method::GET, "/api/v1/audit", Access::Organisation(Role::Admin)),
    (Method::GET, "/api/v1/audit/export", Access::Organisation(Role::Admin)),
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

/// Where a request comes from.
#[derive(Debug, Clone, Copy)]
pub struct Source {
    pub address: IpAddr,
    /// What the answer says as `x-request-id`.
    pub request: Uuid,
}

/// Who makes the request.
#[derive(Debug, Clone)]
pub struct Caller {
    pub user: User,
    /// What they may do with this route: for one that asks for a role, only the sites where they have it.
    pub scope: Scope,
    pub session: Session,
    pub source: Source,
}

impl Caller {
    /// For the audit.
    #[must_use]
    pub fn by(&self) -> By {
        By {
            organisation: self.user.organisation,
            user: Some(self.user.id),
            name: self.user.name.clone(),
            api_key: None,
            address: Some(self.source.address),
            request: Some(self.source.request),
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        parts.extensions.get::<Self>().cloned().ok_or_else(|| ApiError::unauthenticated("log in first"))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Source {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(source(&parts.extensions))
    }
}

fn source(extensions: &Extensions) -> Source {
    let unknown = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    let address = extensions.get::<ConnectInfo<SocketAddr>>().map_or(unknown, |ConnectInfo(address)| address.ip());
    let request = extensions.get::<RequestId>().map_or_else(Uuid::nil, |RequestId(id)| *id);
    Source { address: address.to_canonical(), request }
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
    let mut caller = caller(state, token, source(request.extensions()), state.now()).await?;
    if access != Access::SignedIn && caller.user.must_change_password {
        return Err(password_change_required());
    }
    match access {
        Access::Open | Access::SignedIn => {}
        Access::Organisation(least) => {
            if caller.scope.everywhere() < Some(least) {
                return Err(forbidden());
            }
        }
        Access::Role(least) | Access::At(least, _) => {
            let enough = caller.scope.at_least(least);
            if enough.greatest().is_none() {
                return Err(forbidden());
            }
            // Who may look may look at all that the scope shows: the route finds what there is.
            if let (Access::At(_, object), true) = (access, least > Role::Viewer) {
                let site = site(state, object, &caller.scope, request).await?;
                if enough.at(site).is_none() {
                    return Err(forbidden());
                }
            }
            caller.scope = enough;
        }
    }
    request.extensions_mut().insert(caller);
    Ok(())
}

/// Where the object stands that the path names, if it is to be seen.
async fn site(state: &ApiState, object: Object, scope: &Scope, request: &mut Request) -> Result<Uuid, ApiError> {
    let missing = || ApiError::not_found(object.as_str());
    let path = request.extract_parts::<RawPathParams>().await.map_err(|_| missing())?;
    let id = path.iter().find(|(name, _)| *name == "id").and_then(|(_, id)| id.parse().ok()).ok_or_else(missing)?;
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, scope).await?;
    objects::sites(&transaction, object, &[id]).await?.remove(&id).ok_or_else(missing)
}

fn bearer(request: &Request) -> Option<&str> {
    let (scheme, token) = request.headers().get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
}

/// Whose token this is, as the database has the user now.
///
/// # Errors
/// If the token is not good (any more), or the database is away.
pub async fn caller(state: &ApiState, token: &str, source: Source, now: Timestamp) -> Result<Caller, ApiError> {
    let session = state.tokens().read(token, now)?;
    let found = store::users::by_id(state.store(), session.user).await?;
    // A token tells milliseconds, the database microseconds.
    let good =
        |user: &User| !user.disabled && session.login_at.as_millisecond() >= user.tokens_valid_from.as_millisecond();
    let found = found.filter(|(user, _)| good(user));
    let (user, scope) = found.ok_or_else(|| ApiError::unauthenticated("this session was ended; log in again"))?;
    Ok(Caller { user, scope, session, source })
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
