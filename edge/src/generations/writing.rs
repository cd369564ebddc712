//! Writing generations: appends to the newest, beginning the next one, and writing a closed one at a stroke.

use std::{
    fs::{File, OpenOptions},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Generation, Generations, Newest, StoreError,
    database::{Database, guarded},
    files::{failed, open_file, remove},
    rows::{Commit, commit_of, put, put_commit, remove_value, write_tail},
};

/// Rows of a new generation go to sled in batches of about this size.
const BATCH_BYTES: usize = 256 * 1_024;

/// How long before a sync is due it is made, when there is an occasion.
const SYNC_EARLY: Duration = Duration::from_millis(100);

/// When appends are synced.
#[derive(Debug, Default)]
pub(super) struct Syncs {
    /// `None`: each one.
    every: Option<Duration>,
    /// Since when there is something that is not synced.
    waiting_since: Option<Instant>,
    count: u64,
}

/// Takes the rows of a new generation, a few at a time.
#[derive(Debug)]
pub struct Filler<'a> {
    path: &'a Path,
    db: &'a Database,
    batch: sled::Batch,
    bytes: usize,
}

impl Filler<'_> {
    /// # Errors
    /// If the value is too large, or the disk fails.
    pub fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        put(&mut self.batch, key, value)?;
        self.bytes += key.len() + value.len();
        if self.bytes >= BATCH_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), StoreError> {
        self.bytes = 0;
        let batch = std::mem::take(&mut self.batch);
        guarded(self.path, || self.db.apply_batch(batch))
    }
}

/// sled's file, to sync it, and the `tail` file.
pub(super) fn open_files(path: &Path) -> Result<(File, File), StoreError> {
    Ok((open_file(&path.join("db"))?, open_file(&path.join("tail"))?))
}

impl Generations {
    /// From now on appends are synced when this time has gone by since the first that is not; `None`: each one at once.
    pub fn sync_every(&mut self, every: Option<Duration>) {
        self.syncs.every = every;
    }

    /// How often appends were synced.
    #[must_use]
    pub fn syncs(&self) -> u64 {
        self.syncs.count
    }

