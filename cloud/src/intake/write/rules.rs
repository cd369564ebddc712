//! Rules that need no model, judged in the transaction that stores the summaries: each interval once, and no delay is forgotten.
//!
//! Only machines that have rules are looked at; for the others this is one query a transaction.

use std::collections::{BTreeSet, HashMap};

use deadpool_postgres::Transaction;
use jiff::{SignedDuration, Timestamp};
use uuid::Uuid;

use crate::{
    alarms::{
        is_late,
        rules::{Figure, Rule, RuleKind, Sample},
    },
    machines::Known,
    store::{
        StoreError,
        catalog::MachineKey,
        rules::{self, Standing},
        summaries::SummaryRow,
    },
};

/// As a row of summaries says it.
const RUNNING: i16 = 3;
const FAULTY: u8 = 3;

/// Judges rows; the alarms that changed.
pub(super) async fn judge(
    transaction: &Transaction<'_>,
    rows: &[SummaryRow],
    known: &HashMap<MachineKey, Known>,
    late_after: SignedDuration,
    now: Timestamp,
) -> Result<Vec<Uuid>, StoreError> {
    let of_key: HashMap<i32, &Known> = known.values().map(|known| (known.key, known)).collect();
    let machines: BTreeSet<Uuid> =
        rows.iter().filter_map(|row| of_key.get(&row.machine_key)).map(|known| known.shown).collect();
    let machines: Vec<Uuid> = machines.into_iter().collect();
    if machines.is_empty() {
        return Ok(Vec::new());
    }
    let mut standing = rules::standing(transaction, &machines).await?;
    if standing.is_empty() {
        return Ok(Vec::new());
    }
    let mut order: Vec<(&SummaryRow, &Known)> =
        rows.iter().filter_map(|row| Some((row, *of_key.get(&row.machine_key)?))).collect();
    order.retain(|(_, known)| standing.contains_key(&known.shown));
    order.sort_by_key(|(row, known)| (known.shown, row.start));
    let mut changed = Vec::new();
    for (row, known) in order {
        for entry in standing.get_mut(&known.shown).into_iter().flatten() {
            let Some(sample) = sample(&entry.rule, row, known, late_after, now) else { continue };
            changed.extend(entry.step(transaction, &sample, now).await?);
        }
    }
    let mut judged: Vec<&Standing> = standing.values().flatten().collect();
    judged.sort_by_key(|entry| entry.rule.id);
    rules::write(transaction, &judged).await?;
    Ok(changed)
}

/// The rule's figure in a row; `None` where the row's machine has no such sensor.
fn sample(rule: &Rule, row: &SummaryRow, known: &Known, late_after: SignedDuration, now: Timestamp) -> Option<Sample> {
    let sensor = rule.sensor.as_deref()?;
    let at = known.sensors.iter().position(|name| name == sensor)?;
    let figures = match rule.figure {
        Figure::Mean => &row.means,
        Figure::Min => &row.mins,
        Figure::Max => &row.maxs,
        Figure::Last => &row.lasts,
    };
    let measured = row.counts.get(at).is_some_and(|count| *count > 0);
    // One that is known to be wrong sends all the same.
    let good = rule.kind == RuleKind::NoData || row.qualities.get(at).is_some_and(|quality| *quality != FAULTY);
    let value = figures.get(at).copied().filter(|value| measured && good && value.is_finite());
    let end = row.start.saturating_add(SignedDuration::from_millis(i64::from(row.interval_ms))).unwrap_or(row.start);
    Some(Sample {
        start: row.start,
        interval_ms: row.interval_ms,
        value,
        running: row.mode == RUNNING,
        late: is_late(end, now, late_after),
    })
}
