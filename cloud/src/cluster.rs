//! A private PostgreSQL cluster in the data directory: the default for a laptop, a demo and tests.
//!
//! It is made of the installed PostgreSQL binaries, listens on a Unix socket only, with a random password,
//! and syncs to the disk as PostgreSQL does by default. `postgres` refuses to run as root, so root starts it as user
//! `postgres` or `nobody`.
//!
//! | file | what |
//! |---|---|
//! | `data/` | the cluster; made under another name and renamed when it is whole |
//! | `password` | of the database user, mode 0600 |
//! | `log` | what the server says |
//! | `start.lock` | held while somebody starts or stops it |
//! | `use.lock` | held, shared, by everybody who uses it: only the last one stops it |
//!
//! The server outlives a daemon that is killed; the next one finds it by its `postmaster.pid` and goes on with it.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::Child,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use nix::fcntl::{Flock, FlockArg};
use tokio_postgres::{Config, NoTls};
use tokio_util::sync::CancellationToken;

mod process;

use process::{Account, Installation, Postmaster};

/// How long a start may take: a server that was killed first replays its log.
const START_MAX: Duration = Duration::from_mins(2);
const STOP_MAX: Duration = Duration::from_secs(30);
/// How often it is started in vain, and the pause between.
const STARTS_MAX: u32 = 6;
/// What it says while children of a killed server still run: it is started until they have ended, or the time is over.
const STILL_IN_USE: &str = "is still in use";
const START_AGAIN: Duration = Duration::from_millis(500);
/// How soon a server that died is noticed.
const WATCH_EVERY: Duration = Duration::from_secs(1);
const POLL: Duration = Duration::from_millis(20);
/// `sun_path` holds 108 bytes; the server adds `/.s.PGSQL.5432`.
const SOCKET_DIRECTORY_BYTES_MAX: usize = 90;
const USER: &str = "gemba";
const DATABASE: &str = "gemba";
const PORT: u16 = 5432;

/// Whether a commit waits for the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    Synced,
    /// For tests: a power cut may destroy the cluster.
    Careless,
}

/// A running private cluster.
#[derive(Debug)]
pub struct Cluster {
    server: Arc<Server>,
    in_use: Flock<File>,
}

#[derive(Debug)]
struct Server {
    directory: PathBuf,
    sockets: PathBuf,
    password: String,
    durability: Durability,
    account: Account,
    /// Where this process started it.
    child: Mutex<Option<Child>>,
}

impl Cluster {
    /// Goes on with the cluster that runs in `directory`, starts the one that lies there, or makes one.
    ///
    /// # Errors
    /// If PostgreSQL is not installed, the directory cannot be used, or the server does not come up; the text says
    /// what to do.
    pub async fn start(directory: &Path, durability: Durability) -> anyhow::Result<Self> {
        let directory = directory.to_path_buf();
        let cluster = tokio::task::spawn_blocking(move || Self::start_blocking(&directory, durability))
            .await
            .context("the start of PostgreSQL was interrupted")??;
        cluster.create_database(DATABASE).await?;
        Ok(cluster)
    }

    /// How to reach the daemon's database.
    #[must_use]
    pub fn config(&self) -> Config {
        self.config_of(DATABASE)
    }

    /// How to reach a database of this cluster.
    #[must_use]
    pub fn config_of(&self, database: &str) -> Config {
        let mut config = Config::new();
        config.host_path(&self.server.sockets).port(PORT).user(USER).password(&self.server.password).dbname(database);
        config
    }

    /// Makes a database unless it exists. The name is ours: letters, digits and `_`.
    ///
    /// # Errors
    /// If the server refuses.
    pub async fn create_database(&self, name: &str) -> anyhow::Result<()> {
        let (client, connection) =
            self.config_of("postgres").connect(NoTls).await.context("cannot connect to the private PostgreSQL")?;
        let connection = tokio::spawn(connection);
        let known = client.query_opt("SELECT 1 FROM pg_database WHERE datname = $1", &[&name]).await?;
        if known.is_none() {
            let made = client.batch_execute(&format!("CREATE DATABASE \"{name}\"")).await;
            // Somebody else may have been faster.
            if let Err(error) = made
                && error.code() != Some(&tokio_postgres::error::SqlState::DUPLICATE_DATABASE)
                && error.code() != Some(&tokio_postgres::error::SqlState::UNIQUE_VIOLATION)
            {
                return Err(error).with_context(|| format!("cannot create the database {name}"));
            }
        }
        drop(client);
        connection.await.context("the connection to PostgreSQL was interrupted")?.context("PostgreSQL hung up")
    }

