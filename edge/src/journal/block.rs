//! How readings lie in a block of the journal, and how the names in a generation are understood again.

use std::collections::HashMap;

use gemba_shared::{
    ids::{MachineId, SensorId},
    telemetry::{Clock, Timestamp},
};

use crate::reading::{MachineIx, Now, Reading, Registry, SensorIx};

/// A block is closed when it has this size.
pub const BLOCK_BYTES: usize = 3_700;
/// The most bytes of one reading: three integers and a value.
pub(super) const READING_BYTES_MAX: usize = 5 + 3 + 10 + 8;

/// The names of one generation: its machines' places, and theirs and their sensors' in this process.
#[derive(Default)]
pub(super) struct Names(HashMap<u32, Option<Places>>);

/// A machine's place in this process, and its sensors'; `None` for what the registry has no room for.
type Places = (MachineIx, Vec<Option<SensorIx>>);

impl Names {
    pub(super) fn learn(&mut self, key: &[u8], row: &[u8], registry: &mut Registry) {
        let Some(place) = key.first_chunk().map(|key| u32::from_be_bytes(*key)) else { return };
        let Ok((machine, sensors)) = postcard::from_bytes::<(MachineId, Vec<SensorId>)>(row) else { return };
        let known = registry.machine(&machine).ok().map(|ix| {
            let sensors = sensors.iter().map(|sensor| registry.sensor(ix, sensor).ok()).collect();
            (ix, sensors)
        });
        self.0.insert(place, known);
    }

    /// When the block arrived; `None` if it is no block.
    pub(super) fn read(&self, block: &[u8], readings: &mut Vec<Reading>, refused: &mut u64) -> Option<Now> {
        let (head, mut rest) = block.split_first_chunk::<24>()?;
        let ([at, boot, mono_us], _) = head.as_chunks::<8>() else { return None };
        let boot = u64::from_le_bytes(*boot);
        let arrived = Now {
            wall: Timestamp(i64::from_le_bytes(*at)),
            mono_us: i64::from_le_bytes(*mono_us),
            clock: if boot == 0 { Clock::Trusted } else { Clock::SinceBoot { boot } },
        };
        while !rest.is_empty() {
            let machine = u32::try_from(take_integer(&mut rest)?).ok()?;
            let sensor = usize::try_from(take_integer(&mut rest)?).ok()?;
            let distance = take_integer(&mut rest)?;
            let distance = (distance >> 1) as i64 ^ -((distance & 1) as i64);
            let (value, left) = rest.split_first_chunk::<8>()?;
            rest = left;
            let known = self.0.get(&machine).and_then(Option::as_ref);
            match known.and_then(|(machine, sensors)| Some((*machine, (*sensors.get(sensor)?)?))) {
                Some((machine, sensor)) => {
                    let value = f64::from_le_bytes(*value);
                    readings.push(Reading { machine, sensor, at: arrived.arrival().plus_us(distance), value });
                }
                None => *refused += 1,
            }
        }
        Some(arrived)
    }
}

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

fn take_integer(block: &mut &[u8]) -> Option<u64> {
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
