//! Which column is what.

use std::collections::HashSet;

use csv::ByteRecord;
use gemba_shared::{
    ids::{NAME_BYTES_MAX, SensorId},
    telemetry::SENSORS_MAX,
};

use super::{RecordingArgs, time::TimeFormat};

/// Names that a time's column has, in lower case.
const TIME_NAMES: [&str; 7] = ["time", "timestamp", "datetime", "date", "ts", "time_us", "date_time"];

#[derive(Debug)]
pub(super) struct Columns {
    /// How many there are.
    pub count: usize,
    pub time: usize,
    pub label: Option<usize>,
    pub sensors: Vec<SensorId>,
    /// The column of each of `sensors`.
    pub of_sensors: Vec<usize>,
}

impl Columns {
    pub(super) fn new(names: &ByteRecord, first_row: &ByteRecord, args: &RecordingArgs) -> Result<Self, String> {
        let text = |name: &[u8]| String::from_utf8_lossy(name).trim_start_matches('\u{feff}').trim().to_owned();
        let names: Vec<String> = names.iter().map(text).collect();
        let place = |wanted: &str| {
            names
                .iter()
                .position(|name| name == wanted)
                .ok_or_else(|| format!("there is no column {wanted:?}; there are {}", names.join(", ")))
        };
        let time = match &args.time_column {
            Some(name) => place(name)?,
            None => find_time(&names, first_row, args)?,
        };
        let label = args.label_column.as_deref().map(place).transpose()?;
        let mut ignored = HashSet::from([time]);
        ignored.extend(label);
        for name in &args.ignore_columns {
            ignored.insert(place(name)?);
        }
        let of_sensors: Vec<usize> = (0..names.len()).filter(|column| !ignored.contains(column)).collect();
        if of_sensors.is_empty() {
            return Err("no column is left that could be a sensor".into());
        }
        if of_sensors.len() > SENSORS_MAX {
            return Err(format!("{} sensors: a machine has at most {SENSORS_MAX}", of_sensors.len()));
        }
        let sensors = sensor_ids(of_sensors.iter().map(|&column| (column, names[column].as_str())))?;
        Ok(Self { count: names.len(), time, label, sensors, of_sensors })
    }
}

/// The column with a time's name, else the first whose first cell is a time with a date.
fn find_time(names: &[String], first_row: &ByteRecord, args: &RecordingArgs) -> Result<usize, String> {
    let known = |name: &String| TIME_NAMES.contains(&name.to_ascii_lowercase().as_str());
    if let Some(column) = names.iter().position(known) {
        return Ok(column);
    }
    let mut format = TimeFormat::new(args.time_format.as_deref());
    let is_time = |cell: &[u8]| {
        let text = String::from_utf8_lossy(cell);
        text.parse::<f64>().is_err() && format.read(&text).is_ok()
    };
    first_row
        .iter()
        .position(is_time)
        .ok_or_else(|| format!("no column is known as the time among {}: name it with --time-column", names.join(", ")))
}

/// Names that fit: what may not stand in one becomes `_`; what is there twice is numbered.
fn sensor_ids<'a>(names: impl Iterator<Item = (usize, &'a str)>) -> Result<Vec<SensorId>, String> {
    let mut taken = HashSet::new();
    let mut ids = Vec::new();
    for (column, name) in names {
        let allowed = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '_' };
        let fitting: String = name.chars().map(allowed).collect();
        let fitting = fitting.trim_start_matches(|c: char| !c.is_ascii_alphanumeric());
        let base = if fitting.is_empty() { format!("column_{}", column + 1) } else { fitting.to_owned() };
        let mut unique = base[..base.len().min(NAME_BYTES_MAX)].to_owned();
        let mut number = 2;
        while !taken.insert(unique.clone()) {
            let suffix = format!("_{number}");
            unique = format!("{}{suffix}", &base[..base.len().min(NAME_BYTES_MAX - suffix.len())]);
            number += 1;
        }
        ids.push(SensorId::new(&unique).map_err(|error| format!("the column {name:?} makes no sensor: {error}"))?);
    }
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(names: &[&str], expected: &[&str]) {
        let ids = sensor_ids(names.iter().copied().enumerate()).unwrap();
        assert_eq!(ids.iter().map(SensorId::as_str).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn column_names_become_sensor_names() {
        check(&["Volume Flow RateRMS", "P-MON-CKP"], &["Volume_Flow_RateRMS", "P-MON-CKP"]);
        check(&["a b", "a_b", "a/b"], &["a_b", "a_b_2", "a_b_3"]);
        check(&["", "°C", "_x", "#"], &["column_1", "C", "x", "column_4"]);
        let long = "x".repeat(100);
        check(&[&long, &long], &[&long[..64], &format!("{}_2", &long[..62])]);
    }
}
