//! The retry policy of one request: it is asked after each outcome whether another attempt follows,
//! and why; and before each attempt, which backend it goes to.
//!
//! Until a byte of content has gone to the client, another backend can be tried. Each backend is
//! tried once; after all have been, and if the configuration names pauses, a new round begins.
//! What counts against a backend is decided here and nowhere else. (Refused connections are also
//! counted by `failure`, which ends the waits for a backend that has stopped.)

mod cause;
mod excluded;
mod pick;
mod verdict;

use std::{sync::Arc, time::Duration};

use http::HeaderMap;

pub use self::{
    cause::Cause,
    pick::{Next, PlannedAttempt, has_several},
    verdict::{MOST as LONGEST_INSPECTED, is_redirect, wants_body},
};
use self::{excluded::Excluded, verdict::Verdict};
use super::{
    attempt::{Attempt, KeptAnswer},
    body::Body,
    inbound::{Caller, Request},
};
use crate::{
    balance::{Evidence, UnsettledFailure},
    base::{Fault, FaultKind, Side},
    config::plan::{Backoff, PrefixPlan, Strategy},
    route::Route,
    runtime::{Carry, Snapshot},
};

/// The retry policy of one request, and what it remembers of its attempts.
#[derive(Default)]
pub struct RetryPolicy {
    /// How many attempts have begun.
    pub begun: u32,
    /// Attempts after the first, those on a new connection to the same backend included.
    pub retries: u32,
    /// The last answer that was not passed on, for the case that no other attempt succeeds.
    pub kept: Option<KeptAnswer>,
    /// Whether another attempt is under way at the same time.
    pub concurrent: Concurrent,
    /// Heads of answers are deferred: when the request was first sent, another attempt could follow. Set by
    /// `request`, read by `response`.
    pub defers: bool,
    /// The backends that are not chosen in this round.
    excluded: Excluded,
    /// The backends whose languages cannot say the request: they are never chosen.
    unable: Excluded,
    /// The only backend that has the state that the request refers to.
    owner: Option<u32>,
    /// What scripts have chosen; `None`: nothing. Written by `hooks::route`.
    pub choice: Option<Box<RouteChoice>>,
    /// Rounds that have ended.
    rounds: u32,
    /// Pauses that were made because no backend was available.
    waits: u32,
    /// Attempts that may follow one that was sent.
    left: u32,
    /// There is only one backend.
    sole: bool,
    /// There is only one backend, and it is not tried twice.
    single: bool,
    /// The tier of the last attempt.
    tier: usize,
    /// The pool that pays for retries: that of the first attempt.
    paying: Option<usize>,
    /// Before the next attempt.
    pause: Option<Duration>,
    /// Why the next attempt is made: a label of `llmproxy_retries_total`.
    reason: Option<&'static str>,
    /// Failures of which it is not known yet whether the backend or the request is at fault.
    suspicions: Vec<UnsettledFailure>,
    /// A backend has refused the request without being at fault.
    doubtful: bool,
    /// The caller, hashed, once that was asked.
    caller: Option<u64>,
    /// How the conversation begins, once a pool has asked: the model there, and the hashes.
    beginnings: Option<(Option<Arc<str>>, PrefixPlan, Vec<u64>)>,
}

/// What scripts have chosen of the ways in which a backend is found.
#[derive(Default)]
pub struct RouteChoice {
    /// Ids of the backends that may be picked, the only ones.
    pub allowed: Option<Vec<u32>>,
    /// The model's name in place of the client's.
    pub model: Option<Arc<str>>,
    /// How a backend is picked.
    pub strategy: Option<Strategy>,
    /// What binds the request to a backend, hashed.
    pub session: Option<u64>,
}

/// Whether another attempt is under way at the same time as the present one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Concurrent {
    /// None is.
    #[default]
    None,
    /// None is yet, or any more.
    Possible,
    /// One is.
    UnderWay,
}

