//! The tries of one request: at which backends, how many, after what pauses.
//!
//! Until a byte of content has gone to the client, another backend can be tried. Each backend is
//! tried once; when all have been, and the configuration names pauses, they are tried anew.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use pingora::http::ResponseHeader;
use pingora_proxy::Session;

use super::{affinity, body_in, cause::Cause, ctx::Ctx, story, tried::Tried, verdict::Verdict};
use crate::{
    balance::{
        Candidate, Endpoint, Evidence, NoBackend, PickRequest, PickedBackend, UnsettledFailure,
    },
    base::{Fault, FaultKind, Side},
    config::plan::{Backoff, PrefixPlan, Strategy},
    route::{Split, Tier},
};

/// The tries of one request.
#[derive(Default)]
pub struct Tries {
    /// How many have been begun.
    pub begun: u32,
    /// The model's name at the present backend; `None`: as the client says.
    pub model: Option<Arc<str>>,
    /// The last answer of a backend that was not passed on, because another try might do better.
    pub told: Option<Told>,
    /// When the present one was begun.
    pub since: Option<Instant>,
    /// Whether there is another one at the same time.
    pub beside: Beside,
    /// The backends that have failed it in this round.
    tried: Tried,
    /// Times that all backends had been tried.
    rounds: u32,
    /// Times that backends were waited for that are left alone.
    waits: u32,
    /// Tries that may follow after an answer, or after a connection has stood.
    left: u32,
    /// There is but one backend.
    sole: bool,
    /// And it is not tried twice.
    alone: bool,
    /// The tier of the present one.
    tier: usize,
    /// The pool that pays for retries: that of the first.
    paying: Option<usize>,
    /// Before the next one.
    pause: Option<Duration>,
    /// Why the next one is made.
    reason: Option<&'static str>,
    /// Failures of which it is not known yet whether backend or request is at fault.
    suspicions: Vec<UnsettledFailure>,
    /// A backend has refused it without being at fault.
    doubtful: bool,
    /// Who calls, hashed, once that was asked.
    caller: Option<u64>,
    /// How the conversation begins, once a pool has asked: the model there, and the hashes.
    beginnings: Option<(Option<Arc<str>>, PrefixPlan, Vec<u64>)>,
}

/// Whether there is another try at the same time as the present one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Beside {
    /// There is none.
    #[default]
    None,
    /// There is none yet, or no more.
    Possible,
    /// There is one.
    UnderWay,
}

/// An answer that was kept.
pub struct Told {
    /// Whose.
    pub endpoint: Arc<Endpoint>,
    /// Its head, as the client would have got it.
    pub head: Box<ResponseHeader>,
    /// Its body.
    pub body: Bytes,
}

/// The request is about to be sent to its first backend.
pub fn begin(ctx: &mut Ctx) {
    ctx.body.extras = affinity::extras(ctx);
    let retry = &ctx.snapshot.plan.routing.retry;
    let tries = &mut ctx.way.tries;
    tries.left = retry.max_retries;
    let sole = ctx.way.route.as_ref().is_some_and(|route| match route.tiers.as_slice() {
        [tier] => match tier.splits.as_slice() {
            [split] => ctx.snapshot.pools[split.pool].len() == 1,
            _ => false,
        },
        _ => false,
    });
    tries.sole = sole;
    tries.alone = sole && retry.again.is_none();
}

/// Tells the backend's state what came of the present try.
pub fn tell(ctx: &mut Ctx, verdict: Verdict) {
    if verdict == Verdict::Good {
        succeeded(ctx);
    }
    let spared = is_spared(ctx);
    let Some(lease) = ctx.way.lease() else { return };
    match verdict {
        Verdict::Good => lease.good(),
        // Another one that has failed it may not be at fault either.
        Verdict::Neutral => ctx.way.tries.doubtful = true,
        _ if spared => {}
        Verdict::Busy(pause) => lease.busy(pause),
        Verdict::Unreachable => lease.unreachable(),
        Verdict::Failed => {
            let suspicion = lease.failed();
            ctx.way.tries.suspicions.push(suspicion);
        }
    }
}

