//! `GET /v1/models`, and one of them by its name: what all healthy backends serve, and what the configuration names, as far as
//! the caller may use it. A model that is switched off is not told, whoever has it.

use std::{collections::HashSet, sync::Arc, time::Duration};

use futures::future::join_all;
use http::Method;
use pingora_proxy::Session;
use serde_json::{Value, json};

use super::{ctx::Ctx, policy};
use crate::{balance::Endpoint, store};

/// How long one backend may take to tell its models.
const PATIENCE: Duration = Duration::from_secs(3);

/// The list, in OpenAI's form.
pub async fn list(session: &Session, ctx: &Ctx) -> Vec<u8> {
    json!({"object": "list", "data": all(session, ctx).await}).to_string().into_bytes()
}

/// One entry of the list; `None` if the caller would not find it there.
pub async fn one(session: &Session, ctx: &Ctx, name: &str) -> Option<Vec<u8>> {
    let found = all(session, ctx).await.into_iter().find(|model| model["id"] == name);
    found.map(|model| model.to_string().into_bytes())
}

/// The entries. A model of several backends stands once, as the first told it.
async fn all(session: &Session, ctx: &Ctx) -> Vec<Value> {
    let healthy: Vec<_> = ctx
        .snapshot
        .health()
        .into_iter()
        .filter(|(e, up)| *up && !e.draining())
        .map(|(e, _)| e)
        .collect();
    let told = join_all(healthy.iter().map(|e| ask(&ctx.carry.client, e))).await;
    let mut seen = HashSet::new();
    let mut data = Vec::new();
    for (endpoint, models) in healthy.iter().zip(told) {
        for model in models {
            let Some(id) = model["id"].as_str().map(str::to_owned) else {
                continue;
            };
            let patterns = &endpoint.plan.models;
            let reachable = patterns.is_empty() || patterns.iter().any(|p| p.matches(&id));
            if reachable && ctx.snapshot.router.lists(&id) && seen.insert(id) {
                data.push(model);
            }
        }
    }
    for name in ctx.snapshot.router.models() {
        if seen.insert(name.clone()) {
            let created = jiff::Timestamp::now().as_second();
            data.push(
                json!({"id": name, "object": "model", "created": created, "owned_by": "llmproxy"}),
            );
        }
    }
    let names: Vec<_> = data.iter().filter_map(|m| m["id"].as_str().map(str::to_owned)).collect();
    let refused = policy::refused(session, ctx, &names).await;
    data.retain(|model| model["id"].as_str().is_none_or(|name| !refused.contains(name)));
    data
}

async fn ask(client: &reqwest::Client, endpoint: &Arc<Endpoint>) -> Vec<Value> {
    if !endpoint.plan.base.lists_models {
        return Vec::new();
    }
    let request = endpoint.api_request(client, Method::GET, "/models").timeout(PATIENCE);
    let told = async {
        let answer = request.send().await?.error_for_status()?;
        answer.bytes().await
    };
    match told.await {
        Ok(bytes) => match serde_json::from_slice::<Value>(&bytes) {
            Ok(Value::Object(mut list)) => match list.remove("data") {
                Some(Value::Array(models)) => models,
                _ => Vec::new(),
            },
            _ => Vec::new(),
        },
        Err(e) => {
            log::warn!(
                "backend {} does not tell its models: {}",
                endpoint.name,
                store::http::cause(e)
            );
            Vec::new()
        }
    }
}
