//! Turns changes into messages, once for all clients.
//!
//! The hub reads what changed from the database and writes each message as JSON once; clients share the text, and each is
//! handed what its sites tell.
//! Machines are told at most [`MACHINES_EVERY`] (the latest state wins), everything else after [`OTHERS_AFTER`], so
//! that a burst is one query. With no client it only empties its queue. A client that cannot keep up loses messages
//! and is told to load everything again; so are all when the hub itself could not. What changed at another replica is told like what
//! changed here ([`super::news`]).
//!
//! A machine falls silent, and a gateway offline, without a row that changes: the hub looks for such every
//! [`SWEEP_EVERY`].

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use axum::extract::ws::Utf8Bytes;
use jiff::Timestamp;
use serde::Serialize;
use tokio::{
    sync::broadcast::{self, error::RecvError},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Change, news::News};
use crate::{
    store::{
        self, Store, StoreError,
        objects::{self, Object},
    },
    users::scope::Scope,
    views::{Alarm, Anomaly, Gateway, Incident, MachineLive, MachineState, Patience, Ticket},
};

/// Messages that a client may be behind.
pub const MESSAGES_MAX: usize = 2_048;
/// A machine is told no more often than this.
pub const MACHINES_EVERY: Duration = Duration::from_millis(500);
/// How long other changes wait for company.
pub const OTHERS_AFTER: Duration = Duration::from_millis(20);
pub const SWEEP_EVERY: Duration = Duration::from_secs(5);
/// How long the hub waits after the database failed it.
const RETRY_AFTER: Duration = Duration::from_secs(2);
/// Rows read at a time.
const ROWS_MAX: usize = 500;

/// A message of the live stream.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Message {
    Hello,
    Machine {
        machine: MachineLive,
    },
    Alarm {
        alarm: Box<Alarm>,
    },
    Incident {
        incident: Box<Incident>,
    },
    Ticket {
        ticket: Box<Ticket>,
    },
    Anomaly {
        anomaly: Box<Anomaly>,
    },
    Gateway {
        gateway: Gateway,
    },
    /// Messages were lost: load everything again.
    Resync,
}

impl Message {
    /// As it is sent.
    #[must_use]
    pub fn text(&self) -> Utf8Bytes {
        // Strings, numbers and lists: nothing in it can fail to be written.
        serde_json::to_string(self).unwrap_or_else(|_| r#"{"type":"resync"}"#.to_owned()).into()
    }
}

/// A message, and of which site.
#[derive(Debug, Clone)]
pub struct Told {
    /// `None`: for everybody.
    site: Option<Uuid>,
    pub text: Utf8Bytes,
}

impl Told {
    /// Whether somebody with this scope may hear it.
    #[must_use]
    pub fn is_for(&self, scope: &Scope) -> bool {
        self.site.is_none_or(|site| scope.at(site).is_some())
    }
}

/// Where clients listen.
#[derive(Debug, Clone)]
pub struct Feed(broadcast::Sender<Told>);

impl Default for Feed {
    fn default() -> Self {
        Self(broadcast::channel(MESSAGES_MAX).0)
    }
}

impl Feed {
    /// Every message from now on; `Lagged` means that the client is to be told to resync.
    #[must_use]
    pub fn listen(&self) -> broadcast::Receiver<Told> {
        self.0.subscribe()
    }

    #[must_use]
    pub fn clients(&self) -> usize {
        self.0.receiver_count()
    }

    /// Tells everybody.
    fn tell_all(&self, message: &Message) {
        self.send(Told { site: None, text: message.text() });
    }

    /// Tells those who may see the object's site; nobody, if it is not known where that is.
    fn tell(&self, sites: &HashMap<Uuid, Uuid>, object: Uuid, message: &Message) {
        if let Some(site) = sites.get(&object) {
            self.send(Told { site: Some(*site), text: message.text() });
        }
    }

