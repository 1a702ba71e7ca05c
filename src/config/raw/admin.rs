//! `admin`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::scalar::SecretText;

/// The admin API, on a separate address. A change of these keys needs a restart.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Admin {
    /// Whether to serve it.
    pub enabled: bool,
    /// Its address.
    pub listen: String,
    /// The token that requests must have in `X-Admin-Token`, or as a bearer token.
    #[schemars(with = "Option<String>")]
    pub token: Option<SecretText>,
    /// A file that holds the token.
    pub token_file: Option<String>,
    /// The SQLite file with the keys that it manages, for the provider `builtin`; `keys.db` in
    /// `data_dir` by default. It is created if it does not exist.
    pub db_path: Option<String>,
}

impl Default for Admin {
    fn default() -> Self {
        Self {
            enabled: false,
            listen: "127.0.0.1:8001".to_owned(),
            token: None,
            token_file: None,
            db_path: None,
        }
    }
}
