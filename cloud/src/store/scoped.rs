//! Transactions that see what somebody may see: they run as the role `gemba_app`, under row-level security, with the
//! organisation and the sites of a [`Scope`]. A forgotten `WHERE` shows no row of anybody else.

use std::fmt::Write as _;

use deadpool_postgres::{Client, Transaction};
use futures_util::FutureExt as _;
use tokio_postgres::error::SqlState;

use super::StoreError;
use crate::users::scope::Scope;

/// As whom requests run. It logs in nowhere and owns nothing; its rights stand in the migrations.
pub const ROLE: &str = "gemba_app";

/// Why the role cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RoleError {
    #[error(
        "the database has no role gemba_app and its user may not make one: as a superuser run \
         `CREATE ROLE gemba_app NOLOGIN; GRANT gemba_app TO {0:?}`, or give {0:?} the right CREATEROLE"
    )]
    NotAllowed(String),
    #[error("the database's user may not act as the role gemba_app: as a superuser run `GRANT gemba_app TO {0:?}`")]
    NotGranted(String),
    #[error("the role gemba_app is a superuser or passes row-level security by: organisations would not be kept apart")]
    TooStrong,
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<tokio_postgres::Error> for RoleError {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Store(error.into())
    }
}

/// Begins a transaction in this scope. What it wrote is kept by `commit`; one that only read may be dropped.
///
/// # Errors
/// If the database is away.
pub async fn scoped<'a>(client: &'a mut Client, scope: &Scope) -> Result<Transaction<'a>, StoreError> {
    let transaction = client.transaction().await?;
    narrow(&transaction, scope)?;
    Ok(transaction)
}

/// Takes a transaction of the owner into a scope, up to its end.
///
/// The statements are sent and their answer is not waited for: what follows is carried out after them, and is refused
/// should one of them have failed, for a transaction with an error in it does nothing more.
///
/// # Errors
/// If the connection is gone.
pub fn narrow(transaction: &Transaction<'_>, scope: &Scope) -> Result<(), StoreError> {
    // Nothing in it is text of somebody else: ids and our own words.
    let mut sql = format!(
        "SET LOCAL gemba.organisation = '{}'; SET LOCAL gemba.sites = '{{",
        scope.organisation().as_hyphenated()
    );
    for (i, site) in scope.sites().enumerate() {
        let comma = if i == 0 { "" } else { "," };
        // A string takes what is written to it.
        write!(sql, "{comma}{}", site.as_hyphenated()).ok();
    }
    sql.push_str("}'; SET LOCAL ROLE gemba_app");
    send(transaction, &sql)
}

/// Lets the rest of this transaction keep the plans of its statements, for statements of many tables with few rows: to plan them
/// anew each time costs more than to carry them out. Of a large table only where one index serves whatever the values are: such a plan
/// knows no limit, and no filter that is absent.
///
/// # Errors
/// If the connection is gone.
pub(super) fn keep_plans(transaction: &Transaction<'_>) -> Result<(), StoreError> {
    send(transaction, "SET LOCAL plan_cache_mode = force_generic_plan")
}

/// Sends statements without waiting for their answer.
pub(super) fn send(transaction: &Transaction<'_>, sql: &str) -> Result<(), StoreError> {
    match transaction.batch_execute(sql).now_or_never() {
        Some(Err(error)) => Err(error.into()),
        Some(Ok(())) | None => Ok(()),
    }
}

/// Makes the role unless it is there, and makes sure that we may act as it. Roles belong to the whole cluster: another
/// program may do this at the same moment.
pub(super) async fn ensure_role(client: &Client) -> Result<(), RoleError> {
    let role = "SELECT rolsuper OR rolbypassrls FROM pg_roles WHERE rolname = $1";
    let owner: String = client.query_one("SELECT current_user::text", &[]).await?.get(0);
    let mut found = client.query_opt(role, &[&ROLE]).await?;
    if found.is_none() {
        match client.batch_execute("CREATE ROLE gemba_app NOLOGIN").await {
            Ok(()) => {}
            Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
                return Err(RoleError::NotAllowed(owner));
            }
            Err(error)
                if matches!(
                    error.code(),
                    Some(code) if *code == SqlState::DUPLICATE_OBJECT || *code == SqlState::UNIQUE_VIOLATION
                ) => {}
            Err(error) => return Err(error.into()),
        }
        found = client.query_opt(role, &[&ROLE]).await?;
    }
    if found.is_some_and(|row| row.get(0)) {
        return Err(RoleError::TooStrong);
    }
    let member = "SELECT pg_has_role(current_user, 'gemba_app', 'MEMBER')";
    if client.query_one(member, &[]).await?.get(0) {
        return Ok(());
    }
    // One of two that grant it at once may fail; what counts is whether it is granted then.
    drop(client.batch_execute("GRANT gemba_app TO CURRENT_USER").await);
    if client.query_one(member, &[]).await?.get(0) { Ok(()) } else { Err(RoleError::NotGranted(owner)) }
}
