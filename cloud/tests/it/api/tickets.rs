//! Tickets over HTTP: made, found, changed, taken from state to state.

mod closing;
mod files;
mod work;

use std::collections::BTreeSet;

use gemba_cloud::{clock, serve::alarms::turn, store::users::DEFAULT_ORGANISATION, users::Role};
use jiff::SignedDuration;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Answer, Server, ids};
use crate::plant::{count, rows};

/// An incident of this machine, with this many alarms and an anomaly behind each.
async fn incident(server: &Server, gateway: Uuid, machine: Uuid, alarms: usize) -> String {
    let now = clock::now();
    for n in 0..alarms {
        server.alarm(gateway, machine, "unacknowledged", "high", now - SignedDuration::from_secs(n as i64)).await;
    }
    server.sql("UPDATE alarms SET annunciated_at = arrived_at WHERE annunciated_at IS NULL").await;
    turn(&server.store, now, SignedDuration::from_secs(45)).await.unwrap();
    let sql = format!("SELECT id FROM incidents WHERE machine_id = '{machine}' ORDER BY id DESC LIMIT 1");
    rows(&server.store, &sql).await
}

impl Server {
    /// A user with these roles, a token of theirs and their id.
    async fn somebody(&self, grants: &[(Option<Uuid>, Role)]) -> (String, String) {
        let token = self.user_at(DEFAULT_ORGANISATION, grants).await;
        let id = self.get("/api/v1/me", &token).await["id"].as_str().unwrap().to_owned();
        (token, id)
    }

    /// Makes a ticket, and tells its id.
    async fn ticket(&self, token: &str, body: Value) -> String {
        let (status, ticket) = self.post("/api/v1/tickets", token, body).await;
        assert_eq!(status, 201, "{ticket}");
        ticket["id"].as_str().unwrap().to_owned()
    }

    async fn step(&self, token: &str, ticket: &str, verb: &str, body: Value) -> (u16, Value) {
        self.post(&format!("/api/v1/tickets/{ticket}/{verb}"), token, body).await
    }

