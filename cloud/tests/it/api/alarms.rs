//! What people do to alarms over HTTP: shelving, out of service, planned maintenance, and what may not be done.

use gemba_cloud::{clock, users::Role};
use jiff::SignedDuration;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Server, ids};

#[tokio::test(flavor = "multi_thread")]
async fn an_alarm_is_shelved_and_comes_back() {
    let server = Server::start().await;
    let token = server.user(Role::Operator).await;
    let gateway = server.gateway("north").await;
    let (machine, _) = server.machine(gateway, "pump-1", &["flow", "pressure"]).await;
    let alarm = server.alarm(gateway, machine, "unacknowledged", "high", clock::now()).await;
    let over = server.alarm(gateway, machine, "normal", "high", clock::now()).await;
    let shelve =
        async |alarm: Uuid, body: Value| server.post(&format!("/api/v1/alarms/{alarm}/shelve"), &token, body).await;
    for (body, field) in [
        (json!({"for_s": 59, "reason": "x"}), "for_s"),
        (json!({"for_s": 604_801, "reason": "x"}), "for_s"),
        (json!({"for_s": 600, "reason": " "}), "reason"),
        (json!({"for_s": 600, "reason": "x".repeat(501)}), "reason"),
    ] {
        let (status, problem) = shelve(alarm, body).await;
        assert_eq!((status, &problem["errors"][0]["field"]), (422, &json!(field)));
    }
    assert_eq!(shelve(Uuid::now_v7(), json!({"for_s": 600, "reason": "x"})).await.0, 404);
    let (status, problem) = shelve(over, json!({"for_s": 600, "reason": "x"})).await;
    assert_eq!((status, &problem["code"]), (409, &json!("over")));
    let (status, shelved) = shelve(alarm, json!({"for_s": 600, "reason": "bearing is ordered"})).await;
    assert_eq!((status, &shelved["state"]), (200, &json!("shelved")), "{shelved}");
    assert_eq!(shelved["condition_state"], "unacknowledged");
    assert_eq!(shelved["held"]["reason"], "bearing is ordered");
    let (status, problem) = shelve(alarm, json!({"for_s": 600, "reason": "x"})).await;
    assert_eq!((status, &problem["code"]), (409, &json!("already_held")));
    let (status, problem) = server.post(&format!("/api/v1/alarms/{alarm}/acknowledge"), &token, json!({})).await;
    assert_eq!((status, &problem["code"]), (409, &json!("held")));

    // It is not open, the machine shows none, and it is in the list of what is held.
    assert!(ids(&server.get("/api/v1/alarms", &token).await).is_empty());
    assert_eq!(server.get(&format!("/api/v1/machines/{machine}"), &token).await["alarm"], Value::Null);
    for state in ["held", "shelved"] {
        let list = server.get(&format!("/api/v1/alarms?state={state}"), &token).await;
        assert_eq!(ids(&list), [alarm.to_string()], "{state}");
    }
    let hold = shelved["held"]["id"].as_str().unwrap();
    let open = server.get("/api/v1/alarm-holds?open=true&kind=shelved", &token).await;
    assert_eq!((ids(&open), &open["items"][0]["machine_name"]), (vec![hold], &json!("pump-1")));
    let (status, ended) = server.post(&format!("/api/v1/alarm-holds/{hold}/end"), &token, json!({})).await;
    assert_eq!(status, 200, "{ended}");
    assert!(ended["ended_by"].as_str().unwrap().starts_with("operator-"));
    let (status, problem) = server.post(&format!("/api/v1/alarm-holds/{hold}/end"), &token, json!({})).await;
    assert_eq!((status, &problem["code"]), (409, &json!("not_held")));
    let back = server.get(&format!("/api/v1/alarms/{alarm}"), &token).await;
    assert_eq!((&back["state"], &back["held"]), (&json!("unacknowledged"), &Value::Null));
    assert!(ids(&server.get("/api/v1/alarm-holds?open=true", &token).await).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_goes_out_of_service_and_under_maintenance_only_by_supervisors() {
    let server = Server::start().await;
    let (operator, supervisor) = (server.user(Role::Operator).await, server.user(Role::Supervisor).await);
    let gateway = server.gateway("north").await;
    let (machine, _) = server.machine(gateway, "pump-1", &["flow", "pressure"]).await;
    let alarm = server.alarm(gateway, machine, "returned_unacknowledged", "high", clock::now()).await;
    let path = format!("/api/v1/machines/{machine}/out-of-service");
    assert_eq!(server.post(&path, &operator, json!({"reason": "gearbox is out"})).await.0, 403);
    let (status, hold) = server.post(&path, &supervisor, json!({"reason": "gearbox is out"})).await;
    assert_eq!((status, &hold["kind"], &hold["until"]), (201, &json!("out_of_service"), &Value::Null), "{hold}");
    assert_eq!(server.post(&path, &supervisor, json!({"reason": "again"})).await.0, 409);
    let none = format!("/api/v1/machines/{}/out-of-service", Uuid::now_v7());
    assert_eq!(server.post(&none, &supervisor, json!({"reason": "x"})).await.0, 404);
    assert_eq!(server.get(&format!("/api/v1/alarms/{alarm}"), &operator).await["state"], "normal", "it was over");
    let end = format!("/api/v1/alarm-holds/{}/end", hold["id"].as_str().unwrap());
    assert_eq!(server.post(&end, &operator, json!({})).await.0, 403, "an operator ends shelves only");
    assert_eq!(server.post(&end, &supervisor, json!({})).await.0, 200);

    let path = format!("/api/v1/machines/{machine}/maintenance");
    let at = |hours: i64| json!(clock::now() + SignedDuration::from_hours(hours));
    for (from, to, status) in [(2, 1, 422), (-25, 1, 422), (-3, -1, 422), (1, 9_000, 422), (-1, 1, 201), (24, 30, 201)]
    {
        let body = json!({"from": at(from), "to": at(to), "reason": "oil change"});
        assert_eq!(server.post(&path, &supervisor, body).await.0, status, "{from} {to}");
    }
    let planned = server.get(&format!("/api/v1/alarm-holds?machine={machine}&open=true"), &operator).await;
    assert_eq!(ids(&planned).len(), 2);
    let critical = json!({"criticality": "high"});
    let answer = server.call("PATCH", &format!("/api/v1/machines/{machine}"), Some(&supervisor), Some(critical)).await;
    assert_eq!((answer.status, &answer.body["criticality"]), (200, &json!("high")), "{}", answer.body);
    let rule =
        json!({"machine": machine, "name": "r", "sensor": "flow", "kind": "high", "threshold": 1.0, "severity": "low"});
    let (_, rule) = server.post("/api/v1/alarm-rules", &supervisor, rule).await;
    let rule = format!("/api/v1/alarm-rules/{}", rule["id"].as_str().unwrap());
    server.call("DELETE", &rule, Some(&supervisor), None).await;

    // All of it is written down.
    let admin = server.user(Role::Admin).await;
    let audit = server.get("/api/v1/audit", &admin).await;
    let actions: Vec<&str> = audit["items"].as_array().unwrap().iter().map(|i| i["action"].as_str().unwrap()).collect();
    let expected =
        ["rule.remove", "rule.add", "machine.criticality", "hold.place", "hold.place", "hold.end", "hold.place"];
    assert_eq!(actions, expected);
    assert_eq!(audit["items"][6]["after"]["reason"], "gearbox is out");
}

#[tokio::test(flavor = "multi_thread")]
async fn alarms_are_filtered_sorted_and_paged() {
    let server = Server::start().await;
    let token = server.user(Role::Viewer).await;
    let gateway = server.gateway("north").await;
    let (machine, _) = server.machine(gateway, "pump-1", &["flow", "pressure"]).await;
    let now = clock::now();
    for (n, severity) in ["low", "critical", "medium", "high", "critical", "low"].into_iter().enumerate() {
        server.alarm(gateway, machine, "unacknowledged", severity, now - SignedDuration::from_mins(n as i64)).await;
    }
    let all = async |query: &str| {
        let (mut severities, mut cursor) = (Vec::new(), String::new());
        loop {
            let page = server.get(&format!("/api/v1/alarms?limit=4&{query}&cursor={cursor}"), &token).await;
            let items = page["items"].as_array().unwrap();
            severities.extend(items.iter().map(|alarm| alarm["severity"].as_str().unwrap()[..1].to_owned()));
            match page["next_cursor"].as_str() {
                Some(next) => cursor = next.to_owned(),
                None => return severities.concat(),
            }
        }
    };
    assert_eq!(all("sort=raised_at").await, "lcmhcl");
    assert_eq!(all("sort=severity").await, "cchmll");
    assert_eq!(all("severity=high&sort=severity").await, "cch");
    assert_eq!(all(&format!("gateway={gateway}&to={}", now - SignedDuration::from_secs(90))).await, "mhcl");
    assert_eq!(all(&format!("gateway={}", Uuid::now_v7())).await, "");
    assert_eq!(all("site=00000000-0000-7000-8000-000000000002").await, "lcmhcl");
    assert_eq!(all(&format!("site={}", Uuid::now_v7())).await, "");
    assert_eq!(server.call("GET", "/api/v1/alarms?sort=name", Some(&token), None).await.status, 422);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_figures_of_an_alarm_system() {
    let server = Server::start().await;
    let token = server.user(Role::Viewer).await;
    let gateway = server.gateway("north").await;
    let (machine, _) = server.machine(gateway, "pump-1", &["flow", "pressure"]).await;
    // Eleven of one condition within ten minutes, acknowledged after 10, 20, … 110 s; one of another, an hour later; one that was
    // held back; and one that has stood for two days.
    server
        .sql(&format!(
            "INSERT INTO alarms (id, site_id, gateway_id, machine_id, condition, state, severity, message, raised_at, arrived_at,
                                 late, annunciated_at, acknowledged_at, returned_at)
             SELECT gen_random_uuid(), '00000000-0000-7000-8000-000000000002', '{gateway}', '{machine}', c, s, 'low', c, t, t, false,
                    told, told + a * interval '1 second', CASE WHEN s = 'normal' THEN t END
             FROM (SELECT 'often', 'normal', '2026-03-01T10:00:00Z'::timestamptz + n * interval '50 seconds',
                          '2026-03-01T10:00:00Z'::timestamptz + n * interval '50 seconds', 10 * (n + 1) FROM generate_series(0, 10) n
                   UNION ALL SELECT 'once', 'normal', '2026-03-01T11:00:00Z', '2026-03-01T11:00:00Z', NULL
                   UNION ALL SELECT 'held', 'normal', '2026-03-01T11:00:00Z', NULL, NULL
                   UNION ALL SELECT 'stands', 'acknowledged', '2026-02-27T09:00:00Z', '2026-02-27T09:00:00Z', 1) AS x (c, s, t, told, a)"
        ))
        .await;
    let read = async |query: &str| server.get(&format!("/api/v1/alarms/quality?{query}"), &token).await;
    let day = "from=2026-03-01T00:00:00Z&to=2026-03-02T00:00:00Z";
    let figures = read(day).await;
    let near = |key: &str, expected: f64| {
        let found = figures[key].as_f64().unwrap();
        assert!((found - expected).abs() < 1e-9, "{key}: {found}");
    };
    assert_eq!((&figures["alarms"], &figures["stale"], &figures["chattering"]), (&json!(12), &json!(1), &json!(1)));
    near("rate", 12.0 / 144.0);
    near("rate_max", 11.0);
    near("flood_percent", 100.0 / 144.0);
    near("acknowledge_s_median", 60.0);
    near("acknowledge_s_p90", 100.0);
    assert_eq!(figures["acknowledged"], 11);
    assert_eq!((&figures["top"][0]["condition"], &figures["top"][0]["count"]), (&json!("often"), &json!(11)));
    assert_eq!(
        (&figures["top"][1]["condition"], &figures["top"][1]["machine_name"]),
        (&json!("once"), &json!("pump-1"))
    );
    let two = read(&format!("{day}&operators=2")).await;
    assert_eq!((&two["rate_max"], &two["flood_percent"]), (&json!(5.5), &json!(0.0)));
    let other = read(&format!("{day}&site={}", Uuid::now_v7())).await;
    assert_eq!((&other["alarms"], &other["acknowledge_s_median"]), (&json!(0), &Value::Null));
    for query in ["from=2026-03-02T00:00:00Z&to=2026-03-01T00:00:00Z", "from=2020-01-01T00:00:00Z", "operators=0"] {
        let path = format!("/api/v1/alarms/quality?{query}");
        assert_eq!(server.call("GET", &path, Some(&token), None).await.status, 422, "{query}");
    }
}
