//! What one request holds in Redis, and how that ends.

use std::{sync::Arc, time::Instant};

use super::{credit::LocalReservation, holdings::Holding, replica::Replica};
use crate::limit::claim::{Charge, Claims, Spend};

/// What is held for one request. Dropping it settles it without a charge.
///
/// It keeps the replica's state alive: holds are renewed until they end.
pub struct Reservation {
    replica: Arc<Replica>,
    /// Held in Redis.
    pub(super) holding: Arc<Holding>,
    /// Held here, in the leased mode.
    local: Vec<LocalReservation>,
    spends: Vec<Spend>,
    then: Option<Then>,
    over: bool,
}

/// Called when Redis has ended the holds.
type Then = Box<dyn FnOnce() + Send + Sync>;

impl Reservation {
    /// The reservation for these claims. Nothing is held before Redis agrees.
    pub(super) fn draft(replica: &Arc<Replica>, claims: &Claims) -> Self {
        let leased = replica.credits.is_some();
        Self {
            replica: Arc::clone(replica),
            holding: replica.holdings.draft(&claims.takes, !leased),
            local: if leased { LocalReservation::all(&claims.takes) } else { Vec::new() },
            spends: claims.spends.clone(),
            then: None,
            over: false,
        }
    }

    /// Sets a function that is called when Redis has ended the holds, or can no longer be reached.
    pub fn then(mut self, then: impl FnOnce() + Send + Sync + 'static) -> Self {
        self.then = Some(Box::new(then));
        self
    }

    /// Ends the holds: frees slots, takes the used units in place of reservations, and adds the
    /// amounts spent. Returns at once.
    pub fn settle(mut self, charge: &Charge) {
        self.end(charge);
    }

    /// Nothing was held.
    pub(super) fn discard(mut self) {
        self.over = true;
    }

    /// Redis has not agreed; the loan of this call is undone. `sure`: Redis has done nothing, also
    /// where a connection broke before. Otherwise Redis is told that the holds have ended.
    pub(super) fn refused(mut self, sure: bool) {
        self.local.clear();
        self.over = sure;
    }

    fn end(&mut self, charge: &Charge) {
        if std::mem::replace(&mut self.over, true) {
            return;
        }
        if let Some(credits) = &self.replica.credits {
            let now = Instant::now();
            for reserved in &self.local {
                credits.settle(reserved, charge, now);
            }
            self.replica.amounts.add(&self.spends, charge);
        }
        self.replica.holdings.end(&self.holding);
        let mut spends = std::mem::take(&mut self.spends);
        // One NaN would make the stored amount NaN for ever.
        spends.retain(|spend| {
            let amount = charge.amount(spend.unit);
            amount != 0.0 && amount.is_finite()
        });
        let then = self.then.take();
        if spends.is_empty() && self.holding.holds.is_empty() {
            if let Some(then) = then {
                then();
            }
            return;
        }
        let (replica, holding, charge) =
            (Arc::clone(&self.replica), Arc::clone(&self.holding), *charge);
        let pending = replica.pending_call();
        self.replica.runtime.spawn(async move {
            replica.settle(&holding, &spends, &charge).await;
            drop(pending);
            if let Some(then) = then {
                then();
            }
        });
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.end(&Charge::default());
    }
}
