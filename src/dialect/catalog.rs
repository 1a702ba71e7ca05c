//! The list of languages, and what stands at a path.

use std::{fmt, sync::LazyLock};

use http::{HeaderMap, HeaderName};

use super::{
    anthropic::Anthropic,
    language::Dialect,
    openai::OpenAi,
    operation::{Kind, Operation},
    responses::Responses,
};
use crate::base::Rejection;

/// All languages, each with one line. The first is the one that errors are worded in where no
/// operation says otherwise.
pub static DIALECTS: &[&dyn Dialect] = &[
    &OpenAi,
    &Responses,
    &Anthropic,
    #[cfg(test)]
    &super::toy::Toy,
];

/// What the gateway answers itself, in any language.
static OWN: [Operation; 3] = [
    Operation { path: "/health", allow: "GET, HEAD", kind: Kind::Health },
    Operation { path: "/ready", allow: "GET, HEAD", kind: Kind::Ready },
    Operation { path: "/metrics", allow: "GET, HEAD", kind: Kind::Metrics },
];

/// The operation of a request, and the language that it belongs to.
#[derive(Clone, Copy)]
pub struct Match {
    /// The client's language.
    pub language: &'static dyn Dialect,
    /// The operation.
    pub operation: &'static Operation,
    /// Its number among the operations of all languages, from 0.
    pub number: usize,
}

impl Match {
    /// What stands at the path.
    pub fn kind(&self) -> Kind {
        self.operation.kind
    }

    /// The label of the path in metrics and records.
    pub fn label(&self) -> &'static str {
        self.operation.path
    }
}

fn all() -> impl Iterator<Item = (&'static dyn Dialect, &'static Operation)> {
    let of = |language: &&'static dyn Dialect| {
        let language = *language;
        language.operations().iter().map(move |operation| (language, operation))
    };
    DIALECTS.iter().flat_map(of).chain(OWN.iter().map(|operation| (DIALECTS[0], operation)))
}

/// What stands at a path.
fn at(path: &str) -> Option<Match> {
    // A path without a placeholder takes precedence, and is soon compared.
    let exact = all().enumerate().find(|(_, (_, operation))| operation.path == path);
    let (number, (language, operation)) =
        exact.or_else(|| all().enumerate().find(|(_, (_, operation))| operation.is_at(path)))?;
    Some(Match { language, operation, number })
}

/// The language of a request by its header fields alone.
pub fn claimed(headers: &HeaderMap) -> &'static dyn Dialect {
    DIALECTS.iter().find(|language| language.claims(headers)).copied().unwrap_or(DIALECTS[0])
}

/// Finds the operation of a request. Lists of models stand at the same path in several languages: the
/// header fields say which one is meant, and also that of what the gateway answers itself.
///
/// # Errors
/// 404 for a path that no language lists, 405 for a method that the path does not take.
pub fn find(method: &str, path: &str, headers: &HeaderMap) -> Result<Match, Rejection> {
    let mut found = at(path).ok_or_else(|| Rejection::unknown_path(method, path))?;
    let shared = !matches!(found.kind(), Kind::Inference { .. } | Kind::CountTokens | Kind::Stored);
    if shared && found.language.name() == DIALECTS[0].name() {
        found.language = claimed(headers);
    }
    if found.operation.allows(method) {
        return Ok(found);
    }
    Err(Rejection::wrong_method(method, path, found.operation.allow))
}

/// How many operations there are, over all languages.
pub fn operation_count() -> usize {
    all().count()
}

/// The label of a path in metrics.
pub fn label(path: &str) -> &'static str {
    at(path).map_or("other", |found| found.label())
}

/// The language of a backend's API, by its name in [`DIALECTS`].
#[derive(Clone, Copy)]
pub struct Protocol(&'static dyn Dialect);

impl Protocol {
    /// The language with this name, or of the vendor with this name.
    pub fn named(name: &str) -> Option<Self> {
        let name = ALIASES.iter().find(|(alias, _)| *alias == name).map_or(name, |(_, name)| name);
        DIALECTS.iter().find(|language| language.name() == name).map(|language| Self(*language))
    }

    /// The language.
    pub fn language(self) -> &'static dyn Dialect {
        self.0
    }
}

