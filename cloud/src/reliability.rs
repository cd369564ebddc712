//! How reliable machines are, and what that costs: from tickets, and from the hours that machines ran.
//!
//! | figure | what it is | after |
//! |---|---|---|
//! | failure | a corrective ticket, not cancelled, that names a failure mode or whose alarm was right; it was when its incident opened, or else when the ticket was made | ISO 14224:2016, annex B and C |
//! | operating time | hours in which the machine ran; where no mode is known of it at all, hours in which anything is known of it | ISO 14224:2016, annex C |
//! | MTBF | operating time / failures | EN 15341:2019 (mean operating time between failures) |
//! | MTTR | mean over repairs that are done of the time in progress: without waiting before it, and without the time on hold (active repair time) | ISO 14224:2016, annex C |
//! | mean down time | mean over the same failures of the time from the failure to when the work was done: all waiting is in it | ISO 14224:2016, annex C |
//! | inherent availability | MTBF / (MTBF + MTTR) | ISO 14224:2016, annex C |
//! | observed availability | (running + idle) / (running + idle + off) | ISO 22400-2:2014, availability: actual production time / planned busy time. Nobody knows what was planned, so every hour of which the mode is known counts as planned: a machine that is off on purpose lowers it |
//! | costs | what was booked to tickets in the range, by their kind | EN 15341:2019 (maintenance cost) |
//!
//! Failures and repairs are those of failures in the range; a repair counts whole, also where it ended later. Where there is nothing to
//! divide by, a figure is not known (`null`), and neither 0 nor infinite. Figures of several machines are made of their sums.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::tickets::Kind;

/// What is known of a machine in a range, or of several together.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Facts {
    pub hours: Hours,
    pub failures: u32,
    /// Corrective tickets of which nobody has said yet what they were.
    pub undecided: u32,
    pub repairs: Total,
    pub downs: Total,
    /// By currency.
    pub costs: BTreeMap<String, Costs>,
}

/// Hours in which a machine did something.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Hours {
    pub running: f64,
    pub idle: f64,
    pub off: f64,
    pub operating: f64,
}

/// Lengths of time, and how many.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Total {
    pub count: u32,
    pub hours: f64,
}

/// In the currency's minor unit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Costs {
    pub corrective: i64,
    pub preventive: i64,
    pub inspection: i64,
}

impl Hours {
    /// Of one machine.
    #[must_use]
    pub fn of_machine(running: f64, idle: f64, off: f64, unknown: f64) -> Self {
        let operating = if running + idle + off > 0.0 { running } else { unknown };
        Self { running, idle, off, operating }
    }
}

impl Total {
    fn add(&mut self, other: Self) {
        self.count += other.count;
        self.hours += other.hours;
    }

    fn mean(self) -> Option<f64> {
        (self.count > 0).then(|| self.hours / f64::from(self.count))
    }
}

impl Costs {
    pub const fn book(&mut self, kind: Kind, minor: i64) {
        let sum = match kind {
            Kind::Corrective => &mut self.corrective,
            Kind::Preventive => &mut self.preventive,
            Kind::Inspection => &mut self.inspection,
        };
        *sum = sum.saturating_add(minor);
    }
}

impl Facts {
    /// Adds what is known of others.
    pub fn add(&mut self, other: &Self) {
        let (hours, more) = (&mut self.hours, other.hours);
        for (sum, part) in [
            (&mut hours.running, more.running),
            (&mut hours.idle, more.idle),
            (&mut hours.off, more.off),
            (&mut hours.operating, more.operating),
        ] {
            *sum += part;
        }
        self.failures += other.failures;
        self.undecided += other.undecided;
        self.repairs.add(other.repairs);
        self.downs.add(other.downs);
        for (currency, costs) in &other.costs {
            let sum = self.costs.entry(currency.clone()).or_default();
            for (kind, minor) in [
                (Kind::Corrective, costs.corrective),
                (Kind::Preventive, costs.preventive),
                (Kind::Inspection, costs.inspection),
            ] {
                sum.book(kind, minor);
            }
        }
    }

    #[must_use]
    pub fn figures(&self) -> Figures {
        let Hours { running, idle, off, operating } = self.hours;
        let operating = (operating > 0.0).then_some(operating);
        let mtbf = operating.filter(|_| self.failures > 0).map(|hours| hours / f64::from(self.failures));
        let mttr = self.repairs.mean();
        let known = running + idle + off;
        let cost = |(currency, costs): (&String, &Costs)| Cost {
            currency: currency.clone(),
            corrective_minor: costs.corrective,
            preventive_minor: costs.preventive,
            inspection_minor: costs.inspection,
            total_minor: costs.corrective.saturating_add(costs.preventive).saturating_add(costs.inspection),
        };
        Figures {
            failures: self.failures,
            undecided: self.undecided,
            repairs: self.repairs.count,
            operating_h: operating,
            mtbf_h: mtbf,
            mttr_h: mttr,
            mean_down_h: self.downs.mean(),
            availability_inherent: mtbf.zip(mttr).map(|(mtbf, mttr)| mtbf / (mtbf + mttr)),
            availability_observed: (known > 0.0).then(|| (running + idle) / known),
            running_h: running,
            idle_h: idle,
            off_h: off,
            costs: self.costs.iter().map(cost).collect(),
        }
    }
}

/// What maintenance cost in one currency, in its minor unit (cents), by the kind of ticket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = MaintenanceCost)]
pub struct Cost {
    /// ISO 4217.
    pub currency: String,
    pub corrective_minor: i64,
    pub preventive_minor: i64,
    pub inspection_minor: i64,
    pub total_minor: i64,
}

