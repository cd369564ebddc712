//! Makes deliveries of notices, and sends them: a loop that finds its work in the tables, so that it goes on after a restart and
//! beside other replicas. A delivery is sent at least once; what was under way when a program was killed is sent again when its
//! lease has run out.

mod plan;
pub mod webhook;

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::{task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    mail::{self, Letter, Mailer},
    metrics::{DeliveryEnd, Metrics},
    notifications::{
        Channel, Limits, Skip,
        message::{body, choice_url, text},
        retry::{Next, Outcome, next},
        signature::{Message, Secrets},
    },
    store::{
        Store, StoreError,
        deliveries::{self, Claimed},
        notices, webhooks,
    },
};
use webhook::{Call, Caller};

/// How often the tables are looked at.
const TICK: Duration = Duration::from_secs(1);
/// Deliveries under way at a time.
const WEBHOOKS_AT_ONCE: usize = 32;
const EMAILS_AT_ONCE: usize = 8;
/// The pause when the database is away.
const DATABASE_AGAIN: Duration = Duration::from_secs(5);
/// How often what is old is deleted, and what waits is counted.
const HOUSEKEEPING_EVERY: Duration = Duration::from_secs(15);
/// How long what is under way may take when the daemon stops.
const DRAIN_MAX: Duration = Duration::from_secs(5);

/// What deliveries are made with.
#[derive(Debug)]
pub struct Parts {
    pub store: Store,
    /// The wall clock.
    pub clock: fn() -> Timestamp,
    pub metrics: Arc<Metrics>,
    pub limits: Limits,
    pub secrets: Secrets,
    pub caller: Caller,
    /// `None`: no e-mail is sent.
    pub mailer: Option<Mailer>,
    /// The URL of the web page, without a slash at its end.
    pub page: String,
}

/// Deliveries under way. A mail server that lets everybody wait holds up no webhook, nor the other way round.
#[derive(Default)]
struct Sending {
    webhooks: JoinSet<()>,
    emails: JoinSet<()>,
}

/// Sends deliveries until `cancel`.
pub async fn run(parts: Arc<Parts>, cancel: CancellationToken) {
    let mut sending = Sending::default();
    let mut housekeeping = Instant::now();
    loop {
        let pause = match round(&parts, &mut sending, &mut housekeeping).await {
            Ok(()) => TICK,
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "deliveries wait for the database");
                DATABASE_AGAIN
            }
        };
        let Sending { webhooks, emails } = &mut sending;
        tokio::select! {
            () = cancel.cancelled() => break,
            () = tokio::time::sleep(pause) => {}
            // Whoever waits for the same recipient comes next, without waiting for the tick.
            Some(_) = webhooks.join_next(), if pause == TICK => {}
            Some(_) = emails.join_next(), if pause == TICK => {}
        }
        for set in [webhooks, emails] {
            while set.try_join_next().is_some() {}
        }
    }
    let drain = async {
        for set in [&mut sending.webhooks, &mut sending.emails] {
            while set.join_next().await.is_some() {}
        }
    };
    if tokio::time::timeout(DRAIN_MAX, drain).await.is_err() {
        let deliveries = sending.webhooks.len() + sending.emails.len();
        tracing::info!(deliveries, "deliveries that did not end in time are sent again later");
    }
}

async fn round(parts: &Arc<Parts>, sending: &mut Sending, housekeeping: &mut Instant) -> Result<(), StoreError> {
    let now = (parts.clock)();
    // What cannot be planned does not hold up what was.
    let planned = plan::plan(parts, now).await;
    for (channel, set, most) in [
        (Channel::Webhook, &mut sending.webhooks, WEBHOOKS_AT_ONCE),
        (Channel::Email, &mut sending.emails, EMAILS_AT_ONCE),
    ] {
        let free = most.saturating_sub(set.len());
        if free > 0 {
            for claimed in deliveries::claim(&parts.store, channel, now, free as i64).await? {
                set.spawn(deliver(Arc::clone(parts), claimed));
            }
        }
    }
    if Instant::now() >= *housekeeping {
        *housekeeping = Instant::now() + HOUSEKEEPING_EVERY;
        keep_house(parts, now).await?;
    }
    planned
}

async fn keep_house(parts: &Parts, now: Timestamp) -> Result<(), StoreError> {
    let mut client = parts.store.client().await?;
    let transaction = client.transaction().await?;
    deliveries::forget(&transaction, now).await?;
    notices::forget(&transaction, now).await?;
    transaction.commit().await?;
    drop(client);
    let (waiting, dead) = deliveries::counts(&parts.store).await?;
    parts.metrics.deliveries_waiting.set(waiting);
    parts.metrics.deliveries_dead.set(dead);
    Ok(())
}

/// What became of a delivery that was taken.
enum End {
    Skipped(Skip),
    Tried(Outcome),
}

