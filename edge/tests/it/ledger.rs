//! What was sent and acknowledged, and what the database says of it.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path};

/// A sensor of a machine in one interval.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cell {
    pub machine: String,
    pub sensor: String,
    pub start_us: i64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Figures {
    pub count: i32,
    pub min: f64,
    pub max: f64,
    pub mean: f64,
    pub sd: f64,
}

impl Figures {
    fn of(values: &[f64]) -> Self {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / n;
        Self {
            count: i32::try_from(values.len()).unwrap(),
            min: values.iter().copied().fold(f64::INFINITY, f64::min),
            max: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            mean,
            sd: variance.sqrt(),
        }
    }

    /// The count and the extremes are exact; sums may be added up in another order.
    fn agrees(&self, other: &Self) -> bool {
        let near = |a: f64, b: f64| (a - b).abs() <= 1e-9 * (1.0 + a.abs().max(b.abs()));
        self.count == other.count
            && self.min.to_bits() == other.min.to_bits()
            && self.max.to_bits() == other.max.to_bits()
            && near(self.mean, other.mean)
            && (self.sd - other.sd).abs() <= 1e-6 * (1.0 + self.mean.abs())
    }
}

/// What the summaries must be if each line of the ledger counts once.
pub fn expected(ledgers: &[&Path], interval_us: i64) -> BTreeMap<Cell, Figures> {
    let mut cells: BTreeMap<Cell, Vec<f64>> = BTreeMap::new();
    for path in ledgers {
        let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        for line in text.lines().filter(|line| !line.starts_with("machine,")) {
            let fields: Vec<&str> = line.split(',').collect();
            let [machine, sensor, time_us, value] = fields[..] else { panic!("a ledger line: {line}") };
            let time_us: i64 = time_us.parse().unwrap();
            cells
                .entry(Cell {
                    machine: machine.into(),
                    sensor: sensor.into(),
                    start_us: time_us.div_euclid(interval_us) * interval_us,
                })
                .or_default()
                .push(value.parse().unwrap());
        }
    }
    cells.into_iter().map(|(cell, values)| (cell, Figures::of(&values))).collect()
}

/// What differs, at most ten lines of it; empty when nothing does.
pub fn differences(sent: &BTreeMap<Cell, Figures>, stored: &BTreeMap<Cell, Figures>) -> String {
    let mut text = String::new();
    let mut found = 0;
    for (cell, figures) in sent {
        match stored.get(cell) {
            Some(row) if figures.agrees(row) => continue,
            Some(row) => writeln!(text, "{cell:?}: sent {figures:?}, stored {row:?}").unwrap(),
            None => writeln!(text, "{cell:?}: sent {figures:?}, nothing stored").unwrap(),
        }
        found += 1;
        if found == 10 {
            return text;
        }
    }
    for (cell, row) in stored.iter().filter(|(cell, _)| !sent.contains_key(cell)).take(10 - found) {
        writeln!(text, "{cell:?}: nothing sent, stored {row:?}").unwrap();
    }
    text
}

#[test]
fn one_value_too_many_or_too_few_is_seen() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ledger.csv");
    fs::write(&path, "machine,sensor,time_us,value\nm,s,5,1\nm,s,9,3\nm,s,10,7\n").unwrap();
    let sent = expected(&[&path], 10);
    assert_eq!(differences(&sent, &sent), "");
    let cell = Cell { machine: "m".into(), sensor: "s".into(), start_us: 0 };
    assert_eq!(sent[&cell], Figures { count: 2, min: 1.0, max: 3.0, mean: 2.0, sd: 1.0 });
    let mut stored = sent.clone();
    stored.insert(cell.clone(), Figures::of(&[1.0, 3.0, 2.0]));
    assert!(differences(&sent, &stored).contains("count: 3"));
    stored.remove(&cell);
    assert!(differences(&sent, &stored).contains("nothing stored"));
    assert!(differences(&stored, &sent).contains("nothing sent"));
}
