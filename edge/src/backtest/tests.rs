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

/// Ten minutes of three sensors that belong together, one of which leaves the others after eight.
fn recording(directory: &Path) -> PathBuf {
    let path = directory.join("machine.csv");
    let mut text = String::from("time,a,b,c,label\n");
    for s in 0..600 {
        let t = f64::from(s);
        let load = (t / 11.0).sin() + 0.4 * (t / 3.7).sin();
        let noise = |seed: f64| 0.05 * (t * seed).sin();
        let fault = if s >= 480 { 4.0 } else { 0.0 };
        let (a, b, c) = (10.0 + load + noise(91.7), 5.0 + 0.5 * load + noise(57.3), 50.0 - 2.0 * load + noise(33.1));
        writeln!(text, "{},{a:.3},{:.3},{c:.3},{}", 1_700_000_000 + s, b + fault, u8::from(s >= 480)).unwrap();
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
    assert_eq!((&summary["rows"], &summary["steps"]), (&600.into(), &600.into()));
    let alarms = summary["alarms"].as_array().unwrap();
    assert_eq!(alarms.len(), 1, "{summary}");
    assert_eq!(alarms[0]["lead"], "b");
    let labels = &summary["labels"];
    assert_eq!(labels["false_alarms"], 0, "{summary}");
    assert!(labels["mar_percent"].as_f64().unwrap() < 20.0, "{summary}");

    let output = std::fs::read_to_string(output).unwrap();
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(lines[0], "time,score,alarm,calibrating,sensors,sensor_fault");
    assert_eq!(lines[1], "2023-11-14T22:13:20Z,,0,1,,");
    assert_eq!(lines.len(), 601);
    let last: Vec<&str> = lines[600].split(',').collect();
    assert!(last[1].parse::<f32>().unwrap() > 1.0 && last[2] == "1" && last[4].starts_with("b:"), "{last:?}");
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
        (&[short.to_str().unwrap()], "short.csv: it has no two good rows of different times. skipped 1 rows"),
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
