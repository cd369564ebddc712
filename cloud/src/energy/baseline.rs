//! What energy was to be expected: a straight line through days of before, and what was saved against it.
//!
//! Energy of a day = intercept + slope × driver, by ordinary least squares; the driver is what was made, or hours in which the
//! machines ran. That is the regression of ISO 50006:2014 (energy baselines) and of option C of the IPMVP, with days for bills; R² and
//! CV(RMSE) as ASHRAE Guideline 14 defines them (n − 2 degrees of freedom). The uncertainty of a saving is that of a sum of
//! predictions of such a line (Draper and Smith, Applied Regression Analysis, 3rd edition, chapter 1 and section 5.1): it takes days as
//! independent of each other. A day counts where at least [`KNOWN_SHARE_MIN`] of it was measured; nothing is filled in.

use jiff::civil::Date;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    accounts::Account,
    calendar::Calendar,
    production::{Counted, by_period},
};

/// Days that a line is fitted to, at least.
pub const DAYS_MIN: usize = 10;
/// The longest stretch of days.
pub const RANGE_DAYS_MAX: i64 = 366;
/// How much of a day must be measured.
pub const KNOWN_SHARE_MIN: f64 = 0.95;
/// The least standard deviation of the driver, of its mean: what hardly changes explains nothing.
const SPREAD_MIN: f64 = 0.01;
/// The normal distribution's quantile for 90 % between two bounds.
const Z_90: f64 = 1.644_853_627;

/// What explains the energy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Driver {
    /// What was made.
    Production,
    /// Hours in which machines ran.
    RunningHours,
}

impl Driver {
    /// As the database spells it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Production => "production",
            Self::RunningHours => "running_hours",
        }
    }
}

/// A line, and how well it goes through its days.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, ToSchema)]
pub struct Model {
    /// Days that it was fitted to.
    pub days: i32,
    /// Kilowatt-hours of a day without any of the driver.
    pub intercept_kwh: f64,
    /// Kilowatt-hours for one more of the driver.
    pub slope_kwh: f64,
    /// Share of the energy's variance that it explains, 0 to 1. As a guide, a line is of use from 0.75 on.
    pub r2: f64,
    /// Standard error of a day.
    pub rmse_kwh: f64,
    /// `rmse_kwh` by the mean of a day's energy.
    pub cv_rmse: f64,
    pub driver_mean: f64,
    /// Sum of the driver's squared deviations from its mean.
    pub driver_squares: f64,
    /// What the driver was between; beyond, the line is a guess.
    pub driver_min: f64,
    pub driver_max: f64,
}

/// Why there is no line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoFit {
    #[error("{0} days of the range are known well enough, and {DAYS_MIN} are needed")]
    TooFewDays(usize),
    #[error("what should explain the energy hardly changes from day to day")]
    NoSpread,
    #[error("no energy was used")]
    NoEnergy,
}

/// A local day as it was measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Observation {
    pub date: Date,
    /// `None` where less than [`KNOWN_SHARE_MIN`] of the day is known.
    pub known: Option<Day>,
}

/// The days from `from` to before `to`, of so many machines together; `calendar` and `accounts` are by days and may have more at
/// both ends. The driver is what the sensors counted, or without them the hours in which machines ran.
#[must_use]
pub fn observe(
    (from, to): (Date, Date),
    calendar: &Calendar,
    accounts: &[Account],
    machines: usize,
    sensors: Option<&[Counted]>,
) -> Vec<Observation> {
    let made = sensors.map(|sensors| (by_period(calendar, sensors), sensors.len() as f64));
    let day = |i: usize, hours: f64| {
        let account = accounts.get(i)?;
        let enough = |known_h: f64, of: f64| of > 0.0 && known_h >= KNOWN_SHARE_MIN * hours * of;
        if !enough(account.measured_h(), machines as f64) {
            return None;
        }
        let driver = match &made {
            Some((made, sensors)) => made.get(i).filter(|(_, known_h)| enough(*known_h, *sensors))?.0,
            None => account.running_h(),
        };
        Some(Day { driver, kwh: account.kwh()? })
    };
    let periods = calendar.periods.iter().enumerate().filter(|(_, period)| (from..to).contains(&period.date));
    periods.map(|(i, period)| Observation { date: period.date, known: day(i, period.hours()) }).collect()
}

/// One day: the driver, and kilowatt-hours.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Day {
    pub driver: f64,
    pub kwh: f64,
}

