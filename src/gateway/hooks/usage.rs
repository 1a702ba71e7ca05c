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
    base::Stage,
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

/// Takes what a script returned into the record. What the gateway has counted stays beside it.
fn change(draft: &mut Draft, fields: Map<String, Value>) -> Vec<String> {
    let mut changed = Vec::new();
    let before = (draft.counts, draft.cost);
    for (name, value) in fields {
        let count = value.as_f64().filter(|n| (0.0..9e15).contains(n)).map(|n| n.round() as u64);
        let counts = &mut draft.counts;
        let place = match name.as_str() {
            "prompt_tokens" => Some(&mut counts.prompt),
            "completion_tokens" => Some(&mut counts.completion),
            "total_tokens" => Some(&mut counts.total),
            _ => None,
        };
        match (place, count, name.as_str()) {
            (Some(place), Some(count), _) => {
                if *place != count {
                    changed.push(name);
                }
                *place = count;
            }
            (None, _, "cost") => {
                let cost = value.as_f64().filter(|cost| cost.is_finite() && *cost >= 0.0);
                if cost.is_some() && cost != draft.cost {
                    changed.push(name);
                    draft.cost = cost;
                }
            }
            // Not a number in the place of a count; ids are the gateway's.
            (Some(_), None, _) | (None, _, "record_id" | "request_id" | "sequence" | "process") => {
            }
            (None, _, _) => {
                changed.push(format!("custom.{name}"));
                draft.custom.insert(name, value);
            }
        }
    }
    if (draft.counts, draft.cost) != before {
        draft.metered.get_or_insert(Metered::new(&before.0, before.1));
    }
    changed
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
        globals.push(("usage", usage(draft)));
    }
    if hook.reads("record", "") {
        globals.push(("record", record(draft)));
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

fn usage(draft: &Draft) -> Input {
    let counts = &draft.counts;
    let mut fields: Vec<Global> = vec![
        ("prompt_tokens", Input::from(counts.prompt)),
        ("completion_tokens", Input::from(counts.completion)),
        ("total_tokens", Input::from(counts.total)),
    ];
    for (name, count) in [
        ("cached_tokens", counts.cached),
        ("cache_write_tokens", counts.cache_write),
        ("reasoning_tokens", counts.reasoning),
        ("audio_prompt_tokens", counts.audio_prompt),
        ("audio_completion_tokens", counts.audio_completion),
    ] {
        if let Some(count) = count {
            fields.push((name, Input::from(count)));
        }
    }
    if let Some(cost) = draft.cost {
        fields.push(("cost", Input::Number(cost)));
    }
    fields.push(("source", draft.source.word().into()));
    Input::Fields(fields)
}

/// What the record says beside the counts.
pub fn record(draft: &Draft) -> Input {
    let mut fields: Vec<Global> = vec![
        ("request_id", draft.request_id.as_str().into()),
        ("model", draft.model.as_deref().unwrap_or_default().into()),
        ("backend_url", draft.backend_url.as_deref().unwrap_or_default().into()),
        ("endpoint", draft.path.into()),
        ("status_code", Input::Integer(draft.status.into())),
        ("outcome", draft.outcome.word().into()),
        ("is_stream", Input::Bool(draft.stream)),
        ("latency_ms", Input::from(draft.latency.as_millis() as u64)),
        ("tries", Input::Integer(draft.tries.into())),
        ("usage", usage(draft)),
    ];
    if let Some(model) = draft.response_model.as_deref() {
        fields.push(("response_model", model.into()));
    }
    if let Some(ttft) = draft.ttft {
        fields.push(("ttft_ms", Input::from(ttft.as_millis() as u64)));
    }
    if let Some(queued) = draft.queued {
        fields.push(("queue_ms", Input::from(queued.as_millis() as u64)));
    }
    if !draft.custom.is_empty() {
        fields.push(("custom", Input::Json(Arc::new(Value::Object(draft.custom.clone())))));
    }
    Input::Fields(fields)
}
