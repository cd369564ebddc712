//! What the detector makes of healthy and broken machines.

use std::collections::BTreeMap;

use gemba_shared::telemetry::SensorFaultKind;

use super::{commands::NothingToAccept, labels::MARGIN, state::CoreState, *};

const SECOND: i64 = 1_000_000;

/// Sine-like, never quite the same, reproducible.
fn value(second: i64, sensor: usize) -> f32 {
    let noise = (second.wrapping_mul(2_654_435_761).wrapping_add(sensor as i64 * 97) % 1_000) as f32 / 1_000.0;
    // No sensor tells what another shows.
    10.0 * (sensor + 1) as f32 + (second as f32 * (0.3 + 0.11 * sensor as f32)).sin() + noise
}

fn step(second: i64, values: Vec<f32>) -> Step {
    let measured = values.iter().map(|value| !value.is_nan()).collect();
    Step { start: Timestamp(second * SECOND), values, measured }
}

fn usual(second: i64) -> Vec<f32> {
    (0..4).map(|sensor| value(second, sensor)).collect()
}

struct Run {
    detector: Detector,
    second: i64,
    events: Vec<(i64, EventKind)>,
}

impl Run {
    fn new() -> Self {
        let settings = DetectSettings { calibration_steps: 300, model: None };
        Self { detector: Detector::new(settings, SECOND), second: 0, events: Vec::new() }
    }

    fn calibrated() -> Self {
        let mut run = Self::new();
        run.go(300, |_, _| {});
        assert_eq!(run.detector.present(Mode::Running).detector, DetectorState::Watching);
        run
    }

    fn go(&mut self, seconds: i64, change: impl Fn(i64, &mut Vec<f32>)) -> &mut Self {
        for _ in 0..seconds {
            let mut values = usual(self.second);
            change(self.second, &mut values);
            let mut events = Vec::new();
            self.detector.step(&step(self.second, values), Mode::Running, &mut events);
            self.events.extend(events.into_iter().map(|event| (self.second, event)));
            self.second += 1;
        }
        self
    }
}

#[test]
fn it_calibrates_then_stays_quiet_on_what_is_usual() {
    let mut run = Run::new();
    run.go(150, |_, _| {});
    let verdict = run.detector.verdict(Mode::Running);
    assert_eq!((verdict.detector, verdict.score), (DetectorState::Calibrating { percent: 50 }, None));
    run.go(2_000, |_, _| {});
    assert_eq!(run.events, []);
    let verdict = run.detector.verdict(Mode::Running);
    assert_eq!(verdict.detector, DetectorState::Watching);
    assert!(verdict.score.unwrap() < 1.0 && verdict.health_percent.unwrap() > 80.0, "{verdict:?}");
}

#[test]
fn a_sensor_that_goes_off_opens_one_anomaly_that_names_it_and_closes_after() {
    let mut run = Run::calibrated();
    run.go(100, |_, _| {}).go(100, |_, values| values[2] += 20.0).go(100, |_, _| {});
    let kinds: Vec<_> = run.events.iter().map(|(second, event)| (*second, event)).collect();
    let (opened_second, EventKind::AnomalyOpened(opened)) = kinds[0] else { panic!("{kinds:?}") };
    assert!((400..420).contains(&opened_second), "{opened_second}");
    assert!(opened.score > 1.0 && opened.shares[2] > 0.9, "{opened:?}");
    assert!((opened.shares.iter().sum::<f32>() - 1.0).abs() < 1e-5);
    let window = opened.window.as_ref().unwrap();
    assert_eq!((window.sensors[0], window.sensors.len(), window.values.len()), (2, 4, 60 * 4));
    let (closed_second, EventKind::AnomalyClosed(closed)) = kinds.last().unwrap() else { panic!("{kinds:?}") };
    assert!((525..550).contains(closed_second), "{closed_second}");
    assert_eq!(closed.opened, opened.opened);
    assert!(kinds[1..kinds.len() - 1].iter().all(|(_, event)| matches!(event, EventKind::AnomalyUpdated(_))));
    assert!(kinds.len() <= 5, "{}", kinds.len());
}

