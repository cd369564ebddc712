//! Comments, checklists and costs of tickets.

use gemba_cloud::users::Role;
use serde_json::{Value, json};
use uuid::Uuid;

use super::Server;

#[tokio::test(flavor = "multi_thread")]
async fn a_checklist_says_who_did_what() {
    let server = Server::start().await;
    let gateway = server.gateway("g").await;
    let (machine, _) = server.machine(gateway, "m", &[]).await;
    let (supervisor, _) = server.somebody(&[(None, Role::Supervisor)]).await;
    let (operator, _) = server.somebody(&[(None, Role::Operator)]).await;
    let id = server.ticket(&operator, json!({"machine": machine, "title": "t", "checklist": ["look"]})).await;
    for bad in [json!({"text": ""}), json!({"text": "x".repeat(501)}), json!({"text": "a\nb"})] {
        assert_eq!(server.step(&operator, &id, "items", bad.clone()).await.0, 422, "{bad}");
    }
    let (status, ticket) = server.step(&operator, &id, "items", json!({"text": "grease"})).await;
    assert_eq!((status, &ticket["items"], &ticket["items_done"]), (201, &json!(2), &json!(0)), "{ticket}");
    let item = ticket["checklist"][1]["id"].as_str().unwrap().to_owned();
    let path = format!("/api/v1/tickets/{id}/items/{item}");
    let put = async |done: bool| server.call("PUT", &path, Some(&operator), Some(json!({"done": done}))).await.body;
    let ticked = put(true).await;
    let at = ticked["checklist"][1]["done_at"].clone();
    assert!(at.is_string() && ticked["checklist"][1]["done_by"].is_string(), "{ticked}");
    assert_eq!((&ticked["items_done"], &put(true).await["checklist"][1]["done_at"]), (&json!(1), &at));
    assert_eq!(put(false).await["checklist"][1]["done_by"], Value::Null);
    let other = server.ticket(&operator, json!({"machine": machine, "title": "other"})).await;
    let elsewhere = format!("/api/v1/tickets/{other}/items/{item}");
    assert_eq!(server.call("PUT", &elsewhere, Some(&operator), Some(json!({"done": true}))).await.status, 404);
    assert_eq!(server.call("DELETE", &path, Some(&operator), None).await.status, 403);
    assert_eq!(server.call("DELETE", &path, Some(&supervisor), None).await.status, 204);
    assert_eq!(server.call("DELETE", &path, Some(&supervisor), None).await.status, 404);
    for n in 1..100 {
        assert_eq!(server.step(&operator, &id, "items", json!({"text": n.to_string()})).await.0, 201);
    }
    let (status, answer) = server.step(&operator, &id, "items", json!({"text": "one more"})).await;
    assert_eq!((status, &answer["code"]), (409, &json!("too_many_items")));
    server.step(&supervisor, &id, "cancel", json!({"reason": "x"})).await;
    let (status, answer) = server.step(&operator, &id, "items", json!({"text": "too late"})).await;
    assert_eq!((status, &answer["code"]), (409, &json!("closed")));
    let (status, ticket) = server.step(&operator, &id, "comments", json!({"text": "why?\nit was needed"})).await;
    assert_eq!((status, &ticket["thread"][0]["text"]), (201, &json!("why?\nit was needed")), "talk goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_ticket_cost_adds_up_in_whole_cents() {
    let server = Server::start().await;
    let gateway = server.gateway("g").await;
    let (machine, _) = server.machine(gateway, "m", &[]).await;
    let admin = server.user(Role::Admin).await;
    let (supervisor, _) = server.somebody(&[(None, Role::Supervisor)]).await;
    let (operator, me) = server.somebody(&[(None, Role::Operator)]).await;
    let costs = "/api/v1/organisation/costs";
    assert_eq!(server.get(costs, &operator).await, json!({"currency": "EUR", "labour_rate_minor": 0}));
    let put = async |token: &str, body: Value| server.call("PUT", costs, Some(token), Some(body)).await.status;
    assert_eq!(put(&supervisor, json!({"currency": "CHF", "labour_rate_minor": 1})).await, 403);
    for bad in [json!({"currency": "chf", "labour_rate_minor": 1}), json!({"currency": "CHF", "labour_rate_minor": -1})]
    {
        assert_eq!(put(&admin, bad.clone()).await, 422, "{bad}");
    }
    assert_eq!(put(&admin, json!({"currency": "CHF", "labour_rate_minor": 4_499})).await, 200);
    let id = server.ticket(&operator, json!({"machine": machine, "title": "t", "estimate_minor": 10_000})).await;

    for (body, field) in [
        (json!({"kind": "labour"}), "minutes"),
        (json!({"kind": "labour", "minutes": 0}), "minutes"),
        (json!({"kind": "labour", "minutes": 10_081}), "minutes"),
        (json!({"kind": "labour", "minutes": 1, "amount_minor": 1}), "amount_minor"),
        (json!({"kind": "labour", "minutes": 1, "user": Uuid::now_v7()}), "user"),
        (json!({"kind": "labour", "minutes": 61, "rate_minor": 1_000_000_000_000_i64}), "minutes"),
        (json!({"kind": "part", "text": "seal"}), "amount_minor"),
        (json!({"kind": "part", "amount_minor": 1}), "text"),
        (json!({"kind": "other", "text": "x", "amount_minor": -1}), "amount_minor"),
        (json!({"kind": "other", "text": "x", "amount_minor": 1, "minutes": 1}), "minutes"),
        (json!({"kind": "other", "text": "x", "amount_minor": 1, "rate_minor": 1}), "rate_minor"),
    ] {
        let (status, answer) = server.step(&operator, &id, "costs", body.clone()).await;
        assert_eq!((status, &answer["errors"][0]["field"]), (422, &json!(field)), "{body}: {answer}");
    }
    for body in [
        json!({"kind": "labour", "minutes": 7}),
        json!({"kind": "labour", "minutes": 30, "rate_minor": 6_000, "text": "by night"}),
        json!({"kind": "part", "text": "seal", "amount_minor": 1_999}),
        json!({"kind": "other", "text": "crane", "amount_minor": 1}),
    ] {
        assert_eq!(server.step(&operator, &id, "costs", body).await.0, 201);
    }
    let ticket = server.get(&format!("/api/v1/tickets/{id}"), &operator).await;
    for (key, value) in [
        ("currency", json!("CHF")),
        ("labour_minutes", json!(37)),
        ("labour_minor", json!(525 + 3_000)),
        ("part_minor", json!(1_999)),
        ("other_minor", json!(1)),
        ("cost_minor", json!(525 + 3_000 + 1_999 + 1)),
        ("estimate_minor", json!(10_000)),
    ] {
        assert_eq!(ticket[key], value, "{key}");
    }
    assert_eq!((&ticket["costs"][0]["user_id"], &ticket["costs"][0]["rate_minor"]), (&json!(me), &json!(4_499)));
    let line = format!("/api/v1/tickets/{id}/costs/{}", ticket["costs"][3]["id"].as_str().unwrap());
    let (colleague, _) = server.somebody(&[(None, Role::Operator)]).await;
    let delete = async |line: &str, token: &str| server.call("DELETE", line, Some(token), None).await.status;
    assert_eq!(delete(&line, &colleague).await, 403, "another's");
    assert_eq!(delete(&line, &supervisor).await, 204);
    assert_eq!(delete(&line, &supervisor).await, 404);
    // One's own, until the ticket is at its end.
    let (_, with) =
        server.step(&operator, &id, "costs", json!({"kind": "other", "text": "oops", "amount_minor": 7})).await;
    let own = format!("/api/v1/tickets/{id}/costs/{}", with["costs"][3]["id"].as_str().unwrap());
    assert_eq!(delete(&own, &operator).await, 204);
    let done = server.ticket(&operator, json!({"machine": machine, "title": "done"})).await;
    let (_, with) =
        server.step(&operator, &done, "costs", json!({"kind": "other", "text": "x", "amount_minor": 7})).await;
    let own = format!("/api/v1/tickets/{done}/costs/{}", with["costs"][0]["id"].as_str().unwrap());
    server.step(&supervisor, &done, "cancel", json!({"reason": "x"})).await;
    assert_eq!((delete(&own, &operator).await, delete(&own, &supervisor).await), (403, 204));
    // Another currency from now on leaves what is there as it is.
    assert_eq!(put(&admin, json!({"currency": "JPY", "labour_rate_minor": 0})).await, 200);
    let ticket = server.get(&format!("/api/v1/tickets/{id}"), &operator).await;
    assert_eq!((&ticket["currency"], &ticket["cost_minor"]), (&json!("CHF"), &json!(5_524)));
    let view = "SELECT machine, number, state, currency, labour_minutes, labour_minor, part_minor, other_minor FROM tickets_v1 WHERE number = 1";
    assert_eq!(crate::plant::rows(&server.store, view).await, "m 1 open CHF 37 3525 1999 0");
}

/// An hour's rate is in the organisation's currency of today, and a ticket's amounts in that of its beginning.
#[tokio::test(flavor = "multi_thread")]
async fn a_rate_in_another_currency_is_not_booked() {
    let server = Server::start().await;
    let (machine, _) = server.machine(server.gateway("g").await, "m", &["a"]).await;
    let admin = server.user(Role::Admin).await;
    let basis = async |currency: &str, rate: i64| {
        let body = json!({"currency": currency, "labour_rate_minor": rate});
        server.call("PUT", "/api/v1/organisation/costs", Some(&admin), Some(body)).await.status
    };
    assert_eq!(basis("EUR", 4_500).await, 200);
    let id = server.ticket(&admin, json!({"machine": machine, "title": "t"})).await;
    assert_eq!(server.step(&admin, &id, "costs", json!({"kind": "labour", "minutes": 60})).await.0, 201);
    assert_eq!(basis("JPY", 7_000).await, 200);
    let (status, refused) = server.step(&admin, &id, "costs", json!({"kind": "labour", "minutes": 60})).await;
    assert_eq!((status, &refused["errors"][0]["field"]), (422, &json!("rate_minor")), "{refused}");
    let given = json!({"kind": "labour", "minutes": 60, "rate_minor": 5_000});
    let (status, ticket) = server.step(&admin, &id, "costs", given).await;
    assert_eq!((status, &ticket["currency"], &ticket["labour_minor"]), (201, &json!("EUR"), &json!(9_500)), "{ticket}");
    let (status, part) =
        server.step(&admin, &id, "costs", json!({"kind": "part", "text": "seal", "amount_minor": 5})).await;
    assert_eq!((status, &part["cost_minor"]), (201, &json!(9_505)));
}
