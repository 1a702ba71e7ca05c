//! How a language goes to the hub and back.

use super::{
    event::Event,
    fault::StreamFault,
    loss::{Losses, Refused},
    request::{ClientWishes, Request},
    response::Response,
    target::{Target, Traits},
};

/// A language's way to the hub and back.
pub trait Codec: Sync {
    /// What it can say.
    fn traits(&self) -> &'static Traits;

    /// Reads a client's request. Everything of it is in what comes out: [`Self::write`] restores it.
    ///
    /// # Errors
    /// What is wrong in this language itself: a member of the wrong type, a role that does not
    /// exist.
    fn read(&self, body: &str) -> Result<Request, Refused>;

    /// Writes a request for a backend. It has been prepared for the backend unless it is of this
    /// language. What has no place is noted.
    ///
    /// # Errors
    /// What this language cannot say, and what must not be left out silently.
    fn write(
        &self,
        request: &Request,
        target: &Target,
        losses: &mut Losses,
    ) -> Result<String, Refused>;

    /// Reads the events of a backend's stream.
    fn decoder(&self, exchange: &Exchange) -> Box<dyn Decode>;

    /// Reads a backend's plain answer, as the events of a stream that come at once. The last one is
    /// [`Event::End`].
    ///
    /// # Errors
    /// If it cannot be read, or says that the answer has failed.
    fn read_answer(&self, body: &str, exchange: &Exchange) -> Result<Vec<Event>, StreamFault>;

    /// Writes a client's stream.
    fn encoder(&self, exchange: &Exchange) -> Box<dyn Encode>;

    /// Writes a client's plain answer.
    fn write_answer(&self, response: &Response, exchange: &Exchange) -> String;

    /// Why an answer cannot be written as a plain one, although it has not failed; it fails with this
    /// then.
    fn objection(&self, _response: &Response) -> Option<StreamFault> {
        None
    }

    /// Reads the body of a backend's error response.
    fn read_error(&self, status: u16, body: &str) -> StreamFault;

    /// The body of an error response, and its status.
    fn write_error(&self, fault: &StreamFault) -> (u16, String);
}

/// Reads a stream. The events of a choice come in order, but parts may overlap: what puts them one
/// behind the other is [`super::serial::Serial`].
pub trait Decode: Send + Sync {
    /// Takes an event: its name, if it has one, and its data.
    fn event(&mut self, name: Option<&str>, data: &str, out: &mut Vec<Event>);

    /// The body has ended, without an error of the connection. A decoder that has seen the end of
    /// the answer says [`Event::End`] now, if it has not yet; one that has not says nothing.
    fn end(&mut self, out: &mut Vec<Event>);
}

/// Writes a stream. It is given events in order: one [`Event::Start`], parts one behind the other,
/// and at the end [`Event::End`] or [`Event::Fault`], once.
pub trait Encode: Send + Sync {
    /// Takes an event, and writes what the client gets.
    fn event(&mut self, event: &Event, out: &mut String);
}

/// What the answer's side has to know of the request.
#[derive(Clone, Debug, Default)]
pub struct Exchange {
    /// The model's name as the client knows it; `None`: as the backend says.
    pub model: Option<String>,
    /// When the request came, in seconds since 1970.
    pub created: i64,
    /// What the client wants of the answer's form.
    pub client: ClientWishes,
    /// What was changed in the request and is changed back in the answer.
    pub undo: Undo,
    /// Whose state the answer's reasoning has.
    pub issuer: String,
    /// The backend's language.
    pub backend: &'static str,
    /// Reasoning is shown to Responses clients as summaries, not as text.
    pub summaries: bool,
}

/// What was changed in a request and is changed back in its answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Undo {
    /// Tools whose names were changed.
    pub tools: Vec<RenamedTool>,
}

/// A tool that has another name, or another kind, at the backend.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RenamedTool {
    /// Its name there.
    pub sent: String,
    /// Its name for the client.
    pub name: String,
    /// Its group for the client.
    pub namespace: Option<String>,
    /// It takes free text, and was sent as a function with one text, `input`.
    pub custom: bool,
}

/// A request as it goes to a backend.
#[derive(Clone, Debug, Default)]
pub struct Outgoing {
    /// The body.
    pub body: String,
    /// What it has lost.
    pub losses: Losses,
    /// What is to be undone in the answer.
    pub undo: Undo,
}
