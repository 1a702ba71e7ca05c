//! Limits that all replicas share: the buckets are in Redis, whose clock counts.
//!
//! A decision is one round trip, or none if nothing is claimed; scripts decide, so that all claims
//! are taken or none is.
//!
//! # Exact
//!
//! Over any window all replicas together let pass no more than rate x time + capacity, by the clock
//! of Redis; of reservations what was used counts when the request ends, and what was used beyond
//! the reservation is owed. A clock that is set forward brings what the time would have brought. If a
//! connection breaks or an answer comes too late, what is only counted (requests) stays counted
//! although nobody was let in; what is held is given back.
//!
//! What is held for a request ends when its [`Held`] does. For a while Redis remembers that it has:
//! what was sent before and comes later, a question that was given up or a renewal, holds nothing
//! any more, and what is told twice counts once. A replica that is killed renews nothing, and what
//! it held ends by itself after [`Settings::ttl`]. If Redis restarts empty, buckets are full again,
//! and what is held is held again with the next renewal.
//!
//! # Leased
//!
//! With [`Settings::lease`] a replica takes a share of each bucket ahead and mostly asks nobody.
//! How far off that is stands in the module `credit`. Slots are exact all the same. What is spent
//! is known to be spent [`Lease::lifetime`] later at most. With the counter goes back what is left.

mod amounts;
mod credit;
mod held;
mod holdings;
mod outage;
mod script;
mod slices;

use std::{
    pin::pin,
    sync::{Arc, Mutex, Weak},
    time::{Duration, Instant},
};

use prometheus::{IntCounterVec, IntGauge};
use tokio::{runtime::Handle, sync::oneshot, time::timeout};

pub use self::held::Held;
use self::{
    amounts::Amounts,
    credit::{Credits, Loan, Plan},
    holdings::Holdings,
    outage::Outage,
    script::{Answer, Give, Part, Question, Speaker},
};
use super::claim::{Claims, Failed, Kind};
use crate::{
    base::lock,
    store::{
        StoreError,
        redis::{Redis, ScriptError, ScriptOutcome},
    },
    telemetry::Metrics,
};

/// For so long a failure is not told of again.
const QUIET: Duration = Duration::from_secs(1);

/// Shares that are given back with one call.
const BATCH: usize = 100;

/// How limits are counted in Redis.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// What the names of all keys begin with: `llmproxy:limit:`
    pub prefix: String,
    /// How long what is held lasts if nobody renews it.
    pub ttl: Duration,
    /// How long a decision may take. No longer than what is held lasts: what was answered later
    /// would have ended before it is renewed.
    pub timeout: Duration,
    /// Whether and how much is taken ahead.
    pub lease: Option<Lease>,
}

/// What a replica takes ahead.
#[derive(Clone, Debug, PartialEq)]
pub struct Lease {
    /// How much of a bucket's capacity at a time.
    pub share: f64,
    /// How long a share is kept of which nothing is used.
    pub lifetime: Duration,
}

/// The limits in one Redis, seen from one replica.
pub struct RedisCounter {
    settings: Settings,
    speaker: Arc<Speaker>,
    runtime: Handle,
    holdings: Holdings,
    outage: Outage,
    credits: Option<Arc<Credits>>,
    amounts: Amounts,
    failures: Arc<Failures>,
    pending: IntGauge,
}

/// Counts failures, and tells of them.
struct Failures {
    errors: IntCounterVec,
    told: Mutex<Option<Instant>>,
}

/// Something that Redis has not answered yet, or has not been told: the process waits for it
/// before it ends.
struct Pending(IntGauge);

impl Pending {
    fn new(pending: &IntGauge) -> Self {
        pending.inc();
        Self(pending.clone())
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// What failed.
#[derive(Clone, Copy)]
enum Action {
    Take,
    Settle,
    Renew,
}

impl Action {
    fn word(self) -> &'static str {
        match self {
            Self::Take => "take",
            Self::Settle => "settle",
            Self::Renew => "renew",
        }
    }
}

/// A request that Redis is asked about.
struct Work {
    question: Question,
    held: Held,
    loan: Option<Loan>,
}

/// What came of it.
struct Decision {
    result: Result<Held, Failed>,
    question: Question,
    answer: Answer,
}

impl RedisCounter {
    /// Asks nothing yet. `runtime` is the one of the stores.
    pub fn new(
        server: Arc<Redis>,
        mut settings: Settings,
        runtime: Handle,
        metrics: &Metrics,
    ) -> Arc<Self> {
        settings.timeout = settings.timeout.min(settings.ttl);
        let credits = settings.lease.clone().map(|lease| Arc::new(Credits::new(lease)));
        let counter = Arc::new(Self {
            speaker: Arc::new(Speaker::new(server, settings.prefix.clone(), settings.ttl)),
            runtime,
            holdings: Holdings::default(),
            outage: Outage::default(),
            credits,
            amounts: Amounts::default(),
            failures: Arc::new(Failures {
                errors: metrics.limits.store_errors.clone(),
                told: Mutex::default(),
            }),
            pending: metrics.limits.pending.clone(),
            settings,
        });
        let weak = Arc::downgrade(&counter);
        counter.runtime.spawn(holdings::renew(weak.clone(), counter.settings.ttl));
        if let Some(lease) = &counter.settings.lease {
            counter.runtime.spawn(tidy(weak, lease.lifetime / 4));
        }
        counter
    }

