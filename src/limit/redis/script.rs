//! Calls of the Redis scripts: their keys, arguments and replies.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use super::{holdings::Holding, mode::Mode};
use crate::{
    limit::{
        bucket::{Rate, SECOND, Ticks},
        claim::{Charge, Claim, Claims, FailedClaim, Shortfall, Spend},
    },
    store::redis::{Redis, Script, ScriptError},
};

static TAKE: Script = Script::new(concat!(include_str!("bucket.lua"), include_str!("take.lua")));
static SETTLE: Script =
    Script::new(concat!(include_str!("bucket.lua"), include_str!("settle.lua")));
static RENEW: Script = Script::new(concat!(include_str!("bucket.lua"), include_str!("renew.lua")));

const MICROSECOND: Ticks = SECOND / 1_000_000;

/// How long Redis remembers that a holding has ended, not counting the time for trying again. A call
/// that was sent before and arrives even later holds something for no request, which expires.
const MARKED: Duration = Duration::from_secs(10);

/// What a request wants from one bucket.
#[derive(Clone, Debug)]
pub struct BucketRequest {
    /// Index in [`Claims::takes`].
    pub index: usize,
    pub mode: Mode,
    /// The bucket.
    pub name: String,
    pub rate: Rate,
    /// Units that must be available.
    pub need: u64,
    /// Units that are taken in that case, even if fewer are available.
    pub least: u64,
    /// Units that are taken if they are available.
    pub most: u64,
}

impl BucketRequest {
    /// Wants exactly what is claimed.
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

/// Everything that one request wants.
pub struct TakeRequest {
    pub buckets: Vec<BucketRequest>,
    pub spends: Vec<Spend>,
}

/// The state of one bucket after the decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BucketState {
    /// Time until the units are available; zero if they are. For a slot any other value means that
    /// none is free.
    pub wait: Ticks,
    /// Units left.
    pub left: u64,
    /// Time until it is full.
    pub reset: Ticks,
    /// Units taken.
    pub given: u64,
}

#[derive(Debug, PartialEq)]
pub struct TakeReply {
    /// In the order of [`TakeRequest::buckets`].
    pub buckets: Vec<BucketState>,
    /// The amounts spent, in the order of [`TakeRequest::spends`].
    pub spent: Vec<f64>,
    /// Whether everything was taken.
    pub fits: bool,
}

impl TakeReply {
    fn read((fits, flat, spent): (i64, Vec<i64>, Vec<f64>)) -> Self {
        let ticks = |us: i64| u64::try_from(us).unwrap_or(0).saturating_mul(MICROSECOND);
        let units = |n: i64| u64::try_from(n).unwrap_or(0);
        let state = |chunk: &[i64]| match *chunk {
            [wait, left, reset, given] => BucketState {
                wait: ticks(wait),
                left: units(left),
                reset: ticks(reset),
                given: units(given),
            },
            _ => BucketState { wait: 0, left: 0, reset: 0, given: 0 },
        };
        Self { buckets: flat.chunks(4).map(state).collect(), spent, fits: fits == 1 }
    }

    /// The claim that failed: of several the bucket with the longest wait, then an amount, then a
    /// slot.
    pub fn failed(&self, request: &TakeRequest) -> Option<FailedClaim> {
        if self.fits {
            return None;
        }
        let short =
            || request.buckets.iter().zip(&self.buckets).filter(|(_, state)| state.wait > 0).rev();
        let longest = short()
            .filter(|(bucket, _)| bucket.mode != Mode::Slot)
            .max_by_key(|(_, state)| state.wait)
            .map(|(bucket, state)| (bucket.index, state.wait));
        let limits = request.spends.iter().zip(&self.spent);
        let spent = || limits.clone().position(|(spend, spent)| *spent >= spend.limit);
        let slot = || short().next_back().map(|(bucket, _)| bucket.index);
        let failed = |(index, wait)| FailedClaim::Bucket(Shortfall { index, wait });
        longest
            .map(failed)
            .or_else(|| spent().map(FailedClaim::Amount))
            .or_else(|| slot().map(|index| failed((index, 0))))
            // The call was abandoned before it reached Redis: this is not read.
            .or(Some(failed((0, 0))))
    }

