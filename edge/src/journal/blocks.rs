//! Blocks of readings as they lie in the journal.
//!
//! A block: time of arrival, the start of the machine by which it counts (0 where the clock was right), microseconds since that start (i64
//! each), then for each reading machine, sensor, time (as its distance from the arrival; 0 means that the source gave none) as
//! variable-length integers, and the value (f64).

use gemba_shared::telemetry::{Clock, Timestamp};

use crate::reading::{Now, Reading};

/// A block is closed when it has this size.
pub const BLOCK_BYTES: usize = 3_700;
/// The most bytes of one reading: three integers and a value.
pub(super) const READING_BYTES_MAX: usize = 5 + 3 + 10 + 8;

pub(super) fn begin_block(now: Now) -> Vec<u8> {
    let mut block = Vec::with_capacity(BLOCK_BYTES);
    let boot = if let Clock::SinceBoot { boot } = now.clock { boot } else { 0 };
    block.extend_from_slice(&now.arrival().0.to_le_bytes());
    block.extend_from_slice(&boot.to_le_bytes());
    block.extend_from_slice(&now.mono_us.to_le_bytes());
    block
}

pub(super) fn put_reading(block: &mut Vec<u8>, reading: &Reading, arrived: Timestamp) {
    put_integer(block, u64::from(reading.machine.0));
    put_integer(block, u64::from(reading.sensor.0));
    let distance = reading.at.us_since(arrived);
    put_integer(block, (distance << 1 ^ distance >> 63) as u64);
    block.extend_from_slice(&reading.value.to_le_bytes());
}

/// Seven bits a byte, the lowest first; the highest bit says that more follow.
fn put_integer(block: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        block.push(value as u8 | 0x80);
        value >>= 7;
    }
    block.push(value as u8);
}

pub(super) fn take_integer(block: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = block.split_first()?;
        *block = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}
