//! What comes of a turn of a job: its changes are told, and an outage is a line in the log, not one for each turn.

use crate::{
    live::{Change, Changes},
    store::StoreError,
};

/// How a job has been doing.
#[derive(Debug)]
pub struct Turns {
    /// What it looks after.
    what: &'static str,
    changes: Changes,
    failing: bool,
}

impl Turns {
    #[must_use]
    pub fn new(what: &'static str, changes: Changes) -> Self {
        Self { what, changes, failing: false }
    }

    /// Takes what a turn did.
    pub fn took(&mut self, turn: Result<Vec<Change>, StoreError>) {
        let what = self.what;
        match turn {
            Ok(found) => {
                if std::mem::take(&mut self.failing) {
                    tracing::info!(what, "looked after again");
                }
                for change in found {
                    // An error says that nobody watches, which is no fault.
                    drop(self.changes.send(change));
                }
            }
            Err(error) => {
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::warn!(what, error = &error as &dyn std::error::Error, "cannot be looked after");
                }
            }
        }
    }
}
