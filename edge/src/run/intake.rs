//! Where messages come from: the gate with its broker, or the client of another broker; and what of it may change while it runs.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use anyhow::{Context as _, bail};
use gemba_mqtt::{
    broker::{Broker, BrokerSettings},
    client::{ClientCounters, Endpoint, subscribe},
    delivery::Delivery,
    gate::{Authenticate, Counters, Gate, Limits, Listener},
    tls::{self, ClientCertificates, Identity as Certified, Pem},
};
use rumqttc::MqttOptions;
use rustls::ServerConfig;
use sha2::{Digest as _, Sha256};
use tokio::{
    sync::{mpsc, watch},
    task::{JoinSet, spawn_blocking},
};
use tokio_util::sync::CancellationToken;

use crate::{
    config::{Config, External, GateSettings, Mqtt, Tls},
    devices, files, identity,
};

/// What a packet has beside its payload.
const PACKET_BYTES: usize = 1_024;
/// The largest payload that a configuration may allow.
const PAYLOAD_BYTES_MAX: usize = 1 << 20;
const MACHINE_ID: &str = "/etc/machine-id";

/// Where messages come from.
pub(super) enum Intake {
    Gate { counters: Arc<Counters>, addresses: Vec<SocketAddr>, broker_lost: Arc<AtomicBool> },
    External { counters: Arc<ClientCounters>, url: String },
}

/// What a configuration and the files that it names say of the intake: read, and found to be of use.
pub(super) enum Prepared {
    Gate {
        authenticate: Authenticate,
        tls: Option<Arc<ServerConfig>>,
        /// What each device is known by, and what it may do.
        devices: BTreeMap<String, [u8; 32]>,
    },
    External(Box<Subscription>),
}

#[derive(Clone)]
pub(super) struct Subscription {
    options: MqttOptions,
    filters: Vec<String>,
    /// Of all that it was made of.
    mark: [u8; 32],
}

/// Reads everything that the configuration names.
///
/// # Errors
/// If something cannot be read or is of no use.
pub(super) fn prepare(config: &Config) -> anyhow::Result<Prepared> {
    match &config.mqtt {
        Mqtt::Gate(settings) => Ok(Prepared::Gate {
            authenticate: devices::authenticate(&settings.devices)?,
            tls: settings.tls.as_ref().map(server_config).transpose().context("mqtt.tls")?,
            devices: known(settings)?,
        }),
        Mqtt::External(external) => {
            let client_id = external.client_id.clone().unwrap_or_else(|| client_id(&config.data_dir));
            let options = endpoint(external)?.options(&client_id, PAYLOAD_BYTES_MAX + PACKET_BYTES)?;
            let filters: Vec<_> = config.sources.iter().map(|source| source.topic.filter()).collect();
            let mark = mark(external, &filters)?;
            Ok(Prepared::External(Box::new(Subscription { options, filters, mark })))
        }
    }
}

fn server_config(Tls { certificate, key, client_ca, .. }: &Tls) -> anyhow::Result<Arc<ServerConfig>> {
    let clients = match client_ca {
        Some(file) => ClientCertificates::Optional(Pem::file(file)?),
        None => ClientCertificates::NotAsked,
    };
    Ok(tls::server_config(&Certified::files(certificate, key)?, &clients)?)
}

/// Devices whose certificates another authority signs are others.
fn known(settings: &GateSettings) -> anyhow::Result<BTreeMap<String, [u8; 32]>> {
    let authority = match settings.tls.as_ref().and_then(|tls| tls.client_ca.as_ref()) {
        Some(file) => fs::read(file).with_context(|| format!("cannot read {}", file.display()))?,
        None => Vec::new(),
    };
    devices::fingerprints(&settings.devices, &authority)
}

