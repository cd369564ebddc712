//! A backup: the database as `pg_dump` writes it, and the cloud's keys. A directory:
//!
//! | file | what |
//! |---|---|
//! | `database.dump` | the whole database, `pg_dump`'s custom format: one moment of it, also while the daemon runs |
//! | `keys/` | what the cloud signs with and gateways trust (`data_dir/keys`) |
//! | `backup.json` | which version made it, and when |
//!
//! Who has it can pretend to be this cloud: it is of mode 0700. It is there whole, or under a name that ends in `.unfinished`.
//! A restore takes the database's contents over in one transaction: all of it, or nothing.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::{io::AsyncWriteExt as _, process::Command};
use tokio_postgres::config::{Host, SslMode};

use crate::store::Store;

const DUMP: &str = "database.dump";
const NOTE: &str = "backup.json";
const KEYS: &str = "keys";
/// Of this file's form.
const FORM: u32 = 1;
/// How often it is looked whether others leave the database, ten times a second.
const LEAVING: u32 = 30;
/// In the place of what was there; the schema as PostgreSQL makes it.
const EMPTIED: &[u8] = b"BEGIN;
DROP SCHEMA public CASCADE;
CREATE SCHEMA public;
GRANT USAGE ON SCHEMA public TO PUBLIC;
ALTER SCHEMA public OWNER TO pg_database_owner;
";

/// What a backup says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    form: u32,
    /// The version of gemba-cloud that made it.
    pub version: String,
    pub made_at: Timestamp,
}

/// How PostgreSQL's programs reach the database.
#[derive(Debug)]
pub struct Reach<'a> {
    pub database: &'a tokio_postgres::Config,
    pub ca_file: Option<&'a Path>,
}

/// Makes a backup in a directory that is not there yet.
///
/// # Errors
/// If the directory is there or cannot be made, `pg_dump` is missing or fails, or the keys cannot be read.
pub async fn make(reach: &Reach<'_>, data_dir: &Path, to: &Path, now: Timestamp) -> anyhow::Result<()> {
    ensure!(!to.exists(), "{} is there already: name a directory that is not", to.display());
    let name = to.file_name().with_context(|| format!("{} is no name for a directory", to.display()))?;
    let unfinished = to.with_file_name(format!("{}.unfinished", name.to_string_lossy()));
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished).with_context(|| format!("cannot remove {}", unfinished.display()))?;
    }
    let made = || format!("cannot make {}", unfinished.display());
    fs::DirBuilder::new().mode(0o700).create(&unfinished).with_context(made)?;

    let dump = unfinished.join(DUMP);
    let mut command = reach.command("pg_dump")?;
    command.args(["--format", "custom", "--no-owner", "--no-password", "--file"]).arg(&dump);
    run(command, "pg_dump").await?;
    let keys = data_dir.join(KEYS);
    copy_keys(&keys, &unfinished.join(KEYS)).with_context(|| format!("cannot copy {}", keys.display()))?;
    let note = Note { form: FORM, version: env!("CARGO_PKG_VERSION").to_owned(), made_at: now };
    write(&unfinished.join(NOTE), &serde_json::to_vec_pretty(&note)?)?;
    for path in [&dump, &unfinished] {
        fs::File::open(path).and_then(|file| file.sync_all()).with_context(made)?;
    }
    fs::rename(&unfinished, to).with_context(|| format!("cannot make {}", to.display()))
}

/// Puts a backup in the place of what is in the database and of the cloud's keys. Over a database with data only when told to.
///
/// # Errors
/// If it is no backup, the database has data, somebody uses it, or PostgreSQL refuses; nothing was changed in the database then.
pub async fn restore(
    reach: &Reach<'_>,
    store: &Store,
    data_dir: &Path,
    from: &Path,
    overwrite: bool,
) -> anyhow::Result<Note> {
    let note = fs::read(from.join(NOTE)).with_context(|| format!("{} is no backup of gemba-cloud", from.display()))?;
    let note: Note = serde_json::from_slice(&note).with_context(|| format!("{NOTE} is damaged"))?;
    ensure!(note.form <= FORM, "the backup was made by a newer gemba-cloud ({}): install that version", note.version);
    ensure!(from.join(DUMP).is_file(), "{} is missing in {}", DUMP, from.display());
    // The role that the dump's rights name belongs to the cluster, not to the dump.
    store.migrate().await.or_else(|error| if overwrite { Ok(Vec::new()) } else { Err(error) })?;
    let mut state = store.occupancy().await?;
    if state.has_data && !overwrite {
        bail!("the database has data: to replace all of it by the backup, say --overwrite");
    }
    // What was closed a moment ago (by us, too) is gone in a moment.
    for _ in 0..LEAVING {
        if state.others == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        state = store.occupancy().await?;
    }
    ensure!(
        state.others == 0,
        "{} connections of gemba-cloud use the database: stop the daemon (all of them) first",
        state.others
    );
    load(reach, &from.join(DUMP)).await?;
    store.migrate().await.context("the backup is restored, and its schema cannot be brought up to date")?;
    restore_keys(&from.join(KEYS), &data_dir.join(KEYS))?;
    Ok(note)
}

