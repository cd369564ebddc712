//! What a record does to the database.

use std::collections::{HashMap, HashSet, hash_map::Entry};

use deadpool_postgres::Transaction;
use gemba_shared::{
    lane::NUMBER_MAX,
    telemetry::{
        Anomaly, Catalog, Clock, Event, EventKind, Gap, GapReason, NormalShift, Record, SensorFault, SensorFaultKind,
        Summary,
    },
};
use jiff::Timestamp;
use uuid::Uuid;

use super::{Outcome, rules};
use crate::{
    alarms::{self, Severity},
    intake::Settings,
    live::Change,
    machines::{self, Judged, Known, Reason},
    store::{
        StoreError,
        alarms::{Raise, Subject, end, raise},
        anomalies,
        catalog::{self, MachineKey},
        lanes::{self, GapRow, LaneKey},
        states::{self, StateRow},
        summaries::{self, SummaryRow},
    },
};

/// The records of a transaction, as far as they are taken.
pub(super) struct Records<'a> {
    transaction: &'a Transaction<'a>,
    settings: &'a Settings,
    now: Timestamp,
    pub(super) known: HashMap<MachineKey, Known>,
    rows: Vec<SummaryRow>,
    sensors: u64,
    states: HashMap<Uuid, StateRow>,
    changes: HashSet<Change>,
    /// Gaps that follow each other become one row.
    gap: Option<GapRow>,
}

impl<'a> Records<'a> {
    pub(super) fn new(transaction: &'a Transaction<'a>, settings: &'a Settings, now: Timestamp) -> Self {
        Self {
            transaction,
            settings,
            now,
            known: HashMap::new(),
            rows: Vec::new(),
            sensors: 0,
            states: HashMap::new(),
            changes: HashSet::new(),
            gap: None,
        }
    }

    pub(super) const fn transaction(&self) -> &'a Transaction<'a> {
        self.transaction
    }

    /// Takes a record, or says why it is refused for good.
    pub(super) async fn take(&mut self, lane: LaneKey, record: &Record) -> Result<Result<(), Reason>, StoreError> {
        match record {
            Record::Summary(summary) => Ok(self.summary(lane, summary)),
            Record::Catalog(catalog) => self.catalog(lane, catalog).await,
            Record::Event(event) => self.event(lane, event).await,
            Record::Gap(gap) => self.gap(lane, *gap).await,
        }
    }

    /// Writes what was gathered.
    pub(super) async fn finish(mut self, outcome: &mut Outcome) -> Result<(), StoreError> {
        if let Some(gap) = &self.gap {
            lanes::insert_gap(self.transaction, gap).await?;
        }
        let rows = self.rows.len();
        let new = summaries::insert(self.transaction, self.rows, self.now).await?;
        outcome.counts.summaries = new.len() as u64;
        outcome.counts.summaries_known = (rows - new.len()) as u64;
        outcome.counts.sensors = self.sensors;
        let alarms = rules::judge(self.transaction, &new, &self.known, self.settings.late_after, self.now).await?;
        self.changes.extend(alarms.into_iter().map(Change::Alarm));
        let mut states: Vec<StateRow> = self.states.into_values().collect();
        // The same order everywhere: nobody waits for whom it holds up.
        states.sort_by_key(|row| row.machine);
        if !states.is_empty() {
            let statement = self.transaction.prepare_cached(states::UPDATE).await?;
            states::update(self.transaction.client(), &statement, &states).await?;
        }
        self.changes.extend(states.iter().map(|row| Change::Machine(row.machine)));
        outcome.changes = self.changes.into_iter().collect();
        Ok(())
    }

    fn summary(&mut self, lane: LaneKey, summary: &Summary) -> Result<(), Reason> {
        let key = machine_key(lane, summary.machine.as_str());
        let known = self.known.get(&key).ok_or("unknown_machine")?;
        let start = machines::check_summary(summary, known, self.now)?;
        let row = row(summary, known, start);
        self.sensors += summary.sensors.len() as u64;
        if row.counts.iter().any(|count| *count > 0)
            && let Ok(end) = start.checked_add(jiff::SignedDuration::from_millis(i64::from(summary.interval_ms)))
        {
            let value = |(i, quality): (usize, &u8)| (*quality < 2).then(|| row.lasts[i]).filter(|v| v.is_finite());
            let state = StateRow {
                machine: known.id,
                at: end,
                judged: Judged::from(&summary.verdict),
                values: row.qualities.iter().enumerate().map(value).collect(),
            };
            match self.states.entry(known.id) {
                Entry::Occupied(mut newest) if newest.get().at <= end => drop(newest.insert(state)),
                Entry::Occupied(_) => {}
                Entry::Vacant(none) => drop(none.insert_entry(state)),
            }
        }
        self.rows.push(row);
        Ok(())
    }

