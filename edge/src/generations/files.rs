//! The files under generations: their lock, what lies where, and how failures are told.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
    process, thread,
    time::{Duration, Instant},
};

use super::StoreError;

/// How long a process that is just ending, or a child that it was just starting, may go on holding the lock.
const LOCK_TIMEOUT: Duration = Duration::from_millis(500);
/// What must be free before a failure is taken for damage.
const PROBE_BYTES: usize = 1_024 * 1_024;

/// Held while a process has a directory open.
#[derive(Debug)]
pub(super) struct Lock(#[expect(dead_code, reason = "the lock goes with the file")] File);

impl Lock {
    pub(super) fn take(dir: &Path) -> Result<Self, StoreError> {
        let path = dir.join("lock");
        let mut file = match open_file(&path) {
            // On a disk that is read-only, what is there can still be delivered.
            Err(error) if error.is_disk() => File::open(&path).map_err(|source| failed("open", &path, source))?,
            opened => opened?,
        };
        let began = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if began.elapsed() < LOCK_TIMEOUT => {
                    thread::park_timeout(Duration::from_millis(5));
                }
                Err(TryLockError::WouldBlock) => {
                    return Err(StoreError::Locked { path: dir.to_owned(), by: holder(&mut file) });
                }
                Err(TryLockError::Error(source)) => return Err(failed("lock", dir, source)),
            }
        }
        let named = file.set_len(0).and_then(|()| write!(file, "{}", process::id()));
        match named {
            // It only helps who reads the message.
            Ok(()) | Err(_) => Ok(Self(file)),
        }
    }
}

/// Which process has it, as far as can be told.
fn holder(file: &mut File) -> String {
    let mut process = String::new();
    match file.take(20).read_to_string(&mut process) {
        Ok(length) if length > 0 && process.bytes().all(|byte| byte.is_ascii_digit()) => {}
        _ => return "another process".to_owned(),
    }
    let name = fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default();
    match name.trim() {
        "" => format!("process {process}"),
        name => format!("{name} (process {process})"),
    }
}

/// The generations in a directory. Those that were being deleted are deleted.
pub(super) fn ordinals(dir: &Path) -> Result<Vec<u64>, StoreError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(|source| failed("read", dir, source))? {
        let entry = entry.map_err(|source| failed("read", dir, source))?;
        if entry.file_name().to_str().is_some_and(|name| name.starts_with(GONE))
            && let Err(error) = remove_files(&entry.path())
        {
            tracing::warn!(%error, "a deleted generation stays on the disk; the next start tries again");
        }
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

/// What the names of generations begin with while they are deleted.
const GONE: &str = "gone-";

/// Deletes a generation: first its name, at a stroke, then its files. A power cut in between would else leave some of them,
/// which look like a generation that is damaged.
pub(super) fn remove(path: &Path) -> Result<(), StoreError> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let gone = path.with_file_name(format!("{GONE}{name}"));
    remove_files(&gone)?;
    match fs::rename(path, &gone) {
        Ok(()) => remove_files(&gone),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        // A disk may be too full for a longer name.
        Err(_) => remove_files(path),
    }
}

fn remove_files(path: &Path) -> Result<(), StoreError> {
    match fs::remove_dir_all(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(failed("delete", path, source)),
        _ => Ok(()),
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
pub(super) fn disk_takes_data(dir: &Path) -> Result<(), StoreError> {
    let path: PathBuf = dir.join(format!("probe-{}-{:?}", process::id(), thread::current().id()));
    let written = fs::write(&path, vec![0; PROBE_BYTES]);
    let removed = fs::remove_file(&path);
    written.and(removed).map_err(|source| failed("write in", dir, source))
}

/// Bytes that may still be written under `path`.
///
/// # Errors
/// If the file system does not say.
pub fn disk_free(path: &Path) -> Result<u64, StoreError> {
    let told =
        nix::sys::statvfs::statvfs(path).map_err(|source| failed("ask for the room under", path, source.into()))?;
    Ok(told.blocks_available() * told.fragment_size())
}

/// Whether so much may be written under `path` that `floor` bytes stay free; 0 asks nothing.
///
/// # Errors
/// With what is free if it is less, or if the file system does not say.
pub fn room_left(path: &Path, floor: u64) -> Result<(), StoreError> {
    if floor == 0 {
        return Ok(());
    }
    match disk_free(path)? {
        free if free < floor => Err(StoreError::DiskLow { path: path.to_owned(), free, floor }),
        _ => Ok(()),
    }
}
