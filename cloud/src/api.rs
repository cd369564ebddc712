//! The HTTP API: what `/api/v1` answers, and the routes for probes and metrics beside it.
//!
//! Handlers take a request apart and put an answer together; what is in it is decided elsewhere. Every route stands
//! in the table of [`access`]; every error is a [`problem`]; a request has an id (`x-request-id`), a deadline
//! ([`DEADLINE`]) and a body of at most [`BODY_BYTES_MAX`]; files of tickets may be larger, and take longer, and so may lists of
//! carbon factors.

pub mod access;
pub mod alarms;
pub mod anomalies;
pub mod api_keys;
pub mod areas;
pub mod audit;
pub mod baselines;
pub mod carbon_factors;
pub mod commands;
pub mod deliveries;
pub mod document;
pub mod energy;
pub mod enroll;
pub mod etag;
pub mod export;
pub mod extract;
pub mod gateways;
pub mod health;
pub mod idempotency;
pub mod holds;
pub mod incidents;
pub mod live;
pub mod machines;
pub mod notifications;
pub mod plans;
pub mod problem;
pub mod production;
pub mod quality;
pub mod reliability;
pub mod requests;
pub mod retention;
pub mod rules;
pub mod series;
pub mod session;
pub mod sessions;
pub mod sites;
pub mod source;
pub mod tickets;
pub mod tariffs;
pub mod together;
pub mod users;
pub mod webhooks;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{Router, extract::DefaultBodyLimit, http::StatusCode, middleware};
use ed25519_dalek::SigningKey;
use ipnet::IpNet;
use jiff::Timestamp;
use tokio::sync::{Mutex, Semaphore};
use tokio_util::sync::CancellationToken;
use utoipa_axum::{
    router::{OpenApiRouter, UtoipaMethodRouterExt as _},
    routes,
};
use uuid::Uuid;

use self::{problem::ApiError, together::Together};
use crate::{
    live::{Change, Changes, hub::Feed},
    metrics::Metrics,
    notifications::{address::Policy, signature::Secrets},
    store::{self, Store},
    users::{
        passwords::Passwords,
        rates::Rates,
        slowdown::Slowdown,
        tokens::{Token, TokenError, Tokens},
    },
    views::Patience,
};

pub use document::openapi;

/// The largest body of a request.
pub const BODY_BYTES_MAX: usize = 64 * 1_024;
/// How long a request may take.
pub const DEADLINE: Duration = Duration::from_secs(20);
/// The same for one that sends a file: a phone in a hall has a slow link.
pub const UPLOAD_DEADLINE: Duration = Duration::from_mins(2);
/// How often the tokens' keys are read: more often than a new one waits before it signs.
const KEYS_EVERY: Duration = Duration::from_mins(1);
/// How often because of a token with a key that is not known.
const KEYS_AGAIN: Duration = Duration::from_secs(1);
/// Clients of the live stream at a time.
pub const LIVE_CLIENTS_MAX: usize = 2_000;
/// Trends read from the database at a time; others wait, up to their deadline.
pub const TRENDS_MAX: usize = 3;
/// Exports under way at a time; who comes then is asked to come later.
pub const EXPORTS_MAX: usize = 2;

/// What the routes stand on.
#[derive(Clone)]
pub struct ApiState(Arc<Inner>);

struct Inner {
    parts: Parts,
    tokens: Tokens,
    /// When the tokens' keys were read.
    keys_read: Mutex<Option<Instant>>,
    cloud: SigningKey,
    passwords: Passwords,
    slowdown: Slowdown,
    rates: Rates,
    live_clients: Arc<Semaphore>,
    /// Trends read at a time: intake needs connections as well.
    trends: Semaphore,
    exports: Arc<Semaphore>,
    uploads: Arc<Semaphore>,
    together: Arc<Together>,
    notifications: Notifying,
}

/// What the routes of notifications need to know.
struct Notifying {
    /// E-mails are sent.
    mail: bool,
    policy: Policy,
    secrets: Secrets,
}

/// What [`ApiState`] is made of.
pub struct Parts {
    pub store: Store,
    /// The wall clock.
    pub clock: fn() -> Timestamp,
    pub patience: Patience,
    pub changes: Changes,
    /// Where [`crate::live::hub::Hub`] tells changes.
    pub feed: Feed,
    pub metrics: Arc<Metrics>,
    /// What gateways sent and intake has not looked at; for `/metrics`.
    pub intake_waiting: Box<dyn Fn() -> usize + Send + Sync>,
    /// Ends the live streams.
    pub ending: CancellationToken,
    /// What a kilowatt-hour emits where a site says nothing, grams of CO2 equivalent.
    pub carbon_g_per_kwh: f64,
    /// Of one user, key or address, on the average of ten seconds.
    pub requests_per_s: u32,
    /// Whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// How browsers reach the server: where links lead, and whether cookies are for HTTPS only.
    pub url: String,
    /// Whether e-mails are sent.
    pub mail: bool,
    /// Where webhooks may lead.
    pub webhook_policy: Policy,
    /// How much of files tickets have.
    pub attachments: tickets::files::Limits,
    /// Why the daemon is not ready, besides the database; for `/readyz`.
    pub not_ready: Box<dyn Fn() -> Option<String> + Send + Sync>,
}

