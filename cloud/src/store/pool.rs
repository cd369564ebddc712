//! Connections: a bound on their number, and a time limit on everything that is asked of them.

use std::{sync::Arc, time::Duration};

use deadpool_postgres::{Client, Manager, ManagerConfig, Pool, RecyclingMethod, Runtime};
use gemba_mqtt::tls::Trust;
use tokio_postgres::{Config, Connection, Socket};

use super::{
    StoreError,
    tls::{Stream, Tls},
};

/// How long a request waits for a free connection, and a connection for the server.
const WAIT_MAX: Duration = Duration::from_secs(5);
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// For the server: a statement, a lock, and a transaction that nobody goes on with. And what a look-up costs: what requests
/// read lies in memory, and on no disk that has to seek.
const SERVER_LIMITS: &str = "-c statement_timeout=30s -c lock_timeout=15s -c idle_in_transaction_session_timeout=60s \
                             -c random_page_cost=1.1 \
                             -c timezone=UTC -c client_min_messages=warning";

/// The database, behind a pool. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    pool: Pool,
    /// How a connection beside the pool is made.
    direct: Arc<(Config, Tls)>,
}

impl Store {
    /// A store that connects when it is first asked something.
    ///
    /// # Errors
    /// If the pool cannot be made.
    pub fn new(config: Config, connections_max: usize) -> anyhow::Result<Self> {
        Self::trusting(config, connections_max, &Trust::System)
    }

    /// The same; a server with TLS (`sslmode=require`) must show a certificate of `trust`.
    ///
    /// # Errors
    /// If the pool cannot be made, or `trust` holds no certificate.
    pub fn trusting(mut config: Config, connections_max: usize, trust: &Trust) -> anyhow::Result<Self> {
        let tls = Tls::of(&mut config, trust)?;
        let given = config.get_options().unwrap_or_default().to_owned();
        // What the URL says comes last and wins.
        config.options(format!("{SERVER_LIMITS} {given}")).application_name("gemba-cloud").connect_timeout(CONNECT_MAX);
        let direct = Arc::new((config.clone(), tls.clone()));
        let manager = Manager::from_config(config, tls, ManagerConfig { recycling_method: RecyclingMethod::Fast });
        let pool = Pool::builder(manager)
            .max_size(connections_max)
            .wait_timeout(Some(WAIT_MAX))
            .create_timeout(Some(CONNECT_MAX))
            .recycle_timeout(Some(CONNECT_MAX))
            .runtime(Runtime::Tokio1)
            .build()?;
        Ok(Self { pool, direct })
    }

    /// A connection, for as long as it is held.
    ///
    /// # Errors
    /// If none is free or can be made in time.
    pub async fn client(&self) -> Result<Client, StoreError> {
        Ok(self.pool.get().await?)
    }

    /// A connection beside the pool, for what is heard and not asked. The caller drives it.
    ///
    /// # Errors
    /// If it cannot be made in time.
    pub(super) async fn connect(&self) -> Result<(tokio_postgres::Client, Connection<Socket, Stream>), StoreError> {
        let (config, tls) = &*self.direct;
        match tokio::time::timeout(CONNECT_MAX, config.connect(tls.clone())).await {
            Ok(connected) => Ok(connected?),
            Err(late) => Err(StoreError::Unavailable(Box::new(late))),
        }
    }

    /// Whether the database answers.
    ///
    /// # Errors
    /// If it does not.
    pub async fn ping(&self) -> Result<(), StoreError> {
        Ok(self.client().await?.check_connection().await?)
    }

    /// Connections in use, requests that wait for one, and the most connections there may be.
    #[must_use]
    pub fn connections(&self) -> (usize, usize, usize) {
        let status = self.pool.status();
        (status.size.saturating_sub(status.available), status.waiting, status.max_size)
    }

    /// Ends the pool; every later request fails.
    pub fn close(&self) {
        self.pool.close();
    }
}