    /// Takes a ticket of whoever's up to where it is done.
    async fn finish(&self, supervisor: &str, ticket: &str, user: &str) {
        for (verb, body) in
            [("assign", json!({"user": user})), ("move", json!({"to": "in_progress"})), ("move", json!({"to": "done"}))]
        {
            let (status, answer) = self.step(supervisor, ticket, verb, body).await;
            assert_eq!(status, 200, "{verb}: {answer}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_from_an_incident_to_its_end() {
    let server = Server::start().await;
    let gateway = server.gateway("g").await;
    let (machine, _) = server.machine(gateway, "pump-1", &["flow", "pressure"]).await;
    let of = incident(&server, gateway, machine, 1).await;
    let (supervisor, _) = server.somebody(&[(None, Role::Supervisor)]).await;
    let (operator, me) = server.somebody(&[(None, Role::Operator)]).await;
    let (other, _) = server.somebody(&[(None, Role::Operator)]).await;

    let (status, ticket) = server.post("/api/v1/tickets", &operator, json!({"incident": of})).await;
    assert_eq!(status, 201, "{ticket}");
    for (key, value) in [
        ("number", json!(1)),
        ("state", json!("open")),
        ("kind", json!("corrective")),
        ("priority", json!("high")),
        ("title", json!("It is loud")),
        ("machine_id", json!(machine)),
        ("machine_name", json!("pump-1")),
        ("incident_id", json!(of)),
        ("currency", json!("EUR")),
        ("next", json!(["assigned", "cancelled"])),
        ("assignee", Value::Null),
        ("overdue", json!(false)),
    ] {
        assert_eq!(ticket[key], value, "{key}: {ticket}");
    }
    let id = ticket["id"].as_str().unwrap().to_owned();
    let (status, problem) =
        server.post("/api/v1/tickets", &supervisor, json!({"incident": of, "title": "again"})).await;
    assert_eq!((status, &problem["code"], &problem["existing_id"]), (409, &json!("incident_has_ticket"), &json!(id)));
    let shown = server.get(&format!("/api/v1/incidents/{of}"), &operator).await;
    assert_eq!((&shown["tickets"][0]["id"], &shown["tickets"][0]["number"]), (&json!(id), &json!(1)), "{shown}");

    let step = async |token: &str, verb: &str, body: Value| server.step(token, &id, verb, body).await;
    let is = |(status, answer): (u16, Value), expected: u16, state: &str| {
        let found = if status == 200 { &answer["state"] } else { &answer["code"] };
        assert_eq!((status, found), (expected, &json!(state)), "{answer}");
        answer
    };
    is(step(&operator, "move", json!({"to": "in_progress"})).await, 409, "no_such_step");
    is(step(&operator, "assign", json!({"user": me})).await, 403, "forbidden");
    is(step(&supervisor, "assign", json!({"user": Uuid::now_v7()})).await, 422, "invalid_fields");
    let ticket = is(step(&supervisor, "assign", json!({"user": me})).await, 200, "assigned");
    assert_eq!((&ticket["assignee_id"], &ticket["history"][1]["to"]), (&json!(me), &json!("assigned")));
    is(step(&supervisor, "assign", json!({"user": me})).await, 200, "assigned");
    is(step(&other, "move", json!({"to": "in_progress"})).await, 403, "forbidden");
    let ticket = is(step(&operator, "move", json!({"to": "in_progress"})).await, 200, "in_progress");
    let started = ticket["started_at"].clone();
    assert!(started.is_string(), "{ticket}");
    is(step(&operator, "move", json!({"to": "on_hold"})).await, 422, "invalid_fields");
    is(step(&operator, "move", json!({"to": "on_hold", "reason": "no seal"})).await, 200, "on_hold");
    is(step(&operator, "move", json!({"to": "done"})).await, 409, "no_such_step");
    let ticket = is(step(&operator, "move", json!({"to": "in_progress"})).await, 200, "in_progress");
    assert_eq!(ticket["started_at"], started);
    is(step(&operator, "move", json!({"to": "done"})).await, 200, "done");
    is(step(&operator, "close", json!({"alarm_correct": "yes"})).await, 403, "forbidden");
    is(step(&supervisor, "cancel", json!({"reason": "x"})).await, 409, "no_such_step");
    is(step(&operator, "move", json!({"to": "in_progress"})).await, 200, "in_progress");
    let ticket = is(step(&operator, "move", json!({"to": "done"})).await, 200, "done");
    assert_eq!(ticket["history"].as_array().unwrap().len(), 8, "twice the same assignee is no step");
    let said = json!({"failure_mode": "VIB", "cause": "worn bearing", "remedy": "new bearing", "alarm_correct": "yes"});
    let ticket = is(step(&supervisor, "close", said).await, 200, "closed");
    assert_eq!((&ticket["failure_mode"], &ticket["cause"]), (&json!("VIB"), &json!("worn bearing")));
    assert!(ticket["closed_by"].is_string() && ticket["done_at"].is_string(), "{ticket}");
    is(step(&supervisor, "close", json!({"alarm_correct": "yes"})).await, 409, "no_such_step");
    is(step(&supervisor, "assign", json!({"user": null})).await, 409, "closed");
    let path = format!("/api/v1/tickets/{id}");
    let late = server.call("PATCH", &path, Some(&supervisor), Some(json!({"title": "x"}))).await;
    assert_eq!((late.status, &late.body["code"]), (409, &json!("closed")));
    let ticket = is(step(&supervisor, "reopen", json!({"reason": "it is loud again"})).await, 200, "assigned");
    assert_eq!(
        (&ticket["reopened"], &ticket["closed_at"], &ticket["done_at"]),
        (&json!(1), &Value::Null, &Value::Null)
    );
    assert_eq!(ticket["history"][9]["reason"], "it is loud again");
    let actions = "SELECT string_agg(DISTINCT action, ' ' ORDER BY action) FROM audit WHERE object = 'ticket'";
    assert_eq!(
        rows(&server.store, actions).await,
        "ticket.assign ticket.close ticket.create ticket.move ticket.reopen"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_by_hand_is_of_one_place_and_of_people_who_reach_it() {
    let server = Server::start().await;
    let second = server.site(DEFAULT_ORGANISATION, "second").await;
    let first: Uuid = "00000000-0000-7000-8000-000000000002".parse().unwrap();
    let (here, there) = (server.plant_at(first).await, server.plant_at(second).await);
    let (supervisor, _) = server.somebody(&[(None, Role::Supervisor)]).await;
    let (operator, theirs) = server.somebody(&[(Some(second), Role::Operator)]).await;
    for (token, body, status, field) in [
        (&supervisor, json!({"title": "t"}), 422, "machine"),
        (&supervisor, json!({"machine": here.machine}), 422, "title"),
        (&supervisor, json!({"machine": here.machine, "title": " "}), 422, "title"),
        (&supervisor, json!({"machine": here.machine, "title": "x".repeat(201)}), 422, "title"),
        (&supervisor, json!({"machine": Uuid::now_v7(), "title": "t"}), 422, "machine"),
        (&supervisor, json!({"machine": here.machine, "area": there.area, "title": "t"}), 422, "area"),
        (&supervisor, json!({"machine": here.machine, "site": second, "title": "t"}), 422, "site"),
        (&supervisor, json!({"incident": here.incident, "machine": there.machine}), 422, "machine"),
        (&supervisor, json!({"machine": here.machine, "title": "t", "assignee": theirs}), 422, "assignee"),
        (&supervisor, json!({"machine": here.machine, "title": "t", "due_at": "1900-01-01T00:00:00Z"}), 422, "due_at"),
        (&supervisor, json!({"machine": here.machine, "title": "t", "estimate_minor": -1}), 422, "estimate_minor"),
        (&supervisor, json!({"machine": here.machine, "title": "t", "checklist": [""]}), 422, "checklist"),
        (&supervisor, json!({"machine": here.machine, "title": "t", "checklist": vec!["x"; 101]}), 422, "checklist"),
        (&operator, json!({"machine": here.machine, "title": "t"}), 422, "machine"),
        (&operator, json!({"incident": here.incident, "title": "t"}), 422, "incident"),
    ] {
        let (found, answer) = server.post("/api/v1/tickets", token, body.clone()).await;
        assert_eq!((found, &answer["errors"][0]["field"]), (status, &json!(field)), "{body}: {answer}");
    }
    let own = json!({"machine": there.machine, "title": "t", "assignee": theirs});
    assert_eq!(server.post("/api/v1/tickets", &operator, own.clone()).await.0, 403, "operators assign nobody");
    let (_, ticket) = server.post("/api/v1/tickets", &supervisor, own).await;
    assert_eq!((&ticket["state"], &ticket["assignee_id"]), (&json!("assigned"), &json!(theirs)), "{ticket}");
    let body = json!({"area": there.area, "title": " Grease \n", "kind": "preventive", "priority": "urgent",
        "due_at": "2026-01-01T00:00:00Z", "estimate_minutes": 30, "checklist": ["one", "two"]});
    let (status, ticket) = server.post("/api/v1/tickets", &operator, body).await;
    assert_eq!(status, 201, "{ticket}");
    assert_eq!((&ticket["title"], &ticket["area_name"]), (&json!("Grease"), &json!("hall")));
    assert_eq!((&ticket["overdue"], &ticket["items"]), (&json!(true), &json!(2)));
    assert_eq!(ticket["checklist"][1]["text"], "two");
    // An area that goes leaves the ticket at its site.
    server.sql(&format!("DELETE FROM areas WHERE id = '{}'", there.area)).await;
    let id = ticket["id"].as_str().unwrap();
    let ticket = server.get(&format!("/api/v1/tickets/{id}"), &operator).await;
    assert_eq!((&ticket["area_id"], &ticket["site_id"]), (&Value::Null, &json!(second)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_update_is_refused() {
    let server = Server::start().await;
    let gateway = server.gateway("g").await;
    let (machine, _) = server.machine(gateway, "m", &[]).await;
    let (supervisor, me) = server.somebody(&[(None, Role::Supervisor)]).await;
    let id =
        server.ticket(&supervisor, json!({"machine": machine, "title": "t", "due_at": "2030-01-01T00:00:00Z"})).await;
    let path = format!("/api/v1/tickets/{id}");
    let read = server.call("GET", &path, Some(&supervisor), None).await;
    let tag = read.headers["etag"].to_str().unwrap().to_owned();
    let patch = async |body: Value, tag: &str| -> Answer {
        server.call_with("PATCH", &path, Some(&supervisor), Some(body), &[("if-match", tag)]).await
    };
    let changed = patch(json!({"title": "u", "due_at": null, "machine": null, "estimate_minor": 12_345}), &tag).await;
    assert_eq!(changed.status, 200, "{}", changed.body);
    assert_eq!((&changed.body["title"], &changed.body["due_at"]), (&json!("u"), &Value::Null));
    assert_eq!((&changed.body["machine_id"], &changed.body["estimate_minor"]), (&Value::Null, &json!(12_345)));
    let late = patch(json!({"title": "v"}), &tag).await;
    assert_eq!((late.status, &late.body["code"]), (412, &json!("changed_meanwhile")));
    let now = changed.headers["etag"].to_str().unwrap().to_owned();
    // What others say does not make it another; a step does.
    assert_eq!(server.step(&supervisor, &id, "comments", json!({"text": "x"})).await.0, 201);
    let assign = format!("{path}/assign");
    let body = Some(json!({"user": me}));
    let stale = server.call_with("POST", &assign, Some(&supervisor), body.clone(), &[("if-match", &tag)]).await;
    assert_eq!(stale.status, 412);
    assert_eq!(server.call_with("POST", &assign, Some(&supervisor), body, &[("if-match", &now)]).await.status, 200);
    assert_eq!(patch(json!({"title": "v"}), &now).await.status, 412);
    for (body, field) in [
        (json!({"machine": Uuid::now_v7()}), "machine"),
        (json!({"area": Uuid::now_v7()}), "area"),
        (json!({"title": ""}), "title"),
        (json!({"estimate_minutes": 527_041}), "estimate_minutes"),
    ] {
        let answer = server.call("PATCH", &path, Some(&supervisor), Some(body)).await;
        assert_eq!((answer.status, &answer.body["errors"][0]["field"]), (422, &json!(field)), "{}", answer.body);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tickets_are_found_by_what_they_are() {
    let server = Server::start().await;
    let gateway = server.gateway("g").await;
    let (pump, _) = server.machine(gateway, "pump", &["flow", "pressure"]).await;
    let (fan, _) = server.machine(gateway, "fan", &[]).await;
    let (part, _) = server.machine(gateway, "part", &[]).await;
    let of = incident(&server, gateway, pump, 1).await;
    let (token, me) = server.somebody(&[(None, Role::Supervisor)]).await;
    let past = "2026-01-01T00:00:00Z";
    for body in [
        json!({"incident": of, "title": "a: 100% loud"}),
        json!({"machine": fan, "title": "b", "description": "the belt_drive slips", "kind": "inspection", "priority": "low",
               "due_at": past}),
        json!({"machine": fan, "title": "c", "assignee": me, "priority": "urgent", "due_at": "2099-01-01T00:00:00Z"}),
        json!({"machine": part, "title": "d", "kind": "preventive", "due_at": past}),
    ] {
        server.ticket(&token, body).await;
    }
    server.sql(&format!("UPDATE machines SET merged_into = '{fan}' WHERE id = '{part}'")).await;
    let all = server.get("/api/v1/tickets", &token).await;
    let cancelled = ids(&all)[0].to_owned();
    server.step(&token, &cancelled, "cancel", json!({"reason": "done otherwise"})).await;
    let found = async |query: &str| -> String {
        let list = server.get(&format!("/api/v1/tickets?{query}"), &token).await;
        let items = list["items"].as_array().unwrap();
        items.iter().map(|item| item["title"].as_str().unwrap().chars().next().unwrap()).collect()
    };
    for (query, expected) in [
        (String::new(), "dcba"),
        ("state=open".into(), "ba"),
        ("state=open&state=assigned".into(), "cba"),
        ("open=true".into(), "cba"),
        ("open=false".into(), "d"),
        ("overdue=true".into(), "b"),
        ("overdue=false".into(), "dca"),
        ("priority=urgent".into(), "c"),
        ("kind=preventive".into(), "d"),
        (format!("machine={fan}"), "dcb"),
        (format!("machine={pump}"), "a"),
        (format!("incident={of}"), "a"),
        ("assignee=me".into(), "c"),
        ("assignee=nobody".into(), "dba"),
        (format!("assignee={me}"), "c"),
        (format!("site={}", Uuid::now_v7()), ""),
        ("q=LOUD".into(), "a"),
        ("q=100%25".into(), "a"),
        ("q=%25".into(), "a"),
        ("q=belt_drive".into(), "b"),
        ("q=belt.drive".into(), ""),
        ("q=%232".into(), "b"),
        ("q=3".into(), "c"),
        ("from=2099-01-01T00:00:00Z".into(), ""),
        ("to=2099-01-01T00:00:00Z".into(), "dcba"),
        ("sort=due_at".into(), "bdca"),
        ("sort=priority".into(), "cadb"),
    ] {
        assert_eq!(found(&query).await, expected, "{query}");
    }
    for sort in ["created_at", "due_at", "priority"] {
        let (mut titles, mut cursor) = (String::new(), String::new());
        loop {
            let page = server.get(&format!("/api/v1/tickets?limit=1&sort={sort}&cursor={cursor}"), &token).await;
            titles.extend(page["items"][0]["title"].as_str().unwrap().chars().next());
            let Some(next) = page["next_cursor"].as_str() else { break };
            next.clone_into(&mut cursor);
        }
        assert_eq!(titles, found(&format!("sort={sort}")).await, "{sort}");
    }
    for bad in ["state=lost", "state=open&state=x", "sort=title", "overdue=2", "priority=9", "q=%00", "assignee=x"] {
        let answer = server.call("GET", &format!("/api/v1/tickets?{bad}"), Some(&token), None).await;
        assert_eq!((answer.status, &answer.body["code"]), (422, &json!("invalid_parameters")), "{bad}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_have_no_gaps_and_an_incident_one_ticket_however_many_ask_at_once() {
    let server = Server::start().await;
    let gateway = server.gateway("g").await;
    let (machine, _) = server.machine(gateway, "m", &["flow", "pressure"]).await;
    let of = incident(&server, gateway, machine, 1).await;
    let (token, _) = server.somebody(&[(None, Role::Supervisor)]).await;
    let all = (0..24).map(|n| {
        let body = if n % 2 == 0 { json!({"incident": of}) } else { json!({"machine": machine, "title": "t"}) };
        let (server, token) = (&server, &token);
        async move { server.post("/api/v1/tickets", token, body).await }
    });
    let answers = futures_util::future::join_all(all).await;
    let made = |of_incident: bool| {
        let made = answers.iter().filter(|(status, _)| *status == 201);
        made.filter(|(_, ticket)| ticket["incident_id"].is_string() == of_incident).count()
    };
    assert_eq!((made(true), made(false)), (1, 12));
    for (status, answer) in answers.iter().filter(|(status, _)| *status != 201) {
        assert_eq!((*status, &answer["code"]), (409, &json!("incident_has_ticket")));
    }
    let numbers: BTreeSet<i64> = answers.iter().filter_map(|(_, answer)| answer["number"].as_i64()).collect();
    assert_eq!(numbers, (1..=13).collect());
    // The first is cancelled, another made: then the first stays what it is.
    let first = server.get(&format!("/api/v1/tickets?incident={of}"), &token).await;
    let first = ids(&first)[0].to_owned();
    assert_eq!(server.step(&token, &first, "cancel", json!({"reason": "x"})).await.0, 200);
    let second = server.ticket(&token, json!({"incident": of})).await;
    let (status, answer) = server.step(&token, &first, "reopen", json!({"reason": "x"})).await;
    assert_eq!((status, &answer["existing_id"]), (409, &json!(second)), "{answer}");
    assert_eq!(server.step(&token, &second, "cancel", json!({"reason": "x"})).await.0, 200);
    assert_eq!(server.step(&token, &first, "reopen", json!({"reason": "x"})).await.0, 200);
    let shown = server.get(&format!("/api/v1/incidents/{of}"), &token).await;
    assert_eq!(shown["tickets"].as_array().unwrap().len(), 2);

    // Two that move one ticket at once: each step is taken once.
    let me = server.get("/api/v1/me", &token).await["id"].clone();
    server.step(&token, &first, "assign", json!({"user": me})).await;
    let moves = (0..8).map(|_| server.step(&token, &first, "move", json!({"to": "in_progress"})));
    let moved = futures_util::future::join_all(moves).await;
    assert_eq!(moved.iter().filter(|(status, _)| *status == 200).count(), 1, "{moved:?}");
    let begun = "SELECT count(*) FROM ticket_steps WHERE to_state = 'in_progress'";
    assert_eq!(count(&server.store, begun).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_loses_the_site_loses_the_ticket_when_it_is_reopened() {
    let server = Server::start().await;
    let gateway = server.gateway("g").await;
    let (machine, _) = server.machine(gateway, "m", &[]).await;
    let (supervisor, _) = server.somebody(&[(None, Role::Supervisor)]).await;
    let (_, me) = server.somebody(&[(None, Role::Operator)]).await;
    let id = server.ticket(&supervisor, json!({"machine": machine, "title": "t"})).await;
    server.finish(&supervisor, &id, &me).await;
    assert_eq!(server.step(&supervisor, &id, "close", json!({})).await.0, 200);
    server.sql(&format!("UPDATE users SET disabled_at = now() WHERE id = '{me}'")).await;
    let (status, ticket) = server.step(&supervisor, &id, "reopen", json!({"reason": "x"})).await;
    assert_eq!((status, &ticket["state"], &ticket["assignee_id"]), (200, &json!("open"), &Value::Null));
}
