//! The daemon: everything started in order, watched, and stopped in the order of flow.

use std::{
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use gemba_mqtt::delivery::Delivery;
use ipnet::IpNet;
use jiff::SignedDuration;
use sd_notify::NotifyState;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{broadcast, mpsc},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use crate::{
    api::{self, ApiState},
    clock,
    config::Config,
    deliver,
    enrolment::{Enrolments, Offer},
    intake::{self, ANSWERS_MAX, Answer, Intake},
    keys::Keys,
    live::{
        CHANGES_MAX, Changes,
        hub::{Feed, Hub},
    },
    metrics::Metrics,
    notifications::address::Policy,
    store::{Store, migrate::MigrateError},
    views::Patience,
    web::site,
};

pub mod alarms;
pub mod database;
pub mod deliveries;
pub mod external;
pub mod gateways;
pub mod history;
pub mod news;
pub mod plans;
pub mod systemd;
pub mod turn;
pub mod web;

use database::Database;
use deliveries::Deliveries;
use external::External;
use gateways::Port;
use systemd::{notify, watchdog};

/// Deliveries that wait for intake.
const DELIVERIES_MAX: usize = 256;
const DATABASE_AGAIN: Duration = Duration::from_secs(2);
/// How long clients of the live stream may take to read that it ends.
const STREAMS_END_WITHIN: Duration = Duration::from_secs(2);
/// How long a stage may take to stop.
const DRAIN_MAX: Duration = Duration::from_secs(15);

/// Runs the daemon until SIGTERM or SIGINT.
///
/// # Errors
/// If something cannot be started, or a part of it ends by itself.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let started = Instant::now();
    let mut terminated = signal(SignalKind::terminate())?;
    let mut interrupted = signal(SignalKind::interrupt())?;
    let stop = async move {
        tokio::select! {
            _ = terminated.recv() => {}
            _ = interrupted.recv() => {}
        }
    };
    tokio::pin!(stop);

    let keys = Keys::open(&config.data_dir)?;
    let tls = https(&config)?;
    let listener = web::Listener::bind(config.http.listen, tls).await?;
    let link = Link::open(&config, &keys).await?;
    let database = tokio::select! {
        () = &mut stop => return Ok(()),
        database = Database::open(&config) => database?,
    };
    let finished = CancellationToken::new();
    let serving = async {
        let migrated = tokio::select! {
            () = &mut stop => return Ok(()),
            migrated = migrate(&database.store) => migrated,
        };
        migrated?;
        Daemon::new(&config, keys, database.store.clone(), link)?.serve(listener, started, &mut stop).await
    };
    let serving = async {
        let served = serving.await;
        finished.cancel();
        served
    };
    let (served, ()) = tokio::join!(serving, database.keep_running(&finished));
    let closed = database.close().await;
    served.and(closed)
}

fn https(config: &Config) -> anyhow::Result<Option<Arc<rustls::ServerConfig>>> {
    let (Some(certificate), Some(key)) = (&config.http.certificate_file, &config.http.key_file) else {
        return Ok(None);
    };
    let read = |path: &Path| std::fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    web::tls(&read(certificate)?, &read(key)?).context("http.certificate_file").map(Some)
}

/// Brings the schema up to date, waiting for a database that is still starting.
async fn migrate(store: &Store) -> anyhow::Result<()> {
    loop {
        match store.migrate().await {
            Ok(_) => break,
            Err(MigrateError::Store(error)) if error.is_transient() => {
                tracing::warn!(error = &error as &dyn std::error::Error, "the database is away; trying again");
                tokio::time::sleep(DATABASE_AGAIN).await;
            }
            Err(error) => return Err(error).context("the database cannot be used"),
        }
    }
    history::days_ahead(store).await.context("cannot make the partitions of the next days")
}

/// Where frames come from.
enum Link {
    Own(Port),
    External(Box<External>),
}

impl Link {
    async fn open(config: &Config, keys: &Keys) -> anyhow::Result<Self> {
        match &config.mqtt.url {
            Some(url) => Ok(Self::External(Box::new(External::open(url, &config.mqtt)?))),
            None => Port::open(&config.mqtt, keys).await.map(Self::Own),
        }
    }

    fn authority_pem(&self, config: &Config) -> anyhow::Result<Option<String>> {
        match (self, &config.mqtt.ca_file) {
            (Self::Own(port), _) => Ok(port.authority_pem.clone()),
            (Self::External(_), None) => Ok(None),
            (Self::External(_), Some(file)) => {
                std::fs::read_to_string(file).map(Some).with_context(|| format!("cannot read {}", file.display()))
            }
        }
    }

    fn addresses(&self) -> &[SocketAddr] {
        match self {
            Self::Own(port) => port.gate.addresses(),
            Self::External(_) => &[],
        }
    }
}

struct Daemon {
    keys: Keys,
    store: Store,
    link: Link,
    offer: Offer,
    url: String,
    requests_per_s: u32,
    trusted_proxies: Vec<IpNet>,
    attachments: api::tickets::files::Limits,
    carbon_g_per_kwh: f64,
    settings: intake::Settings,
    patience: Patience,
    pack_after: SignedDuration,
    metrics: Arc<Metrics>,
    changes: Changes,
    stopping: Arc<AtomicBool>,
    deliveries: Deliveries,
}