/// The line through these days.
///
/// # Errors
/// If there are too few days, or they are too much alike.
pub fn fit(days: &[Day]) -> Result<Model, NoFit> {
    if days.len() < DAYS_MIN {
        return Err(NoFit::TooFewDays(days.len()));
    }
    let n = days.len() as f64;
    let mean = |of: fn(&Day) -> f64| days.iter().map(of).sum::<f64>() / n;
    let (driver_mean, kwh_mean) = (mean(|day| day.driver), mean(|day| day.kwh));
    let sum = |of: &dyn Fn(&Day) -> f64| days.iter().map(of).sum::<f64>();
    let driver_squares = sum(&|day| (day.driver - driver_mean).powi(2));
    let kwh_squares = sum(&|day| (day.kwh - kwh_mean).powi(2));
    if (driver_squares / n).sqrt() <= SPREAD_MIN * driver_mean.abs() || driver_squares <= 0.0 {
        return Err(NoFit::NoSpread);
    }
    if kwh_mean <= 0.0 {
        return Err(NoFit::NoEnergy);
    }
    let slope_kwh = sum(&|day| (day.driver - driver_mean) * (day.kwh - kwh_mean)) / driver_squares;
    let intercept_kwh = kwh_mean - slope_kwh * driver_mean;
    let left = sum(&|day| (day.kwh - intercept_kwh - slope_kwh * day.driver).powi(2));
    let rmse_kwh = (left / (n - 2.0)).sqrt();
    Ok(Model {
        days: i32::try_from(days.len()).unwrap_or(i32::MAX),
        intercept_kwh,
        slope_kwh,
        // Where the energy never changes, nothing is left to explain.
        r2: if kwh_squares > 0.0 { (1.0 - left / kwh_squares).clamp(0.0, 1.0) } else { 0.0 },
        rmse_kwh,
        cv_rmse: rmse_kwh / kwh_mean,
        driver_mean,
        driver_squares,
        driver_min: days.iter().map(|day| day.driver).fold(f64::INFINITY, f64::min),
        driver_max: days.iter().map(|day| day.driver).fold(f64::NEG_INFINITY, f64::max),
    })
}

impl Model {
    /// What a day was to be expected to take, kilowatt-hours.
    #[must_use]
    pub fn expected_kwh(&self, driver: f64) -> f64 {
        self.intercept_kwh + self.slope_kwh * driver
    }

    fn knows(&self, driver: f64) -> bool {
        (self.driver_min..=self.driver_max).contains(&driver)
    }
}

/// What was expected, what was used, and the difference.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, ToSchema)]
pub struct Savings {
    /// Days that are known well enough: the figures are of these alone.
    pub days: i32,
    pub expected_kwh: f64,
    pub actual_kwh: f64,
    /// Expected less actual; negative where more was used.
    pub saved_kwh: f64,
    /// `saved_kwh` by `expected_kwh`; `null` where nothing was expected.
    pub saved_share: Option<f64>,
    /// In nine cases out of ten, the saving is within so much of `saved_kwh`.
    pub uncertainty_kwh: f64,
    /// Days whose driver lies beyond what the line was fitted to.
    pub extrapolated_days: i32,
}

/// What was saved on these days.
#[must_use]
pub fn savings(model: &Model, days: &[Day]) -> Savings {
    let m = days.len() as f64;
    let expected_kwh = days.iter().map(|day| model.expected_kwh(day.driver)).sum::<f64>();
    let actual_kwh = days.iter().map(|day| day.kwh).sum::<f64>();
    let off = days.iter().map(|day| day.driver - model.driver_mean).sum::<f64>();
    // Of the days themselves, of the line's height, and of its slope.
    let variance =
        model.rmse_kwh.powi(2) * (m + m * m / f64::from(model.days.max(1)) + off * off / model.driver_squares);
    let saved_kwh = expected_kwh - actual_kwh;
    Savings {
        days: i32::try_from(days.len()).unwrap_or(i32::MAX),
        expected_kwh,
        actual_kwh,
        saved_kwh,
        saved_share: (expected_kwh > 0.0).then(|| saved_kwh / expected_kwh),
        uncertainty_kwh: t_90(f64::from(model.days - 2)) * variance.sqrt(),
        extrapolated_days: days.iter().filter(|day| !model.knows(day.driver)).count() as i32,
    }
}

