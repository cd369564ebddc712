//! E-mail through a mail server that insists on RFC 5321.

use std::{io::Write as _, os::unix::fs::PermissionsExt as _, sync::Arc};

use gemba_cloud::{
    config::notifications::{Smtp, SmtpTls},
    mail::Mailer,
    users::Role,
};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};
use serde_json::json;
use tokio_rustls::TlsAcceptor;

use super::{Desk, PAGE, notices};
use crate::receivers::{Mail, MailServer, Manner, Receiver};

fn settings(server: &MailServer) -> Smtp {
    Smtp {
        host: "127.0.0.1".into(),
        port: Some(server.address.port()),
        tls: SmtpTls::None,
        username: None,
        password_file: None,
        ca_file: None,
        from: "Gemba <gemba@example.com>".parse().unwrap(),
    }
}

pub(super) async fn plain() -> (MailServer, Option<Mailer>) {
    let server = MailServer::start(None).await;
    let mailer = Mailer::new(&settings(&server)).unwrap();
    (server, Some(mailer))
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_is_told_that_a_ticket_is_theirs() {
    let desk = Desk::new().await;
    let (server, mailer) = plain().await;
    let user = desk.person(Role::Operator, "ada@example.com").await;
    let receiver = Receiver::start(Manner::Answer(204)).await;
    desk.webhook(&receiver.url()).await;
    let _deliver = desk.deliver(mailer);
    let body = json!({"machine": desk.plant.machine, "title": "Grease it", "assignee": user, "priority": "high"});
    let (status, ticket) = desk.server.post("/api/v1/tickets", &desk.admin, body).await;
    assert_eq!(status, 201, "{ticket}");
    let sent = desk.wait("sent", 2).await;
    assert!(
        sent.iter().all(|delivery| delivery["incident_id"].is_null() && delivery["severity"] == "high"),
        "{sent:?}"
    );
    let mails = server.mails();
    let [mail] = mails.as_slice() else { panic!("{} mails", mails.len()) };
    let (number, id) = (&ticket["number"], ticket["id"].as_str().unwrap());
    assert_eq!(mail.header("Subject").unwrap(), format!("[HIGH] #{number} Grease it (default): assigned to you"));
    assert!(parts(mail).0.contains(&format!("{PAGE}/#/tickets/{id}")), "{}", mail.text);
    let call: serde_json::Value = serde_json::from_str(&receiver.calls()[0].body).unwrap();
    assert_eq!((&call["type"], &call["data"]["ticket"]["id"]), (&json!("ticket.assigned"), &json!(id)), "{call}");
    // Who takes a ticket knows.
    let me = desk.server.get("/api/v1/me", &desk.admin).await["id"].clone();
    let path = format!("/api/v1/tickets/{id}/assign");
    assert_eq!(desk.server.post(&path, &desk.admin, json!({"user": me})).await.0, 200);
    assert_eq!(
        crate::plant::count(&desk.server.store, "SELECT count(*) FROM notices WHERE ticket_id IS NOT NULL").await,
        1
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_is_written_to() {
    let desk = Desk::new().await;
    let (server, mailer) = plain().await;
    let user = desk.person(Role::Operator, "ada@example.com").await;
    // Names that would be headers and markup.
    desk.server
        .sql(
            "UPDATE machines SET display_name = E'Düse\\r\\nBcc: eve@example.com\\r\\n\\r\\n<script>';
             UPDATE alarms SET message = E'.\\r\\n.\\r\\nQUIT <b>&'",
        )
        .await;
    let _deliver = desk.deliver(mailer);
    let (notice, incident) = desk.notice(Role::Operator, "critical").await;
    let sent = &desk.wait("sent", 1).await[0];
    assert_eq!(
        (&sent["channel"], &sent["recipient"], &sent["status"]),
        (&json!("email"), &json!("ada@example.com"), &json!(250))
    );
    assert_eq!((&sent["user_id"], &sent["notice_id"]), (&json!(user), &json!(notice)));
    let mails = server.mails();
    let [mail] = mails.as_slice() else { panic!("{} mails", mails.len()) };
    assert_eq!((mail.from.as_str(), mail.to.as_slice()), ("gemba@example.com", &["ada@example.com".to_owned()][..]));
    for (name, expected) in [
        ("From", "Gemba <gemba@example.com>"),
        ("To", "ada@example.com"),
        ("Auto-Submitted", "auto-generated"),
        ("List-Unsubscribe", "<https://gemba.example/#/notifications>"),
        ("Message-ID", &format!("<{}@example.com>", sent["id"].as_str().unwrap())),
        ("MIME-Version", "1.0"),
    ] {
        assert_eq!(mail.header(name).as_deref(), Some(expected), "{name}\n{}", mail.text);
    }
    assert!(mail.header("Date").is_some() && mail.header("Bcc").is_none(), "{}", mail.text);
    let subject = mail.header("Subject").unwrap();
    assert!(subject.starts_with("[CRITICAL] =?utf-8?"), "{subject}");
    assert!(mail.header("Content-Type").unwrap().starts_with("multipart/alternative"));
    let (plain, html) = parts(mail);
    assert!(plain.contains(&format!("{PAGE}/#/incidents/{incident}")), "{plain}");
    assert!(plain.contains("QUIT <b>&"), "{plain}");
    assert!(html.contains("QUIT &lt;b&gt;&amp;") && !html.contains("<script"), "{html}");
}

/// The plain text and the HTML, decoded.
fn parts(mail: &Mail) -> (String, String) {
    let body = |kind: &str| {
        let part =
            mail.text.split("\r\n--").find(|part| part.contains(kind)).unwrap_or_else(|| panic!("{}", mail.text));
        let (head, body) = part.split_once("\r\n\r\n").unwrap();
        if !head.contains("quoted-printable") {
            return body.to_owned();
        }
        let joined = body.replace("=\r\n", "");
        let mut pieces = joined.split('=');
        let mut bytes = pieces.next().unwrap().as_bytes().to_vec();
        for piece in pieces {
            bytes.push(u8::from_str_radix(&piece[..2], 16).unwrap());
            bytes.extend_from_slice(&piece.as_bytes()[2..]);
        }
        String::from_utf8(bytes).unwrap()
    };
    (body("text/plain"), body("text/html"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mail_server_that_says_no() {
    let desk = Desk::new().await;
    let (server, mailer) = plain().await;
    desk.person(Role::Operator, "ada@example.com").await;
    server.answer_recipients("451 4.3.0 later");
    let _deliver = desk.deliver(mailer);
    desk.notice(Role::Operator, "high").await;
    let failed = &desk.wait("failed", 1).await[0];
    assert_eq!(failed["status"], 451);
    assert!(failed["last_error"].as_str().unwrap().contains("later"), "{failed}");
    server.answer_recipients("550 5.1.1 no such user");
    desk.later().await;
    let dead = &desk.wait("dead", 1).await[0];
    assert_eq!((&dead["status"], &dead["attempts"]), (&json!(550), &json!(2)));
    assert!(dead["last_error"].as_str().unwrap().contains("no such user"), "{dead}");
    // The address was mended, and somebody tries again.
    server.answer_recipients("250 good");
    desk.server.sql("UPDATE users SET email = 'ada.l@example.com' WHERE email IS NOT NULL").await;
    let path = format!("/api/v1/deliveries/{}/retry", dead["id"].as_str().unwrap());
    assert_eq!(desk.server.post(&path, &desk.admin, json!({})).await.0, 200);
    assert_eq!(desk.wait("sent", 1).await[0]["recipient"], "ada.l@example.com");
    assert_eq!(server.mails()[0].to, ["ada.l@example.com"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn starttls_and_a_password() {
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(signing_key.serialize_der()));
    let tls = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .unwrap();
    let server = MailServer::start(Some(TlsAcceptor::from(Arc::new(tls)))).await;
    let directory = tempfile::tempdir().unwrap();
    let (authority, password) = (directory.path().join("ca.pem"), directory.path().join("password"));
    std::fs::write(&authority, cert.pem()).unwrap();
    let mut file = std::fs::File::create(&password).unwrap();
    file.set_permissions(std::fs::Permissions::from_mode(0o600)).unwrap();
    file.write_all(b"geheim\n").unwrap();
    let with = |host: &str, tls, ca: bool| {
        let ca_file = ca.then(|| authority.clone());
        let (username, password_file) = (Some("gemba".to_owned()), Some(password.clone()));
        Smtp { host: host.into(), tls, username, password_file, ca_file, ..settings(&server) }
    };
    let desk = Desk::new().await;
    desk.person(Role::Operator, "ada@example.com").await;
    // In the clear, with a certificate of nobody's, and for another name: no password and no mail leaves.
    for (host, tls, ca) in [
        ("localhost", SmtpTls::None, false),
        ("localhost", SmtpTls::Starttls, false),
        ("127.0.0.1", SmtpTls::Starttls, true),
    ] {
        desk.server.sql("DELETE FROM deliveries").await;
        let deliver = desk.deliver(Some(Mailer::new(&with(host, tls, ca)).unwrap()));
        desk.notice(Role::Operator, "high").await;
        desk.wait("failed", 1).await;
        drop(deliver);
    }
    assert!(server.mails().is_empty());
    desk.server.sql("DELETE FROM deliveries").await;
    let _deliver = desk.deliver(Some(Mailer::new(&with("localhost", SmtpTls::Starttls, true)).unwrap()));
    desk.notice(Role::Operator, "high").await;
    desk.wait("sent", 1).await;
    let mail = &server.mails()[0];
    assert!(mail.secure);
    assert_eq!(mail.login, Some(("gemba".into(), "geheim".into())));
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_told_who_must_not_be() {
    let desk = Desk::new().await;
    let (server, mailer) = plain().await;
    let gone = desk.person(Role::Operator, "gone@example.com").await;
    let off = desk.person(Role::Operator, "off@example.com").await;
    let stays = desk.person(Role::Operator, "stays@example.com").await;
    desk.person(Role::Viewer, "viewer@example.com").await;
    let second = desk.server.site(gemba_cloud::store::users::DEFAULT_ORGANISATION, "second").await;
    let there = desk.person(Role::Operator, "there@example.com").await;
    desk.server.sql(&format!("UPDATE grants SET site_id = '{second}' WHERE user_id = '{there}'")).await;
    desk.server.sql(&format!("UPDATE users SET disabled_at = now() WHERE id = '{off}'")).await;
    // Planned, and not sent yet: then one of them leaves.
    server.answer_recipients("451 later");
    let deliver = desk.deliver(mailer.clone());
    desk.notice(Role::Operator, "high").await;
    desk.wait("failed", 2).await;
    drop(deliver);
    desk.server.sql(&format!("DELETE FROM grants WHERE user_id = '{gone}'")).await;
    server.answer_recipients("250 good");
    desk.later().await;
    let _deliver = desk.deliver(mailer);
    desk.wait("sent", 1).await;
    let skipped = &desk.wait("skipped", 1).await[0];
    assert_eq!((&skipped["user_id"], &skipped["reason"]), (&json!(gone), &json!("no_role")));
    let mails = server.mails();
    assert!(mails.len() == 1 && mails[0].to == ["stays@example.com"], "{mails:?}");
    // A notice that was given long ago is history.
    desk.server.sql("DELETE FROM deliveries; DELETE FROM notices_planned; DELETE FROM notices").await;
    let (_, incident) = notices::notice(&desk.server, &desk.plant, Role::Operator, "high").await;
    desk.wait("sent", 1).await;
    desk.server
        .sql(&format!(
            "INSERT INTO notices (id, incident_id, organisation_id, site_id, reason, severity, user_id, created_at)
             SELECT '0191a000-0000-7000-8000-000000000001', id, organisation_id, site_id, 'assigned', 'low', '{stays}', now()
             FROM incidents WHERE id = '{incident}'"
        ))
        .await;
    desk.notice(Role::Operator, "high").await;
    let sent = desk.wait("sent", 2).await;
    assert!(sent.iter().all(|sent| sent["severity"] == "high"), "{sent:?}");
}