    pub(super) async fn catalog(&mut self, lane: LaneKey, catalog: &Catalog) -> Result<Result<(), Reason>, StoreError> {
        let key = machine_key(lane, catalog.machine.as_str());
        let known = self.known.get(&key);
        // What cannot be taken anyhow makes no machine.
        if let Err(reason) = machines::place_catalog(catalog, known) {
            return Ok(Err(reason));
        }
        let unchanged = known.is_some_and(|known| {
            known.revision >= catalog.revision.cast_signed() && known.positions.len() >= catalog.sensors.len()
        });
        if unchanged {
            return Ok(Ok(()));
        }
        let locked = catalog::lock_machine(self.transaction, &key).await?;
        let positions = match machines::place_catalog(catalog, Some(&locked)) {
            Ok(positions) => positions,
            Err(reason) => return Ok(Err(reason)),
        };
        let known = catalog::write(self.transaction, lane.epoch, catalog, positions, locked).await?;
        self.changes.insert(Change::Machine(known.id));
        self.known.insert(key, known);
        Ok(Ok(()))
    }

    async fn gap(&mut self, lane: LaneKey, gap: Gap) -> Result<Result<(), Reason>, StoreError> {
        let numbers = 1..=NUMBER_MAX;
        if !numbers.contains(&gap.first) || !numbers.contains(&gap.last) || gap.count > NUMBER_MAX {
            return Ok(Err("number"));
        }
        let reason = match gap.reason {
            GapReason::OverBudget => "over_budget",
            GapReason::DiskFull => "disk_full",
            GapReason::Damaged => "damaged",
            GapReason::Refused => "refused",
            GapReason::Thinned => "thinned",
        };
        let (first, last, count) = (gap.first.cast_signed(), gap.last.cast_signed(), gap.count.cast_signed());
        // A gateway tells of a run number by number.
        match &mut self.gap {
            Some(run) if run.lane == lane && run.reason == reason && run.last + 1 == first => {
                run.last = last;
                run.count += count;
            }
            gap => {
                if let Some(before) = gap.replace(GapRow { lane, first, last, count, reason }) {
                    lanes::insert_gap(self.transaction, &before).await?;
                }
            }
        }
        Ok(Ok(()))
    }

    async fn event(&mut self, lane: LaneKey, event: &Event) -> Result<Result<(), Reason>, StoreError> {
        let at = match machines::check_event(event, self.now) {
            Ok(at) => at,
            Err(reason) => return Ok(Err(reason)),
        };
        let key = machine_key(lane, event.machine.as_str());
        if !self.known.contains_key(&key) {
            // Events overtake the summaries' lane, and with it a catalog: the machine is made now and named later.
            let made = catalog::lock_machine(self.transaction, &key).await?;
            self.changes.insert(Change::Machine(made.id));
            self.known.insert(key.clone(), made);
        }
        let Some(known) = self.known.get(&key).cloned() else { return Ok(Err("unknown_machine")) };
        match &event.kind {
            EventKind::AnomalyOpened(anomaly) | EventKind::AnomalyUpdated(anomaly) => {
                self.anomaly(lane.gateway, &known, anomaly, at, false).await?;
            }
            EventKind::AnomalyClosed(anomaly) => self.anomaly(lane.gateway, &known, anomaly, at, true).await?,
            EventKind::SensorFault(fault) => self.sensor_fault(lane.gateway, &known, *fault, at).await?,
            EventKind::NormalShifted(shift) => self.normal_shifted(lane.gateway, &known, shift, at).await?,
        }
        Ok(Ok(()))
    }

    async fn anomaly(
        &mut self,
        gateway: Uuid,
        machine: &Known,
        anomaly: &Anomaly,
        at: Timestamp,
        closes: bool,
    ) -> Result<(), StoreError> {
        let Ok(opened) = machines::time(anomaly.opened, self.now) else { return Ok(()) };
        let closed = closes.then_some(at);
        let written = anomalies::write(self.transaction, machine, anomaly, opened, at, closed).await?;
        self.changes.insert(Change::Anomaly(written.id));
        let subject = Subject { gateway, machine: Some(machine.id) };
        let alarm = if written.closed {
            end(self.transaction, subject, alarms::ANOMALY, Some(written.id), at, self.now).await?
        } else if machine.ignored {
            None
        } else {
            let message = alarms::anomaly_message(&anomaly.shares, |position| machine.sensor(position));
            // An anomaly whose beginning came too late to page anybody, and that goes on, is no history: its raise
            // is what came in time.
            let raised = Raise {
                subject,
                criticality: machine.criticality,
                condition: alarms::ANOMALY,
                severity: Severity::of_score(anomaly.score_max),
                message: &message,
                anomaly: Some(written.id),
                raised_at: if self.late(opened) && !self.late(at) { at } else { opened },
                arrived_at: self.now,
                late: self.late(at),
            };
            raise(self.transaction, &raised).await?
        };
        self.changes.extend(alarm.map(Change::Alarm));
        Ok(())
    }

