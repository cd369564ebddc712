//! Intervals of one machine, packed: a column for what belongs to the machine, and for each sensor two columns, so that a
//! trend of one sensor reads little else. What is unpacked is what was packed, bit by bit.
//!
//! Format, version 1. A column is a byte with the version and lists of numbers after each other; a list is either one
//! number that all are (`0`, 8 bytes), or a length (u32) and that many bytes of pco's standalone format (`1`). All is little-endian.
//!
//! Readings have a few decimals: where a sensor's extremes and last values are all whole multiples of 10^-d, they are kept as
//! those multiples. The mean and the standard deviation of n such readings are then nearly a multiple over n and the root of
//! a whole number over n: what is kept is that multiple, that whole number, and by how many steps of f64 the figure differs.

use jiff::Timestamp;
use pco::{ChunkConfig, data_types::Number, standalone};

use super::SummaryRow;

/// The most intervals times sensors of one block: what packing holds in memory.
pub const CELLS_MAX: usize = 1 << 19;
const VERSION: u8 = 1;
/// Decimals that are looked for.
const DECIMALS_MAX: i32 = 6;
/// A sensor's way: as multiples of 10^-d, or as they are.
const AS_THEY_ARE: u8 = 255;
/// Values that are looked at to find the decimals.
const SAMPLE: usize = 256;

#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    #[error("a packed block of intervals has version {0}, which this program does not know")]
    Version(u8),
    #[error("a packed block of intervals is damaged")]
    Damaged,
    #[error("numbers of a block cannot be packed or unpacked: {0}")]
    Numbers(#[from] pco::errors::PcoError),
}

/// Packed columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed {
    pub machine: Vec<u8>,
    /// By position: figures, and the rest.
    pub sensors: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What belongs to the machine, by interval.
#[derive(Debug, Clone, PartialEq)]
pub struct Machine {
    pub starts: Vec<Timestamp>,
    pub interval_ms: Vec<i32>,
    /// How many sensors each interval has.
    pub sensors: Vec<usize>,
    pub detector: Vec<i16>,
    pub score: Vec<Option<f32>>,
    pub health_percent: Vec<Option<f32>>,
    pub mode: Vec<i16>,
    pub energy_wh: Vec<Option<f64>>,
    pub clock_trusted: Vec<bool>,
}

/// What a trend needs of a sensor, by interval.
#[derive(Debug, Clone, PartialEq)]
pub struct Figures {
    decimals: u8,
    /// Which intervals have any figure.
    pub present: Vec<bool>,
    pub qualities: Vec<u8>,
    pub counts: Vec<i32>,
    pub mins: Vec<f64>,
    pub maxs: Vec<f64>,
    pub means: Vec<f64>,
}

/// Packs rows of one machine.
///
/// # Errors
/// If pco refuses.
pub fn pack(rows: &[SummaryRow]) -> Result<Packed, BlockError> {
    let width = rows.iter().map(|row| row.counts.len()).max().unwrap_or_default();
    let sensors = (0..width).map(|position| pack_sensor(rows, position)).collect::<Result<_, _>>()?;
    Ok(Packed { machine: pack_machine(rows)?, sensors })
}

/// Unpacks all of a block of `n` intervals; `sensors` by position.
///
/// # Errors
/// If the bytes are no block of that many intervals.
pub fn unpack(
    key: i32,
    n: usize,
    machine: &[u8],
    sensors: &[(Vec<u8>, Vec<u8>)],
) -> Result<Vec<SummaryRow>, BlockError> {
    let machine = unpack_machine(machine, n)?;
    let mut columns = Vec::with_capacity(sensors.len());
    for (figures, rest) in sensors {
        let figures = unpack_figures(figures, n)?;
        let (sds, lasts) = unpack_rest(rest, &figures)?;
        columns.push((figures, sds, lasts));
    }
    let row = |i: usize| {
        let here = columns.get(..machine.sensors[i]).ok_or(BlockError::Damaged)?;
        Ok(SummaryRow {
            machine_key: key,
            start: machine.starts[i],
            interval_ms: machine.interval_ms[i],
            counts: here.iter().map(|(figures, ..)| figures.counts[i]).collect(),
            mins: here.iter().map(|(figures, ..)| figures.mins[i]).collect(),
            maxs: here.iter().map(|(figures, ..)| figures.maxs[i]).collect(),
            means: here.iter().map(|(figures, ..)| figures.means[i]).collect(),
            sds: here.iter().map(|(_, sds, _)| sds[i]).collect(),
            lasts: here.iter().map(|(.., lasts)| lasts[i]).collect(),
            qualities: here.iter().map(|(figures, ..)| figures.qualities[i]).collect(),
            detector: machine.detector[i],
            score: machine.score[i],
            health_percent: machine.health_percent[i],
            mode: machine.mode[i],
            energy_wh: machine.energy_wh[i],
            clock_trusted: machine.clock_trusted[i],
        })
    };
    (0..n).map(row).collect()
}

