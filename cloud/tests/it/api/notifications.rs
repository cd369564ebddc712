//! Webhooks, choices and deliveries over the API.

use gemba_cloud::{store::users::DEFAULT_ORGANISATION, users::Role};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Server, ids};

#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_chooses() {
    let server = Server::start().await;
    let token = server.user(Role::Viewer).await;
    let first = server.get("/api/v1/me/notifications", &token).await;
    let standard = json!({
        "email": true, "severity_min": "low", "sites": null, "quiet": null, "critical_passes": true,
        "address": null, "mail_available": true,
    });
    assert_eq!(first, standard);
    let site = server.site(DEFAULT_ORGANISATION, "second").await;
    let quiet = json!({"days": ["friday", "monday"], "from": "22:00", "to": "05:30", "time_zone": "Europe/Berlin"});
    let choice = json!({
        "email": false, "severity_min": "high", "sites": [site, site], "quiet": quiet, "critical_passes": false,
    });
    let put = |body: Value| server.call("PUT", "/api/v1/me/notifications", Some(&token), Some(body));
    let kept = put(choice.clone()).await;
    assert_eq!(kept.status, 200, "{}", kept.body);
    let again = server.get("/api/v1/me/notifications", &token).await;
    assert_eq!(kept.body, again);
    assert_eq!((&again["sites"], &again["severity_min"]), (&json!([site]), &json!("high")));
    assert_eq!(again["quiet"]["days"], json!(["monday", "friday"]));
    assert_eq!((&again["quiet"]["from"], &again["quiet"]["to"]), (&json!("22:00"), &json!("05:30")));
    let mine = ("PUT", "/api/v1/me/notifications");
    for (tag, status) in [("\"0\"", 412), (kept.headers["etag"].to_str().unwrap(), 200)] {
        let put = server.call_with(mine.0, mine.1, Some(&token), Some(choice.clone()), &[("if-match", tag)]).await;
        assert_eq!(put.status, status, "{tag}: {}", put.body);
    }
    // Nobody else's is changed by it.
    let other = server.user(Role::Viewer).await;
    assert_eq!(server.get("/api/v1/me/notifications", &other).await, standard);
    let foreign = server.organisation("other").await;
    let theirs = server.site(foreign, "theirs").await;
    let with = |path: &[&str], value: Value| {
        let mut body = choice.clone();
        let mut at = &mut body;
        for key in path {
            at = &mut at[*key];
        }
        *at = value;
        body
    };
    for (body, field) in [
        (with(&["sites"], json!([theirs])), "sites"),
        (with(&["sites"], json!([Uuid::now_v7()])), "sites"),
        (with(&["sites"], json!(vec![site; 501])), "sites"),
        (with(&["quiet", "time_zone"], json!("Mars/Olympus")), "quiet.time_zone"),
        (with(&["quiet", "time_zone"], json!("../../../etc/localtime")), "quiet.time_zone"),
        (with(&["quiet", "time_zone"], json!("x".repeat(10_000))), "quiet.time_zone"),
        (with(&["quiet", "days"], json!([])), "quiet.days"),
        (with(&["quiet", "from"], json!("24:00")), "quiet.from"),
        (with(&["quiet", "to"], json!("6:00")), "quiet.to"),
        (with(&["quiet", "to"], json!("06:00:00")), "quiet.to"),
    ] {
        let refused = put(body).await;
        assert_eq!((refused.status, &refused.body["errors"][0]["field"]), (422, &json!(field)), "{}", refused.body);
    }
    for body in
        [json!({"email": true}), with(&["severity_min"], json!("fatal")), with(&["quiet", "days"], json!(["noday"]))]
    {
        assert_eq!(put(body).await.status, 422);
    }
    let admin = server.user(Role::Admin).await;
    let audit = server.get("/api/v1/audit?action=user.notifications", &admin).await;
    assert_eq!(audit["items"].as_array().unwrap().len(), 1);
    assert_eq!(audit["items"][0]["after"]["quiet"]["time_zone"], "Europe/Berlin");
}