/// One temperature that wanders far from step to step: its level has no narrow limit.
fn smooth(second: i64) -> Vec<f32> {
    let t = second as f32;
    vec![70.0 + 8.0 * (t / 40.0).sin() + 3.0 * (t / 13.0).sin() + 0.1 * value(second, 0).fract()]
}

#[test]
fn a_single_smooth_channel_that_leaps_as_it_never_did_is_an_anomaly() {
    let mut run = Run::new();
    run.go(2_000, |second, values| *values = smooth(second));
    assert_eq!(run.events, []);
    run.go(60, |second, values| *values = vec![smooth(second)[0] - 60.0]);
    assert!(matches!(&run.events[0], (2_000..2_010, EventKind::AnomalyOpened(_))), "{:?}", run.events);
}

#[test]
fn it_does_not_learn_an_anomaly() {
    let mut run = Run::calibrated();
    run.go(20_000, |_, values| values[1] -= 20.0);
    assert!(run.detector.core.alarm.is_open());
}

#[test]
fn sensors_that_freeze_or_vanish_are_told_apart() {
    let mut run = Run::calibrated();
    run.go(200, |_, values| {
        values[0] = 10.5;
        values[3] = f32::NAN;
    });
    run.go(1, |_, _| {});
    let faults: Vec<_> = run
        .events
        .iter()
        .filter_map(|(second, event)| match event {
            EventKind::SensorFault(fault) => Some((*second, fault.sensor, fault.kind, fault.active)),
            _ => None,
        })
        .collect();
    assert_eq!(
        faults,
        [
            (300, 3, SensorFaultKind::Missing, true),
            (365, 0, SensorFaultKind::Frozen, true),
            (500, 0, SensorFaultKind::Frozen, false),
            (500, 3, SensorFaultKind::Missing, false),
        ]
    );
}

#[test]
fn a_constant_sensor_is_left_out_and_half_of_them_missing_blinds() {
    let mut run = Run::new();
    run.go(400, |_, values| values[1] = 5.0);
    run.go(60, |_, values| values[1] = 6.0);
    assert_eq!(run.events, []);
    run.go(5, |_, values| {
        values[0] = f32::NAN;
        values[2] = f32::NAN;
    });
    let verdict = run.detector.verdict(Mode::Running);
    assert_eq!((verdict.detector, verdict.health_percent), (DetectorState::Blind, None));
}

#[test]
fn a_machine_that_is_off_is_not_judged() {
    let mut run = Run::calibrated();
    for (seconds, mode) in [(300..350, Mode::Off), (350..400, Mode::Idle)] {
        for second in seconds {
            run.detector.step(&step(second, vec![0.0; 4]), mode, &mut Vec::new());
        }
        assert_eq!(run.detector.present(mode).score, None);
    }
    run.second = 400;
    run.go(100, |_, _| {});
    assert_eq!(run.events, []);
}

#[test]
fn new_normal_closes_the_anomaly_and_calibrates() {
    let mut run = Run::calibrated();
    run.go(30, |_, values| values[2] += 20.0);
    let mut events = Vec::new();
    run.detector.recalibrate(Timestamp(330 * SECOND), &mut events);
    assert!(matches!(events[..], [EventKind::AnomalyClosed(_)]));
    run.events.clear();
    run.go(600, |_, values| values[2] += 20.0);
    assert_eq!(run.events, []);
}

