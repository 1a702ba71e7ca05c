//! Compiling scripts.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use mlua::{Error, Lua, LuaOptions, StdLib, chunk::ChunkMode};

use crate::base::without_mark;

/// Longest error message in characters.
const LONGEST_ERROR: usize = 500;

/// Names of globals that are created only for scripts that may read them.
const OPTIONAL: [&str; 5] = ["api_key", "data", "key", "request", "metadata"];

/// Globals that make an answer depend on more than the key's data, or that have an effect.
const BEYOND_DATA: [&str; 8] =
    ["api_key", "request", "metadata", "now", "now_ms", "os", "math", "log"];

/// A compiled script.
pub struct Code {
    /// Unique in the process.
    pub id: u64,
    pub name: String,
    /// Bytecode of a function that returns the script as a function of its globals.
    pub bytecode: Vec<u8>,
    /// The optional globals that the text may read.
    pub mentions: Vec<&'static str>,
    /// The fields of `request` that the text may read; `None`: perhaps all of them.
    request_fields: Option<Vec<String>>,
    /// Whether its answer for the same data is always the same.
    pub depends_on_data_alone: bool,
    /// Whether a call can reach the table of its globals, or has set one: then every call gets a new
    /// table.
    own_globals: AtomicBool,
}

impl Code {
    /// Compiles a text. `name` is used in messages.
    ///
    /// # Errors
    /// The compiler's message, with the line.
    pub fn compile(name: &str, text: &str) -> Result<Self, String> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let text = without_mark(text);
        let bytecode = bytecode(name, text)?;
        // With `_ENV` a script can reach a global without its name.
        let dynamic = text.contains("_ENV");
        let reads = |name: &&str| dynamic || may_read(text, name);
        let mentions = OPTIONAL.into_iter().filter(reads).collect();
        let depends_on_data_alone = !BEYOND_DATA.iter().any(reads);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let own_globals = AtomicBool::new(dynamic);
        let request_fields = if dynamic { None } else { fields_read(text, "request") };
        let name = name.to_owned();
        Ok(Self {
            id,
            name,
            bytecode,
            mentions,
            request_fields,
            depends_on_data_alone,
            own_globals,
        })
    }

    /// Whether the text may read this field of `request`.
    pub fn reads_of_request(&self, field: &str) -> bool {
        self.request_fields.as_ref().is_none_or(|read| read.iter().any(|name| name == field))
    }

    pub fn has_own_globals(&self) -> bool {
        self.own_globals.load(Ordering::Relaxed)
    }

    /// A call has set a global: others will too.
    pub fn sets_globals(&self) {
        self.own_globals.store(true, Ordering::Relaxed);
    }
}

/// Whether a text may read the global of this name.
fn may_read(text: &str, name: &str) -> bool {
    reads(text, name).next().is_some()
}

/// The fields of a global that a text may read, if it uses the global in no other way.
fn fields_read(text: &str, name: &str) -> Option<Vec<String>> {
    reads(text, name)
        .map(|after| {
            let field = after.strip_prefix('.')?.trim_ascii_start();
            let end = field.find(|c: char| !is_in_name(c)).unwrap_or(field.len());
            // Two dots, or an error of the text.
            (end > 0).then(|| field[..end].to_owned())
        })
        .collect()
}

/// What follows the places of a text that may read the global of this name. A place does not where the
/// name is only a part of another, a field after a dot, or what a value is given to.
fn reads<'t>(text: &'t str, name: &'t str) -> impl Iterator<Item = &'t str> {
    text.match_indices(name).filter_map(move |(at, _)| {
        let (before, after) = (&text[..at], &text[at + name.len()..]);
        let part = before.ends_with(is_in_name) || after.starts_with(is_in_name);
        let field = before.ends_with('.') && !before.ends_with("..");
        let after = after.trim_ascii_start();
        let given = after.starts_with('=') && !after.starts_with("==");
        (!(part || field || given)).then_some(after)
    })
}

fn is_in_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// Compiles a text to a function that returns the script as a function of its globals: `_ENV` is an
/// argument, so that every call has its own.
fn bytecode(name: &str, text: &str) -> Result<Vec<u8>, String> {
    let lua = Lua::new_with(StdLib::NONE, LuaOptions::default()).map_err(|e| message(&e))?;
    let load = |text: String| {
        lua.load(text).set_name(format!("={name}")).set_mode(ChunkMode::Text).into_function()
    };
    // First on its own: a text that is a valid chunk cannot close the function around it.
    load(text.to_owned()).map_err(|e| message(&e))?;
    let whole = load(format!("return function(_ENV, ...) {text}\nend")).map_err(|e| message(&e))?;
    Ok(whole.dump(false))
}

/// The message of an error without its traceback, on one line.
pub fn message(error: &Error) -> String {
    let text = match error {
        Error::CallbackError { cause, .. } => return message(cause),
        Error::RuntimeError(text) | Error::MemoryError(text) => text.clone(),
        Error::SyntaxError { message, .. } => message.clone(),
        other => other.to_string(),
    };
    let text = text.split("\nstack traceback:").next().unwrap_or_default();
    text.chars().take(LONGEST_ERROR).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_global_that_may_be_read_is_seen() {
        for text in [
            "return data",
            "return data.x",
            "return {data = data}",
            "return data == nil",
            "return data\n==nil",
            "return 'a'..data",
            "data = data or {}",
            "x, data = data, 1",
            "local data <const> = data",
            "return (data)",
            "for k in pairs(data) do end",
            "return data--[[x]]",
            "data, x = 1, 2",
            "function f() return data end",
        ] {
            assert!(may_read(text, "data"), "{text}");
        }
        for text in [
            "return {data = 1}",
            "data = 1",
            "data\t=\n1",
            "return request.data",
            "local metadata = 1 return metadata",
            "return data_1",
            "",
        ] {
            assert!(!may_read(text, "data"), "{text}");
        }
    }

    #[test]
    fn fields_that_are_read_are_known_where_nothing_else_is() {
        for (text, fields) in [
            (
                "return request.model == 'm' or request . headers['x']",
                Some(vec!["model", "headers"]),
            ),
            ("request.path = 1 return request.path:lower()", Some(vec!["path", "path"])),
            ("request = {} return my.request", Some(vec![])),
            ("local r = request return r.model", None),
            ("return (request).model", None),
            ("return request['model']", None),
            ("for k, v in pairs(request) do end return request.model", None),
            ("return request--[[x]].model", None),
            ("return 'a'..request..'b'", None),
            ("return request:f()", None),
        ] {
            let fields: Option<Vec<_>> = fields.map(|f| f.into_iter().map(str::to_owned).collect());
            assert_eq!(fields_read(text, "request"), fields, "{text}");
        }
        assert!(
            Code::compile("t", "return _ENV.x or request.model").unwrap().reads_of_request("x")
        );
    }

    #[test]
    fn answers_from_data_alone_are_known() {
        let alone = |text| Code::compile("t", text).unwrap().depends_on_data_alone;
        for text in [
            "return {allow = tonumber(data.balance) > 0, metadata = {user_id = key.user_id}}",
            "return data.request == data.now",
            "return true",
        ] {
            assert!(alone(text), "{text}");
        }
        for text in [
            "return request.model == data.model",
            "return now() < data.expires_at",
            "return now_ms() < 1",
            "return data.t < os.time()",
            "local m = math return m['ran' .. 'dom']() < 0.5",
            "log('x') return true",
            "return metadata.x",
            "return api_key == data.x",
            "return _ENV['now']() < 1",
        ] {
            assert!(!alone(text), "{text}");
        }
    }
}
