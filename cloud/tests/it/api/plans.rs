//! Plans of preventive maintenance: written over HTTP, and the tickets that they make.

use gemba_cloud::{clock, store::plans, users::Role};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Server, ids};
use crate::plant::{count, rows};

/// `with` over a plan that is right.
fn body(machine: Uuid, with: &Value) -> Value {
    let mut plan = json!({
        "machine": machine, "title": "Change the filter", "checklist": ["Close the valve", "Change it"],
        "calendar": {"every": 3, "unit": "month", "starts_on": "2026-01-31", "at_min": 480},
    });
    for (key, value) in with.as_object().unwrap() {
        plan[key] = value.clone();
    }
    plan
}

async fn setup() -> (Server, String, Uuid, i32) {
    let server = Server::start().await;
    let token = server.user(Role::Supervisor).await;
    let gateway = server.gateway("north").await;
    let (machine, key) = server.machine(gateway, "pump-1", &["flow"]).await;
    (server, token, machine, key)
}

async fn add(server: &Server, token: &str, machine: Uuid, with: &Value) -> Value {
    let (status, plan) = server.post("/api/v1/plans", token, body(machine, with)).await;
    assert_eq!(status, 201, "{plan}");
    plan
}

/// Moves what a plan's latest ticket is in.
async fn end_ticket(server: &Server, state: &str, at: Timestamp) {
    let at = format!("'{at}'");
    let done = if state == "cancelled" { "NULL" } else { &at };
    let closed = if state == "closed" { &at } else { "NULL" };
    server
        .sql(&format!(
            "UPDATE tickets SET state = '{state}', state_since = {at}, done_at = {done}, closed_at = {closed}"
        ))
        .await;
}

fn hours(hours: i64) -> SignedDuration {
    SignedDuration::from_hours(hours)
}

