//! Notices as they are to be delivered, with the facts of their incidents: what is taken over from there is read here and nowhere else.

use std::collections::HashSet;

use deadpool_postgres::Transaction;
use jiff::Timestamp;
use tokio_postgres::Row;
use uuid::Uuid;

use super::{StoreError, words::Word};
use crate::{
    notifications::{
        Audience, NOTICE_AGE_MAX, Notice,
        message::{ALARMS_MAX, AlarmFacts, Facts, Named, TicketFacts},
    },
    users::Role,
};

/// Of the advisory lock that lets one program at a time make deliveries of notices.
const LOCK: i64 = 0x67_65_6d_62_6e;

/// A notice that no deliveries were made of.
#[derive(Debug, Clone)]
pub struct Unplanned {
    pub organisation: Uuid,
    pub notice: Notice,
    pub facts: Facts,
}

/// Whether this transaction is, until its end, the one that makes deliveries of notices.
///
/// # Errors
/// If the database is away.
pub async fn lock(transaction: &Transaction<'_>) -> Result<bool, StoreError> {
    Ok(transaction.query_one("SELECT pg_try_advisory_xact_lock($1)", &[&LOCK]).await?.try_get(0)?)
}

/// Notices that no deliveries were made of, the oldest first; those of long ago are history.
///
/// # Errors
/// If the database is away.
pub async fn unplanned(
    transaction: &Transaction<'_>,
    now: Timestamp,
    limit: i64,
) -> Result<Vec<Unplanned>, StoreError> {
    let select = transaction
        .prepare_cached(
            "SELECT n.id, n.organisation_id, n.site_id, s.name, n.reason, n.severity, n.role, n.user_id, u.name,
                    n.created_at, n.incident_id, coalesce(i.opened_at, t.created_at), shown.id,
                    coalesce(shown.display_name, shown.name), t.id, t.number, t.title, t.due_at
             FROM notices n JOIN sites s ON s.id = n.site_id
             LEFT JOIN incidents i ON i.id = n.incident_id LEFT JOIN tickets t ON t.id = n.ticket_id
             LEFT JOIN machines m ON m.id = coalesce(i.machine_id, t.machine_id)
             LEFT JOIN machines shown ON shown.id = coalesce(m.merged_into, m.id)
             LEFT JOIN users u ON u.id = n.user_id
             WHERE n.id >= $1 AND NOT EXISTS (SELECT FROM notices_planned p WHERE p.notice_id = n.id)
             ORDER BY n.id LIMIT $2",
        )
        .await?;
    let oldest = first_id(now.saturating_sub(NOTICE_AGE_MAX).unwrap_or(now));
    let mut found = Vec::new();
    for row in transaction.query(&select, &[&oldest, &limit]).await? {
        let mut unplanned = match notice(&row) {
            Ok(unplanned) => unplanned,
            Err(error) => {
                // One that this version does not know must not hold up the others.
                let id: Uuid = row.try_get(0)?;
                tracing::error!(notice = %id, error = &error as &dyn std::error::Error, "a notice cannot be read");
                planned(transaction, id, now).await?;
                continue;
            }
        };
        if let Some(incident) = unplanned.facts.incident {
            (unplanned.facts.alarm_count, unplanned.facts.alarms) = alarms(transaction, incident).await?;
        }
        found.push(unplanned);
    }
    Ok(found)
}

/// Remembers that deliveries were made of this notice.
///
/// # Errors
/// If the database is away.
pub async fn planned(transaction: &Transaction<'_>, notice: Uuid, now: Timestamp) -> Result<(), StoreError> {
    let insert =
        transaction.prepare_cached("INSERT INTO notices_planned (notice_id, planned_at) VALUES ($1, $2)").await?;
    transaction.execute(&insert, &[&notice, &now]).await?;
    Ok(())
}

/// Forgets notices that are history anyway.
///
/// # Errors
/// If the database is away.
pub async fn forget(transaction: &Transaction<'_>, now: Timestamp) -> Result<(), StoreError> {
    let before = now.saturating_sub(NOTICE_AGE_MAX * 2).unwrap_or(now);
    transaction.execute("DELETE FROM notices_planned WHERE planned_at < $1", &[&before]).await?;
    Ok(())
}