impl Default for Protocol {
    fn default() -> Self {
        Self(DIALECTS[0])
    }
}

impl PartialEq for Protocol {
    fn eq(&self, other: &Self) -> bool {
        self.0.name() == other.0.name()
    }
}

impl fmt::Debug for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.name())
    }
}

/// The header fields in which clients of any language send their keys; the first takes precedence.
pub fn credential_fields() -> &'static [HeaderName] {
    static FIELDS: LazyLock<Vec<HeaderName>> = LazyLock::new(|| {
        let mut fields = Vec::new();
        for field in DIALECTS.iter().flat_map(|language| language.credential_fields()) {
            if !fields.contains(field) {
                fields.push(field.clone());
            }
        }
        fields
    });
    &FIELDS
}

/// Whether a header field has the state of a limit, in any language.
pub fn is_limit_header(name: &str) -> bool {
    let mut prefixes = DIALECTS.iter().flat_map(|language| language.limit_prefixes());
    prefixes.any(|prefix| name.starts_with(prefix))
}

/// Names of vendors for their languages, as configurations of other gateways have them.
const ALIASES: [(&str, &str); 2] = [("openai", "chat"), ("anthropic", "messages")];

/// The names of vendors that stand for a language.
pub fn aliases() -> impl Iterator<Item = &'static str> {
    ALIASES.iter().map(|(alias, _)| *alias)
}

