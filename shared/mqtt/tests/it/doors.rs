//! Who is let in, and who has to go.

use std::{sync::Arc, time::Duration};

use gemba_mqtt::{
    gate::{Authenticate, Denied, Filter, Gate, Grant, Limits, Listener},
    tls::{ClientCertificates, Identity, Pem, Trust, client_config, server_config},
};
use rumqttc::{QoS, TlsConfiguration, Transport};
use tokio_util::sync::CancellationToken;

use crate::plant::{Client, Plant, Raw};

const CONNECT: &[u8] = b"\x10\x1b\x00\x04MQTT\x04\xc2\x00\x1e\x00\x01d\x00\x04pump\x00\x06secret";
const ACCEPTED: &[u8] = b"\x20\x02\x00\x00";

#[tokio::test]
async fn credentials_are_checked() {
    let plant = Plant::start().await;
    let mut wrong = plant.options("d", "pump");
    wrong.set_credentials("pump", "guess");
    assert!(Client::new(wrong).lost().await.contains("BadUserNamePassword"));
    let mut nobody = plant.options("d", "pump");
    nobody = rumqttc::MqttOptions::new("d", nobody.broker_address().0, nobody.broker_address().1);
    assert!(Client::new(nobody).lost().await.contains("NotAuthorized"));
    assert_eq!((plant.count("bad_credentials"), plant.count("not_authorised")), (1, 1));
}

#[tokio::test]
async fn other_versions_are_told_so() {
    let plant = Plant::start().await;
    let version_5 = b"\x10\x0e\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x01d";
    let mut raw = Raw::connect(&plant, version_5, b"\x20\x03\x00\x84\x00").await;
    raw.ended().await;
    let version_3 = b"\x10\x0f\x00\x06MQIsdp\x03\x02\x00\x3c\x00\x01d";
    let mut raw = Raw::connect(&plant, version_3, b"\x20\x02\x00\x01").await;
    raw.ended().await;
    assert_eq!(plant.count("unsupported_version"), 2);
}

#[tokio::test]
async fn a_session_needs_a_client_identifier() {
    let plant = Plant::start().await;
    let mut raw = Raw::connect(&plant, b"\x10\x0c\x00\x04MQTT\x04\x00\x00\x1e\x00\x00", b"\x20\x02\x00\x02").await;
    raw.ended().await;
    // Without a session two may do without one.
    let anonymous = b"\x10\x1a\x00\x04MQTT\x04\xc2\x00\x1e\x00\x00\x00\x04pump\x00\x06secret";
    let _one = Raw::connect(&plant, anonymous, ACCEPTED).await;
    let _other = Raw::connect(&plant, anonymous, ACCEPTED).await;
    plant.until("connections", 2).await;
}

#[tokio::test]
async fn who_says_nothing_has_to_go() {
    let limits = Limits { connect_timeout: Duration::from_millis(300), ..Limits::default() };
    let plant = Plant::with(limits, None, 1).await;
    Raw::open(&plant).await.ended().await;
    // One byte after the other is no CONNECT either.
    let mut slow = Raw::open(&plant).await;
    slow.send(&CONNECT[..5]).await;
    slow.ended().await;
    assert_eq!(plant.count("connect_timeout"), 2);
    let mut stranger = Raw::open(&plant).await;
    stranger.send(b"GET / HTTP/1.1\r\nHost: plant\r\n\r\n").await;
    stranger.ended().await;
    plant.until("protocol_error", 1).await;
}

#[tokio::test]
async fn keep_alive_is_enforced() {
    let plant = Plant::start().await;
    let mut every_second = CONNECT.to_vec();
    every_second[11] = 1;
    let mut raw = Raw::connect(&plant, &every_second, ACCEPTED).await;
    raw.send(b"\xc0\x00").await;
    raw.expect(b"\xd0\x00").await;
    raw.ended().await;
    assert_eq!(plant.count("keep_alive_expired"), 1);
}

#[tokio::test]
async fn of_two_clients_with_one_identifier_the_newer_wins_within_a_name() {
    let plant = Plant::start().await;
    let mut old = plant.connect("same", "pump");
    old.connected().await;
    let mut other = plant.connect("same", "fan");
    other.connected().await;
    let mut new = plant.connect("same", "pump");
    new.connected().await;
    old.lost().await;
    assert_eq!(plant.count("taken_over"), 1);
    other.silent().await;
    new.silent().await;
}

