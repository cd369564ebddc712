//! Photos and files of tickets: what is taken, under which name, and how it is given back.

use gemba_cloud::users::Role;
use serde_json::{Value, json};

use super::Server;
use crate::plant::{count, rows};

const PNG: &[u8] = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR";

/// An answer whose body is bytes.
struct Raw {
    status: u16,
    headers: axum::http::HeaderMap,
    body: Vec<u8>,
}

impl Raw {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&self.body)))
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

impl Server {
    async fn send(&self, method: &str, path: &str, token: &str, headers: &[(&str, &str)], body: Vec<u8>) -> Raw {
        let mut request = axum::http::Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.address))
            .header("authorization", format!("Bearer {token}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (request, agent) = (request.body(body).unwrap(), self.agent.clone());
        tokio::task::spawn_blocking(move || {
            let mut response = agent.run(request).expect("an answer");
            let body = response.body_mut().with_config().limit(20_000_000).read_to_vec().expect("a body");
            Raw { status: response.status().as_u16(), headers: response.headers().clone(), body }
        })
        .await
        .unwrap()
    }

    async fn upload(&self, token: &str, ticket: &str, name: &str, kind: &str, content: &[u8]) -> Raw {
        let path = format!("/api/v1/tickets/{ticket}/attachments?name={name}");
        let kind = [("content-type", kind)];
        self.send("POST", &path, token, if kind[0].1.is_empty() { &[] } else { &kind }, content.to_vec()).await
    }
}

