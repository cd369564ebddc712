//! The past of a machine, page by page, for a file.

use std::collections::HashMap;

use deadpool_postgres::Transaction;
use jiff::{SignedDuration, Timestamp};
use uuid::Uuid;

use super::{
    StoreError, blocks,
    rollups::table,
    summaries::{self, COLUMNS},
};
use crate::{
    export::{Batch, Of, Values},
    history::{HOUR_MS, Level, SummaryRow, block, floor},
};

/// Hours or days of a page.
const ROLLUPS: i64 = 500;
const DETECTORS: [&str; 5] = ["calibrating", "watching", "anomalous", "blind", "uncalibrated"];
const MODES: [&str; 4] = ["unknown", "off", "idle", "running"];

/// One of the machines that are shown as one.
#[derive(Debug, Clone)]
pub struct Part {
    key: i32,
    name: String,
    interval_ms: i64,
    /// Name and unit by position.
    sensors: HashMap<i16, (String, Option<String>)>,
}

/// What is exported.
#[derive(Debug, Clone)]
pub struct Wanted {
    pub parts: Vec<Part>,
    pub of: Of,
    pub level: Level,
    pub from: Timestamp,
    /// Exclusive.
    pub to: Timestamp,
}

/// Where an export stands: the part, and from when on it goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    part: usize,
    from: Timestamp,
}

impl Wanted {
    /// The beginning.
    #[must_use]
    pub const fn start(&self) -> Place {
        Place { part: 0, from: self.from }
    }

    /// The columns, without rows.
    #[must_use]
    pub fn columns(&self) -> Batch {
        match (self.of, self.level) {
            (Of::Sensors, _) => sensor_batch(&[]),
            (Of::Machine, Level::Interval) => interval_batch("", &[]),
            (Of::Machine, _) => rollup_batch("", &[]),
        }
    }
}

/// A machine and those that are shown as a part of it; empty where there is none.
///
/// # Errors
/// If the database is away.
pub async fn parts(transaction: &Transaction<'_>, machine: Uuid) -> Result<Vec<Part>, StoreError> {
    let select = "SELECT m.key, m.name, m.interval_ms, s.position, s.name, s.unit
                  FROM machines m LEFT JOIN sensors s ON s.machine_id = m.id
                  WHERE (m.id = $1 AND m.merged_into IS NULL) OR m.merged_into = $1
                  ORDER BY m.id <> $1, m.created_at, m.key, s.position";
    let mut parts: Vec<Part> = Vec::new();
    for row in transaction.query(select, &[&machine]).await? {
        let key = row.try_get(0)?;
        if parts.last().is_none_or(|part| part.key != key) {
            let interval_ms: i32 = row.try_get(2)?;
            let interval_ms = i64::from(interval_ms.max(1));
            parts.push(Part { key, name: row.try_get(1)?, interval_ms, sensors: HashMap::new() });
        }
        let (position, name): (Option<i16>, Option<String>) = (row.try_get(3)?, row.try_get(4)?);
        if let (Some(part), Some(position), Some(name)) = (parts.last_mut(), position, name) {
            part.sensors.insert(position, (name, row.try_get(5)?));
        }
    }
    Ok(parts)
}

/// The next rows, and where it goes on; no rows and no place at the end. The transaction began with [`blocks::one_moment`].
///
/// # Errors
/// If the database is away, or a block is damaged.
pub async fn page(
    transaction: &Transaction<'_>,
    wanted: &Wanted,
    mut place: Place,
) -> Result<(Batch, Option<Place>), StoreError> {
    while let Some(part) = wanted.parts.get(place.part) {
        let found = match wanted.level {
            Level::Interval => intervals(transaction, part, wanted, place.from).await?,
            level => hours(transaction, part, wanted, level, place.from).await?,
        };
        if let Some((batch, from)) = found {
            return Ok((batch, Some(Place { from, ..place })));
        }
        place = Place { part: place.part + 1, from: wanted.from };
    }
    Ok((wanted.columns(), None))
}

