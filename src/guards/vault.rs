//! The values that a request's placeholders stand for. A vault belongs to one request: no placeholder leads
//! to a value of another one.

use std::{collections::HashMap, fmt};

/// The values of one request, by their placeholders.
#[derive(Clone)]
pub struct Vault {
    /// In the order of the placeholders.
    entries: Vec<(Box<str>, Box<str>)>,
    /// Bytes of the longest placeholder.
    longest: usize,
    /// The content of the answer is JSON: values are written into it as parts of its texts.
    json: bool,
}

impl Vault {
    /// The value of a placeholder that stands at the start of a text, as its number, and the length of the
    /// placeholder.
    pub fn at_start(&self, text: &str) -> Option<(usize, usize)> {
        let end = memchr::memchr(b']', &text.as_bytes()[..text.len().min(self.longest)])? + 1;
        let found = self.entries.binary_search_by(|(name, _)| (**name).cmp(&text[..end]));
        found.ok().map(|value| (value, end))
    }

    /// Whether a text is the beginning of a placeholder.
    pub fn may_begin(&self, text: &str) -> bool {
        let next = self.entries.partition_point(|(name, _)| &**name < text);
        self.entries.get(next).is_some_and(|(name, _)| name.starts_with(text))
    }

    /// The value with this number.
    pub fn value(&self, number: usize) -> &str {
        self.entries.get(number).map_or("", |(_, value)| value)
    }

    /// How many values there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether the content of the answer is JSON.
    pub fn json(&self) -> bool {
        self.json
    }
}

/// Values are personal data, which no log may have.
impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a vault of {} values", self.entries.len())
    }
}

/// Gives values their placeholders, in the order in which they come.
#[derive(Default)]
pub struct Numbering {
    numbers: HashMap<(String, String), usize>,
    /// How many values each label has.
    used: HashMap<String, usize>,
    entries: Vec<(Box<str>, Box<str>)>,
}

impl Numbering {
    /// The placeholder of a value: `[EMAIL_1]`. `kept`: the value can be put back into the answer.
    pub fn placeholder(&mut self, label: &str, value: &str, kept: bool) -> String {
        let key = (label.to_owned(), value.to_owned());
        if let Some(number) = self.numbers.get(&key) {
            return written(label, *number);
        }
        let number = self.used.entry(label.to_owned()).or_default();
        *number += 1;
        let placeholder = written(label, *number);
        if kept {
            self.entries.push((placeholder.as_str().into(), value.into()));
        }
        self.numbers.insert(key, *number);
        placeholder
    }

    /// The vault; `None` if no value can be put back.
    pub fn vault(mut self, json: bool) -> Option<Vault> {
        self.entries.sort_unstable();
        let longest = self.entries.iter().map(|(name, _)| name.len()).max()?;
        Some(Vault { entries: self.entries, longest, json })
    }
}

fn written(label: &str, number: usize) -> String {
    format!("[{label}_{number}]")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_value_has_the_same_placeholder() {
        let mut numbering = Numbering::default();
        assert_eq!(numbering.placeholder("EMAIL", "a@b.de", true), "[EMAIL_1]");
        assert_eq!(numbering.placeholder("IP", "10.0.0.1", false), "[IP_1]");
        assert_eq!(numbering.placeholder("EMAIL", "c@d.de", true), "[EMAIL_2]");
        assert_eq!(numbering.placeholder("EMAIL", "a@b.de", true), "[EMAIL_1]");
        let vault = numbering.vault(false).unwrap();
        let (value, length) = vault.at_start("[EMAIL_2] and").unwrap();
        assert_eq!((vault.value(value), length), ("c@d.de", 9));
        assert_eq!(vault.at_start("[IP_1]"), None);
        assert_eq!(vault.at_start("[EMAIL_2"), None);
        let begins = ["[", "[EM", "[EMAIL_2", "[EMAIL_2]"].map(|text| vault.may_begin(text));
        assert_eq!(begins, [true; 4]);
        let others = ["[EN", "[EMAIL_3", "[EMAIL_2]x", "x"].map(|text| vault.may_begin(text));
        assert_eq!(others, [false; 4]);
        assert!(!format!("{vault:?}").contains("c@d.de"));
        assert!(Numbering::default().vault(false).is_none());
    }
}
