//! The API key of a request.

use std::ops::Range;

use http::{HeaderMap, HeaderName, HeaderValue, header};
use ring::digest::SHA256;

const BEARER: &str = "bearer ";

/// A key inside of its header field, which is shared and not copied.
pub struct Credential {
    field: HeaderValue,
    /// Position of the key in the field.
    range: Range<usize>,
}

impl Credential {
    /// The key in the first of these fields that holds one. `Authorization` holds it as a bearer
    /// token, every other field holds it bare. A field may occur several times or hold several
    /// values, because proxies join them: the first key is used.
    pub fn find(headers: &HeaderMap, names: &[HeaderName]) -> Option<Self> {
        names.iter().find_map(|name| {
            let bearer = *name == header::AUTHORIZATION;
            headers.get_all(name).iter().find_map(|field| {
                let text = field.to_str().ok()?;
                let range = values(text, bearer).find_map(|value| key(text, value, bearer))?;
                Some(Self { field: field.clone(), range })
            })
        })
    }

    /// The key itself, for stores, records and scripts.
    pub fn expose(&self) -> &str {
        &self.field.to_str().unwrap_or_default()[self.range.clone()]
    }

    /// The SHA-256 of the key, for lookups and caches.
    pub fn digest(&self) -> KeyDigest {
        digest(self.expose())
    }
}

/// Positions of the values in a field. A comma may be part of a key: it separates values only before
/// another scheme, or before a space where there are no schemes.
fn values(text: &str, schemes: bool) -> impl Iterator<Item = Range<usize>> {
    let mut start = Some(0);
    std::iter::from_fn(move || {
        let from = start?;
        let ends = |at: &usize| {
            let rest = &text[at + 1..];
            let next = rest.trim_start();
            match schemes {
                true => is_scheme(next),
                false => next.len() < rest.len(),
            }
        };
        let end = text[from..].match_indices(',').map(|(at, _)| from + at).find(ends);
        start = end.map(|end| end + 1);
        Some(from..end.unwrap_or(text.len()))
    })
}

