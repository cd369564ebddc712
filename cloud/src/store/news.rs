//! News for the other programs that use this database: `NOTIFY` on one channel, heard on a connection that does nothing else.
//! Nothing of it is kept: who was not connected has lost it.

use std::{future::poll_fn, time::Duration};

use tokio::{sync::mpsc, time::timeout};
use tokio_postgres::{AsyncMessage, Client};

use super::{Store, StoreError};

const CHANNEL: &str = "gemba_changes";
/// PostgreSQL's limit of one notification, bytes.
pub const TEXT_BYTES_MAX: usize = 7_999;
/// Notifications that were read and not yet looked at; more stay with the server.
const HEARD_MAX: usize = 64;
/// A connection that was silent for so long is asked whether it is still there, and may take so long to say so.
const ASK_AFTER: Duration = Duration::from_secs(20);
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// Tells everybody who listens, oneself too. A text has at most [`TEXT_BYTES_MAX`].
///
/// # Errors
/// If the database is away.
pub async fn tell(store: &Store, texts: &[String]) -> Result<(), StoreError> {
    let client = store.client().await?;
    let notify = client.prepare_cached("SELECT pg_notify($1, text) FROM unnest($2::text[]) AS text").await?;
    client.execute(&notify, &[&CHANNEL, &texts]).await?;
    Ok(())
}

/// Hears what is told.
#[derive(Debug)]
pub struct Listener {
    client: Client,
    heard: mpsc::Receiver<String>,
}

/// Listens, on a connection beside the pool.
///
/// # Errors
/// If the database is away.
pub async fn listen(store: &Store) -> Result<Listener, StoreError> {
    let (client, mut connection) = store.connect().await?;
    let (hear, heard) = mpsc::channel(HEARD_MAX);
    tokio::spawn(async move {
        while let Some(Ok(message)) = poll_fn(|context| connection.poll_message(context)).await {
            if let AsyncMessage::Notification(told) = message
                && hear.send(told.payload().to_owned()).await.is_err()
            {
                return;
            }
        }
    });
    client.batch_execute(&format!("LISTEN {CHANNEL}")).await?;
    Ok(Listener { client, heard })
}

impl Listener {
    /// Waits for the next text; `None` when the connection is gone.
    pub async fn next(&mut self) -> Option<String> {
        loop {
            match timeout(ASK_AFTER, self.heard.recv()).await {
                Ok(heard) => return heard,
                Err(_) => timeout(ANSWER_WITHIN, self.client.batch_execute("")).await.ok()?.ok()?,
            }
        }
    }
}
