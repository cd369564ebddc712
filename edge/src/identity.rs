//! Who this gateway is to the cloud: what enrolment left in `<data_dir>/identity`.
//!
//! `gateway.key` is the gateway's own key (PKCS#8 PEM, for its owner only; it never leaves the machine);
//! `cloud.toml` names the gateway, the cloud's key and the way to the cloud's broker.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ed25519_dalek::{
    SigningKey, VerifyingKey,
    pkcs8::{DecodePrivateKey as _, EncodePrivateKey as _, spki::der::pem::LineEnding},
};
use gemba_shared::{
    enrolment::{Enrolled, Mqtt},
    ids::GatewayId,
};
use serde::{Deserialize, Serialize};

use crate::files;

/// The gateway's name, keys, and way to the cloud.
pub struct Identity {
    pub gateway: GatewayId,
    pub key: SigningKey,
    pub cloud_key: VerifyingKey,
    pub mqtt: Mqtt,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("gateway", &self.gateway).field("mqtt", &self.mqtt).finish_non_exhaustive()
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CloudFile {
    gateway_id: String,
    cloud_key: String,
    mqtt: Mqtt,
}

fn folder(data_dir: &Path) -> PathBuf {
    data_dir.join("identity")
}

/// Whether there is an identity, whole or not.
#[must_use]
pub fn exists(data_dir: &Path) -> bool {
    folder(data_dir).join("cloud.toml").exists() || folder(data_dir).join("gateway.key").exists()
}

/// What enrolment left; `None` before it.
///
/// # Errors
/// If there is something that cannot be read; the text names the file.
pub fn load(data_dir: &Path) -> anyhow::Result<Option<Identity>> {
    let cloud_file = folder(data_dir).join("cloud.toml");
    let text = match fs::read_to_string(&cloud_file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", cloud_file.display())),
    };
    let damaged = || format!("{} is damaged; enrol again with --force", cloud_file.display());
    // The parser's own text would repeat the line, and with it a password.
    let file: CloudFile = toml::from_str(&text).map_err(|_| anyhow::anyhow!(damaged()))?;
    let gateway = file.gateway_id.parse().with_context(damaged)?;
    let bytes = URL_SAFE_NO_PAD.decode(&file.cloud_key).ok().and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
    let cloud_key = VerifyingKey::from_bytes(&bytes.with_context(damaged)?).with_context(damaged)?;

    let key_file = folder(data_dir).join("gateway.key");
    let pem = fs::read_to_string(&key_file).with_context(|| format!("cannot read {}", key_file.display()))?;
    let key = SigningKey::from_pkcs8_pem(&pem)
        .map_err(|_| anyhow::anyhow!("{} is damaged; enrol again with --force", key_file.display()))?;
    Ok(Some(Identity { gateway, key, cloud_key, mqtt: file.mqtt }))
}

/// A new key for this gateway.
///
/// # Errors
/// If the system gives no random bytes.
pub fn new_key() -> anyhow::Result<SigningKey> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|error| anyhow::anyhow!("no random bytes: {error}"))?;
    Ok(SigningKey::from_bytes(&seed))
}

/// Keeps what enrolment brought. The key is written first: with `cloud.toml` there is an identity.
///
/// # Errors
/// If a file cannot be written.
pub fn store(data_dir: &Path, key: &SigningKey, enrolled: Enrolled) -> anyhow::Result<()> {
    let pem = key.to_pkcs8_pem(LineEnding::LF).map_err(|_| anyhow::anyhow!("the key cannot be encoded"))?;
    let file = CloudFile {
        gateway_id: enrolled.gateway.to_string(),
        cloud_key: URL_SAFE_NO_PAD.encode(enrolled.cloud_key.as_bytes()),
        mqtt: enrolled.mqtt,
    };
    let text = toml::to_string(&file).context("the identity cannot be encoded")?;
    for (name, contents) in [("gateway.key", pem.as_bytes()), ("cloud.toml", text.as_bytes())] {
        let path = folder(data_dir).join(name);
        files::write(&path, contents).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_stored_and_says_what_is_damaged() {
        let directory = tempfile::tempdir().unwrap();
        let data = directory.path();
        assert!(load(data).unwrap().is_none());
        let (key, cloud) = (new_key().unwrap(), new_key().unwrap());
        let mqtt = Mqtt {
            url: "mqtts://c:1".into(),
            username: "u".into(),
            password: "p".into(),
            ca_pem: Some("A\nB\n".into()),
        };
        let gateway = GatewayId::from_bytes([3; 16]);
        store(data, &key, Enrolled { gateway, cloud_key: cloud.verifying_key(), mqtt: mqtt.clone() }).unwrap();
        assert!(exists(data));
        let identity = load(data).unwrap().unwrap();
        assert_eq!((identity.gateway, identity.mqtt), (gateway, mqtt));
        assert_eq!((identity.key.to_bytes(), identity.cloud_key), (key.to_bytes(), cloud.verifying_key()));

        fs::write(data.join("identity/gateway.key"), "nonsense").unwrap();
        assert!(format!("{:#}", load(data).unwrap_err()).contains("gateway.key is damaged"));
    }
}
