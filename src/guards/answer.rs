//! Answers on their way to the client: placeholders become values again, and denied content ends the answer.
//!
//! An event waits as long as a text of it may be the beginning of a placeholder or of a denied pattern, and
//! the events after it wait behind it. It goes on once more of the text has come, or the text is over. So an
//! answer has the same events as before, in the same order, and one in which nothing is found has the same
//! bytes. A placeholder that lies in several events becomes its value in the first of them.
//!
//! What waits is bounded: by `window` of the entries of `deny`, by the longest placeholder, and by
//! [`MOST_WAITING`]. The time is linear in the bytes, apart from a search of at most `window` beginnings in
//! each event.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use bytes::{Bytes, BytesMut};

use super::{
    finding::Finding,
    running::{Denied, Hit, Rules, Running, Swap, placeholders},
    vault::Vault,
};
use crate::{
    base::Rejection,
    config::plan::DenyPlan,
    dialect::{
        Dialect,
        event::{Form, Place, document, edited},
        texts::{AnswerText, AnswerTexts, Ending, Part},
    },
    wire::{
        edit::Edit,
        literal::{Literal, escaped},
        sse::{Piece, Splitter},
    },
};

/// Bytes of events that wait. When there are more, texts are taken as they are.
const MOST_WAITING: usize = 1 << 20;

/// Running texts that are remembered although nothing of them waits.
const MOST_TEXTS: usize = 256;

/// An answer must not go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocked {
    /// What the client is told: as the answer, or as the error that ends a stream.
    pub rejection: Rejection,
    /// What may still go to the client before.
    pub sent: Bytes,
    /// What was found.
    pub finding: Finding,
}

/// Looks through one answer in the client's language.
pub struct AnswerFilter {
    language: &'static dyn Dialect,
    rules: Rules,
    splitter: Splitter,
    form: Form,
    texts: HashMap<u64, Running>,
    waiting: VecDeque<Waiting>,
    /// The bytes of the events that wait.
    bytes: usize,
    /// Values that were put back.
    restored: usize,
    /// Nothing goes on.
    blocked: bool,
}

/// An event that waits.
struct Waiting {
    event: Bytes,
    document: Bytes,
    place: Place,
    pieces: Vec<WaitingText>,
    /// Edits of texts that are complete.
    edits: Vec<Edit>,
}

/// A piece of a running text in an event.
struct WaitingText {
    text: AnswerText,
    /// Offsets in the running text.
    start: usize,
    end: usize,
}

impl AnswerFilter {
    /// A filter, for a plain answer or a stream of events.
    pub fn new(
        language: &'static dyn Dialect,
        denied: Vec<Arc<DenyPlan>>,
        vault: Option<Vault>,
    ) -> Self {
        let denied = denied.into_iter().map(|plan| Denied { table: plan.patterns.table(), plan });
        Self {
            language,
            rules: Rules { denied: denied.collect(), vault },
            splitter: Splitter::default(),
            form: Form::Events,
            texts: HashMap::new(),
            waiting: VecDeque::new(),
            bytes: 0,
            restored: 0,
            blocked: false,
        }
    }

    /// For a stream whose documents are on lines of their own (NDJSON), of which nothing has come yet.
    pub fn by_line(mut self) -> Self {
        (self.splitter, self.form) = (Splitter::by_line(), Form::Lines);
        self
    }

    /// The next bytes of a stream; `end`: they are the last ones. Returns what may go to the client now,
    /// which may be nothing. However the bytes are cut, the sum is the same.
    ///
    /// # Errors
    /// If the answer must not go on. Further bytes are dropped.
    pub fn push(&mut self, bytes: &Bytes, end: bool) -> Result<Bytes, Box<Blocked>> {
        if self.blocked {
            return Ok(Bytes::new());
        }
        let mut pieces = Vec::new();
        self.splitter.push(bytes, |piece| pieces.push(piece));
        if end {
            pieces.extend(self.splitter.finish());
        }
        let mut out = Out::default();
        for piece in pieces {
            self.piece(piece, &mut out).map_err(|hit| self.block(hit, &mut out))?;
        }
        if end {
            self.end(Ending::All).map_err(|hit| self.block(hit, &mut out))?;
            self.release(&mut out);
        }
        Ok(out.take())
    }

