//! What a device's certificate says of its owner: the common name of its subject.
//!
//! The certificate was verified by TLS before. This reads only as much of X.509's DER as leads to the name, and
//! takes no name where it could mean two.

const VERSION: u8 = 0xa0;
const INTEGER: u8 = 0x02;
const IDENTIFIER: u8 = 0x06;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
/// `UTF8String`, `PrintableString`, `IA5String`: the texts that are written today.
const TEXTS: [u8; 3] = [0x0c, 0x13, 0x16];
/// id-at-commonName, 2.5.4.3.
const COMMON_NAME: [u8; 3] = [0x55, 4, 3];

/// The subject's common name, where there is exactly one.
pub(super) fn common_name(certificate: &[u8]) -> Option<&str> {
    let (certificate, _) = element(certificate, SEQUENCE)?;
    let (mut rest, _) = element(certificate, SEQUENCE)?;
    if rest.first() == Some(&VERSION) {
        rest = element(rest, VERSION)?.1;
    }
    // Serial number, algorithm of the signature, issuer, validity.
    for tag in [INTEGER, SEQUENCE, SEQUENCE, SEQUENCE] {
        rest = element(rest, tag)?.1;
    }
    let (mut subject, _) = element(rest, SEQUENCE)?;
    let mut name = None;
    while !subject.is_empty() {
        let (mut attributes, after) = element(subject, SET)?;
        subject = after;
        while !attributes.is_empty() {
            let (attribute, after) = element(attributes, SEQUENCE)?;
            attributes = after;
            let (kind, value) = element(attribute, IDENTIFIER)?;
            if kind == COMMON_NAME {
                let (text, _) = element(value, *value.first().filter(|tag| TEXTS.contains(tag))?)?;
                if name.replace(std::str::from_utf8(text).ok()?).is_some() {
                    return None;
                }
            }
        }
    }
    name
}

/// The content of the element of this kind that comes first, and what follows it.
fn element(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (found, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x83 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    rest.split_at_checked(length).filter(|_| *found == tag)
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair};

    use super::*;

    fn made(names: &[(DnType, &str)]) -> Vec<u8> {
        let mut params = CertificateParams::new(vec!["device.example".into()]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        for (kind, name) in names {
            params.distinguished_name.push(kind.clone(), *name);
        }
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    #[test]
    fn the_name_of_the_subject_is_found() {
        let long = "ü".repeat(100);
        for (names, expected) in [
            (&[(DnType::CommonName, "press-1")][..], Some("press-1")),
            (&[(DnType::OrganizationName, "Works"), (DnType::CommonName, long.as_str())], Some(long.as_str())),
            (&[(DnType::OrganizationName, "press-1")], None),
            (&[], None),
        ] {
            assert_eq!(common_name(&made(names)), expected);
        }
    }

    #[test]
    fn two_names_are_none() {
        let mut der = made(&[(DnType::CommonName, "press-1"), (DnType::OrganizationName, "press-2")]);
        // The organisation's identifier, 2.5.4.10, is made a second common name.
        let at: Vec<_> = (0..der.len() - 3).filter(|&at| der[at..at + 3] == [0x55, 4, 10]).collect();
        assert!(!at.is_empty());
        for at in at {
            der[at + 2] = 3;
        }
        assert_eq!(common_name(&der), None);
    }

    #[test]
    fn what_is_cut_off_or_changed_has_no_name_and_harms_nothing() {
        let der = made(&[(DnType::CommonName, "press-1")]);
        for length in 0..der.len() {
            assert_eq!(common_name(&der[..length]), None);
        }
        for at in 0..der.len() {
            let mut changed = der.clone();
            changed[at] = changed[at].wrapping_add(0x7f);
            common_name(&changed);
        }
    }
}
