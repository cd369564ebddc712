//! Which devices the gate lets in, and what each may do.
//!
//! A password's hash takes tens of milliseconds and 8 MiB to verify, so one is verified at a time, off the
//! runtime, and the SHA-256 of what was right is remembered (in memory only): a thousand devices that reconnect at
//! once wait for nothing.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Context as _;
use gemba_mqtt::gate::{Authenticate, Credentials, Denied, Filter, Grant};
use rustls::pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;

use crate::{
    config::{Device, Proof},
    passwords,
};

mod certificate;

/// Passwords that may wait for their verification; more are asked to try again.
const WAITING_MAX: usize = 256;
/// The longest password that is looked at.
const PASSWORD_BYTES_MAX: usize = 1_024;

struct Devices {
    by_name: HashMap<String, (Secret, Arc<Grant>)>,
    by_certificate: HashMap<[u8; 32], Arc<Grant>>,
    /// By the common name of a certificate that our authority signed.
    by_common_name: HashMap<String, Arc<Grant>>,
    anonymous: Option<Arc<Grant>>,
    verified: Mutex<HashMap<String, [u8; 32]>>,
    one_at_a_time: Semaphore,
    waiting: Semaphore,
}

enum Secret {
    Hash(String),
    /// SHA-256 of the password in a file.
    Digest([u8; 32]),
}

/// The gate's doorkeeper for these devices.
///
/// # Errors
/// If a password file cannot be read or a topic filter is none.
pub fn authenticate(devices: &[Device]) -> anyhow::Result<Authenticate> {
    let devices = Arc::new(Devices::new(devices)?);
    Ok(Arc::new(move |credentials| {
        let devices = Arc::clone(&devices);
        Box::pin(async move { devices.judge(credentials).await })
    }))
}

/// By name: of what each device is known by and may do. `authority` is what signs the devices' certificates.
///
/// # Errors
/// If a password file cannot be read.
pub fn fingerprints(devices: &[Device], authority: &[u8]) -> anyhow::Result<BTreeMap<String, [u8; 32]>> {
    let of = |device: &Device| -> anyhow::Result<[u8; 32]> {
        let mut digest = Sha256::new();
        digest.update(format!("{:?} {:?} {:?}", device.proof, device.publish, device.subscribe));
        match &device.proof {
            Proof::PasswordHash(hash) => digest.update(hash),
            Proof::PasswordFile(file) => digest.update(password_in(file, device)?),
            Proof::Certificate(certificate) => digest.update([&certificate[..], authority].concat()),
            Proof::CommonName(name) => digest.update([name.as_bytes(), &b"\0"[..], authority].concat()),
            Proof::Anonymous => {}
        }
        Ok(digest.finalize().into())
    };
    devices.iter().map(|device| Ok((device.name.clone(), of(device)?))).collect()
}

