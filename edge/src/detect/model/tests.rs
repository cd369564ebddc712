//! The model of this repository loads; damaged ones are refused with what was expected and found.

use super::*;

fn kernel_regression() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/kernel-regression")
}

/// A copy of the model's folder that a test may damage.
fn copy() -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for file in [MANIFEST_FILE, "model.onnx", "golden.json"] {
        fs::copy(kernel_regression().join(file), copy.path().join(file)).unwrap();
    }
    copy
}

fn edit(dir: &Path, file: &str, edit: impl FnOnce(String) -> String) {
    let text = fs::read_to_string(dir.join(file)).unwrap();
    let edited = edit(text.clone());
    assert_ne!(edited, text, "the edit changes nothing");
    fs::write(dir.join(file), edited).unwrap();
}

/// Replaces the graph and makes the manifest's hash right again.
fn replace_graph(dir: &Path, change: impl FnOnce(Vec<u8>) -> Vec<u8>) {
    let path = dir.join("model.onnx");
    let before = fs::read(&path).unwrap();
    let after = change(before.clone());
    assert_ne!(after, before, "the edit changes nothing");
    fs::write(&path, &after).unwrap();
    edit(dir, MANIFEST_FILE, |text| text.replace(&hex(&Sha256::digest(&before)), &hex(&Sha256::digest(&after))));
}

fn replace_bytes(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let mut bytes = bytes.to_vec();
    let mut at = 0;
    while at + from.len() <= bytes.len() {
        if bytes[at..].starts_with(from) {
            bytes[at..at + to.len()].copy_from_slice(to);
        }
        at += 1;
    }
    bytes
}

#[track_caller]
fn refused(damage: impl FnOnce(&Path), expected: &str) {
    let dir = copy();
    damage(dir.path());
    let error = Model::load(dir.path()).expect_err("a damaged model").to_string();
    assert!(error.contains(expected), "{error}\ndoes not say: {expected}");
}

#[test]
fn the_model_of_this_repository_agrees_with_onnxruntime() {
    let model = Model::load(&kernel_regression()).unwrap();
    assert_eq!(model.to_string(), "kernel-regression 1.0.0");
    assert_eq!((model.steps(), model.memory_rows()), (8, 200));
}

