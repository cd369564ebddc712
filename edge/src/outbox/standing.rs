//! What stands until it is replaced: machines' states, their catalogs, and what is delivered in the place of a record.
//!
//! Rows: `s` machine 0 part → state; `c` machine 0 number → the catalog record that has this number in the summaries' lane (the
//! latest of each machine, and those that are not receipted: a second copy, without which a machine's summaries could
//! not be read); `k` lane number → the record that is delivered in this number's place.
//!
//! Each row has two places, a byte at the end of its key, and begins with the count of the append that wrote it. The
//! next version goes to the other place, so that the valid one is there until the append counts ([`Standing::commit`]).
//! A new generation gets the valid versions; the one before it is kept, for what damage to the newest would take.

use std::{
    collections::{BTreeMap, HashSet},
    ops::ControlFlow,
    path::Path,
};

use gemba_shared::{ids::MachineId, message::Lane, telemetry::Record};
use serde::{Deserialize, Serialize};

use super::{LaneState, Life, Needed, OutboxError, Row, State, encode, index};
use crate::generations::{Filler, Found, GenerationSettings, Generations, StoreError, VALUE_BYTES_MAX};

/// A generation is not full below this.
const GENERATION_BYTES: u64 = 6 * 1_024 * 1_024;
/// Nor before it has grown by this part of what it began with, so that large states do not fill each new one at once. Two
/// generations lie on the disk: more would be felt there, less in what is written.
const GROWTH_PERCENT: u64 = 75;
/// Rows go to sled in batches of about this size.
const BATCH_BYTES: usize = 512 * 1_024;
const HEAD_BYTES: usize = 8;

/// Where things stood with the last append.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Tail {
    pub(super) append: u64,
    pub(super) lives: Vec<Life>,
    pub(super) lanes: [LaneState; 2],
}

#[derive(Debug)]
pub(super) struct Standing {
    generations: Generations,
    /// Keys whose valid version is in the second place.
    second: HashSet<Box<[u8]>>,
    /// The machines of the catalogs, by their numbers.
    catalogs: BTreeMap<u64, MachineId>,
    tail: Tail,
    /// What the newest generation began with.
    began_bytes: u64,
}

/// The valid rows.
#[derive(Debug, Default)]
pub(super) struct Rows {
    /// By their key without the place.
    pub(super) rows: BTreeMap<Vec<u8>, Version>,
    pub(super) damaged: u64,
}

#[derive(Debug)]
pub(super) struct Version {
    append: u64,
    place: u8,
    pub(super) value: Vec<u8>,
}

impl Rows {
    pub(super) fn states(&self) -> Vec<State> {
        let state = |(key, version): (&Vec<u8>, &Version)| {
            let (machine, part) = parse_state_key(key)?;
            Some(State { machine, part, bytes: version.value.clone() })
        };
        self.rows.iter().filter_map(state).collect()
    }
}

impl Standing {
    /// Opens what is there; `None` in place of the tail if nothing can be read. `lost`: the latest writes are not there.
    pub(super) fn open(
        dir: &Path,
        settings: GenerationSettings,
        looks_only: bool,
    ) -> Result<(Self, Start), OutboxError> {
        let bytes = GENERATION_BYTES.min(settings.generation_bytes);
        let settings = GenerationSettings { generation_bytes: bytes, ..settings };
        let open = if looks_only { Generations::open_to_look } else { Generations::open };
        let (generations, damage) = open(dir, settings)?;
        let newest = generations.newest().and_then(|(_, tail)| postcard::from_bytes::<Tail>(tail).ok());
        let known = generations.closed().values().filter_map(|closed| closed.tail.as_deref());
        let aside = damage.quarantined.iter().filter_map(|(_, generation)| generation.tail.as_deref());
        let tails = known.chain(aside).filter_map(|tail| postcard::from_bytes::<Tail>(tail).ok());
        let tail = newest.clone().into_iter().chain(tails).max_by_key(|tail| tail.append);
        let found = Start {
            lost: damage.newest_lost || newest.is_none(),
            tail: tail.clone(),
            quarantined: damage.quarantined.into_iter().map(|(path, _)| path).collect(),
        };
        let empty = Tail { append: 0, lives: Vec::new(), lanes: [LaneState { oldest: 0, next: 0 }; 2] };
        let tail = tail.unwrap_or(empty);
        Ok((Self { generations, second: HashSet::new(), catalogs: BTreeMap::new(), tail, began_bytes: 0 }, found))
    }

