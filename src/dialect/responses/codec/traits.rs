//! What Responses can say.

use crate::dialect::hub::target::{Traits, Words};

/// The language's name.
pub const NAME: &str = "responses";

/// What the vendor's Responses can say. Open servers take more (`top_k`, penalties, `seed`), which
/// the vendor refuses.
pub const TRAITS: Traits = Traits {
    name: NAME,
    custom_tools: true,
    namespaces: true,
    longest_tool_name: 64,
    unique_call_ids: true,
    results_required: true,
    choices: false,
    logprobs: true,
    stop: false,
    penalties: false,
    seed: false,
    logit_bias: false,
    top_k: false,
    verbosity: true,
    metadata: true,
    user: true,
    cache_key: true,
    service_tier: true,
    store: true,
    parallel_tools: true,
    modalities: false,
    cache_marks: true,
    prefill: false,
    least_output: 16,
    words: Words {
        max_output: "max_output_tokens",
        stop: "stop",
        effort: "reasoning.effort",
        verbosity: "text.verbosity",
        user: "user",
        parallel_tools: "parallel_tool_calls",
        logprobs: "top_logprobs",
        state: "encrypted_content",
    },
};
