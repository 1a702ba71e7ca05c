//! The leased mode: units that this replica has taken from Redis ahead of need.
//!
//! # How inexact it is
//!
//! Redis gives out no more than the limit. The unused units of a replica are never more than one
//! share of a bucket, and are given back when idle. So over any window all replicas together let
//! through no more than the limit (rate x time + capacity) plus one share per replica; in the long
//! run no more than the limit. For reservations, the unused parts of those that were held when the
//! window began are added, because they are used again. A request may be rejected while the last
//! share of a bucket is held by another replica, until that replica uses it or gives it back.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use tokio::sync::watch;

use super::{
    mode::Mode,
    script::{BucketRequest, BucketState, Refund},
    settings::Lease,
    sharded_map::{SHARDS, ShardedMap},
};
use crate::{
    base::lock,
    limit::{
        bucket::{Rate, SECOND, Ticks},
        claim::{Charge, Claim, ClaimKind, Dim, Shortfall},
    },
};

/// Largest number of buckets that are remembered.
const MOST: usize = 200_000;

/// Number of buckets that are compared when one must be removed.
const CANDIDATES: usize = 16;

/// The longest time for which a refusal applies to later requests.
const REFUSED: Duration = Duration::from_millis(100);

/// The units of all buckets that this replica has taken ahead.
pub struct Credits {
    lease: Lease,
    known: Mutex<CreditTable>,
}

#[derive(Default)]
struct CreditTable {
    credits: ShardedMap<u64, Credit>,
    /// Units of buckets that were removed from the table; they are given back.
    evicted: Vec<Refund>,
}

/// The units of one bucket.
struct Credit {
    name: String,
    rate: Rate,
    /// Units that may be used here; a negative number is a debt.
    units: i64,
    /// Units above a share, which are given back.
    back: i64,
    /// When units were last taken or added.
    touched: Instant,
    /// The bucket's state as last reported, and when.
    state: Option<(BucketState, Instant)>,
    /// A request for at least this many units need not ask Redis before this time.
    refused: Option<(u64, Instant)>,
    /// Set while a request asks Redis. When the sender is dropped, the waiting requests try again.
    asking: Option<watch::Sender<()>>,
}

/// What to do about a request.
pub enum CreditDecision {
    Refuse(Shortfall),
    /// Try again when the sender of this is dropped.
    Wait(watch::Receiver<()>),
    Proceed(Loan),
}

/// Units that were taken here for one request, and those that it must ask Redis for. Dropping it
/// undoes it.
pub struct Loan {
    credits: Arc<Credits>,
    taken: Vec<(u64, i64)>,
    requests: Vec<CreditRequest>,
}

/// Units that are not available here.
struct CreditRequest {
    id: u64,
    request: BucketRequest,
    /// Other requests wait for the answer.
    awaited: bool,
}

/// A reservation of units that this replica has taken ahead.
pub struct LocalReservation {
    id: u64,
    name: String,
    rate: Rate,
    dim: Dim,
    amount: u64,
}

impl LocalReservation {
    /// The reservations among the claims.
    pub fn all(claims: &[Claim]) -> Vec<Self> {
        let reserved = claims.iter().filter(|claim| claim.dim.kind() == ClaimKind::Reserve);
        let reserved = reserved.map(|claim| Self {
            id: claim.id,
            name: claim.name.clone(),
            rate: claim.rate,
            dim: claim.dim,
            amount: claim.amount,
        });
        reserved.collect()
    }
}

fn signed(units: u64) -> i64 {
    i64::try_from(units).unwrap_or(i64::MAX)
}

fn ticks(time: Duration) -> Ticks {
    (time.as_nanos() as Ticks).saturating_mul(SECOND / 1_000_000_000)
}

fn span(ticks: Ticks) -> Duration {
    Duration::from_nanos(ticks.div_ceil(SECOND / 1_000_000_000))
}

impl Credit {
    fn new(name: &str, rate: Rate, now: Instant) -> Self {
        Self {
            name: name.to_owned(),
            rate,
            units: 0,
            back: 0,
            touched: now,
            state: None,
            refused: None,
            asking: None,
        }
    }

