//! What has changed, told to whoever watches.

pub mod hub;
pub mod news;

use tokio::sync::broadcast;
use uuid::Uuid;

use self::news::News;

/// How many changes a slow watcher may be behind before it has to load everything again.
pub const CHANGES_MAX: usize = 1_024;

/// Where changes are told, after the transaction that made them.
pub type Changes = broadcast::Sender<Change>;

/// What changed at other replicas of the same database.
pub type Elsewhere = broadcast::Sender<News>;

/// A row that is not as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Change {
    Machine(Uuid),
    Alarm(Uuid),
    Incident(Uuid),
    Ticket(Uuid),
    Anomaly(Uuid),
    Gateway(Uuid),
}
