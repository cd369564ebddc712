//! Users as admins manage them: what they may do, and the links with which they choose a password.

use deadpool_postgres::Transaction;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio_postgres::Row;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    Store, StoreError,
    audit::{self, By, Change},
    sessions::{self, Ended},
};
use crate::{
    users::{Role, scope::Grant},
    views,
};

/// How long a link with which a password is chosen is good.
pub const LINK_LIFETIME: SignedDuration = SignedDuration::from_hours(72);

/// A user as admins see them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Member {
    pub id: Uuid,
    /// For the login; unique on a server.
    pub name: String,
    pub display_name: Option<String>,
    pub email: Option<String>,
    pub disabled: bool,
    /// An invitation that was not followed yet, or a one-time password that was not changed.
    pub must_change_password: bool,
    pub created_at: Timestamp,
    pub grants: Vec<Grant>,
}

/// What came of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Changed {
    Done(Uuid),
    NameTaken,
    EmailTaken,
    /// Nobody would be left who may manage the organisation.
    LastAdmin,
}

const SELECT: &str =
    "SELECT u.id, u.name, u.display_name, u.email, u.disabled_at IS NOT NULL, u.must_change_password, u.created_at,
           ARRAY(SELECT g.site_id FROM grants g WHERE g.user_id = u.id ORDER BY g.site_id NULLS FIRST),
           ARRAY(SELECT g.role FROM grants g WHERE g.user_id = u.id ORDER BY g.site_id NULLS FIRST)
    FROM users u";

/// The order of a list.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Order {
    #[default]
    Name,
    /// The newest first.
    CreatedAt,
}

/// What the next page begins behind, in its order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum After {
    Name(String, Uuid),
    CreatedAt(Timestamp, Uuid),
}

impl After {
    #[must_use]
    pub fn of(order: Order, member: &Member) -> Self {
        match order {
            Order::Name => Self::Name(member.name.clone(), member.id),
            Order::CreatedAt => Self::CreatedAt(member.created_at, member.id),
        }
    }

    /// The order of the list that it is of.
    #[must_use]
    pub const fn order(&self) -> Order {
        match self {
            Self::Name(..) => Order::Name,
            Self::CreatedAt(..) => Order::CreatedAt,
        }
    }

    fn key(&self) -> (String, Uuid) {
        match self {
            Self::Name(name, id) => (name.clone(), *id),
            Self::CreatedAt(at, id) => (at.to_string(), *id),
        }
    }
}

/// Users in this order, from behind `after`, which is of that order.
///
/// # Errors
/// If the database is away.
pub async fn list(
    transaction: &Transaction<'_>,
    disabled: Option<bool>,
    order: Order,
    after: Option<&After>,
    limit: i64,
) -> Result<Vec<Member>, StoreError> {
    let (behind, towards) = match order {
        Order::Name => ("(u.name, u.id) > ($2, $3::uuid)", "u.name, u.id"),
        Order::CreatedAt => {
            ("(u.created_at, u.id) < ($2::text::timestamptz, $3::uuid)", "u.created_at DESC, u.id DESC")
        }
    };
    let sql = format!(
        "{SELECT} WHERE ($1::boolean IS NULL OR (u.disabled_at IS NOT NULL) = $1)
           AND ($2::text IS NULL OR {behind})
         ORDER BY {towards} LIMIT $4"
    );
    let (key, id) = after.map(After::key).unzip();
    let rows = transaction.query(&sql, &[&disabled, &key, &id, &limit]).await?;
    rows.iter().map(member).collect()
}

/// A user. With `lock` nobody else changes them until the transaction's end.
///
/// # Errors
/// If the database is away.
pub async fn one(transaction: &Transaction<'_>, id: Uuid, lock: bool) -> Result<Option<Member>, StoreError> {
    if lock {
        // Apart: what is read after the lock is what whoever had it left. The organisation first, so that two admins cannot take
        // each other's rights at once.
        transaction
            .query_opt(
                "SELECT 1 FROM organisations o WHERE o.id = (SELECT organisation_id FROM users WHERE id = $1) FOR NO KEY UPDATE",
                &[&id],
            )
            .await?;
    }
    let row = transaction.query_opt(&format!("{SELECT} WHERE u.id = $1"), &[&id]).await?;
    row.map(|row| member(&row)).transpose()
}

