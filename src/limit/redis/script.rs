//! What is said to Redis, and what it answers: the keys and words of the scripts.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use super::holdings::Holding;
use crate::{
    limit::{
        bucket::{Rate, SECOND, Ticks},
        claim::{Claim, Claims, Failed, Kind, Refusal, Spend, Used},
    },
    store::redis::{Redis, Script, ScriptError},
};

static TAKE: Script = Script::new(concat!(include_str!("bucket.lua"), include_str!("take.lua")));
static SETTLE: Script =
    Script::new(concat!(include_str!("bucket.lua"), include_str!("settle.lua")));
static RENEW: Script = Script::new(concat!(include_str!("bucket.lua"), include_str!("renew.lua")));

const MICROSECOND: Ticks = SECOND / 1_000_000;

/// For so long Redis remembers that a lease has ended, and longer while it is tried again to tell
/// it. What was sent before and comes later than this holds something for nobody; that ends by
/// itself.
const MARKED: Duration = Duration::from_secs(10);

/// How the scripts count something; the numbers are in `bucket.lua`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Units are taken.
    Take = 1,
    /// Units are held.
    Reserve = 2,
    /// A place is held.
    Slot = 3,
    /// Units are taken from a bucket of which others may hold some.
    Share = 4,
    /// Units are given back.
    Give = 5,
}

impl Mode {
    /// How a claim is counted if Redis is asked for exactly this.
    pub fn exact(claim: &Claim) -> Self {
        match claim.dim.kind() {
            Kind::Take => Self::Take,
            Kind::Reserve => Self::Reserve,
            Kind::Slot => Self::Slot,
        }
    }

    fn has_bucket(self) -> bool {
        self != Self::Slot
    }

    fn has_holds(self) -> bool {
        !matches!(self, Self::Take | Self::Give)
    }
}

/// What is asked of one bucket.
#[derive(Clone, Debug)]
pub struct Part {
    /// The number of the claim.
    pub index: usize,
    /// How it is counted.
    pub mode: Mode,
    /// Which bucket.
    pub name: String,
    /// How it fills.
    pub rate: Rate,
    /// Units that must be there.
    pub need: u64,
    /// Units that are given then, also if they are more.
    pub least: u64,
    /// Units that are given if they are there.
    pub most: u64,
}

impl Part {
    /// The claim itself.
    pub fn exact(index: usize, claim: &Claim) -> Self {
        Self {
            index,
            mode: Mode::exact(claim),
            name: claim.name.clone(),
            rate: claim.rate,
            need: claim.amount.min(claim.rate.capacity),
            least: claim.amount,
            most: claim.amount,
        }
    }
}

/// What is asked for one request.
pub struct Question {
    /// Of buckets.
    pub parts: Vec<Part>,
    /// Of amounts.
    pub spends: Vec<Spend>,
}

/// What is told of one bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// How long until it would give; zero if it does. Of a slot that is not free not a time.
    pub wait: Ticks,
    /// Units left.
    pub left: u64,
    /// Time until it is full.
    pub reset: Ticks,
    /// Units given.
    pub given: u64,
}

/// The answer.
#[derive(Debug, PartialEq)]
pub struct Answer {
    /// Of each part.
    pub parts: Vec<Told>,
    /// Of each amount, how much is spent.
    pub spent: Vec<f64>,
    /// Whether all of it is given.
    pub fits: bool,
}

impl Answer {
    fn read((fits, flat, spent): (i64, Vec<i64>, Vec<f64>)) -> Self {
        let ticks = |us: i64| u64::try_from(us).unwrap_or(0).saturating_mul(MICROSECOND);
        let units = |n: i64| u64::try_from(n).unwrap_or(0);
        let told = |chunk: &[i64]| match *chunk {
            [wait, left, reset, given] => Told {
                wait: ticks(wait),
                left: units(left),
                reset: ticks(reset),
                given: units(given),
            },
            _ => Told { wait: 0, left: 0, reset: 0, given: 0 },
        };
        Self { parts: flat.chunks(4).map(told).collect(), spent, fits: fits == 1 }
    }

