//! Who may do what: roles and where they hold, passwords, tokens and keys, and the slowing of login attempts. No I/O here.

pub mod passwords;
pub mod peers;
pub mod rates;
pub mod scope;
pub mod secrets;
pub mod slowdown;
pub mod tokens;

use serde::{Deserialize, Serialize};

/// The longest user name, in characters.
pub const NAME_CHARS_MAX: usize = 64;

/// What a user may do; each role may do all that the ones below it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    Viewer,
    Operator,
    Supervisor,
    Admin,
}

impl Role {
    pub const ALL: [Self; 4] = [Self::Viewer, Self::Operator, Self::Supervisor, Self::Admin];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Supervisor => "supervisor",
            Self::Admin => "admin",
        }
    }
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no role: give admin, supervisor, operator or viewer")]
pub struct UnknownRole(String);

impl std::str::FromStr for Role {
    type Err = UnknownRole;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|role| role.as_str() == text).ok_or_else(|| UnknownRole(text.to_owned()))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadName {
    #[error("a user's name has 1 to {NAME_CHARS_MAX} characters")]
    Length,
    #[error("a user's name has no control characters and no space at its ends")]
    Characters,
}

/// Whether a user may be called this.
///
/// # Errors
/// With what is wrong.
pub fn check_name(name: &str) -> Result<(), BadName> {
    let length = name.chars().count();
    if length == 0 || length > NAME_CHARS_MAX {
        return Err(BadName::Length);
    }
    if name.trim() != name || name.chars().any(char::is_control) {
        return Err(BadName::Characters);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_are_ordered_and_read_back() {
        assert!(Role::Admin > Role::Supervisor && Role::Supervisor > Role::Operator && Role::Operator > Role::Viewer);
        for role in Role::ALL {
            assert_eq!(role.to_string().parse(), Ok(role));
        }
        assert!("root".parse::<Role>().is_err());
    }

    #[test]
    fn names() {
        for (name, expected) in [
            ("ada", Ok(())),
            ("Ada Lovelace", Ok(())),
            ("", Err(BadName::Length)),
            (&"x".repeat(65), Err(BadName::Length)),
            (" ada", Err(BadName::Characters)),
            ("a\0da", Err(BadName::Characters)),
        ] {
            assert_eq!(check_name(name), expected, "{name:?}");
        }
    }
}