async fn deliver(parts: Arc<Parts>, claimed: Claimed) {
    let end = attempt(&parts, &claimed).await;
    let ended = (parts.clock)();
    let last = ended.saturating_add(deliveries::LEASE).unwrap_or(ended);
    // While nobody else may be at it, what happened is worth writing down: else it would be sent once more.
    loop {
        match settle(&parts, &claimed, &end, ended).await {
            Ok(next) => return told(&parts, &claimed, &end, next),
            Err(error) => {
                tracing::warn!(
                    delivery = %claimed.id, error = &error as &dyn std::error::Error, "cannot write how a delivery went"
                );
            }
        }
        if (parts.clock)() >= last {
            return;
        }
        tokio::time::sleep(TICK).await;
    }
}

async fn attempt(parts: &Parts, claimed: &Claimed) -> End {
    if deliveries::is_spent(claimed) {
        let error = "it was begun as often as it may be tried, and never ended".to_owned();
        return End::Tried(Outcome::Refused { status: None, error });
    }
    match claimed.channel {
        Channel::Webhook => call(parts, claimed).await,
        Channel::Email => write_to(parts, claimed).await,
    }
}

async fn call(parts: &Parts, claimed: &Claimed) -> End {
    let Some(target) = claimed.webhook.as_ref().filter(|target| target.enabled) else {
        return End::Skipped(Skip::SwitchedOff);
    };
    let body = body(&claimed.content, &parts.page, claimed.created_at);
    let (now, id) = ((parts.clock)(), claimed.id.to_string());
    let message = Message { id: &id, at_s: now.as_second(), body: body.as_bytes() };
    let signature = parts.secrets.sign(target.id, target.secret_generation, target.secret_rotated_at, &message, now);
    End::Tried(
        parts.caller.call(&Call { url: &target.url, id: &id, at_s: message.at_s, signature: &signature, body }).await,
    )
}

async fn write_to(parts: &Parts, claimed: &Claimed) -> End {
    if !claimed.role {
        return End::Skipped(Skip::NoRole);
    }
    let Some(to) = &claimed.email else { return End::Skipped(Skip::NoAddress) };
    let Some(mailer) = &parts.mailer else { return End::Skipped(Skip::NoMailServer) };
    let text = text(&claimed.content, &parts.page);
    let letter = Letter {
        id: claimed.id.to_string(),
        to,
        subject: &text.subject,
        plain: text.plain,
        html: text.html,
        unsubscribe: Some(choice_url(&parts.page)),
    };
    End::Tried(mailer.send(&letter, (parts.clock)()).await)
}

async fn settle(parts: &Parts, claimed: &Claimed, end: &End, now: Timestamp) -> Result<Option<Next>, StoreError> {
    let mut client = parts.store.client().await?;
    let transaction = client.transaction().await?;
    let next = match end {
        End::Skipped(skip) => {
            deliveries::settle_skipped(&transaction, claimed, *skip).await?;
            None
        }
        End::Tried(outcome) => {
            let next = next(outcome, claimed.attempts, random(), now);
            deliveries::settle(&transaction, claimed, outcome, next, now).await?;
            if let (Outcome::Gone, Some(target)) = (outcome, &claimed.webhook) {
                webhooks::gone(&transaction, target.id, claimed.organisation, now).await?;
            }
            Some(next)
        }
    };
    transaction.commit().await?;
    Ok(next)
}

/// Counts it, and says what somebody may have to look at.
fn told(parts: &Parts, claimed: &Claimed, end: &End, next: Option<Next>) {
    let outcome = match next {
        None => "skipped",
        Some(Next::Sent) => "sent",
        Some(Next::Again(_)) => "failed",
        Some(Next::Dead) => "dead",
    };
    let channel = claimed.channel.as_str();
    parts.metrics.deliveries.get_or_create(&DeliveryEnd { channel, outcome }).inc();
    let (delivery, attempts) = (claimed.id, claimed.attempts);
    match end {
        End::Tried(Outcome::Failed { error, .. } | Outcome::Refused { error, .. }) if next == Some(Next::Dead) => {
            tracing::warn!(%delivery, channel, attempts, error, "a delivery was given up");
        }
        End::Tried(Outcome::Gone) => tracing::warn!(%delivery, "a webhook's receiver is gone; it was switched off"),
        _ => tracing::debug!(%delivery, channel, attempts, outcome, "delivery"),
    }
}

/// From 0 to 1; half where the system gives none.
fn random() -> f64 {
    getrandom::u32().map_or(0.5, |bits| f64::from(bits) / f64::from(u32::MAX))
}

// An attempt takes less than a lease: else another would begin beside it.
const _: () = assert!(
    webhook::ATTEMPT_MAX.as_secs() + 15 < deliveries::LEASE.as_secs() as u64
        && mail::ATTEMPT_MAX.as_secs() + 15 < deliveries::LEASE.as_secs() as u64
);
