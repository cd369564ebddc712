//! Who may use which route: one table, and the gate that goes by it. What is not in the table is closed.

use std::time::Instant;

use axum::{
    RequestExt as _,
    extract::{FromRequestParts, MatchedPath, RawPathParams, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header, request::Parts},
    middleware::Next,
    response::{IntoResponse, Response},
};
use jiff::Timestamp;
use uuid::Uuid;

use super::{
    ApiState,
    carbon_factors::MANY,
    idempotency,
    problem::ApiError,
    source::{self, Source},
    tickets::files::UPLOAD,
    together,
};
use crate::{
    store::{
        self,
        audit::By,
        objects::{self, Object},
        scoped,
        users::{Credential, User},
    },
    users::{
        Role,
        rates::{Left, Subject, WINDOW},
        scope::Scope,
        secrets,
        tokens::{Token, TokenError},
    },
};

/// Who may use a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Anyone; the route looks at its caller itself, if at all.
    Open,
    /// Any user, also before the one-time password is changed.
    SignedIn,
    /// Any user, whatever they are granted.
    User,
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
    // With a refresh token.
    (Method::POST, "/api/v1/refresh", Access::Open),
    (Method::POST, "/api/v1/logout", Access::SignedIn),
    (Method::POST, "/api/v1/password", Access::SignedIn),
    // With a link's secret.
    (Method::POST, "/api/v1/password/link", Access::Open),
    (Method::GET, "/api/v1/me", Access::User),
    (Method::GET, "/api/v1/sessions", Access::User),
    (Method::DELETE, "/api/v1/sessions/{id}", Access::User),
    (Method::GET, "/api/v1/api-keys", Access::User),
    (Method::POST, "/api/v1/api-keys", Access::User),
    (Method::DELETE, "/api/v1/api-keys/{id}", Access::User),
    (Method::GET, "/api/v1/organisation", Access::User),
    (Method::PATCH, "/api/v1/organisation", Access::Organisation(Role::Admin)),
    (Method::GET, "/api/v1/organisation/costs", Access::User),
    (Method::PUT, "/api/v1/organisation/costs", Access::Organisation(Role::Admin)),
    (Method::GET, "/api/v1/retention", Access::Organisation(Role::Admin)),
    (Method::PUT, "/api/v1/retention", Access::Organisation(Role::Admin)),
    (Method::GET, "/api/v1/users", Access::Organisation(Role::Admin)),
    (Method::POST, "/api/v1/users", Access::Organisation(Role::Admin)),
    (Method::GET, "/api/v1/users/{id}", Access::Organisation(Role::Admin)),
    (Method::PATCH, "/api/v1/users/{id}", Access::Organisation(Role::Admin)),
    (Method::PUT, "/api/v1/users/{id}/grants", Access::Organisation(Role::Admin)),
    (Method::POST, "/api/v1/users/{id}/password-link", Access::Organisation(Role::Admin)),
    (Method::GET, "/api/v1/users/{id}/sessions", Access::Organisation(Role::Admin)),
    (Method::DELETE, "/api/v1/users/{id}/sessions", Access::Organisation(Role::Admin)),
    (Method::GET, "/api/v1/sites", Access::Role(Role::Viewer)),
    (Method::POST, "/api/v1/sites", Access::Organisation(Role::Admin)),
    (Method::GET, "/api/v1/sites/{id}", Access::At(Role::Viewer, Object::Site)),
    (Method::PATCH, "/api/v1/sites/{id}", Access::At(Role::Admin, Object::Site)),
    (Method::GET, "/api/v1/areas", Access::Role(Role::Viewer)),
    (Method::POST, "/api/v1/areas", Access::Role(Role::Admin)),
    (Method::GET, "/api/v1/areas/{id}", Access::At(Role::Viewer, Object::Area)),
    (Method::PATCH, "/api/v1/areas/{id}", Access::At(Role::Admin, Object::Area)),
    (Method::DELETE, "/api/v1/areas/{id}", Access::At(Role::Admin, Object::Area)),
    (Method::GET, "/api/v1/gateways", Access::Role(Role::Viewer)),
    (Method::GET, "/api/v1/gateways/{id}/commands", Access::At(Role::Supervisor, Object::Gateway)),
    (Method::POST, "/api/v1/gateways/{id}/commands", Access::At(Role::Supervisor, Object::Gateway)),
    (Method::GET, "/api/v1/machines", Access::Role(Role::Viewer)),
    (Method::GET, "/api/v1/machines/{id}", Access::At(Role::Viewer, Object::Machine)),
    (Method::PATCH, "/api/v1/machines/{id}", Access::At(Role::Supervisor, Object::Machine)),
    (Method::PATCH, "/api/v1/machines/{id}/sensors/{name}", Access::At(Role::Supervisor, Object::Machine)),
    (Method::POST, "/api/v1/machines/{id}/merge", Access::At(Role::Supervisor, Object::Machine)),
    (Method::GET, "/api/v1/machines/{id}/series", Access::At(Role::Viewer, Object::Machine)),
    (Method::GET, "/api/v1/energy", Access::Role(Role::Viewer)),
    (Method::GET, "/api/v1/energy/baselines", Access::Role(Role::Viewer)),
    (Method::POST, "/api/v1/energy/baselines", Access::Role(Role::Supervisor)),
    (Method::GET, "/api/v1/energy/baselines/{id}", Access::At(Role::Viewer, Object::Baseline)),
    (Method::PATCH, "/api/v1/energy/baselines/{id}", Access::At(Role::Supervisor, Object::Baseline)),
    (Method::DELETE, "/api/v1/energy/baselines/{id}", Access::At(Role::Supervisor, Object::Baseline)),
    (Method::GET, "/api/v1/energy/baselines/{id}/savings", Access::At(Role::Viewer, Object::Baseline)),
    (Method::GET, "/api/v1/tariffs", Access::Role(Role::Viewer)),
    (Method::POST, "/api/v1/tariffs", Access::Role(Role::Supervisor)),
    (Method::GET, "/api/v1/tariffs/{id}", Access::At(Role::Viewer, Object::Tariff)),
    (Method::PUT, "/api/v1/tariffs/{id}", Access::At(Role::Supervisor, Object::Tariff)),
    (Method::DELETE, "/api/v1/tariffs/{id}", Access::At(Role::Supervisor, Object::Tariff)),
    (Method::GET, "/api/v1/carbon-factors", Access::Role(Role::Viewer)),
    (Method::POST, "/api/v1/carbon-factors", Access::Role(Role::Supervisor)),
    (Method::GET, "/api/v1/carbon-factors/{id}", Access::At(Role::Viewer, Object::CarbonFactor)),
    (Method::PUT, "/api/v1/carbon-factors/{id}", Access::At(Role::Supervisor, Object::CarbonFactor)),
    (Method::DELETE, "/api/v1/carbon-factors/{id}", Access::At(Role::Supervisor, Object::CarbonFactor)),
    (Method::POST, "/api/v1/sites/{id}/carbon-factors", Access::At(Role::Supervisor, Object::Site)),
    (Method::GET, "/api/v1/machines/{id}/production", Access::At(Role::Viewer, Object::Machine)),
    (Method::PUT, "/api/v1/machines/{id}/production", Access::At(Role::Supervisor, Object::Machine)),
    (Method::GET, "/api/v1/export", Access::Role(Role::Viewer)),
    (Method::GET, "/api/v1/anomalies", Access::Role(Role::Viewer)),
    (Method::GET, "/api/v1/anomalies/{id}", Access::At(Role::Viewer, Object::Anomaly)),
    (Method::GET, "/api/v1/alarms", Access::Role(Role::Viewer)),
    (Method::GET, "/api/v1/alarms/quality", Access::Role(Role::Viewer)),
    (Method::GET, "/api/v1/alarms/{id}", Access::At(Role::Viewer, Object::Alarm)),
    (Method::POST, "/api/v1/alarms/{id}/acknowledge", Access::At(Role::Operator, Object::Alarm)),
    (Method::POST, "/api/v1/alarms/{id}/shelve", Access::At(Role::Operator, Object::Alarm)),
    (Method::POST, "/api/v1/alarms/{id}/out-of-service", Access::At(Role::Supervisor, Object::Alarm)),
    (Method::GET, "/api/v1/alarm-holds", Access::Role(Role::Viewer)),
    // Of other holds than shelves, supervisors only: the route looks.
    (Method::POST, "/api/v1/alarm-holds/{id}/end", Access::At(Role::Operator, Object::AlarmHold)),
    (Method::POST, "/api/v1/machines/{id}/out-of-service", Access::At(Role::Supervisor, Object::Machine)),
    (Method::POST, "/api/v1/machines/{id}/maintenance", Access::At(Role::Supervisor, Object::Machine)),
    (Method::GET, "/api/v1/alarm-rules", Access::Role(Role::Viewer)),
    (Method::POST, "/api/v1/alarm-rules", Access::Role(Role::Supervisor)),
    (Method::GET, "/api/v1/alarm-rules/{id}", Access::At(Role::Viewer, Object::AlarmRule)),
    (Method::PUT, "/api/v1/alarm-rules/{id}", Access::At(Role::Supervisor, Object::AlarmRule)),
    (Method::DELETE, "/api/v1/alarm-rules/{id}", Access::At(Role::Supervisor, Object::AlarmRule)),
    (Method::GET, "/api/v1/sites/{id}/time-zone", Access::At(Role::Viewer, Object::Site)),
    (Method::PUT, "/api/v1/sites/{id}/time-zone", Access::At(Role::Supervisor, Object::Site)),
    (Method::GET, "/api/v1/incidents", Access::Role(Role::Viewer)),
    (Method::GET, "/api/v1/incidents/{id}", Access::At(Role::Viewer, Object::Incident)),
    (Method::POST, "/api/v1/incidents/{id}/assign", Access::At(Role::Operator, Object::Incident)),
    (Method::POST, "/api/v1/incidents/{id}/comments", Access::At(Role::Operator, Object::Incident)),
    (Method::POST, "/api/v1/incidents/{id}/acknowledge", Access::At(Role::Operator, Object::Incident)),
    (Method::POST, "/api/v1/incidents/{id}/close", Access::At(Role::Operator, Object::Incident)),
    (Method::GET, "/api/v1/tickets", Access::Role(Role::Viewer)),
    // For others than oneself, supervisors only: the route looks.
    (Method::POST, "/api/v1/tickets", Access::Role(Role::Operator)),
    (Method::GET, "/api/v1/tickets/{id}", Access::At(Role::Viewer, Object::Ticket)),
    (Method::PATCH, "/api/v1/tickets/{id}", Access::At(Role::Supervisor, Object::Ticket)),
    (Method::POST, "/api/v1/tickets/{id}/assign", Access::At(Role::Supervisor, Object::Ticket)),
    // Of others' tickets, supervisors only: the route looks.
    (Method::POST, "/api/v1/tickets/{id}/move", Access::At(Role::Operator, Object::Ticket)),
    (Method::POST, "/api/v1/tickets/{id}/close", Access::At(Role::Supervisor, Object::Ticket)),
    (Method::POST, "/api/v1/tickets/{id}/cancel", Access::At(Role::Supervisor, Object::Ticket)),
    (Method::POST, "/api/v1/tickets/{id}/reopen", Access::At(Role::Supervisor, Object::Ticket)),
    (Method::POST, "/api/v1/tickets/{id}/comments", Access::At(Role::Operator, Object::Ticket)),
    (Method::POST, "/api/v1/tickets/{id}/items", Access::At(Role::Operator, Object::Ticket)),
    (Method::PUT, "/api/v1/tickets/{id}/items/{item}", Access::At(Role::Operator, Object::Ticket)),
    (Method::DELETE, "/api/v1/tickets/{id}/items/{item}", Access::At(Role::Supervisor, Object::Ticket)),
    (Method::POST, "/api/v1/tickets/{id}/costs", Access::At(Role::Operator, Object::Ticket)),
    // Of others' lines and files, supervisors only: the route looks.
    (Method::DELETE, "/api/v1/tickets/{id}/costs/{cost}", Access::At(Role::Operator, Object::Ticket)),
    (Method::POST, "/api/v1/tickets/{id}/attachments", Access::At(Role::Operator, Object::Ticket)),
    (Method::GET, "/api/v1/tickets/{id}/attachments/{attachment}", Access::At(Role::Viewer, Object::Ticket)),
    (Method::DELETE, "/api/v1/tickets/{id}/attachments/{attachment}", Access::At(Role::Operator, Object::Ticket)),
    (Method::GET, "/api/v1/failure-modes", Access::User),
    (Method::GET, "/api/v1/plans", Access::Role(Role::Viewer)),
    (Method::POST, "/api/v1/plans", Access::Role(Role::Supervisor)),
    (Method::GET, "/api/v1/plans/{id}", Access::At(Role::Viewer, Object::Plan)),
    (Method::PUT, "/api/v1/plans/{id}", Access::At(Role::Supervisor, Object::Plan)),
    (Method::DELETE, "/api/v1/plans/{id}", Access::At(Role::Supervisor, Object::Plan)),
    (Method::GET, "/api/v1/reliability", Access::Role(Role::Viewer)),
    (Method::GET, "/api/v1/escalation", Access::Role(Role::Viewer)),
    (Method::PUT, "/api/v1/escalation", Access::Organisation(Role::Admin)),
    (Method::GET, "/api/v1/me/notifications", Access::Role(Role::Viewer)),
    (Method::PUT, "/api/v1/me/notifications", Access::Role(Role::Viewer)),
    (Method::GET, "/api/v1/webhooks", Access::Organisation(Role::Admin)),
    (Method::POST, "/api/v1/webhooks", Access::Organisation(Role::Admin)),
    (Method::GET, "/api/v1/webhooks/{id}", Access::Organisation(Role::Admin)),
    (Method::PATCH, "/api/v1/webhooks/{id}", Access::Organisation(Role::Admin)),
    (Method::DELETE, "/api/v1/webhooks/{id}", Access::Organisation(Role::Admin)),
    (Method::POST, "/api/v1/webhooks/{id}/secret", Access::Organisation(Role::Admin)),
    (Method::POST, "/api/v1/webhooks/{id}/test", Access::Organisation(Role::Admin)),
    (Method::GET, "/api/v1/deliveries", Access::Role(Role::Supervisor)),
    (Method::POST, "/api/v1/deliveries/{id}/retry", Access::At(Role::Supervisor, Object::Delivery)),
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

