//! What people said of a machine's anomalies, and what its detector learns of it.
//!
//! The latest anomalies are remembered with their *peaks*, the largest score as a share of the limits that calibration made: at most
//! [`UNLABELLED_MAX`] without a label and [`LABELLED_MAX`] with one. A person says of one that it was real, or a false alarm; what was said last
//! counts.
//!
//! One figure is learnt, the *width*: every limit of the machine is so many times as wide as calibration made it, and 1.0 of a score is the
//! widened limit. It follows from what is remembered and from nothing else, so that the order of labels does not matter and a label that is
//! taken back is as if it had never been:
//!
//! - Without a label it is 1.0, and judges exactly as if there were no labels. It is never below 1.0: labels make no machine more sensitive
//!   than its calibration did.
//! - A false alarm asks for the least width at which it would not have been raised: its peak and a [`MARGIN`] more. One by itself may ask for
//!   [`STEP`] more than 1.0, two for twice that, and none for more than [`WIDTH_MAX`]. One that went farther asks for nothing: limits that
//!   would have kept it quiet would hide faults, and what it needs is a new normal, or another calibration.
//! - A real one would still have to be raised: the width stays a [`MARGIN`] below the least peak of those that were real, whatever the
//!   false ones ask for. A missed fault is worse than a false alarm.
//!
//! Peaks of before a calibration are shares of other limits: they count for how often the machine is right, and no longer for its width.
//! A label neither opens nor closes an anomaly. That wider limits let the centres follow a little farther is not counted.

use std::fmt;

use gemba_shared::telemetry::{Clock, Timestamp};
use serde::{Deserialize, Serialize};

/// Anomalies without a label that are remembered, the latest.
pub const UNLABELLED_MAX: usize = 32;
/// Anomalies with a label that are remembered, the latest.
pub const LABELLED_MAX: usize = 32;
/// Times as wide as they were learnt, at most.
pub const WIDTH_MAX: f32 = 2.0;
/// By how much one false alarm may widen the limits.
pub const STEP: f32 = 0.5;
/// By this factor a false alarm would have stayed below its limit, and a real one would have gone over it.
pub const MARGIN: f32 = 1.02;

/// The machine's latest anomalies, in the order in which they opened.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Labels(Vec<Noted>);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Noted {
    /// Of which `opened` counts.
    clock: Clock,
    opened: Timestamp,
    /// The largest score, as a share of the limits as they were learnt.
    peak: f32,
    /// What people said; `None` as long as they did not.
    real: Option<bool>,
    /// It was before the calibration that counts.
    past: bool,
}

/// How often a machine's detector was right, and how wide its limits are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Standing {
    /// Of the latest anomalies that people said something of: their number, and how many were real.
    pub labelled: u32,
    pub real: u32,
    /// 1.0: as they were learnt.
    pub width: f32,
}

/// What a label did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Labelled {
    pub real: bool,
    pub standing: Standing,
    /// Whether the anomaly is still open.
    pub is_open: bool,
    /// A false alarm that the width does not cover.
    pub is_uncovered: bool,
}

impl Labels {
    /// An anomaly stands at this peak. Whether that is more than was known.
    pub fn saw(&mut self, clock: Clock, opened: Timestamp, peak: f32) -> bool {
        match self.0.last_mut().filter(|noted| (noted.clock, noted.opened) == (clock, opened)) {
            Some(noted) if noted.peak >= peak => return false,
            Some(noted) => noted.peak = peak,
            None => {
                self.forget(|noted| noted.real.is_none(), UNLABELLED_MAX - 1);
                self.0.push(Noted { clock, opened, peak, real: None, past: false });
            }
        }
        true
    }

    /// Takes what a person says of the anomaly that opened at this time; `None` if it is not remembered. `put_right` makes a
    /// time by a clock the one under which it was told of.
    pub fn label(
        &mut self,
        opened: Timestamp,
        real: bool,
        put_right: impl Fn(Clock, Timestamp) -> Timestamp,
    ) -> Option<Labelled> {
        let noted = self.0.iter_mut().rev().find(|noted| put_right(noted.clock, noted.opened) == opened)?;
        noted.real = Some(real);
        let (peak, past) = (noted.peak, noted.past);
        self.forget(|noted| noted.real.is_some(), LABELLED_MAX);
        let standing = self.standing();
        let is_uncovered = !real && !past && peak > standing.width;
        Some(Labelled { real, standing, is_open: false, is_uncovered })
    }

    /// What was seen so far was judged by other limits than what comes.
    pub fn begin_anew(&mut self) {
        self.0.iter_mut().for_each(|noted| noted.past = true);
    }

