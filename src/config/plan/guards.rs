//! `guards`: patterns are compiled, and lists are checked.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use http::{HeaderName, HeaderValue};

use super::{planner::Planner, when::WhenPlan};
use crate::{
    config::{
        choices::{
            CapAction, DenyOn, GuardRole, ModerationFail, ModerationForm, ModerationMode,
            PersonalData, RedactAction,
        },
        raw,
    },
    wire::pattern::Patterns,
};

/// The most entries of a guard.
const MOST: usize = 64;

/// The entries that are enabled.
#[derive(Clone, Debug, Default)]
pub struct GuardsPlan {
    pub redact: Vec<RedactPlan>,
    pub deny: Vec<DenyPlan>,
    pub moderation: Vec<ModerationPlan>,
    pub caps: Vec<CapsPlan>,
}

/// Personal data.
#[derive(Clone, Debug)]
pub struct RedactPlan {
    pub when: WhenPlan,
    pub action: RedactAction,
    pub reversible: bool,
    pub kinds: Vec<PersonalData>,
    /// The names of the own patterns, in capitals, as they stand in placeholders.
    pub names: Vec<String>,
    /// The own patterns.
    pub patterns: Vec<Arc<Patterns>>,
    /// Empty: all.
    pub roles: Vec<GuardRole>,
    /// 400 or 403.
    pub status: u16,
}

/// Words and patterns.
#[derive(Clone, Debug)]
pub struct DenyPlan {
    pub when: WhenPlan,
    pub on: Vec<DenyOn>,
    pub patterns: Arc<Patterns>,
    /// Empty: all.
    pub roles: Vec<GuardRole>,
    pub message: String,
    /// 400 or 403.
    pub status: u16,
    /// The longest match in an answer, in bytes.
    pub window: usize,
}

/// A service.
#[derive(Clone, Debug)]
pub struct ModerationPlan {
    pub when: WhenPlan,
    pub mode: ModerationMode,
    pub form: ModerationForm,
    pub url: String,
    pub headers: Vec<(HeaderName, HeaderValue)>,
    pub model: Option<String>,
    /// Empty: whatever is flagged.
    pub categories: Vec<String>,
    pub timeout: Duration,
    pub fail: ModerationFail,
    /// In bytes.
    pub max_text: usize,
    /// Empty: all.
    pub roles: Vec<GuardRole>,
    pub message: String,
    /// 400 or 403.
    pub status: u16,
}

/// The most that a request may ask for.
#[derive(Clone, Debug)]
pub struct CapsPlan {
    pub when: WhenPlan,
    pub action: CapAction,
    pub n: Option<u64>,
    pub max_tokens: Option<u64>,
    pub logprobs: bool,
    pub top_logprobs: Option<u64>,
    pub tools: Option<u64>,
    pub images: Option<u64>,
    /// In bytes.
    pub image_bytes: Option<u64>,
}

