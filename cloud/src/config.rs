//! The cloud's configuration: a TOML file, read, checked and typed. An empty file is a valid one.
//!
//! Every fault names its line and key; unknown keys are refused. Relative paths are relative to the file's directory.

use std::{
    fmt, fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use ipnet::IpNet;
use jiff::SignedDuration;
use serde::{Deserialize, Deserializer, de};

pub mod notifications;
pub mod tickets;

pub use notifications::Notifications;
pub use tickets::Tickets;

/// The exit code for a configuration that cannot be used (`EX_CONFIG` of sysexits.h).
pub const EXIT_CONFIG: u8 = 78;

/// Everything that can be configured.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Keys, and the private PostgreSQL unless `database_url` is set.
    pub data_dir: PathBuf,
    pub database_url: Option<DatabaseUrl>,
    pub database_connections_max: usize,
    /// PEM; whom the database's certificate must be of, instead of the system's authorities (with `sslmode=require`).
    pub database_ca_file: Option<PathBuf>,
    pub http: Http,
    pub mqtt: Mqtt,
    pub alarms: Alarms,
    pub notifications: Notifications,
    pub history: History,
    pub tickets: Tickets,
    pub energy: Energy,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: "/var/lib/gemba/cloud".into(),
            database_url: None,
            database_connections_max: 10,
            database_ca_file: None,
            http: Http::default(),
            mqtt: Mqtt::default(),
            alarms: Alarms::default(),
            notifications: Notifications::default(),
            history: History::default(),
            tickets: Tickets::default(),
            energy: Energy::default(),
        }
    }
}

/// The web page and the API.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Http {
    pub listen: SocketAddr,
    /// PEM; with a key, the port speaks HTTPS.
    pub certificate_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
    /// How gateways and browsers reach it, when that is not the address it listens on.
    pub public_url: Option<String>,
    /// Requests of one user, API key, or (before the login) address, on the average of ten seconds.
    pub requests_per_s: u32,
    /// Whose `X-Forwarded-For` is believed: networks or addresses of proxies.
    #[serde(deserialize_with = "networks")]
    pub trusted_proxies: Vec<IpNet>,
}

impl Default for Http {
    fn default() -> Self {
        Self {
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8080),
            certificate_file: None,
            key_file: None,
            public_url: None,
            requests_per_s: 200,
            trusted_proxies: Vec::new(),
        }
    }
}

impl Http {
    /// The URL that enrolment tokens name.
    #[must_use]
    pub fn url(&self) -> String {
        self.public_url.clone().unwrap_or_else(|| {
            let scheme = if self.certificate_file.is_some() { "https" } else { "http" };
            format!("{scheme}://{}", reachable(self.listen))
        })
    }

    /// The URL of the page for links, without a slash at its end; `address` is the one that it listens on in fact.
    #[must_use]
    pub fn page(&self, address: SocketAddr) -> String {
        let here = Self { listen: address, ..self.clone() };
        here.url().trim_end_matches('/').to_owned()
    }
}

/// Where gateways publish: the embedded broker behind the gate, or (with `url`) a broker of one's own.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Mqtt {
    pub listen: SocketAddr,
    /// PEM; without, the cloud makes a certificate and hands its authority out at enrolment.
    pub certificate_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
    /// Names and addresses for the certificate that the cloud makes, besides the one it listens on.
    pub names: Vec<String>,
    /// How gateways reach it, when that is not the address it listens on.
    pub public_url: Option<String>,
    pub connections_max: usize,
    /// `mqtt://` or `mqtts://`: take frames from this broker, and open no port for gateways.
    pub url: Option<String>,
    pub username: Option<String>,
    pub password_file: Option<PathBuf>,
    pub ca_file: Option<PathBuf>,
}

impl Default for Mqtt {
    fn default() -> Self {
        Self {
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8883),
            certificate_file: None,
            key_file: None,
            names: Vec::new(),
            public_url: None,
            connections_max: 2_048,
            url: None,
            username: None,
            password_file: None,
            ca_file: None,
        }
    }
}

impl Mqtt {
    /// The URL that gateways are given.
    #[must_use]
    pub fn gateways_url(&self) -> String {
        let own = || format!("mqtts://{}", reachable(self.listen));
        self.public_url.clone().or_else(|| self.url.clone()).unwrap_or_else(own)
    }

