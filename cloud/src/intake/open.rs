//! The first stage: whose frame is it, and what is in it. What cannot be authenticated is counted and gets no answer.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use ed25519_dalek::VerifyingKey;
use gemba_mqtt::delivery::Delivery;
use gemba_shared::{
    frame::{self, FrameError},
    ids::GatewayId,
    lane::NUMBER_MAX,
    message::{BATCH_RECORDS_MAX, Batch, Catalogs, CommandResult, Live, Status, Uplink},
    topic::{self, Channel},
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{GROUP_BYTES_MAX, GROUP_FRAMES_MAX, Group, Incoming, Intake, Pause, presence::Presence};
use crate::metrics::Metrics;

/// A key is asked for again after this long when a signature does not fit, or a gateway is unknown.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// Gateways whose keys are kept, unknown ones too.
const KEYS_MAX: usize = 20_000;
/// Of refused frames of one reason, one is logged in this time.
const LOG_EVERY: Duration = Duration::from_mins(1);

/// A frame that was read.
enum Opened {
    Batch(Incoming<Batch>),
    Catalogs(Incoming<Catalogs>),
    Live(Uuid, Live),
    Status(Uuid, Status),
    Result(Uuid, CommandResult),
}

struct Sealed {
    gateway: GatewayId,
    channel: Channel,
    frame: Bytes,
}

#[derive(Clone, Copy)]
struct Kept {
    key: Option<VerifyingKey>,
    asked_at: Instant,
}

pub(super) async fn run(
    intake: Arc<Intake>,
    presence: Arc<Presence>,
    mut deliveries: mpsc::Receiver<Delivery>,
    groups: mpsc::Sender<Group>,
    cancel: CancellationToken,
) {
    let mut opener = Opener { intake, presence, keys: HashMap::new(), logged: HashMap::new() };
    loop {
        let first = tokio::select! {
            () = cancel.cancelled() => return,
            first = deliveries.recv() => first,
        };
        let Some(first) = first else { return };
        let (mut frames, mut bytes) = size(&first);
        let mut taken = vec![first];
        while frames < GROUP_FRAMES_MAX && bytes < GROUP_BYTES_MAX {
            let Ok(next) = deliveries.try_recv() else { break };
            let (more, larger) = size(&next);
            (frames, bytes) = (frames + more, bytes + larger);
            taken.push(next);
        }
        let Some(group) = opener.open(&taken, &cancel).await else { return };
        let group = Group { deliveries: taken, ..group };
        if groups.send(group).await.is_err() {
            return;
        }
    }
}

fn size(delivery: &Delivery) -> (usize, usize) {
    (delivery.messages.len(), delivery.messages.iter().map(|message| message.payload.len()).sum())
}

struct Opener {
    intake: Arc<Intake>,
    presence: Arc<Presence>,
    keys: HashMap<GatewayId, Kept>,
    logged: HashMap<&'static str, Instant>,
}

impl Opener {
    /// What is to be written of these deliveries; `None` when it is time to stop.
    async fn open(&mut self, deliveries: &[Delivery], cancel: &CancellationToken) -> Option<Group> {
        let mut sealed = Vec::new();
        for message in deliveries.iter().flat_map(|delivery| &delivery.messages) {
            match std::str::from_utf8(&message.topic).ok().and_then(topic::parse_up) {
                Some((gateway, channel)) => sealed.push(Sealed { gateway, channel, frame: message.payload.clone() }),
                None => self.refuse("topic", None),
            }
        }
        let unknown = |keys: &HashMap<GatewayId, Kept>, gateway: &GatewayId| {
            keys.get(gateway).is_none_or(|kept| kept.key.is_none() && kept.asked_at.elapsed() > ASK_AGAIN)
        };
        let ask = sealed.iter().map(|sealed| sealed.gateway).filter(|gateway| unknown(&self.keys, gateway)).collect();
        self.ask(ask, cancel).await?;
        let mut group = Group::default();
        let forged = self.verify(sealed, &mut group).await;
        // A key may have been changed since it was asked for.
        let old = |keys: &HashMap<GatewayId, Kept>, gateway: &GatewayId| {
            keys.get(gateway).is_some_and(|kept| kept.asked_at.elapsed() > ASK_AGAIN)
        };
        let (again, forged): (Vec<_>, Vec<_>) = forged.into_iter().partition(|sealed| old(&self.keys, &sealed.gateway));
        if !again.is_empty() {
            self.ask(again.iter().map(|sealed| sealed.gateway).collect(), cancel).await?;
            for sealed in self.verify(again, &mut group).await {
                self.refuse("signature", Some(sealed.gateway));
            }
        }
        for sealed in forged {
            self.refuse("signature", Some(sealed.gateway));
        }
        Some(group)
    }

    async fn ask(&mut self, gateways: BTreeSet<GatewayId>, cancel: &CancellationToken) -> Option<()> {
        if gateways.is_empty() {
            return Some(());
        }
        if self.keys.len() > KEYS_MAX {
            self.keys.clear();
        }
        let ids: Vec<Uuid> = gateways.iter().map(|gateway| Uuid::from_bytes(*gateway.as_bytes())).collect();
        let mut pause = Pause::default();
        let keys = loop {
            match self.intake.parts.store.gateway_keys(&ids).await {
                Ok(keys) => break keys,
                Err(error) => {
                    self.intake.parts.metrics.storing.set(0);
                    if pause.is_news(tokio::time::Instant::now()) {
                        tracing::warn!(
                            error = &error as &dyn std::error::Error,
                            "cannot read gateways' keys; trying again"
                        );
                    }
                    if !pause.pass(cancel).await {
                        return None;
                    }
                }
            }
        };
        for gateway in gateways {
            let key = keys.get(&Uuid::from_bytes(*gateway.as_bytes()));
            let key = key.and_then(|key| VerifyingKey::from_bytes(key).ok());
            self.keys.insert(gateway, Kept { key, asked_at: Instant::now() });
        }
        Some(())
    }

    /// Reads frames on a thread that may compute; those whose signature does not fit come back.
    async fn verify(&mut self, sealed: Vec<Sealed>, group: &mut Group) -> Vec<Sealed> {
        let mut known = Vec::with_capacity(sealed.len());
        for sealed in sealed {
            match self.keys.get(&sealed.gateway).and_then(|kept| kept.key) {
                Some(key) => known.push((sealed, key)),
                None => self.refuse("unknown_gateway", Some(sealed.gateway)),
            }
        }
        let work = move || {
            known
                .into_iter()
                .map(|(sealed, key)| {
                    let opened = open(&sealed, &key);
                    (sealed, opened)
                })
                .collect::<Vec<_>>()
        };
        let opened = match tokio::task::spawn_blocking(work).await {
            Ok(opened) => opened,
            Err(error) => {
                tracing::error!(%error, "reading frames ended badly; gateways will send them again");
                return Vec::new();
            }
        };
        let mut forged = Vec::new();
        for (sealed, opened) in opened {
            let heard = match opened {
                Ok(Opened::Batch(batch)) => {
                    let gateway = batch.gateway;
                    group.batches.push(batch);
                    gateway
                }
                Ok(Opened::Catalogs(catalogs)) => {
                    let gateway = catalogs.gateway;
                    group.catalogs.push(catalogs);
                    gateway
                }
                Ok(Opened::Live(gateway, live)) => {
                    self.presence.live(gateway, live);
                    gateway
                }
                Ok(Opened::Status(gateway, status)) => {
                    self.presence.status(gateway, status);
                    gateway
                }
                Ok(Opened::Result(gateway, result)) => {
                    self.presence.result(gateway, result);
                    gateway
                }
                Err("signature") => {
                    forged.push(sealed);
                    continue;
                }
                Err(reason) => {
                    self.refuse(reason, Some(sealed.gateway));
                    continue;
                }
            };
            self.intake.parts.metrics.frames.inc();
            self.presence.heard(heard);
        }
        forged
    }

    fn refuse(&mut self, reason: &'static str, gateway: Option<GatewayId>) {
        let refused = &self.intake.parts.metrics.frames_refused;
        Metrics::count(refused, reason);
        if self.logged.get(reason).is_none_or(|at| at.elapsed() > LOG_EVERY) {
            self.logged.insert(reason, Instant::now());
            let gateway = gateway.map(|gateway| gateway.to_string());
            tracing::warn!(reason, gateway, "refused a frame; more of this reason are counted only, for a minute");
        }
    }
}

fn open(sealed: &Sealed, key: &VerifyingKey) -> Result<Opened, &'static str> {
    let message: Uplink = frame::open(&sealed.frame, sealed.gateway, key).map_err(FrameError::reason)?;
    let gateway = Uuid::from_bytes(*sealed.gateway.as_bytes());
    match (message, sealed.channel) {
        (Uplink::Batch(batch), Channel::Lane(lane)) if batch.seq.lane == lane => {
            check(&batch)?;
            Ok(Opened::Batch(Incoming { gateway, key: key.to_bytes(), content: batch }))
        }
        (Uplink::Live(live), Channel::Live) => Ok(Opened::Live(gateway, live)),
        (Uplink::Status(status), Channel::Status) => Ok(Opened::Status(gateway, status)),
        (Uplink::CommandResult(result), Channel::Status) => Ok(Opened::Result(gateway, result)),
        (Uplink::Catalogs(catalogs), Channel::Status) => {
            Ok(Opened::Catalogs(Incoming { gateway, key: key.to_bytes(), content: catalogs }))
        }
        _ => Err("channel"),
    }
}

fn check(batch: &Batch) -> Result<(), &'static str> {
    let numbers = 1..=NUMBER_MAX;
    if batch.records.is_empty() || batch.records.len() > BATCH_RECORDS_MAX {
        return Err("batch_size");
    }
    if numbers.contains(&batch.seq.number) && numbers.contains(&batch.oldest) { Ok(()) } else { Err("number") }
}
