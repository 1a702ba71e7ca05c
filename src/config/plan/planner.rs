//! What all sections need to make their part of a plan: the lists of problems and warnings, and the
//! checks that several sections share.

use std::{
    collections::BTreeMap,
    fmt::Display,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use http::{HeaderName, HeaderValue, Uri};
use ipnet::IpNet;

use crate::{
    base::{Secret, ip},
    config::{
        problem::Problem,
        raw::{Raw, SecretText},
    },
    lua::Library,
    store::{proxy::Proxies, tls},
};

pub(in crate::config) struct Planner<'a> {
    pub(super) folder: &'a Path,
    pub(super) problems: &'a mut Vec<Problem>,
    pub(super) files: Vec<PathBuf>,
    pub(super) warnings: Vec<Problem>,
    /// Whether there are discovery sources.
    pub(super) discovers: bool,
    /// The proxies of the environment.
    pub(super) proxies: &'a Proxies,
    /// Looks a variable of the environment up.
    pub(super) env: &'a dyn Fn(&str) -> Option<String>,
    /// The paths of keys that need the trust store, because they lead to a TLS connection.
    pub(super) trusting: Vec<String>,
    /// What scripts reach beyond their own values.
    pub(super) library: Arc<Library>,
}

impl<'a> Planner<'a> {
    pub(super) fn new(
        folder: &'a Path,
        proxies: &'a Proxies,
        env: &'a dyn Fn(&str) -> Option<String>,
        problems: &'a mut Vec<Problem>,
    ) -> Self {
        Self {
            folder,
            problems,
            files: Vec::new(),
            warnings: Vec::new(),
            discovers: false,
            proxies,
            env,
            trusting: Vec::new(),
            library: Arc::default(),
        }
    }

    /// Notes that a key leads to a TLS connection.
    pub(super) fn needs_trust(&mut self, at: impl Into<String>) {
        self.trusting.push(at.into());
    }

    /// Reports an unusable trust store: a problem if a key needs it, a warning if a discovered backend may, or
    /// if the environment names it. Otherwise it is not even read.
    pub(super) fn trust(&mut self) {
        let needed = self.trusting.first().cloned();
        if needed.is_none() && !self.discovers && !tls::is_named() {
            return;
        }
        let Err(why) = tls::trusted() else { return };
        let hint = "the trust store is read when it is first needed";
        match needed {
            Some(at) => {
                let message = format!("needs the trust store of the machine, but {why}");
                self.problem(at, message, hint);
            }
            None => self.warn("", format!("{why}: TLS connections are not possible")),
        }
    }
}