/// Student's t for 90 % between two bounds (Abramowitz and Stegun, 26.7.5); right in four figures from 8 degrees of freedom on.
fn t_90(degrees: f64) -> f64 {
    let z = Z_90;
    let terms = [
        (z.powi(3) + z) / 4.0,
        (5.0 * z.powi(5) + 16.0 * z.powi(3) + 3.0 * z) / 96.0,
        (3.0 * z.powi(7) + 19.0 * z.powi(5) + 17.0 * z.powi(3) - 15.0 * z) / 384.0,
        (79.0 * z.powi(9) + 776.0 * z.powi(7) + 1_482.0 * z.powi(5) - 1_920.0 * z.powi(3) - 945.0 * z) / 92_160.0,
    ];
    terms.iter().zip(1..).map(|(term, power)| term / degrees.powi(power)).sum::<f64>() + z
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(a: f64, b: f64) -> bool {
        (a - b).abs() <= 1e-9 * (1.0 + b.abs())
    }

    fn days(pairs: &[(f64, f64)]) -> Vec<Day> {
        pairs.iter().map(|&(driver, kwh)| Day { driver, kwh }).collect()
    }

    /// Anscombe's first quartet (1973), whose line is known: y = 3.00 + 0.500 x, R² 0.667, standard error 1.237.
    #[test]
    fn the_line_of_a_known_example() {
        let anscombe = days(&[
            (10.0, 8.04),
            (8.0, 6.95),
            (13.0, 7.58),
            (9.0, 8.81),
            (11.0, 8.33),
            (14.0, 9.96),
            (6.0, 7.24),
            (4.0, 4.26),
            (12.0, 10.84),
            (7.0, 4.82),
            (5.0, 5.68),
        ]);
        let model = fit(&anscombe).unwrap();
        let round = |figure: f64| (figure * 1e3).round() / 1e3;
        assert!(near(round(model.intercept_kwh), 3.0) && near(round(model.slope_kwh), 0.5), "{model:?}");
        assert!(near(round(model.r2), 0.667) && near(round(model.rmse_kwh), 1.237), "{model:?}");
        assert!(near(round(model.cv_rmse), 0.165), "{model:?}");
        assert!(near(model.driver_mean, 9.0) && near(model.driver_squares, 110.0));
        assert!(near(model.driver_min, 4.0) && near(model.driver_max, 14.0));
        // One day at the mean: s·t·√(1 + 1/11); ten of them at 10: s·t·√(10 + 100/11 + 100/110).
        let one = savings(&model, &days(&[(9.0, 7.0)]));
        assert!((one.uncertainty_kwh - 1.2366 * 1.8331 * (1.0 + 1.0 / 11.0_f64).sqrt()).abs() < 1e-3, "{one:?}");
        let ten = savings(&model, &days(&[(10.0, 7.0); 10]));
        assert!((ten.uncertainty_kwh - 1.2366 * 1.8331 * 20.0_f64.sqrt()).abs() < 2e-3, "{ten:?}");
        assert!(near(ten.saved_kwh, 10.0 * (model.expected_kwh(10.0) - 7.0)));
        assert_eq!((ten.days, ten.extrapolated_days), (10, 0));
        let far = savings(&model, &days(&[(15.0, 20.0), (4.0, 1.0)]));
        assert_eq!(far.extrapolated_days, 1);
        assert!(far.saved_kwh < 0.0);
    }

    #[test]
    fn a_line_without_noise_is_found_and_has_no_doubt() {
        let exact: Vec<Day> =
            (0..30).map(|n| f64::from(n % 7)).map(|x| Day { driver: x, kwh: 40.0 + 2.5 * x }).collect();
        let model = fit(&exact).unwrap();
        assert!(near(model.intercept_kwh, 40.0) && near(model.slope_kwh, 2.5) && near(model.r2, 1.0));
        let saved = savings(&model, &days(&[(4.0, 45.0), (2.0, 40.0)]));
        assert!(near(saved.expected_kwh, 95.0) && near(saved.saved_kwh, 10.0), "{saved:?}");
        assert!(near(saved.saved_share.unwrap(), 10.0 / 95.0) && saved.uncertainty_kwh < 1e-6);
    }

    #[test]
    fn there_is_no_line_through_too_little() {
        let line = |n: i32, step: f64| {
            (0..n).map(|i| Day { driver: 100.0 + step * f64::from(i), kwh: 50.0 }).collect::<Vec<_>>()
        };
        assert_eq!(fit(&line(9, 10.0)), Err(NoFit::TooFewDays(9)));
        assert_eq!(fit(&line(10, 0.0)), Err(NoFit::NoSpread));
        assert_eq!(fit(&line(10, 0.1)), Err(NoFit::NoSpread));
        assert!(fit(&line(10, 10.0)).is_ok());
        let none: Vec<Day> = (0..10).map(|n| Day { driver: f64::from(n), kwh: 0.0 }).collect();
        assert_eq!(fit(&none), Err(NoFit::NoEnergy));
        let still = fit(&line(10, 10.0)).unwrap();
        assert!(near(still.slope_kwh, 0.0) && near(still.r2, 0.0), "energy that never changes is explained by nothing");
    }

    #[test]
    fn a_day_counts_when_it_is_known() {
        use jiff::{Timestamp, civil::date, tz::TimeZone};

        use crate::energy::{
            accounts,
            calendar::{Per, Terms},
            production::{Part, ProductionKind, SensorHour},
            profile::{HOURS, Profile},
        };

        let terms = Terms {
            zone: TimeZone::get("Asia/Kolkata").unwrap(),
            tariffs: Vec::new(),
            factors: Vec::new(),
            g_per_kwh_default: 0.0,
        };
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let calendar = Calendar::new(at("2026-01-01T18:00Z"), at("2026-01-04T19:00Z"), Some(Per::Day), &terms);
        assert_eq!(calendar.periods.len(), 5, "the halves of hours before and after too");
        let mut sums = vec![Account::default(); 5];
        let full = Profile {
            wh: vec![Some(500.0); HOURS],
            measured_ms: vec![3_600_000; HOURS],
            running_ms: vec![900_000; HOURS],
        };
        let mut holed = full.clone();
        (holed.wh[3], holed.measured_ms[3]) = (None, 0);
        (holed.wh[4], holed.measured_ms[4]) = (None, 0);
        for (day, profile) in [("01", &full), ("02", &full), ("03", &holed), ("04", &full)] {
            accounts::add(&mut sums, &calendar, at(&format!("2026-01-{day}T00:00Z")), profile);
        }
        let days = (date(2026, 1, 2), date(2026, 1, 5));
        let known = |sensors: Option<&[Counted]>, machines| {
            let days = observe(days, &calendar, &sums, machines, sensors);
            assert_eq!(days.iter().map(|day| day.date.day()).collect::<Vec<_>>(), [2, 3, 4]);
            days.iter().map(|day| day.known.map(|day| (day.driver, day.kwh))).collect::<Vec<_>>()
        };
        assert_eq!(known(None, 1), [Some((6.0, 12.0)), None, Some((6.0, 12.0))]);
        assert_eq!(known(None, 2), [None; 3], "one of two machines says nothing");
        let hour = |n: i64| SensorHour {
            start: at("2026-01-01T16:00Z") + jiff::SignedDuration::from_hours(n),
            min: n as f64 * 10.0,
            max: n as f64 * 10.0 + 10.0,
            mean: 0.0,
            last: n as f64 * 10.0 + 10.0,
            known_ms: 3_600_000,
        };
        let hours: Vec<SensorHour> = (0..80).filter(|n| !(56..60).contains(n)).map(hour).collect();
        let counter = |parts: &[&[SensorHour]]| {
            let part = |hours: &&[SensorHour]| Part { in_hour: 1.0, hours: hours.to_vec() };
            Counted { kind: ProductionKind::Counter, parts: parts.iter().map(part).collect() }
        };
        let whole = counter(&[&hours]);
        assert_eq!(known(Some(std::slice::from_ref(&whole)), 1), [Some((240.0, 12.0)), None, None]);
        assert_eq!(known(Some(&[]), 1), [None; 3]);
        assert_eq!(
            known(Some(&[whole.clone(), counter(&[])]), 1),
            [None; 3],
            "nobody knows what the other one counted"
        );
        // A part took another's place at noon.
        let (before, after) = hours.split_at(14);
        assert_eq!(known(Some(&[counter(&[before, after])]), 1)[0].map(|(made, _)| made), Some(240.0));
        assert_eq!(known(Some(&[whole.clone(), whole]), 1)[0].map(|(made, _)| made), Some(480.0));
    }

    #[test]
    fn students_t_is_that_of_the_tables() {
        for (degrees, table) in [(8.0, 1.860), (9.0, 1.833), (20.0, 1.725), (28.0, 1.701), (120.0, 1.658)] {
            assert!((t_90(degrees) - table).abs() < 6e-4, "{degrees}: {}", t_90(degrees));
        }
    }
}
