//! `tiers`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The priorities of the keys of a tier.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Tier {
    /// The priority of its requests in the engines, -1000 to 1000; larger is more important. By
    /// default none is sent.
    pub engine_priority: Option<i32>,
    /// The class of its requests in the gateway's queue: a larger class is always served first.
    pub queue_class: i32,
}
