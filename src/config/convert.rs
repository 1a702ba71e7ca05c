//! Rewrites a configuration of the original project (up to version 0.5).
//!
//! Renamed keys are moved. A key without a counterpart, or one that cannot be read, becomes a
//! comment that says what to do instead, so that the rest can be used at once. Variables stay
//! unchanged.

use serde_yaml::{Mapping, Value};

use super::{
    check::document,
    legacy::{self, Now},
    problem::Problem,
    raw::Raw,
    read::read,
    value::{self, Step},
};
use crate::base::without_mark;

/// A key of the old file that is not in the new one.
struct Dropped {
    path: String,
    why: String,
    old: Value,
}

struct Converter {
    document: Value,
    dropped: Vec<Dropped>,
}

/// Rewrites a configuration. Returns the new text.
///
/// # Errors
/// If the old one is not YAML, or not a mapping.
pub fn convert(old: &str) -> Result<String, Vec<Problem>> {
    let mut problems = Vec::new();
    let Some(document) = document(without_mark(old), &mut problems).filter(|_| problems.is_empty())
    else {
        return Err(problems);
    };
    let mut converter = Converter { document, dropped: Vec::new() };
    converter.sections();
    for (key, now) in legacy::KEYS {
        converter.apply(&value::parse(&key.replace("[]", "[0]")), now);
    }
    converter.words();
    converter.unreadable();
    Ok(converter.text())
}

impl Converter {
    /// Changes that depend on more than one key.
    fn sections(&mut self) {
        let at = |path: &str| value::parse(path);
        let tls = value::get_mut(&mut self.document, &at("server.tls"));
        if tls.is_some_and(|tls| tls.get("enabled").and_then(Value::as_bool) != Some(true)) {
            self.drop_key(&at("server.tls"), "it was not enabled");
        } else {
            value::remove(&mut self.document, &at("server.tls.enabled"));
        }
        let cors = value::get_mut(&mut self.document, &at("server.cors"));
        if cors.is_some_and(|cors| cors.get("enabled").and_then(Value::as_bool) != Some(true)) {
            self.drop_key(&at("server.cors"), "it was not enabled");
        }
        if self.is(&at("admin.listen"), "") {
            let why = "the admin API has a separate address; the default is 127.0.0.1:8001";
            self.drop_key(&at("admin.listen"), why);
        }
        for list in ["storage.caches", "discovery.sources"] {
            self.elements(list);
        }
        self.static_sources();
        for list in ["api_keys", "auth.pipeline[].static.keys"] {
            self.each(&format!("{list}[].status"), |status| {
                if status.as_str() == Some("enabled") {
                    *status = "active".into();
                }
            });
        }
        // It was a number of megabytes.
        let scripts = ["auth.pipeline[].lua", "routing.script", "rate_limit.script"];
        let stages =
            ["on_request", "on_auth", "on_route", "on_response", "on_error", "on_complete"];
        let kinds = [
            "routing",
            "auth",
            "rate_limit",
            "usage",
            "request_transform",
            "response_transform",
            "error_handler",
        ];
        let all = scripts.into_iter().map(str::to_owned);
        let all = all.chain(stages.map(|stage| format!("hooks.{stage}")));
        for script in all.chain(kinds.map(|kind| format!("scripts.{kind}"))) {
            self.each(&format!("{script}.max_memory"), |memory| {
                if let Some(megabytes) = memory.as_u64().filter(|n| *n < 1 << 12) {
                    *memory = format!("{megabytes}MiB").into();
                }
            });
        }
        self.fallbacks();
    }

    /// Changes a key at each path where it is.
    fn each(&mut self, key: &str, mut change: impl FnMut(&mut Value)) {
        for path in self.paths(&value::parse(&key.replace("[]", "[0]"))) {
            if let Some(slot) = self.get(&path) {
                change(slot);
            }
        }
    }

    /// Drops the servers of fallback rules that are not backends: old rules could name any URL.
    fn fallbacks(&mut self) {
        let mut known = Vec::new();
        for key in ["backends[].url", "backends[].name"] {
            self.each(key, |text| known.extend(text.as_str().map(str::to_owned)));
        }
        let why = "it is not a backend: add it to `backends`";
        for key in ["routing.fallback[].fallback[]", "routing.fallback[].primary"] {
            for path in self.paths(&value::parse(&key.replace("[]", "[0]"))).into_iter().rev() {
                let named = self.get(&path).and_then(|v| v.as_str()).unwrap_or_default();
                let named = named.trim_end_matches('/').to_owned();
                if !known.iter().any(|known| known.trim_end_matches('/') == named) {
                    self.drop_key(&path, why);
                }
            }
        }
        // A rule without a backend.
        for path in self.paths(&value::parse("routing.fallback[0]")).into_iter().rev() {
            let rule = self.get(&path).cloned().unwrap_or_default();
            let list = rule.get("fallback").and_then(Value::as_sequence);
            if rule.get("primary").is_none() && list.is_none_or(Vec::is_empty) {
                self.drop_key(&path, "none of the servers that it names is a backend");
            }
        }
    }

