//! `now`, `uuid`, `math.random`, `env`, `require`, `store` and `http`, as natives: what a call cannot
//! repeat, or what belongs to the library of the configuration.

use std::{cell::RefCell, collections::HashMap, rc::Rc};

use mlua::{Error, Function, Lua, LuaString, Table, Value, chunk::ChunkMode};

use super::{
    call::Call,
    header::canonical,
    journal::{Effect, HttpCall, Outcome, StoreCall},
    json,
};

/// Longest key of the store, in bytes.
const LONGEST_KEY: usize = 512;

/// Longest time to live, in seconds.
const LONGEST_TTL: f64 = 366.0 * 86_400.0;

/// Largest URL, header and body of a request, in bytes.
const LONGEST_URL: usize = 8 << 10;
const LARGEST_HEADER: usize = 32 << 10;
const LARGEST_BODY: usize = 1 << 20;

/// Sets the natives.
pub fn functions(lua: &Lua, table: &Table, call: &Call) -> mlua::Result<()> {
    let now = call.clone();
    let seconds = lua.create_function(move |lua, ()| Ok(now.now(lua)? / 1000))?;
    table.set("now", seconds)?;
    let now = call.clone();
    table.set("now_ms", lua.create_function(move |lua, ()| now.now(lua))?)?;
    let of = call.clone();
    table.set("uuid", lua.create_function(move |lua, ()| uuid(lua, &of))?)?;
    let of = call.clone();
    let random =
        lua.create_function(move |lua, range: (Option<i64>, Option<i64>)| random(lua, &of, range))?;
    table.set("random", random)?;
    let of = call.clone();
    let env = lua.create_function(move |lua, name: Value| {
        let Value::String(name) = name else { return Ok(None) };
        let library = of.library()?;
        let value = name.to_str().ok().and_then(|name| library.env(&name));
        value.map(|value| lua.create_string(value)).transpose()
    })?;
    table.set("env", env)?;
    modules(lua, table, call)?;
    store(lua, table, call)?;
    http(lua, table, call)
}

/// A random UUID (version 4).
fn uuid(lua: &Lua, call: &Call) -> mlua::Result<LuaString> {
    let made = |_: &Effect| {
        let random = rand::random::<u128>();
        let bits = random & !(0xf << 76) & !(0b11 << 62) | (4 << 76) | (0b10 << 62);
        let text = format!("{bits:032x}");
        let parts = [&text[..8], &text[8..12], &text[12..16], &text[16..20], &text[20..]];
        Outcome::Text(parts.join("-").into_bytes().into())
    };
    match call.effect(lua, Effect::Uuid, made)? {
        Outcome::Text(text) => lua.create_string(&text[..]),
        _ => lua.create_string(""),
    }
}

/// `math.random`.
fn random(lua: &Lua, call: &Call, (from, to): (Option<i64>, Option<i64>)) -> mlua::Result<Value> {
    let bits = call.random(lua)?;
    let (low, high) = match (from, to) {
        (None, _) => return Ok(Value::Number((bits >> 11) as f64 / (1_u64 << 53) as f64)),
        (Some(0), None) => return Ok(Value::Integer(bits as i64)),
        (Some(high), None) => (1, high),
        (Some(low), Some(high)) => (low, high),
    };
    if low > high {
        return Err(Error::runtime("bad argument to 'random' (interval is empty)"));
    }
    let width = high.wrapping_sub(low) as u64;
    let offset = (u128::from(bits) * (u128::from(width) + 1)) >> 64;
    Ok(Value::Integer(low.wrapping_add(offset as u64 as i64)))
}

/// What `require` is made of: the prelude calls the module.
fn modules(lua: &Lua, table: &Table, call: &Call) -> mlua::Result<()> {
    // Modules have no state of their own: the values of a call are kept in the call.
    let compiled: Rc<RefCell<HashMap<u64, Function>>> = Rc::default();
    let of = call.clone();
    let module = lua.create_function(move |lua, name: LuaString| {
        let library = of.library()?;
        let shown = name.to_string_lossy();
        let known = library.modules().get(&shown);
        let module = known.ok_or_else(|| {
            let shown: String = shown.chars().take(100).collect();
            Error::runtime(format!("require: there is no module '{shown}'"))
        })?;
        if let Some(known) = compiled.borrow().get(&module.id) {
            return Ok(known.clone());
        }
        let chunk = lua.load(&module.bytecode).set_mode(ChunkMode::Binary);
        let function = chunk.call::<Function>(())?;
        compiled.borrow_mut().insert(module.id, function.clone());
        Ok(function)
    })?;
    table.set("module", module)?;
    let of = call.clone();
    table.set("loaded", lua.create_function(move |lua, ()| of.loaded(lua))?)?;
    let of = call.clone();
    table.set("may_use_http", lua.create_function(move |_, ()| Ok(of.may_use_http()))?)
}