const HAS_SCORE: i32 = 1;
const HAS_HEALTH: i32 = 2;
const HAS_ENERGY: i32 = 4;
const TRUSTED: i32 = 8;

fn pack_machine(rows: &[SummaryRow]) -> Result<Vec<u8>, BlockError> {
    let mut out = vec![VERSION];
    put(&mut out, &list(rows, |row| row.start.as_microsecond()))?;
    put(&mut out, &list(rows, |row| i64::from(row.interval_ms)))?;
    put(&mut out, &list(rows, |row| row.counts.len() as i64))?;
    let flag = |set: bool, flag| if set { flag } else { 0 };
    let words = list(rows, |row| {
        let flags = flag(row.score.is_some(), HAS_SCORE)
            | flag(row.health_percent.is_some(), HAS_HEALTH)
            | flag(row.energy_wh.is_some(), HAS_ENERGY)
            | flag(row.clock_trusted, TRUSTED);
        i64::from(flags)
    });
    put(&mut out, &words)?;
    put(&mut out, &list(rows, |row| i64::from(row.detector)))?;
    put(&mut out, &list(rows, |row| i64::from(row.mode)))?;
    put(&mut out, &rows.iter().filter_map(|row| row.score).collect::<Vec<f32>>())?;
    put(&mut out, &rows.iter().filter_map(|row| row.health_percent).collect::<Vec<f32>>())?;
    put(&mut out, &rows.iter().filter_map(|row| row.energy_wh).collect::<Vec<f64>>())?;
    Ok(out)
}

/// What belongs to the machine.
///
/// # Errors
/// If the bytes are no such column of `n` intervals.
pub fn unpack_machine(bytes: &[u8], n: usize) -> Result<Machine, BlockError> {
    let mut bytes = versioned(bytes)?;
    let starts: Vec<i64> = take(&mut bytes, n)?;
    let interval_ms: Vec<i64> = take(&mut bytes, n)?;
    let sensors: Vec<i64> = take(&mut bytes, n)?;
    let flags: Vec<i64> = take(&mut bytes, n)?;
    let detector: Vec<i64> = take(&mut bytes, n)?;
    let mode: Vec<i64> = take(&mut bytes, n)?;
    let has = |flag: i32| flags.iter().map(move |flags| flags & i64::from(flag) != 0);
    let score = spread(take(&mut bytes, has(HAS_SCORE).filter(|has| *has).count())?, has(HAS_SCORE));
    let health_percent = spread(take(&mut bytes, has(HAS_HEALTH).filter(|has| *has).count())?, has(HAS_HEALTH));
    let energy_wh = spread(take(&mut bytes, has(HAS_ENERGY).filter(|has| *has).count())?, has(HAS_ENERGY));
    let starts = starts.into_iter().map(|us| Timestamp::from_microsecond(us).map_err(|_| BlockError::Damaged));
    Ok(Machine {
        starts: starts.collect::<Result<_, _>>()?,
        interval_ms: interval_ms.into_iter().map(|ms| ms as i32).collect(),
        sensors: sensors.into_iter().map(|n| usize::try_from(n).unwrap_or(usize::MAX)).collect(),
        detector: detector.into_iter().map(|code| code as i16).collect(),
        score,
        health_percent,
        mode: mode.into_iter().map(|code| code as i16).collect(),
        energy_wh,
        clock_trusted: has(TRUSTED).collect(),
    })
}