    #[must_use]
    pub fn standing(&self) -> Standing {
        let of = |real: bool| self.0.iter().filter(|noted| noted.real == Some(real)).count();
        let (real, false_alarms) = (of(true) as u32, of(false) as u32);
        Standing { labelled: real + false_alarms, real, width: self.width() }
    }

    /// How many times as wide as they were learnt the limits are: see the head of this file.
    #[must_use]
    pub fn width(&self) -> f32 {
        let peaks = |real: bool| {
            self.0.iter().filter(move |noted| noted.real == Some(real) && !noted.past).map(|noted| noted.peak)
        };
        let mut false_alarms: Vec<f32> = peaks(false).map(|peak| peak * MARGIN).collect();
        false_alarms.sort_by(f32::total_cmp);
        let mut wanted = 1.0_f32;
        let mut allowed = 1.0_f32;
        for width in false_alarms {
            allowed = (allowed + STEP).min(WIDTH_MAX);
            if width <= allowed {
                wanted = wanted.max(width);
            }
        }
        let least_real = peaks(true).fold(f32::INFINITY, f32::min);
        wanted.min(least_real / MARGIN).max(1.0)
    }

    /// Keeps so many of these, the latest.
    fn forget(&mut self, which: impl Fn(&Noted) -> bool, keep: usize) {
        let mut excess = self.0.iter().filter(|noted| which(noted)).count().saturating_sub(keep);
        self.0.retain(|noted| {
            let goes = excess > 0 && which(noted);
            excess -= usize::from(goes);
            !goes
        });
    }
}

/// For people.
impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.labelled > 0 {
            let percent = 100.0 * self.real as f32 / self.labelled as f32;
            write!(f, "{} of {} labelled anomalies were real ({percent:.0} %); ", self.real, self.labelled)?;
        }
        if self.width > 1.0 {
            write!(f, "limits {:.2} times as wide as learnt", self.width)
        } else {
            f.write_str("limits as learnt")
        }
    }
}

