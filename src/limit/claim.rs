//! The claims of a request on the limits that match it.

use std::time::Duration;

use super::bucket::{Rate, SECOND, Ticks};
use crate::base::limits::{Scope, Standing, Standings};

/// What a limit counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dim {
    RequestsPerSecond,
    RequestsPerMinute,
    /// Tokens of prompts and answers.
    Tokens,
    InputTokens,
    OutputTokens,
    /// Concurrent requests.
    Concurrent,
}

/// How a limit is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClaimKind {
    /// Taken at admission.
    Take,
    /// An estimate is held from admission on; the metered amount is taken when the request ends.
    Reserve,
    /// Held while the request lasts.
    Slot,
}

impl Dim {
    /// The word in the configuration, in messages and in metrics.
    pub fn word(self) -> &'static str {
        match self {
            Self::RequestsPerSecond => "requests_per_second",
            Self::RequestsPerMinute => "requests_per_minute",
            Self::Tokens => "tokens_per_minute",
            Self::InputTokens => "input_tokens_per_minute",
            Self::OutputTokens => "output_tokens_per_minute",
            Self::Concurrent => "max_concurrent",
        }
    }

    pub fn kind(self) -> ClaimKind {
        match self {
            Self::RequestsPerSecond | Self::RequestsPerMinute => ClaimKind::Take,
            Self::Tokens | Self::InputTokens | Self::OutputTokens => ClaimKind::Reserve,
            Self::Concurrent => ClaimKind::Slot,
        }
    }
}

/// A claim on one bucket.
#[derive(Clone, Debug, PartialEq)]
pub struct Claim {
    /// The bucket in memory: a hash of rule, dimension and identity.
    pub id: u64,
    /// The bucket in Redis, without the prefix; empty without Redis.
    pub name: String,
    pub scope: Scope,
    pub dim: Dim,
    /// For [`Dim::Concurrent`] only the capacity is used.
    pub rate: Rate,
    /// Units wanted.
    pub amount: u64,
    /// Units left; set by the decision.
    pub left: u64,
    /// Time until the bucket is full; set by the decision.
    pub reset: Ticks,
}

impl Claim {
    /// `per_key.requests_per_minute`
    pub fn rule(&self) -> String {
        format!("{}.{}", self.scope.word(), self.dim.word())
    }

    /// A claim of one unit of five, for tests.
    #[cfg(test)]
    pub fn of_five(dim: Dim) -> Self {
        Self {
            id: 1,
            name: "x".into(),
            scope: Scope::Key,
            dim,
            rate: Rate { interval: SECOND, capacity: 5 },
            amount: 1,
            left: 0,
            reset: 0,
        }
    }

    /// The limit as the rule states it.
    pub fn allows(&self) -> f64 {
        match self.dim {
            // The capacity is the burst. Intervals are whole ticks: four digits are exact.
            Dim::RequestsPerSecond => {
                let rate = SECOND as f64 / self.rate.interval as f64;
                (rate * 1e4).round() / 1e4
            }
            _ => self.rate.capacity as f64,
        }
    }
}

/// How one limit of a request stands, for scripts.
#[derive(Clone, Debug, PartialEq)]
pub struct ClaimState {
    pub scope: Scope,
    pub dim: Dim,
    /// As the rule states it.
    pub limit: f64,
    /// Units left.
    pub left: u64,
    /// Units that the request takes.
    pub wanted: u64,
    /// Until nothing is taken.
    pub reset: Duration,
}

impl ClaimState {
    pub(super) fn of(claim: &Claim) -> Self {
        Self {
            scope: claim.scope,
            dim: claim.dim,
            limit: claim.allows(),
            left: claim.left,
            wanted: claim.amount,
            reset: Duration::from_secs_f64(claim.reset as f64 / SECOND as f64),
        }
    }

    /// `per_key.requests_per_minute`
    pub fn rule(&self) -> String {
        format!("{}.{}", self.scope.word(), self.dim.word())
    }
}

