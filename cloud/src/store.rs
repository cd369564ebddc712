//! All SQL: a pool of connections, and behind it a file for each noun.
//!
//! What is decided stands in the rules (`alarms`, `machines`), what is answered in `api`; here it is only read
//! and written.

use tokio_postgres::error::SqlState;

pub mod alarms;
pub mod alarms_read;
pub mod anomalies;
pub mod anomalies_read;
pub mod api_keys;
pub mod areas;
pub mod audit;
pub mod baselines;
pub mod blocks;
pub mod carbon_factors;
pub mod catalog;
pub mod choices;
pub mod commands;
pub mod deliveries;
pub mod deliveries_read;
pub mod compaction;
pub mod energy;
pub mod enrolment;
pub mod export;
pub mod gateways;
pub mod gateways_read;
pub mod idempotency;
pub mod holds;
pub mod labels;
pub mod incidents;
pub mod incidents_read;
pub mod lanes;
pub mod machines;
pub mod machines_label;
pub mod migrate;
pub mod news;
pub mod notices;
pub mod objects;
mod partitions;
pub mod plans;
pub mod plans_edit;
pub mod pool;
pub mod reliability;
pub mod production;
pub mod retention;
pub mod rollups;
pub mod scoped;
pub mod quality;
pub mod rules;
pub mod rules_edit;
pub mod series;
pub mod sessions;
pub mod states;
pub mod sites;
pub mod summaries;
pub mod tickets;
pub mod tariffs;
mod tls;
pub mod token_keys;
pub mod users;
pub mod users_admin;
pub mod webhooks;
mod words;

pub use pool::Store;
pub use scoped::scoped;

use crate::history::block::BlockError;

/// Why the database did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No connection within the time limit, or it broke: try again later.
    #[error("the database cannot be reached")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the database refused a statement")]
    Database(#[source] tokio_postgres::Error),
    /// A row that was there a moment ago.
    #[error("the database no longer has {0}")]
    Missing(&'static str),
    #[error(transparent)]
    Block(#[from] BlockError),
    #[error("packing intervals was interrupted")]
    Interrupted(#[source] tokio::task::JoinError),
}

impl StoreError {
    /// Whether the same request may succeed later without anybody changing it.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unavailable(_) => true,
            Self::Missing(_) | Self::Block(_) | Self::Interrupted(_) => false,
            Self::Database(error) => error.code().is_some_and(|code| {
                // Classes 40 (rollback, deadlock) and 53 (resources), and what took too long.
                let class = code.code().starts_with("40") || code.code().starts_with("53");
                class || *code == SqlState::QUERY_CANCELED || *code == SqlState::LOCK_NOT_AVAILABLE
            }),
        }
    }

    /// Whether a row's partition was missing (`ExecFindPartition` says so as a violated check).
    #[must_use]
    pub fn lacks_partition(&self) -> bool {
        let of = |error: &tokio_postgres::Error| {
            error
                .as_db_error()
                .is_some_and(|error| *error.code() == SqlState::CHECK_VIOLATION && error.constraint().is_none())
        };
        matches!(self, Self::Database(error) if of(error))
    }

    /// Whether a unique index refused it.
    #[must_use]
    pub fn is_duplicate(&self) -> bool {
        matches!(self, Self::Database(error) if error.code() == Some(&SqlState::UNIQUE_VIOLATION))
    }
}

impl From<tokio_postgres::Error> for StoreError {
    fn from(error: tokio_postgres::Error) -> Self {
        // Class 08 is the connection, 57P a server that is shutting down or starting, 25P03 one that hung up on us.
        let said = error.code().is_some_and(|code| {
            code.code().starts_with("08") || code.code().starts_with("57P") || code.code() == "25P03"
        });
        let broke = std::error::Error::source(&error).is_some_and(<dyn std::error::Error>::is::<std::io::Error>);
        if said || broke || error.is_closed() || error.to_string().starts_with("timeout") {
            Self::Unavailable(Box::new(error))
        } else {
            Self::Database(error)
        }
    }
}

impl From<deadpool_postgres::PoolError> for StoreError {
    fn from(error: deadpool_postgres::PoolError) -> Self {
        match error {
            deadpool_postgres::PoolError::Backend(error) => error.into(),
            other => Self::Unavailable(Box::new(other)),
        }
    }
}
