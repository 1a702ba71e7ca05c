//! How much a model may reason: words and budgets.

/// The words for effort, from little to much.
pub const WORDS: [&str; 7] = ["none", "minimal", "low", "medium", "high", "xhigh", "max"];

/// The budget, in tokens, that stands for a word where a model is told one. A scale that is rather
/// too low than too high: the budget is a part of the answer's limit.
pub fn budget(effort: &str) -> Option<u64> {
    match effort {
        "minimal" | "low" => Some(1024),
        "medium" => Some(2048),
        "high" => Some(4096),
        "xhigh" => Some(8192),
        "max" => Some(16_384),
        _ => None,
    }
}

/// The word that stands for a budget.
pub fn word(budget: u64) -> &'static str {
    match budget {
        0 => "none",
        1..2048 => "low",
        2048..8192 => "medium",
        8192..24_576 => "high",
        _ => "xhigh",
    }
}

/// The nearest word that a model takes: the same, or the next lower, or else its lowest. `None`:
/// nothing is known of its words, or of this one.
pub fn nearest<'a>(effort: &str, allowed: &'a [String]) -> Option<&'a str> {
    let rank = |word: &str| WORDS.iter().position(|known| *known == word);
    let wanted = rank(effort)?;
    let known = || allowed.iter().filter_map(|word| Some((rank(word)?, word.as_str())));
    let below = known().filter(|(rank, _)| *rank <= wanted).max();
    below.or_else(|| known().min()).map(|(_, word)| word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_budgets_go_both_ways() {
        for effort in ["low", "medium", "high"] {
            let back = word(budget(effort).unwrap());
            assert!(
                WORDS.iter().position(|w| *w == back) <= WORDS.iter().position(|w| *w == effort)
            );
        }
        assert_eq!(
            (word(0), word(1024), word(2048), word(30_000)),
            ("none", "low", "medium", "xhigh")
        );
        assert_eq!(budget("none"), None);
    }

    #[test]
    fn the_next_lower_word_is_taken() {
        let allowed: Vec<String> = ["low", "medium", "high"].map(String::from).into();
        for (wanted, got) in [
            ("high", "high"),
            ("max", "high"),
            ("minimal", "low"),
            ("none", "low"),
            ("medium", "medium"),
        ] {
            assert_eq!(nearest(wanted, &allowed), Some(got), "{wanted}");
        }
        assert_eq!(nearest("high", &[]), None);
        assert_eq!(nearest("extreme", &allowed), None);
    }
}
