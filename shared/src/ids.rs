//! Identities: of a gateway (unique in the world), of a machine and a sensor (unique in their gateway).
//!
//! Names are checked once, where they enter: what they hold may stand in an MQTT topic, in a file name
//! and in a URL without quoting.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The longest machine or sensor name, in bytes.
pub const NAME_BYTES_MAX: usize = 64;

/// A gateway, drawn at random when it is added to the cloud. Written as a UUID.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct GatewayId([u8; 16]);

impl GatewayId {
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for GatewayId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            if matches!(i, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for GatewayId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for GatewayId {
    type Err = NameError;

    /// Reads the form that `Display` writes (lower or upper case) and no other.
    fn from_str(text: &str) -> Result<Self, NameError> {
        let text = text.as_bytes();
        if text.len() != 36 {
            return Err(NameError::NotAUuid);
        }
        let mut bytes = [0; 16];
        let mut digits = 0;
        for (i, &c) in text.iter().enumerate() {
            if matches!(i, 8 | 13 | 18 | 23) {
                if c != b'-' {
                    return Err(NameError::NotAUuid);
                }
                continue;
            }
            let value = match c {
                b'0'..=b'9' => c - b'0',
                b'a'..=b'f' => c - b'a' + 10,
                b'A'..=b'F' => c - b'A' + 10,
                _ => return Err(NameError::NotAUuid),
            };
            bytes[digits / 2] = bytes[digits / 2] << 4 | value;
            digits += 1;
        }
        Ok(Self(bytes))
    }
}

/// Why a text is no identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("it is empty")]
    Empty,
    #[error("it is longer than {NAME_BYTES_MAX} bytes")]
    TooLong,
    #[error("it may hold only letters, digits, '.', '_' and '-' of ASCII, and must begin with a letter or digit")]
    Character,
    #[error("it is no UUID (8-4-4-4-12 hexadecimal digits)")]
    NotAUuid,
}

fn check_name(name: &str) -> Result<(), NameError> {
    let bytes = name.as_bytes();
    match bytes.first() {
        None => return Err(NameError::Empty),
        Some(first) if !first.is_ascii_alphanumeric() => return Err(NameError::Character),
        Some(_) => {}
    }
    if bytes.len() > NAME_BYTES_MAX {
        return Err(NameError::TooLong);
    }
    let allowed = |c: &u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'_' | b'-');
    if bytes.iter().all(allowed) { Ok(()) } else { Err(NameError::Character) }
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $type(Arc<str>);

        impl $type {
            /// # Errors
            /// If the name is empty, too long, or holds what an MQTT topic or a file name may not.
            pub fn new(name: &str) -> Result<Self, NameError> {
                check_name(name)?;
                Ok(Self(name.into()))
            }

            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }

        impl FromStr for $type {
            type Err = NameError;

            fn from_str(name: &str) -> Result<Self, NameError> {
                Self::new(name)
            }
        }

        impl std::borrow::Borrow<str> for $type {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Visitor;
                impl serde::de::Visitor<'_> for Visitor {
                    type Value = $type;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str("a name")
                    }

                    fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<$type, E> {
                        $type::new(name).map_err(|error| E::custom(format_args!("{name:?}: {error}")))
                    }
                }
                deserializer.deserialize_str(Visitor)
            }
        }
    };
}

name! {
    /// A machine, unique in its gateway.
    MachineId
}
name! {
    /// A sensor, unique in its machine.
    SensorId
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(name: &str, expected: Result<(), NameError>) {
        assert_eq!(MachineId::new(name).map(|id| assert_eq!(id.as_str(), name)), expected);
    }

    #[test]
    fn names_that_fit_topics_and_files_pass() {
        check("pump-3", Ok(()));
        check("3.P_101", Ok(()));
        check(&"a".repeat(NAME_BYTES_MAX), Ok(()));
        check("", Err(NameError::Empty));
        check(&"a".repeat(NAME_BYTES_MAX + 1), Err(NameError::TooLong));
        for bad in ["..", ".hidden", "-x", "a/b", "a+b", "#", "a b", "pümp", "a\0"] {
            check(bad, Err(NameError::Character));
        }
    }

    #[test]
    fn gateway_id_reads_what_it_writes() {
        let id = GatewayId::from_bytes([0x12, 0x34, 0x56, 0x78, 0x9a, 0xbc, 0xde, 0xf0, 0, 1, 2, 3, 4, 5, 6, 0xff]);
        assert_eq!(id.to_string(), "12345678-9abc-def0-0001-0203040506ff");
        assert_eq!(id.to_string().parse(), Ok(id));
        for bad in ["", "12345678-9abc-def0-0001-0203040506f", "12345678+9abc-def0-0001-0203040506ff"] {
            assert_eq!(bad.parse::<GatewayId>(), Err(NameError::NotAUuid));
        }
    }

    #[test]
    fn decoding_checks_names() {
        let bytes = postcard::to_stdvec("a/b").unwrap();
        assert!(postcard::from_bytes::<MachineId>(&bytes).is_err());
    }
}
