//! Incidents as they are shown, and what people do to them.

use std::collections::HashMap;

use deadpool_postgres::Transaction;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio_postgres::Row;
use uuid::Uuid;

use super::{
    StoreError,
    words::{Word, at_least, rank},
};
use crate::{
    alarms::Severity,
    incidents::EscalationStep,
    users::Role,
    views::{Incident, IncidentComment, Notice},
};

/// Comments of one incident.
pub const COMMENTS_MAX: i64 = 1_000;
/// Notices of one incident that are shown.
const NOTICES_MAX: i64 = 200;

const SELECT: &str = "
    SELECT i.id, i.site_id, i.gateway_id, g.name AS gateway_name, i.machine_id,
           coalesce(m.display_name, m.name) AS machine_name, i.severity, i.opened_at, i.last_alarm_at, i.closed_at,
           closer.name AS closed_by, i.assigned_to AS assigned_to_id, assigned.name AS assigned_to, i.assigned_at,
           i.paged_severity IS NOT NULL AS paged, i.escalated, first.message, own.alarms, own.open, own.unacknowledged,
           own.machines, (SELECT count(*) FROM incident_comments c WHERE c.incident_id = i.id) AS comments
    FROM incidents i
    JOIN gateways g ON g.id = i.gateway_id
    LEFT JOIN machines m ON m.id = i.machine_id
    LEFT JOIN users closer ON closer.id = i.closed_by
    LEFT JOIN users assigned ON assigned.id = i.assigned_to
    LEFT JOIN LATERAL (
        SELECT count(*) AS alarms, count(*) FILTER (WHERE a.state <> 'normal') AS open,
               count(*) FILTER (WHERE a.state IN ('unacknowledged', 'returned_unacknowledged')) AS unacknowledged,
               count(DISTINCT a.machine_id) AS machines
        FROM alarms a WHERE a.incident_id = i.id
    ) own ON true
    LEFT JOIN LATERAL (
        SELECT a.message FROM alarms a WHERE a.incident_id = i.id ORDER BY a.annunciated_at, a.id LIMIT 1
    ) first ON true";

/// The order of a list.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Order {
    /// The newest first.
    #[default]
    OpenedAt,
    /// The gravest first, and of these the newest.
    Severity,
}

/// What the next page begins behind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct After {
    severity: Severity,
    opened_at: Timestamp,
    id: Uuid,
}

impl After {
    #[must_use]
    pub fn of(incident: &Incident) -> Self {
        Self { severity: incident.severity, opened_at: incident.opened_at, id: incident.id }
    }
}

/// Whose incidents to list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Assigned {
    Nobody,
    To(Uuid),
}

/// What incidents to list; times are of their opening, `to` exclusive.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// `Some(true)`: not closed.
    pub open: Option<bool>,
    pub site: Option<Uuid>,
    pub machine: Option<Uuid>,
    pub assigned: Option<Assigned>,
    pub severity_min: Option<Severity>,
    pub from: Option<Timestamp>,
    pub to: Option<Timestamp>,
    pub order: Order,
}

/// Incidents in their order, from behind `after`.
pub async fn list(
    transaction: &Transaction<'_>,
    filter: &Filter,
    after: Option<&After>,
    limit: i64,
) -> Result<Vec<Incident>, StoreError> {
    let (key, order) = match filter.order {
        Order::OpenedAt => {
            ("(i.opened_at, i.id) < ($8, $9::uuid)".to_owned(), "i.opened_at DESC, i.id DESC".to_owned())
        }
        Order::Severity => (
            format!("({}, i.opened_at, i.id) < ({}, $8, $9::uuid)", rank("i.severity"), rank("$10")),
            format!("{} DESC, i.opened_at DESC, i.id DESC", rank("i.severity")),
        ),
    };
    let open = match filter.open {
        Some(true) => "AND i.closed_at IS NULL",
        Some(false) => "AND i.closed_at IS NOT NULL",
        None => "",
    };
    let sql = format!(
        "SELECT i.id FROM incidents i
         WHERE ($11::uuid IS NULL OR i.site_id = $11) AND ($1::uuid IS NULL OR EXISTS (
                   SELECT FROM alarms a LEFT JOIN machines p ON p.id = a.machine_id
                   WHERE a.incident_id = i.id AND $1 IN (a.machine_id, p.merged_into)))
           AND (NOT $2 OR i.assigned_to IS NULL) AND ($3::uuid IS NULL OR i.assigned_to = $3)
           AND ($4::text[] IS NULL OR i.severity = ANY($4))
           AND ($5::timestamptz IS NULL OR i.opened_at >= $5) AND ($6::timestamptz IS NULL OR i.opened_at < $6) {open}
           AND ($8::timestamptz IS NULL OR $10::text IS NULL OR {key})
         ORDER BY {order} LIMIT $7"
    );
    let statement = transaction.prepare_cached(&sql).await?;
    let severities = filter.severity_min.map(at_least);
    let (nobody, user) = match filter.assigned {
        None => (false, None),
        Some(Assigned::Nobody) => (true, None),
        Some(Assigned::To(user)) => (false, Some(user)),
    };
    let rows = transaction
        .query(
            &statement,
            &[
                &filter.machine,
                &nobody,
                &user,
                &severities,
                &filter.from,
                &filter.to,
                &limit,
                &after.map(|after| after.opened_at),
                &after.map(|after| after.id),
                &after.map(|after| after.severity.as_str()),
                &filter.site,
            ],
        )
        .await?;
    // Which incidents is decided before anything is joined to them.
    let ids: Vec<Uuid> = rows.iter().map(|row| row.get(0)).collect();
    let mut found: HashMap<Uuid, Incident> =
        by_ids(transaction, &ids).await?.into_iter().map(|incident| (incident.id, incident)).collect();
    Ok(ids.iter().filter_map(|id| found.remove(id)).collect())
}