/// Which of these incidents are open, and of these tickets not done.
///
/// # Errors
/// If the database is away.
pub async fn open(transaction: &Transaction<'_>, subjects: &[Uuid]) -> Result<HashSet<Uuid>, StoreError> {
    let select = transaction
        .prepare_cached(
            "SELECT id FROM incidents WHERE id = ANY($1) AND closed_at IS NULL
             UNION ALL SELECT id FROM tickets WHERE id = ANY($1) AND state NOT IN ('done', 'closed', 'cancelled')",
        )
        .await?;
    transaction.query(&select, &[&subjects]).await?.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

/// The least id of version 7 that can have been drawn at this time.
pub(super) fn first_id(at: Timestamp) -> Uuid {
    let ms = u128::try_from(at.as_millisecond()).unwrap_or(0);
    Uuid::from_u128(ms << 80)
}

fn notice(row: &Row) -> Result<Unplanned, StoreError> {
    let (Word(reason), Word(severity)) = (row.try_get(4)?, row.try_get(5)?);
    let role: Option<Word<Role>> = row.try_get(6)?;
    let user: Option<Uuid> = row.try_get(7)?;
    let audience = match (role, user) {
        (Some(Word(role)), _) => Audience::Role(role),
        (None, Some(user)) => Audience::User(user),
        (None, None) => return Err(StoreError::Missing("recipient of a notice")),
    };
    let site = Named { id: row.try_get(2)?, name: row.try_get(3)? };
    let machine: Option<Uuid> = row.try_get(12)?;
    let ticket: Option<Uuid> = row.try_get(14)?;
    let ticket = ticket.map(|id| {
        let (number, title) = (row.try_get(15)?, row.try_get(16)?);
        Ok::<_, StoreError>(TicketFacts { id, number, title, due_at: row.try_get(17)? })
    });
    let facts = Facts {
        notice: row.try_get(0)?,
        at: row.try_get(9)?,
        reason,
        severity,
        incident: row.try_get(10)?,
        ticket: ticket.transpose()?,
        opened_at: row.try_get(11)?,
        alarm_count: 0,
        alarms: Vec::new(),
        machine: machine.map(|id| Ok::<_, StoreError>(Named { id, name: row.try_get(13)? })).transpose()?,
        role: if let Audience::Role(role) = audience { Some(role.to_string()) } else { None },
        user: row.try_get(8)?,
        site,
    };
    let notice = Notice { site: facts.site.id, reason, severity, audience };
    Ok(Unplanned { organisation: row.try_get(1)?, notice, facts })
}

/// How many there are of an incident, and the newest.
async fn alarms(transaction: &Transaction<'_>, incident: Uuid) -> Result<(i64, Vec<AlarmFacts>), StoreError> {
    let select = transaction
        .prepare_cached(
            "SELECT count(*) OVER (), a.id, coalesce(shown.display_name, shown.name, g.name), a.severity, a.message, a.raised_at
             FROM alarms a JOIN gateways g ON g.id = a.gateway_id
             LEFT JOIN machines m ON m.id = a.machine_id
             LEFT JOIN machines shown ON shown.id = coalesce(m.merged_into, m.id)
             WHERE a.incident_id = $1 ORDER BY a.raised_at DESC, a.id DESC LIMIT $2",
        )
        .await?;
    let rows = transaction.query(&select, &[&incident, &(ALARMS_MAX as i64)]).await?;
    let count = rows.first().map_or(Ok(0), |row| row.try_get(0))?;
    let alarm = |row: &Row| {
        let Word(severity) = row.try_get(3)?;
        Ok(AlarmFacts {
            id: row.try_get(1)?,
            machine: row.try_get(2)?,
            severity,
            message: row.try_get(4)?,
            raised_at: row.try_get(5)?,
        })
    };
    Ok((count, rows.iter().map(alarm).collect::<Result<_, StoreError>>()?))
}
