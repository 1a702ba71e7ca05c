//! API languages. Everything that depends on a client's or a backend's API stands here: which
//! operations there are, what a request's body says, how its answer is metered, and the wording of
//! errors, limits, credentials and model lists.
//!
//! A language is one file (or folder) that implements [`Dialect`], and one line in [`DIALECTS`].
//! The list of operations is an allow-list: a path that no language lists does not exist for
//! clients.

mod anthropic;
mod blame;
mod body;
mod catalog;
mod counting;
mod counts;
mod document;
mod error_wording;
pub mod event;
mod event_words;
mod glance;
#[cfg(test)]
mod goldens;
pub mod hub;
mod language;
mod languages;
mod limit_headers;
mod meter;
mod model_list;
mod model_name;
mod node;
pub mod openai;
mod operation;
mod output;
mod passage;
mod preprocess;
mod responses;
mod system;
pub mod texts;
#[cfg(test)]
#[path = "../../tests/languages/toy.rs"]
pub mod toy;
mod translation;
mod typed_stream;

pub use self::{
    catalog::{
        DIALECTS, Match, Protocol, aliases, claimed, credential_fields, find, is_limit_header,
        label, names, operation_count,
    },
    error_wording::ErrorWording,
    event_words::EventWord,
    glance::{Glance, UsageRequest, Want},
    language::{Dialect, Rewording},
    languages::Languages,
    limit_headers::LimitHeaders,
    meter::{Blame, Failure, Meter, Metering, Progress},
    model_list::{Entry, Model},
    openai::{COMPLETIONS, TOKENIZE},
    operation::{Kind, Operation},
    passage::{Passage, PieceKind, Pushed, Unreadable},
    system::SystemText,
    translation::{Translation, Untranslatable},
};

/// The body of an answer that was captured from a running server.
#[cfg(test)]
fn captured(name: &str) -> Vec<u8> {
    let path = format!("{}/tests/fixtures/{name}.txt", env!("CARGO_MANIFEST_DIR"));
    let raw = std::fs::read(path).unwrap();
    raw[memchr::memmem::find(&raw, b"\r\n\r\n").unwrap() + 4..].to_vec()
}
