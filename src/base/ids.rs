//! Request ids: taken from the client when they are harmless, generated otherwise.

use std::fmt;

use http::HeaderValue;

use super::render;

/// The longest client-supplied `X-Request-Id` that is accepted, in bytes.
pub const MAX_LEN: usize = 128;

/// The id of one request: sent to the backend, echoed to the client, and written into the
/// access log and the usage record. It is stored as a header value, which is shared and not copied.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RequestId(HeaderValue);

impl RequestId {
    /// Accepts the client's value if it is 1 to [`MAX_LEN`] bytes of `[A-Za-z0-9._:-]`.
    ///
    /// Anything else (control characters, quotes, spaces, non-ASCII) could break out of a log line
    /// or of a header and is not accepted.
    pub fn accept(value: &[u8]) -> Option<Self> {
        let harmless = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b':' | b'-');
        if value.is_empty() || value.len() > MAX_LEN || !value.iter().all(harmless) {
            return None;
        }
        HeaderValue::from_bytes(value).ok().map(Self)
    }

    /// An id of 128 random bits: `req_` and 32 hexadecimal digits.
    pub fn from_random(bits: u128) -> Self {
        let mut text = Vec::with_capacity(36);
        text.extend_from_slice(b"req_");
        render::hex(&mut text, bits);
        let value = HeaderValue::from_maybe_shared(bytes::Bytes::from(text));
        Self(value.unwrap_or(HeaderValue::from_static("req_")))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        // It is ASCII; `to_str` would look at each byte again.
        str::from_utf8(self.0.as_bytes()).unwrap_or_default()
    }

    /// The id as a header value; cloning it copies nothing.
    pub fn header(&self) -> HeaderValue {
        self.0.clone()
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn harmless_values_are_taken_over() {
        assert_eq!(RequestId::accept(b"my-req.4_2:a").unwrap().as_str(), "my-req.4_2:a");
        assert!(RequestId::accept(&[b'a'; MAX_LEN]).is_some());
    }

    #[test]
    fn harmful_values_are_refused() {
        for bad in [&b""[..], b"a b", b"a\"b", b"a\r\nb", "é".as_bytes(), &[b'a'; MAX_LEN + 1]] {
            assert!(RequestId::accept(bad).is_none(), "{bad:?}");
        }
    }

    #[test]
    fn made_ids_are_acceptable_ids() {
        let id = RequestId::from_random(7);
        assert_eq!(id.as_str(), "req_00000000000000000000000000000007");
        assert_eq!(RequestId::accept(id.as_str().as_bytes()), Some(id));
    }
}