    /// Drops list elements of types that are no longer supported.
    fn elements(&mut self, list: &str) {
        let mut path = value::parse(list);
        let length = self.get(&path).and_then(|v| v.as_sequence_mut()).map_or(0, |s| s.len());
        for index in (0..length).rev() {
            path.push(Step::Index(index));
            let element = self.get(&path).cloned().unwrap_or_default();
            let word = |key: &str| element.get(key).and_then(Value::as_str).unwrap_or_default();
            let why = match (list, word("driver"), word("type")) {
                ("storage.caches", "memory", _) => "the driver `memory` had no effect",
                ("discovery.sources", _, "database" | "etcd") => {
                    "use `type: http`, or write a file and use `type: file`"
                }
                ("discovery.sources", _, "kubernetes") => {
                    "name a headless service in `backends`: each of its addresses becomes a backend"
                }
                ("discovery.sources", _, "consul") => {
                    "write `http://SERVICE.service.consul:PORT` in `backends` and Consul's address in `discovery.dns_servers`"
                }
                _ => "",
            };
            if !why.is_empty() {
                self.drop_key(&path, why);
            } else if list == "storage.caches" {
                path.push(Step::Key("pool_size".to_owned()));
                if self.get(&path).and_then(|v| v.as_u64()).is_some_and(|size| size > 64) {
                    let why = "each connection carries many requests at a time: one is enough";
                    self.drop_key(&path, why);
                }
                path.pop();
            }
            path.pop();
        }
    }

    /// Moves the backends of sources of type `static` to `backends`.
    fn static_sources(&mut self) {
        let path = value::parse("discovery.sources");
        let Some(sources) = self.get(&path).and_then(Value::as_sequence_mut) else {
            return;
        };
        let mut found = Vec::new();
        sources.retain_mut(|source| {
            if source.get("type").and_then(Value::as_str) != Some("static") {
                return true;
            }
            let on = source.get("enabled").and_then(Value::as_bool) != Some(false);
            let list = source.get_mut("static").and_then(|s| s.get_mut("backends"));
            if let Some(Value::Sequence(list)) = list.filter(|_| on) {
                found.append(list);
            }
            false
        });
        if found.is_empty() {
            return;
        }
        if let Value::Mapping(keys) = &mut self.document {
            let backends = keys.entry("backends".into()).or_insert(Value::Sequence(Vec::new()));
            if let Value::Sequence(backends) = backends {
                backends.append(&mut found);
            }
        }
    }

    /// Moves or drops a key, at each path where it is.
    fn apply(&mut self, key: &[Step], now: Now) {
        for path in self.paths(key).into_iter().rev() {
            match now {
                Now::Gone(why) => self.drop_key(&path, why),
                Now::Moved(to) => {
                    let indices = path.iter().filter(|step| matches!(step, Step::Index(_)));
                    let mut indices = indices.cloned();
                    let mut to = value::parse(&to.replace("[]", "[0]"));
                    for step in to.iter_mut().filter(|step| matches!(step, Step::Index(_))) {
                        *step = indices.next().unwrap_or(Step::Index(0));
                    }
                    self.rename(&path, &to);
                }
            }
        }
    }

    fn rename(&mut self, from: &[Step], to: &[Step]) {
        if self.get(to).is_some() {
            let why = format!("`{}` is set already", value::show(to));
            return self.drop_key(from, &why);
        }
        if let Some(moved) = self.take(from) {
            put(&mut self.document, to, moved);
        }
    }

    /// The paths of a key in the document; an index in `key` stands for any index.
    fn paths(&mut self, key: &[Step]) -> Vec<Vec<Step>> {
        let mut paths = vec![Vec::new()];
        for step in key {
            let mut further = Vec::new();
            for path in paths {
                let length = match step {
                    Step::Index(_) => {
                        self.get(&path).and_then(|v| v.as_sequence_mut()).map_or(0, |s| s.len())
                    }
                    Step::Key(_) => 0,
                };
                let steps: Vec<Step> = match step {
                    Step::Key(_) => vec![step.clone()],
                    Step::Index(_) => (0..length).map(Step::Index).collect(),
                };
                for step in steps {
                    let mut path: Vec<Step> = path.clone();
                    path.push(step);
                    if self.get(&path).is_some() {
                        further.push(path);
                    }
                }
            }
            paths = further;
        }
        paths
    }

