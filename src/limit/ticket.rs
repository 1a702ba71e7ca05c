//! What a request holds that was let in, and how that ends.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use super::{
    claim::{Claims, Kind, Used},
    estimate::{self, Guess},
    limiter::{Limiter, Wish},
    redis::Held,
};
use crate::base::{TokenCounts, limits::Standings};

/// How much a request weighs in the average duration against those before it.
const WEIGHT: f64 = 0.1;

/// Who has taken what a request claims.
pub enum By {
    /// This process.
    Memory,
    /// Redis.
    Redis(Held),
    /// Nobody: Redis is away, and requests pass all the same.
    Nobody,
}

/// What a request came to, for its limits.
#[derive(Clone, Copy, Debug)]
pub enum Came {
    /// Nothing was generated, as far as anybody knows.
    Nothing,
    /// So many tokens.
    Tokens {
        /// The tokens.
        counts: TokenCounts,
        /// What they cost.
        cost: f64,
        /// What is taken of a balance.
        credit: f64,
        /// Where the number comes from.
        seen: Seen,
    },
}

/// Where a number of tokens comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// The engine told it, of a whole answer.
    Whole,
    /// The engine told it, of an answer that was broken off.
    Part,
    /// Nobody told it.
    Guessed,
}

/// What a request that was let in holds. It is given back once: when the request is settled, or
/// when it is dropped without that.
pub struct Ticket {
    limiter: Arc<Limiter>,
    claims: Claims,
    guess: Option<Guess>,
    bytes: usize,
    max_tokens: Option<u64>,
    since: Instant,
    /// Who holds it; nobody any more, once it is settled.
    by: Option<By>,
}

impl Ticket {
    /// What `by` holds for a request.
    pub fn new(limiter: &Arc<Limiter>, wish: &mut Wish, by: By) -> Self {
        Self {
            limiter: Arc::clone(limiter),
            claims: std::mem::take(&mut wish.claims),
            guess: wish.guess,
            bytes: wish.bytes,
            max_tokens: wish.max_tokens,
            since: Instant::now(),
            by: Some(by),
        }
    }

    /// How the limits of the request stand; `None` if clients are not told, or nobody has looked.
    pub fn standings(&self) -> Option<Standings> {
        let looked = !matches!(self.by, Some(By::Nobody));
        self.limiter.told(&self.claims).filter(|_| looked)
    }

    /// Ends what was held, and counts what the request came to.
    pub fn settle(mut self, model: &str, came: Came) {
        let used = match came {
            Came::Nothing => Used::default(),
            Came::Tokens { counts, cost, credit, seen } => {
                let whole = seen == Seen::Whole;
                if let Some(guess) = self.guess.filter(|_| seen != Seen::Guessed) {
                    estimate::observe(&self.limiter.shared.metrics, guess, counts, whole);
                    let estimates = &self.limiter.shared.estimates;
                    estimates.learn(model, self.bytes, counts, whole, self.max_tokens);
                }
                Used { input: counts.prompt, output: counts.completion, cost, credit }
            }
        };
        self.close(&used);
    }

    fn close(&mut self, used: &Used) {
        let Some(by) = self.by.take() else {
            return;
        };
        let shared = &self.limiter.shared;
        let takes = &self.claims.takes;
        let slots: Vec<u64> = self.claims.slots().collect();
        if !slots.is_empty() {
            let known = f64::from_bits(shared.duration.load(Ordering::Relaxed));
            let new = known + WEIGHT * (self.since.elapsed().as_secs_f64() - known);
            shared.duration.store(new.to_bits(), Ordering::Relaxed);
        }
        match by {
            By::Memory => {
                if takes.iter().any(|c| c.dim.kind() != Kind::Take) {
                    shared.table.settle(takes, |claim| used.of(claim.dim), shared.now());
                }
                shared.ledger.add(&self.claims.spends, used);
                self.tell_redis(used);
                shared.queue.released(slots.into_iter());
            }
            By::Redis(held) if slots.is_empty() => held.settle(used),
            By::Redis(held) => {
                let queue = Arc::clone(&shared.queue);
                // Who waits is woken when Redis has heard of it.
                held.then(move || queue.released(slots.into_iter())).settle(used);
            }
            By::Nobody => {
                self.tell_redis(used);
                shared.queue.released(slots.into_iter());
            }
        }
    }

    /// What was spent while Redis was away is spent there too.
    fn tell_redis(&self, used: &Used) {
        if let Some(redis) = self.limiter.redis() {
            redis.spend(&self.claims.spends, used);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.close(&Used::default());
    }
}