/// `null` is not known.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[schema(as = ReliabilityFigures)]
pub struct Figures {
    /// Corrective tickets that name a failure mode, or whose alarm was right.
    pub failures: u32,
    /// Corrective tickets that are not closed yet: nobody has said whether they were failures.
    pub undecided: u32,
    /// Failures whose repair is done.
    pub repairs: u32,
    /// Hours in which it ran; of a machine without modes, hours in which anything is known of it.
    pub operating_h: Option<f64>,
    /// Operating time / failures.
    pub mtbf_h: Option<f64>,
    /// Mean time in progress of the repairs; what was on hold is not in it.
    pub mttr_h: Option<f64>,
    /// Mean time from the failure to the end of its repair.
    pub mean_down_h: Option<f64>,
    /// MTBF / (MTBF + MTTR), 0 to 1.
    pub availability_inherent: Option<f64>,
    /// (running + idle) / (running + idle + off), 0 to 1.
    pub availability_observed: Option<f64>,
    pub running_h: f64,
    pub idle_h: f64,
    pub off_h: f64,
    /// What was booked to tickets in the range.
    pub costs: Vec<Cost>,
}

/// How reliable a machine, or all of a site, was.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Reliable {
    pub site: Uuid,
    /// `null`: the site as a whole, with tickets that are of no machine.
    pub machine: Option<Uuid>,
    /// The machine's display name where it has one, or the site's name.
    pub name: String,
    #[serde(flatten)]
    pub figures: Figures,
}

/// How reliable machines or sites were in a range.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Reliability {
    /// Whole hours, UTC.
    pub from: Timestamp,
    pub to: Timestamp,
    /// By name.
    pub items: Vec<Reliable>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pump() -> Facts {
        let mut costs = Costs::default();
        costs.book(Kind::Corrective, 12_050);
        costs.book(Kind::Preventive, 4_000);
        Facts {
            hours: Hours::of_machine(600.0, 60.0, 60.0, 0.0),
            failures: 3,
            undecided: 1,
            repairs: Total { count: 2, hours: 5.0 },
            downs: Total { count: 2, hours: 30.0 },
            costs: [("EUR".to_owned(), costs)].into(),
        }
    }

    #[test]
    fn known_answers() {
        let figures = pump().figures();
        assert_eq!(figures.mtbf_h, Some(200.0));
        assert_eq!(figures.mttr_h, Some(2.5));
        assert_eq!(figures.mean_down_h, Some(15.0));
        assert_eq!(figures.availability_inherent, Some(200.0 / 202.5));
        assert_eq!(figures.availability_observed, Some(660.0 / 720.0));
        assert_eq!((figures.operating_h, figures.undecided, figures.repairs), (Some(600.0), 1, 2));
        let cost = &figures.costs[0];
        assert_eq!((cost.currency.as_str(), cost.corrective_minor, cost.total_minor), ("EUR", 12_050, 16_050));
    }

    #[test]
    fn what_is_not_known_is_neither_nothing_nor_infinite() {
        let figures = Facts::default().figures();
        assert_eq!(
            (figures.operating_h, figures.mtbf_h, figures.mttr_h, figures.mean_down_h),
            (None, None, None, None)
        );
        assert_eq!((figures.availability_inherent, figures.availability_observed), (None, None));
        // It ran and never failed.
        let healthy = Facts { hours: Hours::of_machine(10.0, 0.0, 0.0, 0.0), ..Facts::default() }.figures();
        assert_eq!((healthy.mtbf_h, healthy.availability_inherent), (None, None));
        assert_eq!((healthy.operating_h, healthy.availability_observed), (Some(10.0), Some(1.0)));
        // It failed, and nothing is known of how long it ran.
        assert_eq!(Facts { failures: 2, ..Facts::default() }.figures().mtbf_h, None);
        // It failed, and is not repaired yet.
        let broken = Facts { repairs: Total::default(), ..pump() }.figures();
        assert_eq!((broken.mtbf_h, broken.mttr_h, broken.availability_inherent), (Some(200.0), None, None));
    }

    #[test]
    fn a_machine_without_modes_operates_while_it_is_heard() {
        let operating = |hours: Hours| Facts { hours, ..Facts::default() }.figures().operating_h;
        assert_eq!(operating(Hours::of_machine(0.0, 0.0, 0.0, 7.0)), Some(7.0));
        // With modes, hours of none are nobody's; a machine that was off all the time did not operate.
        assert_eq!(operating(Hours::of_machine(0.0, 0.0, 5.0, 7.0)), None);
        let figures = Facts { hours: Hours::of_machine(0.0, 0.0, 0.0, 7.0), failures: 1, ..Facts::default() }.figures();
        assert_eq!((figures.mtbf_h, figures.availability_observed), (Some(7.0), None));
    }

    #[test]
    fn figures_of_several_machines_are_made_of_sums() {
        let mut site = pump();
        let mut dollars = Costs::default();
        dollars.book(Kind::Inspection, i64::MAX);
        site.add(&Facts {
            hours: Hours::of_machine(0.0, 0.0, 0.0, 100.0),
            failures: 1,
            repairs: Total { count: 1, hours: 1.0 },
            costs: [("USD".to_owned(), dollars), ("EUR".to_owned(), Costs { corrective: 50, ..Costs::default() })]
                .into(),
            ..Facts::default()
        });
        let figures = site.figures();
        assert_eq!((figures.mtbf_h, figures.mttr_h), (Some(175.0), Some(2.0)));
        let totals: Vec<_> = figures.costs.iter().map(|cost| (cost.currency.as_str(), cost.total_minor)).collect();
        assert_eq!(totals, [("EUR", 16_100), ("USD", i64::MAX)]);
        site.add(&site.clone());
        assert_eq!(site.costs["USD"].inspection, i64::MAX);
    }
}
