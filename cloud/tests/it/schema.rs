//! Migrations and the private cluster.

use std::os::unix::fs::PermissionsExt as _;

use gemba_cloud::{
    cluster::{Cluster, Durability},
    store::{Store, migrate::MigrateError},
};

use crate::database;

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
