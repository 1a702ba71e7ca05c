//! The effects of a call, and what they returned.
//!
//! A call that takes too long on a serving thread is started again on another one. What it has done
//! until then is not done again: the new run gets the recorded results.

use std::{collections::VecDeque, sync::Arc};

/// Largest number of effects that a run on a serving thread records. With more it goes on elsewhere.
const MOST: usize = 1000;

/// Largest number of bytes that are recorded.
const MOST_BYTES: usize = 1 << 20;

/// An effect, or something whose result changes from one time to the next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    Now,
    /// The start of the call's random numbers.
    Seed,
    Uuid,
    Store(StoreCall),
    Http(HttpCall),
}

impl Effect {
    fn size(&self) -> usize {
        match self {
            Self::Store(StoreCall::Set { value, .. }) => value.len(),
            _ => 0,
        }
    }
}

/// A call of `store`. Durations are in milliseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreCall {
    Get { key: String },
    Set { key: String, value: Vec<u8>, ttl: Option<u64> },
    Incr { key: String, by: i64, ttl: Option<u64> },
    Expire { key: String, ttl: u64 },
    Delete { key: String },
}

impl StoreCall {
    pub fn key(&self) -> &str {
        match self {
            Self::Get { key }
            | Self::Set { key, .. }
            | Self::Incr { key, .. }
            | Self::Expire { key, .. }
            | Self::Delete { key } => key,
        }
    }
}

/// A call of `http`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpCall {
    pub method: String,
    pub url: String,
    pub headers: Vec<(String, Vec<u8>)>,
    pub body: Option<Vec<u8>>,
    /// In milliseconds, if it is less than the configured one.
    pub timeout: Option<u64>,
}

/// The answer to a [`HttpCall`].
#[derive(Debug, PartialEq, Eq)]
pub struct HttpReply {
    pub status: u16,
    pub headers: Vec<(String, Vec<u8>)>,
    pub body: Vec<u8>,
}

/// The result of an effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Nothing,
    /// Unix time in milliseconds, a seed.
    Number(u64),
    Integer(i64),
    Done(bool),
    Text(Arc<[u8]>),
    Http(Arc<HttpReply>),
    /// What the script gets as an error.
    Failed(Arc<str>),
}

impl Outcome {
    fn size(&self) -> usize {
        64 + match self {
            Self::Text(text) => text.len(),
            Self::Http(reply) => reply.body.len(),
            _ => 0,
        }
    }
}

/// See above.
#[derive(Debug, Default)]
pub struct Journal {
    recorded: VecDeque<(Effect, Outcome)>,
    bytes: usize,
}

impl Journal {
    pub fn clear(&mut self) {
        if !self.recorded.is_empty() {
            self.recorded.clear();
        }
        self.bytes = 0;
    }

    /// Records an effect; `false` if there is no room for more.
    #[must_use]
    pub fn record(&mut self, effect: Effect, outcome: Outcome) -> bool {
        self.bytes += effect.size() + outcome.size();
        self.recorded.push_back((effect, outcome));
        self.recorded.len() < MOST && self.bytes < MOST_BYTES
    }

    /// The recorded result of the first effect like this one, which is used up. The order of unlike
    /// effects may differ, because the order of Lua's tables does.
    pub fn replay(&mut self, effect: &Effect) -> Option<Outcome> {
        if self.recorded.is_empty() {
            return None;
        }
        let at = self.recorded.iter().position(|(known, _)| known == effect)?;
        self.recorded.remove(at).map(|(_, outcome)| outcome)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_used_once_and_in_order() {
        let mut journal = Journal::default();
        let incr =
            |key: &str| Effect::Store(StoreCall::Incr { key: key.to_owned(), by: 1, ttl: None });
        for (effect, n) in [(incr("a"), 1), (incr("b"), 1), (incr("a"), 2)] {
            assert!(journal.record(effect, Outcome::Integer(n)));
        }
        assert_eq!(journal.replay(&Effect::Now), None);
        assert_eq!(journal.replay(&incr("b")), Some(Outcome::Integer(1)));
        assert_eq!(journal.replay(&incr("a")), Some(Outcome::Integer(1)));
        assert_eq!(journal.replay(&incr("a")), Some(Outcome::Integer(2)));
        assert_eq!(journal.replay(&incr("a")), None);
    }

    #[test]
    fn a_journal_is_bounded() {
        let mut journal = Journal::default();
        let n = (0..).find(|_| !journal.record(Effect::Now, Outcome::Number(1)));
        assert!(n.unwrap() < 2 * MOST);
        let mut journal = Journal::default();
        let text: Arc<[u8]> = vec![0; 64 << 10].into();
        let n = (0..).find(|_| !journal.record(Effect::Now, Outcome::Text(Arc::clone(&text))));
        assert!(n.unwrap() < 20);
    }
}
