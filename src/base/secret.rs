//! Secrets that cannot be printed by accident.

use std::fmt;

/// A secret value: `Debug` and `Display` show nothing of it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Secret(String);

impl Secret {
    /// Wraps a value.
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The value itself, for the one place that sends or compares it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

/// Shows enough of a key to recognise it: the first four and the last four characters, and
/// nothing of keys shorter than sixteen.
pub fn mask(key: &str) -> String {
    if key.len() < 16 || key.chars().count() < 16 {
        return "***".to_owned();
    }
    let head = key.char_indices().nth(4).map_or(key.len(), |(at, _)| at);
    let tail = key.char_indices().nth_back(3).map_or(0, |(at, _)| at);
    [&key[..head], "***", &key[tail..]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_prints() {
        let s = Secret::new("sk-very-secret");
        assert_eq!(format!("{s} {s:?}"), "[secret] [secret]");
    }

    #[test]
    fn masks() {
        assert_eq!(mask("sk-prod-0123456789"), "sk-p***6789");
        assert_eq!(mask("short"), "***");
        assert_eq!(mask("ключ-от-сервера-7"), "ключ***ра-7");
        assert_eq!(mask("ключключключ"), "***");
        assert_eq!(mask("短い鍵短い鍵短い鍵短い鍵短い鍵短"), "短い鍵短***短い鍵短");
    }
}
