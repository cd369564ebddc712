//! Plans of preventive maintenance: where they stand, and the tickets that they make.

use deadpool_postgres::Transaction;
use jiff::{Timestamp, civil::Date, tz::TimeZone};
use tokio_postgres::{Row, types::ToSql};
use uuid::Uuid;

use super::{
    Store, StoreError,
    audit::By,
    tickets::{self, Fields, NewTicket},
    words::Word,
};
use crate::{
    plans::{Calendar, Due, Health, Last, RATE_DAYS, Running, Standing, Trigger, Turn},
    tickets::Kind,
    views::{Plan, PlanText, PlanTicket},
};

/// A plan with all that is known of it.
#[derive(Debug, Clone)]
pub struct Known {
    pub plan: Plan,
    pub organisation: Uuid,
    trigger: Trigger,
    standing: Standing,
    zone: TimeZone,
}

/// What it ran since hours count, and a day on the average: of the parts of a machine, that counts which ran the longest. Whole
/// hours and, behind the day on which they begin, whole days; where no mode is known of a machine at all, all hours count.
const HOURS: &str = "
    LEFT JOIN LATERAL (
        SELECT max(part.ran) AS ran_ms, max(part.late) AS late_ms FROM (
            SELECT (SELECT CASE WHEN sum(mode_ms[2] + mode_ms[3] + mode_ms[4]) > 0 THEN sum(mode_ms[4]) ELSE sum(mode_ms[1]) END
                    FROM (SELECT mode_ms FROM rollup_days WHERE machine_key = q.key AND start >= base.day
                          UNION ALL
                          SELECT mode_ms FROM rollup_hours WHERE machine_key = q.key AND start >= base.at AND start < base.day) r
                   ) AS ran,
                   (SELECT CASE WHEN sum(mode_ms[2] + mode_ms[3] + mode_ms[4]) > 0 THEN sum(mode_ms[4]) ELSE sum(mode_ms[1]) END
                           / greatest(extract(epoch FROM date_trunc('day', $1::timestamptz, 'UTC') - min(start)) / 86400, 1)
                    FROM rollup_days WHERE machine_key = q.key
                      AND start >= date_trunc('day', $1, 'UTC') - make_interval(days => $2) AND start < date_trunc('day', $1, 'UTC')
                   ) AS late
            FROM machines q WHERE p.every_h IS NOT NULL AND (q.id = m.id OR q.merged_into = m.id)
        ) part
    ) ran ON true";

fn select() -> String {
    format!(
        "SELECT p.*, s.time_zone, m.id AS shown_id, coalesce(m.display_name, m.name) AS machine_name, creator.name AS creator,
                assignee.name AS assignee, t.number, t.state, base.ended_at,
                coalesce(ran.ran_ms, 0)::float8 / 3600000 AS ran_h, coalesce(ran.late_ms, 0)::float8 / 3600000 AS ran_h_a_day,
                CASE WHEN p.health_below IS NOT NULL THEN (
                    SELECT min(q.health_percent) FROM machines q
                    WHERE (q.id = m.id OR q.merged_into = m.id)
                      AND q.last_reading_at >= $1::timestamptz - interval '15 minutes') END AS health
         FROM plans p
         JOIN machines own ON own.id = p.machine_id
         JOIN machines m ON m.id = coalesce(own.merged_into, own.id)
         JOIN sites s ON s.id = p.site_id
         JOIN users creator ON creator.id = p.created_by
         LEFT JOIN users assignee ON assignee.id = p.assignee_id
         LEFT JOIN tickets t ON t.id = p.last_ticket_id
         CROSS JOIN LATERAL (
             SELECT e.ended_at, b.at, date_trunc('day', b.at, 'UTC') + interval '1 day' AS day
             FROM (SELECT CASE WHEN t.state IN ('done', 'closed') THEN coalesce(t.done_at, t.state_since)
                               WHEN t.state = 'cancelled' THEN t.state_since END AS ended_at) e
             CROSS JOIN LATERAL (SELECT greatest(p.counted_from, e.ended_at) AS at) b
         ) base
         {HOURS}"
    )
}

