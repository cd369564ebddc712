//! Tables of intervals, and what a rule makes of them.

use super::*;

const T0: i64 = 1_800_000_000;

fn at(s: i64) -> Timestamp {
    Timestamp::from_second(T0 + s).unwrap()
}

fn high(on_delay_s: i64, off_delay_s: i64) -> Rule {
    Rule {
        id: Uuid::nil(),
        machine: Uuid::nil(),
        name: "Too hot".into(),
        sensor: Some("temperature".into()),
        kind: RuleKind::High,
        figure: Figure::Mean,
        threshold: 80.0,
        dead_band: 5.0,
        on_delay: SignedDuration::from_secs(on_delay_s),
        off_delay: SignedDuration::from_secs(off_delay_s),
        severity: Severity::High,
        schedule: None,
        only_running: false,
    }
}

fn sample(s: i64, value: Option<f64>) -> Sample {
    Sample { start: at(s), interval_ms: 10_000, value, running: true, late: false }
}

/// Goes through values of intervals of 10 s, and tells what became of them: phase letters and effects with their second.
fn run(rule: &Rule, values: &[Option<f64>]) -> String {
    let samples: Vec<Sample> = values.iter().enumerate().map(|(i, value)| sample(10 * i as i64, *value)).collect();
    told(rule, &samples)
}

fn told(rule: &Rule, samples: &[Sample]) -> String {
    let mut state = State::default();
    let mut text = String::new();
    for sample in samples {
        let (next, effect) = rule.step(state, sample, &TimeZone::UTC);
        state = next;
        text.push(match state.phase {
            Phase::Normal => 'n',
            Phase::Pending => 'p',
            Phase::Active => 'a',
            Phase::Clearing => 'c',
        });
        let (mark, at) = match effect {
            Some(Effect::Raise { at, .. }) => ("!", at),
            Some(Effect::History { at, .. }) => ("h", at),
            Some(Effect::Return { at }) => ("-", at),
            None => {
                text.push(' ');
                continue;
            }
        };
        text.push_str(mark);
        text.push_str(&(at.as_second() - T0).to_string());
        text.push(' ');
    }
    text.trim_end().to_owned()
}

fn values(list: &[f64]) -> Vec<Option<f64>> {
    list.iter().map(|value| Some(*value)).collect()
}

#[test]
fn a_limit_with_its_dead_band() {
    assert_eq!(
        run(&high(0, 0), &values(&[70.0, 80.0, 81.0, 78.0, 76.0, 74.0, 78.0, 81.0])),
        "n n a!20 a a n-50 n a!70"
    );
    let mut bare = high(0, 0);
    bare.dead_band = 0.0;
    assert_eq!(run(&bare, &values(&[81.0, 80.0, 81.0])), "a!0 n-10 a!20");
    let low = Rule { kind: RuleKind::Low, threshold: 2.0, dead_band: 0.5, ..high(0, 0) };
    assert_eq!(run(&low, &values(&[3.0, 1.9, 2.2, 2.6, 2.2])), "n a!10 a n-30 n");
}

#[test]
fn delays_count_from_the_first_interval_and_begin_anew_when_it_is_interrupted() {
    assert_eq!(run(&high(30, 0), &values(&[81.0, 81.0, 81.0, 81.0])), "p p a!30 a");
    assert_eq!(run(&high(30, 0), &values(&[81.0, 81.0, 78.0, 81.0, 81.0, 81.0])), "p p n p p a!60");
    assert_eq!(run(&high(0, 20), &values(&[81.0, 70.0, 81.0, 70.0, 70.0])), "a!0 c a c n-50");
    // In the dead-band the way back goes on.
    assert_eq!(run(&high(0, 30), &values(&[81.0, 70.0, 78.0, 70.0])), "a!0 c c n-40");
}

#[test]
fn a_hole_in_the_data_ends_what_a_delay_has_counted_and_no_alarm() {
    let pending = [sample(0, Some(81.0)), sample(10, Some(81.0)), sample(60, Some(81.0)), sample(70, Some(81.0))];
    assert_eq!(told(&high(30, 0), &pending), "p p p p");
    let active = [sample(0, Some(81.0)), sample(600, Some(81.0)), sample(700, Some(70.0))];
    assert_eq!(told(&high(0, 0), &active), "a!0 a n-700");
    // An interval without a good value is no hole, and says nothing.
    assert_eq!(run(&high(30, 0), &[Some(81.0), None, Some(81.0)]), "p p a!30");
    // The same interval again, and one from before, change nothing.
    let again = [sample(10, Some(81.0)), sample(10, Some(70.0)), sample(0, Some(70.0))];
    assert_eq!(told(&high(0, 0), &again), "a!10 a a");
}

