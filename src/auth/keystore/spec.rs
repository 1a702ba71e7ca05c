//! The fields of a stored key, and the form of keys.

use rand::{Rng, distr::Alphanumeric};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::error::KeyError;
use crate::base::{
    ResetPeriod,
    period::now,
    terms::{self, Terms},
};

/// Prefix of generated keys, and the number of characters after it.
pub const BEGINNING: &str = "sk-llmproxy-";
pub const LENGTH: usize = 32;

/// Allowed lengths of a given key in characters.
pub const KEY_LENGTHS: std::ops::RangeInclusive<usize> = 8..=512;

/// The fields of a key that an operator sets. Empty and absent mean the same.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct KeySpec {
    /// Name of the key.
    #[schema(nullable)]
    pub name: String,
    /// Owner of the key.
    #[schema(nullable)]
    pub user_id: String,
    /// Team of the key.
    #[schema(nullable)]
    pub team: String,
    /// Tier of the key.
    #[schema(nullable)]
    pub tier: String,
    /// `active`, `disabled`, `quota_exceeded`, `expired`, or 0 to 3.
    pub status: Value,
    /// Start of its validity: Unix seconds, or a date and time.
    pub starts_at: Value,
    /// End of its validity.
    pub expires_at: Value,
    /// Tokens that it may use.
    pub total_quota: Option<f64>,
    /// Tokens that it has used.
    #[schema(nullable)]
    pub used_quota: f64,
    /// `daily`, `weekly`, `monthly` or `never`.
    pub quota_reset_period: Option<ResetPeriod>,
    /// Money or credits.
    pub balance: Option<f64>,
    /// Addresses from which it may be used; empty: every address.
    #[schema(nullable)]
    pub allowed_ips: Vec<String>,
    /// Addresses from which it may not be used.
    #[schema(nullable)]
    pub denied_ips: Vec<String>,
    /// Further fields.
    #[schema(nullable)]
    pub metadata: Map<String, Value>,
    /// Per-key limits.
    pub limits: Option<Map<String, Value>>,
}

/// A stored key, which does not contain the key itself.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredKey {
    pub id: String,
    /// A part of the key, to recognise it.
    pub prefix: String,
    /// Normalized: `status` is a number, times are Unix seconds or null.
    pub spec: KeySpec,
    /// Last reset of its quota in Unix seconds; only counting sets it.
    pub last_reset_at: Option<i64>,
    /// Unix seconds.
    pub created_at: i64,
    /// Unix seconds.
    pub updated_at: i64,
}

impl StoredKey {
    /// The data that rules and scripts see.
    pub fn data(&self) -> Map<String, Value> {
        let Ok(Value::Object(mut data)) = serde_json::to_value(&self.spec) else {
            return Map::new();
        };
        terms::drop_empty(&mut data);
        if let Some(at) = self.last_reset_at {
            data.insert("last_reset_at".to_owned(), at.into());
        }
        data.insert("id".to_owned(), self.id.clone().into());
        data.insert("created_at".to_owned(), self.created_at.into());
        data.insert("updated_at".to_owned(), self.updated_at.into());
        data
    }

    /// Replaces the fields that an operator sets.
    pub fn set_spec(&mut self, spec: KeySpec) {
        let period = spec.quota_reset_period.unwrap_or_default();
        if period != self.spec.quota_reset_period.unwrap_or_default() {
            // The last reset means nothing for periods of another length.
            self.last_reset_at = None;
        } else if spec.used_quota != self.spec.used_quota
            && let Some(last) = self.last_reset_at
        {
            // The new number is about the current period.
            self.last_reset_at = period.start(now(), Some(last)).or(self.last_reset_at);
        }
        self.spec = spec;
        self.updated_at = now();
    }
}

/// A new key with 190 random bits.
pub fn make_key() -> String {
    let random = rand::rng().sample_iter(Alphanumeric).take(LENGTH).map(char::from);
    BEGINNING.chars().chain(random).collect()
}

/// A part of a key to recognise it: at most half of it.
pub fn prefix(key: &str) -> String {
    let chars: Vec<char> = key.chars().collect();
    let head = (chars.len() / 3).min(BEGINNING.len() + 4);
    let tail = if chars.len() >= 24 { 4 } else { 0 };
    let head: String = chars[..head].iter().collect();
    let tail: String = chars[chars.len() - tail..].iter().collect();
    format!("{head}***{tail}")
}

/// A key as it is stored, with a new id.
pub fn new_key(key: &str, spec: KeySpec) -> Result<StoredKey, KeyError> {
    let harmless = key.chars().all(|c| c.is_ascii_graphic());
    if !KEY_LENGTHS.contains(&key.len()) || !harmless {
        let (least, most) = (KEY_LENGTHS.start(), KEY_LENGTHS.end());
        return Err(KeyError::Invalid(format!(
            "a key has {least} to {most} visible ASCII characters"
        )));
    }
    let (at, id) = (now(), format!("key_{:016x}", rand::random::<u64>()));
    let spec = checked(spec).map_err(KeyError::Invalid)?;
    Ok(StoredKey {
        id,
        prefix: prefix(key),
        spec,
        last_reset_at: None,
        created_at: at,
        updated_at: at,
    })
}

/// The spec in one form: the status a number, times Unix seconds or null.
pub fn checked(mut spec: KeySpec) -> Result<KeySpec, String> {
    let nothing = |value: &Value| value.is_null() || value.as_str() == Some("");
    let status = if nothing(&spec.status) { Some(0) } else { terms::status_number(&spec.status) };
    spec.status =
        status.ok_or("`status` is not active, disabled, quota_exceeded or expired")?.into();
    for (name, time) in [("starts_at", &mut spec.starts_at), ("expires_at", &mut spec.expires_at)] {
        *time = match nothing(time) {
            true => Value::Null,
            false => terms::time_seconds(time).map_err(|why| format!("`{name}` {why}"))?.into(),
        };
    }
    let amounts = [spec.total_quota, Some(spec.used_quota), spec.balance];
    if amounts.into_iter().flatten().any(|n| !n.is_finite()) {
        return Err("an amount is not a number".to_owned());
    }
    let stored = StoredKey {
        id: String::new(),
        prefix: String::new(),
        spec: spec.clone(),
        last_reset_at: None,
        created_at: 0,
        updated_at: 0,
    };
    // Whatever the rules cannot read is not stored.
    Terms::read(&stored.data())?;
    Ok(spec)
}
