//! `gemba-edge run`: puts the parts together, keeps them going, and takes them down in the order of flow.
//!
//! Tasks: the gate (or the client of another broker), the uplink, the local HTTP endpoint, the probe. One thread of
//! its own: the line from deliveries to the outbox. Whatever of them ends by itself ends the daemon, so that the
//! service manager starts it anew. Neither a network nor a cloud nor an enrolment is needed to start.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context as _, anyhow, bail};
use sd_notify::NotifyState;
use tokio::{
    net::TcpListener,
    signal::unix::{Signal, SignalKind, signal},
    sync::{Notify, mpsc, watch},
    task::{JoinSet, spawn_blocking},
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    clock::Clock,
    config::{Config, Mqtt},
    health,
    ingest::Decoder,
    outbox::{Outbox, OutboxSettings},
    pipeline::Pipeline,
    reading::Registry,
    uplink::UplinkState,
};

mod deliver;
mod intake;
mod line;
mod reload;
mod report;
mod settings;
mod watching;

use deliver::Deliverer;
use line::{Line, LineState};
use reload::Reloader;
use report::Vitals;
use watching::notify;

pub(crate) use intake::endpoint;
pub(crate) use reload::check_files;

/// Deliveries that wait for the line; a device's connection is not read while it is full.
const DELIVERIES_MAX: usize = 256;
const ORDERS_MAX: usize = 8;
/// How long the end may take.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// Runs the daemon until SIGTERM or SIGINT. On SIGHUP it takes its configuration file anew.
///
/// # Errors
/// If it cannot start, or a part of it ended by itself.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let hangup = signal(SignalKind::hangup())?;
    let mut daemon = Daemon::start(config, hangup).await?;
    let ended = tokio::select! {
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        ended = daemon.tasks.join_next() => Some(ended),
        () = daemon.line_ended.cancelled() => Some(None),
    };
    notify(&[NotifyState::Stopping]);
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
    async fn start(config: Config, hangup: Signal) -> anyhow::Result<Self> {
        let config = Arc::new(config);
        let begun = Instant::now();
        let clock = Arc::new(Clock::new(config.clock, config.data_dir.join("clock")));
        let opening = (Arc::clone(&config), Arc::clone(&clock));
        let (outbox, pipeline, models) = spawn_blocking(move || open(&opening.0, &opening.1)).await??;

        let mut tasks = JoinSet::new();
        let (intake_cancel, rest) = (CancellationToken::new(), CancellationToken::new());
        let (deliveries, delivered) = mpsc::channel(DELIVERIES_MAX);
        let reading = Arc::clone(&config);
        let prepared = spawn_blocking(move || intake::prepare(&reading)).await??;
        let broker = match &config.mqtt {
            Mqtt::Gate(gate) => Some(intake::start_broker(gate).await?),
            Mqtt::External(_) => None,
        };
        let (intake, control) =
            intake::start(&config, prepared, broker.clone(), deliveries, &intake_cancel, &mut tasks).await?;

        let decoder = Decoder::new(&config, matches!(config.mqtt, Mqtt::External(_)));
        let (live, live_seen) = watch::channel(Arc::default());
        let (orders, ordered) = mpsc::channel(ORDERS_MAX);
        let (change, changes) = mpsc::channel(1);
        let (daemon_orders, daemon_ordered) = mpsc::channel(ORDERS_MAX);
        let appended = Arc::new(Notify::new());
        let state = Arc::new(LineState::default());
        state.progress_us.store(clock.now().mono_us, std::sync::atomic::Ordering::Relaxed);
        let vitals = Arc::new(Vitals {
            clock: Arc::clone(&clock),
            line: Arc::clone(&state),
            rejects: decoder.rejects(),
            intake,
            outbox: Arc::clone(&outbox),
            uplink: Arc::new(UplinkState::default()),
            gateway: Mutex::default(),
            models: Mutex::new(models),
            reloads: Mutex::default(),
            sync_interval: config.sync_interval,
        });
        let line_ended = CancellationToken::new();
        let line = Line {
            pipeline,
            decoder,
            clock: Arc::clone(&clock),
            deliveries: delivered,
            orders: ordered,
            changes,
            appended: Arc::clone(&appended),
            live,
            state,
            outbox_takes: true,
            stop: intake_cancel.clone(),
        };
        line.spawn(tokio::runtime::Handle::current(), line_ended.clone())?;

        watching::keep_time(&clock, &rest, &mut tasks);
        let deliverer =
            Deliverer { outbox, appended, clock, live: live_seen, orders, daemon_orders, vitals: Arc::clone(&vitals) };
        let way = deliverer.start(&config, &rest, &mut tasks);
        serve_http(&config, &vitals, &rest, &mut tasks).await?;
        watching::over(broker, &vitals, &rest, &mut tasks);
        let reloader = Reloader { config, intake: control, line: change, way, vitals, orders: daemon_ordered };
        let cancel = rest.clone();
        tasks.spawn(async move {
            reloader.run(hangup, cancel).await;
            "the reloader"
        });

        notify(&[NotifyState::Ready]);
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
