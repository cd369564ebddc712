//! Takes a new configuration while the daemon runs, on SIGHUP or by a command of the cloud.
//!
//! First everything that it names is read and checked; only then is anything changed, so that one that is of no use changes nothing.
//! What is on its way stays on its way: nobody is disconnected but devices whose credentials or grants are others now.

use std::{
    path::Path,
    sync::{Arc, PoisonError},
    time::Duration,
};

use anyhow::{anyhow, bail};
use gemba_shared::message::{CommandKind, Outcome};
use sd_notify::NotifyState;
use tokio::{
    signal::unix::Signal,
    sync::{mpsc, oneshot, watch},
    task::spawn_blocking,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{
    deliver::{self, Way},
    intake::{self, Control, Prepared},
    line::Change,
    report::{ModelState, Vitals},
    settings,
    watching::notify,
};
use crate::{
    config::{Config, Merged, merge},
    health::ReloadReport,
    pipeline::PipelineSettings,
    status,
    uplink::Order,
};

/// The line takes a change between two batches; while the disk fails it takes none.
const LINE_TIMEOUT: Duration = Duration::from_secs(20);

/// All that a reload changes.
pub(super) struct Reloader {
    /// The configuration in use.
    pub(super) config: Arc<Config>,
    pub(super) intake: Control,
    pub(super) line: mpsc::Sender<Change>,
    pub(super) way: watch::Sender<Option<Way>>,
    pub(super) vitals: Arc<Vitals>,
    /// What the cloud commands the gateway itself.
    pub(super) orders: mpsc::Receiver<Order>,
}

/// A configuration that was read and can be taken.
struct Ready {
    merged: Merged,
    intake: Prepared,
    pipeline: PipelineSettings,
    models: Vec<ModelState>,
    way: Option<Way>,
}

impl Reloader {
    /// Takes configurations until `cancel`.
    pub(super) async fn run(mut self, mut hangup: Signal, cancel: CancellationToken) {
        loop {
            let answer = tokio::select! {
                () = cancel.cancelled() => return,
                Some(()) = hangup.recv() => None,
                Some(order) = self.orders.recv() => match self.obey(order).await {
                    Some(answer) => Some(answer),
                    None => continue,
                },
            };
            if let Ok(now) = NotifyState::monotonic_usec_now() {
                notify(&[NotifyState::Reloading, now]);
            }
            let result = self.reload().await;
            notify(&[NotifyState::Ready]);
            self.report(&result);
            let outcome = match result {
                Ok(restart) if restart.is_empty() => Outcome::Done,
                Ok(restart) => Outcome::Failed(format!("taken, but a restart is needed: {}", restart.join(", "))),
                Err(error) => Outcome::Failed(format!("{error:#}")),
            };
            if let Some(answer) = answer {
                tell(answer, outcome);
            }
        }
    }

    /// Carries out a command for the gateway itself; who waits for a reload, if it is one.
    async fn obey(&self, order: Order) -> Option<oneshot::Sender<Outcome>> {
        let Order::Command { kind, answer } = order else { return None };
        match kind {
            CommandKind::Reload => return Some(answer),
            CommandKind::SendDiagnostics => {
                let vitals = Arc::clone(&self.vitals);
                let told = spawn_blocking(move || status::readable(&vitals.report())).await;
                tell(answer, told.map_or_else(|error| Outcome::Failed(error.to_string()), Outcome::Told));
            }
            _ => tell(answer, Outcome::Unknown),
        }
        None
    }

    /// The keys that wait for a restart.
    async fn reload(&mut self) -> anyhow::Result<Vec<&'static str>> {
        let Some(file) = self.config.file.clone() else { bail!("the daemon runs without a configuration file") };
        let running = Arc::clone(&self.config);
        let (delivers, refused) = (self.vitals.is_delivering(), self.vitals.models_refused());
        let prepared = spawn_blocking(move || prepare(&file, &running, delivers, &refused)).await?;
        let Ready { merged, intake, pipeline, models, way } = prepared?;

        let config = Arc::new(merged.config);
        let (done, taken) = oneshot::channel();
        let change = Change { config: Arc::clone(&config), pipeline, done };
        self.line.send(change).await.map_err(|_| anyhow!("the daemon stops"))?;
        let outbox = Arc::clone(&self.vitals.outbox);
        let (budget, free) = (config.outbox_bytes_max, config.disk_free_min);
        spawn_blocking(move || outbox.lock().unwrap_or_else(PoisonError::into_inner).set_room(budget, free)).await?;
        self.intake.change(intake);
        if way.is_some() || !delivers {
            deliver::change(&self.way, way);
        }
        self.vitals.set_models(models);
        self.config = config;
        if timeout(LINE_TIMEOUT, taken).await.is_err() {
            bail!("the line from devices to the outbox is busy; it takes the new configuration when it goes on");
        }
        Ok(merged.restart)
    }

    fn report(&self, result: &anyhow::Result<Vec<&'static str>>) {
        let refused = match result {
            Ok(restart) => {
                if restart.is_empty() {
                    tracing::info!("configuration reloaded");
                } else {
                    tracing::warn!(restart_needed = restart.join(", "), "configuration reloaded, but for some keys");
                }
                None
            }
            Err(error) => {
                let error = format!("{error:#}");
                tracing::error!(error, "configuration refused: the one before stays in use");
                Some(error)
            }
        };
        let restart_needed = match result {
            Ok(restart) => Some(restart.iter().map(|key| (*key).to_owned()).collect()),
            Err(_) => None,
        };
        self.vitals.reloaded(refused, restart_needed);
    }
}

