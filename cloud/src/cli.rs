//! The command line. What programs want to read (a password, a token) is the last line on standard output; the log
//! goes to standard error.

use std::{
    ffi::CString,
    fmt::Write as _,
    fs,
    io::{IsTerminal as _, Write as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand, ValueEnum};
use tracing_subscriber::EnvFilter;

mod access;

use self::access::{Organisation, Site, TokenKey, User};
use crate::{
    backup::{self, Reach},
    clock,
    config::{Config, EXIT_CONFIG},
    enrolment,
    keys::Keys,
    serve::{self, database::Database},
    store::{Store, enrolment::NewGateway},
};

const CONFIG_DEFAULT: &str = "/etc/gemba/cloud.toml";

#[derive(Debug, Parser)]
#[command(name = "gemba-cloud", version, about = "Gathers gateways, and shows supervisors their machines")]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// The configuration; without, /etc/gemba/cloud.toml where it exists, else the defaults.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// How the log is written.
    #[arg(long, global = true, value_enum, default_value_t = Log::Text)]
    log: Log,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Log {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon.
    Serve,
    /// Bring the database's schema up to date.
    Migrate,
    /// Check the configuration, and whether the database can be used.
    Check,
    /// People who use the web page.
    #[command(subcommand)]
    User(User),
    /// Organisations, which see nothing of each other.
    #[command(subcommand)]
    Organisation(Organisation),
    /// Sites of an organisation.
    #[command(subcommand)]
    Site(Site),
    /// The keys that access tokens are signed with.
    #[command(subcommand)]
    TokenKey(TokenKey),
    /// Gateways that deliver.
    #[command(subcommand)]
    Gateway(Gateway),
    /// Print the `OpenAPI` document of the web API.
    Openapi,
    /// Write the database and the cloud's keys into a new directory; the daemon may run meanwhile.
    Backup { directory: PathBuf },
    /// Put a backup in the place of the database and the cloud's keys; no daemon may run meanwhile.
    Restore {
        directory: PathBuf,
        /// Also when the database has data, which is lost.
        #[arg(long)]
        overwrite: bool,
    },
}

#[derive(Debug, Args)]
struct Where {
    /// The broker's URL for this gateway, where it is not the one of the configuration.
    #[arg(long, value_name = "URL")]
    mqtt_url: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Gateway {
    /// Add a gateway; prints a token that enrols it once, within 24 hours.
    Add {
        name: String,
        #[arg(long, default_value = "default")]
        site: String,
        #[command(flatten)]
        place: Where,
    },
    /// List gateways.
    List,
    /// Take nothing from a gateway any more, and cut its connection.
    Revoke { name: String },
    /// Give a gateway a new key: prints a token that enrols it anew. The old key holds until the token is used.
    Rekey { name: String },
    /// Add a gateway that takes over the machines of another when it is enrolled; the other is revoked then.
    Replace {
        old: String,
        #[arg(long)]
        name: String,
        #[command(flatten)]
        place: Where,
    },
}

/// What the program does. Exits with 78 when the configuration cannot be used.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    start_log(cli.log, if matches!(cli.command, Command::Serve) { "info" } else { "warn" });
    if matches!(cli.command, Command::Openapi) {
        return done(say(&crate::api::openapi()));
    }
    let default = PathBuf::from(CONFIG_DEFAULT);
    let file = cli.config.or_else(|| default.exists().then_some(default));
    let config = match file.map_or_else(|| Ok(Config::default()), |file| Config::read(&file)) {
        Ok(config) => config,
        Err(faults) => {
            let mut err = std::io::stderr().lock();
            for fault in faults {
                writeln!(err, "{fault}").ok();
            }
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    if !matches!(cli.command, Command::Serve)
        && let Err(error) = become_owner(&config.data_dir)
    {
        return done(Err(error));
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return done(Err(error.into())),
    };
    done(runtime.block_on(async {
        match cli.command {
            Command::Serve => serve::run(config).await,
            command => with_database(command, config).await,
        }
    }))
}

/// What root does in a data directory is done as the daemon's user, who could not use it otherwise. Nothing else runs yet.
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

fn done(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            writeln!(std::io::stderr().lock(), "gemba-cloud: {error:#}").ok();
            ExitCode::FAILURE
        }
    }
}

fn start_log(log: Log, level: &str) {
    let quiet = gemba_mqtt::broker::LOG_FILTER;
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(format!("{level},{quiet}")));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match log {
        Log::Text => builder.with_ansi(std::io::stderr().is_terminal()).init(),
        Log::Json => builder.json().init(),
    }
}

fn say(text: &str) -> anyhow::Result<()> {
    writeln!(std::io::stdout().lock(), "{}", text.trim_end()).context("cannot write to standard output")
}

