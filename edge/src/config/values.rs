//! The small values of a configuration: durations, sizes, addresses, JSON pointers, units.
//!
//! Each parser answers with what would be right.

use std::{net::SocketAddr, time::Duration};

const DURATIONS: [(&str, u64); 6] =
    [("ms", 1), ("s", 1_000), ("min", 60_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
const SIZES: [(&str, u64); 4] = [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40)];

/// UCUM atoms that take a metric prefix.
const METRIC: [&str; 29] = [
    "m", "g", "s", "A", "K", "mol", "cd", "Hz", "N", "Pa", "J", "W", "V", "Ohm", "S", "F", "H", "T", "Wb", "C", "lm",
    "lx", "bar", "l", "L", "t", "rad", "eV", "B",
];
/// UCUM atoms that take none.
const PLAIN: [&str; 20] = [
    "1", "%", "Cel", "min", "h", "d", "deg", "[degF]", "[psi]", "[pH]", "[ppm]", "[ppb]", "[g]", "[in_i]", "[ft_i]",
    "[gal_us]", "[HP]", "[car_Au]", "bit", "By",
];
const PREFIXES: [&str; 12] = ["da", "n", "u", "m", "c", "d", "h", "k", "M", "G", "T", "p"];
/// What people write, and what UCUM writes.
const ALIASES: [(&str, &str); 21] = [
    ("°C", "Cel"),
    ("degC", "Cel"),
    ("C°", "Cel"),
    ("celsius", "Cel"),
    ("Celsius", "Cel"),
    ("°F", "[degF]"),
    ("degF", "[degF]"),
    ("°", "deg"),
    ("psi", "[psi]"),
    ("rpm", "/min"),
    ("RPM", "/min"),
    ("Bar", "bar"),
    ("kWh", "kW.h"),
    ("Wh", "W.h"),
    ("m³/h", "m3/h"),
    ("m³", "m3"),
    ("m/s²", "m/s2"),
    ("µm", "um"),
    ("Ω", "Ohm"),
    ("pH", "[pH]"),
    ("ppm", "[ppm]"),
];

/// A whole number and a unit: `10s`, `250ms`, `5min`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    with_unit(text, &DURATIONS)
        .map(Duration::from_millis)
        .ok_or_else(|| "write a whole number and a unit (ms, s, min, h, d), for example \"10s\"".to_owned())
}

/// A whole number and a unit: `512MiB`.
pub(super) fn bytes(text: &str) -> Result<u64, String> {
    with_unit(text, &SIZES)
        .ok_or_else(|| "write a whole number and a unit (KiB, MiB, GiB, TiB), for example \"512MiB\"".to_owned())
}

fn with_unit(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit.trim_start())?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

pub(super) fn duration_text(duration: Duration) -> String {
    text_with_unit(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX), &DURATIONS)
}

pub(super) fn bytes_text(bytes: u64) -> String {
    text_with_unit(bytes, &SIZES)
}

fn text_with_unit(amount: u64, units: &[(&str, u64)]) -> String {
    let fitting = units.iter().rev().find(|(_, factor)| amount >= *factor && amount.is_multiple_of(*factor));
    let (name, factor) = fitting.unwrap_or(&units[0]);
    format!("{}{name}", amount / factor)
}

pub(super) fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "write an IP address and a port, for example \"127.0.0.1:1883\"".to_owned())
}

/// An RFC 6901 pointer.
pub(super) fn pointer(text: &str) -> Result<String, String> {
    if text.is_empty() || text.starts_with('/') {
        return Ok(text.to_owned());
    }
    Err("a JSON pointer begins with '/', for example \"/value\"; \"\" is the whole payload".to_owned())
}

pub(super) fn sha256_hex(text: &str) -> Result<[u8; 32], String> {
    let digits: Vec<u8> = text.bytes().filter(|&c| c != b':').collect();
    let digit = |c: u8| char::from(c).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let bytes: Option<Vec<u8>> =
        digits.chunks(2).map(|pair| Some(digit(pair[0])? << 4 | digit(*pair.get(1)?)?)).collect();
    bytes.and_then(|bytes| bytes.try_into().ok()).ok_or_else(|| {
        "write the SHA-256 of the certificate as 64 hexadecimal digits (openssl x509 -fingerprint -sha256)".to_owned()
    })
}

