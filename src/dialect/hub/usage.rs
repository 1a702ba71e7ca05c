//! What an answer has used, in the neutral form: totals include their parts.

use crate::base::TokenCounts;

/// Counts of tokens. `None`: not reported, which is not 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// All of the prompt, cached or not.
    pub input: Option<u64>,
    /// Of it, read from a cache.
    pub cache_read: Option<u64>,
    /// Of it, written to a cache.
    pub cache_write: Option<u64>,
    /// Of what was written, for an hour.
    pub cache_write_1h: Option<u64>,
    /// Of the prompt, audio.
    pub audio_in: Option<u64>,
    /// All that was generated, reasoning included.
    pub output: Option<u64>,
    /// Of it, reasoning.
    pub reasoning: Option<u64>,
    /// Of it, audio.
    pub audio_out: Option<u64>,
    /// As the backend added it up, if it did.
    pub total: Option<u64>,
}

impl Usage {
    /// All tokens.
    pub fn total(&self) -> u64 {
        let sum = self.input.unwrap_or(0).saturating_add(self.output.unwrap_or(0));
        self.total.filter(|total| *total > 0).unwrap_or(sum)
    }

    /// What is known when `newer` is said after this: what it does not say stays.
    pub fn updated(self, newer: Self) -> Self {
        // What was added up before is no longer the sum then.
        let adds = newer.input.or(newer.output).is_some();
        Self {
            input: newer.input.or(self.input),
            cache_read: newer.cache_read.or(self.cache_read),
            cache_write: newer.cache_write.or(self.cache_write),
            cache_write_1h: newer.cache_write_1h.or(self.cache_write_1h),
            audio_in: newer.audio_in.or(self.audio_in),
            output: newer.output.or(self.output),
            reasoning: newer.reasoning.or(self.reasoning),
            audio_out: newer.audio_out.or(self.audio_out),
            total: newer.total.or(self.total.filter(|_| !adds)),
        }
    }

    /// Input that was neither read from nor written to a cache, as Messages counts it.
    pub fn uncached(&self) -> u64 {
        let cache = self.cache_read.unwrap_or(0).saturating_add(self.cache_write.unwrap_or(0));
        self.input.unwrap_or(0).saturating_sub(cache)
    }

    /// Something was counted.
    pub fn is_some(&self) -> bool {
        self.total() > 0
    }

    /// In the words of limits and records.
    pub fn counts(&self) -> Option<TokenCounts> {
        self.is_some().then(|| TokenCounts {
            prompt: self.input.unwrap_or(0),
            completion: self.output.unwrap_or(0),
            total: self.total(),
            cached: self.cache_read,
            cache_write: self.cache_write,
            reasoning: self.reasoning,
            audio_prompt: self.audio_in,
            audio_completion: self.audio_out,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_stays() {
        let first = Usage { input: Some(9), cache_read: Some(4), ..Usage::default() };
        let all = first.updated(Usage { output: Some(5), ..Usage::default() });
        assert_eq!(
            (all.input, all.cache_read, all.output, all.total()),
            (Some(9), Some(4), Some(5), 14)
        );
        assert_eq!(all.uncached(), 5);
        let less = Usage { input: Some(3), cache_read: Some(4), ..Usage::default() };
        assert_eq!(less.uncached(), 0);
        assert!(Usage::default().counts().is_none());
    }

    #[test]
    fn a_sum_of_before_is_no_sum_of_what_came_since() {
        let start = Usage { input: Some(9), output: Some(1), total: Some(10), ..Usage::default() };
        let more = Usage { output: Some(5), ..Usage::default() };
        assert_eq!(start.updated(more).total(), 14);
        assert_eq!(start.updated(Usage { total: Some(20), ..more }).total(), 20);
        let detail = Usage { cache_read: Some(4), ..Usage::default() };
        assert_eq!(start.updated(detail).total, Some(10));
    }

    #[test]
    fn every_part_is_counted() {
        let usage = Usage {
            input: Some(20),
            cache_read: Some(1),
            cache_write: Some(2),
            cache_write_1h: Some(2),
            audio_in: Some(3),
            output: Some(30),
            reasoning: Some(4),
            audio_out: Some(5),
            total: None,
        };
        let counts = TokenCounts {
            prompt: 20,
            completion: 30,
            total: 50,
            cached: Some(1),
            cache_write: Some(2),
            reasoning: Some(4),
            audio_prompt: Some(3),
            audio_completion: Some(5),
        };
        assert_eq!(usage.counts(), Some(counts));
        // Not reported is not 0.
        let bare = Usage { output: Some(30), cache_read: Some(0), ..Usage::default() };
        let expected =
            TokenCounts { completion: 30, total: 30, cached: Some(0), ..TokenCounts::default() };
        assert_eq!(bare.counts(), Some(expected));
    }
}
