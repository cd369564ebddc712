//! New configurations for a gateway that runs: what it takes, what it refuses, and who notices.

use std::{
    fs,
    net::SocketAddr,
    process::{Command, Output},
    time::Duration,
};

use gemba_edge::identity;
use gemba_mqtt::tls::{Pem, Trust, client_config};
use gemba_shared::{enrolment, ids::GatewayId};
use rumqttc::{AsyncClient, Event, EventLoop, MqttOptions, Packet, QoS, TlsConfiguration, Transport};
use tokio::time::timeout;

use crate::{
    certificates::Authority,
    gateway::{Gateway, free_address, wait},
};

const DEADLINE: Duration = Duration::from_secs(30);
const ACCEPTED: &str = "gemba_edge_gate_connections_accepted_total";

/// A device, connected once: an error of its connection fails the test.
struct Device {
    client: AsyncClient,
    events: EventLoop,
}

impl Device {
    async fn connect(address: SocketAddr, login: Option<(&str, &str)>, tls: Option<&Trust>) -> Result<Self, String> {
        let name = login.map_or("device", |(name, _)| name);
        let mut options = MqttOptions::new(name, address.ip().to_string(), address.port());
        if let Some((name, password)) = login {
            options.set_credentials(name, password);
        }
        if let Some(trust) = tls {
            let config = client_config(trust, None).unwrap();
            options.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(config)));
        }
        let (client, mut events) = AsyncClient::new(options, 16);
        match timeout(DEADLINE, events.poll()).await.expect("an answer in time") {
            Ok(Event::Incoming(Packet::ConnAck(_))) => Ok(Self { client, events }),
            other => Err(format!("{other:?}")),
        }
    }

    async fn publish(&mut self, topic: &str, payload: &str) -> Result<(), String> {
        self.client.publish(topic, QoS::AtLeastOnce, false, payload).await.unwrap();
        let answered = async {
            loop {
                match self.events.poll().await {
                    Ok(Event::Incoming(Packet::PubAck(_))) => return Ok(()),
                    Ok(_) => {}
                    Err(error) => return Err(error.to_string()),
                }
            }
        };
        timeout(DEADLINE, answered).await.expect("an answer in time")
    }
}

/// `gemba-edge reload` with this configuration: beyond it what the gateway's own file says stays.
fn reload(gateway: &Gateway, more: &str) -> Output {
    let (mqtt, http) = (gateway.mqtt, gateway.http);
    let config = format!(
        "[gateway]\ndata_dir = \"data\"\nclock = \"trusted\"\n[http]\nlisten = \"{http}\"\n[mqtt]\nlisten = \"{mqtt}\"\n{more}"
    );
    fs::write(gateway.path().join("edge.toml"), config).unwrap();
    Command::new(env!("CARGO_BIN_EXE_gemba-edge"))
        .args(["reload", "--config"])
        .arg(gateway.path().join("edge.toml"))
        .output()
        .unwrap()
}

