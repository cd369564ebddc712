//! Rules that need no model, judged as summaries arrive.

use gemba_cloud::{
    alarms::{
        Severity,
        rules::{Figure, RuleKind},
    },
    clock,
    intake::write::Days,
    store::{
        Store, rules,
        rules_edit::{self, NewRule, Written},
    },
};
use gemba_shared::telemetry::Record;
use jiff::SignedDuration;
use uuid::Uuid;

use crate::{
    database,
    plant::{self, Bench, Gateway, ago, bench, catalog, count, rows, summaries, summary},
};

const ALARMS: &str = "SELECT state, severity, late, message FROM alarms ORDER BY raised_at";

struct Setup {
    store: Store,
    bench: Bench,
    gateway: Gateway,
    machine: Uuid,
    user: Uuid,
    sent: u64,
}

fn high(on_delay_s: i32) -> NewRule {
    NewRule {
        name: "Too hot".into(),
        sensor: Some("a".into()),
        kind: RuleKind::High,
        figure: Figure::Mean,
        threshold: Some(80.0),
        dead_band: 0.0,
        on_delay_s,
        off_delay_s: 0,
        severity: Severity::High,
        schedule: None,
        only_running: false,
        enabled: true,
    }
}

/// A machine `m` with the sensors `a` and `b`.
async fn setup() -> Setup {
    let store = database::store().await;
    let bench = bench(&store);
    let gateway = plant::enrolled(&store, "g").await;
    let user = Uuid::now_v7();
    let insert = format!(
        "INSERT INTO users (id, organisation_id, name, password_hash, must_change_password)
         VALUES ('{user}', '00000000-0000-7000-8000-000000000001', 'ada', '-', false)"
    );
    store.client().await.unwrap().batch_execute(&insert).await.unwrap();
    let mut setup = Setup { store, bench, gateway, machine: Uuid::nil(), user, sent: 0 };
    setup.send(vec![catalog("m", 1, &["a", "b"])]).await;
    let client = setup.store.client().await.unwrap();
    setup.machine = client.query_one("SELECT id FROM machines", &[]).await.unwrap().get(0);
    setup
}

impl Setup {
    async fn send(&mut self, records: Vec<Record>) {
        let batch = summaries(self.sent + 1, records);
        self.sent += batch.records.len() as u64;
        self.bench.intake.write(&[self.gateway.incoming(batch)], &Days::default(), clock::now()).await.unwrap();
    }

    /// Intervals of 10 s that begin so many seconds ago, with this value of `a`.
    async fn intervals(&mut self, intervals: &[(i64, f64)]) {
        let records = intervals.iter().map(|(from, a)| summary("m", ago(*from), &[*a, 1.0])).collect();
        self.send(records).await;
    }