fn pack_sensor(rows: &[SummaryRow], position: usize) -> Result<(Vec<u8>, Vec<u8>), BlockError> {
    let at = |list: fn(&SummaryRow) -> &Vec<f64>| {
        move |row: &SummaryRow| list(row).get(position).copied().unwrap_or(f64::NAN)
    };
    let count = |row: &SummaryRow| row.counts.get(position).copied().unwrap_or_default();
    let (min, max, mean) = (at(|row| &row.mins), at(|row| &row.maxs), at(|row| &row.means));
    let (sd, last) = (at(|row| &row.sds), at(|row| &row.lasts));
    let none = |value: f64| value.to_bits() == f64::NAN.to_bits();
    let present = |row: &SummaryRow| {
        count(row) != 0 || ![min(row), max(row), mean(row), sd(row), last(row)].into_iter().all(none)
    };
    let words = list(rows, |row| {
        let quality = i64::from(row.qualities.get(position).copied().unwrap_or(255));
        quality << 1 | i64::from(present(row))
    });
    let rows: Vec<&SummaryRow> = rows.iter().filter(|row| present(row)).collect();
    let of = |figure: &dyn Fn(&SummaryRow) -> f64| rows.iter().map(|row| figure(row)).collect::<Vec<f64>>();
    let counts: Vec<i64> = rows.iter().map(|row| i64::from(count(row))).collect();
    let (mins, maxs, means, sds, lasts) = (of(&min), of(&max), of(&mean), of(&sd), of(&last));
    let grid = Grid::of([&mins, &maxs, &lasts]);

    let mut figures = vec![VERSION, grid.map_or(AS_THEY_ARE, |grid| grid.decimals)];
    let mut rest = vec![VERSION];
    put(&mut figures, &words)?;
    put(&mut figures, &counts)?;
    let Some(grid) = grid else {
        for list in [&mins, &maxs, &means] {
            put(&mut figures, list)?;
        }
        put(&mut rest, &sds)?;
        put(&mut rest, &lasts)?;
        return Ok((figures, rest));
    };
    let least: Vec<i64> = mins.iter().map(|value| grid.multiple(*value)).collect();
    let n = |i: usize| counts[i].max(1) as f64;
    put_near(&mut figures, &mins, &least, |_| 0, |_, k| grid.value(k))?;
    let multiples = |values: &[f64]| values.iter().map(|value| grid.multiple(*value)).collect::<Vec<i64>>();
    put_near(&mut figures, &maxs, &multiples(&maxs), |i| least[i], |_, k| grid.value(k))?;
    let sums: Vec<i64> = means.iter().enumerate().map(|(i, mean)| grid.multiple(mean * n(i))).collect();
    put_near(&mut figures, &means, &sums, |i| least[i].wrapping_mul(counts[i].max(1)), |i, k| grid.value(k) / n(i))?;
    let squares: Vec<i64> = sds.iter().enumerate().map(|(i, sd)| grid.square(sd * n(i))).collect();
    put_near(&mut rest, &sds, &squares, |_| 0, |i, k| grid.root(k) / n(i))?;
    put_near(&mut rest, &lasts, &multiples(&lasts), |i| least[i], |_, k| grid.value(k))?;
    Ok((figures, rest))
}

/// The figures of a sensor.
///
/// # Errors
/// If the bytes are no such column of `n` intervals.
pub fn unpack_figures(bytes: &[u8], n: usize) -> Result<Figures, BlockError> {
    let (decimals, mut bytes) =
        versioned(bytes)?.split_first().map(|(d, rest)| (*d, rest)).ok_or(BlockError::Damaged)?;
    let words: Vec<i64> = take(&mut bytes, n)?;
    let present: Vec<bool> = words.iter().map(|word| word & 1 == 1).collect();
    let here = present.iter().filter(|present| **present).count();
    let counts: Vec<i64> = take(&mut bytes, here)?;
    let (mins, maxs, means) = if let Some(grid) = Grid::with(decimals) {
        let (least, mins) = take_near(&mut bytes, here, |_| 0, |_, k| grid.value(k))?;
        let (_, maxs) = take_near(&mut bytes, here, |i| least[i], |_, k| grid.value(k))?;
        let from = |i: usize| least[i].wrapping_mul(counts[i].max(1));
        let (_, means) = take_near(&mut bytes, here, from, |i, k| grid.value(k) / counts[i].max(1) as f64)?;
        (mins, maxs, means)
    } else {
        (take(&mut bytes, here)?, take(&mut bytes, here)?, take(&mut bytes, here)?)
    };
    let there = || present.iter().copied();
    let filled = |values: Vec<f64>| fill(values, there(), f64::NAN);
    Ok(Figures {
        decimals,
        qualities: words.iter().map(|word| (word >> 1) as u8).collect(),
        counts: fill(counts.into_iter().map(|count| count as i32).collect(), there(), 0),
        mins: filled(mins),
        maxs: filled(maxs),
        means: filled(means),
        present,
    })
}

