//! What a factory does to a gateway: each scenario breaks something while numbered readings flow, and then the database says
//! which of them arrived. Each reading's value is its number, so that the summaries show what is missing, double or in
//! the wrong interval.
//!
//! `cargo test` runs the short form of each; `./run chaos` the long one (`GEMBA_CHAOS=long`), and gathers the lines that
//! [`Told`] writes (`GEMBA_CHAOS_REPORT`). The moments are drawn from a seed, which is printed; `GEMBA_CHAOS_SEED` sets it.

use std::{
    collections::BTreeMap,
    env,
    fs::File,
    io::Write as _,
    time::{Duration, Instant},
};

use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};

use crate::{
    ledger::{Cell, Figures, Reckoning, Values, reckon},
    plant::{DEADLINE, INTERVAL_US, Plant, count, stored},
};

mod clock;
mod disk;
mod drain;
mod fleet;
mod kill;
mod link;
mod load;
mod power;
mod soak;

pub use fleet::{Fleet, Pace, Sent};

/// Periods for devices that go on faster than the clock: a pause of theirs of half a minute makes nothing late.
pub const PATIENT: &str = "[defaults]\nlateness = \"30s\"\n";

/// Whether everything is tried for long.
pub fn is_long() -> bool {
    env::var("GEMBA_CHAOS").is_ok_and(|form| form == "long")
}

pub fn rounds(short: u32, long: u32) -> u32 {
    let told = env::var("GEMBA_CHAOS_ROUNDS").ok().and_then(|rounds| rounds.parse().ok());
    told.unwrap_or(if is_long() { long } else { short })
}

/// A scenario under way: its random moments, and its line at the end.
pub struct Told {
    name: &'static str,
    begun: Instant,
    pub random: SmallRng,
}

impl Told {
    pub fn new(name: &'static str) -> Self {
        let told = env::var("GEMBA_CHAOS_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed: u64 = told.unwrap_or_else(rand::random);
        eprintln!("chaos {name}: GEMBA_CHAOS_SEED={seed}");
        Self { name, begun: Instant::now(), random: SmallRng::seed_from_u64(seed) }
    }

    /// Waits for a moment that nobody expects.
    pub async fn a_moment(&mut self, at_most_ms: u64) {
        let moment = Duration::from_millis(self.random.random_range(0..=at_most_ms));
        tokio::time::sleep(moment).await;
    }

    /// Waits until the database has every value of these once, in its interval, and nothing else; tells the figures.
    ///
    /// # Panics
    /// If it is not so in time.
    pub async fn all_stored_once(&self, plant: &Plant, sent: &Sent, more: &str) {
        let begun = Instant::now();
        let found = loop {
            let found = reckon(&sent.values, &self.rows(plant, sent).await);
            if found.is_right() || begun.elapsed() > DEADLINE {
                break found;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        };
        self.line(sent, &found, more);
        let right = found.is_right();
        assert!(right, "after {DEADLINE:?} still:\n{}\n{}\n{}", found.examples, plant.edge.tail(), plant.cloud.tail());
        let database = plant.database().await;
        assert_eq!(count(&database, "SELECT count(*) FROM gaps").await, 0, "nothing is reported lost");
        assert_eq!(count(&database, "SELECT count(*) FROM refusals").await, 0, "nothing is refused");
    }

    /// The rows of intervals that were sent whole; none while the database is away.
    async fn rows(&self, plant: &Plant, sent: &Sent) -> BTreeMap<Cell, Figures> {
        let Some(database) = plant.try_database().await else { return BTreeMap::new() };
        let mut rows = stored(&database).await;
        rows.retain(|cell, _| cell.start_us < sent.end_us);
        rows
    }

    /// Tells the figures.
    pub fn line(&self, sent: &Sent, found: &Reckoning, more: &str) {
        let Reckoning { values, stored, missing, double, misplaced, .. } = found;
        let seconds = self.begun.elapsed().as_secs_f64();
        eprintln!(
            "chaos {}: sent {}, acknowledged {values}, stored {stored}, missing {missing}, double {double}, \
             in the wrong interval {misplaced}; {seconds:.1} s; {more}",
            self.name, sent.count
        );
        let row = [self.name, &sent.count.to_string(), &values.to_string(), &stored.to_string()].join("\t");
        Self::report(&format!("{row}\t{missing}\t{double}\t{misplaced}\t{seconds:.1}\t{more}"));
    }

    /// A scenario whose figures are others.
    pub fn tell(&self, more: &str) {
        let seconds = self.begun.elapsed().as_secs_f64();
        eprintln!("chaos {}: {more}; {seconds:.1} s", self.name);
        Self::report(&format!("{}\t\t\t\t\t\t\t{seconds:.1}\t{more}", self.name));
    }

    fn report(row: &str) {
        if let Ok(path) = env::var("GEMBA_CHAOS_REPORT") {
            let mut file = File::options().create(true).append(true).open(path).unwrap();
            writeln!(file, "{row}").unwrap();
        }
    }
}

/// The interval that a moment falls in.
fn cell(machine: &str, sensor: &str, at_us: i64) -> Cell {
    Cell {
        machine: machine.to_owned(),
        sensor: sensor.to_owned(),
        start_us: at_us.div_euclid(INTERVAL_US) * INTERVAL_US,
    }
}

/// Puts a value where it belongs.
pub fn note(values: &mut Values, machine: &str, sensor: &str, at_us: i64, value: f64) {
    values.entry(cell(machine, sensor, at_us)).or_default().push(value);
}
