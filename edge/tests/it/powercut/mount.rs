//! Gives the model of a disk to the kernel, through FUSE: real processes then write to it.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
    thread,
    time::{Duration, Instant, SystemTime},
};

use fuser::{
    BackgroundSession, BsdFileFlags, Config, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use nix::errno::Errno;

use super::{Disk, Faults, ROOT, Stat};

/// Names and sizes are asked for each time: a cut changes them.
const TTL: Duration = Duration::ZERO;
const BUSY_MAX: Duration = Duration::from_secs(10);
/// What a disk without a limit says it holds.
const CAPACITY: u64 = 64 << 30;

/// A disk that is mounted in a directory; unmounted when it is dropped, for which nobody may use it any more.
pub struct Mounted {
    disk: Arc<Mutex<Disk>>,
    place: PathBuf,
    session: Option<BackgroundSession>,
}

impl Mounted {
    /// `None`, and a printed line, where this process may not mount.
    pub fn new(place: &Path) -> Option<Self> {
        let mut mounted = Self { disk: Arc::default(), place: place.to_owned(), session: None };
        std::fs::create_dir_all(place).unwrap();
        match mounted.mount() {
            Ok(()) => Some(mounted),
            Err(error) => {
                eprintln!(
                    "skipped: a FUSE file system cannot be mounted here (root and /dev/fuse are needed): {error}"
                );
                None
            }
        }
    }

    fn mount(&mut self) -> std::io::Result<()> {
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("gemba-test".into()), MountOption::NoAtime];
        self.session = Some(fuser::spawn_mount(Adapter { disk: Arc::clone(&self.disk) }, &self.place, &config)?);
        Ok(())
    }

    pub fn disk(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().unwrap()
    }

    pub fn set_faults(&self, faults: Faults) {
        self.disk().faults = faults;
    }

    /// Power comes back: what was left of the disk is mounted anew, with nothing in the kernel's caches.
    pub fn power_on(&mut self) {
        self.unmount().unwrap();
        self.disk().power_on();
        self.mount().unwrap();
    }
}

impl Mounted {
    /// A database's threads may hold its files for a moment after it was closed.
    fn unmount(&mut self) -> nix::Result<()> {
        let begun = Instant::now();
        while let Err(error) = nix::mount::umount(&self.place) {
            if error != Errno::EBUSY || begun.elapsed() > BUSY_MAX {
                return Err(error);
            }
            thread::park_timeout(Duration::from_millis(2));
        }
        if let Some(session) = self.session.take() {
            // It ends because it was unmounted.
            session.join().ok();
        }
        Ok(())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // A daemon that failed may not have ended yet.
        if self.session.is_some() && self.unmount().is_err() {
            nix::mount::umount2(&self.place, nix::mount::MntFlags::MNT_DETACH).ok();
        }
    }
}

struct Adapter {
    disk: Arc<Mutex<Disk>>,
}

impl Adapter {
    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().unwrap()
    }
}

fn code(errno: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(errno as i32)
}

fn attributes(stat: Stat) -> FileAttr {
    let long_ago = SystemTime::UNIX_EPOCH;
    let (kind, perm) = if stat.is_directory { (FileType::Directory, 0o700) } else { (FileType::RegularFile, 0o600) };
    FileAttr {
        ino: INodeNo(stat.node),
        size: stat.size,
        blocks: stat.size.div_ceil(512),
        atime: long_ago,
        mtime: long_ago,
        ctime: long_ago,
        crtime: long_ago,
        kind,
        perm,
        nlink: 1,
        uid: nix::unistd::getuid().as_raw(),
        gid: nix::unistd::getgid().as_raw(),
        rdev: 0,
        blksize: 4_096,
        flags: 0,
    }
}

fn entry(found: Result<Stat, Errno>, reply: ReplyEntry) {
    match found {
        Ok(stat) => reply.entry(&TTL, &attributes(stat), Generation(0)),
        Err(errno) => reply.error(code(errno)),
    }
}

fn empty(done: Result<(), Errno>, reply: ReplyEmpty) {
    match done {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(code(errno)),
    }
}

/// Syncs after as long as the disk takes, during which it goes on with other work.
fn sync(
    disk: &Arc<Mutex<Disk>>,
    reply: ReplyEmpty,
    work: impl FnOnce(&mut Disk) -> Result<(), Errno> + Send + 'static,
) {
    let takes = disk.lock().unwrap().faults.sync_takes;
    if takes.is_zero() {
        return empty(work(&mut disk.lock().unwrap()), reply);
    }
    let disk = Arc::clone(disk);
    thread::spawn(move || {
        #[expect(clippy::disallowed_methods, reason = "a slow disk takes its time")]
        thread::sleep(takes);
        empty(work(&mut disk.lock().unwrap()), reply);
    });
}

