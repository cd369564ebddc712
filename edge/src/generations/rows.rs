//! How a value lies in the rows of a database, and what the file `tail` holds.
//!
//! A value's rows have its key and one byte more, the number of the part. The first row begins with the number of
//! parts (u8) and the CRC-32C of key and value (u32, little-endian).
//!
//! The commit row's value: ordinal of the generation (u64), count of appends (u64), whether it was closed from the beginning (u8), the
//! owner's tail. So that a database or a file in another's place is known for what it is.
//!
//! `tail`: magic, length of what follows (u16), the same as in the commit row, CRC-32C of all before.

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
const TAIL_MAGIC: &[u8; 4] = b"GGT2";

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

/// Removes a value with all parts that it may have.
pub(super) fn remove_value(batch: &mut sled::Batch, key: &[u8]) {
    for part in 0..VALUE_BYTES_MAX.div_ceil(PART_BYTES) {
        batch.remove([key, &[u8::try_from(part).unwrap_or(u8::MAX)]].concat());
    }
}

fn checksum(key: &[u8], value: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(key), value)
}

/// The row that ends an append.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Commit {
    pub(super) ordinal: u64,
    pub(super) appends: u64,
    /// Closed from the beginning.
    pub(super) sealed: bool,
    /// The owner's.
    pub(super) tail: Vec<u8>,
}

impl Commit {
    fn to_bytes(&self) -> Vec<u8> {
        let (ordinal, appends) = (self.ordinal.to_le_bytes(), self.appends.to_le_bytes());
        [&ordinal[..], &appends, &[u8::from(self.sealed)], &self.tail].concat()
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (ordinal, rest) = bytes.split_first_chunk()?;
        let (appends, rest) = rest.split_first_chunk()?;
        let (sealed, tail) = rest.split_first()?;
        Some(Self {
            ordinal: u64::from_le_bytes(*ordinal),
            appends: u64::from_le_bytes(*appends),
            sealed: *sealed != 0,
            tail: tail.to_vec(),
        })
    }
}

pub(super) fn put_commit(batch: &mut sled::Batch, commit: &Commit) -> Result<(), StoreError> {
    debug_assert!(commit.tail.len() <= TAIL_BYTES_MAX);
    put(batch, COMMIT_KEY, &commit.to_bytes())
}

pub(super) fn commit_of(db: &sled::Tree) -> Option<Commit> {
    let key = [COMMIT_KEY, &[0]].concat();
    let value = catch_unwind(AssertUnwindSafe(|| db.get(&key))).ok()?.ok()??;
    let mut parts = Parts::default();
    parts.push(&key, &value);
    let Some((_, Found::Intact(value))) = parts.finish() else { return None };
    Commit::from_bytes(&value)
}

/// Writes the file `tail` in one write: a kill leaves the old one or the new one.
pub(super) fn write_tail(file: &File, commit: &Commit) -> io::Result<()> {
    let written = commit.to_bytes();
    let mut bytes = TAIL_MAGIC.to_vec();
    bytes.extend_from_slice(&u16::try_from(written.len()).unwrap_or(0).to_le_bytes());
    bytes.extend_from_slice(&written);
    bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
    file.write_all_at(&bytes, 0)
}

/// What the file `tail` of a generation says, if it is that generation's.
pub(super) fn read_tail(path: &Path, ordinal: u64) -> Option<Commit> {
    let bytes = fs::read(path.join("tail")).ok()?;
    let length = usize::from(u16::from_le_bytes(*bytes.get(4..)?.first_chunk()?));
    let (written, rest) = bytes.split_at_checked(6 + length)?;
    if !written.starts_with(TAIL_MAGIC) || crc32c::crc32c(written).to_le_bytes() != *rest.first_chunk::<4>()? {
        return None;
    }
    Commit::from_bytes(written.get(6..)?).filter(|commit| commit.ordinal == ordinal)
}
