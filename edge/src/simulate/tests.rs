//! The simulator's command line, its runs against a real rumqttd, and what the detector makes of its faults.

use clap::Parser;
use gemba_shared::telemetry::{EventKind, Mode};

use super::*;
use crate::{
    detect::{DetectSettings, Detector},
    window::Step,
};

#[derive(Debug, Parser)]
struct Cli {
    #[command(flatten)]
    simulate: SimulateArgs,
}

fn parse(line: &str) -> Result<SimulateArgs, String> {
    let words = std::iter::once("simulate").chain(line.split_whitespace());
    Cli::try_parse_from(words).map(|cli| cli.simulate).map_err(|error| error.to_string())
}

#[test]
fn the_command_line_is_a_plant_or_a_fault() {
    let plant = parse("--url mqtt://x --machines 3 --fault pump-3:valve@60s --fault pump-1:bearing@5m:10m").unwrap();
    assert_eq!(plant.plant.fault[0].kind, FaultKind::Valve);
    assert_eq!(plant.plant.fault[1].lasts, Some(Duration::from_mins(10)));
    let before = parse("--url mqtt://x --fault pump-3:valve@-10m").unwrap();
    assert_eq!(before.plant.fault[0].after, SignedDuration::from_mins(-10));
    let fault = parse("fault --control /run/x pump-3 valve --after 5s").unwrap();
    assert!(matches!(fault.command, Some(Command::Fault(fault)) if fault.after == SignedDuration::from_secs(5)));
}

#[test]
fn what_cannot_be_is_refused() {
    for (line, expected) in [
        ("", "--url"),
        ("--url mqtt://x --machines 0", "0 is not in 1..=10000"),
        ("--url mqtt://x --fault pump-3", "MACHINE:KIND@AFTER"),
        ("--url mqtt://x --fault pump-3:fire@1s", "there is no fault \"fire\""),
        ("--url mqtt://x --fault pump-3:valve@soon", "\"soon\" is no duration"),
        ("--url mqtt://x --rate 5", "--load"),
        ("--url mqtt://x --speed 5", "--duration"),
        ("--url mqtt://x --load --history 5m", "cannot be used with"),
        ("--url mqtt://x --qos 2", "2 is not in 0..=1"),
        ("fault --control x pump-3 fire", "there is no fault \"fire\""),
    ] {
        let error = parse(line).expect_err(line);
        assert!(error.contains(expected), "{line}: {error}");
    }
}

#[tokio::test]
async fn a_fault_of_an_unknown_machine_is_refused() {
    let args = parse("--url mqtt://127.0.0.1:1 --fault pump-9:valve@1s").unwrap();
    let error = run(args, || Timestamp(0), CancellationToken::new(), &mut Vec::new()).await.unwrap_err();
    assert_eq!(error.to_string(), "--fault: there is no machine \"pump-9\"; the last one is \"pump-5\"");
}

#[expect(clippy::disallowed_methods, reason = "the test's own clock")]
fn now() -> Timestamp {
    Timestamp::from_millis(jiff::Timestamp::now().as_millisecond())
}

#[tokio::test]
async fn a_short_plant_publishes_every_sensor_every_step() {
    let (target, password) = crate::publisher::tests::identity(crate::publisher::tests::broker(), "right");
    let line = format!(
        "--url {} --username plant --password-file {} --machines 3 --connections 2 --history 60s --duration 1s --json",
        target.url.unwrap(),
        password.path().display()
    );
    let mut out = Vec::new();
    run(parse(&line).unwrap(), now, CancellationToken::new(), &mut out).await.unwrap();
    let figures: serde_json::Value = serde_json::from_slice(&out).unwrap();
    assert_eq!((&figures["sent"], &figures["acknowledged"]), (&(3 * 8 * 61).into(), &(3 * 8 * 61).into()));
}

#[tokio::test]
async fn the_load_generator_ends_after_its_messages() {
    let (target, password) = crate::publisher::tests::identity(crate::publisher::tests::broker(), "right");
    let line = format!(
        "--url {} --username plant --password-file {} --machines 4 --connections 4 --load --format number --messages 3200 --json",
        target.url.unwrap(),
        password.path().display()
    );
    let mut out = Vec::new();
    run(parse(&line).unwrap(), now, CancellationToken::new(), &mut out).await.unwrap();
    let figures: serde_json::Value = serde_json::from_slice(&out).unwrap();
    assert_eq!((&figures["sent"], &figures["acknowledged"]), (&3_200.into(), &3_200.into()));
}

const HOUR_S: i64 = 3_600;

/// What the daemon's detector, which is told nothing of what the pump does, sees begin: (second, what), and in which seconds it says that
/// the pump is off. What happens to the pump: (kind, from, how long), in seconds.
fn watched(
    seed: u64,
    index: u64,
    happens: &[(FaultKind, i64, Option<u64>)],
    until_s: i64,
) -> (Vec<(i64, String)>, Vec<i64>) {
    let at = |s: i64| Timestamp::from_millis(1_700_000_000_000 + s * 1_000);
    let mut pump = Pump::new(seed, index);
    for (kind, from, lasts) in happens {
        pump.fail(Fault { kind: *kind, from: at(*from), lasts: lasts.map(Duration::from_secs) });
    }
    let mut detector = Detector::new(DetectSettings::default(), 1_000_000);
    let (mut begun, mut off) = (Vec::new(), Vec::new());
    for s in 0..until_s {
        let values = pump.step(at(s)).map(|value| value as f32).to_vec();
        let measured = vec![true; values.len()];
        let mut events = Vec::new();
        detector.step(&Step { start: at(s), values, measured }, Mode::Unknown, &mut events);
        let name = |sensor: usize| SENSORS[sensor].name;
        begun.extend(events.iter().filter_map(|event| match event {
            EventKind::AnomalyOpened(anomaly) => {
                let lead = (0..).zip(&anomaly.shares).max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(sensor, _)| sensor);
                Some((s, format!("anomaly, {}", name(lead))))
            }
            EventKind::SensorFault(fault) if fault.active => {
                Some((s, format!("{:?}, {}", fault.kind, name(usize::from(fault.sensor)))))
            }
            _ => None,
        }));
        if detector.is_off() {
            off.push(s);
        }
    }
    (begun, off)
}

