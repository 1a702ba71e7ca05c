//! The hub: the neutral form that a request or an answer takes on its way from one language to
//! another. Each language has one [`Codec`] to and from it, so that a new language is one more
//! codec and not one for each of the others.
//!
//! A translation is a pure function: no clock, no random ids. The same history gives the same
//! bytes, and a longer history begins with the bytes of the shorter one; caches of prompts and
//! signatures of reasoning depend on it.
//!
//! The same language in and out never passes through here, except where an answer has to change
//! its form (a document for a client that was promised a stream).

pub mod codec;
pub mod effort;
pub mod envelope;
pub mod event;
pub mod fault;
pub mod json;
pub mod loss;
pub mod normal;
pub mod prepare;
pub mod request;
pub mod response;
pub mod serial;
#[cfg(test)]
pub mod stopwatch;
pub mod target;
pub mod tool_names;
pub mod translator;
pub mod usage;

pub use self::{
    codec::{Codec, Decode, Encode, Exchange, Outgoing},
    event::{Event, PartKind, Start, StopReason},
    fault::{Class, StreamFault},
    json::{Json, Object, Writer},
    loss::{Losses, Refused},
    request::{Extension, Part, Request, Role, Turn},
    response::{Choice, Response},
    target::{ModelFacts, Target},
    translator::Translator,
    usage::Usage,
};
