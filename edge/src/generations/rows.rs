//! How a value lies in the rows of a database, and what the file `tail` holds.
//!
//! A value's rows have its key and one byte more, the number of the part. The first row begins with the number of
//! parts (u8) and the CRC-32C of key and value (u32, little-endian).
//!
//! `tail`: magic, length of the owner's tail (u16), count of appends (u64), the owner's tail, CRC-32C of all before.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

use super::{Found, StoreError, TAIL_BYTES_MAX, VALUE_BYTES_MAX};

/// A longer value is stored in parts of this size.
const PART_BYTES: usize = 3_800;
const COMMIT_KEY: &[u8] = &[0];
const TAIL_MAGIC: &[u8; 4] = b"GGT1";

/// Puts the parts of values together again.
#[derive(Default)]
pub(super) struct Parts {
    key: Vec<u8>,
    /// The checksum, then what there is of the value.
    value: Vec<u8>,
    left: usize,
    whole: bool,
}

impl Parts {
    /// Takes the next row; gives the value before it if that is complete.
    pub(super) fn push(&mut self, key: &[u8], value: &[u8]) -> Option<(Vec<u8>, Found)> {
        let (&part, key) = key.split_last()?;
        if part == 0 {
            let finished = self.finish();
            self.key = key.to_vec();
            let (&parts, value) = value.split_first().unwrap_or((&0, &[]));
            self.value = value.to_vec();
            self.left = usize::from(parts).saturating_sub(1);
            self.whole = parts > 0;
            finished
        } else if self.whole && self.key == key {
            // Parts of an earlier, longer value lie behind the last one.
            if self.left > 0 {
                self.value.extend_from_slice(value);
                self.left -= 1;
            }
            None
        } else {
            // The first part is missing.
            let finished = self.finish();
            self.key = key.to_vec();
            self.whole = false;
            self.left = usize::MAX;
            finished
        }
    }

    pub(super) fn finish(&mut self) -> Option<(Vec<u8>, Found)> {
        if self.key.is_empty() {
            return None;
        }
        let key = std::mem::take(&mut self.key);
        let found = match self.value.split_first_chunk::<4>() {
            Some((crc, value)) if self.whole && self.left == 0 && checksum(&key, value) == u32::from_le_bytes(*crc) => {
                Found::Intact(value.to_vec())
            }
            _ => Found::Damaged,
        };
        self.value.clear();
        Some((key, found))
    }
}

pub(super) fn is_commit(row: &sled::Result<(sled::IVec, sled::IVec)>) -> bool {
    row.as_ref().is_ok_and(|(key, _)| key.starts_with(COMMIT_KEY))
}

pub(super) fn put(batch: &mut sled::Batch, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
    if value.len() > VALUE_BYTES_MAX {
        return Err(StoreError::TooLarge(value.len()));
    }
    let parts = value.len().div_ceil(PART_BYTES).max(1);
    for part in 0..parts {
        let number = u8::try_from(part).map_err(|_| StoreError::TooLarge(value.len()))?;
        let chunk = &value[part * PART_BYTES..value.len().min((part + 1) * PART_BYTES)];
        let mut row = Vec::with_capacity(chunk.len() + 5);
        if part == 0 {
            row.push(u8::try_from(parts).map_err(|_| StoreError::TooLarge(value.len()))?);
            row.extend_from_slice(&checksum(key, value).to_le_bytes());
        }
        row.extend_from_slice(chunk);
        batch.insert([key, &[number]].concat(), row);
    }
    Ok(())
}

fn checksum(key: &[u8], value: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(key), value)
}

/// The row that ends an append.
pub(super) fn put_commit(batch: &mut sled::Batch, appends: u64, tail: &[u8]) -> Result<(), StoreError> {
    put(batch, COMMIT_KEY, &[&appends.to_le_bytes()[..], tail].concat())
}

pub(super) fn commit_of(db: &sled::Db) -> Option<(u64, Vec<u8>)> {
    let value = catch_unwind(AssertUnwindSafe(|| db.get([COMMIT_KEY, &[0]].concat()))).ok()?.ok()??;
    let mut parts = Parts::default();
    parts.push(&[COMMIT_KEY, &[0]].concat(), &value);
    let Some((_, Found::Intact(value))) = parts.finish() else { return None };
    let (appends, tail) = value.split_first_chunk::<8>()?;
    Some((u64::from_le_bytes(*appends), tail.to_vec()))
}

/// Writes the count of appends and the owner's tail, in one write: a kill leaves the old one or the new one.
pub(super) fn write_tail(file: &File, appends: u64, tail: &[u8]) -> io::Result<()> {
    debug_assert!(tail.len() <= TAIL_BYTES_MAX);
    let mut bytes = TAIL_MAGIC.to_vec();
    bytes.extend_from_slice(&u16::try_from(tail.len()).unwrap_or(0).to_le_bytes());
    bytes.extend_from_slice(&appends.to_le_bytes());
    bytes.extend_from_slice(tail);
    bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
    file.write_all_at(&bytes, 0)
}

pub(super) fn read_tail(path: &Path) -> Option<(u64, Vec<u8>)> {
    let bytes = fs::read(path.join("tail")).ok()?;
    let length = usize::from(u16::from_le_bytes(*bytes.get(4..)?.first_chunk()?));
    let (written, rest) = bytes.split_at_checked(14 + length)?;
    if !written.starts_with(TAIL_MAGIC) || crc32c::crc32c(written).to_le_bytes() != *rest.first_chunk::<4>()? {
        return None;
    }
    Some((u64::from_le_bytes(*written.get(6..)?.first_chunk()?), written.get(14..)?.to_vec()))
}
