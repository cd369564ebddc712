//! A rumqttc client with our TLS and our backoff.
//!
//! rumqttc's own retry is not used: after any error its event loop is dropped and a new one is built, after a
//! pause that [`Backoff`] says. What it had queued is gone then; whoever publishes keeps what matters until a
//! receipt comes.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use rumqttc::{ConnectReturnCode, ConnectionError, MqttOptions, TlsConfiguration, TlsError as TlsFailure, Transport};
use tokio::time::Instant;

use crate::tls::{self, Identity, Pem, TlsError, Trust};

mod subscribe;

pub use subscribe::{ClientCounters, subscribe};

const KEEP_ALIVE: Duration = Duration::from_secs(30);
const PORT_PLAIN: u16 = 1883;
const PORT_TLS: u16 = 8883;
/// Whoever may read a file with a password: its owner and its group.
const PASSWORD_MODE_MAX: u32 = 0o640;

/// Where a broker is, and who we are to it.
#[derive(Debug, Clone, Default)]
pub struct Endpoint {
    /// `mqtt://host[:port]` or `mqtts://host[:port]`; no user, no password, no path.
    pub url: String,
    /// Instead of the system's authorities.
    pub trust: Trust,
    pub certificate_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
    pub username: Option<String>,
    pub password_file: Option<PathBuf>,
    /// The broker is to keep nothing for us while we are away.
    pub clean_session: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    #[error("{0} is no broker's URL: {1}")]
    Url(String, &'static str),
    #[error("cannot read the password file {path}: {error}")]
    PasswordFile { path: PathBuf, error: io::Error },
    #[error("a password file needs a user name beside it")]
    NoUsername,
    #[error("a client certificate needs its key, and a key its certificate")]
    HalfIdentity,
    #[error("a client certificate is of use only with mqtts://")]
    IdentityWithoutTls,
    #[error(transparent)]
    Tls(#[from] TlsError),
}

impl Endpoint {
    /// The options of a client. Reads the files that are named.
    ///
    /// # Errors
    /// If the URL or a file is of no use; the error says which.
    #[expect(clippy::disallowed_methods, reason = "this is the place that sets it")]
    pub fn options(&self, client_id: &str, packet_bytes_max: usize) -> Result<MqttOptions, EndpointError> {
        let address = Address::parse(&self.url).map_err(|why| EndpointError::Url(self.url.clone(), why))?;
        let mut options = MqttOptions::new(client_id, address.host, address.port);
        options
            .set_clean_session(self.clean_session)
            .set_keep_alive(KEEP_ALIVE)
            .set_max_packet_size(packet_bytes_max, packet_bytes_max);
        let identity = match (&self.certificate_file, &self.key_file) {
            (Some(certificate), Some(key)) => Some(Identity::files(certificate, key)?),
            (None, None) => None,
            _ => return Err(EndpointError::HalfIdentity),
        };
        if address.tls {
            let config = tls::client_config(&self.trust, identity.as_ref())?;
            options.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(config)));
        } else if identity.is_some() {
            return Err(EndpointError::IdentityWithoutTls);
        }
        match (&self.username, &self.password_file) {
            (Some(username), Some(path)) => {
                options.set_credentials(username, read_password(path)?);
            }
            (Some(username), None) => {
                options.set_credentials(username, "");
            }
            (None, Some(_)) => return Err(EndpointError::NoUsername),
            (None, None) => {}
        }
        Ok(options)
    }

    /// Trusts the certificates of a file instead of the system's.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn trust_file(&mut self, path: &Path) -> Result<(), TlsError> {
        self.trust = Trust::Only(Pem::file(path)?);
        Ok(())
    }
}

