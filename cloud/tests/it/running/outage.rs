//! A database that is restarted, and one that is killed, while a daemon is at work.

use std::{
    os::unix::fs::PermissionsExt as _,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use gemba_cloud::{
    cluster::{Cluster, Durability},
    store::Store,
};
use gemba_shared::telemetry::EventKind;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{Api, Edge, configure, until};
use crate::{
    api::Answer,
    daemon::Daemon,
    plant::{ago, anomaly, catalog, count, event, events, summaries, summary},
    receivers::{Manner, Receiver},
};

/// Longer than any request may wait for the database: a connection of the pool, and then one of the server.
const ANSWERED_WITHIN: Duration = Duration::from_secs(12);

/// What was asked, and how it was answered.
#[derive(Default)]
struct Seen {
    good: u32,
    /// What was refused as it should be, by code.
    refused: Vec<String>,
    bad: Vec<String>,
    ids: Vec<String>,
}

impl Seen {
    fn note(&mut self, what: &str, answer: Result<Answer, ureq::Error>, took: Duration) -> bool {
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                self.bad.push(format!("{what}: {error}"));
                return false;
            }
        };
        if took > ANSWERED_WITHIN {
            self.bad.push(format!("{what}: {} after {took:?}", answer.status));
        }
        if (200..300).contains(&answer.status) {
            self.good += 1;
            return true;
        }
        let header = |name: &str| answer.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let code = answer.body["code"].as_str().unwrap_or_default();
        let problem = header("content-type") == "application/problem+json" && answer.body["status"] == answer.status;
        if answer.status == 503 && problem && header("retry-after").parse::<u32>().is_ok() && !code.is_empty() {
            self.refused.push(code.to_owned());
            self.ids.push(header("x-request-id").to_owned());
        } else {
            self.bad.push(format!("{what}: {} {}", answer.status, answer.body));
        }
        false
    }
}

