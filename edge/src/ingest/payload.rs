//! What a payload says: a plain number, or JSON with a value (or an object of them) and a time.

use gemba_shared::telemetry::Timestamp;
use serde_json::Value;

use super::Reject;
use crate::config::{Json, TimeFormat};

/// A decimal number as text, with blanks around it or without.
pub(super) fn number(payload: &[u8]) -> Result<f64, Reject> {
    let text = std::str::from_utf8(payload).map_err(|_| Reject::NotUtf8)?.trim_ascii();
    if text.is_empty() {
        return Err(Reject::NoValue);
    }
    finite(text.parse().map_err(|_| Reject::NotANumber)?)
}

/// No more than the detector can count with, 3.4e38.
fn finite(value: f64) -> Result<f64, Reject> {
    if (value as f32).is_finite() { Ok(value) } else { Err(Reject::NotFinite) }
}

/// A JSON payload.
pub(super) struct Document(Value);

impl Document {
    pub(super) fn parse(payload: &[u8]) -> Result<Self, Reject> {
        match serde_json::from_slice(payload) {
            Ok(value) => Ok(Self(value)),
            Err(_) if std::str::from_utf8(payload).is_err() => Err(Reject::NotUtf8),
            Err(_) => Err(Reject::NotJson),
        }
    }

    pub(super) fn value(&self, json: &Json) -> Result<f64, Reject> {
        match self.0.pointer(&json.value) {
            None | Some(Value::Null) => Err(Reject::NoValue),
            Some(value) => as_number(value),
        }
    }

    /// The values by sensor, and why some were left out.
    pub(super) fn values(&self, json: &Json, out: &mut Vec<(String, f64)>) -> Result<Option<Reject>, Reject> {
        let pointer = json.values.as_deref().unwrap_or_default();
        let Some(Value::Object(values)) = self.0.pointer(pointer) else { return Err(Reject::NoValue) };
        let mut rejected = None;
        for (name, value) in values {
            match as_number(value) {
                Ok(number) => out.push((name.clone(), number)),
                // A payload that has everything in one object has its time there too.
                Err(_) if json.time.rsplit('/').next() == Some(name) => {}
                Err(reason) => {
                    rejected.get_or_insert(reason);
                }
            }
        }
        if json
            .time
            .strip_prefix(pointer)
            .is_some_and(|rest| rest.strip_prefix('/').is_some_and(|key| !key.contains('/')))
        {
            out.retain(|(name, _)| json.time.rsplit('/').next() != Some(name));
        }
        Ok(rejected)
    }

    /// `None` where the payload has none.
    pub(super) fn time(&self, json: &Json) -> Result<Option<Timestamp>, Reject> {
        match self.0.pointer(&json.time) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => read_time(value, json.time_format).map(Some).ok_or(Reject::TimeUnreadable),
        }
    }
}

fn as_number(value: &Value) -> Result<f64, Reject> {
    finite(value.as_f64().ok_or(Reject::NotANumber)?)
}

fn read_time(value: &Value, format: TimeFormat) -> Option<Timestamp> {
    let unit_us = match (format, value) {
        (TimeFormat::Auto | TimeFormat::Rfc3339, Value::String(text)) => {
            return text.parse::<jiff::Timestamp>().ok().map(|at| Timestamp(at.as_microsecond()));
        }
        (TimeFormat::Rfc3339, _) => return None,
        (TimeFormat::Seconds, _) => 1_000_000,
        (TimeFormat::Auto | TimeFormat::Milliseconds, _) => 1_000,
        (TimeFormat::Microseconds, _) => 1,
    };
    if let Some(whole) = value.as_i64() {
        return whole.checked_mul(unit_us).map(Timestamp);
    }
    // Up to 2^53 microseconds (the year 2255) a float is exact to the microsecond.
    let us = value.as_f64()? * unit_us as f64;
    (us.abs() < 9.0e15).then(|| Timestamp(us.round() as i64))
}
