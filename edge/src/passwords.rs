//! Devices' passwords, kept as argon2id PHC strings.
//!
//! A gateway is a small machine: a hash that wants more memory than [`MEMORY_KIB_MAX`] is refused, and the hashes
//! made here want 8 MiB and three passes (RFC 9106 asks for as much as can be spared).

use argon2::{Algorithm, Argon2, CustomizedPasswordHasher, Params, PasswordHash, PasswordVerifier, Version};

/// The most memory that a hash may want.
pub const MEMORY_KIB_MAX: u32 = 8 * 1_024;
/// The most passes that a hash may want.
pub const PASSES_MAX: u32 = 8;

const PASSES: u32 = 3;
const SALT_BYTES: usize = 16;

/// The PHC string of a password, with a fresh salt.
///
/// # Errors
/// If the system gives no random bytes.
pub fn hash(password: &[u8]) -> anyhow::Result<String> {
    let mut salt = [0; SALT_BYTES];
    getrandom::fill(&mut salt).map_err(|error| anyhow::anyhow!("no random bytes: {error}"))?;
    let params = Params::new(MEMORY_KIB_MAX, PASSES, 1, None).map_err(|error| anyhow::anyhow!("argon2: {error}"))?;
    let hash = Argon2::new(Algorithm::Argon2id, Version::V0x13, params.clone())
        .hash_password_with_params(password, &salt, params)
        .map_err(|error| anyhow::anyhow!("argon2: {error}"))?;
    Ok(hash.to_string())
}

/// Whether a text is a hash that this gateway can verify.
///
/// # Errors
/// With what would be right. The text is not repeated: it may be a password.
pub fn check(phc: &str) -> Result<(), String> {
    let right = "it should be a PHC string as `gemba-edge passwd` prints it ($argon2id$...)";
    let hash = PasswordHash::new(phc).map_err(|_| right.to_owned())?;
    if hash.algorithm.as_str() != "argon2id" || hash.hash.is_none() {
        return Err(right.to_owned());
    }
    let params = Params::try_from(&hash).map_err(|_| right.to_owned())?;
    if params.m_cost() > MEMORY_KIB_MAX || params.t_cost() > PASSES_MAX {
        return Err(format!(
            "verifying it takes {} KiB and {} passes; the most here are {MEMORY_KIB_MAX} KiB and {PASSES_MAX}",
            params.m_cost(),
            params.t_cost()
        ));
    }
    Ok(())
}

/// Whether the password is the one of the hash. Takes tens of milliseconds.
#[must_use]
pub fn verify(password: &[u8], phc: &str) -> bool {
    check(phc).is_ok() && Argon2::default().verify_password(password, phc).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_verifies_its_password_only() {
        let phc = hash(b"secret").unwrap();
        assert!(phc.starts_with("$argon2id$v=19$m=8192,t=3,p=1$"), "{phc}");
        assert!(verify(b"secret", &phc));
        assert!(!verify(b"Secret", &phc));
        assert!(!verify(b"secret", "secret"));
    }

    #[test]
    fn what_is_no_hash_is_refused_without_repeating_it() {
        assert!(!check("hunter2").unwrap_err().contains("hunter2"));
        let phc = hash(b"x").unwrap();
        assert!(check(&phc.replace("m=8192", "m=65536")).unwrap_err().contains("65536 KiB"));
        assert!(check(&phc.replace("argon2id", "argon2d")).is_err());
    }
}
