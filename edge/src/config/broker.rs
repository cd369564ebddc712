//! `[mqtt]`: either who may connect to the gateway's own gate, or which broker to listen to.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use super::{reader::Section, values};

const ANONYMOUS_ELSEWHERE: &str = "clients without a password are only possible where all of `mqtt.listen` is \
     loopback (127.0.0.1 or [::1]); give each device a password in [[mqtt.devices]]";

/// Where messages of devices come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mqtt {
    /// Devices connect to this daemon.
    Gate(GateSettings),
    /// Devices connect to another broker, which this daemon subscribes at.
    External(External),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GateSettings {
    /// Without TLS.
    pub listen: Vec<SocketAddr>,
    pub tls: Option<Tls>,
    pub devices: Vec<Device>,
    pub connections_max: usize,
    /// Messages of one connection that may wait for their acknowledgement.
    pub unacknowledged_max: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    pub listen: Vec<SocketAddr>,
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// Authorities of devices' certificates.
    pub client_ca: Option<PathBuf>,
}

/// Who may connect, and what it may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    pub name: String,
    pub proof: Proof,
    /// MQTT topic filters.
    pub publish: Vec<String>,
    pub subscribe: Vec<String>,
}

/// How a device shows that it is the one.
#[derive(Clone, PartialEq, Eq)]
pub enum Proof {
    /// A PHC string of argon2id; the user name is the device's name.
    PasswordHash(String),
    /// A file that holds the password itself; the user name is the device's name.
    PasswordFile(PathBuf),
    /// SHA-256 of the device's TLS certificate.
    Certificate([u8; 32]),
    /// The common name of a TLS certificate that `client_ca` signed.
    CommonName(String),
    /// None: any client of this machine.
    Anonymous,
}

impl std::fmt::Debug for Proof {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::PasswordHash(_) => "PasswordHash",
            Self::PasswordFile(_) => "PasswordFile",
            Self::Certificate(_) => "Certificate",
            Self::CommonName(_) => "CommonName",
            Self::Anonymous => "Anonymous",
        })
    }
}

/// Another broker, as a client sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct External {
    pub url: String,
    pub client_id: Option<String>,
    pub username: Option<String>,
    pub password_file: Option<PathBuf>,
    pub ca_file: Option<PathBuf>,
    pub certificate: Option<PathBuf>,
    pub key: Option<PathBuf>,
}

pub(super) fn read(section: Section<'_>, folder: &Path) -> Mqtt {
    if section.has("url") { external(section, folder) } else { gate(section, folder) }
}

fn external(mut section: Section<'_>, folder: &Path) -> Mqtt {
    let in_folder = |path: PathBuf| folder.join(path);
    for key in ["listen", "tls", "devices", "anonymous"] {
        if section.has(key) {
            section.fault(
                key,
                "it belongs to the gateway's own gate, and `url` names another broker; keep one of the two",
            );
        }
    }
    let external = External {
        url: section.parsed("url", url).unwrap_or_default(),
        client_id: section.text("client_id").map(str::to_owned),
        username: section.text("username").map(str::to_owned),
        password_file: section.path("password_file").map(in_folder),
        ca_file: section.path("ca_file").map(in_folder),
        certificate: section.path("certificate").map(in_folder),
        key: section.path("key").map(in_folder),
    };
    if external.password_file.is_some() && external.username.is_none() {
        section.fault("password_file", "a password needs a `username` beside it");
    }
    if external.certificate.is_some() != external.key.is_some() {
        section.fault("certificate", "a client certificate needs both `certificate` and `key`");
    }
    // What has been told about already is not told again as unknown.
    section.already_told(&["listen", "tls", "devices", "anonymous"]);
    section.finish();
    Mqtt::External(external)
}

fn gate(mut section: Section<'_>, folder: &Path) -> Mqtt {
    let tls = tls(section.section("tls"), folder);
    let listen = match section.addresses("listen") {
        Some(addresses) => addresses,
        None if tls.is_some() => Vec::new(),
        None => vec![SocketAddr::from(([127, 0, 0, 1], 1_883))],
    };
    let mut devices = Vec::new();
    let mut names: Vec<(String, usize)> = Vec::new();
    for device in section.sections("devices") {
        let line = device.line_of("name");
        let Some(device) = self::device(device, &listen, tls.as_ref(), folder) else { continue };
        if let Some((_, first)) = names.iter().find(|(name, _)| *name == device.name) {
            section.fault_at(line, "devices", format!("the name {:?} was used in line {first} already", device.name));
        }
        if matches!(device.proof, Proof::Certificate(_) | Proof::CommonName(_))
            && let Some(other) = devices.iter().find(|other: &&Device| other.proof == device.proof)
        {
            section.fault_at(line, "devices", format!("{:?} has the same certificate", other.name));
        }
        names.push((device.name.clone(), line));
        devices.push(device);
    }
    let loopback = listen.iter().all(|address| address.ip().is_loopback());
    let anonymous = section.boolean("anonymous", !section.has("devices") && tls.is_none() && loopback);
    if anonymous && !loopback {
        section.fault("anonymous", ANONYMOUS_ELSEWHERE);
    }
    if anonymous {
        let everything = vec!["#".to_owned()];
        let local = "local".to_owned();
        devices.push(Device {
            name: local,
            proof: Proof::Anonymous,
            publish: everything.clone(),
            subscribe: everything,
        });
    }
    if devices.is_empty() && !section.has("devices") {
        let key = if section.has("listen") { "listen" } else { "tls" };
        section.fault(key, "nobody could connect: say in [[mqtt.devices]] who may (`gemba-edge passwd` makes a line)");
    }
    let settings = GateSettings {
        listen,
        tls,
        devices,
        connections_max: section.integer("connections_max", 1_024, 1..=100_000),
        unacknowledged_max: section.integer("unacknowledged_max", 1_024, 1..=65_535),
    };
    section.finish();
    Mqtt::Gate(settings)
}

