//! The leased mode: units that this replica has taken from Redis ahead of need.
//!
//! # How far off it is
//!
//! Redis lets go of no more than the limit. What a replica has taken and not yet given away is
//! never more than one share of a bucket, and goes back when it lies idle. So over any window all
//! replicas together let pass no more than the limit (rate x time + capacity) and one share for
//! each replica; in the long run no more than the limit. Of reservations the unused parts of those
//! that were under way when the window began come on top, because they are given away once more.
//! And a request may be refused while the last share of a bucket lies with another replica, until
//! that has used it or given it back.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use tokio::sync::watch;

use super::{
    Lease,
    script::{Give, Mode, Part, Told},
    slices::{SLICES, Slices},
};
use crate::{
    base::lock,
    limit::{
        bucket::{Rate, SECOND, Ticks},
        claim::{Claim, Dim, Kind, Refusal, Used},
    },
};

/// Buckets of which something is known here.
const MOST: usize = 200_000;

/// Buckets that are compared when one must go.
const CANDIDATES: usize = 16;

/// For so long at most a refusal holds for those who come after.
const REFUSED: Duration = Duration::from_millis(100);

/// What this replica has of the buckets.
pub struct Credits {
    lease: Lease,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    credits: Slices<u64, Credit>,
    /// What was here of buckets for which there was no more room: it goes back.
    gone: Vec<Give>,
}

/// What it has of one.
struct Credit {
    name: String,
    rate: Rate,
    /// Units that may be given away here; fewer than none are owed.
    units: i64,
    /// Units above a share, which go back.
    back: i64,
    /// When something was last taken from here, or brought.
    touched: Instant,
    /// What was told of the bucket last, and when.
    told: Option<(Told, Instant)>,
    /// Who needs as much as this, or more, need not ask until then.
    refused: Option<(u64, Instant)>,
    /// Someone is asking. When this goes, those who wait look again.
    asking: Option<watch::Sender<()>>,
}

/// What to do about a request.
pub enum Plan {
    /// Refuse it.
    Refuse(Refusal),
    /// Look again when this one has been answered.
    Wait(watch::Receiver<()>),
    /// Go on with this.
    Go(Loan),
}

/// Units that were taken here for one request, and what it has to ask for. Undone when dropped.
pub struct Loan {
    credits: Arc<Credits>,
    taken: Vec<(u64, i64)>,
    lacking: Vec<Lack>,
}

/// Units that are not here.
struct Lack {
    id: u64,
    part: Part,
    /// Others wait for the answer.
    awaited: bool,
}

/// A reservation that was made here.
pub struct Reserved {
    id: u64,
    name: String,
    rate: Rate,
    dim: Dim,
    amount: u64,
}

impl Reserved {
    /// Those among the claims.
    pub fn of(claims: &[Claim]) -> Vec<Self> {
        let reserved = claims.iter().filter(|claim| claim.dim.kind() == Kind::Reserve);
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
            told: None,
            refused: None,
            asking: None,
        }
    }

    /// Brings units. No more than a share stays here.
    fn bring(&mut self, units: i64, share: u64) {
        self.units = self.units.saturating_add(units);
        let more = self.units.saturating_sub(signed(share)).max(0);
        self.units -= more;
        self.back = self.back.saturating_add(more);
    }

    /// How long someone has to wait who needs so much; nothing if he may ask.
    fn refuses(&self, need: u64, now: Instant) -> Option<Ticks> {
        let (least, until) = self.refused?;
        let (told, at) = self.told?;
        let wait = told.wait.saturating_sub(ticks(now.saturating_duration_since(at)));
        (need >= least && now < until && wait > 0).then_some(wait)
    }

    /// Notes in the claim what is left: here, and by what was told last.
    fn look(&self, claim: &mut Claim, now: Instant) {
        let Some((told, at)) = self.told else {
            (claim.left, claim.reset) = (claim.rate.capacity, 0);
            return;
        };
        let here = u64::try_from(self.units).unwrap_or(0);
        claim.left = told.left.saturating_add(here).min(claim.rate.capacity);
        claim.reset = told.reset.saturating_sub(ticks(now.saturating_duration_since(at)));
    }

    fn idle(&self, lifetime: Duration, now: Instant) -> bool {
        self.asking.is_none() && now.saturating_duration_since(self.touched) >= lifetime
    }

    /// What goes back: what is more than a share, or all.
    fn surrender(&mut self, all: bool) -> Option<Give> {
        let mut units = std::mem::take(&mut self.back);
        if all {
            units = units.saturating_add(std::mem::take(&mut self.units));
        }
        let give = || Give { name: self.name.clone(), rate: self.rate, units };
        (units != 0).then(give)
    }
}

