//! Access tokens: JWT signed with Ed25519 (`EdDSA`, no other algorithm is taken), good for [`LIFETIME`].
//!
//! A page that stays open renews its token until [`SESSION_MAX`] after the login. The role is not in the token:
//! it is read from the database at each request, so that a change of it holds at once.

use ed25519_dalek::SigningKey;
use jiff::{SignedDuration, Timestamp};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

pub const LIFETIME: SignedDuration = SignedDuration::from_mins(15);
/// How long after a login its tokens may be renewed.
pub const SESSION_MAX: SignedDuration = SignedDuration::from_hours(12);

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
    /// Seconds, as RFC 7519 has it.
    exp: i64,
    iat_ms: i64,
    login_ms: i64,
}

/// A token that was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Session {
    pub user: Uuid,
    pub issued_at: Timestamp,
    pub login_at: Timestamp,
    pub expires_at: Timestamp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("the token is not one of this server's")]
    Invalid,
    #[error("the token has expired")]
    Expired,
    #[error("the session is too old to be renewed; log in again")]
    SessionTooOld,
    #[error("a token could not be signed")]
    Signing,
}

/// Makes and takes tokens.
#[derive(Clone)]
pub struct Tokens {
    encoding: EncodingKey,
    decoding: DecodingKey,
    validation: Validation,
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tokens")
    }
}

impl Tokens {
    /// With a key of its own, derived from the cloud's: a token can never pass for a frame, nor a frame for a token.
    #[must_use]
    pub fn new(cloud: &SigningKey) -> Self {
        let seed: [u8; 32] =
            Sha256::new().chain_update(b"gemba access tokens 1\0").chain_update(cloud.to_bytes()).finalize().into();
        let mut der = PKCS8_PREFIX.to_vec();
        der.extend_from_slice(&seed);
        let public = SigningKey::from_bytes(&seed).verifying_key();
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.set_issuer(&[ISSUER]);
        validation.set_required_spec_claims(&["exp", "sub", "iss"]);
        // Against the caller's clock, below.
        validation.validate_exp = false;
        Self {
            encoding: EncodingKey::from_ed_der(&der),
            decoding: DecodingKey::from_ed_der(public.as_bytes()),
            validation,
        }
    }

    /// A token for a user who has just shown the password.
    ///
    /// # Errors
    /// If it cannot be signed.
    pub fn issue(&self, user: Uuid, now: Timestamp) -> Result<(String, Session), TokenError> {
        self.sign(user, now, now)
    }

    /// A fresh token for the same session.
    ///
    /// # Errors
    /// If the login was too long ago.
    pub fn renew(&self, session: &Session, now: Timestamp) -> Result<(String, Session), TokenError> {
        if now.duration_since(session.login_at) > SESSION_MAX {
            return Err(TokenError::SessionTooOld);
        }
        self.sign(session.user, session.login_at, now)
    }

    /// Reads a token.
    ///
    /// # Errors
    /// If it is not ours, or no longer good.
    pub fn read(&self, token: &str, now: Timestamp) -> Result<Session, TokenError> {
        let claims = jsonwebtoken::decode::<Claims>(token, &self.decoding, &self.validation)
            .map_err(|_| TokenError::Invalid)?
            .claims;
        let time = |ms: i64| Timestamp::from_millisecond(ms).map_err(|_| TokenError::Invalid);
        let session = Session {
            user: claims.sub,
            issued_at: time(claims.iat_ms)?,
            login_at: time(claims.login_ms)?,
            expires_at: Timestamp::from_second(claims.exp).map_err(|_| TokenError::Invalid)?,
        };
        if session.expires_at <= now {
            return Err(TokenError::Expired);
        }
        if session.issued_at.duration_since(now) > SKEW_MAX {
            return Err(TokenError::Invalid);
        }
        Ok(session)
    }

    fn sign(&self, user: Uuid, login_at: Timestamp, now: Timestamp) -> Result<(String, Session), TokenError> {
        let expires = now.checked_add(LIFETIME).map_err(|_| TokenError::Signing)?.as_second();
        let claims = Claims {
            iss: ISSUER.to_owned(),
            sub: user,
            exp: expires,
            iat_ms: now.as_millisecond(),
            login_ms: login_at.as_millisecond(),
        };
        let token = jsonwebtoken::encode(&Header::new(Algorithm::EdDSA), &claims, &self.encoding)
            .map_err(|_| TokenError::Signing)?;
        let expires_at = Timestamp::from_second(expires).map_err(|_| TokenError::Signing)?;
        Ok((token, Session { user, issued_at: now, login_at, expires_at }))
    }
}

#[cfg(test)]
mod tests {
    use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD as B64};

    use super::*;

    const USER: Uuid = Uuid::from_bytes([7; 16]);

    fn tokens() -> Tokens {
        Tokens::new(&SigningKey::from_bytes(&[1; 32]))
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_790_000_000 + seconds).unwrap()
    }

    #[test]
    fn a_token_is_good_for_its_lifetime() {
        let tokens = tokens();
        let (token, session) = tokens.issue(USER, at(0)).unwrap();
        assert_eq!(session.expires_at, at(900));
        for (now, expected) in [
            (0, Ok(session)),
            (899, Ok(session)),
            (900, Err(TokenError::Expired)),
            (1_000_000, Err(TokenError::Expired)),
            (-30, Ok(session)),
            (-61, Err(TokenError::Invalid)),
        ] {
            assert_eq!(tokens.read(&token, at(now)), expected, "at {now} s");
        }
    }

    #[test]
    fn a_session_is_renewed_for_twelve_hours() {
        let tokens = tokens();
        let (_, session) = tokens.issue(USER, at(0)).unwrap();
        let (token, renewed) = tokens.renew(&session, at(600)).unwrap();
        assert_eq!(renewed.login_at, at(0));
        assert_eq!(renewed.expires_at, at(1_500));
        assert_eq!(tokens.read(&token, at(1_499)).unwrap(), renewed);
        assert!(tokens.renew(&renewed, at(12 * 3_600)).is_ok());
        assert_eq!(tokens.renew(&renewed, at(12 * 3_600 + 1)).unwrap_err(), TokenError::SessionTooOld);
    }

    #[test]
    fn what_is_not_ours_is_not_taken() {
        let tokens = tokens();
        let (good, _) = tokens.issue(USER, at(0)).unwrap();
        let (other, _) = Tokens::new(&SigningKey::from_bytes(&[2; 32])).issue(USER, at(0)).unwrap();
        let mut parts = good.split('.');
        let (_, payload, signature) = (parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap());
        let header = |alg: &str| B64.encode(format!(r#"{{"typ":"JWT","alg":"{alg}"}}"#));
        let forged = B64.encode(String::from_utf8(B64.decode(payload).unwrap()).unwrap().replace("07", "08"));
        let hmac = {
            let public = SigningKey::from_bytes(&[1; 32]).verifying_key();
            let key = EncodingKey::from_secret(public.as_bytes());
            let claims =
                serde_json::json!({"iss": ISSUER, "sub": USER, "exp": 1_999_999_999, "iat_ms": 0, "login_ms": 0});
            jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &key).unwrap()
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
            other,
        ] {
            assert_eq!(tokens.read(&bad, at(1)), Err(TokenError::Invalid), "{bad}");
        }
        assert!(tokens.read(&good, at(1)).is_ok());
    }
}