    /// A plain answer.
    ///
    /// # Errors
    /// If it must not go to the client.
    pub fn document(&mut self, body: &Bytes) -> Result<Bytes, Box<Blocked>> {
        let mut edits = Vec::new();
        for text in self.language.answer_texts(body, false).texts {
            self.whole(body, &text, &mut edits)
                .map_err(|hit| self.block(hit, &mut Out::default()))?;
        }
        if edits.is_empty() {
            return Ok(body.clone());
        }
        Ok(edited(body, body, Place::At(0), edits))
    }

    /// What was done to the answer so far.
    pub fn findings(&self) -> Option<Finding> {
        let kind = "answer".to_owned();
        let count = self.restored;
        (count > 0).then_some(Finding { guard: "redact", kind, action: "unmask", count })
    }

    fn block(&mut self, hit: Hit, out: &mut Out) -> Box<Blocked> {
        self.blocked = true;
        self.waiting.clear();
        let plan = &self.rules.denied[hit.0].plan;
        let kind = "answer".to_owned();
        Box::new(Blocked {
            rejection: Rejection::content_blocked(plan.status, &plan.message),
            sent: out.take(),
            finding: Finding { guard: "deny", kind, action: "end", count: 1 },
        })
    }

    fn piece(&mut self, piece: Piece, out: &mut Out) -> Result<(), Hit> {
        let event = match piece {
            Piece::Event(event) => event,
            // Not looked into: nothing that is known generates so much in one event.
            Piece::Raw(bytes) | Piece::RawEnd(bytes) | Piece::Unfinished(bytes) => {
                self.end(Ending::All)?;
                self.release(out);
                out.put(bytes);
                return Ok(());
            }
        };
        match document(self.form, &event) {
            Some((document, place)) => self.event(event, document, place)?,
            None if self.waiting.is_empty() => {
                out.put(event);
                return Ok(());
            }
            None => self.wait(Waiting::unread(event)),
        }
        self.release(out);
        if self.bytes > MOST_WAITING {
            self.end(Ending::All)?;
            self.release(out);
        }
        Ok(())
    }

    fn event(&mut self, event: Bytes, document: Bytes, place: Place) -> Result<(), Hit> {
        let AnswerTexts { texts, ends } = self.language.answer_texts(&document, true);
        self.switch(&document, &texts)?;
        let mut waiting = Waiting { event, document, place, pieces: Vec::new(), edits: Vec::new() };
        let mut ended = Vec::new();
        for text in texts {
            let document = waiting.document.clone();
            if text.whole {
                // The text that it repeats is over.
                ended.push(text.key);
                self.whole(&document, &text, &mut waiting.edits)?;
                continue;
            }
            let Some(literal) = Literal::read(&document[text.range.clone()]) else { continue };
            let running = self.texts.entry(text.key).or_default();
            running.group = text.group;
            running.part = Some(text.part);
            running.sealed = text.sealed;
            let start = running.end();
            running.grow(&literal.text);
            let end = running.end();
            running.settle(&mut self.rules, false)?;
            waiting.pieces.push(WaitingText { text, start, end });
        }
        self.wait(waiting);
        for key in ended {
            self.end(Ending::Text(key))?;
        }
        for end in ends {
            self.end(end)?;
        }
        Ok(())
    }