/// A user to be added.
#[derive(Debug, Clone)]
pub struct NewMember<'a> {
    pub organisation: Uuid,
    pub name: &'a str,
    pub display_name: Option<&'a str>,
    pub email: Option<&'a str>,
    /// `None`: whoever follows a link chooses one.
    pub one_time_hash: Option<&'a str>,
    pub grants: &'a [Grant],
}

/// Adds a user.
///
/// # Errors
/// If the database is away.
pub async fn insert(
    transaction: &Transaction<'_>,
    new: &NewMember<'_>,
    by: &By,
    now: Timestamp,
) -> Result<Changed, StoreError> {
    let id = Uuid::now_v7();
    let added = transaction
        .execute(
            "INSERT INTO users (id, organisation_id, name, display_name, email, password_hash, must_change_password, created_at)
             VALUES ($1, $2, $3, $4, $5, $6, true, $7)",
            &[&id, &new.organisation, &new.name, &new.display_name, &new.email, &new.one_time_hash, &now],
        )
        .await;
    if let Some(taken) = taken(added)? {
        return Ok(taken);
    }
    write_grants(transaction, id, new.organisation, new.grants).await?;
    let after = json!({"name": new.name, "display_name": new.display_name, "email": new.email, "grants": new.grants});
    recorded(transaction, "user.create", id, (Value::Null, after), by, now).await?;
    Ok(Changed::Done(id))
}

/// What an admin changes of a user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Profile {
    pub display_name: Option<String>,
    pub email: Option<String>,
    pub disabled: bool,
}

/// Changes a user who was read with `lock`; the sessions of one who is disabled end.
///
/// # Errors
/// If the database is away.
pub async fn change(
    transaction: &Transaction<'_>,
    before: &Member,
    after: &Profile,
    by: &By,
    now: Timestamp,
) -> Result<Changed, StoreError> {
    let id = before.id;
    let known =
        Profile { display_name: before.display_name.clone(), email: before.email.clone(), disabled: before.disabled };
    if known == *after {
        return Ok(Changed::Done(id));
    }
    let changed = transaction
        .execute(
            "UPDATE users SET display_name = $2, email = $3,
                              disabled_at = CASE WHEN $4 THEN coalesce(disabled_at, $5) END
             WHERE id = $1",
            &[&id, &after.display_name, &after.email, &after.disabled, &now],
        )
        .await;
    if let Some(taken) = taken(changed)? {
        return Ok(taken);
    }
    if after.disabled {
        sessions::end_all(transaction, id, Ended::Disabled, now).await?;
        void_links(transaction, id, now).await?;
    }
    if !has_admin(transaction, by.organisation).await? {
        return Ok(Changed::LastAdmin);
    }
    recorded(transaction, "user.change", id, (json!(known), json!(after)), by, now).await?;
    Ok(Changed::Done(id))
}

/// Gives a user who was read with `lock` these grants in the place of those they had.
///
/// # Errors
/// If the database is away.
pub async fn grant(
    transaction: &Transaction<'_>,
    before: &Member,
    grants: &[Grant],
    by: &By,
    now: Timestamp,
) -> Result<Changed, StoreError> {
    transaction.execute("DELETE FROM grants WHERE user_id = $1", &[&before.id]).await?;
    write_grants(transaction, before.id, by.organisation, grants).await?;
    if !has_admin(transaction, by.organisation).await? {
        return Ok(Changed::LastAdmin);
    }
    if before.grants != grants {
        let change = (json!({"grants": before.grants}), json!({"grants": grants}));
        recorded(transaction, "user.grant", before.id, change, by, now).await?;
    }
    Ok(Changed::Done(before.id))
}

/// A link with which this user chooses a password; older ones are void.
///
/// # Errors
/// If the database is away.
pub async fn link(
    transaction: &Transaction<'_>,
    user: Uuid,
    hash: &[u8; 32],
    by: &By,
    now: Timestamp,
) -> Result<Timestamp, StoreError> {
    void_links(transaction, user, now).await?;
    let expires_at = now.saturating_add(LINK_LIFETIME).unwrap_or(now);
    transaction
        .execute(
            "INSERT INTO password_links (hash, user_id, organisation_id, created_at, expires_at)
             VALUES ($1, $2, $3, $4, $5)",
            &[&hash.as_slice(), &user, &by.organisation, &now, &expires_at],
        )
        .await?;
    recorded(transaction, "user.password_link", user, (Value::Null, json!({"expires_at": expires_at})), by, now)
        .await?;
    Ok(expires_at)
}

