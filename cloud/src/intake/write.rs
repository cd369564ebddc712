//! The second stage: many batches in one transaction, then the answers.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::{Arc, Mutex, PoisonError},
};

use deadpool_postgres::Transaction;
use gemba_shared::{
    ids::MachineId,
    lane::{Stored, Take, step},
    message::{Batch, CatalogWanted, Downlink, Epoch, Lane, Receipt, Refused, Seq},
    telemetry::Record,
};
use jiff::{Timestamp, civil::Date};
use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Group, Incoming, Intake, Pause};
use crate::{
    clock,
    live::Change,
    machines,
    metrics::Metrics,
    store::{
        StoreError,
        catalog::{self as catalogs, MachineKey},
        gateways,
        lanes::{self, GapRow, LaneKey, RefusalRow},
        summaries,
    },
};

mod catalog;
mod records;
mod rules;

use records::Records;

/// Reasons that a catalog may take away.
const NEEDS_CATALOG: [&str; 2] = ["unknown_machine", "more_sensors_than_catalog"];
/// Partitions that are known to be there, at most.
const DAYS_MAX: usize = 8_192;

/// What a transaction settled.
#[derive(Debug, Default, PartialEq)]
pub struct Outcome {
    /// How far each lane of the group is stored.
    pub stored: BTreeMap<LaneKey, Stored>,
    /// Records refused for good, now or before.
    pub refused: Vec<RefusalRow>,
    /// Records that wait, with their lanes, until their machine's catalog is sent.
    pub wanted: Vec<(LaneKey, CatalogWanted)>,
    pub changes: Vec<Change>,
    pub counts: Counts,
}

#[derive(Debug, Default, PartialEq, Eq, Clone)]
pub struct Counts {
    pub records: u64,
    pub again: u64,
    pub early: u64,
    /// Batches of a gateway that has other records than are stored.
    pub diverged: u64,
    pub gaps: u64,
    pub summaries: u64,
    pub summaries_known: u64,
    pub sensors: u64,
    /// Batches of gateways that are not enrolled with that key any more.
    pub strangers: u64,
    pub refused: Vec<&'static str>,
}

/// A batch as far as it is taken.
struct Taken<'a> {
    lane: LaneKey,
    batch: &'a Batch,
    skip: usize,
    /// How far the lane is stored without it.
    before: Stored,
}

/// Days whose partitions this process has seen.
#[derive(Debug, Default)]
pub struct Days(Mutex<HashSet<Date>>);

