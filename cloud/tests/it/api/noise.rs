//! Noise for every route of the table, made from what the document says of it: a new route is covered by itself.
//!
//! Whatever is sent, there is an answer below 500, an error is a problem, and none tells what is inside.

use std::collections::BTreeSet;

use axum::http::Method;
use futures_util::{StreamExt as _, stream};
use gemba_cloud::{
    api::{BODY_BYTES_MAX, access::ROUTES, tickets::files::UPLOAD},
    users::Role,
};
use serde_json::{Value, json};
use uuid::Uuid;

use super::lost_updates::World;

/// Words of what is inside; none stands in a request of these tests.
const INSIDE: &[&str] = &[
    "postgres",
    "syntax error at",
    "violates",
    "duplicate key value",
    "db error",
    "deadpool",
    "panicked",
    "backtrace",
    ".rs:",
    "tokio",
    "hyper",
    "gemba_app",
    "permission denied for",
];
/// Requests of one route at a time.
const AT_A_TIME: usize = 4;

/// What somebody may put where a text or a number should be.
fn values() -> Vec<Value> {
    let mut values = vec![
        json!(null),
        json!(true),
        json!(-1),
        json!(1e300),
        json!(u64::MAX),
        json!([]),
        json!({}),
        json!([[{"a": [null]}]]),
        json!("x".repeat(BODY_BYTES_MAX - 4_096)),
        json!("9999-12-31T23:59:59Z"),
        json!("-009999-01-01T00:00:00Z"),
    ];
    let texts = [
        "",
        "'; DROP TABLE users; --",
        "{{7*7}}${7*7}<%= 7*7 %>",
        "${jndi:ldap://127.0.0.1/x}",
        "<script>alert(1)</script>",
        "../../../../etc/passwd",
        "a\u{0}b",
        "\u{202e}%s%n\u{fffd}",
        "00000000-0000-0000-0000-000000000000",
    ];
    values.extend(texts.map(|text| json!(text)));
    values
}

/// The same for a path or a parameter, percent-encoded.
const IN_URLS: &[&str] = &[
    "",
    "'%20OR%20'1'='1",
    "1;DROP%20TABLE%20users",
    "%7B%7B7*7%7D%7D%24%7B7*7%7D",
    "%00",
    "%ff%fe",
    "%F0%9F%92%A9",
    "-1",
    "99999999999999999999999999",
    "1e308",
    "NaN",
    "null",
    "..%2f..%2fetc%2fpasswd",
    "00000000-0000-0000-0000-000000000000",
    "-009999-01-01T00:00:00Z",
    // Cursors of other lists, and of none: {"a":1}, a time that is none with an id, a text with a zero, a list of lists.
    "eyJhIjoxfQ",
    "WyItMDA5OTk5LTAxLTAxVDAwOjAwOjAwWiIsIjAwMDAwMDAwLTAwMDAtMDAwMC0wMDAwLTAwMDAwMDAwMDAwMCJd",
    "WyJhXHUwMDAwYiIsIjAwMDAwMDAwLTAwMDAtMDAwMC0wMDAwLTAwMDAwMDAwMDAwMCJd",
    "W1tdLFtdXQ",
];

/// Bodies that are no JSON, or such as no program writes.
fn raw_bodies(field: &str) -> Vec<(&'static str, Vec<u8>)> {
    let json = "application/json";
    let mut bodies = vec![
        (json, Vec::new()),
        (json, b"{".to_vec()),
        (json, b"7".to_vec()),
        (json, b"[]".to_vec()),
        (json, b"null".to_vec()),
        (json, b"\xff\xfe".to_vec()),
        (json, b"\xef\xbb\xbf{}".to_vec()),
        (json, b"{}\0".to_vec()),
        (json, b"{\"__proto__\": {\"a\": 1}}".to_vec()),
        ("text/plain", b"{}".to_vec()),
        ("multipart/form-data; boundary=x", b"--x--".to_vec()),
        ("application/xml", b"<!DOCTYPE a [<!ENTITY b SYSTEM 'file:///etc/passwd'>]><a>&b;</a>".to_vec()),
        (json, format!("{}{}", "[".repeat(20_000), "]".repeat(20_000)).into_bytes()),
        (json, vec![b' '; BODY_BYTES_MAX + 1]),
    ];
    let mut of_field = |text: String| bodies.push((json, text.into_bytes()));
    of_field(format!("{}1{}", format!("{{\"{field}\":").repeat(2_000), "}".repeat(2_000)));
    of_field(format!("{{\"{field}\": {}{}}}", "[".repeat(10_000), "]".repeat(10_000)));
    of_field(format!("{{\"{field}\": 1, \"{field}\": 2}}"));
    of_field(format!("{{\"{field}\": 1e999}}"));
    of_field(format!("{{\"{field}\": \"\\ud800\"}}"));
    bodies.push((json, [b"{\"", field.as_bytes(), b"\": \"\xff\"}"].concat()));
    bodies
}

