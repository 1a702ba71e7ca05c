//! `on_usage`: before the usage record is written.

use std::sync::Arc;

use pingora_proxy::Session;
use serde_json::{Map, Value};

use super::{
    described,
    run::{note, subject_of},
    words::RequestWords,
};
use crate::{
    base::{Stage, TokenCounts},
    gateway::ctx::Ctx,
    hooks::{Global, Hook, Input, Verdict},
    usage::{Draft, Metered},
};

/// Runs the scripts on a record.
pub async fn run_all(session: &Session, ctx: &mut Ctx, draft: &mut Draft) {
    let snapshot = Arc::clone(&ctx.snapshot);
    for hook in snapshot.hooks.at(Stage::Usage) {
        if !hook.applies(&subject_of(draft, ctx)) {
            continue;
        }
        let globals = view(hook, session, ctx, draft);
        let began = std::time::Instant::now();
        let returned = hook.run(globals).await;
        let took = began.elapsed();
        let outcome = returned.and_then(|returned| {
            let Some(value) = returned else { return Ok(Vec::new()) };
            let verdict = Verdict::read(Stage::Usage, value).map_err(|why| hook.unusable(why.0))?;
            Ok(change(draft, verdict.record))
        });
        match outcome {
            Ok(changed) => {
                let word = if changed.is_empty() { "nothing" } else { "changed" };
                hook.count(word);
                note(ctx, hook, took, word, changed);
            }
            // The record is written in any case: it is what is billed by.
            Err(failure) => note(ctx, hook, took, "failed", vec![failure.why]),
        }
    }
}

/// Takes what a script returned into the record. What the gateway has counted stays beside it. A field that
/// is as the script was shown it says nothing, so that a script may return the whole of what it got.
fn change(draft: &mut Draft, mut fields: Map<String, Value>) -> Vec<String> {
    let mut changed = Vec::new();
    let before = (draft.counts, draft.cost);
    let mut shown = record(draft);
    shown.extend(usage(draft));
    for inner in ["usage", "custom"] {
        match fields.remove(inner) {
            Some(Value::Object(inner)) => fields.extend(inner),
            Some(other) => drop(fields.insert(inner.to_owned(), other)),
            None => {}
        }
    }
    for (name, value) in fields {
        if shown.get(&name).is_some_and(|old| same(old, &value)) {
            continue;
        }
        let count = value.as_f64().filter(|n| (0.0..9e15).contains(n)).map(|n| n.round() as u64);
        match (name.as_str(), count) {
            ("cost", _) => {
                let cost = value.as_f64().filter(|cost| cost.is_finite() && *cost >= 0.0);
                if cost.is_some() && cost != draft.cost {
                    changed.push(name);
                    draft.cost = cost;
                }
            }
            (word, Some(count)) if is_count(word) => {
                if set_count(&mut draft.counts, word, count) {
                    changed.push(name);
                }
            }
            // Not a number in the place of a count; ids are the gateway's.
            (word, None) if is_count(word) => {}
            ("record_id" | "request_id" | "sequence" | "process", _) => {}
            _ => {
                if draft.custom.get(&name) != Some(&value) {
                    changed.push(format!("custom.{name}"));
                    draft.custom.insert(name, value);
                }
            }
        }
    }
    if (draft.counts, draft.cost) != before {
        draft.metered.get_or_insert(Metered::new(&before.0, before.1));
    }
    changed
}

/// Lua has one kind of numbers for what JSON writes as 5 and 5.0.
fn same(old: &Value, new: &Value) -> bool {
    old == new || old.as_f64().is_some_and(|number| new.as_f64() == Some(number))
}