#[tokio::test]
async fn a_name_can_be_shown_the_door() {
    let plant = Plant::start().await;
    let (mut pump, mut fan) = (plant.connect("a", "pump"), plant.connect("b", "fan"));
    pump.connected().await;
    fan.connected().await;
    plant.gate.disconnect("pump");
    pump.lost().await;
    assert_eq!(plant.count("disconnected"), 1);
    fan.silent().await;
}

#[tokio::test]
async fn connections_are_bounded() {
    let limits = Limits { connections_per_address_max: 2, ..Limits::default() };
    let plant = Plant::with(limits, None, 1).await;
    let (mut one, mut two) = (plant.connect("1", "pump"), plant.connect("2", "pump"));
    one.connected().await;
    two.connected().await;
    Raw::open(&plant).await.ended().await;
    plant.until("connections_over_limit", 1).await;
    one.vanish();
    plant.until("connections", 1).await;
    plant.connect("3", "pump").connected().await;
}

struct Authority {
    pem: String,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: rcgen::Issuer::new(params, key) }
    }

    fn sign(&self, name: &str) -> Identity {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Identity { certificate: Pem::text(&certificate.pem(), "made"), key: Pem::text(&key.serialize_pem(), "made") }
    }
}

fn over_tls(plant: &Plant, trust: &Trust, identity: Option<&Identity>) -> Client {
    let mut options = plant.options("d", "pump");
    let config = client_config(trust, identity).unwrap();
    options.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(config)));
    Client::new(options)
}

#[tokio::test]
async fn tls_with_a_certificate_that_is_pinned() {
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".into()]).unwrap();
    let pem = Pem::text(&made.cert.pem(), "made");
    let identity = Identity { certificate: pem.clone(), key: Pem::text(&made.signing_key.serialize_pem(), "made") };
    let config = server_config(&identity, &ClientCertificates::NotAsked).unwrap();
    let mut plant = Plant::with(Limits::default(), Some(config), 1).await;

    let mut device = over_tls(&plant, &Trust::Only(pem), None);
    device.connected().await;
    device.mqtt.publish("plant/pump/t", QoS::AtLeastOnce, false, "1").await.unwrap();
    plant.delivery().await.acknowledge();
    device.acknowledged().await;

    let other = Authority::new();
    over_tls(&plant, &Trust::Only(Pem::text(&other.pem, "other")), None).lost().await;
    plant.connect("plain", "pump").lost().await;
    plant.until("tls_failed", 2).await;
}

#[tokio::test]
async fn a_client_certificate_is_shown_to_the_check() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let trust = Trust::Only(Pem::text(&ours.pem, "ours"));
    let config = server_config(&ours.sign("127.0.0.1"), &ClientCertificates::Required(Pem::text(&ours.pem, "ours")));
    let broker = gemba_mqtt::broker::Broker::start(gemba_mqtt::broker::BrokerSettings::default()).unwrap();
    let listener = Listener { address: ([127, 0, 0, 1], 0).into(), tls: Some(config.unwrap()) };
    let gate = Arc::new(Gate::bind(vec![listener], Limits::default(), broker).await.unwrap());
    let only_with_certificate: Authenticate = Arc::new(|credentials| {
        Box::pin(async move {
            let publish = vec![Filter::new("#").unwrap()];
            let grant = Grant { name: "device".into(), publish, subscribe: Vec::new() };
            credentials.certificate.map(|_| Arc::new(grant)).ok_or(Denied::NotAuthorised)
        })
    });
    let (sender, _deliveries) = tokio::sync::mpsc::channel(1);
    let cancel = CancellationToken::new();
    let address = gate.addresses()[0];
    let running = tokio::spawn({
        let cancel = cancel.clone();
        async move { gate.run(only_with_certificate, sender, cancel).await }
    });
    let connect = |identity: Option<&Identity>| {
        let mut options = rumqttc::MqttOptions::new("d", address.ip().to_string(), address.port());
        let config = client_config(&trust, identity).unwrap();
        options.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(config)));
        Client::new(options)
    };
    let identity = ours.sign("device");
    let mut device = connect(Some(&identity));
    device.connected().await;
    connect(Some(&theirs.sign("device"))).lost().await;
    connect(None).lost().await;
    // At the end everybody has to go.
    cancel.cancel();
    device.lost().await;
    tokio::time::timeout(crate::plant::SOON, running).await.unwrap().unwrap();
}
