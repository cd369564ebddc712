//! Catalogs that were asked for: they come beside the lanes, and are written before the batches that need them.

use std::collections::BTreeSet;

use gemba_shared::message::{Catalogs, Lane, Seq};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Outcome, Records, key};
use crate::{
    clock,
    intake::{Incoming, Intake, Pause},
    metrics::Metrics,
    store::{
        StoreError,
        catalog::{MachineKey, machines},
        gateways,
    },
};

/// Machines of one message that are looked at.
const CATALOGS_MAX: usize = 1_024;

/// Writes them, waiting for a database that is away. False when it is time to stop.
pub(super) async fn take(
    intake: &Intake,
    incoming: &Incoming<Catalogs>,
    pause: &mut Pause,
    cancel: &CancellationToken,
) -> bool {
    loop {
        let Err(error) = intake.write_catalogs(incoming).await else { return true };
        intake.parts.metrics.transactions_failed.inc();
        if !error.is_transient() {
            tracing::error!(
                error = &error as &dyn std::error::Error, gateway = %incoming.gateway,
                "the database does not take a catalog"
            );
            return true;
        }
        intake.parts.metrics.storing.set(0);
        if pause.is_news(Instant::now()) {
            tracing::warn!(error = &error as &dyn std::error::Error, "cannot store; gateways wait");
        }
        if !pause.pass(cancel).await {
            return false;
        }
    }
}

impl Intake {
    async fn write_catalogs(&self, incoming: &Incoming<Catalogs>) -> Result<(), StoreError> {
        let Catalogs { epoch, catalogs } = &incoming.content;
        let mut client = self.parts.store.client().await?;
        let transaction = client.transaction().await?;
        let enrolled = gateways::enrolled(&transaction, &[incoming.gateway]).await?;
        if enrolled.get(&incoming.gateway) != Some(&incoming.key) {
            Metrics::count(&self.parts.metrics.frames_refused, "not_enrolled");
            return Ok(());
        }
        // A catalog belongs to the outbox, whichever lane waits for it.
        let lane = key(incoming.gateway, Seq { epoch: *epoch, lane: Lane::Summaries, number: 0 });
        let catalogs = &catalogs[..catalogs.len().min(CATALOGS_MAX)];
        let name = |name: &str| MachineKey { gateway: lane.gateway, epoch: lane.epoch, name: name.to_owned() };
        let names: BTreeSet<MachineKey> = catalogs.iter().map(|catalog| name(catalog.machine.as_str())).collect();
        let mut records = Records::new(&transaction, &self.parts.settings, clock::now());
        records.known = machines(&transaction, names.iter()).await?;
        for catalog in catalogs {
            if let Err(reason) = records.catalog(lane, catalog).await? {
                Metrics::count(&self.parts.metrics.records_refused, reason);
            }
        }
        let mut outcome = Outcome::default();
        records.finish(&mut outcome).await?;
        transaction.commit().await?;
        for change in outcome.changes {
            // An error says that nobody watches, which is no fault.
            drop(self.parts.changes.send(change));
        }
        Ok(())
    }
}
