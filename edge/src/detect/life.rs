//! How long a machine has, from the trend of its health: refused where there is none.
//!
//! The indicator is the smoothed score that health is made of; it is at its end at [`END`], where health is 0 %. It is kept as means of
//! blocks of steps: at most [`BLOCKS_MAX`], and where there would be more, two become one, so that the whole history since
//! calibration is seen with a bounded memory.
//!
//! - There is a trend where Mann and Kendall's test says so: with n blocks, S = Σ sign(yⱼ − yᵢ) over i < j, its variance
//!   n(n − 1)(2n + 5)/18, and z = (S − 1)/√variance at least [`TREND_Z`] (H. B. Mann, *Nonparametric tests against trend*, 1945; M. G.
//!   Kendall, *Rank correlation methods*, 1975).
//! - Its slope is the median of the slopes of all pairs, and of these slopes those that lie z·√variance/2 places from the middle
//!   bound it (P. K. Sen, *Estimates of the regression coefficient based on Kendall's tau*, 1968), here for four times out of five.
//! - What is left is the way to the end, from where the line stands now, at that slope.
//!
//! Refused as well: a rise that is too small to matter, and an end more than [`AHEAD_MAX`] times as far ahead as was looked back.

use gemba_shared::telemetry::Remaining;
use serde::{Deserialize, Serialize};

/// The indicator at which nothing is left.
pub const END: f32 = 3.0;
const BLOCKS_MAX: usize = 48;
const BLOCKS_MIN: usize = 12;
/// Steps in the first blocks: far longer than the indicator's smoothing, so that neighbours say something of their own.
const BLOCK_STEPS: u32 = 60;
/// Of a normal distribution, one-sided: 1 in 10,000. Blocks are not quite independent.
const TREND_Z: f64 = 3.719;
/// The same, two-sided: four times out of five.
const BOUND_Z: f64 = 1.2816;
/// The least rise over the history.
const RISE_MIN: f64 = 0.15;
const AHEAD_MAX: f64 = 10.0;

/// The indicator's history.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Life {
    blocks: Vec<f32>,
    block_steps: u32,
    sum: f64,
    count: u32,
    remaining: Option<Remaining>,
}

impl Default for Life {
    fn default() -> Self {
        Self { blocks: Vec::new(), block_steps: BLOCK_STEPS, sum: 0.0, count: 0, remaining: None }
    }
}

impl Life {
    /// Takes the indicator of a step.
    pub fn push(&mut self, indicator: f32, step_us: i64) {
        self.sum += f64::from(indicator.min(END));
        self.count += 1;
        if self.count < self.block_steps {
            return;
        }
        self.blocks.push((self.sum / f64::from(self.count)) as f32);
        (self.sum, self.count) = (0.0, 0);
        if self.blocks.len() >= BLOCKS_MAX {
            self.blocks = self.blocks.chunks_exact(2).map(|pair| f32::midpoint(pair[0], pair[1])).collect();
            self.block_steps = self.block_steps.saturating_mul(2);
        }
        let block_s = f64::from(self.block_steps) * step_us as f64 / 1e6;
        self.remaining = remaining(&self.blocks, block_s);
    }

    /// As of the last whole block.
    #[must_use]
    pub fn remaining(&self) -> Option<Remaining> {
        self.remaining
    }
}

fn remaining(blocks: &[f32], block_s: f64) -> Option<Remaining> {
    let n = blocks.len();
    if n < BLOCKS_MIN {
        return None;
    }
    let mut slopes = Vec::with_capacity(n * (n - 1) / 2);
    let mut agreement = 0_i64;
    for (i, early) in blocks.iter().enumerate() {
        for (distance, late) in (1_u32..).zip(&blocks[i + 1..]) {
            let rise = f64::from(late - early);
            agreement += i64::from(rise > 0.0) - i64::from(rise < 0.0);
            slopes.push(rise / f64::from(distance));
        }
    }
    let count = n as f64;
    let deviation = (count * (count - 1.0) * (2.0 * count + 5.0) / 18.0).sqrt();
    if (agreement - 1) as f64 / deviation < TREND_Z {
        return None;
    }
    slopes.sort_by(f64::total_cmp);
    let middle = slopes.len() as f64 / 2.0;
    let place = |offset: f64| slopes[(middle + offset).clamp(0.0, (slopes.len() - 1) as f64) as usize];
    let aside = BOUND_Z * deviation / 2.0;
    let (slow, slope, fast) = (place(-aside), place(0.0), place(aside));
    if slow <= 0.0 || slope * count < RISE_MIN {
        return None;
    }
    let mut levels: Vec<f64> =
        blocks.iter().enumerate().map(|(i, level)| f64::from(*level) + slope * (count - 1.0 - i as f64)).collect();
    levels.sort_by(f64::total_cmp);
    let way = (f64::from(END) - levels[n / 2]).max(0.0);
    if way / slope > AHEAD_MAX * count {
        return None;
    }
    let seconds = |slope: f64| (way / slope * block_s) as f32;
    Some(Remaining { likely_s: seconds(slope), low_s: seconds(fast), high_s: seconds(slow) })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said at the end of a history of this many steps of a second.
    fn check(steps: u32, indicator: impl Fn(f32) -> f32) -> Option<Remaining> {
        let mut life = Life::default();
        for step in 0..steps {
            let noise = (step.wrapping_mul(2_654_435_761) >> 16) as f32 / 65_536.0 - 0.5;
            life.push(indicator(step as f32) + 0.2 * noise, 1_000_000);
        }
        life.remaining()
    }

    #[test]
    fn wear_that_goes_on_has_an_end() {
        // It rises by 1 in 10,000 s, and stands at 2.4 of 3.
        let left = check(20_000, |step| 0.4 + step / 10_000.0).unwrap();
        assert!((left.likely_s - 6_000.0).abs() < 600.0, "{left:?}");
        assert!(left.low_s < left.likely_s && left.likely_s < left.high_s, "{left:?}");
        assert!(left.low_s > 5_000.0 && left.high_s < 8_000.0, "{left:?}");
        let left = check(20_000, |step| 0.4 + step / 10_000.0 + step * step / 1e8).unwrap();
        assert!(left.likely_s < 3_000.0, "{left:?}");
        let left = check(40_000, |step| step / 10_000.0).unwrap();
        assert_eq!((left.low_s, left.likely_s, left.high_s), (0.0, 0.0, 0.0), "it is over");
    }

    #[test]
    fn without_a_trend_nothing_is_said() {
        assert_eq!(check(600, |step| step / 100.0), None, "too short");
        assert_eq!(check(100_000, |_| 0.5), None, "level");
        assert_eq!(check(100_000, |step| 0.5 + 0.3 * (step / 3_000.0).sin()), None, "to and fro");
        assert_eq!(check(100_000, |step| 2.0 - step / 100_000.0), None, "better and better");
        assert_eq!(check(20_000, |step| 0.5 + step / 1e6), None, "too little");
    }

    #[test]
    fn a_long_history_stays_small() {
        let mut life = Life::default();
        for _ in 0..1_000_000 {
            life.push(0.5, 1_000_000);
        }
        assert!(life.blocks.len() <= BLOCKS_MAX && life.blocks.len() >= BLOCKS_MAX / 2 - 1);
        assert_eq!(life.remaining(), None);
    }
}
