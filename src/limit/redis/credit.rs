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
    collections::HashMap,
    sync::{Arc, Mutex, Weak},
    time::{Duration, Instant},
};

use tokio::sync::watch;

use super::{
    Action, BATCH, Lease, RedisCounter,
    script::{Give, Mode, Part, Told},
};
use crate::{
    base::lock,
    limit::{
        bucket::{Rate, SECOND, Ticks},
        claim::{Claim, Dim, Failed, Kind, Refusal, Spend, Unit, Used},
    },
};

/// Buckets, and amounts, of which something is known here.
const MOST: usize = 200_000;

/// Buckets that are compared when one must go.
const CANDIDATES: usize = 16;

/// For so long at most a refusal holds for those who come after.
const REFUSED: Duration = Duration::from_millis(100);

/// What this replica has of the buckets.
pub struct Credits {
    lease: Lease,
    known: Mutex<HashMap<u64, Credit>>,
    spent: Mutex<HashMap<String, Spent>>,
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

/// What was spent of an amount when it was last heard of.
struct Spent {
    start: i64,
    amount: f64,
    at: Instant,
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
    lacking: Vec<(u64, Part)>,
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

    fn give(&self, units: i64) -> Option<Give> {
        let give = || Give { name: self.name.clone(), rate: self.rate, units };
        (units != 0).then(give)
    }
}

impl Credits {
    /// None yet.
    pub fn new(lease: Lease) -> Self {
        Self { lease, known: Mutex::default(), spent: Mutex::default() }
    }

    fn share(&self, rate: Rate) -> u64 {
        ((self.lease.share * rate.capacity as f64).ceil() as u64).clamp(1, rate.capacity)
    }

