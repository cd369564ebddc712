//! What is known of the clock at each start of the machine: a small file, so that records of before can be put right.
//!
//! A line each: `latest MICROSECONDS` is the latest time that was known to be right; `known BOOT MICROSECONDS` and `guess BOOT MICROSECONDS`
//! say what a right clock showed, or what it may have shown, at that start. A line that cannot be read is passed over.

use std::{collections::VecDeque, fmt::Write as _, path::Path};

use gemba_shared::telemetry::Timestamp;

/// Starts that are remembered: those whose records may still wait here.
const BOOTS_MAX: usize = 64;

#[derive(Debug, Default)]
pub(super) struct Boots {
    /// Microseconds since 1970.
    latest: i64,
    /// The latest last.
    boots: VecDeque<Boot>,
}

#[derive(Debug, Clone, Copy)]
struct Boot {
    id: u64,
    offset_us: i64,
    known: bool,
}

impl Boots {
    pub(super) fn read(file: &Path) -> Self {
        let mut this = Self::default();
        for line in std::fs::read_to_string(file).unwrap_or_default().lines() {
            let mut words = line.split(' ');
            let word = words.next().unwrap_or_default();
            let mut number = || words.next().and_then(|word| word.parse::<i128>().ok());
            match (word, number(), number()) {
                ("latest", Some(us), None) => this.latest = i64::try_from(us).unwrap_or(0),
                ("known" | "guess", Some(id), Some(us)) => {
                    let (Ok(id), Ok(offset_us)) = (u64::try_from(id), i64::try_from(us)) else { continue };
                    this.boots.push_back(Boot { id, offset_us, known: word == "known" });
                }
                _ => {}
            }
        }
        this
    }

    pub(super) fn text(&self) -> String {
        let mut text = format!("latest {}\n", self.latest);
        for Boot { id, offset_us, known } in &self.boots {
            let word = if *known { "known" } else { "guess" };
            writeln!(text, "{word} {id} {offset_us}").expect("a string takes everything");
        }
        text
    }

    /// The latest time that was known to be right.
    pub(super) fn latest(&self) -> Timestamp {
        Timestamp(self.latest)
    }

    pub(super) fn saw(&mut self, at: Timestamp) {
        self.latest = self.latest.max(at.0);
    }

    pub(super) fn known(&self, id: u64) -> Option<i64> {
        self.boots.iter().find(|boot| boot.id == id && boot.known).map(|boot| boot.offset_us)
    }

    /// What to add to times since that start, and whether that is known.
    pub(super) fn offset(&self, id: u64) -> Option<(i64, bool)> {
        // Multiples of a millisecond are left to the starts of intervals by a right clock, so that none is the same.
        let boot = self.boots.iter().find(|boot| boot.id == id)?;
        Some((boot.offset_us.div_euclid(1_000) * 1_000 + 1, boot.known))
    }

    /// Takes a guess for a start; whether it is a new one.
    pub(super) fn guess(&mut self, id: u64, offset_us: i64) -> bool {
        match self.boots.iter_mut().find(|boot| boot.id == id) {
            Some(boot) if boot.known => false,
            Some(boot) => {
                boot.offset_us = offset_us;
                false
            }
            None => {
                self.push(Boot { id, offset_us, known: false });
                true
            }
        }
    }

    /// What is known stays. By how much it differs from what was guessed, if something was.
    pub(super) fn learn(&mut self, id: u64, offset_us: i64) -> Option<i64> {
        match self.boots.iter_mut().find(|boot| boot.id == id) {
            Some(boot) if boot.known => None,
            Some(boot) => {
                let by_us = offset_us.saturating_sub(boot.offset_us);
                *boot = Boot { id, offset_us, known: true };
                Some(by_us)
            }
            None => {
                self.push(Boot { id, offset_us, known: true });
                None
            }
        }
    }

    fn push(&mut self, boot: Boot) {
        self.boots.push_back(boot);
        if self.boots.len() > BOOTS_MAX {
            self.boots.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_read_as_it_was_written_and_damage_costs_a_line() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("clock");
        let mut boots = Boots::read(&file);
        boots.saw(Timestamp(77));
        assert!(boots.guess(u64::MAX, -5));
        assert!(boots.guess(3, 10));
        assert_eq!(boots.learn(3, 12_345), Some(12_335));
        assert_eq!(boots.learn(3, 99), None, "what is known stays");
        std::fs::write(&file, boots.text().replace("latest", "\u{fffd}")).unwrap();
        let again = Boots::read(&file);
        assert_eq!((again.known(3), again.known(u64::MAX), again.latest().0), (Some(12_345), None, 0));
        assert_eq!((again.offset(3), again.offset(u64::MAX)), (Some((12_001, true)), Some((-999, false))));
    }
}
