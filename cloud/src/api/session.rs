//! Login, the session's refresh, passwords.
//!
//! An access token is good for 15 minutes. A session goes on with its refresh token, which is used once: each answer brings the
//! next. The page has it in a cookie that scripts cannot read (`HttpOnly`, `SameSite=Strict`), so that a script that got into
//! the page cannot carry the session away; a tool has no cookie jar to speak of and gets it in the body.

use std::time::Instant;

use axum::{
    Json,
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    ApiState,
    access::{self, Caller},
    extract::Body,
    problem::{ApiError, FieldError},
    source::Source,
};
use crate::{
    store::{
        self,
        audit::By,
        scoped,
        sessions::{self, Ended, NewSession, Refreshed},
        users::User,
        users_admin,
    },
    users::{
        NAME_CHARS_MAX, Role,
        passwords::{BYTES_MAX, check_new},
        scope::Scope,
        secrets::{self, REFRESH},
        tokens::Token,
    },
};

const COOKIE: &str = "gemba_refresh";
const USER_AGENT_CHARS_MAX: usize = 200;

#[allow(missing_debug_implementations, reason = "it holds a password")]
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Login {
    name: String,
    password: String,
    /// Put the refresh token into a cookie, not into the answer: for pages of this server.
    #[serde(default)]
    cookie: bool,
}

#[allow(missing_debug_implementations, reason = "it holds a secret")]
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Refresh {
    refresh_token: String,
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

#[allow(missing_debug_implementations, reason = "it holds secrets")]
#[derive(Serialize, ToSchema)]
pub struct LoggedIn {
    /// For `Authorization: Bearer`.
    token: String,
    expires_at: Timestamp,
    /// For `POST /api/v1/refresh`, once; `null` where a cookie has it.
    refresh_token: Option<String>,
    session: Uuid,
    user: Me,
    /// Until it is changed, every other route answers 403 `password_change_required`.
    must_change_password: bool,
}

impl LoggedIn {
    fn new((token, read): (String, Token), user: User, scope: &Scope) -> Self {
        let must_change_password = user.must_change_password;
        Self {
            token,
            expires_at: read.expires_at,
            refresh_token: None,
            session: read.session,
            user: Me::new(user, scope),
            must_change_password,
        }
    }

    fn answer(mut self, state: &ApiState, refresh: String, cookie: bool) -> Response {
        if !cookie {
            self.refresh_token = Some(refresh);
            return Json(self).into_response();
        }
        let mut response = Json(self).into_response();
        set_cookie(&mut response, state, &refresh, sessions::LIFETIME.as_secs());
        response
    }
}

fn set_cookie(response: &mut Response, state: &ApiState, value: &str, max_age_s: i64) {
    let secure = if state.url().starts_with("https:") { "; Secure" } else { "" };
    let text = format!("{COOKIE}={value}; Path=/api/v1/; HttpOnly; SameSite=Strict; Max-Age={max_age_s}{secure}");
    if let Ok(text) = HeaderValue::from_str(&text) {
        response.headers_mut().append(header::SET_COOKIE, text);
    }
}

fn cookie(headers: &HeaderMap) -> Option<&str> {
    let pairs =
        headers.get_all(header::COOKIE).iter().filter_map(|text| text.to_str().ok()).flat_map(|text| text.split(';'));
    pairs.filter_map(|pair| pair.trim().split_once('=')).find(|(name, _)| *name == COOKIE).map(|(_, value)| value)
}

#[allow(missing_debug_implementations, reason = "it holds passwords")]
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewPassword {
    old: String,
    /// At least 10 characters.
    new: String,
}

#[allow(missing_debug_implementations, reason = "it holds a password")]
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// What stands behind `#` in the link.
    token: String,
    /// At least 10 characters.
    new: String,
}

/// Log in with name and password.
///
/// Attempts are slowed for each name and address: 429 says how long to wait. The session lasts 12 hours at most.
#[utoipa::path(post, path = "/login", tag = "session", request_body = Login, responses(
    (status = 200, body = LoggedIn), (status = 401, description = "`bad_credentials`"),
    (status = 429, description = "`too_many_attempts`")), security(()))]
pub async fn login(
    State(state): State<ApiState>,
    source: Source,
    headers: HeaderMap,
    Body(login): Body<Login>,
) -> Result<Response, ApiError> {
    let bad = || ApiError::new(StatusCode::UNAUTHORIZED, "bad_credentials", "name or password is wrong");
    if login.name.chars().count() > NAME_CHARS_MAX || login.password.len() > BYTES_MAX || login.name.contains('\0') {
        return Err(bad());
    }
    let attempt = state.slowdown().attempt(&login.name, source.address, Instant::now());
    attempt.map_err(ApiError::too_many_attempts)?;
    let found = store::users::by_name(state.store(), &login.name).await?.filter(|(user, ..)| !user.disabled);
    let hash = found.as_ref().and_then(|(.., hash)| hash.clone());
    let right = state.passwords().verify(login.password, hash).await?;
    let Some((user, scope, _)) = found.filter(|_| right) else {
        tracing::info!(address = %source.address, "login refused");
        return Err(bad());
    };
    state.slowdown().succeeded(&login.name, source.address);
    let refresh = secrets::new(REFRESH)?;
    let agent = headers.get(header::USER_AGENT).and_then(|agent| agent.to_str().ok());
    let agent: Option<String> = agent.map(|agent| agent.chars().take(USER_AGENT_CHARS_MAX).collect());
    let new = NewSession {
        user: user.id,
        organisation: user.organisation,
        refresh_hash: secrets::hash(REFRESH, &refresh).ok_or_else(ApiError::internal)?,
        address: source.address,
        user_agent: agent.as_deref(),
        now: state.now(),
    };
    let session = sessions::open(state.store(), &new).await?;
    let token = state.issue_token(user.id, session, new.now).await?;
    Ok(LoggedIn::new(token, user, &scope).answer(&state, refresh, login.cookie))
}

