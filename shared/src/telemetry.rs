//! What a gateway knows of its machines: catalogs, summaries of intervals, events.
//!
//! Sensors are named once, in a machine's [`Catalog`]; everything else speaks of them by their position in
//! it. A catalog is only ever appended to, so a position never changes its meaning.
//!
//! Enums are append-only: postcard writes a variant as its number.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::{MachineId, SensorId};

/// The most sensors one machine may have.
pub const SENSORS_MAX: usize = 256;
/// The most sensors whose raw values an event carries (those with the largest shares).
pub const WINDOW_SENSORS_MAX: usize = 12;
/// The most steps of raw values that an event carries.
pub const WINDOW_STEPS_MAX: usize = 60;

/// A moment: microseconds since 1970-01-01 00:00 UTC, leap seconds not counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Timestamp(pub i64);

impl Timestamp {
    #[must_use]
    pub const fn from_millis(ms: i64) -> Self {
        Self(ms.saturating_mul(1_000))
    }

    #[must_use]
    pub const fn as_millis(self) -> i64 {
        self.0.div_euclid(1_000)
    }

    /// This moment and `us` microseconds.
    #[must_use]
    pub const fn plus_us(self, us: i64) -> Self {
        Self(self.0.saturating_add(us))
    }

    /// Microseconds from `earlier` to this moment; negative if `earlier` is the later one.
    #[must_use]
    pub const fn us_since(self, earlier: Self) -> i64 {
        self.0.saturating_sub(earlier.0)
    }

    /// The latest multiple of `period_us` since 1970 that is not after this moment.
    #[must_use]
    pub const fn floor(self, period_us: i64) -> Self {
        Self(self.0.div_euclid(period_us).saturating_mul(period_us))
    }
}

/// How far a sensor's figures may be believed (OPC UA's good, uncertain, bad, with the usual reasons).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Quality {
    /// Measured in this interval.
    Good,
    /// Nothing measured in this interval; the last value still holds.
    Held,
    /// Nothing measured for longer than a value may be held.
    Missing,
    /// Measured, and known to be wrong (frozen, out of range).
    Faulty,
}

/// One sensor over one interval. Absent figures are `None` in the list that holds this.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct SensorSummary {
    /// Readings in the interval.
    pub count: u32,
    pub min: f64,
    pub max: f64,
    /// Arithmetic mean of the readings.
    pub mean: f64,
    /// Standard deviation of the readings as a population (divided by `count`).
    pub sd: f64,
    /// The reading with the latest time.
    pub last: f64,
    pub quality: Quality,
}

/// What a machine is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Mode {
    Unknown,
    Off,
    Idle,
    Running,
}

/// What the detector is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum DetectorState {
    /// It learns what is normal, and judges nothing.
    Calibrating {
        percent: u8,
    },
    Watching,
    Anomalous,
    /// It cannot judge: too few usable sensors.
    Blind,
    /// Calibration refused what it saw, and goes on with newer values.
    Uncalibrated {
        reason: Uncalibrated,
    },
}

/// Why calibration refused what it saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Uncalibrated {
    /// Too few sensors moved, or had values, to judge by.
    TooFew { constant: u16, missing: u16, of: u16 },
    /// The machine changed from one state to another, so that nothing was usual.
    Unsteady { sensors: u16, of: u16 },
}

/// For people.
impl fmt::Display for Uncalibrated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooFew { constant, missing, of } => {
                write!(f, "of {of} channels, {constant} constant and {missing} mostly without values")
            }
            Self::Unsteady { sensors, of } => {
                write!(f, "{sensors} of {of} channels changed from one level to another meanwhile")
            }
        }
    }
}

/// How long a machine has until its health is 0 %, if its wear goes on as it did: seconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Remaining {
    pub likely_s: f32,
    /// Four times out of five it is between these two.
    pub low_s: f32,
    pub high_s: f32,
}

/// What the detector says of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    pub detector: DetectorState,
    /// The largest score since the last verdict; 1.0 is the threshold. `None` while nothing is judged.
    pub score: Option<f32>,
    /// 0 (worst) to 100. `None` while nothing is judged.
    pub health_percent: Option<f32>,
    pub mode: Mode,
    /// `None` without a trend.
    pub remaining: Option<Remaining>,
}

/// Whether the times in a record were read from a clock that was known to be right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Clock {
    Trusted,
    /// Nobody knew whether the gateway's clock was right; times of arrival are a guess, times of a device are the device's.
    Untrusted,
    /// Read before the gateway's clock was right, and put right by what was known later.
    Corrected,
    /// Times count from the gateway's start of this number. They are made real ones when they are sent: no such record leaves a gateway.
    SinceBoot {
        boot: u64,
    },
}

