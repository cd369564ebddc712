//! The embedded broker by itself.

use gemba_mqtt::broker::{Broker, BrokerSettings};
use rumqttc::MqttOptions;

use crate::plant::{Client, Plant};

#[tokio::test]
async fn the_probe_goes_through_listener_and_router() {
    let plant = Plant::start().await;
    for _ in 0..3 {
        plant.broker.probe().await.unwrap();
    }
}

#[tokio::test]
async fn several_brokers_find_ports() {
    let brokers: Vec<_> = (0..4).map(|_| Broker::start(BrokerSettings::default()).unwrap()).collect();
    for broker in &brokers {
        broker.probe().await.unwrap();
    }
}

/// Nobody but the gate knows the secret, so nobody on the machine gets around the grants.
#[tokio::test]
async fn a_stranger_is_not_let_in() {
    let plant = Plant::start().await;
    let port = broker_port(&plant);
    let mut stranger = Client::new(MqttOptions::new("x", "127.0.0.1", port));
    stranger.lost().await;
    let mut guesser = MqttOptions::new("x", "127.0.0.1", port);
    guesser.set_credentials("admin", "admin");
    Client::new(guesser).lost().await;
}

fn broker_port(plant: &Plant) -> u16 {
    plant.broker.address().port()
}
