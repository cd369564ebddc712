//! Rules that need no model, as they are judged, and where each stands.

use std::collections::HashMap;

use deadpool_postgres::Transaction;
use jiff::{SignedDuration, Timestamp, tz::TimeZone};
use tokio_postgres::Row;
use uuid::Uuid;

use super::{
    StoreError,
    alarms::{self, Raise, Subject},
    words::Word,
};
use crate::alarms::{
    Criticality, Severity,
    rules::{Effect, Figure, Phase, Rule, RuleKind, Sample, Schedule, State},
};

/// A rule with where it stands, locked.
#[derive(Debug)]
pub struct Standing {
    pub rule: Rule,
    pub state: State,
    /// Of the site.
    pub zone: TimeZone,
    pub gateway: Uuid,
    pub criticality: Criticality,
}

pub(super) const COLUMNS: &str = "
    r.id, r.machine_id, r.name, r.sensor, r.kind, r.figure, r.threshold, r.dead_band, r.on_delay_s, r.off_delay_s, r.severity,
    r.days, r.from_min, r.to_min, r.only_running";

/// The rules of these machines (as they are shown) that look at sensors' figures, locked in one order.
pub async fn standing(
    transaction: &Transaction<'_>,
    machines: &[Uuid],
) -> Result<HashMap<Uuid, Vec<Standing>>, StoreError> {
    let select = transaction
        .prepare_cached(&format!(
            "SELECT {COLUMNS}, s.phase, s.since, s.told, s.last_at, s.last_value, sites.time_zone, m.gateway_id, m.criticality
             FROM alarm_rules r JOIN alarm_rule_states s ON s.rule_id = r.id
             JOIN machines m ON m.id = r.machine_id JOIN sites ON sites.id = r.site_id
             WHERE r.machine_id = ANY($1) AND r.enabled AND r.sensor IS NOT NULL AND NOT m.ignored
             ORDER BY r.id FOR UPDATE OF s"
        ))
        .await?;
    let mut standing: HashMap<Uuid, Vec<Standing>> = HashMap::new();
    for row in transaction.query(&select, &[&machines]).await? {
        let rule = rule(&row)?;
        let Word(phase) = row.try_get("phase")?;
        let state = State {
            phase,
            since: row.try_get("since")?,
            told: row.try_get("told")?,
            last_at: row.try_get("last_at")?,
            last_value: row.try_get("last_value")?,
        };
        let Word(criticality) = row.try_get("criticality")?;
        let entry = Standing {
            rule,
            state,
            zone: zone(row.try_get("time_zone")?),
            gateway: row.try_get("gateway_id")?,
            criticality,
        };
        standing.entry(entry.rule.machine).or_default().push(entry);
    }
    Ok(standing)
}

/// A zone that this program's tables do not know is read as UTC.
fn zone(name: &str) -> TimeZone {
    TimeZone::get(name).unwrap_or(TimeZone::UTC)
}

fn rule(row: &Row) -> Result<Rule, StoreError> {
    let (Word(kind), Word(figure), Word(severity)): (Word<RuleKind>, Word<Figure>, Word<Severity>) =
        (row.try_get("kind")?, row.try_get("figure")?, row.try_get("severity")?);
    let seconds = |column| -> Result<SignedDuration, StoreError> {
        Ok(SignedDuration::from_secs(i64::from(row.try_get::<_, i32>(column)?)))
    };
    Ok(Rule {
        id: row.try_get("id")?,
        machine: row.try_get("machine_id")?,
        name: row.try_get("name")?,
        sensor: row.try_get("sensor")?,
        kind,
        figure,
        threshold: row.try_get::<_, Option<f64>>("threshold")?.unwrap_or_default(),
        dead_band: row.try_get("dead_band")?,
        on_delay: seconds("on_delay_s")?,
        off_delay: seconds("off_delay_s")?,
        severity,
        schedule: schedule(row)?,
        only_running: row.try_get("only_running")?,
    })
}

pub(super) fn schedule(row: &Row) -> Result<Option<Schedule>, StoreError> {
    let parts: [Option<i16>; 3] = [row.try_get("days")?, row.try_get("from_min")?, row.try_get("to_min")?];
    let [Some(days), Some(from_min), Some(to_min)] = parts else { return Ok(None) };
    Ok(Some(Schedule { days, from_min, to_min }))
}

impl Standing {
    /// Goes on by an interval and does what follows; the alarm that changed.
    pub async fn step(
        &mut self,
        transaction: &Transaction<'_>,
        sample: &Sample,
        now: Timestamp,
    ) -> Result<Option<Uuid>, StoreError> {
        let (state, effect) = self.rule.step(self.state, sample, &self.zone);
        self.state = state;
        match effect {
            None => Ok(None),
            Some(Effect::Return { at }) => {
                alarms::end(transaction, self.subject(), &self.rule.condition(), None, at, now).await
            }
            Some(Effect::Raise { at, value }) => self.raise(transaction, at, value, false, now).await,
            Some(Effect::History { at, value }) => self.raise(transaction, at, value, true, now).await,
        }
    }

