//! Who gets in, and how far.

use gemba_cloud::{
    api::access::{Access, ROUTES},
    store::users,
    users::Role,
};
use serde_json::{Value, json};
use uuid::Uuid;

use super::Server;

#[tokio::test(flavor = "multi_thread")]
async fn a_one_time_password_must_be_changed_first() {
    let server = Server::start().await;
    let once = users::add(&server.store, "ada", Role::Operator).await.unwrap();
    assert!(users::add(&server.store, "ada", Role::Admin).await.is_err(), "names are unique");
    assert!(users::add(&server.store, "a\nb", Role::Admin).await.is_err());

    let login =
        |password: &str| server.call("POST", "/api/v1/login", None, Some(json!({"name": "ada", "password": password})));
    let refused = login("wrong").await;
    assert_eq!((refused.status, &refused.body["code"]), (401, &json!("bad_credentials")));
    let answer = login(&once).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(answer.body["must_change_password"], true);
    assert_eq!((&answer.body["user"]["name"], &answer.body["user"]["role"]), (&json!("ada"), &json!("operator")));
    let token = answer.body["token"].as_str().unwrap().to_owned();

    let me = server.call("GET", "/api/v1/me", Some(&token), None).await;
    assert_eq!((me.status, &me.body["code"]), (403, &json!("password_change_required")));

    let change = |old: &str, new: &str| {
        let (body, token) = (json!({"old": old, "new": new}), token.clone());
        let server = &server;
        async move { server.post("/api/v1/password", &token, body).await }
    };
    for (old, new, code) in [
        ("wrong one-time", "a long password", "bad_credentials"),
        (once.as_str(), "too short", "invalid_fields"),
        (once.as_str(), once.as_str(), "invalid_fields"),
    ] {
        let (status, body) = change(old, new).await;
        assert_eq!((status, &body["code"]), (422, &json!(code)), "{new}");
    }
    assert_eq!(change(&once, "a long password").await.0, 204);
    assert_eq!(server.call("GET", "/api/v1/me", Some(&token), None).await.status, 401, "older sessions end");
    assert_eq!(login(&once).await.status, 401);
    let answer = login("a long password").await;
    assert_eq!(answer.body["must_change_password"], false);
    let token = answer.body["token"].as_str().unwrap();
    assert_eq!(server.get("/api/v1/me", token).await["name"], "ada");

    let refresh = json!({"refresh_token": answer.body["refresh_token"]});
    let renewed = server.call("POST", "/api/v1/refresh", None, Some(refresh)).await;
    assert_eq!((renewed.status, &renewed.body["user"]["name"]), (200, &json!("ada")));
    server.get("/api/v1/me", renewed.body["token"].as_str().unwrap()).await;

    server.sql("UPDATE users SET disabled_at = now()").await;
    assert_eq!(server.call("GET", "/api/v1/me", Some(token), None).await.status, 401);
    assert_eq!(login("a long password").await.status, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn guessing_is_slowed() {
    let server = Server::start().await;
    let guess = json!({"name": "nobody", "password": "x"});
    let mut statuses = Vec::new();
    for _ in 0..7 {
        let answer = server.call("POST", "/api/v1/login", None, Some(guess.clone())).await;
        if answer.status == 429 {
            assert_eq!(answer.body["code"], "too_many_attempts");
            assert!(answer.headers["retry-after"].to_str().unwrap().parse::<u64>().unwrap() >= 1);
        }
        statuses.push(answer.status);
    }
    assert_eq!(statuses[..5], [401; 5]);
    assert!(statuses.contains(&429), "{statuses:?}");
}

/// Every route against everyone: what is refused for who one is, and nothing else is.
#[tokio::test(flavor = "multi_thread")]
async fn routes_and_roles() {
    let server = Server::start().await;
    let mut callers: Vec<(Option<Role>, bool, String)> = Vec::new();
    for role in Role::ALL {
        callers.push((Some(role), false, server.user(role).await));
    }
    callers.push((Some(Role::Admin), true, {
        let token = server.user(Role::Admin).await;
        server
            .sql("UPDATE users SET must_change_password = true WHERE id = (SELECT max(id::text)::uuid FROM users)")
            .await;
        token
    }));
    for (method, path, access) in ROUTES {
        let mut concrete = path.replace("{name}", "flow");
        for part in ["{id}", "{item}", "{cost}", "{attachment}"] {
            concrete = concrete.replace(part, &Uuid::now_v7().to_string());
        }
        if *path == "/api/v1/enroll" {
            continue; // Another module's; not mounted here.
        }
        if matches!(*path, "/api/v1/logout" | "/api/v1/refresh") {
            continue; // It ends the session; `sessions` has it.
        }
        let body = (method.as_str() != "GET").then(|| json!({"not": "a field"}));
        let nobody = server.call(method.as_str(), &concrete, None, body.clone()).await;
        assert_eq!(nobody.status == 401, *access != Access::Open, "{method} {path} without a token: {}", nobody.body);
        for (role, must_change, token) in &callers {
            let answer = server.call(method.as_str(), &concrete, Some(token), body.clone()).await;
            let allowed = match access {
                Access::Open | Access::SignedIn => true,
                Access::User => !must_change,
                Access::Role(least) | Access::At(least, _) | Access::Organisation(least) => {
                    !must_change && *role >= Some(*least)
                }
            };
            assert_eq!(answer.status != 403, allowed, "{method} {path} as {role:?} ({must_change}): {}", answer.body);
            assert_ne!(answer.status, 401, "{method} {path} as {role:?}");
            assert!(answer.status < 500, "{method} {path} as {role:?}: {}", answer.body);
            if must_change == &true && !allowed {
                assert_eq!(answer.body["code"], "password_change_required");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_the_document_and_the_page_are_open() {
    let server = Server::start().await;
    for (path, kind) in [
        ("/healthz", "text/plain"),
        ("/readyz", "text/plain"),
        ("/metrics", "application/openmetrics-text"),
        ("/api/v1/openapi.json", "application/json"),
        ("/", "text/html"),
        ("/machines/1", "text/html"),
    ] {
        let answer = server.call("GET", path, None, None).await;
        assert_eq!(answer.status, 200, "{path}");
        assert!(answer.headers["content-type"].to_str().unwrap().starts_with(kind), "{path}");
        assert_eq!(answer.headers["x-content-type-options"], "nosniff", "{path}");
    }
    let page = server.call("GET", "/", None, None).await;
    let policy = page.headers["content-security-policy"].to_str().unwrap();
    assert!(policy.contains("default-src 'self'") && policy.contains("frame-ancestors 'none'"), "{policy}");
    let document = server.call("GET", "/api/v1/openapi.json", None, None).await.body;
    assert_eq!(document["openapi"], Value::from("3.1.0"));
}
