//! Reads `usage` objects: OpenAI's, Anthropic's, and those of servers with other names for the same
//! counts.

use crate::{base::TokenCounts, wire::json};

/// More tokens than any answer has: what is above this is no count.
const MOST: u64 = 1 << 40;

/// What stands there is no count of tokens: negative, a fraction, absurd, or no number at all.
struct Unreadable;

/// What `usage` objects say, by the names of their members.
#[derive(Clone, Copy, Default)]
pub struct Said {
    prompt: Option<u64>,
    completion: Option<u64>,
    total: Option<u64>,
    /// The Responses API, and Anthropic.
    input: Option<u64>,
    output: Option<u64>,
    cached: Option<u64>,
    reasoning: Option<u64>,
    /// Elsewhere than in the objects with details, which win.
    cached_beside: Option<u64>,
    reasoning_beside: Option<u64>,
    /// Anthropic's: of the prompt, and not in `input_tokens`.
    cache_read: Option<u64>,
    cache_written: Option<u64>,
}

/// Reads `{"prompt_tokens":..,"completion_tokens":..,"total_tokens":..}`. `None` for `null`, for
/// anything that is no object, for an object that counts nothing, and for one that cannot be read.
pub fn read(value: &[u8]) -> Option<TokenCounts> {
    let mut said = Said::default();
    said.take(value)?;
    said.counts()
}

impl Said {
    /// Takes what a further object says of the same answer: the last value of each member counts,
    /// but a zero takes nothing back. `None`, and nothing is taken, if it cannot be read.
    pub fn take(&mut self, value: &[u8]) -> Option<()> {
        let mut said = *self;
        for member in json::members(value, 0) {
            let member = member.ok()?;
            let text = &value[member.value.clone()];
            let field = match &value[member.key.clone()] {
                b"prompt_tokens" => &mut said.prompt,
                b"completion_tokens" => &mut said.completion,
                b"input_tokens" => &mut said.input,
                b"output_tokens" => &mut said.output,
                name => {
                    said.detail(name, text);
                    continue;
                }
            };
            set(field, number(text).ok()?);
        }
        *self = said;
        Some(())
    }

    /// What is only of interest if it can be read.
    fn detail(&mut self, name: &[u8], text: &[u8]) {
        let of = |name: &str| {
            let member = json::find(text, name)?;
            number(text.get(member.value)?).ok().flatten()
        };
        // Anthropic's reasoning is thinking.
        let reasoning = || of("reasoning_tokens").or_else(|| of("thinking_tokens"));
        let (field, found) = match name {
            b"total_tokens" => (&mut self.total, number(text).ok().flatten()),
            b"prompt_tokens_details" | b"input_tokens_details" => {
                (&mut self.cached, of("cached_tokens"))
            }
            b"completion_tokens_details" | b"output_tokens_details" => {
                (&mut self.reasoning, reasoning())
            }
            // Moonshot and DeepSeek.
            b"cached_tokens" | b"prompt_cache_hit_tokens" => {
                (&mut self.cached_beside, number(text).ok().flatten())
            }
            // SGLang.
            b"reasoning_tokens" => (&mut self.reasoning_beside, number(text).ok().flatten()),
            b"cache_read_input_tokens" => (&mut self.cache_read, number(text).ok().flatten()),
            b"cache_creation_input_tokens" => {
                (&mut self.cache_written, number(text).ok().flatten())
            }
            _ => return,
        };
        set(field, found);
    }

    /// All of it as counts; `None` if nothing is counted.
    pub fn counts(self) -> Option<TokenCounts> {
        let input = self.input.map(|input| {
            let cache = [self.cache_read, self.cache_written].into_iter().flatten();
            cache.fold(input, u64::saturating_add)
        });
        let (prompt, completion) = (self.prompt.or(input), self.completion.or(self.output));
        let (prompt, completion) = (prompt.unwrap_or(0), completion.unwrap_or(0));
        let total = match self.total {
            None | Some(0) => prompt.saturating_add(completion),
            Some(total) => total,
        };
        let cached = self.cached.or(self.cached_beside).or(self.cache_read);
        let reasoning = self.reasoning.or(self.reasoning_beside);
        // Zeros alone are what is written before anything is known.
        (total > 0).then_some(TokenCounts { prompt, completion, total, cached, reasoning })
    }
}

/// Sets a count, unless the new one is missing, or a zero after another.
fn set(count: &mut Option<u64>, new: Option<u64>) {
    if new.is_some_and(|new| new > 0 || count.is_none()) {
        *count = new;
    }
}