/// What the document says of a schema, without `$ref`, and one of several.
fn resolved<'a>(document: &'a Value, mut schema: &'a Value) -> &'a Value {
    loop {
        if let Some(to) = schema["$ref"].as_str() {
            schema = document.pointer(to.trim_start_matches('#')).expect("a reference leads somewhere");
        } else if let Some(of) = ["oneOf", "anyOf", "allOf"].iter().find_map(|key| schema[key].as_array()) {
            schema = of.iter().find(|one| one["type"] != "null").expect("not nothing alone");
        } else {
            return schema;
        }
    }
}

/// Something that the schema takes, as far as that is easily said.
fn plausible(document: &Value, schema: &Value) -> Value {
    let schema = resolved(document, schema);
    if let Some(one) = schema.get("example").or_else(|| schema["enum"].get(0)).or_else(|| schema.get("const")) {
        return one.clone();
    }
    let kind = match &schema["type"] {
        Value::Array(kinds) => kinds.iter().find(|kind| *kind != "null").unwrap_or(&Value::Null).clone(),
        kind => kind.clone(),
    };
    match kind.as_str() {
        Some("object") => {
            let properties = schema["properties"].as_object().cloned().unwrap_or_default();
            Value::Object(properties.iter().map(|(name, of)| (name.clone(), plausible(document, of))).collect())
        }
        Some("array") => json!([plausible(document, &schema["items"])]),
        Some("integer" | "number") => schema.get("minimum").cloned().unwrap_or(json!(1)),
        Some("boolean") => json!(true),
        _ => match schema["format"].as_str() {
            Some("uuid") => json!(Uuid::nil()),
            Some("date-time") => json!("2026-01-01T00:00:00Z"),
            Some("date") => json!("2026-01-01"),
            _ => json!("x"),
        },
    }
}

/// Every place of a body: of lists and objects in it as well.
fn places(body: &Value, at: &str, into: &mut Vec<String>) {
    match body {
        Value::Object(map) => {
            for (key, value) in map {
                let at = format!("{at}/{key}");
                into.push(at.clone());
                places(value, &at, into);
            }
        }
        Value::Array(list) => {
            for (i, value) in list.iter().enumerate() {
                let at = format!("{at}/{i}");
                into.push(at.clone());
                places(value, &at, into);
            }
        }
        _ => {}
    }
}

struct Sent {
    what: String,
    method: Method,
    path: String,
    kind: &'static str,
    body: Vec<u8>,
}

/// Sends all of it; the statuses in their order.
async fn send(world: &World, token: &str, all: Vec<Sent>) -> Vec<u16> {
    let ask = |sent: Sent| async move {
        let (status, text) = world.server.bytes(&sent, token).await;
        let what =
            format!("{} {} ({})\n{}", sent.method, sent.path, sent.what, &text[..text.floor_char_boundary(2_000)]);
        assert!((200..500).contains(&status), "{status}: {what}");
        if status >= 400 {
            assert!(text.contains("application/problem+json") || sent.method == Method::HEAD, "no problem: {what}");
        }
        let lower = text.to_lowercase();
        for word in INSIDE {
            assert!(!lower.contains(word), "tells {word:?}: {what}");
        }
        status
    };
    stream::iter(all).map(ask).buffered(AT_A_TIME).collect().await
}

impl super::Server {
    async fn bytes(&self, sent: &Sent, token: &str) -> (u16, String) {
        let Sent { method, path, kind, body, .. } = sent;
        let mut request = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Bearer {token}\r\n\
             content-type: {kind}\r\ncontent-length: {}\r\n\r\n",
            body.len()
        )
        .into_bytes();
        request.extend_from_slice(body);
        self.raw(&request).await
    }
}

