//! The session against the cloud's lane rule and a model of both memories, with everything that a link and two machines do
//! to them: loss, duplication, reordering, delay, cuts, restarts, replays, a wiped outbox, an old copy of it, a wiped
//! cloud, an old copy of it, records given up, records that the cloud refuses.
//!
//! At the end, on a good link: the outbox is empty, and every record is stored once, or told as a gap, or refused, unless
//! the only memory that had it was taken away. One seed is replayed with `GEMBA_SEED`.

// tidy: long, because the two ends, the way between them and what must hold are one model.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use gemba_shared::{
    ids::MachineId,
    lane::{self, Stored, Take, comparable},
    message::{Batch, Downlink, Refused, Seq},
    telemetry::{Catalog, Gap, GapReason, Record, Timestamp},
};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::*;

const SEEDS: u64 = 300;
const TICK_US: i64 = 50_000;
/// How long everything goes wrong.
const WILD_US: i64 = 40_000_000;
/// How long the rest may take.
const CALM_US: i64 = 240_000_000;

#[test]
fn every_record_is_stored_once_or_told_whatever_happens() {
    let chosen = std::env::var("GEMBA_SEED").ok().and_then(|seed| seed.parse().ok());
    let mut seen = Seen::default();
    for seed in chosen.map_or(0..SEEDS, |seed| seed..seed + 1) {
        let mut world = World::new(seed);
        world.run();
        world.check(seed);
        seen.add(&world.seen);
    }
    println!("{seen:?}");
    if chosen.is_none() {
        let Seen { records, renewed, told, refused, resends, .. } = seen;
        assert!(records > 100_000 && renewed > 50 && told > 100 && refused > 1_000 && resends > 1_000, "{seen:?}");
    }
}

/// What the seeds went through: a simulation in which nothing happens shows nothing.
#[derive(Debug, Default)]
struct Seen {
    records: u64,
    renewed: u64,
    told: u64,
    refused: u64,
    resends: u64,
    /// The longest that it took until all was delivered over a good link.
    calm_us_max: i64,
}

impl Seen {
    fn add(&mut self, other: &Self) {
        self.records += other.records;
        self.renewed += other.renewed;
        self.told += other.told;
        self.refused += other.refused;
        self.resends += other.resends;
        self.calm_us_max = self.calm_us_max.max(other.calm_us_max);
    }
}

/// A record by its number in the world, or the gap in the place of a refused one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Row {
    Item(u64),
    Buried(u64),
}

impl Row {
    fn id(self) -> u64 {
        match self {
            Self::Item(id) | Self::Buried(id) => id,
        }
    }

    fn record(self) -> Record {
        match self {
            Self::Item(id) => Record::Catalog(Catalog {
                machine: MachineId::new(&format!("m{id}")).unwrap(),
                revision: 1,
                step_ms: 1,
                interval_ms: 1,
                sensors: Vec::new(),
                model: String::new(),
            }),
            Self::Buried(id) => Record::Gap(Gap { first: id, last: id, count: 1, reason: GapReason::Refused }),
        }
    }
}

fn is_poison(id: u64) -> bool {
    id.is_multiple_of(53)
}

fn row_of(record: &Record) -> Row {
    match record {
        Record::Catalog(catalog) => Row::Item(catalog.machine.as_str()[1..].parse().unwrap()),
        Record::Gap(gap) => Row::Buried(gap.first),
        other => panic!("{other:?}"),
    }
}

#[derive(Debug, Clone)]
struct Rows {
    oldest: u64,
    rows: VecDeque<Row>,
}

impl Rows {
    fn held(&self) -> Held {
        Held { oldest: self.oldest, next: self.oldest + self.rows.len() as u64 }
    }

    fn at(&self, number: u64) -> Option<Row> {
        self.rows.get(usize::try_from(number.checked_sub(self.oldest)?).unwrap()).copied()
    }
}

#[derive(Debug, Clone)]
struct Outbox {
    epoch: Epoch,
    lanes: [Rows; 2],
}

impl Outbox {
    fn new(epoch: u64) -> Self {
        Self { epoch: Epoch(epoch), lanes: [(); 2].map(|()| Rows { oldest: 1, rows: VecDeque::new() }) }
    }

    fn ids(&self) -> BTreeSet<u64> {
        self.lanes.iter().flat_map(|rows| &rows.rows).map(|row| row.id()).collect()
    }

    fn renew(&mut self, epoch: u64) {
        self.epoch = Epoch(epoch);
        for rows in &mut self.lanes {
            rows.oldest = 1;
        }
    }

