//! Limits at work: claims are taken when a request is let in, and settled when it has ended.

use std::{
    collections::hash_map::RandomState,
    path::PathBuf,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use super::{
    bucket::{SECOND, Ticks},
    claim::{Claims, Dim, Failed, Kind, Refusal, Unit},
    estimate::{Estimates, Guess},
    ledger::Ledger,
    price,
    queue::{Full, Place, Queue, Whose},
    redis::{self, RedisCounter},
    rules::{Ask, Rules, fair_key},
    table::Table,
    ticket::{By, Ticket},
};
use crate::{
    base::{Rejection, TokenCounts, limits::Standings, lock, rejection::OverLimit},
    config::{
        choices::OnRedisError,
        plan::{LimitPlan, QueuePlan, SharedPlan},
    },
    store::Stores,
    telemetry::Metrics,
};

/// Seconds after which a client may try again, if nobody knows better.
const LATER: u64 = 3600;

/// The rule of refusals because Redis is away.
const REDIS: &str = "redis";

/// The same, while the limits cannot be looked at.
const SOON: u64 = 2;

/// The longest `Retry-After` for a slot, in seconds.
const LONGEST: f64 = 600.0;

/// What all generations of the configuration share.
pub struct Shared {
    hash: RandomState,
    pub(super) table: Table,
    pub(super) queue: Arc<Queue>,
    pub(super) estimates: Estimates,
    /// What was spent.
    pub ledger: Ledger,
    start: Instant,
    /// Seconds that a request holds a slot, on average, as bits.
    pub(super) duration: AtomicU64,
    pub(super) metrics: Metrics,
    /// The limits of the latest configuration.
    latest: Mutex<Weak<Limiter>>,
}

impl Shared {
    /// Nothing has been taken. `ledger` is the file of what was spent.
    pub fn new(ledger: PathBuf, metrics: &Metrics) -> Self {
        Self {
            hash: RandomState::new(),
            table: Table::default(),
            queue: Arc::new(Queue::new(metrics.limits.queue.clone())),
            estimates: Estimates::default(),
            ledger: Ledger::new(ledger),
            start: Instant::now(),
            duration: AtomicU64::new(1f64.to_bits()),
            metrics: metrics.clone(),
            latest: Mutex::default(),
        }
    }

    /// Ticks since the process has started.
    pub(super) fn now(&self) -> Ticks {
        // Sixteenths of a nanosecond, for 36 years.
        (self.start.elapsed().as_nanos() as u64).saturating_mul(16)
    }

    /// Forgets buckets that are full again.
    pub fn sweep(&self) {
        self.table.sweep(self.now());
        self.metrics.limits.buckets.set(self.table.buckets() as i64);
    }
}

/// The limits of one configuration.
pub struct Limiter {
    plan: LimitPlan,
    rules: Rules,
    pub(super) shared: Arc<Shared>,
    redis: Option<Arc<RedisCounter>>,
}

/// A request that has not been let in yet.
#[derive(Default)]
pub struct Wish {
    pub(super) claims: Claims,
    pub(super) guess: Option<Guess>,
    pub(super) bytes: usize,
    pub(super) max_tokens: Option<u64>,
    fair: u64,
    /// Its place in the queue; larger goes first.
    pub class: i32,
}

/// A refusal, and the rule that refuses: `per_key.requests_per_minute`.
pub struct Denial {
    /// What the client is told.
    pub rejection: Rejection,
    /// Quota or balance of a key are used up, and when the quota begins anew, if it does: whoever
    /// knows keys has words of his own for that.
    pub quota: Option<Option<i64>>,
    rule: String,
}

impl Denial {
    /// Whether somebody has looked at the limits.
    pub fn is_known(&self) -> bool {
        self.rule != REDIS
    }

    /// Whether only a slot was missing.
    pub fn is_for_slot(&self) -> bool {
        self.rule.ends_with(Dim::Concurrent.word())
    }
}

/// Why a request is not let in.
pub enum No {
    /// It is refused.
    Refused(Denial),
    /// Only a slot is missing, of the bucket that is named.
    Slot {
        /// The bucket.
        bucket: u64,
        /// What to say if it does not wait.
        otherwise: Denial,
    },
}

impl Limiter {
    /// Limits by this plan. What `earlier` holds in the same Redis is kept.
    pub fn new(
        plan: LimitPlan,
        shared: &Arc<Shared>,
        stores: &Stores,
        earlier: Option<&Self>,
    ) -> Arc<Self> {
        let redis = plan.shared.as_ref().map(|there| {
            let kept = earlier.filter(|e| {
                e.plan
                    .shared
                    .as_ref()
                    .is_some_and(|s| SharedPlan { on_error: there.on_error, ..s.clone() } == *there)
            });
            let kept = kept.and_then(|e| e.redis.clone());
            kept.unwrap_or_else(|| counter(there, stores, &shared.metrics))
        });
        let shared = Arc::clone(shared);
        let limiter = Arc::new(Self { rules: Rules::new(&plan), plan, shared, redis });
        *lock(&limiter.shared.latest) = Arc::downgrade(&limiter);
        limiter
    }

    /// The limits that a reload has put in the place of these, if one has.
    pub fn replaced(&self) -> Option<Arc<Self>> {
        let latest = lock(&self.shared.latest).upgrade()?;
        (!std::ptr::eq(&*latest, self)).then_some(latest)
    }

    /// Where requests wait.
    pub fn queue(&self) -> QueuePlan {
        self.plan.queue
    }

    /// What a request claims; `None` if no rule matches. `bytes` is the size of its body.
    pub fn wish(&self, ask: &Ask<'_>, bytes: usize, max_tokens: Option<u64>) -> Option<Wish> {
        if self.rules.is_empty()
            && ask.who.is_none_or(|who| who.limits.is_none() && who.allowance.is_none())
        {
            return None;
        }
        let hash = &self.shared.hash;
        let model = ask.model.unwrap_or_default();
        let guess = || self.shared.estimates.guess(model, bytes, max_tokens);
        let (claims, guess) = self.rules.claims(ask, hash, guess);
        let fair = match claims.takes.iter().any(|c| c.dim == Dim::Concurrent) {
            true => fair_key(ask, hash),
            false => 0,
        };
        (!claims.is_empty()).then_some(Wish { claims, guess, bytes, max_tokens, fair, class: 0 })
    }

    /// Lets a request in, or not. `first`: it does not come from the queue, and must not go before
    /// those who wait there.
    pub async fn admit(self: &Arc<Self>, wish: &mut Wish, first: bool) -> Result<Ticket, No> {
        let ahead = match first {
            true => self.shared.queue.ahead(wish.claims.slots()),
            false => None,
        };
        let taken = match ahead {
            Some(bucket) => self.look(&mut wish.claims, bucket).await,
            None => self.take(&mut wish.claims).await,
        };
        let failed = match taken {
            Ok(Ok(by)) => return Ok(Ticket::new(self, wish, by)),
            Ok(Err(failed)) => failed,
            Err(no) => return Err(No::Refused(no)),
        };
        let otherwise = self.refusal(&wish.claims, failed);
        match failed {
            Failed::Take(Refusal { index, .. })
                if wish.claims.takes[index].dim == Dim::Concurrent =>
            {
                Err(No::Slot { bucket: wish.claims.takes[index].id, otherwise })
            }
            _ => Err(No::Refused(otherwise)),
        }
    }

    /// As if there were no slot of this bucket: tells whether anything else is missing, and takes
    /// nothing.
    async fn look(&self, claims: &mut Claims, bucket: u64) -> Result<Result<By, Failed>, Denial> {
        let Some(index) = claims.takes.iter().position(|claim| claim.id == bucket) else {
            return self.take(claims).await;
        };
        let slots = std::mem::replace(&mut claims.takes[index].rate.capacity, 0);
        let looked = self.take(claims).await;
        claims.takes[index].rate.capacity = slots;
        looked
    }

    async fn take(&self, claims: &mut Claims) -> Result<Result<By, Failed>, Denial> {
        let Some(redis) = &self.redis else {
            return Ok(self.take_here(claims));
        };
        // The counter itself tells what went wrong. Boxed: requests that are decided here do not
        // carry the room for a question.
        if let Ok(taken) = Box::pin(redis.take(claims)).await {
            return Ok(taken.map(By::Redis));
        }
        match self.plan.shared.as_ref().map(|s| s.on_error) {
            Some(OnRedisError::Allow) => Ok(Ok(By::Nobody)),
            Some(OnRedisError::Deny) => {
                let rejection = Rejection::limits_unavailable(SOON);
                Err(Denial { rejection, quota: None, rule: REDIS.to_owned() })
            }
            Some(OnRedisError::Local) | None => Ok(self.take_here(claims)),
        }
    }

    fn take_here(&self, claims: &mut Claims) -> Result<By, Failed> {
        let now = self.shared.now();
        if let Some(index) = self.shared.ledger.used_up(&claims.spends) {
            self.shared.table.look(&mut claims.takes, now);
            return Err(Failed::Spent(index));
        }
        let taken = self.shared.table.take(&mut claims.takes, now, self.plan.max_buckets);
        taken.map(|()| By::Memory).map_err(Failed::Take)
    }

    /// A place in the queue.
    ///
    /// # Errors
    /// If there is none.
    pub fn enter(&self, wish: &Wish, bucket: u64) -> Result<Place, Full> {
        let others = wish.claims.slots().filter(|id| *id != bucket);
        let all = std::iter::once(bucket).chain(others).collect();
        let whose = Whose { class: wish.class, key: wish.fair };
        self.shared.queue.enter(whose, all, self.plan.queue.size)
    }

    /// The same request in its place, by limits that have changed since. `false`: it needs no slot
    /// any more.
    pub fn enter_again(&self, wish: &Wish, place: &Place) -> bool {
        let slots: Vec<u64> = wish.claims.slots().collect();
        let waits = !slots.is_empty();
        place.needs(slots);
        waits
    }

    /// Whether what a request may take, or costs, depends on a model that it must name therefore.
    pub fn needs_model(&self) -> bool {
        let plan = &self.plan;
        !(plan.models.is_empty() && plan.key_models.is_empty() && plan.prices.is_empty())
    }

    /// The refusal of a request that has waited for a slot of this bucket in vain.
    pub fn no_slot(&self, wish: &Wish, bucket: u64) -> Option<Denial> {
        let index = wish.claims.takes.iter().position(|claim| claim.id == bucket)?;
        Some(self.refusal(&wish.claims, Failed::Take(Refusal { index, wait: 0 })))
    }

    /// How the limits of a request stand; `None` if clients are not told.
    pub fn standings(&self, wish: &Wish) -> Option<Standings> {
        self.told(&wish.claims)
    }

    pub(super) fn told(&self, claims: &Claims) -> Option<Standings> {
        self.plan.headers.then(|| claims.standings())
    }

    /// What these tokens cost by the price table; `None` if the model has no price.
    pub fn price(&self, model: &str, counts: TokenCounts) -> Option<f64> {
        price::cost(&self.plan.prices, model, counts)
    }

    /// What a request has cost, and what is taken of its key's balance: the cost too, or the tokens
    /// where nothing has a price.
    pub fn cost(&self, model: &str, counts: TokenCounts) -> (f64, f64) {
        let cost = self.price(model, counts);
        let credit = match self.plan.prices.is_empty() {
            true => counts.prompt.saturating_add(counts.completion) as f64,
            false => cost.unwrap_or(0.0),
        };
        (cost.unwrap_or(0.0), credit)
    }

    /// What a request is taken to have come to whose engine has reported nothing: a prompt as it was
    /// guessed, and an answer of so many pieces of a stream, or if it was none, as it was guessed.
    pub fn assume(
        &self,
        model: &str,
        bytes: usize,
        max_tokens: Option<u64>,
        streamed: u64,
    ) -> TokenCounts {
        let guess = self.shared.estimates.guess(model, bytes, max_tokens);
        let completion = if streamed > 0 { streamed } else { guess.completion };
        let total = guess.prompt.saturating_add(completion);
        TokenCounts { prompt: guess.prompt, completion, total, ..TokenCounts::default() }
    }

    fn refusal(&self, claims: &Claims, failed: Failed) -> Denial {
        let (rule, over) = match failed {
            Failed::Spent(index) => {
                let spend = &claims.spends[index];
                let now = jiff::Timestamp::now().as_second();
                let retry_after =
                    spend.end.map_or(LATER, |end| end.saturating_sub(now).max(1).unsigned_abs());
                let over = OverLimit {
                    what: "Budget used up",
                    status: 429,
                    kind: "insufficient_quota",
                    code: "budget_exceeded",
                    rule: "",
                    allows: spend.limit,
                    estimate: None,
                    retry_after,
                };
                (spend.rule(), over)
            }
            Failed::Take(Refusal { index, wait }) => {
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
                    estimate: (claim.dim.kind() == Kind::Reserve).then_some(claim.amount),
                    retry_after: seconds.ceil().max(1.0) as u64,
                };
                (claim.rule(), over)
            }
        };
        let rejection = Rejection::over_limit(&OverLimit { rule: &rule, ..over });
        let quota = match failed {
            Failed::Spent(index) if claims.spends[index].unit != Unit::Cost => {
                Some(claims.spends[index].end)
            }
            _ => None,
        };
        Denial { rejection, quota, rule }
    }

    /// Counts a refusal that was told to a client.
    pub fn count_refusal(&self, denial: &Denial) {
        self.shared.metrics.limits.refused.with_label_values(&[denial.rule.as_str()]).inc();
    }

    /// Shows how long a request has waited, and how that ended.
    pub fn waited(&self, since: Instant, result: &str) {
        let seconds = since.elapsed().as_secs_f64();
        self.shared.metrics.limits.waits.with_label_values(&[result]).observe(seconds);
    }

    /// Seconds until one who comes now would have a slot: as those who wait have seen slots become
    /// free, or as long as requests have lasted of late.
    fn slot_in(&self, bucket: u64, slots: u64) -> f64 {
        let duration = f64::from_bits(self.shared.duration.load(Ordering::Relaxed));
        let seen = self.shared.queue.outlook(bucket);
        seen.map_or(duration / slots as f64, |d| d.as_secs_f64()).min(LONGEST)
    }

    /// Where limits are counted, if that is in Redis.
    pub fn redis(&self) -> Option<&Arc<RedisCounter>> {
        self.redis.as_ref()
    }
}

fn counter(there: &SharedPlan, stores: &Stores, metrics: &Metrics) -> Arc<RedisCounter> {
    let settings = redis::Settings {
        prefix: there.prefix.clone(),
        ttl: there.ttl,
        timeout: there.timeout,
        lease: there.lease.map(|(share, lifetime)| redis::Lease { share, lifetime }),
    };
    RedisCounter::new(stores.redis(&there.server), settings, stores.handle(), metrics)
}

/// OpenAI's word for what was exceeded.
fn kind(dim: Dim) -> &'static str {
    match dim {
        Dim::RequestsPerSecond | Dim::RequestsPerMinute => "requests",
        Dim::Tokens | Dim::InputTokens | Dim::OutputTokens => "tokens",
        Dim::Concurrent => "concurrency",
    }
}
