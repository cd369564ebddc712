//! Migrations and the private cluster.

use std::os::unix::fs::PermissionsExt as _;

use gemba_cloud::{
    clock,
    cluster::{Cluster, Durability},
    intake::write::Days,
    store::{Store, migrate::MigrateError, scoped, scoped::RoleError, users::DEFAULT_ORGANISATION},
    users::scope::Scope,
};

use crate::{
    database,
    plant::{self, ago, bench, catalog, count, rows, summaries, summary},
};

#[tokio::test]
async fn two_programs_migrate_an_empty_database_once() {
    let config = database::empty().await;
    let first = Store::new(config.clone(), 2).unwrap();
    let second = Store::new(config, 2).unwrap();
    assert!(matches!(first.check_schema().await, Err(MigrateError::Behind(1))));
    let (a, b) = tokio::join!(first.migrate(), second.migrate());
    let (a, b) = (a.unwrap(), b.unwrap());
    assert!(a.is_empty() != b.is_empty(), "{a:?} {b:?}");
    first.check_schema().await.unwrap();
    assert!(first.migrate().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_newer_database_is_refused() {
    let store = database::store().await;
    let client = store.client().await.unwrap();
    client.execute("INSERT INTO migrations VALUES (1000, 'later', '')", &[]).await.unwrap();
    assert!(matches!(store.check_schema().await, Err(MigrateError::Newer { found: 1000, .. })));
    assert!(matches!(store.migrate().await, Err(MigrateError::Newer { .. })));
}

#[tokio::test]
async fn an_ordinary_owner_of_a_database_needs_the_role_and_is_told_how() {
    // The role is there: other databases of the cluster have it.
    let store = database::store().await;
    let mut config = database::empty().await;
    let name = config.get_dbname().unwrap().to_owned();
    let client = store.client().await.unwrap();
    let owner = format!("owner_{name}");
    client.batch_execute(&format!("CREATE ROLE {owner} LOGIN PASSWORD 'x'")).await.unwrap();
    client.batch_execute(&format!("ALTER DATABASE {name} OWNER TO {owner}")).await.unwrap();
    config.user(&owner).password("x");
    let theirs = Store::new(config, 2).unwrap();
    let refused = theirs.migrate().await.unwrap_err();
    assert!(matches!(refused, MigrateError::Role(RoleError::NotGranted(_))), "{refused:?}");
    assert!(refused.to_string().contains(&format!("GRANT gemba_app TO \"{owner}\"")), "{refused}");
    client.batch_execute(&format!("GRANT gemba_app TO {owner}")).await.unwrap();
    assert!(!theirs.migrate().await.unwrap().is_empty());
    let scope = Scope::new(DEFAULT_ORGANISATION, &[], &[]);
    let mut theirs = theirs.client().await.unwrap();
    let transaction = scoped(&mut theirs, &scope).await.unwrap();
    let row =
        transaction.query_one("SELECT current_user::text, (SELECT count(*) FROM organisations)", &[]).await.unwrap();
    assert_eq!((row.get(0), row.get(1)), ("gemba_app", 1_i64));
    drop(transaction);
    // The settings end with the transaction, also on a connection that goes on.
    let row = theirs.query_one("SELECT current_user::text, current_setting('gemba.organisation')", &[]).await.unwrap();
    assert_eq!((row.get(0), row.get(1)), (owner.as_str(), ""));
}

#[tokio::test]
async fn a_cluster_is_adopted_shared_and_stopped_by_its_last_user() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
    let path = directory.path().join("pg");
    let first = Cluster::start(&path, Durability::Careless).await.unwrap();
    let pid = first.server_pid().unwrap();
    let second = Cluster::start(&path, Durability::Careless).await.unwrap();
    assert_eq!(second.server_pid(), Some(pid), "it goes on with the server that runs");

    first.stop().await.unwrap();
    let store = Store::new(second.config(), 1).unwrap();
    store.ping().await.unwrap();
    store.close();
    second.stop().await.unwrap();

    let again = Cluster::start(&path, Durability::Careless).await.unwrap();
    assert_ne!(again.server_pid(), Some(pid));
    Store::new(again.config(), 1).unwrap().ping().await.unwrap();
    again.stop().await.unwrap();
}

#[tokio::test]
async fn a_server_that_ends_before_it_is_ready_is_followed_by_another() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
    let path = directory.path().join("pg");
    let first = Cluster::start(&path, Durability::Careless).await.unwrap();
    let data = path.canonicalize().unwrap().join("data");
    first.stop().await.unwrap();
    // Looks like one that starts, until its input ends.
    let mut dying = std::process::Command::new("sh")
        .args(["-c", "cat > /dev/null", "postgres"])
        .arg(&data)
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    // What was just made has no arguments yet for a moment.
    let named = data.to_str().unwrap();
    while !std::fs::read_to_string(format!("/proc/{}/cmdline", dying.id())).unwrap().contains(named) {
        std::thread::yield_now();
    }
    let pid_file = data.join("postmaster.pid");
    std::fs::write(&pid_file, format!("{}\n{}\n0\n5432\n\n\n\nstarting\n", dying.id(), data.display())).unwrap();
    let second = tokio::spawn(async move { Cluster::start(&path, Durability::Careless).await });
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    assert!(!second.is_finished(), "it waits for the one that starts");
    drop(dying.stdin.take());
    dying.wait().unwrap();
    let second = second.await.unwrap().unwrap();
    Store::new(second.config(), 1).unwrap().ping().await.unwrap();
    second.stop().await.unwrap();
}

