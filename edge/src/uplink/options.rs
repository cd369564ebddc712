//! How to reach the cloud's broker: what enrolment brought, and what the configuration says otherwise.

use anyhow::Context as _;
use gemba_mqtt::{
    client::{Endpoint, read_password},
    tls::{Pem, Trust},
};
use gemba_shared::frame::FRAME_BYTES_MAX;
use rumqttc::MqttOptions;

use crate::{config::Cloud, identity::Identity};

/// What a packet has beside its frame.
const PACKET_BYTES: usize = 1_024;

/// The options of the client that delivers.
///
/// # Errors
/// If the address or a file that is named is of no use.
pub fn options(identity: &Identity, cloud: &Cloud) -> anyhow::Result<MqttOptions> {
    let own = &identity.mqtt;
    let mut endpoint = Endpoint { url: cloud.url.clone().unwrap_or_else(|| own.url.clone()), ..Endpoint::default() };
    match (&cloud.ca_file, &own.ca_pem) {
        (Some(file), _) => endpoint.trust_file(file)?,
        (None, Some(pem)) => endpoint.trust = Trust::Only(Pem::text(pem, "the certificate from the enrolment")),
        (None, None) => {}
    }
    let client_id = identity.gateway.to_string();
    let mut options =
        endpoint.options(&client_id, FRAME_BYTES_MAX + PACKET_BYTES).context("the way to the cloud's broker")?;
    match (&cloud.username, &cloud.password_file) {
        (Some(username), Some(file)) => options.set_credentials(username, read_password(file)?),
        (Some(username), None) => options.set_credentials(username, ""),
        (None, _) => options.set_credentials(&own.username, &own.password),
    };
    Ok(options)
}
