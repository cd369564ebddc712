//! Recordings: CSV files of one machine's sensors over time.
//!
//! The first line names the columns: one of them is the time, the others are sensors. Separator, time column and the
//! times' format are found out or given. A cell that holds nothing is a missing value. A row or a cell that cannot be
//! read is counted, and the first one remembered with file and line; a file without one good row is refused.
//!
//! Limits: as many sensors as a machine may have; a header of at most [`HEADER_BYTES_MAX`]. Rows are streamed: a file may be as
//! long as it likes. Times without an offset are taken for UTC.

mod columns;
mod time;

use std::{
    fs::File,
    io::{self, BufRead as _, BufReader, Read as _, Seek as _},
    path::{Path, PathBuf},
};

use csv::ByteRecord;
use gemba_shared::{ids::SensorId, telemetry::Timestamp};

use columns::Columns;
use time::TimeFormat;

pub const HEADER_BYTES_MAX: u64 = 64 * 1_024;

/// How to read a recording; what is absent is found out.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct RecordingArgs {
    /// The character between two cells; `tab` for a tab
    #[arg(long, value_name = "CHARACTER", value_parser = separator)]
    pub separator: Option<u8>,
    /// The column that holds the time
    #[arg(long, value_name = "NAME")]
    pub time_column: Option<String>,
    /// The time's format, as strftime writes it (`%d.%m.%Y %H:%M:%S`)
    #[arg(long, value_name = "FORMAT")]
    pub time_format: Option<String>,
    /// Columns that are no sensors
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub ignore_columns: Vec<String>,
    /// The column that says when the machine was in fact anomalous (1) or not (0); never a sensor
    #[arg(long, value_name = "NAME")]
    pub label_column: Option<String>,
}

/// Why a recording cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum RecordingError {
    #[error("{}: {error}", path.display())]
    Read { path: PathBuf, error: io::Error },
    #[error("{}:1: {message}", path.display())]
    Header { path: PathBuf, message: String },
    #[error("{}: {message}", path.display())]
    Rows { path: PathBuf, message: String },
}

/// One line of a recording.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    pub line: u64,
    pub at: Timestamp,
    /// A value for each of [`Recording::sensors`]; finite.
    pub values: Vec<Option<f64>>,
    /// From the label column.
    pub anomalous: Option<bool>,
}

/// What could not be read so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Skipped {
    pub rows: u64,
    pub cells: u64,
    /// The first one, with file and line.
    pub first: Option<String>,
}

impl Skipped {
    /// For people; empty where nothing was skipped.
    #[must_use]
    pub fn summary(&self) -> String {
        let Some(first) = &self.first else { return String::new() };
        format!("skipped {} rows and {} cells, the first: {first}", self.rows, self.cells)
    }
}

/// The whole of a recording, in figures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    pub rows: u64,
    pub first: Timestamp,
    pub last: Timestamp,
    pub skipped: Skipped,
}

/// An open recording, read row by row.
pub struct Recording {
    path: PathBuf,
    reader: csv::Reader<BufReader<File>>,
    columns: Columns,
    time: TimeFormat,
    /// The reader counts a line before the line feed that follows a carriage return.
    line_offset: u64,
    record: ByteRecord,
    skipped: Skipped,
}

impl std::fmt::Debug for Recording {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recording").field("path", &self.path).field("columns", &self.columns).finish_non_exhaustive()
    }
}

impl Recording {
    /// # Errors
    /// If the file cannot be read, or its header makes no sense.
    pub fn open(path: &Path, args: &RecordingArgs) -> Result<Self, RecordingError> {
        let refused = |message| RecordingError::Header { path: path.into(), message };
        let broken = |error| RecordingError::Read { path: path.into(), error };
        let mut file = BufReader::new(File::open(path).map_err(broken)?);
        let header = read_header(&mut file).map_err(broken)?.map_err(refused)?;
        let line_offset = u64::from(header.ends_with('\r'));
        let header = header.trim();
        if header.is_empty() {
            return Err(refused("the file is empty or begins with an empty line: a header is needed".into()));
        }
        let separator = args.separator.map_or_else(|| find_separator(header), Ok).map_err(refused)?;
        file.rewind().map_err(broken)?;
        let mut reader =
            csv::ReaderBuilder::new().delimiter(separator).trim(csv::Trim::All).flexible(true).from_reader(file);
        let names = reader.byte_headers().map_err(|error| refused(error.to_string()))?.clone();
        // The format of the times shows in the first row; a recording without one is refused at the end.
        let mut first_row = ByteRecord::new();
        let start = reader.position().clone();
        if reader.read_byte_record(&mut first_row).is_err() {
            first_row.clear();
        }
        let columns = Columns::new(&names, &first_row, args).map_err(refused)?;
        let time = TimeFormat::new(args.time_format.as_deref());
        reader.seek(start).map_err(|error| broken(error.into()))?;
        Ok(Self {
            path: path.into(),
            reader,
            columns,
            time,
            line_offset,
            record: ByteRecord::new(),
            skipped: Skipped::default(),
        })
    }

    /// Reads a whole recording once, for its first and last time.
    ///
    /// # Errors
    /// If it cannot be opened or read, or has no good row.
    pub fn span(path: &Path, args: &RecordingArgs) -> Result<Span, RecordingError> {
        let mut recording = Self::open(path, args)?;
        let mut span: Option<Span> = None;
        while let Some(row) = recording.next_row()? {
            let span =
                span.get_or_insert_with(|| Span { rows: 0, first: row.at, last: row.at, skipped: Skipped::default() });
            span.rows += 1;
            span.first = span.first.min(row.at);
            span.last = span.last.max(row.at);
        }
        let skipped = recording.skipped;
        if let Some(span) = span {
            return Ok(Span { skipped, ..span });
        }
        let first = skipped.first.unwrap_or_else(|| "it has a header and no more".into());
        Err(RecordingError::Rows { path: path.into(), message: format!("not one good row: {first}") })
    }

