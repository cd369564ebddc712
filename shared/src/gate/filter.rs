//! MQTT topic filters: which topics they match, and which filters they cover.

use std::{collections::HashMap, fmt, str::FromStr};

/// The longest filter and the longest topic that MQTT can write, in bytes.
pub const TOPIC_BYTES_MAX: usize = 65_535;

/// A topic filter: levels parted by `/`, where `+` is any one level, and `#` at the end any number of them.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Filter(Box<str>);

/// Why a text is no topic filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    #[error("a topic filter must not be empty")]
    Empty,
    #[error("a topic filter has at most {TOPIC_BYTES_MAX} bytes")]
    TooLong,
    #[error("a topic filter must not hold the character U+0000")]
    Nul,
    #[error("'+' in a topic filter must stand alone between slashes, as in plant/+/temperature")]
    Plus,
    #[error("'#' in a topic filter must stand alone after the last slash, as in plant/#")]
    Hash,
}

impl Filter {
    /// # Errors
    /// If the text is empty or too long, or has a wildcard where none may stand.
    pub fn new(filter: &str) -> Result<Self, FilterError> {
        if filter.is_empty() {
            return Err(FilterError::Empty);
        }
        if filter.len() > TOPIC_BYTES_MAX {
            return Err(FilterError::TooLong);
        }
        if filter.contains('\0') {
            return Err(FilterError::Nul);
        }
        let mut levels = filter.split('/').peekable();
        while let Some(level) = levels.next() {
            if level.contains('#') && (level != "#" || levels.peek().is_some()) {
                return Err(FilterError::Hash);
            }
            if level.contains('+') && level != "+" {
                return Err(FilterError::Plus);
            }
        }
        Ok(Self(filter.into()))
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether a message on this topic passes. A wildcard at the start matches no topic that begins with `$`.
    #[must_use]
    pub fn matches(&self, topic: &str) -> bool {
        if topic.starts_with('$') && !self.0.starts_with('$') {
            return false;
        }
        let mut levels = topic.split('/');
        for wanted in self.0.split('/') {
            match (wanted, levels.next()) {
                ("#", _) => return true,
                ("+", Some(_)) => {}
                (wanted, Some(level)) if wanted == level => {}
                _ => return false,
            }
        }
        levels.next().is_none()
    }

    /// Whether every topic that `other` matches is matched by this filter too.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        if other.0.starts_with('$') && !self.0.starts_with('$') {
            return false;
        }
        let mut theirs = other.0.split('/');
        for ours in self.0.split('/') {
            match (ours, theirs.next()) {
                ("#", _) => return true,
                ("+", Some(level)) if level != "#" => {}
                (ours, Some(level)) if ours == level => {}
                _ => return false,
            }
        }
        theirs.next().is_none()
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl FromStr for Filter {
    type Err = FilterError;

    fn from_str(filter: &str) -> Result<Self, FilterError> {
        Self::new(filter)
    }
}

/// A topic that a client may publish on: not empty, no wildcard, no U+0000.
#[must_use]
pub fn is_topic(topic: &str) -> bool {
    !topic.is_empty() && topic.len() <= TOPIC_BYTES_MAX && !topic.contains(['+', '#', '\0'])
}

/// What all clients of a gate subscribe to, now or when they come back.
#[derive(Debug, Default)]
pub struct Interest {
    filters: HashMap<Filter, usize>,
    version: u64,
}

impl Interest {
    pub fn add(&mut self, filter: &Filter) {
        let count = self.filters.entry(filter.clone()).or_insert(0);
        *count += 1;
        if *count == 1 {
            self.version += 1;
        }
    }

    /// Takes back one `add`.
    pub fn remove(&mut self, filter: &Filter) {
        let Some(count) = self.filters.get_mut(filter) else { return };
        *count -= 1;
        if *count == 0 {
            self.filters.remove(filter);
            self.version += 1;
        }
    }

