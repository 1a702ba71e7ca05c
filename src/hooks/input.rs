//! What a script gets to see: values that are built before a run, for the globals that it reads.

use std::sync::Arc;

use http::HeaderMap;
use serde_json::Value;

use crate::{
    base::Stage,
    lua::{self, Globals, Job, json},
};

/// A global of a call: its name and value.
pub type Global = (&'static str, Input);

/// A value for a script.
#[derive(Clone, Debug)]
pub enum Input {
    Bool(bool),
    Integer(i64),
    Number(f64),
    Text(String),
    /// Header fields by name, not case-sensitive; of several with one name the first.
    Headers(Arc<HeaderMap>),
    /// A JSON value.
    Json(Arc<Value>),
    /// A table with these fields.
    Fields(Vec<(&'static str, Input)>),
    /// A table with fields whose names are not known beforehand.
    Named(Vec<(String, Input)>),
    List(Vec<Input>),
}

impl From<&str> for Input {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<u64> for Input {
    fn from(number: u64) -> Self {
        i64::try_from(number).map_or(Self::Number(number as f64), Self::Integer)
    }
}

impl Input {
    /// An empty table where there is no value.
    pub fn json(value: Option<Arc<Value>>) -> Self {
        value.map_or_else(|| Self::Fields(Vec::new()), Self::Json)
    }

    fn to_lua(&self, globals: &Globals<'_>) -> lua::Result<lua::Value> {
        let lua = globals.lua;
        Ok(match self {
            Self::Bool(value) => lua::Value::Boolean(*value),
            Self::Integer(number) => lua::Value::Integer(*number),
            Self::Number(number) => lua::Value::Number(*number),
            Self::Text(text) => lua::Value::String(lua.create_string(text)?),
            Self::Json(value) => json::to_lua(lua, value)?,
            Self::Headers(fields) => lua::Value::Table(globals.header_table(fields)?),
            Self::Fields(fields) => {
                let table = lua.create_table_with_capacity(0, fields.len())?;
                for (name, value) in fields {
                    table.raw_set(*name, value.to_lua(globals)?)?;
                }
                lua::Value::Table(table)
            }
            Self::Named(fields) => {
                let table = lua.create_table_with_capacity(0, fields.len())?;
                for (name, value) in fields {
                    table.raw_set(name.as_str(), value.to_lua(globals)?)?;
                }
                lua::Value::Table(table)
            }
            Self::List(items) => {
                let table = lua.create_table_with_capacity(items.len(), 0)?;
                for item in items {
                    table.raw_push(item.to_lua(globals)?)?;
                }
                json::mark_list(lua, &table)?;
                lua::Value::Table(table)
            }
        })
    }
}

/// A call of a stage's script: its globals, and the reading of what it returns.
#[derive(Clone)]
pub struct Call {
    pub stage: Stage,
    pub globals: Arc<[Global]>,
}

impl Call {
    /// Bytes of what a script returns, at most.
    fn largest(&self) -> usize {
        match self.stage {
            Stage::Request | Stage::UpstreamRequest | Stage::Response => 32 << 20,
            Stage::StreamEvent => 4 << 20,
            _ => 1 << 20,
        }
    }
}

impl Job for Call {
    /// `None`: the script changes nothing.
    type Answer = Option<Value>;
    type Owned = Self;

    fn globals(&self, globals: &Globals<'_>) -> lua::Result<()> {
        for (name, input) in &*self.globals {
            let value = input.to_lua(globals)?;
            match (*name, value) {
                // It stays a function: scripts raise errors with it.
                ("error", lua::Value::Table(table)) => {
                    globals.callable(&table, "error")?;
                    globals.table.raw_set("error", table)?;
                }
                (name, value) => globals.table.raw_set(name, value)?,
            }
        }
        Ok(())
    }

    fn answer(&self, returned: lua::Value) -> Result<Option<Value>, String> {
        match returned {
            lua::Value::Nil => Ok(None),
            value => json::from_lua(&value, self.largest()).map(Some),
        }
    }

    fn own(&self) -> Self {
        self.clone()
    }
}
