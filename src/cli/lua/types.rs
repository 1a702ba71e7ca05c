//! `llmproxy lua types`: the words of scripts as a definition file for LuaLS, the language server of
//! editors.

use std::{collections::BTreeSet, fmt::Write as _, io::Write as _};

use clap::Args;

use super::{given::fixture, source};
use crate::{
    base::Stage,
    hooks::reference::{GLOBALS, GlobalWord, RETURNS, ReturnWord},
    lua::words::{self, WORDS, Word},
};

#[derive(Args)]
pub struct TypesArgs {
    /// Only the globals of this stage; without it those of all stages.
    #[arg(long, value_parser = source::stage)]
    stage: Option<Stage>,
}

/// Prints the file.
pub fn print(args: &TypesArgs) {
    // A reader that closes the pipe early is no reason to panic.
    write!(std::io::stdout(), "{}", definitions(args.stage)).ok();
}

fn definitions(stage: Option<Stage>) -> String {
    let mut text = "---@meta\n-- Made by `llmproxy lua types`.\n".to_owned();
    for word in GLOBALS.iter().filter(|word| stage.is_none_or(|s| word.stages.contains(&s))) {
        global(&mut text, word);
    }
    let returned = |word: &&ReturnWord| stage.is_none_or(|stage| word.stages.contains(&stage));
    text += "\n--- What a script may return.\n---@class llmproxy.Verdict\n";
    for word in RETURNS.iter().filter(returned) {
        writeln!(text, "---@field {}? {} {}", word.name, word.kind, word.doc).ok();
    }
    let early = stage.is_none_or(Stage::may_call_services);
    let here = |word: &&Word| early || word.stages == words::Stages::All;
    let mut tables = BTreeSet::new();
    for word in WORDS.iter().filter(|word| !is_standard(word.name)).filter(here) {
        library_word(&mut text, word, &mut tables);
    }
    text
}

/// A global, and the class of its fields.
fn global(text: &mut String, word: &GlobalWord) {
    let name = word.name;
    let stages: Vec<_> = word.stages.iter().map(|stage| stage.key()).collect();
    let stages = match word.stages.len() == Stage::ALL.len() {
        true => "all stages".to_owned(),
        false => stages.join(", "),
    };
    text.push('\n');
    if word.fields.is_empty() {
        writeln!(text, "--- {} ({stages})\n---@type {}\n{name} = nil", word.doc, word.kind).ok();
        return;
    }
    let class = format!("llmproxy.{name}");
    writeln!(text, "---@class {class}").ok();
    if name == "error" {
        writeln!(text, "---@overload fun(message: any, level?: integer)").ok();
    }
    for field in word.fields {
        let optional = if field.kind.ends_with('?') { "?" } else { "" };
        let kind = field.kind.trim_end_matches('?');
        writeln!(
            text,
            "{}",
            format!("---@field {}{optional} {kind} {}", field.name, field.doc).trim_end()
        )
        .ok();
    }
    let stage = word.stages.first().copied().unwrap_or(Stage::Request);
    let list = fixture(stage).get(name).is_some_and(serde_json::Value::is_array);
    let list = if list { "[]" } else { "" };
    writeln!(text, "\n--- {} ({stages})\n---@type {class}{list}\n{name} = nil", word.doc).ok();
}

/// Whether LuaLS knows a word by itself.
fn is_standard(name: &str) -> bool {
    const BASIC: [&str; 20] = [
        "_VERSION",
        "assert",
        "error",
        "getmetatable",
        "ipairs",
        "next",
        "pairs",
        "pcall",
        "rawequal",
        "rawget",
        "rawlen",
        "rawset",
        "select",
        "setmetatable",
        "tonumber",
        "tostring",
        "type",
        "xpcall",
        "require",
        "unpack",
    ];
    match name.split_once('.') {
        Some((table, _)) => ["string", "table", "math", "os"].contains(&table),
        None => BASIC.contains(&name),
    }
}

