//! `/admin/v1/keys`.

use std::net::SocketAddr;

use axum::{
    Json,
    extract::{ConnectInfo, Path, State},
    http::StatusCode,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::{
    Parts,
    answer::{Body, ErrorBody, Params, Refusal, audit},
};
use crate::{
    auth::keystore::{KeyError, KeySpec, StoredKey},
    base::ResetPeriod,
};

type From = ConnectInfo<SocketAddr>;
type Answer<T> = Result<T, Refusal>;

/// A key, without the key.
#[derive(Serialize, ToSchema)]
pub struct Key {
    /// Its identity: in records, in logs, in paths of this API.
    id: String,
    /// Enough of the key to recognise it.
    prefix: String,
    name: String,
    user_id: String,
    team: String,
    tier: String,
    status: Status,
    /// RFC 3339.
    #[schema(format = DateTime)]
    starts_at: Option<String>,
    /// RFC 3339.
    #[schema(format = DateTime)]
    expires_at: Option<String>,
    /// Tokens.
    total_quota: Option<f64>,
    /// Tokens.
    used_quota: f64,
    quota_reset_period: Option<ResetPeriod>,
    /// When the quota last began anew, RFC 3339.
    #[schema(format = DateTime)]
    last_reset_at: Option<String>,
    balance: Option<f64>,
    allowed_ips: Vec<String>,
    denied_ips: Vec<String>,
    metadata: Map<String, Value>,
    limits: Option<Map<String, Value>>,
    /// RFC 3339.
    #[schema(format = DateTime)]
    created_at: Option<String>,
    /// RFC 3339.
    #[schema(format = DateTime)]
    updated_at: Option<String>,
}

/// A key with the key itself.
#[derive(Serialize, ToSchema)]
pub struct NewKey {
    /// The key. It is told this once.
    key: String,
    #[serde(flatten)]
    about: Key,
}

/// Whether a key is good.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum Status {
    Active,
    Disabled,
    QuotaExceeded,
    Expired,
}

/// A page of keys, from the newest on.
#[derive(Serialize, ToSchema)]
pub struct Page {
    keys: Vec<Key>,
    /// How many there are in all.
    total: i64,
    offset: i64,
    limit: i64,
}

/// What is said of a new key.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only its schema is used; the body is read in two steps")]
struct Wish {
    /// The key, 8 to 512 visible ASCII characters; made by the gateway without one.
    #[schema(min_length = 8, max_length = 512, pattern = "^[!-~]+$")]
    key: Option<String>,
    #[schema(inline)]
    #[serde(flatten)]
    about: KeySpec,
}

/// Which keys.
#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Choice {
    /// Keys to leave out, from the newest on.
    #[serde(default)]
    #[param(value_type = i64, minimum = 0, maximum = 4294967295i64)]
    offset: u32,
    /// Keys wanted, 1 to 100; 20 without this.
    #[serde(default = "usual")]
    #[param(minimum = 1, maximum = 100)]
    limit: u32,
    /// Only keys of this user.
    user_id: Option<String>,
}

fn usual() -> u32 {
    20
}

/// A moment as text.
pub fn text(seconds: Option<i64>) -> Option<String> {
    jiff::Timestamp::from_second(seconds?).ok().map(|t| t.to_string())
}

impl Key {
    fn new(stored: StoredKey) -> Self {
        let spec = stored.spec;
        Self {
            id: stored.id,
            prefix: stored.prefix,
            name: spec.name,
            user_id: spec.user_id,
            team: spec.team,
            tier: spec.tier,
            status: match spec.status.as_i64() {
                Some(0) => Status::Active,
                Some(2) => Status::QuotaExceeded,
                Some(3) => Status::Expired,
                _ => Status::Disabled,
            },
            starts_at: text(spec.starts_at.as_i64()),
            expires_at: text(spec.expires_at.as_i64()),
            total_quota: spec.total_quota,
            used_quota: spec.used_quota,
            quota_reset_period: spec.quota_reset_period,
            last_reset_at: text(stored.last_reset_at),
            balance: spec.balance,
            allowed_ips: spec.allowed_ips,
            denied_ips: spec.denied_ips,
            metadata: spec.metadata,
            limits: spec.limits,
            created_at: text(Some(stored.created_at)),
            updated_at: text(Some(stored.updated_at)),
        }
    }
}

/// The keys, from the newest on.
#[utoipa::path(get, path = "/admin/v1/keys", tag = "keys", params(Choice), responses(
    (status = 200, body = Page), (status = 400, body = ErrorBody),
))]
pub async fn list(
    State(parts): State<Parts>,
    Params(choice): Params<Choice>,
) -> Answer<Json<Page>> {
    let (offset, limit) = (i64::from(choice.offset), i64::from(choice.limit));
    if !(1..=100).contains(&limit) {
        let why = "`limit` is not between 1 and 100".to_owned();
        return Err(Refusal::of(KeyError::Invalid(why)));
    }
    let found = parts.carry.keys.list(offset, limit, choice.user_id.as_deref()).await;
    let (keys, total) = found.map_err(Refusal::of)?;
    Ok(Json(Page { keys: keys.into_iter().map(Key::new).collect(), total, offset, limit }))
}

