//! Login, renewal of the session, passwords.

use std::time::Instant;

use axum::{Json, extract::State, http::StatusCode};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    ApiState,
    access::{Caller, Source},
    extract::Body,
    problem::{ApiError, FieldError},
};
use crate::{
    store::{self, scoped, users::User},
    users::{
        NAME_CHARS_MAX, Role,
        passwords::{BYTES_MAX, check_new},
        scope::Scope,
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
    organisation: Uuid,
    /// The greatest role anywhere; `null` for a user who is granted nothing.
    role: Option<Role>,
    /// The role for the organisation as a whole.
    everywhere: Option<Role>,
    /// The role at each site that may be seen.
    sites: Vec<SiteRole>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct SiteRole {
    site: Uuid,
    role: Role,
}

impl Me {
    fn new(user: User, scope: &Scope) -> Self {
        let role = |site| scope.at(site).map(|role| SiteRole { site, role });
        Self {
            id: user.id,
            name: user.name,
            organisation: user.organisation,
            role: scope.greatest(),
            everywhere: scope.everywhere(),
            sites: scope.sites().filter_map(role).collect(),
        }
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
    fn new((token, session): (String, Session), user: User, scope: &Scope) -> Self {
        let must_change_password = user.must_change_password;
        Self { token, expires_at: session.expires_at, user: Me::new(user, scope), must_change_password }
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

/// Log in with name and password.
///
/// Attempts are slowed for each name and address: 429 says how long to wait.
#[utoipa::path(post, path = "/login", tag = "session", request_body = Login, responses(
    (status = 200, body = LoggedIn), (status = 401, description = "`bad_credentials`"), (status = 429, description = "`too_many_attempts`")), security(()))]
pub async fn login(
    State(state): State<ApiState>,
    Source { address, .. }: Source,
    Body(login): Body<Login>,
) -> Result<Json<LoggedIn>, ApiError> {
    let bad = || ApiError::new(StatusCode::UNAUTHORIZED, "bad_credentials", "name or password is wrong");
    if login.name.chars().count() > NAME_CHARS_MAX || login.password.len() > BYTES_MAX || login.name.contains('\0') {
        return Err(bad());
    }
    let attempt = state.slowdown().attempt(&login.name, address, Instant::now());
    attempt.map_err(ApiError::too_many_attempts)?;
    let found = store::users::by_name(state.store(), &login.name).await?.filter(|(user, ..)| !user.disabled);
    let hash = found.as_ref().and_then(|(.., hash)| hash.clone());
    let right = state.passwords().verify(login.password, hash).await?;
    let Some((user, scope, _)) = found.filter(|_| right) else {
        tracing::info!(%address, "login refused");
        return Err(bad());
    };
    state.slowdown().succeeded(&login.name, address);
    let token = state.tokens().issue(user.id, state.now())?;
    Ok(Json(LoggedIn::new(token, user, &scope)))
}

/// A fresh token for the same session.
///
/// Not later than 12 hours after the login.
#[utoipa::path(post, path = "/token", tag = "session", responses((status = 200, body = LoggedIn)))]
pub async fn renew(State(state): State<ApiState>, caller: Caller) -> Result<Json<LoggedIn>, ApiError> {
    let token = state.tokens().renew(&caller.session, state.now())?;
    Ok(Json(LoggedIn::new(token, caller.user, &caller.scope)))
}

/// Change one's own password.
///
/// All sessions of the user end, this one too: log in again.
#[utoipa::path(post, path = "/password", tag = "session", request_body = NewPassword, responses(
    (status = 204), (status = 422, description = "`invalid_fields`, `bad_credentials`")))]
pub async fn change_password(
    State(state): State<ApiState>,
    Source { address, .. }: Source,
    caller: Caller,
    Body(passwords): Body<NewPassword>,
) -> Result<StatusCode, ApiError> {
    let user = &caller.user;
    check_new(&passwords.new, &passwords.old, &user.name).map_err(|weak| ApiError::field("new", weak))?;
    let attempt = state.slowdown().attempt(&user.name, address, Instant::now());
    attempt.map_err(ApiError::too_many_attempts)?;
    let hash = store::users::by_name(state.store(), &user.name).await?.and_then(|(.., hash)| hash);
    let right = passwords.old.len() <= BYTES_MAX && state.passwords().verify(passwords.old, hash).await?;
    if !right {
        let error = FieldError { field: "old".into(), message: "The old password is wrong.".into() };
        return Err(ApiError::fields("bad_credentials", "the old password is wrong", vec![error]));
    }
    state.slowdown().succeeded(&user.name, address);
    let hash = state.passwords().hash(passwords.new).await?;
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    store::users::set_password(&transaction, user.id, &hash, &caller.by(), state.now()).await?;
    transaction.commit().await?;
    tracing::info!(user = user.name, "password changed");
    Ok(StatusCode::NO_CONTENT)
}

/// The user whose token this is.
#[utoipa::path(get, path = "/me", tag = "session", responses((status = 200, body = Me)))]
pub async fn me(caller: Caller) -> Json<Me> {
    Json(Me::new(caller.user, &caller.scope))
}
