//! What deliveries are made with, from the configuration.

use std::{net::SocketAddr, sync::Arc};

use anyhow::Context as _;
use ed25519_dalek::SigningKey;
use gemba_mqtt::tls::{Pem, Trust};

use crate::{
    clock, config,
    deliver::{Parts, webhook::Caller},
    mail::Mailer,
    metrics::Metrics,
    notifications::{Limits, address::Policy, signature::Secrets},
    store::Store,
};

/// The part of the configuration that notifications need, read and found to be of use.
#[derive(Debug)]
pub struct Deliveries {
    settings: config::Notifications,
    http: config::Http,
    trust: Trust,
    mailer: Option<Mailer>,
}

impl Deliveries {
    /// Reads the files that are named; connects to nothing.
    ///
    /// # Errors
    /// If one cannot be read or is of no use.
    pub fn open(config: &config::Config) -> anyhow::Result<Self> {
        let settings = config.notifications.clone();
        let trust = match &settings.ca_file {
            Some(file) => Trust::Only(Pem::file(file).context("notifications.ca_file")?),
            None => Trust::System,
        };
        let mailer = settings.smtp.as_ref().map(Mailer::new).transpose()?;
        Ok(Self { settings, http: config.http.clone(), trust, mailer })
    }

    /// Whether e-mails are sent.
    #[must_use]
    pub fn mail(&self) -> bool {
        self.mailer.is_some()
    }

    /// Where webhooks may lead; `own` are the addresses that this daemon listens on.
    pub fn policy(&self, own: impl Iterator<Item = SocketAddr>) -> Policy {
        Policy { private: self.settings.private_addresses, own_ports: own.map(|address| address.port()).collect() }
    }

    /// What [`crate::deliver::run`] needs; `address` is the one of the web page.
    ///
    /// # Errors
    /// If the file with the receivers' authorities holds none.
    pub fn parts(
        &self,
        store: &Store,
        metrics: &Arc<Metrics>,
        cloud: &SigningKey,
        policy: &Policy,
        address: SocketAddr,
    ) -> anyhow::Result<Parts> {
        let settings = &self.settings;
        Ok(Parts {
            store: store.clone(),
            clock: clock::now,
            metrics: Arc::clone(metrics),
            limits: Limits { emails: settings.emails_per_hour, webhook_calls: settings.webhook_calls_per_hour },
            secrets: Secrets::new(cloud),
            caller: Caller::new(policy.clone(), &self.trust).context("notifications.ca_file")?,
            mailer: self.mailer.clone(),
            page: self.http.page(address),
        })
    }
}
