//! Publishing to a real rumqttd and to our gate, through cuts.

use std::{
    collections::HashMap,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use gemba_mqtt::{
    broker::{Broker, BrokerSettings},
    delivery::Delivery,
    gate::{Authenticate, Denied, Gate, Limits, Listener},
};
use gemba_shared::{
    gate::{Filter, Grant},
    ids::{MachineId, SensorId},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{feed::Format, target::TargetArgs, *};

const MESSAGES: u32 = 2_000;

/// A real broker on a free port; it cannot be stopped, and ends with the tests.
pub(crate) fn broker() -> SocketAddr {
    // rumqttd cannot say which port it got for port 0.
    let listen = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let connections = rumqttd::ConnectionSettings {
        connection_timeout_ms: 5_000,
        max_payload_size: 20_000,
        max_inflight_count: 500,
        auth: Some(HashMap::from([("plant".to_owned(), "right".to_owned())])),
        external_auth: None,
        dynamic_filters: true,
    };
    let server =
        rumqttd::ServerSettings { name: "test".into(), listen, tls: None, next_connection_delay_ms: 1, connections };
    let router = rumqttd::RouterConfig {
        max_connections: 100,
        max_outgoing_packet_count: 1_000,
        max_segment_size: 1024 * 1024,
        max_segment_count: 100,
        ..Default::default()
    };
    let config = rumqttd::Config { router, v4: Some(HashMap::from([("1".to_owned(), server)])), ..Default::default() };
    std::thread::spawn(move || rumqttd::Broker::new(config).start().map_err(Box::new));
    listen
}

/// What the broker of the tests wants to see.
pub(crate) fn identity(address: SocketAddr, password: &str) -> (TargetArgs, tempfile::NamedTempFile) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), format!("{password}\n")).unwrap();
    let args = TargetArgs {
        url: Some(format!("mqtt://{address}")),
        username: Some("plant".into()),
        password_file: Some(file.path().to_owned()),
        ca_file: None,
    };
    (args, file)
}

fn feed() -> Feed {
    let sensor = (MachineId::new("pump-1").unwrap(), SensorId::new("flow").unwrap());
    Feed::new("plant/{machine}/{sensor}", Format::Json, [sensor]).unwrap()
}

fn settings() -> Settings {
    Settings { client_id: "device".into(), at_least_once: true, window: 100, first_connect: Duration::from_secs(10) }
}

fn message(number: u32) -> Message {
    Message { sensor: 0, at: Timestamp::from_millis(i64::from(number)), value: f64::from(number) }
}

async fn connect(target: TargetArgs) -> Result<Publisher, PublishError> {
    Publisher::connect(Target::new(&target).unwrap(), settings(), feed(), None, CancellationToken::new()).await
}

#[tokio::test]
async fn everything_is_acknowledged_and_stands_in_the_ledger() {
    let (target, _password) = identity(broker(), "right");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ledger.csv");
    let (ledger, written) = feed::ledger(&path, feed()).unwrap();
    let target = Target::new(&target).unwrap();
    let cancel = CancellationToken::new();
    let mut publisher = Publisher::connect(target, settings(), feed(), Some(ledger), cancel).await.unwrap();
    for number in 0..MESSAGES {
        publisher.publish(message(number)).await.unwrap();
    }
    publisher.settle().await.unwrap();
    let report = publisher.close(Duration::from_secs(5)).await;
    assert_eq!((report.sent, report.acknowledged, report.unacknowledged), (2_000, 2_000, 0));
    assert!(report.latency.quantile(0.5).is_some());
    written.await.unwrap().unwrap();
    let ledger = std::fs::read_to_string(path).unwrap();
    let lines: Vec<&str> = ledger.lines().collect();
    assert_eq!(lines.len(), 2_001);
    assert_eq!(lines[..2], ["machine,sensor,time_us,value", "pump-1,flow,0,0"]);
    assert_eq!(lines[2_000], "pump-1,flow,1999000,1999");
}

#[tokio::test]
async fn a_wrong_password_is_an_error() {
    let address = broker();
    // The broker starts in its own time: the right password first.
    let (target, _password) = identity(address, "right");
    connect(target).await.unwrap().close(Duration::from_secs(5)).await;
    let (target, _password) = identity(address, "wrong");
    let settings = Settings { first_connect: Duration::from_millis(100), ..settings() };
    let target = Target::new(&target).unwrap();
    let error = Publisher::connect(target, settings, feed(), None, CancellationToken::new()).await.unwrap_err();
    // rumqttd closes the connection without a CONNACK; our gate says why.
    assert!(matches!(error, PublishError::Refused { .. } | PublishError::Connect { .. }), "{error}");
}

