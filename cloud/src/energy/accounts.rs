//! Adds up what machines used, and what that cost and emitted, in the periods of a site.

use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

use super::{calendar::Calendar, profile::Profile};
use crate::history::HOUR_MS;

/// Money.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Cost {
    /// ISO 4217.
    pub currency: String,
    /// Millionths of the currency's unit.
    pub micro: i64,
}

/// Energy over a stretch of time, and what is known of it.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Figures {
    /// `null` where nothing was measured. Nothing is added for hours without readings.
    pub energy_wh: Option<f64>,
    /// Hours in which energy was measured, and hours of the stretch; of several machines, of each one that measures.
    pub measured_h: f64,
    pub range_h: f64,
    /// By the site's tariffs; a sum for each currency.
    pub cost: Vec<Cost>,
    /// The energy that `cost` is of: what was used while a tariff held.
    pub priced_wh: f64,
    /// Grams of CO2 equivalent.
    pub co2_g: Option<f64>,
    /// The energy for which no factor of the site held, and the server's default was taken.
    pub co2_default_wh: f64,
}

/// A sum under way.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Account {
    wh: Option<f64>,
    measured_ms: f64,
    running_ms: f64,
    /// By the calendar's currencies.
    cost_micro: Vec<Option<f64>>,
    priced_wh: f64,
    co2_g: f64,
    default_wh: f64,
}

impl Account {
    /// Takes in another.
    pub fn merge(&mut self, other: &Self) {
        let sum = |a: Option<f64>, b: Option<f64>| match (a, b) {
            (Some(a), Some(b)) => Some(a + b),
            (a, b) => a.or(b),
        };
        self.wh = sum(self.wh, other.wh);
        self.measured_ms += other.measured_ms;
        self.running_ms += other.running_ms;
        self.priced_wh += other.priced_wh;
        self.co2_g += other.co2_g;
        self.default_wh += other.default_wh;
        self.cost_micro.resize(self.cost_micro.len().max(other.cost_micro.len()), None);
        for (own, others) in self.cost_micro.iter_mut().zip(&other.cost_micro) {
            *own = sum(*own, *others);
        }
    }

    /// Kilowatt-hours; `None` where nothing was measured.
    #[must_use]
    pub fn kwh(&self) -> Option<f64> {
        self.wh.map(|wh| wh / 1_000.0)
    }

    #[must_use]
    pub fn measured_h(&self) -> f64 {
        self.measured_ms / HOUR_MS as f64
    }

    #[must_use]
    pub fn running_h(&self) -> f64 {
        self.running_ms / HOUR_MS as f64
    }

    /// As it is told, of a stretch of so many hours. Costs are rounded to a millionth.
    #[must_use]
    pub fn figures(&self, range_h: f64, currencies: &[String]) -> Figures {
        let cost = currencies.iter().zip(&self.cost_micro).filter_map(|(currency, micro)| {
            micro.map(|micro| Cost { currency: currency.clone(), micro: micro.round() as i64 })
        });
        Figures {
            energy_wh: self.wh,
            measured_h: self.measured_h(),
            range_h,
            cost: cost.collect(),
            priced_wh: self.priced_wh,
            co2_g: self.wh.map(|_| self.co2_g),
            co2_default_wh: self.default_wh,
        }
    }
}

/// Adds a machine's day to its accounts, one for each period of the calendar.
pub fn add(accounts: &mut [Account], calendar: &Calendar, start: Timestamp, day: &Profile) {
    for (i, wh) in day.wh.iter().enumerate() {
        let Some(wh) = *wh else { continue };
        let hour = start.saturating_add(jiff::SignedDuration::from_hours(i as i64)).unwrap_or(start);
        let ms = |list: &[i32]| f64::from(list.get(i).copied().unwrap_or_default());
        for slice in calendar.slices(hour) {
            let Some(account) = accounts.get_mut(slice.period) else { continue };
            let wh = wh * slice.share;
            *account.wh.get_or_insert_default() += wh;
            account.measured_ms += ms(&day.measured_ms) * slice.share;
            account.running_ms += ms(&day.running_ms) * slice.share;
            account.co2_g += wh / 1_000.0 * slice.g_per_kwh;
            if slice.by_default {
                account.default_wh += wh;
            }
            if let Some((currency, micro)) = slice.price {
                account.cost_micro.resize(account.cost_micro.len().max(currency + 1), None);
                *account.cost_micro[currency].get_or_insert_default() += wh / 1_000.0 * micro;
                account.priced_wh += wh;
            }
        }
    }
}