impl Days {
    fn missing(&self, wanted: BTreeSet<Date>) -> BTreeSet<Date> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        wanted.into_iter().filter(|day| !known.contains(day)).collect()
    }

    fn made(&self, days: BTreeSet<Date>) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() > DAYS_MAX {
            known.clear();
        }
        known.extend(days);
    }

    fn forget(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

pub(super) async fn run(intake: Arc<Intake>, mut groups: mpsc::Receiver<Group>, cancel: CancellationToken) {
    let days = Days::default();
    let mut refused_by_database = 0_u64;
    while let Some(mut group) = groups.recv().await {
        let mut pause = Pause::default();
        // First: a batch behind may need them.
        for catalogs in &group.catalogs {
            if !catalog::take(&intake, catalogs, &mut pause, &cancel).await {
                return;
            }
        }
        while !group.batches.is_empty() {
            match intake.write(&group.batches, &days, clock::now()).await {
                Ok(outcome) => {
                    intake.settle(outcome);
                    group.batches.clear();
                }
                Err(error) if error.is_transient() => {
                    intake.parts.metrics.transactions_failed.inc();
                    intake.parts.metrics.storing.set(0);
                    days.forget();
                    if pause.is_news(Instant::now()) {
                        tracing::warn!(error = &error as &dyn std::error::Error, "cannot store; gateways wait");
                    }
                    if !pause.pass(&cancel).await {
                        return;
                    }
                }
                Err(error) if group.batches.len() > 1 => {
                    tracing::debug!(
                        error = &error as &dyn std::error::Error,
                        "a group failed; taking its batches singly"
                    );
                    days.forget();
                    singly(&intake, &mut group, &days).await;
                }
                Err(error) => {
                    refused_by_database += 1;
                    intake.parts.metrics.transactions_failed.inc();
                    let gateway = group.batches[0].gateway;
                    tracing::error!(
                        error = &error as &dyn std::error::Error, %gateway, refused_by_database,
                        "the database does not take a batch; its lane stands still until somebody looks"
                    );
                    group.batches.clear();
                }
            }
        }
        group.deliveries.into_iter().for_each(gemba_mqtt::delivery::Delivery::acknowledge);
    }
}

/// Settles what can be of a group that failed as a whole; one batch, with which it cannot go on, stays.
async fn singly(intake: &Intake, group: &mut Group, days: &Days) {
    let mut rest = std::mem::take(&mut group.batches).into_iter();
    while let Some(batch) = rest.next() {
        let one = std::slice::from_ref(&batch);
        match intake.write(one, days, clock::now()).await {
            Ok(outcome) => intake.settle(outcome),
            Err(error) => {
                let transient = error.is_transient();
                tracing::warn!(error = &error as &dyn std::error::Error, gateway = %batch.gateway, "cannot store a batch");
                if transient {
                    group.batches.push(batch);
                    group.batches.extend(rest);
                    return;
                }
                intake.parts.metrics.transactions_failed.inc();
                tracing::error!(gateway = %batch.gateway, "the database does not take a batch; its lane stands still until somebody looks");
            }
        }
    }
}

impl Intake {
    /// Stores batches in one transaction: all of them, or nothing.
    ///
    /// # Errors
    /// If the database cannot be reached or refuses; nothing was stored then, or it was and the answer is lost: the
    /// same call again settles both.
    pub async fn write(&self, batches: &[Incoming<Batch>], days: &Days, now: Timestamp) -> Result<Outcome, StoreError> {
        match self.try_write(batches, days, now).await {
            // A day was packed, and its partition dropped, since it was seen.
            Err(error) if error.lacks_partition() => {
                days.forget();
                self.try_write(batches, days, now).await
            }
            written => written,
        }
    }

    async fn try_write(&self, batches: &[Incoming<Batch>], days: &Days, now: Timestamp) -> Result<Outcome, StoreError> {
        let wanted = batches.iter().flat_map(|incoming| &incoming.content.records).filter_map(|record| match record {
            Record::Summary(summary) => machines::time(summary.start, now).ok().map(summaries::day),
            _ => None,
        });
        let missing = days.missing(wanted.collect());
        self.parts.store.make_days(&missing).await?;
        days.made(missing);

        let mut client = self.parts.store.client().await?;
        let transaction = client.transaction().await?;
        let outcome = self.take(&transaction, batches, now).await?;
        transaction.commit().await?;
        Ok(outcome)
    }

    async fn take(
        &self,
        transaction: &Transaction<'_>,
        batches: &[Incoming<Batch>],
        now: Timestamp,
    ) -> Result<Outcome, StoreError> {
        let mut outcome = Outcome::default();
        let ids: Vec<Uuid> = batches.iter().map(|batch| batch.gateway).collect::<BTreeSet<_>>().into_iter().collect();
        let enrolled = gateways::enrolled(transaction, &ids).await?;
        let given = batches.len();
        let mut batches: Vec<(LaneKey, &Incoming<Batch>)> = batches
            .iter()
            .filter(|batch| enrolled.get(&batch.gateway) == Some(&batch.key))
            .map(|batch| (key(batch.gateway, batch.content.seq), batch))
            .collect();
        outcome.counts.strangers = (given - batches.len()) as u64;
        batches.sort_by_key(|(key, incoming)| (*key, incoming.content.seq.number));
        outcome.stored = lanes::lock(transaction, batches.iter().map(|(key, _)| *key)).await?;

        let mut taken = Vec::new();
        for (lane, incoming) in batches {
            taken.extend(place(transaction, lane, &incoming.content, &mut outcome).await?);
        }
        let names = taken.iter().flat_map(|Taken { lane, batch, skip, .. }| {
            batch.records[*skip..].iter().filter_map(|record| {
                Some(MachineKey { gateway: lane.gateway, epoch: lane.epoch, name: name(record)?.to_string() })
            })
        });
        let names: BTreeSet<MachineKey> = names.collect();
        let mut records = Records::new(transaction, &self.parts.settings, now);
        records.known = catalogs::machines(transaction, names.iter()).await?;
        for taken in taken {
            take_records(&mut records, taken, &mut outcome).await?;
        }
        records.finish(&mut outcome).await?;
        lanes::advance(transaction, &outcome.stored).await?;
        Ok(outcome)
    }

    /// After COMMIT: the answers, the news and the counters.
    fn settle(&self, outcome: Outcome) {
        let metrics = &self.parts.metrics;
        for row in &outcome.refused {
            let Some(seq) = seq(row.lane, row.number.cast_unsigned()) else { continue };
            self.answer(row.lane.gateway, &Downlink::Refused(Refused { seq, reason: row.reason.clone() }));
        }
        for (lane, wanted) in outcome.wanted {
            metrics.catalogs_wanted.inc();
            self.answer(lane.gateway, &Downlink::CatalogWanted(wanted));
        }
        for (lane, stored) in outcome.stored {
            self.receipt(lane, stored);
        }
        for change in outcome.changes {
            // An error says that nobody watches, which is no fault.
            drop(self.parts.changes.send(change));
        }
        let counts = outcome.counts;
        metrics.storing.set(1);
        metrics.transactions.inc();
        metrics.records.inc_by(counts.records);
        metrics.records_again.inc_by(counts.again);
        metrics.batches_early.inc_by(counts.early);
        metrics.batches_diverged.inc_by(counts.diverged);
        metrics.gaps.inc_by(counts.gaps);
        metrics.summaries.inc_by(counts.summaries);
        metrics.summaries_known.inc_by(counts.summaries_known);
        metrics.sensor_summaries.inc_by(counts.sensors);
        for reason in counts.refused {
            Metrics::count(&metrics.records_refused, reason);
        }
        for _ in 0..counts.strangers {
            Metrics::count(&metrics.frames_refused, "not_enrolled");
        }
    }

    /// Tells a gateway how far a lane of it is stored.
    pub(super) fn receipt(&self, lane: LaneKey, stored: Stored) {
        let Some(Seq { epoch, lane: name, number: through }) = seq(lane, stored.through) else { return };
        let receipt = Receipt { epoch, lane: name, through, now: clock::to_wire(clock::now()), tail: stored.tail };
        self.answer(lane.gateway, &Downlink::Receipt(receipt));
    }
}

/// Where a batch stands in its lane; `None` where nothing of it is taken.
async fn place<'a>(
    transaction: &Transaction<'_>,
    lane: LaneKey,
    batch: &'a Batch,
    outcome: &mut Outcome,
) -> Result<Option<Taken<'a>>, StoreError> {
    let stored = outcome.stored.get(&lane).copied().unwrap_or_default();
    let step = step(stored, batch);
    outcome.stored.insert(lane, step.stored);
    let mut before = stored;
    if let Some((first, last)) = step.gap {
        before = Stored { through: last, tail: None };
        outcome.counts.gaps += 1;
        let (first, last) = (first.cast_signed(), last.cast_signed());
        let gap = GapRow { lane, first, last, count: last - first + 1, reason: "skipped" };
        lanes::insert_gap(transaction, &gap).await?;
    }
    let skip = match step.take {
        Take::Behind(skip) => skip,
        Take::Early => {
            outcome.counts.early += 1;
            return Ok(None);
        }
        Take::Diverged => {
            outcome.counts.diverged += 1;
            return Ok(None);
        }
    };
    if skip > 0 {
        outcome.counts.again += skip as u64;
        let first = batch.seq.number.cast_signed();
        let again = lanes::refusals(transaction, lane, first, first + skip as i64 - 1).await?;
        outcome.refused.extend(again);
    }
    Ok(Some(Taken { lane, batch, skip, before }))
}

