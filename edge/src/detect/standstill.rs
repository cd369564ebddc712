//! Whether a machine is switched off, found from its sensors where nobody said by which one that shows.
//!
//! Current, power, flow, speed and vibration go to nothing when a machine is switched off, and so together. Temperatures, a mains voltage, a
//! static pressure do not, or fall slowly.
//!
//! - A sensor can tell if zero is far from all that it usually shows: [`DISTINCT`] of its usual deviations from its centre. It has *fallen* if it
//!   is less than [`FALLEN`] of its centre away from zero, and is *at rest* if it is less than [`AT_REST`] away.
//! - Off is when more than half of the judged sensors, and two at least, have been at rest for [`REST_STEPS`] steps. A single sensor that
//!   shows nothing is stuck or lost, and an anomaly. So is a machine that goes on with little: a pump without water, a motor without load.
//! - A stop takes some steps, in which a machine looks as wrong as it ever does. From the step on in which a quarter of the sensors have fallen,
//!   judgement waits: [`GUESS_STEPS`] for more than half to have fallen, [`STOP_STEPS`] in all for the machine to be off. If it is not, the
//!   steps are judged then, one after another: an anomaly of that kind comes so much later. What is open already waits for nothing.
//! - A start ends when no more than half of the sensors are fallen any more, or after [`START_STEPS`].
//!
//! Where too few sensors can tell, off looks like an anomaly, and `mode` in the configuration says by which sensor it shows.

use serde::{Deserialize, Serialize};

use super::levels::{Levels, Usual};

const DISTINCT: f64 = 5.0;
const FALLEN: f64 = 0.5;
const AT_REST: f64 = 0.1;
const SENSORS_MIN: usize = 2;
const REST_STEPS: u16 = 3;
const GUESS_STEPS: u16 = 5;
const STOP_STEPS: u16 = 30;
const START_STEPS: u16 = 60;

/// Whether a machine stands.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Standstill {
    is_off: bool,
    /// Steps in a row in which most sensors were at rest.
    rest: u16,
    /// Steps of what may be a stop, or of a start.
    waited: u16,
    /// What began was no stop.
    dismissed: bool,
}

/// What a step of the machine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    Runs,
    /// It may be of a stop: that shows within some steps.
    Waits,
    Off,
}

/// How many of a machine's sensors.
#[derive(Debug, Clone, Copy)]
struct Counts {
    of: usize,
    fallen: usize,
    at_rest: usize,
}

impl Counts {
    fn of(usual: &Usual, levels: &Levels, channels: &[u16], values: &[f32]) -> Self {
        let mut counts = Self { of: channels.len(), fallen: 0, at_rest: 0 };
        for sensor in channels.iter().map(|channel| usize::from(*channel)) {
            let (Some(centre), Some(value)) = (levels.centre.get(sensor), values.get(sensor)) else { continue };
            let (level, value) = (centre.abs(), f64::from(value.abs()));
            if level > DISTINCT * usual.deviation(sensor) {
                counts.fallen += usize::from(value < FALLEN * level);
                counts.at_rest += usize::from(value < AT_REST * level);
            }
        }
        counts
    }

    const fn are_most(self, sensors: usize) -> bool {
        self.of >= SENSORS_MIN && sensors * 2 > self.of
    }

    const fn are_many(self, sensors: usize) -> bool {
        self.of >= SENSORS_MIN && sensors > 0 && sensors * 4 >= self.of
    }
}

impl Standstill {
    #[must_use]
    pub const fn is_off(&self) -> bool {
        self.is_off
    }

