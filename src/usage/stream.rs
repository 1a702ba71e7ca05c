//! Metering a stream of server-sent events: finds the counts, and takes out again what the
//! gateway itself had asked the engine to add.
//!
//! Asking vLLM and llama.cpp for usage changes more than it adds: members that otherwise stand in
//! the last chunk of a choice (`system_fingerprint` of vLLM, `timings` of llama.cpp) move to the
//! usage chunk. So that the client's stream is byte for byte what it would have been, a chunk
//! that ends a choice is kept back until the next event has come (the engines send it in the same
//! write), and what the usage chunk took from it is put back.

use bytes::{BufMut, Bytes, BytesMut};
use memchr::memmem;

use super::{counts, named};
use crate::{
    base::{TokenCounts, UsageSource},
    wire::{
        json,
        sse::{self, Data, Piece, Splitter},
    },
};

/// What to take out of the stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Strip {
    /// Nothing: the client asked for all of it, or nothing was added.
    #[default]
    Nothing,
    /// The running figures; the usage chunk at the end is the client's.
    Running,
    /// All usage: the client asked for none.
    All {
        /// Also `"usage":null`, which OpenAI's own servers put into every chunk once usage is
        /// asked for. SGLang writes it always, so it is not taken out unless it is known to be
        /// ours.
        nulls: bool,
    },
}

/// Whose fault an error event tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// The client's: its request cannot be served anywhere.
    Client,
    /// The engine's.
    Engine,
    /// It does not say.
    Nobody,
}

impl Blame {
    /// Words in the `code` or the type of errors that are the client's: OpenAI's, vLLM's, TGI's.
    const CLIENT: [&str; 6] =
        ["invalid", "badrequest", "notfound", "validation", "contextlength", "unprocessable"];
    /// And of those that are not.
    const ENGINE: [&str; 6] =
        ["internal", "server", "unavailable", "overloaded", "generation", "timeout"];

    fn of(document: &[u8]) -> Self {
        let text = |object: &[u8], name: &str| {
            let value = object.get(json::find(object, name)?.value)?;
            let text = String::from_utf8_lossy(value).to_ascii_lowercase();
            Some(text.chars().filter(char::is_ascii_alphanumeric).collect::<String>())
        };
        let error = json::find(document, "error").map_or(&b""[..], |m| &document[m.value]);
        // TGI has its type beside the error.
        let words = [text(error, "code"), text(error, "type"), text(document, "error_type")];
        for word in words.into_iter().flatten() {
            match word.parse::<u16>() {
                Ok(408 | 429 | 500..) => return Self::Engine,
                Ok(400..) => return Self::Client,
                Ok(_) => {}
                Err(_) if Self::CLIENT.iter().any(|known| word.contains(known)) => {
                    return Self::Client;
                }
                Err(_) if Self::ENGINE.iter().any(|known| word.contains(known)) => {
                    return Self::Engine;
                }
                Err(_) => {}
            }
        }
        Self::Nobody
    }
}

/// Members of a usage chunk that exist only because usage was asked for.
const OWNED_BY_USAGE: [&str; 2] = ["usage", "metrics"];

/// Watches one stream. Feed it every chunk; send on what it returns.
pub struct StreamMeter {
    strip: Strip,
    splitter: Splitter,
    held: Option<Held>,
    counts: Option<TokenCounts>,
    /// Running figures of each choice, where the engine counts choices apart.
    choices: Vec<(u64, TokenCounts)>,
    done: bool,
    ended: bool,
    aborted: bool,
    failed: bool,
    events: u64,
    content: u64,
    /// Something of the answer itself has come.
    substance: bool,
    /// A choice has been ended, and not broken off.
    ended_choice: bool,
    /// Whose fault it is, by the error event.
    blame: Option<Blame>,
    /// The name of the model that the client knows, as a JSON string; `None`: what the engine says.
    model: Option<Bytes>,
    /// What the engine says: of the first event that names a model.
    said: Said,
    find: &'static Finders,
}

/// Whether the engine has named its model.
enum Said {
    NotYet,
    /// `None`: it was no name to keep, or it was taken.
    Once(Option<Box<str>>),
}