fn password_in(file: &Path, device: &Device) -> anyhow::Result<String> {
    let text = fs::read_to_string(file)
        .with_context(|| format!("the password file {} of device {}", file.display(), device.name))?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

impl Devices {
    fn new(configured: &[Device]) -> anyhow::Result<Self> {
        let mut devices = Self {
            by_name: HashMap::new(),
            by_certificate: HashMap::new(),
            by_common_name: HashMap::new(),
            anonymous: None,
            verified: Mutex::default(),
            one_at_a_time: Semaphore::new(1),
            waiting: Semaphore::new(WAITING_MAX),
        };
        for device in configured {
            let filters = |texts: &[String]| texts.iter().map(|text| Filter::new(text)).collect::<Result<Vec<_>, _>>();
            let publish = filters(&device.publish).with_context(|| format!("device {}", device.name))?;
            let subscribe = filters(&device.subscribe).with_context(|| format!("device {}", device.name))?;
            let grant = Arc::new(Grant { name: device.name.as_str().into(), publish, subscribe });
            match &device.proof {
                Proof::Anonymous => devices.anonymous = Some(grant),
                Proof::Certificate(fingerprint) => {
                    devices.by_certificate.insert(*fingerprint, grant);
                }
                Proof::CommonName(name) => {
                    devices.by_common_name.insert(name.clone(), grant);
                }
                Proof::PasswordHash(phc) => {
                    devices.by_name.insert(device.name.clone(), (Secret::Hash(phc.clone()), grant));
                }
                Proof::PasswordFile(file) => {
                    let digest = sha256(password_in(file, device)?.as_bytes());
                    devices.by_name.insert(device.name.clone(), (Secret::Digest(digest), grant));
                }
            }
        }
        Ok(devices)
    }

    async fn judge(self: Arc<Self>, credentials: Credentials) -> Result<Arc<Grant>, Denied> {
        if let Some(grant) = credentials.certificate.as_ref().and_then(|certificate| self.certified(certificate)) {
            return Ok(grant);
        }
        let Some(name) = credentials.username.clone() else {
            let local = credentials.peer.ip().is_loopback();
            return self.anonymous.clone().filter(|_| local).ok_or(Denied::NotAuthorised);
        };
        let password = credentials.password.unwrap_or_default();
        if password.len() > PASSWORD_BYTES_MAX {
            return Err(Denied::BadCredentials);
        }
        let digest = sha256(&password);
        let Some((secret, grant)) = self.by_name.get(&name) else { return Err(Denied::BadCredentials) };
        let grant = Arc::clone(grant);
        match secret {
            Secret::Digest(right) if *right == digest => return Ok(grant),
            Secret::Digest(_) => return Err(Denied::BadCredentials),
            Secret::Hash(_) => {}
        }
        if self.is_verified(&name, &digest) {
            return Ok(grant);
        }
        let waiting = self.waiting.try_acquire().map_err(|_| Denied::Unavailable)?;
        let turn = self.one_at_a_time.acquire().await.map_err(|_| Denied::Unavailable)?;
        // Another connection of the device may have been first.
        if self.is_verified(&name, &digest) {
            return Ok(grant);
        }
        let devices = Arc::clone(&self);
        let (asked, right) = tokio::task::spawn_blocking(move || {
            let right = match devices.by_name.get(&name) {
                Some((Secret::Hash(phc), _)) => passwords::verify(&password, phc),
                _ => false,
            };
            (name, right)
        })
        .await
        .map_err(|_| Denied::Unavailable)?;
        drop((turn, waiting));
        if !right {
            return Err(Denied::BadCredentials);
        }
        self.verified.lock().unwrap_or_else(PoisonError::into_inner).insert(asked, digest);
        Ok(grant)
    }

    /// A device that is known by its very certificate, else one that is known by the name in it.
    fn certified(&self, certificate: &CertificateDer<'_>) -> Option<Arc<Grant>> {
        let by_name = || self.by_common_name.get(certificate::common_name(certificate)?);
        self.by_certificate.get(&sha256(certificate)).or_else(by_name).cloned()
    }

    fn is_verified(&self, name: &str, digest: &[u8; 32]) -> bool {
        self.verified.lock().unwrap_or_else(PoisonError::into_inner).get(name) == Some(digest)
    }
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    fn device(name: &str, proof: Proof) -> Device {
        Device { name: name.into(), proof, publish: vec!["plant/#".into()], subscribe: Vec::new() }
    }

    fn credentials(username: Option<&str>, password: &str, peer: &str) -> Credentials {
        Credentials {
            client_id: "c".into(),
            username: username.map(str::to_owned),
            password: Some(password.to_owned().into()),
            certificate: None,
            peer: SocketAddr::new(peer.parse().unwrap(), 1),
        }
    }

    #[tokio::test]
    async fn who_is_let_in() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("p");
        fs::write(&file, "from file\n").unwrap();
        let configured = [
            device("hashed", Proof::PasswordHash(passwords::hash(b"right").unwrap())),
            device("filed", Proof::PasswordFile(file)),
            device("certified", Proof::Certificate(sha256(b"DER"))),
            device("local", Proof::Anonymous),
        ];
        let devices = Arc::new(Devices::new(&configured).unwrap());
        let judge = |credentials| {
            let devices = Arc::clone(&devices);
            async move { devices.judge(credentials).await.map(|grant| grant.name.to_string()) }
        };
        for _ in 0..2 {
            assert_eq!(judge(credentials(Some("hashed"), "right", "10.0.0.1")).await, Ok("hashed".into()));
            assert_eq!(judge(credentials(Some("hashed"), "wrong", "10.0.0.1")).await, Err(Denied::BadCredentials));
        }
        assert_eq!(judge(credentials(Some("filed"), "from file", "10.0.0.1")).await, Ok("filed".into()));
        assert_eq!(judge(credentials(Some("nobody"), "right", "127.0.0.1")).await, Err(Denied::BadCredentials));
        assert_eq!(judge(credentials(None, "", "127.0.0.1")).await, Ok("local".into()));
        assert_eq!(judge(credentials(None, "", "10.0.0.1")).await, Err(Denied::NotAuthorised));
        let mut certified = credentials(None, "", "10.0.0.1");
        certified.certificate = Some(CertificateDer::from(b"DER".to_vec()));
        assert_eq!(judge(certified).await, Ok("certified".into()));
    }

    #[tokio::test]
    async fn a_thousand_reconnects_verify_once() {
        let configured = [device("d", Proof::PasswordHash(passwords::hash(b"right").unwrap()))];
        let devices = Arc::new(Devices::new(&configured).unwrap());
        let mut all = tokio::task::JoinSet::new();
        for _ in 0..200 {
            all.spawn(Arc::clone(&devices).judge(credentials(Some("d"), "right", "10.0.0.1")));
        }
        let begun = std::time::Instant::now();
        assert!(all.join_all().await.iter().all(Result::is_ok));
        assert!(begun.elapsed() < std::time::Duration::from_secs(20));
    }
}
