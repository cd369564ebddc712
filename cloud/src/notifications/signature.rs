//! Signatures of webhooks, as Standard Webhooks has them (<https://www.standardwebhooks.com>, version 1.0.0).
//!
//! `webhook-signature: v1,{base64 of HMAC-SHA256 over "{webhook-id}.{webhook-timestamp}.{body}"}`; during a rotation two of them, with a
//! space between.
//!
//! A webhook's secret is nowhere stored: it is derived from the cloud's key, the webhook's id and how often it was rotated.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use ed25519_dalek::SigningKey;
use hmac::{Hmac, KeyInit as _, Mac as _};
use jiff::{SignedDuration, Timestamp};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

/// How long after a rotation the secret before it signs as well.
pub const ROTATION: SignedDuration = SignedDuration::from_hours(24);

/// Makes the secrets of webhooks.
#[derive(Clone)]
pub struct Secrets([u8; 32]);

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secrets")
    }
}

impl Secrets {
    /// With a key of its own, derived from the cloud's.
    #[must_use]
    pub fn new(cloud: &SigningKey) -> Self {
        let hash = Sha256::new().chain_update(b"gemba webhook secrets 1\0").chain_update(cloud.to_bytes());
        Self(hash.finalize().into())
    }

    fn of(&self, webhook: Uuid, generation: i32) -> [u8; 32] {
        let mut mac = keyed(&self.0);
        mac.update(webhook.as_bytes());
        mac.update(&generation.to_be_bytes());
        mac.finalize().into_bytes().into()
    }

    /// As its receiver is given it.
    #[must_use]
    pub fn shown(&self, webhook: Uuid, generation: i32) -> String {
        format!("whsec_{}", BASE64_STANDARD.encode(self.of(webhook, generation)))
    }

    /// The header's value. `rotated_at` is when the present generation began.
    #[must_use]
    pub fn sign(
        &self,
        webhook: Uuid,
        generation: i32,
        rotated_at: Option<Timestamp>,
        message: &Message<'_>,
        now: Timestamp,
    ) -> String {
        let mut value = message.signature(&self.of(webhook, generation));
        if generation > 1 && rotated_at.is_some_and(|at| now.duration_since(at) < ROTATION) {
            value.push(' ');
            value.push_str(&message.signature(&self.of(webhook, generation - 1)));
        }
        value
    }
}

/// What is signed.
#[derive(Debug, Clone, Copy)]
pub struct Message<'a> {
    /// `webhook-id`: the same for each attempt at a delivery.
    pub id: &'a str,
    /// `webhook-timestamp`, in seconds.
    pub at_s: i64,
    pub body: &'a [u8],
}

impl Message<'_> {
    fn signature(&self, key: &[u8]) -> String {
        let mut mac = keyed(key);
        for part in [self.id.as_bytes(), b".", self.at_s.to_string().as_bytes(), b".", self.body] {
            mac.update(part);
        }
        format!("v1,{}", BASE64_STANDARD.encode(mac.finalize().into_bytes()))
    }
}

/// HMAC takes a key of any length.
fn keyed(key: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).unwrap_or_else(|_| unreachable!("HMAC takes every key"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example in the specification's own libraries.
    #[test]
    fn the_signature_is_that_of_standard_webhooks() {
        let key = BASE64_STANDARD.decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let message =
            Message { id: "msg_p5jXN8AQM9LWM0D4loKWxJek", at_s: 1_614_265_330, body: br#"{"test": 2432232314}"# };
        assert_eq!(message.signature(&key), "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn two_secrets_sign_while_one_is_replaced() {
        let secrets = Secrets::new(&SigningKey::from_bytes(&[1; 32]));
        let (hook, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let first = secrets.shown(hook, 1);
        assert!(first.starts_with("whsec_") && first.len() == 6 + 44, "{first}");
        assert_ne!(first, secrets.shown(hook, 2));
        assert_ne!(first, secrets.shown(other, 1));
        assert_ne!(first, Secrets::new(&SigningKey::from_bytes(&[2; 32])).shown(hook, 1));

        let message = Message { id: "a", at_s: 1, body: b"{}" };
        let at = |hours: i64| Timestamp::from_second(hours * 3_600).unwrap();
        let sign =
            |generation, rotated: Option<i64>, now| secrets.sign(hook, generation, rotated.map(at), &message, at(now));
        let (old, new) = (sign(1, None, 0), sign(2, Some(0), 24));
        assert_ne!(old, new);
        assert_eq!(sign(2, Some(0), 23), format!("{new} {old}"));
    }
}
