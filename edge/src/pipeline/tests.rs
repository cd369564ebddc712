//! Kills at any point, compared with a run that was not killed.

use std::{collections::HashSet, fs, path::PathBuf};

use gemba_shared::{
    ids::SensorId,
    message::Lane,
    telemetry::{Clock, DetectorState, Event, Summary, Timestamp},
};
use tempfile::TempDir;

use super::*;
use crate::{
    generations::GenerationSettings,
    outbox::OutboxSettings,
    reading::{MachineIx, SensorIx},
};

const MACHINES: u64 = 3;
const SENSORS: u64 = 3;

/// One life of a gateway's core, on directories of its own.
struct Life {
    dir: TempDir,
    pipeline: Pipeline,
}

fn now(tenths: i64) -> Now {
    Now {
        wall: Timestamp::from_millis(1_800_000_000_000 + tenths * 100),
        mono_us: tenths * 100_000,
        clock: Clock::Trusted,
    }
}

fn settings() -> PipelineSettings {
    let generations = GenerationSettings { generation_bytes: 1 << 20, cache_bytes: 1 << 20 };
    let machine = MachineSettings {
        calibration_steps: Some(60),
        power: Some(SensorId::new("s1").unwrap()),
        ..MachineSettings::default()
    };
    PipelineSettings {
        journal: JournalSettings { generations, budget_bytes: 64 << 20, ..JournalSettings::default() },
        defaults: Arc::new(machine),
        ..PipelineSettings::default()
    }
}

fn open(dir: TempDir, now: Now) -> Life {
    open_with(settings(), dir, now)
}

fn open_with(settings: PipelineSettings, dir: TempDir, now: Now) -> Life {
    let generations = GenerationSettings { generation_bytes: 1 << 20, cache_bytes: 1 << 20 };
    let outbox = OutboxSettings { generations, ..OutboxSettings::default() };
    let (outbox, opened) = Outbox::open(&dir.path().join("outbox"), outbox).unwrap();
    assert_eq!(opened.quarantined, Vec::<PathBuf>::new());
    let outbox = Arc::new(Mutex::new(outbox));
    let registry = Registry::new(100, 256);
    let journal = dir.path().join("journal");
    let pipeline = Pipeline::open(settings, &journal, outbox, opened.states, registry, now).unwrap();
    Life { dir, pipeline }
}

fn copy_into(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (from, to) = entry.map(|entry| (entry.path(), to.join(entry.file_name()))).unwrap();
        if from.is_dir() {
            copy_into(&from, &to);
        } else {
            fs::copy(from, to).unwrap();
        }
    }
}

impl Life {
    fn ingest(&mut self, readings: &[(u64, u64, i64, f64)], at: i64) {
        let registry = self.pipeline.registry();
        let reading = |(machine, sensor, tenths, value): &(u64, u64, i64, f64)| {
            let machine = registry.machine(&MachineId::new(&format!("m{machine}")).unwrap()).unwrap();
            let sensor = registry.sensor(machine, &SensorId::new(&format!("s{sensor}")).unwrap()).unwrap();
            // Off the moment of arrival: the time is the source's.
            Reading { machine, sensor, at: now(*tenths).wall.plus_us(-1), value: *value }
        };
        let readings: Vec<Reading> = readings.iter().map(reading).collect();
        self.pipeline.ingest(&readings, &mut Vec::new(), now(at), now(at)).unwrap();
    }

    fn command(&mut self, command: &CommandKind, at: i64) -> Result<Outcome, PipelineError> {
        self.pipeline.command(command, now(at), |_, time| time)
    }

    /// A kill: the files as they are now, taken up by a new process. `journal`: as it was at an earlier moment.
    fn kill(self, at: i64, journal: Option<&Path>) -> Self {
        let dir = TempDir::new().unwrap();
        copy_into(&self.dir.path().join("outbox"), &dir.path().join("outbox"));
        let earlier = self.dir.path().join("journal");
        copy_into(journal.unwrap_or(&earlier), &dir.path().join("journal"));
        open(dir, now(at))
    }

    /// All records so far, without the raw windows of events: a restart shortens them, and says so.
    fn records(&self) -> Vec<Record> {
        let mut outbox = self.pipeline.outbox.lock().unwrap();
        let mut all = Vec::new();
        for lane in Lane::ALL {
            let mut from = 1;
            loop {
                let records = outbox.read(lane, from, 1_000, usize::MAX).unwrap();
                if records.is_empty() {
                    break;
                }
                from += records.len() as u64;
                all.extend(records);
            }
        }
        for record in &mut all {
            if let Record::Event(Event {
                kind: EventKind::AnomalyOpened(a) | EventKind::AnomalyUpdated(a) | EventKind::AnomalyClosed(a),
                ..
            }) = record
            {
                a.window = None;
            }
        }
        all
    }
}