/// The parts of the counts that a record may lack.
fn parts(counts: &mut TokenCounts) -> [(&'static str, &mut Option<u64>); 5] {
    [
        ("cached_tokens", &mut counts.cached),
        ("cache_write_tokens", &mut counts.cache_write),
        ("reasoning_tokens", &mut counts.reasoning),
        ("audio_prompt_tokens", &mut counts.audio_prompt),
        ("audio_completion_tokens", &mut counts.audio_completion),
    ]
}

fn is_count(word: &str) -> bool {
    let whole = ["prompt_tokens", "completion_tokens", "total_tokens"];
    whole.contains(&word)
        || parts(&mut TokenCounts::default()).iter().any(|(name, _)| *name == word)
}

/// `false`: it was that already.
fn set_count(counts: &mut TokenCounts, word: &str, count: u64) -> bool {
    let before = *counts;
    match word {
        "prompt_tokens" => counts.prompt = count,
        "completion_tokens" => counts.completion = count,
        "total_tokens" => counts.total = count,
        _ => {
            for (_, part) in parts(counts).into_iter().filter(|(name, _)| *name == word) {
                *part = Some(count);
            }
        }
    }
    *counts != before
}

fn view(hook: &Hook, session: &Session, ctx: &Ctx, draft: &Draft) -> Vec<Global> {
    let url = draft.backend_url.as_deref().unwrap_or_default();
    let words =
        RequestWords { backend_url: Some(url), ..described::request(session.req_header(), ctx) };
    let model = draft.model.as_deref();
    let words = RequestWords { model, principal: draft.who.as_deref(), ..words };
    let state = ctx.hooks.as_deref();
    let body = || {
        let kept = state?.kept.as_ref()?;
        serde_json::from_slice(kept).ok().map(Arc::new)
    };
    let mut globals = vec![words.request(hook, body)];
    words.others(hook, &mut globals);
    if hook.reads("usage", "") {
        globals.push(("usage", table(usage(draft))));
    }
    if hook.reads("record", "") {
        globals.push(("record", table(record(draft))));
    }
    if hook.reads("response", "") {
        let mut fields = vec![("status_code", Input::Integer(draft.status.into()))];
        if hook.reads("response", "body") {
            let report = state.and_then(|state| state.report.as_ref());
            let body = report.and_then(|report| {
                let report = crate::base::lock(report);
                serde_json::from_slice(report.body.as_ref()?).ok().map(Arc::new)
            });
            fields.push(("body", Input::json(body)));
        }
        globals.push(("response", Input::Fields(fields)));
    }
    // The words of version 0.5, beside those of the caller.
    for global in &mut globals {
        if let ("metadata", Input::Json(metadata)) = &*global
            && let Value::Object(map) = &**metadata
        {
            let mut map = map.clone();
            map.insert("backend_url".into(), url.into());
            map.insert("latency_ms".into(), (draft.latency.as_millis() as u64).into());
            map.insert("is_stream".into(), draft.stream.into());
            *global = ("metadata", Input::Json(Arc::new(Value::Object(map))));
        }
    }
    globals
}

/// The counts.
fn usage(draft: &Draft) -> Map<String, Value> {
    let mut counts = draft.counts;
    let mut fields = Map::new();
    fields.insert("prompt_tokens".to_owned(), counts.prompt.into());
    fields.insert("completion_tokens".to_owned(), counts.completion.into());
    fields.insert("total_tokens".to_owned(), counts.total.into());
    for (name, count) in parts(&mut counts) {
        if let Some(count) = *count {
            fields.insert(name.to_owned(), count.into());
        }
    }
    if let Some(cost) = draft.cost {
        fields.insert("cost".to_owned(), cost.into());
    }
    fields.insert("source".to_owned(), draft.source.word().into());
    fields
}

/// What the record says beside the counts.
pub fn record(draft: &Draft) -> Map<String, Value> {
    let mut fields = Map::new();
    let mut put = |name: &str, value: Value| drop(fields.insert(name.to_owned(), value));
    put("request_id", draft.request_id.as_str().into());
    put("model", draft.model.as_deref().unwrap_or_default().into());
    put("backend_url", draft.backend_url.as_deref().unwrap_or_default().into());
    put("endpoint", draft.path.into());
    put("status_code", draft.status.into());
    put("outcome", draft.outcome.word().into());
    put("is_stream", draft.stream.into());
    put("latency_ms", (draft.latency.as_millis() as u64).into());
    put("tries", draft.tries.into());
    put("usage", usage(draft).into());
    if let Some(model) = draft.response_model.as_deref() {
        put("response_model", model.into());
    }
    if let Some(ttft) = draft.ttft {
        put("ttft_ms", (ttft.as_millis() as u64).into());
    }
    if let Some(queued) = draft.queued {
        put("queue_ms", (queued.as_millis() as u64).into());
    }
    if !draft.custom.is_empty() {
        put("custom", draft.custom.clone().into());
    }
    fields
}

/// As a script gets it.
pub fn table(fields: Map<String, Value>) -> Input {
    Input::Json(Arc::new(fields.into()))
}