/// Who makes the request.
#[derive(Debug, Clone)]
pub struct Caller {
    pub user: User,
    /// What they may do with this route: for one that asks for a role, only the sites where they have it.
    pub scope: Scope,
    pub credential: Credential,
    pub source: Source,
}

impl Caller {
    /// Refuses a body's `site` where the caller may not do what the route does.
    ///
    /// # Errors
    /// If the scope, which is narrowed to the route's role, does not have it.
    pub fn may_add_at(&self, site: Uuid) -> Result<(), ApiError> {
        let there = self.scope.at(site).map(|_| ());
        there.ok_or_else(|| ApiError::field("site", "is none where you may do this"))
    }

    /// For the audit.
    #[must_use]
    pub fn by(&self) -> By {
        By {
            organisation: self.user.organisation,
            user: Some(self.user.id),
            name: self.user.name.clone(),
            api_key: match self.credential {
                Credential::Key { id, .. } => Some(id),
                Credential::Session { .. } => None,
            },
            address: Some(self.source.address),
            request: Some(self.source.request),
        }
    }

    /// The session, for what a key may not do: nobody makes a key with a key.
    ///
    /// # Errors
    /// 403 for a key.
    pub fn session(&self) -> Result<Uuid, ApiError> {
        match self.credential {
            Credential::Session { id, .. } => Ok(id),
            Credential::Key { .. } => {
                let detail = "this is for people who have logged in, not for API keys";
                Err(ApiError::new(StatusCode::FORBIDDEN, "session_required", detail))
            }
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        parts.extensions.get::<Self>().cloned().ok_or_else(|| ApiError::unauthenticated("log in first"))
    }
}

/// Lets a request through to its route, or not.
pub async fn gate(State(state): State<ApiState>, path: MatchedPath, mut request: Request, next: Next) -> Response {
    let source = source::known(request.extensions());
    let Some(access) = access(request.method(), path.as_str()) else { return forbidden().into_response() };
    let shown = match (access, bearer(&request)) {
        (Access::Open, _) => None,
        (_, Some(token)) => match read(&state, token, state.now()).await {
            Ok(shown) => Some(shown),
            Err(error) => return error.into_response(),
        },
        (_, None) => return ApiError::unauthenticated("send Authorization: Bearer <token>").into_response(),
    };
    // Before the database is asked for anything. Probes are nobody's requests.
    let subject = shown.as_ref().map_or(Subject::Address(source.address), Shown::subject);
    let left = path.as_str().starts_with("/api/").then(|| state.0.rates.take(subject, Instant::now()));
    let mut response = match (left.and_then(|left| left.wait), shown) {
        (Some(wait), _) => ApiError::too_many_requests(wait).into_response(),
        (None, None) => next.run(request).await,
        (None, Some(shown)) => match admit(&state, access, shown, source, &mut request).await {
            Err(error) => error.into_response(),
            // An upload is the same when it comes again, and larger than what is kept to be compared.
            Ok(caller)
                if request.method() == Method::POST
                    && ![UPLOAD, MANY].contains(&path.as_str())
                    && request.headers().contains_key(idempotency::KEY) =>
            {
                idempotency::run(&state, &caller, request, next).await
            }
            Ok(caller) if request.method() == Method::GET && together::ROUTES.contains(&path.as_str()) => {
                state.0.together.answer(&caller.scope, request, next).await
            }
            Ok(_) => next.run(request).await,
        },
    };
    if let Some(left) = left {
        say_rates(&mut response, state.0.rates.quota(), left);
    }
    response
}

/// As draft-ietf-httpapi-ratelimit-headers has it.
fn say_rates(response: &mut Response, quota: u32, left: Left) {
    let full_in = left.full_in.as_secs() + u64::from(left.full_in.subsec_nanos() > 0);
    for (name, value) in [
        ("ratelimit-policy", format!("\"default\";q={quota};w={}", WINDOW.as_secs())),
        ("ratelimit", format!("\"default\";r={};t={full_in}", left.requests)),
    ] {
        if let Ok(value) = HeaderValue::from_str(&value) {
            response.headers_mut().insert(HeaderName::from_static(name), value);
        }
    }
}

async fn admit(
    state: &ApiState,
    access: Access,
    shown: Shown,
    source: Source,
    request: &mut Request,
) -> Result<Caller, ApiError> {
    let mut caller = known(state, shown, source, state.now()).await?;
    if access != Access::SignedIn && caller.user.must_change_password {
        return Err(password_change_required());
    }
    match access {
        Access::Open | Access::SignedIn | Access::User => {}
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
    request.extensions_mut().insert(caller.clone());
    Ok(caller)
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

/// What somebody showed, before the database is asked whether it is good (any more).
enum Shown {
    Token(Token),
    Key([u8; 32]),
}

impl Shown {
    fn subject(&self) -> Subject {
        match self {
            Self::Token(token) => Subject::User(token.user),
            Self::Key(hash) => Subject::Key(std::array::from_fn(|i| hash[i])),
        }
    }
}

async fn read(state: &ApiState, token: &str, now: Timestamp) -> Result<Shown, ApiError> {
    if token.starts_with(secrets::API_KEY) {
        return Ok(Shown::Key(secrets::hash(secrets::API_KEY, token).ok_or(TokenError::Invalid)?));
    }
    Ok(Shown::Token(state.read_token(token, now).await?))
}

async fn known(state: &ApiState, shown: Shown, source: Source, now: Timestamp) -> Result<Caller, ApiError> {
    let known = match shown {
        Shown::Key(hash) => {
            let found = store::users::by_key(state.store(), &hash, now).await?;
            found.ok_or_else(|| ApiError::unauthenticated("this key is not good (any more)"))?
        }
        Shown::Token(token) => {
            let found = store::users::by_session(state.store(), token.user, token.session, now).await?;
            let mut known = found.ok_or_else(|| ApiError::unauthenticated("this session was ended; log in again"))?;
            known.credential = Credential::Session { id: token.session, expires_at: token.expires_at };
            known
        }
    };
    Ok(Caller { user: known.user, scope: known.scope, credential: known.credential, source })
}

/// Whose token or key this is, as the database has the user now.
///
/// # Errors
/// If the token is not good (any more), or the database is away.
pub async fn caller(state: &ApiState, token: &str, source: Source, now: Timestamp) -> Result<Caller, ApiError> {
    known(state, read(state, token, now).await?, source, now).await
}

/// Whether a page of this server asks; a client that is no browser sends no `Origin`.
#[must_use]
pub fn same_origin(headers: &HeaderMap) -> bool {
    let Some(origin) = headers.get(header::ORIGIN) else { return true };
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let origin = origin.to_str().ok().and_then(|origin| origin.split_once("://")).map(|(_, authority)| authority);
    matches!((origin, host), (Some(origin), Some(host)) if origin.eq_ignore_ascii_case(host))
}

/// The answer to who may not do this.
pub(super) fn forbidden() -> ApiError {
    ApiError::new(StatusCode::FORBIDDEN, "forbidden", "your role may not do this")
}

/// The answer to a user who must choose a password first.
#[must_use]
pub fn password_change_required() -> ApiError {
    let detail = "choose a password of your own first: POST /api/v1/password";
    ApiError::new(StatusCode::FORBIDDEN, "password_change_required", detail)
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;

    /// The table of permissions, as the documentation has it.
    fn table() -> String {
        let mut text =
            String::from("| route | viewer | operator | supervisor | admin | where |\n|---|---|---|---|---|---|\n");
        for (method, path, access) in ROUTES {
            let (least, place) = match access {
                Access::Open => (None, "anybody"),
                Access::SignedIn => (None, "own, also with a one-time password"),
                Access::User => (None, "own"),
                Access::Role(least) => (Some(*least), "sites where one is that"),
                Access::At(least, object) => (Some(*least), object.as_str()),
                Access::Organisation(least) => (Some(*least), "organisation"),
            };
            write!(text, "| {method} `{path}` |").unwrap();
            for role in Role::ALL {
                text.push_str(if least.is_none_or(|least| role >= least) { " ✓ |" } else { " |" });
            }
            let place = if matches!(access, Access::At(..)) { format!("the {place}'s site") } else { place.to_owned() };
            writeln!(text, " {place} |").unwrap();
        }
        text
    }

    #[test]
    fn the_documentation_has_the_table_that_holds() {
        let document = include_str!("../../ACCESS.md");
        let table = table();
        assert!(document.contains(&table), "cloud/ACCESS.md, Permissions, should be:\n\n{table}");
    }

    #[test]
    fn only_pages_of_this_server_may_listen() {
        let same = |origin: Option<&str>, host: Option<&str>| {
            let mut headers = HeaderMap::new();
            for (name, value) in [(header::ORIGIN, origin), (header::HOST, host)] {
                if let Some(value) = value {
                    headers.insert(name, value.parse().unwrap());
                }
            }
            same_origin(&headers)
        };
        for (origin, host, expected) in [
            (None, Some("gemba.plant:8080"), true),
            (Some("http://gemba.plant:8080"), Some("gemba.plant:8080"), true),
            (Some("https://Gemba.plant"), Some("gemba.plant"), true),
            (Some("http://gemba.plant"), Some("gemba.plant:8080"), false),
            (Some("https://evil.example"), Some("gemba.plant"), false),
            (Some("https://gemba.plant.evil.example"), Some("gemba.plant"), false),
            (Some("null"), Some("gemba.plant"), false),
            (Some("http://x"), None, false),
        ] {
            assert_eq!(same(origin, host), expected, "{origin:?} {host:?}");
        }
    }
}
