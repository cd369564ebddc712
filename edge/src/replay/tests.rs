//! Replays against a real rumqttd.

use std::fmt::Write as _;

use clap::Parser;

use super::*;
use crate::publisher::tests::{broker, identity};

#[derive(Debug, Parser)]
struct Cli {
    #[command(flatten)]
    replay: ReplayArgs,
}

#[expect(clippy::disallowed_methods, reason = "the test's own clock")]
fn now() -> Timestamp {
    Timestamp(jiff::Timestamp::now().as_microsecond())
}

async fn replay(words: &[&str]) -> (anyhow::Result<()>, String) {
    let (target, password) = identity(broker(), "right");
    let (url, password) = (target.url.unwrap(), password.path().to_str().unwrap().to_owned());
    let identity = ["replay", "--url", &url, "--username", "plant", "--password-file", &password];
    let args = Cli::try_parse_from(identity.iter().chain(words)).unwrap().replay;
    let mut out = Vec::new();
    let done = run(args, now, CancellationToken::new(), &mut out).await;
    (done, String::from_utf8(out).unwrap())
}

/// Three seconds of two sensors, one of which misses a value.
fn recording(directory: &Path) -> PathBuf {
    let path = directory.join("line 1.csv");
    std::fs::write(&path, "time;flow;Motor Current\n1000;1.5;7\n1001;;8\n1002;2.5;9\n").unwrap();
    path
}

fn ledger_of(path: &Path) -> Vec<(String, i64, f64)> {
    let lines = std::fs::read_to_string(path).unwrap();
    let line = |line: &str| {
        let cells: Vec<&str> = line.split(',').collect();
        (format!("{}/{}", cells[0], cells[1]), cells[2].parse().unwrap(), cells[3].parse().unwrap())
    };
    lines.lines().skip(1).map(line).collect()
}

#[tokio::test]
async fn a_recording_keeps_its_own_times_when_told() {
    let directory = tempfile::tempdir().unwrap();
    let (file, ledger) = (recording(directory.path()), directory.path().join("ledger"));
    let words = [file.to_str().unwrap(), "--speed", "max", "--own-times", "--ledger", ledger.to_str().unwrap()];
    let (done, out) = replay(&words).await;
    done.unwrap();
    assert!(out.starts_with("3 rows: sent 5, acknowledged 5, "), "{out}");
    let (flow, current) = ("line_1/flow".to_owned(), "line_1/Motor_Current".to_owned());
    let expected = [
        (flow.clone(), 1_000_000_000, 1.5),
        (current.clone(), 1_000_000_000, 7.0),
        (current.clone(), 1_001_000_000, 8.0),
        (flow, 1_002_000_000, 2.5),
        (current, 1_002_000_000, 9.0),
    ];
    assert_eq!(ledger_of(&ledger), expected);
}

#[tokio::test]
async fn a_recording_ends_when_its_replay_ends() {
    let directory = tempfile::tempdir().unwrap();
    let (file, ledger) = (recording(directory.path()), directory.path().join("ledger"));
    let words = [file.to_str().unwrap(), "--speed", "4", "--machine", "pump", "--ledger", ledger.to_str().unwrap()];
    let before = now();
    replay(&words).await.0.unwrap();
    let after = now();
    assert!(after.us_since(before) > SECOND_US / 2, "two seconds at four times the speed");
    let ledger = ledger_of(&ledger);
    let (first, last) = (ledger[0].1, ledger[4].1);
    assert_eq!(last - first, 2 * SECOND_US);
    assert!(last <= after.0 && last > before.0 - SECOND_US, "{last} between {before:?} and {after:?}");
}

#[tokio::test]
async fn what_is_no_recording_is_refused_before_anything_is_published() {
    let directory = tempfile::tempdir().unwrap();
    let good = recording(directory.path());
    let bad = directory.path().join("bad.csv");
    std::fs::write(&bad, "time,a\nnever,1\n").unwrap();
    let (done, out) = replay(&[good.to_str().unwrap(), bad.to_str().unwrap()]).await;
    let error = format!("{:#}", done.unwrap_err());
    assert!(error.contains("bad.csv:2: \"never\" is no time"), "{error}");
    assert_eq!(out, "");
    let (done, _) = replay(&[good.to_str().unwrap(), good.to_str().unwrap()]).await;
    assert!(done.unwrap_err().to_string().contains("would both be the machine"));
}

#[tokio::test]
async fn a_recording_of_a_real_machine_arrives_whole() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/skab/valve1/0.csv");
    if !path.exists() {
        eprintln!("skipped: {} is absent", path.display());
        return;
    }
    let ignore = ["--ignore-columns", "anomaly,changepoint"];
    let (done, out) = replay(&[path.to_str().unwrap(), ignore[0], ignore[1], "--speed", "max", "--json"]).await;
    done.unwrap();
    let figures: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&figures["sent"], &figures["acknowledged"]), (&(1_147 * 8).into(), &(1_147 * 8).into()));
}

#[test]
fn machines_are_named_after_their_files() {
    let mut named = String::new();
    for path in ["/x/valve-1.csv", "0.csv", "Línea 2.csv", "_x", "…"] {
        writeln!(named, "{}", machine_of(Path::new(path)).map_or_else(|error| error.to_string(), |id| id.to_string()))
            .unwrap();
    }
    assert_eq!(named, "valve-1\n0\nL_nea_2\nx\n…: no machine can be named after it: use --machine\n");
}
