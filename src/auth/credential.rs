//! The key that a request shows.

use http::{HeaderMap, HeaderName, HeaderValue, header};
use sha2::{Digest, Sha256};

/// How the value of `Authorization` begins.
const BEARER: &str = "bearer ";

/// A key, in the header field in which it came: shared, not copied.
pub struct Credential {
    field: HeaderValue,
    /// Where the key begins in the field.
    start: usize,
}

impl Credential {
    /// The key in the first of these fields that holds one. `Authorization` holds it as a bearer
    /// token, every other field bare.
    pub fn find(headers: &HeaderMap, names: &[HeaderName]) -> Option<Self> {
        names.iter().find_map(|name| {
            let field = headers.get(name)?;
            let text = field.to_str().ok()?;
            let start = match *name == header::AUTHORIZATION {
                true => {
                    let scheme = text.get(..BEARER.len())?;
                    if !scheme.eq_ignore_ascii_case(BEARER) {
                        return None;
                    }
                    BEARER.len()
                }
                false => 0,
            };
            let found = Self { field: field.clone(), start };
            (!found.expose().is_empty()).then_some(found)
        })
    }

    /// The key itself, for stores, records and scripts.
    pub fn expose(&self) -> &str {
        self.field.to_str().unwrap_or_default()[self.start..].trim()
    }

    /// The SHA-256 of the key: under this it is looked up and remembered.
    pub fn digest(&self) -> KeyDigest {
        digest(self.expose())
    }
}

/// The SHA-256 of a key.
pub type KeyDigest = [u8; 32];

/// The SHA-256 of a key. To look a key up by it tells nothing about other keys by the time it takes.
pub fn digest(key: impl AsRef<[u8]>) -> KeyDigest {
    Sha256::digest(key).into()
}

/// Identity of a key that has none: enough of its digest to tell keys apart.
pub fn key_id(digest: &KeyDigest) -> String {
    let hex: String = digest[..8].iter().map(|b| format!("{b:02x}")).collect();
    format!("key_{hex}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found_in_the_order_of_the_names() {
        let names = [header::AUTHORIZATION, HeaderName::from_static("x-api-key")];
        let find = |fields: &[(&'static str, &'static str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in fields {
                headers.insert(*name, HeaderValue::from_static(value));
            }
            Credential::find(&headers, &names).map(|c| c.expose().to_owned())
        };
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(find(&[("authorization", "Bearer sk-a"), ("x-api-key", "sk-b")]), some("sk-a"));
        assert_eq!(find(&[("authorization", "bearer  sk-a ")]), some("sk-a"));
        assert_eq!(find(&[("authorization", "Basic eDp5"), ("x-api-key", "sk-b")]), some("sk-b"));
        assert_eq!(find(&[("authorization", "Bearer "), ("x-api-key", "sk-b")]), some("sk-b"));
        assert_eq!(find(&[("x-api-key", " ")]), None);
        assert_eq!(find(&[]), None);
    }

    #[test]
    fn an_id_does_not_tell_the_key() {
        assert_eq!(key_id(&digest("sk-a")), key_id(&digest("sk-a")));
        assert_ne!(key_id(&digest("sk-a")), key_id(&digest("sk-b")));
        assert_eq!(key_id(&digest("sk-a")).len(), 20);
    }
}
