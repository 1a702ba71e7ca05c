//! The paths of the simulated server.
//!
//! Two are its own: `GET /sim/stats` returns its counters, `POST /sim/behaviour` changes its
//! behaviour (members as in [`Behaviour`]; absent members stay).

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};

use super::{
    behaviour::Behaviour,
    call::InferenceCall,
    conn::{ClientGone, Conn, ConnectionAction, JSON},
    generation::unix_seconds,
    language::{Endpoint, Language},
    metrics, retrieval,
    server_state::{ActiveBehaviour, ServerState},
    stats::{CountGuard, ReceivedRequest, add},
};

/// Serves one connection.
pub async fn serve(mut conn: Conn, shared: Arc<ServerState>) {
    loop {
        let idle = Duration::from_millis(shared.setting().behaviour.keep_alive_ms);
        let Some(seen) = conn.request(idle).await else {
            return;
        };
        match route(&mut conn, &shared, seen).await {
            Ok(ConnectionAction::Keep) => {}
            Ok(ConnectionAction::Close) | Err(ClientGone) => return,
            Ok(ConnectionAction::Reset) => return conn.reset(),
        }
    }
}

async fn route(
    conn: &mut Conn,
    shared: &Arc<ServerState>,
    seen: ReceivedRequest,
) -> Result<ConnectionAction, ClientGone> {
    let setting = shared.setting();
    let behaviour = &setting.behaviour;
    let (method, target) = seen.line.split_once(' ').unwrap_or_default();
    let path = target.split('?').next().unwrap_or_default();
    if path.starts_with("/v1") && !authorized(&seen, behaviour) {
        conn.answer(401, "", JSON, br#"{"error":"Unauthorized"}"#).await?;
        return Ok(ConnectionAction::Keep);
    }
    let speaks = |language| behaviour.languages.contains(&language);
    if let Some(endpoint) = Endpoint::at(path).filter(|endpoint| speaks(endpoint.language())) {
        if method == "POST" {
            return inference(conn, shared, &setting, endpoint, seen).await;
        }
        conn.answer(405, "allow: POST\r\n", JSON, br#"{"detail":"Method Not Allowed"}"#).await?;
        return Ok(ConnectionAction::Keep);
    }
    if let Some(rest) = path.strip_prefix("/v1/responses/")
        && speaks(Language::Responses)
    {
        let (status, body) = retrieval::answer(&shared.responses, method, rest);
        conn.answer(status, "", JSON, body.to_string().as_bytes()).await?;
        return Ok(ConnectionAction::Keep);
    }
    match (method, path) {
        ("GET", "/v1/models") => {
            conn.answer(200, "", JSON, models(behaviour).to_string().as_bytes()).await?
        }
        (_, "/v1/models") => {
            conn.answer(405, "allow: GET\r\n", JSON, br#"{"detail":"Method Not Allowed"}"#).await?;
        }
        (_, "/health") => {
            add(&shared.stats.probes, 1);
            conn.answer(behaviour.health, "", "", b"").await?;
        }
        (_, "/metrics") => {
            add(&shared.stats.readings, 1);
            let kind = "text/plain; version=1.0.0; charset=utf-8";
            let text = metrics::text(&shared.stats, behaviour);
            conn.answer(behaviour.metrics, "", kind, text.as_bytes()).await?;
        }
        ("GET", "/sim/stats") => {
            conn.answer(200, "", JSON, shared.stats.json().to_string().as_bytes()).await?
        }
        ("POST", "/sim/behaviour") => match changed(behaviour, &seen.body) {
            Ok(next) => {
                shared.set(next);
                conn.answer(200, "", JSON, b"{}").await?;
            }
            Err(why) => conn.answer(400, "", "text/plain", why.as_bytes()).await?,
        },
        _ => conn.answer(404, "", JSON, br#"{"detail":"Not Found"}"#).await?,
    }
    Ok(ConnectionAction::Keep)
}

fn authorized(seen: &ReceivedRequest, behaviour: &Behaviour) -> bool {
    behaviour.api_key.is_empty()
        || seen
            .header("authorization")
            .is_some_and(|v| v == format!("Bearer {}", behaviour.api_key))
}

async fn inference(
    conn: &mut Conn,
    shared: &ServerState,
    setting: &ActiveBehaviour,
    endpoint: Endpoint,
    seen: ReceivedRequest,
) -> Result<ConnectionAction, ClientGone> {
    let stats = &shared.stats;
    let _open = CountGuard::new(&stats.open, 1);
    let seen = Arc::new(seen);
    let body = serde_json::from_slice::<Value>(&seen.body);
    let named = body.as_ref().ok().and_then(|body| body["model"].as_str());
    let model = named.or(setting.behaviour.models.first().map(String::as_str)).unwrap_or_default();
    let number = stats.note(Arc::clone(&seen), model);
    let call = InferenceCall {
        endpoint,
        received: &seen,
        model: model.to_owned(),
        fail: setting.fail(number, model, &seen.body),
        setting,
        shared,
    };
    let result = call.answer(conn, body).await;
    if result.is_err() {
        add(&stats.aborted, 1);
    }
    result
}

fn models(behaviour: &Behaviour) -> Value {
    let length = match behaviour.context_length {
        0 => 32768,
        length => length,
    };
    let data: Vec<Value> = behaviour
        .models
        .iter()
        .map(|id| {
            json!({"id": id, "object": "model", "created": unix_seconds(), "owned_by": "vllm", "root": id,
                   "parent": null, "max_model_len": length, "permission": []})
        })
        .collect();
    json!({"object": "list", "data": data})
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