/// The content of a password file, without the end of its line. Warns where others may read it.
///
/// # Errors
/// If it cannot be read or is not UTF-8.
pub fn read_password(path: &Path) -> Result<String, EndpointError> {
    let failed = |error| EndpointError::PasswordFile { path: path.to_owned(), error };
    let text = fs::read_to_string(path).map_err(failed)?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = fs::metadata(path).map_err(failed)?.permissions().mode() & 0o777;
        if mode & !PASSWORD_MODE_MAX != 0 {
            let (path, mode) = (path.display(), format!("{mode:o}"));
            tracing::warn!(%path, mode, "password file is open to others: chmod 640 it");
        }
    }
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

#[derive(Debug, PartialEq, Eq)]
struct Address {
    host: String,
    port: u16,
    tls: bool,
}

impl Address {
    fn parse(url: &str) -> Result<Self, &'static str> {
        let (tls, rest) = match url.split_once("://") {
            Some(("mqtt", rest)) => (false, rest),
            Some(("mqtts", rest)) => (true, rest),
            _ => return Err("it must begin with mqtt:// or mqtts://"),
        };
        if rest.contains('@') {
            return Err("user and password stand in `username` and `password_file`, not in the URL");
        }
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.contains(['/', '?', '#']) {
            return Err("nothing may follow the port");
        }
        let (host, port) = match (rest.strip_prefix('['), rest.rsplit_once(':')) {
            (Some(bracketed), _) => {
                let (host, port) = bracketed.split_once(']').ok_or("the ']' after the IPv6 address is missing")?;
                host.parse::<std::net::Ipv6Addr>().map_err(|_| "there is no IPv6 address in the brackets")?;
                if tls {
                    // rumqttc takes one text for both, and TLS wants no brackets where a socket needs them.
                    return Err(
                        "mqtts:// needs a host name or an IPv4 address: rumqttc cannot do TLS to an IPv6 literal",
                    );
                }
                (format!("[{host}]"), port.strip_prefix(':'))
            }
            (None, Some((host, port))) if !host.contains(':') => (host.to_owned(), Some(port)),
            (None, None) => (rest.to_owned(), None),
            (None, Some(_)) => return Err("an IPv6 address stands in brackets: mqtt://[::1]:1883"),
        };
        if host.is_empty() {
            return Err("it names no host");
        }
        let port = match port {
            None | Some("") => {
                if tls {
                    PORT_TLS
                } else {
                    PORT_PLAIN
                }
            }
            Some(port) => port.parse().ok().filter(|port| *port != 0).ok_or("its port is no number up to 65535")?,
        };
        Ok(Self { host, port, tls })
    }
}

/// Why a broker that is there and we do not come together: waiting alone does not mend it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The broker does not take our name and password, or does not let us do what we need.
    Credentials,
    /// Its certificate is not one that we trust.
    Certificate,
}

impl Refusal {
    /// `None` for a connection that merely broke or was not made.
    #[must_use]
    pub fn of(error: &ConnectionError) -> Option<Self> {
        match error {
            ConnectionError::ConnectionRefused(
                ConnectReturnCode::BadUserNamePassword | ConnectReturnCode::NotAuthorized,
            ) => Some(Self::Credentials),
            ConnectionError::Tls(TlsFailure::Io(error)) | ConnectionError::Io(error) => {
                let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
                matches!(inner, Some(rustls::Error::InvalidCertificate(_))).then_some(Self::Certificate)
            }
            ConnectionError::Tls(TlsFailure::TLS(rustls::Error::InvalidCertificate(_))) => Some(Self::Certificate),
            _ => None,
        }
    }
}

/// How long to wait before the next attempt: full jitter under a bound that doubles, from the beginning again
/// only after a connection that held.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    most: Duration,
    stable_after: Duration,
    failures: u32,
    connected_at: Option<Instant>,
}

impl Default for Backoff {
    fn default() -> Self {
        Self::new(Duration::from_millis(500), Duration::from_mins(1), Duration::from_secs(30))
    }
}

impl Backoff {
    #[must_use]
    pub fn new(first: Duration, most: Duration, stable_after: Duration) -> Self {
        Self { first, most, stable_after, failures: 0, connected_at: None }
    }

