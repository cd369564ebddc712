//! Logins that go on, and end: access and refresh tokens, their keys, and API keys.

use std::time::Duration;

use gemba_cloud::{
    clock,
    store::{token_keys, users, users::DEFAULT_ORGANISATION},
    users::Role,
};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Answer, Server, ids};
use crate::plant::rows;

const PASSWORD: &str = "correct horse";

/// A user with a password; the answer to the login.
async fn login(server: &Server, name: &str, role: Role, cookie: bool) -> Answer {
    let once = users::add(&server.store, name, role).await.unwrap();
    let first = server.call("POST", "/api/v1/login", None, Some(json!({"name": name, "password": once}))).await;
    let token = first.body["token"].as_str().unwrap();
    assert_eq!(server.post("/api/v1/password", token, json!({"old": once, "new": PASSWORD})).await.0, 204);
    let body = json!({"name": name, "password": PASSWORD, "cookie": cookie});
    let answer = server.call("POST", "/api/v1/login", None, Some(body)).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer
}

async fn refresh(server: &Server, token: &Value) -> Answer {
    server.call("POST", "/api/v1/refresh", None, Some(json!({"refresh_token": token}))).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_token_is_good_once_and_an_old_one_ends_the_session() {
    let server = Server::start().await;
    let admin = server.user(Role::Admin).await;
    let first = login(&server, "ada", Role::Operator, false).await.body;
    let second = refresh(&server, &first["refresh_token"]).await;
    assert_eq!(second.status, 200);
    assert_ne!(second.body["refresh_token"], first["refresh_token"]);
    assert_eq!(second.body["session"], first["session"]);
    // The answer may have been lost: for a moment it is given again, and is the same.
    let again = refresh(&server, &first["refresh_token"]).await;
    assert_eq!((again.status, &again.body["refresh_token"]), (200, &second.body["refresh_token"]));
    let third = refresh(&server, &second.body["refresh_token"]).await;
    assert_eq!(third.status, 200);
    let token = third.body["token"].as_str().unwrap();
    server.get("/api/v1/me", token).await;
    // The first one once more, though its successor was used: somebody has a copy.
    let stolen = refresh(&server, &first["refresh_token"]).await;
    assert_eq!((stolen.status, &stolen.body["code"]), (401, &json!("session_over")));
    assert_eq!(refresh(&server, &third.body["refresh_token"]).await.status, 401, "the whole session is over");
    assert_eq!(server.call("GET", "/api/v1/me", Some(token), None).await.status, 401, "access tokens too");
    let audit = server.get("/api/v1/audit?action=session.reuse", &admin).await;
    assert_eq!((&audit["items"][0]["actor"], &audit["items"][0]["object_id"]), (&json!("ada"), &first["session"]));

    // After its grace a used token is an old one, though its successor was not used.
    let body = json!({"name": "ada", "password": PASSWORD});
    let other = server.call("POST", "/api/v1/login", None, Some(body)).await.body;
    let next = refresh(&server, &other["refresh_token"]).await.body;
    server.sql("UPDATE refresh_tokens SET used_at = used_at - interval '31 s'").await;
    assert_eq!(refresh(&server, &other["refresh_token"]).await.status, 401);
    assert_eq!(refresh(&server, &next["refresh_token"]).await.status, 401);
    for none in [json!(""), json!("gemba_refresh_x"), json!(format!("gemba_refresh_{}", "A".repeat(43)))] {
        assert_eq!(refresh(&server, &none).await.status, 401, "{none}");
    }
    assert!(rows(&server.store, "SELECT * FROM refresh_tokens").await.find("gemba_refresh").is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn two_replicas_that_are_asked_at_once_give_one_successor() {
    let first = Server::start().await;
    let second = Server::over(first.store.clone()).await;
    let mut token = login(&first, "ada", Role::Operator, false).await.body["refresh_token"].clone();
    for _ in 0..5 {
        let answers =
            futures_util::future::join_all((0..6).map(|n| refresh(if n % 2 == 0 { &first } else { &second }, &token)))
                .await;
        let successors: std::collections::BTreeSet<String> =
            answers.iter().map(|answer| answer.body["refresh_token"].to_string()).collect();
        assert!(answers.iter().all(|answer| answer.status == 200) && successors.len() == 1, "{successors:?}");
        second.get("/api/v1/me", answers[0].body["token"].as_str().unwrap()).await;
        token = answers[0].body["refresh_token"].clone();
    }
    assert_eq!(rows(&first.store, "SELECT count(*), count(used_at) FROM refresh_tokens").await, "7 5");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_has_its_refresh_token_in_a_cookie_that_scripts_cannot_read() {
    let server = Server::start().await;
    let answer = login(&server, "ada", Role::Operator, true).await;
    assert_eq!(answer.body["refresh_token"], Value::Null);
    let set = answer.headers["set-cookie"].to_str().unwrap().to_owned();
    for part in ["gemba_refresh=gemba_refresh_", "HttpOnly", "SameSite=Strict", "Path=/api/v1/", "Max-Age=43200"] {
        assert!(set.contains(part), "{set}");
    }
    let cookie = set.split(';').next().unwrap().to_owned();
    let own = format!("http://{}", server.address);
    let ask = |origin: &str| {
        let headers = [("cookie".to_owned(), cookie.clone()), ("origin".to_owned(), origin.to_owned())];
        let server = &server;
        async move {
            let headers: Vec<(&str, &str)> = headers.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
            server.call_with("POST", "/api/v1/refresh", None, None, &headers).await
        }
    };
    let foreign = ask("https://evil.example").await;
    assert_eq!((foreign.status, &foreign.body["code"]), (403, &json!("foreign_origin")));
    let good = ask(&own).await;
    assert_eq!((good.status, &good.body["refresh_token"]), (200, &Value::Null));
    assert!(good.headers["set-cookie"].to_str().unwrap().starts_with("gemba_refresh=gemba_refresh_"));
    assert_eq!(server.call("POST", "/api/v1/refresh", None, None).await.status, 401, "no cookie");
    let out = server.call("POST", "/api/v1/logout", good.body["token"].as_str(), None).await;
    assert_eq!(out.status, 204);
    assert!(out.headers["set-cookie"].to_str().unwrap().contains("Max-Age=0"));
    assert_eq!(ask(&own).await.status, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_are_listed_and_ended() {
    let server = Server::start().await;
    let admin = server.user(Role::Admin).await;
    let first = login(&server, "ada", Role::Viewer, false).await.body;
    let body = json!({"name": "ada", "password": PASSWORD});
    let second = server.call("POST", "/api/v1/login", None, Some(body.clone())).await.body;
    let token = second["token"].as_str().unwrap();
    let list = server.get("/api/v1/sessions", token).await;
    // The oldest one had the one-time password, and ended with it.
    assert_eq!(
        ids(&list),
        [&second["session"], &first["session"], &list["items"][2]["id"]].map(|id| id.as_str().unwrap())
    );
    assert_eq!(list["items"][2]["ended_by"], "password");
    assert_eq!(list["items"][0]["address"], "127.0.0.1");
    let path = format!("/api/v1/sessions/{}", first["session"].as_str().unwrap());
    let stranger = server.user(Role::Viewer).await;
    assert_eq!(server.call("DELETE", &path, Some(&stranger), None).await.status, 404);
    assert_eq!(server.call("DELETE", &path, Some(token), None).await.status, 204);
    assert_eq!(server.call("DELETE", &path, Some(token), None).await.status, 404);
    assert_eq!(server.call("GET", "/api/v1/me", first["token"].as_str(), None).await.status, 401);
    server.get("/api/v1/me", token).await;

    let path = format!("/api/v1/users/{}/sessions", second["user"]["id"].as_str().unwrap());
    assert_eq!(ids(&server.get(&path, &admin).await).len(), 3);
    assert_eq!(server.call("DELETE", &path, Some(&admin), None).await.status, 204);
    assert_eq!(server.call("GET", "/api/v1/me", Some(token), None).await.status, 401);
    let third = server.call("POST", "/api/v1/login", None, Some(body)).await.body;
    server.sql("UPDATE sessions SET expires_at = now()").await;
    assert_eq!(server.call("GET", "/api/v1/me", third["token"].as_str(), None).await.status, 401);
    assert_eq!(refresh(&server, &third["refresh_token"]).await.status, 401, "a session is not refreshed for ever");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_tokens_rotate_at_all_replicas() {
    let first = Server::start().await;
    let second = Server::over(first.store.clone()).await;
    let before = login(&first, "ada", Role::Viewer, false).await.body;
    let old = before["token"].as_str().unwrap();
    second.get("/api/v1/me", old).await;
    // At once: what the old key signed is over, and the session goes on with the new one.
    token_keys::rotate(&first.store, clock::now(), true).await.unwrap();
    let third = Server::over(first.store.clone()).await;
    assert_eq!(third.call("GET", "/api/v1/me", Some(old), None).await.status, 401);
    let renewed = refresh(&third, &before["refresh_token"]).await;
    let new = renewed.body["token"].as_str().unwrap();
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    first.get("/api/v1/me", new).await;
    second.get("/api/v1/me", new).await;
    assert_eq!(second.call("GET", "/api/v1/me", Some(old), None).await.status, 401, "and here, as soon as it is known");
    // In time: both are good.
    token_keys::rotate(&first.store, clock::now(), false).await.unwrap();
    first.sql("UPDATE token_keys SET created_at = created_at - interval '6 min' WHERE created_at = (SELECT max(created_at) FROM token_keys)").await;
    let fourth = Server::over(first.store.clone()).await;
    let newest = refresh(&fourth, &renewed.body["refresh_token"]).await.body;
    for token in [new, newest["token"].as_str().unwrap()] {
        fourth.get("/api/v1/me", token).await;
    }
    assert_ne!(new.split('.').next(), newest["token"].as_str().unwrap().split('.').next(), "another key signs");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_key_may_no_more_than_it_says_and_its_user_may() {
    let server = Server::start().await;
    let second = server.site(DEFAULT_ORGANISATION, "second").await;
    let here = server.plant_at(Uuid::from_u128(0x7000_8000_0000_0000_0002)).await;
    let there = server.plant_at(second).await;
    let user = server.user(Role::Supervisor).await;
    let make = |body: Value| {
        let (server, user) = (&server, &user);
        async move { server.post("/api/v1/api-keys", user, body).await }
    };
    for (body, field) in [
        (json!({"name": "", "role": "viewer"}), "name"),
        (json!({"name": "x", "role": "admin"}), "role"),
        (json!({"name": "x", "role": "viewer", "site": Uuid::now_v7()}), "site"),
        (json!({"name": "x", "role": "viewer", "expires_at": "2020-01-01T00:00:00Z"}), "expires_at"),
        (json!({"name": "x", "role": "viewer", "expires_at": "2190-01-01T00:00:00Z"}), "expires_at"),
    ] {
        let (status, answer) = make(body).await;
        assert_eq!((status, &answer["errors"][0]["field"]), (422, &json!(field)), "{answer}");
    }
    let (status, made) = make(json!({"name": "report", "role": "operator", "site": second})).await;
    assert_eq!(status, 201, "{made}");
    let key = made["key"].as_str().unwrap();
    assert!(key.starts_with("gemba_key_") && key.starts_with(made["begins"].as_str().unwrap()));
    let list = server.get("/api/v1/api-keys", &user).await;
    assert_eq!(list["items"][0]["id"], made["id"]);
    assert!(!list.to_string().contains(key), "it is shown once");
    assert_eq!(ids(&server.get("/api/v1/machines", key).await), [there.machine.to_string()]);
    assert_eq!(server.get("/api/v1/me", key).await["role"], "operator");
    let acknowledge = |alarm: Uuid| {
        let server = &server;
        async move { server.post(&format!("/api/v1/alarms/{alarm}/acknowledge"), key, json!({})).await.0 }
    };
    assert_eq!((acknowledge(there.alarm).await, acknowledge(here.alarm).await), (200, 404));
    let admin = server.user(Role::Admin).await;
    let audit = server.get("/api/v1/audit?action=alarm.acknowledge", &admin).await;
    assert_eq!(audit["items"][0]["api_key"], made["id"]);
    assert_eq!(
        server.call("PATCH", &format!("/api/v1/machines/{}", there.machine), Some(key), Some(json!({}))).await.status,
        403
    );
    for (method, path, body) in [
        ("POST", "/api/v1/api-keys", json!({"name": "x", "role": "viewer"})),
        ("POST", "/api/v1/password", json!({"old": "x", "new": "a long password"})),
        ("POST", "/api/v1/logout", json!({})),
    ] {
        let answer = server.call(method, path, Some(key), Some(body)).await;
        assert_eq!((answer.status, &answer.body["code"]), (403, &json!("session_required")), "{path}");
    }
    assert!(server.get("/api/v1/api-keys", &admin).await["items"][0]["used_at"].is_string());

    // It falls with its user's grants, its date, its user, and its revocation.
    let status = async || server.call("GET", "/api/v1/machines", Some(key), None).await.status;
    for (sql, undo, expected) in [
        (
            "UPDATE grants SET role = 'viewer' WHERE role = 'supervisor'",
            "UPDATE grants SET role = 'supervisor' WHERE role = 'viewer'",
            200,
        ),
        ("UPDATE api_keys SET expires_at = now()", "UPDATE api_keys SET expires_at = now() + interval '1 day'", 401),
        (
            "UPDATE users SET disabled_at = now() WHERE name LIKE 'supervisor%'",
            "UPDATE users SET disabled_at = NULL",
            401,
        ),
    ] {
        server.sql(sql).await;
        assert_eq!(status().await, expected, "{sql}");
        server.sql(undo).await;
    }
    let path = format!("/api/v1/api-keys/{}", made["id"].as_str().unwrap());
    let other = server.user(Role::Supervisor).await;
    assert_eq!(server.call("DELETE", &path, Some(&other), None).await.status, 404);
    assert_eq!(server.call("DELETE", &path, Some(&user), None).await.status, 204);
    assert_eq!(status().await, 401);
    for none in ["gemba_key_", "gemba_key_x", &format!("gemba_key_{}", "A".repeat(43))] {
        assert_eq!(server.call("GET", "/api/v1/me", Some(none), None).await.status, 401, "{none}");
    }
}
