//! `log`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::scalar::{Span, Switch};
use crate::{base::AccessField, config::choices::Level};

/// Logging.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// The lowest level that is written: `error`, `warn`, `info`, `debug` or `trace`.
    pub level: Level,
    /// `text`, or `json` with one object per line.
    pub format: LogFormat,
    /// Whether to write an access line for each request.
    pub access: Switch,
    /// The fields of access lines, in this order: as one JSON object, or as `name=value` in text. Without
    /// them a line has all fields.
    pub access_fields: Vec<AccessField>,
    /// A request that takes longer than this has a warning of its own.
    pub slow_requests: Option<Span>,
}

/// Log formats.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}
