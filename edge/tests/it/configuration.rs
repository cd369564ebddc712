//! Faults of a configuration, as a person meets them.

use std::{fs, process::Command};

#[track_caller]
fn check(command: &str, config: &str, expected: &[&str]) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("edge.toml");
    fs::write(&file, config).unwrap();
    let mut run = Command::new(env!("CARGO_BIN_EXE_gemba-edge"));
    let output = run.args([command, "--config"]).arg(&file).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(78), "{text}");
    let lines: Vec<_> = text.lines().map(|line| line.replace(&format!("{}:", file.display()), "")).collect();
    assert_eq!(lines.len(), expected.len(), "{text}");
    for (line, words) in lines.iter().zip(expected) {
        assert!(line.starts_with(words), "{words:?} does not begin {line:?}");
    }
}

#[test]
fn each_fault_has_file_line_key_and_remedy() {
    let config = "[gateway]\ndata_dri = \"x\"\n[defaults]\nstep = \"1 sec\"\n[[machines]]\nid = \"p\"\nunits = { t = \"degC\" }\n[[sources]]\ntopic = \"a/{machine}/{sensor}\"\n[[sources]]\ntopic = \"a/b/{sensor}\"\nmachine = \"b\"\n";
    let expected = [
        "2: gateway.data_dri: unknown key; did you mean `data_dir`?",
        "4: defaults.step: \"1 sec\": write a whole number and a unit",
        "7: machines[0].units.t: \"degC\": units are written in UCUM; write \"Cel\"",
        "11: sources[1].topic: some topics match both \"a/b/{sensor}\" and \"a/{machine}/{sensor}\" of line 9",
    ];
    for command in ["check", "run"] {
        check(command, config, &expected);
    }
    check("check", "nonsense", &["1: this is no TOML"]);
}

#[test]
fn a_file_that_is_not_there_is_a_fault_of_the_configuration() {
    let output = Command::new(env!("CARGO_BIN_EXE_gemba-edge"))
        .args(["run", "--config", "/nowhere/edge.toml"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(78));
    assert!(String::from_utf8(output.stderr).unwrap().starts_with("/nowhere/edge.toml: it cannot be read"));
}