/// The intervals of one window: no more than a block has.
async fn intervals(
    transaction: &Transaction<'_>,
    part: &Part,
    wanted: &Wanted,
    from: Timestamp,
) -> Result<Option<(Batch, Timestamp)>, StoreError> {
    let next = "SELECT least(
                    (SELECT min(greatest(start, $2)) FROM summary_blocks
                     WHERE machine_key = $1 AND last_start >= $2 AND start < $3
                       AND start > $2::timestamptz - interval '6 hours'),
                    (SELECT min(start) FROM summary_blocks WHERE machine_key = $1 AND start >= $2 AND start < $3),
                    (SELECT min(start) FROM summaries WHERE machine_key = $1 AND start >= $2 AND start < $3))";
    let next = transaction.prepare_cached(next).await?;
    let row = transaction.query_one(&next, &[&part.key, &from, &wanted.to]).await?;
    let Some(first) = row.try_get::<_, Option<Timestamp>>(0)? else { return Ok(None) };
    // Six hours, or one where that is much.
    let six = 6 * HOUR_MS;
    let cells = (six / part.interval_ms) as usize * part.sensors.len();
    let window = if cells <= block::CELLS_MAX { six } else { HOUR_MS };
    let end = floor(first, window).saturating_add(SignedDuration::from_millis(window)).unwrap_or(Timestamp::MAX);
    let end = end.min(wanted.to);

    let select = format!("SELECT {COLUMNS} FROM summaries WHERE machine_key = $1 AND start >= $2 AND start < $3");
    let select = transaction.prepare_cached(&select).await?;
    let mut rows: Vec<SummaryRow> = Vec::new();
    for row in transaction.query(&select, &[&part.key, &first, &end]).await? {
        rows.push(summaries::read(&row)?);
    }
    for start in blocks::between(transaction, part.key, first, end).await? {
        let packed = blocks::rows(transaction, part.key, start).await?;
        rows.extend(packed.into_iter().filter(|row| row.start >= first && row.start < end));
    }
    rows.sort_by_key(|row| row.start);
    let batch = match wanted.of {
        Of::Sensors => sensor_batch(&rows.iter().flat_map(|row| sensors(part, row)).collect::<Vec<_>>()),
        Of::Machine => interval_batch(&part.name, &rows),
    };
    Ok(Some((batch, end)))
}

/// A sensor at a time.
struct Sensor<'a> {
    time: Timestamp,
    machine: &'a str,
    name: &'a str,
    unit: Option<&'a str>,
    readings: i64,
    /// Min, max, mean, standard deviation, last.
    figures: [f64; 5],
    quality: Option<&'static str>,
}

fn sensors<'a>(part: &'a Part, row: &'a SummaryRow) -> impl Iterator<Item = Sensor<'a>> {
    (0..row.counts.len()).filter_map(move |i| {
        let quality = match row.qualities.get(i)? {
            0 => "good",
            1 => "held",
            2 => "missing",
            3 => "faulty",
            _ => return None,
        };
        let (sensor, unit) = part.sensors.get(&i16::try_from(i).ok()?)?;
        let at = |list: &[f64]| list.get(i).copied().unwrap_or(f64::NAN);
        Some(Sensor {
            time: row.start,
            machine: &part.name,
            name: sensor,
            unit: unit.as_deref(),
            readings: i64::from(row.counts[i]),
            figures: [at(&row.mins), at(&row.maxs), at(&row.means), at(&row.sds), at(&row.lasts)],
            quality: Some(quality),
        })
    })
}

