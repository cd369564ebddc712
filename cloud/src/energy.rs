//! Energy of machines and sites, as the gateways measured it (a trapezoid over readings of power, without a guess where there were
//! none), what it cost and emitted, and what was to be expected.
//!
//! It is told for whole hours: a range is widened to them.

use std::collections::{HashMap, HashSet};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    history::{HOUR_MS, ceil, floor},
    series::BadRange,
};

pub mod accounts;
pub mod baseline;
pub mod calendar;
pub mod production;
pub mod profile;
pub mod tariff;

use accounts::{Account, Cost, Figures};
use calendar::{Calendar, Per, Terms};
use profile::Profile;

/// The longest range.
pub const RANGE_MAX: SignedDuration = SignedDuration::from_hours(24 * 3_660);
/// The range where none is asked for.
pub const RANGE_DEFAULT: SignedDuration = SignedDuration::from_hours(24 * 30);
/// Periods of all items of one answer.
pub const PERIODS_MAX: usize = 20_000;
/// Hours of all sites of one answer: each site has clocks, prices and factors of its own, hour by hour.
pub const SITE_HOURS_MAX: i64 = 2_000_000;

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

/// What is added up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum By {
    #[default]
    Machine,
    Site,
}

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Question {
    /// Whole hours.
    pub from: Timestamp,
    pub to: Timestamp,
    pub by: By,
    pub per: Option<Per>,
    pub site: Option<Uuid>,
    pub machine: Option<Uuid>,
}

/// How a machine spent its hours. Of a site they are its machines' hours together, and the worst of their figures.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, ToSchema)]
pub struct Hours {
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

impl Hours {
    fn merge(&mut self, other: &Self) {
        self.known_h += other.known_h;
        self.running_h += other.running_h;
        self.idle_h += other.idle_h;
        self.off_h += other.off_h;
        self.anomalous_h += other.anomalous_h;
        let either = |a: Option<f32>, b: Option<f32>, both: fn(f32, f32) -> f32| match (a, b) {
            (Some(a), Some(b)) => Some(both(a, b)),
            (a, b) => a.or(b),
        };
        self.health_percent_min = either(self.health_percent_min, other.health_percent_min, f32::min);
        self.score_max = either(self.score_max, other.score_max, f32::max);
    }
}

/// A machine over a range, as hours and days tell it.
#[derive(Debug, Clone, PartialEq)]
pub struct MachineHours {
    pub id: Uuid,
    pub site: Uuid,
    pub name: String,
    pub display_name: Option<String>,
    /// `None` for a machine without a power sensor.
    pub energy_wh: Option<f64>,
    pub hours: Hours,
}

/// A site, and what holds there.
#[derive(Debug, Clone)]
pub struct SiteTerms {
    pub id: Uuid,
    pub name: String,
    pub terms: Terms,
}

/// An hour, day or month of an item, by the site's clocks.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct PeriodEnergy {
    pub start: Timestamp,
    /// Exclusive. The first and the last one may be cut short by the range.
    pub end: Timestamp,
    #[serde(flatten)]
    pub figures: Figures,
}

/// What a machine, or all machines of a site, used and did.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct EnergyItem {
    /// `null` for a site as a whole.
    pub machine: Option<Uuid>,
    pub site: Uuid,
    pub name: String,
    pub display_name: Option<String>,
    /// How many machines it is of, and how many of them measure their power.
    pub machines: i32,
    pub machines_measured: i32,
    #[serde(flatten)]
    pub figures: Figures,
    #[serde(flatten)]
    pub hours: Hours,
    /// None unless `per` is given; without those in which nothing was measured.
    pub periods: Vec<PeriodEnergy>,
}

/// All machines or sites of a range, by name.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Energy {
    /// Whole hours, UTC.
    pub from: Timestamp,
    pub to: Timestamp,
    pub by: By,
    pub per: Option<Per>,
    /// Of all items.
    pub energy_wh: f64,
    pub cost: Vec<Cost>,
    pub priced_wh: f64,
    pub co2_g: f64,
    pub items: Vec<EnergyItem>,
}