impl Credits {
    /// None yet.
    pub fn new(lease: Lease) -> Self {
        Self { lease, known: Mutex::default() }
    }

    /// How long what lies idle is kept.
    pub fn lifetime(&self) -> Duration {
        self.lease.lifetime
    }

    fn share(&self, rate: Rate) -> u64 {
        ((self.lease.share * rate.capacity as f64).ceil() as u64).clamp(1, rate.capacity)
    }

    /// Takes what there is of the claims; of what is lacking this request is the one that asks. If
    /// it is not `patient`, it asks for just what it needs where another one is asking already.
    pub fn plan(self: &Arc<Self>, claims: &mut [Claim], patient: bool, now: Instant) -> Plan {
        let mut known = lock(&self.known);
        let mut lacking = Vec::new();
        let mut refusal: Option<Refusal> = None;
        let mut busy = None;
        for (index, claim) in claims.iter_mut().enumerate() {
            if claim.dim.kind() == Kind::Slot {
                continue;
            }
            let credit = known.entry(claim.id, &claim.name, claim.rate, now);
            credit.rate = claim.rate;
            credit.look(claim, now);
            let missing = signed(claim.amount).saturating_sub(credit.units);
            let Ok(least @ 1..) = u64::try_from(missing) else { continue };
            let mut part = self.part(index, claim, least, credit.units);
            if let Some(wait) = credit.refuses(part.need, now) {
                if refusal.is_none_or(|known| wait > known.wait) {
                    refusal = Some(Refusal { index, wait });
                }
            } else {
                let awaited = credit.asking.is_none();
                match &credit.asking {
                    Some(asking) if patient => busy = Some(asking.subscribe()),
                    Some(_) => part.most = least,
                    None => {}
                }
                lacking.push(Lack { id: claim.id, part, awaited });
            }
        }
        if let Some(refusal) = refusal {
            return Plan::Refuse(refusal);
        }
        if let Some(busy) = busy {
            return Plan::Wait(busy);
        }
        let mut taken = Vec::new();
        for (index, claim) in claims.iter_mut().enumerate() {
            let Some(credit) = known.credits.of(&claim.id).get_mut(&claim.id) else { continue };
            credit.touched = now;
            if let Some(lack) = lacking.iter().find(|lack| lack.part.index == index) {
                if lack.awaited {
                    credit.asking = Some(watch::Sender::default());
                }
                // Counted on in what is asked for: nobody else may take it meanwhile.
                taken.push((claim.id, std::mem::take(&mut credit.units)));
            } else if claim.dim.kind() != Kind::Slot {
                credit.units -= signed(claim.amount);
                credit.look(claim, now);
                taken.push((claim.id, signed(claim.amount)));
            }
        }
        Plan::Go(Loan { credits: Arc::clone(self), taken, lacking })
    }

    fn part(&self, index: usize, claim: &Claim, least: u64, here: i64) -> Part {
        // What is here counts towards a claim for more than the bucket can hold.
        let need = signed(claim.amount.min(claim.rate.capacity)).saturating_sub(here);
        Part {
            index,
            mode: if claim.dim.kind() == Kind::Take { Mode::Take } else { Mode::Share },
            name: claim.name.clone(),
            rate: claim.rate,
            need: u64::try_from(need).unwrap_or(0).min(claim.rate.capacity),
            least,
            most: least.max(self.share(claim.rate)),
        }
    }

    /// Ends a reservation: what was not used is brought back, what was used more is owed.
    pub fn settle(&self, reserved: &Reserved, used: &Used, now: Instant) {
        let units = signed(reserved.amount).saturating_sub(signed(used.of(reserved.dim)));
        if units == 0 {
            return;
        }
        let mut known = lock(&self.known);
        let credit = known.entry(reserved.id, &reserved.name, reserved.rate, now);
        credit.bring(units, self.share(credit.rate));
        credit.touched = now;
    }

    /// What goes back to Redis: what lies idle, and what is more than a share.
    pub fn idle(&self, now: Instant) -> Vec<Give> {
        self.give_back(|credit| credit.idle(self.lease.lifetime, now))
    }

