//! `when`: which requests a script or a guard applies to.

use super::planner::Planner;
use crate::{
    base::{ModelPattern, Principal},
    config::raw,
};

/// Which requests something applies to: those that match each list that is not empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WhenPlan {
    pub models: Vec<ModelPattern>,
    /// Of ids and names of keys, and of users.
    pub keys: Vec<ModelPattern>,
    pub tags: Vec<String>,
}

/// What is known of a request when it is asked whether something applies to it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Subject<'a> {
    /// As the client names it; empty if it names none.
    pub model: &'a str,
    /// The caller; `None` where no key is needed.
    pub principal: Option<&'a Principal>,
    /// Tags that scripts have set for this request, beside those of the caller.
    pub tags: &'a [String],
}

impl WhenPlan {
    /// Whether it holds for a request.
    pub fn matches(&self, subject: &Subject<'_>) -> bool {
        let Self { models, keys, tags } = self;
        let named = |pattern: &ModelPattern| {
            subject.principal.is_some_and(|p| {
                let names = [&p.key_id, &p.name, &p.user_id].into_iter();
                names.filter(|name| !name.is_empty()).any(|name| pattern.matches(name))
            })
        };
        let own = subject.principal.map_or(&[][..], |p| p.tags.as_slice());
        let tagged = |tag: &String| own.contains(tag) || subject.tags.contains(tag);
        (models.is_empty() || models.iter().any(|pattern| pattern.matches(subject.model)))
            && (keys.is_empty() || keys.iter().any(named))
            && (tags.is_empty() || tags.iter().any(tagged))
    }
}

impl Planner<'_> {
    /// A condition.
    pub(super) fn when(&mut self, at: &str, raw: &raw::When) -> WhenPlan {
        let models = self.when_patterns(&format!("{at}.models"), &raw.models);
        let keys = self.when_patterns(&format!("{at}.keys"), &raw.keys);
        WhenPlan { models, keys, tags: raw.tags.clone() }
    }

    fn when_patterns(&mut self, at: &str, texts: &[String]) -> Vec<ModelPattern> {
        let mut patterns = Vec::new();
        for (n, text) in texts.iter().enumerate() {
            match ModelPattern::parse(text) {
                Ok(pattern) => patterns.push(pattern),
                Err(_) if text.is_empty() => self.problem(format!("{at}[{n}]"), "is empty", ""),
                Err(why) => self.problem(format!("{at}[{n}]"), why, ""),
            }
        }
        patterns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_list_that_is_not_empty_has_to_match() {
        let principal = Principal {
            key_id: "k1".into(),
            name: "laptop".into(),
            user_id: "ann".into(),
            tags: vec!["vip".into()],
            ..Principal::default()
        };
        let tags = ["night".to_owned()];
        let subject = Subject { model: "qwen-7b", principal: Some(&principal), tags: &tags };
        let patterns = |texts: &[&str]| -> Vec<_> {
            texts.iter().map(|text| ModelPattern::parse(text).unwrap()).collect()
        };
        let when = |models: &[&str], keys: &[&str], tags: &[&str]| WhenPlan {
            models: patterns(models),
            keys: patterns(keys),
            tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
        };
        for (when, expected) in [
            (when(&[], &[], &[]), true),
            (when(&["qwen-*"], &[], &[]), true),
            (when(&["llama-*", "qwen-7b"], &["k1"], &["vip"]), true),
            (when(&[], &["lap*"], &["night"]), true),
            (when(&[], &["ann"], &[]), true),
            (when(&["qwen"], &[], &[]), false),
            (when(&["qwen-*"], &["k2"], &[]), false),
            (when(&[], &[], &["day"]), false),
        ] {
            assert_eq!(when.matches(&subject), expected, "{when:?}");
        }
        assert!(!when(&[], &["*"], &[]).matches(&Subject::default()));
    }
}