/// Takes the new records of a batch, up to one that has to wait for a catalog.
async fn take_records(records: &mut Records<'_>, taken: Taken<'_>, outcome: &mut Outcome) -> Result<(), StoreError> {
    let Taken { lane, batch, skip, before } = taken;
    if outcome.wanted.iter().any(|(waiting, _)| *waiting == lane) {
        outcome.counts.early += 1;
        return Ok(());
    }
    for (i, record) in batch.records.iter().enumerate().skip(skip) {
        let Err(reason) = records.take(lane, record).await? else {
            outcome.counts.records += 1;
            continue;
        };
        let number = batch.seq.number + i as u64;
        if let (true, Some(machine)) = (NEEDS_CATALOG.contains(&reason), name(record)) {
            let Some(seq) = seq(lane, number) else { continue };
            outcome.wanted.push((lane, CatalogWanted { seq, machine: machine.clone() }));
            let last = i.checked_sub(1).map(|last| batch.records[last].digest());
            let reached = last.map_or(before, |digest| Stored { through: number - 1, tail: Some(digest) });
            outcome.stored.insert(lane, reached);
            return Ok(());
        }
        outcome.counts.records += 1;
        let row = RefusalRow { lane, number: number.cast_signed(), reason: reason.to_owned() };
        lanes::insert_refusal(records.transaction(), &row).await?;
        outcome.counts.refused.push(reason);
        outcome.refused.push(row);
    }
    Ok(())
}

fn key(gateway: Uuid, seq: Seq) -> LaneKey {
    let lane = match seq.lane {
        Lane::Events => 0,
        Lane::Summaries => 1,
    };
    LaneKey { gateway, epoch: seq.epoch.0.cast_signed(), lane }
}

fn seq(key: LaneKey, number: u64) -> Option<Seq> {
    let lane = *Lane::ALL.get(usize::try_from(key.lane).ok()?)?;
    Some(Seq { epoch: Epoch(key.epoch.cast_unsigned()), lane, number })
}

fn name(record: &Record) -> Option<&MachineId> {
    match record {
        Record::Catalog(catalog) => Some(&catalog.machine),
        Record::Summary(summary) => Some(&summary.machine),
        Record::Event(event) => Some(&event.machine),
        Record::Gap(_) => None,
    }
}