/// The names of all languages.
pub fn names() -> impl Iterator<Item = &'static str> {
    DIALECTS.iter().map(|language| language.name())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// The mistakes that a new language can make in its list.
    fn mistakes(languages: &[&'static dyn Dialect]) -> Vec<String> {
        let mut found = Vec::new();
        let mut names = HashSet::new();
        let mut paths: Vec<&str> = OWN.iter().map(|operation| operation.path).collect();
        for language in languages {
            if language.name().is_empty() || !names.insert(language.name()) {
                found.push(format!("name {:?}", language.name()));
            }
            for operation in language.operations() {
                let example = operation.path.replace("{model}", "a-model").replace("{id}", "an-id");
                if paths.iter().any(|known| {
                    let known =
                        Operation { path: known, allow: operation.allow, kind: operation.kind };
                    known.is_at(&example)
                }) {
                    found.push(format!("path {}", operation.path));
                }
                if !operation.path.starts_with('/') || operation.allow.is_empty() {
                    found.push(format!("operation {}", operation.path));
                }
                paths.push(operation.path);
            }
            if !language.operations().iter().any(|operation| {
                operation.kind.is_inference() && operation.is_at(language.usual_path())
            }) {
                found.push(format!("usual path of {}", language.name()));
            }
        }
        found
    }

    #[test]
    fn the_list_of_languages_has_no_mistakes() {
        assert_eq!(mistakes(DIALECTS), [""; 0]);
        assert_eq!(names().count(), DIALECTS.len());
        for name in names() {
            assert_eq!(Protocol::named(name).unwrap().language().name(), name);
        }
        assert!(Protocol::named("klingon").is_none());
    }

    #[test]
    fn a_language_with_mistakes_is_found_out() {
        let faulty: &'static dyn Dialect = &super::super::toy::Faulty;
        let all = [DIALECTS, &[faulty]].concat();
        assert_eq!(
            mistakes(&all),
            ["name \"toy\"", "path /v1/models/{model}/x", "operation toy", "usual path of toy"]
        );
    }

    #[test]
    fn operations_have_numbers_and_labels() {
        let numbers: Vec<_> =
            all().filter_map(|(_, operation)| at(operation.path)).map(|m| m.number).collect();
        assert_eq!(numbers, (0..operation_count()).collect::<Vec<_>>());
        for (path, model) in [
            ("/v1/models/sim-model", "sim-model"),
            ("/v1/models/Qwen/Qwen3-8B", "Qwen/Qwen3-8B"),
            ("/v1/models/Qwen%2FQwen3-8B", "Qwen/Qwen3-8B"),
            ("/v1/models/a%20b", "a b"),
        ] {
            let found = find("GET", path, &HeaderMap::new()).unwrap();
            assert_eq!(found.kind(), Kind::Model, "{path}");
            assert_eq!(found.operation.model_in(path).unwrap(), model);
            assert_eq!(label(path), "/v1/models/{model}");
        }
        let none = HeaderMap::new();
        let refusal = |method, path| find(method, path, &none).map(|_| ()).unwrap_err();
        assert_eq!(refusal("DELETE", "/v1/models/a").allow, Some("GET, HEAD"));
        assert_eq!(find("GET", "/v1/models", &none).unwrap().kind(), Kind::Models);
        assert!(find("GET", "/v1/models/", &none).is_err());
    }

    #[test]
    fn what_stands_at_paths_of_the_new_languages() {
        let none = HeaderMap::new();
        for (method, path, label, language, kind) in [
            (
                "POST",
                "/v1/messages",
                "/v1/messages",
                "messages",
                Kind::Inference { generates: true },
            ),
            (
                "POST",
                "/v1/messages/count_tokens",
                "/v1/messages/count_tokens",
                "messages",
                Kind::CountTokens,
            ),
            (
                "POST",
                "/v1/responses",
                "/v1/responses",
                "responses",
                Kind::Inference { generates: true },
            ),
            ("GET", "/v1/responses/r", "/v1/responses/{id}", "responses", Kind::Stored),
            ("DELETE", "/v1/responses/r", "/v1/responses/{id}", "responses", Kind::Stored),
            (
                "POST",
                "/v1/responses/r/cancel",
                "/v1/responses/{id}/cancel",
                "responses",
                Kind::Stored,
            ),
            (
                "GET",
                "/v1/responses/r/input_items",
                "/v1/responses/{id}/input_items",
                "responses",
                Kind::Stored,
            ),
            (
                "POST",
                "/v1/responses/compact",
                "/v1/responses/compact",
                "responses",
                Kind::Inference { generates: true },
            ),
            (
                "POST",
                "/v1/responses/input_tokens",
                "/v1/responses/input_tokens",
                "responses",
                Kind::CountTokens,
            ),
        ] {
            let found = find(method, path, &none).unwrap();
            let seen = (found.label(), found.language.name(), found.kind());
            assert_eq!(seen, (label, language, kind), "{path}");
        }
        assert!(find("GET", "/v1/responses/compact", &none).is_err());
    }

    #[test]
    fn shared_paths_are_in_the_language_of_the_header_fields() {
        let language = |path: &str, fields: &[(&'static str, &'static str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in fields {
                headers.insert(*name, http::HeaderValue::from_static(value));
            }
            find("GET", path, &headers).map(|found| found.language.name()).ok()
        };
        let version = ("anthropic-version", "2023-06-01");
        let (bearer, key) = (("authorization", "Bearer k"), ("x-api-key", "k"));
        for (fields, name) in [
            (&[][..], "chat"),
            (&[bearer], "chat"),
            (&[bearer, key], "chat"),
            (&[key], "messages"),
            (&[version], "messages"),
            (&[version, bearer], "messages"),
        ] {
            for path in ["/v1/models", "/v1/models/a/b", "/health"] {
                assert_eq!(language(path, fields), Some(name), "{path} {fields:?}");
            }
            assert_eq!(language("/v1/responses/a", fields), Some("responses"));
            assert_eq!(language("/toy/models", fields), Some("toy"));
        }
    }

    #[test]
    fn the_list_is_exact() {
        let none = HeaderMap::new();
        assert!(find("POST", "/v1/chat/completions", &none).is_ok());
        let refusal = |method, path| find(method, path, &none).map(|_| ()).unwrap_err();
        assert_eq!(refusal("GET", "/v1/chat/completions").allow, Some("POST"));
        for path in [
            "/",
            "/v1/chat/completions/",
            "/v1//chat/completions",
            "/V1/chat/completions",
            "/pause",
            "/v1/load_lora_adapter",
            "/collective_rpc",
            "/v1/chat/completions/../../pause",
            "/invocations",
            "/v1/chat%2fcompletions",
        ] {
            assert_eq!(refusal("POST", path).status, 404, "{path}");
            assert_eq!(label(path), "other");
        }
    }
}
