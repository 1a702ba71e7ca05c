//! What an admitted request holds of its limits, and how that is settled.

use std::{sync::Arc, time::Instant};

use super::{
    admission::AdmissionRequest,
    claim::{Charge, ClaimKind, Claims},
    counters::Counters,
    estimate::{Averages, Estimate},
    redis::{RedisCounter, Reservation},
};
use crate::base::{TokenCounts, limits::Standings};

/// Where the claims of a request are held.
pub enum Holder {
    /// In this process.
    Memory,
    Redis(Reservation),
    /// Nowhere: Redis cannot be reached, and the configuration admits requests in that case.
    Unchecked,
}

/// What a request consumed of its limits.
#[derive(Clone, Copy, Debug)]
pub enum Consumption {
    /// As far as is known nothing was generated.
    Nothing,
    Tokens {
        counts: TokenCounts,
        cost: f64,
        /// Subtracted from a balance.
        credit: f64,
        source: CountSource,
    },
}

/// Where token counts come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CountSource {
    /// The engine reported them, for a complete answer.
    Complete,
    /// The engine reported them, for an answer that broke off.
    Partial,
    /// The gateway estimated them.
    Estimated,
}

/// What a ticket needs of its limiter.
pub struct TicketSource {
    pub counters: Arc<Counters>,
    pub redis: Option<Arc<RedisCounter>>,
    /// Whether clients get headers about their limits.
    pub headers: bool,
}

/// What an admitted request holds. It is given back once: when the request is settled, or when the
/// ticket is dropped before that.
pub struct Ticket {
    source: TicketSource,
    claims: Claims,
    estimate: Option<Estimate>,
    averages: Option<Arc<Averages>>,
    bytes: usize,
    max_tokens: Option<u64>,
    since: Instant,
    /// `None` once it is settled.
    holder: Option<Holder>,
}

impl Ticket {
    /// Takes over the claims of the request.
    pub fn new(source: TicketSource, request: &mut AdmissionRequest, holder: Holder) -> Self {
        Self {
            source,
            claims: std::mem::take(&mut request.claims),
            estimate: request.estimate,
            averages: request.averages.take(),
            bytes: request.bytes,
            max_tokens: request.max_tokens,
            since: Instant::now(),
            holder: Some(holder),
        }
    }

    /// The state of the request's limits; `None` if the configuration does not send it to clients or
    /// the limits were not checked.
    pub fn standings(&self) -> Option<Standings> {
        let checked = !matches!(self.holder, Some(Holder::Unchecked));
        (self.source.headers && checked).then(|| self.claims.standings())
    }

    /// Ends what is held, and counts what the request consumed.
    pub fn settle(mut self, model: &str, consumption: Consumption) {
        let charge = match consumption {
            Consumption::Nothing => Charge::default(),
            Consumption::Tokens { counts, cost, credit, source } => {
                let complete = source == CountSource::Complete;
                let reported = source != CountSource::Estimated;
                if let Some(estimate) = self.estimate.filter(|_| reported) {
                    let counters = &self.source.counters;
                    counters.accuracy.observe(estimate, counts, complete);
                    let (bytes, most) = (self.bytes, self.max_tokens);
                    match &self.averages {
                        Some(averages) => averages.learn(bytes, counts, complete, most),
                        None => counters.estimates.learn(model, bytes, counts, complete, most),
                    }
                }
                Charge { input: counts.prompt, output: counts.completion, cost, credit }
            }
        };
        self.close(&charge);
    }

    fn close(&mut self, charge: &Charge) {
        let Some(holder) = self.holder.take() else {
            return;
        };
        let counters = &self.source.counters;
        let takes = &self.claims.takes;
        let has_slots = self.claims.slots().next().is_some();
        if has_slots {
            counters.observe_slot(self.since);
        }
        match holder {
            Holder::Memory => {
                if takes.iter().any(|c| c.dim.kind() != ClaimKind::Take) {
                    counters.table.settle(takes, |claim| charge.units(claim.dim), counters.now());
                }
                counters.ledger.add(&self.claims.spends, charge);
                self.spend_in_redis(charge);
                counters.queue.released(self.claims.slots());
            }
            Holder::Redis(reservation) if !has_slots => reservation.settle(charge),
            Holder::Redis(reservation) => {
                let queue = Arc::clone(&counters.queue);
                let slots: Vec<u64> = self.claims.slots().collect();
                // Waiters are woken only when Redis has freed the slot.
                reservation.then(move || queue.released(slots.into_iter())).settle(charge);
            }
            Holder::Unchecked => {
                self.spend_in_redis(charge);
                counters.queue.released(self.claims.slots());
            }
        }
    }

    /// Amounts spent during an outage of Redis are counted there too.
    fn spend_in_redis(&self, charge: &Charge) {
        if let Some(redis) = &self.source.redis {
            redis.spend(&self.claims.spends, charge);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.close(&Charge::default());
    }
}
