//! Appends, damage, full disks and deletions of generations.

use std::fs::OpenOptions;

use tempfile::TempDir;

use super::*;

fn small() -> GenerationSettings {
    GenerationSettings { generation_bytes: 1 << 20, cache_bytes: 1 << 20 }
}

fn rows(range: std::ops::Range<u64>) -> Vec<(Vec<u8>, Vec<u8>)> {
    range.map(|n| ([b"r", &n.to_be_bytes()[..]].concat(), vec![n as u8; 10 + n as usize * 37 % 9_000])).collect()
}

fn all(store: &mut Generations, ordinal: u64) -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
    let mut found = Vec::new();
    store
        .scan(ordinal, b"r", |key, value| {
            found.push((
                key.to_vec(),
                match value {
                    Found::Intact(value) => Some(value),
                    Found::Damaged => None,
                },
            ));
            ControlFlow::Continue(())
        })
        .unwrap();
    found
}

fn intact(rows: Vec<(Vec<u8>, Vec<u8>)>) -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
    rows.into_iter().map(|(key, value)| (key, Some(value))).collect()
}

/// What a kill leaves: the files as they are, while the process that wrote them has not closed anything.
fn copy(from: &Path) -> TempDir {
    let to = TempDir::new().unwrap();
    copy_into(from, to.path());
    to
}

