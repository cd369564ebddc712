//! Alarms that belong together, and who is told of them when.

use gemba_cloud::{
    alarms::{Hold, Severity},
    live::Change,
    serve::alarms::turn,
    store::alarms::Subject,
};
use jiff::Timestamp;
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::{
    alarms::{Setup, after, now, raise, setup},
    plant::{count, rows},
};

const OFFLINE_AFTER: jiff::SignedDuration = jiff::SignedDuration::from_secs(45);
const NOTICES: &str = "SELECT reason, severity, coalesce(role, '@' || (SELECT name FROM users WHERE id = user_id))
                       FROM notices ORDER BY created_at, id";

impl Setup {
    async fn sql(&self, sql: &str) {
        self.store.client().await.unwrap().batch_execute(sql).await.unwrap();
    }

    /// Another machine of the same gateway.
    async fn neighbour(&self, name: &str) -> Subject {
        let machine = Uuid::now_v7();
        let gateway = self.subject.gateway;
        self.sql(&format!("INSERT INTO machines (id, gateway_id, name) VALUES ('{machine}', '{gateway}', '{name}')"))
            .await;
        Subject { gateway, machine: Some(machine) }
    }

    async fn turn(&self, now: Timestamp) -> Vec<Change> {
        turn(&self.store, now, OFFLINE_AFTER).await.unwrap()
    }
}

#[tokio::test]
async fn alarms_of_a_line_are_one_incident_and_one_page() {
    let setup = setup().await;
    let now = now();
    let other = setup.neighbour("n").await;
    let first = setup.raise("a", Severity::Low, now).await.unwrap();
    let changes = setup.turn(now).await;
    assert!(changes.contains(&Change::Alarm(first)));
    assert!(matches!(changes.last(), Some(Change::Incident(_))));
    assert!(setup.turn(after(now, 1)).await.is_empty(), "nothing is left to do");
    // More of the same machine and of its neighbour: silence.
    setup.raise("b", Severity::Low, after(now, 60)).await.unwrap();
    raise(&setup.store, other, "a", Severity::Low, after(now, 200)).await.unwrap();
    setup.turn(after(now, 201)).await;
    assert_eq!(rows(&setup.store, NOTICES).await, "opened low operator");
    assert_eq!(rows(&setup.store, "SELECT count(*), max(severity) FROM incidents").await, "1 low");
    // A graver one is told.
    raise(&setup.store, other, "b", Severity::High, after(now, 300)).await.unwrap();
    setup.turn(after(now, 301)).await;
    assert_eq!(rows(&setup.store, NOTICES).await, "opened low operator\nseverity_rose high operator");
    // Much later on the neighbour, whose alarms still stand: the same; on a third machine: another.
    raise(&setup.store, other, "c", Severity::Low, after(now, 9_000)).await.unwrap();
    let third = setup.neighbour("t").await;
    raise(&setup.store, third, "a", Severity::Low, after(now, 9_400)).await.unwrap();
    setup.turn(after(now, 9_400)).await;
    assert_eq!(rows(&setup.store, "SELECT count(*) FROM alarms GROUP BY incident_id ORDER BY 1 DESC").await, "5\n1");
}

#[tokio::test]
async fn what_is_held_or_late_opens_no_incident() {
    let setup = setup().await;
    let now = now();
    setup
        .sql(&format!(
            "INSERT INTO alarm_holds (id, organisation_id, site_id, subject_id, kind, reason, created_at, created_by, since,
                                      until, begun)
             SELECT gen_random_uuid(), organisation_id, id, '{}', '{}', 'oil', '{now}', '{}', '{now}', '{}', true FROM sites",
            setup.subject.id(),
            Hold::Suppressed.as_str(),
            setup.user,
            after(now, 600)
        ))
        .await;
    setup.raise("a", Severity::Critical, after(now, 1)).await.unwrap();
    setup.turn(after(now, 2)).await;
    assert_eq!(count(&setup.store, "SELECT count(*) FROM incidents").await, 0);
    // The maintenance is over, and the condition still there.
    setup.turn(after(now, 600)).await;
    assert_eq!(rows(&setup.store, NOTICES).await, "opened critical operator");
}