    /// Adds units. At most a share stays here.
    fn add(&mut self, units: i64, share: u64) {
        self.units = self.units.saturating_add(units);
        let more = self.units.saturating_sub(signed(share)).max(0);
        self.units -= more;
        self.back = self.back.saturating_add(more);
    }

    /// Time to wait for a request that needs this many units; `None` if it may ask Redis.
    fn refuses(&self, need: u64, now: Instant) -> Option<Ticks> {
        let (least, until) = self.refused?;
        let (state, at) = self.state?;
        let wait = state.wait.saturating_sub(ticks(now.saturating_duration_since(at)));
        (need >= least && now < until && wait > 0).then_some(wait)
    }

    /// Records in the claim what is left: here, and in the bucket as last reported.
    fn observe(&self, claim: &mut Claim, now: Instant) {
        let Some((state, at)) = self.state else {
            (claim.left, claim.reset) = (claim.rate.capacity, 0);
            return;
        };
        let here = u64::try_from(self.units).unwrap_or(0);
        claim.left = state.left.saturating_add(here).min(claim.rate.capacity);
        claim.reset = state.reset.saturating_sub(ticks(now.saturating_duration_since(at)));
    }

    fn idle(&self, lifetime: Duration, now: Instant) -> bool {
        self.asking.is_none() && now.saturating_duration_since(self.touched) >= lifetime
    }

    /// The units to give back: those above a share, or all.
    fn surrender(&mut self, all: bool) -> Option<Refund> {
        let mut units = std::mem::take(&mut self.back);
        if all {
            units = units.saturating_add(std::mem::take(&mut self.units));
        }
        let refund = || Refund { name: self.name.clone(), rate: self.rate, units };
        (units != 0).then(refund)
    }
}

impl Credits {
    pub fn new(lease: Lease) -> Self {
        Self { lease, known: Mutex::default() }
    }

    /// How long idle units are kept.
    pub fn lifetime(&self) -> Duration {
        self.lease.lifetime
    }

    fn share(&self, rate: Rate) -> u64 {
        ((self.lease.share * rate.capacity as f64).ceil() as u64).clamp(1, rate.capacity)
    }

    /// Takes the units that are available here; the request then asks Redis for the missing ones. If
    /// it is not `patient`, it asks for exactly what it needs where another request is already asking.
    pub fn plan(
        self: &Arc<Self>,
        claims: &mut [Claim],
        patient: bool,
        now: Instant,
    ) -> CreditDecision {
        let mut known = lock(&self.known);
        let mut requests = Vec::new();
        let mut shortfall: Option<Shortfall> = None;
        let mut busy = None;
        for (index, claim) in claims.iter_mut().enumerate() {
            if claim.dim.kind() == ClaimKind::Slot {
                continue;
            }
            let credit = known.entry(claim.id, &claim.name, claim.rate, now);
            credit.rate = claim.rate;
            credit.observe(claim, now);
            let missing = signed(claim.amount).saturating_sub(credit.units);
            let Ok(least @ 1..) = u64::try_from(missing) else { continue };
            let mut request = self.request(index, claim, least, credit.units);
            if let Some(wait) = credit.refuses(request.need, now) {
                if shortfall.is_none_or(|known| wait > known.wait) {
                    shortfall = Some(Shortfall { index, wait });
                }
            } else {
                let awaited = credit.asking.is_none();
                match &credit.asking {
                    Some(asking) if patient => busy = Some(asking.subscribe()),
                    Some(_) => request.most = least,
                    None => {}
                }
                requests.push(CreditRequest { id: claim.id, request, awaited });
            }
        }
        if let Some(shortfall) = shortfall {
            return CreditDecision::Refuse(shortfall);
        }
        if let Some(busy) = busy {
            return CreditDecision::Wait(busy);
        }
        let mut taken = Vec::new();
        for (index, claim) in claims.iter_mut().enumerate() {
            let Some(credit) = known.credits.shard(&claim.id).get_mut(&claim.id) else { continue };
            credit.touched = now;
            if let Some(asked) = requests.iter().find(|asked| asked.request.index == index) {
                if asked.awaited {
                    credit.asking = Some(watch::Sender::default());
                }
                // These count towards what is asked for, so no other request may take them.
                taken.push((claim.id, std::mem::take(&mut credit.units)));
            } else if claim.dim.kind() != ClaimKind::Slot {
                credit.units -= signed(claim.amount);
                credit.observe(claim, now);
                taken.push((claim.id, signed(claim.amount)));
            }
        }
        CreditDecision::Proceed(Loan { credits: Arc::clone(self), taken, requests })
    }

