//! Passwords: Argon2id (19 MiB, 2 passes: OWASP's figures), hashed away from the runtime's threads.
//!
//! At most [`AT_ONCE_MAX`] hashes are computed at a time and [`WAITING_MAX`] wait, so that a storm of logins
//! costs a bounded amount of memory and of the processor. A name that nobody has costs what a wrong
//! password costs.

use std::sync::{Arc, LazyLock};

use argon2::{
    Argon2,
    password_hash::{PasswordHasher, PasswordVerifier, phc::PasswordHash},
};
use tokio::sync::Semaphore;

/// Hashes computed at a time.
pub const AT_ONCE_MAX: usize = 2;
/// Callers that may wait for their turn.
pub const WAITING_MAX: usize = 64;
/// The shortest password that a user may choose, in characters.
pub const CHARS_MIN: usize = 10;
/// The longest password, in bytes.
pub const BYTES_MAX: usize = 1_024;

/// Without characters that are read for one another.
const ONE_TIME_ALPHABET: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
const ONE_TIME_GROUPS: usize = 4;
const ONE_TIME_GROUP_CHARS: usize = 5;

#[derive(Debug, thiserror::Error)]
pub enum PasswordError {
    #[error("too many passwords wait to be checked; try again in a moment")]
    Busy,
    #[error("a password hash could not be computed: {0}")]
    Hash(String),
}

/// Why a new password is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WeakPassword {
    #[error("a password has at least {CHARS_MIN} characters")]
    Short,
    #[error("a password has at most {BYTES_MAX} bytes")]
    Long,
    #[error("the new password is the old one")]
    Same,
    #[error("the password is the user's name")]
    Name,
}

/// Whether a user may choose this password.
///
/// # Errors
/// With the reason why not.
pub fn check_new(new: &str, old: &str, name: &str) -> Result<(), WeakPassword> {
    if new.chars().count() < CHARS_MIN {
        Err(WeakPassword::Short)
    } else if new.len() > BYTES_MAX {
        Err(WeakPassword::Long)
    } else if new == old {
        Err(WeakPassword::Same)
    } else if new.eq_ignore_ascii_case(name) {
        Err(WeakPassword::Name)
    } else {
        Ok(())
    }
}

/// A random password of 100 bits for a user's first login.
///
/// # Errors
/// If the system gives no random bytes.
pub fn one_time() -> Result<String, PasswordError> {
    let mut bytes = [0_u8; ONE_TIME_GROUPS * ONE_TIME_GROUP_CHARS];
    getrandom::fill(&mut bytes).map_err(|error| PasswordError::Hash(error.to_string()))?;
    let chars: Vec<char> = bytes.iter().map(|byte| char::from(ONE_TIME_ALPHABET[usize::from(byte & 31)])).collect();
    Ok(chars.chunks(ONE_TIME_GROUP_CHARS).map(String::from_iter).collect::<Vec<_>>().join("-"))
}

/// Computes and checks hashes, a bounded number at a time.
#[derive(Debug, Clone)]
pub struct Passwords {
    at_once: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
}

impl Default for Passwords {
    fn default() -> Self {
        Self {
            at_once: Arc::new(Semaphore::new(AT_ONCE_MAX)),
            waiting: Arc::new(Semaphore::new(AT_ONCE_MAX + WAITING_MAX)),
        }
    }
}

impl Passwords {
    /// The hash to store, as a PHC string.
    ///
    /// # Errors
    /// If too many wait already, or hashing fails.
    pub async fn hash(&self, password: String) -> Result<String, PasswordError> {
        self.off_runtime(move || hash(&password)).await?
    }

    /// Whether `password` is the one of this PHC string; `None` (nobody has the name) takes as long and is
    /// never true.
    ///
    /// # Errors
    /// If too many wait already.
    pub async fn verify(&self, password: String, hash: Option<String>) -> Result<bool, PasswordError> {
        self.off_runtime(move || verify(&password, hash.as_deref())).await
    }

    async fn off_runtime<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, PasswordError> {
        let _waiting = self.waiting.try_acquire().map_err(|_| PasswordError::Busy)?;
        // The permit goes with the work: a caller that gives up does not make room for more of it.
        let permit = Arc::clone(&self.at_once).acquire_owned().await.map_err(|_| PasswordError::Busy)?;
        tokio::task::spawn_blocking(move || {
            let result = work();
            drop(permit);
            result
        })
        .await
        .map_err(|error| PasswordError::Hash(error.to_string()))
    }
}

fn hash(password: &str) -> Result<String, PasswordError> {
    Argon2::default()
        .hash_password(password.as_bytes())
        .map(|hash: PasswordHash| hash.to_string())
        .map_err(|error| PasswordError::Hash(error.to_string()))
}

fn verify(password: &str, stored: Option<&str>) -> bool {
    static NOBODY: LazyLock<Option<String>> = LazyLock::new(|| hash("nobody has this password").ok());
    let known = stored.is_some();
    let Some(stored) = stored.or(NOBODY.as_deref()) else { return false };
    let Ok(stored) = PasswordHash::new(stored) else { return false };
    Argon2::default().verify_password(password.as_bytes(), &stored).is_ok() && known
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn takes_the_right_password_only() {
        let passwords = Passwords::default();
        let stored = passwords.hash("correct horse".into()).await.unwrap();
        assert!(stored.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{stored}");
        assert!(passwords.verify("correct horse".into(), Some(stored.clone())).await.unwrap());
        assert!(!passwords.verify("correct horsE".into(), Some(stored)).await.unwrap());
        assert!(!passwords.verify("nobody has this password".into(), None).await.unwrap());
        assert!(!passwords.verify("x".into(), Some("no hash".into())).await.unwrap());
    }

    #[test]
    fn new_passwords() {
        for (new, expected) in [
            ("long enough", Ok(())),
            ("zu kurz ä", Err(WeakPassword::Short)),
            ("old password", Err(WeakPassword::Same)),
            ("Supervisor1", Err(WeakPassword::Name)),
            (&"x".repeat(1_025), Err(WeakPassword::Long)),
        ] {
            assert_eq!(check_new(new, "old password", "supervisor1"), expected, "{new:?}");
        }
    }

    #[test]
    fn one_time_passwords_differ_and_would_be_taken() {
        let (a, b) = (one_time().unwrap(), one_time().unwrap());
        assert_ne!(a, b);
        assert_eq!(a.len(), 23);
        assert_eq!(check_new(&a, "", "ada"), Ok(()));
    }
}
