//! `POST /admin/keys/{create,update,delete,get,list,sync}`: the endpoints of LLMProxy 0.5, with its
//! envelope. They name a key by the key itself; it is never told back.

use std::net::SocketAddr;

use axum::{
    Json,
    extract::{ConnectInfo, State},
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::{
    Parts,
    answer::{Body, Refusal, audit, describe},
    keys::{merged, text},
};
use crate::auth::{
    credential::digest,
    keystore::{KeyError, KeySpec, StoredKey, SyncMode},
};

type From = ConnectInfo<SocketAddr>;
type Answer = Result<Json<Envelope>, Refusal>;

/// What every endpoint answers.
#[derive(Serialize, ToSchema)]
pub struct Envelope {
    success: bool,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// A key and what is said of it.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only its schema is used; the body is read in two steps")]
struct Entry {
    /// The key, 8 to 512 visible ASCII characters.
    key: String,
    name: Option<String>,
    user_id: Option<String>,
    /// 0 active, 1 disabled, 2 quota exceeded, 3 expired; or the word.
    status: Option<i64>,
    /// RFC 3339; empty for none.
    starts_at: Option<String>,
    /// RFC 3339; empty for none.
    expires_at: Option<String>,
}

/// A key.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Named {
    key: String,
}

/// A page.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Chosen {
    #[schema(value_type = i64, minimum = 0, maximum = 4294967295i64)]
    offset: u32,
    /// 20 without this; more than 100 is as much as 100.
    #[schema(value_type = i64, minimum = 0, maximum = 4294967295i64)]
    limit: u32,
}

impl Default for Chosen {
    fn default() -> Self {
        Self { offset: 0, limit: 20 }
    }
}

/// A list of keys.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Sync {
    #[schema(value_type = Vec<Entry>)]
    keys: Vec<Map<String, Value>>,
    mode: Option<Mode>,
}

/// What becomes of keys that are not in the list.
#[derive(Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum Mode {
    /// They are deleted.
    Full,
    /// They stay.
    Incremental,
}

fn done(message: &str, data: Option<Value>) -> Answer {
    Ok(Json(Envelope { success: true, message: message.to_owned(), data, error: None }))
}

fn refuse(error: KeyError) -> Refusal {
    let (status, code, message) = describe(error);
    Refusal::new("/admin/keys/", status, code, message)
}

fn invalid(why: &str) -> Refusal {
    refuse(KeyError::Invalid(why.to_owned()))
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

/// The key of an entry, and the rest of it.
fn split(mut entry: Map<String, Value>) -> Result<(String, Map<String, Value>), Refusal> {
    match entry.shift_remove("key") {
        Some(Value::String(key)) if !key.is_empty() => Ok((key, entry)),
        _ => Err(invalid("`key` is missing")),
    }
}

fn spec(fields: Map<String, Value>) -> Result<KeySpec, Refusal> {
    merged(&KeySpec::default(), fields).map_err(|e| invalid(&e))
}

async fn find(parts: &Parts, key: &str) -> Result<StoredKey, Refusal> {
    let found = parts.carry.keys.by_digest(&digest(key)).await;
    found.map_err(|e| refuse(KeyError::Store(e)))?.ok_or_else(|| refuse(KeyError::Unknown))
}

/// Adds a key.
#[utoipa::path(post, path = "/admin/keys/create", tag = "0.5", request_body = Entry, responses(
    (status = 200, body = Envelope), (status = 400, body = Envelope),
    (status = 409, body = Envelope), (status = 413, body = Envelope),
))]
pub async fn create(
    State(parts): State<Parts>,
    ConnectInfo(from): From,
    Body(entry): Body<Map<String, Value>>,
) -> Answer {
    let (key, fields) = split(entry)?;
    let made = parts.carry.keys.create(Some(&key), spec(fields)?).await;
    let (_, stored) = made.map_err(refuse)?;
    audit(from, "key created", &stored.id);
    done("key created", Some(shown(&stored)))
}

