//! Where backends come from: sources, and what they tell.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use http::{HeaderName, HeaderValue};
use serde::Deserialize;
use serde_json::Value;

use super::{
    backend::{BackendPlan, KeyForm},
    planner::Planner,
};

use crate::{
    base::without_mark,
    config::{
        choices::{Addresses, DiscoveryMode, Engine, StreamUsage},
        problem::Problem,
        raw::{self, DiscoverySource, Raw, SourceType},
    },
    dialect::Protocol,
    store::proxy::Proxies,
};

/// Where backends come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiscoveryPlan {
    /// How the sources go together.
    pub mode: DiscoveryMode,
    /// The sources; none if discovery is off.
    pub sources: Vec<SourcePlan>,
    /// Name servers in place of the system's.
    pub dns_servers: Vec<SocketAddr>,
}

/// A place that tells of backends.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SourcePlan {
    /// Its name, which no other source has.
    pub name: String,
    /// How it is asked.
    pub place: Place,
    /// How often.
    pub interval: Duration,
    /// The field with the key for its backends.
    pub key: Option<(HeaderName, HeaderValue)>,
    /// The proxies that the environment names, for its backends.
    pub proxies: Arc<Proxies>,
}

/// How a source is asked.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// By GET.
    Http {
        /// Where.
        url: String,
        /// How long an answer may take.
        timeout: Duration,
        /// Header fields to send along.
        headers: Vec<(HeaderName, HeaderValue)>,
    },
    /// By reading it.
    File(PathBuf),
}

/// What a source told.
#[derive(Debug, Default, PartialEq)]
pub struct Listed {
    /// Its backends.
    pub backends: Vec<BackendPlan>,
    /// The entries that are no use, and why.
    pub skipped: Vec<String>,
}

impl Listed {
    /// The entries that are no use, for one line of the log; empty if there are none.
    pub fn complaint(&self) -> String {
        let told = self.skipped.iter().take(TOLD).cloned().collect::<Vec<_>>().join("; ");
        match self.skipped.len().checked_sub(TOLD) {
            None | Some(0) => told,
            Some(more) => format!("{told}; and {more} more"),
        }
    }
}

/// Entries that are no use and that one line of the log tells at most.
const TOLD: usize = 10;

/// How often a file is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// The longest name of a backend that a source may tell.
const LONGEST_NAME: usize = 200;