impl Planner<'_> {
    pub(super) fn problem(
        &mut self,
        path: impl Into<String>,
        message: impl Into<String>,
        hint: &str,
    ) {
        let problem = Problem::new(path, message);
        self.problems.push(if hint.is_empty() { problem } else { problem.hint(hint) });
    }

    pub(super) fn warn(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.warnings.push(Problem::new(path, message));
    }

    /// The section that a type requires. `what` is what has the type, for instance a provider.
    pub(super) fn section<'r, T>(
        &mut self,
        at: &str,
        what: &str,
        key: &str,
        given: Option<&'r T>,
    ) -> Option<&'r T> {
        if given.is_none() {
            let message = format!("a {what} of type `{key}` needs a section `{key}`");
            self.problem(at, message, "");
        }
        given
    }

    pub(super) fn nets(&mut self, at: &str, texts: &[String]) -> Vec<IpNet> {
        let mut nets = Vec::new();
        for (i, text) in texts.iter().enumerate() {
            match ip::parse(text) {
                Some(net) => nets.push(net),
                None => self.problem(
                    format!("{at}[{i}]"),
                    format!("`{text}` is not an address or a network"),
                    "write `10.0.0.0/8` or `192.0.2.7`",
                ),
            }
        }
        nets
    }

    pub(super) fn path(&self, text: &str) -> PathBuf {
        self.folder.join(text)
    }

    /// The configured path, or `name` in `data_dir`.
    pub(super) fn data(&self, raw: &Raw, given: Option<&str>, name: &str) -> PathBuf {
        given.map_or_else(|| self.path(&raw.data_dir).join(name), |given| self.path(given))
    }

    /// A secret from the configuration or from a file.
    pub(super) fn secret(
        &mut self,
        at: &str,
        key: &str,
        text: Option<&SecretText>,
        file: Option<&str>,
    ) -> Option<Secret> {
        match (text, file) {
            (Some(_), Some(_)) => {
                self.problem(
                    format!("{at}.{key}"),
                    format!("both `{key}` and `{key}_file` are given"),
                    "keep one",
                );
                None
            }
            (Some(text), None) => Some(text.0.clone()),
            (None, Some(file)) => self.secret_file(format!("{at}.{key}_file"), file),
            (None, None) => None,
        }
    }

    pub(super) fn secret_file(&mut self, at: String, file: &str) -> Option<Secret> {
        let path = self.path(file);
        self.text_of(at, &path).map(Secret::new)
    }

    /// The text of a file that the configuration names.
    pub(super) fn text_of(&mut self, at: impl Into<String>, path: &Path) -> Option<String> {
        match std::fs::read_to_string(path) {
            Ok(text) => Some(text),
            Err(e) => {
                let message = format!("cannot read {}: {e}", path.display());
                self.problem(
                    at,
                    message,
                    "a relative path starts at the folder of the configuration file",
                );
                None
            }
        }
    }

    /// Names of header fields; `at` is the path of the list.
    pub(super) fn header_names(&mut self, at: &str, texts: &[String]) -> Vec<HeaderName> {
        let mut names = Vec::with_capacity(texts.len());
        for (i, text) in texts.iter().enumerate() {
            match text.parse() {
                Ok(name) => names.push(name),
                Err(_) => {
                    self.problem(
                        format!("{at}[{i}]"),
                        format!("`{text}` is not a header name"),
                        "",
                    );
                }
            }
        }
        names
    }

    /// Whether a text is an http or https URL.
    pub(super) fn http_url(&mut self, at: &str, text: &str) -> bool {
        let uri = text.parse::<Uri>().ok().filter(|uri| uri.host().is_some());
        let scheme = uri.as_ref().and_then(Uri::scheme_str);
        let fine = matches!(scheme, Some("http" | "https"));
        if !fine {
            self.problem(at, "is not an http or https URL", "write `https://host/path`");
        } else if scheme == Some("https") {
            self.needs_trust(at);
        }
        fine
    }

    /// Header fields with secret values, from the configuration or from files.
    pub(super) fn header_fields(
        &mut self,
        at: &str,
        texts: &BTreeMap<String, SecretText>,
        files: &BTreeMap<String, String>,
    ) -> Vec<(HeaderName, HeaderValue)> {
        let mut values: Vec<(&String, Secret)> =
            texts.iter().map(|(name, value)| (name, value.0.clone())).collect();
        for (name, file) in files {
            let at = format!("{at}.headers_file.{name}");
            if texts.contains_key(name) {
                self.problem(at, "is also set in `headers`", "keep one");
                continue;
            }
            values.extend(self.secret_file(at, file).map(|value| (name, value)));
        }
        let mut headers = Vec::new();
        for (name, value) in values {
            match (name.parse::<HeaderName>(), HeaderValue::from_str(value.expose())) {
                (Ok(name), Ok(mut value)) => {
                    value.set_sensitive(true);
                    headers.push((name, value));
                }
                _ => {
                    let at = format!("{at}.headers.{name}");
                    self.problem(at, "is not a header field", "a value is one line of text");
                }
            }
        }
        headers
    }

    /// Reports a number that is out of range.
    pub(super) fn within<T: PartialOrd + Display>(
        &mut self,
        at: impl Into<String>,
        value: T,
        range: RangeInclusive<T>,
        hint: &str,
    ) {
        if !range.contains(&value) {
            let message = format!("is not between {} and {}", range.start(), range.end());
            self.problem(at, message, hint);
        }
    }

    /// Reports a duration that is out of range.
    pub(super) fn within_time(
        &mut self,
        at: impl Into<String>,
        value: Duration,
        range: RangeInclusive<Duration>,
        hint: &str,
    ) {
        if !range.contains(&value) {
            let message = format!("is not between {:?} and {:?}", range.start(), range.end());
            self.problem(at, message, hint);
        }
    }
}
