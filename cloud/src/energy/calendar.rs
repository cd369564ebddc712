//! A site's range, hour by hour: to which of its days an hour belongs, and what a kilowatt-hour costs and emits in it.
//!
//! What is measured is kept by hours of UTC. Local days and bands may begin at any quarter of an hour (there are zones half an hour
//! and three quarters off), so each hour is cut in quarters that share its energy evenly; quarters alike are put together again.

use jiff::{SignedDuration, Timestamp, civil::Date, tz::TimeZone};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::tariff::{Tariff, in_force};

const QUARTER: SignedDuration = SignedDuration::from_mins(15);
const QUARTERS: i64 = 4;

/// How finely energy is told, by the site's clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Per {
    Hour,
    Day,
    Month,
}

/// An hour, day or month of a site, as far as it lies in the range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Period {
    pub start: Timestamp,
    /// Exclusive.
    pub end: Timestamp,
    /// The local day on which it begins.
    pub date: Date,
}

impl Period {
    /// Its length.
    #[must_use]
    pub fn hours(&self) -> f64 {
        self.end.duration_since(self.start).as_secs_f64() / 3_600.0
    }
}

/// From when on a kilowatt-hour emits so much.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Factor {
    pub valid_from: Timestamp,
    pub g_per_kwh: f64,
}

/// A part of an hour.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Slice {
    /// Which of the periods it belongs to.
    pub period: usize,
    /// Of the hour's energy.
    pub share: f64,
    /// Which of the currencies, and the mean price of a kilowatt-hour in its millionths; `None` before the first tariff.
    pub price: Option<(usize, f64)>,
    /// CO2 equivalent, the mean.
    pub g_per_kwh: f64,
    /// No factor of the site holds: it is the default.
    pub by_default: bool,
}

/// What holds at a site, and when.
#[derive(Debug, Clone)]
pub struct Terms {
    pub zone: TimeZone,
    /// In the order of their beginnings.
    pub tariffs: Vec<Tariff>,
    /// The same.
    pub factors: Vec<Factor>,
    /// Where no factor holds yet, g CO2 equivalent for a kilowatt-hour.
    pub g_per_kwh_default: f64,
}

/// A range of whole hours (UTC) at a site.
#[derive(Debug, Clone)]
pub struct Calendar {
    pub periods: Vec<Period>,
    pub currencies: Vec<String>,
    first: Timestamp,
    /// Where the slices of each hour begin.
    hours: Vec<usize>,
    slices: Vec<Slice>,
}

impl Calendar {
    /// Of the hours from `from` to `to`, in one period, or in hours, days or months of the site.
    #[must_use]
    pub fn new(from: Timestamp, to: Timestamp, per: Option<Per>, terms: &Terms) -> Self {
        let mut calendar =
            Self { periods: Vec::new(), currencies: Vec::new(), first: from, hours: Vec::new(), slices: Vec::new() };
        let (mut at, mut quarter, mut key) = (from, 0_i64, None);
        while at < to {
            if quarter % QUARTERS == 0 {
                calendar.hours.push(calendar.slices.len());
            }
            let next = at.saturating_add(QUARTER).unwrap_or(to);
            let local = terms.zone.to_datetime(at);
            let (date, hour) = (local.date(), local.hour());
            let now = match per {
                None => (0, 0, 0, 0, 0),
                Some(Per::Month) => (date.year(), date.month(), 0, 0, 0),
                Some(Per::Day) => (date.year(), date.month(), date.day(), 0, 0),
                // The hour that the clocks show twice is two.
                Some(Per::Hour) => (date.year(), date.month(), date.day(), hour, terms.zone.to_offset(at).seconds()),
            };
            if key != Some(now) {
                key = Some(now);
                calendar.periods.push(Period { start: at, end: next, date });
            } else if let Some(period) = calendar.periods.last_mut() {
                period.end = next;
            }
            let price = in_force(&terms.tariffs, date).map(|tariff| {
                let tariff = &terms.tariffs[tariff];
                (calendar.currency(&tariff.currency), tariff.price_micro(local) as f64)
            });
            let factor = terms.factors.partition_point(|factor| factor.valid_from <= at).checked_sub(1);
            let g_per_kwh = factor.map_or(terms.g_per_kwh_default, |factor| terms.factors[factor].g_per_kwh);
            calendar.push(Slice {
                period: calendar.periods.len() - 1,
                share: 1.0 / QUARTERS as f64,
                price,
                g_per_kwh,
                by_default: factor.is_none(),
            });
            (at, quarter) = (next, quarter + 1);
        }
        calendar
    }

    /// The parts of the hour that begins then; none outside of the range.
    #[must_use]
    pub fn slices(&self, hour: Timestamp) -> &[Slice] {
        let after = hour.duration_since(self.first).as_secs().div_euclid(3_600);
        let Ok(index) = usize::try_from(after) else { return &[] };
        let Some(&begin) = self.hours.get(index) else { return &[] };
        &self.slices[begin..self.hours.get(index + 1).copied().unwrap_or(self.slices.len())]
    }

    fn currency(&mut self, code: &str) -> usize {
        self.currencies.iter().position(|known| known == code).unwrap_or_else(|| {
            self.currencies.push(code.to_owned());
            self.currencies.len() - 1
        })
    }

    /// Adds a quarter, to the slice before it where that is of the same hour and kind.
    fn push(&mut self, new: Slice) {
        let begin = self.hours.last().copied().unwrap_or_default();
        let alike = |last: &Slice| {
            last.period == new.period
                && last.by_default == new.by_default
                && last.price.map(|(currency, _)| currency) == new.price.map(|(currency, _)| currency)
        };
        match self.slices[begin..].last_mut().filter(|last| alike(last)) {
            Some(last) => {
                let share = last.share + new.share;
                let mean = |a: f64, b: f64| (a * last.share + b * new.share) / share;
                last.g_per_kwh = mean(last.g_per_kwh, new.g_per_kwh);
                last.price = match (last.price, new.price) {
                    (Some((currency, a)), Some((_, b))) => Some((currency, mean(a, b))),
                    _ => None,
                };
                last.share = share;
            }
            None => self.slices.push(new),
        }
    }
}

#[cfg(test)]
mod tests;