    fn batch(&self, wanted: Wanted, count: u64) -> Batch {
        let rows = &self.lanes[index(wanted.lane)];
        let end = rows.held().next.min(wanted.from + count);
        let records = (wanted.from..end).map(|number| rows.at(number).unwrap().record()).collect();
        let before = rows.at(wanted.from - 1).and_then(|row| comparable(&row.record()));
        let seq = Seq { epoch: self.epoch, lane: wanted.lane, number: wanted.from };
        Batch { seq, oldest: rows.oldest, before, records }
    }

    fn release(&mut self, lane: Lane, through: u64) {
        let rows = &mut self.lanes[index(lane)];
        while rows.oldest <= through && rows.rows.pop_front().is_some() {
            rows.oldest += 1;
        }
    }
}

/// What the cloud's intake and database do with batches.
#[derive(Debug, Clone, Default)]
struct Cloud {
    lanes: BTreeMap<(Epoch, Lane), Stored>,
    /// Under which epoch a record was stored first; in the database it is unique.
    stored: BTreeMap<u64, Epoch>,
    refused: BTreeMap<(Epoch, Lane, u64), u64>,
    /// Refused before, by another cloud: a gap stands in their place.
    told: BTreeSet<u64>,
    /// Places that will never come.
    gaps: Vec<(Epoch, Lane, u64, u64)>,
    last: BTreeMap<(Epoch, Lane), u64>,
    /// Frames of two lives of one outbox are under way: a cloud without a memory cannot tell them apart.
    mixed: bool,
}

impl Cloud {
    fn take(&mut self, batch: &Batch, seed: u64) -> Vec<Downlink> {
        let Seq { epoch, lane, number: first } = batch.seq;
        let before = self.lanes.get(&(epoch, lane)).copied().unwrap_or_default();
        let step = lane::step(before, batch);
        self.gaps.extend(step.gap.map(|(first, last)| (epoch, lane, first, last)));
        self.lanes.insert((epoch, lane), step.stored);
        let mut answers = Vec::new();
        let mut refuse = |seq| answers.push(Downlink::Refused(Refused { seq, reason: "poison".into() }));
        if let Take::Behind(skip) = step.take {
            for (number, record) in (first..).zip(&batch.records) {
                let seq = Seq { epoch, lane, number };
                if number < first + skip as u64 {
                    if self.refused.contains_key(&(epoch, lane, number)) {
                        refuse(seq);
                    }
                    continue;
                }
                let id = match row_of(record) {
                    Row::Item(id) => id,
                    Row::Buried(id) => {
                        self.told.insert(id);
                        continue;
                    }
                };
                let last = self.last.insert((epoch, lane), id).unwrap_or(0);
                assert!(last < id || self.mixed, "seed {seed}: {id} after {last} in one lane");
                if is_poison(id) {
                    self.refused.insert((epoch, lane, number), id);
                    refuse(seq);
                } else if let Some(other) = self.stored.insert(id, epoch) {
                    assert_ne!(other, epoch, "seed {seed}: {id} is stored twice");
                }
            }
        }
        answers.push(self.receipt(epoch, lane));
        answers
    }

    fn receipt(&self, epoch: Epoch, lane: Lane) -> Downlink {
        let Stored { through, tail } = self.lanes.get(&(epoch, lane)).copied().unwrap_or_default();
        Downlink::Receipt(Receipt { epoch, lane, through, now: Timestamp(0), tail })
    }
}

/// Frames on their way, each with the time at which it arrives.
struct Pipe<T> {
    under_way: Vec<(i64, T)>,
    /// What a hostile broker keeps, to send it again some day.
    kept: Vec<T>,
}

impl<T: Clone> Pipe<T> {
    fn new() -> Self {
        Self { under_way: Vec::new(), kept: Vec::new() }
    }

    fn put(&mut self, rng: &mut StdRng, now_us: i64, wild: bool, item: &T) {
        let (times, late_us) =
            if wild { ([0, 1, 1, 1, 1, 1, 2][rng.random_range(0..7)], 800_000) } else { (1, 30_000) };
        for _ in 0..times {
            self.under_way.push((now_us + rng.random_range(1_000..late_us), item.clone()));
        }
        if rng.random_bool(0.02) && self.kept.len() < 20 {
            self.kept.push(item.clone());
        }
    }

    fn arrived(&mut self, now_us: i64) -> Vec<T> {
        let all = std::mem::take(&mut self.under_way);
        let (mut arrived, rest): (Vec<_>, Vec<_>) = all.into_iter().partition(|(at, _)| *at <= now_us);
        self.under_way = rest;
        arrived.sort_by_key(|(at, _)| *at);
        arrived.into_iter().map(|(_, item)| item).collect()
    }
}

