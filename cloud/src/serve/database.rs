//! The database of the configuration: one that is given, or the private cluster.

use anyhow::Context as _;
use gemba_mqtt::tls::{Pem, Trust};
use tokio_util::sync::CancellationToken;

use crate::{
    cluster::{Cluster, Durability},
    config::Config,
    store::Store,
};

/// A store, and the cluster behind it where that is our own.
#[derive(Debug)]
pub struct Database {
    pub store: Store,
    cluster: Option<Cluster>,
    config: tokio_postgres::Config,
}

impl Database {
    /// Starts (or goes on with) the private cluster, unless a URL is configured. Connects when first asked something.
    ///
    /// # Errors
    /// If the private cluster does not start.
    pub async fn open(config: &Config) -> anyhow::Result<Self> {
        let (cluster, how) = if let Some(url) = &config.database_url {
            (None, url.0.clone())
        } else {
            let cluster = Cluster::start(&config.data_dir.join("postgres"), Durability::Synced).await?;
            let how = cluster.config();
            (Some(cluster), how)
        };
        let trust = match &config.database_ca_file {
            Some(file) => Trust::Only(Pem::file(file).context("database_ca_file")?),
            None => Trust::System,
        };
        let store = Store::trusting(how.clone(), config.database_connections_max, &trust)
            .context("cannot set the database up")?;
        Ok(Self { store, cluster, config: how })
    }

    /// How it is reached.
    #[must_use]
    pub const fn config(&self) -> &tokio_postgres::Config {
        &self.config
    }

    /// Keeps the private cluster running until `cancel`; a database that was given is its owner's.
    pub async fn keep_running(&self, cancel: &CancellationToken) {
        match &self.cluster {
            Some(cluster) => cluster.keep_running(cancel).await,
            None => cancel.cancelled().await,
        }
    }

    /// Ends connections, and the private cluster unless somebody else uses it.
    ///
    /// # Errors
    /// If the cluster does not stop.
    pub async fn close(self) -> anyhow::Result<()> {
        self.store.close();
        match self.cluster {
            Some(cluster) => cluster.stop().await,
            None => Ok(()),
        }
    }
}
