//! A gate with a broker behind it, and clients of it.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use gemba_mqtt::{
    broker::{Broker, BrokerSettings},
    delivery::Delivery,
    gate::{Authenticate, Credentials, Denied, Filter, Gate, Grant, Limits, Listener},
};
use rumqttc::{AsyncClient, Event, EventLoop, MqttOptions, Packet, Publish};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::mpsc,
    time::timeout,
};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Longer than anything takes here, on a busy machine too.
pub const SOON: Duration = Duration::from_secs(20);
/// Long enough to notice what must not happen.
pub const A_WHILE: Duration = Duration::from_millis(200);

pub struct Plant {
    pub gate: Arc<Gate>,
    pub broker: Broker,
    pub deliveries: mpsc::Receiver<Delivery>,
    pub address: SocketAddr,
    _stop: DropGuard,
}

/// User `NAME` with the password `secret` may publish under `plant/NAME/` and listen to `plant/#` and `cmd/NAME/#`.
pub fn authenticate() -> Authenticate {
    Arc::new(|credentials: Credentials| {
        Box::pin(async move {
            let Some(name) = credentials.username else { return Err(Denied::NotAuthorised) };
            if credentials.password.as_deref() != Some(b"secret") {
                return Err(Denied::BadCredentials);
            }
            Ok(Arc::new(Grant {
                publish: vec![Filter::new(&format!("plant/{name}/#")).unwrap()],
                subscribe: vec![Filter::new("plant/#").unwrap(), Filter::new(&format!("cmd/{name}/#")).unwrap()],
                name: name.into(),
            }))
        })
    })
}

impl Plant {
    pub async fn start() -> Self {
        Self::with(Limits::default(), None, 64).await
    }

    pub async fn with(limits: Limits, tls: Option<Arc<rustls::ServerConfig>>, queue: usize) -> Self {
        let broker = Broker::start(BrokerSettings::default()).unwrap();
        let listener = Listener { address: ([127, 0, 0, 1], 0).into(), tls };
        let gate = Arc::new(Gate::bind(vec![listener], limits, broker.clone()).await.unwrap());
        let address = gate.addresses()[0];
        let (sender, deliveries) = mpsc::channel(queue);
        let cancel = CancellationToken::new();
        tokio::spawn({
            let (gate, cancel) = (gate.clone(), cancel.clone());
            async move { gate.run(authenticate(), sender, cancel).await }
        });
        Self { gate, broker, deliveries, address, _stop: cancel.drop_guard() }
    }

    pub fn options(&self, id: &str, user: &str) -> MqttOptions {
        let mut options = MqttOptions::new(id, self.address.ip().to_string(), self.address.port());
        options.set_credentials(user, "secret");
        options
    }

    pub fn connect(&self, id: &str, user: &str) -> Client {
        Client::new(self.options(id, user))
    }

    pub async fn delivery(&mut self) -> Delivery {
        timeout(SOON, self.deliveries.recv()).await.expect("a delivery in time").unwrap()
    }

    pub fn count(&self, counter: &str) -> u64 {
        let counters = self.gate.counters().read();
        counters.iter().find(|(name, _)| *name == counter).unwrap().1
    }

