//! `gemba-edge run`: puts the parts together, keeps them going, and takes them down in the order of flow.
//!
//! Tasks: the gate (or the client of another broker), the uplink, the local HTTP endpoint, the probe. One thread of
//! its own: the line from deliveries to the outbox. Whatever of them ends by itself ends the daemon, so that the
//! service manager starts it anew. Neither a network nor a cloud nor an enrolment is needed to start.

use std::{
    sync::{Arc, Mutex, atomic::Ordering},
    time::Duration,
};

use anyhow::{Context as _, anyhow, bail};
use gemba_mqtt::{
    broker::{Broker, BrokerSettings},
    client::{ClientCounters, Endpoint, subscribe},
    delivery::Delivery,
    gate::{Gate, Limits, Listener},
    tls::{self, ClientCertificates, Identity as Certified, Pem},
};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::{Notify, mpsc, watch},
    task::{JoinSet, spawn_blocking},
    time::{Instant, interval, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    clock::Clock,
    config::{Config, External, GateSettings, Mqtt, Tls},
    devices, health, identity,
    ingest::Decoder,
    outbox::{Outbox, OutboxSettings},
    pipeline::Pipeline,
    reading::Registry,
    uplink::{Uplink, UplinkState, options},
};

mod line;
mod report;
mod settings;

use line::{Line, LineState};
use report::{Intake, Vitals};

/// Deliveries that wait for the line; a device's connection is not read while it is full.
const DELIVERIES_MAX: usize = 256;
const ORDERS_MAX: usize = 8;
/// What a packet has beside its payload.
const PACKET_BYTES: usize = 1_024;
/// How long the end may take.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
const PROBE_EVERY: Duration = Duration::from_secs(10);
const WATCHDOG_EVERY: Duration = Duration::from_secs(5);

/// Runs the daemon until SIGTERM or SIGINT.
///
/// # Errors
/// If it cannot start, or a part of it ended by itself.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut daemon = Daemon::start(config).await?;
    let ended = tokio::select! {
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        ended = daemon.tasks.join_next() => Some(ended),
        () = daemon.line_ended.cancelled() => Some(None),
    };
    notify(&[sd_notify::NotifyState::Stopping]);
    tracing::info!("stopping");
    daemon.stop().await;
    match ended {
        None => Ok(()),
        Some(Some(Ok(name))) => bail!("{name} ended by itself"),
        Some(Some(Err(error))) => Err(anyhow!(error).context("a task failed")),
        Some(None) => bail!("the line from devices to the outbox ended by itself"),
    }
}

struct Daemon {
    tasks: JoinSet<&'static str>,
    /// Ends the intake: the first to stop.
    intake: CancellationToken,
    /// Ends everything else.
    rest: CancellationToken,
    line_ended: CancellationToken,
}

impl Daemon {
    async fn start(config: Config) -> anyhow::Result<Self> {
        let config = Arc::new(config);
        let begun = Instant::now();
        let clock = Arc::new(Clock::new(config.clock));
        let opening = { (Arc::clone(&config), Arc::clone(&clock)) };
        let (outbox, pipeline, models) = spawn_blocking(move || open(&opening.0, &opening.1)).await??;

        let mut tasks = JoinSet::new();
        let (intake_cancel, rest) = (CancellationToken::new(), CancellationToken::new());
        let (deliveries, delivered) = mpsc::channel(DELIVERIES_MAX);
        let broker = match &config.mqtt {
            Mqtt::Gate(_) => Some(start_broker(&config).await?),
            Mqtt::External(_) => None,
        };
        let intake = start_intake(&config, broker.clone(), deliveries, &intake_cancel, &mut tasks).await?;

        let decoder = Decoder::new(&config, matches!(config.mqtt, Mqtt::External(_)));
        let (live, live_seen) = watch::channel(Arc::default());
        let (orders, ordered) = mpsc::channel(ORDERS_MAX);
        let appended = Arc::new(Notify::new());
        let state = Arc::new(LineState::default());
        let vitals = Arc::new(Vitals {
            clock: Arc::clone(&clock),
            line: Arc::clone(&state),
            rejects: decoder.rejects(),
            intake,
            outbox: Arc::clone(&outbox),
            uplink: Arc::new(UplinkState::default()),
            gateway: Mutex::default(),
            models,
        });
        let line_ended = CancellationToken::new();
        let line = Line {
            pipeline,
            decoder,
            clock: Arc::clone(&clock),
            deliveries: delivered,
            orders: ordered,
            appended: Arc::clone(&appended),
            live,
            state,
            stop: intake_cancel.clone(),
        };
        line.spawn(tokio::runtime::Handle::current(), line_ended.clone())?;

        let deliverer = Deliverer { outbox, appended, clock, live: live_seen, orders };
        deliverer.start(&config, &vitals, &rest, &mut tasks);
        serve_http(&config, &vitals, &rest, &mut tasks).await?;
        watch_over(broker, &vitals, &rest, &mut tasks);

        notify(&[sd_notify::NotifyState::Ready]);
        let start_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        tracing::info!(start_ms, "ready");
        Ok(Self { tasks, intake: intake_cancel, rest, line_ended })
    }