impl Reach<'_> {
    /// One of PostgreSQL's programs, with what it needs to connect.
    fn command(&self, program: &str) -> anyhow::Result<Command> {
        let mut command = Command::new(find(program)?);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("PG") {
                command.env_remove(name);
            }
        }
        let config = self.database;
        let host = match config.get_hosts().first() {
            Some(Host::Tcp(host)) => host.clone(),
            Some(Host::Unix(path)) => path.to_string_lossy().into_owned(),
            None => "localhost".to_owned(),
        };
        command.env("PGHOST", host).stdin(Stdio::null()).kill_on_drop(true);
        command.env("PGPORT", config.get_ports().first().copied().unwrap_or(5_432).to_string());
        if let Some(user) = config.get_user() {
            command.env("PGUSER", user);
        }
        let database = config.get_dbname().or_else(|| config.get_user()).context("database_url names no database")?;
        command.env("PGDATABASE", database);
        if let Some(password) = config.get_password() {
            command.env("PGPASSWORD", std::str::from_utf8(password).context("the password is no text")?);
        }
        let mode = match (config.get_ssl_mode(), self.ca_file) {
            (SslMode::Require, Some(_)) => "verify-full",
            (SslMode::Require, None) => "require",
            (SslMode::Disable, _) => "disable",
            _ => "prefer",
        };
        command.env("PGSSLMODE", mode);
        if let Some(file) = self.ca_file {
            command.env("PGSSLROOTCERT", file);
        }
        Ok(command)
    }
}

/// The newest of Debian's, or the one on the path.
fn find(program: &str) -> anyhow::Result<PathBuf> {
    let mut versions: Vec<(u32, PathBuf)> = Vec::new();
    for entry in fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten() {
        if let Ok(version) = entry.file_name().to_string_lossy().parse() {
            versions.push((version, entry.path().join("bin")));
        }
    }
    versions.sort_by(|a, b| b.cmp(a));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = versions.into_iter().map(|(_, bin)| bin).chain(std::env::split_paths(&path));
    directories.map(|bin| bin.join(program)).find(|path| path.is_file()).with_context(|| {
        format!(
            "{program} was not found: install PostgreSQL's client (on Debian and Ubuntu: apt install postgresql-client)"
        )
    })
}

async fn run(mut command: Command, name: &str) -> anyhow::Result<()> {
    let output = command.stdout(Stdio::null()).output().await.with_context(|| format!("cannot run {name}"))?;
    ensure!(output.status.success(), "{name} failed:\n{}", String::from_utf8_lossy(&output.stderr).trim_end());
    Ok(())
}

/// `pg_restore` writes the dump as SQL, `psql` carries it out in one transaction, behind what empties the database.
async fn load(reach: &Reach<'_>, dump: &Path) -> anyhow::Result<()> {
    let mut script = Command::new(find("pg_restore")?);
    script.args(["--no-owner", "--file", "-"]).arg(dump);
    let mut script = script
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("cannot run pg_restore")?;
    let mut psql = reach.command("psql")?;
    psql.args(["--no-psqlrc", "--quiet", "--no-password", "--set", "ON_ERROR_STOP=1", "--file", "-"]);
    let mut psql = psql
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("cannot run psql")?;
    let (mut from, mut to) = (script.stdout.take().context("no output")?, psql.stdin.take().context("no input")?);
    let feed = async move {
        to.write_all(EMPTIED).await?;
        tokio::io::copy(&mut from, &mut to).await?;
        drop(from);
        anyhow::Ok(to)
    };
    // Whoever fails first says why; the other's pipe breaks.
    let (fed, script) = tokio::join!(feed, script.wait_with_output());
    let script = script.context("pg_restore was lost")?;
    // Without COMMIT, which is written only behind a whole script, the end of its input makes `psql` leave all as it was.
    if let Ok(mut to) = fed
        && script.status.success()
    {
        to.write_all(b"\nCOMMIT;\n").await.ok();
    }
    let psql = psql.wait_with_output().await.context("psql was lost")?;
    let told = |output: &std::process::Output| String::from_utf8_lossy(&output.stderr).trim_end().to_owned();
    ensure!(psql.status.success(), "the database refuses the backup, and is as it was:\n{}", told(&psql));
    ensure!(script.status.success(), "pg_restore failed, and the database is as it was:\n{}", told(&script));
    Ok(())
}

fn copy_keys(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::DirBuilder::new().mode(0o700).create(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            write(&to.join(entry.file_name()), &fs::read(entry.path())?)?;
        }
    }
    fs::File::open(to)?.sync_all()?;
    Ok(())
}

/// The keys that were there are kept beside, unless they are the same.
fn restore_keys(from: &Path, to: &Path) -> anyhow::Result<()> {
    let failed =
        || format!("the database is restored, and the keys cannot be: copy {} to {}", from.display(), to.display());
    let unfinished = to.with_extension("unfinished");
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished).with_context(failed)?;
    }
    fs::create_dir_all(to.parent().unwrap_or(Path::new("/"))).with_context(failed)?;
    copy_keys(from, &unfinished).with_context(failed)?;
    if to.exists() {
        let mut aside = to.with_extension("before-restore");
        for n in 2.. {
            if !aside.exists() {
                break;
            }
            aside = to.with_extension(format!("before-restore-{n}"));
        }
        fs::rename(to, aside).with_context(failed)?;
    }
    fs::rename(&unfinished, to).with_context(failed)
}

fn write(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let failed = || format!("cannot write {}", path.display());
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).with_context(failed)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).with_context(failed)
}
