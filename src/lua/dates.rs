//! `os.date`, `os.time` and `time.*`, as natives.

use jiff::tz::TimeZone;
use mlua::{Error, Lua, LuaString, Table, Value};

use super::{
    call::Call,
    date::{self, CalendarFields, Moment},
    zone,
};

/// Longest format and longest text of a date, in bytes.
const LONGEST: usize = 1000;

/// Sets the natives.
pub fn functions(lua: &Lua, table: &Table, call: &Call) -> mlua::Result<()> {
    let now = call.clone();
    let date =
        lua.create_function(move |lua, (format, time): (Option<LuaString>, Option<Value>)| {
            os_date(lua, &now, format.as_ref(), time)
        })?;
    table.set("date", date)?;
    let now = call.clone();
    let time = lua.create_function(move |lua, t: Option<Table>| match t {
        None => Ok(now.now(lua)? as i64 / 1000),
        Some(fields) => {
            let at = zone::local().and_then(|zone| date::unix_time(calendar(&fields)?, &zone));
            at.map_err(|why| Error::runtime(format!("os.time: {why}")))
        }
    })?;
    table.set("time", time)?;
    let now = call.clone();
    let format = lua.create_function(
        move |lua, (time, format, zone): (Option<Value>, Option<LuaString>, Option<LuaString>)| {
            let seconds = moment_of(lua, &now, time, "time.format")?;
            let made = zone_of(zone.as_ref()).and_then(|zone| {
                let moment = Moment::new(seconds, &zone)?;
                match format {
                    Some(format) => moment.format(&short(&format)?),
                    None => Ok(moment.rfc3339()),
                }
            });
            made.map_err(|why| Error::runtime(format!("time.format: {why}")))
        },
    )?;
    table.set("format_time", format)?;
    let parse = lua.create_function(
        |_, (text, format, zone): (LuaString, Option<LuaString>, Option<LuaString>)| {
            let wrong = |why| Error::runtime(format!("time.parse: {why}"));
            let zone = zone_of(zone.as_ref()).map_err(wrong)?;
            let format = format.as_ref().map(short).transpose().map_err(wrong)?;
            let parsed = short(&text).and_then(|text| date::parse(&text, format.as_deref(), &zone));
            Ok(match parsed {
                Ok((seconds, 0)) => (Value::Integer(seconds), None),
                Ok((seconds, nanos)) => {
                    (Value::Number(seconds as f64 + f64::from(nanos) / 1e9), None)
                }
                Err(why) => (Value::Nil, Some(why)),
            })
        },
    )?;
    table.set("parse_time", parse)
}

fn short(text: &LuaString) -> Result<String, String> {
    let text = text.as_bytes();
    if text.len() > LONGEST {
        return Err("the text is too long".to_owned());
    }
    str::from_utf8(&text).map(str::to_owned).map_err(|_| "the text is not UTF-8".to_owned())
}

/// The zone that is named, or that of the process.
fn zone_of(name: Option<&LuaString>) -> Result<TimeZone, String> {
    match name {
        Some(name) => zone::named(&short(name)?),
        None => zone::local(),
    }
}

/// Unix seconds from an argument; without one the current time.
fn moment_of(lua: &Lua, call: &Call, time: Option<Value>, of: &str) -> mlua::Result<i64> {
    match time {
        None | Some(Value::Nil) => Ok(call.now(lua)? as i64 / 1000),
        Some(value) => {
            let number = lua.coerce_number(value)?.filter(|n| n.is_finite());
            // What is beyond the range has no date, which is reported later.
            number
                .map(|n| n.floor() as i64)
                .ok_or_else(|| Error::runtime(format!("{of}: the time is not a number of seconds")))
        }
    }
}

/// `os.date`.
fn os_date(
    lua: &Lua,
    call: &Call,
    format: Option<&LuaString>,
    time: Option<Value>,
) -> mlua::Result<Value> {
    let wrong = |why: String| Error::runtime(format!("os.date: {why}"));
    let seconds = moment_of(lua, call, time, "os.date")?;
    let format = format.map_or_else(|| Ok("%c".to_owned()), short).map_err(wrong)?;
    let (zone, format) = match format.strip_prefix('!') {
        Some(format) => (TimeZone::UTC, format),
        None => (zone::local().map_err(wrong)?, format.as_str()),
    };
    let moment = Moment::new(seconds, &zone).map_err(wrong)?;
    if !format.starts_with("*t") {
        let text = moment.format(format).map_err(wrong)?;
        return Ok(Value::String(lua.create_string(text)?));
    }
    let table = lua.create_table_with_capacity(0, 9)?;
    for (name, value) in moment.fields() {
        table.raw_set(name, value)?;
    }
    table.raw_set("isdst", moment.is_dst())?;
    Ok(Value::Table(table))
}

/// The fields of a table for `os.time`.
fn calendar(fields: &Table) -> Result<CalendarFields, String> {
    let field = |name: &str, default: Option<i64>| {
        let value = fields.raw_get::<Value>(name).map_err(|e| e.to_string())?;
        let number = match &value {
            Value::Nil => default,
            Value::Integer(n) => Some(*n),
            Value::Number(n) if n.fract() == 0.0 && n.abs() < 9e15 => Some(*n as i64),
            Value::String(text) => text.to_str().ok().and_then(|text| text.trim().parse().ok()),
            _ => None,
        };
        number.ok_or_else(|| match value {
            Value::Nil => format!("field '{name}' missing in date table"),
            _ => format!("field '{name}' is not an integer"),
        })
    };
    Ok(CalendarFields {
        year: field("year", None)?,
        month: field("month", None)?,
        day: field("day", None)?,
        hour: field("hour", Some(12))?,
        min: field("min", Some(0))?,
        sec: field("sec", Some(0))?,
        isdst: fields.raw_get::<Option<bool>>("isdst").unwrap_or_default(),
    })
}
