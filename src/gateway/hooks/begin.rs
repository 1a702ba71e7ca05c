//! What scripts and guards will do with the answer to a request, set up before a backend is asked.

use std::sync::{Arc, Mutex};

use pingora_proxy::Session;

use super::{
    answer::{AnswerFilters, Phase},
    described,
    run::{state, subject},
    state::{AnswerReport, GuardState},
};
use crate::{
    base::Stage,
    gateway::{ctx::Ctx, reply},
    hooks::Hook,
};

/// The scripts that see the answer to a request; `None` if there are none.
pub fn answer(session: &Session, ctx: &mut Ctx) -> Option<AnswerFilters> {
    let snapshot = Arc::clone(&ctx.snapshot);
    let hooks = &snapshot.hooks;
    let keeps = hooks.keeps_answer();
    let GuardState { selected, vault, beside } = std::mem::take(&mut state(ctx).guards);
    let language = ctx.request.language();
    let guard = snapshot.guards.answer(selected, language, vault);
    let scripts = hooks.has(Stage::Response) || hooks.has(Stage::StreamEvent) || keeps;
    if !scripts && guard.is_none() && beside.is_empty() {
        return None;
    }
    let subject = subject(ctx);
    let of = |stage| -> Vec<Arc<Hook>> {
        hooks.at(stage).iter().filter(|hook| hook.applies(&subject)).cloned().collect()
    };
    let (heads, events) = (of(Stage::Response), of(Stage::StreamEvent));
    if heads.is_empty() && events.is_empty() && !keeps && guard.is_none() && beside.is_empty() {
        return None;
    }
    let words = Arc::new(described::owned(session.req_header(), ctx));
    let report = Arc::new(Mutex::new(AnswerReport::default()));
    state(ctx).report = Some(Arc::clone(&report));
    Some(AnswerFilters {
        language,
        guard,
        beside,
        verdicts: Vec::new(),
        wording: reply::error_wording(ctx),
        metrics: ctx.carry.metrics.clone(),
        words,
        request: ctx.hooks.as_ref().and_then(|state| state.kept.clone()),
        heads,
        events,
        keeps,
        explains: ctx.carry.explains.capacity() > 0,
        arrived: ctx.request.arrived,
        report,
        good: false,
        phase: Phase::default(),
    })
}
