//! The decision of a script about a caller: its input and its verdict.

use std::{net::IpAddr, sync::Arc};

use http::{HeaderMap, Method};
use serde_json::{Map, Value};

use crate::{
    base::limits::OwnLimits,
    lua::{self, Either, Globals, Job, json},
};

/// Largest size of a field of a verdict, in bytes.
const LARGEST: usize = 64 << 10;

/// Largest number of fields of a verdict, known ones and others.
const MOST_FIELDS: usize = 100;

/// Longest message to a client, in characters.
const LONGEST: usize = 1000;

/// What a script sees of the request. The fields are those of the script's global `request`.
#[derive(Clone, Copy)]
pub struct RequestView<'a> {
    pub method: &'a Method,
    pub path: &'a str,
    pub ip: Option<IpAddr>,
    pub headers: &'a HeaderMap,
    pub model: Option<&'a str>,
    pub stream: bool,
}

/// What a script decides about.
pub struct ScriptInput<'a> {
    /// The API key.
    pub key: &'a str,
    /// The key's data from the provider.
    pub data: &'a Map<String, Value>,
    pub request: RequestView<'a>,
    /// Metadata from earlier scripts.
    pub metadata: &'a Map<String, Value>,
}

/// A copy of [`ScriptInput`] for another thread.
pub struct OwnedScriptInput {
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

/// The decision of a script.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Verdict {
    pub allow: bool,
    /// The reason for a denial, for the caller.
    pub message: Option<String>,
    /// HTTP status of a denial.
    pub status: Option<u16>,
    /// For later scripts, usage records and logs.
    pub metadata: Map<String, Value>,
    /// Limits of this caller alone, as the script returned them.
    pub limits: Option<Value>,
    /// The same, parsed.
    pub own_limits: Option<Arc<OwnLimits>>,
    pub tags: Vec<String>,
    /// Replaces the tier in the key's data; empty: none.
    pub tier: Option<String>,
}

impl Job for ScriptInput<'_> {
    type Answer = Verdict;
    type Owned = OwnedScriptInput;

    fn globals(&self, globals: &Globals<'_>) -> lua::Result<()> {
        let (lua, table) = (globals.lua, globals.table);
        if globals.wants("api_key") {
            table.raw_set("api_key", self.key)?;
        }
        let (data, key) = (globals.wants("data"), globals.wants("key"));
        if data || key {
            let fields = json::plain_object(lua, self.data)?;
            if key {
                table.raw_set("key", &fields)?;
            }
            if data {
                table.raw_set("data", fields)?;
            }
        }
        if globals.wants("metadata") {
            table.raw_set("metadata", json::plain_object(lua, self.metadata)?)?;
        }
        if globals.wants("request") {
            table.raw_set("request", request_table(globals, &self.request)?)?;
        }
        Ok(())
    }

    fn answer(&self, returned: lua::Value) -> Result<Verdict, String> {
        match returned {
            lua::Value::Nil => Ok(Verdict { allow: true, ..Verdict::default() }),
            lua::Value::Boolean(allow) => Ok(Verdict { allow, ..Verdict::default() }),
            lua::Value::Table(table) => verdict(&table),
            other => Err(format!("a {} is not a decision", other.type_name())),
        }
    }

    fn own(&self) -> OwnedScriptInput {
        OwnedScriptInput {
            key: self.key.to_owned(),
            data: self.data.clone(),
            method: self.request.method.clone(),
            path: self.request.path.to_owned(),
            ip: self.request.ip,
            headers: self.request.headers.clone(),
            model: self.request.model.map(str::to_owned),
            stream: self.request.stream,
            metadata: self.metadata.clone(),
        }
    }
}

