//! The languages of a backend.

use super::{catalog::Protocol, language::Dialect};

/// The languages of a backend, in order of preference; at least one.
#[derive(Clone, Debug, PartialEq)]
pub struct Languages(Vec<Protocol>);

impl Languages {
    /// These; the first of all languages if there are none. Each counts once.
    pub fn new(names: impl IntoIterator<Item = Protocol>) -> Self {
        let mut languages = Vec::new();
        for language in names {
            if !languages.contains(&language) {
                languages.push(language);
            }
        }
        if languages.is_empty() {
            languages.push(Protocol::default());
        }
        Self(languages)
    }

    /// The one that it is asked in where no request says otherwise: for its models and its health.
    pub fn first(&self) -> &'static dyn Dialect {
        self.0.first().copied().unwrap_or_default().language()
    }

    /// It speaks this language.
    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|language| language.language().name() == name)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &'static dyn Dialect> {
        self.0.iter().map(|language| language.language())
    }
}

impl Default for Languages {
    fn default() -> Self {
        Self::new([])
    }
}
