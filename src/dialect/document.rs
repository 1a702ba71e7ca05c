//! Metering a plain JSON answer as it passes: a tap that keeps only the `usage` object and the name
//! of the model, however the answer is cut and however large it is. Several documents, one after the
//! other (NDJSON), are read as one answer.

use std::sync::LazyLock;

use bytes::{Bytes, BytesMut};
use memchr::memmem::Finder;

use super::{
    counts,
    meter::{Meter, Progress},
    model_name,
};
use crate::{
    base::{TokenCounts, UsageSource},
    wire::{
        edit::{self, Edit},
        json,
    },
};

/// A `usage` object larger than this is not one of ours.
const MAX_USAGE: usize = 16 * 1024;
/// The longest string that is compared with a key; longer ones are only passed over.
const MAX_WORD: usize = 16;

/// What kind of answer a document is.
#[derive(Clone, Copy, Default, PartialEq)]
pub enum Shape {
    /// A message, or a list of choices: `finish_reason` says whether it was broken off.
    #[default]
    Choices,
    /// A response of OpenAI's Responses: `status` says that.
    Response,
    /// A message of Anthropic's: without a `stop_reason` it is not complete. What is no message, a
    /// count of tokens for instance, has none.
    Message,
}

/// Watches one JSON document that arrives in pieces.
#[derive(Default)]
pub struct JsonTap {
    shape: Shape,
    /// How deep the answer stands in the document: 1, if it is a member of it.
    base: usize,
    depth: usize,
    in_string: bool,
    escaped: bool,
    /// The beginning of a string that runs over the end of a piece.
    word: [u8; MAX_WORD],
    word_len: u8,
    word_cut: bool,
    /// The last string was one of these; what follows it may be its value.
    expect: Expect,
    /// The member of the document that is being read.
    within: Within,
    /// The bytes of a `usage` object, while it is being read, and its depth.
    usage: Option<(Vec<u8>, usize)>,
    counts: Option<TokenCounts>,
    /// What Groq says in a place of its own, and what stands in the choices.
    elsewhere: [Option<TokenCounts>; 2],
    documents: u32,
    /// The name of the model is being read; what of it came in earlier pieces.
    naming: bool,
    name: Vec<u8>,
    model: Option<Box<str>>,
    aborted: bool,
    /// It is a message.
    message: bool,
    /// It says why it ends.
    stopped: bool,
}

/// Members of a document in which a `usage` may stand.
#[derive(Clone, Copy, Default, PartialEq)]
enum Within {
    #[default]
    Other,
    Groq,
    Choices,
}

#[derive(Clone, Copy, Default, PartialEq)]
enum Expect {
    #[default]
    Nothing,
    Usage,
    Model,
    FinishReason,
    Status,
    Type,
    StopReason,
}

impl JsonTap {
    /// For an answer of this kind. `within`: it is not the document itself, but a member of it.
    pub fn new(shape: Shape, within: bool) -> Self {
        Self { shape, base: usize::from(within), ..Self::default() }
    }

    /// Takes the next piece of the document.
    pub fn push(&mut self, piece: &[u8]) {
        let mut at = 0;
        // Where in this piece the `usage` object and the name begin that are being read.
        let (mut usage_from, mut name_from) = (0, 0);
        while let Some(&byte) = piece.get(at) {
            if self.in_string {
                at += self.string(&piece[at..]);
                if self.naming && !self.in_string {
                    self.read_name(&piece[name_from..at]);
                }
                continue;
            }
            at += 1;
            match byte {
                b'"' => {
                    let expected = self.expect == Expect::Model && self.level() == 1;
                    self.naming = expected && self.model.is_none();
                    name_from = at - 1;
                    (self.in_string, self.word_len, self.word_cut) = (true, 0, false);
                }
                b'{' | b'[' => {
                    let wanted = self.expect == Expect::Usage && byte == b'{';
                    if wanted && self.usage.is_none() {
                        self.usage = Some((Vec::new(), self.depth));
                        usage_from = at - 1;
                    }
                    self.expect = Expect::Nothing;
                    self.documents += u32::from(self.depth == 0 && byte == b'{');
                    self.depth += 1;
                }
                b'}' | b']' => {
                    self.depth = self.depth.saturating_sub(1);
                    let open = self.usage.as_ref().map(|(_, depth)| *depth);
                    if byte == b'}' && open == Some(self.depth) {
                        self.read_usage(&piece[usage_from..at]);
                    }
                }
                // What came before was a value and no key.
                b',' => self.expect = Expect::Nothing,
                // Colons, numbers, white space.
                _ => {}
            }
        }
        if let Some((kept, _)) = &mut self.usage {
            kept.extend_from_slice(&piece[usage_from.min(piece.len())..]);
            if kept.len() > MAX_USAGE {
                self.usage = None;
            }
        }
        if self.naming {
            self.read_name(&piece[name_from.min(piece.len())..]);
        }
    }

