//! The subscriber, with the gate's broker and with a real Mosquitto.

use std::{
    net::TcpListener,
    process::{Child, Command, Stdio},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use gemba_mqtt::{
    client::{ClientCounters, Endpoint, subscribe},
    delivery::Delivery,
};
use rumqttc::{MqttOptions, QoS};
use tokio::{sync::mpsc, time::timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::plant::{A_WHILE, Client, Plant, SOON};

struct Ingest {
    deliveries: mpsc::Receiver<Delivery>,
    counters: Arc<ClientCounters>,
    _stop: DropGuard,
}

impl Ingest {
    async fn start(options: MqttOptions, filter: &str) -> Self {
        Self::with_room(options, filter, 16).await
    }

    async fn with_room(options: MqttOptions, filter: &str, room: usize) -> Self {
        let (sender, deliveries) = mpsc::channel(room);
        let counters = Arc::<ClientCounters>::default();
        let cancel = CancellationToken::new();
        tokio::spawn(subscribe(options, vec![filter.into()], sender, counters.clone(), cancel.clone()));
        let ingest = Self { deliveries, counters, _stop: cancel.drop_guard() };
        ingest.connections(1).await;
        ingest
    }

    async fn connections(&self, count: u64) {
        let reached = async {
            while self.counters.connections.load(Ordering::Relaxed) < count {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(SOON, reached).await.expect("a connection in time");
    }

    async fn next(&mut self) -> Delivery {
        timeout(SOON, self.deliveries.recv()).await.expect("a delivery in time").unwrap()
    }

    /// The payloads of this many messages, acknowledged.
    async fn take(&mut self, count: usize) -> Vec<String> {
        let mut payloads = Vec::new();
        while payloads.len() < count {
            let delivery = self.next().await;
            let texts = delivery.messages.iter().map(|message| String::from_utf8(message.payload.to_vec()).unwrap());
            payloads.extend(texts);
            delivery.acknowledge();
        }
        payloads
    }
}

#[tokio::test]
async fn what_is_not_acknowledged_comes_again_from_rumqttd() {
    let mut plant = Plant::start().await;
    plant.acknowledge_all();
    let mut options = plant.options("ingest", "hmi");
    options.set_clean_session(false);
    let mut ingest = Ingest::start(options, "plant/#").await;
    let mut device = plant.connect("d", "pump");
    device.connected().await;
    // The subscription is asked for behind the CONNACK.
    device.mqtt.publish("plant/pump/ready", QoS::AtLeastOnce, true, "ready").await.unwrap();
    assert_eq!(ingest.take(1).await, ["ready"]);

    for i in 0..10 {
        device.mqtt.publish("plant/pump/t", QoS::AtLeastOnce, false, i.to_string()).await.unwrap();
    }
    let first = ingest.next().await;
    assert_eq!(&first.messages[0].payload[..], b"0");
    // Lost in the ingest: the connection is given up, and a new one brings it again.
    drop(first);
    ingest.connections(2).await;
    let mut seen = Vec::new();
    while !seen.contains(&"9".to_owned()) || !seen.contains(&"0".to_owned()) {
        seen.extend(ingest.take(1).await);
    }
}

/// Mosquitto on a free port; `None` where it is not installed.
struct Mosquitto(Child, u16, #[expect(dead_code, reason = "it is there to be dropped")] tempfile::TempDir);

impl Mosquitto {
    fn start(port: Option<u16>) -> Option<Self> {
        let port = port.unwrap_or_else(|| TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port());
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("mosquitto.conf");
        std::fs::write(&config, format!("listener {port} 127.0.0.1\nallow_anonymous true\n")).unwrap();
        let started = ["mosquitto", "/usr/sbin/mosquitto"].into_iter().find_map(|program| {
            let mut command = Command::new(program);
            command.arg("-c").arg(&config).stdout(Stdio::null()).stderr(Stdio::null());
            command.spawn().ok()
        });
        if started.is_none() {
            eprintln!("skipped: mosquitto is not installed (apt install mosquitto)");
        }
        Some(Self(started?, port, dir))
    }

    fn options(&self, id: &str) -> MqttOptions {
        let endpoint = Endpoint { url: format!("mqtt://127.0.0.1:{}", self.1), ..Endpoint::default() };
        endpoint.options(id, 64 * 1_024).unwrap()
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

async fn device(mosquitto: &Mosquitto) -> Client {
    let mut options = mosquitto.options("device");
    options.set_clean_session(true);
    let mut client = Client::new(options);
    client.connected().await;
    client
}

/// Mosquitto takes a moment until it listens.
async fn listening(mosquitto: &Mosquitto) {
    let connected = async {
        while tokio::net::TcpStream::connect(("127.0.0.1", mosquitto.1)).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(SOON, connected).await.expect("mosquitto listens in time");
}

#[tokio::test]
async fn mosquitto_is_answered_after_acknowledge_and_sends_again_otherwise() {
    let Some(mosquitto) = Mosquitto::start(None) else { return };
    listening(&mosquitto).await;
    let mut ingest = Ingest::start(mosquitto.options("ingest"), "plant/#").await;
    let device = device(&mosquitto).await;
    device.mqtt.publish("plant/pump/ready", QoS::AtLeastOnce, true, "ready").await.unwrap();
    assert_eq!(ingest.take(1).await, ["ready"]);
    for i in 0..5 {
        device.mqtt.publish("plant/pump/t", QoS::AtLeastOnce, false, i.to_string()).await.unwrap();
    }
    let mut held = Vec::new();
    let mut count = 0;
    while count < 5 {
        let delivery = ingest.next().await;
        count += delivery.messages.len();
        held.push(delivery);
    }
    assert!(timeout(A_WHILE, ingest.deliveries.recv()).await.is_err());
    held.clear();
    ingest.connections(2).await;
    assert_eq!(ingest.take(5).await, ["0", "1", "2", "3", "4"]);
    assert!(timeout(A_WHILE, ingest.deliveries.recv()).await.is_err());
}

#[tokio::test]
async fn a_broker_that_lost_the_session_is_subscribed_to_again() {
    let Some(mosquitto) = Mosquitto::start(None) else { return };
    listening(&mosquitto).await;
    let mut ingest = Ingest::start(mosquitto.options("ingest"), "$share/gemba/plant/#").await;
    let port = mosquitto.1;
    drop(mosquitto);
    let Some(mosquitto) = Mosquitto::start(Some(port)) else { return };
    listening(&mosquitto).await;
    ingest.connections(2).await;
    let device = device(&mosquitto).await;
    let published = async {
        loop {
            device.mqtt.publish("plant/pump/t", QoS::AtLeastOnce, false, "x").await.unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        payloads = ingest.take(1) => assert_eq!(payloads[0], "x"),
        () = published => {}
    }
}

#[tokio::test]
async fn a_broker_hears_from_us_while_nobody_takes_deliveries() {
    let Some(mosquitto) = Mosquitto::start(None) else { return };
    listening(&mosquitto).await;
    let mut options = mosquitto.options("ingest");
    options.set_keep_alive(Duration::from_secs(2));
    let mut ingest = Ingest::with_room(options, "plant/#", 1).await;
    let device = device(&mosquitto).await;
    let until = async |what: &dyn Fn(&ClientCounters) -> bool| {
        let reached = async {
            while !what(&ingest.counters) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(SOON, reached).await.expect("it happens in time");
    };
    until(&|counters| counters.connected.load(Ordering::Relaxed)).await;
    for i in 0..10 {
        device.mqtt.publish("plant/pump/t", QoS::AtLeastOnce, false, i.to_string()).await.unwrap();
        until(&|counters| counters.messages.load(Ordering::Relaxed) > i).await;
    }
    // The broker's patience is one and a half times the keep-alive.
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(ingest.counters.connections.load(Ordering::Relaxed), 1);
    let expected: Vec<String> = (0..10).map(|i: u64| i.to_string()).collect();
    assert_eq!(ingest.take(10).await, expected);
}
