//! `when`: which requests a script or a guard applies to.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which requests a script or a guard applies to: those that match each list that is not empty.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct When {
    /// Models, as the client names them: a name, or a prefix with `*` at the end.
    pub models: Vec<String>,
    /// Keys, by their id, their name, or the user that they belong to: exact, or a prefix with `*` at
    /// the end.
    pub keys: Vec<String>,
    /// Tags, of which the caller or an earlier script has set at least one.
    pub tags: Vec<String>,
}