    /// Reads on in the name of the model, quotes included.
    fn read_name(&mut self, part: &[u8]) {
        let whole = !self.in_string;
        if whole && self.name.is_empty() {
            // The usual case: nothing is copied but the name.
            self.model = model_name::read(part);
        } else if self.name.len() + part.len() > model_name::MOST_WRITTEN {
            self.naming = false;
        } else {
            self.name.extend_from_slice(part);
            if whole {
                self.model = model_name::read(&self.name);
            }
        }
        if whole || !self.naming {
            (self.naming, self.name) = (false, Vec::new());
        }
    }

    /// Reads a `usage` object whose last part has come.
    fn read_usage(&mut self, last: &[u8]) {
        let Some((mut kept, _)) = self.usage.take() else { return };
        let whole = if kept.is_empty() {
            // The usual case: nothing is copied.
            last
        } else {
            kept.extend_from_slice(last);
            &kept
        };
        let Some(new) = Some(whole).filter(|w| w.len() <= MAX_USAGE).and_then(counts::read) else {
            return;
        };
        match self.within {
            _ if self.level() == 1 => self.counts = Some(counts::after(self.counts, new)),
            Within::Groq => self.elsewhere[0] = Some(counts::after(self.elsewhere[0], new)),
            _ => self.elsewhere[1] = counts::sum(self.elsewhere[1].into_iter().chain([new])),
        }
    }

    /// Reads on in a string; returns how many bytes it took.
    fn string(&mut self, rest: &[u8]) -> usize {
        if rest.is_empty() {
            return 0;
        }
        if self.escaped {
            self.escaped = false;
            return 1;
        }
        let n = memchr::memchr2(b'"', b'\\', rest).unwrap_or(rest.len());
        match rest.get(n) {
            // The usual case: the whole string lies in this piece.
            Some(b'"') if self.word_len == 0 && !self.word_cut => {
                self.in_string = false;
                self.ended(&rest[..n]);
                n + 1
            }
            Some(b'"') => {
                self.remember(&rest[..n]);
                self.in_string = false;
                let (word, len) = (self.word, usize::from(self.word_len));
                self.ended(if self.word_cut { b"" } else { &word[..len] });
                n + 1
            }
            Some(_) => {
                // A key with an escape in it is not one of those that are read.
                (self.escaped, self.word_cut) = (true, true);
                n + 1
            }
            None => {
                self.remember(rest);
                n
            }
        }
    }

    fn remember(&mut self, part: &[u8]) {
        let have = usize::from(self.word_len);
        let taken = part.len().min(MAX_WORD - have);
        self.word[have..have + taken].copy_from_slice(&part[..taken]);
        self.word_len += taken as u8;
        self.word_cut |= part.len() > taken;
    }

    /// How deep the present place is within the answer; 0: outside of it.
    fn level(&self) -> usize {
        self.depth.saturating_sub(self.base)
    }

