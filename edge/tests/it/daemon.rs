//! What devices and operators see of a running gateway.

use crate::gateway::{Gateway, wait};

#[tokio::test]
async fn what_is_acknowledged_survives_a_kill() {
    let mut gateway = Gateway::started("").await;
    let messages: Vec<(String, String)> = (0..500).map(|i| (format!("plant/p{}/t", i % 5), format!("{i}.5"))).collect();
    let messages: Vec<(&str, &[u8])> = messages.iter().map(|(t, p)| (t.as_str(), p.as_bytes())).collect();
    gateway.publish(&messages).await;
    gateway.kill();
    gateway.start().await;
    assert_eq!(gateway.metric("gemba_edge_replayed_total") as usize, messages.len());
    assert_eq!(gateway.metric("gemba_edge_machines") as usize, 5);
    // Their intervals close without another message.
    wait("the summaries", || (gateway.metric("gemba_edge_summaries_total") >= 5).then_some(())).await;
    let summaries = gateway.metric("gemba_edge_outbox_records_total");
    gateway.terminate();
    gateway.start().await;
    assert!(gateway.metric("gemba_edge_backlog_records") >= summaries, "they wait for the cloud");
    gateway.terminate();
}

#[tokio::test]
async fn bad_messages_are_counted_by_reason_and_disturb_nothing() {
    let gateway = Gateway::started("[limits]\nmachines_max = 2\nsensors_max = 2\n").await;
    let long_machine = format!("plant/{}/t", "m".repeat(400));
    let megabyte = vec![b'1'; 1 << 20];
    let table: &[(&str, &str, &[u8])] = &[
        ("not_json", "plant/p1/t", b"{\"value\": 1"),
        ("not_a_number", "plant/p1/t", b"on"),
        ("not_finite", "plant/p1/t", b"NaN"),
        ("not_finite", "plant/p1/t", b"inf"),
        ("not_utf8", "plant/p1/t", b"\xff\xfe"),
        ("no_value", "plant/p1/t", b"{\"other\": 1}"),
        ("too_old", "plant/p1/t", b"{\"value\": 1, \"time\": \"1970-01-01T00:00:00Z\"}"),
        ("in_future", "plant/p1/t", b"{\"value\": 1, \"time\": \"2100-01-01T00:00:00Z\"}"),
        ("time_unreadable", "plant/p1/t", b"{\"value\": 1, \"time\": \"now\"}"),
        ("topic_unmatched", "plant/p1/t/extra", b"1"),
        ("topic_unmatched", "elsewhere", b"1"),
        ("machine_id", &long_machine, b"1"),
        ("sensor_id", "plant/p1/a b", b"1"),
        ("too_large", "plant/p1/t", &megabyte),
    ];
    for (reason, topic, payload) in table {
        let name = format!("gemba_edge_rejected_total{{reason=\"{reason}\"}}");
        let before = gateway.metric(&name);
        gateway.publish(&[(topic, payload), ("plant/p1/t", b"1")]).await;
        assert_eq!(gateway.metric(&name), before + 1, "{reason}");
    }
    gateway.publish(&[("plant/p2/t", b"1"), ("plant/p3/t", b"1"), ("plant/p1/u", b"1"), ("plant/p1/v", b"1")]).await;
    assert_eq!(gateway.metric("gemba_edge_rejected_total{reason=\"machines_full\"}"), 1);
    assert_eq!(gateway.metric("gemba_edge_rejected_total{reason=\"sensors_full\"}"), 1);
    let good = || (gateway.metric("gemba_edge_readings_total") as usize == table.len() + 2).then_some(());
    wait("the counter of readings", good).await;
    assert!(gateway.get("healthz").is_some());
    assert!(gateway.log_text().contains("message rejected"));
}

#[tokio::test]
async fn status_tells_a_person_how_it_is() {
    let gateway = Gateway::started("").await;
    let told = std::process::Command::new(env!("CARGO_BIN_EXE_gemba-edge"))
        .args(["status", "--config"])
        .arg(gateway.path().join("edge.toml"))
        .output()
        .unwrap();
    let text = String::from_utf8(told.stdout).unwrap();
    for words in ["healthy and ready", "not enrolled: records are kept here", &gateway.mqtt.to_string()] {
        assert!(text.contains(words), "{words}\n{text}");
    }
}