/// Whether the backend cannot be replaced. Such a one is asked all the same: what it says is better
/// than what we could.
fn is_spared(ctx: &Ctx) -> bool {
    ctx.way.tries.sole && !ctx.snapshot.plan.routing.circuit.lone
}

/// The request has succeeded: those that have failed it before are at fault.
pub fn succeeded(ctx: &mut Ctx) {
    for suspicion in std::mem::take(&mut ctx.way.tries.suspicions) {
        suspicion.settle(Evidence::SucceededElsewhere);
    }
}

/// The request has ended. If it has failed at one backend, that may be the backend or the request;
/// what has failed at several says nothing about them, as far as one caller is concerned.
pub fn ended(ctx: &mut Ctx) {
    let suspicions = std::mem::take(&mut ctx.way.tries.suspicions);
    let Some(first) = suspicions.first() else { return };
    let several = suspicions.iter().any(|other| !other.is_of_same(first));
    let several = several || ctx.way.tries.doubtful;
    let evidence = if several { Evidence::FailedEverywhere } else { Evidence::Inconclusive };
    suspicions.into_iter().for_each(|suspicion| suspicion.settle(evidence));
}

impl Tries {
    /// Whether another try may follow one that has been answered.
    pub fn may_follow(&self) -> bool {
        self.beside != Beside::None || self.left > 0 && !self.alone
    }
}

/// Whether another try can follow the present one, which fails for this cause.
pub fn can_follow(session: &mut Session, ctx: &Ctx, cause: Cause) -> bool {
    let retry = &ctx.snapshot.plan.routing.retry;
    let tries = &ctx.way.tries;
    let over = ctx.way.watch.as_ref().and_then(|w| w.fired());
    let open =
        !ctx.answer.begun && !matches!(over, Some(FaultKind::TotalTimeout | FaultKind::Shutdown));
    if tries.beside == Beside::UnderWay {
        // It has been made already.
        return open;
    }
    open && cause.is_tried_again(&retry.on)
        && (others(ctx, cause) || tries.left > 0 && worth_a_pause(cause, retry.again))
        // A connection that cannot be made costs nobody anything: there all others are tried.
        && (tries.left > 0 || cause.is_unsent())
        && body_in::replayable(session, ctx)
}

/// Whether the same backend may be tried again, after a pause.
fn worth_a_pause(cause: Cause, again: Option<Backoff>) -> bool {
    match (cause, again) {
        // It says itself that it is too early.
        (Cause::Busy(Some(asked)), Some(backoff)) => asked <= backoff.max,
        (_, again) => again.is_some(),
    }
}

/// Whether no other backend could take over the present try, were it to end now.
pub fn is_alone(ctx: &Ctx) -> bool {
    !ctx.way.tries.may_follow() || !others(ctx, Cause::Fault(FaultKind::Refusing))
}

/// Whether there is a backend that has not been tried yet, after the present one for this cause.
fn others(ctx: &Ctx, cause: Cause) -> bool {
    let tries = &ctx.way.tries;
    let present = ctx.way.endpoint.as_ref().map(|e| e.id);
    let fresh = |id, model: Option<&str>| {
        let now = Some(id) == present && (cause.is_unsent() || model == tries.model.as_deref());
        !now && !tries.tried.contains(id, model)
    };
    let mut splits = ctx.way.route.iter().flat_map(|r| &r.tiers).flat_map(|t| &t.splits);
    splits.any(|split| {
        let mut members = ctx.snapshot.pools[split.pool].members();
        members.any(|(e, up)| up && fresh(e.id, split.model.as_deref()))
    })
}

/// Notes that the present backend has failed the request. What follows, [`follow`] or another try at
/// the same time decides.
pub fn fail(ctx: &mut Ctx, cause: Cause) {
    ctx.way.story.end(cause.told());
    leave_out(ctx, cause.is_unsent());
}

/// The present backend is not chosen again in this round; with any model, if it is `unreachable`.
fn leave_out(ctx: &mut Ctx, unreachable: bool) {
    let tries = &mut ctx.way.tries;
    if let Some(endpoint) = &ctx.way.endpoint {
        tries.tried.add(endpoint.id, tries.model.clone(), unreachable);
    }
}