fn tell(answer: oneshot::Sender<Outcome>, outcome: Outcome) {
    if answer.send(outcome).is_err() {
        tracing::debug!("nobody waits for the command's outcome");
    }
}

/// Reads the file and all that it names. `delivers`: there is a way to the cloud now; `refused`: models that could not be used
/// before either.
fn prepare(file: &Path, running: &Config, delivers: bool, refused: &[String]) -> anyhow::Result<Ready> {
    let new = Config::load(file).map_err(anyhow::Error::new)?;
    let merged = merge(running, new);
    let intake = intake::prepare(&merged.config)?;
    let (pipeline, models) = settings::pipeline(&merged.config);
    for model in &models {
        if let Some(why) = &model.refused
            && !refused.contains(&model.name)
        {
            bail!("the model {}: {why}", model.name);
        }
    }
    let way = match deliver::way(&merged.config) {
        Ok(way) => way,
        Err(error) if delivers => return Err(error),
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "nothing can be delivered");
            None
        }
    };
    Ok(Ready { merged, intake, pipeline, models, way })
}

/// Reads everything that a configuration names, as the daemon would at its start: what, and what was found.
pub(crate) fn check_files(config: &Config) -> Vec<(&'static str, anyhow::Result<String>)> {
    let intake = intake::prepare(config).map(|prepared| match prepared {
        Prepared::Gate { devices, .. } => format!("{} may connect", devices.len()),
        Prepared::External(_) => "of another broker".to_owned(),
    });
    let mut checks = vec![("devices", intake)];
    let (_, models) = settings::pipeline(config);
    for ModelState { name, refused } in models {
        let found = match refused {
            None => Ok(format!("{name} can be used")),
            Some(why) => Err(anyhow!("{name}: {why}; the built-in baseline judges in its place")),
        };
        checks.push(("model", found));
    }
    let way = deliver::way(config).map(|way| way.map_or("not enrolled", |_| "enrolled").to_owned());
    checks.push(("identity", way));
    checks
}

/// What a reload left, for a report.
#[derive(Debug, Default)]
pub(super) struct Reloads {
    count: u64,
    at_us: i64,
    refused: Option<String>,
    restart_needed: Vec<String>,
}

impl Reloads {
    pub(super) fn note(&mut self, now_us: i64, refused: Option<String>, restart_needed: Option<Vec<String>>) {
        self.count += 1;
        self.at_us = now_us;
        self.refused = refused;
        // A configuration that was refused asks for nothing.
        if let Some(restart_needed) = restart_needed {
            self.restart_needed = restart_needed;
        }
    }

    pub(super) fn report(&self, now_us: i64) -> ReloadReport {
        ReloadReport {
            count: self.count,
            ago_s: (self.count > 0).then(|| u64::try_from((now_us - self.at_us) / 1_000_000).unwrap_or(0)),
            refused: self.refused.clone(),
            restart_needed: self.restart_needed.clone(),
        }
    }
}