/// For people.
impl fmt::Display for Labelled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if self.real { "real" } else { "a false alarm" };
        write!(f, "labelled as {what}. {}.", self.standing)?;
        if self.is_uncovered {
            f.write_str(
                " Wider limits alone would not have kept it quiet: if this is how the machine runs now, accept the new normal or calibrate anew.",
            )?;
        } else if self.is_open && !self.real {
            f.write_str(" It is still open: if this is how the machine runs now, accept the new normal.")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_millis(second * 1_000)
    }

    /// A peak, and what was said of it.
    type Case = (f32, Option<bool>);

    /// Anomalies with these peaks and labels, one a second.
    fn labels(peaks: &[Case]) -> Labels {
        let mut labels = Labels::default();
        for (second, (peak, real)) in (0..).zip(peaks) {
            assert!(labels.saw(Clock::Trusted, at(second), *peak));
            if let Some(real) = real {
                say(&mut labels, second, *real).unwrap();
            }
        }
        labels
    }

    fn say(labels: &mut Labels, second: i64, real: bool) -> Option<Labelled> {
        labels.label(at(second), real, |_, at| at)
    }

    #[test]
    fn the_width_is_what_the_labels_ask_for() {
        let (yes, no) = (Some(true), Some(false));
        let table: &[(&[Case], f32)] = &[
            (&[], 1.0),
            (&[(1.3, None), (5.0, None)], 1.0),
            (&[(1.3, yes)], 1.0),
            // By the least that is needed.
            (&[(1.3, no)], 1.3 * MARGIN),
            (&[(1.3, no), (1.1, no)], 1.3 * MARGIN),
            // Farther than one step only with company, and never farther than the most.
            (&[(1.8, no)], 1.0),
            (&[(1.8, no), (1.2, None)], 1.0),
            (&[(1.8, no), (1.9, no)], 1.9 * MARGIN),
            (&[(1.2, no), (1.8, no)], 1.8 * MARGIN),
            (&[(1.2, no), (7.0, no), (8.0, no), (9.0, no)], 1.2 * MARGIN),
            (&[(1.97, no), (1.97, no)], 1.0),
            // What was real would be raised still.
            (&[(1.4, no), (1.2, yes)], 1.2 / MARGIN),
            (&[(1.4, no), (3.0, yes)], 1.4 * MARGIN),
            (&[(1.4, no), (1.01, yes)], 1.0),
        ];
        for (peaks, width) in table {
            assert_eq!(labels(peaks).width().to_bits(), width.to_bits(), "{peaks:?}");
            let reversed: Vec<_> = peaks.iter().rev().copied().collect();
            assert_eq!(labels(&reversed).width().to_bits(), width.to_bits(), "{reversed:?}");
        }
    }

    #[test]
    fn no_label_misses_what_was_real_nor_passes_the_bounds() {
        // All combinations of four peaks and three opinions.
        let (peaks, opinions) = ([1.05, 1.45, 1.9, 4.0], [None, Some(true), Some(false)]);
        for number in 0..(12_usize).pow(4) {
            let digits = [number % 12, number / 12 % 12, number / 144 % 12, number / 1_728];
            let noted = digits.map(|digit| (peaks[digit % 4], opinions[digit / 4]));
            let width = labels(&noted).width();
            assert!((1.0..=WIDTH_MAX).contains(&width), "{noted:?}: {width}");
            for (peak, real) in noted {
                assert!(real != Some(true) || peak > width, "{noted:?}: {width}");
            }
        }
    }

    #[test]
    fn what_was_said_last_counts() {
        let mut labels = labels(&[(1.3, Some(false)), (1.4, None)]);
        let said = say(&mut labels, 1, false).unwrap();
        assert_eq!(said.standing, Standing { labelled: 2, real: 0, width: 1.4 * MARGIN });
        assert_eq!(
            said.to_string(),
            "labelled as a false alarm. 0 of 2 labelled anomalies were real (0 %); limits 1.43 times as wide as learnt."
        );
        say(&mut labels, 1, true).unwrap();
        assert_eq!(labels.standing(), Standing { labelled: 2, real: 1, width: 1.3 * MARGIN });
        say(&mut labels, 0, true).unwrap();
        assert_eq!(labels.standing(), Standing { labelled: 2, real: 2, width: 1.0 });
        assert_eq!(say(&mut labels, 7, true), None);
    }

    #[test]
    fn one_that_went_too_far_says_what_to_do() {
        let mut labels = labels(&[(6.0, None)]);
        let said = say(&mut labels, 0, false).unwrap();
        assert_eq!((said.is_uncovered, said.standing.width), (true, 1.0));
        assert!(said.to_string().contains("accept the new normal or calibrate anew"), "{said}");
        assert!(!say(&mut labels, 0, true).unwrap().is_uncovered);
    }

    #[test]
    fn an_anomaly_is_known_by_the_time_under_which_it_was_told_of() {
        let mut labels = Labels::default();
        let since_boot = Clock::SinceBoot { boot: 7 };
        labels.saw(since_boot, at(5), 1.2);
        labels.saw(Clock::Trusted, at(5), 1.3);
        let put_right = |clock: Clock, time: Timestamp| match clock {
            Clock::SinceBoot { boot: 7 } => time.plus_us(1_000_000_001),
            _ => time,
        };
        assert!(labels.label(at(5).plus_us(1_000_000_001), false, put_right).is_some());
        assert_eq!(labels.width().to_bits(), (1.2 * MARGIN).to_bits());
        assert_eq!(labels.label(at(6), false, put_right), None);
    }

    #[test]
    fn peaks_of_before_a_calibration_say_nothing_of_its_limits() {
        let mut labels = labels(&[(1.3, Some(false)), (1.2, None)]);
        labels.begin_anew();
        assert_eq!(labels.standing(), Standing { labelled: 1, real: 0, width: 1.0 });
        assert!(!say(&mut labels, 1, false).unwrap().is_uncovered);
        assert_eq!(labels.standing(), Standing { labelled: 2, real: 0, width: 1.0 });
        labels.saw(Clock::Trusted, at(9), 1.25);
        say(&mut labels, 9, false);
        assert_eq!(labels.width().to_bits(), (1.25 * MARGIN).to_bits());
    }

    #[test]
    fn the_latest_are_remembered_and_no_more_than_there_is_room_for() {
        let mut labels = Labels::default();
        for second in 0..500 {
            labels.saw(Clock::Trusted, at(second), 1.1);
            labels.saw(Clock::Trusted, at(second), 1.2);
            assert!(!labels.saw(Clock::Trusted, at(second), 1.15), "its peak is known");
            if second % 2 == 0 {
                assert!(say(&mut labels, second, second % 4 == 0).is_some());
            }
        }
        assert_eq!(labels.0.len(), UNLABELLED_MAX + LABELLED_MAX);
        assert_eq!(labels.standing().labelled, 32);
        assert!(say(&mut labels, 499, true).is_some() && say(&mut labels, 1, true).is_none());
        // Many that nobody labels leave those alone that somebody did.
        for second in 500..600 {
            labels.saw(Clock::Trusted, at(second), 1.1);
        }
        assert_eq!(labels.standing().labelled, 32);
        let bytes = postcard::to_stdvec(&labels).unwrap();
        assert!(bytes.len() < 2_048, "{}", bytes.len());
        assert_eq!(postcard::from_bytes::<Labels>(&bytes).unwrap(), labels);
    }
}