/// Reads plans with this condition and order; `$1` and `$2` are taken.
pub(super) async fn read(
    transaction: &Transaction<'_>,
    rest: &str,
    params: &[&(dyn ToSql + Sync)],
    now: Timestamp,
) -> Result<Vec<Known>, StoreError> {
    let statement = transaction.prepare_cached(&format!("{} {rest}", select())).await?;
    let days = i32::try_from(RATE_DAYS).unwrap_or_default();
    let all: Vec<&(dyn ToSql + Sync)> =
        [&now as &(dyn ToSql + Sync), &days].into_iter().chain(params.iter().copied()).collect();
    transaction.query(&statement, &all).await?.iter().map(|row| known(row, now)).collect()
}

fn trigger(row: &Row) -> Result<Option<Trigger>, StoreError> {
    if let Some(every) = row.try_get("every")? {
        let Word(unit) = row.try_get("unit")?;
        let (starts_on, at_min, from_completion): (Date, i16, bool) =
            (row.try_get("starts_on")?, row.try_get("at_min")?, row.try_get("from_completion")?);
        return Ok(Some(Trigger::Calendar(Calendar { every, unit, starts_on, at_min, from_completion })));
    }
    if let Some(every_h) = row.try_get("every_h")? {
        return Ok(Some(Trigger::Running(Running { every_h, counted_from: row.try_get("counted_from")? })));
    }
    let below: Option<f32> = row.try_get("health_below")?;
    Ok(below.zip(row.try_get("health_for_s")?).map(|(below, for_s)| Trigger::Health(Health { below, for_s })))
}

fn known(row: &Row, now: Timestamp) -> Result<Known, StoreError> {
    // A check of the table says that there is one.
    let trigger = trigger(row)?.ok_or(StoreError::Missing("what makes a plan due"))?;
    let zone: &str = row.try_get("time_zone")?;
    // What is no longer in the data base of time zones goes by UTC.
    let zone = TimeZone::get(zone).unwrap_or(TimeZone::UTC);
    let (last_ticket, ended_at): (Option<Uuid>, _) = (row.try_get("last_ticket_id")?, row.try_get("ended_at")?);
    let below_since = row.try_get("below_since")?;
    let standing = Standing {
        created_at: row.try_get("created_at")?,
        last: match last_ticket {
            Some(_) => Some(Last { due_on: row.try_get("last_due_on")?, ended_at }),
            None => None,
        },
        ran_h: row.try_get("ran_h")?,
        ran_h_a_day: row.try_get("ran_h_a_day")?,
        health_percent: row.try_get("health")?,
        below_since,
    };
    let Due { at, left_h, .. } = trigger.due(&standing, now, &zone);
    let Word(priority) = row.try_get("priority")?;
    let text = PlanText {
        machine: row.try_get("shown_id")?,
        title: row.try_get("title")?,
        description: row.try_get("description")?,
        priority,
        checklist: row.try_get("checklist")?,
        estimate_minutes: row.try_get("estimate_minutes")?,
        assignee: row.try_get("assignee_id")?,
        calendar: if let Trigger::Calendar(calendar) = trigger { Some(calendar) } else { None },
        running: if let Trigger::Running(running) = trigger { Some(running) } else { None },
        health: if let Trigger::Health(health) = trigger { Some(health) } else { None },
        lead_h: row.try_get("lead_h")?,
        enabled: row.try_get("enabled")?,
    };
    let last_ticket = match last_ticket {
        Some(id) => {
            let Word(state) = row.try_get("state")?;
            Some(PlanTicket { id, number: row.try_get("number")?, state, ended_at })
        }
        None => None,
    };
    let plan = Plan {
        id: row.try_get("id")?,
        text,
        site_id: row.try_get("site_id")?,
        machine_name: row.try_get("machine_name")?,
        assignee_name: row.try_get("assignee")?,
        created_at: standing.created_at,
        created_by: row.try_get("creator")?,
        updated_at: row.try_get("updated_at")?,
        next_due_at: at,
        left_h,
        below_since,
        last_ticket,
    };
    Ok(Known { plan, organisation: row.try_get("organisation_id")?, trigger, standing, zone })
}

