//! What holds alarms back from people: shelving, planned maintenance, out of service.
//!
//! A hold is in effect by its times alone; [`turn`] only does what its beginning and its end do to alarms.

use deadpool_postgres::Transaction;
use jiff::Timestamp;
use tokio_postgres::Row;
use uuid::Uuid;

use super::{StoreError, alarms::Subject, words::Word};
use crate::{
    alarms::{Action, ConditionState, Hold, Holds, Standing},
    views::AlarmHold,
};

/// Holds that one turn begins and ends, each.
const TURN_MAX: i64 = 200;

/// Of several holds `h` on an alarm, the first in this order is shown.
pub(super) const SHOWN_FIRST: &str = "array_position(ARRAY['out_of_service', 'suppressed', 'shelved'], h.kind)";

/// Whether the hold `h` is in effect at `$now` on the alarm `a` of the machine `m` (which may be none).
pub(super) fn in_effect(now: &str) -> String {
    in_effect_on("coalesce(a.machine_id, a.gateway_id), m.merged_into", now)
}

/// Whether the hold `h` is in effect at `$now` on the alarm `a`, as one of these subjects.
pub(super) fn in_effect_on(subjects: &str, now: &str) -> String {
    format!(
        "h.subject_id IN ({subjects})
         AND (h.condition IS NULL OR h.condition = a.condition)
         AND h.ended_at IS NULL AND h.since <= {now} AND (h.until IS NULL OR h.until > {now})"
    )
}

/// The holds on a condition at a moment.
pub async fn of(
    transaction: &Transaction<'_>,
    subject: Subject,
    condition: &str,
    now: Timestamp,
) -> Result<Holds, StoreError> {
    let select = transaction
        .prepare_cached(
            "SELECT kind FROM alarm_holds
             WHERE subject_id IN ($1, (SELECT merged_into FROM machines WHERE id = $1))
               AND (condition IS NULL OR condition = $2)
               AND ended_at IS NULL AND since <= $3 AND (until IS NULL OR until > $3)",
        )
        .await?;
    let mut holds = Holds::NONE;
    for row in transaction.query(&select, &[&subject.id(), &condition, &now]).await? {
        let Word(hold): Word<Hold> = row.try_get(0)?;
        holds = holds.with(hold);
    }
    Ok(holds)
}

/// A hold that somebody places.
#[derive(Debug, Clone)]
pub struct NewHold<'a> {
    /// A machine, or a gateway for its own alarms.
    pub subject: Uuid,
    /// `None`: all conditions of the machine.
    pub condition: Option<&'a str>,
    pub kind: Hold,
    pub reason: &'a str,
    pub by: Uuid,
    pub since: Timestamp,
    pub until: Option<Timestamp>,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Placed {
    /// With the alarms that it changed.
    Done(Uuid, Vec<Uuid>),
    Already,
    NoSuchSubject,
}

/// Places a hold; one that begins now holds alarms back at once.
pub async fn place(transaction: &Transaction<'_>, new: &NewHold<'_>, now: Timestamp) -> Result<Placed, StoreError> {
    let site = transaction
        .query_opt(
            "SELECT sites.organisation_id, sites.id FROM gateways JOIN sites ON sites.id = gateways.site_id
             WHERE gateways.id = coalesce((SELECT gateway_id FROM machines WHERE id = $1), $1)",
            &[&new.subject],
        )
        .await?;
    let Some(site) = site else { return Ok(Placed::NoSuchSubject) };
    let (organisation, site): (Uuid, Uuid) = (site.get(0), site.get(1));
    // One that has run out and was not turned yet is in nobody's way.
    release_expired(transaction, new, now).await?;
    let id = Uuid::now_v7();
    let placed = transaction
        .execute(
            "INSERT INTO alarm_holds (id, organisation_id, site_id, subject_id, condition, kind, reason, created_at,
                                      created_by, since, until)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) ON CONFLICT DO NOTHING",
            &[
                &id,
                &organisation,
                &site,
                &new.subject,
                &new.condition,
                &new.kind.as_str(),
                &new.reason,
                &now,
                &new.by,
                &new.since,
                &new.until,
            ],
        )
        .await?;
    if placed == 0 {
        return Ok(Placed::Already);
    }
    let changed = if new.since <= now { begin(transaction, id, new.kind).await? } else { Vec::new() };
    Ok(Placed::Done(id, changed))
}

