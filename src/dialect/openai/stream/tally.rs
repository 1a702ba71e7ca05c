//! The counts of a stream, from what its events say: of one choice so far, or of all of the answer.

use crate::{base::TokenCounts, dialect::counts};

/// The counts of one stream.
#[derive(Default)]
pub struct Tally {
    /// The last running figures of each choice, where the engine counts choices apart.
    choices: Vec<(u64, TokenCounts)>,
    /// What was said of no single choice. llama.cpp does so once for each choice, when it has ended;
    /// all others once for all of them.
    wholes: Vec<Whole>,
    /// Choices that have ended.
    ended: Vec<u64>,
    /// One has ended since the last of `wholes`.
    fresh: bool,
    /// How many choices belong to one prompt; 0: all.
    per_prompt: u64,
}

struct Whole {
    counts: TokenCounts,
    /// A choice had ended for which nothing had been said.
    last: bool,
}

impl Tally {
    /// So many choices belong to one prompt: the request has several.
    pub fn per_prompt(&mut self, choices: u64) {
        self.per_prompt = choices;
    }

    /// The engine has counted this of one choice so far.
    pub fn choice(&mut self, index: u64, new: TokenCounts) {
        match self.choices.iter_mut().find(|(i, _)| *i == index) {
            Some((_, known)) => *known = counts::after(Some(*known), new),
            None => self.choices.push((index, new)),
        }
    }

    /// The engine has counted this.
    pub fn whole(&mut self, new: TokenCounts) {
        let last = std::mem::take(&mut self.fresh);
        match self.wholes.last_mut() {
            // Of another choice.
            Some(known) if known.last && last => self.wholes.push(Whole { counts: new, last }),
            Some(known) => {
                known.counts = counts::after(Some(known.counts), new);
                known.last |= last;
            }
            None => self.wholes.push(Whole { counts: new, last }),
        }
    }

    /// A choice has ended.
    pub fn end(&mut self, index: u64) {
        if !self.ended.contains(&index) {
            self.ended.push(index);
            self.fresh = true;
        }
    }

    /// How many choices have running figures.
    pub fn running(&self) -> usize {
        self.choices.len()
    }

    /// What is known.
    pub fn counts(&self) -> Option<TokenCounts> {
        let running = self.of_choices();
        match counts::sum(self.wholes.iter().map(|whole| whole.counts)) {
            Some(whole) => Some(counts::after(running, whole)),
            None => running,
        }
    }

    /// The sum over the choices. The prompt is the same in all choices of one prompt.
    fn of_choices(&self) -> Option<TokenCounts> {
        let all = || self.choices.iter();
        if self.per_prompt == 0 {
            return counts::sum(all().map(|(_, counts)| *counts));
        }
        let mut prompts: Vec<u64> = all().map(|(index, _)| index / self.per_prompt).collect();
        prompts.sort_unstable();
        prompts.dedup();
        counts::total(prompts.into_iter().filter_map(|prompt| {
            let own = all().filter(|(index, _)| index / self.per_prompt == prompt);
            counts::sum(own.map(|(_, counts)| *counts))
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(prompt: u64, completion: u64) -> TokenCounts {
        TokenCounts { prompt, completion, total: prompt + completion, ..TokenCounts::default() }
    }

    fn known(tally: &Tally) -> (u64, u64, u64) {
        let counts = tally.counts().unwrap();
        (counts.prompt, counts.completion, counts.total)
    }

    #[test]
    fn one_for_each_choice_that_has_ended_is_added_up() {
        // llama.cpp.
        let mut tally = Tally::default();
        for index in [1, 0, 2] {
            tally.end(index);
            tally.whole(said(21, 4));
        }
        assert_eq!(known(&tally), (21, 12, 33));
    }

    #[test]
    fn one_for_all_choices_is_the_last_word() {
        let mut tally = Tally::default();
        (0..3).for_each(|index| tally.choice(index, said(21, 3)));
        assert_eq!(known(&tally), (21, 9, 30));
        (0..3).for_each(|index| tally.end(index));
        tally.whole(said(21, 12));
        tally.whole(said(21, 12));
        // The same end, said once more.
        tally.end(2);
        tally.whole(said(21, 12));
        assert_eq!(known(&tally), (21, 12, 33));
        tally.whole(said(21, 0));
        assert_eq!(known(&tally), (21, 12, 33));
    }

    #[test]
    fn figures_that_grow_are_not_added_up() {
        let mut tally = Tally::default();
        (1..5).for_each(|n| tally.whole(said(7, n)));
        tally.end(0);
        tally.whole(said(7, 5));
        tally.whole(said(7, 6));
        assert_eq!(known(&tally), (7, 6, 13));
    }

    #[test]
    fn each_prompt_counts() {
        let mut tally = Tally::default();
        tally.per_prompt(2);
        for (index, prompt) in [(0, 5), (1, 5), (2, 7), (3, 7), (4, 11)] {
            tally.choice(index, said(prompt, 1));
            tally.choice(index, said(prompt, 2));
        }
        assert_eq!(known(&tally), (23, 10, 33));
    }
}