impl std::fmt::Debug for ApiState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ApiState")
    }
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Parts")
    }
}

impl ApiState {
    /// With the cloud's key, of which the tokens' key is derived.
    #[must_use]
    pub fn new(parts: Parts, cloud: &SigningKey) -> Self {
        let rates = Rates::new(parts.requests_per_s);
        let notifications =
            Notifying { mail: parts.mail, policy: parts.webhook_policy.clone(), secrets: Secrets::new(cloud) };
        Self(Arc::new(Inner {
            parts,
            tokens: Tokens::new(cloud),
            keys_read: Mutex::new(None),
            cloud: cloud.clone(),
            passwords: Passwords::default(),
            slowdown: Slowdown::default(),
            rates,
            live_clients: Arc::new(Semaphore::new(LIVE_CLIENTS_MAX)),
            trends: Semaphore::new(TRENDS_MAX),
            notifications,
            exports: Arc::new(Semaphore::new(EXPORTS_MAX)),
            uploads: Arc::new(Semaphore::new(tickets::files::UPLOADS_MAX)),
            together: Arc::default(),
        }))
    }

    fn now(&self) -> Timestamp {
        (self.0.parts.clock)()
    }

    fn store(&self) -> &Store {
        &self.0.parts.store
    }

    fn url(&self) -> &str {
        &self.0.parts.url
    }

    fn patience(&self) -> Patience {
        self.0.parts.patience
    }

    /// A token for a session.
    async fn issue_token(&self, user: Uuid, session: Uuid, now: Timestamp) -> Result<(String, Token), ApiError> {
        self.read_keys(KEYS_EVERY, now).await?;
        Ok(self.0.tokens.issue(user, session, now)?)
    }

    async fn read_token(&self, token: &str, now: Timestamp) -> Result<Token, ApiError> {
        // An error matters when a key is missing, and is told then.
        self.read_keys(KEYS_EVERY, now).await.ok();
        match self.0.tokens.read(token, now) {
            Err(TokenError::UnknownKey) => {
                self.read_keys(KEYS_AGAIN, now).await?;
                Ok(self.0.tokens.read(token, now)?)
            }
            read => Ok(read?),
        }
    }

    /// Reads the tokens' keys, unless that was done within `every`.
    async fn read_keys(&self, every: Duration, now: Timestamp) -> Result<(), ApiError> {
        let mut read = self.0.keys_read.lock().await;
        if read.is_some_and(|at| at.elapsed() < every) {
            return Ok(());
        }
        let keys = store::token_keys::current(self.store(), now).await;
        if keys.is_ok() || self.0.tokens.can_sign() {
            // Old keys do for a while: an outage is not asked about by every request.
            *read = Some(Instant::now());
        }
        self.0.tokens.know(&keys?);
        Ok(())
    }

    fn passwords(&self) -> &Passwords {
        &self.0.passwords
    }

    fn slowdown(&self) -> &Slowdown {
        &self.0.slowdown
    }

    fn feed(&self) -> &Feed {
        &self.0.parts.feed
    }

    fn notifications(&self) -> &Notifying {
        &self.0.notifications
    }

    /// Returns when no live stream is open any more: they are told to end by [`Parts::ending`].
    pub async fn streams_ended(&self) {
        // It is never closed.
        self.0.live_clients.acquire_many(LIVE_CLIENTS_MAX as u32).await.ok();
    }

    fn tell(&self, change: Change) {
        // An error says that nobody watches, which is no fault.
        drop(self.0.parts.changes.send(change));
    }
}

