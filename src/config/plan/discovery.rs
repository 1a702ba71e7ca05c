//! `discovery`: sources of backends, and the lists that they return.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use http::{HeaderName, HeaderValue};
use serde::Deserialize;
use serde_json::Value;

use super::{
    backend::{BackendPlan, KeyHeader},
    planner::Planner,
};

use crate::{
    base::without_mark,
    config::{
        choices::{Addresses, DiscoveryMode, Engine, StreamUsage, Vendor},
        problem::Problem,
        raw::{self, DiscoverySource, Raw, SourceType},
    },
    dialect::Languages,
    store::proxy::Proxies,
};

/// Sources of backends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiscoveryPlan {
    /// How the sources are combined.
    pub mode: DiscoveryMode,
    /// The sources; none if discovery is off.
    pub sources: Vec<SourcePlan>,
    /// Name servers instead of the system's.
    pub dns_servers: Vec<SocketAddr>,
}

/// A source of backends.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SourcePlan {
    /// Unique among the sources.
    pub name: String,
    pub location: SourceLocation,
    /// Time between two queries.
    pub interval: Duration,
    /// The header field with the key of its backends.
    pub key: Option<(HeaderName, HeaderValue)>,
    /// The proxies of the environment, for its backends.
    pub proxies: Arc<Proxies>,
}

/// Where a source is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum SourceLocation {
    Http {
        url: String,
        /// How long a response may take.
        timeout: Duration,
        headers: Vec<(HeaderName, HeaderValue)>,
    },
    File(PathBuf),
}

/// The list of a source.
#[derive(Debug, Default, PartialEq)]
pub struct SourceList {
    pub backends: Vec<BackendPlan>,
    /// The invalid entries, and why.
    pub skipped: Vec<String>,
}

impl SourceList {
    /// The invalid entries, for one line of the log; empty if there are none.
    pub fn invalid_entries(&self) -> String {
        let shown = self.skipped.iter().take(SHOWN_ENTRIES).cloned().collect::<Vec<_>>().join("; ");
        match self.skipped.len().checked_sub(SHOWN_ENTRIES) {
            None | Some(0) => shown,
            Some(more) => format!("{shown}; and {more} more"),
        }
    }
}

/// The most invalid entries in one line of the log.
const SHOWN_ENTRIES: usize = 10;

/// Time between two checks of a file.
const FILE_INTERVAL: Duration = Duration::from_secs(1);

/// The longest name of a backend in a list.
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
                    let message =
                        format!("has the same name as an earlier source: `{}`", plan.name);
                    self.problem(at, message, "give each source its own `name`");
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
        let form = KeyHeader {
            language: Languages::default().first(),
            name: raw.auth_header.as_deref(),
            scheme: raw.auth_scheme.as_deref(),
        };
        let key = self.backend_key(at, raw.api_key.as_ref(), raw.api_key_file.as_deref(), &form);
        let (word, location, interval) = match raw.kind {
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
                ("file", SourceLocation::File(self.path(&file.path)), FILE_INTERVAL)
            }
            unbuilt => {
                self.unbuilt_source(at, unbuilt);
                return None;
            }
        };
        let name = raw.name.clone().unwrap_or_else(|| word.to_owned());
        Some(SourcePlan { name, location, interval, key, proxies: Arc::new(self.proxies.clone()) })
    }

    fn http_source(&mut self, at: &str, raw: &raw::HttpSource) -> SourceLocation {
        self.http_url(&format!("{at}.url"), &raw.url);
        if raw.timeout.0.is_zero() {
            self.problem(format!("{at}.timeout"), "is zero", "the default is 10s");
        }
        let headers = self.header_fields(at, &raw.headers, &raw.headers_file);
        SourceLocation::Http { url: raw.url.clone(), timeout: raw.timeout.0, headers }
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
                ("database", "use `type: http`, or write a file and use `type: file`")
            }
            _ => ("etcd", "use `type: http`, or write a file and use `type: file`"),
        };
        let message = format!("sources of type `{word}` are not supported");
        self.problem(format!("{at}.type"), message, hint);
    }
}

