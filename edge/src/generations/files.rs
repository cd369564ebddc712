//! The files under generations: their lock, their databases, and how failures are told.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use super::StoreError;

/// How long a database that this process has just closed may go on holding its lock.
const REOPEN_TIMEOUT: Duration = Duration::from_secs(5);
/// What must be free before a failure is taken for damage.
const PROBE_BYTES: usize = 1_024 * 1_024;

pub(super) fn lock(dir: &Path) -> Result<File, StoreError> {
    let file = open_file(&dir.join("lock"))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::Locked(dir.to_owned())),
        Err(TryLockError::Error(source)) => Err(failed("lock", dir, source)),
    }
}

pub(super) fn ordinals(dir: &Path) -> Result<Vec<u64>, StoreError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(|source| failed("read", dir, source))? {
        let entry = entry.map_err(|source| failed("read", dir, source))?;
        if let Some(name) = entry.file_name().to_str()
            && name.len() == 20
            && let Ok(ordinal) = name.parse()
        {
            found.push(ordinal);
        }
    }
    found.sort_unstable();
    Ok(found)
}

pub(super) fn database_bytes(path: &Path) -> u64 {
    fs::metadata(path.join("db")).map_or(0, |metadata| metadata.len())
}

pub(super) fn open_file(path: &Path) -> Result<File, StoreError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(|source| failed("open", path, source))
}

pub(super) fn remove(path: &Path) -> Result<(), StoreError> {
    match fs::remove_dir_all(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(failed("delete", path, source)),
        _ => Ok(()),
    }
}

pub(super) fn open_database(path: &Path, cache_bytes: u64) -> Result<sled::Db, StoreError> {
    let began = Instant::now();
    loop {
        let config = sled::Config::new().path(path).cache_capacity(cache_bytes).flush_every_ms(None);
        match guarded(path, || config.open()) {
            // A database closed a moment ago may hold its lock until its last background task is done.
            Err(StoreError::Database { reason, .. })
                if reason.contains("acquire lock") && began.elapsed() < REOPEN_TIMEOUT =>
            {
                thread::park_timeout(Duration::from_millis(5));
            }
            result => return result,
        }
    }
}

/// sled panics on some kinds of damage.
pub(super) fn guarded<T>(path: &Path, work: impl FnOnce() -> sled::Result<T>) -> Result<T, StoreError> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(sled::Error::Io(error))) if error.kind() == io::ErrorKind::StorageFull => {
            Err(StoreError::DiskFull(path.to_owned()))
        }
        Ok(Err(error)) => Err(StoreError::Database { path: path.to_owned(), reason: error.to_string() }),
        Err(_) => Err(StoreError::Database { path: path.to_owned(), reason: "it panicked".into() }),
    }
}

pub(super) fn failed(what: &'static str, path: &Path, source: io::Error) -> StoreError {
    if source.kind() == io::ErrorKind::StorageFull {
        StoreError::DiskFull(path.to_owned())
    } else {
        StoreError::Io { what, path: path.to_owned(), source }
    }
}

/// Fails if the disk has no room for what a database needs to be opened.
pub(super) fn write_probe(dir: &Path) -> Result<(), StoreError> {
    let path = dir.join("probe");
    let written = fs::write(&path, vec![0; PROBE_BYTES]);
    let removed = fs::remove_file(&path);
    written.and(removed).map_err(|source| failed("write in", dir, source))
}
