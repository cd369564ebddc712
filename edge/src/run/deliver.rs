//! The way to the cloud: kept up, and another one taken when the configuration or the enrolment says so.

use std::{
    fs,
    sync::{Arc, Mutex},
};

use anyhow::Context as _;
use gemba_shared::message::LiveMachine;
use rumqttc::MqttOptions;
use sha2::{Digest as _, Sha256};
use tokio::{
    sync::{Notify, mpsc, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use super::report::Vitals;
use crate::{
    clock::Clock,
    config::Config,
    identity::{self, Identity},
    outbox::Outbox,
    uplink::{Order, Uplink, options},
};

/// Where to deliver, and as whom.
#[derive(Clone)]
pub(super) struct Way {
    identity: Arc<Identity>,
    options: MqttOptions,
    bytes_per_second_max: Option<u32>,
    /// Of all that it was made of.
    mark: [u8; 32],
}

/// The way that enrolment and configuration say; `None` before enrolment.
///
/// # Errors
/// If there is one that cannot be used.
pub(super) fn way(config: &Config) -> anyhow::Result<Option<Way>> {
    let identity = identity::load(&config.data_dir).context("the identity of this gateway cannot be used")?;
    let Some(identity) = identity else { return Ok(None) };
    let options = options(&identity, &config.cloud).context("the way to the cloud cannot be used")?;
    let mut digest = Sha256::new();
    let own = &identity.mqtt;
    let login = options.credentials().map(|login| (login.username, login.password));
    digest.update(format!("{} {:?} {login:?} {:?}", own.url, own.ca_pem, config.cloud));
    digest.update(identity.gateway.to_string());
    digest.update(identity.key.to_bytes());
    digest.update(identity.cloud_key.as_bytes());
    if let Some(file) = &config.cloud.ca_file {
        digest.update(fs::read(file).with_context(|| format!("cannot read {}", file.display()))?);
    }
    let (identity, bytes_per_second_max) = (Arc::new(identity), config.cloud.bytes_per_second_max);
    Ok(Some(Way { identity, options, bytes_per_second_max, mark: digest.finalize().into() }))
}

/// What the uplink needs, whether or not there is one.
pub(super) struct Deliverer {
    pub(super) outbox: Arc<Mutex<Outbox>>,
    pub(super) appended: Arc<Notify>,
    pub(super) clock: Arc<Clock>,
    pub(super) live: watch::Receiver<Arc<Vec<LiveMachine>>>,
    /// To the line.
    pub(super) orders: mpsc::Sender<Order>,
    /// To the daemon.
    pub(super) daemon_orders: mpsc::Sender<Order>,
    pub(super) vitals: Arc<Vitals>,
}

impl Deliverer {
    /// Without a way nothing is delivered, and everything else goes on. Another way may be sent later.
    pub(super) fn start(
        self,
        config: &Config,
        cancel: &CancellationToken,
        tasks: &mut JoinSet<&'static str>,
    ) -> watch::Sender<Option<Way>> {
        let found = match way(config) {
            Ok(Some(way)) => Some(way),
            Ok(None) => {
                tracing::warn!("not enrolled: records are kept; enrol with `gemba-edge enroll`, then reload");
                self.vitals.not_delivering("not enrolled: records are kept here");
                None
            }
            Err(error) => {
                tracing::error!(error = format!("{error:#}"), "nothing can be delivered");
                self.vitals.not_delivering("the way to the cloud cannot be used: records are kept here");
                None
            }
        };
        let (wanted, changes) = watch::channel(found);
        let commands_file = config.data_dir.join("commands");
        let cancel = cancel.clone();
        tasks.spawn(async move {
            self.run(changes, commands_file, cancel).await;
            "the uplink"
        });
        wanted
    }

    async fn run(
        self,
        mut wanted: watch::Receiver<Option<Way>>,
        commands_file: std::path::PathBuf,
        cancel: CancellationToken,
    ) {
        while !cancel.is_cancelled() {
            let way = wanted.borrow_and_update().clone();
            let end = cancel.child_token();
            let Some(way) = way else {
                tokio::select! {
                    () = cancel.cancelled() => return,
                    Ok(()) = wanted.changed() => continue,
                }
            };
            self.vitals.delivering(way.identity.gateway, &way.options);
            let delivered = self.uplink(way, commands_file.clone()).run(end.clone());
            tokio::pin!(delivered);
            tokio::select! {
                () = &mut delivered => return,
                Ok(()) = wanted.changed() => end.cancel(),
            }
            delivered.await;
        }
    }

    fn uplink(&self, way: Way, commands_file: std::path::PathBuf) -> Uplink {
        let status = Arc::clone(&self.vitals);
        Uplink {
            identity: way.identity,
            options: way.options,
            outbox: Arc::clone(&self.outbox),
            appended: Arc::clone(&self.appended),
            clock: Arc::clone(&self.clock),
            live: self.live.clone(),
            orders: self.orders.clone(),
            daemon_orders: self.daemon_orders.clone(),
            bytes_per_second_max: way.bytes_per_second_max,
            status: Arc::new(move || status.status()),
            commands_file,
            state: Arc::clone(&self.vitals.uplink),
        }
    }
}

/// Takes another way, where it is another one.
pub(super) fn change(wanted: &watch::Sender<Option<Way>>, way: Option<Way>) {
    wanted.send_if_modified(|current| {
        let mark = |way: &Option<Way>| way.as_ref().map(|way| way.mark);
        let changed = mark(current) != mark(&way);
        *current = way;
        changed
    });
}