#[test]
fn a_detector_goes_on_as_it_was_saved() {
    let mut saved: BTreeMap<u16, Vec<u8>> = BTreeMap::new();
    let mut run = Run::new();
    let mut again = Run::new();
    for round in 0..60 {
        let fault =
            move |_: i64, values: &mut Vec<f32>| values[2] += if (30..36).contains(&round) { 20.0 } else { 0.0 };
        run.go(13, fault);
        again.go(13, fault);
        let mut parts = Vec::new();
        let core = again.detector.save(&mut parts).unwrap();
        saved.extend(parts);
        let core: CoreState = postcard::from_bytes(&postcard::to_stdvec(&core).unwrap()).unwrap();
        let settings = again.detector.settings.clone();
        again.detector = Detector::restore(settings, SECOND, Clock::Trusted, core, &saved);
    }
    let bare = |run: &Run| -> Vec<_> {
        let without_window = |(second, event): &(i64, EventKind)| {
            let mut event = event.clone();
            if let EventKind::AnomalyOpened(a) | EventKind::AnomalyUpdated(a) | EventKind::AnomalyClosed(a) = &mut event
            {
                a.window = None;
            }
            (*second, event)
        };
        run.events.iter().map(without_window).collect()
    };
    assert!(run.events.len() >= 2, "{:?}", run.events);
    assert_eq!(bare(&run), bare(&again));
    assert_eq!(run.detector.verdict(Mode::Running), again.detector.verdict(Mode::Running));
}

fn model() -> Arc<Model> {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/kernel-regression");
    Arc::new(Model::load(&dir).unwrap())
}

#[test]
fn a_model_judges_after_calibration_and_goes_on_after_a_restart() {
    let settings = DetectSettings { calibration_steps: 300, model: Some(model()) };
    let mut run = Run::new();
    run.detector = Detector::new(settings.clone(), SECOND);
    run.go(500, |_, values| values[1] = 5.0);
    assert_eq!((&run.events[..], run.detector.model_failures()), (&[][..], 0));

    let mut parts = Vec::new();
    let core = run.detector.save(&mut parts).unwrap();
    let parts: BTreeMap<u16, Vec<u8>> = parts.into_iter().collect();
    run.detector = Detector::restore(settings, SECOND, Clock::Trusted, core.clone(), &parts);
    run.go(30, |_, values| values[2] += 20.0);
    let (_, EventKind::AnomalyOpened(anomaly)) = &run.events[0] else { panic!("{:?}", run.events) };
    assert_eq!((anomaly.model.clone(), anomaly.shares.len()), (model().to_string(), 4));
    assert!(anomaly.shares[2] > 0.5 && anomaly.shares[1] == 0.0, "{anomaly:?}");

    // Without its file the baseline judges, by what it learnt beside it.
    let without = DetectSettings { calibration_steps: 300, model: None };
    let mut without = Detector::restore(without, SECOND, Clock::Trusted, core, &parts);
    without.step(&step(run.second, usual(run.second)), Mode::Running, &mut Vec::new());
    assert_eq!(without.judge_name(), BASELINE);
    assert_eq!(without.present(Mode::Running).detector, DetectorState::Watching);
}

fn faults(run: &Run) -> Vec<(i64, u16, SensorFaultKind, bool)> {
    let fault = |(second, event): &(i64, EventKind)| match event {
        EventKind::SensorFault(fault) => Some((*second, fault.sensor, fault.kind, fault.active)),
        _ => None,
    };
    run.events.iter().filter_map(fault).collect()
}

/// Three sensors that go with the machine's load, and tell each other.
fn loaded(second: i64) -> Vec<f32> {
    let load = (second as f32 * 0.21).sin() + 0.5 * (second as f32 * 0.047).sin();
    (0..3)
        .map(|sensor| (sensor + 1) as f32 * (20.0 + 3.0 * load) + 0.2 * (value(second, sensor as usize).fract() - 0.5))
        .collect()
}

#[test]
fn a_sensor_that_drifts_is_a_fault_of_the_sensor() {
    let mut run = Run::new();
    run.go(500, |second, values| *values = loaded(second));
    let begin = run.second;
    run.go(300, |second, values| {
        *values = loaded(second);
        values[1] += 0.15 * (second - begin) as f32;
    });
    let found = faults(&run);
    assert!(matches!(found[..], [(_, 1, SensorFaultKind::Drifting, true)]), "{found:?}");
    assert!(run.detector.is_faulty(1) && !run.detector.is_faulty(0));
}

