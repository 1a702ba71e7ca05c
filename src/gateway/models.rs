//! The models that clients can ask for: what all healthy backends serve and what the configuration
//! names, as far as the caller may use it. A model that is switched off is not listed.

use std::{collections::HashSet, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::future::join_all;
use http::Method;
use pingora_proxy::Session;

use super::{auth, ctx::Ctx};
use crate::{balance::Endpoint, base::Rejection, dialect::Model, store};

/// How long one backend may take to list its models.
const PATIENCE: Duration = Duration::from_secs(3);

/// The list.
///
/// # Errors
/// If the request asks for something that is no part of it.
pub async fn list(session: &Session, ctx: &Ctx) -> Result<Bytes, Rejection> {
    let query = session.req_header().uri.query();
    ctx.request.language().models(&all(session, ctx).await, query)
}

/// One entry of the list; `None` if the caller would not find it there.
pub async fn one(session: &Session, ctx: &Ctx, name: &str) -> Option<Bytes> {
    let found = all(session, ctx).await.into_iter().find(|model| model.name == name);
    found.map(|model| ctx.request.language().model(&model))
}

/// The entries. A model of several backends stands once, as the first one lists it.
async fn all(session: &Session, ctx: &Ctx) -> Vec<Model> {
    let healthy: Vec<_> = ctx
        .snapshot
        .health()
        .into_iter()
        .filter(|(e, up)| *up && !e.draining())
        .map(|(e, _)| e)
        .collect();
    let lists = join_all(healthy.iter().map(|e| ask(&ctx.carry.client, e))).await;
    let mut seen = HashSet::new();
    let mut models = Vec::new();
    for (endpoint, list) in healthy.iter().zip(lists) {
        for model in list {
            let patterns = &endpoint.plan.models;
            let reachable = patterns.is_empty() || patterns.iter().any(|p| p.matches(&model.name));
            let listed = reachable && ctx.snapshot.router.lists(&model.name);
            if listed && seen.insert(model.name.clone()) {
                models.push(model);
            }
        }
    }
    for name in ctx.snapshot.router.models() {
        if seen.insert(name.clone()) {
            let created = jiff::Timestamp::now().as_second();
            models.push(Model { name: name.clone(), created, entry: None });
        }
    }
    let names: Vec<_> = models.iter().map(|model| model.name.clone()).collect();
    let refused = auth::refused(session, ctx, &names).await;
    models.retain(|model| !refused.contains(&model.name));
    models
}

async fn ask(client: &reqwest::Client, endpoint: &Arc<Endpoint>) -> Vec<Model> {
    if !endpoint.plan.base.lists_models {
        return Vec::new();
    }
    let language = endpoint.plan.languages.first();
    let request = endpoint.api_request(client, Method::GET, language.models_path());
    let own = language.own_fields().iter();
    let request = own.fold(request, |request, (name, value)| request.header(name, value));
    let request = request.timeout(PATIENCE);
    let list = async {
        let answer = request.send().await?.error_for_status()?;
        answer.bytes().await
    };
    match list.await {
        Ok(bytes) => language.read_models(&bytes),
        Err(e) => {
            let cause = store::http::cause(e);
            log::warn!("backend {} does not list its models: {cause}", endpoint.name);
            Vec::new()
        }
    }
}
