//! Brokers of one's own: a real Mosquitto between devices and gateway, and between gateway and clouds.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use gemba_mqtt::{
    client::Endpoint,
    tls::{Pem, Trust},
};
use jiff::Timestamp;
use rumqttc::{AsyncClient, Event, Packet, QoS};

use crate::{
    mosquitto::Broker,
    plant::{Brokers, DEADLINE, Plant, get, made_up_recording, metric, wait, wait_for_rows},
};

const READINGS: &str = "gemba_edge_readings_total";

/// Publishes readings of one sensor with times of their own, and writes down what was acknowledged.
struct Device {
    client: AsyncClient,
    events: rumqttc::EventLoop,
    next: u32,
    begun: Timestamp,
    ledger: String,
}

impl Device {
    fn new(broker: &Broker) -> Self {
        let args = broker.publisher();
        let file = |name: &str| PathBuf::from(&args[args.iter().position(|arg| arg == name).unwrap() + 1]);
        let endpoint = Endpoint {
            url: broker.url(),
            trust: Trust::Only(Pem::file(&file("--ca-file")).unwrap()),
            username: Some("press-line".into()),
            password_file: Some(file("--password-file")),
            clean_session: true,
            ..Endpoint::default()
        };
        let (client, events) = AsyncClient::new(endpoint.options("press-line", 1 << 16).unwrap(), 4_096);
        #[expect(clippy::disallowed_methods, reason = "a device has a clock")]
        let begun = Timestamp::now() - Duration::from_secs(30);
        Self { client, events, next: 0, begun, ledger: String::new() }
    }

    /// As many readings, a hundredth of a second apart; answers when the broker has them all.
    async fn publish(&mut self, count: u32) {
        for _ in 0..count {
            let at = self.begun + Duration::from_millis(u64::from(self.next) * 10);
            let value = 4.0 + f64::from(self.next) / 1_000.0;
            let payload = format!("{{\"time\":\"{at}\",\"value\":{value}}}");
            self.client.try_publish("plant/press-1/pressure", QoS::AtLeastOnce, false, payload).unwrap();
            writeln!(self.ledger, "press-1,pressure,{},{value}", at.as_microsecond()).unwrap();
            self.next += 1;
        }
        let mut missing = count;
        let acknowledged = async {
            while missing > 0 {
                if let Event::Incoming(Packet::PubAck(_)) = self.events.poll().await.unwrap() {
                    missing -= 1;
                }
            }
        };
        tokio::time::timeout(DEADLINE, acknowledged).await.expect("the broker acknowledges");
    }

    fn ledger(&self, directory: &Path) -> PathBuf {
        let path = directory.join("press-1.ledger");
        fs::write(&path, &self.ledger).unwrap();
        path
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_a_broker_count_once_through_kills_of_the_gateway_and_of_the_broker() {
    let Some(mut broker) = Broker::start().await else { return };
    let mut plant = Plant::start_with(Brokers { devices: Some(&broker), gateways: None }).await;
    let database = plant.database().await;
    let mut device = Device::new(&broker);
    // The subscription stands when something arrives: a broker keeps nothing for those it does not know.
    wait("the gateway at the broker", || plant.edge_metric("gemba_edge_broker_connected") > 0.0).await;

    // The gateway is killed while messages are under way to it, which then come again.
    let enough = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&enough);
    let publishing = tokio::spawn(async move {
        while !told.load(Ordering::Relaxed) {
            device.publish(20).await;
            // As fast as a device is.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        device
    });
    for _ in 0..3 {
        wait("some readings", || plant.edge_metric(READINGS) >= 20.0).await;
        plant.restart_edge().await;
    }
    enough.store(true, Ordering::Relaxed);
    let mut device = publishing.await.unwrap();

    // The broker is killed with messages for a gateway that is away.
    plant.edge.kill();
    device.publish(500).await;
    broker.save().await;
    broker.kill();
    broker.restart().await;
    plant.restart_edge().await;
    let Device { next, begun, ledger, .. } = device;
    let mut device = Device { next, begun, ledger, ..Device::new(&broker) };
    device.publish(500).await;
    let ledger = device.ledger(plant.directory.path());
    plant.all_stored_once(&database, &[&ledger]).await;
    let Plant { edge, cloud, .. } = plant;
    edge.terminate();
    cloud.terminate();
}

#[tokio::test(flavor = "multi_thread")]
async fn two_clouds_at_one_broker_and_one_database_store_everything_once() {
    let Some(broker) = Broker::start().await else { return };
    let mut plant = Plant::start_with(Brokers { devices: None, gateways: Some(&broker) }).await;
    let database = plant.database().await;
    let (mut replica, replica_metrics) = plant.replica(&broker).await;
    let recording = plant.directory.path().join("made-up.csv");
    made_up_recording(&recording, 6_000);
    let replays = ["pump-1", "pump-2"].map(|machine| plant.replay(&recording, machine, &[]));

    wait_for_rows(&database, 20).await;
    let stored = |url: &str| metric(&get(url).unwrap_or_default(), "gemba_cloud_records_total");
    wait("the second cloud to store its share", || stored(&replica_metrics) > 0.0).await;
    // The rest is left to the first, which is then killed too.
    replica.kill();
    wait_for_rows(&database, 40).await;
    plant.restart_cloud();

    let mut ledgers = Vec::new();
    for (process, ledger) in replays {
        process.succeeded().await;
        ledgers.push(ledger);
    }
    let ledgers: Vec<&Path> = ledgers.iter().map(PathBuf::as_path).collect();
    plant.all_stored_once(&database, &ledgers).await;
    let Plant { edge, cloud, .. } = plant;
    edge.terminate();
    cloud.terminate();
}
