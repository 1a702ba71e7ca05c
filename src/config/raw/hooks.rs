//! `hooks` and `scripts`: Lua at the stages of a request.

use std::{borrow::Cow, fmt, marker::PhantomData};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, MapAccess, SeqAccess, Visitor, value::MapAccessDeserializer},
};

use super::{ByteSize, Span, Switch, When, auth::length_only};
use crate::config::choices::OnScriptError;

/// Scripts at the stages of a request. Each stage takes one script or a list of scripts, which run in the
/// order of the list.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Hooks {
    /// `false` switches all of them off, those of `scripts` too.
    pub enabled: Switch,
    /// After the request has been read: may refuse it, answer it, change its head and body, add tags.
    pub on_request: OneOrMany<Hook>,
    /// After the key was allowed: may refuse the request, add metadata, tags, a tier and limits.
    pub on_auth: OneOrMany<Hook>,
    /// Before the request is admitted by its limits: may refuse it, change its weight and its limits.
    pub rate_limit: OneOrMany<Hook>,
    /// Before the first backend is picked: may choose backends, another model, and what binds the
    /// request to a backend.
    pub on_route: OneOrMany<Hook>,
    /// Before each attempt: may change the head and the body that the backend gets.
    pub on_upstream_request: OneOrMany<Hook>,
    /// When the answer's head has come, or the whole of a plain answer: may change status, head and body.
    pub on_response: OneOrMany<Hook>,
    /// For each event of a stream: may change it, drop it, and end the stream.
    pub on_stream_event: OneOrMany<Hook>,
    /// Before an error response of the gateway's own: may change its status, head and body.
    pub on_error: OneOrMany<Hook>,
    /// Before the usage record is written: may change and add fields.
    pub on_usage: OneOrMany<Hook>,
    /// After the end of the request.
    pub on_complete: OneOrMany<Hook>,
}

/// A script at a stage.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Hook {
    /// `false` leaves it out.
    pub enabled: Switch,
    /// The script itself.
    #[serde(serialize_with = "length_only")]
    pub script: Option<String>,
    /// A file with the script; it is read at each load of the configuration.
    #[serde(alias = "script_file")]
    pub path: Option<String>,
    /// The name of a built-in script, or of `NAME.lua` in a folder `lua` beside this file.
    pub name: Option<String>,
    /// How long a call may take; 100ms by default, 10ms in `on_stream_event`.
    pub timeout: Option<Span>,
    /// How much memory a call may use; 10MiB by default.
    #[serde(alias = "memory")]
    pub max_memory: Option<ByteSize>,
    /// What happens when the script fails: `open` (as if it had changed nothing) or `closed` (the
    /// request is refused, or its answer ends). By default `closed` in `on_auth`, else `open`.
    pub on_error: Option<OnScriptError>,
    /// Which requests it runs for; by default all.
    pub when: When,
    /// Only in `on_stream_event`: how long all calls for one stream may take; 1s by default.
    pub stream_timeout: Option<Span>,
}

/// Scripts with the keys of version 0.5, each a stage of `hooks`.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Scripts {
    /// As `hooks.on_route`.
    pub routing: Option<Hook>,
    /// As `hooks.on_auth`.
    pub auth: Option<Hook>,
    /// As `hooks.rate_limit`.
    pub rate_limit: Option<Hook>,
    /// As `hooks.on_usage`.
    pub usage: Option<Hook>,
    /// As `hooks.on_upstream_request`.
    pub request_transform: Option<Hook>,
    /// As `hooks.on_response`.
    pub response_transform: Option<Hook>,
    /// As `hooks.on_error`.
    pub error_handler: Option<Hook>,
}

/// One value, or a list.
#[derive(Clone, Debug)]
pub struct OneOrMany<T>(pub Vec<T>);

impl<T> Default for OneOrMany<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for OneOrMany<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Either<T> {
            type Value = OneOrMany<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("one entry or a list of entries")
            }

            fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
                Ok(OneOrMany::default())
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                let one = T::deserialize(MapAccessDeserializer::new(map))?;
                Ok(OneOrMany(vec![one]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut all = Vec::new();
                while let Some(one) = seq.next_element()? {
                    all.push(one);
                }
                Ok(OneOrMany(all))
            }
        }

        deserializer.deserialize_any(Either(PhantomData))
    }
}

impl<T: Serialize> Serialize for OneOrMany<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<T: JsonSchema> JsonSchema for OneOrMany<T> {
    fn schema_name() -> Cow<'static, str> {
        format!("OneOrMany{}", T::schema_name()).into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let one = generator.subschema_for::<T>();
        json_schema!({
            "description": "One entry, or a list of entries.",
            "anyOf": [one, {"type": "array", "items": one}],
        })
    }
}
