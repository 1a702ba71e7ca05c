//! `POST /admin/keys/{create,update,delete,get,list,sync}`: the endpoints of LLMProxy 0.5, with its
//! envelope. They address a key by its value, and never return it.

use std::net::SocketAddr;

use axum::{
    Json,
    extract::{ConnectInfo, State},
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::{
    audit::audit,
    error::{ApiError, describe},
    extract::Body,
    keys::{merged, text},
    state::AdminState,
};
use crate::auth::{
    credential::digest,
    keystore::{KeyError, KeySpec, StoredKey, SyncMode},
};

type Client = ConnectInfo<SocketAddr>;
type ApiResult = Result<Json<Envelope>, ApiError>;

/// The body of every response.
#[derive(Serialize, ToSchema)]
pub struct Envelope {
    success: bool,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// A key with its fields.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only its schema is used; the body is read in two steps")]
struct KeyEntry {
    /// The key, 8 to 512 visible ASCII characters.
    key: String,
    name: Option<String>,
    user_id: Option<String>,
    /// 0 active, 1 disabled, 2 quota exceeded, 3 expired; or the name.
    status: Option<i64>,
    /// RFC 3339; empty for none.
    starts_at: Option<String>,
    /// RFC 3339; empty for none.
    expires_at: Option<String>,
}

/// A key.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct KeyValue {
    key: String,
}

/// A page.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PageQuery {
    #[schema(value_type = i64, minimum = 0, maximum = 4294967295i64)]
    offset: u32,
    /// 20 by default, at most 100; a larger number means 100.
    #[schema(value_type = i64, minimum = 0, maximum = 4294967295i64)]
    limit: u32,
}

impl Default for PageQuery {
    fn default() -> Self {
        Self { offset: 0, limit: 20 }
    }
}

/// A list of keys.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SyncRequest {
    #[schema(value_type = Vec<KeyEntry>)]
    keys: Vec<Map<String, Value>>,
    mode: Option<Mode>,
}

/// What happens to keys that are not in the list.
#[derive(Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum Mode {
    /// They are deleted.
    Full,
    /// They stay.
    Incremental,
}

fn done(message: &str, data: Option<Value>) -> ApiResult {
    Ok(Json(Envelope { success: true, message: message.to_owned(), data, error: None }))
}

fn error(cause: KeyError) -> ApiError {
    let (status, code, message) = describe(cause);
    ApiError::new("/admin/keys/", status, code, message)
}

fn invalid(why: &str) -> ApiError {
    error(KeyError::Invalid(why.to_owned()))
}

fn shown(stored: &StoredKey) -> Value {
    json!({
        "key": stored.prefix,
        "id": stored.id,
        "name": stored.spec.name,
        "user_id": stored.spec.user_id,
        "status": stored.spec.status,
        "starts_at": text(stored.spec.starts_at.as_i64()),
        "expires_at": text(stored.spec.expires_at.as_i64()),
        "created_at": text(Some(stored.created_at)),
        "updated_at": text(Some(stored.updated_at)),
    })
}

/// The key of an entry, and its other fields.
fn split(mut entry: Map<String, Value>) -> Result<(String, Map<String, Value>), ApiError> {
    match entry.shift_remove("key") {
        Some(Value::String(key)) if !key.is_empty() => Ok((key, entry)),
        _ => Err(invalid("`key` is missing")),
    }
}

fn spec(fields: Map<String, Value>) -> Result<KeySpec, ApiError> {
    merged(&KeySpec::default(), fields).map_err(|e| invalid(&e))
}

async fn find(state: &AdminState, key: &str) -> Result<StoredKey, ApiError> {
    let found = state.carry.keys.by_digest(&digest(key)).await;
    found.map_err(|e| error(KeyError::Store(e)))?.ok_or_else(|| error(KeyError::Unknown))
}

/// Create a key.
#[utoipa::path(post, path = "/admin/keys/create", tag = "0.5", request_body = KeyEntry, responses(
    (status = 200, body = Envelope), (status = 400, body = Envelope),
    (status = 409, body = Envelope), (status = 413, body = Envelope),
))]
pub async fn create(
    State(state): State<AdminState>,
    ConnectInfo(from): Client,
    Body(entry): Body<Map<String, Value>>,
) -> ApiResult {
    let (key, fields) = split(entry)?;
    let made = state.carry.keys.create(Some(&key), spec(fields)?).await;
    let (_, stored) = made.map_err(error)?;
    audit(from, "key created", &stored.id);
    done("key created", Some(shown(&stored)))
}

