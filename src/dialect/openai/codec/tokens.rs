//! Chat's `usage`.

use serde_json::value::RawValue;

use crate::dialect::hub::{Object, Usage, Writer};

/// Reads a usage; `None`: it is none, or says nothing.
pub fn read(raw: &RawValue) -> Option<Usage> {
    let mut from = Object::parse(raw.get()).ok()?;
    let mut inner = |names: [&str; 2]| {
        let raw = names.into_iter().find_map(|name| from.take(name));
        raw.and_then(|raw| Object::parse(raw.get()).ok()).unwrap_or_default()
    };
    let mut prompt = inner(["prompt_tokens_details", "input_tokens_details"]);
    let mut answer = inner(["completion_tokens_details", "output_tokens_details"]);
    let mut usage = Usage {
        input: from.read("prompt_tokens"),
        // DeepSeek's and Moonshot's stand beside the total.
        cache_read: prompt
            .read("cached_tokens")
            .or_else(|| from.read("prompt_cache_hit_tokens"))
            .or_else(|| from.read("cached_tokens")),
        // The second is vLLM's.
        cache_write: prompt
            .read("cache_write_tokens")
            .or_else(|| prompt.read("created_cache_tokens")),
        cache_write_1h: None,
        audio_in: prompt.read("audio_tokens"),
        output: from.read("completion_tokens"),
        reasoning: answer.read("reasoning_tokens"),
        audio_out: answer.read("audio_tokens"),
        total: from.read("total_tokens").filter(|total: &u64| *total > 0),
    };
    usage.output = usage.output.map(|output| whole_output(&usage, output));
    (usage != Usage::default()).then_some(usage)
}

/// All that was generated. Some servers count reasoning beside the answer, only their total has it:
/// xAI says how much it is, Google's endpoint with this language does not.
fn whole_output(usage: &Usage, output: u64) -> u64 {
    let (Some(input), Some(total)) = (usage.input, usage.total) else { return output };
    let beside = total.saturating_sub(input.saturating_add(output));
    let cached = usage.cache_read.unwrap_or(0);
    let written = usage.cache_write.unwrap_or(0);
    let is_output = match usage.reasoning {
        Some(reasoning) if reasoning > 0 => beside == reasoning,
        // A total may have the cache beside the prompt as well.
        _ => ![cached, written, cached.saturating_add(written)].contains(&beside),
    };
    if is_output { output.saturating_add(beside) } else { output }
}

/// Writes a usage for a client. What was not reported is left out, but for the three counts that
/// each has.
pub fn write(out: &mut Writer, usage: &Usage) {
    out.object(|out| {
        out.raw_at("prompt_tokens", usage.input.unwrap_or(0));
        out.raw_at("completion_tokens", usage.output.unwrap_or(0));
        out.raw_at("total_tokens", usage.total());
        if usage.cache_read.or(usage.cache_write).or(usage.audio_in).is_some() {
            out.object_at("prompt_tokens_details", |out| {
                out.maybe_raw_at("cached_tokens", usage.cache_read);
                out.maybe_raw_at("cache_write_tokens", usage.cache_write);
                out.maybe_raw_at("audio_tokens", usage.audio_in);
            });
        }
        if usage.reasoning.or(usage.audio_out).is_some() {
            out.object_at("completion_tokens_details", |out| {
                out.maybe_raw_at("reasoning_tokens", usage.reasoning);
                out.maybe_raw_at("audio_tokens", usage.audio_out);
            });
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dialect::hub::Json;

    fn of(text: &str) -> Option<Usage> {
        read(&RawValue::from_string(text.to_owned()).unwrap())
    }

    #[test]
    fn each_servers_counts_mean_the_same() {
        let usage = |input, cache_read, output, reasoning, total| Usage {
            input: Some(input),
            cache_read,
            output: Some(output),
            reasoning,
            total,
            ..Usage::default()
        };
        for (server, text, wanted) in [
            (
                "vllm",
                r#"{"prompt_tokens":9,"total_tokens":12,"completion_tokens":3,"prompt_tokens_details":null}"#,
                usage(9, None, 3, None, Some(12)),
            ),
            (
                "openai",
                r#"{"prompt_tokens":9,"completion_tokens":3,"total_tokens":12,"prompt_tokens_details":{"cached_tokens":4},"completion_tokens_details":{"reasoning_tokens":2}}"#,
                usage(9, Some(4), 3, Some(2), Some(12)),
            ),
            (
                "xai: reasoning is not in the answer's count",
                r#"{"prompt_tokens":9,"completion_tokens":3,"total_tokens":14,"completion_tokens_details":{"reasoning_tokens":2}}"#,
                usage(9, None, 5, Some(2), Some(14)),
            ),
            (
                "reasoning that fits no total is in the answer's count",
                r#"{"prompt_tokens":9,"completion_tokens":3,"total_tokens":16,"completion_tokens_details":{"reasoning_tokens":2}}"#,
                usage(9, None, 3, Some(2), Some(16)),
            ),
            (
                "google: only the total has the reasoning",
                r#"{"prompt_tokens":9,"completion_tokens":3,"total_tokens":112}"#,
                usage(9, None, 103, None, Some(112)),
            ),
            (
                "a cache beside the prompt is no answer",
                r#"{"prompt_tokens":9,"completion_tokens":3,"total_tokens":20,"prompt_tokens_details":{"cached_tokens":8}}"#,
                usage(9, Some(8), 3, None, Some(20)),
            ),
            (
                "a total that is less says nothing",
                r#"{"prompt_tokens":9,"completion_tokens":3,"total_tokens":10}"#,
                usage(9, None, 3, None, Some(10)),
            ),
            (
                "deepseek",
                r#"{"prompt_tokens":9,"completion_tokens":3,"total_tokens":12,"prompt_cache_hit_tokens":8,"prompt_cache_miss_tokens":1}"#,
                usage(9, Some(8), 3, None, Some(12)),
            ),
            (
                "a total of 0 is none",
                r#"{"prompt_tokens":9,"completion_tokens":3,"total_tokens":0}"#,
                usage(9, None, 3, None, None),
            ),
        ] {
            assert_eq!(of(text), Some(wanted), "{server}");
        }
        assert_eq!((of("null"), of("{}"), of("[]")), (None, None, None));
    }

    #[test]
    fn what_was_not_reported_is_not_said_to_be_nothing() {
        let usage = Usage { input: Some(9), output: Some(3), ..Usage::default() };
        let out = Json::written(|out| write(out, &usage));
        assert_eq!(out.as_str(), r#"{"prompt_tokens":9,"completion_tokens":3,"total_tokens":12}"#);
    }
}
