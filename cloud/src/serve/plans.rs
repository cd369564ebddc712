//! Preventive maintenance: plans that are due make their tickets. Any number of replicas may run this.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::{
    clock,
    live::{Change, Changes},
    store::{Store, plans},
};

const EVERY: Duration = Duration::from_mins(1);

/// Works until it is cancelled.
pub async fn keep(store: Store, changes: Changes, cancel: CancellationToken) {
    let mut failing = false;
    loop {
        match plans::turn(&store, clock::now()).await {
            Ok(made) => {
                if std::mem::take(&mut failing) {
                    tracing::info!("plans are looked after again");
                }
                for ticket in made {
                    // An error says that nobody watches, which is no fault.
                    drop(changes.send(Change::Ticket(ticket)));
                }
            }
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(error = &error as &dyn std::error::Error, "cannot look after plans");
                }
            }
        }
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(EVERY) => {}
        }
    }
}