/// What the policy looks at.
#[derive(Clone, Copy)]
pub struct RoutingView<'a> {
    /// The configuration and the pools.
    pub snapshot: &'a Snapshot,
    /// For metrics.
    pub carry: &'a Carry,
    /// Where backends are looked for.
    pub route: Option<&'a Route>,
    /// What was asked.
    pub request: &'a Request,
    /// By whom.
    pub caller: &'a Caller,
    /// With this body.
    pub body: &'a Body,
    /// And these header fields.
    pub headers: &'a HeaderMap,
}

/// What has come of an attempt.
#[derive(Clone, Copy)]
pub enum AttemptOutcome<'a> {
    /// Something broke.
    Fault(Fault),
    /// An answer that is no success, with the beginning of its body.
    Error(&'a [u8]),
    /// A stream that ended or failed before it had any content.
    NoContent(Cause),
    /// An answer, to its end.
    Whole,
}

/// What of an attempt's circumstances decides, beside its outcome.
#[derive(Clone, Copy)]
pub struct Circumstances {
    /// The body can be sent again.
    pub replayable: bool,
    /// The request was ended by this.
    pub over: Option<FaultKind>,
}

/// Whether another attempt follows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Decision {
    /// Another one follows, for this cause.
    Again(Cause),
    /// Another one is under way, and is waited for.
    Wait(Cause),
    /// A kept-alive connection was dead: the same one again, on a new connection.
    Reconnect,
    /// None follows, for this reason.
    Last(Reason),
}

impl Decision {
    /// The answer or failure is not for the client: another attempt follows or is waited for.
    pub fn discards(self) -> bool {
        matches!(self, Self::Again(_) | Self::Wait(_))
    }

    /// The request goes on.
    pub fn continues(self) -> bool {
        !matches!(self, Self::Last(_))
    }
}

/// Why no attempt follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The outcome is the client's.
    Final,
    /// A part of the answer has gone to the client.
    Begun,
    /// The time for the request is over, or the gateway stops.
    Over,
    /// The configuration does not want it for this cause.
    NotConfigured,
    /// Every backend has been tried.
    NoBackend,
    /// As many attempts as are allowed have been made.
    NoneLeft,
    /// The body cannot be sent again.
    NotReplayable,
}

impl RetryPolicy {
    /// The request is about to be sent to its first backend.
    pub fn begin(&mut self, snapshot: &Snapshot, route: Option<&Route>) {
        let retry = &snapshot.plan.routing.retry;
        self.left = retry.max_retries;
        self.sole = route.is_some_and(|route| match route.tiers.as_slice() {
            [tier] => match tier.splits.as_slice() {
                [split] => snapshot.pools[split.pool].len() == 1,
                _ => false,
            },
            _ => false,
        });
        self.single = self.sole && retry.again.is_none();
    }

    /// Whether another attempt may follow one that has been answered.
    pub fn may_follow(&self) -> bool {
        self.concurrent != Concurrent::None || self.left > 0 && !self.single
    }

    /// Whether no other backend could take over this attempt, were it to end now.
    pub fn is_alone(&self, attempt: &Attempt, view: &RoutingView<'_>) -> bool {
        !self.may_follow() || !self.has_others(attempt, Cause::Fault(FaultKind::Refusing), view)
    }

    /// Whether another attempt follows this outcome, and why. The outcome counts for or against the
    /// backend once.
    pub fn decide(
        &mut self,
        attempt: &mut Attempt,
        outcome: AttemptOutcome<'_>,
        at: Circumstances,
        view: &RoutingView<'_>,
    ) -> Decision {
        if let AttemptOutcome::Fault(fault) = outcome {
            attempt.fault = Some(fault);
            match fault.kind {
                FaultKind::StaleConnection => return self.reconnect(attempt, at, view),
                FaultKind::TotalTimeout | FaultKind::Shutdown => {
                    return Decision::Last(Reason::Over);
                }
                _ if fault.side != Side::Backend => return Decision::Last(Reason::Final),
                _ => {}
            }
        }
        let (verdict, cause) = judge(attempt, outcome, view);
        let known = match outcome {
            AttemptOutcome::Fault(_) => false,
            _ => std::mem::replace(&mut attempt.answer.judged, true),
        };
        if !known {
            self.count(attempt, verdict, view);
        }
        let decision = match cause {
            None => Decision::Last(Reason::Final),
            Some(cause) => match self.objection(attempt, cause, at, view) {
                Some(reason) => Decision::Last(reason),
                None if self.concurrent == Concurrent::UnderWay => Decision::Wait(cause),
                None => Decision::Again(cause),
            },
        };
        match decision {
            Decision::Again(cause) => self.follow(attempt, cause, view),
            Decision::Wait(cause) => self.exclude(attempt, cause.is_unsent()),
            Decision::Reconnect | Decision::Last(_) => {}
        }
        if decision.discards() && matches!(outcome, AttemptOutcome::NoContent(_)) {
            // The client gets this error if no other attempt succeeds.
            attempt.fault = Some(Fault { side: Side::Backend, kind: FaultKind::Broken });
        }
        decision
    }

