//! What a machine used in each hour of a day (UTC): what costs and emissions are made of, since both change with the hour.

use std::collections::BTreeMap;

use jiff::Timestamp;

use crate::history::{DAY_MS, HOUR_MS, SummaryRow, floor};

/// Hours of a day; days are UTC's and all alike.
pub const HOURS: usize = 24;

/// One machine's day.
#[derive(Debug, Clone, PartialEq)]
pub struct Profile {
    /// Watt-hours of intervals that began in the hour; `None` where nothing was measured.
    pub wh: Vec<Option<f64>>,
    /// Of intervals with energy, milliseconds.
    pub measured_ms: Vec<i32>,
    /// Of those, of intervals in which the machine ran.
    pub running_ms: Vec<i32>,
}

impl Default for Profile {
    fn default() -> Self {
        Self { wh: vec![None; HOURS], measured_ms: vec![0; HOURS], running_ms: vec![0; HOURS] }
    }
}

/// Days by machine and start.
pub type Profiles = BTreeMap<(i32, Timestamp), Profile>;

/// The summary's code for a machine that runs.
const RUNNING: i16 = 3;

/// The days of these intervals alone; those without energy say nothing.
#[must_use]
pub fn gather<'a>(rows: impl IntoIterator<Item = &'a SummaryRow>) -> Profiles {
    let mut profiles = Profiles::new();
    for row in rows {
        let Some(wh) = row.energy_wh.filter(|wh| wh.is_finite()) else { continue };
        let start = floor(row.start, DAY_MS);
        let hour = (row.start.duration_since(start).as_millis() / i128::from(HOUR_MS)) as usize;
        let profile = profiles.entry((row.machine_key, start)).or_default();
        profile.wh[hour] = Some(profile.wh[hour].unwrap_or_default() + wh);
        profile.measured_ms[hour] = profile.measured_ms[hour].saturating_add(row.interval_ms);
        if row.mode == RUNNING {
            profile.running_ms[hour] = profile.running_ms[hour].saturating_add(row.interval_ms);
        }
    }
    profiles
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::rollup::tests::row;

    #[test]
    fn hours_of_a_day_and_nothing_where_nothing_was_measured() {
        let hour = HOUR_MS;
        let rows = [
            row(0, &[]),
            row(10_000, &[]),
            SummaryRow { energy_wh: None, ..row(20_000, &[]) },
            SummaryRow { energy_wh: Some(f64::NAN), ..row(30_000, &[]) },
            SummaryRow { mode: 2, energy_wh: Some(0.5), ..row(DAY_MS - 1, &[]) },
            row(DAY_MS + 5 * hour, &[]),
            SummaryRow { energy_wh: None, ..row(9 * DAY_MS, &[]) },
        ];
        let profiles = gather(&rows);
        assert_eq!(profiles.len(), 2, "a day without energy is none");
        let first = &profiles[&(1, Timestamp::UNIX_EPOCH)];
        assert_eq!((first.wh[0], first.wh[1], first.wh[23]), (Some(4.0), None, Some(0.5)));
        assert_eq!((first.measured_ms[0], first.running_ms[0]), (20_000, 20_000));
        assert_eq!((first.measured_ms[23], first.running_ms[23]), (10_000, 0));
        assert_eq!(profiles[&(1, Timestamp::from_millisecond(DAY_MS).unwrap())].wh[5], Some(2.0));
    }
}
