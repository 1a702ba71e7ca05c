//! Patterns of model names.

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ModelPattern {
    Exact(String),
    /// Every model whose name starts with this.
    Prefix(String),
}

impl ModelPattern {
    /// Reads `name` or `prefix*`.
    ///
    /// # Errors
    /// The problem.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        match text.strip_suffix('*') {
            _ if text.is_empty() => Err("a model name is empty"),
            Some(prefix) if prefix.contains('*') => Err("`*` is allowed only at the end"),
            Some(prefix) => Ok(Self::Prefix(prefix.to_owned())),
            None if text.contains('*') => Err("`*` is allowed only at the end"),
            None => Ok(Self::Exact(text.to_owned())),
        }
    }

    pub fn matches(&self, model: &str) -> bool {
        match self {
            Self::Exact(name) => name == model,
            Self::Prefix(prefix) => model.starts_with(prefix.as_str()),
        }
    }

    /// Larger is more specific: an exact name before a prefix, a long prefix before a short one.
    fn closeness(&self) -> usize {
        match self {
            Self::Exact(_) => usize::MAX,
            Self::Prefix(prefix) => prefix.len(),
        }
    }

    /// The most specific entry that matches the model.
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
