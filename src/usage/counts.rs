//! Reading a `usage` object, in OpenAI's words.

use crate::{base::TokenCounts, wire::json};

/// Reads `{"prompt_tokens":..,"completion_tokens":..,"total_tokens":..}`. `None` for `null`, for
/// anything that is no object, and for an object that has none of the three.
pub fn read(value: &[u8]) -> Option<TokenCounts> {
    let mut counts = TokenCounts::default();
    let mut seen = false;
    let mut total = None;
    for member in json::members(value, 0) {
        let member = member.ok()?;
        let number = || std::str::from_utf8(&value[member.value.clone()]).ok()?.parse::<u64>().ok();
        match &value[member.key.clone()] {
            b"prompt_tokens" => (counts.prompt, seen) = (number().unwrap_or(0), true),
            b"completion_tokens" => (counts.completion, seen) = (number().unwrap_or(0), true),
            b"total_tokens" => (total, seen) = (number(), true),
            b"prompt_tokens_details" => {
                counts.cached = detail(&value[member.value.clone()], b"cached_tokens");
            }
            b"completion_tokens_details" => {
                let told = detail(&value[member.value.clone()], b"reasoning_tokens");
                counts.reasoning = told.or(counts.reasoning);
            }
            // SGLang's place for it; OpenAI's own wins.
            b"reasoning_tokens" => counts.reasoning = counts.reasoning.or(number()),
            _ => {}
        }
    }
    counts.total = total.unwrap_or_else(|| counts.prompt.saturating_add(counts.completion));
    seen.then_some(counts)
}

/// A number in one of the objects with details, which are `null` or absent unless the engine was told
/// to write them (vLLM: `--enable-prompt-tokens-details`).
fn detail(details: &[u8], name: &[u8]) -> Option<u64> {
    let mut members = json::members(details, 0).map_while(Result::ok);
    let found = members.find(|m| &details[m.key.clone()] == name)?;
    std::str::from_utf8(details.get(found.value)?).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_counts() {
        let vllm = br#"{"prompt_tokens":21,"total_tokens":33,"completion_tokens":12,"prompt_tokens_details":null}"#;
        assert_eq!(
            read(vllm),
            Some(TokenCounts { prompt: 21, completion: 12, total: 33, ..TokenCounts::default() })
        );
        let embeddings = br#"{"prompt_tokens": 5, "total_tokens": 5}"#;
        assert_eq!(
            read(embeddings),
            Some(TokenCounts { prompt: 5, completion: 0, total: 5, ..TokenCounts::default() })
        );
        let cached = br#"{"prompt_tokens":9,"prompt_tokens_details":{"a":[1],"cached_tokens":4}}"#;
        assert_eq!(read(cached).unwrap().cached, Some(4));
        let details =
            br#"{"completion_tokens":9,"completion_tokens_details":{"reasoning_tokens":7}}"#;
        assert_eq!(read(details).unwrap().reasoning, Some(7));
        let sglang = br#"{"prompt_tokens":3,"completion_tokens":9,"total_tokens":12,"prompt_tokens_details":null,"reasoning_tokens":5}"#;
        assert_eq!(read(sglang).unwrap().reasoning, Some(5));
        let both = br#"{"completion_tokens":9,"completion_tokens_details":{"reasoning_tokens":7},"reasoning_tokens":0}"#;
        assert_eq!(read(both).unwrap().reasoning, Some(7));
        let no_total = br#"{"prompt_tokens":1,"completion_tokens":2}"#;
        assert_eq!(read(no_total).unwrap().total, 3);
        let most = format!(r#"{{"prompt_tokens":{0},"completion_tokens":{0}}}"#, u64::MAX);
        assert_eq!(read(most.as_bytes()).unwrap().total, u64::MAX);
        for none in [&b"null"[..], b"{}", b"7", br#"{"seconds":3}"#, b"{"] {
            assert_eq!(read(none), None);
        }
    }
}