fn summaries(records: &[Record]) -> Vec<&Summary> {
    let mut summaries = Vec::new();
    for record in records {
        if let Record::Summary(summary) = record {
            summaries.push(summary);
        }
    }
    summaries
}

/// Machines are told of in any order; each by itself in its own.
fn by_machine(mut records: Vec<Record>) -> Vec<Record> {
    records.sort_by_key(|record| match record {
        Record::Catalog(catalog) => catalog.machine.clone(),
        Record::Summary(summary) => summary.machine.clone(),
        Record::Event(event) => event.machine.clone(),
        Record::Gap(gap) => panic!("{gap:?}"),
    });
    records
}

fn readings_counted(records: &[Record]) -> u64 {
    let sensors = summaries(records).into_iter().flat_map(|summary| summary.sensors.iter().flatten());
    sensors.map(|sensor| u64::from(sensor.count)).sum()
}

/// A small generator, so that a failure is found again by its seed.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % n
    }
}

/// Half a second of readings that arrive together at `at`. The last of each machine is of now, so that its time does not depend on
/// when it was restarted; some are out of order, some are late.
fn batch(random: &mut Random, at: i64) -> Vec<(u64, u64, i64, f64)> {
    let mut readings = Vec::new();
    for machine in 0..MACHINES {
        for sensor in 0..SENSORS {
            for tenth in at - 4..=at {
                let delay = match random.below(40) {
                    0 => random.below(300) as i64,
                    1..=5 => random.below(20) as i64,
                    _ => 0,
                };
                let fault = if machine == 1 && (900..1_300).contains(&at) { 30.0 } else { 0.0 };
                let value = 10.0 * (sensor + 1) as f64 + random.below(1_000) as f64 / 500.0 + fault;
                readings.push((machine, sensor, tenth - delay, value));
            }
            readings.push((machine, sensor, at, random.below(100) as f64 / 50.0 + 10.0 * (sensor + 1) as f64));
        }
    }
    readings
}

fn check_crashes(seed: u64) {
    println!("seed {seed}");
    let mut random = Random(seed);
    let mut steady = open(TempDir::new().unwrap(), now(0));
    let mut crashing = open(TempDir::new().unwrap(), now(0));
    let (mut sent, mut kills) = (0, 0);
    for at in (5..1_800).step_by(5) {
        let readings = batch(&mut random, at);
        sent += readings.len() as u64;
        steady.ingest(&readings, at);
        steady.pipeline.tick(now(at)).unwrap();

        crashing.ingest(&readings, at);
        match random.below(25) {
            // Between the journal's sync and the acknowledgement: the devices send again what was not acknowledged.
            0 => {
                crashing = crashing.kill(at, None);
                let again: Vec<_> = readings[readings.len() / 2..].to_vec();
                crashing.ingest(&again, at);
                kills += 1;
            }
            // Between the outbox's sync and the trimming of the journal.
            1 => {
                let journal = TempDir::new().unwrap();
                copy_into(&crashing.dir.path().join("journal"), journal.path());
                crashing.pipeline.tick(now(at)).unwrap();
                crashing = crashing.kill(at, Some(journal.path()));
                kills += 1;
            }
            2 => {
                crashing.pipeline.tick(now(at)).unwrap();
                crashing = crashing.kill(at, None);
                kills += 1;
            }
            _ => {}
        }
        crashing.pipeline.tick(now(at)).unwrap();
    }
    for life in [&mut steady, &mut crashing] {
        life.pipeline.tick(now(5_000)).unwrap();
    }
    let (expected, found) = (by_machine(steady.records()), by_machine(crashing.records()));
    let late = steady.pipeline.counters().late + steady.pipeline.counters().duplicates;
    assert_eq!(readings_counted(&expected) + late, sent);
    assert!(kills > 5 && late > 0);
    for (number, (found, expected)) in found.iter().zip(&expected).enumerate() {
        assert_eq!(found, expected, "record {number} after {kills} kills");
    }
    assert_eq!(found.len(), expected.len());
    let unique: HashSet<_> =
        summaries(&found).into_iter().map(|summary| (summary.machine.clone(), summary.start)).collect();
    assert_eq!(unique.len(), summaries(&found).len());
    let events = expected.iter().filter(|record| matches!(record, Record::Event(_))).count();
    assert!(events >= 2, "there should be an anomaly to be reopened");
}

