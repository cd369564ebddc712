//! A disk that loses its power: a file system in memory that knows what was synced, and forgets the rest when told to.
//!
//! What is promised is what a program may count on, no more (POSIX, and a journal that keeps the order of names):
//! - **Data**: what `fsync` or `fdatasync` of the file has returned for is safe, with the file's size. Of what was written
//!   since, each page of 4 KiB is there or not, each by itself, as the disk happened to write it.
//! - **Names**: creating, renaming and deleting is safe when the *directory* was synced; syncing a file does not save its
//!   name. (ext4 would save it; others need not.) Names change in the order in which they were changed: of what was
//!   not synced, a first part of any length is there. A rename is there whole or not at all.
//! - At the cut the disk stops: until the power is back, everything fails.
//!
//! It can be slow, full, read-only or broken on demand as well. This is the model, without I/O; `mount` gives it to the kernel.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    ffi::{OsStr, OsString},
    time::Duration,
};

use nix::errno::Errno;
use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};

pub mod mount;

pub const ROOT: u64 = 1;
const PAGE: usize = 4_096;

/// What the disk does in place of its work.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// Everything that would write fails with this.
    pub writes_fail: Option<Errno>,
    /// How much fits, in bytes.
    pub capacity: Option<u64>,
    /// How long each sync takes.
    pub sync_takes: Duration,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub file_syncs: u64,
    pub directory_syncs: u64,
    pub writes: u64,
    /// What cuts have taken: pages that were not synced, and changes of names.
    pub pages_lost: u64,
    pub names_lost: u64,
}

#[derive(Debug, Clone, Default)]
struct File {
    data: Vec<u8>,
    /// What is there after a cut, whatever the disk did by itself.
    safe: Vec<u8>,
    /// Pages written since the last sync.
    dirty: BTreeSet<usize>,
    open: u32,
}

type Names = HashMap<u64, BTreeMap<OsString, u64>>;

/// Names that change together: in this directory, this name is that node, or none any more.
type Change = Vec<(u64, OsString, Option<u64>)>;

#[derive(Debug, Clone)]
pub struct Disk {
    files: HashMap<u64, File>,
    /// The directories as processes see them, and as they are after a cut.
    names: Names,
    safe_names: Names,
    /// What is between the two, in order.
    changes: VecDeque<Change>,
    next: u64,
    off: bool,
    pub faults: Faults,
    pub counts: Counts,
}

/// A node as `stat` tells of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    pub node: u64,
    pub size: u64,
    pub is_directory: bool,
}

impl Default for Disk {
    fn default() -> Self {
        let root: Names = [(ROOT, BTreeMap::new())].into();
        Self {
            files: HashMap::new(),
            names: root.clone(),
            safe_names: root,
            changes: VecDeque::new(),
            next: ROOT + 1,
            off: false,
            faults: Faults::default(),
            counts: Counts::default(),
        }
    }
}

impl Disk {
    /// The power goes. What is left is there when it comes back.
    pub fn cut(&mut self, seed: u64) {
        let mut random = SmallRng::seed_from_u64(seed);
        self.off = true;
        let kept = random.random_range(0..=self.changes.len());
        self.counts.names_lost += (self.changes.len() - kept) as u64;
        self.make_safe(kept);
        self.changes.clear();
        self.names = self.safe_names.clone();
        // Some disks write much of what they hold by themselves, others little.
        let share = f64::from(random.random_range(0..=4_u8)) / 4.0;
        let mut nodes: Vec<_> = self.files.iter_mut().collect();
        nodes.sort_unstable_by_key(|(node, _)| **node);
        for (_, file) in nodes {
            self.counts.pages_lost += file.cut(&mut random, share);
        }
        self.forget_unreachable();
    }

    pub fn power_on(&mut self) {
        self.off = false;
    }

