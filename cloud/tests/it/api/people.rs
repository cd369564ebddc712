//! Organisations, sites, areas and users, as their admins manage them; and that no update is lost.

use gemba_cloud::{
    store::{
        sites::{self, Named},
        users::{self, DEFAULT_ORGANISATION},
    },
    users::{Role, scope::Grant},
};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Server, ids};

#[tokio::test(flavor = "multi_thread")]
async fn a_user_is_invited_chooses_a_password_and_is_disabled() {
    let server = Server::start().await;
    let admin = server.user(Role::Admin).await;
    let site = server.site(DEFAULT_ORGANISATION, "second").await;
    let new = json!({"name": "grace", "display_name": "Grace H.", "email": "grace@example.com",
                     "grants": [{"site": site, "role": "operator"}]});
    let (status, invited) = server.post("/api/v1/users", &admin, new.clone()).await;
    assert_eq!(status, 201, "{invited}");
    let link = invited["invitation"]["link"].as_str().unwrap();
    assert!(link.starts_with("http://gemba.test/#/password/gemba_link_"), "{link}");
    let secret = link.rsplit('/').next().unwrap().to_owned();
    assert_eq!(server.post("/api/v1/users", &admin, new).await.1["code"], "name_taken");
    let other = json!({"name": "other", "email": "GRACE@example.com", "grants": []});
    assert_eq!(server.post("/api/v1/users", &admin, other).await.1["code"], "email_taken");
    for (body, field) in [
        (json!({"name": " x", "grants": []}), "name"),
        (json!({"name": "x", "email": "nowhere", "grants": []}), "email"),
        (json!({"name": "x", "grants": [{"site": Uuid::now_v7(), "role": "viewer"}]}), "grants"),
        (json!({"name": "x", "grants": [{"site": null, "role": "viewer"}, {"site": null, "role": "admin"}]}), "grants"),
    ] {
        let (status, answer) = server.post("/api/v1/users", &admin, body).await;
        assert_eq!((status, &answer["errors"][0]["field"]), (422, &json!(field)), "{answer}");
    }
    let login = |password: &str| {
        let body = json!({"name": "grace", "password": password});
        let server = &server;
        async move { server.call("POST", "/api/v1/login", None, Some(body)).await }
    };
    assert_eq!(login("").await.status, 401, "nobody has no password");
    let follow = |token: &str, new: &str| {
        let body = json!({"token": token, "new": new});
        let server = &server;
        async move { server.call("POST", "/api/v1/password/link", None, Some(body)).await.status }
    };
    assert_eq!(follow(&secret, "short").await, 422);
    assert_eq!(follow("gemba_link_x", "a long password").await, 403);
    let twice = tokio::join!(follow(&secret, "a long password"), follow(&secret, "another password"));
    assert!(matches!(twice, (204, 403) | (403, 204)), "{twice:?}");
    let password = if twice.0 == 204 { "a long password" } else { "another password" };
    let grace = login(password).await.body;
    assert_eq!((&grace["must_change_password"], &grace["user"]["role"]), (&json!(false), &json!("operator")));
    assert_eq!(grace["user"]["sites"], json!([{"site": site, "role": "operator"}]));
    let token = grace["token"].as_str().unwrap();

    let path = format!("/api/v1/users/{}", invited["user"]["id"].as_str().unwrap());
    let (status, again) = server.post(&format!("{path}/password-link"), &admin, json!({})).await;
    assert_eq!(status, 201);
    server.sql("UPDATE password_links SET expires_at = now()").await;
    let secret = again["link"].as_str().unwrap().rsplit('/').next().unwrap().to_owned();
    assert_eq!(follow(&secret, "a third password").await, 403, "it is over");

    let disabled = server.call("PATCH", &path, Some(&admin), Some(json!({"disabled": true}))).await;
    assert_eq!((disabled.status, &disabled.body["disabled"]), (200, &json!(true)));
    assert_eq!(server.call("GET", "/api/v1/me", Some(token), None).await.status, 401);
    assert_eq!(login(password).await.status, 401);
    assert_eq!(server.post(&format!("{path}/password-link"), &admin, json!({})).await.1["code"], "disabled");
    let audit = server.get("/api/v1/audit?object=user", &admin).await;
    let actions: Vec<&str> = audit["items"].as_array().unwrap().iter().map(|i| i["action"].as_str().unwrap()).collect();
    assert_eq!(actions, ["user.change", "user.password_link", "user.password", "user.password_link", "user.create"]);
    assert!(!audit.to_string().contains("gemba_link_"), "no secret in the audit");
}