async fn release_expired(transaction: &Transaction<'_>, new: &NewHold<'_>, now: Timestamp) -> Result<(), StoreError> {
    let expired = transaction
        .query_opt(
            "SELECT id, until FROM alarm_holds
             WHERE subject_id = $1 AND condition IS NOT DISTINCT FROM $2 AND kind = $3 AND kind <> 'suppressed'
               AND ended_at IS NULL AND until <= $4
             FOR UPDATE",
            &[&new.subject, &new.condition, &new.kind.as_str(), &now],
        )
        .await?;
    if let Some(row) = expired {
        release(transaction, row.get(0), None, row.get(1), now).await?;
    }
    Ok(())
}

/// The open alarms that a hold is about, locked.
async fn alarms_of(transaction: &Transaction<'_>, hold: Uuid) -> Result<Vec<(Uuid, ConditionState)>, StoreError> {
    let select = transaction
        .prepare_cached(
            "SELECT a.id, a.state FROM alarm_holds h, alarms a LEFT JOIN machines m ON m.id = a.machine_id
             WHERE h.id = $1 AND a.state <> 'normal'
               AND h.subject_id IN (coalesce(a.machine_id, a.gateway_id), m.merged_into)
               AND (h.condition IS NULL OR h.condition = a.condition)
             ORDER BY a.id FOR UPDATE OF a",
        )
        .await?;
    let rows = transaction.query(&select, &[&hold]).await?;
    rows.iter()
        .map(|row| {
            let Word(state) = row.try_get(1)?;
            Ok((row.try_get(0)?, state))
        })
        .collect()
}

/// Does what a hold's beginning does; the alarms that it changed.
async fn begin(transaction: &Transaction<'_>, id: Uuid, kind: Hold) -> Result<Vec<Uuid>, StoreError> {
    transaction.execute("UPDATE alarm_holds SET begun = true WHERE id = $1", &[&id]).await?;
    let alarms = alarms_of(transaction, id).await?;
    for (alarm, condition) in &alarms {
        let standing = Standing { condition: *condition, holds: Holds::NONE };
        let Ok(after) = standing.after(Action::Place(kind)) else { continue };
        transaction.execute("UPDATE alarms SET state = $2 WHERE id = $1", &[alarm, &after.condition.as_str()]).await?;
    }
    Ok(alarms.into_iter().map(|(id, _)| id).collect())
}

/// Ends a hold; alarms that are active and not held otherwise are announced anew. Those that it changed.
async fn release(
    transaction: &Transaction<'_>,
    id: Uuid,
    by: Option<Uuid>,
    at: Timestamp,
    now: Timestamp,
) -> Result<Vec<Uuid>, StoreError> {
    transaction
        .execute("UPDATE alarm_holds SET ended_at = $2, ended_by = $3, begun = true WHERE id = $1", &[&id, &at, &by])
        .await?;
    let alarms: Vec<Uuid> = alarms_of(transaction, id).await?.into_iter().map(|(id, _)| id).collect();
    let announce = format!(
        "UPDATE alarms SET annunciated_at = $2, acknowledged_at = NULL, acknowledged_by = NULL
         WHERE id = ANY($1) AND state IN ('unacknowledged', 'acknowledged')
           AND NOT EXISTS (SELECT FROM alarm_holds h, alarms a LEFT JOIN machines m ON m.id = a.machine_id
                           WHERE a.id = alarms.id AND {})",
        in_effect("$2")
    );
    let announce = transaction.prepare_cached(&announce).await?;
    transaction.execute(&announce, &[&alarms, &now]).await?;
    Ok(alarms)
}

/// What came of a person's ending a hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    Done(Vec<Uuid>),
    /// It is over.
    Already,
}

/// A hold that may be ended: what it is, and at which site; locked.
pub async fn lock(transaction: &Transaction<'_>, id: Uuid) -> Result<Option<(Hold, Uuid)>, StoreError> {
    let row = transaction.query_opt("SELECT kind, site_id FROM alarm_holds WHERE id = $1 FOR UPDATE", &[&id]).await?;
    row.map(|row| Ok((row.try_get::<_, Word<Hold>>(0)?.0, row.try_get(1)?))).transpose()
}