impl Daemon {
    fn new(config: &Config, keys: Keys, store: Store, link: Link) -> anyhow::Result<Self> {
        let offer = Offer { url: config.mqtt.gateways_url(), ca_pem: link.authority_pem(config)? };
        let metrics = Arc::new(Metrics::default());
        metrics.storing.set(1);
        Ok(Self {
            keys,
            store,
            link,
            offer,
            url: config.http.url(),
            requests_per_s: config.http.requests_per_s,
            trusted_proxies: config.http.trusted_proxies.clone(),
            attachments: api::tickets::files::Limits {
                bytes_max: config.tickets.attachment_bytes_max,
                count_max: config.tickets.attachments_max,
            },
            carbon_g_per_kwh: config.energy.carbon_g_per_kwh,
            settings: intake::Settings {
                offline_after: config.alarms.offline_after,
                late_after: config.alarms.late_after,
            },
            patience: Patience { gateway: config.alarms.offline_after, machine: config.alarms.silent_after },
            pack_after: config.history.pack_after,
            metrics,
            changes: broadcast::channel(CHANGES_MAX).0,
            stopping: Arc::default(),
            deliveries: Deliveries::open(config)?,
        })
    }

    async fn serve(
        self,
        listener: web::Listener,
        started: Instant,
        stop: &mut (impl Future<Output = ()> + Unpin),
    ) -> anyhow::Result<()> {
        let [first, middle, last] = [(); 3].map(|()| CancellationToken::new());
        let mut tasks: JoinSet<anyhow::Result<&'static str>> = JoinSet::new();
        let (deliveries, delivered) = mpsc::channel(DELIVERIES_MAX);
        let (answers, answered) = mpsc::channel(ANSWERS_MAX);
        // Weak: intake ends when nobody can deliver any more.
        let waiting = deliveries.downgrade();

        self.link(&mut tasks, deliveries, answered, &first, &last);
        let intake = Intake::new(self.intake_parts(answers));
        let cancel = middle.clone();
        tasks.spawn(async move {
            intake.run(delivered, cancel).await;
            Ok("intake")
        });
        let alarms = alarms::keep(self.store.clone(), self.changes.clone(), self.settings.offline_after, last.clone());
        tasks.spawn(async move {
            alarms.await;
            Ok("alarms")
        });
        let keep = history::keep(self.store.clone(), self.pack_after, last.clone());
        tasks.spawn(async move {
            keep.await;
            Ok("history")
        });
        let plans = plans::keep(self.store.clone(), self.changes.clone(), last.clone());
        tasks.spawn(async move {
            plans.await;
            Ok("plans")
        });
        let feed = Feed::default();
        let hub = Hub::new(self.store.clone(), feed.clone(), clock::now, self.patience);
        let elsewhere = broadcast::channel(CHANGES_MAX).0;
        let (changes, heard, cancel) = (self.changes.subscribe(), elsewhere.subscribe(), last.clone());
        tasks.spawn(async move {
            hub.run(changes, heard, cancel).await;
            Ok("live")
        });
        let news = news::exchange(self.store.clone(), self.changes.clone(), elsewhere, last.clone());
        tasks.spawn(async move {
            news.await;
            Ok("news")
        });
        let address = listener.address();
        let policy = self.deliveries.policy(self.link.addresses().iter().copied().chain([address]));
        let parts = self.deliveries.parts(&self.store, &self.metrics, &self.keys.signing, &policy, address)?;
        let cancel = last.clone();
        tasks.spawn(async move {
            deliver::run(Arc::new(parts), cancel).await;
            Ok("deliveries")
        });
        let state = self.state(feed, policy, waiting, last.clone());
        let app = self.app(state.clone());
        let cancel = last.clone();
        tasks.spawn(async move {
            web::serve(listener, app, cancel).await?;
            // They were told the same moment.
            if tokio::time::timeout(STREAMS_END_WITHIN, state.streams_ended()).await.is_err() {
                tracing::info!("clients of the live stream that do not read are left");
            }
            Ok("web")
        });

        tracing::info!(
            http = %address, mqtt = ?self.link.addresses(), ms = started.elapsed().as_millis() as u64, "ready"
        );
        notify(&[NotifyState::Ready]);
        let ended = tokio::select! {
            () = stop => Ok(()),
            Some(ended) = tasks.join_next() => Err(ended),
            () = watchdog() => Ok(()),
        };
        notify(&[NotifyState::Stopping]);
        self.stopping.store(true, Ordering::Relaxed);
        tracing::info!("stopping");
        // In the order of flow: nothing new comes in, what is here is stored, then the rest.
        let drained = drain(&mut tasks, [first, middle, last]).await;
        match ended {
            Ok(()) => drained,
            Err(Ok(Ok(part))) => bail!("a part of the daemon ended by itself: {part}"),
            Err(Ok(Err(error))) => Err(error),
            Err(Err(error)) => Err(error).context("a part of the daemon ended badly"),
        }
    }

