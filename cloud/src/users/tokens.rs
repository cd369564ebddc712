//! Access tokens: JWT signed with Ed25519 (`EdDSA`, no other algorithm is taken), good for [`LIFETIME`].
//!
//! A token names its user and session; what they may do is read from the database at each request, so that a change of it
//! holds at once. Keys rotate: a token says which one signed it (`kid`), a new key signs when every replica has read it
//! ([`LEAD`]), and an old one is taken until its last token is over. A key's secret is derived from the cloud's key and its
//! id, which is all that the database knows.

use std::sync::{Arc, PoisonError, RwLock};

use ed25519_dalek::SigningKey;
use jiff::{SignedDuration, Timestamp};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

pub const LIFETIME: SignedDuration = SignedDuration::from_mins(15);
/// A key signs when it is this old; replicas read the keys more often than that.
pub const LEAD: SignedDuration = SignedDuration::from_mins(5);
/// A key that is older gets a successor.
pub const KEY_AGE_MAX: SignedDuration = SignedDuration::from_hours(30 * 24);

const ISSUER: &str = "gemba-cloud";
/// How far in the future a token's birth may lie (a clock that was set back).
const SKEW_MAX: SignedDuration = SignedDuration::from_secs(60);
/// PKCS #8 of an Ed25519 seed (RFC 8410), up to the seed.
const PKCS8_PREFIX: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// What a token says. Times in milliseconds where a second is too coarse for the order of events.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Claims {
    iss: String,
    sub: Uuid,
    sid: Uuid,
    /// Seconds, as RFC 7519 has it.
    exp: i64,
    iat_ms: i64,
}

/// A token that was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token {
    pub user: Uuid,
    pub session: Uuid,
    pub issued_at: Timestamp,
    pub expires_at: Timestamp,
}

/// A key as the database has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    pub id: Uuid,
    pub created_at: Timestamp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("the token is not one of this server's")]
    Invalid,
    /// It may be a key that was made a moment ago.
    #[error("the token is signed with a key that is not known (any more)")]
    UnknownKey,
    #[error("the token has expired")]
    Expired,
    #[error("a token could not be signed")]
    Signing,
}

struct Pair {
    key: Key,
    encoding: EncodingKey,
    decoding: DecodingKey,
}

/// Makes and takes tokens.
#[derive(Clone)]
pub struct Tokens {
    cloud: SigningKey,
    validation: Validation,
    /// By age, the oldest first. Held for a look, never across an await.
    ring: Arc<RwLock<Vec<Pair>>>,
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tokens")
    }
}

impl Tokens {
    /// With keys of its own, derived from the cloud's: a token can never pass for a frame, nor a frame for a token. It knows
    /// no key until it is told.
    #[must_use]
    pub fn new(cloud: &SigningKey) -> Self {
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.set_issuer(&[ISSUER]);
        validation.set_required_spec_claims(&["exp", "iss", "sub"]);
        // Checked by `read`, against the time that it is handed.
        validation.validate_exp = false;
        Self { cloud: cloud.clone(), validation, ring: Arc::default() }
    }

    /// Takes these keys in the place of those it knew.
    pub fn know(&self, keys: &[Key]) {
        let mut pairs: Vec<Pair> = keys.iter().map(|key| pair(&self.cloud, *key)).collect();
        pairs.sort_by_key(|pair| (pair.key.created_at, pair.key.id));
        *self.ring.write().unwrap_or_else(PoisonError::into_inner) = pairs;
    }