#[test]
fn kills_change_no_record() {
    check_crashes(1);
}

#[test]
fn kills_change_no_record_of_another_run() {
    check_crashes(0x5eed);
}

#[test]
fn a_machine_is_told_with_its_catalog_and_seen_live() {
    let mut life = open(TempDir::new().unwrap(), now(0));
    for at in (5..300).step_by(5) {
        life.ingest(&[(1, 0, at, 1.0), (1, 1, at, 3_600.0)], at);
        life.pipeline.tick(now(at)).unwrap();
    }
    let records = life.records();
    assert!(matches!(&records[0], Record::Catalog(catalog) if catalog.revision == 1 && catalog.sensors.len() == 2));
    let summaries = summaries(&records);
    assert_eq!(summaries[0].interval_ms, 10_000);
    assert_eq!(summaries[1].energy_wh.map(f64::round), Some(10.0));
    let live = life.pipeline.live(now(0));
    assert_eq!((live[0].values.len(), live[0].catalog_revision, live[0].at), (2, 1, now(295).wall.plus_us(-1)));
    assert!(matches!(live[0].verdict.detector, DetectorState::Calibrating { percent: 30..60 }));

    // A sensor that appears makes a new revision; a restart does not.
    life.ingest(&[(1, 2, 300, 1.0)], 300);
    life.pipeline.tick(now(430)).unwrap();
    let mut life = life.kill(430, None);
    life.ingest(&[(1, 2, 430, 1.0)], 430);
    life.pipeline.tick(now(600)).unwrap();
    let revisions: Vec<_> = life
        .records()
        .iter()
        .filter_map(|record| match record {
            Record::Catalog(catalog) => Some((catalog.revision, catalog.sensors.len())),
            _ => None,
        })
        .collect();
    assert_eq!(revisions, [(1, 2), (2, 3), (1, 2), (2, 3)], "once in each lane");
}

#[test]
fn commands_are_carried_out_and_outlive_a_kill() {
    let mut life = open(TempDir::new().unwrap(), now(0));
    let machine = MachineId::new("m1").unwrap();
    let recalibrate = CommandKind::Recalibrate { machine: machine.clone() };
    assert!(matches!(life.command(&recalibrate, 0), Ok(Outcome::Failed(_))));
    for at in (5..1_000).step_by(5) {
        life.ingest(&[(1, 0, at, (at % 35) as f64)], at);
        life.pipeline.tick(now(at)).unwrap();
    }
    assert_eq!(life.pipeline.live(now(0))[0].verdict.detector, DetectorState::Watching);
    assert_eq!(life.command(&CommandKind::Reload, 1_000).unwrap(), Outcome::Unknown);
    // A sensor that nobody was told of when the state was written is told of after the kill.
    life.ingest(&[(1, 1, 1_000, 1.0)], 1_000);
    assert_eq!(life.command(&recalibrate, 1_000).unwrap(), Outcome::Done);
    let mut life = life.kill(1_000, None);
    assert_eq!(life.pipeline.live(now(0))[0].verdict.detector, DetectorState::Calibrating { percent: 0 });
    life.pipeline.tick(now(1_400)).unwrap();
    let told =
        life.records().iter().any(|record| matches!(record, Record::Catalog(catalog) if catalog.sensors.len() == 2));
    assert!(told);
}