#[tokio::test(flavor = "multi_thread")]
async fn webhooks_are_kept() {
    let server = Server::start().await;
    let admin = server.user(Role::Admin).await;
    let site = server.site(DEFAULT_ORGANISATION, "second").await;
    let foreign = server.organisation("other").await;
    let theirs = server.site(foreign, "theirs").await;
    let stranger = server.user_at(foreign, &[(None, Role::Admin)]).await;
    let add = |body: Value| {
        let (server, admin) = (&server, &admin);
        async move { server.post("/api/v1/webhooks", admin, body).await }
    };
    let (status, made) =
        add(json!({"name": " CMMS ", "url": "https://cmms.example/hook?key=s3cret#x", "sites": [site]})).await;
    assert_eq!(status, 201, "{made}");
    assert_eq!((&made["name"], &made["url"]), (&json!("CMMS"), &json!("https://cmms.example/hook?key=s3cret")));
    assert_eq!(
        (&made["enabled"], &made["severity_min"], &made["sites"]),
        (&json!(true), &json!("low"), &json!([site]))
    );
    assert!(made["secret"].as_str().unwrap().starts_with("whsec_"));
    let path = format!("/api/v1/webhooks/{}", made["id"].as_str().unwrap());
    let shown = server.get(&path, &admin).await;
    assert!(shown["secret"].is_null() && shown["secret_generation"].is_null(), "{shown}");
    assert_eq!(server.get("/api/v1/webhooks", &admin).await["items"], json!([shown]));

    for (body, field) in [
        (json!({"name": "", "url": "https://a.example"}), "name"),
        (json!({"name": "a\nb", "url": "https://a.example"}), "name"),
        (json!({"name": "b", "url": "ftp://a.example"}), "url"),
        (json!({"name": "b", "url": "https://u:p@a.example"}), "url"),
        (json!({"name": "b", "url": "http://169.254.169.254/"}), "url"),
        (json!({"name": "b", "url": "http://[::ffff:a9fe:a9fe]/"}), "url"),
        // The daemon's own.
        (json!({"name": "b", "url": "http://127.1:1/"}), "url"),
        (json!({"name": "b", "url": "https://a.example", "sites": [theirs]}), "sites"),
    ] {
        let (status, refused) = add(body).await;
        assert_eq!((status, &refused["errors"][0]["field"]), (422, &json!(field)), "{refused}");
    }
    let (status, refused) = add(json!({"name": "cmms", "url": "https://b.example"})).await;
    assert_eq!((status, &refused["code"]), (409, &json!("name_taken")));
    let (status, second) = add(json!({"name": "second", "url": "https://b.example"})).await;
    assert_eq!(status, 201, "{second}");
    let second = format!("/api/v1/webhooks/{}", second["id"].as_str().unwrap());
    let patch = |path: &str, body: Value| {
        let (server, admin, path) = (&server, &admin, path.to_owned());
        async move { server.call("PATCH", &path, Some(admin), Some(body)).await }
    };
    let taken = patch(&second, json!({"name": "CMMS"})).await;
    assert_eq!((taken.status, &taken.body["code"]), (409, &json!("name_taken")));
    let changed = patch(&path, json!({"sites": null, "severity_min": "critical", "enabled": false})).await;
    assert_eq!((changed.status, &changed.body["sites"], &changed.body["enabled"]), (200, &json!(null), &json!(false)));
    assert_eq!(patch(&path, json!({"url": "file:///etc/passwd"})).await.status, 422);

    // Another organisation's admin finds nothing.
    assert!(ids(&server.get("/api/v1/webhooks", &stranger).await).is_empty());
    for (method, path) in [
        ("GET", path.clone()),
        ("PATCH", path.clone()),
        ("DELETE", path.clone()),
        ("POST", format!("{path}/secret")),
        ("POST", format!("{path}/test")),
    ] {
        let body = (method == "PATCH").then(|| json!({}));
        assert_eq!(server.call(method, &path, Some(&stranger), body).await.status, 404, "{method} {path}");
    }
    let one_site = server.user_at(DEFAULT_ORGANISATION, &[(Some(site), Role::Admin)]).await;
    assert_eq!(server.call("GET", "/api/v1/webhooks", Some(&one_site), None).await.status, 403);

    assert_eq!(server.call("DELETE", &path, Some(&admin), None).await.status, 204);
    assert_eq!(server.call("GET", &path, Some(&admin), None).await.status, 404);
    let (status, _) = add(json!({"name": "CMMS", "url": "https://c.example"})).await;
    assert_eq!(status, 201, "the name is free again");
    for n in 2..50 {
        assert_eq!(add(json!({"name": format!("n{n}"), "url": "https://c.example"})).await.0, 201);
    }
    assert_eq!(add(json!({"name": "too many", "url": "https://c.example"})).await.1["code"], "too_many");

    let audit = server.get("/api/v1/audit?object=webhook&limit=200", &admin).await;
    let text = audit.to_string();
    for action in ["webhook.add", "webhook.change", "webhook.delete"] {
        assert!(text.contains(action), "{action}");
    }
    assert!(!text.contains("s3cret") && !text.contains("whsec"), "no secret of a URL's is written down");
}