/// Prepares the try that follows the present one.
pub fn follow(ctx: &mut Ctx, cause: Cause) {
    let more = others(ctx, cause);
    let again = ctx.snapshot.plan.routing.retry.again;
    if matches!(cause, Cause::ErrorEvent | Cause::Aborted | Cause::Empty) {
        ctx.end.fault = Some(Fault { side: Side::Backend, kind: FaultKind::Broken });
    }
    fail(ctx, cause);
    if let Some(home) = &ctx.way.held {
        home.set_quiet(false);
        home.forget_heartbeat();
    }
    // While the next one is waited for, the request is with nobody.
    drop(ctx.way.put_aside());
    let tries = &mut ctx.way.tries;
    tries.reason = Some(cause.word());
    if !cause.is_unsent() || !more {
        tries.left = tries.left.saturating_sub(1);
    }
    if !more && let Some(backoff) = again {
        // Who asks for more than the longest pause is not tried again: see `worth_a_pause`.
        let asked = match cause {
            Cause::Busy(pause) => pause.unwrap_or_default(),
            _ => Duration::ZERO,
        };
        tries.pause = Some(pause(&backoff, tries.rounds, rand::random()).max(asked));
        tries.rounds += 1;
        tries.tried.clear();
    }
    if let Some(watch) = &ctx.way.watch {
        watch.rearm();
    }
}

/// The pause after so many rounds; `chance` is from 0 to 1.
fn pause(backoff: &Backoff, rounds: u32, chance: f64) -> Duration {
    let factor = backoff.multiplier.powi(rounds.min(1000) as i32);
    let longest = backoff.max.as_secs_f64();
    let plain = (backoff.initial.as_secs_f64() * factor).min(longest);
    Duration::from_secs_f64(plain * (1.0 + backoff.jitter * (2.0 * chance - 1.0)))
}

/// A backend, and how it was found.
pub struct Picked {
    /// The backend.
    pub choice: PickedBackend,
    /// The model's name there; `None`: as the client says.
    pub model: Option<Arc<str>>,
    /// Tiers before the one that it was found in.
    pub tier: usize,
    /// Its pool.
    pub pool: usize,
    /// How the backends of the pool stood, if that is told.
    pub candidates: Vec<Candidate>,
}

/// What comes next.
pub enum Next {
    /// This backend.
    Try(Box<Picked>),
    /// A pause.
    Pause(Duration),
    /// No further try.
    Nobody(NoBackend),
}

/// Looks for the backend of the next try.
pub fn next(session: &Session, ctx: &mut Ctx) -> Next {
    if let Some(pause) = ctx.way.tries.pause.take() {
        return Next::Pause(pause);
    }
    let now = Instant::now();
    let retry = ctx.way.tries.begun > 0;
    let nobody = match pick(session, ctx, now) {
        Ok(picked) => {
            if !retry {
                ctx.way.tries.paying = Some(picked.pool);
                ctx.snapshot.pools[picked.pool].earn();
            } else if !afford(ctx, picked.pool, now) {
                return Next::Nobody(NoBackend::default());
            }
            return Next::Try(Box::new(picked));
        }
        Err(nobody) => nobody,
    };
    match wait_for(ctx, nobody) {
        Some(pause) => Next::Pause(pause),
        None => Next::Nobody(nobody),
    }
}

/// Takes a retry from the budget of the pool that was asked first; `pool` if none was.
fn afford(ctx: &mut Ctx, pool: usize, now: Instant) -> bool {
    let paying = *ctx.way.tries.paying.get_or_insert(pool);
    let can = ctx.snapshot.pools[paying].afford_retry(now);
    if !can {
        log::debug!("request {}: the retry budget is used up", ctx.call.id);
        ctx.carry.metrics.retry_budget_exhausted.inc();
    }
    can
}

/// Puts back a pause that was not made.
pub fn postpone(ctx: &mut Ctx, pause: Duration) {
    ctx.way.tries.pause = Some(pause);
}