/// Makes a key. The answer tells it in full, this once.
#[utoipa::path(post, path = "/admin/v1/keys", tag = "keys", request_body = Option<Wish>, responses(
    (status = 201, body = NewKey), (status = 400, body = ErrorBody),
    (status = 409, body = ErrorBody), (status = 413, body = ErrorBody),
))]
pub async fn create(
    State(parts): State<Parts>,
    ConnectInfo(from): From,
    Body(mut wish): Body<Map<String, Value>>,
) -> Answer<(StatusCode, Json<NewKey>)> {
    let key = match wish.shift_remove("key") {
        None | Some(Value::Null) => None,
        Some(Value::String(key)) => Some(key),
        Some(_) => return Err(Refusal::of(KeyError::Invalid("`key` is not a string".to_owned()))),
    };
    let spec = spec(wish).map_err(|e| Refusal::of(KeyError::Invalid(e)))?;
    let (key, stored) = parts.carry.keys.create(key.as_deref(), spec).await.map_err(Refusal::of)?;
    audit(from, "key created", &stored.id);
    Ok((StatusCode::CREATED, Json(NewKey { key, about: Key::new(stored) })))
}

fn spec(fields: Map<String, Value>) -> Result<KeySpec, String> {
    // `null` is as good as nothing.
    let given = fields.into_iter().filter(|(_, v)| !v.is_null()).collect();
    serde_json::from_value(Value::Object(given)).map_err(|e| e.to_string())
}

/// One key.
#[utoipa::path(get, path = "/admin/v1/keys/{id}", tag = "keys",
    params(("id" = String, Path, description = "Its identity")), responses(
    (status = 200, body = Key), (status = 404, body = ErrorBody),
))]
pub async fn get(State(parts): State<Parts>, Path(id): Path<String>) -> Answer<Json<Key>> {
    parts.carry.keys.by_id(&id).await.map(|k| Json(Key::new(k))).map_err(Refusal::of)
}

/// Changes what is said of a key. Fields that are not given stay; `null` clears one.
#[utoipa::path(patch, path = "/admin/v1/keys/{id}", tag = "keys", request_body = Option<KeySpec>,
    params(("id" = String, Path, description = "Its identity")), responses(
    (status = 200, body = Key), (status = 400, body = ErrorBody),
    (status = 404, body = ErrorBody), (status = 413, body = ErrorBody),
))]
pub async fn change(
    State(parts): State<Parts>,
    ConnectInfo(from): From,
    Path(id): Path<String>,
    Body(changes): Body<Map<String, Value>>,
) -> Answer<Json<Key>> {
    let merge = |old: KeySpec| merged(&old, changes);
    let stored = parts.carry.keys.update(&id, merge).await.map_err(Refusal::of)?;
    audit(from, "key changed", &stored.id);
    Ok(Json(Key::new(stored)))
}

/// What is said now, with the changes made.
pub fn merged(old: &KeySpec, changes: Map<String, Value>) -> Result<KeySpec, String> {
    let mut fields = match serde_json::to_value(old) {
        Ok(Value::Object(fields)) => fields,
        _ => Map::new(),
    };
    fields.extend(changes);
    spec(fields)
}

/// Removes a key: it is refused from now on.
#[utoipa::path(delete, path = "/admin/v1/keys/{id}", tag = "keys",
    params(("id" = String, Path, description = "Its identity")), responses(
    (status = 204), (status = 404, body = ErrorBody),
))]
pub async fn delete(
    State(parts): State<Parts>,
    ConnectInfo(from): From,
    Path(id): Path<String>,
) -> Answer<StatusCode> {
    parts.carry.keys.delete(&id).await.map_err(Refusal::of)?;
    audit(from, "key deleted", &id);
    Ok(StatusCode::NO_CONTENT)
}

/// Gives a key a new value. The old one is refused from now on; the answer tells the new one in
/// full, this once.
#[utoipa::path(post, path = "/admin/v1/keys/{id}/rotate", tag = "keys",
    params(("id" = String, Path, description = "Its identity")), responses(
    (status = 200, body = NewKey), (status = 404, body = ErrorBody),
))]
pub async fn rotate(
    State(parts): State<Parts>,
    ConnectInfo(from): From,
    Path(id): Path<String>,
) -> Answer<Json<NewKey>> {
    let (key, stored) = parts.carry.keys.rotate(&id).await.map_err(Refusal::of)?;
    audit(from, "key rotated", &stored.id);
    Ok(Json(NewKey { key, about: Key::new(stored) }))
}
