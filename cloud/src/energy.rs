//! Energy of machines, as the gateways measured it: a trapezoid over readings of power, without a guess where there were none.
//!
//! It is told for whole hours: a range is widened to them.

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    history::{HOUR_MS, ceil, floor},
    series::BadRange,
};

/// The longest range.
pub const RANGE_MAX: SignedDuration = SignedDuration::from_hours(24 * 3_660);
/// The range where none is asked for.
pub const RANGE_DEFAULT: SignedDuration = SignedDuration::from_hours(24 * 30);

/// Whole hours around a range.
///
/// # Errors
/// If the range is empty or too long.
pub fn hours(from: Timestamp, to: Timestamp) -> Result<(Timestamp, Timestamp), BadRange> {
    if to <= from {
        return Err(BadRange::Empty);
    }
    if to.duration_since(from) > RANGE_MAX {
        return Err(BadRange::TooLong);
    }
    Ok((floor(from, HOUR_MS), ceil(to, HOUR_MS)))
}

/// What a machine did in a range.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct MachineEnergy {
    pub machine: Uuid,
    pub name: String,
    pub display_name: Option<String>,
    /// `null` for a machine without a power sensor.
    pub energy_wh: Option<f64>,
    /// Hours of which something is known, and those of them in which it ran, idled, was off.
    pub known_h: f64,
    pub running_h: f64,
    pub idle_h: f64,
    pub off_h: f64,
    /// Hours in which it was anomalous.
    pub anomalous_h: f64,
    /// Its worst health.
    pub health_percent_min: Option<f32>,
    /// Its highest score.
    pub score_max: Option<f32>,
}

/// All machines of a range, by name.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Energy {
    /// Whole hours, UTC.
    pub from: Timestamp,
    pub to: Timestamp,
    /// Of all machines.
    pub energy_wh: f64,
    pub items: Vec<MachineEnergy>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_widened_to_hours() {
        let at = |text: &str| format!("2026-01-01T{text}Z").parse::<Timestamp>().unwrap();
        assert_eq!(hours(at("01:30"), at("02:00:00.000001")), Ok((at("01:00"), at("03:00"))));
        assert_eq!(hours(at("01:00"), at("02:00")), Ok((at("01:00"), at("02:00"))));
        assert_eq!(hours(at("01:00"), at("01:00")), Err(BadRange::Empty));
    }
}