/// A count of tokens, however it is written: `12`, `12.0`, `1.2e1`, `"12"`. `None` for `null`.
fn number(value: &[u8]) -> Result<Option<u64>, Unreadable> {
    let inner = value.strip_prefix(b"\"").and_then(|v| v.strip_suffix(b"\""));
    let text = inner.unwrap_or(value).trim_ascii();
    if text == b"null" {
        return Ok(None);
    }
    let text = std::str::from_utf8(text).map_err(|_| Unreadable)?;
    let count = if text.bytes().all(|b| b.is_ascii_digit()) {
        text.parse().ok()
    } else if text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E')) {
        // Exact up to 2^53, which is far above `MOST`.
        let number: Option<f64> = text.parse().ok();
        number.filter(|n| *n >= 0.0 && *n <= MOST as f64 && n.fract() == 0.0).map(|n| n as u64)
    } else {
        None
    };
    count.filter(|n| *n <= MOST).map(Some).ok_or(Unreadable)
}

/// What is known when `new` is said after `old`. A zero, and a detail that is missing in `new`, take
/// nothing back.
pub fn after(old: Option<TokenCounts>, new: TokenCounts) -> TokenCounts {
    let Some(old) = old else { return new };
    let or = |new: u64, old: u64| if new == 0 { old } else { new };
    let (prompt, completion) = (or(new.prompt, old.prompt), or(new.completion, old.completion));
    let total = if (prompt, completion) == (new.prompt, new.completion) {
        new.total
    } else {
        prompt.saturating_add(completion).max(new.total)
    };
    let (cached, reasoning) = (new.cached.or(old.cached), new.reasoning.or(old.reasoning));
    TokenCounts { prompt, completion, total, cached, reasoning }
}

/// The counts of several answers to one prompt: the prompt is the same in all.
pub fn sum(of: impl IntoIterator<Item = TokenCounts>) -> Option<TokenCounts> {
    of.into_iter().reduce(|all, one| {
        let prompt = all.prompt.max(one.prompt);
        let completion = all.completion.saturating_add(one.completion);
        TokenCounts {
            prompt,
            completion,
            total: prompt.saturating_add(completion),
            cached: all.cached.max(one.cached),
            reasoning: both(all.reasoning, one.reasoning),
        }
    })
}

/// The counts of the answers to several prompts.
pub fn total(of: impl IntoIterator<Item = TokenCounts>) -> Option<TokenCounts> {
    of.into_iter().reduce(|all, one| TokenCounts {
        prompt: all.prompt.saturating_add(one.prompt),
        completion: all.completion.saturating_add(one.completion),
        total: all.total.saturating_add(one.total),
        cached: both(all.cached, one.cached),
        reasoning: both(all.reasoning, one.reasoning),
    })
}

