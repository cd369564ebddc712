//! The one place of this daemon where the wall clock is read; everything else is handed `now`.

use gemba_shared::telemetry;
use jiff::Timestamp;

/// The present moment.
#[must_use]
#[allow(clippy::disallowed_methods, reason = "this is the place")]
pub fn now() -> Timestamp {
    Timestamp::now()
}

/// A moment in the contract's form.
#[must_use]
pub fn to_wire(at: Timestamp) -> telemetry::Timestamp {
    telemetry::Timestamp(at.as_microsecond())
}

/// A moment of the contract; `None` where it lies outside years -9999 to 9999.
#[must_use]
pub fn from_wire(at: telemetry::Timestamp) -> Option<Timestamp> {
    Timestamp::from_microsecond(at.0).ok()
}
