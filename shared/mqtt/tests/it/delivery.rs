//! A publish is answered when, and only when, its delivery was acknowledged.

use rumqttc::QoS;

use crate::plant::{A_WHILE, Client, Plant, Raw};

#[tokio::test]
async fn qos_1_is_answered_after_acknowledge() {
    let mut plant = Plant::start().await;
    let mut device = plant.connect("d", "pump");
    device.connected().await;
    device.mqtt.publish("plant/pump/t", QoS::AtLeastOnce, false, "21.5").await.unwrap();

    let delivery = plant.delivery().await;
    assert_eq!(&*delivery.publisher, "pump");
    assert_eq!(delivery.messages.len(), 1);
    assert_eq!(&delivery.messages[0].topic[..], b"plant/pump/t");
    assert_eq!(&delivery.messages[0].payload[..], b"21.5");
    device.silent().await;
    delivery.acknowledge();
    device.acknowledged().await;
}

#[tokio::test]
async fn qos_2_is_taken_once() {
    let mut plant = Plant::start().await;
    let mut device = plant.connect("d", "pump");
    device.connected().await;
    device.mqtt.publish("plant/pump/t", QoS::ExactlyOnce, false, "1").await.unwrap();
    let delivery = plant.delivery().await;
    device.silent().await;
    delivery.acknowledge();
    device.expect(|packet| matches!(packet, rumqttc::Packet::PubComp(_)).then_some(())).await;
    assert!(tokio::time::timeout(A_WHILE, plant.deliveries.recv()).await.is_err());
}

#[tokio::test]
async fn a_lost_delivery_ends_the_connection() {
    let mut plant = Plant::start().await;
    let mut device = plant.connect("d", "pump");
    device.connected().await;
    device.mqtt.publish("plant/pump/t", QoS::AtLeastOnce, false, "1").await.unwrap();
    drop(plant.delivery().await);
    device.lost().await;
    plant.until("delivery_lost", 1).await;
}

#[tokio::test]
async fn what_is_not_granted_is_answered_and_not_delivered() {
    let mut plant = Plant::start().await;
    let mut device = plant.connect("d", "pump");
    device.connected().await;
    device.mqtt.publish("plant/other/t", QoS::AtLeastOnce, false, "1").await.unwrap();
    device.acknowledged().await;
    device.mqtt.publish("plant/pump/t", QoS::AtLeastOnce, false, "2").await.unwrap();
    let delivery = plant.delivery().await;
    assert_eq!(&delivery.messages[0].payload[..], b"2");
    delivery.acknowledge();
    device.acknowledged().await;
    assert_eq!(plant.count("not_granted"), 1);
}

#[tokio::test]
async fn a_session_knows_a_resend_after_the_connection_broke() {
    let mut plant = Plant::start().await;
    let connect = b"\x10\x1b\x00\x04MQTT\x04\xc0\x00\x1e\x00\x01d\x00\x04pump\x00\x06secret";
    let mut first = Raw::connect(&plant, connect, b"\x20\x02\x00\x00").await;
    first.send(b"\x32\x10\x00\x0cplant/pump/t\x00\x01").await;
    let delivery = plant.delivery().await;
    drop(first);

    // The old delivery is still under way when the resend comes, and is what answers it.
    let mut second = Raw::connect(&plant, connect, b"\x20\x02\x01\x00").await;
    second.send(b"\x3a\x10\x00\x0cplant/pump/t\x00\x01\xc0\x00").await;
    second.expect(b"\xd0\x00").await;
    delivery.acknowledge();
    second.expect(b"\x40\x02\x00\x01").await;
    assert_eq!((plant.count("messages"), plant.count("duplicates")), (1, 1));

    // A lost delivery is not remembered: its resend is taken.
    second.send(b"\x32\x10\x00\x0cplant/pump/t\x00\x02").await;
    drop(plant.delivery().await);
    second.ended().await;
    let mut third = Raw::connect(&plant, connect, b"\x20\x02\x01\x00").await;
    third.send(b"\x3a\x10\x00\x0cplant/pump/t\x00\x02").await;
    plant.delivery().await.acknowledge();
    third.expect(b"\x40\x02\x00\x02").await;
}

#[tokio::test]
async fn a_will_is_published_when_a_client_vanishes_and_not_when_it_leaves() {
    let mut plant = Plant::start().await;
    let with_will = |plant: &Plant| {
        let mut options = plant.options("d", "pump");
        options.set_last_will(rumqttc::LastWill::new("plant/pump/state", "gone", QoS::AtLeastOnce, false));
        options
    };
    let mut device = Client::new(with_will(&plant));
    device.connected().await;
    device.mqtt.disconnect().await.unwrap();
    device.lost().await;
    plant.until("connections", 0).await;

    let mut device = Client::new(with_will(&plant));
    device.connected().await;
    device.vanish();
    let delivery = plant.delivery().await;
    assert_eq!(&delivery.messages[0].topic[..], b"plant/pump/state");
    assert_eq!(&delivery.messages[0].payload[..], b"gone");
    assert_eq!(plant.count("messages"), 1);
}
