//! The rules of preventive maintenance: when a plan is due, and when it makes a ticket.
//!
//! A plan makes a ticket when its date is near, its machine has run for long enough, or its health has been too low for a time. While
//! the ticket is under way it makes no other; what falls due meanwhile is done with it.
//!
//! - **Calendar**: every so many days, weeks or months from `starts_on`, at a time of the day by the clocks of the site. Days are counted from
//!   `starts_on` and not from one another, so that the 31st stays the 31st where a month has it, and is the last day where not. Where
//!   clocks are set forward over the time, it is that much later; where they are set back over it, the first of the two. With
//!   `from_completion` days are counted from the day on which the ticket before was done.
//! - **Running hours**: since the ticket before was done. The day is estimated from the hours of the last [`RATE_DAYS`] days.
//! - **Health**: below a value without a break for a time. Where it is not known, nothing is counted.
//!
//! A ticket is made the *lead* ahead: hours of the calendar, or of running. After a ticket is over (done, closed or cancelled) dates
//! that lie before that day, or on it, have passed.

use jiff::{SignedDuration, Span, Timestamp, civil::Date, tz::TimeZone};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How many of its units lie between two dates, at most.
pub const EVERY_MAX: i16 = 1_000;
/// Hours of running, at most.
pub const EVERY_H_MAX: i32 = 100_000;
/// Health is too low for so long, seconds, at most.
pub const HEALTH_FOR_S_MAX: i32 = 30 * 24 * 3_600;
/// The longest lead, hours.
pub const LEAD_H_MAX: i32 = 366 * 24;
/// Plans of one machine.
pub const PLANS_MAX: i64 = 50;
/// Days of which the rate of running is taken.
pub const RATE_DAYS: i64 = 14;
/// Nothing is planned farther ahead.
const YEAR_MAX: i16 = 2_300;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = PlanUnit)]
pub enum Unit {
    Day,
    Week,
    Month,
}

impl Unit {
    /// As the database spells it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Day => "day",
            Self::Week => "week",
            Self::Month => "month",
        }
    }
}

/// By the clocks of the site.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = PlanCalendar)]
pub struct Calendar {
    #[schema(minimum = 1, maximum = 1_000)]
    pub every: i16,
    pub unit: Unit,
    /// The first date, from which all others are counted; it may lie in the past.
    #[schema(value_type = String, format = Date)]
    pub starts_on: Date,
    /// Minutes since midnight.
    #[serde(default)]
    #[schema(minimum = 0, maximum = 1_439)]
    pub at_min: i16,
    /// Count from the day on which the ticket before was done.
    #[serde(default)]
    pub from_completion: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = PlanRunning)]
pub struct Running {
    /// Hours in which the machine ran; of one without modes, hours in which it was heard.
    #[schema(minimum = 1, maximum = 100_000)]
    pub every_h: i32,
    /// From when on hours count, unless a ticket of the plan was done since; now, if not given.
    #[serde(default)]
    pub counted_from: Option<Timestamp>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = PlanHealth)]
pub struct Health {
    /// Percent.
    #[schema(exclusive_minimum = 0, maximum = 100)]
    pub below: f32,
    /// Seconds.
    #[schema(minimum = 0, maximum = 2_592_000)]
    pub for_s: i32,
}

/// What makes a plan due.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Trigger {
    Calendar(Calendar),
    Running(Running),
    Health(Health),
}

/// A plan's latest ticket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Last {
    /// The day for which it was made, if it was made for one.
    pub due_on: Option<Date>,
    /// When it was done, or cancelled; `None` while it is under way.
    pub ended_at: Option<Timestamp>,
}

/// What is known when a plan is looked at.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Standing {
    pub created_at: Timestamp,
    pub last: Option<Last>,
    /// Hours that the machine ran since they count, and a day on the average of late; 0 where nothing is known.
    pub ran_h: f64,
    pub ran_h_a_day: f64,
    /// `None`: not known now.
    pub health_percent: Option<f32>,
    pub below_since: Option<Timestamp>,
}

/// When a plan is due.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Due {
    /// `None`: not known, or not before the ticket that is under way is done.
    pub at: Option<Timestamp>,
    pub on: Option<Date>,
    /// Hours of running that are left; less than 0: it is overdue.
    pub left_h: Option<f64>,
}

/// What to do about a plan.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Turn {
    /// Nothing; since when its health has been too low.
    Wait { below_since: Option<Timestamp> },
    /// Its ticket is to be made: when it is to be done, and for which day.
    Make { due_at: Timestamp, due_on: Option<Date> },
}

impl Calendar {
    /// The date so many periods behind a day.
    fn behind(self, day: Date, periods: i64) -> Option<Date> {
        let count = periods.checked_mul(i64::from(self.every))?;
        let span = match self.unit {
            Unit::Day => Span::new().try_days(count),
            Unit::Week => Span::new().try_weeks(count),
            Unit::Month => Span::new().try_months(count),
        };
        day.checked_add(span.ok()?).ok().filter(|date| date.year() <= YEAR_MAX)
    }