    /// How often Redis has been asked, for whatever it was.
    pub fn round_trips(&self) -> u64 {
        self.speaker.trips()
    }

    /// Gives back what was taken ahead: nobody is to need it here any more. Returns at once;
    /// [`crate::telemetry::LimitMetrics::pending`] tells when it is done.
    pub fn give_back(&self) {
        let gives = self.credits.as_ref().map_or_else(Vec::new, |credits| credits.all());
        if gives.is_empty() {
            return;
        }
        let (speaker, failures) = (Arc::clone(&self.speaker), Arc::clone(&self.failures));
        let pending = Pending::new(&self.pending);
        self.runtime.spawn(async move {
            give(&speaker, &failures, &gives).await;
            drop(pending);
        });
    }

    /// Takes all claims or none, and notes in them what is left. In the leased mode that is what
    /// was told last and what is here.
    ///
    /// If this is given up, what was taken is given back.
    ///
    /// # Errors
    /// If Redis did not decide. Then nothing is held.
    pub async fn take(
        self: &Arc<Self>,
        claims: &mut Claims,
    ) -> Result<Result<Held, Failed>, StoreError> {
        match &self.credits {
            _ if claims.is_empty() => Ok(Ok(Held::draft(self, claims))),
            None => self.take_exactly(claims).await,
            Some(credits) => self.take_leased(credits, claims).await,
        }
    }

    async fn take_exactly(
        self: &Arc<Self>,
        claims: &mut Claims,
    ) -> Result<Result<Held, Failed>, StoreError> {
        let parts = claims.takes.iter().enumerate().map(|(i, claim)| Part::exact(i, claim));
        let question = Question { parts: parts.collect(), spends: claims.spends.clone() };
        let held = Held::draft(self, claims);
        let decision = self.ask(Work { question, held, loan: None }).await?;
        decision.answer.tell(&decision.question, claims);
        Ok(decision.result)
    }

    async fn take_leased(
        self: &Arc<Self>,
        credits: &Arc<Credits>,
        claims: &mut Claims,
    ) -> Result<Result<Held, Failed>, StoreError> {
        let loan = match self.loan(credits, claims).await {
            Ok(loan) => loan,
            Err(failed) => return Ok(Err(failed)),
        };
        let lifetime = credits.lifetime();
        let known = self.amounts.spent(&claims.spends, lifetime, Instant::now());
        if let Some(Err(failed)) = known {
            return Ok(Err(failed));
        }
        let takes = claims.takes.iter().enumerate();
        let slots = takes.filter(|(_, claim)| claim.dim.kind() == Kind::Slot);
        let parts = slots.map(|(i, claim)| Part::exact(i, claim));
        let parts: Vec<_> = loan.parts().cloned().chain(parts).collect();
        let held = Held::draft(self, claims);
        if parts.is_empty() && known.is_some() {
            loan.keep();
            return Ok(Ok(held));
        }
        let question = Question { parts, spends: claims.spends.clone() };
        let decision = self.ask(Work { question, held, loan: Some(loan) }).await?;
        decision.answer.tell(&decision.question, claims);
        Ok(decision.result)
    }

    /// Takes what there is here; waits for others who are asking for what is lacking, but not for
    /// ever: many may ask one after the other, and each gets no more than a share.
    async fn loan(&self, credits: &Arc<Credits>, claims: &mut Claims) -> Result<Loan, Failed> {
        let start = Instant::now();
        loop {
            let patience = self.settings.timeout.saturating_sub(start.elapsed());
            let patient = !patience.is_zero() && !self.outage.is_on();
            match credits.plan(&mut claims.takes, patient, Instant::now()) {
                Plan::Go(loan) => return Ok(loan),
                Plan::Refuse(refusal) => return Err(Failed::Take(refusal)),
                // Who asks says that it has been answered by letting go.
                Plan::Wait(mut asking) => _ = timeout(patience, asking.changed()).await,
            }
        }
    }

