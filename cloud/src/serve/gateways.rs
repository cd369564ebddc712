//! The MQTT port for gateways: TLS, the gate, and who may use which topics.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use gemba_mqtt::{
    broker::{Broker, BrokerSettings},
    gate::{Authenticate, Credentials, Denied, Gate, Limits, Listener},
};
use gemba_shared::{
    frame::FRAME_BYTES_MAX,
    gate::{Filter, Grant},
    ids::GatewayId,
    topic,
};
use jiff::{SignedDuration, Timestamp};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::web;
use crate::{clock, config, keys::Keys, metrics::Metrics, store::Store};

/// How soon a revoked gateway's connection is cut.
const CUT_EVERY: Duration = Duration::from_secs(1);
/// Two clocks (ours and that of a replica that revoked) may differ by this much.
const CUT_MARGIN: SignedDuration = SignedDuration::from_secs(10);
const PROBE_EVERY: Duration = Duration::from_secs(10);
const PROBES_FAILED_MAX: u32 = 3;

/// The broker, the gate before it, and what gateways are told of them.
pub struct Port {
    pub broker: Broker,
    pub gate: Arc<Gate>,
    /// The authority that gateways are to trust.
    pub authority_pem: Option<String>,
}

impl std::fmt::Debug for Port {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Port").field("addresses", &self.gate.addresses()).finish_non_exhaustive()
    }
}

impl Port {
    /// Starts the broker and opens the port; nobody is served yet.
    ///
    /// # Errors
    /// If a certificate cannot be used, or the address is taken.
    pub async fn open(settings: &config::Mqtt, keys: &Keys) -> anyhow::Result<Self> {
        let (chain, key, authority_pem) = certificate(settings, keys)?;
        let tls = web::tls(chain.as_bytes(), key.as_bytes()).context("mqtt.certificate_file")?;
        let packet_bytes_max = FRAME_BYTES_MAX + 1_024;
        let broker_settings =
            BrokerSettings { connections_max: settings.connections_max, packet_bytes_max, ..BrokerSettings::default() };
        let broker = tokio::task::spawn_blocking(move || Broker::start(broker_settings))
            .await
            .context("the start of the broker was interrupted")??;
        let limits = Limits {
            connections_max: settings.connections_max,
            connections_per_address_max: settings.connections_max,
            packet_bytes_max,
            ..Limits::default()
        };
        let listener = Listener { address: settings.listen, tls: Some(tls) };
        let gate = Gate::bind(vec![listener], limits, broker.clone()).await.context("mqtt.listen")?;
        Ok(Self { broker, gate: Arc::new(gate), authority_pem })
    }
}

fn certificate(settings: &config::Mqtt, keys: &Keys) -> anyhow::Result<(String, String, Option<String>)> {
    let read = |path: &std::path::Path| {
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
    };
    if let (Some(chain), Some(key)) = (&settings.certificate_file, &settings.key_file) {
        let authority = settings.ca_file.as_deref().map(read).transpose()?;
        return Ok((read(chain)?, read(key)?, authority));
    }
    let made = keys.certificate(&settings.certificate_names())?;
    Ok((made.chain_pem, made.key_pem, Some(made.authority_pem)))
}

/// Lets in gateways that are enrolled, each to its own topics.
#[must_use]
pub fn authenticate(store: Store, metrics: Arc<Metrics>) -> Authenticate {
    Arc::new(move |credentials: Credentials| {
        let (store, metrics) = (store.clone(), Arc::clone(&metrics));
        Box::pin(async move {
            let granted = grant(&store, &credentials).await;
            if let Err(denied) = &granted {
                let reason = match denied {
                    Denied::BadCredentials => "bad_credentials",
                    Denied::NotAuthorised => "not_authorised",
                    Denied::Unavailable => "database",
                };
                Metrics::count(&metrics.mqtt_denied, reason);
            }
            granted
        })
    })
}

