//! Single rules, then a seeded simulation against a model of the cloud's lane rule.

use std::collections::{BTreeMap, VecDeque};

use gemba_shared::telemetry::Timestamp;
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::*;

const EPOCH: Epoch = Epoch(7);

fn receipt(lane: Lane, through: u64) -> Receipt {
    Receipt { epoch: EPOCH, lane, through, now: Timestamp(0) }
}

fn session() -> Session {
    let mut session = Session::new(Settings { batches_max: 2, ..Settings::default() }, EPOCH);
    session.connected(0);
    session
}

/// Both lanes hold 1..=`last`.
fn held(last: u64) -> impl Fn(Lane) -> Held {
    move |_| Held { oldest: 1, next: last + 1 }
}

#[test]
fn events_go_first_and_do_not_use_the_summaries_window() {
    let mut s = session();
    let mut order = Vec::new();
    while let Some(wanted) = s.next(held(4)) {
        order.push((wanted.lane, wanted.from));
        s.sent(wanted.lane, wanted.from, 100, 0);
    }
    let expected = [(Lane::Events, 1), (Lane::Events, 2), (Lane::Summaries, 1), (Lane::Summaries, 2)];
    assert_eq!(order, expected);
}

#[test]
fn nothing_is_sent_without_a_connection() {
    let mut s = session();
    s.disconnected();
    assert_eq!(s.next(held(4)), None);
}

#[test]
fn only_a_fitting_receipt_moves_a_lane() {
    let mut s = session();
    s.sent(Lane::Events, 3, 100, 0);
    let other = Receipt { epoch: Epoch(8), ..receipt(Lane::Events, 3) };
    assert_eq!(s.receipt(&other, 4, 1), Judged::OtherEpoch);
    assert_eq!(s.receipt(&receipt(Lane::Events, 4), 4, 1), Judged::Impossible);
    assert_eq!(s.receipt(&receipt(Lane::Events, 0), 4, 1), Judged::Old);
    assert_eq!(s.receipt(&receipt(Lane::Events, 3), 4, 1), Judged::Release(3));
    assert_eq!(s.receipt(&receipt(Lane::Events, 3), 4, 1), Judged::Old);
    assert_eq!(s.receipt(&receipt(Lane::Events, 2), 4, 1), Judged::Old);
}

#[test]
fn an_overdue_lane_starts_again_ever_more_patiently() {
    let mut s = session();
    let mut at_us = 0;
    let mut waits = Vec::new();
    for _ in 0..5 {
        let wanted = s.next(held(1)).expect("something to send");
        assert_eq!((wanted.lane, wanted.from), (Lane::Events, 1));
        s.sent(Lane::Events, 1, 100, at_us);
        let from_us = at_us;
        while s.lanes[0].in_flight.len() == 1 {
            at_us += 1_000_000;
            s.tick(at_us);
        }
        waits.push((at_us - from_us) / 1_000_000);
    }
    assert_eq!(waits, [5, 10, 20, 40, 60]);
    assert_eq!(s.answering(), Answering::No);
    s.sent(Lane::Events, 1, 100, at_us);
    assert_eq!(s.receipt(&receipt(Lane::Events, 1), 2, at_us), Judged::Release(1));
    assert_eq!(s.answering(), Answering::Idle);
}

#[test]
fn what_the_outbox_dropped_is_not_asked_for() {
    let mut s = session();
    let wanted =
        s.next(|lane| if lane == Lane::Events { Held { oldest: 1, next: 1 } } else { Held { oldest: 90, next: 95 } });
    assert_eq!(wanted.map(|w| (w.lane, w.from)), Some((Lane::Summaries, 90)));
}

/// What the cloud's intake does with a lane.
#[derive(Default)]
struct CloudLane {
    through: u64,
    stored: BTreeMap<u64, u32>,
    skipped: u64,
}