struct Finders {
    usage: memmem::Finder<'static>,
    model: memmem::Finder<'static>,
    finish: memmem::Finder<'static>,
    error: memmem::Finder<'static>,
}

static FINDERS: std::sync::LazyLock<Finders> = std::sync::LazyLock::new(|| Finders {
    usage: memmem::Finder::new(b"\"usage\""),
    model: memmem::Finder::new(b"\"model\""),
    finish: memmem::Finder::new(b"\"finish_reason\""),
    error: memmem::Finder::new(b"\"error\""),
});

/// A chunk that ends a choice, until it is known what follows.
struct Held {
    event: Bytes,
    /// With its usage, for a client that asked for usage, in case no usage chunk comes.
    original: Bytes,
    /// Comments that came meanwhile.
    behind: Vec<Bytes>,
}

/// What becomes of an event.
enum Fate {
    Pass(Bytes),
    /// Hold the event; the second is the event as it came.
    Hold(Bytes, Bytes),
    /// A comment: it goes where the event before it goes.
    Comment(Bytes),
    /// The end of the stream.
    Done(Bytes),
    /// Take the event out; the bytes are its JSON document.
    Drop(Bytes),
}

impl StreamMeter {
    /// A meter for one stream.
    pub fn new(strip: Strip) -> Self {
        Self {
            strip,
            splitter: Splitter::default(),
            held: None,
            counts: None,
            choices: Vec::new(),
            done: false,
            ended: false,
            aborted: false,
            failed: false,
            events: 0,
            content: 0,
            substance: false,
            ended_choice: false,
            blame: None,
            model: None,
            said: Said::NotYet,
            find: &FINDERS,
        }
    }

    /// Writes this name into every chunk that names its model.
    pub fn naming(mut self, model: Option<&str>) -> Self {
        self.model = model.map(|name| json::quoted(name).into());
        self
    }

    /// The model as the engine named it, whatever the client is told.
    pub fn take_model(&mut self) -> Option<Box<str>> {
        match &mut self.said {
            Said::NotYet => None,
            Said::Once(name) => name.take(),
        }
    }

    /// The counts so far, and what they are worth.
    pub fn usage(&self) -> (TokenCounts, UsageSource) {
        match self.counts {
            None => (TokenCounts::default(), UsageSource::None),
            Some(counts) if (self.done || self.ended) && !self.aborted && !self.failed => {
                (counts, UsageSource::Final)
            }
            Some(counts) => (counts, UsageSource::Partial),
        }
    }

    /// `[DONE]` has come.
    pub fn done(&self) -> bool {
        self.done
    }

    /// The engine broke the generation off: `finish_reason` `abort` or `error`.
    pub fn aborted(&self) -> bool {
        self.aborted
    }

    /// An error event has come.
    pub fn failed(&self) -> bool {
        self.failed
    }

    /// Whose fault it is, by the error event that has come.
    pub fn blame(&self) -> Option<Blame> {
        self.blame
    }

    /// Something of the answer itself has come: text, a call of a tool, or anything that is not
    /// known to be without content. An event with only a role, or with an empty text, is without.
    pub fn substance(&self) -> bool {
        self.substance
    }

    /// The engine has said that the answer is over, and did not break it off.
    pub fn over(&self) -> bool {
        self.ended_choice || self.done && !self.aborted && !self.failed
    }

    /// How many events with data have come, `[DONE]` and the usage chunk included.
    pub fn events(&self) -> u64 {
        self.events
    }

    /// How many events have come that carried a part of the answer, which is about one token each:
    /// without `[DONE]`, errors, chunks that end a choice, and the usage chunk.
    pub fn content(&self) -> u64 {
        self.content
    }

    /// Takes the next chunk; returns what goes to the client. A chunk of whole events in which
    /// nothing is to change is returned as it is, without a copy.
    pub fn push(&mut self, chunk: Bytes) -> Bytes {
        let mut pieces = Vec::new();
        let mut splitter = std::mem::take(&mut self.splitter);
        splitter.push(&chunk, |piece| pieces.push(piece));
        self.splitter = splitter;
        let mut out = Output::new(chunk);
        for piece in pieces {
            self.piece(piece, &mut out);
        }
        out.finish()
    }