    /// What failed: of several buckets the one that takes longest, then an amount, then a slot.
    pub fn failed(&self, question: &Question) -> Option<Failed> {
        if self.fits {
            return None;
        }
        let short =
            || question.parts.iter().zip(&self.parts).filter(|(_, told)| told.wait > 0).rev();
        let longest = short()
            .filter(|(part, _)| part.mode != Mode::Slot)
            .max_by_key(|(_, told)| told.wait)
            .map(|(part, told)| Failed::Take(Refusal { index: part.index, wait: told.wait }));
        let limits = question.spends.iter().zip(&self.spent);
        let spent = || limits.clone().position(|(spend, spent)| *spent >= spend.limit);
        let slot = || short().next_back().map(|(part, _)| part.index);
        longest
            .or_else(|| spent().map(Failed::Spent))
            .or_else(|| slot().map(|index| Failed::Take(Refusal { index, wait: 0 })))
            // A question that was given up before it was heard: nobody reads this.
            .or(Some(Failed::Take(Refusal { index: 0, wait: 0 })))
    }

    /// Notes in the claims what is left.
    pub fn tell(&self, question: &Question, claims: &mut Claims) {
        for (part, told) in question.parts.iter().zip(&self.parts) {
            let claim = &mut claims.takes[part.index];
            (claim.left, claim.reset) = (told.left, told.reset);
        }
    }
}

/// Units that go back into a bucket, or that it is owed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Give {
    /// Which bucket.
    pub name: String,
    /// How it fills.
    pub rate: Rate,
    /// How many; fewer than none are owed.
    pub units: i64,
}

/// Keys and words of one call.
#[derive(Default)]
struct Call {
    keys: Vec<String>,
    words: Vec<String>,
}

impl Call {
    fn say(&mut self, word: impl ToString) {
        self.words.push(word.to_string());
    }

    fn rate(&mut self, mode: Mode, rate: Rate) {
        self.say(mode as u8);
        self.say(rate.interval as f64 / MICROSECOND as f64);
        self.say(rate.capacity);
    }
}

/// Speaks with one server.
pub struct Speaker {
    server: Arc<Redis>,
    prefix: String,
    /// Milliseconds that holds last.
    ttl: u128,
    trips: AtomicU64,
}

impl Speaker {
    /// Names in Redis begin with `prefix`.
    pub fn new(server: Arc<Redis>, prefix: String, ttl: Duration) -> Self {
        Self { server, prefix, ttl: ttl.as_millis().max(1), trips: AtomicU64::new(0) }
    }

    /// Connections to the server.
    pub fn connections(&self) -> usize {
        self.server.connections()
    }

    /// How often Redis has been asked.
    pub fn trips(&self) -> u64 {
        self.trips.load(Ordering::Relaxed)
    }

    // A caller chooses parts of the names of buckets: what kind of key it is stands before them.

