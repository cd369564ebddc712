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
    let url = cloud.url.clone().unwrap_or_else(|| own.url.clone());
    let mut endpoint = Endpoint { url, clean_session: true, ..Endpoint::default() };
    match (&cloud.ca_file, &own.ca_pem) {
        (Some(file), _) => endpoint.trust_file(file)?,
        (None, Some(pem)) => endpoint.trust = Trust::Only(Pem::text(pem, "the certificate from the enrolment")),
        (None, None) => {}
    }
    // Nothing is left at the broker for us: what it would keep is told anew. A second gateway with the same identity, by a copied
    // disk, has a name of its own: brokers end the older of two connections of one name, and the two would fight for ever.
    let life = getrandom::u32().map_err(|error| anyhow::anyhow!("no random numbers: {error}"))?;
    let client_id = format!("{}-{life:08x}", identity.gateway);
    let mut options =
        endpoint.options(&client_id, FRAME_BYTES_MAX + PACKET_BYTES).context("the way to the cloud's broker")?;
    match (&cloud.username, &cloud.password_file) {
        (Some(username), Some(file)) => options.set_credentials(username, read_password(file)?),
        (Some(username), None) => options.set_credentials(username, ""),
        (None, _) => options.set_credentials(&own.username, &own.password),
    };
    Ok(options)
}