/// Change a key. Fields that are not given stay.
#[utoipa::path(post, path = "/admin/keys/update", tag = "0.5", request_body = KeyEntry, responses(
    (status = 200, body = Envelope), (status = 400, body = Envelope),
    (status = 404, body = Envelope), (status = 413, body = Envelope),
))]
pub async fn update(
    State(state): State<AdminState>,
    ConnectInfo(from): Client,
    Body(entry): Body<Map<String, Value>>,
) -> ApiResult {
    let (key, mut fields) = split(entry)?;
    // `null` means the same as no field; an empty text clears a time.
    fields.retain(|_, value| !value.is_null());
    let id = find(&state, &key).await?.id;
    let changed = state.carry.keys.update(&id, |old| merged(&old, fields)).await;
    let stored = changed.map_err(error)?;
    audit(from, "key changed", &stored.id);
    done("key updated", Some(shown(&stored)))
}

/// Delete a key.
#[utoipa::path(post, path = "/admin/keys/delete", tag = "0.5", request_body = KeyValue, responses(
    (status = 200, body = Envelope), (status = 400, body = Envelope),
    (status = 404, body = Envelope), (status = 413, body = Envelope),
))]
pub async fn delete(
    State(state): State<AdminState>,
    ConnectInfo(from): Client,
    Body(KeyValue { key }): Body<KeyValue>,
) -> ApiResult {
    let id = find(&state, &key).await?.id;
    state.carry.keys.delete(&id).await.map_err(error)?;
    audit(from, "key deleted", &id);
    done("key deleted", None)
}

/// Show a key.
#[utoipa::path(post, path = "/admin/keys/get", tag = "0.5", request_body = KeyValue, responses(
    (status = 200, body = Envelope), (status = 400, body = Envelope),
    (status = 404, body = Envelope), (status = 413, body = Envelope),
))]
pub async fn get(
    State(state): State<AdminState>,
    Body(KeyValue { key }): Body<KeyValue>,
) -> ApiResult {
    let stored = find(&state, &key).await?;
    done("key found", Some(shown(&stored)))
}

/// List keys, newest first.
#[utoipa::path(post, path = "/admin/keys/list", tag = "0.5", request_body = Option<PageQuery>, responses(
    (status = 200, body = Envelope), (status = 400, body = Envelope),
    (status = 413, body = Envelope),
))]
pub async fn list(State(state): State<AdminState>, Body(query): Body<PageQuery>) -> ApiResult {
    let limit = if query.limit == 0 { 20 } else { query.limit.min(100) };
    let found = state.carry.keys.list(query.offset.into(), limit.into(), None).await;
    let (keys, total) = found.map_err(error)?;
    let keys: Vec<_> = keys.iter().map(shown).collect();
    done("keys listed", Some(json!({"keys": keys, "total": total})))
}

/// Apply a list of keys, all or none of them.
///
/// `mode` is required: `full` deletes every key that is not in the list.
#[utoipa::path(post, path = "/admin/keys/sync", tag = "0.5", request_body = SyncRequest, responses(
    (status = 200, body = Envelope), (status = 400, body = Envelope),
    (status = 413, body = Envelope),
))]
pub async fn sync(
    State(state): State<AdminState>,
    ConnectInfo(from): Client,
    Body(SyncRequest { keys, mode }): Body<SyncRequest>,
) -> ApiResult {
    let mode = match mode {
        Some(Mode::Full) => SyncMode::Full,
        Some(Mode::Incremental) => SyncMode::Incremental,
        None => return Err(invalid("`mode` is missing: write `full` or `incremental`")),
    };
    let mut list = Vec::with_capacity(keys.len());
    for entry in keys {
        let (key, fields) = split(entry)?;
        list.push((key, move |old: KeySpec| merged(&old, fields)));
    }
    let synced = state.carry.keys.sync(list, mode).await.map_err(error)?;
    let counts = format!(
        "{} created, {} updated, {} deleted",
        synced.created, synced.updated, synced.deleted
    );
    audit(from, "keys synced", &counts);
    let data = json!({
        "created": synced.created,
        "updated": synced.updated,
        "deleted": synced.deleted,
    });
    done("keys synced", Some(data))
}