    /// The process of the server, where it runs.
    #[must_use]
    pub fn server_pid(&self) -> Option<i32> {
        Postmaster::of(&self.server.data()).map(|postmaster| postmaster.pid.as_raw())
    }

    /// Stops the server (waiting for open transactions to be rolled back, not for clients to leave), unless
    /// somebody else uses it.
    ///
    /// # Errors
    /// If the server does not end in time.
    pub async fn stop(self) -> anyhow::Result<()> {
        tokio::task::spawn_blocking(move || self.stop_blocking()).await.context("the stop was interrupted")?
    }

    /// Starts the server again whenever it dies, until `cancel`.
    pub async fn keep_running(&self, cancel: &CancellationToken) {
        loop {
            tokio::select! {
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(WATCH_EVERY) => {}
            }
            if Postmaster::of(&self.server.data()).is_some() {
                continue;
            }
            tracing::error!("the private PostgreSQL died: starting it again");
            let server = Arc::clone(&self.server);
            match tokio::task::spawn_blocking(move || server.bring_up()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::error!(error = format!("{error:#}"), "the private PostgreSQL does not start");
                }
                Err(error) => tracing::error!(%error, "the start of PostgreSQL was interrupted"),
            }
        }
    }

    fn start_blocking(directory: &Path, durability: Durability) -> anyhow::Result<Self> {
        let account = Account::for_server()?;
        let directory = prepare(directory, &account)?;
        let in_use = lock(&directory.join("use.lock"), FlockArg::LockShared)?;
        let server = {
            let _starting = lock(&directory.join("start.lock"), FlockArg::LockExclusive)?;
            let (password, sockets) = (password(&directory)?, socket_directory(&directory, &account)?);
            Server { directory, sockets, password, durability, account, child: Mutex::default() }
        };
        server.bring_up()?;
        Ok(Self { server: Arc::new(server), in_use })
    }

    fn stop_blocking(self) -> anyhow::Result<()> {
        let Self { server, in_use } = self;
        let _stopping = lock(&server.directory.join("start.lock"), FlockArg::LockExclusive)?;
        drop(in_use);
        if lock(&server.directory.join("use.lock"), FlockArg::LockExclusiveNonblock).is_err() {
            tracing::info!("left the private PostgreSQL running: another process uses it");
            return Ok(());
        }
        let data = server.data();
        let Some(postmaster) = Postmaster::of(&data) else { return Ok(()) };
        postmaster.stop()?;
        wait(Instant::now() + STOP_MAX, || {
            server.reap();
            Postmaster::of(&data).is_none_or(|now| now.pid != postmaster.pid)
        })
        .context("PostgreSQL does not stop")
    }
}

impl Server {
    fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    /// Lets a server that ended go; a new one would take it for alive.
    fn reap(&self) {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        if child.as_mut().is_some_and(ended) {
            *child = None;
        }
    }

    /// Until a server is ready: the one that runs, or a new one; in the first start of all with a new cluster.
    fn bring_up(&self) -> anyhow::Result<()> {
        let _starting = lock(&self.directory.join("start.lock"), FlockArg::LockExclusive)?;
        self.reap();
        let deadline = Instant::now() + START_MAX;
        let data = self.data();
        let ready = || Postmaster::of(&data).is_some_and(|postmaster| postmaster.ready());
        // One that starts may end instead (children of a killed one still ran), and one that stops ends.
        wait(deadline, || Postmaster::of(&data).is_none_or(|postmaster| postmaster.ready()))
            .context("PostgreSQL runs, and neither becomes ready nor ends")?;
        if ready() {
            tracing::info!(directory = %self.directory.display(), "adopted the running private PostgreSQL");
            return Ok(());
        }
        let installation = Installation::find()?;
        if !data.exists() {
            installation.init(&self.directory, &data, &self.password, &self.account, self.durability)?;
        }
        let log = self.directory.join("log");
        let mut starts = 0;
        while starts < STARTS_MAX && Instant::now() < deadline {
            let mut child = installation.serve(&data, &self.sockets, &log, &self.account, self.durability)?;
            wait(deadline, || ended(&mut child) || ready()).context("PostgreSQL does not become ready")?;
            if !ended(&mut child) {
                *self.child.lock().unwrap_or_else(PoisonError::into_inner) = Some(child);
                tracing::info!(directory = %self.directory.display(), "started the private PostgreSQL");
                return Ok(());
            }
            // They end by themselves; on a busy machine that may take long.
            if !tail(&log).contains(STILL_IN_USE) {
                starts += 1;
            }
            std::thread::park_timeout(START_AGAIN);
        }
        bail!("PostgreSQL did not start; {} ends with:\n{}", log.display(), tail(&log))
    }
}