#[test]
fn the_detector_sees_each_fault_within_two_minutes() {
    for kind in FaultKind::ALL.into_iter().filter(|kind| *kind != FaultKind::Stop) {
        for index in 0..5 {
            let (begun, off) = watched(11, index, &[(kind, HOUR_S, None)], HOUR_S + 180);
            let found = begun.iter().find(|(s, _)| *s >= HOUR_S).map(|(s, _)| s - HOUR_S);
            println!("{kind} of pump {index}: seen after {found:?} s; {begun:?}");
            assert!(found.is_some_and(|s| s <= 120), "{kind} of pump {index}: {found:?}");
            let before = begun.iter().filter(|(s, _)| *s < HOUR_S).count();
            assert!(before <= 1, "{before} false alarms of pump {index} in an hour");
            assert!(off.is_empty(), "{kind} is not off: {off:?}");
        }
    }
}

/// A valve that closes moves what all sensors show, along with the sensor that shows it most.
#[test]
fn no_sensor_is_to_blame_for_a_machine_that_goes_wrong() {
    const FROM_S: i64 = 1_200;
    let seen = |kind: FaultKind| -> Vec<String> {
        let of_pump = |index| watched(7, index, &[(kind, FROM_S, None)], FROM_S + 420).0;
        (0..8).flat_map(of_pump).filter(|(s, _)| *s >= FROM_S).map(|(_, what)| what).collect()
    };
    for kind in [FaultKind::Valve, FaultKind::Bearing] {
        let seen = seen(kind);
        assert!(seen.len() >= 8 && seen.iter().all(|what| what.starts_with("anomaly")), "{kind}: {seen:?}");
    }
    let drifts = seen(FaultKind::Drift).iter().filter(|what| *what == "Drifting, flow").count();
    assert!(drifts >= 6, "{drifts} of 8");
}

#[test]
fn healthy_pumps_raise_less_than_an_alarm_in_two_hours() {
    let (pumps, hours) = (16, 3);
    let begun: Vec<_> = (0..pumps).flat_map(|index| watched(5, index, &[], hours * HOUR_S).0).collect();
    println!("{} in {} hours: {begun:?}", begun.len(), pumps as i64 * hours);
    assert!(begun.len() as i64 * 2 <= pumps as i64 * hours, "{begun:?}");
}

/// Nobody says which sensor tells that it is off.
#[test]
fn a_pump_that_is_switched_off_raises_no_alarm_and_one_with_a_closed_valve_does() {
    const OFF_S: i64 = 1_200;
    for index in 0..8 {
        for stood_s in [60, 600, 3_600] {
            let (stop, on_s) = ((FaultKind::Stop, OFF_S, Some(stood_s)), OFF_S + stood_s as i64);
            let (healthy, _) = watched(3, index, &[], on_s + 1_200);
            let (begun, off) = watched(3, index, &[stop], on_s + 1_200);
            let of_stop: Vec<_> = begun.iter().filter(|(s, _)| *s >= OFF_S).collect();
            let of_itself = healthy.iter().filter(|(s, _)| *s >= OFF_S).count();
            assert!(of_stop.len() <= of_itself, "pump {index}, off for {stood_s} s: {of_stop:?}");
            let (first, last) = (off[0], off[off.len() - 1]);
            assert!(first <= OFF_S + 15 && (on_s..on_s + 10).contains(&last), "off from {first} to {last}");
            assert_eq!(off.len() as i64, last - first + 1);

            // It is started against a closed valve.
            let (begun, _) = watched(3, index, &[stop, (FaultKind::Valve, OFF_S + 5, None)], on_s + 120);
            let alarm = begun.iter().find(|(s, _)| *s >= OFF_S);
            assert!(alarm.is_some_and(|(s, _)| (on_s..on_s + 90).contains(s)), "pump {index}, {stood_s} s: {begun:?}");
        }
        let (begun, off) = watched(3, index, &[(FaultKind::Valve, OFF_S, None)], OFF_S + 300);
        let alarm = begun.iter().find(|(s, _)| *s >= OFF_S);
        assert!(off.is_empty() && alarm.is_some_and(|(s, _)| *s < OFF_S + 60), "pump {index}: {begun:?}, {off:?}");
    }
}

/// A trip: the fault's alarm stands while the pump does, and nothing is added to it.
#[test]
fn an_alarm_stays_open_while_the_pump_stands() {
    let (begun, off) =
        watched(3, 1, &[(FaultKind::Cavitation, 1_200, None), (FaultKind::Stop, 1_320, Some(600))], 1_900);
    let since: Vec<_> = begun.iter().filter(|(s, _)| *s >= 1_200).collect();
    assert!(matches!(&since[..], [(s, what)] if *s < 1_320 && what.starts_with("anomaly")), "{begun:?}");
    assert!(off.len() > 500, "{off:?}");
}
