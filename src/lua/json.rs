//! Converts values between JSON and Lua.
//!
//! Lua has no `null` in a table, no integer above 2^63-1, and one empty table for `[]` and `{}`. What a
//! table cannot hold is kept in a hidden metatable, its mark, which scripts can neither see nor change:
//!
//! - Lists are marked as such, so that an empty one stays a list.
//! - The names of an object's null members. A member that is still absent is written as null again.
//! - The digits of integers above 2^63-1 (up to 2^64-1). The script sees the digits as a string; where
//!   that string still is at its place, it is written as a number again.
//!
//! A table that a script builds itself has no mark.

use std::{
    cell::{Cell, RefCell},
    fmt,
};

use mlua::{Either, Lua, Table, Value};
use serde::{
    Deserializer,
    de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Number};

/// Largest nesting of a value.
const DEEPEST: usize = 64;

/// The mark of lists without large integers. It has no metamethods, and its keys cannot be set by a
/// script.
struct ListMark(Table);

/// Keys in a mark; no other metatable has them.
const LIST: i64 = 1;
/// A table whose keys are the names of null members.
const NULLS: i64 = 2;
/// A table of the digits of large integers, by name or index.
const LARGE: i64 = 3;

/// Creates the mark for lists of this interpreter.
///
/// # Errors
/// If it is out of memory.
pub fn prepare(lua: &Lua) -> mlua::Result<()> {
    let mark = lua.create_table()?;
    mark.raw_set(LIST, true)?;
    lua.set_app_data(ListMark(mark));
    Ok(())
}

/// Marks a table as a list, unless it has a metatable of its own.
///
/// # Errors
/// If the interpreter fails.
pub fn mark_list(lua: &Lua, table: &Table) -> mlua::Result<()> {
    let Some(mark) = lua.app_data_ref::<ListMark>().map(|mark| mark.0.clone()) else {
        return Ok(());
    };
    if table.metatable().is_none() {
        table.set_metatable(Some(mark))?;
    }
    Ok(())
}

fn is_list(table: &Table) -> bool {
    table
        .metatable()
        .is_some_and(|mark| mark.raw_get::<Value>(LIST).is_ok_and(|v| v == Value::Boolean(true)))
}

/// What the mark of a table keeps under this key.
fn kept(table: &Table, key: i64) -> Option<Table> {
    table.metatable()?.raw_get::<Option<Table>>(key).ok()?
}

/// The mark of a table while the table is filled.
#[derive(Default)]
struct Mark {
    nulls: Option<Table>,
    large: Option<Table>,
}

impl Mark {
    fn null(&mut self, lua: &Lua, name: &str) -> mlua::Result<()> {
        let nulls = match self.nulls.take() {
            Some(nulls) => nulls,
            None => lua.create_table()?,
        };
        nulls.raw_set(name, true)?;
        self.nulls = Some(nulls);
        Ok(())
    }

    fn large(&mut self, lua: &Lua, key: impl mlua::IntoLua, digits: &Value) -> mlua::Result<()> {
        let large = match self.large.take() {
            Some(large) => large,
            None => lua.create_table()?,
        };
        large.raw_set(key, digits)?;
        self.large = Some(large);
        Ok(())
    }

    fn set(self, lua: &Lua, table: &Table, list: bool) -> mlua::Result<()> {
        if self.nulls.is_none() && self.large.is_none() {
            return if list { mark_list(lua, table) } else { Ok(()) };
        }
        let mark = lua.create_table()?;
        if list {
            mark.raw_set(LIST, true)?;
        }
        mark.raw_set(NULLS, self.nulls)?;
        mark.raw_set(LARGE, self.large)?;
        table.set_metatable(Some(mark))
    }
}

/// A Lua value for a JSON value. `null` in an object is an absent member that is written again, in a
/// list `json.null`. An integer that is too large for Lua is text (see above); on its own, outside of
/// an object or a list, it stays text.
///
/// # Errors
/// If the interpreter is out of memory.
pub fn to_lua(lua: &Lua, value: &serde_json::Value) -> mlua::Result<Value> {
    Writer { lua, marks: true }.value(value)
}

/// A Lua table for a JSON object, as [`to_lua`].
///
/// # Errors
/// As [`to_lua`].
pub fn object(lua: &Lua, map: &Map<String, serde_json::Value>) -> mlua::Result<Table> {
    Writer { lua, marks: true }.object(map)
}

/// The same without memory of nulls and of large integers: cheaper, for data that does not go back.
///
/// # Errors
/// As [`to_lua`].
pub fn plain_object(lua: &Lua, map: &Map<String, serde_json::Value>) -> mlua::Result<Table> {
    Writer { lua, marks: false }.object(map)
}

