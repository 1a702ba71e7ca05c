//! Envelopes of state: what the issuer of reasoning wants back travels through a client of another
//! language in a slot that the client repeats. The gateway keeps nothing.
//!
//! `lp1.ISSUER.LANGUAGE.BASE64URL`. The issuer is the domain of backends that can read the state;
//! characters other than `[A-Za-z0-9_-]` are percent-encoded in it.

use std::sync::LazyLock;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use memchr::memmem::Finder;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use super::request::State;

const PREFIX: &str = "lp1.";

/// Whether a text may have an envelope in it. The envelope is a string, or a value in one.
pub fn is_in(text: &[u8]) -> bool {
    static NEEDLE: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\"lp1."));
    NEEDLE.find(text).is_some()
}

const ISSUER: &AsciiSet = &NON_ALPHANUMERIC.remove(b'_').remove(b'-');

/// The text that a client gets for a state of a backend: bare where the client's language is that of
/// the issuer, else in an envelope.
pub fn wrap(state: &State, client: &str) -> String {
    if state.language == client {
        return state.value.clone();
    }
    let issuer = utf8_percent_encode(state.issuer.as_deref().unwrap_or(""), ISSUER);
    let value = URL_SAFE_NO_PAD.encode(&state.value);
    format!("{PREFIX}{issuer}.{}.{value}", state.language)
}

/// What a client has sent back in the slot of its language. A text that is no envelope is a state of
/// the vendor of that language.
pub fn unwrap(text: &str, client: &str) -> State {
    let opened = || {
        let mut pieces = text.strip_prefix(PREFIX)?.splitn(3, '.');
        let (issuer, language, value) = (pieces.next()?, pieces.next()?, pieces.next()?);
        let issuer = percent_decode_str(issuer).decode_utf8().ok()?.into_owned();
        let value = String::from_utf8(URL_SAFE_NO_PAD.decode(value).ok()?).ok()?;
        Some(State { issuer: Some(issuer), language: language.to_owned(), value })
    };
    opened().unwrap_or_else(|| State {
        issuer: None,
        language: client.to_owned(),
        value: text.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_wrapped_comes_back(issuer in any::<String>(), value in any::<String>()) {
            let state = State { issuer: Some(issuer), language: "messages".into(), value };
            let text = wrap(&state, "chat");
            prop_assert!(text.bytes().all(|b| b.is_ascii_graphic()));
            prop_assert_eq!(unwrap(&text, "chat"), state);
        }

        #[test]
        fn what_is_no_envelope_is_the_vendors(text in any::<String>()) {
            let state = unwrap(&text, "messages");
            prop_assert_eq!(wrap(&state, "messages"), text);
        }
    }
}
