//! The functions of the sandbox that are written in Rust: here patterns, JSON, the log.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use log::Level;

use mlua::{Error, Lua, LuaString, MultiValue, Table, Value, Variadic};

use super::{
    call::Call,
    clock::Clock,
    dates, effects,
    header::canonical,
    job::LogLine,
    json,
    pattern::{self, Budget, Capture, Failure, Match, SubstituteError},
    reads::message,
    texts,
};

/// Largest string that a native builds outside of the interpreter's memory limit.
const LARGEST: usize = 1 << 20;

/// Largest result of `string.rep`: more would block the thread for long.
const LARGEST_REPEAT: usize = 64 << 20;

/// Largest JSON text that `json.decode` reads.
const LARGEST_TEXT: usize = 1 << 20;
/// Largest JSON text that `json.encode` writes.
const LARGEST_VALUE: usize = 256 << 10;

/// Longest pattern.
const LONGEST_PATTERN: usize = 16 << 10;

/// Largest nesting of `gsub` calls in functions that `gsub` calls: each holds its own text.
const DEEPEST: usize = 8;

/// Largest number of log lines per call, and of characters per line.
const LOG_LINES: usize = 10;
const LOG_LENGTH: usize = 1000;

/// The log lines of a call.
#[derive(Clone, Default)]
pub struct Log(Rc<RefCell<Vec<LogLine>>>);

impl Log {
    fn add(&self, level: Level, text: &str) {
        let mut lines = self.0.borrow_mut();
        if lines.len() < LOG_LINES {
            let one_line = text.chars().map(|c| if c.is_control() { ' ' } else { c });
            lines.push(LogLine { level, text: one_line.take(LOG_LENGTH).collect() });
        } else if lines.len() == LOG_LINES {
            lines.push(LogLine { level, text: "more lines were left out".to_owned() });
        }
    }

    /// Takes the lines.
    pub fn take(&self) -> Vec<LogLine> {
        std::mem::take(&mut self.0.borrow_mut())
    }
}

/// The table of all natives, for the prelude.
pub fn table(lua: &Lua, call: &Call, log: &Log) -> mlua::Result<Table> {
    let table = lua.create_table()?;
    let clock = call.clock();
    patterns(lua, &table, clock)?;
    json_functions(lua, &table, clock)?;
    effects::functions(lua, &table, call)?;
    dates::functions(lua, &table, call)?;
    texts::functions(lua, &table, clock)?;
    for (name, level) in [("info", Level::Info), ("warn", Level::Warn), ("fail", Level::Error)] {
        table.set(name, logger(lua, log, level)?)?;
    }
    let at = clock.clone();
    table.set("look", lua.create_function(move |lua, ()| at.check(lua))?)?;
    let at = clock.clone();
    let repeat = lua.create_function(move |lua, (text, n, separator): Repeated| {
        repeat(lua, &at, &text, n, separator.as_ref())
    })?;
    table.set("rep", repeat)?;
    let canonical = |lua: &Lua, name: LuaString| lua.create_string(canonical(&name.as_bytes()));
    table.set("canonical", lua.create_function(canonical)?)?;
    // What was raised in Rust is no string to Lua.
    let told = |lua: &Lua, error: Value| match error {
        Value::Error(error) => Ok(Value::String(lua.create_string(message(&error))?)),
        other => Ok(other),
    };
    table.set("told", lua.create_function(told)?)?;
    Ok(table)
}

/// The function that logs at this level.
fn logger(lua: &Lua, log: &Log, level: Level) -> mlua::Result<mlua::Function> {
    let log = log.clone();
    lua.create_function(move |lua, values: Variadic<Value>| {
        let mut line = String::new();
        for (i, value) in values.into_iter().enumerate() {
            if line.len() > LOG_LENGTH {
                break;
            }
            line.push_str(if i > 0 { "\t" } else { "" });
            let text = match lua.coerce_string(value.clone())? {
                Some(text) => text,
                None => lua.create_string(value.to_string()?)?,
            };
            let bytes = text.as_bytes();
            let head = &bytes[..bytes.len().min(4 * LOG_LENGTH)];
            line.push_str(&String::from_utf8_lossy(head));
        }
        log.add(level, &line);
        Ok(())
    })
}

type Repeated = (LuaString, i64, Option<LuaString>);

