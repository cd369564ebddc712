//! A database that an earlier release filled: each release's schema, with what people and gateways put into it, brought up to date.

use std::{fs, path::Path};

use gemba_cloud::{store::Store, users::Role};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::{
    api::Server,
    database,
    plant::{count, rows},
};

/// The last step of the release whose data [`base`] writes, and those of the releases since.
const LEVELS: [usize; 6] = [7, 8, 9, 10, 11, 12];
/// The step that made hours of energy of what there was; releases since write them as they come.
const ENERGY: usize = 11;
const RANGE: &str = "from=2026-03-01T00:00:00Z&to=2026-03-04T00:00:00Z";
const SITE: &str = "00000000-0000-7000-8000-000000000002";
const ORGANISATION: &str = "00000000-0000-7000-8000-000000000001";

fn steps() -> Vec<(i32, String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations");
    let mut steps: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_str().unwrap();
            let (number, name) = name.split_once('_').unwrap();
            (number.parse().unwrap(), name.to_owned(), fs::read_to_string(&path).unwrap())
        })
        .collect();
    steps.sort();
    steps
}

/// A database as the release left it whose last step is number `level`.
async fn at_level(level: usize) -> Store {
    // The role is there: other databases of the cluster have it.
    drop(database::store().await);
    let store = Store::new(database::empty().await, 4).unwrap();
    let client = store.client().await.unwrap();
    client
        .batch_execute(
            "CREATE TABLE migrations (number integer PRIMARY KEY, name text NOT NULL, sha256 bytea NOT NULL,
                                      applied_at timestamptz NOT NULL DEFAULT now())",
        )
        .await
        .unwrap();
    for (number, name, text) in steps().iter().take(level) {
        client.batch_execute(text).await.unwrap_or_else(|error| panic!("{number} {name}: {error:?}"));
        let sha256 = Sha256::digest(text).to_vec();
        let insert = "INSERT INTO migrations (number, name, sha256) VALUES ($1, $2, $3)";
        client.execute(insert, &[number, name, &sha256]).await.unwrap();
    }
    drop(client);
    store
}

struct Filled {
    machine: Uuid,
    alarm: Uuid,
    incident: Uuid,
    user: Uuid,
}