    fn ended(&mut self, word: &[u8]) {
        let expected = std::mem::take(&mut self.expect);
        self.expect = match self.level() {
            1 if self.shape == Shape::Response => {
                if expected == Expect::Status {
                    self.aborted |= is_failure(word);
                }
                self.within = Within::Other;
                match word {
                    b"usage" => Expect::Usage,
                    b"model" => Expect::Model,
                    b"status" => Expect::Status,
                    _ => Expect::Nothing,
                }
            }
            _ if self.shape == Shape::Response => Expect::Nothing,
            1 => {
                self.message |= expected == Expect::Type && word == b"message";
                self.stopped |= expected == Expect::StopReason;
                let message = self.shape == Shape::Message;
                // What is no key is followed by one before anything is opened.
                self.within = match word {
                    b"x_groq" => Within::Groq,
                    b"choices" => Within::Choices,
                    _ => Within::Other,
                };
                match word {
                    b"usage" => Expect::Usage,
                    b"model" => Expect::Model,
                    b"type" if message => Expect::Type,
                    b"stop_reason" if message => Expect::StopReason,
                    _ => Expect::Nothing,
                }
            }
            2 if word == b"usage" && self.within == Within::Groq => Expect::Usage,
            3 => {
                if expected == Expect::FinishReason {
                    self.aborted |= matches!(word, b"abort" | b"error");
                }
                match word {
                    b"usage" if self.within == Within::Choices => Expect::Usage,
                    b"finish_reason" => Expect::FinishReason,
                    _ => Expect::Nothing,
                }
            }
            _ => Expect::Nothing,
        };
    }

    /// The counts, once they have passed.
    pub fn usage(&self) -> (TokenCounts, UsageSource) {
        match self.counts.or(self.elsewhere[0]).or(self.elsewhere[1]) {
            Some(counts) => (counts, UsageSource::Final),
            None => (TokenCounts::default(), UsageSource::None),
        }
    }

    /// How many documents have begun.
    pub fn documents(&self) -> u32 {
        self.documents
    }

    /// The model as the engine named it, once that has passed.
    pub fn take_model(&mut self) -> Option<Box<str>> {
        self.model.take()
    }

    /// The engine broke the generation off.
    pub fn aborted(&self) -> bool {
        self.aborted
    }

    /// What has come is not all of it, once nothing more comes.
    fn is_incomplete(&self) -> bool {
        self.message && !self.stopped
    }
}

/// What is read of a document that has come in one piece, without reading what lies between: the usage
/// from its end, the name of the model from its beginning.
struct Ends {
    usage: TokenCounts,
    model: Option<Box<str>>,
}

/// Whether a response with this status was broken off. vLLM says `cancelled` when it is stopped.
pub fn is_failure(status: &[u8]) -> bool {
    matches!(status, b"failed" | b"cancelled")
}

/// How many objects at the end of a document are looked at: a `usage` has some inside of it.
const LAST_OBJECTS: usize = 6;

/// What an answer that was broken off has somewhere, or several documents one after the other, and hardly
/// any other answer.
static UNUSUAL: LazyLock<[Finder<'static>; 3]> =
    LazyLock::new(|| [Finder::new(b"\"abort\""), Finder::new(b"\"error\""), Finder::new(b"}{")]);

/// The same of responses.
static UNUSUAL_RESPONSE: LazyLock<[Finder<'static>; 3]> = LazyLock::new(|| {
    [Finder::new(b"\"failed\""), Finder::new(b"\"cancelled\""), Finder::new(b"}{")]
});

/// What a message has that is complete, as servers write it.
static STOP_REASON: LazyLock<Finder<'static>> =
    LazyLock::new(|| Finder::new(b"\"stop_reason\":\""));

