//! The processes of a private cluster: finding the binaries, making a cluster, serving it, stopping it.

use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    os::unix::{fs::OpenOptionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, User, geteuid},
};

use super::{Durability, PORT, USER};

/// The oldest PostgreSQL that the migrations are written for.
const VERSION_MIN: u32 = 15;

/// As whom the server runs.
#[derive(Debug)]
pub(super) struct Account {
    /// `None`: as ourselves.
    other: Option<User>,
}

impl Account {
    pub(super) fn for_server() -> anyhow::Result<Self> {
        if !geteuid().is_root() {
            return Ok(Self { other: None });
        }
        for name in ["postgres", "nobody"] {
            if let Some(user) = User::from_name(name)? {
                return Ok(Self { other: Some(user) });
            }
        }
        bail!("PostgreSQL refuses to run as root, and there is no user `postgres` or `nobody` to run it as: add one")
    }

    pub(super) fn is_other(&self) -> bool {
        self.other.is_some()
    }

    pub(super) fn name(&self) -> &str {
        self.other.as_ref().map_or("this user", |user| &user.name)
    }

    pub(super) fn uid(&self) -> u32 {
        self.other.as_ref().map_or_else(|| geteuid().as_raw(), |user| user.uid.as_raw())
    }

    /// Makes the account the owner of a file or directory.
    pub(super) fn give(&self, path: &Path) -> anyhow::Result<()> {
        let Some(user) = &self.other else { return Ok(()) };
        nix::unistd::chown(path, Some(user.uid), Some(user.gid))
            .with_context(|| format!("cannot give {} to user {}", path.display(), user.name))
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.stdin(Stdio::null()).current_dir("/");
        for (name, _) in std::env::vars_os() {
            // Somebody's PGDATA, PGHOST or locale is not this cluster's, and what the service manager hears is for the daemon to say.
            let name_text = name.to_string_lossy();
            if ["PG", "LC_", "NOTIFY_SOCKET", "WATCHDOG_"].iter().any(|begin| name_text.starts_with(begin)) {
                command.env_remove(name);
            }
        }
        if let Some(user) = &self.other {
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
        command
    }
}

/// Installed PostgreSQL server binaries.
#[derive(Debug)]
pub(super) struct Installation {
    bin: PathBuf,
}

impl Installation {
    /// The newest of Debian's, what `pg_config` names, or what is on the path.
    pub(super) fn find() -> anyhow::Result<Self> {
        let mut found: Vec<(u32, PathBuf)> = Vec::new();
        if let Ok(versions) = fs::read_dir("/usr/lib/postgresql") {
            for version in versions.flatten() {
                if let Ok(number) = version.file_name().to_string_lossy().parse() {
                    found.push((number, version.path().join("bin")));
                }
            }
        }
        found.sort_by(|a, b| b.cmp(a));
        let debian = found.into_iter().filter(|(version, _)| *version >= VERSION_MIN).map(|(_, bin)| bin);
        let configured = Command::new("pg_config")
            .arg("--bindir")
            .output()
            .ok()
            .filter(|output| output.status.success())
            .map(|output| PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
        let path = std::env::var_os("PATH").unwrap_or_default();
        let on_path: Vec<PathBuf> = std::env::split_paths(&path).collect();
        debian
            .chain(configured)
            .chain(on_path)
            .find(|bin| bin.join("initdb").is_file() && bin.join("postgres").is_file())
            .map(|bin| Self { bin })
            .context(
                "no PostgreSQL server binaries (initdb, postgres) were found: install PostgreSQL \
                 (on Debian and Ubuntu: apt install postgresql), or set database_url",
            )
    }

    /// Makes a cluster at `data`, whole or not at all.
    pub(super) fn init(
        &self,
        directory: &Path,
        data: &Path,
        password: &str,
        account: &Account,
        durability: Durability,
    ) -> anyhow::Result<()> {
        let unfinished = directory.join("data.new");
        if unfinished.exists() {
            fs::remove_dir_all(&unfinished).with_context(|| format!("cannot remove {}", unfinished.display()))?;
        }
        fs::create_dir(&unfinished).with_context(|| format!("cannot make {}", unfinished.display()))?;
        account.give(&unfinished)?;
        let secret = directory.join("password.init");
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&secret)?;
        file.write_all(password.as_bytes())?;
        account.give(&secret)?;

        let mut command = account.command(&self.bin.join("initdb"));
        command.arg("-D").arg(&unfinished).arg("--pwfile").arg(&secret);
        command.args(["--username", USER, "--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C"]);
        if durability == Durability::Careless {
            command.arg("--no-sync");
        }
        let output = command.output().context("cannot run initdb");
        fs::remove_file(&secret).with_context(|| format!("cannot remove {}", secret.display()))?;
        let output = output?;
        if !output.status.success() {
            bail!("initdb failed ({}):\n{}", output.status, String::from_utf8_lossy(&output.stderr));
        }
        fs::rename(&unfinished, data).with_context(|| format!("cannot make {}", data.display()))?;
        fs::File::open(directory).and_then(|d| d.sync_all()).context("cannot sync the data directory")
    }

