//! Header fields that tell clients the states of their limits.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::base::{limits::Standing, render};

/// Header fields whose values share one allocation.
pub struct LimitHeaders {
    values: Vec<u8>,
    fields: Vec<(HeaderName, usize)>,
}

impl Default for LimitHeaders {
    fn default() -> Self {
        Self { values: Vec::with_capacity(128), fields: Vec::with_capacity(9) }
    }
}

impl LimitHeaders {
    /// Limit, remaining and reset of one limit; `reset` writes the last.
    pub fn limit(
        &mut self,
        names: [HeaderName; 3],
        state: Standing,
        reset: impl FnOnce(&mut Vec<u8>),
    ) {
        let [limit, remaining, restored] = names;
        self.add(limit, |out| render::integer(out, state.limit));
        self.add(remaining, |out| render::integer(out, state.left));
        self.add(restored, reset);
    }

    fn add(&mut self, name: HeaderName, write: impl FnOnce(&mut Vec<u8>)) {
        write(&mut self.values);
        self.fields.push((name, self.values.len()));
    }

    /// Adds them to the fields of a head.
    pub fn insert(self, head: &mut HeaderMap) {
        let values = Bytes::from(self.values);
        head.reserve(self.fields.len());
        let mut start = 0;
        for (name, end) in self.fields {
            if let Ok(value) = HeaderValue::from_maybe_shared(values.slice(start..end)) {
                head.insert(name, value);
            }
            start = end;
        }
    }

    #[cfg(test)]
    pub fn lines(self) -> Vec<String> {
        let mut head = HeaderMap::new();
        self.insert(&mut head);
        let line = |(name, value): (&HeaderName, &HeaderValue)| {
            format!("{name}: {}", value.to_str().unwrap())
        };
        head.iter().map(line).collect()
    }
}
