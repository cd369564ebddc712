//! Dates, hours and health, and the tickets that they make.

use jiff::civil::date;

use super::*;

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn berlin() -> TimeZone {
    TimeZone::get("Europe/Berlin").unwrap()
}

fn every(every: i16, unit: Unit, starts_on: Date) -> Calendar {
    Calendar { every, unit, starts_on, at_min: 8 * 60, from_completion: false }
}

fn standing() -> Standing {
    Standing {
        created_at: at("2026-01-01T00:00:00Z"),
        last: None,
        ran_h: 0.0,
        ran_h_a_day: 0.0,
        health_percent: None,
        below_since: None,
    }
}

fn after(due_on: Option<Date>, ended_at: Option<&str>) -> Standing {
    Standing { last: Some(Last { due_on, ended_at: ended_at.map(at) }), ..standing() }
}

#[test]
fn dates_are_counted_from_the_first() {
    let check = |calendar: Calendar, day: Date, expected: Date| assert_eq!(calendar.from(day), Some(expected), "{day}");
    let months = every(1, Unit::Month, date(2026, 1, 31));
    check(months, date(2025, 1, 1), date(2026, 1, 31));
    check(months, date(2026, 2, 1), date(2026, 2, 28));
    // The 31st again, where there is one.
    check(months, date(2026, 3, 1), date(2026, 3, 31));
    check(months, date(2028, 2, 29), date(2028, 2, 29));
    check(every(3, Unit::Month, date(2025, 11, 15)), date(2026, 2, 16), date(2026, 5, 15));
    check(every(3, Unit::Month, date(2025, 11, 15)), date(2026, 2, 15), date(2026, 2, 15));
    check(every(2, Unit::Week, date(2026, 1, 5)), date(2026, 1, 6), date(2026, 1, 19));
    check(every(10, Unit::Day, date(2026, 1, 1)), date(2026, 2, 1), date(2026, 2, 10));
    assert_eq!(every(1_000, Unit::Month, date(2250, 1, 1)).from(date(2250, 1, 2)), None, "too far ahead");
}

#[test]
fn dates_are_what_a_walk_from_the_first_finds() {
    for calendar in [
        every(1, Unit::Day, date(2024, 2, 28)),
        every(7, Unit::Day, date(2024, 2, 28)),
        every(3, Unit::Week, date(2023, 12, 31)),
        every(1, Unit::Month, date(2024, 1, 30)),
        every(5, Unit::Month, date(2023, 10, 31)),
    ] {
        let walk: Vec<Date> = (0..900).map_while(|n| calendar.behind(calendar.starts_on, n)).collect();
        let mut day = date(2023, 9, 1);
        while day < date(2026, 6, 1) {
            let expected = walk.iter().copied().find(|date| *date >= day);
            assert_eq!(calendar.from(day), expected, "{calendar:?} {day}");
            day = day.tomorrow().unwrap();
        }
    }
}

#[test]
fn the_time_of_the_day_is_the_sites() {
    let calendar = Calendar { at_min: 150, ..every(1, Unit::Day, date(2026, 1, 1)) };
    for (day, moment) in [
        (date(2026, 1, 10), "2026-01-10T01:30:00Z"),
        (date(2026, 7, 10), "2026-07-10T00:30:00Z"),
        // There is no 02:30 on this day, and two on that.
        (date(2026, 3, 29), "2026-03-29T01:30:00Z"),
        (date(2026, 10, 25), "2026-10-25T00:30:00Z"),
    ] {
        assert_eq!(calendar.moment(day, &berlin()), Some(at(moment)), "{day}");
    }
}

#[test]
fn what_comes_after_a_ticket() {
    let weekly = every(1, Unit::Week, date(2026, 1, 5));
    let due = |calendar: Calendar, standing: &Standing| {
        let Due { at: moment, on, .. } = Trigger::Calendar(calendar).due(standing, standing.created_at, &berlin());
        assert_eq!(moment.is_some(), on.is_some());
        on
    };
    assert_eq!(due(weekly, &standing()), Some(date(2026, 1, 5)));
    // The first one is not before the plan was made.
    let late = Standing { created_at: at("2026-01-19T12:00:00Z"), ..standing() };
    assert_eq!(due(weekly, &late), Some(date(2026, 1, 19)));
    // Under way; done before it was due; done late, so that another date had passed; never for a day.
    assert_eq!(due(weekly, &after(Some(date(2026, 1, 5)), None)), Some(date(2026, 1, 12)));
    assert_eq!(due(weekly, &after(Some(date(2026, 1, 12)), Some("2026-01-11T10:00:00Z"))), Some(date(2026, 1, 19)));
    assert_eq!(due(weekly, &after(Some(date(2026, 1, 5)), Some("2026-01-13T10:00:00Z"))), Some(date(2026, 1, 19)));
    assert_eq!(due(weekly, &after(None, Some("2026-01-07T10:00:00Z"))), Some(date(2026, 1, 12)));
    // It was over when the site's day had begun already.
    assert_eq!(due(weekly, &after(Some(date(2026, 1, 5)), Some("2026-01-11T23:30:00Z"))), Some(date(2026, 1, 19)));
    let floating = Calendar { from_completion: true, ..weekly };
    assert_eq!(due(floating, &standing()), Some(date(2026, 1, 5)));
    assert_eq!(due(floating, &after(Some(date(2026, 1, 5)), None)), None);
    assert_eq!(due(floating, &after(Some(date(2026, 1, 5)), Some("2026-01-13T10:00:00Z"))), Some(date(2026, 1, 20)));
}