    /// Records in the claims what is left.
    pub fn record(&self, request: &TakeRequest, claims: &mut Claims) {
        for (bucket, state) in request.buckets.iter().zip(&self.buckets) {
            let claim = &mut claims.takes[bucket.index];
            (claim.left, claim.reset) = (state.left, state.reset);
        }
    }
}

/// Units that go back into a bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refund {
    /// The bucket.
    pub name: String,
    pub rate: Rate,
    /// A negative number is a debt.
    pub units: i64,
}

/// Keys and arguments of one call.
#[derive(Default)]
struct ScriptCall {
    keys: Vec<String>,
    args: Vec<String>,
}

impl ScriptCall {
    fn arg(&mut self, value: impl ToString) {
        self.args.push(value.to_string());
    }

    fn rate(&mut self, mode: Mode, rate: Rate) {
        self.arg(mode as u8);
        self.arg(rate.interval as f64 / MICROSECOND as f64);
        self.arg(rate.capacity);
    }
}

/// Calls the scripts on one server.
pub struct ScriptClient {
    server: Arc<Redis>,
    prefix: String,
    /// Lifetime of holds in milliseconds.
    ttl: u128,
    trips: AtomicU64,
}

impl ScriptClient {
    /// `prefix` is the prefix of all key names.
    pub fn new(server: Arc<Redis>, prefix: String, ttl: Duration) -> Self {
        Self { server, prefix, ttl: ttl.as_millis().max(1), trips: AtomicU64::new(0) }
    }

    /// Size of the connection pool.
    pub fn connections(&self) -> usize {
        self.server.connections()
    }

    /// Number of calls so far.
    pub fn trips(&self) -> u64 {
        self.trips.load(Ordering::Relaxed)
    }

    // Callers choose parts of bucket names, so the kind of key is a prefix.