#[test]
fn a_damaged_model_is_refused_with_what_was_expected_and_found() {
    refused(|dir| fs::remove_file(dir.join(MANIFEST_FILE)).unwrap(), "model.toml: No such file");
    refused(|dir| fs::remove_file(dir.join("model.onnx")).unwrap(), "model.onnx: No such file");
    refused(|dir| fs::remove_file(dir.join("golden.json")).unwrap(), "golden.json: No such file");

    let wrong_hash = |dir: &Path| fs::write(dir.join("model.onnx"), b"other").unwrap();
    refused(
        wrong_hash,
        "its SHA-256 is d9298a10d1b0735837dc4bd85dac641b0f3cef27a47e5d53a54f2f3f5b2fcffa, model.toml promises ",
    );
    refused(|dir| replace_graph(dir, |bytes| bytes[..bytes.len() / 2].to_vec()), "model.onnx: tract cannot load it");
    refused(|dir| replace_graph(dir, |_| Vec::new()), "model.onnx: ");

    let other_input = |bytes: Vec<u8>| replace_bytes(&bytes, b"memory", b"memari");
    refused(|dir| replace_graph(dir, other_input), r#"its inputs are ["mean", "memari", "scale", "window"]"#);
    let other_output = |bytes: Vec<u8>| replace_bytes(&bytes, b"score", b"scone");
    refused(|dir| replace_graph(dir, other_output), r#"its outputs are ["scone", "contribution"]"#);

    let manifest = |from: &'static str, to: &'static str| {
        move |dir: &Path| edit(dir, MANIFEST_FILE, |text| text.replace(from, to))
    };
    refused(
        manifest("steps = 8", "steps = 9"),
        r#"its input "window" has the shape [1,8,C], model.toml promises [1,9,C]"#,
    );
    refused(manifest("memory = 200", "memory = 100"), "promises [100,C]");
    refused(manifest(r#", "scale""#, ""), r#"model.toml promises ["mean", "memory", "window"]"#);
    refused(manifest(r#", "memory"]"#, "]"), "memory = 200: it is above zero if, and only if");
    refused(manifest(r#"["window", "#, "["), r#""window" is missing"#);
    refused(manifest("steps = 8", "steps = 0"), "1 to 512 are possible");
    refused(manifest("format = 1", "format = 2"), "this program reads format 1");
    refused(manifest("\"model.onnx\"", "\"../model.onnx\""), "the name of a file in the same folder");
    refused(manifest("steps = 8", "stepz = 8"), "unknown field `stepz`");
}

#[test]
fn a_graph_that_answers_differently_is_refused() {
    let golden = |from: &'static str, to: &'static str| {
        move |dir: &Path| edit(dir, "golden.json", |text| text.replace(from, to))
    };
    refused(golden(r#""score":1."#, r#""score":2."#), r#"case "one sensor off": the score is 1."#);
    refused(golden("0.913", "0.912"), r#"case "one sensor off": contribution 5 is 0.913"#);
    refused(golden(r#""mean":["#, r#""mean":[1.0,"#), "mean has 2 values, 1 are needed");
    refused(golden(r#""channels":4"#, r#""channels":400"#), "400 channels");
    refused(|dir| fs::write(dir.join("golden.json"), r#"{"cases":[]}"#).unwrap(), "it has no cases");
    refused(|dir| fs::write(dir.join("golden.json"), "[").unwrap(), "golden.json: EOF");
}

#[test]
fn a_plan_is_shared_by_machines_of_as_many_channels() {
    let model = Model::load(&kernel_regression()).unwrap();
    let plan = model.plan(8).unwrap();
    assert!(Arc::ptr_eq(&plan, &model.plan(8).unwrap()));
    assert!(!Arc::ptr_eq(&plan, &model.plan(7).unwrap()));
    assert!(matches!(model.plan(0), Err(ModelError::Channels { found: 0 })));
    assert!(matches!(model.plan(SENSORS_MAX + 1), Err(ModelError::Channels { .. })));
}

#[test]
fn the_sensor_that_moves_alone_is_named() {
    let model = Model::load(&kernel_regression()).unwrap();
    let plan = model.plan(3).unwrap();
    // Three sensors that rise together; the memory holds them from 0 to 10.
    let memory: Vec<f32> = (0..200_u8).flat_map(|row| [f32::from(row) / 20.0; 3]).collect();
    let calibration = Calibrated { mean: vec![5.0; 3], scale: vec![2.9; 3], memory, ..Calibrated::default() };
    let mut contribution = [0.0; 3];
    let calm = plan.judge(&[7.0; 24], &calibration, &mut contribution).unwrap();
    let window: Vec<f32> = (0..8).flat_map(|_| [7.0, 7.0, 1.0]).collect();
    let disturbed = plan.judge(&window, &calibration, &mut contribution).unwrap();
    assert!(calm < 0.1 && disturbed > 10.0 * calm, "{calm} {disturbed}");
    assert!(contribution[2] > 0.6, "{contribution:?}");
    assert!((contribution.iter().sum::<f32>() - 1.0).abs() < 1e-5);
}

#[test]
fn bad_windows_and_calibrations_are_errors() {
    let plan = Model::load(&kernel_regression()).unwrap().plan(1).unwrap();
    let good = Calibrated { mean: vec![0.0], scale: vec![1.0], memory: vec![0.0; 200], ..Calibrated::default() };
    let mut contribution = [0.0];
    let mut judge = |window: &[f32], calibration: &Calibrated| {
        plan.judge(window, calibration, &mut contribution).map_err(|error| error.to_string())
    };
    assert_eq!(judge(&[0.0; 8], &good), Ok(0.0));
    assert_eq!(judge(&[0.0; 7], &good), Err("window has 7 values, 8 are needed".into()));
    let bad = "holds a value that is not finite, or a scale that is not above zero";
    assert_eq!(judge(&[f32::NAN; 8], &good), Err(format!("window {bad}")));
    assert_eq!(judge(&[0.0; 8], &Calibrated { scale: vec![0.0], ..good.clone() }), Err(format!("scale {bad}")));
    let short = Calibrated { memory: vec![], ..good };
    assert_eq!(judge(&[0.0; 8], &short), Err("memory has 0 values, 200 are needed".into()));
}

#[test]
fn the_other_detectors_of_this_repository_load_and_take_any_number_of_channels() {
    for name in ["pca", "conv-autoencoder"] {
        let model = Model::load(&kernel_regression().join("..").join(name)).unwrap();
        assert_eq!(model.name(), name);
        for channels in [1, 8, 52] {
            assert_eq!(model.plan(channels).unwrap().channels(), channels);
        }
    }
}

/// A model of remaining life answers other questions: it is no detector, and says so. Its graph gives in tract what it gave elsewhere.
#[test]
fn a_model_of_remaining_life_is_no_detector_and_agrees_with_onnxruntime() {
    #[derive(serde::Deserialize)]
    struct Golden {
        cases: Vec<Case>,
    }
    #[derive(serde::Deserialize)]
    struct Case {
        window: Vec<f32>,
        history: f32,
        rul: f32,
        rul_low: f32,
        rul_high: f32,
    }
    let folder = kernel_regression().join("../turbofan-rul");
    let error = Model::load(&folder).unwrap_err().to_string();
    assert!(error.contains("kind = \"rul\": only models of the kind \"detector\" judge machines"), "{error}");

    let graph = fs::read(folder.join("model.onnx")).unwrap();
    let golden: Golden = serde_json::from_slice(&fs::read(folder.join("golden.json")).unwrap()).unwrap();
    let graph = tract_onnx::onnx().model_for_read(&mut graph.as_slice()).unwrap();
    let runnable = graph.into_optimized().unwrap().into_runnable().unwrap();
    assert!(!golden.cases.is_empty());
    for case in golden.cases {
        let window = Tensor::from_shape(&[1, 100, 14], &case.window).unwrap();
        let history = Tensor::from_shape(&[1], &[case.history]).unwrap();
        let answers = runnable.run(tvec!(window.into(), history.into())).unwrap();
        for (answer, expected) in answers.iter().zip([case.rul, case.rul_low, case.rul_high]) {
            let answer = first(answer).unwrap();
            assert!((answer - expected).abs() <= 1e-4 * expected.max(1.0), "{answer}, not {expected}");
        }
    }
}