/// Standard deviations and last values.
fn unpack_rest(bytes: &[u8], figures: &Figures) -> Result<(Vec<f64>, Vec<f64>), BlockError> {
    let mut bytes = versioned(bytes)?;
    let there = || figures.present.iter().copied();
    let here: Vec<usize> = (0..figures.present.len()).filter(|i| figures.present[*i]).collect();
    let (sds, lasts) = if let Some(grid) = Grid::with(figures.decimals) {
        let n = |i: usize| f64::from(figures.counts[here[i]].max(1));
        let (_, sds) = take_near(&mut bytes, here.len(), |_| 0, |i, k| grid.root(k) / n(i))?;
        let least = |i: usize| grid.multiple(figures.mins[here[i]]);
        let (_, lasts) = take_near(&mut bytes, here.len(), least, |_, k| grid.value(k))?;
        (sds, lasts)
    } else {
        (take(&mut bytes, here.len())?, take(&mut bytes, here.len())?)
    };
    Ok((fill(sds, there(), f64::NAN), fill(lasts, there(), f64::NAN)))
}

/// Multiples of 10^-decimals.
#[derive(Debug, Clone, Copy)]
struct Grid {
    decimals: u8,
    scale: f64,
}

impl Grid {
    fn with(decimals: u8) -> Option<Self> {
        (decimals != AS_THEY_ARE).then(|| Self { decimals, scale: 10_f64.powi(i32::from(decimals)) })
    }

    /// The coarsest on which a sample of all lists lies.
    fn of(lists: [&[f64]; 3]) -> Option<Self> {
        let sample = |list: &[f64]| {
            let step = list.len().div_ceil(SAMPLE).max(1);
            list.iter().copied().step_by(step).filter(|value| value.is_finite()).collect::<Vec<f64>>()
        };
        let sample: Vec<f64> = lists.into_iter().flat_map(sample).collect();
        let grids = (0..=DECIMALS_MAX).filter_map(|decimals| Self::with(decimals as u8));
        let fits = |grid: &Self| sample.iter().all(|value| grid.value(grid.multiple(*value)) - value == 0.0);
        grids.into_iter().find(fits)
    }

    fn multiple(self, value: f64) -> i64 {
        (value * self.scale).round() as i64
    }

    fn value(self, multiple: i64) -> f64 {
        multiple as f64 / self.scale
    }

    fn square(self, root: f64) -> i64 {
        let scaled = root * self.scale;
        (scaled * scaled).round() as i64
    }

    fn root(self, square: i64) -> f64 {
        (square.max(0) as f64).sqrt() / self.scale
    }
}

/// A number whose order, and whose neighbours, are those of the f64 it stands for.
fn step(value: f64) -> i64 {
    let bits = value.to_bits().cast_signed();
    bits ^ (((bits >> 63).cast_unsigned()) >> 1).cast_signed()
}

fn unstep(step: i64) -> f64 {
    f64::from_bits((step ^ (((step >> 63).cast_unsigned()) >> 1).cast_signed()).cast_unsigned())
}

/// Writes multiples (beside what they are near to) and how far the values are from what those say.
fn put_near(
    out: &mut Vec<u8>,
    values: &[f64],
    multiples: &[i64],
    near: impl Fn(usize) -> i64,
    said: impl Fn(usize, i64) -> f64,
) -> Result<(), BlockError> {
    let beside: Vec<i64> = multiples.iter().enumerate().map(|(i, k)| k.wrapping_sub(near(i))).collect();
    let off: Vec<i64> =
        values.iter().zip(multiples).enumerate().map(|(i, (v, k))| step(*v).wrapping_sub(step(said(i, *k)))).collect();
    put(out, &beside)?;
    put(out, &off)
}

fn take_near(
    bytes: &mut &[u8],
    n: usize,
    near: impl Fn(usize) -> i64,
    said: impl Fn(usize, i64) -> f64,
) -> Result<(Vec<i64>, Vec<f64>), BlockError> {
    let beside: Vec<i64> = take(bytes, n)?;
    let off: Vec<i64> = take(bytes, n)?;
    let multiples: Vec<i64> = beside.into_iter().enumerate().map(|(i, k)| k.wrapping_add(near(i))).collect();
    let values = multiples.iter().zip(off).enumerate().map(|(i, (k, off))| unstep(step(said(i, *k)).wrapping_add(off)));
    let values = values.collect();
    Ok((multiples, values))
}

fn list<T>(rows: &[SummaryRow], figure: impl Fn(&SummaryRow) -> T) -> Vec<T> {
    rows.iter().map(figure).collect()
}

