//! Rows on disk in *generations*: numbered directories that each hold one small sled database.
//!
//! sled gives no space back and corrupts as a whole, so nothing here lives long: rows go to the newest
//! generation, a full one is closed, and a closed one is deleted as a whole when its owner needs it no more.
//!
//! | file | what |
//! |---|---|
//! | `lock` | held while a process has this open |
//! | `00000000000000000001/` | a generation: its database, and `tail` |
//! | `quarantine-00000000000000000001-0/` | a generation that could not be read |
//!
//! - **Durable on return**: [`Generations::append`] writes one sled batch, flushes it, and syncs the file through a
//!   descriptor of its own, because sled's `flush` does not sync.
//! - **Damage is seen**: each row carries a CRC-32C of its key and value; each append ends in a *commit row* that holds the
//!   count of appends and the owner's *tail* (up to where it has numbered things). The same goes to the file
//!   `tail`, unsynced: after a kill it is exact, after a power cut it may be behind, never ahead. A generation whose
//!   commit row is behind its `tail` file has lost rows.
//! - **Limits**: a value has at most [`VALUE_BYTES_MAX`]; a longer one than 3,800 bytes is cut into parts,
//!   because a tree node of large values becomes an unsynced file beside the database.
//!
//! At most two databases are open here at once: the newest, and one closed one that is being read.

// tidy: long, because the life of a generation (begun, filled, read, set aside, deleted) is one invariant.

mod files;
mod rows;

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    ops::ControlFlow,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use files::{database_bytes, failed, guarded, lock, open_database, open_file, ordinals, remove, write_probe};
use rows::{Parts, commit_of, is_commit, put, put_commit, read_tail, write_tail};

/// The largest value.
pub const VALUE_BYTES_MAX: usize = 64 * 1_024;
/// The largest tail.
pub const TAIL_BYTES_MAX: usize = 256;

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
    #[error("{0} is in use by another process; stop that one, or give this one a data directory of its own")]
    Locked(PathBuf),
    #[error("the disk under {0} is full; free space: nothing is taken in until then")]
    DiskFull(PathBuf),
    #[error("cannot {what} {path}: {source}")]
    Io { what: &'static str, path: PathBuf, source: io::Error },
    #[error("the database in {path} failed: {reason}")]
    Database { path: PathBuf, reason: String },
    #[error("a value of {0} bytes is over the limit of {VALUE_BYTES_MAX}")]
    TooLarge(usize),
    #[error("no generation is open for writing")]
    NoGeneration,
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
    /// The newest generation has lost its latest appends; this is the tail it should have had.
    pub newest_behind: Option<Vec<u8>>,
}

impl Damage {
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.quarantined.is_empty() && self.newest_behind.is_none()
    }
}

#[derive(Debug)]
pub struct Generations {
    dir: PathBuf,
    settings: GenerationSettings,
    closed: BTreeMap<u64, Generation>,
    newest: Option<Newest>,
    reading: Option<(u64, sled::Db)>,
    next_ordinal: u64,
    /// Released when this is dropped, after the databases.
    _lock: File,
}