/// These incidents, in no order.
pub async fn by_ids(transaction: &Transaction<'_>, ids: &[Uuid]) -> Result<Vec<Incident>, StoreError> {
    let statement = transaction.prepare_cached(&format!("{SELECT} WHERE i.id = ANY($1)")).await?;
    transaction.query(&statement, &[&ids]).await?.iter().map(incident).collect()
}

fn incident(row: &Row) -> Result<Incident, StoreError> {
    let Word(severity) = row.try_get("severity")?;
    Ok(Incident {
        id: row.try_get("id")?,
        site_id: row.try_get("site_id")?,
        gateway_id: row.try_get("gateway_id")?,
        gateway_name: row.try_get("gateway_name")?,
        machine_id: row.try_get("machine_id")?,
        machine_name: row.try_get("machine_name")?,
        severity,
        message: row.try_get::<_, Option<String>>("message")?.unwrap_or_default(),
        opened_at: row.try_get("opened_at")?,
        last_alarm_at: row.try_get("last_alarm_at")?,
        closed_at: row.try_get("closed_at")?,
        closed_by: row.try_get("closed_by")?,
        assigned_to_id: row.try_get("assigned_to_id")?,
        assigned_to: row.try_get("assigned_to")?,
        assigned_at: row.try_get("assigned_at")?,
        paged: row.try_get("paged")?,
        escalated: row.try_get("escalated")?,
        alarms: row.try_get("alarms")?,
        alarms_open: row.try_get("open")?,
        alarms_unacknowledged: row.try_get("unacknowledged")?,
        machines: row.try_get("machines")?,
        comments: row.try_get("comments")?,
    })
}

/// The comments of an incident, in their order.
pub async fn comments(transaction: &Transaction<'_>, id: Uuid) -> Result<Vec<IncidentComment>, StoreError> {
    let statement = transaction
        .prepare_cached(
            "SELECT c.id, u.name, c.written_at, c.text FROM incident_comments c JOIN users u ON u.id = c.author_id
             WHERE c.incident_id = $1 ORDER BY c.id LIMIT $2",
        )
        .await?;
    let rows = transaction.query(&statement, &[&id, &COMMENTS_MAX]).await?;
    rows.iter()
        .map(|row| {
            Ok(IncidentComment {
                id: row.try_get(0)?,
                author: row.try_get(1)?,
                written_at: row.try_get(2)?,
                text: row.try_get(3)?,
            })
        })
        .collect()
}

/// Who was to be told of an incident, in the order of time.
pub async fn notices(transaction: &Transaction<'_>, id: Uuid) -> Result<Vec<Notice>, StoreError> {
    let statement = transaction
        .prepare_cached(
            "SELECT n.id, n.reason, n.severity, n.role, u.name, n.created_at
             FROM notices n LEFT JOIN users u ON u.id = n.user_id WHERE n.incident_id = $1 ORDER BY n.id LIMIT $2",
        )
        .await?;
    let rows = transaction.query(&statement, &[&id, &NOTICES_MAX]).await?;
    rows.iter()
        .map(|row| {
            let (Word(reason), Word(severity)) = (row.try_get(1)?, row.try_get(2)?);
            let role: Option<Word<Role>> = row.try_get(3)?;
            Ok(Notice {
                id: row.try_get(0)?,
                reason,
                severity,
                role: role.map(|Word(role)| role),
                user: row.try_get(4)?,
                created_at: row.try_get(5)?,
            })
        })
        .collect()
}

