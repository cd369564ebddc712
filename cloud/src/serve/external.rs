//! A broker of one's own in place of the embedded one: frames come through a shared subscription, so several clouds
//! share its load; answers are published by a second client.
//!
//! Sessions are clean: for a cloud that is gone a broker would go on to keep its share of the frames, which nobody
//! would then see. What is lost with a connection, the gateways send again when no receipt comes.

use std::sync::Arc;

use anyhow::Context as _;
use gemba_mqtt::{
    client::{Backoff, ClientCounters, Endpoint, subscribe},
    delivery::Delivery,
    tls::{Pem, Trust},
};
use gemba_shared::{frame::FRAME_BYTES_MAX, topic};
use rumqttc::{AsyncClient, Event, MqttOptions, Packet, QoS};
use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{config, intake::Answer};

/// The name that clouds share their subscription under.
const SHARE: &str = "$share/gemba/";
const REQUESTS_MAX: usize = 64;

/// How to reach the broker.
#[derive(Debug, Clone)]
pub struct External {
    subscriber: MqttOptions,
    publisher: MqttOptions,
}

impl External {
    /// Reads the files that are named; connects to nothing yet.
    ///
    /// # Errors
    /// If the URL or a file is of no use.
    pub fn open(url: &str, settings: &config::Mqtt) -> anyhow::Result<Self> {
        let trust = match &settings.ca_file {
            Some(file) => Trust::Only(Pem::file(file).context("mqtt.ca_file")?),
            None => Trust::System,
        };
        let endpoint = Endpoint {
            url: url.to_owned(),
            trust,
            username: settings.username.clone(),
            password_file: settings.password_file.clone(),
            clean_session: true,
            ..Endpoint::default()
        };
        // Clouds that share the load may have been set up by copying: only a name of this process is its own.
        let name = Uuid::new_v4().simple();
        let options = |role: &str| {
            endpoint.options(&format!("gemba-cloud-{name}-{role}"), FRAME_BYTES_MAX + 1_024).context("mqtt.url")
        };
        Ok(Self { subscriber: options("intake")?, publisher: options("answers")? })
    }

    /// Takes frames until `cancel`.
    pub async fn take(&self, deliveries: mpsc::Sender<Delivery>, cancel: CancellationToken) {
        let filters = vec![format!("{SHARE}{}", topic::all_up_filter())];
        subscribe(self.subscriber.clone(), filters, deliveries, Arc::<ClientCounters>::default(), cancel).await;
    }

    /// Publishes answers until there are no more to come, or `cancel`. One that is lost with a connection is asked
    /// for again by its gateway.
    pub async fn answer(&self, mut answers: mpsc::Receiver<Answer>, cancel: CancellationToken) {
        let mut backoff = Backoff::default();
        loop {
            let (client, mut events) = AsyncClient::new(self.publisher.clone(), REQUESTS_MAX);
            let polling = async {
                loop {
                    match events.poll().await {
                        Ok(Event::Incoming(Packet::ConnAck(_))) => backoff.connected(Instant::now()),
                        Ok(_) => {}
                        Err(error) => return error,
                    }
                }
            };
            let sending = async {
                while let Some(answer) = answers.recv().await {
                    if client.publish(answer.topic, QoS::AtMostOnce, false, answer.frame).await.is_err() {
                        return false;
                    }
                }
                true
            };
            tokio::select! {
                () = cancel.cancelled() => return,
                done = sending => if done { return },
                error = polling => tracing::warn!(%error, "the connection for answers broke"),
            }
            tokio::select! {
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(backoff.pause_now()) => {}
            }
        }
    }
}
