//! Header fields that tell clients the states of their limits.

use std::fmt::{self, Write};

use bytes::Bytes;
use http::HeaderValue;
use pingora::http::ResponseHeader;

use crate::base::limits::Standing;

/// Header fields whose values share one allocation.
#[derive(Default)]
pub struct LimitHeaders {
    values: String,
    fields: Vec<(&'static str, usize)>,
}

impl LimitHeaders {
    fn add(&mut self, name: &'static str, value: fmt::Arguments<'_>) {
        // Writing to a string does not fail.
        let _ = self.values.write_fmt(value);
        self.fields.push((name, self.values.len()));
    }

    /// Limit, remaining and reset of one limit.
    pub fn limit(&mut self, names: [&'static str; 3], state: Standing, reset: fmt::Arguments<'_>) {
        self.add(names[0], format_args!("{}", state.limit));
        self.add(names[1], format_args!("{}", state.left));
        self.add(names[2], reset);
    }

    /// Writes them into the head of an answer.
    ///
    /// # Errors
    /// None in practice: names and values are legal.
    pub fn insert(self, head: &mut ResponseHeader) -> pingora::Result<()> {
        let values = Bytes::from(self.values);
        let mut start = 0;
        for (name, end) in self.fields {
            if let Ok(value) = HeaderValue::from_maybe_shared(values.slice(start..end)) {
                head.insert_header(name, value)?;
            }
            start = end;
        }
        Ok(())
    }

    #[cfg(test)]
    pub fn lines(self) -> Vec<String> {
        let mut head = ResponseHeader::build(200, None).unwrap();
        self.insert(&mut head).unwrap();
        let line = |(name, value): (&http::HeaderName, &HeaderValue)| {
            format!("{name}: {}", value.to_str().unwrap())
        };
        head.headers.iter().map(line).collect()
    }
}
