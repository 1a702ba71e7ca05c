//! Counting the tokens of a request, from language to language: what is counted is translated as the
//! request itself would be, and the count is written in the client's way.

use super::hub::{
    Codec, Decode, Encode, Event, Exchange, Losses, Object, Refused, Request, Response, Start,
    StopReason, StreamFault, Target, Usage, Writer, fault::Class, target::Traits,
};

/// The counting of one language.
pub struct Counting {
    /// The language of what is counted.
    pub codec: &'static dyn Codec,
    /// Reads a client's request, which needs less than one for an answer.
    pub read: fn(&str) -> Result<Request, Refused>,
    /// The members of a request for an answer that a request for a count has.
    pub members: &'static [&'static str],
    /// Where the count stands in the answer.
    pub count: &'static str,
    /// What else stands in the answer, in front of it.
    pub object: Option<&'static str>,
}

impl Codec for Counting {
    fn traits(&self) -> &'static Traits {
        self.codec.traits()
    }

    fn read(&self, body: &str) -> Result<Request, Refused> {
        (self.read)(body)
    }

    fn write(
        &self,
        request: &Request,
        target: &Target,
        losses: &mut Losses,
    ) -> Result<String, Refused> {
        let body = self.codec.write(request, target, losses)?;
        let whole = Object::parse(&body).map_err(|e| Refused::new("", e.to_string()))?;
        let mut out = Writer::default();
        out.object(|out| {
            for (name, value) in whole.members().filter(|(name, _)| self.members.contains(name)) {
                out.name(name).raw(value.get());
            }
        });
        Ok(out.finish())
    }

    fn decoder(&self, _exchange: &Exchange) -> Box<dyn Decode> {
        Box::new(Silent)
    }

    fn read_answer(&self, body: &str, _exchange: &Exchange) -> Result<Vec<Event>, StreamFault> {
        let count = Object::parse(body).ok().and_then(|mut answer| answer.read::<u64>(self.count));
        let Some(count) = count.filter(|count| *count > 0) else {
            return Err(StreamFault::new(Class::Server, "The backend has not counted the tokens"));
        };
        Ok(vec![
            Event::Start(Start::default()),
            Event::Usage(Usage { input: Some(count), ..Usage::default() }),
            Event::Stop { choice: 0, reason: StopReason::EndTurn },
            Event::End,
        ])
    }

    fn encoder(&self, _exchange: &Exchange) -> Box<dyn Encode> {
        Box::new(Silent)
    }

    fn write_answer(&self, response: &Response, _exchange: &Exchange) -> String {
        self.answer(response.usage.input.unwrap_or(0))
    }

    fn read_error(&self, status: u16, body: &str) -> StreamFault {
        self.codec.read_error(status, body)
    }

    fn write_error(&self, fault: &StreamFault) -> (u16, String) {
        self.codec.write_error(fault)
    }
}

impl Counting {
    /// The answer with this count.
    pub fn answer(&self, count: u64) -> String {
        let mut out = Writer::default();
        out.object(|out| {
            out.maybe_text_at("object", self.object);
            out.raw_at(self.count, count);
        });
        out.finish()
    }
}

/// Counts are never streamed.
struct Silent;

impl Decode for Silent {
    fn event(&mut self, _name: Option<&str>, _data: &str, _out: &mut Vec<Event>) {}

    fn end(&mut self, _out: &mut Vec<Event>) {}
}

impl Encode for Silent {
    fn event(&mut self, _event: &Event, _out: &mut String) {}
}