    /// Waits until a counter has this value.
    pub async fn until(&self, counter: &str, value: u64) {
        let reached = async {
            while self.count(counter) != value {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let in_time = timeout(SOON, reached).await;
        assert!(in_time.is_ok(), "{counter} is {}, not {value}", self.count(counter));
    }

    /// Acknowledges all that comes from now on.
    pub fn acknowledge_all(&mut self) {
        let (_, none) = mpsc::channel(1);
        let mut deliveries = std::mem::replace(&mut self.deliveries, none);
        tokio::spawn(async move {
            while let Some(delivery) = deliveries.recv().await {
                delivery.acknowledge();
            }
        });
    }
}

/// A client whose event loop runs by itself.
pub struct Client {
    pub mqtt: AsyncClient,
    pub events: mpsc::Receiver<Result<Packet, String>>,
    running: tokio::task::JoinHandle<()>,
}

impl Client {
    pub fn new(options: MqttOptions) -> Self {
        let (mqtt, events) = AsyncClient::new(options, 1_000);
        let (sender, receiver) = mpsc::channel(100_000);
        let running = tokio::spawn(poll(events, sender));
        Self { mqtt, events: receiver, running }
    }

    /// The next packet of this kind.
    pub async fn expect<T>(&mut self, mut wanted: impl FnMut(&Packet) -> Option<T>) -> T {
        let found = async {
            loop {
                match self.events.recv().await.expect("the event loop runs") {
                    Ok(packet) => {
                        if let Some(found) = wanted(&packet) {
                            return found;
                        }
                    }
                    Err(error) => panic!("connection lost: {error}"),
                }
            }
        };
        timeout(SOON, found).await.expect("the packet in time")
    }

    pub async fn connected(&mut self) -> bool {
        self.expect(|packet| match packet {
            Packet::ConnAck(ack) => Some(ack.session_present),
            _ => None,
        })
        .await
    }

    pub async fn acknowledged(&mut self) -> u16 {
        self.expect(|packet| match packet {
            Packet::PubAck(ack) => Some(ack.pkid),
            _ => None,
        })
        .await
    }

    pub async fn subscribed(&mut self) -> Vec<rumqttc::SubscribeReasonCode> {
        self.expect(|packet| match packet {
            Packet::SubAck(ack) => Some(ack.return_codes.clone()),
            _ => None,
        })
        .await
    }

    pub async fn message(&mut self) -> Publish {
        self.expect(|packet| match packet {
            Packet::Publish(publish) => Some(publish.clone()),
            _ => None,
        })
        .await
    }

    pub async fn lost(&mut self) -> String {
        let lost = async {
            loop {
                match self.events.recv().await {
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return error,
                    None => return "ended".into(),
                }
            }
        };
        timeout(SOON, lost).await.expect("the connection's end in time")
    }

    /// Nothing comes for a while.
    pub async fn silent(&mut self) {
        if let Ok(event) = timeout(A_WHILE, self.events.recv()).await {
            panic!("there came {event:?}");
        }
    }

    /// Ends without a good-bye.
    pub fn vanish(self) {
        self.running.abort();
    }
}

async fn poll(mut events: EventLoop, sender: mpsc::Sender<Result<Packet, String>>) {
    loop {
        match events.poll().await {
            Ok(Event::Incoming(packet)) => {
                if sender.send(Ok(packet)).await.is_err() {
                    return;
                }
            }
            Ok(Event::Outgoing(_)) => {}
            Err(error) => {
                sender.send(Err(error.to_string())).await.ok();
                return;
            }
        }
    }
}

/// A client that says exactly these bytes.
pub struct Raw(tokio::net::TcpStream);

impl Raw {
    pub async fn open(plant: &Plant) -> Self {
        Self(tokio::net::TcpStream::connect(plant.address).await.unwrap())
    }

    pub async fn connect(plant: &Plant, connect: &[u8], answer: &[u8]) -> Self {
        let mut raw = Self::open(plant).await;
        raw.send(connect).await;
        raw.expect(answer).await;
        raw
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.unwrap();
    }

    pub async fn expect(&mut self, expected: &[u8]) {
        let mut bytes = vec![0; expected.len()];
        timeout(SOON, self.0.read_exact(&mut bytes)).await.expect("an answer in time").unwrap();
        assert_eq!(bytes, expected);
    }

    /// The gate closes the connection.
    pub async fn ended(&mut self) {
        let mut rest = Vec::new();
        timeout(SOON, self.0.read_to_end(&mut rest)).await.expect("the end in time").ok();
        assert!(rest.is_empty(), "{rest:?} before the end");
    }

    /// Sends until the gate takes no more for a while; how many bytes it took.
    pub async fn fill(&mut self, bytes: &[u8]) -> usize {
        let mut taken = 0;
        while let Ok(count) = timeout(A_WHILE * 2, self.0.write(bytes)).await {
            taken += count.unwrap();
        }
        taken
    }
}
