//! What follows an attempt to deliver: sent, once more later, or given up.
//!
//! | attempt that failed | pause until the next |
//! |---|---|
//! | 1 | 5 s |
//! | 2 | 30 s |
//! | 3 | 2 min |
//! | 4 | 10 min |
//! | 5 | 30 min |
//! | 6 | 1 h |
//! | 7 | 2 h |
//! | 8 | 4 h |
//! | 9 | 8 h |
//! | 10 | given up, after about 16 h |
//!
//! Each pause is spread by a quarter to both sides, so that what failed together does not come together again.

use jiff::{SignedDuration, Timestamp};

/// Pauses after the first attempt, the second, and so on.
const PAUSES: [SignedDuration; 9] = [
    SignedDuration::from_secs(5),
    SignedDuration::from_secs(30),
    SignedDuration::from_mins(2),
    SignedDuration::from_mins(10),
    SignedDuration::from_mins(30),
    SignedDuration::from_hours(1),
    SignedDuration::from_hours(2),
    SignedDuration::from_hours(4),
    SignedDuration::from_hours(8),
];
/// Attempts until a delivery is given up.
pub const ATTEMPTS_MAX: i32 = PAUSES.len() as i32 + 1;
/// A receiver that asks for a longer pause (`Retry-After`) is given this one.
pub const ASKED_MAX: SignedDuration = SignedDuration::from_hours(1);
/// How much of an error is kept, in characters.
pub const ERROR_CHARS_MAX: usize = 500;

/// How an attempt went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The receiver took it.
    Sent { status: u16, reply: String },
    /// It may go better later.
    Failed { status: Option<u16>, error: String, retry_after: Option<SignedDuration> },
    /// It will not: the receiver said so, or it must not be sent.
    Refused { status: Option<u16>, error: String },
    /// HTTP's 410: the receiver wants no more, ever.
    Gone,
}

/// What becomes of the delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    Sent,
    Again(Timestamp),
    Dead,
}

/// `attempts` counts the one that just ended; `random` lies from 0 to 1.
#[must_use]
pub fn next(outcome: &Outcome, attempts: i32, random: f64, now: Timestamp) -> Next {
    let asked = match outcome {
        Outcome::Sent { .. } => return Next::Sent,
        Outcome::Refused { .. } | Outcome::Gone => return Next::Dead,
        Outcome::Failed { retry_after, .. } => retry_after.unwrap_or_default().min(ASKED_MAX),
    };
    let pause = usize::try_from(attempts - 1).ok().and_then(|failed| PAUSES.get(failed));
    let Some(pause) = pause else { return Next::Dead };
    let spread = pause.mul_f64(0.75 + 0.5 * random.clamp(0.0, 1.0));
    Next::Again(now.saturating_add(spread.max(asked)).unwrap_or(now))
}

/// A text of others, short enough to keep and without control characters.
#[must_use]
pub fn told(text: &str) -> String {
    let clean = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    clean.take(ERROR_CHARS_MAX).collect::<String>().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(retry_after: Option<i64>) -> Outcome {
        let retry_after = retry_after.map(SignedDuration::from_secs);
        Outcome::Failed { status: None, error: String::new(), retry_after }
    }

    #[test]
    fn pauses_grow_and_end() {
        let now = Timestamp::UNIX_EPOCH;
        let at = |s| Next::Again(Timestamp::from_second(s).unwrap());
        for (outcome, attempts, random, expected) in [
            (failed(None), 1, 0.5, at(5)),
            (failed(None), 2, 0.0, Next::Again(Timestamp::from_millisecond(22_500).unwrap())),
            (failed(None), 2, 1.0, Next::Again(Timestamp::from_millisecond(37_500).unwrap())),
            (failed(None), 9, 0.5, at(8 * 3_600)),
            (failed(None), 10, 0.5, Next::Dead),
            (failed(None), 11, 0.5, Next::Dead),
            (failed(Some(60)), 1, 0.5, at(60)),
            (failed(Some(1)), 1, 0.5, at(5)),
            (failed(Some(1_000_000)), 1, 0.5, at(3_600)),
            (Outcome::Sent { status: 200, reply: String::new() }, 1, 0.5, Next::Sent),
            (Outcome::Refused { status: Some(550), error: String::new() }, 1, 0.5, Next::Dead),
            (Outcome::Gone, 1, 0.5, Next::Dead),
        ] {
            assert_eq!(next(&outcome, attempts, random, now), expected, "{outcome:?} after {attempts}");
        }
        let most: SignedDuration = PAUSES.iter().sum();
        assert_eq!(most.as_hours(), 15);
    }

    #[test]
    fn what_others_say_is_kept_short_and_clean() {
        assert_eq!(told(" 550 no\r\nsuch\0user "), "550 no  such user");
        assert_eq!(told(&"ü".repeat(1_000)).chars().count(), ERROR_CHARS_MAX);
    }
}