    /// All that is here, for the end: it goes back to Redis.
    pub fn all(&self) -> Vec<Give> {
        self.give_back(|credit| credit.asking.is_none())
    }

    fn give_back(&self, over: impl Fn(&Credit) -> bool) -> Vec<Give> {
        let mut gives = std::mem::take(&mut lock(&self.known).gone);
        for slice in 0..SLICES {
            lock(&self.known).credits.retain(slice, |_, credit| {
                let over = over(credit);
                gives.extend(credit.surrender(over));
                !over
            });
        }
        gives
    }
}

impl Known {
    fn entry(&mut self, id: u64, name: &str, rate: Rate, now: Instant) -> &mut Credit {
        let slice = self.credits.of(&id);
        if slice.len() >= MOST / SLICES && !slice.contains_key(&id) {
            // Of a few the one that has been of no use for longest. Whoever waits for an answer
            // must find it.
            let free = slice.iter().filter(|(_, credit)| credit.asking.is_none()).take(CANDIDATES);
            let oldest = free.min_by_key(|(_, credit)| credit.touched).map(|(id, _)| *id);
            if let Some(mut oldest) = oldest.and_then(|id| slice.remove(&id)) {
                self.gone.extend(oldest.surrender(true));
            }
        }
        slice.entry(id).or_insert_with(|| Credit::new(name, rate, now))
    }
}

impl Loan {
    /// What has to be asked for.
    pub fn parts(&self) -> impl Iterator<Item = &Part> {
        self.lacking.iter().map(|lack| &lack.part)
    }

    /// The request has what it needs.
    pub fn keep(mut self) {
        self.taken.clear();
    }

