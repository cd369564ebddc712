//! Many clients, and an ingest that is slow.

use gemba_mqtt::gate::Limits;
use rumqttc::QoS;
use tokio::task::JoinSet;

use crate::plant::{A_WHILE, Plant, Raw};

const CONNECT: &[u8] = b"\x10\x1b\x00\x04MQTT\x04\xc2\x00\x1e\x00\x01d\x00\x04pump\x00\x06secret";
const ACCEPTED: &[u8] = b"\x20\x02\x00\x00";

#[tokio::test]
async fn a_slow_ingest_stops_the_reading() {
    let limits = Limits { unacknowledged_max: 1_000_000, ..Limits::default() };
    let mut plant = Plant::with(limits, None, 4).await;
    let mut device = Raw::connect(&plant, CONNECT, ACCEPTED).await;
    // QoS 0: only the queue of deliveries holds it back, and the socket's buffers.
    let message = [&b"\x30\xf6\x07\x00\x0cplant/pump/t"[..], &[b'x'; 1_000]].concat();
    let taken = device.fill(&message).await;
    let held = plant.count("messages") * 1_016;
    assert!(held < 600_000, "the gate holds {held} of {taken} bytes");
    // When the ingest goes on, all of it arrives.
    let expected = taken as u64 / message.len() as u64;
    while plant.count("messages") < expected {
        plant.delivery().await.acknowledge();
    }
}

#[tokio::test]
async fn unacknowledged_messages_are_bounded() {
    let limits = Limits { unacknowledged_max: 100, ..Limits::default() };
    let mut plant = Plant::with(limits, None, 1_000).await;
    let mut device = Raw::connect(&plant, CONNECT, ACCEPTED).await;
    let messages: Vec<u8> =
        (1..=500_u16).flat_map(|id| [&b"\x32\x10\x00\x0cplant/pump/t"[..], &id.to_be_bytes()].concat()).collect();
    device.send(&messages).await;
    plant.until("messages", 100).await;
    tokio::time::sleep(A_WHILE).await;
    assert_eq!(plant.count("messages"), 100);
    plant.acknowledge_all();
    plant.until("messages", 500).await;
    for id in 1..=500_u16 {
        let [high, low] = id.to_be_bytes();
        device.expect(&[0x40, 2, high, low]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_clients_come_back_at_once() {
    let mut plant = Plant::start().await;
    plant.acknowledge_all();
    for round in 1..=2 {
        let mut clients = JoinSet::new();
        for i in 0..200 {
            let mut client = plant.connect(&format!("d{i}"), "pump");
            clients.spawn(async move {
                client.connected().await;
                // Every fourth listens as well.
                if i % 4 == 0 {
                    client.mqtt.subscribe("cmd/pump/#", QoS::AtLeastOnce).await.unwrap();
                    client.subscribed().await;
                }
                client.mqtt.publish("plant/pump/t", QoS::AtLeastOnce, false, "1").await.unwrap();
                client.acknowledged().await;
                (client, i % 4 == 0)
            });
        }
        let clients = clients.join_all().await;
        assert_eq!((plant.count("messages"), plant.count("connections")), (round * 200, 200));
        if round == 2 {
            plant.broker.publisher().publish("cmd/pump/stop", "all").await.unwrap();
            for (mut client, _) in clients.into_iter().filter(|(_, listens)| *listens) {
                assert_eq!(&client.message().await.payload[..], b"all");
            }
        } else {
            for (client, _) in clients {
                client.vanish();
            }
            plant.until("connections", 0).await;
        }
    }
    assert_eq!((plant.count("broker_lost"), plant.count("protocol_error")), (0, 0));
}