/// The views for other tools are a contract: what is here may not go, columns may be added at the end.
#[tokio::test]
async fn the_views_for_other_tools_are_what_the_readme_says() {
    let store = database::store().await;
    let columns = "SELECT table_name::text, string_agg(column_name || ' ' || data_type, ', ' ORDER BY ordinal_position)
                   FROM information_schema.columns JOIN information_schema.views USING (table_schema, table_name)
                   WHERE table_schema = 'public' AND column_name NOT IN ('organisation', 'site', 'gateway', 'machine', 'machine_id')
                     AND table_name ~ '_(intervals|hours|days|v1)$'
                   GROUP BY 1 ORDER BY 1";
    expect_test::expect![[r"
        machine_days time timestamp with time zone, intervals integer, score_max real, health_percent_min real, energy_wh double precision, unknown_s numeric, off_s numeric, idle_s numeric, running_s numeric, anomalous_s numeric
        machine_hours time timestamp with time zone, intervals integer, score_max real, health_percent_min real, energy_wh double precision, unknown_s numeric, off_s numeric, idle_s numeric, running_s numeric, anomalous_s numeric
        machine_intervals time timestamp with time zone, interval_ms integer, detector text, score real, health_percent real, mode text, energy_wh double precision, clock_trusted boolean
        sensor_days sensor text, unit text, time timestamp with time zone, readings bigint, min double precision, max double precision, mean double precision, sd double precision, last double precision
        sensor_hours sensor text, unit text, time timestamp with time zone, readings bigint, min double precision, max double precision, mean double precision, sd double precision, last double precision
        sensor_intervals sensor text, unit text, time timestamp with time zone, interval_ms integer, readings integer, min double precision, max double precision, mean double precision, sd double precision, last double precision, quality text
        tickets_v1 time timestamp with time zone, number bigint, kind text, priority text, state text, title text, assignee text, incident_id uuid, due_at timestamp with time zone, started_at timestamp with time zone, done_at timestamp with time zone, closed_at timestamp with time zone, reopened integer, in_progress_s numeric, on_hold_s numeric, failure_mode text, cause text, remedy text, alarm_correct text, currency text, estimate_minor bigint, labour_minutes bigint, labour_minor bigint, part_minor bigint, other_minor bigint"]]
    .assert_eq(&rows(&store, columns).await);

    // What a tool sees with the role of its own, and nothing of another organisation.
    let gateway = plant::enrolled(&store, "g").await;
    let records = vec![catalog("m", 1, &["a", "b"]), summary("m", ago(20), &[1.5]), summary("m", ago(10), &[2.5, 7.0])];
    let batch = gateway.incoming(summaries(1, records));
    bench(&store).intake.write(&[batch], &Days::default(), clock::now()).await.unwrap();
    let role = format!("tool_{}", std::process::id());
    let client = store.client().await.unwrap();
    client
        .batch_execute(&format!(
            "CREATE ROLE {role} LOGIN PASSWORD 'x' IN ROLE gemba_app;
             ALTER ROLE {role} SET default_transaction_read_only = on;
             ALTER ROLE {role} SET gemba.organisation = '{DEFAULT_ORGANISATION}';
             ALTER ROLE {role} SET gemba.sites = '{{00000000-0000-7000-8000-000000000002}}'"
        ))
        .await
        .unwrap();
    let mut config = database::config_of(&store).await;
    config.user(&role).password("x");
    let tool = Store::new(config, 1).unwrap();
    let seen = "SELECT organisation, site, gateway, machine, sensor, unit, readings, min, max, mean, sd, last, quality
                FROM sensor_intervals ORDER BY time, sensor";
    assert_eq!(
        rows(&tool, seen).await,
        "default default g m a bar 10 0.5 2.5 1.5 0.5 1.5 good\n\
         default default g m a bar 10 1.5 3.5 2.5 0.5 2.5 good\n\
         default default g m b bar 10 6 8 7 0.5 7 good"
    );
    let hours = "SELECT sensor, sum(readings), min(min), max(max) FROM sensor_hours GROUP BY 1 ORDER BY 1";
    assert_eq!(rows(&tool, hours).await, "a 20 0.5 3.5\nb 10 6 8");
    let days = "SELECT sum(intervals), sum(energy_wh), sum(running_s)::int, max(score_max) FROM machine_days";
    assert_eq!(rows(&tool, days).await, "2 3 20 0.5");
    let refused = tool.client().await.unwrap().execute("DELETE FROM rollup_days", &[]).await;
    assert!(refused.is_err(), "it only reads");
    client.batch_execute(&format!("ALTER ROLE {role} SET gemba.sites = '{{}}'")).await.unwrap();
    tool.close();
    let mut config = database::config_of(&store).await;
    config.user(&role).password("x");
    let tool = Store::new(config, 1).unwrap();
    for view in [
        "sensor_intervals",
        "machine_intervals",
        "sensor_hours",
        "sensor_days",
        "machine_hours",
        "machine_days",
        "tickets_v1",
    ] {
        assert_eq!(count(&tool, &format!("SELECT count(*) FROM {view}")).await, 0, "{view}");
    }
}
