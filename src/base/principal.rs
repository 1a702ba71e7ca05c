//! Who is calling.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::{limits::OwnLimits, terms::Quota};

/// The caller, as the auth pipeline found out: read by limits, routing, hooks, usage records and
/// logs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Principal {
    /// Identity of the key, never the key itself.
    pub key_id: String,
    /// Whose key it is; empty if nobody said.
    pub user_id: String,
    /// Name of the key; empty if it has none.
    pub name: String,
    /// The team that it belongs to; empty for none.
    pub team: String,
    /// The tier that it belongs to; empty for none.
    pub tier: String,
    /// Whatever else the key's data or a script told.
    pub metadata: Map<String, Value>,
    /// Limits of this key alone, as its data or a script gave them.
    pub limits: Option<Arc<OwnLimits>>,
    /// Labels that a script gave.
    pub tags: Vec<String>,
    /// What the key may use, where the place that it comes from cannot count it.
    pub allowance: Option<Arc<Allowance>>,
}

/// Quota and balance of a key that stands in the configuration: nobody but the gateway itself
/// counts them.
#[derive(Clone, Debug, PartialEq)]
pub struct Allowance {
    /// Tokens, as configured; `None`: no quota.
    pub quota: Option<Quota>,
    /// Money or credits, as configured; `None`: not looked at.
    pub balance: Option<f64>,
    /// Whether the key is refused once they are used up. If not they are only counted: a script
    /// decides about it.
    pub enforced: bool,
}