/// Puts values in the places that have one.
fn fill<T: Copy>(values: Vec<T>, present: impl Iterator<Item = bool>, none: T) -> Vec<T> {
    let mut values = values.into_iter();
    present.map(|here| if here { values.next().unwrap_or(none) } else { none }).collect()
}

fn spread<T: Copy>(values: Vec<T>, present: impl Iterator<Item = bool>) -> Vec<Option<T>> {
    let mut values = values.into_iter();
    present.map(|here| if here { values.next() } else { None }).collect()
}

fn versioned(bytes: &[u8]) -> Result<&[u8], BlockError> {
    match bytes.split_first() {
        Some((&VERSION, rest)) => Ok(rest),
        Some((version, _)) => Err(BlockError::Version(*version)),
        None => Err(BlockError::Damaged),
    }
}

/// A number as eight bytes.
trait Eight: Number + Default {
    fn eight(self) -> [u8; 8];
    fn of_eight(bytes: [u8; 8]) -> Self;
}

impl Eight for i64 {
    fn eight(self) -> [u8; 8] {
        self.to_le_bytes()
    }
    fn of_eight(bytes: [u8; 8]) -> Self {
        Self::from_le_bytes(bytes)
    }
}

impl Eight for f64 {
    fn eight(self) -> [u8; 8] {
        self.to_bits().to_le_bytes()
    }
    fn of_eight(bytes: [u8; 8]) -> Self {
        Self::from_bits(u64::from_le_bytes(bytes))
    }
}

impl Eight for f32 {
    fn eight(self) -> [u8; 8] {
        u64::from(self.to_bits()).to_le_bytes()
    }
    fn of_eight(bytes: [u8; 8]) -> Self {
        Self::from_bits(u64::from_le_bytes(bytes) as u32)
    }
}

fn put<T: Eight>(out: &mut Vec<u8>, numbers: &[T]) -> Result<(), BlockError> {
    let first = numbers.first().copied().unwrap_or_default().eight();
    if numbers.iter().all(|number| number.eight() == first) {
        out.push(0);
        out.extend(first);
        return Ok(());
    }
    let packed = standalone::simple_compress(numbers, &ChunkConfig::default())?;
    out.push(1);
    out.extend((packed.len() as u32).to_le_bytes());
    out.extend(packed);
    Ok(())
}