#[test]
fn a_label_is_kept_and_answered_with_what_it_did() {
    let mut life = open(TempDir::new().unwrap(), now(0));
    let mut random = Random(3);
    for at in (5..1_400).step_by(5) {
        life.ingest(&batch(&mut random, at), at);
        life.pipeline.tick(now(at)).unwrap();
    }
    let opened = life.records().iter().find_map(|record| match record {
        Record::Event(Event { kind: EventKind::AnomalyOpened(anomaly), machine, .. }) if machine.as_str() == "m1" => {
            Some(anomaly.opened)
        }
        _ => None,
    });
    let opened = opened.expect("the fault was raised");
    let label = |machine: &str, opened, real| CommandKind::LabelAnomaly {
        machine: MachineId::new(machine).unwrap(),
        opened,
        real,
    };
    assert_eq!(life.pipeline.told(), []);
    let unknown = life.command(&label("m1", opened.plus_us(1), true), 1_400).unwrap();
    assert!(matches!(unknown, Outcome::Failed(why) if why.contains("no anomaly of m1")));
    assert!(matches!(life.command(&label("m2", opened, true), 1_400), Ok(Outcome::Failed(_))));
    assert!(matches!(life.command(&label("m9", opened, true), 1_400), Ok(Outcome::Failed(_))));
    let said = life.command(&label("m1", opened, false), 1_400).unwrap();
    assert!(matches!(&said, Outcome::Told(text) if text.contains("0 of 1 labelled")), "{said:?}");
    let told = life.pipeline.told();
    let mut life = life.kill(1_400, None);
    assert_eq!((life.pipeline.told(), told.len()), (told, 1));
    let said = life.command(&label("m1", opened, true), 1_400).unwrap();
    assert!(matches!(&said, Outcome::Told(text) if text.contains("1 of 1 labelled")), "{said:?}");
    let machine = MachineId::new("m1").unwrap();
    assert_eq!(life.command(&CommandKind::OutOfService { machine, out: true }, 1_400).unwrap(), Outcome::Done);
    let life = life.kill(1_400, None);
    let told = life.pipeline.told();
    assert_eq!((told[0].standing.labelled, told[0].standing.real, told[0].out_of_service), (1, 1, true));
}

#[test]
fn the_journal_goes_as_the_outbox_takes_over() {
    let mut life = open(TempDir::new().unwrap(), now(0));
    let many: Vec<Reading> = (0..4_000)
        .map(|n| Reading { machine: MachineIx(0), sensor: SensorIx(0), at: Timestamp(0), value: f64::from(n) })
        .collect();
    life.ingest(&[(0, 0, 0, 1.0)], 0);
    for at in (5..2_000).step_by(5) {
        let readings: Vec<_> = many.iter().map(|reading| Reading { at: now(at).wall, ..*reading }).collect();
        life.pipeline.ingest(&readings, &mut Vec::new(), now(at), now(at)).unwrap();
        life.pipeline.tick(now(at)).unwrap();
    }
    let counters = life.pipeline.counters();
    assert_eq!((counters.late, counters.duplicates, counters.readings), (0, 0, 399 * 4_000 + 1));
    assert!(counters.journal_bytes < 8 << 20, "{}", counters.journal_bytes);
}

#[test]
fn a_broker_that_goes_back_in_time_repeats_nothing() {
    let mut life = open(TempDir::new().unwrap(), now(0));
    let mut sent = Vec::new();
    for at in 1..100 {
        let readings: Vec<_> = (0..4).map(|n| (n % 2, n / 2, at, at as f64)).collect();
        life.ingest(&readings, at);
        life.pipeline.tick(now(at)).unwrap();
        sent.extend(readings);
    }
    // The state of one machine is written with its interval half full, and has most of what was sent; the rest is in the journal.
    let m1 = MachineId::new("m1").unwrap();
    life.command(&CommandKind::Recalibrate { machine: m1 }, 99).unwrap();
    let mut life = life.kill(100, None);
    life.ingest(&sent, 100);
    assert_eq!(life.pipeline.counters().duplicates, sent.len() as u64);
    life.ingest(&[(0, 0, 230, 1.0), (1, 0, 230, 1.0)], 230);
    life.pipeline.tick(now(230)).unwrap();
    // Its interval is over, and it comes once more.
    life.ingest(&sent, 230);
    assert_eq!(life.pipeline.counters().late, sent.len() as u64);
    life.pipeline.tick(now(900)).unwrap();
    assert_eq!(readings_counted(&life.records()), sent.len() as u64 + 2);
}

#[test]
fn a_state_of_any_size_is_kept() {
    // Many sensors, and steps that wait long for readings that are on their way.
    let mut settings = settings();
    let periods = crate::window::Periods { lateness_us: 15_000_000, ..crate::window::Periods::default() };
    settings.defaults = Arc::new(MachineSettings { periods, ..MachineSettings::clone(&settings.defaults) });
    let run = |kill_at: Option<i64>| {
        let mut life = open_with(settings.clone(), TempDir::new().unwrap(), now(0));
        for at in (5..600).step_by(5) {
            let readings: Vec<_> =
                (0..256).map(|sensor| (1, sensor, at, (at % 7) as f64 + sensor as f64 / 3.0)).collect();
            life.ingest(&readings, at);
            life.pipeline.tick(now(at)).unwrap();
            if kill_at == Some(at) {
                let dir = TempDir::new().unwrap();
                copy_into(life.dir.path(), dir.path());
                life = open_with(settings.clone(), dir, now(at));
            }
        }
        let records = life.records();
        summaries(&records).into_iter().cloned().collect::<Vec<_>>()
    };
    let whole = run(None);
    assert_eq!((whole.len(), whole[1].sensors.len()), (4, 256));
    assert_eq!(run(Some(450)), whole);
}

