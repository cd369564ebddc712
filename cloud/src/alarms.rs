//! The rules of alarms, after ISA-18.2: what raises one, how grave it is, how it ends.
//!
//! One alarm of a condition of a machine is open at a time. An alarm that is over and was seen is `normal`; one
//! that is over and was not seen stays on the list until somebody acknowledges it, or until the condition is there again and
//! the new alarm asks for it. What holds alarms back, and which change is allowed when, is [`standing`].

pub mod quality;
pub mod rules;
pub mod standing;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use standing::{Action, AlarmState, ConditionState, Hold, Holds, Refused, Standing};

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
/// Raises of one condition within this time that make it a chattering one. ISA-18.2 names three within a minute as a
/// first pass; summaries that come every ten seconds hardly show that, so the time is the ten minutes that alarm rates
/// are counted in.
pub const CHATTER_WITHIN: SignedDuration = SignedDuration::from_mins(10);
pub const CHATTER_RAISES: i32 = 3;
/// An alarm that still stands after these times is a step graver each: after half a shift, and after a day, from which on
/// ISA-18.2 calls it stale.
pub const GRAVER_AFTER: [SignedDuration; 2] = [SignedDuration::from_hours(4), SignedDuration::from_hours(24)];
/// Sensors that an alarm's message names, and the least share that makes one worth naming.
const NAMED_MAX: usize = 3;
const NAMED_SHARE_MIN: f32 = 0.1;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    Low,
    Medium,
    High,
    Critical,
}

impl Severity {
    pub const ALL: [Self; 4] = [Self::Low, Self::Medium, Self::High, Self::Critical];

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

    /// So many steps graver (or less), within the four.
    #[must_use]
    pub fn stepped(self, steps: i32) -> Self {
        let place = (self as i32).saturating_add(steps).clamp(0, 3);
        Self::ALL[usize::try_from(place).unwrap_or(0)]
    }

    /// Of an alarm that by its score or rule alone is this grave, of such a machine, and that has stood for so long.
    #[must_use]
    pub fn weighed(self, criticality: Criticality, stood: SignedDuration) -> Self {
        let longer = GRAVER_AFTER.iter().filter(|after| stood >= **after).count();
        self.stepped(criticality.steps()).stepped(i32::try_from(longer).unwrap_or(0))
    }
}

/// How much the plant depends on a machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Criticality {
    /// There is another one, or nobody misses it for a while: its alarms are a step less grave.
    Low,
    #[default]
    Medium,
    /// The line or people's safety stands on it: its alarms are a step graver.
    High,
}

impl Criticality {
    /// As the database spells it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
        }
    }

    const fn steps(self) -> i32 {
        match self {
            Self::Low => -1,
            Self::Medium => 0,
            Self::High => 1,
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
    fn severity_is_weighed_by_the_machine_and_by_how_long_it_stands() {
        use Severity::{Critical, High, Low, Medium};
        for (base, criticality, hours, expected) in [
            (Medium, Criticality::Medium, 0, Medium),
            (Medium, Criticality::Low, 0, Low),
            (Medium, Criticality::High, 0, High),
            (Low, Criticality::Low, 0, Low),
            (Critical, Criticality::High, 0, Critical),
            (Low, Criticality::Medium, 3, Low),
            (Low, Criticality::Medium, 4, Medium),
            (Low, Criticality::Medium, 24, High),
            (Low, Criticality::Low, 24, High),
            (High, Criticality::High, 99, Critical),
        ] {
            assert_eq!(
                base.weighed(criticality, SignedDuration::from_hours(hours)),
                expected,
                "{base:?} {criticality:?} {hours} h"
            );
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