    fn send(&self, told: Told) {
        // An error says that nobody listens, which is no fault.
        drop(self.0.send(told));
    }
}

/// What is to be read and told.
#[derive(Debug, Default)]
struct Pending {
    machines: HashSet<Uuid>,
    alarms: HashSet<Uuid>,
    incidents: HashSet<Uuid>,
    tickets: HashSet<Uuid>,
    anomalies: HashSet<Uuid>,
    gateways: HashSet<Uuid>,
}

impl Pending {
    fn add(&mut self, change: Change) {
        match change {
            Change::Machine(id) => self.machines.insert(id),
            Change::Alarm(id) => self.alarms.insert(id),
            Change::Incident(id) => self.incidents.insert(id),
            Change::Ticket(id) => self.tickets.insert(id),
            Change::Anomaly(id) => self.anomalies.insert(id),
            Change::Gateway(id) => self.gateways.insert(id),
        };
    }

    fn others(&self) -> bool {
        let Self { alarms, incidents, tickets, anomalies, gateways, machines: _ } = self;
        ![alarms, incidents, tickets, anomalies, gateways].iter().all(|ids| ids.is_empty())
    }
}

/// Tells changes to clients until it is cancelled or no one can change anything any more.
#[derive(Debug)]
pub struct Hub {
    store: Store,
    feed: Feed,
    clock: fn() -> Timestamp,
    patience: Patience,
    pending: Pending,
    /// The word for each machine when it was last looked at.
    states: HashMap<Uuid, MachineState>,
    failing: bool,
}

impl Hub {
    #[must_use]
    pub fn new(store: Store, feed: Feed, clock: fn() -> Timestamp, patience: Patience) -> Self {
        Self { store, feed, clock, patience, pending: Pending::default(), states: HashMap::new(), failing: false }
    }

    pub async fn run(
        mut self,
        mut changes: broadcast::Receiver<Change>,
        mut elsewhere: broadcast::Receiver<News>,
        cancel: CancellationToken,
    ) {
        let mut machines_at = Instant::now();
        let mut others_at = Instant::now();
        let mut sweep_at = Instant::now();
        loop {
            let news = tokio::select! {
                () = cancel.cancelled() => return,
                change = changes.recv() => match change {
                    Ok(change) => Some(News::Changed(change)),
                    Err(RecvError::Lagged(_)) => Some(News::Lost),
                    Err(RecvError::Closed) => return,
                },
                news = elsewhere.recv() => match news {
                    Ok(news) => Some(news),
                    Err(RecvError::Lagged(_)) => Some(News::Lost),
                    Err(RecvError::Closed) => return,
                },
                () = sleep_until(machines_at), if !self.pending.machines.is_empty() => {
                    let told = self.tell_machines().await;
                    machines_at = Instant::now() + self.pause(told, MACHINES_EVERY);
                    None
                }
                () = sleep_until(others_at), if self.pending.others() => {
                    let told = self.tell_others().await;
                    others_at = Instant::now() + self.pause(told, Duration::ZERO);
                    None
                }
                () = sleep_until(sweep_at) => {
                    let swept = self.sweep().await;
                    sweep_at = Instant::now() + self.pause(swept, SWEEP_EVERY);
                    None
                }
            };
            match news {
                Some(News::Changed(change)) if self.feed.clients() > 0 => {
                    if !self.pending.others() {
                        others_at = others_at.max(Instant::now() + OTHERS_AFTER);
                    }
                    if matches!(change, Change::Gateway(_)) {
                        sweep_at = sweep_at.min(Instant::now() + OTHERS_AFTER);
                    }
                    self.pending.add(change);
                }
                Some(News::Changed(_)) => self.pending = Pending::default(),
                Some(News::Lost) => {
                    tracing::debug!("changes were lost to the live stream: clients load everything again");
                    self.feed.tell_all(&Message::Resync);
                }
                None => {}
            }
        }
    }

    /// How long until the next time; one line in the log for each outage.
    fn pause(&mut self, result: Result<(), StoreError>, usual: Duration) -> Duration {
        match result {
            Ok(()) => {
                if std::mem::take(&mut self.failing) {
                    tracing::info!("live stream reads the database again");
                    self.feed.tell_all(&Message::Resync);
                }
                usual
            }
            Err(error) => {
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::warn!(%error, "live stream cannot read the database");
                }
                usual.max(RETRY_AFTER)
            }
        }
    }