    pub fn connected(&mut self, now: Instant) {
        self.connected_at = Some(now);
    }

    /// The pause after a failure at `now`; `random` is any number of which all values are as likely.
    pub fn pause(&mut self, now: Instant, random: u32) -> Duration {
        let held = self.connected_at.take().map(|at| now.saturating_duration_since(at));
        if held.is_some_and(|held| held >= self.stable_after) {
            self.failures = 0;
        }
        let bound = self.first.saturating_mul(1 << self.failures.min(20)).min(self.most);
        self.failures = self.failures.saturating_add(1);
        bound.mul_f64(f64::from(random) / f64::from(u32::MAX))
    }

    /// [`Backoff::pause`] with a number from the system.
    pub fn pause_now(&mut self) -> Duration {
        // Without randomness the longest pause will do.
        self.pause(Instant::now(), getrandom::u32().unwrap_or(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(url: &str, expected: Result<(&str, u16, bool), &str>) {
        let expected = expected.map(|(host, port, tls)| Address { host: host.into(), port, tls });
        match (Address::parse(url), expected) {
            (Ok(address), Ok(expected)) => assert_eq!(address, expected, "{url}"),
            (Err(error), Err(expected)) => assert!(error.contains(expected), "{url}: {error}"),
            (got, expected) => panic!("{url}: {got:?}, not {expected:?}"),
        }
    }

    #[test]
    fn urls() {
        check("mqtt://broker", Ok(("broker", 1883, false)));
        check("mqtts://broker.example/", Ok(("broker.example", 8883, true)));
        check("mqtt://10.0.0.1:1884", Ok(("10.0.0.1", 1884, false)));
        check("mqtt://[::1]:1884", Ok(("[::1]", 1884, false)));
        check("mqtt://[::1]", Ok(("[::1]", 1883, false)));
        check("broker:1883", Err("mqtt:// or mqtts://"));
        check("http://broker", Err("mqtt:// or mqtts://"));
        check("mqtt://user:secret@broker", Err("password_file"));
        check("mqtt://broker/topic", Err("follow the port"));
        check("mqtt://", Err("no host"));
        check("mqtt://:1883", Err("no host"));
        check("mqtt://broker:0", Err("65535"));
        check("mqtt://broker:70000", Err("65535"));
        check("mqtt://::1", Err("brackets"));
        check("mqtt://[::1", Err("']'"));
        check("mqtt://[broker]", Err("no IPv6"));
        check("mqtts://[::1]", Err("host name"));
    }

    #[test]
    fn credentials_come_from_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("password");
        fs::write(&path, "secret\n").unwrap();
        let endpoint = Endpoint { url: "mqtt://broker".into(), password_file: Some(path), ..Endpoint::default() };
        assert!(matches!(endpoint.options("id", 1_024), Err(EndpointError::NoUsername)));
        let endpoint = Endpoint { username: Some("edge".into()), ..endpoint };
        let options = endpoint.options("id", 1_024).unwrap();
        let login = options.credentials().unwrap();
        assert_eq!((login.username.as_str(), login.password.as_str()), ("edge", "secret"));
        assert!(!options.clean_session());
        assert_eq!(options.max_packet_size(), 1_024);
    }

    #[test]
    fn pauses_double_and_begin_anew_only_after_a_connection_that_held() {
        let [first, most, stable] = [1, 8, 30].map(Duration::from_secs);
        let mut backoff = Backoff::new(first, most, stable);
        let now = Instant::now();
        let pauses: Vec<_> = (0..5).map(|_| backoff.pause(now, u32::MAX).as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 8]);
        backoff.connected(now);
        assert_eq!(backoff.pause(now + stable / 2, u32::MAX).as_secs(), 8);
        backoff.connected(now);
        assert_eq!(backoff.pause(now + stable, u32::MAX).as_secs(), 1);
        assert_eq!(backoff.pause(now, 0), Duration::ZERO);
    }
}