/// At another broker each gateway has a client identifier of its own, and keeps it: the broker keeps messages for it. It is drawn up
/// at the first start (from the gateway's name where it is enrolled, else from the machine's) and written down.
fn client_id(data_dir: &Path) -> String {
    let file = data_dir.join("mqtt-client-id");
    let written = fs::read_to_string(&file).unwrap_or_default();
    if !written.trim().is_empty() {
        return written.trim().to_owned();
    }
    let name = if let Ok(Some(identity)) = identity::load(data_dir) {
        identity.gateway.to_string()
    } else {
        let machine = fs::read_to_string(MACHINE_ID).unwrap_or_default();
        // The machine's id itself is not for others (machine-id(5)).
        let digest = Sha256::digest([b"gemba-edge ", machine.trim().as_bytes()].concat());
        let number = digest.iter().take(8).fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
        format!("{number:016x}")
    };
    let id = format!("gemba-{name}");
    if let Err(error) = files::write(&file, id.as_bytes()) {
        tracing::warn!(%error, file = %file.display(), "the client identifier cannot be written down");
    }
    id
}

fn mark(external: &External, filters: &[String]) -> anyhow::Result<[u8; 32]> {
    let mut digest = Sha256::new();
    digest.update(format!("{external:?}{filters:?}"));
    let External { password_file, ca_file, certificate, key, .. } = external;
    for file in [password_file, ca_file, certificate, key].into_iter().flatten() {
        digest.update(fs::read(file).with_context(|| format!("cannot read {}", file.display()))?);
    }
    Ok(digest.finalize().into())
}

/// How to reach the broker of the configuration.
pub(crate) fn endpoint(external: &External) -> anyhow::Result<Endpoint> {
    let mut endpoint = Endpoint {
        url: external.url.clone(),
        certificate_file: external.certificate.clone(),
        key_file: external.key.clone(),
        username: external.username.clone(),
        password_file: external.password_file.clone(),
        ..Endpoint::default()
    };
    if let Some(file) = &external.ca_file {
        endpoint.trust_file(file)?;
    }
    Ok(endpoint)
}

/// What is held of a running intake to change it.
pub(super) enum Control {
    Gate { gate: Arc<Gate>, doors: Arc<Doors>, devices: BTreeMap<String, [u8; 32]> },
    External(watch::Sender<Subscription>),
}

impl Control {
    /// Takes what was prepared. Devices that are known by something else now, or may do something else, have to connect again; nobody
    /// else notices.
    pub(super) fn change(&mut self, prepared: Prepared) {
        match (self, prepared) {
            (Self::Gate { gate, doors, devices: before }, Prepared::Gate { authenticate, tls, devices }) => {
                doors.open(authenticate);
                if let Some(tls) = tls {
                    gate.renew_tls(&tls);
                }
                for (name, known) in before.iter() {
                    if devices.get(name) != Some(known) {
                        gate.disconnect(name);
                    }
                }
                *before = devices;
            }
            (Self::External(wanted), Prepared::External(subscription)) => {
                wanted.send_if_modified(|current| {
                    let changed = current.mark != subscription.mark;
                    *current = *subscription;
                    changed
                });
            }
            // A configuration that runs is not merged with one of the other kind.
            (Self::Gate { .. } | Self::External(_), _) => {}
        }
    }
}

/// The doorkeeper in use. One that was asked before it was replaced is not believed.
pub(super) struct Doors(Mutex<(u64, Authenticate)>);

impl Doors {
    fn open(&self, authenticate: Authenticate) {
        let mut doors = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *doors = (doors.0 + 1, authenticate);
    }

    fn current(&self) -> (u64, Authenticate) {
        let doors = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (doors.0, Arc::clone(&doors.1))
    }

    fn authenticate(self: &Arc<Self>) -> Authenticate {
        let doors = Arc::clone(self);
        Arc::new(move |credentials| {
            let doors = Arc::clone(&doors);
            Box::pin(async move {
                loop {
                    let (serial, authenticate) = doors.current();
                    let judged = authenticate(credentials.clone()).await;
                    if doors.current().0 == serial {
                        return judged;
                    }
                }
            })
        })
    }
}