#[tokio::test(flavor = "multi_thread")]
async fn grants_hold_at_once_and_somebody_stays_admin() {
    let server = Server::start().await;
    let admin = server.user(Role::Admin).await;
    let operator = server.user(Role::Operator).await;
    let me = async |token: &str| server.get("/api/v1/me", token).await["id"].as_str().unwrap().to_owned();
    let (admin_id, operator_id) = (me(&admin).await, me(&operator).await);
    let grant = |id: String, grants: Value| {
        let (server, admin) = (&server, &admin);
        let path = format!("/api/v1/users/{id}/grants");
        async move { server.call("PUT", &path, Some(admin), Some(json!({"grants": grants}))).await }
    };
    assert_eq!(server.call("GET", "/api/v1/users", Some(&operator), None).await.status, 403);
    assert_eq!(grant(operator_id.clone(), json!([{"site": null, "role": "admin"}])).await.status, 200);
    assert_eq!(ids(&server.get("/api/v1/users", &operator).await).len(), 2);
    assert_eq!(grant(operator_id.clone(), json!([])).await.status, 200);
    assert_eq!(server.call("GET", "/api/v1/machines", Some(&operator), None).await.status, 403);
    assert_eq!(server.get("/api/v1/me", &operator).await["role"], Value::Null);
    let last = grant(admin_id.clone(), json!([])).await;
    assert_eq!((last.status, &last.body["code"]), (409, &json!("last_admin")));
    let path = format!("/api/v1/users/{admin_id}");
    let last = server.call("PATCH", &path, Some(&admin), Some(json!({"disabled": true}))).await;
    assert_eq!(last.body["code"], "last_admin");
    // Two admins who take each other's rights at the same moment: one stays.
    for _ in 0..5 {
        let pair = [server.user(Role::Admin).await, server.user(Role::Admin).await];
        server.sql("DELETE FROM grants WHERE user_id NOT IN (SELECT id FROM users ORDER BY id DESC LIMIT 2)").await;
        let (a, b) = (me(&pair[0]).await, me(&pair[1]).await);
        let take = |by: &str, from: String| {
            let (server, by) = (&server, by.to_owned());
            async move {
                let path = format!("/api/v1/users/{from}/grants");
                server.call("PUT", &path, Some(&by), Some(json!({"grants": []}))).await.status
            }
        };
        let taken = tokio::join!(take(&pair[0], b), take(&pair[1], a));
        assert!(taken.0 == 200 || taken.1 == 200, "{taken:?}");
        assert_eq!(crate::plant::count(&server.store, "SELECT count(*) FROM grants WHERE role = 'admin'").await, 1);
    }
    // Users of another organisation are not there.
    let foreign = server.organisation("other").await;
    let stranger = server.user_at(foreign, &[(None, Role::Admin)]).await;
    assert_eq!(server.call("GET", &path, Some(&stranger), None).await.status, 404);
    assert_eq!(server.call("PATCH", &path, Some(&stranger), Some(json!({"disabled": true}))).await.status, 404);
    assert_eq!(server.post(&format!("{path}/password-link"), &stranger, json!({})).await.0, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn sites_and_areas_form_a_tree_that_machines_stand_in() {
    let server = Server::start().await;
    let admin = server.user(Role::Admin).await;
    let (status, site) = server.post("/api/v1/sites", &admin, json!({"name": " Lyon "})).await;
    assert_eq!((status, &site["name"]), (201, &json!("Lyon")), "{site}");
    assert_eq!(server.post("/api/v1/sites", &admin, json!({"name": "Lyon"})).await.1["code"], "name_taken");
    let names: Vec<Value> = server.get("/api/v1/sites", &admin).await["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| s["name"].clone())
        .collect();
    assert_eq!(names, ["Lyon", "default"]);
    let lyon: Uuid = serde_json::from_value(site["id"].clone()).unwrap();
    let plant = server.plant_at(lyon).await;
    let add = |body: Value| {
        let (server, admin) = (&server, &admin);
        async move { server.post("/api/v1/areas", admin, body).await }
    };
    let (_, hall) = add(json!({"site": lyon, "kind": "area", "name": "Hall 2"})).await;
    let (status, line) =
        add(json!({"site": lyon, "parent": hall["id"], "kind": "production_line", "name": "Line 1"})).await;
    assert_eq!((status, &line["parent"]), (201, &hall["id"]), "{line}");
    assert_eq!(add(json!({"site": lyon, "kind": "area", "name": "Hall 2"})).await.1["code"], "name_taken");
    let first = Uuid::from_u128(0x7000_8000_0000_0000_0002);
    let (status, _) = add(json!({"site": first, "parent": hall["id"], "kind": "area", "name": "x"})).await;
    assert_eq!(status, 422, "a parent of another site");
    assert_eq!(add(json!({"site": Uuid::now_v7(), "kind": "area", "name": "x"})).await.0, 422);
    assert_eq!(add(json!({"site": lyon, "kind": "castle", "name": "x"})).await.0, 422);

    let path = |area: &Value| format!("/api/v1/areas/{}", area["id"].as_str().unwrap());
    let ring = server.call("PATCH", &path(&hall), Some(&admin), Some(json!({"parent": line["id"]}))).await;
    assert_eq!((ring.status, &ring.body["errors"][0]["field"]), (422, &json!("parent")));
    let machine = format!("/api/v1/machines/{}", plant.machine);
    let put = server.call("PATCH", &machine, Some(&admin), Some(json!({"area": line["id"]}))).await;
    assert_eq!(put.body["area_id"], line["id"]);
    let elsewhere = server.plant_at(first).await;
    let other = server.call("PATCH", &machine, Some(&admin), Some(json!({"area": elsewhere.area}))).await;
    assert_eq!((other.status, &other.body["errors"][0]["field"]), (422, &json!("area")));
    for (query, count) in [
        (format!("area={}", hall["id"].as_str().unwrap()), 1),
        (format!("area={}", plant.area), 0),
        (format!("site={lyon}"), 1),
        (format!("site={}", Uuid::now_v7()), 0),
    ] {
        assert_eq!(ids(&server.get(&format!("/api/v1/machines?{query}"), &admin).await).len(), count, "{query}");
    }
    for area in [&hall, &line] {
        let answer = server.call("DELETE", &path(area), Some(&admin), None).await;
        assert_eq!((answer.status, &answer.body["code"]), (409, &json!("in_use")));
    }
    server.call("PATCH", &machine, Some(&admin), Some(json!({"area": null}))).await;
    for area in [&line, &hall] {
        assert_eq!(server.call("DELETE", &path(area), Some(&admin), None).await.status, 204);
    }
    assert_eq!(ids(&server.get(&format!("/api/v1/areas?site={lyon}"), &admin).await).len(), 1);
    // An admin of one site adds no site, but areas there.
    let local = server.user_at(DEFAULT_ORGANISATION, &[(Some(lyon), Role::Admin)]).await;
    assert_eq!(server.post("/api/v1/sites", &local, json!({"name": "x"})).await.0, 403);
    assert_eq!(server.post("/api/v1/areas", &local, json!({"site": lyon, "kind": "area", "name": "y"})).await.0, 201);
    assert_eq!(server.post("/api/v1/areas", &local, json!({"site": first, "kind": "area", "name": "y"})).await.0, 422);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_of_something_that_changed_meanwhile_is_refused() {
    let server = Server::start().await;
    let admin = server.user(Role::Admin).await;
    let plant = server.plant_at(Uuid::from_u128(0x7000_8000_0000_0000_0002)).await;
    let me = server.get("/api/v1/me", &admin).await["id"].as_str().unwrap().to_owned();
    for (path, change, other) in [
        (format!("/api/v1/machines/{}", plant.machine), json!({"display_name": "a"}), json!({"display_name": "b"})),
        (format!("/api/v1/areas/{}", plant.area), json!({"name": "a"}), json!({"name": "b"})),
        (format!("/api/v1/sites/{}", plant.site), json!({"name": "a"}), json!({"name": "b"})),
        ("/api/v1/organisation".to_owned(), json!({"name": "a"}), json!({"name": "b"})),
        (format!("/api/v1/users/{me}"), json!({"display_name": "a"}), json!({"display_name": "b"})),
    ] {
        let read = server.call("GET", &path, Some(&admin), None).await;
        let tag = read.headers["etag"].to_str().unwrap().to_owned();
        let patch = |body: Value, tag: String| {
            let (server, admin, path) = (&server, &admin, path.clone());
            async move { server.call_with("PATCH", &path, Some(admin), Some(body), &[("if-match", &tag)]).await }
        };
        let answers = tokio::join!(patch(change.clone(), tag.clone()), patch(other.clone(), tag.clone()));
        let statuses = (answers.0.status, answers.1.status);
        assert!(matches!(statuses, (200, 412) | (412, 200)), "{path}: {statuses:?}");
        let winner = if statuses.0 == 200 { answers.0 } else { answers.1 };
        let next = winner.headers["etag"].to_str().unwrap().to_owned();
        assert_ne!(next, tag, "{path}");
        let read = server.call("GET", &path, Some(&admin), None).await;
        assert_eq!(read.headers["etag"].to_str().unwrap(), next, "{path}");
        assert_eq!(patch(change.clone(), next).await.status, 200, "{path}");
        assert_eq!(patch(other.clone(), "*".to_owned()).await.status, 200, "{path}");
        assert_eq!(server.call("PATCH", &path, Some(&admin), Some(change)).await.status, 200, "{path}: without");
    }
    // What a machine measures is no change of what people say of it.
    let path = format!("/api/v1/machines/{}", plant.machine);
    let tag = async || server.call("GET", &path, Some(&admin), None).await.headers["etag"].clone();
    let before = tag().await;
    server.sql("UPDATE machines SET last_values = '{7}', last_reading_at = now(), health_percent = 3").await;
    assert_eq!(tag().await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_organisation_begins_with_the_command_line() {
    let server = Server::start().await;
    let now = gemba_cloud::clock::now();
    let Named::Done(id) = sites::insert_organisation(&server.store, "Acme", now).await.unwrap() else {
        panic!("taken")
    };
    assert_eq!(sites::insert_organisation(&server.store, "Acme", now).await.unwrap(), Named::Taken);
    assert_eq!(sites::find_organisation(&server.store, "Acme").await.unwrap(), Some(id));
    let once = users::add_to(&server.store, id, "boss", Grant { site: None, role: Role::Admin }).await.unwrap();
    let login = server.call("POST", "/api/v1/login", None, Some(json!({"name": "boss", "password": once}))).await;
    assert_eq!(login.body["user"]["organisation"], json!(id));
}