    fn subject(&self) -> Subject {
        Subject { gateway: self.gateway, machine: Some(self.rule.machine) }
    }

    async fn raise(
        &self,
        transaction: &Transaction<'_>,
        at: Timestamp,
        value: f64,
        late: bool,
        now: Timestamp,
    ) -> Result<Option<Uuid>, StoreError> {
        let raise = Raise {
            subject: self.subject(),
            criticality: self.criticality,
            condition: &self.rule.condition(),
            severity: self.rule.severity,
            message: &self.rule.message(value),
            anomaly: None,
            raised_at: at,
            arrived_at: now,
            late,
        };
        alarms::raise(transaction, &raise).await
    }
}

/// Writes where rules stand.
pub async fn write(transaction: &Transaction<'_>, standing: &[&Standing]) -> Result<(), StoreError> {
    if standing.is_empty() {
        return Ok(());
    }
    let update = transaction
        .prepare_cached(
            "UPDATE alarm_rule_states s
             SET phase = n.phase, since = n.since, told = n.told, last_at = n.last_at, last_value = n.last_value
             FROM unnest($1::uuid[], $2::text[], $3::timestamptz[], $4::boolean[], $5::timestamptz[], $6::float8[])
                  AS n (rule_id, phase, since, told, last_at, last_value)
             WHERE s.rule_id = n.rule_id",
        )
        .await?;
    let ids: Vec<Uuid> = standing.iter().map(|entry| entry.rule.id).collect();
    let phases: Vec<&str> = standing.iter().map(|entry| entry.state.phase.as_str()).collect();
    let since: Vec<Option<Timestamp>> = standing.iter().map(|entry| entry.state.since).collect();
    let told: Vec<bool> = standing.iter().map(|entry| entry.state.told).collect();
    let last_at: Vec<Option<Timestamp>> = standing.iter().map(|entry| entry.state.last_at).collect();
    let last_value: Vec<Option<f64>> = standing.iter().map(|entry| entry.state.last_value).collect();
    transaction.execute(&update, &[&ids, &phases, &since, &told, &last_at, &last_value]).await?;
    Ok(())
}

/// Judges the rules that look for machines that send nothing at all; the alarms that changed.
///
/// Silence has no intervals: it is judged by the clock. While a gateway is not heard its own alarm says so, and its machines' rules
/// rest; a machine that was never heard is not missed.
pub async fn watch_silence(
    transaction: &Transaction<'_>,
    now: Timestamp,
    offline_after: SignedDuration,
) -> Result<Vec<Uuid>, StoreError> {
    let heard_since = now.saturating_sub(offline_after).unwrap_or(now);
    let select = transaction
        .prepare_cached(&format!(
            "SELECT {COLUMNS}, s.phase, s.since, s.told, s.last_at, s.last_value, sites.time_zone, m.gateway_id,
                    m.criticality, heard.at AS heard_at, heard.running
             FROM alarm_rules r JOIN alarm_rule_states s ON s.rule_id = r.id
             JOIN machines m ON m.id = r.machine_id JOIN sites ON sites.id = r.site_id
             CROSS JOIN LATERAL (
                 SELECT p.last_reading_at AS at, p.mode = 'running' AS running, p.gateway_id
                 FROM machines p WHERE p.id = m.id OR p.merged_into = m.id
                 ORDER BY p.last_reading_at DESC NULLS LAST, p.id LIMIT 1) heard
             JOIN gateways g ON g.id = heard.gateway_id
             WHERE r.enabled AND r.sensor IS NULL AND NOT m.ignored AND heard.at IS NOT NULL
               AND g.state = 'enrolled' AND g.last_seen_at >= $1
             ORDER BY r.id FOR UPDATE OF s"
        ))
        .await?;
    let mut changed = Vec::new();
    let mut turned = Vec::new();
    for row in transaction.query(&select, &[&heard_since]).await? {
        let rule = rule(&row)?;
        let zone = zone(row.try_get("time_zone")?);
        let (heard_at, running): (Timestamp, bool) = (row.try_get("heard_at")?, row.try_get("running")?);
        let Word(criticality) = row.try_get("criticality")?;
        let told: bool = row.try_get("told")?;
        let judged = rule.schedule.is_none_or(|schedule| schedule.holds(now, &zone)) && (!rule.only_running || running);
        let silent = judged && now.duration_since(heard_at) >= rule.on_delay;
        if silent == told {
            continue;
        }
        let phase = if silent { Phase::Active } else { Phase::Normal };
        let state = State { phase, told: silent, ..State::default() };
        let entry = Standing { rule, state, zone, gateway: row.try_get("gateway_id")?, criticality };
        let at = heard_at.saturating_add(entry.rule.on_delay).unwrap_or(now);
        let alarm = if silent {
            entry.raise(transaction, at, f64::NAN, false, now).await?
        } else {
            alarms::end(transaction, entry.subject(), &entry.rule.condition(), None, now.min(heard_at.max(at)), now)
                .await?
        };
        changed.extend(alarm);
        turned.push(entry);
    }
    write(transaction, &turned.iter().collect::<Vec<_>>()).await?;
    Ok(changed)
}