    /// The first date that is not before `day`.
    #[must_use]
    pub fn from(self, day: Date) -> Option<Date> {
        if day <= self.starts_on {
            return Some(self.starts_on);
        }
        let days = i64::from((day - self.starts_on).get_days());
        let months =
            i64::from(day.year() - self.starts_on.year()) * 12 + i64::from(day.month() - self.starts_on.month());
        let period = i64::from(self.every).max(1);
        // One too few at most: a month may be shorter than the day of the first date.
        let at_least = match self.unit {
            Unit::Day => days / period,
            Unit::Week => days / (7 * period),
            Unit::Month => months / period,
        };
        (at_least..=at_least + 1).filter_map(|n| self.behind(self.starts_on, n)).find(|date| *date >= day)
    }

    /// The moment of a date.
    #[must_use]
    pub fn moment(self, date: Date, zone: &TimeZone) -> Option<Timestamp> {
        let minute = self.at_min.clamp(0, 1_439);
        let at = date.at((minute / 60) as i8, (minute % 60) as i8, 0, 0);
        at.to_zoned(zone.clone()).ok().map(|zoned| zoned.timestamp())
    }

    /// The date that is due next; `None` where it depends on a ticket that is under way.
    #[must_use]
    pub fn due(self, created_at: Timestamp, last: Option<Last>, zone: &TimeZone) -> Option<Date> {
        let day = |at: Timestamp| at.to_zoned(zone.clone()).date();
        let Some(last) = last else { return self.from(day(created_at)) };
        let ended_on = last.ended_at.map(day);
        if self.from_completion {
            return self.behind(ended_on?, 1);
        }
        let passed = [last.due_on, ended_on].into_iter().flatten().max().unwrap_or_else(|| day(created_at));
        self.from(passed.tomorrow().ok()?)
    }
}

impl Trigger {
    /// When it is due, as far as that can be told.
    #[must_use]
    pub fn due(&self, standing: &Standing, now: Timestamp, zone: &TimeZone) -> Due {
        let is_under_way = standing.last.is_some_and(|last| last.ended_at.is_none());
        match self {
            Self::Calendar(calendar) => {
                let on = calendar.due(standing.created_at, standing.last, zone);
                Due { at: on.and_then(|on| calendar.moment(on, zone)), on, left_h: None }
            }
            Self::Running(_) if is_under_way => Due::default(),
            Self::Running(running) => {
                let left_h = f64::from(running.every_h) - standing.ran_h;
                let days = if left_h <= 0.0 {
                    Some(0.0)
                } else {
                    (standing.ran_h_a_day > 0.0).then(|| left_h / standing.ran_h_a_day)
                };
                let at = days
                    .and_then(|days| now.checked_add(SignedDuration::try_from_secs_f64(days * 86_400.0).ok()?).ok());
                Due { at, on: None, left_h: Some(left_h) }
            }
            Self::Health(health) => {
                let since = standing.below_since.filter(|_| !is_under_way);
                let length = SignedDuration::from_secs(i64::from(health.for_s));
                Due { at: since.and_then(|since| since.checked_add(length).ok()), ..Due::default() }
            }
        }
    }

    /// What is to be done now.
    #[must_use]
    pub fn turn(&self, standing: &Standing, lead_h: i32, now: Timestamp, zone: &TimeZone) -> Turn {
        if standing.last.is_some_and(|last| last.ended_at.is_none()) {
            return Turn::Wait { below_since: None };
        }
        let lead = SignedDuration::from_hours(i64::from(lead_h));
        match self {
            Self::Calendar(calendar) => {
                let mut due = self.due(standing, now, zone);
                // Of dates that nobody looked at in time, the latest counts.
                while let Some(next) = due.on.and_then(|on| calendar.from(on.tomorrow().ok()?))
                    && !calendar.from_completion
                    && let Some(at) = calendar.moment(next, zone)
                    && at <= now
                {
                    due = Due { at: Some(at), on: Some(next), left_h: None };
                }
                match due.at {
                    Some(due_at) if due_at.duration_since(now) <= lead => Turn::Make { due_at, due_on: due.on },
                    _ => Turn::Wait { below_since: None },
                }
            }
            Self::Running(_) => {
                let due = self.due(standing, now, zone);
                match due.left_h {
                    Some(left_h) if left_h <= f64::from(lead_h) => {
                        Turn::Make { due_at: due.at.unwrap_or(now), due_on: None }
                    }
                    _ => Turn::Wait { below_since: None },
                }
            }
            Self::Health(health) => {
                let is_low = standing.health_percent.is_some_and(|percent| percent < health.below);
                let below_since = is_low.then(|| standing.below_since.unwrap_or(now).min(now));
                let length = SignedDuration::from_secs(i64::from(health.for_s));
                match below_since {
                    Some(since) if now.duration_since(since) >= length => Turn::Make { due_at: now, due_on: None },
                    below_since => Turn::Wait { below_since },
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
