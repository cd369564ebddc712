//! Backtests of made-up and real recordings, from the command line on.

use std::fmt::Write as _;

use clap::Parser;

use super::*;

#[derive(Debug, Parser)]
struct Cli {
    #[command(flatten)]
    backtest: BacktestArgs,
}

fn backtest(words: &[&str]) -> Result<String, String> {
    let args = Cli::try_parse_from(["backtest"].iter().chain(words)).map_err(|error| error.to_string())?;
    let mut out = Vec::new();
    run(&args.backtest, &mut out).map_err(|error| format!("{error:#}"))?;
    Ok(String::from_utf8(out).unwrap())
}

/// Ten minutes of three sensors that belong together, two of which leave after eight: one more than the other.
fn recording(directory: &Path) -> PathBuf {
    let path = directory.join("machine.csv");
    let mut text = String::from("time,a,b,c,label\n");
    for s in 0..600 {
        let t = f64::from(s);
        let load = (t / 11.0).sin() + 0.4 * (t / 3.7).sin();
        let noise = |seed: f64| 0.05 * (t * seed).sin();
        let fault = if s >= 480 { 4.0 } else { 0.0 };
        let (a, b, c) = (10.0 + load + noise(91.7), 5.0 + 0.5 * load + noise(57.3), 50.0 - 2.0 * load + noise(33.1));
        let (b, c) = (b + fault, c + 2.0 * fault);
        writeln!(text, "{},{a:.3},{b:.3},{c:.3},{}", 1_700_000_000 + s, u8::from(s >= 480)).unwrap();
    }
    std::fs::write(&path, text).unwrap();
    path
}

fn check(judge: &[&str]) {
    let directory = tempfile::tempdir().unwrap();
    let (path, output) = (recording(directory.path()), directory.path().join("out.csv"));
    let words = [path.to_str().unwrap(), "--label-column", "label", "--json", "--output", output.to_str().unwrap()];
    let summary = backtest(&[&words[..], judge].concat()).unwrap();
    let summary: serde_json::Value = serde_json::from_str(&summary).unwrap();
    assert_eq!((&summary["rows"], &summary["calibrating_s"]), (&600.into(), &300.0.into()));
    let alarms = summary["alarms"].as_array().unwrap();
    assert_eq!(alarms.len(), 1, "{summary}");
    assert!(["b", "c"].contains(&alarms[0]["lead"].as_str().unwrap()), "{summary}");
    let labels = &summary["labels"];
    assert_eq!((&labels["rows"]["false_alarms"], &labels["events_hit"]), (&0.into(), &1.into()), "{summary}");
    assert!(labels["mar_percent"].as_f64().unwrap() < 20.0, "{summary}");

    let output = std::fs::read_to_string(output).unwrap();
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(lines[0], "time,score,alarm,calibrating,sensors,sensor_fault");
    assert_eq!(lines[1], "2023-11-14T22:13:20Z,,0,1,,");
    assert_eq!(lines.len(), 601);
    let last: Vec<&str> = lines[600].split(',').collect();
    assert!(last[1].parse::<f32>().unwrap() > 1.0 && last[2] == "1" && last[4].starts_with(['b', 'c']), "{last:?}");
}

#[test]
fn the_baseline_finds_the_fault() {
    check(&[]);
}

#[test]
fn a_model_finds_the_fault() {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models");
    check(&["--model", "kernel-regression", "--models-dir", models.to_str().unwrap()]);
}