    pub(super) fn serve(
        &self,
        data: &Path,
        sockets: &Path,
        log: &Path,
        account: &Account,
        durability: Durability,
    ) -> anyhow::Result<Child> {
        let out = OpenOptions::new().create(true).append(true).mode(0o640).open(log)?;
        let mut command = account.command(&self.bin.join("postgres"));
        command.arg("-D").arg(data).arg("-k").arg(sockets).arg("-p").arg(PORT.to_string());
        let settings = [
            "listen_addresses=",
            "unix_socket_permissions=0777",
            "max_connections=60",
            "shared_buffers=128MB",
            "max_wal_size=2GB",
            // Reading a page here or there costs nearly the same from memory or an SSD; the default is that of turning disks.
            "random_page_cost=1.1",
            "checkpoint_timeout=15min",
            "wal_compression=on",
            "jit=off",
            "timezone=UTC",
            "log_timezone=UTC",
            "log_min_messages=warning",
            "logging_collector=off",
        ];
        let careless = ["fsync=off", "full_page_writes=off", "synchronous_commit=off"];
        let careless = careless.iter().filter(|_| durability == Durability::Careless);
        for setting in settings.iter().chain(careless) {
            command.arg("-c").arg(setting);
        }
        // A group of its own: Ctrl-C at a terminal is the daemon's to handle, and the daemon stops the server last.
        command.process_group(0).stdout(out.try_clone()?).stderr(out);
        command.spawn().context("cannot run postgres")
    }
}

/// A server that runs, by its own `postmaster.pid`.
#[derive(Debug)]
pub(super) struct Postmaster {
    pub(super) pid: Pid,
    status: String,
}

impl Postmaster {
    /// `None` where no server runs on `data`.
    pub(super) fn of(data: &Path) -> Option<Self> {
        let text = fs::read_to_string(data.join("postmaster.pid")).ok()?;
        let mut lines = text.lines();
        let pid = Pid::from_raw(lines.next()?.trim().parse().ok().filter(|pid| *pid > 1)?);
        // The number may be another process's after a crash: a server of this cluster names its directory.
        let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let named = data.as_os_str().as_encoded_bytes();
        if !command.split(|byte| *byte == 0).any(|argument| argument == named) {
            return None;
        }
        let status = lines.nth(6).unwrap_or_default().trim().to_owned();
        Some(Self { pid, status })
    }

    pub(super) fn ready(&self) -> bool {
        self.status == "ready"
    }

    /// A fast shutdown: transactions are rolled back, clients are sent away.
    pub(super) fn stop(&self) -> anyhow::Result<()> {
        match kill(self.pid, Signal::SIGINT) {
            Ok(()) | Err(nix::errno::Errno::ESRCH) => Ok(()),
            Err(error) => Err(error).context("cannot tell PostgreSQL to stop"),
        }
    }
}