impl Ends {
    /// `None` if it must be read from beginning to end: it is no whole document, it may be several, its
    /// `usage` is not near its end, or the generation may have been broken off.
    fn read(document: &[u8], shape: Shape) -> Option<Self> {
        let one = document.starts_with(b"{") && memchr::memchr(b'\n', document).is_none();
        let unusual = match shape {
            Shape::Choices | Shape::Message => &UNUSUAL,
            Shape::Response => &UNUSUAL_RESPONSE,
        };
        // An unescaped quote: it stands in no text.
        let stops = shape != Shape::Message || STOP_REASON.find(document).is_some();
        if !one || !stops || unusual.iter().any(|word| word.find(document).is_some()) {
            return None;
        }
        let opening = memchr::memrchr_iter(b'{', document).take(LAST_OBJECTS);
        // An unescaped quote and a colon: a key, and no part of a text.
        let mut opening = opening.filter(|at| document[..*at].ends_with(b"\"usage\":"));
        let usage = json::value_near_end(document, opening.next()?)?;
        let usage = counts::read(document.get(usage).filter(|u| u.len() <= MAX_USAGE)?)?;
        let model = json::find(document, "model");
        let model = model.and_then(|member| model_name::read(&document[member.value]));
        Some(Self { usage, model })
    }
}

/// The document with another name of the model at its top.
pub fn rename_model(document: Bytes, name: &str) -> Bytes {
    let Some(member) = json::find(&document, "model") else {
        return document;
    };
    let edit = Edit { range: member.value, with: json::quoted(name).into() };
    let mut all = document.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]));
    edit::apply(&mut all, vec![edit]);
    all.freeze()
}

/// Meters a plain answer. It passes as it is.
#[derive(Default)]
pub struct DocumentMeter {
    tap: JsonTap,
    /// The first piece, as long as it seems to be the whole document: only its ends were read.
    whole: Option<Bytes>,
    begun: bool,
}

impl DocumentMeter {
    /// For an answer of this kind.
    pub fn new(shape: Shape) -> Self {
        Self { tap: JsonTap::new(shape, false), ..Self::default() }
    }

    /// Reads a piece: from its ends, if it is the first and seems to be all.
    fn read(&mut self, piece: &Bytes) {
        if piece.is_empty() {
            return;
        }
        let first = !std::mem::replace(&mut self.begun, true);
        let shape = self.tap.shape;
        if first && let Some(Ends { usage, model }) = Ends::read(piece, shape) {
            let tap = JsonTap::new(shape, false);
            self.tap = JsonTap { counts: Some(usage), model, documents: 1, ..tap };
            self.whole = Some(piece.clone());
            return;
        }
        if let Some(before) = self.whole.take() {
            // More follows.
            self.tap = JsonTap::new(shape, false);
            self.tap.push(&before);
        }
        self.tap.push(piece);
    }
}

/// The id that stands first in a document, as the servers that store answers write it.
fn first_id(piece: &[u8]) -> Option<Box<str>> {
    let rest = piece.trim_ascii_start().strip_prefix(b"{")?.trim_ascii_start();
    let rest = rest.strip_prefix(b"\"id\"")?.trim_ascii_start().strip_prefix(b":")?;
    let text = rest.trim_ascii_start().strip_prefix(b"\"")?;
    let end = memchr::memchr2(b'"', b'\\', text).filter(|end| text[*end] == b'"')?;
    std::str::from_utf8(&text[..end]).ok().map(Into::into)
}

impl Meter for DocumentMeter {
    fn push(&mut self, piece: Bytes, seen: &mut Progress) -> Bytes {
        if self.tap.shape == Shape::Response && !self.begun {
            seen.stored = first_id(&piece);
        }
        self.read(&piece);
        seen.documents = self.tap.documents();
        seen.aborted = self.tap.aborted();
        if seen.model.is_none() {
            seen.model = self.tap.take_model();
        }
        piece
    }

    fn finish(&mut self, seen: &mut Progress) -> Bytes {
        self.whole = None;
        seen.aborted |= self.tap.is_incomplete();
        seen.ended = true;
        Bytes::new()
    }

    fn abandon(&mut self, _seen: &mut Progress) -> Bytes {
        Bytes::new()
    }

    fn sent_pending(&mut self, _seen: &mut Progress) {}

