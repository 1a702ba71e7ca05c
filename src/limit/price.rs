//! The price of tokens.

use crate::{
    base::{ModelPattern, TokenCounts},
    config::plan::Price,
};

/// Prices are per this number of tokens.
const UNIT: f64 = 1e6;

/// The cost of a request for this model; `None` if the model has no price.
pub fn cost(prices: &[(ModelPattern, Price)], model: &str, counts: TokenCounts) -> Option<f64> {
    let price = ModelPattern::closest(prices, model)?;
    let prompt = [
        (counts.cached, price.cached_input),
        (counts.cache_write, price.cache_write),
        (counts.audio_prompt, price.audio_input),
    ];
    let completion =
        [(counts.reasoning, price.reasoning), (counts.audio_completion, price.audio_output)];
    let input = side(counts.prompt, price.input, prompt);
    Some((input + side(counts.completion, price.output, completion)) / UNIT)
}

/// What the prompt costs, or the answer, from the counts and prices of its parts. Each token has one
/// price: engines may report the same token in two parts (cached audio) and more tokens in a part
/// than there are, so a part has at most what the parts before it have left.
fn side<const N: usize>(whole: u64, price: f64, parts: [(Option<u64>, Option<f64>); N]) -> f64 {
    let (mut left, mut usual, mut cost) = (whole, whole, 0.0);
    for (reported, own) in parts {
        let part = reported.unwrap_or(0).min(left);
        left -= part;
        if let Some(own) = own {
            usual -= part;
            cost += part as f64 * own;
        }
    }
    usual as f64 * price + cost
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn near(a: Option<f64>, b: f64) -> bool {
        (a.unwrap() - b).abs() < 1e-12
    }

    fn of(price: Price) -> [(ModelPattern, Price); 1] {
        [(ModelPattern::parse("*").unwrap(), price)]
    }

    /// Powers of ten, so that a cost shows how many tokens had each price.
    const DISTINCT: Price = Price {
        input: 1e6,
        cached_input: Some(1e8),
        cache_write: Some(1e10),
        audio_input: Some(1e12),
        output: 1e7,
        reasoning: Some(1e9),
        audio_output: Some(1e11),
    };

    #[test]
    fn a_request_costs_what_its_tokens_cost() {
        let price =
            |input, cached_input, output| Price { input, cached_input, output, ..Price::default() };
        let prices = [
            (ModelPattern::parse("qwen-*").unwrap(), price(1.0, Some(0.1), 3.0)),
            (ModelPattern::parse("*").unwrap(), price(10.0, None, 30.0)),
        ];
        let counts = TokenCounts {
            prompt: 1000,
            completion: 200,
            total: 1200,
            cached: Some(400),
            ..TokenCounts::default()
        };
        assert!(near(cost(&prices, "qwen-7b", counts), (600.0 + 40.0 + 600.0) / 1e6));
        assert!(near(cost(&prices, "other", counts), (10_000.0 + 6000.0) / 1e6));
        assert_eq!(cost(&prices[..1], "other", counts), None);
    }

    #[test]
    fn each_part_has_its_price() {
        let all = TokenCounts {
            prompt: 9,
            completion: 8,
            total: 17,
            cached: Some(4),
            cache_write: Some(2),
            reasoning: Some(5),
            audio_prompt: Some(1),
            audio_completion: Some(1),
        };
        let none = TokenCounts { prompt: 9, completion: 8, total: 17, ..TokenCounts::default() };
        let cost = |counts| cost(&of(DISTINCT), "m", counts).unwrap() as u64;
        // By digit: audio, audio of the answer, written, reasoning, cached, output, input.
        assert_eq!(cost(all), 1_125_422);
        assert_eq!(cost(none), 89);
        // More than there is, and the same twice: cached before written before audio.
        let more = TokenCounts { cached: Some(7), cache_write: Some(5), ..all };
        assert_eq!(cost(more), 125_720);
        let absurd = TokenCounts {
            cached: Some(u64::MAX),
            reasoning: Some(u64::MAX),
            audio_completion: Some(u64::MAX),
            ..all
        };
        assert_eq!(cost(absurd), 8900);
        assert_eq!(cost(TokenCounts { audio_prompt: Some(50), ..none }), 9_000_080);
    }

    fn amount() -> impl Strategy<Value = Option<f64>> {
        proptest::option::of(0.0..1000.0)
    }

    prop_compose! {
        fn counts()(
            (prompt, completion) in (0..1u64 << 40, 0..1u64 << 40),
            [cached, cache_write, reasoning, audio_prompt, audio_completion]
                in proptest::array::uniform5(proptest::option::of(0..1u64 << 41)),
        ) -> TokenCounts {
            TokenCounts {
                prompt,
                completion,
                total: prompt + completion,
                cached,
                cache_write,
                reasoning,
                audio_prompt,
                audio_completion,
            }
        }
    }

    proptest! {
        /// Parts without a price cost exactly what they would cost if nothing were known of them,
        /// and parts at the price of their whole cost the same.
        #[test]
        fn a_part_costs_its_whole_by_default(
            counts in counts(), input in 0.0..1000.0, output in 0.0..1000.0,
        ) {
            let bare = Price { input, output, ..Price::default() };
            let (prompt, completion) = (counts.prompt as f64, counts.completion as f64);
            let expected = (prompt * input + completion * output) / UNIT;
            prop_assert_eq!(cost(&of(bare), "m", counts), Some(expected));
            let same = Price {
                cached_input: Some(input),
                cache_write: Some(input),
                audio_input: Some(input),
                reasoning: Some(output),
                audio_output: Some(output),
                ..bare
            };
            let found = cost(&of(same), "m", counts).unwrap();
            prop_assert!((found - expected).abs() <= 1e-9 * expected.max(1.0), "{found} {expected}");
        }

        /// No token is charged twice, and none is free: the cost is between that of the cheapest and
        /// that of the dearest price.
        #[test]
        fn each_token_has_one_price(
            counts in counts(),
            (input, cached_input, cache_write, audio_input) in (0.0..1000.0, amount(), amount(), amount()),
            (output, reasoning, audio_output) in (0.0..1000.0, amount(), amount()),
        ) {
            let price = Price {
                input, cached_input, cache_write, audio_input, output, reasoning, audio_output,
            };
            let found = cost(&of(price), "m", counts).unwrap();
            let bound = |pick: fn(f64, f64) -> f64| {
                let parts = [cached_input, cache_write, audio_input];
                let prompt = parts.into_iter().flatten().fold(input, pick);
                let completion = [reasoning, audio_output].into_iter().flatten().fold(output, pick);
                (counts.prompt as f64 * prompt + counts.completion as f64 * completion) / UNIT
            };
            let (least, most) = (bound(f64::min), bound(f64::max));
            prop_assert!(found >= least * (1.0 - 1e-9) && found <= most * (1.0 + 1e-9), "{least} {found} {most}");
        }
    }
}