fn both(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.saturating_add(b)),
        (one, other) => one.or(other),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(text: &str) -> Option<(u64, u64, u64)> {
        read(text.as_bytes()).map(|c| (c.prompt, c.completion, c.total))
    }

    fn details(text: &str) -> (Option<u64>, Option<u64>) {
        read(text.as_bytes()).map(|c| (c.cached, c.reasoning)).unwrap()
    }

    #[test]
    fn reads_counts() {
        let vllm = r#"{"prompt_tokens":21,"total_tokens":33,"completion_tokens":12,"prompt_tokens_details":null}"#;
        assert_eq!(of(vllm), Some((21, 12, 33)));
        assert_eq!(of(r#"{"prompt_tokens": 5, "total_tokens": 5}"#), Some((5, 0, 5)));
        assert_eq!(of(r#"{"prompt_tokens":1,"completion_tokens":2}"#), Some((1, 2, 3)));
        assert_eq!(
            of(r#"{"prompt_tokens":1,"completion_tokens":2,"total_tokens":-1}"#),
            Some((1, 2, 3))
        );
        for none in ["null", "{}", "7", r#"{"seconds":3}"#, "{", "[]", r#""12""#] {
            assert_eq!(of(none), None, "{none}");
        }
    }

    #[test]
    fn reads_details_wherever_they_stand() {
        for (text, cached, reasoning) in [
            (
                r#"{"prompt_tokens":9,"prompt_tokens_details":{"a":[1],"cached_tokens":4}}"#,
                Some(4),
                None,
            ),
            (
                r#"{"completion_tokens":9,"completion_tokens_details":{"reasoning_tokens":7}}"#,
                None,
                Some(7),
            ),
            (
                r#"{"prompt_tokens":3,"prompt_tokens_details":null,"reasoning_tokens":5}"#,
                None,
                Some(5),
            ),
            (
                r#"{"completion_tokens":9,"completion_tokens_details":{"reasoning_tokens":7},"reasoning_tokens":0}"#,
                None,
                Some(7),
            ),
            (r#"{"prompt_tokens":9,"cached_tokens":8}"#, Some(8), None),
            (
                r#"{"prompt_tokens":9,"cached_tokens":8,"prompt_tokens_details":{"cached_tokens":"4"}}"#,
                Some(4),
                None,
            ),
            (
                r#"{"prompt_tokens":9,"prompt_cache_hit_tokens":6.0,"prompt_cache_miss_tokens":3}"#,
                Some(6),
                None,
            ),
            (
                r#"{"input_tokens":9,"input_tokens_details":{"cached_tokens":2},"output_tokens_details":{"reasoning_tokens":1}}"#,
                Some(2),
                Some(1),
            ),
            (r#"{"prompt_tokens":9,"cached_tokens":-1,"reasoning_tokens":0.5}"#, None, None),
        ] {
            assert_eq!(details(text), (cached, reasoning), "{text}");
        }
    }

    #[test]
    fn what_is_restated_counts_member_by_member() {
        let of = |texts: &[&str]| {
            let mut said = Said::default();
            for text in texts {
                said.take(text.as_bytes());
            }
            said.counts().map(|c| (c.prompt, c.completion, c.cached, c.reasoning))
        };
        // llama.cpp, vLLM, and a search by Anthropic's servers.
        let start = r#"{"cache_read_input_tokens":16,"input_tokens":1,"output_tokens":0}"#;
        assert_eq!(of(&[start]), Some((17, 0, Some(16), None)));
        assert_eq!(of(&[start, r#"{"output_tokens":12}"#]), Some((17, 12, Some(16), None)));
        let restated = r#"{"input_tokens":2,"output_tokens":12}"#;
        assert_eq!(of(&[start, restated]), Some((18, 12, Some(16), None)));
        let searched = r#"{"input_tokens":22397,"cache_read_input_tokens":0,"output_tokens":637,
            "output_tokens_details":{"thinking_tokens":30}}"#;
        let first = r#"{"input_tokens":2068,"cache_creation_input_tokens":4,"output_tokens":1}"#;
        assert_eq!(of(&[first, searched]), Some((22401, 637, Some(0), Some(30))));
        // A zero or nonsense takes nothing back.
        for nothing in [r#"{"input_tokens":0,"output_tokens":0}"#, r#"{"output_tokens":-1}"#, "7"] {
            assert_eq!(of(&[start, restated, nothing]), Some((18, 12, Some(16), None)));
        }
    }

    #[test]
    fn other_names_count_where_the_usual_ones_are_missing() {
        assert_eq!(of(r#"{"input_tokens":4,"output_tokens":5}"#), Some((4, 5, 9)));
        assert_eq!(
            of(
                r#"{"input_tokens":4,"output_tokens":5,"prompt_tokens":7,"completion_tokens":null}"#
            ),
            Some((7, 5, 12))
        );
        // Anthropic's input is what was not in the cache.
        let cache = r#"{"input_tokens":4,"cache_read_input_tokens":10,"cache_creation_input_tokens":1,"output_tokens":5}"#;
        assert_eq!(of(cache), Some((15, 5, 20)));
        assert_eq!(details(cache).0, Some(10));
        let both = r#"{"prompt_tokens":14,"cache_read_input_tokens":10,"completion_tokens":5}"#;
        assert_eq!(of(both), Some((14, 5, 19)));
    }

    #[test]
    fn what_cannot_be_read_is_nothing() {
        let huge = format!("{}", u64::MAX);
        for bad in [
            "-1", "1.5", "1e30", "1e-1", "true", "[]", "{}", "\"\"", "\"many\"", "\"1 2\"",
            "\"inf\"", &huge,
        ] {
            assert_eq!(
                of(&format!(r#"{{"prompt_tokens":{bad},"completion_tokens":2}}"#)),
                None,
                "{bad}"
            );
            assert_eq!(
                of(&format!(r#"{{"output_tokens":{bad},"total_tokens":2}}"#)),
                None,
                "{bad}"
            );
        }
        assert_eq!(of(r#"{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}"#), None);
    }

    #[test]
    fn zero_and_null_take_nothing_back() {
        let read = |text: &str| read(text.as_bytes()).unwrap();
        let first = read(
            r#"{"prompt_tokens":4,"completion_tokens":5,"cached_tokens":2,"reasoning_tokens":3}"#,
        );
        let kept = after(
            Some(first),
            read(r#"{"prompt_tokens":4,"completion_tokens":0,"total_tokens":4}"#),
        );
        assert_eq!(kept, first);
        let more = after(
            Some(first),
            read(r#"{"prompt_tokens":4,"completion_tokens":6,"cached_tokens":0}"#),
        );
        assert_eq!((more.completion, more.total, more.cached), (6, 10, Some(0)));
    }

    proptest! {
        #[test]
        fn a_count_is_read_however_it_is_written(count in 0..=MOST, form in 0..6) {
            let text = match form {
                0 => format!("{count}"),
                1 => format!("{count}.0"),
                2 => format!("{count}e0"),
                3 => format!("\"{count}\""),
                4 => format!("{}.{:013}E+13", count / 10_000_000_000_000, count % 10_000_000_000_000),
                _ => format!("\" {count}.00 \""),
            };
            prop_assert_eq!(number(text.as_bytes()).ok(), Some(Some(count)), "{}", text);
        }
    }
}
