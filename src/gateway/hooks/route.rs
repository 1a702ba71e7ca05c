//! `on_route`: before the first backend is picked.

use std::{collections::BTreeSet, sync::Arc, time::Instant};

use pingora_proxy::Session;
use serde_json::Value;

use super::{
    described,
    request::{label, parsed},
    run::run,
};
use crate::{
    balance::{Candidate, Endpoint},
    base::Stage,
    config::plan::Strategy,
    gateway::{
        ctx::{Attempts, Ctx},
        stop::Stop,
    },
    hooks::{Global, Hook, Input, Unusable, Verdict},
    wire::prefix,
};

/// Backends that a script sees of each pool, at most.
const MOST: usize = 256;

/// Runs the scripts.
///
/// # Errors
/// If one refuses the request.
pub async fn run_all(session: &mut Session, ctx: &mut Ctx) -> Result<(), Stop> {
    if !ctx.snapshot.hooks.has(Stage::Route) {
        return Ok(());
    }
    run(session, ctx, Stage::Route, view, apply).await
}

/// A backend of the request's route, as a script sees it.
struct RouteCandidate {
    endpoint: Arc<Endpoint>,
    healthy: bool,
    tier: usize,
    candidate: Option<Candidate>,
}

fn backends(session: &Session, ctx: &mut Ctx) -> Vec<RouteCandidate> {
    let Attempts { policy, view, .. } = ctx.attempts(session);
    let now = Instant::now();
    let mut known = BTreeSet::new();
    let mut seen = Vec::new();
    for (tier, splits) in view.route.iter().flat_map(|route| route.tiers.iter().enumerate()) {
        for split in &splits.splits {
            let pool = &view.snapshot.pools[split.pool];
            let candidates = policy.candidates(&view, split, now, MOST);
            for (endpoint, healthy) in pool.members().take(MOST) {
                if !known.insert(endpoint.id) {
                    continue;
                }
                let candidate = candidates.iter().find(|c| c.backend == endpoint.name).cloned();
                seen.push(RouteCandidate {
                    endpoint: Arc::clone(endpoint),
                    healthy,
                    tier,
                    candidate,
                });
            }
        }
    }
    seen
}

impl RouteCandidate {
    fn healthy(&self) -> bool {
        let barred = self.candidate.as_ref().is_some_and(|candidate| candidate.barred.is_some());
        self.healthy && !self.endpoint.draining() && !barred
    }

    fn described(&self) -> Input {
        let endpoint = &*self.endpoint;
        let mut fields: Vec<Global> = vec![
            ("name", (&*endpoint.name).into()),
            ("url", (&*endpoint.plan.url).into()),
            ("healthy", Input::Bool(self.healthy())),
            ("weight", Input::Integer(endpoint.plan.weight.into())),
            ("active_connections", Input::from(endpoint.in_flight() as u64)),
            ("in_flight", Input::from(endpoint.in_flight() as u64)),
            ("tier", Input::from(self.tier as u64)),
            ("draining", Input::Bool(endpoint.draining())),
        ];
        if let Some(latency) = endpoint.latency_ms() {
            fields.push(("latency_ms", Input::Number(latency)));
        }
        if let Some(candidate) = &self.candidate {
            if let Some(score) = candidate.score.filter(|score| score.is_finite()) {
                fields.push(("score", Input::Number(score)));
            }
            if let Some(barred) = candidate.barred {
                fields.push(("barred", barred.into()));
            }
        }
        if let Some((reading, _)) = endpoint.load() {
            let mut load = vec![("waiting", Input::Number(reading.waiting))];
            for (name, value) in [("running", reading.running), ("kv_cache", reading.kv_cache)] {
                if let Some(value) = value {
                    load.push((name, Input::Number(value)));
                }
            }
            fields.push(("load", Input::Fields(load)));
        }
        Input::Fields(fields)
    }
}

fn view(hook: &Hook, session: &Session, ctx: &mut Ctx) -> Vec<Global> {
    let body = hook.reads("request", "body").then(|| parsed(ctx)).flatten();
    let (list, map) = (hook.reads("candidates", ""), hook.reads("backends", ""));
    let seen = if list || map { backends(session, ctx) } else { Vec::new() };
    let words = described::request(session.req_header(), ctx);
    let mut globals = vec![words.request(hook, || body)];
    words.others(hook, &mut globals);
    if list {
        globals.push((
            "candidates",
            Input::List(seen.iter().map(RouteCandidate::described).collect()),
        ));
    }
    if map {
        let named = |seen: &RouteCandidate| (seen.endpoint.name.to_string(), seen.described());
        globals.push(("backends", Input::Named(seen.iter().map(named).collect())));
    }
    globals
}

fn apply(session: &mut Session, ctx: &mut Ctx, verdict: Verdict) -> Result<Vec<String>, Unusable> {
    let mut changed = Vec::new();
    if let Some(model) = verdict.model {
        // Another model may have other backends.
        let route = ctx.snapshot.router.find(Some(&model));
        ctx.route = Some(route.map_err(|_| Unusable(format!("no backend serves `{model}`")))?);
        ctx.retry.begin(&ctx.snapshot, ctx.route.as_deref());
        changed.push(format!("model: {model}"));
        let choice = ctx.retry.choice_mut();
        (choice.model, choice.allowed) = (Some(model.into()), None);
    }
    if let Some(names) = &verdict.backends {
        let seen = backends(session, ctx);
        let mut ids = Vec::new();
        for name in names {
            let own = |seen: &&RouteCandidate| {
                *seen.endpoint.name == **name || seen.endpoint.plan.name == *name
            };
            let found = seen.iter().filter(own).map(|seen| seen.endpoint.id);
            let before = ids.len();
            ids.extend(found);
            if ids.len() == before {
                return Err(Unusable(format!("no backend `{name}` serves this model")));
            }
        }
        ctx.retry.choice_mut().allowed = Some(ids);
        changed.push(format!("backends: {}", names.join(", ")));
    }
    if let Some(name) = &verdict.strategy {
        let strategy: Strategy = serde_json::from_value(Value::from(name.as_str()))
            .map_err(|_| Unusable(format!("`{name}` is not a strategy")))?;
        ctx.retry.choice_mut().strategy = Some(strategy);
        changed.push(format!("strategy: {name}"));
    }
    if let Some(session) = &verdict.session {
        let session = prefix::words(&[b"script", session.as_bytes()]);
        ctx.retry.choice_mut().session = Some(session);
        changed.push("session".to_owned());
    }
    label(ctx, verdict.tags, verdict.metadata, &mut changed);
    Ok(changed)
}
