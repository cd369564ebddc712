//! Sends commands to the gateways that are here, until they are answered or expire.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use gemba_shared::message::Downlink;
use jiff::SignedDuration;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::Intake;
use crate::{
    clock,
    live::Change,
    store::{StoreError, commands},
};

const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A command without an answer is sent again after this, then after twice as long, up to [`AGAIN_MAX`].
const AGAIN_FIRST: Duration = Duration::from_secs(2);
const AGAIN_MAX: Duration = Duration::from_secs(30);
/// How much longer than it is valid an answer may be on its way.
const ANSWER_WITHIN: SignedDuration = SignedDuration::from_secs(60);

/// When a command is to be sent again.
struct Sent {
    number: u64,
    again_at: Instant,
    pause: Duration,
}

pub(super) async fn run(intake: Arc<Intake>, cancel: CancellationToken) {
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut sent = HashMap::new();
    let mut failing = false;
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            _ = ticks.tick() => {}
        }
        match look(&intake, &mut sent).await {
            Ok(()) => failing = false,
            Err(error) => {
                // Once for each outage.
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(error = &error as &dyn std::error::Error, "cannot read the commands for gateways");
                }
            }
        }
    }
}

async fn look(intake: &Intake, sent: &mut HashMap<Uuid, Sent>) -> Result<(), StoreError> {
    let (store, now) = (&intake.parts.store, clock::now());
    for gateway in commands::expire(store, now.saturating_sub(ANSWER_WITHIN).unwrap_or(now)).await? {
        // An error says that nobody watches, which is no fault.
        drop(intake.parts.changes.send(Change::Gateway(gateway)));
    }
    let heard_since = now.saturating_sub(intake.parts.settings.offline_after).unwrap_or(now);
    let waiting = commands::waiting(store, now, heard_since).await?;
    sent.retain(|gateway, _| waiting.iter().any(|(waiting, _)| waiting == gateway));
    let instant = Instant::now();
    for (gateway, command) in waiting {
        let pause = match sent.get(&gateway).filter(|sent| sent.number == command.id) {
            Some(Sent { again_at, .. }) if *again_at > instant => continue,
            Some(Sent { pause, .. }) => (*pause * 2).min(AGAIN_MAX),
            None => AGAIN_FIRST,
        };
        sent.insert(gateway, Sent { number: command.id, again_at: instant + pause, pause });
        intake.answer(gateway, &Downlink::Command(command));
    }
    Ok(())
}
