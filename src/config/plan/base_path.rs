//! The path of a backend's URL, to which endpoint paths are appended.

use percent_encoding::percent_decode_str;

/// The paths of a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BasePath {
    /// Replaces `/v1` in the path of a request: `/v1`, `/prefix/v1`, `/api/paas/v4`,
    /// `/openai/deployments/x`, or nothing.
    pub api: String,
    /// The prefix of the engine's own paths, `/health` and `/metrics`.
    pub root: String,
    /// The query of the URL, without its question mark: it is sent with every request.
    pub query: Option<String>,
    /// Whether there is a list of models at `{api}/models`. A deployment of Azure has none.
    pub lists_models: bool,
}

/// Endpoints that the gateway calls: they are removed from the end of a URL.
const ENDPOINTS: [&str; 4] = ["/chat/completions", "/completions", "/embeddings", "/models"];

/// Endpoints that are recognised without a version in front of them: no prefix has such a name.
const UNMISTAKABLE: [&str; 2] = ["/chat/completions", "/completions"];

/// Endpoints that are refused at the end of a URL: those of other APIs, and those of languages that
/// only `languages` gives to a backend.
const FOREIGN: [&str; 7] = [
    "/responses",
    "/messages",
    "/rerank",
    "/score",
    "/images/generations",
    "/moderations",
    "/batches",
];

/// Names of query parameters that hold a client's key in some API.
const CREDENTIALS: [&str; 7] =
    ["key", "api_key", "api-key", "apikey", "access_token", "token", "subscription-key"];

impl BasePath {
    /// Reads path and query of a URL. `append_v1`: whether `/v1` is appended to the path; `None`:
    /// unless the path has a version, or names a deployment.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(path: &str, query: Option<&str>, append_v1: Option<bool>) -> Result<Self, String> {
        let path = path.trim_end_matches('/');
        let (path, endpoint) = without_endpoint(path);
        let versioned = version(path);
        if versioned.is_some()
            && let Some((_, method)) = path.rsplit_once(':').filter(|(_, m)| !m.contains('/'))
        {
            return Err(format!("`:{method}` is a method of another API"));
        }
        if endpoint.is_none()
            && versioned.is_some()
            && let Some(other) = FOREIGN.iter().find(|other| path.ends_with(**other))
        {
            return Err(format!("`{other}` is an endpoint, not the base of an API"));
        }
        let deployment = deployment(path);
        let own = versioned.or(deployment);
        let append = append_v1.unwrap_or(own.is_none() && endpoint.is_none());
        let (api, root) = if append {
            let prefix = path.strip_suffix("/v1").unwrap_or(path);
            (format!("{prefix}/v1"), prefix)
        } else {
            (path.to_owned(), own.map_or(path, |at| &path[..at]))
        };
        Ok(Self {
            api,
            root: root.to_owned(),
            query: query.filter(|q| !q.is_empty()).map(str::to_owned),
            lists_models: deployment.is_none(),
        })
    }

    /// Path and query for the backend, from a client's path and query that begins with `/v1/`.
    /// `None`: they are unchanged. Parameters that hold a client's key, and those that the
    /// backend's URL sets, are removed.
    pub fn target(&self, client: &str) -> Option<String> {
        let (path, query) = match client.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (client, None),
        };
        let kept = query.map(|query| self.kept(query));
        let same_query = kept.as_deref() == query && self.query.is_none();
        if self.api == "/v1" && same_query {
            return None;
        }
        let rest = path.strip_prefix("/v1").unwrap_or(path);
        Some(self.with_query([&self.api, rest].concat(), kept.as_deref()))
    }

    /// Path and query of an endpoint below the base, `/models` for instance.
    pub fn endpoint(&self, path: &str) -> String {
        let (path, query) = match path.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (path, None),
        };
        self.with_query([&self.api, path].concat(), query)
    }

    /// Path and query of one of the engine's own paths, `/health` for instance.
    pub fn own(&self, path: &str) -> String {
        let (path, query) = match path.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (path, None),
        };
        self.with_query([&self.root, path].concat(), query)
    }

    fn with_query(&self, mut target: String, further: Option<&str>) -> String {
        let mut mark = '?';
        for query in [self.query.as_deref(), further].into_iter().flatten() {
            if !query.is_empty() {
                target.push(mark);
                target.push_str(query);
                mark = '&';
            }
        }
        target
    }

    /// A client's query without the parameters that must not be sent.
    fn kept(&self, query: &str) -> String {
        let set = |name: &str| {
            let own = self.query.as_deref().unwrap_or_default();
            own.split('&').any(|parameter| parameter_name(parameter) == name)
        };
        let wanted = |parameter: &&str| {
            let name = parameter_name(parameter);
            let folded = name.to_ascii_lowercase();
            !CREDENTIALS.contains(&folded.as_str()) && !set(&name)
        };
        query.split('&').filter(wanted).collect::<Vec<_>>().join("&")
    }
}