/// `string.rep`. It checks the limits before it builds the string: Lua's own version copies piece by
/// piece to the end, however small the pieces are.
fn repeat(
    lua: &Lua,
    clock: &Clock,
    text: &LuaString,
    n: i64,
    separator: Option<&LuaString>,
) -> mlua::Result<LuaString> {
    let separator = separator.map(LuaString::as_bytes);
    let (text, separator) = (text.as_bytes(), separator.as_deref().unwrap_or_default());
    let times = usize::try_from(n).unwrap_or(0);
    let piece = text.len() + separator.len();
    if times == 0 || piece == 0 {
        return lua.create_string("");
    }
    let size = piece.checked_mul(times).map(|size| size - separator.len());
    let size = size.filter(|size| *size <= LARGEST_REPEAT);
    let size = size.ok_or_else(|| Error::MemoryError("not enough memory".to_owned()))?;
    clock.reserve(lua, size)?;
    let mut out = Vec::with_capacity(size);
    out.extend_from_slice(&text);
    if times > 1 {
        out.extend_from_slice(separator);
        out.extend_from_slice(&text);
    }
    // The output without the first text consists of whole pieces, so it can be doubled.
    while out.len() < size {
        let whole = out.len() - text.len();
        let more = whole.min(size - out.len());
        out.extend_from_within(text.len()..text.len() + more);
    }
    let made = lua.create_string(out)?;
    clock.check(lua)?;
    Ok(made)
}

fn json_functions(lua: &Lua, table: &Table, clock: &Clock) -> mlua::Result<()> {
    let at = clock.clone();
    let encode = lua.create_function(move |lua, value: Value| {
        json::encode(&value, LARGEST_VALUE, &|| at.over()).map_err(|e| raise(lua, &at, e))
    })?;
    table.set("encode", encode)?;
    let at = clock.clone();
    let decode = lua.create_function(move |lua, text: LuaString| {
        if text.as_bytes().len() > LARGEST_TEXT {
            return Err(Error::runtime("json.decode: the text is too long"));
        }
        json::decode(lua, &text.as_bytes(), &|| at.check(lua))
    })?;
    table.set("decode", decode)?;
    let array = lua.create_function(|lua, list: Table| {
        json::mark_list(lua, &list)?;
        Ok(list)
    })?;
    table.set("array", array)?;
    table.set("null", Value::NULL)
}

fn raise(lua: &Lua, clock: &Clock, why: String) -> Error {
    if clock.over() { clock.end(lua) } else { Error::runtime(why) }
}

fn patterns(lua: &Lua, table: &Table, clock: &Clock) -> mlua::Result<()> {
    type Found = (LuaString, LuaString, Option<i64>, Option<bool>);
    let at = clock.clone();
    let find = lua.create_function(move |lua, (text, pattern, init, plain): Found| {
        let plain = plain.unwrap_or(false);
        search(lua, &at, &text, &pattern, init, Some(plain))
    })?;
    table.set("find", find)?;
    let at = clock.clone();
    let matches = lua.create_function(move |lua, (text, pattern, init, _): Found| {
        search(lua, &at, &text, &pattern, init, None)
    })?;
    table.set("match", matches)?;
    let at = clock.clone();
    let step = lua.create_function(
        move |lua, (text, pattern, from, last): (LuaString, LuaString, i64, Option<usize>)| {
            step(lua, &at, &text, &pattern, from, last)
        },
    )?;
    table.set("step", step)?;
    let at = clock.clone();
    let depth = Cell::new(0);
    let gsub = lua.create_function(
        move |lua, (text, pattern, with, most): (LuaString, LuaString, Value, Option<i64>)| {
            if depth.get() >= DEEPEST {
                return Err(Error::runtime("calls of 'gsub' are nested too deeply"));
            }
            depth.set(depth.get() + 1);
            let done = gsub(lua, &at, &text, &pattern, &with, most);
            depth.set(depth.get() - 1);
            done
        },
    )?;
    table.set("gsub", gsub)
}

/// Start of a search, from 0; `None` if it is after the end.
fn begin(init: Option<i64>, length: usize) -> Option<usize> {
    let length = i64::try_from(length).unwrap_or(i64::MAX);
    let from = match init.unwrap_or(1) {
        from @ 1.. => from - 1,
        0 => 0,
        back => (length + back).max(0),
    };
    (from <= length).then_some(from as usize)
}

fn pattern_bytes(pattern: &LuaString) -> mlua::Result<mlua::BorrowedBytes> {
    let bytes = pattern.as_bytes();
    match bytes.len() > LONGEST_PATTERN {
        true => Err(Error::runtime("the pattern is too long")),
        false => Ok(bytes),
    }
}

/// `string.find` (`plain` is given) and `string.match`.
fn search(
    lua: &Lua,
    clock: &Clock,
    text: &LuaString,
    pattern: &LuaString,
    init: Option<i64>,
    plain: Option<bool>,
) -> mlua::Result<MultiValue> {
    let (bytes, pattern) = (text.as_bytes(), pattern_bytes(pattern)?);
    let mut values = MultiValue::new();
    let Some(from) = begin(init, bytes.len()) else {
        values.push_back(Value::Nil);
        return Ok(values);
    };
    let over = || clock.over();
    let mut budget = Budget::new(&over);
    let simple = plain.is_some_and(|plain| plain || pattern::is_plain(&pattern));
    let found = if simple {
        let whole = |start| Match { start, end: start + pattern.len(), captures: Vec::new() };
        pattern::find_plain(&bytes, &pattern, from, &mut budget).map(|at| at.map(whole))
    } else {
        pattern::find(&bytes, &pattern, from, &mut budget)
    };
    let Some(found) = found.map_err(|e| failed(lua, clock, &e))? else {
        values.push_back(Value::Nil);
        return Ok(values);
    };
    if plain.is_some() {
        values.push_back(Value::Integer(found.start as i64 + 1));
        values.push_back(Value::Integer(found.end as i64));
        for capture in &found.captures {
            values.push_back(value(lua, &bytes, capture)?);
        }
    } else {
        push_captures(lua, &bytes, &found, &mut values)?;
    }
    Ok(values)
}