/// Whether there is a tier with more than one backend that could be chosen.
pub fn several(ctx: &Ctx) -> bool {
    ctx.way.route.iter().flat_map(|route| &route.tiers).any(|tier| {
        let pools = tier.splits.iter().map(|split| &ctx.snapshot.pools[split.pool]);
        let mut up = pools.flat_map(|pool| pool.members()).filter(|(_, up)| *up);
        let first = up.next().map(|(e, _)| e.id);
        up.any(|(e, _)| Some(e.id) != first)
    })
}

/// Looks for a backend for a second try beside the present one, in the same tier: fallbacks are for
/// failures. It counts as a retry.
pub fn second(session: &Session, ctx: &mut Ctx, tier: usize) -> Option<Box<Picked>> {
    leave_out(ctx, false);
    let now = Instant::now();
    let picked = pick(session, ctx, now).ok().filter(|picked| picked.tier == tier)?;
    if !afford(ctx, picked.pool, now) {
        return None;
    }
    ctx.way.tries.left = ctx.way.tries.left.saturating_sub(1);
    Some(Box::new(picked))
}

/// How long to wait when there is nobody to choose: until one of those that are left alone is tried
/// again, or until those are that have failed this request. The try that follows was paid for.
fn wait_for(ctx: &mut Ctx, nobody: NoBackend) -> Option<Duration> {
    let retry = &ctx.snapshot.plan.routing.retry;
    let tries = &mut ctx.way.tries;
    let backoff = retry.again.filter(|_| tries.waits < retry.max_retries)?;
    let anew = (!tries.tried.is_empty()).then(|| pause(&backoff, tries.rounds, rand::random()));
    let open = nobody.retry_after.filter(|wait| *wait <= backoff.max);
    let wait = anew.into_iter().chain(open).min()?;
    tries.waits += 1;
    tries.rounds += 1;
    tries.tried.clear();
    Some(wait.max(Duration::from_millis(1)))
}

/// Picks a backend by the ways to the model: tier by tier, in each by chance and weight.
fn pick(session: &Session, ctx: &mut Ctx, now: Instant) -> Result<Picked, NoBackend> {
    let Some(route) = ctx.way.route.clone() else {
        return Err(NoBackend::default());
    };
    let tries = &ctx.way.tries;
    let tiers = route.tiers.len();
    // The last try goes to the next tier, if that has not been asked yet.
    let last = tries.begun > 0 && tries.left == 0 && tries.tier + 1 < tiers;
    let first = if last { tries.tier + 1 } else { 0 };
    let mut soonest: Option<Duration> = None;
    for number in (first..tiers).chain(0..first) {
        let tier = &route.tiers[number];
        for split in in_turn(&tier.splits, draw(session, ctx, tier)) {
            match pick_of(session, ctx, now, (number, split)) {
                Ok(picked) => return Ok(picked),
                Err(nobody) => soonest = soonest.into_iter().chain(nobody.retry_after).min(),
            }
        }
    }
    Err(NoBackend { retry_after: soonest })
}

/// Where the choice among the shares of a tier falls: requests that belong together take the same.
fn draw(session: &Session, ctx: &Ctx, tier: &Tier) -> u64 {
    let [first, _, ..] = tier.splits.as_slice() else { return 0 };
    let total: u64 = tier.splits.iter().map(|s| u64::from(s.weight)).sum();
    let bound = affinity::session(session, ctx, ctx.snapshot.pools[first.pool].balance());
    bound.unwrap_or_else(rand::random) % total.max(1)
}