    fn bucket(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn holds(&self, name: &str) -> String {
        format!("{}held/{name}", self.prefix)
    }

    fn spent(&self, subject: &str) -> String {
        format!("{}spent/{subject}", self.prefix)
    }

    fn mark(&self, lease: &str) -> String {
        format!("{}ended/{lease}", self.prefix)
    }

    fn name(&self, call: &mut Call, mode: Mode, name: &str) {
        if mode.has_bucket() {
            call.keys.push(self.bucket(name));
        }
        if mode.has_holds() {
            call.keys.push(self.holds(name));
        }
    }

    /// Asks for all that a request claims.
    pub async fn take(&self, lease: &Holding, question: &Question) -> Result<Answer, ScriptError> {
        let mut call = Call::default();
        call.keys.push(self.mark(&lease.id));
        // Who holds nothing need not be told from others.
        call.say(if lease.holds.is_empty() { "" } else { &lease.id });
        call.say(self.ttl);
        call.say(question.parts.len());
        call.say(question.spends.len());
        for part in &question.parts {
            self.name(&mut call, part.mode, &part.name);
            call.rate(part.mode, part.rate);
            call.say(part.need);
            call.say(part.least);
            call.say(part.most);
        }
        for spend in &question.spends {
            call.keys.push(self.spent(&spend.subject));
            call.say(spend.start);
            call.say(spend.limit);
        }
        self.call(&TAKE, &call).await.map(Answer::read)
    }

    /// Ends a lease. If this fails, it is tried again after `pause`.
    pub async fn settle(
        &self,
        lease: &Holding,
        spends: &[Spend],
        used: &Used,
        pause: Duration,
    ) -> Result<(), ScriptError> {
        let mut call = Call::default();
        call.keys.push(self.mark(&lease.id));
        call.say(&lease.id);
        call.say((self.server.timeout() + pause + MARKED).as_millis());
        call.say(lease.holds.len());
        call.say(spends.len());
        for hold in &lease.holds {
            self.name(&mut call, hold.mode, &hold.name);
            call.rate(hold.mode, hold.rate);
            call.say(hold.amount);
            call.say(used.of(hold.dim));
        }
        for spend in spends {
            call.keys.push(self.spent(&spend.subject));
            call.say(spend.start);
            call.say(used.spent(spend.unit));
            call.say(spend.end.unwrap_or(0));
        }
        self.call::<i64>(&SETTLE, &call).await.map(|_| ())
    }

    /// Gives units back.
    pub async fn give(&self, gives: &[Give]) -> Result<(), ScriptError> {
        let mut call = Call::default();
        call.keys.push(self.mark(""));
        call.say("");
        call.say(0);
        call.say(gives.len());
        call.say(0);
        for give in gives {
            self.name(&mut call, Mode::Give, &give.name);
            call.rate(Mode::Give, give.rate);
            call.say(give.units);
            call.say(0);
        }
        self.call::<i64>(&SETTLE, &call).await.map(|_| ())
    }

    /// Lets what is held be held for longer.
    pub async fn renew(&self, leases: &[Arc<Holding>]) -> Result<(), ScriptError> {
        let mut call = Call::default();
        call.say(self.ttl);
        for lease in leases {
            call.keys.push(self.mark(&lease.id));
            call.say(&lease.id);
            call.say(lease.holds.len());
            for hold in &lease.holds {
                self.name(&mut call, hold.mode, &hold.name);
                call.say(hold.mode as u8);
                call.say(hold.amount);
            }
        }
        self.call::<i64>(&RENEW, &call).await.map(|_| ())
    }

    async fn call<T: redis::FromRedisValue>(
        &self,
        script: &Script,
        call: &Call,
    ) -> Result<T, ScriptError> {
        self.trips.fetch_add(1, Ordering::Relaxed);
        self.server.script(script, &call.keys, &call.words).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        base::limits::Scope,
        limit::claim::{Dim, Unit},
    };

    fn question() -> Question {
        let part = |index, dim| Part::exact(index, &Claim::of_five(dim));
        let spend = Spend {
            subject: "s".into(),
            scope: Scope::Key,
            unit: Unit::Cost,
            limit: 2.0,
            start: 0,
            end: None,
        };
        Question {
            parts: vec![
                part(0, Dim::Concurrent),
                part(1, Dim::Tokens),
                part(2, Dim::RequestsPerMinute),
                part(3, Dim::InputTokens),
            ],
            spends: vec![spend],
        }
    }

    fn failed(waits: [i64; 4], spent: f64) -> Option<Failed> {
        let flat = waits.into_iter().flat_map(|wait| [wait, 3, 7, 0]).collect();
        let fits = waits == [0; 4] && spent < 2.0;
        let answer = Answer::read((fits.into(), flat, vec![spent]));
        assert_eq!((answer.parts[3].left, answer.parts[3].reset), (3, 7 * MICROSECOND));
        answer.failed(&question())
    }

    #[test]
    fn the_longest_wait_is_told_then_an_amount_then_a_slot() {
        let take = |index, wait| Some(Failed::Take(Refusal { index, wait: wait * MICROSECOND }));
        assert_eq!(failed([0, 0, 0, 0], 1.9), None);
        assert_eq!(failed([1, 4, 9, 5], 2.5), take(2, 9));
        assert_eq!(failed([1, 0, 9, 9], 2.5), take(2, 9));
        assert_eq!(failed([1, 0, 0, 0], 2.0), Some(Failed::Spent(0)));
        assert_eq!(failed([1, 0, 0, 0], 1.0), take(0, 0));
    }

    #[test]
    fn a_name_cannot_be_taken_for_another_kind_of_key() {
        let settings = crate::store::redis::Settings {
            host: String::new(),
            port: 1,
            tls: false,
            username: None,
            password: None,
            db: 0,
            connections: 1,
            connect_timeout: Duration::ZERO,
            timeout: Duration::ZERO,
        };
        let speaker =
            Speaker::new(Arc::new(Redis::new(settings)), "p:".into(), Duration::from_secs(1));
        assert_eq!(speaker.bucket("per_user/rpm/held/x"), "p:per_user/rpm/held/x");
        assert_eq!(speaker.holds("per_user/rpm/x"), "p:held/per_user/rpm/x");
    }
}