fn tls(mut section: Section<'_>, folder: &Path) -> Option<Tls> {
    let listen = section.addresses("listen");
    let certificate = section.path("certificate").map(|path| folder.join(path));
    let key = section.path("key").map(|path| folder.join(path));
    let client_ca = section.path("client_ca").map(|path| folder.join(path));
    let present = section.is_present();
    if present {
        for (name, missing) in [("certificate", certificate.is_none()), ("key", key.is_none())] {
            if missing && !section.has(name) {
                section.fault("", format!("`{name}` is missing: the path of a PEM file"));
            }
        }
    }
    section.finish();
    present.then(|| Tls {
        listen: listen.unwrap_or_else(|| vec![SocketAddr::from(([0, 0, 0, 0], 8_883))]),
        certificate: certificate.unwrap_or_default(),
        key: key.unwrap_or_default(),
        client_ca,
    })
}

fn device(mut section: Section<'_>, listen: &[SocketAddr], tls: Option<&Tls>, folder: &Path) -> Option<Device> {
    let name = section.parsed("name", device_name);
    if !section.has("name") {
        section.fault("", "`name` is missing: the device's user name");
    }
    let proofs = ["password_hash", "password_file", "certificate_sha256", "certificate_name", "anonymous"];
    let given: Vec<_> = proofs.iter().filter(|key| section.has(key)).collect();
    if given.len() != 1 {
        section.fault(given.get(1).map_or("", |key| key), format!("one of {} is needed", proofs.join(", ")));
    }
    let mut proof = None;
    if let Some(hash) = section.text("password_hash") {
        // Its text is not repeated: it may be a password that was written here by mistake.
        match crate::passwords::check(hash) {
            Ok(()) => proof = Some(Proof::PasswordHash(hash.to_owned())),
            Err(message) => section.fault("password_hash", message),
        }
    }
    if let Some(file) = section.path("password_file") {
        proof = Some(Proof::PasswordFile(folder.join(file)));
    }
    if let Some(fingerprint) = section.parsed("certificate_sha256", values::sha256_hex) {
        proof = Some(Proof::Certificate(fingerprint));
    }
    if let Some(name) = section.parsed("certificate_name", device_name) {
        proof = Some(Proof::CommonName(name));
    }
    for key in ["certificate_sha256", "certificate_name"] {
        if section.has(key) && tls.is_none_or(|tls| tls.client_ca.is_none()) {
            section.fault(key, "certificates are only seen where [mqtt.tls] has a `client_ca`");
        }
    }
    if section.boolean("anonymous", false) {
        proof = Some(Proof::Anonymous);
        if listen.iter().any(|address| !address.ip().is_loopback()) {
            section.fault("anonymous", ANONYMOUS_ELSEWHERE);
        }
    } else if section.has("anonymous") && given.len() == 1 {
        section.fault("anonymous", format!("one of {} is needed", proofs.join(", ")));
    }
    let publish = section.parsed_list("publish", filter);
    let subscribe = section.parsed_list("subscribe", filter).unwrap_or_default();
    if !section.has("publish") {
        section.fault("", "`publish` is missing: the topics that it may publish to, for example [\"plant/pump-1/#\"]");
    }
    section.finish();
    Some(Device { name: name?, proof: proof?, publish: publish?, subscribe })
}

fn device_name(text: &str) -> Result<String, String> {
    let fits = !text.is_empty() && text.len() <= 64 && !text.chars().any(char::is_control);
    if fits { Ok(text.to_owned()) } else { Err("write a name of 1 to 64 bytes".to_owned()) }
}

/// An MQTT topic filter.
fn filter(text: &str) -> Result<String, String> {
    let mut levels = text.split('/').peekable();
    let mut fits = !text.is_empty() && text.len() <= 512 && !text.contains('\0');
    while let Some(level) = levels.next() {
        fits &= match level {
            "#" => levels.peek().is_none(),
            "+" => true,
            other => !other.contains(['#', '+']),
        };
    }
    if fits {
        Ok(text.to_owned())
    } else {
        Err("it is no MQTT topic filter; write for example \"plant/pump-1/#\"".into())
    }
}

/// The address of a broker.
pub(super) fn url(text: &str) -> Result<String, String> {
    let right = "write mqtt://host:port or mqtts://host:port";
    let rest = text.strip_prefix("mqtt://").or_else(|| text.strip_prefix("mqtts://")).ok_or(right)?;
    if rest.contains('@') {
        return Err(format!("{right}, and user and password in `username` and `password_file`"));
    }
    let host = rest.trim_end_matches('/');
    if host.is_empty() || host.contains(['/', '?', '#', ' ']) { Err(right.to_owned()) } else { Ok(text.to_owned()) }
}