    /// Redis has answered: whether it has given what was asked for, and what it told of each of
    /// [`Self::parts`]: nothing if it was given up before Redis heard of it.
    pub fn answered(mut self, given: bool, told: &[Told], now: Instant) {
        {
            let mut known = lock(&self.credits.known);
            for (n, Lack { id, part, awaited }) in self.lacking.drain(..).enumerate() {
                let Some(credit) = known.credits.of(&id).get_mut(&id) else { continue };
                if awaited {
                    credit.asking = None;
                }
                credit.touched = now;
                let Some(told) = told.get(n) else { continue };
                credit.told = Some((*told, now));
                credit.refused = None;
                if given {
                    let units = signed(told.given).saturating_sub(signed(part.least));
                    credit.bring(units, self.credits.share(credit.rate));
                } else if told.wait > 0 {
                    credit.refused = Some((part.need, now + span(told.wait).min(REFUSED)));
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
        if self.taken.is_empty() && self.lacking.is_empty() {
            return;
        }
        let mut known = lock(&self.credits.known);
        for (id, units) in &self.taken {
            if let Some(credit) = known.credits.of(id).get_mut(id) {
                let share = self.credits.share(credit.rate);
                credit.bring(*units, share);
            }
        }
        for lack in self.lacking.iter().filter(|lack| lack.awaited) {
            if let Some(credit) = known.credits.of(&lack.id).get_mut(&lack.id) {
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

    fn told(wait: Ticks, given: u64) -> [Told; 1] {
        [Told { wait, left: 7, reset: 90 * SECOND, given }]
    }

    fn ask(credits: &Arc<Credits>, amount: u64, now: Instant) -> Loan {
        match credits.plan(&mut claim(Dim::RequestsPerMinute, amount), true, now) {
            Plan::Go(loan) => loan,
            Plan::Wait(_) => panic!("someone is asking"),
            Plan::Refuse(refusal) => panic!("{refusal:?}"),
        }
    }

    #[test]
    fn one_asks_and_others_wait_for_it() {
        let (credits, now) = (credits(), Instant::now());
        let mut wanted = claim(Dim::RequestsPerMinute, 1);
        let loan = ask(&credits, 1, now);
        let part = loan.parts().next().unwrap().clone();
        assert_eq!((part.need, part.least, part.most), (1, 1, 10));
        let Plan::Wait(asking) = credits.plan(&mut wanted, true, now) else { panic!("two ask") };
        assert!(asking.has_changed().is_ok());
        loan.answered(true, &told(0, 10), now);
        assert!(asking.has_changed().is_err(), "it has not let go");
        for _ in 0..9 {
            let loan = ask(&credits, 1, now);
            assert_eq!(loan.parts().count(), 0);
            loan.keep();
        }
        // The next asks again; if that fails, another one may.
        assert_eq!(ask(&credits, 1, now).parts().count(), 1);
        assert_eq!(ask(&credits, 1, now).parts().count(), 1);
    }

    #[test]
    fn after_a_refusal_nobody_asks_for_as_much_for_a_while() {
        let (credits, now) = (credits(), Instant::now());
        ask(&credits, 5, now).answered(false, &told(SECOND, 0), now);
        let mut wanted = claim(Dim::RequestsPerMinute, 5);
        let Plan::Refuse(refusal) = credits.plan(&mut wanted, true, now + REFUSED / 2) else {
            panic!("it is not refused")
        };
        assert_eq!(refusal, Refusal { index: 0, wait: SECOND - SECOND / 20 });
        assert_eq!((wanted[0].left, wanted[0].reset), (7, 90 * SECOND - SECOND / 20));
        // Less may be there, and later all of it.
        drop(ask(&credits, 4, now + REFUSED / 2));
        let now = now + REFUSED;
        ask(&credits, 5, now).answered(false, &told(SECOND / 100, 0), now);
        drop(ask(&credits, 5, now + REFUSED / 10));
    }

    #[test]
    fn who_has_no_patience_asks_for_himself() {
        let (credits, now) = (credits(), Instant::now());
        let first = ask(&credits, 1, now);
        let mut wanted = claim(Dim::RequestsPerMinute, 2);
        let Plan::Go(own) = credits.plan(&mut wanted, false, now) else { panic!("he waits") };
        let part = own.parts().next().unwrap();
        assert_eq!((part.need, part.least, part.most), (2, 2, 2));
        own.answered(true, &told(0, 2), now);
        // The first one still asks, and has not lost what it brings.
        let Plan::Wait(asking) = credits.plan(&mut wanted, true, now) else { panic!("two ask") };
        first.answered(true, &told(0, 10), now);
        assert!(asking.has_changed().is_err());
        let gives = credits.all();
        assert_eq!(gives.iter().map(|give| give.units).collect::<Vec<_>>(), [9]);
    }

    #[test]
    fn nobody_waits_for_an_answer_that_says_nothing() {
        let (credits, now) = (credits(), Instant::now());
        ask(&credits, 1, now).answered(false, &[], now);
        assert_eq!(ask(&credits, 1, now).parts().count(), 1);
    }

    #[test]
    fn where_there_is_no_more_room_nothing_is_lost() {
        let (credits, now) = (credits(), Instant::now());
        let name = || "x".to_owned();
        let reserved =
            |id, amount| Reserved { id, name: name(), rate: RATE, dim: Dim::Tokens, amount };
        let asking = ask(&credits, 5, now);
        let all = MOST as u64 + 20_000;
        for id in 2..all {
            // One unit is owed.
            let used = Used { output: 1, ..Used::default() };
            credits.settle(&reserved(id, 0), &used, now);
        }
        assert!(lock(&credits.known).credits.values().count() <= MOST);
        let Plan::Wait(_) = credits.plan(&mut claim(Dim::Tokens, 5), true, now) else {
            panic!("it has been forgotten")
        };
        asking.answered(true, &told(0, 5), now);
        let owed: i64 = credits.all().iter().map(|give| give.units).sum();
        assert_eq!(owed, 2 - all as i64);
    }

    #[derive(Clone, Debug)]
    enum Event {
        Reserve(u64),
        /// Ends the oldest reservation with so much.
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
                        let Plan::Go(loan) = credits.plan(&mut wanted, true, now) else {
                            panic!("nobody is asking")
                        };
                        let part = loan.parts().next().cloned();
                        let told = told(0, part.as_ref().map_or(0, |part| part.most));
                        given += signed(told[0].given);
                        loan.answered(true, &told[..part.iter().len()], now);
                        reserved.extend(Reserved::of(&wanted));
                    }
                    Event::Settle(n) => if let Some(reserved) = reserved.pop_front() {
                        credits.settle(&reserved, &Used { output: n, ..Used::default() }, now);
                        used += signed(n);
                    },
                    Event::Undo(n) => drop(credits.plan(&mut claim(Dim::Tokens, n), true, now)),
                    Event::Idle => {
                        now += LIFETIME;
                        given -= credits.idle(now).iter().map(|give| give.units).sum::<i64>();
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