/// The value as it comes back from a script that does not touch it: members are in the order of their
/// names.
pub fn normalised(value: &serde_json::Value) -> serde_json::Value {
    let mut value = match value {
        serde_json::Value::Number(n) if is_large(n) => n.to_string().into(),
        other => other.clone(),
    };
    value.sort_all_objects();
    value
}

/// Whether a number is an integer beyond Lua's.
fn is_large(n: &Number) -> bool {
    n.is_u64() && !n.is_i64()
}

/// Converts JSON values.
#[derive(Clone, Copy)]
struct Writer<'l> {
    lua: &'l Lua,
    marks: bool,
}

impl Writer<'_> {
    fn value(self, value: &serde_json::Value) -> mlua::Result<Value> {
        Ok(match value {
            serde_json::Value::Null => Value::NULL,
            serde_json::Value::Bool(b) => Value::Boolean(*b),
            serde_json::Value::Number(n) => self.number(n)?,
            serde_json::Value::String(s) => Value::String(self.lua.create_string(s)?),
            serde_json::Value::Array(items) => Value::Table(self.list(items)?),
            serde_json::Value::Object(map) => Value::Table(self.object(map)?),
        })
    }

    fn list(self, items: &[serde_json::Value]) -> mlua::Result<Table> {
        let table = self.lua.create_table_with_capacity(items.len(), 0)?;
        let mut mark = Mark::default();
        for (i, item) in items.iter().enumerate() {
            let value = self.value(item)?;
            if self.marks && item.as_number().is_some_and(is_large) {
                mark.large(self.lua, i + 1, &value)?;
            }
            table.raw_push(value)?;
        }
        mark.set(self.lua, &table, true)?;
        Ok(table)
    }

    fn object(self, map: &Map<String, serde_json::Value>) -> mlua::Result<Table> {
        let table = self.lua.create_table_with_capacity(0, map.len())?;
        let mut mark = Mark::default();
        for (name, value) in map {
            let name = name.as_str();
            match value {
                serde_json::Value::Null if self.marks => mark.null(self.lua, name)?,
                serde_json::Value::Null => {}
                // Most fields are texts: a text that is set at once needs no handle.
                serde_json::Value::String(text) => table.raw_set(name, text.as_str())?,
                serde_json::Value::Number(n) if self.marks && is_large(n) => {
                    let digits = self.number(n)?;
                    mark.large(self.lua, name, &digits)?;
                    table.raw_set(name, digits)?;
                }
                value => table.raw_set(name, self.value(value)?)?,
            }
        }
        mark.set(self.lua, &table, false)?;
        Ok(table)
    }

    fn number(self, n: &Number) -> mlua::Result<Value> {
        Ok(match (n.as_i64(), n.as_u64()) {
            (Some(integer), _) => Value::Integer(integer),
            (None, Some(large)) => Value::String(self.lua.create_string(large.to_string())?),
            (None, None) => Value::Number(n.as_f64().unwrap_or(f64::NAN)),
        })
    }
}

/// Parses a JSON text directly into Lua values, so that the memory limit applies. `look` is called
/// regularly, and its errors end the parsing.
///
/// # Errors
/// The problem of the text, or the error of `look` or the interpreter.
pub fn decode(lua: &Lua, text: &[u8], look: &dyn Fn() -> mlua::Result<()>) -> mlua::Result<Value> {
    let into = Into {
        lua,
        look,
        seen: &Cell::new(0),
        large: &Cell::new(false),
        failed: &RefCell::new(None),
    };
    let mut reader = serde_json::Deserializer::from_slice(text);
    let value = into.deserialize(&mut reader).and_then(|value| reader.end().map(|()| value));
    value.map_err(|e| {
        let own = into.failed.borrow_mut().take();
        own.unwrap_or_else(|| mlua::Error::runtime(format!("json.decode: {e}")))
    })
}

#[derive(Clone, Copy)]
struct Into<'l> {
    lua: &'l Lua,
    look: &'l dyn Fn() -> mlua::Result<()>,
    /// Number of values read.
    seen: &'l Cell<u32>,
    /// Whether the value that was read last is a large integer.
    large: &'l Cell<bool>,
    /// An error of the interpreter.
    failed: &'l RefCell<Option<mlua::Error>>,
}

impl Into<'_> {
    /// Stores an error of the interpreter, which serde would convert to text.
    fn kept<T, E: Error>(&self, result: mlua::Result<T>) -> Result<T, E> {
        result.map_err(|e| {
            *self.failed.borrow_mut() = Some(e);
            E::custom("the interpreter failed")
        })
    }
}