    fn too_late(&self) -> StoreError {
        StoreError::new(format!("no answer within {:?}", self.settings.timeout))
    }

    /// Asks Redis, on the runtime of the stores: who gives up does not take the answer with him.
    async fn ask(self: &Arc<Self>, work: Work) -> Result<Decision, StoreError> {
        if let Err(why) = self.outage.may_ask(Instant::now()) {
            work.held.forget();
            return Err(why);
        }
        let (tell, told) = oneshot::channel();
        let (counter, pending) = (Arc::clone(self), Pending::new(&self.pending));
        self.runtime.spawn(async move {
            counter.answer(work, tell).await;
            drop(pending);
        });
        told.await.unwrap_or_else(|_| Err(StoreError::new("the question broke off")))
    }

    async fn answer(&self, work: Work, tell: oneshot::Sender<Result<Decision, StoreError>>) {
        let mut decision = pin!(self.decide(work));
        // What nobody takes any more gives back what it holds when it is dropped.
        match timeout(self.settings.timeout, &mut decision).await {
            Ok(Ok(decision)) => {
                self.outage.over();
                let _ = tell.send(Ok(decision));
            }
            Ok(Err(error)) => {
                // A server that refuses what stands at one key serves the others.
                match error.outcome {
                    ScriptOutcome::Refused => self.outage.over(),
                    ScriptOutcome::Unable | ScriptOutcome::Broken | ScriptOutcome::Unknown => {
                        self.outage.failed(error.why.clone(), Instant::now());
                    }
                }
                self.tell(Action::Take, &error.why);
                let _ = tell.send(Err(error.why));
            }
            Err(_) => {
                let why = self.too_late();
                self.outage.failed(why.clone(), Instant::now());
                self.tell(Action::Take, &why);
                let _ = tell.send(Err(why));
                let _ = decision.await;
            }
        }
    }

    async fn decide(&self, work: Work) -> Result<Decision, ScriptError> {
        let Work { question, held, loan } = work;
        // Each connection may have broken since it was last used; who finds that out mends it.
        let mut left = self.speaker.connections();
        let mut sure = true;
        let answer = loop {
            match self.speaker.take(&held.holding, &question).await {
                Ok(answer) => break answer,
                Err(error) if error.outcome == ScriptOutcome::Broken && left > 0 => {
                    left -= 1;
                    sure = false;
                }
                Err(error) => {
                    let undone =
                        matches!(error.outcome, ScriptOutcome::Refused | ScriptOutcome::Unable);
                    held.refused(undone && sure);
                    return Err(error);
                }
            }
        };
        let now = Instant::now();
        if self.credits.is_some() {
            self.amounts.note(&question.spends, &answer.spent, now);
        }
        let failed = answer.failed(&question);
        if let Some(loan) = loan {
            loan.answered(failed.is_none(), &answer.parts, now);
        }
        let result = match failed {
            None => {
                self.holdings.begin(&held.holding);
                Ok(held)
            }
            Some(failed) => {
                held.refused(sure);
                Err(failed)
            }
        };
        Ok(Decision { result, question, answer })
    }

    fn tell(&self, action: Action, why: &StoreError) {
        self.failures.tell(action, why);
    }
}

impl Drop for RedisCounter {
    fn drop(&mut self) {
        self.give_back();
    }
}

impl Failures {
    /// Counts a failure, and tells of it, but not more than once a second.
    fn tell(&self, action: Action, why: &StoreError) {
        self.errors.with_label_values(&[action.word()]).inc();
        let mut told = lock(&self.told);
        if !told.is_some_and(|at| at.elapsed() < QUIET) {
            log::warn!("limits: Redis did not {}: {why}", action.word());
            *told = Some(Instant::now());
        }
    }
}

/// Gives back what lies idle, as long as someone has the counter.
async fn tidy(counter: Weak<RedisCounter>, pause: Duration) {
    let pause = pause.max(Duration::from_millis(5));
    loop {
        tokio::time::sleep(pause).await;
        let Some(counter) = counter.upgrade() else { return };
        let Some(credits) = &counter.credits else { return };
        let now = Instant::now();
        counter.amounts.tidy(credits.lifetime(), now);
        // What is here may be given away here, while nobody takes it back.
        if counter.outage.is_on() {
            continue;
        }
        give(&counter.speaker, &counter.failures, &credits.idle(now)).await;
    }
}

async fn give(speaker: &Speaker, failures: &Failures, gives: &[Give]) {
    for batch in gives.chunks(BATCH) {
        // Nobody knows whether it was heard: said twice, units would come from nowhere.
        if let Err(error) = speaker.give(batch).await {
            failures.tell(Action::Settle, &error.why);
        }
    }
}
