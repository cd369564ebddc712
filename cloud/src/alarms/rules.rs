//! Rules that need no model: a limit, a rate of change, no data; for a duration, in a schedule.
//!
//! A rule is a small machine that goes on with each interval of its sensor:
//!
//! ```text
//! normal ──breach──► pending ──held for the on-delay──► active ──clear──► clearing ──held for the off-delay──► normal
//!    ▲                  │clear                             ▲                 │breach
//!    └──────────────────┘                                  └─────────────────┘
//! ```
//!
//! Between a limit and its dead-band nothing changes: what was breached stays so. Time is the data's own: a backlog is judged as
//! if it had come in time, and what it raises is history. A delay that has begun is forgotten over a hole in the data of more
//! than [`GAP_INTERVALS`] intervals: nobody knows what was in it.

use jiff::{SignedDuration, Timestamp, tz::TimeZone};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::Severity;

/// Intervals without data after which what was before says nothing of what is now.
pub const GAP_INTERVALS: i32 = 3;
/// The longest delay, seconds.
pub const DELAY_S_MAX: i32 = 7 * 24 * 3_600;

/// What a rule looks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RuleKind {
    /// Above the threshold.
    High,
    /// Below the threshold.
    Low,
    /// Changing by more than the threshold a minute, up or down.
    Rate,
    /// Nothing measured.
    NoData,
}

impl RuleKind {
    /// As the database spells it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::High => "high",
            Self::Low => "low",
            Self::Rate => "rate",
            Self::NoData => "no_data",
        }
    }
}

/// Which figure of an interval is looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Figure {
    #[default]
    Mean,
    /// A single reading below is enough.
    Min,
    /// A single reading above is enough.
    Max,
    Last,
}

impl Figure {
    /// As the database spells it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Mean => "mean",
            Self::Min => "min",
            Self::Max => "max",
            Self::Last => "last",
        }
    }
}

/// Days of the week and a time of the day, by the clocks of the site.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// The sum of 1 (Monday), 2, 4, 8, 16, 32 and 64 (Sunday).
    #[schema(minimum = 1, maximum = 127)]
    pub days: i16,
    /// Minutes since midnight.
    #[schema(minimum = 0, maximum = 1_439)]
    pub from_min: i16,
    /// Minutes since midnight, exclusive; not behind `from_min`: of the next day.
    #[schema(minimum = 1, maximum = 1_440)]
    pub to_min: i16,
}

impl Schedule {
    /// Whether a moment lies in it. A stretch over midnight belongs to the day on which it begins.
    #[must_use]
    pub fn holds(self, at: Timestamp, zone: &TimeZone) -> bool {
        let local = at.to_zoned(zone.clone());
        let minute = i16::from(local.hour()) * 60 + i16::from(local.minute());
        let today = local.weekday().to_monday_zero_offset();
        let on = |day: i8| self.days & (1 << day.rem_euclid(7)) != 0;
        if self.from_min < self.to_min {
            return on(today) && (self.from_min..self.to_min).contains(&minute);
        }
        (on(today) && minute >= self.from_min) || (on(today - 1) && minute < self.to_min)
    }
}

/// A rule as it is judged.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    pub id: Uuid,
    /// The machine as it is shown: parts that were merged into it count as it.
    pub machine: Uuid,
    pub name: String,
    /// `None`: the whole machine; of `NoData` only.
    pub sensor: Option<String>,
    pub kind: RuleKind,
    pub figure: Figure,
    /// In the sensor's unit (a rate: in it a minute); of no use to `NoData`.
    pub threshold: f64,
    /// How far behind the threshold a value must be to count as clear.
    pub dead_band: f64,
    pub on_delay: SignedDuration,
    pub off_delay: SignedDuration,
    pub severity: Severity,
    pub schedule: Option<Schedule>,
    /// Judged only while the machine runs.
    pub only_running: bool,
}

/// Where a rule is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    #[default]
    Normal,
    Pending,
    Active,
    Clearing,
}

impl Phase {
    /// As the database spells it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::Pending => "pending",
            Self::Active => "active",
            Self::Clearing => "clearing",
        }
    }
}

/// What is kept of a rule between intervals.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct State {
    pub phase: Phase,
    /// When what a delay counts from began.
    pub since: Option<Timestamp>,
    /// An alarm was raised that people see.
    pub told: bool,
    /// The end of the last interval.
    pub last_at: Option<Timestamp>,
    /// What was measured in it.
    pub last_value: Option<f64>,
}

/// An interval of a rule's sensor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    pub start: Timestamp,
    pub interval_ms: i32,
    /// The rule's figure; `None` where nothing good was measured.
    pub value: Option<f64>,
    pub running: bool,
    /// It came so late that it is history.
    pub late: bool,
}

/// What is to be done about an alarm.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Effect {
    /// `value` is what was measured: NaN for no data.
    Raise {
        at: Timestamp,
        value: f64,
    },
    /// It was so, and nobody is to be told.
    History {
        at: Timestamp,
        value: f64,
    },
    Return {
        at: Timestamp,
    },
}

/// What a rule says to an interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Breach,
    Clear,
    /// In the dead-band, or not known.
    Between,
    /// Not judged at this time.
    Off,
}

