//! `rate_limit`: before the request is admitted by its limits.

use pingora_proxy::Session;

use super::{
    auth::{principal, set_limits},
    described,
    request::{label, parsed},
    run::{run, state},
};
use crate::{
    base::{Stage, limits::Scope},
    gateway::{ctx::Ctx, stop::Stop},
    hooks::{Hook, Input, Unusable, Verdict},
    limit::{ClaimState, Dim},
};

/// What a limit that does not apply has left.
const UNLIMITED: i64 = i64::MAX;

/// Runs the scripts. `standing` says how the request's limits stand; it is asked only if a script reads
/// it.
///
/// # Errors
/// If one refuses the request.
pub async fn run_all(
    session: &mut Session,
    ctx: &mut Ctx,
    standing: impl Fn(&Ctx) -> Vec<ClaimState>,
) -> Result<(), Stop> {
    let view = |hook: &Hook, session: &Session, ctx: &mut Ctx| {
        let body = hook.reads("request", "body").then(|| parsed(ctx)).flatten();
        let reads = |global| hook.reads(global, "");
        let states = match reads("limits") || reads("rate_limit_status") {
            true => standing(ctx),
            false => Vec::new(),
        };
        let words = described::request(session.req_header(), ctx);
        let mut globals = vec![words.request(hook, || body)];
        words.others(hook, &mut globals);
        if reads("limits") {
            globals.push(("limits", Input::List(states.iter().map(described).collect())));
        }
        if reads("rate_limit_status") {
            globals.push(("rate_limit_status", status(&states)));
        }
        if reads("current_time") {
            globals.push(("current_time", current_time(&jiff::Zoned::now())));
        }
        globals
    };
    run(session, ctx, Stage::RateLimit, view, apply).await
}

/// One limit and how it stands.
fn described(state: &ClaimState) -> Input {
    Input::Fields(vec![
        ("rule", Input::Text(state.rule())),
        ("scope", state.scope.word().into()),
        ("counts", state.dim.word().into()),
        ("limit", Input::Number(state.limit)),
        ("remaining", Input::from(state.left)),
        ("wanted", Input::from(state.wanted)),
        ("reset_seconds", Input::Number(state.reset.as_secs_f64())),
    ])
}

/// The words of version 0.5.
fn status(states: &[ClaimState]) -> Input {
    let least = |scope: Scope| {
        let requests = [Dim::RequestsPerSecond, Dim::RequestsPerMinute];
        let own = states.iter().filter(|s| s.scope == scope && requests.contains(&s.dim));
        own.map(|s| i64::try_from(s.left).unwrap_or(UNLIMITED)).min().unwrap_or(UNLIMITED)
    };
    let slots = states.iter().filter(|s| s.dim == Dim::Concurrent);
    let held = slots.map(|s| (s.limit as u64).saturating_sub(s.left)).max().unwrap_or(0);
    Input::Fields(vec![
        ("global_remaining", Input::Integer(least(Scope::Global))),
        ("key_remaining", Input::Integer(least(Scope::Key))),
        ("concurrent_count", Input::from(held)),
    ])
}

/// The time where the gateway runs (`TZ`); Sunday is day 0 of the week.
fn current_time(now: &jiff::Zoned) -> Input {
    let number = |n: i64| Input::Integer(n);
    Input::Fields(vec![
        ("year", number(now.year().into())),
        ("month", number(now.month().into())),
        ("day", number(now.day().into())),
        ("hour", number(now.hour().into())),
        ("minute", number(now.minute().into())),
        ("second", number(now.second().into())),
        ("weekday", number(now.weekday().to_sunday_zero_offset().into())),
        ("timestamp", number(now.timestamp().as_second())),
    ])
}

fn apply(_session: &mut Session, ctx: &mut Ctx, verdict: Verdict) -> Result<Vec<String>, Unusable> {
    let mut changed = Vec::new();
    if let Some(limits) = &verdict.limits {
        set_limits(ctx, limits)?;
        changed.push("limits".to_owned());
    }
    if let Some(tier) = verdict.tier {
        principal(ctx).tier = tier;
        changed.push("tier".to_owned());
    }
    if let Some(weight) = verdict.weight {
        state(ctx).weight = Some(weight);
        changed.push("weight".to_owned());
    }
    label(ctx, verdict.tags, verdict.metadata, &mut changed);
    Ok(changed)
}
