//! Requests that nobody should send: each gets a problem, none a 500, none an inner text.

use ed25519_dalek::SigningKey;
use gemba_cloud::{
    clock,
    store::Store,
    users::{
        Role,
        tokens::{Key, Tokens},
    },
};
use jiff::SignedDuration;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use uuid::Uuid;

use super::{Answer, Server};

impl Server {
    /// Sends bytes as they are; the status and the rest of the answer.
    pub(super) async fn raw(&self, request: &[u8]) -> (u16, String) {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(request).await.unwrap();
        let mut answer = Vec::new();
        let deadline = std::time::Duration::from_secs(30);
        tokio::time::timeout(deadline, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
        let text = String::from_utf8_lossy(&answer).into_owned();
        let status = text.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        (status, text)
    }
}

#[track_caller]
fn is_a_problem(answer: &Answer, status: u16, what: &str) {
    assert_eq!(answer.status, status, "{what}: {}", answer.body);
    assert_eq!(answer.headers["content-type"], "application/problem+json", "{what}");
    for key in ["type", "title", "detail", "code"] {
        assert!(answer.body[key].is_string(), "{what}: {}", answer.body);
    }
    assert_eq!(answer.body["status"], status, "{what}");
    assert!(answer.headers.contains_key("x-request-id"), "{what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_routes_methods_and_bodies() {
    let server = Server::start().await;
    let token = server.user(Role::Admin).await;
    let gateway = server.gateway("north").await;
    let (id, _) = server.machine(gateway, "pump-1", &["flow"]).await;
    for (method, path, status) in [
        ("GET", "/api", 404),
        ("GET", "/api/", 404),
        ("GET", "/api/v1/nothing", 404),
        ("GET", "/api/v1/machines/none", 404),
        ("GET", "/api/v1/machines/%ff%fe", 404),
        ("GET", "/api/v1/machines/../../etc/passwd", 404),
        ("DELETE", "/api/v1/machines", 405),
        ("PUT", "/api/v1/login", 405),
        ("POST", "/healthz", 405),
        ("GET", "/api/v1/live", 426),
    ] {
        is_a_problem(&server.call(method, path, Some(&token), None).await, status, &format!("{method} {path}"));
    }
    let patch = format!("/api/v1/machines/{id}");
    let head = |path: &str, method: &str, kind: &str, length: usize| {
        format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Bearer {token}\r\n\
             content-type: {kind}\r\ncontent-length: {length}\r\n\r\n"
        )
    };
    let deep = format!("{}{}", "[".repeat(20_000), "]".repeat(20_000));
    let nested = format!("{}1{}", "{\"display_name\":".repeat(3_000), "}".repeat(3_000));
    let huge = format!("{{\"display_name\": \"{}\"}}", "x".repeat(200_000));
    for (body, kind, status) in [
        ("{}".as_bytes(), "text/plain", 415),
        (b"{", "application/json", 400),
        (b"", "application/json", 400),
        (b"\xff\xfe", "application/json", 400),
        (b"{\"display_name\": \"\xff\"}", "application/json", 400),
        (b"7", "application/json", 422),
        (b"{\"display_name\": 1e999}", "application/json", 400),
        (b"{\"ignored\": \"yes\"}", "application/json", 422),
        (b"{\"ignored\": true, \"ignored\": false}", "application/json", 422),
        (b"{\"display_name\": \"a\", \"display_name\": \"b\"}", "application/json", 422),
        (b"{\"display_name\": \"\\ud800\"}", "application/json", 400),
        (b"{\"area\": \"../../etc/passwd\"}", "application/json", 422),
        (b"{\"ignored\": true}\0", "application/json", 400),
        (b"\xef\xbb\xbf{}", "application/json", 400),
        (nested.as_bytes(), "application/json", 422),
        (deep.as_bytes(), "application/json", 422),
        (huge.as_bytes(), "application/json", 413),
    ] {
        let mut request = head(&patch, "PATCH", kind, body.len()).into_bytes();
        request.extend_from_slice(body);
        let (found, text) = server.raw(&request).await;
        let shown = String::from_utf8_lossy(&body[..body.len().min(40)]).into_owned();
        assert!(found == status || (status == 422 && found == 400), "{shown}: {text}");
        assert!(text.contains("application/problem+json"), "{shown}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_that_are_none() {
    let server = Server::start().await;
    let good = server.user(Role::Admin).await;
    let payload = good.split('.').nth(1).unwrap();
    let none = format!("eyJ0eXAiOiJKV1QiLCJhbGciOiJub25lIn0.{payload}.");
    for token in ["", "x", "a.b.c", "é", &none, &good[..good.len() - 3], &"x".repeat(5_000)] {
        let raw =
            format!("GET /api/v1/me HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Bearer {token}\r\n\r\n");
        let (status, text) = server.raw(raw.as_bytes()).await;
        assert_eq!(status, 401, "{token}: {text}");
        assert!(text.contains("www-authenticate: Bearer"), "{text}");
    }
    let basic = "GET /api/v1/me HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Basic YTpi\r\n\r\n";
    assert_eq!(server.raw(basic.as_bytes()).await.0, 401);
    let unknown = server.token(Uuid::now_v7());
    assert_eq!(server.call("GET", "/api/v1/me", Some(&unknown), None).await.status, 401);

    // Signed as it should be, by another server; with a key that nobody has; over; ahead of its time; and with another's name in it.
    let other = Tokens::new(&SigningKey::from_bytes(&[4; 32]));
    other.know(&[Key { id: super::TOKEN_KEY, created_at: clock::now() - SignedDuration::from_hours(24) }]);
    let nobody = Tokens::new(&SigningKey::from_bytes(&[3; 32]));
    nobody.know(&[Key { id: Uuid::now_v7(), created_at: clock::now() - SignedDuration::from_hours(24) }]);
    let user: Uuid = serde_json::from_value(server.get("/api/v1/me", &good).await["id"].clone()).unwrap();
    let at = |minutes: i64| clock::now() + SignedDuration::from_mins(minutes);
    let [a, b, over, ahead, foreign] = [
        other.issue(user, user, at(0)),
        nobody.issue(user, user, at(0)),
        server.tokens.issue(user, user, at(-16)),
        server.tokens.issue(user, user, at(10)),
        server.tokens.issue(Uuid::now_v7(), user, at(0)),
    ]
    .map(|issued| issued.unwrap().0);
    for (token, code) in [
        (a, "unauthenticated"),
        (b, "unauthenticated"),
        (over, "token_expired"),
        (ahead, "unauthenticated"),
        (foreign, "unauthenticated"),
    ] {
        let answer = server.call("GET", "/api/v1/me", Some(&token), None).await;
        assert_eq!((answer.status, &answer.body["code"]), (401, &json!(code)), "{}", answer.body);
    }
    // One of another organisation is good there only.
    let organisation = server.organisation("other").await;
    let stranger = server.user_at(organisation, &[(None, Role::Admin)]).await;
    let gateway = server.gateway("north").await;
    let (machine, _) = server.machine(gateway, "pump-1", &["flow"]).await;
    for (method, path) in [
        ("GET", format!("/api/v1/machines/{machine}")),
        ("PATCH", format!("/api/v1/machines/{machine}")),
        ("GET", format!("/api/v1/machines/{machine}/series")),
        ("POST", format!("/api/v1/gateways/{gateway}/commands")),
        ("GET", format!("/api/v1/users/{user}")),
        ("DELETE", format!("/api/v1/users/{user}/sessions")),
    ] {
        let body = (method != "GET").then(|| json!({}));
        assert_eq!(server.call(method, &path, Some(&stranger), body).await.status, 404, "{method} {path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_database_it_is_503_and_says_no_more() {
    let mut nowhere = tokio_postgres::Config::new();
    nowhere.host("127.0.0.1").port(1).user("gemba").dbname("gemba");
    let server = Server::over(Store::new(nowhere, 2).unwrap()).await;
    let token = server.token(Uuid::now_v7());
    for (method, path, body) in [
        ("GET", "/api/v1/machines", None),
        ("GET", "/readyz", None),
        ("POST", "/api/v1/login", Some(json!({"name": "a", "password": "b"}))),
    ] {
        let answer = server.call(method, path, Some(&token), body).await;
        is_a_problem(&answer, 503, path);
        assert!(answer.headers.contains_key("retry-after"), "{path}");
        let text = answer.body.to_string();
        assert!(!text.contains("127.0.0.1") && !text.contains("postgres"), "{text}");
    }
    assert_eq!(server.call("GET", "/healthz", None, None).await.status, 200);
}
