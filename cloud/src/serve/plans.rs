//! Preventive maintenance: plans that are due make their tickets. Any number of replicas may run this.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::turn::Turns;
use crate::{
    clock,
    live::{Change, Changes},
    store::{Store, plans},
};

const EVERY: Duration = Duration::from_mins(1);

/// Works until it is cancelled.
pub async fn keep(store: Store, changes: Changes, cancel: CancellationToken) {
    let mut turns = Turns::new("plans", changes);
    loop {
        let made = plans::turn(&store, clock::now()).await;
        turns.took(made.map(|made| made.into_iter().map(Change::Ticket).collect()));
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(EVERY) => {}
        }
    }
}
