//! What holds for every route: requests that are sent again, limits of their number, answers that are shaped alike.

use gemba_cloud::users::Role;
use serde_json::{Value, json};

use super::{Answer, Server, ids};
use crate::plant::count;

async fn add_site(server: &Server, token: &str, name: &str, key: &str) -> Answer {
    server
        .call_with("POST", "/api/v1/sites", Some(token), Some(json!({"name": name})), &[("idempotency-key", key)])
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_sent_again_is_done_once() {
    let first = Server::start().await;
    let second = Server::over(first.store.clone()).await;
    let token = first.user(Role::Admin).await;
    let once = add_site(&first, &token, "Lyon", "a").await;
    assert_eq!(once.status, 201, "{}", once.body);
    let again = add_site(&second, &token, "Lyon", "a").await;
    assert_eq!((again.status, &again.body, &again.headers["etag"]), (201, &once.body, &once.headers["etag"]));
    assert_eq!(again.headers["idempotency-replayed"], "true");
    assert!(!once.headers.contains_key("idempotency-replayed"));
    let other = add_site(&second, &token, "Nice", "a").await;
    assert_eq!((other.status, &other.body["code"]), (422, &json!("idempotency_key_reused")));
    assert_eq!(
        add_site(&second, &token, "Lyon", "b").await.body["code"],
        "name_taken",
        "another key is another request"
    );
    let refused = add_site(&first, &token, "Lyon", "b").await;
    assert_eq!(
        (refused.body["code"].as_str(), refused.headers["content-type"].to_str().unwrap()),
        (Some("name_taken"), "application/problem+json")
    );
    // Keys are each user's own.
    let stranger = first.user(Role::Admin).await;
    assert_eq!(add_site(&first, &stranger, "Nice", "a").await.status, 201);

    // Many at once, at two replicas: one is done.
    let all = (0..12).map(|n| add_site(if n % 2 == 0 { &first } else { &second }, &token, "Oslo", "many"));
    let answers = futures_util::future::join_all(all).await;
    let made: Vec<&Value> =
        answers.iter().filter(|answer| answer.status == 201).map(|answer| &answer.body["id"]).collect();
    assert!(!made.is_empty() && made.iter().all(|id| *id == made[0]), "{made:?}");
    for answer in answers.iter().filter(|answer| answer.status != 201) {
        assert_eq!((answer.status, &answer.body["code"]), (409, &json!("request_under_way")));
        assert!(answer.headers.contains_key("retry-after"));
    }
    assert_eq!(count(&first.store, "SELECT count(*) FROM sites WHERE name = 'Oslo'").await, 1);

    // One of which nobody knows what became of it is not done again.
    first.sql("UPDATE idempotency_keys SET status = NULL, created_at = now() - interval '1 min' WHERE key = 'a'").await;
    assert_eq!(add_site(&first, &token, "Lyon", "a").await.body["code"], "outcome_unknown");
    first.sql("UPDATE idempotency_keys SET created_at = now() - interval '25 h' WHERE key = 'a'").await;
    assert_eq!(add_site(&first, &token, "Bern", "a").await.status, 201, "a day later it is a new one");
    for bad in ["", &"x".repeat(256)] {
        assert_eq!(add_site(&first, &token, "Rome", bad).await.status, 400, "{bad}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_with_a_secret_is_not_kept() {
    let server = Server::start().await;
    let token = server.user(Role::Admin).await;
    let make = async || {
        let body = json!({"name": "report", "role": "viewer"});
        server.call_with("POST", "/api/v1/api-keys", Some(&token), Some(body), &[("idempotency-key", "k")]).await
    };
    let made = make().await;
    assert_eq!(made.status, 201);
    let again = make().await;
    assert_eq!((again.status, &again.body["code"]), (409, &json!("answer_not_kept")));
    assert_eq!(ids(&server.get("/api/v1/api-keys", &token).await).len(), 1);
    assert_eq!(count(&server.store, "SELECT count(*) FROM idempotency_keys WHERE answer IS NOT NULL").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_too_often_waits_and_others_do_not() {
    let server = Server::start().await;
    let (mine, other) = (server.user(Role::Viewer).await, server.user(Role::Viewer).await);
    let server = Server::limited(server.store.clone(), 1).await;
    let first = server.call("GET", "/api/v1/me", Some(&mine), None).await;
    assert_eq!(first.headers["ratelimit-policy"], "\"default\";q=10;w=10");
    assert_eq!(first.headers["ratelimit"], "\"default\";r=9;t=1");
    let mut refused = None;
    for _ in 0..15 {
        let answer = server.call("GET", "/api/v1/me", Some(&mine), None).await;
        if answer.status == 429 {
            refused = Some(answer);
            break;
        }
    }
    let refused = refused.expect("a limit");
    assert_eq!(refused.body["code"], "too_many_requests");
    assert!(refused.headers["ratelimit"].to_str().unwrap().starts_with("\"default\";r=0;"));
    assert_eq!(refused.headers["retry-after"], "1");
    server.get("/api/v1/me", &other).await;
    assert_eq!(server.call("GET", "/healthz", None, None).await.status, 200);
    assert!(!server.call("GET", "/healthz", None, None).await.headers.contains_key("ratelimit"));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_list_is_paged_and_knows_its_parameters_only() {
    let server = Server::start().await;
    let token = server.user(Role::Admin).await;
    let document = server.get("/api/v1/openapi.json", &token).await;
    let mut lists = 0;
    for (path, item) in document["paths"].as_object().unwrap() {
        let parameters = item["get"]["parameters"].as_array();
        let named = |name: &str| parameters.is_some_and(|all| all.iter().any(|one| one["name"] == name));
        if !named("cursor") {
            continue;
        }
        lists += 1;
        assert!(named("limit"), "{path}");
        if path.contains('{') {
            continue;
        }
        let list = server.get(path, &token).await;
        assert!(list["items"].is_array() && list.as_object().unwrap().contains_key("next_cursor"), "{path}: {list}");
        for bad in ["limit=0", "limit=201", "cursor=x", "sort=nothing", "limit=1&limit=2"] {
            let answer = server.call("GET", &format!("{path}?{bad}"), Some(&token), None).await;
            assert_eq!((answer.status, &answer.body["code"]), (422, &json!("invalid_parameters")), "{path}?{bad}");
            assert!(answer.body["errors"][0]["field"].is_string(), "{path}?{bad}");
        }
    }
    assert!(lists >= 10, "{lists}");
}
