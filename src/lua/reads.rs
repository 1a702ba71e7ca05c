//! What a text may read, and its bytecode.

use mlua::{Error, Lua, LuaOptions, StdLib, chunk::ChunkMode};

/// Longest error message in characters.
const LONGEST_ERROR: usize = 500;

/// Names of globals that a job sets only for scripts that may read them.
pub const GLOBALS: [&str; 29] = [
    "request",
    "response",
    "key_info",
    "api_key",
    "data",
    "key",
    "metadata",
    "principal",
    "limits",
    "candidates",
    "backends",
    "backend",
    "upstream",
    "event",
    "error",
    "usage",
    "record",
    "result",
    "stage",
    "standard_checks",
    "rate_limit_status",
    "current_time",
    "backend_url",
    "latency_ms",
    "error_message",
    "timestamp",
    "client",
    "tags",
    "attempt",
];

/// Globals and words that make the decision about a key depend on more than the key's data, or that
/// have an effect.
const BEYOND_DATA: [&str; 13] = [
    "api_key",
    "request",
    "metadata",
    "now",
    "now_ms",
    "os",
    "math",
    "log",
    "time",
    "uuid",
    "generate_uuid",
    "store",
    "http",
];

/// Words that need the library of the configuration.
const OF_LIBRARY: [&str; 4] = ["env", "http", "require", "store"];

/// What a text may read.
#[derive(Debug)]
pub struct Reads {
    /// With `_ENV` a script can reach a global without its name.
    pub dynamic: bool,
    /// The globals of jobs that the text may read, with the fields; `None`: perhaps all fields.
    globals: Vec<(&'static str, Option<Vec<String>>)>,
    /// The words that it may read, of those in `BEYOND_DATA` and `OF_LIBRARY`.
    words: Vec<&'static str>,
}

impl Reads {
    pub fn of(text: &str) -> Self {
        let dynamic = text.contains("_ENV");
        let read = |name: &&'static str| dynamic || may_read(text, name);
        let fields = |name| (name, if dynamic { None } else { fields_read(text, name) });
        let globals = GLOBALS.into_iter().filter(read).map(fields).collect();
        let words = BEYOND_DATA.into_iter().chain(OF_LIBRARY).filter(read).collect();
        Self { dynamic, globals, words }
    }

    /// Whether it may read this global, or this word of the library. Of a name that is neither: yes.
    pub fn mentions(&self, name: &str) -> bool {
        let known =
            GLOBALS.contains(&name) || BEYOND_DATA.contains(&name) || OF_LIBRARY.contains(&name);
        self.wants(name) || self.words.contains(&name) || !known
    }

    pub fn wants(&self, name: &str) -> bool {
        self.globals.iter().any(|(known, _)| *known == name)
    }

    /// Whether it may read this field of a global.
    pub fn wants_field(&self, global: &str, field: &str) -> bool {
        self.globals.iter().any(|(known, fields)| {
            *known == global
                && fields.as_ref().is_none_or(|fields| fields.iter().any(|name| name == field))
        })
    }

    /// Whether it may load modules.
    pub fn requires(&self) -> bool {
        self.words.contains(&"require")
    }

    /// Whether it may need the library of the configuration.
    pub fn uses_library(&self) -> bool {
        OF_LIBRARY.iter().any(|word| self.words.contains(word))
    }

    /// Whether an answer depends on the key's data alone, as far as this text goes.
    pub fn only_data(&self) -> bool {
        !self.dynamic && !self.words.iter().any(|word| BEYOND_DATA.contains(word))
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
pub fn bytecode(name: &str, text: &str) -> Result<Vec<u8>, String> {
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
        Error::CallbackError { cause, traceback } => match (message(cause), place(traceback)) {
            // Errors of functions in Rust do not say where they were called.
            (text, Some(place)) if is_native(cause) => format!("{place}: {text}"),
            (text, _) => return text,
        },
        Error::RuntimeError(text) | Error::MemoryError(text) => text.clone(),
        Error::SyntaxError { message, .. } => message.clone(),
        other => other.to_string(),
    };
    let text = text.split("\nstack traceback:").next().unwrap_or_default();
    text.chars().take(LONGEST_ERROR).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Whether an error was raised by a function in Rust.
fn is_native(error: &Error) -> bool {
    match error {
        Error::RuntimeError(text) => !text.contains("\nstack traceback:") && !has_place(text),
        Error::BadArgument { .. } | Error::FromLuaConversionError { .. } => true,
        _ => false,
    }
}

/// Whether a text begins with `NAME:LINE: `.
fn has_place(text: &str) -> bool {
    let before = text.split(": ").next().unwrap_or_default();
    before
        .rsplit_once(':')
        .is_some_and(|(_, line)| !line.is_empty() && line.bytes().all(|b| b.is_ascii_digit()))
}

/// The first place of a script in a traceback, `NAME:LINE`.
fn place(traceback: &str) -> Option<&str> {
    traceback.lines().map(str::trim).find_map(|line| {
        let at = line.split(": in ").next().filter(|at| at.len() < line.len())?;
        let (name, number) = at.rsplit_once(':')?;
        let own = name != "prelude" && !number.is_empty();
        (own && number.bytes().all(|b| b.is_ascii_digit())).then_some(at)
    })
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
        let reads = Reads::of("return _ENV.x or request.model");
        assert!(reads.wants_field("request", "x") && reads.wants("record"));
        let reads = Reads::of("return response.body.x and event.raw == request.path");
        for (global, field, read) in [
            ("response", "body", true),
            ("response", "status", false),
            ("event", "raw", true),
            ("request", "body", false),
            ("usage", "total", false),
        ] {
            assert_eq!(reads.wants_field(global, field), read, "{global}.{field}");
        }
        assert!(reads.mentions("event") && !reads.mentions("store") && !reads.mentions("key"));
        assert!(reads.mentions("unheard_of"));
    }
}
