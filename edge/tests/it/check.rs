//! `gemba-edge check --live` and `gemba-edge diag`, as a person runs them beside a gateway.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    process::{Command, Output},
};

use crate::gateway::Gateway;

fn tool(gateway: &Gateway, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_gemba-edge"))
        .args(args)
        .arg("--config")
        .arg(gateway.path().join("edge.toml"))
        .output()
        .unwrap()
}

/// Each line's first word by its second.
#[track_caller]
fn check(gateway: &Gateway, expected: &[(&str, &str, &str)]) {
    let output = tool(gateway, &["check", "--live"]);
    let text = String::from_utf8(output.stdout).unwrap();
    for (verdict, what, words) in expected {
        let line = text.lines().find(|line| line.split_whitespace().nth(1) == Some(what));
        let line = line.unwrap_or_else(|| panic!("{what} is not in\n{text}"));
        assert!(line.starts_with(verdict) && line.contains(words), "{verdict} {what} {words}\n{text}");
    }
    let failed = expected.iter().any(|(verdict, ..)| *verdict == "FAILED");
    assert_eq!(output.status.code(), Some(i32::from(failed)), "{text}");
}

#[tokio::test]
async fn each_thing_that_is_amiss_has_a_line_that_says_what_to_do() {
    let mut gateway = Gateway::new(
        "[models]\ndefault = \"nowhere\"\n[[mqtt.devices]]\nname = \"d\"\npassword_file = \"d.password\"\npublish = [\"#\"]\n",
    );
    let password = gateway.path().join("d.password");
    fs::write(&password, "secret").unwrap();
    for file in [&password, &gateway.path().join("edge.toml")] {
        fs::set_permissions(file, fs::Permissions::from_mode(0o640)).unwrap();
    }
    let cloud = ("FAILED", "cloud", "gemba-cloud gateway add");
    check(
        &gateway,
        &[
            ("ok", "devices", "1 may connect"),
            ("FAILED", "model", "the built-in baseline judges in its place"),
            ("ok", "identity", "not enrolled"),
            ("ok", "secrets", "owner and group only"),
            ("ok", "disk", "MiB are free"),
            ("ok", "clock", "right"),
            ("ok", "daemon", "does not run"),
            ("ok", "ports", &gateway.mqtt.to_string()),
            cloud,
        ],
    );
    fs::set_permissions(&password, fs::Permissions::from_mode(0o644)).unwrap();
    let taken = std::net::TcpListener::bind(gateway.mqtt).unwrap();
    check(&gateway, &[("FAILED", "secrets", "d.password"), ("FAILED", "ports", "mqtt.listen"), cloud]);
    drop(taken);
    gateway.start().await;
    check(&gateway, &[("ok", "daemon", "runs"), cloud]);
}

#[tokio::test]
async fn a_broker_that_refuses_is_told_apart_from_one_that_is_away() {
    // The gate of another gateway is a broker as good as any.
    let mut broker =
        Gateway::new("[[mqtt.devices]]\nname = \"d\"\npassword_file = \"p\"\npublish = []\nsubscribe = [\"#\"]\n");
    fs::write(broker.path().join("p"), "right").unwrap();
    broker.start().await;
    let config = |url: &str| {
        format!(
            "[gateway]\ndata_dir = \"other\"\n[http]\nlisten = \"127.0.0.1:1\"\n[mqtt]\nurl = \"{url}\"\nusername = \"d\"\npassword_file = \"q\"\n"
        )
    };
    let client = Gateway::new("");
    fs::write(client.path().join("edge.toml"), config(&format!("mqtt://{}", broker.mqtt))).unwrap();
    fs::write(client.path().join("q"), "right").unwrap();
    check(&client, &[("ok", "broker", "takes us"), ("FAILED", "cloud", "")]);
    fs::write(client.path().join("q"), "wrong").unwrap();
    check(&client, &[("FAILED", "broker", "BadUserNamePassword")]);
    broker.terminate();
    check(&client, &[("FAILED", "broker", "refused")]);
}

#[tokio::test]
async fn an_archive_for_support_holds_what_the_daemon_says() {
    let gateway = Gateway::started("").await;
    gateway.publish(&[("plant/p/t", b"1")]).await;
    let file = gateway.path().join("diag.tar.gz");
    let output = tool(&gateway, &["diag", "--output", file.to_str().unwrap()]);
    assert!(output.status.success(), "{output:?}");
    let read = |name: &str| {
        let output =
            Command::new("tar").arg("-xzOf").arg(&file).arg(format!("gemba-edge-diag/{name}")).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(read("metrics.txt").contains("gemba_edge_readings_total"));
    assert!(read("status.txt").contains("not enrolled"));
    assert!(read("data.txt").contains("/outbox/"));
    assert_eq!(read("healthz.txt"), "ok\n");
}