/// Why an answer would be too large.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TooLarge {
    #[error(
        "would make more than {PERIODS_MAX} periods: ask for a shorter range, one site or one machine, or longer periods"
    )]
    Periods,
    #[error(
        "is {0} sites for {1} hours, and {SITE_HOURS_MAX} hours of all together are the most: ask for a shorter range or one site"
    )]
    SiteHours(usize, i64),
}

/// An answer in the making.
#[derive(Debug)]
pub struct Ledger {
    question: Question,
    /// By site.
    calendars: HashMap<Uuid, Calendar>,
    /// By machine: its site, and where it is added up.
    places: HashMap<Uuid, (Uuid, usize)>,
    items: Vec<EnergyItem>,
    accounts: Vec<Vec<Account>>,
}

impl Ledger {
    /// For these machines of these sites.
    ///
    /// # Errors
    /// If the answer would be too large.
    pub fn new(question: Question, machines: Vec<MachineHours>, sites: &[SiteTerms]) -> Result<Self, TooLarge> {
        let mut ledger = Self {
            question,
            calendars: HashMap::new(),
            places: HashMap::new(),
            items: Vec::new(),
            accounts: Vec::new(),
        };
        let measured: HashSet<Uuid> =
            machines.iter().filter(|machine| machine.energy_wh.is_some()).map(|machine| machine.site).collect();
        let hours = question.to.duration_since(question.from).as_hours();
        if hours.saturating_mul(measured.len() as i64) > SITE_HOURS_MAX {
            return Err(TooLarge::SiteHours(measured.len(), hours));
        }
        let sites: HashMap<Uuid, &SiteTerms> = sites.iter().map(|site| (site.id, site)).collect();
        let mut of_site: HashMap<Uuid, usize> = HashMap::new();
        for machine in machines {
            let Some(site) = sites.get(&machine.site) else { continue };
            if machine.energy_wh.is_some() {
                let calendar = || Calendar::new(question.from, question.to, question.per, &site.terms);
                ledger.calendars.entry(site.id).or_insert_with(calendar);
                let periods = ledger.calendars.values().map(|calendar| calendar.periods.len()).sum::<usize>();
                if question.per.is_some() && periods > PERIODS_MAX {
                    return Err(TooLarge::Periods);
                }
            }
            let place = match question.by {
                By::Machine => ledger.items.len(),
                By::Site => *of_site.entry(site.id).or_insert(ledger.items.len()),
            };
            ledger.places.insert(machine.id, (site.id, place));
            ledger.enter(place, machine, &site.name);
        }
        let periods = ledger.items.iter().filter(|item| item.machines_measured > 0);
        let periods = periods.map(|item| ledger.calendars.get(&item.site).map_or(0, |calendar| calendar.periods.len()));
        let periods: usize = periods.sum();
        if question.per.is_some() && periods > PERIODS_MAX {
            return Err(TooLarge::Periods);
        }
        ledger.accounts = vec![Vec::new(); ledger.items.len()];
        Ok(ledger)
    }

    /// Enters a machine at its place.
    fn enter(&mut self, place: usize, machine: MachineHours, site: &str) {
        if place == self.items.len() {
            let by_machine = self.question.by == By::Machine;
            self.items.push(EnergyItem {
                machine: by_machine.then_some(machine.id),
                site: machine.site,
                name: if by_machine { machine.name } else { site.to_owned() },
                display_name: machine.display_name.filter(|_| by_machine),
                machines: 0,
                machines_measured: 0,
                figures: Account::default().figures(0.0, &[]),
                hours: Hours::default(),
                periods: Vec::new(),
            });
        }
        let item = &mut self.items[place];
        item.machines += 1;
        item.machines_measured += i32::from(machine.energy_wh.is_some());
        item.hours.merge(&machine.hours);
        if let Some(wh) = machine.energy_wh {
            *item.figures.energy_wh.get_or_insert_default() += wh;
        }
    }