    /// Replaces words like `yes` by `true`: the old YAML reader took them for booleans.
    fn words(&mut self) {
        let mut problems = Vec::new();
        read::<Raw>(self.document.clone(), &[], &mut problems);
        for problem in problems {
            let switch = match problem.hint.as_deref() {
                Some("write `true`") => true,
                Some("write `false`") => false,
                _ => continue,
            };
            if let Some(slot) = self.get(&value::parse(&problem.path)) {
                *slot = Value::Bool(switch);
            }
        }
    }

    /// Drops values that cannot be read, except those that a variable may still replace.
    fn unreadable(&mut self) {
        let mut problems = Vec::new();
        read::<Raw>(self.document.clone(), &[], &mut problems);
        // From the end, so that earlier list elements keep their indices.
        for problem in problems.into_iter().rev() {
            let path = value::parse(&problem.path);
            let given = self.get(&path).cloned();
            let variable = given.as_ref().and_then(Value::as_str).is_some_and(|s| s.contains("${"));
            if variable || given.is_none() || problem.message.contains("missing field") {
                continue;
            }
            let hint = problem.hint.map(|hint| format!(" ({hint})")).unwrap_or_default();
            self.drop_key(&path, &format!("{}{hint}", problem.message));
        }
    }

    fn get(&mut self, path: &[Step]) -> Option<&mut Value> {
        value::get_mut(&mut self.document, path)
    }

    fn is(&mut self, path: &[Step], text: &str) -> bool {
        self.get(path).is_some_and(|v| v.as_str() == Some(text))
    }

    fn take(&mut self, path: &[Step]) -> Option<Value> {
        let taken = self.get(path).map(std::mem::take)?;
        value::remove(&mut self.document, path);
        // A section that is empty now is removed as well.
        if let Some((Step::Key(_), parent)) = path.split_last()
            && !parent.is_empty()
            && self.get(parent).and_then(|v| v.as_mapping_mut()).is_some_and(|m| m.is_empty())
            && matches!(parent.last(), Some(Step::Key(_)))
        {
            value::remove(&mut self.document, parent);
        }
        Some(taken)
    }

    /// Removes a value, and keeps it for a comment unless it was switched off.
    fn drop_key(&mut self, path: &[Step], why: &str) {
        if let Some(old) = self.take(path) {
            if old.get("enabled").and_then(Value::as_bool) == Some(false) {
                return;
            }
            self.dropped.push(Dropped { path: value::show(path), why: why.to_owned(), old });
        }
    }

    /// The new file: each section after the comments about it.
    fn text(self) -> String {
        let mut text =
            "# Written by `llmproxy convert` from a configuration of version 0.5 or older.\n"
                .to_owned();
        let mut dropped = self.dropped;
        dropped.sort_by(|a, b| a.path.cmp(&b.path));
        let Value::Mapping(keys) = self.document else {
            return text;
        };
        for (key, section) in keys {
            text.push('\n');
            let name = key.as_str().unwrap_or_default().to_owned();
            let own = |dropped: &Dropped| {
                value::parse(&dropped.path).first() == Some(&Step::Key(name.clone()))
            };
            for dropped in dropped.extract_if(.., |dropped| own(dropped)) {
                text.push_str(&dropped.comment());
            }
            let section = Value::Mapping(Mapping::from_iter([(key, section)]));
            text.push_str(&serde_yaml::to_string(&section).unwrap_or_default());
        }
        for dropped in dropped {
            text.push('\n');
            text.push_str(&dropped.comment());
        }
        text
    }
}

impl Dropped {
    /// The reason, and the old value.
    fn comment(&self) -> String {
        let mut comment = format!("# {}: {}. It was:\n", self.path, self.why);
        for line in serde_yaml::to_string(&self.old).unwrap_or_default().lines() {
            comment.push_str(&format!("#   {line}\n"));
        }
        comment
    }
}

/// Sets a value at a path, and creates the mappings above it.
fn put(document: &mut Value, path: &[Step], new: Value) {
    let Some((step, rest)) = path.split_first() else {
        *document = new;
        return;
    };
    let slot = match (step, document) {
        (Step::Key(key), Value::Mapping(map)) => {
            map.entry(key.as_str().into()).or_insert_with(|| Value::Mapping(Mapping::new()))
        }
        (Step::Index(index), Value::Sequence(list)) => match list.get_mut(*index) {
            Some(slot) => slot,
            None => return,
        },
        _ => return,
    };
    put(slot, rest, new);
}
