//! What the cloud says to a gateway, and what is done about it.

use std::time::Duration;

use gemba_shared::{
    frame::{self, FrameError},
    lane,
    message::{CatalogWanted, Catalogs, Downlink, Receipt, Refused, Seq, Uplink as Up},
    topic::Channel,
};
use tokio::{sync::oneshot, time::timeout};

use super::{Connection, Order};
use crate::{
    outbox::{Outbox, OutboxError},
    session::{Judged, Known},
};

/// How often a catalog is sent for one record, before the record is given up.
const CATALOG_TRIES_MAX: u32 = 3;
/// How soon the line tells a catalog.
const CATALOG_WITHIN: Duration = Duration::from_secs(2);
/// A new epoch sends everything again: not more often than this.
const RENEW_EVERY: Duration = Duration::from_mins(1);

/// What the cloud asked for before, across connections.
#[derive(Debug, Default)]
pub(super) struct Asked {
    /// The record whose machine it does not know, and how often it was told.
    catalog: Option<(Seq, u32)>,
    renewed_us: Option<i64>,
}

impl Connection<'_> {
    pub(super) async fn receive(&mut self, payload: &[u8]) {
        let identity = &self.uplink.identity;
        match frame::open::<Downlink>(payload, identity.gateway, &identity.cloud_key) {
            Ok(message) => {
                self.uplink.state.genuine();
                self.obey(message).await;
            }
            Err(FrameError::Signature) => self.uplink.state.foreign(),
            Err(error) => self.uplink.state.refused_frame(error),
        }
    }

    async fn obey(&mut self, message: Downlink) {
        match message {
            Downlink::Receipt(receipt) => self.receipt(receipt).await,
            Downlink::Refused(Refused { seq, reason }) => self.refused(seq, reason).await,
            Downlink::CatalogWanted(wanted) => self.catalog_wanted(wanted).await,
            Downlink::Command(command) => {
                if let Some(result) = self.commands.take(command, self.uplink.clock.now()).await {
                    self.send(Channel::Status, &Up::CommandResult(result));
                }
            }
            Downlink::Desired(_) => {
                tracing::info!("the cloud wants another configuration: not known to this version");
            }
        }
    }

    async fn receipt(&mut self, receipt: Receipt) {
        let Receipt { epoch, lane, through, .. } = receipt;
        let work = move |outbox: &mut Outbox| {
            // What cannot be read cannot be compared, and the receipt holds.
            let held = outbox.read(lane, through, 1, usize::MAX).unwrap_or_default();
            Known { next: outbox.next(lane), digest: held.first().and_then(lane::comparable) }
        };
        let Some(known) = self.uplink.outbox(work).await else { return };
        let mono_us = self.mono_us();
        let judged = self.session.receipt(&receipt, known, mono_us);
        self.uplink.state.receipt(mono_us);
        match judged {
            Judged::Release(through) => {
                // An old receipt that somebody sends again releases nothing.
                self.uplink.clock.hear(receipt.now);
                let work = move |outbox: &mut Outbox| (outbox.release(epoch, lane, through), outbox.epoch());
                let Some((released, now)) = self.uplink.outbox(work).await else { return };
                if let Err(error) = released {
                    self.uplink.state.outbox_failed(&error.into());
                }
                // With the last record of an epoch the next one begins, where one waits.
                if now != epoch {
                    self.tails = [None; 2];
                    self.session.renewed(now, mono_us);
                }
            }
            Judged::Impossible => self.renew(mono_us).await,
            Judged::Old | Judged::OtherEpoch => {}
        }
    }

    /// The cloud has other records under our numbers: what we hold gets new ones.
    async fn renew(&mut self, mono_us: i64) {
        let every_us = i64::try_from(RENEW_EVERY.as_micros()).unwrap_or(i64::MAX);
        if self.asked.renewed_us.is_some_and(|at| mono_us - at < every_us) {
            return;
        }
        self.asked.renewed_us = Some(mono_us);
        match self.uplink.outbox(Outbox::renew_epoch).await {
            Some(Ok(epoch)) => {
                self.uplink.state.renewed();
                self.tails = [None; 2];
                self.session.renewed(epoch, mono_us);
            }
            Some(Err(error)) => self.uplink.state.outbox_failed(&error.into()),
            None => {}
        }
    }

    async fn refused(&mut self, seq: Seq, reason: String) {
        tracing::warn!(lane = seq.lane.as_str(), number = seq.number, reason, "the cloud refused a record for good");
        let work = move |outbox: &mut Outbox| -> Result<(), OutboxError> { outbox.refuse(seq, &reason) };
        if let Some(Err(error)) = self.uplink.outbox(work).await {
            self.uplink.state.outbox_failed(&error.into());
        }
        self.uplink.state.record_refused();
    }

    /// The cloud does not know a machine: it is told, and its lane goes on. A record that it still cannot take then is a
    /// dead letter, so that nothing behind it waits for ever.
    async fn catalog_wanted(&mut self, wanted: CatalogWanted) {
        let CatalogWanted { seq, machine } = wanted;
        if seq.epoch != self.session.epoch() {
            return;
        }
        let (answer, answered) = oneshot::channel();
        if self.uplink.orders.try_send(Order::Catalog { machine: machine.clone(), answer }).is_err() {
            return;
        }
        // The line may be waiting for the disk; the cloud will ask again.
        let Ok(Ok(catalog)) = timeout(CATALOG_WITHIN, answered).await else { return };
        let tries = self.asked.catalog.filter(|(asked, _)| *asked == seq).map_or(0, |(_, tries)| tries);
        self.asked.catalog = Some((seq, tries + 1));
        match catalog {
            Some(catalog) if tries < CATALOG_TRIES_MAX => {
                tracing::info!(%machine, "the cloud does not know a machine: its catalog is sent");
                let catalogs = Catalogs { epoch: seq.epoch, catalogs: vec![catalog] };
                self.send(Channel::Status, &Up::Catalogs(catalogs));
            }
            _ => self.refused(seq, "unknown_machine".to_owned()).await,
        }
        self.session.again(seq.lane, self.mono_us());
    }
}
