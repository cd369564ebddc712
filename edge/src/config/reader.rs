//! Reads a TOML table key by key, and remembers every fault with its line.
//!
//! A getter that finds a fault notes it and answers as if the key were absent, so one reading tells all
//! faults of a file. What no getter asked for is an unknown key.

use std::{cell::RefCell, fmt, net::SocketAddr, ops::RangeInclusive, path::PathBuf, time::Duration};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::values;

/// One thing that is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Counts from 1; 0 where the fault is of no line.
    pub line: usize,
    /// `mqtt.devices[0].publish`; empty where the file is no TOML.
    pub key: String,
    /// What is wrong, and what would be right.
    pub message: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line > 0 {
            write!(f, "{}: ", self.line)?;
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)
    }
}

/// The text, and what was found wrong with it so far.
#[derive(Debug)]
pub(super) struct Source<'t> {
    pub(super) text: &'t str,
    pub(super) faults: RefCell<Vec<Fault>>,
}

impl Source<'_> {
    pub(super) fn line(&self, offset: usize) -> usize {
        let before = self.text.get(..offset).unwrap_or(self.text);
        before.matches('\n').count() + 1
    }

    pub(super) fn fault(&self, line: usize, key: String, message: impl Into<String>) {
        self.faults.borrow_mut().push(Fault { line, key, message: message.into() });
    }
}

/// A table of the file, or the absence of one.
pub(super) struct Section<'s> {
    source: &'s Source<'s>,
    path: String,
    table: Option<&'s DeTable<'s>>,
    line: usize,
    known: Vec<&'static str>,
}

impl<'s> Section<'s> {
    pub(super) fn root(source: &'s Source<'s>, table: &'s DeTable<'s>) -> Self {
        Self { source, path: String::new(), table: Some(table), line: 1, known: Vec::new() }
    }

    /// Whether the file has this table.
    pub(super) fn is_present(&self) -> bool {
        self.table.is_some()
    }