/// One machine over one interval.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    pub machine: MachineId,
    /// The interval's start; it ends `interval_ms` later, exclusive.
    pub start: Timestamp,
    pub interval_ms: u32,
    pub catalog_revision: u32,
    /// By position in the catalog; `None` for a sensor without a value. May be shorter than the catalog.
    pub sensors: Vec<Option<SensorSummary>>,
    pub verdict: Verdict,
    /// Energy drawn in the interval, watt-hours, where the machine has a power sensor.
    pub energy_wh: Option<f64>,
    pub clock: Clock,
}

/// A machine's sensors. A new revision only ever adds at the end of `sensors`, or changes units.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Catalog {
    pub machine: MachineId,
    /// Counts up from 1.
    pub revision: u32,
    /// The detector's sampling period.
    pub step_ms: u32,
    /// The summary's period.
    pub interval_ms: u32,
    pub sensors: Vec<Sensor>,
    /// The model that judges the machine: its name and version.
    pub model: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sensor {
    pub id: SensorId,
    /// A UCUM unit code, as configured (`A`, `bar`, `Cel`).
    pub unit: Option<String>,
}

/// The raw values before and at an event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RawWindow {
    pub step_ms: u32,
    /// The time of the first row.
    pub first: Timestamp,
    /// The catalog positions of the columns, by falling share.
    pub sensors: Vec<u16>,
    /// Row after row (a row a step), a value for each of `sensors`; NaN where there was none.
    pub values: Vec<f32>,
}

/// An anomaly of one machine. `(machine, opened)` is its identity.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Anomaly {
    pub opened: Timestamp,
    /// The score at this event; 1.0 is the threshold.
    pub score: f32,
    /// The largest score since it opened.
    pub score_max: f32,
    /// The threshold in the model's own terms.
    pub threshold: f32,
    /// Which sensors drove it, by position in the catalog; they sum to one.
    pub shares: Vec<f32>,
    /// The model that judged: its name and version.
    pub model: String,
    pub window: Option<RawWindow>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum SensorFaultKind {
    /// The same value for far longer than this sensor ever held one.
    Frozen,
    /// No value for longer than one may be held.
    Missing,
    /// At the end of its range.
    Saturated,
    Drifting,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct SensorFault {
    /// Position in the catalog.
    pub sensor: u16,
    pub kind: SensorFaultKind,
    pub since: Timestamp,
    /// False when the fault is over.
    pub active: bool,
}

/// A machine that has been steady for long at another level than it was calibrated at: is this its new normal?
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NormalShift {
    /// When the anomaly opened of which it came.
    pub since: Timestamp,
    /// Which sensors stand elsewhere, by position in the catalog; they sum to one.
    pub shares: Vec<f32>,
    /// False when the question is settled: it was accepted, or the machine is back.
    pub active: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum EventKind {
    AnomalyOpened(Anomaly),
    AnomalyUpdated(Anomaly),
    AnomalyClosed(Anomaly),
    SensorFault(SensorFault),
    NormalShifted(NormalShift),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    pub machine: MachineId,
    /// Event time: when it happened at the machine.
    pub at: Timestamp,
    pub catalog_revision: u32,
    pub clock: Clock,
    pub kind: EventKind,
}

/// Why records of a lane will never come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum GapReason {
    /// The outbox was full to its budget.
    OverBudget,
    /// The disk was full.
    DiskFull,
    /// A damaged part of the outbox was set aside.
    Damaged,
    /// The cloud refused the record for good; it lies in the dead letters.
    Refused,
    /// For want of room their summaries went into coarser ones.
    Thinned,
}

/// Records `first..=last` of a lane that will never come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    pub first: u64,
    pub last: u64,
    /// How many records of the range are gone.
    pub count: u64,
    pub reason: GapReason,
}

/// What travels in a lane and is delivered once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Record {
    Catalog(Catalog),
    Summary(Summary),
    Event(Event),
    Gap(Gap),
}

impl Record {
    /// Tells this record from another in its place: CRC-32C of its encoding. Times by a clock that was not right are left out: a
    /// gateway puts them right as it sends a record, and may know better the next time.
    #[must_use]
    pub fn digest(&self) -> u32 {
        let mut this = self.clone();
        match &mut this {
            Self::Summary(Summary { clock, start, .. }) if *clock != Clock::Trusted => {
                (*clock, *start) = (Clock::Untrusted, Timestamp(0));
            }
            Self::Event(Event { clock, at, kind, .. }) if *clock != Clock::Trusted => {
                (*clock, *at) = (Clock::Untrusted, Timestamp(0));
                match kind {
                    EventKind::AnomalyOpened(a) | EventKind::AnomalyUpdated(a) | EventKind::AnomalyClosed(a) => {
                        a.opened = Timestamp(0);
                        a.window = None;
                    }
                    EventKind::SensorFault(fault) => fault.since = Timestamp(0),
                    EventKind::NormalShifted(shift) => shift.since = Timestamp(0),
                }
            }
            _ => {}
        }
        // What could not be encoded would never have been sent.
        postcard::to_stdvec(&this).map_or(0, |bytes| crc32c::crc32c(&bytes))
    }
}