    /// Whether it knows a key to sign with.
    #[must_use]
    pub fn can_sign(&self) -> bool {
        !self.ring.read().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// A token for a user in a session.
    ///
    /// # Errors
    /// If it cannot be signed.
    pub fn issue(&self, user: Uuid, session: Uuid, now: Timestamp) -> Result<(String, Token), TokenError> {
        let expires = now.checked_add(LIFETIME).map_err(|_| TokenError::Signing)?.as_second();
        let expires_at = Timestamp::from_second(expires).map_err(|_| TokenError::Signing)?;
        let claims =
            Claims { iss: ISSUER.to_owned(), sub: user, sid: session, exp: expires, iat_ms: now.as_millisecond() };
        let ring = self.ring.read().unwrap_or_else(PoisonError::into_inner);
        let known = |pair: &&Pair| now.duration_since(pair.key.created_at) >= LEAD;
        // The first key of all signs at once.
        let pair = ring.iter().rfind(known).or(ring.first()).ok_or(TokenError::Signing)?;
        let mut header = Header::new(Algorithm::EdDSA);
        header.kid = Some(pair.key.id.to_string());
        let token = jsonwebtoken::encode(&header, &claims, &pair.encoding).map_err(|_| TokenError::Signing)?;
        Ok((token, Token { user, session, issued_at: now, expires_at }))
    }

    /// Reads a token.
    ///
    /// # Errors
    /// If it is not ours, or no longer good.
    pub fn read(&self, token: &str, now: Timestamp) -> Result<Token, TokenError> {
        let header = jsonwebtoken::decode_header(token).map_err(|_| TokenError::Invalid)?;
        let kid = header.kid.and_then(|kid| kid.parse::<Uuid>().ok()).ok_or(TokenError::Invalid)?;
        let claims = {
            let ring = self.ring.read().unwrap_or_else(PoisonError::into_inner);
            let pair = ring.iter().find(|pair| pair.key.id == kid).ok_or(TokenError::UnknownKey)?;
            jsonwebtoken::decode::<Claims>(token, &pair.decoding, &self.validation)
                .map_err(|_| TokenError::Invalid)?
                .claims
        };
        let read = Token {
            user: claims.sub,
            session: claims.sid,
            issued_at: Timestamp::from_millisecond(claims.iat_ms).map_err(|_| TokenError::Invalid)?,
            expires_at: Timestamp::from_second(claims.exp).map_err(|_| TokenError::Invalid)?,
        };
        if read.expires_at <= now {
            return Err(TokenError::Expired);
        }
        if read.issued_at.duration_since(now) > SKEW_MAX {
            return Err(TokenError::Invalid);
        }
        Ok(read)
    }
}

/// Those of these keys that are still taken: a key is over when the tokens are that were signed before its successor began to.
#[must_use]
pub fn in_use(mut keys: Vec<Key>, now: Timestamp) -> Vec<Key> {
    keys.sort_by_key(|key| (key.created_at, key.id));
    let over = |successor: &Key| now.duration_since(successor.created_at) > LEAD + LIFETIME + SKEW_MAX;
    let gone = keys.iter().skip(1).take_while(|successor| over(successor)).count();
    keys.split_off(gone)
}

/// Whether it is time for a new key.
#[must_use]
pub fn wants_new(keys: &[Key], now: Timestamp) -> bool {
    keys.iter().map(|key| key.created_at).max().is_none_or(|newest| now.duration_since(newest) > KEY_AGE_MAX)
}

fn pair(cloud: &SigningKey, key: Key) -> Pair {
    let seed: [u8; 32] = Sha256::new()
        .chain_update(b"gemba access tokens 2\0")
        .chain_update(cloud.to_bytes())
        .chain_update(key.id.as_bytes())
        .finalize()
        .into();
    let public = SigningKey::from_bytes(&seed).verifying_key();
    let pkcs8 = [PKCS8_PREFIX.as_slice(), &seed].concat();
    Pair { key, encoding: EncodingKey::from_ed_der(&pkcs8), decoding: DecodingKey::from_ed_der(public.as_bytes()) }
}

#[cfg(test)]
mod tests {
    use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD as B64};

    use super::*;

