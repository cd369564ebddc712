//! The messages of both directions.
//!
//! Delivery: a gateway numbers the records of each lane from 1, without holes, within an *epoch* that is
//! drawn at random when its outbox is created. A [`Batch`] carries consecutive records; the cloud stores
//! them once and answers with a [`Receipt`]: everything of that lane through a number is in its database.
//! Only a receipt lets the gateway forget a record.

use serde::{Deserialize, Serialize};

use crate::{
    ids::MachineId,
    telemetry::{Catalog, Clock, Record, Timestamp, Verdict},
};

/// The most records in one batch.
pub const BATCH_RECORDS_MAX: usize = 1_024;
/// The largest record, encoded, in bytes.
pub const RECORD_BYTES_MAX: usize = 16 * 1_024;
/// The longest free text in a message, in bytes.
pub const TEXT_BYTES_MAX: usize = 1_024;
/// The longest report that answers a command, in bytes.
pub const REPORT_BYTES_MAX: usize = 64 * 1_024;

/// The life of one outbox; a new outbox draws a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Epoch(pub u64);

/// What is delivered in order, beside the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Lane {
    Events,
    Summaries,
}

impl Lane {
    pub const ALL: [Self; 2] = [Self::Events, Self::Summaries];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Events => "events",
            Self::Summaries => "summaries",
        }
    }
}

/// The place of a record: numbers count up from 1 within an epoch and a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Seq {
    pub epoch: Epoch,
    pub lane: Lane,
    pub number: u64,
}

/// Consecutive records of a lane; the first is `seq.number`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Batch {
    pub seq: Seq,
    /// The oldest number that the gateway still holds: what is missing below it will never come.
    pub oldest: u64,
    /// The digest of the record before the first, where the gateway still holds it ([`lane`](crate::lane) says what for).
    pub before: Option<u32>,
    pub records: Vec<Record>,
}

/// The present state of machines: freely dropped, never sequenced.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Live {
    /// The gateway's clock when it was sent.
    pub at: Timestamp,
    pub clock: Clock,
    pub machines: Vec<LiveMachine>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LiveMachine {
    pub machine: MachineId,
    /// The time of its latest reading.
    pub at: Timestamp,
    pub catalog_revision: u32,
    /// By position in the catalog.
    pub values: Vec<Option<f64>>,
    pub verdict: Verdict,
}

/// How a gateway is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub at: Timestamp,
    pub clock: Clock,
    pub version: String,
    pub uptime_s: u64,
    pub machines: u32,
    /// Records that wait for a receipt.
    pub backlog_records: u64,
    pub backlog_bytes: u64,
    /// Counters since the start, by reason: what was rejected or dropped.
    pub drops: Vec<Count>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    pub reason: String,
    pub count: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    Done,
    /// With what went wrong.
    Failed(String),
    Expired,
    /// This version of the gateway does not know the command.
    Unknown,
    /// Done, and this is what was asked for: at most [`REPORT_BYTES_MAX`] bytes.
    Told(String),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandResult {
    pub id: u64,
    pub at: Timestamp,
    pub outcome: Outcome,
}

/// What these machines' positions mean in an epoch: the answer to [`CatalogWanted`]. It belongs to no lane.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Catalogs {
    pub epoch: Epoch,
    pub catalogs: Vec<Catalog>,
}

/// From a gateway to the cloud.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Uplink {
    Batch(Batch),
    Live(Live),
    Status(Status),
    CommandResult(CommandResult),
    Catalogs(Catalogs),
}

/// Everything of a lane through a number is in the cloud's database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    pub epoch: Epoch,
    pub lane: Lane,
    pub through: u64,
    /// The cloud's clock: a gateway whose own clock is not trusted may take it.
    pub now: Timestamp,
    /// [`Record::digest`] of the record `through`, where it is stored. A gateway that has another record under
    /// this number is not the one that the receipt is for: an old copy of its data was put back, or there are two.
    pub tail: Option<u32>,
}

/// The cloud could read a record and will never take it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    pub seq: Seq,
    pub reason: String,
}

/// The cloud cannot take the record `seq` before it knows the catalog of its machine: it was set up anew, or went back
/// to an older copy of its database. Its lane waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CatalogWanted {
    pub seq: Seq,
    pub machine: MachineId,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum CommandKind {
    /// Learn anew what is normal.
    Recalibrate {
        machine: MachineId,
    },
    /// What the detector sees now is normal from now on.
    AcceptNewNormal {
        machine: MachineId,
    },
    /// Whether an anomaly was one.
    LabelAnomaly {
        machine: MachineId,
        opened: Timestamp,
        real: bool,
    },
    /// Do not judge this machine until it is put back.
    OutOfService {
        machine: MachineId,
        out: bool,
    },
    Reload,
    SendDiagnostics,
}

/// Done once, and not after it expired.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// Counts up for each gateway.
    pub id: u64,
    pub expires: Timestamp,
    pub kind: CommandKind,
}

/// A file that the gateway should have, by its SHA-256.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artefact {
    pub name: String,
    pub sha256: [u8; 32],
}

/// What the cloud wants the gateway to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Desired {
    pub config: Option<Artefact>,
    pub model: Option<Artefact>,
}

/// From the cloud to a gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Downlink {
    Receipt(Receipt),
    Refused(Refused),
    Command(Command),
    Desired(Desired),
    CatalogWanted(CatalogWanted),
}

#[cfg(test)]
pub(crate) mod tests;
