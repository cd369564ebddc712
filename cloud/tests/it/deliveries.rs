//! From a notice to the receiver, over real HTTP and SMTP: what is sent, what is tried again, and what is given up.

mod email;
mod faults;
mod held;
mod notices;

use std::{sync::Arc, time::Duration};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use ed25519_dalek::SigningKey;
use gemba_cloud::{
    clock,
    deliver::{self, Parts, webhook::Caller},
    mail::Mailer,
    metrics::Metrics,
    notifications::{Limits, address::Policy, signature::Secrets},
    store::{Store, users::DEFAULT_ORGANISATION},
    users::Role,
};
use gemba_mqtt::tls::Trust;
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde_json::{Value, json};
use sha2::Sha256;
use tokio_util::sync::{CancellationToken, DropGuard};
use uuid::Uuid;

use crate::{
    api::{Plant, Server},
    receivers::{Call, Manner, Receiver},
};

const DEADLINE: Duration = Duration::from_secs(30);
const PAGE: &str = "https://gemba.example";
const SITE: Uuid = Uuid::from_u128(0x0000_0000_0000_7000_8000_0000_0000_0002);

/// A plant with an admin, and what its deliveries are made with.
struct Desk {
    server: Server,
    plant: Plant,
    admin: String,
    metrics: Arc<Metrics>,
}

impl Desk {
    async fn new() -> Self {
        let server = Server::start().await;
        let plant = server.plant_at(SITE).await;
        let admin = server.user(Role::Admin).await;
        server.sql("DELETE FROM deliveries").await;
        Self { server, plant, admin, metrics: Arc::default() }
    }

    fn parts(&self, store: Store, mailer: Option<Mailer>) -> Parts {
        Parts {
            store,
            clock: clock::now,
            metrics: Arc::clone(&self.metrics),
            limits: Limits { emails: 5, webhook_calls: 1_000 },
            // The key of the API in these tests.
            secrets: Secrets::new(&SigningKey::from_bytes(&[3; 32])),
            caller: Caller::new(Policy { private: true, own_ports: vec![1] }, &Trust::System).unwrap(),
            mailer,
            page: PAGE.into(),
        }
    }

    /// Sends deliveries until it is dropped.
    fn deliver(&self, mailer: Option<Mailer>) -> DropGuard {
        let cancel = CancellationToken::new();
        tokio::spawn(deliver::run(Arc::new(self.parts(self.server.store.clone(), mailer)), cancel.clone()));
        cancel.drop_guard()
    }

    /// A webhook, and its secret.
    async fn webhook(&self, url: &str) -> (Uuid, String) {
        let body = json!({"name": format!("hook {}", Uuid::now_v7().simple()), "url": url});
        let (status, made) = self.server.post("/api/v1/webhooks", &self.admin, body).await;
        assert_eq!(status, 201, "{made}");
        (made["id"].as_str().unwrap().parse().unwrap(), made["secret"].as_str().unwrap().to_owned())
    }

    /// Somebody with a role in the whole organisation and an address.
    async fn person(&self, role: Role, email: &str) -> Uuid {
        let id = Uuid::now_v7();
        self.server
            .sql(&format!(
                "INSERT INTO users (id, organisation_id, name, password_hash, must_change_password, email)
                 VALUES ('{id}', '{DEFAULT_ORGANISATION}', 'person-{}', 'x', false, '{email}');
                 INSERT INTO sessions (id, user_id, organisation_id, created_at, used_at, expires_at)
                 VALUES ('{id}', '{id}', '{DEFAULT_ORGANISATION}', now(), now(), now() + interval '1 day');
                 INSERT INTO grants (user_id, organisation_id, role) VALUES ('{id}', '{DEFAULT_ORGANISATION}', '{role}')",
                id.simple()
            ))
            .await;
        id
    }

    /// A new incident of the plant's alarm, and a notice of it for a role.
    async fn notice(&self, role: Role, severity: &str) -> (Uuid, Uuid) {
        notices::notice(&self.server, &self.plant, role, severity).await
    }

    async fn deliveries(&self, query: &str) -> Vec<Value> {
        let list = self.server.get(&format!("/api/v1/deliveries?limit=200&{query}"), &self.admin).await;
        list["items"].as_array().unwrap().clone()
    }