    /// Adds a day of a machine.
    pub fn add(&mut self, machine: Uuid, start: Timestamp, day: &Profile) {
        let Some(&(site, place)) = self.places.get(&machine) else { return };
        let Some(calendar) = self.calendars.get(&site) else { return };
        let accounts = &mut self.accounts[place];
        accounts.resize(calendar.periods.len(), Account::default());
        accounts::add(accounts, calendar, start, day);
    }

    /// The answer.
    #[must_use]
    pub fn close(mut self) -> Energy {
        let Question { from, to, by, per, .. } = self.question;
        let range_h = to.duration_since(from).as_secs_f64() / 3_600.0;
        for (item, accounts) in self.items.iter_mut().zip(&self.accounts) {
            let machines = f64::from(item.machines_measured);
            let Some(calendar) = self.calendars.get(&item.site).filter(|_| item.machines_measured > 0) else {
                continue;
            };
            let mut sum = Account::default();
            for account in accounts {
                sum.merge(account);
            }
            // Days whose hours are no longer known have their energy all the same.
            let energy_wh = item.figures.energy_wh;
            item.figures = Figures { energy_wh, ..sum.figures(range_h * machines, &calendar.currencies) };
            if per.is_none() {
                continue;
            }
            let periods = calendar.periods.iter().zip(accounts).filter(|(_, account)| account.kwh().is_some());
            let told = periods.map(|(period, account)| PeriodEnergy {
                start: period.start,
                end: period.end,
                figures: account.figures(period.hours() * machines, &calendar.currencies),
            });
            item.periods = told.collect();
        }
        if by == By::Site {
            self.items.sort_by(|a, b| (&a.name, a.site).cmp(&(&b.name, b.site)));
        }
        let figures = || self.items.iter().map(|item| &item.figures);
        let mut cost = Vec::new();
        for figures in figures() {
            accounts::add_costs(&mut cost, &figures.cost);
        }
        Energy {
            from,
            to,
            by,
            per,
            energy_wh: figures().filter_map(|figures| figures.energy_wh).sum(),
            cost,
            priced_wh: figures().map(|figures| figures.priced_wh).sum(),
            co2_g: figures().filter_map(|figures| figures.co2_g).sum(),
            items: self.items,
        }
    }
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

    #[test]
    fn an_answer_is_bounded_before_it_is_made() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let terms =
            Terms { zone: jiff::tz::TimeZone::UTC, tariffs: Vec::new(), factors: Vec::new(), g_per_kwh_default: 1.0 };
        let check = |sites: u128, to: &str, per: Option<Per>, expected: Option<TooLarge>| {
            let ids: Vec<Uuid> = (0..sites).map(Uuid::from_u128).collect();
            let machine = |site: &Uuid| MachineHours {
                id: *site,
                site: *site,
                name: String::new(),
                display_name: None,
                energy_wh: Some(1.0),
                hours: Hours::default(),
            };
            let site = |id: &Uuid| SiteTerms { id: *id, name: String::new(), terms: terms.clone() };
            let (from, to) = (at("2020-01-01T00:00Z"), at(to));
            let question = Question { from, to, by: By::Site, per, site: None, machine: None };
            let ledger =
                Ledger::new(question, ids.iter().map(machine).collect(), &ids.iter().map(site).collect::<Vec<_>>());
            assert_eq!(ledger.err(), expected, "{sites} sites up to {to}");
        };
        check(3, "2020-03-01T00:00Z", Some(Per::Hour), None);
        check(1, "2029-01-01T00:00Z", Some(Per::Hour), Some(TooLarge::Periods));
        check(100, "2020-12-31T00:00Z", Some(Per::Hour), Some(TooLarge::Periods));
        check(100, "2021-12-31T00:00Z", None, None);
        check(200, "2021-12-31T00:00Z", None, Some(TooLarge::SiteHours(200, 17_520)));
    }
}