    /// The backend has ended the stream, with or without `[DONE]`; returns what was still held
    /// back.
    pub fn finish(&mut self) -> Bytes {
        self.ended = true;
        let mut out = Output::new(Bytes::new());
        match self.splitter.finish() {
            // A last event without its blank line is an event all the same.
            Some(Piece::Event(event) | Piece::Raw(event)) => self.event(&event, &mut out),
            None => {}
        }
        self.release_original(&mut out);
        out.finish()
    }

    /// The stream broke: returns the whole events that were held back. The beginning of an event
    /// that never ended is thrown away, so that an error event can follow.
    pub fn abandon(&mut self) -> Bytes {
        self.splitter = Splitter::default();
        let mut out = Output::new(Bytes::new());
        self.release(&mut out);
        out.finish()
    }

    fn release(&mut self, out: &mut Output) {
        if let Some(held) = self.held.take() {
            out.put(held.event);
            held.behind.into_iter().for_each(|comment| out.put(comment));
        }
    }

    /// No usage chunk has come: a client that asked gets the usage of the last chunk.
    fn release_original(&mut self, out: &mut Output) {
        if self.strip == Strip::Running
            && let Some(held) = &mut self.held
        {
            held.event = held.original.clone();
        }
        self.release(out);
    }

    fn piece(&mut self, piece: Piece, out: &mut Output) {
        match piece {
            Piece::Event(event) => self.event(&event, out),
            Piece::Raw(part) => {
                self.release(out);
                out.put(part);
            }
        }
    }

    fn event(&mut self, event: &Bytes, out: &mut Output) {
        match self.look(event) {
            Fate::Pass(bytes) => {
                self.release(out);
                out.put(bytes);
            }
            Fate::Hold(event, original) => {
                self.release(out);
                self.held = Some(Held { event, original, behind: Vec::new() });
            }
            Fate::Comment(bytes) => match &mut self.held {
                Some(held) => held.behind.push(bytes),
                None => out.put(bytes),
            },
            Fate::Done(bytes) => {
                self.release_original(out);
                out.put(bytes);
            }
            Fate::Drop(document) => {
                if let Some(held) = &mut self.held {
                    held.event = give_back(held.event.clone(), &document);
                }
                self.release(out);
            }
        }
    }

    fn look(&mut self, event: &Bytes) -> Fate {
        let (document, at) = match sse::data(event) {
            Data::None => return Fate::Comment(event.clone()),
            Data::One(range) => (event.slice(range.clone()), Some(range.start)),
            Data::Many(joined) => (Bytes::copy_from_slice(&joined), None),
        };
        self.events += 1;
        if document.as_ref() == b"[DONE]" {
            self.done = true;
            return Fate::Done(event.clone());
        }
        if matches!(self.said, Said::NotYet) {
            self.look_for_model(&document);
        }
        let ends_choice = self.look_at_finish(&document);
        let error = self.find.error.find(&document).is_some()
            && json::find(&document, "error").is_some_and(|m| &document[m.value] != b"null");
        if error && !self.failed {
            self.failed = true;
            self.blame = Some(Blame::of(&document));
        }
        self.substance = self.substance || !error && has_substance(&document);
        let mut passed = event.clone();
        let mut content = !ends_choice && !error;
        if self.find.usage.find(&document).is_some()
            && let Some(usage) = json::find(&document, "usage")
        {
            let counts = counts::read(&document[usage.value]);
            let choice = first_choice(&document);
            content &= choice.is_some();
            if let Some(counts) = counts {
                self.count(counts, choice);
            }
            match (self.strip, choice.is_some(), counts.is_some()) {
                (Strip::All { .. }, false, true) => return Fate::Drop(document),
                (Strip::All { .. } | Strip::Running, true, true)
                | (Strip::All { nulls: true }, true, false) => {
                    passed = without_usage(event, &document, at);
                }
                _ => {}
            }
        }
        self.content += u64::from(content);
        let hold = self.strip != Strip::Nothing && ends_choice && at.is_some();
        let mut original = event.clone();
        if let Some(model) = self.model.as_ref().filter(|_| at.is_some()) {
            passed = with_model(passed, model);
            if hold {
                original = with_model(original, model);
            }
        }
        if hold { Fate::Hold(passed, original) } else { Fate::Pass(passed) }
    }

