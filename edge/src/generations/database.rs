//! One sled database: in its place, or, while the disk takes nothing, a copy of it in memory that is only read.

use std::{
    env, fs, io,
    ops::Deref,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use super::{
    StoreError,
    files::{disk_takes_data, failed},
};

/// How long a database that this process has just closed may go on holding its lock.
const REOPEN_TIMEOUT: Duration = Duration::from_secs(5);
const COPY_PREFIX: &str = "gemba-copy-";

#[derive(Debug)]
pub(super) struct Database {
    /// `None` only while this is dropped.
    db: Option<sled::Db>,
    copy: Option<PathBuf>,
}

impl Database {
    /// Opens it in its place, or a copy of it where the disk takes nothing.
    pub(super) fn open(path: &Path, cache_bytes: u64) -> Result<Self, StoreError> {
        match disk_takes_data(path.parent().unwrap_or(path)) {
            Ok(()) => {}
            Err(error) if error.is_disk() => return Self::open_copy(path, cache_bytes),
            Err(error) => return Err(error),
        }
        match Self::open_in_place(path, cache_bytes) {
            Err(error) if error.is_disk() => Self::open_copy(path, cache_bytes),
            opened => opened,
        }
    }

    pub(super) fn open_in_place(path: &Path, cache_bytes: u64) -> Result<Self, StoreError> {
        Ok(Self { db: Some(open_mended(path, cache_bytes)?), copy: None })
    }

    /// Opens a copy in memory; the files themselves are only read.
    pub(super) fn open_copy(path: &Path, cache_bytes: u64) -> Result<Self, StoreError> {
        static COPIES: AtomicU64 = AtomicU64::new(0);
        let place = memory().ok_or_else(|| StoreError::DiskFull(path.to_owned()))?;
        remove_old_copies(&place);
        let copy = place.join(format!("{COPY_PREFIX}{}-{}", process::id(), COPIES.fetch_add(1, Relaxed)));
        let mut this = Self { db: None, copy: Some(copy.clone()) };
        copy_files(path, &copy).map_err(|source| failed("copy into memory", path, source))?;
        this.db = Some(open_mended(&copy, cache_bytes)?);
        Ok(this)
    }

    pub(super) fn is_copy(&self) -> bool {
        self.copy.is_some()
    }
}

impl Deref for Database {
    type Target = sled::Tree;

    fn deref(&self) -> &sled::Tree {
        match &self.db {
            Some(db) => db,
            None => unreachable!("a database is closed only when it is dropped"),
        }
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let db = self.db.take();
        if catch_unwind(AssertUnwindSafe(move || drop(db))).is_err() {
            tracing::warn!("a failed database panicked while it was closed");
        }
        if let Some(copy) = &self.copy {
            match fs::remove_dir_all(copy) {
                // The next process removes it.
                Ok(()) | Err(_) => {}
            }
        }
    }
}

/// Opens it; where that fails, once more without what sled can do without: its settings, which are always the same, and its
/// snapshot, which only saves time.
fn open_mended(path: &Path, cache_bytes: u64) -> Result<sled::Db, StoreError> {
    let failed = match open(path, cache_bytes) {
        Err(error @ StoreError::Database { .. }) => error,
        opened => return opened,
    };
    let Ok(entries) = fs::read_dir(path) else { return Err(failed) };
    for entry in entries.flatten() {
        let name = entry.file_name();
        if name == "conf" || name.to_str().is_some_and(|name| name.starts_with("snap.")) {
            match fs::remove_file(entry.path()) {
                // Then it fails again.
                Ok(()) | Err(_) => {}
            }
        }
    }
    let opened = open(path, cache_bytes)?;
    tracing::error!(path = %path.display(), error = %failed, "a database was damaged beside its rows, and is mended");
    Ok(opened)
}

fn open(path: &Path, cache_bytes: u64) -> Result<sled::Db, StoreError> {
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
        Ok(Err(sled::Error::Io(source))) if is_disk(&source) => Err(failed("write in", path, source)),
        Ok(Err(error)) => Err(StoreError::Database { path: path.to_owned(), reason: error.to_string() }),
        Err(_) => Err(StoreError::Database { path: path.to_owned(), reason: "it panicked".into() }),
    }
}

fn is_disk(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::ReadOnlyFilesystem)
}

/// A folder that needs no disk.
fn memory() -> Option<PathBuf> {
    let given = env::var_os("RUNTIME_DIRECTORY").map(PathBuf::from);
    given.into_iter().chain([PathBuf::from("/dev/shm"), env::temp_dir()]).find(|place| disk_takes_data(place).is_ok())
}

fn copy_files(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

/// Of processes that were killed.
fn remove_old_copies(place: &Path) {
    let Ok(entries) = fs::read_dir(place) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let process = name.to_str().and_then(|name| name.strip_prefix(COPY_PREFIX)?.split('-').next());
        if process.is_some_and(|process| !Path::new("/proc").join(process).exists()) {
            match fs::remove_dir_all(entry.path()) {
                // It is another user's.
                Ok(()) | Err(_) => {}
            }
        }
    }
}