/// Three days of hours with energy (a hole in the second), an alarm that was closed into an incident with a notice and a delivery,
/// a rule, a webhook, a command, and somebody of the second site only.
async fn base(store: &Store) -> Filled {
    let [gateway, machine, alarm, anomaly, incident, user, notice, webhook] = [(); 8].map(|()| Uuid::now_v7());
    let sql = format!(
        "INSERT INTO gateways (id, site_id, name, state, last_seen_at) VALUES ('{gateway}', '{SITE}', 'north', 'enrolled', now());
         INSERT INTO machines (id, gateway_id, name, last_reading_at, detector, mode, last_values)
             VALUES ('{machine}', '{gateway}', 'pump-1', now(), 'watching', 'running', '{{0.5}}');
         INSERT INTO sensors (machine_id, position, name, unit) VALUES ('{machine}', 0, 'flow', 'l');
         INSERT INTO users (id, organisation_id, name, password_hash, must_change_password)
             VALUES ('{user}', '{ORGANISATION}', 'ada', 'x', false);
         INSERT INTO grants (user_id, organisation_id, site_id, role) VALUES ('{user}', '{ORGANISATION}', NULL, 'admin');
         INSERT INTO anomalies (id, machine_id, opened_at, updated_at, score, score_max, threshold, shares, model)
             VALUES ('{anomaly}', '{machine}', '2026-03-01 10:00Z', '2026-03-01 10:00Z', 1.5, 2.5, 3.0, '{{1}}', 'baseline 1');
         INSERT INTO incidents (id, organisation_id, site_id, gateway_id, machine_id, severity, opened_at, last_alarm_at)
             VALUES ('{incident}', '{ORGANISATION}', '{SITE}', '{gateway}', '{machine}', 'high', '2026-03-01 10:00Z', '2026-03-01 10:00Z');
         INSERT INTO alarms (id, site_id, gateway_id, machine_id, condition, state, severity, message, anomaly_id, raised_at, arrived_at,
                             late, incident_id)
             VALUES ('{alarm}', '{SITE}', '{gateway}', '{machine}', 'anomaly', 'unacknowledged', 'high', 'It is loud', '{anomaly}',
                     '2026-03-01 10:00Z', '2026-03-01 10:00Z', false, '{incident}');
         INSERT INTO notices (id, incident_id, organisation_id, site_id, reason, severity, role, created_at)
             VALUES ('{notice}', '{incident}', '{ORGANISATION}', '{SITE}', 'opened', 'high', 'operator', '2026-03-01 10:00Z');
         INSERT INTO webhooks (id, organisation_id, name, url, severity_min, enabled, created_at, updated_at)
             VALUES ('{webhook}', '{ORGANISATION}', 'CMMS', 'https://cmms.example/', 'low', true, now(), now());
         INSERT INTO deliveries (id, organisation_id, site_id, kind, notice_id, incident_id, severity, channel, webhook_id, recipient,
                                 state, content, not_before, created_at)
             VALUES (gen_random_uuid(), '{ORGANISATION}', '{SITE}', 'notice', '{notice}', '{incident}', 'high', 'webhook', '{webhook}',
                     'CMMS', 'sent', '{{}}', now(), now());
         INSERT INTO commands (gateway_id, number, kind, created_at, created_by, expires_at, state)
             VALUES ('{gateway}', 7, '\"Reload\"', now(), '{user}', now(), 'done')"
    );
    let client = store.client().await.unwrap();
    client.batch_execute(&sql).await.unwrap_or_else(|error| panic!("{error:?}"));
    drop(client);
    let day = |text: &str| text.parse().unwrap();
    store.make_days(&["2026-03-01", "2026-03-02", "2026-03-03"].map(day).into()).await.unwrap();
    store
        .client()
        .await
        .unwrap()
        .batch_execute(
            "INSERT INTO summaries (machine_key, start, interval_ms, counts, mins, maxs, means, sds, lasts, qualities, detector, mode,
                                    energy_wh, clock_trusted)
             SELECT (SELECT key FROM machines), at, 3600000, '{60}', '{1}', '{3}', '{2}', '{0}', '{3}', '\\x00', 1, 3,
                    CASE WHEN extract(hour FROM at) < 22 THEN 500 END, true
             FROM generate_series('2026-03-01 00:00Z'::timestamptz, '2026-03-03 23:00Z', '1 hour') at
             WHERE at NOT BETWEEN '2026-03-02 06:00Z' AND '2026-03-02 11:00Z'",
        )
        .await
        .unwrap();
    crate::history::make_hours_and_days(store).await;
    Filled { machine, alarm, incident, user }
}