#[tokio::test(flavor = "multi_thread")]
async fn deliveries_are_listed_by_site() {
    let server = Server::start().await;
    let second = server.site(DEFAULT_ORGANISATION, "second").await;
    let here = server.plant_at(Uuid::from_u128(0x0000_0000_0000_7000_8000_0000_0000_0002)).await;
    let there = server.plant_at(second).await;
    let admin = server.user(Role::Admin).await;
    let body = json!({"name": "test", "url": "http://127.0.0.1:9/"});
    let (_, webhook) = server.post("/api/v1/webhooks", &admin, body).await;
    let test = format!("/api/v1/webhooks/{}/test", webhook["id"].as_str().unwrap());
    let (status, tested) = server.post(&test, &admin, json!({})).await;
    assert_eq!((status, &tested["site_id"]), (202, &json!(null)));
    let all = server.get("/api/v1/deliveries", &admin).await;
    assert_eq!(ids(&all).len(), 3);
    for (query, count) in [
        ("state=waiting&channel=webhook".to_owned(), 1),
        ("channel=email".to_owned(), 2),
        ("state=sent".to_owned(), 0),
        (format!("webhook={}", webhook["id"].as_str().unwrap()), 1),
        (format!("incident={}", Uuid::now_v7()), 0),
        ("limit=2".to_owned(), 2),
    ] {
        assert_eq!(ids(&server.get(&format!("/api/v1/deliveries?{query}"), &admin).await).len(), count, "{query}");
    }
    let supervisor = server.user_at(DEFAULT_ORGANISATION, &[(Some(second), Role::Supervisor)]).await;
    let list = server.get("/api/v1/deliveries", &supervisor).await;
    assert_eq!(ids(&list), [there.delivery.to_string()]);
    for (id, status) in [(there.delivery.to_string(), 200), (here.delivery.to_string(), 404)] {
        let path = format!("/api/v1/deliveries/{id}/retry");
        assert_eq!(server.post(&path, &supervisor, json!({})).await.0, status);
    }
    // A test is made anew, not tried again.
    let path = format!("/api/v1/deliveries/{}/retry", tested["id"].as_str().unwrap());
    assert_eq!(server.post(&path, &admin, json!({})).await.0, 404);
    for _ in 0..9 {
        assert_eq!(server.post(&test, &admin, json!({})).await.0, 202);
    }
    assert_eq!(server.post(&test, &admin, json!({})).await.1["code"], "too_many");
    for bad in ["state=lost", "channel=pigeon", "webhook=1", "nothing=1"] {
        assert_eq!(
            server.call("GET", &format!("/api/v1/deliveries?{bad}"), Some(&admin), None).await.status,
            422,
            "{bad}"
        );
    }
}
