//! Applies the limits of a configuration: claims are taken when a request is admitted and settled
//! when it ends.

use std::{
    collections::hash_map::RandomState,
    path::PathBuf,
    sync::{Arc, Mutex, Weak},
    time::Instant,
};

use super::{
    admission::{AdmissionRequest, Denial, REDIS, Rejected},
    bucket::SECOND,
    claim::{ClaimKind, ClaimState, Claims, Dim, FailedClaim, Shortfall, Unit},
    counters::Counters,
    estimate::Estimate,
    ledger::Ledger,
    price,
    queue::{QueueFull, QueueKey, QueuePlace},
    redis::{self, RedisCounter},
    rules::{RequestFacts, Rules, fair_key},
    ticket::{Holder, Ticket, TicketSource},
};
use crate::{
    base::{Rejection, RejectionKind, TokenCounts, limits::Standings, lock, rejection::OverLimit},
    config::{
        choices::OnRedisError,
        plan::{LimitPlan, QueuePlan, SharedPlan},
    },
    store::Stores,
    telemetry::Metrics,
};

/// `Retry-After` of a used-up budget that is never reset, in seconds.
const LATER: u64 = 3600;

/// `Retry-After` while the limits cannot be checked, in seconds.
const SOON: u64 = 2;

/// The longest `Retry-After` for a slot, in seconds.
const LONGEST: f64 = 600.0;

/// State that all generations of the configuration share.
pub struct Shared {
    hash: RandomState,
    counters: Arc<Counters>,
    /// The limits of the latest configuration.
    latest: Mutex<Weak<Limiter>>,
}

impl Shared {
    /// Nothing is taken yet. `ledger` is the file of amounts spent.
    pub fn new(ledger: PathBuf, metrics: &Metrics) -> Self {
        Self {
            hash: RandomState::new(),
            counters: Arc::new(Counters::new(ledger, metrics)),
            latest: Mutex::default(),
        }
    }

    /// Amounts spent.
    pub fn ledger(&self) -> &Ledger {
        &self.counters.ledger
    }

    /// Removes buckets that are full again.
    pub fn sweep(&self) {
        self.counters.sweep();
    }
}

/// The limits of one configuration.
pub struct Limiter {
    plan: LimitPlan,
    rules: Rules,
    shared: Arc<Shared>,
    redis: Option<Arc<RedisCounter>>,
}

impl Limiter {
    /// The counter of `earlier` is kept if it uses the same Redis.
    pub fn new(
        plan: LimitPlan,
        shared: &Arc<Shared>,
        stores: &Stores,
        earlier: Option<&Self>,
    ) -> Arc<Self> {
        let redis = plan.shared.as_ref().map(|new| {
            let same = earlier.filter(|e| {
                e.plan
                    .shared
                    .as_ref()
                    .is_some_and(|s| SharedPlan { on_error: new.on_error, ..s.clone() } == *new)
            });
            let kept = same.and_then(|e| e.redis.clone());
            kept.unwrap_or_else(|| counter(new, stores, &shared.counters.metrics))
        });
        let shared = Arc::clone(shared);
        let limiter = Arc::new(Self { rules: Rules::new(&plan), plan, shared, redis });
        *lock(&limiter.shared.latest) = Arc::downgrade(&limiter);
        limiter
    }

    /// The limits that have replaced these after a reload, if any.
    pub fn replaced(&self) -> Option<Arc<Self>> {
        let latest = lock(&self.shared.latest).upgrade()?;
        (!std::ptr::eq(&*latest, self)).then_some(latest)
    }

    pub fn queue(&self) -> QueuePlan {
        self.plan.queue
    }

