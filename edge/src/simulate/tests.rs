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

/// When, in seconds after the fault, the daemon's detector opens an anomaly or finds a faulty sensor; and how often
/// it did in the hour before.
fn seen(index: u64, kind: FaultKind) -> (Option<i64>, usize) {
    const FAULT_S: i64 = 3_600;
    let at = |s: i64| Timestamp::from_millis(1_700_000_000_000 + s * 1_000);
    let mut pump = Pump::new(11, index);
    pump.fail(Fault { kind, from: at(FAULT_S), lasts: None });
    let mut detector = Detector::new(DetectSettings::default(), 1_000_000);
    let (mut found, mut before) = (None, 0);
    for s in 0..FAULT_S + 180 {
        let values = pump.step(at(s)).map(|value| value as f32).to_vec();
        let measured = vec![true; values.len()];
        let mut events = Vec::new();
        detector.step(&Step { start: at(s), values, measured }, Mode::Running, &mut events);
        let begins = |event: &EventKind| match event {
            EventKind::AnomalyOpened(_) => true,
            EventKind::SensorFault(fault) => fault.active,
            _ => false,
        };
        match events.iter().any(begins) {
            true if s < FAULT_S => before += 1,
            true => found = found.or(Some(s - FAULT_S)),
            false => {}
        }
    }
    (found, before)
}

#[test]
fn the_detector_sees_each_fault_within_two_minutes() {
    for kind in FaultKind::ALL {
        for index in 0..5 {
            let (found, before) = seen(index, kind);
            println!("{kind} of pump {index}: seen after {found:?} s; {before} false alarms in an hour");
            assert!(found.is_some_and(|s| s <= 120), "{kind} of pump {index}: {found:?}");
            assert!(before <= 1, "{before} false alarms of pump {index} in an hour");
        }
    }
}
