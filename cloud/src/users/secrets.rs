//! Secrets that are shown once and stored as their SHA-256: 32 random bytes need no slow hash.

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use ed25519_dalek::SigningKey;
use sha2::{Digest as _, Sha256};

use super::passwords::PasswordError;

/// What each kind begins with: secret scanners find a leaked one by it.
pub const API_KEY: &str = "gemba_key_";
pub const REFRESH: &str = "gemba_refresh_";
pub const LINK: &str = "gemba_link_";

/// A secret of the kind that begins with `prefix`.
///
/// # Errors
/// If the system gives no random bytes.
pub fn new(prefix: &str) -> Result<String, PasswordError> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|error| PasswordError::Hash(error.to_string()))?;
    Ok(text(prefix, &bytes))
}

/// What is stored of a secret; `None` for a text that is none of this kind.
#[must_use]
pub fn hash(prefix: &str, secret: &str) -> Option<[u8; 32]> {
    bytes(prefix, secret).map(|bytes| Sha256::digest(bytes).into())
}

/// The refresh token that follows this one: the same at every replica, and however often it is asked for, so that an answer
/// that was lost can be given again.
#[must_use]
pub fn next_refresh(cloud: &SigningKey, token: &str) -> Option<String> {
    let next: [u8; 32] = Sha256::new()
        .chain_update(b"gemba refresh tokens 1\0")
        .chain_update(cloud.to_bytes())
        .chain_update(bytes(REFRESH, token)?)
        .finalize()
        .into();
    Some(text(REFRESH, &next))
}

fn text(prefix: &str, bytes: &[u8; 32]) -> String {
    format!("{prefix}{}", BASE64_URL_SAFE_NO_PAD.encode(bytes))
}

fn bytes(prefix: &str, secret: &str) -> Option<[u8; 32]> {
    BASE64_URL_SAFE_NO_PAD.decode(secret.strip_prefix(prefix)?).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_of_one_kind_and_differ() {
        let (a, b) = (new(API_KEY).unwrap(), new(API_KEY).unwrap());
        assert!(a.starts_with("gemba_key_") && a.len() == 10 + 43 && a != b);
        assert!(hash(API_KEY, &a).is_some() && hash(API_KEY, &a) != hash(API_KEY, &b));
        for bad in ["", "gemba_key_", &a[..50], &format!("{a}x"), &a.replace("_key_", "_link_")] {
            assert_eq!(hash(API_KEY, bad), None, "{bad}");
        }
    }

    #[test]
    fn a_refresh_token_has_one_successor() {
        let cloud = SigningKey::from_bytes(&[1; 32]);
        let first = new(REFRESH).unwrap();
        let second = next_refresh(&cloud, &first).unwrap();
        assert_eq!(next_refresh(&cloud, &first), Some(second.clone()));
        assert_ne!(first, second);
        assert_ne!(next_refresh(&SigningKey::from_bytes(&[2; 32]), &first), Some(second.clone()));
        assert_ne!(next_refresh(&cloud, &second), Some(second));
        assert_eq!(next_refresh(&cloud, "x"), None);
    }
}
