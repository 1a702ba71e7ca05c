//! What one request holds, and how that ends.

use std::{sync::Arc, time::Instant};

use super::{
    Pending, RedisCounter,
    credit::Reserved,
    holdings::{self, Holding},
};
use crate::limit::claim::{Claims, Spend, Used};

/// What is held for one request. If nobody settles it, the request came to nothing.
///
/// It keeps the counter alive: what is held is renewed until it ends.
pub struct Held {
    counter: Arc<RedisCounter>,
    /// What Redis holds.
    pub(super) holding: Arc<Holding>,
    reserved: Vec<Reserved>,
    spends: Vec<Spend>,
    then: Option<Then>,
    over: bool,
}

/// What is done when Redis has heard that it has ended.
type Then = Box<dyn FnOnce() + Send + Sync>;

impl Held {
    /// What will be held for the claims. Nothing is, before Redis says so.
    pub(super) fn draft(counter: &Arc<RedisCounter>, claims: &Claims) -> Self {
        let leased = counter.credits.is_some();
        Self {
            counter: Arc::clone(counter),
            holding: counter.holdings.draft(&claims.takes, !leased),
            reserved: if leased { Reserved::of(&claims.takes) } else { Vec::new() },
            spends: claims.spends.clone(),
            then: None,
            over: false,
        }
    }

    /// Does this when Redis has heard that it has ended, or can no longer be told.
    pub fn then(mut self, then: impl FnOnce() + Send + Sync + 'static) -> Self {
        self.then = Some(Box::new(then));
        self
    }

    /// Ends it: slots are free, of reservations as much is taken as was used, what was spent is
    /// added. Returns at once.
    pub fn settle(mut self, used: &Used) {
        self.end(used);
    }

    /// Nothing was held.
    pub(super) fn forget(mut self) {
        self.over = true;
    }

    /// Redis has not said yes; the loan that it was asked for is undone. Unless it is sure that it
    /// did nothing, also when a connection broke before, it is told that this has ended.
    pub(super) fn refused(mut self, sure: bool) {
        self.reserved.clear();
        self.over = sure;
    }

    fn end(&mut self, used: &Used) {
        if std::mem::replace(&mut self.over, true) {
            return;
        }
        if let Some(credits) = &self.counter.credits {
            let now = Instant::now();
            for reserved in &self.reserved {
                credits.settle(reserved, used, now);
            }
            self.counter.amounts.add(&self.spends, used);
        }
        self.counter.holdings.end(&self.holding);
        let mut spends = std::mem::take(&mut self.spends);
        // A number that is none would make the amount none for ever.
        spends.retain(|spend| {
            let spent = used.spent(spend.unit);
            spent != 0.0 && spent.is_finite()
        });
        let then = self.then.take();
        if spends.is_empty() && self.holding.holds.is_empty() {
            if let Some(then) = then {
                then();
            }
            return;
        }
        let (counter, holding, used) =
            (Arc::clone(&self.counter), Arc::clone(&self.holding), *used);
        let pending = Pending::new(&counter.pending);
        self.counter.runtime.spawn(async move {
            holdings::settle(&counter, &holding, &spends, &used).await;
            drop(pending);
            if let Some(then) = then {
                then();
            }
        });
    }
}

impl RedisCounter {
    /// Counts what was spent while others decided. Returns at once; it is tried again as long as what
    /// is held would last.
    pub fn spend(self: &Arc<Self>, spends: &[Spend], used: &Used) {
        if !spends.is_empty() {
            let claims = Claims { takes: Vec::new(), spends: spends.to_vec() };
            Held::draft(self, &claims).settle(used);
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.end(&Used::default());
    }
}