/// One step of `string.gmatch`: start of the next search (from 1), end of the match, captures.
fn step(
    lua: &Lua,
    clock: &Clock,
    text: &LuaString,
    pattern: &LuaString,
    from: i64,
    last: Option<usize>,
) -> mlua::Result<MultiValue> {
    let (bytes, pattern) = (text.as_bytes(), pattern_bytes(pattern)?);
    let mut values = MultiValue::new();
    let over = || clock.over();
    let found = match begin(Some(from), bytes.len()) {
        Some(from) => pattern::next(&bytes, &pattern, from, last, &mut Budget::new(&over)),
        None => Ok(None),
    };
    if let Some(found) = found.map_err(|e| failed(lua, clock, &e))? {
        values.push_back(Value::Integer(found.end as i64 + 1));
        values.push_back(Value::Integer(found.end as i64));
        push_captures(lua, &bytes, &found, &mut values)?;
    }
    Ok(values)
}

/// `string.gsub`, with a string, a table or a function.
fn gsub(
    lua: &Lua,
    clock: &Clock,
    text: &LuaString,
    pattern: &LuaString,
    with: &Value,
    most: Option<i64>,
) -> mlua::Result<(LuaString, usize)> {
    let bytes = text.as_bytes();
    let template = match with {
        Value::Table(_) | Value::Function(_) => None,
        other => Some(lua.coerce_string(other.clone())?.ok_or_else(|| {
            let kind = other.type_name();
            Error::runtime(format!(
                "bad argument #3 to 'gsub' (string/function/table expected, got {kind})"
            ))
        })?),
    };
    let most = most.map_or(usize::MAX, |n| usize::try_from(n).unwrap_or(0));
    let over = || clock.over();
    let mut replace = |found: &Match, out: &mut Vec<u8>| -> mlua::Result<()> {
        if let Some(template) = &template {
            pattern::expand(&bytes, found, &template.as_bytes(), LARGEST, out)
                .map_err(|e| failed(lua, clock, &e))?;
        } else {
            let mut captures = MultiValue::new();
            push_captures(lua, &bytes, found, &mut captures)?;
            let new = match with {
                Value::Function(function) => function.call::<Value>(captures)?,
                Value::Table(table) => table.get(captures.pop_front().unwrap_or(Value::Nil))?,
                _ => Value::Nil,
            };
            match new {
                Value::Nil | Value::Boolean(false) => {
                    out.extend_from_slice(&bytes[found.start..found.end]);
                }
                new => {
                    let kind = new.type_name();
                    let text = lua.coerce_string(new)?.ok_or_else(|| {
                        Error::runtime(format!("invalid replacement value (a {kind})"))
                    })?;
                    out.extend_from_slice(&text.as_bytes());
                }
            }
        }
        if out.len() > LARGEST {
            return Err(Error::MemoryError("not enough memory".to_owned()));
        }
        Ok(())
    };
    let mut budget = Budget::new(&over);
    let done =
        pattern::substitute(&bytes, &pattern_bytes(pattern)?, most, &mut budget, &mut replace);
    match done {
        Ok((out, n)) => Ok((lua.create_string(out)?, n)),
        Err(SubstituteError::Pattern(e)) => Err(failed(lua, clock, &e)),
        Err(SubstituteError::Replace(e)) => Err(e),
    }
}

/// The captures, or the whole match if the pattern has none.
fn push_captures(
    lua: &Lua,
    text: &[u8],
    found: &Match,
    values: &mut MultiValue,
) -> mlua::Result<()> {
    if found.captures.is_empty() {
        values.push_back(Value::String(lua.create_string(&text[found.start..found.end])?));
    }
    for capture in &found.captures {
        values.push_back(value(lua, text, capture)?);
    }
    Ok(())
}

fn value(lua: &Lua, text: &[u8], capture: &Capture) -> mlua::Result<Value> {
    Ok(match *capture {
        Capture::Span { start, end } => Value::String(lua.create_string(&text[start..end])?),
        Capture::Position(at) => Value::Integer(at as i64 + 1),
    })
}

fn failed(lua: &Lua, clock: &Clock, why: &Failure) -> Error {
    match why {
        Failure::Over => clock.end(lua),
        Failure::TooLong => Error::MemoryError("not enough memory".to_owned()),
        other => Error::runtime(other),
    }
}