    const USER: Uuid = Uuid::from_bytes([7; 16]);
    const SESSION: Uuid = Uuid::from_bytes([9; 16]);
    const FIRST: Uuid = Uuid::from_bytes([1; 16]);
    const SECOND: Uuid = Uuid::from_bytes([2; 16]);

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_790_000_000 + seconds).unwrap()
    }

    fn key(id: Uuid, seconds: i64) -> Key {
        Key { id, created_at: at(seconds) }
    }

    fn tokens(seed: u8) -> Tokens {
        let tokens = Tokens::new(&SigningKey::from_bytes(&[seed; 32]));
        tokens.know(&[key(FIRST, 0)]);
        tokens
    }

    #[test]
    fn a_token_is_good_for_its_lifetime() {
        let tokens = tokens(1);
        let (token, read) = tokens.issue(USER, SESSION, at(0)).unwrap();
        assert_eq!(read.expires_at, at(900));
        for (now, expected) in [
            (0, Ok(read)),
            (899, Ok(read)),
            (900, Err(TokenError::Expired)),
            (1_000_000, Err(TokenError::Expired)),
            (-30, Ok(read)),
            (-61, Err(TokenError::Invalid)),
        ] {
            assert_eq!(tokens.read(&token, at(now)), expected, "at {now} s");
        }
        assert_eq!(
            Tokens::new(&SigningKey::from_bytes(&[1; 32])).issue(USER, SESSION, at(0)),
            Err(TokenError::Signing)
        );
    }

    #[test]
    fn keys_take_turns_and_old_tokens_stay_good() {
        let tokens = tokens(1);
        let (old, _) = tokens.issue(USER, SESSION, at(900)).unwrap();
        tokens.know(&[key(SECOND, 1_000), key(FIRST, 0)]);
        let signed_by = |token: &str| jsonwebtoken::decode_header(token).unwrap().kid.unwrap();
        let (not_yet, _) = tokens.issue(USER, SESSION, at(1_299)).unwrap();
        assert_eq!(signed_by(&not_yet), FIRST.to_string());
        let (new, _) = tokens.issue(USER, SESSION, at(1_300)).unwrap();
        assert_eq!(signed_by(&new), SECOND.to_string());
        for token in [&old, &not_yet, &new] {
            assert!(tokens.read(token, at(1_301)).is_ok());
        }
        tokens.know(&[key(SECOND, 1_000)]);
        assert_eq!(tokens.read(&old, at(1_301)), Err(TokenError::UnknownKey));
        assert!(tokens.read(&new, at(1_301)).is_ok());
    }

    #[test]
    fn keys_are_kept_as_long_as_their_tokens() {
        let keys = vec![key(SECOND, 1_000), key(FIRST, 0)];
        assert_eq!(in_use(keys.clone(), at(1_000 + 300 + 900 + 60)), [key(FIRST, 0), key(SECOND, 1_000)]);
        assert_eq!(in_use(keys, at(1_000 + 300 + 900 + 61)), [key(SECOND, 1_000)]);
        assert_eq!(in_use(vec![key(FIRST, 0)], at(1 << 30)), [key(FIRST, 0)]);
        let month = 30 * 24 * 3_600;
        for (keys, now, wanted) in [
            (&[][..], 0, true),
            (&[key(FIRST, 0)], month, false),
            (&[key(FIRST, 0)], month + 1, true),
            (&[key(FIRST, 0), key(SECOND, 10)], month + 1, false),
        ] {
            assert_eq!(wants_new(keys, at(now)), wanted, "{keys:?} {now}");
        }
    }

    #[test]
    fn what_is_not_ours_is_not_taken() {
        let tokens = tokens(1);
        let (good, _) = tokens.issue(USER, SESSION, at(0)).unwrap();
        let (other, _) = self::tokens(2).issue(USER, SESSION, at(0)).unwrap();
        let mut parts = good.split('.');
        let (_, payload, signature) = (parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap());
        let header = |alg: &str| B64.encode(format!(r#"{{"typ":"JWT","alg":"{alg}","kid":"{FIRST}"}}"#));
        let forged = B64.encode(String::from_utf8(B64.decode(payload).unwrap()).unwrap().replace("07", "08"));
        let claims = serde_json::json!({"iss": ISSUER, "sub": USER, "sid": SESSION, "exp": 1_999_999_999, "iat_ms": 0});
        let hmac = {
            let public = SigningKey::from_bytes(&[1; 32]).verifying_key();
            let mut header = Header::new(Algorithm::HS256);
            header.kid = Some(FIRST.to_string());
            jsonwebtoken::encode(&header, &claims, &EncodingKey::from_secret(public.as_bytes())).unwrap()
        };
        let without_key = {
            let ring = tokens.ring.read().unwrap();
            jsonwebtoken::encode(&Header::new(Algorithm::EdDSA), &claims, &ring[0].encoding).unwrap()
        };
        for bad in [
            String::new(),
            "x".into(),
            "..".into(),
            "é.é.é".into(),
            format!("{}.{payload}.", header("none")),
            format!("{}.{payload}.{signature}", header("none")),
            format!("{}.{payload}.{signature}", header("HS256")),
            format!("{}.{forged}.{signature}", header("EdDSA")),
            format!("{good}x"),
            good[..good.len() - 2].to_owned(),
            hmac,
            without_key,
            other,
        ] {
            assert_eq!(tokens.read(&bad, at(1)), Err(TokenError::Invalid), "{bad}");
        }
        assert!(tokens.read(&good, at(1)).is_ok());
    }
}
