//! The API over real HTTP, on a real database.
#![allow(clippy::unwrap_used, reason = "a failed helper is a failed test")]

mod access;
mod alarms;
mod conventions;
mod energy;
mod export;
mod hostile;
mod incidents;
mod isolation;
mod lost_updates;
mod noise;
mod notifications;
mod orders;
mod people;
mod plans;
mod plant;
mod proxies;
mod reliability;
mod retention;
mod rules;
mod sessions;
mod stream;
mod tickets;
mod trends;

use std::{net::SocketAddr, sync::Arc};

use axum::Router;
use ed25519_dalek::SigningKey;
use gemba_cloud::{
    api::{self, ApiState, Parts, tickets::files::Limits},
    clock,
    live::{CHANGES_MAX, Change, Changes, Elsewhere, hub},
    notifications::address::Policy,
    store::{Store, users},
    users::{
        Role,
        tokens::{Key, Tokens},
    },
    views::Patience,
    web,
};
use jiff::Timestamp;
use serde_json::Value;
use tokio_util::sync::{CancellationToken, DropGuard};
use uuid::Uuid;

use crate::database;

const TOKEN_KEY: Uuid = Uuid::from_u128(7);

/// A server of the API with the page, and the live hub behind it.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) store: Store,
    changes: Changes,
    tokens: Tokens,
    agent: ureq::Agent,
    _stop: DropGuard,
}

/// What stands at a site.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plant {
    pub(crate) site: Uuid,
    pub(crate) gateway: Uuid,
    pub(crate) machine: Uuid,
    pub(crate) alarm: Uuid,
    pub(crate) anomaly: Uuid,
    pub(crate) area: Uuid,
    pub(crate) hold: Uuid,
    pub(crate) rule: Uuid,
    pub(crate) incident: Uuid,
    /// Given up, of an e-mail to nobody in particular.
    pub(crate) delivery: Uuid,
    /// With a comment, and an item, a line of cost and a file that have the ticket's own id.
    pub(crate) ticket: Uuid,
    pub(crate) plan: Uuid,
    pub(crate) tariff: Uuid,
    pub(crate) carbon_factor: Uuid,
    pub(crate) baseline: Uuid,
}

