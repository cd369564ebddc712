//! No update is lost: whatever can be edited has a tag, and every route that edits it refuses an old one.

use axum::http::Method;
use gemba_cloud::{
    api::access::{Access, ROUTES},
    users::Role,
};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Plant, Server, isolation::concrete};

const FIRST_SITE: Uuid = Uuid::from_u128(0x0000_0000_0000_7000_8000_0000_0000_0002);

/// What is made and ended, and never edited in between.
const NOT_EDITED: &[&str] = &["/api/v1/sessions/{id}", "/api/v1/api-keys/{id}", "/api/v1/users/{id}/sessions"];

/// A plant, somebody who may do everything, a user and a webhook.
pub(super) struct World {
    pub(super) server: Server,
    pub(super) token: String,
    plant: Plant,
    member: Uuid,
    webhook: String,
}

impl World {
    pub(super) async fn new() -> Self {
        let server = Server::start().await;
        let token = server.user(Role::Admin).await;
        let plant = server.plant_at(FIRST_SITE).await;
        server.sql("UPDATE sensors SET unit = 'pcs'").await;
        let member = Uuid::now_v7();
        server
            .sql(&format!(
                "INSERT INTO users (id, organisation_id, name, password_hash, must_change_password)
                 SELECT '{member}', organisation_id, 'member', 'x', false FROM sites WHERE id = '{FIRST_SITE}'"
            ))
            .await;
        let mut world = Self { server, token, plant, member, webhook: String::new() };
        world.again(0).await;
        world
    }

    /// Puts back what was taken away.
    pub(super) async fn again(&mut self, n: usize) {
        self.server.sql(&self.plant.again()).await;
        let area = format!(
            "INSERT INTO areas (id, organisation_id, site_id, kind, name)
             SELECT '{}', organisation_id, id, 'area', 'hall' FROM sites WHERE id = '{FIRST_SITE}' ON CONFLICT DO NOTHING",
            self.plant.area
        );
        self.server.sql(&area).await;
        let known = format!("/api/v1/webhooks/{}", self.webhook);
        if !self.webhook.is_empty() && self.server.call("GET", &known, Some(&self.token), None).await.status == 200 {
            return;
        }
        let hook = json!({"name": format!("hook {n}"), "url": "http://127.0.0.1:9/"});
        let (status, made) = self.server.post("/api/v1/webhooks", &self.token, hook).await;
        assert_eq!(status, 201, "{made}");
        made["id"].as_str().unwrap().clone_into(&mut self.webhook);
    }

    pub(super) fn path(&self, method: &Method, path: &str) -> String {
        let (_, _, access) = ROUTES.iter().find(|(known, at, _)| known == method && *at == path).unwrap();
        match access {
            Access::At(_, object) => concrete(path, *object, &self.plant),
            _ if path.contains("/users/") => path.replace("{id}", &self.member.to_string()),
            _ => path.replace("{id}", &self.webhook),
        }
    }

    async fn tag(&self, path: &str) -> String {
        let path = self.path(&Method::GET, path);
        let answer = self.server.call("GET", &path, Some(&self.token), None).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
        answer.headers.get("etag").unwrap_or_else(|| panic!("{path} has no tag")).to_str().unwrap().to_owned()
    }

    async fn ask(&self, method: &Method, path: &str, n: usize, tag: Option<&str>) -> (u16, Value) {
        let tag: Vec<(&str, &str)> = tag.map(|tag| ("if-match", tag)).into_iter().collect();
        let body = (*method != Method::DELETE).then(|| self.body(path, n));
        let at = self.path(method, path);
        let answer = self.server.call_with(method.as_str(), &at, Some(&self.token), body, &tag).await;
        (answer.status, answer.body)
    }