    /// Waits until exactly so many deliveries are in a state.
    async fn wait(&self, state: &str, count: usize) -> Vec<Value> {
        let waiting = async {
            loop {
                let found = self.deliveries(&format!("state={state}")).await;
                if found.len() == count {
                    return found;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        if let Ok(found) = tokio::time::timeout(DEADLINE, waiting).await {
            return found;
        }
        panic!("not {count} {state}: {:#?}", self.deliveries("").await)
    }

    /// What waits for its next attempt is due.
    async fn later(&self) {
        self.server.sql("UPDATE deliveries SET not_before = now() WHERE state IN ('waiting', 'failed')").await;
    }
}

/// Whether one of the signatures is that of this secret.
fn is_signed(call: &Call, secret: &str) -> bool {
    let key = BASE64_STANDARD.decode(secret.strip_prefix("whsec_").unwrap()).unwrap();
    let mut mac = Hmac::<Sha256>::new_from_slice(&key).unwrap();
    let signed = format!("{}.{}.{}", call.header("webhook-id"), call.header("webhook-timestamp"), call.body);
    mac.update(signed.as_bytes());
    let expected = format!("v1,{}", BASE64_STANDARD.encode(mac.finalize().into_bytes()));
    call.header("webhook-signature").split(' ').any(|signature| signature == expected)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_is_called_and_signed() {
    let desk = Desk::new().await;
    let receiver = Receiver::start(Manner::Answer(204)).await;
    let (webhook, secret) = desk.webhook(&receiver.url()).await;
    let _deliver = desk.deliver(None);
    let (notice, incident) = desk.notice(Role::Operator, "high").await;
    let sent = desk.wait("sent", 1).await;
    assert_eq!((&sent[0]["status"], &sent[0]["attempts"]), (&json!(204), &json!(1)));
    assert_eq!((&sent[0]["notice_id"], &sent[0]["incident_id"]), (&json!(notice), &json!(incident)));
    let calls = receiver.calls();
    let call = &calls[0];
    assert_eq!((call.path.as_str(), call.header("content-type")), ("/hook?key=1", "application/json"));
    assert_eq!(sent[0]["id"], call.header("webhook-id"));
    assert_eq!(call.header("host"), receiver.address.to_string());
    let at: i64 = call.header("webhook-timestamp").parse().unwrap();
    assert!((clock::now().as_second() - at).abs() < 60);
    assert!(is_signed(call, &secret));
    let body: Value = serde_json::from_str(&call.body).unwrap();
    assert_eq!((&body["type"], &body["data"]["severity"]), (&json!("incident.opened"), &json!("high")));
    assert_eq!(body["data"]["incident"]["url"], format!("{PAGE}/#/incidents/{incident}"));
    assert_eq!(
        (&body["data"]["machine"]["name"], &body["data"]["incident"]["alarm_count"]),
        (&json!("pump-1"), &json!(1))
    );
    assert_eq!(body["data"]["incident"]["alarms"][0]["message"], "It is loud");

    // Two secrets sign after a rotation; each alone is good.
    let path = format!("/api/v1/webhooks/{webhook}/secret");
    let (status, rotated) = desk.server.post(&path, &desk.admin, json!({})).await;
    assert_eq!(status, 200, "{rotated}");
    let next = rotated["secret"].as_str().unwrap();
    let (status, test) = desk.server.post(&format!("/api/v1/webhooks/{webhook}/test"), &desk.admin, json!({})).await;
    assert_eq!((status, &test["state"], &test["kind"]), (202, &json!("waiting"), &json!("test")));
    desk.wait("sent", 2).await;
    let calls = receiver.calls();
    assert!(next != secret && is_signed(&calls[1], next) && is_signed(&calls[1], &secret));
    desk.server.sql("UPDATE webhooks SET secret_rotated_at = now() - interval '25 hours'").await;
    desk.server.post(&format!("/api/v1/webhooks/{webhook}/test"), &desk.admin, json!({})).await;
    desk.wait("sent", 3).await;
    let calls = receiver.calls();
    assert!(is_signed(&calls[2], next) && !is_signed(&calls[2], &secret));
    // No secret is in the database.
    let client = desk.server.store.client().await.unwrap();
    let row: String = client.query_one("SELECT string_agg(w::text, '') FROM webhooks w", &[]).await.unwrap().get(0);
    assert!(!row.contains(&next[6..]) && !row.contains("whsec"), "{row}");
}
