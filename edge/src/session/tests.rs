//! Single rules; all of them together are in `simulation`.

use gemba_shared::telemetry::Timestamp;

use super::*;

const EPOCH: Epoch = Epoch(7);

fn receipt(lane: Lane, through: u64) -> Receipt {
    Receipt { epoch: EPOCH, lane, through, now: Timestamp(0), tail: None }
}

fn session() -> Session {
    let mut session = Session::new(Settings { batches_max: 2, ..Settings::default() }, EPOCH, 0);
    session.connected(0);
    session
}

/// The outbox gives out `next`, and what it holds cannot be compared.
fn known(next: u64) -> Known {
    Known { next, digest: None }
}

/// Both lanes hold 1..=`last`.
fn held(last: u64) -> impl Fn(Lane) -> Held {
    move |_| Held { oldest: 1, next: last + 1 }
}

#[test]
fn events_go_first_and_do_not_use_the_summaries_window() {
    let mut s = session();
    let mut order = Vec::new();
    while let Some(wanted) = s.next(held(4), 0) {
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
    assert_eq!(s.next(held(4), 0), None);
}

#[test]
fn only_a_fitting_receipt_moves_a_lane() {
    let mut s = session();
    s.sent(Lane::Events, 3, 100, 0);
    let other = Receipt { epoch: Epoch(8), ..receipt(Lane::Events, 3) };
    assert_eq!(s.receipt(&other, known(4), 1), Judged::OtherEpoch);
    assert_eq!(s.receipt(&receipt(Lane::Events, 4), known(4), 1), Judged::Impossible);
    assert_eq!(s.receipt(&receipt(Lane::Events, 0), known(4), 1), Judged::Old);
    assert_eq!(s.receipt(&receipt(Lane::Events, 3), known(4), 1), Judged::Release(3));
    assert_eq!(s.receipt(&receipt(Lane::Events, 3), known(4), 1), Judged::Old);
    assert_eq!(s.receipt(&receipt(Lane::Events, 2), known(4), 1), Judged::Old);
}

#[test]
fn an_overdue_lane_starts_again_ever_more_patiently() {
    let mut s = session();
    let mut at_us = 0;
    let mut waits = Vec::new();
    for _ in 0..5 {
        let wanted = s.next(held(1), at_us).expect("something to send");
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
    assert_eq!(s.receipt(&receipt(Lane::Events, 1), known(2), at_us), Judged::Release(1));
    assert_eq!(s.answering(), Answering::Idle);
}

#[test]
fn what_the_outbox_dropped_is_not_asked_for() {
    let mut s = session();
    let wanted = s
        .next(|lane| if lane == Lane::Events { Held { oldest: 1, next: 1 } } else { Held { oldest: 90, next: 95 } }, 0);
    assert_eq!(wanted.map(|w| (w.lane, w.from)), Some((Lane::Summaries, 90)));
}

#[test]
fn a_receipt_for_another_record_than_ours_is_impossible() {
    let mut s = session();
    s.sent(Lane::Events, 3, 100, 0);
    let theirs = Receipt { tail: Some(1), ..receipt(Lane::Events, 3) };
    assert_eq!(s.receipt(&theirs, Known { next: 9, digest: Some(2) }, 1), Judged::Impossible);
    let skipped = Receipt { tail: None, ..theirs };
    assert_eq!(s.receipt(&skipped, Known { next: 9, digest: Some(2) }, 1), Judged::Impossible);
    assert_eq!(s.receipt(&theirs, Known { next: 9, digest: Some(1) }, 1), Judged::Release(3));
}

#[test]
fn a_new_epoch_begins_anew() {
    let mut s = session();
    s.sent(Lane::Events, 3, 100, 0);
    s.renewed(Epoch(8), 1);
    assert_eq!(s.receipt(&receipt(Lane::Events, 3), known(4), 1), Judged::OtherEpoch);
    assert_eq!(s.next(held(4), 1).map(|wanted| wanted.from), Some(1));
}

#[test]
fn a_cloud_that_says_where_it_stands_is_sent_the_rest_at_once() {
    let mut s = session();
    s.sent(Lane::Events, 3, 100, 0);
    assert_eq!(s.receipt(&receipt(Lane::Events, 3), known(9), 1), Judged::Release(3));
    // What is sent now, nobody hears: the cloud is away. It comes back and greets.
    s.sent(Lane::Events, 8, 100, 2);
    assert_eq!(s.next(held(8), 3).map(|wanted| wanted.lane), Some(Lane::Summaries));
    assert_eq!(s.receipt(&receipt(Lane::Events, 3), known(9), 4_000_000), Judged::Old);
    assert_eq!(s.next(held(8), 4_000_000).map(|wanted| (wanted.lane, wanted.from)), Some((Lane::Events, 4)));
    assert_eq!(s.resends(), 1);
}

#[test]
fn a_metered_link_is_used_up_by_summaries_and_still_takes_events() {
    let settings = Settings { bytes_per_second_max: Some(2_000), ..Settings::default() };
    let mut s = Session::new(settings, EPOCH, 0);
    s.connected(0);
    let summaries = |lane| Held { oldest: 1, next: if lane == Lane::Events { 1 } else { 100 } };
    let mut sent = 0;
    while let Some(wanted) = s.next(summaries, 0) {
        assert!(wanted.bytes_max <= 2_000);
        s.sent(wanted.lane, wanted.from, 1_500, 0);
        sent += 1;
    }
    assert!((1..4).contains(&sent), "{sent}");
    assert!(s.may_send_live(0));
    assert_eq!(s.next(held(9), 0).map(|wanted| wanted.lane), Some(Lane::Events));
    assert_eq!(s.next(summaries, 3_000_000).map(|wanted| wanted.lane), Some(Lane::Summaries));
}