    fn counts(&self) -> Option<TokenCounts> {
        let (counts, source) = self.tap.usage();
        (source == UsageSource::Final).then_some(counts)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ANSWER: &str = r#"{"id":"model","choices":[{"index":0,"message":{"content":"\"usage\":{\"prompt_tokens\":9}",
        "model":"inner","usage":{"prompt_tokens":8}},"finish_reason":"stop"}],"model" : "qwen\/7b \u00e9 from somewhere","usage": {"prompt_tokens":21,"total_tokens":33,
        "completion_tokens":12,"prompt_tokens_details":{"cached_tokens":3}},"metrics":null}"#;

    const NAME: &str = "qwen/7b é from somewhere";

    #[test]
    fn finds_the_usage_of_the_answer_and_no_other() {
        let mut tap = JsonTap::default();
        tap.push(ANSWER.as_bytes());
        let counts = TokenCounts {
            prompt: 21,
            completion: 12,
            total: 33,
            cached: Some(3),
            ..TokenCounts::default()
        };
        assert_eq!(tap.usage(), (counts, UsageSource::Final));
        assert!(!tap.aborted());
        assert_eq!(tap.take_model().as_deref(), Some(NAME));
    }

    #[test]
    fn a_message_without_its_reason_to_stop_is_incomplete() {
        for (document, incomplete) in [
            (
                r#"{"type":"message","content":[],"stop_reason":"end_turn","usage":{"input_tokens":1,"output_tokens":2}}"#,
                false,
            ),
            (
                r#"{"type": "message", "stop_reason": "model_context_window_exceeded", "usage": {}}"#,
                false,
            ),
            (
                r#"{"type":"message","content":[{"type":"tool_use","input":{"stop_reason":1}}],"stop_reason":null,"usage":{"input_tokens":1,"output_tokens":2}}"#,
                true,
            ),
            (
                r#"{"content":[{"type":"text","text":"\"stop_reason\":\"x\""}],"type":"message","usage":{"input_tokens":1,"output_tokens":2}}"#,
                true,
            ),
            (r#"{"input_tokens":12}"#, false),
            (r#"{"type":"error","error":{"type":"api_error","message":"x"}}"#, false),
        ] {
            for cut in [1, 7, document.len()] {
                let (mut meter, mut seen) =
                    (DocumentMeter::new(Shape::Message), Progress::default());
                for piece in document.as_bytes().chunks(cut) {
                    meter.push(Bytes::copy_from_slice(piece), &mut seen);
                }
                meter.finish(&mut seen);
                assert_eq!(seen.aborted, incomplete, "{cut} {document}");
            }
        }
    }

    #[test]
    fn a_name_is_the_first_short_string_of_that_key() {
        let long = format!(r#"{{"model":"{}"}}"#, "m".repeat(257));
        let written = format!(r#"{{"model":"{}"}}"#, "\\u0041".repeat(256));
        for (text, name) in [
            (r#"{"model":"a","model":"b"}"#, Some("a")),
            (r#"{"model":"model","x":"b"}"#, Some("model")),
            (r#"{"model":null,"x":"b"}"#, None),
            (r#"{"model":["b"],"y":"b"}"#, None),
            (r#"{"x":"model","y":"b"}"#, None),
            (r#"{"model":""}"#, None),
            (r#"["model","b"]"#, None),
            (r#"{"model":"b"#, None),
            (&long, None),
            (&written, Some(&"A".repeat(256))),
        ] {
            let mut tap = JsonTap::default();
            tap.push(text.as_bytes());
            assert_eq!(tap.take_model().as_deref(), name, "{text}");
            let mut tap = JsonTap::default();
            text.as_bytes().chunks(1).for_each(|piece| tap.push(piece));
            assert_eq!(tap.take_model().as_deref(), name, "{text} byte by byte");
        }
    }

    /// What is known of a document that has come in these pieces.
    fn known(pieces: &[&[u8]]) -> (Option<TokenCounts>, Option<Box<str>>, u32, bool) {
        let (mut meter, mut seen) = (DocumentMeter::default(), Progress::default());
        for piece in pieces {
            meter.push(Bytes::copy_from_slice(piece), &mut seen);
        }
        meter.finish(&mut seen);
        (meter.counts(), seen.model, seen.documents, seen.aborted)
    }

    #[test]
    fn what_is_read_from_the_ends_is_what_a_whole_scan_reads() {
        const USAGE: &str = r#""usage":{"prompt_tokens":5,"total_tokens":7,"completion_tokens":2"#;
        let details = r#","prompt_tokens_details":{"cached_tokens":1,"x":{"y":{}}}}"#;
        for (text, by_ends) in [
            (format!(r#"{{"id":"a","model":"m",{USAGE}}}}}"#), true),
            (format!(r#"{{"id":"a","model":"m",{USAGE}{details},"z":[1,{{"a":"}}"}}]}}"#), true),
            (
                format!(r#"{{{USAGE}}},"choices":[{{"text":"{{\"usage\":{{"}}],"model":"m"}} "#),
                true,
            ),
            (format!(r#"{{"a":{{"model":"inner"}},"model":"m",{USAGE}}},"b":"\"}}"}}"#), true),
            // In another object, in a list, in a text, and where no key is.
            (format!(r#"{{"model":"m","x":{{{USAGE}}}}}}}"#), false),
            (format!(r#"{{"model":"m","choices":[{{{USAGE}}}}}]}}"#), false),
            (r#"{"model":"m","t":"\"usage\":{\"total_tokens\":7}"}"#.to_owned(), false),
            // Broken off, or a text that says so.
            (
                format!(r#"{{"choices":[{{"finish_reason":"abort"}}],"model":"m",{USAGE}}}}}"#),
                false,
            ),
            (format!(r#"{{"choices":[{{"text":"error"}}],"model":"m",{USAGE}}}}}"#), false),
            // Several documents, part of one, and none.
            (format!(r#"{{"model":"m"}}{{"a":1,{USAGE}}}}}"#), false),
            (format!(r#"{{"choices":[{{"index":0,{USAGE}}}}}],{USAGE}}},"model":"m"}}"#), true),
            (format!("{{\"model\":\"m\",{USAGE}}}}}\n{{\"a\":1,{USAGE}}}}}"), false),
            (format!(r#"{{"id":"a","model":"m",{USAGE}}}"#), false),
            (format!(r#"[{{"model":"m",{USAGE}}}}}]"#), false),
            (r#"{"model":"m","usage":null}"#.to_owned(), false),
            (r#"{"model":"m","usage":{"total_tokens":0}}"#.to_owned(), false),
        ] {
            assert_eq!(Ends::read(text.as_bytes(), Shape::Choices).is_some(), by_ends, "{text}");
            // A split anywhere has it read from beginning to end.
            let whole = known(&[text.as_bytes()]);
            for at in 1..text.len() {
                let (one, two) = text.as_bytes().split_at(at);
                assert_eq!(known(&[one, two]), whole, "{text} at {at}");
            }
        }
    }

    #[test]
    fn usage_may_stand_elsewhere() {
        for (text, total) in [
            (
                r#"{"choices":[{"usage":{"prompt_tokens":5,"completion_tokens":2}},{"usage":{"prompt_tokens":5,"completion_tokens":3}}]}"#,
                10,
            ),
            (r#"{"x_groq":{"id":"x","usage":{"prompt_tokens":1,"completion_tokens":2}}}"#, 3),
            (
                r#"{"x_groq":{"usage":{"prompt_tokens":1}},"choices":[{"usage":{"prompt_tokens":9}}],"usage":{"prompt_tokens":4}}"#,
                4,
            ),
            (r#"{"x_groq":{"usage":{"prompt_tokens":1}},"usage":{"prompt_tokens":-4}}"#, 1),
            (
                r#"{"other":{"usage":{"prompt_tokens":1}},"x":"x_groq","y":{"usage":{"prompt_tokens":1}}}"#,
                0,
            ),
            (
                "{\"usage\":{\"prompt_tokens\":1}}\n{\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":7}}\n{\"usage\":null}",
                8,
            ),
            ("\u{feff}{\"usage\":{\"prompt_tokens\":\"6\"}}", 6),
        ] {
            for size in [1, 7, text.len()] {
                let mut tap = JsonTap::default();
                text.as_bytes().chunks(size).for_each(|piece| tap.push(piece));
                assert_eq!(tap.usage().0.total, total, "{text}");
                assert_eq!(tap.documents() as usize, text.lines().count(), "{text}");
            }
        }
    }

    #[test]
    fn null_usage_is_none() {
        let mut tap = JsonTap::default();
        tap.push(br#"{"usage":null,"x":{"prompt_tokens":1}}"#);
        assert_eq!(tap.usage().1, UsageSource::None);
    }

    #[test]
    fn sees_an_abort() {
        let mut tap = JsonTap::default();
        tap.push(br#"{"choices":[{"text":"finish_reason","finish_reason" : "abort"}]}"#);
        assert!(tap.aborted());
        let mut tap = JsonTap::default();
        tap.push(br#"{"choices":[{"finish_reason":null,"text":"abort"}]}"#);
        assert!(!tap.aborted());
        let mut tap = JsonTap::default();
        tap.push(br#"{"choices":[{"text":"finish_reason","abort":1}]}"#);
        assert!(!tap.aborted());
    }

    #[test]
    fn a_response_says_by_its_status_that_it_failed() {
        const USAGE: &str = r#""usage":{"input_tokens":5,"output_tokens":2,"total_tokens":7}"#;
        for (text, aborted, by_ends) in [
            (format!(r#"{{"error":null,"model":"m","status":"completed",{USAGE}}}"#), false, true),
            (format!(r#"{{"model":"m","status" : "failed","error":{{}},{USAGE}}}"#), true, false),
            (format!(r#"{{"model":"m","status":"cancelled",{USAGE}}}"#), true, false),
            (
                format!(r#"{{"model":"m","output":[{{"status":"failed"}}],"status":"x",{USAGE}}}"#),
                false,
                false,
            ),
            (format!(r#"{{"model":"m","text":"failed","failed":"status",{USAGE}}}"#), false, false),
        ] {
            assert_eq!(Ends::read(text.as_bytes(), Shape::Response).is_some(), by_ends, "{text}");
            for size in [1, 7, text.len()] {
                let (mut meter, mut seen) =
                    (DocumentMeter::new(Shape::Response), Progress::default());
                for piece in text.as_bytes().chunks(size) {
                    meter.push(Bytes::copy_from_slice(piece), &mut seen);
                }
                let total = meter.counts().map(|counts| counts.total);
                let found = (seen.aborted, total, seen.model.as_deref());
                assert_eq!(found, (aborted, Some(7), Some("m")), "{text}");
            }
        }
    }

    #[test]
    fn an_answer_may_be_a_member_of_the_document() {
        let text = r#"data: {"model":"x","usage":{"input_tokens":9},"response":{"id":"a","model":"m",
            "output":[{"usage":{"input_tokens":8}}],"status":"failed","usage":{"input_tokens":5}},"n":1}"#;
        for size in [1, 7, text.len()] {
            let mut tap = JsonTap::new(Shape::Response, true);
            text.as_bytes().chunks(size).for_each(|piece| tap.push(piece));
            assert_eq!((tap.usage().0.total, tap.aborted()), (5, true));
            assert_eq!(tap.take_model().as_deref(), Some("m"));
        }
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same(mut cuts in proptest::collection::vec(0usize..500, 0..8)) {
            let whole = ANSWER.as_bytes();
            cuts.sort_unstable();
            let mut tap = JsonTap::default();
            let mut at = 0;
            for cut in cuts {
                let cut = cut.min(whole.len());
                tap.push(&whole[at..cut]);
                at = cut;
            }
            tap.push(&whole[at..]);
            prop_assert_eq!(tap.usage().0.total, 33);
            let model = tap.take_model();
            prop_assert_eq!(model.as_deref(), Some(NAME));
        }
    }
}
