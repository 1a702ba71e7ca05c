//! Chat Completions to the hub and back.
//!
//! Its oldest form, `functions` and `function_call`, is read as tools; a client that used it gets
//! its calls in that form, backends are sent `tools`.

mod answer;
#[cfg(test)]
mod answer_tests;
mod calls;
mod content;
mod decode;
mod details;
mod encode;
pub mod errors;
mod head;
mod members;
mod read;
mod read_messages;
mod read_parts;
#[cfg(test)]
mod tests;
mod tokens;
mod tools;
mod words;
mod write;
mod write_messages;

use crate::dialect::hub::{
    Codec, Decode, Encode, Event, Exchange, Losses, Refused, Request, Response, StreamFault,
    Target,
    target::{Traits, Words},
};

/// What Chat can say. Words that only some of its servers know are kept from the others by
/// [`crate::dialect::hub::target::Quirks`]. Tools with free text are functions for all of them:
/// most servers know no others.
pub const TRAITS: Traits = Traits {
    name: words::LANGUAGE,
    custom_tools: false,
    namespaces: false,
    longest_tool_name: 64,
    unique_call_ids: false,
    results_required: true,
    choices: true,
    logprobs: true,
    stop: true,
    penalties: true,
    seed: true,
    logit_bias: true,
    top_k: true,
    verbosity: true,
    metadata: true,
    user: true,
    cache_key: true,
    service_tier: true,
    store: true,
    parallel_tools: true,
    modalities: true,
    cache_marks: true,
    prefill: true,
    least_output: 1,
    words: Words {
        max_output: "max_tokens",
        stop: "stop",
        effort: "reasoning_effort",
        verbosity: "verbosity",
        user: "user",
        parallel_tools: "parallel_tool_calls",
        logprobs: "logprobs",
        state: "reasoning_details",
    },
};

/// Chat Completions.
#[derive(Clone, Copy, Debug, Default)]
pub struct ChatCodec;

impl Codec for ChatCodec {
    fn traits(&self) -> &'static Traits {
        &TRAITS
    }

    fn read(&self, body: &str) -> Result<Request, Refused> {
        read::request(body)
    }

    fn write(
        &self,
        request: &Request,
        target: &Target,
        losses: &mut Losses,
    ) -> Result<String, Refused> {
        write::request(request, target, losses)
    }

    fn decoder(&self, exchange: &Exchange) -> Box<dyn Decode> {
        Box::new(decode::Decoder::new(exchange))
    }

    fn read_answer(&self, body: &str, exchange: &Exchange) -> Result<Vec<Event>, StreamFault> {
        decode::answer(body, exchange)
    }

    fn encoder(&self, exchange: &Exchange) -> Box<dyn Encode> {
        Box::new(encode::Encoder::new(exchange))
    }

    fn write_answer(&self, response: &Response, exchange: &Exchange) -> String {
        answer::document(response, exchange)
    }

    fn read_error(&self, status: u16, body: &str) -> StreamFault {
        errors::read(status, body)
    }

    fn write_error(&self, fault: &StreamFault) -> (u16, String) {
        (errors::status(fault.class), errors::body(fault))
    }
}