fn sensor_batch(rows: &[Sensor<'_>]) -> Batch {
    let text = |value: fn(&Sensor<'_>) -> Option<String>| Values::Text(rows.iter().map(value).collect());
    let figure = |i: usize| Values::Number(rows.iter().map(|row| number(row.figures[i])).collect());
    Batch(vec![
        ("time", Values::Time(rows.iter().map(|row| row.time).collect())),
        ("machine", text(|row| Some(row.machine.to_owned()))),
        ("sensor", text(|row| Some(row.name.to_owned()))),
        ("unit", text(|row| row.unit.map(str::to_owned))),
        ("readings", Values::Whole(rows.iter().map(|row| Some(row.readings)).collect())),
        ("min", figure(0)),
        ("max", figure(1)),
        ("mean", figure(2)),
        ("sd", figure(3)),
        ("last", figure(4)),
        ("quality", text(|row| row.quality.map(str::to_owned))),
    ])
}

fn number(value: f64) -> Option<f64> {
    (!value.is_nan()).then_some(value)
}

fn word(words: &[&str], code: i16) -> Option<String> {
    usize::try_from(code).ok().and_then(|code| words.get(code)).map(|word| (*word).to_owned())
}

fn interval_batch(machine: &str, rows: &[SummaryRow]) -> Batch {
    let figure = |value: fn(&SummaryRow) -> Option<f64>| Values::Number(rows.iter().map(value).collect());
    Batch(vec![
        ("time", Values::Time(rows.iter().map(|row| row.start).collect())),
        ("machine", Values::Text(vec![Some(machine.to_owned()); rows.len()])),
        ("interval_ms", Values::Whole(rows.iter().map(|row| Some(i64::from(row.interval_ms))).collect())),
        ("detector", Values::Text(rows.iter().map(|row| word(&DETECTORS, row.detector)).collect())),
        ("score", figure(|row| row.score.map(f64::from))),
        ("health_percent", figure(|row| row.health_percent.map(f64::from))),
        ("mode", Values::Text(rows.iter().map(|row| word(&MODES, row.mode)).collect())),
        ("energy_wh", figure(|row| row.energy_wh)),
    ])
}

/// An hour or a day of a machine.
struct Machine {
    time: Timestamp,
    intervals: i64,
    score_max: Option<f32>,
    health_min: Option<f32>,
    energy_wh: Option<f64>,
    mode_ms: Vec<i64>,
    anomalous_ms: i64,
}

fn rollup_batch(machine: &str, rows: &[Machine]) -> Batch {
    let figure = |value: &dyn Fn(&Machine) -> Option<f64>| Values::Number(rows.iter().map(value).collect());
    let mode = |i: usize| figure(&|row: &Machine| row.mode_ms.get(i).map(|ms| *ms as f64 / 1_000.0));
    Batch(vec![
        ("time", Values::Time(rows.iter().map(|row| row.time).collect())),
        ("machine", Values::Text(vec![Some(machine.to_owned()); rows.len()])),
        ("intervals", Values::Whole(rows.iter().map(|row| Some(row.intervals)).collect())),
        ("score_max", figure(&|row| row.score_max.map(f64::from))),
        ("health_percent_min", figure(&|row| row.health_min.map(f64::from))),
        ("energy_wh", figure(&|row| row.energy_wh)),
        ("unknown_s", mode(0)),
        ("off_s", mode(1)),
        ("idle_s", mode(2)),
        ("running_s", mode(3)),
        ("anomalous_s", figure(&|row| Some(row.anomalous_ms as f64 / 1_000.0))),
    ])
}

/// Some hours or days.
async fn hours(
    transaction: &Transaction<'_>,
    part: &Part,
    wanted: &Wanted,
    level: Level,
    from: Timestamp,
) -> Result<Option<(Batch, Timestamp)>, StoreError> {
    let select = format!(
        "SELECT start, intervals, score_max, health_min, energy_wh, mode_ms, anomalous_ms, counts, mins, maxs, means, squares,
                weights, lasts
         FROM {} WHERE machine_key = $1 AND start >= $2 AND start < $3 ORDER BY start LIMIT $4",
        table(level)
    );
    let select = transaction.prepare_cached(&select).await?;
    let found = transaction.query(&select, &[&part.key, &from, &wanted.to, &ROLLUPS]).await?;
    let Some(last) = found.last() else { return Ok(None) };
    let next: Timestamp = last.try_get(0)?;
    let next = next.saturating_add(SignedDuration::from_millis(1)).unwrap_or(Timestamp::MAX);
    if wanted.of == Of::Machine {
        let read = |row: &tokio_postgres::Row| {
            Ok(Machine {
                time: row.try_get(0)?,
                intervals: row.try_get::<_, i32>(1)?.into(),
                score_max: row.try_get(2)?,
                health_min: row.try_get(3)?,
                energy_wh: row.try_get(4)?,
                mode_ms: row.try_get(5)?,
                anomalous_ms: row.try_get(6)?,
            })
        };
        let rows = found.iter().map(read).collect::<Result<Vec<Machine>, StoreError>>()?;
        return Ok(Some((rollup_batch(&part.name, &rows), next)));
    }
    let mut rows = Vec::new();
    for row in &found {
        let (time, counts, weights): (_, Vec<i64>, Vec<i64>) = (row.try_get(0)?, row.try_get(7)?, row.try_get(12)?);
        let [mins, maxs, means, squares]: [Vec<f64>; 4] =
            [row.try_get(8)?, row.try_get(9)?, row.try_get(10)?, row.try_get(11)?];
        let lasts: Vec<f64> = row.try_get(13)?;
        for (i, weight) in weights.iter().enumerate().filter(|(_, weight)| **weight > 0) {
            let named = i16::try_from(i).ok().and_then(|position| part.sensors.get(&position));
            let (Some((sensor, unit)), Some(count)) = (named, counts.get(i)) else { continue };
            let at = |list: &[f64]| list.get(i).copied().unwrap_or(f64::NAN);
            let sd = (at(&squares) / *weight as f64).sqrt();
            rows.push(Sensor {
                time,
                machine: &part.name,
                name: sensor,
                unit: unit.as_deref(),
                readings: *count,
                figures: [at(&mins), at(&maxs), at(&means), sd, at(&lasts)],
                quality: None,
            });
        }
    }
    Ok(Some((sensor_batch(&rows), next)))
}
