//! Lists in every order that they are documented to have: all of them, each once, however small the pages are.

use gemba_cloud::users::Role;
use serde_json::{Value, json};

use super::Server;

/// What an item is called, in the order of the list; the same in pages of two.
async fn listed(server: &Server, token: &str, path: &str) -> String {
    let names = |list: &Value| -> Vec<String> {
        list["items"].as_array().unwrap().iter().map(|item| item["name"].as_str().unwrap().to_owned()).collect()
    };
    let all = names(&server.get(&format!("{path}&limit=200"), token).await);
    let (mut paged, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = server.get(&format!("{path}&limit=2&cursor={cursor}"), token).await;
        paged.extend(names(&page));
        let Some(next) = page["next_cursor"].as_str() else { break };
        next.clone_into(&mut cursor);
    }
    assert_eq!(paged, all, "{path}");
    all.join(" ")
}

#[tokio::test(flavor = "multi_thread")]
async fn machines_in_every_order() {
    let server = Server::start().await;
    let token = server.user(Role::Viewer).await;
    let gateway = server.gateway("g").await;
    let mut ids = Vec::new();
    for name in ["f", "e", "d", "c", "b", "a", "part"] {
        ids.push((name, server.machine(gateway, name, &["flow"]).await.0));
    }
    // Unknown health twice, equal health twice; `d` was heard through its part, which is worse off; `f` never was.
    for (name, health, criticality, minutes) in [
        ("f", "NULL", "high", "NULL"),
        ("e", "NULL", "low", "5"),
        ("d", "90", "high", "50"),
        ("c", "55.5", "medium", "4"),
        ("b", "55.5", "medium", "3"),
        ("a", "99", "low", "2"),
        ("part", "10.1", "medium", "1"),
    ] {
        server
            .sql(&format!(
                "UPDATE machines SET health_percent = {health}, criticality = '{criticality}',
                        last_reading_at = now() - {minutes} * interval '1 min' WHERE name = '{name}'"
            ))
            .await;
    }
    server
        .sql("UPDATE machines SET merged_into = (SELECT id FROM machines WHERE name = 'd') WHERE name = 'part'")
        .await;
    for (sort, expected) in [
        ("", "a b c d e f"),
        ("sort=name", "a b c d e f"),
        ("sort=health_percent", "d c b a f e"),
        ("sort=last_reading_at", "d a b c e f"),
        ("sort=criticality", "d f b c a e"),
    ] {
        assert_eq!(listed(&server, &token, &format!("/api/v1/machines?{sort}")).await, expected, "{sort}");
    }
    let other = server.get("/api/v1/machines?sort=criticality&limit=1", &token).await["next_cursor"].clone();
    let other = other.as_str().unwrap();
    for sort in ["", "sort=name", "sort=health_percent"] {
        let path = format!("/api/v1/machines?{sort}&cursor={other}");
        let answer = server.call("GET", &path, Some(&token), None).await;
        assert_eq!((answer.status, &answer.body["errors"][0]["field"]), (422, &json!("cursor")), "{sort}");
    }
    let filtered = format!("/api/v1/machines?sort=health_percent&gateway={}", uuid::Uuid::nil());
    assert_eq!(listed(&server, &token, &filtered).await, "");
    // What is shown of a machine is the same in every order.
    let of = async |sort: &str| {
        let list = server.get(&format!("/api/v1/machines?sort={sort}"), &token).await;
        let items = list["items"].as_array().unwrap();
        items.iter().find(|item| item["name"] == "d").unwrap().clone()
    };
    assert_eq!(of("name").await, of("criticality").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn users_in_every_order() {
    let server = Server::start().await;
    let token = server.user(Role::Admin).await;
    for (n, name) in ["b", "d", "a", "c"].into_iter().enumerate() {
        server
            .sql(&format!(
                "INSERT INTO users (id, organisation_id, name, password_hash, must_change_password, created_at, disabled_at)
                 SELECT gen_random_uuid(), organisation_id, '{name}', 'x', false, now() - {n} * interval '1 h', now()
                 FROM sites LIMIT 1"
            ))
            .await;
    }
    assert_eq!(listed(&server, &token, "/api/v1/users?disabled=true&sort=name").await, "a b c d");
    assert_eq!(listed(&server, &token, "/api/v1/users?disabled=true&sort=created_at").await, "b d a c");
    let other = server.get("/api/v1/users?sort=created_at&limit=1", &token).await["next_cursor"].clone();
    let path = format!("/api/v1/users?cursor={}", other.as_str().unwrap());
    let answer = server.call("GET", &path, Some(&token), None).await;
    assert_eq!((answer.status, &answer.body["errors"][0]["field"]), (422, &json!("cursor")));
}