impl Planner<'_> {
    pub(super) fn discovery(&mut self, raw: Option<&raw::Discovery>) -> DiscoveryPlan {
        let Some(raw) = raw else {
            return DiscoveryPlan::default();
        };
        let mut dns_servers = Vec::new();
        for (i, text) in raw.dns_servers.iter().enumerate() {
            match text.parse().or_else(|_| text.parse().map(|ip| SocketAddr::new(ip, 53))) {
                Ok(server) => dns_servers.push(server),
                Err(_) => self.problem(
                    format!("discovery.dns_servers[{i}]"),
                    format!("`{text}` is not an address"),
                    "write `10.0.0.10` or `10.0.0.10:53`",
                ),
            }
        }
        let mut sources: Vec<SourcePlan> = Vec::new();
        if raw.enabled.0 {
            if raw.interval.0 < Duration::from_millis(100) {
                self.problem("discovery.interval", "is shorter than 100ms", "the default is 30s");
            }
            for (i, source) in raw.sources.iter().enumerate().filter(|(_, s)| s.enabled.0) {
                let at = format!("discovery.sources[{i}]");
                let Some(plan) = self.discovery_source(&at, source, raw.interval.0) else {
                    continue;
                };
                if sources.iter().any(|s| s.name == plan.name) {
                    let message = format!("has the same name as an earlier one: `{}`", plan.name);
                    self.problem(at, message, "give each source a `name` of its own");
                }
                sources.push(plan);
            }
        }
        DiscoveryPlan { mode: raw.mode, sources, dns_servers }
    }

    fn discovery_source(
        &mut self,
        at: &str,
        raw: &DiscoverySource,
        interval: Duration,
    ) -> Option<SourcePlan> {
        let form = KeyForm {
            protocol: Protocol::default(),
            name: raw.auth_header.as_deref(),
            scheme: raw.auth_scheme.as_deref(),
        };
        let key = self.backend_key(at, raw.api_key.as_ref(), raw.api_key_file.as_deref(), &form);
        let (word, place, interval) = match raw.kind {
            SourceType::Http => {
                let http = self.section(at, "source", "http", raw.http.as_ref())?;
                let interval = http.interval.map_or(interval, |i| i.0);
                if interval < Duration::from_millis(100) {
                    let at = format!("{at}.http.interval");
                    self.problem(at, "is shorter than 100ms", "the default is 30s");
                }
                ("http", self.http_source(&format!("{at}.http"), http), interval)
            }
            SourceType::File => {
                let file = self.section(at, "source", "file", raw.file.as_ref())?;
                ("file", Place::File(self.path(&file.path)), LOOK)
            }
            unbuilt => {
                self.unbuilt_source(at, unbuilt);
                return None;
            }
        };
        let name = raw.name.clone().unwrap_or_else(|| word.to_owned());
        Some(SourcePlan { name, place, interval, key, proxies: Arc::new(self.proxies.clone()) })
    }

    fn http_source(&mut self, at: &str, raw: &raw::HttpSource) -> Place {
        self.http_url(&format!("{at}.url"), &raw.url);
        if raw.timeout.0.is_zero() {
            self.problem(format!("{at}.timeout"), "is zero", "the default is 10s");
        }
        let headers = self.header_fields(at, &raw.headers, &raw.headers_file);
        Place::Http { url: raw.url.clone(), timeout: raw.timeout.0, headers }
    }

    fn unbuilt_source(&mut self, at: &str, kind: SourceType) {
        let (word, hint) = match kind {
            SourceType::Kubernetes => (
                "kubernetes",
                "name a headless service in `backends`: each of its addresses becomes a backend",
            ),
            SourceType::Consul => (
                "consul",
                "write `http://SERVICE.service.consul:PORT` in `backends` and Consul's address in `discovery.dns_servers`",
            ),
            SourceType::Static => ("static", "write its entries in `backends`"),
            SourceType::Database => {
                ("database", "use type http, or write a file and use type file")
            }
            _ => ("etcd", "use type http, or write a file and use type file"),
        };
        let message = format!("there are no sources of type `{word}`");
        self.problem(format!("{at}.type"), message, hint);
    }
}

/// One entry of a list, as sources write it. What else stands there is for others.
#[derive(Deserialize)]
struct Entry {
    name: Option<String>,
    url: String,
    weight: Option<u32>,
    status: Option<String>,
    models: Option<Vec<String>>,
    stream_usage: Option<StreamUsage>,
    addresses: Option<Addresses>,
    append_v1: Option<bool>,
    #[serde(default)]
    engine: Option<Engine>,
}

/// Understands what a source told. Entries that are no use are skipped; the others stay, those of a
/// name that came before excepted.
///
/// # Errors
/// If it is no list at all, or one of which nothing is of use: whoever wrote it did not mean that
/// there are no backends.
pub fn listed(text: &str, source: &SourcePlan) -> Result<Listed, String> {
    let mut listed = Listed::default();
    let mut names = BTreeMap::new();
    for (i, value) in list(text, source)?.into_iter().enumerate() {
        let shown = value.get("name").or_else(|| value.get("url")).and_then(Value::as_str);
        let shown = match shown {
            // Whatever stands before an `@` may be a password.
            Some(text) => format!("entry {i} ({:?})", text.rsplit('@').next().unwrap_or_default()),
            None => format!("entry {i}"),
        };
        match entry(value, source) {
            Ok(None) => {}
            Ok(Some(plan)) => match names.insert(plan.name.clone(), i) {
                None => listed.backends.push(plan),
                Some(first) => {
                    listed.skipped.push(format!("{shown} has the name of entry {first}"));
                    names.insert(plan.name, first);
                }
            },
            Err(why) => listed.skipped.push(format!("{shown}: {why}")),
        }
    }
    if listed.backends.is_empty() && !listed.skipped.is_empty() {
        return Err(format!("no entry is of use: {}", listed.complaint()));
    }
    Ok(listed)
}

