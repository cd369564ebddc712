//! The rules of alarms, after ISA-18.2: what raises one, how grave it is, how it ends.
//!
//! One alarm of a condition of a machine is active at a time. An alarm that is over and was seen is `normal`; one
//! that is over and was not seen stays on the list until somebody acknowledges it.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The machine does not behave as it did.
pub const ANOMALY: &str = "anomaly";
/// It has been steady for long at another level than it was calibrated at.
pub const NORMAL_SHIFTED: &str = "normal_shifted";
/// Nothing was heard of the gateway.
pub const GATEWAY_OFFLINE: &str = "gateway_offline";
/// Scores (1.0 is the threshold) from which an anomaly is graver than low.
const MEDIUM: f32 = 1.5;
const HIGH: f32 = 2.5;
const CRITICAL: f32 = 5.0;
/// Sensors that an alarm's message names, and the least share that makes one worth naming.
const NAMED_MAX: usize = 3;
const NAMED_SHARE_MIN: f32 = 0.1;

/// Where an alarm is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AlarmState {
    /// Active, and nobody has said that they saw it.
    Unacknowledged,
    /// Active and seen.
    Acknowledged,
    /// Over before anybody saw it.
    ReturnedUnacknowledged,
    /// Over; history.
    Normal,
}

impl AlarmState {
    /// As the database spells it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unacknowledged => "unacknowledged",
            Self::Acknowledged => "acknowledged",
            Self::ReturnedUnacknowledged => "returned_unacknowledged",
            Self::Normal => "normal",
        }
    }

    /// The state after an acknowledgement: the same when it was acknowledged before, `None` when there is nothing
    /// to acknowledge any more.
    #[must_use]
    pub const fn acknowledged(self) -> Option<Self> {
        match self {
            Self::Unacknowledged | Self::Acknowledged => Some(Self::Acknowledged),
            Self::ReturnedUnacknowledged => Some(Self::Normal),
            Self::Normal => None,
        }
    }

    /// The state when the condition is over.
    #[must_use]
    pub const fn returned(self) -> Self {
        match self {
            Self::Unacknowledged | Self::ReturnedUnacknowledged => Self::ReturnedUnacknowledged,
            Self::Acknowledged | Self::Normal => Self::Normal,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    Low,
    Medium,
    High,
    Critical,
}

impl Severity {
    /// As the database spells it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
            Self::Critical => "critical",
        }
    }

    /// Of an anomaly, by its largest score so far.
    #[must_use]
    pub fn of_score(score_max: f32) -> Self {
        match score_max {
            score if score >= CRITICAL => Self::Critical,
            score if score >= HIGH => Self::High,
            score if score >= MEDIUM => Self::Medium,
            _ => Self::Low,
        }
    }
}

/// Whether news of `at` that arrives `now` is history, which pages nobody.
#[must_use]
pub fn is_late(at: Timestamp, now: Timestamp, late_after: SignedDuration) -> bool {
    now.duration_since(at) > late_after
}

/// The condition of a faulty sensor.
#[must_use]
pub fn sensor_fault(sensor: &str) -> String {
    format!("sensor_fault:{sensor}")
}

/// What an anomaly's alarm says: the sensors that drove it, by falling share. `name` gives a position's name.
#[must_use]
pub fn anomaly_message<'a>(shares: &[f32], name: impl Fn(usize) -> Option<&'a str>) -> String {
    let named = named(shares, name);
    if named.is_empty() {
        "It does not behave as it did".into()
    } else {
        format!("It does not behave as it did: {named}")
    }
}

/// What is asked of a machine that stays at another level.
#[must_use]
pub fn shift_message<'a>(shares: &[f32], name: impl Fn(usize) -> Option<&'a str>) -> String {
    let named = named(shares, name);
    let of = if named.is_empty() { String::new() } else { format!(" ({named})") };
    format!("It is steady at another level{of}. New normal? Accept it, or have the cause removed")
}

/// The sensors that matter, by falling share.
fn named<'a>(shares: &[f32], name: impl Fn(usize) -> Option<&'a str>) -> String {
    let mut order: Vec<usize> = (0..shares.len()).filter(|i| shares[*i] >= NAMED_SHARE_MIN).collect();
    order.sort_by(|a, b| shares[*b].total_cmp(&shares[*a]));
    let named: Vec<String> = order
        .into_iter()
        .filter_map(|i| Some(format!("{} {:.0} %", name(i)?, shares[i] * 100.0)))
        .take(NAMED_MAX)
        .collect();
    named.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alarm_ends_when_it_is_over_and_seen() {
        use AlarmState::{Acknowledged, Normal, ReturnedUnacknowledged, Unacknowledged};
        for (state, acknowledged, returned) in [
            (Unacknowledged, Some(Acknowledged), ReturnedUnacknowledged),
            (Acknowledged, Some(Acknowledged), Normal),
            (ReturnedUnacknowledged, Some(Normal), ReturnedUnacknowledged),
            (Normal, None, Normal),
        ] {
            assert_eq!((state.acknowledged(), state.returned()), (acknowledged, returned), "{state:?}");
        }
    }

    #[test]
    fn a_higher_score_is_graver() {
        for (score, severity) in [
            (1.0, Severity::Low),
            (1.5, Severity::Medium),
            (2.5, Severity::High),
            (5.0, Severity::Critical),
            (f32::INFINITY, Severity::Critical),
            (f32::NAN, Severity::Low),
        ] {
            assert_eq!(Severity::of_score(score), severity, "{score}");
        }
    }

    #[test]
    fn a_message_names_the_sensors_that_matter() {
        let names = ["a", "b", "c", "d"];
        let name = |i: usize| names.get(i).copied();
        assert_eq!(anomaly_message(&[0.05, 0.6, 0.35], name), "It does not behave as it did: b 60 %, c 35 %");
        assert_eq!(anomaly_message(&[0.0; 9], name), "It does not behave as it did");
    }
}