    /// Takes a step's values. `may_wait`: judgement has time, as nothing is known to be wrong.
    pub fn step(&mut self, usual: &Usual, levels: &Levels, channels: &[u16], values: &[f32], may_wait: bool) -> Look {
        let counts = Counts::of(usual, levels, channels, values);
        let (rests, has_fallen) = (counts.are_most(counts.at_rest), counts.are_most(counts.fallen));
        self.rest = if rests { self.rest.saturating_add(1) } else { 0 };
        if self.rest >= REST_STEPS {
            *self = Self { is_off: true, rest: self.rest, ..Self::default() };
            return Look::Off;
        }
        if self.is_off && has_fallen && self.waited < START_STEPS {
            self.waited += 1;
            return Look::Off;
        }
        if std::mem::take(&mut self.is_off) || !counts.are_many(counts.fallen) {
            // After a start that did not end, it is no stop that begins.
            (self.waited, self.dismissed) = (0, has_fallen);
            return Look::Runs;
        }
        self.waited = self.waited.saturating_add(1);
        self.dismissed |= !may_wait || self.waited > if has_fallen { STOP_STEPS } else { GUESS_STEPS };
        if self.dismissed { Look::Runs } else { Look::Waits }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::levels;

    /// A pump: current, flow, vibration and power, and two temperatures.
    const USUAL: [f32; 6] = [16.0, 50.0, 2.0, 10.0, 48.0, 70.0];

    /// What is made of rows that are these shares of what is usual: `r` for a step that runs, `w` for one that waits, `o` for off.
    #[track_caller]
    fn check(may_wait: bool, rows: &[([f32; 6], usize)], expected: &str) {
        let rows_usual: Vec<Vec<f32>> = (0..120)
            .map(|step: u32| {
                let noise = |sensor: u32| (step * 37 % 11 + step * sensor * 13 % 7) as f32 / 1_000.0;
                (0..).zip(USUAL).map(|(sensor, usual)| usual * (1.0 + noise(sensor))).collect()
            })
            .collect();
        let rows_usual: Vec<&[f32]> = rows_usual.iter().map(Vec::as_slice).collect();
        let learnt = levels::calibrate(&rows_usual, USUAL.len());
        let mut standstill = Standstill::default();
        let steps = rows.iter().flat_map(|(shares, steps)| std::iter::repeat_n(shares, *steps));
        let seen: String = steps
            .map(|shares| {
                let values: Vec<f32> = shares.iter().zip(USUAL).map(|(share, usual)| share * usual).collect();
                match standstill.step(&learnt.usual, &learnt.levels, &[0, 1, 2, 3, 4, 5], &values, may_wait) {
                    Look::Runs => 'r',
                    Look::Waits => 'w',
                    Look::Off => 'o',
                }
            })
            .collect();
        assert_eq!(seen, expected);
    }

    const RUNS: [f32; 6] = [1.0; 6];
    const RESTS: [f32; 6] = [0.0, 0.02, 0.05, 0.0, 0.9, 0.95];
    const COLD: [f32; 6] = [0.0, 0.02, 0.05, 0.0, 0.5, 0.4];

    #[test]
    fn a_stop_is_off_and_a_start_is_not() {
        let coasts = [0.0, 0.6, 0.7, 0.0, 1.0, 1.0];
        let slower = [0.0, 0.3, 0.2, 0.0, 1.0, 1.0];
        let rows = [(RUNS, 2), (coasts, 2), (slower, 2), (RESTS, 5), (COLD, 2)];
        check(true, &rows, "rrwwwwwwooooo");
        check(true, &[(RESTS, 4), (slower, 2), (coasts, 1), (RUNS, 1)], "wwoooorr");
        // With an anomaly that is open nothing waits.
        check(false, &rows, "rrrrrrrrooooo");
    }

    #[test]
    fn what_goes_on_with_little_is_not_off() {
        // The valve is closed.
        check(true, &[([0.75, 0.0, 1.3, 0.75, 1.0, 1.0], 8)], "rrrrrrrr");
        // Two sensors are lost.
        check(true, &[([0.0, 0.0, 1.0, 1.0, 1.0, 1.0], 8)], "wwwwwrrr");
        // No water: what is left of most sensors is little, and not nothing.
        let dry = [0.4, 0.0, 0.45, 0.4, 1.0, 1.0];
        check(true, &[(dry, 35), (RUNS, 1), (dry, 1)], &format!("{}rrrrrrw", "w".repeat(30)));
        // It was off, and does not come up.
        check(true, &[(RESTS, 3), (dry, 63)], &format!("ww{}rrr", "o".repeat(61)));
    }

    #[test]
    fn where_zero_is_usual_nothing_is_known() {
        // Temperatures in degrees do not fall to nothing, and a sensor without a value says nothing.
        check(true, &[([f32::NAN, f32::NAN, f32::NAN, f32::NAN, 0.0, 0.0], 7)], "wwwwwrr");
        let mut usual = Usual::default();
        (usual.noise, usual.size) = (vec![1.0; 2], vec![1.0; 2]);
        let (mut levels, mut standstill) = (Levels::default(), Standstill::default());
        levels.centre = vec![4.0, 3.0];
        for _ in 0..5 {
            assert_eq!(standstill.step(&usual, &levels, &[0, 1], &[0.0, 0.0], true), Look::Runs);
        }
        // One sensor alone tells nothing.
        levels.centre = vec![400.0, 300.0];
        assert_eq!(standstill.step(&usual, &levels, &[0], &[0.0, 0.0], true), Look::Runs);
        assert_eq!(standstill.step(&usual, &levels, &[0, 1], &[0.0, 0.0], true), Look::Waits);
    }
}