    /// What lies between gateways and intake: our own port and broker, or somebody else's.
    fn link(
        &self,
        tasks: &mut JoinSet<anyhow::Result<&'static str>>,
        deliveries: mpsc::Sender<Delivery>,
        answered: mpsc::Receiver<Answer>,
        first: &CancellationToken,
        last: &CancellationToken,
    ) {
        let (first, last) = (first.clone(), last.clone());
        let port = match &self.link {
            Link::Own(port) => port,
            Link::External(external) => {
                let (taking, answering) = (external.clone(), external.clone());
                tasks.spawn(async move {
                    taking.take(deliveries, first).await;
                    Ok("broker")
                });
                tasks.spawn(async move {
                    answering.answer(answered, last).await;
                    Ok("answers")
                });
                return;
            }
        };
        let gate = Arc::clone(&port.gate);
        let authenticate = gateways::authenticate(self.store.clone(), Arc::clone(&self.metrics));
        tasks.spawn(async move {
            gate.run(authenticate, deliveries, first).await;
            Ok("gate")
        });
        let publisher = port.broker.publisher();
        tasks.spawn(async move { send_answers(answered, publisher).await.map(|()| "answers") });
        let watch = gateways::watch_broker(port.broker.clone(), last.clone());
        tasks.spawn(async move { watch.await.map(|()| "broker") });
        let cut = gateways::cut_off(self.store.clone(), Arc::clone(&port.gate), Arc::clone(&self.metrics), last);
        tasks.spawn(async move {
            cut.await;
            Ok("cut-off")
        });
    }

    fn intake_parts(&self, answers: mpsc::Sender<Answer>) -> intake::Parts {
        intake::Parts {
            store: self.store.clone(),
            signing: self.keys.signing.clone(),
            changes: self.changes.clone(),
            metrics: Arc::clone(&self.metrics),
            settings: self.settings,
            answers,
        }
    }

    fn app(&self, state: ApiState) -> axum::Router {
        let enrolments = Enrolments {
            store: self.store.clone(),
            signing: self.keys.signing.clone(),
            offer: self.offer.clone(),
            changes: self.changes.clone(),
            metrics: Arc::clone(&self.metrics),
        };
        site(api::router(state, api::enroll::routes(Arc::new(enrolments))))
    }

    fn state(
        &self,
        feed: Feed,
        webhook_policy: Policy,
        waiting: mpsc::WeakSender<Delivery>,
        ending: CancellationToken,
    ) -> ApiState {
        let storing = Arc::clone(&self.metrics);
        let stopping = Arc::clone(&self.stopping);
        let parts = api::Parts {
            store: self.store.clone(),
            clock: clock::now,
            patience: self.patience,
            changes: self.changes.clone(),
            feed,
            url: self.url.clone(),
            requests_per_s: self.requests_per_s,
            trusted_proxies: self.trusted_proxies.clone(),
            carbon_g_per_kwh: self.carbon_g_per_kwh,
            metrics: Arc::clone(&self.metrics),
            intake_waiting: Box::new(move || {
                waiting.upgrade().map_or(0, |deliveries| deliveries.max_capacity() - deliveries.capacity())
            }),
            ending,
            mail: self.deliveries.mail(),
            webhook_policy,
            attachments: self.attachments,
            not_ready: Box::new(move || {
                if stopping.load(Ordering::Relaxed) {
                    Some("the daemon is stopping".into())
                } else {
                    (storing.storing.get() == 0).then(|| "the database does not take what gateways send".into())
                }
            }),
        };
        ApiState::new(parts, &self.keys.signing)
    }
}

/// Hands answers to the broker until intake is gone.
async fn send_answers(
    mut answers: mpsc::Receiver<Answer>,
    publisher: gemba_mqtt::broker::Publisher,
) -> anyhow::Result<()> {
    while let Some(answer) = answers.recv().await {
        publisher.publish(answer.topic, answer.frame).await.context("the embedded broker is dead")?;
    }
    Ok(())
}

/// Cancels one stage after the other, and waits for all.
async fn drain(
    tasks: &mut JoinSet<anyhow::Result<&'static str>>,
    stages: [CancellationToken; 3],
) -> anyhow::Result<()> {
    let mut failed = None;
    for stage in &stages {
        stage.cancel();
        let quiet = tokio::time::timeout(Duration::from_millis(500), tasks.join_next());
        if let Ok(Some(Ok(Err(error)))) = quiet.await {
            failed = Some(error);
        }
    }
    let rest = async {
        while let Some(ended) = tasks.join_next().await {
            match ended {
                Ok(Ok(part)) => tracing::debug!(part, "stopped"),
                Ok(Err(error)) => tracing::warn!(error = %error, "a part did not stop well"),
                Err(error) => tracing::warn!(%error, "a part did not stop well"),
            }
        }
    };
    if tokio::time::timeout(DRAIN_MAX, rest).await.is_err() {
        tracing::warn!("not everything stopped in time; gateways will send again what was under way");
        tasks.shutdown().await;
    }
    failed.map_or(Ok(()), Err)
}