    /// What all files take, in bytes.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.files.values().map(|file| file.data.len() as u64).sum()
    }

    pub fn stat(&self, node: u64) -> Result<Stat, Errno> {
        self.works()?;
        match self.files.get(&node) {
            Some(file) => Ok(Stat { node, size: file.data.len() as u64, is_directory: false }),
            None if self.names.contains_key(&node) => Ok(Stat { node, size: 0, is_directory: true }),
            None => Err(Errno::ENOENT),
        }
    }

    pub fn look_up(&self, directory: u64, name: &OsStr) -> Result<Stat, Errno> {
        self.works()?;
        let node = self.names.get(&directory).ok_or(Errno::ENOTDIR)?.get(name).ok_or(Errno::ENOENT)?;
        self.stat(*node)
    }

    pub fn list(&self, directory: u64) -> Result<Vec<(OsString, Stat)>, Errno> {
        self.works()?;
        let names = self.names.get(&directory).ok_or(Errno::ENOTDIR)?;
        names.iter().map(|(name, node)| Ok((name.clone(), self.stat(*node)?))).collect()
    }

    /// Makes a file, or a directory.
    pub fn create(&mut self, directory: u64, name: &OsStr, is_directory: bool) -> Result<Stat, Errno> {
        self.takes_writes()?;
        let names = self.names.get(&directory).ok_or(Errno::ENOTDIR)?;
        if names.contains_key(name) {
            return Err(Errno::EEXIST);
        }
        let node = self.next;
        self.next += 1;
        if is_directory {
            // A directory without a name is nothing: that it is there is no promise.
            self.names.insert(node, BTreeMap::new());
            self.safe_names.insert(node, BTreeMap::new());
        } else {
            self.files.insert(node, File::default());
        }
        self.change(vec![(directory, name.to_owned(), Some(node))]);
        self.stat(node)
    }

    pub fn remove(&mut self, directory: u64, name: &OsStr, is_directory: bool) -> Result<(), Errno> {
        self.takes_writes()?;
        let stat = self.look_up(directory, name)?;
        match (stat.is_directory, is_directory) {
            (true, false) => return Err(Errno::EISDIR),
            (false, true) => return Err(Errno::ENOTDIR),
            (true, true) if !self.names[&stat.node].is_empty() => return Err(Errno::ENOTEMPTY),
            _ => {}
        }
        self.change(vec![(directory, name.to_owned(), None)]);
        self.forget_unreachable();
        Ok(())
    }

    pub fn rename(&mut self, from: (u64, &OsStr), to: (u64, &OsStr)) -> Result<(), Errno> {
        self.takes_writes()?;
        let moved = self.look_up(from.0, from.1)?;
        if let Ok(there) = self.look_up(to.0, to.1)
            && (there.is_directory != moved.is_directory
                || self.names.get(&there.node).is_some_and(|names| !names.is_empty()))
        {
            return Err(Errno::ENOTEMPTY);
        }
        self.change(vec![(from.0, from.1.to_owned(), None), (to.0, to.1.to_owned(), Some(moved.node))]);
        self.forget_unreachable();
        Ok(())
    }

    pub fn opened(&mut self, node: u64) -> Result<(), Errno> {
        self.works()?;
        self.files.get_mut(&node).ok_or(Errno::ENOENT)?.open += 1;
        Ok(())
    }

    pub fn closed(&mut self, node: u64) {
        if let Some(file) = self.files.get_mut(&node) {
            file.open = file.open.saturating_sub(1);
        }
        self.forget_unreachable();
    }

    pub fn read(&self, node: u64, offset: u64, size: usize) -> Result<&[u8], Errno> {
        self.works()?;
        let data = &self.files.get(&node).ok_or(Errno::ENOENT)?.data;
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(data.len());
        Ok(&data[from..data.len().min(from + size)])
    }

    pub fn write(&mut self, node: u64, offset: u64, data: &[u8]) -> Result<(), Errno> {
        self.takes_writes()?;
        let from = usize::try_from(offset).map_err(|_| Errno::EFBIG)?;
        self.make_room(node, from + data.len())?;
        let file = self.files.get_mut(&node).ok_or(Errno::ENOENT)?;
        if file.data.len() < from + data.len() {
            file.resize(from + data.len());
        }
        file.data[from..from + data.len()].copy_from_slice(data);
        file.touch(from, from + data.len());
        self.counts.writes += 1;
        Ok(())
    }

    pub fn set_size(&mut self, node: u64, size: u64) -> Result<(), Errno> {
        self.takes_writes()?;
        let size = usize::try_from(size).map_err(|_| Errno::EFBIG)?;
        self.make_room(node, size)?;
        self.files.get_mut(&node).ok_or(Errno::ENOENT)?.resize(size);
        Ok(())
    }

    /// Makes what is in the file safe.
    pub fn sync_file(&mut self, node: u64) -> Result<(), Errno> {
        self.takes_writes()?;
        self.files.get_mut(&node).ok_or(Errno::ENOENT)?.sync();
        self.counts.file_syncs += 1;
        Ok(())
    }

    /// Makes the directory's names safe, and with them all that were changed before.
    pub fn sync_directory(&mut self, node: u64) -> Result<(), Errno> {
        self.takes_writes()?;
        let last = self.changes.iter().rposition(|change| change.iter().any(|(directory, ..)| *directory == node));
        self.make_safe(last.map_or(0, |last| last + 1));
        self.counts.directory_syncs += 1;
        self.forget_unreachable();
        Ok(())
    }

    fn works(&self) -> Result<(), Errno> {
        if self.off { Err(Errno::EIO) } else { Ok(()) }
    }

    fn takes_writes(&self) -> Result<(), Errno> {
        self.works()?;
        self.faults.writes_fail.map_or(Ok(()), Err)
    }

    fn make_room(&self, node: u64, size: usize) -> Result<(), Errno> {
        let more = size.saturating_sub(self.files.get(&node).ok_or(Errno::ENOENT)?.data.len()) as u64;
        let fits = more == 0 || self.faults.capacity.is_none_or(|capacity| self.used() + more <= capacity);
        if fits { Ok(()) } else { Err(Errno::ENOSPC) }
    }

    fn change(&mut self, change: Change) {
        apply(&mut self.names, &change);
        self.changes.push_back(change);
    }

    fn make_safe(&mut self, count: usize) {
        for change in self.changes.drain(..count) {
            apply(&mut self.safe_names, &change);
        }
    }

    /// Drops what nobody can reach any more, neither now nor after a cut.
    fn forget_unreachable(&mut self) {
        let mut reachable: HashSet<u64> = [ROOT].into();
        for names in [&self.names, &self.safe_names] {
            let mut directories = vec![ROOT];
            while let Some(directory) = directories.pop() {
                for node in names.get(&directory).into_iter().flat_map(BTreeMap::values) {
                    reachable.insert(*node);
                    if names.contains_key(node) {
                        directories.push(*node);
                    }
                }
            }
        }
        reachable.extend(self.changes.iter().flatten().filter_map(|(.., node)| *node));
        self.files.retain(|node, file| file.open > 0 || reachable.contains(node));
        self.names.retain(|node, _| reachable.contains(node));
        self.safe_names.retain(|node, _| reachable.contains(node));
    }
}