/// Asks until it is told to stop; what was refused of what changes something is asked again, with the same key.
fn load(asking: &mut JoinSet<()>, api: &Api, machine: &str, seen: &Arc<Mutex<Seen>>, stop: &Arc<AtomicBool>) {
    let reads = [
        "/api/v1/machines".to_owned(),
        format!("/api/v1/machines/{machine}"),
        "/api/v1/alarms".to_owned(),
        format!(
            "/api/v1/machines/{machine}/series?from={}",
            gemba_cloud::clock::now() - jiff::SignedDuration::from_hours(1)
        ),
        "/api/v1/energy".to_owned(),
        "/readyz".to_owned(),
    ];
    for path in reads {
        let (api, seen, stop) = (api.clone(), Arc::clone(seen), Arc::clone(stop));
        asking.spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let begun = Instant::now();
                let answer = api.call("GET", &path, None, &[]).await;
                seen.lock().unwrap().note(&path, answer, begun.elapsed());
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
    }
    let (api, seen, stop) = (api.clone(), Arc::clone(seen), Arc::clone(stop));
    asking.spawn(async move {
        for n in 0.. {
            let (name, key) = (format!("site {n}"), format!("key-{n}"));
            loop {
                let begun = Instant::now();
                let header = [("idempotency-key", key.as_str())];
                let answer = api.call("POST", "/api/v1/sites", Some(json!({"name": name})), &header).await;
                // The connection died with the commit under way, or its outcome could not be noted.
                let known = |code: &Value| *code == "outcome_unknown" || *code == "request_under_way";
                if answer.as_ref().is_ok_and(|answer| answer.status == 409 && known(&answer.body["code"])) {
                    break;
                }
                if seen.lock().unwrap().note("POST /api/v1/sites", answer, begun.elapsed()) {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            if stop.load(Ordering::Relaxed) {
                return;
            }
        }
    });
}

async fn good(seen: &Arc<Mutex<Seen>>) -> u32 {
    tokio::task::yield_now().await;
    seen.lock().unwrap().good
}

#[tokio::test(flavor = "multi_thread")]
#[allow(clippy::too_many_lines, reason = "one story, from before the outage to after it")]
async fn a_database_that_goes_away_under_load_is_missed_for_a_moment() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
    let cluster = Arc::new(Cluster::start(&directory.path().join("pg"), Durability::Synced).await.unwrap());
    let cancel = CancellationToken::new();
    let kept = tokio::spawn({
        let (cluster, cancel) = (Arc::clone(&cluster), cancel.clone());
        async move { cluster.keep_running(&cancel).await }
    });
    let config = configure(directory.path(), "a", &cluster.config(), "requests_per_s = 10000\n");
    let daemon = Daemon::start(&config);
    let admin = Api::user(&config, daemon.http, "ada", "admin").await;
    let hook = Receiver::start(Manner::Answer(200)).await;
    admin.send("POST", "/api/v1/webhooks", json!({"name": "x", "url": hook.url()})).await;
    let mut edge = Edge::enrol(&config, &daemon, "hall").await;
    edge.deliver(vec![summaries(1, vec![catalog("m", 1, &["a"])])]).await;
    let machine = admin.get("/api/v1/machines").await["items"][0]["id"].as_str().unwrap().to_owned();
    let mut live = admin.listen().await;

    let (seen, stop) = (Arc::new(Mutex::new(Seen::default())), Arc::new(AtomicBool::new(false)));
    let mut asking = JoinSet::new();
    load(&mut asking, &admin, &machine, &seen, &stop);
    let delivering = tokio::spawn({
        let stop = Arc::clone(&stop);
        async move {
            let mut next = 2;
            while !stop.load(Ordering::Relaxed) {
                let batch = |first: i64| {
                    let at = |k: i64| ago(80_000 - 10 * (first + k));
                    summaries(first as u64, (0..5).map(|k| summary("m", at(k), &[k as f64])).collect())
                };
                edge.deliver((0..10).map(|i| batch(next + 5 * i)).collect()).await;
                next += 50;
            }
            (edge, next)
        }
    });

    // Once in an orderly way, as an upgrade of it does, and once not.
    for signal in [Signal::SIGINT, Signal::SIGKILL] {
        let (before, refused) = (good(&seen).await, seen.lock().unwrap().refused.len());
        until("requests are served", async || good(&seen).await > before + 100).await;
        kill(Pid::from_raw(cluster.server_pid().expect("it runs")), signal).unwrap();
        until("it is missed", async || seen.lock().unwrap().refused.len() > refused + 5).await;
        until("all is well again", async || {
            admin.call("GET", "/readyz", None, &[]).await.is_ok_and(|answer| answer.status == 200)
        })
        .await;
        live.find(|told| told["type"] == "resync").await;
    }
    let after = good(&seen).await;
    until("requests are served", async || good(&seen).await > after + 100).await;
    stop.store(true, Ordering::Relaxed);
    while let Some(asked) = asking.join_next().await {
        asked.unwrap();
    }
    let (mut edge, next) = delivering.await.unwrap();

    let Seen { good, refused, bad, ids } = std::mem::take(&mut *seen.lock().unwrap());
    println!("{good} answered, {} refused, {} records", refused.len(), next - 1);
    assert!(bad.is_empty(), "{bad:#?}");
    assert!(
        refused.iter().any(|code| code == "database_unavailable") && refused.iter().any(|code| code == "not_ready")
    );
    assert!(refused.iter().all(|code| ["database_unavailable", "not_ready"].contains(&code.as_str())), "{refused:?}");

    // Everything that was delivered is there, once.
    let store = Store::new(cluster.config(), 4).unwrap();
    let stored = next - 2;
    assert_eq!(count(&store, "SELECT count(*) FROM summaries").await, stored);
    assert_eq!(count(&store, "SELECT through FROM lanes").await, stored + 1);
    for table in ["rollup_hours", "rollup_days"] {
        assert_eq!(count(&store, &format!("SELECT sum(intervals) FROM {table}")).await, stored, "{table}");
    }

    // The jobs go on, and so does the stream that was open all the time.
    let opened = ago(3);
    let open = EventKind::AnomalyOpened(anomaly(opened, 9.5, &[1.0]));
    edge.deliver(vec![events(1, vec![event("m", opened, open)])]).await;
    live.find(|told| told["type"] == "alarm").await;
    live.find(|told| told["type"] == "incident").await;
    until("somebody is told", async || hook.calls().len() == 1).await;

    let log = daemon.log();
    let entries: Vec<Value> =
        log.iter().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"))).collect();
    let grave: Vec<_> = entries.iter().filter(|entry| entry["level"] == "ERROR").collect();
    assert!(grave.is_empty(), "{grave:#?}");
    let told = |id: &str| entries.iter().any(|entry| entry["span"]["id"] == id);
    assert!(ids.iter().any(|id| told(id)), "who has the id of a request finds it in the log");
    daemon.stop();
    store.close();
    cancel.cancel();
    kept.await.unwrap();
    Arc::into_inner(cluster).expect("nobody else has it").stop().await.unwrap();
}
