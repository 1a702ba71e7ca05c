//! Whose fault an error event tells of.

use crate::wire::json;

/// Whose fault an error event tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// The client's: its request cannot be served anywhere.
    Client,
    /// The engine's.
    Engine,
    /// It does not say.
    Nobody,
}

impl Blame {
    /// Words in the `code` or the type of errors that are the client's: OpenAI's, vLLM's, TGI's.
    const CLIENT: [&str; 6] =
        ["invalid", "badrequest", "notfound", "validation", "contextlength", "unprocessable"];
    /// And of those that are not.
    const ENGINE: [&str; 6] =
        ["internal", "server", "unavailable", "overloaded", "generation", "timeout"];

    /// Reads the document of an error event.
    pub fn of(document: &[u8]) -> Self {
        let text = |object: &[u8], name: &str| {
            let value = object.get(json::find(object, name)?.value)?;
            let text = String::from_utf8_lossy(value).to_ascii_lowercase();
            Some(text.chars().filter(char::is_ascii_alphanumeric).collect::<String>())
        };
        let error = json::find(document, "error").map_or(&b""[..], |m| &document[m.value]);
        // TGI has its type beside the error, and `{"object":"error"}` has all of it there.
        let words = [
            text(error, "code"),
            text(error, "type"),
            text(document, "error_type"),
            text(document, "code"),
            text(document, "type"),
        ];
        for word in words.into_iter().flatten() {
            match word.parse::<u16>() {
                Ok(408 | 429 | 500..) => return Self::Engine,
                Ok(400..) => return Self::Client,
                Ok(_) => {}
                Err(_) if Self::CLIENT.iter().any(|known| word.contains(known)) => {
                    return Self::Client;
                }
                Err(_) if Self::ENGINE.iter().any(|known| word.contains(known)) => {
                    return Self::Engine;
                }
                Err(_) => {}
            }
        }
        Self::Nobody
    }
}