impl Rule {
    /// Goes on by an interval; one that is not behind the last one says nothing.
    #[must_use]
    pub fn step(&self, mut state: State, sample: &Sample, zone: &TimeZone) -> (State, Option<Effect>) {
        let length = SignedDuration::from_millis(i64::from(sample.interval_ms));
        let end = sample.start.saturating_add(length).unwrap_or(sample.start);
        if state.last_at.is_some_and(|last| end <= last) {
            return (state, None);
        }
        let gap = state.last_at.is_some_and(|last| sample.start.duration_since(last) > length * GAP_INTERVALS);
        if gap {
            match state.phase {
                Phase::Pending => state = State { phase: Phase::Normal, since: None, ..state },
                Phase::Clearing => state = State { phase: Phase::Active, since: None, ..state },
                Phase::Normal | Phase::Active => {}
            }
        }
        let verdict = self.verdict(&state, sample, length, gap, zone);
        let (state, effect) = self.turn(state, sample, end, verdict);
        (State { last_at: Some(end), last_value: sample.value, ..state }, effect)
    }

    fn verdict(&self, state: &State, sample: &Sample, length: SignedDuration, gap: bool, zone: &TimeZone) -> Verdict {
        let scheduled = self.schedule.is_none_or(|schedule| schedule.holds(sample.start, zone));
        if !scheduled || (self.only_running && !sample.running) {
            return Verdict::Off;
        }
        // How far beyond the threshold the figure is; less than nothing behind it.
        let beyond = match (self.kind, sample.value) {
            (RuleKind::NoData, None) => return Verdict::Breach,
            (RuleKind::NoData, Some(_)) => return Verdict::Clear,
            (_, None) => None,
            (RuleKind::High, Some(value)) => Some(value - self.threshold),
            (RuleKind::Low, Some(value)) => Some(self.threshold - value),
            (RuleKind::Rate, Some(value)) => {
                state.last_value.zip(state.last_at).filter(|_| !gap).map(|(before, last)| {
                    // From the end of one interval to that of the next.
                    let minutes = (sample.start.duration_since(last) + length).as_secs_f64() / 60.0;
                    (value - before).abs() / minutes - self.threshold
                })
            }
        };
        match beyond {
            Some(beyond) if beyond > 0.0 => Verdict::Breach,
            Some(beyond) if beyond < -self.dead_band || self.dead_band == 0.0 => Verdict::Clear,
            _ => Verdict::Between,
        }
    }

    fn turn(&self, state: State, sample: &Sample, end: Timestamp, verdict: Verdict) -> (State, Option<Effect>) {
        let value = sample.value.unwrap_or(f64::NAN);
        let calm = State { phase: Phase::Normal, since: None, told: false, ..state };
        let over = |at| state.told.then_some(Effect::Return { at });
        match (state.phase, verdict) {
            (Phase::Normal | Phase::Pending, Verdict::Breach) => {
                let since = state.since.filter(|_| state.phase == Phase::Pending).unwrap_or(sample.start);
                if end.duration_since(since) < self.on_delay {
                    return (State { phase: Phase::Pending, since: Some(since), ..state }, None);
                }
                let at = since.saturating_add(self.on_delay).unwrap_or(since);
                let active = State { phase: Phase::Active, since: None, told: !sample.late, ..state };
                (active, Some(if sample.late { Effect::History { at, value } } else { Effect::Raise { at, value } }))
            }
            (Phase::Pending, Verdict::Between) if sample.value.is_none() => (state, None),
            (Phase::Normal | Phase::Pending, _) => (calm, None),
            // It began too long ago to tell anybody, and goes on: what came in time is told.
            (Phase::Active | Phase::Clearing, Verdict::Breach) if !state.told && !sample.late => {
                let active = State { phase: Phase::Active, since: None, told: true, ..state };
                (active, Some(Effect::Raise { at: sample.start, value }))
            }
            (Phase::Active | Phase::Clearing, Verdict::Breach) => {
                (State { phase: Phase::Active, since: None, ..state }, None)
            }
            (Phase::Active, Verdict::Between) => (state, None),
            (Phase::Active | Phase::Clearing, Verdict::Off) => (calm, over(sample.start)),
            (Phase::Active | Phase::Clearing, Verdict::Clear | Verdict::Between) => {
                let since = state.since.filter(|_| state.phase == Phase::Clearing).unwrap_or(sample.start);
                if end.duration_since(since) < self.off_delay {
                    return (State { phase: Phase::Clearing, since: Some(since), ..state }, None);
                }
                (calm, over(since.saturating_add(self.off_delay).unwrap_or(since)))
            }
        }
    }

    /// The alarm's condition.
    #[must_use]
    pub fn condition(&self) -> String {
        condition(self.id)
    }

    /// What the alarm says.
    #[must_use]
    pub fn message(&self, value: f64) -> String {
        let name = &self.name;
        let sensor = self.sensor.as_deref().unwrap_or_default();
        let threshold = short(self.threshold);
        match self.kind {
            RuleKind::High => format!("{name}: {sensor} is {}, above {threshold}", short(value)),
            RuleKind::Low => format!("{name}: {sensor} is {}, below {threshold}", short(value)),
            RuleKind::Rate => {
                format!("{name}: {sensor} is {}, changing by more than {threshold} a minute", short(value))
            }
            RuleKind::NoData if sensor.is_empty() => format!("{name}: the machine sends nothing"),
            RuleKind::NoData => format!("{name}: {sensor} sends nothing"),
        }
    }
}

/// The condition of a rule's alarms.
#[must_use]
pub fn condition(rule: Uuid) -> String {
    format!("rule:{rule}")
}

/// A number as people write it: four figures or so.
fn short(value: f64) -> String {
    if value == 0.0 || !value.is_finite() {
        return if value.is_finite() { "0".into() } else { "not measured".into() };
    }
    let places = (3 - value.abs().log10().floor() as i32).clamp(0, 6);
    let text = format!("{value:.*}", usize::try_from(places).unwrap_or(0));
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

#[cfg(test)]
mod tests;