    /// The claims of a request; `None` if no rule matches. `bytes` is the size of its body.
    pub fn prepare(
        &self,
        facts: &RequestFacts<'_>,
        bytes: usize,
        max_tokens: Option<u64>,
    ) -> Option<AdmissionRequest> {
        if self.rules.is_empty()
            && facts.principal.is_none_or(|p| p.limits.is_none() && p.allowance.is_none())
        {
            return None;
        }
        let hash = &self.shared.hash;
        let model = facts.model.unwrap_or_default();
        let mut averages = None;
        let estimate = || {
            averages = self.shared.counters.estimates.averages(model);
            Estimate::new(averages.as_deref(), bytes, max_tokens)
        };
        let (claims, estimate) = self.rules.claims(facts, hash, estimate);
        (!claims.is_empty()).then_some(AdmissionRequest {
            claims,
            estimate,
            averages,
            bytes,
            max_tokens,
            class: 0,
        })
    }

    /// How the limits of a request stand before it is admitted; nothing is taken. Limits that are counted
    /// in Redis stand as this process knows them.
    pub fn peek(&self, request: &mut AdmissionRequest) -> Vec<ClaimState> {
        let counters = &self.shared.counters;
        counters.table.observe(&mut request.claims.takes, counters.now());
        request.claims.takes.iter().map(ClaimState::of).collect()
    }

    /// Takes the claims of a request. `first`: the request does not come from the queue, and must not
    /// overtake the requests that wait there.
    ///
    /// # Errors
    /// If a limit is reached. Then nothing is taken.
    pub async fn admit(
        &self,
        request: &mut AdmissionRequest,
        first: bool,
    ) -> Result<Ticket, Rejected> {
        let waited_for = match first {
            true => self.shared.counters.queue.waited_for(request.claims.slots()),
            false => None,
        };
        let taken = match waited_for {
            Some(bucket) => self.check_without_slot(&mut request.claims, bucket).await,
            None => self.take(&mut request.claims).await,
        };
        let failed = match taken {
            Ok(Ok(holder)) => return Ok(self.ticket(request, holder)),
            Ok(Err(failed)) => failed,
            Err(denial) => return Err(Rejected::Denied(denial)),
        };
        let denial = self.denial(&request.claims, failed);
        match failed {
            FailedClaim::Bucket(Shortfall { index, .. })
                if request.claims.takes[index].dim == Dim::Concurrent =>
            {
                Err(Rejected::NoSlot { bucket: request.claims.takes[index].id, denial })
            }
            _ => Err(Rejected::Denied(denial)),
        }
    }

    fn ticket(&self, request: &mut AdmissionRequest, holder: Holder) -> Ticket {
        let source = TicketSource {
            counters: Arc::clone(&self.shared.counters),
            redis: self.redis.clone(),
            headers: self.plan.headers,
        };
        Ticket::new(source, request, holder)
    }

    /// Checks the claims as if this bucket had no slot: finds out whether anything else is missing,
    /// and takes nothing.
    async fn check_without_slot(
        &self,
        claims: &mut Claims,
        bucket: u64,
    ) -> Result<Result<Holder, FailedClaim>, Denial> {
        let Some(index) = claims.takes.iter().position(|claim| claim.id == bucket) else {
            return self.take(claims).await;
        };
        let slots = std::mem::replace(&mut claims.takes[index].rate.capacity, 0);
        let checked = self.take(claims).await;
        claims.takes[index].rate.capacity = slots;
        checked
    }

    async fn take(&self, claims: &mut Claims) -> Result<Result<Holder, FailedClaim>, Denial> {
        let Some(redis) = &self.redis else {
            return Ok(self.take_locally(claims));
        };
        // The counter logs its own failures. Boxed: requests that are decided locally do not carry
        // the memory for a call to Redis.
        if let Ok(taken) = Box::pin(redis.take(claims)).await {
            return Ok(taken.map(Holder::Redis));
        }
        match self.plan.shared.as_ref().map(|s| s.on_error) {
            Some(OnRedisError::Allow) => Ok(Ok(Holder::Unchecked)),
            Some(OnRedisError::Deny) => {
                let rejection = Rejection::limits_unavailable(SOON);
                Err(Denial { rejection, quota: None, rule: REDIS.to_owned() })
            }
            Some(OnRedisError::Local) | None => Ok(self.take_locally(claims)),
        }
    }

