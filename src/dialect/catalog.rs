//! The list of languages, and what stands at a path.

use std::{fmt, sync::LazyLock};

use http::HeaderName;

use super::{
    language::Dialect,
    openai::OpenAi,
    operation::{Kind, Operation},
};
use crate::base::Rejection;

/// All languages, each with one line. The first is the one that errors are worded in where no
/// operation says otherwise.
pub static DIALECTS: &[&dyn Dialect] = &[
    &OpenAi,
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
    let (number, (language, operation)) =
        all().enumerate().find(|(_, (_, operation))| operation.is_at(path))?;
    Some(Match { language, operation, number })
}

/// Finds the operation of a request.
///
/// # Errors
/// 404 for a path that no language lists, 405 for a method that the path does not take.
pub fn find(method: &str, path: &str) -> Result<Match, Rejection> {
    let found = at(path).ok_or_else(|| Rejection::unknown_path(method, path))?;
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
                let example = operation.path.replace("{model}", "a-model");
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
            let found = find("GET", path).unwrap();
            assert_eq!(found.kind(), Kind::Model, "{path}");
            assert_eq!(found.operation.model_in(path).unwrap(), model);
            assert_eq!(label(path), "/v1/models/{model}");
        }
        let refusal = |method, path| find(method, path).map(|_| ()).unwrap_err();
        assert_eq!(refusal("DELETE", "/v1/models/a").allow, Some("GET, HEAD"));
        assert_eq!(find("GET", "/v1/models").unwrap().kind(), Kind::Models);
        assert!(find("GET", "/v1/models/").is_err());
    }

    #[test]
    fn the_list_is_exact() {
        assert!(find("POST", "/v1/chat/completions").is_ok());
        let refusal = |method, path| find(method, path).map(|_| ()).unwrap_err();
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
