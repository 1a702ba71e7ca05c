//! Secrets that cannot be printed by accident.

use std::fmt;

/// A secret value: `Debug` and `Display` do not show it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Secret(String);

impl Secret {
    /// Wraps a value without what files and variables add at its ends: white space and a byte order
    /// mark.
    pub fn new(value: impl Into<String>) -> Self {
        let value = value.into();
        let bare = trimmed(&value);
        Self(if bare.len() == value.len() { value } else { bare.to_owned() })
    }

    /// Why it cannot be sent as a key in a header field, if it cannot.
    pub fn unsendable(&self) -> Option<&'static str> {
        unsendable(&self.0)
    }

    /// The value itself, for the code that sends or compares it.
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

/// A secret without white space and byte order marks at its ends: these come from files and
/// variables, and clients do not send them.
pub fn trimmed(text: &str) -> &str {
    text.trim_matches(|c: char| c.is_whitespace() || matches!(c, '\u{feff}' | '\u{200b}' | '\0'))
}

/// Why a text cannot be sent as a key in a header field, if it cannot.
pub fn unsendable(text: &str) -> Option<&'static str> {
    match () {
        () if text.is_empty() => Some("it is empty"),
        () if text.chars().any(char::is_control) => {
            Some("it contains a line end or another control character")
        }
        () if !text.is_ascii() => Some("it contains characters that are not ASCII"),
        () if text.contains(' ') => Some("it contains a space"),
        () => None,
    }
}

/// The first four and the last four characters of a key, to recognise it; nothing of a key shorter
/// than sixteen characters.
#[derive(Clone, Copy, Debug)]
pub struct Masked {
    /// Eight characters of up to four bytes, and three asterisks between them.
    text: [u8; 35],
    len: usize,
}

impl Masked {
    pub fn new(key: &str) -> Self {
        let mut masked = Self { text: [0; 35], len: 0 };
        // Nearly every key is ASCII: its characters need not be searched for.
        let characters = if key.is_ascii() { key.len() } else { key.chars().count() };
        if characters < 16 {
            masked.push("***");
        } else if characters == key.len() {
            masked.push_around(&key[..4], &key[key.len() - 4..]);
        } else {
            let head = key.char_indices().nth(4).map_or(key.len(), |(at, _)| at);
            let tail = key.char_indices().nth_back(3).map_or(0, |(at, _)| at);
            masked.push_around(&key[..head], &key[tail..]);
        }
        masked
    }

    fn push_around(&mut self, head: &str, tail: &str) {
        self.push(head);
        self.push("***");
        self.push(tail);
    }

    fn push(&mut self, part: &str) {
        let end = self.len + part.len();
        self.text[self.len..end].copy_from_slice(part.as_bytes());
        self.len = end;
    }

    pub fn as_str(&self) -> &str {
        str::from_utf8(&self.text[..self.len]).unwrap_or_default()
    }
}

/// See [`Masked`].
pub fn mask(key: &str) -> String {
    Masked::new(key).as_str().to_owned()
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
    fn ends_are_cut_off_and_the_inside_is_not() {
        for text in
            ["sk-a b", "sk-a b\n", "\r\n\t sk-a b \u{a0}", "\u{feff}sk-a b", " \u{feff} sk-a b\0"]
        {
            assert_eq!(Secret::new(text).expose(), "sk-a b", "{text:?}");
        }
        assert_eq!(Secret::new(" \u{feff}\n").expose(), "");
    }

    #[test]
    fn what_no_header_can_hold_is_known() {
        for (text, fine) in [
            ("sk-a", true),
            ("sk_a.b~c+d/e==,f", true),
            ("", false),
            ("sk a", false),
            ("sk\na", false),
            ("sk\u{7f}", false),
            ("schlüssel", false),
            ("sk-a\u{200b}b", false),
        ] {
            assert_eq!(unsendable(text).is_none(), fine, "{text:?}");
        }
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
