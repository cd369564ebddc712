//! Rows on disk in *generations*: numbered directories that each hold one small sled database.
//!
//! sled gives no space back and corrupts as a whole, so nothing here lives long: rows go to the newest
//! generation, a full one is closed, and a closed one is deleted as a whole when its owner needs it no more.
//!
//! | file | what |
//! |---|---|
//! | `lock` | held while a process has this open; it names the process |
//! | `00000000000000000001/` | a generation: its database, and `tail` |
//! | `quarantine-00000000000000000001-0/` | a generation that could not be read |
//!
//! - **Durable on return**: [`Generations::append`] writes one sled batch, flushes it, and syncs the file through a
//!   descriptor of its own, because sled's `flush` does not sync.
//! - **Damage is seen**: each row carries a CRC-32C of its key and value; each append ends in a *commit row* that holds the
//!   generation's ordinal, the count of appends and the owner's *tail* (up to where it has numbered things). The same goes
//!   to the file `tail`, unsynced: after a kill it is exact, after a power cut it may be behind, never ahead. A generation
//!   whose commit row is behind its `tail` file has lost rows, and is closed.
//! - **A disk that takes nothing** (full, or read-only): databases are read from copies in memory, because sled writes when
//!   it opens. Appends fail and may be made again.
//! - **Limits**: a value has at most [`VALUE_BYTES_MAX`]; a longer one than 3,800 bytes is cut into parts,
//!   because a tree node of large values becomes an unsynced file beside the database.
//!
//! At most two databases are open here at once: the newest, and one closed one that is being read.

mod database;
mod files;
mod rows;
mod writing;

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::Arc,
};

use database::{Database, guarded};
use files::{Lock, database_bytes, disk_takes_data, failed, ordinals, remove};
use rows::{Commit, Parts, commit_of, is_commit, read_tail};

pub use files::{disk_free, room_left};
pub use writing::Filler;

const MIB: u64 = 1_024 * 1_024;
/// The largest value.
pub const VALUE_BYTES_MAX: usize = 64 * 1_024;
/// The largest tail.
pub const TAIL_BYTES_MAX: usize = 512;

#[derive(Debug, Clone, Copy)]
pub struct GenerationSettings {
    /// A generation is full when its database has this size.
    pub generation_bytes: u64,
    /// sled's cache for each open database.
    pub cache_bytes: u64,
}

impl Default for GenerationSettings {
    fn default() -> Self {
        Self { generation_bytes: 16 * 1_024 * 1_024, cache_bytes: 2 * 1_024 * 1_024 }
    }
}

/// Why rows could not be stored or read.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{path} is in use by {by}; stop that one, or give this one a data directory of its own")]
    Locked { path: PathBuf, by: String },
    #[error("the disk under {0} is full: free space; nothing is taken in until then")]
    DiskFull(PathBuf),
    #[error(
        "the disk under {path} has {} MiB free, and {} MiB of it are to stay free (outbox.disk_free_min): free space, or lower \
         that; nothing is taken in until then", free / MIB, floor / MIB
    )]
    DiskLow { path: PathBuf, free: u64, floor: u64 },
    #[error("cannot {what} {path}: {source}")]
    Io { what: &'static str, path: PathBuf, source: io::Error },
    #[error("the database in {path} failed: {reason}")]
    Database { path: PathBuf, reason: String },
    #[error("a value of {0} bytes is over the limit of {VALUE_BYTES_MAX}")]
    TooLarge(usize),
    #[error("no generation is open for writing")]
    NoGeneration,
}

impl StoreError {
    /// Whether the disk takes nothing at present (it is full, or was made read-only): nothing is damaged.
    #[must_use]
    pub fn is_disk(&self) -> bool {
        match self {
            Self::DiskFull(_) | Self::DiskLow { .. } => true,
            Self::Io { source, .. } => source.kind() == io::ErrorKind::ReadOnlyFilesystem,
            _ => false,
        }
    }
}