/// What the release with tickets put there, and the one with plans.
async fn work(store: &Store, filled: &Filled, level: usize) {
    let Filled { machine, incident, user, .. } = filled;
    let ticket = Uuid::now_v7();
    let client = store.client().await.unwrap();
    if level >= 9 {
        let sql = format!(
            "INSERT INTO tickets (id, organisation_id, site_id, number, machine_id, incident_id, kind, priority, title, state,
                                  state_since, created_at, updated_at, started_at, done_at, closed_at, currency, failure_mode)
                 VALUES ('{ticket}', '{ORGANISATION}', '{SITE}', 1, '{machine}', '{incident}', 'corrective', 'high', 'Mend it',
                         'closed', '2026-03-01 13:00Z', '2026-03-01 10:05Z', '2026-03-01 13:00Z', '2026-03-01 11:00Z',
                         '2026-03-01 12:00Z', '2026-03-01 13:00Z', 'EUR', 'NOI');
             INSERT INTO ticket_numbers VALUES ('{ORGANISATION}', 1);
             INSERT INTO ticket_costs (id, ticket_id, kind, amount_minor, created_at, created_by)
                 VALUES (gen_random_uuid(), '{ticket}', 'part', 1250, '2026-03-01 12:00Z', '{user}');
             INSERT INTO ticket_steps (id, ticket_id, at, to_state) VALUES (gen_random_uuid(), '{ticket}', '2026-03-01 10:05Z', 'open');"
        );
        client.batch_execute(&sql).await.unwrap_or_else(|error| panic!("{error:?}"));
    }
    if level >= 10 {
        let sql = format!(
            "INSERT INTO plans (id, organisation_id, site_id, machine_id, title, description, priority, checklist, every_h, counted_from,
                                lead_h, enabled, created_at, created_by, updated_at)
             VALUES (gen_random_uuid(), '{ORGANISATION}', '{SITE}', '{machine}', 'Oil', '', 'low', '{{}}', 500, now(), 0, true, now(),
                     '{user}', now())"
        );
        client.batch_execute(&sql).await.unwrap_or_else(|error| panic!("{error:?}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_earlier_release_stored_is_there_after_each_step_and_read() {
    let all = steps();
    for level in LEVELS {
        let store = at_level(level).await;
        let filled = base(&store).await;
        work(&store, &filled, level).await;
        let applied = store.migrate().await.unwrap();
        assert_eq!(applied, all[level..].iter().map(|(number, ..)| *number).collect::<Vec<_>>(), "from {level}");
        store.check_schema().await.unwrap();
        let server = Server::ready(store).await;
        read(&server, &filled, level).await;
    }
}

async fn read(server: &Server, filled: &Filled, level: usize) {
    let token = server.user(Role::Admin).await;
    let get = async |path: &str| server.get(path, &token).await;
    let machine = get(&format!("/api/v1/machines/{}", filled.machine)).await;
    assert_eq!((&machine["name"], &machine["sensors_count"]), (&json!("pump-1"), &json!(1)), "from {level}");
    let alarm = get(&format!("/api/v1/alarms/{}", filled.alarm)).await;
    assert_eq!((&alarm["state"], &alarm["incident_id"]), (&json!("unacknowledged"), &json!(filled.incident)));
    let incident = get(&format!("/api/v1/incidents/{}", filled.incident)).await;
    assert_eq!(incident["severity"], "high");
    assert_eq!(get("/api/v1/webhooks").await["items"][0]["name"], "CMMS");
    assert_eq!(get("/api/v1/deliveries").await["items"][0]["state"], "sent");
    let gateway = get("/api/v1/gateways").await["items"][0]["id"].as_str().unwrap().to_owned();
    assert_eq!(get(&format!("/api/v1/gateways/{gateway}/commands")).await["items"][0]["state"], "done");

    if level < ENERGY {
        energy(server, &token, level).await;
    }

    // People go on with it.
    let (tickets, plans) = (get("/api/v1/tickets").await, get("/api/v1/plans").await);
    let [tickets, plans] = [tickets, plans].map(|list| list["items"].as_array().unwrap().len());
    assert_eq!((tickets, plans), (usize::from(level >= 9), usize::from(level >= 10)), "from {level}");
    if level >= 9 {
        let reliability = get(&format!("/api/v1/reliability?{RANGE}")).await;
        assert!(reliability.to_string().contains("1250"), "{reliability}");
    }
    let body = json!({"machine": filled.machine, "title": "Look", "kind": "inspection", "priority": "low"});
    let (status, made) = server.post("/api/v1/tickets", &token, body).await;
    assert_eq!((status, &made["number"]), (201, &json!(tickets + 1)), "{made}");
    let labelled = format!("/api/v1/alarms/{}/acknowledge", filled.alarm);
    assert_eq!(server.post(&labelled, &token, json!({})).await.0, 200);
    assert_eq!(count(&server.store, "SELECT count(*) FROM audit").await, 2);
}

async fn energy(server: &Server, token: &str, level: usize) {
    // Hours of energy were made of what there was: 22 hours of each day, and six of the second are missing.
    let energy = server.get(&format!("/api/v1/energy?{RANGE}&per=day"), token).await;
    let hours = rows(&server.store, "SELECT start::date, array_to_string(wh, ',', '-'), array_to_string(measured_ms, ',') FROM energy_days ORDER BY 1").await;
    let of = |n: usize, hole: bool| {
        let at = |h: usize| if h >= 22 || (hole && (6..12).contains(&h)) { ("-", "0") } else { ("500", "3600000") };
        let (wh, ms): (Vec<_>, Vec<_>) = (0..24).map(at).unzip();
        format!("2026-03-0{n} {} {}", wh.join(","), ms.join(","))
    };
    assert_eq!(hours, [of(1, false), of(2, true), of(3, false)].join("\n"), "from {level}");
    assert_eq!(energy["energy_wh"], json!(500.0 * (22.0 + 16.0 + 22.0)), "{energy}");
}
