//! What is known of models of hosted vendors, by their names. Facts, from the vendors'
//! documentation, as of November 2026; `models.NAME.abilities` takes precedence.

use crate::dialect::hub::{ModelFacts, target::Thinking};

/// What is known of a model, by its name at the backend.
pub fn of(model: &str) -> ModelFacts {
    // Aggregators put the vendor in front: `anthropic/claude-...`.
    let name = model.rsplit('/').next().unwrap_or(model);
    if let Some(rest) = name.strip_prefix("claude-") {
        return claude(rest);
    }
    if let Some(version) = name.strip_prefix("gpt-").and_then(version) {
        return gpt(version);
    }
    ModelFacts::default()
}

/// Claude: from 4.6 on effort is a word, before it a number of tokens; from 4.7 on sampling is the
/// model's own.
fn claude(rest: &str) -> ModelFacts {
    let mut numbers = rest.split('-').filter_map(|piece| piece.parse::<u32>().ok());
    let major = numbers.next();
    // A date follows where there is no minor version.
    let minor = numbers.next().filter(|minor| *minor < 100).unwrap_or(0);
    let Some(major) = major else { return ModelFacts::default() };
    let at_least = |wanted: (u32, u32)| (major, minor) >= wanted;
    ModelFacts {
        thinking: if at_least((4, 6)) { Thinking::Effort } else { Thinking::Budget },
        sampling: at_least((4, 7)).then_some(false),
        // From 4 on; the larger limits of some models are for the configuration to say.
        default_output: (major >= 4).then_some(32_000),
        vision: Some(true),
        tools: Some(true),
        ..ModelFacts::default()
    }
}

/// GPT: from 5.6 on function tools are refused in Chat while the model reasons; 6 takes no sampling
/// with reasoning, which most of its models cannot switch off.
fn gpt((major, minor): (u32, u32)) -> ModelFacts {
    ModelFacts {
        chat_tools: ((major, minor) >= (5, 6)).then_some(false),
        sampling: (major >= 6).then_some(false),
        ..ModelFacts::default()
    }
}

/// `5.6-mini` is 5.6; `4o` is 4.0.
fn version(text: &str) -> Option<(u32, u32)> {
    let number = |text: &str| {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        text[..digits].parse::<u32>().ok()
    };
    let major = number(text)?;
    let minor = text.split_once('.').and_then(|(_, minor)| number(minor)).unwrap_or(0);
    Some((major, minor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_names() {
        let facts = |name| {
            let facts = of(name);
            (facts.thinking, facts.sampling, facts.chat_tools)
        };
        for (name, expected) in [
            ("claude-opus-4-7", (Thinking::Effort, Some(false), None)),
            ("claude-sonnet-4-6", (Thinking::Effort, None, None)),
            ("claude-sonnet-4-20250514", (Thinking::Budget, None, None)),
            ("anthropic/claude-fable-5-1", (Thinking::Effort, Some(false), None)),
            ("claude-3-5-haiku-20241022", (Thinking::Budget, None, None)),
            ("gpt-4o-mini", (Thinking::Unknown, None, None)),
            ("gpt-5", (Thinking::Unknown, None, None)),
            ("gpt-5.6-mini", (Thinking::Unknown, None, Some(false))),
            ("gpt-6.2", (Thinking::Unknown, Some(false), Some(false))),
            ("gpt-oss-120b", (Thinking::Unknown, None, None)),
            ("Qwen/Qwen3-8B", (Thinking::Unknown, None, None)),
            ("claude-instant", (Thinking::Unknown, None, None)),
        ] {
            assert_eq!(facts(name), expected, "{name}");
        }
    }
}
