//! Scripts: in the configuration, in files, or by name.

use std::{sync::Arc, time::Duration};

use super::planner::Planner;
use crate::{
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

impl Planner<'_> {
    pub(super) fn script(&mut self, at: &str, raw: &raw::Provider) -> Option<Arc<Script>> {
        let lua = raw.lua.clone().unwrap_or_default();
        let given = [
            ("lua_script", &raw.lua_script),
            ("lua_script_file", &raw.lua_script_file),
            ("lua.script", &lua.script),
            ("lua.path", &lua.path),
            ("lua.name", &lua.name),
        ];
        let given: Vec<_> =
            given.iter().filter_map(|(key, text)| Some((*key, text.as_deref()?))).collect();
        let (key, text) = match given[..] {
            [] if raw.lua.is_some() => {
                self.problem(
                    format!("{at}.lua"),
                    "has no script",
                    "add `script`, `path` or `name`",
                );
                return None;
            }
            [] => return None,
            [one] => one,
            [..] => {
                let keys: Vec<_> = given.iter().map(|(key, _)| *key).collect();
                self.problem(at, format!("has several scripts: {}", keys.join(", ")), "keep one");
                return None;
            }
        };
        let at = format!("{at}.{key}");
        let (name, text) = match key {
            "lua_script" | "lua.script" => ("script".to_owned(), text.to_owned()),
            "lua.name" => self.script_by_name(&at, text)?,
            _ => (text.to_owned(), self.script_file(&at, text)?),
        };
        let limits = self.script_limits(&at, &lua);
        if let Some(zone) = Script::unknown_zone(&text) {
            let message = format!(
                "uses dates, but the time zone `{zone}` (TZ) is unknown: `os.date` without `!`, and `os.time` \
                 with a table, will fail"
            );
            self.warn(&at, message);
        }
        match Script::compile_with(&name, &text, limits, &self.library, Scope::AUTH) {
            Ok(script) => Some(Arc::new(script)),
            Err(why) => {
                self.problem(at, format!("is not a Lua script: {why}"), "");
                None
            }
        }
    }

    fn script_limits(&mut self, at: &str, lua: &raw::Lua) -> Limits {
        let standard = Limits::default();
        let limits = Limits::new(
            lua.timeout.map_or(standard.time, |t| t.0),
            lua.max_memory.map_or(standard.memory, |m| m.0 as usize),
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