    /// The names of the certificate that the cloud makes.
    #[must_use]
    pub fn certificate_names(&self) -> Vec<String> {
        let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        if !self.listen.ip().is_unspecified() {
            names.push(self.listen.ip().to_string());
        }
        names.extend(hostname());
        let public = self.public_url.as_deref().and_then(|url| url.split_once("://"));
        if let Some((_, rest)) = public {
            let rest = rest.trim_end_matches('/');
            let host = rest.rsplit_once(':').map_or(rest, |(host, _)| host);
            names.push(host.trim_matches(['[', ']']).to_owned());
        }
        names.extend(self.names.iter().cloned());
        names.sort();
        names.dedup();
        names
    }
}

/// When something is called out.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Alarms {
    /// A gateway that was not heard for this long is offline.
    #[serde(deserialize_with = "duration")]
    pub offline_after: SignedDuration,
    /// A machine whose latest reading is older is silent.
    #[serde(deserialize_with = "duration")]
    pub silent_after: SignedDuration,
    /// News that arrive later than this are history and page nobody.
    #[serde(deserialize_with = "duration")]
    pub late_after: SignedDuration,
}

impl Default for Alarms {
    fn default() -> Self {
        Self {
            offline_after: SignedDuration::from_secs(45),
            silent_after: SignedDuration::from_secs(60),
            late_after: SignedDuration::from_mins(15),
        }
    }
}

/// What becomes of the past. How long it is kept is a setting of each organisation, in the database.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct History {
    /// Intervals are packed when their hour has been over for so long; what comes late when nothing has come for its day for as long.
    #[serde(deserialize_with = "duration")]
    pub pack_after: SignedDuration,
}

impl Default for History {
    fn default() -> Self {
        Self { pack_after: SignedDuration::from_mins(20) }
    }
}

/// What holds for energy where a site says nothing itself.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Energy {
    /// Grams of CO2 equivalent for a kilowatt-hour. The default is the world's mean of 2024 (Ember, Global Electricity Review 2025).
    pub carbon_g_per_kwh: f64,
}

impl Default for Energy {
    fn default() -> Self {
        Self { carbon_g_per_kwh: 473.0 }
    }
}

/// A `postgresql://` URL. It may hold a password: `Debug` hides it.
#[derive(Clone)]
pub struct DatabaseUrl(pub tokio_postgres::Config);

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DatabaseUrl({:?})", self.0.get_hosts())
    }
}

impl<'de> Deserialize<'de> for DatabaseUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        // The parser's message could repeat the password.
        text.parse().map(Self).map_err(|_| {
            de::Error::custom("this is no PostgreSQL URL: it should look like postgresql://user:password@host/database")
        })
    }
}

/// Networks (`10.0.0.0/8`) or single addresses.
fn networks<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<IpNet>, D::Error> {
    let network = |text: &String| {
        let net = text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
        match net {
            Some(net) if net.prefix_len() == 0 => {
                Err(de::Error::custom(format!("{text:?} is everybody: anybody could say whose address they have")))
            }
            Some(net) => Ok(net),
            None => Err(de::Error::custom(format!(
                "{text:?} is no network or address: write it like \"10.0.0.0/8\" or \"10.0.0.7\""
            ))),
        }
    };
    Vec::<String>::deserialize(deserializer)?.iter().map(network).collect()
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SignedDuration, D::Error> {
    let text = String::deserialize(deserializer)?;
    let bounds = SignedDuration::from_secs(1)..=SignedDuration::from_hours(24 * 365);
    match text.parse::<SignedDuration>() {
        Ok(duration) if bounds.contains(&duration) => Ok(duration),
        Ok(_) => Err(de::Error::custom(format!("{text:?} is not between 1s and a year"))),
        Err(_) => Err(de::Error::custom(format!(
            "{text:?} is no duration: write a number and a unit, like \"45s\" or \"15min\""
        ))),
    }
}

/// What is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    pub file: PathBuf,
    /// Counts from 1; 0: of no line.
    pub line: usize,
    pub message: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        write!(f, ": {}", self.message)
    }
}

