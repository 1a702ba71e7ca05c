//! Operations: what a client can ask for, at which path.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

/// One operation.
#[derive(Debug, PartialEq, Eq)]
pub struct Operation {
    /// The path, compared segment by segment; also its label in metrics. `{model}` stands for the
    /// name of a model, which may take several segments (`org/name`); a suffix may follow it in
    /// the last segment, as in `/v1beta/models/{model}:generateContent`. `{id}` stands for one
    /// segment. A path has at most one of them, and one without any takes precedence.
    pub path: &'static str,
    /// Allowed methods, as `Allow` lists them.
    pub allow: &'static str,
    /// What stands there.
    pub kind: Kind,
}

/// What stands at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Passed on to a backend.
    Inference {
        /// It generates text, which may be streamed. Embeddings do not.
        generates: bool,
    },
    /// Passed on to a backend, which counts the tokens of a request and generates nothing.
    CountTokens,
    /// An object that a backend has stored, a response for instance: only that backend has it.
    Stored,
    /// The merged list of models.
    Models,
    /// One model of the list.
    Model,
    /// Liveness.
    Health,
    /// Readiness.
    Ready,
    /// Metrics.
    Metrics,
}

impl Kind {
    /// Whether requests are passed on to backends, any of those that have the model.
    pub fn is_inference(self) -> bool {
        matches!(self, Self::Inference { .. } | Self::CountTokens)
    }

    /// Whether answers consist of generated text.
    pub fn generates(self) -> bool {
        self == Self::Inference { generates: true }
    }
}

/// The placeholder for a model's name in a path.
const MODEL: &str = "{model}";

/// The placeholder for one segment of a path.
const ID: &str = "{id}";

impl Operation {
    /// Whether it stands at this path.
    pub fn is_at(&self, path: &str) -> bool {
        self.path == path || self.model_in(path).is_some() || self.id_in(path).is_some()
    }

    /// The name of the model in a path, percent-decoded; `None` if the operation is not at this
    /// path, or its path names no model.
    pub fn model_in<'a>(&self, path: &'a str) -> Option<Cow<'a, str>> {
        self.placed(MODEL, path).map(decoded)
    }

    /// The same for an id, which is one segment.
    pub fn id_in<'a>(&self, path: &'a str) -> Option<Cow<'a, str>> {
        self.placed(ID, path).filter(|id| !id.contains('/')).map(decoded)
    }

    /// What stands in a path in the place of a placeholder.
    fn placed<'a>(&self, placeholder: &str, path: &'a str) -> Option<&'a str> {
        let (before, after) = self.path.split_once(placeholder)?;
        let placed = path.strip_prefix(before)?.strip_suffix(after)?;
        (!placed.is_empty()).then_some(placed)
    }

    /// Whether it takes requests with this method.
    pub fn allows(&self, method: &str) -> bool {
        self.allow.split(", ").any(|allowed| allowed == method)
    }
}

fn decoded(text: &str) -> Cow<'_, str> {
    percent_decode_str(text).decode_utf8_lossy()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_one_segment() {
        let at = |pattern| Operation { path: pattern, allow: "GET", kind: Kind::Stored };
        for (pattern, path, id) in [
            ("/v1/responses/{id}", "/v1/responses/resp_1", Some("resp_1")),
            ("/v1/responses/{id}", "/v1/responses/a%2Fb", Some("a/b")),
            ("/v1/responses/{id}", "/v1/responses/a/b", None),
            ("/v1/responses/{id}", "/v1/responses/", None),
            ("/v1/responses/{id}", "/v1/responses", None),
            ("/v1/responses/{id}/cancel", "/v1/responses/a/cancel", Some("a")),
            ("/v1/responses/{id}/cancel", "/v1/responses/a", None),
            ("/v1/responses/{id}/cancel", "/v1/responses//cancel", None),
            ("/v1/responses/{id}/cancel", "/v1/responses/cancel", None),
        ] {
            assert_eq!(at(pattern).id_in(path).as_deref(), id, "{pattern} {path}");
            assert_eq!(at(pattern).is_at(path), id.is_some(), "{pattern} {path}");
            assert_eq!(at(pattern).model_in(path), None);
        }
    }

    #[test]
    fn a_model_may_stand_anywhere_in_a_path() {
        let at = |pattern| Operation { path: pattern, allow: "POST", kind: Kind::Model };
        for (pattern, path, model) in [
            ("/v1/models/{model}", "/v1/models/a%20b", Some("a b")),
            ("/v1/models/{model}", "/v1/models/Qwen/Qwen3-8B", Some("Qwen/Qwen3-8B")),
            ("/v1/models/{model}", "/v1/models/", None),
            ("/v1/models/{model}", "/v1/modelsx", None),
            ("/m/{model}:go", "/m/a/b:go", Some("a/b")),
            ("/m/{model}:go", "/m/a:stop", None),
            ("/m/{model}:go", "/m/:go", None),
            ("/d/{model}/chat", "/d/gpt/chat", Some("gpt")),
            ("/d/{model}/chat", "/d/chat", None),
        ] {
            assert_eq!(at(pattern).model_in(path).as_deref(), model, "{pattern} {path}");
            assert_eq!(at(pattern).is_at(path), model.is_some());
        }
    }
}
