//! How long the past is kept is an organisation's own choice, and what is older goes at the next pass.

use gemba_cloud::{clock, store::users::DEFAULT_ORGANISATION, users::Role};
use jiff::SignedDuration;
use serde_json::{Value, json};
use uuid::Uuid;

use super::Server;
use crate::plant::rows;

const FIRST_SITE: Uuid = Uuid::from_u128(0x0000_0000_0000_7000_8000_0000_0000_0002);
const RETENTION: &str = "/api/v1/retention";

/// Intervals, hours and days of a site's machines.
async fn kept(server: &Server, site: Uuid) -> String {
    let of = |table: &str| {
        format!(
            "(SELECT count(*) FROM {table} t JOIN machines m ON m.key = t.machine_key WHERE m.site_id = '{site}')::text"
        )
    };
    let [live, packed, hours, days] = ["summaries", "summary_blocks", "rollup_hours", "rollup_days"].map(of);
    rows(&server.store, &format!("SELECT concat_ws(' ', {live}, {packed}, {hours}, {days})")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_kept_for_a_shorter_time_goes_at_the_next_pass() {
    let server = Server::start().await;
    let other = server.organisation("other").await;
    let their_site = server.site(other, "theirs").await;
    server.plant_at(FIRST_SITE).await;
    server.plant_at(their_site).await;
    let admin = server.user(Role::Admin).await;
    assert_eq!(server.get(RETENTION, &admin).await, json!({"intervals_days": 30, "hours_days": 730}));

    let later = clock::now() + SignedDuration::from_hours(24 * 3);
    server.store.drop_old(later).await.unwrap();
    let all = "1 1 2 2";
    assert_eq!((kept(&server, FIRST_SITE).await, kept(&server, their_site).await), (all.into(), all.into()));

    let put = async |body: Value| server.call("PUT", RETENTION, Some(&admin), Some(body)).await;
    let set = put(json!({"intervals_days": 1, "hours_days": 10})).await;
    assert_eq!((set.status, &set.body), (200, &json!({"intervals_days": 1, "hours_days": 10})));
    server.store.drop_old(later).await.unwrap();
    assert_eq!((kept(&server, FIRST_SITE).await, kept(&server, their_site).await), ("0 0 2 2".into(), all.into()));

    assert_eq!(put(json!({"intervals_days": 1, "hours_days": 1})).await.status, 200);
    server.store.drop_old(later).await.unwrap();
    assert_eq!((kept(&server, FIRST_SITE).await, kept(&server, their_site).await), ("0 0 0 2".into(), all.into()));

    // The same again is no change.
    assert_eq!(put(json!({"intervals_days": 1, "hours_days": 1})).await.status, 200);
    let audit =
        "SELECT concat_ws(' ', action, object, before->>'hours_days', after->>'hours_days') FROM audit ORDER BY id";
    let changes = "organisation.retention organisation 730 10\norganisation.retention organisation 10 1";
    assert_eq!(rows(&server.store, audit).await, changes);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_retention_is_refused() {
    let server = Server::start().await;
    let admin = server.user(Role::Admin).await;
    for (body, field) in [
        (json!({"intervals_days": 0, "hours_days": 10}), "intervals_days"),
        (json!({"intervals_days": 3_661, "hours_days": 3_661}), "intervals_days"),
        (json!({"intervals_days": 1, "hours_days": 3_661}), "hours_days"),
        (json!({"intervals_days": 10, "hours_days": 9}), "hours_days"),
    ] {
        let answer = server.call("PUT", RETENTION, Some(&admin), Some(body.clone())).await;
        assert_eq!(
            (answer.status, &answer.body["errors"][0]["field"]),
            (422, &json!(field)),
            "{body}: {}",
            answer.body
        );
    }
    for body in [json!({"intervals_days": 1}), json!({"intervals_days": 1, "hours_days": 2, "days": 3})] {
        assert_eq!(server.call("PUT", RETENTION, Some(&admin), Some(body)).await.status, 422);
    }
    let site_admin = server.user_at(DEFAULT_ORGANISATION, &[(Some(FIRST_SITE), Role::Admin)]).await;
    let supervisor = server.user(Role::Supervisor).await;
    for token in [&site_admin, &supervisor] {
        assert_eq!(server.call("GET", RETENTION, Some(token), None).await.status, 403);
    }
}