/// Passes bytes on, and cuts each connection after some of the broker's.
async fn cutting_proxy(broker: SocketAddr, answers_bytes: &'static [usize]) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        for connection in 0.. {
            let (mut device, _) = listener.accept().await.unwrap();
            let Ok(mut upstream) = TcpStream::connect(broker).await else { continue };
            let mut left = answers_bytes.get(connection).copied().unwrap_or(usize::MAX);
            let (mut up, mut down) = ([0; 4_096], [0; 64]);
            while left > 0 {
                tokio::select! {
                    read = device.read(&mut up) => match read {
                        Ok(n) if n > 0 => upstream.write_all(&up[..n]).await.unwrap(),
                        _ => break,
                    },
                    read = upstream.read(&mut down) => match read {
                        Ok(n) if n > 0 => {
                            let n = n.min(left);
                            if device.write_all(&down[..n]).await.is_err() {
                                break;
                            }
                            left = left.saturating_sub(n);
                        }
                        _ => break,
                    },
                }
            }
        }
    });
    address
}

#[tokio::test]
async fn what_was_cut_off_is_sent_again_and_settles_once() {
    let address = broker();
    let (target, _password) = identity(address, "right");
    connect(target).await.unwrap().close(Duration::from_secs(5)).await;
    let (target, _password) = identity(cutting_proxy(address, &[400, 4, 1_234]).await, "right");
    let mut publisher = connect(target).await.unwrap();
    for number in 0..MESSAGES {
        publisher.publish(message(number)).await.unwrap();
    }
    publisher.settle().await.unwrap();
    let report = publisher.close(Duration::from_secs(5)).await;
    assert_eq!((report.sent, report.acknowledged, report.unacknowledged), (2_000, 2_000, 0));
    assert!(report.reconnects >= 3 && report.resent > 0, "{report:?}");
}

/// Our own gate with TLS, which takes one device; what it takes is acknowledged as it comes. With its authority's certificate.
async fn gate(directory: &Path, taken: mpsc::Sender<usize>) -> (SocketAddr, PathBuf) {
    let certified = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let ca_file = directory.join("ca.pem");
    std::fs::write(&ca_file, certified.cert.pem()).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::Pkcs8(certified.signing_key.serialize_der().into());
    let tls = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key)
        .unwrap();
    let broker = Broker::start(BrokerSettings::default()).unwrap();
    let listener = Listener { address: "127.0.0.1:0".parse().unwrap(), tls: Some(Arc::new(tls)) };
    let gate = Gate::bind(vec![listener], Limits::default(), broker).await.unwrap();
    let address = gate.addresses()[0];
    let authenticate: Authenticate = Arc::new(|credentials| {
        Box::pin(async move {
            let publish = vec![Filter::new("plant/#").unwrap()];
            let grant = Grant { name: "plant".into(), publish, subscribe: Vec::new() };
            let known = credentials.password.is_some_and(|password| password == "right");
            if known { Ok(Arc::new(grant)) } else { Err(Denied::BadCredentials) }
        })
    });
    let (sender, mut deliveries) = mpsc::channel::<Delivery>(16);
    tokio::spawn(async move { gate.run(authenticate, sender, CancellationToken::new()).await });
    tokio::spawn(async move {
        while let Some(delivery) = deliveries.recv().await {
            if taken.send(delivery.messages.len()).await.is_err() {
                return;
            }
            delivery.acknowledge();
        }
    });
    (address, ca_file)
}

#[tokio::test]
async fn through_our_gate_with_tls() {
    let directory = tempfile::tempdir().unwrap();
    let (sender, mut taken) = mpsc::channel(10_000);
    let (address, ca_file) = gate(directory.path(), sender).await;
    let url = Some(format!("mqtts://{address}"));

    let (target, _password) = identity(address, "wrong");
    let error = connect(TargetArgs { url: url.clone(), ca_file: Some(ca_file.clone()), ..target }).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("mqtts://{address}: the broker refuses the connection: wrong user name or password")
    );

    let (target, _password) = identity(address, "right");
    let mut publisher = connect(TargetArgs { url, ca_file: Some(ca_file), ..target }).await.unwrap();
    for number in 0..MESSAGES {
        publisher.publish(message(number)).await.unwrap();
    }
    publisher.settle().await.unwrap();
    let report = publisher.close(Duration::from_secs(5)).await;
    assert_eq!((report.sent, report.acknowledged, report.resent), (2_000, 2_000, 0));
    let mut arrived = 0;
    while let Ok(count) = taken.try_recv() {
        arrived += count;
    }
    assert_eq!(arrived, 2_000);
}

#[tokio::test]
async fn nobody_there_is_an_error_that_names_the_address() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (target, _password) = identity(free, "right");
    let settings = Settings { first_connect: Duration::ZERO, ..settings() };
    let target = Target::new(&target).unwrap();
    let error = Publisher::connect(target, settings, feed(), None, CancellationToken::new()).await.unwrap_err();
    assert!(error.to_string().starts_with(&format!("mqtt://{free}: ")), "{error}");
}

#[test]
fn durations_are_read_as_people_write_them() {
    for (text, expected) in [("90s", 90_000), ("1h30m", 5_400_000), ("500ms", 500), ("0s", 0)] {
        assert_eq!(duration(text), Ok(Duration::from_millis(expected)));
    }
    for bad in ["", "5", "-5s", "soon"] {
        assert!(duration(bad).is_err(), "{bad}");
    }
}