impl Plant {
    /// Makes what may be taken away, unless it is there: what callers reach by its id, and what its ticket has.
    pub(crate) fn again(&self) -> String {
        let Self { site, machine, rule, ticket, plan, tariff, carbon_factor, baseline, .. } = self;
        let keeper = format!("FROM users u WHERE u.name = 'keeper-{site}' ON CONFLICT DO NOTHING");
        format!(
            "INSERT INTO tariffs
                 SELECT '{tariff}', organisation_id, id, 't', 'EUR', '2026-01-01', 300000, '[]', now()
                 FROM sites WHERE id = '{site}' ON CONFLICT DO NOTHING;
             INSERT INTO carbon_factors
                 SELECT '{carbon_factor}', organisation_id, id, '2026-01-01T00:00:00Z', 400, '', now()
                 FROM sites WHERE id = '{site}' ON CONFLICT DO NOTHING;
             INSERT INTO machine_production VALUES ('{machine}', 'flow', 'counter') ON CONFLICT DO NOTHING;
             INSERT INTO baselines
                 SELECT '{baseline}', s.organisation_id, s.id, '{machine}', 'b', '2026-01-01', '2026-02-01', 'running_hours', 'h', '[]',
                        ARRAY['{machine}']::uuid[], 31, 1, 1, 1, 1, 1, 1, 1, 0, 2, now(), u.id
                 FROM sites s JOIN users u ON u.name = 'keeper-' || s.id WHERE s.id = '{site}' ON CONFLICT DO NOTHING;
             INSERT INTO alarm_rules
                 SELECT '{rule}', s.organisation_id, s.id, '{machine}', 'r', 'flow', 'high', 'mean', 1, 0, 0, 0, 'low', NULL, NULL,
                        NULL, false, false, now(), u.id, now()
                 FROM sites s JOIN users u ON u.name = 'keeper-' || s.id WHERE s.id = '{site}' ON CONFLICT DO NOTHING;
             INSERT INTO alarm_rule_states (rule_id) VALUES ('{rule}') ON CONFLICT DO NOTHING;
             INSERT INTO tickets (id, organisation_id, site_id, number, machine_id, kind, priority, title, state, state_since,
                                  created_at, updated_at, currency)
                 SELECT '{ticket}', organisation_id, id, (SELECT count(*) + 1 FROM tickets), '{machine}', 'corrective', 'low', 't',
                        'open', now(), now(), now(), 'EUR'
                 FROM sites WHERE id = '{site}' ON CONFLICT DO NOTHING;
             INSERT INTO ticket_numbers SELECT organisation_id, 1000 FROM sites WHERE id = '{site}' ON CONFLICT DO NOTHING;
             INSERT INTO ticket_items (id, ticket_id, text) VALUES ('{ticket}', '{ticket}', 'x') ON CONFLICT DO NOTHING;
             INSERT INTO ticket_steps (id, ticket_id, at, to_state) VALUES ('{ticket}', '{ticket}', now(), 'open')
                 ON CONFLICT DO NOTHING;
             INSERT INTO ticket_comments (id, ticket_id, author_id, written_at, text)
                 SELECT '{ticket}', '{ticket}', u.id, now(), 'x' {keeper};
             INSERT INTO ticket_costs (id, ticket_id, kind, amount_minor, created_at, created_by)
                 SELECT '{ticket}', '{ticket}', 'other', 5, now(), u.id {keeper};
             INSERT INTO ticket_attachments (id, ticket_id, name, media_type, size, sha256, created_at, created_by)
                 SELECT '{ticket}', '{ticket}', 'x.txt', 'text/plain', 1, sha256('x'), now(), u.id {keeper};
             INSERT INTO ticket_attachment_parts VALUES ('{ticket}', 0, 'x') ON CONFLICT DO NOTHING;
             INSERT INTO plans (id, organisation_id, site_id, machine_id, title, description, priority, checklist, every_h,
                                counted_from, lead_h, enabled, created_at, created_by, updated_at)
                 SELECT '{plan}', s.organisation_id, s.id, '{machine}', 'p', '', 'low', '{{}}', 500, now(), 0, true, now(), u.id, now()
                 FROM sites s JOIN users u ON u.name = 'keeper-' || s.id WHERE s.id = '{site}' ON CONFLICT DO NOTHING"
        )
    }
}