fn list(text: &str, source: &SourcePlan) -> Result<Vec<Value>, String> {
    let text = without_mark(text);
    let read = match (serde_json::from_str(text), &source.place) {
        (Ok(value), _) => value,
        (Err(_), Place::File(_)) => {
            serde_yaml::from_str(text).map_err(|e| format!("neither JSON nor YAML: {e}"))?
        }
        (Err(e), Place::Http { .. }) => return Err(format!("no JSON: {e}")),
    };
    let inner = match read {
        Value::Object(mut map) => map.remove("backends").or_else(|| map.remove("services")),
        other => Some(other),
    };
    match inner {
        Some(Value::Array(items)) => Ok(items),
        _ => Err("neither a list nor an object with a list `backends` or `services`".to_owned()),
    }
}

/// The backend of an entry; `None` if its status says that it is not in use.
fn entry(value: Value, source: &SourcePlan) -> Result<Option<BackendPlan>, String> {
    if !value.is_object() {
        return Err("is no object".to_owned());
    }
    let entry: Entry = serde_json::from_value(value).map_err(|e| e.to_string())?;
    if !matches!(entry.status.as_deref(), None | Some("" | "enabled" | "active")) {
        return Ok(None);
    }
    let name = entry.name.filter(|name| !name.is_empty());
    if name.as_ref().is_some_and(|n| n.len() > LONGEST_NAME || n.contains(char::is_control)) {
        return Err(format!("its name is not one line of at most {LONGEST_NAME} bytes"));
    }
    let raw = raw::Backend {
        url: entry.url,
        append_v1: entry.append_v1,
        name,
        weight: entry.weight.unwrap_or(1),
        models: entry.models.unwrap_or_default(),
        api_key: None,
        api_key_file: None,
        auth_header: None,
        auth_scheme: None,
        headers: BTreeMap::new(),
        headers_file: BTreeMap::new(),
        proxy: None,
        stream_usage: entry.stream_usage.unwrap_or_default(),
        addresses: entry.addresses,
        engine: entry.engine.unwrap_or_default(),
        enabled: raw::Switch(true),
        health_check: raw::Switch(true),
        protocol: None,
    };
    let mut problems = Vec::new();
    let mut planner = Planner::new(std::path::Path::new(""), &source.proxies, &mut problems);
    let plan = planner.backend("", &raw);
    planner.trust();
    match plan.filter(|_| problems.is_empty()) {
        Some(plan) => Ok(Some(BackendPlan { key: source.key.clone(), ..plan })),
        None => Err(problems.iter().map(said).collect::<Vec<_>>().join("; ")),
    }
}

fn said(problem: &Problem) -> String {
    problem.to_string().trim_start_matches('.').to_owned()
}

/// Whether a source tells of backends, beside those of the file.
pub(super) fn are_on(raw: &Raw) -> bool {
    let on = |d: &raw::Discovery| d.enabled.0 && d.sources.iter().any(|s| s.enabled.0);
    raw.discovery.as_ref().is_some_and(on)
}

#[cfg(test)]
mod tests {
    use http::header;
    use proptest::prelude::*;

    use super::*;

    fn source(place: Place) -> SourcePlan {
        let key = (header::AUTHORIZATION, HeaderValue::from_static("Bearer sk-1"));
        let (name, proxies) = ("s".to_owned(), Arc::default());
        SourcePlan { name, place, interval: LOOK, key: Some(key), proxies }
    }

    fn http() -> SourcePlan {
        source(Place::Http { url: String::new(), timeout: LOOK, headers: Vec::new() })
    }

    fn names(listed: &Listed) -> Vec<&str> {
        listed.backends.iter().map(|b| b.name.as_str()).collect()
    }

