//! `tiers`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a key of this rank is given before others.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Tier {
    /// How important its requests are to the engines, -1000 to 1000; larger is more important.
    /// Nothing is sent without it.
    pub engine_priority: Option<i32>,
    /// Its place in the gateway's queue: larger goes first, and smaller waits as long as there is
    /// any larger.
    pub queue_class: i32,
}