impl Filesystem for Adapter {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        entry(self.disk().look_up(parent.0, name), reply);
    }

    fn getattr(&self, _: &Request, node: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.disk().stat(node.0) {
            Ok(stat) => reply.attr(&TTL, &attributes(stat)),
            Err(errno) => reply.error(code(errno)),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        node: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mut disk = self.disk();
        let resized = size.map_or(Ok(()), |size| disk.set_size(node.0, size));
        match resized.and_then(|()| disk.stat(node.0)) {
            Ok(stat) => reply.attr(&TTL, &attributes(stat)),
            Err(errno) => reply.error(code(errno)),
        }
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, _mode: u32, _umask: u32, reply: ReplyEntry) {
        entry(self.disk().create(parent.0, name, true), reply);
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(self.disk().remove(parent.0, name, false), reply);
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(self.disk().remove(parent.0, name, true), reply);
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        if !flags.is_empty() {
            return reply.error(code(Errno::EINVAL));
        }
        empty(self.disk().rename((parent.0, name), (new_parent.0, new_name)), reply);
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let mut disk = self.disk();
        match disk.create(parent.0, name, false).and_then(|stat| disk.opened(stat.node).map(|()| stat)) {
            Ok(stat) => {
                reply.created(&TTL, &attributes(stat), Generation(0), FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
            }
            Err(errno) => reply.error(code(errno)),
        }
    }

    fn open(&self, _: &Request, node: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match self.disk().opened(node.0) {
            // Past the kernel's cache: what this disk has is what is read.
            Ok(()) => reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO),
            Err(errno) => reply.error(code(errno)),
        }
    }

    fn release(
        &self,
        _: &Request,
        node: INodeNo,
        _: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.disk().closed(node.0);
        reply.ok();
    }

    fn read(
        &self,
        _: &Request,
        node: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.disk().read(node.0, offset, size as usize) {
            Ok(data) => reply.data(data),
            Err(errno) => reply.error(code(errno)),
        }
    }

    fn write(
        &self,
        _: &Request,
        node: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.disk().write(node.0, offset, data) {
            Ok(()) => reply.written(data.len() as u32),
            Err(errno) => reply.error(code(errno)),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, node: INodeNo, _: FileHandle, _data_only: bool, reply: ReplyEmpty) {
        sync(&self.disk, reply, move |disk| disk.sync_file(node.0));
    }

    fn fsyncdir(&self, _: &Request, node: INodeNo, _: FileHandle, _data_only: bool, reply: ReplyEmpty) {
        sync(&self.disk, reply, move |disk| disk.sync_directory(node.0));
    }

    fn readdir(&self, _: &Request, node: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        match self.disk().list(node.0) {
            Ok(names) => {
                for (place, (name, stat)) in names.into_iter().enumerate().skip(offset as usize) {
                    if reply.add(INodeNo(stat.node), place as u64 + 1, attributes(stat).kind, name) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(errno) => reply.error(code(errno)),
        }
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let disk = self.disk();
        let capacity = disk.faults.capacity.unwrap_or(CAPACITY);
        let free = capacity.saturating_sub(disk.used()) / 4_096;
        reply.statfs(capacity / 4_096, free, free, 1 << 20, 1 << 20, 4_096, 255, 4_096);
    }
}

#[test]
fn a_process_sees_a_disk_and_the_cut_takes_what_was_not_synced() {
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().join("disk");
    let Some(mut mounted) = Mounted::new(&place) else { return };
    let folder = place.join("folder");
    std::fs::create_dir(&folder).unwrap();
    let data = vec![7_u8; 100_000];
    std::fs::write(folder.join("synced"), &data).unwrap();
    std::fs::File::open(folder.join("synced")).unwrap().sync_all().unwrap();
    for directory in [&folder, &place] {
        std::fs::File::open(directory).unwrap().sync_all().unwrap();
    }
    std::fs::write(folder.join("unsynced"), &data).unwrap();
    assert_eq!(std::fs::read(folder.join("unsynced")).unwrap(), data);
    assert_eq!(mounted.disk().stat(ROOT).unwrap().node, ROOT);
    mounted.disk().cut(3);
    assert!(std::fs::read(folder.join("synced")).is_err(), "the power is off");
    mounted.power_on();
    assert_eq!(std::fs::read(folder.join("synced")).unwrap(), data);
    if let Ok(left) = std::fs::read(folder.join("unsynced")) {
        assert_ne!(left, data, "this seed leaves some of it at most");
    }
}
