//! What time does to incidents: alarms are gathered into them, people are told, nobody's are handed on, and they close.
//!
//! Each of these is done by one program at a time, under an advisory lock, and finds its work in the tables: it can be done again at
//! any moment, and by any replica.

use std::collections::HashMap;

use deadpool_postgres::Transaction;
use jiff::Timestamp;
use uuid::Uuid;

use super::{
    StoreError,
    holds::in_effect,
    words::{SEVERITIES, Word, rank},
};
use crate::{
    alarms::Severity,
    incidents::{
        self, CLOSES_AFTER, ESCALATION_DEFAULT, EscalationStep, NoticeReason, Open, PAGES_MAX, Place,
        SAME_MACHINE_WITHIN,
    },
    users::Role,
};

/// Of the advisory lock that lets one program at a time do this.
const LOCK: i64 = 0x67_65_6d_62_63;
/// Alarms gathered at a time.
const ALARMS_AT_ONCE: i64 = 500;

/// Waits until no other program is at it; until the transaction's end.
pub async fn lock(transaction: &Transaction<'_>) -> Result<(), StoreError> {
    transaction.execute("SELECT pg_advisory_xact_lock($1)", &[&LOCK]).await?;
    Ok(())
}

/// An alarm that was announced and belongs to no incident yet.
struct Newcomer {
    alarm: Uuid,
    organisation: Uuid,
    place: Place,
    severity: Severity,
    at: Timestamp,
}

/// What changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changed {
    pub incidents: Vec<Uuid>,
    pub alarms: Vec<Uuid>,
}

/// Puts announced alarms into incidents, and keeps incidents as grave as their gravest open alarm has been.
pub async fn gather(transaction: &Transaction<'_>) -> Result<Changed, StoreError> {
    let mut changed = Changed::default();
    let newcomers = newcomers(transaction).await?;
    if !newcomers.is_empty() {
        let mut open = open(transaction, &newcomers).await?;
        for newcomer in &newcomers {
            let known = incidents::belongs_to(newcomer.place, newcomer.at, &open);
            let id = match known {
                Some(id) => id,
                None => insert(transaction, newcomer).await?,
            };
            join(&mut open, id, newcomer);
            transaction.execute("UPDATE alarms SET incident_id = $2 WHERE id = $1", &[&newcomer.alarm, &id]).await?;
            let last = "UPDATE incidents SET last_alarm_at = greatest(last_alarm_at, $2) WHERE id = $1";
            transaction.execute(last, &[&id, &newcomer.at]).await?;
            changed.incidents.push(id);
            changed.alarms.push(newcomer.alarm);
        }
    }
    changed.incidents.extend(graver(transaction).await?);
    changed.incidents.sort_unstable();
    changed.incidents.dedup();
    Ok(changed)
}

async fn newcomers(transaction: &Transaction<'_>) -> Result<Vec<Newcomer>, StoreError> {
    let select = transaction
        .prepare_cached(
            "SELECT a.id, sites.organisation_id, a.site_id, a.gateway_id, shown.id, a.severity, a.annunciated_at, shown.area_id
             FROM alarms a JOIN sites ON sites.id = a.site_id
             LEFT JOIN machines m ON m.id = a.machine_id
             LEFT JOIN machines shown ON shown.id = coalesce(m.merged_into, m.id)
             WHERE a.incident_id IS NULL AND a.state <> 'normal' AND a.annunciated_at IS NOT NULL
             ORDER BY a.annunciated_at, a.id LIMIT $1 FOR UPDATE OF a",
        )
        .await?;
    let rows = transaction.query(&select, &[&ALARMS_AT_ONCE]).await?;
    rows.iter()
        .map(|row| {
            let Word(severity) = row.try_get(5)?;
            let place = Place {
                site: row.try_get(2)?,
                gateway: row.try_get(3)?,
                area: row.try_get(7)?,
                machine: row.try_get(4)?,
            };
            Ok(Newcomer { alarm: row.try_get(0)?, organisation: row.try_get(1)?, place, severity, at: row.try_get(6)? })
        })
        .collect()
}