    /// A group generates one text after the other: where another one goes on, those before it are over.
    fn switch(&mut self, document: &[u8], texts: &[AnswerText]) -> Result<(), Hit> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let goes_on = |text: &&AnswerText| !text.whole && document[text.range.clone()] != *b"\"\"";
        let going: Vec<&AnswerText> = texts.iter().filter(goes_on).collect();
        for (key, running) in &mut self.texts {
            let other = |text: &&AnswerText| text.group == running.group;
            if going.iter().any(other) && going.iter().all(|t| t.key != *key) {
                running.settle(&mut self.rules, true)?;
            }
        }
        Ok(())
    }

    fn end(&mut self, ending: Ending) -> Result<(), Hit> {
        for (key, running) in &mut self.texts {
            let ends = match ending {
                Ending::All => true,
                Ending::Group(group) => running.group == group,
                Ending::Text(text) => *key == text,
            };
            if ends {
                running.settle(&mut self.rules, true)?;
            }
        }
        Ok(())
    }

    /// Looks through a text that is complete.
    fn whole(
        &mut self,
        document: &[u8],
        text: &AnswerText,
        edits: &mut Vec<Edit>,
    ) -> Result<(), Hit> {
        let Some(literal) = Literal::read(&document[text.range.clone()]) else { return Ok(()) };
        if text.part != Part::Echo {
            let denied = &self.rules.denied;
            let found = |denied: &Denied| denied.plan.patterns.find(&literal.text, 0).is_some();
            if let Some(hit) = denied.iter().position(found) {
                return Err(Hit(hit));
            }
        }
        let Some(vault) = self.rules.vault.as_ref().filter(|_| !text.sealed) else {
            return Ok(());
        };
        for (range, value) in placeholders(&literal.text, 0..literal.text.len(), vault, true).swaps
        {
            let start = text.range.start;
            let range = start + literal.place(range.start)..start + literal.place(range.end);
            edits.push(Edit { range, with: written(vault, value, text).into() });
            self.restored += 1;
        }
        Ok(())
    }

    fn wait(&mut self, waiting: Waiting) {
        self.bytes += waiting.event.len();
        self.waiting.push_back(waiting);
    }

    /// Lets the events go whose texts are decided.
    fn release(&mut self, out: &mut Out) {
        while let Some(first) = self.waiting.front() {
            let decided = |piece: &WaitingText| {
                self.texts.get(&piece.text.key).is_none_or(|text| text.safe() >= piece.end)
            };
            if !first.pieces.iter().all(decided) {
                return;
            }
            let Some(mut first) = self.waiting.pop_front() else { return };
            self.bytes -= first.event.len();
            for piece in std::mem::take(&mut first.pieces) {
                self.restore(&piece, &mut first);
            }
            out.put(edited(&first.event, &first.document, first.place, first.edits));
        }
        // Nothing waits: texts can begin anew.
        if self.texts.len() > MOST_TEXTS {
            self.texts.clear();
        }
    }

    /// The edits of a piece whose placeholders are decided.
    fn restore(&mut self, piece: &WaitingText, waiting: &mut Waiting) {
        let Some(running) = self.texts.get_mut(&piece.text.key) else { return };
        let Some(vault) = self.rules.vault.as_ref() else { return };
        let Some(literal) = Literal::read(&waiting.document[piece.text.range.clone()]) else {
            return;
        };
        while let Some(Swap { range, value }) = running.swaps.front().cloned() {
            if range.start >= piece.end {
                return;
            }
            let here = range.start.max(piece.start)..range.end.min(piece.end);
            let at = piece.text.range.start;
            let place = |offset: usize| at + literal.place(offset - piece.start);
            let with = match range.start >= piece.start {
                true => {
                    self.restored += 1;
                    written(vault, value, &piece.text)
                }
                false => Vec::new(),
            };
            let range_here = place(here.start)..place(here.end);
            waiting.edits.push(Edit { range: range_here, with: with.into() });
            if range.end > piece.end {
                return;
            }
            running.swaps.pop_front();
        }
    }
}

/// A value as it stands in a literal; in one of a text that is JSON itself it is a part of a text there.
fn written(vault: &Vault, value: usize, text: &AnswerText) -> Vec<u8> {
    let once = escaped(vault.value(value));
    if text.embedded || vault.json() && text.part == Part::Content {
        return escaped(&String::from_utf8_lossy(&once));
    }
    once
}

impl Waiting {
    /// An event without a document.
    fn unread(event: Bytes) -> Self {
        let (document, place) = (Bytes::new(), Place::At(0));
        Self { event, document, place, pieces: Vec::new(), edits: Vec::new() }
    }
}

/// What may go to the client.
#[derive(Default)]
struct Out {
    first: Bytes,
    rest: BytesMut,
}

impl Out {
    fn put(&mut self, bytes: Bytes) {
        if self.first.is_empty() && self.rest.is_empty() {
            self.first = bytes;
            return;
        }
        if self.rest.is_empty() {
            self.rest.extend_from_slice(&self.first);
            self.first = Bytes::new();
        }
        self.rest.extend_from_slice(&bytes);
    }

    fn take(&mut self) -> Bytes {
        if self.rest.is_empty() {
            return std::mem::take(&mut self.first);
        }
        self.rest.split().freeze()
    }
}