/// Adds money to money, currency by currency.
pub fn add_costs(sum: &mut Vec<Cost>, more: &[Cost]) {
    for cost in more {
        match sum.iter_mut().find(|known| known.currency == cost.currency) {
            Some(known) => known.micro = known.micro.saturating_add(cost.micro),
            None => sum.push(cost.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::float_cmp, reason = "small whole numbers are exact")]

    use jiff::{civil::date, tz::TimeZone};

    use super::*;
    use crate::energy::{
        calendar::{Factor, Per, Terms},
        profile::HOURS,
        tariff::{Band, Tariff},
    };

    /// A day of a kilowatt: 25 hours of it when the clocks go back, and each at its price.
    #[test]
    fn a_long_day_costs_what_its_hours_cost() {
        let night = Band { name: "night".into(), days: 127, from_min: 0, to_min: 360, price_micro: 100_000 };
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let terms = Terms {
            zone: TimeZone::get("Europe/Berlin").unwrap(),
            tariffs: vec![Tariff::new(date(2026, 10, 1), "EUR".into(), 300_000, &[night])],
            factors: vec![Factor { valid_from: at("2026-10-25T12:00Z"), g_per_kwh: 400.0 }],
            g_per_kwh_default: 500.0,
        };
        let day = Profile {
            wh: vec![Some(1_000.0); HOURS],
            measured_ms: vec![3_600_000; HOURS],
            running_ms: vec![1_800_000; HOURS],
        };
        for (from, to, hours, night, before_noon) in [
            ("2026-10-24T22:00Z", "2026-10-25T23:00Z", 25.0, 7.0, 14.0),
            ("2026-10-25T23:00Z", "2026-10-26T23:00Z", 24.0, 6.0, 0.0),
        ] {
            let calendar = Calendar::new(at(from), at(to), Some(Per::Day), &terms);
            let mut accounts = vec![Account::default(); calendar.periods.len()];
            for start in ["2026-10-24T00:00Z", "2026-10-25T00:00Z", "2026-10-26T00:00Z"] {
                add(&mut accounts, &calendar, at(start), &day);
            }
            assert_eq!(accounts.len(), 1);
            let figures = accounts[0].figures(calendar.periods[0].hours(), &calendar.currencies);
            assert_eq!((figures.energy_wh, figures.measured_h, figures.range_h), (Some(hours * 1e3), hours, hours));
            let micro = (night * 100_000.0 + (hours - night) * 300_000.0) as i64;
            assert_eq!(figures.cost, [Cost { currency: "EUR".into(), micro }]);
            assert_eq!(figures.priced_wh, hours * 1e3);
            assert_eq!(figures.co2_g, Some(before_noon * 500.0 + (hours - before_noon) * 400.0));
            assert_eq!(figures.co2_default_wh, before_noon * 1e3);
            assert_eq!(accounts[0].running_h(), hours / 2.0);
        }
    }

    #[test]
    fn what_was_not_measured_costs_nothing_and_says_so() {
        let terms = Terms { zone: TimeZone::UTC, tariffs: Vec::new(), factors: Vec::new(), g_per_kwh_default: 1.0 };
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let calendar = Calendar::new(at("2026-01-01T00:00Z"), at("2026-01-01T02:00Z"), Some(Per::Hour), &terms);
        let mut accounts = vec![Account::default(); 2];
        let mut day = Profile::default();
        (day.wh[1], day.measured_ms[1]) = (Some(10.0), 900_000);
        add(&mut accounts, &calendar, at("2026-01-01T00:00Z"), &day);
        let first = accounts[0].figures(1.0, &[]);
        assert_eq!((first.energy_wh, first.co2_g, first.measured_h, first.cost), (None, None, 0.0, Vec::new()));
        let second = accounts[1].figures(1.0, &[]);
        assert_eq!((second.energy_wh, second.measured_h, second.priced_wh), (Some(10.0), 0.25, 0.0));
        let mut sum = accounts[0].clone();
        sum.merge(&accounts[1]);
        assert_eq!(sum, accounts[1]);
    }
}
