//! What people tell gateways to do.

use deadpool_postgres::Transaction;
use gemba_shared::message::{Command, CommandKind, CommandResult, Outcome, REPORT_BYTES_MAX};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio_postgres::{Row, types::Json};
use uuid::Uuid;

use super::{
    Store, StoreError,
    audit::{self, By, Change},
};
use crate::{
    clock,
    views::{CommandState, CommandWord, GatewayCommand},
};

/// Commands of one gateway that wait for an answer.
pub const WAITING_MAX: i64 = 100;
/// The same where the next one is a label: an incident that is closed may give many at once, also to a gateway that is away.
pub const WAITING_LABELS_MAX: i64 = 500;

/// A command that somebody gives.
#[derive(Debug, Clone)]
pub struct NewCommand {
    pub gateway: Uuid,
    pub kind: CommandKind,
    pub by: Uuid,
    pub now: Timestamp,
    pub expires_at: Timestamp,
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Given {
    /// Under this number.
    Number(i64),
    NoSuchGateway,
    /// It is not enrolled (any more).
    NotEnrolled,
    /// [`WAITING_MAX`] (or [`WAITING_LABELS_MAX`]) wait already.
    TooMany,
}

/// Writes a command that the gateway is to be sent.
///
/// # Errors
/// If the database is away.
pub async fn give(transaction: &Transaction<'_>, new: &NewCommand, by: &By) -> Result<Given, StoreError> {
    // The lock lets numbers count up.
    let row = transaction
        .query_opt("SELECT state, site_id FROM gateways WHERE id = $1 FOR NO KEY UPDATE", &[&new.gateway])
        .await?;
    let site = match row.as_ref().map(|row| (row.get::<_, &str>(0), row.get(1))) {
        None => return Ok(Given::NoSuchGateway),
        Some(("enrolled", site)) => site,
        Some(_) => return Ok(Given::NotEnrolled),
    };
    let waiting: i64 = transaction
        .query_one("SELECT count(*) FROM commands WHERE gateway_id = $1 AND state = 'waiting'", &[&new.gateway])
        .await?
        .get(0);
    let label = matches!(new.kind, CommandKind::LabelAnomaly { .. });
    if waiting >= if label { WAITING_LABELS_MAX } else { WAITING_MAX } {
        return Ok(Given::TooMany);
    }
    let number: i64 = transaction
        .query_one(
            "INSERT INTO commands (gateway_id, number, kind, created_at, created_by, expires_at, state)
             SELECT $1, greatest((SELECT max(number) FROM commands WHERE gateway_id = $1) + 1, $2), $3, $4, $5, $6, 'waiting'
             RETURNING number",
            &[
                &new.gateway,
                &new.now.as_millisecond(),
                &Json(&new.kind),
                &new.now,
                &new.by,
                &new.expires_at,
            ],
        )
        .await?
        .get(0);
    let (kind, machine) = describe(new.kind.clone());
    let change = Change {
        action: "gateway.command",
        object: "gateway",
        id: &new.gateway.to_string(),
        site: Some(site),
        before: Value::Null,
        after: json!({"number": number, "kind": kind, "machine": machine, "expires_at": new.expires_at}),
    };
    audit::write(transaction, by, &change, new.now).await?;
    Ok(Given::Number(number))
}

/// A gateway's commands, the newest first, from behind number `after`.
///
/// # Errors
/// If the database is away.
pub async fn list(
    transaction: &Transaction<'_>,
    gateway: Uuid,
    after: Option<i64>,
    limit: i64,
) -> Result<Vec<GatewayCommand>, StoreError> {
    let select = transaction
        .prepare_cached(
            "SELECT c.number, c.kind, c.created_at, u.name, c.expires_at, c.state, c.answered_at, c.result
             FROM commands c JOIN users u ON u.id = c.created_by
             WHERE c.gateway_id = $1 AND c.number < coalesce($2, 9223372036854775807)
             ORDER BY c.number DESC LIMIT $3",
        )
        .await?;
    transaction.query(&select, &[&gateway, &after, &limit]).await?.iter().map(shown).collect()
}

fn shown(row: &Row) -> Result<GatewayCommand, StoreError> {
    let Json(kind): Json<CommandKind> = row.try_get(1)?;
    let (kind, machine) = describe(kind);
    Ok(GatewayCommand {
        number: row.try_get(0)?,
        kind,
        machine,
        created_at: row.try_get(2)?,
        created_by: row.try_get(3)?,
        expires_at: row.try_get(4)?,
        state: state(row.try_get(5)?),
        answered_at: row.try_get(6)?,
        result: row.try_get(7)?,
    })
}

pub(super) fn state(word: &str) -> CommandState {
    match word {
        "waiting" => CommandState::Waiting,
        "done" => CommandState::Done,
        "failed" => CommandState::Failed,
        "expired" => CommandState::Expired,
        _ => CommandState::Unknown,
    }
}

fn describe(kind: CommandKind) -> (CommandWord, Option<String>) {
    let (word, machine) = match kind {
        CommandKind::Recalibrate { machine } => (CommandWord::Recalibrate, machine),
        CommandKind::AcceptNewNormal { machine } => (CommandWord::AcceptNewNormal, machine),
        CommandKind::LabelAnomaly { machine, .. } => (CommandWord::LabelAnomaly, machine),
        CommandKind::OutOfService { machine, .. } => (CommandWord::OutOfService, machine),
        CommandKind::Reload => return (CommandWord::Reload, None),
        CommandKind::SendDiagnostics => return (CommandWord::SendDiagnostics, None),
    };
    (word, Some(machine.as_str().to_owned()))
}

/// The oldest command that waits, of each gateway that was heard since `heard_since`: the next one is sent when this
/// one is answered, so that none overtakes another.
///
/// # Errors
/// If the database is away.
pub async fn waiting(
    store: &Store,
    now: Timestamp,
    heard_since: Timestamp,
) -> Result<Vec<(Uuid, Command)>, StoreError> {
    let client = store.client().await?;
    let select = client
        .prepare_cached(
            "SELECT DISTINCT ON (c.gateway_id) c.gateway_id, c.number, c.expires_at, c.kind
             FROM commands c JOIN gateways g ON g.id = c.gateway_id
             WHERE c.state = 'waiting' AND c.expires_at > $1 AND g.state = 'enrolled' AND g.last_seen_at >= $2
             ORDER BY c.gateway_id, c.number",
        )
        .await?;
    let read = |row: &Row| {
        let Json(kind): Json<CommandKind> = row.try_get(3)?;
        let id = row.try_get::<_, i64>(1)?.cast_unsigned();
        Ok((row.try_get(0)?, Command { id, expires: clock::to_wire(row.try_get(2)?), kind }))
    };
    client.query(&select, &[&now, &heard_since]).await?.iter().map(read).collect()
}

/// Ends the commands that nobody answered before `before`; whose they were.
///
/// # Errors
/// If the database is away.
pub async fn expire(store: &Store, before: Timestamp) -> Result<Vec<Uuid>, StoreError> {
    let client = store.client().await?;
    let update = client
        .prepare_cached(
            "UPDATE commands SET state = 'expired' WHERE state = 'waiting' AND expires_at < $1 RETURNING gateway_id",
        )
        .await?;
    Ok(client.query(&update, &[&before]).await?.iter().map(|row| row.get(0)).collect())
}

/// A gateway answered; false if that is no news. An answer that came after the command had expired here still counts.
///
/// # Errors
/// If the database is away.
pub async fn answered(
    store: &Store,
    gateway: Uuid,
    result: &CommandResult,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let (state, text) = match &result.outcome {
        Outcome::Done => ("done", None),
        Outcome::Told(text) => ("done", Some(text)),
        Outcome::Failed(text) => ("failed", Some(text)),
        Outcome::Expired => ("expired", None),
        Outcome::Unknown => ("unknown", None),
    };
    let text = text.map(|text| clean(text));
    let Ok(number) = i64::try_from(result.id) else { return Ok(false) };
    let client = store.client().await?;
    let update = client
        .prepare_cached(
            "UPDATE commands SET state = $3, result = $4, answered_at = $5
             WHERE gateway_id = $1 AND number = $2 AND state IN ('waiting', 'expired') AND answered_at IS NULL",
        )
        .await?;
    Ok(client.execute(&update, &[&gateway, &number, &state, &text, &now]).await? > 0)
}

/// What a database and a screen can take.
fn clean(text: &str) -> String {
    let text = &text[..text.floor_char_boundary(REPORT_BYTES_MAX)];
    text.chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t')).collect()
}

/// The gateway's name for one of its machines.
///
/// # Errors
/// If the database is away.
pub async fn machine(
    transaction: &Transaction<'_>,
    gateway: Uuid,
    machine: Uuid,
) -> Result<Option<String>, StoreError> {
    let row = transaction
        .query_opt("SELECT name FROM machines WHERE gateway_id = $1 AND id = $2", &[&gateway, &machine])
        .await?;
    Ok(row.map(|row| row.get(0)))
}