/// A recording that is fed in one go, with pauses of the reader, or live (each reading by itself, steps closed by the clock some
/// time later) gives the same verdicts: nothing depends on when a step is closed.
#[test]
fn verdicts_do_not_depend_on_how_readings_come() {
    let directory = tempfile::tempdir().unwrap();
    let path = recording(directory.path());
    let periods =
        |lateness_us| Periods { step_us: 1_000_000, interval_us: 10_000_000, lateness_us, hold_us: 30_000_000 };
    let verdicts = |lateness_us: i64, rows_a_time: usize| {
        let mut recording = Recording::open(&path, &RecordingArgs::default()).unwrap();
        let (mut window, mut detector) =
            (Window::new(periods(lateness_us)), Detector::new(DetectSettings::default(), 1_000_000));
        let (mut verdicts, mut events, mut rows, mut now_us) = (Vec::new(), Vec::new(), 0, 0);
        while let Some(row) = recording.next_row().unwrap() {
            now_us = row.at.0;
            for (sensor, value) in (0..).zip(row.values.iter().flatten()) {
                window.push(SensorIx(sensor), row.at, *value, true, now_us, 0);
            }
            rows += 1;
            if rows % rows_a_time == 0 {
                while let Some((step, _)) = window.close_next(now_us) {
                    let Some(step) = step else { continue };
                    detector.step(&step, Mode::Unknown, &mut events);
                    verdicts.push((step.start, detector.present(Mode::Unknown)));
                }
            }
        }
        while let Some((step, _)) = window.close_next(now_us + 60_000_000) {
            let Some(step) = step.filter(|step| step.start.0 <= now_us) else { continue };
            detector.step(&step, Mode::Unknown, &mut events);
            verdicts.push((step.start, detector.present(Mode::Unknown)));
        }
        (verdicts, events)
    };
    let at_once = verdicts(0, 1);
    assert!(at_once.1.iter().any(|event| matches!(event, EventKind::AnomalyOpened(_))), "{:?}", at_once.1);
    for (lateness_us, rows_a_time) in [(2_000_000, 1), (0, 50), (2_000_000, 7), (5_000_000, 400)] {
        assert!(at_once == verdicts(lateness_us, rows_a_time), "{lateness_us} us, {rows_a_time} rows");
    }
}

#[test]
fn what_cannot_be_judged_says_why() {
    let directory = tempfile::tempdir().unwrap();
    let check = |rows: u32, value: fn(u32) -> [f64; 4], expected: &str| {
        let path = directory.path().join("machine.csv");
        let mut text = String::from("time,a,b,c,d\n");
        for s in 0..rows {
            let [a, b, c, d] = value(s);
            writeln!(text, "{},{a},{b},{c},{d}", 1_700_000_000 + s).unwrap();
        }
        std::fs::write(&path, text).unwrap();
        let summary = backtest(&[path.to_str().unwrap(), "--calibrate-rows", "100"]).unwrap();
        assert!(summary.contains(expected), "{summary}");
    };
    check(10, |s| [f64::from(s); 4], "nothing was judged: the recording ends before calibration does");
    check(300, |s| [f64::from(s * 7 % 13), 5.0, 5.0, 5.0], "not calibrated: of 4 channels, 3 constant");
    // A machine that goes from one level to another in the middle of its calibration.
    let moves = |s: u32| [1.0, 2.0, 3.0, 4.0].map(|k| k * f64::from(s * 7 % 13) + if s < 70 { 0.0 } else { 500.0 * k });
    check(300, moves, "4 of 4 channels changed from one level to another");
}

#[test]
fn what_cannot_be_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = recording(directory.path());
    let file = path.to_str().unwrap();
    let short = directory.path().join("short.csv");
    std::fs::write(&short, "time,a\n100,1\nx,1\n").unwrap();
    for (words, expected) in [
        (&["/nowhere.csv"][..], "/nowhere.csv: No such file"),
        (&[file, "--ignore-columns", "z"], "machine.csv:1: there is no column \"z\""),
        (&[file, "--model", "none"], "--model none: models/none/model.toml: No such file"),
        (&[file, "--output", file], "the output would overwrite the recording"),
        (&[file, file, "--output", "/tmp/x"], "use --output-dir"),
        (&[file, "--calibrate-rows", "5"], "5 is not in 60.."),
        (&[short.to_str().unwrap()], "short.csv: it has no two good rows of different times; skipped 1 rows"),
    ] {
        let error = backtest(words).expect_err(expected);
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn recordings_of_real_machines_are_judged() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data");
    let table = [
        ("skab/valve1/0.csv", "--ignore-columns=changepoint", "--label-column=anomaly"),
        ("three-w/WELL-00014_20170919210016.csv", "--ignore-columns=class", "--json"),
        ("nab/machine_temperature_system_failure.csv", "--calibrate-rows=2000", "--json"),
    ];
    for (name, first, second) in table {
        let path = data.join(name);
        if !path.exists() {
            eprintln!("skipped: {} is absent", path.display());
            continue;
        }
        let summary = backtest(&[path.to_str().unwrap(), first, second]).unwrap();
        println!("{summary}");
        assert!(!summary.contains("nothing was judged"), "{summary}");
    }
}