/// The routes below `/api/v1` and their description.
fn routes() -> OpenApiRouter<ApiState> {
    let api = OpenApiRouter::new()
        .routes(routes!(session::login))
        .routes(routes!(session::refresh))
        .routes(routes!(session::logout))
        .routes(routes!(session::change_password))
        .routes(routes!(session::follow_link))
        .routes(routes!(session::me))
        .routes(routes!(sessions::list))
        .routes(routes!(sessions::end))
        .routes(routes!(sessions::of_user, sessions::end_of_user))
        .routes(routes!(api_keys::list, api_keys::create))
        .routes(routes!(api_keys::revoke))
        .routes(routes!(users::list, users::create))
        .routes(routes!(users::one, users::change))
        .routes(routes!(users::grant))
        .routes(routes!(users::link))
        .routes(routes!(sites::organisation, sites::rename_organisation))
        .routes(routes!(sites::cost_basis, sites::set_cost_basis))
        .routes(routes!(retention::get, retention::put))
        .routes(routes!(sites::list, sites::create))
        .routes(routes!(sites::one, sites::rename))
        .routes(routes!(areas::list, areas::create))
        .routes(routes!(areas::one, areas::change, areas::delete))
        .routes(routes!(gateways::list))
        .routes(routes!(commands::list, commands::give))
        .routes(routes!(machines::list))
        .routes(routes!(machines::one, machines::label))
        .routes(routes!(machines::label_sensor))
        .routes(routes!(machines::merge))
        .routes(routes!(series::read))
        .routes(routes!(export::read))
        .routes(routes!(anomalies::list))
        .routes(routes!(anomalies::one))
        .routes(routes!(alarms::list))
        .routes(routes!(quality::read))
        .routes(routes!(alarms::one))
        .routes(routes!(alarms::acknowledge))
        .routes(routes!(audit::list))
        .routes(routes!(audit::export))
        .routes(routes!(alarms::shelve))
        .routes(routes!(alarms::take_out))
        .routes(routes!(holds::list))
        .routes(routes!(holds::end))
        .routes(routes!(holds::take_out))
        .routes(routes!(holds::plan))
        .routes(routes!(rules::time_zone, rules::set_time_zone))
        .routes(routes!(rules::list, rules::add))
        .routes(routes!(rules::one, rules::replace, rules::remove))
        .routes(routes!(incidents::list))
        .routes(routes!(incidents::one))
        .routes(routes!(incidents::assign))
        .routes(routes!(incidents::comment))
        .routes(routes!(incidents::acknowledge))
        .routes(routes!(incidents::close))
        .routes(routes!(plans::list, plans::add))
        .routes(routes!(plans::one, plans::replace, plans::remove))
        .routes(routes!(reliability::read))
        .routes(routes!(incidents::escalation, incidents::set_escalation))
        .routes(routes!(notifications::get, notifications::put))
        .routes(routes!(webhooks::list, webhooks::add))
        .routes(routes!(webhooks::one, webhooks::change, webhooks::delete))
        .routes(routes!(webhooks::rotate))
        .routes(routes!(webhooks::test))
        .routes(routes!(deliveries::list))
        .routes(routes!(deliveries::retry))
        .merge(ticket_routes())
        .merge(energy_routes())
        .routes(routes!(live::open))
        .routes(routes!(document::serve));
    OpenApiRouter::new()
        .nest("/api/v1", api)
        .routes(routes!(health::alive))
        .routes(routes!(health::ready))
        .routes(routes!(health::metrics))
}

fn energy_routes() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new()
        .routes(routes!(energy::read))
        .routes(routes!(baselines::list, baselines::create))
        .routes(routes!(baselines::one, baselines::rename, baselines::delete))
        .routes(routes!(baselines::savings))
        .routes(routes!(tariffs::list, tariffs::create))
        .routes(routes!(tariffs::one, tariffs::replace, tariffs::delete))
        .routes(routes!(carbon_factors::list, carbon_factors::create))
        .routes(routes!(carbon_factors::one, carbon_factors::replace, carbon_factors::delete))
        .routes(routes!(carbon_factors::write_many).layer(DefaultBodyLimit::max(carbon_factors::MANY_BYTES_MAX)))
        .routes(routes!(production::get, production::put))
}

fn ticket_routes() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new()
        .routes(routes!(tickets::list, tickets::create))
        .routes(routes!(tickets::one, tickets::change))
        .routes(routes!(tickets::steps::assign))
        .routes(routes!(tickets::steps::advance))
        .routes(routes!(tickets::steps::close))
        .routes(routes!(tickets::steps::cancel))
        .routes(routes!(tickets::steps::reopen))
        .routes(routes!(tickets::steps::failure_modes))
        .routes(routes!(tickets::work::comment))
        .routes(routes!(tickets::work::add_item))
        .routes(routes!(tickets::work::tick, tickets::work::remove_item))
        .routes(routes!(tickets::work::add_cost))
        .routes(routes!(tickets::work::remove_cost))
        .routes(routes!(tickets::files::add))
        .routes(routes!(tickets::files::read_file, tickets::files::remove))
}

/// All routes; what is not below `/api` and not a probe is left to the caller's fallback (the page).
///
/// `more` are routes of other modules that belong to the API (enrolment); they must stand in the table of
/// [`access`] as well.
///
/// Serve it with `into_make_service_with_connect_info::<SocketAddr>()`: logins are slowed for each address.
pub fn router(state: ApiState, more: Router) -> Router {
    let (routes, _) = routes().split_for_parts();
    let gate = middleware::from_fn_with_state(state.clone(), access::gate);
    let known = routes.with_state(state.clone()).merge(more).route_layer(gate);
    known
        .route("/api", axum::routing::any(not_found))
        .route("/api/", axum::routing::any(not_found))
        .route("/api/{*rest}", axum::routing::any(not_found))
        .method_not_allowed_fallback(method_not_allowed)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(middleware::from_fn_with_state(state, requests::around))
}

async fn not_found() -> ApiError {
    ApiError::not_found("route")
}

async fn method_not_allowed() -> ApiError {
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "the route does not know this method")
}