/// A row's value as it was found.
#[derive(Debug)]
pub enum Found {
    Intact(Vec<u8>),
    /// Its checksum is wrong or a part of it is missing.
    Damaged,
}

/// A generation that was found at the start.
#[derive(Debug, Clone)]
pub struct Generation {
    /// The last tail that was written to it; `None` if neither its database nor its `tail` file has one.
    pub tail: Option<Vec<u8>>,
    /// Size of its database.
    pub bytes: u64,
}

/// What [`Generations::open`] met that its owner must deal with.
#[derive(Debug, Default)]
pub struct Damage {
    /// Generations that cannot be opened, set aside, with the last tail known of each.
    pub quarantined: Vec<(PathBuf, Generation)>,
    /// The newest generation has lost its latest appends, or could not be opened: it is closed.
    pub newest_lost: bool,
}

impl Damage {
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.quarantined.is_empty() && !self.newest_lost
    }
}

#[derive(Debug)]
pub struct Generations {
    dir: PathBuf,
    settings: GenerationSettings,
    closed: BTreeMap<u64, Generation>,
    newest: Option<Newest>,
    reading: Option<(u64, Arc<Database>)>,
    next_ordinal: u64,
    /// Nothing is written, moved or deleted.
    looks_only: bool,
    syncs: writing::Syncs,
    /// Released when this is dropped, after the databases.
    _lock: Lock,
}

#[derive(Debug)]
struct Newest {
    ordinal: u64,
    /// `None` after it failed: it is opened again at the next use.
    db: Option<Arc<Database>>,
    /// Our own descriptors of sled's file, to sync it, and of the `tail` file; `None` while the disk takes nothing.
    files: Option<(File, File)>,
    appends: u64,
    tail: Vec<u8>,
}

impl Generations {
    /// Opens the generations in `dir`, which is made if it is not there. Afterwards there may be no newest generation to
    /// append to: see [`Generations::roll`].
    ///
    /// # Errors
    /// If another process has them open, or the disk fails.
    pub fn open(dir: &Path, settings: GenerationSettings) -> Result<(Self, Damage), StoreError> {
        Self::open_as(dir, settings, false)
    }

    /// The same without changing anything on the disk: databases are read from copies in memory.
    ///
    /// # Errors
    /// As [`Generations::open`].
    pub fn open_to_look(dir: &Path, settings: GenerationSettings) -> Result<(Self, Damage), StoreError> {
        Self::open_as(dir, settings, true)
    }

    fn open_as(dir: &Path, settings: GenerationSettings, looks_only: bool) -> Result<(Self, Damage), StoreError> {
        fs::create_dir_all(dir).map_err(|source| failed("create", dir, source))?;
        let lock = Lock::take(dir)?;
        let mut ordinals = ordinals(dir)?;
        let mut this = Self {
            dir: dir.to_owned(),
            settings,
            closed: BTreeMap::new(),
            newest: None,
            reading: None,
            next_ordinal: ordinals.last().map_or(1, |last| last + 1),
            looks_only,
            syncs: writing::Syncs::default(),
            _lock: lock,
        };
        let mut damage = Damage::default();
        while let Some(ordinal) = ordinals.pop() {
            if this.open_newest(ordinal, &mut damage)? {
                break;
            }
        }
        for ordinal in ordinals {
            let path = this.path(ordinal);
            let tail = match read_tail(&path, ordinal) {
                Some(written) => Some(written.tail),
                None => match this.db(ordinal) {
                    Ok(db) => commit_of(&db).filter(|commit| commit.ordinal == ordinal).map(|commit| commit.tail),
                    Err(error) if error.is_disk() => return Err(error),
                    Err(_) => None,
                },
            };
            this.closed.insert(ordinal, Generation { tail, bytes: database_bytes(&path) });
        }
        this.reading = None;
        Ok((this, damage))
    }

