//! Authorities and the certificates they sign.

use gemba_mqtt::tls::{Identity, Pem};
use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair};
use sha2::{Digest as _, Sha256};

pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub pem: String,
}

/// A certificate with its key.
pub struct Certified {
    pub identity: Identity,
    pub pem: String,
    pub key_pem: String,
    /// SHA-256, in hexadecimal.
    pub fingerprint: String,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// `subject` is a host name or an address.
    pub fn certify(&self, common_name: &str, subject: &str) -> Certified {
        let mut params = CertificateParams::new(vec![subject.to_owned()]).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "Works");
        params.distinguished_name.push(DnType::CommonName, common_name);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let (pem, key_pem) = (certificate.pem(), key.serialize_pem());
        let identity = Identity { certificate: Pem::text(&pem, "test"), key: Pem::text(&key_pem, "test") };
        let bytes = Sha256::digest(certificate.der());
        let fingerprint = bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat();
        Certified { identity, pem, key_pem, fingerprint }
    }
}