struct World {
    seed: u64,
    rng: StdRng,
    now_us: i64,
    session: Session,
    outbox: Outbox,
    outbox_copy: Option<Outbox>,
    cloud: Cloud,
    cloud_copy: Option<Cloud>,
    up: Pipe<Batch>,
    down: Pipe<Downlink>,
    ids: u64,
    epochs: u64,
    /// Given up for the budget, by the gap that tells it.
    dropped: BTreeMap<u64, Vec<u64>>,
    /// The memory that had it was taken away.
    excused: BTreeSet<u64>,
    /// Which records a place ever had.
    places: BTreeMap<(Epoch, Lane, u64), BTreeSet<u64>>,
    seen: Seen,
}

impl World {
    fn new(seed: u64) -> Self {
        Self {
            seed,
            rng: StdRng::seed_from_u64(seed),
            now_us: 0,
            session: Session::new(Settings::default(), Epoch(1), 0),
            outbox: Outbox::new(1),
            outbox_copy: None,
            cloud: Cloud::default(),
            cloud_copy: None,
            up: Pipe::new(),
            down: Pipe::new(),
            ids: 0,
            epochs: 1,
            dropped: BTreeMap::new(),
            excused: BTreeSet::new(),
            places: BTreeMap::new(),
            seen: Seen::default(),
        }
    }

    fn run(&mut self) {
        while self.now_us < WILD_US + CALM_US {
            self.now_us += TICK_US;
            let wild = self.now_us < WILD_US;
            if wild {
                self.work();
                self.go_wrong();
            } else if !self.session.connected {
                self.session.connected(self.now_us);
            }
            self.session.tick(self.now_us);
            self.send(wild);
            for batch in self.up.arrived(self.now_us) {
                for answer in self.cloud.take(&batch, self.seed) {
                    self.down.put(&mut self.rng, self.now_us, wild, &answer);
                }
            }
            for answer in self.down.arrived(self.now_us) {
                self.answered(&answer);
            }
            if !wild && self.outbox.ids().is_empty() {
                break;
            }
        }
        self.seen.calm_us_max = self.now_us - WILD_US;
        self.seen.resends += self.session.resends();
    }

    /// The plant makes records; sometimes there is no room for the oldest.
    fn work(&mut self) {
        for lane in Lane::ALL {
            for _ in 0..self.rng.random_range(0..3) {
                self.append(lane);
            }
            if self.rng.random_bool(0.003) && self.outbox.lanes[index(lane)].rows.len() > 40 {
                let rows = &mut self.outbox.lanes[index(lane)];
                rows.oldest += 20;
                let given_up = rows.rows.drain(..20).map(Row::id).collect();
                self.append(lane);
                self.dropped.insert(self.ids, given_up);
            }
        }
    }

    fn append(&mut self, lane: Lane) {
        self.ids += 1;
        let rows = &mut self.outbox.lanes[index(lane)];
        rows.rows.push_back(Row::Item(self.ids));
        self.note_places();
    }

    /// Notes what stands at the ends of the lanes.
    fn note_places(&mut self) {
        for lane in Lane::ALL {
            let rows = &self.outbox.lanes[index(lane)];
            if let Some(row) = rows.rows.back() {
                let place = (self.outbox.epoch, lane, rows.held().next - 1);
                self.places.entry(place).or_default().insert(row.id());
            }
        }
    }

    fn go_wrong(&mut self) {
        match self.rng.random_range(0..4_000) {
            0..40 => self.session.disconnected(),
            40..300 => self.session.connected(self.now_us),
            300..320 => self.restart(),
            320..340 => {
                self.up.under_way.clear(); // the broker starts again
                self.down.under_way.clear();
            }
            340..344 => {
                let gone = self.outbox.ids();
                self.excused.extend(gone);
                self.epochs += 1;
                self.outbox = Outbox::new(self.epochs);
                self.restart();
            }
            344..364 => self.outbox_copy = Some(self.outbox.clone()),
            364..374 => {
                if let Some(old) = self.outbox_copy.take() {
                    let now = std::mem::replace(&mut self.outbox, old).ids();
                    self.excused.extend(now.difference(&self.outbox.ids()));
                    self.cloud.mixed = true;
                    self.up.kept.clear();
                    // A refusal names a record by its number alone; one from before this start comes only from a broker that replays.
                    let is_refusal = |said: &Downlink| matches!(said, Downlink::Refused(_));
                    self.down.kept.retain(|said| !is_refusal(said));
                    self.down.under_way.retain(|(_, said)| !is_refusal(said));
                    self.restart();
                    // It works for a while before anybody hears of it.
                    for _ in 0..self.rng.random_range(0..400) {
                        let lane = Lane::ALL[self.rng.random_range(0..2)];
                        self.append(lane);
                    }
                }
            }
            374..376 => self.replace_cloud(Cloud::default()),
            376..390 => self.cloud_copy = Some(self.cloud.clone()),
            390..396 => {
                if let Some(old) = self.cloud_copy.take() {
                    self.replace_cloud(old);
                }
            }
            396..500 => self.replay(),
            _ => {}
        }
    }

