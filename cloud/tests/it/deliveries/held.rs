//! Quiet hours and floods: what is held, and what becomes of it.

use gemba_cloud::users::Role;
use serde_json::{Value, json};

use super::{Desk, email::plain};
use crate::receivers::{Manner, Receiver};

#[tokio::test(flavor = "multi_thread")]
async fn quiet_hours_end_with_one_digest_of_what_is_open() {
    let desk = Desk::new().await;
    let (server, mailer) = plain().await;
    let user = desk.person(Role::Operator, "ada@example.com").await;
    let token = desk.server.token(user);
    // Around the clock: it is quiet now, whenever this runs.
    let choice = json!({
        "email": true, "severity_min": "low", "sites": null, "critical_passes": true,
        "quiet": {"days": ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"],
                  "from": "00:00", "to": "00:00", "time_zone": "Europe/Berlin"},
    });
    let put = desk.server.call("PUT", "/api/v1/me/notifications", Some(&token), Some(choice)).await;
    assert_eq!(put.status, 200, "{}", put.body);
    let _deliver = desk.deliver(mailer);
    let (_, closed) = desk.notice(Role::Operator, "medium").await;
    desk.notice(Role::Operator, "medium").await;
    let (_, twice) = desk.notice(Role::Operator, "high").await;
    desk.server
        .sql(&format!(
            "INSERT INTO notices (id, incident_id, organisation_id, site_id, reason, severity, role, created_at)
             SELECT gemba_test.id, incident_id, organisation_id, site_id, 'escalated', severity, role, now()
             FROM notices, (SELECT '{}'::uuid AS id) gemba_test WHERE incident_id = '{twice}'",
            uuid::Uuid::now_v7()
        ))
        .await;
    let held = desk.wait("waiting", 4).await;
    assert!(held.iter().all(|held| held["hold"] == "quiet_hours"), "{held:?}");
    // What is critical does not wait.
    desk.notice(Role::Operator, "critical").await;
    desk.wait("sent", 1).await;
    assert!(server.mails()[0].header("Subject").unwrap().starts_with("[CRITICAL] pump-1"));

    desk.server.sql(&format!("UPDATE incidents SET closed_at = now() WHERE id = '{closed}'")).await;
    // In one moment, as the end of the night is.
    desk.later().await;
    desk.wait("sent", 2).await;
    let mails = server.mails();
    assert_eq!(mails.len(), 2);
    assert_eq!(mails[1].header("Subject").unwrap(), "[HIGH] 2 notices (default)");
    let skipped = desk.wait("skipped", 4).await;
    let reasons = |reason: &str| skipped.iter().filter(|skipped| skipped["reason"] == reason).count();
    assert_eq!((reasons("closed"), reasons("in_digest")), (1, 3), "{skipped:#?}");
    let digest = desk.deliveries("state=sent").await.into_iter().find(|sent| sent["kind"] == "digest").unwrap();
    assert!(skipped.iter().filter(|s| s["reason"] == "in_digest").all(|s| s["digest_id"] == digest["id"]));
    // One alone is sent as it is.
    desk.notice(Role::Operator, "low").await;
    desk.wait("waiting", 1).await;
    desk.later().await;
    let sent = desk.wait("sent", 3).await;
    assert_eq!((&sent[0]["kind"], &sent[0]["severity"]), (&json!("notice"), &json!("low")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_becomes_a_few_messages() {
    const NOTICES: usize = 60;
    let desk = Desk::new().await;
    let (server, mailer) = plain().await;
    desk.person(Role::Operator, "ada@example.com").await;
    let receiver = Receiver::start(Manner::Answer(200)).await;
    desk.webhook(&receiver.url()).await;
    let deliver = desk.deliver(mailer);
    for _ in 0..NOTICES {
        desk.notice(Role::Operator, "critical").await;
    }
    // Five singly, which is this test's limit for e-mails, and 60 calls, which is below the one for webhooks.
    desk.wait("sent", 5 + NOTICES).await;
    let held = desk.wait("waiting", NOTICES - 5).await;
    assert!(held.iter().all(|held| held["hold"] == "limit" && held["channel"] == "email"), "{held:?}");
    assert_eq!(server.mails().len(), 5);
    // They all are gathered at one moment: when the hour of the first is over.
    let times: std::collections::BTreeSet<&str> =
        held.iter().map(|held| held["next_attempt_at"].as_str().unwrap()).collect();
    assert_eq!(times.len(), 1, "{times:?}");
    desk.later().await;
    desk.wait("sent", 6 + NOTICES).await;
    let mails = server.mails();
    assert_eq!(mails.len(), 6);
    assert_eq!(mails[5].header("Subject").unwrap(), format!("[CRITICAL] {} notices (default)", NOTICES - 5));
    drop(deliver);
    let calls = receiver.calls();
    assert_eq!(calls.len(), NOTICES);
    assert!(calls.iter().all(|call| {
        let body: Value = serde_json::from_str(&call.body).unwrap();
        body["type"] == "incident.opened"
    }));
}
