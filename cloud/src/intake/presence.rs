//! What is known of gateways and machines at this moment: gathered in memory, written once a second, lost without harm.

use std::{
    collections::{BTreeSet, HashMap, hash_map::Entry},
    mem::{replace, take},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use gemba_shared::{
    ids::MachineId,
    message::{CommandResult, Live, LiveMachine, Status},
    telemetry::Timestamp,
};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::Intake;
use crate::{
    clock,
    live::Change,
    machines::{self, Judged, Known},
    store::{StoreError, catalog::MachineKey, commands, states::StateRow},
};

const WRITE_EVERY: Duration = Duration::from_secs(1);
/// A gateway that was not heard for this long is told where its lanes stand.
const GREET_AFTER: Duration = Duration::from_secs(10);
/// How often gateways are looked through for those that went silent or came back.
const WATCH_EVERY: Duration = Duration::from_secs(5);
/// Answers to commands that wait to be written; a gateway says one that was dropped again.
const RESULTS_MAX: usize = 256;
/// Machines of one live message that are looked at.
const LIVE_MACHINES_MAX: usize = 10_000;

/// What came since the last write; of each gateway the latest.
#[derive(Debug, Default)]
pub struct Presence(Mutex<Gathered>);

#[derive(Debug, Default)]
struct Gathered {
    heard: BTreeSet<Uuid>,
    live: HashMap<(Uuid, MachineId), (Timestamp, LiveMachine)>,
    status: HashMap<Uuid, Status>,
    results: Vec<(Uuid, CommandResult)>,
}

impl Presence {
    pub fn heard(&self, gateway: Uuid) {
        self.with(|gathered| gathered.heard.insert(gateway));
    }

    /// A gateway with many machines tells of them in several messages.
    pub fn live(&self, gateway: Uuid, live: Live) {
        self.with(|gathered| {
            for machine in live.machines.into_iter().take(LIVE_MACHINES_MAX) {
                match gathered.live.entry((gateway, machine.machine.clone())) {
                    Entry::Occupied(mut known) if known.get().0 <= live.at => drop(known.insert((live.at, machine))),
                    Entry::Occupied(_) => {}
                    Entry::Vacant(none) => drop(none.insert_entry((live.at, machine))),
                }
            }
        });
    }

    pub fn status(&self, gateway: Uuid, status: Status) {
        self.with(|gathered| gathered.status.insert(gateway, status));
    }

    pub fn result(&self, gateway: Uuid, result: CommandResult) {
        self.with(|gathered| {
            if gathered.results.len() < RESULTS_MAX {
                gathered.results.push((gateway, result));
            }
        });
    }

    fn with<T>(&self, change: impl FnOnce(&mut Gathered) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

pub(super) async fn run(intake: Arc<Intake>, presence: Arc<Presence>, cancel: CancellationToken) {
    let mut ticks = tokio::time::interval(WRITE_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut watched_at = Instant::now();
    // Nobody was listening before: a gateway is offline only when it was silent while somebody was.
    let mut listening_since = Instant::now();
    let mut failing = false;
    let mut greeted = HashMap::new();
    loop {
        let stop = tokio::select! {
            () = cancel.cancelled() => true,
            _ = ticks.tick() => false,
        };
        let gathered = presence.with(take);
        let mut done = greet(&intake, &gathered.heard, &mut greeted).await;
        if done.is_ok() {
            done = write(&intake, gathered).await;
        }
        let grace = intake.parts.settings.offline_after.unsigned_abs();
        if done.is_ok() && !stop && listening_since.elapsed() > grace && watched_at.elapsed() > WATCH_EVERY {
            watched_at = Instant::now();
            done = watch(&intake).await;
        }
        match done {
            Ok(()) if take(&mut failing) => tracing::info!("what is heard of gateways is written again"),
            Ok(()) => {}
            Err(error) => {
                listening_since = Instant::now();
                // Once for each outage, not once a second.
                if !replace(&mut failing, true) {
                    tracing::warn!(error = &error as &dyn std::error::Error, "cannot write what is heard of gateways");
                }
            }
        }
        if stop {
            return;
        }
    }
}

/// Tells gateways that were not heard here for a while how far their lanes are stored: after an outage they need not
/// find out by waiting.
async fn greet(
    intake: &Intake,
    heard: &BTreeSet<Uuid>,
    greeted: &mut HashMap<Uuid, Instant>,
) -> Result<(), StoreError> {
    greeted.retain(|_, at| at.elapsed() < GREET_AFTER);
    let new: Vec<Uuid> = heard.iter().copied().filter(|gateway| !greeted.contains_key(gateway)).collect();
    if !new.is_empty() {
        for (lane, stored) in intake.parts.store.lanes_of(&new).await? {
            intake.receipt(lane, stored);
        }
    }
    greeted.extend(heard.iter().map(|gateway| (*gateway, Instant::now())));
    Ok(())
}

async fn write(intake: &Intake, gathered: Gathered) -> Result<(), StoreError> {
    let store = &intake.parts.store;
    if !gathered.heard.is_empty() {
        let heard: Vec<Uuid> = gathered.heard.into_iter().collect();
        store.gateways_seen(&heard, clock::now()).await?;
    }
    for (gateway, status) in gathered.status {
        store.gateway_status(gateway, &status).await?;
        tell(intake, Change::Gateway(gateway));
    }
    for (gateway, result) in gathered.results {
        if commands::answered(store, gateway, &result, clock::now()).await? {
            tell(intake, Change::Gateway(gateway));
        }
    }
    let mut keys = Vec::new();
    let mut machines: Vec<LiveMachine> = Vec::new();
    for ((gateway, name), (_, machine)) in gathered.live {
        // No outbox is named here: the latest catalog holds.
        keys.push(MachineKey { gateway, epoch: 0, name: name.as_str().to_owned() });
        machines.push(machine);
    }
    if !keys.is_empty() {
        let now = clock::now();
        let state = |i: usize, known: &Known| {
            let live = &machines[i];
            Some(StateRow {
                machine: known.id,
                at: machines::time(live.at, now).ok()?,
                judged: Judged::from(&live.verdict),
                values: (live.values.len() <= known.positions.len()).then(|| known.ordered(&live.values, None))?,
            })
        };
        for machine in store.write_states(&keys, state).await? {
            tell(intake, Change::Machine(machine));
        }
    }
    Ok(())
}

async fn watch(intake: &Intake) -> Result<(), StoreError> {
    for turned in intake.parts.store.watch_gateways(clock::now(), intake.parts.settings.offline_after).await? {
        tracing::info!(gateway = %turned.gateway, offline = turned.offline, "a gateway went or came");
        tell(intake, Change::Gateway(turned.gateway));
        if let Some(alarm) = turned.alarm {
            tell(intake, Change::Alarm(alarm));
        }
    }
    Ok(())
}

fn tell(intake: &Intake, change: Change) {
    // An error says that nobody watches, which is no fault.
    drop(intake.parts.changes.send(change));
}
