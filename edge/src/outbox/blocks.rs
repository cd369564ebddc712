//! Records packed into blocks: a database of a few large rows takes far less room than one of many small rows.
//!
//! Key: `r`, lane (u8), the number of the block's first record (u64, big-endian). Value: 1 if it is compressed (u8),
//! the count of records (u16, little-endian), the records' encodings one after the other (by LZ4 with their size in front, where
//! that is shorter).

use gemba_shared::{message::Lane, telemetry::Record};

use super::{Row, index};
use crate::generations::VALUE_BYTES_MAX;

/// A block is closed when its records have this many bytes.
const BLOCK_BYTES: usize = 8 * 1_024;
const HEAD_BYTES: usize = 3;
/// The largest record.
pub(super) const RECORD_BYTES_MAX: usize = VALUE_BYTES_MAX - HEAD_BYTES;

/// Packs the records of one lane, which follow each other.
#[derive(Debug)]
pub(super) struct Packer {
    lane: Lane,
    /// The number of the block's first record.
    first: u64,
    count: u16,
    body: Vec<u8>,
    rows: Vec<Row>,
}

impl Packer {
    pub(super) fn new(lane: Lane, first: u64) -> Self {
        Self { lane, first, count: 0, body: Vec::new(), rows: Vec::new() }
    }

    /// Takes the next record, encoded.
    pub(super) fn push(&mut self, record: &[u8]) {
        if self.body.len() + record.len() > RECORD_BYTES_MAX {
            self.close();
        }
        self.body.extend_from_slice(record);
        self.count += 1;
        if self.body.len() >= BLOCK_BYTES || self.count == u16::MAX {
            self.close();
        }
    }

    /// The blocks that are closed.
    pub(super) fn take(&mut self) -> std::vec::Drain<'_, Row> {
        self.rows.drain(..)
    }

    /// All blocks.
    pub(super) fn finish(mut self) -> Vec<Row> {
        self.close();
        self.rows
    }

    fn close(&mut self) {
        if self.count == 0 {
            return;
        }
        let packed = lz4_flex::compress_prepend_size(&self.body);
        let (compressed, body) = if packed.len() < self.body.len() { (1, &packed) } else { (0, &self.body) };
        let value = [&[compressed], &self.count.to_le_bytes()[..], body].concat();
        self.rows.push((key(self.lane, self.first), value));
        self.first += u64::from(self.count);
        self.count = 0;
        self.body.clear();
    }
}

/// The records of a block, each with its encoded size; `None` if it is none.
pub(super) fn unpack(block: &[u8]) -> Option<Vec<(Record, usize)>> {
    let ([compressed, low, high], body) = block.split_first_chunk::<HEAD_BYTES>()?;
    let count = u16::from_le_bytes([*low, *high]);
    let unpacked;
    let mut body = if *compressed == 1 {
        let size = u32::from_le_bytes(*body.first_chunk()?) as usize;
        if size > VALUE_BYTES_MAX {
            return None;
        }
        unpacked = lz4_flex::decompress_size_prepended(body).ok()?;
        &unpacked[..]
    } else {
        body
    };
    let mut records = Vec::with_capacity(usize::from(count));
    for _ in 0..count {
        let (record, rest) = postcard::take_from_bytes(body).ok()?;
        records.push((record, body.len() - rest.len()));
        body = rest;
    }
    Some(records)
}

/// How many records a block has.
pub(super) fn count(block: &[u8]) -> u64 {
    block.get(1..HEAD_BYTES).map_or(0, |count| u64::from(u16::from_le_bytes([count[0], count[1]])))
}

pub(super) fn key(lane: Lane, first: u64) -> Vec<u8> {
    [&[b'r', index(lane) as u8][..], &first.to_be_bytes()].concat()
}

pub(super) fn parse_key(key: &[u8]) -> Option<(Lane, u64)> {
    let (&[kind, lane], number) = key.split_first_chunk::<2>()?;
    let number = u64::from_be_bytes(number.try_into().ok()?);
    let lane = *Lane::ALL.get(usize::from(lane))?;
    (kind == b'r').then_some((lane, number))
}

#[cfg(test)]
mod tests {
    use gemba_shared::telemetry::GapReason;

    use super::{super::gap, *};

    #[test]
    fn what_is_packed_is_unpacked() {
        let records: Vec<Record> = (0..3_000_u64).map(|n| gap(n * n..n * n * n + 1, GapReason::Damaged)).collect();
        let mut packer = Packer::new(Lane::Summaries, 100);
        for record in &records {
            packer.push(&postcard::to_stdvec(record).unwrap());
        }
        let rows = packer.finish();
        assert!(rows.len() > 1);
        let mut found = Vec::new();
        for (key, value) in &rows {
            assert_eq!(parse_key(key), Some((Lane::Summaries, 100 + found.len() as u64)));
            found.extend(unpack(value).unwrap().into_iter().map(|(record, _)| record));
            assert!(unpack(&value[..value.len() - 1]).is_none());
        }
        assert_eq!(found, records);
    }
}
