//! What a translation could not carry over: dropped with a warning, or refused.

use std::{
    collections::HashSet,
    fmt,
    hash::{DefaultHasher, Hash, Hasher},
};

/// Losses that are listed; of more only their number is known.
const MOST: usize = 64;

/// The longest path, in characters: names of tools and members are the client's.
const LONGEST_PATH: usize = 100;

/// The longest reason, in characters.
const LONGEST_WHY: usize = 300;

/// What was dropped of a request or changed in it, in the order in which it was found. At most 64
/// are listed, and one that says how many more there are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    list: Vec<Loss>,
    /// Digests of all that are known, to count each once.
    known: HashSet<u64>,
}

/// One thing.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Loss {
    /// Where it stood, in the client's words: `tools[2]`, `top_k`, `messages[3].content[0]`. Not
    /// longer than 103 characters, without control characters.
    pub path: String,
    /// What happened to it and why, as a clause: `the backend's language has no such field`.
    pub why: String,
}

impl Losses {
    /// Notes one.
    pub fn add(&mut self, path: impl Into<String>, why: impl Into<String>) {
        let loss = Loss {
            path: printable(path.into(), LONGEST_PATH),
            why: printable(why.into(), LONGEST_WHY),
        };
        let mut digest = DefaultHasher::new();
        loss.hash(&mut digest);
        if !self.known.insert(digest.finish()) {
            return;
        }
        if self.list.len() < MOST {
            return self.list.push(loss);
        }
        let more = self.known.len() - MOST;
        self.list.truncate(MOST);
        self.list.push(Loss {
            path: format!("and {more} more"),
            why: "only the first ones are listed".to_owned(),
        });
    }

    /// Nothing was lost.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Those that are listed.
    pub fn iter(&self) -> impl Iterator<Item = &Loss> {
        self.list.iter()
    }

    /// The places, as the header field `x-llmproxy-dropped` lists them: each once.
    pub fn paths(&self) -> Vec<&str> {
        let mut known = HashSet::new();
        let paths = self.list.iter().map(|loss| loss.path.as_str());
        paths.filter(|path| known.insert(*path)).collect()
    }

    /// The first one as a refusal: where losses are not allowed.
    pub fn refusal(&self) -> Option<Refused> {
        self.list.first().map(|loss| Refused::new(loss.path.clone(), loss.why.clone()))
    }
}

/// A request that cannot be translated without a change of its meaning: 400, `param` is the path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Where it stands, in the client's words.
    pub path: String,
    /// Why, as a sentence without its full stop.
    pub why: String,
    /// The request is wrong in its own language, not only for the backend's.
    pub invalid: bool,
}

impl Refused {
    /// What the backend's language cannot say.
    pub fn new(path: impl Into<String>, why: impl Into<String>) -> Self {
        Self { path: path.into(), why: why.into(), invalid: false }
    }

    /// What is wrong in the client's own language.
    pub fn invalid(path: impl Into<String>, why: impl Into<String>) -> Self {
        Self { path: path.into(), why: why.into(), invalid: true }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() {
            return f.write_str(&self.why);
        }
        write!(f, "`{}`: {}", self.path, self.why)
    }
}

/// A text that goes to logs and header fields: clients could forge a line with one of their own.
fn printable(mut text: String, longest: usize) -> String {
    if let Some((cut, _)) = text.char_indices().nth(longest) {
        text.truncate(cut);
        text.push_str("...");
    }
    if text.contains(char::is_control) {
        text = text.replace(char::is_control, "?");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dialect::hub::stopwatch::Stopwatch;

    #[test]
    fn each_is_noted_once_and_many_are_counted() {
        let began = Stopwatch::start();
        let mut losses = Losses::default();
        for _ in 0..2 {
            (0..60_000).for_each(|at| losses.add(format!("tools[{at}]"), "why"));
        }
        assert_eq!(losses.iter().count(), MOST + 1);
        let paths = losses.paths();
        assert_eq!((paths[0], paths[63], paths[64]), ("tools[0]", "tools[63]", "and 59936 more"));
        assert_eq!(losses.refusal().unwrap().path, "tools[0]");
        assert!(began.time().as_secs() < 4, "{:?}", began.time());
        let mut few = Losses::default();
        few.add("a", "x");
        few.add("a", "y");
        few.add("a", "x");
        assert_eq!((few.iter().count(), few.paths()), (2, vec!["a"]));
    }

    #[test]
    fn a_clients_name_forges_no_line() {
        let mut losses = Losses::default();
        losses.add(format!("a\r\nx: y\u{85}{}", "ä".repeat(200)), "b\n\u{1b}[31m");
        let loss = losses.iter().next().unwrap();
        assert_eq!(loss.path, format!("a??x: y?{}...", "ä".repeat(92)));
        assert_eq!(loss.why, "b??[31m");
    }
}
