//! Adding gateways: one-time tokens, and what a gateway gets for one.

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ed25519_dalek::SigningKey;
use gemba_shared::{
    enrolment::{EnrolmentError, Mqtt, Request, Response, Token, fingerprint},
    ids::GatewayId,
};
use jiff::{SignedDuration, Timestamp};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::{
    live::{Change, Changes},
    metrics::Metrics,
    store::{
        Store, StoreError,
        enrolment::{ChangeError, NewGateway, NewToken},
    },
};

/// How long a token may be used.
pub const TOKEN_LIFE: SignedDuration = SignedDuration::from_hours(24);
/// The longest gateway name, in characters.
pub const NAME_CHARS_MAX: usize = 64;

/// What a gateway is told of the broker.
#[derive(Debug, Clone)]
pub struct Offer {
    pub url: String,
    pub ca_pem: Option<String>,
}

/// Enrols gateways that bring a token.
pub struct Enrolments {
    pub store: Store,
    pub signing: SigningKey,
    pub offer: Offer,
    pub changes: Changes,
    pub metrics: Arc<Metrics>,
}

impl std::fmt::Debug for Enrolments {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Enrolments")
    }
}

/// Why a gateway was not enrolled.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error(transparent)]
    Malformed(#[from] EnrolmentError),
    #[error("this token is unknown, was used, or is older than 24 hours: ask for a new one")]
    Token,
    #[error("the system gives no random bytes")]
    Random,
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Refusal {
    /// A fixed word for counters and clients.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Malformed(EnrolmentError::Proof) => "proof",
            Self::Malformed(_) => "malformed",
            Self::Token => "token",
            Self::Random => "random",
            Self::Store(_) => "database",
        }
    }
}

/// Why a gateway was not added.
#[derive(Debug, thiserror::Error)]
pub enum AddError {
    #[error("a gateway's name has 1 to {NAME_CHARS_MAX} characters, none of them a control character")]
    Name,
    #[error("the broker's URL begins with mqtt:// or mqtts://")]
    MqttUrl,
    #[error("the system gives no random bytes")]
    Random,
    #[error(transparent)]
    Change(#[from] ChangeError),
}

impl From<StoreError> for AddError {
    fn from(error: StoreError) -> Self {
        Self::Change(error.into())
    }
}

impl Enrolments {
    /// Believes the request, uses its token up, and answers with what the gateway needs.
    ///
    /// # Errors
    /// If the request is malformed, its token is not good, or the database is away (the token is not used then).
    pub async fn enrol(&self, request: &Request, now: Timestamp) -> Result<Response, Refusal> {
        let enrolled = self.try_enrol(request, now).await;
        match &enrolled {
            Ok(_) => self.metrics.enrolments.inc(),
            Err(refusal) => {
                Metrics::count(&self.metrics.enrolments_refused, refusal.reason());
                return enrolled;
            }
        };
        enrolled
    }

    async fn try_enrol(&self, request: &Request, now: Timestamp) -> Result<Response, Refusal> {
        let proven = request.check()?;
        let password = URL_SAFE_NO_PAD.encode(random().ok_or(Refusal::Random)?);
        let token: [u8; 32] = Sha256::digest(proven.secret).into();
        let password_sha256: [u8; 32] = Sha256::digest(&password).into();
        let enrolled = self.store.enrol(&token, proven.public_key.as_bytes(), &password_sha256, now).await?;
        let enrolled = enrolled.ok_or(Refusal::Token)?;
        for gateway in std::iter::once(enrolled.gateway).chain(enrolled.replaced) {
            // An error says that nobody watches, which is no fault.
            drop(self.changes.send(Change::Gateway(gateway)));
        }
        tracing::info!(gateway = %enrolled.gateway, "enrolled a gateway");
        let mqtt = Mqtt {
            url: enrolled.mqtt_url.unwrap_or_else(|| self.offer.url.clone()),
            username: enrolled.gateway.to_string(),
            password,
            ca_pem: self.offer.ca_pem.clone(),
        };
        let gateway = GatewayId::from_bytes(*enrolled.gateway.as_bytes());
        Ok(Response::new(gateway, mqtt, &proven.public_key, &self.signing))
    }
}

/// Adds a gateway; the token that enrols it.
///
/// # Errors
/// If the name or URL is no good, the name is taken, or the database is away.
pub async fn add(
    store: &Store,
    new: NewGateway<'_>,
    api_url: &str,
    signing: &SigningKey,
    now: Timestamp,
) -> Result<(Uuid, Token), AddError> {
    let length = new.name.chars().count();
    if length == 0 || length > NAME_CHARS_MAX || new.name.chars().any(char::is_control) {
        return Err(AddError::Name);
    }
    if new.mqtt_url.is_some_and(|url| !url.starts_with("mqtt://") && !url.starts_with("mqtts://")) {
        return Err(AddError::MqttUrl);
    }
    let (token, row) = token(api_url, signing, now)?;
    Ok((store.add_gateway(new, row).await?, token))
}

/// A token with which a gateway that is known gets a new key.
///
/// # Errors
/// If the gateway is revoked, or the database is away.
pub async fn rekey(
    store: &Store,
    gateway: Uuid,
    api_url: &str,
    signing: &SigningKey,
    now: Timestamp,
) -> Result<Token, AddError> {
    let (token, row) = token(api_url, signing, now)?;
    store.rekey_gateway(gateway, row).await?;
    Ok(token)
}

fn token(api_url: &str, signing: &SigningKey, now: Timestamp) -> Result<(Token, NewToken), AddError> {
    let secret = random().ok_or(AddError::Random)?;
    let token = Token {
        api_url: api_url.trim_end_matches('/').to_owned(),
        secret,
        cloud_key_sha256: fingerprint(&signing.verifying_key()),
    };
    Ok((token, NewToken { sha256: Sha256::digest(secret).into(), now, valid_for: TOKEN_LIFE }))
}

fn random() -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).ok()?;
    Some(bytes)
}
