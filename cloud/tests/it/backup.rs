//! Backups: what is restored is what was there, in a cluster that knew nothing of it.

use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt as _, path::Path};

use gemba_cloud::{
    backup::{self, Reach},
    clock,
    cluster::{Cluster, Durability},
    keys::Keys,
    store::Store,
};

use crate::{
    database,
    history::{everything, packed_plant},
    plant::count,
};

/// Every table, with what is in it.
async fn tables(store: &Store) -> BTreeMap<String, String> {
    let client = store.client().await.unwrap();
    let names = "SELECT relname::text FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'";
    let mut found = BTreeMap::new();
    for row in client.query(names, &[]).await.unwrap() {
        let name: String = row.get(0);
        let sql = format!(
            "SELECT count(*) || ' ' || coalesce(md5(string_agg(t::text, '\n' ORDER BY t::text)), '') FROM {name} t"
        );
        found.insert(name, client.query_one(&sql, &[]).await.unwrap().get(0));
    }
    found
}

fn keys(data_dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let files = fs::read_dir(data_dir.join("keys")).unwrap().map(Result::unwrap);
    files.map(|file| (file.file_name().into_string().unwrap(), fs::read(file.path()).unwrap())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_is_restored_into_a_fresh_cluster() {
    let config = database::config().await;
    let store = Store::new(config.clone(), 4).unwrap();
    packed_plant(&store).await;
    gemba_cloud::store::users::add(&store, "ada", gemba_cloud::users::Role::Admin).await.unwrap();
    gemba_cloud::serve::history::pack(&store, clock::now(), 0, &tokio_util::sync::CancellationToken::new())
        .await
        .unwrap();
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o711)).unwrap();
    let (source, target) = (directory.path().join("source"), directory.path().join("target"));
    Keys::open(&source).unwrap().certificate(&["localhost".to_owned()]).unwrap();
    let to = directory.path().join("backup");
    let reach = Reach { database: &config, ca_file: None };
    backup::make(&reach, &source, &to, clock::now()).await.unwrap();
    assert_eq!(fs::metadata(&to).unwrap().permissions().mode() & 0o777, 0o700);
    let again = backup::make(&reach, &source, &to, clock::now()).await.unwrap_err();
    assert!(again.to_string().contains("is there already"), "{again}");

    let cluster = Cluster::start(&directory.path().join("pg"), Durability::Careless).await.unwrap();
    let config = cluster.config();
    let theirs = Reach { database: &config, ca_file: None };
    let restore = async |overwrite| {
        // As the command does: a store of its own.
        let store = Store::new(config.clone(), 4).unwrap();
        let restored = backup::restore(&theirs, &store, &target, &to, overwrite).await;
        store.close();
        restored
    };
    restore(false).await.unwrap();
    let fresh = Store::new(config.clone(), 4).unwrap();
    assert_eq!(tables(&fresh).await, tables(&store).await);
    assert_eq!(everything(&fresh).await, everything(&store).await);
    assert_eq!(keys(&target), keys(&source));
    fresh.check_schema().await.unwrap();

    // Not over data; not while somebody is there; not half.
    let refused = format!("{:#}", restore(false).await.unwrap_err());
    assert!(refused.contains("--overwrite"), "{refused}");
    let refused = format!("{:#}", restore(true).await.unwrap_err());
    assert!(refused.contains("stop the daemon"), "{refused}");
    let change = "UPDATE machines SET display_name = 'changed'; CREATE TABLE left_over (x int)";
    fresh.client().await.unwrap().batch_execute(change).await.unwrap();
    fresh.close();
    let dump = fs::read(to.join("database.dump")).unwrap();
    fs::write(to.join("database.dump"), &dump[..dump.len() / 2]).unwrap();
    let refused = format!("{:#}", restore(true).await.unwrap_err());
    assert!(refused.contains("as it was"), "{refused}");
    let fresh = Store::new(config.clone(), 4).unwrap();
    assert_eq!(count(&fresh, "SELECT count(*) FROM machines WHERE display_name = 'changed'").await, 2);
    fresh.close();
    fs::write(to.join("database.dump"), &dump).unwrap();
    restore(true).await.unwrap();
    let fresh = Store::new(config.clone(), 4).unwrap();
    assert_eq!(tables(&fresh).await, tables(&store).await);
    assert_eq!(keys(&directory.path().join("target")), keys(&source));

    // What was restored can be backed up and restored again.
    let second = directory.path().join("second");
    backup::make(&theirs, &target, &second, clock::now()).await.unwrap();
    fresh.close();
    let store_again = Store::new(config.clone(), 4).unwrap();
    backup::restore(&theirs, &store_again, &target, &second, true).await.unwrap();
    assert_eq!(tables(&store_again).await, tables(&store).await);
    store_again.close();
    cluster.stop().await.unwrap();
}

#[tokio::test]
async fn what_is_no_backup_is_told() {
    let config = database::config().await;
    let store = Store::new(config.clone(), 2).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let reach = Reach { database: &config, ca_file: None };
    let error = backup::restore(&reach, &store, directory.path(), directory.path(), false).await.unwrap_err();
    assert!(error.to_string().contains("is no backup"), "{error}");
}