/// The open incidents of the newcomers' sites that something might still join.
async fn open(transaction: &Transaction<'_>, newcomers: &[Newcomer]) -> Result<Vec<Open>, StoreError> {
    let sites: Vec<Uuid> = newcomers.iter().map(|newcomer| newcomer.place.site).collect();
    let since = newcomers.iter().map(|newcomer| newcomer.at).min().unwrap_or_default();
    let since = since.saturating_sub(SAME_MACHINE_WITHIN).unwrap_or(since);
    let select = transaction
        .prepare_cached(
            "SELECT i.id, i.opened_at, i.site_id, a.gateway_id, shown.id, max(a.annunciated_at),
                    bool_or(a.state IN ('unacknowledged', 'acknowledged')), count(*), shown.area_id
             FROM incidents i JOIN alarms a ON a.incident_id = i.id
             LEFT JOIN machines m ON m.id = a.machine_id
             LEFT JOIN machines shown ON shown.id = coalesce(m.merged_into, m.id)
             WHERE i.closed_at IS NULL AND i.site_id = ANY($1) AND a.annunciated_at IS NOT NULL
             GROUP BY i.id, a.gateway_id, shown.id, shown.area_id
             HAVING max(a.annunciated_at) >= $2 OR bool_or(a.state IN ('unacknowledged', 'acknowledged'))
             ORDER BY i.id",
        )
        .await?;
    let mut open: Vec<Open> = Vec::new();
    for row in transaction.query(&select, &[&sites, &since]).await? {
        let id: Uuid = row.try_get(0)?;
        if open.last().is_none_or(|last| last.id != id) {
            open.push(Open { id, opened_at: row.try_get(1)?, alarms: 0, places: Vec::new() });
        }
        let place =
            Place { site: row.try_get(2)?, gateway: row.try_get(3)?, area: row.try_get(8)?, machine: row.try_get(4)? };
        if let Some(incident) = open.last_mut() {
            incident.alarms += row.try_get::<_, i64>(7)?;
            incident.places.push((place, row.try_get(5)?, row.try_get(6)?));
        }
    }
    Ok(open)
}

fn join(open: &mut Vec<Open>, id: Uuid, newcomer: &Newcomer) {
    let place = (newcomer.place, newcomer.at, true);
    match open.iter_mut().find(|incident| incident.id == id) {
        Some(incident) => {
            incident.alarms += 1;
            incident.places.push(place);
        }
        None => open.push(Open { id, opened_at: newcomer.at, alarms: 1, places: vec![place] }),
    }
}

async fn insert(transaction: &Transaction<'_>, newcomer: &Newcomer) -> Result<Uuid, StoreError> {
    let id = Uuid::now_v7();
    let Newcomer { organisation, place, severity, at, .. } = newcomer;
    let insert = transaction
        .prepare_cached(
            "INSERT INTO incidents (id, organisation_id, site_id, gateway_id, machine_id, severity, opened_at, last_alarm_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $7)",
        )
        .await?;
    transaction
        .execute(&insert, &[&id, organisation, &place.site, &place.gateway, &place.machine, &severity.as_str(), at])
        .await?;
    Ok(id)
}

/// Raises incidents' severity to that of their gravest open alarm; it does not fall while one is open.
async fn graver(transaction: &Transaction<'_>) -> Result<Vec<Uuid>, StoreError> {
    let update = transaction
        .prepare_cached(&format!(
            "UPDATE incidents SET severity = ({SEVERITIES})[worst.rank]
             FROM (SELECT a.incident_id, max({}) AS rank
                   FROM alarms a JOIN incidents i ON i.id = a.incident_id AND i.closed_at IS NULL
                   WHERE a.state <> 'normal' GROUP BY a.incident_id) worst
             WHERE incidents.id = worst.incident_id AND closed_at IS NULL
               AND worst.rank > {}
             RETURNING id",
            rank("a.severity"),
            rank("incidents.severity")
        ))
        .await?;
    Ok(transaction.query(&update, &[]).await?.iter().map(|row| row.get(0)).collect())
}