/// Whose link this is, and their organisation and name, if it is good.
///
/// # Errors
/// If the database is away.
pub async fn of_link(
    store: &Store,
    hash: &[u8; 32],
    now: Timestamp,
) -> Result<Option<(Uuid, Uuid, String)>, StoreError> {
    let client = store.client().await?;
    let row = client
        .query_opt(
            "SELECT u.id, u.organisation_id, u.name FROM password_links l JOIN users u ON u.id = l.user_id
             WHERE l.hash = $1 AND l.used_at IS NULL AND l.expires_at > $2 AND u.disabled_at IS NULL",
            &[&hash.as_slice(), &now],
        )
        .await?;
    Ok(row.map(|row| (row.get(0), row.get(1), row.get(2))))
}

/// Uses a link up; false if somebody was faster.
///
/// # Errors
/// If the database is away.
pub async fn use_link(transaction: &Transaction<'_>, hash: &[u8; 32], now: Timestamp) -> Result<bool, StoreError> {
    let used = transaction
        .execute(
            "UPDATE password_links SET used_at = $2 WHERE hash = $1 AND used_at IS NULL AND expires_at > $2",
            &[&hash.as_slice(), &now],
        )
        .await?;
    Ok(used > 0)
}

async fn void_links(transaction: &Transaction<'_>, user: Uuid, now: Timestamp) -> Result<(), StoreError> {
    transaction
        .execute("UPDATE password_links SET used_at = $2 WHERE user_id = $1 AND used_at IS NULL", &[&user, &now])
        .await?;
    Ok(())
}

async fn write_grants(
    transaction: &Transaction<'_>,
    user: Uuid,
    organisation: Uuid,
    grants: &[Grant],
) -> Result<(), StoreError> {
    let sites: Vec<Option<Uuid>> = grants.iter().map(|grant| grant.site).collect();
    let roles: Vec<&str> = grants.iter().map(|grant| grant.role.as_str()).collect();
    transaction
        .execute(
            "INSERT INTO grants (user_id, organisation_id, site_id, role)
             SELECT $1, $2, site, role FROM unnest($3::uuid[], $4::text[]) AS given (site, role)",
            &[&user, &organisation, &sites, &roles],
        )
        .await?;
    Ok(())
}

async fn has_admin(transaction: &Transaction<'_>, organisation: Uuid) -> Result<bool, StoreError> {
    let row = transaction
        .query_one(
            "SELECT EXISTS (SELECT FROM grants g JOIN users u ON u.id = g.user_id
                            WHERE g.organisation_id = $1 AND g.site_id IS NULL AND g.role = $2 AND u.disabled_at IS NULL)",
            &[&organisation, &Role::Admin.as_str()],
        )
        .await?;
    Ok(row.get(0))
}

/// Which unique index refused; the transaction is at its end then.
fn taken(result: Result<u64, tokio_postgres::Error>) -> Result<Option<Changed>, StoreError> {
    match result.map_err(StoreError::from) {
        Ok(_) => Ok(None),
        Err(StoreError::Database(error))
            if error.code() == Some(&tokio_postgres::error::SqlState::UNIQUE_VIOLATION) =>
        {
            let constraint = error.as_db_error().and_then(|error| error.constraint());
            Ok(Some(if constraint == Some("users_email") { Changed::EmailTaken } else { Changed::NameTaken }))
        }
        Err(error) => Err(error),
    }
}

async fn recorded(
    transaction: &Transaction<'_>,
    action: &'static str,
    user: Uuid,
    (before, after): (Value, Value),
    by: &By,
    now: Timestamp,
) -> Result<(), StoreError> {
    let change = Change { action, object: "user", id: &user.to_string(), site: None, before, after };
    audit::write(transaction, by, &change, now).await
}

fn member(row: &Row) -> Result<Member, StoreError> {
    let sites: Vec<Option<Uuid>> = row.try_get(7)?;
    let roles: Vec<&str> = row.try_get(8)?;
    let grant = |(site, role): (Option<Uuid>, &str)| Some(Grant { site, role: views::word("role", role).ok()? });
    Ok(Member {
        id: row.try_get(0)?,
        name: row.try_get(1)?,
        display_name: row.try_get(2)?,
        email: row.try_get(3)?,
        disabled: row.try_get(4)?,
        must_change_password: row.try_get(5)?,
        created_at: row.try_get(6)?,
        grants: sites.into_iter().zip(roles).filter_map(grant).collect(),
    })
}