    fn request(&self, index: usize, claim: &Claim, least: u64, here: i64) -> BucketRequest {
        // Units that are here count towards a claim above the bucket's capacity.
        let need = signed(claim.amount.min(claim.rate.capacity)).saturating_sub(here);
        BucketRequest {
            index,
            mode: if claim.dim.kind() == ClaimKind::Take { Mode::Take } else { Mode::Share },
            name: claim.name.clone(),
            rate: claim.rate,
            need: u64::try_from(need).unwrap_or(0).min(claim.rate.capacity),
            least,
            most: least.max(self.share(claim.rate)),
        }
    }

    /// Ends a reservation: unused units are added, excess usage becomes a debt.
    pub fn settle(&self, reserved: &LocalReservation, charge: &Charge, now: Instant) {
        let units = signed(reserved.amount).saturating_sub(signed(charge.units(reserved.dim)));
        if units == 0 {
            return;
        }
        let mut known = lock(&self.known);
        let credit = known.entry(reserved.id, &reserved.name, reserved.rate, now);
        credit.add(units, self.share(credit.rate));
        credit.touched = now;
    }

    /// Idle units and those above a share, to give back to Redis.
    pub fn idle(&self, now: Instant) -> Vec<Refund> {
        self.give_back(|credit| credit.idle(self.lease.lifetime, now))
    }

    /// All units, to give back to Redis at the end.
    pub fn all(&self) -> Vec<Refund> {
        self.give_back(|credit| credit.asking.is_none())
    }

    fn give_back(&self, over: impl Fn(&Credit) -> bool) -> Vec<Refund> {
        let mut refunds = std::mem::take(&mut lock(&self.known).evicted);
        for shard in 0..SHARDS {
            lock(&self.known).credits.retain(shard, |_, credit| {
                let over = over(credit);
                refunds.extend(credit.surrender(over));
                !over
            });
        }
        refunds
    }
}

impl CreditTable {
    fn entry(&mut self, id: u64, name: &str, rate: Rate, now: Instant) -> &mut Credit {
        let shard = self.credits.shard(&id);
        if shard.len() >= MOST / SHARDS && !shard.contains_key(&id) {
            // Of a few the one that was unused for longest. One for which requests wait must stay.
            let free = shard.iter().filter(|(_, credit)| credit.asking.is_none()).take(CANDIDATES);
            let oldest = free.min_by_key(|(_, credit)| credit.touched).map(|(id, _)| *id);
            if let Some(mut oldest) = oldest.and_then(|id| shard.remove(&id)) {
                self.evicted.extend(oldest.surrender(true));
            }
        }
        shard.entry(id).or_insert_with(|| Credit::new(name, rate, now))
    }
}

impl Loan {
    /// What to ask Redis for.
    pub fn requests(&self) -> impl Iterator<Item = &BucketRequest> {
        self.requests.iter().map(|asked| &asked.request)
    }

    /// Keeps the units: the request is admitted.
    pub fn keep(mut self) {
        self.taken.clear();
    }