/// Whether a value begins with an authentication scheme: a word before a space.
fn is_scheme(value: &str) -> bool {
    let Some((word, _)) = value.split_once(' ') else {
        return false;
    };
    !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

/// Position of the key in a value; `None` if it holds none.
fn key(text: &str, value: Range<usize>, bearer: bool) -> Option<Range<usize>> {
    let untrimmed = &text[value.clone()];
    let mut start = value.start + (untrimmed.len() - untrimmed.trim_start().len());
    if bearer {
        let scheme = text.get(start..(start + BEARER.len()).min(value.end))?;
        if !scheme.eq_ignore_ascii_case(BEARER) {
            return None;
        }
        start += BEARER.len();
    }
    let untrimmed = &text[start..value.end];
    start += untrimmed.len() - untrimmed.trim_start().len();
    let length = untrimmed.trim().len();
    (length > 0).then_some(start..start + length)
}

/// The SHA-256 of a key.
pub type KeyDigest = [u8; 32];

/// The SHA-256 of a key. The time of a lookup by digest reveals nothing about other keys.
pub fn digest(key: impl AsRef<[u8]>) -> KeyDigest {
    let digest = ring::digest::digest(&SHA256, key.as_ref());
    let mut bytes = KeyDigest::default();
    bytes.copy_from_slice(digest.as_ref());
    bytes
}

/// The id of a key whose data has none: a part of its digest.
pub fn key_id(digest: &KeyDigest) -> String {
    let hex: String = digest[..8].iter().map(|b| format!("{b:02x}")).collect();
    format!("key_{hex}")
}

#[cfg(test)]
mod tests {
    use sha2::Digest;

    use super::*;
    use crate::dialect::credential_fields;

    #[test]
    fn keys_are_found_in_the_order_of_the_names() {
        let find = |fields: &[(&'static str, &'static str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in fields {
                headers.append(*name, HeaderValue::from_static(value));
            }
            Credential::find(&headers, credential_fields()).map(|c| c.expose().to_owned())
        };
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(find(&[("authorization", "Bearer sk-a"), ("x-api-key", "sk-b")]), some("sk-a"));
        assert_eq!(find(&[("authorization", "bearer  sk-a ")]), some("sk-a"));
        assert_eq!(find(&[("authorization", "Basic eDp5"), ("x-api-key", "sk-b")]), some("sk-b"));
        assert_eq!(find(&[("authorization", "Bearer "), ("x-api-key", "sk-b")]), some("sk-b"));
        assert_eq!(find(&[("api-key", "sk-c"), ("x-api-key", "sk-b")]), some("sk-b"));
        assert_eq!(find(&[("api-key", "sk-c")]), some("sk-c"));
        assert_eq!(find(&[("x-api-key", " ")]), None);
        assert_eq!(find(&[]), None);
    }

    #[test]
    fn of_several_values_the_first_that_is_a_key_counts() {
        for (values, key) in [
            (&["Bearer sk-a", "Bearer sk-b"][..], Some("sk-a")),
            (&["Basic eDp5", "Bearer sk-b"], Some("sk-b")),
            (&["", "Bearer sk-b"], Some("sk-b")),
            (&["Bearer ", "Bearer sk-b"], Some("sk-b")),
            (&["Bearer", "bearer sk-b"], Some("sk-b")),
            (&["Bearer sk-a, Bearer sk-b"], Some("sk-a")),
            (&["Bearer sk-a,Bearer sk-b"], Some("sk-a")),
            (&["Basic eDp5, Bearer sk-b"], Some("sk-b")),
            (&["Bearer , Bearer sk-b"], Some("sk-b")),
            (&[" ,, Bearer sk-b"], Some("sk-b")),
            // A comma within a key stays.
            (&["Bearer sk-a,b"], Some("sk-a,b")),
            (&["Bearer sk-a,b, Basic eDp5"], Some("sk-a,b")),
            (&["Digest a=b, c=d"], None),
            (&["Digest a=b", "Digest c"], None),
            (&[","], None),
            (&[""], None),
        ] {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::AUTHORIZATION, HeaderValue::from_static(value));
            }
            let found = Credential::find(&headers, credential_fields());
            assert_eq!(found.as_ref().map(Credential::expose), key, "{values:?}");
        }
        for (values, key) in [
            (&["sk-a", "sk-b"][..], Some("sk-a")),
            (&["", "sk-b"], Some("sk-b")),
            (&["sk-a, sk-b"], Some("sk-a")),
            (&[", sk-b"], Some("sk-b")),
            (&["sk-a,b"], Some("sk-a,b")),
        ] {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append("x-api-key", HeaderValue::from_static(value));
            }
            let found = Credential::find(&headers, credential_fields());
            assert_eq!(found.as_ref().map(Credential::expose), key, "{values:?}");
        }
        // What is not text in one of them costs the others nothing.
        let mut headers = HeaderMap::new();
        headers.append(header::AUTHORIZATION, HeaderValue::from_bytes(b"Bearer \xff").unwrap());
        headers.append(header::AUTHORIZATION, HeaderValue::from_static("Bearer sk-b"));
        assert_eq!(Credential::find(&headers, credential_fields()).unwrap().expose(), "sk-b");
    }

    #[test]
    fn an_id_does_not_tell_the_key() {
        assert_eq!(key_id(&digest("sk-a")), key_id(&digest("sk-a")));
        assert_ne!(key_id(&digest("sk-a")), key_id(&digest("sk-b")));
        assert_eq!(key_id(&digest("sk-a")).len(), 20);
        // What stores and logs of other gateways have.
        assert_eq!(digest("sk-a"), <[u8; 32]>::from(sha2::Sha256::digest("sk-a")));
    }
}
