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
    cache_write: Option<u64>,
    reasoning: Option<u64>,
    audio_prompt: Option<u64>,
    audio_completion: Option<u64>,
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
        let field = match name {
            b"prompt_tokens_details" | b"input_tokens_details" => return self.prompt_parts(text),
            b"completion_tokens_details" | b"output_tokens_details" => {
                return self.completion_parts(text);
            }
            b"total_tokens" => &mut self.total,
            // Moonshot and DeepSeek.
            b"cached_tokens" | b"prompt_cache_hit_tokens" => &mut self.cached_beside,
            // SGLang.
            b"reasoning_tokens" => &mut self.reasoning_beside,
            b"cache_read_input_tokens" => &mut self.cache_read,
            b"cache_creation_input_tokens" => &mut self.cache_written,
            _ => return,
        };
        set(field, number(text).ok().flatten());
    }

    /// An object with the parts of the prompt.
    fn prompt_parts(&mut self, details: &[u8]) {
        for (name, count) in parts(details) {
            match name {
                b"cached_tokens" => set(&mut self.cached, count),
                // The second is vLLM's.
                b"cache_write_tokens" | b"created_cache_tokens" => {
                    set(&mut self.cache_write, count);
                }
                b"audio_tokens" => set(&mut self.audio_prompt, count),
                _ => {}
            }
        }
    }

    /// An object with the parts of the answer.
    fn completion_parts(&mut self, details: &[u8]) {
        for (name, count) in parts(details) {
            match name {
                // Anthropic's reasoning is thinking.
                b"reasoning_tokens" | b"thinking_tokens" => set(&mut self.reasoning, count),
                b"audio_tokens" => set(&mut self.audio_completion, count),
                _ => {}
            }
        }
    }

    /// All of it as counts; `None` if nothing is counted.
    pub fn counts(self) -> Option<TokenCounts> {
        let input = self.input.map(|input| {
            let cache = [self.cache_read, self.cache_written].into_iter().flatten();
            cache.fold(input, u64::saturating_add)
        });
        let (prompt, completion) = (self.prompt.or(input), self.completion.or(self.output));
        let (prompt, mut completion) = (prompt.unwrap_or(0), completion.unwrap_or(0));
        let reasoning = self.reasoning.or(self.reasoning_beside);
        let sum = prompt.saturating_add(completion);
        let total = self.total.filter(|total| *total > 0).unwrap_or(sum);
        let beside = reasoning.unwrap_or(0);
        if beside > 0 && total == sum.saturating_add(beside) {
            // xAI counts reasoning beside the answer, as its total shows.
            completion = completion.saturating_add(beside);
        }
        // Zeros alone are what is written before anything is known.
        (total > 0).then_some(TokenCounts {
            prompt,
            completion,
            total,
            cached: self.cached.or(self.cached_beside).or(self.cache_read),
            cache_write: self.cache_write.or(self.cache_written),
            reasoning,
            audio_prompt: self.audio_prompt,
            audio_completion: self.audio_completion,
        })
    }
}

