//! TLS settings for servers and clients, with a current rustls.
//!
//! The crypto provider (ring) is named wherever a configuration is built: nothing depends on a default that
//! some other crate installs for the process.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    client::danger::ServerCertVerifier,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
};

/// PEM text and where it came from, for errors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pem {
    text: Vec<u8>,
    origin: String,
}

/// Whether clients show certificates, and whose.
#[derive(Debug, Clone, Default)]
pub enum ClientCertificates {
    #[default]
    NotAsked,
    /// A client may show one of these authorities.
    Optional(Pem),
    /// A client must.
    Required(Pem),
}

/// Whom a client believes.
#[derive(Debug, Clone, Default)]
pub enum Trust {
    /// The authorities of the operating system.
    #[default]
    System,
    /// These certificates and no others: an authority's, or a server's own that nobody else signed.
    Only(Pem),
}

/// A certificate chain and its key.
#[derive(Debug, Clone)]
pub struct Identity {
    pub certificate: Pem,
    pub key: Pem,
}

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("cannot read {path}: {error}")]
    Read { path: PathBuf, error: io::Error },
    #[error("{origin} holds no PEM certificate (-----BEGIN CERTIFICATE-----)")]
    NoCertificate { origin: String },
    #[error("{origin} holds no PEM private key (PKCS#8, PKCS#1 or SEC1)")]
    NoKey { origin: String },
    #[error("{origin} cannot be used: {reason}")]
    Unusable { origin: String, reason: String },
    #[error("the operating system has no certificate authorities: install ca-certificates or name a CA file")]
    NoSystemAuthorities,
    #[error("TLS cannot be set up: {0}")]
    Rustls(#[from] rustls::Error),
}

impl Pem {
    /// # Errors
    /// If the file cannot be read.
    pub fn file(path: &Path) -> Result<Self, TlsError> {
        let text = fs::read(path).map_err(|error| TlsError::Read { path: path.to_owned(), error })?;
        Ok(Self { text, origin: path.display().to_string() })
    }

    /// `origin` says in errors where the text is from.
    #[must_use]
    pub fn text(text: &str, origin: &str) -> Self {
        Self { text: text.into(), origin: origin.into() }
    }

    fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&self.text).collect();
        match chain {
            Ok(chain) if !chain.is_empty() => Ok(chain),
            _ => Err(TlsError::NoCertificate { origin: self.origin.clone() }),
        }
    }

    fn key(&self) -> Result<PrivateKeyDer<'static>, TlsError> {
        PrivateKeyDer::from_pem_slice(&self.text).map_err(|_| TlsError::NoKey { origin: self.origin.clone() })
    }

    fn roots(&self) -> Result<Arc<RootCertStore>, TlsError> {
        let mut roots = RootCertStore::empty();
        for certificate in self.certificates()? {
            roots.add(certificate).map_err(|error| self.unusable(&error))?;
        }
        Ok(Arc::new(roots))
    }

    fn unusable(&self, reason: &dyn std::fmt::Display) -> TlsError {
        TlsError::Unusable { origin: self.origin.clone(), reason: reason.to_string() }
    }
}

impl Identity {
    /// # Errors
    /// If one of the files cannot be read.
    pub fn files(certificate: &Path, key: &Path) -> Result<Self, TlsError> {
        Ok(Self { certificate: Pem::file(certificate)?, key: Pem::file(key)? })
    }
}

