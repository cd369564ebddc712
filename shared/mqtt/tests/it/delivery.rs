//! A publish is answered when, and only when, its delivery was acknowledged.

use rumqttc::QoS;

use crate::plant::{A_WHILE, Plant};

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
