//! Behind proxies: by whose address logins are slowed, requests are counted and changes are written down.

use std::{fs, os::unix::fs::PermissionsExt as _};

use gemba_cloud::users::Role;
use serde_json::{Value, json};

use super::{Answer, Server};
use crate::{daemon::Daemon, plant::rows};

const CLIENT: &str = "198.51.100.7";
const OTHER: &str = "2001:db8::9";

async fn login(server: &Server, name: &str, forwarded: &str) -> Answer {
    let body = json!({"name": name, "password": "not the password"});
    server.call_with("POST", "/api/v1/login", None, Some(body), &[("x-forwarded-for", forwarded)]).await
}

async fn rename(server: &Server, token: &str, forwarded: &[(&str, &str)]) -> Value {
    let name = json!({"name": format!("Works {forwarded:?}")});
    let renamed = server.call_with("PATCH", "/api/v1/organisation", Some(token), Some(name), forwarded).await;
    assert_eq!(renamed.status, 200, "{}", renamed.body);
    server.get("/api/v1/audit?limit=1", token).await["items"][0]["address"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_clients_address_counts_and_nobody_makes_one_up() {
    let plain = Server::start().await;
    let token = plain.user(Role::Admin).await;
    let server = Server::behind(plain.store.clone(), 10_000, &["127.0.0.0/8", "10.0.0.0/8"]).await;
    let header = "x-forwarded-for";
    assert_eq!(rename(&server, &token, &[(header, CLIENT)]).await, CLIENT);
    assert_eq!(rename(&server, &token, &[(header, &format!("1.1.1.1, {CLIENT}, 10.0.0.3"))]).await, CLIENT);
    assert_eq!(rename(&server, &token, &[(header, "1.1.1.1"), (header, CLIENT)]).await, CLIENT);
    assert_eq!(rename(&server, &token, &[]).await, "127.0.0.1");
    assert_eq!(rename(&server, &token, &[(header, "nonsense")]).await, "127.0.0.1");
    assert_eq!(rename(&plain, &token, &[(header, CLIENT)]).await, "127.0.0.1", "nobody is trusted unless told");

    // Many wrong passwords from one address, whatever it says before that; another is let in.
    let mut refused = 0;
    for n in 0..40 {
        let answer = login(&server, &format!("user {n}"), &format!("203.0.113.{n}, {CLIENT}")).await;
        assert!(matches!(answer.status, 401 | 429), "{}", answer.body);
        refused += usize::from(answer.status == 429);
    }
    assert!(refused > 10, "{refused}");
    assert_eq!(login(&server, "user 1", OTHER).await.status, 401);

    // A session that is opened says where from.
    let link = server.post("/api/v1/users", &token, json!({"name": "ada", "grants": []})).await.1;
    let secret = link["invitation"]["link"].as_str().unwrap().rsplit_once('/').unwrap().1.to_owned();
    let chosen = json!({"token": secret, "new": "a long enough password"});
    assert!(server.post("/api/v1/password/link", &token, chosen).await.0 < 300);
    let body = json!({"name": "ada", "password": "a long enough password"});
    let opened = server.call_with("POST", "/api/v1/login", None, Some(body), &[(header, OTHER)]).await;
    assert_eq!(opened.status, 200, "{}", opened.body);
    let from = "SELECT host(s.address) FROM sessions s JOIN users u ON u.id = s.user_id WHERE u.name = 'ada' ORDER BY s.id DESC LIMIT 1";
    assert_eq!(rows(&server.store, from).await, OTHER);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_counted_for_each_client_of_a_proxy() {
    let plain = Server::start().await;
    let server = Server::behind(plain.store.clone(), 1, &["127.0.0.1/32"]).await;
    let ask = async |from: &str| {
        server.call_with("GET", "/api/v1/openapi.json", None, None, &[("x-forwarded-for", from)]).await.status
    };
    let mut last = 0;
    for _ in 0..15 {
        last = ask(CLIENT).await;
        if last == 429 {
            break;
        }
    }
    assert_eq!(last, 429);
    assert_eq!(ask(OTHER).await, 200);
}

/// The real binary, as its configuration says.
#[tokio::test(flavor = "multi_thread")]
async fn the_daemon_believes_whom_it_is_told_to() {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o711)).unwrap();
    let config = directory.path().join("cloud.toml");
    let text = "data_dir = \"data\"\n[http]\nlisten = \"127.0.0.1:0\"\nrequests_per_s = 1\n\
                trusted_proxies = [\"127.0.0.1\"]\n[mqtt]\nlisten = \"127.0.0.1:0\"\n";
    fs::write(&config, text).unwrap();
    let daemon = Daemon::start(&config);
    let url = format!("http://{}/api/v1/openapi.json", daemon.http);
    let ask = |from: &str| {
        let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
        agent.get(&url).header("x-forwarded-for", from).call().unwrap().status().as_u16()
    };
    let refused = (0..15).any(|_| ask(CLIENT) == 429);
    assert!(refused);
    assert_eq!(ask(OTHER), 200);
    daemon.stop();
}