/// An answer: status, headers, body.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: axum::http::HeaderMap,
    pub(crate) body: Value,
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::ready(database::store().await).await
    }

    /// Over a database whose schema is there and in which nobody has logged in yet.
    pub(crate) async fn ready(store: Store) -> Self {
        let client = store.client().await.unwrap();
        let key = format!("INSERT INTO token_keys VALUES ('{TOKEN_KEY}', now() - interval '1 day')");
        client.batch_execute(&key).await.unwrap();
        Self::over(store).await
    }

    /// Over a database that need not be there.
    pub(crate) async fn over(store: Store) -> Self {
        Self::limited(store, 10_000).await
    }

    pub(crate) async fn limited(store: Store, requests_per_s: u32) -> Self {
        Self::behind(store, requests_per_s, &[]).await
    }

    /// Behind proxies that are trusted.
    pub(crate) async fn behind(store: Store, requests_per_s: u32, proxies: &[&str]) -> Self {
        let key = SigningKey::from_bytes(&[3; 32]);
        let feed = hub::Feed::default();
        let changes = Changes::new(CHANGES_MAX);
        let stop = CancellationToken::new();
        let hub = hub::Hub::new(store.clone(), feed.clone(), clock::now, Patience::default());
        // Nobody else uses the database.
        let elsewhere = Elsewhere::new(1);
        let heard = elsewhere.subscribe();
        let (changed, cancel) = (changes.subscribe(), stop.clone());
        tokio::spawn(async move {
            let _elsewhere = elsewhere;
            hub.run(changed, heard, cancel).await;
        });
        let parts = Parts {
            store: store.clone(),
            clock: clock::now,
            patience: Patience::default(),
            changes: changes.clone(),
            feed,
            url: "http://gemba.test/".to_owned(),
            requests_per_s,
            trusted_proxies: proxies.iter().map(|proxy| proxy.parse().unwrap()).collect(),
            carbon_g_per_kwh: 500.0,
            metrics: Arc::default(),
            intake_waiting: Box::new(|| 0),
            ending: stop.clone(),
            mail: true,
            webhook_policy: Policy { private: true, own_ports: vec![1] },
            attachments: Limits { bytes_max: 1_000_000, count_max: 3 },
            not_ready: Box::new(|| None),
        };
        let site = web::site(api::router(ApiState::new(parts, &key), Router::new()));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let service = site.into_make_service_with_connect_info::<SocketAddr>();
        let stopped = stop.clone();
        tokio::spawn(async move {
            axum::serve(listener, service).with_graceful_shutdown(stopped.cancelled_owned()).await.unwrap();
        });
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_idle_connections(0)
            .allow_non_standard_methods(true);
        let agent = agent.build().into();
        let tokens = Tokens::new(&key);
        tokens.know(&[Key { id: TOKEN_KEY, created_at: clock::now() - jiff::SignedDuration::from_hours(24) }]);
        Self { address, store, changes, tokens, agent, _stop: stop.drop_guard() }
    }

    pub(crate) async fn call(&self, method: &str, path: &str, token: Option<&str>, body: Option<Value>) -> Answer {
        self.call_with(method, path, token, body, &[]).await
    }

    /// The same, with more headers.
    pub(crate) async fn call_with(
        &self,
        method: &str,
        path: &str,
        token: Option<&str>,
        body: Option<Value>,
        headers: &[(&str, &str)],
    ) -> Answer {
        let mut request = axum::http::Request::builder().method(method).uri(format!("http://{}{path}", self.address));
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if body.is_some() {
            request = request.header("content-type", "application/json");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        let request = request.body(body).unwrap();
        let agent = self.agent.clone();
        tokio::task::spawn_blocking(move || {
            let what = format!("{} {}", request.method(), request.uri());
            let mut response = agent.run(request).unwrap_or_else(|error| panic!("{what}: {error}"));
            let text = response.body_mut().read_to_string().expect("text");
            let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
            Answer { status: response.status().as_u16(), headers: response.headers().clone(), body }
        })
        .await
        .unwrap()
    }

    pub(crate) async fn get(&self, path: &str, token: &str) -> Value {
        let answer = self.call("GET", path, Some(token), None).await;
        assert_eq!(answer.status, 200, "GET {path}: {}", answer.body);
        answer.body
    }

    pub(crate) async fn post(&self, path: &str, token: &str, body: Value) -> (u16, Value) {
        let answer = self.call("POST", path, Some(token), Some(body)).await;
        (answer.status, answer.body)
    }

    /// A user with this role in the whole first organisation who has chosen a password, and a token.
    pub(crate) async fn user(&self, role: Role) -> String {
        self.add_user(users::DEFAULT_ORGANISATION, role.as_str(), &[(None, role)]).await
    }

    /// A user with these roles at these sites of an organisation, and a token; `None` is the whole of it.
    pub(crate) async fn user_at(&self, organisation: Uuid, grants: &[(Option<Uuid>, Role)]) -> String {
        self.add_user(organisation, "user", grants).await
    }

    async fn add_user(&self, organisation: Uuid, name: &str, grants: &[(Option<Uuid>, Role)]) -> String {
        let id = Uuid::now_v7();
        self.sql(&format!(
            "INSERT INTO users (id, organisation_id, name, password_hash, must_change_password)
             VALUES ('{id}', '{organisation}', '{name}-{}', 'x', false);
             INSERT INTO sessions (id, user_id, organisation_id, created_at, used_at, expires_at)
             VALUES ('{id}', '{id}', '{organisation}', now(), now(), now() + interval '1 day')",
            id.simple()
        ))
        .await;
        for (site, role) in grants {
            let site = site.map_or("NULL".to_owned(), |site| format!("'{site}'"));
            self.sql(&format!(
                "INSERT INTO grants (user_id, organisation_id, site_id, role)
                 VALUES ('{id}', '{organisation}', {site}, '{role}')"
            ))
            .await;
        }
        self.token(id)
    }

    /// A fresh token for a user who was made here: their session has their id.
    pub(crate) fn token(&self, user: Uuid) -> String {
        self.tokens.issue(user, user, clock::now()).unwrap().0
    }

    /// An organisation of this name.
    pub(crate) async fn organisation(&self, name: &str) -> Uuid {
        let id = Uuid::now_v7();
        self.sql(&format!("INSERT INTO organisations (id, name) VALUES ('{id}', '{name}')")).await;
        id
    }

    pub(crate) async fn site(&self, organisation: Uuid, name: &str) -> Uuid {
        let id = Uuid::now_v7();
        self.sql(&format!("INSERT INTO sites (id, organisation_id, name) VALUES ('{id}', '{organisation}', '{name}')"))
            .await;
        id
    }

    /// An enrolled gateway at a site, with a machine (two sensors, a summary of today and a packed one), an open alarm and its anomaly.
    pub(crate) async fn plant_at(&self, site: Uuid) -> Plant {
        let gateway = self.gateway(&format!("gateway-{}", site.simple())).await;
        self.sql(&format!("UPDATE gateways SET site_id = '{site}' WHERE id = '{gateway}'")).await;
        let (machine, key) = self.machine(gateway, "pump-1", &["flow", "pressure"]).await;
        let now = clock::now();
        let day = gemba_cloud::history::day;
        let yesterday = day(now - jiff::SignedDuration::from_hours(24));
        self.store.make_days(&[yesterday, day(now)].into()).await.unwrap();
        self.sql(&format!(
            "INSERT INTO summaries SELECT {key}, at, 10000, '{{1,1}}', '{{1,1}}', '{{1,1}}', '{{1,1}}', '{{0,0}}', '{{1,1}}', '\\x0000',
                                          1, 0, 100, 3, 0, true
             FROM unnest(ARRAY[date_trunc('minute', now()), timestamptz '{yesterday} 12:00Z']) AS at"
        ))
        .await;
        crate::history::make_rollups(&self.store).await;
        self.store.make_blocks(yesterday).await.unwrap();
        let midnight = gemba_cloud::history::midnight;
        self.store.pack_some(key, midnight(yesterday), midnight(day(now))).await.unwrap();
        let alarm = self.alarm(gateway, machine, "unacknowledged", "high", now).await;
        self.sql(&format!("UPDATE alarms SET site_id = '{site}' WHERE id = '{alarm}'")).await;
        let client = self.store.client().await.unwrap();
        let row = client.query_one("SELECT anomaly_id FROM alarms WHERE id = $1", &[&alarm]).await.unwrap();
        let [hold, rule, incident, ticket, plan] = [(); 5].map(|()| Uuid::now_v7());
        let (anomaly, area, delivery) = (row.get(0), Uuid::now_v7(), self.delivery(site).await);
        let (tariff, carbon_factor, baseline) = (Uuid::now_v7(), Uuid::now_v7(), Uuid::now_v7());
        let plant = Plant {
            site,
            gateway,
            machine,
            alarm,
            anomaly,
            area,
            hold,
            rule,
            incident,
            delivery,
            ticket,
            plan,
            tariff,
            carbon_factor,
            baseline,
        };
        self.sql(&format!(
            "INSERT INTO users (id, organisation_id, name, password_hash, must_change_password)
                 SELECT gen_random_uuid(), organisation_id, 'keeper-' || id, 'x', false FROM sites WHERE id = '{site}';
             INSERT INTO alarm_holds (id, organisation_id, site_id, subject_id, condition, kind, reason, created_at, created_by,
                                      since, until, begun)
                 SELECT '{hold}', s.organisation_id, s.id, '{gateway}', 'x', 'shelved', 'x', now(), u.id, now(),
                        now() + interval '1 hour', true
                 FROM sites s JOIN users u ON u.name = 'keeper-' || s.id WHERE s.id = '{site}';
             INSERT INTO incidents (id, organisation_id, site_id, gateway_id, machine_id, severity, opened_at, last_alarm_at)
                 SELECT '{incident}', organisation_id, id, '{gateway}', '{machine}', 'high', now(), now()
                 FROM sites WHERE id = '{site}';
             UPDATE alarms SET incident_id = '{incident}' WHERE id = '{alarm}';"
        ))
        .await;
        self.sql(&plant.again()).await;
        self.add_area(&plant).await;
        plant
    }

    /// A delivery that was given up, to a user who was disabled.
    async fn delivery(&self, site: Uuid) -> Uuid {
        let (id, user) = (Uuid::now_v7(), Uuid::now_v7());
        self.sql(&format!(
            "INSERT INTO users (id, organisation_id, name, must_change_password, disabled_at)
                 SELECT '{user}', organisation_id, 'left-{}', false, now() FROM sites WHERE id = '{site}';
             INSERT INTO deliveries (id, organisation_id, site_id, kind, channel, user_id, recipient, state, content, not_before,
                                     created_at)
                 SELECT '{id}', organisation_id, id, 'notice', 'email', '{user}', 'left@example.com', 'dead',
                        '{{\"test\": {{\"webhook\": \"x\"}}}}', now(), now()
                 FROM sites WHERE id = '{site}'",
            user.simple()
        ))
        .await;
        id
    }

    async fn add_area(&self, plant: &Plant) {
        self.sql(&format!(
            "INSERT INTO areas (id, organisation_id, site_id, kind, name)
             SELECT '{}', organisation_id, id, 'area', 'hall' FROM sites WHERE id = '{}' ON CONFLICT DO NOTHING",
            plant.area, plant.site
        ))
        .await;
    }

    pub(crate) async fn sql(&self, sql: &str) {
        self.store.client().await.unwrap().batch_execute(sql).await.unwrap_or_else(|error| panic!("{error:?}: {sql}"));
    }

    pub(crate) fn tell(&self, change: Change) {
        self.changes.send(change).expect("the hub listens");
    }

    /// An enrolled gateway that was heard just now.
    pub(crate) async fn gateway(&self, name: &str) -> Uuid {
        let id = Uuid::now_v7();
        self.sql(&format!(
            "INSERT INTO gateways (id, site_id, name, state, last_seen_at)
             VALUES ('{id}', '00000000-0000-7000-8000-000000000002', '{name}', 'enrolled', now())"
        ))
        .await;
        id
    }

    /// A machine with these sensors, heard just now, and its key.
    pub(crate) async fn machine(&self, gateway: Uuid, name: &str, sensors: &[&str]) -> (Uuid, i32) {
        let id = Uuid::now_v7();
        let values: Vec<String> = (0..sensors.len()).map(|position| format!("{position}.5")).collect();
        self.sql(&format!(
            "INSERT INTO machines (id, gateway_id, name, last_reading_at, detector, mode, last_values)
             VALUES ('{id}', '{gateway}', '{name}', now(), 'watching', 'running', '{{{}}}')",
            values.join(",")
        ))
        .await;
        for (position, sensor) in sensors.iter().enumerate() {
            self.sql(&format!(
                "INSERT INTO sensors (machine_id, position, name, unit) VALUES ('{id}', {position}, '{sensor}', 'bar')"
            ))
            .await;
        }
        let client = self.store.client().await.unwrap();
        let key = client.query_one("SELECT key FROM machines WHERE id = $1", &[&id]).await.unwrap().get(0);
        (id, key)
    }

    /// An alarm of a machine, with an anomaly behind it.
    pub(crate) async fn alarm(
        &self,
        gateway: Uuid,
        machine: Uuid,
        state: &str,
        severity: &str,
        raised_at: Timestamp,
    ) -> Uuid {
        let (alarm, anomaly) = (Uuid::now_v7(), Uuid::now_v7());
        self.sql(&format!(
            "INSERT INTO anomalies (id, machine_id, opened_at, updated_at, score, score_max, threshold, shares, model,
                                    raw_window)
             VALUES ('{anomaly}', '{machine}', '{raised_at}', '{raised_at}', 1.5, 2.5, 3.0, '{{0.25,0.75}}', 'baseline 1',
                     '{{\"step_ms\": 1000, \"first\": \"{raised_at}\", \"sensors\": [1, 0], \"values\": [[1.0, null]]}}');
             INSERT INTO alarms (id, site_id, gateway_id, machine_id, condition, state, severity, message, anomaly_id,
                                 raised_at, arrived_at, late)
             VALUES ('{alarm}', '00000000-0000-7000-8000-000000000002', '{gateway}', '{machine}', 'anomaly-{alarm}',
                     '{state}', '{severity}', 'It is loud', '{anomaly}', '{raised_at}', '{raised_at}', false)"
        ))
        .await;
        alarm
    }
}

pub(crate) fn ids(list: &Value) -> Vec<&str> {
    list["items"].as_array().unwrap().iter().map(|item| item["id"].as_str().unwrap()).collect()
}