/// A summary that says of no alarm says what was not looked at.
#[test]
fn what_was_not_judged_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("machine.csv");
    let summary = |value: &dyn Fn(u32) -> [f64; 4]| {
        let mut text = String::from("time,a,b,c,d\n");
        for s in 0..700 {
            let [a, b, c, d] = value(s);
            writeln!(text, "{},{a},{b},{c},{d}", 1_700_000_000 + s).unwrap();
        }
        std::fs::write(&path, text).unwrap();
        backtest(&[path.to_str().unwrap()]).unwrap()
    };
    let noise = |s: u32, k: u32| f64::from(s * (7 + 2 * k) % 13) / 13.0;
    let constant = summary(&|s| [10.0 + noise(s, 0), 5.0, 30.0 + noise(s, 1), 20.0 + noise(s, 2)]);
    assert!(constant.contains("left out, as in calibration they never moved or had few values: b"), "{constant}");
    let frozen = summary(&|s| {
        [noise(s, 0), 5.0 + noise(s, 3), 30.0 + noise(s, 1), 20.0 + noise(if s < 400 { s } else { 0 }, 2)]
    });
    assert!(frozen.contains("sensor fault 2023-11-14T22:2") && frozen.contains("to the end: d frozen"), "{frozen}");
    // It is off where calibration begins, and after it.
    let off = |s: u32| !(200..650).contains(&s);
    let late = summary(&|s| if off(s) { [0.0; 4] } else { [10.0, 20.0, 30.0, 40.0].map(|usual| usual + noise(s, 1)) });
    assert!(late.contains(" s not judged: not calibrated: "), "{late}");
    let switched = summary(&|s| {
        if s < 600 { [10.0 + noise(s, 0), 5.0 + noise(s, 3), 30.0 + noise(s, 1), 20.0 + noise(s, 2)] } else { [0.0; 4] }
    });
    assert!(
        switched.contains("0 s in alarm (0 alarms)") && switched.contains("\n  98 s off, not judged"),
        "{switched}"
    );
}

#[test]
fn files_that_are_no_recordings_say_what_they_are() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("machine.csv");
    let rows = |time: fn(u32) -> u32| (0..70).fold(String::new(), |text, s| text + &format!("{},{}\n", time(s), s % 7));
    for (text, expected) in [
        (String::new(), "machine.csv:1: the file is empty or"),
        ("\n".into(), "or begins with an empty line"),
        ("time,a\n".into(), "machine.csv: it has a header and no more"),
        (format!("time,a\n{}", rows(|s| 1_000 - s)), "its times go backward: sort its rows by time"),
        (format!("time,a\n{}", rows(|_| 1_000)), "no two good rows of different times"),
        ("time,a\n1,2,3\n".into(), "different times; skipped 1 rows and 0 cells, the first: "),
    ] {
        std::fs::write(&path, &text).unwrap();
        let error = backtest(&[path.to_str().unwrap()]).expect_err(expected);
        assert!(error.contains(expected), "{error}");
    }
    // What is beyond a float of the detector's, and a quote that is left open, are skipped and counted.
    let wild: String = rows(|s| 1_000 + s).replace(",3\n", ",1e300\n");
    std::fs::write(&path, format!("time,a\n{wild}2000,\"5\n2001,6\n2002,7\n")).unwrap();
    let summary = backtest(&[path.to_str().unwrap()]).unwrap();
    assert!(
        summary.contains("skipped 0 rows and 11 cells, the first: ")
            && summary.contains("beyond what a sensor may show"),
        "{summary}"
    );
    std::fs::write(
        &path,
        format!("time,a,b\n{}2000,\"5,1\n2001,6,1\n2002,7,1\n", rows(|s| 1_000 + s).replace('\n', ",1\n")),
    )
    .unwrap();
    let summary = backtest(&[path.to_str().unwrap()]).unwrap();
    assert!(summary.contains("goes on to line 74: is a quote left open?"), "{summary}");
}
