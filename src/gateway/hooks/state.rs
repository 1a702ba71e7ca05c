//! What scripts and guards leave in a request.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use serde_json::{Map, Value};
use tokio::task::JoinHandle;

use crate::{
    base::{ModelPattern, lock},
    guards::{Selected, Vault, Verdict},
    hooks::Answer,
    runtime::explain::KeptHook,
};

/// The state of one request's scripts; there is none where the configuration has no scripts.
#[derive(Default)]
pub struct RequestHooks {
    /// Tags that scripts have set, for conditions, records and metrics.
    pub tags: Vec<String>,
    /// For records.
    pub metadata: Map<String, Value>,
    /// The answer that a script gives in place of a backend's.
    pub answer: Option<Answer>,
    /// The client's body, for stages that run when it may be gone.
    pub kept: Option<Bytes>,
    /// The present body, parsed.
    pub parsed: Option<Arc<Value>>,
    /// The body has changed since it was last looked at.
    pub changed: bool,
    /// The model that is asked for in place of the client's.
    pub model: Option<Arc<str>>,
    /// The models that the caller may use, by each script that has narrowed them.
    pub models: Vec<Vec<ModelPattern>>,
    /// How many requests this one counts as.
    pub weight: Option<u64>,
    /// What ran, for `/admin/v1/explain`.
    pub trace: Vec<KeptHook>,
    /// What guards have to do with the answer.
    pub guards: GuardState,
    /// What became of the answer on its way to the client.
    pub report: Option<Arc<Mutex<AnswerReport>>>,
}

/// What guards have to do with the answer.
#[derive(Default)]
pub struct GuardState {
    pub selected: Selected,
    /// What the answer gets back.
    pub vault: Option<Vault>,
    /// Services that are asked while a backend answers.
    pub beside: Vec<Asked>,
}

/// A question to a service that is asked beside the request; it is given up when this is dropped.
pub struct Asked(JoinHandle<Verdict>);

impl Asked {
    /// Asks.
    pub fn begin(question: impl Future<Output = Verdict> + Send + 'static) -> Self {
        Self(tokio::spawn(question))
    }

    /// Waits for what the service says; `None` if the question itself has failed. It can be broken off,
    /// and called again; after an answer it must not be called again.
    pub async fn verdict(&mut self) -> Option<Verdict> {
        (&mut self.0).await.ok()
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What scripts have done with an answer on its way to the client. Written by the client's session,
/// read when the request ends.
#[derive(Default)]
pub struct AnswerReport {
    /// The status that the client got, if a script has changed it.
    pub status: Option<u16>,
    /// The backend that answers.
    pub backend_url: Option<Arc<str>>,
    /// The plain answer that the client got, if a later script reads it.
    pub body: Option<Bytes>,
    /// What ran.
    pub trace: Vec<KeptHook>,
    /// Why a script or a guard has ended the answer.
    pub stopped: Option<String>,
}

impl RequestHooks {
    /// A script has ended the answer.
    pub fn has_stopped(&self) -> bool {
        self.report.as_ref().is_some_and(|report| lock(report).stopped.is_some())
    }

    /// Keeps what a stage after this one may read.
    pub fn keep(&mut self, body: &Bytes) {
        self.kept.get_or_insert_with(|| body.clone());
    }
}