#[test]
fn a_journal_that_is_full_before_an_interval_closes_is_taken_up_in_the_states() {
    let mut settings = settings();
    let periods = crate::window::Periods { interval_us: 3_600_000_000, ..crate::window::Periods::default() };
    settings.defaults = Arc::new(MachineSettings { periods, ..MachineSettings::clone(&settings.defaults) });
    settings.journal.budget_bytes = 2 << 20;
    let mut life = open_with(settings.clone(), TempDir::new().unwrap(), now(0));
    let mut count = 0;
    for at in 5..400 {
        let readings: Vec<_> = (0..1_000).map(|n| (n % 3, n % 7, at, n as f64)).collect();
        life.ingest(&readings, at);
        life.pipeline.tick(now(at)).unwrap();
        count += readings.len();
    }
    assert_eq!(life.records().len(), 0, "no interval is over");
    assert!(life.pipeline.counters().journal_bytes < 4 << 20);
    // Nothing of it is lost or counted twice, though most of the journal is gone.
    let dir = TempDir::new().unwrap();
    copy_into(life.dir.path(), dir.path());
    let mut life = open_with(settings, dir, now(400));
    life.pipeline.tick(now(80_000)).unwrap();
    let records = life.records();
    let counted = summaries(&records).into_iter().flat_map(|summary| summary.sensors.iter().flatten()).map(|s| s.count);
    assert_eq!(counted.sum::<u32>() as usize, count - life.pipeline.counters().duplicates as usize);
}

#[test]
fn a_clock_that_was_ahead_makes_nobody_deaf() {
    const DAY: i64 = 864_000;
    let mut life = open(TempDir::new().unwrap(), now(DAY));
    for at in (5..300).step_by(5) {
        life.ingest(&[(1, 0, DAY + at, 1.0)], DAY + at);
        life.pipeline.tick(now(DAY + at)).unwrap();
    }
    // The clock is set right; the same holds after a restart, with what the journal has of before.
    let mut life = life.kill(300, None);
    for at in (305..800).step_by(5) {
        life.ingest(&[(1, 0, at, 1.0)], at);
        life.pipeline.tick(now(at)).unwrap();
    }
    assert_eq!(life.pipeline.live(now(0))[0].at, now(795).wall.plus_us(-1));
    life.pipeline.tick(now(3_000)).unwrap();
    let records = life.records();
    let summaries = summaries(&records);
    let starts: Vec<_> = summaries.iter().map(|s| s.start.us_since(now(0).wall) / 1_000_000).collect();
    assert_eq!(starts[..6], [86_400, 86_410, 86_420, 30, 40, 50]);
    let counted: u32 = summaries.iter().flat_map(|s| s.sensors.iter().flatten()).map(|s| s.count).sum();
    assert_eq!((counted, life.pipeline.counters().late), (59 + 99, 0), "nothing is forgotten");
}

#[test]
fn a_clock_that_is_set_back_tells_of_no_interval_twice() {
    let mut life = open(TempDir::new().unwrap(), now(0));
    let mut sent = 0;
    // Two minutes of a clock that is ten minutes ahead; set right; then ten minutes as they come, and the same once more.
    for at in (5..20_000).step_by(5) {
        let ahead = if at < 1_200 || (8_400..9_000).contains(&at) { 6_000 } else { 0 };
        let moment = Now { wall: now(at + ahead).wall, ..now(at) };
        let machine = life.pipeline.registry().machine(&MachineId::new("m1").unwrap()).unwrap();
        let sensor = life.pipeline.registry().sensor(machine, &SensorId::new("s").unwrap()).unwrap();
        let reading = Reading { machine, sensor, at: moment.wall, value: 1.0 };
        life.pipeline.ingest(&[reading], &mut Vec::new(), moment, moment).unwrap();
        life.pipeline.tick(moment).unwrap();
        sent += 1;
    }
    let records = life.records();
    let starts: Vec<i64> = summaries(&records).iter().map(|s| s.start.0).collect();
    assert_eq!(starts.iter().collect::<HashSet<_>>().len(), starts.len());
    assert!(starts.iter().filter(|start| **start % 10 == 1).count() > 10, "some were moved");
    let (counted, late) = (readings_counted(&records), life.pipeline.counters().late);
    assert_eq!(late, 0);
    // The last intervals are open still.
    assert!((sent - 40..=sent).contains(&counted), "{counted} of {sent}");
}

