//! Single values that may be written in several ways.

use std::{borrow::Cow, time::Duration};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, de};

use super::{Span, scalar};
use crate::base::duration;

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

/// A part of a whole: `50%` or `0.5`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Share(pub f64);

impl<'de> Deserialize<'de> for Share {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = scalar(deserializer, "a part like `50%` or `0.5`")?;
        let share = match text.strip_suffix('%') {
            Some(percent) => percent.trim().parse::<f64>().map(|p| p / 100.0),
            None => text.trim().parse(),
        };
        match share {
            Ok(share) if (0.0..=1.0).contains(&share) => Ok(Self(share)),
            _ => Err(de::Error::custom(format!("`{text}` is no part; write `50%` or `0.5`"))),
        }
    }
}

impl JsonSchema for Share {
    fn schema_name() -> Cow<'static, str> {
        "Share".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A part of a whole: `50%` or `0.5`.",
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
