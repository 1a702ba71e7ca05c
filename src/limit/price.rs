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
    let cached = counts.cached.unwrap_or(0).min(counts.prompt);
    let input = (counts.prompt - cached) as f64 * price.input;
    let cached = cached as f64 * price.cached_input.unwrap_or(price.input);
    Some((input + cached + counts.completion as f64 * price.output) / UNIT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_costs_what_its_tokens_cost() {
        let price = |input, cached_input, output| Price { input, cached_input, output };
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
        let near = |a: Option<f64>, b: f64| (a.unwrap() - b).abs() < 1e-12;
        assert!(near(cost(&prices, "qwen-7b", counts), (600.0 + 40.0 + 600.0) / 1e6));
        assert!(near(cost(&prices, "other", counts), (10_000.0 + 6000.0) / 1e6));
        assert_eq!(cost(&prices[..1], "other", counts), None);
    }
}