    /// Applies the answer of Redis: whether it gave everything, and the states of the buckets in the
    /// order of [`Self::requests`] (empty if the call was abandoned before it reached Redis).
    pub fn answered(mut self, given: bool, states: &[BucketState], now: Instant) {
        {
            let mut known = lock(&self.credits.known);
            for (n, CreditRequest { id, request, awaited }) in self.requests.drain(..).enumerate() {
                let Some(credit) = known.credits.shard(&id).get_mut(&id) else { continue };
                if awaited {
                    credit.asking = None;
                }
                credit.touched = now;
                let Some(state) = states.get(n) else { continue };
                credit.state = Some((*state, now));
                credit.refused = None;
                if given {
                    let units = signed(state.given).saturating_sub(signed(request.least));
                    credit.add(units, self.credits.share(credit.rate));
                } else if state.wait > 0 {
                    credit.refused = Some((request.need, now + span(state.wait).min(REFUSED)));
                }
            }
        }
        if given {
            self.keep();
        }
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        if self.taken.is_empty() && self.requests.is_empty() {
            return;
        }
        let mut known = lock(&self.credits.known);
        for (id, units) in &self.taken {
            if let Some(credit) = known.credits.shard(id).get_mut(id) {
                let share = self.credits.share(credit.rate);
                credit.add(*units, share);
            }
        }
        for CreditRequest { id, .. } in self.requests.iter().filter(|asked| asked.awaited) {
            if let Some(credit) = known.credits.shard(id).get_mut(id) {
                credit.asking = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::base::limits::Scope;

    const RATE: Rate = Rate { interval: SECOND, capacity: 100 };
    const LIFETIME: Duration = Duration::from_secs(1);

    fn credits() -> Arc<Credits> {
        Arc::new(Credits::new(Lease { share: 0.1, lifetime: LIFETIME }))
    }

    fn claim(dim: Dim, amount: u64) -> [Claim; 1] {
        let (id, name, scope) = (1, "x".to_owned(), Scope::Key);
        [Claim { id, name, scope, dim, rate: RATE, amount, left: 0, reset: 0 }]
    }

    fn state(wait: Ticks, given: u64) -> [BucketState; 1] {
        [BucketState { wait, left: 7, reset: 90 * SECOND, given }]
    }

    fn ask(credits: &Arc<Credits>, amount: u64, now: Instant) -> Loan {
        match credits.plan(&mut claim(Dim::RequestsPerMinute, amount), true, now) {
            CreditDecision::Proceed(loan) => loan,
            CreditDecision::Wait(_) => panic!("someone is asking"),
            CreditDecision::Refuse(refusal) => panic!("{refusal:?}"),
        }
    }

    #[test]
    fn one_asks_and_others_wait_for_it() {
        let (credits, now) = (credits(), Instant::now());
        let mut wanted = claim(Dim::RequestsPerMinute, 1);
        let loan = ask(&credits, 1, now);
        let request = loan.requests().next().unwrap().clone();
        assert_eq!((request.need, request.least, request.most), (1, 1, 10));
        let CreditDecision::Wait(asking) = credits.plan(&mut wanted, true, now) else {
            panic!("two ask")
        };
        assert!(asking.has_changed().is_ok());
        loan.answered(true, &state(0, 10), now);
        assert!(asking.has_changed().is_err(), "it has not let go");
        for _ in 0..9 {
            let loan = ask(&credits, 1, now);
            assert_eq!(loan.requests().count(), 0);
            loan.keep();
        }
        // The next asks again; if that fails, another one may.
        assert_eq!(ask(&credits, 1, now).requests().count(), 1);
        assert_eq!(ask(&credits, 1, now).requests().count(), 1);
    }

    #[test]
    fn after_a_refusal_nobody_asks_for_as_much_for_a_while() {
        let (credits, now) = (credits(), Instant::now());
        ask(&credits, 5, now).answered(false, &state(SECOND, 0), now);
        let mut wanted = claim(Dim::RequestsPerMinute, 5);
        let CreditDecision::Refuse(refusal) = credits.plan(&mut wanted, true, now + REFUSED / 2)
        else {
            panic!("it is not refused")
        };
        assert_eq!(refusal, Shortfall { index: 0, wait: SECOND - SECOND / 20 });
        assert_eq!((wanted[0].left, wanted[0].reset), (7, 90 * SECOND - SECOND / 20));
        // Less may be there, and later all of it.
        drop(ask(&credits, 4, now + REFUSED / 2));
        let now = now + REFUSED;
        ask(&credits, 5, now).answered(false, &state(SECOND / 100, 0), now);
        drop(ask(&credits, 5, now + REFUSED / 10));
    }

    #[test]
    fn who_has_no_patience_asks_for_himself() {
        let (credits, now) = (credits(), Instant::now());
        let first = ask(&credits, 1, now);
        let mut wanted = claim(Dim::RequestsPerMinute, 2);
        let CreditDecision::Proceed(own) = credits.plan(&mut wanted, false, now) else {
            panic!("he waits")
        };
        let request = own.requests().next().unwrap();
        assert_eq!((request.need, request.least, request.most), (2, 2, 2));
        own.answered(true, &state(0, 2), now);
        // The first one still asks, and has not lost what it brings.
        let CreditDecision::Wait(asking) = credits.plan(&mut wanted, true, now) else {
            panic!("two ask")
        };
        first.answered(true, &state(0, 10), now);
        assert!(asking.has_changed().is_err());
        let refunds = credits.all();
        assert_eq!(refunds.iter().map(|refund| refund.units).collect::<Vec<_>>(), [9]);
    }

    #[test]
    fn nobody_waits_for_an_answer_that_says_nothing() {
        let (credits, now) = (credits(), Instant::now());
        ask(&credits, 1, now).answered(false, &[], now);
        assert_eq!(ask(&credits, 1, now).requests().count(), 1);
    }

    #[test]
    fn where_there_is_no_more_room_nothing_is_lost() {
        let (credits, now) = (credits(), Instant::now());
        let name = || "x".to_owned();
        let reserved = |id, amount| LocalReservation {
            id,
            name: name(),
            rate: RATE,
            dim: Dim::Tokens,
            amount,
        };
        let asking = ask(&credits, 5, now);
        let all = MOST as u64 + 20_000;
        for id in 2..all {
            // One unit is owed.
            let charge = Charge { output: 1, ..Charge::default() };
            credits.settle(&reserved(id, 0), &charge, now);
        }
        assert!(lock(&credits.known).credits.values().count() <= MOST);
        let CreditDecision::Wait(_) = credits.plan(&mut claim(Dim::Tokens, 5), true, now) else {
            panic!("it has been forgotten")
        };
        asking.answered(true, &state(0, 5), now);
        let owed: i64 = credits.all().iter().map(|refund| refund.units).sum();
        assert_eq!(owed, 2 - all as i64);
    }

    #[derive(Clone, Debug)]
    enum Event {
        Reserve(u64),
        /// Ends the oldest reservation with this amount.
        Settle(u64),
        /// A request that another limit refuses.
        Undo(u64),
        /// A lifetime passes.
        Idle,
    }

    fn events() -> impl Strategy<Value = Vec<Event>> {
        let event = prop_oneof![
            4 => (1..150u64).prop_map(Event::Reserve),
            3 => (0..200u64).prop_map(Event::Settle),
            1 => (1..50u64).prop_map(Event::Undo),
            1 => Just(Event::Idle),
        ];
        prop::collection::vec(event, 1..100)
    }

    proptest! {
        /// What Redis gave is here, was used, is reserved or went back; and of what is here no
        /// more than a share can be used.
        #[test]
        fn nothing_comes_from_nowhere(events in events()) {
            let (credits, mut now) = (credits(), Instant::now());
            let (mut given, mut used) = (0, 0);
            let mut reserved = std::collections::VecDeque::new();
            for event in events {
                match event {
                    Event::Reserve(n) => {
                        let mut wanted = claim(Dim::Tokens, n);
                        let CreditDecision::Proceed(loan) = credits.plan(&mut wanted, true, now) else {
                            panic!("nobody is asking")
                        };
                        let request = loan.requests().next().cloned();
                        let state = state(0, request.as_ref().map_or(0, |request| request.most));
                        given += signed(state[0].given);
                        loan.answered(true, &state[..request.iter().len()], now);
                        reserved.extend(LocalReservation::all(&wanted));
                    }
                    Event::Settle(n) => if let Some(reserved) = reserved.pop_front() {
                        credits.settle(&reserved, &Charge { output: n, ..Charge::default() }, now);
                        used += signed(n);
                    },
                    Event::Undo(n) => drop(credits.plan(&mut claim(Dim::Tokens, n), true, now)),
                    Event::Idle => {
                        now += LIFETIME;
                        given -= credits.idle(now).iter().map(|refund| refund.units).sum::<i64>();
                        prop_assert!(lock(&credits.known).credits.values().next().is_none());
                    }
                }
                let known = lock(&credits.known);
                let here: i64 = known.credits.values().map(|credit| credit.units + credit.back).sum();
                let reserved: i64 = reserved.iter().map(|r| signed(r.amount)).sum();
                prop_assert_eq!(given, here + reserved + used);
                prop_assert!(known.credits.values().all(|credit| credit.units <= 10));
            }
        }
    }
}