/// The query for messages: values may be secret, except for a version.
pub fn shown_query(query: &str) -> String {
    let show = |parameter: &str| {
        let name = parameter.split('=').next().unwrap_or_default();
        match name.contains("version") || !parameter.contains('=') {
            true => parameter.to_owned(),
            false => format!("{name}=..."),
        }
    };
    query.split('&').map(show).collect::<Vec<_>>().join("&")
}

fn parameter_name(parameter: &str) -> String {
    let name = parameter.split('=').next().unwrap_or_default();
    percent_decode_str(name).decode_utf8_lossy().into_owned()
}

/// The base of a path that names an endpoint, and the endpoint.
fn without_endpoint(path: &str) -> (&str, Option<&'static str>) {
    for endpoint in ENDPOINTS {
        if let Some(base) = path.strip_suffix(endpoint) {
            let plain = UNMISTAKABLE.contains(&endpoint);
            if plain || version(base).is_some() || deployment(base).is_some() {
                return (base, Some(endpoint));
            }
        }
    }
    (path, None)
}

/// The offset of the first segment that is a version, including its slash: `/v1`, `/v4`, `/v1beta`,
/// `/v1.0`.
fn version(path: &str) -> Option<usize> {
    segments(path).find(|(_, segment)| is_version(segment)).map(|(at, _)| at)
}

/// The offset of `/openai/deployments/NAME`.
fn deployment(path: &str) -> Option<usize> {
    let at = path.find("/openai/deployments/")?;
    let name = &path[at + "/openai/deployments/".len()..];
    (!name.is_empty()).then_some(at)
}

fn segments(path: &str) -> impl Iterator<Item = (usize, &str)> {
    path.match_indices('/').map(move |(at, _)| {
        let rest = &path[at + 1..];
        (at, rest.split('/').next().unwrap_or_default())
    })
}

