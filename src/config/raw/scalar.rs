//! Single values, some of which may be written in several ways, and defaults that several sections
//! share.

use std::{borrow::Cow, fmt, time::Duration};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_yaml::Value;

use crate::base::{Secret, duration};

/// A switch that is on by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(transparent)]
pub struct Switch(pub bool);

impl Default for Switch {
    fn default() -> Self {
        Self(true)
    }
}

/// A duration in the file.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Span(pub Duration);

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = scalar(deserializer, "a duration like `10s`")?;
        duration::parse(&text).map(Self).map_err(de::Error::custom)
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Duration::ZERO => serializer.serialize_str("0"),
            some => serializer.serialize_str(&format!("{some:?}")),
        }
    }
}

impl JsonSchema for Span {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A duration: `500ms`, `10s`, `1m30s`, or `0`.",
            "type": ["string", "integer"],
            "examples": ["500ms", "10s", "5m"],
        })
    }
}

/// A number of bytes in the file: `1048576`, `64KiB`, `32MiB`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ByteSize(pub u64);

impl fmt::Debug for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = scalar(deserializer, "a size like `32MiB`")?;
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let factor: Option<u64> = match text[digits..].trim().to_ascii_lowercase().as_str() {
            "" | "b" => Some(1),
            "k" | "kb" => Some(1000),
            "m" | "mb" => Some(1000 * 1000),
            "g" | "gb" => Some(1000 * 1000 * 1000),
            "kib" => Some(1 << 10),
            "mib" => Some(1 << 20),
            "gib" => Some(1 << 30),
            _ => None,
        };
        let number = text[..digits].parse::<u64>().ok();
        match number.zip(factor).and_then(|(n, f)| n.checked_mul(f)) {
            Some(bytes) => Ok(Self(bytes)),
            None => {
                Err(de::Error::custom(format!("`{text}` is not a size; write `64KiB` or `32MiB`")))
            }
        }
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}

impl JsonSchema for ByteSize {
    fn schema_name() -> Cow<'static, str> {
        "ByteSize".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A number of bytes: `1048576`, `64KiB`, `32MiB`.",
            "type": ["string", "integer"],
        })
    }
}

/// The problem of a secret that YAML does not read as text.
pub const UNQUOTED: &str = "is read by YAML as something other than text, which may change it";

/// A secret in the file. It must be a string: YAML reads `1e5`, `0x1F` and `1.10` as numbers.
#[derive(Clone, Debug)]
pub struct SecretText(pub Secret);

impl<'de> Deserialize<'de> for SecretText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::String(text) => Ok(Self(Secret::new(text))),
            // `0x1F` was read as 31, and `1.10` as 1.1: the original text is lost.
            _ => Err(de::Error::custom(UNQUOTED)),
        }
    }
}

impl Serialize for SecretText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("[secret]")
    }
}

/// A word or a number, as a text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Word(pub String);

impl<'de> Deserialize<'de> for Word {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        scalar(deserializer, "a word or a number").map(Self)
    }
}

impl JsonSchema for Word {
    fn schema_name() -> Cow<'static, str> {
        "Word".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": ["string", "integer"] })
    }
}

/// A fraction: `50%` or `0.5`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Share(pub f64);

impl<'de> Deserialize<'de> for Share {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = scalar(deserializer, "a fraction like `50%` or `0.5`")?;
        let share = match text.strip_suffix('%') {
            Some(percent) => percent.trim().parse::<f64>().map(|p| p / 100.0),
            None => text.trim().parse(),
        };
        match share {
            Ok(share) if (0.0..=1.0).contains(&share) => Ok(Self(share)),
            _ => {
                Err(de::Error::custom(format!("`{text}` is not a fraction; write `50%` or `0.5`")))
            }
        }
    }
}

impl JsonSchema for Share {
    fn schema_name() -> Cow<'static, str> {
        "Share".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A fraction: `50%` or `0.5`.",
            "type": ["string", "number"],
        })
    }
}

/// A duration, or a number of milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Millis(pub Span);

impl<'de> Deserialize<'de> for Millis {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        number_or_span(deserializer, Duration::from_millis).map(Self)
    }
}

impl JsonSchema for Millis {
    fn schema_name() -> Cow<'static, str> {
        "Milliseconds".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A duration, or a number of milliseconds: `250`, `250ms`.",
            "type": ["string", "integer"],
        })
    }
}

/// A duration, or a number of seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Seconds(pub Span);

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        number_or_span(deserializer, Duration::from_secs).map(Self)
    }
}

impl JsonSchema for Seconds {
    fn schema_name() -> Cow<'static, str> {
        "Seconds".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A duration, or a number of seconds: `60`, `1m`.",
            "type": ["string", "integer"],
        })
    }
}

pub fn one() -> u32 {
    1
}

pub fn ten() -> u32 {
    10
}

pub fn yes() -> bool {
    true
}

pub fn three_seconds() -> Span {
    secs(3)
}

pub fn secs(n: u64) -> Span {
    Span(Duration::from_secs(n))
}

/// Writes a URL without its query and user information, which may be secret.
pub fn without_query<S: Serializer>(url: &str, serializer: S) -> Result<S::Ok, S::Error> {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let rest = rest.split(['?', '#']).next().unwrap_or_default();
    let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let host = host.rsplit('@').next().unwrap_or_default();
    serializer.serialize_str(&format!("{scheme}://{host}{path}"))
}

pub fn scalar<'de, D: Deserializer<'de>>(
    deserializer: D,
    expected: &str,
) -> Result<String, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::String(text) => Ok(text),
        Value::Number(number) => Ok(number.to_string()),
        _ => Err(de::Error::custom(format!("expected {expected}"))),
    }
}

fn number_or_span<'de, D: Deserializer<'de>>(
    deserializer: D,
    unit: fn(u64) -> Duration,
) -> Result<Span, D::Error> {
    let text = scalar(deserializer, "a duration like `10s`")?;
    match text.parse::<u32>() {
        Ok(number) => Ok(Span(unit(number.into()))),
        Err(_) => duration::parse(&text).map(Span).map_err(de::Error::custom),
    }
}

pub fn ten_seconds() -> Span {
    secs(10)
}

pub fn five_seconds() -> Span {
    secs(5)
}

/// The names of all API languages, and those of their vendors.
pub fn protocol_schema(_: &mut SchemaGenerator) -> Schema {
    let names: Vec<_> = crate::dialect::names().chain(crate::dialect::aliases()).collect();
    json_schema!({ "type": ["string", "null"], "enum": names })
}

/// A list of the names of API languages.
pub fn languages_schema(_: &mut SchemaGenerator) -> Schema {
    let names: Vec<_> = crate::dialect::names().collect();
    json_schema!({ "type": "array", "items": { "type": "string", "enum": names } })
}
