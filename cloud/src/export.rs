//! The past as a file: CSV, or Parquet. A file is made of batches, and is never in memory as a whole.
//!
//! Numbers in CSV are the shortest that are read back as the same f64; an empty cell is none. In Parquet a batch is a row group.

use std::{
    io::{self, Write},
    mem,
    sync::{Arc, Mutex, PoisonError},
};

use jiff::Timestamp;
use parquet::{
    basic::{Compression, Encoding},
    data_type::{ByteArray, ByteArrayType, DoubleType, Int64Type},
    errors::ParquetError,
    file::{properties::WriterProperties, writer::SerializedFileWriter},
    schema::{parser::parse_message_type, types::ColumnPath},
};
use serde::Deserialize;

/// The form of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    Csv,
    Parquet,
}

/// What the rows of a file are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Of {
    /// One for each sensor and time.
    Sensors,
    /// One for each time.
    Machine,
}

/// The values of a column.
#[derive(Debug, Clone, PartialEq)]
pub enum Values {
    Time(Vec<Timestamp>),
    Text(Vec<Option<String>>),
    Whole(Vec<Option<i64>>),
    Number(Vec<Option<f64>>),
}

impl Values {
    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Time(values) => values.len(),
            Self::Text(values) => values.len(),
            Self::Whole(values) => values.len(),
            Self::Number(values) => values.len(),
        }
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Its type in Parquet's words.
    const fn parquet(&self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Time(_) => ("REQUIRED", "INT64", " (TIMESTAMP(MICROS,true))"),
            Self::Text(_) => ("OPTIONAL", "BYTE_ARRAY", " (STRING)"),
            Self::Whole(_) => ("OPTIONAL", "INT64", ""),
            Self::Number(_) => ("OPTIONAL", "DOUBLE", ""),
        }
    }

    fn cell(&self, row: usize) -> String {
        match self {
            Self::Time(values) => values[row].to_string(),
            Self::Text(values) => values[row].as_deref().map(no_formula).unwrap_or_default(),
            Self::Whole(values) => values[row].map(|value| value.to_string()).unwrap_or_default(),
            Self::Number(values) => values[row].map(|value| format!("{value:?}")).unwrap_or_default(),
        }
    }
}

/// Named columns of one length.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch(pub Vec<(&'static str, Values)>);