#[track_caller]
fn taken(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[track_caller]
fn refused(output: &Output) -> String {
    assert!(!output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn report(gateway: &Gateway) -> serde_json::Value {
    serde_json::from_str(&gateway.get("status").unwrap()).unwrap()
}

#[tokio::test]
async fn sources_machines_and_limits_change_under_a_connected_device() {
    let gateway = Gateway::started("[defaults]\ninterval = \"60s\"\nhold = \"2s\"\n").await;
    let mut device = Device::connect(gateway.mqtt, None, None).await.unwrap();
    device.publish("plant/p1/t", "1").await.unwrap();
    device.publish("other/p2/t", "1").await.unwrap();
    assert_eq!(gateway.metric("gemba_edge_rejected_total{reason=\"topic_unmatched\"}"), 1);

    let more = "[defaults]\ninterval = \"2s\"\nhold = \"2s\"\n[[sources]]\ntopic = \"other/{machine}/{sensor}\"\n[limits]\nmachines_max = 2\n[[machines]]\nid = \"p1\"\nunits = { t = \"Cel\" }\n[outbox]\nbytes_max = \"64MiB\"\n";
    assert_eq!(taken(&reload(&gateway, more)), "the configuration is in use");
    device.publish("other/p2/t", "1").await.unwrap();
    device.publish("plant/p1/t", "1").await.unwrap();
    device.publish("other/p3/t", "1").await.unwrap();
    wait("readings", || (gateway.metric("gemba_edge_readings_total") == 2).then_some(())).await;
    assert_eq!(gateway.metric("gemba_edge_rejected_total{reason=\"topic_unmatched\"}"), 2, "counters go on");
    assert_eq!(gateway.metric("gemba_edge_rejected_total{reason=\"machines_full\"}"), 1);
    // The first reading came in an interval of 60 s: it is summed up all the same, and soon.
    wait("both summaries", || (gateway.metric("gemba_edge_summaries_total") >= 2).then_some(())).await;
    assert_eq!(gateway.metric(ACCEPTED), 1, "nobody connected again");
    assert_eq!(gateway.metric("gemba_edge_late_total"), 0);
}

#[tokio::test]
async fn only_a_device_that_changed_connects_again() {
    let device = |name: &str, password: &str| {
        format!("[[mqtt.devices]]\nname = \"{name}\"\npassword_file = \"{password}\"\npublish = [\"plant/#\"]\n")
    };
    let mut gateway = Gateway::new(&[device("one", "1"), device("two", "2")].concat());
    for name in ["1", "2", "3"] {
        fs::write(gateway.path().join(name), format!("secret {name}\n")).unwrap();
    }
    gateway.start().await;
    let mut one = Device::connect(gateway.mqtt, Some(("one", "secret 1")), None).await.unwrap();
    let mut two = Device::connect(gateway.mqtt, Some(("two", "secret 2")), None).await.unwrap();
    let three = Some(("three", "secret 3"));
    assert!(Device::connect(gateway.mqtt, three, None).await.is_err());

    // The password is in a file: the configuration's own text is the same.
    fs::write(gateway.path().join("2"), "another secret\n").unwrap();
    taken(&reload(&gateway, &[device("one", "1"), device("two", "2"), device("three", "3")].concat()));
    one.publish("plant/p/t", "1").await.unwrap();
    assert!(two.publish("plant/p/t", "1").await.is_err(), "its password is another one");
    assert!(Device::connect(gateway.mqtt, Some(("two", "secret 2")), None).await.is_err());
    Device::connect(gateway.mqtt, Some(("two", "another secret")), None).await.unwrap();
    let mut three = Device::connect(gateway.mqtt, three, None).await.unwrap();
    three.publish("plant/p/t", "1").await.unwrap();
}

#[tokio::test]
async fn what_is_of_no_use_is_refused_and_changes_nothing() {
    let gateway = Gateway::started("").await;
    let mut device = Device::connect(gateway.mqtt, None, None).await.unwrap();
    for (more, why) in [
        ("[defaults]\nstep = \"1 sec\"\n", "defaults.step"),
        ("[[mqtt.devices]]\nname = \"d\"\npassword_file = \"nowhere\"\npublish = [\"#\"]\n", "nowhere"),
    ] {
        let told = refused(&reload(&gateway, more));
        assert!(told.contains(why), "{told}");
        assert_eq!(report(&gateway)["reload"]["count"], 0, "the daemon was not even asked");
    }
    // The daemon checks by itself: whoever signals it need not have.
    refused(&reload(&gateway, "[models]\ndefault = \"nowhere\"\n"));
    let state = report(&gateway)["reload"].clone();
    assert_eq!(state["count"], 1);
    assert!(state["refused"].as_str().unwrap().contains("nowhere"), "{state}");
    assert!(gateway.log_text().contains("configuration refused: the one before stays in use"));
    device.publish("plant/p/t", "1").await.unwrap();
    assert_eq!(gateway.metric(ACCEPTED), 1);
    assert_eq!(taken(&reload(&gateway, "")), "the configuration is in use");
    assert!(report(&gateway)["reload"]["refused"].is_null());
}

#[tokio::test]
async fn a_listener_waits_for_a_restart_and_the_rest_does_not() {
    let mut gateway = Gateway::started("").await;
    let (before, after) = (gateway.mqtt, free_address());
    gateway.mqtt = after;
    let told = taken(&reload(&gateway, "[[sources]]\ntopic = \"other/{machine}/{sensor}\"\n"));
    assert_eq!(told, "the configuration is in use, but for what needs a restart: mqtt.listen");
    let status = Command::new(env!("CARGO_BIN_EXE_gemba-edge"))
        .args(["status", "--config"])
        .arg(gateway.path().join("edge.toml"))
        .output()
        .unwrap();
    let status = String::from_utf8(status.stdout).unwrap();
    for words in
        ["restart needed mqtt.listen", "reload         taken", "backlog        nothing waits", "dropped        nothing"]
    {
        assert!(status.contains(words), "{words}\n{status}");
    }
    let mut device = Device::connect(before, None, None).await.unwrap();
    device.publish("other/p/t", "1").await.unwrap();
    wait("the reading", || (gateway.metric("gemba_edge_readings_total") == 1).then_some(())).await;
    gateway.terminate();
    gateway.start().await;
    Device::connect(after, None, None).await.unwrap();
    assert_eq!(gateway.metric("gemba_edge_restart_needed"), 0);
}

#[tokio::test]
async fn a_certificate_is_renewed_and_an_enrolment_taken() {
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let tls = free_address();
    let more = format!(
        "[mqtt.tls]\nlisten = \"{tls}\"\ncertificate = \"crt\"\nkey = \"key\"\n[[mqtt.devices]]\nname = \"d\"\npassword_file = \"p\"\npublish = [\"plant/#\"]\n"
    );
    let mut gateway = Gateway::new(&more);
    let put = |gateway: &Gateway, authority: &Authority| {
        let server = authority.certify("gateway", "127.0.0.1");
        fs::write(gateway.path().join("crt"), server.pem).unwrap();
        fs::write(gateway.path().join("key"), server.key_pem).unwrap();
        Trust::Only(Pem::text(&authority.pem, "test"))
    };
    fs::write(gateway.path().join("p"), "secret").unwrap();
    let trust = put(&gateway, &old);
    gateway.start().await;
    let login = Some(("d", "secret"));
    let mut device = Device::connect(tls, login, Some(&trust)).await.unwrap();

    let trust_new = put(&gateway, &new);
    let key = identity::new_key().unwrap();
    let cloud = identity::new_key().unwrap().verifying_key();
    let url = format!("mqtt://{}", free_address());
    let mqtt = enrolment::Mqtt { url, username: "u".into(), password: "p".into(), ca_pem: None };
    let gateway_id = GatewayId::from_bytes([7; 16]);
    let enrolled = enrolment::Enrolled { gateway: gateway_id, cloud_key: cloud, mqtt };
    identity::store(&gateway.data(), &key, enrolled).unwrap();
    assert!(gateway.get("status").unwrap().contains("not enrolled"));
    taken(&reload(&gateway, &more));
    device.publish("plant/p/t", "1").await.expect("who is connected stays connected");
    assert!(Device::connect(tls, login, Some(&trust)).await.is_err());
    Device::connect(tls, login, Some(&trust_new)).await.unwrap();
    wait("the uplink", || gateway.get("status").filter(|status| status.contains(&gateway_id.to_string()))).await;
}
