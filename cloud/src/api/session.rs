//! Login, renewal of the session, passwords.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::Instant,
};

use axum::{
    Json,
    extract::{ConnectInfo, State},
    http::{Extensions, StatusCode},
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    ApiState,
    access::Caller,
    extract::Body,
    problem::{ApiError, FieldError},
};
use crate::{
    store::{self, users::User},
    users::{
        NAME_CHARS_MAX, Role,
        passwords::{BYTES_MAX, check_new},
        tokens::Session,
    },
};

#[allow(missing_debug_implementations, reason = "it holds a password")]
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Login {
    name: String,
    password: String,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct Me {
    id: Uuid,
    name: String,
    role: Role,
}

impl From<User> for Me {
    fn from(user: User) -> Self {
        Self { id: user.id, name: user.name, role: user.role }
    }
}

#[derive(Debug, Serialize, ToSchema)]
pub struct LoggedIn {
    /// For `Authorization: Bearer`.
    token: String,
    expires_at: Timestamp,
    user: Me,
    /// Until it is changed, every other route answers 403 `password_change_required`.
    must_change_password: bool,
}

impl LoggedIn {
    fn new((token, session): (String, Session), user: User) -> Self {
        let must_change_password = user.must_change_password;
        Self { token, expires_at: session.expires_at, user: user.into(), must_change_password }
    }
}

#[allow(missing_debug_implementations, reason = "it holds passwords")]
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewPassword {
    old: String,
    /// At least 10 characters.
    new: String,
}

/// The peer of the connection.
#[derive(Debug, Clone, Copy)]
pub struct Peer(IpAddr);

impl<S: Send + Sync> axum::extract::FromRequestParts<S> for Peer {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut axum::http::request::Parts, _: &S) -> Result<Self, Self::Rejection> {
        Ok(Self(peer(&parts.extensions)))
    }
}

fn peer(extensions: &Extensions) -> IpAddr {
    let unknown = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    extensions.get::<ConnectInfo<SocketAddr>>().map_or(unknown, |ConnectInfo(address)| address.ip())
}

/// Log in with name and password.
///
/// Attempts are slowed for each name and address: 429 says how long to wait.
#[utoipa::path(post, path = "/login", tag = "session", request_body = Login, responses(
    (status = 200, body = LoggedIn), (status = 401, description = "`bad_credentials`"), (status = 429, description = "`too_many_attempts`")), security(()))]
pub async fn login(
    State(state): State<ApiState>,
    Peer(address): Peer,
    Body(login): Body<Login>,
) -> Result<Json<LoggedIn>, ApiError> {
    let bad = || ApiError::new(StatusCode::UNAUTHORIZED, "bad_credentials", "name or password is wrong");
    if login.name.chars().count() > NAME_CHARS_MAX || login.password.len() > BYTES_MAX || login.name.contains('\0') {
        return Err(bad());
    }
    let attempt = state.slowdown().attempt(&login.name, address, Instant::now());
    attempt.map_err(ApiError::too_many_attempts)?;
    let found = store::users::by_name(state.store(), &login.name).await?;
    let (user, hash) = found.filter(|(user, _)| !user.disabled).unzip();
    let right = state.passwords().verify(login.password, hash).await?;
    let Some(user) = user.filter(|_| right) else {
        tracing::info!(%address, "login refused");
        return Err(bad());
    };
    state.slowdown().succeeded(&login.name, address);
    let token = state.tokens().issue(user.id, state.now())?;
    Ok(Json(LoggedIn::new(token, user)))
}

/// A fresh token for the same session.
///
/// Not later than 12 hours after the login.
#[utoipa::path(post, path = "/token", tag = "session", responses((status = 200, body = LoggedIn)))]
pub async fn renew(State(state): State<ApiState>, caller: Caller) -> Result<Json<LoggedIn>, ApiError> {
    let token = state.tokens().renew(&caller.session, state.now())?;
    Ok(Json(LoggedIn::new(token, caller.user)))
}

/// Change one's own password.
///
/// All sessions of the user end, this one too: log in again.
#[utoipa::path(post, path = "/password", tag = "session", request_body = NewPassword, responses(
    (status = 204), (status = 422, description = "`invalid_fields`, `bad_credentials`")))]
pub async fn change_password(
    State(state): State<ApiState>,
    Peer(address): Peer,
    caller: Caller,
    Body(passwords): Body<NewPassword>,
) -> Result<StatusCode, ApiError> {
    let user = &caller.user;
    check_new(&passwords.new, &passwords.old, &user.name).map_err(|weak| ApiError::field("new", weak))?;
    let attempt = state.slowdown().attempt(&user.name, address, Instant::now());
    attempt.map_err(ApiError::too_many_attempts)?;
    let hash = store::users::by_name(state.store(), &user.name).await?.map(|(_, hash)| hash);
    let right = passwords.old.len() <= BYTES_MAX && state.passwords().verify(passwords.old, hash).await?;
    if !right {
        let error = FieldError { field: "old".into(), message: "The old password is wrong.".into() };
        return Err(ApiError::fields("bad_credentials", "the old password is wrong", vec![error]));
    }
    state.slowdown().succeeded(&user.name, address);
    let hash = state.passwords().hash(passwords.new).await?;
    store::users::set_password(state.store(), user.id, &hash, state.now()).await?;
    tracing::info!(user = user.name, "password changed");
    Ok(StatusCode::NO_CONTENT)
}

/// The user whose token this is.
#[utoipa::path(get, path = "/me", tag = "session", responses((status = 200, body = Me)))]
pub async fn me(caller: Caller) -> Json<Me> {
    Json(caller.user.into())
}