    /// Reads the versions that are valid after this append, and takes up their places.
    pub(super) fn load(&mut self, append: u64) -> Result<Rows, OutboxError> {
        let mut rows = self.read_newest(append)?;
        if rows.damaged > 0 || self.generations.newest().is_none() {
            rows = self.fall_back(rows)?;
        }
        self.second = rows.rows.iter().filter(|(_, v)| v.place == 1).map(|(key, _)| key.clone().into()).collect();
        self.catalogs = rows.rows.keys().filter_map(|key| parse_catalog_key(key)).map(|(m, n)| (n, m)).collect();
        self.began_bytes = rows.rows.iter().map(|(key, version)| (key.len() + version.value.len()) as u64).sum();
        Ok(rows)
    }

    fn read_newest(&mut self, append: u64) -> Result<Rows, OutboxError> {
        match self.generations.newest().map(|(ordinal, _)| ordinal) {
            Some(newest) => self.read(newest, append),
            None => Ok(Rows::default()),
        }
    }

    /// Adds what the older generations still have.
    fn fall_back(&mut self, mut rows: Rows) -> Result<Rows, OutboxError> {
        let closed: Vec<u64> = self.generations.closed().keys().rev().copied().collect();
        for ordinal in closed {
            match self.read(ordinal, u64::MAX) {
                Ok(older) => {
                    for (key, version) in older.rows {
                        rows.rows.entry(key).or_insert(Version { place: 0, ..version });
                    }
                }
                Err(error) if error.is_disk_full() => return Err(error),
                Err(error) => tracing::error!(%error, "an older generation of states cannot be read"),
            }
        }
        Ok(rows)
    }

    fn read(&mut self, ordinal: u64, append: u64) -> Result<Rows, OutboxError> {
        let mut rows = Rows::default();
        self.generations.scan(ordinal, &[1], |key, found| {
            let version = match (&found, key.split_last()) {
                (Found::Intact(value), Some((&place, key))) => {
                    value.split_first_chunk::<HEAD_BYTES>().map(|(count, value)| {
                        (key, Version { append: u64::from_le_bytes(*count), place, value: value.to_vec() })
                    })
                }
                _ => None,
            };
            match version {
                Some((key, version)) if version.append <= append => {
                    let newer = rows.rows.get(key).is_none_or(|other| other.append < version.append);
                    if newer {
                        rows.rows.insert(key.to_vec(), version);
                    }
                }
                // Of an append that does not count.
                Some(_) => {}
                None => rows.damaged += 1,
            }
            ControlFlow::Continue(())
        })?;
        Ok(rows)
    }

    /// Begins a new generation with these rows, after damage or with a new outbox.
    pub(super) fn begin(&mut self, rows: &Rows, tail: Tail) -> Result<(), OutboxError> {
        self.generations.roll(&encode(&tail)?, |_, filler| {
            rows.rows.iter().try_for_each(|(key, version)| put(filler, key, 0, version.append, &version.value))
        })?;
        self.began(tail);
        Ok(())
    }

