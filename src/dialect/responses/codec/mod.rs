//! OpenAI's Responses to the hub and back.
//!
//! A request's flat list of items becomes turns; how it was cut into items is kept beside them, in
//! members of extensions whose names begin with `@`: they restore the form of the source and say
//! nothing, so that leaving them out is no loss.

mod answer;
mod decode;
mod echo;
mod encode;
mod items;
mod lookup;
mod members;
mod message;
mod node;
mod output;
mod parts;
mod read;
#[cfg(test)]
mod tests;
mod tools;
mod traits;
mod write;
mod write_items;

pub use self::traits::TRAITS;
use crate::dialect::{
    hub::{
        Codec, Decode, Encode, Event, Exchange, Losses, Refused, Request, Response, StreamFault,
        Target, target::Traits,
    },
    openai::codec::errors,
};

/// The codec of Responses.
pub struct ResponsesCodec;

impl Codec for ResponsesCodec {
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
