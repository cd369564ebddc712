//! What is kept with tickets.

use serde::{Deserialize, Deserializer, de};

/// `[tickets]`
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tickets {
    /// The largest photo or file.
    #[serde(deserialize_with = "bytes")]
    pub attachment_bytes_max: usize,
    /// Photos and files of one ticket.
    #[serde(deserialize_with = "count")]
    pub attachments_max: usize,
}

impl Default for Tickets {
    fn default() -> Self {
        Self { attachment_bytes_max: 10_000_000, attachments_max: 20 }
    }
}

fn bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    within(deserializer, 1_000..=100_000_000)
}

fn count<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    within(deserializer, 1..=1_000)
}

fn within<'de, D: Deserializer<'de>>(
    deserializer: D,
    bounds: std::ops::RangeInclusive<usize>,
) -> Result<usize, D::Error> {
    let number = usize::deserialize(deserializer)?;
    if bounds.contains(&number) {
        return Ok(number);
    }
    Err(de::Error::custom(format!("it should be {} to {}", bounds.start(), bounds.end())))
}