    /// Begins a new generation with the valid rows that are needed.
    pub(super) fn roll(&mut self, needed: &Needed<'_>) -> Result<(), OutboxError> {
        let Some((old, _)) = self.generations.newest() else { return Err(StoreError::NoGeneration.into()) };
        let second = &self.second;
        let latest = self.latest_catalogs();
        self.catalogs.retain(|number, machine| is_needed_catalog(*number, machine, needed, &latest));
        self.generations.roll(&encode(&self.tail)?, |generations, filler| {
            let mut failed = Ok(());
            generations.scan(old, &[1], |key, found| {
                let (Found::Intact(value), Some((&place, key))) = (found, key.split_last()) else {
                    return ControlFlow::Continue(());
                };
                if place == u8::from(second.contains(key)) && is_needed(key, needed, &latest) {
                    failed = filler.put(&[key, &[0]].concat(), &value);
                }
                if failed.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })?;
            failed
        })?;
        self.began(self.tail.clone());
        Ok(())
    }

    fn began(&mut self, tail: Tail) {
        self.tail = tail;
        self.second.clear();
        self.began_bytes = self.generations.newest_bytes();
        // The one before the newest stays.
        let older: Vec<u64> = self.generations.closed().keys().rev().skip(1).copied().collect();
        for ordinal in older {
            self.generations.delete(ordinal);
        }
    }

    pub(super) fn is_full(&self) -> bool {
        let grown = self.generations.newest_bytes().saturating_sub(self.began_bytes);
        self.generations.is_full() && grown * 100 >= GROWTH_PERCENT * self.began_bytes
    }

    pub(super) fn bytes(&self) -> u64 {
        self.generations.bytes()
    }

    /// Writes these rows beside the valid ones. The same may be written again, until [`Standing::commit`].
    pub(super) fn write(&mut self, rows: &[Row], tail: Tail) -> Result<(), OutboxError> {
        let encoded = encode(&tail)?;
        let mut batch = Vec::new();
        let mut bytes = 0;
        for (key, value) in rows {
            let place = 1 - u8::from(self.second.contains(&key[..]));
            bytes += key.len() + value.len();
            batch.push((place_key(key, place), versioned(tail.append, value)));
            if bytes >= BATCH_BYTES {
                self.generations.append(&batch, &[], &encode(&self.tail)?)?;
                batch.clear();
                bytes = 0;
            }
        }
        self.generations.append(&batch, &[], &encoded)?;
        self.tail = tail;
        Ok(())
    }

    /// What was written under these keys is valid from now on.
    pub(super) fn commit(&mut self, keys: impl IntoIterator<Item = Vec<u8>>) {
        for key in keys {
            if let Some((machine, number)) = parse_catalog_key(&key) {
                self.catalogs.insert(number, machine);
            }
            if !self.second.remove(&key[..]) {
                self.second.insert(key.into());
            }
        }
    }