impl CloudLane {
    fn batch(&mut self, first: u64, last: u64, oldest: u64) -> u64 {
        if oldest > self.through + 1 {
            self.skipped += oldest - 1 - self.through;
            self.through = oldest - 1;
        }
        if first <= self.through + 1 {
            for number in self.through + 1..=last {
                *self.stored.entry(number).or_default() += 1;
            }
            self.through = self.through.max(last);
        }
        self.through
    }
}

/// Frames on their way, each with the time at which it arrives.
struct Pipe<T>(VecDeque<(i64, T)>);

impl<T: Clone> Pipe<T> {
    fn put(&mut self, rng: &mut StdRng, now_us: i64, item: T) {
        for _ in 0..rng.random_range(0..=2).min(1 + i32::from(rng.random_bool(0.1))) {
            self.0.push_back((now_us + rng.random_range(1_000..800_000), item.clone()));
        }
    }

    fn arrived(&mut self, now_us: i64) -> Vec<T> {
        let (arrived, rest) = self.0.drain(..).partition(|(at, _)| *at <= now_us);
        self.0 = rest;
        let mut arrived: Vec<(i64, T)> = Vec::from(std::mem::take::<VecDeque<_>>(&mut { arrived }));
        arrived.sort_by_key(|(at, _)| *at);
        arrived.into_iter().map(|(_, item)| item).collect()
    }
}

#[test]
fn every_record_is_stored_once_whatever_the_link_does() {
    for seed in 0..200 {
        simulate(seed);
    }
}

fn simulate(seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut cloud = [CloudLane::default(), CloudLane::default()];
    let mut outbox = [Held { oldest: 1, next: 1 }; 2];
    let mut dropped = [0; 2];
    let mut up = Pipe(VecDeque::new());
    let mut down = Pipe(VecDeque::new());
    let mut s = Session::new(Settings::default(), EPOCH);
    let mut now_us = 0;
    let calm_us = 60_000_000;
    while now_us < 400_000_000 {
        now_us += 50_000;
        let wild = now_us < calm_us;
        if wild {
            for (lane, held) in outbox.iter_mut().enumerate() {
                held.next += rng.random_range(0..20);
                if rng.random_bool(0.002) && held.next - held.oldest > 50 {
                    held.oldest += 20;
                    dropped[lane] += 20;
                }
            }
        }
        match rng.random_range(0..200) {
            0 if wild => s.disconnected(),
            1 if wild => s = Session::new(Settings::default(), EPOCH), // the gateway starts again
            2 if wild => {
                up.0.clear(); // so does the broker
                down.0.clear();
            }
            3..40 => s.connected(now_us),
            _ if !wild && !s.connected => s.connected(now_us),
            _ => {}
        }
        s.tick(now_us);
        while let Some(wanted) = s.next(|lane| outbox[index(lane)]) {
            let held = outbox[index(wanted.lane)];
            let last = (wanted.from + rng.random_range(0..30)).min(held.next - 1);
            up.put(&mut rng, now_us, (wanted.lane, wanted.from, last, held.oldest));
            s.sent(wanted.lane, last, 1_000, now_us);
        }
        for (lane, first, last, oldest) in up.arrived(now_us) {
            let through = cloud[index(lane)].batch(first, last, oldest);
            down.put(&mut rng, now_us, receipt(lane, through));
        }
        for receipt in down.arrived(now_us) {
            let held = &mut outbox[index(receipt.lane)];
            if let Judged::Release(through) = s.receipt(&receipt, held.next, now_us) {
                held.oldest = held.oldest.max(through + 1);
            }
        }
        if !wild && outbox.iter().all(|held| held.oldest == held.next) {
            break;
        }
    }
    for (lane, held) in outbox.iter().enumerate() {
        assert_eq!(held.oldest, held.next, "seed {seed}: lane {lane} was not delivered");
        assert!(cloud[lane].stored.values().all(|times| *times == 1), "seed {seed}: stored twice");
        let missing = held.next - 1 - cloud[lane].stored.len() as u64;
        assert_eq!(missing, cloud[lane].skipped, "seed {seed}");
        assert!(missing <= dropped[lane], "seed {seed}: {missing} missing, {} dropped", dropped[lane]);
    }
}