    /// A kept-alive connection was dead, which says nothing about the backend.
    fn reconnect(
        &mut self,
        attempt: &mut Attempt,
        at: Circumstances,
        view: &RoutingView<'_>,
    ) -> Decision {
        if !at.replayable {
            let kind = FaultKind::NotReplayable;
            attempt.fault = Some(Fault { side: Side::Backend, kind });
            return Decision::Last(Reason::NotReplayable);
        }
        attempt.reconnects = true;
        self.retries += 1;
        let reason = FaultKind::StaleConnection.word();
        view.carry.metrics.retries.with_label_values(&[reason]).inc();
        Decision::Reconnect
    }

    /// Counts an outcome for or against the backend.
    fn count(&mut self, attempt: &mut Attempt, verdict: Verdict, view: &RoutingView<'_>) {
        if verdict == Verdict::Good {
            self.succeeded();
        }
        let spared = self.is_spared(view);
        let Some(lease) = &mut attempt.lease else { return };
        match verdict {
            Verdict::Good => lease.good(),
            // Another one that has failed the request may not be at fault either.
            Verdict::Neutral => self.doubtful = true,
            _ if spared => {}
            Verdict::Busy(pause) => lease.busy(pause),
            Verdict::Unreachable => lease.unreachable(),
            Verdict::Failed => self.suspicions.push(lease.failed()),
        }
    }

    /// Whether the backend cannot be replaced. It is used anyway: its own error is better than what the
    /// gateway could say.
    fn is_spared(&self, view: &RoutingView<'_>) -> bool {
        self.sole && !view.snapshot.plan.routing.circuit.lone
    }

    /// The request has succeeded: backends that have failed it before are at fault.
    pub fn succeeded(&mut self) {
        for suspicion in std::mem::take(&mut self.suspicions) {
            suspicion.settle(Evidence::SucceededElsewhere);
        }
    }

    /// The request has ended. If it has failed at one backend, the backend or the request may be at
    /// fault; if it has failed at several, that says nothing about them, as far as one caller is
    /// concerned.
    pub fn ended(&mut self) {
        let suspicions = std::mem::take(&mut self.suspicions);
        let Some(first) = suspicions.first() else { return };
        let several = suspicions.iter().any(|other| !other.is_of_same(first));
        let several = several || self.doubtful;
        let evidence = if several { Evidence::FailedEverywhere } else { Evidence::Inconclusive };
        suspicions.into_iter().for_each(|suspicion| suspicion.settle(evidence));
    }

    /// Why no attempt may follow this one, which fails for this cause; `None` if one may.
    fn objection(
        &self,
        attempt: &Attempt,
        cause: Cause,
        at: Circumstances,
        view: &RoutingView<'_>,
    ) -> Option<Reason> {
        let retry = &view.snapshot.plan.routing.retry;
        if attempt.answer.begun {
            return Some(Reason::Begun);
        }
        if matches!(at.over, Some(FaultKind::TotalTimeout | FaultKind::Shutdown)) {
            return Some(Reason::Over);
        }
        if self.concurrent == Concurrent::UnderWay {
            // It has been made already.
            return None;
        }
        if !cause.is_retried(&retry.on) {
            return Some(Reason::NotConfigured);
        }
        let others = self.has_others(attempt, cause, view);
        let later = self.left > 0 && is_worth_a_pause(cause, retry.again);
        if !others && !later {
            return Some(Reason::NoBackend);
        }
        // A connection that cannot be made costs no backend anything: there all others are tried.
        if self.left == 0 && !cause.is_unsent() {
            return Some(Reason::NoneLeft);
        }
        (!at.replayable).then_some(Reason::NotReplayable)
    }