fn copy_into(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_into(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn roll(store: &mut Generations, rows: &[(Vec<u8>, Vec<u8>)], tail: &[u8]) -> u64 {
    let fill =
        |_: &mut Generations, filler: &mut Filler<'_>| rows.iter().try_for_each(|(key, value)| filler.put(key, value));
    store.roll::<StoreError>(tail, fill).unwrap()
}

fn begun(dir: &Path) -> Generations {
    let (mut store, damage) = Generations::open(dir, small()).unwrap();
    assert!(damage.is_none() && store.newest().is_none());
    assert!(matches!(store.append(&[], &[], b""), Err(StoreError::NoGeneration)));
    roll(&mut store, &[], b"0");
    store
}

#[test]
fn what_was_appended_is_there_after_a_kill_and_nothing_else() {
    let dir = TempDir::new().unwrap();
    let mut store = begun(dir.path());
    for n in 0..20 {
        store.append(&rows(n * 10..n * 10 + 10), &[], &n.to_be_bytes()).unwrap();
        let killed = copy(dir.path());
        let (mut again, damage) = Generations::open(killed.path(), small()).unwrap();
        assert!(damage.is_none());
        assert_eq!(again.newest().unwrap().1, n.to_be_bytes());
        assert_eq!(all(&mut again, 1), intact(rows(0..n * 10 + 10)));
    }
}

#[test]
fn a_shorter_value_replaces_a_longer_one() {
    let dir = TempDir::new().unwrap();
    let mut store = begun(dir.path());
    store.append(&[(b"r".to_vec(), vec![1; 60_000])], &[], b"1").unwrap();
    store.append(&[(b"r".to_vec(), vec![2; 5_000])], &[], b"2").unwrap();
    assert_eq!(all(&mut store, 1), [(b"r".to_vec(), Some(vec![2; 5_000]))]);
    let too_large = store.append(&[(b"r".to_vec(), vec![0; VALUE_BYTES_MAX + 1])], &[], b"3");
    assert!(matches!(too_large, Err(StoreError::TooLarge(_))));
}

#[test]
fn closed_generations_are_read_and_deleted() {
    let dir = TempDir::new().unwrap();
    let mut store = begun(dir.path());
    for n in 0..3 {
        store.append(&rows(n * 10..n * 10 + 10), &[], b"a").unwrap();
        assert_eq!(roll(&mut store, &rows(1_000..1_001), b"b"), n + 2);
    }
    let (mut store, damage) = {
        drop(store);
        Generations::open(dir.path(), small()).unwrap()
    };
    assert!(damage.is_none());
    assert_eq!(store.closed().keys().copied().collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(store.closed()[&1].tail.as_deref(), Some(&b"a"[..]));
    assert_eq!(all(&mut store, 3), intact([rows(20..30), rows(1_000..1_001)].concat()));
    store.delete(3);
    assert_eq!(all(&mut store, 1), intact(rows(0..10)));
    assert!(!dir.path().join(format!("{:020}", 3)).exists());
}

#[test]
fn a_second_process_is_refused() {
    let dir = TempDir::new().unwrap();
    let _store = begun(dir.path());
    let refused = Generations::open(dir.path(), small()).unwrap_err();
    assert!(matches!(refused, StoreError::Locked { .. }));
    assert!(refused.to_string().contains(&std::process::id().to_string()), "{refused}");
}

#[test]
fn a_generation_that_was_never_finished_is_removed() {
    let dir = TempDir::new().unwrap();
    let mut store = begun(dir.path());
    store.append(&rows(0..3), &[], b"a").unwrap();
    drop(store);
    drop(Database::open_in_place(&dir.path().join(format!("{:020}", 2)), 1 << 20).unwrap());
    let (mut store, damage) = Generations::open(dir.path(), small()).unwrap();
    assert!(damage.is_none());
    assert_eq!(store.newest().unwrap().0, 1);
    store.append(&rows(3..5), &[], b"b").unwrap();
    assert_eq!(all(&mut store, 1), intact(rows(0..5)));
    assert_eq!(roll(&mut store, &[], b"c"), 3);
}

#[test]
fn damage_to_the_newest_generation_is_seen() {
    let dir = TempDir::new().unwrap();
    let mut store = begun(dir.path());
    for n in 0..200 {
        store.append(&rows(n..n + 1), &[], &n.to_be_bytes()).unwrap();
    }
    let appended = store.newest.as_ref().unwrap().appends;
    drop(store);
    let database = dir.path().join(format!("{:020}/db", 1));
    let length = fs::metadata(&database).unwrap().len();
    let mut seen = 0;
    for cut in (0..16).map(|n| length * n / 16) {
        let damaged = copy(dir.path());
        let path = damaged.path().join(format!("{:020}/db", 1));
        OpenOptions::new().write(true).open(&path).unwrap().set_len(cut).unwrap();
        let (mut store, damage) = Generations::open(damaged.path(), small()).unwrap();
        if damage.is_none() {
            // What was cut off held nothing.
            assert_eq!(store.newest.as_ref().unwrap().appends, appended, "cut to {cut} of {length}");
            assert_eq!(all(&mut store, 1), intact(rows(0..200)));
        } else {
            seen += 1;
        }
        if store.newest().is_none() {
            roll(&mut store, &rows(0..1), b"new");
        }
        store.append(&rows(5..6), &[], b"goes on").unwrap();
    }
    assert!(seen >= 8, "{seen}");
}

/// A file system of its own that can be full; `None` where it may not be mounted.
pub(crate) struct SmallDisk(pub(crate) TempDir);

impl SmallDisk {
    pub(crate) fn mount(size: &str) -> Option<Self> {
        let dir = TempDir::new().unwrap();
        let mount = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(dir.path())
            .stderr(std::process::Stdio::null())
            .status();
        mount.is_ok_and(|status| status.success()).then_some(Self(dir))
    }
}

impl SmallDisk {
    /// Makes it full; gives the file that takes the room.
    pub(crate) fn fill(&self) -> PathBuf {
        let path = self.0.path().join("ballast");
        let mut file = File::create(&path).unwrap();
        let block = vec![0; 64 * 1_024];
        while io::Write::write_all(&mut file, &block).is_ok() {}
        while io::Write::write_all(&mut file, &[0; 512]).is_ok() {}
        path
    }

    pub(crate) fn make_read_only(&self, read_only: bool) {
        let option = if read_only { "remount,ro" } else { "remount,rw" };
        let done = std::process::Command::new("mount").args(["-o", option]).arg(self.0.path()).status();
        assert!(done.is_ok_and(|status| status.success()));
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = std::process::Command::new("umount").arg("-l").arg(self.0.path()).status();
        assert!(unmounted.is_ok_and(|status| status.success()));
    }
}

#[test]
fn a_full_disk_refuses_and_goes_on_when_there_is_room() {
    let Some(disk) = SmallDisk::mount("8m") else {
        println!("skipped: no file system may be mounted here");
        return;
    };
    let ballast = disk.0.path().join("ballast");
    fs::write(&ballast, vec![0; 3 << 20]).unwrap();
    let dir = disk.0.path().join("store");
    let mut store = begun(&dir);
    let mut stored = 0;
    let full = loop {
        match store.append(&rows(stored..stored + 20), &[], b"") {
            Ok(()) => stored += 20,
            Err(error) => break error,
        }
    };
    assert!(matches!(full, StoreError::DiskFull(_)), "{full}");
    assert!(stored > 100 && store.append(&rows(stored..stored + 20), &[], b"").is_err());
    fs::remove_file(&ballast).unwrap();
    store.append(&rows(stored..stored + 20), &[], b"again").unwrap();
    assert_eq!(all(&mut store, 1), intact(rows(0..stored + 20)));
    drop(store);
    let (mut store, damage) = Generations::open(&dir, small()).unwrap();
    assert!(damage.is_none());
    assert_eq!(all(&mut store, 1), intact(rows(0..stored + 20)));
}
