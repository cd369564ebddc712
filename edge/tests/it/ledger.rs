//! What was sent and acknowledged, and what the database says of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::Path,
};

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

/// The values that belong into each cell.
pub type Values = BTreeMap<Cell, Vec<f64>>;

/// What the summaries must be if each line of the ledger counts once.
pub fn expected(ledgers: &[&Path], interval_us: i64) -> BTreeMap<Cell, Figures> {
    let mut cells = Values::new();
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

/// What is wrong with the rows, in values. It is exact where a cell has up to one value too few and one too many, and a
/// lower bound beyond that.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reckoning {
    pub values: u64,
    /// Values in the rows, whatever they are.
    pub stored: u64,
    pub missing: u64,
    pub double: u64,
    /// Values of the sensor in a row of another interval.
    pub misplaced: u64,
    /// The first ten cells that differ.
    pub examples: String,
}

impl Reckoning {
    pub fn is_right(&self) -> bool {
        self.examples.is_empty()
    }
}

/// Which values the rows are made of: each value is different from all others of its sensor, and a whole number.
pub fn reckon(values: &Values, stored: &BTreeMap<Cell, Figures>) -> Reckoning {
    let mut reckoning = Reckoning { values: values.values().map(|cell| cell.len() as u64).sum(), ..Default::default() };
    let nothing = (Vec::new(), Figures { count: 0, min: 0.0, max: 0.0, mean: 0.0, sd: 0.0 });
    let cells: BTreeSet<&Cell> = values.keys().chain(stored.keys()).collect();
    let mut examples = 0;
    for cell in cells {
        let sent = values.get(cell).unwrap_or(&nothing.0);
        let row = stored.get(cell).unwrap_or(&nothing.1);
        reckoning.stored += row.count as u64;
        if !sent.is_empty() && row.count > 0 && Figures::of(sent).agrees(row) {
            continue;
        }
        let too_many = i64::from(row.count) - sent.len() as i64;
        // What the sums say of a value that is missing (a) and one that is too many (b).
        let n = f64::from(row.count);
        let sum = n * row.mean - sent.iter().sum::<f64>();
        let squares = n * (row.sd.powi(2) + row.mean.powi(2)) - sent.iter().map(|value| value * value).sum::<f64>();
        let strange = match too_many {
            0 => Some(f64::midpoint(squares / sum, sum)),
            1 => Some(sum),
            _ => None,
        };
        let strangers = match strange {
            Some(value) => u64::from(!sent.iter().any(|own| (own - value).abs() < 0.5)),
            None if too_many > 0 && sent.is_empty() => too_many as u64,
            None => 0,
        };
        reckoning.misplaced += strangers;
        reckoning.double += (too_many.max(i64::from(too_many == 0)) as u64).saturating_sub(strangers);
        reckoning.missing += (-too_many).max(i64::from(too_many == 0)) as u64;
        if examples < 10 {
            writeln!(reckoning.examples, "{cell:?}: {} sent, {row:?} stored", sent.len()).unwrap();
            examples += 1;
        }
    }
    // What is in another interval is not missing.
    reckoning.missing = reckoning.missing.saturating_sub(reckoning.misplaced);
    reckoning
}

#[test]
fn what_is_missing_double_or_misplaced_is_told_apart() {
    let cell = |start_us| Cell { machine: "m".into(), sensor: "s".into(), start_us };
    let sent: Values = [(cell(0), vec![1.0, 2.0, 3.0]), (cell(10), vec![4.0, 5.0]), (cell(20), vec![6.0])].into();
    let check = |rows: [&[f64]; 3], missing, double, misplaced| {
        let stored = [cell(0), cell(10), cell(20)].into_iter().zip(rows).filter(|(_, row)| !row.is_empty());
        let reckoning = reckon(&sent, &stored.map(|(cell, row)| (cell, Figures::of(row))).collect());
        assert_eq!(
            (reckoning.missing, reckoning.double, reckoning.misplaced),
            (missing, double, misplaced),
            "{rows:?}"
        );
        assert_eq!(reckoning.is_right(), missing + double + misplaced == 0);
        assert_eq!((reckoning.values, reckoning.stored), (6, rows.iter().map(|row| row.len() as u64).sum()));
    };
    check([&[1.0, 2.0, 3.0], &[4.0, 5.0], &[6.0]], 0, 0, 0);
    check([&[1.0, 3.0], &[4.0, 5.0], &[6.0]], 1, 0, 0);
    check([&[1.0, 2.0, 3.0], &[4.0, 5.0], &[]], 1, 0, 0);
    check([&[1.0, 2.0, 3.0, 2.0], &[4.0, 5.0], &[6.0]], 0, 1, 0);
    check([&[1.0, 2.0], &[4.0, 5.0, 3.0], &[6.0]], 0, 0, 1);
    check([&[1.0, 2.0, 2.0], &[4.0, 5.0], &[6.0]], 1, 1, 0);
    check([&[1.0, 2.0, 4.0], &[5.0, 3.0], &[6.0]], 0, 0, 2);
    check([&[], &[4.0, 5.0], &[6.0]], 3, 0, 0);
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