    fn take_locally(&self, claims: &mut Claims) -> Result<Holder, FailedClaim> {
        let counters = &self.shared.counters;
        let now = counters.now();
        if let Some(index) = counters.ledger.used_up(&claims.spends) {
            counters.table.observe(&mut claims.takes, now);
            return Err(FailedClaim::Amount(index));
        }
        let taken = counters.table.take(&mut claims.takes, now, self.plan.max_buckets);
        taken.map(|()| Holder::Memory).map_err(FailedClaim::Bucket)
    }

    /// Adds a request to the queue. `facts` say for whom it waits.
    ///
    /// # Errors
    /// If the queue is full.
    pub fn enqueue(
        &self,
        request: &AdmissionRequest,
        facts: &RequestFacts<'_>,
        bucket: u64,
    ) -> Result<QueuePlace, QueueFull> {
        let others = request.claims.slots().filter(|id| *id != bucket);
        let all = std::iter::once(bucket).chain(others).collect();
        let key = QueueKey { class: request.class, key: fair_key(facts, &self.shared.hash) };
        self.shared.counters.queue.enter(key, all, self.plan.queue.size)
    }

    /// Updates the place of a request whose limits a reload has changed. `false`: it needs no slot
    /// any more.
    pub fn requeue(&self, request: &AdmissionRequest, place: &QueuePlace) -> bool {
        let slots: Vec<u64> = request.claims.slots().collect();
        let waits = !slots.is_empty();
        place.set_slots(slots);
        waits
    }

    /// Whether limits or prices depend on the model, so that a request must name one.
    pub fn needs_model(&self) -> bool {
        let plan = &self.plan;
        !(plan.models.is_empty() && plan.key_models.is_empty() && plan.prices.is_empty())
    }

    /// The denial of a request that has waited for a slot of this bucket without success.
    pub fn no_slot(&self, request: &AdmissionRequest, bucket: u64) -> Option<Denial> {
        let index = request.claims.takes.iter().position(|claim| claim.id == bucket)?;
        let failed = FailedClaim::Bucket(Shortfall { index, wait: 0 });
        Some(self.denial(&request.claims, failed))
    }

    /// The state of a request's limits; `None` if the configuration does not send it to clients.
    pub fn standings(&self, request: &AdmissionRequest) -> Option<Standings> {
        self.plan.headers.then(|| request.claims.standings())
    }

    /// The price of these tokens; `None` if the model has none.
    pub fn price(&self, model: &str, counts: TokenCounts) -> Option<f64> {
        price::cost(&self.plan.prices, model, counts)
    }

    /// The cost of a request, and what is subtracted from its key's balance: the cost too, or the
    /// tokens if nothing has a price.
    pub fn cost(&self, model: &str, counts: TokenCounts) -> (f64, f64) {
        let cost = self.price(model, counts);
        let credit = match self.plan.prices.is_empty() {
            true => counts.prompt.saturating_add(counts.completion) as f64,
            false => cost.unwrap_or(0.0),
        };
        (cost.unwrap_or(0.0), credit)
    }

    /// The assumed usage of a request whose engine has reported none: the estimated prompt, and the
    /// pieces streamed, or the estimated answer if it was no stream.
    pub fn assume(
        &self,
        model: &str,
        bytes: usize,
        max_tokens: Option<u64>,
        streamed: u64,
    ) -> TokenCounts {
        let estimate = self.shared.counters.estimates.estimate(model, bytes, max_tokens);
        let completion = if streamed > 0 { streamed } else { estimate.completion };
        let total = estimate.prompt.saturating_add(completion);
        TokenCounts { prompt: estimate.prompt, completion, total, ..TokenCounts::default() }
    }