    async fn add(&self, rule: &NewRule) -> Uuid {
        let mut client = self.store.client().await.unwrap();
        let transaction = client.transaction().await.unwrap();
        let written = rules_edit::add(&transaction, self.machine, rule, self.user, clock::now()).await.unwrap();
        transaction.commit().await.unwrap();
        match written {
            Written::Done(id) => id,
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_limit_raises_and_returns_in_the_transaction_that_stores() {
    let mut setup = setup().await;
    setup.add(&high(0)).await;
    setup.intervals(&[(60, 79.0), (50, 81.0)]).await;
    assert_eq!(rows(&setup.store, ALARMS).await, "unacknowledged high f Too hot: a is 81, above 80");
    setup.intervals(&[(40, 82.0), (30, 70.0)]).await;
    assert_eq!(rows(&setup.store, ALARMS).await, "returned_unacknowledged high f Too hot: a is 81, above 80");
    assert_eq!(rows(&setup.store, "SELECT phase, told, last_value FROM alarm_rule_states").await, "normal f 70");
    // The same intervals under other numbers change nothing.
    setup.intervals(&[(50, 99.0), (40, 99.0)]).await;
    assert_eq!(count(&setup.store, "SELECT count(*) FROM alarms").await, 1);
}

#[tokio::test]
async fn a_delay_goes_on_in_another_program() {
    let mut setup = setup().await;
    setup.add(&high(30)).await;
    setup.intervals(&[(60, 81.0), (50, 81.0)]).await;
    assert_eq!(rows(&setup.store, "SELECT phase FROM alarm_rule_states").await, "pending");
    // As after a restart, or in a replica.
    setup.bench = bench(&setup.store);
    setup.intervals(&[(40, 81.0)]).await;
    assert_eq!(rows(&setup.store, ALARMS).await, "unacknowledged high f Too hot: a is 81, above 80");
    assert_eq!(
        rows(&setup.store, &format!("SELECT raised_at = to_timestamp({}) FROM alarms", ago(30).0 / 1_000_000))
            .await
            .len(),
        1
    );
}

#[tokio::test]
async fn a_backlog_is_history_and_what_goes_on_is_told() {
    let mut setup = setup().await;
    setup.add(&high(0)).await;
    setup.intervals(&[(7_200, 81.0), (7_190, 70.0), (7_180, 81.0), (7_170, 81.0)]).await;
    let history = "normal high t Too hot: a is 81, above 80";
    assert_eq!(rows(&setup.store, ALARMS).await, format!("{history}\n{history}"));
    assert_eq!(count(&setup.store, "SELECT count(*) FROM alarms WHERE annunciated_at IS NOT NULL").await, 0);
    setup.intervals(&[(20, 85.0)]).await;
    assert!(rows(&setup.store, ALARMS).await.ends_with("unacknowledged high f Too hot: a is 85, above 80"));
}

#[tokio::test]
async fn of_machines_without_rules_nothing_is_kept_and_rules_of_parts_count() {
    let mut setup = setup().await;
    let rule = setup.add(&high(0)).await;
    setup.send(vec![catalog("other", 1, &["a"]), summary("other", ago(60), &[99.0])]).await;
    assert_eq!(count(&setup.store, "SELECT count(*) FROM alarms").await, 0);
    // The machine goes on under another name.
    let merge = format!("UPDATE machines SET merged_into = '{}' WHERE name = 'other'", setup.machine);
    setup.store.client().await.unwrap().batch_execute(&merge).await.unwrap();
    setup.send(vec![summary("other", ago(50), &[99.0])]).await;
    assert_eq!(count(&setup.store, "SELECT count(*) FROM alarms WHERE state = 'unacknowledged'").await, 1);

    let mut client = setup.store.client().await.unwrap();
    let transaction = client.transaction().await.unwrap();
    let ended = rules_edit::remove(&transaction, rule, clock::now()).await.unwrap();
    assert!(matches!(ended, Some(Some(_))), "what it raised returns with it");
    transaction.commit().await.unwrap();
    assert_eq!(count(&setup.store, "SELECT count(*) FROM alarms WHERE state = 'unacknowledged'").await, 0);
}

#[tokio::test]
async fn a_silent_machine_is_told_by_the_clock_but_not_while_its_gateway_is_away() {
    let setup = setup().await;
    let silence = NewRule {
        name: "Silent".into(),
        sensor: None,
        kind: RuleKind::NoData,
        threshold: None,
        on_delay_s: 120,
        ..high(0)
    };
    setup.add(&silence).await;
    let heard = crate::alarms::now();
    let sql = async |sql: String| setup.store.client().await.unwrap().batch_execute(&sql).await.unwrap();
    let watch = async |s: i64| {
        let mut client = setup.store.client().await.unwrap();
        let transaction = client.transaction().await.unwrap();
        let now = crate::alarms::after(heard, s);
        let offline_after = SignedDuration::from_secs(45);
        let changed = rules::watch_silence(&transaction, now, offline_after).await.unwrap().len();
        transaction.commit().await.unwrap();
        changed
    };
    sql("UPDATE gateways SET last_seen_at = now() + interval '1 day'".into()).await;
    assert_eq!(watch(9_999).await, 0, "one that was never heard is not missed");
    sql(format!("UPDATE machines SET last_reading_at = '{heard}'")).await;
    assert_eq!([watch(119).await, watch(120).await, watch(121).await], [0, 1, 0]);
    assert_eq!(rows(&setup.store, ALARMS).await, "unacknowledged high f Silent: the machine sends nothing");
    sql(format!("UPDATE machines SET last_reading_at = '{}'", crate::alarms::after(heard, 130))).await;
    assert_eq!([watch(131).await, watch(132).await], [1, 0]);
    assert!(rows(&setup.store, ALARMS).await.starts_with("returned_unacknowledged"));
    sql(format!("UPDATE gateways SET last_seen_at = '{heard}'")).await;
    assert_eq!(watch(600).await, 0, "the gateway's own alarm says it");
}
