//! Damage of every kind to every file of an outbox: it opens by itself, gives no wrong and no double record, and tells each that
//! is missing; what was not damaged is there.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    thread,
};

use gemba_shared::{
    message::{Epoch, Lane},
    telemetry::Record,
};
use tempfile::TempDir;

use super::{
    super::{
        Outbox, Write,
        tests::{catalog, copy, in_memory, read_all, record, settings, write},
    },
    *,
};

const SUMMARIES: u64 = 1_800;
const EVENTS: u64 = 36;

#[derive(Debug, Clone, Copy)]
enum Kind {
    Flip,
    Zero,
    Truncate,
    Delete,
}

/// An outbox of a few generations, and where each number lies.
struct Plant {
    dir: TempDir,
    epoch: Epoch,
    spans: Vec<(u64, [std::ops::Range<u64>; 2])>,
}

/// What lies at a number of the summaries: a catalog at 1.
fn summary(number: u64) -> Record {
    if number == 1 { catalog(1) } else { record(number) }
}

fn plant() -> Plant {
    let dir = in_memory();
    let (mut outbox, _) = Outbox::open(dir.path(), settings()).unwrap();
    outbox.append(&Write { records: vec![(Lane::Summaries, catalog(1))], states: vec![] }).unwrap();
    for n in 0..EVENTS {
        outbox.append(&write(Lane::Events, n + 1..n + 2)).unwrap();
        outbox.append(&write(Lane::Summaries, n * 50 + 2..n * 50 + 52)).unwrap();
    }
    let spans = outbox.contents.iter().map(|(ordinal, contents)| {
        let numbers = |lane: usize| contents.spans[lane].first - FIRST + 1..contents.spans[lane].next - FIRST + 1;
        (*ordinal, [numbers(0), numbers(1)])
    });
    let (spans, epoch) = (spans.collect::<Vec<_>>(), outbox.epoch());
    assert!(spans.len() >= 3, "{spans:?}");
    Plant { dir, epoch, spans }
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.file_name().unwrap() != "lock" {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn damage(path: &Path, kind: Kind, tenth: u64) {
    let length = fs::metadata(path).unwrap().len();
    let at = length * tenth / 10;
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    match kind {
        Kind::Flip => {
            let mut bytes = [0; 16];
            let read = file.read_at(&mut bytes, at).unwrap();
            bytes = bytes.map(|byte| byte ^ 0xff);
            file.write_all_at(&bytes[..read], at).unwrap();
        }
        Kind::Zero => file.write_all_at(&vec![0; 4_096.min((length - at) as usize)], at).unwrap(),
        Kind::Truncate => file.set_len(at).unwrap(),
        Kind::Delete => fs::remove_file(path).unwrap(),
    }
}

/// Opens it and looks at everything; `damaged`: the generation whose records may be gone.
fn check(plant: &Plant, dir: &Path, damaged: &[u64], what: &str) {
    let (mut outbox, opened) = Outbox::open(dir, settings()).unwrap_or_else(|error| panic!("{what}: {error}"));
    let latest = write(Lane::Summaries, 0..EVENTS * 50 + 2).states;
    if opened.states_lost {
        assert!(opened.states.len() <= 1, "{what}");
    } else {
        assert_eq!(opened.states, latest, "{what}");
    }
    assert_eq!(outbox.epoch(), plant.epoch, "{what}: what is old keeps its epoch");
    let mut again = Vec::new();
    for lane in Lane::ALL {
        let (count, expected): (u64, fn(u64) -> Record) = match lane {
            Lane::Events => (EVENTS, record),
            Lane::Summaries => (SUMMARIES + 1, summary),
        };
        let all = read_all(&mut outbox, lane);
        let oldest = outbox.oldest(lane);
        assert!(oldest == 1 && outbox.next(lane) > count, "{what}: {lane:?} {oldest}..{}", outbox.next(lane));
        let mut gone = Vec::new();
        let mut counted = 0;
        for (found, number) in all.iter().zip(oldest..) {
            match found {
                Record::Gap(gap) => {
                    gone.push(number);
                    counted += gap.count;
                    assert!(gap.first == number && gap.last < outbox.next(lane), "{what}: {gap:?} at {number}");
                }
                found => assert!(number <= count && *found == expected(number), "{what}: {lane:?} {number}"),
            }
        }
        assert_eq!(counted, gone.len() as u64, "{what}: {lane:?} each missing number is counted once");
        for number in gone.iter().filter(|number| **number <= count) {
            let (holder, _) = plant.spans.iter().find(|(_, spans)| spans[index(lane)].contains(number)).unwrap();
            assert!(damaged.contains(holder), "{what}: {lane:?} {number} is gone from generation {holder}");
        }
        again.push(all);
    }
    assert!(opened.states_lost || matches!(again[1][0], Record::Catalog(_)), "{what}: the catalog is kept twice");
    // What comes now has a number or an epoch of its own.
    outbox.append(&write(Lane::Summaries, 5_000..5_010)).unwrap_or_else(|error| panic!("{what}: {error}"));
    drop(outbox);
    let (mut outbox, opened) = Outbox::open(dir, settings()).unwrap();
    assert!(!opened.states_lost && opened.quarantined.is_empty(), "{what}");
    let all = Lane::ALL.map(|lane| read_all(&mut outbox, lane));
    assert_eq!(all[0], again[0], "{what}");
    assert_eq!(all[1][..again[1].len()], again[1], "{what}");
    let epoch = outbox.epoch();
    for lane in Lane::ALL {
        outbox.release(epoch, lane, u64::MAX).unwrap();
    }
    let new = [all[1][again[1].len()..].to_vec(), read_all(&mut outbox, Lane::Summaries)].concat();
    assert_eq!(new, (5_000..5_010).map(record).collect::<Vec<_>>(), "{what}");
}

/// The generation of records that a file belongs to, if it does.
fn generation_of(file: &Path) -> Vec<u64> {
    let mut parents = file.components().rev().filter_map(|part| part.as_os_str().to_str()).skip(1);
    let (ordinal, store) = (parents.next(), parents.next());
    ordinal.filter(|_| store == Some("generations")).and_then(|ordinal| ordinal.parse().ok()).into_iter().collect()
}

fn in_parallel<T: Sync>(cases: &[T], each: impl Fn(&T) + Sync) {
    thread::scope(|scope| {
        for half in 0..4 {
            let each = &each;
            scope.spawn(move || cases.iter().skip(half).step_by(4).for_each(each));
        }
    });
}

#[test]
fn damage_of_every_kind_to_every_file() {
    let plant = plant();
    let mut cases = Vec::new();
    for file in files(plant.dir.path()) {
        for kind in [Kind::Flip, Kind::Zero, Kind::Truncate, Kind::Delete] {
            let positions = if matches!(kind, Kind::Delete) { 1 } else { 10 };
            cases.extend((0..positions).map(|tenth| (file.clone(), kind, tenth)));
        }
    }
    in_parallel(&cases, |(file, kind, tenth)| {
        let damaged = copy(plant.dir.path());
        let relative = file.strip_prefix(plant.dir.path()).unwrap();
        damage(&damaged.path().join(relative), *kind, *tenth);
        check(&plant, damaged.path(), &generation_of(file), &format!("{kind:?} {tenth}/10 of {}", relative.display()));
    });
}

#[test]
fn files_that_are_swapped_or_put_back() {
    let plant = plant();
    let files = files(plant.dir.path());
    let mut cases = Vec::new();
    for (at, one) in files.iter().enumerate() {
        cases.extend(
            files[at + 1..].iter().filter(|other| other.file_name() == one.file_name()).map(|other| (one, other)),
        );
    }
    assert!(cases.len() >= 9, "{cases:?}");
    in_parallel(&cases, |(one, other)| {
        let damaged = copy(plant.dir.path());
        let [one_at, other_at] =
            [one, other].map(|file| damaged.path().join(file.strip_prefix(plant.dir.path()).unwrap()));
        fs::rename(&one_at, damaged.path().join("aside")).unwrap();
        fs::rename(&other_at, &one_at).unwrap();
        fs::rename(damaged.path().join("aside"), &other_at).unwrap();
        let lost = [generation_of(one), generation_of(other)].concat();
        check(&plant, damaged.path(), &lost, &format!("{} and {} swapped", one.display(), other.display()));
    });
}

#[test]
fn directories_that_are_gone() {
    let plant = plant();
    for (ordinal, _) in &plant.spans {
        let damaged = copy(plant.dir.path());
        fs::remove_dir_all(damaged.path().join(format!("generations/{ordinal:020}"))).unwrap();
        check(&plant, damaged.path(), &[*ordinal], &format!("generation {ordinal} is gone"));
    }
    for gone in ["generations", "standing"] {
        let damaged = copy(plant.dir.path());
        fs::remove_dir_all(damaged.path().join(gone)).unwrap();
        let all: Vec<u64> = plant.spans.iter().map(|(ordinal, _)| *ordinal).collect();
        let (mut outbox, opened) = Outbox::open(damaged.path(), settings()).unwrap();
        if gone == "generations" {
            assert_eq!(opened.lost_records, EVENTS + SUMMARIES + 1);
            let lost = read_all(&mut outbox, Lane::Summaries);
            assert_eq!(lost.len() as u64, SUMMARIES + 1);
        } else {
            assert!(opened.states_lost && opened.lost_records == 0 && !all.is_empty());
        }
    }
}
