//! The command line, and what the program's end tells: 0, 1 for a failure, 78 (`EX_CONFIG`) for a configuration.

use std::{
    env,
    ffi::CString,
    fs,
    io::{self, BufRead as _, IsTerminal as _, Write as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use clap::{Parser, Subcommand, ValueEnum};
use gemba_mqtt::broker::LOG_FILTER;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::{
    backtest::{self, BacktestArgs},
    check, clock,
    config::{Config, Refused},
    diag, enroll,
    outbox_cli::{self, OutboxCommand},
    passwords, reload,
    replay::{self, ReplayArgs},
    run,
    simulate::{self, SimulateArgs},
    status,
};

/// `EX_CONFIG` of sysexits.h.
const EXIT_CONFIG: u8 = 78;
const CONFIG_DEFAULT: &str = "/etc/gemba/edge.toml";

/// Watches machines on a factory gateway, and delivers what it sees to Gemba's cloud
#[derive(Debug, Parser)]
#[command(name = "gemba-edge", version)]
pub struct Cli {
    /// How logs are written
    #[arg(long, global = true, value_enum, default_value = "text")]
    log: Log,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Log {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the daemon
    Run(ConfigArg),
    /// Says whether a configuration is right, and of each fault where it is
    Check {
        #[command(flatten)]
        config: ConfigArg,
        /// The same as --config
        file: Option<PathBuf>,
        /// Looks for what it needs as well: brokers, files, disk, clock, ports
        #[arg(long)]
        live: bool,
    },
    /// Has the running daemon take its configuration file anew
    Reload {
        #[command(flatten)]
        config: ConfigArg,
        /// The daemon's process, where it is known
        #[arg(long)]
        pid: Option<u32>,
    },
    /// Makes this gateway known to a cloud
    Enroll {
        #[command(flatten)]
        config: ConfigArg,
        /// What `gemba-cloud gateway add` printed
        #[arg(long)]
        token: String,
        /// Replace the identity that this gateway has
        #[arg(long)]
        force: bool,
    },
    /// Reads a password from standard input and prints a line for the configuration
    Passwd,
    /// Says how the running daemon is
    Status {
        #[command(flatten)]
        config: ConfigArg,
        #[arg(long)]
        json: bool,
    },
    /// Gathers what support needs to see, without secrets, in one file
    Diag {
        #[command(flatten)]
        config: ConfigArg,
        /// Where to; without it a file here, named by the time
        #[arg(long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Looks into what waits for the cloud, while the daemon does not run
    Outbox {
        #[command(flatten)]
        config: ConfigArg,
        #[command(subcommand)]
        command: OutboxCommand,
    },
    /// Publishes what a plant of pumps would measure, or makes one of them fail
    Simulate(Box<SimulateArgs>),
    /// Publishes recordings
    Replay(ReplayArgs),
    /// Judges recordings as the daemon would
    Backtest(BacktestArgs),
}

#[derive(Debug, clap::Args)]
struct ConfigArg {
    /// The configuration file; without it /etc/gemba/edge.toml where there is one, else the defaults
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl ConfigArg {
    fn load(&self) -> Result<Config, Refused> {
        match &self.config {
            Some(file) => Config::load(file),
            None if Path::new(CONFIG_DEFAULT).exists() => Config::load(Path::new(CONFIG_DEFAULT)),
            None => {
                let nowhere = |faults| Refused { file: PathBuf::new(), faults };
                Config::parse("", Path::new(".")).map_err(nowhere)
            }
        }
    }
}

/// Does what the command line says.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    start_logs(cli.log);
    match carry_out(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let refused = error.downcast_ref::<Refused>().is_some();
            let text = if refused { format!("{error}") } else { format!("gemba-edge: {error:#}") };
            match writeln!(io::stderr().lock(), "{text}") {
                // Nobody reads it: the exit code says it all the same.
                Ok(()) | Err(_) => {}
            }
            if refused { ExitCode::from(EXIT_CONFIG) } else { ExitCode::FAILURE }
        }
    }
}

fn carry_out(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Run(config) => runtime()?.block_on(run::run(config.load()?)),
        Command::Check { config, file, live } => {
            let config = ConfigArg { config: file.or(config.config) }.load()?;
            if live {
                become_owner(&config.data_dir)?;
                return check::live(&config);
            }
            writeln!(io::stdout().lock(), "the configuration is right")?;
            Ok(())
        }
        Command::Enroll { config, token, force } => {
            let config = config.load()?;
            become_owner(&config.data_dir)?;
            enroll::enroll(&config, &token, force)
        }
        Command::Reload { config, pid } => reload::reload(&config.load()?, pid),
        Command::Diag { config, output } => diag::diag(&config.load(), output.as_deref()),
        Command::Passwd => passwd(),
        Command::Status { config, json } => status::status(config.load()?.http, json),
        Command::Outbox { config, command } => {
            let config = config.load()?;
            become_owner(&config.data_dir)?;
            outbox_cli::run(&command, &config)
        }
        Command::Simulate(args) => {
            until_interrupted(|cancel| async { simulate::run(*args, clock::wall, cancel, &mut io::stdout()).await })
        }
        Command::Replay(args) => {
            until_interrupted(|cancel| async { replay::run(args, clock::wall, cancel, &mut io::stdout()).await })
        }
        Command::Backtest(args) => backtest::run(&args, &mut io::stdout().lock()),
    }
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start the runtime")
}

/// Runs a command that Ctrl-C or SIGTERM ends in good order.
fn until_interrupted<F: Future<Output = anyhow::Result<()>>>(
    command: impl FnOnce(CancellationToken) -> F,
) -> anyhow::Result<()> {
    runtime()?.block_on(async {
        let cancel = CancellationToken::new();
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        let command = command(cancel.clone());
        tokio::pin!(command);
        tokio::select! {
            result = &mut command => return result,
            _ = tokio::signal::ctrl_c() => {}
            _ = terminate.recv() => {}
        }
        cancel.cancel();
        command.await
    })
}

/// What root does in a data directory is done as the daemon's user, who could not read it otherwise.
fn become_owner(data_dir: &Path) -> anyhow::Result<()> {
    use nix::unistd::{User, geteuid, initgroups, setgid, setuid};
    let Ok(found) = fs::metadata(data_dir) else { return Ok(()) };
    if !geteuid().is_root() || found.uid() == 0 {
        return Ok(());
    }
    let user = User::from_uid(found.uid().into())?
        .with_context(|| format!("{} belongs to a user that is unknown here", data_dir.display()))?;
    let name = CString::new(user.name.as_str())?;
    initgroups(&name, user.gid).and_then(|()| setgid(user.gid)).and_then(|()| setuid(user.uid))?;
    Ok(())
}

fn passwd() -> anyhow::Result<()> {
    if io::stdin().is_terminal() {
        writeln!(io::stderr().lock(), "password (it is shown):")?;
    }
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    let password = line.trim_end_matches(['\r', '\n']);
    anyhow::ensure!(!password.is_empty(), "the password is empty");
    writeln!(io::stdout().lock(), "password_hash = \"{}\"", passwords::hash(password.as_bytes())?)?;
    Ok(())
}

fn start_logs(log: Log) {
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new(format!("info,sled=warn,tract=warn,{LOG_FILTER}")));
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    match log {
        // journald writes the time beside each line.
        Log::Text if env::var_os("JOURNAL_STREAM").is_some() => {
            logs.without_time().with_ansi(false).with_target(false).init();
        }
        Log::Text => logs.with_ansi(io::stderr().is_terminal()).with_target(false).init(),
        Log::Json => logs.json().flatten_event(true).init(),
    }
}
