//! `lua`: what scripts reach beyond their own values.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use super::planner::Planner;
use crate::{
    config::raw::{LuaHttp, LuaStore, LuaStoreKind, Raw},
    lua::{HttpSettings, Library, Modules, Origin, StoreSettings},
};

/// The folder of modules by default.
const MODULES: &str = "lua/modules";

impl Planner<'_> {
    /// The library of all scripts. It is connected when the configuration comes into force.
    pub(super) fn lua_library(&mut self, whole: &Raw) -> Arc<Library> {
        let raw = &whole.lua;
        let env = self.lua_env(&raw.env);
        let modules = self.lua_modules(raw.modules.as_deref());
        let store = self.lua_store(&raw.store, whole);
        let http = self.lua_http(&raw.http);
        Arc::new(Library::new(env, modules, store, http))
    }

    /// The values of the variables that are set.
    fn lua_env(&mut self, names: &[String]) -> BTreeMap<String, String> {
        let legal = |name: &str| {
            !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        };
        let mut values = BTreeMap::new();
        for (i, name) in names.iter().enumerate() {
            if !legal(name) {
                let hint = "write a name without `$`, as in `REGION`";
                self.problem(format!("lua.env[{i}]"), "is not a name of a variable", hint);
            } else if let Ok(value) = std::env::var(name) {
                values.insert(name.clone(), value);
            }
        }
        values
    }

    fn lua_modules(&mut self, given: Option<&str>) -> Modules {
        let folder = self.path(given.unwrap_or(MODULES));
        if given.is_none() && !folder.is_dir() {
            return Modules::default();
        }
        let loaded = Modules::load(&folder);
        for why in loaded.problems {
            self.problem("lua.modules", why, "");
        }
        self.files.extend(loaded.files);
        if given.is_some() && loaded.modules.names().next().is_none() {
            self.warn("lua.modules", format!("there are no modules in {}", folder.display()));
        }
        loaded.modules
    }

    fn lua_store(&mut self, raw: &LuaStore, whole: &Raw) -> StoreSettings {
        let at = |name: &str| format!("lua.store.{name}");
        let redis = match raw.kind {
            LuaStoreKind::Memory => None,
            LuaStoreKind::Redis => self
                .named_cache(&at("storage"), &raw.storage, whole)
                .map(|server| (raw.storage.clone(), server)),
        };
        self.within(at("max_entries"), raw.max_entries, 1..=10_000_000, "the default is 10000");
        self.within(at("max_value"), raw.max_value.0, 1..=1 << 20, "the default is 64KiB");
        let (second, year) = (Duration::from_secs(1), Duration::from_secs(366 * 86_400));
        self.within_time(at("default_ttl"), raw.default_ttl.0, second..=year, "the default is 1h");
        let (least, most) = (Duration::from_millis(1), Duration::from_secs(10));
        self.within_time(at("timeout"), raw.timeout.0, least..=most, "the default is 200ms");
        StoreSettings {
            redis,
            prefix: raw.prefix.clone(),
            max_entries: raw.max_entries,
            max_value: raw.max_value.0 as usize,
            default_ttl: raw.default_ttl.0,
            timeout: raw.timeout.0,
        }
    }

    fn lua_http(&mut self, raw: &LuaHttp) -> HttpSettings {
        let at = |name: &str| format!("lua.http.{name}");
        let mut hosts = Vec::new();
        for (i, text) in raw.hosts.iter().enumerate() {
            let at = format!("lua.http.hosts[{i}]");
            let Some(origin) = Origin::parse(text) else {
                let hint = "write `https://host`, `http://host:8080` or `https://*.example.com`";
                self.problem(at, format!("`{text}` is not a scheme and a host"), hint);
                continue;
            };
            if origin.is_tls() {
                self.needs_trust(at);
            }
            hosts.push(origin);
        }
        let (least, most) = (Duration::from_millis(1), Duration::from_secs(10));
        self.within_time(at("timeout"), raw.timeout.0, least..=most, "the default is 1s");
        self.within(at("max_response"), raw.max_response.0, 1..=16 << 20, "the default is 1MiB");
        self.within(at("max_concurrent"), raw.max_concurrent, 1..=1000, "the default is 32");
        HttpSettings {
            hosts,
            timeout: raw.timeout.0,
            max_response: raw.max_response.0 as usize,
            max_concurrent: raw.max_concurrent,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use crate::config::load_text;

    fn problems(folder: &std::path::Path, lua: &str) -> Vec<String> {
        let text = format!("backends: [{{url: 'http://vllm:8000'}}]\nlua:\n{lua}\n");
        let loaded = load_text(&text, folder, &|_| None);
        loaded.problems.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn every_mistake_has_its_path() {
        let folder = tempfile::tempdir().unwrap();
        for (lua, path) in [
            ("  env: ['$HOME']", "lua.env[0]"),
            ("  modules: none", "lua.modules"),
            ("  store: {type: redis, storage: none}", "lua.store.storage"),
            ("  store: {type: disk}", "lua.store.type"),
            ("  store: {max_entries: 0}", "lua.store.max_entries"),
            ("  store: {max_value: 2MiB}", "lua.store.max_value"),
            ("  store: {default_ttl: 0}", "lua.store.default_ttl"),
            ("  store: {timeout: 1m}", "lua.store.timeout"),
            ("  http: {hosts: ['a.example', 'https://a.example/x']}", "lua.http.hosts[1]"),
            ("  http: {timeout: 0}", "lua.http.timeout"),
            ("  http: {max_response: 1GiB}", "lua.http.max_response"),
            ("  http: {max_concurrent: 0}", "lua.http.max_concurrent"),
            ("  http: {host: x}", "lua.http.host"),
        ] {
            let problems = problems(folder.path(), lua);
            assert!(problems.iter().any(|p| p.contains(path)), "{lua}: {problems:?}");
        }
    }

    #[test]
    fn modules_are_compiled_and_watched() {
        let folder = tempfile::tempdir().unwrap();
        let modules = folder.path().join("lua/modules");
        fs::create_dir_all(&modules).unwrap();
        fs::write(modules.join("fine.lua"), "return 1").unwrap();
        let text = "backends: [{url: 'http://vllm:8000'}]";
        let plan = load_text(text, folder.path(), &|_| None).plan.unwrap();
        assert_eq!(plan.files, [modules.join("fine.lua")]);
        fs::write(modules.join("wrong.lua"), "\nreturn +").unwrap();
        let problems = problems(folder.path(), "  env: []");
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].contains("lua.modules") && problems[0].contains("wrong.lua:2:"));
    }
}