/// What an amount is counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unit {
    /// Money, by the price table: `budget`.
    Cost,
    /// Metered tokens: `total_quota` of a key.
    Quota,
    /// Money, or tokens where there is no price table: `balance` of a key.
    Balance,
}

impl Unit {
    /// The word in messages, in metrics and in stores.
    pub fn word(self) -> &'static str {
        match self {
            Self::Cost => "budget",
            Self::Quota => "total_quota",
            Self::Balance => "balance",
        }
    }
}

/// A claim on an amount that may be spent: a budget, a quota or a balance. Usage is added after each
/// request and compared with the limit before the next.
#[derive(Clone, Debug, PartialEq)]
pub struct Spend {
    /// The name of the counter: `per_key/budget/key_1`.
    pub subject: String,
    pub scope: Scope,
    pub unit: Unit,
    pub limit: f64,
    /// Start of the current period in Unix seconds; 0 if there are no periods. Amounts of earlier
    /// periods do not count.
    pub start: i64,
    /// Start of the next period.
    pub end: Option<i64>,
}

impl Spend {
    /// `per_key.budget`
    pub fn rule(&self) -> String {
        format!("{}.{}", self.scope.word(), self.unit.word())
    }
}

/// What a request is charged when it ends.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Charge {
    /// Prompt tokens.
    pub input: u64,
    /// Answer tokens.
    pub output: u64,
    /// Money, by the price table.
    pub cost: f64,
    /// Subtracted from a balance.
    pub credit: f64,
}

impl Charge {
    /// Units taken from a bucket in place of a reservation.
    pub fn units(&self, dim: Dim) -> u64 {
        match dim {
            Dim::Tokens => self.input.saturating_add(self.output),
            Dim::InputTokens => self.input,
            Dim::OutputTokens => self.output,
            Dim::RequestsPerSecond | Dim::RequestsPerMinute | Dim::Concurrent => 0,
        }
    }

    /// Units added to an amount.
    pub fn amount(&self, unit: Unit) -> f64 {
        match unit {
            Unit::Cost => self.cost,
            Unit::Quota => self.input.saturating_add(self.output) as f64,
            Unit::Balance => self.credit,
        }
    }
}

/// All claims of a request.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Claims {
    /// On buckets.
    pub takes: Vec<Claim>,
    /// On amounts.
    pub spends: Vec<Spend>,
}

impl Claims {
    /// Whether no rule matches.
    pub fn is_empty(&self) -> bool {
        self.takes.is_empty() && self.spends.is_empty()
    }

    /// The buckets from which the request needs a slot.
    pub fn slots(&self) -> impl Iterator<Item = u64> {
        self.takes.iter().filter(|claim| claim.dim == Dim::Concurrent).map(|claim| claim.id)
    }

    /// The state of the limits: the tightest of each kind.
    pub fn standings(&self) -> Standings {
        let mut all = Standings::default();
        for claim in &self.takes {
            let reset = Duration::from_nanos(claim.reset / (SECOND / 1_000_000_000));
            let standing = Standing { limit: claim.rate.capacity, left: claim.left, reset };
            let known = match claim.dim {
                Dim::RequestsPerSecond | Dim::RequestsPerMinute => &mut all.requests,
                Dim::Tokens => &mut all.tokens,
                Dim::InputTokens => &mut all.input_tokens,
                Dim::OutputTokens => &mut all.output_tokens,
                Dim::Concurrent => continue,
            };
            *known = Some(standing.tighter(*known));
        }
        all
    }
}

/// The claim that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailedClaim {
    Bucket(Shortfall),
    /// The amount at this index of [`Claims::spends`] is used up.
    Amount(usize),
}

/// A bucket that does not have the claimed units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shortfall {
    /// Index in [`Claims::takes`].
    pub index: usize,
    /// Time until the claim can succeed; zero if unknown.
    pub wait: Ticks,
}