#[derive(Debug)]
struct Newest {
    ordinal: u64,
    /// `None` after it failed: it is opened again at the next use.
    db: Option<sled::Db>,
    /// Our own descriptor of sled's file, to sync it.
    file: File,
    tail_file: File,
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
        fs::create_dir_all(dir).map_err(|source| failed("create", dir, source))?;
        let lock = lock(dir)?;
        let mut ordinals = ordinals(dir)?;
        let mut this = Self {
            dir: dir.to_owned(),
            settings,
            closed: BTreeMap::new(),
            newest: None,
            reading: None,
            next_ordinal: ordinals.last().map_or(1, |last| last + 1),
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
            let tail = read_tail(&path).map(|(_, tail)| tail);
            let tail = match tail {
                Some(tail) => Some(tail),
                None => this.db(ordinal).ok().and_then(|db| commit_of(&db)).map(|(_, tail)| tail),
            };
            this.closed.insert(ordinal, Generation { tail, bytes: database_bytes(&path) });
        }
        Ok((this, damage))
    }

    /// Makes `ordinal` the newest if it can be; false if the one before it has to be tried.
    fn open_newest(&mut self, ordinal: u64, damage: &mut Damage) -> Result<bool, StoreError> {
        let path = self.path(ordinal);
        let written = read_tail(&path);
        let commit = match open_database(&path, self.settings.cache_bytes) {
            Ok(db) => commit_of(&db).map(|commit| (db, commit)),
            Err(error @ StoreError::DiskFull(_)) => return Err(error),
            Err(error) => {
                write_probe(&self.dir)?;
                tracing::error!(path = %path.display(), %error, "a generation cannot be opened and is set aside");
                damage.quarantined.push(self.set_aside(ordinal)?);
                return Ok(true);
            }
        };
        let Some((db, (appends, tail))) = commit else {
            if written.is_some() {
                tracing::error!(path = %path.display(), "a generation has lost all its rows and is set aside");
                damage.quarantined.push(self.set_aside(ordinal)?);
                return Ok(true);
            }
            // A crash came while it was being made: nothing in it was ever promised.
            remove(&path)?;
            return Ok(false);
        };
        if let Some((expected, expected_tail)) = written
            && expected > appends
        {
            tracing::error!(path = %path.display(), lost = expected - appends, "a generation has lost its latest appends");
            damage.newest_behind = Some(expected_tail);
        }
        self.newest = Some(Newest {
            ordinal,
            db: Some(db),
            file: open_file(&path.join("db"))?,
            tail_file: open_file(&path.join("tail"))?,
            appends,
            tail,
        });
        Ok(true)
    }

    /// The closed generations, oldest first.
    #[must_use]
    pub fn closed(&self) -> &BTreeMap<u64, Generation> {
        &self.closed
    }

    /// The newest generation's ordinal and tail.
    #[must_use]
    pub fn newest(&self) -> Option<(u64, &[u8])> {
        self.newest.as_ref().map(|newest| (newest.ordinal, &newest.tail[..]))
    }

    /// The ordinal that the next generation gets.
    #[must_use]
    pub fn next_ordinal(&self) -> u64 {
        self.next_ordinal
    }

    /// Whether the newest generation is full, so that [`Generations::roll`] is due.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.newest.as_ref().is_some_and(|newest| self.database_bytes(newest.ordinal) >= self.settings.generation_bytes)
    }

    /// Size of the databases on the disk.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let newest = self.newest.as_ref().map_or(0, |newest| self.database_bytes(newest.ordinal));
        self.closed.values().map(|closed| closed.bytes).sum::<u64>() + newest
    }

    /// Writes the rows and the tail, all or none, and returns when they are on the disk. A key is at most 250 bytes long
    /// and does not begin with 0.
    ///
    /// # Errors
    /// If there is no newest generation, or the disk fails: then it is unknown whether they were written, and the
    /// same numbers may be written again.
    pub fn append(&mut self, rows: &[(Vec<u8>, Vec<u8>)], tail: &[u8]) -> Result<(), StoreError> {
        let Some(newest) = &self.newest else { return Err(StoreError::NoGeneration) };
        let path = self.path(newest.ordinal);
        let appends = newest.appends + 1;
        let mut batch = sled::Batch::default();
        for (key, value) in rows {
            put(&mut batch, key, value)?;
        }
        put_commit(&mut batch, appends, tail)?;
        self.reopen_newest()?;
        let Some(newest) = &mut self.newest else { return Err(StoreError::NoGeneration) };
        let Some(db) = &newest.db else { return Err(StoreError::NoGeneration) };
        let written = guarded(&path, || {
            db.apply_batch(batch)?;
            db.flush()
        })
        .and_then(|_| newest.file.sync_data().map_err(|source| failed("sync", &path, source)));
        if let Err(error) = written {
            // sled stays poisoned after an I/O error.
            let db = newest.db.take();
            if catch_unwind(AssertUnwindSafe(move || drop(db))).is_err() {
                tracing::warn!(path = %path.display(), "a failed database panicked while it was closed");
            }
            return Err(error);
        }
        newest.appends = appends;
        tail.clone_into(&mut newest.tail);
        // Behind at worst, if this fails: what it is for is to be no further than the rows are.
        write_tail(&newest.tail_file, appends, tail).map_err(|source| failed("write the tail in", &path, source))
    }

    /// Closes the newest generation and begins another with these rows.
    ///
    /// # Errors
    /// If the disk fails; the newest generation then stays what it was.
    pub fn roll(&mut self, rows: &[(Vec<u8>, Vec<u8>)], tail: &[u8]) -> Result<u64, StoreError> {
        let ordinal = self.next_ordinal;
        let path = self.path(ordinal);
        if path.exists() {
            remove(&path)?;
        }
        match self.begin(ordinal, rows, tail) {
            Ok(newest) => {
                self.next_ordinal += 1;
                if let Some(old) = self.newest.replace(newest) {
                    let bytes = self.database_bytes(old.ordinal);
                    self.closed.insert(old.ordinal, Generation { tail: Some(old.tail), bytes });
                }
                Ok(ordinal)
            }
            Err(error) => {
                if let Err(error) = remove(&path) {
                    tracing::warn!(%error, "an unfinished generation stays behind; the next start removes it");
                }
                Err(error)
            }
        }
    }

    fn begin(&self, ordinal: u64, rows: &[(Vec<u8>, Vec<u8>)], tail: &[u8]) -> Result<Newest, StoreError> {
        const ROWS_A_BATCH: usize = 256;
        if let Some(newest) = &self.newest {
            newest.tail_file.sync_data().map_err(|source| failed("sync the tail in", &self.dir, source))?;
        }
        let path = self.path(ordinal);
        let db = open_database(&path, self.settings.cache_bytes)?;
        for rows in rows.chunks(ROWS_A_BATCH) {
            let mut batch = sled::Batch::default();
            for (key, value) in rows {
                put(&mut batch, key, value)?;
            }
            guarded(&path, || db.apply_batch(batch))?;
        }
        // Without its commit row a generation is nothing, so this comes last.
        let mut batch = sled::Batch::default();
        put_commit(&mut batch, 1, tail)?;
        guarded(&path, || {
            db.flush()?;
            db.apply_batch(batch)?;
            db.flush()
        })?;
        let file = open_file(&path.join("db"))?;
        let tail_file = open_file(&path.join("tail"))?;
        let synced = file
            .sync_all()
            .and_then(|()| File::open(path.join("conf"))?.sync_all())
            .and_then(|()| write_tail(&tail_file, 1, tail))
            .and_then(|()| tail_file.sync_all())
            .and_then(|()| File::open(&path)?.sync_all())
            .and_then(|()| File::open(&self.dir)?.sync_all());
        synced.map_err(|source| failed("sync", &path, source))?;
        Ok(Newest { ordinal, db: Some(db), file, tail_file, appends: 1, tail: tail.to_owned() })
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

    /// Deletes a closed generation.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn delete(&mut self, ordinal: u64) -> Result<(), StoreError> {
        if self.reading.as_ref().is_some_and(|(open, _)| *open == ordinal) {
            self.reading = None;
        }
        if self.closed.remove(&ordinal).is_some() {
            remove(&self.path(ordinal))?;
        }
        Ok(())
    }

    /// Sets a generation aside under another name, for people to look at.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn quarantine(&mut self, ordinal: u64) -> Result<PathBuf, StoreError> {
        if self.reading.as_ref().is_some_and(|(open, _)| *open == ordinal) {
            self.reading = None;
        }
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
        write_probe(&self.dir)
    }

    fn set_aside(&self, ordinal: u64) -> Result<(PathBuf, Generation), StoreError> {
        let path = self.path(ordinal);
        let generation = Generation { tail: read_tail(&path).map(|(_, tail)| tail), bytes: database_bytes(&path) };
        let aside = (0..u32::MAX)
            .map(|n| self.dir.join(format!("quarantine-{ordinal:020}-{n}")))
            .find(|aside| !aside.exists())
            .ok_or(StoreError::NoGeneration)?;
        fs::rename(&path, &aside).map_err(|source| failed("set aside", &path, source))?;
        Ok((aside, generation))
    }

    fn db(&mut self, ordinal: u64) -> Result<sled::Db, StoreError> {
        if self.newest.as_ref().is_some_and(|newest| newest.ordinal == ordinal) {
            self.reopen_newest()?;
            return self.newest.as_ref().and_then(|newest| newest.db.clone()).ok_or(StoreError::NoGeneration);
        }
        if let Some((open, db)) = &self.reading
            && *open == ordinal
        {
            return Ok(db.clone());
        }
        self.reading = None;
        let db = open_database(&self.path(ordinal), self.settings.cache_bytes)?;
        self.reading = Some((ordinal, db.clone()));
        Ok(db)
    }

    fn reopen_newest(&mut self) -> Result<(), StoreError> {
        let Some(newest) = &self.newest else { return Err(StoreError::NoGeneration) };
        if newest.db.is_some() {
            return Ok(());
        }
        let path = self.path(newest.ordinal);
        let db = open_database(&path, self.settings.cache_bytes)?;
        let appends = commit_of(&db).map_or(0, |(appends, _)| appends);
        let file = open_file(&path.join("db"))?;
        let Some(newest) = &mut self.newest else { return Err(StoreError::NoGeneration) };
        if appends < newest.appends {
            let reason = format!("it has {appends} of {} appends after it was opened again", newest.appends);
            return Err(StoreError::Database { path, reason });
        }
        newest.file = file;
        newest.db = Some(db);
        Ok(())
    }

    fn path(&self, ordinal: u64) -> PathBuf {
        self.dir.join(format!("{ordinal:020}"))
    }

    fn database_bytes(&self, ordinal: u64) -> u64 {
        database_bytes(&self.path(ordinal))
    }
}

#[cfg(test)]
mod tests;
