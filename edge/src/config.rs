//! The gateway's configuration: a TOML file, read, checked and typed.
//!
//! An empty file is a valid configuration: devices on this machine publish to `127.0.0.1:1883` under
//! `plant/{machine}/{sensor}`. `edge.example.toml` shows every key with its default. All faults of a file are
//! told at once, each with its line and key and what would be right; unknown keys are faults.
//!
//! Relative paths in the file are relative to the folder that it is in.

use std::{
    fmt, fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use gemba_shared::{
    ids::{MachineId, SensorId},
    telemetry::SENSORS_MAX,
};
use toml::de::DeTable;

mod broker;
mod merge;
mod pattern;
mod plant;
mod reader;
mod values;

pub(crate) use values::watts;

pub use broker::{Device, External, GateSettings, Mqtt, Proof, Tls};
pub use merge::{Merged, merge};
pub use pattern::{Captures, Pattern};
pub use plant::{Format, Json, Machine, ModeRule, Names, Periods, Source, TimeFormat};
pub use reader::Fault;

use reader::Section;

/// The largest configuration file.
const FILE_BYTES_MAX: u64 = 1 << 20;
const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_hours(24);

/// Everything that the daemon is told.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The file that it was read from.
    pub file: Option<PathBuf>,
    /// Where relative paths begin.
    pub folder: PathBuf,
    pub data_dir: PathBuf,
    pub clock: ClockTrust,
    pub mqtt: Mqtt,
    pub sources: Vec<Source>,
    pub limits: Limits,
    pub defaults: Periods,
    pub machines: Vec<Machine>,
    /// Where models lie, a folder each; `None` for the places that the program looks in by itself.
    pub models_dir: Option<PathBuf>,
    /// The model of machines that name none; `None` for the built-in baseline.
    pub default_model: Option<String>,
    pub cloud: Cloud,
    pub http: SocketAddr,
    pub outbox_bytes_max: u64,
    pub journal_bytes_max: u64,
    /// What stays free on the disk: below it the outbox makes room, and below half of it nothing is taken in.
    pub disk_free_min: u64,
    /// How long what was acknowledged may wait for its sync; `None`: it is synced before.
    pub sync_interval: Option<Duration>,
}

/// Whose word is taken that this machine's clock is right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClockTrust {
    /// The operating system's time service.
    Auto,
    /// The user's: it always is.
    Trusted,
    /// The cloud's alone: this machine's clock is never set.
    Cloud,
}

/// What the gateway takes in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    pub machines_max: usize,
    /// Of each machine.
    pub sensors_max: usize,
    pub payload_bytes_max: usize,
    /// How far ahead of the gateway's clock a reading's time may be.
    pub skew_future: Duration,
    /// How old a reading may be.
    pub past_max: Duration,
}

/// What is said about the cloud beside what enrolment brought.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cloud {
    /// Another way to the cloud's broker: `mqtts://host:port`.
    pub url: Option<String>,
    pub username: Option<String>,
    pub password_file: Option<PathBuf>,
    pub ca_file: Option<PathBuf>,
    /// What may be sent in the long run, headers included; `None` where bytes cost nothing.
    pub bytes_per_second_max: Option<u32>,
}

/// Why a configuration was not taken. Its text has a line for every fault.
#[derive(Debug)]
pub struct Refused {
    pub file: PathBuf,
    pub faults: Vec<Fault>,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, fault) in self.faults.iter().enumerate() {
            let newline = if i > 0 { "\n" } else { "" };
            write!(f, "{newline}{}:{}{fault}", self.file.display(), if fault.line > 0 { "" } else { " " })?;
        }
        Ok(())
    }
}

impl std::error::Error for Refused {}

impl Default for Limits {
    fn default() -> Self {
        Self {
            machines_max: 1_000,
            sensors_max: 64,
            payload_bytes_max: 64 * 1_024,
            skew_future: 60 * SECOND,
            past_max: 3_650 * DAY,
        }
    }
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// With all faults of the file, or that it cannot be read.
    pub fn load(file: &Path) -> Result<Self, Refused> {
        let refused = |faults| Refused { file: file.to_owned(), faults };
        let unread = |message: String| refused(vec![Fault { line: 0, key: String::new(), message }]);
        let size = fs::metadata(file).map_err(|error| unread(format!("it cannot be read: {error}")))?.len();
        if size > FILE_BYTES_MAX {
            return Err(unread(format!("it has {size} bytes, a configuration has at most {FILE_BYTES_MAX}")));
        }
        let text = fs::read_to_string(file).map_err(|error| unread(format!("it cannot be read: {error}")))?;
        let folder = file.parent().unwrap_or(Path::new("."));
        let config = Self::parse(&text, folder).map_err(refused)?;
        Ok(Self { file: Some(file.to_owned()), ..config })
    }

    /// Checks a text whose relative paths are relative to `folder`. Touches no file.
    ///
    /// # Errors
    /// With all faults, by line.
    pub fn parse(text: &str, folder: &Path) -> Result<Self, Vec<Fault>> {
        let source = reader::Source { text, faults: Vec::new().into() };
        let (table, errors) = DeTable::parse_recoverable(text);
        for error in &errors {
            let line = error.span().map_or(0, |span| source.line(span.start));
            source.fault(line, String::new(), format!("this is no TOML: {}", error.message()));
        }
        if !errors.is_empty() {
            return Err(source.faults.into_inner());
        }
        let config = read(Section::root(&source, table.get_ref()), folder);
        let mut faults = source.faults.into_inner();
        if faults.is_empty() {
            return Ok(config);
        }
        faults.sort_by_key(|fault| fault.line);
        Err(faults)
    }

