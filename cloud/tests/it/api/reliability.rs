//! MTBF, MTTR, availability and cost, from tickets and hours in the database.

use gemba_cloud::{clock, users::Role};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use uuid::Uuid;

use super::Server;
use crate::history::make_rollups;

/// The start of the hour that began so many hours ago.
fn hour_ago(hours: i64) -> Timestamp {
    Timestamp::from_second((clock::now().as_second() / 3_600 - hours) * 3_600).unwrap()
}

fn after(at: Timestamp, minutes: i64) -> Timestamp {
    at + SignedDuration::from_mins(minutes)
}

struct Plant {
    server: Server,
    viewer: String,
    machine: Uuid,
    key: i32,
    numbers: std::cell::Cell<i64>,
}

impl Plant {
    async fn new() -> Self {
        let server = Server::start().await;
        let viewer = server.user(Role::Viewer).await;
        let gateway = server.gateway("north").await;
        let (machine, key) = server.machine(gateway, "pump-1", &["flow"]).await;
        Self { server, viewer, machine, key, numbers: 1.into() }
    }

    /// Intervals of a minute in this mode, from then on.
    async fn minutes(&self, from: Timestamp, minutes: i64, mode: i16) {
        let day = |minutes| gemba_cloud::history::day(after(from, minutes));
        self.server.store.make_days(&[day(0), day(minutes)].into()).await.unwrap();
        self.server
            .sql(&format!(
                "INSERT INTO summaries SELECT {}, '{from}'::timestamptz + n * interval '1 minute', 60000, '{{1}}', '{{1}}', '{{1}}', '{{1}}',
                                              '{{0}}', '{{1}}', '\\x00', 1, 0, 100, {mode}, 0, true
                 FROM generate_series(0, {minutes} - 1) AS n",
                self.key
            ))
            .await;
    }