fn as_json(what: String, method: &Method, path: &str, body: &Value) -> Sent {
    let body = body.to_string().into_bytes();
    Sent { what, method: method.clone(), path: path.to_owned(), kind: "application/json", body }
}

#[tokio::test(flavor = "multi_thread")]
async fn noise_in_every_body() {
    let mut world = World::new().await;
    let document = world.server.get("/api/v1/openapi.json", &world.token).await;
    let (mut bodies, mut sent) = (0, 0);
    for (n, (method, route, _)) in ROUTES.iter().enumerate() {
        if *method == Method::GET || *route == UPLOAD {
            continue;
        }
        // Somebody of their own: logging out is among it.
        let token = world.server.user(Role::Admin).await;
        world.again(1_000 + n).await;
        let path = world.path(method, route);
        let schema = &document["paths"][route][method.as_str().to_lowercase()]["requestBody"]["content"]["application/json"]
            ["schema"];
        let good = if schema.is_null() { json!({}) } else { plausible(&document, schema) };
        // Alone: it may take away what the others ask for.
        let first = vec![as_json("as documented".into(), method, &path, &good)];
        let first = send(&world, &token, first).await[0];
        assert!(!matches!(first, 404 | 405) || is_elsewhere(route), "{method} {route} was not reached: {first}");
        let (mut all, mut at) = (Vec::new(), Vec::new());
        places(&good, "", &mut at);
        for at in &at {
            for value in values() {
                let mut body = good.clone();
                *body.pointer_mut(at).expect("it is there") = value.clone();
                let shown = value.to_string();
                let what = format!("{at} = {}", &shown[..shown.floor_char_boundary(60)]);
                all.push(as_json(what, method, &path, &body));
            }
        }
        let field = good.as_object().and_then(|map| map.keys().next()).map_or("a", String::as_str);
        let raw = |(kind, body): (&'static str, Vec<u8>)| {
            let what = format!("{kind} {}", String::from_utf8_lossy(&body[..body.len().min(60)]));
            Sent { what, method: method.clone(), path: path.clone(), kind, body }
        };
        all.extend(raw_bodies(field).into_iter().map(raw));
        bodies += usize::from(!schema.is_null());
        sent += all.len();
        send(&world, &token, all).await;
    }
    assert!(bodies >= 50 && sent > 5_000, "{bodies} {sent}");
    world.server.get("/api/v1/me", &world.token).await;
}

/// Routes whose object the world has not, or that another router serves.
fn is_elsewhere(route: &str) -> bool {
    ["/api/v1/sessions/{id}", "/api/v1/api-keys/{id}", "/api/v1/enroll"].contains(&route)
}

#[tokio::test(flavor = "multi_thread")]
async fn noise_in_every_path_and_parameter() {
    let mut world = World::new().await;
    world.again(1).await;
    let document = world.server.get("/api/v1/openapi.json", &world.token).await;
    let mut names = BTreeSet::new();
    for (method, route, _) in ROUTES {
        let token = world.server.user(Role::Admin).await;
        let path = world.path(method, route);
        let mut paths = Vec::new();
        let parameters = document["paths"][route][method.as_str().to_lowercase()]["parameters"].as_array();
        for parameter in parameters.into_iter().flatten().filter(|parameter| parameter["in"] == "query") {
            let name = parameter["name"].as_str().unwrap();
            names.insert(name.to_owned());
            paths.extend(IN_URLS.iter().map(|value| format!("{path}?{name}={value}")));
            paths.push(format!("{path}?{name}=1&{name}=2"));
        }
        // Each part of the path that is the caller's own word.
        let parts: Vec<&str> = route.split('/').collect();
        for (i, _) in parts.iter().enumerate().filter(|(_, part)| part.starts_with('{')) {
            for value in IN_URLS.iter().filter(|value| !value.is_empty()) {
                let mut parts: Vec<&str> = path.split('/').collect();
                parts[i] = value;
                paths.push(parts.join("/"));
            }
        }
        let sent = |path: String| as_json("in the URL".into(), method, &path, &json!({}));
        send(&world, &token, paths.into_iter().map(sent).collect()).await;
    }
    assert!(names.len() >= 30, "{names:?}");
    world.server.get("/api/v1/me", &world.token).await;
}