impl Known {
    fn turn(&self, now: Timestamp) -> Turn {
        self.trigger.turn(&self.standing, self.plan.text.lead_h, now, &self.zone)
    }

    fn is_idle(&self, now: Timestamp) -> bool {
        self.turn(now) == Turn::Wait { below_since: self.standing.below_since }
    }
}

/// Makes the tickets that are due; which. Any number of replicas may do this: a plan is taken by one of them.
///
/// # Errors
/// If the database is away; what was not done is due the next time.
pub async fn turn(store: &Store, now: Timestamp) -> Result<Vec<Uuid>, StoreError> {
    let mut client = store.client().await?;
    let transaction = client.transaction().await?;
    let plans = read(&transaction, "WHERE p.enabled AND NOT m.ignored ORDER BY p.id", &[], now).await?;
    drop(transaction);
    let mut made = Vec::new();
    for id in plans.iter().filter(|known| !known.is_idle(now)).map(|known| known.plan.id) {
        let transaction = client.transaction().await?;
        let lock = "SELECT 1 FROM plans WHERE id = $1 FOR UPDATE SKIP LOCKED";
        if transaction.query_opt(lock, &[&id]).await?.is_none() {
            continue;
        }
        // As it is now that it is ours: another may have been here.
        let rest = "WHERE p.enabled AND NOT m.ignored AND p.id = $3";
        if let Some(known) = read(&transaction, rest, &[&id], now).await?.first() {
            made.extend(carry_out(&transaction, known, now).await?);
        }
        transaction.commit().await?;
    }
    Ok(made)
}

async fn carry_out(transaction: &Transaction<'_>, known: &Known, now: Timestamp) -> Result<Option<Uuid>, StoreError> {
    let plan = &known.plan;
    let (due_at, due_on) = match known.turn(now) {
        Turn::Make { due_at, due_on } => (due_at, due_on),
        Turn::Wait { below_since } => {
            let update = "UPDATE plans SET below_since = $2 WHERE id = $1";
            transaction.execute(update, &[&plan.id, &below_since]).await?;
            return Ok(None);
        }
    };
    let text = &plan.text;
    // Who left, or may not go there any more, is given nothing.
    let assignee = match text.assignee {
        Some(user) if tickets::reaches(transaction, user, plan.site_id).await? => Some(user),
        _ => None,
    };
    let new = NewTicket {
        site: plan.site_id,
        fields: Fields {
            machine: Some(text.machine),
            area: None,
            kind: Kind::Preventive,
            priority: text.priority,
            title: text.title.clone(),
            description: text.description.clone(),
            due_at: Some(due_at),
            estimate_minutes: text.estimate_minutes,
            estimate_minor: None,
        },
        incident: None,
        assignee,
        checklist: text.checklist.clone(),
    };
    let by = By { name: "plan".into(), ..By::command_line(known.organisation) };
    let ticket = tickets::make(transaction, &new, &by, now).await?;
    if let Some(user) = assignee {
        tickets::notice(transaction, ticket, text.priority, user, now).await?;
    }
    transaction.execute("UPDATE tickets SET plan_id = $2 WHERE id = $1", &[&ticket, &plan.id]).await?;
    let update = "UPDATE plans SET last_ticket_id = $2, last_due_on = $3, below_since = NULL WHERE id = $1";
    transaction.execute(update, &[&plan.id, &ticket, &due_on]).await?;
    tracing::info!(plan = %plan.id, %ticket, machine = %text.machine, "a plan made a ticket");
    Ok(Some(ticket))
}
