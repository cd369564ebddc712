//! Topic patterns with named captures: `plant/{machine}/{sensor}`.
//!
//! A level is a literal, `{machine}`, `{sensor}`, or `+` (anything). A pattern matches topics with exactly its
//! number of levels, so two patterns overlap when each pair of levels could be the same text.

use std::fmt;

/// The longest pattern, in bytes.
const PATTERN_BYTES_MAX: usize = 512;

/// A topic pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    text: String,
    levels: Vec<Level>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Level {
    Literal(String),
    Machine,
    Sensor,
    Any,
}

/// What a topic says through a pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Captures<'t> {
    pub machine: Option<&'t str>,
    pub sensor: Option<&'t str>,
}

impl Pattern {
    /// # Errors
    /// With what would be right, if the text is no pattern.
    pub fn parse(text: &str) -> Result<Self, String> {
        const EXAMPLE: &str = "for example \"plant/{machine}/{sensor}\"";
        if text.is_empty() || text.len() > PATTERN_BYTES_MAX {
            return Err(format!("write a topic of 1 to {PATTERN_BYTES_MAX} bytes, {EXAMPLE}"));
        }
        let mut levels = Vec::new();
        for level in text.split('/') {
            levels.push(match level {
                "{machine}" => Level::Machine,
                "{sensor}" => Level::Sensor,
                "+" => Level::Any,
                "#" => return Err(format!("'#' is not possible here; write each level, {EXAMPLE}")),
                other if other.contains(['{', '}', '+', '#', '\0']) => {
                    return Err(format!("{other:?} is no level; {{machine}}, {{sensor}} and + stand alone, {EXAMPLE}"));
                }
                other => Level::Literal(other.to_owned()),
            });
        }
        for capture in [Level::Machine, Level::Sensor] {
            if levels.iter().filter(|level| **level == capture).count() > 1 {
                return Err("it captures the same name twice".to_owned());
            }
        }
        if matches!(levels.first(), Some(Level::Literal(first)) if first.starts_with('$')) {
            return Err("topics that begin with '$' are the broker's own".to_owned());
        }
        Ok(Self { text: text.to_owned(), levels })
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    #[must_use]
    pub fn has_machine(&self) -> bool {
        self.levels.contains(&Level::Machine)
    }

    #[must_use]
    pub fn has_sensor(&self) -> bool {
        self.levels.contains(&Level::Sensor)
    }

    /// The captures of a topic; `None` where it does not match.
    #[must_use]
    pub fn captures<'t>(&self, topic: &'t str) -> Option<Captures<'t>> {
        let mut captures = Captures::default();
        let mut parts = topic.split('/');
        for level in &self.levels {
            let part = parts.next()?;
            match level {
                Level::Literal(literal) if literal != part => return None,
                Level::Literal(_) | Level::Any => {}
                Level::Machine => captures.machine = Some(part),
                Level::Sensor => captures.sensor = Some(part),
            }
        }
        parts.next().is_none().then_some(captures)
    }

    /// Whether some topic matches both.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.levels.len() == other.levels.len()
            && self.levels.iter().zip(&other.levels).all(|pair| match pair {
                (Level::Literal(a), Level::Literal(b)) => a == b,
                _ => true,
            })
    }

    /// The MQTT filter of all topics that match.
    #[must_use]
    pub fn filter(&self) -> String {
        let level = |level: &Level| match level {
            Level::Literal(text) => text.clone(),
            Level::Machine | Level::Sensor | Level::Any => "+".to_owned(),
        };
        self.levels.iter().map(level).collect::<Vec<_>>().join("/")
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> Pattern {
        Pattern::parse(text).unwrap()
    }

    #[test]
    fn captures_by_level() {
        let p = pattern("plant/{machine}/+/{sensor}");
        assert_eq!(p.filter(), "plant/+/+/+");
        assert_eq!(p.captures("plant/p1/x/t"), Some(Captures { machine: Some("p1"), sensor: Some("t") }));
        for other in ["plant/p1/x", "plant/p1/x/t/u", "site/p1/x/t", "", "plant"] {
            assert_eq!(p.captures(other), None, "{other}");
        }
        assert_eq!(pattern("{machine}/data").captures("a/data"), Some(Captures { machine: Some("a"), sensor: None }));
    }

    #[test]
    fn overlap_is_exact() {
        let check = |a, b, expected| assert_eq!(pattern(a).overlaps(&pattern(b)), expected, "{a} {b}");
        check("plant/{machine}/{sensor}", "plant/{machine}/state", true);
        check("plant/{machine}/{sensor}", "+/{machine}/{sensor}", true);
        check("plant/{machine}/a", "plant/{machine}/b", false);
        check("plant/{machine}/a", "plant/{machine}", false);
        check("a/+/c", "+/b/+", true);
        check("a/+/c", "b/+/+", false);
    }

    #[test]
    fn what_is_no_pattern() {
        for bad in ["", "plant/#", "plant/x{machine}", "a/{id}", "{machine}/{machine}", "$SYS/{machine}", "a/b+"] {
            assert!(Pattern::parse(bad).is_err(), "{bad}");
        }
    }
}
