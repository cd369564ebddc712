//! How people and other programs are told of incidents.

use std::path::PathBuf;

use serde::{Deserialize, Deserializer, de};

/// `[notifications]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Notifications {
    /// Whether webhooks may lead to private addresses.
    pub private_addresses: bool,
    /// PEM; whom webhooks' certificates must be of, instead of the system's authorities.
    pub ca_file: Option<PathBuf>,
    /// Singly, to one recipient within an hour; what is more is gathered.
    #[serde(deserialize_with = "an_hour")]
    pub emails_per_hour: u32,
    #[serde(deserialize_with = "an_hour")]
    pub webhook_calls_per_hour: u32,
    /// Without it no e-mail is sent.
    pub smtp: Option<Smtp>,
}

impl Default for Notifications {
    fn default() -> Self {
        Self { private_addresses: true, ca_file: None, emails_per_hour: 20, webhook_calls_per_hour: 600, smtp: None }
    }
}

/// `[notifications.smtp]`: the mail server that takes e-mails.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Smtp {
    pub host: String,
    /// By default that of `tls`: 587, 465, 25.
    pub port: Option<u16>,
    #[serde(default)]
    pub tls: SmtpTls,
    pub username: Option<String>,
    pub password_file: Option<PathBuf>,
    /// PEM; whom its certificate must be of, instead of the system's authorities.
    pub ca_file: Option<PathBuf>,
    /// `Name <address>`
    pub from: lettre::message::Mailbox,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SmtpTls {
    /// In the clear until the server has agreed to TLS, which it must.
    #[default]
    Starttls,
    /// From the first byte on.
    Tls,
    /// For the same host, or a network that is trusted.
    None,
}

impl Smtp {
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port.unwrap_or(match self.tls {
            SmtpTls::Starttls => 587,
            SmtpTls::Tls => 465,
            SmtpTls::None => 25,
        })
    }
}

impl Notifications {
    /// What is wrong though each key by itself is right: section, key, what.
    pub(super) fn faults(&self) -> Vec<(&'static str, &'static str, String)> {
        let mut faults = Vec::new();
        let Some(smtp) = &self.smtp else { return faults };
        let section = "notifications.smtp";
        if smtp.host.is_empty() || smtp.host.contains(|c: char| c.is_whitespace() || c.is_control() || c == '/') {
            faults.push((section, "host", "it should be a name or an address, without a scheme".into()));
        }
        if smtp.username.is_some() != smtp.password_file.is_some() {
            faults.push((
                section,
                "username",
                "a user needs a password, and a password a user: set password_file too".into(),
            ));
        }
        if smtp.tls == SmtpTls::None && smtp.ca_file.is_some() {
            faults.push((section, "ca_file", "with tls = \"none\" there is no certificate to check: remove it".into()));
        }
        faults
    }

    pub(super) fn paths(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        let smtp = self.smtp.iter_mut().flat_map(|smtp| [&mut smtp.password_file, &mut smtp.ca_file]);
        std::iter::once(&mut self.ca_file).chain(smtp).flatten()
    }
}

fn an_hour<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let count = u32::deserialize(deserializer)?;
    if (1..=100_000).contains(&count) {
        return Ok(count);
    }
    Err(de::Error::custom("it should be 1 to 100000"))
}
