//! What is read from recordings, good, bad and real.

use std::fmt::Write as _;

use super::*;

fn file(content: &[u8]) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), content).unwrap();
    file
}

/// A recording as a text: its sensors, its rows, what was skipped.
fn read(content: &[u8], args: &RecordingArgs) -> String {
    let file = file(content);
    let name = file.path().display().to_string();
    let mut recording = match Recording::open(file.path(), args) {
        Ok(recording) => recording,
        Err(error) => return error.to_string().replace(&name, "FILE"),
    };
    let sensors: Vec<_> = recording.sensors().iter().map(SensorId::as_str).collect();
    let mut text = sensors.join(" ");
    while let Some(row) = recording.next_row().unwrap() {
        write!(text, "\n{} {} {:?}", row.line, row.at.0 / 1_000_000, row.values).unwrap();
        if let Some(anomalous) = row.anomalous {
            write!(text, " {anomalous}").unwrap();
        }
    }
    let skipped = recording.skipped().summary().replace(&name, "FILE");
    if skipped.is_empty() { text } else { format!("{text}\n{skipped}") }
}

#[track_caller]
fn check(content: &str, args: &RecordingArgs, expected: &str) {
    assert_eq!(read(content.as_bytes(), args), expected);
}

#[test]
fn separator_time_and_sensors_are_found_out() {
    let found = RecordingArgs::default();
    check("time;a;b\n100;1;2.5\n", &found, "a b\n2 100 [Some(1.0), Some(2.5)]");
    check("a,when,b\n1,1970-01-01 00:00:07,2\n", &found, "a b\n2 7 [Some(1.0), Some(2.0)]");
    check(
        "time;a\r\n100;1\r\n101;x\r\n",
        &found,
        "a\n2 100 [Some(1.0)]\n3 101 [None]\nskipped 0 rows and 1 cells, the first: FILE:3: a: \"x\" is no finite number",
    );
    check("\u{feff}Timestamp\tx\r\n100\t1e3\r\n", &found, "x\n2 100 [Some(1000.0)]");
    check("time;a\n100;0,5\n", &found, "a\n2 100 [Some(0.5)]");
    check("time,a,b,c\n100,,NaN,null\n", &found, "a b c\n2 100 [None, None, None]");
}

#[test]
fn columns_can_be_named() {
    let args = RecordingArgs {
        time_column: Some("t0".into()),
        ignore_columns: vec!["note".into()],
        label_column: Some("anomaly".into()),
        ..RecordingArgs::default()
    };
    check("note,t0,a,anomaly\nx,100,1,0.0\ny,101,2,1.0\n", &args, "a\n2 100 [Some(1.0)] false\n3 101 [Some(2.0)] true");
    check("t0,a\n1,2\n", &args, "FILE:1: there is no column \"anomaly\"; there are t0, a");
}

#[test]
fn what_cannot_be_read_is_counted_with_the_first_line_named() {
    let found = RecordingArgs::default();
    check(
        "time,a\n100,1\n101\nnever,3\n103,broken\n104,inf\n105,6\n",
        &found,
        "a\n2 100 [Some(1.0)]\n5 103 [None]\n6 104 [None]\n7 105 [Some(6.0)]\n\
         skipped 2 rows and 2 cells, the first: FILE:3: 1 cells, the header has 2",
    );
}

#[test]
fn what_is_no_recording_is_refused() {
    let found = RecordingArgs::default();
    check("", &found, "FILE:1: the file is empty or begins with an empty line: a header is needed");
    check(
        "just text\n",
        &found,
        "FILE:1: no ';', tab, ',' or '|' separates columns in \"just text\": name it with --separator",
    );
    check("a,b\n1,2\n", &found, "FILE:1: no column is known as the time among a, b: name it with --time-column");
    check(
        "time,\n",
        &RecordingArgs { ignore_columns: vec![String::new()], ..found.clone() },
        "FILE:1: no column is left that could be a sensor",
    );
    assert_eq!(read(b"PK\x03\x04\0\0;", &found), "FILE:1: this is no text file");
    assert!(read(&vec![b'x'; 70_000], &found).contains("the header is longer than 65536 bytes"));
    let wide = format!("time{}\n", ",x".repeat(300));
    check(&wide, &found, "FILE:1: 300 sensors: a machine has at most 256");

    let empty = file(b"time,a\nnever,1\n");
    let error = Recording::span(empty.path(), &found).unwrap_err().to_string();
    assert!(error.contains("not one good row: ") && error.contains(":2: \"never\" is no time"), "{error}");
    let missing = Recording::span(Path::new("/nowhere.csv"), &found).unwrap_err().to_string();
    assert_eq!(missing, "/nowhere.csv: No such file or directory (os error 2)");
}

#[test]
fn noise_is_never_a_panic() {
    let mut state = 1_u32;
    for length in 0..400 {
        let mut content = b"time;a\n".to_vec();
        for _ in 0..length {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            content.push((state >> 24) as u8);
        }
        read(&content, &RecordingArgs::default());
        read(&content[7..], &RecordingArgs::default());
    }
}

/// Recordings of real machines; they lie beside the repository, where they lie at all.
#[track_caller]
fn real(name: &str, ignore: &[&str], sensors: usize, rows: u64, seconds: i64) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data").join(name);
    if !path.exists() {
        eprintln!("skipped: {} is absent", path.display());
        return;
    }
    let args =
        RecordingArgs { ignore_columns: ignore.iter().map(ToString::to_string).collect(), ..RecordingArgs::default() };
    assert_eq!(Recording::open(&path, &args).unwrap().sensors().len(), sensors);
    let span = Recording::span(&path, &args).unwrap();
    assert_eq!((span.rows, span.last.us_since(span.first) / 1_000_000), (rows, seconds), "{name}");
    assert_eq!(span.skipped, Skipped::default(), "{name}");
}

#[test]
fn recordings_of_real_machines_are_read_without_a_hint() {
    real("skab/valve1/0.csv", &["anomaly", "changepoint"], 8, 1_147, 1_199);
    real("skab/anomaly-free-head.csv", &[], 8, 4_700, 5_030);
    real("nab/machine_temperature_system_failure.csv", &[], 1, 22_695, 6_804_600);
    real("three-w/WELL-00014_20170919210016.csv", &["class"], 8, 14_385, 14_384);
}