    /// A body that changes something: another for the next `n`.
    fn body(&self, path: &str, n: usize) -> Value {
        let Plant { site, machine, .. } = self.plant;
        let (name, even) = (format!("name {n}"), n.is_multiple_of(2));
        match path {
            "/api/v1/organisation" | "/api/v1/sites/{id}" | "/api/v1/areas/{id}" | "/api/v1/energy/baselines/{id}" => {
                json!({"name": name})
            }
            "/api/v1/retention" => json!({"intervals_days": 30, "hours_days": 800 + n}),
            "/api/v1/organisation/costs" => json!({"currency": "EUR", "labour_rate_minor": n}),
            "/api/v1/users/{id}/grants" => {
                json!({"grants": [{"site": null, "role": if even { "viewer" } else { "operator" }}]})
            }
            "/api/v1/users/{id}" | "/api/v1/machines/{id}" | "/api/v1/machines/{id}/sensors/{name}" => {
                json!({"display_name": name})
            }
            "/api/v1/machines/{id}/production" => json!({"sensor": even.then_some("flow")}),
            "/api/v1/tariffs/{id}" => {
                json!({"site": site, "name": name, "currency": "EUR", "valid_from": "2026-01-01", "price_micro": 1})
            }
            "/api/v1/carbon-factors/{id}" => {
                json!({"site": site, "valid_from": "2026-01-01T00:00:00Z", "g_per_kwh": n})
            }
            "/api/v1/alarm-rules/{id}" => {
                json!({"machine": machine, "name": name, "sensor": "flow", "kind": "high", "threshold": 1.0, "severity": "low"})
            }
            "/api/v1/sites/{id}/time-zone" => json!({"time_zone": if even { "Europe/Berlin" } else { "Europe/Paris" }}),
            "/api/v1/tickets/{id}" => json!({"title": name}),
            "/api/v1/tickets/{id}/items/{item}" => json!({"done": even}),
            "/api/v1/plans/{id}" => json!({"machine": machine, "title": name, "running": {"every_h": 500}}),
            "/api/v1/escalation" => json!({"steps": [{"after_s": 60 + n, "role": "admin", "severity_min": "low"}]}),
            "/api/v1/me/notifications" => json!({"email": even, "severity_min": "low", "sites": null, "quiet": null,
                                                 "critical_passes": true}),
            "/api/v1/webhooks/{id}" => json!({"name": format!("changed {n}")}),
            other => panic!("{other} has no body here"),
        }
    }
}

/// Where the tag of what a route edits is read, and the route that edits it as a whole.
fn thing(path: &'static str) -> (&'static str, &'static Method) {
    let path = match path {
        "/api/v1/users/{id}/grants" => "/api/v1/users/{id}",
        "/api/v1/machines/{id}/sensors/{name}" => "/api/v1/machines/{id}",
        part if part.starts_with("/api/v1/tickets/{id}/") => "/api/v1/tickets/{id}",
        path => path,
    };
    let edits = |method: &Method| *method == Method::PUT || *method == Method::PATCH;
    let (edit, ..) = ROUTES.iter().find(|(method, at, _)| *at == path && edits(method)).expect("it can be edited");
    (path, edit)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_edit_refuses_what_was_changed_meanwhile() {
    let mut world = World::new().await;
    let document = world.server.get("/api/v1/openapi.json", &world.token).await;
    let mut edits = 0;
    for (n, (method, path, _)) in ROUTES.iter().enumerate() {
        if ![Method::PUT, Method::PATCH, Method::DELETE].contains(method) || NOT_EDITED.contains(path) {
            continue;
        }
        let (what, n) = (format!("{method} {path}"), 2 * n + 1);
        edits += 1;
        let operation = &document["paths"][path][method.as_str().to_lowercase()];
        let parameters = operation["parameters"].as_array().unwrap();
        assert!(
            parameters.iter().any(|one| one["name"] == "If-Match"),
            "{what}: the document says nothing of If-Match"
        );
        assert!(operation["responses"]["412"].is_object(), "{what}: the document says nothing of 412");

        world.again(n).await;
        let (thing, edit) = thing(path);
        // Somebody reads it, somebody else changes it.
        let old = world.tag(thing).await;
        let (status, answer) = world.ask(edit, thing, n, None).await;
        assert_eq!(status, 200, "{edit} {thing}: {answer}");
        let new = world.tag(thing).await;
        assert_ne!(old, new, "{edit} {thing} changed nothing");
        let (status, answer) = world.ask(method, path, n + 1, Some(&old)).await;
        assert_eq!((status, &answer["code"]), (412, &json!("changed_meanwhile")), "{what}: {answer}");
        assert_eq!(world.tag(thing).await, new, "{what} was refused and done");
        let (status, answer) = world.ask(method, path, n + 1, Some(&new)).await;
        assert!(matches!(status, 200 | 204), "{what}: {status} {answer}");
    }
    assert!(edits >= 30, "{edits}");
}
