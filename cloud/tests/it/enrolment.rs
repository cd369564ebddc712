//! Tokens, keys, and who takes whose place.

use ed25519_dalek::SigningKey;
use gemba_cloud::{
    clock,
    enrolment::{self, Refusal, TOKEN_LIFE},
    intake::write::Days,
    store::enrolment::{ChangeError, NewGateway},
};
use gemba_shared::{
    enrolment::{EnrolmentError, Request},
    message::Epoch,
};
use uuid::Uuid;

use crate::{
    database,
    plant::{self, ago, bench, catalog, cloud_key, enrolments, rows, summaries, summary, token},
};

fn key(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed; 32])
}

#[tokio::test]
async fn a_token_enrols_once_and_the_answer_is_the_clouds() {
    let store = database::store().await;
    let token = token(&store, "g", None).await;
    assert_eq!(token.api_url, "http://127.0.0.1:8080");
    let enrolments = enrolments(&store);
    let request = Request::new(&token.secret, &key(1));
    let response = enrolments.enrol(&request, clock::now()).await.unwrap();
    let enrolled = response.check(&token, &key(1).verifying_key()).unwrap();
    assert_eq!(enrolled.mqtt.username, enrolled.gateway.to_string());
    assert_eq!(rows(&store, "SELECT name, state FROM gateways").await, "g enrolled");
    let again = enrolments.enrol(&request, clock::now()).await;
    assert!(matches!(again, Err(Refusal::Token)), "{again:?}");

    let login = store.gateway_login(Uuid::from_bytes(*enrolled.gateway.as_bytes())).await.unwrap().unwrap();
    assert_ne!(login.password_sha256, enrolled.mqtt.password.as_bytes());
}

#[tokio::test]
async fn two_gateways_race_for_a_token_and_one_wins() {
    let store = database::store().await;
    let token = token(&store, "g", None).await;
    let enrolments = enrolments(&store);
    let (one, two) = (Request::new(&token.secret, &key(1)), Request::new(&token.secret, &key(2)));
    let (a, b) = tokio::join!(enrolments.enrol(&one, clock::now()), enrolments.enrol(&two, clock::now()));
    assert!(a.is_ok() != b.is_ok(), "{a:?} {b:?}");
}

#[tokio::test]
async fn tokens_that_are_unknown_old_forged_or_void_are_refused() {
    let store = database::store().await;
    let enrolments = enrolments(&store);
    let now = clock::now();
    let unknown = enrolments.enrol(&Request::new(&[9; 32], &key(1)), now).await;
    assert!(matches!(unknown, Err(Refusal::Token)));

    let first = token(&store, "g", None).await;
    let late = now.checked_add(TOKEN_LIFE + jiff::SignedDuration::from_secs(60)).unwrap();
    assert!(matches!(enrolments.enrol(&Request::new(&first.secret, &key(1)), late).await, Err(Refusal::Token)));
    let forged = Request { proof: Request::new(&[1; 32], &key(1)).proof, ..Request::new(&first.secret, &key(1)) };
    let forged = enrolments.enrol(&forged, now).await;
    assert!(matches!(forged, Err(Refusal::Malformed(EnrolmentError::Proof))));

    // A new token makes the old one void, and so does a revocation.
    let gateway = store.find_gateway("g").await.unwrap();
    let second = enrolment::rekey(&store, gateway, "http://x", &cloud_key(), now).await.unwrap();
    assert!(matches!(enrolments.enrol(&Request::new(&first.secret, &key(1)), now).await, Err(Refusal::Token)));
    store.revoke_gateway(gateway, now).await.unwrap();
    assert!(matches!(enrolments.enrol(&Request::new(&second.secret, &key(1)), now).await, Err(Refusal::Token)));
    let revoked = enrolment::rekey(&store, gateway, "http://x", &cloud_key(), now).await;
    assert!(matches!(revoked, Err(enrolment::AddError::Change(ChangeError::Revoked(_)))));
}

#[tokio::test]
async fn a_gateway_is_added_under_a_name_of_its_own() {
    let store = database::store().await;
    token(&store, "g", None).await;
    let add = async |name: &str, site: &str| {
        let new = NewGateway { name, site, mqtt_url: None, replaces: None };
        enrolment::add(&store, new, "http://x", &cloud_key(), clock::now()).await.map(drop).unwrap_err().to_string()
    };
    assert!(add("g", "default").await.contains("has a gateway \"g\" already"));
    assert!(add("h", "nowhere").await.contains("no site \"nowhere\""));
    assert!(add("", "default").await.contains("1 to 64 characters"));
    assert!(matches!(store.find_gateway("nobody").await, Err(ChangeError::NoGateway(_))));
}

#[tokio::test]
async fn a_new_key_replaces_the_old_one() {
    let store = database::store().await;
    let bench = bench(&store);
    let old = plant::enrolled(&store, "g").await;
    let token = enrolment::rekey(&store, old.id, "http://x", &cloud_key(), clock::now()).await.unwrap();
    let batch = |number| summaries(number, vec![catalog("m", number as u32, &["a"])]);
    let write = async |gateway: &plant::Gateway, number| {
        let incoming = [gateway.incoming(batch(number))];
        bench.intake.write(&incoming, &Days::default(), clock::now()).await.unwrap().counts
    };
    assert_eq!(write(&old, 1).await.records, 1, "the old key holds until the token is used");
    enrolments(&store).enrol(&Request::new(&token.secret, &key(5)), clock::now()).await.unwrap();
    assert_eq!(write(&old, 2).await.strangers, 1);
    assert_eq!(write(&plant::Gateway { id: old.id, key: key(5) }, 2).await.records, 1);
}

#[tokio::test]
async fn a_replacement_takes_over_the_machines_and_ends_the_old_one() {
    let store = database::store().await;
    let bench = bench(&store);
    let old = plant::enrolled(&store, "old").await;
    let days = Days::default();
    let first = old.incoming(summaries(1, vec![catalog("m", 1, &["a", "b"]), summary("m", ago(30), &[1.0, 2.0])]));
    bench.intake.write(&[first], &days, clock::now()).await.unwrap();

    let token = token(&store, "new", Some(old.id)).await;
    assert_eq!(rows(&store, "SELECT name, state FROM gateways ORDER BY 1").await, "new pending\nold enrolled");
    let response = enrolments(&store).enrol(&Request::new(&token.secret, &key(6)), clock::now()).await.unwrap();
    let id = response.check(&token, &key(6).verifying_key()).unwrap().gateway;
    let new = plant::Gateway { id: Uuid::from_bytes(*id.as_bytes()), key: key(6) };
    assert_eq!(rows(&store, "SELECT name, state FROM gateways ORDER BY 1").await, "new enrolled\nold revoked");

    let mut next = new.incoming(summaries(1, vec![catalog("m", 1, &["b", "a"]), summary("m", ago(20), &[2.5, 1.5])]));
    next.content.seq.epoch = Epoch(1);
    let late = old.incoming(summaries(3, vec![summary("m", ago(10), &[9.0, 9.0])]));
    let outcome = bench.intake.write(&[next, late], &days, clock::now()).await.unwrap();
    assert_eq!((outcome.counts.records, outcome.counts.strangers), (2, 1));
    assert_eq!(
        rows(&store, "SELECT m.name, g.name FROM machines m JOIN gateways g ON g.id = m.gateway_id").await,
        "m new"
    );
    assert_eq!(rows(&store, "SELECT lasts FROM summaries ORDER BY start").await, "{1,2}\n{1.5,2.5}");
}