/// An incident that somebody is about to change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Locked {
    pub site: Uuid,
    pub assigned_to: Option<Uuid>,
    pub closed: bool,
    /// Alarms that are not over.
    pub alarms_open: i64,
}

/// An incident, locked.
pub async fn lock(transaction: &Transaction<'_>, id: Uuid) -> Result<Option<Locked>, StoreError> {
    let row = transaction
        .query_opt(
            "SELECT site_id, assigned_to, closed_at IS NOT NULL,
                    (SELECT count(*) FROM alarms WHERE incident_id = incidents.id AND state <> 'normal')
             FROM incidents WHERE id = $1 FOR UPDATE",
            &[&id],
        )
        .await?;
    let Some(row) = row else { return Ok(None) };
    Ok(Some(Locked {
        site: row.try_get(0)?,
        assigned_to: row.try_get(1)?,
        closed: row.try_get(2)?,
        alarms_open: row.try_get(3)?,
    }))
}

/// Gives an incident to a user, or (`None`) to nobody; false if nobody of that id may look at its site.
pub async fn assign(
    transaction: &Transaction<'_>,
    id: Uuid,
    user: Option<Uuid>,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let assigned = transaction
        .execute(
            "UPDATE incidents SET assigned_to = $2, assigned_at = CASE WHEN $2::uuid IS NULL THEN NULL ELSE $3::timestamptz END
             WHERE id = $1 AND ($2::uuid IS NULL OR EXISTS (
                 SELECT FROM users u JOIN grants g ON g.user_id = u.id
                 WHERE u.id = $2 AND u.organisation_id = incidents.organisation_id AND u.disabled_at IS NULL
                   AND (g.site_id IS NULL OR g.site_id = incidents.site_id)))",
            &[&id, &user, &now],
        )
        .await?;
    Ok(assigned > 0)
}

/// Adds a comment; false if there are too many.
pub async fn comment(
    transaction: &Transaction<'_>,
    incident: Uuid,
    author: Uuid,
    text: &str,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let written = transaction
        .execute(
            "INSERT INTO incident_comments (id, incident_id, organisation_id, site_id, author_id, written_at, text)
             SELECT $1, id, organisation_id, site_id, $3, $4, $5 FROM incidents
             WHERE id = $2 AND (SELECT count(*) FROM incident_comments WHERE incident_id = $2) < $6",
            &[&Uuid::now_v7(), &incident, &author, &now, &text, &COMMENTS_MAX],
        )
        .await?;
    Ok(written > 0)
}

/// The alarms of an incident that are not over, in an order that all keep.
pub async fn open_alarms(transaction: &Transaction<'_>, id: Uuid) -> Result<Vec<Uuid>, StoreError> {
    let rows = transaction
        .query("SELECT id FROM alarms WHERE incident_id = $1 AND state <> 'normal' ORDER BY id", &[&id])
        .await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Closes an incident in a user's name.
pub async fn close(transaction: &Transaction<'_>, id: Uuid, by: Uuid, now: Timestamp) -> Result<(), StoreError> {
    transaction.execute("UPDATE incidents SET closed_at = $2, closed_by = $3 WHERE id = $1", &[&id, &now, &by]).await?;
    Ok(())
}

/// The escalation of an organisation; `None` if it has none of its own.
pub async fn policy(
    transaction: &Transaction<'_>,
    organisation: Uuid,
) -> Result<Option<Vec<EscalationStep>>, StoreError> {
    let rows = transaction
        .query(
            "SELECT after_s, role, severity_min FROM escalation_steps WHERE organisation_id = $1 ORDER BY step",
            &[&organisation],
        )
        .await?;
    let steps = rows.iter().map(|row| {
        let (Word(role), Word(severity_min)) = (row.try_get(1)?, row.try_get(2)?);
        Ok(EscalationStep { after_s: row.try_get(0)?, role, severity_min })
    });
    let steps: Vec<EscalationStep> = steps.collect::<Result<_, StoreError>>()?;
    Ok(Some(steps).filter(|steps| !steps.is_empty()))
}

/// Sets the escalation of an organisation.
pub async fn set_policy(
    transaction: &Transaction<'_>,
    organisation: Uuid,
    steps: &[EscalationStep],
) -> Result<(), StoreError> {
    transaction.execute("DELETE FROM escalation_steps WHERE organisation_id = $1", &[&organisation]).await?;
    for (place, step) in (1_i16..).zip(steps) {
        transaction
            .execute(
                "INSERT INTO escalation_steps (organisation_id, step, after_s, role, severity_min)
                 VALUES ($1, $2, $3, $4, $5)",
                &[&organisation, &place, &step.after_s, &step.role.as_str(), &step.severity_min.as_str()],
            )
            .await?;
    }
    Ok(())
}