/// Changes what is said of a key; what is not given stays.
#[utoipa::path(post, path = "/admin/keys/update", tag = "0.5", request_body = Entry, responses(
    (status = 200, body = Envelope), (status = 400, body = Envelope),
    (status = 404, body = Envelope), (status = 413, body = Envelope),
))]
pub async fn update(
    State(parts): State<Parts>,
    ConnectInfo(from): From,
    Body(entry): Body<Map<String, Value>>,
) -> Answer {
    let (key, mut fields) = split(entry)?;
    // `null` is a field that was not given; an empty text clears a time.
    fields.retain(|_, value| !value.is_null());
    let id = find(&parts, &key).await?.id;
    let changed = parts.carry.keys.update(&id, |old| merged(&old, fields)).await;
    let stored = changed.map_err(refuse)?;
    audit(from, "key changed", &stored.id);
    done("key updated", Some(shown(&stored)))
}

/// Removes a key.
#[utoipa::path(post, path = "/admin/keys/delete", tag = "0.5", request_body = Named, responses(
    (status = 200, body = Envelope), (status = 400, body = Envelope),
    (status = 404, body = Envelope), (status = 413, body = Envelope),
))]
pub async fn delete(
    State(parts): State<Parts>,
    ConnectInfo(from): From,
    Body(Named { key }): Body<Named>,
) -> Answer {
    let id = find(&parts, &key).await?.id;
    parts.carry.keys.delete(&id).await.map_err(refuse)?;
    audit(from, "key deleted", &id);
    done("key deleted", None)
}

/// What is said of a key.
#[utoipa::path(post, path = "/admin/keys/get", tag = "0.5", request_body = Named, responses(
    (status = 200, body = Envelope), (status = 400, body = Envelope),
    (status = 404, body = Envelope), (status = 413, body = Envelope),
))]
pub async fn get(State(parts): State<Parts>, Body(Named { key }): Body<Named>) -> Answer {
    let stored = find(&parts, &key).await?;
    done("key found", Some(shown(&stored)))
}

/// The keys, from the newest on.
#[utoipa::path(post, path = "/admin/keys/list", tag = "0.5", request_body = Option<Chosen>, responses(
    (status = 200, body = Envelope), (status = 400, body = Envelope),
    (status = 413, body = Envelope),
))]
pub async fn list(State(parts): State<Parts>, Body(chosen): Body<Chosen>) -> Answer {
    let limit = if chosen.limit == 0 { 20 } else { chosen.limit.min(100) };
    let found = parts.carry.keys.list(chosen.offset.into(), limit.into(), None).await;
    let (keys, total) = found.map_err(refuse)?;
    let keys: Vec<_> = keys.iter().map(shown).collect();
    done("keys listed", Some(json!({"keys": keys, "total": total})))
}

/// Takes over a list of keys, all or nothing. `mode` must be said: `full` deletes every key that is
/// not in the list.
#[utoipa::path(post, path = "/admin/keys/sync", tag = "0.5", request_body = Sync, responses(
    (status = 200, body = Envelope), (status = 400, body = Envelope),
    (status = 413, body = Envelope),
))]
pub async fn sync(
    State(parts): State<Parts>,
    ConnectInfo(from): From,
    Body(Sync { keys, mode }): Body<Sync>,
) -> Answer {
    let mode = match mode {
        Some(Mode::Full) => SyncMode::Full,
        Some(Mode::Incremental) => SyncMode::Incremental,
        None => return Err(invalid("`mode` is missing: say `full` or `incremental`")),
    };
    let mut list = Vec::with_capacity(keys.len());
    for entry in keys {
        let (key, fields) = split(entry)?;
        list.push((key, move |old: KeySpec| merged(&old, fields)));
    }
    let synced = parts.carry.keys.sync(list, mode).await.map_err(refuse)?;
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