/// A server of TLS 1.2 and 1.3.
///
/// # Errors
/// If a certificate or a key cannot be used.
pub fn server_config(identity: &Identity, clients: &ClientCertificates) -> Result<Arc<ServerConfig>, TlsError> {
    let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    let verifier = |authorities: &Pem| -> Result<_, TlsError> {
        Ok((WebPkiClientVerifier::builder_with_provider(authorities.roots()?, provider()), authorities.clone()))
    };
    let builder = match clients {
        ClientCertificates::NotAsked => builder.with_no_client_auth(),
        ClientCertificates::Optional(authorities) => {
            let (verifier, pem) = verifier(authorities)?;
            let verifier = verifier.allow_unauthenticated().build().map_err(|error| pem.unusable(&error))?;
            builder.with_client_cert_verifier(verifier)
        }
        ClientCertificates::Required(authorities) => {
            let (verifier, pem) = verifier(authorities)?;
            builder.with_client_cert_verifier(verifier.build().map_err(|error| pem.unusable(&error))?)
        }
    };
    let config = builder
        .with_single_cert(identity.certificate.certificates()?, identity.key.key()?)
        .map_err(|error| identity.certificate.unusable(&error))?;
    Ok(Arc::new(config))
}

/// A client of TLS 1.2 and 1.3; with an identity, it shows its certificate where a server asks for one.
///
/// # Errors
/// If a certificate or a key cannot be used, or the system has no authorities.
pub fn client_config(trust: &Trust, identity: Option<&Identity>) -> Result<Arc<ClientConfig>, TlsError> {
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    let roots = match trust {
        Trust::System => system_roots()?,
        Trust::Only(pem) => pem.roots()?,
    };
    let builder = builder.with_root_certificates(roots);
    let config = match identity {
        None => builder.with_no_client_auth(),
        Some(identity) => builder
            .with_client_auth_cert(identity.certificate.certificates()?, identity.key.key()?)
            .map_err(|error| identity.certificate.unusable(&error))?,
    };
    Ok(Arc::new(config))
}

/// The check that [`client_config`] makes, for clients that build their own configuration.
///
/// # Errors
/// If a certificate cannot be used, or the system has no authorities.
pub fn server_verifier(trust: &Trust) -> Result<Arc<dyn ServerCertVerifier>, TlsError> {
    let roots = match trust {
        Trust::System => system_roots()?,
        Trust::Only(pem) => pem.roots()?,
    };
    rustls::client::WebPkiServerVerifier::builder_with_provider(roots, provider())
        .build()
        .map(|verifier| verifier as Arc<dyn ServerCertVerifier>)
        .map_err(|error| TlsError::Unusable { origin: "the trusted certificates".into(), reason: error.to_string() })
}

/// What can be read is taken: one odd certificate among the system's must not stop the daemon.
fn system_roots() -> Result<Arc<RootCertStore>, TlsError> {
    let mut roots = RootCertStore::empty();
    let (taken, _odd) = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if taken == 0 { Err(TlsError::NoSystemAuthorities) } else { Ok(Arc::new(roots)) }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made() -> Identity {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
        Identity {
            certificate: Pem::text(&made.cert.pem(), "made"),
            key: Pem::text(&made.signing_key.serialize_pem(), "made"),
        }
    }

    #[test]
    fn what_is_wrong_with_a_file_is_said() {
        let nothing = Pem::text("nothing", "gate.pem");
        let good = made();
        for (identity, expected) in [
            (
                Identity { certificate: nothing.clone(), ..good.clone() },
                "gate.pem holds no PEM certificate (-----BEGIN CERTIFICATE-----)",
            ),
            (
                Identity { key: nothing.clone(), ..good.clone() },
                "gate.pem holds no PEM private key (PKCS#8, PKCS#1 or SEC1)",
            ),
        ] {
            let error = server_config(&identity, &ClientCertificates::NotAsked).unwrap_err();
            assert_eq!(error.to_string(), expected);
        }
        let error = server_config(&good, &ClientCertificates::Required(nothing)).unwrap_err();
        assert!(error.to_string().starts_with("gate.pem holds no PEM certificate"));
        let of_another = Identity { key: made().key, ..good };
        let error = server_config(&of_another, &ClientCertificates::NotAsked).unwrap_err();
        assert!(error.to_string().starts_with("made cannot be used: "), "{error}");
        let error = Pem::file(Path::new("/nowhere/gate.pem")).unwrap_err();
        assert!(error.to_string().starts_with("cannot read /nowhere/gate.pem: "), "{error}");
    }
}