/// An open incident with an alarm that people see and nobody has acknowledged.
struct Waiting {
    id: Uuid,
    organisation: Uuid,
    site: Uuid,
    severity: Severity,
    paged: Option<Severity>,
    assigned: Option<Uuid>,
    escalated: i16,
    /// When people were told of it first.
    since: Option<Timestamp>,
}

async fn waiting(transaction: &Transaction<'_>, now: Timestamp) -> Result<Vec<Waiting>, StoreError> {
    let sql = format!(
        "SELECT i.id, i.organisation_id, i.site_id, i.severity, i.paged_severity, i.assigned_to, i.escalated,
                (SELECT min(created_at) FROM notices n WHERE n.incident_id = i.id)
         FROM incidents i
         WHERE i.closed_at IS NULL AND EXISTS (
             SELECT FROM alarms a LEFT JOIN machines m ON m.id = a.machine_id
             WHERE a.incident_id = i.id AND a.state IN ('unacknowledged', 'returned_unacknowledged')
               AND NOT EXISTS (SELECT FROM alarm_holds h WHERE {}))
         ORDER BY {} DESC, i.opened_at, i.id
         FOR UPDATE OF i",
        in_effect("$1"),
        rank("i.severity")
    );
    let select = transaction.prepare_cached(&sql).await?;
    let rows = transaction.query(&select, &[&now]).await?;
    rows.iter()
        .map(|row| {
            let Word(severity) = row.try_get(3)?;
            let paged: Option<Word<Severity>> = row.try_get(4)?;
            Ok(Waiting {
                id: row.try_get(0)?,
                organisation: row.try_get(1)?,
                site: row.try_get(2)?,
                severity,
                paged: paged.map(|Word(paged)| paged),
                assigned: row.try_get(5)?,
                escalated: row.try_get(6)?,
                since: row.try_get(7)?,
            })
        })
        .collect()
}

/// Whom a notice is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recipient {
    Role(Role),
    User(Uuid),
}

/// Writes that somebody is to be told of an incident.
pub async fn notice(
    transaction: &Transaction<'_>,
    incident: Uuid,
    recipient: Recipient,
    reason: NoticeReason,
    now: Timestamp,
) -> Result<(), StoreError> {
    let (role, user) = match recipient {
        Recipient::Role(role) => (Some(role.as_str()), None),
        Recipient::User(user) => (None, Some(user)),
    };
    let insert = transaction
        .prepare_cached(
            "INSERT INTO notices (id, incident_id, organisation_id, site_id, reason, severity, role, user_id, created_at)
             SELECT $1, id, organisation_id, site_id, $3, severity, $4, $5, $6 FROM incidents WHERE id = $2",
        )
        .await?;
    transaction.execute(&insert, &[&Uuid::now_v7(), &incident, &reason.as_str(), &role, &user, &now]).await?;
    Ok(())
}

/// Tells people of what is new or has become graver, as far as they can take it, and hands on what nobody takes. Those
/// incidents that changed.
pub async fn page(transaction: &Transaction<'_>, now: Timestamp) -> Result<Vec<Uuid>, StoreError> {
    let waiting = waiting(transaction, now).await?;
    if waiting.is_empty() {
        return Ok(Vec::new());
    }
    let mut recent = recent_pages(transaction, now).await?;
    let policies = policies(transaction).await?;
    let mut changed = Vec::new();
    for incident in waiting {
        let told = recent.entry(incident.site).or_default();
        if incident.paged < Some(incident.severity) && incidents::may_page(incident.severity, told, now) {
            let reason = if incident.paged.is_none() { NoticeReason::Opened } else { NoticeReason::SeverityRose };
            let recipient = incident.assigned.map_or(Recipient::Role(Role::Operator), Recipient::User);
            notice(transaction, incident.id, recipient, reason, now).await?;
            if recipient == Recipient::Role(Role::Operator) {
                told.push(now);
            }
            transaction
                .execute("UPDATE incidents SET paged_severity = severity WHERE id = $1", &[&incident.id])
                .await?;
            changed.push(incident.id);
        }
        if escalate(transaction, &incident, &policies, now).await? {
            changed.push(incident.id);
        }
    }
    changed.dedup();
    Ok(changed)
}

