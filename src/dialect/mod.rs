//! API languages. Everything that depends on a client's or a backend's API stands here: which
//! operations there are, what a request's body says, how its answer is metered, and the wording of
//! errors, limits, credentials and model lists.
//!
//! A language is one file (or folder) that implements [`Dialect`], and one line in [`DIALECTS`].
//! The list of operations is an allow-list: a path that no language lists does not exist for
//! clients.

mod catalog;
mod error_wording;
mod glance;
pub mod hub;
mod language;
mod languages;
mod limit_headers;
mod meter;
mod model_list;
pub mod openai;
mod operation;
mod passage;
mod preprocess;
#[cfg(test)]
#[path = "../../tests/languages/toy.rs"]
pub mod toy;
mod translation;

pub use self::{
    catalog::{
        DIALECTS, Match, Protocol, aliases, credential_fields, find, is_limit_header, label, names,
        operation_count,
    },
    error_wording::ErrorWording,
    glance::{Glance, UsageRequest, Want},
    language::Dialect,
    languages::Languages,
    limit_headers::LimitHeaders,
    meter::{Blame, Meter, Metering, Progress},
    model_list::Model,
    operation::{Kind, Operation},
    passage::{Passage, PieceKind, Pushed},
    translation::{Translation, Untranslatable},
};
