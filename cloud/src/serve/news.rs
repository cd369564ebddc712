//! What changes at one replica is seen at the others: their live streams tell it too.
//!
//! Every replica tells the database what changed at it, gathered for a moment, and hears what the others tell. What was lost
//! meanwhile (the database was away, or more came than is kept) is told as that, and clients load everything again.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use tokio::{
    sync::broadcast::{self, error::RecvError},
    time::sleep_until,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    live::{
        Change, Changes, Elsewhere,
        news::{self, News},
    },
    store::{self, Store},
};

/// Changes wait so long for others: a machine that is told twice in it is told once.
const GATHER_FOR: Duration = Duration::from_millis(100);
/// Changes that are kept while the database is away; with more, it is told that some were lost.
const CHANGES_MAX: usize = 5_000;
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Works until it is cancelled.
pub async fn exchange(store: Store, changes: Changes, elsewhere: Elsewhere, cancel: CancellationToken) {
    let origin = Uuid::now_v7();
    let both = async { tokio::join!(tell(&store, origin, changes.subscribe()), hear(&store, origin, &elsewhere)) };
    tokio::select! {
        () = cancel.cancelled() => {}
        _ = both => {}
    }
}

/// What waits to be told.
#[derive(Debug, Default)]
struct Waiting {
    changes: HashSet<Change>,
    lost: bool,
}

impl Waiting {
    fn add(&mut self, change: Change) {
        if self.changes.len() >= CHANGES_MAX {
            self.lose();
        }
        if !self.lost {
            self.changes.insert(change);
        }
    }

    fn lose(&mut self) {
        *self = Self { changes: HashSet::new(), lost: true };
    }

    fn is_empty(&self) -> bool {
        self.changes.is_empty() && !self.lost
    }
}

async fn tell(store: &Store, origin: Uuid, mut changes: broadcast::Receiver<Change>) {
    let mut waiting = Waiting::default();
    let mut at = Instant::now();
    let mut failing = false;
    loop {
        tokio::select! {
            change = changes.recv() => {
                if waiting.is_empty() {
                    at = at.max(Instant::now() + GATHER_FOR);
                }
                match change {
                    Ok(change) => waiting.add(change),
                    Err(RecvError::Lagged(_)) => waiting.lose(),
                    Err(RecvError::Closed) => return,
                }
            }
            () = sleep_until(at.into()), if !waiting.is_empty() => {
                let told: Vec<Change> = waiting.changes.iter().copied().collect();
                match store::news::tell(store, &news::write(origin, &told)).await {
                    Ok(()) => (waiting, failing) = (Waiting::default(), false),
                    Err(error) => {
                        if !std::mem::replace(&mut failing, true) {
                            tracing::warn!(error = &error as &dyn std::error::Error, "cannot tell other replicas what changes");
                        }
                        at = Instant::now() + AGAIN_AFTER;
                    }
                }
            }
        }
    }
}

async fn hear(store: &Store, origin: Uuid, elsewhere: &Elsewhere) {
    let mut failing = false;
    // An error says that nobody watches, which is no fault.
    let say = |news| drop(elsewhere.send(news));
    loop {
        match store::news::listen(store).await {
            Ok(mut listener) => {
                failing = false;
                // What was told before is not known.
                say(News::Lost);
                while let Some(text) = listener.next().await {
                    match news::read(&text) {
                        Some((by, _)) if by == origin => {}
                        Some((_, news)) => news.into_iter().for_each(say),
                        None => tracing::debug!("what was told is not of a replica"),
                    }
                }
                tracing::info!("what other replicas tell is not heard for a moment");
            }
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "cannot hear what changes at other replicas"
                    );
                }
            }
        }
        tokio::time::sleep(AGAIN_AFTER).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_much_is_lost_as_a_whole_and_memory_is_bounded() {
        let mut waiting = Waiting::default();
        let change = |n: usize| Change::Machine(Uuid::from_u128(n as u128));
        (0..CHANGES_MAX).for_each(|n| waiting.add(change(n)));
        assert!(waiting.changes.len() == CHANGES_MAX && !waiting.lost);
        (0..10).for_each(|n| waiting.add(change(CHANGES_MAX + n)));
        assert!(waiting.changes.is_empty() && waiting.lost && !waiting.is_empty());
    }
}