fn store(lua: &Lua, table: &Table, call: &Call) -> mlua::Result<()> {
    let of = call.clone();
    let get = lua.create_function(move |lua, key: LuaString| {
        let asked = StoreCall::Get { key: key_of(&key)? };
        match in_store(lua, &of, asked, "store.get")? {
            Outcome::Text(text) => stored(lua, &of, &text),
            _ => Ok(Value::Nil),
        }
    })?;
    table.set("store_get", get)?;
    let of = call.clone();
    type Set = (LuaString, Value, Option<f64>);
    let set = lua.create_function(move |lua, (key, value, ttl): Set| {
        let key = key_of(&key)?;
        let (ttl, value) = (milliseconds(ttl)?, to_store(&of, lua, &value)?);
        let asked = match value {
            Some(value) => StoreCall::Set { key, value, ttl },
            None => StoreCall::Delete { key },
        };
        in_store(lua, &of, asked, "store.set").map(drop)
    })?;
    table.set("store_set", set)?;
    let of = call.clone();
    type Incr = (LuaString, Option<i64>, Option<f64>);
    let incr = lua.create_function(move |lua, (key, by, ttl): Incr| {
        let (key, ttl) = (key_of(&key)?, milliseconds(ttl)?);
        let asked = StoreCall::Incr { key, by: by.unwrap_or(1), ttl };
        match in_store(lua, &of, asked, "store.incr")? {
            Outcome::Integer(sum) => Ok(sum),
            _ => Err(Error::runtime("store.incr: no number")),
        }
    })?;
    table.set("store_incr", incr)?;
    let of = call.clone();
    let expire = lua.create_function(move |lua, (key, ttl): (LuaString, f64)| {
        let ttl = milliseconds(Some(ttl))?.unwrap_or_default();
        let asked = StoreCall::Expire { key: key_of(&key)?, ttl };
        Ok(in_store(lua, &of, asked, "store.expire")? == Outcome::Done(true))
    })?;
    table.set("store_expire", expire)?;
    let of = call.clone();
    let delete = lua.create_function(move |lua, key: LuaString| {
        let asked = StoreCall::Delete { key: key_of(&key)? };
        Ok(in_store(lua, &of, asked, "store.delete")? == Outcome::Done(true))
    })?;
    table.set("store_delete", delete)
}

fn key_of(key: &LuaString) -> mlua::Result<String> {
    let bytes = key.as_bytes();
    let text = (1..=LONGEST_KEY).contains(&bytes.len()).then(|| str::from_utf8(&bytes).ok());
    let text = text.flatten().map(str::to_owned);
    text.ok_or_else(|| {
        Error::runtime(format!("store: a key is UTF-8 text of 1 to {LONGEST_KEY} bytes"))
    })
}

fn milliseconds(seconds: Option<f64>) -> mlua::Result<Option<u64>> {
    match seconds {
        None => Ok(None),
        Some(seconds) if (0.001..=LONGEST_TTL).contains(&seconds) => {
            Ok(Some((seconds * 1000.0) as u64))
        }
        Some(_) => Err(Error::runtime("store: a time to live is from 0.001 to 31622400 seconds")),
    }
}

/// The JSON text of a value; `None` for nil.
fn to_store(call: &Call, lua: &Lua, value: &Value) -> mlua::Result<Option<Vec<u8>>> {
    if value.is_nil() {
        return Ok(None);
    }
    let (library, clock) = (call.library()?, call.clock());
    let most = library.max_value();
    // The limit of what is converted counts the memory of values, which is more than their text.
    let made = json::encode(value, most.saturating_mul(8), &|| clock.over());
    let text = made.map_err(|why| match clock.over() {
        true => clock.end(lua),
        false => Error::runtime(format!("store.set: {why}")),
    })?;
    match text.len() > most {
        true => Err(Error::runtime(format!("store.set: the value is larger than {most} bytes"))),
        false => Ok(Some(text.into_bytes())),
    }
}

/// The value of a JSON text; what is none, because another program has written it, is text.
fn stored(lua: &Lua, call: &Call, text: &[u8]) -> mlua::Result<Value> {
    let clock = call.clock();
    match json::decode(lua, text, &|| clock.check(lua)) {
        Ok(value) => Ok(value),
        Err(error) if clock.over() => Err(error),
        Err(error @ Error::MemoryError(_)) => Err(error),
        Err(_) => Ok(Value::String(lua.create_string(text)?)),
    }
}