/// `v1`, `v4`, `v1beta`, `v1beta2`, `v1.0`.
fn is_version(segment: &str) -> bool {
    let Some(rest) = segment.strip_prefix(['v', 'V']) else {
        return false;
    };
    let rest = rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    let digits = segment[1..].starts_with(|c: char| c.is_ascii_digit());
    let stage = rest.trim_end_matches(|c: char| c.is_ascii_digit());
    digits && (rest.is_empty() || matches!(stage, "alpha" | "beta" | "preview"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(path: &str, append_v1: Option<bool>) -> (String, String) {
        let base = BasePath::read(path, None, append_v1).unwrap();
        (base.api, base.root)
    }

    #[test]
    fn a_path_with_a_version_is_the_base_and_any_other_a_prefix() {
        for (path, api, root) in [
            ("", "/v1", ""),
            ("/", "/v1", ""),
            ("/v1", "/v1", ""),
            ("/v1/", "/v1", ""),
            ("/prefix", "/prefix/v1", "/prefix"),
            ("/prefix/v1", "/prefix/v1", "/prefix"),
            ("/api/paas/v4", "/api/paas/v4", "/api/paas"),
            ("/api/v3", "/api/v3", "/api"),
            ("/v1beta/openai", "/v1beta/openai", ""),
            ("/v1beta/openai/", "/v1beta/openai", ""),
            ("/api/v1.0", "/api/v1.0", "/api"),
            ("/openai/deployments/x", "/openai/deployments/x", ""),
            ("/proxy/openai/deployments/x", "/proxy/openai/deployments/x", "/proxy"),
            ("/openai/v1", "/openai/v1", "/openai"),
            ("/inference/v1", "/inference/v1", "/inference"),
            ("/v1/account/gateway/openai", "/v1/account/gateway/openai", ""),
            ("/v1/projects/p/endpoints/openapi", "/v1/projects/p/endpoints/openapi", ""),
            // No versions.
            ("/vllm", "/vllm/v1", "/vllm"),
            ("/v", "/v/v1", "/v"),
            ("/v1-models", "/v1-models/v1", "/v1-models"),
            ("/very/v2x", "/very/v2x/v1", "/very/v2x"),
            ("/openai/deployments", "/openai/deployments/v1", "/openai/deployments"),
            // Full endpoints.
            ("/v1/chat/completions", "/v1", ""),
            ("/v1/completions/", "/v1", ""),
            ("/prefix/v1/embeddings", "/prefix/v1", "/prefix"),
            ("/v1/models", "/v1", ""),
            ("/api/paas/v4/chat/completions", "/api/paas/v4", "/api/paas"),
            ("/openai/deployments/x/chat/completions", "/openai/deployments/x", ""),
            ("/chat/completions", "", ""),
            ("/x/chat/completions", "/x", "/x"),
            // Not unmistakably endpoints.
            ("/embeddings", "/embeddings/v1", "/embeddings"),
            ("/models", "/models/v1", "/models"),
        ] {
            assert_eq!(read(path, None), (api.to_owned(), root.to_owned()), "{path}");
        }
    }

    #[test]
    fn a_key_overrides_the_rule() {
        for (path, append, api, root) in [
            ("", false, "", ""),
            ("/prefix", false, "/prefix", "/prefix"),
            ("/api/v4", true, "/api/v4/v1", "/api/v4"),
            ("/v1", true, "/v1", ""),
            ("/v1", false, "/v1", ""),
            ("/v2/models/x", true, "/v2/models/x/v1", "/v2/models/x"),
        ] {
            let expected = (api.to_owned(), root.to_owned());
            assert_eq!(read(path, Some(append)), expected, "{path} {append}");
        }
    }

    #[test]
    fn endpoints_of_other_apis_are_refused() {
        for path in ["/v1/messages", "/v1/responses", "/v1beta/models/x:generateContent"] {
            assert!(BasePath::read(path, None, None).is_err(), "{path}");
        }
        // Without a version it is a prefix like any other.
        assert_eq!(read("/messages", None).0, "/messages/v1");
    }

    #[test]
    fn queries_are_joined_and_keys_left_out() {
        let base = |path, query| BasePath::read(path, query, None).unwrap();
        let plain = base("/v1", None);
        let azure = base("/openai/deployments/x", Some("api-version=2024-10-21"));
        for (base, client, target) in [
            (&plain, "/v1/chat/completions", None),
            (&plain, "/v1/chat/completions?a=b", None),
            (&plain, "/v1/chat/completions?key=k", Some("/v1/chat/completions")),
            (&plain, "/v1/chat/completions?a=b&k%65y=k&c", Some("/v1/chat/completions?a=b&c")),
            (
                &plain,
                "/v1/chat/completions?API_KEY=k&monkey=1",
                Some("/v1/chat/completions?monkey=1"),
            ),
            (
                &azure,
                "/v1/chat/completions",
                Some("/openai/deployments/x/chat/completions?api-version=2024-10-21"),
            ),
            (
                &azure,
                "/v1/embeddings?api-version=1&beta=true",
                Some("/openai/deployments/x/embeddings?api-version=2024-10-21&beta=true"),
            ),
        ] {
            assert_eq!(base.target(client).as_deref(), target, "{client}");
        }
        assert_eq!(azure.own("/health"), "/health?api-version=2024-10-21");
        assert_eq!(plain.own("/health?full=1"), "/health?full=1");
        assert_eq!(shown_query("api-version=1&key=sk&flag"), "api-version=1&key=...&flag");
    }
}