/// Picks a backend of one share.
fn pick_of(
    session: &Session,
    ctx: &mut Ctx,
    now: Instant,
    (tier, split): (usize, &Split),
) -> Result<Picked, NoBackend> {
    let snapshot = ctx.snapshot.clone();
    let pool = &snapshot.pools[split.pool];
    let balance = pool.balance();
    if balance.strategy == Strategy::PrefixAffinity {
        begin_alike(ctx, split.model.as_ref(), &balance.prefix);
    }
    let asked = ctx.call.model.as_deref().unwrap_or_default();
    let model = split.model.as_deref().unwrap_or(asked);
    let caller = match ctx.way.tries.caller {
        Some(caller) => caller,
        None => *ctx.way.tries.caller.insert(affinity::caller(ctx)),
    };
    let tried: Vec<u32> = ctx.way.tries.tried.with(split.model.as_deref()).collect();
    let blocks = ctx.way.tries.beginnings.as_ref();
    let wish = PickRequest {
        model,
        caller,
        ignore_ejections: is_spared(ctx),
        session: affinity::session(session, ctx, balance),
        blocks: blocks.map_or(&[], |(_, _, blocks)| blocks.as_slice()),
        excluded: &tried,
        now,
    };
    // As they stand before one is chosen; of one that is alone it is told if it is not.
    let mut candidates =
        if pool.len() > 1 { story::candidates(ctx, pool, &wish) } else { Vec::new() };
    match pool.pick(&wish) {
        Ok(choice) => {
            let (pool, model) = (split.pool, split.model.clone());
            Ok(Picked { choice, tier, pool, model, candidates })
        }
        Err(nobody) => {
            if candidates.is_empty() {
                candidates = story::candidates(ctx, pool, &wish);
            }
            let model = model.to_owned();
            let place = story::Place { tier, pool: split.pool, model, candidates };
            ctx.way.story.nobody(ctx.call.arrived, place);
            Err(nobody)
        }
    }
}

/// Hashes how the conversation begins, unless that was done for this model before.
fn begin_alike(ctx: &mut Ctx, model: Option<&Arc<str>>, plan: &PrefixPlan) {
    let known = ctx.way.tries.beginnings.as_ref();
    if known.is_none_or(|(known, by, _)| known.as_ref() != model || by != plan) {
        let asked = ctx.call.model.as_deref().unwrap_or_default();
        let name = model.map_or(asked, |model| model);
        let blocks = ctx.body.beginnings(name, plan.block, plan.blocks);
        ctx.way.tries.beginnings = Some((model.cloned(), *plan, blocks));
    }
}

/// The splits, from the one on that `drawn` falls to (below the sum of the weights).
fn in_turn(splits: &[Split], drawn: u64) -> impl Iterator<Item = &Split> {
    let mut sum = 0;
    let first = splits.iter().position(|s| {
        sum += u64::from(s.weight);
        drawn < sum
    });
    let (before, from) = splits.split_at(first.unwrap_or(0));
    from.iter().chain(before)
}

/// A try begins.
pub fn start(ctx: &mut Ctx, mut picked: Picked) {
    if ctx.carry.explains.capacity() > 0 {
        ctx.way.story.begin(ctx.call.arrived, ctx.call.model.as_deref(), &mut picked);
    }
    let tries = &mut ctx.way.tries;
    tries.begun += 1;
    tries.tier = picked.tier;
    tries.model = picked.model;
    tries.since = Some(Instant::now());
    if let Some(reason) = tries.reason.take() {
        ctx.way.retries += 1;
        ctx.carry.metrics.retries.with_label_values(&[reason]).inc();
    }
    ctx.answer.renew();
    ctx.way.choose(picked.choice);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn pauses_grow_to_their_longest(rounds in 0u32..2000, chance in 0.0..1.0f64) {
            let backoff = Backoff {
                initial: Duration::from_millis(100),
                max: Duration::from_secs(10),
                multiplier: 2.0,
                jitter: 0.2,
            };
            let plain = (0.1 * 2f64.powi(rounds.min(100) as i32)).min(10.0);
            let got = pause(&backoff, rounds, chance).as_secs_f64();
            prop_assert!((plain * 0.8 - 1e-6..=plain * 1.2 + 1e-6).contains(&got));
        }
    }

    #[test]
    fn splits_are_drawn_by_weight_and_all_are_asked() {
        let split = |weight, pool| Split { weight, pool, model: None };
        let splits = [split(95, 0), split(5, 1)];
        let order = |drawn| in_turn(&splits, drawn).map(|s| s.pool).collect::<Vec<_>>();
        assert_eq!((order(0), order(94), order(95)), (vec![0, 1], vec![0, 1], vec![1, 0]));
    }
}