    /// A ticket with these columns, and its history: minutes after `at`, and the state from then on.
    async fn ticket(
        &self,
        machine: Option<Uuid>,
        kind: &str,
        at: Timestamp,
        columns: &str,
        steps: &[(i64, &str)],
    ) -> Uuid {
        let (id, number) = (Uuid::now_v7(), self.numbers.get());
        self.numbers.set(number + 1);
        let state = steps.last().unwrap().1;
        let of = |state: &str| {
            let found = steps.iter().rev().find(|(_, at)| *at == state);
            found.map_or("NULL".to_owned(), |(minutes, _)| format!("'{}'", after(at, *minutes)))
        };
        let done = if matches!(state, "done" | "closed") { of("done") } else { "NULL".into() };
        let closed = if state == "closed" { of("closed") } else { "NULL".into() };
        let machine = machine.map_or("NULL".to_owned(), |id| format!("'{id}'"));
        self.server
            .sql(&format!(
                "INSERT INTO tickets (id, organisation_id, site_id, number, machine_id, kind, priority, title, assignee_id, state,
                                      state_since, created_at, updated_at, done_at, closed_at, currency)
                 SELECT '{id}', s.organisation_id, s.id, {number}, {machine}, '{kind}', 'medium', 'x',
                        (SELECT id FROM users LIMIT 1), '{state}', now(), '{at}', now(), {done}, {closed}, 'EUR'
                 FROM sites s WHERE s.name = 'default';
                 UPDATE tickets SET {columns} WHERE id = '{id}'"
            ))
            .await;
        for (minutes, state) in steps {
            self.server
                .sql(&format!(
                    "INSERT INTO ticket_steps (id, ticket_id, at, to_state) VALUES ('{}', '{id}', '{}', '{state}')",
                    Uuid::now_v7(),
                    after(at, *minutes)
                ))
                .await;
        }
        id
    }

    async fn cost(&self, ticket: Uuid, at: Timestamp, minor: i64) {
        self.server
            .sql(&format!(
                "INSERT INTO ticket_costs (id, ticket_id, kind, amount_minor, created_at, created_by)
                 SELECT gen_random_uuid(), '{ticket}', 'part', {minor}, '{at}', id FROM users LIMIT 1"
            ))
            .await;
    }

    async fn read(&self, query: &str) -> Value {
        let path = format!("/api/v1/reliability?from={}&to={}{query}", hour_ago(40), hour_ago(10));
        self.server.get(&path, &self.viewer).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn figures_are_what_tickets_and_hours_say() {
    let plant = Plant::new().await;
    let begin = hour_ago(40);
    plant.minutes(begin, 600, 3).await;
    plant.minutes(after(begin, 600), 120, 2).await;
    plant.minutes(after(begin, 720), 80, 1).await;
    // Out of the range.
    plant.minutes(hour_ago(9), 60, 3).await;
    make_rollups(&plant.server.store).await;
    let at = hour_ago(30);
    let done = |work: &[(i64, &'static str)]| {
        let last = work.last().unwrap().0;
        [&[(0, "open"), (10, "assigned")][..], work, &[(last + 30, "closed")][..]].concat()
    };
    let machine = Some(plant.machine);
    // One hour of work, half an hour on hold, half an hour of work; down for 150 minutes.
    let held = done(&[(30, "in_progress"), (90, "on_hold"), (120, "in_progress"), (150, "done")]);
    let first = plant.ticket(machine, "corrective", at, "alarm_correct = 'yes'", &held).await;
    // Given to somebody else in the middle; reopened, and done again.
    let again = done(&[
        (20, "in_progress"),
        (40, "in_progress"),
        (60, "done"),
        (90, "closed"),
        (100, "assigned"),
        (120, "in_progress"),
        (180, "done"),
    ]);
    plant.ticket(machine, "corrective", at, "failure_mode = 'BRD', alarm_correct = 'no'", &again).await;
    let plain = done(&[(20, "in_progress"), (60, "done")]);
    // A false alarm, one that was cancelled, and others' kinds are no failures.
    plant.ticket(machine, "corrective", at, "alarm_correct = 'no'", &plain).await;
    plant.ticket(machine, "corrective", at, "failure_mode = 'BRD'", &[(0, "open"), (5, "cancelled")]).await;
    let preventive = plant.ticket(machine, "preventive", at, "failure_mode = NULL", &plain).await;
    // Not decided; and of another time.
    plant.ticket(machine, "corrective", at, "cause = ''", &[(0, "open"), (20, "in_progress")]).await;
    plant.ticket(machine, "corrective", hour_ago(9), "alarm_correct = 'yes'", &plain).await;
    // Of the site, and of no machine.
    let roof = plant.ticket(None, "corrective", at, "failure_mode = 'BRD'", &plain).await;
    for (ticket, booked, minor) in
        [(first, at, 12_345), (preventive, at, 1_000), (first, hour_ago(9), 999), (roof, at, 50)]
    {
        plant.cost(ticket, booked, minor).await;
    }

    let read = plant.read("").await;
    assert_eq!((&read["from"], &read["to"]), (&json!(hour_ago(40)), &json!(hour_ago(10))));
    let pump = &read["items"][0];
    assert_eq!((&pump["machine"], &pump["name"]), (&json!(plant.machine), &json!("pump-1")), "{read}");
    assert_eq!((&pump["failures"], &pump["undecided"], &pump["repairs"]), (&json!(2), &json!(1), &json!(2)));
    assert_eq!((&pump["operating_h"], &pump["mtbf_h"]), (&json!(10.0), &json!(5.0)));
    let figure = |name: &str, expected: f64| {
        let found = pump[name].as_f64().unwrap();
        assert!((found - expected).abs() < 1e-9, "{name}: {found}, and not {expected}");
    };
    // (90 + 100) / 2 minutes in progress; (150 + 180) / 2 minutes down.
    figure("mttr_h", 95.0 / 60.0);
    figure("mean_down_h", 165.0 / 60.0);
    figure("availability_inherent", 5.0 / (5.0 + 95.0 / 60.0));
    figure("availability_observed", 720.0 / 800.0);
    let costs = |corrective: i64, total: i64| {
        json!([{"currency": "EUR", "corrective_minor": corrective, "preventive_minor": 1_000, "inspection_minor": 0,
                "total_minor": total}])
    };
    assert_eq!(pump["costs"], costs(12_345, 13_345));

    let site = &plant.read("&by=site").await["items"][0];
    assert_eq!((&site["machine"], &site["name"], &site["failures"]), (&Value::Null, &json!("default"), &json!(3)));
    assert_eq!((&site["operating_h"], &site["costs"]), (&json!(10.0), &costs(12_395, 13_395)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_is_when_its_incident_opened_and_parts_are_one_machine() {
    let plant = Plant::new().await;
    let gateway = plant.server.gateway("south").await;
    let (part, _) = plant.server.machine(gateway, "pump-1b", &["flow"]).await;
    plant.server.sql(&format!("UPDATE machines SET merged_into = '{}' WHERE id = '{part}'", plant.machine)).await;
    let incident = Uuid::now_v7();
    plant
        .server
        .sql(&format!(
            "INSERT INTO incidents (id, organisation_id, site_id, gateway_id, severity, opened_at, last_alarm_at)
             SELECT '{incident}', organisation_id, id, '{gateway}', 'high', '{}', now() FROM sites WHERE name = 'default'",
            hour_ago(12)
        ))
        .await;
    let steps = [(0, "open"), (1, "assigned"), (60, "in_progress"), (120, "done"), (130, "closed")];
    // The ticket was made after the range.
    let columns = format!("incident_id = '{incident}', alarm_correct = 'yes'");
    plant.ticket(Some(part), "corrective", hour_ago(9), &columns, &steps).await;
    let pump = &plant.read("").await["items"][0];
    assert_eq!((&pump["failures"], &pump["mttr_h"], &pump["mean_down_h"]), (&json!(1), &json!(1.0), &json!(5.0)));
    // Nothing is known of how it ran.
    assert_eq!(
        (&pump["mtbf_h"], &pump["availability_inherent"], &pump["operating_h"]),
        (&Value::Null, &Value::Null, &Value::Null)
    );
}

/// A machine that is ignored lowers nothing of its site: neither its hours nor its failures count. What was spent on it was spent.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_is_ignored_counts_nowhere() {
    let plant = Plant::new().await;
    plant.minutes(hour_ago(40), 600, 3).await;
    make_rollups(&plant.server.store).await;
    let gateway = plant.server.gateway("south").await;
    let (ignored, _) = plant.server.machine(gateway, "old", &["flow"]).await;
    plant.server.sql(&format!("UPDATE machines SET ignored = true WHERE id = '{ignored}'")).await;
    let steps = [(0, "open"), (1, "assigned"), (60, "in_progress"), (120, "done"), (130, "closed")];
    plant.ticket(Some(plant.machine), "corrective", hour_ago(30), "failure_mode = 'BRD'", &steps).await;
    let of_old = plant.ticket(Some(ignored), "corrective", hour_ago(30), "failure_mode = 'BRD'", &steps).await;
    plant.cost(of_old, hour_ago(30), 700).await;
    let site = &plant.read("&by=site").await["items"][0];
    assert_eq!((&site["failures"], &site["mtbf_h"]), (&json!(1), &json!(10.0)), "{site}");
    assert_eq!(site["costs"][0]["total_minor"], 700);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_wrongly_is_refused() {
    let plant = Plant::new().await;
    for query in [
        "by=area",
        "from=2026-01-02T00:00:00Z&to=2026-01-01T00:00:00Z",
        "from=1970-01-01T00:00:00Z",
        "other=1",
        "site=x",
    ] {
        let path = format!("/api/v1/reliability?{query}");
        assert_eq!(plant.server.call("GET", &path, Some(&plant.viewer), None).await.status, 422, "{query}");
    }
    let elsewhere = plant.read(&format!("&site={}", Uuid::now_v7())).await;
    assert_eq!(elsewhere["items"], json!([]));
}
