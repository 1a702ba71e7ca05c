//! An entry of a model list.

use serde_json::Value;

/// A model that clients can ask for.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    /// Its name.
    pub name: String,
    /// When it was made, in seconds since 1970.
    pub created: i64,
    /// The entry as a backend wrote it, with all its members; `None` for a model that the
    /// configuration names.
    pub entry: Option<Value>,
}
