//! An entry of a model list.

use serde_json::Value;

/// A model that clients can ask for.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    /// Its name.
    pub name: String,
    /// When it was made, in seconds since 1970.
    pub created: i64,
    /// The entry as a backend wrote it; `None` for a model that the configuration names.
    pub entry: Option<Entry>,
}

/// An entry as a backend wrote it.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The name of the language that it is in: lists in another one cannot have it.
    pub language: &'static str,
    /// All its members.
    pub value: Value,
}

impl Model {
    /// The entry as a backend wrote it, if that was in this language.
    pub fn entry_in(&self, language: &str) -> Option<&Value> {
        self.entry.as_ref().filter(|entry| entry.language == language).map(|entry| &entry.value)
    }
}