    /// First nothing comes in any more, then what came is on the disk, then the rest ends.
    async fn stop(mut self) {
        let drained = timeout(DRAIN_TIMEOUT, async {
            self.intake.cancel();
            self.line_ended.cancelled().await;
            self.rest.cancel();
            while self.tasks.join_next().await.is_some() {}
        });
        if drained.await.is_err() {
            tracing::warn!("not everything ended in time; what was acknowledged is on the disk");
        }
    }
}

/// Opens what lies on the disk. The journal is replayed here.
fn open(config: &Config, clock: &Clock) -> anyhow::Result<(Arc<Mutex<Outbox>>, Pipeline, Vec<report::ModelState>)> {
    let data = &config.data_dir;
    std::fs::create_dir_all(data).with_context(|| format!("cannot make the data directory {}", data.display()))?;
    let settings = OutboxSettings {
        budget_bytes: config.outbox_bytes_max,
        disk_free_min: config.disk_free_min,
        ..OutboxSettings::default()
    };
    let place = data.join("outbox");
    let (outbox, opened) = Outbox::open(&place, settings).with_context(|| format!("the outbox {}", place.display()))?;
    if opened.lost_records > 0 || !opened.quarantined.is_empty() {
        tracing::error!(
            lost_records = opened.lost_records,
            quarantined = ?opened.quarantined,
            "the outbox was damaged: check this gateway's disk; the cloud is told what is missing"
        );
    }
    let outbox = Arc::new(Mutex::new(outbox));
    let registry = Registry::new(config.limits.machines_max, config.limits.sensors_max);
    let (settings, models) = settings::pipeline(config);
    let journal = data.join("journal");
    let mut pipeline = Pipeline::open(settings, &journal, Arc::clone(&outbox), opened.states, registry, clock.now())
        .with_context(|| format!("the journal {}", journal.display()))?;
    if opened.states_lost {
        pipeline.tell_catalogs();
    }
    Ok((outbox, pipeline, models))
}

async fn start_broker(config: &Config) -> anyhow::Result<Broker> {
    let Mqtt::Gate(gate) = &config.mqtt else { bail!("there is no gate") };
    let settings = BrokerSettings {
        connections_max: gate.connections_max,
        packet_bytes_max: config.limits.payload_bytes_max + PACKET_BYTES,
        ..BrokerSettings::default()
    };
    spawn_blocking(move || Broker::start(settings)).await?.context("the embedded broker")
}

async fn start_intake(
    config: &Config,
    broker: Option<Broker>,
    deliveries: mpsc::Sender<Delivery>,
    cancel: &CancellationToken,
    tasks: &mut JoinSet<&'static str>,
) -> anyhow::Result<Intake> {
    let cancel = cancel.clone();
    match (&config.mqtt, broker) {
        (Mqtt::Gate(settings), Some(broker)) => {
            let authenticate = devices::authenticate(&settings.devices)?;
            let limits = Limits {
                connections_max: settings.connections_max,
                connections_per_address_max: settings.connections_max,
                unacknowledged_max: settings.unacknowledged_max,
                // One over the limit of a payload is taken and counted as too large; far beyond ends the connection.
                packet_bytes_max: (config.limits.payload_bytes_max + PACKET_BYTES).max(2 << 20),
                ..Limits::default()
            };
            let gate = Gate::bind(listeners(settings)?, limits, broker).await.context("mqtt.listen")?;
            let (counters, addresses) = (gate.counters(), gate.addresses().to_vec());
            tracing::info!(?addresses, "listening for devices");
            tasks.spawn(async move {
                gate.run(authenticate, deliveries, cancel).await;
                "the gate"
            });
            Ok(Intake::Gate { counters, addresses, broker_lost: Arc::default() })
        }
        (Mqtt::External(external), _) => {
            let options = endpoint(external)?.options(
                external.client_id.as_deref().unwrap_or("gemba-edge"),
                config.limits.payload_bytes_max.max(1 << 20) + PACKET_BYTES,
            )?;
            let counters = Arc::new(ClientCounters::default());
            let filters = config.sources.iter().map(|source| source.topic.filter()).collect();
            let counted = Arc::clone(&counters);
            tasks.spawn(async move {
                subscribe(options, filters, deliveries, counted, cancel).await;
                "the client of the broker"
            });
            Ok(Intake::External { counters, url: external.url.clone() })
        }
        (Mqtt::Gate(_), None) => bail!("the gate has no broker"),
    }
}