    /// Whether the table has this key; does not make it known.
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.is_some_and(|table| table.contains_key(key))
    }

    /// Notes a fault of `key`, or of the table where `key` is empty.
    pub(super) fn fault(&self, key: &str, message: impl Into<String>) {
        self.source.fault(self.line_of(key), self.key(key), message);
    }

    /// Notes a fault of another line than `key` stands in.
    pub(super) fn fault_at(&self, line: usize, key: &str, message: impl Into<String>) {
        self.source.fault(line, self.key(key), message);
    }

    /// Keys of another kind of table, which were told about already.
    pub(super) fn already_told(&mut self, keys: &[&'static str]) {
        self.known.extend_from_slice(keys);
    }

    pub(super) fn line_of(&self, key: &str) -> usize {
        self.table
            .and_then(|table| table.get_key_value(key))
            .map_or(self.line, |(name, _)| self.source.line(name.span().start))
    }

    pub(super) fn key(&self, key: &str) -> String {
        match (self.path.as_str(), key) {
            ("", key) => key.to_owned(),
            (path, "") => path.to_owned(),
            (path, key) => format!("{path}.{key}"),
        }
    }

    fn value(&mut self, key: &'static str) -> Option<&'s Spanned<DeValue<'s>>> {
        self.known.push(key);
        self.table?.get(key)
    }

    /// A value of one TOML type; any other type is a fault that says `wanted`.
    fn typed<T>(&mut self, key: &'static str, wanted: &str, get: fn(&'s DeValue<'s>) -> Option<T>) -> Option<T> {
        let value = self.value(key)?.get_ref();
        let got = get(value);
        if got.is_none() {
            self.fault(key, format!("it is {}, it should be {wanted}", type_name(value)));
        }
        got
    }

    pub(super) fn section(&mut self, key: &'static str) -> Self {
        let table = self.typed(key, "a table", DeValue::as_table);
        Self { source: self.source, path: self.key(key), table, line: self.line_of(key), known: Vec::new() }
    }

    /// The tables of `[[key]]`.
    pub(super) fn sections(&mut self, key: &'static str) -> Vec<Self> {
        let Some(array) = self.typed(key, "a list of tables: write [[...]]", DeValue::as_array) else {
            return Vec::new();
        };
        let mut sections = Vec::new();
        for (i, value) in array.iter().enumerate() {
            let path = format!("{}[{i}]", self.key(key));
            let line = self.source.line(value.span().start);
            match value.get_ref().as_table() {
                Some(table) => {
                    sections.push(Self { source: self.source, path, table: Some(table), line, known: Vec::new() });
                }
                None => self.source.fault(line, path, "it should be a table"),
            }
        }
        sections
    }

    /// All entries of a table whose keys the user chooses; each is then known.
    pub(super) fn texts_by_name(&mut self, key: &'static str) -> Vec<(&'s str, &'s str, usize)> {
        let Some(table) = self.typed(key, "a table", DeValue::as_table) else { return Vec::new() };
        let mut entries = Vec::new();
        for (name, value) in table {
            let line = self.source.line(name.span().start);
            let Some(text) = value.get_ref().as_str() else {
                let key = format!("{}.{}", self.key(key), name.get_ref());
                self.source.fault(line, key, format!("it is {}, it should be a text", type_name(value.get_ref())));
                continue;
            };
            entries.push((name.get_ref().as_ref(), text, line));
        }
        entries
    }

    pub(super) fn text(&mut self, key: &'static str) -> Option<&'s str> {
        self.typed(key, "a text in quotes", DeValue::as_str)
    }

    pub(super) fn boolean(&mut self, key: &'static str, default: bool) -> bool {
        self.typed(key, "true or false", DeValue::as_bool).unwrap_or(default)
    }

    pub(super) fn path(&mut self, key: &'static str) -> Option<PathBuf> {
        let text = self.text(key)?;
        if text.is_empty() {
            self.fault(key, "it is empty, it should be a path");
            return None;
        }
        Some(PathBuf::from(text))
    }

    /// A text that `parse` understands; its error says what would be right.
    pub(super) fn parsed<T>(&mut self, key: &'static str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        let text = self.text(key)?;
        parse(text).map_err(|message| self.fault(key, format!("{text:?}: {message}"))).ok()
    }

    /// A text, or a list of them.
    pub(super) fn texts(&mut self, key: &'static str) -> Option<Vec<&'s str>> {
        let value = self.value(key)?.get_ref();
        if let Some(text) = value.as_str() {
            return Some(vec![text]);
        }
        let texts = value.as_array().and_then(|list| list.iter().map(|v| v.get_ref().as_str()).collect());
        if texts.is_none() {
            self.fault(key, "it should be a text in quotes or a list of them");
        }
        texts
    }

    /// `None` where the key is absent; faulty ones are left out.
    pub(super) fn parsed_list<T>(
        &mut self,
        key: &'static str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<Vec<T>> {
        let texts = self.texts(key)?;
        let parsed = texts
            .into_iter()
            .filter_map(|text| parse(text).map_err(|message| self.fault(key, format!("{text:?}: {message}"))).ok());
        Some(parsed.collect())
    }

    pub(super) fn addresses(&mut self, key: &'static str) -> Option<Vec<SocketAddr>> {
        self.parsed_list(key, values::address)
    }

    /// One of a few words.
    pub(super) fn choice<T: Copy>(&mut self, key: &'static str, words: &[(&str, T)], default: T) -> T {
        let Some(text) = self.text(key) else { return default };
        if let Some((_, value)) = words.iter().find(|(word, _)| *word == text) {
            return *value;
        }
        let allowed: Vec<_> = words.iter().map(|(word, _)| format!("{word:?}")).collect();
        self.fault(key, format!("{text:?} is not known here; it may be {}", allowed.join(", ")));
        default
    }

    pub(super) fn number(&mut self, key: &'static str) -> Option<f64> {
        self.typed(key, "a number", |value| match value {
            DeValue::Integer(n) => n.as_str().parse().ok(),
            DeValue::Float(n) => n.as_str().replace('_', "").parse().ok().filter(|n: &f64| n.is_finite()),
            _ => None,
        })
    }

    pub(super) fn integer(&mut self, key: &'static str, default: usize, allowed: RangeInclusive<usize>) -> usize {
        let Some(number) =
            self.typed(key, "a whole number", |v| v.as_integer().map(|n| i128::from_str_radix(n.as_str(), n.radix())))
        else {
            return default;
        };
        match number.ok().and_then(|n| usize::try_from(n).ok()) {
            Some(n) if allowed.contains(&n) => n,
            _ => {
                self.fault(key, format!("it should be from {} to {}", allowed.start(), allowed.end()));
                default
            }
        }
    }

    pub(super) fn duration(
        &mut self,
        key: &'static str,
        default: Duration,
        allowed: RangeInclusive<Duration>,
    ) -> Duration {
        let Some(duration) = self.parsed(key, values::duration) else { return default };
        if !allowed.contains(&duration) {
            let (least, most) = (values::duration_text(*allowed.start()), values::duration_text(*allowed.end()));
            self.fault(key, format!("it should be from {least} to {most}"));
            return default;
        }
        duration
    }

    pub(super) fn bytes(&mut self, key: &'static str, default: u64, allowed: RangeInclusive<u64>) -> u64 {
        let Some(bytes) = self.parsed(key, values::bytes) else { return default };
        if !allowed.contains(&bytes) {
            let (least, most) = (values::bytes_text(*allowed.start()), values::bytes_text(*allowed.end()));
            self.fault(key, format!("it should be from {least} to {most}"));
            return default;
        }
        bytes
    }

    /// Notes what nobody asked for.
    pub(super) fn finish(self) {
        for name in self.table.into_iter().flat_map(DeTable::keys) {
            let key = name.get_ref().as_ref();
            if self.known.contains(&key) {
                continue;
            }
            let nearest = self.known.iter().map(|known| (values::distance(key, known), known)).min();
            let message = match nearest {
                Some((distance, known)) if distance <= 1 + known.len() / 4 => {
                    format!("unknown key; did you mean `{known}`?")
                }
                _ => {
                    let mut known = self.known.clone();
                    known.sort_unstable();
                    known.dedup();
                    format!("unknown key; here may stand {}", known.join(", "))
                }
            };
            self.fault(key, message);
        }
    }
}

fn type_name(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}