/// The members of an object with details; none if it is `null`. A count that cannot be read is
/// `None`.
fn parts(details: &[u8]) -> impl Iterator<Item = (&[u8], Option<u64>)> {
    json::members(details, 0).map_while(Result::ok).map(|member| {
        let count = number(&details[member.value]).ok().flatten();
        (&details[member.key], count)
    })
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
    TokenCounts {
        prompt,
        completion,
        total,
        cached: new.cached.or(old.cached),
        cache_write: new.cache_write.or(old.cache_write),
        reasoning: new.reasoning.or(old.reasoning),
        audio_prompt: new.audio_prompt.or(old.audio_prompt),
        audio_completion: new.audio_completion.or(old.audio_completion),
    }
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
            cache_write: all.cache_write.max(one.cache_write),
            reasoning: both(all.reasoning, one.reasoning),
            audio_prompt: all.audio_prompt.max(one.audio_prompt),
            audio_completion: both(all.audio_completion, one.audio_completion),
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
        cache_write: both(all.cache_write, one.cache_write),
        reasoning: both(all.reasoning, one.reasoning),
        audio_prompt: both(all.audio_prompt, one.audio_prompt),
        audio_completion: both(all.audio_completion, one.audio_completion),
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
    fn reads_writes_to_caches_and_audio() {
        type Parts = (Option<u64>, Option<u64>, Option<u64>);
        let parts = |text: &str| -> Parts {
            let counts = read(text.as_bytes()).unwrap();
            (counts.cache_write, counts.audio_prompt, counts.audio_completion)
        };
        for (text, expected) in [
            (
                r#"{"prompt_tokens":9,"prompt_tokens_details":{"cached_tokens":4,"cache_write_tokens":5,"audio_tokens":3},
                   "completion_tokens":7,"completion_tokens_details":{"audio_tokens":6,"reasoning_tokens":0}}"#,
                (Some(5), Some(3), Some(6)),
            ),
            // vLLM.
            (
                r#"{"prompt_tokens":9,"prompt_tokens_details":{"created_cache_tokens":2,"cached_tokens":1}}"#,
                (Some(2), None, None),
            ),
            // Responses.
            (
                r#"{"input_tokens":9,"input_tokens_details":{"cache_write_tokens":8,"cached_tokens":0},"output_tokens":2,"output_tokens_details":{}}"#,
                (Some(8), None, None),
            ),
            (
                r#"{"input_tokens":1,"cache_creation_input_tokens":8,"cache_read_input_tokens":2,"output_tokens":2}"#,
                (Some(8), None, None),
            ),
            (
                r#"{"prompt_tokens":9,"prompt_tokens_details":{"audio_tokens":-1,"cache_write_tokens":{}}}"#,
                (None, None, None),
            ),
            (
                r#"{"prompt_tokens":9,"prompt_tokens_details":[{"audio_tokens":1}],"audio_tokens":4}"#,
                (None, None, None),
            ),
            (
                r#"{"prompt_tokens":9,"prompt_tokens_details":{"audio_tokens":0},"completion_tokens_details":null}"#,
                (None, Some(0), None),
            ),
        ] {
            assert_eq!(parts(text), expected, "{text}");
        }
    }

    #[test]
    fn reasoning_beside_the_answer_is_added_if_the_total_contains_it() {
        let usage = |total: &str| {
            format!(
                r#"{{"prompt_tokens":32,"completion_tokens":9,{total}
                    "completion_tokens_details":{{"reasoning_tokens":100}}}}"#
            )
        };
        // xAI.
        assert_eq!(of(&usage(r#""total_tokens":141,"#)), Some((32, 109, 141)));
        for total in [41, 140, 142] {
            let text = usage(&format!(r#""total_tokens":{total},"#));
            assert_eq!(of(&text), Some((32, 9, total)), "{text}");
        }
        assert_eq!(of(&usage("")), Some((32, 9, 41)));
        // The same again, as streams repeat it.
        let twice = after(
            read(usage(r#""total_tokens":141,"#).as_bytes()),
            read(usage(r#""total_tokens":141,"#).as_bytes()).unwrap(),
        );
        assert_eq!((twice.completion, twice.total, twice.reasoning), (109, 141, Some(100)));
        let none =
            r#"{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5,"reasoning_tokens":0}"#;
        assert_eq!(of(none), Some((3, 2, 5)));
    }

    #[test]
    fn answers_to_one_prompt_share_its_parts() {
        let one = TokenCounts {
            prompt: 10,
            completion: 4,
            total: 14,
            cached: Some(3),
            cache_write: Some(5),
            reasoning: Some(1),
            audio_prompt: Some(2),
            audio_completion: Some(3),
        };
        let bare = TokenCounts { prompt: 10, completion: 6, total: 16, ..TokenCounts::default() };
        let of_one = TokenCounts {
            completion: 14,
            total: 24,
            reasoning: Some(2),
            audio_completion: Some(6),
            ..one
        };
        assert_eq!(sum([one, bare, one]), Some(of_one));
        let of_all = TokenCounts {
            prompt: 30,
            completion: 14,
            total: 44,
            cached: Some(6),
            cache_write: Some(10),
            reasoning: Some(2),
            audio_prompt: Some(4),
            audio_completion: Some(6),
        };
        assert_eq!(total([one, bare, one]), Some(of_all));
        assert_eq!(after(Some(one), bare), TokenCounts { completion: 6, total: 16, ..one });
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