fn library_word(text: &mut String, word: &Word, tables: &mut BTreeSet<&'static str>) {
    let name = word.name;
    text.push('\n');
    if let Some((table, _)) = name.split_once('.')
        && tables.insert(table)
    {
        writeln!(text, "{table} = {{}}\n").ok();
    }
    writeln!(text, "--- {}", word.doc).ok();
    match (name, word.signature.split_once('(')) {
        ("env", _) => {
            writeln!(text, "---@type table<string, string?>\nenv = {{}}").ok();
        }
        // It is a table of functions too.
        ("log", _) => {
            tables.insert("log");
            let class = "---@class llmproxy.log\n---@overload fun(...: any)\nlog = {}";
            writeln!(text, "{class}").ok();
        }
        (_, None) => {
            writeln!(text, "---@type any\n{name} = nil").ok();
        }
        (_, Some((_, arguments))) => {
            let arguments = arguments.strip_suffix(')').unwrap_or(arguments);
            function(text, word, &parameters(arguments));
        }
    }
}

fn function(text: &mut String, word: &Word, parameters: &[(String, bool)]) {
    for (name, optional) in parameters {
        let mark = if *optional { "?" } else { "" };
        let kind = match name.as_str() {
            "options" => "table",
            _ => "any",
        };
        writeln!(text, "---@param {name}{mark} {kind}").ok();
    }
    if word.returns != "nothing" {
        for kind in split(word.returns) {
            writeln!(text, "---@return {}", kind_of(&kind)).ok();
        }
    }
    let names: Vec<_> = parameters.iter().map(|(name, _)| name.as_str()).collect();
    writeln!(text, "function {}({}) end", word.name, names.join(", ")).ok();
}

fn kind_of(kind: &str) -> &str {
    match kind {
        "{status, headers, body}" => {
            "{status: integer, headers: table<string, string>, body: string}"
        }
        "iterator" => "function",
        "null" => "any",
        kind => kind,
    }
}

/// Names of parameters, and whether each may be left out. `text[, {headers, timeout}]` has `text` and
/// `options?`.
fn parameters(arguments: &str) -> Vec<(String, bool)> {
    let optional_from = arguments.find('[').unwrap_or(arguments.len());
    let mut at = 0;
    let mut found = Vec::new();
    for part in split(arguments) {
        let start = arguments[at..].find(part.as_str()).map_or(at, |n| at + n);
        at = start + part.len();
        let name = part.trim_matches(|c: char| c == '[' || c == ']' || c.is_whitespace());
        let name = if name.starts_with('{') { "options" } else { name };
        if !name.is_empty() {
            found.push((name.to_owned(), start >= optional_from || part.starts_with('[')));
        }
    }
    found
}

/// The parts between commas that are not in braces, without white space.
fn split(text: &str) -> Vec<String> {
    let (mut parts, mut depth, mut part) = (Vec::new(), 0_i32, String::new());
    for c in text.chars() {
        depth += i32::from(c == '{') - i32::from(c == '}');
        match c {
            ',' if depth == 0 => parts.push(std::mem::take(&mut part).trim().to_owned()),
            c => part.push(c),
        }
    }
    parts.push(part.trim().to_owned());
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hooks::reference;

    #[test]
    fn parameters_are_read_from_signatures() {
        let names = |text| {
            let read = parameters(text);
            read.into_iter().map(|(n, o)| if o { n + "?" } else { n }).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(names(""), "");
        assert_eq!(names("text"), "text");
        assert_eq!(names("key, value[, ttl]"), "key value ttl?");
        assert_eq!(names("[time[, format[, zone]]]"), "time? format? zone?");
        assert_eq!(names("url, body[, {headers, timeout}]"), "url body options?");
        assert_eq!(names("{method, url}"), "options");
    }

    #[test]
    fn every_word_is_defined() {
        let text = definitions(None);
        for word in WORDS.iter().filter(|word| !is_standard(word.name)) {
            let name = word.name;
            let forms = [format!("\nfunction {name}("), format!("\n{name} = ")];
            assert!(forms.iter().any(|form| text.contains(form)), "{name}");
        }
        for word in GLOBALS {
            assert!(text.contains(&format!("\n{} = nil", word.name)), "{}", word.name);
        }
        assert!(text.contains("---@type llmproxy.candidates[]"));
        assert!(text.contains("---@field model? string"));
        let late = definitions(Some(Stage::Usage));
        assert!(!late.contains("http.get") && !late.contains("candidates"));
        assert_eq!(reference::returns(Stage::Usage).count(), 0);
    }
}
