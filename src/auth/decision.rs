//! What a script says about a caller.

use std::{net::IpAddr, sync::Arc};

use http::{HeaderMap, Method};
use serde_json::{Map, Value};

use crate::{
    base::limits::OwnLimits,
    lua::{self, Globals, Job, json},
};

/// Bytes of what a script may tell about a caller.
const LARGEST: usize = 64 << 10;

/// Fields that an answer may have, known ones and others.
const MOST_FIELDS: usize = 100;

/// Characters of a message to a client.
const LONGEST: usize = 1000;

/// The request, as a script sees it.
#[derive(Clone, Copy)]
#[expect(missing_docs, reason = "the names are those of the script's `request`")]
pub struct Call<'a> {
    pub method: &'a Method,
    pub path: &'a str,
    pub ip: Option<IpAddr>,
    pub headers: &'a HeaderMap,
    pub model: Option<&'a str>,
    pub stream: bool,
}

/// What a script decides about.
pub struct Question<'a> {
    /// The key.
    pub key: &'a str,
    /// What the provider knows of it.
    pub data: &'a Map<String, Value>,
    /// The request.
    pub call: Call<'a>,
    /// What earlier scripts have told.
    pub metadata: &'a Map<String, Value>,
}

/// The same, for another thread.
pub struct OwnedQuestion {
    key: String,
    data: Map<String, Value>,
    method: Method,
    path: String,
    ip: Option<IpAddr>,
    headers: HeaderMap,
    model: Option<String>,
    stream: bool,
    metadata: Map<String, Value>,
}

/// What a script decided.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Verdict {
    /// The caller is let in.
    pub allow: bool,
    /// Why not, for the caller.
    pub message: Option<String>,
    /// HTTP status of the refusal.
    pub status: Option<u16>,
    /// What later scripts, records and hooks should know.
    pub metadata: Map<String, Value>,
    /// Limits of this caller alone, as they were told.
    pub limits: Option<Value>,
    /// The same, understood.
    pub own_limits: Option<Arc<OwnLimits>>,
    /// Labels.
    pub tags: Vec<String>,
    /// The tier, in place of the one that the data tells; empty: none.
    pub tier: Option<String>,
}

impl Job for Question<'_> {
    type Answer = Verdict;
    type Owned = OwnedQuestion;

    fn globals(&self, globals: &Globals<'_>) -> lua::Result<()> {
        let (lua, table) = (globals.lua, globals.table);
        if globals.wants("api_key") {
            table.raw_set("api_key", self.key)?;
        }
        let (data, key) = (globals.wants("data"), globals.wants("key"));
        if data || key {
            let fields = json::object(lua, self.data)?;
            if key {
                table.raw_set("key", &fields)?;
            }
            if data {
                table.raw_set("data", fields)?;
            }
        }
        if globals.wants("metadata") {
            table.raw_set("metadata", json::object(lua, self.metadata)?)?;
        }
        if globals.wants("request") {
            table.raw_set("request", request(globals, &self.call)?)?;
        }
        Ok(())
    }

    fn answer(&self, returned: lua::Value) -> Result<Verdict, String> {
        match returned {
            lua::Value::Nil => Ok(Verdict { allow: true, ..Verdict::default() }),
            lua::Value::Boolean(allow) => Ok(Verdict { allow, ..Verdict::default() }),
            lua::Value::Table(table) => verdict(&table),
            other => Err(format!("a {} is no decision", other.type_name())),
        }
    }

    fn own(&self) -> OwnedQuestion {
        OwnedQuestion {
            key: self.key.to_owned(),
            data: self.data.clone(),
            method: self.call.method.clone(),
            path: self.call.path.to_owned(),
            ip: self.call.ip,
            headers: self.call.headers.clone(),
            model: self.call.model.map(str::to_owned),
            stream: self.call.stream,
            metadata: self.metadata.clone(),
        }
    }
}

impl OwnedQuestion {
    fn borrowed(&self) -> Question<'_> {
        Question {
            key: &self.key,
            data: &self.data,
            call: Call {
                method: &self.method,
                path: &self.path,
                ip: self.ip,
                headers: &self.headers,
                model: self.model.as_deref(),
                stream: self.stream,
            },
            metadata: &self.metadata,
        }
    }
}

impl Job for OwnedQuestion {
    type Answer = Verdict;
    type Owned = Self;

    fn globals(&self, globals: &Globals<'_>) -> lua::Result<()> {
        self.borrowed().globals(globals)
    }

