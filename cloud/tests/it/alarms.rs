//! What becomes of alarms when many raise them at once, when something holds them back, and as time goes by.

use gemba_cloud::{
    alarms::{Criticality, Hold, Severity},
    clock,
    store::{
        Store, StoreError,
        alarms::{self, Raise, Subject},
        alarms_read,
        audit::By,
        holds::{self, NewHold, Placed},
        users::DEFAULT_ORGANISATION,
    },
    views::{Alarm, AlarmState},
};
use jiff::{SignedDuration, Timestamp};
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::{
    database, plant,
    plant::{count, rows},
};

/// A machine, and a user who may do things to it.
pub(crate) struct Setup {
    pub store: Store,
    pub subject: Subject,
    pub user: Uuid,
}

pub(crate) async fn setup() -> Setup {
    let store = database::store().await;
    let gateway = plant::enrolled(&store, "g").await.id;
    let (machine, user) = (Uuid::now_v7(), Uuid::now_v7());
    store
        .client()
        .await
        .unwrap()
        .batch_execute(&format!(
            "INSERT INTO machines (id, gateway_id, name) VALUES ('{machine}', '{gateway}', 'm');
             INSERT INTO users (id, organisation_id, name, password_hash, must_change_password)
             VALUES ('{user}', '00000000-0000-7000-8000-000000000001', 'ada', '-', false)"
        ))
        .await
        .unwrap();
    Setup { store, subject: Subject { gateway, machine: Some(machine) }, user }
}

/// The present, as exact as the database keeps it.
pub(crate) fn now() -> Timestamp {
    Timestamp::from_second(clock::now().as_second()).unwrap()
}

pub(crate) fn after(now: Timestamp, s: i64) -> Timestamp {
    now.checked_add(SignedDuration::from_secs(s)).unwrap()
}

impl Setup {
    pub(crate) async fn raise(&self, condition: &str, severity: Severity, at: Timestamp) -> Option<Uuid> {
        raise(&self.store, self.subject, condition, severity, at).await.unwrap()
    }

    pub(crate) async fn end(&self, condition: &str, at: Timestamp) -> Option<Uuid> {
        let mut client = self.store.client().await.unwrap();
        let transaction = client.transaction().await.unwrap();
        let ended = alarms::end(&transaction, self.subject, condition, None, at, at).await.unwrap();
        transaction.commit().await.unwrap();
        ended
    }

    async fn shown(&self, id: Uuid, now: Timestamp) -> Alarm {
        let mut client = self.store.client().await.unwrap();
        let transaction = client.transaction().await.unwrap();
        alarms_read::by_ids(&transaction, &[id], now).await.unwrap().pop().expect("an alarm")
    }

    async fn place(
        &self,
        condition: Option<&str>,
        kind: Hold,
        times: [Option<Timestamp>; 2],
        now: Timestamp,
    ) -> Placed {
        let [since, until] = times;
        let new = NewHold {
            subject: self.subject.id(),
            condition,
            kind,
            reason: "why",
            by: self.user,
            since: since.unwrap_or(now),
            until,
        };
        let mut client = self.store.client().await.unwrap();
        let transaction = client.transaction().await.unwrap();
        let placed = holds::place(&transaction, &new, now).await.unwrap();
        transaction.commit().await.unwrap();
        placed
    }

    async fn turn_holds(&self, now: Timestamp) -> Vec<Uuid> {
        let mut client = self.store.client().await.unwrap();
        let transaction = client.transaction().await.unwrap();
        let turned = holds::turn(&transaction, now).await.unwrap();
        transaction.commit().await.unwrap();
        turned
    }

    async fn acknowledge(&self, id: Uuid, now: Timestamp) {
        let mut client = self.store.client().await.unwrap();
        let transaction = client.transaction().await.unwrap();
        let by = By { user: Some(self.user), ..By::command_line(DEFAULT_ORGANISATION) };
        let done = alarms_read::acknowledge(&transaction, id, None, &by, now).await.unwrap();
        assert_eq!(done, Some(Ok(true)));
        transaction.commit().await.unwrap();
    }
}

