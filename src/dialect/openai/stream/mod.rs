//! Metering a stream: finds the counts, and takes out again what the gateway itself had asked the
//! engine to add. A stream is one of server-sent events, or of lines that are documents (NDJSON).
//!
//! Asking vLLM and llama.cpp for usage changes more than it adds: members that otherwise stand in
//! the last chunk of a choice (`system_fingerprint` of vLLM, `timings` of llama.cpp) move to the
//! usage chunk. So that the client's stream is byte for byte what it would have been, a chunk
//! that ends a choice is kept back until the next event has come (the engines send it in the same
//! write), and what the usage chunk took from it is put back. It does not wait for longer than that:
//! a comment lets it go, and so does [`Meter::sent_pending`].

mod event;
mod tally;
#[cfg(test)]
mod tests;

use bytes::Bytes;
use memchr::memmem;

use self::tally::Tally;
use crate::{
    base::{TokenCounts, UsageSource},
    dialect::{
        Meter, Metering, Progress, blame, counts,
        document::JsonTap,
        event::{Form, Place, document, edited, within},
        model_name,
        output::Output,
    },
    wire::{
        edit::Edit,
        json,
        sse::{Piece, Splitter},
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

impl Strip {
    /// What was added to a stream by asking for more than its client did.
    pub fn of(metering: &Metering) -> Self {
        let asked = metering.asked;
        match metering.added {
            None => Self::Nothing,
            Some(added) if !asked.at_the_end => Self::All { nulls: !added.running },
            Some(added) if added.running && !asked.running => Self::Running,
            Some(_) => Self::Nothing,
        }
    }
}

/// Watches one stream. Feed it every chunk; send on what it returns.
pub struct StreamMeter {
    strip: Strip,
    form: Form,
    splitter: Splitter,
    held: Option<PendingChunk>,
    tally: Tally,
    /// Reads an event that is too large to be held.
    large: Option<Box<JsonTap>>,
    /// The client has got the usage that it asked for.
    delivered: bool,
    /// The last chunk whose usage was taken out for one that did.
    taken: Option<Bytes>,
    /// The name of the model that the client knows, as a JSON string; `None`: what the engine says.
    model: Option<Bytes>,
    /// An event has named the engine's model, perhaps by a name that is not kept.
    named: bool,
    find: &'static Finders,
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
struct PendingChunk {
    event: Bytes,
    /// With its usage, for a client that asked for usage, in case no usage chunk comes; `None` if
    /// it has none.
    original: Option<Bytes>,
}

/// What becomes of an event.
enum Fate {
    Pass(Bytes),
    Hold(PendingChunk),
    /// It says nothing.
    Comment(Bytes),
    /// The end of the stream.
    Done(Bytes),
    /// Take the event out; the bytes are its JSON document.
    Drop(Bytes),
}

/// Usage in a chunk.
struct Usage {
    /// The chunk has choices.
    choices: bool,
    /// It is there, and not `null`.
    has_usage: bool,
    /// The engine would have written it unasked.
    unasked: bool,
}

impl Meter for StreamMeter {
    /// A chunk of whole events in which nothing is to change is returned as it is, without a copy.
    /// What follows `[DONE]` is dropped.
    fn push(&mut self, chunk: Bytes, seen: &mut Progress) -> Bytes {
        if seen.finished {
            return Bytes::new();
        }
        seen.running = true;
        if seen.content && self.is_plain(&chunk) {
            seen.events += 1;
            seen.parts += 1;
            seen.pending = None;
            return chunk;
        }
        let mut pieces = Vec::new();
        let mut splitter = std::mem::take(&mut self.splitter);
        splitter.push(&chunk, |piece| pieces.push(piece));
        self.splitter = splitter;
        let mut out = Output::new(chunk);
        for piece in pieces {
            self.piece(piece, &mut out, seen);
            if seen.finished {
                self.splitter = Splitter::default();
                break;
            }
        }
        seen.pending = self.pending().cloned();
        out.finish()
    }

    fn finish(&mut self, seen: &mut Progress) -> Bytes {
        seen.ended = true;
        let mut out = Output::new(Bytes::new());
        let rest = self.splitter.finish();
        let clean = rest.is_none();
        if let Some(piece) = rest {
            self.piece(piece, &mut out, seen);
        }
        if !seen.finished {
            self.settle(clean, &mut out);
        }
        seen.pending = None;
        out.finish()
    }

    /// `[DONE]` counts even if its blank line is missing.
    fn abandon(&mut self, seen: &mut Progress) -> Bytes {
        let mut out = Output::new(Bytes::new());
        let rest = self.splitter.finish();
        self.splitter = Splitter::default();
        if let Some(Piece::Event(event) | Piece::Unfinished(event)) = rest
            && event.trim_ascii_start().starts_with(b"data:")
            && let Some((document, _)) = document(self.form, &event)
            && document.trim_ascii() == b"[DONE]"
        {
            self.event(&Bytes::from_static(b"data: [DONE]\n\n"), &mut out, seen);
        }
        self.release(&mut out);
        seen.pending = None;
        out.finish()
    }

    fn sent_pending(&mut self, seen: &mut Progress) {
        self.let_go();
        seen.pending = None;
    }

    fn counts(&self) -> Option<TokenCounts> {
        self.tally.counts()
    }
}

impl StreamMeter {
    /// A meter for one stream of events.
    pub fn new(strip: Strip) -> Self {
        Self {
            strip,
            form: Form::Events,
            splitter: Splitter::default(),
            held: None,
            tally: Tally::default(),
            large: None,
            delivered: false,
            taken: None,
            model: None,
            named: false,
            find: &FINDERS,
        }
    }

    /// Whether a chunk is what nearly all chunks of a stream are: one event with a part of the answer
    /// and nothing else to read. It passes without a look at its structure, and without an allocation.
    fn is_plain(&self, chunk: &[u8]) -> bool {
        let event = chunk.strip_prefix(b"data: ").and_then(|event| event.strip_suffix(b"\n\n"));
        let Some(document) = event.filter(|d| d.starts_with(b"{") && d.ends_with(b"}")) else {
            return false;
        };
        let between = self.form == Form::Events && self.splitter.is_between();
        let waits = self.held.is_some() || self.large.is_some();
        let Finders { usage, error, finish, .. } = self.find;
        let goes_on = |at: usize| document[at + finish.needle().len()..].starts_with(b":null");
        between
            && !waits
            && self.named
            && self.model.is_none()
            && memchr::memchr2(b'\n', b'\r', document).is_none()
            && usage.find(document).is_none()
            && error.find(document).is_none()
            && finish.find_iter(document).all(goes_on)
    }

    /// The stream has a document on each line.
    #[must_use]
    pub fn by_line(mut self) -> Self {
        (self.form, self.splitter) = (Form::Lines, Splitter::by_line());
        self
    }

    /// Writes this name into every chunk that names its model.
    #[must_use]
    pub fn naming(mut self, model: Option<&str>) -> Self {
        self.model = model.map(|name| json::quoted(name).into());
        self
    }

    /// The request has several prompts, and so many choices belong to each.
    #[must_use]
    pub fn per_prompt(mut self, choices: Option<u64>) -> Self {
        self.tally.per_prompt(choices.unwrap_or(0));
        self
    }

    /// The chunk that is held back as it goes out when nothing follows.
    fn pending(&self) -> Option<&Bytes> {
        let pending = self.held.as_ref()?;
        Some(pending.original.as_ref().unwrap_or(&pending.event))
    }

    /// What [`Self::pending`] gives has gone out.
    fn let_go(&mut self) {
        let pending = self.held.take();
        self.delivered |= pending.is_some_and(|pending| pending.original.is_some());
    }

    fn release(&mut self, out: &mut Output) {
        if let Some(pending) = self.held.take() {
            out.put(pending.event);
        }
    }

    /// No usage chunk is waited for any more: a client that asked gets the usage of the last chunk.
    fn release_original(&mut self, out: &mut Output) {
        if let Some(pending) = self.pending().cloned() {
            out.put(pending);
            self.let_go();
        }
    }

    /// Nothing more comes. A client that asked gets the usage, wherever it stood.
    fn settle(&mut self, clean: bool, out: &mut Output) {
        self.release_original(out);
        if let Some(document) = self.taken.take().filter(|_| clean && !self.delivered) {
            let usage = match (json::find(&document, "usage"), self.tally.counts()) {
                (Some(member), _) if self.tally.running() < 2 => document.slice(member.value),
                (_, Some(counts)) => Bytes::from(format!(
                    r#"{{"prompt_tokens":{},"completion_tokens":{},"total_tokens":{}}}"#,
                    counts.prompt, counts.completion, counts.total
                )),
                _ => return,
            };
            out.put(event::usage_chunk(self.form, &document, &usage, self.model.as_ref()));
        }
    }

    fn piece(&mut self, piece: Piece, out: &mut Output, seen: &mut Progress) {
        match piece {
            Piece::Event(event) | Piece::Unfinished(event) => self.event(&event, out, seen),
            Piece::Raw(part) => self.part(part, false, out, seen),
            Piece::RawEnd(part) => self.part(part, true, out, seen),
        }
    }

    /// A part of an event that is too large to be changed. It is read anyway.
    fn part(&mut self, part: Bytes, last: bool, out: &mut Output, seen: &mut Progress) {
        self.release(out);
        let tap = self.large.get_or_insert_default();
        tap.push(&part);
        out.put(part);
        seen.content = true;
        if last && let Some(mut tap) = self.large.take() {
            seen.events += 1;
            seen.parts += 1;
            seen.aborted |= tap.aborted();
            if let (counts, UsageSource::Final) = tap.usage() {
                self.tally.choice(0, counts);
            }
            if !std::mem::replace(&mut self.named, true) {
                seen.model = tap.take_model();
            }
        }
    }

    fn event(&mut self, event: &Bytes, out: &mut Output, seen: &mut Progress) {
        match self.look(event, seen) {
            Fate::Pass(bytes) => {
                self.release(out);
                out.put(bytes);
            }
            Fate::Hold(pending) => {
                self.release(out);
                self.held = Some(pending);
            }
            Fate::Comment(bytes) => {
                self.release_original(out);
                out.put(bytes);
            }
            Fate::Done(bytes) => {
                self.settle(true, out);
                out.put(bytes);
            }
            Fate::Drop(document) => {
                if let Some(pending) = self.held.take() {
                    out.put(event::give_back(self.form, pending.event, &document));
                }
            }
        }
    }

    fn look(&mut self, event: &Bytes, seen: &mut Progress) -> Fate {
        let Some((document, place)) = document(self.form, event) else {
            return Fate::Comment(event.clone());
        };
        seen.events += 1;
        if document.trim_ascii() == b"[DONE]" {
            seen.finished = true;
            return Fate::Done(event.clone());
        }
        if !self.named {
            self.look_for_model(&document, seen);
        }
        let ends_choice = self.look_at_finish(&document, seen);
        let says_error = self.find.error.find(&document).is_some();
        let error = event::is_error(event, &document, says_error);
        if error {
            seen.error.get_or_insert_with(|| blame::of(&document));
        }
        seen.content = seen.content || !error && event::has_content(&document);
        let usage = match self.find.usage.find(&document) {
            Some(_) => self.look_at_usage(&document, ends_choice),
            None => None,
        };
        let bare = usage.as_ref().is_some_and(|usage| !usage.choices);
        seen.parts += u64::from(!ends_choice && !error && !bare);
        let mut take = false;
        if let Some(Usage { choices, has_usage, unasked }) = usage {
            match self.strip {
                Strip::All { .. } if !choices && has_usage && !error => {
                    return Fate::Drop(document);
                }
                Strip::Running if !choices || unasked => self.delivered |= has_usage,
                Strip::All { nulls } => take = choices && !unasked && (has_usage || nulls),
                Strip::Running => take = has_usage,
                Strip::Nothing => {}
            }
        }
        if take && self.strip == Strip::Running {
            self.taken = Some(document.clone());
        }
        self.changed(event, &document, place, (take, ends_choice))
    }

    /// What goes out of an event, and whether it is held back.
    fn changed(
        &self,
        event: &Bytes,
        document: &Bytes,
        place: Place,
        (take, ends_choice): (bool, bool),
    ) -> Fate {
        let model = self.model.as_ref().and_then(|name| event::with_model(document, name));
        let with = |mut edits: Vec<Edit>| {
            edits.extend(model.clone());
            edited(event, document, place, edits)
        };
        let passed = with(if take { event::without_usage(document) } else { Vec::new() });
        if self.strip == Strip::Nothing || !ends_choice {
            return Fate::Pass(passed);
        }
        let original = (take && self.strip == Strip::Running).then(|| with(Vec::new()));
        Fate::Hold(PendingChunk { event: passed, original })
    }

    /// Notes the name of the model. Nearly always the first event has it, and no other is searched.
    fn look_for_model(&mut self, document: &[u8], seen: &mut Progress) {
        if self.find.model.find(document).is_some()
            && let Some(member) = json::find(document, "model")
        {
            self.named = true;
            seen.model = model_name::read(&document[member.value]);
        }
    }

    /// Notes counts, wherever they stand; `None` if they do not stand where they are asked for.
    fn look_at_usage(&mut self, document: &[u8], ends_choice: bool) -> Option<Usage> {
        let member = json::find(document, "usage");
        let usage = member.as_ref().map_or(&b"null"[..], |m| &document[m.value.clone()]);
        let first = event::choices(document).next().map(|(index, _)| index);
        match (counts::read(usage), first) {
            (Some(counts), Some(index)) => self.tally.choice(index, counts),
            (Some(counts), None) => self.tally.whole(counts),
            (None, _) => self.look_elsewhere(document),
        }
        member?;
        let has_usage = usage.starts_with(b"{");
        // llama.cpp writes it into the last chunk of a completion, whether it is asked to or not.
        let unasked = has_usage
            && ends_choice
            && json::find(document, "timings").is_some()
            && json::find(document, "object")
                .is_some_and(|m| &document[m.value] == b"\"text_completion\"");
        Some(Usage { choices: first.is_some(), has_usage, unasked })
    }

    /// Counts in Groq's place, and in the choices themselves (Moonshot).
    fn look_elsewhere(&mut self, document: &[u8]) {
        if let Some(counts) = within(document, "x_groq", "usage").and_then(counts::read) {
            return self.tally.whole(counts);
        }
        for (index, choice) in event::choices(document) {
            let usage = json::find(choice, "usage").map(|m| &choice[m.value]);
            if let Some(counts) = usage.and_then(counts::read) {
                self.tally.choice(index, counts);
            }
        }
    }

    /// Notes an abort; returns whether the event ends a choice.
    fn look_at_finish(&mut self, document: &[u8], seen: &mut Progress) -> bool {
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
                seen.aborted |= aborted;
                seen.choice_ended |= !aborted;
            }
        }
        if ends {
            for (index, choice) in event::choices(document) {
                let reason = json::find(choice, "finish_reason").map(|m| &choice[m.value]);
                if reason.is_some_and(|reason| reason.starts_with(b"\"")) {
                    self.tally.end(index);
                }
            }
        }
        ends
    }
}
