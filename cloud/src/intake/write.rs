//! The second stage: many batches in one transaction, then the answers.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::{Arc, Mutex, PoisonError},
};

use deadpool_postgres::Transaction;
use gemba_shared::message::{Downlink, Epoch, Lane, Receipt, Refused, Seq};
use gemba_shared::telemetry::Record;
use jiff::{Timestamp, civil::Date};
use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Group, Incoming, Intake, Pause, lane};
use crate::{
    clock,
    live::Change,
    machines,
    metrics::Metrics,
    store::{
        StoreError,
        catalog::{self, MachineKey},
        gateways,
        lanes::{self, GapRow, LaneKey, RefusalRow},
        summaries,
    },
};

mod records;

use records::Records;

/// Partitions that are known to be there, at most.
const DAYS_MAX: usize = 8_192;

/// What a transaction settled.
#[derive(Debug, Default, PartialEq)]
pub struct Outcome {
    /// How far each lane of the group is stored.
    pub through: BTreeMap<LaneKey, u64>,
    /// Records refused for good, now or before.
    pub refused: Vec<RefusalRow>,
    pub changes: Vec<Change>,
    pub counts: Counts,
}

#[derive(Debug, Default, PartialEq, Eq, Clone)]
pub struct Counts {
    pub records: u64,
    pub again: u64,
    pub early: u64,
    pub gaps: u64,
    pub summaries: u64,
    pub summaries_known: u64,
    pub sensors: u64,
    /// Batches of gateways that are not enrolled with that key any more.
    pub strangers: u64,
    pub refused: Vec<&'static str>,
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
    pub async fn write(&self, batches: &[Incoming], days: &Days, now: Timestamp) -> Result<Outcome, StoreError> {
        let wanted = batches.iter().flat_map(|incoming| &incoming.batch.records).filter_map(|record| match record {
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
        batches: &[Incoming],
        now: Timestamp,
    ) -> Result<Outcome, StoreError> {
        let mut outcome = Outcome::default();
        let ids: Vec<Uuid> = batches.iter().map(|batch| batch.gateway).collect::<BTreeSet<_>>().into_iter().collect();
        let enrolled = gateways::enrolled(transaction, &ids).await?;
        let given = batches.len();
        let mut batches: Vec<(LaneKey, &Incoming)> = batches
            .iter()
            .filter(|batch| enrolled.get(&batch.gateway) == Some(&batch.key))
            .map(|batch| (key(batch.gateway, batch.batch.seq), batch))
            .collect();
        outcome.counts.strangers = (given - batches.len()) as u64;
        batches.sort_by_key(|(key, incoming)| (*key, incoming.batch.seq.number));
        outcome.through = lanes::lock(transaction, batches.iter().map(|(key, _)| *key)).await?;

        let mut records = Records::new(transaction, &self.parts.settings, now);
        let mut taken = Vec::new();
        for (key, incoming) in batches {
            let batch = &incoming.batch;
            let through = outcome.through.get(&key).copied().unwrap_or_default();
            let step = lane::step(through, batch.seq.number, batch.records.len(), batch.oldest);
            outcome.through.insert(key, step.through);
            if let Some((first, last)) = step.gap {
                outcome.counts.gaps += 1;
                let (first, last) = (first.cast_signed(), last.cast_signed());
                let gap = GapRow { lane: key, first, last, count: last - first + 1, reason: "skipped" };
                lanes::insert_gap(transaction, &gap).await?;
            }
            let Some(skip) = step.skip else {
                outcome.counts.early += 1;
                continue;
            };
            if skip > 0 {
                outcome.counts.again += skip as u64;
                let first = batch.seq.number.cast_signed();
                let again = lanes::refusals(transaction, key, first, first + skip as i64 - 1).await?;
                outcome.refused.extend(again);
            }
            taken.push((key, batch, skip));
        }
        let names = taken.iter().flat_map(|(key, batch, skip)| {
            batch.records[*skip..].iter().filter_map(|record| {
                Some(MachineKey { gateway: key.gateway, epoch: key.epoch, name: name(record)?.to_owned() })
            })
        });
        let names: BTreeSet<MachineKey> = names.collect();
        records.known = catalog::machines(transaction, names.iter()).await?;
        for (key, batch, skip) in taken {
            for (i, record) in batch.records.iter().enumerate().skip(skip) {
                outcome.counts.records += 1;
                if let Err(reason) = records.take(key, record).await? {
                    let number = (batch.seq.number + i as u64).cast_signed();
                    let row = RefusalRow { lane: key, number, reason: reason.to_owned() };
                    lanes::insert_refusal(transaction, &row).await?;
                    outcome.counts.refused.push(reason);
                    outcome.refused.push(row);
                }
            }
        }
        records.finish(&mut outcome).await?;
        lanes::advance(transaction, &outcome.through).await?;
        Ok(outcome)
    }

    /// After COMMIT: the answers, the news and the counters.
    fn settle(&self, outcome: Outcome) {
        let metrics = &self.parts.metrics;
        for row in &outcome.refused {
            let Some(seq) = seq(row.lane, row.number.cast_unsigned()) else { continue };
            self.answer(row.lane.gateway, &Downlink::Refused(Refused { seq, reason: row.reason.clone() }));
        }
        let now = clock::to_wire(clock::now());
        for (key, through) in outcome.through {
            let Some(Seq { epoch, lane, number: through }) = seq(key, through) else { continue };
            self.answer(key.gateway, &Downlink::Receipt(Receipt { epoch, lane, through, now }));
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

fn name(record: &Record) -> Option<&str> {
    match record {
        Record::Catalog(catalog) => Some(catalog.machine.as_str()),
        Record::Summary(summary) => Some(summary.machine.as_str()),
        Record::Event(event) => Some(event.machine.as_str()),
        Record::Gap(_) => None,
    }
}