pub(crate) async fn raise(
    store: &Store,
    subject: Subject,
    condition: &str,
    severity: Severity,
    at: Timestamp,
) -> Result<Option<Uuid>, StoreError> {
    let raise = Raise {
        subject,
        criticality: Criticality::Medium,
        condition,
        severity,
        message: "It is loud",
        anomaly: None,
        raised_at: at,
        arrived_at: at,
        late: false,
    };
    let mut client = store.client().await?;
    let transaction = client.transaction().await?;
    let id = alarms::raise(&transaction, &raise).await?;
    transaction.commit().await?;
    Ok(id)
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_that_raise_and_end_a_condition_at_once_one_alarm_is_open() {
    let setup = setup().await;
    let now = now();
    let mut tasks = JoinSet::new();
    for n in 0..48 {
        let (store, subject) = (setup.store.clone(), setup.subject);
        tasks.spawn(async move {
            let severity = if n == 17 { Severity::Critical } else { Severity::Medium };
            raise(&store, subject, "anomaly", severity, now).await.unwrap().expect("an alarm")
        });
    }
    let ids = tasks.join_all().await;
    assert!(ids.iter().all(|id| *id == ids[0]), "all raised the same");
    assert_eq!(rows(&setup.store, "SELECT state, severity FROM alarms").await, "unacknowledged critical");

    // Some end it while others raise it: never are two open, and none is left behind.
    let mut tasks = JoinSet::new();
    for n in 0..60_i64 {
        let (store, subject) = (setup.store.clone(), setup.subject);
        tasks.spawn(async move {
            let at = after(now, n);
            if n % 3 == 0 {
                let mut client = store.client().await.unwrap();
                let transaction = client.transaction().await.unwrap();
                alarms::end(&transaction, subject, "anomaly", None, at, at).await.unwrap();
                transaction.commit().await.unwrap();
            } else {
                raise(&store, subject, "anomaly", Severity::Low, at).await.unwrap();
            }
        });
    }
    tasks.join_all().await;
    assert_eq!(count(&setup.store, "SELECT count(*) FROM alarms WHERE state <> 'normal'").await, 1);
}

#[tokio::test]
async fn a_condition_that_comes_again_takes_the_acknowledgement_over_and_chatters() {
    let setup = setup().await;
    let now = now();
    for n in 0..4 {
        setup.raise("c", Severity::Low, after(now, 60 * n)).await.unwrap();
        setup.end("c", after(now, 60 * n + 30)).await.unwrap();
    }
    let alarms = "SELECT state, repeats FROM alarms ORDER BY raised_at";
    assert_eq!(rows(&setup.store, alarms).await, "normal 1\nnormal 2\nnormal 3\nreturned_unacknowledged 4");
    let last = setup.raise("c", Severity::Low, after(now, 3_600)).await.unwrap();
    let shown = setup.shown(last, after(now, 3_600)).await;
    assert_eq!((shown.repeats, shown.chattering), (1, false), "after an hour it is no chattering");
}

#[tokio::test]
async fn a_shelf_holds_back_what_comes_again_and_ends_by_itself_before_any_job_runs() {
    let setup = setup().await;
    let now = now();
    let first = setup.raise("c", Severity::Medium, now).await.unwrap();
    setup.acknowledge(first, after(now, 1)).await;
    let until = after(now, 600);
    assert!(matches!(
        setup.place(Some("c"), Hold::Shelved, [None, Some(until)], after(now, 2)).await,
        Placed::Done(..)
    ));
    assert_eq!(setup.place(Some("c"), Hold::Shelved, [None, Some(until)], after(now, 3)).await, Placed::Already);
    let shown = setup.shown(first, after(now, 3)).await;
    assert_eq!(shown.state, AlarmState::Shelved);
    let held = shown.held.expect("what holds it");
    assert_eq!((held.by.as_str(), held.reason.as_str(), held.until), ("ada", "why", Some(until)));

    // It ends and comes again while it is shelved: nobody is told, and nobody has to acknowledge the first one.
    setup.end("c", after(now, 60)).await.unwrap();
    assert_eq!(setup.shown(first, after(now, 60)).await.state, AlarmState::Normal);
    let second = setup.raise("c", Severity::Medium, after(now, 120)).await.unwrap();
    let shown = setup.shown(second, after(now, 599)).await;
    assert_eq!((shown.state, shown.annunciated_at), (AlarmState::Shelved, None));
    let other = setup.raise("other", Severity::Low, after(now, 120)).await.unwrap();
    assert_eq!(setup.shown(other, after(now, 121)).await.state, AlarmState::Unacknowledged, "of another condition");

    // The time alone brings it back; the job then says so to who watches, once.
    assert_eq!(setup.shown(second, until).await.state, AlarmState::Unacknowledged);
    assert!(setup.turn_holds(after(now, 599)).await.is_empty());
    assert_eq!(setup.turn_holds(after(now, 605)).await, [second]);
    assert!(setup.turn_holds(after(now, 606)).await.is_empty());
    assert_eq!(setup.shown(second, after(now, 605)).await.annunciated_at, Some(after(now, 605)));
    // It can be shelved again.
    let again = setup.place(Some("c"), Hold::Shelved, [None, Some(after(now, 900))], after(now, 700)).await;
    assert!(matches!(again, Placed::Done(..)));
    // What returns after the shelf's end is to be acknowledged, though no job has run yet.
    setup.end("c", after(now, 901)).await.unwrap();
    assert_eq!(setup.shown(second, after(now, 901)).await.state, AlarmState::ReturnedUnacknowledged);
}

#[tokio::test]
async fn under_planned_maintenance_a_machine_raises_none_and_what_stays_is_told_afterwards() {
    let setup = setup().await;
    let now = now();
    let before = setup.raise("before", Severity::Low, now).await.unwrap();
    let times = [Some(after(now, 60)), Some(after(now, 3_600))];
    assert!(matches!(setup.place(None, Hold::Suppressed, times, now).await, Placed::Done(..)));
    assert_eq!(setup.shown(before, after(now, 59)).await.state, AlarmState::Unacknowledged);
    assert_eq!(setup.shown(before, after(now, 60)).await.state, AlarmState::Suppressed, "by its times alone");
    let during = setup.raise("during", Severity::High, after(now, 100)).await.unwrap();
    let gone = setup.raise("gone", Severity::High, after(now, 100)).await.unwrap();
    assert_eq!(setup.shown(during, after(now, 100)).await.state, AlarmState::Suppressed);
    setup.end("gone", after(now, 200)).await;
    assert_eq!(setup.shown(gone, after(now, 200)).await.state, AlarmState::Normal);
    let mut turned = setup.turn_holds(after(now, 100)).await;
    turned.sort_unstable();
    assert_eq!(turned, [before, during]);

    // A second window, planned over the end of the first, keeps them back.
    let more = [Some(after(now, 3_000)), Some(after(now, 7_200))];
    setup.place(None, Hold::Suppressed, more, now).await;
    setup.turn_holds(after(now, 3_601)).await;
    assert_eq!(setup.shown(during, after(now, 3_601)).await.state, AlarmState::Suppressed);
    assert_eq!(setup.shown(during, after(now, 3_601)).await.annunciated_at, None);
    setup.turn_holds(after(now, 7_201)).await;
    let shown = setup.shown(during, after(now, 7_201)).await;
    assert_eq!((shown.state, shown.annunciated_at), (AlarmState::Unacknowledged, Some(after(now, 7_201))));
}

#[tokio::test]
async fn severity_follows_the_machine_and_the_time_it_stands() {
    let setup = setup().await;
    let now = now();
    let id = setup.raise("c", Severity::Medium, now).await.unwrap();
    let weigh = async |s| {
        let mut client = setup.store.client().await.unwrap();
        let transaction = client.transaction().await.unwrap();
        let changed = alarms::weigh(&transaction, after(now, s)).await.unwrap();
        transaction.commit().await.unwrap();
        changed
    };
    assert!(weigh(4 * 3_600 - 1).await.is_empty());
    assert_eq!(weigh(4 * 3_600).await, [id]);
    assert!(weigh(4 * 3_600 + 1).await.is_empty());
    assert_eq!(setup.shown(id, now).await.severity, Severity::High);
    setup.store.client().await.unwrap().batch_execute("UPDATE machines SET criticality = 'low'").await.unwrap();
    assert_eq!(weigh(4 * 3_600 + 2).await, [id]);
    assert_eq!(setup.shown(id, now).await.severity, Severity::Medium);
    setup.end("c", after(now, 5 * 3_600)).await;
    assert!(weigh(48 * 3_600).await.is_empty(), "one that is over stays as grave as it was");
}