async fn grant(store: &Store, credentials: &Credentials) -> Result<Arc<Grant>, Denied> {
    let gateway: GatewayId =
        credentials.username.as_deref().and_then(|name| name.parse().ok()).ok_or(Denied::BadCredentials)?;
    let login = store.gateway_login(Uuid::from_bytes(*gateway.as_bytes())).await;
    let login = login.map_err(|_| Denied::Unavailable)?.ok_or(Denied::BadCredentials)?;
    let given = Sha256::digest(credentials.password.as_deref().unwrap_or_default());
    if !bool::from(given.as_slice().ct_eq(&login.password_sha256)) {
        return Err(Denied::BadCredentials);
    }
    let filter = |text: String| Filter::new(&text).map_err(|_| Denied::NotAuthorised);
    Ok(Arc::new(Grant {
        name: gateway.to_string().into(),
        publish: vec![filter(topic::up_filter(gateway))?],
        subscribe: vec![filter(topic::down(gateway))?],
    }))
}

/// The changes that were acted on. Each is seen several times, and a gateway that came back with its new key is left alone;
/// but a key that is followed by a revocation is two changes.
#[derive(Debug, Default)]
struct Cut(Vec<(Uuid, Timestamp)>);

impl Cut {
    /// The gateways with a change that was not seen before.
    fn unseen(&mut self, changed: Vec<(Uuid, Timestamp)>, now: Timestamp) -> Vec<Uuid> {
        self.0.retain(|(_, at)| now.duration_since(*at) < CUT_MARGIN * 4);
        let mut unseen = Vec::new();
        for change in changed {
            if !self.0.contains(&change) {
                self.0.push(change);
                unseen.push(change.0);
            }
        }
        unseen
    }
}

/// Cuts the connections of gateways that were revoked or got a new key, until `cancel`.
pub async fn cut_off(store: Store, gate: Arc<Gate>, metrics: Arc<Metrics>, cancel: CancellationToken) {
    let mut ticks = tokio::time::interval(CUT_EVERY);
    let mut since = clock::now();
    let mut cut = Cut::default();
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let connections = gate.counters().connections.load(std::sync::atomic::Ordering::Relaxed);
        metrics.mqtt_connections.set(connections as i64);
        let now = clock::now();
        let from = since.saturating_sub(CUT_MARGIN).unwrap_or(since);
        match store.gateways_cut_off(from).await {
            Ok(changed) => {
                since = now;
                for gateway in cut.unseen(changed, now) {
                    gate.disconnect(&gateway.to_string());
                    tracing::info!(%gateway, "a gateway was revoked or got a key: older connections of it are cut");
                }
            }
            Err(error) => tracing::debug!(%error, "cannot look for revoked gateways"),
        }
    }
}

/// Returns when the broker is dead.
pub async fn watch_broker(broker: Broker, cancel: CancellationToken) -> anyhow::Result<()> {
    let mut failed = 0;
    loop {
        tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            () = tokio::time::sleep(PROBE_EVERY) => {}
        }
        match broker.probe().await {
            Ok(_) => failed = 0,
            Err(error) => {
                failed += 1;
                tracing::warn!(%error, failed, "the embedded broker does not answer");
                if failed >= PROBES_FAILED_MAX {
                    return Err(error).context("the embedded broker is dead");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_change_of_a_gateway_cuts_once() {
        let (gateway, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let at = |second: i64| Timestamp::from_second(1_800_000_000 + second).unwrap();
        let mut cut = Cut::default();
        assert_eq!(cut.unseen(vec![(gateway, at(0))], at(1)), [gateway], "it was enrolled");
        assert_eq!(cut.unseen(vec![(gateway, at(0))], at(2)), Vec::<Uuid>::new(), "and came back with its key");
        assert_eq!(cut.unseen(vec![(gateway, at(2)), (other, at(2))], at(3)), [gateway, other], "revoked at once");
        assert_eq!(cut.unseen(vec![(gateway, at(2)), (other, at(2))], at(9)), Vec::<Uuid>::new());
        assert_eq!(cut.unseen(Vec::new(), at(90)), Vec::<Uuid>::new());
        assert!(cut.0.is_empty(), "memory is bounded");
    }
}