fn in_store(lua: &Lua, call: &Call, asked: StoreCall, of: &str) -> mlua::Result<Outcome> {
    let library = call.library()?;
    let run = |effect: &Effect| match effect {
        Effect::Store(asked) => library.store(asked),
        _ => Outcome::Nothing,
    };
    let outcome = match library.store_waits() {
        true => call.wait(lua, Effect::Store(asked), run)?,
        false => call.effect(lua, Effect::Store(asked), run)?,
    };
    match outcome {
        Outcome::Failed(why) => Err(Error::runtime(format!("{of}: {why}"))),
        outcome => Ok(outcome),
    }
}

type Asked = (LuaString, LuaString, Option<Table>, Option<Value>, Option<f64>);

/// `http.request`: status, header fields and body.
fn http(lua: &Lua, table: &Table, call: &Call) -> mlua::Result<()> {
    let of = call.clone();
    let request = lua.create_function(move |lua, asked: Asked| {
        if !of.may_use_http() {
            return Err(Error::runtime("http is not available in this stage"));
        }
        let library = of.library()?;
        let asked = http_call(lua, &of, asked)?;
        let outcome = of.wait(lua, Effect::Http(asked), |effect| match effect {
            Effect::Http(asked) => library.http(asked),
            _ => Outcome::Nothing,
        })?;
        let reply = match outcome {
            Outcome::Http(reply) => reply,
            Outcome::Failed(why) => return Err(Error::runtime(why)),
            _ => return Err(Error::runtime("http: no answer")),
        };
        of.clock().reserve(lua, reply.body.len())?;
        let headers = lua.create_table()?;
        for (name, value) in &reply.headers {
            let name = lua.create_string(canonical(name.as_bytes()))?;
            // Of several fields with the same name the first is used.
            if !headers.contains_key(&name)? {
                headers.raw_set(name, lua.create_string(value)?)?;
            }
        }
        Ok((reply.status, headers, lua.create_string(&reply.body)?))
    })?;
    table.set("http", request)
}

fn http_call(
    lua: &Lua,
    call: &Call,
    (method, url, headers, body, timeout): Asked,
) -> mlua::Result<HttpCall> {
    let wrong = |why: &str| Error::runtime(format!("http: {why}"));
    let (method, url) = (method.to_string_lossy(), url.as_bytes());
    if url.len() > LONGEST_URL {
        return Err(wrong("the URL is too long"));
    }
    let url = str::from_utf8(&url).map_err(|_| wrong("the URL is not UTF-8"))?.to_owned();
    let mut fields = Vec::new();
    let mut left = LARGEST_HEADER;
    if let Some(headers) = headers {
        headers.for_each::<LuaString, Value>(|name, value| {
            let value = lua
                .coerce_string(value)?
                .ok_or_else(|| wrong("the value of a header field is not text"))?;
            let (name, value) = (name.to_string_lossy(), value.as_bytes().to_vec());
            left = left
                .checked_sub(name.len() + value.len())
                .ok_or_else(|| wrong("the header is too large"))?;
            fields.push((name, value));
            Ok(())
        })?;
    }
    // The order of a table is arbitrary.
    fields.sort();
    let body = match body {
        None | Some(Value::Nil) => None,
        Some(Value::Table(table)) => {
            let clock = call.clock();
            let text = json::encode(&Value::Table(table), 4 * LARGEST_BODY, &|| clock.over());
            let text = text.map_err(|why| match clock.over() {
                true => clock.end(lua),
                false => wrong(&why),
            })?;
            if !fields.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-type")) {
                fields.push(("content-type".to_owned(), b"application/json".to_vec()));
            }
            Some(text.into_bytes())
        }
        Some(other) => {
            let text = lua.coerce_string(other)?.ok_or_else(|| wrong("the body is not text"))?;
            Some(text.as_bytes().to_vec())
        }
    };
    if body.as_ref().is_some_and(|body| body.len() > LARGEST_BODY) {
        return Err(wrong("the body is too large"));
    }
    let timeout = match timeout {
        None => None,
        Some(seconds) if (0.001..=3600.0).contains(&seconds) => Some((seconds * 1000.0) as u64),
        Some(_) => return Err(wrong("the timeout is not a number of seconds")),
    };
    Ok(HttpCall { method, url, headers: fields, body, timeout })
}