#[test]
fn a_sensor_at_the_end_of_its_range_is_saturated() {
    let mut run = Run::calibrated();
    run.go(150, |_, values| values[1] = 99.0).go(1, |_, _| {});
    let found = faults(&run);
    assert!(
        matches!(found[..], [(_, 1, SensorFaultKind::Saturated, true), (_, 1, SensorFaultKind::Saturated, false)]),
        "{found:?}"
    );
}

#[test]
fn what_lasts_is_asked_about_and_may_be_accepted() {
    let mut run = Run::calibrated();
    run.go(1_000, |_, values| values[2] += 20.0);
    let asked: Vec<i64> = run
        .events
        .iter()
        .filter(|(_, e)| matches!(e, EventKind::NormalShifted(s) if s.active))
        .map(|(s, _)| *s)
        .collect();
    assert!(matches!(asked[..], [second] if (1_195..1_215).contains(&second)), "{asked:?}");
    let mut events = Vec::new();
    run.detector.accept_new_normal(Timestamp(run.second * SECOND), &mut events).unwrap();
    assert!(
        matches!(&events[..], [EventKind::AnomalyClosed(_), EventKind::NormalShifted(s)] if !s.active),
        "{events:?}"
    );
    run.events.clear();
    run.go(600, |_, values| values[2] += 20.0);
    assert_eq!(run.events, []);
    run.go(60, |_, _| {});
    assert!(matches!(run.events[0].1, EventKind::AnomalyOpened(_)), "back is elsewhere now: {:?}", run.events);
}

#[test]
fn a_calibration_of_nothing_is_refused_and_tried_again() {
    let mut run = Run::new();
    run.go(310, |_, values| *values = vec![1.0, 2.0, 3.0, values[3]]);
    let reason = Uncalibrated::TooFew { constant: 3, missing: 0, of: 4 };
    assert_eq!(run.detector.present(Mode::Running).detector, DetectorState::Uncalibrated { reason });
    run.go(450, |_, _| {});
    assert_eq!(run.detector.present(Mode::Running).detector, DetectorState::Watching);
}

#[test]
fn a_sensor_that_turns_out_to_be_at_fault_ends_the_anomaly_that_it_began() {
    let mut run = Run::calibrated();
    run.go(200, |_, values| values[1] = 99.0);
    let kinds: Vec<_> = run.events.iter().map(|(_, event)| event).collect();
    assert!(matches!(kinds[0], EventKind::AnomalyOpened(_)), "{kinds:?}");
    let closed = kinds.iter().position(|event| matches!(event, EventKind::AnomalyClosed(_)));
    let saturated = kinds.iter().position(|event| matches!(event, EventKind::SensorFault(_)));
    assert!(closed.is_some() && saturated < closed, "{kinds:?}");
    assert_eq!(run.detector.present(Mode::Running).detector, DetectorState::Watching);
}

#[test]
fn one_wild_reading_leaves_nothing_that_is_not_finite() {
    let mut run = Run::calibrated();
    run.go(1, |_, values| values[2] = f32::MAX).go(400, |_, _| {});
    for (_, event) in &run.events {
        if let EventKind::AnomalyOpened(a) | EventKind::AnomalyUpdated(a) | EventKind::AnomalyClosed(a) = event {
            assert!(a.score.is_finite() && a.score_max.is_finite(), "{a:?}");
            assert!((a.shares.iter().sum::<f32>() - 1.0).abs() < 1e-4, "{a:?}");
        }
    }
    assert_eq!(run.detector.present(Mode::Running).detector, DetectorState::Watching);
    assert!(run.events.len() <= 4, "it is soon forgotten: {:?}", run.events.len());
}