impl std::error::Error for Fault {}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// With everything that is wrong with it, as far as it can be told at once.
    pub fn read(file: &Path) -> Result<Self, Vec<Fault>> {
        let fault = |line, message| Fault { file: file.to_path_buf(), line, message };
        let text = fs::read_to_string(file).map_err(|error| vec![fault(0, format!("cannot be read: {error}"))])?;
        let mut config = Self::parse(&text)
            .map_err(|faults| faults.into_iter().map(|(line, message)| fault(line, message)).collect::<Vec<_>>())?;
        let base = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        config.relative_to(base);
        Ok(config)
    }

    /// Faults with their lines.
    fn parse(text: &str) -> Result<Self, Vec<(usize, String)>> {
        let config: Self = toml::from_str(text).map_err(|error| {
            let line = error.span().map_or(0, |span| line_of(text, span.start));
            vec![(line, told(&error, text))]
        })?;
        let faults = config.faults();
        if faults.is_empty() {
            return Ok(config);
        }
        let at = |(section, key, message): (&str, &str, String)| {
            let name = if section.is_empty() { key.to_owned() } else { format!("{section}.{key}") };
            (find(text, section, key), format!("{name}: {message}"))
        };
        Err(faults.into_iter().map(at).collect())
    }

    /// What is wrong though each key by itself is right: section, key, what.
    fn faults(&self) -> Vec<(&'static str, &'static str, String)> {
        let mut faults = Vec::new();
        let mut half = |section, certificate: &Option<PathBuf>, key: &Option<PathBuf>| {
            if certificate.is_some() && key.is_none() {
                faults.push((section, "certificate_file", "a certificate needs its key: set key_file too".into()));
            } else if key.is_some() && certificate.is_none() {
                faults.push((section, "key_file", "a key needs its certificate: set certificate_file too".into()));
            }
        };
        half("http", &self.http.certificate_file, &self.http.key_file);
        half("mqtt", &self.mqtt.certificate_file, &self.mqtt.key_file);
        if !(4..=200).contains(&self.database_connections_max) {
            faults.push(("", "database_connections_max", "it should be 4 to 200".into()));
        }
        let one_of = |url: &Option<String>, schemes: [&str; 2]| {
            url.as_ref().is_some_and(|url| !schemes.iter().any(|scheme| url.starts_with(scheme)))
        };
        if one_of(&self.http.public_url, ["http://", "https://"]) {
            faults.push(("http", "public_url", "it should begin with http:// or https://".into()));
        }
        for (key, url) in [("public_url", &self.mqtt.public_url), ("url", &self.mqtt.url)] {
            if one_of(url, ["mqtt://", "mqtts://"]) {
                faults.push(("mqtt", key, "it should begin with mqtt:// or mqtts://".into()));
            }
        }
        if self.mqtt.url.is_none() {
            for (key, set) in [
                ("username", self.mqtt.username.is_some()),
                ("password_file", self.mqtt.password_file.is_some()),
                ("ca_file", self.mqtt.ca_file.is_some() && self.mqtt.certificate_file.is_none()),
            ] {
                if set {
                    faults.push(("mqtt", key, "it is for a broker of one's own: set url too, or remove it".into()));
                }
            }
        }
        if self.http.listen == self.mqtt.listen && self.http.listen.port() != 0 && self.mqtt.url.is_none() {
            faults.push(("mqtt", "listen", "the web page listens there already (http.listen)".into()));
        }
        if !(0.0..=10_000.0).contains(&self.energy.carbon_g_per_kwh) {
            faults.push(("energy", "carbon_g_per_kwh", "it should be 0 to 10000".into()));
        }
        faults.extend(self.notifications.faults());
        faults
    }

    fn relative_to(&mut self, base: &Path) {
        let paths = [
            &mut self.http.certificate_file,
            &mut self.http.key_file,
            &mut self.mqtt.certificate_file,
            &mut self.mqtt.key_file,
            &mut self.mqtt.password_file,
            &mut self.mqtt.ca_file,
            &mut self.database_ca_file,
        ];
        let paths = paths.into_iter().flatten().chain(self.notifications.paths());
        for path in paths.chain(std::iter::once(&mut self.data_dir)) {
            *path = base.join(&path);
        }
    }
}

