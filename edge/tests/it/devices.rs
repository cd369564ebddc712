//! Devices on the network: who is let in over TLS, and what each may do.

use std::{
    fs,
    io::Write as _,
    net::SocketAddr,
    process::{Command, Stdio},
    time::Duration,
};

use gemba_mqtt::tls::{Identity, Pem, Trust, client_config};
use rumqttc::{
    AsyncClient, ConnectReturnCode, ConnectionError, Event, EventLoop, MqttOptions, Packet, QoS, SubscribeReasonCode,
    TlsConfiguration, Transport,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::{
    certificates::{Authority, Certified},
    gateway::{Gateway, free_address, wait},
};

const DEADLINE: Duration = Duration::from_secs(30);
const DENIED: &str = "gemba_edge_gate_refused_total{reason=\"bad_credentials\"}";

/// A gateway with a TLS port, and devices of each kind.
struct Door {
    gateway: Gateway,
    tls: SocketAddr,
    trust: Trust,
    /// Who may come in, and who may not.
    devices: Authority,
    fingerprinted: Certified,
}

impl Door {
    async fn open() -> Self {
        let (servers, devices) = (Authority::new("servers"), Authority::new("devices"));
        let server = servers.certify("gateway", "127.0.0.1");
        let fingerprinted = devices.certify("whoever", "device");
        let tls = free_address();
        let device = |name: &str, proof: &str| {
            let topics = format!("publish = [\"plant/{name}/#\"]\nsubscribe = [\"orders/{name}/#\"]\n");
            format!("[[mqtt.devices]]\nname = \"{name}\"\n{proof}\n{topics}")
        };
        let config = [
            format!(
                "[mqtt.tls]\nlisten = \"{tls}\"\ncertificate = \"server.crt\"\nkey = \"server.key\"\nclient_ca = \"devices.crt\"\n"
            ),
            device("hashed", &passwd("right")),
            device("filed", "password_file = \"filed.password\""),
            device("fingerprinted", &format!("certificate_sha256 = \"{}\"", fingerprinted.fingerprint)),
            device("named", "certificate_name = \"press-1\""),
        ];
        let mut gateway = Gateway::new(&config.concat());
        let file = |name: &str, text: &str| fs::write(gateway.path().join(name), text).unwrap();
        file("server.crt", &server.pem);
        file("server.key", &server.key_pem);
        file("devices.crt", &devices.pem);
        file("filed.password", "from file\n");
        gateway.start().await;
        Self { gateway, tls, trust: Trust::Only(Pem::text(&servers.pem, "test")), devices, fingerprinted }
    }

    fn options(&self, identity: Option<&Identity>, login: Option<(&str, &str)>) -> MqttOptions {
        let mut options = MqttOptions::new("device", self.tls.ip().to_string(), self.tls.port());
        let tls = client_config(&self.trust, identity).unwrap();
        options.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(tls)));
        if let Some((name, password)) = login {
            options.set_credentials(name, password);
        }
        options
    }

    /// A device that was let in, or why it was not.
    async fn connect(
        &self,
        identity: Option<&Identity>,
        login: Option<(&str, &str)>,
    ) -> Result<Device, ConnectionError> {
        let (client, mut events) = AsyncClient::new(self.options(identity, login), 16);
        match timeout(DEADLINE, events.poll()).await.expect("an answer in time")? {
            Event::Incoming(Packet::ConnAck(_)) => Ok(Device { client, events }),
            other => panic!("{other:?} in place of a CONNACK"),
        }
    }

    async fn refused(&self, identity: Option<&Identity>, login: Option<(&str, &str)>) -> ConnectReturnCode {
        match self.connect(identity, login).await {
            Err(ConnectionError::ConnectionRefused(code)) => code,
            Err(error) => panic!("{error:?} in place of a code"),
            Ok(_) => panic!("{login:?} is let in"),
        }
    }
}

struct Device {
    client: AsyncClient,
    events: EventLoop,
}

impl Device {
    /// Publishes at `QoS` 1 and waits for the answer.
    async fn publish(&mut self, topic: &str) {
        self.client.publish(topic, QoS::AtLeastOnce, false, "1").await.unwrap();
        self.until(|packet| matches!(packet, Packet::PubAck(_)).then_some(())).await;
    }

    async fn subscribe(&mut self, filter: &str) -> bool {
        self.client.subscribe(filter, QoS::AtLeastOnce).await.unwrap();
        let codes = |packet| if let Packet::SubAck(ack) = packet { Some(ack.return_codes) } else { None };
        self.until(codes).await == [SubscribeReasonCode::Success(QoS::AtLeastOnce)]
    }

    async fn until<T>(&mut self, wanted: impl Fn(Packet) -> Option<T>) -> T {
        let found = async {
            loop {
                if let Event::Incoming(packet) = self.events.poll().await.unwrap()
                    && let Some(found) = wanted(packet)
                {
                    return found;
                }
            }
        };
        timeout(DEADLINE, found).await.expect("an answer in time")
    }
}