#[test]
fn a_model_that_is_named_later_is_calibrated() {
    let mut run = Run::calibrated();
    let mut parts = Vec::new();
    let core = run.detector.save(&mut parts).unwrap();
    let parts: BTreeMap<u16, Vec<u8>> = parts.into_iter().collect();
    let settings = DetectSettings { calibration_steps: 300, model: Some(model()) };
    run.detector = Detector::restore(settings, SECOND, Clock::Trusted, core, &parts);
    assert_eq!(run.detector.present(Mode::Running).detector, DetectorState::Calibrating { percent: 0 });
    run.go(300, |_, _| {});
    assert_eq!(run.detector.judge_name(), model().to_string());
}

/// How far what raises the third sensor for a minute goes over limits of this width, in shares of those that were learnt.
fn raised(width: f32, by: f32) -> Option<f32> {
    let mut run = Run::calibrated();
    run.detector.core.judge.set_width(width);
    run.go(100, |_, _| {}).go(60, |_, values| values[2] += by).go(200, |_, _| {});
    run.events.iter().rev().find_map(|(_, event)| match event {
        EventKind::AnomalyClosed(anomaly) => Some(anomaly.score_max * width),
        _ => None,
    })
}

/// A disturbance that goes a little over the limits.
fn slight() -> f32 {
    let by = (4..80).map(|n| n as f32 * 0.1).find(|by| raised(1.0, *by).is_some_and(|peak| peak > 1.15));
    by.filter(|by| raised(1.0, *by).is_some_and(|peak| peak < 1.45)).expect("one that is slight")
}

/// A run in which a slight disturbance was raised, and when.
fn after_a_slight_one() -> (Run, Timestamp) {
    let (mut run, by) = (Run::calibrated(), slight());
    run.go(100, |_, _| {}).go(60, |_, values| values[2] += by).go(200, |_, _| {});
    let EventKind::AnomalyOpened(anomaly) = &run.events[0].1 else { panic!("{:?}", run.events) };
    let opened = anomaly.opened;
    (run, opened)
}

fn as_is(_: Clock, at: Timestamp) -> Timestamp {
    at
}

#[test]
fn a_false_alarm_would_not_be_raised_again_and_a_fault_still_is() {
    let (mut run, opened) = after_a_slight_one();
    let peak = raised(1.0, slight()).unwrap();
    assert_eq!(run.detector.label(opened.plus_us(1), false, as_is), None);
    let labelled = run.detector.label(opened, false, as_is).unwrap();
    assert_eq!((labelled.standing.labelled, labelled.standing.real, labelled.is_open), (1, 0, false));
    let width = labelled.standing.width;
    assert!((width / (peak * MARGIN) - 1.0).abs() < 1e-5, "{width} for a peak of {peak}");
    assert_eq!(raised(width, slight()), None);
    assert!(raised(width, 20.0).is_some_and(|peak| peak > 2.0));

    // What is raised says by which limits.
    run.events.clear();
    run.go(30, |_, values| values[2] += 20.0);
    let EventKind::AnomalyOpened(fault) = &run.events[0].1 else { panic!("{:?}", run.events) };
    assert_eq!(fault.threshold.to_bits(), width.to_bits());

    // It was no false alarm after all.
    assert_eq!(run.detector.label(opened, true, as_is).unwrap().standing.width.to_bits(), 1.0_f32.to_bits());
    assert_eq!((run.detector.standing().labelled, run.detector.standing().real), (1, 1));
}