    #[test]
    fn lists_in_all_their_forms() {
        let list = r#"[{"name": "a", "url": "http://a:1", "weight": 3, "models": ["m*"], "id": 7},
                       {"url": "https://b/v1", "status": "active"},
                       {"name": "c", "url": "http://c", "status": ""},
                       {"name": "d", "url": "http://d", "status": "disabled"}]"#;
        for text in [
            list.to_owned(),
            format!(r#"{{"backends": {list}}}"#),
            format!(r#"{{"services": {list}, "total": 4}}"#),
        ] {
            let listed = listed(&text, &http()).unwrap();
            assert_eq!(names(&listed), ["a", "https://b/v1", "c"]);
            assert_eq!(listed.skipped, Vec::<String>::new());
            let a = &listed.backends[0];
            assert_eq!((a.weight, a.port, a.models.len()), (3, 1, 1));
            assert_eq!(a.key.as_ref().unwrap().1, "Bearer sk-1");
            assert_eq!(
                (a.addresses, listed.backends[1].addresses),
                (Addresses::Each, Addresses::One)
            );
        }
    }

    #[test]
    fn files_may_be_yaml_and_answers_may_not() {
        let text = "backends:\n  - {name: a, url: \"http://a:1\"}\n";
        let file = source(Place::File("list.yaml".into()));
        assert_eq!(names(&listed(text, &file).unwrap()), ["a"]);
        assert!(listed(text, &http()).is_err());
    }

    #[test]
    fn bad_entries_are_skipped_by_name_and_the_others_stay() {
        let text = r#"[{"name": "a", "url": "http://a"}, {"name": "no-url"}, 7,
                       {"name": "w", "url": "http://w", "weight": 0},
                       {"name": "u", "url": "ftp://u"}, {"url": "http://me:secret@h"},
                       {"name": "a", "url": "http://again"}, {"name": "x\ny", "url": "http://x"},
                       {"name": "a", "url": "http://third"}, {"name": "z", "url": "http://z"}]"#;
        let listed = listed(text, &http()).unwrap();
        assert_eq!(names(&listed), ["a", "z"]);
        assert_eq!(*listed.backends[0].url, *"http://a");
        let told = listed.skipped.join("\n");
        assert_eq!(listed.skipped.len(), 8, "{told}");
        for part in [
            "entry 1 (\"no-url\"): missing field `url`",
            "entry 2: is no object",
            "entry 3 (\"w\"): weight: is not between 1 and 1000",
            "entry 4 (\"u\"): url: the scheme must be http or https",
            "entry 6 (\"a\") has the name of entry 0",
            "entry 8 (\"a\") has the name of entry 0",
        ] {
            assert!(told.contains(part), "{part} in\n{told}");
        }
        assert!(!told.contains("secret"), "{told}");
    }

    #[test]
    fn what_is_no_list_is_refused_whole() {
        for text in ["", "null", "{}", "<html>", "\"x\"", r#"{"backends": {}}"#, "[1", "7"] {
            assert!(listed(text, &http()).is_err(), "{text}");
            assert!(listed(text, &source(Place::File("f".into()))).is_err(), "{text}");
        }
        assert_eq!(listed("[]", &http()).unwrap(), Listed::default());
    }

    #[test]
    fn a_list_of_which_nothing_is_of_use_is_refused_whole() {
        let bad = r#"{"name": "b", "url": "ftp://b"}"#;
        let off = r#"{"name": "c", "url": "http://c", "status": "disabled"}"#;
        for text in [format!("[{bad}]"), format!("[{off}, {bad}]")] {
            let why = listed(&text, &http()).unwrap_err();
            assert!(why.starts_with("no entry is of use: entry "), "{why}");
            assert!(why.contains("(\"b\"): url: the scheme must be"), "{why}");
        }
        let many = vec![bad; 30].join(",");
        let why = listed(&format!("[{many}]"), &http()).unwrap_err();
        assert!(why.ends_with("; and 20 more"), "{why}");
        // Backends that are switched off are meant to be none.
        assert_eq!(listed(&format!("[{off}]"), &http()).unwrap(), Listed::default());
    }

    proptest! {
        #[test]
        fn whatever_a_source_tells_the_gateway_goes_on(text in ".{0,200}") {
            let _ = listed(&text, &http());
            let _ = listed(&format!("[{{\"url\": {text:?}, \"name\": {text:?}}}]"), &http());
        }
    }
}