    /// Whether there is a backend that has not been tried yet, after this attempt for this cause.
    fn has_others(&self, attempt: &Attempt, cause: Cause, view: &RoutingView<'_>) -> bool {
        let fresh = |id, model: Option<&str>| {
            let same = model == attempt.model.as_deref();
            let present = id == attempt.endpoint.id && (cause.is_unsent() || same);
            let able = !self.unable.contains(id, model)
                && self.owner.is_none_or(|owner| owner == id)
                && self.allows(id);
            !present && able && !self.excluded.contains(id, model)
        };
        let mut splits = view.route.iter().flat_map(|r| &r.tiers).flat_map(|t| &t.splits);
        splits.any(|split| {
            let mut members = view.snapshot.pools[split.pool].members();
            let model = self.model_of(split);
            members.any(|(e, up)| up && fresh(e.id, model.as_deref()))
        })
    }

    /// The attempt's backend is not chosen again in this round; with any model, if it is
    /// unreachable.
    fn exclude(&mut self, attempt: &Attempt, unreachable: bool) {
        self.excluded.add(attempt.endpoint.id, attempt.model.clone(), unreachable);
    }

    /// Prepares the attempt that follows this one.
    fn follow(&mut self, attempt: &Attempt, cause: Cause, view: &RoutingView<'_>) {
        let more = self.has_others(attempt, cause, view);
        self.exclude(attempt, cause.is_unsent());
        self.reason = Some(cause.word());
        if !cause.is_unsent() || !more {
            self.left = self.left.saturating_sub(1);
        }
        if !more && let Some(backoff) = view.snapshot.plan.routing.retry.again {
            // One that asks for more than the longest pause is not retried: `is_worth_a_pause`.
            let asked = match cause {
                Cause::Busy(pause) => pause.unwrap_or_default(),
                _ => Duration::ZERO,
            };
            self.pause = Some(pause(&backoff, self.rounds, rand::random()).max(asked));
            self.rounds += 1;
            self.excluded.clear();
        }
    }
}

/// The verdict on the backend, and the cause for which another backend may do better, if there is
/// one.
fn judge(
    attempt: &Attempt,
    outcome: AttemptOutcome<'_>,
    view: &RoutingView<'_>,
) -> (Verdict, Option<Cause>) {
    let (answer, progress) = (&attempt.answer, attempt.answer.progress());
    match outcome {
        AttemptOutcome::Fault(fault) => {
            let cause = Cause::Fault(fault.kind);
            (Verdict::of_fault(cause), Some(cause))
        }
        AttemptOutcome::Error(body) => {
            let body = &body[..body.len().min(verdict::MOST)];
            let status = answer.status.unwrap_or_default();
            let plan = &view.snapshot.plan.routing;
            let (verdict, cause) = verdict::judge(status, body, answer.retry_after, plan);
            // An answer that is not all here could not be replaced by another backend's.
            (verdict, cause.filter(|_| answer.whole))
        }
        AttemptOutcome::NoContent(cause) => (verdict::of_no_content(progress), Some(cause)),
        AttemptOutcome::Whole => (verdict::of_end(answer.status, progress), None),
    }
}

/// Whether the same backend may be tried again after a pause.
fn is_worth_a_pause(cause: Cause, again: Option<Backoff>) -> bool {
    match (cause, again) {
        // It says itself that it is too early.
        (Cause::Busy(Some(asked)), Some(backoff)) => asked <= backoff.max,
        (_, again) => again.is_some(),
    }
}

/// The pause after so many rounds; `chance` is from 0 to 1.
fn pause(backoff: &Backoff, rounds: u32, chance: f64) -> Duration {
    let factor = backoff.multiplier.powi(rounds.min(1000) as i32);
    let longest = backoff.max.as_secs_f64();
    let plain = (backoff.initial.as_secs_f64() * factor).min(longest);
    Duration::from_secs_f64(plain * (1.0 + backoff.jitter * (2.0 * chance - 1.0)))
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
}