    fn answer(&self, returned: lua::Value) -> Result<Verdict, String> {
        self.borrowed().answer(returned)
    }

    fn own(&self) -> Self {
        self.borrowed().own()
    }
}

fn request(globals: &Globals<'_>, call: &Call<'_>) -> lua::Result<lua::Table> {
    let table = globals.lua.create_table_with_capacity(0, 6)?;
    table.raw_set("method", call.method.as_str())?;
    table.raw_set("path", call.path)?;
    if let Some(ip) = call.ip {
        table.raw_set("ip", ip.to_string())?;
    }
    if let Some(model) = call.model {
        table.raw_set("model", model)?;
    }
    table.raw_set("stream", call.stream)?;
    let headers = globals.lua.create_table_with_capacity(0, call.headers.keys_len())?;
    for name in call.headers.keys() {
        // The first of several fields with one name.
        if let Some(value) = call.headers.get(name) {
            let name = lua::canonical(name.as_str().as_bytes());
            headers.raw_set(
                globals.lua.create_string(name)?,
                globals.lua.create_string(value.as_bytes())?,
            )?;
        }
    }
    headers.set_metatable(Some(globals.headers.clone()))?;
    table.raw_set("headers", headers)?;
    Ok(table)
}

fn verdict(table: &lua::Table) -> Result<Verdict, String> {
    let mut verdict = Verdict { allow: true, ..Verdict::default() };
    let mut fields = 0;
    let read = table.for_each::<lua::Value, lua::Value>(|name, value| {
        fields += 1;
        if fields > MOST_FIELDS {
            let why = format!("it has more than {MOST_FIELDS} fields");
            return Err(lua::Error::runtime(why));
        }
        match name {
            lua::Value::String(name) => {
                verdict.read(&name.as_bytes(), &value).map_err(lua::Error::runtime)
            }
            _ => Ok(()),
        }
    });
    read.map_err(|e| e.to_string())?;
    Ok(verdict)
}

impl Verdict {
    /// Reads one field; those that mean nothing here are passed over.
    fn read(&mut self, name: &[u8], value: &lua::Value) -> Result<(), String> {
        let told =
            |name: &str| json::from_lua(value, LARGEST).map_err(|e| format!("`{name}`: {e}"));
        match (name, value) {
            (b"allow", lua::Value::Boolean(allow)) => self.allow = *allow,
            (b"allow", other) => {
                return Err(format!("`allow` is a {}, not true or false", other.type_name()));
            }
            (b"message", lua::Value::String(text)) => {
                self.message = Some(text.to_string_lossy().chars().take(LONGEST).collect());
            }
            (b"message", other) => {
                return Err(format!("`message` is a {}, not a string", other.type_name()));
            }
            (b"status", lua::Value::Integer(n @ 400..600)) => self.status = Some(*n as u16),
            (b"status", lua::Value::Number(n))
                if n.fract() == 0.0 && (400.0..600.0).contains(n) =>
            {
                self.status = Some(*n as u16);
            }
            (b"status", _) => {
                return Err("`status` is not a number between 400 and 599".to_owned());
            }
            (b"metadata", _) => match told("metadata")? {
                Value::Object(map) => self.metadata = map,
                // What some languages write for a table without names.
                Value::Array(empty) if empty.is_empty() => {}
                _ => return Err("`metadata` is not a table with names".to_owned()),
            },
            (b"limits", _) => {
                let limits = match told("limits")? {
                    Value::Array(empty) if empty.is_empty() => Map::new().into(),
                    limits => limits,
                };
                let own = OwnLimits::read(&limits).map_err(|e| format!("`limits`: {e}"))?;
                (self.limits, self.own_limits) = (Some(limits), Some(Arc::new(own)));
            }
            (b"tags", _) => self.tags = tags(told("tags")?)?,
            (b"tier", lua::Value::String(name)) => self.tier = Some(name.to_string_lossy()),
            (b"tier", other) => {
                return Err(format!("`tier` is a {}, not a string", other.type_name()));
            }
            _ => {}
        }
        Ok(())
    }
}

fn tags(told: Value) -> Result<Vec<String>, String> {
    let word =
        |tag: &Value| super::provider::words(tag).ok_or("`tags` holds something else than strings");
    match told {
        Value::Object(empty) if empty.is_empty() => Ok(Vec::new()),
        Value::Array(tags) => Ok(tags.iter().map(word).collect::<Result<_, _>>()?),
        _ => Err("`tags` is not a list of strings".to_owned()),
    }
}