/// The parser's words, with the key where it does not name it.
fn told(error: &toml::de::Error, text: &str) -> String {
    let message = error.message().trim().replace('\n', "; ");
    let line = error.span().and_then(|span| text.lines().nth(line_of(text, span.start) - 1));
    let key = line.and_then(|line| Some(line.split_once('=')?.0.trim()));
    match key {
        Some(key) if !message.contains(&format!("`{key}`")) => format!("{key}: {message}"),
        _ => message,
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    text.as_bytes().iter().take(offset).filter(|byte| **byte == b'\n').count() + 1
}

/// The line of a key in its section; of the section where it is not there; 0 where neither is.
fn find(text: &str, section: &str, key: &str) -> usize {
    let mut current = String::new();
    let mut of_section = 0;
    for (i, line) in text.lines().enumerate() {
        let line = line.trim();
        if let Some(name) = line.strip_prefix('[') {
            name.trim_end_matches(']').trim().clone_into(&mut current);
            if current == section {
                of_section = i + 1;
            }
        } else if current == section && line.split_once('=').is_some_and(|(name, _)| name.trim() == key) {
            return i + 1;
        }
    }
    of_section
}

/// An address that others can use: an unspecified one is replaced by the host's name.
fn reachable(address: SocketAddr) -> String {
    match hostname() {
        Some(name) if address.ip().is_unspecified() => format!("{name}:{}", address.port()),
        _ => address.to_string(),
    }
}

/// Of this machine.
pub(crate) fn hostname() -> Option<String> {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    let name = name.trim();
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
    (!name.is_empty() && name.chars().all(plain)).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn refused(text: &str, line: usize, words: &[&str]) {
        let faults = Config::parse(text).expect_err("it is refused");
        assert_eq!(faults[0].0, line, "{faults:?}");
        for word in words {
            assert!(faults[0].1.contains(word), "{word:?} in {faults:?}");
        }
    }

    #[test]
    fn an_empty_file_is_a_configuration() {
        let config = Config::parse("").unwrap();
        assert_eq!(config.http.url(), "http://127.0.0.1:8080");
        assert_eq!(config.mqtt.gateways_url(), "mqtts://127.0.0.1:8883");
        assert!(config.mqtt.certificate_names().contains(&"127.0.0.1".to_owned()));
    }

    #[test]
    fn the_example_shows_the_defaults() {
        let example = include_str!("../cloud.example.toml");
        // Sections and keys are commented out with `#`, prose with `# `.
        let active: String = example
            .lines()
            .map(|line| line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).unwrap_or(line))
            .fold(String::new(), |text, line| text + line + "\n");
        assert_eq!(format!("{:?}", Config::parse(&active).unwrap()), format!("{:?}", Config::default()));
        assert_eq!(format!("{:?}", Config::parse(example).unwrap()), format!("{:?}", Config::default()));
    }

    #[test]
    fn faults_name_line_key_and_what_would_be_right() {
        refused("data_dir = \"/x\"\nlisten = 1\n", 2, &["listen", "data_dir"]);
        refused("[http]\nlisten = \"here\"\n", 2, &["listen", "socket address"]);
        refused("[http]\nlisten = 8080\n", 2, &["listen"]);
        refused("[http]\ntrusted_proxies = [\"10.0.0.0/99\"]\n", 2, &["trusted_proxies", "10.0.0.0/8"]);
        refused("[http]\ntrusted_proxies = [\"::/0\"]\n", 2, &["trusted_proxies", "everybody"]);
        refused("[alarms]\noffline_after = \"45\"\n", 2, &["offline_after", "45s"]);
        refused("[alarms]\nlate_after = \"0s\"\n", 2, &["late_after", "1s"]);
        refused("\n[http]\ncertificate_file = \"c.pem\"\n", 3, &["http.certificate_file", "key_file"]);
        refused("[mqtt]\nurl = \"http://x\"\n", 2, &["mqtt.url", "mqtt://"]);
        refused("[mqtt]\nusername = \"x\"\n", 2, &["mqtt.username", "url"]);
        refused("[mqtt]\nlisten = \"127.0.0.1:8080\"\n", 2, &["mqtt.listen", "http.listen"]);
        refused("database_connections_max = 1\n", 1, &["database_connections_max", "4 to 200"]);
        refused("data_dir = \n", 1, &["data_dir"]);
        refused("[tickets]\nattachment_bytes_max = 10\n", 2, &["attachment_bytes_max", "1000 to 100000000"]);
        refused("[tickets]\nattachments_max = 0\n", 2, &["attachments_max", "1 to 1000"]);
        refused("[notifications]\nemails_per_hour = 0\n", 2, &["emails_per_hour", "1 to 100000"]);
        let smtp = "[notifications.smtp]\nhost = \"mail\"\n";
        refused(smtp, 1, &["from"]);
        refused(&format!("{smtp}from = \"nobody\"\n"), 3, &["from"]);
        refused(&format!("{smtp}from = \"a@b.example\"\ntls = \"ssl\"\n"), 4, &["tls", "starttls"]);
        refused(&format!("{smtp}from = \"a@b.example\"\nusername = \"x\"\n"), 4, &["password_file"]);
        let url = "[notifications.smtp]\nhost = \"smtp://mail\"\nfrom = \"a@b.example\"\n";
        refused(url, 2, &["host", "without a scheme"]);
    }

    #[test]
    fn a_password_in_a_url_is_not_told() {
        let faults = Config::parse("database_url = \"postgresql://u:geheim@h:port/d\"").unwrap_err();
        assert!(!faults[0].1.contains("geheim"), "{faults:?}");
        let config = Config::parse("database_url = \"postgresql://u:geheim@h/d\"").unwrap();
        assert!(!format!("{config:?}").contains("geheim"));
    }
}
