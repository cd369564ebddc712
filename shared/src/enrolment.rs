//! How a gateway and the cloud get to know each other's keys, once.
//!
//! A person carries a [`Token`] from the cloud to the gateway. The gateway makes its key, and posts a
//! [`Request`] (as JSON) to `{api_url}/api/v1/enroll`; the cloud answers with a [`Response`]. The token names
//! the fingerprint of the cloud's key, and that key signs the answer together with the gateway's own key, so
//! nobody on the way can change either: plain HTTP is enough. The token's secret can be used once.
//!
//! Texts: the token is `gemba-enrol-1.` and the base64url (without padding) of a postcard; keys, proofs and
//! signatures in JSON are base64url without padding.

use std::{fmt, str::FromStr};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::ids::GatewayId;

/// The longest token, in bytes of its text.
pub const TOKEN_BYTES_MAX: usize = 2_048;
/// Where a request is posted, behind the token's `api_url`.
pub const PATH: &str = "/api/v1/enroll";

const TOKEN_PREFIX: &str = "gemba-enrol-1.";
const PROOF_PREFIX: &[u8] = b"gemba enrol\0";
const ANSWER_PREFIX: &[u8] = b"gemba enrolled\0";

/// What a person carries from the cloud to a gateway. It holds a secret: `Debug` hides it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// Where the cloud's API is, without a `/` at the end (`https://gemba.example`).
    pub api_url: String,
    pub secret: [u8; 32],
    /// SHA-256 of the cloud's public key.
    pub cloud_key_sha256: [u8; 32],
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = postcard::to_stdvec(self).map_err(|_| fmt::Error)?;
        write!(f, "{TOKEN_PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("api_url", &self.api_url).finish_non_exhaustive()
    }
}

impl FromStr for Token {
    type Err = EnrolmentError;

    fn from_str(text: &str) -> Result<Self, EnrolmentError> {
        let text = text.trim();
        if text.len() > TOKEN_BYTES_MAX {
            return Err(EnrolmentError::Token);
        }
        let body = text.strip_prefix(TOKEN_PREFIX).ok_or(EnrolmentError::Token)?;
        let bytes = URL_SAFE_NO_PAD.decode(body).map_err(|_| EnrolmentError::Token)?;
        match postcard::take_from_bytes(&bytes) {
            Ok((token, [])) => Ok(token),
            _ => Err(EnrolmentError::Token),
        }
    }
}

/// Why an enrolment was not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EnrolmentError {
    #[error("this is no enrolment token: it begins with {TOKEN_PREFIX:?} and was copied whole?")]
    Token,
    #[error("the secret is not 32 bytes in base64url")]
    Secret,
    #[error("the gateway's key is not an Ed25519 public key in base64url")]
    PublicKey,
    #[error("the proof is not the gateway's signature of the secret")]
    Proof,
    #[error("the cloud's key is not an Ed25519 public key in base64url")]
    CloudKey,
    #[error("the cloud that answered is not the one that made the token (its key has another fingerprint)")]
    Fingerprint,
    #[error("the answer names no gateway")]
    Gateway,
    #[error("the answer was changed on the way: its signature is not of the cloud's key")]
    Answer,
}

/// A gateway's wish to be enrolled.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    pub secret: String,
    pub public_key: String,
    /// The new key's signature of `"gemba enrol\0"` and the secret.
    pub proof: String,
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request").field("public_key", &self.public_key).finish_non_exhaustive()
    }
}

/// A request whose sender holds the key that it names. Whether the secret is known is the cloud's to say.
pub struct Proven {
    pub secret: [u8; 32],
    pub public_key: VerifyingKey,
}

impl fmt::Debug for Proven {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proven").field("public_key", &self.public_key).finish_non_exhaustive()
    }
}

impl Request {
    #[must_use]
    pub fn new(secret: &[u8; 32], key: &SigningKey) -> Self {
        Self {
            secret: URL_SAFE_NO_PAD.encode(secret),
            public_key: URL_SAFE_NO_PAD.encode(key.verifying_key().as_bytes()),
            proof: URL_SAFE_NO_PAD.encode(key.sign(&to_prove(secret)).to_bytes()),
        }
    }