#[test]
fn a_rate_is_a_change_a_minute_and_is_not_made_up_over_a_hole() {
    let rate = Rule { kind: RuleKind::Rate, threshold: 6.0, dead_band: 0.0, ..high(0, 0) };
    // 1 in 10 s is 6 a minute, 2 is 12.
    assert_eq!(run(&rate, &values(&[0.0, 1.0, 3.0, 1.0, 1.0])), "n n a!20 a n-40");
    assert_eq!(told(&rate, &[sample(0, Some(0.0)), sample(3_600, Some(90.0)), sample(3_610, Some(90.5))]), "n n n");
    // Two intervals were lost: the change is over all three.
    assert_eq!(told(&rate, &[sample(0, Some(0.0)), sample(30, Some(3.0))]), "n n");
    assert_eq!(told(&rate, &[sample(0, Some(0.0)), sample(30, Some(3.1))]), "n a!30");
}

#[test]
fn no_data_for_a_duration() {
    let none = Rule { kind: RuleKind::NoData, ..high(20, 0) };
    assert_eq!(run(&none, &[Some(1.0), None, None, Some(1.0)]), "n p a!30 n-30");
}

#[test]
fn what_comes_late_is_history_unless_it_goes_on() {
    let late = |s, value| Sample { late: true, ..sample(s, Some(value)) };
    // Began and ended in the past: nobody is told, and nothing has to return.
    assert_eq!(told(&high(0, 0), &[late(0, 81.0), late(10, 81.0), late(20, 70.0)]), "ah0 a n");
    // It goes on into what comes in time: that is told.
    assert_eq!(
        told(&high(0, 0), &[late(0, 81.0), late(10, 81.0), sample(20, Some(81.0)), sample(30, Some(70.0))]),
        "ah0 a a!20 n-30"
    );
}

#[test]
fn out_of_its_schedule_or_while_the_machine_stands_a_rule_is_quiet() {
    let running = Rule { only_running: true, ..high(0, 60) };
    let stands = Sample { running: false, ..sample(10, Some(99.0)) };
    assert_eq!(told(&running, &[sample(0, Some(81.0)), stands, sample(20, Some(81.0))]), "a!0 n-10 a!20");

    let zone = TimeZone::get("Europe/Berlin").unwrap();
    let time = |text: &str| -> Timestamp { text.parse().unwrap() };
    let weekdays = Schedule { days: 0b001_1111, from_min: 6 * 60, to_min: 22 * 60 };
    let nights = Schedule { days: 0b001_0000, from_min: 22 * 60, to_min: 6 * 60 };
    for (at, in_weekdays, in_nights) in [
        // A Friday in summer: 06:00 there is 04:00 UTC.
        ("2026-07-03T03:59:59Z", false, false),
        ("2026-07-03T04:00:00Z", true, false),
        ("2026-07-03T19:59:59Z", true, false),
        ("2026-07-03T20:00:00Z", false, true),
        ("2026-07-04T03:59:59Z", false, true),
        ("2026-07-04T04:00:00Z", false, false),
        ("2026-07-04T20:00:00Z", false, false),
        // In winter it is 05:00 UTC.
        ("2026-01-02T04:59:59Z", false, false),
        ("2026-01-02T05:00:00Z", true, false),
    ] {
        assert_eq!(weekdays.holds(time(at), &zone), in_weekdays, "{at}");
        assert_eq!(nights.holds(time(at), &zone), in_nights, "{at}");
    }
}

#[test]
fn messages_say_what_was_measured() {
    assert_eq!(high(0, 0).message(81.25), "Too hot: temperature is 81.25, above 80");
    let none = Rule { kind: RuleKind::NoData, sensor: None, ..high(0, 0) };
    assert_eq!(none.message(f64::NAN), "Too hot: the machine sends nothing");
    for (value, text) in [(0.001_234_6, "0.001235"), (12_345.6, "12346"), (-7.0, "-7"), (0.0, "0"), (100.0, "100")] {
        assert_eq!(short(value), text);
    }
}