fn take<T: Eight>(bytes: &mut &[u8], n: usize) -> Result<Vec<T>, BlockError> {
    let (kind, rest) = bytes.split_first().ok_or(BlockError::Damaged)?;
    if *kind == 0 {
        let (eight, rest) = rest.split_first_chunk().ok_or(BlockError::Damaged)?;
        *bytes = rest;
        return Ok(vec![T::of_eight(*eight); n]);
    }
    let (length, rest) = rest.split_first_chunk().ok_or(BlockError::Damaged)?;
    let packed = rest.get(..u32::from_le_bytes(*length) as usize).ok_or(BlockError::Damaged)?;
    *bytes = &rest[packed.len()..];
    let mut numbers = vec![T::default(); n];
    let progress = standalone::simple_decompress_into(packed, &mut numbers)?;
    if progress.n_processed == n && progress.finished { Ok(numbers) } else { Err(BlockError::Damaged) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::rollup::tests::row, *};

    /// Bit by bit: a comparison of floats knows no NaN.
    #[track_caller]
    fn check(rows: &[SummaryRow]) -> usize {
        let packed = pack(rows).unwrap();
        let back = unpack(1, rows.len(), &packed.machine, &packed.sensors).unwrap();
        assert_eq!(rows.len(), back.len());
        let bits = |list: &[f64]| list.iter().map(|value| value.to_bits()).collect::<Vec<u64>>();
        for (a, b) in rows.iter().zip(&back) {
            let floats =
                |row: &SummaryRow| [&row.mins, &row.maxs, &row.means, &row.sds, &row.lasts].map(|list| bits(list));
            assert_eq!(floats(a), floats(b), "{a:?} {b:?}");
            let others = |row: &SummaryRow| {
                let row = row.clone();
                let floats = (
                    row.score.map(f32::to_bits),
                    row.health_percent.map(f32::to_bits),
                    row.energy_wh.map(f64::to_bits),
                );
                let words = (row.interval_ms, row.detector, row.mode, row.clock_trusted);
                (row.machine_key, row.start, row.counts, row.qualities, floats, words)
            };
            assert_eq!(others(a), others(b));
        }
        packed.machine.len() + packed.sensors.iter().map(|(a, b)| a.len() + b.len()).sum::<usize>()
    }

    /// What a gateway makes of ten readings with two decimals.
    fn measured(i: i64, sensor: f64) -> (i32, f64, f64, f64, f64) {
        let reading = |k: i64| {
            let noise = ((i * 10 + k) as f64 * 12.9898 + sensor).sin() * 43_758.545;
            ((60.0 + (i as f64 / 90.0).sin() + (noise - noise.floor() - 0.5) * 0.2) * 100.0).round() / 100.0
        };
        let (mut n, mut mean, mut squares) = (0.0, 0.0, 0.0);
        let (mut min, mut max) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in (0..10).map(reading) {
            n += 1.0;
            let off = value - mean;
            mean += off / n;
            squares += off * (value - mean);
            (min, max) = (min.min(value), max.max(value));
        }
        (10, min, max, mean, (squares / n).sqrt())
    }

    #[test]
    fn readings_with_decimals_are_small() {
        let rows: Vec<SummaryRow> =
            (0..2_160).map(|i| row(i * 10_000, &[Some(measured(i, 0.0)), Some(measured(i, 0.7))])).collect();
        let bytes = check(&rows) as f64 / (2_160.0 * 2.0);
        assert!(bytes < 9.0, "{bytes} bytes");
    }

    #[test]
    fn holes_lengths_and_odd_rows_come_back() {
        check(&[]);
        let mut rows = vec![
            row(0, &[Some(measured(1, 0.0))]),
            row(10_000, &[None, Some(measured(2, 0.0))]),
            SummaryRow { score: None, energy_wh: Some(-0.0), clock_trusted: false, mode: 0, ..row(20_000, &[]) },
            SummaryRow {
                health_percent: None,
                energy_wh: None,
                score: Some(f32::NAN),
                ..row(30_001, &[None, None, None])
            },
        ];
        check(&rows);
        rows[0].qualities = vec![255];
        rows[1].sds[1] = -0.0;
        rows[1].counts = vec![7, i32::MIN];
        rows[3].lasts = vec![f64::INFINITY, f64::from_bits(0x7ff8_0000_0000_0007), f64::MIN_POSITIVE];
        check(&rows);
    }

    #[test]
    fn damage_is_told() {
        let rows: Vec<SummaryRow> = (0..300).map(|i| row(i * 10_000, &[Some(measured(i, 0.0))])).collect();
        let packed = pack(&rows).unwrap();
        assert!(unpack_machine(&packed.machine, 299).is_err());
        assert!(unpack_machine(&packed.machine[..40], 300).is_err());
        assert!(matches!(unpack_machine(&[9], 1), Err(BlockError::Version(9))));
        assert!(unpack_figures(&[], 1).is_err());
        let (figures, _) = &packed.sensors[0];
        for cut in (0..figures.len()).step_by(7) {
            assert!(unpack_figures(&figures[..cut], 300).is_err(), "{cut}");
        }
    }

    fn any_figure() -> impl Strategy<Value = f64> {
        prop_oneof![
            any::<u64>().prop_map(f64::from_bits),
            (-1_000_000..1_000_000_i64).prop_map(|k| k as f64 / 100.0),
            Just(f64::NAN),
            Just(0.0),
        ]
    }

    proptest! {
        #[test]
        fn whatever_is_packed_comes_back(
            cells in prop::collection::vec((any::<i32>(), any_figure(), any_figure(), any_figure(), any_figure()), 1..400),
            some in any::<u64>(),
        ) {
            let rows: Vec<SummaryRow> = cells
                .iter()
                .enumerate()
                .map(|(i, cell)| row(i as i64 * 997, &[(some >> (i % 64) & 1 == 1).then_some(*cell)]))
                .collect();
            check(&rows);
        }

        #[test]
        fn readings_of_any_grid_come_back(
            decimals in 0..8_i32,
            values in prop::collection::vec((-100_000..100_000_i64, 1..20_i32), 1..300),
        ) {
            let scale = 10_f64.powi(decimals);
            let rows: Vec<SummaryRow> = values
                .iter()
                .enumerate()
                .map(|(i, (k, n))| {
                    let mean = (*k as f64 * f64::from(*n) + 3.0) / scale / f64::from(*n);
                    let cell = (*n, *k as f64 / scale, (k + 7) as f64 / scale, mean, (mean / 3.0).abs());
                    row(i as i64 * 1_000, &[Some(cell)])
                })
                .collect();
            check(&rows);
        }
    }
}