#[test]
fn a_date_makes_one_ticket_the_lead_ahead() {
    let plan = Trigger::Calendar(every(1, Unit::Week, date(2026, 1, 5)));
    let turn = |standing: &Standing, lead_h, now| plan.turn(standing, lead_h, at(now), &berlin());
    let wait = Turn::Wait { below_since: None };
    let made = |moment, day| Turn::Make { due_at: at(moment), due_on: Some(day) };
    assert_eq!(turn(&standing(), 0, "2026-01-05T06:59:59Z"), wait);
    assert_eq!(turn(&standing(), 0, "2026-01-05T07:00:00Z"), made("2026-01-05T07:00:00Z", date(2026, 1, 5)));
    assert_eq!(turn(&standing(), 48, "2026-01-03T06:59:59Z"), wait);
    assert_eq!(turn(&standing(), 48, "2026-01-03T07:00:00Z"), made("2026-01-05T07:00:00Z", date(2026, 1, 5)));
    // The daemon was away for a month: one, for the latest.
    assert_eq!(turn(&standing(), 0, "2026-02-03T00:00:00Z"), made("2026-02-02T07:00:00Z", date(2026, 2, 2)));
    // While it is under way no other, however long that takes.
    let under_way = after(Some(date(2026, 1, 5)), None);
    assert_eq!(turn(&under_way, 48, "2026-03-05T07:00:00Z"), wait);
    let done = after(Some(date(2026, 1, 5)), Some("2026-01-13T10:00:00Z"));
    assert_eq!(turn(&done, 0, "2026-01-13T10:00:01Z"), wait);
    assert_eq!(turn(&done, 0, "2026-01-19T07:00:00Z"), made("2026-01-19T07:00:00Z", date(2026, 1, 19)));
    // A lead longer than the period: the one after is made as soon as the one before is done.
    let early = after(Some(date(2026, 1, 5)), Some("2026-01-04T10:00:00Z"));
    assert_eq!(turn(&early, 24 * 30, "2026-01-04T10:00:01Z"), made("2026-01-12T07:00:00Z", date(2026, 1, 12)));
}

#[test]
fn hours_of_running() {
    let plan = Trigger::Running(Running { every_h: 500, counted_from: None });
    let now = at("2026-02-01T00:00:00Z");
    let ran = |ran_h, ran_h_a_day| Standing { ran_h, ran_h_a_day, ..standing() };
    let turn = |standing: &Standing, lead_h| plan.turn(standing, lead_h, now, &berlin());
    assert_eq!(turn(&ran(499.9, 16.0), 0), Turn::Wait { below_since: None });
    assert_eq!(turn(&ran(500.0, 16.0), 0), Turn::Make { due_at: now, due_on: None });
    assert_eq!(turn(&ran(620.0, 0.0), 0), Turn::Make { due_at: now, due_on: None });
    let two_days = at("2026-02-03T00:00:00Z");
    assert_eq!(turn(&ran(468.0, 16.0), 40), Turn::Make { due_at: two_days, due_on: None });
    assert_eq!(turn(&ran(468.0, 16.0), 31), Turn::Wait { below_since: None });
    assert_eq!(
        turn(&Standing { last: after(None, None).last, ..ran(900.0, 16.0) }, 0),
        Turn::Wait { below_since: None }
    );
    let due = |standing: &Standing| plan.due(standing, now, &berlin());
    assert_eq!(due(&ran(468.0, 16.0)), Due { at: Some(two_days), on: None, left_h: Some(32.0) });
    assert_eq!(due(&ran(468.0, 0.0)), Due { at: None, on: None, left_h: Some(32.0) }, "it stands still: nobody knows");
    assert_eq!(due(&ran(510.0, 16.0)), Due { at: Some(now), on: None, left_h: Some(-10.0) });
}

#[test]
fn health_that_stays_too_low() {
    let plan = Trigger::Health(Health { below: 60.0, for_s: 3_600 });
    let now = at("2026-02-01T12:00:00Z");
    let turn = |health_percent, below_since: Option<&str>, last| {
        let standing = Standing { health_percent, below_since: below_since.map(at), last, ..standing() };
        plan.turn(&standing, 0, now, &berlin())
    };
    let wait = |below_since: Option<Timestamp>| Turn::Wait { below_since };
    assert_eq!(turn(Some(60.0), None, None), wait(None));
    assert_eq!(turn(Some(59.9), None, None), wait(Some(now)));
    let since = at("2026-02-01T11:00:01Z");
    assert_eq!(turn(Some(20.0), Some("2026-02-01T11:00:01Z"), None), wait(Some(since)));
    let made = Turn::Make { due_at: now, due_on: None };
    assert_eq!(turn(Some(20.0), Some("2026-02-01T11:00:00Z"), None), made);
    // Well again, or not heard: it begins anew.
    assert_eq!(turn(Some(80.0), Some("2026-02-01T08:00:00Z"), None), wait(None));
    assert_eq!(turn(None, Some("2026-02-01T08:00:00Z"), None), wait(None));
    let under_way = after(None, None).last;
    assert_eq!(turn(Some(20.0), Some("2026-02-01T08:00:00Z"), under_way), wait(None));
    let at_once = Trigger::Health(Health { below: 60.0, for_s: 0 });
    assert_eq!(at_once.turn(&Standing { health_percent: Some(1.0), ..standing() }, 0, now, &berlin()), made);
}