    fn restart(&mut self) {
        self.seen.resends += self.session.resends();
        self.session = Session::new(Settings::default(), self.outbox.epoch, self.now_us);
    }

    /// What only the old database had is gone. A receipt that it sent says what is no longer so, and a frame of an earlier life of
    /// the outbox tells a cloud that forgot that life of gaps: such are not replayed here.
    fn replace_cloud(&mut self, cloud: Cloud) {
        let held = self.outbox.ids();
        self.excused.extend((1..=self.ids).filter(|id| !held.contains(id)));
        self.cloud = Cloud { mixed: self.cloud.mixed, ..cloud };
        self.down = Pipe::new();
        if self.cloud.mixed {
            self.up = Pipe::new();
        }
    }

    fn replay(&mut self) {
        let (ups, downs) = (self.up.kept.len(), self.down.kept.len());
        if ups > 0 {
            let item = self.up.kept[self.rng.random_range(0..ups)].clone();
            self.up.under_way.push((self.now_us, item));
        }
        if downs > 0 {
            let item = self.down.kept[self.rng.random_range(0..downs)].clone();
            self.down.under_way.push((self.now_us, item));
        }
    }

    fn send(&mut self, wild: bool) {
        while let Some(wanted) = self.session.next(|lane| self.outbox.lanes[index(lane)].held(), self.now_us) {
            let batch = self.outbox.batch(wanted, self.rng.random_range(1..30));
            let last = wanted.from + batch.records.len() as u64 - 1;
            self.up.put(&mut self.rng, self.now_us, wild, &batch);
            self.session.sent(wanted.lane, last, batch.records.len() * 300, self.now_us);
        }
    }

    fn answered(&mut self, answer: &Downlink) {
        match answer {
            Downlink::Refused(Refused { seq, .. }) if seq.epoch == self.outbox.epoch => {
                let rows = &mut self.outbox.lanes[index(seq.lane)];
                let place = seq.number.checked_sub(rows.oldest).map(|place| usize::try_from(place).unwrap());
                if let Some(row) = place.and_then(|place| rows.rows.get_mut(place)) {
                    *row = Row::Buried(row.id());
                }
            }
            Downlink::Receipt(receipt) => {
                let rows = &self.outbox.lanes[index(receipt.lane)];
                let digest = rows.at(receipt.through).and_then(|row| comparable(&row.record()));
                let known = Known { next: rows.held().next, digest };
                match self.session.receipt(receipt, known, self.now_us) {
                    Judged::Release(through) => self.outbox.release(receipt.lane, through),
                    Judged::Impossible => {
                        self.seen.renewed += 1;
                        self.epochs += 1;
                        self.outbox.renew(self.epochs);
                        for lane in Lane::ALL {
                            let rows = &self.outbox.lanes[index(lane)];
                            for (number, row) in (rows.oldest..).zip(&rows.rows) {
                                self.places.entry((self.outbox.epoch, lane, number)).or_default().insert(row.id());
                            }
                        }
                        self.session.renewed(self.outbox.epoch, self.now_us);
                    }
                    Judged::Old | Judged::OtherEpoch => {}
                }
            }
            _ => {}
        }
    }

    fn check(&mut self, seed: u64) {
        assert!(self.outbox.ids().is_empty(), "seed {seed}: not delivered: {:?}", self.outbox);
        let refused: BTreeSet<u64> = self.cloud.refused.values().copied().collect();
        let told: BTreeSet<u64> = self
            .cloud
            .gaps
            .iter()
            .flat_map(|(epoch, lane, first, last)| (*first..=*last).map(|number| (*epoch, *lane, number)))
            .filter_map(|place| self.places.get(&place))
            .flatten()
            .copied()
            .collect();
        let told_by_record: BTreeSet<u64> = self
            .dropped
            .iter()
            .filter(|(gap, _)| self.cloud.stored.contains_key(gap) || refused.contains(gap))
            .flat_map(|(_, ids)| ids)
            .copied()
            .collect();
        let dropped: BTreeSet<u64> = self.dropped.values().flatten().copied().collect();
        for (gap, ids) in &self.dropped {
            // Who lost the gap has no word for what it told.
            if self.excused.contains(gap) {
                self.excused.extend(ids);
            }
        }
        for id in 1..=self.ids {
            let settled = self.cloud.stored.contains_key(&id)
                || refused.contains(&id)
                || self.cloud.told.contains(&id)
                || told.contains(&id) && dropped.contains(&id)
                || told_by_record.contains(&id)
                || self.excused.contains(&id);
            assert!(settled, "seed {seed}: {id} is lost; given up: {}", dropped.contains(&id));
        }
        self.seen.records = self.ids;
        self.seen.told = told.len() as u64;
        self.seen.refused = refused.len() as u64;
    }
}
