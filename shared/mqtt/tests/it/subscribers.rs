//! What the broker is for: subscriptions, retained messages, sessions.

use rumqttc::{QoS, SubscribeFilter, SubscribeReasonCode};

use crate::plant::{Client, Plant};

#[tokio::test]
async fn a_subscriber_gets_what_a_device_publishes() {
    let mut plant = Plant::start().await;
    plant.acknowledge_all();
    let mut screen = plant.connect("screen", "hmi");
    screen.connected().await;
    screen.mqtt.subscribe("plant/+/t", QoS::AtLeastOnce).await.unwrap();
    screen.subscribed().await;
    let mut device = plant.connect("d", "pump");
    device.connected().await;
    for i in 0..300 {
        device.mqtt.publish("plant/pump/t", QoS::AtLeastOnce, false, i.to_string()).await.unwrap();
        device.mqtt.publish("plant/pump/u", QoS::AtMostOnce, false, "unheard").await.unwrap();
    }
    for i in 0..300 {
        let message = screen.message().await;
        assert_eq!((message.topic.as_str(), &message.payload[..]), ("plant/pump/t", i.to_string().as_bytes()));
        assert_eq!(message.qos, QoS::AtLeastOnce);
    }
    plant.until("forwarded", 300).await;
    screen.mqtt.unsubscribe("plant/+/t").await.unwrap();
    screen.expect(|packet| matches!(packet, rumqttc::Packet::UnsubAck(_)).then_some(())).await;
    device.mqtt.publish("plant/pump/t", QoS::AtLeastOnce, false, "late").await.unwrap();
    screen.silent().await;
    assert_eq!(plant.count("forwarded"), 300);
}

#[tokio::test]
async fn a_subscription_beyond_the_grant_is_refused_alone() {
    let plant = Plant::start().await;
    let mut screen = plant.connect("screen", "hmi");
    screen.connected().await;
    let filters = ["plant/#", "cmd/pump/#", "#", "$share/g/plant/#"];
    let filters = filters.map(|filter| SubscribeFilter::new(filter.into(), QoS::ExactlyOnce));
    screen.mqtt.subscribe_many(filters).await.unwrap();
    let refused = SubscribeReasonCode::Failure;
    let granted = SubscribeReasonCode::Success(QoS::AtLeastOnce);
    assert_eq!(screen.subscribed().await, [granted, refused, refused, refused]);
    assert_eq!(plant.count("subscribe_refused"), 3);
}

#[tokio::test]
async fn a_retained_message_waits_for_subscribers() {
    let mut plant = Plant::start().await;
    plant.acknowledge_all();
    let mut device = plant.connect("d", "pump");
    device.connected().await;
    device.mqtt.publish("plant/pump/name", QoS::AtLeastOnce, true, "Pump 3").await.unwrap();
    device.acknowledged().await;
    plant.until("forwarded", 1).await;
    let mut screen = plant.connect("screen", "hmi");
    screen.connected().await;
    screen.mqtt.subscribe("plant/#", QoS::AtLeastOnce).await.unwrap();
    let message = screen.message().await;
    assert_eq!((&message.payload[..], message.retain), (&b"Pump 3"[..], true));
}

#[tokio::test]
async fn a_session_keeps_messages_for_an_absent_subscriber() {
    let mut plant = Plant::start().await;
    plant.acknowledge_all();
    let options = |plant: &Plant| {
        let mut options = plant.options("screen", "hmi");
        options.set_clean_session(false);
        options
    };
    let mut screen = Client::new(options(&plant));
    assert!(!screen.connected().await);
    screen.mqtt.subscribe("plant/#", QoS::AtLeastOnce).await.unwrap();
    screen.subscribed().await;
    screen.vanish();
    plant.until("connections", 0).await;

    let mut device = plant.connect("d", "pump");
    device.connected().await;
    for i in 0..50 {
        device.mqtt.publish("plant/pump/t", QoS::AtLeastOnce, false, i.to_string()).await.unwrap();
    }
    plant.until("forwarded", 50).await;
    let mut screen = Client::new(options(&plant));
    assert!(screen.connected().await);
    for i in 0..50 {
        assert_eq!(&screen.message().await.payload[..], i.to_string().as_bytes());
    }
    screen.vanish();
    plant.until("connections", 1).await;

    // A clean session forgets it, and the next one begins with nothing.
    let mut clean = plant.connect("screen", "hmi");
    assert!(!clean.connected().await);
    clean.mqtt.disconnect().await.unwrap();
    plant.until("connections", 1).await;
    device.mqtt.publish("plant/pump/t", QoS::AtLeastOnce, false, "unheard").await.unwrap();
    let mut screen = Client::new(options(&plant));
    assert!(!screen.connected().await);
    screen.silent().await;
    assert_eq!(plant.count("forwarded"), 50);
}

#[tokio::test]
async fn the_process_itself_publishes_to_subscribers() {
    let plant = Plant::start().await;
    let mut device = plant.connect("d", "pump");
    device.connected().await;
    device.mqtt.subscribe("cmd/pump/#", QoS::AtLeastOnce).await.unwrap();
    device.subscribed().await;
    plant.broker.publisher().publish("cmd/pump/start", "now").await.unwrap();
    plant.broker.publisher().publish("cmd/other/start", "now").await.unwrap();
    let message = device.message().await;
    assert_eq!((message.topic.as_str(), &message.payload[..]), ("cmd/pump/start", &b"now"[..]));
    device.silent().await;
}

#[tokio::test]
async fn a_will_reaches_subscribers() {
    let mut plant = Plant::start().await;
    plant.acknowledge_all();
    let mut screen = plant.connect("screen", "hmi");
    screen.connected().await;
    screen.mqtt.subscribe("plant/#", QoS::AtLeastOnce).await.unwrap();
    screen.subscribed().await;
    let mut options = plant.options("d", "pump");
    options.set_last_will(rumqttc::LastWill::new("plant/pump/state", "gone", QoS::AtLeastOnce, false));
    let mut device = Client::new(options);
    device.connected().await;
    device.vanish();
    assert_eq!(&screen.message().await.payload[..], b"gone");
}