    /// The sensors, made from the columns' names: what a name may not hold becomes `_`.
    #[must_use]
    pub fn sensors(&self) -> &[SensorId] {
        &self.columns.sensors
    }

    #[must_use]
    pub const fn skipped(&self) -> &Skipped {
        &self.skipped
    }

    /// The next good row.
    ///
    /// # Errors
    /// If the file cannot be read any more.
    pub fn next_row(&mut self) -> Result<Option<Row>, RecordingError> {
        loop {
            match self.reader.read_byte_record(&mut self.record) {
                Ok(true) => {}
                Ok(false) => return Ok(None),
                Err(error) => {
                    let error = io::Error::from(error);
                    return Err(RecordingError::Read { path: self.path.clone(), error });
                }
            }
            let line = self.record.position().map_or(0, csv::Position::line) + self.line_offset;
            if self.record.len() != self.columns.count {
                let last = self.reader.position().line() + self.line_offset - 1;
                let cells = format!("{} cells, the header has {}", self.record.len(), self.columns.count);
                let message = if last > line {
                    format!("{cells}, and goes on to line {last}: is a quote left open?")
                } else {
                    cells
                };
                self.skip_row(line, &message);
                continue;
            }
            let text = String::from_utf8_lossy(&self.record[self.columns.time]);
            match self.time.read(&text) {
                Ok(at) => return Ok(Some(self.row(line, at))),
                Err(message) => self.skip_row(line, &message),
            }
        }
    }

    fn row(&mut self, line: u64, at: Timestamp) -> Row {
        let mut values = Vec::with_capacity(self.columns.sensors.len());
        for (ix, &column) in self.columns.of_sensors.iter().enumerate() {
            let value = match cell(&self.record[column]) {
                Ok(value) => value,
                Err(message) => {
                    self.skipped.cells += 1;
                    let (path, sensor) = (self.path.display(), &self.columns.sensors[ix]);
                    self.skipped.first.get_or_insert_with(|| format!("{path}:{line}: {sensor}: {message}"));
                    None
                }
            };
            values.push(value);
        }
        let label = self.columns.label.map(|column| cell(&self.record[column]));
        let anomalous = label.and_then(Result::ok).flatten().map(|label| label != 0.0);
        Row { line, at, values, anomalous }
    }

    fn skip_row(&mut self, line: u64, message: &str) {
        self.skipped.rows += 1;
        self.skipped.first.get_or_insert_with(|| format!("{}:{line}: {message}", self.path.display()));
    }
}

/// A cell's value; `None` where nothing was measured.
fn cell(text: &[u8]) -> Result<Option<f64>, String> {
    let text = String::from_utf8_lossy(text);
    let text = text.trim();
    let lower = text.to_ascii_lowercase();
    if matches!(lower.as_str(), "" | "nan" | "null" | "none" | "na" | "n/a" | "-" | "?") {
        return Ok(None);
    }
    let value = text.parse().or_else(|error| match text.matches(',').count() {
        // A decimal comma; where commas separate the cells it never comes here.
        1 => text.replace(',', ".").parse::<f64>(),
        _ => Err(error),
    });
    match value {
        Ok(value) if f64::abs(value) > f64::from(f32::MAX) => {
            Err(format!("{:?} is beyond what a sensor may show", shortened(text)))
        }
        Ok(value) if f64::is_finite(value) => Ok(Some(value)),
        _ => Err(format!("{:?} is no finite number", shortened(text))),
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(40).collect()
}

/// The first line, without its line feed.
fn read_header(file: &mut BufReader<File>) -> io::Result<Result<String, String>> {
    let mut line = Vec::new();
    file.by_ref().take(HEADER_BYTES_MAX + 1).read_until(b'\n', &mut line)?;
    if line.len() as u64 > HEADER_BYTES_MAX {
        return Ok(Err(format!("the header is longer than {HEADER_BYTES_MAX} bytes: is this a CSV file?")));
    }
    if line.contains(&0) {
        return Ok(Err("this is no text file".into()));
    }
    let line = String::from_utf8_lossy(&line);
    Ok(Ok(line.strip_suffix('\n').unwrap_or(&line).to_owned()))
}

/// The separator that occurs most often in the header.
fn find_separator(header: &str) -> Result<u8, String> {
    let count = |separator: u8| header.bytes().filter(|&byte| byte == separator).count();
    let most = [b';', b'\t', b',', b'|'].into_iter().max_by_key(|&separator| count(separator)).unwrap_or(b',');
    if count(most) == 0 {
        return Err(format!(
            "no ';', tab, ',' or '|' separates columns in {:?}: name it with --separator",
            shortened(header)
        ));
    }
    Ok(most)
}

fn separator(text: &str) -> Result<u8, String> {
    match text.as_bytes() {
        b"tab" | b"\\t" => Ok(b'\t'),
        [b'\n' | b'\r' | b'"' | b'.' | b'0'..=b'9'] => Err("this cannot stand between two cells".into()),
        [separator] if separator.is_ascii() => Ok(*separator),
        _ => Err("one ASCII character is needed, or `tab`".into()),
    }
}

#[cfg(test)]
mod tests;
