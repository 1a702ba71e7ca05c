//! Scripts: in the configuration, in files, or by name.

use std::{sync::Arc, time::Duration};

use super::planner::Planner;
use crate::{
    base::Stage,
    config::raw,
    lua::{Limits, Scope, Script},
};

/// The built-in scripts: name and text.
pub const SHIPPED: [(&str, &str); 6] = [
    ("balance", include_str!("../../../lua/balance.lua")),
    ("business_hours", include_str!("../../../lua/business_hours.lua")),
    ("ip_allow_list", include_str!("../../../lua/ip_allow_list.lua")),
    ("model_permission", include_str!("../../../lua/model_permission.lua")),
    ("vip_tier", include_str!("../../../lua/vip_tier.lua")),
    ("webhook_result", include_str!("../../../lua/webhook_result.lua")),
];

/// Where the text of a script is.
#[derive(Clone, Copy)]
pub(super) struct ScriptSource<'a> {
    /// The key that says so, below the script's section.
    key: &'static str,
    text: &'a str,
}

impl<'a> ScriptSource<'a> {
    /// The one of these keys that is given.
    ///
    /// # Errors
    /// The keys, if several are.
    pub fn of(given: &[(&'static str, Option<&'a str>)]) -> Result<Option<Self>, String> {
        let given: Vec<_> =
            given.iter().filter_map(|(key, text)| Some(Self { key, text: (*text)? })).collect();
        match given[..] {
            [] => Ok(None),
            [one] => Ok(Some(one)),
            [..] => {
                let keys: Vec<_> = given.iter().map(|source| source.key).collect();
                Err(keys.join(", "))
            }
        }
    }
}

/// How a script is used.
pub(super) struct ScriptUse {
    /// How long a call may take; `None`: the usual time.
    pub timeout: Option<Duration>,
    /// Bytes; `None`: the usual size.
    pub max_memory: Option<u64>,
    /// The stage; `None`: it decides about a key.
    pub stage: Option<Stage>,
}

impl ScriptUse {
    fn scope(&self) -> Scope {
        self.stage.map_or(Scope::AUTH, |stage| Scope::of_stage(stage.key()))
    }
}

impl Planner<'_> {
    pub(super) fn script(&mut self, at: &str, raw: &raw::Provider) -> Option<Arc<Script>> {
        let lua = raw.lua.clone().unwrap_or_default();
        let given = [
            ("lua_script", raw.lua_script.as_deref()),
            ("lua_script_file", raw.lua_script_file.as_deref()),
            ("lua.script", lua.script.as_deref()),
            ("lua.path", lua.path.as_deref()),
            ("lua.name", lua.name.as_deref()),
        ];
        let source = match ScriptSource::of(&given) {
            Ok(Some(source)) => source,
            Ok(None) if raw.lua.is_some() => {
                self.problem(
                    format!("{at}.lua"),
                    "has no script",
                    "add `script`, `path` or `name`",
                );
                return None;
            }
            Ok(None) => return None,
            Err(keys) => {
                self.problem(at, format!("has several scripts: {keys}"), "keep one");
                return None;
            }
        };
        let how = ScriptUse {
            timeout: lua.timeout.map(|t| t.0),
            max_memory: lua.max_memory.map(|m| m.0),
            stage: None,
        };
        Some(self.compile(at, source, &how)?.1)
    }

    /// Compiles a script; its name is given too.
    pub(super) fn compile(
        &mut self,
        at: &str,
        source: ScriptSource<'_>,
        how: &ScriptUse,
    ) -> Option<(String, Arc<Script>)> {
        let ScriptSource { key, text } = source;
        // Several inline scripts are told apart by where they stand.
        let own = if how.stage.is_some() { at } else { "script" };
        let own = own.to_owned();
        let at = format!("{at}.{key}");
        let (name, text) = match key {
            "lua_script" | "lua.script" | "script" => (own, text.to_owned()),
            "lua.name" | "name" => self.script_by_name(&at, text)?,
            _ => (text.to_owned(), self.script_file(&at, text)?),
        };
        let limits = self.script_limits(&at, how);
        if let Some(zone) = Script::unknown_zone(&text) {
            let message = format!(
                "uses dates, but the time zone `{zone}` (TZ) is unknown: `os.date` without `!`, and `os.time` \
                 with a table, will fail"
            );
            self.warn(&at, message);
        }
        match Script::compile_with(&name, &text, limits, &self.library, how.scope()) {
            Ok(script) => Some((name, Arc::new(script))),
            Err(why) => {
                self.problem(at, format!("is not a Lua script: {why}"), "");
                None
            }
        }
    }

    fn script_limits(&mut self, at: &str, how: &ScriptUse) -> Limits {
        let standard = Limits::default();
        let limits = Limits::new(
            how.timeout.unwrap_or(standard.time),
            how.max_memory.map_or(standard.memory, |bytes| bytes as usize),
        );
        if !(Duration::from_millis(1)..=Duration::from_secs(10)).contains(&limits.time) {
            self.problem(
                format!("{at}.timeout"),
                "is not between 1ms and 10s",
                "the default is 100ms",
            );
        }
        if !((1 << 16)..=(1 << 30)).contains(&limits.memory) {
            self.problem(
                format!("{at}.max_memory"),
                "is not between 64KiB and 1GiB",
                "the default is 10MiB",
            );
        }
        limits
    }

    fn script_file(&mut self, at: &str, file: &str) -> Option<String> {
        let path = self.path(file);
        self.files.push(path.clone());
        self.text_of(at, &path)
    }

    /// The operator's script takes precedence over a built-in one of the same name.
    fn script_by_name(&mut self, at: &str, name: &str) -> Option<(String, String)> {
        let legal = |c: char| c.is_alphanumeric() || c == '_' || c == '-';
        let file = format!("lua/{name}.lua");
        if !name.is_empty() && name.chars().all(legal) && self.path(&file).exists() {
            let text = self.script_file(at, &file)?;
            return Some((file, text));
        }
        match SHIPPED.iter().find(|(shipped, _)| *shipped == name) {
            Some((_, text)) => Some((file, (*text).to_owned())),
            None => {
                let known: Vec<_> = SHIPPED.iter().map(|(name, _)| *name).collect();
                let hint = format!("known are {}", known.join(", "));
                self.problem(at, format!("there is no script `{name}`"), &hint);
                None
            }
        }
    }
}
