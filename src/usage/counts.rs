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
            _ => {}
        }
    }
    counts.total = total.unwrap_or(counts.prompt + counts.completion);
    seen.then_some(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_counts() {
        let vllm = br#"{"prompt_tokens":21,"total_tokens":33,"completion_tokens":12,"prompt_tokens_details":null}"#;
        assert_eq!(read(vllm), Some(TokenCounts { prompt: 21, completion: 12, total: 33 }));
        let embeddings = br#"{"prompt_tokens": 5, "total_tokens": 5}"#;
        assert_eq!(read(embeddings), Some(TokenCounts { prompt: 5, completion: 0, total: 5 }));
        let no_total = br#"{"prompt_tokens":1,"completion_tokens":2}"#;
        assert_eq!(read(no_total).unwrap().total, 3);
        for none in [&b"null"[..], b"{}", b"7", br#"{"seconds":3}"#, b"{"] {
            assert_eq!(read(none), None);
        }
    }
}