/// A gateway whose clock is not set: it knows the time since its start alone.
fn since_boot(boot: u64, tenths: i64) -> Now {
    Now { wall: now(0).wall, mono_us: tenths * 100_000, clock: Clock::SinceBoot { boot } }
}

impl Life {
    /// Readings without a time of their own.
    fn arrive(&mut self, sensors: u64, moment: Now) {
        let registry = self.pipeline.registry();
        let machine = registry.machine(&MachineId::new("m1").unwrap()).unwrap();
        let place = |sensor| registry.sensor(machine, &SensorId::new(&format!("s{sensor}")).unwrap()).unwrap();
        let at = moment.arrival();
        let readings: Vec<_> =
            (0..sensors).map(place).map(|sensor| Reading { machine, sensor, at, value: 1.0 }).collect();
        self.pipeline.ingest(&readings, &mut Vec::new(), moment, moment).unwrap();
        self.pipeline.tick(moment).unwrap();
    }
}

#[test]
fn what_arrives_before_the_time_is_known_counts_from_the_start_through_kills_and_reboots() {
    let run = |kills: bool| {
        let mut life = open(TempDir::new().unwrap(), since_boot(7, 0));
        let kill = |life: Life, at| if kills { life.kill(at, None) } else { life };
        for tenth in 0..255 {
            life.arrive(2, since_boot(7, tenth));
        }
        life = kill(life, 255);
        // The gateway starts again before anybody set its clock, and once more; then the time becomes known.
        for tenth in 0..255 {
            life.arrive(2, since_boot(9, tenth));
        }
        life = kill(life, 255);
        for tenth in 255..400 {
            life.arrive(2, now(tenth));
        }
        life = kill(life, 400);
        life.pipeline.tick(now(1_000)).unwrap();
        assert_eq!((life.pipeline.counters().late, life.pipeline.counters().duplicates), (0, 0));
        let records = life.records();
        assert_eq!(readings_counted(&records), 2 * (255 + 255 + 145));
        let told = summaries(&records).into_iter().map(|summary| {
            let start =
                if summary.clock == Clock::Trusted { summary.start.us_since(now(0).wall) } else { summary.start.0 };
            (summary.clock, start / 1_000_000, summary.sensors[0].map(|figures| figures.count))
        });
        told.collect::<Vec<_>>()
    };
    let told = run(false);
    let before = |boot: u64| {
        [(0, 100), (10, 100), (20, 55)].map(|(start, count)| (Clock::SinceBoot { boot }, start, Some(count)))
    };
    assert_eq!(told[..3], before(7));
    assert_eq!(told[3..6], before(9));
    assert_eq!(told[6..8], [(Clock::Trusted, 20, Some(45)), (Clock::Trusted, 30, Some(100))]);
    assert_eq!(run(true), told);
}

#[test]
fn a_device_with_a_clock_dates_the_others_while_the_gateway_has_none() {
    let mut life = open(TempDir::new().unwrap(), since_boot(7, 0));
    for at in (5..300).step_by(5) {
        // A sensor of the device's own time, and two that have none.
        let moment = since_boot(7, at);
        let registry = life.pipeline.registry();
        let machine = registry.machine(&MachineId::new("m1").unwrap()).unwrap();
        let sensor = registry.sensor(machine, &SensorId::new("s0").unwrap()).unwrap();
        let reading = Reading { machine, sensor, at: now(at).wall, value: 1.0 };
        life.pipeline.ingest(&[reading], &mut Vec::new(), moment, moment).unwrap();
        life.arrive(3, since_boot(7, at + 2));
    }
    life.pipeline.tick(since_boot(7, 900)).unwrap();
    let records = life.records();
    let summaries = summaries(&records);
    assert_eq!(readings_counted(&records), 59 * 4);
    assert_eq!(summaries[0].start, now(0).wall.floor(10_000_000));
    assert!(summaries.iter().all(|summary| summary.clock == Clock::Untrusted));
    assert_eq!(summaries.iter().map(|summary| summary.start).collect::<HashSet<_>>().len(), summaries.len());
}