#[tokio::test]
async fn a_flood_is_told_as_fast_as_people_can_take_it_and_none_is_lost() {
    let setup = setup().await;
    let now = now();
    for n in 0..5_i64 {
        // Farther apart than what joins.
        let subject = setup.neighbour(&format!("n{n}")).await;
        let severity = if n == 3 { Severity::Medium } else { Severity::Low };
        raise(&setup.store, subject, "a", severity, after(now, 301 * n)).await.unwrap();
    }
    let at = after(now, 1_300);
    setup.turn(at).await;
    assert_eq!(count(&setup.store, "SELECT count(*) FROM incidents").await, 5);
    assert_eq!(rows(&setup.store, NOTICES).await, "opened medium operator\nopened low operator");
    let critical = setup.neighbour("critical").await;
    raise(&setup.store, critical, "a", Severity::Critical, after(at, 400)).await.unwrap();
    setup.turn(after(at, 401)).await;
    assert_eq!(count(&setup.store, "SELECT count(*) FROM notices").await, 3, "what is critical does not wait");
    setup.turn(after(at, 599)).await;
    assert_eq!(count(&setup.store, "SELECT count(*) FROM notices").await, 3);
    for minutes in 10..70 {
        setup.turn(after(at, 60 * minutes)).await;
    }
    let opened = "SELECT count(DISTINCT incident_id) FROM notices WHERE reason = 'opened'";
    assert_eq!(count(&setup.store, opened).await, 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn several_replicas_gather_and_tell_each_once() {
    let setup = setup().await;
    let now = now();
    let mut tasks = JoinSet::new();
    for n in 0..6 {
        let (store, subject) = (setup.store.clone(), setup.neighbour(&format!("n{n}")).await);
        tasks.spawn(async move {
            for condition in ["a", "b", "c"] {
                raise(&store, subject, condition, Severity::Medium, now).await.unwrap();
                turn(&store, now, OFFLINE_AFTER).await.unwrap();
            }
        });
    }
    tasks.join_all().await;
    setup.turn(now).await;
    let found = "SELECT (SELECT count(*) FROM incidents), (SELECT count(*) FROM notices),
                        (SELECT count(*) FROM alarms WHERE incident_id IS NULL)";
    assert_eq!(rows(&setup.store, found).await, "1 1 0");
}

#[tokio::test]
async fn what_nobody_takes_is_handed_on_and_what_is_over_closes() {
    let setup = setup().await;
    let now = now();
    let alarm = setup.raise("a", Severity::High, now).await.unwrap();
    setup.turn(now).await;
    setup.turn(after(now, 899)).await;
    assert_eq!(rows(&setup.store, NOTICES).await, "opened high operator");
    setup.turn(after(now, 900)).await;
    setup.turn(after(now, 901)).await;
    assert_eq!(rows(&setup.store, NOTICES).await, "opened high operator\nescalated high supervisor");
    // Somebody has it: it goes no further.
    setup.sql(&format!("UPDATE incidents SET assigned_to = '{}'", setup.user)).await;
    setup.turn(after(now, 3_600)).await;
    assert_eq!(count(&setup.store, "SELECT count(*) FROM notices").await, 2);
    // It gets graver after four hours: who has it is told.
    setup.turn(after(now, 4 * 3_600)).await;
    assert!(rows(&setup.store, NOTICES).await.ends_with("severity_rose critical @ada"));
    setup.sql("UPDATE incidents SET assigned_to = NULL").await;
    setup.turn(after(now, 4 * 3_600 + 5)).await;
    assert!(rows(&setup.store, NOTICES).await.ends_with("escalated critical admin"));

    setup.end("a", after(now, 15_000)).await.unwrap();
    setup.turn(after(now, 20_000)).await;
    assert_eq!(
        count(&setup.store, "SELECT count(*) FROM incidents WHERE closed_at IS NULL").await,
        1,
        "it was not seen"
    );
    let seen = after(now, 20_000);
    setup.sql(&format!("UPDATE alarms SET state = 'normal', acknowledged_at = '{seen}' WHERE id = '{alarm}'")).await;
    setup.turn(after(seen, 1_799)).await;
    assert_eq!(count(&setup.store, "SELECT count(*) FROM incidents WHERE closed_at IS NULL").await, 1);
    setup.turn(after(seen, 1_800)).await;
    assert_eq!(count(&setup.store, "SELECT count(*) FROM incidents WHERE closed_at IS NULL").await, 0);
}

#[tokio::test]
async fn an_organisation_says_whom_next() {
    let setup = setup().await;
    let now = now();
    setup
        .sql(
            "INSERT INTO escalation_steps (organisation_id, step, after_s, role, severity_min)
             SELECT id, 1, 60, 'admin', 'critical' FROM organisations",
        )
        .await;
    setup.raise("a", Severity::High, now).await.unwrap();
    setup.turn(now).await;
    setup.turn(after(now, 3_000)).await;
    assert_eq!(rows(&setup.store, NOTICES).await, "opened high operator", "it is not grave enough");
    setup.raise("b", Severity::Critical, after(now, 3_100)).await.unwrap();
    setup.turn(after(now, 3_100)).await;
    assert_eq!(
        rows(&setup.store, NOTICES).await,
        "opened high operator\nseverity_rose critical operator\nescalated critical admin"
    );
}