/// How many watts a unit of electrical power is; `None` for a unit of anything else: a kilowatt-hour is no power.
pub(crate) fn watts(unit: &str) -> Option<f64> {
    [("W", 1.0), ("kW", 1e3), ("MW", 1e6)].iter().find(|(known, _)| *known == unit).map(|(_, watts)| *watts)
}

/// A UCUM unit: terms of a prefix, an atom and an exponent, joined by `.` and `/`.
pub(super) fn unit(text: &str) -> Result<String, String> {
    if let Some((_, right)) = ALIASES.iter().find(|(wrong, _)| *wrong == text) {
        return Err(format!("units are written in UCUM; write {right:?}"));
    }
    let terms = text.strip_prefix('/').unwrap_or(text);
    if !text.is_empty() && text.len() <= 32 && terms.split(['.', '/']).all(is_term) {
        return Ok(text.to_owned());
    }
    Err("it is no unit of UCUM; write for example \"A\", \"bar\", \"Cel\", \"m3/h\", \"mm/s\", \"kW\", \"/min\", \"%\""
        .to_owned())
}

fn is_term(term: &str) -> bool {
    if term.len() > 2 && term.starts_with('{') && term.ends_with('}') {
        return true;
    }
    let atom = term.trim_end_matches(|c: char| c.is_ascii_digit());
    let exponent = &term[atom.len()..];
    if PLAIN.contains(&term) {
        return true;
    }
    let atom = atom.strip_suffix('-').filter(|_| !exponent.is_empty()).unwrap_or(atom);
    PLAIN.contains(&atom)
        || METRIC.contains(&atom)
        || PREFIXES.iter().any(|prefix| atom.strip_prefix(prefix).is_some_and(|rest| METRIC.contains(&rest)))
}

/// How many letters must change to make one word of the other.
pub(super) fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let change = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = change.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes_need_a_unit() {
        assert_eq!(duration("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(duration("250 ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("2min"), duration("120s"));
        assert_eq!(bytes("2GiB"), Ok(2 << 30));
        for bad in ["10", "s", "-1s", "1.5s", "10 parsecs", "", "99999999999999999999s", "18446744073709551615d"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        assert_eq!(duration_text(Duration::from_mins(2)), "2m");
        assert_eq!(bytes_text(512 << 20), "512MiB");
    }

    #[test]
    fn power_is_no_energy() {
        for (unit, expected) in [
            ("W", Some(1.0)),
            ("kW", Some(1e3)),
            ("MW", Some(1e6)),
            ("kW.h", None),
            ("kWh", None),
            ("kw", None),
            ("A", None),
        ] {
            assert_eq!(watts(unit), expected, "{unit}");
        }
    }

    #[test]
    fn units_are_of_ucum() {
        for good in [
            "A", "bar", "Cel", "m3/h", "mm/s", "mm/s2", "kW", "kW.h", "%", "1", "/min", "l/min", "[degF]", "uS/cm",
            "{parts}", "m.s-2", "Ohm",
        ] {
            assert!(unit(good).is_ok(), "{good}");
        }
        assert!(unit("°C").unwrap_err().contains("\"Cel\""));
        assert!(unit("rpm").unwrap_err().contains("\"/min\""));
        for bad in ["", "furlong", "m//s", "bar ", "amps", "m3h"] {
            assert!(unit(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn pointers_and_fingerprints() {
        assert_eq!(pointer("/a~1b/0"), Ok("/a~1b/0".to_owned()));
        assert!(pointer("").is_ok());
        assert!(pointer("value").is_err());
        assert_eq!(sha256_hex(&"0F:".repeat(32)), Ok([15; 32]));
        assert!(sha256_hex("zz").is_err());
        assert!(sha256_hex("é").is_err());
    }

    #[test]
    fn distance_counts_letters() {
        assert_eq!(distance("listen", "listen"), 0);
        assert_eq!(distance("lsiten", "listen"), 2);
        assert_eq!(distance("", "abc"), 3);
    }
}
