//! Organisations and sites are kept apart: by the routes, and by the database where a route forgets to.

use std::{collections::BTreeSet, time::Duration};

use axum::http::Method;
use gemba_cloud::{
    api::access::{Access, ROUTES},
    live::Change,
    store::{objects::Object, scoped, users::DEFAULT_ORGANISATION},
    users::{
        Role,
        scope::{Grant, Scope},
    },
};
use serde_json::{Value, json};
use tokio_postgres::error::SqlState;
use uuid::Uuid;

use super::{Plant, Server, ids};

/// Of these an operator may take away their own only.
const OF_OTHERS: [&str; 2] = ["/api/v1/tickets/{id}/costs/{cost}", "/api/v1/tickets/{id}/attachments/{attachment}"];
const FIRST_SITE: Uuid = Uuid::from_u128(0x0000_0000_0000_7000_8000_0000_0000_0002);

/// Two organisations, the first with two sites, each with a plant.
struct World {
    server: Server,
    foreign: Uuid,
    /// The first organisation's two, and the other organisation's.
    plants: [Plant; 3],
}

impl World {
    async fn new() -> Self {
        let server = Server::start().await;
        let foreign = server.organisation("other").await;
        let second = server.site(DEFAULT_ORGANISATION, "second").await;
        let theirs = server.site(foreign, "theirs").await;
        let plants = [server.plant_at(FIRST_SITE).await, server.plant_at(second).await, server.plant_at(theirs).await];
        Self { server, foreign, plants }
    }

    /// Of somebody with this role at this plant's site only.
    fn scope(&self, plant: usize) -> Scope {
        let organisation = if plant == 2 { self.foreign } else { DEFAULT_ORGANISATION };
        let site = self.plants[plant].site;
        Scope::new(organisation, &[site], &[Grant { site: Some(site), role: Role::Admin }])
    }
}