    /// Notes the name of the model. Nearly always the first event has it, and no other is searched.
    fn look_for_model(&mut self, document: &[u8]) {
        if self.find.model.find(document).is_some()
            && let Some(member) = json::find(document, "model")
        {
            self.said = Said::Once(named::read(&document[member.value]));
        }
    }

    /// Notes counts: of one choice so far, or of the whole answer.
    fn count(&mut self, counts: TokenCounts, choice: Option<u64>) {
        let Some(index) = choice else {
            self.choices.clear();
            self.counts = Some(counts);
            return;
        };
        match self.choices.iter_mut().find(|(i, _)| *i == index) {
            Some((_, known)) => *known = counts,
            None => self.choices.push((index, counts)),
        }
        // vLLM's running figures are those of one choice; the prompt is the same in all.
        let prompt = self.choices.iter().map(|(_, c)| c.prompt).max().unwrap_or(0);
        let completion = self.choices.iter().map(|(_, c)| c.completion);
        let completion = completion.fold(0, u64::saturating_add);
        let cached = self.choices.iter().map(|(_, c)| c.cached).max().flatten();
        let reasoning = self.choices.iter().filter_map(|(_, c)| c.reasoning);
        let reasoning = reasoning.reduce(u64::saturating_add);
        self.counts = Some(match self.choices.len() {
            1 => counts,
            _ => {
                let total = prompt.saturating_add(completion);
                TokenCounts { prompt, completion, total, cached, reasoning }
            }
        });
    }

    /// Notes an abort; returns whether the event ends a choice.
    fn look_at_finish(&mut self, document: &[u8]) -> bool {
        let mut ends = false;
        for at in self.find.finish.find_iter(document) {
            let rest = &document[at + self.find.finish.needle().len()..];
            let rest = rest.trim_ascii_start();
            let Some(value) = rest.strip_prefix(b":").map(<[u8]>::trim_ascii_start) else {
                continue;
            };
            if value.starts_with(b"\"") {
                ends = true;
                let aborted = value.starts_with(b"\"abort\"") || value.starts_with(b"\"error\"");
                self.aborted |= aborted;
                self.ended_choice |= !aborted;
            }
        }
        ends
    }
}

/// Whether a chunk carries a part of the answer.
fn has_substance(document: &[u8]) -> bool {
    let Some(choices) = json::find(document, "choices") else {
        return true;
    };
    let choices = &document[choices.value];
    json::elements(choices).any(|choice| {
        let choice = &choices[choice];
        if let Some(text) = json::find(choice, "text") {
            return !is_empty(&choice[text.value]);
        }
        let Some(delta) = json::find(choice, "delta") else {
            // A whole message where a part was expected.
            return json::find(choice, "message").is_some();
        };
        let delta = &choice[delta.value];
        json::members(delta, 0)
            .map_while(Result::ok)
            .any(|m| !m.is(delta, "role") && !is_empty(&delta[m.value]))
    })
}

/// A JSON value in which nothing stands.
fn is_empty(value: &[u8]) -> bool {
    matches!(value, b"null" | b"\"\"" | b"[]" | b"{}")
}

/// The event with another name of its model; unchanged if it names none.
fn with_model(event: Bytes, name: &[u8]) -> Bytes {
    let Data::One(range) = sse::data(&event) else {
        return event;
    };
    let Some(member) = json::find(&event[range.clone()], "model") else {
        return event;
    };
    let value = range.start + member.value.start..range.start + member.value.end;
    let mut out = BytesMut::with_capacity(event.len() + name.len());
    out.put_slice(&event[..value.start]);
    out.put_slice(name);
    out.put_slice(&event[value.end..]);
    out.freeze()
}

