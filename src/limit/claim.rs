//! What a request claims of the rules that match it.

use std::time::Duration;

use super::bucket::{Rate, SECOND, Ticks};
use crate::base::limits::{Scope, Standing, Standings};

/// What a limit counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dim {
    /// Requests, by the second.
    RequestsPerSecond,
    /// Requests, by the minute.
    RequestsPerMinute,
    /// Tokens of prompts and answers.
    Tokens,
    /// Tokens of prompts.
    InputTokens,
    /// Tokens of answers.
    OutputTokens,
    /// Requests at the same time.
    Concurrent,
}

/// How a limit is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Taken when the request is let in.
    Take,
    /// Held when it is let in, and taken as metered when it has ended.
    Reserve,
    /// Held while it lasts.
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

    /// How it is counted.
    pub fn kind(self) -> Kind {
        match self {
            Self::RequestsPerSecond | Self::RequestsPerMinute => Kind::Take,
            Self::Tokens | Self::InputTokens | Self::OutputTokens => Kind::Reserve,
            Self::Concurrent => Kind::Slot,
        }
    }
}

/// One limit that a request must keep.
#[derive(Clone, Debug, PartialEq)]
pub struct Claim {
    /// Which bucket in memory: a hash of rule, kind of limit and whom it is about.
    pub id: u64,
    /// Which bucket in Redis, without the prefix; empty where there is none.
    pub name: String,
    /// The rule.
    pub scope: Scope,
    /// What is counted.
    pub dim: Dim,
    /// How much there is. Of [`Dim::Concurrent`] only the capacity means something.
    pub rate: Rate,
    /// How much is wanted.
    pub amount: u64,
    /// Units left after the decision; written by whoever decides.
    pub left: u64,
    /// Time until all of it is there again; written by whoever decides.
    pub reset: Ticks,
}

impl Claim {
    /// `per_key.requests_per_minute`
    pub fn rule(&self) -> String {
        format!("{}.{}", self.scope.word(), self.dim.word())
    }

    /// One of five, for tests.
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

    /// How much the rule lets pass, as it says it.
    pub fn allows(&self) -> f64 {
        match self.dim {
            // The capacity is the burst. Intervals are whole ticks: four digits are true.
            Dim::RequestsPerSecond => {
                let rate = SECOND as f64 / self.rate.interval as f64;
                (rate * 1e4).round() / 1e4
            }
            _ => self.rate.capacity as f64,
        }
    }
}

/// What is spent of a budget, a quota or a balance.
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

/// An amount that may be spent, counted after each request and looked at before the next.
#[derive(Clone, Debug, PartialEq)]
pub struct Spend {
    /// What it is counted under: `per_key/budget/key_1`.
    pub subject: String,
    /// The rule.
    pub scope: Scope,
    /// What is counted.
    pub unit: Unit,
    /// How much may be spent.
    pub limit: f64,
    /// When the present period began, in Unix seconds; 0 if there are no periods. What was spent
    /// in an earlier one does not count.
    pub start: i64,
    /// When the next one begins.
    pub end: Option<i64>,
}

impl Spend {
    /// `per_key.budget`
    pub fn rule(&self) -> String {
        format!("{}.{}", self.scope.word(), self.unit.word())
    }
}

/// What a request came to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Used {
    /// Tokens of the prompt.
    pub input: u64,
    /// Tokens of the answer.
    pub output: u64,
    /// By the price table.
    pub cost: f64,
    /// What is taken from a balance.
    pub credit: f64,
}

impl Used {
    /// What is taken of a reservation.
    pub fn of(&self, dim: Dim) -> u64 {
        match dim {
            Dim::Tokens => self.input.saturating_add(self.output),
            Dim::InputTokens => self.input,
            Dim::OutputTokens => self.output,
            Dim::RequestsPerSecond | Dim::RequestsPerMinute | Dim::Concurrent => 0,
        }
    }

    /// What is spent.
    pub fn spent(&self, unit: Unit) -> f64 {
        match unit {
            Unit::Cost => self.cost,
            Unit::Quota => self.input.saturating_add(self.output) as f64,
            Unit::Balance => self.credit,
        }
    }
}

/// All that a request claims.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Claims {
    /// Of buckets.
    pub takes: Vec<Claim>,
    /// Of amounts.
    pub spends: Vec<Spend>,
}

impl Claims {
    /// Whether no rule matches.
    pub fn is_empty(&self) -> bool {
        self.takes.is_empty() && self.spends.is_empty()
    }

    /// The buckets of which a slot is needed.
    pub fn slots(&self) -> impl Iterator<Item = u64> {
        self.takes.iter().filter(|claim| claim.dim == Dim::Concurrent).map(|claim| claim.id)
    }

    /// How the limits stand, of each kind the tightest.
    pub fn standings(&self) -> Standings {
        let mut all = Standings::default();
        for claim in &self.takes {
            let reset = Duration::from_nanos(claim.reset / (SECOND / 1_000_000_000));
            let standing = Standing { limit: claim.rate.capacity, left: claim.left, reset };
            let place = match claim.dim {
                Dim::RequestsPerSecond | Dim::RequestsPerMinute => &mut all.requests,
                Dim::Tokens => &mut all.tokens,
                Dim::InputTokens => &mut all.input_tokens,
                Dim::OutputTokens => &mut all.output_tokens,
                Dim::Concurrent => continue,
            };
            *place = Some(standing.tighter(*place));
        }
        all
    }
}

/// Which of the claims failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failed {
    /// One of a bucket.
    Take(Refusal),
    /// The amount with this number is spent.
    Spent(usize),
}

/// Why a bucket does not give what is claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The number of the claim that failed.
    pub index: usize,
    /// How long until it might succeed; zero if nobody knows.
    pub wait: Ticks,
}