/// How many rows a table shows to each scope, with no WHERE at all.
#[tokio::test(flavor = "multi_thread")]
#[allow(clippy::too_many_lines, reason = "a row for each table")]
async fn no_table_shows_what_is_not_in_scope() {
    let world = World::new().await;
    let server = &world.server;
    for plant in world.plants {
        server
            .sql(&format!(
                "INSERT INTO users (id, organisation_id, name, password_hash, must_change_password)
                     SELECT gen_random_uuid(), organisation_id, 'user-' || id, 'x', false FROM sites WHERE id = '{0}';
                 INSERT INTO grants (user_id, organisation_id, site_id, role)
                     SELECT u.id, u.organisation_id, '{0}', 'viewer' FROM users u WHERE u.name = 'user-{0}';
                 INSERT INTO sessions (id, user_id, organisation_id, created_at, used_at, expires_at)
                     SELECT id, id, organisation_id, now(), now(), now() FROM users WHERE name = 'user-{0}';
                 INSERT INTO api_keys (id, organisation_id, user_id, name, hash, begins, role, created_at, expires_at)
                     SELECT id, organisation_id, id, 'key', sha256(id::text::bytea), 'x', 'viewer', now(), now()
                     FROM users WHERE name = 'user-{0}';
                 INSERT INTO password_links (hash, user_id, organisation_id, created_at, expires_at)
                     SELECT sha256(id::text::bytea), id, organisation_id, now(), now() FROM users WHERE name = 'user-{0}';
                 INSERT INTO commands (gateway_id, number, kind, created_at, created_by, expires_at, state)
                     SELECT '{1}', 1, '{{}}', now(), id, now(), 'done' FROM users WHERE name = 'user-{0}';
                 INSERT INTO audit (id, organisation_id, at, actor, action, object, object_id)
                     SELECT gen_random_uuid(), organisation_id, now(), 'a', 'b', 'c', 'd' FROM sites WHERE id = '{0}';
                 INSERT INTO incident_comments (id, incident_id, organisation_id, site_id, author_id, written_at, text)
                     SELECT gen_random_uuid(), i.id, i.organisation_id, i.site_id, u.id, now(), 'x'
                     FROM incidents i, users u WHERE i.site_id = '{0}' AND u.name = 'user-{0}';
                 INSERT INTO notices (id, incident_id, organisation_id, site_id, reason, severity, role, created_at)
                     SELECT gen_random_uuid(), id, organisation_id, site_id, 'opened', severity, 'operator', now()
                     FROM incidents WHERE site_id = '{0}';
                 INSERT INTO escalation_steps
                     SELECT organisation_id, 1, 60, 'admin', 'low' FROM sites WHERE id = '{0}' ON CONFLICT DO NOTHING;
                 INSERT INTO webhooks (id, organisation_id, name, url, severity_min, enabled, created_at, updated_at)
                     SELECT gen_random_uuid(), organisation_id, id, 'https://example.com', 'low', true, now(), now()
                     FROM sites WHERE id = '{0}';
                 INSERT INTO notification_choices (user_id, organisation_id, email, severity_min, critical_passes, updated_at)
                     SELECT id, organisation_id, true, 'low', true, now() FROM users WHERE name = 'user-{0}'",
                plant.site, plant.gateway
            ))
            .await;
    }
    let mut client = server.store.client().await.unwrap();
    let tables: Vec<(String, bool, bool)> = client
        .query(
            "SELECT c.relname::text, c.relrowsecurity, has_any_column_privilege('gemba_app', c.oid, 'SELECT, INSERT, UPDATE, REFERENCES')
                    OR has_table_privilege('gemba_app', c.oid, 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER')
             FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') ORDER BY 1",
            &[],
        )
        .await
        .unwrap()
        .iter()
        .map(|row| (row.get(0), row.get(1), row.get(2)))
        .collect();
    // What belongs to an organisation as a whole, and what to a site: rows seen from the first site, the second, the other's.
    let organisations = BTreeSet::from([
        "organisations",
        "users",
        "grants",
        "audit",
        "sessions",
        "api_keys",
        "password_links",
        "escalation_steps",
        "webhooks",
        "notification_choices",
        "ticket_numbers",
    ]);
    let mut seen = BTreeSet::new();
    for (table, secured, granted) in &tables {
        if !granted {
            continue;
        }
        assert!(secured, "{table}: anybody may read all of it");
        for plant in 0..3 {
            let scope = world.scope(plant);
            let transaction = scoped(&mut client, &scope).await.unwrap();
            let shown: i64 = transaction.query_one(&format!("SELECT count(*) FROM {table}"), &[]).await.unwrap().get(0);
            drop(transaction);
            let all: i64 = client.query_one(&format!("SELECT count(*) FROM {table}"), &[]).await.unwrap().get(0);
            assert!(shown > 0, "{table}: the test has no row for plant {plant}");
            assert!(shown < all, "{table}: {shown} of {all} rows for plant {plant}");
            if !organisations.contains(table.as_str()) {
                assert_eq!(shown * 3, all, "{table}: plant {plant} sees another site's");
            }
        }
        seen.insert(table.as_str());
    }
    assert!(seen.is_superset(&organisations) && seen.len() >= 31, "{seen:?}");
    // Without a scope nothing is visible, and nothing of the daemon's own can be touched.
    let transaction = client.transaction().await.unwrap();
    transaction.batch_execute("SET LOCAL ROLE gemba_app").await.unwrap();
    for table in &seen {
        let shown: i64 = transaction.query_one(&format!("SELECT count(*) FROM {table}"), &[]).await.unwrap().get(0);
        assert_eq!(shown, 0, "{table}");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[allow(clippy::too_many_lines, reason = "a row for each statement")]
async fn no_statement_without_where_changes_another_sites_rows() {
    let world = World::new().await;
    let mut client = world.server.store.client().await.unwrap();
    for (sql, expected) in [
        ("UPDATE machines SET display_name = 'x'", 1),
        ("UPDATE sensors SET ignored = true", 2),
        ("UPDATE gateways SET name = name || 'x'", 1),
        ("UPDATE alarms SET comment = 'x'", 1),
        ("UPDATE alarm_holds SET begun = true", 1),
        ("UPDATE alarm_rules SET enabled = false", 1),
        ("UPDATE alarm_rule_states SET told = false", 1),
        ("UPDATE incidents SET closed_at = now()", 1),
        ("DELETE FROM alarm_rules", 1),
        ("UPDATE tariffs SET price_micro = 0", 1),
        ("DELETE FROM tariffs", 1),
        ("UPDATE carbon_factors SET g_per_kwh = 0", 1),
        ("DELETE FROM carbon_factors", 1),
        ("UPDATE machine_production SET kind = 'rate'", 1),
        ("DELETE FROM machine_production", 1),
        ("UPDATE baselines SET name = 'x'", 1),
        ("DELETE FROM baselines", 1),
        ("UPDATE deliveries SET state = 'waiting'", 1),
        ("UPDATE tickets SET title = 'x'", 1),
        ("UPDATE ticket_items SET done_at = NULL", 1),
        ("UPDATE anomalies SET labelled_real = true", 1),
        ("DELETE FROM ticket_items", 1),
        ("DELETE FROM ticket_costs", 1),
        ("DELETE FROM ticket_attachments", 1),
        ("UPDATE plans SET enabled = false", 1),
        ("DELETE FROM plans", 1),
    ] {
        let scope = world.scope(1);
        let transaction = scoped(&mut client, &scope).await.unwrap();
        assert_eq!(transaction.execute(sql, &[]).await.unwrap(), expected, "{sql}");
    }
    let theirs = world.plants[2];
    for sql in [
        format!(
            "INSERT INTO commands (gateway_id, number, kind, created_at, created_by, expires_at, state)
                 SELECT '{}', 9, '{{}}', now(), id, now(), 'waiting' FROM users",
            theirs.gateway
        ),
        format!(
            "INSERT INTO audit (id, organisation_id, at, actor, action, object, object_id)
                 VALUES (gen_random_uuid(), '{}', now(), 'a', 'b', 'c', 'd')",
            world.foreign
        ),
        format!(
            "INSERT INTO notices (id, incident_id, organisation_id, site_id, reason, severity, role, created_at)
                 VALUES (gen_random_uuid(), '{}', '{}', '{}', 'opened', 'low', 'operator', now())",
            theirs.incident, world.foreign, theirs.site
        ),
        format!("INSERT INTO escalation_steps VALUES ('{}', 1, 60, 'admin', 'low')", world.foreign),
        "UPDATE alarm_rules SET machine_id = machine_id".to_owned(),
        format!(
            "INSERT INTO tariffs (id, organisation_id, site_id, name, currency, valid_from, price_micro, bands, created_at)
                 VALUES (gen_random_uuid(), '{}', '{}', 'mine', 'EUR', '2020-01-01', 0, '[]', now())",
            world.foreign, theirs.site
        ),
        format!(
            "INSERT INTO carbon_factors (id, organisation_id, site_id, valid_from, g_per_kwh, source, created_at)
                 VALUES (gen_random_uuid(), '{}', '{}', '2020-01-01T00:00:00Z', 0, '', now())",
            world.foreign, theirs.site
        ),
        "UPDATE baselines SET slope_kwh = 0".to_owned(),
        "UPDATE energy_days SET wh = '{}'".to_owned(),
        "DELETE FROM incidents".to_owned(),
        format!(
            "INSERT INTO tickets (id, organisation_id, site_id, number, kind, priority, title, state, state_since, created_at,
                                  updated_at, currency)
                 VALUES (gen_random_uuid(), '{}', '{}', 9, 'corrective', 'low', 't', 'open', now(), now(), now(), 'EUR')",
            world.foreign, theirs.site
        ),
        format!("INSERT INTO ticket_items (id, ticket_id, text) VALUES (gen_random_uuid(), '{}', 'x')", theirs.ticket),
        format!("INSERT INTO ticket_attachment_parts VALUES ('{}', 1, 'x')", theirs.ticket),
        format!(
            "INSERT INTO plans (id, organisation_id, site_id, machine_id, title, description, priority, checklist, every_h, counted_from,
                                lead_h, enabled, created_at, created_by, updated_at)
                 SELECT gen_random_uuid(), '{}', '{}', '{}', 'p', '', 'low', '{{}}', 5, now(), 0, true, now(), id, now() FROM users",
            world.foreign, theirs.site, theirs.machine
        ),
        "UPDATE plans SET last_ticket_id = NULL".to_owned(),
        "UPDATE tickets SET plan_id = NULL".to_owned(),
        "DELETE FROM tickets".to_owned(),
        "UPDATE tickets SET site_id = site_id".to_owned(),
        "UPDATE ticket_steps SET reason = 'x'".to_owned(),
        "DELETE FROM ticket_steps".to_owned(),
        "UPDATE ticket_costs SET amount_minor = 0".to_owned(),
        "UPDATE ticket_attachment_parts SET bytes = 'x'".to_owned(),
        "UPDATE notices SET role = 'viewer'".to_owned(),
        "SELECT password_hash FROM users".to_owned(),
        "SELECT mqtt_password_hash FROM gateways".to_owned(),
        "SELECT * FROM enrolment_tokens".to_owned(),
        "SELECT * FROM refresh_tokens".to_owned(),
        "SELECT * FROM token_keys".to_owned(),
        "SELECT hash FROM api_keys".to_owned(),
        "SELECT hash FROM password_links".to_owned(),
        "SELECT * FROM notices_planned".to_owned(),
        "UPDATE deliveries SET recipient = 'me'".to_owned(),
        "DELETE FROM deliveries".to_owned(),
        format!(
            "INSERT INTO webhooks (id, organisation_id, name, url, severity_min, enabled, created_at, updated_at)
                 VALUES (gen_random_uuid(), '{}', 'mine', 'https://example.com', 'low', true, now(), now())",
            world.foreign
        ),
        "DELETE FROM machines".to_owned(),
        "UPDATE machines SET site_id = site_id".to_owned(),
        "TRUNCATE audit".to_owned(),
        "UPDATE audit SET actor = 'me'".to_owned(),
        "ALTER TABLE machines DISABLE ROW LEVEL SECURITY".to_owned(),
        "CREATE TABLE mine (x int)".to_owned(),
        "SELECT count(*) FROM summaries_".to_owned() + &day(&world).await,
    ] {
        let scope = world.scope(1);
        // Somebody to give a command in the name of.
        world.server.user_at(DEFAULT_ORGANISATION, &[]).await;
        let transaction = scoped(&mut client, &scope).await.unwrap();
        let error = transaction.execute(&sql, &[]).await.expect_err(&sql);
        assert_eq!(error.code(), Some(&SqlState::INSUFFICIENT_PRIVILEGE), "{sql}: {error:?}");
    }
    // The owner cannot mend the audit either.
    world
        .server
        .sql(&format!(
            "INSERT INTO audit (id, organisation_id, at, actor, action, object, object_id)
         VALUES (gen_random_uuid(), '{}', now(), 'a', 'b', 'c', 'd')",
            world.foreign
        ))
        .await;
    for sql in ["UPDATE audit SET actor = 'me'", "DELETE FROM audit", "TRUNCATE audit"] {
        assert!(client.batch_execute(sql).await.is_err(), "{sql}");
    }
}

async fn day(world: &World) -> String {
    let client = world.server.store.client().await.unwrap();
    client.query_one("SELECT to_char(now(), 'YYYYMMDD')", &[]).await.unwrap().get(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_application_role_is_nothing_by_itself() {
    let world = World::new().await;
    let client = world.server.store.client().await.unwrap();
    let row = client
        .query_one(
            "SELECT rolsuper OR rolcreaterole OR rolcreatedb OR rolcanlogin OR rolreplication OR rolbypassrls,
                    (SELECT count(*) FROM pg_shdepend WHERE refobjid = r.oid AND deptype = 'o'),
                    (SELECT count(*) FROM pg_class WHERE relkind = 'v' AND relnamespace = 'public'::regnamespace
                        AND NOT coalesce('security_invoker=true' = ANY(reloptions), false))
             FROM pg_roles r WHERE rolname = 'gemba_app'",
            &[],
        )
        .await
        .unwrap();
    assert!(!row.get::<_, bool>(0), "it may more than it should");
    assert_eq!(row.get::<_, i64>(1), 0, "it owns something");
    assert_eq!(row.get::<_, i64>(2), 0, "a view shows what its owner sees: WITH (security_invoker = true)");
}

/// Every route × every role × own and other site and organisation, at an object of each.
#[tokio::test(flavor = "multi_thread")]
async fn an_object_out_of_reach_is_404_and_one_out_of_power_403() {
    let world = World::new().await;
    let server = &world.server;
    let [here, there, theirs] = world.plants;
    for role in Role::ALL {
        // At the first site this role, at the second a viewer; the third is another organisation's.
        let token =
            server.user_at(DEFAULT_ORGANISATION, &[(Some(here.site), role), (Some(there.site), Role::Viewer)]).await;
        // As much power as can be, elsewhere.
        let stranger = server.user_at(world.foreign, &[(None, Role::Admin)]).await;
        let neighbour = server.user_at(DEFAULT_ORGANISATION, &[(Some(there.site), Role::Admin)]).await;
        for (method, path, access) in ROUTES {
            let Access::At(least, object) = access else { continue };
            let ask = |token: &str, plant: &Plant| {
                let path = concrete(path, *object, plant);
                let (token, method) = (token.to_owned(), method.clone());
                let again = plant.again();
                async move {
                    // One that was allowed to take it away did.
                    server.sql(&again).await;
                    // A body that no route takes: nothing is changed, what matters is who gets that far.
                    let body = (method != Method::GET).then(|| json!({"not": "a field"}));
                    server.call(method.as_str(), &path, Some(&token), body).await.status
                }
            };
            let what = format!("{method} {path} as {role}");
            let enough = role >= *least;
            // What others added; the route looks.
            let others = role == Role::Operator && method == Method::DELETE && OF_OTHERS.contains(path);
            let reached = |status: u16| !matches!(status, 401 | 403 | 404 | 405) && status < 500;
            let at_here = ask(&token, &here).await;
            if *method == Method::DELETE && at_here == 204 {
                // It is gone, as it should be; put it back for the next one.
                server.add_area(&here).await;
            }
            assert!(
                if enough && !others { reached(at_here) } else { at_here == 403 },
                "{what}: {at_here} at the own site"
            );
            let at_there = ask(&token, &there).await;
            let viewer = *least == Role::Viewer;
            assert!(if viewer { reached(at_there) } else { at_there == 403 }, "{what}: {at_there} where a viewer");
            let at_theirs = ask(&token, &theirs).await;
            assert_eq!(at_theirs, if enough { 404 } else { 403 }, "{what}: at another organisation's");
            assert_eq!(ask(&stranger, &here).await, 404, "{what}: a stranger");
            assert_eq!(ask(&neighbour, &here).await, 404, "{what}: somebody of another site");
        }
    }
}

pub(super) fn concrete(path: &str, object: Object, plant: &Plant) -> String {
    let id = match object {
        Object::Site => plant.site,
        Object::Gateway => plant.gateway,
        Object::Machine => plant.machine,
        Object::Anomaly => plant.anomaly,
        Object::Alarm => plant.alarm,
        Object::Area => plant.area,
        Object::AlarmHold => plant.hold,
        Object::AlarmRule => plant.rule,
        Object::Incident => plant.incident,
        Object::Delivery => plant.delivery,
        Object::Ticket => plant.ticket,
        Object::Plan => plant.plan,
        Object::Tariff => plant.tariff,
        Object::CarbonFactor => plant.carbon_factor,
        Object::Baseline => plant.baseline,
    };
    // What a ticket has bears its id here.
    let parts = ["{id}", "{item}", "{cost}", "{attachment}"];
    parts.iter().fold(path.replace("{name}", "flow"), |path, part| path.replace(part, &id.to_string()))
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_show_what_the_scope_shows() {
    let world = World::new().await;
    let server = &world.server;
    let [here, there, theirs] = world.plants;
    for (organisation, grants, plants) in [
        (DEFAULT_ORGANISATION, &[(None, Role::Viewer)][..], &[here, there][..]),
        (DEFAULT_ORGANISATION, &[(Some(there.site), Role::Viewer)], &[there]),
        (world.foreign, &[(None, Role::Admin)], &[theirs]),
    ] {
        let token = server.user_at(organisation, grants).await;
        for (path, of) in [
            ("/api/v1/machines", (|plant: &Plant| plant.machine) as fn(&Plant) -> Uuid),
            ("/api/v1/gateways", |plant| plant.gateway),
            ("/api/v1/alarms", |plant| plant.alarm),
            ("/api/v1/anomalies", |plant| plant.anomaly),
            ("/api/v1/alarm-holds", |plant| plant.hold),
            ("/api/v1/alarm-rules", |plant| plant.rule),
            ("/api/v1/incidents", |plant| plant.incident),
            ("/api/v1/plans", |plant| plant.plan),
            ("/api/v1/tariffs", |plant| plant.tariff),
            ("/api/v1/carbon-factors", |plant| plant.carbon_factor),
            ("/api/v1/energy/baselines", |plant| plant.baseline),
        ] {
            let list = server.get(path, &token).await;
            let shown: BTreeSet<String> = ids(&list).into_iter().map(ToOwned::to_owned).collect();
            let expected: BTreeSet<String> = plants.iter().map(|plant| of(plant).to_string()).collect();
            assert_eq!(shown, expected, "{path}");
        }
    }
    let nothing = server.user_at(DEFAULT_ORGANISATION, &[]).await;
    assert_eq!(server.call("GET", "/api/v1/machines", Some(&nothing), None).await.status, 403);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_reaches_no_farther_than_a_path() {
    let world = World::new().await;
    let server = &world.server;
    let [here, there, theirs] = world.plants;
    let token = server
        .user_at(DEFAULT_ORGANISATION, &[(Some(here.site), Role::Supervisor), (Some(there.site), Role::Viewer)])
        .await;
    for plant in [there, theirs] {
        let path = format!("/api/v1/machines/{}/merge", here.machine);
        let (status, body) = server.post(&path, &token, json!({"into": plant.machine})).await;
        assert_eq!((status, &body["errors"][0]["field"]), (422, &json!("into")), "{body}");
        let rule = json!({"machine": plant.machine, "name": "r", "sensor": "flow", "kind": "high", "threshold": 1.0,
                          "severity": "low"});
        let (status, body) = server.post("/api/v1/alarm-rules", &token, rule).await;
        assert_eq!((status, &body["errors"][0]["field"]), (422, &json!("machine")), "{body}");
        for (path, body, field) in [
            (
                "tariffs",
                json!({"site": plant.site, "name": "t", "currency": "EUR", "valid_from": "2026-01-01", "price_micro": 1}),
                "site",
            ),
            (
                "carbon-factors",
                json!({"site": plant.site, "valid_from": "2026-01-01T00:00:00Z", "g_per_kwh": 1.0}),
                "site",
            ),
            (
                "energy/baselines",
                json!({"site": plant.site, "name": "b", "from": "2026-01-01", "to": "2026-02-01"}),
                "site",
            ),
            (
                "energy/baselines",
                json!({"machine": plant.machine, "name": "b", "from": "2026-01-01", "to": "2026-02-01"}),
                "machine",
            ),
        ] {
            let (status, body) = server.post(&format!("/api/v1/{path}"), &token, body).await;
            assert_eq!((status, &body["errors"][0]["field"]), (422, &json!(field)), "{path}: {body}");
        }
        let path = format!("/api/v1/gateways/{}/commands", here.gateway);
        let (status, body) = server.post(&path, &token, json!({"kind": "recalibrate", "machine": plant.machine})).await;
        assert_eq!((status, &body["errors"][0]["field"]), (422, &json!("machine")), "{body}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_live_stream_tells_only_what_may_be_seen() {
    let world = World::new().await;
    let server = &world.server;
    let [here, there, theirs] = world.plants;
    let mine = server.user_at(DEFAULT_ORGANISATION, &[(Some(there.site), Role::Viewer)]).await;
    let other = server.user_at(world.foreign, &[(None, Role::Viewer)]).await;
    let (mut mine, mut other) = (server.listen(&mine).await, server.listen(&other).await);
    for plant in [here, theirs, there] {
        server.tell(Change::Gateway(plant.gateway));
        server.tell(Change::Anomaly(plant.anomaly));
        server.tell(Change::Alarm(plant.alarm));
        server.tell(Change::Machine(plant.machine));
        server.tell(Change::Incident(plant.incident));
        server.tell(Change::Ticket(plant.ticket));
    }
    for (socket, plant) in [(&mut mine, there), (&mut other, theirs)] {
        let mut told = Vec::new();
        while let Ok(Ok(message)) = tokio::time::timeout(Duration::from_secs(2), super::stream::next(socket)).await {
            let kind = message["type"].as_str().unwrap().to_owned();
            told.push((kind.clone(), message[&kind]["id"].clone()));
        }
        let expected = [
            ("gateway", plant.gateway),
            ("anomaly", plant.anomaly),
            ("alarm", plant.alarm),
            ("machine", plant.machine),
            ("incident", plant.incident),
            ("ticket", plant.ticket),
        ];
        let mut expected: Vec<(String, Value)> = expected.map(|(kind, id)| (kind.to_owned(), json!(id))).to_vec();
        expected.sort_by(|a, b| a.0.cmp(&b.0));
        told.sort_by(|a, b| a.0.cmp(&b.0));
        assert_eq!(told, expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_are_written_down_and_exported() {
    let world = World::new().await;
    let server = &world.server;
    let [here, ..] = world.plants;
    let supervisor = server.user(Role::Supervisor).await;
    let admin = server.user(Role::Admin).await;
    let machine = format!("/api/v1/machines/{}", here.machine);
    let label = server.call("PATCH", &machine, Some(&supervisor), Some(json!({"display_name": "=Düse"}))).await;
    assert_eq!(label.status, 200);
    // Nothing new is no change.
    server.call("PATCH", &machine, Some(&supervisor), Some(json!({"display_name": "=Düse"}))).await;
    server.call("PATCH", &format!("{machine}/sensors/flow"), Some(&supervisor), Some(json!({"ignored": true}))).await;
    server.post(&format!("/api/v1/alarms/{}/acknowledge", here.alarm), &supervisor, json!({"comment": "seen"})).await;
    server.post(&format!("/api/v1/gateways/{}/commands", here.gateway), &supervisor, json!({"kind": "reload"})).await;

    let list = server.get("/api/v1/audit", &admin).await;
    let actions: Vec<&str> = list["items"].as_array().unwrap().iter().map(|i| i["action"].as_str().unwrap()).collect();
    assert_eq!(actions, ["gateway.command", "alarm.acknowledge", "sensor.label", "machine.label"]);
    let first = &list["items"][3];
    assert_eq!(first["before"], json!({"display_name": null, "ignored": false, "area": null}));
    assert_eq!(first["after"], json!({"display_name": "=Düse", "ignored": false, "area": null}));
    assert_eq!(first["request"], label.headers["x-request-id"].to_str().unwrap());
    assert_eq!((&first["address"], &first["site"]), (&json!("127.0.0.1"), &json!(here.site)));
    assert_eq!(first["object_id"], json!(here.machine));
    for (query, count) in [
        ("action=machine.label", 1),
        ("object=alarm", 1),
        ("limit=2", 2),
        ("to=2020-01-01T00:00:00Z", 0),
        (&format!("object_id={}", here.alarm), 1),
        (&format!("site={}", world.plants[1].site), 0),
    ] {
        assert_eq!(ids(&server.get(&format!("/api/v1/audit?{query}"), &admin).await).len(), count, "{query}");
    }
    let lines = server.call("GET", "/api/v1/audit/export", Some(&admin), None).await;
    assert_eq!(lines.headers["content-type"], "application/x-ndjson");
    let Value::String(lines) = lines.body else { panic!("several lines are no JSON") };
    assert_eq!(lines.lines().count(), 4);
    let newest: Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
    assert_eq!(newest, list["items"][0]);
    let csv = server.call("GET", "/api/v1/audit/export?format=csv&object=machine", Some(&admin), None).await;
    let Value::String(csv) = csv.body else { panic!("CSV is no JSON") };
    assert!(csv.starts_with("id,at,site,") && csv.lines().count() == 2, "{csv}");

    // Only admins of the whole organisation, and each only of their own.
    let one_site = server.user_at(DEFAULT_ORGANISATION, &[(Some(here.site), Role::Admin)]).await;
    for (token, status) in [(&supervisor, 403), (&one_site, 403)] {
        assert_eq!(server.call("GET", "/api/v1/audit", Some(token), None).await.status, status);
        assert_eq!(server.call("GET", "/api/v1/audit/export", Some(token), None).await.status, status);
    }
    let stranger = server.user_at(world.foreign, &[(None, Role::Admin)]).await;
    assert!(ids(&server.get("/api/v1/audit", &stranger).await).is_empty());
}