fn apply(names: &mut Names, change: &Change) {
    for (directory, name, node) in change {
        let Some(entries) = names.get_mut(directory) else { continue };
        match node {
            Some(node) => entries.insert(name.clone(), *node),
            None => entries.remove(name),
        };
    }
}

impl File {
    fn touch(&mut self, from: usize, to: usize) {
        self.dirty.extend(from / PAGE..to.div_ceil(PAGE));
    }

    fn resize(&mut self, size: usize) {
        let before = self.data.len();
        self.data.resize(size, 0);
        self.touch(before.min(size), before.max(size));
    }

    fn sync(&mut self) {
        for page in std::mem::take(&mut self.dirty) {
            self.take_page(page);
        }
        self.safe.resize(self.data.len(), 0);
    }

    /// Copies a page to where it is safe, as far as the file goes.
    fn take_page(&mut self, page: usize) {
        let (from, to) = (page * PAGE, (page * PAGE + PAGE).min(self.data.len()));
        if from < to {
            if self.safe.len() < to {
                self.safe.resize(to, 0);
            }
            self.safe[from..to].copy_from_slice(&self.data[from..to]);
        }
    }

    /// Leaves what is safe, and a share of the rest. How many pages were lost.
    fn cut(&mut self, random: &mut SmallRng, share: f64) -> u64 {
        let mut lost = 0;
        let was_longer = self.safe.len() > self.data.len();
        for page in std::mem::take(&mut self.dirty) {
            if random.random_bool(share) {
                self.take_page(page);
            } else {
                lost += 1;
            }
        }
        if was_longer && random.random_bool(share) {
            self.safe.truncate(self.data.len());
        }
        self.data.clone_from(&self.safe);
        self.open = 0;
        lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> &OsStr {
        OsStr::new(text)
    }

    /// After a cut with each of many seeds: whether the file is there, and what it holds.
    fn outcomes(make: impl Fn(&mut Disk)) -> BTreeSet<Option<Vec<u8>>> {
        let after = |seed| {
            let mut disk = Disk::default();
            make(&mut disk);
            disk.cut(seed);
            assert_eq!(disk.look_up(ROOT, name("a")), Err(Errno::EIO), "the power is off");
            disk.power_on();
            let found = disk.look_up(ROOT, name("a")).ok()?;
            Some(disk.read(found.node, 0, 1 << 20).unwrap().to_vec())
        };
        (0..64).map(after).collect()
    }

    #[test]
    fn what_was_synced_is_there_and_the_rest_may_be() {
        let unsynced = outcomes(|disk| {
            let file = disk.create(ROOT, name("a"), false).unwrap().node;
            disk.write(file, 0, b"x").unwrap();
        });
        assert_eq!(unsynced, [None, Some(vec![]), Some(b"x".to_vec())].into());
        let nameless = outcomes(|disk| {
            let file = disk.create(ROOT, name("a"), false).unwrap().node;
            disk.write(file, 0, b"x").unwrap();
            disk.sync_file(file).unwrap();
        });
        assert_eq!(nameless, [None, Some(b"x".to_vec())].into(), "a file's sync does not save its name");
        let whole = outcomes(|disk| {
            let file = disk.create(ROOT, name("a"), false).unwrap().node;
            disk.write(file, 0, b"x").unwrap();
            disk.sync_file(file).unwrap();
            disk.sync_directory(ROOT).unwrap();
            disk.write(file, 0, b"y").unwrap();
        });
        assert_eq!(whole, [Some(b"x".to_vec()), Some(b"y".to_vec())].into());
    }

    #[test]
    fn a_file_that_takes_anothers_place_is_the_old_or_the_new_one() {
        let replaced = outcomes(|disk| {
            for (at, text) in [("a", b"old"), ("b", b"new")] {
                let file = disk.create(ROOT, name(at), false).unwrap().node;
                disk.write(file, 0, text).unwrap();
                disk.sync_file(file).unwrap();
                disk.sync_directory(ROOT).unwrap();
            }
            disk.rename((ROOT, name("b")), (ROOT, name("a"))).unwrap();
        });
        assert_eq!(replaced, [Some(b"old".to_vec()), Some(b"new".to_vec())].into());
    }

    #[test]
    fn names_change_in_order_and_a_full_disk_says_so() {
        let mut disk = Disk::default();
        let folder = disk.create(ROOT, name("folder"), true).unwrap().node;
        let file = disk.create(folder, name("f"), false).unwrap().node;
        assert_eq!(disk.remove(ROOT, name("folder"), true), Err(Errno::ENOTEMPTY));
        disk.faults.capacity = Some(10);
        assert_eq!(disk.write(file, 4, b"1234567"), Err(Errno::ENOSPC));
        disk.write(file, 4, b"123456").unwrap();
        disk.faults.writes_fail = Some(Errno::EROFS);
        assert_eq!(disk.write(file, 0, b"1"), Err(Errno::EROFS));
        disk.faults = Faults::default();
        disk.sync_file(file).unwrap();
        disk.sync_directory(folder).unwrap();
        disk.cut(1);
        disk.power_on();
        let folder = disk.look_up(ROOT, name("folder")).unwrap().node;
        assert_eq!(disk.list(folder).unwrap().len(), 1, "what came before a synced name is there too");
        assert_eq!(disk.read(file, 0, 100).unwrap(), b"\0\0\0\x00123456");
        disk.remove(folder, name("f"), false).unwrap();
        disk.sync_directory(folder).unwrap();
        assert_eq!(disk.used(), 0);
    }
}