/// Commands beside the daemon: they use the private cluster while it runs, and start it while it does not.
async fn with_database(command: Command, config: Config) -> anyhow::Result<()> {
    let database = Database::open(&config).await?;
    let result = match command {
        Command::Backup { directory } => back_up(&config, &database, &directory).await,
        Command::Restore { directory, overwrite } => restore(&config, &database, &directory, overwrite).await,
        command => carry_out(command, &config, &database.store).await,
    };
    let closed = database.close().await;
    result.and(closed)
}

async fn back_up(config: &Config, database: &Database, directory: &Path) -> anyhow::Result<()> {
    database.store.check_schema().await?;
    // A cloud that never ran has none.
    Keys::open(&config.data_dir)?;
    backup::make(&reach(config, database), &config.data_dir, directory, clock::now()).await?;
    say(&format!(
        "{} has the database and the cloud's keys: keep it where nobody else can read it.",
        directory.display()
    ))
}

async fn restore(config: &Config, database: &Database, directory: &Path, overwrite: bool) -> anyhow::Result<()> {
    let note =
        backup::restore(&reach(config, database), &database.store, &config.data_dir, directory, overwrite).await?;
    say(&format!("Restored the database and the keys of {:.0} (gemba-cloud {}).", note.made_at, note.version))
}

fn reach<'a>(config: &'a Config, database: &'a Database) -> Reach<'a> {
    Reach { database: database.config(), ca_file: config.database_ca_file.as_deref() }
}

async fn carry_out(command: Command, config: &Config, store: &Store) -> anyhow::Result<()> {
    if matches!(command, Command::Migrate) {
        return match store.migrate().await?.as_slice() {
            [] => say("The schema is up to date."),
            applied => say(&format!("Applied migrations: {applied:?}")),
        };
    }
    // A new database needs no second command before the first user can be added.
    match store.check_schema().await {
        Err(crate::store::migrate::MigrateError::Behind(1)) => drop(store.migrate().await?),
        other => other?,
    }
    match command {
        Command::User(user) => access::user(user, &config.http.url(), store).await,
        Command::Organisation(organisation) => access::organisation(organisation, store).await,
        Command::Site(site) => access::site(site, store).await,
        Command::TokenKey(key) => access::token_key(key, store).await,
        Command::Gateway(gateway) => carry_out_gateway(gateway, config, store).await,
        _ => say("The configuration and the database can be used."),
    }
}

async fn carry_out_gateway(command: Gateway, config: &Config, store: &Store) -> anyhow::Result<()> {
    let url = config.http.url();
    let now = clock::now();
    let keys = || Keys::open(&config.data_dir);
    match command {
        Gateway::Add { name, site, place } => {
            let new = NewGateway { name: &name, site: &site, mqtt_url: place.mqtt_url.as_deref(), replaces: None };
            let (id, token) = enrolment::add(store, new, &url, &keys()?.signing, now).await?;
            say(&format!("Added gateway {name} ({id}). Its token, good once within 24 hours:\n{token}"))
        }
        Gateway::Replace { old, name, place } => {
            let replaces = Some(store.find_gateway(&old).await?);
            let new = NewGateway { name: &name, site: "", mqtt_url: place.mqtt_url.as_deref(), replaces };
            let (id, token) = enrolment::add(store, new, &url, &keys()?.signing, now).await?;
            say(&format!(
                "Added gateway {name} ({id}). With this token, good once within 24 hours, it takes over the machines \
                 of {old}, which is revoked then:\n{token}"
            ))
        }
        Gateway::Rekey { name } => {
            let id = store.find_gateway(&name).await?;
            let token = enrolment::rekey(store, id, &url, &keys()?.signing, now).await?;
            say(&format!("The token with which {name} gets a new key, good once within 24 hours:\n{token}"))
        }
        Gateway::Revoke { name } => {
            let id = store.find_gateway(&name).await?;
            let revoked = store.revoke_gateway(id, now).await?;
            say(&format!("{name} {}.", if revoked { "is revoked" } else { "was revoked before" }))
        }
        Gateway::List => {
            let mut text =
                format!("{:<36}  {:<12} {:<24} {:<9} {:>8}  last seen", "id", "site", "name", "state", "machines");
            for gateway in store.list_gateways().await? {
                let seen = gateway.last_seen_at.map_or_else(|| "never".to_owned(), |at| format!("{at:.0}"));
                let (id, site, name, state) = (gateway.id, gateway.site, gateway.name, gateway.state);
                write!(text, "\n{id:<36}  {site:<12} {name:<24} {state:<9} {:>8}  {seen}", gateway.machines)?;
            }
            say(&text)
        }
    }
}