impl Planner<'_> {
    pub(super) fn guards(&mut self, raw: &raw::Guards) -> GuardsPlan {
        let lengths = [
            ("redact", raw.redact.len()),
            ("deny", raw.deny.len()),
            ("moderation", raw.moderation.len()),
            ("caps", raw.caps.len()),
        ];
        for (name, length) in lengths {
            if length > MOST {
                let message = format!("has {length} entries, more than {MOST}");
                self.problem(format!("guards.{name}"), message, "join entries of the same `when`");
            }
        }
        let at = |name: &str, i: usize| format!("guards.{name}[{i}]");
        let mut plan = GuardsPlan::default();
        for (i, entry) in raw.redact.iter().enumerate().filter(|(_, e)| e.enabled.0) {
            plan.redact.push(self.redact(&at("redact", i), entry));
        }
        for (i, entry) in raw.deny.iter().enumerate().filter(|(_, e)| e.enabled.0) {
            plan.deny.extend(self.deny(&at("deny", i), entry));
        }
        for (i, entry) in raw.moderation.iter().enumerate().filter(|(_, e)| e.enabled.0) {
            plan.moderation.push(self.moderation(&at("moderation", i), entry));
        }
        for (i, entry) in raw.caps.iter().enumerate().filter(|(_, e)| e.enabled.0) {
            plan.caps.push(self.caps(&at("caps", i), entry));
        }
        plan
    }

    fn guard_status(&mut self, at: &str, status: u16) {
        if !matches!(status, 400 | 403) {
            self.problem(format!("{at}.status"), "is neither 400 nor 403", "");
        }
    }

    fn redact(&mut self, at: &str, raw: &raw::Redact) -> RedactPlan {
        self.guard_status(at, raw.status);
        if raw.kinds.is_empty() && raw.patterns.is_empty() {
            self.problem(at, "looks for nothing", "add `kinds` or `patterns`");
        }
        let own = ["EMAIL", "PHONE", "CARD", "IBAN", "ID", "SECRET", "IP"];
        let (mut names, mut patterns) = (Vec::new(), Vec::new());
        let mut known = BTreeSet::new();
        for (i, entry) in raw.patterns.iter().enumerate() {
            let at = format!("{at}.patterns[{i}]");
            let name = entry.name.to_ascii_uppercase();
            let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
            let begins = name.starts_with(|c: char| c.is_ascii_alphabetic());
            if !begins || !name.chars().all(word) || name.len() > 32 {
                self.problem(
                    format!("{at}.name"),
                    "is no word of up to 32 letters, digits and `_`",
                    "write `staff_number`",
                );
            } else if own.contains(&name.as_str()) || !known.insert(name.clone()) {
                self.problem(format!("{at}.name"), "is taken", "choose another name");
            }
            let list = std::slice::from_ref(&entry.pattern);
            if let Some(compiled) = self.compiled(list, |_| format!("{at}.pattern")) {
                names.push(name);
                patterns.push(compiled);
            }
        }
        let mut kinds = raw.kinds.clone();
        kinds.sort_unstable();
        kinds.dedup();
        RedactPlan {
            when: self.when(&format!("{at}.when"), &raw.when),
            action: raw.action,
            reversible: raw.reversible,
            kinds,
            names,
            patterns,
            roles: raw.roles.clone(),
            status: raw.status,
        }
    }

    /// Compiles patterns; `at` is where one of them stands.
    fn compiled(&mut self, list: &[String], at: impl Fn(usize) -> String) -> Option<Arc<Patterns>> {
        match Patterns::new(list) {
            Ok(patterns) => Some(Arc::new(patterns)),
            Err(bad) => {
                self.problem(
                    at(bad.at),
                    format!("cannot be used as a pattern: {}", bad.why),
                    "the syntax is that of https://docs.rs/regex",
                );
                None
            }
        }
    }

    fn deny(&mut self, at: &str, raw: &raw::Deny) -> Option<DenyPlan> {
        self.guard_status(at, raw.status);
        self.within(format!("{at}.window"), raw.window, 16..=4096, "the default is 256");
        if raw.words.is_empty() && raw.patterns.is_empty() {
            self.problem(at, "looks for nothing", "add `words` or `patterns`");
            return None;
        }
        if raw.on.is_empty() {
            self.problem(format!("{at}.on"), "is empty", "write `on: [prompt, answer]`");
        }
        for (i, word) in raw.words.iter().enumerate() {
            if word.len() > raw.window {
                let at = format!("{at}.words[{i}]");
                self.problem(at, "is longer than `window`", "make `window` larger");
            }
        }
        let list: Vec<String> =
            raw.words.iter().map(|w| word_pattern(w)).chain(raw.patterns.iter().cloned()).collect();
        let place = |i: usize| match i.checked_sub(raw.words.len()) {
            Some(i) => format!("{at}.patterns[{i}]"),
            None => format!("{at}.words[{i}]"),
        };
        Some(DenyPlan {
            when: self.when(&format!("{at}.when"), &raw.when),
            patterns: self.compiled(&list, place)?,
            on: raw.on.clone(),
            roles: raw.roles.clone(),
            message: raw.message.clone(),
            status: raw.status,
            window: raw.window,
        })
    }

    fn moderation(&mut self, at: &str, raw: &raw::Moderation) -> ModerationPlan {
        self.guard_status(at, raw.status);
        self.http_url(&format!("{at}.url"), &raw.url);
        let times = Duration::from_millis(10)..=Duration::from_secs(60);
        self.within_time(format!("{at}.timeout"), raw.timeout.0, times, "the default is 2s");
        let sizes = 1..=16 << 20;
        self.within(format!("{at}.max_text"), raw.max_text.0, sizes, "the default is 64KiB");
        if raw.form != ModerationForm::Openai {
            for (name, given) in
                [("model", raw.model.is_some()), ("categories", !raw.categories.is_empty())]
            {
                if given {
                    self.problem(format!("{at}.{name}"), "is for `form: openai`", "remove it");
                }
            }
        }
        ModerationPlan {
            when: self.when(&format!("{at}.when"), &raw.when),
            mode: raw.mode,
            form: raw.form,
            url: raw.url.clone(),
            headers: self.header_fields(at, &raw.headers, &raw.headers_file),
            model: raw.model.clone(),
            categories: raw.categories.clone(),
            timeout: raw.timeout.0,
            fail: raw.fail,
            max_text: usize::try_from(raw.max_text.0).unwrap_or(usize::MAX),
            roles: raw.roles.clone(),
            message: raw.message.clone(),
            status: raw.status,
        }
    }

    fn caps(&mut self, at: &str, raw: &raw::Caps) -> CapsPlan {
        for (name, least) in [("n", raw.n), ("max_tokens", raw.max_tokens)] {
            if least == Some(0) {
                self.problem(format!("{at}.{name}"), "is zero", "write 1 or more");
            }
        }
        CapsPlan {
            when: self.when(&format!("{at}.when"), &raw.when),
            action: raw.action,
            n: raw.n,
            max_tokens: raw.max_tokens,
            logprobs: raw.logprobs,
            top_logprobs: raw.top_logprobs,
            tools: raw.tools,
            images: raw.images,
            image_bytes: raw.image_bytes.map(|size| size.0),
        }
    }
}

/// The pattern of a word, in any case, where words begin and end. Scripts that put no spaces between words
/// have no such places.
fn word_pattern(word: &str) -> String {
    let latin = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let edge = |c: Option<char>| if latin(c) { r"(?-u:\b)" } else { "" };
    let (before, after) = (edge(word.chars().next()), edge(word.chars().last()));
    format!("{before}(?i:{}){after}", regex_syntax::escape(word))
}