    /// The declaration of a machine, where there is one.
    #[must_use]
    pub fn machine(&self, id: &MachineId) -> Option<&Machine> {
        self.machines.iter().find(|machine| machine.id == *id)
    }

    /// The unit that is declared for a sensor.
    #[must_use]
    pub fn unit(&self, machine: &MachineId, sensor: &SensorId) -> Option<&str> {
        self.machine(machine)?.units.iter().find(|(id, _)| id == sensor).map(|(_, unit)| unit.as_str())
    }
}

fn read(mut root: Section<'_>, folder: &Path) -> Config {
    let in_folder = |path: PathBuf| folder.join(path);
    let mut gateway = root.section("gateway");
    let data_dir = gateway.path("data_dir").map_or_else(|| PathBuf::from("/var/lib/gemba/edge"), in_folder);
    let trust = [("auto", ClockTrust::Auto), ("trusted", ClockTrust::Trusted), ("cloud", ClockTrust::Cloud)];
    let clock = gateway.choice("clock", &trust, ClockTrust::Auto);
    gateway.finish();

    let limits = limits(root.section("limits"));
    let mqtt = broker::read(root.section("mqtt"), folder);
    let sources = plant::sources(&mut root);
    let defaults = plant::defaults(root.section("defaults"));
    let machines = plant::machines(&mut root, &defaults, &limits);

    let mut models = root.section("models");
    let models_dir = models.path("dir").map(in_folder);
    let default_model = plant::model(&mut models, "default");
    models.finish();

    let cloud = cloud(root.section("cloud"), folder);
    let http = http(root.section("http"));
    let (outbox_bytes_max, disk_free_min, sync_interval) = outbox(root.section("outbox"));
    let journal_bytes_max = budget(root.section("journal"), 256 << 20);
    root.finish();
    Config {
        file: None,
        folder: folder.to_owned(),
        data_dir,
        clock,
        mqtt,
        sources,
        limits,
        defaults,
        machines,
        models_dir,
        default_model,
        cloud,
        http,
        outbox_bytes_max,
        journal_bytes_max,
        disk_free_min,
        sync_interval,
    }
}

fn limits(mut section: Section<'_>) -> Limits {
    let default = Limits::default();
    let payload_default = default.payload_bytes_max as u64;
    let limits = Limits {
        machines_max: section.integer("machines_max", default.machines_max, 1..=10_000),
        sensors_max: section.integer("sensors_max", default.sensors_max, 1..=SENSORS_MAX),
        payload_bytes_max: usize::try_from(section.bytes("payload_bytes_max", payload_default, 1 << 10..=1 << 20))
            .unwrap_or(default.payload_bytes_max),
        skew_future: section.duration("skew_future", default.skew_future, SECOND..=DAY),
        past_max: section.duration("past_max", default.past_max, 60 * SECOND..=36_500 * DAY),
    };
    section.finish();
    limits
}

fn cloud(mut section: Section<'_>, folder: &Path) -> Cloud {
    let cloud = Cloud {
        url: section.parsed("url", broker::url),
        username: section.text("username").map(str::to_owned),
        password_file: section.path("password_file").map(|path| folder.join(path)),
        ca_file: section.path("ca_file").map(|path| folder.join(path)),
        bytes_per_second_max: u32::try_from(section.bytes("bytes_per_second_max", 0, 256..=1 << 30))
            .ok()
            .filter(|rate| *rate > 0),
    };
    if cloud.password_file.is_some() && cloud.username.is_none() {
        section.fault("password_file", "a password needs a `username` beside it");
    }
    section.finish();
    cloud
}

fn http(mut section: Section<'_>) -> SocketAddr {
    let default = SocketAddr::from(([127, 0, 0, 1], 9_600));
    let listen = section.parsed("listen", values::address).unwrap_or(default);
    if !listen.ip().is_loopback() {
        section.fault(
            "listen",
            "it answers without a password and so only to this machine; write for example \"127.0.0.1:9600\"",
        );
    }
    section.finish();
    listen
}

fn outbox(mut section: Section<'_>) -> (u64, u64, Option<Duration>) {
    let bytes_max = section.bytes("bytes_max", 1 << 30, 16 << 20..=1 << 40);
    let disk_free_min = section.bytes("disk_free_min", 32 << 20, 0..=1 << 40);
    let interval = section.choice("durability", &[("durable", false), ("interval", true)], false);
    let allowed = Duration::from_millis(200)..=60 * SECOND;
    let sync_interval = section.duration("sync_interval", SECOND, allowed);
    section.finish();
    (bytes_max, disk_free_min, interval.then_some(sync_interval))
}

fn budget(mut section: Section<'_>, default: u64) -> u64 {
    let bytes = section.bytes("bytes_max", default, 16 << 20..=1 << 40);
    section.finish();
    bytes
}

#[cfg(test)]
mod tests;