/// An entry of a list. Unknown fields are ignored: other programs may use them.
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
    engine: Option<Engine>,
    vendor: Option<Vendor>,
    languages: Option<Vec<String>>,
    protocol: Option<String>,
    completions: Option<bool>,
    state_domain: Option<String>,
    drop_fields: Option<Vec<String>>,
}

/// Reads the list of a source. Invalid entries, and entries with the name of an earlier one, are
/// skipped.
///
/// # Errors
/// If it is not a list, or if all entries are invalid: that does not mean that there are no
/// backends.
pub fn read_list(text: &str, source: &SourcePlan) -> Result<SourceList, String> {
    let mut listed = SourceList::default();
    let mut names = BTreeMap::new();
    for (i, value) in list(text, source)?.into_iter().enumerate() {
        let shown = value.get("name").or_else(|| value.get("url")).and_then(Value::as_str);
        let shown = match shown {
            // The text before an `@` may be a password.
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
        return Err(format!("no entry is valid: {}", listed.invalid_entries()));
    }
    Ok(listed)
}

fn list(text: &str, source: &SourcePlan) -> Result<Vec<Value>, String> {
    let text = without_mark(text);
    let read = match (serde_json::from_str(text), &source.location) {
        (Ok(value), _) => value,
        (Err(_), SourceLocation::File(_)) => {
            serde_yaml::from_str(text).map_err(|e| format!("neither JSON nor YAML: {e}"))?
        }
        (Err(e), SourceLocation::Http { .. }) => return Err(format!("not JSON: {e}")),
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

/// The backend of an entry; `None` if its status disables it.
fn entry(value: Value, source: &SourcePlan) -> Result<Option<BackendPlan>, String> {
    if !value.is_object() {
        return Err("is not an object".to_owned());
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
        tls: None,
        stream_usage: entry.stream_usage,
        addresses: entry.addresses,
        engine: entry.engine,
        enabled: raw::Switch(true),
        health_check: raw::Switch(true),
        protocol: entry.protocol,
        vendor: entry.vendor,
        languages: entry.languages.unwrap_or_default(),
        completions: entry.completions,
        state_domain: entry.state_domain,
        drop_fields: entry.drop_fields.unwrap_or_default(),
    };
    let mut problems = Vec::new();
    // Only prompts read variables after the file was expanded.
    let env = |_: &str| None;
    let folder = std::path::Path::new("");
    let mut planner = Planner::new(folder, &source.proxies, &env, &mut problems);
    let plan = planner.backend("", &raw);
    planner.trust();
    match plan.filter(|_| problems.is_empty()) {
        Some(plan) => Ok(Some(BackendPlan { key: source.key.clone(), ..plan })),
        None => Err(problems.iter().map(in_one_line).collect::<Vec<_>>().join("; ")),
    }
}

fn in_one_line(problem: &Problem) -> String {
    problem.to_string().trim_start_matches('.').to_owned()
}

/// Whether there is an enabled source.
pub(super) fn are_on(raw: &Raw) -> bool {
    let on = |d: &raw::Discovery| d.enabled.0 && d.sources.iter().any(|s| s.enabled.0);
    raw.discovery.as_ref().is_some_and(on)
}

#[cfg(test)]
mod tests {
    use http::header;
    use proptest::prelude::*;

    use super::*;

    fn source(location: SourceLocation) -> SourcePlan {
        let key = (header::AUTHORIZATION, HeaderValue::from_static("Bearer sk-1"));
        let (name, proxies) = ("s".to_owned(), Arc::default());
        SourcePlan { name, location, interval: FILE_INTERVAL, key: Some(key), proxies }
    }

    fn http() -> SourcePlan {
        source(SourceLocation::Http {
            url: String::new(),
            timeout: FILE_INTERVAL,
            headers: Vec::new(),
        })
    }

    fn names(listed: &SourceList) -> Vec<&str> {
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
            let listed = read_list(&text, &http()).unwrap();
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
    fn an_entry_says_of_its_language_what_a_backend_of_the_file_says() {
        let text = r#"[{"url": "https://a/v1", "vendor": "mistral", "state_domain": "account",
                        "drop_fields": ["seed"], "engine": "sglang"},
                       {"url": "http://b", "protocol": "anthropic"},
                       {"url": "https://d/v1", "vendor": "mistral", "stream_usage": "continuous"},
                       {"url": "http://c", "protocol": "morse"}]"#;
        let listed = read_list(text, &http()).unwrap();
        let [a, b, d] = &listed.backends[..] else { panic!("{listed:?}") };
        assert_eq!((&*a.state_domain, a.engine), ("account", Engine::Sglang));
        assert!(a.quirks.refuses.iter().any(|name| name == "seed"));
        // What is written takes precedence over what is known of the vendor.
        assert_eq!((a.stream_usage, d.stream_usage), (StreamUsage::Off, StreamUsage::Continuous));
        assert_eq!((d.engine, d.quirks.stream_options), (Engine::Other, true));
        assert_eq!(b.languages.first().name(), "messages");
        assert!(listed.skipped[0].contains("`morse`"), "{:?}", listed.skipped);
    }

    #[test]
    fn files_may_be_yaml_and_answers_may_not() {
        let text = "backends:\n  - {name: a, url: \"http://a:1\"}\n";
        let file = source(SourceLocation::File("list.yaml".into()));
        assert_eq!(names(&read_list(text, &file).unwrap()), ["a"]);
        assert!(read_list(text, &http()).is_err());
    }

    #[test]
    fn bad_entries_are_skipped_by_name_and_the_others_stay() {
        let text = r#"[{"name": "a", "url": "http://a"}, {"name": "no-url"}, 7,
                       {"name": "w", "url": "http://w", "weight": 0},
                       {"name": "u", "url": "ftp://u"}, {"url": "http://me:secret@h"},
                       {"name": "a", "url": "http://again"}, {"name": "x\ny", "url": "http://x"},
                       {"name": "a", "url": "http://third"}, {"name": "z", "url": "http://z"}]"#;
        let listed = read_list(text, &http()).unwrap();
        assert_eq!(names(&listed), ["a", "z"]);
        assert_eq!(*listed.backends[0].url, *"http://a");
        let told = listed.skipped.join("\n");
        assert_eq!(listed.skipped.len(), 8, "{told}");
        for part in [
            "entry 1 (\"no-url\"): missing field `url`",
            "entry 2: is not an object",
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
            assert!(read_list(text, &http()).is_err(), "{text}");
            assert!(read_list(text, &source(SourceLocation::File("f".into()))).is_err(), "{text}");
        }
        assert_eq!(read_list("[]", &http()).unwrap(), SourceList::default());
    }

    #[test]
    fn a_list_of_which_nothing_is_of_use_is_refused_whole() {
        let bad = r#"{"name": "b", "url": "ftp://b"}"#;
        let off = r#"{"name": "c", "url": "http://c", "status": "disabled"}"#;
        for text in [format!("[{bad}]"), format!("[{off}, {bad}]")] {
            let why = read_list(&text, &http()).unwrap_err();
            assert!(why.starts_with("no entry is valid: entry "), "{why}");
            assert!(why.contains("(\"b\"): url: the scheme must be"), "{why}");
        }
        let many = vec![bad; 30].join(",");
        let why = read_list(&format!("[{many}]"), &http()).unwrap_err();
        assert!(why.ends_with("; and 20 more"), "{why}");
        // Backends that are switched off are meant to be none.
        assert_eq!(read_list(&format!("[{off}]"), &http()).unwrap(), SourceList::default());
    }

    proptest! {
        #[test]
        fn whatever_a_source_tells_the_gateway_goes_on(text in ".{0,200}") {
            let _ = read_list(&text, &http());
            let _ = read_list(&format!("[{{\"url\": {text:?}, \"name\": {text:?}}}]"), &http());
        }
    }
}