impl Batch {
    #[must_use]
    pub fn rows(&self) -> usize {
        self.0.first().map_or(0, |(_, values)| values.len())
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    #[error("CSV cannot be written")]
    Csv(#[from] csv::Error),
    #[error("Parquet cannot be written")]
    Parquet(#[from] ParquetError),
    #[error("a file cannot be written")]
    Io(#[from] io::Error),
}

/// Turns batches into the bytes of a file.
pub struct Writer(Form);

enum Form {
    Csv { begun: bool },
    Parquet(Box<Parquet>),
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Writer")
    }
}

/// A Parquet file, begun with the columns of its first batch.
struct Parquet {
    file: SerializedFileWriter<Sink>,
    sink: Sink,
}

/// Bytes that wait to be sent.
#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Sink {
    fn take(&self) -> Vec<u8> {
        mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Writer {
    /// For batches with these columns.
    ///
    /// # Errors
    /// If the columns' names cannot stand in a file.
    pub fn new(format: Format, columns: &Batch) -> Result<Self, ExportError> {
        if format == Format::Csv {
            return Ok(Self(Form::Csv { begun: false }));
        }
        let mut schema = "message export {".to_owned();
        let mut properties = WriterProperties::builder().set_compression(Compression::SNAPPY);
        for (name, values) in &columns.0 {
            let (repetition, kind, meaning) = values.parquet();
            schema.extend([" ", repetition, " ", kind, " ", name, meaning, ";"]);
            if matches!(values, Values::Time(_)) {
                let column = ColumnPath::from(*name);
                properties = properties
                    .set_column_dictionary_enabled(column.clone(), false)
                    .set_column_encoding(column, Encoding::DELTA_BINARY_PACKED);
            }
        }
        let schema = parse_message_type(&(schema + " }"))?;
        let sink = Sink::default();
        let file = SerializedFileWriter::new(sink.clone(), Arc::new(schema), Arc::new(properties.build()))?;
        Ok(Self(Form::Parquet(Box::new(Parquet { file, sink }))))
    }

    /// The next bytes.
    ///
    /// # Errors
    /// If the batch has other columns than the first one.
    pub fn write(&mut self, batch: &Batch) -> Result<Vec<u8>, ExportError> {
        match &mut self.0 {
            Form::Csv { begun } => {
                let header = !mem::replace(begun, true);
                csv(batch, header)
            }
            Form::Parquet(parquet) => {
                if batch.rows() > 0 {
                    parquet.group(batch)?;
                }
                Ok(parquet.sink.take())
            }
        }
    }

    /// The last bytes.
    ///
    /// # Errors
    /// If the file cannot be completed.
    pub fn finish(self) -> Result<Vec<u8>, ExportError> {
        match self.0 {
            Form::Csv { .. } => Ok(Vec::new()),
            Form::Parquet(parquet) => {
                parquet.file.close()?;
                Ok(parquet.sink.take())
            }
        }
    }
}

impl Parquet {
    fn group(&mut self, batch: &Batch) -> Result<(), ExportError> {
        let mut group = self.file.next_row_group()?;
        for (_, values) in &batch.0 {
            let Some(mut column) = group.next_column()? else {
                return Err(ParquetError::General("a batch has more columns than its file".into()).into());
            };
            match values {
                Values::Time(values) => {
                    let values: Vec<i64> = values.iter().map(|at| at.as_microsecond()).collect();
                    column.typed::<Int64Type>().write_batch(&values, None, None)?;
                }
                Values::Text(values) => {
                    let (there, values) = present(values, |text| ByteArray::from(text.as_str()));
                    column.typed::<ByteArrayType>().write_batch(&values, Some(&there), None)?;
                }
                Values::Whole(values) => {
                    let (there, values) = present(values, |value| *value);
                    column.typed::<Int64Type>().write_batch(&values, Some(&there), None)?;
                }
                Values::Number(values) => {
                    let (there, values) = present(values, |value| *value);
                    column.typed::<DoubleType>().write_batch(&values, Some(&there), None)?;
                }
            }
            column.close()?;
        }
        group.close()?;
        Ok(())
    }
}

/// Which values are there (Parquet's definition levels), and those.
fn present<T, U>(values: &[Option<T>], value: impl Fn(&T) -> U) -> (Vec<i16>, Vec<U>) {
    (values.iter().map(|value| i16::from(value.is_some())).collect(), values.iter().flatten().map(value).collect())
}

fn csv(batch: &Batch, header: bool) -> Result<Vec<u8>, ExportError> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    if header {
        writer.write_record(batch.0.iter().map(|(name, _)| *name))?;
    }
    for row in 0..batch.rows() {
        writer.write_record(batch.0.iter().map(|(_, values)| values.cell(row)))?;
    }
    writer.into_inner().map_err(|error| ExportError::Io(error.into_error()))
}

/// A cell of text. A spreadsheet carries out one that begins like a formula, whoever wrote it.
#[must_use]
pub fn no_formula(text: &str) -> String {
    if text.starts_with(['=', '+', '-', '@', '\t', '\r']) { format!("'{text}") } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use parquet::{
        file::reader::{FileReader as _, SerializedFileReader},
        record::RowAccessor as _,
    };

    use super::*;

    fn batch(first: i64) -> Batch {
        let at = |n: i64| Timestamp::from_microsecond(1_790_000_000_000_001 + n).unwrap();
        Batch(vec![
            ("time", Values::Time((first..first + 3).map(at).collect())),
            ("sensor", Values::Text(vec![Some("=flow, \"A\"".into()), None, Some("Düse".into())])),
            ("readings", Values::Whole(vec![Some(first), None, Some(-1)])),
            ("mean", Values::Number(vec![Some(0.1 + 0.2), Some(f64::MIN_POSITIVE), None])),
        ])
    }

    #[test]
    fn csv_is_read_back_exactly() {
        let mut writer = Writer::new(Format::Csv, &batch(0)).unwrap();
        let mut bytes = writer.write(&batch(0)).unwrap();
        bytes.extend(writer.write(&batch(3)).unwrap());
        bytes.extend(writer.finish().unwrap());
        let mut reader = csv::Reader::from_reader(bytes.as_slice());
        assert_eq!(reader.headers().unwrap(), &["time", "sensor", "readings", "mean"][..]);
        let rows: Vec<csv::StringRecord> = reader.records().map(Result::unwrap).collect();
        assert_eq!(rows.len(), 6);
        assert_eq!((&rows[0][1], &rows[1][1], &rows[0][2]), ("'=flow, \"A\"", "", "0"));
        let number = |row: usize| rows[row][3].parse::<f64>().unwrap().to_bits();
        assert_eq!((number(0), number(1)), ((0.1_f64 + 0.2).to_bits(), f64::MIN_POSITIVE.to_bits()));
        assert_eq!(rows[4][0].parse::<Timestamp>().unwrap().as_microsecond(), 1_790_000_000_000_005);
    }

    #[test]
    fn cells_are_no_formulas() {
        assert_eq!(no_formula("=cmd|' /C calc'!A0"), "'=cmd|' /C calc'!A0");
        assert_eq!(no_formula("ada"), "ada");
    }

    #[test]
    fn parquet_is_read_back_exactly() {
        let mut writer = Writer::new(Format::Parquet, &batch(0)).unwrap();
        let mut bytes = writer.write(&batch(0)).unwrap();
        let second = writer.write(&batch(3)).unwrap();
        assert!(!second.is_empty(), "it goes on its way");
        bytes.extend(second);
        bytes.extend(writer.finish().unwrap());
        let reader = SerializedFileReader::new(bytes::Bytes::from(bytes)).unwrap();
        assert_eq!(reader.metadata().num_row_groups(), 2);
        let rows: Vec<_> = reader.get_row_iter(None).unwrap().map(Result::unwrap).collect();
        assert_eq!(rows.len(), 6);
        assert_eq!(rows[4].get_timestamp_micros(0).unwrap(), 1_790_000_000_000_005);
        assert_eq!((rows[3].get_string(1).unwrap().as_str(), rows[3].get_long(2).unwrap()), ("=flow, \"A\"", 3));
        assert!(rows[1].get_string(1).is_err() && rows[2].get_double(3).is_err(), "none");
        assert_eq!(rows[0].get_double(3).unwrap().to_bits(), (0.1_f64 + 0.2).to_bits());
    }
}
