//! The paths of the simulated server.
//!
//! Two are its own: `GET /sim/stats` tells what it has seen, `POST /sim/behaviour` changes how it
//! behaves (members as in [`Behaviour`]; those not given stay).

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde_json::{Value, json};

use crate::base::lock;

use super::{
    Behaviour, Seen, Shared, chat,
    conn::{Conn, Gone},
    text,
};

const JSON: &str = "application/json";

/// What becomes of a connection after an answer.
pub enum After {
    /// Another request may come.
    Keep,
    /// It is closed.
    Close,
    /// It is reset.
    Reset,
}

/// Serves one connection.
pub async fn serve(mut conn: Conn, shared: Arc<Shared>) {
    loop {
        let idle = Duration::from_millis(shared.behaviour().keep_alive_ms);
        let Some(seen) = conn.request(idle).await else {
            return;
        };
        match route(&mut conn, &shared, seen).await {
            Ok(After::Keep) => {}
            Ok(After::Close) | Err(Gone) => return,
            Ok(After::Reset) => return conn.reset(),
        }
    }
}

async fn route(conn: &mut Conn, shared: &Arc<Shared>, seen: Seen) -> Result<After, Gone> {
    let behaviour = shared.behaviour();
    let (method, target) = seen.line.split_once(' ').unwrap_or_default();
    let path = target.split('?').next().unwrap_or_default();
    if path.starts_with("/v1") && !authorized(&seen, &behaviour) {
        conn.answer(401, "", JSON, br#"{"error":"Unauthorized"}"#).await?;
        return Ok(After::Keep);
    }
    match (method, path) {
        ("POST", "/v1/chat/completions" | "/v1/completions" | "/v1/embeddings") => {
            let path = path.to_owned();
            return inference(conn, shared, &behaviour, &path, seen).await;
        }
        (_, "/v1/chat/completions" | "/v1/completions" | "/v1/embeddings") => {
            conn.answer(405, "allow: POST\r\n", JSON, br#"{"detail":"Method Not Allowed"}"#)
                .await?;
        }
        ("GET", "/v1/models") => {
            conn.answer(200, "", JSON, models(&behaviour).to_string().as_bytes()).await?
        }
        (_, "/v1/models") => {
            conn.answer(405, "allow: GET\r\n", JSON, br#"{"detail":"Method Not Allowed"}"#).await?;
        }
        (_, "/health") => {
            shared.stats.probes.fetch_add(1, Ordering::Relaxed);
            conn.answer(behaviour.health, "", "", b"").await?;
        }
        (_, "/metrics") => {
            let kind = "text/plain; version=1.0.0; charset=utf-8";
            conn.answer(200, "", kind, metrics(shared, &behaviour).as_bytes()).await?;
        }
        ("GET", "/sim/stats") => {
            conn.answer(200, "", JSON, stats(shared).to_string().as_bytes()).await?
        }
        ("POST", "/sim/behaviour") => match changed(&behaviour, &seen.body) {
            Ok(next) => {
                shared.set(next);
                conn.answer(200, "", JSON, b"{}").await?;
            }
            Err(why) => conn.answer(400, "", "text/plain", why.as_bytes()).await?,
        },
        _ => conn.answer(404, "", JSON, br#"{"detail":"Not Found"}"#).await?,
    }
    Ok(After::Keep)
}

fn authorized(seen: &Seen, behaviour: &Behaviour) -> bool {
    behaviour.api_key.is_empty()
        || seen
            .header("authorization")
            .is_some_and(|v| v == format!("Bearer {}", behaviour.api_key))
}

async fn inference(
    conn: &mut Conn,
    shared: &Arc<Shared>,
    behaviour: &Behaviour,
    path: &str,
    seen: Seen,
) -> Result<After, Gone> {
    let stats = &shared.stats;
    let number = stats.requests.fetch_add(1, Ordering::Relaxed) + 1;
    stats.running.fetch_add(1, Ordering::Relaxed);
    *lock(&stats.last) = Some(seen.clone());
    let fails = number.is_multiple_of(behaviour.fail_every.max(1));
    let result = chat::answer(conn, behaviour, path, &seen, fails, shared).await;
    stats.running.fetch_sub(1, Ordering::Relaxed);
    if result.is_err() {
        stats.aborted.fetch_add(1, Ordering::Relaxed);
    }
    result
}

fn models(behaviour: &Behaviour) -> Value {
    let data: Vec<Value> = behaviour
        .models
        .iter()
        .map(|id| {
            json!({"id": id, "object": "model", "created": now(), "owned_by": "vllm", "root": id,
                   "parent": null, "max_model_len": 32768, "permission": []})
        })
        .collect();
    json!({"object": "list", "data": data})
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

fn metrics(shared: &Shared, behaviour: &Behaviour) -> String {
    let model = behaviour.models.first().map_or("", String::as_str);
    let stats = &shared.stats;
    let mut out = String::new();
    for (name, kind, value) in [
        ("vllm:num_requests_running", "gauge", &stats.running),
        ("vllm:prompt_tokens_total", "counter", &stats.prompt_tokens),
        ("vllm:generation_tokens_total", "counter", &stats.generated_tokens),
    ] {
        let value = value.load(Ordering::Relaxed);
        out.push_str(&format!(
            "# TYPE {name} {kind}\n{name}{{engine=\"0\",model_name=\"{model}\"}} {value}.0\n"
        ));
    }
    out.push_str(&format!(
        "# TYPE vllm:num_requests_waiting gauge\nvllm:num_requests_waiting{{engine=\"0\",model_name=\"{model}\"}} 0.0\n"
    ));
    out
}

fn stats(shared: &Shared) -> Value {
    let stats = &shared.stats;
    json!({
        "requests": stats.requests(),
        "aborted": stats.aborted(),
        "running": stats.running(),
        "connections": stats.connections(),
        "probes": stats.probes(),
        "last": stats.last(),
    })
}

fn changed(present: &Behaviour, body: &[u8]) -> Result<Behaviour, String> {
    let mut all = serde_json::to_value(present).map_err(|e| e.to_string())?;
    let change: serde_json::Map<String, Value> =
        serde_json::from_slice(body).map_err(|e| e.to_string())?;
    if let Some(members) = all.as_object_mut() {
        members.extend(change);
    }
    serde_json::from_value(all).map_err(|e| e.to_string())
}

/// Counts the tokens of an answer.
pub fn count(shared: &Shared, prompt_bytes: usize, generated: u64) {
    shared.stats.prompt_tokens.fetch_add(text::prompt_tokens(prompt_bytes), Ordering::Relaxed);
    shared.stats.generated_tokens.fetch_add(generated, Ordering::Relaxed);
}