fn listeners(settings: &GateSettings) -> anyhow::Result<Vec<Listener>> {
    let mut listeners: Vec<_> = settings.listen.iter().map(|&address| Listener { address, tls: None }).collect();
    if let Some(Tls { listen, certificate, key, client_ca }) = &settings.tls {
        let clients = match client_ca {
            Some(file) => ClientCertificates::Optional(Pem::file(file)?),
            None => ClientCertificates::NotAsked,
        };
        let config = tls::server_config(&Certified::files(certificate, key)?, &clients)?;
        listeners.extend(listen.iter().map(|&address| Listener { address, tls: Some(Arc::clone(&config)) }));
    }
    Ok(listeners)
}

fn endpoint(external: &External) -> anyhow::Result<Endpoint> {
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

/// What the uplink needs, whether or not there is one.
struct Deliverer {
    outbox: Arc<Mutex<Outbox>>,
    appended: Arc<Notify>,
    clock: Arc<Clock>,
    live: watch::Receiver<Arc<Vec<gemba_shared::message::LiveMachine>>>,
    orders: mpsc::Sender<crate::uplink::Order>,
}

impl Deliverer {
    /// Without an identity that is of use nothing is delivered, and everything else goes on.
    fn start(
        self,
        config: &Config,
        vitals: &Arc<Vitals>,
        cancel: &CancellationToken,
        tasks: &mut JoinSet<&'static str>,
    ) {
        let identity = match identity::load(&config.data_dir) {
            Ok(Some(identity)) => Arc::new(identity),
            Ok(None) => {
                tracing::warn!("not enrolled: records are kept; enrol with `gemba-edge enroll`, then start anew");
                return vitals.not_delivering("not enrolled: records are kept here");
            }
            Err(error) => {
                tracing::error!(error = format!("{error:#}"), "the identity of this gateway cannot be used");
                return vitals.not_delivering("the identity of this gateway is damaged: records are kept here");
            }
        };
        let options = match options(&identity, &config.cloud) {
            Ok(options) => options,
            Err(error) => {
                tracing::error!(error = format!("{error:#}"), "the way to the cloud cannot be used");
                return vitals.not_delivering("the way to the cloud is misconfigured: records are kept here");
            }
        };
        vitals.delivering(identity.gateway, &options);
        let status = Arc::clone(vitals);
        let uplink = Uplink {
            identity,
            options,
            outbox: self.outbox,
            appended: self.appended,
            clock: self.clock,
            live: self.live,
            orders: self.orders,
            status: Arc::new(move || status.status()),
            commands_file: config.data_dir.join("commands"),
            state: Arc::clone(&vitals.uplink),
        };
        let cancel = cancel.clone();
        tasks.spawn(async move {
            uplink.run(cancel).await;
            "the uplink"
        });
    }
}

async fn serve_http(
    config: &Config,
    vitals: &Arc<Vitals>,
    cancel: &CancellationToken,
    tasks: &mut JoinSet<&'static str>,
) -> anyhow::Result<()> {
    let listener = TcpListener::bind(config.http)
        .await
        .with_context(|| format!("cannot listen on {} (http.listen)", config.http))?;
    let vitals = Arc::clone(vitals);
    let router = health::router(Arc::new(move || vitals.report()));
    let cancel = cancel.clone();
    tasks.spawn(async move {
        let served = axum::serve(listener, router).with_graceful_shutdown(cancel.cancelled_owned()).await;
        if let Err(error) = served {
            tracing::error!(%error, "the HTTP endpoint failed");
        }
        "the HTTP endpoint"
    });
    Ok(())
}

/// Probes the broker, and tells the service manager that all is well while it is.
fn watch_over(
    broker: Option<Broker>,
    vitals: &Arc<Vitals>,
    cancel: &CancellationToken,
    tasks: &mut JoinSet<&'static str>,
) {
    let (vitals, cancel) = (Arc::clone(vitals), cancel.clone());
    tasks.spawn(async move {
        let (mut probe, mut watchdog) = (interval(PROBE_EVERY), interval(WATCHDOG_EVERY));
        loop {
            tokio::select! {
                () = cancel.cancelled() => return "the probe",
                _ = probe.tick() => {
                    if let (Some(broker), Intake::Gate { broker_lost, .. }) = (&broker, &vitals.intake) {
                        let probed = broker.probe().await;
                        if let Err(error) = &probed
                            && !broker_lost.load(Ordering::Relaxed)
                        {
                            tracing::error!(%error, "the embedded broker does not answer");
                        }
                        broker_lost.store(probed.is_err(), Ordering::Relaxed);
                    }
                }
                _ = watchdog.tick() => {
                    if vitals.unhealthy().is_empty() {
                        notify(&[sd_notify::NotifyState::Watchdog]);
                    }
                }
            }
        }
    });
}

/// Tells the service manager, where there is one.
fn notify(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "the service manager was not told");
    }
}
