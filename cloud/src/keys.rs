//! The cloud's own keys, made at the first start and kept in `{data_dir}/keys`.
//!
//! | file | what |
//! |---|---|
//! | `cloud.pem` | Ed25519; signs what goes to gateways, who know it from their enrolment; the web API derives its own from it |
//! | `mqtt-ca.pem`, `mqtt.pem`, `mqtt-key.pem` | the broker's certificate and who vouches for it, unless one is configured |
//!
//! Losing `cloud.pem` means enrolling every gateway anew: it belongs in the backup. All are of mode 0600.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use ed25519_dalek::{
    SigningKey,
    pkcs8::{DecodePrivateKey as _, EncodePrivateKey as _, spki::der::pem::LineEnding},
};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose};

/// The broker's certificate, self-made.
#[derive(Clone)]
pub struct Certificate {
    /// Who vouches for it; gateways get this when they are enrolled.
    pub authority_pem: String,
    pub chain_pem: String,
    pub key_pem: String,
}

/// The keys of one cloud.
pub struct Keys {
    /// Signs receipts, commands and enrolments.
    pub signing: SigningKey,
    directory: PathBuf,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keys").field("directory", &self.directory).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Certificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Certificate").field("chain_pem", &self.chain_pem).finish_non_exhaustive()
    }
}

impl Keys {
    /// Reads the keys, and makes those that are missing.
    ///
    /// # Errors
    /// If a file cannot be read or written, or holds no key.
    pub fn open(data_dir: &Path) -> anyhow::Result<Self> {
        let directory = data_dir.join("keys");
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
        Ok(Self { signing: signing_key(&directory.join("cloud.pem"))?, directory })
    }

    /// The broker's certificate for these names (host names or addresses), made once and anew when the names change.
    ///
    /// # Errors
    /// If a file cannot be read or written, or a name cannot stand in a certificate.
    pub fn certificate(&self, names: &[String]) -> anyhow::Result<Certificate> {
        let authority_key = self.pem_key("mqtt-ca-key.pem")?;
        let mut authority = CertificateParams::new(Vec::new())?;
        authority.distinguished_name.push(DnType::CommonName, "Gemba MQTT authority");
        authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let authority_pem = self.kept("mqtt-ca.pem", || Ok(authority.clone().self_signed(&authority_key)?.pem()))?;

        let known = self.kept("mqtt-names.txt", || Ok(names.join("\n")))?;
        let key = self.pem_key("mqtt-key.pem")?;
        let make = || {
            let mut params = CertificateParams::new(names.to_vec())?;
            params.distinguished_name.push(DnType::CommonName, "Gemba MQTT");
            params.use_authority_key_identifier_extension = true;
            let issuer = rcgen::Issuer::from_params(&authority, &authority_key);
            Ok(params.signed_by(&key, &issuer)?.pem())
        };
        let chain_pem = if known == names.join("\n") {
            self.kept("mqtt.pem", make)?
        } else {
            let pem = make().context("a name cannot stand in a certificate")?;
            write(&self.directory.join("mqtt.pem"), &pem)?;
            write(&self.directory.join("mqtt-names.txt"), &names.join("\n"))?;
            pem
        };
        Ok(Certificate { authority_pem, chain_pem, key_pem: key.serialize_pem() })
    }

    fn pem_key(&self, name: &str) -> anyhow::Result<KeyPair> {
        let pem = self.kept(name, || Ok(KeyPair::generate()?.serialize_pem()))?;
        KeyPair::from_pem(&pem).with_context(|| format!("{} holds no key", self.directory.join(name).display()))
    }

    fn kept(&self, name: &str, make: impl FnOnce() -> anyhow::Result<String>) -> anyhow::Result<String> {
        kept(&self.directory.join(name), make)
    }
}

fn signing_key(path: &Path) -> anyhow::Result<SigningKey> {
    let pem = kept(path, || {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(|error| anyhow::anyhow!("the system gives no random bytes: {error}"))?;
        let pem = SigningKey::from_bytes(&seed).to_pkcs8_pem(LineEnding::LF)?;
        Ok(String::clone(&pem))
    })?;
    SigningKey::from_pkcs8_pem(&pem).map_err(|_| anyhow::anyhow!("{} holds no Ed25519 key in PEM", path.display()))
}

/// What a file holds; made and written first where there is none.
fn kept(path: &Path, make: impl FnOnce() -> anyhow::Result<String>) -> anyhow::Result<String> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let text = make()?;
            write(path, &text)?;
            // Another process may have been faster: what lies there now is everybody's.
            fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
        }
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// Whole or not at all, and on the disk.
fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    let failed = || format!("cannot write {}", path.display());
    let unfinished = path.with_extension(format!("{}.new", std::process::id()));
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&unfinished)
        .with_context(failed)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).with_context(failed)?;
    fs::rename(&unfinished, path).with_context(failed)?;
    let directory = path.parent().unwrap_or(Path::new("."));
    File::open(directory).and_then(|directory| directory.sync_all()).with_context(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_made_once() {
        let directory = tempfile::tempdir().unwrap();
        let first = Keys::open(directory.path()).unwrap();
        let again = Keys::open(directory.path()).unwrap();
        assert_eq!(first.signing.to_bytes(), again.signing.to_bytes());

        let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let certificate = first.certificate(&names).unwrap();
        let same = again.certificate(&names).unwrap();
        assert_eq!(certificate.chain_pem, same.chain_pem);
        let renamed = again.certificate(&names[..1]).unwrap();
        assert_ne!(certificate.chain_pem, renamed.chain_pem);
        assert_eq!(certificate.authority_pem, renamed.authority_pem);
    }

    #[test]
    fn a_damaged_key_is_named() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("keys")).unwrap();
        fs::write(directory.path().join("keys/cloud.pem"), "x").unwrap();
        let error = Keys::open(directory.path()).unwrap_err().to_string();
        assert!(error.contains("cloud.pem"), "{error}");
    }
}