    /// Syncs what waits for it, where that is due within 0.1 s.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn sync_if_due(&mut self) -> Result<(), StoreError> {
        let (Some(every), Some(since)) = (self.syncs.every, self.syncs.waiting_since) else { return Ok(()) };
        let Some(Newest { files: Some((file, _)), .. }) = &self.newest else { return Ok(()) };
        if since.elapsed() + SYNC_EARLY >= every {
            file.sync_data().map_err(|source| failed("sync", &self.dir, source))?;
            self.syncs.count += 1;
            self.syncs.waiting_since = None;
        }
        Ok(())
    }

    /// Writes the rows and the tail, and removes rows, all or none; returns when that is on the disk (or, after
    /// [`Generations::sync_every`], when the system has it). A key is at most 250
    /// bytes long and does not begin with 0.
    ///
    /// # Errors
    /// If there is no newest generation, or the disk fails: then it is unknown whether they were written, and the
    /// same may be written again.
    pub fn append(&mut self, rows: &[(Vec<u8>, Vec<u8>)], removed: &[Vec<u8>], tail: &[u8]) -> Result<(), StoreError> {
        let Some(newest) = &self.newest else { return Err(StoreError::NoGeneration) };
        let (ordinal, appends) = (newest.ordinal, newest.appends + 1);
        let path = self.path(ordinal);
        let mut batch = sled::Batch::default();
        for key in removed {
            remove_value(&mut batch, key);
        }
        for (key, value) in rows {
            put(&mut batch, key, value)?;
        }
        let commit = Commit { ordinal, appends, sealed: false, tail: tail.to_owned() };
        put_commit(&mut batch, &commit)?;
        let (db, file) = self.writable()?;
        let since = *self.syncs.waiting_since.get_or_insert_with(Instant::now);
        let is_due = self.syncs.every.is_none_or(|every| since.elapsed() >= every);
        let written = guarded(&path, || {
            db.apply_batch(batch)?;
            db.flush()
        })
        .and_then(|_| if is_due { file.sync_data() } else { Ok(()) }.map_err(|source| failed("sync", &path, source)));
        drop(db);
        let Some(newest) = &mut self.newest else { return Err(StoreError::NoGeneration) };
        if let Err(error) = written {
            // sled stays poisoned after an I/O error. A disk that is read-only looks to it like any other failure.
            newest.db = None;
            newest.files = None;
            return Err(if error.is_disk() { error } else { self.probe().err().unwrap_or(error) });
        }
        if is_due {
            self.syncs.count += 1;
            self.syncs.waiting_since = None;
        }
        newest.appends = appends;
        newest.tail.clone_from(&commit.tail);
        // Behind at worst, if this fails: what it is for is to be no further than the rows are.
        let Some((_, tail_file)) = &newest.files else { return Err(StoreError::NoGeneration) };
        if let Err(error) = write_tail(tail_file, &commit) {
            tracing::debug!(%error, "the tail file stays behind");
        }
        Ok(())
    }

    /// The newest database in its place, and our descriptor of its file.
    fn writable(&mut self) -> Result<(Arc<Database>, File), StoreError> {
        if self.newest.as_ref().is_some_and(|newest| newest.files.is_none()) {
            // What is open, if anything, is a copy in memory.
            self.probe()?;
            if let Some(newest) = &mut self.newest {
                newest.db = None;
            }
        }
        self.reopen_newest()?;
        let Some(Newest { db: Some(db), files: Some((file, _)), ordinal, .. }) = &self.newest else {
            return Err(StoreError::DiskFull(self.dir.clone()));
        };
        let file = file.try_clone().map_err(|source| failed("sync", &self.path(*ordinal), source))?;
        Ok((Arc::clone(db), file))
    }

    pub(super) fn reopen_newest(&mut self) -> Result<(), StoreError> {
        let Some(newest) = &self.newest else { return Err(StoreError::NoGeneration) };
        if newest.db.is_some() {
            return Ok(());
        }
        let path = self.path(newest.ordinal);
        let db = self.open_database(newest.ordinal)?;
        let appends = commit_of(&db).map_or(0, |commit| commit.appends);
        let files = if db.is_copy() { None } else { Some(open_files(&path)?) };
        let Some(newest) = &mut self.newest else { return Err(StoreError::NoGeneration) };
        if appends < newest.appends {
            let reason = format!("it has {appends} of {} appends after it was opened again", newest.appends);
            return Err(StoreError::Database { path, reason });
        }
        newest.files = files;
        newest.db = Some(Arc::new(db));
        Ok(())
    }

    /// Closes the newest generation and begins another, with the rows that `fill` puts there.
    ///
    /// # Errors
    /// If the disk fails; the newest generation then stays what it was.
    pub fn roll<E: From<StoreError>>(
        &mut self,
        tail: &[u8],
        fill: impl FnOnce(&mut Self, &mut Filler<'_>) -> Result<(), E>,
    ) -> Result<u64, E> {
        if let Some(Newest { files: Some((file, tail_file)), ordinal, appends, tail, .. }) = &self.newest {
            if self.syncs.waiting_since.take().is_some() {
                file.sync_data().map_err(|source| failed("sync", &self.dir, source))?;
            }
            // A closed generation goes by this file, and after a power cut it is behind the rows.
            let commit = Commit { ordinal: *ordinal, appends: *appends, sealed: false, tail: tail.clone() };
            write_tail(tail_file, &commit)
                .and_then(|()| tail_file.sync_data())
                .map_err(|source| failed("sync the tail in", &self.dir, source))?;
        }
        let tail_of = |this: &mut Self, filler: &mut Filler<'_>| fill(this, filler).map(|()| tail.to_owned());
        let (ordinal, db, commit) = self.write_new(false, tail_of)?;
        let files = open_files(&self.path(ordinal))?;
        let newest =
            Newest { ordinal, db: Some(Arc::new(db)), files: Some(files), appends: commit.appends, tail: commit.tail };
        if let Some(old) = self.newest.replace(newest) {
            let bytes = self.database_bytes(old.ordinal);
            self.closed.insert(old.ordinal, Generation { tail: Some(old.tail), bytes });
        }
        Ok(ordinal)
    }

    /// Writes a generation that is closed from the beginning; `fill` puts its rows there and gives its tail.
    ///
    /// # Errors
    /// If the disk fails, or `fill` does; then there is no such generation.
    pub fn add_closed<E: From<StoreError>>(
        &mut self,
        fill: impl FnOnce(&mut Self, &mut Filler<'_>) -> Result<Vec<u8>, E>,
    ) -> Result<u64, E> {
        let (ordinal, db, commit) = self.write_new(true, fill)?;
        drop(db);
        let bytes = self.database_bytes(ordinal);
        self.closed.insert(ordinal, Generation { tail: Some(commit.tail), bytes });
        Ok(ordinal)
    }

    fn write_new<E: From<StoreError>>(
        &mut self,
        sealed: bool,
        fill: impl FnOnce(&mut Self, &mut Filler<'_>) -> Result<Vec<u8>, E>,
    ) -> Result<(u64, Database, Commit), E> {
        // sled fails in many ways on a full disk, and leaves half a database.
        self.probe()?;
        let ordinal = self.next_ordinal;
        let path = self.path(ordinal);
        remove(&path)?;
        match self.try_write_new(ordinal, &path, sealed, fill) {
            Ok((db, commit)) => {
                self.next_ordinal += 1;
                Ok((ordinal, db, commit))
            }
            Err(error) => {
                if let Err(error) = remove(&path) {
                    tracing::warn!(%error, "an unfinished generation stays behind; the next start removes it");
                }
                Err(error)
            }
        }
    }

    fn try_write_new<E: From<StoreError>>(
        &mut self,
        ordinal: u64,
        path: &Path,
        sealed: bool,
        fill: impl FnOnce(&mut Self, &mut Filler<'_>) -> Result<Vec<u8>, E>,
    ) -> Result<(Database, Commit), E> {
        let db = Database::open_in_place(path, self.settings.cache_bytes)?;
        let mut filler = Filler { path, db: &db, batch: sled::Batch::default(), bytes: 0 };
        let tail = fill(self, &mut filler)?;
        filler.flush()?;
        // Without its commit row a generation is nothing, so this comes last, when the rest is on the disk.
        let commit = Commit { ordinal, appends: 1, sealed, tail };
        let mut batch = sled::Batch::default();
        put_commit(&mut batch, &commit)?;
        guarded(path, || db.flush())?;
        self.sync_files(path).map_err(|source| failed("sync", path, source))?;
        guarded(path, || {
            db.apply_batch(batch)?;
            db.flush()
        })?;
        self.sync_files(path)
            .and_then(|()| {
                let tail_file = OpenOptions::new().write(true).create(true).truncate(false).open(path.join("tail"))?;
                write_tail(&tail_file, &commit)?;
                tail_file.sync_all()
            })
            .map_err(|source| failed("sync", path, source))?;
        Ok((db, commit))
    }

    fn sync_files(&self, path: &Path) -> std::io::Result<()> {
        for file in ["db", "conf"] {
            File::open(path.join(file))?.sync_all()?;
        }
        File::open(path)?.sync_all()?;
        File::open(&self.dir)?.sync_all()
    }
}
