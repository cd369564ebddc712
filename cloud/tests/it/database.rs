//! One private cluster for all tests of this binary, a fresh database for each test.

use std::{
    os::unix::fs::PermissionsExt as _,
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use gemba_cloud::{
    cluster::{Cluster, Durability},
    store::Store,
};
use tokio::sync::OnceCell;

static CLUSTER: OnceCell<Cluster> = OnceCell::const_new();
static TEMPLATE: OnceCell<()> = OnceCell::const_new();
static DATABASES: AtomicU32 = AtomicU32::new(0);

async fn cluster() -> &'static Cluster {
    let start = || async {
        let directory = tempfile::Builder::new().prefix("gemba-test-").tempdir().expect("a temporary directory");
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o711)).expect("its mode");
        // The tests' end stops the server and removes the directory: this shell sees its input close then.
        let directory = directory.keep();
        let cluster = Cluster::start(&directory.join("pg"), Durability::Careless).await.expect("PostgreSQL starts");
        let pid = cluster.server_pid().expect("it runs");
        let script = "cat > /dev/null; kill -INT $1; while kill -0 $1; do sleep 0.1; done; rm -rf -- $2";
        let watch = Command::new("sh")
            .args(["-c", script, "sh", &pid.to_string()])
            .arg(&directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("a shell");
        std::mem::forget(watch);
        cluster
    };
    CLUSTER.get_or_init(start).await
}

/// A migrated database that no other test uses.
pub(crate) async fn config() -> tokio_postgres::Config {
    let cluster = cluster().await;
    let template = || async {
        cluster.create_database("template_gemba").await.expect("a template");
        let store = Store::new(cluster.config_of("template_gemba"), 2).expect("a store");
        store.migrate().await.expect("the migrations");
        store.close();
    };
    TEMPLATE.get_or_init(template).await;
    let name = format!("test_{}", DATABASES.fetch_add(1, Ordering::Relaxed));
    let (client, connection) =
        cluster.config_of("postgres").connect(tokio_postgres::NoTls).await.expect("a connection");
    let connection = tokio::spawn(connection);
    // A connection of the template that is still closing lets this fail for a moment.
    let made = format!("CREATE DATABASE {name} TEMPLATE template_gemba STRATEGY file_copy");
    for attempt in 0.. {
        match client.batch_execute(&made).await {
            Ok(()) => break,
            Err(error) if attempt > 100 => panic!("{error}"),
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(50)).await,
        }
    }
    drop(client);
    connection.await.expect("the connection's task").expect("an orderly end");
    cluster.config_of(&name)
}

/// A store over a migrated database that no other test uses.
pub(crate) async fn store() -> Store {
    Store::new(config().await, 8).expect("a store")
}

/// An empty database.
pub(crate) async fn empty() -> tokio_postgres::Config {
    let cluster = cluster().await;
    let name = format!("empty_{}", DATABASES.fetch_add(1, Ordering::Relaxed));
    cluster.create_database(&name).await.expect("a database");
    cluster.config_of(&name)
}

/// How the database of a store is reached.
pub(crate) async fn config_of(store: &Store) -> tokio_postgres::Config {
    let client = store.client().await.expect("a connection");
    let name: String = client.query_one("SELECT current_database()::text", &[]).await.expect("a name").get(0);
    cluster().await.config_of(&name)
}
