//! Names of models, and patterns of them.

/// A name, or a prefix.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ModelPattern {
    /// This model.
    Exact(String),
    /// Every model whose name starts so.
    Prefix(String),
}

impl ModelPattern {
    /// Reads `name` or `prefix*`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        match text.strip_suffix('*') {
            _ if text.is_empty() => Err("a model name is empty"),
            Some(prefix) if prefix.contains('*') => Err("`*` may stand only at the end"),
            Some(prefix) => Ok(Self::Prefix(prefix.to_owned())),
            None if text.contains('*') => Err("`*` may stand only at the end"),
            None => Ok(Self::Exact(text.to_owned())),
        }
    }

    /// Whether the model is meant.
    pub fn matches(&self, model: &str) -> bool {
        match self {
            Self::Exact(name) => name == model,
            Self::Prefix(prefix) => model.starts_with(prefix.as_str()),
        }
    }

    /// How closely it describes a model that it matches: an exact name before a prefix, and a long
    /// prefix before a short one.
    fn closeness(&self) -> usize {
        match self {
            Self::Exact(_) => usize::MAX,
            Self::Prefix(prefix) => prefix.len(),
        }
    }

    /// Of the entries that match, the one that describes the model most closely.
    pub fn closest<'a, T>(entries: &'a [(Self, T)], model: &str) -> Option<&'a T> {
        let matching = entries.iter().filter(|(pattern, _)| pattern.matches(model));
        matching.max_by_key(|(pattern, _)| pattern.closeness()).map(|(_, entry)| entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closest_pattern_counts() {
        let parse = |text| ModelPattern::parse(text).unwrap();
        let entries: Vec<_> = ["*", "qwen-*", "qwen-72b", "qwen-7*"]
            .iter()
            .map(|text| (parse(text), *text))
            .collect();
        let closest = |model| ModelPattern::closest(&entries, model).copied();
        assert_eq!(closest("qwen-72b"), Some("qwen-72b"));
        assert_eq!(closest("qwen-7b"), Some("qwen-7*"));
        assert_eq!(closest("qwen-max"), Some("qwen-*"));
        assert_eq!(closest("llama"), Some("*"));
        assert_eq!(ModelPattern::closest(&entries[2..], "llama"), None);
        assert!(ModelPattern::parse("a*b").is_err() && ModelPattern::parse("").is_err());
    }
}