#[tokio::test(flavor = "multi_thread")]
async fn plans_are_written_changed_and_taken_away() {
    let (server, token, machine, _) = setup().await;
    let viewer = server.user(Role::Viewer).await;
    let plan = add(&server, &token, machine, &json!({"lead_h": 48, "priority": "high", "estimate_minutes": 45})).await;
    let calendar =
        json!({"every": 3, "unit": "month", "starts_on": "2026-01-31", "at_min": 480, "from_completion": false});
    assert_eq!(plan["calendar"], calendar);
    assert_eq!(
        (&plan["machine_name"], &plan["running"], &plan["lead_h"]),
        (&json!("pump-1"), &Value::Null, &json!(48))
    );
    assert!(plan["next_due_at"].as_str().unwrap().ends_with("T08:00:00Z"), "{plan}");
    assert_eq!(plan["last_ticket"], Value::Null);
    let running = add(&server, &token, machine, &json!({"calendar": null, "running": {"every_h": 500}})).await;
    assert_eq!((&running["left_h"], &running["next_due_at"]), (&json!(500.0), &Value::Null));
    let health =
        add(&server, &token, machine, &json!({"calendar": null, "health": {"below": 60.5, "for_s": 60}})).await;
    assert_eq!(health["health"], json!({"below": 60.5, "for_s": 60}));

    let list = server.get("/api/v1/plans?limit=2", &viewer).await;
    assert_eq!(ids(&list), [health["id"].as_str().unwrap(), running["id"].as_str().unwrap()]);
    let next = format!("/api/v1/plans?cursor={}", list["next_cursor"].as_str().unwrap());
    assert_eq!(ids(&server.get(&next, &viewer).await), [plan["id"].as_str().unwrap()]);
    for (query, found) in
        [(format!("machine={machine}"), 3), (format!("site={}", Uuid::nil()), 0), ("enabled=false".into(), 0)]
    {
        assert_eq!(ids(&server.get(&format!("/api/v1/plans?{query}"), &viewer).await).len(), found, "{query}");
    }

    let path = format!("/api/v1/plans/{}", plan["id"].as_str().unwrap());
    let read = server.call("GET", &path, Some(&viewer), None).await;
    let tag = read.headers["etag"].to_str().unwrap().to_owned();
    let put = async |with: Value, tag: &str| {
        let body = Some(body(machine, &with));
        server.call_with("PUT", &path, Some(&token), body, &[("if-match", tag)]).await
    };
    let changed = put(json!({"title": "Change both filters", "enabled": false}), &tag).await;
    assert_eq!((changed.status, &changed.body["title"]), (200, &json!("Change both filters")), "{}", changed.body);
    assert_eq!(put(json!({}), &tag).await.status, 412);
    assert_eq!(put(json!({"machine": Uuid::now_v7()}), "*").await.status, 422, "a plan stays with its machine");
    assert_eq!(server.call("DELETE", &path, Some(&viewer), None).await.status, 403);
    let remove =
        async |tag: &str| server.call_with("DELETE", &path, Some(&token), None, &[("if-match", tag)]).await.status;
    assert_eq!(remove(&tag).await, 412);
    assert_eq!(remove(changed.headers["etag"].to_str().unwrap()).await, 204);
    assert_eq!(remove("*").await, 404);
    let actions = "SELECT action FROM audit WHERE object = 'plan' ORDER BY id";
    assert_eq!(rows(&server.store, actions).await, "plan.add\nplan.add\nplan.add\nplan.change\nplan.remove");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_that_is_wrong_says_where() {
    let (server, token, machine, _) = setup().await;
    let no_calendar = |with: Value| {
        let mut with = with;
        with["calendar"] = Value::Null;
        with
    };
    let calendar = |key: &str, value: Value| {
        let mut calendar = json!({"every": 1, "unit": "day", "starts_on": "2026-01-01"});
        calendar[key] = value;
        json!({"calendar": calendar})
    };
    for (with, field) in [
        (json!({"machine": Uuid::now_v7()}), "machine"),
        (json!({"title": " "}), "title"),
        (json!({"title": "x".repeat(201)}), "title"),
        (json!({"checklist": ["good", " "]}), "checklist.1"),
        (json!({"checklist": vec!["x"; 101]}), "checklist"),
        (json!({"estimate_minutes": -1}), "estimate_minutes"),
        (json!({"assignee": Uuid::now_v7()}), "assignee"),
        (json!({"lead_h": 8_785}), "lead_h"),
        (no_calendar(json!({})), "calendar"),
        (json!({"running": {"every_h": 5}}), "calendar"),
        (calendar("every", json!(0)), "calendar.every"),
        (calendar("every", json!(1_001)), "calendar.every"),
        (calendar("starts_on", json!("0001-01-01")), "calendar.starts_on"),
        (calendar("at_min", json!(1_440)), "calendar.at_min"),
        (no_calendar(json!({"running": {"every_h": 0}})), "running.every_h"),
        (no_calendar(json!({"running": {"every_h": 10}, "lead_h": 10})), "lead_h"),
        (
            no_calendar(json!({"running": {"every_h": 10, "counted_from": "2199-01-01T00:00:00Z"}})),
            "running.counted_from",
        ),
        (no_calendar(json!({"health": {"below": 0, "for_s": 1}})), "health.below"),
        (no_calendar(json!({"health": {"below": 1e300, "for_s": 1}})), "health.below"),
        (no_calendar(json!({"health": {"below": 50, "for_s": -1}})), "health.for_s"),
        (no_calendar(json!({"health": {"below": 50, "for_s": 1}, "lead_h": 1})), "lead_h"),
    ] {
        let (status, problem) = server.post("/api/v1/plans", &token, body(machine, &with)).await;
        assert_eq!((status, &problem["errors"][0]["field"]), (422, &json!(field)), "{with}: {problem}");
    }
    for with in [
        json!({"other": 1}),
        calendar("unit", json!("year")),
        calendar("starts_on", json!("2026-02-30")),
        calendar("every", json!(1.5)),
    ] {
        assert_eq!(server.post("/api/v1/plans", &token, body(machine, &with)).await.0, 422, "{with}");
    }
    let plan = add(&server, &token, machine, &json!({})).await;
    server
        .sql(&format!(
            "INSERT INTO plans SELECT (jsonb_populate_record(p, jsonb_build_object('id', gen_random_uuid()))).*
             FROM plans p, generate_series(1, 49) WHERE p.id = '{}'",
            plan["id"].as_str().unwrap()
        ))
        .await;
    let (status, problem) = server.post("/api/v1/plans", &token, body(machine, &json!({}))).await;
    assert_eq!((status, &problem["code"]), (409, &json!("too_many_plans")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_date_makes_one_ticket_also_with_two_replicas() {
    let (server, token, machine, _) = setup().await;
    let assignee = server.user(Role::Operator).await;
    let me = server.get("/api/v1/me", &assignee).await["id"].clone();
    let now = clock::now();
    let today = now.to_zoned(jiff::tz::TimeZone::UTC).date();
    let weekly = json!({"every": 1, "unit": "week", "starts_on": today, "at_min": 0});
    let plan = add(&server, &token, machine, &json!({"calendar": weekly, "assignee": me})).await;
    let path = format!("/api/v1/plans/{}", plan["id"].as_str().unwrap());

    let replicas = (0..4).map(|_| plans::turn(&server.store, now));
    let made: Vec<Uuid> = futures_util::future::try_join_all(replicas).await.unwrap().concat();
    let [ticket] = made[..] else { panic!("{made:?}") };
    let ticket = server.get(&format!("/api/v1/tickets/{ticket}"), &token).await;
    assert_eq!((&ticket["kind"], &ticket["state"]), (&json!("preventive"), &json!("assigned")), "{ticket}");
    assert_eq!((&ticket["assignee_id"], &ticket["created_by"]), (&me, &Value::Null));
    assert_eq!(
        (&ticket["due_at"], &ticket["title"]),
        (&json!(format!("{today}T00:00:00Z")), &json!("Change the filter"))
    );
    assert_eq!(ticket["checklist"].as_array().unwrap().len(), 2);
    let shown = server.get(&path, &token).await;
    assert_eq!((&shown["last_ticket"]["id"], &shown["last_ticket"]["ended_at"]), (&ticket["id"], &Value::Null));
    let in_a_week = today.checked_add(jiff::Span::new().weeks(1)).unwrap();
    assert_eq!(shown["next_due_at"], json!(format!("{in_a_week}T00:00:00Z")));

    // While it is under way there is no second, however late it gets; when it is done, the next date that is to come.
    let later = now + hours(24 * 20);
    assert!(plans::turn(&server.store, later).await.unwrap().is_empty());
    end_ticket(&server, "done", later).await;
    assert!(plans::turn(&server.store, later).await.unwrap().is_empty());
    let next = plans::turn(&server.store, now + hours(24 * 21)).await.unwrap();
    assert_eq!(next.len(), 1);
    assert_eq!(count(&server.store, "SELECT count(*) FROM tickets WHERE plan_id IS NOT NULL").await, 2);
    let admin = server.user(Role::Admin).await;
    let by_hand = server.post("/api/v1/tickets", &admin, json!({"machine": machine, "title": "by hand"})).await.1;
    assert_eq!(by_hand["plan_id"], Value::Null);
    let all = server.get("/api/v1/tickets", &admin).await;
    let mut found = 0;
    for plan in ids(&server.get("/api/v1/plans", &admin).await) {
        let made = server.get(&format!("/api/v1/tickets?plan={plan}"), &admin).await;
        assert!(made["items"].as_array().unwrap().iter().all(|ticket| ticket["plan_id"] == plan), "{made}");
        found += ids(&made).len();
    }
    assert_eq!((found, ids(&all).len()), (2, 3));

    // A plan that rests makes none; one that is gone leaves its tickets.
    end_ticket(&server, "cancelled", now + hours(24 * 21)).await;
    server.sql("UPDATE plans SET enabled = false").await;
    assert!(plans::turn(&server.store, now + hours(24 * 60)).await.unwrap().is_empty());
    assert_eq!(server.call("DELETE", &path, Some(&token), None).await.status, 204);
    assert_eq!(count(&server.store, "SELECT count(*) FROM tickets WHERE plan_id IS NULL").await, 3);
    let made = "SELECT actor, count(*) FROM audit WHERE action = 'ticket.create' AND user_id IS NULL GROUP BY 1";
    assert_eq!(rows(&server.store, made).await, "plan 2");
}

/// So many hours, one an hour up to `until`, in which the machine was in a mode (3 runs, 0 is not known).
async fn ran(server: &Server, key: i32, until: Timestamp, hours: i64, mode: usize) {
    let end = until.as_second().div_euclid(3_600);
    let days: std::collections::BTreeSet<_> = ((end - hours)..end)
        .map(|hour| gemba_cloud::history::day(Timestamp::from_second(hour * 3_600).unwrap()))
        .collect();
    server.store.make_days(&days).await.unwrap();
    for (table, unit) in [("rollup_hours", "hour"), ("rollup_days", "day")] {
        server
            .sql(&format!(
                "INSERT INTO {table} (machine_key, start, last_start, intervals, counts, weights, mins, maxs, means, squares, lasts,
                                      last_ms, mode_ms, anomalous_ms)
                 SELECT {key}, date_trunc('{unit}', at, 'UTC'), max(at), count(*), '{{}}', '{{}}', '{{}}', '{{}}', '{{}}', '{{}}', '{{}}',
                        '{{}}', ARRAY[{}]::bigint[], 0
                 FROM generate_series({}::bigint, {}) AS hour, to_timestamp(hour * 3600) AS at GROUP BY 2",
                (0..4).map(|m| if m == mode { "count(*) * 3600000" } else { "0" }).collect::<Vec<_>>().join(","),
                end - hours,
                end - 1,
            ))
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hours_of_running_make_a_ticket() {
    let (server, token, machine, key) = setup().await;
    let now = Timestamp::from_second(clock::now().as_second() / 3_600 * 3_600).unwrap();
    ran(&server, key, now, 200, 3).await;
    // Parts that are shown as one machine run in the same hours.
    let gateway = server.gateway("south").await;
    let (part, part_key) = server.machine(gateway, "pump-1b", &["flow"]).await;
    server.sql(&format!("UPDATE machines SET merged_into = '{machine}' WHERE id = '{part}'")).await;
    ran(&server, part_key, now, 100, 3).await;
    let running =
        |every_h: i32| json!({"calendar": null, "running": {"every_h": every_h, "counted_from": now - hours(150)}});
    let plan = add(&server, &token, machine, &running(160)).await;
    let path = format!("/api/v1/plans/{}", plan["id"].as_str().unwrap());
    assert_eq!(plan["left_h"], json!(10.0));
    let due: Timestamp = plan["next_due_at"].as_str().unwrap().parse().unwrap();
    let ahead = due.duration_since(now).as_secs() / 3_600;
    assert!((9..12).contains(&ahead), "10 hours at 24 a day: {ahead} h");
    assert!(plans::turn(&server.store, now).await.unwrap().is_empty());
    let put = server.call("PUT", &path, Some(&token), Some(body(machine, &running(150)))).await;
    assert_eq!((put.status, &put.body["left_h"]), (200, &json!(0.0)), "{}", put.body);
    assert_eq!(plans::turn(&server.store, now).await.unwrap().len(), 1);
    assert!(plans::turn(&server.store, now).await.unwrap().is_empty());
    assert_eq!(server.get(&path, &token).await["left_h"], Value::Null, "its ticket is under way");
    // From when it was done, hours count again.
    end_ticket(&server, "closed", now - hours(30)).await;
    assert_eq!(server.get(&path, &token).await["left_h"], json!(120.0));

    // A machine without modes: the hours in which it was heard.
    let (other, other_key) = server.machine(gateway, "fan", &["flow"]).await;
    ran(&server, other_key, now, 40, 0).await;
    assert_eq!(add(&server, &token, other, &running(160)).await["left_h"], json!(120.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn health_that_stays_too_low_makes_a_ticket() {
    let (server, token, machine, _) = setup().await;
    let with = json!({"calendar": null, "health": {"below": 60.0, "for_s": 600}});
    let path = format!("/api/v1/plans/{}", add(&server, &token, machine, &with).await["id"].as_str().unwrap());
    let begin = clock::now();
    let at = |seconds: i64| begin + SignedDuration::from_secs(seconds);
    let health = async |percent: &str, heard: Timestamp| {
        server.sql(&format!("UPDATE machines SET health_percent = {percent}, last_reading_at = '{heard}'")).await;
    };
    let turn = async |at: Timestamp| plans::turn(&server.store, at).await.unwrap().len();
    health("59", at(0)).await;
    assert_eq!(turn(at(0)).await, 0);
    let shown = server.get(&path, &token).await;
    let due: Timestamp = shown["next_due_at"].as_str().unwrap().parse().unwrap();
    assert!(due.duration_since(at(600)).abs() < SignedDuration::from_millis(1), "{shown}");
    // Well again in between: it begins anew.
    health("70", at(500)).await;
    assert_eq!(turn(at(500)).await, 0);
    assert_eq!(server.get(&path, &token).await["below_since"], Value::Null);
    health("20", at(600)).await;
    assert_eq!((turn(at(600)).await, turn(at(1_199)).await, turn(at(1_200)).await), (0, 0, 1));
    assert_eq!(turn(at(5_000)).await, 0, "its ticket is under way");
    end_ticket(&server, "done", at(5_000)).await;
    // Nobody knows how a silent machine is.
    assert_eq!((turn(at(5_001)).await, turn(at(9_000)).await), (0, 0));
    health("20", at(9_000)).await;
    assert_eq!((turn(at(9_000)).await, turn(at(9_600)).await), (0, 1));
}

/// A plan goes with its machine, also when that is shown as a part of another.
#[tokio::test(flavor = "multi_thread")]
async fn a_plan_of_a_part_is_that_of_what_it_is_shown_as() {
    let (server, token, machine, key) = setup().await;
    let gateway = server.gateway("south").await;
    let (whole, whole_key) = server.machine(gateway, "press", &["flow"]).await;
    let now = clock::now();
    let from = now - hours(1_000);
    let running = json!({"calendar": null, "running": {"every_h": 100, "counted_from": from}});
    let plan = add(&server, &token, machine, &running).await;
    let merge = format!("/api/v1/machines/{machine}/merge");
    let (status, merged) = server.post(&merge, &token, json!({"into": whole})).await;
    assert!((200..300).contains(&status), "{merged}");
    // From then on the other one tells the hours.
    ran(&server, key, now - hours(200), 30, 3).await;
    ran(&server, whole_key, now, 120, 3).await;
    let path = format!("/api/v1/plans/{}", plan["id"].as_str().unwrap());
    let shown = server.get(&path, &token).await;
    assert_eq!((&shown["machine"], &shown["machine_name"]), (&json!(whole), &json!("press")), "{shown}");
    assert!(shown["left_h"].as_f64().unwrap() < 0.0, "{shown}");
    assert_eq!(
        ids(&server.get(&format!("/api/v1/plans?machine={whole}"), &token).await),
        [plan["id"].as_str().unwrap()]
    );
    let made = plans::turn(&server.store, now).await.unwrap();
    let [ticket] = made[..] else { panic!("{made:?}") };
    assert_eq!(server.get(&format!("/api/v1/tickets/{ticket}"), &token).await["machine_id"], json!(whole));
    // It is written as it is shown.
    let put = server.call("PUT", &path, Some(&token), Some(body(whole, &running))).await;
    assert_eq!((put.status, &put.body["machine"]), (200, &json!(whole)), "{}", put.body);
}