impl OwnedScriptInput {
    fn borrowed(&self) -> ScriptInput<'_> {
        ScriptInput {
            key: &self.key,
            data: &self.data,
            request: RequestView {
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

impl Job for OwnedScriptInput {
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

/// The table `request`, with the fields that the script can use.
fn request_table(globals: &Globals<'_>, request: &RequestView<'_>) -> lua::Result<lua::Table> {
    let table = globals.lua.create_table_with_capacity(0, 6)?;
    let wants = |field| globals.wants_field("request", field);
    if wants("method") {
        table.raw_set("method", request.method.as_str())?;
    }
    if wants("path") {
        table.raw_set("path", request.path)?;
    }
    if let Some(ip) = request.ip.filter(|_| wants("ip")) {
        table.raw_set("ip", ip.to_string())?;
    }
    if let Some(model) = request.model.filter(|_| wants("model")) {
        table.raw_set("model", model)?;
    }
    if wants("stream") {
        table.raw_set("stream", request.stream)?;
    }
    if wants("headers") {
        table.raw_set("headers", globals.header_table(request.headers)?)?;
    }
    Ok(table)
}

fn verdict(table: &lua::Table) -> Result<Verdict, String> {
    let mut verdict = Verdict { allow: true, ..Verdict::default() };
    let mut fields = 0;
    // Names are read as texts, which needs no handles. No field is called as a number is written.
    let read = table.for_each::<Either<String, lua::Value>, lua::Value>(|name, value| {
        fields += 1;
        if fields > MOST_FIELDS {
            let why = format!("it has more than {MOST_FIELDS} fields");
            return Err(lua::Error::runtime(why));
        }
        match name {
            Either::Left(name) => verdict.read(&name, &value).map_err(lua::Error::runtime),
            Either::Right(_) => Ok(()),
        }
    });
    read.map_err(|e| e.to_string())?;
    Ok(verdict)
}

impl Verdict {
    /// Reads one field; unknown fields are ignored.
    fn read(&mut self, name: &str, value: &lua::Value) -> Result<(), String> {
        let json =
            |name: &str| json::from_lua_plain(value, LARGEST).map_err(|e| format!("`{name}`: {e}"));
        match (name, value) {
            ("allow", lua::Value::Boolean(allow)) => self.allow = *allow,
            ("allow", other) => {
                return Err(format!("`allow` is a {}, not true or false", other.type_name()));
            }
            ("message", lua::Value::String(text)) => {
                self.message = Some(text.to_string_lossy().chars().take(LONGEST).collect());
            }
            ("message", other) => {
                return Err(format!("`message` is a {}, not a string", other.type_name()));
            }
            ("status", lua::Value::Integer(n @ 400..600)) => self.status = Some(*n as u16),
            ("status", lua::Value::Number(n)) if n.fract() == 0.0 && (400.0..600.0).contains(n) => {
                self.status = Some(*n as u16);
            }
            ("status", _) => {
                return Err("`status` is not a number between 400 and 599".to_owned());
            }
            ("metadata", _) => match json("metadata")? {
                Value::Object(map) => self.metadata = map,
                // An empty Lua table may become an empty list.
                Value::Array(empty) if empty.is_empty() => {}
                _ => return Err("`metadata` is not a table with string keys".to_owned()),
            },
            ("limits", _) => {
                let limits = match json("limits")? {
                    Value::Array(empty) if empty.is_empty() => Map::new().into(),
                    limits => limits,
                };
                let own = OwnLimits::read(&limits).map_err(|e| format!("`limits`: {e}"))?;
                (self.limits, self.own_limits) = (Some(limits), Some(Arc::new(own)));
            }
            ("tags", _) => self.tags = tags(json("tags")?)?,
            ("tier", lua::Value::String(name)) => self.tier = Some(name.to_string_lossy()),
            ("tier", other) => {
                return Err(format!("`tier` is a {}, not a string", other.type_name()));
            }
            _ => {}
        }
        Ok(())
    }
}

fn tags(value: Value) -> Result<Vec<String>, String> {
    let word = |tag: &Value| {
        super::provider::as_text(tag).ok_or("`tags` contains something other than strings")
    };
    match value {
        Value::Object(empty) if empty.is_empty() => Ok(Vec::new()),
        Value::Array(tags) => Ok(tags.iter().map(word).collect::<Result<_, _>>()?),
        _ => Err("`tags` is not a list of strings".to_owned()),
    }
}