impl<'de> DeserializeSeed<'de> for Into<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Value, D::Error> {
        self.seen.set(self.seen.get() + 1);
        if self.seen.get().is_multiple_of(1024) {
            self.kept((self.look)())?;
        }
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Into<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::NULL)
    }

    fn visit_bool<E: Error>(self, b: bool) -> Result<Value, E> {
        Ok(Value::Boolean(b))
    }

    fn visit_i64<E: Error>(self, n: i64) -> Result<Value, E> {
        Ok(Value::Integer(n))
    }

    fn visit_u64<E: Error>(self, n: u64) -> Result<Value, E> {
        match i64::try_from(n) {
            Ok(integer) => Ok(Value::Integer(integer)),
            Err(_) => {
                self.large.set(true);
                self.kept(self.lua.create_string(n.to_string()).map(Value::String))
            }
        }
    }

    fn visit_f64<E: Error>(self, n: f64) -> Result<Value, E> {
        Ok(Value::Number(n))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Value, E> {
        self.kept(self.lua.create_string(text).map(Value::String))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let table = self.kept(self.lua.create_table())?;
        let (mut mark, mut n) = (Mark::default(), 0);
        while let Some(item) = items.next_element_seed(self)? {
            n += 1;
            if self.large.take() {
                self.kept(mark.large(self.lua, n, &item))?;
            }
            self.kept(table.raw_push(item))?;
        }
        self.kept(mark.set(self.lua, &table, true))?;
        Ok(Value::Table(table))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let table = self.kept(self.lua.create_table())?;
        let mut mark = Mark::default();
        while let Some(name) = fields.next_key::<String>()? {
            let value = fields.next_value_seed(self)?;
            if value.is_null() {
                self.kept(mark.null(self.lua, &name))?;
                continue;
            }
            if self.large.take() {
                self.kept(mark.large(self.lua, name.as_str(), &value))?;
            }
            self.kept(table.raw_set(name, value))?;
        }
        self.kept(mark.set(self.lua, &table, false))?;
        Ok(Value::Table(table))
    }
}

/// A JSON text of at most `largest` bytes; members are in the order of their names. `over` returns
/// whether the time is over.
///
/// # Errors
/// Why the value cannot be converted.
pub fn encode(value: &Value, largest: usize, over: &dyn Fn() -> bool) -> Result<String, String> {
    let value = Reader { left: largest, over, steps: 0, exact: true }.value(value, 0)?;
    Ok(value.to_string())
}

/// A JSON value of at most about `largest` bytes; members are in the order of their names. Nulls and
/// large integers come back as they went in, and a float stays one: `5.0` is not `5`.
///
/// # Errors
/// Why the value cannot be converted.
pub fn from_lua(value: &Value, largest: usize) -> Result<serde_json::Value, String> {
    Reader { left: largest, over: &|| false, steps: 0, exact: true }.value(value, 0)
}

/// As [`from_lua`], for values that a script has made itself: `5.0` and `5` are the same number, null
/// members are left out, and large integers are texts.
///
/// # Errors
/// Why the value cannot be converted.
pub fn from_lua_plain(value: &Value, largest: usize) -> Result<serde_json::Value, String> {
    Reader { left: largest, over: &|| false, steps: 0, exact: false }.value(value, 0)
}

/// Whether this may be how Lua writes a number.
fn may_be_number(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '-' | 'i' | 'n'))
        && name.parse::<f64>().is_ok()
}

const NEITHER: &str = "a table is neither a list nor an object";

/// Converts Lua values. A table may occur in many places, so that a small value can have a huge text:
/// the converted bytes are counted.
struct Reader<'a> {
    left: usize,
    over: &'a dyn Fn() -> bool,
    steps: u32,
    /// Whether the marks of tables are read, and floats stay floats.
    exact: bool,
}

fn runtime(why: impl fmt::Display) -> mlua::Error {
    mlua::Error::runtime(why)
}