/// Names that lead elsewhere.
#[tokio::test(flavor = "multi_thread")]
async fn noise_as_files_of_tickets() {
    let mut world = World::new().await;
    world.again(1).await;
    let path = world.path(&Method::POST, UPLOAD);
    let token = world.token.clone();
    let names = [
        "..%2F..%2F..%2Fetc%2Fpasswd",
        "%2Fetc%2Fpasswd",
        "..%5C..%5Cwindows%5Cwin.ini",
        "C%3A%5Cx",
        "a%00.txt",
        "%E2%80%AEtxt.exe",
        "....%2F%2F",
        ".",
        "..",
        "%20",
        ".htaccess",
        "con",
        "%FF",
        "a%0D%0Ax-evil%3A%201",
        "%22%3B%20filename%3D%22x.exe",
    ];
    let mut kept = BTreeSet::new();
    for (n, name) in names.iter().enumerate() {
        world.server.sql("DELETE FROM ticket_attachments").await;
        let sent = Sent {
            what: (*name).to_owned(),
            method: Method::POST,
            path: format!("{path}?name={name}"),
            kind: "text/plain",
            body: format!("file {n}").into_bytes(),
        };
        let (status, text) = world.server.bytes(&sent, &token).await;
        assert!(matches!(status, 201 | 400 | 422), "{name}: {text}");
        if status == 201 {
            let body: Value = serde_json::from_str(text.rsplit("\r\n\r\n").next().unwrap()).unwrap();
            kept.insert(body["name"].as_str().unwrap().to_owned());
            // As a client is told to save it.
            let file = format!("{path}/{}", body["id"].as_str().unwrap());
            let get =
                Sent { what: "read".into(), method: Method::GET, path: file, kind: "text/plain", body: Vec::new() };
            let (status, text) = world.server.bytes(&get, &token).await;
            assert!(status == 200 && !text.to_lowercase().contains("\r\nx-evil:"), "{text}");
        }
    }
    assert!(kept.len() > 5, "{kept:?}");
    for name in &kept {
        let bad = |c: char| c.is_control() || matches!(c, '/' | '\\' | '"' | '\u{202e}');
        assert!(
            !name.chars().any(bad)
                && !name.starts_with('.')
                && std::path::Path::new(name).extension().is_some_and(|end| end == "txt"),
            "{name:?}"
        );
    }
}

/// Archives are not taken, whatever they say they are, and nothing is unpacked; nor is anything else than it says.
#[tokio::test(flavor = "multi_thread")]
async fn noise_in_files_of_tickets() {
    let mut world = World::new().await;
    world.again(1).await;
    let path = world.path(&Method::POST, UPLOAD);
    let zip = [b"PK\x03\x04\x14\0\0\0\x08\0".as_slice(), &[0; 500]].concat();
    let gzip = [b"\x1f\x8b\x08\0\0\0\0\0\0\x03".as_slice(), &[0xff; 500]].concat();
    let before = crate::plant::count(&world.server.store, "SELECT count(*) FROM ticket_attachments").await;
    let mut all = Vec::new();
    for content in [&zip, &gzip] {
        for kind in [
            "application/zip",
            "application/gzip",
            "application/octet-stream",
            "text/plain",
            "image/png",
            "application/pdf",
            "x",
        ] {
            let path = format!("{path}?name=x.zip");
            all.push(Sent { what: kind.to_owned(), method: Method::POST, path, kind, body: content.clone() });
        }
    }
    for (kind, content) in [
        ("text/html", b"<script>alert(1)</script>".as_slice()),
        ("image/svg+xml", b"<svg onload='alert(1)'/>"),
        ("image/png", b"GIF89a"),
        ("application/pdf", b"\x89PNG\r\n\x1a\n"),
        ("text/csv", b"\xff\xfe\0"),
        ("text/plain", b"MZ\x90\0"),
        ("image/jpeg", b"#!/bin/sh"),
    ] {
        let path = format!("{path}?name=x.png");
        all.push(Sent { what: kind.to_owned(), method: Method::POST, path, kind, body: content.to_vec() });
    }
    let statuses = send(&world, &world.token, all).await;
    assert!(statuses.iter().all(|status| *status == 415), "{statuses:?}");
    assert_eq!(crate::plant::count(&world.server.store, "SELECT count(*) FROM ticket_attachments").await, before);
}