    fn bucket(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn holds(&self, name: &str) -> String {
        format!("{}held/{name}", self.prefix)
    }

    fn spent(&self, subject: &str) -> String {
        format!("{}spent/{subject}", self.prefix)
    }

    fn mark(&self, holding: &str) -> String {
        format!("{}ended/{holding}", self.prefix)
    }

    fn name(&self, call: &mut ScriptCall, mode: Mode, name: &str) {
        if mode.has_bucket() {
            call.keys.push(self.bucket(name));
        }
        if mode.has_holds() {
            call.keys.push(self.holds(name));
        }
    }

    /// Takes all that a request claims, or nothing.
    pub async fn take(
        &self,
        holding: &Holding,
        request: &TakeRequest,
    ) -> Result<TakeReply, ScriptError> {
        let mut call = ScriptCall::default();
        call.keys.push(self.mark(&holding.id));
        // A request that holds nothing needs no name.
        call.arg(if holding.holds.is_empty() { "" } else { &holding.id });
        call.arg(self.ttl);
        call.arg(request.buckets.len());
        call.arg(request.spends.len());
        for bucket in &request.buckets {
            self.name(&mut call, bucket.mode, &bucket.name);
            call.rate(bucket.mode, bucket.rate);
            call.arg(bucket.need);
            call.arg(bucket.least);
            call.arg(bucket.most);
        }
        for spend in &request.spends {
            call.keys.push(self.spent(&spend.subject));
            call.arg(spend.start);
            call.arg(spend.limit);
        }
        self.call(&TAKE, &call).await.map(TakeReply::read)
    }

    /// Ends a holding. If this fails, the caller tries again after `pause`.
    pub async fn settle(
        &self,
        holding: &Holding,
        spends: &[Spend],
        charge: &Charge,
        pause: Duration,
    ) -> Result<(), ScriptError> {
        let mut call = ScriptCall::default();
        call.keys.push(self.mark(&holding.id));
        call.arg(&holding.id);
        call.arg((self.server.timeout() + pause + MARKED).as_millis());
        call.arg(holding.holds.len());
        call.arg(spends.len());
        for hold in &holding.holds {
            self.name(&mut call, hold.mode, &hold.name);
            call.rate(hold.mode, hold.rate);
            call.arg(hold.amount);
            call.arg(charge.units(hold.dim));
        }
        for spend in spends {
            call.keys.push(self.spent(&spend.subject));
            call.arg(spend.start);
            call.arg(charge.amount(spend.unit));
            call.arg(spend.end.unwrap_or(0));
        }
        self.call::<i64>(&SETTLE, &call).await.map(|_| ())
    }

    /// Gives units back to buckets.
    pub async fn refund(&self, refunds: &[Refund]) -> Result<(), ScriptError> {
        let mut call = ScriptCall::default();
        call.keys.push(self.mark(""));
        call.arg("");
        call.arg(0);
        call.arg(refunds.len());
        call.arg(0);
        for refund in refunds {
            self.name(&mut call, Mode::Give, &refund.name);
            call.rate(Mode::Give, refund.rate);
            call.arg(refund.units);
            call.arg(0);
        }
        self.call::<i64>(&SETTLE, &call).await.map(|_| ())
    }

    /// Extends the lifetime of holds.
    pub async fn renew(&self, holdings: &[Arc<Holding>]) -> Result<(), ScriptError> {
        let mut call = ScriptCall::default();
        call.arg(self.ttl);
        for holding in holdings {
            call.keys.push(self.mark(&holding.id));
            call.arg(&holding.id);
            call.arg(holding.holds.len());
            for hold in &holding.holds {
                self.name(&mut call, hold.mode, &hold.name);
                call.arg(hold.mode as u8);
                call.arg(hold.amount);
            }
        }
        self.call::<i64>(&RENEW, &call).await.map(|_| ())
    }

    async fn call<T: redis::FromRedisValue>(
        &self,
        script: &Script,
        call: &ScriptCall,
    ) -> Result<T, ScriptError> {
        self.trips.fetch_add(1, Ordering::Relaxed);
        self.server.script(script, &call.keys, &call.args).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        base::limits::Scope,
        limit::claim::{Dim, Unit},
    };

    fn request() -> TakeRequest {
        let bucket = |index, dim| BucketRequest::exact(index, &Claim::of_five(dim));
        let spend = Spend {
            subject: "s".into(),
            scope: Scope::Key,
            unit: Unit::Cost,
            limit: 2.0,
            start: 0,
            end: None,
        };
        TakeRequest {
            buckets: vec![
                bucket(0, Dim::Concurrent),
                bucket(1, Dim::Tokens),
                bucket(2, Dim::RequestsPerMinute),
                bucket(3, Dim::InputTokens),
            ],
            spends: vec![spend],
        }
    }

    fn failed(waits: [i64; 4], spent: f64) -> Option<FailedClaim> {
        let flat = waits.into_iter().flat_map(|wait| [wait, 3, 7, 0]).collect();
        let fits = waits == [0; 4] && spent < 2.0;
        let reply = TakeReply::read((fits.into(), flat, vec![spent]));
        assert_eq!((reply.buckets[3].left, reply.buckets[3].reset), (3, 7 * MICROSECOND));
        reply.failed(&request())
    }

    #[test]
    fn the_longest_wait_is_told_then_an_amount_then_a_slot() {
        let take =
            |index, wait| Some(FailedClaim::Bucket(Shortfall { index, wait: wait * MICROSECOND }));
        assert_eq!(failed([0, 0, 0, 0], 1.9), None);
        assert_eq!(failed([1, 4, 9, 5], 2.5), take(2, 9));
        assert_eq!(failed([1, 0, 9, 9], 2.5), take(2, 9));
        assert_eq!(failed([1, 0, 0, 0], 2.0), Some(FailedClaim::Amount(0)));
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
        let client =
            ScriptClient::new(Arc::new(Redis::new(settings)), "p:".into(), Duration::from_secs(1));
        assert_eq!(client.bucket("per_user/rpm/held/x"), "p:per_user/rpm/held/x");
        assert_eq!(client.holds("per_user/rpm/x"), "p:held/per_user/rpm/x");
    }
}
