//! What a translation could not carry over: dropped with a warning, or refused.

use std::fmt;

/// What was dropped of a request or changed in it, in the order in which it was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Losses(Vec<Loss>);

/// One thing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    /// Where it stood, in the client's words: `tools[2]`, `top_k`, `messages[3].content[0]`.
    pub path: String,
    /// What happened to it and why, as a clause: `the backend's language has no such field`.
    pub why: String,
}

impl Losses {
    /// Notes one.
    pub fn add(&mut self, path: impl Into<String>, why: impl Into<String>) {
        let loss = Loss { path: path.into(), why: why.into() };
        if !self.0.contains(&loss) {
            self.0.push(loss);
        }
    }

    /// Nothing was lost.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Loss> {
        self.0.iter()
    }

    /// Adds those of another step.
    pub fn append(&mut self, others: Self) {
        for loss in others.0 {
            self.add(loss.path, loss.why);
        }
    }

    /// The places, as the header field `x-llmproxy-dropped` lists them: each once, without indexes,
    /// which a reader of logs cannot count by.
    pub fn paths(&self) -> Vec<&str> {
        let mut paths: Vec<&str> = Vec::new();
        for loss in &self.0 {
            if !paths.contains(&loss.path.as_str()) {
                paths.push(&loss.path);
            }
        }
        paths
    }

    /// The first one as a refusal: where losses are not allowed.
    pub fn refusal(&self) -> Option<Refused> {
        self.0.first().map(|loss| Refused::new(loss.path.clone(), loss.why.clone()))
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
