//! API languages: which paths the gateway serves, and how it speaks of errors on them.
//!
//! The list of paths is an allow-list: whatever is not on it does not exist for clients. One file
//! a language; OpenAI's is the only one so far.

pub mod anthropic;
pub mod openai;
pub mod simple;

use std::fmt::{self, Write};

use bytes::Bytes;
use http::HeaderValue;
use percent_encoding::percent_decode_str;
use pingora::http::ResponseHeader;

use crate::base::{
    Rejection,
    limits::{Standing, Standings},
};

/// One path that the gateway serves.
#[derive(Debug, PartialEq, Eq)]
pub struct Route {
    /// The path, exactly, but for a `{model}` at its end; also its label in metrics.
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
        /// Answers may be streams whose token counts can be asked for by `stream_options`.
        streams: bool,
    },
    /// The merged list of models.
    Models,
    /// One model of it.
    Model,
    /// Alive?
    Health,
    /// Ready for traffic?
    Ready,
    /// Metrics.
    Metrics,
}

static ROUTES: [&[Route]; 2] = [
    &openai::ROUTES,
    &[
        Route { path: "/health", allow: "GET, HEAD", kind: Kind::Health },
        Route { path: "/ready", allow: "GET, HEAD", kind: Kind::Ready },
        Route { path: "/metrics", allow: "GET, HEAD", kind: Kind::Metrics },
    ],
];

/// Finds what stands at a path.
///
/// # Errors
/// 404 for a path that is not on the list, 405 for a method that it does not take.
pub fn find(method: &str, path: &str) -> Result<&'static Route, Rejection> {
    let route = at(path).ok_or_else(|| Rejection::unknown_path(method, path))?;
    if route.allow.split(", ").any(|allowed| allowed == method) {
        return Ok(route);
    }
    Err(Rejection::wrong_method(method, path, route.allow))
}

/// What stands at a path. Names of models may have slashes.
fn at(path: &str) -> Option<&'static Route> {
    let mut all = ROUTES.iter().flat_map(|list| list.iter());
    all.find(|route| match route.path.strip_suffix(MODEL) {
        None => route.path == path,
        Some(start) => path.len() > start.len() && path.starts_with(start),
    })
}

/// What a path ends with where the name of a model stands.
const MODEL: &str = "{model}";

/// The name of the model in a path of [`Kind::Model`].
pub fn model_of(path: &str) -> String {
    let start = at(path).and_then(|route| route.path.strip_suffix(MODEL));
    let name = start.and_then(|start| path.strip_prefix(start)).unwrap_or_default();
    percent_decode_str(name).decode_utf8_lossy().into_owned()
}

/// Writes how the limits of a request stand into the head of an answer, in the names of the API
/// that its path belongs to.
///
/// # Errors
/// None in life: the names and values are legal.
pub fn tell_limits(head: &mut ResponseHeader, path: &str, all: &Standings) -> pingora::Result<()> {
    let mut headers = Headers::default();
    if path.starts_with("/v1/messages") {
        anthropic::limit_headers(all, jiff::Timestamp::now(), &mut headers);
    } else {
        openai::limit_headers(all, &mut headers);
    }
    headers.insert(head)
}

/// Header fields whose values share one piece of memory.
#[derive(Default)]
pub struct Headers {
    values: String,
    fields: Vec<(&'static str, usize)>,
}

impl Headers {
    fn add(&mut self, name: &'static str, value: fmt::Arguments<'_>) {
        // Writing to a string does not fail.
        let _ = self.values.write_fmt(value);
        self.fields.push((name, self.values.len()));
    }

    /// Limit, rest and reset.
    pub fn three(&mut self, names: [&'static str; 3], all: Standing, reset: fmt::Arguments<'_>) {
        self.add(names[0], format_args!("{}", all.limit));
        self.add(names[1], format_args!("{}", all.left));
        self.add(names[2], reset);
    }

    fn insert(self, head: &mut ResponseHeader) -> pingora::Result<()> {
        let values = Bytes::from(self.values);
        let mut start = 0;
        for (name, end) in self.fields {
            if let Ok(value) = HeaderValue::from_maybe_shared(values.slice(start..end)) {
                head.insert_header(name, value)?;
            }
            start = end;
        }
        Ok(())
    }

    #[cfg(test)]
    fn lines(self) -> Vec<String> {
        let mut head = ResponseHeader::build(200, None).unwrap();
        self.insert(&mut head).unwrap();
        let line = |(name, value): (&http::HeaderName, &HeaderValue)| {
            format!("{name}: {}", value.to_str().unwrap())
        };
        head.headers.iter().map(line).collect()
    }
}

/// Whether a header field tells how limits stand: those of a backend are not the client's.
pub fn is_limit_header(name: &str) -> bool {
    ["x-ratelimit-", "anthropic-ratelimit-"].iter().any(|start| name.starts_with(start))
}

/// How many paths of inference there are.
pub const INFERENCE_ROUTES: usize = 3;

/// The number of a path of inference, from 0; `None` for any other.
pub fn index(route: &Route) -> Option<usize> {
    let inference = |r: &&Route| matches!(r.kind, Kind::Inference { .. });
    ROUTES.iter().flat_map(|l| l.iter()).filter(inference).position(|r| std::ptr::eq(r, route))
}

/// The label of a path in metrics.
pub fn label(path: &str) -> &'static str {
    at(path).map_or("other", |route| route.path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_inference_are_numbered() {
        let routes = || ROUTES.iter().flat_map(|l| l.iter());
        let numbers: Vec<_> = routes().filter_map(index).collect();
        assert_eq!(numbers, (0..INFERENCE_ROUTES).collect::<Vec<_>>());
        assert_eq!(index(find("GET", "/health").unwrap()), None);
    }

    #[test]
    fn a_model_is_found_by_its_name() {
        for (path, model) in [
            ("/v1/models/sim-model", "sim-model"),
            ("/v1/models/Qwen/Qwen3-8B", "Qwen/Qwen3-8B"),
            ("/v1/models/Qwen%2FQwen3-8B", "Qwen/Qwen3-8B"),
            ("/v1/models/a%20b", "a b"),
        ] {
            assert_eq!(find("GET", path).unwrap().kind, Kind::Model, "{path}");
            assert_eq!(model_of(path), model);
            assert_eq!(label(path), "/v1/models/{model}");
        }
        assert_eq!(find("DELETE", "/v1/models/a").unwrap_err().allow, Some("GET, HEAD"));
        assert_eq!(find("GET", "/v1/models").unwrap().kind, Kind::Models);
        assert!(find("GET", "/v1/models/").is_err());
    }

    #[test]
    fn the_list_is_exact() {
        assert!(find("POST", "/v1/chat/completions").is_ok());
        assert_eq!(find("GET", "/v1/chat/completions").unwrap_err().allow, Some("POST"));
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
            assert_eq!(find("POST", path).unwrap_err().status, 404, "{path}");
            assert_eq!(label(path), "other");
        }
    }
}