    /// # Errors
    /// If a field is no base64url of the right length, or the proof is not the named key's.
    pub fn check(&self) -> Result<Proven, EnrolmentError> {
        let secret = bytes32(&self.secret).ok_or(EnrolmentError::Secret)?;
        let public_key = key(&self.public_key).ok_or(EnrolmentError::PublicKey)?;
        if verify(&public_key, &to_prove(&secret), &self.proof) {
            Ok(Proven { secret, public_key })
        } else {
            Err(EnrolmentError::Proof)
        }
    }
}

/// How a gateway reaches the cloud's broker.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mqtt {
    /// `mqtts://host:port` or `mqtt://host:port`.
    pub url: String,
    pub username: String,
    pub password: String,
    /// The one authority to trust for the broker's certificate; absent where the system's will do.
    pub ca_pem: Option<String>,
}

impl fmt::Debug for Mqtt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mqtt").field("url", &self.url).field("username", &self.username).finish_non_exhaustive()
    }
}

/// The cloud's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Response {
    pub gateway_id: String,
    pub cloud_key: String,
    pub mqtt: Mqtt,
    /// The cloud's signature of all the above and the gateway's key.
    pub signature: String,
}

/// An answer that is the right cloud's, to this gateway.
#[derive(Debug)]
pub struct Enrolled {
    pub gateway: GatewayId,
    pub cloud_key: VerifyingKey,
    pub mqtt: Mqtt,
}

impl Response {
    #[must_use]
    pub fn new(gateway: GatewayId, mqtt: Mqtt, gateway_key: &VerifyingKey, cloud: &SigningKey) -> Self {
        let cloud_key = cloud.verifying_key();
        let signature = cloud.sign(&to_answer(gateway, &cloud_key, &mqtt, gateway_key));
        Self {
            gateway_id: gateway.to_string(),
            cloud_key: URL_SAFE_NO_PAD.encode(cloud_key.as_bytes()),
            mqtt,
            signature: URL_SAFE_NO_PAD.encode(signature.to_bytes()),
        }
    }

    /// Believes the answer only if the cloud that made `token` gave it to the gateway with `gateway_key`.
    ///
    /// # Errors
    /// If the cloud is another one, or the answer was changed.
    pub fn check(self, token: &Token, gateway_key: &VerifyingKey) -> Result<Enrolled, EnrolmentError> {
        let cloud_key = key(&self.cloud_key).ok_or(EnrolmentError::CloudKey)?;
        if fingerprint(&cloud_key) != token.cloud_key_sha256 {
            return Err(EnrolmentError::Fingerprint);
        }
        let gateway = self.gateway_id.parse().map_err(|_| EnrolmentError::Gateway)?;
        let signed = to_answer(gateway, &cloud_key, &self.mqtt, gateway_key);
        if verify(&cloud_key, &signed, &self.signature) {
            Ok(Enrolled { gateway, cloud_key, mqtt: self.mqtt })
        } else {
            Err(EnrolmentError::Answer)
        }
    }
}

/// SHA-256 of a public key.
#[must_use]
pub fn fingerprint(key: &VerifyingKey) -> [u8; 32] {
    Sha256::digest(key.as_bytes()).into()
}

fn to_prove(secret: &[u8; 32]) -> Vec<u8> {
    [PROOF_PREFIX, secret].concat()
}

fn to_answer(gateway: GatewayId, cloud: &VerifyingKey, mqtt: &Mqtt, gateway_key: &VerifyingKey) -> Vec<u8> {
    // A `Vec` has no limit that could be exceeded, and these types have no custom encoding that could fail.
    let fields = postcard::to_stdvec(&(gateway.as_bytes(), cloud.as_bytes(), mqtt)).unwrap_or_default();
    [ANSWER_PREFIX, &fields, gateway_key.as_bytes()].concat()
}

fn bytes32(text: &str) -> Option<[u8; 32]> {
    URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok()
}

fn key(text: &str) -> Option<VerifyingKey> {
    VerifyingKey::from_bytes(&bytes32(text)?).ok().filter(|key| !key.is_weak())
}