    /// Counts up whenever an answer of [`Interest::wants`] may have changed.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    #[must_use]
    pub fn wants(&self, topic: &str) -> bool {
        self.filters.keys().any(|filter| filter.matches(topic))
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.filters.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn filter(text: &str) -> Filter {
        Filter::new(text).unwrap()
    }

    #[test]
    fn wildcards_stand_alone() {
        for good in ["a", "/", "a/b", "+", "#", "a/+/b", "+/+", "a/#", "/#", "$share/g/a", "ä/b c"] {
            assert_eq!(filter(good).as_str(), good);
        }
        for (bad, error) in [
            ("", FilterError::Empty),
            ("a+", FilterError::Plus),
            ("a/+b/c", FilterError::Plus),
            ("++", FilterError::Plus),
            ("a#", FilterError::Hash),
            ("#/a", FilterError::Hash),
            ("a/##", FilterError::Hash),
            ("a\0", FilterError::Nul),
        ] {
            assert_eq!(Filter::new(bad), Err(error), "{bad:?}");
        }
        assert_eq!(Filter::new(&"a".repeat(TOPIC_BYTES_MAX + 1)), Err(FilterError::TooLong));
    }

    #[test]
    fn matches_as_the_standard_says() {
        for (text, yes, no) in [
            ("a/b", &["a/b"][..], &["a", "a/b/", "a/b/c", "/a/b", "A/b"][..]),
            ("a/+", &["a/b", "a/"], &["a", "a/b/c"]),
            ("+/+", &["/a", "a/b"], &["a", "$SYS/a"]),
            ("a/#", &["a", "a/", "a/b", "a/b/c"], &["b", "ab"]),
            ("#", &["a", "/", "a/b"], &["$SYS", "$SYS/a"]),
            ("+/a/#", &["x/a", "x/a/b"], &["$x/a", "x"]),
            ("$SYS/#", &["$SYS", "$SYS/a"], &["a"]),
        ] {
            for topic in yes {
                assert!(filter(text).matches(topic), "{text} {topic}");
            }
            for topic in no {
                assert!(!filter(text).matches(topic), "{text} {topic}");
            }
        }
    }

    #[test]
    fn covers_only_what_it_would_match() {
        for (wide, narrow, expected) in [
            ("a/#", "a/b/+", true),
            ("a/#", "a", true),
            ("a/#", "a/#", true),
            ("a/+", "a/+", true),
            ("a/+", "a/b", true),
            ("a/+", "a/#", false),
            ("+/b", "#", false),
            ("a/b", "a/+", false),
            ("a/+/c", "a/b", false),
            ("#", "$SYS/a", false),
            ("#", "+/b", true),
            ("a/+/#", "a", false),
        ] {
            assert_eq!(filter(wide).covers(&filter(narrow)), expected, "{wide} {narrow}");
        }
    }

    #[test]
    fn interest_counts_subscribers() {
        let mut interest = Interest::default();
        interest.add(&filter("a/+"));
        interest.add(&filter("a/+"));
        let version = interest.version();
        interest.remove(&filter("a/+"));
        assert!(interest.wants("a/b"));
        assert_eq!(interest.version(), version);
        interest.remove(&filter("a/+"));
        interest.remove(&filter("a/+"));
        assert!(!interest.wants("a/b") && interest.is_empty());
        assert_ne!(interest.version(), version);
    }

    fn levels(pattern: &'static str) -> impl Strategy<Value = String> {
        vec(pattern, 1..5).prop_map(|levels| levels.join("/"))
    }

    proptest! {
        #[test]
        fn what_a_covered_filter_matches_is_matched(
            wide in levels("[ab+]?"), narrow in levels("[ab+]?"), open: bool, topic in levels("[ab]?"),
        ) {
            let wide = if open { format!("{wide}/#") } else { wide };
            if let (Ok(wide), Ok(narrow)) = (Filter::new(&wide), Filter::new(&narrow)) {
                prop_assert!(!(wide.covers(&narrow) && narrow.matches(&topic)) || wide.matches(&topic));
            }
        }

        #[test]
        fn any_text_is_a_filter_or_an_error(text: String, topic: String) {
            if let Ok(filter) = Filter::new(&text) {
                prop_assert!(filter.covers(&filter));
                prop_assert!(!is_topic(&text) || filter.matches(&text));
                let _any = filter.matches(&topic);
            }
        }
    }
}
