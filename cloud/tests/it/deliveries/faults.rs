//! Receivers that misbehave, programs that die, and two at once.

use std::{collections::BTreeSet, os::unix::fs::PermissionsExt as _, sync::Arc, time::Duration};

use gemba_cloud::{
    cluster::{Cluster, Durability},
    deliver,
    notifications::Channel,
    store::{Store, deliveries},
    users::Role,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{DEADLINE, Desk, SITE, email::plain};
use crate::{
    api::Server,
    daemon::Daemon,
    database,
    receivers::{Manner, Receiver, closing},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_call_is_made_again_with_the_same_id() {
    let desk = Desk::new().await;
    let receiver = Receiver::start(Manner::Answer(500)).await;
    desk.webhook(&receiver.url()).await;
    let _deliver = desk.deliver(None);
    desk.notice(Role::Operator, "high").await;
    let failed = &desk.wait("failed", 1).await[0];
    assert_eq!((&failed["status"], &failed["attempts"]), (&json!(500), &json!(1)));
    assert_eq!(failed["last_error"], "500 Internal Server Error: said  so");
    let (last, next): (jiff::Timestamp, jiff::Timestamp) = (
        failed["last_attempt_at"].as_str().unwrap().parse().unwrap(),
        failed["next_attempt_at"].as_str().unwrap().parse().unwrap(),
    );
    let pause = next.duration_since(last).as_secs_f64();
    assert!((3.7..7.0).contains(&pause), "{pause} s");
    receiver.behave(Manner::Answer(200));
    desk.later().await;
    desk.wait("sent", 1).await;
    let calls = receiver.calls();
    assert_eq!(calls.len(), 2);
    assert_eq!(calls[0].header("webhook-id"), calls[1].header("webhook-id"));
    assert_eq!(calls[0].body, calls[1].body);
    let page = desk.metrics.page();
    assert!(page.contains(r#"deliveries_total{channel="webhook",outcome="sent"} 1"#), "{page}");
}

#[tokio::test(flavor = "multi_thread")]
async fn receivers_that_misbehave() {
    let desk = Desk::new().await;
    let elsewhere = Receiver::start(Manner::Redirect).await;
    let flood = Receiver::start(Manner::Flood).await;
    let stall = Receiver::start(Manner::Stall).await;
    let busy = Receiver::start(Manner::RetryAfter(600)).await;
    let gone = Receiver::start(Manner::Answer(410)).await;
    let closed = closing().await;
    let nobody = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    let mut hooks = Vec::new();
    for (url, state, words) in [
        (elsewhere.url(), "failed", "307 Temporary Redirect: redirects are not followed"),
        (flood.url(), "failed", "500 Internal Server Error: xxx"),
        (stall.url(), "failed", "no answer within 15 s"),
        (busy.url(), "failed", "503 Service Unavailable"),
        (gone.url(), "dead", "410 Gone"),
        (format!("http://{closed}/"), "failed", "no answer"),
        (format!("http://{nobody}/"), "failed", "no connection"),
        // A plain server in place of one with TLS, and a name that there is not.
        (format!("https://{}/", busy.address), "failed", "no connection"),
        ("http://nowhere.invalid/".to_owned(), "failed", "the host was not found"),
    ] {
        hooks.push((desk.webhook(&url).await.0, url, state, words));
    }
    // What was set up under another rule, or whose name leads there since.
    for (name, url, words) in [
        ("own", "http://localhost:1/", "does not call itself"),
        ("metadata", "http://169.254.169.254/latest", "link-local"),
    ] {
        let (id, _) = desk.webhook(&format!("http://{name}.invalid/")).await;
        desk.server.sql(&format!("UPDATE webhooks SET url = '{url}' WHERE id = '{id}'")).await;
        hooks.push((id, url.to_owned(), "dead", words));
    }
    let _deliver = desk.deliver(None);
    desk.notice(Role::Operator, "high").await;
    desk.wait("dead", 3).await;
    desk.wait("failed", 8).await;
    for (hook, url, state, words) in &hooks {
        let found = &desk.deliveries(&format!("webhook={hook}")).await[0];
        let error = found["last_error"].as_str().unwrap();
        assert!(found["state"] == *state && error.contains(words), "{url}: {found:#}");
        assert!(error.chars().count() <= 500);
    }
    assert!(elsewhere.calls().iter().all(|call| call.path != "/elsewhere"));
    let busy = &desk.deliveries(&format!("webhook={}", hooks[3].0)).await[0];
    let next: jiff::Timestamp = busy["next_attempt_at"].as_str().unwrap().parse().unwrap();
    assert!(next.duration_since(gemba_cloud::clock::now()).as_secs() > 500, "it asked for a longer pause");

    // The one that is gone is off, and nobody calls it again; switched on, it is called.
    let path = format!("/api/v1/webhooks/{}", hooks[4].0);
    let webhook = desk.server.get(&path, &desk.admin).await;
    assert!(webhook["enabled"] == false && webhook["gone_at"].is_string(), "{webhook}");
    let audit = desk.server.get("/api/v1/audit?action=webhook.gone", &desk.admin).await;
    assert_eq!(audit["items"][0]["actor"], "gemba-cloud");
    let (status, refused) = desk.server.post(&format!("{path}/test"), &desk.admin, json!({})).await;
    assert_eq!((status, &refused["code"]), (409, &json!("switched_off")));
    gone.behave(Manner::Answer(200));
    let dead = desk.deliveries(&format!("webhook={}", hooks[4].0)).await[0]["id"].as_str().unwrap().to_owned();
    let on = desk.server.call("PATCH", &path, Some(&desk.admin), Some(json!({"enabled": true}))).await;
    assert!(on.body["enabled"] == true && on.body["gone_at"].is_null(), "{}", on.body);
    let (status, again) = desk.server.post(&format!("/api/v1/deliveries/{dead}/retry"), &desk.admin, json!({})).await;
    assert_eq!((status, &again["state"], &again["attempts"]), (200, &json!("waiting"), &json!(0)));
    let sent = &desk.wait("sent", 1).await[0];
    assert_eq!(sent["id"], json!(dead));
    let (status, refused) = desk.server.post(&format!("/api/v1/deliveries/{dead}/retry"), &desk.admin, json!({})).await;
    assert_eq!((status, &refused["code"]), (409, &json!("not_retryable")));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_ten_times_is_dead() {
    let desk = Desk::new().await;
    let receiver = Receiver::start(Manner::Answer(503)).await;
    desk.webhook(&receiver.url()).await;
    let _deliver = desk.deliver(None);
    desk.notice(Role::Operator, "high").await;
    let dying = async {
        while desk.deliveries("state=dead").await.is_empty() {
            desk.later().await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(DEADLINE, dying).await.expect("it is given up");
    assert_eq!(desk.deliveries("state=dead").await[0]["attempts"], 10);
    assert_eq!(receiver.calls().len(), 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_at_once_send_each_once() {
    const HOOKS: usize = 20;
    const NOTICES: usize = 8;
    let desk = Desk::new().await;
    let receiver = Receiver::start(Manner::Answer(200)).await;
    for _ in 0..HOOKS {
        desk.webhook(&receiver.url()).await;
    }
    let cancel = CancellationToken::new();
    for _ in 0..2 {
        let parts = desk.parts(desk.server.store.clone(), None);
        tokio::spawn(deliver::run(Arc::new(parts), cancel.clone()));
    }
    for _ in 0..NOTICES {
        desk.notice(Role::Operator, "high").await;
    }
    desk.wait("sent", HOOKS * NOTICES).await;
    cancel.cancel();
    let ids: Vec<String> = receiver.calls().iter().map(|call| call.header("webhook-id").to_owned()).collect();
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), HOOKS * NOTICES);
    assert_eq!(ids.len(), HOOKS * NOTICES, "some were sent twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_program_had_under_way_goes_on() {
    let desk = Desk::new().await;
    let receiver = Receiver::start(Manner::Stall).await;
    desk.webhook(&receiver.url()).await;
    let parts = desk.parts(desk.server.store.clone(), None);
    let killed = tokio::spawn(deliver::run(Arc::new(parts), CancellationToken::new()));
    desk.notice(Role::Operator, "high").await;
    desk.wait("sending", 1).await;
    let called = async {
        while receiver.calls().is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(DEADLINE, called).await.expect("it is called");
    killed.abort();
    receiver.behave(Manner::Answer(200));
    // As long as the lease lasts nobody takes it.
    let now = gemba_cloud::clock::now();
    assert!(deliveries::claim(&desk.server.store, Channel::Webhook, now, 10).await.unwrap().is_empty());
    let _deliver = desk.deliver(None);
    desk.server.sql("UPDATE deliveries SET lease_until = now() WHERE state = 'sending'").await;
    let sent = &desk.wait("sent", 1).await[0];
    assert_eq!(sent["attempts"], 2);
    let calls = receiver.calls();
    assert_eq!(calls[0].header("webhook-id"), calls[1].header("webhook-id"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_database_loses_no_delivery() {
    const NOTICES: usize = 30;
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
    let cluster = Arc::new(Cluster::start(&directory.path().join("pg"), Durability::Synced).await.unwrap());
    let cancel = CancellationToken::new();
    let kept = tokio::spawn({
        let (cluster, cancel) = (Arc::clone(&cluster), cancel.clone());
        async move { cluster.keep_running(&cancel).await }
    });
    let store = Store::new(cluster.config(), 8).unwrap();
    store.migrate().await.unwrap();
    let server = Server::ready(store.clone()).await;
    let plant = server.plant_at(SITE).await;
    let admin = server.user(Role::Admin).await;
    let desk = Desk { server, plant, admin, metrics: Arc::default() };
    let receiver = Receiver::start(Manner::Answer(200)).await;
    desk.webhook(&receiver.url()).await;
    let mut notices = BTreeSet::new();
    for _ in 0..NOTICES {
        notices.insert(desk.notice(Role::Operator, "high").await.0.to_string());
    }
    let deliver = desk.deliver(None);
    let some = async {
        while receiver.calls().len() < 5 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(DEADLINE, some).await.expect("it begins");
    kill(Pid::from_raw(cluster.server_pid().expect("it runs")), Signal::SIGKILL).unwrap();
    let all = async {
        loop {
            // One that was under way at that moment would wait for its lease.
            if let Ok(client) = store.client().await {
                client.batch_execute("UPDATE deliveries SET lease_until = now() WHERE state = 'sending'").await.ok();
                let sent = client.query_one("SELECT count(*) FROM deliveries WHERE state = 'sent'", &[]).await;
                if sent.is_ok_and(|row| row.get::<_, i64>(0) == NOTICES as i64) {
                    return;
                }
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    timeout(Duration::from_mins(1), all).await.expect("all are sent");
    let told: BTreeSet<String> = receiver
        .calls()
        .iter()
        .map(|call| serde_json::from_str::<Value>(&call.body).unwrap())
        .map(|body| body["data"]["notice_id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(told, notices);
    drop(deliver);
    store.close();
    drop(desk);
    cancel.cancel();
    kept.await.unwrap();
    Arc::into_inner(cluster).expect("nobody else has it").stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn old_deliveries_are_forgotten() {
    let desk = Desk::new().await;
    let receiver = Receiver::start(Manner::Answer(200)).await;
    desk.webhook(&receiver.url()).await;
    let deliver = desk.deliver(None);
    desk.notice(Role::Operator, "high").await;
    desk.wait("sent", 1).await;
    drop(deliver);
    desk.server.sql("UPDATE deliveries SET id = '0190a000-0000-7000-8000-000000000001' WHERE state = 'sent'").await;
    let _deliver = desk.deliver(None);
    desk.wait("sent", 0).await;
}

/// The real daemon, killed with SIGKILL while a receiver lets it wait.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_daemon_goes_on_where_it_was() {
    let config = database::config().await;
    let store = Store::new(config.clone(), 8).unwrap();
    let server = Server::ready(store.clone()).await;
    let plant = server.plant_at(SITE).await;
    let admin = server.user(Role::Admin).await;
    let desk = Desk { server, plant, admin, metrics: Arc::default() };
    let receiver = Receiver::start(Manner::Stall).await;
    desk.webhook(&receiver.url()).await;
    let (mails, _) = plain().await;
    let user = desk.person(Role::Operator, "ada@example.com").await;
    mails.answer_recipients("451 later");

    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
    let file = directory.path().join("cloud.toml");
    let text = format!(
        "data_dir = \"data\"\ndatabase_url = \"{}\"\n[http]\nlisten = \"127.0.0.1:0\"\npublic_url = \"https://gemba.example/\"\n\
         [mqtt]\nlisten = \"127.0.0.1:0\"\n[notifications.smtp]\nhost = \"127.0.0.1\"\nport = {}\ntls = \"none\"\nfrom = \"g@example.com\"\n",
        url(&config),
        mails.address.port()
    );
    std::fs::write(&file, text).unwrap();
    let (notice, _) = desk.notice(Role::Operator, "high").await;
    // The daemon has notices of its own to make of incidents that nobody was told of.
    desk.server.sql("UPDATE incidents SET paged_severity = severity").await;
    let daemon = Daemon::start(&file);
    let tried = async {
        let refused = |delivery: &Value| delivery["channel"] == "email" && delivery["last_error"] != Value::Null;
        while receiver.calls().is_empty() || !desk.deliveries("").await.iter().any(refused) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(DEADLINE, tried).await.expect("one is called and does not answer, the other refuses");
    let page =
        ureq::get(format!("http://{}/metrics", daemon.http)).call().unwrap().body_mut().read_to_string().unwrap();
    assert!(page.contains("gemba_cloud_deliveries_waiting"), "{page}");
    daemon.kill();
    receiver.behave(Manner::Answer(200));
    mails.answer_recipients("250 good");
    desk.later().await;
    desk.server.sql("UPDATE deliveries SET lease_until = now() WHERE state = 'sending'").await;
    let daemon = Daemon::start(&file);
    let sent = desk.wait("sent", 2).await;
    assert!(
        sent.iter().all(|sent| sent["attempts"].as_u64() >= Some(2) && sent["notice_id"] == json!(notice)),
        "{sent:?}"
    );
    let calls = receiver.calls();
    assert_eq!(calls.len(), 2);
    assert_eq!(calls[0].header("webhook-id"), calls[1].header("webhook-id"));
    assert!(calls[1].body.contains("\"https://gemba.example/#/incidents/"), "{}", calls[1].body);
    assert_eq!(mails.mails().len(), 1);
    assert!(sent.iter().any(|sent| sent["user_id"] == json!(user)));
    daemon.stop();
}

fn url(config: &tokio_postgres::Config) -> String {
    let [tokio_postgres::config::Host::Unix(directory)] = config.get_hosts() else { panic!("{config:?}") };
    let (port, user, name) = (config.get_ports()[0], config.get_user().unwrap(), config.get_dbname().unwrap());
    let directory = directory.to_str().unwrap().replace('/', "%2F");
    let password = std::str::from_utf8(config.get_password().unwrap()).unwrap();
    format!("postgresql://{user}:{password}@{directory}:{port}/{name}")
}