async fn ticket(server: &Server) -> (String, String) {
    let gateway = server.gateway("g").await;
    let (machine, _) = server.machine(gateway, "m", &[]).await;
    let token = server.user(Role::Operator).await;
    let id = server.ticket(&token, json!({"machine": machine, "title": "t"})).await;
    (token, id)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_comes_back_as_it_was_and_only_to_be_saved() {
    let server = Server::start().await;
    let (token, id) = ticket(&server).await;
    // More than a part, of bytes that do not repeat.
    let mut photo = PNG.to_vec();
    photo.extend((0_u32..200_000).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()));
    let answer = server.upload(&token, &id, "..%2F..%2Fetc%2FD%C3%BCse%0D%0A.html", "image/png", &photo).await;
    let file = answer.json();
    assert_eq!((answer.status, &file["name"]), (201, &json!("Düse.html.png")), "{file}");
    assert_eq!((&file["media_type"], &file["size"]), (&json!("image/png"), &json!(photo.len())));
    assert_eq!(
        rows(&server.store, "SELECT count(*), max(length(bytes)) FROM ticket_attachment_parts").await,
        "4 262144"
    );

    let again = server.upload(&token, &id, "other.png", "application/octet-stream", &photo).await;
    assert_eq!((again.status, &again.json()["id"]), (200, &file["id"]), "the same content is there once");
    let keyed = [("content-type", "image/png"), ("idempotency-key", "k")];
    let path = format!("/api/v1/tickets/{id}/attachments?name=x.png");
    assert_eq!(server.send("POST", &path, &token, &keyed, photo.clone()).await.status, 200, "a key does no harm");

    let path = format!("/api/v1/tickets/{id}/attachments/{}", file["id"].as_str().unwrap());
    let back = server.send("GET", &path, &token, &[], Vec::new()).await;
    assert_eq!((back.status, back.body == photo), (200, true));
    for (name, value) in [
        ("content-type", "image/png"),
        ("content-disposition", "attachment; filename=\"D_se.html.png\"; filename*=UTF-8''D%C3%BCse.html.png"),
        ("content-security-policy", "sandbox; default-src 'none'; frame-ancestors 'none'"),
        ("x-content-type-options", "nosniff"),
        ("cache-control", "no-store"),
    ] {
        assert_eq!(back.header(name), value, "{name}");
    }
    assert_eq!(back.header("content-length"), photo.len().to_string());
    let text = server.upload(&token, &id, "log", "", "Düse: 3 °C\n".as_bytes()).await.json();
    assert_eq!((&text["name"], &text["media_type"]), (&json!("log.txt"), &json!("text/plain")), "{text}");
    let shown = server.get(&format!("/api/v1/tickets/{id}"), &token).await;
    assert_eq!((&shown["attachments"], &shown["files"][1]["id"]), (&json!(2), &text["id"]));

    // Not through another ticket, and not by a stranger.
    let other = server.ticket(&token, json!({"site": "00000000-0000-7000-8000-000000000002", "title": "u"})).await;
    let path = format!("/api/v1/tickets/{other}/attachments/{}", file["id"].as_str().unwrap());
    assert_eq!(server.send("GET", &path, &token, &[], Vec::new()).await.status, 404);
    let foreign = server.organisation("foreign").await;
    let stranger = server.user_at(foreign, &[(None, Role::Admin)]).await;
    let path = format!("/api/v1/tickets/{id}/attachments/{}", file["id"].as_str().unwrap());
    assert!(matches!(server.send("GET", &path, &stranger, &[], Vec::new()).await.status, 403 | 404));

    let supervisor = server.user(Role::Supervisor).await;
    let colleague = server.user(Role::Operator).await;
    let delete = async |path: &str, token: &str| server.send("DELETE", path, token, &[], Vec::new()).await.status;
    assert_eq!(delete(&path, &colleague).await, 403, "another's");
    assert_eq!(delete(&path, &supervisor).await, 204);
    let own = server.upload(&token, &id, "mine.txt", "", b"mine").await.json()["id"].as_str().unwrap().to_owned();
    assert_eq!(delete(&format!("/api/v1/tickets/{id}/attachments/{own}"), &token).await, 204);
    assert_eq!(server.send("GET", &path, &token, &[], Vec::new()).await.status, 404);
    assert_eq!(count(&server.store, "SELECT count(*) FROM ticket_attachment_parts").await, 1, "its bytes are gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_taken_leaves_nothing_behind() {
    let server = Server::start().await;
    let (token, id) = ticket(&server).await;
    for (kind, content, status, code) in [
        ("image/png", &b"<html><script>alert(1)</script>"[..], 415, "unsupported_media_type"),
        (
            "image/svg+xml",
            b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>",
            415,
            "unsupported_media_type",
        ),
        ("text/html", b"<p>", 415, "unsupported_media_type"),
        ("text/html", b"hello", 415, "unsupported_media_type"),
        ("application/zip", b"PK\x03\x04\x14\0\0\0\x08\0", 415, "unsupported_media_type"),
        ("image/png", b"PK\x03\x04\x14\0\0\0\x08\0", 415, "unsupported_media_type"),
        ("image/jpeg", PNG, 415, "unsupported_media_type"),
        ("text/plain", b"a\0b", 415, "unsupported_media_type"),
        ("image/png", b"", 422, "empty_file"),
    ] {
        let answer = server.upload(&token, &id, "x.png", kind, content).await;
        assert_eq!((answer.status, &answer.json()["code"]), (status, &json!(code)), "{kind}");
        assert_eq!(answer.header("content-type"), "application/problem+json");
    }
    let long = "x".repeat(256);
    for name in ["", long.as_str()] {
        let answer = server.upload(&token, &id, name, "image/png", PNG).await;
        assert_eq!((answer.status, &answer.json()["code"]), (422, &json!("invalid_parameters")), "{name}");
    }
    let nameless = format!("/api/v1/tickets/{id}/attachments");
    assert_eq!(server.send("POST", &nameless, &token, &[], PNG.to_vec()).await.status, 422);
    // The limit of this server: a megabyte, to the byte, however it comes.
    let mut large = PNG.to_vec();
    large.resize(1_000_001, b'x');
    let answer = server.upload(&token, &id, "x.png", "image/png", &large).await;
    assert_eq!((answer.status, &answer.json()["code"]), (413, &json!("payload_too_large")));
    assert_eq!(count(&server.store, "SELECT count(*) FROM ticket_attachments").await, 0);
    large.truncate(1_000_000);
    assert_eq!(server.upload(&token, &id, "x.png", "image/png", &large).await.status, 201);
    for (n, status) in [(1, 201), (2, 201), (3, 409)] {
        let answer = server.upload(&token, &id, "x.txt", "text/plain", format!("file {n}").as_bytes()).await;
        assert_eq!(answer.status, status, "{n}");
        if status == 409 {
            assert_eq!(answer.json()["code"], "too_many_attachments");
        }
    }
    let viewer = server.user(Role::Viewer).await;
    assert_eq!(server.upload(&viewer, &id, "x.png", "image/png", PNG).await.status, 403);
}
