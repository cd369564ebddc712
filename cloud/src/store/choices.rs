//! What users chose to be told of, and who is there to be told.

use std::collections::HashMap;

use deadpool_postgres::Transaction;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio_postgres::Row;
use uuid::Uuid;

use super::{
    StoreError,
    audit::{self, By, Change},
    words::Word,
};
use crate::{
    notifications::{Choice, Person, Recent, quiet::Quiet},
    users::Role,
};

/// The columns of a choice, where `c` may be missing.
const COLUMNS: &str =
    "c.user_id IS NOT NULL AS chosen, c.email AS choice_email, c.severity_min, c.site_ids, c.quiet_days,
     c.quiet_from_min, c.quiet_to_min, c.quiet_time_zone, c.critical_passes";

/// A user's e-mail address and choice; locked where it is to be changed.
///
/// # Errors
/// If the database is away.
pub async fn get(
    transaction: &Transaction<'_>,
    user: Uuid,
    lock: bool,
) -> Result<(Option<String>, Choice), StoreError> {
    let lock = if lock { "FOR UPDATE OF u" } else { "" };
    let select = transaction
        .prepare_cached(&format!(
            "SELECT u.email, {COLUMNS} FROM users u LEFT JOIN notification_choices c ON c.user_id = u.id WHERE u.id = $1 {lock}"
        ))
        .await?;
    let row = transaction.query_opt(&select, &[&user]).await?.ok_or(StoreError::Missing("user"))?;
    Ok((row.try_get("email")?, choice(&row)?))
}

/// Keeps what a user chose.
///
/// # Errors
/// If the database is away.
pub async fn put(
    transaction: &Transaction<'_>,
    user: Uuid,
    before: &Choice,
    choice: &Choice,
    by: &By,
    now: Timestamp,
) -> Result<(), StoreError> {
    let quiet = choice.quiet.as_ref();
    transaction
        .execute(
            "INSERT INTO notification_choices (user_id, organisation_id, email, severity_min, site_ids, quiet_days,
                                               quiet_from_min, quiet_to_min, quiet_time_zone, critical_passes, updated_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
             ON CONFLICT (user_id) DO UPDATE SET email = $3, severity_min = $4, site_ids = $5, quiet_days = $6,
                 quiet_from_min = $7, quiet_to_min = $8, quiet_time_zone = $9, critical_passes = $10, updated_at = $11",
            &[
                &user,
                &by.organisation,
                &choice.email,
                &choice.severity_min.as_str(),
                &choice.sites,
                &quiet.map(|quiet| i16::from(quiet.days())),
                &quiet.map(|quiet| quiet.from_min() as i16),
                &quiet.map(|quiet| quiet.to_min() as i16),
                &quiet.map(Quiet::zone),
                &choice.critical_passes,
                &now,
            ],
        )
        .await?;
    if before == choice {
        return Ok(());
    }
    let change = Change {
        action: "user.notifications",
        object: "user",
        id: &user.to_string(),
        site: None,
        before: shown(before),
        after: shown(choice),
    };
    audit::write(transaction, by, &change, now).await
}

/// Everybody who has a role at the site, with nothing in `recent`.
///
/// # Errors
/// If the database is away.
pub async fn people(transaction: &Transaction<'_>, organisation: Uuid, site: Uuid) -> Result<Vec<Person>, StoreError> {
    let select = transaction
        .prepare_cached(&format!(
            "SELECT u.id, u.email, g.role, {COLUMNS}
             FROM users u JOIN grants g ON g.user_id = u.id AND (g.site_id IS NULL OR g.site_id = $2)
             LEFT JOIN notification_choices c ON c.user_id = u.id
             WHERE u.organisation_id = $1 AND u.disabled_at IS NULL ORDER BY u.id"
        ))
        .await?;
    let mut people: HashMap<Uuid, Person> = HashMap::new();
    for row in transaction.query(&select, &[&organisation, &site]).await? {
        let user: Uuid = row.try_get("id")?;
        let Word(role): Word<Role> = row.try_get("role")?;
        if let Some(known) = people.get_mut(&user) {
            known.role = known.role.max(role);
            continue;
        }
        let email = row.try_get("email")?;
        people.insert(user, Person { user, role, email, choice: choice(&row)?, recent: Recent::default() });
    }
    let mut people: Vec<Person> = people.into_values().collect();
    people.sort_by_key(|person| person.user);
    Ok(people)
}

fn choice(row: &Row) -> Result<Choice, StoreError> {
    if !row.try_get::<_, bool>("chosen")? {
        return Ok(Choice::default());
    }
    let Word(severity_min) = row.try_get("severity_min")?;
    let quiet = match row.try_get::<_, Option<i16>>("quiet_days")? {
        None => None,
        Some(days) => {
            let (from, to): (i16, i16) = (row.try_get("quiet_from_min")?, row.try_get("quiet_to_min")?);
            // A zone that is gone from the database of zones keeps nobody from being told.
            Quiet::new(days as u8, from as u16, to as u16, row.try_get("quiet_time_zone")?).ok()
        }
    };
    Ok(Choice {
        email: row.try_get("choice_email")?,
        severity_min,
        sites: row.try_get("site_ids")?,
        quiet,
        critical_passes: row.try_get("critical_passes")?,
    })
}

fn shown(choice: &Choice) -> Value {
    let quiet = choice.quiet.as_ref().map(|quiet| {
        json!({"days": quiet.days(), "from_min": quiet.from_min(), "to_min": quiet.to_min(), "time_zone": quiet.zone()})
    });
    json!({
        "email": choice.email,
        "severity_min": choice.severity_min,
        "sites": choice.sites,
        "quiet": quiet,
        "critical_passes": choice.critical_passes,
    })
}