#[test]
fn labels_outlive_a_restart_and_a_calibration() {
    let (mut run, opened) = after_a_slight_one();
    let width = run.detector.label(opened, false, as_is).unwrap().standing.width;
    let mut parts = Vec::new();
    let core = run.detector.save(&mut parts).unwrap();
    let parts: BTreeMap<u16, Vec<u8>> = parts.into_iter().collect();
    let restore = |parts: &BTreeMap<u16, Vec<u8>>| {
        Detector::restore(run.detector.settings.clone(), SECOND, Clock::Trusted, core.clone(), parts)
    };
    let mut again = restore(&parts);
    assert_eq!((again.standing(), again.core.judge.width()), (run.detector.standing(), width));
    assert_eq!(again.present(Mode::Running).detector, DetectorState::Watching);
    again.recalibrate(opened, &mut Vec::new());
    assert_eq!((again.standing().labelled, again.standing().width), (1, 1.0));
    assert_eq!(again.core.judge.width().to_bits(), 1.0_f32.to_bits());

    // A state of a version that knew no labels, and one whose labels are damaged.
    let mut old = parts.clone();
    assert!(old.remove(&u16::MAX).is_some());
    let damaged = old.iter().map(|(part, bytes)| (*part, bytes.clone())).chain([(u16::MAX, vec![0xff; 3])]).collect();
    for parts in [old, damaged] {
        let without = restore(&parts);
        assert_eq!(without.present(Mode::Running).detector, DetectorState::Watching);
        assert_eq!((without.standing().labelled, without.core.judge.width()), (0, 1.0));
    }
}

#[test]
fn a_label_changes_what_an_open_anomaly_is_compared_with() {
    let (mut run, opened) = after_a_slight_one();
    run.go(20, |_, values| values[2] += 20.0);
    let before = run.detector.present(Mode::Running).score.unwrap();
    let width = run.detector.label(opened, false, as_is).unwrap().standing.width;
    let after = run.detector.present(Mode::Running).score.unwrap();
    assert!((before / after / width - 1.0).abs() < 1e-5);
    let open = run.detector.core.alarm.opened().unwrap();
    let labelled = run.detector.label(open, false, as_is).unwrap();
    assert!(labelled.is_open && labelled.is_uncovered);
    assert!(run.detector.core.alarm.is_open(), "a label closes nothing");
    assert_eq!(labelled.standing.width.to_bits(), width.to_bits(), "nor does one that went far widen anything");
}

#[test]
fn there_must_be_something_to_accept() {
    let mut run = Run::new();
    let at = Timestamp(0);
    assert_eq!(run.detector.accept_new_normal(at, &mut Vec::new()), Err(NothingToAccept::NotCalibrated));
    run.go(310, |_, _| {});
    let mut parts = Vec::new();
    let core = run.detector.save(&mut parts).unwrap();
    let settings = run.detector.settings.clone();
    let parts = parts.into_iter().collect();
    let mut again = Detector::restore(settings, SECOND, Clock::Trusted, core, &parts);
    assert_eq!(again.accept_new_normal(at, &mut Vec::new()), Err(NothingToAccept::NotSeen));
    run.detector.step(&step(310, vec![0.0; 4]), Mode::Off, &mut Vec::new());
    assert_eq!(run.detector.accept_new_normal(at, &mut Vec::new()), Err(NothingToAccept::NotJudged));
}

#[test]
fn what_was_learnt_by_a_version_that_wrote_it_otherwise_is_learnt_anew() {
    let mut run = Run::calibrated();
    let mut parts = Vec::new();
    let core = run.detector.save(&mut parts).unwrap();
    let mut parts: BTreeMap<u16, Vec<u8>> = parts.into_iter().collect();
    let restored = |parts: &BTreeMap<u16, Vec<u8>>| {
        let settings = run.detector.settings.clone();
        Detector::restore(settings, SECOND, Clock::Trusted, core.clone(), parts).present(Mode::Running).detector
    };
    assert_eq!(restored(&parts), DetectorState::Watching);
    // Behind the calibration's number it began with that of the sensors.
    let learnt = parts.get_mut(&0x100).unwrap();
    assert_eq!(learnt[4..7], [0, 2, 4]);
    learnt.copy_within(6.., 4);
    assert_eq!(restored(&parts), DetectorState::Calibrating { percent: 0 });
}
