//! Probes the embedded broker, and tells the service manager that the daemon lives while it does its work.
//!
//! The watchdog is fed while the line from devices to the outbox goes round and the broker answers: not by a timer beside them. A disk
//! that takes nothing is no reason to start anew (nothing is acknowledged, and what was is delivered meanwhile), unless it goes on
//! for [`DISK_PATIENCE_US`]: then a fresh start may mend what an error broke in memory.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use gemba_mqtt::broker::Broker;
use sd_notify::NotifyState;
use tokio::{
    task::{JoinSet, spawn_blocking},
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

use super::{intake::Intake, report::Vitals};
use crate::clock::Clock;

const PROBE_EVERY: Duration = Duration::from_secs(10);
const WATCHDOG_EVERY: Duration = Duration::from_secs(5);
const ASK_TIME_EVERY: Duration = Duration::from_secs(5);
/// How long the disk may refuse everything, in microseconds.
pub(super) const DISK_PATIENCE_US: i64 = 600_000_000;

/// Watches until `cancel`.
pub(super) fn over(
    broker: Option<Broker>,
    vitals: &Arc<Vitals>,
    cancel: &CancellationToken,
    tasks: &mut JoinSet<&'static str>,
) {
    let (vitals, cancel) = (Arc::clone(vitals), cancel.clone());
    // Three times within what the service manager waits, whatever that is.
    let every = sd_notify::watchdog_enabled().map_or(WATCHDOG_EVERY, |limit| (limit / 3).min(WATCHDOG_EVERY));
    let every = every.max(Duration::from_millis(100));
    tasks.spawn(async move {
        let (mut probe, mut watchdog) = (interval(PROBE_EVERY.min(every * 2)), interval(every));
        probe.set_missed_tick_behavior(MissedTickBehavior::Delay);
        watchdog.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = cancel.cancelled() => return "the probe",
                _ = probe.tick() => {
                    if let (Some(broker), Intake::Gate { broker_lost, .. }) = (&broker, &vitals.intake) {
                        let probed = broker.probe().await;
                        if let Err(error) = &probed
                            && !broker_lost.load(Relaxed)
                        {
                            tracing::error!(%error, "the embedded broker does not answer");
                        }
                        broker_lost.store(probed.is_err(), Relaxed);
                    }
                }
                _ = watchdog.tick() => {
                    if vitals.makes_progress() {
                        notify(&[NotifyState::Watchdog]);
                    }
                }
            }
        }
    });
}

/// Tells the service manager, where there is one.
pub(super) fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "the service manager was not told");
    }
}

/// Asks whether the clock is right.
pub(super) fn keep_time(clock: &Arc<Clock>, cancel: &CancellationToken, tasks: &mut JoinSet<&'static str>) {
    let (clock, cancel) = (Arc::clone(clock), cancel.clone());
    tasks.spawn(async move {
        let mut again = interval(ASK_TIME_EVERY);
        loop {
            tokio::select! {
                () = cancel.cancelled() => break,
                _ = again.tick() => {
                    let clock = Arc::clone(&clock);
                    if spawn_blocking(move || clock.ask()).await.is_err() {
                        break;
                    }
                }
            }
        }
        "the clock"
    });
}