    async fn normal_shifted(
        &mut self,
        gateway: Uuid,
        machine: &Known,
        shift: &NormalShift,
        at: Timestamp,
    ) -> Result<(), StoreError> {
        let subject = Subject { gateway, machine: Some(machine.id) };
        let alarm = if !shift.active {
            end(self.transaction, subject, alarms::NORMAL_SHIFTED, None, at, self.now).await?
        } else if machine.ignored {
            None
        } else {
            let raised = Raise {
                subject,
                criticality: machine.criticality,
                condition: alarms::NORMAL_SHIFTED,
                severity: Severity::Low,
                message: &alarms::shift_message(&shift.shares, |position| machine.sensor(position)),
                anomaly: None,
                raised_at: at,
                arrived_at: self.now,
                late: self.late(at),
            };
            raise(self.transaction, &raised).await?
        };
        self.changes.extend(alarm.map(Change::Alarm));
        Ok(())
    }

    async fn sensor_fault(
        &mut self,
        gateway: Uuid,
        machine: &Known,
        fault: SensorFault,
        at: Timestamp,
    ) -> Result<(), StoreError> {
        let position = usize::from(fault.sensor);
        let sensor = machine.sensor(position).map_or_else(|| format!("#{position}"), str::to_owned);
        let condition = alarms::sensor_fault(&sensor);
        let subject = Subject { gateway, machine: Some(machine.id) };
        let alarm = if !fault.active {
            end(self.transaction, subject, &condition, None, at, self.now).await?
        } else if machine.ignored {
            None
        } else {
            let what = match fault.kind {
                SensorFaultKind::Frozen => "has shown the same value for far longer than ever before",
                SensorFaultKind::Missing => "sends no values",
                SensorFaultKind::Saturated => "is at the end of its range",
                SensorFaultKind::Drifting => "drifts away from what the other sensors say",
            };
            let raised = Raise {
                subject,
                criticality: machine.criticality,
                condition: &condition,
                severity: Severity::Low,
                message: &format!("Sensor {sensor} {what}"),
                anomaly: None,
                raised_at: machines::time(fault.since, self.now).unwrap_or(at),
                arrived_at: self.now,
                late: self.late(at),
            };
            raise(self.transaction, &raised).await?
        };
        self.changes.extend(alarm.map(Change::Alarm));
        Ok(())
    }

    fn late(&self, at: Timestamp) -> bool {
        alarms::is_late(at, self.now, self.settings.late_after)
    }
}

fn machine_key(lane: LaneKey, name: &str) -> MachineKey {
    MachineKey { gateway: lane.gateway, epoch: lane.epoch, name: name.to_owned() }
}

/// The row of a summary, by our positions.
fn row(summary: &Summary, known: &Known, start: Timestamp) -> SummaryRow {
    let sensors = known.ordered(&summary.sensors, None);
    let figures = |figure: fn(&gemba_shared::telemetry::SensorSummary) -> f64| {
        sensors.iter().map(|sensor| sensor.as_ref().map_or(f64::NAN, figure)).collect::<Vec<f64>>()
    };
    let judged = Judged::from(&summary.verdict);
    SummaryRow {
        machine_key: known.key,
        start,
        interval_ms: summary.interval_ms.cast_signed(),
        counts: sensors.iter().map(|sensor| sensor.map_or(0, |sensor| sensor.count.cast_signed())).collect(),
        mins: figures(|sensor| sensor.min),
        maxs: figures(|sensor| sensor.max),
        means: figures(|sensor| sensor.mean),
        sds: figures(|sensor| sensor.sd),
        lasts: figures(|sensor| sensor.last),
        qualities: sensors.iter().map(|sensor| machines::quality_code(sensor.as_ref())).collect(),
        detector: judged.detector_code,
        score: judged.score,
        health_percent: judged.health_percent,
        mode: judged.mode_code,
        energy_wh: summary.energy_wh.filter(|energy| energy.is_finite()),
        clock_trusted: matches!(summary.clock, Clock::Trusted | Clock::Corrected),
    }
}