fn verify(key: &VerifyingKey, signed: &[u8], signature: &str) -> bool {
    let Ok(bytes) = URL_SAFE_NO_PAD.decode(signature) else { return false };
    let Ok(signature) = Signature::from_slice(&bytes) else { return false };
    key.verify_strict(signed, &signature).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signing(seed: u8) -> SigningKey {
        SigningKey::from_bytes(&[seed; 32])
    }

    fn token() -> Token {
        Token {
            api_url: "http://127.0.0.1:8080".into(),
            secret: [7; 32],
            cloud_key_sha256: fingerprint(&signing(1).verifying_key()),
        }
    }

    fn response() -> Response {
        let mqtt = Mqtt {
            url: "mqtts://127.0.0.1:8883".into(),
            username: "u".into(),
            password: "p".into(),
            ca_pem: Some("PEM".into()),
        };
        Response::new(GatewayId::from_bytes([9; 16]), mqtt, &signing(2).verifying_key(), &signing(1))
    }

    #[test]
    fn a_token_reads_what_it_writes_and_nothing_else() {
        let text = token().to_string();
        assert_eq!(text.parse(), Ok(token()));
        assert_eq!(format!("  {text}\n").parse(), Ok(token()));
        for bad in ["", "gemba-enrol-1.", "gemba-enrol-2.AAAA", &text[..text.len() - 2], &format!("{text}AAAA")] {
            assert_eq!(bad.parse::<Token>(), Err(EnrolmentError::Token), "{bad}");
        }
        assert!(!format!("{:?}", token()).contains("7, 7"));
    }

    #[test]
    fn a_request_proves_its_key() {
        let good = Request::new(&[7; 32], &signing(2));
        let proven = good.check().expect("a good request");
        assert_eq!((proven.secret, proven.public_key), ([7; 32], signing(2).verifying_key()));

        let other = Request::new(&[7; 32], &signing(3));
        let check = |request: Request, expected| assert_eq!(request.check().err(), Some(expected));
        check(Request { secret: "x".into(), ..good.clone() }, EnrolmentError::Secret);
        check(Request { public_key: "x".into(), ..good.clone() }, EnrolmentError::PublicKey);
        check(Request { public_key: other.public_key, ..good.clone() }, EnrolmentError::Proof);
        check(Request { proof: String::new(), ..good }, EnrolmentError::Proof);
    }

    #[test]
    fn an_answer_is_believed_only_unchanged_and_from_the_right_cloud() {
        let own = signing(2).verifying_key();
        let enrolled = response().check(&token(), &own).expect("a good answer");
        assert_eq!(enrolled.gateway, GatewayId::from_bytes([9; 16]));

        let check = |response: Response, expected| {
            assert_eq!(response.check(&token(), &own).err(), Some(expected));
        };
        let stranger = Response::new(GatewayId::from_bytes([9; 16]), response().mqtt, &own, &signing(4));
        check(stranger, EnrolmentError::Fingerprint);
        let with = |change: fn(&mut Response)| {
            let mut changed = response();
            change(&mut changed);
            changed
        };
        check(with(|r| r.gateway_id = GatewayId::from_bytes([8; 16]).to_string()), EnrolmentError::Answer);
        check(with(|r| r.gateway_id.clear()), EnrolmentError::Gateway);
        check(with(|r| r.cloud_key.clear()), EnrolmentError::CloudKey);
        check(with(|r| r.mqtt.url.push('x')), EnrolmentError::Answer);
        check(with(|r| r.mqtt.password.push('x')), EnrolmentError::Answer);
        check(with(|r| r.mqtt.ca_pem = None), EnrolmentError::Answer);
        check(with(|r| r.signature.clear()), EnrolmentError::Answer);
        let to_another =
            Response::new(GatewayId::from_bytes([9; 16]), response().mqtt, &signing(3).verifying_key(), &signing(1));
        check(to_another, EnrolmentError::Answer);
    }

    #[test]
    fn golden_token() {
        expect_test::expect!["gemba-enrol-1.FWh0dHA6Ly8xMjcuMC4wLjE6ODA4MAcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHNHUPmL1Z_PyUbaRaqr6TO-FUpLUJThxKv0KGZQXzyX4"].assert_eq(&token().to_string());
    }
}