impl Reader<'_> {
    fn take(&mut self, bytes: usize) -> Result<(), String> {
        self.steps += 1;
        if self.steps.is_multiple_of(1024) && (self.over)() {
            return Err("out of time".to_owned());
        }
        self.left = self.left.checked_sub(bytes).ok_or("the value is too large")?;
        Ok(())
    }

    fn value(&mut self, value: &Value, depth: usize) -> Result<serde_json::Value, String> {
        if depth > DEEPEST {
            return Err(format!("the value is nested deeper than {DEEPEST}"));
        }
        // The size in memory, which is larger than the text.
        self.take(64)?;
        Ok(match value {
            Value::Nil => serde_json::Value::Null,
            value if value.is_null() => serde_json::Value::Null,
            Value::Boolean(b) => (*b).into(),
            Value::Integer(n) => (*n).into(),
            Value::Number(n) if !self.exact && n.fract() == 0.0 && n.abs() < 9e15 => {
                (*n as i64).into()
            }
            Value::Number(n) => Number::from_f64(*n).ok_or("a number is not finite")?.into(),
            Value::String(text) => {
                let text = text.as_bytes();
                let text = str::from_utf8(&text).map_err(|_| "a string is not UTF-8")?;
                self.take(text.len())?;
                text.into()
            }
            Value::Table(table) => self.table(table, depth)?,
            other => return Err(format!("a {} cannot be represented in JSON", other.type_name())),
        })
    }

    fn table(&mut self, table: &Table, depth: usize) -> Result<serde_json::Value, String> {
        match table.raw_len() {
            0 => self.object(table, depth),
            length => self.list(table, length, depth),
        }
    }

    fn list(
        &mut self,
        table: &Table,
        length: usize,
        depth: usize,
    ) -> Result<serde_json::Value, String> {
        let text = |e: mlua::Error| e.to_string();
        let mut items = Vec::new();
        for i in 1..=length {
            let item = table.raw_get::<Value>(i).map_err(text)?;
            items.push(self.value(&item, depth + 1)?);
        }
        let mut seen = 0;
        let only_items = |name, _: Value| {
            seen += 1;
            match name {
                Value::Integer(_) if seen <= length => Ok(()),
                _ => Err(runtime(NEITHER)),
            }
        };
        table.for_each::<Value, Value>(only_items).map_err(text)?;
        if self.exact
            && let Some(large) = kept(table, LARGE)
        {
            let restore = |at: usize, digits: String| {
                if let Some(item) = at.checked_sub(1).and_then(|at| items.get_mut(at)) {
                    restore(item, &digits);
                }
                Ok(())
            };
            large.for_each(restore).map_err(text)?;
        }
        Ok(items.into())
    }

    fn object(&mut self, table: &Table, depth: usize) -> Result<serde_json::Value, String> {
        let mut fields = Map::new();
        // A name that is read as text needs no handle, but a number is read as text too.
        let read = |name: Either<String, Value>, value: Value| {
            let name = match name {
                Either::Left(name) => name,
                Either::Right(Value::String(_)) => return Err(runtime("a key is not UTF-8")),
                Either::Right(_) => return Err(runtime(NEITHER)),
            };
            let number = may_be_number(&name)
                && (fields.contains_key(&name) || table.raw_get::<Value>(name.as_str())?.is_nil());
            if number {
                return Err(runtime(NEITHER));
            }
            self.take(name.len()).map_err(runtime)?;
            let value = self.value(&value, depth + 1).map_err(runtime)?;
            fields.insert(name, value);
            Ok(())
        };
        table.for_each(read).map_err(|e| e.to_string())?;
        if self.exact {
            self.restore_members(table, &mut fields)?;
        }
        if fields.is_empty() && is_list(table) {
            return Ok(serde_json::Value::Array(Vec::new()));
        }
        // Sorted, because the order of a table is arbitrary.
        if fields.len() > 1 {
            fields.sort_keys();
        }
        Ok(fields.into())
    }

    /// Writes null members again that are still absent, and large integers as numbers.
    fn restore_members(
        &mut self,
        table: &Table,
        fields: &mut Map<String, serde_json::Value>,
    ) -> Result<(), String> {
        if let Some(nulls) = kept(table, NULLS) {
            let add = |name: String, _: Value| {
                if !fields.contains_key(&name) {
                    self.take(64 + name.len()).map_err(runtime)?;
                    fields.insert(name, serde_json::Value::Null);
                }
                Ok(())
            };
            nulls.for_each(add).map_err(|e| e.to_string())?;
        }
        if let Some(large) = kept(table, LARGE) {
            let restore = |name: String, digits: String| {
                if let Some(value) = fields.get_mut(&name) {
                    restore(value, &digits);
                }
                Ok(())
            };
            large.for_each(restore).map_err(|e| e.to_string())?;
        }
        Ok(())
    }
}

/// A large integer as a number again, if the script has not changed it.
fn restore(value: &mut serde_json::Value, digits: &str) {
    if value.as_str() == Some(digits)
        && let Ok(n) = digits.parse::<u64>()
    {
        *value = n.into();
    }
}