    /// Takes up `ordinal`, from the newest back; true when the newest is found or known to be lost.
    fn open_newest(&mut self, ordinal: u64, damage: &mut Damage) -> Result<bool, StoreError> {
        let path = self.path(ordinal);
        let written = read_tail(&path, ordinal);
        if let Some(written) = written.as_ref().filter(|written| written.sealed) {
            let generation = Generation { tail: Some(written.tail.clone()), bytes: database_bytes(&path) };
            self.closed.insert(ordinal, generation);
            return Ok(false);
        }
        let db = match self.open_database(ordinal) {
            Ok(db) => Arc::new(db),
            Err(error) if error.is_disk() => return Err(error),
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "a generation cannot be opened and is set aside");
                damage.quarantined.push(self.set_aside(ordinal)?);
                damage.newest_lost = true;
                return Ok(true);
            }
        };
        let commit = commit_of(&db).filter(|commit| commit.ordinal == ordinal);
        let Some(Commit { appends, tail, sealed, .. }) = commit else {
            let Some(written) = written else {
                // A crash came while it was being made: nothing in it was ever promised.
                drop(db);
                if !self.looks_only {
                    remove(&path)?;
                }
                return Ok(false);
            };
            tracing::error!(path = %path.display(), "a generation has lost its latest rows");
            damage.newest_lost = true;
            self.closed.insert(ordinal, Generation { tail: Some(written.tail), bytes: database_bytes(&path) });
            return Ok(true);
        };
        if let Some(written) = written
            && written.appends > appends
        {
            tracing::error!(path = %path.display(), lost = written.appends - appends, "a generation has lost its latest appends");
            damage.newest_lost = true;
            self.closed.insert(ordinal, Generation { tail: Some(written.tail), bytes: database_bytes(&path) });
            return Ok(true);
        }
        if sealed {
            self.closed.insert(ordinal, Generation { tail: Some(tail), bytes: database_bytes(&path) });
            return Ok(false);
        }
        let files = if db.is_copy() { None } else { Some(writing::open_files(&path)?) };
        self.newest = Some(Newest { ordinal, db: Some(db), files, appends, tail });
        Ok(true)
    }

    /// The closed generations, in the order in which they were begun.
    #[must_use]
    pub fn closed(&self) -> &BTreeMap<u64, Generation> {
        &self.closed
    }

    /// The newest generation's ordinal and tail.
    #[must_use]
    pub fn newest(&self) -> Option<(u64, &[u8])> {
        self.newest.as_ref().map(|newest| (newest.ordinal, &newest.tail[..]))
    }

    /// Whether the newest generation is full, so that [`Generations::roll`] is due.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.newest_bytes() >= self.settings.generation_bytes
    }

    /// Size of the newest database on the disk.
    #[must_use]
    pub fn newest_bytes(&self) -> u64 {
        self.newest.as_ref().map_or(0, |newest| self.database_bytes(newest.ordinal))
    }

    /// Size of the databases on the disk.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.closed.values().map(|closed| closed.bytes).sum::<u64>() + self.newest_bytes()
    }

    /// Hands the rows from `from` on to `each`, in the order of their keys, until it breaks off.
    ///
    /// # Errors
    /// If the generation cannot be read at all; damaged rows are handed over as such, those that vanished are not.
    pub fn scan(
        &mut self,
        ordinal: u64,
        from: &[u8],
        mut each: impl FnMut(&[u8], Found) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        let path = self.path(ordinal);
        let db = self.db(ordinal)?;
        guarded(&path, || {
            let mut rows = db.range(from.to_vec()..).filter(|row| !is_commit(row));
            let mut parts = Parts::default();
            for row in &mut rows {
                let (key, value) = row?;
                if let Some((key, found)) = parts.push(&key, &value)
                    && each(&key, found).is_break()
                {
                    return Ok(());
                }
            }
            if let Some((key, found)) = parts.finish()
                && each(&key, found).is_break()
            {
                return Ok(());
            }
            Ok(())
        })
    }

    /// The largest key that is not larger than this one.
    ///
    /// # Errors
    /// If the generation cannot be read.
    pub fn floor(&mut self, ordinal: u64, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let path = self.path(ordinal);
        let db = self.db(ordinal)?;
        let last_part = [key, &[u8::MAX]].concat();
        let found = guarded(&path, || db.range(..=last_part).next_back().transpose())?;
        Ok(found.and_then(|(key, _)| key.split_last().map(|(_, key)| key.to_vec())))
    }

    /// Deletes a closed generation. One that cannot be deleted is forgotten; the next start finds it again.
    pub fn delete(&mut self, ordinal: u64) {
        self.close_reading(ordinal);
        if self.closed.remove(&ordinal).is_some()
            && !self.looks_only
            && let Err(error) = remove(&self.path(ordinal))
        {
            tracing::warn!(%error, "a generation that is not needed any more stays on the disk");
        }
    }

    /// Sets a generation aside under another name, for people to look at.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn quarantine(&mut self, ordinal: u64) -> Result<PathBuf, StoreError> {
        self.close_reading(ordinal);
        if self.newest.as_ref().is_some_and(|newest| newest.ordinal == ordinal) {
            self.newest = None;
        }
        self.closed.remove(&ordinal);
        Ok(self.set_aside(ordinal)?.0)
    }

    /// Whether there is room on the disk. sled fails in many ways on a full one, which then look like damage.
    ///
    /// # Errors
    /// If there is none, or the disk fails otherwise.
    pub fn probe(&self) -> Result<(), StoreError> {
        disk_takes_data(&self.dir)
    }

    fn close_reading(&mut self, ordinal: u64) {
        if self.reading.as_ref().is_some_and(|(open, _)| *open == ordinal) {
            self.reading = None;
        }
    }

    fn set_aside(&self, ordinal: u64) -> Result<(PathBuf, Generation), StoreError> {
        let path = self.path(ordinal);
        let tail = read_tail(&path, ordinal).map(|written| written.tail);
        let generation = Generation { tail, bytes: database_bytes(&path) };
        if self.looks_only {
            return Ok((path, generation));
        }
        let aside = (0..u32::MAX)
            .map(|n| self.dir.join(format!("quarantine-{ordinal:020}-{n}")))
            .find(|aside| !aside.exists())
            .ok_or(StoreError::NoGeneration)?;
        fs::rename(&path, &aside).map_err(|source| failed("set aside", &path, source))?;
        Ok((aside, generation))
    }

    fn db(&mut self, ordinal: u64) -> Result<Arc<Database>, StoreError> {
        if self.newest.as_ref().is_some_and(|newest| newest.ordinal == ordinal) {
            self.reopen_newest()?;
            return self.newest.as_ref().and_then(|newest| newest.db.clone()).ok_or(StoreError::NoGeneration);
        }
        if let Some((open, db)) = &self.reading
            && *open == ordinal
        {
            return Ok(Arc::clone(db));
        }
        self.reading = None;
        let db = Arc::new(self.open_database(ordinal)?);
        self.reading = Some((ordinal, Arc::clone(&db)));
        Ok(db)
    }

    fn open_database(&self, ordinal: u64) -> Result<Database, StoreError> {
        let (path, cache_bytes) = (self.path(ordinal), self.settings.cache_bytes);
        if self.looks_only { Database::open_copy(&path, cache_bytes) } else { Database::open(&path, cache_bytes) }
    }

    fn path(&self, ordinal: u64) -> PathBuf {
        self.dir.join(format!("{ordinal:020}"))
    }

    fn database_bytes(&self, ordinal: u64) -> u64 {
        database_bytes(&self.path(ordinal))
    }
}

#[cfg(test)]
pub(crate) mod tests;