    /// The valid row of a key.
    pub(super) fn get(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>, OutboxError> {
        let Some((newest, _)) = self.generations.newest() else { return Ok(None) };
        let wanted = place_key(key, u8::from(self.second.contains(key)));
        let mut value = None;
        self.generations.scan(newest, &wanted, |key, found| {
            if let (true, Found::Intact(found)) = (key == wanted, found) {
                value = found.get(HEAD_BYTES..).map(<[u8]>::to_vec);
            }
            ControlFlow::Break(())
        })?;
        Ok(value)
    }

    /// The latest catalog record of each machine.
    pub(super) fn catalogs(&mut self) -> Result<Vec<Record>, OutboxError> {
        let mut records = Vec::new();
        for (machine, number) in self.latest_catalogs() {
            let value = self.get(&catalog_key(&machine, number))?;
            records.extend(value.and_then(|value| postcard::from_bytes(&value).ok()));
        }
        Ok(records)
    }

    /// The catalog that has this number in the summaries' lane, if one has.
    pub(super) fn catalog_at(&mut self, number: u64) -> Result<Option<Record>, OutboxError> {
        let Some(machine) = self.catalogs.get(&number).cloned() else { return Ok(None) };
        Ok(self.get(&catalog_key(&machine, number))?.and_then(|value| postcard::from_bytes(&value).ok()))
    }

    /// Whether there is no generation to write to.
    pub(super) fn is_closed(&self) -> bool {
        self.generations.newest().is_none()
    }

    fn latest_catalogs(&self) -> BTreeMap<MachineId, u64> {
        self.catalogs.iter().map(|(number, machine)| (machine.clone(), *number)).collect()
    }
}

/// What [`Standing::open`] found.
#[derive(Debug)]
pub(super) struct Start {
    pub(super) lost: bool,
    pub(super) tail: Option<Tail>,
    pub(super) quarantined: Vec<std::path::PathBuf>,
}

fn is_needed(key: &[u8], needed: &Needed<'_>, latest: &BTreeMap<MachineId, u64>) -> bool {
    if let Some((machine, number)) = parse_catalog_key(key) {
        return is_needed_catalog(number, &machine, needed, latest);
    }
    parse_replaced_key(key).is_none_or(|at| needed.replaced.contains(&at))
}

fn is_needed_catalog(number: u64, machine: &MachineId, needed: &Needed<'_>, latest: &BTreeMap<MachineId, u64>) -> bool {
    number >= needed.oldest[index(Lane::Summaries)] || latest.get(machine) == Some(&number)
}

fn put(filler: &mut Filler<'_>, key: &[u8], place: u8, append: u64, value: &[u8]) -> Result<(), StoreError> {
    filler.put(&place_key(key, place), &versioned(append, value))
}

fn place_key(key: &[u8], place: u8) -> Vec<u8> {
    [key, &[place]].concat()
}

fn versioned(append: u64, value: &[u8]) -> Vec<u8> {
    [&append.to_le_bytes()[..], value].concat()
}

/// The row of a state; `None` if it is too large.
pub(super) fn state_row(state: &State) -> Option<Row> {
    let key = [b"s", state.machine.as_str().as_bytes(), &[0], &state.part.to_be_bytes()].concat();
    (state.bytes.len() + HEAD_BYTES <= VALUE_BYTES_MAX).then(|| (key, state.bytes.clone()))
}

fn parse_state_key(key: &[u8]) -> Option<(MachineId, u16)> {
    let (name, part) = key.strip_prefix(b"s")?.split_last_chunk::<2>()?;
    Some((machine_of(name)?, u16::from_be_bytes(*part)))
}

pub(super) fn catalog_key(machine: &MachineId, number: u64) -> Vec<u8> {
    [b"c", machine.as_str().as_bytes(), &[0], &number.to_be_bytes()].concat()
}

fn parse_catalog_key(key: &[u8]) -> Option<(MachineId, u64)> {
    let (name, number) = key.strip_prefix(b"c")?.split_last_chunk::<8>()?;
    Some((machine_of(name)?, u64::from_be_bytes(*number)))
}

fn machine_of(name: &[u8]) -> Option<MachineId> {
    MachineId::new(std::str::from_utf8(name.strip_suffix(&[0])?).ok()?).ok()
}

pub(super) fn replaced_key(lane: Lane, number: u64) -> Vec<u8> {
    [&[b'k', index(lane) as u8][..], &number.to_be_bytes()].concat()
}

pub(super) fn parse_replaced_key(key: &[u8]) -> Option<(Lane, u64)> {
    let (&[kind, lane], number) = key.split_first_chunk::<2>()?;
    let number = u64::from_be_bytes(number.try_into().ok()?);
    let lane = *Lane::ALL.get(usize::from(lane))?;
    (kind == b'k').then_some((lane, number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_read_what_they_write() {
        let machine = MachineId::new("pump-1").unwrap();
        let state = State { machine: machine.clone(), part: 0x0102, bytes: Vec::new() };
        assert_eq!(parse_state_key(&state_row(&state).unwrap().0), Some((machine.clone(), 0x0102)));
        assert_eq!(parse_catalog_key(&catalog_key(&machine, 77)), Some((machine, 77)));
        for lane in Lane::ALL {
            assert_eq!(parse_replaced_key(&replaced_key(lane, 77)), Some((lane, 77)));
        }
    }
}
