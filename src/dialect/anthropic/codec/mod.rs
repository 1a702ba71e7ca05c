//! Messages, Anthropic's language, to the hub and back.

mod answer;
mod blocks;
mod choice;
mod controls;
mod decode;
mod encode;
mod errors;
mod fields;
mod media;
mod parts;
mod read;
mod read_blocks;
mod read_tools;
mod result;
#[cfg(test)]
mod tests;
mod usage;
mod words;
mod write;
mod write_tools;

pub use self::{errors::reworded_overflow, words::LANGUAGE};
use crate::dialect::hub::{
    Codec, Decode, Encode, Event, Exchange, Losses, Refused, Request, Response, StreamFault,
    Target,
    target::{Traits, Words},
};

/// What Messages can say.
pub const TRAITS: Traits = Traits {
    name: LANGUAGE,
    custom_tools: false,
    namespaces: false,
    longest_tool_name: 64,
    unique_call_ids: true,
    results_required: true,
    choices: false,
    logprobs: false,
    stop: true,
    penalties: false,
    seed: false,
    logit_bias: false,
    top_k: true,
    verbosity: false,
    metadata: false,
    user: true,
    cache_key: false,
    service_tier: true,
    store: false,
    parallel_tools: true,
    modalities: false,
    cache_marks: true,
    prefill: true,
    least_output: 1,
    words: Words {
        max_output: "max_tokens",
        stop: "stop_sequences",
        effort: "output_config.effort",
        verbosity: "verbosity",
        user: "metadata.user_id",
        parallel_tools: "tool_choice.disable_parallel_tool_use",
        logprobs: "logprobs",
        state: "signature",
    },
};

/// The codec of Messages.
#[derive(Clone, Copy, Debug)]
pub struct MessagesCodec;

impl MessagesCodec {
    /// Reads a request of `count_tokens`: a request that needs no `max_tokens`.
    ///
    /// # Errors
    /// As [`Codec::read`].
    pub fn read_count(body: &str) -> Result<Request, Refused> {
        read::request(body, read::Purpose::Count)
    }
}

impl Codec for MessagesCodec {
    fn traits(&self) -> &'static Traits {
        &TRAITS
    }

    fn read(&self, body: &str) -> Result<Request, Refused> {
        read::request(body, read::Purpose::Answer)
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
        answer::read(body, exchange)
    }

    fn encoder(&self, exchange: &Exchange) -> Box<dyn Encode> {
        Box::new(encode::Encoder::new(exchange))
    }

    fn write_answer(&self, response: &Response, exchange: &Exchange) -> String {
        answer::write(response, exchange)
    }

    fn objection(&self, response: &Response) -> Option<StreamFault> {
        answer::broken_call(response)
    }

    fn read_error(&self, status: u16, body: &str) -> StreamFault {
        errors::read(status, body)
    }

    fn write_error(&self, fault: &StreamFault) -> (u16, String) {
        (errors::status(fault.class), errors::body(fault))
    }
}