/// The line that `gemba-edge passwd` prints.
fn passwd(password: &str) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gemba-edge"));
    let mut child = command.arg("passwd").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    writeln!(child.stdin.take().unwrap(), "{password}").unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn who_is_let_in_and_as_whom() {
    let door = Door::open().await;
    let named = door.devices.certify("press-1", "device");
    let fingerprinted = &door.fingerprinted.identity;
    let let_in = [
        ("hashed", None, Some(("hashed", "right"))),
        ("filed", None, Some(("filed", "from file"))),
        ("fingerprinted", Some(fingerprinted), None),
        ("named", Some(&named.identity), None),
        // The certificate says who it is, whatever the user name says.
        ("named", Some(&named.identity), Some(("filed", "wrong"))),
    ];
    for (name, identity, login) in let_in {
        let readings = door.gateway.metric("gemba_edge_readings_total");
        let mut device = door.connect(identity, login).await.unwrap();
        device.publish(&format!("plant/{name}/t")).await;
        let counted = || (door.gateway.metric("gemba_edge_readings_total") == readings + 1).then_some(());
        wait("the reading to be counted", counted).await;
    }

    let stranger = door.devices.certify("press-2", "device");
    let denied = door.gateway.metric(DENIED);
    for (identity, login, code) in [
        (None, Some(("hashed", "wrong")), ConnectReturnCode::BadUserNamePassword),
        (None, Some(("filed", "")), ConnectReturnCode::BadUserNamePassword),
        (None, Some(("nobody", "right")), ConnectReturnCode::BadUserNamePassword),
        // Who has a certificate has no password, and may not come without it.
        (None, Some(("named", "")), ConnectReturnCode::BadUserNamePassword),
        (None, None, ConnectReturnCode::NotAuthorized),
        (Some(&stranger.identity), None, ConnectReturnCode::NotAuthorized),
    ] {
        assert_eq!(door.refused(identity, login).await, code, "{login:?}");
    }
    assert_eq!(door.gateway.metric(DENIED), denied + 4);

    // The right name in a certificate of another authority does not even get through TLS.
    let forged = Authority::new("devices").certify("press-1", "device");
    let error = door.connect(Some(&forged.identity), None).await.err().expect("it is refused");
    assert!(!matches!(error, ConnectionError::ConnectionRefused(_)), "{error:?}");
    let failed = || (door.gateway.metric("gemba_edge_gate_refused_total{reason=\"tls_failed\"}") >= 1).then_some(());
    wait("the failure to be counted", failed).await;
}

#[tokio::test]
async fn a_device_does_what_it_may_and_no_more() {
    let door = Door::open().await;
    let mut device = door.connect(None, Some(("hashed", "right"))).await.unwrap();
    assert!(!device.subscribe("orders/filed/#").await);
    assert!(!device.subscribe("#").await);
    assert!(device.subscribe("orders/hashed/#").await);
    assert_eq!(door.gateway.metric("gemba_edge_gate_refused_total{reason=\"subscribe_refused\"}"), 2);

    let refused = || door.gateway.metric("gemba_edge_gate_refused_total{reason=\"not_granted\"}");
    for _ in 0..3 {
        device.publish("plant/filed/t").await;
    }
    device.publish("plant/hashed/t").await;
    assert_eq!(refused(), 3);
    wait("the reading", || (door.gateway.metric("gemba_edge_readings_total") == 1).then_some(())).await;
    let log = door.gateway.log_text();
    let told: Vec<&str> = log.lines().filter(|line| line.contains("outside the client's grant")).collect();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].contains("hashed") && told[0].contains("plant/filed/t"), "{told:?}");
}

#[tokio::test]
async fn another_version_of_mqtt_is_told_so() {
    let gateway = Gateway::started("").await;
    // CONNECT of MQTT 5 and of MQTT 3.1, and what each understands as "not this version".
    let version_5 = b"\x10\x0d\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x00";
    let version_3 = b"\x10\x0f\x00\x06MQIsdp\x03\x02\x00\x3c\x00\x01d";
    for (connect, answer) in
        [(&version_5[..], &b"\x20\x03\x00\x84\x00"[..]), (&version_3[..], &b"\x20\x02\x00\x01"[..])]
    {
        let mut stream = TcpStream::connect(gateway.mqtt).await.unwrap();
        stream.write_all(connect).await.unwrap();
        let mut answered = Vec::new();
        timeout(DEADLINE, stream.read_to_end(&mut answered)).await.expect("it ends").unwrap();
        assert_eq!(answered, answer);
    }
    assert_eq!(gateway.metric("gemba_edge_gate_refused_total{reason=\"unsupported_version\"}"), 2);
}

#[test]
fn nothing_listens_to_the_network_without_authentication() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("edge.toml");
    let device = "[[mqtt.devices]]\nname = \"d\"\npublish = [\"#\"]\n";
    let tls = "[mqtt.tls]\ncertificate = \"c\"\nkey = \"k\"\n";
    for (config, line, words) in [
        ("[mqtt]\nlisten = \"0.0.0.0:1883\"\n".to_owned(), 2, "nobody could connect"),
        ("[mqtt]\nlisten = \"0.0.0.0:1883\"\nanonymous = true\n".to_owned(), 3, "loopback"),
        (format!("[mqtt]\nlisten = \"[::]:1883\"\n{device}anonymous = true\n"), 6, "loopback"),
        (tls.to_owned(), 1, "nobody could connect"),
        (format!("{tls}{device}certificate_name = \"press-1\"\n"), 7, "client_ca"),
        (format!("{tls}{device}"), 4, "one of"),
        (format!("[mqtt]\n{device}password_hash = \"hunter2\"\n"), 5, "gemba-edge passwd"),
    ] {
        fs::write(&file, &config).unwrap();
        for command in ["check", "run"] {
            let mut run = Command::new(env!("CARGO_BIN_EXE_gemba-edge"));
            let output = run.args([command, "--config"]).arg(&file).output().unwrap();
            let text = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(78), "{config}\n{text}");
            assert!(text.contains(&format!("edge.toml:{line}: ")) && text.contains(words), "{config}\n{text}");
            assert!(!text.contains("hunter2"), "{text}");
        }
    }
}
