//! What people say of anomalies: real, or a false alarm. It is written here, and told to the gateway that saw it.
//!
//! There is one way to label an anomaly, whoever asks for it: a ticket that is closed, or a command that somebody gives.

use deadpool_postgres::Transaction;
use gemba_shared::{ids::MachineId, message::CommandKind};
use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use tokio_postgres::Row;
use uuid::Uuid;

use super::{
    StoreError,
    audit::{self, By, Change},
    commands::{self, Given, NewCommand, state},
};
use crate::{clock, views::AnomalyLabel};

/// How long a gateway that is away may take to hear of a label, where nobody says otherwise.
pub const VALID_FOR: SignedDuration = SignedDuration::from_hours(7 * 24);

/// What somebody says.
#[derive(Debug, Clone, Copy)]
pub struct Answer {
    pub real: bool,
    /// Who.
    pub user: Uuid,
    pub now: Timestamp,
    /// The gateway does not take it any more.
    pub expires_at: Timestamp,
}

/// An anomaly that is to be labelled.
struct Subject {
    id: Uuid,
    site: Uuid,
    gateway: Uuid,
    /// The gateway's name for it.
    machine: String,
    opened_at: Timestamp,
    real: Option<bool>,
    /// Its gateway was told what `real` says, or is about to be.
    told: bool,
}

const SUBJECT: &str = "
    SELECT a.id, m.site_id, m.gateway_id, m.name, a.opened_at, a.labelled_real,
           coalesce(c.gateway_id = m.gateway_id AND c.state IN ('waiting', 'done'), false)
    FROM anomalies a JOIN machines m ON m.id = a.machine_id
    LEFT JOIN commands c ON c.gateway_id = a.label_gateway_id AND c.number = a.label_number";

fn subject(row: &Row) -> Result<Subject, StoreError> {
    Ok(Subject {
        id: row.try_get(0)?,
        site: row.try_get(1)?,
        gateway: row.try_get(2)?,
        machine: row.try_get(3)?,
        opened_at: row.try_get(4)?,
        real: row.try_get(5)?,
        told: row.try_get(6)?,
    })
}

/// Labels the anomalies behind an incident's alarms; those that are labelled so already, and whose gateways know or will, are left
/// as they are. A gateway that cannot be told (it is not enrolled any more, or too much waits for it) keeps no label from being
/// written. The anomalies that changed.
///
/// # Errors
/// If the database is away.
pub async fn of_incident(
    transaction: &Transaction<'_>,
    incident: Uuid,
    answer: Answer,
    by: &By,
) -> Result<Vec<(Uuid, Uuid)>, StoreError> {
    let select = transaction
        .prepare_cached(&format!(
            "{SUBJECT} WHERE a.id IN (SELECT anomaly_id FROM alarms WHERE incident_id = $1)
             ORDER BY m.gateway_id, a.id FOR UPDATE OF a"
        ))
        .await?;
    let mut changed = Vec::new();
    for row in transaction.query(&select, &[&incident]).await? {
        let subject = subject(&row)?;
        if subject.real == Some(answer.real) && subject.told {
            continue;
        }
        let given = tell(transaction, &subject, answer, by).await?;
        if !matches!(given, Given::Number(_)) {
            tracing::warn!(anomaly = %subject.id, gateway = %subject.gateway, ?given, "a gateway is not told of a label");
        }
        write(transaction, &subject, answer, given, by).await?;
        changed.push((subject.id, subject.gateway));
    }
    Ok(changed)
}

/// Labels an anomaly of this gateway, and tells it; `None` if it has none of this id. Nothing is written where it cannot be told.
///
/// # Errors
/// If the database is away.
pub async fn one(
    transaction: &Transaction<'_>,
    gateway: Uuid,
    anomaly: Uuid,
    answer: Answer,
    by: &By,
) -> Result<Option<Given>, StoreError> {
    let sql = format!("{SUBJECT} WHERE a.id = $1 AND m.gateway_id = $2 FOR UPDATE OF a");
    let row = transaction.query_opt(&sql, &[&anomaly, &gateway]).await?;
    let Some(subject) = row.as_ref().map(subject).transpose()? else { return Ok(None) };
    let given = tell(transaction, &subject, answer, by).await?;
    if matches!(given, Given::Number(_)) {
        write(transaction, &subject, answer, given, by).await?;
    }
    Ok(Some(given))
}

async fn tell(transaction: &Transaction<'_>, subject: &Subject, answer: Answer, by: &By) -> Result<Given, StoreError> {
    // Intake takes no other names.
    let Ok(machine) = MachineId::new(&subject.machine) else { return Ok(Given::NoSuchGateway) };
    let new = NewCommand {
        gateway: subject.gateway,
        kind: CommandKind::LabelAnomaly { machine, opened: clock::to_wire(subject.opened_at), real: answer.real },
        by: answer.user,
        now: answer.now,
        expires_at: answer.expires_at,
    };
    commands::give(transaction, &new, by).await
}

async fn write(
    transaction: &Transaction<'_>,
    subject: &Subject,
    answer: Answer,
    given: Given,
    by: &By,
) -> Result<(), StoreError> {
    let number = if let Given::Number(number) = given { Some(number) } else { None };
    let update = transaction
        .prepare_cached(
            "UPDATE anomalies SET labelled_real = $2, labelled_at = $3, labelled_by = $4, label_gateway_id = $5, label_number = $6
             WHERE id = $1",
        )
        .await?;
    let gateway = number.map(|_| subject.gateway);
    transaction.execute(&update, &[&subject.id, &answer.real, &answer.now, &answer.user, &gateway, &number]).await?;
    let change = Change {
        action: "anomaly.label",
        object: "anomaly",
        id: &subject.id.to_string(),
        site: Some(subject.site),
        before: json!({"real": subject.real}),
        after: json!({"real": answer.real}),
    };
    audit::write(transaction, by, &change, answer.now).await
}

/// The anomalies behind an incident's alarms, the newest first, and what was said of them.
///
/// # Errors
/// If the database is away.
pub async fn list(transaction: &Transaction<'_>, incident: Uuid) -> Result<Vec<AnomalyLabel>, StoreError> {
    let select = transaction
        .prepare_cached(
            "SELECT a.id, shown.id, coalesce(shown.display_name, shown.name), a.opened_at, a.labelled_real, a.labelled_at, u.name,
                    a.label_gateway_id, a.label_number, c.state, c.result
             FROM anomalies a JOIN machines m ON m.id = a.machine_id
             JOIN machines shown ON shown.id = coalesce(m.merged_into, m.id)
             LEFT JOIN users u ON u.id = a.labelled_by
             LEFT JOIN commands c ON c.gateway_id = a.label_gateway_id AND c.number = a.label_number
             WHERE a.id IN (SELECT anomaly_id FROM alarms WHERE incident_id = $1)
             ORDER BY a.opened_at DESC, a.id DESC",
        )
        .await?;
    let label = |row: &Row| {
        Ok(AnomalyLabel {
            anomaly_id: row.try_get(0)?,
            machine_id: row.try_get(1)?,
            machine_name: row.try_get(2)?,
            opened_at: row.try_get(3)?,
            real: row.try_get(4)?,
            labelled_at: row.try_get(5)?,
            labelled_by: row.try_get(6)?,
            gateway_id: row.try_get(7)?,
            command: row.try_get(8)?,
            command_state: row.try_get::<_, Option<&str>>(9)?.map(state),
            command_result: row.try_get(10)?,
        })
    };
    transaction.query(&select, &[&incident]).await?.iter().map(label).collect()
}
