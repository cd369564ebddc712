//! How a daemon stops, and what it says of itself.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
    time::{Instant, timeout},
};

use super::{Api, DEADLINE, Edge, configure, until};
use crate::{
    daemon::Daemon,
    database,
    plant::{ago, catalog, summaries, summary},
};

/// Sends the head and half of the body of a request, and the rest when it is told to.
async fn slow_request(api: &Api, go_on: tokio::sync::oneshot::Receiver<()>) -> String {
    let body = json!({"name": "Late"}).to_string();
    let mut socket = TcpStream::connect(api.address).await.unwrap();
    let head = format!(
        "POST /api/v1/sites HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n",
        api.address,
        api.token,
        body.len()
    );
    let (first, rest) = body.split_at(5);
    socket.write_all((head + first).as_bytes()).await.unwrap();
    go_on.await.unwrap();
    socket.write_all(rest.as_bytes()).await.unwrap();
    let mut answer = String::new();
    // Until the server closes, though the client did not ask it to.
    timeout(DEADLINE, socket.read_to_string(&mut answer)).await.expect("an answer").unwrap();
    answer
}

/// Nobody listens any more.
async fn refuses(address: SocketAddr) -> bool {
    TcpStream::connect(address).await.is_err()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_is_told_to_stop_ends_what_it_began() {
    let directory = tempfile::tempdir().unwrap();
    let config = configure(directory.path(), "a", &database::empty().await, "requests_per_s = 10000\n");
    let mut daemon = Daemon::start(&config);
    let address = daemon.http;
    let api = Api::user(&config, address, "ada", "admin").await;
    let mut live = api.listen().await;
    let mut edge = Edge::enrol(&config, &daemon, "hall").await;
    edge.deliver(vec![summaries(1, vec![catalog("m", 1, &["a"]), summary("m", ago(10), &[1.0])])]).await;

    let (stopped, quit) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let mut asking = JoinSet::new();
    for _ in 0..8 {
        let (api, stopped, quit) = (api.clone(), Arc::clone(&stopped), Arc::clone(&quit));
        asking.spawn(async move {
            let mut answered = 0;
            while !quit.load(Ordering::Relaxed) {
                match api.call("GET", "/api/v1/machines", None, &[]).await {
                    Ok(answer) => {
                        assert_eq!(answer.status, 200, "{}", answer.body);
                        answered += 1;
                    }
                    // Who is refused is told so at once, by a port that is closed.
                    Err(error) if stopped.load(Ordering::Relaxed) => {
                        assert!(!error.to_string().contains("timeout"), "{error}");
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    }
                    Err(error) => panic!("before it was told to stop: {error}"),
                }
            }
            answered
        });
    }
    let (go_on, wait) = tokio::sync::oneshot::channel();
    let slow = tokio::spawn({
        let api = api.clone();
        async move { slow_request(&api, wait).await }
    });
    tokio::time::sleep(Duration::from_millis(500)).await;

    stopped.store(true, Ordering::Relaxed);
    let begun = Instant::now();
    daemon.terminate();
    until("new ones are refused", async || refuses(address).await).await;
    assert!(daemon.ended().is_none(), "it waits for what is under way");
    go_on.send(()).unwrap();
    let answer = slow.await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 201 "), "{answer}");
    let end = loop {
        match live.next().await {
            Ok(_) => {}
            Err(code) => break code,
        }
    };
    assert_eq!(end, 1_001, "going away");
    let mut ended = None;
    until("it ends", async || {
        ended = ended.or(daemon.ended());
        ended.is_some()
    })
    .await;
    assert_eq!(ended, Some(true));
    println!("it took {:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(15));
    quit.store(true, Ordering::Relaxed);
    let mut answered = 0;
    while let Some(asked) = asking.join_next().await {
        answered += asked.unwrap();
    }
    assert!(answered > 8, "{answered}");
    let log = daemon.log();
    assert!(log.iter().all(|line| line.contains("\"level\":\"INFO\"")), "{log:#?}");

    // What it answered with 201 is there.
    let daemon = Daemon::start(&config);
    let sites = api.at(daemon.http).get("/api/v1/sites").await;
    assert!(sites["items"].as_array().unwrap().iter().any(|site| site["name"] == "Late"), "{sites}");
    daemon.stop();
}

/// A figure of the page: the sum over its labels that contain these.
fn figure(page: &str, name: &str, labels: &[&str]) -> Option<f64> {
    let of = |line: &str| {
        let (key, value) = line.rsplit_once(' ')?;
        let (known, rest) = key.split_once('{').unwrap_or((key, ""));
        (known == format!("gemba_cloud_{name}") && labels.iter().all(|label| rest.contains(label)))
            .then(|| value.parse::<f64>().unwrap())
    };
    page.lines().filter_map(of).reduce(|a, b| a + b)
}

#[tokio::test(flavor = "multi_thread")]
async fn figures_move_and_the_log_has_the_ids_of_requests() {
    let directory = tempfile::tempdir().unwrap();
    let config = configure(directory.path(), "a", &database::empty().await, "");
    let daemon = Daemon::start_with(&config, &[("RUST_LOG", "gemba_cloud=debug")]);
    let api = Api::user(&config, daemon.http, "ada", "admin").await;
    let page = async || api.get("/metrics").await.as_str().unwrap().to_owned();
    let before = page().await;
    let machines = ["method=\"GET\"", "route=\"/api/v1/machines\"", "status=\"200\""];
    assert_eq!(figure(&before, "http_requests_total", &machines), None, "{before}");
    for name in [
        "records_total",
        "summaries_total",
        "transactions_total",
        "live_clients",
        "deliveries_waiting",
        "intake_waiting",
    ] {
        assert_eq!(figure(&before, name, &[]), Some(0.0), "{name}: {before}");
    }
    for (name, is) in [
        ("database_connections_max", 10.0),
        ("database_waiting", 0.0),
        ("storing", 1.0),
        ("http_requests_under_way", 1.0),
    ] {
        assert_eq!(figure(&before, name, &[]), Some(is), "{name}");
    }
    assert!(figure(&before, "database_connections", &[]).is_some());

    for _ in 0..3 {
        api.get("/api/v1/machines").await;
    }
    let unknown = api.call("GET", &format!("/api/v1/machines/{}", uuid::Uuid::nil()), None, &[]).await.unwrap();
    let mut odd = TcpStream::connect(api.address).await.unwrap();
    odd.write_all(b"BREW /api/v1/machines HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    odd.read_to_string(&mut String::new()).await.unwrap();
    api.call("GET", "/api/v1/no-such-route", None, &[]).await.unwrap();
    let mut edge = Edge::enrol(&config, &daemon, "hall").await;
    edge.deliver(vec![summaries(1, vec![catalog("m", 1, &["a", "b"]), summary("m", ago(10), &[1.0, 2.0])])]).await;
    let live = api.listen().await;
    let after = page().await;
    for (name, labels, is) in [
        ("http_requests_total", &machines[..], 3.0),
        ("http_requests_total", &["route=\"/api/v1/machines/{id}\"", "status=\"404\""], 1.0),
        ("http_requests_total", &["method=\"other\""], 1.0),
        ("http_requests_total", &["route=\"/api/{*rest}\"", "status=\"404\""], 1.0),
        ("http_request_seconds_count", &machines[..2], 3.0),
        ("http_request_seconds_bucket", &["method=\"GET\"", "route=\"/api/v1/machines\"", "le=\"20.0\""], 3.0),
        ("records_total", &[], 2.0),
        ("summaries_total", &[], 1.0),
        ("sensor_summaries_total", &[], 2.0),
        ("live_clients", &[], 1.0),
        ("mqtt_connections", &[], 1.0),
        ("enrolments_total", &[], 1.0),
    ] {
        // Connections are counted once a second.
        let moved = async || figure(&page().await, name, labels) == Some(is);
        if figure(&after, name, labels) != Some(is) {
            until(&format!("{name} {labels:?} is {is}:\n{after}"), moved).await;
        }
    }
    assert!(figure(&after, "transactions_total", &[]) >= Some(1.0));
    drop(live);
    until("the client is gone", async || figure(&page().await, "live_clients", &[]) == Some(0.0)).await;

    let log = daemon.log();
    let entries: Vec<Value> =
        log.iter().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"))).collect();
    for entry in &entries {
        assert!(entry["timestamp"].is_string() && entry["level"].is_string() && entry["target"].is_string(), "{entry}");
        assert!(entry["fields"]["message"].is_string(), "{entry}");
    }
    let id = unknown.headers["x-request-id"].to_str().unwrap();
    let of: Vec<_> = entries.iter().filter(|entry| entry["span"]["id"] == id).collect();
    let [line] = &of[..] else { panic!("{of:#?}") };
    assert_eq!((&line["span"]["method"], &line["span"]["route"]), (&json!("GET"), &json!("/api/v1/machines/{id}")));
    assert_eq!((&line["fields"]["message"], &line["fields"]["status"]), (&json!("request"), &json!(404)));
    daemon.stop();
}