    async fn tell_machines(&mut self) -> Result<(), StoreError> {
        let ids = some_of(&self.pending.machines);
        let mut client = self.store.client().await?;
        let transaction = client.transaction().await?;
        let machines = store::machines::live(&transaction, &ids, (self.clock)(), self.patience).await?;
        let shown: Vec<Uuid> = machines.iter().map(|machine| machine.id).collect();
        let sites = objects::sites(&transaction, Object::Machine, &shown).await?;
        for machine in machines {
            self.states.insert(machine.id, machine.state);
            self.feed.tell(&sites, machine.id, &Message::Machine { machine });
        }
        self.pending.machines.retain(|id| !ids.contains(id));
        Ok(())
    }

    async fn tell_others(&mut self) -> Result<(), StoreError> {
        let mut client = self.store.client().await?;
        let transaction = client.transaction().await?;
        let ids = some_of(&self.pending.gateways);
        if !ids.is_empty() {
            let sites = objects::sites(&transaction, Object::Gateway, &ids).await?;
            for gateway in store::gateways_read::by_ids(&transaction, &ids, (self.clock)(), self.patience).await? {
                self.feed.tell(&sites, gateway.id, &Message::Gateway { gateway });
            }
            self.pending.gateways.retain(|id| !ids.contains(id));
        }
        let ids = some_of(&self.pending.anomalies);
        if !ids.is_empty() {
            let sites = objects::sites(&transaction, Object::Anomaly, &ids).await?;
            for anomaly in store::anomalies_read::by_ids(&transaction, &ids).await? {
                self.feed.tell(&sites, anomaly.id, &Message::Anomaly { anomaly: Box::new(anomaly) });
            }
            self.pending.anomalies.retain(|id| !ids.contains(id));
        }
        let ids = some_of(&self.pending.alarms);
        if !ids.is_empty() {
            let sites = objects::sites(&transaction, Object::Alarm, &ids).await?;
            for alarm in store::alarms_read::by_ids(&transaction, &ids, (self.clock)()).await? {
                self.feed.tell(&sites, alarm.id, &Message::Alarm { alarm: Box::new(alarm) });
            }
            self.pending.alarms.retain(|id| !ids.contains(id));
        }
        let ids = some_of(&self.pending.incidents);
        if !ids.is_empty() {
            for incident in store::incidents_read::by_ids(&transaction, &ids).await? {
                let site = HashMap::from([(incident.id, incident.site_id)]);
                self.feed.tell(&site, incident.id, &Message::Incident { incident: Box::new(incident) });
            }
            self.pending.incidents.retain(|id| !ids.contains(id));
        }
        let ids = some_of(&self.pending.tickets);
        if !ids.is_empty() {
            for ticket in store::tickets::read::by_ids(&transaction, &ids, (self.clock)()).await? {
                let site = HashMap::from([(ticket.id, ticket.site_id)]);
                self.feed.tell(&site, ticket.id, &Message::Ticket { ticket: Box::new(ticket) });
            }
            self.pending.tickets.retain(|id| !ids.contains(id));
        }
        Ok(())
    }

    /// Finds machines whose word changed by the passing of time.
    async fn sweep(&mut self) -> Result<(), StoreError> {
        let mut client = self.store.client().await?;
        let transaction = client.transaction().await?;
        let found = store::machines::states(&transaction, (self.clock)(), self.patience).await?;
        let changed = found.iter().filter(|(id, state)| self.states.get(id).is_some_and(|known| known != state));
        self.pending.machines.extend(changed.map(|(id, _)| *id));
        self.states = found.into_iter().collect();
        Ok(())
    }
}

fn some_of(ids: &HashSet<Uuid>) -> Vec<Uuid> {
    ids.iter().take(ROWS_MAX).copied().collect()
}
