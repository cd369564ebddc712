//! What time does to alarms: holds end, what stands gets graver, alarms are gathered into incidents, people are told, and what
//! nobody takes is handed on.
//!
//! All of it finds its work in the tables, and one program at a time does it: several replicas may run this.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::{
    sync::broadcast::{self, error::RecvError},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::turn::Turns;
use crate::{
    clock,
    live::{Change, Changes},
    store::{Store, StoreError, alarms, holds, incidents, rules},
};

/// At least this often; an alarm is looked at as soon as it is there.
const EVERY: Duration = Duration::from_secs(5);
/// An alarm waits so long for those that come with it.
const GATHER_AFTER: Duration = Duration::from_millis(200);

/// Works until it is cancelled.
pub async fn keep(store: Store, changes: Changes, offline_after: SignedDuration, cancel: CancellationToken) {
    let mut heard = changes.subscribe();
    let mut turns = Turns::new("alarms", changes);
    let mut next = Instant::now() + GATHER_AFTER;
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            () = sleep_until(next) => {}
            alarm = an_alarm(&mut heard) => {
                if !alarm {
                    return;
                }
                next = next.min(Instant::now() + GATHER_AFTER);
                continue;
            }
        }
        turns.took(turn(&store, clock::now(), offline_after).await);
        next = Instant::now() + EVERY;
    }
}

/// Waits for news of an alarm; false when nobody can change anything any more.
async fn an_alarm(heard: &mut broadcast::Receiver<Change>) -> bool {
    loop {
        match heard.recv().await {
            Ok(Change::Alarm(_)) | Err(RecvError::Lagged(_)) => return true,
            Ok(_) => {}
            Err(RecvError::Closed) => return false,
        }
    }
}

/// Does all that is due once.
///
/// # Errors
/// If the database is away; what was not done is due the next time.
pub async fn turn(store: &Store, now: Timestamp, offline_after: SignedDuration) -> Result<Vec<Change>, StoreError> {
    let mut client = store.client().await?;
    let mut changes = Vec::new();

    let transaction = client.transaction().await?;
    incidents::lock(&transaction).await?;
    let held = holds::turn(&transaction, now).await?;
    let silent = rules::watch_silence(&transaction, now, offline_after).await?;
    let graver = alarms::weigh(&transaction, now).await?;
    transaction.commit().await?;
    changes.extend(held.into_iter().chain(silent).chain(graver).map(Change::Alarm));

    let transaction = client.transaction().await?;
    incidents::lock(&transaction).await?;
    let gathered = incidents::gather(&transaction).await?;
    let paged = incidents::page(&transaction, now).await?;
    let closed = incidents::close(&transaction, now).await?;
    transaction.commit().await?;
    changes.extend(gathered.alarms.into_iter().map(Change::Alarm));
    let mut touched: Vec<_> = gathered.incidents.into_iter().chain(paged).chain(closed).collect();
    touched.sort_unstable();
    touched.dedup();
    changes.extend(touched.into_iter().map(Change::Incident));
    Ok(changes)
}
