//! A request as it was translated for backends.

use std::sync::Arc;

use bytes::Bytes;

use crate::{
    dialect::{
        Dialect, Translation,
        hub::{Losses, Refused, Request},
    },
    runtime::explain::LanguageReason,
};

/// A request in a backend's language.
pub struct TranslatedRequest {
    /// That language.
    pub language: &'static dyn Dialect,
    /// The path of its operation; `None`: the client's.
    pub path: Option<&'static str>,
    /// Why it is this one.
    pub reason: LanguageReason,
    /// For the answer; `None`: it is in the client's language.
    pub answer: Option<Translation>,
    /// What of the client's request is not in it.
    pub losses: Losses,
}

/// The client's request as it was read for translations, and what has come of it.
#[derive(Default)]
pub struct Translations {
    /// What was read, or why it cannot be.
    pub read: Option<Result<Arc<Request>, Refused>>,
    made: Vec<Made>,
}

/// One translation. Backends differ in what they can do, so each has its own.
struct Made {
    /// Its name in the configuration: all its addresses get the same.
    backend: String,
    model: Option<Arc<str>>,
    request: Arc<TranslatedRequest>,
    body: Bytes,
}

impl Translations {
    /// The one that was made for this backend.
    pub fn find(&self, backend: &str, model: Option<&str>) -> Option<Arc<TranslatedRequest>> {
        self.made(backend, model).map(|made| Arc::clone(&made.request))
    }

    /// Its body; empty once it is not needed any more.
    pub fn body(&self, backend: &str, model: Option<&str>) -> Bytes {
        self.made(backend, model).map(|made| made.body.clone()).unwrap_or_default()
    }

    fn made(&self, backend: &str, model: Option<&str>) -> Option<&Made> {
        let same = |made: &&Made| made.backend == backend && made.model.as_deref() == model;
        self.made.iter().find(same)
    }

    /// Keeps one.
    pub fn keep(
        &mut self,
        backend: &str,
        model: Option<Arc<str>>,
        request: Arc<TranslatedRequest>,
        body: Bytes,
    ) {
        self.made.push(Made { backend: backend.to_owned(), model, request, body });
    }

    /// Frees what is not needed any more.
    pub fn forget(&mut self) {
        *self = Self::default();
    }
}