pub(super) async fn start_broker(settings: &GateSettings) -> anyhow::Result<Broker> {
    let settings = BrokerSettings {
        connections_max: settings.connections_max,
        packet_bytes_max: PAYLOAD_BYTES_MAX + PACKET_BYTES,
        ..BrokerSettings::default()
    };
    spawn_blocking(move || Broker::start(settings)).await?.context("the embedded broker")
}

/// Starts what was prepared.
pub(super) async fn start(
    config: &Config,
    prepared: Prepared,
    broker: Option<Broker>,
    deliveries: mpsc::Sender<Delivery>,
    cancel: &CancellationToken,
    tasks: &mut JoinSet<&'static str>,
) -> anyhow::Result<(Intake, Control)> {
    let cancel = cancel.clone();
    match (&config.mqtt, prepared, broker) {
        (Mqtt::Gate(settings), Prepared::Gate { authenticate, tls, devices }, Some(broker)) => {
            let limits = Limits {
                connections_max: settings.connections_max,
                connections_per_address_max: settings.connections_max,
                unacknowledged_max: settings.unacknowledged_max,
                // One over the limit of a payload is taken and counted as too large; far beyond ends the connection.
                packet_bytes_max: 2 * PAYLOAD_BYTES_MAX,
                ..Limits::default()
            };
            let gate = Gate::bind(listeners(settings, tls.as_ref()), limits, broker).await.context("mqtt.listen")?;
            let (gate, doors) = (Arc::new(gate), Arc::new(Doors(Mutex::new((0, authenticate)))));
            let (counters, addresses) = (gate.counters(), gate.addresses().to_vec());
            tracing::info!(?addresses, "listening for devices");
            let (serving, authenticate) = (Arc::clone(&gate), doors.authenticate());
            tasks.spawn(async move {
                serving.run(authenticate, deliveries, cancel).await;
                "the gate"
            });
            let intake = Intake::Gate { counters, addresses, broker_lost: Arc::default() };
            Ok((intake, Control::Gate { gate, doors, devices }))
        }
        (Mqtt::External(external), Prepared::External(subscription), _) => {
            let counters = Arc::new(ClientCounters::default());
            let (wanted, changes) = watch::channel(*subscription);
            let counted = Arc::clone(&counters);
            tasks.spawn(async move {
                listen(changes, deliveries, counted, cancel).await;
                "the client of the broker"
            });
            Ok((Intake::External { counters, url: external.url.clone() }, Control::External(wanted)))
        }
        _ => bail!("the gate has no broker"),
    }
}

/// Subscribes, and anew when something else is wanted: the broker keeps what comes meanwhile, and sends again what was not answered.
async fn listen(
    mut wanted: watch::Receiver<Subscription>,
    deliveries: mpsc::Sender<Delivery>,
    counters: Arc<ClientCounters>,
    cancel: CancellationToken,
) {
    loop {
        let Subscription { options, filters, .. } = wanted.borrow_and_update().clone();
        let end = cancel.child_token();
        let subscribed = subscribe(options, filters, deliveries.clone(), Arc::clone(&counters), end.clone());
        tokio::pin!(subscribed);
        tokio::select! {
            () = &mut subscribed => return,
            Ok(()) = wanted.changed() => end.cancel(),
        }
        subscribed.await;
    }
}

fn listeners(settings: &GateSettings, tls: Option<&Arc<ServerConfig>>) -> Vec<Listener> {
    let mut listeners: Vec<_> = settings.listen.iter().map(|&address| Listener { address, tls: None }).collect();
    let encrypted = settings.tls.iter().flat_map(|tls| &tls.listen);
    listeners.extend(encrypted.map(|&address| Listener { address, tls: tls.map(Arc::clone) }));
    listeners
}

impl Intake {
    /// Whether the embedded broker was found dead.
    pub(super) fn is_broker_lost(&self) -> bool {
        matches!(self, Self::Gate { broker_lost, .. } if broker_lost.load(Relaxed))
    }
}