/// Ends a hold in a user's name; a window that has not begun never will.
pub async fn end(transaction: &Transaction<'_>, id: Uuid, by: Uuid, now: Timestamp) -> Result<Ended, StoreError> {
    let over: bool = transaction
        .query_one(
            "SELECT ended_at IS NOT NULL OR coalesce(until <= $2, false) FROM alarm_holds WHERE id = $1",
            &[&id, &now],
        )
        .await?
        .get(0);
    if over {
        return Ok(Ended::Already);
    }
    Ok(Ended::Done(release(transaction, id, Some(by), now, now).await?))
}

/// Begins and ends what is due; the alarms that changed. Two replicas that turn at once share the work.
pub async fn turn(transaction: &Transaction<'_>, now: Timestamp) -> Result<Vec<Uuid>, StoreError> {
    let mut changed = Vec::new();
    let due = transaction
        .prepare_cached(
            "SELECT id, kind, until FROM alarm_holds
             WHERE ended_at IS NULL AND (until <= $1 OR (NOT begun AND since <= $1))
             ORDER BY id LIMIT $2 FOR UPDATE SKIP LOCKED",
        )
        .await?;
    for row in transaction.query(&due, &[&now, &TURN_MAX]).await? {
        let id: Uuid = row.try_get(0)?;
        let Word(kind): Word<Hold> = row.try_get(1)?;
        match row.try_get::<_, Option<Timestamp>>(2)?.filter(|until| *until <= now) {
            Some(until) => changed.extend(release(transaction, id, None, until, now).await?),
            None => changed.extend(begin(transaction, id, kind).await?),
        }
    }
    Ok(changed)
}

/// What holds to list.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// A machine or a gateway.
    pub subject: Option<Uuid>,
    pub kind: Option<Hold>,
    /// `Some(true)`: in effect or still to come; `Some(false)`: over.
    pub open: Option<bool>,
}

const SELECT: &str = "
    SELECT h.id, h.subject_id, h.condition, h.kind, h.reason, h.created_at, u.name AS created_by, h.since, h.until,
           coalesce(h.ended_at, CASE WHEN h.until <= $1 THEN h.until END) AS ended_at, e.name AS ended_by,
           coalesce(m.display_name, m.name) AS machine_name
    FROM alarm_holds h JOIN users u ON u.id = h.created_by LEFT JOIN users e ON e.id = h.ended_by
    LEFT JOIN machines m ON m.id = h.subject_id";

/// Holds, the newest first, from behind `after`.
pub async fn list(
    transaction: &Transaction<'_>,
    filter: &Filter,
    after: Option<Uuid>,
    limit: i64,
    now: Timestamp,
) -> Result<Vec<AlarmHold>, StoreError> {
    let sql = format!(
        "{SELECT}
         WHERE ($2::uuid IS NULL OR h.subject_id = $2) AND ($3::text IS NULL OR h.kind = $3)
           AND ($4::boolean IS NULL OR (h.ended_at IS NULL AND (h.until IS NULL OR h.until > $1)) = $4)
           AND ($5::uuid IS NULL OR h.id < $5)
         ORDER BY h.id DESC LIMIT $6"
    );
    let statement = transaction.prepare_cached(&sql).await?;
    let kind = filter.kind.map(Hold::as_str);
    let rows = transaction.query(&statement, &[&now, &filter.subject, &kind, &filter.open, &after, &limit]).await?;
    rows.iter().map(shown).collect()
}

/// One of them.
pub async fn one(transaction: &Transaction<'_>, id: Uuid, now: Timestamp) -> Result<Option<AlarmHold>, StoreError> {
    let statement = transaction.prepare_cached(&format!("{SELECT} WHERE h.id = $2")).await?;
    transaction.query_opt(&statement, &[&now, &id]).await?.as_ref().map(shown).transpose()
}

fn shown(row: &Row) -> Result<AlarmHold, StoreError> {
    let Word(kind) = row.try_get("kind")?;
    Ok(AlarmHold {
        id: row.try_get("id")?,
        subject_id: row.try_get("subject_id")?,
        machine_name: row.try_get("machine_name")?,
        condition: row.try_get("condition")?,
        kind,
        reason: row.try_get("reason")?,
        created_at: row.try_get("created_at")?,
        created_by: row.try_get("created_by")?,
        since: row.try_get("since")?,
        until: row.try_get("until")?,
        ended_at: row.try_get("ended_at")?,
        ended_by: row.try_get("ended_by")?,
    })
}
