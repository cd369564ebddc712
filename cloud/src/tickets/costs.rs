//! What work costs. Money is a whole number of the currency's minor unit (cents for EUR); nothing is computed in floating point.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The longest work in one line, minutes: a week.
pub const MINUTES_MAX: i32 = 7 * 24 * 60;
/// The greatest amount of one line, and the greatest rate: ten thousand million of a currency with cents. [`super::COSTS_MAX`] lines
/// of it stay below 2^53, which JavaScript counts exactly.
pub const AMOUNT_MAX: i64 = 1_000_000_000_000;
/// The longest estimate, minutes: about a year.
pub const ESTIMATE_MINUTES_MAX: i32 = 366 * 24 * 60;

/// What a line of cost is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CostKind {
    Labour,
    /// Spare parts and material.
    Part,
    Other,
}

impl CostKind {
    /// As the database spells it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Labour => "labour",
            Self::Part => "part",
            Self::Other => "other",
        }
    }
}

/// What so many minutes cost at a rate an hour, in the rate's unit; half a unit counts as a whole one. `None`: more than
/// [`AMOUNT_MAX`], or less than nothing.
#[must_use]
pub fn labour(minutes: i32, rate_minor: i64) -> Option<i64> {
    let whole = i128::from(minutes) * i128::from(rate_minor);
    let amount = i64::try_from((whole + 30).div_euclid(60)).ok()?;
    (0..=AMOUNT_MAX).contains(&amount).then_some(amount)
}

/// The code of a currency (ISO 4217): three capital letters. Which of them are in use changes, and is not asked.
#[must_use]
pub fn is_currency(code: &str) -> bool {
    code.len() == 3 && code.bytes().all(|byte| byte.is_ascii_uppercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labour_is_rounded_once_and_never_overflows() {
        for (minutes, rate, expected) in [
            (60, 4_500, Some(4_500)),
            (90, 4_500, Some(6_750)),
            (1, 4_500, Some(75)),
            (1, 29, Some(0)),
            (1, 30, Some(1)),
            (7, 4_499, Some(525)),
            (MINUTES_MAX, 0, Some(0)),
            (60, AMOUNT_MAX, Some(AMOUNT_MAX)),
            (61, AMOUNT_MAX, None),
            (i32::MAX, i64::MAX, None),
            (60, -1, None),
        ] {
            assert_eq!(labour(minutes, rate), expected, "{minutes} min at {rate}");
        }
        assert!(AMOUNT_MAX.checked_mul(super::super::COSTS_MAX as i64).is_some_and(|sum| sum < 1 << 53));
    }

    #[test]
    fn currencies() {
        for (code, good) in [("EUR", true), ("JPY", true), ("eur", false), ("EURO", false), ("€", false), ("", false)]
        {
            assert_eq!(is_currency(code), good, "{code}");
        }
    }
}