/// The index of the first choice of a chunk; `None` if it has none, as the usage chunk.
fn first_choice(document: &[u8]) -> Option<u64> {
    let choices = &document[json::find(document, "choices")?.value];
    let first = &choices[json::elements(choices).next()?];
    let index = json::find(first, "index").map(|m| &first[m.value]);
    Some(index.and_then(|i| std::str::from_utf8(i).ok()?.parse().ok()).unwrap_or(0))
}

/// The event without its `usage` member; unchanged if its data is spread over several lines.
fn without_usage(event: &Bytes, document: &[u8], at: Option<usize>) -> Bytes {
    let Some(at) = at else { return event.clone() };
    let Ok(cuts) = json::cuts(document, |m| m.is(document, "usage")) else {
        return event.clone();
    };
    let mut out = BytesMut::with_capacity(event.len());
    let mut from = 0;
    for cut in cuts {
        out.put_slice(&event[from..at + cut.start]);
        from = at + cut.end;
    }
    out.put_slice(&event[from..]);
    out.freeze()
}

/// Puts the members that moved to the usage chunk back to the end of the chunk that was held.
fn give_back(held: Bytes, usage_chunk: &[u8]) -> Bytes {
    let Data::One(range) = sse::data(&held) else {
        return held;
    };
    let document = &held[range.clone()];
    let mut moved = Vec::new();
    for member in json::members(usage_chunk, 0).flatten() {
        let key = &usage_chunk[member.key.clone()];
        let has = |m: json::Member| document[m.key] == *key;
        if OWNED_BY_USAGE.iter().any(|name| member.is(usage_chunk, name))
            || json::members(document, 0).flatten().any(has)
        {
            continue;
        }
        moved.push(b',');
        moved.extend_from_slice(&usage_chunk[member.span()]);
    }
    let Some(brace) = document.iter().rposition(|b| *b == b'}') else {
        return held;
    };
    if moved.is_empty() {
        return held;
    }
    let at = range.start + brace;
    let mut out = BytesMut::with_capacity(held.len() + moved.len());
    out.put_slice(&held[..at]);
    out.put_slice(&moved);
    out.put_slice(&held[at..]);
    out.freeze()
}

/// Collects what goes out and notices when that is exactly the chunk that came in.
struct Output {
    chunk: Bytes,
    /// How much of `chunk` has been passed on unchanged, from its start, with nothing else.
    same: usize,
    other: Option<BytesMut>,
}

impl Output {
    fn new(chunk: Bytes) -> Self {
        Self { chunk, same: 0, other: None }
    }

    fn put(&mut self, bytes: Bytes) {
        if let Some(other) = &mut self.other {
            return other.put_slice(&bytes);
        }
        let expected = self.chunk.get(self.same..).map(<[u8]>::as_ptr);
        if expected == Some(bytes.as_ptr()) && bytes.len() <= self.chunk.len() - self.same {
            self.same += bytes.len();
            return;
        }
        let mut all = BytesMut::with_capacity(self.chunk.len() + bytes.len());
        all.put_slice(&self.chunk[..self.same]);
        all.put_slice(&bytes);
        self.other = Some(all);
    }