fn ended(child: &mut Child) -> bool {
    !matches!(child.try_wait(), Ok(None))
}

fn wait(deadline: Instant, mut done: impl FnMut() -> bool) -> anyhow::Result<()> {
    while !done() {
        if Instant::now() > deadline {
            bail!("it took too long");
        }
        std::thread::park_timeout(POLL);
    }
    Ok(())
}

/// The directory, absolute, and such that the server's account can use it.
fn prepare(directory: &Path, account: &Account) -> anyhow::Result<PathBuf> {
    let failed = || format!("cannot use {} for PostgreSQL", directory.display());
    fs::DirBuilder::new().recursive(true).mode(0o711).create(directory).with_context(failed)?;
    let directory = directory.canonicalize().with_context(failed)?;
    if account.is_other() {
        for parent in directory.ancestors() {
            let metadata = fs::metadata(parent).with_context(failed)?;
            if metadata.mode() & 0o001 != 0 {
                continue;
            }
            // Only what is this daemon's own may be opened: its data directory and what it keeps in it.
            let ours = parent == directory || Some(parent) == directory.parent();
            if !ours || metadata.uid() != nix::unistd::geteuid().as_raw() {
                bail!(cannot_pass(account.name(), parent));
            }
            let mode = metadata.mode() & 0o7777 | 0o011;
            fs::set_permissions(parent, fs::Permissions::from_mode(mode)).with_context(failed)?;
        }
    }
    Ok(directory)
}

fn cannot_pass(account: &str, directory: &Path) -> String {
    let directory = directory.display();
    format!(
        "user {account:?}, as whom PostgreSQL runs (it refuses to run as root), cannot pass through {directory}: \
         run `chmod o+x {directory}`, choose another data_dir, or set database_url"
    )
}

fn socket_directory(directory: &Path, account: &Account) -> anyhow::Result<PathBuf> {
    let near = directory.join("run");
    let path = if near.as_os_str().len() <= SOCKET_DIRECTORY_BYTES_MAX {
        near
    } else {
        // The same for every process that uses this cluster, and different for every cluster.
        let inode = fs::metadata(directory)?;
        std::env::temp_dir().join(format!("gemba-pg-{:x}-{:x}", inode.dev(), inode.ino()))
    };
    match fs::DirBuilder::new().mode(0o711).create(&path) {
        Ok(()) => account.give(&path)?,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let owner = fs::symlink_metadata(&path)?;
            if !owner.is_dir() || owner.uid() != account.uid() {
                bail!("{} belongs to somebody else: remove it, or choose a shorter data_dir", path.display());
            }
        }
        Err(error) => return Err(error).with_context(|| format!("cannot make {}", path.display())),
    }
    Ok(path)
}

fn password(directory: &Path) -> anyhow::Result<String> {
    let path = directory.join("password");
    let failed = || format!("cannot use {}", path.display());
    match fs::read_to_string(&path) {
        Ok(text) if !text.trim().is_empty() => return Ok(text.trim().to_owned()),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(failed),
    }
    let mut secret = [0; 24];
    getrandom::fill(&mut secret).map_err(|error| anyhow::anyhow!("the system gives no random bytes: {error}"))?;
    let text = URL_SAFE_NO_PAD.encode(secret);
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path).with_context(failed)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).with_context(failed)?;
    Ok(text)
}

fn lock(path: &Path, how: FlockArg) -> anyhow::Result<Flock<File>> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    Flock::lock(file, how).map_err(|(_, error)| anyhow::anyhow!("cannot lock {}: {error}", path.display()))
}

fn tail(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let from = text.len().saturating_sub(2_000);
    String::from_utf8_lossy(&text[from..]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_is_closed_to_the_server_is_told_with_what_opens_it() {
        let told = cannot_pass("postgres", Path::new("/srv/own"));
        assert!(told.contains("user \"postgres\"") && told.contains("`chmod o+x /srv/own`"), "{told}");
    }
}
