//! Reads the database's words (states, severities, roles) as the types that mean them.

use std::error::Error;

use serde::de::DeserializeOwned;
use tokio_postgres::types::{FromSql, Type};

use crate::{alarms::Severity, views};

/// Severities in SQL, by rising gravity.
pub(super) const SEVERITIES: &str = "ARRAY['low', 'medium', 'high', 'critical']";

/// The place of a severity (an expression of SQL) in [`SEVERITIES`].
pub(super) fn rank(severity: &str) -> String {
    format!("array_position({SEVERITIES}, {severity})")
}

/// The words of this severity and of those that are graver.
pub(super) fn at_least(least: Severity) -> Vec<&'static str> {
    Severity::ALL.into_iter().filter(|severity| *severity >= least).map(Severity::as_str).collect()
}

/// A word of a text column; decoding fails on one that this version does not know.
pub(super) struct Word<T>(pub(super) T);

impl<'a, T: DeserializeOwned> FromSql<'a> for Word<T> {
    fn from_sql(ty: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn Error + Sync + Send>> {
        let text = <&str as FromSql>::from_sql(ty, raw)?;
        Ok(Self(views::word("a word", text)?))
    }

    fn accepts(ty: &Type) -> bool {
        <&str as FromSql>::accepts(ty)
    }
}