    fn finish(self) -> Bytes {
        match self.other {
            Some(other) => other.freeze(),
            None => self.chunk.slice(..self.same),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(strip: Strip, parts: &[&str]) -> (String, StreamMeter) {
        let mut meter = StreamMeter::new(strip);
        let mut out = Vec::new();
        for part in parts {
            out.extend_from_slice(&meter.push(Bytes::copy_from_slice(part.as_bytes())));
        }
        out.extend_from_slice(&meter.finish());
        (String::from_utf8(out).unwrap(), meter)
    }

    const ALL: Strip = Strip::All { nulls: false };

    const ROLE: &str = concat!(
        r#"data: {"id":"x","choices":[{"delta":{"role":"assistant"},"finish_reason":null}],"#,
        r#""usage":{"prompt_tokens":3,"total_tokens":3,"completion_tokens":0},"prompt_text":null}"#,
        "\n\n"
    );
    const LAST: &str = concat!(
        r#"data: {"id":"x","choices":[{"delta":{},"finish_reason":"stop"}],"#,
        r#""usage":{"prompt_tokens":3,"total_tokens":5,"completion_tokens":2}}"#,
        "\n\n"
    );
    const USAGE: &str = concat!(
        r#"data: {"id":"x","choices":[],"usage":{"prompt_tokens":3,"total_tokens":5,"#,
        r#""completion_tokens":2},"system_fingerprint":"f"}"#,
        "\n\n"
    );
    const DONE: &str = "data: [DONE]\n\n";

    #[test]
    fn takes_out_what_was_added_and_puts_back_what_moved() {
        let (out, meter) = run(ALL, &[ROLE, LAST, USAGE, DONE]);
        let expected = concat!(
            r#"data: {"id":"x","choices":[{"delta":{"role":"assistant"},"finish_reason":null}],"prompt_text":null}"#,
            "\n\n",
            r#"data: {"id":"x","choices":[{"delta":{},"finish_reason":"stop"}],"system_fingerprint":"f"}"#,
            "\n\ndata: [DONE]\n\n"
        );
        assert_eq!(out, expected);
        let counts = TokenCounts { prompt: 3, completion: 2, total: 5, ..TokenCounts::default() };
        assert_eq!(meter.usage(), (counts, UsageSource::Final));
    }

    #[test]
    fn leaves_the_final_chunk_to_a_client_that_asked() {
        let (out, _) = run(Strip::Running, &[ROLE, LAST, USAGE, DONE]);
        assert!(out.contains(USAGE) && !out.contains(r#""completion_tokens":0"#));
        assert!(out.contains(r#""finish_reason":"stop"}]}"#));
    }

    #[test]
    fn a_client_that_asked_gets_usage_also_where_no_usage_chunk_comes() {
        let (out, _) = run(Strip::Running, &[ROLE, LAST, DONE]);
        assert!(out.contains(LAST) && !out.contains(r#""completion_tokens":0"#));
        let (out, _) = run(Strip::Running, &[ROLE, LAST]);
        assert!(out.contains(LAST));
        let (out, _) = run(ALL, &[ROLE, LAST, DONE]);
        assert!(!out.contains("usage"));
    }

    #[test]
    fn a_comment_does_not_come_between() {
        let (out, _) = run(ALL, &[LAST, ": keep-alive\n\n", USAGE, DONE]);
        assert!(
            out.contains(
                "\"stop\"}],\"system_fingerprint\":\"f\"}\n\n: keep-alive\n\ndata: [DONE]"
            ),
            "{out}"
        );
    }

    #[test]
    fn a_usage_chunk_may_lack_choices_or_its_blank_line() {
        let bare = "data: {\"id\":\"a\",\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":2}}";
        let (out, meter) = run(ALL, &[&format!("{bare}\n\n"), DONE]);
        assert_eq!((out.as_str(), meter.usage().0.total), (DONE, 3));
        let (out, meter) = run(ALL, &[bare]);
        assert_eq!((out.as_str(), meter.usage().0.total), ("", 3));
    }

    #[test]
    fn choices_are_counted_apart_until_the_engine_adds_them_up() {
        let chunk = |index: u32, n: u32| {
            format!(
                "data: {{\"choices\":[{{\"index\":{index},\"delta\":{{}}}}],\"usage\":{{\"prompt_tokens\":5,\"completion_tokens\":{n},\"total_tokens\":{}}}}}\n\n",
                5 + n
            )
        };
        let (_, meter) = run(ALL, &[&chunk(0, 1), &chunk(1, 1), &chunk(0, 2), &chunk(1, 7)]);
        assert_eq!(
            meter.usage().0,
            TokenCounts { prompt: 5, completion: 9, total: 14, ..TokenCounts::default() }
        );
        let (_, meter) = run(ALL, &[&chunk(0, 1), &chunk(1, 1), USAGE, DONE]);
        assert_eq!(
            meter.usage().0,
            TokenCounts { prompt: 3, completion: 2, total: 5, ..TokenCounts::default() }
        );
    }

    #[test]
    fn touches_nothing_when_nothing_was_added() {
        let all = [ROLE, LAST, USAGE, DONE];
        let (out, meter) = run(Strip::Nothing, &all);
        assert_eq!(out, all.concat());
        assert_eq!(meter.usage().0.total, 5);
    }

    #[test]
    fn passes_unchanged_chunks_without_a_copy() {
        let mut meter = StreamMeter::new(Strip::Nothing);
        let chunk = Bytes::from(format!("{ROLE}{LAST}"));
        let at = chunk.as_ptr();
        assert_eq!(meter.push(chunk).as_ptr(), at);
    }

    #[test]
    fn a_stream_without_done_loses_no_byte() {
        let (out, meter) = run(ALL, &[ROLE, LAST, "data: {\"hal"]);
        assert!(out.ends_with("data: {\"hal"));
        assert!(out.contains("\"stop\""));
        assert_eq!(meter.usage().1, UsageSource::Final);
        assert!(!meter.done());
    }

    #[test]
    fn a_stream_that_breaks_keeps_its_last_figures() {
        let mut meter = StreamMeter::new(ALL);
        meter.push(Bytes::from(format!("{ROLE}{LAST}data: {{\"hal")));
        let counts = TokenCounts { prompt: 3, completion: 2, total: 5, ..TokenCounts::default() };
        assert_eq!(meter.usage(), (counts, UsageSource::Partial));
        let rest = meter.abandon();
        assert!(rest.ends_with(b"}]}\n\n"));
        assert!(meter.abandon().is_empty());
    }

    #[test]
    fn sees_aborts_and_error_events() {
        let abort = "data: {\"choices\":[{\"delta\":{},\"finish_reason\": \"abort\"}]}\n\n";
        let (_, meter) = run(Strip::Nothing, &[abort, DONE]);
        assert!(meter.aborted() && meter.done() && !meter.failed());
        let error = "data: {\"error\": {\"message\": \"gone\", \"code\": 500}}\n\n";
        let (_, meter) = run(Strip::Nothing, &[error, DONE]);
        assert!(meter.failed());
        let text = r#"data: {"choices":[{"delta":{"content":"\"error\":{} \"finish_reason\":\"abort\""}}]}"#;
        let (_, meter) = run(Strip::Nothing, &[text, "\n\n", DONE]);
        assert!(!meter.failed() && !meter.aborted());
    }

    #[test]
    fn tolerates_what_servers_do() {
        let parts = [
            ": keep-alive\n\n",
            "data: {\"choices\":[{\"delta\":{}}],\"usage\":null}\r\n\r\n",
            "data: {\"id\":\"\",\"choices\":[],\ndata: \"usage\":{\"prompt_tokens\":1,\"completion_tokens\":2}}\n\n",
            "data: {\"choices\":[{\"delta\":{\"content\":\"late\"}}]}\n\n",
        ];
        let (out, meter) = run(Strip::Nothing, &parts);
        assert_eq!(out, parts.concat());
        assert_eq!(
            meter.usage(),
            (
                TokenCounts { prompt: 1, completion: 2, total: 3, ..TokenCounts::default() },
                UsageSource::Final
            )
        );
        let (out, _) = run(ALL, &parts);
        assert_eq!(out, [parts[0], parts[1], parts[3]].concat());
        let (out, _) = run(Strip::All { nulls: true }, &parts);
        assert!(!out.contains("usage") && out.contains("late") && out.contains(": keep-alive"));
    }

    #[test]
    fn counts_the_events_that_carry_a_part_of_the_answer() {
        let part =
            "data: {\"choices\":[{\"delta\":{\"content\":\"a\"},\"finish_reason\":null}]}\n\n";
        let null = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}],\"usage\":null}\n\n";
        let error = "data: {\"error\":{\"message\":\"gone\"}}\n\n";
        for (parts, content) in [
            (&[part, part, null][..], 3),
            (&[part, ": keep-alive\n\n", part, "data: {\"hal"], 2),
            (&[part, LAST, USAGE, DONE], 1),
            (&[part, error, DONE], 1),
            (&[ROLE, part, part, LAST, DONE], 3),
            (&[": keep-alive\n\n"], 0),
        ] {
            let mut meter = StreamMeter::new(Strip::Nothing);
            parts.iter().for_each(|p| drop(meter.push(Bytes::copy_from_slice(p.as_bytes()))));
            assert_eq!(meter.content(), content, "{parts:?}");
        }
    }

    #[test]
    fn absurd_counts_do_not_overflow() {
        let chunk = |index: u32| {
            format!(
                "data: {{\"choices\":[{{\"index\":{index}}}],\"usage\":{{\"prompt_tokens\":{0},\"completion_tokens\":{0}}}}}\n\n",
                u64::MAX
            )
        };
        let (_, meter) = run(ALL, &[&chunk(0), &chunk(1)]);
        let (counts, _) = meter.usage();
        assert_eq!((counts.completion, counts.total), (u64::MAX, u64::MAX));
    }

    #[test]
    fn the_first_name_of_a_model_is_the_engines() {
        let text = r#"data: {"choices":[{"delta":{"content":"\"model\":\"x\"","model":"inner"}}]}"#;
        let event = |model: &str| format!("data: {{\"id\":\"x\",\"model\": {model}}}\n\n");
        for (parts, name) in [
            (vec![format!("{text}\n\n"), event("\"a\""), event("\"b\"")], Some("a")),
            (vec![event("\"qwen\\/7b\"")], Some("qwen/7b")),
            (vec![event("null"), event("\"b\"")], None),
            (vec![event(&format!("\"{}\"", "m".repeat(257)))], None),
            (vec![DONE.to_owned()], None),
        ] {
            let mut meter = StreamMeter::new(ALL).naming(Some("alias"));
            let mut out = Vec::new();
            parts.iter().for_each(|p| out.extend(meter.push(Bytes::copy_from_slice(p.as_bytes()))));
            assert_eq!(meter.take_model().as_deref(), name, "{parts:?}");
            assert!(!String::from_utf8(out).unwrap().contains("qwen"));
        }
    }

    #[test]
    fn details_of_choices_are_added_up_or_taken_from_the_last_event() {
        let chunk = |index: u32, n: u32| {
            format!(
                "data: {{\"choices\":[{{\"index\":{index},\"delta\":{{}}}}],\"usage\":{{\"prompt_tokens\":5,\"completion_tokens\":{n},\"prompt_tokens_details\":{{\"cached_tokens\":4}},\"completion_tokens_details\":{{\"reasoning_tokens\":{n}}}}}}}\n\n"
            )
        };
        let (_, meter) = run(ALL, &[&chunk(0, 1), &chunk(1, 2), &chunk(0, 3)]);
        let (counts, _) = meter.usage();
        assert_eq!((counts.cached, counts.reasoning), (Some(4), Some(5)));
        let last = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":5,\"prompt_tokens_details\":{\"cached_tokens\":2},\"completion_tokens_details\":null}}\n\n";
        let (_, meter) = run(ALL, &[&chunk(0, 3), &chunk(1, 2), last, DONE]);
        let (counts, _) = meter.usage();
        assert_eq!((counts.completion, counts.cached, counts.reasoning), (5, Some(2), None));
    }

    #[test]
    fn error_events_say_whose_fault_it_is() {
        for (event, blame) in [
            (r#"{"error":{"message":"m","type":"InternalServerError","code":500}}"#, Blame::Engine),
            (r#"{"error":{"message":"m","type":"BadRequestError","code":400}}"#, Blame::Client),
            (
                r#"{"error":{"type":"invalid_request_error","code":"context_length_exceeded"}}"#,
                Blame::Client,
            ),
            (r#"{"error":{"code":null,"type":"server_error"}}"#, Blame::Engine),
            (r#"{"error":{"code":429}}"#, Blame::Engine),
            (r#"{"error":"out of range","error_type":"validation"}"#, Blame::Client),
            (r#"{"error":"Request failed","error_type":"generation"}"#, Blame::Engine),
            (r#"{"error":"something"}"#, Blame::Nobody),
        ] {
            let mut meter = StreamMeter::new(Strip::Nothing);
            meter.push(Bytes::from(format!("data: {event}\n\n")));
            assert_eq!(meter.blame(), Some(blame), "{event}");
        }
    }
}