async fn escalate(
    transaction: &Transaction<'_>,
    incident: &Waiting,
    policies: &HashMap<Uuid, Vec<EscalationStep>>,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let (Some(since), None) = (incident.since, incident.assigned) else { return Ok(false) };
    let steps = policies.get(&incident.organisation).map_or(&ESCALATION_DEFAULT[..], Vec::as_slice);
    let taken = usize::try_from(incident.escalated).unwrap_or(0);
    let due = incidents::due(steps, taken, incident.severity, since, now);
    for (_, step) in &due {
        notice(transaction, incident.id, Recipient::Role(step.role), NoticeReason::Escalated, now).await?;
    }
    let Some(taken) = due.last().and_then(|(place, _)| i16::try_from(place + 1).ok()) else { return Ok(false) };
    transaction.execute("UPDATE incidents SET escalated = $2 WHERE id = $1", &[&incident.id, &taken]).await?;
    Ok(true)
}

/// When the operators of each site were told, within what the flood rule looks at.
async fn recent_pages(
    transaction: &Transaction<'_>,
    now: Timestamp,
) -> Result<HashMap<Uuid, Vec<Timestamp>>, StoreError> {
    let within = PAGES_MAX.iter().map(|(within, _)| *within).max().unwrap_or_default();
    let since = now.saturating_sub(within).unwrap_or(now);
    let select = transaction
        .prepare_cached(
            "SELECT site_id, created_at FROM notices
             WHERE created_at > $1 AND role = 'operator' AND reason IN ('opened', 'severity_rose')",
        )
        .await?;
    let mut recent: HashMap<Uuid, Vec<Timestamp>> = HashMap::new();
    for row in transaction.query(&select, &[&since]).await? {
        recent.entry(row.try_get(0)?).or_default().push(row.try_get(1)?);
    }
    Ok(recent)
}

/// The escalation of each organisation that has one of its own.
async fn policies(transaction: &Transaction<'_>) -> Result<HashMap<Uuid, Vec<EscalationStep>>, StoreError> {
    let select = transaction
        .prepare_cached(
            "SELECT organisation_id, after_s, role, severity_min FROM escalation_steps ORDER BY organisation_id, step",
        )
        .await?;
    let mut policies: HashMap<Uuid, Vec<EscalationStep>> = HashMap::new();
    for row in transaction.query(&select, &[]).await? {
        let (Word(role), Word(severity_min)) = (row.try_get(2)?, row.try_get(3)?);
        let step = EscalationStep { after_s: row.try_get(1)?, role, severity_min };
        policies.entry(row.try_get(0)?).or_default().push(step);
    }
    Ok(policies)
}

/// Closes incidents whose alarms have all been over for a while.
pub async fn close(transaction: &Transaction<'_>, now: Timestamp) -> Result<Vec<Uuid>, StoreError> {
    let before = now.saturating_sub(CLOSES_AFTER).unwrap_or(now);
    let update = transaction
        .prepare_cached(
            "UPDATE incidents SET closed_at = $1
             WHERE closed_at IS NULL AND last_alarm_at <= $2
               AND NOT EXISTS (SELECT FROM alarms a WHERE a.incident_id = incidents.id
                               AND (a.state <> 'normal' OR a.returned_at > $2 OR a.acknowledged_at > $2))
             RETURNING id",
        )
        .await?;
    Ok(transaction.query(&update, &[&now, &before]).await?.iter().map(|row| row.get(0)).collect())
}