    /// Takes what there is of the claims; of what is lacking this request is the one that asks.
    pub fn plan(self: &Arc<Self>, claims: &mut [Claim], now: Instant) -> Plan {
        let mut known = lock(&self.known);
        let mut lacking = Vec::new();
        let mut refusal: Option<Refusal> = None;
        let mut busy = None;
        for (index, claim) in claims.iter_mut().enumerate() {
            if claim.dim.kind() == Kind::Slot {
                continue;
            }
            let credit = entry(&mut known, claim, now);
            credit.rate = claim.rate;
            credit.look(claim, now);
            let missing = signed(claim.amount).saturating_sub(credit.units);
            let Ok(least @ 1..) = u64::try_from(missing) else { continue };
            let part = self.part(index, claim, least, credit.units);
            if let Some(wait) = credit.refuses(part.need, now) {
                if refusal.is_none_or(|known| wait > known.wait) {
                    refusal = Some(Refusal { index, wait });
                }
            } else if let Some(asking) = &credit.asking {
                busy = Some(asking.subscribe());
            } else {
                lacking.push((claim.id, part));
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
            let Some(credit) = known.get_mut(&claim.id) else { continue };
            credit.touched = now;
            if lacking.iter().any(|(_, part)| part.index == index) {
                credit.asking = Some(watch::Sender::default());
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
        let credit = known
            .entry(reserved.id)
            .or_insert_with(|| Credit::new(&reserved.name, reserved.rate, now));
        credit.bring(units, self.share(credit.rate));
        credit.touched = now;
    }

    /// What goes back to Redis: what lies idle, and what is more than a share.
    pub fn idle(&self, now: Instant) -> Vec<Give> {
        let lifetime = self.lease.lifetime;
        let mut gives = Vec::new();
        let mut known = lock(&self.known);
        known.retain(|_, credit| {
            let idle = credit.idle(lifetime, now);
            let units = std::mem::take(&mut credit.back) + if idle { credit.units } else { 0 };
            gives.extend(credit.give(units));
            !idle
        });
        let few = known.len() * 4 + 64;
        if known.capacity() > few {
            known.shrink_to(few / 2);
        }
        drop(known);
        lock(&self.spent).retain(|_, spent| spent.fresh(lifetime, now));
        gives
    }

    /// Whether the amounts are spent, as far as is known here; nothing if that is too long ago.
    pub fn spent(&self, spends: &[Spend], now: Instant) -> Option<Result<(), Failed>> {
        let known = lock(&self.spent);
        for (index, spend) in spends.iter().enumerate() {
            let spent = known.get(&spend.subject)?;
            if spent.start != spend.start || !spent.fresh(self.lease.lifetime, now) {
                return None;
            }
            if spent.amount >= spend.limit {
                return Some(Err(Failed::Spent(index)));
            }
        }
        Some(Ok(()))
    }

    /// Notes what was told of the amounts.
    pub fn note(&self, spends: &[Spend], told: &[f64], now: Instant) {
        let mut known = lock(&self.spent);
        for (spend, &amount) in spends.iter().zip(told) {
            if known.len() >= MOST {
                known.clear();
            }
            let spent = Spent { start: spend.start, amount, at: now };
            known.insert(spend.subject.clone(), spent);
        }
    }

    /// Adds what a request spent, before Redis tells it.
    pub fn spend(&self, spends: &[Spend], used: impl Fn(Unit) -> f64) {
        let mut known = lock(&self.spent);
        for spend in spends {
            if let Some(spent) = known.get_mut(&spend.subject)
                && spent.start == spend.start
            {
                spent.amount += used(spend.unit);
            }
        }
    }
}

impl Spent {
    fn fresh(&self, lifetime: Duration, now: Instant) -> bool {
        now.saturating_duration_since(self.at) < lifetime
    }
}

fn entry<'a>(known: &'a mut HashMap<u64, Credit>, claim: &Claim, now: Instant) -> &'a mut Credit {
    if known.len() >= MOST && !known.contains_key(&claim.id) {
        // Of a few the one that has been of no use for longest; what it has is lost.
        let free = known.iter().filter(|(_, credit)| credit.asking.is_none()).take(CANDIDATES);
        let oldest = free.min_by_key(|(_, credit)| credit.touched).map(|(id, _)| *id);
        if let Some(id) = oldest {
            known.remove(&id);
        }
    }
    known.entry(claim.id).or_insert_with(|| Credit::new(&claim.name, claim.rate, now))
}

impl Loan {
    /// What has to be asked for.
    pub fn parts(&self) -> impl Iterator<Item = &Part> {
        self.lacking.iter().map(|(_, part)| part)
    }

    /// The request has what it needs.
    pub fn keep(mut self) {
        self.taken.clear();
    }

    /// Redis has answered: whether it has given what was asked for, and what it told of each of
    /// [`Self::parts`].
    pub fn answered(mut self, given: bool, told: &[Told], now: Instant) {
        {
            let mut known = lock(&self.credits.known);
            for ((id, part), told) in self.lacking.drain(..).zip(told) {
                let Some(credit) = known.get_mut(&id) else { continue };
                credit.asking = None;
                credit.touched = now;
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
            if let Some(credit) = known.get_mut(id) {
                let share = self.credits.share(credit.rate);
                credit.bring(*units, share);
            }
        }
        for (id, _) in &self.lacking {
            if let Some(credit) = known.get_mut(id) {
                credit.asking = None;
            }
        }
    }
}

/// Gives back what lies idle, as long as someone has the counter.
pub async fn tidy(counter: Weak<RedisCounter>, pause: Duration) {
    let pause = pause.max(Duration::from_millis(5));
    loop {
        tokio::time::sleep(pause).await;
        let Some(counter) = counter.upgrade() else { return };
        let Some(credits) = &counter.credits else { return };
        for batch in credits.idle(Instant::now()).chunks(BATCH) {
            // Nobody knows whether it was heard: said twice, units would come from nowhere.
            if let Err(error) = counter.speaker.give(batch).await {
                counter.tell(Action::Settle, &error.why);
            }
        }
    }
}
