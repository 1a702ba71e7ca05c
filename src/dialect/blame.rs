//! Whose fault an engine's error is, by its code and type.

use super::meter::Blame;
use crate::wire::json;

/// Words in the `code` or the type of errors that are the client's: OpenAI's, Anthropic's, vLLM's, TGI's.
const CLIENT: [&str; 7] = [
    "invalid",
    "badrequest",
    "notfound",
    "validation",
    "contextlength",
    "unprocessable",
    "toolarge",
];

/// Words of errors that are the engine's.
const ENGINE: [&str; 6] =
    ["internal", "server", "unavailable", "overloaded", "generation", "timeout"];

/// Reads the document of an error event.
pub fn of(document: &[u8]) -> Blame {
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
            Ok(408 | 429 | 500..) => return Blame::Engine,
            Ok(400..) => return Blame::Client,
            Ok(_) => {}
            Err(_) if CLIENT.iter().any(|known| word.contains(known)) => return Blame::Client,
            Err(_) if ENGINE.iter().any(|known| word.contains(known)) => return Blame::Engine,
            Err(_) => {}
        }
    }
    Blame::Unknown
}
