//! What is known of hosted APIs and of engines: the languages that they speak, and where they differ
//! from OpenAI's Chat. Facts, from the vendors' documentation; nothing here decides anything.

use crate::{
    config::choices::{Engine, Vendor},
    dialect::hub::target::Quirks,
};

/// The names of the languages that a vendor speaks under one base address, in order of preference.
pub fn languages(vendor: Vendor) -> &'static [&'static str] {
    match vendor {
        Vendor::Anthropic => &["messages"],
        Vendor::Openai | Vendor::Xai | Vendor::Groq | Vendor::Openrouter => &["chat", "responses"],
        Vendor::Cerebras
        | Vendor::Deepseek
        | Vendor::Fireworks
        | Vendor::Mistral
        | Vendor::Moonshot
        | Vendor::Together
        | Vendor::Zai => &["chat"],
    }
}

/// A hosted service in general: limits and roles as OpenAI had them first, nothing of an engine.
fn hosted() -> Quirks {
    Quirks { reasoning_field: None, continues: false, effort_none: false, ..Quirks::default() }
}

/// How requests in Chat are written for a vendor.
pub fn of_vendor(vendor: Vendor) -> Quirks {
    let refuses = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    match vendor {
        Vendor::Openai => Quirks {
            max_completion_tokens: true,
            developer: true,
            one_system: false,
            flat_text: false,
            custom_tools: Some(true),
            ..hosted()
        },
        Vendor::Anthropic | Vendor::Xai => hosted(),
        Vendor::Deepseek => Quirks {
            reasoning_field: Some("reasoning_content"),
            reasoning_on_calls: true,
            completions: false,
            ..hosted()
        },
        Vendor::Moonshot => Quirks {
            reasoning_field: Some("reasoning_content"),
            reasoning_on_calls: true,
            completions: false,
            ..hosted()
        },
        Vendor::Zai => Quirks {
            reasoning_field: Some("reasoning_content"),
            cache_control: true,
            flat_text: false,
            refuses: refuses(&["frequency_penalty", "presence_penalty", "seed", "n"]),
            completions: false,
            ..hosted()
        },
        Vendor::Openrouter => Quirks {
            reasoning_field: Some("reasoning"),
            cache_control: true,
            flat_text: false,
            one_system: false,
            ..hosted()
        },
        Vendor::Groq => Quirks {
            max_completion_tokens: true,
            refuses: refuses(&["logprobs", "top_logprobs", "logit_bias", "n"]),
            completions: false,
            ..hosted()
        },
        Vendor::Cerebras => Quirks {
            max_completion_tokens: true,
            refuses: refuses(&[
                "frequency_penalty",
                "presence_penalty",
                "logit_bias",
                "parallel_tool_calls",
                "service_tier",
            ]),
            ..hosted()
        },
        Vendor::Mistral => Quirks { stream_options: false, completions: false, ..hosted() },
        Vendor::Together | Vendor::Fireworks => {
            Quirks { reasoning_field: Some("reasoning_content"), ..hosted() }
        }
    }
}

/// How requests in Chat are written for an engine.
pub fn of_engine(engine: Engine) -> Quirks {
    match engine {
        Engine::Vllm => Quirks::default(),
        Engine::Sglang | Engine::Llamacpp => {
            let reasoning_field = Some("reasoning_content");
            Quirks { reasoning_field, continues: false, ..Quirks::default() }
        }
        Engine::Tgi | Engine::Other => hosted(),
    }
}