    fn denial(&self, claims: &Claims, failed: FailedClaim) -> Denial {
        let (rule, over) = match failed {
            FailedClaim::Amount(index) => {
                let spend = &claims.spends[index];
                let now = jiff::Timestamp::now().as_second();
                let retry_after =
                    spend.end.map_or(LATER, |end| end.saturating_sub(now).max(1).unsigned_abs());
                let over = OverLimit {
                    what: "Budget used up",
                    status: 429,
                    kind: RejectionKind::QuotaExceeded,
                    code: "budget_exceeded",
                    rule: "",
                    allows: spend.limit,
                    estimate: None,
                    retry_after,
                };
                (spend.rule(), over)
            }
            FailedClaim::Bucket(Shortfall { index, wait }) => {
                let claim = &claims.takes[index];
                let slot = claim.dim == Dim::Concurrent;
                let seconds = match slot {
                    true => self.slot_in(claim.id, claim.rate.capacity),
                    false => wait as f64 / SECOND as f64,
                };
                let over = OverLimit {
                    what: if slot { "Concurrency limit reached" } else { "Rate limit reached" },
                    status: if slot { self.plan.queue.status } else { 429 },
                    kind: kind(claim.dim),
                    code: if slot { "concurrency_limit_exceeded" } else { "rate_limit_exceeded" },
                    rule: "",
                    allows: claim.allows(),
                    estimate: (claim.dim.kind() == ClaimKind::Reserve).then_some(claim.amount),
                    retry_after: seconds.ceil().max(1.0) as u64,
                };
                (claim.rule(), over)
            }
        };
        let rejection = Rejection::over_limit(&OverLimit { rule: &rule, ..over });
        let quota = match failed {
            FailedClaim::Amount(index) if claims.spends[index].unit != Unit::Cost => {
                Some(claims.spends[index].end)
            }
            _ => None,
        };
        Denial { rejection, quota, rule }
    }

    /// Counts a denial that was sent to a client.
    pub fn count_refusal(&self, denial: &Denial) {
        let refused = &self.shared.counters.metrics.limits.refused;
        refused.with_label_values(&[denial.rule.as_str()]).inc();
    }

    /// Records how long a request has waited in the queue, and the result.
    pub fn waited(&self, since: Instant, result: &str) {
        let seconds = since.elapsed().as_secs_f64();
        let waits = &self.shared.counters.metrics.limits.waits;
        waits.with_label_values(&[result]).observe(seconds);
    }

    /// Seconds until a request that arrives now would have a slot: from the rate at which slots have
    /// become free, or else from the recent duration of requests.
    fn slot_in(&self, bucket: u64, slots: u64) -> f64 {
        let counters = &self.shared.counters;
        let expected = counters.queue.expected_wait(bucket);
        let fallback = counters.slot_seconds() / slots as f64;
        expected.map_or(fallback, |d| d.as_secs_f64()).min(LONGEST)
    }

    /// Set if the limits are counted in Redis.
    pub fn redis(&self) -> Option<&Arc<RedisCounter>> {
        self.redis.as_ref()
    }
}

fn counter(plan: &SharedPlan, stores: &Stores, metrics: &Metrics) -> Arc<RedisCounter> {
    let settings = redis::Settings {
        prefix: plan.prefix.clone(),
        ttl: plan.ttl,
        timeout: plan.timeout,
        lease: plan.lease.map(|(share, lifetime)| redis::Lease { share, lifetime }),
    };
    RedisCounter::new(stores.redis(&plan.server), settings, stores.handle(), metrics)
}

fn kind(dim: Dim) -> RejectionKind {
    match dim {
        Dim::RequestsPerSecond | Dim::RequestsPerMinute => RejectionKind::RequestLimit,
        Dim::Tokens | Dim::InputTokens | Dim::OutputTokens => RejectionKind::TokenLimit,
        Dim::Concurrent => RejectionKind::ConcurrencyLimit,
    }
}