/// Go on with a session: a fresh token, and the next refresh token.
///
/// The refresh token is that of the body, or of the cookie. It is good once. Whoever sends one that was used before ends the
/// session: it has been copied. Only for 30 seconds, and until its successor is used, the same answer is given again, since the
/// first may have been lost.
#[utoipa::path(post, path = "/refresh", tag = "session", request_body = Option<Refresh>, responses(
    (status = 200, body = LoggedIn), (status = 401, description = "`session_over`: log in again")), security(()))]
pub async fn refresh(
    State(state): State<ApiState>,
    source: Source,
    headers: HeaderMap,
    body: Option<Body<Refresh>>,
) -> Result<Response, ApiError> {
    let over = || ApiError::new(StatusCode::UNAUTHORIZED, "session_over", "this session is over; log in again");
    let (given, by_cookie) = match body {
        Some(Body(Refresh { refresh_token })) => (Some(refresh_token), false),
        None => (cookie(&headers).map(ToOwned::to_owned), true),
    };
    if by_cookie && !access::same_origin(&headers) {
        return Err(ApiError::new(StatusCode::FORBIDDEN, "foreign_origin", "the cookie is for pages of this server"));
    }
    let given = given.ok_or_else(over)?;
    let hash = secrets::hash(REFRESH, &given).ok_or_else(over)?;
    let next = secrets::next_refresh(&state.0.cloud, &given).ok_or_else(over)?;
    let next_hash = secrets::hash(REFRESH, &next).ok_or_else(over)?;
    let now = state.now();
    let from = (source.address, source.request);
    let (session, user) = match sessions::refresh(state.store(), &hash, &next_hash, from, now).await? {
        Refreshed::Good { session, user } => (session, user),
        Refreshed::Unknown => return Err(over()),
        Refreshed::Reused => {
            tracing::warn!(address = %source.address, "an old refresh token came: the session has ended");
            return Err(over());
        }
    };
    let known = store::users::by_session(state.store(), user, session, now).await?.ok_or_else(over)?;
    let token = state.issue_token(user, session, now).await?;
    Ok(LoggedIn::new(token, known.user, &known.scope).answer(&state, next, by_cookie))
}

/// End this session.
#[utoipa::path(post, path = "/logout", tag = "session", responses((status = 204)))]
pub async fn logout(State(state): State<ApiState>, caller: Caller) -> Result<Response, ApiError> {
    let session = caller.session()?;
    let mut client = state.store().client().await?;
    let transaction = scoped(&mut client, &caller.scope).await?;
    sessions::end(&transaction, session, Some(caller.user.id), Ended::Logout, state.now()).await?;
    transaction.commit().await?;
    let mut response = StatusCode::NO_CONTENT.into_response();
    set_cookie(&mut response, &state, "", 0);
    Ok(response)
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
    caller.session()?;
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

/// Choose a password with a link.
///
/// The link is good once, for 72 hours; an admin makes it (`POST /api/v1/users`, `POST /api/v1/users/{id}/password-link`).
#[utoipa::path(post, path = "/password/link", tag = "session", request_body = Link, responses(
    (status = 204), (status = 403, description = "`link_over`"), (status = 422, description = "`invalid_fields`")), security(()))]
pub async fn follow_link(
    State(state): State<ApiState>,
    source: Source,
    Body(link): Body<Link>,
) -> Result<StatusCode, ApiError> {
    let over =
        || ApiError::new(StatusCode::FORBIDDEN, "link_over", "this link is not good (any more); ask for another");
    let hash = secrets::hash(secrets::LINK, &link.token).ok_or_else(over)?;
    let now = state.now();
    let (id, organisation, name) = users_admin::of_link(state.store(), &hash, now).await?.ok_or_else(over)?;
    check_new(&link.new, "", &name).map_err(|weak| ApiError::field("new", weak))?;
    let password = state.passwords().hash(link.new).await?;
    let by = By {
        organisation,
        user: Some(id),
        name,
        api_key: None,
        address: Some(source.address),
        request: Some(source.request),
    };
    // As the owner: whoever has the link has no scope yet.
    let mut client = state.store().client().await?;
    let transaction = client.transaction().await?;
    if !users_admin::use_link(&transaction, &hash, now).await? {
        return Err(over());
    }
    store::users::set_password(&transaction, id, &password, &by, now).await?;
    transaction.commit().await?;
    tracing::info!(user = by.name, "password chosen with a link");
    Ok(StatusCode::NO_CONTENT)
}

/// The user whose token this is.
#[utoipa::path(get, path = "/me", tag = "session", responses((status = 200, body = Me)))]
pub async fn me(caller: Caller) -> Json<Me> {
    Json(Me::new(caller.user, &caller.scope))
}
